"""The work of the areas stage: hectares of each class in each zone, tile by tile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import JobError
from geoflow.jobs.tasks import Done
from geoflow.jobs.work import TileWork
from geoflow.places import local_copy

if TYPE_CHECKING:
    import geopandas

    from geoflow.legends import Legend


@dataclass(frozen=True)
class Zones:
    """Polygons by whose names areas are told.

    Parameters
    ----------
    file : Path
    column : str or None
        Column with their names, which must be unique; their number in the file without.
    """

    file: Path
    column: str | None

    def read(self) -> geopandas.GeoDataFrame:
        """The polygons.

        Raises
        ------
        JobError
            If the file cannot be read or has no such column.
        """
        import geopandas

        try:
            read = geopandas.read_file(local_copy(self.file))
        except (OSError, RuntimeError, ValueError) as error:
            raise JobError(f"zones: {self.file} cannot be read: {error}") from None
        if self.column is not None and self.column not in read.columns:
            raise JobError(f"zone_column: {self.file} has no column {self.column!r}; it has {', '.join(read.columns)}")
        return read


@dataclass(frozen=True)
class ZoneAreasWork(TileWork):
    """Hectares of the deepest level's classes in each zone that meets a tile."""

    group: str
    legend: Legend
    zones: Zones

    def __call__(self) -> Done:
        from geoflow.mapping.areas import areas

        store, tile = self.open()
        zones = self.zones.read()
        extent = tile.geobox.extent.to_crs(str(zones.crs), resolution=1000).geom
        near = zones[zones.intersects(extent)]
        if near.empty:
            return Done({"zones": {}})
        name = f"level{self.legend.deepest}"
        codes = store.dataset(self.group)[name].isel(tile.region)
        if not (codes != 0).any():
            return Done({"zones": {}})
        table = areas(codes, near, self.legend, [self.legend.deepest], self.zones.column)
        found: dict[str, dict[str, float]] = {}
        for row in table.itertuples():
            found.setdefault(str(row.zone), {})[str(row.code)] = float(row.ha)  # type: ignore[arg-type]
        return Done({"zones": found})


def zone_areas(receipts: Mapping[str, Mapping[str, Any]], legend: Legend) -> dict[str, dict[str, dict[str, Any]]]:
    """Hectares by epoch, zone, level and code, summed up over all tiles.

    Parameters
    ----------
    receipts : mapping
        Receipts of the areas stage by their key, ``<epoch>/<tile>``.
    legend : Legend
    """
    sums: Counter[tuple[str, str, int, int]] = Counter()
    for key, receipt in receipts.items():
        epoch = key.partition("/")[0]
        for zone, code, level, ha in _by_level(receipt["zones"], legend):
            sums[epoch, zone, level, code] += ha  # type: ignore[assignment]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (epoch, zone, level, code), ha in sorted(sums.items()):
        levels = found.setdefault(epoch, {}).setdefault(zone, {})
        levels.setdefault(f"level{level}", {})[str(code)] = round(ha, 4)
    return found


def _by_level(zones: Mapping[str, Mapping[str, float]], legend: Legend) -> Iterable[tuple[str, int, int, float]]:
    for zone, counted in zones.items():
        for code, ha in counted.items():
            for level in legend.levels:
                yield zone, legend.ancestor(int(code), level), level, ha
