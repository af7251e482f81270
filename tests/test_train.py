"""Training: it learns, forgives wrong labels, sees no held-out label, and is the same on every run."""

import dataclasses
import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from geoflow import nets
from geoflow.errors import LabelError, ModelError
from geoflow.inputs import NODATA, InputSpec
from geoflow.learning.loop import Leg, Loop, Setting, Stage
from geoflow.learning.losses import HierarchyLoss, class_weights
from geoflow.learning.sampler import Sampler, SamplerOptions
from geoflow.learning.samples import (
    IGNORE,
    HeldOut,
    held_out_blocks,
    held_out_mask,
    survey,
)
from geoflow.learning.train import ClassifierOptions, SegmenterOptions, fit_classifier, fit_segmenter
from geoflow.legends import Legend, LegendClass, legend
from geoflow.modelfile import TrainedModel, save_model
from geoflow.nets import Compute

CORINE = legend("corine")
CODES = (112, 211, 311, 312, 512)
BANDS, PERIODS = ("B03", "B04", "B08"), ("spring", "summer")
SMALL = SegmenterOptions(
    architecture="unet",
    encoder="resnet18",
    decoder_channels=(32, 32, 16, 16, 16),
    decoder_steps=0,
    steps=60,
    lr=4e-3,
    encoder_lr_share=1.0,
    batch=4,
    window_px=64,
    map_window_px=96,
    map_halo_px=16,
    memory_mb=64,
)


def country(
    shape: tuple[int, int] = (256, 192), seed: int = 0, grain_px: int = 7
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Imagery, true codes, and labels with generalised borders and omitted small patches."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), grain_px) for _ in CODES])
    index = fields.argmax(axis=0)
    spectra = np.random.default_rng(99).uniform(300, 3500, (len(CODES), 2, 3))
    cube = spectra[index].transpose(2, 3, 0, 1) + rng.normal(0, 500, (2, 3, *shape))
    drawn = np.stack([ndimage.gaussian_filter((index == i).astype(float), 5) for i in range(len(CODES))]).argmax(axis=0)
    codes = np.array(CODES, np.uint16)
    return cube.astype(np.int16), codes[index], codes[drawn]


# --- held-out blocks ------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    block=st.integers(16, 300),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 10**6),
)
def test_held_out_blocks(shape: tuple[int, int], block: int, share: float, seed: int) -> None:
    blocks = held_out_blocks(shape, block, share, seed)
    assert blocks.shape == (-(-shape[0] // block), -(-shape[1] // block))
    assert (blocks == held_out_blocks(shape, block, share, seed)).all()
    assert not blocks.all()
    assert blocks.any() == (share > 0 and blocks.size > 1)
    mask = held_out_mask(shape, block, share, seed)
    assert mask.shape == shape
    y, x = slice(shape[0] // 3, shape[0]), slice(shape[1] // 2, shape[1])
    np.testing.assert_array_equal(held_out_mask(shape, block, share, seed, y, x), mask[y, x])
    assert mask[-1, -1] == blocks[-1, -1]


def test_a_held_out_share_of_all_is_refused() -> None:
    with pytest.raises(LabelError, match="below 1"):
        HeldOut(share=1.0)


# --- windows --------------------------------------------------------------------------------------------------------


def position_coded(shape: tuple[int, int]) -> NDArray[np.int16]:
    """Imagery that says where a pixel lies, so that a window can be checked against the country."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.int16)
    return np.stack([y, x])[None]


def windows_of(memory_mb: int, edge: int, lazy: bool = False, count: int = 60) -> list[tuple[Any, Any]]:
    _, _, labels = country()
    held_out = HeldOut(64, 0.25, 5)
    cube: Any = position_coded(labels.shape)
    given_labels: Any = labels
    if lazy:
        cube = xr.DataArray(cube, dims=("period", "band", "y", "x")).chunk(y=64, x=64)
        given_labels = xr.DataArray(labels, dims=("y", "x")).chunk(y=64, x=64)
    options = SamplerOptions(window_px=32, batch=4, seed=1, memory_mb=memory_mb)
    found = survey(given_labels, held_out, edge, CODES)
    windows = Sampler(cube, given_labels, found, held_out, options).raw()
    return [next(windows) for _ in range(count)]


@pytest.mark.parametrize("memory_mb", [0, 512])
def test_windows_show_the_country_and_no_held_out_label(memory_mb: int) -> None:
    _, _, labels = country()
    held = HeldOut(64, 0.25, 5).mask(labels.shape)
    seen_held_imagery = False
    for cube, target in windows_of(memory_mb, edge=128):
        y, x = cube[0]
        learned = target != IGNORE
        assert learned.any()
        assert not held[y, x][learned].any()
        seen_held_imagery |= bool(held[y, x].any())
        np.testing.assert_array_equal(np.array(CODES)[target[learned]], labels[y, x][learned])
    assert seen_held_imagery, "context from held-out blocks is allowed, and was to be tested"


def test_lazy_arrays_give_the_same_windows() -> None:
    for a, b in zip(windows_of(512, 128), windows_of(512, 128, lazy=True), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_a_large_country_is_read_block_by_block() -> None:
    held: set[tuple[int, int]] = set()

    class Watched:
        shape = (2, 3, 512, 512)
        biggest = 0
        reads = 0

        def __getitem__(self, key: tuple[Any, slice, slice]) -> NDArray[np.int16]:
            _, y, x = key
            held.add((y.start, x.start))
            Watched.biggest = max(Watched.biggest, (y.stop - y.start) * (x.stop - x.start))
            Watched.reads += 1
            return np.zeros((2, 3, y.stop - y.start, x.stop - x.start), np.int16)

    labels = np.full((512, 512), 311, np.uint16)
    found = survey(labels, None, 128, CODES)
    sampler = Sampler(Watched(), labels, found, None, SamplerOptions(window_px=32, memory_mb=1, seed=2))
    assert sampler.blocks_at_once * 128 * 128 * 2 * 6 <= 2**20
    windows = sampler.raw()
    for _ in range(400):
        next(windows)
    assert Watched.biggest <= 128 * 128
    assert len(held) >= 12, "all parts of the country are visited"
    assert Watched.reads < 60, "a block that was read is used more than once"


def test_rare_classes_are_drawn_more_often_than_their_area() -> None:
    labels = np.full((256, 256), 311, np.uint16)
    labels[:16, :16] = 512
    found = survey(labels, None, 256, CODES)
    cube = np.zeros((1, 1, 256, 256), np.int16)
    share = {}
    for rarity in (0.0, 1.0):
        windows = Sampler(cube, labels, found, None, SamplerOptions(window_px=32, rarity=rarity)).raw()
        share[rarity] = np.mean([(next(windows)[1] == 1).any() for _ in range(200)])
    assert share[0.0] < 0.15
    assert share[1.0] > 0.4


def test_windows_near_an_edge_are_padded_with_nodata() -> None:
    labels = np.full((20, 200), 311, np.uint16)
    found = survey(labels, None, 200, CODES)
    cube = np.full((1, 1, 20, 200), 7, np.int16)
    window, target = next(Sampler(cube, labels, found, None, SamplerOptions(window_px=64)).raw())
    assert window.shape == (1, 1, 64, 64)
    assert (window[..., 20:, :] == NODATA).all()
    assert (target[20:] == IGNORE).all()


def bordered_windows(count: int, **options: Any) -> list[tuple[Any, Any]]:
    """Windows of two halves, with distances to the border between them; imagery is the column."""
    labels = np.repeat(np.array([311, 512], np.uint16), 64)[None].repeat(128, 0)
    far = (np.abs(np.arange(128) - 63.5) * 10).astype(np.int16)[None].repeat(128, 0)
    cube = np.arange(128, dtype=np.int16)[None, None, None].repeat(128, 2)
    found = survey(labels, None, 128, CODES)
    windows = Sampler(cube, labels, found, None, SamplerOptions(window_px=32, seed=3, **options), far).raw()
    return [next(windows) for _ in range(count)]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_labels_near_a_border_count_less(weight: float) -> None:
    near, kept_far = [], []
    for cube, target in bordered_windows(60, border_m=50, border_weight=weight):
        far = np.abs(cube[0, 0] - 63.5) * 10 >= 50
        kept_far.append((target[far] != IGNORE).all())
        near.append(target[~far] != IGNORE)
    assert all(kept_far)
    share = np.concatenate(near)
    assert len(share) > 1000
    assert abs(share.mean() - weight) < (0.03 if 0 < weight < 1 else 1e-9)


def test_no_window_is_chosen_for_a_label_near_a_border() -> None:
    """With distances that spare one pixel alone, every window holds that pixel."""
    labels = np.full((64, 64), 311, np.uint16)
    far = np.zeros((64, 64), np.int16)
    far[40, 8] = 100
    found = survey(labels, None, 64, CODES)
    options = SamplerOptions(window_px=32, border_m=50, border_weight=1.0)
    windows = Sampler(position_coded((64, 64)), labels, found, None, options, far).raw()
    for _ in range(20):
        y, x = next(windows)[0][0]
        assert ((y == 40) & (x == 8)).any()


def test_distances_to_borders_must_be_given_where_they_are_needed() -> None:
    labels = np.full((64, 64), 311, np.uint16)
    found, cube = survey(labels, None, 64, CODES), position_coded((64, 64))
    for far, says in ((None, "no distances to borders are given"), (np.zeros((64, 63), np.int16), "do not lie on")):
        with pytest.raises(LabelError, match=says):
            Sampler(cube, labels, found, None, SamplerOptions(border_m=50), far)
    with pytest.raises(ModelError, match=r"border_weight within 0\.\.1, not 50, 1\.5"):
        SegmenterOptions(border_m=50, border_weight=1.5)


def test_the_prefetching_thread_hands_on_its_error() -> None:
    class Broken:
        shape = (1, 1, 64, 64)

        def __getitem__(self, key: Any) -> Any:
            raise OSError("the disk is gone")

    labels = np.full((64, 64), 311, np.uint16)
    sampler = Sampler(Broken(), labels, survey(labels, None, 64, CODES), None, SamplerOptions(window_px=32))
    with pytest.raises(OSError, match="disk is gone"):
        list(sampler.batches(InputSpec(("B04",), ("one",), (0.0,), (1.0,)), 3))


@pytest.mark.parametrize(
    ("labels", "says"),
    [(np.zeros((8, 8), np.uint16), "nothing|no label"), (np.full((8, 8), 999, np.uint16), "999")],
)
def test_labels_to_learn_nothing_from_are_refused(labels: NDArray[Any], says: str) -> None:
    with pytest.raises(LabelError, match=says):
        survey(labels, None, 8, CODES)


# --- the loss -------------------------------------------------------------------------------------------------------


def naive_loss(p: NDArray[Any], label: int, q: float) -> float:
    total = 0.0
    for level in CORINE.levels:
        group = CORINE.ancestor(CODES[label], level)
        summed = sum(p[i] for i, c in enumerate(CODES) if CORINE.ancestor(c, level) == group)
        total += -np.log(summed) if q == 0 else (1 - summed**q) / q
    return total / len(CORINE.levels)


@pytest.mark.parametrize("q", [0.0, 0.4, 1.0])
def test_the_loss_sums_probabilities_up_the_levels(q: float) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 3, 4), torch.randint(0, 5, (2, 3, 4))
    target[0, 0, 0] = IGNORE
    loss = HierarchyLoss(CORINE, CODES, np.ones(5, np.float32), None, q)
    p = logits.softmax(1).permute(0, 2, 3, 1).numpy()
    expected = [naive_loss(p[at], int(target[at]), q) for at in np.ndindex(2, 3, 4) if target[at] != IGNORE]
    assert float(loss(logits, target)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_robustness_runs_from_the_coarsest_level_to_the_deepest() -> None:
    assert HierarchyLoss(CORINE, CODES, np.ones(5, np.float32), None, (0.6, 0.2)).robustness == pytest.approx(
        (0.6, 0.4, 0.2)
    )
    assert HierarchyLoss(CORINE, CODES, np.ones(5, np.float32), None, 0.3).robustness == pytest.approx((0.3,) * 3)
    flat = Legend("flat", (LegendClass(4, "grass", (0, 0, 0)), LegendClass(5, "bare", (9, 9, 9))))
    assert HierarchyLoss(flat, (4, 5), np.ones(2, np.float32), None, (0.6, 0.2)).robustness == pytest.approx((0.2,))
    with pytest.raises(ModelError, match=r"0\.\.1, not \(1\.2, 0\.2\)"):
        HierarchyLoss(CORINE, CODES, np.ones(5, np.float32), None, (1.2, 0.2))


def test_the_loss_survives_hopeless_pixels() -> None:
    logits = torch.zeros(1, 5, 1, 1)
    logits[0, 0] = 300.0
    logits.requires_grad_()
    for q in (0.0, 0.3):
        value = HierarchyLoss(CORINE, CODES, np.ones(5, np.float32), None, q)(logits, torch.full((1, 1, 1), 4))
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_a_batch_without_labels_teaches_nothing() -> None:
    logits = torch.randn(1, 5, 2, 2, requires_grad=True)
    HierarchyLoss(CORINE, CODES, np.ones(5, np.float32), None, 0.0)(logits, torch.full((1, 2, 2), IGNORE)).backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_the_terms_of_two_halves_add_up_to_those_of_the_whole() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(4, 5, 3, 3, requires_grad=True), torch.randint(0, 5, (4, 3, 3))
    target[:2, :, :2], target[3] = IGNORE, IGNORE
    loss = HierarchyLoss(CORINE, CODES, np.array([1, 2, 0.5, 1, 3], np.float32), (1.0, 2.0, 0.5), (0.6, 0.2))
    parts = [loss.terms(logits[at : at + 1], target[at : at + 1]) for at in range(4)]
    assert float(parts[3][1]) == 0
    total, weight = (sum(column) for column in zip(*parts, strict=True))
    whole = loss(logits, target)
    torch.testing.assert_close(total / weight, whole)
    (from_parts,), (from_whole,) = (torch.autograd.grad(value, logits) for value in (total / weight, whole))
    torch.testing.assert_close(from_parts, from_whole)
    assert not weight.requires_grad
    torch.testing.assert_close(loss.terms(logits * 2, target)[1], weight)


def test_class_weights_are_capped_and_average_to_one() -> None:
    counts = np.array([10**6, 10**4, 10], np.int64)
    weights = class_weights(counts, 3.0)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert weights[2] / weights[0] == pytest.approx(9)
    assert class_weights(counts, 1.0).tolist() == [1, 1, 1]


# --- fitting --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> TrainedModel:
    cube, _, labels = country()
    ours = dataclasses.replace(SMALL, architecture=SegmenterOptions.architecture, context_steps=120, steps=100, lr=3e-3)
    return fit_segmenter(cube, labels, CORINE, BANDS, PERIODS, ours, held_out=HeldOut(64, 0.2, 0))


def test_the_segmenter_beats_the_labels_that_it_learned_from(fitted: TrainedModel, tmp_path: Path) -> None:
    from geoflow.mapping.predict import predict

    cube, truth, labels = country(seed=1)  # another country of the same spectra
    save_model(tmp_path / "model", fitted)
    array = xr.DataArray(cube, {"period": list(PERIODS), "band": list(BANDS)}, ("period", "band", "y", "x"))
    mapped = predict(array, tmp_path / "model")["level3"].values
    assert (mapped == truth).mean() > (labels == truth).mean() + 0.03


def test_the_card_tells_what_was_learned(fitted: TrainedModel) -> None:
    card = fitted.card
    assert card.codes == CODES
    assert (card.inputs.bands, card.inputs.periods) == (BANDS, PERIODS)
    assert (card.window_px, card.halo_px, card.core_px) == (96, 16, 64)
    assert card.training["held_out"] == HeldOut(64, 0.2, 0).record((256, 192))


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    cube, _, labels = country((128, 128))
    few = {**SMALL.__dict__, "decoder_steps": 1, "steps": 2}
    shas = [
        save_model(tmp_path / name, fit_segmenter(cube, labels, CORINE, BANDS, PERIODS, SegmenterOptions(**few)))
        for name in ("a", "b")
    ]
    assert shas[0] == shas[1]
    other = fit_segmenter(cube, labels, CORINE, BANDS, PERIODS, SegmenterOptions(**{**few, "seed": 1}))
    assert save_model(tmp_path / "c", other) != shas[0]


def test_progress_is_told() -> None:
    cube, _, labels = country((128, 128))
    told: list[dict[str, Any]] = []
    few = SegmenterOptions(**{**SMALL.__dict__, "decoder_steps": 1, "steps": 2})
    fit_segmenter(cube, labels, CORINE, BANDS, PERIODS, few, Setting(progress=told.append))
    assert [(t["stage"], t["step"], t["steps"]) for t in told] == [
        ("segmenter decoder", 1, 1),
        ("segmenter all", 1, 2),
        ("segmenter all", 2, 2),
    ]


def test_labels_beside_the_imagery_are_refused() -> None:
    cube, _, labels = country((128, 128))
    with pytest.raises(LabelError, match="do not lie on"):
        fit_segmenter(cube, labels[1:], CORINE, BANDS, PERIODS, SMALL)


def test_windows_must_fit_the_encoder() -> None:
    with pytest.raises(ModelError, match="multiple of 32"):
        SegmenterOptions(window_px=100)


def patches(count: int = 48) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """Patches of one or two classes, and which."""
    cube, truth, _ = country((512, 512), seed=3, grain_px=24)
    rng = np.random.default_rng(4)
    corners = rng.integers(0, 512 - 40, (count, 2))
    cubes = [cube[0, :, y : y + 40, x : x + 40] for y, x in corners]
    labels = [[(truth[y : y + 40, x : x + 40] == c).mean() > 0.05 for c in CODES] for y, x in corners]
    return np.stack(cubes), np.array(labels)


@pytest.fixture(scope="module")
def classifier() -> TrainedModel:
    cube, labels = patches(64)
    options = ClassifierOptions(encoder="resnet18", head_epochs=0, epochs=8, batch=8)
    return fit_classifier(cube, labels, CODES, CORINE, BANDS, options)


def test_the_classifier_learns(classifier: TrainedModel) -> None:
    _, labels = patches(64)
    found = classifier.card.training["validation"]
    everything = 2 * labels.mean() / (1 + labels.mean())  # micro F1 of naming all classes everywhere
    assert found["micro_f1"] > everything + 0.03
    assert 0 <= found["exact_match"] <= 1
    assert found["patches"] == 13


def test_classes_are_sorted_and_those_never_seen_left_out() -> None:
    cube, labels = patches(12)
    columns = np.concatenate([labels[:, ::-1], np.zeros((12, 1), bool)], axis=1)
    options = ClassifierOptions(encoder="resnet18", head_epochs=0, epochs=1, batch=8)
    model = fit_classifier(cube, columns, (*CODES[::-1], 421), CORINE, BANDS, options)
    assert model.card.codes == CODES


def test_the_segmenter_starts_from_the_classifiers_encoder(classifier: TrainedModel) -> None:
    cube, _, labels = country((128, 128))
    frozen = SegmenterOptions(**{**SMALL.__dict__, "decoder_steps": 2, "steps": 0})
    model = fit_segmenter(cube, labels, CORINE, BANDS, PERIODS, frozen, encoder=classifier)
    name = "encoder.layer2.0.conv1.weight"
    assert torch.equal(model.state[name], classifier.state[name])
    given, moved = classifier.state["encoder.conv1.weight"], model.state["encoder.conv1.weight"]
    torch.testing.assert_close(moved, torch.cat([given, given], dim=1) / 2)
    other = SegmenterOptions(**{**SMALL.__dict__, "encoder": "resnet34"})
    with pytest.raises(ModelError, match="use one"):
        fit_segmenter(cube, labels, CORINE, BANDS, PERIODS, other, encoder=classifier)


def test_too_few_patches_are_refused() -> None:
    with pytest.raises(LabelError, match="too few"):
        fit_classifier(np.zeros((1, 3, 40, 40), np.int16), np.ones((1, 5), bool), CODES, CORINE, BANDS)


def test_bf16_is_used_only_where_it_is_native() -> None:
    compute = nets.best_compute()
    assert compute.device == ("cuda" if torch.cuda.is_available() else "cpu")
    with compute.autocast():
        product = torch.nn.functional.conv2d(
            torch.ones(1, 1, 4, 4, device=compute.device), torch.ones(1, 1, 2, 2).to(compute.device)
        )
    assert product.dtype == (torch.bfloat16 if compute.bf16 else torch.float32)


@pytest.mark.parametrize("steps", range(1, 9))
def test_any_number_of_steps_can_be_taken(steps: int) -> None:
    """The one-cycle schedule of torch divides by zero for some."""
    net = torch.nn.Conv2d(2, 3, 1)
    before = net.weight.detach().clone()
    loop = Loop(net, torch.nn.CrossEntropyLoss(), Compute("cpu", False), 0.0)  # type: ignore[arg-type]
    batch = (torch.randn(1, 2, 4, 4), torch.zeros((1, 4, 4), dtype=torch.int64))
    feed = nullcontext(itertools.repeat((*batch, {})))
    loop.run([Leg(lambda position: feed, [Stage("test", steps, 1e-2, 0.0)])])
    assert not torch.equal(net.weight, before)
