"""The stages that add overviews to the store: one for each resolution, its tiles made of those of the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from geoflow.grid import Grid
from geoflow.jobs.tasks import Done, Stage, Task
from geoflow.jobs.work import TileWork, written
from geoflow.store.conventions import multiscale_attributes
from geoflow.store.pyramid import OVERVIEWS, factors_of, halve, overview_group, overview_path
from geoflow.store.zarr import open_for_writing

Ids = Mapping[str, Mapping[str, str]]
"""group -> tile -> id of the task that makes it"""


@dataclass(frozen=True)
class Overviews:
    """The overviews of a store, as stages of a job.

    Parameters
    ----------
    store : Path
    grid : Grid
        At full resolution.
    layers : callable
        Gives `Ids` at full resolution. Called late: ids may depend on the results of the stages before.
    task : callable
        Makes a task of stage, key, the parts of its id, and its work.
    """

    store: Path
    grid: Grid
    layers: Callable[[], Ids]
    task: Callable[[str, str, list[Any], Any], Task]

    def stages(self) -> list[Stage]:
        """In the order in which they must run."""
        return [
            Stage(
                f"overviews-{factor}",
                f"Overview {factor * self.grid.resolution_m:g} m",
                partial(self.tasks, factor),
                partial(self._prepare, factor),
            )
            for factor in factors_of(self.grid)
        ]

    def tasks(self, factor: int) -> list[Task]:
        """The tiles of every layer at one resolution; a tile whose finer tiles are all outside the area has none."""
        below, grid, tasks = self.grid.coarser(factor // 2), self.grid.coarser(factor), []
        for group, made in sorted(self._ids(factor // 2).items()):
            sources: dict[str, list[str]] = {}
            for name, task_id in sorted(made.items()):
                tile = below.tile_by_id(name)
                sources.setdefault(grid.tile_at(tile.row // 2, tile.col // 2).id, []).append(task_id)
            for name, read in sources.items():
                doing = OverviewWork(self.store, name, group, factor)
                tasks.append(self.task("overviews", f"{factor}/{group}/{name}", [factor, group, name, read], doing))
        return tasks

    def _ids(self, factor: int) -> Ids:
        if factor == 1:
            return self.layers()
        ids: dict[str, dict[str, str]] = {}
        for task in self.tasks(factor):
            group, _, tile = task.key.partition("/")[2].rpartition("/")
            ids.setdefault(group, {})[tile] = task.id
        return ids

    def _prepare(self, factor: int) -> None:
        store = open_for_writing(self.store)
        layers = sorted(self.layers())
        store.coarser(factor).ensure_groups(overview_group(store.described(group), factor) for group in layers)
        kinds = sorted({group.partition("/")[0] for group in layers})
        paths = {number: f"{OVERVIEWS}/{number}" for number in factors_of(self.grid)}
        store.describe(multiscale_attributes(self.grid, kinds, paths))


@dataclass(frozen=True)
class OverviewWork(TileWork):
    """One tile of a layer at one resolution, from the four of the resolution below."""

    group: str
    factor: int

    def __call__(self) -> Done:
        base = open_for_writing(self.store)
        fine, coarse = base.coarser(self.factor // 2), base.coarser(self.factor)
        source = self.group if self.factor == 2 else overview_path(self.factor // 2, self.group)
        target = overview_path(self.factor, self.group)
        wanted = coarse.described(target).variables
        pixels = fine.dataset(source, dask=False)
        nodata = {variable.name: variable.nodata for variable in wanted}
        tile = coarse.grid.tile_by_id(self.tile)
        arrays: dict[str, Any] = {}
        for y, x in tile.chunks():  # four chunks at a time are in memory besides the tile
            region = {"y": slice(2 * y.start, 2 * y.stop), "x": slice(2 * x.start, 2 * x.stop)}
            part = pixels[[name for name in nodata if name in pixels]].isel(region)
            for name, values in halve({str(name): part[name].values for name in part.data_vars}, nodata).items():
                if name not in arrays:
                    arrays[name] = np.empty((*values.shape[:-2], *tile.shape), values.dtype)
                within = slice(y.start - tile.y.start, y.stop - tile.y.start)
                arrays[name][..., within, slice(x.start - tile.x.start, x.stop - tile.x.start)] = values
        return written(coarse, target, tile, arrays, {})
