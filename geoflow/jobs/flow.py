"""The flow of a job: its stages in order, and the tasks of each.

A task's id is the digest of everything that alters its result: the job's values, the frozen scenes, the ids of the
tasks that it reads from, the sha256 of the model. Change one value and just what depends on it gets new ids, and is
done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from geoflow.errors import JobError
from geoflow.jobs import mapwork, work
from geoflow.jobs.layout import change_group, imagery_group, label_group, map_group
from geoflow.jobs.resolved import ResolvedJob
from geoflow.jobs.scenes import footprint_wkb, identity
from geoflow.jobs.spec import Job
from geoflow.jobs.tasks import Task
from geoflow.store.receipts import digest
from geoflow.store.zarr import describe_grid

VERSIONS = {
    "imagery": 1,
    "labels": 1,
    "patches": 1,
    "classifier": 1,
    "train": 1,
    "engine": 1,
    "predict": 2,
    "seams": 1,
    "differences": 3,
    "change": 4,
    "evaluate": 1,
}
"""Versions of what each stage computes. A release that changes the pixels of a stage raises its number, so that outputs
of older releases are not taken for its own."""


@dataclass(frozen=True)
class Stage:
    """One stage: its name, what to tell people, and its tasks.

    ``tasks`` is called when the stages before it are done, because the ids of its tasks may depend on their results
    (the map's on the sha256 of the model). ``finish`` is called when all its tasks are done.
    """

    name: str
    title: str
    tasks: Callable[[], list[Task]]
    prepare: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None


class Flow(ResolvedJob):
    """A job on its way to an output folder: its stages and their tasks.

    Parameters
    ----------
    job, out, limit, refresh
        See `ResolvedJob`.
    """

    def __init__(self, job: Job, out: Path, limit: int | None = None, refresh: bool = False) -> None:
        super().__init__(job, out, limit, refresh)
        self._predict_tasks_of: dict[tuple[str | None, str | None], list[Task]] = {}

    def stages(self) -> list[Stage]:
        """The job's stages, in the order in which they run."""
        job, flow = self.job, []
        if job.imagery:
            flow.append(Stage("imagery", "Composites", lambda: self._imagery_tasks, self._prepare_imagery))
        if job.labels:
            flow.append(Stage("labels", "Labels", lambda: self._label_tasks, self._prepare_labels))
        if job.classifier:
            flow.append(Stage("patches", "Patches", lambda: self._patch_tasks))
            flow.append(Stage("classifier", "Classifier", lambda: self._classifier_tasks))
        if job.train:
            flow.append(Stage("train", "U-Net", lambda: self._train_tasks))
        if job.predict:
            flow.append(Stage("engine", "Engine", self._engine_tasks))
            flow.append(Stage("predict", "Maps", self._predict_tasks, self._prepare_maps, self._drop_scratch))
            flow.append(Stage("seams", "Seams", self._seams_tasks))
        if self.joint_change:
            flow.append(Stage("differences", "Differences", lambda: self._differences_tasks()))
        if job.change:
            flow.append(Stage("change", "Change", self._change_tasks, self._prepare_change))
        if job.evaluate:
            flow.append(Stage("evaluate", "Accuracy", self._evaluate_tasks))
        return flow

    def model_sha256(self) -> str | None:
        """The sha256 of the model's weights, or None while it is not trained.

        A model that this run trains counts only with a valid receipt: an old one would otherwise be mapped with.
        """
        from geoflow.modelfile import read_header

        if self.job.predict is not None and self.job.predict.model is not None:
            return read_header(self.model_folder).sha256
        task = self._train_tasks[0]
        receipt = self.receipts.valid(task.stage, task.key, task.id)
        return None if receipt is None else str(receipt["sha256"])

    @cached_property
    def _grid_described(self) -> dict[str, Any]:
        return describe_grid(self.grid)

    def _task(self, stage: str, key: str, parts: list[Any], doing: Any) -> Task:
        return Task(stage, key, digest(stage, VERSIONS[stage], self._grid_described, parts), doing)

    def _prepare_imagery(self) -> None:
        for epoch, options in self.composite_options.items():
            periods = {p.name: [str(p.start), str(p.end)] for p in options.periods}
            attrs = {"periods": periods, "attribution": self.catalog.attribution, "composite": options.method}
            coords = {"period": list(periods), "band": list(options.bands)}
            self.store.ensure_group(imagery_group(epoch, coords, attrs))

    @cached_property
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
        section = self.section("labels")
        self.store.ensure_group(label_group(section.name, self.legend, section.source.name))

    @cached_property
    def _label_tasks(self) -> list[Task]:
        section = self.section("labels")
        stamp = _file_stamp(section.source)
        tasks = []
        for tile in self.tiles:
            parts = [section.name, tile.id, section.column, stamp, self.legend.to_dict()]
            doing = work.LabelWork(
                self.store_path, tile.id, f"labels/{section.name}", section.source, section.column, self.legend
            )
            tasks.append(self._task("labels", f"{section.name}/{tile.id}", parts, doing))
        return tasks

    @cached_property
    def _patch_tasks(self) -> list[Task]:
        section, bands = self.section("classifier"), self.section("imagery").bands
        stamps = [_file_stamp(p) for p in (section.source, *section.exclude)]
        doing = work.PatchesWork(section.source, section.exclude, bands, self.patch_legend, self.out / "patches.zarr")
        return [self._task("patches", "patches", [stamps, list(bands), self.patch_legend.to_dict()], doing)]

    @cached_property
    def patch_legend(self) -> Any:
        """The legend of the patches: BigEarthNet's labels are CORINE's."""
        from geoflow.legends import legend

        return legend("corine")

    @cached_property
    def _classifier_tasks(self) -> list[Task]:
        bands, options = self.section("imagery").bands, self.classifier_options
        doing = work.ClassifierWork(
            self.out / "patches.zarr", bands, self.patch_legend, options, self.out / "classifier"
        )
        parts = [self._patch_tasks[0].id, dataclasses.asdict(options)]
        return [self._task("classifier", "classifier", _plain(parts), doing)]

    @cached_property
    def _train_tasks(self) -> list[Task]:
        labels, options = self.section("labels"), self.segmenter_options
        imagery_ids = [t.id for t in self._imagery_tasks if t.key.startswith(f"{labels.epoch}/")]
        label_ids = [t.id for t in self._label_tasks]
        encoder = self.out / "classifier" if self.job.classifier else None
        encoder_id = self._classifier_tasks[0].id if self.job.classifier else None
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

    def _engine_tasks(self) -> list[Task]:
        section, sha256, seed = self.section("predict"), self.model_sha256(), self.job.seed
        epoch = self.job.mapped_epochs[0]
        imagery = [t.id for t in self._imagery_tasks if t.key.startswith(f"{epoch}/")]
        doing = mapwork.EngineWork(
            self.store_path,
            tuple(t.id for t in self.tiles),
            f"imagery/{epoch}",
            self.model_folder,
            sha256 or "",
            section.engine,
            seed,
        )
        return [self._task("engine", "engine", [sha256, section.engine, seed, imagery], doing)]

    def engine(self) -> str | None:
        """What runs the net, or None while that is not decided."""
        task = self._engine_tasks()[0]
        receipt = self.receipts.valid(task.stage, task.key, task.id)
        return None if receipt is None else str(receipt["engine"])

    def _prepare_maps(self) -> None:
        from geoflow.modelfile import read_header

        codes = read_header(self.model_folder).card.codes if self.keeps_probabilities else ()
        for epoch in self.job.mapped_epochs:
            attrs = {
                "model_sha256": self.model_sha256() or "",
                "engine": self.engine() or "",
                "attribution": self.catalog.attribution,
            }
            self.store.ensure_group(map_group(epoch, self.legend, attrs, codes))

    def _predict_tasks(self) -> list[Task]:
        # Made anew once the model is trained: the ids are those of its weights.
        identity = self.model_sha256(), self.engine()
        if identity not in self._predict_tasks_of:
            self._predict_tasks_of = {identity: self._make_predict_tasks(*identity)}
        return self._predict_tasks_of[identity]

    def _make_predict_tasks(self, sha256: str | None, engine: str | None) -> list[Task]:
        halo = self._model_halo() if sha256 else 0
        imagery = {t.key: t.id for t in self._imagery_tasks}
        border, kept = digest(self.border.hex()), self.keeps_probabilities
        mapped = {t.id for t in self.tiles}
        tasks = []
        for epoch in self.job.mapped_epochs:
            scratch = self._scratch / digest(epoch, sha256, engine, imagery)[:16]
            for tile in self.tiles:
                near = [t.id for t in tile.neighbourhood(halo)]
                read = [imagery[key] for key in (f"{epoch}/{name}" for name in near) if key in imagery]
                doing = mapwork.PredictWork(
                    self.store_path,
                    tile.id,
                    f"imagery/{epoch}",
                    f"map/{epoch}",
                    self.model_folder,
                    sha256 or "",
                    engine or "",
                    kept,
                    self.border,
                    str(self.area.crs),
                    tuple(name for name in near if name in mapped),
                    scratch,
                )
                parts = [epoch, tile.id, sha256, engine, kept, read, border]
                tasks.append(self._task("predict", f"{epoch}/{tile.id}", parts, doing))
        return tasks

    @property
    def _scratch(self) -> Path:
        """Windows that tiles leave for each other while the maps are made."""
        return self.out / "scratch"

    def _drop_scratch(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _seams_tasks(self) -> list[Task]:
        from geoflow.modelfile import read_header

        maps, level = {t.key: t.id for t in self._predict_tasks()}, self.legend.levels[-1]
        card = read_header(self.model_folder).card if self.model_sha256() else None
        core, blend = (0, 0) if card is None else (card.core_px, min(card.halo_px, card.core_px // 2))
        tasks = []
        for epoch in self.job.mapped_epochs:
            for tile in self.tiles:
                read = [maps.get(f"{epoch}/{t.id}") for t in tile.neighbourhood(1)]
                footprints = tuple(footprint_wkb(item) for item in self.scenes[epoch].on(tile))
                doing = mapwork.SeamsWork(self.store_path, tile.id, f"map/{epoch}", level, core, blend, footprints)
                tasks.append(self._task("seams", f"{epoch}/{tile.id}", [level, core, blend, read], doing))
        return tasks

    def _model_halo(self) -> int:
        from geoflow.modelfile import read_header

        return read_header(self.model_folder).card.window_px

    def _prepare_change(self) -> None:
        section = self.section("change")
        attrs = {
            "before": section.before,
            "after": section.after,
            "method": "joint" if self.joint_change else "post-classification",
            "min_confidence_percent": section.min_confidence,
            "mmu_ha": section.mmu_ha,
        }
        self.store.ensure_group(change_group(section.before, section.after, self.legend, attrs))

    @property
    def mmu_px(self) -> int:
        """The smallest patch of change that is kept, in pixels."""
        pixel_ha = self.grid.resolution_m**2 / 1e4
        return max(1, round(self.section("change").mmu_ha / pixel_ha))

    def _differences_tasks(self) -> list[Task]:
        section, level, seed = self.section("change"), self.legend.levels[-1], self.job.seed
        epochs = (section.before, section.after)
        imagery = [t.id for t in self._imagery_tasks if t.key.split("/")[0] in epochs]
        tiles = tuple(t.id for t in self.tiles)
        doing = mapwork.DifferencesWork(
            self.store_path,
            tiles,
            (f"imagery/{section.before}", f"imagery/{section.after}"),
            f"map/{section.before}",
            level,
            seed,
            self.out / "differences.json",
        )
        return [self._task("differences", "differences", [level, seed, imagery, self._map_ids()], doing)]

    def _change_tasks(self) -> list[Task]:
        section, level = self.section("change"), self.legend.levels[-1]
        maps = self._map_ids()
        learned = self._differences_tasks()[0].id if self.joint_change else None
        tasks = []
        for tile in self.tiles:
            near = tile.neighbourhood(self.mmu_px)
            read = [maps.get(f"{e}/{t.id}") for e in (section.before, section.after) for t in near]
            parts = [tile.id, section.before, section.after, level, section.min_confidence, self.mmu_px, read, learned]
            parts.append(section.transitions)
            doing = mapwork.ChangeWork(
                self.store_path,
                tile.id,
                f"map/{section.before}",
                f"map/{section.after}",
                f"change/{section.before}-{section.after}",
                level,
                section.min_confidence,
                self.mmu_px,
                (f"imagery/{section.before}", f"imagery/{section.after}"),
                self.out / "differences.json" if learned else None,
                section.transitions,
                self.legend,
            )
            tasks.append(self._task("change", f"{section.before}-{section.after}/{tile.id}", parts, doing))
        return tasks

    def _map_ids(self) -> dict[str, str]:
        """Ids of the map's tasks: as planned, or, where this job makes no map, as an earlier run left them."""
        if self.job.predict is not None:
            return {t.key: t.id for t in self._predict_tasks()}
        section = self.section("change")
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
        section, labels = self.section("evaluate"), self.job.labels
        change = self.job.change
        if change is not None and not {change.before, change.after} <= set(section.truth):
            change = None
        against = {labels.epoch: f"labels/{labels.name}"} if labels and labels.epoch in section.truth else {}
        stamps = {epoch: _file_stamp(path) for epoch, path in section.truth.items()}
        read_by_tile = _by_tile(
            self._map_ids(),
            {t.key: t.id for t in self._label_tasks} if labels else {},
            {t.key: t.id for t in self._change_tasks()} if change else {},
        )
        tasks = []
        for tile in self.tiles:
            read = read_by_tile.get(tile.id, [])
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


def _by_tile(*stages: dict[str, str]) -> dict[str, list[str]]:
    """Ids of tasks whose keys end in a tile's id, by tile, in order."""
    found: dict[str, list[str]] = {}
    for ids in stages:
        for key, task_id in ids.items():
            found.setdefault(key.rsplit("/", 1)[-1], []).append(task_id)
    return found


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
