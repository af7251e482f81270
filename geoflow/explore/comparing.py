"""Two class maps held against each other: from what to what, in hectares."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import GridError, LegendError
from geoflow.explore import html
from geoflow.explore.geometry import frame_of
from geoflow.explore.layers import crs_name, geobox_of
from geoflow.legends import Legend
from geoflow.mapping.areas import north_up, tally_blocks, zones_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LINES = 12


@dataclass(frozen=True)
class Side:
    """One of the two maps: what to call it, its class layer, its legend and the level that the layer is of."""

    name: str
    codes: xr.DataArray
    legend: Legend
    level: int


@dataclass(frozen=True)
class Comparison:
    """What two maps say of the same ground.

    Attributes
    ----------
    first, second : str
        What is compared.
    level : int
    matrix : pd.DataFrame
        Hectares; rows are the classes of the first map, columns those of the second, both by code. Classes that occur
        in neither are left out.
    legend : Legend
    only_first_ha, only_second_ha : float
        What only one of the two has a class for; it is in none of the other figures.
    """

    first: str
    second: str
    level: int
    matrix: pd.DataFrame
    legend: Legend
    only_first_ha: float
    only_second_ha: float

    @property
    def total_ha(self) -> float:
        """What both have a class for."""
        return float(self.matrix.to_numpy().sum())

    @property
    def agreement(self) -> float:
        """Share (0..1) of what both have a class for that has the same; nan where that is nothing."""
        same = self.matrix.to_numpy() * np.eye(len(self.matrix))
        agree, differ = float(same.sum()), float((self.matrix.to_numpy() - same).sum())
        return agree / (agree + differ) if agree + differ else float("nan")

    @property
    def table(self) -> pd.DataFrame:
        """Every pair that occurs, the largest first: ``from_code``, ``from_name``, ``to_code``, ``to_name``, ``ha``,
        ``share`` (0..1 of what is compared)."""
        codes = self.matrix.index.tolist()
        cells = [(codes[i], codes[j], ha) for (i, j), ha in np.ndenumerate(self.matrix.to_numpy()) if ha]
        rows = [(a, self.legend.label(a), b, self.legend.label(b), ha, ha / self.total_ha) for a, b, ha in cells]
        columns = ["from_code", "from_name", "to_code", "to_name", "ha", "share"]
        return pd.DataFrame(rows, columns=columns).sort_values("ha", ascending=False, ignore_index=True)

    @property
    def differences(self) -> pd.DataFrame:
        """The pairs of `table` that differ."""
        pairs = self.table
        return pairs[pairs["from_code"] != pairs["to_code"]].reset_index(drop=True)

    def named(self) -> pd.DataFrame:
        """The matrix with names instead of codes."""
        names = {code: f"{code} {self.legend.label(code)}" for code in self.matrix.index}
        return self.matrix.rename(index=names, columns=names)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The matrix as a picture: each row by its shares, hectares in the cells."""
        from geoflow.explore.matrixplot import draw_matrix

        return draw_matrix(self, ax)

    def _facts(self) -> list[str]:
        facts = [f"{self.total_ha:,.1f} ha compared, {100 * self.agreement:.1f} % the same"]
        for name, ha in ((self.first, self.only_first_ha), (self.second, self.only_second_ha)):
            if ha:
                facts.append(f"{ha:,.1f} ha have a class in {name} alone, and are not counted")
        return facts

    def _title(self) -> str:
        return f"{self.first} against {self.second}, level {self.level} of {self.legend.name}"

    def __repr__(self) -> str:
        lines = [self._title(), *(f"  {fact}" for fact in self._facts())]
        lines += [
            f"  {row.ha:12,.1f} ha  {row.from_code} {row.from_name} → {row.to_code} {row.to_name}"
            for row in self.differences.head(_MOST_LINES).itertuples()
        ]
        if (more := len(self.differences) - _MOST_LINES) > 0:
            lines.append(f"  and {more} more pairs: .differences")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def cell(code: int) -> str:
            return f"{html.swatch(self.legend.colour(code))}{code} {escape(self.legend.label(code))}"

        shown = self.differences.head(_MOST_LINES)
        columns = (shown[name].tolist() for name in ("from_code", "to_code", "ha", "share"))
        rows = [(cell(a), cell(b), f"{ha:,.1f}", f"{100 * part:.2f}") for a, b, ha, part in zip(*columns, strict=True)]
        parts = [html.heading(self._title()), *(html.line(escape(fact)) for fact in self._facts())]
        parts.append(html.table(rows, (self.first, self.second, "ha", "% of all")))
        more = len(self.differences) - _MOST_LINES
        return "".join(parts) + (html.line(html.quiet(f"and {more} more pairs: .differences")) if more > 0 else "")


def compare(first: Side, second: Side, within: Any = None) -> Comparison:
    """Hectares of every pair of classes, where both maps lie.

    Parameters
    ----------
    first, second : Side
        Of one level, with the same codes there. Their grids may have different extents, but the same pixels.
    within : optional
        A geometry (`geoflow.explore.geometry.frame_of`); all of it by default. Pixels on its border count with the
        part of them that is within.

    Raises
    ------
    LegendError
        If the classes are not the same ones.
    GridError
        If the maps do not share their pixels, or the geometry does not meet them.
    """
    if first.legend.codes(first.level) != second.legend.codes(second.level):
        raise LegendError(
            f"{first.name} has level {first.level} of {first.legend.name!r}, {second.name} level {second.level} of "
            f"{second.legend.name!r}: these are not the same classes; compare a level that both have"
        )
    codes = np.array(first.legend.codes(first.level), np.int64)
    pairs = north_up(_paired(first, second, codes))
    box = geobox_of(pairs)
    shapes = None if within is None else zones_on(frame_of(within).dissolve(), None, box)[1]
    tally = tally_blocks({0: pairs}, shapes, box)
    size = len(codes) + 1
    square = np.zeros((size, size))
    for (_, _, number), m2 in tally.items():
        square[divmod(number, size)] += m2 / 1e4
    present = np.flatnonzero(square[1:, 1:].sum(0) + square[1:, 1:].sum(1))
    labels = codes[present].tolist()
    inner = square[1:, 1:][np.ix_(present, present)]
    matrix = pd.DataFrame(
        inner, pd.Index(labels, name=f"{first.name} (ha)"), pd.Index(labels, name=f"{second.name} (ha)")
    )
    alone = float(square[1:, 0].sum()), float(square[0, 1:].sum())
    return Comparison(first.name, second.name, first.level, matrix, first.legend, *alone)


def _paired(first: Side, second: Side, codes: NDArray[np.int64]) -> xr.DataArray:
    """One number for each pair of classes: 0 where neither has one, else the first's position times a base and the
    second's, counted from 1."""
    a, b = _on_one_grid(first, second)
    kwargs = {"codes": codes, "names": (first.name, second.name)}
    paired = xr.apply_ufunc(_pair, a, b, kwargs=kwargs, dask="parallelized", output_dtypes=[np.uint32])
    return a.drop_attrs(deep=False).copy(data=paired.data)


def _on_one_grid(first: Side, second: Side) -> tuple[xr.DataArray, xr.DataArray]:
    boxes = [geobox_of(side.codes) for side in (first, second)]
    if boxes[0] == boxes[1]:
        return first.codes, second.codes
    one, other = (box.transform for box in boxes)
    shift = (other.c - one.c) / one.a, (other.f - one.f) / one.e
    sizes_differ = abs(one.a - other.a) > 1e-9 or abs(one.e - other.e) > 1e-9
    if boxes[0].crs != boxes[1].crs or sizes_differ or any(abs(s - round(s)) > 1e-6 for s in shift):
        raise GridError(
            f"{first.name} and {second.name} do not share their pixels: "
            f"{_told(boxes[0])} and {_told(boxes[1])}; bring one onto the other's grid first, e.g. with .odc.reproject"
        )
    col, row = (round(s) for s in shift)
    (height, width), (height_2, width_2) = boxes[0].shape, boxes[1].shape
    top, left = max(0, row), max(0, col)
    bottom, right = min(height, row + height_2), min(width, col + width_2)
    if bottom <= top or right <= left:
        raise GridError(f"{first.name} and {second.name} have no ground in common")
    a = first.codes.isel(y=slice(top, bottom), x=slice(left, right))
    b = second.codes.isel(y=slice(top - row, bottom - row), x=slice(left - col, right - col))
    if a.chunks is not None and b.chunks is not None:
        b = b.chunk(dict(a.chunksizes))
    return a, b.assign_coords(y=a["y"], x=a["x"])


def _told(box: Any) -> str:
    return f"{abs(box.transform.a):g} m in {crs_name(box)} from {box.transform.c:g}, {box.transform.f:g}"


def _pair(a: NDArray[Any], b: NDArray[Any], codes: NDArray[np.int64], names: tuple[str, str]) -> NDArray[np.uint32]:
    base = np.uint32(len(codes) + 1)
    places = [_position(values, codes, name) for values, name in zip((a, b), names, strict=True)]
    return places[0] * base + places[1]


def _position(values: NDArray[Any], codes: NDArray[np.int64], name: str) -> NDArray[np.uint32]:
    """Positions among the codes, from 1; 0 for nodata."""
    lut = np.full(65536, np.iinfo(np.uint32).max, np.uint32)
    lut[0] = 0
    lut[codes] = np.arange(1, len(codes) + 1, dtype=np.uint32)
    found = lut[values]
    if (bad := found == np.iinfo(np.uint32).max).any():
        raise LegendError(f"{name} holds codes that are not of this level: {np.unique(values[bad])[:5].tolist()}")
    return found
