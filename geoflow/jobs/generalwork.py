"""The work of generalisation: each tile's patches, one decision for the whole country, each tile's new codes.

See `geoflow.mapping.generalise` for why it takes three steps.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.jobs.tasks import Done
from geoflow.jobs.work import TileWork, counts_of, written
from geoflow.places import is_remote, read_bytes, write_bytes

if TYPE_CHECKING:
    from geoflow.grid import Tile
    from geoflow.legends import Legend
    from geoflow.mapping.generalise import Survey
    from geoflow.store.zarr import Store


@dataclass(frozen=True)
class Layer:
    """A generalised layer: where it comes from, and how it is made.

    ``smooth_px`` is the window of the majority filter that comes first, 1 for none; ``folder`` holds what the steps
    leave for each other.
    """

    map: str
    group: str
    mmu_px: int
    smooth_px: int
    folder: Path


def _smoothed(store: Store, layer: Layer, legend: Legend, tile: Tile) -> NDArray[Any]:
    from geoflow.mapping.generalise import majority_filter

    half = layer.smooth_px // 2
    y, x = tile.padded(half)
    codes = store.dataset(layer.map, dask=False)[f"level{legend.deepest}"].isel(y=y, x=x).values
    if half:
        codes = majority_filter(codes, layer.smooth_px)
    top, left = tile.y.start - y.start, tile.x.start - x.start
    return np.ascontiguousarray(codes[top : top + tile.shape[0], left : left + tile.shape[1]])


@dataclass(frozen=True)
class SurveyWork(TileWork):
    """A map of one tile to its patches."""

    layer: Layer
    legend: Legend

    def __call__(self) -> Done:
        from geoflow.mapping.generalise import survey

        store, tile = self.open()
        codes = _smoothed(store, self.layer, self.legend, tile)
        found = survey(codes, (tile.y.start, tile.x.start), self.layer.mmu_px)
        file = self.layer.folder / f"{tile.id}.npz"
        arrays = {"codes": found.codes, "areas_px": found.areas_px, "first": found.first, "contacts": found.contacts}
        _save(file, {**arrays, **dict(zip(_EDGES, found.edges, strict=True))})
        return Done({"patches": len(found.codes)}, (file,))


@dataclass(frozen=True)
class MergeWork:
    """The patches of all tiles to the code that each of them gets."""

    store: Path
    layer: Layer
    legend: Legend
    tiles: tuple[str, ...]

    def __call__(self) -> Done:
        from geoflow.mapping.generalise import decide, similarity
        from geoflow.store.zarr import open_for_writing

        grid, mapped = open_for_writing(self.store).grid, set(self.tiles)
        rows, cols = grid.tile_counts
        tiles = [[grid.tile_at(row, col) for col in range(cols)] for row in range(rows)]
        surveys = [[_load(self.layer, tile, tile.id in mapped) for tile in row] for row in tiles]
        tables = decide(surveys, self.layer.mmu_px, similarity(self.legend))
        found = {
            tile.id: table
            for row, held in zip(tiles, tables, strict=True)
            for tile, table in zip(row, held, strict=True)
            if tile.id in mapped
        }
        file = self.layer.folder / "codes.npz"
        _save(file, found)
        return Done({"patches": sum(len(s.codes) for row in surveys for s in row)}, (file,))


@dataclass(frozen=True)
class RecodeWork(TileWork):
    """A map of one tile, without patches below the minimum mapping unit."""

    layer: Layer
    legend: Legend

    def __call__(self) -> Done:
        from geoflow.mapping.generalise import recode

        store, tile = self.open()
        with _open(self.layer.folder / "codes.npz") as tables:
            codes = recode(_smoothed(store, self.layer, self.legend, tile), tables[tile.id])
        arrays = {
            f"level{level}": self.legend.to_level(codes, level).astype(self.legend.dtype(level))
            for level in self.legend.levels
        }
        content = {"counts": {name: counts_of(values) for name, values in arrays.items()}}
        return written(store, self.layer.group, tile, arrays, content)


_EDGES = ("top", "bottom", "left", "right")


def _save(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays, complete under their name or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(file, buffer.getvalue())


def _open(file: Path) -> Any:
    return np.load(io.BytesIO(read_bytes(file)) if is_remote(file) else file)


def _load(layer: Layer, tile: Tile, mapped: bool) -> Survey:
    """The survey of a tile; an empty one where the tile lies outside of the area."""
    from geoflow.mapping.generalise import Survey, survey

    if not mapped:
        return survey(np.zeros(tile.shape, np.uint16), (tile.y.start, tile.x.start), layer.mmu_px)
    with _open(layer.folder / f"{tile.id}.npz") as held:
        edges = (held["top"], held["bottom"], held["left"], held["right"])
        return Survey(held["codes"], held["areas_px"], held["first"], held["contacts"], edges)
