"""What all arrays of a store have alike: their codec, and attributes that say CRS, place and overviews to any reader.

The GeoZarr conventions ``spatial:``, ``proj:`` and ``multiscales`` (https://github.com/zarr-conventions), beside CF's
``grid_mapping``. A convention is named by its UUID alone: the addresses of its text change with each of its versions,
while what is used of it here has not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from odc.geo.crs import CRS
from zarr.codecs import ZstdCodec

from geoflow.grid import Grid

COMPRESSOR = ZstdCodec(level=1, checksum=True)
"""Codec of every array. The checksum in each frame finds flipped bits on reading; GDAL has no crc32c codec."""

SPATIAL = {"uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "description": "Spatial coordinate information"}
PROJ = {
    "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "description": "Coordinate reference system information for geospatial data",
}
MULTISCALES = {
    "uuid": "d35379db-88df-4056-af3a-620245f8e347",
    "name": "multiscales",
    "description": "Multiscale layout of zarr datasets",
}


def place_attributes(grid: Grid) -> dict[str, Any]:
    """CRS, extent and transform of a group or array on a grid, dims ``y, x`` last."""
    crs = CRS(str(grid.geobox.crs))
    reference = {"proj:wkt2": crs.wkt} if crs.epsg is None else {"proj:code": f"EPSG:{crs.epsg}"}
    return {
        "zarr_conventions": [SPATIAL, PROJ],
        **reference,
        "spatial:dimensions": ["y", "x"],
        "spatial:bbox": list(grid.geobox.boundingbox.bbox),
        **_position(grid),
    }


def multiscale_attributes(grid: Grid, kinds: Iterable[str], path: Mapping[int, str]) -> dict[str, Any]:
    """The store's root: where each kind of layer lies at each resolution.

    Parameters
    ----------
    grid : Grid
        At full resolution.
    kinds : iterable of str
        Groups at the root that have overviews: ``imagery``, ``map``...
    path : mapping of factor -> path
        The group that holds the overviews of a factor.

    Returns
    -------
    dict
        ``multiscales`` lists, for every kind, its group at full resolution and each overview of it, with the group that
        this is made from. A variable has one path below all groups of its kind: ``2018/level3`` below ``map``,
        ``overviews/2/map`` and so on.
    """
    layout = []
    for kind in kinds:
        layout.append({"asset": kind, "transform": {"scale": [1.0, 1.0], "translation": [0.0, 0.0]}, **_position(grid)})
        below = kind
        for factor in sorted(path):
            asset = f"{path[factor]}/{kind}"
            step = {"scale": [2.0, 2.0], "translation": [0.0, 0.0]}
            layout.append({"asset": asset, "derived_from": below, "transform": step, **_position(grid.coarser(factor))})
            below = asset
    attributes = place_attributes(grid)
    return {
        **attributes,
        "zarr_conventions": [*attributes["zarr_conventions"], MULTISCALES],
        "multiscales": {"layout": layout, "resampling_method": "mode of classes, average of measures"},
    }


def _position(grid: Grid) -> dict[str, Any]:
    t = grid.geobox.transform
    return {"spatial:shape": list(grid.shape), "spatial:transform": [t.a, t.b, t.c, t.d, t.e, t.f]}
