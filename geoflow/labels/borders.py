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

_FARTHEST_PX, _NEAR_PX = 23_000, 120  # up to these, sums of two ranks fit into 32 and into 16 bits
_BLOCK, _SUB, _STEPS = 128, 16, 4  # pixels, sites and offsets that are handled together


def halo_px(resolution_m: float, cap_m: int = CAP_M) -> int:
    """How wide a margin of labels a tile needs for the distances within it to be those of the whole country."""
    return math.ceil(cap_m / resolution_m) + 1


def border_distance(
    codes: NDArray[np.integer[Any]], resolution_m: float, cap_m: int = CAP_M, margin: int = 0
) -> NDArray[np.int16]:
    """Distance from each pixel's centre to the nearest class border, in metres.

    Parameters
    ----------
    codes : integer array, dims (y, x)
        0 is nodata. The edge of the array is not a border: give it with a margin of `halo_px` and cut that off.
    resolution_m : float
        Edge of a pixel.
    cap_m : int
        Largest distance to tell, 1 to 32767.
    margin : int
        Pixels on all four sides that are read, but not told.

    Returns
    -------
    int16 array, dims (y, x), without the margin
        Whole metres, rounded down, at most ``cap_m``; `BORDER_NODATA` where the code is 0. A pixel that touches a
        border has half a pixel.

    Raises
    ------
    LabelError
        If ``cap_m`` or ``resolution_m`` is out of range, or the margin leaves nothing.

    Notes
    -----
    The nearest point of a border is either straight above or below on an edge, or a corner where a vertical edge ends,
    or straight left or right on one. So the squared distance is the least of (a) that to the nearest horizontal edge in
    the same column, and (b) over all lines between columns, the squared distance to that line plus the squared distance
    along it to its nearest edge (separable, as in Meijster et al. 2000, "A General Algorithm for Computing Distance
    Transforms in Linear Time"). In halves of a pixel all these lengths are odd or 0, and the square of 2n + 1 is
    4n(n + 1) + 1. So n(n + 1) ranks the distances, a sum of two such squares ranks n(n + 1) + m(m + 1) + 1, and up to
    the cap ranks fit into 16 bits. Then to try every offset, many pixels at once, is quicker than the lower envelope of
    parabolas that (b) asks for; a block of pixels leaves off where no offset can better any of them.
    """
    if not 1 <= cap_m <= np.iinfo(np.int16).max:
        raise LabelError(f"distances to borders are kept up to 1 to 32767 m, not {cap_m}")
    if not resolution_m > 0:
        raise LabelError(f"pixels must have a positive size, not {resolution_m} m")
    farthest = halo_px(resolution_m, cap_m)
    if farthest > _FARTHEST_PX:
        raise LabelError(f"{cap_m} m are too many pixels of {resolution_m} m; keep distances up to less")
    if margin < 0 or 2 * margin >= min(codes.shape):
        raise LabelError(f"a margin of {margin} px leaves nothing of {codes.shape[0]} x {codes.shape[1]} px")
    codes = np.ascontiguousarray(codes)
    dtype = np.int16 if farthest <= _NEAR_PX else np.int32
    ranks, along = np.empty(codes.shape, dtype), np.empty(codes.shape, dtype)
    out = np.empty((codes.shape[0] - 2 * margin, codes.shape[1] - 2 * margin), np.int16)
    most = farthest * (farthest + 1)
    table = _table(most + 1 if dtype == np.int16 else 0, resolution_m / 2, cap_m)
    _distances(codes, farthest, ranks, along, margin, table, resolution_m / 2, cap_m, out)
    return out


@numba.njit(cache=True, nogil=True, inline="always")
def _metres(rank: int, half_m: float, cap_m: int) -> int:
    """From a rank to metres."""
    square = 8 * (rank >> 1) + 1 + (rank & 1)
    # A hair up before cutting: 30 m are not 29 because the resolution is not a round number in binary.
    return min(int(math.sqrt(square) * half_m + 1e-6), cap_m)


@numba.njit(cache=True, nogil=True)
def _table(count: int, half_m: float, cap_m: int) -> NDArray[np.int16]:
    """The metres of the first ranks."""
    table = np.empty(count, np.int16)
    for rank in range(count):
        table[rank] = _metres(rank, half_m, cap_m)
    return table


@numba.njit(cache=True, nogil=True)
def _in_metres(
    ranks: NDArray[Any],
    codes: NDArray[Any],
    table: NDArray[np.int16],
    half_m: float,
    cap_m: int,
    out: NDArray[np.int16],
) -> None:
    """A row of ranks in metres; looked up where there is a table, which takes a fifth of the time."""
    for x in range(np.uint64(out.size)):
        if codes[x] == 0:
            out[x] = BORDER_NODATA
        elif table.size:
            out[x] = table[np.uint64(ranks[x])]
        else:
            out[x] = _metres(int(ranks[x]), half_m, cap_m)


# Below, every sum is cast back to the array's own type (``of``): numba would go on in 64 bits, with a quarter of the
# pixels at once. Unsigned indices spare it the check for negative ones, which would keep it from more than one at once.


@numba.njit(cache=True, nogil=True)
def _distances(
    codes: NDArray[Any],
    farthest: int,
    ranks: NDArray[Any],
    along: NDArray[Any],
    cut: int,
    table: NDArray[np.int16],
    half_m: float,
    cap_m: int,
    out: NDArray[np.int16],
) -> None:
    """Ranks of the distances to the nearest border, at most that of ``farthest`` (pixels), and from them metres.

    ``ranks`` and ``along`` are scratch, of the shape of ``codes``; ``out`` is ``cut`` pixels smaller on all sides. Each
    row is brought to its end while the processor's caches hold it.
    """
    height, width = codes.shape
    of = ranks.dtype.type
    # Rows from a pixel, and from its right side, up to the last edge that was met: horizontal, and vertical.
    most, most_along = of(farthest), of(farthest + 1)
    rows, side = np.full(width, most, ranks.dtype), np.full(width, most_along, ranks.dtype)
    for y in range(height):
        _one_row_on(codes[y], codes[max(y - 1, 0)], rows, most)
        _one_row_on_aside(codes[y], side, most_along)
        ranks[y], along[y] = rows, side
    rows[:], side[:] = most, most_along
    # Sites: the lines between columns, with a margin so wide that no offset leads out of the array.
    margin = farthest + 2 * _STEPS
    sites = np.full(-(-(width + 2 * margin) // _SUB) * _SUB, of(farthest * (farthest + 1)), ranks.dtype)
    least = np.empty(sites.size // _SUB, ranks.dtype)
    for y in range(height - 1, -1, -1):
        _one_row_on(codes[y], codes[min(y + 1, height - 1)], rows, most)
        _one_row_on_aside(codes[y], side, most_along)
        here, there = ranks[y], along[y]
        for x in range(width):
            n = rows[x] if rows[x] < here[x] else here[x]
            here[x] = of(n * of(n + of(1)))
        inner = sites[margin : margin + width - 1]
        for x in range(inner.size):
            n = side[x] if side[x] < there[x] else there[x]
            inner[x] = of(0) if n == of(0) else of(of(n * of(n - of(1))) + of(1))
        if cut <= y < height - cut:
            _sideways(here, sites, least, margin)
            inner_codes = codes[y, cut : width - cut]
            _in_metres(here[cut : width - cut], inner_codes, table, half_m, cap_m, out[y - cut])


@numba.njit(cache=True, nogil=True)
def _one_row_on(here: NDArray[Any], before: NDArray[Any], rows: NDArray[Any], most: Any) -> None:
    of = rows.dtype.type
    for x in range(rows.size):
        more = of(rows[x] + of(1))
        rows[x] = of(0) if here[x] != before[x] else (most if most < more else more)


@numba.njit(cache=True, nogil=True)
def _one_row_on_aside(here: NDArray[Any], side: NDArray[Any], most: Any) -> None:
    of = side.dtype.type
    for x in range(np.uint64(max(side.size - 1, 0))):
        more = of(side[x] + of(1))
        side[x] = of(0) if here[x] != here[x + np.uint64(1)] else (most if most < more else more)


@numba.njit(cache=True, nogil=True)
def _sideways(here: NDArray[Any], sites: NDArray[Any], least: NDArray[Any], margin: int) -> None:
    """Lower the ranks of a row to those by way of a site, where that is nearer."""
    for i in range(least.size):
        lowest = sites[np.uint64(i * _SUB)]
        for j in range(np.uint64(_SUB)):
            lowest = _smaller(lowest, sites[np.uint64(i * _SUB) + j])
        least[i] = lowest
    for first in range(0, here.size, _BLOCK):
        count = min(_BLOCK, here.size - first)
        block = here[first : first + count]
        worst = _largest(block)
        within_reach = least[first // _SUB : (first + count + 2 * margin - 2) // _SUB + 1].min()
        offset = 0
        while offset * (offset + 1) + within_reach < worst and offset < margin - _STEPS:
            right, left = first + margin + offset, first + margin - 1 - offset
            best = worst
            for i in range(right // _SUB, (right + _STEPS + count - 2) // _SUB + 1):
                best = min(best, least[i])
            for i in range((left - _STEPS + 1) // _SUB, (left + count - 1) // _SUB + 1):
                best = min(best, least[i])
            if offset * (offset + 1) + best < worst:
                _try_offsets(block, sites, np.uint64(right), np.uint64(left), offset)
                worst = _largest(block)
            offset += _STEPS


@numba.njit(cache=True, nogil=True)
def _try_offsets(block: NDArray[Any], sites: NDArray[Any], right: Any, left: Any, offset: int) -> None:
    """Four offsets to either side, written out: a block is then loaded and stored once for all of them."""
    of = block.dtype.type
    k0, k1 = of(offset * (offset + 1)), of((offset + 1) * (offset + 2))
    k2, k3 = of((offset + 2) * (offset + 3)), of((offset + 3) * (offset + 4))
    for x in range(np.uint64(block.size)):
        r, s = right + x, left + x
        nearest = block[x]
        a = _smaller(sites[r], sites[s])
        nearest = _smaller(nearest, of(a + k0))
        a = _smaller(sites[r + np.uint64(1)], sites[s - np.uint64(1)])
        nearest = _smaller(nearest, of(a + k1))
        a = _smaller(sites[r + np.uint64(2)], sites[s - np.uint64(2)])
        nearest = _smaller(nearest, of(a + k2))
        a = _smaller(sites[r + np.uint64(3)], sites[s - np.uint64(3)])
        block[x] = _smaller(nearest, of(a + k3))


@numba.njit(cache=True, nogil=True, inline="always")
def _smaller(a: Any, b: Any) -> Any:
    return a if a < b else b


@numba.njit(cache=True, nogil=True)
def _largest(values: NDArray[Any]) -> Any:
    most = values[0]
    for x in range(values.size):
        most = values[x] if values[x] > most else most
    return most
