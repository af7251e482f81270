"""Tasks: the unit that is planned, run once, and proved by a receipt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from geoflow.redact import guard_process, without_secrets
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
    """

    stage: str
    key: str
    id: str
    work: Work
    redo_if: str = ""

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.stage} {self.key}"


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
    receipts.path(task.stage, task.key).unlink(missing_ok=True)
    start = time.monotonic()
    guard_process()  # what this worker logs
    with without_secrets():
        done = task.work()
    content = {**done.content, "seconds": round(time.monotonic() - start, 3)}
    return receipts.write(task.stage, task.key, task.id, content, done.files)
