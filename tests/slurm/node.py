"""A SLURM of one node on this machine, for tests: with a configuration, ports, munge key and folders of its own.

By hand: ``python tests/slurm/node.py`` starts one and prints the variable that makes sbatch and squeue use it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
_PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])


class CannotStart(Exception):
    """SLURM does not start on this machine; the message says why."""


def program(name: str) -> str:
    """Path of a program of SLURM's, which lie where the path of a user often does not lead."""
    found = shutil.which(name, path=_PLACES)
    if found is None:
        raise CannotStart(f"there is no {name} (Debian: apt-get install slurm-wlm munge)")
    return found


@contextlib.contextmanager
def slurm_node(folder: Path, patience_s: float = 60.0) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd as the current user, and stop them afterwards.

    Parameters
    ----------
    folder : Path
        For everything that they write.

    Yields
    ------
    dict
        Environment variables with which SLURM's commands speak to it.

    Raises
    ------
    CannotStart
        If a program is missing, or one ends or says nothing within ``patience_s``.
    """
    paths = {name: program(name) for name in PROGRAMS}
    # A folder of its own, since the path of a socket must be short, and all must be able to pass through to it.
    with tempfile.TemporaryDirectory(prefix="munge-") as munge, contextlib.ExitStack() as stack:
        os.chmod(munge, 0o711)
        start = _Starter(stack, folder)
        sock = Path(munge) / "munge.sock"
        key = Path(munge) / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{what}-file={munge}/{what}" for what in ("pid", "seed", "log")]
        start.daemon("munged", paths["munged"], "--foreground", f"--key-file={key}", f"--socket={sock}", *files)
        _wait(sock.exists, patience_s, start, "munged made no socket")
        config = _write_config(folder, sock)
        environment = {"SLURM_CONF": str(config), "PATH": _PLACES}
        start.daemon("slurmctld", paths["slurmctld"], "-D", "-f", str(config))
        start.daemon("slurmd", paths["slurmd"], "-D", "-f", str(config), "-N", "test")
        ask = [paths["sinfo"], "--noheader", "--format=%T"]

        def idle() -> bool:
            env = {**os.environ, **environment}
            return subprocess.run(ask, capture_output=True, text=True, env=env, check=False).stdout.split() == ["idle"]

        _wait(idle, patience_s, start, "the node did not become idle")
        try:
            yield environment
        finally:
            env = {**os.environ, **environment}
            subprocess.run(
                [paths["scancel"], "--partition=test"], env=env, capture_output=True, timeout=30, check=False
            )


class _Starter:
    """Starts programs that end with the context, and knows what they said."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def daemon(self, name: str, *command: str) -> None:
        log = self._stack.enter_context((self._folder / f"{name}.out").open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._running[name] = process
        self._stack.callback(_stop, process)

    def said(self) -> str:
        """The last lines of each."""
        logs = {name: (self._folder / f"{name}.out").read_text(errors="replace").splitlines() for name in self._running}
        return "; ".join(f"{name}: {' | '.join(lines[-3:]) or 'nothing'}" for name, lines in logs.items())

    def ended(self) -> list[str]:
        return [name for name, process in self._running.items() if process.poll() is not None]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(ready: object, patience_s: float, start: _Starter, otherwise: str) -> None:
    deadline = time.monotonic() + patience_s
    while not ready():  # type: ignore[operator]
        if ended := start.ended():
            raise CannotStart(f"{', '.join(ended)} ended at once: {start.said()}")
        if time.monotonic() > deadline:
            raise CannotStart(f"{otherwise} within {patience_s:g} s: {start.said()}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _write_config(folder: Path, munge: Path) -> Path:
    controller, node = _free_ports(2)
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    user, cores, host = getpass.getuser(), os.cpu_count() or 1, socket.gethostname()
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    config = folder / "slurm.conf"
    config.write_text(
        f"""
ClusterName=geoflow-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0
PropagateResourceLimits=NONE
KillWait=5
NodeName=test NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory_mb - 64}
PartitionName=test Nodes=test Default=YES MaxTime=INFINITE State=UP
"""
    )
    return config


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="slurm-") as home, slurm_node(Path(home)) as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']}\nEnter ends it.", flush=True)
        input()
