"""Polygons onto pixels, in whole numbers: which pixel centres lie within which polygon, with nothing left to rounding.

Vertices lie on a lattice of 1/1024 of a pixel that is anchored to the CRS, not to the tile. All decisions are then made
in integers, so that a tile decides as the whole country does, and two polygons that share a border share every pixel
along it out: none is claimed by both, none by neither. `rasterio.features.rasterize` works in floats, takes polygons
apart point by point in Python, and cannot count claims beside the codes: it would have to draw everything twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoflow.errors import LabelError

STEPS = 1024
"""Lattice steps in a pixel."""

_SHIFT, _HALF = 10, STEPS // 2
# Products of two differences must fit into 64 bits.
_FARTHEST = 2**30
# The anchor of a grid is known to a millionth of a pixel only, as its transform is in floats.
_ANCHOR_STEPS = 2.0**20

Move = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True)
class Outlines:
    """Polygons as flat arrays.

    Attributes
    ----------
    x, y : int64 arrays
        Vertices in steps of 1/1024 pixel from the corner of the first pixel; x to the right, y downwards. Each ring
        ends where it began.
    rings : int64 array
        Where each ring begins, and where the last ends.
    features : int64 array
        The first ring of each feature, and the end of the last.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    rings: NDArray[np.int64]
    features: NDArray[np.int64]


def outlines(polygons: NDArray[np.object_], affine: Affine, move: Move | None, where: str) -> Outlines:
    """Polygons on the lattice of a grid.

    Parameters
    ----------
    polygons : object array of shapely polygons and multipolygons
    affine : Affine
        Of a north-up grid.
    move : callable, optional
        Takes x and y of the polygons' CRS to that of the grid.
    where : str
        The file, for messages.

    Raises
    ------
    LabelError
        If a vertex has no coordinates in the grid's CRS, or lies more than a million pixels away.
    """
    import shapely

    if not len(polygons):
        none = np.zeros(0, np.int64)
        return Outlines(none, none, np.zeros(1, np.int64), np.zeros(1, np.int64))
    kind, points, offsets = shapely.to_ragged_array(polygons)
    rings, features = offsets[0], offsets[1]
    if kind == shapely.GeometryType.MULTIPOLYGON:
        features = features[offsets[2]]
    x, y = points[:, 0], points[:, 1]
    if move is not None:
        x, y = move(x, y)
    return Outlines(
        _snapped(x, affine.c, affine.a, where),
        _snapped(y, affine.f, affine.e, where),
        np.asarray(rings, np.int64),
        np.asarray(features, np.int64),
    )


def _snapped(values: NDArray[np.float64], origin: float, pixel: float, where: str) -> NDArray[np.int64]:
    """Coordinates in lattice steps from ``origin``.

    The vertex is rounded on the lattice of the whole CRS before the origin is taken off, so that the tile that asks has
    no say in the rounding.
    """
    start = origin / pixel
    whole = round(start)
    anchor = round((start - whole) * _ANCHOR_STEPS) / _ANCHOR_STEPS
    steps = np.rint((values / pixel - anchor) * STEPS)
    if not np.isfinite(steps).all():
        raise LabelError(f"{where}: a polygon reaches where the grid's CRS has no coordinates; clip it to the area")
    steps -= float(whole) * STEPS
    if len(steps) and np.abs(steps).max() > _FARTHEST:
        raise LabelError(f"{where}: a polygon reaches more than a million pixels beyond the area; clip it to the area")
    return steps.astype(np.int64)


def fill(
    shapes: Outlines, codes: NDArray[np.unsignedinteger[Any]], shape: tuple[int, int]
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.uint8]]:
    """Burn polygons into an array; later ones win.

    A centre on a border belongs to the polygon to its right; on a horizontal border, to the one below. Rings of one
    feature exclude each other's inside (even-odd), so holes are empty.

    Parameters
    ----------
    shapes : Outlines
    codes : unsigned array, one a feature
    shape : (height, width)

    Returns
    -------
    codes : array of the dtype of ``codes``, dims (y, x)
        0 where no polygon holds the pixel centre.
    claims : uint8 array, dims (y, x)
        How many polygons hold it: 0, 1, or 2 for several.
    """
    out, claims = np.zeros(shape, codes.dtype), np.zeros(shape, np.uint8)
    _fill(shapes.x, shapes.y, shapes.rings, shapes.features, codes, out, claims)
    return out, claims


@numba.njit(cache=True, nogil=True, inline="always")
def _first_row(y: int) -> int:
    """The first row whose centre is at or below ``y``."""
    return -((_HALF - y) >> _SHIFT)


@numba.njit(cache=True, nogil=True, inline="always")
def _first_column(x0: int, y0: int, x1: int, y1: int, row: int, width: int) -> int:
    """The first column whose centre is at or right of where an edge crosses the centre line of ``row``, in 0..width."""
    run, rise = x1 - x0, y1 - y0
    if rise < 0:
        run, rise = -run, -rise
    climbed = (row * STEPS + _HALF - y0) * run
    at = x0 + climbed // rise - _HALF
    # A crossing between two steps lies right of the centre at or before the first of them.
    column = (at >> _SHIFT) + 1 if climbed % rise else -((-at) >> _SHIFT)
    return min(max(column, 0), width)


@numba.njit(cache=True, nogil=True)
def _fill(
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    rings: NDArray[np.int64],
    features: NDArray[np.int64],
    codes: NDArray[Any],
    out: NDArray[Any],
    claims: NDArray[np.uint8],
) -> None:
    height, width = out.shape
    for feature in range(codes.size):
        begin, end = rings[features[feature]], rings[features[feature + 1]]
        if begin == end:
            continue
        top = max(0, _first_row(y[begin:end].min()))
        bottom = min(height, _first_row(y[begin:end].max()))
        if top >= bottom or x[begin:end].max() <= 0 or x[begin:end].min() >= width * STEPS:
            continue
        # starts[r]: where the crossings of row top + r begin; counted first, then filled in.
        starts = np.zeros(bottom - top + 1, np.int64)
        for ring in range(features[feature], features[feature + 1]):
            for i in range(rings[ring], rings[ring + 1] - 1):
                first = max(top, _first_row(min(y[i], y[i + 1])))
                last = min(bottom, _first_row(max(y[i], y[i + 1])))
                for row in range(first, last):
                    starts[row - top + 1] += 1
        for row in range(bottom - top):
            starts[row + 1] += starts[row]
        free = starts[:-1].copy()
        columns = np.empty(starts[-1], np.int64)
        for ring in range(features[feature], features[feature + 1]):
            for i in range(rings[ring], rings[ring + 1] - 1):
                first = max(top, _first_row(min(y[i], y[i + 1])))
                last = min(bottom, _first_row(max(y[i], y[i + 1])))
                for row in range(first, last):
                    columns[free[row - top]] = _first_column(x[i], y[i], x[i + 1], y[i + 1], row, width)
                    free[row - top] += 1
        for row in range(bottom - top):
            _sort(columns, starts[row], starts[row + 1])
            for k in range(starts[row], starts[row + 1] - 1, 2):
                # Slices, and a result of one type: the compiler then burns many pixels at once.
                out[top + row, columns[k] : columns[k + 1]] = codes[feature]
                claimed = claims[top + row, columns[k] : columns[k + 1]]
                for column in range(claimed.size):
                    claimed[column] = np.uint8(2) if claimed[column] else np.uint8(1)


@numba.njit(cache=True, nogil=True, inline="always")
def _sort(values: NDArray[np.int64], begin: int, end: int) -> None:
    """Sort a part in place; most rows of most polygons are crossed twice."""
    if end - begin > 32:
        values[begin:end].sort()
        return
    for i in range(begin + 1, end):
        value, at = values[i], i
        while at > begin and values[at - 1] > value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value
