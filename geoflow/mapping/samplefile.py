"""Samples as GeoPackages, for interpreters with QGIS: written, blind or not, and read back with what they filled in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from geoflow.errors import GeoflowError, LegendError
from geoflow.legends import Legend, listed
from geoflow.mapping.sampling import Sample

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

POINTS, STRATA, UNITS = "points", "strata", "units"
"""The layers of a sample's GeoPackage; ``units`` holds what a blind one hides from interpreters."""


def write_sample(sample: Sample, path: str | Path, blind: bool = False) -> Path:
    """Write a sample as a GeoPackage: layer ``points`` for QGIS, table ``strata``.

    With ``blind``, the points have neither stratum nor map codes: those go to the table ``units``, by ``id``.

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
    sample.points.drop(columns=hidden).pipe(pyogrio.write_dataframe, path, layer=POINTS, driver="GPKG")
    tables = {STRATA: sample.strata, **({UNITS: pd.DataFrame(sample.points[["id", *hidden]])} if blind else {})}
    for layer, table in tables.items():
        pyogrio.write_dataframe(table, path, layer=layer, driver="GPKG")
    return path


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
    points["reference"] = _reference(points, legend, path)
    levels = {c: "Int64" for c in points.columns if "_level" in c}
    points = points.astype(levels)
    empty = points["reference"].isna()
    if empty.any() and not allow_missing:
        raise GeoflowError(
            f"{path}: {int(empty.sum())} of {len(points)} points have no reference, ids "
            f"{listed(points.loc[empty, 'id'])}: fill them, or leave them out with allow_missing"
        )
    return Sample(points[~empty].reset_index(drop=True), strata)


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


def _reference(points: pd.DataFrame, legend: Legend, path: str | Path) -> Any:
    """The references as Int64, 0 and blanks empty."""
    given = points["reference"]
    text = given.astype(str).str.strip()
    values = pd.to_numeric(given, errors="coerce")
    known = {code for level in legend.levels for code in legend.codes(level)}
    empty = given.isna() | text.isin(["", "0", "0.0"])
    if (bad := ~empty & ~values.isin(known)).any():
        where = [f"{t!r} (id {i})" for t, i in zip(text[bad], points.loc[bad, "id"], strict=True)]
        raise LegendError(f"{path}: references that legend {legend.name!r} does not hold: {listed(where)}")
    return values.where(~empty).astype("Int64")
