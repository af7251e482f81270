"""GeoPackages with the same bytes every time, and the change patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from shapely.geometry import Polygon, shape

from geoflow.sample.geography import CRS
from geoflow.sample.landscape import Codes

FIXED_DATE = "2025-01-01T00:00:00.000Z"


@contextmanager
def _fixed_date() -> Iterator[None]:
    """GDAL writes this date, not today's, into a GeoPackage."""
    import pyogrio

    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": FIXED_DATE})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})


def write_layer(path: Path, layer: str, geometries: list[Any], columns: dict[str, list[Any]], kind: str) -> None:
    """Write one layer in EPSG:3035; ``kind`` is the geometry type, for example ``Polygon``."""
    import geopandas

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    frame = geopandas.GeoDataFrame(columns, geometry=geometries, crs=CRS)
    with _fixed_date():
        frame.to_file(path, layer=layer, driver="GPKG", engine="pyogrio", geometry_type=kind)


def kind_of_change(before: int, after: int) -> str:
    """What happened, in words, from the codes of both epochs."""
    if after == 334:
        return "burnt"
    if after in (511, 512):
        return "new water"
    if after == 324:
        return "clear-cut"
    if after // 100 == 3 and before == 324:
        return "regrowth"
    if after // 100 == 1:
        return "new built-up"
    return "other"


def change_patches(before: Codes, after: Codes, transform: Affine) -> list[tuple[Polygon, int, int]]:
    """Changed patches of a window as (polygon, code before, code after); touching edges connect."""
    both = (before > 0) & (after > 0) & (before != after)
    key = np.where(both, before.astype(np.int32) * 1000 + after, 0)
    return [
        (shape(g), int(v) // 1000, int(v) % 1000)
        for g, v in rasterio.features.shapes(key, mask=both, transform=transform)
    ]


def join_at_seams(patches: list[tuple[Polygon, int, int]]) -> list[tuple[Polygon, int, int]]:
    """Join patches of equal codes that share an edge, as those cut by the seam of two windows do."""
    groups: dict[tuple[int, int], list[Polygon]] = {}
    for polygon, before, after in patches:
        groups.setdefault((before, after), []).append(polygon)
    out = []
    for (before, after), members in sorted(groups.items()):
        merged = shapely.union_all(members)
        parts = list(getattr(merged, "geoms", [merged]))
        out += [(p, before, after) for p in sorted(parts, key=lambda p: p.bounds)]
    return out
