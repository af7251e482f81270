"""Class polygons and class rasters onto a GeoBox, exact to the pixel.

A pixel takes the class that its centre lies in. Tiles read and rasterised one by one give the same pixels as the whole
country at once: polygons are never clipped, and what lies where is decided in whole numbers (`labels/scanline.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr
from pyproj import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.vrt import WarpedVRT

from geoflow.errors import LabelError
from geoflow.labels.borders import CAP_M, border_distance, halo_px
from geoflow.labels.coding import as_integers, raster_codes, value_codes
from geoflow.labels.features import read_features
from geoflow.labels.scanline import Outlines, fill, outlines
from geoflow.labels.source import LabelSource, inspect_labels, transformer, wkt_of
from geoflow.legends import NODATA_CODE, Legend, listed
from geoflow.legends import legend as find_legend

# Sampling a raster, a pixel centre may lie exactly between two source pixels, where rounding would decide by the tile
# that asks: all centres move a hair to the south-east. GDAL interpolates coordinates along a row, with far less error.
_NUDGE_PX, _TOLERANCE_PX = 1e-4, 1e-6
_POLYGONS = (3, 6)  # shapely's type ids of Polygon and MultiPolygon
# A straight line of one CRS is a curve in another. Pieces of this length leave it by centimetres at most.
_PIECE_M, _PIECE_DEGREES = 1000.0, 0.01


@dataclass(frozen=True)
class LabelTile:
    """Labels of one tile, with what a reader must know to trust them.

    Attributes
    ----------
    codes : array of ``legend.dtype(legend.deepest)``, dims (y, x)
        0 is nodata.
    border_m : int16 array, dims (y, x)
        Metres from the pixel's centre to the nearest class border, at most ``cap_m``; see `geoflow.labels.borders`.
    overlap_px : int
        Pixels that several polygons claim. The smallest of these has each.
    """

    codes: NDArray[np.unsignedinteger[Any]]
    border_m: NDArray[np.int16]
    overlap_px: int


def load_labels(
    source: str | Path | LabelSource, geobox: GeoBox, legend: Legend | str | Path, column: str | None = None
) -> xr.DataArray:
    """Labels on a GeoBox, from a vector or raster file, as codes of the legend's deepest level.

    Parameters
    ----------
    source : path or LabelSource
        GeoPackage, shapefile, file geodatabase, FlatGeobuf, GeoJSON or GeoParquet with polygons
        (``file|layername=NAME`` picks a layer), or a raster of class codes or GRID_CODEs; any CRS. Only what
        lies near the GeoBox is read.
    geobox : GeoBox
        North up and not rotated.
    legend : Legend, or a name or path for `geoflow.legends.legend`
    column : str, optional
        The column with the class (code or name); found by name where there is one of a known name. For a raster,
        ``"code"``, ``"clc_code"`` or ``"grid_code"`` says what its values are where they could be either.

    Returns
    -------
    DataArray, dims (y, x), ``legend.dtype(legend.deepest)``, nodata 0
        A pixel has the class of the polygon, or source pixel, that holds its centre; gaps are 0. Where polygons
        overlap, the smaller one wins (area in the source's CRS); of two equally large, the later feature.

    Raises
    ------
    LabelError
        If the source cannot be read or understood, or a value met is not in the legend.
    """
    legend = find_legend(legend) if isinstance(legend, str | Path) else legend
    codes, _ = _rasterised(source, geobox, legend, column)
    labels = wrap_xr(codes, geobox, nodata=NODATA_CODE)
    labels.name = "labels"
    return labels.assign_attrs(legend.flags(legend.deepest))


def load_label_tile(
    source: str | Path | LabelSource, geobox: GeoBox, legend: Legend, column: str | None = None, cap_m: int = CAP_M
) -> LabelTile:
    """As `load_labels`, with the distance to the nearest class border and a count of contested pixels.

    The source is read with a margin as wide as ``cap_m``, so that the distances are those of the whole country whatever
    the tile. Square pixels in metres are taken for granted.

    Raises
    ------
    LabelError
        See `load_labels`.
    """
    resolution_m = float(geobox.transform.a)
    margin = halo_px(resolution_m, cap_m)
    codes, claims = _rasterised(source, geobox.pad(margin), legend, column)
    inner = np.s_[margin:-margin, margin:-margin]
    border_m = border_distance(codes, resolution_m, cap_m, margin)
    contested = 0 if claims is None else int(np.count_nonzero(claims[inner] > 1))
    return LabelTile(np.ascontiguousarray(codes[inner]), border_m, contested)


def _rasterised(
    source: str | Path | LabelSource, geobox: GeoBox, legend: Legend, column: str | None
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.uint8] | None]:
    """Codes, and for polygons how many of them claim each pixel."""
    if not geobox.axis_aligned:
        raise LabelError("labels are put on north-up grids only, and this GeoBox is rotated")
    found = inspect_labels(source, legend, column)
    if found.kind == "raster":
        return _from_raster(found, geobox, legend), None
    return _from_vector(found, geobox, legend)


def _from_vector(
    source: LabelSource, geobox: GeoBox, legend: Legend
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.uint8]]:
    columns = [source.column or ""]
    fids, shapes, (values,) = read_features(source.path, source.layer, columns, source.bounds_of(geobox))
    kept = np.array([shape is not None and not shape.is_empty for shape in shapes], bool)
    fids, shapes, values = fids[kept], valid_polygons(shapes[kept], source.path), values[kept]
    codes = value_codes(values, legend, source.where, source.coding)
    order = drawing_order(fids, shapes)
    return fill(on_grid(shapes[order], source.crs, geobox, source.path), codes[order], (geobox.shape.y, geobox.shape.x))


def drawing_order(fids: NDArray[np.integer[Any]], shapes: NDArray[np.object_]) -> NDArray[np.intp]:
    """In which order polygons are drawn: the largest first, of equals the earlier one, so that the smaller one wins."""
    import shapely

    return np.lexsort((fids, -shapely.area(shapes)))


def valid_polygons(shapes: NDArray[np.object_], where: str) -> NDArray[np.object_]:
    """Valid polygons; what is left of a repaired one beside its areas (lines, points) is dropped, be it all of it."""
    import shapely

    if not (polygons := np.isin(shapely.get_type_id(shapes), _POLYGONS)).all():
        kinds = listed(sorted({shape.geom_type for shape in shapes[~polygons]}))
        raise LabelError(
            f"{where}: {int((~polygons).sum())} features near the tile are lines or points or hold some ({kinds}), and "
            "labels are polygons; name another layer, or explode collections and keep the polygons alone"
        )
    if shapely.has_z(shapes).any():
        shapes = shapely.force_2d(shapes)
    invalid = ~shapely.is_valid(shapes)
    for i in np.flatnonzero(invalid):
        parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shapes[i])))
        shapes[i] = shapely.MultiPolygon([p for p in parts if shapely.get_type_id(p) == _POLYGONS[0]])
    return shapes


def on_grid(shapes: NDArray[np.object_], crs: str, geobox: GeoBox, where: str) -> Outlines:
    """Polygons in ``crs`` on the pixels of a GeoBox; see `geoflow.labels.scanline.outlines`."""

    if CRS(crs).equals(CRS(wkt_of(geobox)), ignore_axis_order=True):
        return outlines(shapes, geobox.transform, None, where)
    move = transformer(crs, wkt_of(geobox))
    piece = _PIECE_DEGREES if CRS(crs).is_geographic else _PIECE_M
    return outlines(_in_pieces(shapes, piece), geobox.transform, move.transform, where)


def _in_pieces(shapes: NDArray[np.object_], longest: float) -> NDArray[np.object_]:
    """The same polygons with vertices added to edges that are longer than ``longest``."""
    import shapely

    points, owner = shapely.get_coordinates(shapes, return_index=True)
    # The step from one ring to the next counts as an edge here: a polygon too many does no harm.
    far = (np.abs(np.diff(points, axis=0)) > longest / 2**0.5).any(axis=1) & (owner[1:] == owner[:-1])
    some = np.unique(owner[1:][far])
    shapes = shapes.copy()
    shapes[some] = shapely.segmentize(shapes[some], longest)
    return shapes


def _from_raster(source: LabelSource, geobox: GeoBox, legend: Legend) -> NDArray[np.unsignedinteger]:
    height, width = geobox.shape.y, geobox.shape.x
    a, b, c, d, e, f = geobox.transform[:6]
    try:
        with (
            rasterio.open(source.path) as src,
            WarpedVRT(
                src,
                crs=wkt_of(geobox),
                transform=Affine(a, b, c + a * _NUDGE_PX, d, e, f + e * _NUDGE_PX),
                width=width,
                height=height,
                resampling=Resampling.nearest,
                tolerance=_TOLERANCE_PX,
            ) as vrt,
        ):
            values, nodata = vrt.read(1), src.nodata
    except RasterioIOError as problem:
        raise LabelError(f"{source.path}: cannot be read: {problem}") from None
    return raster_codes(as_integers(values, nodata, source.path), legend, source.where, source.coding or "code")
