"""Comparing a finished run with a truth that its job did not name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoflow.errors import JobError
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.outcome import split_finished
from geoflow.jobs.records import read_summary
from geoflow.jobs.summary import accuracy_summary
from geoflow.jobs.tasks import perform


def evaluate_run(out: Path, truth: Mapping[str, Path]) -> dict[str, Any]:
    """Accuracy of a finished run's maps against a truth, in the blocks that training did not see and everywhere.

    Parameters
    ----------
    out : Path
        The run's output folder.
    truth : mapping of epoch -> path
        Raster or vector of class codes of the run's legend.

    Returns
    -------
    dict
        As ``accuracy`` in ``summary.json``.

    Raises
    ------
    StoreError, JobError
        If there is no such run, it has no map of an epoch, or a truth is missing.
    """
    config = read_summary(out)["config"]
    given = {epoch: str(path.resolve()) for epoch, path in truth.items()}
    config["evaluate"] = {**(config.get("evaluate") or {}), "truth": given}
    for epoch, path in truth.items():
        if not path.exists():
            raise JobError(f"--truth {epoch}: there is no {path}")
    flow = Flow(parse_job(config), out.resolve())
    tasks = next(stage for stage in flow.stages() if stage.name == "evaluate").tasks()
    todo, outcome = split_finished(tasks, flow.receipts)
    receipts = [*outcome.receipts.values(), *(perform(task, flow.out) for task in todo)]
    return accuracy_summary(receipts, flow)
