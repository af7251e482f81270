"""Weights from another net: filters of the first layer follow the names of their bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from geoflow.errors import ModelError
from geoflow.weightsources import SOURCES, check_file, find_weights, is_pickle

MIN_TRANSFERRED = 0.99
"""Least share of the encoder's tensors that a transfer must fill; less means that two different nets were mixed up."""


def transfer_encoder(
    source: Mapping[str, Tensor],
    source_bands: Sequence[str],
    target: nn.Module,
    target_bands: Sequence[str],
) -> float:
    """Copy encoder weights into ``target.encoder``, fitting the first layer to another band set.

    Parameters
    ----------
    source : mapping of str to tensor
        State of a net that holds such an encoder under any name (``encoder.*``, ``backbone.*``, ``model.encoder.*``),
        or of a bare one (torchvision's and timm's files).
    source_bands, target_bands : sequence of str
        Band name of each input channel (`InputSpec.channel_bands`); a band repeats once a period.
    target : module
        A net with ``.encoder``; changed in place.

    Returns
    -------
    float
        The share of the encoder's tensors that were copied.

    Raises
    ------
    ModelError
        If the target has no encoder, less than `MIN_TRANSFERRED` of the tensors fit, or the first layer does not.

    Notes
    -----
    A first-layer filter follows its band's name. Over several source periods it is summed, over several target periods
    it is shared out evenly, so that a constant scene gives the same response before and after. A band that the source
    lacks starts from the mean of the source's filters.
    """
    encoder = getattr(target, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ModelError(
            f"a {type(target).__name__} has no encoder that could start from other weights; leave them out"
        )
    shared = int(getattr(target, "periods", 1))  # a net that reads one period at a time
    target_bands = tuple(target_bands)[: len(target_bands) // shared]
    own = encoder.state_dict()
    first = _first_layer(encoder)
    names = _names_in(source, list(own), first)
    copied = {}
    for key, value in own.items():
        given = source.get(names[key])
        if given is None:
            continue
        if key == first and given.ndim == 4 and given.shape[1] == len(source_bands):
            given = _fit_filters(given, source_bands, target_bands)
        if given.shape == value.shape:
            copied[key] = given.to(value.dtype)
    share = len(copied) / max(1, len(own))
    if share < MIN_TRANSFERRED or first not in copied:
        missing = [k for k in own if k not in copied][:3]
        raise ModelError(
            f"only {share:.0%} of the encoder's weights fit (missing, among others: {missing}); "
            f"take weights of the same encoder, whose first layer reads the {len(source_bands)} bands {source_bands}"
        )
    encoder.load_state_dict({**own, **copied})
    return share


def _names_in(source: Mapping[str, Tensor], keys: Sequence[str], first: str) -> dict[str, str]:
    """Key of the encoder -> key of the source: under the prefix below which most of them are found."""
    # segmentation-models-pytorch puts the encoders of timm one level down.
    inner = "model." if all(key.startswith("model.") for key in keys) else ""
    plain = {key: key.removeprefix(inner) for key in keys}
    ends = sorted(key.removesuffix(plain[first]) for key in source if key.endswith(plain[first]))
    prefix = max(ends, key=lambda end: sum(end + name in source for name in plain.values()), default="")
    return {key: prefix + name for key, name in plain.items()}


def _first_layer(encoder: nn.Module) -> str:
    """Key of the weights of the first convolution, the one whose inputs are bands."""
    return next(f"{name}.weight" for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d))


def _fit_filters(filters: Tensor, source_bands: Sequence[str], target_bands: Sequence[str]) -> Tensor:
    """First-layer filters (out, source channel, ky, kx) rearranged to the target's channels."""
    if tuple(source_bands) == tuple(target_bands):
        return filters
    channels = {band: [i for i, other in enumerate(source_bands) if other == band] for band in source_bands}
    by_band = {band: filters[:, chosen].sum(dim=1) for band, chosen in channels.items()}
    unknown = torch.stack(list(by_band.values())).mean(dim=0)
    return torch.stack([by_band.get(b, unknown) / list(target_bands).count(b) for b in target_bands], dim=1)


def start_encoder(
    wanted: str, target: nn.Module, encoder: str, bands: Sequence[str], file_bands: Sequence[str], pickled: bool = False
) -> dict[str, Any]:
    """Start ``target.encoder`` from published weights or a local file; see `transfer_encoder`.

    Parameters
    ----------
    wanted : str
        A key of `geoflow.weightsources.SOURCES`, or the path of a safetensors file.
    target : module
        A net with ``.encoder``; changed in place.
    encoder : str
        Name of the target's encoder.
    bands, file_bands : sequence of str
        Band of each input channel of the target, and of the file's first layer; a source has its own.
    pickled : bool
        Whether a pickle of torch will do. It is read with ``weights_only``, by a torch that is not known to let code
        through.

    Returns
    -------
    dict
        What the model's record keeps: ``name``, ``sha256``, ``bands``, and the ``share`` of the tensors that fit.

    Raises
    ------
    ModelError
        If the file is missing, damaged, hostile or of another encoder.
    """
    file = find_weights(wanted, encoder, pickled)
    sha256 = check_file(wanted, file)
    source = SOURCES.get(wanted)
    own = tuple(file_bands) if source is None else source.bands
    state = _read_pickle(file) if is_pickle(file) else _read_safetensors(file)
    share = transfer_encoder(state, own, target, bands)
    return {"name": file.name if source is None else wanted, "sha256": sha256, "bands": list(own), "share": share}


def load_encoder_file(path: str | Path, target: nn.Module, bands: Sequence[str], file_bands: Sequence[str]) -> float:
    """Start ``target.encoder`` from a local safetensors file; see `transfer_encoder`.

    ``file_bands`` names the bands of the file's first layer; files trained on photographs have B04, B03, B02.

    Raises
    ------
    ModelError
        If the file is missing, unreadable or of another encoder.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"no weights at {file}: give a safetensors file of this encoder; geoflow never downloads one")
    return transfer_encoder(_read_safetensors(file), file_bands, target, bands)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from None


_SAFE_TORCH = "2.10"
"""Code got past ``weights_only`` of older ones: CVE-2025-32434, CVE-2026-24747."""


def _read_pickle(file: Path) -> dict[str, Tensor]:
    from packaging.version import Version

    if Version(torch.__version__).release < Version(_SAFE_TORCH).release:
        raise ModelError(f"{file} is a pickle, which torch {torch.__version__} does not read safely: update torch")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch and pickle raise several kinds; none of the file's code has run
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{file} is damaged, or holds more than weights: {told}") from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{file} is not a table of weights by name")
    return {str(key): value for key, value in found.items()}
