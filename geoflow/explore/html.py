"""Pieces of HTML that look right in a light and in a dark notebook: no colours but those of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from geoflow.colours import Colour, hex_colour

_CELL = "padding:2px 10px 2px 0;text-align:left;vertical-align:top"
_QUIET = "opacity:.65"


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Rows of cells that are HTML already."""
    lines = [_row("td", "", row) for row in rows]
    if heads:
        lines.insert(0, _row("th", f";{_QUIET};font-weight:normal", [escape(head) for head in heads]))
    return f'<table style="border-collapse:collapse;margin:4px 0">{"".join(lines)}</table>'


def _row(tag: str, style: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}{style}">{cell}</{tag}>' for cell in cells) + "</tr>"


def heading(text: str) -> str:
    """A bold line."""
    return f'<div style="font-weight:bold;margin-top:6px">{escape(text)}</div>'


def quiet(text: str) -> str:
    """Text that matters less."""
    return f'<span style="{_QUIET}">{escape(text)}</span>'


def line(text: str) -> str:
    """A line of text that is HTML already."""
    return f"<div>{text}</div>"


def swatch(colour: Colour) -> str:
    """A small square in the colour of a class."""
    style = f"display:inline-block;width:.8em;height:.8em;margin-right:.4em;background:{hex_colour(colour)}"
    return f'<span style="{style};border:1px solid rgba(128,128,128,.6)"></span>'
