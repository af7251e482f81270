"""Resampling onto a grid, exact to the bit whatever part of the grid is asked for.

GDAL approximates the transformation between two coordinate systems over the window that it happens to warp, so that a
pixel's value depends on the tile, the chunk and the margin it was read with (docs/decisions/0005). Here the
transformation is computed at the nodes of one lattice over the whole coordinate system and interpolated between them:
a pixel's place in a scene depends on where the pixel is and on nothing else.

Kernels on numpy arrays: no files, no Dask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoflow.errors import GridError
from geoflow.imagery import interpolate

Resampling = Literal["nearest", "bilinear", "cubic"]

_NODE_SPACING_M = 500.0  # interpolated over so much, UTM and a national CRS differ by a centimetre at the most
_METRES_PER_DEGREE = 111_320.0
_FRACTION_DIGITS = 6  # of a pixel: where its corner lies between two multiples of the resolution
_SAME_RESOLUTION = 0.9  # a grid that is up to a tenth coarser than the file is read without averaging
_CUBIC_REACH_PX = 2


@dataclass(frozen=True)
class Target:
    """The grid that is resampled onto.

    Parameters
    ----------
    crs : str
        Anything that pyproj reads.
    transform : Affine
        North up, not rotated.
    shape : (height, width)

    Raises
    ------
    GridError
        If the grid is rotated.
    """

    crs: str
    transform: Affine
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.transform.b or self.transform.d:
            raise GridError("scenes are put on grids that are not rotated only, and this one is")


@dataclass(frozen=True)
class Source:
    """Where the pixels come from.

    Parameters
    ----------
    crs : str
        Anything that pyproj reads.
    transform : Affine
        From pixel corners (column, row) to the CRS.
    shape : (height, width)
    dtype : str
        uint8 or uint16.
    """

    crs: str
    transform: Affine
    shape: tuple[int, int]
    dtype: str


@dataclass(frozen=True)
class Lattice:
    """Where the pixels of a target lie in a source.

    Attributes
    ----------
    u, v : float64 array, dims (node row, node column)
        Column and row in the source's pixels (the first pixel's centre is 0.5), at nodes ``step`` target pixels apart.
    row, col : int
        The target's first pixel, counted from the first node.
    step : int
    """

    u: NDArray[np.float64]
    v: NDArray[np.float64]
    row: int
    col: int
    step: int

    def window(self, shape: tuple[int, int], reach: int) -> tuple[slice, slice] | None:
        """The rows and columns of a source of this shape that the target can touch, or None."""
        seen = np.isfinite(self.u) & np.isfinite(self.v)
        if not seen.any():
            return None
        slices = []
        for values, size in ((self.v[seen], shape[0]), (self.u[seen], shape[1])):
            first, last = max(0, math.floor(values.min()) - reach), min(size, math.ceil(values.max()) + reach)
            if first >= last:
                return None
            slices.append(slice(first, last))
        return slices[0], slices[1]


def resample(
    read: Callable[[slice, slice], NDArray[Any]], source: Source, target: Target, method: Resampling
) -> NDArray[Any]:
    """One band of a scene on a grid.

    Parameters
    ----------
    read : callable
        Pixels of the source's rows and columns, called once at most; uint8 or uint16, dims (y, x), 0 is nodata.
    source, target
    method : "nearest", "bilinear" or "cubic"
        The last two average where the grid is coarser than the source: a triangle as wide as two pixels of the grid.
        Cubic is Keys' with a = -0.5 (R. G. Keys, 1981, IEEE Trans. ASSP 29, 1153-1160), bilinear beside nodata.

    Returns
    -------
    array of the source's dtype, dims (y, x)
        A pixel has data where the source pixel under its centre has, and only then; nodata never mixes into its
        neighbours. Halves are rounded up, and no valid pixel becomes 0.

    Raises
    ------
    GridError
        If the method is none of these.
    """
    if method not in get_args(Resampling):
        raise GridError(f"resampling {method!r} is not known; it is one of {', '.join(get_args(Resampling))}")
    if method == "nearest" and (finer := _parts_of(source, target)) is not None:
        return _repeated(read, source, target, finer)
    lattice = lattice_of(source, target)
    scale = 1.0 if method == "nearest" else _scale(source, target.crs, abs(target.transform.a))
    reach = 1 if method == "nearest" else max(_CUBIC_REACH_PX, math.ceil(1 / scale)) + 1
    window = lattice.window(source.shape, reach)
    if window is None:
        return np.zeros(target.shape, source.dtype)
    rows, cols = window
    pixels = read(rows, cols)
    out = np.zeros(target.shape, source.dtype)
    place = (lattice.u, lattice.v, lattice.row, lattice.col, lattice.step)
    if method == "nearest":
        interpolate.nearest(pixels, rows.start, cols.start, *place, out)
    elif scale < 1:
        interpolate.averaged(pixels, rows.start, cols.start, *place, scale, out)
    elif method == "bilinear":
        interpolate.bilinear(pixels, rows.start, cols.start, *place, out)
    else:
        interpolate.cubic(pixels, rows.start, cols.start, *place, out)
    return out


def is_window_of(source: Source, target: Target) -> tuple[int, int] | None:
    """(row, column) of the source's pixel that is the target's first, if all their pixels coincide, else None."""
    found = _parts_of(source, target)
    return None if found is None or found[0] != 1 else found[1:]


def _parts_of(source: Source, target: Target) -> tuple[int, int, int] | None:
    """(parts, row, column) if each source pixel is so many target pixels a side, else None.

    Row and column of the target's first pixel are counted in target pixels from the source's upper left corner.
    """
    if not _same_crs(source.crs, target.crs):
        return None
    step = ~source.transform * target.transform
    parts = max(1, round(1 / step.a)) if step.a > 0 else 1
    if max(abs(step.a * parts - 1), abs(step.e * parts - 1), abs(step.b), abs(step.d)) > 1e-9:
        return None
    col, row = step.c * parts, step.f * parts
    if max(abs(col - round(col)), abs(row - round(row))) > 1e-3:
        return None
    return parts, round(row), round(col)


def _repeated(
    read: Callable[[slice, slice], NDArray[Any]], source: Source, target: Target, finer: tuple[int, int, int]
) -> NDArray[Any]:
    """Each source pixel as its parts: what `interpolate.nearest` comes to, without a place for every pixel."""
    parts, row, col = finer
    out = np.zeros(target.shape, source.dtype)
    spans = []
    for first, count, size in ((row, target.shape[0], source.shape[0]), (col, target.shape[1], source.shape[1])):
        spans.append(slice(max(0, first // parts), min(size, (first + count - 1) // parts + 1)))
    rows, cols = spans
    if rows.start < rows.stop and cols.start < cols.stop:
        interpolate.repeated(read(rows, cols), rows.start * parts - row, cols.start * parts - col, parts, out)
    return out


def lattice_of(source: Source, target: Target) -> Lattice:
    """The lattice of a target in a source; its nodes lie at multiples of the step from the CRS's own origin."""
    step = _step(target)
    first_row, row_fraction = _first_pixel(target.transform.f, target.transform.e)
    first_col, col_fraction = _first_pixel(target.transform.c, target.transform.a)
    spans = []
    for first, count in ((first_row, target.shape[0]), (first_col, target.shape[1])):
        spans.append((first // step, (first + count - 1) // step + 1))
    (top, bottom), (left, right) = spans
    places = (top, bottom, row_fraction, target.transform.e), (left, right, col_fraction, target.transform.a)
    u, v = _nodes(source, target.crs, step, *places)
    return Lattice(u, v, first_row - top * step, first_col - left * step, step)


def _first_pixel(start: float, size: float) -> tuple[int, float]:
    """A coordinate as a whole number of pixels from the origin, and the rest; alike for all tiles of a grid."""
    first = math.floor(round(start / size, _FRACTION_DIGITS))
    return first, round(start / size - first, _FRACTION_DIGITS)


def _step(target: Target) -> int:
    """Pixels between two nodes: a power of two."""
    size = abs(target.transform.a) * (_METRES_PER_DEGREE if _geographic(target.crs) else 1.0)
    return 1 << max(0, math.floor(math.log2(_NODE_SPACING_M / size)))


@lru_cache(maxsize=64)  # all bands of one resolution of all scenes of one zone ask the same
def _nodes(
    source: Source,
    crs: str,
    step: int,
    rows: tuple[int, int, float, float],
    cols: tuple[int, int, float, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(u, v) of the nodes; rows and columns as (first, last, fraction of a pixel, size of a pixel)."""
    from pyproj import Transformer

    y, x = ((np.arange(first, last + 1) * step + fraction) * size for first, last, fraction, size in (rows, cols))
    x, y = np.meshgrid(x, y)
    if not _same_crs(source.crs, crs):
        x, y = Transformer.from_crs(crs, source.crs, always_xy=True).transform(x, y)
    away = ~source.transform
    u, v = away.a * x + away.b * y + away.c, away.d * x + away.e * y + away.f
    for nodes in (u, v):
        nodes.flags.writeable = False
    return u, v


@lru_cache(maxsize=256)
def _scale(source: Source, crs: str, size: float) -> float:
    """Size of a source pixel in target pixels of ``size``, 1 where the target is not coarser.

    Measured in the middle of the source, wherever the target is: two tiles must not differ in it.
    """
    from pyproj import Transformer

    middle_row, middle_col = source.shape[0] / 2, source.shape[1] / 2
    corners = [source.transform * (middle_col + i, middle_row + j) for i, j in ((0, 0), (1, 0), (0, 1))]
    if not _same_crs(source.crs, crs):
        move = Transformer.from_crs(source.crs, crs, always_xy=True)
        corners = [move.transform(*corner) for corner in corners]
    (x, y), (right_x, right_y), (down_x, down_y) = corners
    area = abs((right_x - x) * (down_y - y) - (down_x - x) * (right_y - y))
    scale = math.sqrt(area) / size
    return scale if scale <= _SAME_RESOLUTION else 1.0


@lru_cache(maxsize=256)
def _geographic(crs: str) -> bool:
    from pyproj import CRS

    return bool(CRS(crs).is_geographic)


@lru_cache(maxsize=256)
def _same_crs(one: str, other: str) -> bool:
    from pyproj import CRS

    return one == other or bool(CRS(one).equals(CRS(other), ignore_axis_order=True))
