"""How near composites come to the noise-free ground of the sample country, for every method.

    python benchmarks/composites.py [--size small|large] [--json FILE] [--picture FILE]

Makes the sample country, and every scene of 2018 twice more without cloud and shadow: as a faultless sensor sees the
ground (`surface`), and with haze and errors of calibration (`clear_sky`). All are read onto the national grid in the
same way, so that resampling is no error. Then, for each period, over all pixels that were seen:

rmse          of the composite against the truth: the median of the noise-free surfaces of all dates of the period
own           the mean over the bands of the same against the method's own truth: the method applied to the noise-free
              surfaces; of a method that takes whole observations, the noise-free surface on the day of the source
contaminated  share of pixels that no date explains: in some band outside of what the clear sky held on any date of the
              period, by more than three standard deviations of the sensor's noise
empty         share of pixels that have no observation
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import rasterio.features
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from geoflow.grid import Grid
from geoflow.imagery import (
    Catalog,
    CompositeOptions,
    Period,
    composite_tile,
    geomedian_composite,
    load_catalog,
    load_cube,
    percentile_composite,
    search,
    with_decisions,
)
from geoflow.inputs import NODATA
from geoflow.sample import make_sample
from geoflow.sample.geography import UtmTile, frame_of, frame_pixels, ground_window, tiles_of
from geoflow.sample.ground import make_ground
from geoflow.sample.landscape import PIXEL_M, Landscape
from geoflow.sample.scenes import GSD, Sensor, view, weather_of
from geoflow.sample.takes import TAKES

SIZES = {"small": "1000x760", "large": "2048x1280"}
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
METHODS = ("median", "p25", "medoid", "geomedian", "best")
PERIODS = (
    Period("spring", date(2018, 4, 1), date(2018, 6, 15)),
    Period("summer", date(2018, 6, 16), date(2018, 9, 30)),
    Period("season", date(2018, 4, 1), date(2018, 9, 30)),
)
SEED = 2018
MARGIN = 60

Items = Sequence[dict[str, Any]]


def main() -> None:
    """Make the country, compose it, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_sample(folder / "country", SIZES[arguments.size], SEED, patches=0)
        study = Study(folder, SIZES[arguments.size])
        rows = [row for period in PERIODS for row in study.measure(period)]
        print_table(rows)
        if arguments.picture:
            draw(study, PERIODS[-1], arguments.picture)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


class Study:
    """The sample country's scenes of 2018, as sensed and without their faults."""

    def __init__(self, folder: Path, size: str) -> None:
        country = folder / "country"
        self.catalog: Catalog = load_catalog("sample", str(country / "stac/catalog.json"))
        border = geopandas.read_file(country / "border.gpkg")
        self.area = Geometry(border.union_all(), border.crs)
        self.geobox: GeoBox = Grid.cover(self.area, "EPSG:3035", 10, 256, 128).geobox
        self.inside = rasterio.features.geometry_mask(
            [self.area.geom], self.geobox.shape, self.geobox.transform, invert=True
        )
        self.items: Items = with_decisions(
            search(self.catalog, self.area, "2018-04-01", "2018-09-30", 100, BANDS).items, self.catalog
        )
        files = write_faultless(folder, size)
        self.surface = {p.name: self._read(files["surface"], p) for p in PERIODS}
        self.clear_sky = {p.name: self._read(files["clear"], p) for p in PERIODS}

    def _of(self, period: Period) -> Items:
        return [item for item in self.items if period.holds(item)]

    def _read(self, folder: Path, period: Period) -> np.ndarray:
        """Faultless scenes of a period in place of the real ones: int16, dims (time, band, y, x)."""
        return load_cube(
            [faultless(i, folder, self.catalog) for i in self._of(period)], self.geobox, BANDS, self.catalog
        ).values

    def composite(self, period: Period, method: str) -> tuple[np.ndarray, np.ndarray | None]:
        """(reflectance, source) of one period."""
        options = CompositeOptions((period,), BANDS, method=method)
        made = composite_tile(self._of(period), self.geobox, options, self.catalog).compute().isel(period=0)
        return made.reflectance.values, made.source.values if "source" in made else None

    def truth(self, period: Period, method: str = "median", source: np.ndarray | None = None) -> np.ndarray:
        """What a method makes of the noise-free surfaces of a period, dims (band, y, x)."""
        stack = self.surface[period.name]
        if source is not None:
            days = [item["id"].split("_")[2] for item in self._of(period)]
            steps = sorted(set(days))
            step = np.array([steps.index(day) for day in days])[np.minimum(source, len(days) - 1)]
            return np.take_along_axis(stack, step[None, None].astype(np.int64), axis=0)[0]
        everywhere = np.ones((len(stack), *self.geobox.shape), bool)
        if method == "geomedian":
            return geomedian_composite(stack, everywhere)[0]
        return percentile_composite(stack, everywhere, 50 if method == "median" else int(method[1:]))[0]

    def single(self, period: Period) -> np.ndarray:
        """The least clouded scene of a period, as it is."""
        by_day: dict[str, list[dict[str, Any]]] = {}
        for item in self._of(period):
            by_day.setdefault(item["id"].split("_")[2], []).append(item)
        best = min(by_day.values(), key=lambda day: sum(i["properties"]["eo:cloud_cover"] for i in day) / len(day))
        return load_cube(best, self.geobox, BANDS, self.catalog).values[0]

    def measure(self, period: Period) -> list[dict[str, Any]]:
        """A row for a single scene and one for each method."""
        rows = [self._row(period, "single scene", self.single(period), None)]
        for method in METHODS:
            made, source = self.composite(period, method)
            own = self.truth(period, method, source)
            rows.append(self._row(period, method, made, own))
        return rows

    def _row(self, period: Period, name: str, made: np.ndarray, own: np.ndarray | None) -> dict[str, Any]:
        seen = self.inside & (made != NODATA).all(axis=0)
        error = made.astype(np.int32) - self.truth(period)
        stack = self.clear_sky[period.name]
        low, high = stack.min(axis=0), stack.max(axis=0)
        outside = (made < low - 3 * noise(low)) | (made > high + 3 * noise(high))
        return {
            "period": period.name,
            "dates": len(stack),
            "name": name,
            "rmse": {band: rms(error[b][seen]) for b, band in enumerate(BANDS)},
            "own": None if own is None else rms((made.astype(np.int32) - own)[:, seen]),
            "contaminated": float(outside.any(axis=0)[seen].mean()),
            "empty": float(1 - seen.sum() / self.inside.sum()),
        }


def noise(value: np.ndarray) -> np.ndarray:
    """Standard deviation of the sensor's noise, as `geoflow.sample.scenes.Sensor.band` makes it."""
    return 9 + 0.022 * np.abs(value.astype(np.float32))


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt((values.astype(np.float64) ** 2).mean()))


def faultless(item: dict[str, Any], folder: Path, catalog: Catalog) -> dict[str, Any]:
    """An item whose bands are the faultless ones of its day and tile, without an offset."""
    _, tile, day, _, _ = item["id"].split("_")
    assets = {
        **item["assets"],
        **{catalog.asset_key(b): {"href": str(folder / f"{tile}-{day}-{b}.tif")} for b in BANDS},
    }
    return {**item, "assets": assets, "properties": {**item["properties"], "geoflow:offset": {"add": 0}}}


def write_faultless(folder: Path, size: str) -> dict[str, Path]:
    """Every take of 2018 over every tile, as a faultless sensor sees the ground and through a clear sky."""
    frame = frame_of(size)
    tiles = tiles_of(frame)
    land = Landscape.found(SEED, frame.height * PIXEL_M, frame.width * PIXEL_M)
    ground = make_ground(land, *ground_window(tiles, frame), folder / "ground", 2)
    folders = {name: folder / name for name in ("surface", "clear")}
    for one in folders.values():
        one.mkdir()
    for tile in tiles:
        scene = view(ground, *frame_pixels(tile, frame, *(slice(-MARGIN, n + MARGIN) for n in tile.shape(10))))
        for number, take in enumerate(TAKES):
            if take.epoch != 2018:
                continue
            weather = weather_of(take, number, SEED, frame.height * 10.0, frame.width * 10.0)
            sensor = Sensor(take, weather, scene, (SEED, number))
            for band in BANDS:
                name = f"{tile.mgrs}-{take.day.replace('-', '')}-{band}.tif"
                for kind, values in (("surface", sensor.surface(band)), ("clear", sensor.clear_sky(band))):
                    write(folders[kind] / name, values, tile, band)
    return folders


def write(path: Path, values: np.ndarray, tile: UtmTile, band: str) -> None:
    """A band without its margin as a GeoTIFF."""
    gsd = GSD[band]
    edge = MARGIN * 10 // gsd
    pixels = np.clip(np.rint(values[edge:-edge, edge:-edge]), 1, 19000).astype(np.uint16)
    height, width = pixels.shape
    shape = {"height": height, "width": width, "count": 1, "dtype": "uint16", "nodata": 0}
    crs, transform = f"EPSG:{tile.epsg}", tile.transform(gsd)
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, tiled=True, **shape) as file:
        file.write(pixels, 1)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown, as docs/imagery.md shows it."""
    print(f"| period (dates) | method | {' | '.join(BANDS)} | own | contaminated | empty |")
    print("|---|---|" + "---|" * (len(BANDS) + 3))
    for row in rows:
        errors = " | ".join(f"{row['rmse'][band]:.0f}" for band in BANDS)
        own = "" if row["own"] is None else f"{row['own']:.0f}"
        where = f"{row['period']} ({row['dates']})"
        print(
            f"| {where} | {row['name']} | {errors} | {own} | {100 * row['contaminated']:.1f} % | "
            f"{100 * row['empty']:.1f} % |"
        )


def draw(study: Study, period: Period, path: Path, side: int = 260) -> None:
    """Truth, the least clouded scene and every method, in true colour, of one corner of the country."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    height, width = study.geobox.shape
    y, x = height // 2 - side // 2, width // 2 - side // 2
    part = (slice(y, y + side), slice(x, x + side))
    images = {"truth": study.truth(period), "single scene": study.single(period)}
    images |= {method: study.composite(period, method)[0] for method in METHODS}
    figure, axes = plt.subplots(2, 4, figsize=(10, 5.3), dpi=80, layout="constrained")
    for axis, (name, image) in zip(axes.flat, images.items(), strict=False):
        colour = np.stack([image[BANDS.index(b)][part] for b in ("B04", "B03", "B02")], axis=-1)
        shown = np.clip(colour / 1800, 0, 1) ** 0.7
        shown[(colour == NODATA).any(axis=-1)] = 1
        axis.imshow(shown, interpolation="nearest")
        axis.set_title(name, fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    figure.canvas.draw()
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]).quantize(96).save(path, optimize=True)
    plt.close(figure)


if __name__ == "__main__":
    main()
