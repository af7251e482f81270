"""What is known of one place, for a reader: text in a terminal, HTML in a notebook, plain values for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from geoflow.colours import Colour
from geoflow.explore import html


@dataclass(frozen=True)
class ClassAt:
    """A class: its level, code, name and colour (red, green, blue; 0..255)."""

    level: int
    code: int
    name: str
    colour: Colour

    def __str__(self) -> str:
        return f"{self.code} {self.name}"


@dataclass(frozen=True)
class MapAt:
    """What a map says of a place.

    Attributes
    ----------
    classes : tuple of ClassAt
        From the coarsest level to the finest; empty where nothing is mapped.
    confidence, margin : int or None
        Per cent.
    second : ClassAt or None
        The most probable of the other classes.
    clear : int or None
        Fewest clear observations in any period.
    """

    classes: tuple[ClassAt, ...]
    confidence: int | None = None
    margin: int | None = None
    second: ClassAt | None = None
    clear: int | None = None

    def facts(self) -> list[str]:
        """What else than the class is known."""
        found = []
        if self.confidence is not None:
            found.append(f"confidence {self.confidence} %")
        if self.second is not None:
            ahead = "" if self.margin is None else f" ({self.margin} % behind)"
            found.append(f"second choice {self.second}{ahead}")
        if self.clear is not None:
            found.append(f"{self.clear} clear observation{'' if self.clear == 1 else 's'} in the poorest period")
        return found


@dataclass(frozen=True)
class LabelAt:
    """What the labels (CORINE) say of a place; ``border_m`` is the distance to the nearest border of classes."""

    classes: tuple[ClassAt, ...]
    border_m: int | None = None

    def facts(self) -> list[str]:
        """What else than the class is known."""
        return [] if self.border_m is None else [f"{self.border_m} m from the border of its class"]


@dataclass(frozen=True)
class ChangeAt:
    """What is known of change between two epochs: ``state`` is "changed", "unchanged" or "not compared"."""

    state: str
    before: ClassAt | None = None
    after: ClassAt | None = None
    confidence: int | None = None

    def facts(self) -> list[str]:
        """What is known beside the state."""
        found = [f"{self.before} → {self.after}"] if self.before and self.after else []
        if self.confidence is not None:
            found.append(f"probability of change {self.confidence} %")
        return found


@dataclass(frozen=True)
class PointRecord:
    """Everything that a country's layers say of one place.

    Attributes
    ----------
    lon, lat : float
        Degrees, WGS 84.
    x, y : float
        The same place in the CRS of the map, ``crs``.
    row, col : int or None
        The pixel that holds it; None outside the map.
    maps, labels, changes : mapping
        By epoch, name of the labels and pair of epochs; empty outside the map.
    """

    lon: float
    lat: float
    x: float
    y: float
    crs: str
    row: int | None
    col: int | None
    maps: Mapping[str, MapAt] = field(default_factory=dict)
    labels: Mapping[str, LabelAt] = field(default_factory=dict)
    changes: Mapping[str, ChangeAt] = field(default_factory=dict)

    @property
    def inside(self) -> bool:
        """Whether the place lies on the map's grid."""
        return self.row is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        lines = [self._where()]
        for title, classes, facts in self._parts():
            lines.append(f"  {title}")
            lines += [f"    {one.level}: {one}" for one in classes]
            lines += [f"    {fact}" for fact in facts]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [html.line(escape(self._where()))]
        for title, classes, facts in self._parts():
            parts.append(html.heading(title))
            rows = [(f"level {c.level}", f"{html.swatch(c.colour)}{c.code} {escape(c.name)}") for c in classes]
            parts.append(html.table(rows) if rows else "")
            parts.append(html.line(html.quiet(" · ".join(facts))) if facts else "")
        return "".join(parts)

    def _where(self) -> str:
        here = f"{self.lon:.6f}, {self.lat:.6f} (x {self.x:.1f}, y {self.y:.1f} in {self.crs})"
        return f"{here}: row {self.row}, column {self.col}" if self.inside else f"{here}: outside the map"

    def _parts(self) -> list[tuple[str, tuple[ClassAt, ...], list[str]]]:
        nothing = ["no data: not mapped here"]
        parts = [(f"Map {n}", m.classes, m.facts() if m.classes else nothing) for n, m in self.maps.items()]
        for name, label in self.labels.items():
            parts.append((f"Labels {name}", label.classes, label.facts() if label.classes else ["no label here"]))
        for name, change in self.changes.items():
            parts.append((f"Change {name}: {change.state}", (), change.facts()))
        return parts
