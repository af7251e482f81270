"""Where to run: from the word after ``--cluster`` to a Dask client."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from geoflow.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

# Large tensors come and go with every batch: without these, glibc gives their memory back to the system and asks for it
# again each time, which costs a third of a training step on a CPU.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}

GIB = 2**30
WORKER_MEMORY = 3 * GIB
"""What a worker is given at least, when there is a choice of how many to start."""


@contextlib.contextmanager
def connect(cluster: str = "local") -> Iterator[Client]:
    """A client of the cluster that a word names.

    Parameters
    ----------
    cluster : str
        ``local`` (one process a core on this machine), ``threads`` (this process), the address of a scheduler
        (``tcp://host:8786``, ``tls://...``), or ``file:scheduler.json``.

    Raises
    ------
    ClusterError
        If the word is not one of these, or no scheduler answers.
    """
    from distributed import Client

    if cluster in ("local", "threads"):
        with _local(processes=cluster == "local") as client:
            yield client
        return
    if cluster.startswith("file:"):
        path = Path(cluster.removeprefix("file:"))
        if not path.is_file():
            raise ClusterError(f"--cluster {cluster}: there is no scheduler file {path}")
        options = {"scheduler_file": str(path)}
    elif cluster.startswith(("tcp://", "tls://", "ucx://")):
        options = {"address": cluster}
    else:
        raise ClusterError(
            f"--cluster {cluster!r} is not known; use local, threads, tcp://HOST:PORT, tls://HOST:PORT or file:PATH"
        )
    try:
        client = Client(timeout="20s", **options)
    except (OSError, TimeoutError) as error:
        raise ClusterError(f"--cluster {cluster}: no scheduler answers there ({error})") from None
    with client:
        if not client.scheduler_info()["workers"]:
            client.wait_for_workers(1, timeout=60)
        yield client


@contextlib.contextmanager
def _local(processes: bool) -> Iterator[Client]:
    import dask
    import psutil
    from distributed import Client, LocalCluster

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    workers = max(1, min(cores, psutil.virtual_memory().total // WORKER_MEMORY))
    settings = {
        "distributed.nanny.pre-spawn-environ": {
            **dask.config.get("distributed.nanny.pre-spawn-environ", {}),
            **WORKER_ENVIRONMENT,
        },
        "distributed.comm.timeouts.connect": "60s",
        # A worker holds a tile and a net, both planned for: nothing is gained by moving chunks to disk half-way.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
    }
    # Loopback only: an open Dask port lets whoever reaches it run code.
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers if processes else 1,
            threads_per_worker=1 if processes else workers,
            processes=processes,
            host="127.0.0.1" if processes else None,
            dashboard_address="127.0.0.1:0",
            silence_logs=40,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
