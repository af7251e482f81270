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
_LOG2E = np.float32(1.4426950408889634)
_LOWEST = np.float32(-126)  # the exponent of the smallest float32; parts of UNIT end far above
_ROUNDING = np.float32(1.5 * 2**23)  # adding and taking it away rounds a small float32 to a whole number


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


# Only with their own rules of arithmetic do these loops become vector instructions: no NaN expected, sums in any order.
@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _greatest(values: NDArray[np.float32]) -> np.float32:
    top = values[0]
    for c in range(1, values.size):
        top = max(top, values[c])
    return top


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def _sum(values: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for c in range(values.size):
        total += values[c]
    return total


@numba.njit(cache=True, nogil=True)
def quantise(logits: NDArray[np.float32], order: NDArray[np.int64], out: NDArray[np.uint16]) -> int:
    """Probabilities (softmax of the logits) as parts of `UNIT`.

    Parameters
    ----------
    logits : float32 array, dims (y, x, logit)
    order : int64 array
        See `Ladder`.
    out : uint16 array, dims (y, x, class), written

    Returns
    -------
    int
        Pixels with a logit that is not finite; what is written there means nothing.

    Notes
    -----
    The exponential is Cephes' ``exp2f`` (S. Moshier, netlib.org/cephes), relative error below 3e-7, because a loop over
    it is one that the compiler turns into vector instructions: five times as fast as calling the library's.
    """
    classes, wrong = logits.shape[2], 0
    part, ordered = np.empty(classes, np.float32), np.empty(classes, np.float32)
    power = np.empty(classes, np.int32)
    scale = power.view(np.float32)  # a float32 of these bits is 2 to the power that they hold
    straight = (order == np.arange(classes)).all()
    for y in range(logits.shape[0]):
        for x in range(logits.shape[1]):
            row, shares = logits[y, x], out[y, x]
            top = _greatest(row)
            for c in range(classes):
                binary = (row[c] - top) * _LOG2E
                binary = binary if binary > _LOWEST else _LOWEST
                whole = (binary + _ROUNDING) - _ROUNDING
                f = binary - whole
                g = np.float32(1.535336188319500e-4) * f + np.float32(1.339887440266574e-3)
                g = (g * f + np.float32(9.618437357674640e-3)) * f + np.float32(5.550332471162809e-2)
                g = (g * f + np.float32(2.402264791363012e-1)) * f + np.float32(6.931472028550421e-1)
                part[c] = g * f + np.float32(1)
                power[c] = (np.int32(whole) + np.int32(127)) << np.int32(23)
            for c in range(classes):
                part[c] *= scale[c]
            # A NaN is not greater than the lowest and so hides in the loop above; it cannot hide in the logits' sum.
            if not np.isfinite(_sum(row)):
                wrong += 1
                continue
            unit = np.float32(UNIT) / _sum(part)
            if not straight:
                for c in range(classes):
                    ordered[c] = part[order[c]]
                part, ordered = ordered, part
            for c in range(classes):
                shares[c] = np.uint16(np.int32(part[c] * unit + np.float32(0.5)))
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
        second one. ``best`` is the best class of the best group of the best group above, and so on, so that the codes
        of all its levels nest. ``second`` is the most probable of the others, of any group.
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
def _highest(p: NDArray[np.uint32], but: int) -> tuple[int, np.uint32]:
    """The first of the greatest values, except at ``but``; and the value. The number of values where there is none."""
    held = np.uint32(0)
    if but >= 0:
        held, p[but] = p[but], np.uint32(0)
    highest = np.uint32(0)
    for c in range(p.size):
        highest = max(highest, p[c])
    at = 0
    while at < p.size and (p[at] != highest or at == but):
        at += 1
    if but >= 0:
        p[but] = held
    return at, highest


@numba.njit(cache=True, nogil=True)
def _descend(p: NDArray[np.uint32], stop: NDArray[np.int64]) -> int:
    """The best class of the best group of the best group above, and so on."""
    first, end = 0, p.size
    for level in range(stop.shape[0]):
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
    return first


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
    classes = stop.shape[1]
    for y in range(observed.shape[0]):
        for x in range(observed.shape[1]):
            decided = out[y, x + out_left]
            if not observed[y, x]:
                decided.best = decided.second = classes
                decided.confidence, decided.margin = CONFIDENCE_NODATA, MARGIN_NODATA
                continue
            p = total[y, x + total_left]
            first, highest = _highest(p, -1)
            if 2 * np.int64(highest) <= _WHOLE:
                # No class holds more than half: its group need not be the best one.
                first = _descend(p, stop)
            other, highest = _highest(p, first)
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
