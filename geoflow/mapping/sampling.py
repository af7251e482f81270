"""The stratified random sample of a class map, for people to interpret, and what it says about the map.

Drawing takes two passes over the map, each out of core: `count_strata` (whose table is what
`geoflow.mapping.planning.allocate` shares a sample out on) and `draw_sample`. Pixels are drawn as ranks among the
pixels of their stratum, in row-major order over the country, so a seed means the same points whatever the chunks. Ids
and order are random, so they tell nothing of the strata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import odc.geo.xr  # noqa: F401  (the .odc accessor)
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import GeoflowError, GridError, LegendError
from geoflow.legends import Legend, listed
from geoflow.mapping import estimators
from geoflow.mapping.change import CHANGED

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

_BAND_PX = 1024  # rows read at once of a map that is not chunked


@dataclass(frozen=True)
class Sample:
    """Points to interpret and the strata that they were drawn from.

    Attributes
    ----------
    points : GeoDataFrame
        At pixel centres, in the map's CRS: ``id`` (1..n, in random order), ``stratum``, ``map_level1``.. (the map's
        codes, Int64), ``reference`` (Int64, a code of the legend, empty until interpreted), ``confidence``,
        ``comment``, ``interpreter`` (text), ``lon``, ``lat`` (degrees).
    strata : DataFrame
        ``name``, ``code``, ``changed``, ``pixels``, ``area_ha``, ``n`` (units drawn).
    """

    points: GeoDataFrame
    strata: pd.DataFrame

    @property
    def pixel_area_m2(self) -> float:
        """Area of a pixel in square metres."""
        return float(self.strata["area_ha"].sum() / self.strata["pixels"].sum() * 1e4)


@dataclass(frozen=True)
class _Strata:
    """Class code (and changed or not) to stratum number; the last number is that of nodata."""

    names: tuple[str, ...]
    codes: tuple[int, ...]
    table: NDArray[np.int32]
    crossed: bool

    @property
    def count(self) -> int:
        return len(self.names)

    def of(self, codes: NDArray[Any], changed: NDArray[Any] | None) -> NDArray[np.int32]:
        """Stratum of each pixel; `count` for nodata."""
        inside = (codes >= 0) & (codes < len(self.table))
        found = self.table[np.where(inside, codes, len(self.table) - 1)]
        if (found < 0).any():
            raise LegendError(
                f"the map holds {listed(np.unique(codes[found < 0]).tolist())}, no codes of the level or finer"
            )
        if changed is not None:
            turned = changed if changed.dtype == bool else changed == CHANGED
            found = np.where(turned & (found < self.count), found + self.count // 2, found)
        return found


def _strata_of(legend: Legend, level: int, crossed: bool) -> _Strata:
    codes = legend.codes(level)
    count = len(codes) * (2 if crossed else 1)
    table = np.full(max(legend.codes(finer)[-1] for finer in legend.levels) + 2, -1, np.int32)
    table[0] = count
    for finer in range(level, legend.deepest + 1):
        for code in legend.codes(finer):
            table[code] = codes.index(legend.ancestor(code, level))
    names = [str(c) for c in codes] + [f"{c} changed" for c in codes if crossed]
    return _Strata(tuple(names), codes * (2 if crossed else 1), table, crossed)


def count_strata(
    codes: xr.DataArray, legend: Legend, level: int | None = None, changed: xr.DataArray | None = None
) -> pd.DataFrame:
    """The strata of a map and their sizes, band of chunks by band of chunks.

    Parameters
    ----------
    codes : DataArray, dims (y, x), integers, nodata 0; dask or numpy
        Class codes of ``level`` or of a finer level, with a projected CRS in metres.
    legend : Legend
    level : int, optional
        The level whose classes are the strata; the coarsest by default.
    changed : DataArray on the same pixels, optional
        Of bool, or of uint8 as `geoflow.mapping.change` has it. Its changed pixels are strata of their own, by class;
        what is not observed (0) counts as not changed.

    Returns
    -------
    DataFrame
        Strata with pixels: ``name`` (``"311"``, ``"311 changed"``), ``code``, ``changed``, ``pixels``, ``area_ha``.

    Raises
    ------
    GridError
        If the map has no metric CRS, is rotated, or the mask lies on other pixels.
    LegendError
        If a code is of no class of ``level`` or finer.
    GeoflowError
        If no pixel has a class.
    """
    strata = _strata_of(legend, legend.levels[0] if level is None else level, changed is not None)
    return _table(_count_rows(codes, changed, strata).sum(axis=0), strata, _pixel_area_m2(codes))


def _table(pixels: NDArray[np.int64], strata: _Strata, pixel_area_m2: float) -> pd.DataFrame:
    changed = np.arange(strata.count) >= (strata.count // 2 if strata.crossed else strata.count)
    columns = {"name": strata.names, "code": strata.codes, "changed": changed, "pixels": pixels}
    table = pd.DataFrame({**columns, "area_ha": pixels * pixel_area_m2 / 1e4})
    if not pixels.any():
        raise GeoflowError("the map is empty: no pixel has a class to sample")
    return table[table["pixels"] > 0].reset_index(drop=True)


def draw_sample(
    codes: xr.DataArray,
    legend: Legend,
    n: Mapping[str, int],
    seed: int,
    level: int | None = None,
    changed: xr.DataArray | None = None,
) -> Sample:
    """Draw pixels of each stratum at random, without replacement.

    Parameters
    ----------
    codes, legend, level, changed
        As for `count_strata`.
    n : mapping of stratum name to int
        Units to draw, for example ``dict(zip(table["name"], allocate(600, table["pixels"])))``. Strata left out get
        none, and then no figure of the map can be estimated: the sample must cover all of it.
    seed : int
        The same seed draws the same points, whatever the chunks; the draw of a stratum does not depend on the others.

    Returns
    -------
    Sample

    Raises
    ------
    GeoflowError
        If ``n`` names a stratum that the map lacks, or asks for more pixels than it has. Else as `count_strata`.
    """
    strata = _strata_of(legend, legend.levels[0] if level is None else level, changed is not None)
    rows = _count_rows(codes, changed, strata)
    table = _table(rows.sum(axis=0), strata, _pixel_area_m2(codes))
    table["n"] = _units(n, table)
    numbers = [strata.names.index(name) for name in table["name"]]
    ranks = {
        s: _ranks(seed, strata.names[s], *sizes) for s, *sizes in zip(numbers, table["pixels"], table["n"], strict=True)
    }
    found = pd.concat([*_locate(codes, changed, strata, rows, ranks)]).sort_values(["stratum", "row", "col"])
    found = found.iloc[np.random.default_rng([seed, 0]).permutation(len(found))].reset_index(drop=True)
    return Sample(_points(found, codes, legend, strata), table)


def _units(n: Mapping[str, int], table: pd.DataFrame) -> list[int]:
    sizes = dict(zip(table["name"], table["pixels"], strict=True))
    if unknown := sorted(set(n) - set(sizes)):
        raise GeoflowError(f"no strata {unknown} in this map; it has {list(sizes)}")
    if wrong := [
        f"{count} of the {sizes[name]} pixels of {name!r}" for name, count in n.items() if not 0 <= count <= sizes[name]
    ]:
        raise GeoflowError(f"cannot draw {listed(wrong)}")
    if not sum(n.values()):
        raise GeoflowError("a sample of no units was asked for: n is 0 in all strata")
    return [int(n.get(name, 0)) for name in sizes]


def _ranks(seed: int, name: str, pixels: int, count: int) -> NDArray[np.int64]:
    """Which of the stratum's pixels, in row-major order, are drawn; ascending."""
    rng = np.random.default_rng([seed, 1, *name.encode()])
    return np.sort(rng.choice(pixels, count, replace=False, shuffle=False)).astype(np.int64)


def _bands(codes: xr.DataArray) -> Iterator[slice]:
    """Rows that share their chunks."""
    height = codes.shape[0]
    sizes = codes.chunks[0] if codes.chunks else [min(_BAND_PX, height - y) for y in range(0, height, _BAND_PX)]
    ends = np.cumsum([0, *sizes]).tolist()
    return (slice(a, b) for a, b in pairwise(ends))


def _row_counts(codes: NDArray[Any], changed: NDArray[Any] | None, strata: _Strata) -> NDArray[np.int64]:
    """Pixels by row and stratum, dims (y, stratum)."""
    width = strata.count + 1
    number = strata.of(codes, changed) + width * np.arange(len(codes))[:, None]
    return np.bincount(number.ravel(), minlength=len(codes) * width).reshape(-1, width)[:, :-1]


def _count_rows(codes: xr.DataArray, changed: xr.DataArray | None, strata: _Strata) -> NDArray[np.int64]:
    """Pixels of the country by row and stratum, dims (y, stratum), one chunk at a time a thread."""
    _check(codes, changed)
    rows = []
    for band in _bands(codes):
        one = codes[band]
        mask = None if changed is None else changed[band]
        if one.chunks is None:
            rows.append(_row_counts(one.values, None if mask is None else mask.values, strata))
            continue
        ends = np.cumsum([0, *one.chunks[1]]).tolist()
        parts = [slice(a, b) for a, b in pairwise(ends)]
        count = dask.delayed(_row_counts, pure=False)
        tasks = [count(one.data[:, x], None if mask is None else mask.data[:, x], strata) for x in parts]
        rows.append(np.sum(dask.compute(*tasks), axis=0))
    return np.concatenate(rows)


def _locate(
    codes: xr.DataArray,
    changed: xr.DataArray | None,
    strata: _Strata,
    rows: NDArray[np.int64],
    ranks: Mapping[int, NDArray[np.int64]],
) -> Iterator[pd.DataFrame]:
    """Row, column, stratum and code of the pixels of these ranks, reading just their rows."""
    ends = {s: np.cumsum(rows[:, s]) for s in ranks}
    drawn = [
        (int(np.searchsorted(ends[s], rank, "right")), s, rank)
        for s, wanted in ranks.items()
        for rank in wanted.tolist()
    ]
    drawn.sort()
    for band in _bands(codes):
        inside = [one for one in drawn if band.start <= one[0] < band.stop]
        if not inside:
            continue
        needed = sorted({row for row, _, _ in inside})
        lines = {row: i for i, row in enumerate(needed)}
        pixels = codes[needed].values
        number = strata.of(pixels, None if changed is None else changed[needed].values)
        found = []
        for row, s, rank in inside:
            line = lines[row]
            col = int(np.flatnonzero(number[line] == s)[rank - (ends[s][row] - rows[row, s])])
            found.append((row, col, s, int(pixels[line, col])))
        yield pd.DataFrame(found, columns=["row", "col", "stratum", "code"])


def _points(found: pd.DataFrame, codes: xr.DataArray, legend: Legend, strata: _Strata) -> GeoDataFrame:
    import geopandas as gpd

    geobox = codes.odc.geobox
    a, _, c, _, e, f = geobox.transform[:6]
    x, y = c + a * (found["col"].to_numpy() + 0.5), f + e * (found["row"].to_numpy() + 0.5)
    geometry = gpd.points_from_xy(x, y, crs=geobox.crs.to_wkt())
    degrees = gpd.GeoSeries(geometry).to_crs("EPSG:4326")
    names = [strata.names[s] for s in found["stratum"]]
    columns: dict[str, Any] = {"id": np.arange(1, len(found) + 1), "stratum": names}
    columns |= levels_of(found["code"].tolist(), legend, "map")
    columns["reference"] = pd.array([pd.NA] * len(found), dtype="Int64")
    columns |= {name: np.full(len(found), "", object) for name in ("confidence", "comment", "interpreter")}
    columns |= {"lon": degrees.x.to_numpy(), "lat": degrees.y.to_numpy()}
    return gpd.GeoDataFrame(columns, geometry=geometry)


def levels_of(codes: Sequence[int], legend: Legend, name: str) -> dict[str, Any]:
    """Columns ``<name>_level1``.. (Int64) with the codes of each level that the codes reach; 0 becomes empty."""
    own = max((legend.level_of(c) for c in codes if c), default=legend.levels[0])
    return {
        f"{name}_level{level}": pd.array(
            [legend.ancestor(c, level) if c and legend.level_of(c) >= level else pd.NA for c in codes], dtype="Int64"
        )
        for level in range(1, own + 1)
    }


def add_map(sample: Sample, codes: xr.DataArray, legend: Legend, name: str) -> Sample:
    """A sample with the codes of another map at its points, as columns ``<name>_level1``..: CORINE's, for example.

    Parameters
    ----------
    codes : DataArray, dims (y, x), integers, nodata 0
        Any CRS and grid; a point takes the pixel that it lies in, and stays empty outside.

    Raises
    ------
    GridError
        If the map has no CRS. `LegendError` if a code is unknown.
    """
    geobox = _geobox(codes)
    at = sample.points.geometry.to_crs(geobox.crs.to_wkt())
    a, _, c, _, e, f = geobox.transform[:6]
    col, row = (np.floor(v).astype(int) for v in ((at.x.to_numpy() - c) / a, (at.y.to_numpy() - f) / e))
    inside = (col >= 0) & (row >= 0) & (col < codes.shape[1]) & (row < codes.shape[0])
    values = np.zeros(len(at), np.int64)
    where = [xr.DataArray(v[inside], dims="point") for v in (row, col)]
    values[inside] = codes.isel({codes.dims[0]: where[0], codes.dims[1]: where[1]}).values
    return replace(sample, points=sample.points.assign(**levels_of(values.tolist(), legend, name)))


def assess(sample: Sample, legend: Legend, level: int | None = None, name: str = "map") -> estimators.Assessment:
    """Accuracy and areas of a map at a level, from an interpreted sample; see `estimate_strata`.

    Parameters
    ----------
    sample : Sample
        Points without a reference are left out (`read_sample` says so before).
    level : int, optional
        The coarsest by default. Need not be the level of the strata.
    name : str
        ``"map"``, the map that the sample was drawn from, or one of `add_map`.

    Raises
    ------
    GeoflowError
        If the map has no code where there is a reference, a reference is coarser than the level, or a stratum has no
        unit.
    """
    level = legend.levels[0] if level is None else level
    points = sample.points[sample.points["reference"].notna()]
    mapped, reference = _mapped(points, level, name), at_level(points, legend, level)
    occurs = {*mapped, *reference}
    codes = [c for c in legend.codes(level) if c in occurs]
    return estimators.estimate_strata(
        points["stratum"].tolist(), mapped, reference, sizes_of(sample), codes, sample.pixel_area_m2
    )


def compare_maps(
    sample: Sample, legend: Legend, second: str, level: int | None = None, first: str = "map"
) -> estimators.Comparison:
    """Test whether two maps differ in overall accuracy at a level; see `assess` and `estimators.compare`."""
    level = legend.levels[0] if level is None else level
    points = sample.points[sample.points["reference"].notna()]
    one, two = (_mapped(points, level, name) for name in (first, second))
    return estimators.compare(points["stratum"].tolist(), one, two, at_level(points, legend, level), sizes_of(sample))


def sizes_of(sample: Sample) -> dict[str, int]:
    """Pixels by stratum."""
    return {str(k): int(v) for k, v in zip(sample.strata["name"], sample.strata["pixels"], strict=True)}


def _mapped(points: pd.DataFrame, level: int, name: str) -> list[int]:
    column = f"{name}_level{level}"
    if column not in points.columns:
        raise GeoflowError(f"the sample has no {column!r}; it has {[c for c in points.columns if '_level' in c]}")
    if (empty := points[column].isna()).any():
        raise GeoflowError(f"{column} is empty at {int(empty.sum())} points, ids {listed(points.loc[empty, 'id'])}")
    return points[column].astype(int).tolist()


def at_level(points: pd.DataFrame, legend: Legend, level: int, column: str = "reference") -> list[int]:
    """The references taken to a level; `GeoflowError`, with the ids, where one is coarser."""
    codes = points[column].astype(int).tolist()
    if coarse := [i for i, c in zip(points["id"], codes, strict=True) if legend.level_of(c) < level]:
        raise GeoflowError(f"the {column}s of ids {listed(coarse)} are coarser than level {level}")
    return [legend.ancestor(c, level) for c in codes]


def _geobox(codes: xr.DataArray) -> Any:
    geobox = codes.odc.geobox if codes.ndim == 2 else None
    if geobox is None or geobox.crs is None:
        raise GridError(f"the map {codes.name or ''} must have dims (y, x), coordinates and a CRS")
    if not geobox.axis_aligned:
        raise GridError("the map must be north up and not rotated")
    return geobox


def _pixel_area_m2(codes: xr.DataArray) -> float:
    geobox = _geobox(codes)
    if geobox.crs.units[0] not in ("metre", "meter", "m"):
        raise GridError(f"pixels of equal area are needed: a projected CRS in metres, not {geobox.crs}")
    return abs(float(geobox.transform.a * geobox.transform.e))


def _check(codes: xr.DataArray, changed: xr.DataArray | None) -> None:
    _geobox(codes)
    if codes.dtype.kind not in "iu":
        raise LegendError(f"class codes must be integers, not {codes.dtype}")
    if changed is None:
        return
    if changed.shape != codes.shape or (changed.odc.geobox or codes.odc.geobox) != codes.odc.geobox:
        raise GridError(f"the change mask ({changed.shape}) does not lie on the pixels of the map ({codes.shape})")
