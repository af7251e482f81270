"""How large a sample must be, and how it is shared out among the strata. Numpy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoflow.errors import GeoflowError
from geoflow.mapping.ratios import whole_counts


def sample_size(areas: ArrayLike, expected_users: ArrayLike, target_se: float, population: int | None = None) -> int:
    """Units needed for a standard error of the overall accuracy, rounded up.

    Olofsson et al. 2014, eq. 13, which is eq. 5.25 of Cochran 1977.

    Parameters
    ----------
    areas : numbers, one a stratum, of any unit
    expected_users : numbers in 0..1, one a stratum
        Conjectured user's accuracies.
    target_se : float
        Standard error of the overall accuracy wanted, for example 0.01.
    population : int, optional
        Pixels of the country; without it they count as infinitely many, as the paper has it.

    Raises
    ------
    GeoflowError
        If a value is out of range.
    """
    if not 0 < target_se < 1:
        raise GeoflowError(f"the target standard error must lie between 0 and 1, not {target_se}")
    weights, users = _weights(areas), _shares_of(expected_users, len(np.atleast_1d(np.asarray(areas))))
    variance = users * (1 - users)
    correction = 0.0 if population is None else float((weights * variance).sum()) / population
    needed = float((weights * np.sqrt(variance)).sum()) ** 2 / (target_se**2 + correction)
    return max(1, math.ceil(round(needed, 9)))


def expected_se(pixels: ArrayLike, expected_users: ArrayLike, units: ArrayLike) -> float:
    """Standard error of the overall accuracy to be expected of a sample (Olofsson et al. 2014, eq. 5).

    Parameters
    ----------
    pixels : numbers, one a stratum
        Size of each, in any unit.
    expected_users : numbers in 0..1, one a stratum
        Conjectured user's accuracies.
    units : integers, one a stratum
        The allocation, as `allocate` gives it.

    Returns
    -------
    float
        NaN where a stratum with pixels has fewer than 2 units.

    Raises
    ------
    GeoflowError
        If a value is out of range.
    """
    weights, n = _weights(pixels), whole_counts(units, "the units")
    users = _shares_of(expected_users, len(weights))
    if ((n < 2) & (weights > 0)).any():
        return math.nan
    return math.sqrt(float((weights**2 * users * (1 - users) / np.maximum(n - 1, 1)).sum()))


def allocate(
    total: int,
    pixels: ArrayLike,
    method: str = "proportional",
    expected_users: ArrayLike | None = None,
    minimum: int = 50,
    forced: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Share the units of a sample out among the strata.

    Parameters
    ----------
    total : int
        Units of the whole sample.
    pixels : integers, one a stratum
        Size of each; a stratum never gets more units than it has pixels, and one without pixels gets none.
    method : str
        ``"proportional"`` to the pixels, ``"equal"``, or ``"neyman"`` (also ``"optimal"``): proportional to pixels
        times sqrt(U (1 - U)), U the user's accuracy expected, which serves the overall accuracy best (Cochran 1977,
        section 5.5).
    expected_users : numbers in 0..1, one a stratum, optional
        Needed by ``"neyman"``.
    minimum : int
        Units that each stratum gets at least (Olofsson et al. 2014, section 5, advise 50 to 100 for rare classes).
    forced : booleans, one a stratum, optional
        Strata, such as those of change, that get just their minimum whatever their size; the rest is shared among the
        others.

    Returns
    -------
    int64 array, one a stratum; sums to ``total``

    Raises
    ------
    GeoflowError
        If the minima need more than ``total``, the strata hold fewer pixels, or a value is out of range.
    """
    sizes = whole_counts(pixels, "the pixels")
    fixed = np.zeros(len(sizes), bool) if forced is None else np.asarray(forced, bool)
    if fixed.shape != sizes.shape:
        raise GeoflowError(f"{len(fixed)} values of forced for {len(sizes)} strata")
    if minimum < 0:
        raise GeoflowError(f"the minimum per stratum must be 0 or more, not {minimum}")
    merit = _merit(sizes, method, expected_users)
    least = np.minimum(minimum, sizes)
    most = np.where(fixed, least, sizes)
    if not least.sum() <= total <= most.sum():
        raise GeoflowError(
            f"{total} units cannot be shared out: {int((sizes > 0).sum())} strata with at least {minimum} each need "
            f"{int(least.sum())}, and at most {int(most.sum())} can be placed"
        )
    return _share_out(total, merit, least, most)


def _merit(sizes: NDArray[np.int64], method: str, expected_users: ArrayLike | None) -> NDArray[np.float64]:
    if method == "proportional":
        return sizes.astype(float)
    if method == "equal":
        return np.ones(len(sizes))
    if method not in ("neyman", "optimal"):
        raise GeoflowError(f"no allocation {method!r}: it is proportional, equal or neyman")
    if expected_users is None:
        raise GeoflowError("the neyman allocation needs the user's accuracies expected")
    users = _shares_of(expected_users, len(sizes))
    return sizes.astype(float) * np.sqrt(users * (1 - users))


def _share_out(
    total: int, merit: NDArray[np.float64], least: NDArray[np.int64], most: NDArray[np.int64]
) -> NDArray[np.int64]:
    """``clip(scale * merit, least, most)`` with the scale at which it sums to ``total``, in whole units."""
    merit = np.maximum(merit, merit.max() * 1e-12 if merit.max() > 0 else 1.0)  # a stratum of no merit takes the rest
    low, high = 0.0, float(total / merit.min()) + 1
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(middle * merit, least, most).sum() < total:
            low = middle
        else:
            high = middle
    exact = np.clip(high * merit, least, most)
    out = np.clip(np.floor(exact + 1e-9).astype(np.int64), least, most)
    order = np.argsort(-(exact - out), kind="stable")  # the largest remainders get the units that rounding left over
    while (left := int(total - out.sum())) > 0:
        room = order[(out < most)[order]][:left]
        out[room] += 1
    return out


def _weights(areas: ArrayLike) -> NDArray[np.float64]:
    given = np.atleast_1d(np.asarray(areas, float))
    if not (given >= 0).all() or not given.sum() > 0:
        raise GeoflowError(f"areas must be 0 or more and not all 0, not {given.tolist()}")
    return given / given.sum()


def _shares_of(values: ArrayLike, count: int) -> NDArray[np.float64]:
    given = np.atleast_1d(np.asarray(values, float))
    if given.shape != (count,) or not ((given >= 0) & (given <= 1)).all():
        raise GeoflowError(f"{count} user's accuracies between 0 and 1 are needed, not {given.tolist()}")
    return given
