"""The segmenter: a class for every pixel, learned from composites and rasterised labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from geoflow import nets
from geoflow.errors import LabelError, ModelError
from geoflow.inputs import InputSpec, channel_statistics
from geoflow.learning.calibrate import calibrate_pixels
from geoflow.learning.checkpoint import course_of
from geoflow.learning.finalweights import NORM_BATCHES, plain_state, settle_norms
from geoflow.learning.lanes import Lanes
from geoflow.learning.loop import (
    Fed,
    Leg,
    Loop,
    Position,
    Setting,
    Stage,
    Validation,
)
from geoflow.learning.losses import HierarchyLoss, class_weights
from geoflow.learning.options import SegmenterOptions
from geoflow.learning.ranks import Ranks
from geoflow.learning.sampler import Sampler, SamplerOptions
from geoflow.learning.samples import BLOCK_PX, IGNORE, Aside, HeldOut, Hidden, Survey, check_borders, survey
from geoflow.learning.validation import validation_sampler
from geoflow.legends import Legend
from geoflow.modelfile import ModelCard, TrainedModel
from geoflow.nets import Compute, ContextUnet

VALIDATION_BATCHES = 16
"""Batches that a net is judged by while it learns."""


def fit_segmenter(
    reflectance: Any,
    labels: Any,
    legend: Legend,
    bands: Sequence[str],
    periods: Sequence[str],
    options: SegmenterOptions | None = None,
    setting: Setting | None = None,
    *,
    encoder: TrainedModel | None = None,
    held_out: HeldOut | None = None,
    border_m: Any = None,
) -> TrainedModel:
    """Train a segmenter on a country's composites and its rasterised labels.

    Parameters
    ----------
    reflectance : array-like int16, dims (period, band, y, x)
        Reflectance x 10000, nodata -32768: numpy, Zarr, or xarray over Zarr; never read as a whole where it is large.
    labels : array-like of codes, dims (y, x)
        Codes of the legend's deepest level, 0 nodata, on the same pixels.
    legend : Legend
    bands, periods : sequences of str
        Names in the order of ``reflectance``.
    options : SegmenterOptions, optional
    setting : Setting, optional
        Where it is trained: with whom together, and with which checkpoints.
    encoder : TrainedModel, optional
        A classifier whose encoder the segmenter starts from.
    held_out : HeldOut, optional
        Blocks whose labels are never seen; they are listed in the model's record.
    border_m : array-like int16, dims (y, x), optional
        Metres to the nearest class border, on the same pixels; needed where ``options.border_m`` is above 0. The store
        has it beside the labels; `geoflow.labels.border_distance` makes it.

    Returns
    -------
    TrainedModel
        Of the classes that occur in the training labels.

    Raises
    ------
    LabelError
        If there is nothing to learn from, the shapes differ, or distances to borders are needed and not given.
    """
    options = options or SegmenterOptions()
    if options.calibrate and not isinstance(held_out, Aside):
        aside = Aside.beside(held_out, options.seed)
        trained = fit_segmenter(
            reflectance, labels, legend, bands, periods, options, setting,
            encoder=encoder, held_out=aside, border_m=border_m,
        )  # fmt: skip
        return calibrate_pixels(trained, reflectance, labels, aside)
    if encoder is not None and encoder.card.encoder != options.encoder:
        raise ModelError(
            f"the classifier has encoder {encoder.card.encoder!r}, the segmenter {options.encoder!r}: use one"
        )
    if tuple(labels.shape[-2:]) != tuple(reflectance.shape[-2:]):
        raise LabelError(f"labels of {tuple(labels.shape)} pixels do not lie on imagery of {tuple(reflectance.shape)}")
    if options.border_m > 0:
        check_borders(border_m, labels)
    setting = setting or Setting()
    windows = _windows_of(reflectance, labels, border_m, legend, held_out, options, setting.ranks)
    found, classes = windows.found, windows.found.codes
    inputs = windows.statistics(bands, periods)
    extra = _architecture_options(options, len(inputs.periods))
    with nets.reproducible(options.seed):
        net = nets.build_segmenter(options.architecture, options.encoder, inputs.channels, len(classes), **extra)
        weights = None
        if encoder is not None:
            nets.transfer_encoder(encoder.state, encoder.card.inputs.channel_bands(), net, inputs.channel_bands())
        elif options.weights is not None:
            weights = nets.start_encoder(
                options.weights, net, options.encoder, inputs.channel_bands(), options.weights_bands,
                options.weights_pickle,
            )  # fmt: skip
        compute = nets.best_compute()
        net = compute.place(net)
        training = _Training(net, windows, inputs, legend, compute, setting)
        start = None if encoder is None else encoder.card.to_dict()
        whole = training.run(course_of(asdict(options), inputs.to_dict(), classes, found.counts.tolist(), start))
    shape = (int(labels.shape[-2]), int(labels.shape[-1]))
    record = {
        "options": asdict(options),
        "label_pixels": {str(c): int(n) for c, n in zip(classes, found.counts.sum(axis=0), strict=True)},
        "held_out": None if held_out is None else held_out.record(shape),
        "encoder_from": None if encoder is None else dict(encoder.card.training),
        "weights": weights,
        "ended_early": not whole,
    }
    window, halo = options.map_window_px, options.map_halo_px
    card = ModelCard(
        "segmenter", options.architecture, options.encoder, extra, inputs, classes, legend, window, halo, record
    )
    return TrainedModel(card, plain_state(net))


@dataclass(frozen=True)
class _Windows:
    """Where windows come from, for stages that want them of different sizes."""

    reflectance: Any
    labels: Any
    found: Survey
    hidden: Hidden | None
    options: SegmenterOptions
    lanes: Lanes
    border_m: Any = None

    def sampler(self, window_px: int, batch: int, stage: int) -> Sampler:
        """Windows of a size, drawn in an order of each stage's own."""
        options = self.options
        drawing = SamplerOptions(
            window_px=window_px,
            batch=batch,
            seed=options.seed * 8 + stage,
            border_m=options.border_m,
            border_weight=options.border_weight,
            rarity=options.rarity,
            jitter=options.jitter,
            memory_mb=options.memory_mb,
            alterations=options.alterations,
        )
        return Sampler(self.reflectance, self.labels, self.found, self.hidden, drawing, self.border_m, self.lanes)

    def statistics(self, bands: Sequence[str], periods: Sequence[str], windows: int = 256) -> InputSpec:
        """The input description, with mean and spread measured on some windows; the same on all ranks."""
        drawn = self.sampler(64, self.lanes.total, 0).raw()
        cubes = [next(drawn)[0] for _ in range(windows)]
        drawn.close()
        return InputSpec(tuple(bands), tuple(periods), *channel_statistics(cubes))


def _windows_of(
    reflectance: Any,
    labels: Any,
    border_m: Any,
    legend: Legend,
    held_out: HeldOut | None,
    options: SegmenterOptions,
    ranks: Ranks,
) -> _Windows:
    """What there is to learn from, counted."""
    lanes = Lanes.of_rank(options.lanes, ranks.rank, ranks.size)
    hidden: Hidden | None = held_out
    if options.keep == "best":
        hidden = Aside.beside(held_out, options.seed, options.validation_share)
    unseen = border_m if options.border_m > 0 and options.border_weight == 0 else None
    known, edge_px = legend.codes(legend.levels[-1]), _block_px(reflectance, options)
    while True:
        found = survey(labels, hidden, edge_px, known, unseen, options.border_m)
        usable = int((found.counts.sum(axis=1) > 0).sum())
        # Every lane wants a part of the country of its own, as long as a part is much larger than a window.
        if usable >= lanes.total or edge_px < 4 * options.window_px:
            return _Windows(reflectance, labels, found, hidden, options, lanes, border_m)
        edge_px //= 2


def _block_px(reflectance: Any, options: SegmenterOptions) -> int:
    """Edge of the blocks that windows are drawn from: a small country is one block, read once; a large one is read in
    squares that are whole chunks of usual stores."""
    fits = 2 * math.prod(int(size) for size in reflectance.shape) <= options.memory_mb * 2**20
    return max(int(size) for size in reflectance.shape[-2:]) if fits and options.lanes == 1 else BLOCK_PX


def _architecture_options(options: SegmenterOptions, periods: int) -> dict[str, Any]:
    """What the net is built with: those of the options that its architecture takes."""
    values = {**asdict(options), "periods": periods, "decoder_channels": list(options.decoder_channels)}
    entry = nets.ARCHITECTURES.get(options.architecture)
    return {} if entry is None else {name: values[name] for name in entry.options}


@dataclass
class _Training:
    """The stages of a segmenter."""

    net: nn.Module
    windows: _Windows
    inputs: InputSpec
    legend: Legend
    compute: Compute
    setting: Setting

    def run(self, course: str) -> bool:
        """Train; whether all steps were taken."""
        options, found = self.windows.options, self.windows.found
        counts = found.counts.sum(axis=0)
        weights = class_weights(counts, options.max_class_weight, options.class_weights, options.effective_beta)
        form, levels = options.loss_form, options.level_weights
        loss = HierarchyLoss(self.legend, found.codes, weights, levels, options.robustness, form)
        loop = Loop(
            self.net,
            loss.to(self.compute.device),
            self.compute,
            options.weight_decay,
            self.setting,
            options.accumulate,
            options.clip,
            course,
            self._validation(),
        )
        legs = [Leg(self._feed(options.window_px, options.batch, 2, self._deep_batches), self._deep_stages())]
        if options.context_steps and isinstance(self.net, ContextUnet):
            stage = Stage("segmenter context", options.context_steps, options.context_lr, 0.0, shallow=True)
            batches = options.context_steps * options.accumulate
            legs.insert(0, Leg(self._feed(options.context_window_px, options.context_batch, 1, batches), [stage]))
        return loop.run(legs, self._settle)

    def _settle(self, feed: Iterator[Fed]) -> None:
        settle_norms(self.net, (x for x, _, _ in itertools.islice(feed, NORM_BATCHES)), self.compute)

    @property
    def _deep_batches(self) -> int:
        options = self.windows.options
        return (options.decoder_steps + options.steps) * options.accumulate + NORM_BATCHES

    def _deep_stages(self) -> list[Stage]:
        options, average = self.windows.options, self.windows.options.average
        encoder_lr = options.lr * options.encoder_lr_share
        return [
            Stage("segmenter decoder", options.decoder_steps, options.decoder_lr, 0.0, average=average),
            Stage("segmenter all", options.steps, options.lr, encoder_lr, average=average),
        ]

    def _feed(
        self, window_px: int, batch: int, number: int, batches: int
    ) -> Callable[[Position | None], AbstractContextManager[Iterator[Fed]]]:
        """Batches as tensors; their thread ends with the context, however it ends."""
        sampler = self.windows.sampler(window_px, batch, number)

        @contextmanager
        def feed(position: Position | None) -> Iterator[Iterator[Fed]]:
            taken = 0 if position is None else int(position["batch"])
            lanes = None if position is None else position["lanes"]
            with closing(sampler.batches(self.inputs, batches - taken, lanes)) as drawn:
                yield (
                    (
                        self.compute.tensor(b.x),
                        torch.from_numpy(b.target).to(self.compute.device),
                        {"batch": place, "lanes": b.position},
                    )
                    for place, b in enumerate(drawn, start=taken + 1)
                )

        return feed

    def _validation(self) -> Validation | None:
        """Windows that nothing is learned from, the same in every validation; each rank judges its share of them."""
        windows, options, ranks = self.windows, self.windows.options, self.setting.ranks
        if options.keep != "best" or not isinstance(windows.hidden, Aside):
            return None
        known, classes = self.legend.codes(self.legend.levels[-1]), windows.found.codes
        sampler = validation_sampler(windows.reflectance, windows.labels, windows.hidden, classes, known, options)
        batches = list(sampler.batches(self.inputs, VALIDATION_BATCHES))[ranks.rank :: ranks.size]

        def judge(net: nn.Module) -> float:
            counts = torch.zeros(2, dtype=torch.float64, device=ranks.device)
            for batch in batches:
                with self.compute.autocast():
                    best = net(self.compute.tensor(batch.x)).argmax(dim=1).cpu()
                target = torch.from_numpy(batch.target)
                counts += torch.tensor([int((best == target).sum()), int((target != IGNORE).sum())]).to(counts)
            right, all_px = ranks.sum(counts).tolist()
            return right / max(1.0, all_px)

        return Validation(judge, options.validation_steps, options.patience)
