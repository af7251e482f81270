"""From the last step to the weights that are kept: their average, and batch-norm statistics measured anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from geoflow.nets import Compute

NORM_BATCHES = 24
"""Batches over which the batch-norm statistics are measured anew when the weights are final."""


class WeightAverage:
    """An exponential moving average of the weights: at the end of a short, noisy training it maps better than any one
    step's weights. Batch-norm statistics are not averaged but measured anew."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = [p.detach().clone() for p in net.parameters()]

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        self.steps += 1
        # Early on the average follows closely, or it would remember the random start.
        keep = min(self.decay, self.steps / (self.steps + 9))
        torch._foreach_lerp_(self.values, [p.detach() for p in net.parameters()], 1 - keep)

    @torch.no_grad()
    def into(self, net: nn.Module) -> None:
        for parameter, value in zip(net.parameters(), self.values, strict=True):
            parameter.copy_(value)


@torch.no_grad()
def settle_norms(net: nn.Module, inputs: Iterable[Tensor], compute: Compute) -> None:
    """Measure the batch-norm statistics of the final weights as plain means over some batches.

    The running statistics lag behind by tens of steps, which is a good part of a short training.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    for x in inputs:
        with compute.autocast():
            net(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU, each in its own plain memory."""
    return {
        k: v.detach().cpu().contiguous(memory_format=torch.contiguous_format).clone()
        for k, v in net.state_dict().items()
    }
