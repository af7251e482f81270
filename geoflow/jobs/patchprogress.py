"""What people see while BigEarthNet becomes a store, and when it has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.counting import counted
from geoflow.jobs.console import duration
from geoflow.jobs.patchingest import Ingested, grouped

if TYPE_CHECKING:
    import rich.console

EVERY_S = 15.0
_MOST_KINDS = 8


class IngestProgress:
    """A bar with the pace and the time left on a terminal; in a log a line now and then."""

    def __init__(self, console: rich.console.Console) -> None:
        self._console = console
        self._status: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> IngestProgress:
        if self._console.is_terminal:
            self._status = self._console.status("listing patches ...")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, done: int, patches: int, rate: float) -> None:
        """See `geoflow.jobs.patchingest.Progress`."""
        left = (patches - done) / rate if rate else 0.0
        text = f"{done:,} of {counted(patches, 'patch')}, {rate:,.0f} a second, {duration(left)} left"
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._last >= EVERY_S:
            self._last = time.monotonic()
            self._console.print(text, highlight=False)


def print_ingested(console: rich.console.Console, made: Ingested, out: Path) -> None:
    """Say what is in the store, what is not and why, and what to do with it."""
    described = made.store.described
    lines = [
        f"[bold]{out}[/]: {counted(made.read, 'patch')} of BigEarthNet v{made.store.layout.version}, {_work(made)}"
    ]
    lines += [f"  left out  {n:>9,}  {reason}" for reason, n in made.dropped.items()]
    kinds = list(grouped(made.skipped).items())
    lines += [f"  [yellow]skipped[/]   {n:>9,}  {reason}" for reason, n in kinds[:_MOST_KINDS]]
    if len(kinds) > _MOST_KINDS:
        lines.append(f"  [yellow]skipped[/]   {sum(n for _, n in kinds[_MOST_KINDS:]):>9,}  for other reasons")
    if made.skipped:
        lines.append(f"  each with its reason in {out / 'skipped.csv'}; try them again with --retry")
    if made.without_map:
        lines.append(f"  {made.without_map:,} have no reference map: their target is nodata throughout")
    lines += [_split_line(name, parts, described["default_split"]) for name, parts in made.store.split_counts().items()]
    if strangers := described.get("strangers", {}).get("names"):
        first = ", ".join(described["strangers"]["first"][:2])
        lines.append(f"  [yellow]{strangers:,} names[/] of your split are no patch here, such as {first}")
    lines.append(f"Next: [bold]geoflow bigearthnet stats {out}[/], or in Python gf.open_patches({str(out)!r})")
    for line in lines:
        console.print(line, highlight=False)


def _work(made: Ingested) -> str:
    if not made.chunks_done:
        return "complete already, nothing to do"
    kept = f", {made.chunks_kept} kept" if made.chunks_kept else ""
    return f"{counted(made.chunks_done, 'chunk')}{kept}, in {duration(made.seconds)}"


def _split_line(name: str, parts: dict[str, int], default: str) -> str:
    told = ", ".join(f"{part} {n:,}" for part, n in parts.items() if n)
    return f"  split {name:<9} {told}{' (the one training takes)' if name == default else ''}"
