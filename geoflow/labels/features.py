"""Reading polygons and their class column: what GDAL's vector drivers read, and GeoParquet.

Only the features near an area are read, and of them only the geometry and the one column.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError

Bounds = tuple[float, float, float, float]

_PARQUET_BATCH = 20_000


def read_features(
    path: str, layer: str | None, column: str, bounds: Bounds, geometry: bool = True
) -> tuple[NDArray[np.integer], NDArray[np.object_], NDArray[Any]]:
    """Features whose bounds meet ``bounds`` (in the file's CRS).

    Parameters
    ----------
    path : str
    layer : str or None
        None for GeoParquet, which has no layers.
    column : str
    bounds : (left, bottom, right, top)
    geometry : bool
        False gives None for every geometry, which is quicker.

    Returns
    -------
    ids : integer array, the position or feature id in the file
    shapes : object array of shapely geometries (None where the feature has none)
    values : array of the column's type

    Raises
    ------
    LabelError
        If the file cannot be read.
    """
    return _read_parquet(path, column, bounds) if layer is None else _read_ogr(path, layer, column, bounds, geometry)


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


def _read_ogr(
    path: str, layer: str, column: str, bounds: Bounds, geometry: bool
) -> tuple[NDArray[np.integer], NDArray[np.object_], NDArray[Any]]:
    import pyogrio.raw
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, GeometryError

    try:
        _, fids, wkb, fields = pyogrio.raw.read(
            path,
            layer=layer,
            columns=[column],
            bbox=bounds,
            read_geometry=geometry,
            return_fids=True,
        )
        shapes = shapely.from_wkb(wkb) if geometry else np.full(len(fids), None, object)
    except (DataSourceError, DataLayerError, FeatureError, GeometryError, shapely.GEOSException) as problem:
        raise LabelError(f"{path}: cannot be read: {problem}") from None
    return fids, shapes, fields[0]


def _read_parquet(
    path: str, column: str, bounds: Bounds
) -> tuple[NDArray[np.integer], NDArray[np.object_], NDArray[Any]]:
    """GeoParquet, a batch of rows at a time: GDAL's wheels cannot read it, and the file need not fit in memory."""
    import pyarrow
    import pyarrow.parquet
    import shapely

    geometry = parquet_meta(path)[1]["primary_column"]
    left, bottom, right, top = bounds
    fids, shapes, values, first = [], [], [], 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_BATCH, columns=[geometry, column]):
                these = np.asarray(shapely.from_wkb(batch.column(geometry).to_numpy(zero_copy_only=False)), object)
                box = shapely.bounds(these)
                near = (box[:, 0] <= right) & (box[:, 2] >= left) & (box[:, 1] <= top) & (box[:, 3] >= bottom)
                fids.append(first + np.flatnonzero(near))
                shapes.append(these[near])
                values.append(batch.column(column).to_numpy(zero_copy_only=False)[near])
                first += len(these)
    except (OSError, pyarrow.ArrowException, shapely.GEOSException) as problem:
        raise LabelError(f"{path}: cannot be read: {problem}") from None
    if not first:
        return np.array([], np.int64), np.array([], object), np.array([], object)
    return np.concatenate(fids), np.concatenate(shapes), np.concatenate(values)
