"""How fast scenes become a composite, against the floor and against what users write.

    python benchmarks/imagery.py [--size small|task|raw|medium|tile] [--only NAME,NAME] [--json FILE]

Makes its own scenes (COGs, deflate, on the grid of the result), then measures in rounds of all variants:

floor     the same windows read with plain rasterio and two threads, nothing else
ours      geoflow.imagery.composite_tile: mask with its margin, offset, integer median, count of clear observations;
          tile by tile, one thread a tile, as the tasks of a job are
warped    ours, with the scenes reprojected from UTM to EPSG:3035
usual     stackstac.stack(...).where(...).median("time") as its users write it
peer      odc.stac.load(...).where(...).median("time") as its users write it

The table has medians, and of each ratio the median and the range of the rounds. Size ``task`` is a tile of a job,
``raw`` the same from files without compression, whose reading costs little, ``tile`` one of Sentinel-2's: for that say
``--only floor,ours``, since the usual way would need some tens of GB.
Floor and ours have the settings of malloc that geoflow gives its workers, the others those that their users have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pystac
import rasterio
import rasterio.shutil
from measuring import OtherProcess, chosen_of, command_line, measure_alternately, ratio_of, report, with_environment
from odc.geo.geobox import GeoBox
from odc.geo.geom import box
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from geoflow.imagery import CompositeOptions, Period, composite_tile, load_catalog
from geoflow.jobs.clusters import WORKER_ENVIRONMENT

TILE = 2048  # pixels a side of a job's tiles; a size that is one tile is composed by one thread
SIZES = {
    "small": (1024, 4, 5),
    "task": (2048, 4, 5),
    "raw": (2048, 4, 5),
    "medium": (4096, 4, 5),
    "six": (4096, 6, 3),
    "tile": (10980, 4, 5),
}
"""Pixels a side, scenes, rounds."""

BANDS = ("B02", "B03", "B04", "B08")
THREADS = 2
LEFT, TOP, EPSG = 500_000, 5_200_020, 32633


def main() -> None:
    """Run all variants, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES, choice=True)
    side, scenes, rounds = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as folder:
        items = make_scenes(Path(folder), side, scenes, "NONE" if arguments.size == "raw" else "DEFLATE")
        pixels = side * side * len(BANDS)
        users = OtherProcess(usual_ways, (items, side), WORKER_ENVIRONMENT)
        every = variants(items, side) | {name: partial(users.run, name) for name in ("usual", "peer")}
        chosen = chosen_of(every, arguments.only)
        rows, seconds = measure_alternately(chosen, pixels, rounds)
    compared = {
        "time_over_floor": ("ours", "floor"),
        "warped_time_over_floor": ("warped", "floor"),
        "speed_over_usual": ("usual", "ours"),
        "speed_over_peer": ("peer", "ours"),
    }
    found = {name: ratio_of(seconds, a, b) for name, (a, b) in compared.items() if a in seconds and b in seconds}
    title = f"{side} x {side} px, {scenes} scenes, {len(BANDS)} bands, {THREADS} threads, median of {rounds}"
    report(title, rows, {name: middle for name, (middle, _, _) in found.items()}, arguments.json)
    for name, (_, least, most) in found.items():
        print(f"{name:>24}  {least:.2f} to {most:.2f} over the rounds")


def make_scenes(folder: Path, side: int, scenes: int, compress: str = "DEFLATE") -> list[dict[str, Any]]:
    """Frozen items whose files hold noise around a smooth ground, and clouds in a fifth of each scene."""
    catalog = load_catalog("sample")
    bounds = transform_bounds(f"EPSG:{EPSG}", "EPSG:4326", LEFT, TOP - side * 10, LEFT + side * 10, TOP)
    items = []
    for number in range(scenes):
        rng = np.random.default_rng(number)
        assets = {}
        for band in BANDS:
            pixels = 800 + 400 * np.sin(np.arange(side) / 50)[:, None] + rng.normal(0, 60, (side, side))
            assets[catalog.asset_key(band)] = write(
                folder / f"{number}-{band}.tif", pixels.astype(np.uint16), 10, compress
            )
        scl = np.full((side // 2, side // 2), 4, np.uint8)
        scl[:, number * side // 10 : (number + 1) * side // 10] = 9
        assets[catalog.scl] = write(folder / f"{number}-SCL.tif", scl, 20, compress)
        properties = {"datetime": f"2024-06-{number + 1:02d}T10:00:00Z", "geoflow:offset": {"add": 0}}
        properties["proj:epsg"] = EPSG
        items.append(
            {"type": "Feature", "stac_version": "1.0.0", "id": str(number), "bbox": list(bounds), "links": []}
            | {"geometry": box(*bounds, "EPSG:4326").json, "properties": properties, "assets": assets}
        )
    return items


def write(path: Path, pixels: np.ndarray, gsd: int, compress: str) -> dict[str, Any]:
    """A COG; returns the asset that points at it."""
    height, width = pixels.shape
    transform = from_origin(LEFT, TOP, gsd, gsd)
    profile = {"height": height, "width": width, "count": 1, "dtype": pixels.dtype, "nodata": 0}
    plain = path.with_suffix(".plain.tif")
    with rasterio.open(plain, "w", driver="GTiff", crs=f"EPSG:{EPSG}", transform=transform, **profile) as file:
        file.write(pixels, 1)
    how = {} if compress == "NONE" else {"predictor": "YES"}
    rasterio.shutil.copy(plain, path, driver="COG", compress=compress, blocksize=512, **how)
    plain.unlink()
    fields = {"proj:shape": [height, width], "proj:transform": list(transform)[:6]}
    return {"href": str(path), "type": "image/tiff; application=geotiff", **fields}


def variants(items: list[dict[str, Any]], side: int) -> dict[str, Callable[[], Any]]:
    """What is measured, by name; each ends with the result in memory."""
    catalog = load_catalog("sample")
    native = native_grid(side)
    inner = transform_bounds(native.crs, "EPSG:3035", *native.boundingbox)
    x, y = ((inner[i] + inner[i + 2]) / 2 // 10 * 10 - side * 5 for i in (0, 1))
    laea = GeoBox.from_bbox((x, y, x + side * 10, y + side * 10), "EPSG:3035", resolution=10, tight=True)
    options = CompositeOptions((Period("june", date(2024, 6, 1), date(2024, 6, 30)),), BANDS)
    keys = [catalog.asset_key(band) for band in BANDS]
    return {
        "floor": lambda: read_plainly(items, [*keys, catalog.scl], side),
        "ours": lambda: by_tiles(native, lambda g: composite_tile(items, g, options, catalog).compute(num_workers=1)),
        "warped": lambda: by_tiles(laea, lambda g: composite_tile(items, g, options, catalog).compute(num_workers=1)),
    }


def usual_ways(items: list[dict[str, Any]], side: int) -> dict[str, Callable[[], Any]]:
    """What is measured in a process of its own, as its users start it: without settings of ours."""
    dask.config.set(scheduler="threads", num_workers=THREADS)
    catalog = load_catalog("sample")
    keys, native = [catalog.asset_key(band) for band in BANDS], native_grid(side)
    return {"usual": lambda: with_stackstac(items, keys, native), "peer": lambda: with_odc(items, keys, native)}


def native_grid(side: int) -> GeoBox:
    """The grid that the scenes lie on."""
    return GeoBox((side, side), from_origin(LEFT, TOP, 10, 10), f"EPSG:{EPSG}")


def by_tiles(geobox: GeoBox, run: Callable[[GeoBox], Any]) -> None:
    """Composite tile by tile, as the tasks of a job do, so that memory stays bounded."""
    height, width = geobox.shape
    corners = [(row, col) for row in range(0, height, TILE) for col in range(0, width, TILE)]

    def one(corner: tuple[int, int]) -> None:
        row, col = corner
        run(geobox[row : min(row + TILE, height), col : min(col + TILE, width)])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, corners))


def read_plainly(items: list[dict[str, Any]], keys: list[str], side: int) -> None:
    """Every window of every file, with rasterio and a thread pool."""

    def read(href: str) -> None:
        with rasterio.open(href) as file:
            step = TILE * file.width // side
            for row in range(0, file.height, step):
                for col in range(0, file.width, step):
                    file.read(1, window=rasterio.windows.Window(col, row, step, step))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, [item["assets"][key]["href"] for item in items for key in keys]))


def with_stackstac(items: list[dict[str, Any]], keys: list[str], geobox: GeoBox) -> Any:
    """As in stackstac's documentation: float64 and NaN."""
    import stackstac

    place: dict[str, Any] = {"epsg": EPSG, "bounds": tuple(geobox.boundingbox), "resolution": 10, "rescale": False}
    stack = stackstac.stack(items, assets=[*keys, "scl"], **place)
    scl = stack.sel(band="scl", drop=True)
    return stack.sel(band=keys).where(~scl.isin([0, 1, 3, 8, 9, 10])).median("time").compute()


def with_odc(items: list[dict[str, Any]], keys: list[str], geobox: GeoBox) -> Any:
    """As in odc-stac's documentation."""
    import odc.stac

    coded = [{**item, "properties": {**item["properties"], "proj:code": f"EPSG:{EPSG}"}} for item in items]
    ready = [pystac.Item.from_dict({**item, "stac_extensions": []}, preserve_dict=True) for item in coded]
    chunks = {"x": 1024, "y": 1024}
    cube = odc.stac.load(ready, bands=[*keys, "scl"], geobox=geobox, chunks=chunks, dtype="uint16", nodata=0)
    return cube[keys].where(~cube.scl.isin([0, 1, 3, 8, 9, 10])).median("time").compute()


if __name__ == "__main__":
    with_environment(WORKER_ENVIRONMENT)
    main()
