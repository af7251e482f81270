"""Areas as the report shows them: by class, by zone, and from class to class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from geoflow.colours import hex_colour
from geoflow.legends import Legend


@dataclass(frozen=True)
class AreaRow:
    """A class or a group of classes: hectares in each epoch (None where it does not occur), share of the last."""

    code: int
    name: str
    colour: str
    group: bool
    hectares: tuple[float | None, ...]
    difference: float | None
    share: float


def area_rows(areas: Mapping[str, Any], legend: Legend) -> list[AreaRow]:
    """The deepest level grouped by level 1."""
    by_epoch = {
        epoch: {int(code): ha for classes in levels.values() for code, ha in classes.items()}
        for epoch, levels in areas.items()
    }
    present = {code for table in by_epoch.values() for code in table}
    first, deepest = legend.levels[0], legend.deepest
    codes = [c for c in sorted(legend.codes(deepest)) if c in present]
    rows: list[AreaRow] = []
    for group in legend.codes(first):
        members = [code for code in codes if legend.ancestor(code, first) == group]
        if first != deepest and (members or group in present):
            rows.append(_area_row(group, by_epoch, legend, group=True))
        rows += [_area_row(code, by_epoch, legend, group=False) for code in members]
    return rows


def _area_row(code: int, by_epoch: Mapping[str, Mapping[int, float]], legend: Legend, group: bool) -> AreaRow:
    values = tuple(table.get(code) for table in by_epoch.values())
    last = list(by_epoch.values())[-1]
    total = sum(last.get(c, 0.0) for c in legend.codes(legend.levels[0])) or sum(
        last.get(c, 0.0) for c in legend.codes(legend.deepest)
    )
    difference = (values[-1] or 0.0) - (values[0] or 0.0) if len(values) > 1 else None
    share = (values[-1] or 0.0) / total if total else 0.0
    colour = hex_colour(legend.colour(code))
    return AreaRow(code, legend.label(code), colour, group, values, difference, share)


def zone_tables(zones: Mapping[str, Any], legend: Legend) -> list[dict[str, Any]]:
    """A table for each epoch: zones in alphabetical order, their hectares, and the share of each class of level 1."""
    first = legend.levels[0]
    tables = []
    for epoch, by_zone in zones.items():
        rows = []
        for name in sorted(by_zone):
            held = {int(code): ha for code, ha in by_zone[name].get(f"level{first}", {}).items()}
            whole = sum(held.values())
            shares = [held.get(code, 0.0) / whole if whole else None for code in legend.codes(first)]
            rows.append({"name": name, "ha": whole, "shares": shares})
        tables.append({"epoch": epoch, "rows": rows})
    return tables


def change_matrix(transitions: Iterable[Mapping[str, Any]], legend: Legend) -> list[dict[str, Any]]:
    """Hectares that changed from each class of level 1 (rows) to each (columns); within one, between its classes."""
    first = legend.levels[0]
    sums: Counter[tuple[int, int]] = Counter()
    for one in transitions:
        pair = legend.ancestor(int(one["from"]), first), legend.ancestor(int(one["to"]), first)
        sums[pair] += float(one["ha"])  # type: ignore[assignment]
    codes = legend.codes(first)
    return [
        {"code": old, "name": legend.label(old), "hectares": [sums.get((old, new)) for new in codes]}
        for old in codes
        if any((old, new) in sums for new in codes)
    ]
