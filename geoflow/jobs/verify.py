"""Verifying an output on a cluster, and repairing it: see docs/reliability.md."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.counting import counted
from geoflow.errors import GeoflowError, StoreError
from geoflow.jobs.clusters import connect
from geoflow.jobs.console import Console, QuietConsole
from geoflow.jobs.tasks import Done, Task
from geoflow.legends import Legend
from geoflow.places import entries, files_below, place, read_bytes, remove, remove_tree, write_bytes
from geoflow.store.receipts import Receipts, relative
from geoflow.store.seal import PATCHES, SEAL, Seal, check_sealed, holds_tiles, metadata_files, read_seal, restore
from geoflow.store.verify import STORE, Checked, Checks, Problem, array_of, stray_chunks
from geoflow.store.zarr import Store, consolidate, grid_from_description

if TYPE_CHECKING:
    from distributed import Client

    from geoflow.grid import Grid

BATCH = 4
"""Receipts that are checked in one task of the cluster: many have no files and take no time."""

IN_FLIGHT_PER_WORKER = 3

Name = tuple[str, str]
"""Stage and key of a task."""


@dataclass(frozen=True)
class CheckWork:
    """Some receipts, held against their files."""

    checks: Checks
    names: tuple[Name, ...]

    def __call__(self) -> Done:
        found = Checked()
        for stage, key in self.names:
            found.add(self.checks.receipt(stage, key))
        return Done({"found": found})


@dataclass(frozen=True)
class StrayWork:
    """The chunks of an array, held against the tiles that have receipts."""

    out: Path
    array: str
    grid: Grid
    tiles: frozenset[str]

    def __call__(self) -> Done:
        count, names = stray_chunks(self.out, self.array, self.grid, self.tiles)
        return Done({"array": self.array, "count": count, "names": names})


@dataclass
class Verified:
    """What `verify_output` found.

    Attributes
    ----------
    out : str
    tasks, files, bytes : int
        Receipts that were held against their files, files that were read in full, and their bytes.
    problems : list of Problem
        What is wrong. Nothing: the output is what its run made.
    notes : list of str
        What is there and belongs to nothing: harmless, but not the run's.
    repaired : int
        Problems that `repair` mended, if it was asked for.
    seconds : float
    """

    out: str
    tasks: int = 0
    files: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repaired: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``geoflow verify --json`` prints them."""
        return {"good": self.good, **asdict(self)}


def verify_output(out: str | Path, cluster: str | None = None, console: Console | None = None) -> Verified:
    """Read everything that a run made, and say what is not as it was made.

    Parameters
    ----------
    out : path
        The output folder of a run.
    cluster : str, optional
        See `geoflow.jobs.clusters.connect`; its workers must see ``out`` under the same path.
    console : Console, optional

    Raises
    ------
    StoreError
        If there is no output of a run there.
    """
    start, folder, console = time.monotonic(), place(out).resolve(), console or QuietConsole()
    if not {"receipts", STORE} & {path.name for path in entries(folder)[0]}:
        raise StoreError(f"{folder} is not the output of a run: it has neither receipts nor {STORE}")
    seal = read_seal(folder)
    found = check_sealed(folder, seal)
    checks = checks_of(folder, seal, found.problems)
    sealed = [] if seal is None else [(stage, key) for stage, keys in seal.tasks.items() for key in keys]
    others = sorted(set(_receipts_there(folder)) - set(sealed))
    with connect(cluster) as client:
        found.add(check_tasks(client, checks, sealed or others, console))
        notes = []
        if sealed and others:
            extra = check_tasks(client, checks, others, QuietConsole())
            found.tiles |= extra.tiles
            notes += [
                f"receipts/{p.stage}/{p.key}.json is of no task of the last run; {p.what}" for p in extra.problems
            ]
        notes += _strays(client, folder, checks, found)
    notes += _drafts(folder)
    seconds = round(time.monotonic() - start, 2)
    return Verified(str(folder), found.tasks, found.files, found.bytes, found.problems, notes, seconds=seconds)


def checks_of(out: Path, seal: Seal | None, problems: Sequence[Problem]) -> Checks:
    """What receipts are held against, as far as the seal, or the store where there is none, can tell."""
    from geoflow.store.zarr import open_for_writing

    legend = None if seal is None or seal.legend is None else Legend.from_dict(seal.legend)
    try:
        grid = open_for_writing(out / STORE).grid if seal is None else grid_from_description(seal.grid)
    except (GeoflowError, OSError, ValueError, KeyError, TypeError):  # a damaged root, which is found by itself
        grid = None
    suffix = "/zarr.json"
    bad = {p.path.removesuffix(suffix).removeprefix(f"{STORE}/") for p in problems if p.path.endswith(suffix)}
    return Checks(out, grid, legend, frozenset(bad))


def check_tasks(client: Client, checks: Checks, names: Sequence[Name], console: Console) -> Checked:
    """Hold receipts against their files, a bounded number at a time."""
    found = Checked()
    batches = [tuple(names[at : at + BATCH]) for at in range(0, len(names), BATCH)]
    tasks = (Task("verify", f"{batch[0][0]}-{batch[0][1]}", "", CheckWork(checks, batch)) for batch in batches)
    with console.stage("Read again", len(batches), 0) as progress:
        for task, done in windowed(client, tasks):
            found.add(done.content["found"])
            progress.advance(task)
    found.problems.sort(key=lambda p: (p.stage, p.key, p.path))
    return found


def windowed(client: Client, tasks: Iterable[Task]) -> Iterator[tuple[Task, Done]]:
    """Do work that leaves no receipt on a cluster, a few pieces a thread at a time, in the order in which it ends."""
    from distributed import as_completed

    waiting, running = iter(tasks), {}
    room = max(1, sum(client.nthreads().values())) * IN_FLIGHT_PER_WORKER
    window = as_completed([])

    def start() -> None:
        for task in waiting:
            future = client.submit(task.work, pure=False, retries=2)
            running[future.key] = task
            window.add(future)
            return

    for _ in range(room):
        start()
    for future in window:
        done: Done = future.result()
        task = running.pop(future.key)
        future.release()
        start()
        yield task, done


def _receipts_there(out: Path) -> list[Name]:
    folder = out / "receipts"
    names = (relative(path, folder) for path, _ in files_below(folder))
    parts = (name.removesuffix(".json").partition("/") for name in names if name.endswith(".json"))
    return [(stage, key) for stage, bar, key in parts if bar and not key.rpartition("/")[2].startswith(".")]


def _strays(client: Client, out: Path, checks: Checks, found: Checked) -> list[str]:
    """Chunks that no receipt vouches for, counted for each array, with the first of them."""
    if checks.grid is None or not entries(out / STORE)[0]:
        return []
    tiles: dict[str, set[str]] = {}
    for group, tile in found.tiles:
        tiles.setdefault(group, set()).add(tile)
    for problem in found.problems:  # of a damaged receipt nobody knows the files: not strays, but its own
        tiles.setdefault(_group_of(problem), set()).add(problem.key.rpartition("/")[2])
    arrays = [
        relative(path.parent, out / STORE)
        for path in metadata_files(out / STORE)
        if path.name == "zarr.json" and holds_tiles(path)
    ]
    works = [StrayWork(out, a, checks.grid, frozenset(tiles.get(a.rpartition("/")[0], ()))) for a in arrays]
    notes = []
    for _, done in windowed(client, (Task("verify", work.array, "", work) for work in works)):
        if count := done.content["count"]:
            first = ", ".join(done.content["names"][:3])
            notes.append(
                f"{counted(count, 'file')} in {STORE}/{done.content['array']} of no task that has a receipt: {first}"
            )
    return sorted(notes)


def _group_of(problem: Problem) -> str:
    """The group that a task's tiles lie in."""
    name = problem.key.rpartition("/")[0]
    return (
        f"map/{name}" if problem.stage == "predict" else f"{problem.stage.replace('generalise', 'generalised')}/{name}"
    )


def _drafts(out: Path) -> list[str]:
    """What a run that was killed had not finished: never under a final name."""
    folders, files = entries(out)
    top = [path.name for path in [*folders, *files] if path.name.startswith(".") and path.suffix != ".lock"]
    return [f"{name} is a draft that a run left when it was killed; it can be removed" for name in top]


def repair_output(
    out: str | Path, found: Verified, cluster: str | None = None, console: Console | None = None
) -> Verified:
    """Mend what `verify_output` found, and verify again.

    Damaged metadata get their bytes back from the copies that the seal keeps; what has no copy is removed, and the job
    that the seal holds is run again, which does just the tasks whose receipts are gone.

    Parameters
    ----------
    out, cluster, console
        See `verify_output`.
    found : Verified
        What it returned.

    Raises
    ------
    StoreError
        If neither the seal nor ``summary.json`` says which job this is the output of.
    GeoflowError
        As `geoflow.jobs.run.run_job`: the job's inputs must be there.
    """
    from geoflow.jobs.jobfile import parse_job
    from geoflow.jobs.records import read_summary
    from geoflow.jobs.run import run_job

    folder = place(out).resolve()
    seal = read_seal(folder)
    if found.good:
        return found
    job = parse_job(read_summary(folder)["config"] if seal is None else seal.job)
    removed = _mend_files(folder, found.problems, seal)
    receipts = Receipts(folder / "receipts")
    for stage, key in {(p.stage, p.key) for p in found.problems if p.stage}:
        remove(receipts.path(stage, key))
    if seal is not None:
        _restore_root(folder / STORE, grid_from_description(seal.grid))
    summary = run_job(job, folder, cluster, None if seal is None else seal.limit, console=console)
    for path, content in removed.items():
        if content is not None and not path.exists():  # nothing of this job makes it: damaged is better than gone
            write_bytes(path, content)
    if summary["status"] != "complete":
        failed = [
            Problem(f"receipts/{f['stage']}/{f['key']}.json", f["error"], f["stage"], f["key"])
            for f in summary["failed"]
        ]
        return Verified(str(folder), problems=failed)
    again = verify_output(folder, cluster, console)
    again.repaired = len(found.problems) - len(again.problems)
    return again


def _mend_files(out: Path, problems: Sequence[Problem], seal: Seal | None) -> dict[Path, bytes | None]:
    """Restore from copies what can be, remove what the run makes anew; returns what was removed."""
    bad = [p.path for p in problems if not p.stage and p.path != SEAL]
    removed: dict[Path, bytes | None] = {}
    if seal is None:
        # Without a seal nobody knows that a file is bad, only that it is not its copy, if it has one.
        restore(out, bad, seal)
        return removed
    for name in restore(out, bad, seal):
        path = out / name
        if name.startswith(f"{PATCHES}/"):
            remove_tree(out / PATCHES)
        elif (array := array_of(name)) is not None or _of_labels(path):
            folder = out / STORE / array if array is not None else path.parent
            removed |= {p: read_bytes(p) for p, _ in files_below(folder)}
            remove_tree(folder)
        elif path.exists():
            removed[path] = read_bytes(path) if name.startswith(f"{STORE}/") else None
            remove(path)
    return removed


def _of_labels(path: Path) -> bool:
    """Whether this is the metadata of an array of coordinates: a few values, made anew as a whole."""
    names = {"x", "y", "spatial_ref", "band", "period", "class"}
    return path.name == "zarr.json" and path.parent.name in names and path.parent.parent.joinpath("zarr.json").exists()


def _restore_root(store: Path, grid: Grid) -> None:
    if any(entries(store)) and not (store / "zarr.json").is_file():
        Store.restore(store, grid)
        with warnings.catch_warnings():  # other groups may have lost their metadata too; the run makes them anew
            warnings.filterwarnings("ignore", message="Object at .* is not recognized")
            consolidate(store)
