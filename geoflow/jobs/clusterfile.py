"""Cluster files: where a job runs, and what its workers get. ``jobs/clusters`` has a commented example of each kind.

A cluster file is data, like a job: it is read safely, unknown keys are errors, and it holds no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from geoflow.errors import ClusterError

_MEMORY = re.compile(r"\d+(\.\d+)? ?([kMGT]i?)?B?")
_WALLTIME = re.compile(r"(\d+-)?\d{1,3}:\d{2}(:\d{2})?")
_SECRET = re.compile(r"SECRET|TOKEN|PASSW|ACCESS_KEY|SAS|BEARER|CREDENTIALS|PRIVATE|CONNECTION_STRING", re.IGNORECASE)


def _check_memory(value: str) -> str:
    if not _MEMORY.fullmatch(value):
        raise ValueError(f"{value!r} is not an amount of memory; write for example '8 GiB'")
    return value


def _check_walltime(value: str) -> str:
    if not _WALLTIME.fullmatch(value):
        raise ValueError(f"{value!r} is not a walltime; write HH:MM:SS in quotes, for example '04:00:00'")
    return value


def _check_environment(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if _SECRET.search(name):
            raise ValueError(
                f"{name} looks like a secret, which has no place in a file that is passed on; workers get secrets from "
                "the environment that the cluster gives them"
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
    return value


def _check_line(value: str) -> str:
    if "\n" in value or "\0" in value:
        raise ValueError(f"{value!r} must be one line")
    return value


Memory = Annotated[str, AfterValidator(_check_memory)]
Walltime = Annotated[str, AfterValidator(_check_walltime)]
Environment = Annotated[dict[str, str], AfterValidator(_check_environment)]
Line = Annotated[str, AfterValidator(_check_line)]
Count = Annotated[int, Field(ge=1)]
Gpus = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Adaptive(_Section):
    """As many workers as there is work for, between two numbers."""

    minimum: Count = 1
    maximum: Count

    @model_validator(mode="after")
    def _in_order(self) -> Adaptive:
        if self.maximum < self.minimum:
            raise ValueError(f"workers.maximum {self.maximum} is less than workers.minimum {self.minimum}")
        return self


class Tls(_Section):
    """Certificates, as PEM files; client, scheduler and workers know each other by one authority (``ca``).

    Whoever holds a certificate of that authority may run code on the cluster: use an authority of its own.
    """

    ca: Path
    cert: Path
    key: Path


class _Any(_Section):
    """What all kinds have."""

    tls: Tls | None = None
    allow_insecure: bool = False
    """Speak to other machines unencrypted: whoever reaches a port of the cluster can then run code on it."""
    start_timeout_s: Seconds = 120.0
    """How long to wait for the first worker."""


class _Workers(_Any):
    """What kinds have that start workers."""

    threads: Count | None = None
    memory: Memory | None = None
    """Of a worker; by default what the plan of the job says that it needs."""
    environment: Environment = Field(default_factory=dict)


class Local(_Workers):
    """Processes on this machine; nothing listens beyond it."""

    kind: Literal["local"] = "local"
    workers: Count | None = None
    processes: bool = True


class Cuda(_Workers):
    """One worker process a GPU of this machine; nothing listens beyond it."""

    kind: Literal["cuda"] = "cuda"
    gpus: tuple[str, ...] | None = None
    """Which GPUs, by number or UUID; all by default."""


class _Queue(_Workers):
    """Workers as jobs of a batch system; the scheduler runs where geoflow is started, on a login node for example."""

    workers: Count | Adaptive = 1
    workers_per_job: Count = 1
    gpus: Gpus = 0
    """GPUs of a worker."""
    queue: Line | None = None
    account: Line | None = None
    walltime: Walltime = "01:00:00"
    directives: tuple[Line, ...] = ()
    """Further options of the batch system, for example ``--constraint=avx512``."""
    setup: tuple[Line, ...] = ()
    """Lines of shell before a worker starts, for example ``module load python``."""
    python: str | None = None
    interface: str | None = None
    """Network interface by which the nodes reach the scheduler, for example ``ib0``."""
    host: str | None = None
    """Address of this machine by which the nodes reach the scheduler, instead of an interface."""
    folder: Path = Path("~/.geoflow/clusters")
    """Folder that the nodes see too, for the workers' logs and the temporary certificates."""
    local_directory: str | None = None
    """Scratch folder on the nodes."""
    start_timeout_s: Seconds = 3600.0

    @model_validator(mode="after")
    def _one_way(self) -> _Queue:
        if self.host is not None and self.interface is not None:
            raise ValueError("give host or interface, not both")
        return self


class Slurm(_Queue):
    """Jobs of SLURM (extra ``slurm``)."""

    kind: Literal["slurm"]


class Pbs(_Queue):
    """Jobs of PBS or Torque (extra ``slurm``, which all batch systems share)."""

    kind: Literal["pbs"]


class Lsf(_Queue):
    """Jobs of LSF (extra ``slurm``, which all batch systems share)."""

    kind: Literal["lsf"]


class Kubernetes(_Workers):
    """Pods, made by the Dask operator (extra ``kubernetes``)."""

    kind: Literal["kubernetes"]
    image: str
    """An image with geoflow in it, of the version that is used here."""
    name: Annotated[str, Field(pattern=r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$")] = "geoflow"
    namespace: str | None = None
    workers: Count | Adaptive = 1
    gpus: Gpus = 0
    secret: str | None = None
    """Kubernetes secret whose keys become environment variables of the workers: credentials of an object store."""
    start_timeout_s: Seconds = 900.0


class Gateway(_Any):
    """A cluster from a Dask Gateway (extra ``gateway``); the gateway encrypts by itself."""

    kind: Literal["gateway"]
    address: str | None = None
    """By default what the Dask configuration says, as on a hub."""
    auth: Literal["basic", "kerberos", "jupyterhub"] | None = None
    workers: Count | Adaptive = 1
    options: dict[str, Any] = Field(default_factory=dict)
    """The gateway's own cluster options, for example ``{image: ..., worker_memory: 8}``."""
    start_timeout_s: Seconds = 900.0


class Ssh(_Workers):
    """Workers on machines that can be reached by ssh without a password (extra ``ssh``)."""

    kind: Literal["ssh"]
    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Machines of the workers; the scheduler runs on the first."""
    workers_per_host: Count = 1
    user: str | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    python: str | None = None
    """Interpreter on the hosts; the path of this one by default."""
    gpus: Gpus = 0


class Running(_Any):
    """A scheduler that runs already."""

    kind: Literal["scheduler"] = "scheduler"
    address: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Running:
        if (self.address is None) == (self.file is None):
            raise ValueError("give one of address and file")
        if self.address is not None:
            check_address(self.address)
        return self


Cluster: TypeAlias = Local | Cuda | Slurm | Pbs | Lsf | Kubernetes | Gateway | Ssh | Running
KINDS: dict[str, type[BaseModel]] = {
    "local": Local,
    "cuda": Cuda,
    "slurm": Slurm,
    "pbs": Pbs,
    "lsf": Lsf,
    "kubernetes": Kubernetes,
    "gateway": Gateway,
    "ssh": Ssh,
    "scheduler": Running,
}


def check_address(address: str) -> None:
    """Raise `ValueError` unless it is the address of a scheduler, such as ``tls://host:8786``."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("tcp", "tls", "ucx") and parts.hostname and parts.port and parts.username is None
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{address!r} is not the address of a scheduler; write tcp://HOST:PORT or tls://HOST:PORT")


def load_cluster(path: str | Path) -> Cluster:
    """Read and check a cluster file.

    Relative paths in it (certificates, a scheduler file) are relative to the file.

    Raises
    ------
    ClusterError
        Naming the key, the value and what is accepted.
    """
    import yaml

    file = Path(path)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClusterError(f"there is no cluster file {file}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(f"cluster file {file} cannot be read: {error}") from None
    return parse_cluster(values, str(file), file.resolve().parent)


def parse_cluster(values: Any, source: str = "cluster", folder: Path | None = None) -> Cluster:
    """Check plain values as a cluster file; see `load_cluster`."""
    if not isinstance(values, dict) or not isinstance(kind := values.get("kind"), str) or kind not in KINDS:
        found = values.get("kind") if isinstance(values, dict) else values
        raise ClusterError(f"{source}: kind must be one of {', '.join(KINDS)}, not {found!r}")
    model = KINDS[kind]
    try:
        cluster: Any = TypeAdapter(model).validate_python(values)
    except ValidationError as error:
        raise ClusterError("\n".join(f"{source}: {line}" for line in _explain(error, model))) from None
    return cluster if folder is None else _beside(cluster, folder)


def _explain(error: ValidationError, model: type[BaseModel]) -> Iterable[str]:
    for detail in error.errors():
        # Of a choice of types the location names the type too, which is no key.
        parts = [str(p) for p in detail["loc"] if not re.match(r"[A-Z]|constrained|int$|tuple|function", str(p))]
        key, message = ".".join(parts), detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            inner: dict[str, type[BaseModel]] = {"tls": Tls, "workers": Adaptive}
            accepted = model if len(parts) < 2 else inner.get(parts[0], model)
            message = f"unknown key; accepted here: {', '.join(accepted.model_fields)}"
        elif detail["type"] == "missing":
            message = "is missing"
        elif detail["type"] != "value_error":
            message = f"{message}, not {detail['input']!r}"
        yield f"{key}: {message}" if key else message


def _beside(cluster: Cluster, folder: Path) -> Cluster:
    changed: dict[str, Any] = {}
    if cluster.tls is not None:
        paths = {name: folder / getattr(cluster.tls, name).expanduser() for name in ("ca", "cert", "key")}
        changed["tls"] = cluster.tls.model_copy(update=paths)
    if isinstance(cluster, Running) and cluster.file is not None:
        changed["file"] = folder / cluster.file.expanduser()
    return cluster.model_copy(update=changed)
