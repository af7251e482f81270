"""What the nets are made of, beside the encoders and decoders of segmentation-models-pytorch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class TemporalUnet(nn.Module):
    """A U-Net whose encoder sees one period at a time, with one set of weights for all of them.

    Its features are fused by attention over the periods, chosen at the encoder's deepest and carried to all others, as
    in Sainte Fare Garnot and Landrieu 2021, "Panoptic Segmentation of Satellite Image Time Series with Convolutional
    Temporal Attention Networks"; here one learned query, and a learned value a period in place of a date. Attention
    starts even, which is the mean over the periods.

    Input float32 (n, period * band, y, x), y and x multiples of 32; output logits (n, class, y, x).

    Parameters
    ----------
    unet : smp.Unet
        Reads the bands of one period.
    periods : int
    """

    def __init__(self, unet: Any, periods: int) -> None:
        super().__init__()
        self.periods = periods
        self.encoder: nn.Module = unet.encoder
        self.query = nn.Conv2d(int(unet.encoder.out_channels[-1]), 1, 1, bias=False)
        self.favour = nn.Parameter(torch.zeros(periods, 1, 1, 1))
        nn.init.zeros_(self.query.weight)
        self.decoder: nn.Module = unet.decoder
        self.segmentation_head: nn.Module = unet.segmentation_head

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        dates = x.reshape(n * self.periods, -1, x.shape[2], x.shape[3])
        features = self.encoder(dates.contiguous(memory_format=torch.channels_last))
        scores = self.query(features[-1]).unflatten(0, (n, self.periods)).float() + self.favour
        attention = scores.softmax(dim=1).flatten(0, 1)
        fused = [x]  # the decoder asks the first for its size alone
        for feature in features[1:]:
            share = functional.interpolate(attention, feature.shape[-2:], mode="bilinear", align_corners=False)
            fused.append((feature * share.to(feature.dtype)).unflatten(0, (n, self.periods)).sum(dim=1))
        return self.segmentation_head(self.decoder(fused))


class TemporalCnn(nn.Module):
    """Convolutions over the periods of each pixel by itself: it knows nothing of its surroundings.

    Pelletier et al. 2019, "Temporal Convolutional Neural Network for the Classification of Satellite Image Time
    Series": three layers of `width` filters over five periods, then a dense layer of four times as many units, with
    dropout. Two dimensions of a convolution serve, periods and pixels, so that every engine runs it.

    Input float32 (n, period * band, y, x); output logits (n, class, y, x).
    """

    REACH = 5

    def __init__(self, channels: int, classes: int, periods: int, width: int, dropout: float) -> None:
        super().__init__()
        self.periods = periods
        widths = (channels // periods, width, width, width)
        self.layers = nn.Sequential(*(self._layer(a, b, dropout) for a, b in itertools.pairwise(widths)))
        self.dense = nn.Sequential(
            nn.Conv2d(width * periods, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )
        self.segmentation_head = nn.Conv2d(4 * width, classes, 1)

    def _layer(self, inputs: int, outputs: int, dropout: float) -> nn.Module:
        over = nn.Conv2d(inputs, outputs, (self.REACH, 1), padding=(self.REACH // 2, 0), bias=False)
        return nn.Sequential(over, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        series = x.reshape(n, self.periods, -1, height * width).transpose(1, 2)
        found = self.layers(series)  # (n, width, period, pixel)
        return self.segmentation_head(self.dense(found.reshape(n, -1, height, width)))


class Ensemble(nn.Module):
    """The mean of what several nets say: its logits are the logarithms of the members' mean probabilities.

    Input float32 (n, channel, y, x); output (n, class, y, x), float32.

    Each member learned from inputs of its own scale: `scale` and `shift` (member, channel, 1, 1) lead from the
    ensemble's to its own. Nodata is 0 in both.

    Parameters
    ----------
    members : sequence of modules
    channels : int
    flips : bool
        Each member sees the window in its eight rotations and reflections, and its answers, turned back, are meant too.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, members: Sequence[nn.Module], channels: int, flips: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.flips = flips
        self.register_buffer("scale", torch.ones(len(members), channels, 1, 1))
        self.register_buffer("shift", torch.zeros(len(members), channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        said = []
        for member, scale, shift in zip(self.members, self.scale, self.shift, strict=True):
            said += self._said(member, torch.where(x == 0, x, x * scale + shift))
        # A plain sum: OpenVINO does not read the export of logsumexp.
        return (sum(said[1:], start=said[0]) / len(said)).clamp_min(1e-30).log()

    def _said(self, member: nn.Module, x: Tensor) -> list[Tensor]:
        """Probabilities, one for each way to look at the window."""
        found = []
        for turned in (False, True) if self.flips else (False,):
            for axes in ((), (2,), (3,), (2, 3)) if self.flips else ((),):
                # Transposed and mirrored: together the eight symmetries of a square, in operations that ONNX has. It
                # has none that mirrors no axis.
                seen = x.transpose(2, 3) if turned else x
                answer = torch.softmax(member(seen.flip(axes) if axes else seen).float(), dim=1)
                answer = answer.flip(axes) if axes else answer
                found.append(answer.transpose(2, 3) if turned else answer)
        return found
