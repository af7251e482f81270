"""The area of a job as one geometry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odc.geo.geom import Geometry, box

from geoflow.errors import JobError
from geoflow.jobs.spec import Area
from geoflow.places import local_copy

if TYPE_CHECKING:
    from geopandas import GeoSeries


def read_area(section: Area) -> Geometry:
    """The union of all features that the section names, in the CRS of the file (EPSG:4326 for GeoJSON and a bbox).

    In degrees, an area that crosses the 180th meridian has parts on both sides of it.

    Raises
    ------
    JobError
        If it cannot be read, has no CRS, or holds no polygon (after ``where``).
    """
    if section.bbox is not None:
        return _box(*section.bbox)
    if section.geojson is not None:
        return _from_geojson(section.geojson)
    import geopandas as gpd

    try:
        file = None if section.file is None else local_copy(section.file)
        frame = gpd.read_file(file, layer=section.layer, where=section.where)
    except Exception as error:  # drivers raise many kinds; each means that there is no area
        raise JobError(f"area.file: {section.file} cannot be read: {error}") from error
    if frame.crs is None:
        raise JobError(f"area.file: {section.file} has no CRS; save it with one")
    if frame.empty:
        chosen = f" where {section.where}" if section.where else ""
        raise JobError(f"area.file: {section.file} has no features{chosen}")
    return _union(frame.geometry, str(frame.crs), f"area.file: {section.file}")


def _box(west: float, south: float, east: float, north: float) -> Geometry:
    if west < east:
        return box(west, south, east, north, "EPSG:4326")
    return box(west, south, 180, north, "EPSG:4326") | box(-180, south, east, north, "EPSG:4326")


def _from_geojson(source: Mapping[str, Any] | Path) -> Geometry:
    import geopandas as gpd
    import shapely

    key = "area.geojson"
    if not isinstance(source, Mapping):
        key = f"area.geojson: {source}"
        try:
            source = json.loads(source.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(f"{key} cannot be read: {error}") from None
    try:
        whole = shapely.from_geojson(json.dumps(source))
    except (shapely.GEOSException, TypeError) as error:
        said = " ".join(str(error).split())
        raise JobError(f"{key}: not a GeoJSON geometry, feature or collection: {said}") from None
    return _union(gpd.GeoSeries([whole], crs="EPSG:4326"), "EPSG:4326", key)


def _union(shapes: GeoSeries, crs: str, key: str) -> Geometry:
    """All polygons as one; ``key`` starts the message where there are none."""
    from geoflow.imagery.lonlat import split_at_antimeridian

    shapes = shapes.dropna()
    shapes = shapes[~shapes.is_empty]
    if shapes.empty:
        raise JobError(f"{key} has no features")
    if shapes.crs.is_geographic:
        shapes = shapes.map(split_at_antimeridian)
    union = shapes.make_valid().union_all()
    if union.area == 0:
        raise JobError(f"{key} holds no polygons, only {', '.join(sorted(set(shapes.geom_type)))}")
    return Geometry(union, crs)
