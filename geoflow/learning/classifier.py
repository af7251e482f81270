"""The patch classifier: it names the classes of a patch, and its encoder learns to read satellite images on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geoflow import nets
from geoflow.errors import LabelError
from geoflow.inputs import InputSpec, channel_statistics
from geoflow.learning.loop import Loop, Progress, Stage, plain_state, settle_norms
from geoflow.learning.options import ClassifierOptions
from geoflow.legends import Legend
from geoflow.modelfile import ModelCard, TrainedModel
from geoflow.nets import Compute

PATCH_PERIOD = "patch"
"""Period name of a classifier's input: a patch is one date."""


def fit_classifier(
    cube: NDArray[np.int16],
    labels: NDArray[np.bool_],
    codes: Sequence[int],
    legend: Legend,
    bands: Sequence[str],
    options: ClassifierOptions | None = None,
    progress: Progress | None = None,
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
    progress : callable, optional

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
    present = np.flatnonzero(labels.any(axis=0))
    if len(cube) < 2 or present.size == 0:
        raise LabelError(f"{len(cube)} patches with {present.size} classes are too few to train a classifier")
    order = present[np.argsort(np.asarray(codes)[present])]
    classes, wanted = tuple(int(codes[i]) for i in order), labels[:, order]
    train, held = _split(len(cube), options.validation, options.seed)
    periods = cube[:, None]  # a patch is one period
    inputs = InputSpec(tuple(bands), (PATCH_PERIOD,), *channel_statistics([periods[i] for i in train]))
    with nets.reproducible(options.seed):
        net = nets.build_classifier(options.encoder, inputs.channels, len(classes), dropout=options.dropout)
        if options.weights is not None:
            nets.load_encoder_file(options.weights, net, inputs.channel_bands(), options.weights_bands)
        compute = nets.best_compute()
        net = compute.place(net)
        data = _Patches(periods, wanted, inputs, options.batch, options.seed)
        _fit_classifier_stages(net, data, train, compute, options, progress)
        settle_norms(net, (compute.tensor(x) for x, _ in data.epoch(train, 999)), compute)
        metrics = _classifier_metrics(net, data, held, compute)
    edge = int(cube.shape[-1])
    record = {"options": asdict(options), "patches": len(cube), "validation": metrics}
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
    return TrainedModel(card, plain_state(net))


def _split(count: int, share: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Training and validation positions, both ascending and neither empty."""
    order = np.random.default_rng([seed, 3]).permutation(count)
    held = min(max(1, round(share * count)), count - 1)
    return np.sort(order[held:]), np.sort(order[:held])


@dataclass(frozen=True)
class _Patches:
    """Labelled patches as batches."""

    cube: NDArray[np.int16]
    labels: NDArray[np.bool_]
    inputs: InputSpec
    batch: int
    seed: int

    def epoch(self, which: NDArray[np.intp], number: int) -> Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """One shuffled, augmented pass."""
        rng = np.random.default_rng([self.seed, 4, number])
        order = rng.permutation(which)
        for at in range(0, len(order), self.batch):
            chosen = order[at : at + self.batch]
            if len(chosen) < 2 <= len(order):  # batch norm has no spread in a batch of one
                chosen = order[-2:]
            yield self._encoded(chosen, rng)

    def plain(self, which: NDArray[np.intp]) -> Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """One pass in order, as they are."""
        for at in range(0, len(which), self.batch):
            yield self._encoded(which[at : at + self.batch], None)

    def _encoded(
        self, chosen: NDArray[np.intp], rng: np.random.Generator | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        cubes = [self.cube[i] for i in chosen]
        if rng is not None:
            cubes = [np.rot90(c, int(rng.integers(4)), axes=(-2, -1)) for c in cubes]
            cubes = [c[..., ::-1] if rng.integers(2) else c for c in cubes]
        x, _ = self.inputs.encode(np.stack(cubes))
        return x, self.labels[chosen].astype(np.float32)


def _fit_classifier_stages(
    net: nn.Module,
    data: _Patches,
    train: NDArray[np.intp],
    compute: Compute,
    options: ClassifierOptions,
    progress: Progress | None,
) -> None:
    per_epoch = -(-len(train) // options.batch)
    # Rare classes would otherwise be learned as "never": a positive weighs as much as the square root of its rarity.
    share = data.labels[train].mean(axis=0).clip(min=1e-3)
    weight = torch.from_numpy(np.sqrt((1 - share) / share).clip(1, 5).astype(np.float32)).to(compute.device)
    loss = nn.BCEWithLogitsLoss(pos_weight=weight)
    loop = Loop(net, loss, compute, options.weight_decay, progress)
    stages = (
        (options.head_epochs, Stage("classifier head", options.head_epochs * per_epoch, options.head_lr, 0.0)),
        (options.epochs, Stage("classifier all", options.epochs * per_epoch, options.lr, options.lr)),
    )
    done = 0
    for epochs, stage in stages:
        batches = (pair for number in range(done, done + epochs) for pair in data.epoch(train, number))
        loop.run(stage, ((compute.tensor(x), torch.from_numpy(y).to(compute.device)) for x, y in batches))
        done += epochs


def _classifier_metrics(net: nn.Module, data: _Patches, held: NDArray[np.intp], compute: Compute) -> dict[str, float]:
    """F1 (micro; macro over the classes that occur) and exact match ratio at a probability of one half."""
    net.eval()
    found = []
    with torch.inference_mode():
        for x, _ in data.plain(held):
            with compute.autocast():
                logits = net(compute.tensor(x))
            found.append((logits.float() > 0).cpu().numpy())
    predicted, truth = np.concatenate(found), data.labels[held]
    hits = (predicted & truth).sum(axis=0)
    both = predicted.sum(axis=0) + truth.sum(axis=0)
    occurs = truth.any(axis=0)
    per_class = np.divide(2 * hits, both, out=np.zeros(len(both)), where=both > 0)
    return {
        "patches": len(held),
        "micro_f1": float(2 * hits.sum() / max(1, both.sum())),
        "macro_f1": float(per_class[occurs].mean()) if occurs.any() else 0.0,
        "exact_match": float((predicted == truth).all(axis=1).mean()),
    }
