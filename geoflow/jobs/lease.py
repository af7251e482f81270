"""One run at a time writes an output: the lease says which, and outlives no crash.

A lease is a file with who holds it. It holds while its holder lives: on this machine, while that process runs;
elsewhere, while the holder renews it. Of two runs that would take it over at once one is refused: see
`geoflow.exchange`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from geoflow.errors import RunBusy, StoreError
from geoflow.exchange import exchange
from geoflow.places import failures, read_bytes

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
        return _holder_in(read_bytes(out / NAME))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _holder_in(content: bytes | None) -> Holder | None:
    try:
        return None if content is None else Holder(**json.loads(content))
    except (ValueError, TypeError):
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
        exchange(self._out / NAME, self._taken)
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
        exchange(self._out / NAME, lambda content: None if self._is_mine(content) else content)

    def __enter__(self) -> Lease:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _mine(self) -> bytes:
        return json.dumps(asdict(Holder.me(self.run)), indent=2).encode()

    def _is_mine(self, content: bytes | None) -> bool:
        found = _holder_in(content)
        return found is not None and found.same(Holder.me(self.run))

    def _taken(self, content: bytes | None) -> bytes:
        found = _holder_in(content)
        if found is not None and found.lives and not self._is_mine(content):
            raise RunBusy(
                f"{self._out} is being written by {found.told}; wait for it, stop it with "
                f"`geoflow cancel {found.run}`, or give this one another output folder (--out)"
            )
        return self._mine()

    def _renewed(self, content: bytes | None) -> bytes | None:
        found = _holder_in(content)
        if found is not None and not self._is_mine(content):
            self._lost = found
            return content
        return self._mine()

    def _renew(self) -> None:
        while self._lost is None and not self._released.wait(RENEW_S):
            # A disk that is full or away for a moment is the business of the tasks; a lease that is not renewed stays
            # ours until somebody takes it.
            with contextlib.suppress(StoreError, *failures()):
                exchange(self._out / NAME, self._renewed)
