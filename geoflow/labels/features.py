"""Reading polygons and their class columns: what GDAL's vector drivers read, and GeoParquet.

Only the features near an area are read, and of them only the geometry and the columns asked for. A national file is
never in memory as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError

Bounds = tuple[float, float, float, float]

Features = tuple[NDArray[np.integer[Any]], NDArray[np.object_], list[NDArray[Any]]]
"""Feature ids, shapes, and the values of each column."""

_PARQUET_BATCH = 4096
_PARQUET_BUFFER = 2**20
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_features(
    path: str, layer: str | None, columns: Sequence[str], bounds: Bounds, geometry: bool = True
) -> Features:
    """Features whose bounds meet ``bounds`` (in the file's CRS).

    Parameters
    ----------
    path : str
    layer : str or None
        None for GeoParquet, which has no layers.
    columns : sequence of str
    bounds : (left, bottom, right, top)
    geometry : bool
        False may give None for every geometry, which is quicker.

    Returns
    -------
    ids : integer array, the position or feature id in the file
    shapes : object array of shapely geometries (None where the feature has none)
    values : list of arrays, one a column, of the column's type

    Raises
    ------
    LabelError
        If the file cannot be read.
    """
    if layer is None:
        return _read_parquet(path, columns, bounds)
    return _read_ogr(path, layer, columns, bounds, geometry)


def parquet_meta(path: str) -> tuple[list[str], dict[str, Any]]:
    """Columns and the ``geo`` metadata of a GeoParquet file.

    Raises
    ------
    LabelError
        If it is no Parquet file, has no such metadata, or keeps its geometries in another encoding than WKB.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as problem:
        raise LabelError(f"{path}: cannot be read as Parquet: {problem}") from None
    raw = (schema.metadata or {}).get(b"geo")
    if raw is None:
        raise LabelError(f"{path}: is a Parquet file without geometries (no 'geo' metadata): not GeoParquet")
    meta = json.loads(raw)
    encoding = meta["columns"][meta["primary_column"]].get("encoding")
    if encoding != "WKB":
        raise LabelError(f"{path}: geometries are encoded as {encoding!r}; write them as WKB")
    return list(schema.names), meta


def _read_ogr(path: str, layer: str, columns: Sequence[str], bounds: Bounds, geometry: bool) -> Features:
    import pyogrio.raw
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, GeometryError

    try:
        meta, fids, wkb, fields = pyogrio.raw.read(
            path,
            layer=layer,
            columns=list(columns),
            bbox=bounds,
            read_geometry=geometry,
            return_fids=True,
        )
        shapes = shapely.from_wkb(wkb) if geometry else np.full(len(fids), None, object)
    except (DataSourceError, DataLayerError, FeatureError, GeometryError, shapely.GEOSException) as problem:
        raise LabelError(f"{path}: cannot be read: {problem}") from None
    by_name = dict(zip(meta["fields"].tolist(), fields, strict=True))  # they come in the order of the file
    return fids, shapes, [by_name[name] for name in columns]


def _read_parquet(path: str, columns: Sequence[str], bounds: Bounds) -> Features:
    """GeoParquet, a batch of rows at a time: GDAL's wheels cannot read it, and the file need not fit in memory.

    Row groups that lie elsewhere are not read. Where the file keeps the bounds of every row (GeoParquet 1.1's
    ``covering``), geometries that lie elsewhere are not decoded either.
    """
    import pyarrow
    import pyarrow.parquet
    import shapely

    fids: list[NDArray[np.integer[Any]]] = []
    shapes: list[NDArray[np.object_]] = []
    values: list[list[NDArray[Any]]] = []
    try:
        groups = _row_groups(path, Path(path).stat().st_mtime_ns)
        with _opened(path) as file:
            geometry, box = _geometry_columns(path)
            for number in np.flatnonzero(_meet(groups[:, :4], bounds)):
                first = int(groups[number, 4])
                for batch in _batches(file, int(number), [geometry, *columns], box):
                    near = _near(batch, geometry, box, bounds)
                    fids.append(first + near)
                    part = batch.take(pyarrow.array(near))
                    shapes.append(_decoded(part.column(geometry)))
                    values.append([part.column(c).to_numpy(zero_copy_only=False) for c in columns])
                    first += batch.num_rows
    except (OSError, pyarrow.ArrowException, shapely.GEOSException) as problem:
        raise LabelError(f"{path}: cannot be read: {problem}") from None
    if not fids:
        return np.array([], np.int64), np.array([], object), [np.array([], object) for _ in columns]
    return np.concatenate(fids), np.concatenate(shapes), [np.concatenate(v) for v in zip(*values, strict=True)]


def _opened(path: str) -> Any:
    """A Parquet file, read bit by bit: left to itself, pyarrow first gets all columns of a row group into memory."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, buffer_size=_PARQUET_BUFFER, pre_buffer=False)


def _batches(file: Any, number: int, columns: Sequence[str], box: str | None) -> Iterator[Any]:
    wanted = [*columns, box] if box else list(columns)
    return iter(file.iter_batches(_PARQUET_BATCH, row_groups=[number], columns=wanted))


def _geometry_columns(path: str) -> tuple[str, str | None]:
    """The geometry, and the struct column with its bounds where there is one with all four sides."""
    meta = parquet_meta(path)[1]
    geometry = meta["primary_column"]
    covering = (meta["columns"][geometry].get("covering") or {}).get("bbox") or {}
    parents = {tuple(covering.get(side, ())) for side in _SIDES}
    names = {parent[0] for parent in parents if parent}
    whole = len(names) == 1 and parents == {(name, side) for name in names for side in _SIDES}
    return geometry, names.pop() if whole else None


def _near(batch: Any, geometry: str, box: str | None, bounds: Bounds) -> NDArray[np.int64]:
    """The rows of a batch that meet ``bounds``."""
    import shapely

    if box is None:
        of_rows = shapely.bounds(_decoded(batch.column(geometry)))
    else:
        sides = (batch.column(box).field(side).to_numpy(zero_copy_only=False) for side in _SIDES)
        of_rows = np.stack([np.asarray(side, float) for side in sides], axis=1)
    return np.flatnonzero(_meet(of_rows, bounds))


def _meet(boxes: NDArray[np.float64], bounds: Bounds) -> NDArray[np.bool_]:
    left, bottom, right, top = bounds
    return (boxes[:, 0] <= right) & (boxes[:, 2] >= left) & (boxes[:, 1] <= top) & (boxes[:, 3] >= bottom)


def _decoded(column: Any) -> NDArray[np.object_]:
    import shapely

    return np.asarray(shapely.from_wkb(column.to_numpy(zero_copy_only=False)), object)


@lru_cache(maxsize=16)
def _row_groups(path: str, _changed: int) -> NDArray[np.float64]:
    """Bounds of each row group and the number of its first row; dims (group, 5). Kept, since every tile asks.

    From the statistics of the covering where there is one; else the geometries are read once, a batch at a time. A file
    of one row group is gone through anyway, hence not measured.
    """
    import shapely

    geometry, box = _geometry_columns(path)
    with _opened(path) as file:
        count = file.metadata.num_row_groups
        rows = [file.metadata.row_group(i).num_rows for i in range(count)]
        found = np.full((count, 5), np.inf)
        found[:, :2] = -np.inf
        found[:, 4] = np.cumsum([0, *rows[:-1]]) if rows else []
        if count == 1:
            return found
        for number in range(count):
            told = None if box is None else _bounds_told(file.metadata.row_group(number), box)
            if told is None:
                parts = [shapely.bounds(_decoded(b.column(0))) for b in _batches(file, number, [geometry], None)]
                of_rows = np.concatenate(parts) if parts else np.full((1, 4), np.nan)
                told = (*np.fmin.reduce(of_rows[:, :2]), *np.fmax.reduce(of_rows[:, 2:]))
            found[number, :4] = told
    return found


def _bounds_told(group: Any, box: str) -> tuple[float, ...] | None:
    """Bounds of a row group by the statistics of its covering; None where it keeps none."""
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    told = []
    for side in _SIDES:
        chunk = chunks.get(f"{box}.{side}")
        if chunk is None or chunk.statistics is None or not chunk.statistics.has_min_max:
            return None
        told.append(float(chunk.statistics.min if side.endswith("min") else chunk.statistics.max))
    return tuple(told)
