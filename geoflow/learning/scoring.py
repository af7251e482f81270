"""What a trained classifier says of patches, as they are: the ground of metrics, calibration and the audit."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geoflow import nets
from geoflow.inputs import InputSpec
from geoflow.learning.patchstream import PatchSource, PatchStream, Rows
from geoflow.modelfile import TrainedModel
from geoflow.nets import Compute


def patch_logits(
    model: TrainedModel, source: PatchSource, rows: Rows, batch: int = 64, memory_mb: float = 512
) -> NDArray[np.float32]:
    """Logits of a classifier on some patches of a source.

    Parameters
    ----------
    model : TrainedModel
        A classifier that reads the bands of the source.
    source : PatchSource
    rows : ascending positions
    batch : int
    memory_mb : float
        For pixels.

    Returns
    -------
    float32 array, dims (patch, class)
        In the order of ``rows`` and of ``model.card.codes``; the sigmoid of a logit is the class's probability.
    """
    compute = nets.best_compute()
    return stream_logits(compute.place(model.build()), source, model.card.inputs, rows, compute, batch, memory_mb)


def stream_logits(
    net: nn.Module,
    source: PatchSource,
    inputs: InputSpec,
    rows: Rows,
    compute: Compute,
    batch: int = 64,
    memory_mb: float = 512,
) -> NDArray[np.float32]:
    """`patch_logits` of a net that lies on its device already; it is left in evaluation mode."""
    net.eval()
    stream = PatchStream(source, source.labels, inputs, batch, 0, memory_mb)
    found: list[tuple[Rows, NDArray[np.float32]]] = []
    with torch.inference_mode():
        for at, x in stream.plain(rows):
            with compute.autocast():
                logits = net(compute.tensor(x))
            found.append((at, logits.float().cpu().numpy()))
    order = np.argsort(np.concatenate([at for at, _ in found]))
    return np.concatenate([logits for _, logits in found])[order]
