"""Composites of a stack of observations, on numpy arrays alone.

Everything stays in integers: a median over float64 with NaN costs twenty times as much.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from geoflow.inputs import NODATA

_STRIP_VALUES = 1 << 17  # values that a strip of all scenes may hold: what stays in a core's cache while it is sorted
_LAST = np.int16(np.iinfo(np.int16).max)


def median_composite(cube: NDArray[np.int16], clear: NDArray[np.bool_]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Median over time of what is clear and valid.

    Parameters
    ----------
    cube : int16 array, dims (time, ..., y, x)
        Any unit, nodata `geoflow.inputs.NODATA`.
    clear : bool array, dims (time, ..., y, x), broadcast against ``cube``
        True where an observation may be used.

    Returns
    -------
    median : int16 array, dims (..., y, x)
        The middle value; of an even number the mean of the two middle values, halves rounded up (towards plus
        infinity). Nodata where there is no observation.
    count : uint8 array, dims (..., y, x)
        Number of observations used, 255 meaning 255 or more.
    """
    clear = np.broadcast_to(clear, cube.shape)
    median = np.empty(cube.shape[1:], np.int16)
    count = np.empty(cube.shape[1:], np.uint8)
    times, width = cube.shape[0], cube.shape[-1]
    rows = max(1, _STRIP_VALUES // max(1, times * width))
    for outer in np.ndindex(cube.shape[1:-2]):
        for row in range(0, cube.shape[-2], rows):
            strip = (*outer, slice(row, row + rows))
            values = cube[(slice(None), *strip)]
            usable = clear[(slice(None), *strip)] & (values != NODATA)
            median[strip], count[strip] = _median_strip(values, usable)
    return median, count


def _median_strip(values: NDArray[np.int16], usable: NDArray[np.bool_]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """`median_composite` of arrays (time, y, x) that fit a core's cache.

    What is not usable becomes the largest int16, so that sorting along time puts the n usable values first; a usable
    value as large is as good as its stand-in.
    """
    n = usable.view(np.uint8).sum(axis=0, dtype=np.uint8 if len(usable) < 256 else np.uint16)
    ranked = np.where(usable, values, _LAST)
    spare = np.empty_like(ranked[0])
    for low, high in _sorting_network(len(ranked)):
        np.minimum(ranked[low], ranked[high], out=spare)
        np.maximum(ranked[low], ranked[high], out=ranked[high])
        ranked[low] = spare
    lower = _ranked_at(ranked, (np.maximum(n, 1) - 1) >> 1)
    upper = _ranked_at(ranked, n >> 1)
    middle = ((lower.astype(np.int32) + upper + 1) >> 1).astype(np.int16)
    return np.where(n > 0, middle, np.int16(NODATA)), np.minimum(n, 255).astype(np.uint8)


def _ranked_at(ranked: NDArray[np.int16], index: NDArray[np.unsignedinteger]) -> NDArray[np.int16]:
    """``ranked[index]`` per pixel, for indices up to half the length: faster than a gather for the few there are."""
    picked = ranked[0].copy()
    for step in range(1, min(len(ranked) - 1, len(ranked) // 2) + 1):
        np.copyto(picked, ranked[step], where=index == step)
    return picked


@cache
def _sorting_network(n: int) -> tuple[tuple[int, int], ...]:
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
    return tuple(pairs)
