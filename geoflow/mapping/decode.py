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


def undecided(shape: tuple[int, int], classes: int, probabilities: bool) -> tuple[NDArray[np.void], NDArray[np.uint8]]:
    """What `decide` and `keep_probabilities` write into, with nothing observed.

    Returns
    -------
    array of `decision_type` without probabilities, dims (y, x)
    uint8 array, dims (y, class, x)
        Of no class unless probabilities are wanted.
    """
    out = np.empty(shape, decision_type(0))
    out["best"] = out["second"] = classes
    out["confidence"], out["margin"] = CONFIDENCE_NODATA, MARGIN_NODATA
    return out, np.full((shape[0], classes if probabilities else 0, shape[1]), PROBABILITY_NODATA, np.uint8)


# What follows works on rows of pixels, each class a plane: loops along pixels become vector instructions, while loops
# over the classes of one pixel are too short for them (measured: 2 to 6 times).


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _greatest(p: NDArray[np.float32], top: NDArray[np.float32]) -> None:
    top[:] = p[0]
    for c in range(1, p.shape[0]):
        for x in range(top.size):
            top[x] = max(top[x], p[c, x])


@numba.njit(cache=True, nogil=True)
def _powers_of_two(values: NDArray[np.float32], power: NDArray[np.int32]) -> None:
    """Two to the power of each value, none above 0; ``power`` is to work in.

    Cephes' ``exp2f`` (S. Moshier, netlib.org/cephes), relative error below 3e-7: a loop that the compiler turns into
    vector instructions, five times as fast as calling the library's.
    """
    scale = power.view(np.float32)  # a float32 of these bits is 2 to the power that they hold
    for i in range(values.size):
        binary = values[i] if values[i] > _LOWEST else _LOWEST
        whole = (binary + _ROUNDING) - _ROUNDING
        f = binary - whole
        g = np.float32(1.535336188319500e-4) * f + np.float32(1.339887440266574e-3)
        g = (g * f + np.float32(9.618437357674640e-3)) * f + np.float32(5.550332471162809e-2)
        g = (g * f + np.float32(2.402264791363012e-1)) * f + np.float32(6.931472028550421e-1)
        values[i] = g * f + np.float32(1)
        power[i] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    for i in range(values.size):
        values[i] *= scale[i]


@numba.njit(cache=True, nogil=True)
def quantise(
    logits: NDArray[np.float32],
    order: NDArray[np.int64],
    p: NDArray[np.float32],
    power: NDArray[np.int32],
    q: NDArray[np.uint32],
) -> int:
    """Probabilities (softmax of the logits) of a row of pixels, as parts of `UNIT`.

    Parameters
    ----------
    logits : float32 array, dims (x, logit)
    order : int64 array
        See `Ladder`.
    p : float32 array, dims (logit, x); power : int32 array, as many values
        To work in.
    q : uint32 array, dims (class, x), written

    Returns
    -------
    int
        Pixels with a logit that is not finite; what is written there means nothing.
    """
    pixels, classes = logits.shape
    top, total = np.empty(pixels, np.float32), np.zeros(pixels, np.float32)
    for x in range(pixels):
        for c in range(classes):
            p[c, x] = logits[x, c]
    _greatest(p, top)
    for c in range(classes):
        for x in range(pixels):
            total[x] += p[c, x]
            p[c, x] = (p[c, x] - top[x]) * _LOG2E
    # A NaN is not above the lowest power and so hides in what follows; it cannot hide in the logits' sum.
    wrong = pixels - np.isfinite(total).sum()
    _powers_of_two(p.reshape(-1), power)
    total[:] = 0
    for c in range(classes):
        for x in range(pixels):
            total[x] += p[c, x]
    for x in range(pixels):
        total[x] = np.float32(UNIT) / max(total[x], np.float32(1))  # no less than the greatest, which is 1
    for c in range(classes):
        from_logit = order[c]
        for x in range(pixels):
            q[c, x] = np.uint32(np.int32(p[from_logit, x] * total[x] + np.float32(0.5)))
    return int(wrong)


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
def _highest_but(
    p: NDArray[np.uint32], but: NDArray[np.int32], at: NDArray[np.int32], highest: NDArray[np.uint32]
) -> None:
    """The first of the greatest values of each pixel, of all but one class; the number of classes if there is none."""
    none = np.int32(p.shape[0])
    at[:] = none
    highest[:] = 0
    for c in range(p.shape[0]):
        for x in range(at.size):
            higher = (but[x] != c) & ((p[c, x] > highest[x]) | (at[x] == none))
            at[x] = np.int32(c) if higher else at[x]
            highest[x] = p[c, x] if higher else highest[x]


@numba.njit(cache=True, nogil=True)
def decide(p: NDArray[np.uint32], stop: NDArray[np.int64], observed: NDArray[np.bool_], out: NDArray[np.void]) -> None:
    """Decide the classes of a row of pixels, each from the top down.

    Parameters
    ----------
    p : uint32 array, dims (class, x)
        What all windows say, weighted: a probability of one is ``UNIT * FULL * FULL``.
    stop : int64 array, dims (level, class)
        See `Ladder`.
    observed : bool array, dims (x,)
        False where there was no imagery: nodata in, nodata out.
    out : array of `decision_type` without probabilities, dims (x,), written
    """
    classes, pixels = p.shape
    first, second = np.empty(pixels, np.int32), np.empty(pixels, np.int32)
    highest, own = np.empty(pixels, np.uint32), np.empty(classes, np.uint32)
    second[:] = -1
    _highest_but(p, second, first, highest)
    for x in range(pixels):
        if observed[x] and 2 * np.int64(highest[x]) <= _WHOLE:
            # No class holds more than half: its group need not be the best one.
            for c in range(classes):
                own[c] = p[c, x]
            first[x] = _descend(own, stop)
    _highest_but(p, first, second, highest)
    for x in range(pixels):
        if not observed[x]:
            out[x].best = out[x].second = classes
            out[x].confidence, out[x].margin = CONFIDENCE_NODATA, MARGIN_NODATA
            continue
        sure = np.int64(p[first[x], x])
        less = (sure - np.int64(highest[x])) * 100
        out[x].best, out[x].second = first[x], second[x]
        out[x].confidence = min((sure * 100 + _WHOLE // 2) // _WHOLE, 100)
        out[x].margin = max(-100, min(100, (less + _WHOLE // 2) // _WHOLE))


@numba.njit(cache=True, nogil=True)
def keep_probabilities(p: NDArray[np.uint32], observed: NDArray[np.bool_], out: NDArray[np.uint8]) -> None:
    """Probabilities of a row in parts of `PROBABILITY_UNIT`; as `decide`, but ``out`` has dims (class, x)."""
    for c in range(out.shape[0]):
        for x in range(observed.size):
            parts = (np.int64(p[c, x]) * PROBABILITY_UNIT + _WHOLE // 2) // _WHOLE
            out[c, x] = np.uint8(min(parts, np.int64(PROBABILITY_UNIT)) if observed[x] else PROBABILITY_NODATA)
