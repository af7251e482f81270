"""The report of a run: one HTML file that holds all it shows, to be mailed, printed or archived.

Every section is made from the part of the summary of the same name, and is absent where that part is. What is said in
words is decided here; the template only sets it out. All text is escaped by the template engine.
"""

from __future__ import annotations

import base64
import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from geoflow.colours import hex_colour
from geoflow.jobs.areareport import area_rows, change_matrix, zone_tables
from geoflow.jobs.pages import pages
from geoflow.jobs.scenereport import coverage_rows, ledger_facts, shown_config
from geoflow.legends import Legend
from geoflow.places import write_bytes

TOP_TRANSITIONS = 15
FIGURE_TITLES = {"map": "Land cover", "change": "Change", "confidence": "Confidence"}

_EMBEDDED_PATH = re.compile(r"""(?:file://|(?<![\w.:/~\-]))/(?:[^\s/'",:;()<>\[\]]+/)+[^\s/'",:;()<>\[\]]*""")


@dataclass(frozen=True)
class Figure:
    """A picture to inline: its title and the PNG in base64."""

    title: str
    data: str


@dataclass(frozen=True)
class LevelAccuracy:
    """Shares of right pixels (0..1, None where unknown) at one level: in the blocks compared, and everywhere."""

    name: str
    map: float | None
    labels: float | None
    map_everywhere: float | None
    labels_everywhere: float | None

    @property
    def gain(self) -> float | None:
        """The map's share minus the labels'."""
        return None if self.map is None or self.labels is None else self.map - self.labels


@dataclass(frozen=True)
class ConfusionRow:
    """A true class: its code and name, its pixels, and the share of them mapped as each class."""

    code: int
    name: str
    pixels: int
    shares: tuple[float | None, ...]


@dataclass(frozen=True)
class Fact:
    """A line of free-form facts; either text, or facts of its own."""

    name: str
    text: str = ""
    facts: tuple[Fact, ...] = ()

    @property
    def long(self) -> bool:
        """Whether the text wants a line of its own."""
        return len(self.text) > 34


def write_report(summary: Mapping[str, Any], figures: Mapping[str, Path], path: Path, legend: Legend) -> None:
    """Write ``report.html``: self-contained, no scripts, nothing loaded from elsewhere.

    Parameters
    ----------
    summary : mapping
        As in ``summary.json``; shares are 0..1, areas in hectares. Every part but ``job`` may be missing.
    figures : mapping of name to Path
        PNG files, shown in this order; those that are not there are left out.
    path : Path
        The HTML file, in the output folder of the run; replaced as a whole or not at all. Paths in the report are
        relative to that folder, or cut to their end where they lead elsewhere.
    legend : Legend
        Of the map, for names and colours.
    """
    environment = pages()
    environment.filters |= {
        "percent": percent,
        "points": points,
        "hectares": hectares,
        "count": count,
        "duration": duration,
        "moment": moment,
    }
    html = environment.get_template("report.html.j2").render(_context(summary, figures, path.parent, legend))
    write_bytes(path, html.encode())


def _context(summary: Mapping[str, Any], figures: Mapping[str, Path], root: Path, legend: Legend) -> dict[str, Any]:
    s = without_machine_paths(dict(summary), root)
    accuracy = s.get("accuracy") or {}
    areas = area_rows(s.get("areas_ha") or {}, legend)
    return {
        "job": s["job"],
        "title": s.get("title") or s["job"],
        "status": s.get("status"),
        "started": s.get("started"),
        "seconds": s.get("seconds"),
        "grid": s.get("grid"),
        "figures": _figures({name: file for name, file in figures.items() if name != "coverage"}),
        "coverage_figure": _figures({name: file for name, file in figures.items() if name == "coverage"}),
        "coverage": coverage_rows(s.get("coverage") or {}),
        "statement": _statement(accuracy),
        "place": _place(accuracy),
        "accuracy": accuracy,
        "levels": _levels(accuracy),
        "confusion": _confusion(accuracy, legend),
        "change_accuracy": _change_accuracy(accuracy),
        "epochs": list(s.get("areas_ha") or {}),
        "areas": areas,
        "zones": zone_tables(s.get("areas_by_zone") or {}, legend),
        "largest": max((row.share for row in areas if not row.group), default=0.0) or 1.0,
        "seams": _seams(s.get("seams") or {}),
        "change": _changes(s.get("change") or {}, legend),
        "scenes": {epoch: ledger_facts(ledger) for epoch, ledger in (s.get("scenes") or {}).items()},
        "lost": {epoch: found["lost"] for epoch, found in (s.get("reads") or {}).items()},
        "unasked": {epoch: found.get("unasked", []) for epoch, found in (s.get("reads") or {}).items()},
        "retried": {
            epoch: sum(entry["times"] for entry in found["retried"]) for epoch, found in (s.get("reads") or {}).items()
        },
        "stages": list((s.get("stages") or {}).values()),
        "slowest": max((stage.get("seconds", 0) for stage in (s.get("stages") or {}).values()), default=0) or 1,
        "failed": s.get("failed") or [],
        "model": _facts((s.get("model") or {}) | (s.get("engine") or {})),
        "labels": s.get("labels") or {},
        "classifier": _facts(s.get("classifier") or {}),
        "config": yaml.safe_dump(shown_config(s["config"]), sort_keys=False, allow_unicode=True)
        if s.get("config")
        else "",
        "paths": s.get("paths") or {},
        "versions": s.get("versions") or {},
        "attribution": s.get("attribution") or [],
        "first_level": [(code, legend.label(code)) for code in legend.codes(legend.levels[0])],
        "colour": lambda code: hex_colour(legend.colour(int(code))),
    }


def _figures(figures: Mapping[str, Path]) -> list[Figure]:
    return [
        Figure(FIGURE_TITLES.get(name, name), base64.b64encode(file.read_bytes()).decode("ascii"))
        for name, file in figures.items()
        if file.is_file()
    ]


def _place(accuracy: Mapping[str, Any]) -> str:
    if accuracy.get("where", "held_out") == "held_out":
        return "in the held-out blocks, whose labels training never saw"
    return "wherever there is a truth, training areas included"


def _statement(accuracy: Mapping[str, Any]) -> str:
    """The one sentence that a reader wants: is the map better than the labels that it learned from?"""
    levels = _levels(accuracy)
    if not levels or levels[0].map is None:
        return ""
    first = levels[0]
    said = f"At {first.name} the map is right on {percent(first.map)} of the pixels {_place(accuracy)}"
    if first.gain is None:
        return f"{said}."
    said += f"; the labels that it learned from are right on {percent(first.labels)} of the same pixels"
    if abs(first.gain) < 0.0005:
        return f"{said}: no difference."
    return f"{said}: {abs(first.gain) * 100:.1f} points {'better' if first.gain > 0 else 'worse'}."


def _levels(accuracy: Mapping[str, Any]) -> list[LevelAccuracy]:
    everywhere = accuracy.get("everywhere") or {}
    sources = (accuracy.get("map"), accuracy.get("labels"), everywhere.get("map"), everywhere.get("labels"))
    names = sorted({name for source in sources if source for name in source})
    return [LevelAccuracy(spoken(name), *((source or {}).get(name) for source in sources)) for name in names]


def _confusion(accuracy: Mapping[str, Any], legend: Legend) -> list[ConfusionRow]:
    """Level 1, or whatever is the coarsest level; rows are the truth."""
    tables = accuracy.get("confusion") or {}
    if not tables:
        return []
    table = tables[min(tables)]
    rows = []
    for code, counts in zip(table["codes"], table["matrix"], strict=True):
        total = sum(counts)
        shares = tuple(n / total if total else None for n in counts)
        rows.append(ConfusionRow(code, legend.label(code), total, shares))
    return rows


def _change_accuracy(accuracy: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Figures of the change map by what was counted."""
    change = accuracy.get("change") or {}
    names = {"held_out": "pixels in held-out blocks", "all": "pixels everywhere", "patches": "patches everywhere"}
    return {names[where]: figures for where, figures in change.items()}


SEAM_KINDS = {"window": "Windows of the net", "chunk": "Chunks", "tile": "Tiles", "scene": "Scenes"}


def _seams(seams: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each kind of border and epoch; ``seen`` where the excess is more than two standard errors and 2 %."""
    rows = []
    for epoch, kinds in seams.items():
        for kind, seam in kinds.items():
            error = seam["error"]
            seen = error is not None and seam["ratio"] - 2 * error > 1.02
            rows.append({"epoch": epoch, "kind": SEAM_KINDS.get(kind, kind), **seam, "seen": seen})
    return rows


def _changes(change: Mapping[str, Any], legend: Legend) -> list[dict[str, Any]]:
    """For each pair of epochs: the area that changed, and the largest transitions."""
    found = []
    for pair, values in change.items():
        ranked = sorted(values.get("transitions", []), key=lambda t: -t["ha"])
        rows = [
            {**t, "from_name": legend.label(t["from"]), "to_name": legend.label(t["to"])}
            for t in ranked[:TOP_TRANSITIONS]
        ]
        rest = ranked[TOP_TRANSITIONS:]
        found.append(
            {
                "pair": pair.replace("-", "–"),
                "matrix": change_matrix(values.get("transitions", []), legend),
                "changed_ha": values.get("changed_ha"),
                "rows": rows,
                "others": len(rest),
                "others_ha": sum(t["ha"] for t in rest),
            }
        )
    return found


def _facts(values: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Free-form values for reading: mappings become groups, lists become lines."""
    facts = []
    for key, value in values.items():
        if value is None or value == {} or value == []:
            continue
        if isinstance(value, Mapping):
            facts.append(Fact(spoken(str(key)), facts=_facts(value)))
        else:
            facts.append(Fact(spoken(str(key)), _plain_text(value)))
    return tuple(sorted(facts, key=lambda fact: fact.long))


def _plain_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{spoken(str(k))} {_plain_text(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = [_item(v) for v in value]
        more = f" and {len(parts) - 60} more" if len(parts) > 60 else ""
        return ", ".join(parts[:60]) + more
    return str(value)


def _item(value: Any) -> str:
    """A member of a list; whole numbers there are codes and positions, and get no thousands separators."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"({_plain_text(value)})"
    return str(value) if isinstance(value, int) else _plain_text(value)


def without_machine_paths(value: Any, root: Path) -> Any:
    """The same values with every absolute path in a text made relative to ``root``, or cut to its end elsewhere.

    A report is passed on; the folders of the machine that made it are nobody's business and of no use to the reader.
    """
    if isinstance(value, Mapping):
        return {k: without_machine_paths(v, root) for k, v in value.items()}
    if isinstance(value, str):
        if value.startswith("/") and "\n" not in value and _is_path(value):
            return _short(value, root)
        return _EMBEDDED_PATH.sub(lambda match: _short(match[0], root), value)
    if isinstance(value, Sequence):
        return [without_machine_paths(v, root) for v in value]
    return value


def _is_path(text: str) -> bool:
    """Whether a text that starts with a slash is a path as a whole, and not a sentence that starts with one."""
    return text != "/" and (" " not in text or Path(text).exists())


def _short(text: str, root: Path) -> str:
    file = PurePosixPath(text.removeprefix("file://"))
    for folder in {PurePosixPath(str(root)), PurePosixPath(str(root.resolve()))}:
        if folder.is_absolute() and file.is_relative_to(folder):
            return file.relative_to(folder).as_posix()
    parts = file.parts[1:]
    # Two names say more than one, but not where the first of them would be a user's.
    kept = parts[-2:] if len(parts) > 3 else parts[-1:]
    return "/".join(("…", *kept))


def spoken(key: str) -> str:
    """A key of the summary for reading: ``held_out`` as "held out", ``level1`` as "level 1"."""
    return re.sub(r"^level(\d)", r"level \1", key).replace("_", " ")


def percent(share: float | None) -> str:
    """A share of 0..1 as ``91.0 %``; an en dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f}\u202f%"


def points(share: float | None) -> str:
    """A difference of shares as ``+6.0``, in percentage points, with a true minus sign."""
    return "–" if share is None else f"{100 * share:+.1f}".replace("-", "\u2212")


def hectares(value: float | None, sign: bool = False) -> str:
    """Hectares: whole above 100, with one decimal below; ``+`` and true minus where ``sign``."""
    if value is None:
        return "–"
    if abs(value) < 0.05 and sign:
        return "0"
    text = f"{value:+,.0f}" if abs(value) >= 99.95 else f"{value:+,.1f}"
    text = text.replace(",", "\u202f").replace("-", "\u2212")
    return text if sign else text.removeprefix("+")


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """Seconds for reading: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(text: str | None) -> str:
    """An ISO time as ``2026-11-23 19:10 UTC``; as it stands where it is no such time."""
    try:
        time = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    zone = time.strftime("%Z").removesuffix("+00:00")
    return f"{time:%Y-%m-%d %H:%M} {zone}".strip()
