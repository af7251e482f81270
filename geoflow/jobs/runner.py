"""Running tasks on a cluster: a sliding window of futures, each with its receipt.

The scheduler never sees more than a few tasks a worker, so its memory and speed do not depend on the country's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import GeoflowError
from geoflow.jobs.tasks import Task, perform
from geoflow.store.receipts import Receipts

if TYPE_CHECKING:
    from distributed import Client, Future

IN_FLIGHT_PER_WORKER = 3
"""Tasks handed out per thread of the cluster: one runs, the next ones wait at the worker, so that it never idles."""

RETRIES = 1
"""How often a task is tried again after an error that may pass (a lost connection, a killed worker)."""


@dataclass
class Outcome:
    """What became of the tasks of a stage."""

    done: int = 0
    skipped: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    work_seconds: float = 0.0
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def tasks(self) -> int:
        """How many there were."""
        return self.done + self.skipped + len(self.failed)


def split_finished(tasks: Iterable[Task], receipts: Receipts) -> tuple[list[Task], Outcome]:
    """The tasks without a valid receipt, and an outcome that counts the others as skipped."""
    outcome, todo = Outcome(), []
    for task in tasks:
        receipt = receipts.valid(task.stage, task.key, task.id)
        if receipt is None or receipt.get(task.redo_if):
            todo.append(task)
        else:
            outcome.skipped += 1
            outcome.work_seconds += receipt.get("seconds", 0.0)
            outcome.receipts[task.key] = receipt
    return todo, outcome


def run_tasks(
    client: Client, todo: Iterable[Task], folder: Path, outcome: Outcome, on_done: Callable[[Task], None]
) -> Outcome:
    """Run tasks, a bounded number at a time; a failed one is noted and the others go on.

    Parameters
    ----------
    client : distributed.Client
    todo : iterable of Task
        Consumed as places become free, so it may be as long as a country.
    folder : Path
        The output folder.
    outcome : Outcome
        Filled in place and returned.
    on_done : callable
        Called with each task that ended, well or not.
    """
    from distributed import as_completed

    waiting = iter(todo)
    threads = max(1, sum(client.nthreads().values()))
    running: dict[Any, Task] = {}

    def start(task: Task) -> Future:
        future = client.submit(perform, task, folder, key=f"{task.label}-{task.id[:12]}", retries=RETRIES, pure=False)
        running[future.key] = task
        return future

    window = as_completed([start(t) for t in _take(waiting, threads * IN_FLIGHT_PER_WORKER)], with_results=False)
    for future in window:
        task = running.pop(future.key)
        _settle(task, future, outcome)
        on_done(task)
        # Forget the finished one before the next is handed out: the window stays bounded.
        future.release()
        for following in _take(waiting, 1):
            window.add(start(following))
    return outcome


def _take(tasks: Iterator[Task], count: int) -> list[Task]:
    return [task for _, task in zip(range(count), tasks, strict=False)]


def _settle(task: Task, future: Future, outcome: Outcome) -> None:
    error = future.exception() if future.status != "cancelled" else RuntimeError("cancelled by the cluster")
    if error is None:
        receipt = future.result()
        outcome.done += 1
        outcome.work_seconds += receipt["seconds"]
        outcome.receipts[task.key] = receipt
        return
    text = str(error) if isinstance(error, GeoflowError) else f"{type(error).__name__}: {error}"
    failure = {"stage": task.stage, "key": task.key, "error": text}
    if not isinstance(error, GeoflowError) and future.status != "cancelled":
        failure["traceback"] = _traceback(future)
    outcome.failed.append(failure)


def _traceback(future: Future) -> str:
    import traceback

    return "".join(traceback.format_tb(future.traceback()))
