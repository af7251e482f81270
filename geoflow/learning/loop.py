"""The training loop that classifier and segmenter share: on one process or several, from the start or a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from geoflow.errors import ModelError
from geoflow.learning.checkpoint import Checkpoints, random_state, restore_random
from geoflow.learning.finalweights import WeightAverage
from geoflow.learning.ranks import Ranks
from geoflow.nets import Compute, ContextUnet

if TYPE_CHECKING:
    from geoflow.learning.lrfinder import Finder

Progress = Callable[[dict[str, Any]], None]
"""Called after every step with ``stage``, ``step``, ``steps``, ``loss``, ``samples_per_s``, ``waiting`` (share of the
time spent waiting for data) and ``lr``; after a validation with ``validation`` besides."""

Position = dict[str, Any]
"""Where a feed stands: plain values. ``lanes``, where there are any, lists those of this rank."""

Fed = tuple[Tensor, Tensor, Position]
"""Samples, targets, and where the feed stands after them."""


class Loss(Protocol):
    """A loss whose numerator and denominator are sums over samples, so that they may be added over ranks."""

    def terms(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of the mean."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean."""


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
    average : float
        Decay of the moving average of the weights that is kept in the end; 0 keeps none.
    """

    name: str
    steps: int
    lr: float
    encoder_lr: float
    shallow: bool = False
    average: float = 0.0


@dataclass(frozen=True)
class Leg:
    """Stages that draw from one feed.

    Parameters
    ----------
    feed : callable
        From a position, or None at the start, to a context in which batches can be drawn.
    stages : sequence of Stage
    """

    feed: Callable[[Position | None], AbstractContextManager[Iterator[Fed]]]
    stages: Sequence[Stage]


@dataclass(frozen=True)
class Validation:
    """How a net is judged while it learns.

    Parameters
    ----------
    judge : callable
        Of the net in evaluation mode; the higher the better. Called on all ranks, and equal on all.
    every : int
        Steps from one to the next.
    patience : int
        Training ends early after so many in a row that were no better than the best; 0 never ends it.
    """

    judge: Callable[[nn.Module], float]
    every: int
    patience: int = 0


@dataclass(frozen=True)
class Setting:
    """Where a net is trained. What it learns does not depend on it, but for the order of additions.

    Parameters
    ----------
    ranks : Ranks
        Who trains together; alone by default.
    checkpoints : Checkpoints, optional
        Where to save the state from time to time, and to go on from. None trains from the start to the end.
    progress : callable, optional
    finder : Finder, optional
        Tries learning rates in place of training, which ends with `Found`.
    """

    ranks: Ranks = field(default_factory=Ranks)
    checkpoints: Checkpoints | None = None
    progress: Progress | None = None
    finder: Finder | None = None


@dataclass
class _Best:
    """The best validation so far: its score, the weights then, and how many came after it."""

    score: float = -math.inf
    state: dict[str, Tensor] = field(default_factory=dict)
    since: int = 0


@dataclass
class Loop:
    """Takes steps of AdamW along one-cycle learning rates.

    Parameters
    ----------
    net : module
        With ``.encoder``; changed in place.
    loss : Loss
        Of float32 logits and the target.
    compute : Compute
    weight_decay : float
    setting : Setting
    accumulate : int
        Batches whose gradients make up one step.
    clip : float
        Largest norm of the gradient; a longer one is shortened to it.
    course : str
        Identity of the training, for its checkpoints.
    validation : Validation, optional
        The weights of the best one are kept in the end, in place of the last ones.
    """

    net: nn.Module
    loss: Loss
    compute: Compute
    weight_decay: float
    setting: Setting = field(default_factory=Setting)
    accumulate: int = 1
    clip: float = 1.0
    course: str = ""
    validation: Validation | None = None
    average: WeightAverage | None = None
    _best: _Best = field(default_factory=_Best)

    def run(self, legs: Sequence[Leg], after: Callable[[Iterator[Fed]], None] | None = None) -> bool:
        """Take the steps of all stages, from the checkpoint on if there is one.

        Parameters
        ----------
        legs : sequence of Leg
        after : callable, optional
            Called at the end with what is left of the last feed, for the batch-norm statistics of the final weights.

        Returns
        -------
        bool
            Whether all steps were taken; False if it ended early, because validations were no better any more.

        Raises
        ------
        ModelError
            If the loss is no longer a number, or the checkpoint is of another training.
        """
        self.setting.ranks.share_layers(self.net)
        if self.setting.finder is not None:
            self.setting.finder.run(self, legs)
        found = None if self.setting.checkpoints is None else self.setting.checkpoints.load(self.course)
        tensors, facts = found or ({}, {"leg": 0, "stage": 0, "step": 0, "position": None})
        if found:
            self._restore(tensors, facts)
        whole = True
        for number, leg in enumerate(legs):
            if number < facts["leg"]:
                continue
            here = number == facts["leg"]
            with leg.feed(facts["position"] if here else None) as feed:
                for place, stage in enumerate(leg.stages):
                    if whole and not (here and place < facts["stage"]):
                        begun = (tensors, facts) if found and here and place == facts["stage"] else None
                        whole = self._stage(stage, (number, place), feed, begun)
                if number == len(legs) - 1:
                    self._keep()
                    if after is not None:
                        after(feed)
        return whole

    def _stage(
        self, stage: Stage, at: tuple[int, int], feed: Iterator[Fed], begun: tuple[dict[str, Tensor], Any] | None
    ) -> bool:
        if stage.steps == 0:
            return True
        if stage.average > 0 and self.average is None:
            self.average = WeightAverage(self.net, stage.average)
        steps = self.steps_of(stage)
        first = 0 if begun is None else steps.restore(*begun)
        clock = _Clock()
        for step in range(first + 1, stage.steps + 1):
            drawn = [clock.next(feed) for _ in range(self.accumulate)]
            loss, save = steps.take(drawn)
            if not math.isfinite(loss):
                raise ModelError(f"training diverged: the loss of {stage.name}, step {step}, is {loss}; lower lr")
            news = {"stage": stage.name, "step": step, "steps": stage.steps, "loss": loss, "lr": steps.lr}
            news |= {"samples_per_s": clock.rate * self.setting.ranks.size, "waiting": clock.waiting}
            ended = self._validated(step, stage, news)
            if self.setting.progress is not None and self.setting.ranks.leads:
                self.setting.progress(news)
            if save:
                self._save(at, step, drawn[-1][2], steps)
            if ended:
                return False
        return True

    def steps_of(self, stage: Stage) -> _Steps:
        """What takes the steps of a stage, with the net made ready for it."""
        self.net.train()
        if isinstance(self.net, ContextUnet):
            self.net.shallow = stage.shallow
        return _Steps(self, stage)

    def _validated(self, step: int, stage: Stage, news: dict[str, Any]) -> bool:
        """Judge the net where it is time to; whether training should end."""
        judging = self.validation
        if judging is None or stage.shallow or (step % judging.every and step != stage.steps):
            return False
        self.net.eval()
        with torch.no_grad():
            score = judging.judge(self.net)
        self.net.train()
        news["validation"] = score
        if score > self._best.score:
            state = {key: value.detach().clone() for key, value in self.net.state_dict().items()}
            self._best = _Best(score, state)
        else:
            self._best.since += 1
        return 0 < judging.patience <= self._best.since

    def _keep(self) -> None:
        """The weights that are kept: those of the best validation, else the average, else the last."""
        if self.validation is not None and self._best.state:
            self.net.load_state_dict(self._best.state)
        elif self.average is not None:
            self.average.into(self.net)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self, at: tuple[int, int], step: int, position: Position, steps: _Steps) -> None:
        everywhere = self.setting.ranks.gather_plain(position)
        if not self.setting.ranks.leads or self.setting.checkpoints is None:
            return
        lanes = [lane for one in everywhere for lane in one.get("lanes", [])]
        tensors = {f"net.{key}": value for key, value in self.net.state_dict().items()}
        tensors |= steps.tensors() | random_state(self.compute.device)
        tensors |= {f"best.{key}": value for key, value in self._best.state.items()}
        facts: dict[str, Any] = {"leg": at[0], "stage": at[1], "step": step, "course": self.course}
        facts |= {"position": {**position, "lanes": lanes}, "schedule": steps.schedule_state()}
        facts["best"] = {"score": self._best.score, "since": self._best.since} if self._best.state else None
        if self.average is not None:
            tensors |= {f"average.{n}": value for n, value in enumerate(self.average.values)}
            facts["average"] = {"decay": self.average.decay, "steps": self.average.steps}
        self.setting.checkpoints.save(tensors, facts)

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.net.load_state_dict(_below("net.", tensors))
        if facts.get("average"):
            self.average = WeightAverage(self.net, facts["average"]["decay"])
            self.average.steps = facts["average"]["steps"]
            for number, value in enumerate(self.average.values):
                value.copy_(tensors[f"average.{number}"])
        if facts.get("best"):
            self._best = _Best(facts["best"]["score"], _below("best.", tensors), facts["best"]["since"])
        restore_random(tensors)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


class _Clock:
    """How fast it goes, and how much of the time is spent waiting for data."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited, self._samples = 0.0, 0

    def next(self, feed: Iterator[Fed]) -> Fed:
        asked = time.perf_counter()
        fed = next(feed)
        self._waited += time.perf_counter() - asked
        self._samples += len(fed[0])
        return fed

    @property
    def rate(self) -> float:
        return self._samples / max(1e-9, time.perf_counter() - self._began)

    @property
    def waiting(self) -> float:
        return self._waited / max(1e-9, time.perf_counter() - self._began)


class _Steps:
    """The optimizer of one stage, and the steps that it takes."""

    def __init__(self, loop: Loop, stage: Stage) -> None:
        self._loop = loop
        groups = self._groups(loop.net, stage)
        self._trained = [p for group in groups for p in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=loop.weight_decay)
        self._peaks = [float(group["lr"]) for group in groups]
        total = max(2, stage.steps)
        # The scheduler divides by pct_start * total - 1.
        rise = 0.3 if total == 4 else 0.25
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, self._peaks, total_steps=total, pct_start=rise
        )

    @property
    def lr(self) -> float:
        """The learning rate of all but the encoder."""
        return float(self._optimizer.param_groups[0]["lr"])

    def set_lr(self, lr: float) -> None:
        """Another learning rate for the next step; the encoder's stays in proportion."""
        first = self._peaks[0]
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = lr * peak / first

    def take(self, drawn: Sequence[Fed]) -> tuple[float, bool]:
        """One step: the loss over all ranks, and whether it is time for a checkpoint."""
        loop = self._loop
        self._optimizer.zero_grad(set_to_none=True)
        alone = loop.setting.ranks.size == 1 and len(drawn) == 1
        loss, save = self._alone(drawn[0]) if alone else self._together(drawn)
        nn.utils.clip_grad_norm_(self._trained, loop.clip)
        self._optimizer.step()
        self._schedule.step()
        if loop.average is not None:
            loop.average.update(loop.net)
        return loss, save

    def _logits(self, x: Tensor) -> Tensor:
        with self._loop.compute.autocast():
            logits: Tensor = self._loop.net(x)
        return logits.float()

    def _alone(self, fed: Fed) -> tuple[float, bool]:
        value = self._loop.loss(self._logits(fed[0]), fed[1])
        value.backward()
        return value.item(), self._due

    def _together(self, drawn: Sequence[Fed]) -> tuple[float, bool]:
        """Numerators are differentiated and summed, and the sum is divided: as if all had been one batch."""
        sums = torch.zeros(3, dtype=torch.float64, device=self._loop.compute.device)
        for x, target, _ in drawn:
            total, weight = self._loop.loss.terms(self._logits(x), target)
            total.backward()
            sums[:2] += torch.stack([total.detach(), weight.detach()])
        sums[2] = float(self._due and self._loop.setting.ranks.leads)
        total, weight, save = self._loop.setting.ranks.sum(sums).tolist()
        self._loop.setting.ranks.sum_gradients(self._trained, 1 / max(weight, 1e-30))
        return total / max(weight, 1e-30), save > 0

    @property
    def _due(self) -> bool:
        return self._loop.setting.checkpoints is not None and self._loop.setting.checkpoints.due

    @staticmethod
    def _groups(net: nn.Module, stage: Stage) -> list[dict[str, Any]]:
        """The parameters with their learning rates, the encoder's frozen or not."""
        encoder: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in net.named_parameters():
            inside = name.startswith("encoder.")
            parameter.requires_grad_(not inside or stage.encoder_lr > 0)
            (encoder if inside else rest).append(parameter)
        groups: list[dict[str, Any]] = [{"params": rest, "lr": stage.lr}]
        if stage.encoder_lr > 0:
            groups.append({"params": encoder, "lr": stage.encoder_lr})
        return groups

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state, by place of the parameter."""
        state = self._optimizer.state_dict()["state"]
        return {f"optimizer.{n}.{key}": value for n, values in state.items() for key, value in values.items()}

    def schedule_state(self) -> dict[str, Any]:
        """The place on the learning rate's cycle, as plain values."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self._optimizer.state_dict()["param_groups"]]
        return {"cycle": self._schedule.state_dict(), "groups": groups}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> int:
        """Go on from a checkpoint of the same stage; the steps that were taken."""
        own = self._optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below("optimizer.", tensors).items():
            number, name = key.split(".", 1)
            like = self._trained[int(number)]
            # In the parameter's own memory layout, or every step would be slower.
            state.setdefault(int(number), {})[name] = (
                torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value
            )
        kept = facts["schedule"]["groups"]
        groups = [{**group, **values} for group, values in zip(own["param_groups"], kept, strict=True)]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._schedule.load_state_dict(facts["schedule"]["cycle"])
        return int(facts["step"])
