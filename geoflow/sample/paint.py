"""From land-cover classes to materials: what each 10 m pixel of a class is made of, and how it varies.

A class is a recipe: its parcels or stands get a material by lot, and a finer lot (per pixel, or in clumps of tens of
metres) mixes other materials in. Heterogeneous classes share their materials with the pure ones, so that a single pixel
cannot tell them apart but their surroundings can.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoflow.sample import noise as nz
from geoflow.sample.landscape import Codes, Fields
from geoflow.sample.noise import Float, Uint
from geoflow.sample.signatures import INDEX, VARIANTS

Shares = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """How a class is painted.

    ``base`` is drawn by ``unit`` (one draw a "parcel", "stand", "plot" of 60 m, or "pixel"). Then ``fleck`` of the
    pixels, in clumps of ``grain`` (a "pixel", "clump" of 30 m or "patch" of 70 m), are redrawn from ``mixed``.
    """

    unit: str
    base: Shares
    fleck: float = 0.0
    grain: str = "clump"
    mixed: Shares | None = None


CROPS: Shares = {
    "winter_crop": 0.33,
    "spring_crop": 0.28,
    "rape": 0.12,
    "late_crop": 0.12,
    "ley": 0.06,
    "stubble": 0.05,
}
TREES: Shares = {"spruce": 0.3, "pine": 0.2, "birch": 0.3, "alder": 0.2}

RECIPES: dict[int, Recipe] = {
    111: Recipe("pixel", {"tile_roof": 0.3, "grey_roof": 0.3, "asphalt": 0.24, "yard": 0.1, "metal_roof": 0.03,
                          "street_tree": 0.03}, 0.10, "clump", {"lawn": 0.5, "street_tree": 0.5}),
    112: Recipe("pixel", {"tile_roof": 0.17, "grey_roof": 0.12, "asphalt": 0.11, "garden": 0.36, "street_tree": 0.17,
                          "yard": 0.07}, 0.22, "clump", {"garden": 0.6, "street_tree": 0.4}),
    121: Recipe("plot", {"grey_roof": 0.30, "metal_roof": 0.13, "yard": 0.25, "asphalt": 0.22, "lawn": 0.10}, 0.30,
                "pixel", {"grey_roof": 0.25, "asphalt": 0.30, "yard": 0.25, "lawn": 0.20}),
    122: Recipe("pixel", {"asphalt": 0.56, "gravel": 0.20, "lawn": 0.16, "rough_grass": 0.08}),
    131: Recipe("plot", {"gravel": 0.62, "sand": 0.16, "building_site": 0.12, "rough_grass": 0.10}, 0.18, "pixel",
                {"gravel": 0.6, "rough_grass": 0.3, "pool": 0.1}),
    133: Recipe("plot", {"building_site": 0.6, "gravel": 0.2, "yard": 0.2}, 0.2, "pixel",
                {"grey_roof": 0.4, "yard": 0.4, "rough_grass": 0.2}),
    141: Recipe("plot", {"lawn": 0.45, "street_tree": 0.55}, 0.3, "pixel", {"lawn": 0.4, "street_tree": 0.5, "asphalt": 0.1}),
    142: Recipe("plot", {"lawn": 0.74, "street_tree": 0.16, "yard": 0.10}, 0.15, "pixel", {"lawn": 0.6, "asphalt": 0.4}),
    211: Recipe("parcel", CROPS, 0.08, "clump", {"ley": 0.4, "stubble": 0.4, "rough_grass": 0.2}),
    222: Recipe("parcel", {"orchard": 1.0}, 0.45, "pixel", {"meadow": 0.6, "street_tree": 0.4}),
    231: Recipe("parcel", {"pasture": 0.58, "meadow": 0.38, "ley": 0.04}, 0.18, "clump",
                {"rough_grass": 0.6, "thicket": 0.15, "pasture": 0.25}),
    242: Recipe("strip", {"spring_crop": 0.18, "late_crop": 0.22, "ley": 0.10, "pasture": 0.16, "garden": 0.20, "orchard": 0.14},
                0.26, "pixel", {"garden": 0.45, "tile_roof": 0.2, "street_tree": 0.35}),
    243: Recipe("strip", {"pasture": 0.30, "meadow": 0.18, "spring_crop": 0.10, "winter_crop": 0.08, "ley": 0.06,
                          "rough_grass": 0.28}, 0.50, "patch", {"birch": 0.3, "alder": 0.2, "thicket": 0.3, "spruce": 0.2}),
    311: Recipe("stand", {"birch": 0.6, "alder": 0.4}, 0.20, "pixel", {"spruce": 0.6, "pine": 0.2, "thicket": 0.2}),
    312: Recipe("stand", {"spruce": 0.52, "pine": 0.48}, 0.20, "pixel", {"birch": 0.75, "thicket": 0.25}),
    313: Recipe("pixel", {"spruce": 0.3, "pine": 0.2, "birch": 0.3, "alder": 0.2}, 0.22, "clump", TREES),
    321: Recipe("plot", {"rough_grass": 0.85, "meadow": 0.15}, 0.36, "clump", {"juniper": 0.5, "herbs": 0.4, "thicket": 0.1}),
    322: Recipe("plot", {"heath": 0.9, "rough_grass": 0.1}, 0.20, "pixel", {"juniper": 0.4, "bog_pine": 0.3, "heath": 0.3}),
    324: Recipe("stand", {"thicket": 0.60, "sapling": 0.26, "slash": 0.14}, 0.40, "pixel",
                {"thicket": 0.40, "herbs": 0.16, "birch": 0.14, "sapling": 0.20, "slash": 0.10}),
    331: Recipe("pixel", {"sand": 0.84, "rough_grass": 0.16}),
    334: Recipe("plot", {"burnt": 0.9, "slash": 0.1}, 0.15, "pixel", {"herbs": 0.5, "pine": 0.2, "burnt": 0.3}),
    411: Recipe("plot", {"reed": 0.62, "sedge": 0.38}, 0.16, "clump", {"pool": 0.3, "thicket": 0.3, "sedge": 0.4}),
    412: Recipe("plot", {"bog": 0.84, "bog_pine": 0.16}, 0.30, "clump", {"bog_pine": 0.52, "pool": 0.14, "heath": 0.34}),
    421: Recipe("plot", {"sedge": 0.5, "rough_grass": 0.5}, 0.2, "clump", {"reed": 0.5, "pool": 0.2, "meadow": 0.3}),
    511: Recipe("pixel", {"river": 1.0}),
    512: Recipe("plot", {"lake": 0.65, "clear_lake": 0.35}),
    523: Recipe("pixel", {"sea": 1.0}),
}  # fmt: skip
# A class that is new in 2024 looks young: fresh cuts, new lakes.
FRESH_CUT = Recipe("stand", {"slash": 0.6, "herbs": 0.4}, 0.35, "pixel", {"slash": 0.5, "herbs": 0.3, "thicket": 0.2})


@dataclass(frozen=True)
class Paint:
    """Materials and their variation; uint8 and int8 arrays, dims (y, x).

    ``before`` and ``after`` are indices of material variants (``material * VARIANTS + variant``) of the two epochs.
    ``tone`` is the
    relative brightness and ``vigour`` the change of the green share, both in units of 1/250. ``slope_y`` and
    ``slope_x`` are the tangents of the slope towards the south and the east in units of 1/250.
    """

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    tone: NDArray[np.int8]
    vigour: NDArray[np.int8]
    slope_y: NDArray[np.int8]
    slope_x: NDArray[np.int8]


def _draw(shares: Shares, lot: Float) -> NDArray[np.uint8]:
    """Materials by lot in [0, 1)."""
    edges = np.cumsum(list(shares.values()))
    edges = edges / edges[-1]
    names = np.array([INDEX[n] for n in shares], np.uint8)
    picked: NDArray[np.uint8] = names[np.minimum(np.searchsorted(edges, lot, side="right"), len(names) - 1)]
    return picked


class Painter:
    """Paints the windows of one ground. Lots are made once for a window and used by all classes."""

    def __init__(self, fields: Fields, seed: int) -> None:
        self._key = (seed * 6151) & 0x7FFFFFFF
        f = fields
        plot = nz.hash32((f.cols // 6)[None, :], (f.rows // 6)[:, None], self._key + 1)
        pixel = nz.hash32(f.cols[None, :], f.rows[:, None], self._key + 2)
        strip = nz.mix(nz.mix(f.block, 9) ^ nz.hash32((f.y / 130).astype(np.int32), (f.x / 45).astype(np.int32), 3))
        self.units: dict[str, Uint] = {
            "parcel": f.parcel, "stand": f.stand, "plot": plot, "pixel": pixel, "strip": strip,
        }  # fmt: skip
        self.clump = nz.rank(nz.noise(f.ys, f.xs, 32, self._key + 4))
        self.patch = nz.rank(nz.fbm(f.ys, f.xs, (90, 45), self._key + 5, 0.5))
        self.fields = f

    def paint(self, before: Codes, after: Codes) -> Paint:
        """Materials of both epochs and the variation that they share."""
        flat_before = self._materials(before, before)
        flat_after = flat_before.copy()
        changed = np.flatnonzero((after != before).ravel())
        if changed.size:
            flat_after[changed] = self._materials(after, before, changed)
        tone, vigour = self._variation(before)
        slope_y, slope_x = self._slopes()
        shape = before.shape
        return Paint(flat_before.reshape(shape), flat_after.reshape(shape), tone, vigour, slope_y, slope_x)

    def _materials(self, codes: Codes, before: Codes, only: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        flat, old = codes.ravel(), before.ravel()
        where = np.arange(flat.size) if only is None else only
        out = np.zeros(where.size, np.uint8)
        mine = flat[where]
        for code in np.unique(mine):
            at = np.flatnonzero(mine == code)
            recipe = FRESH_CUT if code == 324 and only is not None and old[where[at]].any() else RECIPES[int(code)]
            out[at] = self._fill(recipe, where[at], int(code))
        return out

    def _fill(self, recipe: Recipe, at: NDArray[np.int64], code: int) -> NDArray[np.uint8]:
        """Material variants of one class at flat positions."""
        name = self.units[recipe.unit].ravel()[at]
        material = _draw(recipe.base, nz.unit(nz.mix(name, 100 + code)))
        if recipe.mixed:
            pixel = self.units["pixel"].ravel()[at]
            lot = nz.unit(nz.mix(pixel, 200)) if recipe.grain == "pixel" else getattr(self, recipe.grain).ravel()[at]
            hit = np.flatnonzero(lot < recipe.fleck)
            which = nz.unit(nz.mix(self.units["plot"].ravel()[at[hit]], 300 + code))
            if recipe.grain == "pixel":
                which = nz.unit(nz.mix(pixel[hit], 400 + code))
            material[hit] = _draw(recipe.mixed, which)
        group = name if recipe.unit in ("parcel", "stand", "strip") else self.units["plot"].ravel()[at]
        variant = (nz.mix(group, 500) % np.uint32(VARIANTS)).astype(np.uint8)
        return material * np.uint8(VARIANTS) + variant

    def _variation(self, codes: Codes) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Brightness and vigour: a share per parcel or stand, a smooth one, and one of the pixel itself."""
        f = self.fields
        farmed = np.isin(codes, (211, 222, 231))
        unit_name = np.where(farmed, f.parcel, f.stand)
        smooth = nz.noise(f.ys, f.xs, 150, self._key + 6)
        grain = nz.noise(f.ys, f.xs, 22, self._key + 7)
        pixel = nz.unit(nz.mix(self.units["pixel"], 8)) - 0.5
        tone = 0.15 * (nz.unit(nz.mix(unit_name, 12)) - 0.5) + 0.035 * smooth + 0.05 * grain + 0.48 * pixel
        vigour = 0.13 * (nz.unit(nz.mix(unit_name, 13)) - 0.5) + 0.04 * smooth - 0.04 * grain
        vigour += 0.46 * (nz.unit(nz.mix(self.units["pixel"], 14)) - 0.5)
        tone *= np.where(codes >= 500, np.float32(0.3), np.float32(1))  # water is smooth
        return _int8(tone), _int8(vigour)

    def _slopes(self) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Slopes of the hills (the coast's own slope is left out: it is not to scale)."""
        f = self.fields
        relief = nz.fbm(f.ys, f.xs, (1800, 700, 260), self._key + 9, 0.5) * np.float32(16.0)
        step_m = float(f.ys[1] - f.ys[0]) if len(f.ys) > 1 else 10.0
        gy, gx = np.gradient(relief, step_m)
        return _int8(gy), _int8(gx)


def _int8(values: Float) -> NDArray[np.int8]:
    return np.clip(np.rint(values * 250), -127, 127).astype(np.int8)
