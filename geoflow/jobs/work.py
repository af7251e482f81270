"""The work of each stage: frozen plain values that travel to a worker, and what it does with them there.

Every class reads from files or from the store, writes whole chunks or whole folders, and returns the facts for its
receipt. Heavy imports happen in the worker, when the work is done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.jobs.tasks import Done

if TYPE_CHECKING:
    import xarray as xr

    from geoflow.grid import Tile
    from geoflow.imagery import Catalog, CompositeOptions
    from geoflow.learning.options import ClassifierOptions, SegmenterOptions
    from geoflow.learning.samples import HeldOut
    from geoflow.legends import Legend
    from geoflow.store.zarr import Store

PROGRESS_TOPIC = "geoflow-progress"
"""Dask topic on which long work says how far it is."""


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


def _compute(dataset: xr.Dataset) -> dict[str, NDArray[Any]]:
    """The arrays of a lazy dataset, in this process: a task never asks the cluster that it runs on."""
    done = dataset.compute(scheduler="threads")
    return {str(name): done[name].values for name in done.data_vars}


def _written(store: Store, group: str, tile: Tile, arrays: Mapping[str, NDArray[Any]]) -> tuple[Path, ...]:
    store.write(group, tile, arrays)
    return tuple(store.chunk_files(group, list(arrays), tile))


def _counts(codes: NDArray[Any]) -> dict[str, int]:
    """Pixels of each class, nodata left out."""
    values, counts = np.unique(codes, return_counts=True)
    return {str(int(v)): int(n) for v, n in zip(values, counts, strict=True) if v != 0}


@dataclass(frozen=True)
class CompositeWork(TileWork):
    """Scenes of one epoch to composites of one tile."""

    group: str
    items: tuple[Mapping[str, Any], ...]
    catalog: Catalog
    options: CompositeOptions

    def __call__(self) -> Done:
        from geoflow.imagery import composite_tile

        store, tile = self.open()
        arrays = _compute(composite_tile(self.items, tile.geobox, self.options, self.catalog))
        files = _written(store, self.group, tile, arrays)
        clear = arrays["clear"]
        content = {
            "scenes": [item["id"] for item in self.items],
            "observed_px": int((clear > 0).any(axis=0).sum()),
            "empty_px": [int(n) for n in (clear == 0).sum(axis=(1, 2))],
            "pixels": tile.shape[0] * tile.shape[1],
        }
        return Done(content, files)


@dataclass(frozen=True)
class LabelWork(TileWork):
    """A label source to codes at every level, for one tile."""

    group: str
    source: Path
    column: str | None
    legend: Legend

    def __call__(self) -> Done:
        from geoflow.labels import load_labels

        store, tile = self.open()
        codes = load_labels(self.source, tile.geobox, self.legend, self.column).values
        arrays = {
            f"level{level}": self.legend.to_level(codes, level).astype(self.legend.dtype(level))
            for level in self.legend.levels
        }
        files = _written(store, self.group, tile, arrays)
        return Done({"counts": _counts(arrays[f"level{self.legend.levels[-1]}"])}, files)


def area_mask(border: bytes, crs: str, tile: Tile) -> NDArray[np.bool_]:
    """Which pixels of a tile have their centre within the area (WKB, in ``crs``); dims (y, x)."""
    import shapely
    from odc.geo.geom import Geometry
    from rasterio.features import geometry_mask

    geobox = tile.geobox
    shape = Geometry(shapely.from_wkb(border), crs).to_crs(str(geobox.crs))
    mask: NDArray[np.bool_] = geometry_mask([shape.geom], geobox.shape, geobox.transform, invert=True)
    return mask


@dataclass(frozen=True)
class PatchesWork:
    """A folder of labelled patches to one Zarr store."""

    source: Path
    exclude: tuple[Path, ...]
    bands: tuple[str, ...]
    legend: Legend
    target: Path

    def __call__(self) -> Done:
        from geoflow.labels import read_patches, write_patches

        patches = read_patches(self.source, self.bands, self.legend, exclude=self.exclude)
        write_patches(patches, self.target)
        counts = {str(c): int(n) for c, n in zip(patches.codes, patches.labels.sum(axis=0), strict=True)}
        skipped = [{"name": s.name, "reason": s.reason} for s in patches.skipped]
        content = {"patches": len(patches.names), "counts": counts, "skipped": skipped}
        return Done(content, (self.target / "zarr.json",))


@dataclass(frozen=True)
class ClassifierWork:
    """Patches to a trained classifier."""

    patches: Path
    bands: tuple[str, ...]
    legend: Legend
    options: ClassifierOptions
    target: Path

    def __call__(self) -> Done:
        from geoflow.labels import open_patches
        from geoflow.learning.train import fit_classifier
        from geoflow.modelfile import save_model

        _use_all_cores()
        patches = open_patches(self.patches)
        trained = fit_classifier(
            patches.cube, patches.labels, patches.codes, self.legend, self.bands, self.options, progress_reporter()
        )
        sha256 = save_model(self.target, trained)
        return Done({"sha256": sha256, "validation": trained.card.training["validation"]}, _model_files(self.target))


@dataclass(frozen=True)
class TrainWork:
    """Composites and labels to a trained segmenter."""

    store: Path
    imagery: str
    labels: str
    legend: Legend
    options: SegmenterOptions
    held_out: HeldOut
    encoder: Path | None
    target: Path

    def __call__(self) -> Done:
        from geoflow.learning.train import fit_segmenter
        from geoflow.modelfile import load_model, save_model
        from geoflow.store.zarr import open_for_writing

        _use_all_cores()
        store = open_for_writing(self.store)
        # Without Dask: the sampler reads in a thread of its own, and must not ask the cluster that waits for it.
        reflectance = store.dataset(self.imagery, dask=False)["reflectance"]
        labels = store.dataset(self.labels, dask=False)[f"level{self.legend.levels[-1]}"]
        encoder = None if self.encoder is None else load_model(self.encoder).trained
        trained = fit_segmenter(
            reflectance,
            labels,
            self.legend,
            tuple(str(b) for b in reflectance["band"].values),
            tuple(str(p) for p in reflectance["period"].values),
            self.options,
            progress_reporter(),
            encoder=encoder,
            held_out=self.held_out,
        )
        sha256 = save_model(self.target, trained)
        return Done({"sha256": sha256, "classes": list(trained.card.codes)}, _model_files(self.target))


def _model_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(p for p in folder.iterdir() if p.is_file()))


@dataclass(frozen=True)
class PredictWork(TileWork):
    """Composites to a land cover map of one tile."""

    imagery: str
    group: str
    model: Path
    sha256: str
    border: bytes
    border_crs: str

    def __call__(self) -> Done:
        from geoflow.mapping.predict import predict_region
        from geoflow.modelfile import load_model

        store, tile = self.open()
        model = load_model(self.model, self.sha256)
        cube = store.dataset(self.imagery)["reflectance"]
        arrays = _compute(predict_region(cube, model, tile.y, tile.x))
        inside = area_mask(self.border, self.border_crs, tile)
        for name, values in arrays.items():
            values[~inside] = 255 if name == "confidence" else 0
        files = _written(store, self.group, tile, arrays)
        levels = {name: _counts(values) for name, values in arrays.items() if name != "confidence"}
        observed = arrays["level1"] != 0
        confidence = float(arrays["confidence"][observed].mean()) if observed.any() else None
        content = {
            "counts": levels,
            "mean_confidence": confidence,
            "inside_px": int(inside.sum()),
            "unmapped_px": int((inside & ~observed).sum()),
        }
        return Done(content, files)


SAMPLED_CHUNKS, SAMPLED_STEP = 96, 3
"""Usual differences are learned from so many chunks of a country, every so many pixels along both axes."""


@dataclass(frozen=True)
class DifferencesWork:
    """A sample of two epochs to the differences that are usual for each class, for the change stage."""

    store: Path
    tiles: tuple[str, ...]
    imagery: tuple[str, str]
    map: str
    level: int
    seed: int
    target: Path

    def __call__(self) -> Done:
        from geoflow.mapping.spectral import SpectralChange
        from geoflow.store.receipts import write_json
        from geoflow.store.zarr import open_for_writing

        store = open_for_writing(self.store)
        regions = [region for name in self.tiles for region in store.grid.tile_by_id(name).chunks()]
        order = np.random.default_rng(self.seed).permutation(len(regions))[:SAMPLED_CHUNKS]
        samples = (self._sample(store, *regions[at]) for at in sorted(order))
        learned = SpectralChange.fit(samples)
        write_json(self.target, learned.to_dict())
        return Done({"classes": sorted(learned.mean), "changed_share": learned.share[1]}, (self.target,))

    def _sample(self, store: Store, y: slice, x: slice) -> tuple[NDArray[np.float32], NDArray[Any]]:
        differences, known = _difference(store, self.imagery, y, x)
        codes = store.dataset(self.map)[f"level{self.level}"].isel(y=y, x=x).values
        every = (slice(None, None, SAMPLED_STEP),) * 2
        classes = np.where(known, codes, 0)[every]
        return differences[:, *every].reshape(len(differences), -1), classes.reshape(-1)


def _difference(
    store: Store, imagery: tuple[str, str], y: slice, x: slice
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    from geoflow.mapping.spectral import difference

    before, after = (
        store.dataset(group)["reflectance"].isel(y=y, x=x).compute(scheduler="threads").values for group in imagery
    )
    return difference(before, after)


@dataclass(frozen=True)
class ChangeWork(TileWork):
    """Two maps to the change between them, for one tile.

    With ``differences``, a file of `DifferencesWork`, only what also changed in the scenes of ``imagery`` counts.
    """

    before: str
    after: str
    group: str
    level: int
    min_confidence: int
    mmu_px: int
    imagery: tuple[str, str]
    differences: Path | None

    def __call__(self) -> Done:
        from geoflow.mapping.change import detect_change

        store, tile = self.open()
        # A patch of fewer than mmu_px pixels that reaches into the tile ends within mmu_px pixels of it.
        y, x = tile.padded(self.mmu_px)
        before, after = (store.dataset(group).isel(y=y, x=x) for group in (self.before, self.after))
        probability = self._probability(store, tile, before)
        change = detect_change(before, after, self.level, self.min_confidence, self.mmu_px, probability)
        inner = {
            "y": slice(tile.y.start - y.start, tile.y.stop - y.start),
            "x": slice(tile.x.start - x.start, tile.x.stop - x.start),
        }
        arrays = _compute(change.isel(inner))
        files = _written(store, self.group, tile, arrays)
        return Done({"transitions": _transitions(arrays), "states": _counts(arrays["change"])}, files)

    def _probability(self, store: Store, tile: Tile, before: xr.Dataset) -> xr.DataArray | None:
        """The chance of a change in the tile and its margin, from the scenes; None without ``differences``."""
        from geoflow.mapping.spectral import HALO_PX, SpectralChange

        if self.differences is None:
            return None
        learned = SpectralChange.from_dict(json.loads(self.differences.read_text(encoding="utf-8")))
        (wide_y, wide_x), (y, x) = tile.padded(self.mmu_px + HALO_PX), tile.padded(self.mmu_px)
        inner = (
            slice(y.start - wide_y.start, y.stop - wide_y.start),
            slice(x.start - wide_x.start, x.stop - wide_x.start),
        )
        differences, known = _difference(store, self.imagery, wide_y, wide_x)
        classes = before[f"level{self.level}"]
        return classes.copy(data=learned.probability(differences[:, *inner], known[inner], classes.values))


def _transitions(arrays: Mapping[str, NDArray[Any]]) -> list[list[int]]:
    """[from, to, pixels] of the changed pixels."""
    changed = arrays["from_code"] != 0
    pairs = np.stack([arrays["from_code"][changed], arrays["to_code"][changed]]).astype(np.int64)
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    return [[int(a), int(b), int(n)] for (a, b), n in zip(found.T, counts, strict=True)]


@dataclass(frozen=True)
class EvaluateWork(TileWork):
    """Map, labels and change against the truth, for one tile. The only work that may read a truth."""

    truth: Mapping[str, Path]
    maps: Mapping[str, str]
    labels: Mapping[str, str]
    change: tuple[str, str, str] | None
    legend: Legend
    held_out: HeldOut | None

    def __call__(self) -> Done:
        from geoflow.labels import load_labels

        store, tile = self.open()
        deepest = self.legend.levels[-1]
        truth = {e: load_labels(path, tile.geobox, self.legend).values for e, path in self.truth.items()}
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
        if self.change is None:
            return {}
        before, after, group = self.change
        known = (truth[before] != 0) & (truth[after] != 0)
        true = np.where(known, np.where(truth[before] != truth[after], 2, 1), 0)
        mapped = store.dataset(group).isel(tile.region)["change"].values
        return {"held_out": _matrix(true, mapped, held), "all": _matrix(true, mapped, np.ones_like(held))}


def _matrix(true: NDArray[Any], mapped: NDArray[Any], where: NDArray[np.bool_]) -> list[list[int]]:
    """[true, mapped, pixels], sparse, where both are known."""
    use = where & (true != 0) & (mapped != 0)
    pairs = np.stack([true[use], mapped[use]]).astype(np.int64)
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    return [[int(a), int(b), int(n)] for (a, b), n in zip(found.T, counts, strict=True)]


def progress_reporter(every_s: float = 0.5) -> Callable[[dict[str, Any]], None]:
    """A callback that passes progress on to whoever listens on `PROGRESS_TOPIC`; silent outside a worker."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return lambda event: None
    last = [0.0]

    def report(event: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - last[0] >= every_s or event.get("step") == event.get("steps"):
            last[0] = now
            worker.log_event(PROGRESS_TOPIC, event)

    return report


def _use_all_cores() -> None:
    """Training is one task at a time: it may use the cores of the workers that wait for it."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    torch.set_num_threads(cores)
