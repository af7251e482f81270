"""BigEarthNet into one Zarr store: a task a chunk on a Dask cluster, each with its receipt.

The store holds the plan, so a second run opens no folder and no table: it goes on with the chunks that have no receipt.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoflow.errors import LabelError, RunFailed
from geoflow.jobs.clusters import connect
from geoflow.jobs.outcome import Outcome, split_finished
from geoflow.jobs.patience import Watch
from geoflow.jobs.runner import run_tasks
from geoflow.jobs.tasks import Done, Task
from geoflow.labels.patchindex import Skipped
from geoflow.labels.patchplan import PatchOptions, plan_patches
from geoflow.labels.patchstore import PatchStore, create_store, read_store
from geoflow.places import place
from geoflow.store.receipts import Receipts, digest

STAGE = "chunks"
SKIPPED = "skipped"

Progress = Callable[[int, int, float], None]
"""Called with the patches that are done, all patches, and the patches read a second in this run."""


@dataclass(frozen=True)
class ChunkWork:
    """The files of a chunk's patches to their places in the store."""

    store: Path
    number: int

    def __call__(self) -> Done:
        from geoflow.labels.patchread import read_chunk

        store = read_store(self.store)
        planned = store.planned(self.number)
        chunk = read_chunk(planned, store.layout, store.bands)
        content = {
            "patches": int(chunk.valid.sum()),
            SKIPPED: [entry._asdict() for entry in chunk.skipped],
            "without_map": chunk.without_map,
        }
        return Done(content, store.write(self.number, chunk))


@dataclass(frozen=True)
class Ingested:
    """What a store holds once it is complete.

    Attributes
    ----------
    store : PatchStore
    read, without_map : int
        Patches that were read; of those, the ones without a reference map where others have one.
    skipped : tuple of Skipped (name, reason)
        Patches that could not be read.
    chunks_done, chunks_kept : int
        Chunks that this run wrote, and that an earlier one did.
    seconds : float
    """

    store: PatchStore
    read: int
    without_map: int
    skipped: tuple[Skipped, ...]
    chunks_done: int
    chunks_kept: int
    seconds: float

    @property
    def dropped(self) -> dict[str, int]:
        """Patches that lists, tables and flags leave out, by reason."""
        return dict(self.store.described["dropped"])


def ingest_patches(
    source: str | Path,
    out: str | Path,
    options: PatchOptions | None = None,
    cluster: str = "local",
    retry: bool = False,
    progress: Progress | None = None,
) -> Ingested:
    """Make the store of a BigEarthNet folder, or finish one that was begun.

    Parameters
    ----------
    source : path
        Version 1 or 2, as published.
    out : path
        The Zarr store.
    options : PatchOptions, optional
    cluster : str
        See `geoflow.jobs.clusters.connect`. The cluster must see ``source`` and ``out`` under the same paths.
    retry : bool
        Read the chunks again in which patches were skipped.
    progress : callable, optional

    Raises
    ------
    LabelError
        If not one patch can be read there, or ``out`` is a store of other options.
    RunFailed
        If chunks could not be written; what is done is kept.
    """
    start = time.monotonic()
    store = open_or_create(source, out, options or PatchOptions())
    receipts = Receipts(store.path / "receipts")
    tasks = list(chunk_tasks(store, retry))
    todo, outcome = split_finished(tasks, receipts)
    if todo:
        _run(store, todo, outcome, cluster, progress)
    if outcome.failed:
        first = outcome.failed[0]
        raise RunFailed(
            f"{len(outcome.failed)} of {len(tasks)} chunks failed, the first ({first['key']}) with: {first['error']}; "
            "what is done is kept, run again to go on"
        )
    made = _finished(store, outcome, time.monotonic() - start)
    if not made.read:
        raise LabelError(
            f"none of the {store.patches} patches in {source} can be read; the first, {': '.join(made.skipped[0])}"
        )
    return made


def open_or_create(source: str | Path, out: str | Path, options: PatchOptions) -> PatchStore:
    """The store that was begun with these options, or a new one.

    Raises
    ------
    LabelError
        If the store is of other options.
    """
    out = place(out).absolute()
    if not out.exists():
        return create_store(out, plan_patches(source, options))
    store = read_store(out)
    wanted, found = options.described(Path(source)), store.described["options"]
    if different := [key for key in wanted if wanted[key] != found.get(key)]:
        told = "; ".join(f"{key} {found.get(key)!r}, not {wanted[key]!r}" for key in different)
        raise LabelError(
            f"{out} was made with other options: {told}. Give the new store another name, or remove this one"
        )
    return store


def chunk_tasks(store: PatchStore, retry: bool = False) -> Iterator[Task]:
    """One task a chunk."""
    for number in range(store.chunks):
        task_id = digest(STAGE, store.described["id"], number)
        yield Task(STAGE, f"{number:06d}", task_id, ChunkWork(store.path, number), SKIPPED if retry else "")


def _run(store: PatchStore, todo: list[Task], outcome: Outcome, cluster: str, progress: Progress | None) -> None:
    left = sum(_patches(store, task) for task in todo)
    done, began = store.patches - left, time.monotonic()
    first = done

    def on_done(task: Task) -> None:
        nonlocal done
        done += _patches(store, task)
        if progress is not None:
            progress(done, store.patches, (done - first) / (time.monotonic() - began))

    with connect(cluster) as client:
        began = time.monotonic()
        run_tasks(client, todo, store.path, outcome, Watch(on_done))


def _patches(store: PatchStore, task: Task) -> int:
    rows = store.rows(int(task.key))
    return rows.stop - rows.start


def _finished(store: PatchStore, outcome: Outcome, seconds: float) -> Ingested:
    receipts = [outcome.receipts[key] for key in sorted(outcome.receipts)]
    read, without_map, skipped = complete(store, receipts, again=bool(outcome.done))
    return Ingested(read_store(store.path), read, without_map, skipped, outcome.done, outcome.skipped, seconds)


def complete(
    store: PatchStore, receipts: Sequence[Mapping[str, Any]], again: bool = False
) -> tuple[int, int, tuple[Skipped, ...]]:
    """Say in a store that all its chunks are there, unless it says so already.

    Parameters
    ----------
    store : PatchStore
    receipts : sequence of mapping
        Of all its chunks.
    again : bool
        Some are new.

    Returns
    -------
    read, without_map, skipped
        As in `Ingested`.
    """
    read, without_map = (sum(receipt[key] for receipt in receipts) for key in ("patches", "without_map"))
    skipped = tuple(sorted(Skipped(**entry) for receipt in receipts for entry in receipt[SKIPPED]))
    if again or not store.described["complete"]:
        store.finish(read, skipped)
    return read, without_map, skipped


def grouped(skipped: tuple[Skipped, ...]) -> dict[str, int]:
    """How many patches each reason skipped, the patch's own name taken out of it; most frequent first."""
    kinds = Counter(entry.reason.replace(entry.name, "PATCH") for entry in skipped)
    return dict(kinds.most_common())
