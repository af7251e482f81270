"""Classes for a sample from files: a reference that is better than the map, or another map to compare it with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from geoflow.errors import LabelError, LegendError
from geoflow.legends import Legend, listed
from geoflow.mapping.sampling import Sample, levels_of

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


def sample_reference(
    sample: Sample, path: str | Path, legend: Legend, column: str | None = None, into: str = "reference"
) -> Sample:
    """Fill what is empty of a reference from a reference raster or polygons, at the points.

    Parameters
    ----------
    path : str or Path
        A raster of class codes, or a vector file of polygons; any CRS. Points outside, on nodata or on 0 stay empty.
    legend : Legend
    column : str, optional
        The polygons' column with the class (code or name). For a raster, ``"grid_code"`` or ``"clc_code"`` where its
        values are not the legend's codes.
    into : str
        The sample's column that is filled.

    Raises
    ------
    LabelError
        If the file cannot be read, the column is missing, or polygons of different classes hold one point.
    LegendError
        If a value is no class of the legend.
    """
    found = pd.Series(pd.array(_classes_at(sample, path, legend, column), dtype="Int64"), index=sample.points.index)
    filled = sample.points[into].fillna(found.replace(0, pd.NA))
    return replace(sample, points=sample.points.assign(**{into: filled}))


def add_map_file(sample: Sample, path: str | Path, legend: Legend, name: str, column: str | None = None) -> Sample:
    """A sample with the codes of a map in a file, as columns ``<name>_level1``..; see `sampling.add_map`.

    Parameters and errors are those of `sample_reference`.
    """
    return replace(
        sample, points=sample.points.assign(**levels_of(_classes_at(sample, path, legend, column), legend, name))
    )


def _classes_at(sample: Sample, path: str | Path, legend: Legend, column: str | None) -> list[int]:
    """Class codes of a file at the points, 0 where it has none."""
    path = Path(path)
    if not path.exists():
        raise LabelError(f"no reference {path}: there is no such file")
    read = _from_polygons if _is_vector(path) else _from_raster
    return read(sample.points, path, legend, column)


def _is_vector(path: Path) -> bool:
    import pyogrio

    try:
        return len(pyogrio.list_layers(path)) > 0
    except pyogrio.errors.DataSourceError:
        return False


def _from_raster(points: GeoDataFrame, path: Path, legend: Legend, column: str | None) -> list[int]:
    import rasterio

    try:
        with rasterio.open(path) as source:
            if source.crs is None:
                raise LabelError(f"{path} has no CRS")
            at = points.geometry.to_crs(source.crs.to_wkt())
            read = source.sample(zip(at.x, at.y, strict=True), indexes=1, masked=True)
            values = [0 if one.mask.any() else one.item() for one in read]
    except rasterio.errors.RasterioIOError as problem:
        raise LabelError(f"{path}: cannot be read as a raster or as polygons: {problem}") from None
    return [_class_of(v, legend, str(path), column) for v in values]


def _from_polygons(points: GeoDataFrame, path: Path, legend: Legend, column: str | None) -> list[int]:
    import pyogrio

    box = tuple(points.geometry.to_crs(pyogrio.read_info(path)["crs"]).total_bounds)
    shapes = pyogrio.read_dataframe(path, bbox=box)
    names = [c for c in shapes.columns if c != "geometry"]
    if column not in names:
        raise LabelError(f"{path} has no column {column!r}; name one of {names}")
    at = points[["id", "geometry"]].to_crs(shapes.crs)
    met = at.sjoin(shapes[[column, "geometry"]], predicate="intersects")
    held: dict[int, set[int]] = {}
    for point, value in zip(met["id"], met[column], strict=True):
        held.setdefault(point, set()).add(_class_of(value, legend, str(path), None))
    if unclear := sorted(i for i, found in held.items() if len(found) > 1):
        raise LabelError(f"{path}: polygons of different classes hold the points with ids {listed(unclear)}")
    return [next(iter(held.get(i, {0}))) for i in points["id"]]


def _class_of(value: Any, legend: Legend, where: str, coding: str | None) -> int:
    """A value of a reference as a code of the legend; 0 for nodata."""
    if value is None or value != value:
        return 0
    text = str(value).strip()
    number = int(float(text)) if text.replace(".", "", 1).isdecimal() and float(text).is_integer() else None
    tables = {"grid_code": legend.grid_codes, "clc_code": legend.clc_codes}
    if coding in tables and number is not None and number:
        if number not in tables[coding]:
            raise LegendError(f"{where}: {number} is no {coding} of legend {legend.name!r}")
        return tables[coding][number]
    if number == 0 or number in legend.nodata_codes or not text:
        return 0
    try:
        return legend.code_of(text if number is None else number)
    except LegendError as problem:
        raise LegendError(f"{where}: {problem}") from None
