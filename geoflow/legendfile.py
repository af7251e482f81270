"""Reading legends: the tables that geoflow ships and CSV files of the user."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from geoflow.colours import parse_colour
from geoflow.errors import LegendError
from geoflow.legends import BUILTIN, MAX_CODE, NODATA_CODE, Legend, LegendClass

_REQUIRED, _OPTIONAL = ("code", "name", "colour"), ("parent", "grid_code", "alias")
# CLC_CODE of what is no land cover class in the EEA's legend (no data, unclassified land, unclassified water), and the
# GRID_CODEs that stand for them or for no data at all.
_CORINE_NODATA, _CORINE_GRID_NODATA = (990, 995, 999), (0, 48, 49, 50, 255)


@cache
def builtin(name: str) -> Legend:
    """One of `geoflow.legends.BUILTIN`; all three know the GRID_CODEs and the CLC codes of CORINE sources."""
    corine = from_csv("corine", _data_lines("corine.csv"), "corine.csv")
    rows = list(csv.DictReader(_data_lines("bigearthnet-43.csv")))
    if name == "corine":
        classes, own = corine.classes, {c: c for c in corine.codes()}
    elif name == "bigearthnet-43":
        names = {int(row["clc_code"]): row["name"] for row in rows}
        classes, own = _renamed(corine, names), {c: c for c in names}
    else:
        classes = from_csv(name, _data_lines(f"{name}.csv"), f"{name}.csv").classes
        own = {int(row["clc_code"]): int(row["code_19"]) for row in rows if row["code_19"]}
    clc = {c: own.get(c, NODATA_CODE) for c in corine.codes()}
    grid = {g: clc[c] for g, c in corine.grid_codes.items()}
    return Legend(name, classes, _CORINE_NODATA, {**grid, **dict.fromkeys(_CORINE_GRID_NODATA, NODATA_CODE)}, clc)


def _renamed(corine: Legend, names: Mapping[int, str]) -> tuple[LegendClass, ...]:
    """CORINE's groups, and of its classes those in ``names``, under those names; the EEA's name becomes the alias."""
    deepest = corine.codes()
    kept = (e for e in corine.classes if e.code not in deepest or e.code in names)
    return tuple(_under(names[e.code], e) if e.code in names else e for e in kept)


def _under(name: str, entry: LegendClass) -> LegendClass:
    """A class under another name; all its others become aliases."""
    others = [other for other in (entry.name, *(entry.alias or "").split("|")) if other not in ("", name)]
    return LegendClass(entry.code, name, entry.colour, entry.parent, "|".join(others) or None)


def _data_lines(file: str) -> list[str]:
    return (resources.files("geoflow") / "data" / file).read_text(encoding="utf-8").splitlines()


def from_csv(name: str, lines: list[str], where: str) -> Legend:
    """A legend from the lines of a CSV file; messages name the line of ``where``. See `geoflow.legends.legend`."""
    reader = csv.DictReader(lines)
    columns = [c.strip() for c in reader.fieldnames or []]
    missing, strange = set(_REQUIRED) - set(columns), set(columns) - {*_REQUIRED, *_OPTIONAL}
    if missing or strange:
        raise LegendError(
            f"{where}: the columns are {', '.join(columns) or 'none'}; needed are {', '.join(_REQUIRED)}, "
            f"allowed beside them {', '.join(_OPTIONAL)}"
        )
    reader.fieldnames = columns
    classes: list[LegendClass] = []
    grid_codes: dict[int, int] = {}
    for row in reader:
        at = f"{where}, line {reader.line_num}"
        entry = _csv_class(row, at)
        if any(entry.code == other.code for other in classes):
            raise LegendError(f"{at}: code {entry.code} appears twice")
        classes.append(entry)
        if row.get("grid_code"):
            grid_codes[_integer(row, "grid_code", at)] = entry.code
    try:
        return Legend(name, tuple(classes), grid_codes=grid_codes)
    except LegendError as problem:
        raise LegendError(f"{where}: {problem}") from None


def _csv_class(row: Mapping[str | None, Any], at: str) -> LegendClass:
    if None in row or None in row.values():
        raise LegendError(f"{at}: not as many values as the header has columns (quote names that hold a comma)")
    code = _integer(row, "code", at)
    if not 1 <= code <= MAX_CODE:
        raise LegendError(f"{at}: code {code} is not in 1..{MAX_CODE} (0 is nodata)")
    if not row["name"].strip():
        raise LegendError(f"{at}: code {code} has no name")
    try:
        colour = parse_colour(row["colour"])
    except ValueError:
        raise LegendError(f"{at}: {row['colour']!r} is not a colour such as #e6004d") from None
    parent = _integer(row, "parent", at) if (row.get("parent") or "").strip() else None
    return LegendClass(code, row["name"].strip(), colour, parent, (row.get("alias") or "").strip() or None)


def _integer(row: Mapping[Any, Any], column: str, at: str) -> int:
    try:
        return int(row[column])
    except ValueError:
        raise LegendError(f"{at}: {column} {row[column]!r} is not a whole number") from None


TABLE = "legend_table"
"""Attribute that holds a legend whole."""


def attributes(legend: Legend) -> dict[str, Any]:
    """What is written beside class maps, so that who opens them knows the legend: a built-in one by name, a job's own
    one whole, because its file is elsewhere."""
    return {"legend": legend.name} | ({} if legend.name in BUILTIN else {TABLE: legend.to_dict()})
