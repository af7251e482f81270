"""Places on the globe in degrees, also where they cross the antimeridian.

A scene over Fiji or Chukotka reaches from 179 to -179 degrees. Catalogs write its footprint as one ring through both,
or as a bbox from the least to the largest longitude; read literally, either is a belt around the rest of the world.
Here it becomes two polygons, one on each side, as RFC 7946 asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

LONLAT = "EPSG:4326"
_WHOLE_TURN = 359.999  # a side from -180 to 180 is a side of the whole world, and no jump


def to_lonlat(area: Geometry) -> Geometry:
    """A geometry of any CRS in EPSG:4326, split where it crosses the antimeridian."""
    if area.crs is not None and area.crs.geographic:
        return Geometry(split_at_antimeridian(area.to_crs(LONLAT).geom), LONLAT)
    plain = area.to_crs(LONLAT)
    if plain.boundingbox.span_x <= 180:
        return plain
    return area.to_crs(LONLAT, wrapdateline=True)


@lru_cache(maxsize=256)  # asked several times for each tile, by each period and loader
def extent_of(geobox: GeoBox) -> Geometry:
    """Where a grid is, in EPSG:4326, split where it crosses the antimeridian."""
    extent = geobox.geographic_extent
    return extent if extent.boundingbox.span_x <= 180 else geobox.footprint(LONLAT, wrapdateline=True)


def split_at_antimeridian(shape: BaseGeometry) -> BaseGeometry:
    """A shape in degrees whose rings may jump from 179 to -179, as parts within -180..180.

    A ring jumps where two neighbouring corners are more than 180 degrees apart: no scene and no side of a country's
    border is so long.
    """
    if shape.geom_type == "GeometryCollection" or shape.geom_type.startswith("Multi"):
        return shapely.union_all([split_at_antimeridian(part) for part in shape.geoms])
    if shape.geom_type != "Polygon" or shape.is_empty or not any(_jumps(ring) for ring in _rings(shape)):
        return shape
    rings = [_unwrapped(ring) for ring in _rings(shape)]
    whole = shapely.make_valid(shapely.Polygon(rings[0], rings[1:]))
    west, east = shapely.box(-540, -90, -180, 90), shapely.box(180, -90, 540, 90)
    middle = shapely.box(-180, -90, 180, 90)
    parts = [
        translate(whole.intersection(west), 360),
        whole.intersection(middle),
        translate(whole.intersection(east), -360),
    ]
    return shapely.union_all([part for part in parts if not part.is_empty])


def shape_of(geometry: Mapping[str, Any] | None, bbox: Sequence[float] | None) -> BaseGeometry | None:
    """A STAC item's place: its geometry, or its bbox where it has none; None where it has neither.

    Raises
    ------
    ValueError
        If it is there and makes no sense.
    """
    if geometry:
        try:
            shape = shapely.from_geojson(json.dumps(geometry))
        except (shapely.GEOSException, TypeError) as error:
            raise ValueError(f"its geometry is not GeoJSON: {' '.join(str(error).split())}") from None
        if shape.is_empty:
            raise ValueError("its geometry is empty")
        shape = split_at_antimeridian(shapely.force_2d(shape))
        return shape if shape.is_valid else shapely.make_valid(shape)
    if bbox:
        half = len(bbox) // 2  # a bbox may have heights
        if len(bbox) not in (4, 6) or not np.isfinite(np.asarray(bbox, float)).all():
            raise ValueError(f"its bbox is {list(bbox)}")
        return _box(float(bbox[0]), float(bbox[1]), float(bbox[half]), float(bbox[half + 1]))
    return None


def _box(west: float, south: float, east: float, north: float) -> BaseGeometry:
    """A bbox in degrees; from 179 to -179, or taken for the least and the largest longitude, it has two parts."""
    if east - west > 180:
        west, east = east, west
    if west <= east:
        return shapely.box(west, south, east, north)
    return shapely.union(shapely.box(west, south, 180, north), shapely.box(-180, south, east, north))


def _rings(polygon: shapely.Polygon) -> list[np.ndarray]:
    return [np.asarray(ring.coords)[:, :2] for ring in (polygon.exterior, *polygon.interiors)]


def _jumps(ring: np.ndarray) -> bool:
    steps = np.abs(np.diff(ring[:, 0]))
    return bool(((steps > 180) & (steps < _WHOLE_TURN)).any())


def _unwrapped(ring: np.ndarray) -> np.ndarray:
    """The ring with longitudes that go on beyond 180 instead of jumping."""
    steps = np.diff(ring[:, 0])
    turns = np.concatenate([[0.0], np.cumsum(np.where(steps > 180, -360.0, np.where(steps < -180, 360.0, 0.0)))])
    return np.column_stack([ring[:, 0] + turns, ring[:, 1]])
