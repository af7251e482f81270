"""Telling people how far a run is: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from geoflow.jobs.tasks import Task
from geoflow.jobs.trainwork import PROGRESS_TOPIC

if TYPE_CHECKING:
    import rich.console
    import rich.progress
    from distributed import Client


Listener = Callable[[dict[str, Any]], None]
"""Who hears what long work reports: ``stage``, ``step``, ``steps``, ``loss``, ``samples_per_s``."""


class StageProgress(Protocol):
    """The progress of one stage."""

    def advance(self, task: Task) -> None:
        """One more task has ended."""

    def listening(self, client: Client, also: Listener) -> AbstractContextManager[None]:
        """Show what long work reports on the cluster, and pass it on, while the context lasts."""


class Console(Protocol):
    """Who is told about a run."""

    def waiting(self, what: str) -> AbstractContextManager[Any]:
        """Something is being waited for, while the context lasts."""

    def cluster(self, client: Client) -> None:
        """The cluster is there."""

    def stage(self, title: str, tasks: int, skipped: int) -> AbstractContextManager[StageProgress]:
        """A stage runs, while the context lasts."""

    def say(self, text: str) -> None:
        """A line of news."""


class QuietConsole:
    """Tells nobody."""

    def waiting(self, what: str) -> AbstractContextManager[Any]:
        """See `Console`."""
        return contextlib.nullcontext()

    def cluster(self, client: Client) -> None:
        """See `Console`."""

    def say(self, text: str) -> None:
        """See `Console`."""

    @contextlib.contextmanager
    def stage(self, title: str, tasks: int, skipped: int) -> Iterator[StageProgress]:
        """See `Console`."""
        yield _QuietProgress()


class _QuietProgress:
    def advance(self, task: Task) -> None:
        """See `StageProgress`."""

    def listening(self, client: Client, also: Listener) -> AbstractContextManager[None]:
        """See `StageProgress`."""
        return _subscribed(client, also)


class RichConsole:
    """Bars where there is a terminal, one line a stage where there is none (a log file, SLURM's output)."""

    def __init__(self, console: rich.console.Console) -> None:
        self.console = console

    def waiting(self, what: str) -> AbstractContextManager[Any]:
        """See `Console`."""
        return self.console.status(f"{what} ...") if self.console.is_terminal else contextlib.nullcontext()

    def cluster(self, client: Client) -> None:
        """See `Console`."""
        workers = len(client.nthreads())
        self.console.print(f"Dask: {workers} worker{'s' * (workers != 1)}, dashboard {client.dashboard_link}")

    def say(self, text: str) -> None:
        """See `Console`."""
        self.console.print(text, markup=False, highlight=False)

    @contextlib.contextmanager
    def stage(self, title: str, tasks: int, skipped: int) -> Iterator[StageProgress]:
        """See `Console`."""
        start = time.monotonic()
        if self.console.is_terminal:
            with _bar(self.console) as bar:
                yield _BarProgress(bar, title, tasks, skipped)
        else:
            yield _LineProgress(self.console, title)
        done = tasks - skipped
        kept = f", {skipped} kept" if skipped else ""
        seconds = f" in {time.monotonic() - start:.1f} s" if done else ""
        self.console.print(f"[bold]{title:<11}[/] {done} task{'s' * (done != 1)}{seconds}{kept}", highlight=False)


def _bar(console: rich.console.Console) -> rich.progress.Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("[bold]{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[news]}"),
    )
    return Progress(*columns, console=console, transient=True)


class _BarProgress:
    def __init__(self, bar: rich.progress.Progress, title: str, tasks: int, skipped: int) -> None:
        self._bar = bar
        self._tasks = tasks
        self._id = bar.add_task(title, total=tasks, completed=skipped, news="")

    def advance(self, task: Task) -> None:
        """See `StageProgress`."""
        self._bar.advance(self._id)

    def listening(self, client: Client, also: Listener) -> AbstractContextManager[None]:
        """See `StageProgress`."""
        return _subscribed(client, self._show, also)

    def _show(self, event: dict[str, Any]) -> None:
        # A stage of a single task (training) has its steps as its bar.
        if self._tasks == 1:
            self._bar.update(self._id, completed=event["step"], total=event["steps"])
        self._bar.update(self._id, news=_news(event))


class _LineProgress:
    def __init__(self, console: rich.console.Console, title: str, every_s: float = 15.0) -> None:
        self._console, self._title, self._every_s, self._last = console, title, every_s, time.monotonic()

    def advance(self, task: Task) -> None:
        """See `StageProgress`."""

    def listening(self, client: Client, also: Listener) -> AbstractContextManager[None]:
        """See `StageProgress`."""
        return _subscribed(client, self._show, also)

    def _show(self, event: dict[str, Any]) -> None:
        if time.monotonic() - self._last >= self._every_s:
            self._last = time.monotonic()
            self._console.print(f"{self._title}: step {event['step']}/{event['steps']}, {_news(event)}")


def _news(event: dict[str, Any]) -> str:
    return f"{event['stage']}, loss {event['loss']:.3f}, {event['samples_per_s']:.0f} samples/s"


@contextlib.contextmanager
def _subscribed(client: Client, *listeners: Listener) -> Iterator[None]:
    def handle(event: tuple[float, dict[str, Any]]) -> None:
        for listener in listeners:
            listener(event[1])

    client.subscribe_topic(PROGRESS_TOPIC, handle)
    try:
        yield
    finally:
        client.unsubscribe_topic(PROGRESS_TOPIC)
