"""Tables of polygons to files, a batch at a time: GeoPackage for QGIS, GeoParquet for notebooks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import geopandas

_GEOMETRY_TYPES = ["Polygon", "MultiPolygon"]


def write_polygons(frames: Iterable[geopandas.GeoDataFrame], folder: Path, name: str, layer: str) -> tuple[Path, Path]:
    """Write ``name.gpkg`` and ``name.parquet``; complete under their names or not there at all.

    Parameters
    ----------
    frames : iterable of GeoDataFrame
        All with the same columns and CRS; at least one, which may be empty. Only one is in memory at a time.
    folder : Path
        Created if need be. Files of these names are replaced.
    name, layer : str
        Stem of the files; the layer of the GeoPackage.

    Returns
    -------
    The paths of both files. The GeoParquet file follows version 1.1.0 of the specification, geometry as WKB.
    """
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    package, parquet = folder / f"{name}.gpkg", folder / f"{name}.parquet"
    drafts = [path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}") for path in (package, parquet)]
    for draft in drafts:
        draft.unlink(missing_ok=True)
    writer: Any = None
    try:
        for frame in frames:
            table = _as_table(frame)
            if writer is None:
                writer = pq.ParquetWriter(drafts[1], table.schema, compression="zstd")
            if len(frame) or not drafts[0].exists():
                # Said outright, since an empty table or one of polygons alone would fix another type.
                frame.to_file(
                    drafts[0],
                    layer=layer,
                    driver="GPKG",
                    engine="pyogrio",
                    mode="a" if drafts[0].exists() else "w",
                    geometry_type="MultiPolygon",
                    promote_to_multi=True,
                )
            if len(frame):
                writer.write_table(table)
        if writer is not None:
            writer.close()
        os.replace(drafts[0], package)
        os.replace(drafts[1], parquet)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    return package, parquet


def _as_table(frame: geopandas.GeoDataFrame) -> Any:
    """A pyarrow table with the metadata of GeoParquet."""
    import pyarrow as pa
    import shapely

    columns = {str(c): pa.array(frame[c]) for c in frame.columns if c != frame.geometry.name}
    columns["geometry"] = pa.array(list(shapely.to_wkb(frame.geometry.array)), pa.binary())
    for column, values in columns.items():
        if pa.types.is_null(values.type):  # a column of text without a row
            columns[column] = values.cast(pa.string())
    described = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {"encoding": "WKB", "geometry_types": _GEOMETRY_TYPES, "crs": frame.crs.to_json_dict()}
        },
    }
    return pa.table(columns).replace_schema_metadata({"geo": json.dumps(described)})
