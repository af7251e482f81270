"""Will it run here? What this machine, its packages, a job's sources and a cluster are like, and what to do about it.

Nothing is changed, no pixel is read, and no secret is shown: of credentials only the names of their variables are.
"""

from __future__ import annotations

import os
import platform
import queue
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from geoflow.counting import counted
from geoflow.errors import GeoflowError
from geoflow.extras import how_to_install
from geoflow.jobs.doctorcluster import examine_cluster

if TYPE_CHECKING:
    from geoflow.imagery.catalog import Catalog
    from geoflow.jobs.flow import Flow

Status = Literal["green", "yellow", "red"]
_ANSWER_S = 5.0
_CATALOGS_S = 12.0  # for all of them: also where names are not resolved and nothing ever answers
_LITTLE_DISK = 10e9
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes
    ----------
    name : str
        What was looked at.
    status : "green", "yellow" or "red"
        Fine; works, but; does not work.
    found : str
    do : str
        What to do about it, where there is something to do.
    """

    name: str
    status: Status
    found: str
    do: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def examine(
    job: str | Path | None = None, out: str | Path | None = None, cluster: str | None = None
) -> Iterator[Finding]:
    """Look at everything, and tell each finding when it is known.

    Parameters
    ----------
    job : path, optional
        A job file: then its sources, its catalog, its needs of disk and memory are looked at.
    out : path, optional
        The output folder; that of the job, or the current folder.
    cluster : str, optional
        See `geoflow.jobs.clusters.where`; without, one worker process is tried on this machine.
    """
    flow, folder = None, Path(out) if out is not None else Path()
    yield from _guarded("python", _python)
    yield from _guarded("packages", _packages)
    if job is not None:
        flow, problem = _flow_of(Path(job), out)
        yield problem
        folder = flow.out if flow is not None else folder
    catalog = _catalog_of(flow)
    yield from _guarded("GDAL", lambda: _gdal(catalog))
    yield from _guarded("projections", _projections)
    yield from _guarded("processor", _processor)
    yield from _guarded("memory", lambda: _memory(flow))
    yield from _guarded("GPU", _gpu)
    yield from _guarded("disk", lambda: _disk(folder, flow))
    yield from _guarded("open files", _open_files)
    yield from _guarded("credentials", lambda: _credentials(catalog))
    yield from _guarded("catalogs", lambda: _catalogs(catalog))
    seen = [] if flow is None else [flow.out, *_inputs(flow)]
    for status, found, do in examine_cluster(cluster, seen, None if flow is None else _map_bytes(flow)):
        yield Finding("cluster", status, found, do)


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What cannot even be looked at is a red line, not the end."""
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001  (whatever is broken here is what the doctor was called for)
        yield Finding(name, "red", f"{type(error).__name__}: {error}", "this should not happen: please report it")


def _python() -> Iterator[Finding]:
    version, tested = platform.python_version(), sys.version_info[:2] <= (3, 14)
    found = f"{version} at {sys.executable}, {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        yield Finding("python", "yellow", found, "geoflow is tested on Linux alone")
    elif not tested:
        yield Finding("python", "yellow", found, "geoflow is tested on Python 3.11 to 3.13: use one of them")
    else:
        yield Finding("python", "green", found)


def _packages() -> Iterator[Finding]:
    from importlib import metadata

    from packaging.requirements import Requirement

    from geoflow import __version__

    try:
        wanted = [Requirement(text) for text in metadata.requires("geoflow") or []]
    except metadata.PackageNotFoundError:
        yield Finding("packages", "yellow", f"geoflow {__version__}, not installed", "pip install -e .")
        return
    wrong: list[str] = []
    again: list[str] = []
    extras: dict[str, bool] = {}
    for requirement in wanted:
        extra = next((e for e in ("slurm", "kubernetes", "gateway", "ssh", "s3", "openvino", "icechunk", "clouds")
                      if requirement.marker and f'extra == "{e}"' in str(requirement.marker)), None)  # fmt: skip
        if requirement.marker is not None and extra is None and not requirement.marker.evaluate({"extra": ""}):
            continue
        held = _version_of(requirement.name)
        fits = held is not None and requirement.specifier.contains(held, prereleases=True)
        if extra is not None:
            extras[extra] = extras.get(extra, True) and fits
        elif not fits:
            wrong.append(f"{requirement.name} {requirement.specifier} (here: {held or 'not installed'})")
            again.append(f"{requirement.name}{requirement.specifier}")
    if wrong:
        fix = f"pip install --upgrade {shlex.join(again)}"
        yield Finding("packages", "red", f"missing or too old: {', '.join(wrong)}", fix)
        return
    there = ", ".join(extra for extra, fits in extras.items() if fits) or "none"
    yield Finding("packages", "green", f"geoflow {__version__} and all that it needs; extras: {there}")


def _version_of(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gdal(catalog: Catalog | None) -> Iterator[Finding]:
    import pyogrio
    import rasterio
    from rasterio.drivers import raster_driver_extensions  # noqa: F401  (loads GDAL's drivers)
    from rasterio.env import Env

    with Env() as env:
        drivers = set(env.drivers())
    vectors = set(pyogrio.list_drivers())
    jpeg2000 = "JP2OpenJPEG" in drivers
    found = f"{rasterio.__gdal_version__} (rasterio), {pyogrio.__gdal_version_string__} (pyogrio)"
    lacks = [name for name in ("GTiff", "COG") if name not in drivers]
    lacks += [name for name in ("GPKG", "GeoJSON", "ESRI Shapefile") if name not in vectors]
    fix = "install rasterio and pyogrio as wheels (pip install --only-binary :all: ...), or from conda-forge"
    if catalog is not None and catalog.name == "cdse" and not jpeg2000:
        lacks.append("JP2OpenJPEG")
    if lacks:
        yield Finding("GDAL", "red", f"{found} lacks {', '.join(lacks)}", fix)
    elif not jpeg2000:
        yield Finding("GDAL", "yellow", f"{found} lacks JP2OpenJPEG", f"only the catalog cdse needs it: {fix}")
    else:
        yield Finding("GDAL", "green", f"{found}; GTiff, COG, JP2OpenJPEG, GPKG")


def _projections() -> Iterator[Finding]:
    """The databases of PROJ: an environment variable that points at another installation's is a frequent trap."""
    import pyproj
    from pyproj.exceptions import ProjError
    from rasterio.errors import CRSError, RasterioError
    from rasterio.warp import transform

    wanted = (4321000.0, 3210000.0)  # the origin of EPSG:3035
    set_here = [name for name in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA") if name in os.environ]
    fix = f"unset {' '.join(set_here)}" if set_here else "reinstall pyproj and rasterio"
    try:
        ours = pyproj.Transformer.from_crs(4326, 3035, always_xy=True).transform(10.0, 52.0)
        xs, ys = transform("EPSG:4326", "EPSG:3035", [10.0], [52.0])
    except (ProjError, CRSError, RasterioError) as error:
        yield Finding("projections", "red", f"EPSG:3035 is not known: {error}", fix)
        return
    off = max(abs(a - b) for point in (ours, (xs[0], ys[0])) for a, b in zip(point, wanted, strict=True))
    if off > 0.01:
        yield Finding("projections", "red", f"EPSG:3035 is {off:g} m off", fix)
    else:
        yield Finding("projections", "green", f"PROJ {pyproj.proj_version_str}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _processor() -> Iterator[Finding]:
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        words = set()
    fast = [name for name, flag in (("AMX", "amx_bf16"), ("AVX-512", "avx512f"), ("AVX2", "avx2")) if flag in words]
    found = f"{_cores()} of {os.cpu_count()} cores, {', '.join(fast) or 'no AMX, AVX-512 or AVX2'}"
    if "AMX" in fast and _version_of("openvino") is None:
        yield Finding(
            "processor", "yellow", found, f"nets run twice as fast with OpenVINO: {how_to_install('openvino')}"
        )
    elif not fast and platform.machine() == "x86_64":
        yield Finding("processor", "yellow", found, "nets will be slow: map on a newer machine, or on a GPU")
    else:
        yield Finding("processor", "green", found)


def _map_bytes(flow: Flow) -> int:
    """Memory of a worker that maps; composites, which need less, cannot be told without a search."""
    from geoflow.jobs.estimate import map_worker_bytes

    return map_worker_bytes(flow)


def _memory(flow: Flow | None) -> Iterator[Finding]:
    import psutil
    from distributed.system import MEMORY_LIMIT

    from geoflow.jobs.clusters import WORKER_MEMORY

    total = int(MEMORY_LIMIT)  # knows the limits of containers and batch jobs
    found = f"{total / _GIB:.1f} GiB, {min(total, psutil.virtual_memory().available) / _GIB:.1f} GiB of it free"
    needed = _map_bytes(flow) if flow is not None else WORKER_MEMORY
    what = "a worker of this job" if flow is not None else "a worker"
    fitting = total // max(needed, 1)
    if fitting < 1:
        smaller = "; with smaller tiles (grid.tile) it takes less" if flow is not None else ""
        yield Finding("memory", "red", found, f"{what} takes {needed / _GIB:.1f} GiB: use a larger machine{smaller}")
    elif fitting < _cores():
        yield Finding("memory", "yellow", found, f"enough for {counted(fitting, 'worker')}, fewer than there are cores")
    else:
        yield Finding("memory", "green", found)


def _gpu() -> Iterator[Finding]:
    import subprocess

    program = shutil.which("nvidia-smi")
    asked = [str(program), "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False) if program else None
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("GPU", "yellow", f"nvidia-smi does not answer: {error}", "ask whoever runs the machine")
        return
    names = [line.strip() for line in answer.stdout.splitlines()] if answer and answer.returncode == 0 else []
    if not names:
        yield Finding("GPU", "green", "none; nets run on the processor")
        return
    import torch

    found = f"{len(names)}: {', '.join(sorted(set(names)))}"
    if torch.cuda.is_available():
        yield Finding("GPU", "green", f"{found}; torch {torch.__version__} uses it (--cluster cuda)")
    else:
        fix = "its driver is older than torch's CUDA, or torch is built without: see https://pytorch.org/get-started"
        yield Finding("GPU", "yellow", f"{found}; torch {torch.__version__} cannot use it", fix)


def _disk(folder: Path, flow: Flow | None) -> Iterator[Finding]:
    there = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free at {there}"
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        yield Finding("disk", "red", f"{there} cannot be written", "give another folder with --out")
        return
    if flow is not None:
        from geoflow.jobs.estimate import bytes_to_write

        wanted = bytes_to_write(flow)
        found += f", the job writes {wanted / 1e9:.1f} GB at most"
        if wanted > free:
            yield Finding("disk", "red", found, "free some, or give another folder with --out")
            return
    if free < _LITTLE_DISK:
        yield Finding("disk", "yellow", found, "a country takes some hundred GB")
    else:
        yield Finding("disk", "green", found)


def _open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024:
        yield Finding("open files", "yellow", f"{soft} at once", f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}")
    else:
        yield Finding("open files", "green", f"{soft} at once")


_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL",
    "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS",
    "PC_SDK_SUBSCRIPTION_KEY", "DASK_SCHEDULER_ADDRESS", "HTTPS_PROXY", "https_proxy",
)  # fmt: skip


def _credentials(catalog: Catalog | None) -> Iterator[Finding]:
    """Names alone: a value has no place on a screen that is shared or in a ticket."""
    names = [name for name in _CREDENTIALS if os.environ.get(name)]
    found = f"set: {', '.join(names)}" if names else "none set; catalogs that are open to all need none"
    needs = catalog.needs if catalog is not None else ()
    missing = [name for name in needs if not os.environ.get(name)]
    if catalog is not None and missing and "AWS_PROFILE" not in names:
        yield Finding("credentials", "red", found, f"catalog {catalog.name} needs {' and '.join(missing)}: export them")
        return
    half = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} - set(names)
    if len(half) == 1:
        yield Finding("credentials", "yellow", found, f"one without the other is of no use: export {half.pop()} too")
        return
    yield Finding("credentials", "green", found)


def _catalogs(catalog: Catalog | None) -> Iterator[Finding]:
    """Whether they answer: the job's must, those that come with geoflow may."""
    from geoflow.imagery.catalog import is_remote, load_catalog, packaged_catalogs

    if catalog is not None and not is_remote(str(catalog.url)):
        there = Path(str(catalog.url)).is_file()
        found = f"{catalog.name}: {catalog.url}" + ("" if there else " is not there")
        yield Finding(
            "catalogs", "green" if there else "red", found, "" if there else "set imagery.url to an existing file"
        )
        return
    asked = [catalog] if catalog is not None else [load_catalog(name) for name in packaged_catalogs()]
    asked = [c for c in asked if c.url is not None and is_remote(c.url)]
    answers = [(one, _asked(str(one.url))) for one in asked]
    deadline = time.monotonic() + _CATALOGS_S
    for one, answer in answers:
        try:
            problem = answer.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            problem = f"no answer within {_CATALOGS_S:g} s"
        if not problem:
            yield Finding("catalogs", "green", f"{one.name} answers")
            continue
        fix = "check the network; behind a proxy, export HTTPS_PROXY"
        if catalog is None:
            yield Finding("catalogs", "yellow", f"{one.name}: {problem}", f"{fix}; jobs on local scenes need none")
        else:
            yield Finding("catalogs", "red", f"{one.name}: {problem}", fix)


def _asked(url: str) -> queue.Queue[str]:
    """Ask in a thread that nobody waits for: a name server that is silent holds its caller for minutes."""
    answer: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: answer.put(_answers(url)), daemon=True).start()
    return answer


def _answers(url: str) -> str:
    """What is wrong with a server; nothing if it answers."""
    import requests

    try:
        with requests.get(url, timeout=(_ANSWER_S, _ANSWER_S), stream=True) as answer:
            return "" if answer.status_code < 400 else f"status {answer.status_code}"
    except requests.RequestException as error:
        return type(error).__name__


def _flow_of(job: Path, out: str | Path | None) -> tuple[Flow | None, Finding]:
    from geoflow.jobs.flow import Flow
    from geoflow.jobs.jobfile import check_inputs_exist, load_job

    try:
        loaded = load_job(job)
        check_inputs_exist(loaded)
        folder = Path(out) if out is not None else Path("out") / loaded.name
        flow = Flow(loaded, folder.resolve(), None, False)
        tiles = len(flow.tiles)
    except GeoflowError as error:
        return None, Finding("job", "red", str(error), f"mend {job}")
    return flow, Finding(
        "job", "green", f"{loaded.name}: valid, {counted(tiles, 'tile')}, all files that it names are there"
    )


def _catalog_of(flow: Flow | None) -> Catalog | None:
    try:
        return flow.catalog if flow is not None and flow.job.imagery is not None else None
    except GeoflowError:
        return None


def _inputs(flow: Flow) -> Sequence[Path]:
    from geoflow.jobs.jobfile import input_paths

    return [path for _, path in input_paths(flow.job)]


def worst(findings: Sequence[Finding]) -> Status:
    """The worst of the findings."""
    order: list[Status] = ["green", "yellow", "red"]
    return max((f.status for f in findings), key=order.index, default="green")
