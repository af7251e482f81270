"""Learning rates for a job's nets, found on the data of a run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoflow.errors import JobError, StoreError
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.records import read_summary
from geoflow.learning.loop import Setting
from geoflow.learning.lrfinder import Finder, Found, Sweep

OPTIONS = {
    "classifier head": "head_lr",
    "classifier all": "lr",
    "segmenter context": "context_lr",
    "segmenter decoder": "decoder_lr",
    "segmenter all": "lr",
}
"""The option that is the peak rate of each stage."""


@dataclass(frozen=True)
class Rates:
    """What was found for one stage: its name, the job's option for it, the rate suggested, the one set now, the rate
    with the lowest loss, and the curve."""

    stage: str
    option: str
    suggested: float
    now: float
    best: float
    sweep: Sweep

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"option": self.option, "now": self.now, **self.sweep.to_dict()}


def rates_of(
    out: Path, stage: str, low: float, high: float, steps: int, options: Mapping[str, Any] | None = None
) -> list[Rates]:
    """Try rates on the data that a finished run learned from; its models are left as they are.

    Parameters
    ----------
    out : Path
        Output folder of a run that has come as far as its composites, labels or patches.
    stage : str
        ``classifier`` or ``train``.
    low, high : float
        The first and the last rate.
    steps : int
    options : mapping, optional
        Training options in place of the job's.

    Returns
    -------
    list of Rates
        One for every stage of the training that has steps. Each is tried from the weights that the training begins
        with, so the later stages' rates are those of a net that is less trained than it will be.

    Raises
    ------
    StoreError
        If there is no such run.
    JobError
        If a value is out of range, an option unknown, or the job has no such section.
    """
    if stage not in ("classifier", "train"):
        raise JobError(f"--stage {stage!r}: classifier or train")
    if not 0 < low < high:
        raise JobError(f"rates must rise from above 0, not from {low:g} to {high:g}")
    config = dict(read_summary(out)["config"])
    if not config.get(stage):
        raise StoreError(
            f"{out} trains no {'classifier' if stage == 'classifier' else 'segmenter'}: no {stage} section"
        )
    config[stage] = {**config[stage], "options": {**config[stage].get("options", {}), **(options or {})}}
    flow = Flow(parse_job(config), out.resolve())
    finder = Finder(low, high, steps)
    with contextlib.suppress(Found):
        flow.training(stage).train(Setting(finder=finder))
    chosen = dataclasses.asdict(flow.classifier_options if stage == "classifier" else flow.segmenter_options)
    return [_rates(sweep, chosen) for sweep in finder.found]


def _rates(sweep: Sweep, options: Mapping[str, Any]) -> Rates:
    option = OPTIONS[sweep.stage]
    best = sweep.lr[min(range(len(sweep.loss)), key=sweep.loss.__getitem__)]
    return Rates(sweep.stage, option, sweep.suggested, float(options[option]), best, sweep)


def plot_rates(found: Sequence[Rates], target: Path) -> None:
    """Draw the curves, one panel a stage, as PNG."""
    from matplotlib.figure import Figure

    from geoflow.places import local_file

    figure = Figure(figsize=(4.2 * len(found), 3.4), layout="constrained")
    for axes, rates in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        axes.semilogx(rates.sweep.lr, rates.sweep.loss, color="#1f5fa8")
        axes.axvline(rates.suggested, color="#0f766e", label=f"suggested {rates.suggested:.1e}")
        axes.axvline(rates.now, color="#8a8a8a", linestyle="--", label=f"now {rates.now:.1e}")
        axes.set_title(f"{rates.stage} ({rates.option})", fontsize=10)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss, smoothed")
        axes.legend(fontsize=8)
    with local_file(target) as file:
        figure.savefig(file, dpi=110)
