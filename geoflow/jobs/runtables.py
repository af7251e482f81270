"""Runs as tables on a terminal, and as plain values for programs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from geoflow.jobs.lease import holder_of
from geoflow.jobs.tables import near, plain_table

if TYPE_CHECKING:
    from rich.console import Console

    from geoflow.jobs.records import Record

_COLOURS = {
    "State": "default",
    "complete": "green",
    "running": "cyan",
    "submitted": "cyan",
    "failed": "red",
    "lost": "red",
}
_NEWS = 8


def brief(record: Record) -> dict[str, Any]:
    """A run's record as programs read it: all but the job."""
    kept = {key: value for key, value in record.content.items() if key not in ("order", "created_s")}
    return kept | {"state": record.state, "out": str(record.out)}


def print_runs(console: Console, records: Sequence[Record]) -> None:
    """One line a run."""
    if not records:
        console.print("No runs yet: geoflow submit JOB, or geoflow run JOB, makes one.")
        return
    # Lines rather than a table, which would cut the folders short.
    rows = [("Run", "State", "Stage", "Output")]
    rows += [(record.id, record.state, _share(record), near(record.out)) for record in records]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    for name, state, share, out in rows:
        padded = f"[bold]{name:<{widths[0]}}[/]  {_coloured(state, widths[1])}  {share:<{widths[2]}}  {out}"
        console.print(f"[bold]{padded}[/]" if name == "Run" else padded, highlight=False)


def state_line(record: Record) -> str:
    """A run's state as one line of rich markup."""
    return f"[bold]{record.id}[/] {_coloured(record.state)}, {record.content['job']} into {near(record.out)}"


def _coloured(state: str, width: int = 0) -> str:
    colour = _COLOURS.get(state, "yellow")
    return f"[{colour}]{state:<{width}}[/]"


def _share(record: Record) -> str:
    """The stage that it is in, or was in last."""
    stages = list(record.content["stages"].values())
    if not stages:
        return "-"
    last = stages[-1]
    return f"{last['title']} {last['done'] + last['kept']}/{last['tasks']}"


def print_run(console: Console, record: Record) -> None:
    """How far a run is."""
    content, state = record.content, record.state
    console.print(state_line(record), highlight=False)
    if state == "running" and (holder := holder_of(record.out)) is not None:
        console.print(f"  on {holder.host}, process {holder.pid}", highlight=False)
    if state not in ("complete", "failed"):
        _print_stages(console, content)
    for line in content["news"][-_NEWS:]:
        console.print(f"  [dim]{line[:8]}[/]", end="")
        console.print(line[8:], markup=False, highlight=False)
    if error := content.get("error"):
        console.print(f"  {error}", markup=False, highlight=False)
    if state == "lost":
        console.print("  its process is gone: the machine went down, or it was killed", highlight=False)
    if state in ("lost", "cancelled", "interrupted", "failed"):
        console.print(f"  to go on: [bold]geoflow resume {record.id}[/]", highlight=False)


def _print_stages(console: Console, content: dict[str, Any]) -> None:
    if not content["stages"]:
        return
    table = plain_table("Stage", "Tasks", "Done", "Kept", "Failed", "Seconds", "Left (s)")
    for stage in content["stages"].values():
        seconds = stage.get("ended_s", time.time()) - stage["began_s"]
        counts = (str(stage[key]) for key in ("tasks", "done", "kept", "failed"))
        table.add_row(stage["title"], *counts, f"{seconds:.0f}", _left(stage, seconds))
    console.print(table)


def _left(stage: dict[str, Any], seconds: float) -> str:
    """Seconds that the rest of a stage will take, at the pace so far; of a training, its step."""
    if "ended_s" in stage:
        return ""
    if stage["tasks"] == 1 and "steps" in stage:
        return f"step {stage['step']} of {stage['steps']}, loss {stage['loss']:.3f}"
    if not stage["done"]:
        return ""
    rest = stage["tasks"] - stage["kept"] - stage["done"] - stage["failed"]
    return f"{rest * seconds / stage['done']:.0f}"
