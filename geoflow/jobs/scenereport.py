"""The scenes of a run for the report: short enough to be read, with what is left out counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_SCENES = 200
"""Scenes of one kind and epoch that the report lists; the frozen lists hold all."""

_FILTERS = {
    "area": "do not meet the area",
    "tile": "of other tiles",
    "orbit": "of other orbits",
    "bands": "without the bands",
    "superseded": "superseded",
    "cloud": "too clouded",
    "best": "not among the best",
    "item": "not usable items",
    "offset": "of unknown offset",
}


def ledger_facts(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """Scenes of an epoch: as many as the report lists, how many there are, and what refused the others."""
    used, refused = list(ledger.get("used", [])), list(ledger.get("refused", []))
    counts: dict[str, int] = {}
    for scene in refused:
        said = _FILTERS.get(scene.get("filter", ""), "refused otherwise")
        counts[said] = counts.get(said, 0) + 1
    sent = [
        {"period": name, "filters": "; ".join(search["sent"]), "dropped": search.get("dropped")}
        for name, search in (ledger.get("searches") or {}).items()
        if search.get("sent")
    ]
    return {
        "used": used[:MOST_SCENES],
        "refused": refused[:MOST_SCENES],
        "used_count": len(used),
        "refused_count": len(refused),
        "refused_by": ", ".join(f"{n:,} {said}" for said, n in sorted(counts.items(), key=lambda c: -c[1])),
        "sent": sent,
    }


def coverage_rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each epoch and period: the share of the area that no pass sees, that one sees, and that more see."""
    rows = []
    for epoch, periods in table.items():
        for period, figures in periods.items():
            shares = {int(n): share for n, share in figures["shares"].items()}
            few = [shares.get(n, 0.0) for n in range(3)]
            more = sum(share for n, share in shares.items() if n > 2)
            rows.append({"name": f"{epoch} {period}", **figures, "by_count": [*few, more]})
    return rows


def shown_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The job for reading: polygons that are written into it are named, not listed corner by corner."""
    area = dict(config.get("area") or {})
    if isinstance(area.get("geojson"), Mapping):
        area["geojson"] = f"a {area['geojson'].get('type')}, written in the job"
    return {**config, "area": area} if area else dict(config)
