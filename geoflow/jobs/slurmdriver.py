"""The driver of a submitted run as a small SLURM job: sent, looked up, withdrawn, and sent again when its time is up.

A national run takes longer than the walltime of many partitions. SLURM warns the driver before it ends it; the run
stops in good order then, and the same job goes back into the queue, where it goes on with what is not done.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geoflow.errors import ClusterError

JOB_FILE = "slurm-job"
"""Beside the record of a run: the number of the SLURM job that drives it."""

WARNING_S = 180
"""Seconds before the end of its walltime at which the driver is told (SLURM may do so a minute earlier): enough to
end the workers' jobs and write the record."""

ASK_EVERY_S = 20.0
_ANSWER_S = 30.0


class WalltimeEnds(KeyboardInterrupt):
    """SLURM is about to end the driver's job; like Ctrl-C, no error of any task."""


def send(command: Sequence[str], name: str, log: Path, target: Any) -> str:
    """Queue the driver, with the partition and account of the workers.

    Parameters
    ----------
    command : sequence of str
        What drives the run.
    name : str
        The id of the run.
    log : Path
        What the driver prints; its script lies beside it.
    target : Slurm
        The cluster file.

    Returns
    -------
    str
        The number of the job.

    Raises
    ------
    ClusterError
        If there is no ``sbatch``, or it refuses.
    """
    script = log.parent / "driver.sh"
    script.write_text("\n".join(_script(command, name, log, target)) + "\n", encoding="utf-8")
    try:
        done = _ask("sbatch", "--parsable", str(script))
    except FileNotFoundError:
        raise ClusterError("--driver slurm: there is no sbatch on this machine; submit from a login node") from None
    if done.returncode:
        raise ClusterError(f"--driver slurm: sbatch refused {script}: {done.stderr.strip()}")
    return done.stdout.partition(";")[0].strip()


def _script(command: Sequence[str], name: str, log: Path, target: Any) -> list[str]:
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=geoflow-{name}",
        f"#SBATCH --output={log}",
        # The same job may run several times, after its walltime or the loss of its node.
        "#SBATCH --open-mode=append --requeue",
        f"#SBATCH --signal=B:USR1@{WARNING_S}",
        "#SBATCH --ntasks=1 --cpus-per-task=1 --mem=4G",
    ]
    for option, value in (("partition", getattr(target, "queue", None)), ("account", getattr(target, "account", None))):
        lines += [f"#SBATCH --{option}={value}"] if value else []
    # In place of the shell: what SLURM signals is the driver itself.
    return [*lines, *getattr(target, "setup", ()), "export PYTHONUNBUFFERED=1", "exec " + shlex.join(command)]


_answers: dict[str, tuple[float, bool | None]] = {}


def is_queued(job: str) -> bool | None:
    """Whether SLURM still has a job, waiting or at work; None where that cannot be asked.

    Asked once in `ASK_EVERY_S`: who waits for a run looks twice a second, and SLURM's controller serves everybody.
    """
    asked, answer = _answers.get(job, (-math.inf, None))
    if time.monotonic() - asked >= ASK_EVERY_S:
        answer = _ask_for(job)
        _answers[job] = (time.monotonic(), answer)
    return answer


def _ask_for(job: str) -> bool | None:
    try:
        done = _ask("squeue", "--noheader", "--format=%T", "--jobs", job)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return False if "Invalid job id" in done.stderr else None
    return bool(done.stdout.split())


def withdraw(job: str) -> bool:
    """Take a job out of the queue, if it waits there still; whether it is gone now."""
    try:
        _ask("scancel", "--state=PENDING", job)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return _ask_for(job) is False


def hear_walltime() -> None:
    """Raise `WalltimeEnds` in this process when SLURM tells it that its time is up."""

    def end(number: int, frame: object) -> None:
        raise WalltimeEnds

    signal.signal(signal.SIGUSR1, end)


def send_again() -> str | None:
    """Put this very job back into the queue, which ends this process; what SLURM said if it refused."""
    try:
        done = _ask("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip()


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_S)
