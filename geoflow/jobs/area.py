"""The area of a job as one geometry."""

from __future__ import annotations

from odc.geo.geom import Geometry, box

from geoflow.errors import JobError
from geoflow.jobs.spec import Area


def read_area(section: Area) -> Geometry:
    """The union of all features that the section names, in the CRS of the file (EPSG:4326 for a bbox).

    Raises
    ------
    JobError
        If the file cannot be read, has no CRS, or nothing is left after ``where``.
    """
    if section.bbox is not None:
        return box(*section.bbox, crs="EPSG:4326")
    import geopandas as gpd

    try:
        frame = gpd.read_file(section.file, layer=section.layer, where=section.where)
    except Exception as error:  # drivers raise many kinds; each means that there is no area
        raise JobError(f"area.file: {section.file} cannot be read: {error}") from error
    if frame.crs is None:
        raise JobError(f"area.file: {section.file} has no CRS; save it with one")
    shapes = frame.geometry.dropna()
    shapes = shapes[~shapes.is_empty]
    if shapes.empty:
        chosen = f" where {section.where}" if section.where else ""
        raise JobError(f"area.file: {section.file} has no features{chosen}")
    union = shapes.make_valid().union_all()
    if union.area == 0:
        raise JobError(f"area.file: {section.file} holds no polygons, only {set(shapes.geom_type)}")
    return Geometry(union, str(frame.crs))
