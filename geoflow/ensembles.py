"""Several trained models as one: it saves, loads and maps like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geoflow.errors import ModelError
from geoflow.modelfile import LoadedModel, ModelCard, TrainedModel, load_model

_ALIKE = ("bands", "periods", "codes", "legend", "window_px", "halo_px")
"""What members share: they answer for the same pixels of the same imagery, in the same order of classes."""


def ensemble(models: Sequence[str | Path | LoadedModel], flips: bool = False) -> TrainedModel:
    """Join segmenters into one, whose probabilities are the mean of theirs.

    Parameters
    ----------
    models : sequence of paths or LoadedModel
        Of the same bands, periods, classes and legend, with the same window and halo; of any architecture.
    flips : bool
        Each member sees each window in its eight rotations and reflections (test-time augmentation): of one model too,
        and eight times as slow.

    Returns
    -------
    TrainedModel
        To be written by `geoflow.modelfile.save_model`. Its record names the members by their sha256, and the held-out
        blocks that none of them learned from, where they are the same.

    Raises
    ------
    ModelError
        If there is no model, one without ``flips``, or they do not fit together; it says which one does not, and why.
    """
    loaded = [m if isinstance(m, LoadedModel) else load_model(m) for m in models]
    if not loaded or (len(loaded) == 1 and not flips):
        raise ModelError(f"an ensemble of {len(loaded)} models: give at least two, or one with flips")
    first = loaded[0]
    for other in loaded:
        _check_alike(first, other)
    card, state = first.card, _rescaling([model.card for model in loaded])
    for at, model in enumerate(loaded):
        state.update({f"members.{at}.{key}": value for key, value in model.trained.state.items()})
    members = [
        {"architecture": m.card.architecture, "encoder": m.card.encoder, "options": dict(m.card.options)}
        for m in loaded
    ]
    record: dict[str, Any] = {
        "members": [{"sha256": m.sha256, "training": dict(m.card.training)} for m in loaded],
        "held_out": _held_out(loaded),
    }
    options = {"members": members, "flips": flips}
    joined = ModelCard(
        "segmenter", "ensemble", "none", options, card.inputs, card.codes, card.legend, card.window_px, card.halo_px,
        record,
    )  # fmt: skip
    return TrainedModel(joined, state)


def _check_alike(first: LoadedModel, other: LoadedModel) -> None:
    if other.card.kind != "segmenter":
        raise ModelError(f"{other.path} is a {other.card.kind}; an ensemble is made of segmenters")
    if other.card.architecture == "ensemble":
        raise ModelError(f"{other.path} is an ensemble; join its members and the others at once")
    for name in _ALIKE:
        own, wanted = (
            getattr(card.inputs if name in ("bands", "periods") else card, name) for card in (other.card, first.card)
        )
        if own != wanted:
            shown = f"{own.name!r}, not {wanted.name!r}" if name == "legend" else f"{own}, not {wanted}"
            raise ModelError(f"{other.path} does not go with {first.path}: its {name} is {shown}")


def _rescaling(cards: Sequence[ModelCard]) -> dict[str, Any]:
    """From inputs encoded as the first model's to those of each: see `geoflow.netparts.Ensemble`."""
    import torch

    mean, std = (
        torch.tensor([getattr(card.inputs, name) for card in cards], dtype=torch.float64)[:, :, None, None]
        for name in ("mean", "std")
    )
    return {"scale": (std[0] / std).float(), "shift": ((mean[0] - mean) / std).float()}


def _held_out(loaded: Sequence[LoadedModel]) -> Any:
    """The blocks that no member learned from, if they are the same ones for all: else no block is unseen for sure."""
    blocks = [model.card.training.get("held_out") for model in loaded]
    return blocks[0] if all(b == blocks[0] for b in blocks) else None
