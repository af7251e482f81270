"""Vector files: their layers, columns, CRS and extent, from headers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyproj import CRS
from pyproj.exceptions import CRSError

from geoflow.errors import LabelError
from geoflow.labels.features import Bounds, parquet_meta
from geoflow.legends import listed

VECTOR_SUFFIXES = (".gpkg", ".shp", ".gdb", ".fgb", ".geojson", ".json")
PARQUET_SUFFIXES = (".parquet", ".geoparquet")

Find = Callable[[Sequence[str]], list[str]]
"""The columns wanted, of those that a layer has; none where it has none of them."""


@dataclass(frozen=True)
class Layer:
    """A layer of polygons.

    Attributes
    ----------
    name : str or None
        None for GeoParquet, which has no layers.
    crs : str
    bounds : (left, bottom, right, top)
        In that CRS.
    columns : tuple of str
        Those that were looked for.
    """

    name: str | None
    crs: str
    bounds: Bounds
    columns: tuple[str, ...]


def find_layer(path: str, layer: str | None, find: Find, wanted: str, hint: str) -> Layer:
    """The one layer with the columns that ``find`` looks for.

    Parameters
    ----------
    path : str
    layer : str, optional
        Its name, where only that one will do.
    find : callable
    wanted : str
        What is lacking, for messages: "no column with a name such as ...".
    hint : str
        What then to do.

    Raises
    ------
    LabelError
        If the file cannot be read or lacks a CRS, or if no layer, or several, have such columns.
    """
    return _of_parquet(path, find, wanted, hint) if is_parquet(path) else _of_vector(path, layer, find, wanted, hint)


def is_parquet(path: str) -> bool:
    """Whether a file is GeoParquet, by its name."""
    return Path(path).suffix.lower() in PARQUET_SUFFIXES


def _of_vector(path: str, layer: str | None, find: Find, wanted: str, hint: str) -> Layer:
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if layer is not None and layer not in layers:
            raise LabelError(f"{path}: has no layer {layer!r} with geometries, only {listed(layers)}")
        names = layers if layer is None else [layer]
        infos = {n: pyogrio.read_info(path, layer=n, force_total_bounds=True) for n in names}
    except (DataSourceError, DataLayerError) as problem:
        raise LabelError(f"{path}: cannot be read as a vector file: {problem}") from None
    columns = {name: find(list(info["fields"])) for name, info in infos.items()}
    fitting = [name for name in names if columns[name]]
    if not fitting:
        there = "; ".join(f"layer {n!r}: {listed(infos[n]['fields']) or _no_columns(path)}" for n in names)
        raise LabelError(f"{path}: has {wanted}; there are {there}. {hint}")
    if len(fitting) > 1:
        raise LabelError(
            f"{path}: layers {listed(fitting)} may hold the classes; name one: {path}|layername={fitting[0]}"
        )
    name = fitting[0]
    info = infos[name]
    if info["crs"] is None:
        raise LabelError(f"{path}: layer {name!r} has no coordinate system (a shapefile needs its .prj)")
    if info["total_bounds"] is None:
        raise LabelError(f"{path}: layer {name!r} has no feature with a geometry")
    left, bottom, right, top = (float(v) for v in info["total_bounds"])
    return Layer(name, CRS(info["crs"]).to_string(), (left, bottom, right, top), tuple(columns[name]))


def _no_columns(path: str) -> str:
    return "none at all (the .dbf of the shapefile is missing)" if path.lower().endswith(".shp") else "none at all"


def _of_parquet(path: str, find: Find, wanted: str, hint: str) -> Layer:
    fields, meta = parquet_meta(path)
    columns = find(fields)
    if not columns:
        raise LabelError(f"{path}: has {wanted}; there are {listed(fields)}. {hint}")
    geometry = meta["columns"][meta["primary_column"]]
    try:
        crs = CRS(geometry.get("crs", "OGC:CRS84"))
    except CRSError:
        raise LabelError(f"{path}: has no coordinate system that can be read") from None
    box = [float(v) for v in geometry.get("bbox", (-np.inf, -np.inf, np.inf, np.inf))]
    half = len(box) // 2  # a bbox of three dimensions has z between
    return Layer(None, crs.to_string(), (box[0], box[1], box[half], box[half + 1]), tuple(columns))
