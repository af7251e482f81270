"""Prediction: a map that does not depend on how it was computed, and levels that nest."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dask.core import flatten
from hypothesis import given, settings
from hypothesis import strategies as st

from geoflow import nets
from geoflow.errors import GridError, ModelError
from geoflow.inputs import NODATA, InputSpec
from geoflow.legends import legend
from geoflow.mapping import engines
from geoflow.mapping.decode import Ladder, decide, keep_probabilities, quantise, undecided
from geoflow.mapping.predict import MapOptions, predict, predict_region
from geoflow.mapping.said import Said
from geoflow.mapping.scratch import Scratch
from geoflow.mapping.windows import FULL, UNIT, Axis, Lattice
from geoflow.modelfile import LoadedModel, ModelCard, TrainedModel, load_model, save_model

CODES = (111, 112, 211, 231, 311, 312, 512)
BANDS, PERIODS = ("B02", "B08"), ("spring", "summer")
SHAPE = (150, 171)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """An untrained net, its weights spread so that the map is varied; window 64, halo 16, core 32."""
    options = {"decoder_channels": [16, 16, 8, 8, 8]}
    with nets.reproducible(3):
        net = nets.build_segmenter("unet", "resnet18", 4, len(CODES), **options)
    net.segmentation_head[0].weight.data *= 8
    inputs = InputSpec(BANDS, PERIODS, (1000.0,) * 4, (500.0,) * 4)
    card = ModelCard("segmenter", "unet", "resnet18", options, inputs, CODES, legend("corine"), 64, 16)
    folder = tmp_path_factory.mktemp("predict") / "model"
    save_model(folder, TrainedModel(card, net.state_dict()))
    return load_model(folder)


@pytest.fixture(scope="module")
def cube() -> xr.DataArray:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3000, (2, 2, *SHAPE)).astype(np.int16)
    values[:, :, :70, :80] = NODATA
    values[1, :, 100:110] = NODATA
    coords = {
        "period": list(PERIODS),
        "band": list(BANDS),
        "y": 5e6 - 10.0 * np.arange(SHAPE[0]),
        "x": 4e5 + 10.0 * np.arange(SHAPE[1]),
        "spatial_ref": xr.Variable((), 0, {"crs_wkt": "EPSG:32635"}),
    }
    return xr.DataArray(values, coords, ("period", "band", "y", "x")).chunk(y=64, x=64)


@pytest.fixture(scope="module")
def whole(cube: xr.DataArray, model: LoadedModel) -> xr.Dataset:
    return predict(cube, model).compute()


def test_the_map_follows_the_contract(cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset) -> None:
    lazy = predict(cube, model)
    assert {name: (v.dims, str(v.dtype)) for name, v in lazy.items()} == {
        "level1": (("y", "x"), "uint8"),
        "level2": (("y", "x"), "uint8"),
        "level3": (("y", "x"), "uint16"),
        "confidence": (("y", "x"), "uint8"),
        "margin": (("y", "x"), "int8"),
        "second": (("y", "x"), "uint16"),
    }
    assert all(v.chunks is not None for v in lazy.values())
    assert set(lazy.coords) == {"y", "x", "spatial_ref"}
    assert lazy["spatial_ref"].attrs == cube["spatial_ref"].attrs
    np.testing.assert_array_equal(lazy["x"], cube["x"])
    assert set(np.unique(whole["level3"])) <= {0, *CODES}
    assert len(np.unique(whole["level3"])) >= 4, "the net's map is too plain to tell anything"


def test_nodata_in_nodata_out(cube: xr.DataArray, whole: xr.Dataset) -> None:
    empty = (cube == NODATA).all(("period", "band")).values
    assert empty.any()
    for name in ("level1", "level2", "level3"):
        np.testing.assert_array_equal(whole[name].values == 0, empty)
    np.testing.assert_array_equal(whole["confidence"].values == 255, empty)
    np.testing.assert_array_equal(whole["margin"].values == -128, empty)
    np.testing.assert_array_equal(whole["second"].values == 0, empty)
    assert whole["confidence"].values[~empty].max() <= 100


@pytest.mark.parametrize("chunks", [(32, 32), (50, 171), (150, 171), (96, 33)])
def test_chunks_do_not_alter_the_map(
    cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset, chunks: tuple[int, int]
) -> None:
    xr.testing.assert_identical(predict(cube.chunk(y=chunks[0], x=chunks[1]), model).compute(), whole)


def test_a_cube_in_memory_gives_the_same_map(cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset) -> None:
    xr.testing.assert_identical(predict(cube.compute(), model.path).compute(), whole)


@pytest.mark.parametrize("threads", [1, 4])
def test_workers_do_not_alter_the_map(cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset, threads: int) -> None:
    xr.testing.assert_identical(predict(cube, model).compute(scheduler="threads", num_workers=threads), whole)


@settings(max_examples=8)
@given(data=st.data())
def test_a_part_equals_the_whole(
    cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset, data: st.DataObject
) -> None:
    y, x = (
        slice(start, data.draw(st.integers(start + 1, size)))
        for size in SHAPE
        for start in [data.draw(st.integers(0, size - 1))]
    )
    part = predict_region(cube, model, y, x).compute()
    xr.testing.assert_identical(part, whole.isel(y=y, x=x))


def test_a_part_reads_only_what_its_windows_see(cube: xr.DataArray, model: LoadedModel) -> None:
    data = predict_region(cube.chunk(y=16, x=16), model, slice(64, 96), slice(64, 96))["level3"].data
    culled = data.dask.cull(set(flatten(data.__dask_keys__())))
    source = cube.chunk(y=16, x=16).data.name
    read = [key for key in culled if str(key[0]).startswith(source)]
    # Windows of 64 px with cores of 32: rows 1 to 3 see the pixels 16 to 144, which are 8 chunks.
    assert len(read) == 8 * 8


def test_blocks_do_not_alter_the_map(
    cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import geoflow.mapping.predict as module

    monkeypatch.setattr(module, "BLOCK_PX", 64)
    assert predict(cube, model)["level3"].chunks == ((64, 64, 22), (64, 64, 43))
    xr.testing.assert_identical(predict(cube, model).compute(), whole)


def test_scratch_spares_windows_and_alters_nothing(
    cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    engine = engines.load_engine(model, engines.candidates("auto")[0])
    run = type(engine).logits
    monkeypatch.setattr(type(engine), "logits", lambda self, x: (ran.append(1), run(self, x))[1])
    parts = [(slice(0, 70), slice(0, 171)), (slice(70, 150), slice(0, 90)), (slice(70, 150), slice(90, 171))]

    def mapped(options: MapOptions) -> int:
        ran.clear()
        for y, x in parts:
            found = predict_region(cube, model, y, x, options).compute()
            xr.testing.assert_identical(found, whole.isel(y=y, x=x))
        return len(ran)

    kept = MapOptions(scratch=str(tmp_path / "scratch"))
    windows = sum(
        (cube.values[:, :, max(0, 32 * r - 16) : 32 * r + 48, max(0, 32 * c - 16) : 32 * c + 48] != NODATA).any()
        for r in range(5)
        for c in range(6)
    )
    assert mapped(MapOptions()) > windows
    assert mapped(kept) == windows, "a window over a border ran twice"
    for number, file in enumerate(sorted((tmp_path / "scratch").iterdir())):
        file.write_bytes(file.read_bytes()[: 40 * (number % 2)])
    mapped(kept)


def test_scratch_is_dropped_when_all_have_read_it(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    said = bytes(range(24))
    scratch.save((0, 1), said)
    assert scratch.load((0, 1)) == said
    assert scratch.load((1, 1)) is None
    scratch.finish("a", {(0, 1): ("a", "b")})
    assert scratch.load((0, 1)) == said
    scratch.finish("b", {(0, 1): ("a", "b")})
    assert scratch.load((0, 1)) is None


@settings(max_examples=30)
@given(core=st.integers(1, 20), halo=st.integers(0, 16), probabilities=st.booleans(), seed=st.integers(0, 99))
def test_what_a_window_said_comes_back_from_its_bytes(core: int, halo: int, probabilities: bool, seed: int) -> None:
    codes, rng = CODES[:3], np.random.default_rng(seed)
    lattice, ladder, edge = Lattice.over((100, 100), core, halo), Ladder.of(legend("corine"), codes), core + 2 * halo
    logits, observed = rng.normal(size=(edge, edge, 3)).astype(np.float32), rng.random((edge, edge)) < 0.8
    said = Said.empty(lattice, 3, probabilities)
    assert said.listen(logits, observed, lattice, ladder) == 0
    packed = said.pack()
    again = Said.unpack(packed, lattice, 3, probabilities)
    assert again is not None
    for name in ("inner", "shares", "top", "bottom", "left", "right"):
        np.testing.assert_array_equal(getattr(again, name), getattr(said, name))
    assert Said.unpack(packed[:-2], lattice, 3, probabilities) is None
    assert Said.unpack(packed, lattice, 4, probabilities) is None or lattice.y.blend == 0


@settings(max_examples=60)
@given(size=st.integers(1, 400), core=st.integers(1, 96), halo=st.integers(0, 64), data=st.data())
def test_windows_cover_every_pixel_with_the_full_weight(size: int, core: int, halo: int, data: st.DataObject) -> None:
    axis = Axis(size, core, halo)
    total = np.zeros(size, np.int64)
    for window in range(axis.count):
        said, start = axis.said(window), window * core - axis.blend
        total[said] += axis.weights(window)[said.start - start : said.stop - start]
    assert (total == FULL).all()
    start = data.draw(st.integers(0, size - 1))
    part = slice(start, data.draw(st.integers(start + 1, size)))
    meeting = [k for k in range(axis.count) if axis.said(k).start < part.stop and axis.said(k).stop > part.start]
    assert list(axis.windows(part)) == meeting


def test_the_map_is_that_of_monai(cube: xr.DataArray, model: LoadedModel) -> None:
    """The same windows, weights and net through MONAI's sliding window: the same probabilities."""
    import torch
    from monai.inferers import sliding_window_inference

    ours = predict(cube, model, MapOptions(engine="torch-fp32", probabilities=True)).compute()
    core, halo = model.card.core_px, model.card.halo_px
    rows, cols = (-(-n // core) * core for n in SHAPE)
    pad = ((0, 0), (0, 0), (halo, halo + rows - SHAPE[0]), (halo, halo + cols - SHAPE[1]))
    x, _ = model.card.inputs.encode(np.pad(cube.values, pad, constant_values=NODATA))
    inner = Axis(10 * core, core, halo).weights(4).astype(np.float32) / FULL
    net = model.trained.build()
    with torch.inference_mode():
        theirs = sliding_window_inference(
            torch.from_numpy(x)[None],
            roi_size=(model.card.window_px,) * 2,
            sw_batch_size=1,
            predictor=lambda window: net(window).softmax(1),
            overlap=2 * halo / model.card.window_px,
            roi_weight_map=torch.from_numpy(np.maximum(np.outer(inner, inner), 1e-9)),
        )[0, :, halo : halo + SHAPE[0], halo : halo + SHAPE[1]].numpy()
    observed = ours["level3"].values != 0
    best = np.array(CODES)[theirs.argmax(0)]
    stored = ours["probabilities"].values / 250
    assert np.abs(stored - theirs)[:, observed].max() <= 0.5 / 250 + 1e-4
    agree = best[observed] == ours["probabilities"]["class"].values[stored.argmax(0)][observed]
    assert agree.mean() > 0.99


def test_the_graph_carries_no_weights(cube: xr.DataArray, model: LoadedModel) -> None:
    import cloudpickle

    lazy = predict(cube.chunk(), model)["level3"].data
    weights = (model.path / "model.safetensors").stat().st_size
    assert len(cloudpickle.dumps(lazy.dask)) < min(weights, cube.nbytes * 3)


def test_bands_and_periods_are_picked_by_name(cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset) -> None:
    extra = cube.isel(band=[0]).assign_coords(band=["B12"])
    shuffled = xr.concat([extra, cube.isel(band=[1, 0])], "band").isel(period=[1, 0])
    xr.testing.assert_identical(predict(shuffled, model).compute(), whole)


def test_what_the_model_lacks_is_named(cube: xr.DataArray, model: LoadedModel) -> None:
    with pytest.raises(ModelError, match="B08"):
        predict(cube.isel(band=[0]), model)
    with pytest.raises(ModelError, match="summer"):
        predict(cube.assign_coords(period=["spring", "autumn"]), model)
    with pytest.raises(ModelError, match="float32"):
        predict(cube.astype("float32"), model)
    with pytest.raises(GridError, match="150 pixels"):
        predict_region(cube, model, slice(0, 151), slice(0, 10))


def test_a_classifier_makes_no_map(cube: xr.DataArray, tmp_path: Path) -> None:
    net = nets.build_classifier("resnet18", 4, 2)
    inputs = InputSpec(BANDS, PERIODS, (0.0,) * 4, (1.0,) * 4)
    card = ModelCard("classifier", "classifier", "resnet18", {}, inputs, (111, 211), legend("corine"), 120, 0)
    save_model(tmp_path / "model", TrainedModel(card, net.state_dict()))
    with pytest.raises(ModelError, match="needs a segmenter"):
        predict(cube, tmp_path / "model")


def test_a_legend_of_one_level_gives_one_level(cube: xr.DataArray, tmp_path: Path) -> None:
    flat = legend("bigearthnet-19")
    codes = flat.codes(flat.levels[-1])[:3]
    net = nets.build_segmenter("unet", "resnet18", 4, 3)
    inputs = InputSpec(BANDS, PERIODS, (1000.0,) * 4, (500.0,) * 4)
    card = ModelCard("segmenter", "unet", "resnet18", {}, inputs, codes, flat, 96, 0)
    save_model(tmp_path / "model", TrainedModel(card, net.state_dict()))
    found = predict(cube, tmp_path / "model").compute()
    assert set(found) == {*(f"level{n}" for n in flat.levels), "confidence", "margin", "second"}
    assert set(np.unique(found[f"level{flat.levels[-1]}"])) <= {0, *codes}


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_levels_nest_and_are_decided_from_the_top(seed: int) -> None:
    corine = legend("corine")
    rng = np.random.default_rng(seed)
    codes = tuple(int(c) for c in rng.permutation(CODES))  # logits need not follow the tree
    ladder = Ladder.of(corine, codes)
    p = rng.dirichlet(np.full(len(codes), 0.5), (5, 6)).astype(np.float32)
    observed = rng.random((5, 6)) < 0.9
    q, (out, shares) = np.empty((5, 6, len(codes)), np.uint32), undecided((5, 6), len(codes), probabilities=True)
    work = np.empty((len(codes), 6), np.float32), np.empty(6 * len(codes), np.int32)
    for y in range(5):
        row = np.empty((len(codes), 6), np.uint32)
        assert quantise(np.log(p[y] + 1e-9), ladder.order, *work, row) == 0
        q[y] = row.T
        decide(row * np.uint32(FULL * FULL), ladder.stop, observed[y], out[y])
        keep_probabilities(row * np.uint32(FULL * FULL), observed[y], shares[y])
    assert np.abs(q[..., np.argsort(ladder.order)] / UNIT - p).max() <= 0.5 / UNIT + 1e-6
    planes = [ladder.table(level)[out["best"]] for level in range(3)]
    exact = {code: q[..., at].astype(int) for at, code in enumerate(ladder.codes[-1].tolist())}
    for y, x in np.ndindex(5, 6):
        if not observed[y, x]:
            assert [int(plane[y, x]) for plane in planes] == [0, 0, 0]
            assert (out["confidence"][y, x], out["margin"][y, x]) == (255, -128)
            assert (shares[y, :, x] == 255).all()
            continue
        within = list(exact)
        for level, plane in zip((1, 2, 3), planes, strict=True):
            sums: dict[int, int] = {}
            for code in within:
                group = corine.ancestor(code, level)
                sums[group] = sums.get(group, 0) + exact[code][y, x]
            assert sums[int(plane[y, x])] == max(sums.values())
            within = [c for c in within if corine.ancestor(c, level) == plane[y, x]]
        chosen = int(planes[2][y, x])
        others = {code: int(v[y, x]) for code, v in exact.items() if code != chosen}
        second = int(ladder.table(2)[out["second"][y, x]])
        assert others[second] == max(others.values())
        assert abs(out["confidence"][y, x] - 100 * exact[chosen][y, x] / UNIT) <= 0.5
        assert abs(out["margin"][y, x] - 100 * (exact[chosen][y, x] - others[second]) / UNIT) <= 0.5
        np.testing.assert_allclose(shares[y, :, x], [250 * v[y, x] / UNIT for v in exact.values()], atol=0.5)


def test_what_is_no_probability_is_refused(cube: xr.DataArray, model: LoadedModel, tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in model.trained.state.items()}
    state["segmentation_head.0.weight"][0] = float("nan")
    save_model(tmp_path / "model", TrainedModel(model.card, state))
    with pytest.raises(ModelError, match="no finite logits"):
        predict(cube, tmp_path / "model").compute()


def test_an_engine_must_say_what_float32_says(cube: xr.DataArray, model: LoadedModel, tmp_path: Path) -> None:
    windows = [cube.values[:, :, 80:144, 80:144], cube.values[:, :, 64:128, 107:171]]
    chosen = engines.choose_engine(model, windows)
    assert chosen.agreement[chosen.engine] >= engines.MIN_AGREEMENT
    assert chosen.pixels == sum(int((w != NODATA).any(axis=(0, 1)).sum()) for w in windows)
    state = {k: v * (1e-4 if k == "segmentation_head.0.weight" else 1) for k, v in model.trained.state.items()}
    save_model(tmp_path / "model", TrainedModel(model.card, state))
    with pytest.raises(ModelError, match=r"engine torch-bf16: \d+\.\d+% .* less than 99\.9"):
        engines.choose_engine(load_model(tmp_path / "model"), windows, "torch-bf16")
    with pytest.raises(ModelError, match="accepted are auto"):
        MapOptions(engine="tensorrt")


def test_openvino_makes_the_same_map(cube: xr.DataArray, model: LoadedModel) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is an extra, openvino")
    found = predict(cube, model, MapOptions(engine="openvino-fp32", probabilities=True)).compute()
    exact = predict(cube, model, MapOptions(engine="torch-fp32", probabilities=True)).compute()
    assert (found["level3"] == exact["level3"]).mean() > 0.999
    difference = found["probabilities"].astype(int) - exact["probabilities"].astype(int)
    assert abs(difference).max() <= 1
    assert engines.choose_engine(model, [cube.values[:, :, 80:144, 80:144]], "openvino-fp32").engine == "openvino-fp32"


def test_the_lattice_sees_no_further_than_the_grid() -> None:
    lattice = Lattice.over((150, 171), 32, 16)
    assert lattice.margin(slice(0, 150), slice(0, 171)) == (slice(0, 150), slice(0, 171))
    assert lattice.margin(slice(64, 96), slice(160, 171)) == (slice(16, 144), slice(112, 171))
