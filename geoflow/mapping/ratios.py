"""The one kernel of all design-based figures: a ratio of two totals from a stratified random sample. Numpy only.

Every figure of an accuracy assessment, accuracies and shares of the area alike, is a ratio of two totals of 0/1
indicators (Stehman 2014, International Journal of Remote Sensing 35, 4923-4939). What is counted for which figure is
said in `geoflow.mapping.estimators`; here are the ratio, its standard error, and the checks of what goes in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoflow.errors import GeoflowError

Z95 = 1.96
"""Standard errors on either side of a 95 % interval, as printed by Olofsson et al."""


@dataclass(frozen=True)
class Estimate:
    """An estimate and its standard error: float64 arrays of one shape. NaN where not defined.

    ``highest`` is the largest value that the quantity can have (1 for a share); intervals are cut off there and at
    ``lowest``.
    """

    value: NDArray[np.float64]
    se: NDArray[np.float64]
    lowest: float = 0.0
    highest: float = math.inf

    @property
    def half_width(self) -> NDArray[np.float64]:
        """Half of the 95 % interval before it is cut off."""
        return Z95 * self.se

    @property
    def low(self) -> NDArray[np.float64]:
        """Lower end of the 95 % interval."""
        return np.clip(self.value - self.half_width, self.lowest, self.highest)

    @property
    def high(self) -> NDArray[np.float64]:
        """Upper end of the 95 % interval."""
        return np.clip(self.value + self.half_width, self.lowest, self.highest)

    def times(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.value * factor, self.se * factor, self.lowest * factor, self.highest * factor)

    def plain(self, index: Any = ()) -> dict[str, float | None]:
        """``value``, ``se``, ``low``, ``high`` of one entry, NaN as None."""
        names = ("value", "se", "low", "high")
        return {name: _plain(float(np.asarray(getattr(self, name))[index])) for name in names}


def ratio(
    hits: NDArray[np.integer], base: NDArray[np.integer], units: NDArray[np.integer], pixels: NDArray[np.integer]
) -> Estimate:
    """Ratio of two totals of 0/1 indicators y and x, where y = 1 only where x = 1 (Stehman 2014).

    Parameters
    ----------
    hits, base : integer arrays, dims (stratum, figure)
        Sample units with y = 1, and with x = 1. Where x is 1 for all units, the ratio is a mean.
    units, pixels : integer arrays, dims (stratum)
        Size of the sample and of the population; both at least 1.

    Returns
    -------
    Estimate, dims (figure)
        NaN where no unit has x = 1. The standard error is NaN where a stratum has a single unit and the figure's
        ``base`` is not known to be empty there: a negative ``base`` says that x is 0 in the whole stratum. A stratum
        of which every pixel is in the sample adds no variance; no other finite population correction is made.
    """
    n, total = units[:, None].astype(float), pixels[:, None].astype(float)
    y, x = hits / n, base.clip(0) / n
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (total * y).sum(axis=0) / (total * x).sum(axis=0)
        # of y - R x: var y - 2 R cov(x, y) + R^2 var x, where y <= x are 0 or 1; exactly 0 where all units agree
        variance = y * (1 - y) - 2 * value * y * (1 - x) + value**2 * x * (1 - x)
        spread = variance.clip(0) / (n - 1)  # s^2 / n
        spread = np.where(n == 1, np.nan, spread)
        spread = np.where((n >= total) | (base < 0), 0.0, spread)
        se = np.sqrt((total**2 * spread).sum(axis=0)) / (total * x).sum(axis=0)
    return Estimate(value, np.where(np.isnan(value), np.nan, se), 0.0, 1.0)


def check_strata(
    units: NDArray[np.int64], pixels: NDArray[np.int64], names: Sequence[str]
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Which strata exist, and the names of those with one unit of many pixels.

    Raises
    ------
    GeoflowError
        If there is no unit at all, or a stratum has pixels and no unit, or more units than pixels (named).
    """

    def named(where: NDArray[np.bool_]) -> str:
        return ", ".join(repr(name) for name, bad in zip(names, where, strict=True) if bad)

    if len(units) != len(pixels) or not units.sum():
        raise GeoflowError(f"{int(units.sum())} units in {len(pixels)} strata: there is nothing to estimate from")
    if (bad := (units == 0) & (pixels > 0)).any():
        raise GeoflowError(
            f"no sample unit in stratum {named(bad)}, which has {pixels[bad].tolist()} pixels: add units there (2 at "
            "least, 50 are usual) or merge it with a stratum that has some"
        )
    if (bad := units > pixels).any():
        raise GeoflowError(
            f"stratum {named(bad)} has more sample units ({units[bad].tolist()}) than pixels ({pixels[bad].tolist()})"
        )
    single = (units == 1) & (pixels > 1)
    return pixels > 0, tuple(name for name, one in zip(names, single, strict=True) if one)


def place_of(strata: ArrayLike, names: Sequence[str]) -> NDArray[np.intp]:
    """Position of each unit's stratum among the names; `GeoflowError` where one is not among them."""
    table = {name: i for i, name in enumerate(names)}
    found = np.asarray(strata).tolist()
    if unknown := sorted({str(s) for s in found if s not in table}):
        raise GeoflowError(f"units lie in the strata {unknown}, whose pixels are not given; given are {names}")
    return np.array([table[s] for s in found], np.intp)


def positions_of(values: ArrayLike, codes: Sequence[int], what: str) -> NDArray[np.intp]:
    """Position of each code among the classes; `GeoflowError`, naming ``what``, where one is not, or is 0."""
    table = {int(code): i for i, code in enumerate(codes) if code != 0}
    found = np.asarray(values).tolist()
    if unknown := sorted({v for v in found if v not in table}):
        nodata = " (0 is nodata)" if 0 in unknown else ""
        raise GeoflowError(f"the {what} has the codes {unknown}{nodata}, not among the classes {sorted(table)}")
    return np.array([table[v] for v in found], np.intp)


def whole_counts(values: ArrayLike, what: str) -> NDArray[np.int64]:
    """The values as int64, with a `GeoflowError` that names ``what`` where they are no counts."""
    given = np.asarray(values)
    whole = given.astype(np.int64)
    if not np.array_equal(whole, given) or (whole < 0).any():
        raise GeoflowError(f"{what} must be whole numbers of 0 or more, not {given.tolist()}")
    return whole


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
