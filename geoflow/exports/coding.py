"""How class codes are numbered in a file: one byte a pixel, with a palette, as GIS programs expect it.

The store holds the legend's own codes (312 at level 3), which need two bytes. In a file, in this order:

1. ``GRID_CODE``: at the deepest level of a legend in which every class has one number of a raster edition of its own,
   that number. CORINE has them from the EEA: 1 is 111, 44 is 523.
2. ``code``: where all codes of the level are below 255, the codes themselves (levels 1 and 2 of CORINE).
3. ``rank``: up to 254 classes are numbered 1, 2, 3 ... in ascending order of their codes.
4. ``code`` again, as uint16, where there are more.

All are functions of the legend alone: the same class has the same number in every file, whatever occurs in it. 0 is
nodata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.colours import Colour
from geoflow.legends import NODATA_CODE, Legend, translate

_MOST = 254
"""The largest number of a class in a file of bytes; `geoflow.legends.translate` needs 255 for what is unknown."""


@dataclass(frozen=True)
class CodedClass:
    """One class as it stands in a file: its number there, code and name, names of the classes that hold it, colour.

    ``names`` are of levels 1, 2 ... down to its own.
    """

    value: int
    code: int
    name: str
    names: tuple[str, ...]
    colour: Colour


@dataclass(frozen=True)
class Coding:
    """The numbering of one level of a legend.

    Attributes
    ----------
    legend : Legend
    level : int
    """

    legend: Legend
    level: int

    @property
    def scheme(self) -> str:
        """``GRID_CODE``, ``code`` or ``rank``; see the module's text."""
        return self._numbering[0]

    @property
    def values(self) -> Mapping[int, int]:
        """Code to number in the file."""
        return self._numbering[1]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """uint8, or uint16 where there are more than 254 classes."""
        return np.dtype(np.uint8 if max(self.values.values()) <= _MOST else np.uint16)

    @cached_property
    def classes(self) -> tuple[CodedClass, ...]:
        """All classes of the level, by their number in the file."""
        legend, above = self.legend, [one for one in self.legend.levels if one <= self.level]
        return tuple(
            CodedClass(
                value,
                code,
                legend.label(code),
                tuple(legend.label(legend.ancestor(code, one)) for one in above),
                legend.colour(code),
            )
            for code, value in sorted(self.values.items(), key=lambda pair: pair[1])
        )

    def encode(self, codes: NDArray[Any]) -> NDArray[Any]:
        """Codes of the level as numbers in the file; 0 stays 0.

        Raises
        ------
        LegendError
            If a code is not of the level.
        """
        return translate(codes, self.values, self.dtype, self.legend.name)

    def decode(self, values: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `encode`, with the dtype of the level in the store."""
        table = {value: code for code, value in self.values.items()}
        return translate(values, table, self.legend.dtype(self.level), f"{self.legend.name} in a file")

    @cached_property
    def _numbering(self) -> tuple[str, dict[int, int]]:
        codes = self.legend.codes(self.level)
        if self.level == self.legend.deepest and (found := _grid_codes(self.legend)):
            return "GRID_CODE", found
        if max(codes) > _MOST and len(codes) <= _MOST:
            return "rank", {code: 1 + at for at, code in enumerate(codes)}
        return "code", {code: code for code in codes}


def _grid_codes(legend: Legend) -> dict[int, int] | None:
    """Code to number of the raster edition, if every class has exactly one that fits in a byte."""
    found: dict[int, list[int]] = {}
    for number, code in legend.grid_codes.items():
        if code != NODATA_CODE:
            found.setdefault(code, []).append(number)
    if set(found) != set(legend.codes()) or any(len(n) > 1 or not 1 <= n[0] <= _MOST for n in found.values()):
        return None
    return {code: numbers[0] for code, numbers in found.items()}
