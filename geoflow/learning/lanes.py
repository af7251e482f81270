"""Lanes: the streams that training data is read in, each with its own shards, order and random numbers.

The number of lanes belongs to the recipe: every batch takes its share from each lane. How many ranks (processes) train
together does not: a rank takes over some of the lanes, and one rank all of them, so the batches are the same.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from geoflow.errors import ModelError

T = TypeVar("T")


@dataclass(frozen=True)
class Lanes:
    """All lanes of a training, and those that are read here.

    Parameters
    ----------
    total : int
    first, count : int
        The lanes ``first`` to ``first + count - 1`` are read here.
    """

    total: int = 1
    first: int = 0
    count: int = 1

    @classmethod
    def of_rank(cls, total: int, rank: int, ranks: int) -> Lanes:
        """The lanes of one of several ranks.

        Raises
        ------
        ModelError
            If the lanes cannot be dealt out evenly.
        """
        if ranks < 1 or total % ranks:
            raise ModelError(f"{total} lanes cannot be dealt out to {ranks} ranks; take a number that divides them")
        share = total // ranks
        return cls(total, rank * share, share)

    @property
    def mine(self) -> range:
        """Numbers of the lanes that are read here."""
        return range(self.first, self.first + self.count)

    def share(self, batch: int) -> int:
        """Samples that one lane gives to a batch.

        Raises
        ------
        ModelError
            If the batch is not a multiple of the lanes.
        """
        if batch % self.total:
            raise ModelError(f"a batch of {batch} cannot take equal shares of {self.total} lanes; make it a multiple")
        return batch // self.total


def seeds(*numbers: int, lane: int) -> list[int]:
    """What a lane's generator is seeded with; the first lane's as if there were no others."""
    return [*numbers, lane] if lane else list(numbers)


_END = object()


def prefetched(make: Callable[[], Iterator[T]], depth: int = 4) -> Generator[T, None, None]:
    """Run a generator in a thread, ``depth`` items ahead; its exception is raised here, and leaving early stops it."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in make():
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            put(error)

    thread = threading.Thread(target=work, name="geoflow-samples", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
