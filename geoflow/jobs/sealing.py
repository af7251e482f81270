"""A run and its seal: opened when it begins, closed when everything that it made was verified.

A run verifies in full what it made, and what it found made by a run that was never sealed. What an earlier run sealed
and this one kept is not read again: `geoflow verify` does that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.counting import counted
from geoflow.jobs.console import Console
from geoflow.jobs.verify import check_tasks
from geoflow.places import at_once, is_remote, remove
from geoflow.store.drafts import remove_drafts
from geoflow.store.receipts import CHECKSUM, measure, relative
from geoflow.store.seal import COPIES, PATCHES, Seal, read_seal, sealed_files, write_copies
from geoflow.store.verify import Checks
from geoflow.store.zarr import describe_grid

if TYPE_CHECKING:
    from distributed import Client

    from geoflow.jobs.run import Run


def open_seal(out: Path) -> Seal | None:
    """Take the seal off an output for as long as a run is at work; returns what it said."""
    seal = read_seal(out)
    if seal is not None:
        seal.reopened().write(out)
    return seal


def verify_made(run: Run, before: Seal | None, client: Callable[[], Client], console: Console) -> None:
    """Read what this run made, before anybody calls it complete.

    A task whose files are not what its receipt says loses the receipt, counts as failed, and is done again by the next
    run. ``run.verified`` says how much was read.
    """
    flow = run.flow
    sealed = {} if before is None else before.tasks
    every = [(r["stage"], r["key"], r[CHECKSUM]) for o in run.outcomes.values() for r in o.receipts.values()]
    made = [(stage, key) for stage, key, checksum in every if sealed.get(stage, {}).get(key) != checksum]
    run.verified = {"tasks": len(made), "kept": len(every) - len(made), "files": 0, "bytes": 0}
    if not made:
        return
    checks = Checks(flow.out, flow.grid, flow.legend)
    found = check_tasks(client(), checks, made, console)
    run.verified |= {"files": found.files, "bytes": found.bytes}
    bad: dict[tuple[str, str], list[str]] = {}
    for problem in found.problems:
        bad.setdefault((problem.stage, problem.key), []).append(f"{problem.path} {problem.what}")
    for outcome in run.outcomes.values():
        for key, receipt in list(outcome.receipts.items()):
            if told := bad.get((receipt["stage"], key)):
                error = f"verified after it was made: {told[0]}" + (f", and {len(told) - 1} more" if told[1:] else "")
                outcome.failed.append({"stage": receipt["stage"], "key": key, "error": error})
                outcome.done, outcome.skipped = _one_less(outcome.done, outcome.skipped)
                remove(flow.receipts.path(receipt["stage"], key))
                run.status = "failed"


def _one_less(done: int, skipped: int) -> tuple[int, int]:
    return (done - 1, skipped) if done else (done, skipped - 1)


def close_seal(run: Run) -> None:
    """Seal the output of a run that is complete, its report and figures included."""
    flow = run.flow
    if run.verified["tasks"]:
        _remove_drafts(run)
    tasks: dict[str, dict[str, str]] = {}
    receipted: set[str] = set()
    for outcome in run.outcomes.values():
        for key, receipt in outcome.receipts.items():
            tasks.setdefault(receipt["stage"], {})[key] = receipt[CHECKSUM]
            receipted |= {name for name in receipt["files"] if name.startswith(f"{PATCHES}/")}
    kept, anew = sealed_files(flow.out, frozenset(receipted))
    write_copies(flow.out, kept)
    sealed = [*kept, *anew, flow.out / COPIES]
    measured = at_once(measure, sealed, is_remote(flow.out))
    files = {relative(path, flow.out): found for path, found in zip(sealed, measured, strict=True)}
    job: dict[str, Any] = flow.job.model_dump(mode="json", by_alias=True, exclude_none=True)
    legend = flow.legend.to_dict()
    Seal(True, job, legend, describe_grid(flow.grid), flow.limit, tasks, files).write(flow.out)


def _remove_drafts(run: Run) -> None:
    """What workers and drivers that were killed left half-written: all tasks have ended, nobody writes any more."""
    files = [name for o in run.outcomes.values() for receipt in o.receipts.values() for name in receipt["files"]]
    folders = {name.partition("/")[0] for name in files if "/" in name} | {"receipts", "scenes"}
    if removed := remove_drafts(run.flow.out, sorted(folders)):
        run.say(f"removed {counted(len(removed), 'draft')} of processes that were killed, such as {removed[0]}")
