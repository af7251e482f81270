"""The work of the areas stage: hectares of each class in each zone, tile by tile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import GridError, JobError
from geoflow.jobs.tasks import Done
from geoflow.jobs.work import TileWork
from geoflow.places import local_copy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoflow.legends import Legend

M2_PER_HA = 1e4


@dataclass(frozen=True)
class Zones:
    """Polygons by whose names areas are told.

    Parameters
    ----------
    section : str
        Of the job that names them, for messages.
    file : Path
    column : str or None
        Column with their names, which must be unique; their number in the file without.
    """

    section: str
    file: Path
    column: str | None

    def on(self, geobox: GeoBox) -> tuple[list[Any], NDArray[Any]]:
        """Names and polygons, in the CRS of a grid, of the zones that meet it.

        Raises
        ------
        JobError
            If the file cannot be read, has no such column or CRS, names repeat, or no zone meets the grid.
        """
        import geopandas

        from geoflow.mapping.areas import zones_on

        try:
            frame = geopandas.read_file(local_copy(self.file))
        except Exception as error:  # drivers raise many kinds; each means that there are no zones
            raise JobError(f"{self.section}.zones: {self.file} cannot be read: {error}") from error
        columns = [str(name) for name in frame.columns if name != "geometry"]
        if self.column is not None and self.column not in columns:
            raise JobError(
                f"{self.section}.zone_column: {self.file} has no column {self.column!r}; it has {', '.join(columns)}"
            )
        try:
            return zones_on(frame, self.column, geobox)
        except GridError as error:
            raise JobError(f"{self.section}.zones: {self.file}: {error}") from None


@dataclass(frozen=True)
class ZoneAreasWork(TileWork):
    """Hectares of the deepest level's classes in each zone that meets a tile."""

    group: str
    legend: Legend
    zones: Zones

    def __call__(self) -> Done:
        from geoflow.mapping.areas import geobox_of, north_up, tally_blocks

        store, tile = self.open()
        # Zones of the whole grid: one that only touches this tile has no area in it, which is no mistake.
        names, shapes = self.zones.on(store.grid.geobox)
        level = self.legend.deepest
        codes = north_up(store.dataset(self.group)[f"level{level}"].isel(tile.region))
        # A task never asks the cluster that it runs on. Named here: what is set is the process's, not the thread's.
        tally = tally_blocks({level: codes}, shapes, geobox_of(codes), "synchronous")
        found: dict[str, dict[str, float]] = {}
        for (zone, _, code), m2 in sorted(tally.items()):
            found.setdefault(str(names[zone]), {})[str(code)] = m2 / M2_PER_HA
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
