"""The key of a map: entries with swatches, codes, names and figures, laid out in columns.

Lengths are inches. Text is measured with the font that matplotlib ships, so a name is wrapped before it is drawn, and
never runs into its neighbour.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache

Colour = tuple[int, int, int]

SIZE_PT, HEAD_PT = 7.5, 8.0
STEP = 0.125
"""From one line of a wrapped name to the next."""
SECTION_GAP = 0.2
SWATCH, SWATCH_STEP = 0.3, 0.42
_ELLIPSIS = "…"


@dataclass(frozen=True)
class Entry:
    """One line of a key before it is laid out.

    ``swatches`` holds one colour, or two for "from, to"; ``values`` the figures on the right, already formatted.
    """

    text: str
    code: str = ""
    swatches: tuple[Colour, ...] = ()
    values: tuple[str, ...] = ()
    bold: bool = False


@dataclass(frozen=True)
class Section:
    """Entries under one caption; ``heads`` stand above their figures, ``value_width`` is the width of one figure."""

    caption: str
    entries: tuple[Entry, ...]
    heads: tuple[str, ...] = ()
    value_width: float = 0.48


@dataclass(frozen=True)
class Key:
    """A key of one or more sections; sections stand side by side where there is room, else one below the other."""

    sections: tuple[Section, ...]

    @property
    def most_columns(self) -> int:
        """More columns than this would leave them nearly empty."""
        return max(len(self.sections), sum(math.ceil(len(s.entries) / 5) for s in self.sections))


@dataclass(frozen=True)
class KeyLine:
    """A line of the key with its place within the column: what to draw, and nothing to decide."""

    parts: tuple[str, ...]
    height: float
    code: str = ""
    code_at: float = 0.0
    text_at: float = 0.0
    swatches: tuple[Colour, ...] = ()
    values: tuple[str, ...] = ()
    value_width: float = 0.0
    bold: bool = False
    quiet: bool = False
    rule: bool = False
    size: float = SIZE_PT
    space: float = 0.0
    step: float = STEP


@dataclass(frozen=True)
class Column:
    """A column of the key."""

    lines: tuple[KeyLine, ...]
    width: float

    @property
    def height(self) -> float:
        """Of all its lines."""
        return sum(line.height for line in self.lines)


def lay_out(key: Key, columns: int, width: float) -> list[Column]:
    """Cut a key into columns of one width, as even as its lines allow; a group's heading never ends a column.

    Parameters
    ----------
    key : Key
    columns : int
        At most this many; with fewer columns than sections, the sections stand below each other in one.
    width : float
        Of a column, in inches.
    """
    laid = [_section_lines(section, width) for section in key.sections]
    if columns < len(laid):
        (first, lines), *others = laid
        stacked = [first, *lines, *(line for head, body in others for line in (_lowered(head), *body))]
        return [Column(tuple(stacked), width)]
    shares = _share_columns([sum(line.height for line in body) for _, body in laid], columns)
    result = []
    for (head, body), share in zip(laid, shares, strict=True):
        result += [Column((head, *part), width) for part in _split(body, share)]
    return result


def _lowered(head: KeyLine) -> KeyLine:
    """A caption with room above it, to stand below another section."""
    return replace(head, space=SECTION_GAP, height=head.height + SECTION_GAP)


def _share_columns(heights: list[float], columns: int) -> list[int]:
    """Columns for each section: one each, and the others one by one to where they shorten the key most."""
    shares = [1] * len(heights)
    for _ in range(columns - len(heights)):
        tallest = max(range(len(heights)), key=lambda i: heights[i] / shares[i])
        shares[tallest] += 1
    return shares


def _split(lines: list[KeyLine], columns: int) -> list[list[KeyLine]]:
    """Fill columns in order with the least height at which that many are enough."""
    heights = [line.height for line in lines]
    low, high = max(heights, default=0.0), sum(heights)
    for _ in range(30):
        middle = (low + high) / 2
        if len(_fill(lines, middle)) <= columns:
            high = middle
        else:
            low = middle
    return _fill(lines, high + 1e-9)


def _fill(lines: list[KeyLine], height: float) -> list[list[KeyLine]]:
    columns: list[list[KeyLine]] = [[]]
    used = 0.0
    for i, line in enumerate(lines):
        needed = line.height + (lines[i + 1].height if line.bold and i + 1 < len(lines) else 0)
        if columns[-1] and used + needed > height:
            columns.append([])
            used = 0.0
        columns[-1].append(line)
        used += line.height
    return columns


def _section_lines(section: Section, width: float) -> tuple[KeyLine, list[KeyLine]]:
    swatches = max((len(entry.swatches) for entry in section.entries), default=0)
    code_at = SWATCH + (swatches - 1) * SWATCH_STEP if swatches else 0.0
    codes = [text_width(entry.code, SIZE_PT) for entry in section.entries if entry.code and not entry.bold]
    text_at = code_at + (max(codes) + 0.09 if codes else 0.0)
    figures = max((len(entry.values) for entry in section.entries), default=0) * section.value_width
    head = KeyLine(
        parts=(fit(section.caption, SIZE_PT, width - figures - 0.05),),
        height=0.2,
        values=section.heads,
        value_width=section.value_width,
        quiet=True,
        rule=True,
    )
    body: list[KeyLine] = []
    for entry in section.entries:
        # A heading starts at the very left, where the swatches of its group are.
        at = text_at if entry.code else code_at
        if entry.bold:
            at = text_width(entry.code, SIZE_PT, bold=True) + 0.09 if entry.code else 0.0
        parts = wrap(entry.text, SIZE_PT, width - at - figures - 0.05, bold=entry.bold)
        space = 0.07 if entry.bold and body else 0.0
        body.append(
            KeyLine(
                parts=tuple(parts),
                height=space + 0.165 + STEP * (len(parts) - 1),
                code=entry.code,
                code_at=0.0 if entry.bold else code_at,
                text_at=at,
                swatches=entry.swatches,
                values=entry.values,
                value_width=section.value_width,
                bold=entry.bold,
                space=space,
            )
        )
    return head, body


@lru_cache(maxsize=4096)
def text_width(text: str, size_pt: float, bold: bool = False) -> float:
    """Width of a text in inches, in the font that the maps are drawn with."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=size_pt)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def fit(text: str, size_pt: float, width: float, bold: bool = False) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    if text_width(text, size_pt, bold) <= width:
        return text
    # More letters are never narrower, so the longest beginning that fits can be searched by halving.
    end = bisect_right(range(1, len(text)), width, key=lambda n: text_width(text[:n] + _ELLIPSIS, size_pt, bold))
    return text[:end].rstrip() + _ELLIPSIS


def wrap(text: str, size_pt: float, width: float, bold: bool = False) -> list[str]:
    """The text in lines that fit; a single word that is too long is cut off."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size_pt, bold) <= width:
            lines[-1] = joined
        else:
            lines.append(fit(word, size_pt, width, bold))
    return lines or [""]
