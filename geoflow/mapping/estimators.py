"""How good a map is, and how large its classes are, from a stratified random sample with a reference. Numpy only.

The estimators of Olofsson et al. 2014 (Remote Sensing of Environment 148, 42-57), where the strata are the map's
classes, and of Stehman 2014 (International Journal of Remote Sensing 35, 4923-4939), where they are not. The first are
a case of the second, so there is one kernel, `geoflow.mapping.ratios.ratio`: every figure is a ratio of two totals of
0/1 indicators.

Rows are the map, columns the reference, as the two papers have it (`geoflow.mapping.accuracy`, which counts all pixels
against a full truth, has the truth in rows). Nodata (0) is never a class. Intervals are estimate +- 1.96 standard
errors; that is rough for strata of fewer than about 30 units, and of no width where all units of the strata agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoflow.errors import GeoflowError
from geoflow.mapping.ratios import Estimate, check_strata, place_of, positions_of, ratio, whole_counts

if TYPE_CHECKING:
    import pandas as pd

_M2_PER_HA = 1e4


@dataclass(frozen=True)
class Assessment:
    """What a sample says about a map.

    Attributes
    ----------
    codes : tuple of int
        The classes, in the order of all arrays.
    counts : int64 array, dims (map class, reference class)
        Sample units.
    shares : Estimate, dims (map class, reference class)
        The confusion matrix as shares of the area (Olofsson et al. eq. 4; Stehman, for other strata).
    overall : Estimate, a single value
        Share of the area with the right class (variance: Olofsson et al. eq. 5).
    users, producers : Estimate, one value a class
        User's accuracy: the share of what is mapped as the class that is it (variance: eq. 6); NaN for a class that no
        unit is mapped as. Producer's: the share of the class that is mapped as it (variance: eq. 7); NaN for a class
        that no unit has in the reference, 0 for one that is only in the reference.
    area_ha : Estimate, one value a class
        The area of the class, freed from the map's errors (Olofsson et al., section 4); 0 for a class without
        reference units.
    mapped_ha : Estimate, one value a class
        The area of the map's class; its standard error is 0 where the strata are the map's classes.
    single : tuple of str
        Strata with one unit out of many pixels. Their variance cannot be estimated, so the standard errors of
        all figures that they take part in are NaN; the values themselves are sound.
    """

    codes: tuple[int, ...]
    counts: NDArray[np.int64]
    shares: Estimate
    overall: Estimate
    users: Estimate
    producers: Estimate
    area_ha: Estimate
    mapped_ha: Estimate
    single: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Sample units that the figures rest on."""
        return int(self.counts.sum())

    def frame(self, names: Mapping[int, str] | None = None) -> pd.DataFrame:
        """One row a class, by code: units, and value, ``_se``, ``_low``, ``_high`` of the figures by class."""
        import pandas as pd

        columns: dict[str, Any] = {} if names is None else {"name": [names[c] for c in self.codes]}
        columns |= {"mapped_units": self.counts.sum(axis=1), "reference_units": self.counts.sum(axis=0)}
        for figure in ("users", "producers", "area_ha", "mapped_ha"):
            found: Estimate = getattr(self, figure)
            columns |= {figure: found.value, f"{figure}_se": found.se}
            columns |= {f"{figure}_low": found.low, f"{figure}_high": found.high}
        return pd.DataFrame(columns, index=pd.Index(self.codes, name="code"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN as None, classes by code."""
        figures = ("users", "producers", "area_ha", "mapped_ha")
        return {
            "units": self.units,
            "overall": self.overall.plain(),
            "classes": {
                str(code): {figure: getattr(self, figure).plain(i) for figure in figures}
                for i, code in enumerate(self.codes)
            },
            "counts": self.counts.tolist(),
            "shares": self.shares.value.tolist(),
            "single": list(self.single),
        }


def estimate(
    matrix: ArrayLike, mapped_pixels: ArrayLike, codes: Sequence[int], pixel_area_m2: float = 100.0
) -> Assessment:
    """Accuracy and areas where the strata are the map's classes (Olofsson et al. 2014, section 4).

    Parameters
    ----------
    matrix : integers, dims (map class, reference class)
        Sample units.
    mapped_pixels : integers, one a class
        Size of each class in the map; 0 for a class that is in the reference only.
    codes : sequence of int
        The classes, in the order of both.
    pixel_area_m2 : float
        Area of a pixel in square metres.

    Raises
    ------
    GeoflowError
        If the shapes do not fit, a count is negative or no whole number, or a class with pixels has no sample unit
        (named; see `estimate_strata`).
    """
    counts, pixels = whole_counts(matrix, "the matrix"), whole_counts(mapped_pixels, "the mapped pixels")
    if counts.shape != (len(codes), len(codes)) or pixels.shape != (len(codes),):
        raise GeoflowError(
            f"{len(codes)} classes need a square matrix of as many rows and as many mapped areas, not "
            f"{counts.shape} and {pixels.shape}"
        )
    cube = np.zeros((len(codes), *counts.shape), np.int64)
    cube[np.arange(len(codes)), np.arange(len(codes))] = counts
    return _assess(cube, pixels, [str(c) for c in codes], codes, pixel_area_m2, own=True)


def estimate_strata(
    strata: ArrayLike,
    mapped: ArrayLike,
    reference: ArrayLike,
    pixels: Mapping[str, int],
    codes: Sequence[int],
    pixel_area_m2: float = 100.0,
) -> Assessment:
    """Accuracy and areas where the strata need not be the map's classes (Stehman 2014).

    Parameters
    ----------
    strata : names, one a unit
    mapped, reference : integers, one a unit
        Class codes of the map and of the reference; 0 (nodata) is refused.
    pixels : mapping of name to int
        Size of every stratum, those without a unit included.
    codes : sequence of int
        The classes; must hold every code that occurs.
    pixel_area_m2 : float
        Area of a pixel in square metres.

    Raises
    ------
    GeoflowError
        If the lengths differ; a code or a stratum is unknown; or a stratum with pixels has no unit: nothing is known
        about it then, and to leave it out would bias all figures. A stratum with one unit is accepted
        (`Assessment.single`).
    """
    names = list(pixels)
    place, rows, columns = (
        place_of(strata, names),
        positions_of(mapped, codes, "map"),
        positions_of(reference, codes, "reference"),
    )
    if not len(place) == len(rows) == len(columns):
        raise GeoflowError(f"{len(place)} strata, {len(rows)} map codes and {len(columns)} references: one each a unit")
    cube = np.zeros((len(names), len(codes), len(codes)), np.int64)
    np.add.at(cube, (place, rows, columns), 1)
    return _assess(cube, whole_counts(list(pixels.values()), "the pixels"), names, codes, pixel_area_m2, own=False)


def _assess(
    cube: NDArray[np.int64],
    pixels: NDArray[np.int64],
    names: Sequence[str],
    codes: Sequence[int],
    pixel_area_m2: float,
    own: bool,
) -> Assessment:
    """`Assessment` from counts, dims (stratum, map class, reference class); ``own``: stratum i is map class i."""
    kept, single = check_strata(cube.sum(axis=(1, 2)), pixels, names)
    counts, cube, pixels = cube.sum(axis=0), cube[kept], pixels[kept]
    units, size = cube.sum(axis=(1, 2)), len(codes)
    rows, columns = cube.sum(axis=2), cube.sum(axis=1)
    right = np.diagonal(cube, axis1=1, axis2=2)
    outside = np.flatnonzero(kept)[:, None] != np.arange(size)  # strata in which no pixel is mapped as the class
    everyone = np.broadcast_to(units[:, None], (len(units), size * size))

    def of(hits: NDArray[np.int64], base: NDArray[np.int64]) -> Estimate:
        return ratio(hits, base, units, pixels)

    cells = of(cube.reshape(len(units), -1), everyone)
    overall = of(right.sum(axis=1, keepdims=True), units[:, None])
    mapped = of(rows, everyone[:, :size])
    hectares = float(pixels.sum()) * pixel_area_m2 / _M2_PER_HA
    return Assessment(
        codes=tuple(int(c) for c in codes),
        counts=counts,
        shares=Estimate(cells.value.reshape(size, size), cells.se.reshape(size, size), 0.0, 1.0),
        overall=Estimate(overall.value[0], overall.se[0], 0.0, 1.0),
        users=of(right, np.where(outside, -1, rows) if own else rows),
        producers=of(right, columns),
        area_ha=of(columns, everyone[:, :size]).times(hectares),
        mapped_ha=(Estimate(mapped.value, np.zeros(size)) if own else mapped).times(hectares),
        single=single,
    )


@dataclass(frozen=True)
class Comparison:
    """Two maps on one sample; see `compare`.

    Attributes
    ----------
    first, second, difference : Estimate, single values
        Overall accuracies, and the first less the second.
    z, p_value : float
        The difference by its standard error, and the two-sided probability of one as large if the maps were equally
        accurate; NaN where the standard error is.
    only_first, only_second : int
        Units that just the first, or just the second, map has right.
    mcnemar, mcnemar_p : float
        McNemar's chi-square with continuity correction on these two counts and its probability (1 degree of freedom).
        It does not know the strata: a statement about the sample, not about the country.
    """

    first: Estimate
    second: Estimate
    difference: Estimate
    z: float
    p_value: float
    only_first: int
    only_second: int
    mcnemar: float
    mcnemar_p: float


def compare(
    strata: ArrayLike, first: ArrayLike, second: ArrayLike, reference: ArrayLike, pixels: Mapping[str, int]
) -> Comparison:
    """Test whether two maps differ in overall accuracy, on one stratified sample.

    Parameters
    ----------
    strata : names, one a unit
    first, second, reference : integers, one a unit
        Class codes; 0 (nodata) is refused.
    pixels : mapping of name to int
        Size of every stratum.

    Raises
    ------
    GeoflowError
        As `estimate_strata`.

    Notes
    -----
    Each unit has d = (first right) - (second right), in -1, 0, 1. The difference is the stratified mean of d, its
    variance the sum of W^2 s^2 / n over the strata (Cochran 1977, section 5.4), with s^2 the sample variance of d: the
    maps are assessed on the same units, so their covariance counts.
    """
    place = place_of(strata, list(pixels))
    one, two, truth = (np.asarray(a) for a in (first, second, reference))
    if not place.shape == one.shape == two.shape == truth.shape:
        raise GeoflowError(f"units differ in number: {place.shape}, {one.shape}, {two.shape} and {truth.shape}")
    if (empty := int(((one == 0) | (two == 0) | (truth == 0)).sum())) > 0:
        raise GeoflowError(
            f"{empty} units are nodata (0) in a map or the reference: leave them out of the sample first"
        )
    sizes = whole_counts(list(pixels.values()), "the pixels")
    units = np.bincount(place, minlength=len(sizes))
    kept, _ = check_strata(units, sizes, list(pixels))
    right = np.stack([one == truth, two == truth], axis=1)
    hits = np.stack([np.bincount(place, right[:, i], len(sizes)) for i in (0, 1)], axis=1)[kept].astype(np.int64)
    units, everyone = units[kept], np.stack([units[kept]] * 2, axis=1)
    overall = ratio(hits, everyone, units, sizes[kept])
    gain = right[:, 0].astype(int) - right[:, 1]
    difference = _mean(place, gain, sizes, kept)
    z, p_value = _z_test(float(difference.value), float(difference.se))
    only = int((gain > 0).sum()), int((gain < 0).sum())
    chi2 = max(abs(only[0] - only[1]) - 1, 0) ** 2 / max(sum(only), 1)
    each = [Estimate(overall.value[i], overall.se[i], 0.0, 1.0) for i in (0, 1)]
    return Comparison(each[0], each[1], difference, z, p_value, only[0], only[1], chi2, math.erfc(math.sqrt(chi2 / 2)))


def _mean(
    place: NDArray[np.intp], values: NDArray[Any], pixels: NDArray[np.int64], kept: NDArray[np.bool_]
) -> Estimate:
    """Stratified mean of values in -1..1."""
    units = np.bincount(place, minlength=len(pixels))[kept]
    sums, squares = (np.bincount(place, values**power, len(pixels))[kept] for power in (1, 2))
    weights = pixels[kept] / pixels.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (squares - sums**2 / units).clip(0) / (units - 1) / units
    spread = np.where(units >= pixels[kept], 0.0, np.where(units == 1, np.nan, spread))
    return Estimate(np.array((weights * sums / units).sum()), np.sqrt((weights**2 * spread).sum()), -1.0, 1.0)


def _z_test(value: float, se: float) -> tuple[float, float]:
    """z and its two-sided probability; a difference of 0 is never significant, one without spread always."""
    if se == 0:
        return (0.0, 1.0) if value == 0 else (math.copysign(math.inf, value), 0.0)
    return value / se, math.erfc(abs(value / se) / math.sqrt(2))
