"""Which learning rate to take: the loss while the rate rises from far too low to far too high (Smith 2017, "Cyclical
Learning Rates for Training Neural Networks", section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from geoflow.learning.checkpoint import random_state, restore_random

if TYPE_CHECKING:
    from geoflow.learning.loop import Fed, Leg, Loop, Stage

SMOOTHING = 0.9
"""Decay of the moving average of the loss."""

ENOUGH = 4.0
"""A sweep ends when the smoothed loss is so many times the lowest."""


@dataclass(frozen=True)
class Sweep:
    """The loss of one stage as the learning rate rises.

    Attributes
    ----------
    stage : str
    lr, loss : tuple of float
        The rates, and the smoothed loss after a step with each.
    """

    stage: str
    lr: tuple[float, ...]
    loss: tuple[float, ...]

    @property
    def suggested(self) -> float:
        """A tenth of the rate at which the loss was lowest, or where it fell fastest if that is lower.

        Peak rates of a one-cycle schedule: a net stands these for the middle of the training, not from its start.
        """
        loss, lr = np.asarray(self.loss), np.asarray(self.lr)
        lowest = int(loss.argmin())
        if lowest < 2:
            return float(lr[0])
        slope = np.gradient(loss[: lowest + 1], np.log(lr[: lowest + 1]))
        return float(min(lr[lowest] / 10, lr[int(slope.argmin())]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"stage": self.stage, "suggested": self.suggested, "lr": list(self.lr), "loss": list(self.loss)}


class Found(Exception):
    """The rates are found; there is no trained net."""


@dataclass
class Finder:
    """Tries rates in place of training; the net is as it was before each stage's sweep.

    Parameters
    ----------
    low, high : float
        The first and the last rate.
    steps : int
        Rates in between, evenly on a logarithmic scale.
    found : list of Sweep
        One a stage, filled in by `run`.
    """

    low: float = 1e-6
    high: float = 1.0
    steps: int = 60
    found: list[Sweep] = field(default_factory=list)

    def run(self, loop: Loop, legs: Sequence[Leg]) -> None:
        """Sweep each stage that has steps, from the weights that the training would start with.

        Raises
        ------
        Found
            In the end.
        """
        for leg in legs:
            with leg.feed(None) as feed:
                self.found += [self._sweep(loop, stage, feed) for stage in leg.stages if stage.steps]
        raise Found

    def _sweep(self, loop: Loop, stage: Stage, feed: Iterator[Fed]) -> Sweep:
        state = {key: value.detach().clone() for key, value in loop.net.state_dict().items()}
        random = random_state(loop.compute.device)
        steps = loop.steps_of(replace(stage, steps=self.steps))
        rates, losses = [], []
        smooth, lowest = 0.0, math.inf
        for number, fed in zip(range(self.steps), feed, strict=False):
            lr = self.low * (self.high / self.low) ** (number / max(1, self.steps - 1))
            steps.set_lr(lr)
            loss, _ = steps.take([fed])
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * loss
            unbiased = smooth / (1 - SMOOTHING ** (number + 1))
            if not math.isfinite(loss) or (number > 5 and unbiased > ENOUGH * lowest):
                break
            lowest = min(lowest, unbiased)
            rates.append(lr)
            losses.append(unbiased)
        loop.net.load_state_dict(state)
        restore_random(random)
        return Sweep(stage.name, tuple(rates), tuple(losses))
