"""The work on a finished change map: its patches as polygons, from what to what in hectares, and how many it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.jobs.tasks import Done
from geoflow.jobs.work import ChangeLayer
from geoflow.places import local_copy, local_folder, write_bytes

if TYPE_CHECKING:
    import geopandas
    import numpy as np
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoflow.legends import Legend
    from geoflow.mapping.changepatches import Pieces
    from geoflow.mapping.patchaccuracy import Compared

BATCH = 2000
"""Polygons in memory at a time."""


@dataclass(frozen=True)
class PatchesWork:
    """A change map to polygons and a table of transitions.

    One task reads all tiles, one after the other: a patch may lie in many. ``facts`` are columns with one value for all
    patches: the epochs, and the dates of their scenes.
    """

    store: Path
    group: str
    tiles: tuple[str, ...]
    legend: Legend
    facts: Mapping[str, str]
    zones: Path | None
    zone_column: str | None
    folder: Path
    name: str

    def __call__(self) -> Done:
        from geoflow.mapping.patchfile import write_polygons

        counted = {"patches": 0}
        with local_folder(self.folder) as folder:
            files = write_polygons(self._frames(counted), folder, self.name, "change")
            table = self._transitions(folder)
        return Done(counted, tuple(self.folder / file.name for file in (*files, table)))

    def _frames(self, counted: dict[str, int]) -> Iterator[geopandas.GeoDataFrame]:
        from geoflow.mapping.changepatches import as_frame, batches, join
        from geoflow.store.zarr import open_for_writing

        crs = open_for_writing(self.store).grid.geobox.crs
        for patches in batches(join(self._pieces()), BATCH):
            frame = as_frame(patches, self.legend, crs)
            counted["patches"] += len(frame)
            for at, (column, value) in enumerate(self.facts.items()):
                frame.insert(1 + at, column, value)
            yield frame

    def _pieces(self) -> Iterator[Pieces]:
        from geoflow.mapping.changepatches import vectorise
        from geoflow.store.zarr import open_for_writing

        store = open_for_writing(self.store)
        change = store.dataset(self.group, dask=False)
        for name in self.tiles:
            tile = store.grid.tile_by_id(name)
            held = change.isel(tile.region)
            arrays: dict[str, Any] = {n: held[n].values for n in ("change", "from_code", "to_code", "confidence")}
            yield vectorise(arrays, tile.y, tile.x, store.grid.geobox)

    def _transitions(self, folder: Path) -> Path:
        """``name-transitions.csv``: hectares by transition, in each zone and in all."""
        import geopandas
        import pandas as pd

        from geoflow.mapping.transitions import transitions
        from geoflow.store.zarr import open_for_writing

        change = open_for_writing(self.store).dataset(self.group)
        tables = [transitions(change, None, self.legend)]
        if self.zones is not None:
            read = geopandas.read_file(local_copy(self.zones))
            tables.append(transitions(change, read, self.legend, self.zone_column))
        target = folder / f"{self.name}-transitions.csv"
        write_bytes(target, pd.concat(tables).round({"ha": 4, "share": 6}).to_csv(index=False).encode())
        return target


@dataclass(frozen=True)
class PatchAccuracyWork:
    """The patches of a change map against those of a truth. One task reads all tiles: a patch may lie in many.

    ``truth`` has the class codes of both epochs, and what differs is the true change; or it is a layer of changes.
    """

    store: Path
    group: str
    tiles: tuple[str, ...]
    legend: Legend
    truth: tuple[Path, Path] | ChangeLayer
    min_px: int

    def __call__(self) -> Done:
        from geoflow.mapping.patchaccuracy import patch_accuracy
        from geoflow.store.zarr import open_for_writing

        geobox = open_for_writing(self.store).grid.geobox
        return Done({"patches": {"min_px": self.min_px, **patch_accuracy(self._compared, geobox, self.min_px)}})

    def _compared(self) -> Iterator[Compared]:
        from geoflow.mapping.patchaccuracy import Compared
        from geoflow.store.zarr import open_for_writing

        store = open_for_writing(self.store)
        mapped = store.dataset(self.group, dask=False)["change"]
        for name in self.tiles:
            tile = store.grid.tile_by_id(name)
            yield Compared(self._true(tile.geobox), mapped.isel(tile.region).values, tile.y, tile.x)

    def _true(self, geobox: GeoBox) -> NDArray[np.uint8]:
        from geoflow.labels import load_labels
        from geoflow.mapping.change import true_change

        if isinstance(self.truth, ChangeLayer):
            return self.truth.on(geobox)
        before, after = (load_labels(local_copy(path), geobox, self.legend).values for path in self.truth)
        return true_change(before, after)
