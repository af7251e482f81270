"""Generalisation: a class map without patches below a minimum mapping unit, the same for any tiles.

Merging runs in chains: a patch that takes its neighbour's class may join a third one far away, so no margin around a
tile is wide enough. What decides, though, is small: the graph of patches (code, area, and the length of the border that
two of them share). So there are three steps, and only the second sees the whole map, without its pixels:

1. `survey` each tile by itself: its patches, their contacts, and the patches along its four edges;
2. `decide` once: join the patches across the seams (union-find), merge on the graph, a new code for each patch;
3. `recode` each tile by itself.

Cutting the map elsewhere gives the same graph and so the same map. `generalise` does the three on the chunks of an
xarray map, `merge_small` on one array.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import odc.geo.xr  # noqa: F401  (the .odc accessor)
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from geoflow.errors import GridError, LegendError
from geoflow.legends import NODATA_CODE, Legend, listed

Codes = NDArray[np.unsignedinteger[Any]]
Ints = NDArray[np.int64]
Priority = Mapping[tuple[int, int], int]
"""(code of a small patch, code of its neighbour) to a rank: the neighbours of the lowest rank are preferred."""

_LAST = 1 << 30


def majority_filter(codes: Codes, size_px: int) -> Codes:
    """The most frequent code in a square window around each pixel.

    Parameters
    ----------
    codes : unsigned integer array, dims (y, x)
        0 is nodata: it has no vote, and stays. Beyond the edges lies nodata.
    size_px : int
        Edge of the window, odd; else `GridError` is raised.

    Returns
    -------
    array as ``codes``
        Among equally frequent codes the pixel's own if it is one of them, else the lowest.
    """
    if size_px < 1 or size_px % 2 == 0:
        raise GridError(f"the window must be an odd number of pixels, not {size_px}")
    winner, best, own = np.zeros_like(codes), np.zeros(codes.shape, np.int32), np.zeros(codes.shape, np.int32)
    window = np.ones(size_px, np.int32)
    for code in np.unique(codes[codes != NODATA_CODE]):
        here = codes == code
        votes = here.astype(np.int32)
        for axis in (0, 1):
            votes = ndimage.correlate1d(votes, window, axis, mode="constant")
        winner[votes > best] = code
        best = np.maximum(best, votes)
        own[here] = votes[here]
    return np.where((own == best) | (codes == NODATA_CODE), codes, winner)


def smooth(codes: xr.DataArray, size_px: int) -> xr.DataArray:
    """`majority_filter` of a map with dims (y, x), lazily where it is lazy; the same for any chunks."""
    if codes.dims != ("y", "x"):
        raise GridError(f"a class map has the dims ('y', 'x'), not {codes.dims}")
    if codes.chunks is None:
        return codes.copy(data=majority_filter(codes.values, size_px))
    majority_filter(np.zeros((1, 1), np.uint8), size_px)  # complains of the size now, not when it is computed
    depth = tuple(min(size_px // 2, size) for size in codes.shape)
    options = {"depth": depth, "boundary": 0, "meta": np.empty((0, 0), codes.dtype)}
    return codes.copy(data=da.map_overlap(majority_filter, codes.data, size_px=size_px, **options))


def similarity(legend: Legend) -> dict[tuple[int, int], int]:
    """A `Priority` from the legend's levels: 1 for classes of one parent, 2 for those of one grandparent, and so on.

    At CORINE's level 3: 1 within a level-2 class (311, 312), 2 within a level-1 class (311, 324), 3 for any other. It
    stands in for the table of priorities of CORINE's technical guide, which `merge_small` takes in its place.
    """
    ranks = {}
    for level in legend.levels:
        for one, other in itertools.product(legend.codes(level), repeat=2):
            shared = sum(legend.ancestor(one, up) == legend.ancestor(other, up) for up in range(1, level))
            ranks[one, other] = level - shared
    return ranks


def merge_small(codes: Codes, mmu_px: int, priority: Priority | None = None, connectivity: int = 4) -> Codes:
    """Merge the patches smaller than ``mmu_px`` into their neighbours.

    The smallest patch comes first (of equals, the one whose first pixel comes first in row order). It takes the class
    among its neighbours' that ranks lowest in ``priority``; of equals the one with which it shares the longest border;
    of equals the lowest code. It is then one patch with all its neighbours of that class, and if that is still too
    small, waits for its turn again. So in the end only patches without any neighbour but nodata are too small.

    Parameters
    ----------
    codes : unsigned integer array, dims (y, x)
        0 is nodata, and stays. The result has the same dtype.
    mmu_px : int
        Least size of a patch, in pixels; 0 or 1 keeps all.
    priority : mapping of (code, neighbour's code) to int, optional
        See `similarity`. Pairs that it lacks come last; by default all are equal.
    connectivity : int
        4, or 8 where patches also hang together by corners (a corner is a contact, but adds nothing to a border).
        `GridError` for any other.
    """
    tables = decide([[survey(codes, (0, 0), mmu_px, connectivity)]], mmu_px, priority, connectivity)
    return recode(codes, tables[0][0], connectivity)


def generalise(codes: xr.DataArray, legend: Legend, mmu_ha: float, connectivity: int = 4) -> xr.DataArray:
    """A class map without patches smaller than a minimum mapping unit; the rules are those of `merge_small`.

    Parameters
    ----------
    codes : xr.DataArray, dims (y, x)
        Codes of one level of the legend, 0 nodata; in a projected CRS.
    legend : Legend
        Its `similarity` is the priority.
    mmu_ha : float
        Minimum mapping unit in hectares (25 for CORINE, 5 for its changes).

    Returns
    -------
    xr.DataArray
        As ``codes``, lazy where that is lazy. The graph of patches is computed at once, so the map is read twice: write
        a map to disk before generalising it. Memory grows with the number of patches and the length of the seams.

    Raises
    ------
    GridError, LegendError
        If the map has no projected CRS, the unit is not positive or the connectivity is neither 4 nor 8; if codes occur
        that the legend lacks, or that belong to several levels.
    """
    mmu_px = mmu_pixels(codes, mmu_ha)
    data = codes.data if codes.chunks is not None else da.from_array(codes.values, chunks=codes.shape)
    blocks = data.to_delayed()
    tops, lefts = (np.cumsum([0, *sizes[:-1]]).tolist() for sizes in data.chunks)
    one_survey, one_recode = dask.delayed(survey), dask.delayed(recode)
    jobs = [
        [one_survey(block, (y, x), mmu_px, connectivity) for block, x in zip(row, lefts, strict=True)]
        for row, y in zip(blocks, tops, strict=True)
    ]
    (surveys,) = dask.compute(jobs)
    found = {int(code) for row in surveys for tile in row for code in np.unique(tile.codes)}
    if len(levels := {legend.level_of(code) for code in found}) > 1:
        raise LegendError(f"a map to generalise holds codes of one level; this one has the levels {sorted(levels)}")
    tables = decide(surveys, mmu_px, similarity(legend), connectivity)
    parts = [
        [
            da.from_delayed(one_recode(block, table, connectivity), (height, width), codes.dtype)
            for block, table, width in zip(*rows, data.chunks[1], strict=True)
        ]
        for *rows, height in zip(blocks, tables, data.chunks[0], strict=True)
    ]
    recoded = codes.copy(data=da.block(parts))
    return recoded if codes.chunks is not None else recoded.compute()


def generalise_levels(maps: xr.Dataset, legend: Legend, mmu_ha: float, connectivity: int = 4) -> xr.Dataset:
    """`generalise` the deepest of the ``level<n>`` maps and derive the coarser ones from it, so that they still nest.

    Returns the same level variables, without the others: a confidence belongs to the class that a pixel had before.
    """
    held = {f"level{level}": level for level in legend.levels if f"level{level}" in maps.data_vars}
    if (name := f"level{legend.deepest}") not in held:
        raise LegendError(f"the map needs {name}; it has {listed(maps.data_vars)}")
    deepest = generalise(maps[name], legend, mmu_ha, connectivity)
    out = maps[list(held)].assign({name: deepest})
    for name, level in list(held.items())[:-1]:
        to_level = functools.partial(legend.to_level, level=level)
        coarse = xr.apply_ufunc(to_level, deepest, dask="parallelized", output_dtypes=[legend.dtype(level)])
        out[name] = maps[name].copy(data=coarse.data)
    return out


def mmu_pixels(codes: xr.DataArray, mmu_ha: float) -> int:
    """The least number of pixels that are not smaller than ``mmu_ha``, by the map's plain pixel area."""
    if codes.dims != ("y", "x"):
        raise GridError(f"a class map has the dims ('y', 'x'), not {codes.dims}")
    geobox = codes.odc.geobox
    if geobox is None or geobox.crs is None or not geobox.crs.projected:
        raise GridError("a minimum mapping unit in hectares needs a map in a projected CRS")
    if not mmu_ha > 0:
        raise GridError(f"the minimum mapping unit must be more than 0 ha, not {mmu_ha}")
    pixel_m2 = abs(geobox.transform.determinant) * geobox.crs.proj.axis_info[0].unit_conversion_factor ** 2
    return math.ceil(mmu_ha * 1e4 / pixel_m2 - 1e-6)


@dataclass(frozen=True)
class Survey:
    """The patches of one tile, numbered from 1 within it (0 is nodata): code, size, first pixel in row order as
    ``row * 2**32 + column`` of the whole map; the contacts (patch, patch, length of the border in pixel edges) unless
    both are large enough already; and the patches along the top, bottom, left and right edge."""

    codes: Ints
    areas_px: Ints
    first: Ints
    contacts: Ints
    edges: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def survey(codes: Codes, origin: tuple[int, int], mmu_px: int, connectivity: int = 4) -> Survey:
    """The patches of a tile whose first pixel is at ``origin`` (row, column) of the whole map."""
    labels, patch_codes = _label(codes, connectivity)
    flat = labels.ravel()
    areas_px = np.bincount(flat, minlength=len(patch_codes) + 1)
    firsts = np.full(len(patch_codes) + 1, labels.size)
    np.minimum.at(firsts, flat, np.arange(labels.size))
    rows, cols = np.divmod(firsts[1:], max(labels.shape[1], 1))
    contacts = np.concatenate(
        [*_touching(labels[:-1], labels[1:], connectivity), *_touching(labels[:, :-1], labels[:, 1:], 4)]
    )
    first = (rows + origin[0]) * 2**32 + cols + origin[1]
    edges = (labels[0], labels[-1], labels[:, 0].copy(), labels[:, -1].copy())
    return Survey(patch_codes, areas_px[1:], first, _summed(contacts, areas_px, mmu_px), edges)


def decide(
    surveys: Sequence[Sequence[Survey]], mmu_px: int, priority: Priority | None = None, connectivity: int = 4
) -> list[list[Ints]]:
    """Merge on the patches of the whole map, by the rules of `merge_small`.

    Takes one survey for each tile of the whole map, as rows of columns, and gives as many tables: int64 arrays of the
    new code of each patch of the tile; position 0 is nodata.
    """
    flat = [s for row in surveys for s in row]
    starts = np.cumsum([0, *(len(s.codes) for s in flat)])
    codes = np.concatenate([[0], *(s.codes for s in flat)])
    seams = np.concatenate([np.zeros((0, 3), np.int64), *_seams(surveys, starts, connectivity)])
    joined = seams[codes[seams[:, 0]] == codes[seams[:, 1]]]
    count, patch = _components(len(codes), joined[:, 0], joined[:, 1])
    merged_codes, areas_px = np.zeros(count, np.int64), np.zeros(count, np.int64)
    first = np.full(count, np.iinfo(np.int64).max)
    merged_codes[patch] = codes
    np.add.at(areas_px, patch[1:], np.concatenate([s.areas_px for s in flat]))
    np.minimum.at(first, patch[1:], np.concatenate([s.first for s in flat]))
    inner = [s.contacts + np.array([start, start, 0]) for s, start in zip(flat, starts, strict=False)]
    contacts = np.concatenate([seams[codes[seams[:, 0]] != codes[seams[:, 1]]], *inner])
    contacts[:, :2] = patch[contacts[:, :2]]
    new = _Merger(merged_codes, areas_px, first, _summed(contacts, areas_px, mmu_px), mmu_px).run(priority or {})[patch]
    tables = (np.concatenate([[0], new[1:][a:b]]) for a, b in itertools.pairwise(starts))
    return [[next(tables) for _ in row] for row in surveys]


def recode(codes: Codes, table: Ints, connectivity: int = 4) -> Codes:
    """A tile with the new codes that `decide` gave to its patches."""
    return table.astype(codes.dtype)[_label(codes, connectivity)[0]]


class _Merger:
    """Merging on a graph of patches. Only the small ones need their contacts: the others never change."""

    def __init__(self, codes: Ints, areas_px: Ints, first: Ints, contacts: Ints, mmu_px: int) -> None:
        self.mmu_px = mmu_px
        both = np.concatenate([contacts, contacts[:, [1, 0, 2]]])
        both = both[areas_px[both[:, 0]] < mmu_px]
        both = both[np.argsort(both[:, 0], kind="stable")]
        self.start = np.searchsorted(both[:, 0], np.arange(len(codes) + 1))
        self.to, self.length = both[:, 1], both[:, 2]
        small = np.flatnonzero((areas_px < mmu_px) & (np.diff(self.start) > 0))
        small = small[np.lexsort((first[small], areas_px[small]))]
        self.turns = np.stack([areas_px[small], first[small], small], axis=1)
        self.codes, self.root = codes, np.arange(len(codes))
        self.members: dict[int, list[int]] = {}
        # Reading single values of a memoryview is several times faster than of its array.
        self.code, self.area, self.first = codes.data, areas_px.data, first.data
        self.parent = self.root.data

    def run(self, priority: Priority) -> Ints:
        """The new code of each patch."""
        again: list[tuple[int, int, int]] = []
        for area, _, patch in self._turns(again):
            if self.parent[patch] != patch or self.area[patch] != area:
                continue  # it has grown since, and waits with its new size
            if (root := self._merge(patch, priority)) is not None and self.area[root] < self.mmu_px:
                heapq.heappush(again, (self.area[root], self.first[root], root))
        while not np.array_equal(above := self.root[self.root], self.root):
            self.root[:] = above
        return self.codes[self.root]

    def _turns(self, again: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
        """The smallest first, of the patches as they were and of those that have grown."""
        for area, first, patch in self.turns:
            while again and again[0] < (area, first, patch):
                yield heapq.heappop(again)
            yield int(area), int(first), int(patch)
        while again:
            yield heapq.heappop(again)

    def _merge(self, patch: int, priority: Priority) -> int | None:
        """Merge a patch into its neighbours of the best class; None where it has none."""
        borders: dict[int, int] = {}
        neighbours: dict[int, set[int]] = {}
        for member in self.members.get(patch, [patch]):
            part = slice(self.start[member], self.start[member + 1])
            for other, length in zip(self.to[part].tolist(), self.length[part].tolist(), strict=True):
                if (root := self._find(other)) != patch:
                    code = self.code[root]
                    borders[code] = borders.get(code, 0) + length
                    neighbours.setdefault(code, set()).add(root)
        if not borders:
            return None
        best = min(borders, key=lambda c: (priority.get((self.code[patch], c), _LAST), -borders[c], c))
        return self._join({patch, *neighbours[best]}, best)

    def _join(self, patches: set[int], code: int) -> int:
        root = max(patches, key=lambda p: (self.area[p], p))
        total, first = sum(self.area[p] for p in patches), min(self.first[p] for p in patches)
        members = [m for p in patches for m in self.members.pop(p, [p])]
        self.root[list(patches)] = root
        self.area[root], self.first[root], self.code[root] = total, first, code
        if total < self.mmu_px:
            self.members[root] = members
        return root

    def _find(self, patch: int) -> int:
        parent = self.parent
        while parent[patch] != patch:
            parent[patch] = parent[parent[patch]]
            patch = parent[patch]
        return patch


def _label(codes: Codes, connectivity: int) -> tuple[NDArray[np.int32], Ints]:
    """Patches numbered from 1 (0 nodata), and their codes; runs within rows are joined to those of the row above."""
    if connectivity not in (4, 8):
        raise GridError(f"the connectivity must be 4 or 8, not {connectivity}")
    begins = np.ones(codes.shape, bool)
    begins[:, 1:] = codes[:, 1:] != codes[:, :-1]
    runs = (np.cumsum(begins.ravel()) - 1).reshape(codes.shape)
    width = codes.shape[1]
    above, below = [], []
    for shift in (0,) if connectivity == 4 else (-1, 0, 1):
        up, down = slice(max(0, -shift), width - max(0, shift)), slice(max(0, shift), width - max(0, -shift))
        same = (codes[:-1, up] == codes[1:, down]) & (begins[:-1, up] | begins[1:, down])
        above.append(runs[:-1, up][same])
        below.append(runs[1:, down][same])
    run_codes = codes[begins].astype(np.int64)
    count, part = _components(len(run_codes), np.concatenate(above), np.concatenate(below))
    part_codes = np.zeros(count, np.int64)
    part_codes[part] = run_codes
    numbers = (np.cumsum(part_codes != NODATA_CODE) * (part_codes != NODATA_CODE)).astype(np.int32)
    return numbers[part][runs], part_codes[part_codes != NODATA_CODE]


def _components(count: int, a: NDArray[Any], b: NDArray[Any]) -> tuple[int, NDArray[np.int32]]:
    graph = sparse.coo_matrix((np.ones(len(a)), (a, b)), (count, count))
    return csgraph.connected_components(graph, directed=False)


def _touching(one: NDArray[Any], other: NDArray[Any], connectivity: int) -> Iterator[Ints]:
    """Contacts (patch, patch, length) of the pixels of one line, or of many, with those of the next."""
    pairs = [(one, other, 1)]
    if connectivity == 8:
        pairs += [(one[..., :-1], other[..., 1:], 0), (one[..., 1:], other[..., :-1], 0)]
    for a, b, length in pairs:
        meet = (a != b) & (a != 0) & (b != 0)
        yield np.stack([a[meet], b[meet], np.full(np.count_nonzero(meet), length)], axis=1).astype(np.int64)


def _seams(surveys: Sequence[Sequence[Survey]], starts: NDArray[Any], connectivity: int) -> Iterator[Ints]:
    """Contacts across the edges of tiles, by numbers in the whole map. Each seam is taken in its full length, so the
    corners where four tiles meet are seen as well."""
    offsets = starts[:-1].reshape(len(surveys), -1)

    def line(tiles: list[tuple[int, int]], edge: int) -> Ints:
        parts = [(surveys[r][c].edges[edge], offsets[r, c]) for r, c in tiles]
        return np.concatenate([np.where(part != 0, part + offset, 0) for part, offset in parts])

    rows, cols = offsets.shape
    for r in range(rows - 1):
        upper, lower = ([(at, c) for c in range(cols)] for at in (r, r + 1))
        yield from _touching(line(upper, 1), line(lower, 0), connectivity)
    for c in range(cols - 1):
        left, right = ([(r, at) for r in range(rows)] for at in (c, c + 1))
        yield from _touching(line(left, 3), line(right, 2), connectivity)


def _summed(contacts: Ints, areas_px: Ints, mmu_px: int) -> Ints:
    """One row for each pair of patches of which one is small, the lower number first, with their whole border."""
    pairs = np.sort(contacts[:, :2], axis=1)
    needed = areas_px[pairs].min(axis=1, initial=mmu_px) < mmu_px
    pairs = pairs[needed]
    keys, where = np.unique(pairs[:, 0] * len(areas_px) + pairs[:, 1], return_inverse=True)
    lengths = np.bincount(where, contacts[needed, 2], minlength=len(keys)).astype(np.int64)
    return np.stack([keys // len(areas_px), keys % len(areas_px), lengths], axis=1)
