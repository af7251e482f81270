"""Composites of a stack of observations, on numpy arrays alone.

One function a method. `median_composite` and `percentile_composite` take every band for itself; the others take a pixel
with all its bands, so that its spectrum is one that the ground had (`medoid_composite`, `best_composite`) or the centre
of such ones (`geomedian_composite`). All read int16 in any unit with nodata `geoflow.inputs.NODATA` and let no NaN or
float64 cube arise: a median over float64 with NaN costs twenty times as much.

Scenes are told apart by their place in the stack, and where two are equally good, the first is taken. So a caller who
hands them over in one order gets one result.
"""

from __future__ import annotations

import math
from functools import cache

import numba
import numpy as np
from numpy.typing import NDArray

from geoflow.inputs import NODATA

NO_SOURCE = 65535
"""Nodata of an index of source scenes (uint16)."""

GEOMEDIAN_STEP = 0.05
"""`geomedian_composite` has converged where its centre moves by less than this, in the cube's unit."""

GEOMEDIAN_STRIDE = 1.5
"""Weiszfeld's step times this; every factor from 1 to 2 converges (Ostresh 1978, doi:10.1287/opre.26.4.597)."""

GEOMEDIAN_ITERATIONS = 200

_EMPTY = np.int16(NODATA)
_LAST = np.int16(np.iinfo(np.int16).max)
_STRIP = 512  # pixels that are sorted at a time: few enough for a core's cache, enough for its vector units

Int16 = NDArray[np.int16]
Clear = NDArray[np.bool_]
Uint8 = NDArray[np.uint8]
Source = NDArray[np.uint16]


def median_composite(cube: Int16, clear: Clear) -> tuple[Int16, Uint8]:
    """Median over time of what is clear and valid: `percentile_composite` at 50.

    Of an even number of observations it is the mean of the two middle ones, halves rounded up (towards plus infinity).
    """
    return percentile_composite(cube, clear, 50)


def percentile_composite(cube: Int16, clear: Clear, percent: int) -> tuple[Int16, Uint8]:
    """Percentile over time of what is clear and valid, for every band by itself.

    Parameters
    ----------
    cube : int16 array, dims (time, band, y, x)
        Any unit, nodata `geoflow.inputs.NODATA`.
    clear : bool array, dims (time, y, x)
        True where an observation may be used.
    percent : int
        0 (the smallest) to 100 (the largest).

    Returns
    -------
    value : int16 array, dims (band, y, x)
        Linear between the two ranks around ``percent / 100 * (n - 1)``, definition 7 of Hyndman and Fan (1996,
        doi:10.2307/2684934), halves rounded up. Nodata where there is no observation.
    count : uint8 array, dims (band, y, x)
        Number of observations used, 255 meaning 255 or more.
    """
    times, bands, height, width = cube.shape
    value = np.empty((bands, height, width), np.int16)
    count = np.empty((bands, height, width), np.uint8)
    stack, mask = _flat(cube, clear)
    ranks = _ranks(times, percent)
    _percentiles(stack, mask, _sorting_network(times), ranks, value.reshape(-1), count.reshape(-1))
    return value, count


def medoid_composite(cube: Int16, clear: Clear) -> tuple[Int16, Uint8, Source]:
    """The observation whose summed distance to all others is the smallest.

    The medoid of Flood (2013, doi:10.3390/rs5126481), with Euclidean distances over all bands. Of equally central
    observations the first is taken; so of two observations always the first.

    Parameters
    ----------
    cube : int16 array, dims (time, band, y, x)
        Any unit, nodata `geoflow.inputs.NODATA`. An observation counts only if all its bands are valid.
    clear : bool array, dims (time, y, x)
        True where an observation may be used.

    Returns
    -------
    value : int16 array, dims (band, y, x)
        Nodata where there is no observation.
    count : uint8 array, dims (y, x)
        Number of observations compared, 255 meaning 255 or more.
    source : uint16 array, dims (y, x)
        Place in the stack of the one taken, `NO_SOURCE` where there is none.
    """
    out = _outputs(cube)
    _medoids(*_flat_pixels(cube, clear), *(a.reshape(-1) if a.ndim == 2 else a.reshape(len(a), -1) for a in out))
    return out


def geomedian_composite(cube: Int16, clear: Clear) -> tuple[Int16, Uint8]:
    """The spectrum whose summed distance to all observations is the smallest: the geometric median.

    As Roberts, Mueller and McIntyre (2017, doi:10.1109/TGRS.2017.2723896) compose images. Found by Weiszfeld's
    iterations, which start from the medoid with the step of Vardi and Zhang (2000, doi:10.1073/pnas.97.4.1423) and end
    when the centre moves by less than `GEOMEDIAN_STEP`, or after `GEOMEDIAN_ITERATIONS`. Of two observations, for which
    every spectrum between them is as good, it is their mean.

    Parameters
    ----------
    cube, clear
        As for `medoid_composite`.

    Returns
    -------
    value : int16 array, dims (band, y, x)
        Rounded, halves up. Nodata where there is no observation.
    count : uint8 array, dims (y, x)
        Number of observations used, 255 meaning 255 or more.
    """
    value, count, _ = _outputs(cube)
    _geomedians(*_flat_pixels(cube, clear), value.reshape(len(value), -1), count.reshape(-1))
    return value, count


def best_composite(cube: Int16, score: NDArray[np.uint16]) -> tuple[Int16, Uint8, Source]:
    """The observation with the highest score; of equal ones the first.

    Parameters
    ----------
    cube : int16 array, dims (time, band, y, x)
        As for `medoid_composite`.
    score : uint16 array, dims (time, y, x)
        0 where an observation may not be used. `geoflow.imagery.scores` makes them.

    Returns
    -------
    value, count, source
        As of `medoid_composite`; ``count`` is the number of observations with a score.
    """
    out = _outputs(cube)
    stack, mask = _flat_pixels(cube, score > 0)
    ranked = np.ascontiguousarray(score).reshape(len(score), -1)
    _best(stack, mask, ranked, *(a.reshape(-1) if a.ndim == 2 else a.reshape(len(a), -1) for a in out))
    return out


def _outputs(cube: Int16) -> tuple[Int16, Uint8, Source]:
    _, bands, height, width = cube.shape
    shape = (height, width)
    return np.empty((bands, *shape), np.int16), np.empty(shape, np.uint8), np.empty(shape, np.uint16)


def _flat(cube: Int16, clear: Clear) -> tuple[Int16, Uint8]:
    """Both with pixels along one axis: dims (time, band and pixel), (time, pixel)."""
    stack = np.ascontiguousarray(cube).reshape(len(cube), -1)
    return stack, np.ascontiguousarray(clear).view(np.uint8).reshape(len(clear), -1)


def _flat_pixels(cube: Int16, clear: Clear) -> tuple[Int16, Uint8]:
    """Both with pixels along one axis: dims (time, band, pixel), (time, pixel)."""
    stack, mask = _flat(cube, clear)
    return stack.reshape(*cube.shape[:2], -1), mask


@cache
def _ranks(times: int, percent: int) -> NDArray[np.int32]:
    """For each number of observations: the rank below, the rank above, and the hundredths of the way between them."""
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentile is 0 to 100, not {percent}")
    place = np.maximum(np.arange(times + 1) - 1, 0) * percent
    low, part = place // 100, place % 100
    return np.stack([low, low + (part > 0), part], axis=1).astype(np.int32)


@cache
def _sorting_network(n: int) -> NDArray[np.int64]:
    """Pairs to compare and exchange so that n values end up ascending: Batcher's odd-even merge sort.

    D. E. Knuth, The Art of Computer Programming, volume 3, 5.2.2, algorithm M.
    """
    pairs = []
    top = 1 << max(0, math.ceil(math.log2(max(n, 1))) - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            d, q, r = q - p, q // 2, p
        p //= 2
    return np.array(pairs, np.int64).reshape(-1, 2)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _percentiles(stack, clear, pairs, ranks, value, count):  # type: ignore[no-untyped-def]
    """`percentile_composite`, strip by strip: dims (time, band and pixel), (time, pixel), results flat.

    What is not usable becomes the largest int16, so that sorting along time puts the n usable values first; a usable
    value as large is as good as its stand-in. Comparing whole strips, a vector of pixels at a time, is three times
    faster than sorting pixel by pixel.
    """
    times, pixels = clear.shape
    ranked = np.empty((times, _STRIP), np.int16)
    number = np.empty(_STRIP, np.int16)
    for first in range(0, stack.shape[1], pixels):
        for x in range(0, pixels, _STRIP):
            size = min(_STRIP, pixels - x)
            n = number[:size]
            n[:] = 0
            at = slice(first + x, first + x + size)
            for t in range(times):
                _rank_usable(stack[t, at], clear[t, x : x + size], ranked[t, :size], n)
            for k in range(len(pairs)):
                _exchange(ranked[pairs[k, 0], :size], ranked[pairs[k, 1], :size])
            fewest, most = n.min(), n.max()
            if fewest == 0:
                value[at] = _EMPTY
            for have in range(max(1, fewest), most + 1):
                low, high, part = ranks[have]
                _between(ranked[low, :size], ranked[high, :size], part, n, have, value[at])
            _clip_counts(n, count[at])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _rank_usable(values, clear, ranked, number):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        usable = (clear[i] != 0) & (values[i] != _EMPTY)
        ranked[i] = values[i] if usable else _LAST
        number[i] += np.int16(usable)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _exchange(low, high):  # type: ignore[no-untyped-def]
    for i in range(low.size):
        a, b = low[i], high[i]
        low[i] = a if a < b else b
        high[i] = b if a < b else a


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _between(low, high, part, number, have, value):  # type: ignore[no-untyped-def]
    """``part`` hundredths of the way from low to high, halves up, where ``number`` is ``have``."""
    n, p, q = np.int16(have), np.int32(part), np.int32(100 - part)
    shift = np.int32(32768)
    for i in range(low.size):
        mixed = (np.int32(low[i]) + shift) * q + (np.int32(high[i]) + shift) * p + np.int32(50)
        found = np.int16(np.int32(np.uint32(mixed) // np.uint32(100)) - shift)
        value[i] = found if number[i] == n else value[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _clip_counts(number, count):  # type: ignore[no-untyped-def]
    for i in range(number.size):
        count[i] = np.uint8(number[i] if number[i] < 255 else 255)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gather(stack, clear, at, points, places):  # type: ignore[no-untyped-def]
    """Copy the usable observations of a pixel to ``points`` (place, band) and their times to ``places``: how many."""
    n = 0
    for t in range(stack.shape[0]):
        if clear[t, at] == 0:
            continue
        valid = True
        for b in range(stack.shape[1]):
            number = stack[t, b, at]
            valid &= number != _EMPTY
            points[n, b] = number
        if valid:
            places[n] = t
            n += 1
    return n


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _take(stack, at, n, time, value, count, source):  # type: ignore[no-untyped-def]
    """Put the observation of one time, or nodata if ``n`` is 0, where it belongs."""
    for b in range(stack.shape[1]):
        value[b, at] = stack[time, b, at] if n > 0 else _EMPTY
    count[at] = min(n, 255)
    source[at] = time if n > 0 else NO_SOURCE


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _medoids(stack, clear, value, count, source):  # type: ignore[no-untyped-def]
    times, bands, pixels = stack.shape
    points, places = np.empty((times + 1, bands)), np.empty(times + 1, np.int64)
    total = np.empty(times)
    for at in range(pixels):
        n = _gather(stack, clear, at, points, places)
        _take(stack, at, n, places[_central(points, n, total)] if n > 0 else 0, value, count, source)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _central(points, n, total):  # type: ignore[no-untyped-def]
    """Which of the first ``n`` points has the smallest summed distance to the others; the first of equals.

    Sums are added up in the order of the points, so that equal points have equal sums to the last bit.
    """
    if n < 3:
        return 0
    total[:n] = 0
    for i in range(n):
        for j in range(i + 1, n):
            square = 0.0
            for b in range(points.shape[1]):
                step = points[i, b] - points[j, b]
                square += step * step
            distance = math.sqrt(square)
            total[i] += distance
            total[j] += distance
    best = 0
    for i in range(1, n):
        if total[i] < total[best]:
            best = i
    return best


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _geomedians(stack, clear, value, count):  # type: ignore[no-untyped-def]
    times, bands, pixels = stack.shape
    points, places = np.empty((times + 1, bands)), np.empty(times + 1, np.int64)
    total, centre, spare = np.empty(times), np.empty(bands), np.empty(bands)
    for at in range(pixels):
        n = _gather(stack, clear, at, points, places)
        count[at] = min(n, 255)
        if n == 0:
            value[:, at] = _EMPTY
            continue
        _geometric_median(points, n, total, centre, spare)
        for b in range(bands):
            value[b, at] = math.floor(centre[b] + 0.5)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _geometric_median(points, n, total, centre, spare):  # type: ignore[no-untyped-def]
    """The geometric median of the first ``n`` points in ``centre``; returns the number of iterations.

    If it is one of the points, then it is the medoid, and the first step says so. Else that step leads to where the sum
    is smaller than at any point, so that no later one meets a point.
    """
    bands = points.shape[1]
    if n < 3:
        for b in range(bands):
            centre[b] = (points[0, b] + points[n - 1, b]) / 2
        return 0
    centre[:] = points[_central(points, n, total)]
    pull = spare
    for iteration in range(GEOMEDIAN_ITERATIONS):
        pull[:] = 0
        weights, met = 0.0, 0
        for i in range(n):
            square = 0.0
            for b in range(bands):
                step = points[i, b] - centre[b]
                square += step * step
            if square < 1e-12:
                met += 1
                continue
            weight = 1 / math.sqrt(square)
            weights += weight
            for b in range(bands):
                pull[b] += weight * (points[i, b] - centre[b])
        strength = 0.0
        for b in range(bands):
            strength += pull[b] * pull[b]
        strength = math.sqrt(strength)
        if strength <= met:
            return iteration
        share = (1 - met / strength if met else GEOMEDIAN_STRIDE) / weights
        centre += share * pull
        if strength * share < GEOMEDIAN_STEP:
            return iteration + 1
    return GEOMEDIAN_ITERATIONS


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _best(stack, clear, score, value, count, source):  # type: ignore[no-untyped-def]
    times, bands, pixels = stack.shape
    points, places = np.empty((times + 1, bands), np.int16), np.empty(times + 1, np.int64)
    for at in range(pixels):
        n = _gather(stack, clear, at, points, places)
        best = 0
        for i in range(1, n):
            if score[places[i], at] > score[places[best], at]:
                best = i
        _take(stack, at, n, places[best] if n > 0 else 0, value, count, source)
