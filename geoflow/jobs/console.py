"""Telling people how far a run is: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from geoflow.counting import counted
from geoflow.jobs.tasks import Task
from geoflow.jobs.trainwork import PROGRESS_TOPIC

if TYPE_CHECKING:
    import rich.console
    import rich.progress
    from distributed import Client


FIRST_LINE_S = 15.0
"""In a log, the first line about a stage that goes on comes after so many seconds."""
_LONGEST_PAUSE_S = 240.0

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
    """Bars where there is a terminal, lines where there is none (a log file, SLURM's output).

    Parameters
    ----------
    console : rich.console.Console
    verbose : bool
        A line for each task that ends.
    """

    def __init__(self, console: rich.console.Console, verbose: bool = False) -> None:
        self.console, self.verbose = console, verbose

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
        each = _EachTask(self.console, title, tasks, skipped) if self.verbose else None
        if self.console.is_terminal:
            with _bar(self.console) as bar:
                yield _BarProgress(bar, title, tasks, skipped, each)
        else:
            yield _LineProgress(self.console, title, tasks, skipped, each)
        done = tasks - skipped
        kept = f", {skipped} kept" if skipped else ""
        seconds = f" in {time.monotonic() - start:.1f} s" if done else ""
        self.console.print(f"[bold]{title:<13}[/] {done} task{'s' * (done != 1)}{seconds}{kept}", highlight=False)


def _bar(console: rich.console.Console) -> rich.progress.Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("[bold]{task.description:<13}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[news]}"),
    )
    return Progress(*columns, console=console, transient=True)


class _EachTask:
    """A line for each task: the stage, how many are done, which one."""

    def __init__(self, console: rich.console.Console, title: str, tasks: int, skipped: int) -> None:
        self._console, self._title, self._tasks, self._done = console, title, tasks, skipped

    def __call__(self, task: Task) -> None:
        self._done += 1
        told = f"{self._title:<13} {self._done}/{self._tasks} {task.key}"
        self._console.print(told, style="dim", markup=False, highlight=False)


class _BarProgress:
    def __init__(
        self, bar: rich.progress.Progress, title: str, tasks: int, skipped: int, each: _EachTask | None
    ) -> None:
        self._bar, self._tasks, self._each = bar, tasks, each
        self._id = bar.add_task(title, total=tasks, completed=skipped, news="")

    def advance(self, task: Task) -> None:
        """See `StageProgress`."""
        self._bar.advance(self._id)
        if self._each is not None:
            self._each(task)

    def listening(self, client: Client, also: Listener) -> AbstractContextManager[None]:
        """See `StageProgress`."""
        return _subscribed(client, self._show, also)

    def _show(self, event: dict[str, Any]) -> None:
        # A stage of a single task (training) has its steps as its bar.
        if self._tasks == 1:
            self._bar.update(self._id, completed=event["step"], total=event["steps"])
        self._bar.update(self._id, news=_news(event))


class _LineProgress:
    """A line now and then: after 15 s of a stage, then ever more seldom, so that a log stays short."""

    def __init__(
        self, console: rich.console.Console, title: str, tasks: int, skipped: int, each: _EachTask | None
    ) -> None:
        self._console, self._title, self._each = console, title, each
        self._tasks, self._skipped, self._done = tasks, skipped, 0
        self._start = self._last = time.monotonic()
        self._pause_s = FIRST_LINE_S

    def advance(self, task: Task) -> None:
        """See `StageProgress`."""
        self._done += 1
        if self._each is not None:
            self._each(task)
            return
        rest = self._tasks - self._skipped - self._done
        if rest and self._due():
            pace = (time.monotonic() - self._start) / self._done
            self._tell(f"{self._skipped + self._done}/{counted(self._tasks, 'task')}, {duration(rest * pace)} left")

    def listening(self, client: Client, also: Listener) -> AbstractContextManager[None]:
        """See `StageProgress`."""
        return _subscribed(client, self._show, also)

    def _show(self, event: dict[str, Any]) -> None:
        if self._due():
            self._tell(f"step {event['step']}/{event['steps']}, {_news(event)}")

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._pause_s:
            return False
        self._last, self._pause_s = now, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return True

    def _tell(self, text: str) -> None:
        self._console.print(f"{self._title:<13} {text}", markup=False, highlight=False)


def duration(seconds: float) -> str:
    """``1 h 5 min``, ``5 min 2 s`` or ``9 s``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


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
