"""Places that people point at, in whatever form they have them, as polygons with a CRS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import GridError

if TYPE_CHECKING:
    import geopandas

_GEOJSON_CRS = "EPSG:4326"


def frame_of(geometry: Any, crs: Any = None) -> geopandas.GeoDataFrame:
    """Polygons with a CRS.

    Parameters
    ----------
    geometry
        GeoDataFrame or GeoSeries; shapely geometry, with ``crs``; odc-geo ``Geometry``; GeoJSON as a dict (a geometry,
        a Feature or a FeatureCollection; longitude and latitude unless ``crs`` says otherwise); or the path of a file
        that GDAL reads.
    crs : optional
        Of a geometry that does not know its own.

    Raises
    ------
    GridError
        If it is none of these, has no CRS or is empty, or the file cannot be read.
    """
    import geopandas
    import shapely.geometry
    from odc.geo.geom import Geometry

    if isinstance(geometry, geopandas.GeoDataFrame):
        frame = geometry
    elif isinstance(geometry, geopandas.GeoSeries):
        frame = geometry.to_frame("geometry").set_geometry("geometry")
    elif isinstance(geometry, Geometry):
        frame = geopandas.GeoDataFrame(geometry=[geometry.geom], crs=str(geometry.crs) if geometry.crs else crs)
    elif isinstance(geometry, shapely.geometry.base.BaseGeometry):
        frame = geopandas.GeoDataFrame(geometry=[geometry], crs=crs)
    elif isinstance(geometry, Mapping):
        frame = _from_geojson(geometry, crs or _GEOJSON_CRS)
    elif isinstance(geometry, str | Path):
        frame = _read(geometry)
    else:
        raise GridError(
            f"a {type(geometry).__name__} is no geometry: give a GeoDataFrame, a shapely geometry with crs=, "
            "GeoJSON as a dict, or a path"
        )
    if frame.crs is None and crs is not None:
        frame = frame.set_crs(crs)
    if frame.crs is None:
        raise GridError("the geometry has no CRS: say which, e.g. crs='EPSG:4326'")
    if not len(frame):
        raise GridError("the geometry is empty")
    return frame


def _from_geojson(values: Mapping[str, Any], crs: Any) -> geopandas.GeoDataFrame:
    import geopandas
    import shapely.geometry

    features = values.get("features", [values])
    try:
        shapes = [shapely.geometry.shape(f.get("geometry", f)) for f in features]
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError) as problem:
        raise GridError(f"not GeoJSON: {type(problem).__name__}: {problem}") from None
    rows = [dict(f.get("properties") or {}) for f in features]
    return geopandas.GeoDataFrame(rows, geometry=shapes, crs=crs)


def _read(path: str | Path) -> geopandas.GeoDataFrame:
    import geopandas

    from geoflow.places import failures, local_copy, place

    try:
        return geopandas.read_file(local_copy(place(path)))
    except (RuntimeError, ValueError, *failures()) as problem:  # type: ignore[misc]
        raise GridError(f"{path} cannot be read: {problem}") from None
