"""Class polygons and class rasters onto a GeoBox, exact to the pixel.

A pixel takes the class that its centre lies in. Tiles read and rasterised one by one give the same pixels as the whole
country at once: polygons are never clipped, and their vertices are rounded to 1/1024 of a pixel in pixel coordinates,
so that an edge through a pixel centre is decided alike whichever tile asks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
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
from geoflow.labels.coding import as_integers, raster_codes, value_codes
from geoflow.labels.features import read_features
from geoflow.labels.source import LabelSource, inspect_labels, transformer, wkt_of
from geoflow.legends import NODATA_CODE, Legend
from geoflow.legends import legend as find_legend

_SNAP = 1024.0
# Sampling a raster, a pixel centre may lie exactly between two source pixels, where rounding would decide by the tile
# that asks: all centres move a hair to the south-east. GDAL interpolates coordinates along a row, with far less error.
_NUDGE_PX, _TOLERANCE_PX = 1e-4, 1e-6
_POLYGONS = (3, 6)  # shapely's type ids of Polygon and MultiPolygon


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
    if not geobox.axis_aligned:
        raise LabelError("labels are put on north-up grids only, and this GeoBox is rotated")
    found = inspect_labels(source, legend, column)
    codes = _from_raster(found, geobox, legend) if found.kind == "raster" else _from_vector(found, geobox, legend)
    labels = wrap_xr(codes, geobox, nodata=NODATA_CODE)
    labels.name = "labels"
    return labels.assign_attrs(legend.flags(legend.deepest))


def burn(
    polygons: NDArray[np.object_], codes: NDArray[np.unsignedinteger], shape: tuple[int, int]
) -> NDArray[np.unsignedinteger]:
    """Polygons in pixel coordinates onto an array; later ones win.

    Parameters
    ----------
    polygons : array of shapely polygons
        x is the column, y the row; (0.5, 0.5) is the centre of the first pixel.
    codes : unsigned array, one a polygon
    shape : (height, width)

    Returns
    -------
    array of the dtype of ``codes``, dims (y, x); 0 where no polygon holds the pixel centre
    """
    if not len(polygons):
        return np.full(shape, NODATA_CODE, codes.dtype)
    pairs = zip(polygons.tolist(), codes.tolist(), strict=True)
    return rasterio.features.rasterize(pairs, out_shape=shape, fill=NODATA_CODE, dtype=codes.dtype, all_touched=False)


def _from_vector(source: LabelSource, geobox: GeoBox, legend: Legend) -> NDArray[np.unsignedinteger]:
    import shapely

    fids, shapes, values = read_features(source.path, source.layer, source.column or "", source.bounds_of(geobox))
    kept = np.array([shape is not None and not shape.is_empty for shape in shapes], bool)
    fids, shapes, values = fids[kept], _polygons(shapes[kept], source), values[kept]
    codes = value_codes(values, legend, source.where, source.coding)
    order = np.lexsort((fids, -shapely.area(shapes)))
    return burn(_to_pixels(shapes[order], source, geobox), codes[order], (geobox.shape.y, geobox.shape.x))


def _polygons(shapes: NDArray[np.object_], source: LabelSource) -> NDArray[np.object_]:
    """Valid polygons; what is left of a repaired one beside its areas (lines, points) is dropped."""
    import shapely

    if not np.isin(shapely.get_type_id(shapes), _POLYGONS).all():
        raise LabelError(f"{source.path}: holds lines or points where polygons are needed")
    shapes = shapely.force_2d(shapes)
    invalid = ~shapely.is_valid(shapes)
    for i in np.flatnonzero(invalid):
        parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shapes[i])))
        shapes[i] = shapely.multipolygons([p for p in parts if shapely.get_type_id(p) == _POLYGONS[0]])
    return shapes


def _to_pixels(shapes: NDArray[np.object_], source: LabelSource, geobox: GeoBox) -> NDArray[np.object_]:
    """Geometries of the source in pixel coordinates of the GeoBox, rounded to 1/1024 of a pixel."""
    import shapely

    affine, target = geobox.transform, CRS(wkt_of(geobox))
    same = CRS(source.crs).equals(target, ignore_axis_order=True)
    move = None if same else transformer(source.crs, wkt_of(geobox))

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points.T if move is None else move.transform(points[:, 0], points[:, 1])
        pixels = np.stack([(x - affine.c) / affine.a, (y - affine.f) / affine.e], axis=1)
        if not np.isfinite(pixels).all():
            raise LabelError(
                f"{source.path}: a polygon reaches where {target.name} has no coordinates; clip it to the area"
            )
        return np.round(pixels * _SNAP) / _SNAP

    return shapely.transform(shapes, place) if len(shapes) else shapes


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
