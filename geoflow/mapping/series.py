"""Several epochs as one series: maps that agree where the ground did not change, and the year in which it did.

Each pixel's classes are decoded together by the hidden Markov model of `geoflow.mapping.hmm`. How often land cover
changes is a `TransitionMatrix`: one rate for all, a table of single transitions, or an estimate from the maps.
"""

from __future__ import annotations

import calendar
import datetime as dt
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import GridError, LegendError
from geoflow.legends import Legend, listed
from geoflow.mapping.decode import PROBABILITY_NODATA
from geoflow.mapping.hmm import Evidence, Values, baum_welch, first_detection, smooth

_CHANGES = {"changed_year": np.uint16, "last_changed_year": np.uint16, "changes": np.uint8}

_SAMPLE_PX = 20_000  # pixels that `TransitionMatrix.estimate` looks at


@dataclass(frozen=True, eq=False)
class TransitionMatrix:
    """How likely each class turns into each other one within a year.

    Attributes
    ----------
    codes : tuple of int
        The classes, in the order of the rows and columns.
    yearly : float64 array, dims (class before, class after)
        Rows sum to 1. A 0 is a transition that cannot happen within a year.

    Raises
    ------
    LegendError
        If codes repeat, or their number differs from that of the rows or columns.
    GridError
        If a value is not a probability or a row does not sum to 1.
    """

    codes: tuple[int, ...]
    yearly: Values

    def __post_init__(self) -> None:
        count = len(self.codes)
        if count < 2 or len(set(self.codes)) != count or self.yearly.shape != (count, count):
            raise LegendError(
                f"a transition matrix needs two classes or more, each once, and a row and a column for each; not the "
                f"codes {listed(self.codes)} with the shape {self.yearly.shape}"
            )
        bad = (self.yearly < 0).any(axis=1) | ~(np.abs(self.yearly.sum(axis=1) - 1) < 1e-6)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise GridError(
                f"the transitions from class {self.codes[row]} must be at least 0 and sum to 1, "
                f"not {self.yearly[row].round(6).tolist()}"
            )

    @classmethod
    def from_rate(cls, codes: Sequence[int], rate: float) -> TransitionMatrix:
        """Every class changes with the yearly probability ``rate``, to any other one alike.

        ``codes`` are those of a legend's deepest level (``legend.codes()``) or of a model.

        Raises
        ------
        GridError
            If the rate is not in 0..1.
        """
        if not 0 <= rate <= 1:
            raise GridError(f"the yearly rate of change must be in 0..1, not {rate}")
        yearly = np.full((len(codes), len(codes)), rate / max(len(codes) - 1, 1))
        np.fill_diagonal(yearly, 1 - rate)
        return cls(tuple(int(c) for c in codes), yearly)

    @classmethod
    def from_table(
        cls, codes: Sequence[int], rates: Mapping[tuple[int, int], float], other: float = 0.0
    ) -> TransitionMatrix:
        """From yearly probabilities of single transitions.

        Parameters
        ----------
        codes : sequence of int
        rates : mapping of (code before, code after) to float
            0 is a transition that cannot happen.
        other : float
            The yearly probability of each transition that the table does not name.

        Raises
        ------
        LegendError
            If the table names a class that is not among the codes, or a class with itself.
        GridError
            If a rate is not a probability, or those of a class sum to more than 1.
        """
        at = {int(code): i for i, code in enumerate(codes)}
        if strange := [pair for pair in rates if pair[0] == pair[1] or not set(pair) <= set(at)]:
            raise LegendError(f"a table of transitions holds pairs of different classes of {listed(at)}, not {strange}")
        yearly = np.full((len(at), len(at)), float(other))
        for (before, after), rate in rates.items():
            yearly[at[before], at[after]] = rate
        np.fill_diagonal(yearly, 0)
        np.fill_diagonal(yearly, 1 - yearly.sum(axis=1))
        return cls(tuple(at), yearly)

    @classmethod
    def estimate(
        cls,
        probabilities: NDArray[np.uint8],
        years: Sequence[float],
        start: TransitionMatrix,
        evidence: Evidence | None = None,
        strength: float = 100.0,
    ) -> TransitionMatrix:
        """Learn from a sample of a series by expectation maximisation (Baum-Welch); no labels are needed.

        What persists in one map and not in the next looks like change to it, be it an error of the map: the estimate
        is only as good as the errors are independent, and ``strength`` says how far to trust ``start`` instead.

        Parameters
        ----------
        probabilities : uint8 array, dims (epoch, class, pixel)
            Parts of 250, 255 where not observed; classes in the order of ``start``. Of more than 20000 pixels that
            were observed twice, so many are taken at equal steps.
        years : sequence of float
            When the epochs were, ascending. Taken to the nearest whole number of years apart: the years between are
            epochs without an observation.
        start : TransitionMatrix
            Where to start, and the centre of the Dirichlet prior of each row. What is 0 in it stays 0.
        evidence : Evidence, optional
        strength : float
            Of the prior: as many transitions from each class, as ``start`` has them, are added to those in the sample.

        Raises
        ------
        GridError
            If the shapes do not fit, epochs are less than half a year apart or no pixel was observed twice.
        """
        evidence = evidence or Evidence()
        gaps = np.rint(np.diff(np.asarray(years, float))).astype(int)
        if probabilities.shape[:2] != (len(years), len(start.codes)) or (gaps < 1).any() or strength < 0:
            raise GridError(
                f"an estimate needs probabilities (epoch, class, pixel) of {len(start.codes)} classes and an ascending "
                f"year for each epoch, half a year apart or more; not {probabilities.shape} and {list(years)}"
            )
        usable = np.flatnonzero((probabilities != PROBABILITY_NODATA).all(axis=1).sum(axis=0) >= 2)
        if not len(usable):
            raise GridError("no pixel was observed in two epochs: nothing to learn transitions from")
        chosen = probabilities[:, :, usable[:: -(-len(usable) // _SAMPLE_PX)]]
        shares = evidence.shares(start.codes)
        table = evidence.likelihood(shares)
        seen = [np.take_along_axis(table, epoch.astype(np.intp), axis=1).T.astype(float) for epoch in chosen]
        by_year: list[Values | None] = [seen[0]]
        for gap, epoch in zip(gaps, seen[1:], strict=True):
            by_year += [None] * (gap - 1) + [epoch]
        return cls(start.codes, baum_welch(by_year, shares, start.yearly, strength))

    def over(self, years: float) -> Values:
        """The matrix over a span of years, float64 (class, class); rows sum to 1.

        Whole years are powers of the yearly matrix. For the rest of a year, ``f``, it is ``exp(f * log(yearly))``
        where the principal logarithm is a Markov generator: real, nothing negative off the diagonal (Davies 2010,
        "Embeddable Markov matrices", Electronic Journal of Probability 15, 1474-1486). Where it is not, as often with
        impossible transitions, it is ``(1 - f) * identity + f * yearly``, which keeps what is impossible within a year
        impossible and differs in the second order of the rates.

        Raises
        ------
        GridError
            If the span is not positive and finite.
        """
        if not 0 < years < np.inf:
            raise GridError(f"the epochs must be a positive span apart, not {years} years")
        whole, rest = int(years), years - int(years)
        out = np.linalg.matrix_power(self.yearly, whole)
        if rest > 0:
            out = out @ self._within_year(rest)
        out = np.maximum(out, 0)
        return np.asarray(out / out.sum(axis=1, keepdims=True))

    def _within_year(self, share: float) -> Values:
        from scipy import linalg

        identity = np.eye(len(self.codes))
        eigenvalues = np.linalg.eigvals(self.yearly)
        # There is no principal logarithm where an eigenvalue is 0 or a negative number.
        if not ((np.abs(eigenvalues.imag) < 1e-9) & (eigenvalues.real < 1e-6)).any():
            generator = linalg.logm(self.yearly)
            off = generator.real[identity == 0]
            if np.abs(generator.imag).max() < 1e-9 and off.min() > -1e-12:
                return np.asarray(linalg.expm(share * np.where(identity == 0, generator.real.clip(0), generator.real)))
        return np.asarray((1 - share) * identity + share * self.yearly)

    def restricted(self, codes: Sequence[int]) -> TransitionMatrix:
        """The same for some of the classes, in the order of ``codes``; what would have left for another class stays.

        Raises
        ------
        LegendError
            If the matrix lacks one of the codes.
        """
        if missing := [c for c in codes if c not in self.codes]:
            raise LegendError(f"the transition matrix lacks the classes {listed(missing)}")
        at = [self.codes.index(c) for c in codes]
        yearly = self.yearly[np.ix_(at, at)].copy()
        yearly[np.diag_indices(len(at))] += 1 - yearly.sum(axis=1)
        return TransitionMatrix(tuple(int(c) for c in codes), yearly)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"codes": list(self.codes), "yearly": self.yearly.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TransitionMatrix:
        """The inverse of `to_dict`."""
        return cls(tuple(int(c) for c in values["codes"]), np.array(values["yearly"], float))


def series(
    maps: Mapping[str, xr.Dataset],
    dates: Mapping[str, float | dt.date],
    legend: Legend,
    transition: TransitionMatrix | float = 0.01,
    evidence: Evidence | None = None,
    fill: bool = False,
) -> xr.Dataset:
    """Several maps of `geoflow.mapping.predict` as one consistent series, lazily where they are lazy.

    Parameters
    ----------
    maps : mapping of epoch to xr.Dataset, in order of time, on the same pixels
        With ``probabilities`` (uint8 parts of 250, 255 nodata; dims (class, y, x), ``class`` holds codes of the
        legend's deepest level, as numbers or text).
    dates : mapping of epoch to float or date
        When each epoch was: a decimal year (2018.5) or a day.
    legend : Legend
    transition : TransitionMatrix or float
        A number is the yearly rate at which every class changes, to any other alike. A matrix may hold more classes
        than the maps (`TransitionMatrix.restricted`).
    evidence : Evidence, optional
    fill : bool
        Whether epochs that were not observed at a pixel get the class that the others suggest, rather than nodata.

    Returns
    -------
    xr.Dataset
        With dims (epoch, y, x): ``level1`` .. ``levelN`` (uint8 or uint16 codes, 0 nodata), decided at the deepest
        level, so that they nest; ``confidence`` (uint8 percent, 255 nodata), see `geoflow.mapping.hmm.smooth`. With
        dims (y, x), see `geoflow.mapping.hmm.first_detection`: ``changed_year``, ``last_changed_year`` (uint16, 0
        where not changed or nodata) and ``changes`` (uint8, 255 nodata). ``epoch`` holds the names and ``date`` the
        decimal years; the other coordinates and the CRS are those of the first map.

    Raises
    ------
    GridError
        If there are fewer than two epochs, one lacks its probabilities or its date, the dates do not ascend, or the
        maps differ in classes or pixels.
    LegendError
        If a class is none of the legend's deepest level, or the matrix or the prior lacks one.

    Notes
    -----
    All epochs' probabilities of a block are in memory: 0.5 GB for 44 classes, six epochs and 1400 x 1400 px. Chunks do
    not alter the result. Of two epochs alone it mends errors rather than finds changes: see `geoflow.mapping.spectral`.
    """
    years = _ascending(maps, dates)
    first = next(iter(maps.values()))
    codes = _shared_classes(maps, legend)
    evidence = evidence or Evidence()
    matrix = transition if isinstance(transition, TransitionMatrix) else TransitionMatrix.from_rate(codes, transition)
    matrix = matrix.restricted(codes)
    shares = evidence.shares(codes)
    options: dict[str, Any] = {
        "transitions": np.stack([matrix.over(gap) for gap in np.diff(years).tolist()]),
        "prior": shares,
        "likelihood": evidence.likelihood(shares),
        "fill": bool(fill),
        "table": np.array([*codes, 0], np.uint16),
        "years": np.array([int(year) for year in years], np.uint16),
    }
    parts = [_by_class(one["probabilities"], codes) for one in maps.values()]
    if any(part.chunks is not None for part in parts):
        stacked: Any = _lazily([da.asarray(part.data) for part in parts], options)
    else:
        stacked = _stacked(np.stack([part.values for part in parts]), **options)
    coords = {k: v for k, v in first.coords.items() if set(v.dims) <= {"y", "x"} and k not in ("epoch", "date")}
    out = xr.Dataset(coords={**coords, "epoch": list(maps), "date": ("epoch", years)})
    return _unstacked(out, stacked, legend)


def _by_class(probabilities: xr.DataArray, codes: tuple[int, ...]) -> xr.DataArray:
    """Probabilities (class, y, x) of these classes in this order."""
    held = _codes(probabilities)
    return probabilities.isel({"class": [held.index(code) for code in codes]}).transpose("class", "y", "x")


def _codes(probabilities: xr.DataArray) -> list[int]:
    """The codes along ``class``: numbers as `geoflow.predict` gives them, text as a store holds all its coordinates."""
    return [int(code) for code in probabilities["class"].values]


def _stacked(
    probabilities: NDArray[np.uint8], table: NDArray[np.uint16], years: NDArray[np.uint16], **options: Any
) -> NDArray[np.uint16]:
    """Codes and confidences of all epochs and the three maps of change as one array, dims (variable, y, x)."""
    best, confidence = smooth(probabilities, **options)
    codes = table[best]
    found = first_detection(codes, years)
    changes = [found.first_year, found.last_year, found.changes.astype(np.uint16)]
    return np.concatenate([codes, confidence.astype(np.uint16), np.stack(changes)])


def _lazily(parts: list[da.Array], options: dict[str, Any]) -> da.Array:
    """`_stacked` chunk by chunk, in the chunks of the first map; variables take the place of epochs and classes."""
    (_, *chunks), epochs = parts[0].chunks, len(parts)
    probabilities = da.stack([part.rechunk((-1, *chunks)) for part in parts]).rechunk({0: -1})
    return da.map_blocks(
        _stacked,
        probabilities,
        **options,
        dtype=np.uint16,
        drop_axis=1,
        chunks=((2 * epochs + 3,), *chunks),
        meta=np.empty((0, 0, 0), np.uint16),
    )


def _unstacked(out: xr.Dataset, stacked: Any, legend: Legend) -> xr.Dataset:
    epochs = out.sizes["epoch"]
    deepest, dims = stacked[:epochs], ("epoch", "y", "x")
    for level in legend.levels:
        to_level = functools.partial(legend.to_level, level=level)
        dtype = legend.dtype(level)
        if isinstance(deepest, da.Array):
            out[f"level{level}"] = (
                dims,
                da.map_blocks(to_level, deepest, dtype=dtype, meta=np.empty((0, 0, 0), dtype)),
            )
        else:
            out[f"level{level}"] = (dims, to_level(deepest))
    out["confidence"] = (dims, stacked[epochs : 2 * epochs].astype(np.uint8))
    for at, (name, kind) in enumerate(_CHANGES.items()):
        out[name] = (("y", "x"), stacked[2 * epochs + at].astype(kind))
    return out


def _ascending(maps: Mapping[str, xr.Dataset], dates: Mapping[str, float | dt.date]) -> list[float]:
    """The decimal year of each map."""
    if len(maps) < 2:
        raise GridError(f"a series needs two epochs or more, not {list(maps)}")
    if missing := [epoch for epoch in maps if epoch not in dates]:
        raise GridError(f"the epochs {missing} have no date; there are dates of {list(dates)}")
    years = [decimal_year(dates[epoch]) for epoch in maps]
    for one, other, before, after in zip(maps, list(maps)[1:], years, years[1:], strict=False):
        if not before < after:
            raise GridError(f"the epochs must ascend in time; {one} ({before:.2f}) comes before {other} ({after:.2f})")
    return years


def decimal_year(date: float | dt.date) -> float:
    """A day as the year and the part of it that has passed: 2 July 2018 is 2018.4986. A number is one already.

    Raises
    ------
    GridError
        If a number is no year in 1..9999.
    """
    if isinstance(date, dt.date):
        days = 366 if calendar.isleap(date.year) else 365
        return date.year + (date.timetuple().tm_yday - 1) / days
    if not 1 <= date < 10_000:
        raise GridError(f"a date is a day or a decimal year in 1..9999, not {date}")
    return float(date)


def _shared_classes(maps: Mapping[str, xr.Dataset], legend: Legend) -> tuple[int, ...]:
    """The codes of the classes, in the order of the first map."""
    first: tuple[str, xr.DataArray] | None = None
    for epoch, one in maps.items():
        if "probabilities" not in one or "class" not in one["probabilities"].coords:
            raise GridError(f"the map {epoch} has no probabilities with codes along class; make it anew, with them")
        held = one["probabilities"]
        if held.dtype != np.uint8 or set(held.dims) != {"class", "y", "x"}:
            raise GridError(
                f"the probabilities of {epoch} must be uint8 with dims (class, y, x), not {held.dtype} with {held.dims}"
            )
        first = first or (epoch, held)
        if set(_codes(held)) != set(_codes(first[1])):
            odd = np.setxor1d(_codes(held), _codes(first[1]))
            raise GridError(f"the maps {first[0]} and {epoch} differ in the classes {listed(odd.tolist())}")
        try:
            xr.align(first[1], held, join="exact", exclude={"class"})
        except ValueError as problem:
            raise GridError(
                f"the maps {first[0]} and {epoch} lie on different pixels; put them on one grid first: {problem}"
            ) from None
    assert first is not None  # _ascending counted the maps
    codes = tuple(_codes(first[1]))
    if strange := [code for code in codes if code not in legend.codes()]:
        raise LegendError(f"legend {legend.name!r} does not hold {listed(strange)} at level {legend.deepest}")
    return codes
