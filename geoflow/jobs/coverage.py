"""How often the scenes of a job see its area: counted on a coarse raster, as a table, a map and a file of footprints.

Scenes of one pass of a satellite overlap where two of its tiles meet; there they show the same ground at the same
moment, and count once. Clouds are not counted here: this is what there could be to see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from geoflow.jobs.scenes import Scenes
from geoflow.places import local_file

if TYPE_CHECKING:
    import geopandas as gpd

FOOTPRINTS, PICTURE = "footprints.parquet", "coverage.png"
"""Files in ``OUT/scenes``."""

MAX_PX = 800
"""Cells along the longer side of the raster that is counted on."""

_EDGE_DEG = 0.1  # sides of footprints get a corner this often before they are projected: they are straight in degrees


@dataclass(frozen=True)
class Coverage:
    """How often one period sees the area.

    Attributes
    ----------
    epoch, period : str
    scenes, passes : int
        Scenes that are used; passes of a satellite that they belong to.
    counts : uint16 array, dims (y, x)
        Passes that see each cell, north up.
    inside : bool array, dims (y, x)
        Cells of the area.
    geobox : GeoBox
        Of both.
    """

    epoch: str
    period: str
    scenes: int
    passes: int
    counts: NDArray[np.uint16]
    inside: NDArray[np.bool_]
    geobox: GeoBox

    @property
    def shares(self) -> dict[int, float]:
        """Number of passes -> share of the area (0..1) that so many see; from 0 to the largest number that occurs."""
        tally = np.bincount(self.counts[self.inside])
        return {count: float(cells / tally.sum()) for count, cells in enumerate(tally)}

    @property
    def least(self) -> int:
        """The smallest number of passes anywhere in the area."""
        return int(self.counts[self.inside].min())

    @property
    def median(self) -> float:
        """The median number of passes over the area."""
        return float(np.median(self.counts[self.inside]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the summary: shares are 0..1."""
        return {
            "scenes": self.scenes,
            "passes": self.passes,
            "least": self.least,
            "median": self.median,
            "shares": {str(count): round(share, 6) for count, share in self.shares.items() if share > 0},
        }


def coverage(epochs: Mapping[str, Scenes], area: Geometry, crs: str) -> list[Coverage]:
    """Count the scenes of every epoch and period over the area.

    Parameters
    ----------
    epochs : mapping of epoch to Scenes
    area : Geometry
        In any CRS.
    crs : str
        The job's grid; cells are square in it, at most `MAX_PX` along a side.
    """
    from rasterio.features import geometry_mask

    border = area.to_crs(crs, resolution=math.inf)
    geobox = _coarse(border)
    outline = [border.geom]
    inside = geometry_mask(outline, geobox.shape, geobox.transform, invert=True)
    if not inside.any():  # an area of slivers between the centres of all cells
        inside = geometry_mask(outline, geobox.shape, geobox.transform, invert=True, all_touched=True)
    return [_count(scenes, period, geobox, inside) for scenes in epochs.values() for period in scenes.periods]


def _coarse(border: Geometry) -> GeoBox:
    box = border.boundingbox
    cell = max(box.span_x, box.span_y) / MAX_PX
    return GeoBox.from_bbox(box, resolution=cell, tight=True)


def _count(scenes: Scenes, period: str, geobox: GeoBox, inside: NDArray[np.bool_]) -> Coverage:
    from rasterio.features import geometry_mask

    from geoflow.imagery.items import footprint, granule_of

    used = scenes.within(period)
    passes: dict[str, list[Any]] = {}
    for item in used:
        passes.setdefault(granule_of(item)[0], []).append(footprint(item).geom)
    counts = np.zeros(geobox.shape, np.uint16)
    for shapes in passes.values():
        seen = Geometry(shapely.union_all(shapes), "EPSG:4326").to_crs(str(geobox.crs), resolution=_EDGE_DEG)
        counts += geometry_mask([seen.geom], geobox.shape, geobox.transform, invert=True)
    return Coverage(scenes.epoch, period, len(used), len(passes), counts, inside, geobox)


def coverage_table(found: list[Coverage]) -> dict[str, dict[str, Any]]:
    """Epoch -> period -> figures, as in ``summary.json``."""
    table: dict[str, dict[str, Any]] = {}
    for one in found:
        table.setdefault(one.epoch, {})[one.period] = one.to_dict()
    return table


def write_footprints(epochs: Mapping[str, Scenes], path: Path) -> None:
    """Write every scene that was considered as a polygon with its facts: GeoParquet in EPSG:4326.

    Columns: ``epoch``, ``period``, ``id``, ``used``, ``reason`` and ``filter`` (why not), ``date``, ``tile``,
    ``orbit``, ``cloud``, ``baseline``, ``offset_add``, ``offset_rule``. The file is either the old one or the whole
    new one.
    """
    frame = footprints(epochs)
    with local_file(path) as file:
        frame.to_parquet(file, index=False)


def footprints(epochs: Mapping[str, Scenes]) -> gpd.GeoDataFrame:
    """The table that `write_footprints` writes; a scene that has no usable place has no geometry."""
    import geopandas as gpd
    import pandas as pd

    rows = [row for scenes in epochs.values() for row in _rows(scenes)]
    frame = gpd.GeoDataFrame(rows, geometry="geometry", crs="EPSG:4326")
    whole = {"orbit": "Int64", "offset_add": "Int64", "cloud": "float64"}
    frame = frame.astype(whole)
    for name in ("reason", "filter", "date", "tile", "baseline", "offset_rule"):
        frame[name] = pd.array(frame[name], dtype="string")
    return frame


def _rows(scenes: Scenes) -> Iterator[dict[str, Any]]:
    from geoflow.imagery.items import footprint
    from geoflow.imagery.lonlat import shape_of

    ledger = scenes.ledger()
    for item, facts in zip(scenes.items, ledger["used"], strict=True):
        yield _row(scenes.epoch, {**facts, "period": ", ".join(facts["periods"])}, True, footprint(item).geom)
    for refused in scenes.refused:
        shape = shape_of(refused.get("geometry"), None) if refused.get("geometry") else None
        yield _row(scenes.epoch, refused, False, shape)


def _row(epoch: str, facts: Mapping[str, Any], used: bool, shape: Any) -> dict[str, Any]:
    names = ("reason", "filter", "date", "tile", "orbit", "cloud", "baseline", "offset_add", "offset_rule")
    head = {"epoch": epoch, "period": facts["period"], "id": facts["id"], "used": used}
    return {**head, **{name: facts.get(name) for name in names}, "geometry": shape}
