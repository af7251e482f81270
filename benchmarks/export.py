"""Writing a class map as a COG: time and peak memory against a plain copy of the same pixels.

    python benchmarks/export.py [--size small|tile|country] [--json FILE] [--only NAME,NAME]

``ours`` reads the store block by block and numbers the classes. ``copy`` is the floor: GDAL's own copy of a GeoTIFF
that is there already with the same numbers, to a COG with the same options. ``usual`` is rioxarray's
``to_raster(driver="COG")``, which needs the whole map in memory, and loses the palette; it is left out at the size of a
country.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from measuring import chosen_of, command_line, measure, report
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from geoflow.exports.clip import Clip
from geoflow.exports.coding import Coding
from geoflow.exports.cog import GDAL_CACHE_BYTES, Raster, cog_options, write_cog
from geoflow.grid import Grid
from geoflow.jobs.layout import generalised_group
from geoflow.legends import legend
from geoflow.store.zarr import Store

SIZES = {"small": 4096, "tile": 10980, "country": 21504}
"""Pixels along each side; the last is 462 million pixels, Estonia at 10 m."""

REPEATS = {"small": 3, "tile": 3, "country": 1}
GROUP = "generalised/made/2018"
CORINE = legend("corine")


def make(side: int, folder: Path) -> tuple[Store, Path]:
    """A store with a map of patches with ragged edges, and its pixels as a GeoTIFF with the numbers of the EEA."""
    grid = Grid(GeoBox((side, side), Affine(10, 0, 4_000_000, 0, -10, 4_500_000), "EPSG:3035"), 2048, 512)
    store, coding = Store.create(folder / "country.zarr", grid), Coding(CORINE, 3)
    store.ensure_group(generalised_group("made", "2018", CORINE, {}))
    codes = np.array(CORINE.codes(), np.uint16)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8", "nodata": 0,
               "crs": "EPSG:3035", "transform": grid.geobox.transform, "tiled": True, "blockxsize": 256,
               "blockysize": 256}  # fmt: skip
    with rasterio.open(folder / "plain.tif", "w", **profile) as plain:
        plain.write_colormap(1, {c.value: (*c.colour, 255) for c in coding.classes})
        for tile in grid.tiles():
            random = np.random.default_rng([tile.y.start, tile.x.start])
            height, width = tile.shape
            coarse = random.integers(0, len(codes), (-(-height // 24) + 1, -(-width // 24) + 1))
            y, x = np.indices(tile.shape) + random.integers(0, 7, (2, height, width))
            level3 = codes[coarse[y // 24, x // 24]]
            arrays = {f"level{n}": CORINE.to_level(level3, n) for n in (1, 2, 3)}
            store.write(GROUP, tile, arrays)
            window = Window(tile.x.start, tile.y.start, width, height)
            plain.write(coding.encode(level3), 1, window=window)
    return store, folder / "plain.tif"


def main() -> None:
    args = command_line(__doc__, SIZES, choice=True)
    side = SIZES[args.size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, plain = make(side, folder)
        coding, clip = Coding(CORINE, 3), Clip(store.grid, slice(0, side), slice(0, side))
        array = store.dataset(GROUP, dask=False)["level3"]
        palette = {c.value: c.colour for c in coding.classes}
        raster = Raster(
            lambda block: coding.encode(array[block.rows, block.cols].values)[None], clip, "uint8", 0, ("map",), True,
            palette,
        )  # fmt: skip
        threads = len(os.sched_getaffinity(0))

        def copy() -> None:
            with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_NUM_THREADS=str(threads)):
                rasterio.shutil.copy(plain, folder / "copy.tif", **cog_options(raster, threads))

        def usual() -> None:
            import rioxarray  # noqa: F401  (the .rio accessor)

            store.dataset(GROUP)["level3"].rio.to_raster(
                folder / "usual.tif", driver="COG", compress="DEFLATE", overview_resampling="MODE", num_threads=threads
            )

        variants = {"copy": copy, "ours": lambda: write_cog(raster, folder / "ours.tif"), "usual": usual}
        if args.size == "country" and args.only is None:
            del variants["usual"]
        chosen = chosen_of(variants, args.only)
        rows = [measure(name, run, side * side, REPEATS[args.size]) for name, run in chosen.items()]
        if {"ours", "copy"} <= set(chosen):
            with rasterio.open(folder / "ours.tif") as ours, rasterio.open(plain) as there:
                for _, window in there.block_windows(1):
                    assert (ours.read(1, window=window) == there.read(1, window=window)).all()
    seconds = {row.name: row.seconds for row in rows}
    ratios = {}
    if "ours" in seconds and "copy" in seconds:
        ratios["time_over_floor"] = seconds["ours"] / seconds["copy"]
    if "ours" in seconds and "usual" in seconds:
        ratios["speed_over_usual"] = seconds["usual"] / seconds["ours"]
    report(f"COG of a class map, {side} x {side} px", rows, ratios, args.json)


if __name__ == "__main__":
    main()
