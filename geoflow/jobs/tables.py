"""Plans and summaries as tables on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from geoflow.counting import counted
from geoflow.jobs.console import duration

if TYPE_CHECKING:
    from rich.console import Console

    from geoflow.jobs.plan import Plan


_MOST_REFUSED = 20
_MOST_REASONS = 3


def print_plan(console: Console, plan: Plan, verbose: bool = False) -> None:
    """What a run would do; with ``verbose`` every scene.  The last line is `what_it_takes`."""
    height, width = plan.grid["shape"]
    console.print(
        f"[bold]Grid[/] {width:,} x {height:,} px of {plan.grid['resolution_m']:g} m in {plan.grid['crs']}, "
        f"{plan.grid['tiles']:,} tile{'s' * (plan.grid['tiles'] != 1)} of {plan.grid['tile']} px\n",
        highlight=False,
    )
    noted = any(stage.note for stage in plan.stages)
    stages = plain_table("Stage", "Tasks", "Keep", "New", "Redo", *[""] * noted)
    for stage in plan.stages:
        counts = (f"{n:,}" if n else "-" for n in (stage.done, stage.new, stage.redo))
        stages.add_row(stage.title, f"{stage.tasks:,}", *counts, *[stage.note] * noted)
    console.print(stages)
    for stage in plan.stages:
        for reason, count in list(stage.why.items())[:_MOST_REASONS]:
            console.print(f"  [dim]{stage.title}: {count} again, {reason}[/]", highlight=False)
    if plan.scenes:
        _print_scenes(console, plan, verbose)


def what_it_takes(plan: Plan) -> str:
    """Bytes and memory, as one line."""
    return (
        f"Reads about {plan.bytes_to_read / 1e9:,.2f} GB, writes at most {plan.bytes_to_write / 1e9:,.2f} GB, "
        f"up to {plan.peak_worker_bytes / 1e9:.1f} GB of memory a worker."
    )


def _print_scenes(console: Console, plan: Plan, verbose: bool) -> None:
    """Counts for each epoch and period; the scenes themselves where they are few, or asked for."""
    console.print()
    table = plain_table("Scenes", "Used", "Refused", "First", "Last", "Why refused", numbers=(1, 2))
    for epoch, ledger in plan.scenes.items():
        names = list(dict.fromkeys(name for scene in ledger["used"] for name in scene["periods"]))
        names += [p for scene in ledger["refused"] if (p := scene.get("period")) and p not in names]
        for name in names:
            used = [scene for scene in ledger["used"] if name in scene["periods"]]
            refused = [scene for scene in ledger["refused"] if scene.get("period") in (name, "")]
            dates = sorted(scene["date"] for scene in used) or ["-"]
            why = ", ".join(f"{n} {reason}" for reason, n in _grouped(refused).items())
            table.add_row(f"{epoch} {name}", f"{len(used):,}", f"{len(refused):,}", dates[0], dates[-1], why)
    console.print(table)
    if verbose:
        for epoch, ledger in plan.scenes.items():
            _list_scenes(console, epoch, ledger)
    else:
        console.print("  [dim]each scene: geoflow plan -v, or geoflow search[/]\n", highlight=False)


def _grouped(refused: list[Mapping[str, Any]]) -> Counter[str]:
    """Reasons without the figures and ids that make each of them its own."""
    short = {"cloud cover": "too cloudy", "older processing": "older processing"}
    told = (next((s for start, s in short.items() if r["reason"].startswith(start)), r["reason"]) for r in refused)
    return Counter(told)


def _list_scenes(console: Console, epoch: str, ledger: Mapping[str, Any]) -> None:
    scenes = plain_table(f"Scenes {epoch}", "Date", "Cloud %", "Baseline", "Offset", "Decided by", numbers=(2, 4))
    for scene in ledger["used"]:
        cloud = "?" if scene["cloud"] is None else f"{scene['cloud']:.1f}"
        decided = scene["offset_rule"] + (" (disagrees with the flag)" if scene["note"] else "")
        scenes.add_row(scene["id"], scene["date"], cloud, str(scene["baseline"]), str(scene["offset_add"]), decided)
    console.print(scenes)
    for refused in ledger["refused"][:_MOST_REFUSED]:
        print_aside(console, f"{refused['id']} refused: {refused['reason']}")
    if (more := len(ledger["refused"]) - _MOST_REFUSED) > 0:
        console.print(f"  [dim]and {more} more; geoflow search lists them all[/]", highlight=False)
    console.print()


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """How a run went; the last line is `how_it_ended`."""
    stages = plain_table("Stage", "Tasks", "Done", "Kept", "Failed", "Seconds")
    for stage in summary["stages"].values():
        failed = f"[bold red]{stage['failed']}[/]" if stage["failed"] else "0"
        counts = (str(stage[k]) for k in ("tasks", "done", "skipped"))
        stages.add_row(stage["title"], *counts, failed, f"{stage['seconds']:.1f}")
    console.print(stages)
    console.print()
    for failure in summary["failed"]:
        console.print(f"[bold red]failed[/] {failure['stage']} {failure['key']}: ", end="")
        console.print(failure["error"], markup=False, highlight=False)
    if skipped := summary.get("patches", {}).get("skipped"):
        first = f"{skipped[0]['name']}: {skipped[0]['reason']}"
        console.print(f"[yellow]skipped[/] {counted(len(skipped), 'patch')}; the first, ", end="")
        console.print(f"{first}; all are in patches.zarr/skipped.csv", markup=False, highlight=False)
    if "accuracy" in summary:
        print_accuracy(console, summary["accuracy"])
        console.print()


def how_it_ended(summary: Mapping[str, Any], out: Path) -> str:
    """The state, the time and where to look, as one line of rich markup."""
    state = {"complete": "[green]complete[/]", "failed": "[red]failed[/]"}.get(summary["status"], summary["status"])
    report = out / "report.html"
    look = (
        f"; start with {near(report)}" if summary["status"] == "complete" and report.exists() else f", in {near(out)}"
    )
    return f"[bold]{summary['job']}[/] {state} after {duration(summary['seconds'])}{look}"


def print_aside(console: Console, text: str) -> None:
    """A remark, dim, indented and broken between words."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding(Text(text, style="dim"), (0, 0, 0, 2)), soft_wrap=False)


def near(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


_LOOKS = (
    ("map.png", "the maps"),
    ("change.png", "the change"),
    ("country.zarr", "the data, for geoflow.open, xarray and GDAL"),
    ("model", "the net; use it again with predict.model"),
)


def print_paths(console: Console, out: Path) -> None:
    """What there is to look at beside the report, in the output of a run that is complete."""
    there = [(near(out / name), what) for name, what in _LOOKS if (out / name).exists()]
    width = max((len(path) for path, _ in there), default=0)
    for path, what in there:
        console.print(f"  {path:<{width}}  [dim]{what}[/]", highlight=False)


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


def overall_line(accuracy: Mapping[str, Any]) -> str:
    """The map's share of right pixels at each level, as one line."""
    shares = ", ".join(f"{level.replace('level', 'level ')} {_percent(s)}" for level, s in accuracy["map"].items())
    return f"map of {accuracy['epoch']}: {shares} right"


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
