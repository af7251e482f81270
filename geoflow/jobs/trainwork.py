"""The work of the stages that train a net: alone on one worker, or as one of several ranks on as many."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import RunCancelled
from geoflow.jobs.tasks import Done
from geoflow.places import entries, is_remote

if TYPE_CHECKING:
    from geoflow.learning.loop import Setting
    from geoflow.learning.options import ClassifierOptions, SegmenterOptions
    from geoflow.learning.ranks import Ranks
    from geoflow.learning.samples import HeldOut
    from geoflow.legends import Legend

PROGRESS_TOPIC = "geoflow-progress"
"""Dask topic on which long work says how far it is."""


@dataclass(frozen=True)
class Training(ABC):
    """What trainings have in common.

    Attributes
    ----------
    target : Path
        The model folder to make.
    checkpoint : Path
        A folder for this training alone, of which it goes on when it was interrupted; removed in the end.
    log : Path
        A folder for TensorBoard.
    """

    target: Path
    checkpoint: Path
    log: Path

    @property
    @abstractmethod
    def lanes(self) -> int:
        """How many workers may do it together, at most; their number divides it."""

    @abstractmethod
    def train(self, setting: Setting) -> tuple[Any, dict[str, Any]]:
        """The trained model, and what its receipt says of it."""

    def __call__(self) -> Done:
        """Train on this worker alone."""
        from geoflow.learning.ranks import Ranks

        return self.on(Ranks(), 1)

    def on(self, ranks: Ranks, beside: int) -> Done:
        """Train as one of several ranks, ``beside`` of which share this machine; the first one writes the model."""
        from geoflow.learning.checkpoint import Checkpoints
        from geoflow.learning.curves import Curves
        from geoflow.learning.loop import Setting
        from geoflow.modelfile import save_model

        _use_cores(beside)
        checkpoints = Checkpoints(self.checkpoint)
        with Curves(None if is_remote(self.log) or not ranks.leads else self.log) as curves:
            tell = progress_reporter()

            def progress(event: dict[str, Any]) -> None:
                tell(event)
                curves.add(event)

            trained, content = self.train(Setting(ranks, checkpoints, progress))
        if not ranks.leads:
            return Done()
        sha256 = save_model(self.target, trained)
        checkpoints.clear()
        return Done({"sha256": sha256, **content, "ranks": ranks.size}, tuple(entries(self.target)[1]))


@dataclass(frozen=True)
class ClassifierWork(Training):
    """A store of patches to a trained classifier."""

    patches: Path
    bands: tuple[str, ...]
    labels: str
    split: str | None
    options: ClassifierOptions

    @property
    def lanes(self) -> int:
        """See `Training`."""
        return self.options.lanes

    def train(self, setting: Setting) -> tuple[Any, dict[str, Any]]:
        """See `Training`."""
        from geoflow.jobs.patchsource import source_of
        from geoflow.labels.patchlabels import scheme_codes, scheme_legend
        from geoflow.learning.classifier import fit_patches

        source = source_of(self.patches, self.bands, self.labels, self.split, self.options)
        codes, legend = scheme_codes(self.labels), scheme_legend(self.labels)
        trained = fit_patches(source, codes, legend, self.bands, self.options, setting)
        return trained, {"validation": trained.card.training["validation"]}


@dataclass(frozen=True)
class TrainWork(Training):
    """Composites and labels to a trained segmenter."""

    store: Path
    imagery: str
    labels: str
    legend: Legend
    options: SegmenterOptions
    held_out: HeldOut
    encoder: Path | None

    @property
    def lanes(self) -> int:
        """See `Training`."""
        return self.options.lanes

    def train(self, setting: Setting) -> tuple[Any, dict[str, Any]]:
        """See `Training`."""
        from geoflow.learning.train import fit_segmenter
        from geoflow.modelfile import load_model
        from geoflow.store.zarr import open_for_writing

        store = open_for_writing(self.store)
        # Without Dask: the sampler reads in a thread of its own, and must not ask the cluster that waits for it.
        reflectance = store.dataset(self.imagery, dask=False)["reflectance"]
        labels = store.dataset(self.labels, dask=False)
        encoder = None if self.encoder is None else load_model(self.encoder).trained
        trained = fit_segmenter(
            reflectance,
            labels[f"level{self.legend.levels[-1]}"],
            self.legend,
            tuple(str(b) for b in reflectance["band"].values),
            tuple(str(p) for p in reflectance["period"].values),
            self.options,
            setting,
            encoder=encoder,
            held_out=self.held_out,
            border_m=labels["border_m"] if self.options.border_m > 0 else None,
        )
        return trained, {"classes": list(trained.card.codes)}


def progress_reporter(every_s: float = 0.5) -> Callable[[dict[str, Any]], None]:
    """A callback that passes progress on to whoever listens on `PROGRESS_TOPIC`; silent outside a worker.

    Dask does not end what a worker is at: where the task was withdrawn meanwhile, the callback raises
    `RunCancelled`, so that a training that nobody waits for ends at its next step.
    """
    from distributed import get_worker

    try:
        worker = get_worker()
        key = worker.get_current_task()
    except ValueError:
        return lambda event: None
    last = [0.0]

    def report(event: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - last[0] >= every_s or event.get("step") == event.get("steps"):
            last[0] = now
            state = worker.state.tasks.get(key)
            if state is None or state.state == "cancelled":
                raise RunCancelled("the training was withdrawn; its last checkpoint is kept")
            worker.log_event(PROGRESS_TOPIC, event)

    return report


def _use_cores(beside: int) -> None:
    """Training is one task at a time: it may use the cores of the workers that wait for it."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    torch.set_num_threads(max(1, cores // beside))
