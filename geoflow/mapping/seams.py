"""Whether a map shows how it was made: neighbours that differ at borders of the process, against those elsewhere.

Windows, chunks, tiles and scenes mean nothing on the ground. So two neighbouring pixels should differ across such a
border as often as anywhere else; where they differ more often, the border can be seen in the map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

INTERIOR = "interior"
"""Name of the pairs of neighbours that lie across no border."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of neighbouring pixels of which both are mapped, and how many of them differ in class.

    Counted by segments (a line within one tile, or all of a tile), because pairs of a segment are not independent: a
    road along a line differs all the way.

    Attributes
    ----------
    pairs, differing : int
        Sums over the segments.
    segments : int
        How many hold any pair.
    squares : (int, int, int)
        Sums over the segments of differing², differing x pairs and pairs².
    """

    pairs: int = 0
    differing: int = 0
    segments: int = 0
    squares: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, pairs: NDArray[np.int64], differing: NDArray[np.int64]) -> Pairs:
        """From the counts of each segment."""
        squares = tuple(int((a * b).sum()) for a, b in ((differing, differing), (differing, pairs), (pairs, pairs)))
        return cls(int(pairs.sum()), int(differing.sum()), int((pairs > 0).sum()), squares)  # type: ignore[arg-type]

    def __add__(self, other: Pairs) -> Pairs:
        squares = tuple(a + b for a, b in zip(self.squares, other.squares, strict=True))
        return Pairs(
            self.pairs + other.pairs,
            self.differing + other.differing,
            self.segments + other.segments,
            squares,  # type: ignore[arg-type]
        )

    @property
    def share(self) -> float | None:
        """The share that differs; None without any pair."""
        return self.differing / self.pairs if self.pairs else None

    @property
    def error(self) -> float | None:
        """Standard error of the share, as of a ratio estimator over segments (Cochran 1977, Sampling Techniques).

        None with fewer than two segments.
        """
        if self.share is None or self.segments < 2:
            return None
        dd, dp, pp = self.squares
        residuals = max(0.0, dd - 2 * self.share * dp + self.share**2 * pp)
        return math.sqrt(residuals * self.segments / (self.segments - 1)) / self.pairs


def lines(start: int, stop: int, period: int, offsets: Iterable[int] = (0,)) -> NDArray[np.bool_]:
    """Which neighbours lie across a line that repeats along an axis.

    Parameters
    ----------
    start, stop : int
        Pixels of the national grid, along one axis.
    period : int
        The lines lie before the pixels ``k * period + offset``.
    offsets : iterable of int

    Returns
    -------
    bool array (stop - start - 1,)
        True where the line is between pixel ``start + i`` and the next.
    """
    second = np.arange(start + 1, stop)
    return np.isin(second % period, [offset % period for offset in offsets])


def count_pairs(
    codes: NDArray[np.unsignedinteger[Any]],
    borders: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    regions: Mapping[str, NDArray[np.integer[Any]]],
) -> dict[str, Pairs]:
    """Count the neighbours that differ, across each kind of border and elsewhere.

    Parameters
    ----------
    codes : unsigned integer array, dims (y, x)
        Class codes, 0 nodata.
    borders : mapping of kind -> (bool (height - 1,), bool (width - 1,))
        Straight lines across the whole array: see `lines`.
    regions : mapping of kind -> integer array, dims (y, x)
        A border lies wherever two neighbours have different values.

    Returns
    -------
    dict of kind -> Pairs
        Of every kind, and of `INTERIOR`. A pair may count for several kinds.
    """
    found = dict.fromkeys((*borders, *regions, INTERIOR), Pairs())
    for axis in (0, 1):
        first, second = _neighbours(codes, axis)
        mapped, differ = (first != 0) & (second != 0), first != second
        inside = mapped.copy()
        for kind, masks in borders.items():
            along = 1 - axis
            across = np.compress(masks[axis], mapped, axis)
            pairs, differing = across.sum(along), (across & np.compress(masks[axis], differ, axis)).sum(along)
            found[kind] += Pairs.of(pairs.astype(np.int64), differing.astype(np.int64))
            inside &= ~np.expand_dims(masks[axis], along)
        for kind, values in regions.items():
            one, other = _neighbours(values, axis)
            found[kind] += _together(mapped & (one != other), differ)
            inside &= one == other
        found[INTERIOR] += _together(inside, differ)
    return found


def _neighbours(values: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return (values[:-1], values[1:]) if axis == 0 else (values[:, :-1], values[:, 1:])


def _together(where: NDArray[np.bool_], differ: NDArray[np.bool_]) -> Pairs:
    return Pairs.of(np.array([where.sum()], np.int64), np.array([(where & differ).sum()], np.int64))


@dataclass(frozen=True)
class Seam:
    """How a kind of border compares with the interior.

    Attributes
    ----------
    pairs : int
        Neighbours across the border.
    share, interior : float
        Of these, and of the others, the share that differs.
    ratio : float
        ``share / interior``.
    error : float or None
        Its standard error: see `Pairs.error`. A border can be seen where the ratio is above 1 by several of these.
    """

    pairs: int
    share: float
    interior: float
    ratio: float
    error: float | None


def compare(counted: Mapping[str, Pairs]) -> dict[str, Seam]:
    """Each kind of border against the interior; kinds without pairs are left out."""
    interior = counted[INTERIOR].share
    if not interior:
        return {}
    found = {}
    for kind, pairs in counted.items():
        share = pairs.share
        if kind == INTERIOR or share is None:
            continue
        error = None if pairs.error is None else pairs.error / interior
        found[kind] = Seam(pairs.pairs, share, interior, share / interior, error)
    return found
