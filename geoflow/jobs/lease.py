"""One run at a time writes an output: the lease says which, and outlives no crash.

A lease is a file with who holds it. It holds while its holder lives: on this machine, while that process runs;
elsewhere, while the holder renews it. Two runs that would take it over at once are kept apart by a lock of the file
system.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from geoflow.errors import RunBusy
from geoflow.places import failures, is_remote, read_bytes, remove
from geoflow.store.receipts import write_json

NAME = "lease.json"
RENEW_S = 15.0
STALE_S = 120.0
"""Seconds after which a holder on another machine that has not renewed counts as dead; clocks may differ by less."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: a run, in a process that began at ``began`` (seconds since 1970) on a machine."""

    run: str
    host: str
    pid: int
    began: float
    renewed: float

    @classmethod
    def me(cls, run: str) -> Holder:
        """This process, for a run."""
        return cls(run, socket.gethostname(), os.getpid(), _began(os.getpid()) or 0.0, time.time())

    @property
    def lives(self) -> bool:
        """Whether the run still goes on."""
        if self.host == socket.gethostname():
            # A pid alone is not enough: after a crash the same number may be another process.
            began = _began(self.pid)
            return began is not None and abs(began - self.began) < 1.0
        return time.time() - self.renewed < STALE_S

    def same(self, other: Holder) -> bool:
        """Whether both are the same run in the same process."""
        return (self.run, self.host, self.pid) == (other.run, other.host, other.pid)

    @property
    def told(self) -> str:
        """Who it is, for people."""
        return f"run {self.run} on {self.host} (process {self.pid})"


def _began(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def holder_of(out: Path) -> Holder | None:
    """Who holds the lease of an output folder, alive or dead; None if nobody does."""
    try:
        return Holder(**json.loads(read_bytes(out / NAME)))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None  # cut short by a full disk, or another geoflow's: whoever left it cannot renew it either


class Lease:
    """The lease of an output folder, held by this process until `release`.

    Parameters
    ----------
    out : Path
        The output folder; it exists.
    run : str
        The run's id.
    """

    def __init__(self, out: Path, run: str) -> None:
        self._out, self.run = out, run
        self._lost: Holder | None = None
        self._released = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="geoflow-lease", daemon=True)

    def acquire(self) -> Lease:
        """Take it.

        Raises
        ------
        RunBusy
            If a run that lives holds it.
        """
        with _one_at_a_time(self._out):
            found = holder_of(self._out)
            if found is not None and found.lives and not found.same(Holder.me(self.run)):
                raise RunBusy(
                    f"{self._out} is being written by {found.told}; wait for it, stop it with "
                    f"`geoflow cancel {found.run}`, or give this one another output folder (--out)"
                )
            self._write()
        self._renewing.start()
        return self

    def check(self) -> None:
        """Go on only while it is ours.

        Raises
        ------
        RunBusy
            If another run took it over (this machine slept, or was cut off, for longer than a lease holds).
        """
        if self._lost is not None:
            raise RunBusy(f"{self._out} was taken over by {self._lost.told}; this run stops, what it has done is kept")

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._released.set()
        if self._renewing.is_alive():
            self._renewing.join()
        with _one_at_a_time(self._out):
            found = holder_of(self._out)
            if found is not None and found.same(Holder.me(self.run)):
                remove(self._out / NAME)

    def __enter__(self) -> Lease:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _write(self) -> None:
        write_json(self._out / NAME, asdict(Holder.me(self.run)))

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            # A disk that is full or away for a moment is the business of the tasks; a lease that is not renewed stays
            # ours until somebody takes it.
            with contextlib.suppress(*failures()), _one_at_a_time(self._out):
                found = holder_of(self._out)
                if found is not None and not found.same(Holder.me(self.run)):
                    self._lost = found
                    return
                self._write()


@contextlib.contextmanager
def _one_at_a_time(out: Path) -> Iterator[None]:
    """Between looking and writing, nobody else does; where the file system has no locks, that moment is a risk."""
    file: IO[bytes] | None = None
    if is_remote(out):  # an object store has none
        yield
        return
    with contextlib.suppress(OSError):
        file = (out / ".lease.lock").open("ab")
    if file is None:
        yield
        return
    with file:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
