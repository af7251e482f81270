"""From the ground to the static STAC catalog: every pass over every tile, written as COGs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from shapely.geometry import Polygon

from geoflow.sample import cog
from geoflow.sample.geography import CRS, Frame, UtmTile, frame_pixels
from geoflow.sample.ground import Ground, blocks
from geoflow.sample.parallel import Progress, Workshop, run_all
from geoflow.sample.scenes import GSD, Sensor, View, Weather, view, weather_of
from geoflow.sample.signatures import BANDS
from geoflow.sample.stac import COLLECTION, SceneRecord, write_catalog, write_json
from geoflow.sample.takes import TAKES, Take

BLOCK = 1560
MARGIN = 60
"""Pixels rendered around a block and thrown away, so that blocks leave no seam; both are multiples of 60."""


@dataclass(frozen=True)
class Pass:
    """One take over one tile, on its way to disk."""

    number: int
    take: Take
    weather: Weather
    tile: UtmTile
    drafts: Path
    histogram: NDArray[np.int64]

    def files(self) -> dict[str, Any]:
        """Open drafts of all bands and the SCL."""
        crs = f"EPSG:{self.tile.epsg}"
        spec = {**{b: (GSD[b], "uint16") for b in BANDS}, "SCL": (20, "uint8")}
        return {
            name: cog.draft(self.drafts / f"{name}.tif", self.tile.shape(gsd), dtype, crs, self.tile.transform(gsd), 0)
            for name, (gsd, dtype) in spec.items()
        }


def _padded(part: slice) -> slice:
    return slice(part.start - MARGIN, part.stop + MARGIN)


def _render(one: Pass, files: dict[str, Any], scene: View, y: slice, x: slice) -> None:
    """Render one block of one pass and write it into its drafts."""
    sensor = Sensor(one.take, one.weather, scene, (one.weather.seed, one.number, one.tile.zone, y.start, x.start))
    rendered = {name: sensor.band(name) for name in BANDS}
    scl = sensor.classes(rendered)
    layers: dict[str, NDArray[Any]] = {**rendered, "SCL": scl}
    for name, values in layers.items():
        factor = 2 if name == "SCL" else GSD[name] // 10
        edge = MARGIN // factor
        core = values[edge:-edge, edge:-edge]
        cog.write_window(files[name], core, y.start // factor, x.start // factor)
        if name == "SCL":
            one.histogram[:] += np.bincount(core.ravel(), minlength=12)


def _finish(one: Pass, folder: Path, frame: Frame) -> list[SceneRecord]:
    """Turn the drafts of a pass into the COGs of its products."""
    footprint = _valid_area(one.tile, frame, one.weather)
    records = [
        SceneRecord(one.take, product, one.tile, one.number, one.histogram, footprint) for product in one.take.products
    ]
    for record in records:
        offset, _ = record.product.state(one.tile.zone)
        target = folder / COLLECTION / record.id
        for name in (*BANDS, "SCL"):
            source = one.drafts / f"{name}.tif"
            if offset and name != "SCL":
                source = _with_offset(source, offset)
            elif record is not records[-1]:
                source = Path(shutil.copy(source, source.with_suffix(".copy.tif")))
            cog.finish(source, target / f"{name}.tif", "MODE" if name == "SCL" else "AVERAGE")
    return records


def _with_offset(source: Path, offset: int) -> Path:
    """A copy of a draft with the offset added to all valid pixels, as raw products from baseline 04.00 on have it."""
    import rasterio

    target = source.with_suffix(".offset.tif")
    shutil.copy(source, target)
    with rasterio.open(target, "r+") as data:
        for _, window in data.block_windows(1):
            values = data.read(1, window=window)
            data.write(np.where(values > 0, values + np.uint16(offset), 0).astype(np.uint16), 1, window=window)
    return target


def _valid_area(tile: UtmTile, frame: Frame, weather: Weather) -> Polygon:
    """The part of a tile on the near side of the swath's edge, in the tile's CRS."""
    if not np.isfinite(weather.swath_x):
        return tile.polygon
    north, south = -2e5, frame.height * 10 + 2e5
    ring = [
        (-4e5, north),
        (weather.swath_x - 0.22 * north, north),
        (weather.swath_x - 0.22 * south, south),
        (-4e5, south),
    ]
    area = Polygon([(frame.left + x, frame.top - y) for x, y in ring]).segmentize(2000)
    to = Transformer.from_crs(CRS, tile.epsg, always_xy=True)
    near = shapely.transform(area, lambda p: np.column_stack(to.transform(p[:, 0], p[:, 1])))
    part = near.intersection(tile.polygon)
    return part if isinstance(part, Polygon) and not part.is_empty else tile.polygon


def write_imagery(
    folder: Path, ground: Ground, frame: Frame, tiles: list[UtmTile], seed: int, shop: Workshop
) -> list[SceneRecord]:
    """Write ``folder``/catalog.json and all scenes; returns what was written."""
    weathers = [weather_of(t, k, seed, frame.height * 10.0, frame.width * 10.0) for k, t in enumerate(TAKES)]
    done, total = iter(range(1, len(tiles) * len(TAKES) + 1)), len(tiles) * len(TAKES)
    records: list[SceneRecord] = []
    for tile in tiles:
        passes = [
            Pass(k, take, weathers[k], tile, shop.drafts / f"{tile.mgrs}-{k}", np.zeros(12, np.int64))
            for k, take in enumerate(TAKES)
        ]
        _render_tile(passes, ground, frame, shop.workers)
        finished = ((one, folder, frame) for one in passes)
        tell = partial(_tell_next, shop.progress, done, total)
        records += [r for group in run_all(_finish, finished, shop.workers, tell) for r in group]
    records = sorted(records, key=lambda r: r.id)
    write_catalog(folder, records)
    return records


def _tell_next(progress: Progress, numbers: Iterator[int], total: int) -> None:
    progress("scenes", next(numbers), total)


def _render_tile(passes: list[Pass], ground: Ground, frame: Frame, workers: int) -> None:
    """All passes over one tile: each block of ground is gathered once and seen by every pass."""
    tile = passes[0].tile
    files = [one.files() for one in passes]
    for y, x in blocks(slice(0, tile.height), slice(0, tile.width), BLOCK):
        scene = view(ground, *frame_pixels(tile, frame, _padded(y), _padded(x)))
        run_all(_render, [(one, f, scene, y, x) for one, f in zip(passes, files, strict=True)], workers)
    for opened in files:
        for dataset in opened.values():
            dataset.close()


def write_truth_of_scenes(path: Path, records: list[SceneRecord]) -> None:
    """The true state of each item, which its metadata do not always tell."""
    rows = []
    for r in records:
        offset, flag = r.product.state(r.tile.zone)
        rows.append({
            "id": r.id, "offset_in_pixels": offset, "boa_offset_applied": flag,
            "baseline": r.product.baseline, "swath_edge": bool(r.take.swath),
            "cloud_share_of_country": r.take.cloud, "duplicated": len(r.take.products) > 1,
        })  # fmt: skip
    write_json(path, rows)
