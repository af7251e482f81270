"""Temperature scaling of nets, saved with the model: the last layer's weights divided by the temperature.

So no engine and no way of predicting need know of it. The best class of the deepest level stays, and so do the labels
of a patch; but a map is decided from the top down, and sums of probabilities over groups depend on the temperature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geoflow import nets
from geoflow.errors import LabelError, ModelError
from geoflow.inputs import NODATA
from geoflow.learning.calibration import calibration
from geoflow.learning.options import STRIDE_PX
from geoflow.learning.samples import Aside, Block, read
from geoflow.modelfile import TrainedModel
from geoflow.nets import Compute

MOST_BLOCKS, MOST_PIXELS = 256, 2**18
"""Blocks and pixels that it is fitted on at most: it is one number."""

_TOLERANCE = 1e-3  # of logits, relative to the largest; float32 sums end within it


def calibrate_labels(trained: TrainedModel, logits: NDArray[np.float32], truth: NDArray[np.bool_]) -> TrainedModel:
    """A classifier with the temperature that suits its validation patches best.

    Parameters
    ----------
    trained : TrainedModel
    logits, truth : arrays, dims (patch, class)
        Of patches that it did not learn from, in the order of its codes. They are no longer independent of it; one
        number is fitted, and ``ece_after`` is measured on the half that it was not fitted to.

    Raises
    ------
    LabelError
        If there are fewer than two patches.
    """
    if len(truth) < 2:
        raise LabelError(f"calibrate: {len(truth)} validation patch is too few; raise classifier.options.validation")
    return scaled(trained, {**calibration(logits, truth, np.arange(len(truth)) % 2), "on": "validation patches"})


def calibrate_pixels(trained: TrainedModel, reflectance: Any, labels: Any, aside: Aside) -> TrainedModel:
    """A segmenter with the temperature that suits the labels of the blocks set aside best.

    Parameters
    ----------
    trained : TrainedModel
    reflectance, labels : array-like
        As `geoflow.learning.fit_segmenter` takes them: all bands and periods in the model's order.
    aside : Aside
        What it was trained with.

    Raises
    ------
    LabelError
        If these blocks hold no label of a class that it knows, in two of them at least.
    """
    shape = (int(labels.shape[-2]), int(labels.shape[-1]))
    blocks = np.argwhere(aside.own(shape))
    compute = nets.best_compute()
    net = compute.place(trained.build())
    rng = np.random.default_rng([aside.seed, 8])
    chosen = np.sort(rng.permutation(len(blocks))[:MOST_BLOCKS])
    most = MOST_PIXELS // len(chosen)
    found = [_block(net, trained, reflectance, labels, aside.block_px, blocks[at], compute) for at in chosen]
    found = [(logits, target) for logits, target in found if len(target)]
    if len(found) < 2:
        raise LabelError(
            f"calibrate: of the {len(chosen)} blocks set aside {len(found)} hold a label; two at least are needed: "
            "smaller blocks (train.held_out_block_px) give more of them"
        )
    drawn = [rng.permutation(len(target))[:most] for _, target in found]
    logits = np.concatenate([logits[at] for (logits, _), at in zip(found, drawn, strict=True)])
    target = np.concatenate([target[at] for (_, target), at in zip(found, drawn, strict=True)])
    part = np.concatenate([np.full(len(at), number % 2) for number, at in enumerate(drawn)])
    told = calibration(logits, target, part)
    return scaled(trained, {**told, "on": "blocks set aside", "block_px": aside.block_px, "blocks": blocks.tolist()})


def _block(
    net: nn.Module,
    trained: TrainedModel,
    reflectance: Any,
    labels: Any,
    edge: int,
    at: NDArray[np.intp],
    compute: Compute,
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Logits (pixel, class) and class positions (pixel,) of the labelled pixels of a block, seen with a margin."""
    card, size = trained.card, (int(labels.shape[-2]), int(labels.shape[-1]))
    seen, pad, inner = [], [], []
    for start, length in zip(at * edge, size, strict=True):
        low, high = max(0, start - card.halo_px), min(length, start + edge + card.halo_px)
        seen.append(slice(int(low), int(high)))
        pad.append((0, int(-(high - low) % STRIDE_PX)))
        inner.append(slice(int(start - low), int(min(start + edge, length) - low)))
    cube = np.pad(read(reflectance, Block(*seen)), ((0, 0), (0, 0), *pad), constant_values=NODATA)
    x, observed = card.inputs.encode(cube[None])
    with torch.inference_mode(), compute.autocast():
        said = net(compute.tensor(x)).float().cpu().numpy()[0]
    codes = read(labels, Block(*seen))[tuple(inner)].ravel()
    classes = np.asarray(card.codes)
    target = np.searchsorted(classes, codes).clip(max=len(classes) - 1)
    known = (classes[target] == codes) & observed[0][tuple(inner)].ravel()
    logits = said[:, inner[0], inner[1]].reshape(len(classes), -1).T
    return np.ascontiguousarray(logits[known]), target[known]


def scaled(trained: TrainedModel, told: Mapping[str, Any]) -> TrainedModel:
    """The model with its logits divided by ``told["temperature"]``, and ``told`` as ``calibration`` in its record.

    Raises
    ------
    ModelError
        If the architecture has no last layer that can be told, or its logits are not those of that layer.
    """
    name = _last_layer(trained)
    temperature = float(told["temperature"])
    state = dict(trained.state)
    for key in (f"{name}.weight", f"{name}.bias"):
        if key in state:
            state[key] = state[key] / temperature
    training = {**trained.card.training, "calibration": dict(told)}
    found = TrainedModel(dataclasses.replace(trained.card, training=training), state)
    _check(trained, found, temperature)
    return found


def _last_layer(trained: TrainedModel) -> str:
    """Name of the layer whose outputs are the logits."""
    classes = len(trained.card.codes)
    heads = [
        name
        for name, module in trained.build().named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and name.split(".")[0] in ("head", "segmentation_head")
        and module.weight.shape[0] == classes
    ]
    if not heads:
        raise ModelError(f"calibrate: the last layer of architecture {trained.card.architecture!r} is not known")
    return heads[-1]


def _check(before: TrainedModel, after: TrainedModel, temperature: float) -> None:
    """See on noise that the logits are what they were, divided by the temperature."""
    noise = np.random.default_rng(0).normal(size=(1, before.card.inputs.channels, 64, 64)).astype(np.float32)
    with torch.inference_mode():
        was, now = (model.build()(torch.from_numpy(noise)) for model in (before, after))
    if float((was / temperature - now).abs().max()) > _TOLERANCE * float(now.abs().max()):
        raise ModelError(
            f"calibrate: the logits of architecture {before.card.architecture!r} are not those of its last layer"
        )
