"""The provenance of a pixel, for a reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from geoflow.counting import counted
from geoflow.explore import html

if TYPE_CHECKING:
    import pandas as pd

_SHA_LETTERS = 12


@dataclass(frozen=True)
class SceneTrace:
    """A scene whose footprint holds the pixel: whether it was used, and why not; ``cloud`` in per cent of the scene."""

    id: str
    date: str
    cloud: float | None
    used: bool
    why: str = ""

    @property
    def said(self) -> str:
        """What was decided."""
        return "used" if self.used else f"not used: {self.why}"


@dataclass(frozen=True)
class PeriodTrace:
    """One period of one epoch at the pixel.

    Attributes
    ----------
    clear : int or None
        Clear observations that the composite is made of here.
    source : str or None
        The scene that the pixel was taken from, where the method takes whole observations and the store notes it.
    scenes : tuple of SceneTrace
    """

    epoch: str
    period: str
    first: str
    last: str
    composite: str
    clear: int | None
    source: str | None
    scenes: tuple[SceneTrace, ...]

    def told(self) -> str:
        """In one line."""
        used = sum(scene.used for scene in self.scenes)
        days = f", {self.first} to {self.last}" if self.first else ""
        parts = [f"{self.epoch} {self.period}{days}"]
        parts.append(
            f"{counted(len(self.scenes), 'scene')} cover the place, {used} used" if self.scenes else "scenes unknown"
        )
        if self.clear is not None:
            parts.append(
                f"{self.composite or 'composite'} of {self.clear} clear observation{'' if self.clear == 1 else 's'}"
            )
        if self.source is not None:
            parts.append(f"taken from {self.source}")
        return "; ".join(parts)


@dataclass(frozen=True)
class ModelTrace:
    """The model of some epochs' maps: its sha256, and ``card``, its model.json, where the run keeps it."""

    sha256: str
    epochs: tuple[str, ...]
    engine: str
    card: Mapping[str, Any]

    def told(self) -> list[str]:
        """In lines."""
        lines = [
            f"maps {', '.join(self.epochs)}: sha256 {self.sha256[:_SHA_LETTERS]}, run by {self.engine or 'unknown'}"
        ]
        if not self.card:
            return [*lines, "its model.json is not here"]
        inputs, training = self.card.get("inputs", {}), self.card.get("training", {})
        bands, periods = inputs.get("bands", []), inputs.get("periods", [])
        lines.append(
            f"{self.card.get('architecture')} with {self.card.get('encoder')}, "
            f"{counted(len(self.card.get('codes', ())), 'class')}, "
            f"{counted(len(bands), 'band')} of {', '.join(periods)}"
        )
        if pixels := training.get("label_pixels"):
            lines.append(f"learned from {sum(pixels.values()):,} labelled pixels")
        return lines


@dataclass(frozen=True)
class TaskTrace:
    """The task that made the pixel in one stage; ``id`` is the sha256 of everything that alters its pixels."""

    key: str
    id: str
    seconds: float | None


@dataclass(frozen=True)
class Provenance:
    """What is known of how a pixel came about; ``missing`` says what is not, and why."""

    lon: float
    lat: float
    tile: str | None
    periods: tuple[PeriodTrace, ...] = ()
    models: tuple[ModelTrace, ...] = ()
    tasks: tuple[TaskTrace, ...] = ()
    job: str = ""
    started: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    attribution: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def scenes(self) -> pd.DataFrame:
        """All scenes that cover the pixel: ``epoch``, ``period``, ``date``, ``id``, ``cloud``, ``used``, ``why``."""
        import pandas as pd

        rows = [(p.epoch, p.period, s.date, s.id, s.cloud, s.used, s.why) for p in self.periods for s in p.scenes]
        return pd.DataFrame(rows, columns=["epoch", "period", "date", "id", "cloud", "used", "why"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        lines = [self._title()]
        for period in self.periods:
            lines.append(f"  {period.told()}")
            lines += [f"    {s.date}  {_cloud(s):>7}  {s.id}  {s.said}" for s in period.scenes]
        lines += [f"  model of {model.told()[0]}" for model in self.models]
        lines += [f"    {text}" for model in self.models for text in model.told()[1:]]
        lines += [f"  {text}" for text in self._rest()]
        lines += [f"  not known: {text}" for text in self.missing]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [html.line(escape(self._title()))]
        for period in self.periods:
            parts.append(html.heading(period.told()))
            rows = [(escape(s.date), _cloud(s), escape(s.id), escape(s.said)) for s in period.scenes]
            parts.append(html.table(rows, ("date", "cloud", "scene", "")) if rows else "")
        for model in self.models:
            first, *others = model.told()
            parts += [html.heading(f"Model of {first}"), *(html.line(escape(text)) for text in others)]
        parts += [html.line(escape(text)) for text in self._rest()]
        if self.tasks:
            made = [
                (escape(t.key), t.id[:_SHA_LETTERS], "" if t.seconds is None else f"{t.seconds:g} s")
                for t in self.tasks
            ]
            parts.append(html.heading("Tasks that made it") + html.table(made, ("task", "id", "took")))
        parts += [html.line(html.quiet(f"not known: {text}")) for text in self.missing]
        return "".join(parts)

    def _title(self) -> str:
        return f"{self.lon:.6f}, {self.lat:.6f}" + (f", tile {self.tile}" if self.tile else "")

    def _rest(self) -> list[str]:
        lines = []
        if self.job:
            lines.append(f"job {self.job}, run on {self.started}")
        if self.versions:
            lines.append(f"geoflow {self.versions.get('geoflow')}, Python {self.versions.get('python')}")
        lines += list(self.attribution)
        return lines


def _cloud(scene: SceneTrace) -> str:
    return "" if scene.cloud is None else f"{scene.cloud:.0f} %"
