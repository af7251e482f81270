"""The patch classifier: it names the classes of a patch, and its encoder learns to read satellite images on the way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geoflow import nets
from geoflow.errors import LabelError
from geoflow.inputs import InputSpec
from geoflow.learning.calibrate import calibrate_labels
from geoflow.learning.checkpoint import course_of
from geoflow.learning.finalweights import plain_state, settle_norms
from geoflow.learning.lanes import Lanes, prefetched
from geoflow.learning.loop import (
    Fed,
    Leg,
    Loop,
    Position,
    Setting,
    Stage,
    Validation,
)
from geoflow.learning.losses import MultiLabelLoss
from geoflow.learning.metrics import label_metrics
from geoflow.learning.options import ClassifierOptions
from geoflow.learning.patchstream import PatchSource, PatchStream
from geoflow.learning.scoring import stream_logits
from geoflow.legends import Legend
from geoflow.modelfile import ModelCard, TrainedModel
from geoflow.nets import Compute

PATCH_PERIOD = "patch"
"""Period name of a classifier's input: a patch is one date."""

SETTLE_BATCHES = 512
"""Batches over which batch-norm statistics are measured anew: all of a small data set, enough of a large one."""


def fit_classifier(
    cube: NDArray[np.int16],
    labels: NDArray[np.bool_],
    codes: Sequence[int],
    legend: Legend,
    bands: Sequence[str],
    options: ClassifierOptions | None = None,
    setting: Setting | None = None,
) -> TrainedModel:
    """Train a multi-label classifier of patches.

    Parameters
    ----------
    cube : int16 array, dims (patch, band, y, x)
        Reflectance x 10000, nodata -32768.
    labels : bool array, dims (patch, class)
    codes : sequence of int
        Class code of each column of ``labels``, of the legend's deepest level.
    legend : Legend
    bands : sequence of str
        Band names in the order of ``cube``.
    options : ClassifierOptions, optional
    setting : Setting, optional
        Where it is trained: with whom together, and with which checkpoints.

    Returns
    -------
    TrainedModel
        Of the classes that occur; its record holds micro and macro F1 and the exact match ratio on the validation
        patches.

    Raises
    ------
    LabelError
        If there are fewer than two patches, or none carries a label.
    """
    options = options or ClassifierOptions()
    source = PatchSource.of(cube, labels, options.validation, options.seed)
    return fit_patches(source, codes, legend, bands, options, setting)


def fit_patches(
    source: PatchSource,
    codes: Sequence[int],
    legend: Legend,
    bands: Sequence[str],
    options: ClassifierOptions | None = None,
    setting: Setting | None = None,
) -> TrainedModel:
    """`fit_classifier` from patches that are read as they are needed: pixels take ``options.memory_mb``, however many.

    Raises
    ------
    LabelError
        If no patch to learn from carries a label, or there is none to measure on.
    """
    options = options or ClassifierOptions()
    present = np.flatnonzero(source.labels[source.train].any(axis=0) | source.labels[source.held].any(axis=0))
    if len(source.train) == 0 or len(source.held) == 0 or present.size == 0:
        raise LabelError(
            f"{len(source.train)} patches to learn from and {len(source.held)} to measure on, with {present.size} "
            "classes, are too few to train a classifier"
        )
    order = present[np.argsort(np.asarray(codes)[present])]
    classes, wanted = tuple(int(codes[i]) for i in order), source.labels[:, order]
    inputs = InputSpec(tuple(bands), (PATCH_PERIOD,), *source.statistics)
    setting = setting or Setting()
    lanes = Lanes.of_rank(options.lanes, setting.ranks.rank, setting.ranks.size)
    with nets.reproducible(options.seed):
        net = nets.build_classifier(options.encoder, inputs.channels, len(classes), dropout=options.dropout)
        weights = None
        if options.weights is not None:
            weights = nets.start_encoder(
                options.weights, net, options.encoder, inputs.channel_bands(), options.weights_bands,
                options.weights_pickle,
            )  # fmt: skip
        compute = nets.best_compute()
        net = compute.place(net)
        data = PatchStream(
            source, wanted, inputs, options.batch, options.seed, options.memory_mb, lanes, options.alterations
        )
        training = _Training(net, data, compute, options, setting)
        whole = training.run(course_of(asdict(options), inputs.to_dict(), classes, len(source.train)))
        settling = itertools.islice(data.epoch(source.train, 999), SETTLE_BATCHES)
        settle_norms(net, (compute.tensor(x) for x, _ in settling), compute)
        logits = stream_logits(net, source, inputs, source.held, compute, options.batch, options.memory_mb)
        metrics = _classifier_metrics(logits > 0, data.labels[source.held])
    edge = int(source.shape[-1])
    patches = len(source.train) + len(source.held)
    record = {
        "options": asdict(options),
        "patches": patches,
        "validation": metrics,
        "weights": weights,
        "ended_early": not whole,
    }
    card = ModelCard(
        "classifier",
        "classifier",
        options.encoder,
        {"dropout": options.dropout},
        inputs,
        classes,
        legend,
        edge,
        0,
        record,
    )
    trained = TrainedModel(card, plain_state(net))
    return calibrate_labels(trained, logits, data.labels[source.held]) if options.calibrate else trained


@dataclass
class _Training:
    """The stages of a classifier over the epochs of its patches."""

    net: nn.Module
    data: PatchStream
    compute: Compute
    options: ClassifierOptions
    setting: Setting

    def run(self, course: str) -> bool:
        """Train; whether all epochs were run."""
        options, train = self.options, self.data.source.train
        # Rare classes would otherwise be learned as "never": a positive weighs as the square root of its rarity.
        share = self.data.labels[train].mean(axis=0).clip(min=1e-3)
        weight = np.sqrt((1 - share) / share).clip(1, 5).astype(np.float32)
        loss = MultiLabelLoss(torch.from_numpy(weight).to(self.compute.device), options.loss)
        steps = self._epoch_steps
        stages = (
            Stage("classifier head", options.head_epochs * steps, options.head_lr, 0.0),
            Stage("classifier all", options.epochs * steps, options.lr, options.lr),
        )
        loop = Loop(
            self.net,
            loss,
            self.compute,
            options.weight_decay,
            self.setting,
            options.accumulate,
            options.clip,
            course,
            Validation(self._judge, steps, options.patience) if options.keep == "best" else None,
        )
        return loop.run([Leg(self._feed, stages)])

    @property
    def _epoch_steps(self) -> int:
        return max(1, self.data.steps(self.data.source.train) // self.options.accumulate)

    @property
    def _all_batches(self) -> int:
        return (self.options.head_epochs + self.options.epochs) * self._epoch_steps * self.options.accumulate

    @contextmanager
    def _feed(self, position: Position | None) -> Iterator[Iterator[Fed]]:
        place = position or {"epoch": 0, "batch": 0}
        taken = int(place["epoch"]) * self.data.steps(self.data.source.train) + int(place["batch"])
        with closing(prefetched(lambda: itertools.islice(self._batches(place), self._all_batches - taken))) as batches:
            yield (
                (self.compute.tensor(x), torch.from_numpy(y).to(self.compute.device), place) for x, y, place in batches
            )

    def _batches(self, position: Position) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], Position]]:
        skip = int(position["batch"])
        for epoch in itertools.count(int(position["epoch"])):
            batches = self.data.epoch(self.data.source.train, epoch, skip)
            for number, (x, y) in enumerate(batches, start=skip + 1):
                yield x, y, {"epoch": epoch, "batch": number}
            skip = 0

    def _judge(self, net: nn.Module) -> float:
        """Micro F1 on the validation patches, each rank with its share of them."""
        ranks, source = self.setting.ranks, self.data.source
        held = source.held[ranks.rank :: ranks.size]
        counts = torch.zeros(2, dtype=torch.float64)
        if len(held):
            logits = stream_logits(net, source, self.data.inputs, held, self.compute, self.data.batch)
            predicted, truth = logits > 0, self.data.labels[held]
            counts += torch.tensor([float((predicted & truth).sum()), float(predicted.sum() + truth.sum())])
        hits, both = ranks.sum(counts.to(ranks.device)).tolist()
        return 2 * hits / max(1.0, both)


def _classifier_metrics(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    """The figures of a model's record: F1 (micro; macro over the classes that occur), exact match ratio."""
    found = label_metrics(predicted, truth, range(truth.shape[1]))
    figures = {"micro_f1": found.f1_micro, "macro_f1": found.f1_macro, "exact_match": found.exact}
    return {"patches": found.patches, **{name: 0.0 if math.isnan(value) else value for name, value in figures.items()}}
