"""The sheet that a map is printed on: where panels and key go, and the furniture around them.

Lengths are inches from the top left corner of the sheet, `Box` and `arrange` know no matplotlib, and `Paper` draws. No
pyplot: figures are plain objects, so threads and notebooks do not disturb each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.jobs.mapkey import SWATCH_STEP, Column, Key, KeyLine, fit, lay_out, text_width, wrap
from geoflow.places import local_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 160
INK, MUTED, LINE = "#1f2933", "#66707c", "#b9c0c9"
NODATA_COLOUR = (240, 240, 237)
"""Behind the maps, so that what was not observed is visibly no class."""

PAGE_WIDTH, MIN_WIDTH, PANELS_HEIGHT = 13.0, 7.0, 9.4
LEFT, RIGHT, GUTTER = 0.42, 0.25, 0.24
ROW_HEAD, ROW_FOOT = 0.36, 0.24
KEY_WIDTH, KEY_GAP, KEY_MIN_COLUMN, KEY_MAX_COLUMN = 3.5, 0.35, 3.0, 4.2
TITLE_PT, SUBTITLE_PT, NOTE_PT = 15, 8.5, 6.5
SUBTITLE_STEP = 0.16


@dataclass(frozen=True)
class Box:
    """A rectangle on the sheet: position of its top left corner and size, in inches."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Sheet:
    """Where everything goes.

    Attributes
    ----------
    width, height : float
        Of the sheet.
    rows : tuple of tuple of Box
        Panels, row by row; all rows are of one width.
    key : Box
        Beside or below the panels.
    columns : tuple of Column
        The key, cut into columns.
    """

    width: float
    height: float
    rows: tuple[tuple[Box, ...], ...]
    key: Box
    columns: tuple[Column, ...]

    @property
    def panels(self) -> list[Box]:
        """All panels in reading order."""
        return [box for row in self.rows for box in row]


@dataclass(frozen=True)
class Texts:
    """What stands above and below the maps."""

    title: str
    subtitle: str
    attribution: str


def arrange(aspect: float, context: int, maps: int, key: Key, texts: Texts) -> Sheet:
    """Find the arrangement that shows most of the maps.

    Panels stand in one row, or with the context (composites, labels) in a row of their own above the maps; the key
    stands beside them if it fits, or below. Of these the one with the largest maps is taken, the context counting a
    third.

    Parameters
    ----------
    aspect : float
        Height over width of a panel.
    context, maps : int
        Number of panels that come first, and of the maps that matter most.
    key : Key
    texts : Texts
        Its title and attribution are wrapped, so they decide on the height as well.
    """
    splits = [(context, maps), (context + maps,)] if context else [(maps,)]
    best: tuple[float, Sheet] | None = None
    for rows in splits:
        for beside in (True, False):
            sheet = _sheet(aspect, rows, key, texts, beside)
            if sheet is None:
                continue
            areas = [box.width * box.height for box in sheet.panels]
            score = sum(areas[context:]) + sum(areas[:context]) / 3
            if best is None or score > best[0]:
                best = score, sheet
    assert best is not None  # the key below always fits
    return best[1]


def _sheet(aspect: float, counts: Sequence[int], key: Key, texts: Texts, beside: bool) -> Sheet | None:
    width = PAGE_WIDTH - LEFT - RIGHT - (KEY_WIDTH + KEY_GAP if beside else 0)
    room = PANELS_HEIGHT - len(counts) * (ROW_HEAD + ROW_FOOT)
    # The height of all rows is linear in their common width: sum of aspect * (width - gutters) / count.
    slope = aspect * sum(1 / n for n in counts)
    gutters = aspect * sum((n - 1) * GUTTER / n for n in counts)
    width = min(width, (room + gutters) / slope)
    page = max(MIN_WIDTH, LEFT + width + RIGHT + (KEY_WIDTH + KEY_GAP if beside else 0))
    y = _head_height(texts, page)
    rows = []
    for n in counts:
        panel = (width - (n - 1) * GUTTER) / n
        y += ROW_HEAD
        rows.append(tuple(Box(LEFT + i * (panel + GUTTER), y, panel, aspect * panel) for i in range(n)))
        y += aspect * panel + ROW_FOOT
    top = rows[0][0].y
    if beside:
        x, room_below = LEFT + width + KEY_GAP, y - ROW_FOOT - top
        columns = lay_out(key, 1, min(KEY_MAX_COLUMN, page - RIGHT - x))
        if columns[0].height > room_below:
            return None
        box = Box(x, top, page - RIGHT - x, room_below)
    else:
        room_across = page - LEFT - RIGHT
        most = max(1, int((room_across + KEY_GAP) / (KEY_MIN_COLUMN + KEY_GAP)))
        count = min(most, key.most_columns)
        column = min(KEY_MAX_COLUMN, (room_across - (count - 1) * KEY_GAP) / count)
        columns = lay_out(key, count, column)
        height = max(column.height for column in columns)
        box = Box(LEFT, y + 0.12, room_across, height)
        y = box.y + height
    notes = wrap(texts.attribution, NOTE_PT, page - LEFT - RIGHT) if texts.attribution else []
    return Sheet(page, y + 0.2 + 0.13 * len(notes) + 0.1, tuple(rows), box, tuple(columns))


def _head_height(texts: Texts, page: float) -> float:
    return 0.28 + 0.27 * len(_title_lines(texts, page)) + SUBTITLE_STEP * len(_subtitle_lines(texts, page)) + 0.04


def _subtitle_lines(texts: Texts, page: float) -> list[str]:
    return wrap(texts.subtitle, SUBTITLE_PT, page - LEFT - RIGHT - 0.6)


def _title_lines(texts: Texts, page: float) -> list[str]:
    return wrap(texts.title, TITLE_PT, page - LEFT - RIGHT - 0.6, bold=True)


class Paper:
    """A figure with inches on both axes, and the furniture of a printed map.

    Parameters
    ----------
    sheet : Sheet
    texts : Texts
    bounds : tuple
        (left, right, bottom, top) of every panel in metres.
    """

    def __init__(self, sheet: Sheet, texts: Texts, bounds: tuple[float, float, float, float]) -> None:
        from matplotlib.figure import Figure

        self.sheet = sheet
        self.bounds = bounds
        self.figure = Figure(figsize=(sheet.width, sheet.height), dpi=DPI, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, sheet.width)
        self.axes.set_ylim(sheet.height, 0)
        self.axes.set_axis_off()
        self._head(texts)
        self._foot(texts.attribution)

    def text(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        """Text with its baseline at ``y``. Dollar signs are dollar signs: no mathematics."""
        style = {"color": INK, "family": "DejaVu Sans", "va": "baseline", **style}
        self.axes.text(x, y, text, size=size, parse_math=False, **style)

    def block(self, box: Box, colour: str | tuple[float, ...], edge: str = "none") -> None:
        """A filled rectangle."""
        from matplotlib.patches import Rectangle

        patch = Rectangle((box.x, box.y), box.width, box.height, facecolor=colour, edgecolor=edge, linewidth=0.4)
        self.axes.add_patch(patch)

    def panel(
        self,
        box: Box,
        image: NDArray[np.uint8],
        extent: tuple[float, float, float, float],
        title: str,
        note: str = "",
        smooth: bool = False,
    ) -> Axes:
        """One map: picture, title, coordinates in kilometres.

        Parameters
        ----------
        box : Box
        image : uint8 array, dims (y, x, 4)
            Red, green, blue, alpha.
        extent : tuple
            Of the image, as `quicklook` gives it.
        title, note : str
            Above the panel; the note, in grey, only where there is room for it.
        smooth : bool
            For photographs. Without it, no colour appears that the image does not hold.
        """
        w, h = self.sheet.width, self.sheet.height
        axes = self.figure.add_axes((box.x / w, 1 - (box.y + box.height) / h, box.width / w, box.height / h))
        axes.set_facecolor(rgb(NODATA_COLOUR))
        axes.imshow(image, extent=extent, interpolation="auto" if smooth else "nearest", aspect="auto")
        axes.set_xlim(*self.bounds[:2])
        axes.set_ylim(*self.bounds[2:])
        for spine in axes.spines.values():
            spine.set(color=LINE, linewidth=0.6)
        self._ticks(axes, box)
        first = box is self._row(box)[0]
        axes.tick_params(labelleft=first)
        room = box.width - (0.32 * box.width if box is self._row(box)[-1] else 0)
        title = fit(title, 9, room, bold=True)
        self.text(box.x, box.y - 0.08, title, 9, weight="bold")
        taken = text_width(title, 9, bold=True) + 0.1
        if note and text_width(note, 7.5) <= room - taken:
            self.text(box.x + taken, box.y - 0.08, note, 7.5, color=MUTED)
        return axes

    def _row(self, box: Box) -> tuple[Box, ...]:
        return next(row for row in self.sheet.rows if any(box is member for member in row))

    def _ticks(self, axes: Axes, box: Box) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for axis, size in ((axes.xaxis, box.width), (axes.yaxis, box.height)):
            axis.set_major_locator(MaxNLocator(nbins=max(2, min(5, int(size / 1.2))), steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:.8g}"))
        axes.tick_params(length=2.5, width=0.5, color=LINE, labelsize=6.5, labelcolor=MUTED, pad=2)
        for label in axes.get_yticklabels():
            label.set(rotation=90, va="center")

    def scale_bars(self) -> None:
        """A scale bar above the last panel of each row, for rows differ in scale."""
        across = self.bounds[1] - self.bounds[0]
        for row in self.sheet.rows:
            box = row[-1]
            length = round_length(across * 0.28)
            width = length / across * box.width
            x, y = box.x + box.width - width, box.y - 0.1
            self.block(Box(x, y, width / 2, 0.045), INK, INK)
            self.block(Box(x + width / 2, y, width / 2, 0.045), "white", INK)
            label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
            # Flush right with the panel where the label is wider than the bar.
            half = text_width(label, NOTE_PT) / 2
            self.text(min(x + width / 2, box.x + box.width - half), y - 0.045, label, NOTE_PT, ha="center", color=MUTED)

    def key(self) -> None:
        """The key, column by column."""
        x = self.sheet.key.x
        for column in self.sheet.columns:
            y = self.sheet.key.y
            for line in column.lines:
                self._key_line(line, x, y, column.width)
                y += line.height
            x += column.width + KEY_GAP

    def _key_line(self, line: KeyLine, x: float, y: float, width: float) -> None:
        base = y + line.space + 0.12
        for i, colour in enumerate(line.swatches):
            self.block(Box(x + i * SWATCH_STEP, base - 0.1, 0.22, 0.12), rgb(colour), LINE)
            if i:
                self.text(x + i * SWATCH_STEP - 0.1, base, "→", line.size, ha="center", color=MUTED)
        style = {"weight": "bold"} if line.bold else {}
        ink = MUTED if line.quiet else INK
        if line.code:
            self.text(x + line.code_at, base, line.code, line.size, color=ink, **style)
        for i, part in enumerate(line.parts):
            self.text(x + line.text_at, base + i * line.step, part, line.size, color=ink, **style)
        for i, value in enumerate(reversed(line.values)):
            self.text(x + width - i * line.value_width, base, value, line.size, ha="right", color=ink, **style)
        if line.rule:
            self.block(Box(x, y + line.height - 0.02, width, 0), "none", LINE)

    def _head(self, texts: Texts) -> None:
        y = 0.28
        for part in _title_lines(texts, self.sheet.width):
            y += 0.27
            self.text(LEFT, y - 0.12, part, TITLE_PT, weight="bold")
        for i, part in enumerate(_subtitle_lines(texts, self.sheet.width)):
            self.text(LEFT, y + 0.11 + i * SUBTITLE_STEP, part, SUBTITLE_PT, color=MUTED)
        self._north(self.sheet.width - RIGHT - 0.14, 0.2)

    def _north(self, x: float, y: float) -> None:
        """An arrow to grid north: up, on every sheet, because grids are north up."""
        from matplotlib.patches import Polygon

        for side, fill in ((-1, INK), (1, "white")):
            corners = [(x, y), (x + side * 0.1, y + 0.34), (x, y + 0.26)]
            self.axes.add_patch(Polygon(corners, closed=True, facecolor=fill, edgecolor=INK, linewidth=0.6))
        self.text(x, y + 0.47, "N", 8, weight="bold", ha="center")

    def _foot(self, attribution: str) -> None:
        lines = wrap(attribution, NOTE_PT, self.sheet.width - LEFT - RIGHT) if attribution else []
        for i, part in enumerate(lines):
            self.text(LEFT, self.sheet.height - 0.14 - 0.13 * (len(lines) - 1 - i), part, NOTE_PT, color=MUTED)

    def save(self, path: Path) -> None:
        """Write the PNG so that the file is either the old one or the whole new one."""
        with local_file(path) as file:
            # Without the name and version of the software, the same map gives the same bytes.
            self.figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})


def rgb(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    """0..255 as matplotlib's 0..1."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def round_length(most: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is not above ``most``."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (5, 2, 1) if step * power <= most * (1 + 1e-9))
