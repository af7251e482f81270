"""A folder of labelled patches like BigEarthNet v1, from ground of its own far from the sample country."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.crs
from affine import Affine
from numpy.typing import NDArray

from geoflow.legends import legend
from geoflow.sample import corine
from geoflow.sample import noise as nz
from geoflow.sample.ground import survey_block
from geoflow.sample.landscape import Codes, Landscape
from geoflow.sample.paint import Paint
from geoflow.sample.parallel import Workshop, run_all
from geoflow.sample.scenes import GSD, Sensor, View, Weather, cloud_field
from geoflow.sample.signatures import BANDS, INDEX, VARIANTS
from geoflow.sample.takes import Product, Take

PATCH = 120
GROUP = 4
"""Patches along the edge of a group that shares one scene."""
REGION = 5
"""Groups along the edge of a region of ground."""
EDGE = 24
LABEL_SHARE = 0.03
WRONG_SHARE = 0.03
CLOUDY_SHARE = 0.08

# Day, satellite, orbit, cloud cover, haze: the scenes that the patches are cut from. The winter one has snow.
_SCENES: tuple[tuple[str, str, int, float, float], ...] = (
    ("2017-06-13", "S2A", 22, 0.04, 0.3), ("2017-07-05", "S2B", 65, 0.02, 0.2), ("2017-08-18", "S2B", 122, 0.05, 0.4),
    ("2017-09-24", "S2B", 93, 0.03, 0.6), ("2018-04-20", "S2A", 136, 0.02, 0.6), ("2018-05-08", "S2A", 93, 0.04, 0.3),
    ("2018-05-10", "S2A", 36, 0.02, 0.2), ("2018-02-04", "S2B", 136, 0.02, 0.5),
)  # fmt: skip
_SNOW_DAY = "2018-02-04"
_TURNS = (0, 6, 1, 5, 3, 2, 4, 6, 1, 5, 0, 7, 2, 6, 4, 1, 3, 5, 0, 2)
_EVERGREEN = ("spruce", "pine", "bog_pine", "juniper", "sapling")


@dataclass(frozen=True)
class Patch:
    """One finished patch: ``given`` labels are those written, ``true`` those of the CORINE-like map (CLC codes)."""

    name: str
    given: tuple[int, ...]
    true: tuple[int, ...]
    cloudy: bool
    snowy: bool


def _take(number: int) -> Take:
    day, platform, orbit, cloud, haze = _SCENES[number]
    return Take(2018, day, platform, orbit, cloud, haze, 0.0, (Product("02.05", day.replace("-", "") + "T120000"),))


def _view(paint: Paint, y: slice, x: slice) -> View:
    def scaled(values: NDArray[np.int8]) -> NDArray[np.float32]:
        return values.astype(np.float32) * np.float32(1 / 250)

    rows, cols = np.meshgrid(
        np.arange(y.start, y.stop, dtype=np.int32), np.arange(x.start, x.stop, dtype=np.int32), indexing="ij"
    )
    return View(
        rows, cols, paint.before, paint.before, scaled(paint.tone), scaled(paint.vigour), scaled(paint.slope_y),
        scaled(paint.slope_x),
    )  # fmt: skip


def _snow(bands: dict[str, NDArray[np.uint16]], material: NDArray[np.intp], seed: int) -> None:
    """Cover a winter scene with snow, thinly under evergreens."""
    evergreen = np.isin(material // VARIANTS, [INDEX[n] for n in _EVERGREEN])
    cover = np.where(evergreen, 0.22, 0.80).astype(np.float32)
    white = dict(zip(BANDS, (78, 80, 79, 78, 76, 74, 73, 72, 70, 66, 12, 9), strict=True))
    for k, (name, values) in enumerate(bands.items()):
        factor = GSD[name] // 10
        share = cover[::factor, ::factor][: values.shape[0], : values.shape[1]]
        jitter = np.random.default_rng([seed, 71, k]).normal(0, 120, values.shape)
        mixed = values * (1 - share) + share * white[name] * 100 + jitter
        bands[name] = np.clip(np.rint(mixed), 1, 19000).astype(np.uint16)


@dataclass(frozen=True)
class _Region:
    """A square of ground for up to 400 patches, in UTM zone 35, with its own seed."""

    number: int
    seed: int
    groups: int

    @property
    def land(self) -> Landscape:
        size = REGION * GROUP * PATCH * 10.0
        return Landscape.found(self.seed, size, size, coast=self.number % 2 == 0)

    @property
    def left(self) -> float:
        return 604800.0 + 30000.0 * (self.number % 3)

    @property
    def top(self) -> float:
        return 6603720.0 + 30000.0 * (self.number // 3)

    def group(self, number: int) -> tuple[slice, slice]:
        side = GROUP * PATCH
        row, col = divmod(number, REGION)
        return slice(row * side, (row + 1) * side), slice(col * side, (col + 1) * side)


def write_patches(folder: Path, count: int, seed: int, shop: Workshop) -> list[Patch]:
    """Write ``count`` patches into a sample country, the official-style lists of bad ones, and the true labels."""
    done: list[Patch] = []
    per_region = (REGION * GROUP) ** 2
    for number in range(-(-count // per_region)):
        wanted = min(per_region, count - number * per_region)
        region = _Region(number, seed + 100_003 + number, -(-wanted // GROUP**2))
        done += _write_region(folder / "bigearthnet", region, wanted, shop.workers)
        shop.progress("patches", len(done), count)
    _write_lists(folder / "bigearthnet-lists", folder / "truth", done)
    return done


def _write_region(folder: Path, region: _Region, wanted: int, workers: int) -> list[Patch]:
    land = region.land
    rows = -(-region.groups // REGION) * GROUP * PATCH
    codes = np.zeros((rows, REGION * GROUP * PATCH), np.uint16)
    paints: dict[int, Paint] = {}

    def survey(number: int) -> None:
        y, x = region.group(number)
        wide = slice(y.start - EDGE, y.stop + EDGE), slice(x.start - EDGE, x.stop + EDGE)
        before, _, paints[number] = survey_block(land, *wide)
        codes[y, x] = before[EDGE:-EDGE, EDGE:-EDGE]

    run_all(survey, ((n,) for n in range(region.groups)), workers)
    drawn = corine.draw(corine.Cells.of(codes), corine.Drawing(seed=region.seed))
    map_10m = np.repeat(np.repeat(drawn, corine.STEP, axis=0), corine.STEP, axis=1)
    groups = ((folder, region, n, paints[n], map_10m, wanted) for n in range(region.groups))
    return [p for group in run_all(_write_group, groups, workers) for p in group]


@dataclass(frozen=True)
class _Scene:
    """What a group of patches is cut from: rendered bands, with `EDGE` pixels around, and the map of the region."""

    region: _Region
    group: int
    take: Take
    bands: dict[str, NDArray[np.uint16]]
    cloudy: NDArray[np.bool_]
    map_10m: Codes


def _write_group(folder: Path, region: _Region, number: int, paint: Paint, map_10m: Codes, wanted: int) -> list[Patch]:
    """Render the scene of a group and cut its patches."""
    y, x = region.group(number)
    wide = slice(y.start - EDGE, y.stop + EDGE), slice(x.start - EDGE, x.stop + EDGE)
    which = _TURNS[(number + 7 * region.number) % len(_TURNS)]
    take = _take(which)
    key = (region.seed * 17 + which) & 0x7FFFFFFF
    coarse = np.arange(0, REGION * GROUP * PATCH * 10.0, 100.0)
    weather = Weather(key, float(np.quantile(cloud_field(coarse, coarse, key), 1 - take.cloud)), region.seed, np.inf)
    sensor = Sensor(take, weather, _view(paint, *wide), (region.seed, which, number))
    bands = {name: sensor.band(name) for name in BANDS}
    if take.day == _SNOW_DAY:
        _snow(bands, sensor.material, region.seed)
    cloudy = (sensor.cloud > 0.15) | (sensor.shadow > 0.3)
    scene = _Scene(region, number, take, bands, cloudy, map_10m)
    places = range(min(GROUP**2, wanted - number * GROUP**2))
    return [_write_patch(folder, scene, *divmod(place, GROUP)) for place in places]


def _labels_of(codes: Codes) -> tuple[int, ...]:
    """The classes that cover at least `LABEL_SHARE` of a patch."""
    values, counts = np.unique(codes[codes > 0], return_counts=True)
    return tuple(int(v) for v, n in zip(values, counts, strict=True) if n >= LABEL_SHARE * codes.size)


def _write_patch(folder: Path, scene: _Scene, r: int, c: int) -> Patch:
    """Cut the patch at row ``r`` and column ``c`` of a group, and write it."""
    region, take = scene.region, scene.take
    y, x = region.group(scene.group)
    row, col = y.start // PATCH + r, x.start // PATCH + c
    side = REGION * GROUP
    place = f"{col + side * (region.number % 4)}_{row + side * (region.number // 4)}"
    name = f"{take.platform}_MSIL2A_{take.sensed}_{place}"
    true = _labels_of(scene.map_10m[row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH])
    given = _mistaken(true, nz.hash32(np.array([row]), np.array([col]), region.seed))
    left, top = region.left + col * PATCH * 10, region.top - row * PATCH * 10
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    for band, values in scene.bands.items():
        _write_tif(target / f"{name}_{band}.tif", _cut(values, r, c, GSD[band] // 10), GSD[band], left, top)
    _write_labels(target / f"{name}_labels_metadata.json", given, left, top, take)
    cloudy = float(_cut(scene.cloudy, r, c, 1).mean()) > CLOUDY_SHARE
    return Patch(name, given, true, cloudy, take.day == _SNOW_DAY)


def _cut(values: NDArray[Any], r: int, c: int, factor: int) -> NDArray[Any]:
    """One patch of a group's raster whose pixels are ``factor`` times 10 m wide."""
    size, edge = PATCH // factor, EDGE // factor
    return values[edge + r * size : edge + (r + 1) * size, edge + c * size : edge + (c + 1) * size]


def _write_tif(path: Path, values: NDArray[np.uint16], gsd: int, left: float, top: float) -> None:
    height, width = values.shape
    transform = Affine(gsd, 0, left, 0, -gsd, top)
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint16"}
    with rasterio.open(path, "w", crs=_utm(), transform=transform, **profile) as data:
        data.write(values, 1)


@cache
def _utm() -> rasterio.crs.CRS:
    return rasterio.crs.CRS.from_epsg(32635)


def _mistaken(true: tuple[int, ...], lot: NDArray[np.uint32]) -> tuple[int, ...]:
    """The labels, or for a few patches labels of which one is another class."""
    if float(nz.unit(nz.mix(lot, 1))[0]) >= WRONG_SHARE or not true:
        return true
    others = [c for c in (112, 211, 231, 312, 311, 412, 512, 523, 121) if c not in true]
    wrong = others[int(nz.mix(lot, 2)[0]) % len(others)]
    out = int(nz.mix(lot, 3)[0]) % len(true)
    return tuple(sorted((*true[:out], *true[out + 1 :], wrong)))


def _write_labels(path: Path, codes: tuple[int, ...], left: float, top: float, take: Take) -> None:
    """The metadata file of a patch, with the fields of BigEarthNet v1."""
    names = legend("bigearthnet-43")
    day, time = take.sensed.split("T")
    side = PATCH * 10
    value = {
        "labels": [names.label(code) for code in codes],
        "coordinates": {"ulx": int(left), "uly": int(top), "lrx": int(left) + side, "lry": int(top) - side},
        "projection": _utm().to_wkt(version="WKT1_GDAL"),
        "tile_source": f"{take.platform}_MSIL1C_{take.sensed}_N0205_R{take.orbit:03d}_T35VPG_{day}T120000.SAFE",
        "acquisition_date": f"{take.day} {time[:2]}:{time[2:4]}:{time[4:]}",
    }
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _write_lists(lists: Path, truth: Path, patches: list[Patch]) -> None:
    lists.mkdir(parents=True, exist_ok=True)
    for name, chosen in (
        ("patches_with_cloud_and_shadow.csv", [p.name for p in patches if p.cloudy]),
        ("patches_with_seasonal_snow.csv", [p.name for p in patches if p.snowy]),
    ):
        (lists / name).write_text("".join(f"{n}\n" for n in sorted(chosen)), encoding="utf-8")
    truth.mkdir(parents=True, exist_ok=True)
    with (truth / "patches_wrong_labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patch", "given", "true"])
        for p in sorted(patches, key=lambda p: p.name):
            if p.given != p.true:
                writer.writerow([p.name, " ".join(map(str, p.given)), " ".join(map(str, p.true))])
