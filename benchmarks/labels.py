"""How fast labels reach the grid and the store, against the floor and against what users write.

    python benchmarks/labels.py [--size small|tile|granule] [--json FILE]

Makes its own national files of polygons in EPSG:3035 (mosaics of blobs of 60 vertices, over far more than the tile):
one with small polygons of some 36 ha, little more than CORINE's smallest unit, and one with large ones of 161 ha, the
mean of the real layer of Lanjarón. Then it measures in rounds of all variants, first for the small polygons:

floor     rasterio.features.rasterize of the polygons that meet the tile, already read and in the tile's CRS
ours      geoflow.labels.load_labels: read with a spatial filter, reproject, order, rasterise
tenth     the same from a file with a tenth of the polygons: what memory depends on the size of the file
usual     geopandas.read_file of the whole file, to_crs, rasterio.features.rasterize, as users write it
job       the task of a run: ours with a margin and claims, distances to borders, all levels, Zarr, receipt
plain     the same without distances and their margin
border    of the job: the distances alone
levels    of the job: the codes at all levels and the count of each class
write     of the job: the store alone, four arrays
write3    the same without the distances

then floor, ours, job and plain for the large polygons (large_floor and so on): the fewer they are, the less of a job is
rasterising, and the more of it the bare writing of pixels that `rasterize` does not do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio.raw
import rasterio
import rasterio.features
import shapely
from measuring import command_line, measure_alternately, ratio_of, report
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox
from rasterio.transform import from_origin

from geoflow.grid import Grid
from geoflow.jobs.layout import label_group
from geoflow.jobs.tasks import Task, perform
from geoflow.jobs.work import LabelWork, written
from geoflow.labels import border_distance, load_label_tile, load_labels
from geoflow.labels.borders import halo_px
from geoflow.labels.levels import codes_by_level
from geoflow.legends import legend
from geoflow.store.zarr import Store

SIZES = {"small": (1024, 20_000, 3), "tile": (4096, 100_000, 5), "granule": (10_240, 100_000, 3)}
"""Tile in px, polygons of the file, rounds."""

CHUNK = 512
CELL_M, LARGE_CELL_M, VERTICES = 600.0, 1270.0, 60
LEFT, TOP = 4_600_000.0, 2_900_000.0  # EPSG:3035, southern Austria
TILE_CRS = "EPSG:32633"
CORINE = legend("corine")


@dataclass(frozen=True)
class Case:
    """A national file, and a tile in its middle."""

    folder: Path
    side: int
    polygons: int
    cell_m: float

    @property
    def source(self) -> Path:
        """The file, made when it is first asked for."""
        path = self.folder / f"national-{self.polygons}-{self.cell_m:.0f}.gpkg"
        return path if path.exists() else make_polygons(path, self.polygons, self.cell_m)

    @property
    def tile(self) -> GeoBox:
        """The tile."""
        return make_tile(self.side, self.polygons, self.cell_m)


def main() -> None:
    """Run all variants, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES)
    side, polygons, rounds = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = (Case(folder, side, polygons, cell) for cell in (CELL_M, LARGE_CELL_M))
        tenth = Case(folder, side, polygons // 10, CELL_M)
        variants = {**rasterising(small), **storing(small), **parts(small)}
        variants["tenth"] = lambda: load_labels(tenth.source, tenth.tile, CORINE)
        variants |= {f"large_{n}": run for n, run in (rasterising(large) | storing(large)).items() if n != "usual"}
        rows, seconds = measure_alternately(variants, side * side, rounds)
    peaks = {row.name: row.peak_mb for row in rows}
    compared = {
        "time_over_floor": ("ours", "floor"),
        **{f"{name}_over_floor": (name, "floor") for name in ("job", "plain", "border", "levels", "write")},
        **{f"{name}_over_floor": (name, "large_floor") for name in ("large_ours", "large_job", "large_plain")},
        "write_share_of_job": ("write", "job"),
        "border_share_of_job": ("border", "job"),
        "speed_over_usual": ("usual", "ours"),
    }
    found = {name: ratio_of(seconds, a, b) for name, (a, b) in compared.items()}
    ratios = {name: middle for name, (middle, _, _) in found.items()}
    ratios["mb_over_tenth_of_file"] = max(1.0, peaks["ours"]) / max(1.0, peaks["tenth"])
    title = f"{side} x {side} px, {polygons} polygons in the file, median of {rounds}"
    report(title, rows, ratios, arguments.json)
    for name, (_, least, most) in found.items():
        print(f"{name:>24}  {least:.2f} to {most:.2f} over the rounds")


def make_polygons(path: Path, count: int, cell_m: float) -> Path:
    """A mosaic of overlapping blobs, one a cell."""
    rng = np.random.default_rng(0)
    across = int(np.ceil(np.sqrt(count)))
    number = np.arange(count)
    centres = np.stack([LEFT + (number % across + 0.5) * cell_m, TOP - (number // across + 0.5) * cell_m], axis=1)
    angles = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    radii = cell_m * rng.uniform(0.4, 0.75, (count, VERTICES))
    rings = centres[:, None] + radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    shapes = shapely.polygons(rings)
    codes = rng.choice(legend("corine").codes(), count).astype(str).astype(object)
    pyogrio.raw.write(str(path), shapely.to_wkb(shapes), [codes], ["Code_18"], geometry_type="Polygon", crs="EPSG:3035")
    return path


def make_tile(side: int, polygons: int, cell_m: float) -> GeoBox:
    """A tile of 10 m pixels in the middle of the mosaic, in another CRS."""
    half = np.sqrt(polygons) * cell_m / 2
    middle = BoundingBox(LEFT + half - 10, TOP - half - 10, LEFT + half + 10, TOP - half + 10, "EPSG:3035")
    bounds = middle.to_crs(TILE_CRS)
    x, y = (round(v / 10) * 10 for v in ((bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2))
    return GeoBox((side, side), from_origin(x - side * 5, y + side * 5, 10, 10), TILE_CRS)


def rasterising(case: Case) -> dict[str, Callable[[], Any]]:
    """The ways of putting the polygons on the tile."""
    source, tile = case.source, case.tile
    shape, transform = (tile.shape.y, tile.shape.x), tile.transform

    def rasterise(frame: geopandas.GeoDataFrame) -> np.ndarray:
        pairs = zip(frame.geometry, frame["Code_18"].astype(int), strict=True)
        return rasterio.features.rasterize(pairs, shape, transform=transform, dtype="uint16")

    placed = geopandas.read_file(source).to_crs(TILE_CRS)
    placed = placed[placed.intersects(tile.extent.geom)]
    return {
        "floor": lambda: rasterise(placed),
        "ours": lambda: load_labels(source, tile, CORINE),
        "usual": lambda: rasterise(geopandas.read_file(source).to_crs(TILE_CRS)),
    }


def storing(case: Case) -> dict[str, Callable[[], Any]]:
    """The task of a run, with and without distances to borders, on a store of one tile."""
    source, out = case.source, case.folder / f"run-{case.cell_m:.0f}"
    store = Store.create(out / "country.zarr", Grid(case.tile, case.side, CHUNK))
    store.ensure_group(label_group("clc", CORINE, source.name))
    tile = next(iter(store.grid.tiles()))
    work = LabelWork(store.path, tile.id, "labels/clc", source, None, CORINE)

    def plain() -> None:
        levels, _ = codes_by_level(load_labels(source, tile.geobox, CORINE).values, CORINE)
        written(store, "labels/clc", tile, {f"level{level}": codes for level, codes in levels.items()}, {})

    return {"job": lambda: perform(Task("labels", tile.id, "0", work), out), "plain": plain}


def parts(case: Case) -> dict[str, Callable[[], Any]]:
    """What a task does beside rasterising, each by itself."""
    margin = halo_px(10.0)
    wide = load_labels(case.source, case.tile.pad(margin), CORINE).values
    found = load_label_tile(case.source, case.tile, CORINE)
    levels = {f"level{level}": codes for level, codes in codes_by_level(found.codes, CORINE)[0].items()}
    store = Store.create(case.folder / "parts.zarr", Grid(case.tile, case.side, CHUNK))
    store.ensure_group(label_group("clc", CORINE, case.source.name))
    tile = next(iter(store.grid.tiles()))
    return {
        "border": lambda: border_distance(wide, 10.0),
        "levels": lambda: codes_by_level(found.codes, CORINE),
        "write": lambda: written(store, "labels/clc", tile, {**levels, "border_m": found.border_m}, {}),
        "write3": lambda: written(store, "labels/clc", tile, levels, {}),
    }


if __name__ == "__main__":
    main()
