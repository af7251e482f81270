"""Statistics of labelled patches: counts, cardinality, density, imbalance, and mean and spread of every band.

Kernels on numpy arrays. Cardinality and density are eqs. 1 and 2 of the paper (Tsoumakas and Katakis 2007): the mean
number of labels of a patch, and that over the number of classes that occur.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.inputs import NODATA
from geoflow.labels.patchlabels import UNKNOWN


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of some values, any shape; two of them can be merged.

    Attributes
    ----------
    count : int64 array
    mean, m2 : float64 arrays
        0 where ``count`` is.
    """

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    def merge(self, other: Moments) -> Moments:
        """Of both together, without the cancellation of summed squares.

        Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
        """
        count = self.count + other.count
        weight = np.divide(other.count, count, out=np.zeros(count.shape), where=count > 0)
        delta = other.mean - self.mean
        return Moments(count, self.mean + delta * weight, self.m2 + other.m2 + delta**2 * self.count * weight)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of the population; 0 where nothing was counted."""
        return np.sqrt(np.divide(self.m2, self.count, out=np.zeros(self.m2.shape), where=self.count > 0))

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Moments:
        """Of no values."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape))

    @classmethod
    def from_table(cls, table: NDArray[np.float64]) -> Moments:
        """From an array whose last axis is count, mean, m2, as `patch_moments` makes it."""
        return cls(table[..., 0].astype(np.int64), table[..., 1], table[..., 2])


def patch_moments(cube: NDArray[np.int16]) -> NDArray[np.float64]:
    """Count, mean and sum of squared deviations of every patch and band, nodata left out.

    Parameters
    ----------
    cube : int16, dims (patch, band, y, x)

    Returns
    -------
    float64, dims (patch, band, 3)
        From sums that are whole numbers below 2**53, so exact but for the last division.
    """
    found = np.zeros((*cube.shape[:2], 3))
    for patch, into in zip(cube, found, strict=True):
        flat = patch.reshape(len(patch), -1)
        seen = flat != NODATA
        count = seen.sum(axis=1)
        values = flat.astype(np.float64) if seen.all() else np.where(seen, flat, 0).astype(np.float64)
        total, squares = values.sum(axis=1), np.einsum("bp,bp->b", values, values)
        n = np.maximum(count, 1)
        into[:, 0], into[:, 1] = count, total / n
        # Exactly (n * squares - total ** 2) / n, whose products may leave 2**53 behind.
        exact = [int(k) * int(q) - int(s) ** 2 for k, q, s in zip(n, squares, total, strict=True)]
        into[:, 2] = np.array(exact, np.float64) / n
    return found


def merged(tables: Iterable[NDArray[np.float64]], bands: int) -> Moments:
    """The moments of each band over all patches of some tables of `patch_moments`, added up two by two."""
    total = Moments.none((bands,))
    for table in tables:
        parts = Moments.from_table(table)
        while len(parts.count) > 1:
            half = len(parts.count) // 2
            first, second, rest = (_rows(parts, s) for s in (slice(half), slice(half, 2 * half), slice(2 * half, None)))
            both = first.merge(second)
            parts = both if not len(rest.count) else _joined(both, rest)
        if len(parts.count):
            total = total.merge(Moments(parts.count[0], parts.mean[0], parts.m2[0]))
    return total


def _rows(parts: Moments, which: slice) -> Moments:
    return Moments(parts.count[which], parts.mean[which], parts.m2[which])


def _joined(one: Moments, other: Moments) -> Moments:
    return Moments(
        np.concatenate([one.count, other.count]),
        np.concatenate([one.mean, other.mean]),
        np.concatenate([one.m2, other.m2]),
    )


@dataclass(frozen=True)
class Imbalance:
    """How unevenly classes occur, over those that do.

    Attributes
    ----------
    largest_over_smallest : float
        Patches of the most frequent class over those of the rarest.
    mean_ratio : float
        MeanIR, the mean over classes of the patches of the most frequent one over the class's own (Charte et al. 2015,
        "Addressing imbalance in multilabel classification").
    evenness : float
        Shannon entropy of the shares over that of equal shares (Pielou): 1 where all classes are as frequent.
    rare_classes : int
        Classes that less than 1 % of the patches hold.
    """

    largest_over_smallest: float
    mean_ratio: float
    evenness: float
    rare_classes: int

    @classmethod
    def of(cls, counts: NDArray[np.integer], patches: int) -> Imbalance:
        """From the patches of each class, and their number."""
        held = np.asarray(counts, np.float64)[np.asarray(counts) > 0]
        if held.size == 0:
            raise LabelError("no patch holds a class")
        share = held / held.sum()
        most = np.log(held.size)
        evenness = float(-(share * np.log(share)).sum() / most) if held.size > 1 else 1.0
        ratio = held.max() / held
        return cls(float(ratio.max()), float(ratio.mean()), evenness, int((held < 0.01 * patches).sum()))


@dataclass(frozen=True)
class LabelStatistics:
    """One scheme of labels over some patches.

    Attributes
    ----------
    patches, unknown : int
        Patches whose labels of this scheme are known, and the others, which nothing here counts.
    counts : dict of int -> int
        Patches that hold each class, by code.
    cardinality, density : float
        Mean labels of a patch; that over the classes that occur.
    cardinalities : tuple of int
        Patches with 0, 1, 2 ... labels; empty where only counts were given.
    label_sets : int, or None
        Distinct combinations of labels.
    imbalance : Imbalance
    """

    patches: int
    unknown: int
    counts: dict[int, int]
    cardinality: float
    density: float
    cardinalities: tuple[int, ...]
    label_sets: int | None
    imbalance: Imbalance

    @property
    def classes(self) -> int:
        """Classes that occur."""
        return sum(n > 0 for n in self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the keys of counts as text."""
        values = {**asdict(self), "classes": self.classes}
        values["counts"] = {str(code): n for code, n in self.counts.items()}
        return values


def label_statistics(labels: NDArray[np.integer | np.bool_], codes: Sequence[int]) -> LabelStatistics | None:
    """The statistics of multi-hot labels.

    Parameters
    ----------
    labels : bool, or uint8 with rows of `UNKNOWN`; dims (patch, class)
    codes : sequence of int
        Code of each column.

    Returns
    -------
    LabelStatistics, or None where not one patch's labels are known
    """
    known = np.ones(len(labels), bool) if labels.dtype == bool else ~(labels == UNKNOWN).any(axis=1)
    held = np.asarray(labels)[known].astype(bool)
    counts = held.sum(axis=0)
    if not counts.any():
        return None
    per_patch = held.sum(axis=1)
    packed = np.packbits(held, axis=1)
    return _statistics(
        dict(zip(codes, counts.tolist(), strict=True)),
        len(held),
        int((~known).sum()),
        tuple(np.bincount(per_patch).tolist()),
        len(np.unique(packed, axis=0)),
    )


def count_statistics(counts: dict[int, int], patches: int) -> LabelStatistics:
    """The statistics that follow from the patches of each class alone, as the paper's Table 1 gives them.

    Raises
    ------
    LabelError
        If no class occurs, or more patches hold a class than there are.
    """
    if patches < max(counts.values(), default=0):
        raise LabelError(f"{max(counts.values())} patches hold a class, but there are only {patches}")
    return _statistics(dict(counts), patches, 0, (), None)


def _statistics(
    counts: dict[int, int], patches: int, unknown: int, cardinalities: tuple[int, ...], label_sets: int | None
) -> LabelStatistics:
    imbalance = Imbalance.of(np.array(list(counts.values())), patches)
    cardinality = sum(counts.values()) / patches
    density = cardinality / sum(n > 0 for n in counts.values())
    return LabelStatistics(patches, unknown, counts, cardinality, density, cardinalities, label_sets, imbalance)
