"""Colours of classes, as numbers and as people write them."""

from __future__ import annotations

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


def hex_colour(colour: Colour) -> str:
    """``(230, 0, 77)`` as ``"#e6004d"``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def parse_colour(text: str) -> Colour:
    """``"#e6004d"`` as ``(230, 0, 77)``.

    Raises
    ------
    ValueError
        If the text is not ``#`` and six hexadecimal digits.
    """
    digits = text.strip().removeprefix("#")
    if len(digits) != 6 or not text.strip().startswith("#"):
        raise ValueError(f"{text!r} is not a colour such as #e6004d")
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue
