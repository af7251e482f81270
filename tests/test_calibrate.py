"""Temperature scaling of trained nets: what it is fitted on, and that it alters probabilities alone."""

import dataclasses

import numpy as np
import pytest
import torch

from geoflow.errors import LabelError, ModelError
from geoflow.learning.calibrate import scaled
from geoflow.learning.samples import Aside
from geoflow.learning.train import ClassifierOptions, HeldOut, SegmenterOptions, fit_classifier, fit_segmenter
from geoflow.legends import legend
from geoflow.modelfile import load_model, save_model

BANDS = ("B02", "B03", "B04")
CODES = (211, 311, 312, 512)
CORINE = legend("corine")
TINY = SegmenterOptions(
    encoder="resnet18", decoder_channels=(16, 8, 8, 8, 8), context_channels=8, context_steps=4, decoder_steps=1,
    steps=1, context_batch=4, context_window_px=32, batch=2, window_px=32, map_window_px=64, map_halo_px=16,
    calibrate=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def patches():
    rng = np.random.default_rng(0)
    labels = rng.random((30, 4)) < 0.4
    labels[:, 0] |= ~labels.any(axis=1)
    cube = (
        500 + 900 * (labels.astype(float) @ rng.random((4, 3)))[:, :, None, None] + rng.normal(0, 60, (30, 3, 32, 32))
    )
    return cube.astype(np.int16), labels


@pytest.fixture(scope="module")
def country():
    rng = np.random.default_rng(1)
    at = np.kron(rng.integers(0, 4, (16, 16)), np.ones((16, 16), int))  # squares of half a block
    codes = np.array(CODES, np.uint16)[at]
    wrong = rng.random(codes.shape) < 0.2
    cube = 400 + 800 * at[None, None] + np.arange(3)[None, :, None, None] * 100 + rng.normal(0, 200, (1, 3, 256, 256))
    return cube.astype(np.int16), np.where(wrong, rng.choice(CODES, codes.shape), codes).astype(np.uint16)


HELD_OUT = HeldOut(32, 0.25, 5)


def segmenter(country, held_out=HELD_OUT, **changed):
    cube, labels = country
    options = dataclasses.replace(TINY, **changed)
    return fit_segmenter(cube, labels, CORINE, BANDS, ("summer",), options, held_out=held_out)


@pytest.fixture(scope="module")
def calibrated(country):
    return segmenter(country)


def logits_of(trained, x):
    with torch.inference_mode():
        return trained.build()(torch.from_numpy(x)).numpy()


def test_a_calibrated_classifier_differs_by_its_temperature_alone(patches, tmp_path):
    options = ClassifierOptions(encoder="resnet18", head_epochs=0, epochs=2, batch=8, validation=0.4)
    plain, calibrated = (
        fit_classifier(*patches, CODES, CORINE, BANDS, dataclasses.replace(options, calibrate=c)) for c in (False, True)
    )
    told = calibrated.card.training["calibration"]
    assert told["temperature"] != 1
    assert told["count"] == plain.card.training["validation"]["patches"] == 12
    assert calibrated.card.training["validation"] == plain.card.training["validation"]
    x = np.random.default_rng(2).normal(size=(4, 3, 32, 32)).astype(np.float32)
    before, after = logits_of(plain, x), logits_of(calibrated, x)
    np.testing.assert_allclose(after, before / told["temperature"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(before > 0, after > 0)
    changed = {name for name, value in plain.state.items() if not torch.equal(value, calibrated.state[name])}
    assert changed == {"head.weight", "head.bias"}
    save_model(tmp_path / "model", calibrated)
    assert load_model(tmp_path / "model").card.training["calibration"] == told


@pytest.mark.parametrize("architecture", ["context-unet", "unet"])
def test_a_calibrated_segmenter_keeps_the_best_class_of_every_pixel(country, calibrated, architecture):
    found = calibrated if architecture == TINY.architecture else segmenter(country, architecture=architecture)
    told = found.card.training["calibration"]
    undone = scaled(found, {"temperature": 1 / told["temperature"]})
    x = np.random.default_rng(3).normal(size=(2, 3, 64, 64)).astype(np.float32)
    before, after = logits_of(undone, x), logits_of(found, x)
    np.testing.assert_allclose(after, before / told["temperature"], rtol=1e-3, atol=1e-4)
    top = np.sort(before, axis=1)
    plain = top[:, -1] - top[:, -2] > 1e-4  # a tie may fall either way
    assert plain.mean() > 0.99
    np.testing.assert_array_equal(before.argmax(1)[plain], after.argmax(1)[plain])
    assert told["nll_after"] < told["nll_before"] + 0.01


def test_the_blocks_set_aside_are_neither_learned_from_nor_held_out_for_good(country, calibrated):
    cube, labels = country
    aside = Aside.beside(HELD_OUT, 0)
    own = aside.own(labels.shape)
    assert own.sum() == round(0.1 * 64)
    assert not (own & HELD_OUT.blocks(labels.shape)).any()
    first = calibrated
    assert first.card.training["held_out"] == HELD_OUT.record(labels.shape)
    assert first.card.training["calibration"]["blocks"] == np.argwhere(own).tolist()
    mask = np.kron(own, np.ones((32, 32), bool))
    np.testing.assert_array_equal(aside.mask(labels.shape), mask | HELD_OUT.mask(labels.shape))
    np.testing.assert_array_equal(aside.mask(labels.shape, slice(40, 90), slice(7, 33)),
                                  (mask | HELD_OUT.mask(labels.shape))[40:90, 7:33])  # fmt: skip
    # Other labels there are another temperature, and no other net; other labels held out for good are nothing at all.
    spoiled = np.where(mask, np.roll(labels, 1, axis=0)[::-1], labels)
    second = segmenter((cube, spoiled))
    third = segmenter((cube, np.where(HELD_OUT.mask(labels.shape), np.uint16(211), labels)))
    differ = {n for n, v in first.state.items() if not torch.equal(v, second.state[n])}
    assert differ == {"segmentation_head.weight", "segmentation_head.bias"}
    assert second.card.training["calibration"]["temperature"] != first.card.training["calibration"]["temperature"]
    assert all(torch.equal(v, third.state[n]) for n, v in first.state.items())


def test_without_room_for_blocks_set_aside_there_is_no_calibration(country):
    with pytest.raises(LabelError, match="smaller blocks"):
        segmenter(country, held_out=HeldOut(128, 0.5, 0))
    cube, labels = country
    only = np.where(Aside.beside(HELD_OUT, 0).mask(labels.shape), np.uint16(0), labels)
    with pytest.raises(LabelError, match="0 hold a label"):
        segmenter((cube, only))


def test_a_net_whose_logits_come_from_elsewhere_is_not_scaled(country, monkeypatch):
    found = segmenter(country, calibrate=False, architecture="unet")
    monkeypatch.setattr("geoflow.learning.calibrate._last_layer", lambda trained: "encoder.conv1")
    with pytest.raises(ModelError, match="not those of its last layer"):
        scaled(found, {"temperature": 2.0})
