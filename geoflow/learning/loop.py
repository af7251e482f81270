"""The training loop that classifier and segmenter share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.errors import ModelError
from geoflow.nets import Compute, ContextUnet

Progress = Callable[[dict[str, Any]], None]
"""Called after every step with ``stage``, ``step``, ``steps``, ``loss``, ``samples_per_s``."""

NORM_BATCHES = 24
"""Batches over which the batch-norm statistics are measured anew when the weights are final."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one learning rate cycle.

    Parameters
    ----------
    name : str
        For the progress line.
    steps : int
    lr : float
        Peak learning rate.
    encoder_lr : float
        The same for the encoder; 0 freezes it, and no gradient is computed for it.
    shallow : bool
        Leave the U-Net of a `geoflow.nets.ContextUnet` out: only its context path runs and learns.
    """

    name: str
    steps: int
    lr: float
    encoder_lr: float
    shallow: bool = False


@dataclass
class Loop:
    """Takes steps of AdamW along one-cycle learning rates.

    Parameters
    ----------
    net : module
        With ``.encoder``; changed in place.
    loss : callable
        Of float32 logits and the target; a scalar.
    compute : Compute
    weight_decay : float
    progress : callable, optional
    average : WeightAverage, optional
        Follows the weights.
    """

    net: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    compute: Compute
    weight_decay: float
    progress: Progress | None = None
    average: WeightAverage | None = None

    def run(self, stage: Stage, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Take the steps of a stage.

        Raises
        ------
        ModelError
            If the loss is no longer a number.
        """
        if stage.steps == 0:
            return
        self.net.train()
        if isinstance(self.net, ContextUnet):
            self.net.shallow = stage.shallow
        groups = self._groups(stage)
        trained = [p for group in groups for p in group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        peaks = [group["lr"] for group in groups]
        total = max(2, stage.steps)
        # The scheduler divides by pct_start * total - 1.
        rise = 0.3 if total == 4 else 0.25
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=total, pct_start=rise)
        began = time.perf_counter()
        for step in range(1, stage.steps + 1):
            x, target = next(batches)
            optimizer.zero_grad(set_to_none=True)
            with self.compute.autocast():
                logits = self.net(x)
            value = self.loss(logits.float(), target)
            value.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            if self.average is not None:
                self.average.update(self.net)
            rate = step * len(x) / (time.perf_counter() - began)
            self._report(stage, step, value.item(), rate)

    def _groups(self, stage: Stage) -> list[dict[str, Any]]:
        """The parameters with their learning rates, the encoder's frozen or not."""
        encoder: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.net.named_parameters():
            inside = name.startswith("encoder.")
            parameter.requires_grad_(not inside or stage.encoder_lr > 0)
            (encoder if inside else rest).append(parameter)
        groups: list[dict[str, Any]] = [{"params": rest, "lr": stage.lr}]
        if stage.encoder_lr > 0:
            groups.append({"params": encoder, "lr": stage.encoder_lr})
        return groups

    def _report(self, stage: Stage, step: int, loss: float, rate: float) -> None:
        if not math.isfinite(loss):
            raise ModelError(f"training diverged: the loss of {stage.name}, step {step}, is {loss}; lower lr")
        if self.progress is not None:
            news = {"stage": stage.name, "step": step, "steps": stage.steps, "loss": loss, "samples_per_s": rate}
            self.progress(news)


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
        if self.decay > 0:
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
