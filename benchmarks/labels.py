"""How fast labels reach the grid, against the floor and against what users write.

    python benchmarks/labels.py [--size small|tile] [--json FILE]

Makes its own national file of polygons in EPSG:3035 (a mosaic of blobs of 60 vertices, over far more than the tile),
then measures in one run:

floor     rasterio.features.rasterize of the polygons that meet the tile, already read and in the tile's CRS
ours      geoflow.labels.load_labels: read with a spatial filter, reproject, order, rasterise
tenth     the same from a file with a tenth of the polygons: what memory depends on the size of the file
stage     geoflow.labels.load_label_tile, as the labels stage calls it: with margin, claims and distances to borders
usual     geopandas.read_file of the whole file, to_crs, rasterio.features.rasterize, as users write it
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio.raw
import rasterio
import rasterio.features
import shapely
from measuring import command_line, measure, report
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox
from rasterio.transform import from_origin

from geoflow.labels import load_label_tile, load_labels
from geoflow.legends import legend

SIZES = {"small": (1024, 20_000, 3), "tile": (4096, 100_000, 3)}  # tile px, polygons, repeats
CELL_M, VERTICES = 600.0, 60
LEFT, TOP = 4_600_000.0, 2_900_000.0  # EPSG:3035, southern Austria
TILE_CRS = "EPSG:32633"


def main() -> None:
    """Run all variants, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES)
    side, polygons, repeats = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as folder:
        source = make_polygons(Path(folder) / "national.gpkg", polygons)
        tile = make_tile(side, polygons)
        tenth = make_polygons(Path(folder) / "tenth.gpkg", polygons // 10)
        variants = polygon_variants(source, tile)
        variants["tenth"] = lambda: load_labels(tenth, make_tile(side, polygons // 10), "corine")
        pixels = {name: (run, side * side) for name, run in variants.items()}
        rows = [measure(name, run, count, repeats) for name, (run, count) in pixels.items()]
    seconds, peaks = {row.name: row.seconds for row in rows}, {row.name: row.peak_mb for row in rows}
    ratios = {
        "time_over_floor": seconds["ours"] / seconds["floor"],
        "stage_over_floor": seconds["stage"] / seconds["floor"],
        "speed_over_usual": seconds["usual"] / seconds["ours"],
        "mb_over_tenth_of_file": max(1.0, peaks["ours"]) / max(1.0, peaks["tenth"]),
    }
    title = f"{side} x {side} px, {polygons} polygons in the file, median of {repeats}"
    report(title, rows, ratios, arguments.json)


def make_polygons(path: Path, count: int) -> Path:
    """A mosaic of overlapping blobs, one a cell."""
    rng = np.random.default_rng(0)
    across = int(np.ceil(np.sqrt(count)))
    number = np.arange(count)
    centres = np.stack([LEFT + (number % across + 0.5) * CELL_M, TOP - (number // across + 0.5) * CELL_M], axis=1)
    angles = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    radii = CELL_M * rng.uniform(0.4, 0.75, (count, VERTICES))
    rings = centres[:, None] + radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    shapes = shapely.polygons(rings)
    codes = rng.choice(legend("corine").codes(), count).astype(str).astype(object)
    pyogrio.raw.write(str(path), shapely.to_wkb(shapes), [codes], ["Code_18"], geometry_type="Polygon", crs="EPSG:3035")
    return path


def make_tile(side: int, polygons: int) -> GeoBox:
    """A tile of 10 m pixels in the middle of the mosaic, in another CRS."""
    half = np.sqrt(polygons) * CELL_M / 2
    middle = BoundingBox(LEFT + half - 10, TOP - half - 10, LEFT + half + 10, TOP - half + 10, "EPSG:3035")
    bounds = middle.to_crs(TILE_CRS)
    x, y = (round(v / 10) * 10 for v in ((bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2))
    return GeoBox((side, side), from_origin(x - side * 5, y + side * 5, 10, 10), TILE_CRS)


def polygon_variants(source: Path, tile: GeoBox) -> dict[str, Callable[[], Any]]:
    """The ways of putting the polygons on the tile."""
    shape, transform = (tile.shape.y, tile.shape.x), tile.transform

    def rasterise(frame: geopandas.GeoDataFrame) -> np.ndarray:
        pairs = zip(frame.geometry, frame["Code_18"].astype(int), strict=True)
        return rasterio.features.rasterize(pairs, shape, transform=transform, dtype="uint16")

    placed = geopandas.read_file(source).to_crs(TILE_CRS)
    placed = placed[placed.intersects(tile.extent.geom)]
    return {
        "floor": lambda: rasterise(placed),
        "ours": lambda: load_labels(source, tile, "corine"),
        "stage": lambda: load_label_tile(source, tile, legend("corine")),
        "usual": lambda: rasterise(geopandas.read_file(source).to_crs(TILE_CRS)),
    }


if __name__ == "__main__":
    main()
