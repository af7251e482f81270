"""How far each pixel lies from the nearest class border: labels are least sure where polygons meet.

A border is the edge between two pixels of different codes; nodata counts as a code of its own, since a label is as
unsure where labels end as where another class begins, and a sliver of nodata between two classes must not hide their
border. Distances are exact (no chamfer) and are computed in integers, so that they do not depend on the tile.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError

CAP_M = 1000
"""Distances are kept up to this; farther pixels have it. CORINE draws nothing narrower than 100 m, and a border is off
by up to about that: beyond some hundreds of metres no use asks for the exact distance."""

BORDER_NODATA = -1
"""Of pixels without a class."""

_FARTHEST = 46_340  # half pixels: squares must fit into 32 bits


def halo_px(resolution_m: float, cap_m: int = CAP_M) -> int:
    """How wide a margin of labels a tile needs for the distances within it to be those of the whole country."""
    return math.ceil(cap_m / resolution_m) + 1


def border_distance(codes: NDArray[np.integer[Any]], resolution_m: float, cap_m: int = CAP_M) -> NDArray[np.int16]:
    """Distance from each pixel's centre to the nearest class border, in metres.

    Parameters
    ----------
    codes : integer array, dims (y, x)
        0 is nodata. The edge of the array is not a border: give it with a margin of `halo_px` and cut that off.
    resolution_m : float
        Edge of a pixel.
    cap_m : int
        Largest distance to tell, 1 to 32767.

    Returns
    -------
    int16 array, dims (y, x)
        Whole metres, rounded down, at most ``cap_m``; `BORDER_NODATA` where the code is 0. A pixel that touches a
        border has half a pixel.

    Raises
    ------
    LabelError
        If ``cap_m`` or ``resolution_m`` is out of range.

    Notes
    -----
    The nearest point of a border is either straight above, below, left or right on an edge, or a corner where a
    vertical edge ends. So the squared distance is the least of (a) that to the nearest horizontal edge in the same
    column, and (b) over all lines between columns, the squared distance to that line plus the squared distance along it
    to its nearest edge: a lower envelope of parabolas (Felzenszwalb and Huttenlocher 2012, "Distance Transforms of
    Sampled Functions"). Lengths are in halves of a pixel, hence whole numbers.
    """
    if not 1 <= cap_m <= np.iinfo(np.int16).max:
        raise LabelError(f"distances to borders are kept up to 1 to 32767 m, not {cap_m}")
    if not resolution_m > 0:
        raise LabelError(f"pixels must have a positive size, not {resolution_m} m")
    reach = 2 * halo_px(resolution_m, cap_m) + 1
    if reach > _FARTHEST:
        raise LabelError(f"{cap_m} m are too many pixels of {resolution_m} m; keep distances up to less")
    squares = _squared_half_pixels(np.ascontiguousarray(codes), reach)
    out = np.empty(codes.shape, np.int16)
    _in_metres(squares, codes, resolution_m / 2, cap_m, out)
    return out


@numba.njit(cache=True, nogil=True)
def _in_metres(
    squares: NDArray[np.int32], codes: NDArray[Any], half_m: float, cap_m: int, out: NDArray[np.int16]
) -> None:
    for y in range(codes.shape[0]):
        for x in range(codes.shape[1]):
            # A hair up before cutting: 30 m are not 29 because the resolution is not a round number in binary.
            metres = int(math.sqrt(squares[y, x]) * half_m + 1e-6)
            out[y, x] = BORDER_NODATA if codes[y, x] == 0 else min(metres, cap_m)


@numba.njit(cache=True, nogil=True)
def _squared_half_pixels(codes: NDArray[Any], reach: int) -> NDArray[np.int32]:
    """Squared distance in half pixels, at most ``reach`` squared."""
    height, width = codes.shape
    limit = reach * reach
    found = np.full((height, width), limit, np.int32)
    # along[y, i]: from the centre line of row y along the line between columns i and i + 1 to its nearest vertical edge
    along = np.full((height, max(width - 1, 0)), reach, np.int32)
    for down in (True, False):
        above = np.full(width, reach, np.int32)
        line = np.full(max(width - 1, 0), reach, np.int32)
        for step in range(height):
            y = step if down else height - 1 - step
            before = y - 1 if down else y + 1
            for x in range(width):
                if step == 0:
                    pass
                elif codes[y, x] != codes[before, x]:
                    above[x] = 1
                else:
                    above[x] = min(above[x] + 2, reach)
                found[y, x] = min(found[y, x], above[x] * above[x])
            for i in range(width - 1):
                if codes[y, i] != codes[y, i + 1]:
                    line[i] = 0
                elif line[i] == 0:
                    line[i] = 1
                else:
                    line[i] = min(line[i] + 2, reach)
                along[y, i] = min(along[y, i], line[i])
    sites, heights = np.empty(width, np.int64), np.empty(width, np.int64)
    for y in range(height):
        count = 0
        for i in range(width - 1):
            if along[y, i] >= reach:
                continue
            site, square = 2 * i + 1, np.int64(along[y, i]) ** 2
            while count and _hidden(sites, heights, count, site, square):
                count -= 1
            sites[count], heights[count] = site, square
            count += 1
        at = 0
        for x in range(width):
            if not count:
                break
            here = 2 * x
            while at + 1 < count and _to(sites, heights, at + 1, here) <= _to(sites, heights, at, here):
                at += 1
            found[y, x] = min(np.int64(found[y, x]), _to(sites, heights, at, here))
    return found


@numba.njit(cache=True, nogil=True, inline="always")
def _to(sites: NDArray[np.int64], heights: NDArray[np.int64], at: int, here: int) -> Any:
    return (here - sites[at]) ** 2 + heights[at]


@numba.njit(cache=True, nogil=True, inline="always")
def _hidden(sites: NDArray[np.int64], heights: NDArray[np.int64], count: int, site: int, square: Any) -> bool:
    """Whether the last parabola kept lies nowhere below both its neighbour before and the new one."""
    b, fb = sites[count - 1], heights[count - 1]
    if count == 1:
        return False
    a, fa = sites[count - 2], heights[count - 2]
    # where a meets the new one <= where a meets b  (cross-multiplied: no division)
    return ((square + site * site) - (fa + a * a)) * (b - a) <= ((fb + b * b) - (fa + a * a)) * (site - a)
