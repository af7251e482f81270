"""The segmenter: a class for every pixel, learned from composites and rasterised labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from geoflow import nets
from geoflow.errors import LabelError, ModelError
from geoflow.inputs import InputSpec, channel_statistics
from geoflow.learning.loop import NORM_BATCHES, Loop, Progress, Stage, WeightAverage, plain_state, settle_norms
from geoflow.learning.losses import HierarchyLoss, class_weights
from geoflow.learning.options import SegmenterOptions
from geoflow.learning.samples import BLOCK_PX, HeldOut, Sampler, SamplerOptions, survey
from geoflow.legends import Legend
from geoflow.modelfile import ModelCard, TrainedModel
from geoflow.nets import Compute


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

    Returns
    -------
    TrainedModel
        Of the classes that occur in the training labels.

    Raises
    ------
    LabelError
        If there is nothing to learn from, or the shapes differ.
    """
    options = options or SegmenterOptions()
    if encoder is not None and encoder.card.encoder != options.encoder:
        raise ModelError(
            f"the classifier has encoder {encoder.card.encoder!r}, the segmenter {options.encoder!r}: use one"
        )
    if tuple(labels.shape[-2:]) != tuple(reflectance.shape[-2:]):
        raise LabelError(f"labels of {tuple(labels.shape)} pixels do not lie on imagery of {tuple(reflectance.shape)}")
    sampler = _sampler(reflectance, labels, legend, options, held_out)
    classes = sampler.found.codes
    inputs = _statistics(sampler, bands, periods)
    extra = _architecture_options(options)
    with nets.reproducible(options.seed):
        net = nets.build_segmenter(options.architecture, options.encoder, inputs.channels, len(classes), **extra)
        if encoder is not None:
            nets.transfer_encoder(encoder.state, encoder.card.inputs.channel_bands(), net, inputs.channel_bands())
        elif options.weights is not None:
            nets.load_encoder_file(options.weights, net, inputs.channel_bands(), options.weights_bands)
        compute = nets.best_compute()
        net = compute.place(net)
        _fit_segmenter_stages(net, sampler, inputs, legend, compute, options, progress)
    shape = (int(labels.shape[-2]), int(labels.shape[-1]))
    record = {
        "options": asdict(options),
        "label_pixels": {str(c): int(n) for c, n in zip(classes, sampler.found.counts.sum(axis=0), strict=True)},
        "held_out": None if held_out is None else held_out.record(shape),
        "encoder_from": None if encoder is None else dict(encoder.card.training),
    }
    window, halo = options.map_window_px, options.map_halo_px
    card = ModelCard(
        "segmenter", options.architecture, options.encoder, extra, inputs, classes, legend, window, halo, record
    )
    return TrainedModel(card, plain_state(net))


def _sampler(
    reflectance: Any, labels: Any, legend: Legend, options: SegmenterOptions, held_out: HeldOut | None
) -> Sampler:
    layers = int(np.prod(reflectance.shape[:2]))
    shape = (int(labels.shape[-2]), int(labels.shape[-1]))
    # A small country is one block, read once; a large one is read in squares that are whole chunks of usual stores.
    whole = 2 * layers * shape[0] * shape[1] <= options.memory_mb * 2**20
    found = survey(labels, held_out, max(shape) if whole else BLOCK_PX, legend.codes(legend.levels[-1]))
    drawing = SamplerOptions(
        window_px=options.window_px,
        batch=options.batch,
        seed=options.seed,
        border_px=options.border_px,
        rarity=options.rarity,
        jitter=options.jitter,
        memory_mb=options.memory_mb,
    )
    return Sampler(reflectance, labels, found, held_out, drawing)


def _statistics(sampler: Sampler, bands: Sequence[str], periods: Sequence[str], windows: int = 64) -> InputSpec:
    """The input description, with mean and spread measured on the first windows that training would draw."""
    drawn = sampler.raw()
    cubes = [next(drawn)[0] for _ in range(windows)]
    drawn.close()  # type: ignore[attr-defined]
    return InputSpec(tuple(bands), tuple(periods), *channel_statistics(cubes))


def _architecture_options(options: SegmenterOptions) -> dict[str, Any]:
    extra: dict[str, Any] = {"decoder_channels": list(options.decoder_channels)}
    if options.architecture == "pixel-unet":
        extra["pixel_channels"] = options.pixel_channels
    return extra


def _fit_segmenter_stages(
    net: nn.Module,
    sampler: Sampler,
    inputs: InputSpec,
    legend: Legend,
    compute: Compute,
    options: SegmenterOptions,
    progress: Progress | None,
) -> None:
    weights = class_weights(sampler.found.counts.sum(axis=0), options.max_class_weight)
    loss = HierarchyLoss(legend, sampler.found.codes, weights, options.level_weights, options.robustness).to(
        compute.device
    )
    total = options.decoder_steps + options.steps
    batches = sampler.batches(inputs, total + NORM_BATCHES)
    steps = ((compute.tensor(b.x), torch.from_numpy(b.target).to(compute.device)) for b in batches)
    average = WeightAverage(net, options.average)
    loop = Loop(net, loss, compute, options.weight_decay, progress, average)
    try:
        loop.run(Stage("segmenter decoder", options.decoder_steps, options.decoder_lr, 0.0), steps)
        loop.run(Stage("segmenter all", options.steps, options.lr, options.lr * options.encoder_lr_share), steps)
        average.into(net)
        settle_norms(net, (x for x, _ in steps), compute)
    finally:
        steps.close()
        batches.close()  # type: ignore[attr-defined]
