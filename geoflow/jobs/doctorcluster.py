"""The doctor's look at a cluster: whether it answers, sees the job's files, has the memory, and what time it has."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from geoflow.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

Line = tuple[Literal["green", "yellow", "red"], str, str]
_PATIENCE_S = 120.0  # a batch system may make one wait for hours; the doctor does not
_CLOCK_S = 30.0
_GIB = 2**30


def examine_cluster(word: str | None, paths: Sequence[Path], memory_bytes: int | None) -> Iterator[Line]:
    """(status, what was found, what to do) for a cluster; see `geoflow.jobs.doctor.examine`.

    Parameters
    ----------
    word : str or None
        See `geoflow.jobs.clusters.where`.
    paths : sequence of Path
        What the workers must see: the first to write, the others to read.
    memory_bytes : int, optional
        What a worker of the job takes.
    """
    from geoflow.jobs import clusterfile as kinds
    from geoflow.jobs.clusters import Needs, connect, where

    said: list[str] = []
    try:
        cluster: Any = where(word)
        if word is None and isinstance(cluster, kinds.Local):
            cluster = kinds.Local(workers=1)  # one process shows what there is to see
        cluster = cluster.model_copy(update={"start_timeout_s": min(cluster.start_timeout_s, _PATIENCE_S)})
        start = time.monotonic()
        with connect(cluster, Needs() if memory_bytes is None else Needs(memory_bytes), said.append) as client:
            started = time.monotonic() - start
            yield from _round_trip(client, cluster.kind, started)
            for line in said:
                yield "yellow", line, "install the same versions on both sides"
            yield from _workers(client, paths, memory_bytes)
    except ClusterError as error:
        yield "red", str(error), "see docs/how-to/clusters.md"


def _round_trip(client: Client, kind: str, started: float) -> Iterator[Line]:
    start = time.monotonic()
    client.submit(abs, -1, pure=False).result(timeout=_PATIENCE_S)
    trip = time.monotonic() - start
    workers = client.scheduler_info(n_workers=-1)["workers"]
    gpus = sum(worker.get("resources", {}).get("GPU", 0) for worker in workers.values())
    found = f"{kind}: {len(workers)} worker{'s' * (len(workers) != 1)}"
    found += f" with {gpus:g} GPUs" if gpus else ""
    yield "green", f"{found} after {started:.1f} s, a task and back in {1000 * trip:.0f} ms", ""


def _workers(client: Client, paths: Sequence[Path], memory_bytes: int | None) -> Iterator[Line]:
    before = time.time()
    seen: dict[str, Any] = client.run(look_around, [str(p) for p in paths], on_error="return")
    after = time.time()
    for address, found in seen.items():
        if isinstance(found, BaseException):
            yield "red", f"worker {address} cannot look around: {found}", "see its log"
            return
    blind = {path: [a for a, found in seen.items() if path in found["missing"]] for path in map(str, paths)}
    for path, addresses in blind.items():
        if addresses:
            fix = "put it on a disk that all nodes see under the same path"
            yield "red", f"{path} is not seen by {len(addresses)} of {len(seen)} workers, {addresses[0]} first", fix
    late = max((max(before - found["time"], found["time"] - after) for found in seen.values()), default=0.0)
    if late > _CLOCK_S:
        yield "yellow", f"clocks differ by {late:.0f} s", "let the nodes set their clocks (NTP)"
    limits = [w["memory_limit"] for w in client.scheduler_info(n_workers=-1)["workers"].values() if w["memory_limit"]]
    if memory_bytes is not None and limits and min(limits) < memory_bytes:
        found = f"a worker has {min(limits) / _GIB:.1f} GiB, one that maps takes {memory_bytes / _GIB:.1f} GiB"
        yield "red", found, "give the workers more memory (memory), or use smaller tiles (grid.tile)"


def look_around(paths: Sequence[str]) -> dict[str, Any]:
    """What a worker sees: which paths, or the folder that they will be made in, are missing; and its clock."""
    missing = [p for i, p in enumerate(paths) if not (_nearest(Path(p)) if i == 0 else Path(p)).exists()]
    return {"missing": missing, "time": time.time()}


def _nearest(out: Path) -> Path:
    """The output folder may be made yet; what it will be made in must be there."""
    return out if out.exists() else out.parent if out.parent.exists() else out.parent.parent
