"""Where to run: from the word after ``--cluster`` to a Dask client."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import ClusterError
from geoflow.jobs.clusterkinds import GIB, WORKER_ENVIRONMENT, WORKER_MEMORY, Needs

if TYPE_CHECKING:
    from distributed import Client

    from geoflow.jobs.clusterfile import Cluster, Running

__all__ = ["GIB", "WORKER_ENVIRONMENT", "WORKER_MEMORY", "Needs", "connect", "where"]

SCHEDULER_VARIABLE = "DASK_SCHEDULER_ADDRESS"
_ANSWER_S = "20s"


def _quiet(text: str) -> None:
    """Tells nobody."""


def where(word: str | None) -> Cluster:
    """What a word after ``--cluster`` means; without one, ``DASK_SCHEDULER_ADDRESS``, and else this machine.

    Parameters
    ----------
    word : str or None
        ``local`` (processes on this machine), ``threads`` (this process), ``cuda`` (one process a GPU of this machine),
        the address of a scheduler (``tcp://host:8786``, ``tls://...``), ``file:scheduler.json``, or the path of a
        cluster file (``jobs/clusters/slurm.yaml``).

    Raises
    ------
    ClusterError
        If the word is none of these.
    """
    from geoflow.jobs import clusterfile as kinds

    source = "--cluster" if word is not None else SCHEDULER_VARIABLE
    word = word if word is not None else os.environ.get(SCHEDULER_VARIABLE) or "local"
    if word in ("local", "threads"):
        return kinds.Local(processes=word == "local")
    if word == "cuda":
        return kinds.Cuda()
    if word.startswith("file:"):
        path = Path(word.removeprefix("file:"))
        if not path.is_file():
            raise ClusterError(f"{source} {word}: there is no scheduler file {path}")
        return kinds.Running(file=path)
    if "://" in word:
        try:
            kinds.check_address(word)
        except ValueError as error:
            raise ClusterError(f"{source}: {error}") from None
        return kinds.Running(address=word)
    if word.endswith((".yaml", ".yml")):
        return kinds.load_cluster(word)
    raise ClusterError(
        f"{source} {word!r} is not known; use local, threads, cuda, tcp://HOST:PORT, tls://HOST:PORT, file:PATH or the "
        "path of a cluster file such as jobs/clusters/slurm.yaml"
    )


@contextlib.contextmanager
def connect(
    cluster: str | Cluster | None = "local", needs: Needs | None = None, say: Callable[[str], None] = _quiet
) -> Iterator[Client]:
    """A client of the cluster that a word names; what was started for it ends with the context.

    Parameters
    ----------
    cluster : str, Cluster or None
        See `where`; or what a cluster file holds.
    needs : Needs, optional
        What the job asks of a worker: its memory, where the cluster file does not say.
    say : callable, optional
        Told a line where something is worth knowing: versions that differ, a scheduler from the environment.

    Raises
    ------
    ClusterError
        If the word is none of these, the cluster cannot be started or reached, speaks unencrypted to other machines
        without being allowed to, or runs other versions than this machine.
    """
    import dask
    from distributed.versions import VersionMismatchWarning

    from geoflow.jobs import clusterfile as kinds
    from geoflow.jobs.clusterkinds import settings
    from geoflow.jobs.versions import check_versions

    if cluster is None and (address := os.environ.get(SCHEDULER_VARIABLE)):
        say(f"the scheduler is the one of {SCHEDULER_VARIABLE}: {address}")
    found = where(cluster) if cluster is None or isinstance(cluster, str) else cluster
    # dask.config reads DASK_SCHEDULER_ADDRESS too, and workers that are started here would follow it.
    needs = needs or Needs()
    chosen = settings(found, needs)
    with (
        _environment_restored(chosen["distributed.nanny.pre-spawn-environ"]),
        dask.config.set({**chosen, "scheduler-address": None}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", VersionMismatchWarning)  # told by check_versions
        opened = _running(found) if isinstance(found, kinds.Running) else _started(found, needs)
        with opened as client:
            if not isinstance(found, kinds.Local | kinds.Cuda):  # those run this very interpreter
                _wait_for_a_worker(client, found)
                check_versions(client, say)
            yield client


@contextlib.contextmanager
def _environment_restored(names: Iterable[str]) -> Iterator[None]:
    """Dask's nannies put the environment of their workers into this process's own, and leave it there."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _running(cluster: Running) -> Iterator[Client]:
    """A client of a scheduler that runs already."""
    from distributed import Client

    from geoflow.jobs.clustersafety import configured_tls, require_safe_address, security_of

    address = cluster.address if cluster.file is None else _address_in(cluster.file)
    security = security_of(cluster)
    require_safe_address(cluster, str(address))
    if str(address).startswith("tls://") and security is None and not configured_tls():
        raise ClusterError(
            f"--cluster {address} needs certificates: name them in a cluster file (kind: scheduler, address, tls), or "
            "in Dask's configuration (DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ..__CLIENT__CERT, ..__CLIENT__KEY)"
        )
    try:
        client = Client(address, timeout=_ANSWER_S, security=security)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise ClusterError(f"--cluster {address}: no scheduler answers there ({error})") from None
    with client:
        yield client


def _address_in(path: Path) -> str:
    """The address in a scheduler file, which may have been written by anybody."""
    from geoflow.jobs.clusterfile import check_address

    try:
        address = json.loads(path.read_text(encoding="utf-8"))["address"]
        check_address(str(address))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"{path} is not a scheduler file, as `dask scheduler --scheduler-file` writes it: {error}"
        ) from None
    return str(address)


@contextlib.contextmanager
def _started(cluster: Cluster, needs: Needs) -> Iterator[Client]:
    """A client of a cluster that is started for it, and closed after it."""
    from distributed import Client

    from geoflow.jobs.clusterkinds import start

    with start(cluster, needs) as running, Client(running, timeout=_ANSWER_S) as client:
        yield client


_WHERE_TO_LOOK = {
    "slurm": "; see `squeue --me`, and the logs in {folder}",
    "pbs": "; see `qstat -u $USER`, and the logs in {folder}",
    "lsf": "; see `bjobs`, and the logs in {folder}",
    "kubernetes": "; see `kubectl get pods`: the image may be missing, or the nodes full",
    "scheduler": "; start some: dask worker {address}",
}


def _wait_for_a_worker(client: Client, cluster: Cluster) -> None:
    try:
        client.wait_for_workers(1, timeout=cluster.start_timeout_s)
    except TimeoutError:
        facts: dict[str, Any] = {
            "folder": getattr(cluster, "folder", ""),
            "address": client.scheduler_info()["address"],
        }
        hint = _WHERE_TO_LOOK.get(cluster.kind, "").format(**facts)
        raise ClusterError(
            f"kind {cluster.kind}: no worker came within {cluster.start_timeout_s:g} s (start_timeout_s){hint}"
        ) from None
