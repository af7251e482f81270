"""Running tasks on a cluster: a sliding window of futures, each task with its receipt.

The scheduler never sees more than a few tasks a worker, so its memory and speed do not depend on the country's size.
What may fail is expected to: a task is tried again after a while, a worker that takes too long over one is ended,
and a task that takes workers down with it is set aside until all others are done, and then tried alone.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import ClusterError
from geoflow.jobs.outcome import Outcome
from geoflow.jobs.patience import Patience, Watch
from geoflow.jobs.tasks import Ended, Failure, Task, attempt, failure_of

if TYPE_CHECKING:
    from distributed import Client, Future

IN_FLIGHT_PER_THREAD = 3
"""Tasks handed out per thread of the cluster: one runs, the next ones wait at the worker, so that it never idles."""

BATCH_S = 0.2
"""Tasks that take less are handed out several at a time, so that handing out does not take longer than doing."""

MOST_AT_ONCE = 64
"""Tasks handed out as one, at most."""

TOPIC = "geoflow-tasks"
"""Dask topic on which workers say which task they begin, and how what they were handed ended.

Not as the result of a future: that stays with its worker until it is fetched, and is lost with it, so that what is done
would be done again. What is said goes to the driver by itself, before the future is known to be finished.
"""


def run_tasks(
    client: Client,
    todo: Iterable[Task],
    folder: Path,
    outcome: Outcome,
    watch: Watch | None = None,
    patience: Patience | None = None,
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
    watch : Watch, optional
    patience : Patience, optional

    Raises
    ------
    ClusterError
        If the scheduler is lost, has had no worker for too long, or hands out nothing. What is done is kept.
    """
    window = _Window(client, iter(todo), folder, outcome, watch or Watch(), patience or Patience())
    with window.listening():
        window.run()
    return outcome


@dataclass(frozen=True)
class _Try:
    """A task and how often it was tried; ``alone`` where it is suspected of taking workers down."""

    task: Task
    number: int = 1
    alone: bool = False


@dataclass
class _Running:
    """What was handed out as one, and which of it is being done where, since when."""

    tries: list[_Try]
    future: Future
    place: int = 0
    worker: str | None = None
    since: float = 0.0

    @property
    def task(self) -> Task:
        return self.tries[self.place].task


_TICK_S = 0.5
_LOOK_S = 2.0
_FIRST_WORD_S = 10.0
"""Seconds without any worker before anybody is told: one that is started anew takes some."""


class _Window:
    """The tasks that are handed out, those that wait for another try, and those that are set aside."""

    def __init__(
        self,
        client: Client,
        todo: Iterator[Task],
        folder: Path,
        outcome: Outcome,
        watch: Watch,
        patience: Patience,
    ) -> None:
        self._client, self._todo, self._folder = client, todo, folder
        self._outcome, self._watch, self._patience = outcome, watch, patience
        self._events: queue.SimpleQueue[tuple[str, str, Any]] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._later: list[tuple[float, int, _Try]] = []
        self._aside: deque[_Try] = deque()
        self._numbers = itertools.count()
        self._mean_s: float | None = None
        self._workers: dict[str, int] = {}
        self._has_gpu = False
        self._looked = self._ticked = 0.0
        self._moved = self._staffed = self._complete = time.monotonic()
        self._stalled_before = False
        self._next_reminder_s = _FIRST_WORD_S

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear which tasks begin; on the way out, nothing of ours is left on the cluster."""

        def hear(event: tuple[float, dict[str, Any]]) -> None:
            self._events.put((event[1]["event"], event[1]["key"], event[1]))

        self._client.subscribe_topic(TOPIC, hear)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, TimeoutError):
                if self._running:
                    self._client.cancel([r.future for r in self._running.values()], force=True)
                self._client.unsubscribe_topic(TOPIC)

    def run(self) -> None:
        self._look()
        self._fill()
        while self._running or self._later:
            self._take_in()
            now = time.monotonic()
            if now - self._ticked >= _TICK_S:
                self._ticked = now
                self._watch.tick()
            if now - self._looked >= _LOOK_S:
                self._look()
            self._fill()

    # --- handing out ------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        if any(t.alone for r in self._running.values() for t in r.tries):
            return
        room = max(1, sum(self._workers.values())) * IN_FLIGHT_PER_THREAD - len(self._running)
        for _ in range(room):
            tries = self._next()
            if not tries:
                break
            self._start(tries)
        if not self._running and not self._later and self._aside:
            self._start([self._aside.popleft()])

    def _next(self) -> list[_Try]:
        if self._later and self._later[0][0] <= time.monotonic():
            return [heapq.heappop(self._later)[2]]
        size = 1 if self._mean_s is None else int(max(1, min(BATCH_S / max(self._mean_s, 1e-4), MOST_AT_ONCE)))
        return [_Try(task) for task in itertools.islice(self._todo, size)]

    def _start(self, tries: list[_Try]) -> None:
        first = tries[0].task
        key = f"{first.label}-{first.id[:12]}-{next(self._numbers)}"
        options = {"resources": {"GPU": 1}} if self._has_gpu and first.gpu else {}
        tasks = [t.task for t in tries]
        future = self._client.submit(_on_worker, tasks, self._folder, key, key=key, pure=False, retries=0, **options)
        self._running[key] = _Running(tries, future)
        future.add_done_callback(lambda done: self._events.put(("ended", key, done)))

    # --- taking in --------------------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """All that has happened; waits a moment for the first."""
        timeout = _TICK_S
        with contextlib.suppress(queue.Empty):
            while True:
                kind, key, what = self._events.get(timeout=timeout)
                timeout = 0.0
                if key in self._running:
                    self._moved, self._stalled_before = time.monotonic(), False
                    if kind == "began":
                        self._begin(self._running[key], what)
                    elif kind == "reported":
                        self._report(self._running.pop(key), what["ended"])
                    else:
                        self._end(self._running.pop(key))

    @staticmethod
    def _begin(running: _Running, event: dict[str, Any]) -> None:
        running.worker, running.place, running.since = event["worker"], event["place"], time.monotonic()

    def _report(self, running: _Running, ended: list[dict[str, Any]]) -> None:
        # Forgotten before the next is handed out: the window stays bounded.
        running.future.release()
        for one, how in zip(running.tries, ended, strict=True):
            self._settle(one, Ended.from_dict(how))

    def _end(self, running: _Running) -> None:
        """The future ended, and nothing was reported."""
        future = running.future
        if future.status == "error":
            self._end_badly(running, future.exception())
        else:
            self._check_scheduler()
            self._again(running, "the cluster dropped it")
        future.release()

    def _end_badly(self, running: _Running, error: BaseException) -> None:
        """The worker did not come to report: it died, or could not even take the task."""
        from distributed import KilledWorker

        if not isinstance(error, KilledWorker):
            failure = failure_of(error)
            for one in running.tries:
                self._settle(one, Ended(failure=replace(failure, passing=isinstance(error, OSError))))
            return
        times = error.allowed_failures + 1
        for one in running.tries:
            if one.alone:
                text = (
                    f"its worker died {times} times while nothing else ran: it may need more memory than a worker has"
                )
                self._settle(replace(one, number=self._patience.retries + 1), Ended(failure=Failure(text)))
            else:
                self._watch.say(
                    f"{one.task.label}: {times} workers died over it; it is tried alone when all else is done"
                )
                self._aside.append(replace(one, alone=True))

    def _settle(self, one: _Try, ended: Ended) -> None:
        task = one.task
        if ended.failure is not None:
            self._fail(one, ended.failure)
        elif ended.receipt is not None:
            seconds = float(ended.receipt["seconds"])
            self._mean_s = seconds if self._mean_s is None else 0.9 * self._mean_s + 0.1 * seconds
            self._outcome.done += 1
            self._outcome.book(task.key, ended.receipt)
            self._watch.on_done(task)

    def _fail(self, one: _Try, failure: Failure) -> None:
        task = one.task
        if failure.passing and one.number <= self._patience.retries:
            wait = self._patience.wait_s(one.number)
            told = failure.text.partition("\n")[0]
            self._watch.say(f"{task.label}: try {one.number} failed, another in {wait:.0f} s: {told}")
            heapq.heappush(
                self._later, (time.monotonic() + wait, next(self._numbers), replace(one, number=one.number + 1))
            )
            return
        found = {"stage": task.stage, "key": task.key, "error": failure.text, "tries": one.number}
        self._outcome.failed.append(found | ({"traceback": failure.trace} if failure.trace else {}))
        self._watch.on_done(task)

    def _again(self, running: _Running, why: str) -> None:
        for one in running.tries:
            self._settle(one, Ended(failure=Failure(why)))

    # --- looking around ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._check_scheduler()
        try:
            self._workers = dict(self._client.nthreads())
            if not self._has_gpu:
                described = self._client.scheduler_info(n_workers=-1)["workers"].values()
                self._has_gpu = any("GPU" in worker.get("resources", {}) for worker in described)
        except (OSError, TimeoutError) as error:
            raise _lost(self._client) from error
        self._look_for_workers()
        for key, running in list(self._running.items()):
            self._look_at(key, running)
        self._look_for_a_stall()

    def _check_scheduler(self) -> None:
        if self._client.status in ("closed", "closing"):
            raise _lost(self._client)

    def _look_for_workers(self) -> None:
        now = time.monotonic()
        wanted = self._wanted_workers()
        if len(self._workers) >= wanted:
            self._complete = now
        elif now - self._complete > self._patience.heal_s:
            # A local cluster gives a worker up whose new process does not come soon; others have their own ways.
            self._complete = now
            if self._client.cluster is not None:
                self._client.cluster.scale(wanted)
        if self._workers:
            self._staffed, self._next_reminder_s = now, _FIRST_WORD_S
            return
        self._moved = now
        without = now - self._staffed
        if without > self._patience.workers_s:
            raise ClusterError(
                f"the cluster at {scheduler_address(self._client)} has had no worker for {without:.0f} s; "
                "what is done is kept, run again when it has some"
            )
        if without > self._next_reminder_s:
            self._next_reminder_s = without + self._patience.remind_s
            self._watch.say(
                f"the cluster at {scheduler_address(self._client)} has had no worker for {without:.0f} s; "
                f"the run ends if none comes within {self._patience.workers_s - without:.0f} s"
            )

    def _wanted_workers(self) -> int:
        """How many workers a local cluster was asked for; 0 for clusters that see to it themselves."""
        from distributed import LocalCluster

        cluster = self._client.cluster
        return len(cluster.worker_spec) if isinstance(cluster, LocalCluster) else 0

    def _look_at(self, key: str, running: _Running) -> None:
        if running.worker is None or running.future.status != "pending":
            return
        took, limit = time.monotonic() - running.since, self._patience.task_s
        if running.worker not in self._workers:
            if took > self._patience.gone_s:
                self._withdraw(key)
                self._again(running, f"its worker {running.worker} is gone")
        elif limit is not None and took > limit:
            self._withdraw(key)
            self._restart(running.worker)
            late = running.tries.pop(running.place)
            self._settle(late, Ended(failure=Failure(f"took longer than {limit:g} s (--task-timeout)")))
            # The others of the batch are not to blame: another try, but not one that counts.
            for one in running.tries:
                heapq.heappush(self._later, (time.monotonic(), next(self._numbers), one))

    def _withdraw(self, key: str) -> None:
        self._client.cancel([self._running.pop(key).future], force=True)

    def _restart(self, worker: str) -> None:
        """End what a worker does. Only a nanny can: without one, the result is not waited for any more."""

        def restart() -> None:
            with contextlib.suppress(Exception):
                self._client.restart_workers([worker], timeout=60, raise_for_error=False)

        # Beside the others, which are not to wait for it.
        threading.Thread(target=restart, name="geoflow-restart", daemon=True).start()

    def _look_for_a_stall(self) -> None:
        idle = time.monotonic() - self._moved
        waiting = [key for key, running in self._running.items() if running.worker is None]
        if idle < self._patience.stall_s or len(waiting) < len(self._running) or not waiting:
            return
        if self._stalled_before:
            raise ClusterError(
                f"the scheduler at {scheduler_address(self._client)} has {len(self._workers)} workers and has begun no "
                f"task for {2 * self._patience.stall_s:.0f} s; what is done is kept, restart the cluster and run again"
            )
        self._stalled_before, self._moved = True, time.monotonic()
        self._watch.say(f"no task was begun for {idle:.0f} s; all {len(waiting)} are handed out again")
        for key in waiting:
            tries = self._running[key].tries
            self._withdraw(key)
            self._start(tries)


def _on_worker(tasks: list[Task], folder: Path, key: str) -> None:
    """What a worker is handed."""
    from distributed import get_worker

    worker = get_worker()

    def tell(place: int) -> None:
        worker.log_event(TOPIC, {"event": "began", "key": key, "place": place, "worker": worker.address})

    ended = [one.to_dict() for one in attempt(tasks, folder, tell)]
    worker.log_event(TOPIC, {"event": "reported", "key": key, "ended": ended})


def scheduler_address(client: Client) -> str:
    """Where its scheduler is."""
    return str(client.scheduler.address) if client.scheduler is not None else "its address"


def _lost(client: Client) -> ClusterError:
    return ClusterError(
        f"the scheduler at {scheduler_address(client)} does not answer any more; what is done is kept, "
        "run again to go on"
    )
