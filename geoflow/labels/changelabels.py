"""Change layers, such as CLC-Change: polygons that say from which class to which the ground changed.

The EEA maps change by itself, down to 5 ha, and advises against comparing two status layers, whose units are 25 ha. So
a change layer is the better witness of change, and these are its labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from odc.geo.xr import wrap_xr

from geoflow.errors import LabelError
from geoflow.labels.coding import as_text, value_codes
from geoflow.labels.features import read_features
from geoflow.labels.layers import PARQUET_SUFFIXES, VECTOR_SUFFIXES, Layer, find_layer
from geoflow.labels.rasterise import drawing_order, on_grid, valid_polygons
from geoflow.labels.scanline import fill
from geoflow.labels.source import area_bounds
from geoflow.legends import NODATA_CODE, Legend, listed
from geoflow.legends import legend as find_legend

UNKNOWN, UNCHANGED, CHANGED = 0, 1, 2
"""The values of ``change``, as in a change map."""

# Underscores left out. Of a year: Code_12, CODE_2012, CLC12, code_00. Of both: Code_12_18, CLC12_18, CHA1218, Change.
_OF_YEAR = re.compile(r"(?:code|clc|clccode|codeclc|corine)((?:19|20)?\d\d)")
_OF_BOTH = re.compile(r"(?:change|changecode|chcode|(?:cha|chg|change|code|clc)(?:(?:19|20)?\d\d){2})")
_NAMED = (
    ("fromcode", "tocode"), ("codefrom", "codeto"), ("oldcode", "newcode"), ("codeold", "codenew"), ("from", "to"),
    ("oldclc", "newclc"), ("fromclc", "toclc"), ("clcfrom", "clcto"),
)  # fmt: skip
_PAIR = re.compile(r"(\d+)\s*(?:-|_|>|->|/|\s)\s*(\d+)|(\d{3})(\d{3})")
_FIRST_YEAR = 80
"""A two-digit year from this on is of the last century: CLC90."""


def load_change_labels(
    source: str | Path, geobox: GeoBox, legend: Legend | str | Path = "corine", columns: Sequence[str] | None = None
) -> xr.Dataset:
    """Labels of change on a GeoBox, from a layer of changed polygons.

    Parameters
    ----------
    source : path
        Any vector file of `geoflow.labels.load_labels`; ``file|layername=NAME`` picks a layer. Only what lies near the
        GeoBox is read.
    geobox : GeoBox
        North up and not rotated.
    legend : Legend, or a name or path for `geoflow.legends.legend`
    columns : two names, or one, optional
        The columns with the class before and after, or the one that holds both ("211-112"). Found by themselves where
        they have names such as ``Code_12`` and ``Code_18``, ``from_code`` and ``to_code``, ``Change``.

    Returns
    -------
    Dataset, dims (y, x)
        ``change`` uint8: 2 changed, 1 not in any polygon, or in one whose classes are the same (a technical change), 0
        where a polygon has no class before or after (special codes). ``from_code``, ``to_code`` of
        ``legend.dtype(legend.deepest)``: the classes where changed, else 0. Pixels are given to polygons as
        `geoflow.labels.load_labels` does.

    Raises
    ------
    LabelError
        If the source cannot be read or understood, or a value met is not in the legend.

    Notes
    -----
    What no polygon covers counts as unchanged, also where the layer was never mapped: give a GeoBox that it covers.
    """
    legend = find_legend(legend) if isinstance(legend, str | Path) else legend
    if not geobox.axis_aligned:
        raise LabelError("labels are put on north-up grids only, and this GeoBox is rotated")
    path, layer = inspect_changes(source, columns)
    shape = (geobox.shape.y, geobox.shape.x)
    fids, shapes, values = read_features(path, layer.name, layer.columns, area_bounds(geobox, layer.crs, path))
    kept = np.array([one is not None and not one.is_empty for one in shapes], bool)
    fids, shapes, values = fids[kept], valid_polygons(shapes[kept], path), [v[kept] for v in values]
    before, after = change_codes(values, legend, f"{path}, {' and '.join(layer.columns)}")
    order = drawing_order(fids, shapes)
    # Numbers of polygons are drawn, not codes, so that both classes of a pixel are of one polygon.
    number, _ = fill(on_grid(shapes[order], layer.crs, geobox, path), order.astype(np.uint32) + 1, shape)
    return _layers(number, before, after, geobox, legend)


def check_changes(
    source: str | Path, area: GeoBox | Geometry, legend: Legend | str | Path, columns: Sequence[str] | None = None
) -> None:
    """See that a change layer can serve an area, before any work.

    Raises
    ------
    LabelError
        See `load_change_labels`; an area without a changed polygon is none.
    """
    legend = find_legend(legend) if isinstance(legend, str | Path) else legend
    path, layer = inspect_changes(source, columns)
    bounds = area_bounds(area, layer.crs, path)
    values = read_features(path, layer.name, layer.columns, bounds, geometry=False)[2]
    change_codes(values, legend, f"{path}, {' and '.join(layer.columns)}")


def inspect_changes(source: str | Path, columns: Sequence[str] | None = None) -> tuple[str, Layer]:
    """The file and the layer with the columns of change; kept by path, time of change and columns."""
    path, _, layer = str(source).partition("|layername=")
    file = Path(path)
    if not file.exists():
        raise LabelError(f"no change labels at {path}: there is no such file")
    if file.suffix.lower() not in (*VECTOR_SUFFIXES, *PARQUET_SUFFIXES):
        kinds = ", ".join((*VECTOR_SUFFIXES, *PARQUET_SUFFIXES))
        raise LabelError(f"{path}: change labels are read from polygons, in one of {kinds}")
    if columns is not None and not 1 <= len(columns) <= 2:
        raise LabelError(f"{path}: columns are two, before and after, or one that holds both; not {list(columns)}")
    return path, _inspected(path, layer or None, None if columns is None else tuple(columns), file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _inspected(path: str, layer: str | None, columns: tuple[str, ...] | None, _changed: int) -> Layer:
    lacking = f"not the columns {' and '.join(columns)}" if columns else "no columns such as Code_12 and Code_18"
    hint = "Name those with the class before and after, as columns"
    return find_layer(path, layer, lambda fields: find_change_columns(fields, columns, path), lacking, hint)


def find_change_columns(fields: Iterable[str], columns: Sequence[str] | None, where: str) -> list[str]:
    """The columns of the classes before and after, or the one that holds both; none where there are none.

    Raises
    ------
    LabelError
        If more than two columns are of years.
    """
    by_name = {field.casefold(): field for field in fields}
    if columns is not None:
        exact = [c if c in by_name.values() else by_name.get(c.casefold()) for c in columns]
        return [name for name in exact if name is not None] if None not in exact else []
    plain = {name.replace("_", ""): field for name, field in by_name.items()}
    for before, after in _NAMED:
        if before in plain and after in plain:
            return [plain[before], plain[after]]
    years = {_year(match[1]): field for name, field in plain.items() if (match := _OF_YEAR.fullmatch(name))}
    if len(years) == 2:
        return [years[year] for year in sorted(years)]
    if len(years) > 2:
        raise LabelError(f"{where}: columns {listed(years.values())} are of several years; name two, as columns")
    both = [field for name, field in plain.items() if _OF_BOTH.fullmatch(name) and not _OF_YEAR.fullmatch(name)]
    return both[:1]


def _year(digits: str) -> int:
    year = int(digits)
    return year if year > 99 else year + (1900 if year >= _FIRST_YEAR else 2000)


def change_codes(
    values: Sequence[NDArray[Any]], legend: Legend, where: str
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.unsignedinteger[Any]]]:
    """Codes before and after, from two columns or one that holds both.

    Raises
    ------
    LabelError
        If a value is missing or unknown.
    """
    first, second = _in_two(as_text(values[0]), where) if len(values) == 1 else values
    return value_codes(first, legend, where), value_codes(second, legend, where)


def _in_two(pairs: NDArray[np.str_], where: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """ "211-112" as 211 and 112."""
    matches = [_PAIR.fullmatch(pair) for pair in pairs.tolist()]
    if wrong := sorted({p for p, match in zip(pairs.tolist(), matches, strict=True) if match is None}):
        raise LabelError(f"{where}: {listed(map(repr, wrong), 5)} is not a pair of codes such as 211-112")
    sides = [[g for g in match.groups() if g is not None] for match in matches if match is not None]
    codes = np.array(sides, np.int64).reshape(len(sides), 2)
    return codes[:, 0], codes[:, 1]


def _layers(
    number: NDArray[np.uint32],
    before: NDArray[np.unsignedinteger[Any]],
    after: NDArray[np.unsignedinteger[Any]],
    geobox: GeoBox,
    legend: Legend,
) -> xr.Dataset:
    """The dataset, from the number of the polygon (1 and up, 0 none) of each pixel."""
    none = np.zeros(1, before.dtype)
    unknown = (before == NODATA_CODE) | (after == NODATA_CODE)
    state = np.where(unknown, UNKNOWN, np.where(before != after, CHANGED, UNCHANGED)).astype(np.uint8)
    changed = state == CHANGED
    tables = {
        "change": np.concatenate([np.array([UNCHANGED], np.uint8), state]),
        "from_code": np.concatenate([none, np.where(changed, before, NODATA_CODE)]),
        "to_code": np.concatenate([none, np.where(changed, after, NODATA_CODE)]),
    }
    out = xr.Dataset({name: wrap_xr(table[number], geobox, nodata=0) for name, table in tables.items()})
    out["change"] = out["change"].assign_attrs(flag_values=[UNCHANGED, CHANGED], flag_meanings="unchanged changed")
    for name in ("from_code", "to_code"):
        out[name] = out[name].assign_attrs(legend.flags(legend.deepest))
    return out
