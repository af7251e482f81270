"""How hard the sample country is, measured, so that no accuracy claim made on it is cheap.

Single pixels must not give the classes away (a random forest on them stays in set ranges), and space must: a
classifier that sees the
surroundings, and learned from the CORINE-like map, must beat that map. Training and test pixels come from different
blocks of ground.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from scipy import ndimage

from geoflow.sample.signatures import BANDS
from geoflow.sample.stac import COLLECTION

NODATA = -32768
CLEAR_SCL = (2, 4, 5, 6, 7)
Cube = NDArray[np.int16]
Codes = NDArray[np.uint16]

TARGETS: dict[str, tuple[float, float]] = {
    "rgb_level1": (0.70, 0.85),
    "rgb_level3": (0.35, 0.60),
    "all_level1": (0.85, 0.94),
    "all_level3": (0.55, 0.78),
    "corine_level1": (0.84, 0.90),
    "corine_level3": (0.82, 0.87),
    "context_gain_level1": (0.04, 1.0),
    "context_gain_level3": (0.01, 1.0),
}
"""What each figure must lie in; the gains are those of the context classifier over the CORINE-like map, on held-out
blocks."""


@dataclass(frozen=True)
class Scene2018:
    """One date: ``bands`` int16 reflectance x 10000, dims (band, y, x), `NODATA` where it was not clear; ``doy`` its
    day."""

    doy: int
    cloud: float
    bands: Cube


def read_scenes(folder: Path, height: int, width: int, transform: Any) -> list[Scene2018]:
    """The scenes of 2018 on the truth's grid, offsets removed as the truth tells, duplicates left out."""
    state = {s["id"]: s for s in json.loads((folder / "truth" / "scenes.json").read_text("utf-8"))}
    by_day: dict[str, list[str]] = {}
    for name in sorted(state):
        if name.split("_")[2].startswith("2018") and name.split("_")[3] == "0":
            by_day.setdefault(name.split("_")[2], []).append(name)
    grid = {"crs": "EPSG:3035", "transform": transform, "height": height, "width": width}
    out = []
    for day, names in sorted(by_day.items()):
        cube = np.full((len(BANDS), height, width), NODATA, np.int16)
        for name in names:
            _fill(cube, folder / "stac" / COLLECTION / name, state[name]["offset_in_pixels"], grid)
        doy = (
            int((np.datetime64(f"{day[:4]}-{day[4:6]}-{day[6:]}") - np.datetime64(f"{day[:4]}-01-01")).astype(int)) + 1
        )
        out.append(Scene2018(doy, float(state[names[0]]["cloud_share_of_country"]), cube))
    return out


def _fill(cube: Cube, item: Path, offset: int, grid: dict[str, Any]) -> None:
    """Put a scene's clear pixels where the cube is still empty."""

    def read(name: str) -> NDArray[Any]:
        with (
            rasterio.open(item / f"{name}.tif") as source,
            WarpedVRT(source, resampling=Resampling.nearest, **grid) as warped,
        ):
            values: NDArray[Any] = warped.read(1)
            return values

    put = np.isin(read("SCL"), CLEAR_SCL) & (cube[0] == NODATA)
    for b, band in enumerate(BANDS):
        values = read(band).astype(np.int32) - offset
        cube[b][put] = values[put].astype(np.int16)


def blocks_held_out(shape: tuple[int, int], block_px: int = 128) -> NDArray[np.bool_]:
    """A checkerboard of blocks: True where pixels are kept for the test."""
    r, c = np.arange(shape[0]) // block_px, np.arange(shape[1]) // block_px
    return (r[:, None] + c[None, :]) % 2 == 1


def _pick(mask: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.int64]:
    at = np.flatnonzero(mask.ravel())
    return np.sort(np.random.default_rng(seed).choice(at, min(count, at.size), replace=False))


def pixel_forest(
    features: NDArray[np.float32], truth: Codes, held_out: NDArray[np.bool_], count: int
) -> dict[int, float]:
    """Overall accuracy at levels 1 and 3 of random forests on single pixels, trained on true labels of other blocks.

    ``features`` has dims (feature, y, x) with NaN where nothing was seen.
    """
    from sklearn.ensemble import RandomForestClassifier

    seen = (truth > 0) & ~np.isnan(features).all(axis=0)
    train, test = _pick(seen & ~held_out, count, 1), _pick(seen & held_out, count, 2)
    flat, codes = features.reshape(len(features), -1), truth.ravel()
    out = {}
    for level, divisor in ((1, 100), (3, 1)):
        forest = RandomForestClassifier(100, min_samples_leaf=3, n_jobs=2, random_state=0)
        forest.fit(flat[:, train].T, codes[train] // divisor)
        out[level] = float((forest.predict(flat[:, test].T) == codes[test] // divisor).mean())
    return out


def composite(scenes: list[Scene2018], bands: tuple[str, ...]) -> NDArray[np.float32]:
    """Median of the clear observations, dims (band, y, x), NaN where there is none."""
    import warnings

    out = []
    for band in bands:
        stack = np.stack([s.bands[BANDS.index(band)] for s in scenes]).astype(np.float32)
        stack[stack == NODATA] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            out.append(np.nanmedian(stack, axis=0))
    return np.stack(out)


def surroundings(image: NDArray[np.float32], windows: tuple[int, ...] = (5, 15, 31)) -> NDArray[np.float32]:
    """The image with the mean and spread of each band in square windows, dims (feature, y, x)."""
    filled = np.where(np.isnan(image), np.nanmean(image, axis=(1, 2), keepdims=True), image)
    out = [image]
    for side in windows:
        mean = np.stack([ndimage.uniform_filter(b, side) for b in filled])
        square = np.stack([ndimage.uniform_filter(b * b, side) for b in filled])
        out += [mean, np.sqrt(np.maximum(square - mean * mean, 0))]
    return np.concatenate(out)


def context_classifier(
    features: NDArray[np.float32], corine: Codes, truth: Codes, held_out: NDArray[np.bool_], count: int
) -> dict[int, float]:
    """Accuracy against the truth in held-out blocks of a classifier that learned from the CORINE-like map in other
    blocks."""
    from sklearn.ensemble import ExtraTreesClassifier

    train = _pick((corine > 0) & (truth > 0) & ~held_out, count, 3)
    test = _pick((truth > 0) & held_out, count, 4)
    flat, labels, codes = features.reshape(len(features), -1), corine.ravel(), truth.ravel()
    trees = ExtraTreesClassifier(80, min_samples_leaf=3, max_features=0.4, n_jobs=2, random_state=0)
    trees.fit(np.nan_to_num(flat[:, train].T), labels[train])
    shares = trees.predict_proba(np.nan_to_num(flat[:, test].T))
    groups = trees.classes_ // 100
    coarse = np.unique(groups)
    summed = np.stack([shares[:, groups == g].sum(axis=1) for g in coarse], axis=1)
    level1 = coarse[summed.argmax(axis=1)] == codes[test] // 100
    level3 = trees.classes_[shares.argmax(axis=1)] == codes[test]
    return {1: float(level1.mean()), 3: float(level3.mean())}


def measure(
    scenes: list[Scene2018], truth: Codes, corine: Codes, pixels: int = 30000, context_pixels: int = 50000
) -> dict[str, float]:
    """All figures of `TARGETS`, and the accuracies behind the gains."""
    held_out = blocks_held_out(truth.shape)
    clear = [s for s in scenes if s.cloud < 0.3]
    best = min(clear, key=lambda s: s.cloud)
    rgb = np.where(best.bands == NODATA, np.nan, best.bands)[[3, 2, 1]].astype(np.float32)
    every = np.concatenate([np.where(s.bands == NODATA, np.nan, s.bands).astype(np.float32) for s in clear])
    one, many = pixel_forest(rgb, truth, held_out, pixels), pixel_forest(every, truth, held_out, pixels)
    del every
    bands = ("B02", "B03", "B04", "B05", "B08", "B11", "B12")
    spring, summer = [s for s in scenes if s.doy <= 166], [s for s in scenes if s.doy > 166]
    image = np.concatenate([composite(spring, bands), composite(summer, bands)])
    context = context_classifier(surroundings(image), corine, truth, held_out, context_pixels)
    inside, judged = truth > 0, (truth > 0) & held_out
    out = {}
    for level, divisor in ((1, 100), (3, 1)):
        same = truth // divisor == corine // divisor
        out[f"rgb_level{level}"], out[f"all_level{level}"] = one[level], many[level]
        out[f"corine_level{level}"] = float(same[inside].mean())
        out[f"corine_held_out_level{level}"] = float(same[judged].mean())
        out[f"context_level{level}"] = context[level]
        out[f"context_gain_level{level}"] = context[level] - float(same[judged].mean())
    return out


def measure_folder(folder: Path) -> dict[str, float]:
    """`measure` of a sample country on disk."""
    import geopandas
    from rasterio.features import rasterize

    with rasterio.open(folder / "truth" / "landcover_2018.tif") as source:
        truth, transform = source.read(1), source.transform
    drawn = geopandas.read_file(folder / "corine" / "clc2018.gpkg")
    shapes = [(g, int(c)) for g, c in zip(drawn.geometry, drawn["Code_18"], strict=True)]
    corine = rasterize(shapes, out_shape=truth.shape, transform=transform, dtype="uint16")
    height, width = truth.shape
    return measure(read_scenes(folder, height, width, transform), truth, corine)
