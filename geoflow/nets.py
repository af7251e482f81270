"""The nets: one registry of architectures, one encoder type for classifier and segmenter, and how to run them.

The module lies below the rooms `learning` and `mapping`, because both build nets from a `geoflow.modelfile.ModelCard`.
It imports torch, so only code that is about to run a net imports it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from geoflow.errors import ModelError

MIN_TRANSFERRED = 0.99
"""Least share of the encoder's tensors that a transfer must fill; less means that two different nets were mixed up."""


class Classifier(nn.Module):
    """Multi-label patch classifier: an encoder, the mean over the patch, one linear layer.

    Input float32 (n, channel, y, x); output logits (n, class).
    """

    def __init__(self, encoder: nn.Module, classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(int(encoder.out_channels[-1]), classes)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        deepest = self.encoder(x)[-1]
        # A plain mean, not adaptive pooling: the backward of the latter is not deterministic on CUDA.
        return self.head(self.dropout(deepest.mean(dim=(2, 3))))


class Surroundings(nn.Module):
    """A pixel with the mean and the spread of each channel in squares around it.

    Input float32 (n, channel, y, x); output (n, 7 * channel, y, x): the pixel, then mean and standard deviation for
    each of `SQUARES`. Squares are cut off at the window's edge. The larger ones are taken at every fourth and eighth
    pixel and stretched: they vary slowly, and so cost little.
    """

    SQUARES = ((5, 1), (16, 4), (32, 8))
    """Edge of each square and the stride it is taken at, in pixels."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # a variance is the difference of two close numbers
            x = x.float()
            both = torch.cat([x, x * x], dim=1)
            parts = [x]
            for edge, stride in self.SQUARES:
                mean, square = self._means(both, edge, stride).chunk(2, dim=1)
                spread = (square - mean * mean).clamp_min(1e-4).sqrt()
                parts += [self._stretched(part, x, stride) for part in (mean, spread)]
            return torch.cat(parts, dim=1)

    @staticmethod
    def _means(x: Tensor, edge: int, stride: int) -> Tensor:
        pad = (edge - stride + 1) // 2 if stride > 1 else edge // 2
        rows = functional.avg_pool2d(x, (edge, 1), (stride, 1), (pad, 0), count_include_pad=False)
        return functional.avg_pool2d(rows, (1, edge), (1, stride), (0, pad), count_include_pad=False)

    @staticmethod
    def _stretched(part: Tensor, like: Tensor, stride: int) -> Tensor:
        if stride == 1:
            return part
        return functional.interpolate(part, like.shape[-2:], mode="bilinear", align_corners=False)


class ContextUnet(nn.Module):
    """A U-Net beside a small net of pixels and their surroundings, joined before the last layer.

    The small net (the context path) reads the spectrum of each pixel through two 1x1 layers, averages what it found
    over squares of about 40, 120, 280 and 600 m, as a soft histogram of what lies around the pixel, and mixes both. It
    has a hundredth of a U-Net's weights, costs a fifth of its time, and learns in some hundred steps from nothing,
    which a deep encoder cannot; and it works at full resolution, where the U-Net of segmentation-models-pytorch has no
    skip connection. The U-Net adds shape and wide context, for as long as it is trained. Its part starts at zero, so
    that it may join late: see `shallow`.

    Input float32 (n, channel, y, x), y and x multiples of 32; output logits (n, class, y, x).
    """

    STRIDE = 4
    SQUARES = (3, 7, 15)
    """Edges of the squares that are averaged over, in steps of `STRIDE` pixels."""

    def __init__(self, unet: Any, channels: int, classes: int, width: int = 48, joint: int = 64) -> None:
        super().__init__()
        self.encoder: nn.Module = unet.encoder
        self.decoder: nn.Module = unet.decoder
        self.shallow = False
        """True leaves the U-Net out: the context path is trained alone first, at its own cheap pace."""
        self.pixel = nn.Sequential(_layer(channels, width), _layer(width, width))
        around = width * (1 + len(self.SQUARES))
        self.around = nn.Sequential(
            _layer(around, 2 * joint), _layer(2 * joint, 2 * joint), nn.Conv2d(2 * joint, joint, 1, bias=False)
        )
        self.own = nn.Conv2d(width, joint, 1, bias=False)
        self.deep = nn.Conv2d(int(unet.segmentation_head[0].in_channels), joint, 1, bias=False)
        nn.init.zeros_(self.deep.weight)
        self.join = nn.Sequential(nn.BatchNorm2d(joint), nn.ReLU(inplace=True))
        self.segmentation_head = nn.Conv2d(joint, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixel = self.pixel(x)
        near = functional.avg_pool2d(pixel, self.STRIDE)
        squares = [functional.avg_pool2d(near, k, 1, k // 2, count_include_pad=False) for k in self.SQUARES]
        around = self.around(torch.cat([near, *squares], dim=1))
        joint = self.own(pixel) + functional.interpolate(around, scale_factor=float(self.STRIDE), mode="bilinear")
        if not self.shallow:
            joint = joint + self.deep(self.decoder(self.encoder(x)))
        return self.segmentation_head(self.join(joint))


def _layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _encoder(name: str, channels: int) -> nn.Module:
    """An encoder with fresh weights. Never downloads: smp would fetch weights for any value but None."""
    try:
        return smp.encoders.get_encoder(name, in_channels=channels, depth=5, weights=None)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"unknown encoder {name!r}: use one of segmentation-models-pytorch, such as 'resnet50', or 'tu-' and a "
            f"name of timm that offers features, such as 'tu-resnet50' ({error})"
        ) from None


def check_names(architecture: str, encoder: str) -> None:
    """See that a segmenter of these names could be built, before any work.

    Raises
    ------
    ModelError
        Naming what is known.
    """
    if architecture not in ARCHITECTURES or ARCHITECTURES[architecture].kind != "segmenter":
        known = sorted(name for name, a in ARCHITECTURES.items() if a.kind == "segmenter")
        raise ModelError(f"unknown architecture {architecture!r} of a segmenter; this geoflow knows {known}")
    _encoder(encoder, 3)


def _classifier(encoder: str, channels: int, classes: int, dropout: float = 0.2) -> nn.Module:
    return Classifier(_encoder(encoder, channels), classes, dropout)


def _unet(
    encoder: str, channels: int, classes: int, decoder_channels: Sequence[int] = (256, 128, 64, 32, 16)
) -> nn.Module:
    _encoder(encoder, channels)  # for its error message
    return smp.Unet(
        encoder_name=encoder,
        encoder_weights=None,
        decoder_channels=tuple(decoder_channels),
        in_channels=channels,
        classes=classes,
    )


def _context_unet(
    encoder: str,
    channels: int,
    classes: int,
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    context_channels: int = 48,
) -> nn.Module:
    return ContextUnet(_unet(encoder, channels, classes, decoder_channels), channels, classes, context_channels)


@dataclass(frozen=True)
class Architecture:
    """One line of the registry: what a net is for, and how it is built."""

    kind: str
    build: Callable[..., nn.Module]


ARCHITECTURES: Mapping[str, Architecture] = {
    "classifier": Architecture("classifier", _classifier),
    "unet": Architecture("segmenter", _unet),
    "context-unet": Architecture("segmenter", _context_unet),
}


def build_net(
    kind: str, architecture: str, encoder: str, channels: int, classes: int, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """A net with fresh weights.

    Parameters
    ----------
    kind : str
        ``"classifier"`` (logits (n, class)) or ``"segmenter"`` (logits (n, class, y, x)).
    architecture, encoder : str
        A key of `ARCHITECTURES`; a name of segmentation-models-pytorch's encoders, ``tu-*`` for timm's.
    channels, classes : int
    options : mapping, optional
        Further arguments of the architecture, for example ``decoder_channels``.

    Raises
    ------
    ModelError
        If the architecture, its kind, an option or the encoder is unknown.
    """
    entry = ARCHITECTURES.get(architecture)
    if entry is None or entry.kind != kind:
        known = sorted(name for name, a in ARCHITECTURES.items() if a.kind == kind)
        raise ModelError(f"unknown architecture {architecture!r} of a {kind}; this geoflow knows {known}")
    try:
        return entry.build(encoder, channels, classes, **(options or {}))
    except TypeError as error:
        raise ModelError(
            f"architecture {architecture!r} does not take the options {dict(options or {})}: {error}"
        ) from None


def build_classifier(encoder: str, channels: int, classes: int, **options: Any) -> nn.Module:
    """A multi-label patch classifier with fresh weights; see `build_net`."""
    return build_net("classifier", "classifier", encoder, channels, classes, options)


def build_segmenter(architecture: str, encoder: str, channels: int, classes: int, **options: Any) -> nn.Module:
    """A segmentation net with fresh weights; see `build_net`."""
    return build_net("segmenter", architecture, encoder, channels, classes, options)


# --- weights from another net ---------------------------------------------------------------------------------------


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
        State of a net with keys ``encoder.*``, or of a bare encoder (torchvision's and timm's files).
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
        If less than `MIN_TRANSFERRED` of the tensors fit, or the first layer does not.

    Notes
    -----
    A first-layer filter follows its band's name. Over several source periods it is summed, over several target periods
    it is shared out evenly, so that a constant scene gives the same response before and after. A band that the source
    lacks starts from the mean of the source's filters.
    """
    encoder: nn.Module = target.encoder  # type: ignore[assignment]
    state = {k.removeprefix("encoder."): v for k, v in source.items() if k.startswith("encoder.")} or dict(source)
    own = encoder.state_dict()
    first = _first_layer(encoder)
    copied = {}
    for key, value in own.items():
        given = state.get(key)
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
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from None
    return transfer_encoder(state, file_bands, target, bands)


# --- how to run a net on this machine -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compute:
    """Where nets run, and in which precision.

    Attributes
    ----------
    device : str
        ``"cuda"`` or ``"cpu"``.
    bf16 : bool
        Whether convolutions run in bfloat16 (autocast; weights stay float32). Only where the hardware does it natively:
        emulation is slower than float32.
    """

    device: str
    bf16: bool

    def place(self, net: nn.Module) -> nn.Module:
        """Move a net to the device in the memory layout that its convolutions are fastest in."""
        return net.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def tensor(self, array: Any) -> Tensor:
        """A numpy array (n, channel, y, x) on the device, channels last."""
        return torch.from_numpy(array).to(self.device).contiguous(memory_format=torch.channels_last)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of the forward pass."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)


def best_compute() -> Compute:
    """CUDA where there is one, else the CPU; bfloat16 where it is native."""
    if torch.cuda.is_available():
        return Compute("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    native = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return Compute("cpu", any(check() for check in native if check is not None))


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and ask for deterministic kernels inside the block; the caller's state comes back after it."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
