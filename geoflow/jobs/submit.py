"""Submitting runs: begun here, driven elsewhere, asked after from anywhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from geoflow.errors import ClusterError, JobError, RunBusy, RunCancelled, RunFailed
from geoflow.jobs import slurmdriver
from geoflow.jobs.lease import RENEW_S, STALE_S, holder_of
from geoflow.jobs.order import Order
from geoflow.jobs.records import ENDED, Record, Recorder, create_record, find_record, read_record, wish_to_cancel
from geoflow.jobs.runner import scheduler_address
from geoflow.places import place, write_bytes
from geoflow.redact import redact

if TYPE_CHECKING:
    from distributed import Client

    from geoflow.jobs.console import Console
    from geoflow.jobs.patience import Patience
    from geoflow.jobs.spec import Job

Driver = Literal["process", "slurm", "cluster"]
"""What drives a submitted run: a process here that outlives the terminal, a SLURM job, or a task on the cluster."""


@dataclass
class SubmittedRun:
    """A run that goes on elsewhere.

    Parameters
    ----------
    record : Record
    """

    record: Record

    @property
    def id(self) -> str:
        """Its id, by which any shell finds it."""
        return self.record.id

    @property
    def status(self) -> str:
        """``submitted``, ``running``, ``complete``, ``failed``, ``cancelled``, ``interrupted``, or ``lost``."""
        self.record = self.record.read_again()
        return self.record.state

    def wait(self, timeout_s: float | None = None) -> str:
        """Wait until it has ended (or is lost), and say how.

        Raises
        ------
        TimeoutError
            If it goes on after ``timeout_s`` seconds.
        """
        start = time.monotonic()
        while (status := self.status) in ("submitted", "running"):
            if timeout_s is not None and time.monotonic() - start > timeout_s:
                raise TimeoutError(f"run {self.id} is {status} after {timeout_s:g} s")
            time.sleep(0.5)
        return status

    def result(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The summary, as in ``OUT/summary.json``, once it is complete.

        Raises
        ------
        RunFailed, RunCancelled
            If it ended in another way; what is done is kept.
        TimeoutError
            See `wait`.
        """
        from geoflow.jobs.records import read_summary

        status = self.wait(timeout_s)
        if status == "complete":
            return read_summary(self.record.out)
        told = self.record.content.get("error") or f"see {self.record.out}/summary.json, and {self.record.log}"
        kind = RunCancelled if status == "cancelled" else RunFailed
        raise kind(f"run {self.id} is {status}: {told}")

    def logs(self) -> str:
        """What it has printed so far."""
        return read_log(self.record)

    def cancel(self, wait_s: float = 60.0) -> str:
        """Ask it to stop; what it has done is kept. Returns how it is after at most ``wait_s`` seconds."""
        cancel(self.record, wait_s)
        return self.status


def submit(
    job: Job,
    cluster: str | Client | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    driver: Driver | None = None,
    patience: Patience | None = None,
) -> SubmittedRun:
    """Begin a run that goes on by itself, and come back at once.

    Parameters
    ----------
    job : Job
    cluster : str or distributed.Client, optional
        See `geoflow.jobs.clusters.where`. With a client, its cluster, and the run is driven by a task there.
    out : path, optional
        The output folder; ``out/<job name>`` by default.
    limit : int, optional
        Only the first so many tiles.
    driver : str, optional
        ``process`` by default; ``slurm`` where the cluster file is of that kind and there is ``sbatch``; ``cluster``
        only for schedulers that run anyway, and whose workers hold geoflow.
    patience : Patience, optional

    Raises
    ------
    RunBusy
        If another run, which lives, is writing the output.
    ClusterError
        If the driver cannot be started.
    """
    if cluster is not None and not isinstance(cluster, str):
        order = Order.of(job, out, cluster=scheduler_address(cluster), limit=limit, patience=patience)
        return submit_order(order, "cluster", cluster)
    return submit_order(Order.of(job, out, cluster=cluster, limit=limit, patience=patience), driver)


def submit_order(order: Order, driver: Driver | None = None, client: Client | None = None) -> SubmittedRun:
    """See `submit`."""
    from geoflow.jobs.checks import check_writable
    from geoflow.jobs.clusters import where
    from geoflow.jobs.jobfile import check_inputs_exist

    target = where(order.cluster)
    check_inputs_exist(order.job)
    check_writable(order.out)
    found = holder_of(order.out)
    if found is not None and found.lives:
        raise RunBusy(f"{order.out} is being written by {found.told}; stop it with `geoflow cancel {found.run}`")
    if driver is None:
        driver = "slurm" if target.kind == "slurm" and shutil.which("sbatch") else "process"
    if driver == "cluster" and client is None and order.cluster in (None, "local", "threads", "cuda"):
        raise ClusterError("--driver cluster: name a scheduler that runs anyway (--cluster tls://HOST:PORT)")
    record = create_record(order, driver)
    _make_log_folder(record)
    _ = record.order  # can be read again by whoever drives it
    try:
        if driver == "process":
            _start_process(record)
        elif driver == "slurm":
            _start_slurm(record, target)
        else:
            _start_on_cluster(record, order, client)
    except Exception as error:
        Recorder(record).state("failed", error=redact(str(error)))
        raise
    return SubmittedRun(record)


def _make_log_folder(record: Record) -> None:
    if record.log_host is None:
        return
    try:
        record.log.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"{record.log.parent}, where its log would lie, cannot be made: {error.strerror}; set XDG_STATE_HOME"
        Recorder(record).state("failed", error=told)
        raise JobError(f"--out {record.out}: {told}") from None


def drive(folder: Path) -> dict[str, Any]:
    """Run what `submit` recorded in ``OUT/runs/<id>``; what every driver does."""
    import rich.console

    from geoflow.jobs.console import RichConsole

    record = read_record(folder)
    if record.content["driver"] == "slurm":  # any other may run within a job of SLURM's that is not its own
        slurmdriver.hear_walltime()
    try:
        return _drive(record, record.order, RichConsole(rich.console.Console(soft_wrap=True)))
    except slurmdriver.WalltimeEnds:
        _go_on_later(record)
        raise


def _drive(record: Record, order: Order, console: Console | None) -> dict[str, Any]:
    from geoflow.jobs.run import run_order

    deadline = time.monotonic() + 2 * STALE_S
    while True:
        try:
            return run_order(order, console, record)
        except RunBusy as error:
            holder = holder_of(record.out)
            if holder is None or holder.run != record.id or time.monotonic() > deadline:
                # Another was faster since it was submitted; nothing of this one has begun.
                Recorder(record).state("failed", error=str(error))
                raise
            # What drove it before was lost with its machine: that one's lease must run out first.
            time.sleep(RENEW_S)


def _go_on_later(record: Record) -> None:
    """The SLURM job of this driver is at its end, and queued again."""
    recorder = Recorder(record)
    recorder.say("the walltime of its driver is over; it goes on when SLURM starts it again")
    # Before SLURM is asked, which ends this process.
    recorder.state("submitted")
    if refused := slurmdriver.send_again():
        recorder.state(
            "interrupted", error=f"the walltime of its driver is over, and SLURM took it not back: {refused}"
        )


def _command(record: Record) -> list[str]:
    return [sys.executable, "-m", "geoflow", "drive", str(record.folder)]


def _start_process(record: Record) -> None:
    with record.log.open("ab") as log:
        # A session of its own: closing the terminal, or Ctrl-C in it, does not reach it.
        subprocess.Popen(
            _command(record),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=record.log.parent,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


def _start_slurm(record: Record, target: Any) -> None:
    job = slurmdriver.send(_command(record), record.id, record.log, target)
    write_bytes(record.folder / slurmdriver.JOB_FILE, job.encode())


def _start_on_cluster(record: Record, order: Order, client: Client | None) -> None:
    from geoflow.jobs.clusters import connect

    if client is not None:
        _hand_over(record, client)
        return
    with connect(order.cluster) as own:
        _hand_over(record, own)


def _hand_over(record: Record, client: Client) -> None:
    from distributed import fire_and_forget

    future = client.submit(_drive_on_worker, str(record.folder), key=f"drive-{record.id}", pure=False, retries=0)
    # Goes on when this client leaves, and on another worker if its own is lost: receipts keep what is done.
    fire_and_forget(future)
    # Leaving before the scheduler has it could lose it.
    _until_known(client, str(future.key))


def _until_known(client: Client, key: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if client.run_on_scheduler(_knows, key=key):
            return
        time.sleep(0.1)
    raise ClusterError("--driver cluster: the scheduler did not take the driver")


def _knows(dask_scheduler: Any, key: str) -> bool:
    return key in dask_scheduler.tasks


def _drive_on_worker(folder: str) -> None:
    from distributed import get_worker, secede

    worker = get_worker()
    # It waits for tasks more than it works: its place is for them.
    secede()
    record = read_record(place(folder))
    if record.content["state"] in ENDED:
        return
    with contextlib.suppress(RunCancelled):
        _drive(record, replace(record.order, cluster=worker.scheduler.address), None)


def cancel(record: Record, wait_s: float = 60.0) -> str:
    """Ask a run to stop, and wait a while for it to do so.

    Returns
    -------
    str
        The state that it is in then.
    """
    if record.state in (*ENDED, "lost"):
        return record.state
    wish_to_cancel(record)
    # One that waits in SLURM's queue would not see the wish before its turn.
    if record.state == "submitted" and (job := record.slurm_job) and slurmdriver.withdraw(job):
        Recorder(record).state("cancelled")
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        record = record.read_again()
        if record.state in (*ENDED, "lost"):
            break
        time.sleep(0.3)
    return record.state


def terminate(record: Record) -> bool:
    """End the process of a run on this machine that does not hear (it reads a slow disk, or is in a search)."""
    holder = holder_of(record.out)
    if holder is None or holder.run != record.id or holder.host != socket.gethostname() or not holder.lives:
        return False
    os.kill(holder.pid, signal.SIGTERM)
    return True


def resume(word: str, driver: Driver | None = None) -> SubmittedRun:
    """Submit again what a run was ordered to do: what is done is kept.

    Parameters
    ----------
    word : str
        See `geoflow.jobs.records.find_record`.
    driver : str, optional
        As the run had by default.
    """
    record = find_record(word)
    had = record.content["driver"]
    return submit_order(record.order, driver or (had if had in ("process", "slurm", "cluster") else None))


def read_log(record: Record) -> str:
    """What a detached run has printed so far; on another machine than its log's, where that lies."""
    return _printed(record) or _elsewhere(record)


def _printed(record: Record) -> str:
    try:
        return record.log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _elsewhere(record: Record) -> str:
    if record.log_host in (None, socket.gethostname()) or record.log.exists():
        return ""
    return f"run {record.id} prints into {record.log} on {record.log_host}\n"


def follow_log(record: Record, every_s: float = 0.5) -> Iterator[str]:
    """What a detached run prints, as it comes, until it ends."""
    shown = 0
    if hint := _elsewhere(record):
        yield hint
    while True:
        state = record.read_again().state
        text = _printed(record)
        if len(text) > shown:
            yield text[shown:]
            shown = len(text)
        if state in (*ENDED, "lost"):
            return
        time.sleep(every_s)
