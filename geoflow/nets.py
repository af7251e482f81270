"""The nets: one registry of architectures, one encoder type for classifier and segmenter, and how to run them.

The module lies below the rooms `learning` and `mapping`, because both build nets from a `geoflow.modelfile.ModelCard`.
It imports torch, so only code that is about to run a net imports it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from geoflow.errors import ModelError
from geoflow.netparts import Classifier, ContextUnet, Ensemble, TemporalCnn, TemporalUnet
from geoflow.weights import load_encoder_file, start_encoder, transfer_encoder

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Compute",
    "ContextUnet",
    "best_compute",
    "build_classifier",
    "build_net",
    "build_segmenter",
    "check_names",
    "load_encoder_file",
    "reproducible",
    "start_encoder",
    "transfer_encoder",
]


def _encoder(name: str, channels: int) -> nn.Module:
    """An encoder with fresh weights. Never downloads: smp would fetch weights for any value but None."""
    try:
        return smp.encoders.get_encoder(name, in_channels=channels, depth=5, weights=None)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"unknown encoder {name!r}: use one of segmentation-models-pytorch, such as 'resnet50', or 'tu-' and a "
            f"name of timm that offers features, such as 'tu-resnet50' ({error})"
        ) from None


def check_names(architecture: str, encoder: str, pretrained: bool = False) -> None:
    """See that a segmenter of these names could be built and trained, before any work.

    Parameters
    ----------
    architecture, encoder : str
    pretrained : bool
        Whether its encoder is to start from a classifier's or from a file.

    Raises
    ------
    ModelError
        Naming what is known.
    """
    entry = ARCHITECTURES.get(architecture)
    if entry is None or entry.kind != "segmenter" or not entry.trained:
        known = sorted(name for name, a in ARCHITECTURES.items() if a.kind == "segmenter" and a.trained)
        raise ModelError(f"unknown architecture {architecture!r} of a segmenter to train; this geoflow knows {known}")
    if entry.encoder:
        _encoder(encoder, 3)
    elif pretrained:
        raise ModelError(
            f"architecture {architecture!r} has no encoder that could start from a classifier or from weights; leave "
            "them out, or choose another"
        )


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


def _fpn(encoder: str, channels: int, classes: int) -> nn.Module:
    _encoder(encoder, channels)
    return smp.FPN(encoder_name=encoder, encoder_weights=None, in_channels=channels, classes=classes)


def _deeplab(encoder: str, channels: int, classes: int) -> nn.Module:
    _encoder(encoder, channels)
    return smp.DeepLabV3Plus(encoder_name=encoder, encoder_weights=None, in_channels=channels, classes=classes)


def _segformer(encoder: str, channels: int, classes: int) -> nn.Module:
    _encoder(encoder, channels)
    return smp.Segformer(encoder_name=encoder, encoder_weights=None, in_channels=channels, classes=classes)


def _bands_of_one(channels: int, periods: int) -> int:
    if periods < 1 or channels % periods:
        raise ModelError(f"{channels} channels are not those of {periods} periods of the same bands")
    return channels // periods


def _temporal_unet(
    encoder: str,
    channels: int,
    classes: int,
    periods: int = 1,
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
) -> nn.Module:
    return TemporalUnet(_unet(encoder, _bands_of_one(channels, periods), classes, decoder_channels), periods)


def _temporal_cnn(
    encoder: str, channels: int, classes: int, periods: int = 1, width: int = 64, dropout: float = 0.5
) -> nn.Module:
    _bands_of_one(channels, periods)
    return TemporalCnn(channels, classes, periods, width, dropout)


def _ensemble(
    encoder: str, channels: int, classes: int, members: Sequence[Mapping[str, Any]], flips: bool = False
) -> nn.Module:
    if not members or any(member["architecture"] == "ensemble" for member in members):
        raise ModelError("an ensemble has at least one member, none of which is an ensemble")
    built = [build_net("segmenter", m["architecture"], m["encoder"], channels, classes, m["options"]) for m in members]
    return Ensemble(built, channels, flips)


@dataclass(frozen=True)
class Architecture:
    """One line of the registry: what a net is for, and how it is built.

    Attributes
    ----------
    kind : str
        ``"classifier"`` or ``"segmenter"``.
    build : callable
        Of encoder, channels, classes, and options by name.
    options : tuple of str
        Those of its options that training sets: fields of `geoflow.learning.options.SegmenterOptions`, and ``periods``.
    encoder : bool
        Whether it has one, which may start from other weights.
    trained : bool
        Whether it is trained as it is, or joined of trained nets.
    """

    kind: str
    build: Callable[..., nn.Module]
    options: tuple[str, ...] = ()
    encoder: bool = True
    trained: bool = True


ARCHITECTURES: Mapping[str, Architecture] = {
    "classifier": Architecture("classifier", _classifier),
    "unet": Architecture("segmenter", _unet, ("decoder_channels",)),
    "context-unet": Architecture("segmenter", _context_unet, ("decoder_channels", "context_channels")),
    "fpn": Architecture("segmenter", _fpn),
    "deeplabv3plus": Architecture("segmenter", _deeplab),
    "segformer": Architecture("segmenter", _segformer),
    "temporal-unet": Architecture("segmenter", _temporal_unet, ("decoder_channels", "periods")),
    "temporal-cnn": Architecture("segmenter", _temporal_cnn, ("periods",), encoder=False),
    "ensemble": Architecture("segmenter", _ensemble, encoder=False, trained=False),
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
    except (TypeError, KeyError) as error:
        raise ModelError(
            f"architecture {architecture!r} does not take the options {dict(options or {})}: {error}"
        ) from None


def build_classifier(encoder: str, channels: int, classes: int, **options: Any) -> nn.Module:
    """A multi-label patch classifier with fresh weights; see `build_net`."""
    return build_net("classifier", "classifier", encoder, channels, classes, options)


def build_segmenter(architecture: str, encoder: str, channels: int, classes: int, **options: Any) -> nn.Module:
    """A segmentation net with fresh weights; see `build_net`."""
    return build_net("segmenter", architecture, encoder, channels, classes, options)


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
