"""Tasks: the unit that is planned, run once, and proved by a receipt."""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from geoflow.errors import GeoflowError
from geoflow.places import remove
from geoflow.redact import guard_process, without_secrets
from geoflow.stopwatch import take_spent
from geoflow.store.receipts import Receipts


@dataclass(frozen=True)
class Done:
    """What a piece of work leaves: facts for its receipt, and the files that prove it."""

    content: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


class Work(Protocol):
    """A piece of work: frozen plain values that travel to a worker, and what to do with them."""

    def __call__(self) -> Done:
        """Do it. Everything it writes is complete when this returns."""


@dataclass(frozen=True)
class Task:
    """One piece of work with its name and identity.

    Parameters
    ----------
    stage, key : str
        Where its receipt lies: ``predict``, ``2018/r0000c0001``.
    id : str
        sha256 of everything that alters the result.
    work : Work
        What to do.
    redo_if : str
        Key of a receipt under which it owns to something missing: a receipt that has it does not count.
    gpu : bool
        It runs a net: where workers declare the Dask resource ``GPU``, one such task runs on each at a time.
    because : mapping of name -> digest
        The id in parts, for the receipt: they tell later what has changed.
    lanes : int
        So many workers at most may do it together, see `geoflow.jobs.together`; 1 where it is done by one.
    """

    stage: str
    key: str
    id: str
    work: Work
    redo_if: str = ""
    gpu: bool = False
    because: Mapping[str, str] = field(default_factory=dict)
    lanes: int = 1

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.stage} {self.key}"


@dataclass(frozen=True)
class Stage:
    """One stage: its name, what to tell people, and its tasks.

    ``tasks`` is called when the stages before it are done, because the ids of its tasks may depend on their results
    (the map's on the sha256 of the model). ``finish`` is called when all its tasks are done.
    """

    name: str
    title: str
    tasks: Callable[[], list[Task]]
    prepare: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None


def perform(task: Task, folder: Path) -> dict[str, Any]:
    """Do a task and write its receipt; what a worker runs.

    Parameters
    ----------
    task : Task
    folder : Path
        The output folder; the receipt goes into ``folder/receipts``.

    Returns
    -------
    dict
        The receipt.
    """
    receipts = Receipts(folder / "receipts")
    # A receipt of an earlier id would vouch for pixels that are now being replaced.
    remove(receipts.path(task.stage, task.key))
    start = time.monotonic()
    guard_process()  # what this worker logs
    with without_secrets():
        done = task.work()
    content = {**done.content, "seconds": round(time.monotonic() - start, 3), "spent": take_spent()}
    if task.because:
        content["because"] = dict(task.because)
    return receipts.write(task.stage, task.key, task.id, content, done.files)


@dataclass(frozen=True)
class Failure:
    """Why a task did not end well, as plain text: an exception need not survive the way back to the driver.

    ``passing`` says whether another try may go well; ``trace`` is empty for errors that the user can mend.
    """

    text: str
    passing: bool = True
    trace: str = ""


@dataclass(frozen=True)
class Ended:
    """How a try of a task ended: a receipt or a failure."""

    receipt: dict[str, Any] | None = None
    failure: Failure | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the way from the worker."""
        return {"receipt": self.receipt, "failure": None if self.failure is None else asdict(self.failure)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ended:
        """The inverse of `to_dict`."""
        failure = values["failure"]
        return cls(values["receipt"], None if failure is None else Failure(**failure))


def attempt(tasks: Sequence[Task], folder: Path, on_start: Callable[[int], None]) -> list[Ended]:
    """Try tasks one after the other; one that fails does not keep the others from being tried.

    Parameters
    ----------
    tasks : sequence of Task
    folder : Path
        The output folder.
    on_start : callable
        Called with the place of each task in ``tasks`` before it is tried.
    """
    ended = []
    for place, task in enumerate(tasks):
        on_start(place)
        try:
            ended.append(Ended(perform(task, folder)))
        except Exception as error:  # noqa: BLE001  (told to the driver, which decides)
            ended.append(Ended(failure=failure_of(error)))
    return ended


_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""What the system says of disks that are full or may not be written: trying again does not help."""


def failure_of(error: BaseException) -> Failure:
    """An error as the driver is told of it."""
    if isinstance(error, GeoflowError):
        return Failure(str(error), passing=error.passing)
    lasting = isinstance(error, OSError) and error.errno in _LASTING
    trace = "" if lasting else "".join(traceback.format_tb(error.__traceback__))
    return Failure(f"{type(error).__name__}: {error}", passing=not lasting, trace=trace)
