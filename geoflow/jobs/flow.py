"""The flow of a job: its stages in order, and the tasks of those that make maps.

`geoflow.jobs.learnflow` has the tasks that come before, and says what a task's id is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoflow.errors import JobError
from geoflow.jobs import changework, generalwork, mapwork, work
from geoflow.jobs.layout import change_group, generalised_group, map_group
from geoflow.jobs.learnflow import VERSIONS, LearningFlow, file_stamp
from geoflow.jobs.overviews import Overviews
from geoflow.jobs.scenes import footprint_wkb
from geoflow.jobs.spec import Job
from geoflow.jobs.tasks import Stage, Task
from geoflow.jobs.zonework import ZoneAreasWork
from geoflow.places import remove_tree
from geoflow.store.receipts import digest


class Flow(LearningFlow):
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
            composites = Stage(
                "imagery", "Composites", lambda: self._imagery_tasks, self._prepare_imagery, self._composites_are_made
            )
            flow.append(composites)
        if job.labels:
            flow.append(Stage("labels", "Labels", lambda: self._label_tasks, self._prepare_labels))
        if job.classifier:
            flow.append(
                Stage("patches", "Patches", lambda: self._patch_tasks, self._prepare_patches, self._finish_patches)
            )
            flow.append(Stage("classifier", "Classifier", lambda: self._classifier_tasks))
        if job.train:
            flow.append(Stage("train", "U-Net", lambda: self._train_tasks))
        if job.predict:
            flow.append(Stage("engine", "Engine", self._engine_tasks))
            flow.append(Stage("predict", "Maps", self._predict_tasks, self._prepare_maps, self._drop_scratch))
            flow.append(Stage("seams", "Seams", self._seams_tasks))
            if self.zones:
                flow.append(Stage("areas", "Areas", self._areas_tasks))
        for name in job.generalise:
            flow += self._generalise_stages(name)
        if self.joint_change:
            flow.append(Stage("differences", "Differences", lambda: self._differences_tasks()))
        if job.change:
            flow.append(Stage("change", "Change", self._change_tasks, self._prepare_change))
            flow.append(Stage("polygons", "Polygons", self._polygon_tasks))
        if job.evaluate:
            flow.append(Stage("evaluate", "Accuracy", self._evaluate_tasks))
        if job.overviews:
            flow += Overviews(self.store_path, self.grid, self.layer_ids, self._task).stages()
        return flow

    def _engine_tasks(self) -> list[Task]:
        section, sha256, seed = self.section("predict"), self.model_sha256(), self.job.seed
        wanted = section.engine + ("+flips" if section.flips else "")
        epoch = self.job.mapped_epochs[0]
        imagery = [made for key, made in self._composites.items() if key.startswith(f"{epoch}/")]
        doing = mapwork.EngineWork(
            self.store_path,
            tuple(t.id for t in self.tiles),
            f"imagery/{epoch}",
            self.model_folder,
            sha256 or "",
            wanted,
            seed,
        )
        return [self._task("engine", "engine", [sha256, wanted, seed, imagery], doing)]

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
        imagery = self._composites
        border, kept = digest(self.border.hex()), self.keeps_probabilities
        mapped = {t.id for t in self.tiles}
        tasks = []
        for epoch in self.job.mapped_epochs:
            scratch = self._scratch / digest(VERSIONS["predict"], epoch, sha256, engine, imagery)[:16]
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
        remove_tree(self._scratch)

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

    def _areas_tasks(self) -> list[Task]:
        zones = self.zones
        if zones is None:
            return []
        stamp, tasks = file_stamp(zones.file), []
        for key, made in self._map_ids().items():
            epoch, tile = key.split("/")
            doing = ZoneAreasWork(self.store_path, tile, f"map/{epoch}", self.legend, zones)
            tasks.append(self._task("areas", key, [epoch, tile, stamp, zones.column, made], doing))
        return tasks

    def _model_halo(self) -> int:
        from geoflow.modelfile import read_header

        return read_header(self.model_folder).card.window_px

    def _generalise_stages(self, name: str) -> list[Stage]:
        mmu = f"{self.job.generalise[name].mmu_ha:g} ha"
        return [
            Stage(f"survey-{name}", f"Survey {mmu}", lambda: self._generalise_tasks(name)[0]),
            Stage(f"merge-{name}", f"Merging {mmu}", lambda: self._generalise_tasks(name)[1]),
            Stage(
                f"generalise-{name}",
                f"Maps {mmu}",
                lambda: self._generalise_tasks(name)[2],
                lambda: self._prepare_generalised(name),
            ),
        ]

    def _prepare_generalised(self, name: str) -> None:
        section = self.job.generalise[name]
        attrs = {"mmu_ha": section.mmu_ha, "smooth_px": section.smooth_px}
        for epoch in self.job.mapped_epochs:
            self.store.ensure_group(generalised_group(name, epoch, self.legend, attrs))

    def _generalise_tasks(self, name: str) -> tuple[list[Task], list[Task], list[Task]]:
        """Surveys of all tiles, one merge an epoch, new codes of all tiles."""
        section, pixel_ha = self.job.generalise[name], self.grid.resolution_m**2 / 1e4
        mmu_px = max(1, math.ceil(section.mmu_ha / pixel_ha - 1e-6))
        maps, mapped = self._map_ids(), tuple(t.id for t in self.tiles)
        surveys, merges, recodes = [], [], []
        for epoch in self.job.mapped_epochs:
            folder = self.out / "generalised" / name / epoch
            layer = generalwork.Layer(f"map/{epoch}", f"generalised/{name}/{epoch}", mmu_px, section.smooth_px, folder)
            of_epoch = []
            for tile in self.tiles:
                read = [maps.get(f"{epoch}/{t.id}") for t in tile.neighbourhood(section.smooth_px // 2)]
                doing = generalwork.SurveyWork(self.store_path, tile.id, layer, self.legend)
                key, parts = f"{name}/{epoch}/{tile.id}", [tile.id, mmu_px, section.smooth_px, read]
                of_epoch.append(self._task("survey", key, parts, doing))
            surveys += of_epoch
            merging = generalwork.MergeWork(self.store_path, layer, self.legend, mapped)
            merge = self._task("merge", f"{name}/{epoch}", [t.id for t in of_epoch], merging)
            merges.append(merge)
            for tile in self.tiles:
                recoding = generalwork.RecodeWork(self.store_path, tile.id, layer, self.legend)
                recodes.append(self._task("generalise", f"{name}/{epoch}/{tile.id}", [tile.id, merge.id], recoding))
        return surveys, merges, recodes

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
        imagery = [made for key, made in self._composites.items() if key.split("/")[0] in epochs]
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

    def _polygon_tasks(self) -> list[Task]:
        section = self.section("change")
        name = f"{section.before}-{section.after}"
        facts = self._change_facts()
        zones = None if section.zones is None else file_stamp(section.zones)
        doing = changework.PatchesWork(
            self.store_path,
            f"change/{name}",
            tuple(t.id for t in self.tiles),
            self.legend,
            facts,
            section.zones,
            section.zone_column,
            self.out / "change",
            name,
        )
        parts = [facts, zones, section.zone_column, [t.id for t in self._change_tasks()]]
        return [self._task("polygons", name, parts, doing)]

    def _change_facts(self) -> dict[str, str]:
        """The epochs, and the first and last day of their scenes."""
        section = self.section("change")
        facts = {"epoch_from": section.before, "epoch_to": section.after}
        for side, epoch in (("from", section.before), ("to", section.after)):
            scenes = self.scenes[epoch].items if self.job.imagery and epoch in self.scenes else ()
            days = sorted(item["properties"]["datetime"][:10] for item in scenes)
            facts[f"first_scene_{side}"], facts[f"last_scene_{side}"] = (days[0], days[-1]) if days else ("", "")
        return facts

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

    def layer_ids(self) -> dict[str, dict[str, str]]:
        """What makes each layer of the store: group -> tile -> id of the task."""
        job = self.job
        recoded = [task for name in job.generalise for task in self._generalise_tasks(name)[2]]
        made = {
            "imagery": self._composites if job.imagery else {},
            "labels": {t.key: t.id for t in self._label_tasks} if job.labels else {},
            "map": self._map_ids() if job.predict else {},
            "generalised": {t.key: t.id for t in recoded},
            "change": {t.key: t.id for t in self._change_tasks()} if job.change else {},
        }
        layers: dict[str, dict[str, str]] = {}
        for kind, ids in made.items():
            for key, task_id in ids.items():
                group, _, tile = f"{kind}/{key}".rpartition("/")
                layers.setdefault(group, {})[tile] = task_id
        return layers

    def _evaluate_tasks(self) -> list[Task]:
        section, labels = self.section("evaluate"), self.job.labels
        change, layer = self.job.change, self.change_layer
        if change is not None and layer is None and not {change.before, change.after} <= set(section.truth):
            change = None
        against = {labels.epoch: f"labels/{labels.name}"} if labels and labels.epoch in section.truth else {}
        stamps = {epoch: file_stamp(path) for epoch, path in section.truth.items()}
        if layer is not None:
            stamps["change"] = [file_stamp(layer.path), layer.columns]
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
                layer,
            )
            tasks.append(self._task("evaluate", tile.id, [tile.id, read, stamps], doing))
        if change is not None:
            tasks.append(self._patch_accuracy_task(change.before, change.after, section.truth, stamps))
        return tasks

    @property
    def change_layer(self) -> work.ChangeLayer | None:
        """The polygons that change is compared with, where the job names some."""
        section = self.job.evaluate
        if section is None or section.change_truth is None:
            return None
        return work.ChangeLayer(section.change_truth, section.change_columns, self.legend)

    def _patch_accuracy_task(
        self, before: str, after: str, truth: Mapping[str, Path], stamps: Mapping[str, Any]
    ) -> Task:
        doing = changework.PatchAccuracyWork(
            self.store_path,
            f"change/{before}-{after}",
            tuple(t.id for t in self.tiles),
            self.legend,
            self.change_layer or (truth[before], truth[after]),
            self.mmu_px,
        )
        of_truth = stamps["change"] if self.change_layer else [stamps[before], stamps[after]]
        parts = [*of_truth, [t.id for t in self._change_tasks()]]
        return self._task("evaluate", "patches", [self.mmu_px, *parts], doing)


def _by_tile(*stages: dict[str, str]) -> dict[str, list[str]]:
    """Ids of tasks whose keys end in a tile's id, by tile, in order."""
    found: dict[str, list[str]] = {}
    for ids in stages:
        for key, task_id in ids.items():
            found.setdefault(key.rsplit("/", 1)[-1], []).append(task_id)
    return found
