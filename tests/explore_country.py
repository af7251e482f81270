"""A country of random classes, 96 x 80 pixels in chunks of 16, made in a moment: what it holds is known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

import geoflow as gf
from geoflow.grid import Grid
from geoflow.jobs import layout
from geoflow.legends import Legend
from geoflow.store.zarr import Group, Store

EPOCHS = ("2018", "2024")
TRANSFORM = Affine(10, 0, 5_120_000, 0, -10, 4_020_000)


def make_country(folder: Path, legend: Legend | None = None, shape: tuple[int, int] = (80, 96), seed: int = 0) -> Path:
    """``folder/country.zarr`` with maps and imagery of two epochs, labels and change; a tenth of it is nodata."""
    legend = legend or gf.legend("corine")
    rng = np.random.default_rng(seed)
    grid = Grid(GeoBox(shape, TRANSFORM, "EPSG:3035"), 32, 16)
    store = Store.create(folder / "country.zarr", grid)
    codes = {epoch: _codes(rng, legend, shape) for epoch in EPOCHS}
    for epoch in EPOCHS:
        group = layout.map_group(epoch, legend, {"model_sha256": "a" * 64, "attribution": "Nobody"})
        _write(store, group, {**_levels(legend, codes[epoch]), **_measures(rng, legend, codes[epoch])})
        periods = {"periods": {"summer": [f"{epoch}-06-01", f"{epoch}-08-31"]}, "composite": "median"}
        coords = {"period": ["summer"], "band": ["B02", "B03", "B04", "B08"]}
        reflectance = rng.integers(0, 3000, (1, 4, *shape)).astype(np.int16)
        clear = rng.integers(0, 9, (1, *shape)).astype(np.uint8)
        _write(store, layout.imagery_group(epoch, coords, periods), {"reflectance": reflectance, "clear": clear})
    labels = _codes(rng, legend, shape)
    border = rng.integers(0, 1000, shape).astype(np.int16)
    _write(store, layout.label_group("clc2018", legend, "x.gpkg"), {**_levels(legend, labels), "border_m": border})
    before, after = (codes[epoch] for epoch in EPOCHS)
    state = np.where((before == 0) | (after == 0), 0, np.where(before == after, 1, 2)).astype(np.uint8)
    changed = {
        "change": state,
        "from_code": np.where(state == 2, before, 0).astype(before.dtype),
        "to_code": np.where(state == 2, after, 0).astype(after.dtype),
        "confidence": np.where(state == 0, 255, 80).astype(np.uint8),
    }
    _write(store, layout.change_group(*EPOCHS, legend, {}), changed)
    return folder


def _codes(rng: np.random.Generator, legend: Legend, shape: tuple[int, int]) -> np.ndarray:
    found = rng.choice(np.array(legend.codes()[:12], legend.dtype(legend.deepest)), shape)
    found[rng.random(shape) < 0.1] = 0
    return found


def _levels(legend: Legend, codes: np.ndarray) -> dict[str, np.ndarray]:
    return {f"level{level}": legend.to_level(codes, level) for level in legend.levels}


def _measures(rng: np.random.Generator, legend: Legend, codes: np.ndarray) -> dict[str, np.ndarray]:
    seen = codes > 0
    second = np.roll(codes, 1, 0)
    return {
        "confidence": np.where(seen, rng.integers(20, 100, codes.shape), 255).astype(np.uint8),
        "margin": np.where(seen, rng.integers(0, 90, codes.shape), -128).astype(np.int8),
        "second": np.where(seen, second, 0).astype(codes.dtype),
        "clear": rng.integers(0, 9, codes.shape).astype(np.uint8),
    }


def _write(store: Store, group: Group, arrays: dict[str, Any]) -> None:
    store.ensure_group(group)
    for tile in store.grid.tiles():
        store.write(group.path, tile, {name: a[..., tile.y, tile.x] for name, a in arrays.items()})
