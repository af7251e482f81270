"""Where the time of tasks goes: reading, the net, writing.

Seconds are added up for the whole process, in whatever threads they are spent, and taken when a task ends. A worker
that runs several tasks at once books a second to whichever of them ends next: sums over a stage are right.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

READ, NET, WRITE = "read", "net", "write"

_LOCK = threading.Lock()
_spent: dict[str, float] = {}


@contextmanager
def spending(kind: str) -> Iterator[None]:
    """Book the time that this takes, in this thread, to `READ`, `NET` or `WRITE`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        with _LOCK:
            _spent[kind] = _spent.get(kind, 0.0) + seconds


def take_spent() -> dict[str, float]:
    """Seconds of each kind since this was last called in this process."""
    with _LOCK:
        taken = {kind: round(seconds, 3) for kind, seconds in sorted(_spent.items())}
        _spent.clear()
    return taken
