"""One task on several workers at once: a training whose ranks are pinned to a worker each.

The ranks speak to each other, not through Dask. What Dask does is to place them, and to tell when one is lost: then all
are withdrawn, and those workers that are left, or that have come back, go on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from geoflow.errors import ClusterError
from geoflow.jobs.outcome import Outcome
from geoflow.jobs.patience import Patience, Watch
from geoflow.jobs.runner import run_tasks, scheduler_address
from geoflow.jobs.tasks import Done, Ended, Failure, Task, failure_of, perform

if TYPE_CHECKING:
    from distributed import Client, Future

    from geoflow.learning.ranks import Meeting, Ranks

TOPIC = "geoflow-ranks"
"""Dask topic on which ranks say that they begin, and how they ended."""

TICK_S = 0.5
COME_BACK_S = 30.0
"""How long workers that were lost are waited for: a nanny starts a new one within seconds."""

LET_GO_S = 20.0
"""How long ranks may take to notice that another one is gone, before their workers are started anew."""


class SharedWork(Protocol):
    """Work that ranks can do together."""

    checkpoint: Path

    def on(self, ranks: Ranks, beside: int) -> Done:
        """Do it as one of them; the first one's return counts."""


@dataclass(frozen=True)
class _Seat:
    """A worker that takes a rank."""

    worker: str
    host: str


def run_together(
    client: Client,
    task: Task,
    folder: Path,
    outcome: Outcome,
    watch: Watch | None = None,
    patience: Patience | None = None,
) -> None:
    """Run a task on as many workers as divide its lanes; on one, it is a task like others.

    Parameters
    ----------
    client : distributed.Client
    task : Task
        Whose work is a `SharedWork`.
    folder : Path
        The output folder.
    outcome : Outcome
        Filled in place.
    watch : Watch, optional
    patience : Patience, optional
        Tries after which nothing new was saved count; a try that left a checkpoint does not, however many there are.

    Raises
    ------
    ClusterError
        If the scheduler is lost.
    """
    watch, patience = watch or Watch(), patience or Patience()
    number, wanted, stood = 1, 0, _standing(task)
    while True:
        seats = _seats(client, task.lanes, wanted, watch)
        if len(seats) < 2:
            run_tasks(client, [task], folder, outcome, watch, patience)
            return
        wanted = len(seats)
        ended = _Attempt(client, task, folder, seats, watch).run()
        if ended.failure is None:
            _settle(task, ended, outcome, watch)
            return
        now = _standing(task)
        number, stood = (1 if now != stood else number), now
        if not ended.failure.passing or number > patience.retries:
            _settle(task, replace(ended, failure=ended.failure), outcome, watch, number)
            return
        told = ended.failure.text.partition("\n")[0]
        watch.say(f"{task.label}: {told}; going on from the last checkpoint")
        number += 1


def _standing(task: Task) -> bytes | None:
    """Something that differs from checkpoint to checkpoint."""
    from geoflow.places import read_bytes

    try:
        return read_bytes(task.work.checkpoint / "checkpoint.json")  # type: ignore[attr-defined]
    except OSError:
        return None


def _settle(task: Task, ended: Ended, outcome: Outcome, watch: Watch, tries: int = 1) -> None:
    if ended.receipt is not None:
        outcome.done += 1
        outcome.book(task.key, ended.receipt)
    elif ended.failure is not None:
        found = {"stage": task.stage, "key": task.key, "error": ended.failure.text, "tries": tries}
        outcome.failed.append(found | ({"traceback": ended.failure.trace} if ended.failure.trace else {}))
    watch.on_done(task)


def _seats(client: Client, lanes: int, wanted: int, watch: Watch) -> list[_Seat]:
    """As many workers as can share the lanes evenly, those with a GPU where there are any."""
    until = time.monotonic() + COME_BACK_S
    while True:
        seats = _workers(client)
        if seats and (len(seats) >= wanted or time.monotonic() > until):
            break
        watch.tick()
        time.sleep(TICK_S)
    size = max(n for n in range(1, len(seats) + 1) if lanes % n == 0)
    return seats[:size]


def _workers(client: Client) -> list[_Seat]:
    try:
        info = client.scheduler_info(n_workers=-1)["workers"]
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"the scheduler at {scheduler_address(client)} does not answer any more; what is done is kept, run again "
            "to go on"
        ) from error
    gpu = {name: facts for name, facts in info.items() if "GPU" in facts.get("resources", {})}
    # Sorted by host, so that neighbours in the ring of ranks share a machine where they can.
    return sorted((_Seat(name, str(facts["host"])) for name, facts in (gpu or info).items()), key=lambda s: s.host)


class _Attempt:
    """One try: the ranks from their beginning to the end of all of them."""

    def __init__(self, client: Client, task: Task, folder: Path, seats: list[_Seat], watch: Watch) -> None:
        self._client, self._task, self._folder, self._seats, self._watch = client, task, folder, seats, watch
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._key = f"{task.label}-{task.id[:12]}-{time.monotonic_ns()}"
        self._futures: list[Future] = []
        self._ended: dict[int, Ended] = {}

    def run(self) -> Ended:
        """How it ended: as the first rank did, or for what the others could not go on."""
        with self._listening():
            try:
                self._start()
            except Exception as error:  # noqa: BLE001  (a worker that is lost before it begins is lost like any other)
                return Ended(failure=replace(failure_of(error), passing=True))
            while True:
                self._take_in()
                failures = {rank: e.failure for rank, e in self._ended.items() if e.failure is not None}
                if 0 in self._ended and self._ended[0].receipt is not None:
                    return self._ended[0]
                gone = self._gone()
                if failures or gone:
                    self._let_go()
                    return Ended(failure=self._cause(gone))
                self._watch.tick()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def hear(event: tuple[float, dict[str, Any]]) -> None:
            if event[1]["key"] == self._key:
                self._events.put(event[1])

        self._client.subscribe_topic(TOPIC, hear)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, TimeoutError):
                self._client.cancel(self._futures, force=True)
                self._client.unsubscribe_topic(TOPIC)

    def _start(self) -> None:
        from geoflow.learning.ranks import Meeting

        first = self._seats[0]
        port = self._client.submit(_free_port, workers=[first.worker], allow_other_workers=False, pure=False)
        meeting = Meeting(first.host, port.result(timeout=60), len(self._seats))
        beside = Counter(seat.host for seat in self._seats)
        for rank, seat in enumerate(self._seats):
            future = self._client.submit(
                _on_rank,
                *(self._task, self._folder, self._key, meeting, rank, beside[seat.host]),
                key=f"{self._key}-{rank}",
                workers=[seat.worker],
                allow_other_workers=False,
                pure=False,
                retries=0,
                **({"resources": {"GPU": 1}} if self._task.gpu and self._has_gpu(seat) else {}),
            )
            future.add_done_callback(lambda done, rank=rank: self._future_ended(rank, done))
            self._futures.append(future)

    def _has_gpu(self, seat: _Seat) -> bool:
        info = self._client.scheduler_info(n_workers=-1)["workers"]
        return "GPU" in info.get(seat.worker, {}).get("resources", {})

    def _future_ended(self, rank: int, future: Future) -> None:
        """A rank that ended without a word: its worker could not even take it."""
        if future.status == "error":
            failure = failure_of(future.exception())
            self._events.put({"rank": rank, "ended": Ended(failure=failure).to_dict()})

    def _take_in(self) -> None:
        timeout = TICK_S
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get(timeout=timeout)
                timeout = 0.0
                self._ended.setdefault(int(event["rank"]), Ended.from_dict(event["ended"]))

    def _gone(self) -> list[str]:
        """Workers of ranks that have not ended, and that the cluster does not have any more."""
        alive = {seat.worker for seat in _workers(self._client)}
        waited = [seat.worker for rank, seat in enumerate(self._seats) if rank not in self._ended]
        return [worker for worker in waited if worker not in alive]

    def _let_go(self) -> None:
        """See that no rank of this try is left: one that hangs takes its worker with it."""
        until = time.monotonic() + LET_GO_S
        while time.monotonic() < until and self._left():
            self._take_in()
        if left := self._left():
            with contextlib.suppress(Exception):
                self._client.restart_workers(left, timeout=60, raise_for_error=False)

    def _left(self) -> list[str]:
        alive = {seat.worker for seat in _workers(self._client)}
        return [s.worker for rank, s in enumerate(self._seats) if rank not in self._ended and s.worker in alive]

    def _cause(self, gone: list[str]) -> Failure:
        """The failure that the others followed from: an error of the user's, a lost worker, else the first."""
        failures = [e.failure for e in self._ended.values() if e.failure is not None]
        lasting = [failure for failure in failures if not failure.passing]
        gone = gone or self._gone()
        if lasting:
            return lasting[0]
        if gone:
            return Failure(f"the worker {gone[0]} was lost in the middle of it")
        return failures[0]


def _free_port() -> int:
    """A port that is free on this machine now."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


_AT_WORK = threading.Lock()


def _on_rank(task: Task, folder: Path, key: str, meeting: Meeting, rank: int, beside: int) -> None:
    """What a worker is handed: to meet the others, and to do its part."""
    from distributed import get_worker
    from distributed.comm.addressing import get_address_host

    from geoflow.learning.ranks import join
    from geoflow.nets import best_compute

    worker = get_worker()
    with _AT_WORK:  # a rank of an earlier try that has not yet noticed that it is alone
        try:
            ranks = join(meeting, rank, get_address_host(worker.address), best_compute().device)
            try:
                ended = _done(task, folder, ranks, beside)
            finally:
                ranks.leave()
        except Exception as error:  # noqa: BLE001  (told to the driver, which decides)
            ended = Ended(failure=failure_of(error))
    worker.log_event(TOPIC, {"key": key, "rank": rank, "ended": ended.to_dict()})


def _done(task: Task, folder: Path, ranks: Ranks, beside: int) -> Ended:
    work: SharedWork = task.work  # type: ignore[assignment]
    if ranks.leads:
        return Ended(perform(replace(task, work=lambda: work.on(ranks, beside)), folder))
    work.on(ranks, beside)
    return Ended()
