"""Running a job: check, plan, do what is not done, measure, publish, and say how it went."""

from __future__ import annotations

import datetime as dt
import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import RunCancelled, RunFailed
from geoflow.jobs.checks import check_job, check_writable
from geoflow.jobs.clusters import connect
from geoflow.jobs.console import Console, QuietConsole
from geoflow.jobs.estimate import worker_needs
from geoflow.jobs.flow import Flow, Stage
from geoflow.jobs.layout import store_attributes
from geoflow.jobs.lease import Lease
from geoflow.jobs.order import Order
from geoflow.jobs.outcome import Outcome, split_finished
from geoflow.jobs.patience import Patience, Watch
from geoflow.jobs.publish import commit, publish
from geoflow.jobs.records import Record, Recorder, create_record, new_id
from geoflow.jobs.runner import run_tasks
from geoflow.jobs.sealing import close_seal, open_seal, verify_made
from geoflow.jobs.spec import Job
from geoflow.jobs.summary import summarise
from geoflow.jobs.tasks import Task
from geoflow.jobs.together import run_together
from geoflow.redact import redact
from geoflow.store.receipts import write_json

if TYPE_CHECKING:
    from distributed import Client


_TAKES_NOTHING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Run:
    """A run as it goes on: what each stage came to."""

    flow: Flow
    started: dt.datetime
    patience: Patience
    recorder: Recorder
    lease: Lease
    console: Console
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    status: str = "complete"
    verified: dict[str, int] = field(default_factory=dict)

    @property
    def worked(self) -> bool:
        """Whether any task was done."""
        return any(o.done for o in self.outcomes.values())

    def say(self, text: str) -> None:
        """A line of news, for whoever watches and for the record."""
        self.recorder.say(text)
        self.console.say(text)

    def check(self) -> None:
        """Go on only while the output is ours, and nobody asked to stop."""
        self.lease.check()
        self.recorder.check_cancel()


def run_job(
    job: Job,
    out: str | Path | None = None,
    cluster: str | None = None,
    limit: int | None = None,
    refresh: bool = False,
    console: Console | None = None,
    patience: Patience | None = None,
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
    patience : Patience, optional
        How often a task is tried again, and how long it may take.

    Returns
    -------
    dict
        The summary, as in ``OUT/summary.json``. Its ``status`` is ``complete`` or ``failed``; ``failed`` names every
        task that did not end well.

    Raises
    ------
    RunBusy
        If another run, which lives, is writing the output.
    RunCancelled
        If somebody asked it to stop (`geoflow cancel`).
    GeoflowError
        If something is wrong that can be seen before work starts, or the cluster cannot be reached.
    """
    order = Order.of(job, out, cluster=cluster, limit=limit, refresh=refresh, patience=patience)
    return run_order(order, console)


def run_order(order: Order, console: Console | None = None, record: Record | None = None) -> dict[str, Any]:
    """Run what was ordered; see `run_job`.

    Parameters
    ----------
    order : Order
    console : Console, optional
    record : Record, optional
        Where it is recorded; a new one by default.
    """
    check_writable(order.out)
    with Lease(order.out, record.id if record else new_id(order.job.name)) as lease:
        # Recorded once the output is its own: a run that is refused leaves no trace on another's.
        recorder = Recorder(record or create_record(order, "here", lease.run))
        try:
            recorder.begun()
            flow = Flow(order.job, order.out, order.limit, order.refresh)
            run = Run(flow, dt.datetime.now(dt.UTC), order.patience, recorder, lease, console or QuietConsole())
            check_job(flow, run.console)
            summary = _run_stages(run, order.cluster)
        except BaseException as error:
            told = _full_disk(error) or error
            recorder.state(_state_after(told), error=redact(str(told)) or type(told).__name__)
            if told is not error:
                raise told from error
            raise
        recorder.state(str(summary["status"]))
        return summary


def _full_disk(error: BaseException) -> RunFailed | None:
    """What to say of a disk that takes nothing any more: no bug, and nothing is lost."""
    if not isinstance(error, OSError) or error.errno not in _TAKES_NOTHING:
        return None
    where = f": {error.filename}" if error.filename else ""
    return RunFailed(f"{os.strerror(error.errno or 0)}{where}; what is done is kept, make room and run again")


def _state_after(error: BaseException) -> str:
    if isinstance(error, RunCancelled):
        return "cancelled"
    return "failed" if isinstance(error, Exception) else "interrupted"


def _run_stages(run: Run, cluster: str | None) -> dict[str, Any]:
    flow, console = run.flow, run.console
    sealed = open_seal(flow.out)
    with ExitStack() as stack:
        client = _Lazily(lambda: stack.enter_context(connect(cluster, worker_needs(flow), run.say)), console)
        try:
            for stage in flow.stages():
                run.check()
                run.titles[stage.name] = stage.title
                _run_stage(run, stage, client)
                if run.outcomes[stage.name].failed:
                    run.status = "failed"
                    break
            if run.status == "complete":
                verify_made(run, sealed, client.get, console)
        except BaseException as error:
            run.status = _state_after(error)
            _save_summary(run)
            raise
    summary = _save_summary(run)
    if run.status == "complete":
        flow.store.describe(store_attributes(flow.job, summary["attribution"]))
        publish(flow, summary, worked=run.worked, console=console)
        close_seal(run)
        commit(run)
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


def _run_stage(run: Run, stage: Stage, client: _Lazily) -> None:
    start = time.monotonic()
    stage.prepare()
    tasks = stage.tasks()
    todo, outcome = split_finished(tasks, run.flow.receipts)
    run.outcomes[stage.name] = outcome
    with (
        run.recorder.stage(stage.name, stage.title, len(tasks), outcome),
        run.console.stage(stage.title, len(tasks), outcome.skipped) as progress,
    ):
        if todo:
            ready = client.get()

            def on_done(task: Task) -> None:
                progress.advance(task)
                run.recorder.advance(outcome)

            with progress.listening(ready, run.recorder.progress):
                watch = Watch(on_done, run.check, run.say)
                shared, alone = ([task for task in todo if (task.lanes > 1) == many] for many in (True, False))
                run_tasks(ready, alone, run.flow.out, outcome, watch, run.patience)
                for task in shared:
                    run_together(ready, task, run.flow.out, outcome, watch, run.patience)
    if not outcome.failed:
        stage.finish()
    run.seconds[stage.name] = time.monotonic() - start


def _save_summary(run: Run) -> dict[str, Any]:
    summary = summarise(run)
    write_json(run.flow.out / "summary.json", summary)
    return summary
