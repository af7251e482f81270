"""Records of runs: what any shell can ask about a run, whoever started it and wherever it is.

``OUT/runs/<id>/run.json`` is the record, written by the run itself as it goes on; ``log.txt`` beside it is what a
detached run prints (of an output in an object store it lies in ``$XDG_STATE_HOME/geoflow/logs/<id>``), and a file
``cancel`` is the wish that it stop. A list of this user's runs is kept apart from the outputs, in
``$XDG_STATE_HOME/geoflow/runs``, so that an id alone is enough to find one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoflow.errors import JobError, RunCancelled, StoreError
from geoflow.jobs import slurmdriver
from geoflow.jobs.lease import holder_of
from geoflow.jobs.order import Order
from geoflow.jobs.outcome import Outcome
from geoflow.places import entries, failures, is_remote, make_folder, place, read_bytes, write_bytes
from geoflow.redact import redact, redact_all
from geoflow.store.receipts import write_json

FOLDER = "runs"
ENDED = ("complete", "failed", "cancelled", "interrupted")
"""States of runs that do not go on; ``submitted`` and ``running`` are the others, and ``lost`` is what `Record.state`
makes of these when their process is gone."""

_START_S = 60.0
"""Seconds in which a submitted process should have begun."""


@dataclass(frozen=True)
class Record:
    """What is known of a run.

    Parameters
    ----------
    folder : Path
        ``OUT/runs/<id>``.
    content : dict
        The record as it was when it was read.
    """

    folder: Path
    content: dict[str, Any]

    @property
    def id(self) -> str:
        """The run's id."""
        return str(self.content["id"])

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.folder.parent.parent

    @property
    def order(self) -> Order:
        """What was ordered.

        Raises
        ------
        JobError
            If the job held secrets in plain text, which are not written.
        """
        if self.content["hidden"]:
            raise JobError(
                f"the job of run {self.id} holds a secret in plain text, which is not kept: take it out of the file; "
                "what reads your data takes secrets from the environment by itself"
            )
        return Order.from_dict({**self.content["order"], "out": str(self.out)})

    @property
    def state(self) -> str:
        """``submitted``, ``running``, ``lost`` (its process is gone), or how it ended (`ENDED`)."""
        state = str(self.content["state"])
        if state == "running":
            holder = holder_of(self.out)
            if holder is not None and holder.run == self.id and holder.lives:
                return state
            # A node that failed: SLURM starts the driver again by itself.
            return "submitted" if (job := self.slurm_job) and slurmdriver.is_queued(job) else "lost"
        if state == "submitted" and self.content["driver"] in ("here", "process"):
            return "lost" if time.time() - self.content["created_s"] > _START_S else state
        if state == "submitted" and (job := self.slurm_job) and slurmdriver.is_queued(job) is False:
            return "lost"
        return state

    @property
    def slurm_job(self) -> str | None:
        """The number of the SLURM job that drives it, if one does."""
        if self.content["driver"] != "slurm":
            return None
        try:
            return read_bytes(self.folder / slurmdriver.JOB_FILE).decode().strip()
        except FileNotFoundError:
            return None

    @property
    def log(self) -> Path:
        """What it prints, if it is detached: a file beside the record, or where an object store holds that, one of
        the machine that `log_host` names.
        """
        kept = self.content.get("log")
        return self.folder / "log.txt" if kept is None else Path(kept)

    @property
    def log_host(self) -> str | None:
        """The machine whose disk holds the log, if it does not lie beside the record."""
        return self.content.get("log_host")

    def read_again(self) -> Record:
        """The record as it is now."""
        return read_record(self.folder)


def new_id(name: str) -> str:
    """An id that sorts by time and says what runs: ``20260401-101500-estonia-3f9a``."""
    short = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:24] or "job"
    return f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}-{short}-{secrets.token_hex(2)}"


def create_record(order: Order, driver: str, run: str | None = None) -> Record:
    """The record of a run that is about to begin.

    Parameters
    ----------
    order : Order
    driver : str
        ``here`` (this process), ``process``, ``slurm`` or ``cluster``.
    run : str, optional
        Its id, where it has one already.
    """
    run = run or new_id(order.job.name)
    folder = order.out / FOLDER / run
    make_folder(folder)
    content = {
        "id": run,
        "job": order.job.name,
        "state": "submitted",
        "driver": driver,
        "host": socket.gethostname(),
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "created_s": time.time(),
        "stages": {},
        "news": [],
    } | _told(order)
    if is_remote(folder) and driver in ("process", "slurm"):
        content |= {"log": str(log_folder(run) / "log.txt"), "log_host": socket.gethostname()}
    write_json(folder / "run.json", content)
    _remember(run, order.out)
    return Record(folder, content)


def _told(order: Order) -> dict[str, Any]:
    """The order as it may be written: what stands in the job in plain text and is a secret is not."""
    plain = order.to_dict()
    told = redact_all(plain)
    return {"order": told, "hidden": told != plain}


def read_record(folder: Path) -> Record:
    """The record in ``OUT/runs/<id>``.

    Raises
    ------
    StoreError
        If there is none that can be read.
    """
    path = folder / "run.json"
    try:
        return Record(folder, dict(json.loads(read_bytes(path))))
    except FileNotFoundError:
        raise StoreError(f"there is no record of a run in {folder}") from None
    except json.JSONDecodeError as error:
        raise StoreError(f"{path} is damaged: {error}") from None


def records_of(out: Path) -> list[Record]:
    """The runs on an output folder, oldest first; a record that cannot be read is left out."""
    found = []
    for path in [folder / "run.json" for folder in entries(out / FOLDER)[0]]:
        with contextlib.suppress(StoreError):
            found.append(read_record(path.parent))
    return found


def known_records() -> list[Record]:
    """The latest runs of this user on this machine, oldest first; outputs that are gone are left out."""
    found = []
    for path in sorted(state_folder().glob("*")):
        with contextlib.suppress(StoreError, OSError):
            found.append(read_record(place(path.read_text(encoding="utf-8").strip()) / FOLDER / path.name))
    return found


def find_record(word: str) -> Record:
    """The run that a word names: its id, the beginning of it, or an output folder (its latest run).

    Raises
    ------
    StoreError
        If there is none, or several begin so.
    """
    # Absolute: the process that resumes a run works in another folder.
    folder = place(word).absolute()
    if records := records_of(folder):
        return records[-1]
    if (folder / "run.json").is_file():
        return read_record(folder)
    names = [path.name for path in state_folder().glob("*") if path.name.startswith(word)]
    if word in names:
        names = [word]
    if len(names) > 1:
        raise StoreError(f"{len(names)} runs begin with {word}: {', '.join(sorted(names))}")
    if not names:
        raise StoreError(
            f"there is no run {word!r}: give an id that `geoflow list` shows, or the output folder of a run"
        )
    out = place((state_folder() / names[0]).read_text(encoding="utf-8").strip())
    return read_record(out / FOLDER / names[0])


def state_folder() -> Path:
    """Where this user's runs are remembered."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "geoflow" / "runs"


def log_folder(run: str) -> Path:
    """Where a detached run keeps what it prints, and its script, if its output lies in an object store."""
    return state_folder().parent.absolute() / "logs" / run


def _remember(run: str, out: Path) -> None:
    # A home that cannot be written is no reason not to run: the output folder still finds its runs.
    with contextlib.suppress(OSError, RuntimeError):
        state_folder().mkdir(parents=True, exist_ok=True)
        (state_folder() / run).write_text(f"{out}\n", encoding="utf-8")


def wish_to_cancel(record: Record) -> None:
    """Ask a run to stop; it looks for the wish every second or so, wherever it is."""
    write_bytes(record.folder / "cancel", b"")


class Recorder:
    """Keeps the record of a run that goes on; not more often than every second, but for what matters.

    Parameters
    ----------
    record : Record
    """

    _EVERY_S = 1.0
    _NEWS = 50

    def __init__(self, record: Record) -> None:
        self.record = record
        self._stage: dict[str, Any] = {}
        self._written = 0.0
        self._looked = time.monotonic()
        self._writing = threading.Lock()  # news of the cluster come in a thread of their own

    def state(self, state: str, **more: Any) -> None:
        """The run is now in that state."""
        for name in ("ended", "error"):  # of a driver before this one
            self.record.content.pop(name, None)
        self.record.content.update(state=state, **more)
        if state in ENDED:
            self.record.content["ended"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self._write()

    def begun(self) -> None:
        """The run runs, in this process."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self.state("running", began=now, host=socket.gethostname(), pid=os.getpid())

    @contextlib.contextmanager
    def stage(self, name: str, title: str, tasks: int, outcome: Outcome) -> Iterator[None]:
        """A stage runs, while the context lasts."""
        self._stage = {"title": title, "tasks": tasks, "began_s": time.time()}
        self.record.content["stages"][name] = self._stage
        self._count(outcome)
        self._write()
        try:
            yield
        finally:
            self._stage["ended_s"] = time.time()
            self._count(outcome)
            self._write()

    def _count(self, outcome: Outcome) -> None:
        self._stage.update(done=outcome.done, kept=outcome.skipped, failed=len(outcome.failed))

    def advance(self, outcome: Outcome) -> None:
        """One more task has ended."""
        self._count(outcome)
        if time.monotonic() - self._written >= self._EVERY_S:
            self._write()

    def progress(self, event: Mapping[str, Any]) -> None:
        """What long work reports on its way, such as the steps of a training."""
        self._stage.update({key: event[key] for key in ("step", "steps", "loss") if key in event})
        if time.monotonic() - self._written >= self._EVERY_S:
            self._write()

    def say(self, text: str) -> None:
        """A line of news."""
        news = self.record.content["news"]
        news.append(f"{dt.datetime.now(dt.UTC):%H:%M:%S} {redact(text)}")
        del news[: -self._NEWS]

    def check_cancel(self) -> None:
        """Go on only while nobody asked to stop.

        Raises
        ------
        RunCancelled
            If somebody did.
        """
        if time.monotonic() - self._looked < self._EVERY_S:
            return
        self._looked = time.monotonic()
        wished = False
        with contextlib.suppress(*failures()):  # a store that does not answer for a moment is asked again
            wished = (self.record.folder / "cancel").exists()
        if wished:
            raise RunCancelled(f"stopped, as asked by `geoflow cancel`; to go on: geoflow resume {self.record.id}")

    def _write(self) -> None:
        self._written = time.monotonic()
        # A disk that is full stops the tasks, which say so; the record of it must not be what the run dies of.
        with self._writing, contextlib.suppress(*failures()):
            write_json(self.record.folder / "run.json", self.record.content)


def read_summary(out: Path) -> dict[str, Any]:
    """``OUT/summary.json`` of a run.

    Raises
    ------
    StoreError
        If there is none.
    """
    path = out / "summary.json"
    try:
        return dict(json.loads(read_bytes(path)))
    except FileNotFoundError:
        raise StoreError(f"{out} is not the output of a run: there is no {path.name} in it") from None
    except json.JSONDecodeError as error:
        raise StoreError(f"{path} is damaged: {error}") from None
