"""Label sources: what a file is, which column and coding it holds, and whether it can serve a job.

Everything here is cheap: it reads headers, the values of one column, or a sample of a raster, never the polygons.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj import CRS, Transformer
from rasterio.errors import RasterioIOError
from rasterio.windows import Window, from_bounds

from geoflow.errors import LabelError
from geoflow.labels.coding import CODINGS, as_integers, as_text, coding_tables, tell_coding, value_codes
from geoflow.labels.features import Bounds, read_features
from geoflow.labels.layers import PARQUET_SUFFIXES, VECTOR_SUFFIXES, find_layer
from geoflow.legends import NODATA_CODE, Legend, listed
from geoflow.legends import legend as find_legend

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".img")

# Names met in the wild: Code_18, CODE_18, CLC_CODE, clc_code, CLC18, code_12, code, GRID_CODE; underscores left out.
# Four digits are a year, or the column is of a change layer: CLC12_18.
_CODE_COLUMN = re.compile(r"(code|clc|clccode|codeclc|corine|class|gridcode)(\d\d|(19|20)\d\d)?")
_WHOLE_READ_PX = 32_000_000
_SAMPLE_WINDOWS, _SAMPLE_PX = 256, 256


@dataclass(frozen=True)
class LabelSource:
    """A label file, understood.

    Attributes
    ----------
    path : str
    kind : str
        ``"vector"``, ``"parquet"`` or ``"raster"``.
    crs : str
        Its coordinate system, as ``EPSG:...`` or WKT.
    bounds : tuple of float
        Its extent (left, bottom, right, top) in that CRS.
    layer, column : str or None
        Of a vector: the layer, and the column with the class.
    coding : str or None
        What its values are: ``"code"`` (of the legend), ``"clc_code"``, ``"grid_code"``; None where each tile's values
        show it.
    """

    path: str
    kind: str
    crs: str
    bounds: Bounds
    layer: str | None = None
    column: str | None = None
    coding: str | None = None

    @property
    def where(self) -> str:
        """The file and the column, for messages."""
        return f"{self.path}, column {self.column!r}" if self.column else self.path

    def bounds_of(self, area: GeoBox | Geometry) -> Bounds:
        """`area_bounds` in this source's CRS."""
        return area_bounds(area, self.crs, self.path)


def area_bounds(area: GeoBox | Geometry, crs: str, where: str, margin_px: float = 2.0) -> Bounds:
    """Bounds of an area in another CRS, edges densified, with a margin: what to read to miss nothing.

    Raises
    ------
    LabelError
        If the area has no coordinates there.
    """
    box = area.boundingbox
    left, bottom, right, top = transformer(wkt_of(area), crs).transform_bounds(*box.bbox, densify_pts=41)
    if not np.isfinite([left, bottom, right, top]).all():
        raise LabelError(f"{where}: the area {box.bbox} has no coordinates in the CRS of these labels")
    pixels = max(area.shape) if isinstance(area, GeoBox) else 1000
    share = 0.001 + margin_px / pixels
    dx, dy = (right - left) * share, (top - bottom) * share
    return left - dx, bottom - dy, right + dx, top + dy


@lru_cache(maxsize=32)
def transformer(source: str, target: str) -> Transformer:
    """From one CRS to another, x before y. Kept, because making one takes as long as rasterising a small tile."""
    return Transformer.from_crs(source, target, always_xy=True)


def wkt_of(area: GeoBox | Geometry) -> str:
    """The CRS of an area as WKT.

    Raises
    ------
    LabelError
        If it has none.
    """
    if area.crs is None:
        raise LabelError("the area has no coordinate system: labels cannot be put on it")
    return str(area.crs.to_wkt())


def check_labels(
    source: str | Path, area: GeoBox | Geometry, legend: Legend | str | Path, column: str | None = None
) -> LabelSource:
    """See that a label source can serve an area, before any work.

    Parameters
    ----------
    source : path
        See `geoflow.labels.load_labels`.
    area : GeoBox or Geometry
        Any CRS.
    legend : Legend, or a name or path for `geoflow.legends.legend`
    column : str, optional
        See `geoflow.labels.load_labels`.

    Returns
    -------
    LabelSource
        What was found; `geoflow.labels.load_labels` takes it in place of the path.

    Raises
    ------
    LabelError
        If the file is missing or of an unknown kind, has no (or several) columns or layers of classes, misses the area,
        or holds values that the legend does not know.
    """
    legend = find_legend(legend) if isinstance(legend, str | Path) else legend
    found = inspect_labels(source, legend, column)
    wanted = found.bounds_of(area)
    values = raster_values(found, wanted) if found.kind == "raster" else np.unique(_column_values(found, wanted))
    if not len(values):
        raise LabelError(
            f"{found.path}: holds no labels in the area; it covers {_rounded(found.bounds)}, the area is "
            f"{_rounded(wanted)} ({_crs_name(found.crs)})"
        )
    value_codes(values, legend, found.where, found.coding)
    return found


def inspect_labels(source: str | Path | LabelSource, legend: Legend, column: str | None = None) -> LabelSource:
    """What a file holds: its kind, layer, column and coding. Cached by path, time of change, legend and column.

    Raises
    ------
    LabelError
        As `check_labels`, but without a look at the area.
    """
    if isinstance(source, LabelSource):
        return source
    path, _, layer = str(source).partition("|layername=")
    file = Path(path)
    if not file.exists():
        raise LabelError(f"no labels at {path}: there is no such file")
    return _inspect(path, layer or None, column, legend, file.stat().st_mtime_ns)


def raster_values(source: LabelSource, bounds: Bounds | None = None) -> NDArray[np.integer]:
    """The distinct values, without nodata, of a raster or of its part within ``bounds``; of a large one, a sample."""
    try:
        with rasterio.open(source.path) as src:
            height, width = src.shape
            part = Window(0, 0, width, height) if bounds is None else from_bounds(*bounds, transform=src.transform)
            columns = np.clip([np.floor(part.col_off), np.ceil(part.col_off + part.width)], 0, width).astype(int)
            rows = np.clip([np.floor(part.row_off), np.ceil(part.row_off + part.height)], 0, height).astype(int)
            blocks = [src.read(1, window=one) for one in _sample_windows(rows.tolist(), columns.tolist())]
            nodata = src.nodata
    except RasterioIOError as problem:
        raise LabelError(f"{source.path}: cannot be read: {problem}") from None
    if not blocks:
        return np.array([], np.int64)
    values = np.unique(np.concatenate([np.unique(block) for block in blocks]))
    values = as_integers(values, nodata, source.path)
    return np.unique(values[values != NODATA_CODE])


@lru_cache(maxsize=64)
def _inspect(path: str, layer: str | None, column: str | None, legend: Legend, _changed: int) -> LabelSource:
    suffix = Path(path).suffix.lower()
    if suffix in RASTER_SUFFIXES:
        return _inspect_raster(path, column, legend)
    if suffix in VECTOR_SUFFIXES or suffix in PARQUET_SUFFIXES:
        return _inspect_vector(path, layer, column)
    kinds = ", ".join((*VECTOR_SUFFIXES, *PARQUET_SUFFIXES, *RASTER_SUFFIXES))
    raise LabelError(f"{path}: not a kind of file that labels are read from: {kinds}")


def _inspect_raster(path: str, column: str | None, legend: Legend) -> LabelSource:
    if column is not None and column not in coding_tables(legend):
        raise LabelError(f"{path}: a raster has no columns; column {column!r} may only be one of {', '.join(CODINGS)}")
    try:
        with rasterio.open(path) as src:
            crs, bounds = src.crs, (src.bounds.left, src.bounds.bottom, src.bounds.right, src.bounds.top)
    except RasterioIOError as problem:
        raise LabelError(f"{path}: cannot be read as a raster: {problem}") from None
    if crs is None:
        raise LabelError(
            f"{path}: has no coordinate system; give it one, for example with gdal_edit.py -a_srs EPSG:3035"
        )
    found = LabelSource(path, "raster", crs.to_string(), bounds, coding=column)
    if column is not None:
        return found
    values = raster_values(found).tolist()
    if not values:
        raise LabelError(f"{path}: holds nothing but nodata")
    return LabelSource(path, "raster", found.crs, bounds, coding=tell_coding(values, legend, path, CODINGS))


def _inspect_vector(path: str, layer: str | None, column: str | None) -> LabelSource:
    which = f"no column {column!r}" if column else "no column with a name such as Code_18, CLC_CODE or code"
    hint = "Name the one with the classes, as column: NAME"
    found = find_layer(path, layer, lambda fields: find_columns(fields, column), which, hint)
    name = _only(list(found.columns), path)
    kind = "vector" if found.name is not None else "parquet"
    return LabelSource(path, kind, found.crs, found.bounds, found.name, name, _coding_by_name(name))


def find_columns(fields: Iterable[str], column: str | None) -> list[str]:
    """The columns that may hold the class: the named one (case does not matter), else those of a known name."""
    if column is not None:
        exact = [f for f in fields if f == column]
        return exact or [f for f in fields if f.casefold() == column.casefold()]
    return [f for f in fields if _CODE_COLUMN.fullmatch(f.casefold().replace("_", ""))]


def _only(columns: list[str], path: str) -> str:
    if len(columns) > 1:
        raise LabelError(
            f"{path}: columns {listed(columns)} may all hold the classes; name one, as column: {columns[-1]}"
        )
    return columns[0]


def _coding_by_name(column: str) -> str | None:
    return "grid_code" if column.casefold().replace("_", "").startswith("gridcode") else None


def _column_values(source: LabelSource, bounds: Bounds) -> NDArray[np.str_]:
    """The column within ``bounds`` as text, without geometries where the format allows it."""
    columns = [source.column or ""]
    return as_text(read_features(source.path, source.layer, columns, bounds, geometry=False)[2][0])


def _sample_windows(rows: list[int], columns: list[int]) -> list[Window]:
    """The whole of these rows and columns where that is cheap, else small windows spread evenly over them."""
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    if height <= 0 or width <= 0:
        return []
    if height * width <= _WHOLE_READ_PX:
        return [Window(columns[0], rows[0], width, height)]
    side = int(_SAMPLE_WINDOWS**0.5)
    firsts = np.linspace(columns[0], max(columns[0], columns[1] - _SAMPLE_PX), side).astype(int).tolist()
    tops = np.linspace(rows[0], max(rows[0], rows[1] - _SAMPLE_PX), side).astype(int).tolist()
    w, h = min(width, _SAMPLE_PX), min(height, _SAMPLE_PX)
    return [Window(first, top, w, h) for top in tops for first in firsts]


def _rounded(bounds: Bounds) -> tuple[float, ...]:
    return tuple(round(v, 2) for v in bounds)


def _crs_name(crs: str) -> str:
    return str(CRS(crs).name)
