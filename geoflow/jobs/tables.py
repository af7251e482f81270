"""Plans and summaries as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from geoflow.jobs.plan import Plan


_MOST_REFUSED = 20
_MOST_REASONS = 3


def print_plan(console: Console, plan: Plan) -> None:
    """What a run would do."""
    height, width = plan.grid["shape"]
    console.print(
        f"[bold]Grid[/] {width} x {height} px of {plan.grid['resolution_m']:g} m in {plan.grid['crs']}, "
        f"{plan.grid['tiles']} tiles of {plan.grid['tile']} px"
    )
    stages = plain_table("Stage", "Tasks", "Keep", "New", "Redo", "")
    for stage in plan.stages:
        counts = (str(n) if n else "-" for n in (stage.done, stage.new, stage.redo))
        stages.add_row(stage.title, str(stage.tasks), *counts, stage.note)
    console.print(stages)
    for stage in plan.stages:
        for reason, count in list(stage.why.items())[:_MOST_REASONS]:
            console.print(f"  [dim]{stage.title}: {count} again, {reason}[/]", highlight=False)
    for epoch, ledger in plan.scenes.items():
        scenes = plain_table(f"Scenes {epoch}", "Date", "Cloud %", "Baseline", "Offset", "Decided by", numbers=(2, 4))
        for scene in ledger["used"]:
            cloud = "?" if scene["cloud"] is None else f"{scene['cloud']:.1f}"
            decided = scene["offset_rule"] + (" (disagrees with the flag)" if scene["note"] else "")
            scenes.add_row(scene["id"], scene["date"], cloud, str(scene["baseline"]), str(scene["offset_add"]), decided)
        console.print(scenes)
        for refused in ledger["refused"][:_MOST_REFUSED]:
            console.print(f"  refused {refused['id']}: {refused['reason']}", style="dim", markup=False, highlight=False)
        if (more := len(ledger["refused"]) - _MOST_REFUSED) > 0:
            console.print(f"  [dim]and {more} more; geoflow search lists them all[/]", highlight=False)
    console.print(
        f"Reads about {plan.bytes_to_read / 1e9:.2f} GB, writes at most {plan.bytes_to_write / 1e9:.2f} GB, "
        f"up to {plan.peak_worker_bytes / 1e9:.1f} GB of memory a worker.",
        highlight=False,
    )


def print_summary(console: Console, summary: Mapping[str, Any], out: Path) -> None:
    """How a run went, and what to look at."""
    stages = plain_table("Stage", "Tasks", "Done", "Kept", "Failed", "Seconds")
    for stage in summary["stages"].values():
        failed = f"[bold red]{stage['failed']}[/]" if stage["failed"] else "0"
        counts = (str(stage[k]) for k in ("tasks", "done", "skipped"))
        stages.add_row(stage["title"], *counts, failed, f"{stage['seconds']:.1f}")
    console.print(stages)
    for failure in summary["failed"]:
        console.print(f"[bold red]failed[/] {failure['stage']} {failure['key']}: ", end="")
        console.print(failure["error"], markup=False, highlight=False)
    if skipped := summary.get("patches", {}).get("skipped"):
        first = f"{skipped[0]['name']}: {skipped[0]['reason']}"
        console.print(f"[yellow]skipped[/] {len(skipped)} patches; the first, ", end="")
        console.print(f"{first}; all are in patches.zarr/skipped.csv", markup=False, highlight=False)
    if "accuracy" in summary:
        print_accuracy(console, summary["accuracy"])
    state = {"complete": "[green]complete[/]", "failed": "[red]failed[/]"}.get(summary["status"], summary["status"])
    console.print(f"[bold]{summary['job']}[/] {state} after {summary['seconds']:.0f} s", highlight=False)
    if summary["status"] == "complete":
        _print_paths(console, out)


def _print_paths(console: Console, out: Path) -> None:
    looks = (
        ("report.html", "start here: maps, accuracy, scenes, timings"),
        ("map.png", "the maps"),
        ("change.png", "the change"),
        ("country.zarr", 'the data: geoflow.open("...")'),
        ("model", "use it again with predict.model"),
    )
    for name, what in looks:
        if (out / name).exists():
            console.print(f"  {out / name}  [dim]{what}[/]", highlight=False)


def print_accuracy(console: Console, accuracy: Mapping[str, Any]) -> None:
    """The map against the truth, beside the labels that it learned from."""
    if "map" in accuracy:
        _print_maps(console, accuracy)
    if (change := accuracy.get("change", {}).get("all")) and change["f1"] is not None:
        console.print(
            f"  change everywhere: F1 {change['f1']:.2f}, precision {change['precision'] or 0:.2f}, "
            f"recall {change['recall'] or 0:.2f}",
            highlight=False,
        )
    if (patches := accuracy.get("change", {}).get("patches")) and patches["f1"] is not None:
        console.print(
            f"  patches of change: F1 {patches['f1']:.2f}, {patches['found']} of {patches['true']} found, "
            f"{patches['right']} of {patches['mapped']} right",
            highlight=False,
        )


def _print_maps(console: Console, accuracy: Mapping[str, Any]) -> None:
    held = accuracy["where"] == "held_out"
    pixels = accuracy["pixels"]["held_out" if held else "all"]
    place = "in blocks held out of training" if held else "everywhere"
    table = plain_table(f"Right pixels, {accuracy['epoch']}", "Map", "Labels", "Map - labels", "Map everywhere")
    for level, share in accuracy["map"].items():
        labels = accuracy.get("labels", {}).get(level)
        gain = "" if labels is None else f"{100 * (share - labels):+.1f}"
        everywhere = accuracy["everywhere"]["map"][level]
        table.add_row(level.replace("level", "level "), _percent(share), _percent(labels), gain, _percent(everywhere))
    console.print(table)
    console.print(f"  [dim]against the truth, {place}: {pixels:,} pixels[/]", highlight=False)
    for epoch, other in accuracy["epochs"].items():
        if epoch != accuracy["epoch"]:
            shares = ", ".join(f"{level.replace('level', 'level ')} {_percent(s)}" for level, s in other["map"].items())
            console.print(f"  map of {epoch}: {shares}", highlight=False)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def plain_table(first: str, *others: str, numbers: tuple[int, ...] | None = None) -> Table:
    """A plain table whose columns, but the first (or those not in ``numbers``), are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for at, name in enumerate(others, start=1):
        right = at in numbers if numbers is not None else bool(name)
        table.add_column(name, justify="right" if right else "left")
    return table
