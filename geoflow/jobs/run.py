"""Running a job: check, plan, do what is not done, measure, publish, and say how it went."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.jobs.checks import check_job
from geoflow.jobs.clusters import connect
from geoflow.jobs.console import Console, QuietConsole
from geoflow.jobs.estimate import worker_needs
from geoflow.jobs.flow import Flow, Stage
from geoflow.jobs.publish import publish
from geoflow.jobs.runner import Outcome, Watch, run_tasks, split_finished
from geoflow.jobs.sealing import close_seal, open_seal, verify_made
from geoflow.jobs.spec import Job
from geoflow.jobs.summary import summarise
from geoflow.store.receipts import write_json

if TYPE_CHECKING:
    from distributed import Client


@dataclass
class Run:
    """A run as it goes on: what each stage came to."""

    flow: Flow
    started: dt.datetime
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    status: str = "complete"
    verified: dict[str, int] = field(default_factory=dict)

    @property
    def worked(self) -> bool:
        """Whether any task was done."""
        return any(o.done for o in self.outcomes.values())


def run_job(
    job: Job,
    out: str | Path | None = None,
    cluster: str | None = None,
    limit: int | None = None,
    refresh: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a job, or finish one that was begun.

    Parameters
    ----------
    job : Job
        From `geoflow.load_job`.
    out : path, optional
        The output folder; ``out/<job name>`` by default.
    cluster : str, optional
        See `geoflow.jobs.clusters.where`.
    limit : int, optional
        Only the first so many tiles, to try a job out.
    refresh : bool
        Search the catalog again, although the list of scenes is frozen.
    console : Console, optional
        Who is told about the progress; nobody by default.

    Returns
    -------
    dict
        The summary, as in ``OUT/summary.json``. Its ``status`` is ``complete`` or ``failed``; ``failed`` names every
        task that did not end well.

    Raises
    ------
    GeoflowError
        If something is wrong that can be seen before work starts, or the cluster cannot be reached.
    """
    folder = Path(out) if out is not None else Path("out") / job.name
    flow = Flow(job, folder.resolve(), limit, refresh)
    console = console or QuietConsole()
    run = Run(flow, dt.datetime.now(dt.UTC))
    check_job(flow, console)
    sealed = open_seal(flow.out)
    with ExitStack() as stack:
        client = _Lazily(lambda: stack.enter_context(connect(cluster, worker_needs(flow), console.say)), console)
        try:
            for stage in flow.stages():
                run.titles[stage.name] = stage.title
                _run_stage(run, stage, client, console)
                if run.outcomes[stage.name].failed:
                    run.status = "failed"
                    break
            if run.status == "complete":
                verify_made(run, sealed, client.get, console)
        except BaseException:
            run.status = "interrupted"
            _save_summary(run)
            raise
    summary = _save_summary(run)
    if run.status == "complete":
        publish(flow, summary, worked=run.worked, console=console)
        close_seal(run)
    return summary


class _Lazily:
    """The client, made when the first task needs it: a run with nothing to do starts no cluster."""

    def __init__(self, make: Callable[[], Client], console: Console) -> None:
        self._make, self._console = make, console
        self._client: Client | None = None

    def get(self) -> Client:
        if self._client is None:
            with self._console.waiting("starting the cluster"):
                self._client = self._make()
            self._console.cluster(self._client)
        return self._client


def _run_stage(run: Run, stage: Stage, client: _Lazily, console: Console) -> None:
    start = time.monotonic()
    stage.prepare()
    tasks = stage.tasks()
    todo, outcome = split_finished(tasks, run.flow.receipts)
    run.outcomes[stage.name] = outcome
    with console.stage(stage.title, len(tasks), outcome.skipped) as progress:
        if todo:
            ready = client.get()
            with progress.listening(ready):
                run_tasks(ready, todo, run.flow.out, outcome, Watch(progress.advance, say=console.say))
    if not outcome.failed:
        stage.finish()
    run.seconds[stage.name] = time.monotonic() - start


def _save_summary(run: Run) -> dict[str, Any]:
    summary = summarise(run)
    write_json(run.flow.out / "summary.json", summary)
    return summary
