"""The learning-rate finder: it tells rates that learn from those that do not, and leaves the net as it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from geoflow.errors import JobError, StoreError
from geoflow.jobs.rates import plot_rates, rates_of
from geoflow.learning.loop import Fed, Leg, Loop, Setting, Stage
from geoflow.learning.losses import MultiLabelLoss
from geoflow.learning.lrfinder import Finder, Found, Sweep
from geoflow.nets import Compute


def sweep(dropout: float = 0.0) -> tuple[Sweep, nn.Module, dict[str, torch.Tensor]]:
    """Of a small net on labels that can be learned."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(64, 4)
    y = (x.sum(dim=1, keepdim=True) > 0).float()

    @contextmanager
    def feed(position: Any) -> Iterator[Iterator[Fed]]:
        yield itertools.repeat((x, y, {}))

    finder = Finder(low=1e-6, high=100.0, steps=100)
    loop = Loop(net, MultiLabelLoss(torch.ones(1)), Compute("cpu", False), 0.0, Setting(finder=finder))
    with pytest.raises(Found):
        loop.run([Leg(feed, [Stage("one", 5, 1e-3, 0.0), Stage("none", 0, 1e-3, 0.0)])])
    assert len(finder.found) == 1, "a stage without steps has no rate"
    return finder.found[0], net, before


def test_it_suggests_a_rate_that_learns() -> None:
    found, _, _ = sweep()
    assert 1e-4 < found.suggested < 0.5
    falls = found.loss[0] - min(found.loss)
    assert falls > 0.2
    assert list(found.lr) == sorted(found.lr)
    reached = found.loss[min(range(len(found.lr)), key=lambda n: abs(found.lr[n] - 1e-5))]
    assert found.loss[0] - reached < 0.05, "far too low a rate learns nothing"


def test_the_net_and_the_random_numbers_are_as_they_were() -> None:
    _, net, before = sweep(dropout=0.5)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    after = torch.rand(3)
    torch.manual_seed(0)
    [nn.Linear(4, 16), nn.Linear(16, 1)]
    torch.randn(64, 4)
    assert torch.equal(after, torch.rand(3))


def test_a_loss_that_only_rises_gets_the_lowest_rate() -> None:
    assert Sweep("one", (1e-3, 1e-2, 1e-1), (1.0, 2.0, 3.0)).suggested == 1e-3


def test_rates_of_a_finished_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = finished
    few = {"batch": 2, "window_px": 32, "context_batch": 2, "context_window_px": 32}
    found = rates_of(out, "train", 1e-5, 1.0, 10, few)
    assert [(rates.stage, rates.option) for rates in found] == [
        ("segmenter context", "context_lr"),
        ("segmenter all", "lr"),
    ]
    assert all(1e-5 <= rates.suggested <= 1.0 for rates in found)
    assert found[1].now == 1e-3
    plot_rates(found, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(JobError, match="--stage 'predict': classifier or train"):
        rates_of(out, "predict", 1e-5, 1.0, 10)
    with pytest.raises(JobError, match="rates must rise from above 0"):
        rates_of(out, "train", 1.0, 1e-5, 10)
    with pytest.raises(StoreError):
        rates_of(tmp_path, "train", 1e-5, 1.0, 10)
