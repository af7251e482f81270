"""The segmenter: a class for every pixel, learned from composites and rasterised labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoflow import nets
from geoflow.errors import LabelError, ModelError
from geoflow.inputs import InputSpec, channel_statistics
from geoflow.learning.loop import NORM_BATCHES, Loop, Progress, Stage, WeightAverage, plain_state, settle_norms
from geoflow.learning.losses import HierarchyLoss, class_weights
from geoflow.learning.options import SegmenterOptions
from geoflow.learning.sampler import Sampler, SamplerOptions
from geoflow.learning.samples import BLOCK_PX, HeldOut, Survey, check_borders, survey
from geoflow.legends import Legend
from geoflow.modelfile import ModelCard, TrainedModel
from geoflow.nets import Compute, ContextUnet


def fit_segmenter(
    reflectance: Any,
    labels: Any,
    legend: Legend,
    bands: Sequence[str],
    periods: Sequence[str],
    options: SegmenterOptions | None = None,
    progress: Progress | None = None,
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
    progress : callable, optional
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
    if encoder is not None and encoder.card.encoder != options.encoder:
        raise ModelError(
            f"the classifier has encoder {encoder.card.encoder!r}, the segmenter {options.encoder!r}: use one"
        )
    if tuple(labels.shape[-2:]) != tuple(reflectance.shape[-2:]):
        raise LabelError(f"labels of {tuple(labels.shape)} pixels do not lie on imagery of {tuple(reflectance.shape)}")
    if options.border_m > 0:
        check_borders(border_m, labels)
    unseen = border_m if options.border_m > 0 and options.border_weight == 0 else None
    known = legend.codes(legend.levels[-1])
    found = survey(labels, held_out, _block_px(reflectance, options), known, unseen, options.border_m)
    windows = _Windows(reflectance, labels, found, held_out, options, border_m)
    classes = found.codes
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
        _fit_segmenter_stages(net, windows, inputs, legend, compute, progress)
    shape = (int(labels.shape[-2]), int(labels.shape[-1]))
    record = {
        "options": asdict(options),
        "label_pixels": {str(c): int(n) for c, n in zip(classes, found.counts.sum(axis=0), strict=True)},
        "held_out": None if held_out is None else held_out.record(shape),
        "encoder_from": None if encoder is None else dict(encoder.card.training),
        "weights": weights,
    }
    window, halo = options.map_window_px, options.map_halo_px
    card = ModelCard(
        "segmenter", options.architecture, options.encoder, extra, inputs, classes, legend, window, halo, record
    )
    return TrainedModel(card, plain_state(net))


def _block_px(reflectance: Any, options: SegmenterOptions) -> int:
    """Edge of the blocks that windows are drawn from: a small country is one block, read once; a large one is read in
    squares that are whole chunks of usual stores."""
    fits = 2 * math.prod(int(size) for size in reflectance.shape) <= options.memory_mb * 2**20
    return max(int(size) for size in reflectance.shape[-2:]) if fits else BLOCK_PX


@dataclass(frozen=True)
class _Windows:
    """Where windows come from, for stages that want them of different sizes."""

    reflectance: Any
    labels: Any
    found: Survey
    held_out: HeldOut | None
    options: SegmenterOptions
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
        )
        return Sampler(self.reflectance, self.labels, self.found, self.held_out, drawing, self.border_m)

    def statistics(self, bands: Sequence[str], periods: Sequence[str], windows: int = 256) -> InputSpec:
        """The input description, with mean and spread measured on some windows."""
        drawn = self.sampler(64, 1, 0).raw()
        cubes = [next(drawn)[0] for _ in range(windows)]
        drawn.close()
        return InputSpec(tuple(bands), tuple(periods), *channel_statistics(cubes))


def _architecture_options(options: SegmenterOptions, periods: int) -> dict[str, Any]:
    """What the net is built with: those of the options that its architecture takes."""
    values = {**asdict(options), "periods": periods, "decoder_channels": list(options.decoder_channels)}
    entry = nets.ARCHITECTURES.get(options.architecture)
    return {} if entry is None else {name: values[name] for name in entry.options}


def _fit_segmenter_stages(
    net: nn.Module,
    windows: _Windows,
    inputs: InputSpec,
    legend: Legend,
    compute: Compute,
    progress: Progress | None,
) -> None:
    options, found = windows.options, windows.found
    counts = found.counts.sum(axis=0)
    weights = class_weights(counts, options.max_class_weight, options.class_weights, options.effective_beta)
    loss = HierarchyLoss(legend, found.codes, weights, options.level_weights, options.robustness, options.loss_form)
    loop = Loop(net, loss.to(compute.device), compute, options.weight_decay, progress)
    if options.context_steps and isinstance(net, ContextUnet):
        stage = Stage("segmenter context", options.context_steps, options.context_lr, 0.0, shallow=True)
        sampler = windows.sampler(options.context_window_px, options.context_batch, 1)
        with _on_device(sampler, inputs, stage.steps, compute) as batches:
            loop.run(stage, batches)
    loop.average = average = WeightAverage(net, options.average)
    deep = options.decoder_steps + options.steps
    sampler = windows.sampler(options.window_px, options.batch, 2)
    with _on_device(sampler, inputs, deep + NORM_BATCHES, compute) as batches:
        loop.run(Stage("segmenter decoder", options.decoder_steps, options.decoder_lr, 0.0), batches)
        loop.run(Stage("segmenter all", options.steps, options.lr, options.lr * options.encoder_lr_share), batches)
        average.into(net)
        settle_norms(net, (x for x, _ in batches), compute)


@contextmanager
def _on_device(
    sampler: Sampler, inputs: InputSpec, steps: int, compute: Compute
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Batches as tensors; their thread ends with the block, however it ends."""
    with closing(sampler.batches(inputs, steps)) as batches:
        yield ((compute.tensor(b.x), torch.from_numpy(b.target).to(compute.device)) for b in batches)
