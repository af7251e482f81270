"""Augmentation: as much as was asked for, the same on every run, and nothing that was not observed becomes imagery."""

import numpy as np
import pytest
from numpy.typing import NDArray

from geoflow.errors import ModelError
from geoflow.inputs import NODATA, InputSpec
from geoflow.learning.augment import Alterations, alter
from geoflow.learning.options import ClassifierOptions, SegmenterOptions
from geoflow.learning.patchstream import PatchSource, PatchStream
from geoflow.learning.sampler import Sampler, SamplerOptions
from geoflow.learning.samples import survey

PERIODS, BANDS = 3, 4


def windows(n: int = 400) -> NDArray[np.float32]:
    x = np.random.default_rng(0).normal(2, 1, (n, PERIODS * BANDS, 3, 3)).astype(np.float32)
    x[:, 5, 1, 1] = 0  # not observed
    return x


def altered(how: Alterations, seed: int = 1) -> NDArray[np.float32]:
    x = windows()
    alter(np.random.default_rng(seed), x, PERIODS, how)
    return x.reshape(len(x), PERIODS, BANDS, 3, 3)


def test_nothing_is_drawn_and_nothing_changes_by_default() -> None:
    rng, x = np.random.default_rng(1), windows(3)
    before = rng.bit_generator.state
    alter(rng, x, PERIODS, Alterations())
    assert rng.bit_generator.state == before
    np.testing.assert_array_equal(x, windows(3))


def test_a_scene_becomes_lighter_or_flatter_as_a_whole() -> None:
    plain = windows().reshape(400, PERIODS, BANDS, 3, 3)
    offset = altered(Alterations(brightness=0.3)) - plain
    seen = plain != 0
    assert (offset[~seen] == 0).all(), "what was not observed stays so"
    per_scene = np.where(seen, offset, np.nan)
    spread = np.nanmax(per_scene, axis=(2, 3, 4)) - np.nanmin(per_scene, axis=(2, 3, 4))
    assert spread.max() < 1e-5, "one offset for all bands and pixels of a scene"
    assert np.nanmean(per_scene, axis=(2, 3, 4)).std() == pytest.approx(0.3, rel=0.1)
    gain = altered(Alterations(contrast=0.2))[seen] / plain[seen]
    assert gain.std() == pytest.approx(0.2, rel=0.1)
    assert gain.mean() == pytest.approx(1, abs=0.03)


def test_bands_and_periods_are_lost_whole_and_never_all() -> None:
    for how, axis in ((Alterations(band_dropout=0.3), 1), (Alterations(period_dropout=0.3), 0)):
        gone = (altered(how) == 0).all(axis=(3, 4))  # (window, period, band)
        lost = gone.all(axis=2 - axis)
        assert (gone == np.expand_dims(lost, 2 - axis)).all()
        assert lost.mean() == pytest.approx(0.3, abs=0.05)
    for how in (Alterations(band_dropout=0.99), Alterations(period_dropout=0.99)):
        assert (altered(how) != 0).any(axis=(1, 2, 3, 4)).all()
        assert (altered(how) == altered(how)).all()
        assert (altered(how) != altered(how, 2)).any()


def test_options_out_of_range_are_refused() -> None:
    for wrong in ({"brightness": -0.1}, {"contrast": -1.0}, {"band_dropout": 1.0}):
        with pytest.raises(ModelError, match="must be at least 0"):
            ClassifierOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="period_dropout"):
        SegmenterOptions(period_dropout=-0.5)


def test_windows_and_patches_are_altered_and_the_same_on_every_run() -> None:
    cube = np.random.default_rng(0).integers(1, 3000, (2, 3, 64, 64)).astype(np.int16)
    labels = np.full((64, 64), 311, np.uint16)
    inputs = InputSpec(("B02", "B03", "B04"), ("a", "b"), (0.5,) * 6, (1000.0,) * 6)
    found = survey(labels, None, 64, (311,))

    def drawn(how: Alterations) -> NDArray[np.float32]:
        options = SamplerOptions(window_px=32, batch=8, jitter=0, alterations=how)
        return np.concatenate([b.x for b in Sampler(cube, labels, found, None, options).batches(inputs, 4)])

    half = Alterations(period_dropout=0.5)
    lost = (drawn(half).reshape(32, 2, 3, 32, 32) == 0).all(axis=(2, 3, 4))
    assert 0 < lost.sum() < 32
    np.testing.assert_array_equal(drawn(half), drawn(half))

    patches = np.concatenate([cube[0][None, :, :32, :32]] * 8)
    patches[0, 0, 0, 0] = NODATA
    source = PatchSource.of(patches, np.ones((8, 1), bool), 0.2, 0)
    one = InputSpec(inputs.bands, ("patch",), (0.5,) * 3, (1000.0,) * 3)

    def epoch(number: int, how: Alterations, skip: int = 0) -> list[NDArray[np.float32]]:
        stream = PatchStream(source, source.labels, one, 2, 0, 64, alterations=how)
        return [x for x, _ in stream.epoch(source.train, number, skip)]

    dropped = Alterations(band_dropout=0.5)
    assert any((x == 0).all(axis=(2, 3)).any() for x in epoch(0, dropped))
    assert not any((x == 0).all(axis=(2, 3)).any() for x in epoch(0, Alterations()))
    for whole, resumed in zip(epoch(1, dropped)[1:], epoch(1, dropped, 1), strict=True):
        np.testing.assert_array_equal(whole, resumed)
