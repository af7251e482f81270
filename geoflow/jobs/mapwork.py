"""The work of the mapping stages: the engine, the map, change, seams. See `geoflow.jobs.work` for the rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.jobs.tasks import Done
from geoflow.jobs.work import TileWork, area_mask, computed, counts_of, written
from geoflow.places import read_bytes

if TYPE_CHECKING:
    import xarray as xr

    from geoflow.grid import Tile
    from geoflow.legends import Legend
    from geoflow.mapping.windows import Lattice
    from geoflow.modelfile import ModelCard
    from geoflow.store.zarr import Store

TRIED_WINDOWS = 6
"""Windows of the imagery on which an engine is compared with float32 torch before the map is made with it."""


@dataclass(frozen=True)
class EngineWork:
    """A model and some imagery to the engine that the maps are made with."""

    store: Path
    tiles: tuple[str, ...]
    imagery: str
    model: Path
    sha256: str
    wanted: str
    seed: int

    def __call__(self) -> Done:
        from geoflow.mapping.engines import choose_engine
        from geoflow.modelfile import load_model

        model = load_model(self.model, self.sha256)
        choice = choose_engine(model, self._windows(model.card), self.wanted)
        agreement = {name: round(share, 6) for name, share in choice.agreement.items()}
        return Done({"engine": choice.engine, "agreement": agreement, "tried_px": choice.pixels})

    def _windows(self, card: ModelCard) -> list[NDArray[np.int16]]:
        """Windows around chunks drawn at random, of those that hold any imagery."""
        from geoflow.inputs import NODATA
        from geoflow.mapping.predict import pick_inputs
        from geoflow.store.zarr import open_for_writing

        store = open_for_writing(self.store)
        cube = pick_inputs(store.dataset(self.imagery, dask=False)["reflectance"], card)
        chunks = [region for name in self.tiles for region in store.grid.tile_by_id(name).chunks()]
        found: list[NDArray[np.int16]] = []
        for at in np.random.default_rng(self.seed).permutation(len(chunks)):
            y, x = (
                _stretch(part, card.window_px, size) for part, size in zip(chunks[at], store.grid.shape, strict=True)
            )
            window = cube.isel(y=y, x=x).values
            if (window != NODATA).any():
                missing = [(0, 0), (0, 0), *((0, card.window_px - n) for n in window.shape[2:])]
                found.append(np.pad(window, missing, constant_values=NODATA))
            if len(found) == TRIED_WINDOWS:
                break
        return found


def _stretch(part: slice, length: int, size: int) -> slice:
    """``length`` pixels from the start of a part, moved or cut to lie within ``size``."""
    start = max(0, min(part.start, size - length))
    return slice(start, min(size, start + length))


@dataclass(frozen=True)
class PredictWork(TileWork):
    """Composites to a land cover map of one tile.

    ``near`` are the tiles of the job that share windows with this one, itself included; ``scratch`` is where they leave
    these for each other.
    """

    imagery: str
    group: str
    model: Path
    sha256: str
    engine: str
    probabilities: bool
    border: bytes
    border_crs: str
    near: tuple[str, ...]
    scratch: Path | None

    def __call__(self) -> Done:
        from geoflow.mapping.predict import MapOptions, predict_region
        from geoflow.modelfile import load_model

        store, tile = self.open()
        model = load_model(self.model, self.sha256)
        # Without Dask's chunks: a tile is read in one go, several times as fast as chunk by chunk.
        imagery = store.dataset(self.imagery, dask=False)
        options = MapOptions(self.engine, self.probabilities, None if self.scratch is None else str(self.scratch))
        arrays = computed(predict_region(imagery["reflectance"], model, tile.y, tile.x, options))
        arrays["clear"] = self._clear(imagery, model.card, tile)
        inside = area_mask(self.border, self.border_crs, tile.geobox)
        for name, values in arrays.items():
            values[..., ~inside] = MAP_NODATA.get(name, 0)
        done = written(store, self.group, tile, arrays, self._facts(arrays, inside))
        if self.scratch is not None:
            self._release(store, tile, model.card)
        return done

    def _clear(self, imagery: xr.Dataset, card: ModelCard, tile: Tile) -> NDArray[np.uint8]:
        """The fewest clear observations in any period that the model reads: 0 means, mapped without that period."""
        clear = imagery["clear"].isel(tile.region).sel(period=list(card.inputs.periods))
        fewest: NDArray[np.uint8] = clear.values.min(axis=clear.get_axis_num("period"))
        return fewest

    def _release(self, store: Store, tile: Tile, card: ModelCard) -> None:
        from geoflow.mapping.scratch import Scratch
        from geoflow.mapping.windows import Lattice

        lattice = Lattice.over(store.grid.shape, card.core_px, card.halo_px)
        needed = {name: _windows_of(lattice, store.grid.tile_by_id(name)) for name in {*self.near, self.tile}}
        shared = {
            window: tuple(name for name, windows in needed.items() if window in windows) for window in needed[self.tile]
        }
        if self.scratch is not None:
            Scratch(self.scratch).finish(self.tile, {w: names for w, names in shared.items() if len(names) > 1})

    def _facts(self, arrays: Mapping[str, NDArray[Any]], inside: NDArray[np.bool_]) -> dict[str, Any]:
        observed = arrays["level1"] != 0
        return {
            "counts": {name: counts_of(values) for name, values in arrays.items() if name.startswith("level")},
            "mean_confidence": float(arrays["confidence"][observed].mean()) if observed.any() else None,
            "inside_px": int(inside.sum()),
            "unmapped_px": int((inside & ~observed).sum()),
            "partly_observed_px": int((observed & (arrays["clear"] == 0)).sum()),
        }


MAP_NODATA = {"confidence": 255, "margin": -128, "clear": 255, "probabilities": 255}
"""Nodata of what a map holds besides class codes, whose nodata is 0."""


def _windows_of(lattice: Lattice, tile: Tile) -> set[tuple[int, int]]:
    return set(lattice.windows(tile.y, tile.x))


SAMPLED_CHUNKS, SAMPLED_STEP = 96, 3
"""Usual differences are learned from so many chunks of a country, every so many pixels along both axes."""


@dataclass(frozen=True)
class DifferencesWork:
    """A sample of two epochs to what the change stage must know: usual differences, and shares of classes."""

    store: Path
    tiles: tuple[str, ...]
    imagery: tuple[str, str]
    map: str
    level: int
    seed: int
    target: Path

    def __call__(self) -> Done:
        from geoflow.mapping.decode import PROBABILITY_NODATA, PROBABILITY_UNIT
        from geoflow.mapping.joint import JointChange
        from geoflow.mapping.spectral import PeriodChange
        from geoflow.store.receipts import write_json
        from geoflow.store.zarr import open_for_writing

        store = open_for_writing(self.store)
        regions = [region for name in self.tiles for region in store.grid.tile_by_id(name).chunks()]
        order = np.random.default_rng(self.seed).permutation(len(regions))[:SAMPLED_CHUNKS]
        chosen = [regions[at] for at in sorted(order)]
        spectral = PeriodChange.fit(self._sample(store, *region) for region in chosen)
        probabilities = store.dataset(self.map, dask=False)["probabilities"]
        total, pixels = np.zeros(probabilities.sizes["class"]), 0
        for y, x in chosen:
            held = probabilities.isel(y=y, x=x).values[:, ::SAMPLED_STEP, ::SAMPLED_STEP]
            known = held[0] != PROBABILITY_NODATA
            total += held[:, known].sum(axis=1, dtype=np.int64) / PROBABILITY_UNIT
            pixels += int(known.sum())
        codes = tuple(int(code) for code in probabilities["class"].values)
        learned = JointChange.of(codes, total / max(pixels, 1), spectral)
        write_json(self.target, learned.to_dict())
        found = {"-".join(map(str, p)): round(change.share[1], 4) for p, change in spectral.learned.items()}
        return Done({"changed_share_by_periods": found}, (self.target,))

    def _sample(self, store: Store, y: slice, x: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[Any]]:
        differences, known = _difference(store, self.imagery, y, x)
        codes = store.dataset(self.map, dask=False)[f"level{self.level}"].isel(y=y, x=x).values
        every = (slice(None, None, SAMPLED_STEP),) * 2
        thin, seen, classes = differences[:, :, *every], known[:, *every], codes[every]
        return thin.reshape(*thin.shape[:2], -1), seen.reshape(len(seen), -1), classes.reshape(-1)


def _difference(
    store: Store, imagery: tuple[str, str], y: slice, x: slice
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    from geoflow.mapping.spectral import difference

    before, after = (store.dataset(group, dask=False)["reflectance"].isel(y=y, x=x).values for group in imagery)
    return difference(before, after)


@dataclass(frozen=True)
class ChangeWork(TileWork):
    """Two maps to the change between them, for one tile.

    With ``learned``, a file of `DifferencesWork`, the scenes of ``imagery`` and the class probabilities of both maps
    are weighed together; without, classes that differ are change.
    """

    before: str
    after: str
    group: str
    level: int
    min_confidence: int
    mmu_px: int
    imagery: tuple[str, str]
    learned: Path | None
    weights: Mapping[str, float]
    legend: Legend

    def __call__(self) -> Done:
        from geoflow.mapping.change import detect_change

        store, tile = self.open()
        # A patch of fewer than mmu_px pixels that reaches into the tile ends within mmu_px pixels of it.
        y, x = tile.padded(self.mmu_px)
        names = [f"level{self.level}", "confidence"]
        before, after = (
            store.dataset(group, dask=False)[names].isel(y=y, x=x).load() for group in (self.before, self.after)
        )
        chance = None
        if self.learned is not None:
            before, after, chance = self._weighed(store, tile, before, after)
        change = detect_change(before, after, self.level, self.min_confidence, self.mmu_px, chance)
        inner = {
            "y": slice(tile.y.start - y.start, tile.y.stop - y.start),
            "x": slice(tile.x.start - x.start, tile.x.stop - x.start),
        }
        arrays = computed(change.isel(inner))
        content = {"transitions": _transitions(arrays), "states": counts_of(arrays["change"])}
        return written(store, self.group, tile, arrays, content)

    def _weighed(
        self, store: Store, tile: Tile, before: xr.Dataset, after: xr.Dataset
    ) -> tuple[xr.Dataset, xr.Dataset, xr.DataArray]:
        """The most probable transition of each pixel of the tile and its margin, and the chance of any change."""
        from geoflow.mapping import joint, spectral

        learned = joint.JointChange.from_dict(json.loads(read_bytes(self.learned or Path())))
        weights = joint.transition_weights(learned.codes, self.weights, self.legend)
        y, x = tile.padded(self.mmu_px)
        near_y, near_x = tile.padded(self.mmu_px + joint.HALO_PX)
        wide_y, wide_x = tile.padded(self.mmu_px + joint.HALO_PX + spectral.HALO_PX)
        differences, known = _difference(store, self.imagery, wide_y, wide_x)
        p, q = (
            store.dataset(group, dask=False)["probabilities"].isel(y=near_y, x=near_x).values
            for group in (self.before, self.after)
        )
        classes = store.dataset(self.before, dask=False)[f"level{self.level}"].isel(y=near_y, x=near_x).values
        inner = _cut((near_y, near_x), (wide_y, wide_x))
        scenes = learned.spectral.probability(differences[:, :, *inner], known[:, *inner], classes)
        inner = _cut((y, x), (near_y, near_x))
        chance = learned.chance(p, q, scenes, weights)
        changed = (chance >= self.min_confidence) & (chance != spectral.PROBABILITY_NODATA)
        codes = [c[inner] for c in learned.pairs(p, q, changed, weights * self._plausible(learned.codes))]
        name, chance = f"level{self.level}", chance[inner]
        # Where nothing changed, one class stands for both epochs.
        codes = [np.where(c, c, before[name].values) for c in codes]
        first, second = (
            m[name].copy(data=c.astype(m[name].dtype)) for m, c in zip((before, after), codes, strict=True)
        )
        return first.to_dataset(name=name), second.to_dataset(name=name), before[name].copy(data=chance)

    def _plausible(self, codes: tuple[int, ...]) -> NDArray[np.float64] | float:
        """Weights for telling which transition it is; whether there is one does not depend on them."""
        from geoflow.mapping import joint

        if self.legend.name != "corine":
            return 1.0
        return joint.transition_weights(codes, joint.CORINE_FLOWS, self.legend)


def _cut(part: tuple[slice, slice], within: tuple[slice, slice]) -> tuple[slice, slice]:
    """A part of the grid, counted from a larger part's corner."""
    y, x = (slice(own.start - outer.start, own.stop - outer.start) for own, outer in zip(part, within, strict=True))
    return y, x


def _transitions(arrays: Mapping[str, NDArray[Any]]) -> list[list[int]]:
    """[from, to, pixels] of the changed pixels."""
    changed = arrays["from_code"] != 0
    pairs = np.stack([arrays["from_code"][changed], arrays["to_code"][changed]]).astype(np.int64)
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    return [[int(a), int(b), int(n)] for (a, b), n in zip(found.T, counts, strict=True)]


@dataclass(frozen=True)
class SeamsWork(TileWork):
    """A map of one tile to the neighbours that differ across borders of the process.

    ``footprints`` are those of the scenes, as WKB in EPSG:4326; ``core`` and ``blend`` are of the model's windows.
    """

    group: str
    level: int
    core: int
    blend: int
    footprints: tuple[bytes, ...]

    def __call__(self) -> Done:
        from geoflow.mapping.seams import count_pairs, lines

        store, tile = self.open()
        height, width = store.grid.shape
        # One row and column of the next tiles: a pair belongs to the tile of its first pixel.
        y = slice(tile.y.start, min(height, tile.y.stop + 1))
        x = slice(tile.x.start, min(width, tile.x.stop + 1))
        codes = store.dataset(self.group, dask=False)[f"level{self.level}"].isel(y=y, x=x).values
        # A window fades in over the pixels around the border of its core: seams could lie at either end or between.
        offsets = sorted({0, self.blend, self.core - self.blend})
        kinds = {
            "window": (self.core, offsets),
            "chunk": (store.grid.chunk, [0]),
            "tile": (store.grid.tile, [0]),
        }
        borders = {
            kind: (lines(y.start, y.stop, period, at), lines(x.start, x.stop, period, at))
            for kind, (period, at) in kinds.items()
        }
        scenes = self._scenes(store, y, x)
        counted = count_pairs(codes, borders, {"scene": scenes})
        return Done({"pairs": {kind: dataclasses.asdict(found) for kind, found in counted.items()}})

    def _scenes(self, store: Store, y: slice, x: slice) -> NDArray[np.int64]:
        """A number for every combination of scenes, dims (y, x)."""
        import shapely
        from odc.geo.geom import Geometry
        from rasterio.features import geometry_mask

        geobox = store.grid.geobox[y, x]
        combination = np.zeros(geobox.shape, np.int64)
        for wkb in self.footprints:
            shape = Geometry(shapely.from_wkb(wkb), "EPSG:4326").to_crs(str(geobox.crs))
            covered = geometry_mask([shape.geom], geobox.shape, geobox.transform, invert=True)
            # Numbered anew after each scene, so that any number of scenes has room.
            _, numbers = np.unique(2 * combination + covered, return_inverse=True)
            combination = numbers.reshape(geobox.shape)
        return combination
