"""How long a run waits for what, and who is told how it goes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from geoflow.jobs.tasks import Task


@dataclass(frozen=True)
class Patience:
    """How long, and how often.

    Parameters
    ----------
    retries : int
        How often a task is tried again after an error that may pass, or after the loss of its worker.
    backoff_s : float
        Seconds before the first of these; before each following one four times as long, and a little by chance.
    task_s : float, optional
        Seconds that a task may take, once begun; then its worker is started anew. No limit by default.
    gone_s : float
        Seconds after which a task whose worker has left is handed out again, where the scheduler has not done so.
    heal_s : float
        Seconds after which a local cluster that has fewer workers than it had is given new ones.
    stall_s : float
        Seconds that the scheduler may keep tasks without one being begun, while it has workers.
    workers_s : float
        Seconds that the cluster may be without any worker (a queue of SLURM may take its time).
    remind_s : float
        Seconds after which it is said again that there is none.
    """

    retries: int = 2
    backoff_s: float = 2.0
    task_s: float | None = None
    gone_s: float = 60.0
    heal_s: float = 20.0
    stall_s: float = 1800.0
    workers_s: float = 24 * 3600.0
    remind_s: float = 600.0

    def wait_s(self, tries: int) -> float:
        """Seconds to wait before another try, after so many."""
        # Not all at once: a server that failed under the load of all tiles would meet them all again.
        return self.backoff_s * 4.0 ** (tries - 1) * random.uniform(0.75, 1.25)


@dataclass(frozen=True)
class Watch:
    """Who is told how it goes.

    Parameters
    ----------
    on_done : callable
        Called with each task that ended, well or not.
    tick : callable
        Called about twice a second; what it raises ends the run (a wish to cancel).
    say : callable
        Called with a line of news: a try that failed, a worker that was lost.
    """

    on_done: Callable[[Task], None] = lambda task: None
    tick: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda text: None
