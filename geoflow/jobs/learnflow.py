"""The tasks of a job up to its trained model: composites, labels, patches, classifier, segmenter.

A task's id is the digest of everything that alters its result: the job's values, the frozen scenes, the ids of the
tasks that it reads from, the sha256 of the model. Change one value and just what depends on it gets new ids, and is
done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import JobError
from geoflow.jobs import work
from geoflow.jobs.imagerywork import LOST, CompositeWork
from geoflow.jobs.layout import imagery_group, label_group
from geoflow.jobs.patchingest import ChunkWork, complete
from geoflow.jobs.resolved import ResolvedJob
from geoflow.jobs.scenes import identity
from geoflow.jobs.tasks import Task
from geoflow.jobs.trainwork import ClassifierWork, Training, TrainWork
from geoflow.labels.patchdata import complete_store
from geoflow.labels.patchplan import PatchOptions, PatchPlan, plan_patches
from geoflow.labels.patchstore import create_store, read_store, store_id
from geoflow.places import is_remote, local_copy, place, remove_tree, stamp
from geoflow.store.receipts import digest
from geoflow.store.zarr import describe_grid

if TYPE_CHECKING:
    from geoflow.learning.options import ClassifierOptions, SegmenterOptions

VERSIONS = {
    "imagery": 2,
    "labels": 2,
    "patches": 3,
    "classifier": 2,
    "train": 1,
    "engine": 1,
    "predict": 3,
    "seams": 1,
    "differences": 3,
    "survey": 1,
    "merge": 1,
    "generalise": 1,
    "change": 6,
    "polygons": 1,
    "evaluate": 1,
    "areas": 1,
    "overviews": 1,
}
"""Versions of what each stage computes. A release that changes the pixels of a stage raises its number, so that outputs
of older releases are not taken for its own."""


ON_GPU = {"classifier", "train", "engine", "predict"}
"""Stages that run a net."""

PARTS = {
    "imagery": ("epoch", "tile", "options of imagery", "scenes", "places of the scenes"),
    "labels": ("name", "tile", "column", "label source", "legend"),
    "classifier": ("patches", "bands", "scheme", "split", "options of the classifier"),
    "train": ("composites", "labels", "classifier", "options of training", "held-out blocks"),
    "engine": ("model", "engine", "seed", "composites"),
    "predict": ("epoch", "tile", "model", "engine", "kept probabilities", "composites", "border of the area"),
    "seams": ("level", "window", "blend", "maps"),
    "survey": ("tile", "smallest patch", "smoothing", "maps"),
    "merge": ("patches of the tiles",),
    "generalise": ("tile", "merged patches"),
    "differences": ("level", "seed", "composites", "maps"),
    "change": (
        "tile", "epoch before", "epoch after", "level", "least confidence", "smallest patch", "maps", "differences",
        "transitions",
    ),
    "polygons": ("scenes' dates", "zones", "column of the zones", "change"),
    "evaluate": ("tile", "maps, labels and change", "truth"),
    "areas": ("epoch", "tile", "zones", "column of the zones", "map"),
    "overviews": ("factor", "layer", "tile", "finer pixels"),
}  # fmt: skip
"""What the parts of a task's id are called: which of them has changed is why a task is done again."""


class LearningFlow(ResolvedJob):
    """A job on its way to a model; `geoflow.jobs.flow.Flow` goes on to the maps."""

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
        because = {"version": digest(VERSIONS[stage])[:12], "grid": self._grid_id}
        # The accuracy of patches has parts of its own; they are all of truth and change.
        because |= {name: digest(part)[:12] for name, part in zip(PARTS[stage], parts, strict=False)}
        task_id = digest(stage, VERSIONS[stage], self._grid_described, parts)
        return Task(stage, key, task_id, doing, because=because, gpu=stage in ON_GPU)

    @cached_property
    def _grid_id(self) -> str:
        return digest(self._grid_described)[:12]

    def _prepare_imagery(self) -> None:
        for epoch, options in self.composite_options.items():
            periods = {p.name: [str(p.start), str(p.end)] for p in options.periods}
            attrs = {"periods": periods, "attribution": self.catalog.attribution, "composite": options.method}
            coords = {"period": list(periods), "band": list(options.bands)}
            scenes = [item["id"] for item in self.scenes[epoch].items] if options.has_source else None
            if scenes is None:
                self.store.drop(f"imagery/{epoch}", "source", "scenes")
            self.store.ensure_group(imagery_group(epoch, coords, attrs, scenes))

    @cached_property
    def _imagery_tasks(self) -> list[Task]:
        on_error = self.section("imagery").on_error
        tasks = []
        for epoch, options in self.composite_options.items():
            places = {item["id"]: place for place, item in enumerate(self.scenes[epoch].items)}
            for tile in self.tiles:
                items = self.scenes[epoch].on(tile)
                numbers = {item["id"]: places[item["id"]] for item in items} if options.has_source else None
                parts = [epoch, tile.id, options.identity(), [identity(i) for i in items], numbers]
                group, catalog = f"imagery/{epoch}", self.catalog
                doing = CompositeWork(
                    self.store_path, tile.id, group, tuple(items), catalog, options, numbers, on_error
                )
                task = self._task("imagery", f"{epoch}/{tile.id}", plain(parts), doing)
                tasks.append(dataclasses.replace(task, redo_if=LOST if on_error == "fail" else ""))
        return tasks

    @cached_property
    def _composites(self) -> dict[str, str]:
        """What stands in the store, by key of the imagery's tasks: the task's id, and the scenes it had to do without.

        Whoever reads a composite is identified by this, so that a tile which gets a lost scene back is mapped again.
        """
        made = {}
        for task in self._imagery_tasks:
            receipt = None if task.redo_if else self.receipts.valid(task.stage, task.key, task.id)
            lost = [] if receipt is None else receipt.get(LOST, [])
            made[task.key] = digest(task.id, [loss["scene"] for loss in lost]) if lost else task.id
        return made

    def _composites_are_made(self) -> None:
        """Forget what was believed about the composites before they were made."""
        for name in ("_composites", "_train_tasks"):
            self.__dict__.pop(name, None)

    def _prepare_labels(self) -> None:
        section = self.section("labels")
        self.store.ensure_group(label_group(section.name, self.legend, section.source.name))

    @cached_property
    def _label_tasks(self) -> list[Task]:
        section = self.section("labels")
        stamp = file_stamp(section.source)
        tasks = []
        for tile in self.tiles:
            parts = [section.name, tile.id, section.column, stamp, self.legend.to_dict()]
            doing = work.LabelWork(
                self.store_path, tile.id, f"labels/{section.name}", section.source, section.column, self.legend
            )
            tasks.append(self._task("labels", f"{section.name}/{tile.id}", parts, doing))
        return tasks

    @cached_property
    def _takes_store(self) -> bool:
        """Whether the patches are in a store already."""
        return (self.section("classifier").source / "zarr.json").is_file()

    @property
    def patch_store(self) -> Path:
        """The store of patches that the classifier learns from."""
        return place(self.section("classifier").source) if self._takes_store else self.out / "patches.zarr"

    @cached_property
    def patch_id(self) -> str:
        """What tells the patches from others: places, labels, splits and options.

        Raises
        ------
        GeoflowError
            If there are none, their lists or tables cannot be read, or the job wants of a store what it cannot change.
        """
        if not self._takes_store:
            return self._patch_plan.id
        section = self.section("classifier")
        for key in ("exclude", "metadata", "keep_flagged", "split_file"):
            if getattr(section, key):
                raise JobError(
                    f"classifier.{key}: {section.source} is a store, made without it; name its source instead"
                )
        return str(complete_store(section.source).described["id"])

    @cached_property
    def _patch_plan(self) -> PatchPlan:
        section = self.section("classifier")
        if is_remote(section.source):
            raise JobError(
                f"classifier.source: {section.source} is no store of patches, and a million small files are not read "
                "from an object store; make a store of them with geoflow bigearthnet, and name that"
            )
        options = PatchOptions(
            bands=self.section("imagery").bands,
            metadata=tuple(local_copy(path) for path in section.metadata),
            flags=tuple(local_copy(path) for path in section.exclude),
            keep_flagged=section.keep_flagged,
            split=None if section.split_file is None else local_copy(section.split_file),
        )
        return plan_patches(section.source, options)

    def _prepare_patches(self) -> None:
        """The store of this job's patches, empty if it is new or was of others."""
        if not self._takes_store and store_id(self.patch_store) != self.patch_id:
            remove_tree(self.patch_store)
            create_store(self.patch_store, self._patch_plan)

    @cached_property
    def _patch_tasks(self) -> list[Task]:
        """A task a chunk. The grid is not in their ids: it does not alter a patch."""
        if self._takes_store:
            return []
        chunks = range(-(-len(self._patch_plan) // self._patch_plan.options.chunk))
        ids = {n: digest("patches", VERSIONS["patches"], self.patch_id, n) for n in chunks}
        return [Task("patches", f"{n:06d}", ids[n], ChunkWork(self.patch_store, n)) for n in chunks]

    def _finish_patches(self) -> None:
        if not self._takes_store:
            receipts = (self.receipts.valid(task.stage, task.key, task.id) for task in self._patch_tasks)
            complete(read_store(self.patch_store), [receipt for receipt in receipts if receipt is not None])

    @cached_property
    def _classifier_tasks(self) -> list[Task]:
        section, bands, options = self.section("classifier"), self.section("imagery").bands, self.classifier_options
        parts = plain([self.patch_id, list(bands), section.labels, section.split, trained_with(options)])
        places = self._training_places("classifier", "classifier", parts)
        doing = ClassifierWork(*places, self.patch_store, bands, section.labels, section.split, options)
        return [dataclasses.replace(self._task("classifier", "classifier", parts, doing), lanes=doing.lanes)]

    def training(self, stage: str) -> Training:
        """The work of the stage ``classifier`` or ``train``."""
        tasks = self._classifier_tasks if stage == "classifier" else self._train_tasks
        work: Training = tasks[0].work  # type: ignore[assignment]
        return work

    def _training_places(self, stage: str, target: str, parts: list[Any]) -> tuple[Path, Path, Path]:
        """The model folder, the folder of its checkpoints, of this very training alone, and that of its log."""
        scratch = f"{stage}-{digest(stage, VERSIONS[stage], parts)[:16]}"
        return self.out / target, self.out / "scratch" / scratch, self.out / "logs" / stage

    @cached_property
    def _train_tasks(self) -> list[Task]:
        labels, options = self.section("labels"), self.segmenter_options
        imagery_ids = [made for key, made in self._composites.items() if key.startswith(f"{labels.epoch}/")]
        label_ids = [t.id for t in self._label_tasks]
        encoder = self.out / "classifier" if self.job.classifier else None
        encoder_id = self._classifier_tasks[0].id if self.job.classifier else None
        parts = [imagery_ids, label_ids, encoder_id, trained_with(options), dataclasses.asdict(self.held_out)]
        parts = plain(parts)
        doing = TrainWork(
            *self._training_places("train", "model", parts),
            self.store_path,
            f"imagery/{labels.epoch}",
            f"labels/{labels.name}",
            self.legend,
            options,
            self.held_out,
            encoder,
        )
        return [dataclasses.replace(self._task("train", "model", parts, doing), lanes=doing.lanes)]


def trained_with(options: ClassifierOptions | SegmenterOptions) -> dict[str, Any]:
    """Options as they identify a training: weights that it starts from by what is in their file, not by its name."""
    from geoflow.weightsources import find_weights

    values = dataclasses.asdict(options)
    if options.weights is not None:
        values["weights"] = file_stamp(find_weights(options.weights, options.encoder, options.weights_pickle))
    return values


def plain(values: Any) -> Any:
    """Dates and tuples as JSON has them."""
    return json.loads(json.dumps(values, default=str))


_HASHED_BYTES = 2**28


def file_stamp(path: Path) -> list[Any]:
    """What tells a file or folder from another one.

    A file's content, in an object store its size and ETag; of one too large to read at every start, its size and time
    of change; of a folder, its names; of a file geodatabase, those of its files. A shapefile is stamped with the files
    beside it that hold its codes and CRS.
    """
    file, bar, layer = str(path).partition("|layername=")
    if bar:
        return [layer, *file_stamp(place(file))]
    if is_remote(path):
        return stamp(path)
    if path.suffix.lower() == ".gdb":
        return [path.name, *(_size_and_time(entry) for entry in sorted(path.iterdir()))]
    if path.is_dir():
        return [path.name, digest(sorted(entry.name for entry in path.iterdir()))]
    if path.suffix.lower() == ".shp":
        beside = [path.with_suffix(suffix) for suffix in (".dbf", ".prj", ".cpg")]
        return [_stamp_of_one(path), *(_stamp_of_one(other) for other in beside if other.exists())]
    return _stamp_of_one(path)


def _size_and_time(path: Path) -> list[Any]:
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns]


def _stamp_of_one(path: Path) -> list[Any]:
    status = path.stat()
    if status.st_size > _HASHED_BYTES:
        return _size_and_time(path)
    with path.open("rb") as file:
        return [path.name, hashlib.file_digest(file, "sha256").hexdigest()]
