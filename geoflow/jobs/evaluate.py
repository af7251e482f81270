"""Comparing a finished run with a truth that its job did not name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoflow.errors import JobError, StoreError
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.outcome import split_finished
from geoflow.jobs.summary import accuracy_summary
from geoflow.jobs.tasks import perform
from geoflow.places import read_bytes


def read_summary(out: Path) -> dict[str, Any]:
    """``OUT/summary.json`` of a run.

    Raises
    ------
    StoreError
        If there is none.
    """
    path = out / "summary.json"
    try:
        return dict(json.loads(read_bytes(path)))
    except FileNotFoundError:
        raise StoreError(f"{out} is not the output of a run: there is no {path.name} in it") from None
    except json.JSONDecodeError as error:
        raise StoreError(f"{path} is damaged: {error}") from None


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
