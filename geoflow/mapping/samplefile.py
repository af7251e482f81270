"""Samples as GeoPackages, for interpreters with QGIS: written, blind or not, and read back with what they filled in."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from geoflow.errors import GeoflowError, LegendError
from geoflow.legends import Legend, listed
from geoflow.mapping.sampling import Sample

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

POINTS, STRATA, UNITS, DESIGN = "points", "strata", "units", "design"
"""The layers of a sample's GeoPackage; ``units`` holds what a blind one hides from interpreters."""

CONFIDENCES = ("high", "medium", "low")
"""How sure an interpreter may be."""

# OGC 12-128, annex F.9 (schema extension); pyogrio cannot write field domains.
_SCHEMA_TABLES = """
CREATE TABLE IF NOT EXISTS gpkg_extensions (
    table_name TEXT, column_name TEXT, extension_name TEXT NOT NULL, definition TEXT NOT NULL, scope TEXT NOT NULL,
    CONSTRAINT ge_tce UNIQUE (table_name, column_name, extension_name));
CREATE TABLE gpkg_data_columns (
    table_name TEXT NOT NULL, column_name TEXT NOT NULL, name TEXT, title TEXT, description TEXT, mime_type TEXT,
    constraint_name TEXT, CONSTRAINT pk_gdc PRIMARY KEY (table_name, column_name),
    CONSTRAINT gdc_tn UNIQUE (table_name, name));
CREATE TABLE gpkg_data_column_constraints (
    constraint_name TEXT NOT NULL, constraint_type TEXT NOT NULL, value TEXT, min NUMERIC, min_is_inclusive BOOLEAN,
    max NUMERIC, max_is_inclusive BOOLEAN, description TEXT,
    CONSTRAINT gdcc_ntv UNIQUE (constraint_name, constraint_type, value));
"""


def write_sample(
    sample: Sample,
    path: str | Path,
    blind: bool = False,
    design: Mapping[str, Any] | None = None,
    choices: Mapping[int, str] | None = None,
) -> Path:
    """Write a sample as a GeoPackage: layer ``points`` for QGIS, table ``strata``.

    Parameters
    ----------
    sample : Sample
    path : str or Path
    blind : bool
        The points have neither stratum nor map codes: those go to the table ``units``, by ``id``.
    design : mapping, optional
        How the sample was drawn, plain values; kept as the table ``design`` (`read_design`).
    choices : mapping of code to text, optional
        What a reference may be. QGIS (3.20 or newer) offers it as a list, and `CONFIDENCES` too.

    Raises
    ------
    GeoflowError
        If the file exists: it may hold somebody's work.
    """
    import pyogrio

    path = Path(path)
    if path.exists():
        raise GeoflowError(f"{path} exists and may hold interpretations: write to another file, or remove it first")
    hidden = [c for c in sample.points.columns if c == "stratum" or "_level" in c] if blind else []
    tables = {STRATA: sample.strata}
    if blind:
        tables[UNITS] = pd.DataFrame(sample.points[["id", *hidden]])
    if design is not None:
        tables[DESIGN] = pd.DataFrame({"key": list(design), "value": [json.dumps(v) for v in design.values()]})
    try:
        sample.points.drop(columns=hidden).pipe(pyogrio.write_dataframe, path, layer=POINTS, driver="GPKG")
        for layer, table in tables.items():
            pyogrio.write_dataframe(table, path, layer=layer, driver="GPKG")
    except (OSError, pyogrio.errors.DataSourceError) as problem:
        raise GeoflowError(f"{path} cannot be written: {problem}") from None
    if choices is not None:
        lists = dict.fromkeys(reference_columns(sample.points), choices) | {"confidence": {c: c for c in CONFIDENCES}}
        _offer(path, lists)
    return path


def _offer(path: Path, lists: Mapping[str, Mapping[Any, str]]) -> None:
    """Field domains of the points, by column: the GeoPackage standard's schema extension, which GDAL and QGIS read."""
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.executescript(_SCHEMA_TABLES)
        for table in ("gpkg_data_columns", "gpkg_data_column_constraints"):
            extension = (
                table,
                None,
                "gpkg_schema",
                "http://www.geopackage.org/spec121/#extension_schema",
                "read-write",
            )
            file.execute("INSERT INTO gpkg_extensions VALUES (?, ?, ?, ?, ?)", extension)
        for column, choices in lists.items():
            row = (POINTS, column, column, f"choices_{column}")
            file.execute(
                "INSERT INTO gpkg_data_columns (table_name, column_name, name, constraint_name) VALUES (?, ?, ?, ?)",
                row,
            )
            file.executemany(
                "INSERT INTO gpkg_data_column_constraints (constraint_name, constraint_type, value, description) "
                "VALUES (?, 'enum', ?, ?)",
                [(f"choices_{column}", str(value), text) for value, text in choices.items()],
            )


def read_sample(path: str | Path, legend: Legend, allow_missing: bool = False) -> Sample:
    """Read a sample that interpreters have filled in, blind or not.

    Parameters
    ----------
    path : str or Path
        As `write_sample` wrote it; ``reference`` holds codes of the legend, of any level.
    legend : Legend
    allow_missing : bool
        Leave points without a reference out, as if they had not been drawn. That is sound where it is chance which
        are empty, and biased where the hard ones are.

    Raises
    ------
    GeoflowError
        If the file is no sample, points were added, removed or repeated, or some are empty (counted and named) and
        ``allow_missing`` is false.
    LegendError
        If a reference is no code of the legend (named with the ids).
    """
    return without_missing(read_drawn(path, legend), allow_missing, str(path))


def read_drawn(path: str | Path, legend: Legend) -> Sample:
    """All points of a sample, with references as far as they are filled in; else as `read_sample`."""
    points, tables = _read_layers(Path(path))
    if UNITS in tables:
        points = _reveal(points, tables[UNITS], Path(path))
    if missing := sorted({"id", "stratum", "reference"} - set(points.columns)):
        raise GeoflowError(f"{path}: the layer {POINTS!r} lacks the columns {missing}")
    strata = tables[STRATA].astype({"changed": bool})
    drawn = points.groupby("stratum").size().to_dict()
    expected = {name: n for name, n in zip(strata["name"], strata["n"], strict=True) if n}
    if drawn != expected or points["id"].duplicated().any():
        raise GeoflowError(
            f"{path}: points were added, removed or repeated: by stratum there are {drawn}, and {expected} were drawn. "
            "To leave a point out, empty its reference"
        )
    for column in reference_columns(points):
        points[column] = _reference(points, column, legend, path)
    return Sample(points.astype({c: "Int64" for c in points.columns if "_level" in c}), strata)


def without_missing(sample: Sample, allow_missing: bool, where: str) -> Sample:
    """The points that have all their references; see `read_sample` for ``allow_missing`` and errors."""
    points = sample.points
    blank = points[reference_columns(points)].isna()
    empty = blank.any(axis=1)
    if empty.any() and not allow_missing:
        raise GeoflowError(
            f"{where}: {int(empty.sum())} of {len(points)} points have no {listed(blank.columns[blank.any()])}, ids "
            f"{listed(points.loc[empty, 'id'])}: fill them, or leave them out (allow_missing, --allow-missing)"
        )
    return Sample(points[~empty].reset_index(drop=True), sample.strata)


def read_design(path: str | Path) -> dict[str, Any]:
    """How a sample was drawn, as given to `write_sample`.

    Raises
    ------
    GeoflowError
        If the file is no sample, or was written without a design.
    """
    _, tables = _read_layers(Path(path))
    if DESIGN not in tables:
        raise GeoflowError(f"{path} does not say how it was drawn: it has no table {DESIGN!r}")
    table = tables[DESIGN]
    return {key: json.loads(value) for key, value in zip(table["key"], table["value"], strict=True)}


def reference_columns(points: pd.DataFrame) -> list[str]:
    """The columns that interpreters fill with classes: ``reference``, and ``reference_<epoch>`` for another epoch."""
    return [c for c in points.columns if c == "reference" or c.startswith("reference_")]


def _read_layers(path: Path) -> tuple[GeoDataFrame, dict[str, pd.DataFrame]]:
    import pyogrio

    if not path.is_file():
        raise GeoflowError(f"no sample {path}: there is no such file")
    try:
        layers = pyogrio.list_layers(path)[:, 0].tolist()
        if not {POINTS, STRATA} <= set(layers):
            raise GeoflowError(
                f"{path} is no sample: it has the layers {layers}, and {POINTS!r} and {STRATA!r} are needed"
            )
        tables = {
            name: pyogrio.read_dataframe(path, layer=name, read_geometry=False) for name in layers if name != POINTS
        }
        return pyogrio.read_dataframe(path, layer=POINTS), tables
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as problem:
        raise GeoflowError(f"{path} is no sample: {problem}") from None


def _reveal(points: GeoDataFrame, units: pd.DataFrame, path: Path) -> GeoDataFrame:
    """Blind points with their stratum and map codes."""
    if strangers := sorted(set(points["id"]) ^ set(units["id"])):
        raise GeoflowError(f"{path}: points were added or removed: ids {listed(strangers)}")
    return points.merge(units, on="id", how="left", validate="many_to_one")


def _reference(points: pd.DataFrame, column: str, legend: Legend, path: str | Path) -> Any:
    """The references as Int64, 0 and blanks empty."""
    given = points[column]
    text = given.astype(str).str.strip()
    values = pd.to_numeric(given, errors="coerce")
    known = {code for level in legend.levels for code in legend.codes(level)}
    empty = given.isna() | text.isin(["", "0", "0.0"])
    if (bad := ~empty & ~values.isin(known)).any():
        where = [f"{t!r} (id {i})" for t, i in zip(text[bad], points.loc[bad, "id"], strict=True)]
        raise LegendError(f"{path}: references that legend {legend.name!r} does not hold: {listed(where)}")
    return values.where(~empty).astype("Int64")
