"""What a new search changes in a frozen list of scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geoflow.jobs.scenes import Scenes, identity

if TYPE_CHECKING:
    from geoflow.jobs.console import Console


@dataclass(frozen=True)
class Change:
    """One scene that is used otherwise than before.

    Attributes
    ----------
    kind : "added", "removed", "superseded" or "altered"
        ``superseded``: another processing of the same datatake and tile takes its place. ``altered``: the same scene
        with other links or another offset.
    id : str
        The scene; the old one where it is superseded.
    why : str
        A sentence.
    """

    kind: str
    id: str
    why: str


def changes(old: Scenes, new: Scenes) -> list[Change]:
    """What differs between two lists of one epoch, as far as pixels depend on it: by kind, then id."""
    from geoflow.imagery.items import granule_of

    was = {item["id"]: item for item in old.items}
    now = {item["id"]: item for item in new.items}
    by_granule = {granule_of(item): id_ for id_, item in now.items() if id_ not in was}
    reasons = {r["id"]: r["reason"] for r in new.refused}
    found, replacing = [], set()
    for id_ in was.keys() - now.keys():
        successor = by_granule.get(granule_of(was[id_]))
        if successor is None:
            found.append(Change("removed", id_, reasons.get(id_, "the catalog no longer offers it")))
        else:
            replacing.add(successor)
            found.append(Change("superseded", id_, f"by {successor}, {_baseline(now[successor])}"))
    for id_ in now.keys() - was.keys() - replacing:
        reason = {r["id"]: r["reason"] for r in old.refused}.get(id_)
        found.append(Change("added", id_, f"was refused: {reason}" if reason else "was not offered"))
    same = was.keys() & now.keys()
    found += [Change("altered", i, _altered(was[i], now[i])) for i in same if identity(was[i]) != identity(now[i])]
    order = ("added", "superseded", "removed", "altered")
    return sorted(found, key=lambda c: (order.index(c.kind), c.id))


def told(epoch: str, found: list[Change]) -> list[str]:
    """The changes for reading: a head line, and a line each."""
    if not found:
        return [f"Scenes of {epoch}: a new search finds the same"]
    counts = {kind: sum(c.kind == kind for c in found) for kind in ("added", "superseded", "removed", "altered")}
    head = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    return [f"Scenes of {epoch}: {head}", *(f"  {c.kind} {c.id}: {c.why}" for c in found)]


def _baseline(item: Mapping[str, Any]) -> str:
    return f"baseline {item['properties'].get('s2:processing_baseline') or 'unknown'}"


def _altered(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    before, after = (item["properties"]["geoflow:offset"]["add"] for item in (old, new))
    parts = [f"its offset was {before} and is {after}"] if before != after else []
    moved = sum(old["assets"].get(key, {}).get("href") != asset["href"] for key, asset in new["assets"].items())
    parts += [f"{moved} of its links lead elsewhere"] if moved else []
    return " and ".join(parts) or "its record changed"


def tell_changes(epochs: Mapping[str, Scenes], console: Console, most: int = 20) -> None:
    """Say what a new search changed in lists that were frozen before; ``most`` lines an epoch."""
    for epoch, scenes in epochs.items():
        if scenes.before is None:
            continue
        lines = told(epoch, changes(scenes.before, scenes))
        for line in lines[: most + 1]:
            console.say(line)
        if len(lines) > most + 1:
            console.say(f"  and {len(lines) - most - 1} more; geoflow search --refresh lists them all")
