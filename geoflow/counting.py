"""Numbers with what they count: "1 zone", "12,345 patches"."""

from __future__ import annotations

_HISSING = ("ch", "sh", "s", "x")


def counted(number: int, noun: str) -> str:
    """A number and a noun, which is in the plural unless there is one of it.

    Parameters
    ----------
    number : int
    noun : str
        In the singular; English and regular: zone, patch, class.
    """
    ending = "" if number == 1 else "es" if noun.endswith(_HISSING) else "s"
    return f"{number:,} {noun}{ending}"
