"""Tiny Sentinel-2 scenes for the imagery tests: real COGs and a real static STAC catalog, in two UTM zones.

Every band is one plane over Europe's LAEA coordinates, so that the right value of a reprojected pixel is known.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, box
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

ASSETS = {"B02": ("blue", 10), "B04": ("red", 10), "B08": ("nir", 10), "B11": ("swir16", 20), "SCL": ("scl", 20)}
PLANE = {"B02": 300.0, "B04": 500.0, "B08": 2500.0, "B11": 1500.0}
SIZE_M = 2560
# One place at the border of two zones, 12 degrees east: the corner of each zone's scene there.
CORNERS = {32632: (727_000, 5_211_000), 32633: (271_000, 5_211_000)}
CENTRE_3035 = (4_473_500.0, 2_656_300.0)
AREA: Geometry = box(11.9, 46.9, 12.1, 47.1, "EPSG:4326")


def truth(band: str, x: Any, y: Any) -> Any:
    """Reflectance x 10000 at EPSG:3035 coordinates: a plane, which bilinear resampling reproduces."""
    return PLANE[band] + 0.05 * (np.asarray(x) - CENTRE_3035[0]) + 0.02 * (np.asarray(y) - CENTRE_3035[1])


@dataclass
class Scene:
    """One scene to be written."""

    id: str
    day: str = "2024-06-10"
    epsg: int = 32633
    baseline: str = "05.10"
    flag: bool | None = True
    offset_in_pixels: int = 0
    cloud_percent: float = 5.0
    tile: str = "33TTN"
    datatake: str | None = None
    generated: str = "2024-06-10T15:00:00Z"
    scl: int = 4
    cloud: tuple[slice, slice] | None = None  # in pixels of SCL (20 m), class 9
    nodata: tuple[slice, slice] | None = None  # in pixels of 10 m
    constant: dict[str, int] = field(default_factory=dict)  # digital number instead of the plane

    @property
    def taken(self) -> str:
        return self.datatake or f"GS2A_{self.day.replace('-', '')}T100031_031436_N{self.baseline}"


def write_scene(folder: Path, scene: Scene, bands: tuple[str, ...] = tuple(ASSETS)) -> dict[str, Any]:
    """COGs and the item of a scene; returns the item."""
    home = folder / scene.id
    home.mkdir(parents=True, exist_ok=True)
    assets = {}
    for band in bands:
        key, gsd = ASSETS[band]
        write_cog(home / f"{band}.tif", _pixels(scene, band, gsd), scene.epsg, CORNERS[scene.epsg], gsd)
        assets[key] = {"href": f"./{band}.tif", "type": "image/tiff; application=geotiff", "gsd": gsd}
    item = item_dict(scene, assets)
    (home / f"{scene.id}.json").write_text(json.dumps(item))
    return item


def item_dict(scene: Scene, assets: dict[str, Any]) -> dict[str, Any]:
    """A STAC item such as Earth Search v1 writes it."""
    left, top = CORNERS[scene.epsg]
    bounds = transform_bounds(f"EPSG:{scene.epsg}", "EPSG:4326", left, top - SIZE_M, left + SIZE_M, top)
    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    properties = {
        "datetime": f"{scene.day}T10:07:00.000Z",
        "platform": "sentinel-2a",
        "eo:cloud_cover": scene.cloud_percent,
        "proj:epsg": scene.epsg,
        "grid:code": f"MGRS-{scene.tile}",
        "s2:processing_baseline": scene.baseline,
        "s2:datatake_id": scene.taken,
        "s2:generation_time": scene.generated,
    }
    if scene.flag is not None:
        properties["earthsearch:boa_offset_applied"] = scene.flag
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/projection/v1.1.0/schema.json"],
        "id": scene.id,
        "collection": "sentinel-2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(bounds),
        "properties": properties,
        "assets": assets,
        "links": [{"rel": "collection", "href": "../collection.json", "type": "application/json"}],
    }


def write_catalog(folder: Path, scenes: list[Scene], bands: tuple[str, ...] = tuple(ASSETS)) -> Path:
    """A static catalog of scenes; returns the path of its catalog.json."""
    items = [write_scene(folder, scene, bands) for scene in scenes]
    links = [{"rel": "item", "href": f"./{i['id']}/{i['id']}.json", "type": "application/json"} for i in items]
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [["2015-01-01T00:00:00Z", None]]}}
    collection = {
        "type": "Collection",
        "id": "sentinel-2-l2a",
        "stac_version": "1.0.0",
        "description": "tiny scenes",
        "license": "other",
        "extent": extent,
        "links": [{"rel": "root", "href": "./catalog.json"}, *links],
    }
    catalog = {
        "type": "Catalog",
        "id": "tiny",
        "stac_version": "1.0.0",
        "description": "tiny scenes",
        "links": [{"rel": "root", "href": "./catalog.json"}, {"rel": "child", "href": "./collection.json"}],
    }
    (folder / "collection.json").write_text(json.dumps(collection))
    (folder / "catalog.json").write_text(json.dumps(catalog))
    return folder / "catalog.json"


def write_cog(path: Path, pixels: np.ndarray, epsg: int, corner: tuple[float, float], gsd: float) -> None:
    """One band as a COG with nodata 0."""
    height, width = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": pixels.dtype, "nodata": 0}
    plain = path.with_suffix(".plain.tif")
    with rasterio.open(plain, "w", crs=f"EPSG:{epsg}", transform=from_origin(*corner, gsd, gsd), **profile) as file:
        file.write(pixels, 1)
    rasterio.shutil.copy(plain, path, driver="COG", compress="DEFLATE", blocksize=128)
    plain.unlink()


def grid(size: int = 96, resolution: float = 10.0, epsg: int = 3035) -> GeoBox:
    """A grid in the middle of both zones' scenes."""
    x, y = CENTRE_3035
    if epsg != 3035:
        xs, ys = transform_points("EPSG:3035", f"EPSG:{epsg}", [x], [y])
        x, y = round(xs[0], -1), round(ys[0], -1)
    half = size * resolution / 2
    return GeoBox.from_bbox((x - half, y - half, x + half, y + half), f"EPSG:{epsg}", resolution=resolution, tight=True)


def _pixels(scene: Scene, band: str, gsd: int) -> np.ndarray:
    count = SIZE_M // gsd
    if band == "SCL":
        scl = np.full((count, count), scene.scl, np.uint8)
        if scene.cloud is not None:
            scl[scene.cloud] = 9
        if scene.nodata is not None:
            scl[tuple(slice(s.start // 2, s.stop // 2) for s in scene.nodata)] = 0
        return scl
    left, top = CORNERS[scene.epsg]
    xs, ys = np.meshgrid(left + (np.arange(count) + 0.5) * gsd, top - (np.arange(count) + 0.5) * gsd)
    x, y = transform_points(f"EPSG:{scene.epsg}", "EPSG:3035", xs.ravel(), ys.ravel())
    values = np.asarray(truth(band, x, y)).reshape(count, count)
    if band in scene.constant:
        values = np.full((count, count), float(scene.constant[band]))
    values = np.clip(np.round(values) + scene.offset_in_pixels, 1, 65535).astype(np.uint16)
    if scene.nodata is not None:
        values[tuple(slice(s.start * 10 // gsd, s.stop * 10 // gsd) for s in scene.nodata)] = 0
    return values


@contextlib.contextmanager
def serve(handler: Any) -> Iterator[str]:
    """An HTTP server on loopback in a thread; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class RangeHandler(SimpleHTTPRequestHandler):
    """A file server that answers range requests, as object stores do."""

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        self.send_response(206 if start < len(data) else 416)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(max(0, stop - start)))
        self.end_headers()
        self.wfile.write(data[start:stop])


def serve_folder(folder: Path) -> contextlib.AbstractContextManager[str]:
    """`serve` for the files of a folder."""
    return serve(partial(RangeHandler, directory=str(folder)))
