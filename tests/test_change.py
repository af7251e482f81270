"""Change: what counts as one, and that chunks and tiles do not alter it."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from geoflow.errors import GridError
from geoflow.mapping.change import CHANGED, UNCHANGED, UNOBSERVED, change, detect_change, drop_small, joint_confidence


def a_map(seed: int, shape: tuple[int, int]) -> xr.Dataset:
    """Two classes in blobs, with some nodata."""
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random(shape) < 0.55, 311, 211).astype(np.uint16)
    confidence = rng.integers(30, 101, shape).astype(np.uint8)
    missing = rng.random(shape) < 0.03
    codes[missing], confidence[missing] = 0, 255
    coords = {"y": np.arange(shape[0]) * -10.0, "x": np.arange(shape[1]) * 10.0, "spatial_ref": 0}
    level1 = (codes // 100).astype(np.uint8)
    data = {"level1": (("y", "x"), level1), "level3": (("y", "x"), codes), "confidence": (("y", "x"), confidence)}
    return xr.Dataset(data, coords)


def test_a_pixel_changes_where_both_maps_are_sure_and_differ() -> None:
    before = np.array([[311, 311, 311, 0, 311]], np.uint16)
    after = np.array([[311, 211, 211, 211, 0]], np.uint16)
    sure = np.array([[90, 90, 50, 255, 90]], np.uint8)
    also = np.array([[90, 90, 90, 90, 255]], np.uint8)
    joint = joint_confidence(sure, also)
    state, came, went, confidence = change(before, after, joint, min_confidence=60, mmu_px=1)
    assert state.tolist() == [[UNCHANGED, CHANGED, UNCHANGED, UNOBSERVED, UNOBSERVED]]
    assert came.tolist() == [[0, 311, 0, 0, 0]]
    assert went.tolist() == [[0, 211, 0, 0, 0]]
    assert confidence.tolist() == [[81, 81, 45, 255, 255]]
    assert (state.dtype, came.dtype, confidence.dtype) == (np.uint8, np.uint16, np.uint8)


def test_a_confidence_of_another_source_is_taken_as_it_is() -> None:
    maps = [a_map(seed, (9, 11)) for seed in (1, 2)]
    given = xr.DataArray(np.full((9, 11), 80, np.uint8), dims=("y", "x"))
    given[0, 0] = 255
    found = detect_change(*maps, min_confidence=70, confidence=given)
    both = (maps[0].level3 != 0).values & (maps[1].level3 != 0).values
    both[0, 0] = False
    differ = (maps[0].level3 != maps[1].level3).values
    assert ((found.change.values == CHANGED) == (both & differ)).all()
    assert ((found.change.values == UNOBSERVED) == ~both).all()
    assert (detect_change(*maps, min_confidence=81, confidence=given).change.values != CHANGED).all()


def test_joint_confidence_is_the_product() -> None:
    a, b = np.array([100, 0, 71, 255, 99], np.uint8), np.array([100, 90, 71, 3, 255], np.uint8)
    assert joint_confidence(a, b).tolist() == [100, 0, 50, 255, 255]


def test_small_patches_are_dropped_and_diagonals_join() -> None:
    changed = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1]], bool)
    kept = drop_small(changed, 3)
    assert kept.sum() == 3
    assert kept[0, 0]
    assert kept[1, 1]
    assert kept[2, 2]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    chunk=st.integers(3, 40),
    mmu=st.integers(0, 30),
)
def test_chunks_do_not_alter_the_result(seed: int, shape: tuple[int, int], chunk: int, mmu: int) -> None:
    before, after = a_map(seed, shape), a_map(seed + 1, shape)
    options = {"min_confidence": 40, "mmu_px": mmu}
    whole = detect_change(before, after, **options)
    lazy = detect_change(before.chunk(y=chunk, x=chunk), after.chunk(y=chunk, x=chunk + 2), **options)
    assert lazy["change"].chunks is not None
    xr.testing.assert_identical(lazy.compute(), whole)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), mmu=st.integers(2, 12), y=st.integers(0, 40), x=st.integers(0, 40))
def test_a_tile_read_with_its_margin_equals_the_whole(seed: int, mmu: int, y: int, x: int) -> None:
    before, after = a_map(seed, (60, 60)), a_map(seed + 1, (60, 60))
    whole = detect_change(before, after, mmu_px=mmu).isel(y=slice(y, y + 20), x=slice(x, x + 20))
    top, left = max(0, y - mmu), max(0, x - mmu)
    part = {"y": slice(top, y + 20 + mmu), "x": slice(left, x + 20 + mmu)}
    padded = detect_change(before.isel(part), after.isel(part), mmu_px=mmu)
    core = {"y": slice(y - top, y - top + 20), "x": slice(x - left, x - left + 20)}
    cropped = padded.isel(core)
    xr.testing.assert_identical(cropped, whole)


def test_the_level_is_the_deepest_or_the_one_asked_for() -> None:
    before, after = a_map(0, (20, 20)), a_map(1, (20, 20))
    deepest = detect_change(before, after)
    assert deepest["from_code"].dtype == np.uint16
    assert deepest["from_code"].max() == 311
    coarse = detect_change(before, after, level=1)
    assert coarse["from_code"].dtype == np.uint8
    assert coarse["from_code"].max() == 3
    with pytest.raises(GridError, match="level 2"):
        detect_change(before, after, level=2)


def test_maps_on_other_pixels_are_refused() -> None:
    before = a_map(0, (20, 20))
    with pytest.raises(GridError, match="size"):
        detect_change(before, a_map(1, (20, 21)))
    with pytest.raises(GridError, match="different pixels"):
        detect_change(before, a_map(1, (20, 20)).assign_coords(x=np.arange(20) * 10.0 + 5))


def test_coordinates_and_crs_are_kept() -> None:
    before = a_map(0, (8, 9))
    assert set(detect_change(before, before).coords) == {"y", "x", "spatial_ref"}
