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

import numba
import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoflow.errors import GridError

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
        _nearest(pixels, rows.start, cols.start, *place, out)
    elif scale < 1:
        _averaged(pixels, rows.start, cols.start, *place, scale, out)
    elif method == "bilinear":
        _bilinear(pixels, rows.start, cols.start, *place, out)
    else:
        _cubic(pixels, rows.start, cols.start, *place, out)
    return out


def is_window_of(source: Source, target: Target) -> tuple[int, int] | None:
    """(row, column) of the source's pixel that is the target's first, if all their pixels coincide, else None."""
    if not _same_crs(source.crs, target.crs):
        return None
    step = ~source.transform * target.transform
    if max(abs(step.a - 1), abs(step.e - 1), abs(step.b), abs(step.d)) > 1e-9:
        return None
    if max(abs(step.c - round(step.c)), abs(step.f - round(step.f))) > 1e-3:
        return None
    return round(step.f), round(step.c)


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


@numba.njit(cache=True, nogil=True, inline="always")
def _floor(value: float) -> int:
    """Faster than math.floor, which asks the C library."""
    whole = int(value)
    return whole - (value < whole)


@numba.njit(cache=True, nogil=True, inline="always")
def _between(nodes: Any, row: int, col: int, down: float) -> tuple[float, float]:
    """Values at the left and right side of a cell, ``down`` of the way from its upper to its lower edge."""
    left = nodes[row, col] + (nodes[row + 1, col] - nodes[row, col]) * down
    right = nodes[row, col + 1] + (nodes[row + 1, col + 1] - nodes[row, col + 1]) * down
    return left, right


# Each kernel walks over the target row by row, and in a row cell by cell of the lattice. ``top`` and ``left`` are the
# source's row and column of the first of ``pixels``: places are computed in the whole source and moved last, by whole
# numbers, so that the window that was read does not alter a bit.


@numba.njit(cache=True, nogil=True)
def _nearest(pixels: Any, top: int, left: int, u: Any, v: Any, row0: int, col0: int, step: int, out: Any) -> None:
    height, width = out.shape
    rows, cols = pixels.shape
    for y in range(height):
        node_row, down = (row0 + y) // step, ((row0 + y) % step + 0.5) / step
        x = 0
        while x < width:
            node_col = (col0 + x) // step
            end = min(width, (node_col + 1) * step - col0)
            u_left, u_right = _between(u, node_row, node_col, down)
            v_left, v_right = _between(v, node_row, node_col, down)
            if math.isfinite(u_left + u_right + v_left + v_right):
                for k in range(x, end):
                    along = (col0 + k - node_col * step + 0.5) / step
                    col = _floor(u_left + (u_right - u_left) * along) - left
                    row = _floor(v_left + (v_right - v_left) * along) - top
                    if 0 <= row < rows and 0 <= col < cols:
                        out[y, k] = pixels[row, col]
            x = end


@numba.njit(cache=True, nogil=True, inline="always")
def _has_data(pixels: Any, row: int, col: int) -> bool:
    return 0 <= row < pixels.shape[0] and 0 <= col < pixels.shape[1] and pixels[row, col] != 0


@numba.njit(cache=True, nogil=True, inline="always")
def _mixed(pixels: Any, row: int, col: int, right: float, below: float) -> float:
    """Bilinear value at a place between four pixels, of those that have data; at least one has."""
    rows, cols = pixels.shape
    total, weights = 0.0, 0.0
    for i in range(2):
        r = row + i
        if not 0 <= r < rows:
            continue
        weight_row = below if i else 1.0 - below
        for j in range(2):
            c = col + j
            if not 0 <= c < cols or pixels[r, c] == 0:
                continue
            weight = weight_row * (right if j else 1.0 - right)
            total += weight * pixels[r, c]
            weights += weight
    return total / weights


@numba.njit(cache=True, nogil=True)
def _bilinear(pixels: Any, top: int, left: int, u: Any, v: Any, row0: int, col0: int, step: int, out: Any) -> None:
    height, width = out.shape
    rows, cols = pixels.shape
    for y in range(height):
        node_row, down = (row0 + y) // step, ((row0 + y) % step + 0.5) / step
        x = 0
        while x < width:
            node_col = (col0 + x) // step
            end = min(width, (node_col + 1) * step - col0)
            u_left, u_right = _between(u, node_row, node_col, down)
            v_left, v_right = _between(v, node_row, node_col, down)
            if math.isfinite(u_left + u_right + v_left + v_right):
                for k in range(x, end):
                    along = (col0 + k - node_col * step + 0.5) / step
                    at_u, at_v = u_left + (u_right - u_left) * along, v_left + (v_right - v_left) * along
                    first_u, first_v = _floor(at_u - 0.5), _floor(at_v - 0.5)
                    right, below = at_u - 0.5 - first_u, at_v - 0.5 - first_v
                    col, row = first_u - left, first_v - top
                    if 0 <= row < rows - 1 and 0 <= col < cols - 1:
                        a, b = pixels[row, col], pixels[row, col + 1]
                        c, d = pixels[row + 1, col], pixels[row + 1, col + 1]
                        if a != 0 and b != 0 and c != 0 and d != 0:
                            upper, lower = a * (1.0 - right) + b * right, c * (1.0 - right) + d * right
                            out[y, k] = int(upper * (1.0 - below) + lower * below + 0.5)
                            continue
                    if _has_data(pixels, _floor(at_v) - top, _floor(at_u) - left):
                        out[y, k] = int(_mixed(pixels, row, col, right, below) + 0.5)
            x = end


@numba.njit(cache=True, nogil=True, inline="always")
def _keys(t: float) -> tuple[float, float, float, float]:
    """Weights of the four pixels around a place, ``t`` of the way from the second to the third."""
    t2, t3 = t * t, t * t * t
    return (
        -0.5 * t3 + t2 - 0.5 * t,
        1.5 * t3 - 2.5 * t2 + 1.0,
        -1.5 * t3 + 2.0 * t2 + 0.5 * t,
        0.5 * t3 - 0.5 * t2,
    )


@numba.njit(cache=True, nogil=True)
def _cubic(pixels: Any, top: int, left: int, u: Any, v: Any, row0: int, col0: int, step: int, out: Any) -> None:
    height, width = out.shape
    rows, cols = pixels.shape
    largest = 255 if pixels.itemsize == 1 else 65535
    for y in range(height):
        node_row, down = (row0 + y) // step, ((row0 + y) % step + 0.5) / step
        for x in range(width):
            node_col = (col0 + x) // step
            along = ((col0 + x) % step + 0.5) / step
            u_left, u_right = _between(u, node_row, node_col, down)
            v_left, v_right = _between(v, node_row, node_col, down)
            at_u, at_v = u_left + (u_right - u_left) * along, v_left + (v_right - v_left) * along
            if not (math.isfinite(at_u) and math.isfinite(at_v)):
                continue
            if not _has_data(pixels, _floor(at_v) - top, _floor(at_u) - left):
                continue
            first_u, first_v = _floor(at_u - 0.5), _floor(at_v - 0.5)
            right, below = at_u - 0.5 - first_u, at_v - 0.5 - first_v
            col, row = first_u - left, first_v - top
            whole = 1 <= row < rows - 2 and 1 <= col < cols - 2
            total = 0.0
            if whole:
                across, downwards = _keys(right), _keys(below)
                for i in range(4):
                    for j in range(4):
                        value = pixels[row - 1 + i, col - 1 + j]
                        whole &= value != 0
                        total += downwards[i] * across[j] * value
            if not whole:
                total = _mixed(pixels, row, col, right, below)
            out[y, x] = int(min(max(total, 1.0), largest) + 0.5) if total < largest else largest


@numba.njit(cache=True, nogil=True)
def _averaged(
    pixels: Any, top: int, left: int, u: Any, v: Any, row0: int, col0: int, step: int, scale: float, out: Any
) -> None:
    """A triangle of a grid pixel's width to each side of its centre, over the source pixels that have data."""
    height, width = out.shape
    rows, cols = pixels.shape
    reach = 1.0 / scale
    for y in range(height):
        node_row, down = (row0 + y) // step, ((row0 + y) % step + 0.5) / step
        for x in range(width):
            node_col = (col0 + x) // step
            along = ((col0 + x) % step + 0.5) / step
            u_left, u_right = _between(u, node_row, node_col, down)
            v_left, v_right = _between(v, node_row, node_col, down)
            at_u, at_v = u_left + (u_right - u_left) * along, v_left + (v_right - v_left) * along
            if not (math.isfinite(at_u) and math.isfinite(at_v)):
                continue
            if not _has_data(pixels, _floor(at_v) - top, _floor(at_u) - left):
                continue
            total, weights = 0.0, 0.0
            for i in range(math.ceil(at_v - reach - 0.5), math.floor(at_v + reach - 0.5) + 1):
                row = i - top
                if not 0 <= row < rows:
                    continue
                weight_row = 1.0 - abs(i + 0.5 - at_v) * scale
                for j in range(math.ceil(at_u - reach - 0.5), math.floor(at_u + reach - 0.5) + 1):
                    col = j - left
                    if not 0 <= col < cols or pixels[row, col] == 0:
                        continue
                    weight = weight_row * (1.0 - abs(j + 0.5 - at_u) * scale)
                    total += weight * pixels[row, col]
                    weights += weight
            out[y, x] = int(total / weights + 0.5)
