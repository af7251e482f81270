"""Generalisation: the rules, against a slow reading of them, and that tiles do not alter the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr
from scipy import ndimage

from geoflow.errors import GridError, LegendError
from geoflow.legends import legend
from geoflow.mapping.generalise import (
    decide,
    generalise,
    generalise_levels,
    majority_filter,
    merge_small,
    mmu_pixels,
    recode,
    similarity,
    smooth,
    survey,
)

CORINE = legend("corine")
RANKS = similarity(CORINE)
FOUR, EIGHT = ndimage.generate_binary_structure(2, 1), np.ones((3, 3), bool)

SEEDS = st.integers(0, 10**6)
SHAPES = st.tuples(st.integers(1, 16), st.integers(1, 16))
CONNECTIVITY = st.sampled_from([4, 8])


def some_codes(seed: int, shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Five classes in specks and blobs, with nodata, and sometimes large homogeneous parts."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.array([0, 111, 112, 211, 311, 324], np.uint16), shape, p=[0.15, 0.1, 0.15, 0.2, 0.25, 0.15])
    return majority_filter(codes, 3) if seed % 3 == 0 else codes


def a_map(codes: NDArray[Any], crs: str = "EPSG:3035", size: float = 10.0) -> xr.DataArray:
    height, width = codes.shape
    box = (4e6, 3e6 - height * size, 4e6 + width * size, 3e6)
    geobox = GeoBox.from_bbox(box, crs, resolution=size, tight=True)
    return wrap_xr(codes, geobox).rename("level3").assign_attrs(long_name="class")


def patches(codes: NDArray[Any], connectivity: int) -> list[NDArray[np.bool_]]:
    out = []
    for code in np.unique(codes[codes != 0]):
        labels, count = ndimage.label(codes == code, FOUR if connectivity == 4 else EIGHT)
        out += [labels == n for n in range(1, count + 1)]
    return out


def slow_merge(codes: NDArray[Any], mmu_px: int, connectivity: int) -> NDArray[Any]:
    """The rules of `merge_small` word for word: label everything anew after each merge."""
    codes = codes.copy()
    while True:
        found = sorted(patches(codes, connectivity), key=lambda p: (p.sum(), np.flatnonzero(p)[0]))
        for patch in found:
            own = int(codes[patch][0])
            around = ndimage.binary_dilation(patch, FOUR if connectivity == 4 else EIGHT) & ~patch & (codes != 0)
            if patch.sum() >= mmu_px or not around.any():
                continue
            borders = {int(code): 0 for code in np.unique(codes[around])}
            for y, x in np.argwhere(patch):
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    inside = 0 <= v < codes.shape[0] and 0 <= u < codes.shape[1]
                    if inside and codes[v, u] != 0 and not patch[v, u]:
                        borders[int(codes[v, u])] += 1
            codes[patch] = min(borders, key=lambda c: (RANKS[own, c], -borders[c], c))
            break
        else:
            return codes


@settings(max_examples=60)
@given(seed=SEEDS, shape=SHAPES, mmu=st.integers(0, 30), connectivity=CONNECTIVITY)
def test_merging_follows_the_rules(seed: int, shape: tuple[int, int], mmu: int, connectivity: int) -> None:
    codes = some_codes(seed, shape)
    merged = merge_small(codes, mmu, RANKS, connectivity)
    np.testing.assert_array_equal(merged, slow_merge(codes, mmu, connectivity))
    assert merged.dtype == codes.dtype


@settings(max_examples=60)
@given(seed=SEEDS, shape=SHAPES, mmu=st.integers(1, 40), connectivity=CONNECTIVITY)
def test_what_a_generalised_map_is(seed: int, shape: tuple[int, int], mmu: int, connectivity: int) -> None:
    codes = some_codes(seed, shape)
    merged = merge_small(codes, mmu, RANKS, connectivity)
    np.testing.assert_array_equal(merged == 0, codes == 0)
    assert set(np.unique(merged)) <= set(np.unique(codes))
    np.testing.assert_array_equal(merge_small(merged, mmu, RANKS, connectivity), merged)
    for patch in patches(merged, connectivity):
        if patch.sum() < mmu:
            around = ndimage.binary_dilation(patch, FOUR if connectivity == 4 else EIGHT) & ~patch
            assert not merged[around].any()
    large = [p for p in patches(codes, connectivity) if p.sum() >= mmu]
    assert all((merged[p] == codes[p]).all() for p in large)


@settings(max_examples=50)
@given(
    seed=SEEDS,
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    chunk=st.tuples(st.integers(3, 17), st.integers(3, 17)),
    mmu=st.integers(1, 40),
    connectivity=CONNECTIVITY,
)
def test_tiles_do_not_alter_the_result(
    seed: int, shape: tuple[int, int], chunk: tuple[int, int], mmu: int, connectivity: int
) -> None:
    codes = some_codes(seed, shape)
    whole = merge_small(codes, mmu, RANKS, connectivity)
    ys, xs = (range(0, size, step) for size, step in zip(shape, chunk, strict=True))
    tiles = [[codes[y : y + chunk[0], x : x + chunk[1]] for x in xs] for y in ys]
    surveys = [
        [survey(tile, (y, x), mmu, connectivity) for tile, x in zip(row, xs, strict=True)]
        for row, y in zip(tiles, ys, strict=True)
    ]
    tables = decide(surveys, mmu, RANKS, connectivity)
    done = [
        [recode(t, table, connectivity) for t, table in zip(*rows, strict=True)]
        for rows in zip(tiles, tables, strict=True)
    ]
    np.testing.assert_array_equal(np.block(done), whole)


@settings(max_examples=12)
@given(seed=SEEDS, chunk=st.tuples(st.integers(1, 20), st.integers(3, 20)), connectivity=CONNECTIVITY)
def test_chunks_do_not_alter_the_result(seed: int, chunk: tuple[int, int], connectivity: int) -> None:
    codes = a_map(some_codes(seed, (17, 19)))
    whole = generalise(codes, CORINE, 0.08, connectivity)
    np.testing.assert_array_equal(whole.values, merge_small(codes.values, 8, RANKS, connectivity))
    lazy = generalise(codes.chunk(y=chunk[0], x=chunk[1]), CORINE, 0.08, connectivity)
    assert lazy.chunks is not None
    xr.testing.assert_identical(lazy.compute(), whole)
    assert whole.attrs == codes.attrs
    assert whole.odc.geobox == codes.odc.geobox


def test_a_chain_of_merges_crosses_many_chunks() -> None:
    """Each pixel of the row joins the next one: the last decides the first."""
    codes = np.array([[111, 112, 111, 112, 111, 112, 211, 211, 211]], np.uint16)
    merged = merge_small(codes, 3, RANKS)
    np.testing.assert_array_equal(merged, slow_merge(codes, 3, 4))
    lazy = generalise(a_map(codes).chunk(x=1), CORINE, 0.03)
    np.testing.assert_array_equal(lazy.values, merged)


def test_the_nearest_class_then_the_longest_border_then_the_lowest_code_wins() -> None:
    codes = np.full((5, 5), 211, np.uint16)
    codes[:, 3:] = 311
    codes[2, 2] = 324  # level 1 shared with 311, longer border with 211
    assert merge_small(codes, 2, RANKS)[2, 2] == 311
    assert merge_small(codes, 2)[2, 2] == 211
    codes[1, 2] = 112
    codes[3, 2] = 112
    assert merge_small(codes, 1, RANKS)[2, 2] == 324
    tie = np.array([[311, 311, 324, 211, 211]], np.uint16)
    assert merge_small(tie, 2)[0, 2] == 211
    assert merge_small(tie, 2, {(324, 311): 0})[0, 2] == 311


def test_corners_join_with_connectivity_8_only() -> None:
    codes = np.array([[311, 211], [211, 311]], np.uint16)
    assert merge_small(codes, 2, connectivity=8).tolist() == codes.tolist()
    assert len(np.unique(merge_small(codes, 2, connectivity=4))) == 1
    alone = np.array([[311, 0], [0, 211]], np.uint16)
    assert merge_small(alone, 2, connectivity=4).tolist() == alone.tolist()
    assert merge_small(alone, 2, connectivity=8).tolist() == [[211, 0], [0, 211]]


def test_similarity_counts_the_levels_up_to_a_common_class() -> None:
    assert (RANKS[311, 312], RANKS[311, 324], RANKS[311, 211], RANKS[31, 32], RANKS[1, 2]) == (1, 2, 3, 1, 1)


def test_the_majority_filter() -> None:
    codes = np.array([[1, 1, 2], [1, 2, 2], [0, 1, 3]], np.uint8)
    filtered = majority_filter(codes, 3)
    assert filtered.dtype == np.uint8
    assert filtered.tolist() == [[1, 1, 2], [1, 1, 2], [0, 1, 2]]
    assert majority_filter(codes, 1).tolist() == codes.tolist()
    tie = np.array([[2, 3, 1]], np.uint8)
    assert majority_filter(tie, 3).tolist() == [[2, 3, 1]]
    assert majority_filter(np.array([[2, 2, 3, 1, 1]], np.uint8), 5)[0, 2] == 1
    with pytest.raises(GridError, match="odd"):
        majority_filter(codes, 4)
    with pytest.raises(GridError, match="odd"):
        smooth(a_map(codes).chunk(), 2)


@settings(max_examples=20)
@given(seed=SEEDS, shape=SHAPES, half=st.integers(0, 3))
def test_the_majority_filter_counts_windows(seed: int, shape: tuple[int, int], half: int) -> None:
    codes = np.random.default_rng(seed).choice(np.array([0, 1, 2, 3], np.uint8), shape)
    filtered = majority_filter(codes, 2 * half + 1)
    for y, x in np.ndindex(shape):
        window = codes[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
        counts = np.bincount(window[window != 0], minlength=4)
        winners = np.flatnonzero(counts == counts.max())
        own = int(codes[y, x])
        assert filtered[y, x] == (own if own == 0 or own in winners else winners[0])


@settings(max_examples=15)
@given(seed=SEEDS, shape=SHAPES, chunk=st.integers(1, 9), size=st.sampled_from([1, 3, 7, 21]))
def test_smoothing_by_chunks_equals_the_whole(seed: int, shape: tuple[int, int], chunk: int, size: int) -> None:
    codes = a_map(some_codes(seed, shape))
    xr.testing.assert_identical(smooth(codes.chunk(y=chunk, x=chunk + 1), size).compute(), smooth(codes, size))


def test_the_unit_in_pixels() -> None:
    codes = a_map(np.full((4, 4), 311, np.uint16))
    assert [mmu_pixels(codes, ha) for ha in (0.01, 0.07, 0.075, 25)] == [1, 7, 8, 2500]
    assert mmu_pixels(a_map(codes.values, "EPSG:2263", 100.0), 1.0) == 11  # feet


def test_coarser_levels_follow_the_deepest() -> None:
    level3 = a_map(some_codes(4, (20, 20)))
    level1 = (level3 // 100).astype(np.uint8).assign_attrs(long_name="level 1")
    maps = xr.Dataset({"level1": level1, "level3": level3, "confidence": level1})
    for held in (maps, maps.chunk(y=7, x=7)):
        out = generalise_levels(held, CORINE, 0.1)
        assert list(out.data_vars) == ["level1", "level3"]
        np.testing.assert_array_equal(out["level1"], out["level3"] // 100)
        assert out["level1"].dtype == np.uint8
        assert out["level1"].attrs == {"long_name": "level 1"}
    with pytest.raises(LegendError, match="level3"):
        generalise_levels(maps[["level1"]], CORINE, 0.1)


def test_what_cannot_be_generalised_is_refused() -> None:
    codes = a_map(some_codes(0, (5, 5)))
    with pytest.raises(GridError, match="projected CRS"):
        generalise(xr.DataArray(codes.values, dims=("y", "x")), CORINE, 1)
    with pytest.raises(GridError, match="more than 0"):
        generalise(codes, CORINE, 0)
    with pytest.raises(GridError, match="dims"):
        generalise(codes.expand_dims("time"), CORINE, 1)
    with pytest.raises(GridError, match="4 or 8"):
        generalise(codes, CORINE, 1, connectivity=6)
    with pytest.raises(LegendError, match="no code 999"):
        generalise(xr.full_like(codes, 999), CORINE, 1)
    mixed = codes.copy()
    mixed[0, 0], mixed[0, 1] = 3, 311
    with pytest.raises(LegendError, match="one level"):
        generalise(mixed, CORINE, 1)
