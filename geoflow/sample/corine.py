"""A CORINE-like map drawn from the truth the way CORINE is made, with CORINE's faults.

Its makers draw polygons of at least 25 ha and 100 m width on an image, by eye. So: narrow and small things vanish, borders are
smooth and a few tens of metres off, and some polygons carry a plausible but wrong class. How wrong the map is, is not left to
chance: polygons are mislabelled until a set share of the area disagrees with the truth.
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


@dataclass(frozen=True)
class Drawing:
    """How the map is drawn.

    ``blur_m`` is how far the drawer's eye averages; ``shift_m`` how far borders are off; ``agreement`` the share of the area whose
    level-3 class shall agree with the truth after mislabelling.
    """

    blur_m: float = 42.0
    shift_m: float = 22.0
    agreement: float = 0.843
    seed: int = 0


# What an interpreter takes a class for, with weights: first siblings, then neighbours of another level-1 class.
CONFUSIONS: dict[int, dict[int, float]] = {
    111: {112: 1}, 112: {111: 0.2, 121: 0.5, 242: 0.3}, 121: {112: 0.6, 133: 0.2, 131: 0.2}, 122: {121: 1},
    131: {121: 0.4, 133: 0.3, 331: 0.3}, 133: {121: 1}, 141: {112: 0.6, 142: 0.4}, 142: {141: 0.6, 231: 0.4},
    211: {231: 0.5, 242: 0.35, 243: 0.15}, 222: {242: 0.6, 211: 0.4}, 231: {211: 0.35, 243: 0.3, 321: 0.35},
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
    r = np.clip(np.rint(r + amount * nz.noise(ys, xs, 700, drawing.seed + 1)), 0, codes.shape[0] - 1).astype(int)
    c = np.clip(np.rint(c + amount * nz.noise(ys, xs, 700, drawing.seed + 2)), 0, codes.shape[1] - 1).astype(int)
    moved = codes[r, c]
    return np.where((codes > 0) & (moved > 0), moved, codes).astype(np.uint16)


def generalise(codes: Codes, drawing: Drawing, cell_m: float = STEP * 10.0) -> Codes:
    """The drawn map before mislabelling, on the 40 m cells; 0 outside."""
    smooth = _smooth(codes, drawing.blur_m / cell_m)
    smooth = _shift(smooth, drawing, cell_m)
    return merge_small(smooth, int(np.ceil(MMU_M2 / cell_m**2)))


def mislabel(drawn: Codes, truth: Codes, drawing: Drawing) -> Codes:
    """Change the class of whole polygons, in random order, until the agreement with the truth falls to the wanted share."""
    patches, count = label_patches(drawn)
    inside = truth > 0
    total = int(inside.sum())
    right = drawn == truth
    agreement = float((right & inside).sum()) / max(total, 1)
    rng = np.random.default_rng([drawing.seed, 321])
    size = np.bincount(patches.ravel(), minlength=count + 1)
    code_of = np.zeros(count + 1, np.uint16)
    code_of[patches.ravel()] = drawn.ravel()
    correct = np.bincount(patches.ravel(), weights=(right & inside).ravel(), minlength=count + 1)
    new = code_of.copy()
    for patch in rng.permutation(np.arange(1, count + 1)):
        options = CONFUSIONS.get(int(code_of[patch]))
        if agreement <= drawing.agreement or not options:
            continue
        loss = correct[patch] / total
        if size[patch] > 0.02 * total or agreement - loss < drawing.agreement - 0.004:
            continue
        weights = np.array(list(options.values()))
        new[patch] = rng.choice(list(options), p=weights / weights.sum())
        agreement -= loss
    return np.where(drawn > 0, new[patches], 0).astype(np.uint16)


def draw(truth_10m: Codes, drawing: Drawing) -> Codes:
    """The CORINE-like codes on 40 m cells (0 outside) of a truth at 10 m."""
    cells = coarsen(truth_10m)
    return mislabel(generalise(cells, drawing), cells, drawing)


def polygons(codes: Codes, transform: Affine, tolerance_m: float = 45.0) -> list[tuple[str, Any]]:
    """The map as (code, polygon) with smooth common borders and without gaps."""
    found = [
        (str(int(v)), shape(g))
        for g, v in rasterio.features.shapes(codes.astype(np.int32), mask=codes > 0, transform=transform)
    ]
    simple = shapely.coverage_simplify([g for _, g in found], tolerance_m)
    return [(code, g) for (code, _), g in zip(found, simple, strict=True) if not g.is_empty]


def with_seed(drawing: Drawing, seed: int) -> Drawing:
    """The same way of drawing by another hand."""
    return replace(drawing, seed=seed)
