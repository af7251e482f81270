"""A hidden Markov model over the classes of a legend: what a pixel was, given what several maps say of it.

Maps of several years differ wherever one of them is wrong, and land cover changes far less often than that. The model
weighs the two: the true class is a Markov chain in time, whose transition matrix says how often land cover changes,
and each map sees it with errors (Abercrombie and Friedl 2016, "Improving the consistency of multitemporal land cover
maps using a hidden Markov model", IEEE TGRS 54(2), 703-713).

A net gives probabilities of classes given the imagery; the model needs the likelihood of the imagery given the class.
By Bayes' rule these are the probabilities divided by the shares of the classes in what the net learned from, up to a
factor that is the same for all classes (Renals and Morgan 1992, "Connectionist probability estimation in HMM speech
recognition", ICSI TR-92-081). Decoding and estimation are the algorithms of Viterbi and of Baum and Welch in scaled
form (Rabiner 1989, "A tutorial on hidden Markov models and selected applications in speech recognition", Proceedings
of the IEEE 77(2), 257-286).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from geoflow.errors import GridError, LegendError
from geoflow.legends import NODATA_CODE, listed
from geoflow.mapping.decode import CONFIDENCE_NODATA, PROBABILITY_NODATA, PROBABILITY_UNIT

Values = NDArray[np.float64]
Floats = NDArray[np.float32]

LEAST_SHARE = 1e-3
"""Rarer classes count as this frequent: probabilities come in steps of 0.004, too coarse to be divided by less."""

_ROUNDS, _TOLERANCE = 500, 1e-7  # of expectation maximisation: at most, and the change of a rate at which it ends
CHANGES_NODATA = 255
"""Nodata of a number of changes."""

_BATCH = 128  # pixels that the kernel takes at a time, as the innermost and contiguous dim: whole SIMD registers
_UNROLL = 4  # classes that it takes at a time, so that a sum is loaded and stored once for four of them


@dataclass(frozen=True)
class Evidence:
    """What the probabilities of one map say of the true class.

    The likelihood of class ``c`` is ``((1 - doubt) * p(c) / prior(c) + doubt) ** weight``, up to a factor that all
    classes share.

    Attributes
    ----------
    prior : mapping of code to share, optional
        How frequent the classes were in what the net learned from; need not sum to 1. All classes alike by default,
        so that the likelihood is the net's probability itself. At least `LEAST_SHARE` of the whole each.
    doubt : float
        In 0..1, not 0 nor 1. How often a map says nothing of the ground (cloud, shadow, a blunder of the net). Keeps a
        single map from ruling out a class for the whole series.
    weight : float
        In 0..1, not 0. At 1 the errors of different epochs are independent. They seldom are: one net makes the same
        error twice in the same place, and then the confidence is too high. At 1 / (number of epochs) maps that agree
        count as one.
    """

    prior: Mapping[int, float] | None = None
    doubt: float = 0.01
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.doubt < 1:
            raise GridError(f"the doubt must be more than 0 and less than 1, not {self.doubt}")
        if not 0 < self.weight <= 1:
            raise GridError(f"the weight must be more than 0 and at most 1, not {self.weight}")
        if self.prior is not None and not (sum(self.prior.values()) > 0 and min(self.prior.values()) >= 0):
            raise GridError(f"the prior must hold shares of at least 0, not {dict(self.prior)}")

    def shares(self, codes: Sequence[int]) -> Values:
        """The prior as float64 (class,), which sums to 1.

        Raises
        ------
        LegendError
            If the prior lacks one of the codes.
        """
        if self.prior is None:
            return np.full(len(codes), 1 / len(codes))
        if missing := [c for c in codes if c not in self.prior]:
            raise LegendError(f"the prior lacks the classes {listed(missing)}")
        shares = np.array([self.prior[c] for c in codes], float)
        shares = np.maximum(shares / max(shares.sum(), 1e-300), LEAST_SHARE)
        return shares / shares.sum()

    def likelihood(self, shares: Values) -> Floats:
        """The likelihood of each class by stored probability: float32 (class, 256). 1 for nodata: no evidence."""
        p = np.arange(256) / PROBABILITY_UNIT
        table = ((1 - self.doubt) * p / shares[:, None] + self.doubt) ** self.weight
        table[:, PROBABILITY_NODATA] = 1
        return table.astype(np.float32)


def baum_welch(seen: Sequence[Values | None], prior: Values, start: Values, strength: float) -> Values:
    """The transition matrix that makes a series most probable, by expectation maximisation.

    Parameters
    ----------
    seen : sequence of float64 arrays, dims (pixel, class)
        Likelihoods of equally spaced epochs; None where an epoch was not observed at all.
    prior : float64 array, dims (class,)
        Of the first epoch. It is kept: the likelihoods were divided by it.
    start : float64 array, dims (class before, class after)
        Where to start; what is 0 stays 0.
    strength : float
        Added transitions from each class, as ``start`` has them: a Dirichlet prior of each row.

    Returns
    -------
    float64 array, dims (class before, class after)
        Rows sum to 1; that of a class without any transition is as in ``start``.
    """
    matrix = start
    for _ in range(_ROUNDS):
        counts = _expected_transitions(seen, prior, matrix) + strength * start
        total = counts.sum(axis=1, keepdims=True)
        new = np.where(total > 0, counts / np.where(total > 0, total, 1), start)
        moved, matrix = np.abs(new - matrix).max(), new
        if moved < _TOLERANCE:
            break
    return matrix


def _expected_transitions(seen: Sequence[Values | None], prior: Values, matrix: Values) -> Values:
    """How many transitions (class before, class after) the pixels are expected to have made."""
    first = next(s for s in seen if s is not None)
    ahead = [_scaled(prior * (np.ones_like(first) if seen[0] is None else first))]
    for year in seen[1:]:
        reached = ahead[-1] @ matrix
        ahead.append(_scaled(reached if year is None else reached * year))
    counts, behind = np.zeros_like(matrix), np.ones_like(first)
    for at in range(len(seen) - 1, 0, -1):
        year = seen[at]
        told = behind if year is None else year * behind
        behind = told @ matrix.T
        weight = (ahead[at - 1] * behind).sum(axis=1, keepdims=True)
        counts += (ahead[at - 1] / weight).T @ told
        behind = _scaled(behind)
    return np.asarray(counts * matrix)


def _scaled(values: Values) -> Values:
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def smooth(
    probabilities: NDArray[np.uint8],
    transitions: NDArray[np.floating[Any]],
    prior: Values,
    likelihood: Floats,
    fill: bool = False,
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """The most probable sequence of classes of each pixel, and how sure each class of it is.

    Parameters
    ----------
    probabilities : uint8 array, dims (epoch, class, y, x)
        Parts of 250; 255 where an epoch was not observed, which is then no evidence.
    transitions : float array, dims (epoch - 1, class before, class after)
        From each epoch to the next, rows sum to 1; see `TransitionMatrix.over`.
    prior : float64 array, dims (class,)
        Of the first epoch, all positive; see `Evidence.shares`.
    likelihood : float32 array, dims (class, 256)
        All positive; see `Evidence.likelihood`.
    fill : bool
        Whether epochs that were not observed at a pixel get the class that the others suggest; else they are nodata.
        A pixel that was never observed is nodata anyway.

    Returns
    -------
    best : uint16 array, dims (epoch, y, x)
        Positions of classes; the number of classes is nodata. The sequence of greatest joint probability (Viterbi);
        among equal ones the lowest position, decided from the last epoch.
    confidence : uint8 array, dims (epoch, y, x)
        Marginal probability of that class in that epoch given all epochs (forward-backward), in whole percent; 255
        nodata.

    Notes
    -----
    Every epoch is scaled to a sum or greatest value of 1, so nothing underflows in a long series; float32.
    """
    epochs, classes, *size = probabilities.shape
    padded = -(-classes // _UNROLL) * _UNROLL
    # Classes that only fill up the last step can be neither started in, reached nor left.
    steps = np.zeros((max(epochs - 1, 1), padded, padded), np.float32)
    steps[: epochs - 1, :classes, :classes] = transitions
    start = np.zeros(padded, np.float32)
    start[:classes] = prior
    best = np.full((epochs, int(np.prod(size))), classes, np.uint16)
    confidence = np.full(best.shape, CONFIDENCE_NODATA, np.uint8)
    flat = np.ascontiguousarray(probabilities).reshape(epochs, classes, -1)
    _smooth(flat, steps, start, likelihood, fill, best, confidence)
    return best.reshape(epochs, *size), confidence.reshape(epochs, *size)


class Detection(NamedTuple):
    """When the class of each pixel changed, dims (y, x); see `first_detection`."""

    first: NDArray[np.uint8]
    last: NDArray[np.uint8]
    first_year: NDArray[np.uint16]
    last_year: NDArray[np.uint16]
    changes: NDArray[np.uint8]


def first_detection(codes: NDArray[np.unsignedinteger[Any]], years: NDArray[np.uint16]) -> Detection:
    """When a pixel left its first class for good, when it last changed, and how often.

    Parameters
    ----------
    codes : unsigned integer array, dims (epoch, y, x)
        0 where not observed. Such epochs are passed over: a change is dated by the first epoch that shows it.
    years : uint16 array, dims (epoch,)

    Returns
    -------
    first, first_year : uint8 and uint16
        The first epoch from which on the class is never again that of the first observed epoch, as index and as year.
        0 where there is none: the first epoch cannot be a change. A pixel that turns back (A, B, A) has none.
    last, last_year : uint8 and uint16
        The last epoch whose class is not that of the observed epoch before it; 0 where there is none.
    changes : uint8
        How many epochs have another class than the observed epoch before them; 255 where never observed.

    Raises
    ------
    GridError
        If there are more than 255 epochs, or not as many years.
    """
    if len(codes) > 255 or len(codes) != len(years):
        raise GridError(f"a series has at most 255 epochs, and a year for each; not {len(codes)} and {len(years)}")
    size = codes.shape[1:]
    first, last, changes = (np.zeros(size, np.uint8) for _ in range(3))
    home, before = np.zeros(size, codes.dtype), np.zeros(size, codes.dtype)
    for at, here in enumerate(codes):
        seen = here != NODATA_CODE
        home = np.where(home == NODATA_CODE, here, home)
        first[seen & (here != home) & (first == 0)] = at
        first[seen & (here == home)] = 0
        changed = seen & (before != NODATA_CODE) & (here != before)
        last[changed] = at
        changes += changed
        before = np.where(seen, here, before)
    changes[home == NODATA_CODE] = CHANGES_NODATA
    dated = np.asarray(years, np.uint16).copy()
    dated[0] = 0
    return Detection(first, last, dated[first], dated[last], changes)


@numba.njit(cache=True, nogil=True)
def _smooth(q, steps, start, likelihood, fill, best, confidence):  # type: ignore[no-untyped-def]
    """`smooth` on pixels in a row, batch by batch; ``best`` and ``confidence`` come as nodata."""
    epochs, count = len(q), len(start)
    shape = (epochs, count, _BATCH)
    told, total, path = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32)
    behind, seen = np.empty((count, _BATCH), np.float32), np.empty((epochs, _BATCH), np.bool_)
    state = np.empty(_BATCH, np.int64)
    for first in range(0, q.shape[2], _BATCH):
        size = min(_BATCH, q.shape[2] - first)
        if not _look_up(q, first, size, likelihood, told, seen):
            continue
        for t in range(epochs):
            _advance(t, steps, start, told, total, path)
        behind[:] = np.float32(1)
        for t in range(epochs - 1, -1, -1):
            if t < epochs - 1:
                _retreat(steps[t], told[t + 1], behind)
            _trace_back(path[t], steps[t] if t < epochs - 1 else steps[0], t == epochs - 1, size, state)
            mass = np.zeros(_BATCH, np.float32)
            for c in range(count):
                for b in range(_BATCH):
                    mass[b] += total[t, c, b] * behind[c, b]
            for b in range(size):
                if seen[t, b] or (fill and seen[:, b].any()):
                    c = state[b]
                    sure = total[t, c, b] * behind[c, b] / mass[b]
                    best[t, first + b] = c
                    confidence[t, first + b] = np.uint8(min(sure * np.float32(100) + np.float32(0.5), np.float32(100)))


@numba.njit(cache=True, nogil=True)
def _look_up(q, first, size, likelihood, told, seen):  # type: ignore[no-untyped-def]
    """Likelihoods of a batch, 1 past its end; says whether anything was observed."""
    anything = False
    told[:] = np.float32(1)
    seen[:] = False
    for t in range(len(q)):
        for b in range(size):
            seen[t, b] = q[t, 0, first + b] != PROBABILITY_NODATA
            anything = anything or seen[t, b]
        for c in range(q.shape[1]):
            for b in range(size):
                told[t, c, b] = likelihood[c, q[t, c, first + b]]
    return anything


@numba.njit(cache=True, nogil=True)
def _advance(t, steps, start, told, total, path):  # type: ignore[no-untyped-def]
    """An epoch forward: the sum over all paths to each class, scaled to 1 in all, and the best path, to 1 at most."""
    count = len(start)
    sums, tops = np.empty(_BATCH, np.float32), np.empty(_BATCH, np.float32)
    for c in range(count):
        if t == 0:
            sums[:], tops[:] = start[c], start[c]
        else:
            _gather(total[t - 1], path[t - 1], steps[t - 1, :, c], sums, tops)
        for b in range(_BATCH):
            total[t, c, b] = sums[b] * told[t, c, b]
            path[t, c, b] = tops[b] * told[t, c, b]
    sums[:], tops[:] = np.float32(0), np.float32(0)
    for c in range(count):
        for b in range(_BATCH):
            sums[b] += total[t, c, b]
            tops[b] = path[t, c, b] if path[t, c, b] > tops[b] else tops[b]
    for b in range(_BATCH):
        sums[b], tops[b] = np.float32(1) / sums[b], np.float32(1) / tops[b]
    for c in range(count):
        for b in range(_BATCH):
            total[t, c, b] *= sums[b]
            path[t, c, b] *= tops[b]


@numba.njit(cache=True, nogil=True, inline="always")
def _gather(total, path, into, sums, tops):  # type: ignore[no-untyped-def]
    """The sum of ``total`` and the greatest of ``path``, dims (class, pixel), each times the transition ``into``."""
    sums[:], tops[:] = np.float32(0), np.float32(0)
    for i in range(0, len(into), _UNROLL):
        p0, p1, p2, p3 = into[i], into[i + 1], into[i + 2], into[i + 3]
        for b in range(_BATCH):
            sums[b] = sums[b] + total[i, b] * p0 + total[i + 1, b] * p1 + total[i + 2, b] * p2 + total[i + 3, b] * p3
        for b in range(_BATCH):
            v0, v1, v2, v3 = path[i, b] * p0, path[i + 1, b] * p1, path[i + 2, b] * p2, path[i + 3, b] * p3
            low = v0 if v0 > v1 else v1
            high = v2 if v2 > v3 else v3
            top = low if low > high else high
            tops[b] = top if top > tops[b] else tops[b]


@numba.njit(cache=True, nogil=True)
def _retreat(step, told, behind):  # type: ignore[no-untyped-def]
    """An epoch back: how likely what comes later is from each class, to 1 at most. ``behind`` is overwritten."""
    count = len(behind)
    later, sums, tops = behind * told, np.empty(_BATCH, np.float32), np.zeros(_BATCH, np.float32)
    for c in range(count):
        sums[:] = np.float32(0)
        for j in range(0, count, _UNROLL):
            p0, p1, p2, p3 = step[c, j], step[c, j + 1], step[c, j + 2], step[c, j + 3]
            for b in range(_BATCH):
                near = sums[b] + later[j, b] * p0 + later[j + 1, b] * p1
                sums[b] = near + later[j + 2, b] * p2 + later[j + 3, b] * p3
        for b in range(_BATCH):
            behind[c, b] = sums[b]
            tops[b] = sums[b] if sums[b] > tops[b] else tops[b]
    for c in range(count):
        for b in range(_BATCH):
            behind[c, b] /= tops[b]


@numba.njit(cache=True, nogil=True)
def _trace_back(path, step, last, size, state):  # type: ignore[no-untyped-def]
    """The class before ``state`` on its best path, or the best of the last epoch. Found anew from the scores: keeping
    track of it for all classes would cost more than the scores themselves."""
    for b in range(size):
        after, top = state[b], np.float32(-1)
        for c in range(len(path)):
            score = path[c, b] if last else path[c, b] * step[c, after]
            if score > top:
                top, state[b] = score, c
