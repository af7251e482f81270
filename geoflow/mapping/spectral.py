"""How likely the ground itself changed: spectral differences between two epochs, judged class by class.

Two maps differ wherever either is wrong, so comparing them finds mostly their errors. The scenes know more: fields of
one class differ between two years in a way that is typical of the class (another harvest, another sun), and a felled
forest does not. Each pixel's difference vector is therefore measured against the differences of its class.

The distance is that of the multivariate alteration detection family (Nielsen 2007, "The regularized iteratively
reweighted MAD method", IEEE TIP 16(2)): Mahalanobis, with mean and covariance of the unchanged pixels, found by leaving
out the most distant ones again and again. It becomes a probability through a mixture of an unchanged and a changed
population, fitted by expectation maximisation (Bruzzone and Fernandez Prieto 2000, "Automatic analysis of the
difference image for unsupervised change detection", IEEE TGRS 38(3)); here of the logarithm of the squared distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from geoflow.errors import GridError
from geoflow.inputs import NODATA

Values = NDArray[np.float64]

SMOOTH_PX = 3
"""Differences are means over so many pixels: scenes of two epochs do not lie on each other to the last metre."""

HALO_PX = SMOOTH_PX // 2
"""Margin that `difference` needs to be exact at the border of a window."""

PROBABILITY_NODATA = 255
"""Nodata of a probability in percent."""

_ANY_CLASS = 0  # statistics over all classes, for a class that is too rare for its own
_LEAST_PER_CHANNEL = 30  # pixels that a covariance needs, per channel
_KEPT_SHARE, _ROUNDS = 0.9, 3  # of a class, the share that counts as unchanged, and how often it is chosen anew
_RIDGE = 100.0  # added to the variances, (0.001 reflectance)^2: a saturated or empty channel has none of its own


def difference(before: NDArray[np.int16], after: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """After minus before, smoothed, and where it is known.

    Parameters
    ----------
    before, after : int16 arrays, dims (period, band, y, x)
        Reflectance x 10000 of two epochs, nodata -32768.

    Returns
    -------
    difference : float32 array, dims (period, band, y, x)
        Mean over the known ones of 3 x 3 pixels; 0 where nothing is known.
    known : bool array, dims (period, y, x)
        True where all bands of the period are there in both epochs.

    Raises
    ------
    GridError
        If the shapes differ.
    """
    if before.shape != after.shape:
        raise GridError(f"the composites differ in shape: {before.shape} and {after.shape}")
    known = ((before != NODATA) & (after != NODATA)).all(axis=1)
    plain = np.where(known[:, None], after.astype(np.float32) - before, np.float32(0))
    count = np.maximum(box_sum(known.astype(np.float32), SMOOTH_PX), 1)
    return np.where(known[:, None], box_sum(plain, SMOOTH_PX) / count[:, None], np.float32(0)), known


def box_sum(values: NDArray[Any], edge: int) -> NDArray[Any]:
    """Sums over squares of ``edge`` pixels around each pixel of the last two dims, nothing beyond the border.

    Exact for whole numbers, unlike a running sum, whose last bits depend on where it began: a tile and the whole
    country then have the same sums.
    """
    ones = np.ones(edge)
    rows = ndimage.correlate1d(values, ones, axis=-2, mode="constant")
    return np.asarray(ndimage.correlate1d(rows, ones, axis=-1, mode="constant"))


@dataclass(frozen=True)
class PeriodChange:
    """What is usual for each set of periods that both epochs have in common at a pixel.

    A pixel is judged by all periods that it was seen in twice, and by nothing else: a cloud over one of four dates does
    not leave it unjudged.

    Attributes
    ----------
    learned : mapping of periods to SpectralChange
        The key holds the positions of the periods, ascending.
    """

    learned: Mapping[tuple[int, ...], SpectralChange]

    @classmethod
    def fit(cls, samples: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[Any]]]) -> PeriodChange:
        """Learn from a sample of a country; no labels of change are needed.

        Parameters
        ----------
        samples : iterable of (differences, known, classes)
            float32 (period, band, n) and bool (period, n) from `difference`, and the n class codes of the map before,
            0 where to be left out.

        Raises
        ------
        GridError
            If no set of periods has enough pixels.
        """
        held = list(samples)
        found: dict[tuple[int, ...], SpectralChange] = {}
        for periods in sorted({set_ for _, known, classes in held for set_ in _sets(known[:, classes != 0])}):
            chosen = list(periods)
            pairs = [
                (d[chosen].reshape(-1, c.size), np.where(known[chosen].all(axis=0), c, np.uint16(0)))
                for d, known, c in held
            ]
            count = sum(int((c != 0).sum()) for _, c in pairs)
            if count >= pairs[0][0].shape[0] * _LEAST_PER_CHANNEL:
                found[periods] = SpectralChange.fit(pairs)
        if not found:
            raise GridError(
                "too few pixels were observed in both epochs to learn which differences are usual; "
                "use change.method: post-classification"
            )
        return cls(found)

    def probability(
        self,
        differences: NDArray[np.float32],
        known: NDArray[np.bool_],
        classes: NDArray[np.unsignedinteger[Any]],
    ) -> NDArray[np.uint8]:
        """The chance in percent that the ground changed.

        Parameters
        ----------
        differences, known
            From `difference`: dims (period, band, y, x) and (period, y, x).
        classes : unsigned integer array, dims (y, x)
            The map before, 0 nodata.

        Returns
        -------
        uint8 array, dims (y, x)
            255 where no period is known in both epochs, or the class is not.
        """
        out = np.full(classes.shape, PROBABILITY_NODATA, np.uint8)
        for periods in _sets(known):
            best = max((p for p in self.learned if set(p) <= set(periods)), key=len, default=None)
            if best is None:
                continue
            others = [p for p in range(len(known)) if p not in periods]
            exactly = np.asarray(known[list(periods)].all(axis=0) & ~known[others].any(axis=0))
            chosen = differences[list(best)].reshape(-1, *classes.shape)
            judged = self.learned[best].probability(chosen, exactly, classes)
            out = np.where(exactly, judged, out)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"-".join(map(str, periods)): change.to_dict() for periods, change in self.learned.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PeriodChange:
        """The inverse of `to_dict`."""
        return cls({tuple(map(int, k.split("-"))): SpectralChange.from_dict(v) for k, v in values.items()})


def _sets(known: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """The sets of periods that occur, not the empty one; ``known`` has dims (period, ...)."""
    weights = (1 << np.arange(len(known))).reshape(-1, *(1,) * (known.ndim - 1))
    codes = np.unique((known * weights).sum(axis=0)).tolist()
    return [tuple(p for p in range(len(known)) if code >> p & 1) for code in codes if code]


@dataclass(frozen=True)
class SpectralChange:
    """What differences of some channels are usual for each class, and from which distance on the ground has changed.

    Attributes
    ----------
    mean : mapping of code to float64 array (channel,)
        Code 0 stands for all classes together.
    precision : mapping of code to float64 array (channel, channel)
        Inverse covariance.
    share, centre, spread : (unchanged, changed)
        The mixture of normal distributions over the logarithm of the squared distance.
    """

    mean: Mapping[int, Values]
    precision: Mapping[int, Values]
    share: tuple[float, float]
    centre: tuple[float, float]
    spread: tuple[float, float]

    @classmethod
    def fit(cls, samples: Iterable[tuple[NDArray[np.float32], NDArray[np.unsignedinteger[Any]]]]) -> SpectralChange:
        """Learn from a sample of a country; no labels of change are needed.

        Parameters
        ----------
        samples : iterable of (differences, classes)
            float32 (channel, n), and the n class codes of the map before, 0 where to be left out.

        Raises
        ------
        GridError
            If there are fewer known pixels than a covariance needs.
        """
        pairs = [(d[:, c != 0], c[c != 0]) for d, c in samples]
        differences = np.concatenate([d for d, _ in pairs], axis=1).astype(np.float64) if pairs else np.empty((1, 0))
        classes = np.concatenate([c for _, c in pairs]) if pairs else np.empty(0, np.uint16)
        channels, count = differences.shape
        if count < channels * _LEAST_PER_CHANNEL:
            raise GridError(f"{count} pixels are too few to learn which differences of {channels} channels are usual")
        mean, precision = {}, {}
        for code in (_ANY_CLASS, *np.unique(classes).tolist()):
            chosen = differences if code == _ANY_CLASS else differences[:, classes == code]
            if chosen.shape[1] >= channels * _LEAST_PER_CHANNEL:
                mean[code], precision[code] = _usual(chosen)
        bare = cls(mean, precision, (1.0, 0.0), (0.0, 0.0), (1.0, 1.0))
        return cls(mean, precision, *_mixture(bare.log_distance(differences, classes)))

    def log_distance(self, differences: NDArray[Any], classes: NDArray[np.unsignedinteger[Any]]) -> Values:
        """Logarithm of the squared Mahalanobis distance (n,) of differences (channel, n) within their classes."""
        squared = np.empty(len(classes))
        for code in np.unique(classes).tolist():
            at = classes == code
            known = code if code in self.mean else _ANY_CLASS
            off = differences[:, at] - self.mean[known][:, None]
            squared[at] = np.einsum("in,ij,jn->n", off, self.precision[known], off, optimize=True)
        return np.log(np.maximum(squared, 1e-6))

    def probability(
        self,
        differences: NDArray[np.float32],
        known: NDArray[np.bool_],
        classes: NDArray[np.unsignedinteger[Any]],
    ) -> NDArray[np.uint8]:
        """The chance in percent that the ground changed.

        Parameters
        ----------
        differences : float32 array, dims (channel, y, x)
        known : bool array, dims (y, x)
            Where all these channels are known.
        classes : unsigned integer array, dims (y, x)
            The map before, 0 nodata.

        Returns
        -------
        uint8 array, dims (y, x)
            255 where the difference or the class is not known.
        """
        out = np.full(known.shape, PROBABILITY_NODATA, np.uint8)
        judged = known & (classes != 0)
        distance = self.log_distance(differences[:, judged], classes[judged])
        unchanged, changed = (
            _log_density(distance, *c) for c in zip(self.share, self.centre, self.spread, strict=True)
        )
        chance = 1 / (1 + np.exp(np.clip(unchanged - changed, -60, 60)))
        # The wider population wins again far below the narrow one; but less than usual is no change.
        chance[distance < self.centre[0]] = 0
        out[judged] = np.rint(chance * 100).astype(np.uint8)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "mean": {str(code): values.tolist() for code, values in self.mean.items()},
            "precision": {str(code): values.tolist() for code, values in self.precision.items()},
            "share": list(self.share),
            "centre": list(self.centre),
            "spread": list(self.spread),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpectralChange:
        """The inverse of `to_dict`."""
        mean, precision = (
            {int(code): np.array(v, float) for code, v in values[name].items()} for name in ("mean", "precision")
        )
        share, centre, spread = ((float(v[0]), float(v[1])) for v in (values[n] for n in ("share", "centre", "spread")))
        return cls(mean, precision, share, centre, spread)


def _usual(differences: Values) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and inverse covariance of the unchanged among the differences (channel, n) of one class."""
    mean = np.median(differences, axis=1)
    kept, ridge = differences, np.eye(len(differences)) * _RIDGE
    precision = np.linalg.inv(np.cov(kept) + ridge)
    for _ in range(_ROUNDS):
        off = differences - mean[:, None]
        squared = np.einsum("in,ij,jn->n", off, precision, off, optimize=True)
        kept = differences[:, squared <= np.quantile(squared, _KEPT_SHARE)]
        mean, precision = kept.mean(axis=1), np.linalg.inv(np.atleast_2d(np.cov(kept)) + ridge)
    return mean, precision


Pair = tuple[float, float]


def _mixture(values: Values, rounds: int = 200) -> tuple[Pair, Pair, Pair]:
    """Shares, centres and spreads of an unchanged and a changed population, by expectation maximisation."""
    values = values[:: max(1, len(values) // 100_000)]
    middle = float(np.median(values))
    share, centre, spread = np.array([0.97, 0.03]), np.array([middle, middle + 3.0]), np.array([0.5, 1.0])
    for _ in range(rounds):
        log = np.stack([_log_density(values, *c) for c in zip(share, centre, spread, strict=True)])
        belongs = np.exp(log - np.logaddexp(log[0], log[1]))
        weight = np.maximum(belongs.sum(axis=1), 1e-9)
        share, centre = weight / weight.sum(), belongs @ values / weight
        spread = np.sqrt((belongs * (values - centre[:, None]) ** 2).sum(axis=1) / weight).clip(0.1)
    return _pair(share), _pair(centre), _pair(spread)


def _pair(values: Values) -> Pair:
    return float(values[0]), float(values[1])


def _log_density(values: Values, share: float, centre: float, spread: float) -> Values:
    return np.asarray(np.log(max(share, 1e-12) / spread) - 0.5 * ((values - centre) / spread) ** 2)
