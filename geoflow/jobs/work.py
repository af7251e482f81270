"""The work of each stage: frozen plain values that travel to a worker, and what it does with them there.

Every class reads from files or from the store, writes whole chunks or whole folders, and returns the facts for its
receipt. Heavy imports happen in the worker, when the work is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.jobs.tasks import Done
from geoflow.places import local_copy
from geoflow.store.receipts import NODATA_COUNTS

if TYPE_CHECKING:
    import xarray as xr
    from odc.geo.geobox import GeoBox

    from geoflow.grid import Tile
    from geoflow.learning.samples import HeldOut
    from geoflow.legends import Legend
    from geoflow.store.zarr import Store


@dataclass(frozen=True)
class TileWork:
    """Work on one tile of the national store."""

    store: Path
    tile: str

    def open(self) -> tuple[Store, Tile]:
        """The store, and the tile on its grid."""
        from geoflow.store.zarr import open_for_writing

        store = open_for_writing(self.store)
        return store, store.grid.tile_by_id(self.tile)


def computed(dataset: xr.Dataset, threads: int = 1) -> dict[str, NDArray[Any]]:
    """The arrays of a lazy dataset, in this process: a task never asks the cluster that it runs on.

    One thread by default, as a cluster counts on: a task that took all cores would take them from the tasks beside it,
    and memory for as many blocks at once as the machine has cores.
    """
    done = dataset.compute(scheduler="threads", num_workers=threads)
    return {str(name): done[name].values for name in done.data_vars}


def written(
    store: Store, group: str, tile: Tile, arrays: Mapping[str, NDArray[Any]], content: Mapping[str, Any]
) -> Done:
    """Write one tile of some variables; their nodata pixels are counted, so that no others go unnoticed later."""
    nodata = store.nodata(group, list(arrays))
    store.write(group, tile, arrays)
    counted = {name: nodata_px(values, nodata[name]) for name, values in arrays.items()}
    return Done({**content, NODATA_COUNTS: counted}, tuple(store.chunk_files(group, list(arrays), tile)))


def nodata_px(values: NDArray[Any], nodata: Any) -> int:
    """How many pixels hold the value that means nodata."""
    if nodata == 0:  # no array of truth values need be made
        return int(values.size - np.count_nonzero(values))
    return int(np.count_nonzero(values == nodata))


def counts_of(codes: NDArray[Any]) -> dict[str, int]:
    """Pixels of each class, nodata left out."""
    counts = np.bincount(codes.ravel())
    return {str(code): int(counts[code]) for code in np.flatnonzero(counts).tolist() if code != 0}


@dataclass(frozen=True)
class LabelWork(TileWork):
    """A label source to codes at every level and distances to the nearest border, for one tile."""

    group: str
    source: Path
    column: str | None
    legend: Legend

    def __call__(self) -> Done:
        from geoflow.labels import load_label_tile
        from geoflow.labels.levels import codes_by_level

        store, tile = self.open()
        found = load_label_tile(local_copy(self.source), tile.geobox, self.legend, self.column)
        levels, counts = codes_by_level(found.codes, self.legend)
        arrays = {f"level{level}": codes for level, codes in levels.items()}
        content = {"counts": {str(code): count for code, count in counts.items()}, "overlap_px": found.overlap_px}
        return written(store, self.group, tile, {**arrays, "border_m": found.border_m}, content)


def area_mask(border: bytes, crs: str, geobox: GeoBox) -> NDArray[np.bool_]:
    """Which pixels have their centre within the area (WKB, in ``crs``); dims (y, x)."""
    import shapely
    from odc.geo.geom import Geometry
    from rasterio.features import geometry_mask

    shape = Geometry(shapely.from_wkb(border), crs).to_crs(str(geobox.crs))
    mask: NDArray[np.bool_] = geometry_mask([shape.geom], geobox.shape, geobox.transform, invert=True)
    return mask


@dataclass(frozen=True)
class ChangeLayer:
    """Polygons of change that are a truth."""

    path: Path
    columns: tuple[str, ...] | None
    legend: Legend

    def on(self, geobox: GeoBox) -> NDArray[np.uint8]:
        """0 unknown, 1 unchanged, 2 changed, as in a change map; dims (y, x)."""
        from geoflow.labels import load_change_labels

        found: NDArray[np.uint8] = load_change_labels(local_copy(self.path), geobox, self.legend, self.columns)[
            "change"
        ].values
        return found


@dataclass(frozen=True)
class EvaluateWork(TileWork):
    """Map, labels and change against the truth, for one tile. The only work that may read a truth."""

    truth: Mapping[str, Path]
    maps: Mapping[str, str]
    labels: Mapping[str, str]
    change: tuple[str, str, str] | None
    legend: Legend
    held_out: HeldOut | None
    change_layer: ChangeLayer | None = None

    def __call__(self) -> Done:
        from geoflow.labels import load_labels

        store, tile = self.open()
        deepest = self.legend.levels[-1]
        truth = {e: load_labels(local_copy(path), tile.geobox, self.legend).values for e, path in self.truth.items()}
        held = self._held_out(store, tile)
        compared: dict[str, Any] = {}
        for kind, groups in (("map", self.maps), ("labels", self.labels)):
            for epoch, group in groups.items():
                found = store.dataset(group).isel(tile.region)
                for level in self.legend.levels:
                    codes = found[f"level{level}"].values
                    true = self.legend.to_level(truth[epoch], level) if level != deepest else truth[epoch]
                    compared.setdefault(kind, {}).setdefault(epoch, {})[f"level{level}"] = {
                        "held_out": _matrix(true, codes, held),
                        "all": _matrix(true, codes, np.ones_like(held)),
                    }
        return Done({"matrices": compared, "change": self._change(store, tile, truth, held)})

    def _held_out(self, store: Store, tile: Tile) -> NDArray[np.bool_]:
        if self.held_out is None:
            return np.zeros(tile.shape, bool)
        return self.held_out.mask(store.grid.shape, tile.y, tile.x)

    def _change(
        self, store: Store, tile: Tile, truth: Mapping[str, NDArray[Any]], held: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """[true, mapped, pixels] of 1 unchanged and 2 changed, in held-out blocks and everywhere."""
        from geoflow.mapping.change import true_change

        if self.change is None:
            return {}
        before, after, group = self.change
        if self.change_layer is not None:
            true = self.change_layer.on(tile.geobox)
        else:
            true = true_change(truth[before], truth[after])
        mapped = store.dataset(group).isel(tile.region)["change"].values
        return {"held_out": _matrix(true, mapped, held), "all": _matrix(true, mapped, np.ones_like(held))}


def _matrix(true: NDArray[Any], mapped: NDArray[Any], where: NDArray[np.bool_]) -> list[list[int]]:
    """[true, mapped, pixels], sparse, where both are known."""
    use = where & (true != 0) & (mapped != 0)
    (first, true_codes), (second, mapped_codes) = _numbered(true[use]), _numbered(mapped[use])
    # Counted by place, not sorted: a tile has a hundred million pairs, and a few dozen codes.
    shape = len(true_codes), len(mapped_codes)
    counts = np.bincount(first * shape[1] + second, minlength=shape[0] * shape[1]).reshape(shape)
    return [[int(true_codes[i]), int(mapped_codes[j]), int(counts[i, j])] for i, j in np.argwhere(counts)]


def _numbered(codes: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The place of each code among those that occur, and these."""
    occurring = np.flatnonzero(np.bincount(codes))
    place = np.zeros(int(codes.max(initial=0)) + 1, np.intp)
    place[occurring] = np.arange(len(occurring))
    return place[codes], occurring
