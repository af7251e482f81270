"""The flow of a job: its stages in order, and the tasks of each.

A task's id is the digest of everything that alters its result: the job's values, the frozen scenes, the ids of the
tasks that it reads from, the sha256 of the model. Change one value and just what depends on it gets new ids, and is
done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from odc.geo.geom import Geometry

from geoflow.errors import GeoflowError, JobError
from geoflow.grid import Grid, Tile
from geoflow.jobs import work
from geoflow.jobs.layout import change_group, imagery_group, label_group, map_group
from geoflow.jobs.scenes import Scenes, find_scenes, identity
from geoflow.jobs.spec import Job
from geoflow.jobs.tasks import Task
from geoflow.store.receipts import Receipts, digest
from geoflow.store.zarr import Store, describe_grid

VERSIONS = {
    "imagery": 1,
    "labels": 1,
    "patches": 1,
    "classifier": 1,
    "train": 1,
    "predict": 1,
    "change": 1,
    "evaluate": 1,
}
"""Versions of what each stage computes. A release that changes the pixels of a stage raises its number, so that outputs
of older releases are not taken for its own."""


@dataclass(frozen=True)
class Stage:
    """One stage: its name, what to tell people, and its tasks.

    ``tasks`` is called when the stages before it are done, because the ids of its tasks may depend on their results
    (the map's on the sha256 of the model).
    """

    name: str
    title: str
    tasks: Callable[[], list[Task]]
    prepare: Callable[[], None] = lambda: None


class Flow:
    """A job on its way to an output folder.

    Parameters
    ----------
    job : Job
    out : Path
        The output folder; nothing is written before `prepare_output`.
    limit : int, optional
        Only the first so many tiles.
    refresh : bool
        Search the catalog again.
    """

    def __init__(self, job: Job, out: Path, limit: int | None = None, refresh: bool = False) -> None:
        self.job, self.out, self.limit, self.refresh = job, out, limit, refresh
        self.receipts = Receipts(out / "receipts")
        self.store_path = out / "country.zarr"

    # --- what the job says, resolved ---------------------------------------------------------------------------------

    @cached_property
    def area(self) -> Geometry:
        """The area as one geometry, in the CRS it came in."""
        from geoflow.jobs.area import read_area

        return read_area(self.job.area)

    @cached_property
    def grid(self) -> Grid:
        """The national grid over the area."""
        section = self.job.grid
        return Grid.cover(self.area, section.crs, section.resolution_m, section.tile, section.chunk)

    @cached_property
    def tiles(self) -> list[Tile]:
        """The tiles that meet the area, in row order."""
        return list(self.grid.tiles(self.area))[: self.limit]

    @cached_property
    def catalog(self) -> Any:
        """The catalog of the imagery section."""
        from geoflow.imagery import load_catalog

        section = self._section("imagery")
        catalog = load_catalog(section.catalog, section.url)
        catalog.check_bands(section.bands)
        return catalog

    @cached_property
    def scenes(self) -> dict[str, Scenes]:
        """The frozen scenes of each epoch."""
        section = self._section("imagery")
        found = find_scenes(section, self.catalog, self.area, self.out / "scenes", self.refresh)
        return {s.epoch: s for s in found}

    @cached_property
    def legend(self) -> Any:
        """The legend of the labels; of the model where there are none."""
        from geoflow.legends import legend
        from geoflow.modelfile import load_model

        if self.job.labels is not None:
            return legend(self.job.labels.legend)
        if self.job.predict is not None and self.job.predict.model is not None:
            return load_model(self.job.predict.model).card.legend
        return legend("corine")

    @cached_property
    def border(self) -> bytes:
        """The area as WKB, for the tasks."""
        return bytes(self.area.geom.wkb)

    @cached_property
    def store(self) -> Store:
        """The national store, created if need be."""
        return Store.create(self.store_path, self.grid)

    @cached_property
    def composite_options(self) -> Any:
        """The imagery section as options of `geoflow.imagery`, for each epoch."""
        from geoflow.imagery import CompositeOptions, Period

        section = self._section("imagery")
        return {
            epoch: CompositeOptions(
                periods=tuple(Period(name, p.start, p.end) for name, p in periods.items()),
                bands=section.bands,
                scl_masked=section.mask_scl,
                dilate_m=section.mask_dilate_m,
                method=section.composite,
                loader=section.loader,
            )
            for epoch, periods in section.epochs.items()
        }

    @cached_property
    def held_out(self) -> Any:
        """The blocks that training never learns from; of the model's record where a trained model is used."""
        from geoflow.learning.samples import HeldOut
        from geoflow.modelfile import load_model

        if self.job.train is not None:
            return HeldOut(self.job.train.held_out_block_px, self.job.train.held_out_share, self.job.seed)
        if self.job.predict is not None and self.job.predict.model is not None:
            record = load_model(self.job.predict.model).card.training.get("held_out")
            return None if not record else HeldOut(record["block_px"], record["share"], record["seed"])
        return None

    @cached_property
    def classifier_options(self) -> Any:
        """Training options of the classifier."""
        from geoflow.learning.options import ClassifierOptions

        options = self._section("classifier").options
        return _options(ClassifierOptions, "classifier.options", {"seed": self.job.seed, **options})

    @cached_property
    def segmenter_options(self) -> Any:
        """Training options of the segmenter; its encoder is the classifier's."""
        from geoflow.learning.options import SegmenterOptions

        options = {"seed": self.job.seed, **self._section("train").options}
        if self.job.classifier is not None:
            options.setdefault("encoder", self.classifier_options.encoder)
        return _options(SegmenterOptions, "train.options", options)

    @property
    def model_folder(self) -> Path:
        """Where the segmenter is: the one given, or the one that this run trains."""
        given = None if self.job.predict is None else self.job.predict.model
        return given or self.out / "model"

    def model_sha256(self) -> str | None:
        """The sha256 of the model's weights, or None while it is not trained.

        A model that this run trains counts only with a valid receipt: an old one would otherwise be mapped with.
        """
        from geoflow.modelfile import load_model

        if self.job.predict is not None and self.job.predict.model is not None:
            return load_model(self.model_folder).sha256
        task = self._train_tasks()[0]
        receipt = self.receipts.valid(task.stage, task.key, task.id)
        return None if receipt is None else str(receipt["sha256"])

    def _section(self, name: str) -> Any:
        section = getattr(self.job, name)
        if section is None:
            raise JobError(f"{name}: the job has no such section, but another needs it")
        return section

    # --- stages ------------------------------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """The job's stages, in the order in which they run."""
        job, flow = self.job, []
        if job.imagery:
            flow.append(Stage("imagery", "Composites", self._imagery_tasks, self._prepare_imagery))
        if job.labels:
            flow.append(Stage("labels", "Labels", self._label_tasks, self._prepare_labels))
        if job.classifier:
            flow.append(Stage("patches", "Patches", self._patch_tasks))
            flow.append(Stage("classifier", "Classifier", self._classifier_tasks))
        if job.train:
            flow.append(Stage("train", "U-Net", self._train_tasks))
        if job.predict:
            flow.append(Stage("predict", "Maps", self._predict_tasks, self._prepare_maps))
        if job.change:
            flow.append(Stage("change", "Change", self._change_tasks, self._prepare_change))
        if job.evaluate:
            flow.append(Stage("evaluate", "Accuracy", self._evaluate_tasks))
        return flow

    def _task(self, stage: str, key: str, parts: list[Any], doing: Any) -> Task:
        return Task(stage, key, digest(stage, VERSIONS[stage], describe_grid(self.grid), parts), doing)

    def _prepare_imagery(self) -> None:
        for epoch, options in self.composite_options.items():
            periods = {p.name: [str(p.start), str(p.end)] for p in options.periods}
            attrs = {"periods": periods, "attribution": self.catalog.attribution, "composite": options.method}
            coords = {"period": list(periods), "band": list(options.bands)}
            self.store.ensure_group(imagery_group(epoch, coords, attrs))

    def _imagery_tasks(self) -> list[Task]:
        tasks = []
        for epoch, options in self.composite_options.items():
            for tile in self.tiles:
                items = self.scenes[epoch].on(tile)
                parts = [epoch, tile.id, dataclasses.asdict(options), [identity(i) for i in items]]
                doing = work.CompositeWork(
                    self.store_path, tile.id, f"imagery/{epoch}", tuple(items), self.catalog, options
                )
                tasks.append(self._task("imagery", f"{epoch}/{tile.id}", _plain(parts), doing))
        return tasks

    def _prepare_labels(self) -> None:
        section = self._section("labels")
        self.store.ensure_group(label_group(section.name, self.legend, section.source.name))

    def _label_tasks(self) -> list[Task]:
        section = self._section("labels")
        stamp = _file_stamp(section.source)
        tasks = []
        for tile in self.tiles:
            parts = [section.name, tile.id, section.column, stamp, self.legend.to_dict()]
            doing = work.LabelWork(
                self.store_path, tile.id, f"labels/{section.name}", section.source, section.column, self.legend
            )
            tasks.append(self._task("labels", f"{section.name}/{tile.id}", parts, doing))
        return tasks

    def _patch_tasks(self) -> list[Task]:
        section, bands = self._section("classifier"), self._section("imagery").bands
        stamps = [_file_stamp(p) for p in (section.source, *section.exclude)]
        doing = work.PatchesWork(section.source, section.exclude, bands, self.patch_legend, self.out / "patches.zarr")
        return [self._task("patches", "patches", [stamps, list(bands), self.patch_legend.to_dict()], doing)]

    @cached_property
    def patch_legend(self) -> Any:
        """The legend of the patches: BigEarthNet's labels are CORINE's."""
        from geoflow.legends import legend

        return legend("corine")

    def _classifier_tasks(self) -> list[Task]:
        bands, options = self._section("imagery").bands, self.classifier_options
        doing = work.ClassifierWork(
            self.out / "patches.zarr", bands, self.patch_legend, options, self.out / "classifier"
        )
        parts = [self._patch_tasks()[0].id, dataclasses.asdict(options)]
        return [self._task("classifier", "classifier", _plain(parts), doing)]

    def _train_tasks(self) -> list[Task]:
        labels, options = self._section("labels"), self.segmenter_options
        imagery_ids = [t.id for t in self._imagery_tasks() if t.key.startswith(f"{labels.epoch}/")]
        label_ids = [t.id for t in self._label_tasks()]
        encoder = self.out / "classifier" if self.job.classifier else None
        encoder_id = self._classifier_tasks()[0].id if self.job.classifier else None
        parts = [imagery_ids, label_ids, encoder_id, dataclasses.asdict(options), dataclasses.asdict(self.held_out)]
        doing = work.TrainWork(
            self.store_path,
            f"imagery/{labels.epoch}",
            f"labels/{labels.name}",
            self.legend,
            options,
            self.held_out,
            encoder,
            self.out / "model",
        )
        return [self._task("train", "model", _plain(parts), doing)]

    def _prepare_maps(self) -> None:
        for epoch in self.job.mapped_epochs:
            attrs = {"model_sha256": self.model_sha256() or "", "attribution": self.catalog.attribution}
            self.store.ensure_group(map_group(epoch, self.legend, attrs))

    def _predict_tasks(self) -> list[Task]:
        sha256 = self.model_sha256()
        halo = self._model_halo() if sha256 else 0
        imagery = {t.key: t.id for t in self._imagery_tasks()}
        tasks = []
        for epoch in self.job.mapped_epochs:
            for tile in self.tiles:
                near = [f"{epoch}/{t.id}" for t in tile.neighbourhood(halo)]
                read = [imagery[key] for key in near if key in imagery]
                parts = [epoch, tile.id, sha256, read, digest(self.border.hex())]
                doing = work.PredictWork(
                    self.store_path,
                    tile.id,
                    f"imagery/{epoch}",
                    f"map/{epoch}",
                    self.model_folder,
                    sha256 or "",
                    self.border,
                    str(self.area.crs),
                )
                tasks.append(self._task("predict", f"{epoch}/{tile.id}", parts, doing))
        return tasks

    def _model_halo(self) -> int:
        from geoflow.modelfile import load_model

        return load_model(self.model_folder).card.window_px

    def _prepare_change(self) -> None:
        section = self._section("change")
        attrs = {
            "before": section.before,
            "after": section.after,
            "min_confidence_percent": section.min_confidence,
            "mmu_ha": section.mmu_ha,
        }
        self.store.ensure_group(change_group(section.before, section.after, self.legend, attrs))

    @property
    def mmu_px(self) -> int:
        """The smallest patch of change that is kept, in pixels."""
        pixel_ha = self.grid.resolution_m**2 / 1e4
        return max(1, round(self._section("change").mmu_ha / pixel_ha))

    def _change_tasks(self) -> list[Task]:
        section, level = self._section("change"), self.legend.levels[-1]
        maps = self._map_ids()
        tasks = []
        for tile in self.tiles:
            near = tile.neighbourhood(self.mmu_px)
            read = [maps.get(f"{e}/{t.id}") for e in (section.before, section.after) for t in near]
            parts = [tile.id, section.before, section.after, level, section.min_confidence, self.mmu_px, read]
            doing = work.ChangeWork(
                self.store_path,
                tile.id,
                f"map/{section.before}",
                f"map/{section.after}",
                f"change/{section.before}-{section.after}",
                level,
                section.min_confidence,
                self.mmu_px,
            )
            tasks.append(self._task("change", f"{section.before}-{section.after}/{tile.id}", parts, doing))
        return tasks

    def _map_ids(self) -> dict[str, str]:
        """Ids of the map's tasks: as planned, or, where this job makes no map, as an earlier run left them."""
        if self.job.predict is not None:
            return {t.key: t.id for t in self._predict_tasks()}
        section = self._section("change")
        found = {}
        for epoch in (section.before, section.after):
            for tile in self.tiles:
                receipt = self.receipts.read("predict", f"{epoch}/{tile.id}")
                if receipt is None:
                    raise JobError(
                        f"change: tile {tile.id} has no map of {epoch} in {self.out}; add a predict section to the job"
                    )
                found[f"{epoch}/{tile.id}"] = receipt["id"]
        return found

    def _evaluate_tasks(self) -> list[Task]:
        section, labels = self._section("evaluate"), self.job.labels
        change = self.job.change
        if change is not None and not {change.before, change.after} <= set(section.truth):
            change = None
        against = {labels.epoch: f"labels/{labels.name}"} if labels and labels.epoch in section.truth else {}
        stamps = {epoch: _file_stamp(path) for epoch, path in section.truth.items()}
        maps, tasks = self._map_ids(), []
        label_ids = {t.key: t.id for t in self._label_tasks()} if labels else {}
        change_ids = {t.key: t.id for t in self._change_tasks()} if change else {}
        for tile in self.tiles:
            read = [ids[k] for ids in (maps, label_ids, change_ids) for k in ids if k.endswith(tile.id)]
            doing = work.EvaluateWork(
                self.store_path,
                tile.id,
                section.truth,
                {epoch: f"map/{epoch}" for epoch in section.truth},
                against,
                (change.before, change.after, f"change/{change.before}-{change.after}") if change else None,
                self.legend,
                self.held_out,
            )
            tasks.append(self._task("evaluate", tile.id, [tile.id, read, stamps], doing))
        return tasks


def _options(kind: type, key: str, values: dict[str, Any]) -> Any:
    """Options of a room from the job's plain values, with unknown names and wrong types refused."""
    from pydantic import TypeAdapter, ValidationError

    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise JobError(f"{key}.{unknown[0]}: unknown key; accepted here: {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(p) for p in first["loc"])
        raise JobError(f"{key}.{name}: {first['msg']}, not {first['input']!r}") from None
    except GeoflowError as error:
        raise JobError(f"{key}: {error}") from None


def _plain(values: Any) -> Any:
    """Dates and tuples as JSON has them."""
    return json.loads(json.dumps(values, default=str))


_HASHED_BYTES = 2**28


def _file_stamp(path: Path) -> list[Any]:
    """What tells a file or folder from another one.

    A file's content; of one too large to read at every start, its size and time of change; of a folder, its names.
    """
    if path.is_dir():
        return [path.name, digest(sorted(entry.name for entry in path.iterdir()))]
    status = path.stat()
    if status.st_size > _HASHED_BYTES:
        return [path.name, status.st_size, status.st_mtime_ns]
    with path.open("rb") as file:
        return [path.name, hashlib.file_digest(file, "sha256").hexdigest()]
