"""The part of the grid that is exported: a rectangle of whole pixels, and within it perhaps an area."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geom import BoundingBox, box
from rasterio.features import rasterize

from geoflow.errors import ExportError
from geoflow.places import local_copy, place

if TYPE_CHECKING:
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

    from geoflow.exports.layers import ExportChoice
    from geoflow.grid import Grid

BLOCK_BYTES = 8 << 20
"""What is read at a time, about, in whole chunks."""


@dataclass(frozen=True)
class Block:
    """A rectangle of the store, ``rows`` and ``cols``, and where it is in the file."""

    rows: slice
    cols: slice
    top: int
    left: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start


@dataclass(frozen=True)
class Clip:
    """A window of the grid.

    Attributes
    ----------
    grid : Grid
    rows, cols : slice
        Of the grid.
    outlines : tuple of shapely polygons
        In the CRS of the grid; what lies outside is nodata. Empty: nothing is.
    """

    grid: Grid
    rows: slice
    cols: slice
    outlines: tuple[Any, ...] = ()

    @property
    def geobox(self) -> GeoBox:
        """The window's own."""
        return self.grid.geobox[self.rows, self.cols]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start

    @property
    def is_all(self) -> bool:
        """Whether it is the whole grid."""
        return self.shape == self.grid.shape and not self.outlines

    def blocks(self, pixel_bytes: int) -> Iterator[Block]:
        """The window in rectangles of whole chunks (but for its edges), row by row; pixels are of so many bytes."""
        size = max(1, math.isqrt(BLOCK_BYTES // pixel_bytes) // self.grid.chunk) * self.grid.chunk
        for rows in _cut(self.rows, size):
            for cols in _cut(self.cols, size):
                yield Block(rows, cols, rows.start - self.rows.start, cols.start - self.cols.start)

    def outside(self, block: Block) -> NDArray[np.bool_] | None:
        """Which pixels of a block have their centre outside the area; None where there is no area."""
        if not self.outlines:
            return None
        transform = self.grid.geobox[block.rows, block.cols].transform
        inside = rasterize(self.outlines, block.shape, transform=transform, default_value=1, dtype="uint8")
        return np.asarray(inside == 0)

    def said(self) -> dict[str, Any]:
        """What tells this window from others, as plain values."""
        where = [self.rows.start, self.rows.stop, self.cols.start, self.cols.stop]
        return {"window": where, "area": [shape.wkb_hex for shape in self.outlines]}


def crs_of(geobox: GeoBox) -> CRS:
    """The CRS of a grid, which always has one."""
    assert geobox.crs is not None
    return geobox.crs


def clip_of(grid: Grid, choice: ExportChoice) -> Clip:
    """The window that is asked for.

    Raises
    ------
    ExportError
        If the box is none, the file of the area cannot be read, or neither meets the grid.
    """
    outlines: tuple[Any, ...] = ()
    if choice.bbox is not None and choice.area is not None:
        raise ExportError("--bbox and --area: give one of them")
    if choice.bbox is not None:
        bounds, what = _bounds_of(choice.bbox, grid), f"--bbox {','.join(f'{v:g}' for v in choice.bbox)}"
    elif choice.area is not None:
        bounds, outlines = _area_of(place(choice.area), grid)
        what = f"--area {choice.area}"
    else:
        return Clip(grid, slice(0, grid.shape[0]), slice(0, grid.shape[1]))
    rows, cols = _window(grid, bounds)
    if rows.start >= rows.stop or cols.start >= cols.stop:
        west, south, east, north = grid.geobox.geographic_extent.boundingbox
        where = f"longitude {west:.3f} to {east:.3f}, latitude {south:.3f} to {north:.3f}"
        raise ExportError(f"{what} does not meet the map, which covers {where}")
    return Clip(grid, rows, cols, outlines)


def _bounds_of(bbox: tuple[float, float, float, float], grid: Grid) -> BoundingBox:
    west, south, east, north = bbox
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        shown = ",".join(f"{value:g}" for value in bbox)
        raise ExportError(f"--bbox {shown}: it must be west,south,east,north in degrees, west of east, south of north")
    # Sides of a box in degrees are curves on the grid: their highest point need not be a corner.
    degrees = box(west, south, east, north, "EPSG:4326")
    return degrees.to_crs(crs_of(grid.geobox), resolution=(east - west) / 200, check_and_fix=True).boundingbox


def _area_of(path: Path, grid: Grid) -> tuple[BoundingBox, tuple[Any, ...]]:
    import geopandas

    try:
        frame = geopandas.read_file(local_copy(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise ExportError(f"--area {path} cannot be read: {error}") from None
    if frame.crs is None:
        raise ExportError(f"--area {path} says not in which coordinates it is: it has no CRS")
    polygons = frame.geometry[frame.geometry.geom_type.isin(("Polygon", "MultiPolygon"))].to_crs(
        crs_of(grid.geobox).to_wkt()
    )
    if polygons.empty:
        raise ExportError(f"--area {path} has no polygons")
    left, bottom, right, top = (float(value) for value in polygons.total_bounds)
    return BoundingBox(left, bottom, right, top, crs_of(grid.geobox)), tuple(polygons)


def _window(grid: Grid, bounds: BoundingBox) -> tuple[slice, slice]:
    """Pixel rows and columns that cover a box, within the grid; empty where it lies beside it."""
    inverse, (height, width) = ~grid.geobox.transform, grid.shape
    left, top = inverse * (bounds.left, bounds.top)
    right, bottom = inverse * (bounds.right, bounds.bottom)
    near = 1e-6  # of a pixel: a box on a pixel's edge does not take in its neighbour for a rounding error
    rows = slice(max(0, math.floor(top + near)), min(height, math.ceil(bottom - near)))
    cols = slice(max(0, math.floor(left + near)), min(width, math.ceil(right - near)))
    return rows, cols


def _cut(span: slice, size: int) -> Iterator[slice]:
    """A span at all multiples of a size."""
    start = span.start
    while start < span.stop:
        stop = min(span.stop, (start // size + 1) * size)
        yield slice(start, stop)
        start = stop
