"""From the probabilities of overlapping windows to one class a pixel, so that the levels nest. Numpy in, numpy out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from geoflow.legends import Legend
from geoflow.mapping.windows import FULL, UNIT

CONFIDENCE_NODATA = 255
"""Nodata of a confidence in percent."""

MARGIN_NODATA = -128
"""Nodata of a margin in percent."""

PROBABILITY_UNIT, PROBABILITY_NODATA = 250, 255
"""A probability of one, and nodata, where probabilities are stored as uint8."""

_WHOLE = np.int64(UNIT * FULL * FULL)


@dataclass(frozen=True)
class Ladder:
    """The classes of a model in the order of the legend's tree, so that every group is a run of classes.

    Attributes
    ----------
    order : int64 array, dims (class,)
        The logit of each class, in the ladder's order; kernels here take and give classes in this order.
    codes : tuple of uint16 arrays, dims (class,), coarsest level first
        The code of each class on each level; the last are the model's own.
    stop : int64 array, dims (level, class)
        For each class, where the run of its group on that level ends.
    """

    order: NDArray[np.int64]
    codes: tuple[NDArray[np.uint16], ...]
    stop: NDArray[np.int64]

    @classmethod
    def of(cls, legend: Legend, classes: tuple[int, ...]) -> Ladder:
        """The ladder over ``classes``, codes of the legend's deepest level in logit order."""
        groups = [np.array([legend.ancestor(c, level) for c in classes], np.uint16) for level in legend.levels]
        order = np.lexsort(groups[::-1]).astype(np.int64)
        codes = tuple(of_class[order] for of_class in groups)
        stop = [np.append(np.flatnonzero(np.diff(c)) + 1, len(c)) for c in codes]
        runs = [ends[np.searchsorted(ends, np.arange(len(classes)), side="right")] for ends in stop]
        return cls(order, codes, np.stack(runs).astype(np.int64))

    def table(self, level: int) -> NDArray[np.uint16]:
        """Code at a level (0 the coarsest) of each class, and 0 for nodata, which counts as one class more."""
        return np.append(self.codes[level], np.uint16(0))


@numba.njit(cache=True, nogil=True)
def quantise(p: NDArray[np.float32], order: NDArray[np.int64], out: NDArray[np.uint16]) -> int:
    """Probabilities (y, x, logit) as parts of `UNIT`, dims (y, x, class), classes in ``order``.

    Returns how many are no probability: NaN, negative or over one.
    """
    wrong = 0
    for y in range(p.shape[0]):
        for x in range(p.shape[1]):
            for c in range(p.shape[2]):
                value = p[y, x, order[c]]
                if not (value >= 0.0 and value < 1.001):
                    wrong += 1
                    value = np.float32(0)
                out[y, x, c] = np.uint16(min(value, np.float32(1)) * np.float32(UNIT) + np.float32(0.5))
    return wrong


@numba.njit(cache=True, nogil=True)
def weigh(q: NDArray[np.uint16], wy: NDArray[np.uint32], wx: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    """What a window says times its weights: dims (y, x, class), (y,), (x,); ``out`` as ``q``."""
    for y in range(q.shape[0]):
        for x in range(q.shape[1]):
            weight = wy[y] * wx[x]
            for c in range(q.shape[2]):
                out[y, x, c] = np.uint32(q[y, x, c]) * weight


def decision_type(classes: int) -> np.dtype:
    """What is decided of a pixel, as `decide` writes it.

    ``best``, ``second`` : uint16
        Positions of classes in the ladder's order; the number of classes where not observed, or where there is no
        second one. ``best`` is the best class of the best group of the best group above, and so on, so that the codes of all
        its levels nest. ``second`` is the most probable of the others, of any group.
    ``confidence`` : uint8
        Probability of ``best`` among all classes, in whole percent; 255 where not observed.
    ``margin`` : int8
        Probability of ``best`` less that of ``second``, in whole percent; below 0 where the decision from the top
        overrode a more probable class of another group. -128 where not observed.
    ``probabilities`` : uint8 (classes,)
        Parts of 250, 255 where not observed, in the ladder's order; no such field where ``classes`` is 0.
    """
    fields: list[Any] = [("best", "u2"), ("second", "u2"), ("confidence", "u1"), ("margin", "i1")]
    return np.dtype([*fields, ("probabilities", "u1", (classes,))] if classes else fields)


@numba.njit(cache=True, nogil=True)
def decide(
    total: NDArray[np.uint32],
    total_left: int,
    stop: NDArray[np.int64],
    observed: NDArray[np.bool_],
    out: NDArray[np.void],
    out_left: int,
) -> None:
    """Decide the class of every pixel, from the top down.

    Parameters
    ----------
    total : uint32 array, dims (y, x, class)
        What all windows say, weighted: a probability of one is ``UNIT * FULL * FULL``.
    total_left, out_left : int
        The columns of ``total`` and ``out`` that belong to the first of ``observed``.
    stop : int64 array, dims (level, class)
        See `Ladder`.
    observed : bool array, dims (y, x)
        False where there was no imagery: nodata in, nodata out.
    out : array of `decision_type`, dims (y, x), written
    """
    levels, classes = stop.shape
    for y in range(observed.shape[0]):
        for x in range(observed.shape[1]):
            decided = out[y, x + out_left]
            if not observed[y, x]:
                decided.best = decided.second = classes
                decided.confidence, decided.margin = CONFIDENCE_NODATA, MARGIN_NODATA
                continue
            p = total[y, x + total_left]
            first, end = 0, classes
            for level in range(levels):
                top, run, run_end = np.int64(-1), first, end
                at = first
                while at < end:
                    until = stop[level, at]
                    mass = np.int64(0)
                    for c in range(at, until):
                        mass += p[c]
                    if mass > top:
                        top, run, run_end = mass, at, until
                    at = until
                first, end = run, run_end
            highest = np.uint32(0)
            for c in range(first):
                highest = max(highest, p[c])
            for c in range(first + 1, classes):
                highest = max(highest, p[c])
            other = 0 if first > 0 else 1
            while other < classes and (other == first or p[other] != highest):
                other += 1
            sure = np.int64(p[first])
            decided.best, decided.second = first, other
            decided.confidence = min((sure * 100 + _WHOLE // 2) // _WHOLE, 100)
            less = (sure - np.int64(highest)) * 100
            decided.margin = max(-100, min(100, (less + _WHOLE // 2) // _WHOLE))


@numba.njit(cache=True, nogil=True)
def keep_probabilities(
    total: NDArray[np.uint32],
    total_left: int,
    observed: NDArray[np.bool_],
    out: NDArray[np.void],
    out_left: int,
) -> None:
    """Write the probabilities of all classes; parameters as of `decide`, ``out`` with probabilities."""
    classes = total.shape[2]
    for y in range(observed.shape[0]):
        for x in range(observed.shape[1]):
            held = out[y, x + out_left].probabilities
            for c in range(classes):
                if observed[y, x]:
                    parts = (np.int64(total[y, x + total_left, c]) * PROBABILITY_UNIT + _WHOLE // 2) // _WHOLE
                    held[c] = min(parts, PROBABILITY_UNIT)
                else:
                    held[c] = PROBABILITY_NODATA
