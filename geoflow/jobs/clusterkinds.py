"""Starting the clusters of each kind: from a checked cluster file to one of Dask's cluster objects."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from geoflow.errors import ClusterError
from geoflow.extras import how_to_install
from geoflow.jobs import clusterfile as kinds
from geoflow.jobs.clustersafety import require_safe_start, security_of
from geoflow.jobs.forks import METHOD, fork_method

# Large tensors come and go with every batch: without these, glibc gives their memory back to the system and asks for it
# again each time, which costs a third of a training step on a CPU.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}

GIB = 2**30
WORKER_MEMORY = 3 * GIB
"""What a worker is given at least, when there is a choice."""
_SPARE = 1.25  # of memory, beyond what the plan tells
_LOOPBACK = "127.0.0.1:0"


@dataclass(frozen=True)
class Needs:
    """What a job asks of a worker.

    Parameters
    ----------
    memory_bytes : int
        Peak memory of a worker of one thread (`geoflow.jobs.estimate.peak_worker_bytes`).
    threads : int
        Threads of a worker, where the cluster file does not say.
    nets : bool
        Whether it runs nets.
    """

    memory_bytes: int = WORKER_MEMORY
    threads: int = 1
    nets: bool = False

    @property
    def limit_bytes(self) -> int:
        """What a worker should be given."""
        return max(WORKER_MEMORY, int(self.memory_bytes * _SPARE))


def worker_environment(cluster: kinds.Cluster) -> dict[str, str]:
    """Environment variables of the workers: the one place for all kinds. What the cluster file says goes first."""
    return {
        **WORKER_ENVIRONMENT,
        "OMP_NUM_THREADS": "1",  # a window of the net runs on one thread; training sets its own number
        # The threads of a training that wait for each other sleep soon. Spinning, as is usual, is hardly quicker on
        # cores that are theirs alone, and doubles the time of a step on cores that others use too.
        "GOMP_SPINCOUNT": "1000",
        "GDAL_CACHEMAX": "256",  # MB; else each process takes 5 % of the memory of its node
        **getattr(cluster, "environment", {}),
    }


_SETTINGS: dict[str, Any] = {
    "distributed.comm.timeouts.connect": "60s",
    # A worker holds a tile and a net, both planned for: nothing is gained by moving chunks to disk half-way.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    # A task that killed two workers is given up, and then tried alone; the default lets it kill four.
    "distributed.scheduler.allowed-failures": 1,
}


def settings(cluster: kinds.Cluster, needs: Needs) -> dict[str, Any]:
    """Dask's configuration while a cluster is started and used from here."""
    import dask

    spawned = {**dask.config.get("distributed.nanny.pre-spawn-environ", {}), **worker_environment(cluster)}
    found = {**_SETTINGS, "distributed.nanny.pre-spawn-environ": spawned}
    if isinstance(cluster, kinds.Local | kinds.Cuda):
        found["distributed.dashboard.link"] = "{scheme}://127.0.0.1:{port}/status"
    if isinstance(cluster, kinds.Local) and cluster.processes:
        found[METHOD] = fork_method(needs.nets)
    if isinstance(cluster, kinds.Ssh) and cluster.tls is not None:
        # Travels to the hosts with the configuration; the files must lie at the same place there.
        ours = {"ca-file": cluster.tls.ca} | {
            f"{role}.{what}": getattr(cluster.tls, what)
            for role in ("scheduler", "worker", "client")
            for what in ("cert", "key")
        }
        found |= {f"distributed.comm.tls.{name}": str(path) for name, path in ours.items()}
        found["distributed.comm.require-encryption"] = True
    return found


def _exported(cluster: kinds.Cluster) -> dict[str, str]:
    """The environment and configuration of workers that are started elsewhere."""
    as_variables = {f"DASK_{key.replace('.', '__').replace('-', '_').upper()}": str(v) for key, v in _SETTINGS.items()}
    return {**as_variables, **worker_environment(cluster)}


def start(cluster: kinds.Cluster, needs: Needs) -> Any:
    """Start a cluster that is not running yet, with its workers on their way.

    Returns
    -------
    distributed.deploy.Cluster

    Raises
    ------
    ClusterError
        If a package or program is missing, or the cluster cannot be started.
    """
    require_safe_start(cluster)
    if isinstance(cluster, kinds.Local | kinds.Cuda):
        try:
            return _local(cluster, needs) if isinstance(cluster, kinds.Local) else _cuda(cluster)
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"--cluster {cluster.kind} cannot be started on this machine: {error}") from error
    if isinstance(cluster, kinds.Slurm | kinds.Pbs | kinds.Lsf):
        return _queue(cluster, needs)
    if isinstance(cluster, kinds.Kubernetes):
        return _kubernetes(cluster, needs)
    if isinstance(cluster, kinds.Gateway):
        return _gateway(cluster)
    if isinstance(cluster, kinds.Ssh):
        return _ssh(cluster, needs)
    raise ClusterError(f"kind {cluster.kind} is not one that can be started")


def _import(module: str, extra: str, kind: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ClusterError(
            f"kind {kind} needs the package {module.partition('.')[0].replace('_', '-')}: "
            f"{how_to_install(extra)} ({error})"
        ) from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def fitting_workers(threads: int, needs: Needs) -> int:
    """How many workers this machine has cores and memory for; one in any case."""
    import psutil

    return max(1, min(_cores() // threads, psutil.virtual_memory().total // needs.limit_bytes))


def _local(cluster: kinds.Local, needs: Needs) -> Any:
    from distributed import LocalCluster

    threads = cluster.threads or 1
    workers = cluster.workers or fitting_workers(threads, needs)
    options: dict[str, Any] = {} if cluster.memory is None else {"memory_limit": cluster.memory}
    if cluster.processes:
        options["env"] = {**os.environ, **worker_environment(cluster)}  # forked ones have that of the first cluster
    # Loopback only: an open Dask port lets whoever reaches it run code.
    return LocalCluster(
        n_workers=workers if cluster.processes else 1,
        threads_per_worker=threads if cluster.processes else cluster.threads or workers,
        processes=cluster.processes,
        host="127.0.0.1" if cluster.processes else None,
        dashboard_address=_LOOPBACK,
        worker_dashboard_address=_LOOPBACK,
        silence_logs=40,
        **options,
    )


def _cuda(cluster: kinds.Cuda) -> Any:
    """One nanny a GPU, each of which sees its own alone (docs/decisions/0009)."""
    from distributed import Nanny, Scheduler
    from distributed.deploy.spec import SpecCluster

    gpus = cluster.gpus or _gpus()
    options = {
        "host": "127.0.0.1",
        "nthreads": cluster.threads or max(1, _cores() // len(gpus)),
        "memory_limit": cluster.memory or "auto",
        "resources": {"GPU": 1},
        "dashboard_address": _LOOPBACK,
        "silence_logs": 40,
    }
    workers = {
        number: {"cls": Nanny, "options": {**options, "env": {"CUDA_VISIBLE_DEVICES": gpu}}}
        for number, gpu in enumerate(gpus)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": _LOOPBACK}}
    return SpecCluster(workers=workers, scheduler=scheduler, name="geoflow-cuda", silence_logs=40)


def _gpus() -> tuple[str, ...]:
    """Names of this machine's GPUs that this process may use, without starting CUDA in it."""
    import subprocess

    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        found = tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))
    elif program := shutil.which("nvidia-smi"):
        asked = [program, "--query-gpu=uuid", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        found = tuple(answer.stdout.split()) if answer.returncode == 0 else ()
    else:
        found = ()
    if not found:
        raise ClusterError(
            "kind cuda: this machine shows no GPU (nvidia-smi lists none, or CUDA_VISIBLE_DEVICES is empty); "
            "use --cluster local, or name them: gpus: ['0', '1']"
        )
    return found


_QUEUES = {"slurm": ("SLURMCluster", "sbatch"), "pbs": ("PBSCluster", "qsub"), "lsf": ("LSFCluster", "bsub")}


def queue_options(cluster: kinds.Slurm | kinds.Pbs | kinds.Lsf, needs: Needs) -> dict[str, Any]:
    """What dask-jobqueue is told."""
    from dask.utils import parse_bytes

    count, threads = cluster.workers_per_job, cluster.threads or needs.threads
    memory = parse_bytes(cluster.memory) if cluster.memory else needs.limit_bytes
    exports = [f"export {name}={_quoted(value)}" for name, value in _exported(cluster).items()]
    options: dict[str, Any] = {
        "cores": threads * count,
        "memory": f"{memory * count} B",
        "processes": count,
        "queue": cluster.queue,
        "walltime": cluster.walltime,
        "python": cluster.python,
        "job_name": "geoflow-worker",
        "job_script_prologue": [*cluster.setup, *exports],
        "job_extra_directives": [*_gpu_directives(cluster), *cluster.directives],
        "worker_extra_args": ["--dashboard-address", _LOOPBACK, *(["--resources", "GPU=1"] if cluster.gpus else [])],
        "local_directory": cluster.local_directory,
        "log_directory": str(cluster.folder.expanduser()),
        "shared_temp_directory": str(cluster.folder.expanduser()),
        "interface": cluster.interface,
        "scheduler_options": {"dashboard_address": _LOOPBACK, "host": cluster.host, "interface": cluster.interface},
        "death_timeout": 300,
    }
    options["project" if cluster.kind == "lsf" else "account"] = cluster.account
    return options


def _quoted(value: str) -> str:
    import shlex

    return shlex.quote(value)


def _gpu_directives(cluster: kinds.Slurm | kinds.Pbs | kinds.Lsf) -> list[str]:
    wanted = cluster.gpus * cluster.workers_per_job
    if not wanted:
        return []
    if cluster.kind == "pbs":
        raise ClusterError("kind pbs: say how to ask for GPUs in directives, since sites differ, and leave gpus out")
    return [f"--gres=gpu:{wanted}"] if cluster.kind == "slurm" else [f'-gpu "num={wanted}"']


def _queue(cluster: kinds.Slurm | kinds.Pbs | kinds.Lsf, needs: Needs) -> Any:
    jobqueue = _import("dask_jobqueue", "slurm", cluster.kind)
    name, program = _QUEUES[cluster.kind]
    if shutil.which(program) is None:
        raise ClusterError(f"kind {cluster.kind}: there is no {program} here; start geoflow on a login node")
    folder = cluster.folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    security = security_of(cluster)
    try:
        started = getattr(jobqueue, name)(security=security, silence_logs="error", **queue_options(cluster, needs))
    except (RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"kind {cluster.kind} cannot be started: {error}") from None
    return _scaled(started, cluster.workers, cluster.kind)


def _scaled(running: Any, workers: int | kinds.Adaptive, kind: str) -> Any:
    """Ask for workers; what the batch system refuses is an error at once, not a wait for workers that never come."""
    first = workers.minimum if isinstance(workers, kinds.Adaptive) else workers

    async def ask() -> None:
        running.scale(first)
        # scale() asks in the background, where errors are only logged: wait for the same attempt here.
        if hasattr(running, "_correct_state"):
            await running._correct_state()

    try:
        running.sync(ask)
    except Exception as error:  # what a batch system answers comes in many kinds
        _close_unfinished(running)
        said = " ".join(str(error).rpartition("stderr:")[2].split()) or type(error).__name__
        raise ClusterError(f"kind {kind}: no worker could be asked for: {said}") from error
    # Adaptive for a fixed number too: what ends with its walltime, or its node, is asked for again.
    running.adapt(minimum=first, maximum=workers.maximum if isinstance(workers, kinds.Adaptive) else first)
    return running


def _close_unfinished(running: Any) -> None:
    """Close a cluster some of whose workers never began, which Dask takes for its own mistake."""
    from distributed.core import Status

    for worker in getattr(running, "workers", {}).values():
        if worker.status == Status.created:
            worker.status = Status.closed
    running.close()


def kubernetes_spec(cluster: kinds.Kubernetes, needs: Needs) -> dict[str, Any]:
    """The ``DaskCluster`` resource: the scheduler is small, workers get what they need, and secrets by reference."""
    make_spec = _import("dask_kubernetes.operator", "kubernetes", cluster.kind).make_cluster_spec
    from dask.utils import parse_bytes

    threads = cluster.threads or needs.threads
    memory = parse_bytes(cluster.memory) if cluster.memory else needs.limit_bytes
    amount = {"cpu": str(threads), "memory": str(memory)}
    limits = amount | ({"nvidia.com/gpu": str(cluster.gpus)} if cluster.gpus else {})
    command = ["dask-worker", "--nthreads", str(threads), "--memory-limit", str(memory)]
    command += ["--resources", "GPU=1"] if cluster.gpus else []
    first = cluster.workers.minimum if isinstance(cluster.workers, kinds.Adaptive) else cluster.workers
    spec: dict[str, Any] = make_spec(
        name=cluster.name, image=cluster.image, n_workers=first, env=_exported(cluster), worker_command=command
    )
    worker = spec["spec"]["worker"]["spec"]["containers"][0]
    worker["resources"] = {"requests": amount, "limits": limits}
    if cluster.secret:
        worker["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    return spec


def _kubernetes(cluster: kinds.Kubernetes, needs: Needs) -> Any:
    operator = _import("dask_kubernetes.operator", "kubernetes", cluster.kind)
    spec = kubernetes_spec(cluster, needs)
    try:
        started = operator.KubeCluster(namespace=cluster.namespace, custom_cluster_spec=spec, quiet=True)
    except Exception as error:
        raise ClusterError(f"kind kubernetes cannot be started: {type(error).__name__}: {error}") from error
    if isinstance(cluster.workers, kinds.Adaptive):
        started.adapt(minimum=cluster.workers.minimum, maximum=cluster.workers.maximum)
    return started


def _gateway(cluster: kinds.Gateway) -> Any:
    gateway = _import("dask_gateway", "gateway", cluster.kind)
    try:
        started = gateway.Gateway(address=cluster.address, auth=cluster.auth).new_cluster(**cluster.options)
    except Exception as error:
        where = cluster.address or "the address of the Dask configuration"
        raise ClusterError(
            f"kind gateway: no cluster from {where}: {type(error).__name__}: {error}; options that it does not know "
            "are listed by dask_gateway.Gateway().cluster_options()"
        ) from error
    return _scaled(started, cluster.workers, cluster.kind)


def _ssh(cluster: kinds.Ssh, needs: Needs) -> Any:
    _import("asyncssh", "ssh", cluster.kind)
    from dask.utils import parse_bytes
    from distributed import SSHCluster

    worker: dict[str, Any] = {
        "nthreads": cluster.threads or needs.threads,
        "n_workers": cluster.workers_per_host,
        "memory_limit": parse_bytes(cluster.memory) if cluster.memory else needs.limit_bytes,
        "dashboard_address": _LOOPBACK,
    }
    if cluster.gpus:
        worker["resources"] = {"GPU": 1}
    scheduler: dict[str, Any] = {"port": 0, "dashboard_address": _LOOPBACK}
    if cluster.tls is not None:
        scheduler["protocol"] = worker["protocol"] = "tls://"
    try:
        return SSHCluster(
            [cluster.hosts[0], *cluster.hosts],
            connect_options={k: v for k, v in (("username", cluster.user), ("port", cluster.port)) if v is not None},
            worker_options=worker,
            scheduler_options=scheduler,
            remote_python=cluster.python,
            security=security_of(cluster),
        )
    except Exception as error:
        raise ClusterError(
            f"kind ssh cannot be started on {', '.join(cluster.hosts)}: {type(error).__name__}: {error}; each host "
            "must answer `ssh HOST` without a password, and have geoflow under the same interpreter (python: PATH)"
        ) from error
