"""A CORINE-like map drawn from the truth the way CORINE is made, with CORINE's faults.

Its makers draw polygons of at least 25 ha and 100 m width on an image, by eye. So: narrow and small things vanish,
borders are
smooth and a few tens of metres off, and some polygons carry a plausible but wrong class. How wrong the map is, is
not left to chance: polygons are mislabelled until a set share of the area disagrees with the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import shape

from geoflow.sample import noise as nz
from geoflow.sample.landscape import Codes

STEP = 4
"""Pixels of truth per cell of the drawing: 40 m."""
MMU_M2 = 250_000.0
LARGEST = 0.006
"""Polygons larger than this share of the country are not mislabelled."""
MOST_OF_CLASS = 0.16
"""At most this share of a class's area is mislabelled: the map is wrong here and there, not about a class."""


@dataclass(frozen=True)
class Drawing:
    """How the map is drawn.

    ``blur_m`` is how far the drawer's eye averages and ``shift_m`` how far borders are off, at most; both are
    lowered until the map
    agrees with the truth on ``drawn_level3`` of the area. Then polygons are mislabelled until the agreement is
    ``level1`` and ``level3``.
    """

    blur_m: float = 42.0
    shift_m: float = 26.0
    drawn_level3: float = 0.885
    level1: float = 0.876
    level3: float = 0.838
    seed: int = 0


@dataclass(frozen=True)
class Cells:
    """The truth for the drawer, on 40 m cells, 0 outside the country.

    ``main`` is the most frequent code of each cell, ``sample`` that of one of its pixels: agreement with ``sample``
    is an unbiased estimate of the agreement at 10 m.
    """

    main: Codes
    sample: Codes

    @classmethod
    def of(cls, truth_10m: Codes) -> Cells:
        """Cells of a truth at 10 m."""
        rows, cols = (s // STEP * STEP for s in truth_10m.shape)
        main, sample = coarsen(truth_10m), truth_10m[1:rows:STEP, 2:cols:STEP]
        return cls(main, np.where(main > 0, sample, 0).astype(np.uint16))

    def agreement(self, drawn: Codes, divisor: int = 1) -> float:
        """Share of the area on which a drawn map is right; divisor 100 compares level 1."""
        inside = (self.sample > 0) & (drawn > 0)
        return float((drawn[inside] // divisor == self.sample[inside] // divisor).mean())


# What an interpreter takes a class for, with weights: first siblings, then neighbours of another level-1 class.
CONFUSIONS: dict[int, dict[int, float]] = {
    111: {112: 1}, 112: {111: 0.2, 121: 0.5, 242: 0.3}, 121: {112: 0.6, 133: 0.2, 131: 0.2}, 122: {121: 1},
    131: {121: 0.4, 133: 0.3, 331: 0.3}, 133: {121: 1}, 141: {112: 0.6, 142: 0.4}, 142: {141: 0.6, 231: 0.4},
    211: {231: 0.5, 242: 0.35, 243: 0.15}, 222: {242: 0.6, 211: 0.4}, 231: {211: 0.45, 243: 0.3, 321: 0.25},
    242: {211: 0.4, 243: 0.4, 231: 0.2}, 243: {242: 0.25, 231: 0.25, 324: 0.3, 313: 0.2},
    311: {313: 0.6, 324: 0.25, 243: 0.15}, 312: {313: 0.8, 412: 0.1, 324: 0.1}, 313: {312: 0.45, 311: 0.35, 324: 0.1, 243: 0.1},
    321: {231: 0.7, 324: 0.3}, 322: {412: 0.5, 324: 0.5}, 324: {313: 0.4, 311: 0.3, 231: 0.3}, 331: {321: 0.6, 131: 0.4},
    334: {324: 1}, 411: {412: 0.3, 231: 0.4, 321: 0.3}, 412: {322: 0.4, 324: 0.4, 411: 0.2}, 421: {411: 0.5, 321: 0.5},
}  # fmt: skip


def coarsen(codes: Codes, step: int = STEP) -> Codes:
    """The most frequent code of each square of ``step`` pixels (ties to the smaller code); edges are cut off."""
    height, width = (s // step * step for s in codes.shape)
    cut = codes[:height, :width].reshape(height // step, step, width // step, step)
    cells = cut.transpose(0, 2, 1, 3).reshape(height // step, width // step, step * step)
    values = np.unique(codes)
    best = np.zeros(cells.shape[:2], np.uint8)
    out = np.zeros(cells.shape[:2], np.uint16)
    for value in values:
        count = (cells == value).sum(axis=2, dtype=np.uint8)
        np.putmask(out, count > best, value)
        np.maximum(best, count, out=best)
    return out


def _smooth(codes: Codes, sigma: float) -> Codes:
    """At each cell the class with the greatest weight around it; drops what is narrower than about twice sigma."""
    out = codes.copy()
    best = np.zeros(codes.shape, np.float32)
    for value in np.unique(codes[codes > 0]):
        weight = ndimage.gaussian_filter((codes == value).astype(np.float32), sigma, truncate=3)
        np.putmask(out, weight > best, value)
        np.maximum(best, weight, out=best)
    return np.where(codes > 0, out, 0).astype(np.uint16)


def label_patches(codes: Codes) -> tuple[NDArray[np.int32], int]:
    """Number the connected patches of equal code (edges touch); 0 where the code is 0."""
    out = np.zeros(codes.shape, np.int32)
    total = 0
    for value in np.unique(codes[codes > 0]):
        patches, count = ndimage.label(codes == value)
        np.copyto(out, patches + total, where=patches > 0)
        total += count
    return out, total


def merge_small(codes: Codes, min_cells: int) -> Codes:
    """Give patches below the minimum mapping unit to their neighbours, the smallest first."""
    codes = codes.copy()
    inside = codes > 0
    for limit in (min_cells // 16, min_cells // 5, min_cells // 2, min_cells, min_cells, min_cells):
        patches, count = label_patches(codes)
        size = np.bincount(patches.ravel(), minlength=count + 1)
        small = (size < max(limit, 2)) & (np.arange(count + 1) > 0)
        gone = small[patches] & inside
        if not gone.any() or (gone | ~inside).all():
            continue
        nearest = ndimage.distance_transform_edt(gone | ~inside, return_distances=False, return_indices=True)
        codes = np.where(inside, codes[tuple(nearest)], 0).astype(np.uint16)
    return codes


def _shift(codes: Codes, drawing: Drawing, cell_m: float) -> Codes:
    """Move borders by a smooth displacement."""
    ys, xs = (np.arange(n) * cell_m for n in codes.shape)
    amount = drawing.shift_m / cell_m
    r, c = np.meshgrid(np.arange(codes.shape[0]), np.arange(codes.shape[1]), indexing="ij")
    r = np.clip(np.rint(r + amount * nz.noise(ys, xs, 500, drawing.seed + 1)), 0, codes.shape[0] - 1).astype(int)
    c = np.clip(np.rint(c + amount * nz.noise(ys, xs, 500, drawing.seed + 2)), 0, codes.shape[1] - 1).astype(int)
    moved = codes[r, c]
    return np.where((codes > 0) & (moved > 0), moved, codes).astype(np.uint16)


def generalise(main: Codes, drawing: Drawing, cell_m: float = STEP * 10.0) -> Codes:
    """The drawn map before mislabelling, on the 40 m cells; 0 outside."""
    smooth = _smooth(main, drawing.blur_m / cell_m)
    smooth = _shift(smooth, drawing, cell_m)
    return merge_small(smooth, int(np.ceil(MMU_M2 / cell_m**2)))


def mislabel(drawn: Codes, cells: Cells, drawing: Drawing) -> Codes:
    """Change the class of whole polygons, in random order, until the agreement has fallen to the wanted shares.

    First classes of another level-1 group are given until level 1 agrees as wanted, then siblings until level 3 does.
    """
    patches, count = label_patches(drawn)
    flat, inside = patches.ravel(), ((cells.sample > 0) & (drawn > 0)).ravel()
    total = int(inside.sum())
    size = np.bincount(flat, minlength=count + 1)
    code_of = np.zeros(count + 1, np.uint16)
    code_of[flat] = drawn.ravel()
    right = {
        d: np.bincount(flat, weights=((drawn // d == cells.sample // d).ravel() & inside), minlength=count + 1) / total
        for d in (1, 100)
    }
    agreement = {d: float(right[d][1:].sum()) for d in (1, 100)}
    rng = np.random.default_rng([drawing.seed, 321])
    new = code_of.copy()
    area = np.bincount(code_of, weights=size, minlength=1000)
    flipped = np.zeros(1000)
    for across, divisor, wanted in ((True, 100, drawing.level1), (False, 1, drawing.level3)):
        for patch in rng.permutation(np.arange(1, count + 1)):
            code = int(code_of[patch])
            options = {c: w for c, w in CONFUSIONS.get(code, {}).items() if (c // 100 != code // 100) == across}
            loss = right[divisor][patch]
            taken = new[patch] != code or size[patch] > LARGEST * total or agreement[divisor] - loss < wanted - 0.003
            taken |= flipped[code] + size[patch] > MOST_OF_CLASS * area[code]
            if not options or taken:
                continue
            weights = np.array(list(options.values()))
            new[patch] = rng.choice(list(options), p=weights / weights.sum())
            flipped[code] += size[patch]
            agreement[1] -= right[1][patch]
            agreement[100] -= right[100][patch] if across else 0.0
    return np.where(drawn > 0, new[patches], 0).astype(np.uint16)


def draw(cells: Cells, drawing: Drawing) -> Codes:
    """The CORINE-like codes on the 40 m cells (0 outside)."""
    for strength in (1.0, 0.8, 0.6, 0.4, 0.2):
        hand = replace(drawing, blur_m=drawing.blur_m * strength, shift_m=drawing.shift_m * strength)
        drawn = generalise(cells.main, hand)
        if cells.agreement(drawn) >= drawing.drawn_level3:
            break
    return mislabel(drawn, cells, drawing)


def spill(codes: Codes, cells: int = 3) -> Codes:
    """The map carried on beyond the border, as CORINE goes on in the neighbouring country."""
    distance, nearest = ndimage.distance_transform_edt(codes == 0, return_indices=True)
    return np.where(distance <= cells, codes[tuple(nearest)], 0).astype(np.uint16)


def polygons(codes: Codes, transform: Affine, tolerance_m: float = 70.0) -> list[tuple[str, Any]]:
    """The map as (code, polygon) with smooth common borders and without gaps."""
    found = [
        (str(int(v)), shape(g))
        for g, v in rasterio.features.shapes(codes.astype(np.int32), mask=codes > 0, transform=transform)
    ]
    simple = shapely.coverage_simplify([g for _, g in found], tolerance_m)
    return [(code, g) for (code, _), g in zip(found, simple, strict=True) if not g.is_empty]
