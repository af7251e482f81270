"""What the ground is made of, and how it looks to Sentinel-2 through the year.

A *material* is what one 10 m pixel holds (a roof, winter wheat, spruce). Its reflectance at a day of the year is a
mixture of a
green and a background spectrum; the green share follows a curve of the season. A land-cover class is a mixture of
materials (`geoflow.sample.landscape`), so similar classes share materials and overlap, as they do in reality. The
spectra are typical values put together for this purpose, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
VARIANTS = 5
"""Each material comes in this many variants (sowing dates, ages, soils); a parcel has one of them."""

# Surface reflectance of pure substances in percent, in the order of BANDS.
SUBSTANCES: dict[str, tuple[float, ...]] = {
    "grass": (2.2, 3.2, 6.4, 4.2, 10.5, 27.0, 34.0, 36.0, 38.0, 38.5, 20.0, 9.5),
    "crop": (2.0, 2.8, 6.0, 3.4, 9.5, 30.0, 39.5, 41.5, 43.0, 43.5, 17.5, 7.5),
    "broadleaf": (1.6, 2.2, 4.6, 2.6, 8.0, 25.0, 32.0, 34.0, 35.5, 36.0, 15.5, 6.5),
    "alder": (1.6, 2.1, 4.2, 2.5, 7.4, 22.5, 29.0, 31.0, 32.5, 33.0, 14.0, 5.8),
    "spruce": (1.3, 1.7, 3.0, 1.9, 4.8, 12.5, 15.8, 17.0, 18.0, 18.5, 7.5, 3.4),
    "pine": (1.5, 2.1, 3.6, 2.6, 6.0, 14.5, 18.0, 19.2, 20.5, 21.0, 10.0, 4.9),
    "twigs": (2.4, 3.2, 4.6, 5.2, 7.6, 12.0, 14.0, 15.0, 16.5, 17.0, 16.0, 9.5),
    "litter": (3.0, 4.2, 6.4, 8.2, 11.5, 15.5, 17.5, 19.0, 21.0, 21.5, 26.0, 17.0),
    "straw": (4.2, 6.0, 9.4, 12.0, 15.5, 20.0, 22.5, 24.5, 27.0, 27.5, 31.5, 22.0),
    "ripe": (4.0, 5.8, 9.6, 11.6, 15.8, 22.0, 25.0, 27.0, 29.0, 29.5, 30.5, 20.0),
    "flower": (2.6, 3.8, 11.5, 9.5, 15.0, 29.0, 36.0, 38.0, 40.0, 40.5, 20.0, 9.5),
    "soil": (4.6, 6.0, 8.4, 11.0, 13.0, 14.5, 15.8, 17.0, 18.5, 19.0, 25.0, 21.0),
    "dark_soil": (3.2, 4.2, 5.8, 7.6, 9.2, 10.5, 11.6, 12.6, 14.0, 14.5, 19.5, 16.0),
    "peat": (2.2, 2.9, 4.0, 5.2, 6.4, 7.6, 8.6, 9.6, 10.8, 11.2, 14.5, 11.0),
    "sand": (9.0, 12.5, 17.0, 21.0, 23.0, 24.5, 25.5, 26.5, 27.5, 28.0, 35.0, 32.0),
    "gravel": (8.0, 10.5, 13.5, 16.0, 17.5, 18.5, 19.2, 20.0, 21.0, 21.5, 28.0, 26.0),
    "moss": (2.2, 3.4, 6.0, 5.6, 10.0, 17.0, 20.5, 22.5, 24.5, 25.0, 20.0, 10.5),
    "heather": (2.0, 2.8, 4.4, 4.4, 7.8, 14.5, 17.5, 19.0, 20.5, 21.0, 18.5, 10.5),
    "reed": (2.0, 3.0, 5.6, 4.4, 9.2, 20.0, 25.0, 27.0, 28.5, 29.0, 16.5, 8.0),
    "clear_water": (2.8, 2.4, 2.2, 1.3, 1.1, 0.9, 0.9, 0.8, 0.7, 0.7, 0.5, 0.4),
    "brown_water": (1.9, 1.9, 2.6, 2.5, 2.6, 1.9, 1.9, 1.7, 1.4, 1.2, 0.8, 0.6),
    "sea_water": (3.6, 3.2, 2.8, 1.6, 1.3, 1.0, 1.0, 0.9, 0.8, 0.8, 0.5, 0.4),
    "asphalt": (6.0, 7.2, 8.2, 9.0, 9.6, 10.4, 11.0, 11.6, 12.4, 12.8, 15.0, 13.8),
    "concrete": (9.5, 12.0, 14.2, 15.8, 16.6, 17.6, 18.4, 19.2, 20.0, 20.4, 24.5, 22.5),
    "tile_roof": (4.8, 5.8, 7.4, 12.0, 14.5, 16.0, 17.0, 18.0, 19.0, 19.5, 24.0, 22.0),
    "grey_roof": (8.0, 9.6, 10.8, 11.8, 12.4, 13.2, 13.8, 14.4, 15.0, 15.4, 18.0, 17.0),
    "metal_roof": (22.0, 27.0, 29.5, 31.0, 31.5, 32.5, 33.0, 33.5, 34.0, 34.0, 36.0, 33.0),
    "ash": (2.6, 3.0, 3.6, 4.4, 5.2, 6.4, 7.2, 8.0, 9.4, 9.8, 17.0, 16.5),
}


@dataclass(frozen=True)
class Material:
    """One material: ``green`` over ``spring`` background before the summer, over ``autumn`` background after it.

    The green share rises from ``low`` to ``high`` around day ``rise`` and falls around day ``fall``.
    """

    name: str
    green: str
    spring: str
    autumn: str
    low: float
    high: float
    rise: float = 125.0
    fall: float = 285.0
    cut: float = 0.0
    """Day of the year of a mowing (0: none), after which half of the green share is gone for a month."""


def _still(name: str, substance: str) -> Material:
    return Material(name, substance, substance, substance, 1.0, 1.0)


MATERIALS: tuple[Material, ...] = (
    _still("sea", "sea_water"),
    _still("lake", "brown_water"),
    _still("clear_lake", "clear_water"),
    _still("river", "brown_water"),
    _still("tile_roof", "tile_roof"),
    _still("grey_roof", "grey_roof"),
    _still("metal_roof", "metal_roof"),
    _still("asphalt", "asphalt"),
    _still("yard", "concrete"),
    Material("garden", "grass", "litter", "straw", 0.40, 0.80, 120, 290),
    Material("lawn", "grass", "litter", "straw", 0.50, 0.88, 113, 295),
    Material("street_tree", "broadleaf", "twigs", "twigs", 0.15, 0.80, 133, 280),
    _still("gravel", "gravel"),
    Material("building_site", "grass", "soil", "soil", 0.03, 0.12, 130, 280),
    _still("sand", "sand"),
    Material("winter_crop", "crop", "soil", "straw", 0.35, 0.95, 108, 194),
    Material("spring_crop", "crop", "soil", "straw", 0.05, 0.92, 150, 210),
    Material("rape", "flower", "soil", "ripe", 0.30, 0.92, 112, 191),
    Material("late_crop", "crop", "dark_soil", "soil", 0.04, 0.85, 172, 258),
    Material("ley", "grass", "litter", "straw", 0.40, 0.92, 112, 290, cut=166),
    Material("stubble", "grass", "soil", "straw", 0.06, 0.22, 140, 270),
    Material("pasture", "grass", "straw", "straw", 0.38, 0.84, 116, 285),
    Material("meadow", "grass", "straw", "straw", 0.32, 0.86, 122, 280, cut=184),
    Material("rough_grass", "grass", "straw", "ripe", 0.22, 0.68, 130, 262),
    Material("orchard", "broadleaf", "litter", "straw", 0.25, 0.66, 128, 280),
    _still("spruce", "spruce"),
    Material("pine", "pine", "twigs", "twigs", 0.90, 0.98, 130, 300),
    Material("birch", "broadleaf", "twigs", "twigs", 0.14, 0.92, 130, 272),
    Material("alder", "alder", "twigs", "twigs", 0.10, 0.92, 136, 280),
    Material("thicket", "broadleaf", "litter", "litter", 0.16, 0.74, 129, 274),
    Material("sapling", "pine", "litter", "straw", 0.38, 0.62, 130, 290),
    Material("slash", "grass", "litter", "litter", 0.08, 0.30, 140, 270),
    Material("herbs", "grass", "straw", "straw", 0.18, 0.66, 138, 258),
    Material("heath", "heather", "litter", "litter", 0.60, 0.85, 140, 290),
    Material("bog", "moss", "litter", "litter", 0.55, 0.85, 135, 290),
    Material("bog_pine", "pine", "heather", "heather", 0.45, 0.60, 130, 290),
    _still("pool", "clear_water"),
    Material("reed", "reed", "straw", "straw", 0.08, 0.85, 152, 262),
    Material("sedge", "reed", "peat", "straw", 0.20, 0.78, 140, 258),
    Material("burnt", "grass", "ash", "ash", 0.02, 0.12, 160, 280),
    Material("juniper", "pine", "straw", "ripe", 0.45, 0.66, 125, 290),
    Material("bare_peat", "grass", "peat", "peat", 0.02, 0.10, 140, 280),
)
INDEX = {m.name: k for k, m in enumerate(MATERIALS)}
WATER = frozenset(INDEX[n] for n in ("sea", "lake", "clear_lake", "river", "pool"))
BRIGHT = frozenset((INDEX["metal_roof"],))


def _step(x: float) -> float:
    return 0.5 + 0.5 * x / (1 + x * x) ** 0.5


def green_share(material: Material, doy: float, shift: float = 0.0, vigour: float = 0.0) -> float:
    """The share of green cover (0..1) at a day of the year, with a delay of ``shift`` days."""
    high = min(0.98, material.high * (1 + vigour))
    season = _step((doy - material.rise - shift) / 7.0) * _step((material.fall + shift - doy) / 9.0)
    share = material.low + (high - material.low) * season
    if material.cut and 0 <= doy - material.cut - shift < 32:
        share *= 0.5
    return share


def tables(doy: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Reflectance x 10000 of every material and variant on one day, and its change with vigour.

    Returns
    -------
    mean, slope : float32 arrays, dims (material * VARIANTS + variant, band)
        ``slope`` is what a 100 % higher green share adds.
    """
    rng = np.random.default_rng(77)
    spectra = {k: np.asarray(v) * 100.0 for k, v in SUBSTANCES.items()}
    mean = np.zeros((len(MATERIALS) * VARIANTS, len(BANDS)), np.float32)
    slope = np.zeros_like(mean)
    for k, m in enumerate(MATERIALS):
        for variant in range(VARIANTS):
            shift, vigour, wet = rng.normal(0, [4.0, 0.04, 0.05])
            green = green_share(m, doy, shift, vigour)
            late = _step((doy - 185 - shift) / 12.0)
            back = (1 - late) * spectra[m.spring] + late * spectra[m.autumn]
            back = back * (1 - wet * np.linspace(0.7, 1.6, len(BANDS)))
            row = k * VARIANTS + variant
            mean[row] = green * spectra[m.green] + (1 - green) * back
            slope[row] = spectra[m.green] - back
    return mean, slope
