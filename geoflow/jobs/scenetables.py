"""What ``geoflow search`` prints: scenes, coverage, changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from geoflow.counting import counted
from geoflow.jobs.scenediff import told
from geoflow.jobs.scenesearch import FoundScenes
from geoflow.jobs.tables import near, plain_table, print_aside

if TYPE_CHECKING:
    from rich.console import Console

    from geoflow.jobs.coverage import Coverage
    from geoflow.jobs.scenes import Scenes

_MOST_COUNTS = 8
_ROOMY = 140  # columns of a terminal: with fewer, reasons stand below the table, and orbits nowhere


def print_search(console: Console, found: FoundScenes) -> None:
    """Every scene with what was decided about it, the coverage, and what changed."""
    for scenes in found.epochs.values():
        for period in scenes.periods:
            _print_period(console, scenes, period)
    console.print(_coverage(found.coverage))
    for epoch, differences in found.changes.items():
        if found.previewed or differences:
            for line in told(epoch, differences):
                console.print(line, markup=False, highlight=False)
    if found.previewed:
        console.print("Nothing was changed; to take this over: geoflow search --refresh --apply, or run with --refresh")
    for path in found.files:
        console.print(f"  {near(Path(path))}", highlight=False, markup=False)


def how_many(found: FoundScenes) -> str:
    """Scenes used and refused, over all epochs, as one line."""
    used = sum(len(scenes.items) for scenes in found.epochs.values())
    refused = sum(len(scenes.refused) for scenes in found.epochs.values())
    return f"{counted(used, 'scene')} used, {refused:,} refused, in {counted(len(found.epochs), 'epoch')}"


def _print_period(console: Console, scenes: Scenes, period: str) -> None:
    ledger = scenes.ledger()
    used = [facts for facts in ledger["used"] if period in facts["periods"]]
    refused = [facts for facts in ledger["refused"] if facts.get("period") in (period, "")]
    span = scenes.periods[period]
    rows = [(facts, "used" + (f": {facts['note']}" if facts["note"] else "")) for facts in used]
    rows += [(facts, f"refused: {facts['reason']}") for facts in refused]
    rows.sort(key=lambda row: (str(row[0].get("date")), row[0]["id"]))
    roomy = console.width >= _ROOMY
    heads = ("Date", "Tile", *["Orbit"] * roomy, "Cloud %", "Baseline", "Offset", "")
    numbers = tuple(at for at, head in enumerate(heads, start=1) if head in ("Orbit", "Cloud %", "Offset"))
    table = plain_table(f"{scenes.epoch} {period}", *heads, numbers=numbers)
    table.padding = (0, 2 if roomy else 1, 0, 0)
    for column in table.columns:
        column.no_wrap = True
    table.columns[0].no_wrap, table.columns[0].overflow = roomy, "fold"  # some ids alone are as wide as a terminal
    for facts, said in rows:
        style = "dim" if said.startswith("refused") else ""
        shown = said if roomy else said.partition(":")[0]
        table.add_row(*(escape(text) for text in _cells(facts, roomy)), escape(shown), style=style)
    console.print(table)
    for facts, said in rows:
        if not roomy and ":" in said:
            print_aside(console, f"{facts['id']} {said}")
    counts = f"{len(used)} used, {len(refused)} refused{_unasked(used)}{_aside(scenes, period)}"
    console.print(f"  {span.start} to {span.end}: {counts}\n")


def _unasked(used: list[dict[str, Any]]) -> str:
    from geoflow.imagery.harmonise import UNREADABLE

    many = sum(facts["offset_pixels"] == UNREADABLE for facts in used)
    return f"; {many} with an offset that no pixel could confirm" if many else ""


def _cells(facts: Mapping[str, Any], orbit: bool) -> list[str]:
    cloud = facts.get("cloud")
    names = ("date", "tile", "orbit") if orbit else ("date", "tile")
    plain = ["" if facts.get(name) is None else str(facts[name]) for name in names]
    offset = str(facts["offset_add"]) if "offset_add" in facts else ""
    return [facts["id"], *plain, "" if cloud is None else f"{cloud:.1f}", str(facts.get("baseline") or ""), offset]


def _aside(scenes: Scenes, period: str) -> str:
    """What else is to be known about how the catalog answered."""
    search = scenes.searches.get(period, {})
    parts = []
    if search.get("outside"):
        parts.append(f"{search['outside']} outside these days")
    if search.get("repeated"):
        parts.append(f"{search['repeated']} came twice")
    if search.get("sent"):
        dropped = search.get("dropped")
        many = "an unknown number of" if dropped is None else str(dropped)
        parts.append(f"{many} dropped by the server, which was sent {'; '.join(search['sent'])}")
    return escape("".join(f"; {part}" for part in parts))


def _coverage(found: list[Coverage]) -> Table:
    """Share of the area that 0, 1, 2 ... passes see."""
    most = min(_MOST_COUNTS, max(max(one.shares) for one in found))
    counts = [str(n) for n in range(most)] + [f"{most}+" if most == _MOST_COUNTS else str(most)]
    heads = ("Scenes", "Passes", "Least", "Median", *counts)
    table = plain_table("% of the area seen by ... passes", *heads, numbers=tuple(range(1, len(heads) + 1)))
    for one in found:
        shares = [sum(s for n, s in one.shares.items() if n == i or i == most <= n) for i in range(most + 1)]
        cells = [f"{100 * share:.1f}" if share else "-" for share in shares]
        figures = (str(one.scenes), str(one.passes), str(one.least), f"{one.median:g}")
        table.add_row(f"{one.epoch} {one.period}", *figures, *cells)
    return table
