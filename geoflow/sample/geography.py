"""Where the sample country lies: its frame, border, counties and Sentinel-2 tiles.

The country straddles longitude 24 E, the border of UTM zones 34 and 35, at latitude 58.5 N. Its grid is EPSG:3035 at
10 m.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from scipy import ndimage
from shapely.geometry import MultiPolygon, Polygon, box, shape

from geoflow.errors import GridError
from geoflow.sample import noise as nz
from geoflow.sample.landscape import PIXEL_M, Landscape

CRS = "EPSG:3035"
CENTRE_LON, CENTRE_LAT = 24.0, 58.5
TILE_PX = 10980
SEA_M = 450.0
"""Width of the coastal waters that belong to the country."""

_COUNTIES = ("Westshore", "Northmark", "Midlands", "Southmoor", "Eastwold")


@dataclass(frozen=True)
class Frame:
    """The rectangle that the country fills: ``left``, ``top`` in EPSG:3035 metres, sizes in 10 m pixels."""

    left: float
    top: float
    height: int
    width: int
    whole_tile: bool = False

    @property
    def transform(self) -> Affine:
        """Pixel to EPSG:3035."""
        return self.transform_at(0, 0)

    def transform_at(self, row: int, col: int, step: int = 1) -> Affine:
        """Pixel to EPSG:3035 of a window that starts at a pixel, with pixels ``step`` times as wide."""
        size = PIXEL_M * step
        return Affine(size, 0, self.left + col * PIXEL_M, 0, -size, self.top - row * PIXEL_M)

    @property
    def polygon(self) -> Polygon:
        """The rectangle in EPSG:3035."""
        return box(self.left, self.top - self.height * PIXEL_M, self.left + self.width * PIXEL_M, self.top)


def frame_of(size: str) -> Frame:
    """The frame of a size: ``small``, ``tile``, ``country`` (20000 x 15000 px) or ``WIDTHxHEIGHT`` in pixels.

    Raises
    ------
    GridError
        If the size is not one of these, or smaller than 600 x 400 px.
    """
    named = {"small": (2048, 1280), "tile": (9200, 9200), "country": (20000, 15000)}
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if size not in named and match is None:
        raise GridError(f"size {size!r} is none of small, tile, country, or WIDTHxHEIGHT in pixels such as 20000x15000")
    width, height = (int(match[1]), int(match[2])) if match else named[size]
    if width < 600 or height < 400:
        raise GridError(f"size {size!r} is too small for a country: at least 600x400 pixels")
    x, y = Transformer.from_crs(4326, 3035, always_xy=True).transform(CENTRE_LON, CENTRE_LAT)
    if size == "tile":
        x, y = _tile_centre()
    left = round(x / 200) * 200 - width * PIXEL_M / 2
    top = round(y / 200) * 200 + height * PIXEL_M / 2
    return Frame(math.floor(left / 10) * 10.0, math.ceil(top / 10) * 10.0, height, width, size == "tile")


def _tile_centre() -> tuple[float, float]:
    """Centre (EPSG:3035) of the one full tile of size ``tile``, in zone 35."""
    left, top = 399960.0, 6500040.0
    to = Transformer.from_crs(32635, 3035, always_xy=True)
    x, y = to.transform(left + TILE_PX * 5, top - TILE_PX * 5)
    return float(x), float(y)


def border_of(land: Landscape, frame: Frame) -> MultiPolygon:
    """The national border in EPSG:3035: an irregular outline, the coastal waters, and islands as polygons of their
    own."""
    step = max(5, round(max(frame.height, frame.width) / 1200))
    ys = (np.arange(0, frame.height, step) + step / 2) * PIXEL_M
    xs = (np.arange(0, frame.width, step) + step / 2) * PIXEL_M
    wavy = nz.fbm(ys, xs, (4200, 1800, 700), land.key(90))
    v = ((2 * ys / (frame.height * PIXEL_M) - 1).astype(np.float32)[:, None]) ** 2
    u = ((2 * xs / (frame.width * PIXEL_M) - 1).astype(np.float32)[None, :]) ** 2
    inside = (u * u * u + v * v * v) < 1.0 + 0.16 * wavy
    dry = land.height(ys, xs) > 0
    coastal = ndimage.distance_transform_edt(~dry) * step * PIXEL_M < SEA_M
    west = np.broadcast_to(u > 0, inside.shape) & (xs[None, :] < 0.3 * frame.width * PIXEL_M)
    mask = (inside | (west & (v < 0.86))) & coastal
    transform = frame.transform_at(0, 0, step)
    polygons = [shape(g) for g, _ in rasterio.features.shapes(mask.astype(np.uint8), mask=mask, transform=transform)]
    smooth = shapely.union_all(polygons).buffer(60).buffer(-60).simplify(35)
    parts = [p for p in _parts(smooth.intersection(frame.polygon)) if p.area > 20e4]
    parts = [Polygon(p.exterior) for p in parts]
    rounded = [shapely.set_precision(p, 1.0) for p in sorted(parts, key=lambda p: (-p.area, p.bounds))]
    return MultiPolygon([q for p in rounded for q in _parts(p)])


def _parts(geometry: Any) -> list[Polygon]:
    return [g for g in getattr(geometry, "geoms", [geometry]) if isinstance(g, Polygon) and not g.is_empty]


def counties_of(border: MultiPolygon, frame: Frame, seed: int) -> list[tuple[str, str, MultiPolygon]]:
    """Five counties as (code, name, geometry) that share the country out without gaps."""
    rng = np.random.default_rng([seed, 55])
    spots = ((0.5, 0.16), (0.22, 0.45), (0.55, 0.55), (0.8, 0.42), (0.45, 0.84))
    jitter = rng.uniform(-0.05, 0.05, (5, 2))
    points = [
        (frame.left + (fx + jx) * frame.width * PIXEL_M, frame.top - (fy + jy) * frame.height * PIXEL_M)
        for (fy, fx), (jy, jx) in zip(spots, jitter, strict=True)
    ]
    cells = shapely.voronoi_polygons(shapely.MultiPoint(points), extend_to=frame.polygon, ordered=True)
    out = []
    for k, (cell, name) in enumerate(zip(cells.geoms, _COUNTIES, strict=True), start=1):
        share = shapely.make_valid(cell.intersection(border))
        out.append((f"SC{k:02d}", name, MultiPolygon(_parts(share))))
    return out


@dataclass(frozen=True)
class UtmTile:
    """A Sentinel-2 tile, or the window of it that the sample holds.

    ``left``, ``top`` are UTM metres (multiples of 60), sizes in 10 m pixels (multiples of 6).
    """

    zone: int
    square: str
    left: float
    top: float
    height: int
    width: int

    @property
    def mgrs(self) -> str:
        """Name, for example ``34VFK``."""
        return f"{self.zone}V{self.square}"

    @property
    def epsg(self) -> int:
        """EPSG code of its UTM zone."""
        return 32600 + self.zone

    def transform(self, gsd: int) -> Affine:
        """Pixel to UTM at a pixel size of 10, 20 or 60 m."""
        return Affine(gsd, 0, self.left, 0, -gsd, self.top)

    def shape(self, gsd: int) -> tuple[int, int]:
        """(height, width) at a pixel size."""
        return self.height * 10 // gsd, self.width * 10 // gsd

    @property
    def polygon(self) -> Polygon:
        """The window in its own CRS."""
        return box(self.left, self.top - self.height * 10, self.left + self.width * 10, self.top)


def square_name(zone: int, easting: float, northing: float) -> str:
    """The MGRS letters of the 100 km square that a UTM position lies in."""
    columns = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")[(zone - 1) % 3]
    rows = "ABCDEFGHJKLMNPQRSTUV"
    return columns[int(easting // 1e5) - 1] + rows[(int(northing // 1e5) + (0 if zone % 2 else 5)) % 20]


def tiles_of(frame: Frame) -> list[UtmTile]:
    """The tiles that cover the frame: full ones for size ``tile``, else cropped to the frame's part of their zone.

    The parts of the two zones overlap by about 3 km across longitude 24 E (by 15 % of a small country).
    """
    if frame.whole_tile:
        return [UtmTile(35, square_name(35, 455000, 6445000), 399960.0, 6500040.0, TILE_PX, TILE_PX)]
    overlap_px = int(min(0.15 * frame.width, 1200))
    middle, pixel = frame.width // 2, PIXEL_M
    tiles: list[UtmTile] = []
    for zone, x0, x1 in ((34, 0, middle + overlap_px // 2), (35, middle - overlap_px // 2, frame.width)):
        part = box(
            frame.left + x0 * pixel, frame.top - frame.height * pixel, frame.left + x1 * pixel, frame.top
        ).segmentize(2000)
        to = Transformer.from_crs(3035, 32600 + zone, always_xy=True)
        utm = shapely.transform(part, lambda p, to=to: np.column_stack(to.transform(p[:, 0], p[:, 1])))
        tiles += _windows(zone, utm)
    return tiles


def _windows(zone: int, area: Polygon) -> list[UtmTile]:
    """The tiles of a zone over an area, each cropped to the area's bounds; tiles are 109.8 km wide, 100 km apart."""
    left, bottom, right, top = area.bounds
    span = TILE_PX * PIXEL_M
    if right - left < span and top - bottom < span:
        x, y = (left + right) / 2, (bottom + top) / 2
        return [_crop(zone, x, y, left - 60, bottom - 60, right + 60, top + 60)]
    out = []
    for north in np.arange(math.floor(bottom / 1e5), math.ceil(top / 1e5)) * 1e5:
        for east in np.arange(math.floor(left / 1e5), math.ceil(right / 1e5)) * 1e5:
            x0, y1 = east - 40, north + 1e5 + 40
            bounds = (max(left, x0), max(bottom, y1 - span), min(right, x0 + span), min(top, y1))
            if bounds[2] - bounds[0] > 600 and bounds[3] - bounds[1] > 600 and box(*bounds).intersects(area):
                out.append(_crop(zone, east + 5e4, north + 5e4, *bounds))
    return out


def _crop(zone: int, x: float, y: float, left: float, bottom: float, right: float, top: float) -> UtmTile:
    x0, y1 = math.floor(left / 60) * 60.0, math.ceil(top / 60) * 60.0
    width, height = math.ceil((right - x0) / 60) * 6, math.ceil((y1 - bottom) / 60) * 6
    return UtmTile(zone, square_name(zone, x, y), x0, y1, height, width)


def frame_pixels(tile: UtmTile, frame: Frame, rows: slice, cols: slice) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The frame's pixel (row, column) under each pixel centre of a window of a tile; may lie outside the frame.

    The projection is evaluated on every 16th pixel and interpolated; over 160 m it is straight to better than a
    millimetre.
    """
    step = 16
    at_r = np.arange(rows.start, rows.stop + step, step) + 0.5
    at_c = np.arange(cols.start, cols.stop + step, step) + 0.5
    east, north = np.meshgrid(tile.left + at_c * 10, tile.top - at_r * 10)
    x, y = Transformer.from_crs(tile.epsg, 3035, always_xy=True).transform(east, north)
    height, width = rows.stop - rows.start, cols.stop - cols.start
    fine = np.stack(np.meshgrid(np.arange(height) / step, np.arange(width) / step, indexing="ij"))
    out = []
    for coarse in ((frame.top - y) / PIXEL_M, (x - frame.left) / PIXEL_M):
        fractional = ndimage.map_coordinates(coarse, fine, order=1, mode="nearest")
        out.append(np.floor(fractional).astype(np.int32))
    return out[0], out[1]


def ground_window(tiles: list[UtmTile], frame: Frame) -> tuple[slice, slice]:
    """The frame rows and columns (negative outside it) that the frame and all tiles touch, with a small margin."""
    top, left, bottom, right = 0, 0, frame.height, frame.width
    for tile in tiles:
        ring = tile.polygon.segmentize(2000)
        to = Transformer.from_crs(tile.epsg, 3035, always_xy=True)
        x0, y0, x1, y1 = shapely.transform(
            ring, lambda p, to=to: np.column_stack(to.transform(p[:, 0], p[:, 1]))
        ).bounds
        top, bottom = min(top, (frame.top - y1) // PIXEL_M - 4), max(bottom, (frame.top - y0) // PIXEL_M + 4)
        left, right = min(left, (x0 - frame.left) // PIXEL_M - 4), max(right, (x1 - frame.left) // PIXEL_M + 4)
    return slice(int(top), int(bottom)), slice(int(left), int(right))
