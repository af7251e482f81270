"""Whether probabilities are what they say, and the one number that makes them so. Numpy and scipy only.

A net is calibrated if of all that it says with probability p, the share p is right. `Reliability` counts that in bins;
`fit_temperature` finds the T by which logits are divided so that the likelihood of labels that were not learned from is
greatest (Guo et al. 2017, "On Calibration of Modern Neural Networks", sections 2 and 4.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.learning.metrics import plain

BINS = 15
"""Equal bins over 0..1, as in Guo et al."""

RANGE = (0.05, 20.0)
"""Temperatures that are searched. A net without a single mistake would want 0."""


@dataclass
class Reliability:
    """How often what was said with each probability was right; more can be added, so nothing need fit into memory.

    Attributes
    ----------
    count, right : int64 arrays, dims (bin,)
    said : float64 array, dims (bin,)
        Sum of the probabilities.
    """

    count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    said: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def add(self, probabilities: NDArray[np.floating], right: NDArray[np.bool_]) -> None:
        """Add statements: their probabilities, 0..1, and whether they were right; arrays of one shape."""
        p = np.asarray(probabilities, np.float64).ravel()
        bins = len(self.count)
        at = np.minimum((p * bins).astype(np.int64), bins - 1)
        self.count += np.bincount(at, minlength=bins)
        self.right += np.bincount(at[np.asarray(right).ravel()], minlength=bins)
        self.said += np.bincount(at, p, minlength=bins)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance of what is right from what was said, weighted by count; NaN of
        nothing."""
        total = int(self.count.sum())
        return float(np.abs(self.right - self.said).sum() / total) if total else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``ece``, ``count``, and of the ``bins`` that hold anything mean probability and share right."""
        held = np.flatnonzero(self.count)
        edges = np.arange(len(self.count) + 1) / len(self.count)
        bins = [
            {
                "from": float(edges[i]),
                "to": float(edges[i + 1]),
                "count": int(self.count[i]),
                "said": float(self.said[i] / self.count[i]),
                "right": float(self.right[i] / self.count[i]),
            }
            for i in held
        ]
        return {"ece": plain(self.ece), "count": int(self.count.sum()), "bins": bins}


def label_reliability(probabilities: NDArray[np.floating], truth: NDArray[np.bool_]) -> Reliability:
    """Of a multi-label classifier: every class of every patch is one statement, that the class is there.

    Dims (patch, class) of both.
    """
    found = Reliability()
    found.add(probabilities, truth)
    return found


def fit_temperature(logits: NDArray[np.floating], truth: NDArray[Any]) -> float:
    """The T for which ``logits / T`` make labels the most likely.

    Parameters
    ----------
    logits : float array, dims (patch, class) or (pixel, class)
    truth : array
        Bool, dims (patch, class): labels of a multi-label net, whose probabilities are sigmoids. Integer, dims
        (pixel,): the position of each pixel's class, of a net whose probabilities are softmaxes.

    Returns
    -------
    float
        Within `RANGE`. The loss is convex in 1 / T, so that there is one best value.

    Raises
    ------
    ValueError
        If there is nothing to fit to, or logits are not finite.
    """
    from scipy.optimize import minimize_scalar

    if len(logits) == 0 or not np.isfinite(logits).all():
        raise ValueError(f"a temperature needs finite logits, at least of one patch or pixel; here are {logits.shape}")
    low, high = (math.log(t) for t in RANGE)
    best = minimize_scalar(
        lambda log_t: nll(logits, truth, math.exp(log_t)), bounds=(low, high), method="bounded", options={"xatol": 1e-5}
    )
    return float(math.exp(best.x))


def nll(logits: NDArray[np.floating], truth: NDArray[Any], temperature: float = 1.0) -> float:
    """Mean negative log likelihood of labels, in nats; arguments as in `fit_temperature`."""
    z = np.asarray(logits, np.float64) / temperature
    if truth.dtype == bool:
        return float(np.mean(np.logaddexp(0, np.where(truth, -z, z))))
    top = z.max(axis=1, keepdims=True)
    total = np.log(np.exp(z - top).sum(axis=1)) + top[:, 0]
    return float(np.mean(total - z[np.arange(len(z)), truth]))


def reliability_of(logits: NDArray[np.floating], truth: NDArray[Any], temperature: float = 1.0) -> Reliability:
    """Reliability of what logits say: of labels every class of every patch, of pixels the most probable class."""
    z = np.asarray(logits, np.float64) / temperature
    if truth.dtype == bool:
        return label_reliability(0.5 * (1 + np.tanh(z / 2)), truth)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    best = z.argmax(axis=1)
    found = Reliability()
    found.add(p.max(axis=1) / p.sum(axis=1), best == truth)
    return found


def calibration(logits: NDArray[np.floating], truth: NDArray[Any], part: NDArray[np.integer]) -> dict[str, float]:
    """A temperature, and what it is worth where it was not fitted.

    Parameters
    ----------
    logits, truth
        See `fit_temperature`.
    part : integer array, dims (patch,) or (pixel,)
        0 or 1. The temperature of each part is measured on the other, so that ``after`` is no figure of the data that
        it was fitted to. Pixels of one window belong to one part.

    Returns
    -------
    dict
        ``temperature`` (fitted to both parts), ``ece_before``, ``ece_after``, ``nll_before``, ``nll_after``, ``count``.

    Raises
    ------
    ValueError
        If a part is empty.
    """
    scaled = np.array(logits, np.float64)
    for one in (0, 1):
        scaled[part != one] /= fit_temperature(logits[part == one], truth[part == one])
    before, after = (reliability_of(z, truth).ece for z in (logits, scaled))
    return {
        "temperature": fit_temperature(logits, truth),
        "ece_before": before,
        "ece_after": after,
        "nll_before": nll(logits, truth),
        "nll_after": nll(scaled, truth),
        "count": len(logits),
    }
