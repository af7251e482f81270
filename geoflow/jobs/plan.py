"""What a run would do, before it does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geoflow.jobs.checks import check_job
from geoflow.jobs.console import Console, QuietConsole
from geoflow.jobs.estimate import bytes_to_read, bytes_to_write, peak_worker_bytes
from geoflow.jobs.flow import Flow
from geoflow.jobs.outcome import split_finished, why_again
from geoflow.jobs.spec import Job
from geoflow.places import place


@dataclass(frozen=True)
class StagePlan:
    """A stage's tasks.

    Parameters
    ----------
    name, title : str
    tasks : int
        How many there are.
    done : int
        How many are kept as they are.
    redo : int
        How many were done before and must be done again; the rest is new.
    why : mapping of reason -> int
        Why they must, and how many of them.
    note : str
        Where it cannot be known yet: what must be done first.
    """

    name: str
    title: str
    tasks: int
    done: int
    redo: int = 0
    why: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def new(self) -> int:
        """How many were never done."""
        return self.tasks - self.done - self.redo


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    grid: dict[str, Any]
    stages: tuple[StagePlan, ...]
    scenes: dict[str, dict[str, Any]]
    bytes_to_read: int
    bytes_to_write: int
    peak_worker_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        stages = {
            s.name: {"title": s.title, "tasks": s.tasks, "keep": s.done, "new": s.new, "redo": s.redo}
            | {"why": dict(s.why), "note": s.note}
            for s in self.stages
        }
        sizes = {key: getattr(self, key) for key in ("bytes_to_read", "bytes_to_write", "peak_worker_bytes")}
        return {"grid": self.grid, "stages": stages, "scenes": self.scenes, **sizes}


def make_plan(
    job: Job,
    out: str | Path | None = None,
    limit: int | None = None,
    refresh: bool = False,
    console: Console | None = None,
) -> Plan:
    """Plan a job: check it as a run would, find its scenes, and count what is done. Computes no pixel.

    Parameters
    ----------
    job, out, limit, refresh, console
        See `geoflow.jobs.run.run_job`.

    Raises
    ------
    GeoflowError
        As a run would, before work starts.
    """
    folder = place(out) if out is not None else Path("out") / job.name
    flow = Flow(job, folder.resolve(), limit, refresh)
    flow.freezes = not refresh  # what a new search would change is shown, not done
    check_job(flow, console or QuietConsole())
    stages, waits_for = [], ""
    for stage in flow.stages():
        tasks = stage.tasks()
        todo, outcome = split_finished(tasks, flow.receipts)
        # Ids of what comes after training depend on the weights, which are not there yet.
        note = f"after {waits_for}" if waits_for and todo else ""
        why = Counter(reason for task in todo if (reason := why_again(task, flow.receipts)))
        redo = sum(why.values())
        stages.append(
            StagePlan(stage.name, stage.title, len(tasks), outcome.skipped, redo, dict(why.most_common()), note)
        )
        if stage.name == "train" and todo:
            waits_for = stage.title
    scenes = {epoch: s.ledger() for epoch, s in flow.scenes.items()} if job.imagery else {}
    grid = {
        "crs": job.grid.crs,
        "resolution_m": flow.grid.resolution_m,
        "shape": list(flow.grid.shape),
        "tiles": len(flow.tiles),
        "tile": flow.grid.tile,
    }
    return Plan(grid, tuple(stages), scenes, bytes_to_read(flow), bytes_to_write(flow), peak_worker_bytes(flow))
