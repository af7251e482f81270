"""Auditing the labels of pixels: segmenters of folds of blocks map what they did not learn, and labels are held to it.

Everything goes tile by tile and area by area: memory does not grow with the country.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geoflow.errors import JobError
from geoflow.jobs.console import Console
from geoflow.jobs.manymodels import ONE_NET, run_models, share_of_cores
from geoflow.jobs.tasks import Done, Task
from geoflow.jobs.trainwork import TrainWork
from geoflow.jobs.work import TileWork, computed, written
from geoflow.learning.audit import DOUBTED, LOSS_NODATA, FoldBlocks, doubts
from geoflow.places import local_file, make_folder
from geoflow.store.receipts import Receipts, digest, write_json
from geoflow.store.zarr import Group, Store, Variable

if TYPE_CHECKING:
    import geopandas as gpd

    from geoflow.jobs.flow import Flow
    from geoflow.jobs.windows import Country
    from geoflow.legends import Legend

GROUP, AREAS, SUMMARY = "labels/audit", "areas.parquet", "pixels.json"
VERSION = 1


@dataclass(frozen=True)
class PixelOptions:
    """How labels of pixels are audited.

    Parameters
    ----------
    folds : int
        Models; each block of the country is judged by the one that did not see its labels.
    block_px : int
        Edge of the blocks.
    seed : int
    confidence : float
        Least probability of another class where a label is doubted.
    min_ha : float
        Doubted areas smaller than this are not listed: labels are generalised, by 25 ha in CORINE.
    """

    folds: int = 5
    block_px: int = 256
    seed: int = 0
    confidence: float = 0.9
    min_ha: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise JobError(f"confidence must be within 0 and 1, not {self.confidence:g}")
        if self.min_ha < 0:
            raise JobError(f"the smallest area must be at least 0 ha, not {self.min_ha:g}")


@dataclass(frozen=True)
class FoldWork(TrainWork):
    """A segmenter that learns from all blocks but one fold's; ``at_once`` of them share a machine."""

    at_once: int = 1

    def __call__(self) -> Done:
        from geoflow.learning.ranks import Ranks

        with ONE_NET, share_of_cores(self.at_once):
            return self.on(Ranks(), self.at_once)


@dataclass(frozen=True)
class DoubtWork(TileWork):
    """The labels of one tile against the maps of the models that did not learn them; ``store`` is the audit's own."""

    country: Path
    imagery: str
    labels: str
    legend: Legend
    models: tuple[tuple[FoldBlocks, Path, str], ...]
    confidence: float
    at_once: int = 1

    def __call__(self) -> Done:
        from geoflow.mapping.predict import MapOptions, predict_region
        from geoflow.modelfile import load_model
        from geoflow.store.zarr import open_for_writing

        store, tile = self.open()
        country = open_for_writing(self.country)
        given = country.dataset(self.labels, dask=False)[f"level{self.legend.deepest}"].isel(tile.region).values
        reflectance = country.dataset(self.imagery, dask=False)["reflectance"]
        arrays = empty_doubts(given.shape, given.dtype)
        for held_out, folder, sha256 in self.models:
            where = held_out.mask(store.grid.shape, tile.y, tile.x) & (given != 0)
            if not where.any():
                continue
            mapped = predict_region(
                reflectance, load_model(folder, sha256), tile.y, tile.x, MapOptions(probabilities=True)
            )
            codes = tuple(int(code) for code in mapped["class"].values)
            found = doubts(computed(mapped[["probabilities"]])["probabilities"], codes, given, self.confidence)
            for name, values in found.items():
                arrays[name][where] = values[where]
        known = arrays["loss"] != LOSS_NODATA
        facts: dict[str, Any] = {"judged_px": int(known.sum()), "doubted_px": int((arrays["doubt"] == DOUBTED).sum())}
        facts["loss"] = _loss_by_class(given[known], arrays["loss"][known])
        return written(store, GROUP, tile, arrays, facts)


def _loss_by_class(given: Any, loss: Any) -> dict[str, list[int]]:
    """By code: pixels, and the sum of their loss x 1000."""
    pixels, sums = np.bincount(given), np.bincount(given, loss.astype(np.int64))
    return {str(code): [int(pixels[code]), int(sums[code])] for code in np.flatnonzero(pixels).tolist()}


def empty_doubts(shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    """Nothing judged yet."""
    return {
        "loss": np.full(shape, LOSS_NODATA, np.uint16),
        "doubt": np.zeros(shape, np.uint8),
        "given": np.zeros(shape, dtype),
        "suggested": np.zeros(shape, dtype),
        "confidence": np.full(shape, 255, np.uint8),
    }


def audit_group(legend: Legend) -> Group:
    """The group of a pixel audit."""
    dtype, flags = str(legend.dtype(legend.deepest)), legend.flags(legend.deepest)
    states = {"flag_values": [1, 2], "flag_meanings": "agreed doubted", "long_name": "label doubted"}
    told = {"long_name": "loss of the label: -ln of its probability, x 1000", "units": "1"}
    variables = (
        Variable("loss", "uint16", LOSS_NODATA, attrs=told),
        Variable("doubt", "uint8", 0, attrs=states),
        Variable("given", dtype, 0, attrs={"long_name": "label, where doubted", **flags}),
        Variable("suggested", dtype, 0, attrs={"long_name": "most probable class, where doubted", **flags}),
        Variable("confidence", "uint8", 255, attrs={"long_name": "probability of that class", "units": "percent"}),
    )
    return Group(GROUP, variables, attrs={"legend": legend.name})


def audit_pixels(
    out: Path,
    folder: Path | None = None,
    options: PixelOptions | None = None,
    changed: Mapping[str, Any] | None = None,
    cluster: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Audit the rasterised labels that a finished run learned from.

    Parameters
    ----------
    out : Path
        Output folder of the run.
    folder : Path, optional
        The audit's own; ``OUT/audit/pixels`` by default. It gets ``pixels.zarr`` (group ``labels/audit``: ``loss``,
        ``doubt``, ``given``, ``suggested``, ``confidence``), ``areas.parquet`` and ``pixels.json``.
    options : PixelOptions, optional
    changed : mapping, optional
        Training options in place of the run's.
    cluster, console
        See `geoflow.jobs.auditrun.audit_source`.

    Returns
    -------
    dict
        As in ``pixels.json``: ``judged_px``, ``doubted_px``, ``areas``, ``areas_ha``, by class ``pixels`` and mean
        ``loss``, and the settings.

    Raises
    ------
    GeoflowError
        If there is no such run, it has no labels, an option is wrong, or a model or tile failed.
    """
    from geoflow.jobs.windows import country_of

    options, country = options or PixelOptions(), country_of(out)
    flow = country.flow
    folder = (folder or flow.out / "audit" / "pixels").absolute()
    make_folder(folder)
    models = _fold_tasks(country, folder, options, dict(changed or {}))
    run_models(models, folder, "folds", cluster, console)
    store = Store.create(folder / "pixels.zarr", flow.grid)
    store.ensure_group(audit_group(flow.legend))
    tiles = _tile_tasks(flow, folder, store, models, options)
    outcome = run_models(tiles, folder, "tiles", cluster, console)
    receipts = [outcome.receipts[task.key] for task in tiles]
    frame = doubted_areas(flow, store, options.min_ha)
    with local_file(folder / AREAS) as file:
        frame.to_parquet(file, index=False)
    summary = _summary(flow.legend, receipts, frame, options)
    write_json(folder / SUMMARY, summary)
    return summary


def _fold_tasks(country: Country, folder: Path, options: PixelOptions, changed: dict[str, Any]) -> list[Task]:
    from geoflow.jobs.learnflow import plain, trained_with
    from geoflow.jobs.resolved import options_of
    from geoflow.learning.options import SegmenterOptions

    flow = country.flow
    given = flow.segmenter_options if flow.job.train else SegmenterOptions()
    trained = options_of(SegmenterOptions, "option", {**asdict(given), **changed})
    labels, made = flow.section("labels"), _made(flow)
    encoder = flow.out / "classifier" if flow.job.classifier and (flow.out / "classifier").exists() else None
    tasks = []
    for fold in range(options.folds):
        held_out = FoldBlocks(options.block_px, seed=options.seed, folds=options.folds, fold=fold)
        name = f"fold{fold}"
        doing = FoldWork(
            folder / "models" / name,
            folder / "scratch" / name,
            folder / "logs" / name,
            flow.store_path,
            f"imagery/{labels.epoch}",
            f"labels/{labels.name}",
            flow.legend,
            dataclasses.replace(trained, seed=trained.seed + options.seed),
            held_out,
            encoder,
        )
        parts = [made, trained_with(doing.options), asdict(held_out), encoder is not None]
        tasks.append(Task("folds", name, digest("folds", VERSION, plain(parts)), doing, gpu=True))
    return tasks


def _made(flow: Flow) -> list[str]:
    """What tells the run's composites, labels and classifier from others: the ids in their receipts."""
    labels = flow.section("labels")
    keys = [("imagery", f"{labels.epoch}/{tile.id}") for tile in flow.tiles]
    keys += [("labels", f"{labels.name}/{tile.id}") for tile in flow.tiles]
    keys += [("classifier", "classifier")] if flow.job.classifier else []
    found = (flow.receipts.read(stage, key) for stage, key in keys)
    return ["" if receipt is None else str(receipt["id"]) for receipt in found]


def _tile_tasks(flow: Flow, folder: Path, store: Store, models: list[Task], options: PixelOptions) -> list[Task]:
    labels, receipts, made = flow.section("labels"), Receipts(folder / "receipts"), _made(flow)
    trained = []
    for task in models:
        receipt = receipts.valid(task.stage, task.key, task.id)
        if receipt is None:
            raise JobError(f"the model of {task.key} is gone; run the audit again")
        trained.append((task.work.held_out, task.work.target, str(receipt["sha256"])))  # type: ignore[attr-defined]
    shas = [sha256 for _, _, sha256 in trained]
    tasks = []
    for tile in flow.tiles:
        doing = DoubtWork(
            store.path,
            tile.id,
            flow.store_path,
            f"imagery/{labels.epoch}",
            f"labels/{labels.name}",
            flow.legend,
            tuple(trained),
            options.confidence,
        )
        parts = [tile.id, shas, options.confidence, made, options.block_px, options.seed]
        tasks.append(Task("tiles", tile.id, digest("tiles", VERSION, parts), doing, gpu=True))
    return tasks


def doubted_areas(flow: Flow, store: Store, min_ha: float) -> gpd.GeoDataFrame:
    """Connected pixels of one label that one other class suits better, the most doubtful first.

    Columns: ``rank``, ``given_code``, ``given_name``, ``suggested_code``, ``suggested_name``, ``area_ha``,
    ``probability`` (mean of the suggested class, percent), ``geometry`` in EPSG:4326. Ranked by area times probability.
    """
    import pandas as pd

    from geoflow.mapping.changepatches import as_frame, join, vectorise

    found = store.dataset(GROUP, dask=False)

    def pieces() -> Iterator[Any]:
        names = {"change": "doubt", "from_code": "given", "to_code": "suggested", "confidence": "confidence"}
        for tile in flow.tiles:
            part = found.isel(tile.region)
            arrays = {name: part[ours].values for name, ours in names.items()}
            yield vectorise(arrays, tile.y, tile.x, flow.grid.geobox)

    # Small areas are dropped as they come: there may be thousands of them on every tile.
    frames = [as_frame(areas, flow.legend, str(flow.grid.geobox.crs)) for areas in join(pieces())]
    large = [frame[frame["area_ha"] >= min_ha] for frame in frames]
    names = {"from_code": "given_code", "from_name": "given_name", "to_code": "suggested_code"}
    frame = pd.concat(large or [as_frame_of_none(flow)], ignore_index=True).rename(
        columns={**names, "to_name": "suggested_name"}
    )
    frame = frame.sort_values("id", key=lambda ids: -frame["area_ha"] * frame["probability"], kind="stable")
    frame = frame.reset_index(drop=True).drop(columns=["id", "pixels", "probability_min"])
    frame.insert(0, "rank", np.arange(1, len(frame) + 1))
    return frame.to_crs("EPSG:4326")


def as_frame_of_none(flow: Flow) -> gpd.GeoDataFrame:
    """The table of no areas."""
    from geoflow.mapping.changepatches import Patches, as_frame

    none, pairs = np.empty(0, np.int64), np.empty((0, 2), np.int64)
    empty = Patches(none, pairs.astype(np.uint16), none, none.astype(float), pairs, np.empty(0, object))
    return as_frame(empty, flow.legend, str(flow.grid.geobox.crs))


def _summary(
    legend: Legend, receipts: list[dict[str, Any]], frame: gpd.GeoDataFrame, options: PixelOptions
) -> dict[str, Any]:
    pixels: dict[str, list[int]] = {}
    for receipt in receipts:
        for code, (count, loss) in receipt["loss"].items():
            before = pixels.setdefault(code, [0, 0])
            pixels[code] = [before[0] + count, before[1] + loss]
    classes = {
        code: {"name": legend.label(int(code)), "pixels": count, "loss": round(loss / count / 1000, 4)}
        for code, (count, loss) in sorted(pixels.items(), key=lambda item: int(item[0]))
    }
    return {
        "judged_px": sum(receipt["judged_px"] for receipt in receipts),
        "doubted_px": sum(receipt["doubted_px"] for receipt in receipts),
        "areas": len(frame),
        "areas_ha": round(float(frame["area_ha"].sum()), 2),
        "classes": classes,
        "settings": asdict(options),
    }
