"""Change from all that is known of a pixel at once: the scenes and the class probabilities of both epochs.

Two hypotheses are weighed at each pixel. If the ground did not change, both epochs show one class, whichever; if it
did, they show two. With class probabilities ``p`` and ``q`` of the epochs, shares ``s`` of the classes in the country,
and a weight ``w`` for each transition, Bayes' rule gives the odds

    change : no change  =  sum over c != d of w[c, d] p[c] q[d]  :  sum over c of p[c] q[c] / s[c]

(``p / s`` is the likelihood of what the net saw, up to a factor; a class that is rare and seen twice is good evidence
that nothing changed). They are multiplied with the odds from the scenes (`geoflow.mapping.spectral`), which hold the
prior share of change. The two sources err in different ways: maps differ along borders and between similar classes,
scenes after a drought. Single pixels err more than neighbourhoods do, so that log odds are averaged over 5 x 5 pixels,
which is one step of the mean field of a Potts model. docs/decisions/0004 has what each part is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from geoflow.errors import GridError
from geoflow.legends import Legend
from geoflow.mapping.decode import PROBABILITY_NODATA, PROBABILITY_UNIT
from geoflow.mapping.spectral import PROBABILITY_NODATA as CHANCE_NODATA
from geoflow.mapping.spectral import PeriodChange, box_sum

SMOOTH_PX = 5
"""Log odds are means over so many pixels along both axes."""

PAIR_PX = 9
"""Which transition it is, is decided from the mean probabilities of the changed pixels in a square of this edge."""

HALO_PX = SMOOTH_PX // 2 + PAIR_PX // 2
"""Margin that `JointChange.chance` and `JointChange.pairs` together need to be exact at the border of a window."""

CORINE_FLOWS: Mapping[str, float] = {
    **{f"{first}-{second}": 0.01 for first in "12345" for second in "12345"},
    **dict.fromkeys(
        ("1-1", "2-1", "3-1", "1-2", "2-2", "2-31", "2-324", "31-324", "32-324", "324-31", "33-32", "3-334"),
        1.0,
    ),
    **dict.fromkeys(("1-51", "2-512", "3-512"), 1.0),
}
"""How plausible transitions of CORINE classes are beside each other: the land cover flows of the European Environment
Agency (urban sprawl, conversion of farmland, afforestation, felling and regrowth, fire, new water bodies) weigh 1, all
others 0.01. The grouping follows EEA Report 11/2006, "Land accounts for Europe 1990-2000"; the numbers are ours."""

_LEAST_SHARE = 0.01  # of a class: a rarer one would make two sightings of it certain proof
_MOST_SPECTRAL, _MOST_CLASSES = 5.0, 8.0  # log odds: neither source is ever surer than this
_STEPS = 1024  # of log odds
_FLOOR = 1e-3  # probabilities are stored in steps of 0.004


@dataclass(frozen=True)
class JointChange:
    """What is learned of a country before its changes are looked for.

    Attributes
    ----------
    codes : tuple of int
        Class codes, in the order of the probabilities.
    shares : float64 array (class,)
        Mean probability of each class before; at least 0.01, sum 1.
    spectral : PeriodChange
    """

    codes: tuple[int, ...]
    shares: NDArray[np.float64]
    spectral: PeriodChange

    @classmethod
    def of(cls, codes: tuple[int, ...], mean: NDArray[np.floating[Any]], spectral: PeriodChange) -> JointChange:
        """From the mean probability of each class."""
        shares = np.maximum(np.asarray(mean, np.float64), _LEAST_SHARE)
        return cls(codes, shares / shares.sum(), spectral)

    def chance(
        self,
        before: NDArray[np.uint8],
        after: NDArray[np.uint8],
        scenes: NDArray[np.uint8],
        weights: NDArray[np.float64],
    ) -> NDArray[np.uint8]:
        """The chance in percent that the ground changed.

        Parameters
        ----------
        before, after : uint8 arrays, dims (class, y, x)
            Class probabilities of the epochs, parts of 250, 255 nodata.
        scenes : uint8 array, dims (y, x)
            Percent, from `PeriodChange.probability`; 255 nodata.
        weights : float64 array, dims (class before, class after)
            See `transition_weights`.

        Returns
        -------
        uint8 array, dims (y, x)
            255 where any of the three is nodata.
        """
        known = (before[0] != PROBABILITY_NODATA) & (after[0] != PROBABILITY_NODATA) & (scenes != CHANCE_NODATA)
        spectral = np.clip(scenes / 100, 0.01, 0.99)
        odds = np.clip(np.log(spectral / (1 - spectral)), -_MOST_SPECTRAL, _MOST_SPECTRAL)
        odds = odds + np.clip(self._class_odds(before, after, weights), -_MOST_CLASSES, _MOST_CLASSES)
        # In whole steps, so that sums are exact and a tile is judged as the whole country is.
        total = box_sum(np.where(known, np.rint(odds * _STEPS), 0.0), SMOOTH_PX)
        mean = total / _STEPS / np.maximum(box_sum(known.astype(np.float64), SMOOTH_PX), 1)
        percent = np.rint(100 / (1 + np.exp(-mean))).astype(np.uint8)
        return np.where(known, percent, np.uint8(CHANCE_NODATA))

    def _class_odds(
        self, before: NDArray[np.uint8], after: NDArray[np.uint8], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        p, q = (a.reshape(len(a), -1) / PROBABILITY_UNIT for a in (before, after))
        different = ((weights.T @ p) * q).sum(axis=0)
        same = (p * q / self.shares[:, None]).sum(axis=0)
        return np.asarray(np.log((different + _FLOOR) / (same + _FLOOR)).reshape(before.shape[1:]))

    def pairs(
        self,
        before: NDArray[np.uint8],
        after: NDArray[np.uint8],
        changed: NDArray[np.bool_],
        weights: NDArray[np.float64],
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """The most probable transition of every pixel that changed.

        Parameters
        ----------
        before, after, weights
            See `chance`.
        changed : bool array, dims (y, x)

        Returns
        -------
        from_code, to_code : uint16 arrays, dims (y, x)
            Two different codes; 0 where nothing changed or either epoch is nodata.
        """
        changed = changed & (before[0] != PROBABILITY_NODATA) & (after[0] != PROBABILITY_NODATA)
        out = np.zeros((2, *before.shape[1:]), np.uint16)
        if changed.any():
            # Sums of whole numbers: only their order matters, and they are exact. What did not change counts as zero.
            p, q = (box_sum(np.where(changed, a, 0).astype(np.float32), PAIR_PX) for a in (before, after))
            _best_pairs(p, q, changed, weights.astype(np.float32), np.array(self.codes, np.uint16), out)
        return out[0], out[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"codes": list(self.codes), "shares": self.shares.tolist(), "spectral": self.spectral.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JointChange:
        """The inverse of `to_dict`."""
        shares = np.array(values["shares"], np.float64)
        return cls(tuple(values["codes"]), shares, PeriodChange.from_dict(values["spectral"]))


def transition_weights(codes: tuple[int, ...], given: Mapping[str, float], legend: Legend) -> NDArray[np.float64]:
    """How plausible each transition is beside the others.

    Parameters
    ----------
    codes : tuple of int
        Classes at the legend's deepest level.
    given : mapping of ``"from-to"`` to weight
        Codes of any level: ``{"5-1": 0}`` excludes that water becomes built-up, ``{"312-324": 3}`` makes clear-cuts
        three times as likely as transitions that are not named. Later entries win.
    legend : Legend

    Returns
    -------
    float64 array, dims (class before, class after)
        1 where nothing is said; 0 on the diagonal.

    Raises
    ------
    GridError
        If a key does not name two classes of the legend, or a weight is negative.
    """
    weights = np.ones((len(codes), len(codes)))
    for key, weight in given.items():
        first, dash, second = key.partition("-")
        if not (dash and first.isdigit() and second.isdigit()) or weight < 0:
            raise GridError(f"transition {key!r}: {weight}: write two codes and a weight of 0 or more, as 312-324: 3")
        rows, cols = (_within(codes, int(part), legend, key) for part in (first, second))
        weights[np.ix_(rows, cols)] = weight
    np.fill_diagonal(weights, 0)
    return weights


def _within(codes: tuple[int, ...], code: int, legend: Legend, key: str) -> NDArray[np.bool_]:
    for level in legend.levels:
        if code in legend.codes(level):
            return np.array([legend.ancestor(c, level) == code for c in codes])
    raise GridError(f"transition {key!r}: {code} is no class of {legend.name} at any level")


@numba.njit(cache=True, nogil=True)
def _best_pairs(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    changed: NDArray[np.bool_],
    weights: NDArray[np.float32],
    codes: NDArray[np.uint16],
    out: NDArray[np.uint16],
) -> None:
    classes = before.shape[0]
    for y in range(before.shape[1]):
        for x in range(before.shape[2]):
            if not changed[y, x]:
                continue
            top, first, second = np.float32(-1), 0, 0
            for c in range(classes):
                p = before[c, y, x]
                if p == 0 and top >= 0:
                    continue
                for d in range(classes):
                    value = weights[c, d] * p * after[d, y, x]
                    if c != d and value > top:
                        top, first, second = value, c, d
            out[0, y, x], out[1, y, x] = codes[first], codes[second]
