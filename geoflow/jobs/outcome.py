"""What became of tasks, and which of them must be done again, and why."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from geoflow.jobs.spool import Spool
from geoflow.jobs.tasks import Task
from geoflow.store.receipts import Receipts


@dataclass
class Outcome:
    """What became of the tasks of a stage."""

    done: int = 0
    skipped: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    work_seconds: float = 0.0
    spent: Counter[str] = field(default_factory=Counter)
    receipts: Spool = field(default_factory=Spool)

    def book(self, key: str, receipt: Mapping[str, Any]) -> None:
        """Keep the receipt of a task, and add up what it took."""
        self.work_seconds += float(receipt.get("seconds", 0.0))
        self.spent.update(receipt.get("spent", {}))
        self.receipts[key] = dict(receipt)

    @property
    def tasks(self) -> int:
        """How many there were."""
        return self.done + self.skipped + len(self.failed)


def why_again(task: Task, receipts: Receipts) -> str | None:
    """Why a task that was done before must be done again; "" if it was never done, None if it need not be.

    Parameters
    ----------
    task : Task
    receipts : Receipts
    """
    receipt = receipts.read(task.stage, task.key)
    if receipt is None:
        return ""
    if receipt.get("id") == task.id:
        if receipts.valid(task.stage, task.key, task.id) is None:
            return "files are missing or altered"
        return "something could not be read then" if receipt.get(task.redo_if) else None
    was = receipt.get("because", {})
    changed = [name for name, part in task.because.items() if was.get(name) != part]
    if not was or not changed:
        return "made by another version of geoflow"
    told = {"version": "another version of geoflow", "grid": "another grid"}
    return f"changed: {', '.join(told.get(name, name) for name in changed)}"


_LOOKED_UP = 5000
"""Receipts that are read at once: many, because an object store lists whole arrays for them, and not a country's."""


def split_finished(tasks: Iterable[Task], receipts: Receipts) -> tuple[list[Task], Outcome]:
    """The tasks without a valid receipt, and an outcome that counts the others as skipped."""
    outcome, todo, left = Outcome(), [], iter(tasks)
    while some := list(itertools.islice(left, _LOOKED_UP)):
        found = receipts.all_valid([(task.stage, task.key, task.id) for task in some])
        for task, receipt in zip(some, found, strict=True):
            if receipt is None or receipt.get(task.redo_if):
                todo.append(task)
            else:
                outcome.skipped += 1
                outcome.book(task.key, receipt)
    return todo, outcome
