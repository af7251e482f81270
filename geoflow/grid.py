"""The national grid: one raster for a whole country, cut into tiles that are the unit of work.

A `Grid` is an odc-geo `GeoBox` plus two sizes: ``tile`` (pixels of the square that one task reads and writes) and
``chunk`` (pixels of the square that one Zarr chunk holds). ``tile`` is a whole multiple of ``chunk``, so that two tasks
never write into one chunk; Zarr does not check that, and loses pixels without an error where it does not hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry

from geoflow.errors import GridError

_TILE_ID = re.compile(r"r(\d{4})c(\d{4})")


@dataclass(frozen=True)
class Tile:
    """One square of the grid: the unit of reading, computing, writing and resuming.

    Attributes
    ----------
    row, col : int
        Position in tiles from the north-west corner.
    y, x : slice
        The pixels this tile owns, in national pixel coordinates. They start on a chunk border, and end on one or at the
        edge of the country, so writing them touches whole chunks only.
    grid : Grid
        The grid that the tile belongs to.
    """

    row: int
    col: int
    y: slice
    x: slice
    grid: Grid

    @property
    def id(self) -> str:
        """Stable name, for example ``r0003c0012``."""
        return f"r{self.row:04d}c{self.col:04d}"

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.y.stop - self.y.start, self.x.stop - self.x.start

    @property
    def region(self) -> dict[str, slice]:
        """The pixels to write, as xarray's and Zarr's ``region``."""
        return {"y": self.y, "x": self.x}

    @property
    def geobox(self) -> GeoBox:
        """The GeoBox of exactly the pixels that this tile owns."""
        return self.grid.geobox[self.y, self.x]

    def padded(self, pad_px: int) -> tuple[slice, slice]:
        """National pixel slices of the tile with a margin, cut off at the edges of the country."""
        height, width = self.grid.shape
        return (
            slice(max(0, self.y.start - pad_px), min(height, self.y.stop + pad_px)),
            slice(max(0, self.x.start - pad_px), min(width, self.x.stop + pad_px)),
        )

    def chunks(self) -> list[tuple[slice, slice]]:
        """National pixel slices (y, x) of the tile's chunks, in row order."""
        size = self.grid.chunk
        return [
            (slice(top, min(top + size, self.y.stop)), slice(left, min(left + size, self.x.stop)))
            for top in range(self.y.start, self.y.stop, size)
            for left in range(self.x.start, self.x.stop, size)
        ]

    def neighbourhood(self, pad_px: int) -> list[Tile]:
        """The tiles that a read with ``pad_px`` pixels of margin touches, this one included, in row order."""
        y, x = self.padded(pad_px)
        size = self.grid.tile
        rows = range(y.start // size, (y.stop - 1) // size + 1)
        cols = range(x.start // size, (x.stop - 1) // size + 1)
        return [self.grid.tile_at(r, c) for r in rows for c in cols]


@dataclass(frozen=True)
class Grid:
    """The raster of a country.

    Parameters
    ----------
    geobox : GeoBox
        Extent, CRS and resolution; north up, square pixels.
    tile, chunk : int
        Sizes in pixels; ``tile % chunk == 0``.

    Raises
    ------
    GridError
        If the sizes do not fit each other or the GeoBox is rotated.
    """

    geobox: GeoBox
    tile: int
    chunk: int

    def __post_init__(self) -> None:
        if self.chunk <= 0 or self.tile <= 0:
            raise GridError(f"tile and chunk must be positive numbers of pixels, not {self.tile} and {self.chunk}")
        if self.tile % self.chunk:
            fits = max(self.chunk, self.tile // self.chunk * self.chunk)
            raise GridError(
                f"tile {self.tile} is not a multiple of chunk {self.chunk}: two tasks would write into one chunk; "
                f"use tile {fits} or {fits + self.chunk}"
            )
        if not self.geobox.axis_aligned or self.geobox.transform.e >= 0:
            raise GridError("the grid must be north up and not rotated")

    @classmethod
    def cover(cls, area: Geometry, crs: str, resolution_m: float, tile: int, chunk: int) -> Grid:
        """The smallest grid over ``area`` whose pixel corners lie on multiples of ``resolution_m``.

        Two grids of one CRS and resolution therefore always share their pixels, whatever their areas.
        """
        bounds = area.to_crs(crs, resolution=math.inf).boundingbox
        left, bottom = (math.floor(v / resolution_m) * resolution_m for v in (bounds.left, bounds.bottom))
        right, top = (math.ceil(v / resolution_m) * resolution_m for v in (bounds.right, bounds.top))
        if right <= left or top <= bottom:
            raise GridError(f"the area is empty in {crs}: its bounds are {tuple(bounds)}")
        geobox = GeoBox.from_bbox(BoundingBox(left, bottom, right, top, crs), resolution=resolution_m, tight=True)
        return cls(geobox, tile, chunk)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.geobox.shape.y, self.geobox.shape.x

    @property
    def resolution_m(self) -> float:
        """Edge of a pixel in CRS units (metres for every projected CRS geoflow is used with)."""
        return float(self.geobox.transform.a)

    def coarser(self, factor: int) -> Grid:
        """The grid of the same corner with pixels ``factor`` times as wide and high, and sizes of tile and chunk kept.

        Where ``factor`` does not divide the shape, the last row and column reach beyond the country.
        """
        height, width = self.shape
        transform = self.geobox.transform * Affine.scale(factor)
        geobox = GeoBox((-(-height // factor), -(-width // factor)), transform, self.geobox.crs)
        return Grid(geobox, self.tile, self.chunk)

    @property
    def tile_counts(self) -> tuple[int, int]:
        """(rows, columns) of tiles; the last of each may be smaller."""
        height, width = self.shape
        return -(-height // self.tile), -(-width // self.tile)

    def tile_at(self, row: int, col: int) -> Tile:
        """The tile at a position.

        Raises
        ------
        GridError
            If the position lies outside the grid.
        """
        rows, cols = self.tile_counts
        if not (0 <= row < rows and 0 <= col < cols):
            raise GridError(f"no tile at row {row}, column {col}: the grid has {rows} x {cols} tiles")
        height, width = self.shape
        y = slice(row * self.tile, min(height, (row + 1) * self.tile))
        x = slice(col * self.tile, min(width, (col + 1) * self.tile))
        return Tile(row, col, y, x, self)

    def tile_by_id(self, tile_id: str) -> Tile:
        """The tile of a name made by `Tile.id`."""
        match = _TILE_ID.fullmatch(tile_id)
        if match is None:
            raise GridError(f"{tile_id!r} is not the name of a tile, such as r0003c0012")
        return self.tile_at(int(match[1]), int(match[2]))

    def tiles(self, within: Geometry | None = None) -> Iterator[Tile]:
        """All tiles in row order; with ``within``, only those that meet that geometry (any CRS)."""
        shape = None if within is None else within.to_crs(str(self.geobox.crs), resolution=math.inf)
        rows, cols = self.tile_counts
        for row in range(rows):
            for col in range(cols):
                tile = self.tile_at(row, col)
                if shape is None or tile.geobox.extent.intersects(shape):
                    yield tile
