"""Codes of a tile at all levels, and how many pixels each class has."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from geoflow.legends import NODATA_CODE, Legend

Codes = NDArray[np.unsignedinteger[Any]]


def codes_by_level(codes: Codes, legend: Legend) -> tuple[dict[int, Codes], dict[int, int]]:
    """Codes of the deepest level at every level, and the pixels of each class.

    What `Legend.to_level` gives level by level, but unknown codes are looked for among those counted, not among all
    pixels.

    Parameters
    ----------
    codes : array of ``legend.dtype(legend.deepest)``, any shape, C order
        0 is nodata.
    legend : Legend

    Returns
    -------
    levels : dict of level to array of ``legend.dtype(level)``, same shape
        That of the deepest level is ``codes`` itself.
    counts : dict of code to pixels
        Codes that occur, ascending; nodata left out.

    Raises
    ------
    LegendError
        If a value is no code of the deepest level.
    """
    histogram = np.zeros(np.iinfo(codes.dtype).max + 1, np.int64)
    _count(codes.ravel(), histogram)
    met = np.flatnonzero(histogram)
    levels = {legend.deepest: codes}
    for level in legend.levels[:-1]:
        table = np.zeros(int(met[-1]) + 1 if len(met) else 1, legend.dtype(level))
        table[met] = legend.to_level(met, level)
        coarser: Codes = np.empty_like(codes, table.dtype)
        _look_up(codes.ravel(), table, coarser.ravel())
        levels[level] = coarser
    legend.to_level(met, legend.deepest)
    counts = {code: int(histogram[code]) for code in met.tolist() if code != NODATA_CODE}
    return dict(sorted(levels.items())), counts


@numba.njit(cache=True, nogil=True)
def _count(codes: NDArray[Any], histogram: NDArray[np.int64]) -> None:
    """Add the pixels of each code to ``histogram``.

    Four pixels in turn have a histogram each: neighbours are mostly of one class, and to add to one place again and
    again would wait for memory each time.
    """
    parts = np.zeros((4, histogram.size), np.int64)
    whole = np.uint64(codes.size // 4)
    for i in range(whole):
        at = np.uint64(4) * i
        parts[0, codes[at]] += 1
        parts[1, codes[at + np.uint64(1)]] += 1
        parts[2, codes[at + np.uint64(2)]] += 1
        parts[3, codes[at + np.uint64(3)]] += 1
    for i in range(4 * whole, codes.size):
        parts[0, codes[i]] += 1
    for code in range(histogram.size):
        histogram[code] += parts[0, code] + parts[1, code] + parts[2, code] + parts[3, code]


@numba.njit(cache=True, nogil=True)
def _look_up(codes: NDArray[Any], table: NDArray[Any], out: NDArray[Any]) -> None:
    for i in range(codes.size):
        out[i] = table[codes[i]]
