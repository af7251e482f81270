"""Several models at once: each an independent task over the workers, kept by its receipt.

A model is described by a file that says which patches it learns from, with which labels, and which it is asked about.
Folds, seeds, levels and variants of the labels are just so many such files.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import RunFailed
from geoflow.jobs.console import Console, QuietConsole
from geoflow.jobs.outcome import Outcome, split_finished
from geoflow.jobs.patience import Watch
from geoflow.jobs.tasks import Done, Task
from geoflow.places import read_bytes, write_bytes
from geoflow.store.receipts import Receipts, digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

    from geoflow.labels.patchstore import PatchStore
    from geoflow.learning.options import ClassifierOptions

STAGE = "models"
VERSION = 1

ONE_NET = threading.Lock()
"""Torch's random numbers and its number of threads belong to a process: one net at a time learns in it."""


@dataclass(frozen=True)
class Lesson:
    """What a classifier learns from and is asked.

    Parameters
    ----------
    train, asked : int arrays, ascending places in the store
    labels : bool array, dims (patch of the store, class)
    """

    train: NDArray[np.intp]
    asked: NDArray[np.intp]
    labels: NDArray[np.bool_]

    @property
    def id(self) -> str:
        """What tells it from others."""
        parts = (self.train.astype("<i8"), self.asked.astype("<i8"), self.labels[np.union1d(self.train, self.asked)])
        return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()

    def save(self, path: Path) -> None:
        """Write it as one file."""
        memory = io.BytesIO()
        packed = np.packbits(self.labels, axis=1)
        np.savez_compressed(memory, train=self.train, asked=self.asked, labels=packed, classes=self.labels.shape[1])
        write_bytes(path, memory.getvalue())

    @classmethod
    def load(cls, path: Path) -> Lesson:
        """The inverse of `save`."""
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as held:
            labels = np.unpackbits(held["labels"], axis=1, count=int(held["classes"])).astype(bool)
            return cls(held["train"], held["asked"], labels)


@dataclass(frozen=True)
class LessonWork:
    """A classifier of some patches, and what it says of others: float32 probabilities, dims (asked patch, class of the
    scheme), NaN for classes that occur in neither."""

    patches: Path
    bands: tuple[str, ...]
    scheme: str
    options: ClassifierOptions
    lesson: Path
    target: Path
    at_once: int = 1

    def __call__(self) -> Done:
        from geoflow.jobs.patchsource import source_from
        from geoflow.jobs.trainwork import progress_reporter
        from geoflow.labels.patchdata import complete_store
        from geoflow.labels.patchlabels import scheme_codes, scheme_legend
        from geoflow.learning.checkpoint import Checkpoints
        from geoflow.learning.classifier import fit_patches
        from geoflow.learning.loop import Setting
        from geoflow.learning.scoring import patch_logits

        lesson, codes = Lesson.load(self.lesson), scheme_codes(self.scheme)
        source = source_from(complete_store(self.patches), self.bands, lesson.labels, lesson.train, lesson.asked)
        checkpoints = Checkpoints(self.target.parent / f"{self.target.stem}-{lesson.id[:16]}")
        setting = Setting(checkpoints=checkpoints, progress=progress_reporter())
        with ONE_NET, share_of_cores(self.at_once):
            model = fit_patches(source, codes, scheme_legend(self.scheme), self.bands, self.options, setting)
            logits = patch_logits(model, source, lesson.asked, memory_mb=self.options.memory_mb)
        found = np.full((len(lesson.asked), len(codes)), np.nan, np.float32)
        found[:, [codes.index(code) for code in model.card.codes]] = 1 / (1 + np.exp(-logits))
        save_array(self.target, found)
        checkpoints.clear()
        facts = {"learned": len(lesson.train), "asked": len(lesson.asked), "classes": len(model.card.codes)}
        return Done(facts, (self.target,))


def lesson_task(
    folder: Path,
    key: str,
    store: PatchStore,
    bands: Sequence[str],
    scheme: str,
    options: ClassifierOptions,
    lesson: Lesson,
) -> Task:
    """The task of one model; its lesson is written to ``folder``, and so will be its answers (see `answers_of`)."""
    from geoflow.jobs.learnflow import trained_with

    lesson_file, plain = folder / "lessons" / f"{key}.npz", trained_with(options)
    facts = {"patches": str(store.described["id"]), "bands": list(bands), "labels": scheme}
    parts = {**facts, "options of the classifier": plain, "lesson": lesson.id}
    because = {"version": digest(VERSION)[:12], **{name: digest(part)[:12] for name, part in parts.items()}}
    task_id = digest(STAGE, VERSION, parts)
    if not lesson_file.exists() or Lesson.load(lesson_file).id != lesson.id:
        lesson.save(lesson_file)
    work = LessonWork(store.path, tuple(bands), scheme, options, lesson_file, answers_of(folder, key))
    return Task(STAGE, key, task_id, work, because=because, gpu=True)


def answers_of(folder: Path, key: str) -> Path:
    """Where the probabilities of a model lie."""
    return folder / "answers" / f"{key}.npy"


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array as ``.npy``, whole or not at all."""
    memory = io.BytesIO()
    np.save(memory, values, allow_pickle=False)
    write_bytes(path, memory.getvalue())


def load_array(path: Path) -> NDArray[Any]:
    """The inverse of `save_array`."""
    return np.asarray(np.load(io.BytesIO(read_bytes(path)), allow_pickle=False))


def run_models(
    tasks: Iterable[Task], folder: Path, title: str, cluster: str | None = None, console: Console | None = None
) -> Outcome:
    """Do the tasks that have no valid receipt in ``folder``, as many at once as there are workers.

    Raises
    ------
    RunFailed
        If one of them failed; the others are kept.
    """
    from geoflow.jobs.clusters import connect
    from geoflow.jobs.runner import run_tasks

    console, tasks = console or QuietConsole(), list(tasks)
    todo, outcome = split_finished(tasks, Receipts(folder / "receipts"))
    if todo:
        with connect(cluster, say=console.say) as client:
            console.cluster(client)
            at_once = min(busiest_host(client), len(todo))
            todo = [replace(task, work=replace(task.work, at_once=at_once)) for task in todo]  # type: ignore[type-var]
            with (
                console.stage(title, len(tasks), outcome.skipped) as progress,
                progress.listening(client, lambda event: None),
            ):
                run_tasks(client, todo, folder, outcome, Watch(progress.advance, say=console.say))
    if outcome.failed:
        first = outcome.failed[0]
        raise RunFailed(
            f"{len(outcome.failed)} of {len(tasks)} models failed, the first ({first['key']}) with: {first['error']}; "
            "what is done is kept, run again to go on"
        )
    return outcome


def busiest_host(client: Client) -> int:
    """Tasks that may run at once on the machine with most of the cluster's threads; a process learns one net at a
    time."""
    hosts = Counter(str(worker.get("host")) for worker in client.scheduler_info(n_workers=-1)["workers"].values())
    return max(hosts.values(), default=1)


@contextmanager
def share_of_cores(at_once: int) -> Iterator[None]:
    """Let torch use this process's share of the machine's cores, where so many nets learn on it at once."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // at_once))
    try:
        yield
    finally:
        torch.set_num_threads(before)
