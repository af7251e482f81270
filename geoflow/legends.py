"""Legends: class codes, names, colours and levels.

A map holds its legend's own codes (311 at level 3, 31, 3), never positions in a list; 0 is nodata in every map. Codes
are unique within a legend, over all its levels, so a code alone says which class of which level it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.colours import Colour, hex_colour, parse_colour
from geoflow.errors import LegendError
from geoflow.legendnames import NameIndex, plain_name

NODATA_CODE = 0
"""Nodata of every class map."""

BUILTIN = ("corine", "bigearthnet-43", "bigearthnet-19")
"""The legends that `legend` knows by name."""

MAX_CODE = 65534
"""The largest code: 65535 marks what is unknown in the uint16 tables of `translate`."""


@dataclass(frozen=True)
class LegendClass:
    """One class: its code, name, colour (red, green, blue; 0..255) and the code of the class one level up.

    ``alias`` holds other names that it goes by, separated by ``|``.
    """

    code: int
    name: str
    colour: Colour
    parent: int | None = None
    alias: str | None = None


@dataclass(frozen=True)
class Legend:
    """Classes on one or more nested levels.

    Parameters
    ----------
    name : str
        ``"corine"`` or the like, or the stem of the CSV file.
    classes : tuple of LegendClass
        All levels together. A class without a parent is of level 1, its children of level 2, and so on; every class
        that has no child must lie on the same, deepest level.
    nodata_codes : tuple of int
        Codes found in sources that are no class and become 0 (CORINE: 990, 995, 999).
    grid_codes : mapping of int to int
        Codes of a raster edition to codes of the deepest level or 0 (CORINE: GRID_CODE 1..44 and its nodata).
    clc_codes : mapping of int to int
        CLC level-3 code to the code of the deepest level here that holds it, 0 where left out; empty for legends
        unrelated to CORINE.

    Raises
    ------
    LegendError
        If codes repeat or are out of 1..65534, a parent is missing, names repeat on a level, or branches differ in
        depth.
    """

    name: str
    classes: tuple[LegendClass, ...]
    nodata_codes: tuple[int, ...] = ()
    grid_codes: Mapping[int, int] = field(default_factory=dict, hash=False)
    clc_codes: Mapping[int, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.classes:
            raise LegendError(f"legend {self.name!r} has no classes")
        seen: set[int] = set()
        for entry in self.classes:
            if not 1 <= entry.code <= MAX_CODE:
                raise LegendError(f"legend {self.name!r}: code {entry.code} is not in 1..{MAX_CODE} (0 is nodata)")
            if entry.code in seen:
                raise LegendError(f"legend {self.name!r}: code {entry.code} appears twice")
            seen.add(entry.code)
        for entry in self.classes:
            if entry.parent is not None and entry.parent not in seen:
                raise LegendError(f"legend {self.name!r}: code {entry.code} has the parent {entry.parent}, not a class")
        self._check_tree()
        self._check_names()
        deepest = {*self.codes(self.deepest), NODATA_CODE}
        for what, table in (("grid_codes", self.grid_codes), ("clc_codes", self.clc_codes)):
            if strangers := sorted(set(table.values()) - deepest):
                raise LegendError(f"legend {self.name!r}: {what} lead to {strangers}, not codes of its deepest level")
        if clash := sorted(seen & set(self.nodata_codes)):
            raise LegendError(f"legend {self.name!r}: {clash} are both classes and nodata")

    def _check_tree(self) -> None:
        parents = {entry.parent for entry in self.classes}
        depths = {self.level_of(e.code): e.code for e in self.classes if e.code not in parents}
        if len(depths) > 1:
            where = ", ".join(f"{code} on level {level}" for level, code in sorted(depths.items()))
            raise LegendError(f"legend {self.name!r}: classes without children lie on several levels: {where}")

    def _check_names(self) -> None:
        for level in self.levels:
            names: dict[str, int] = {}
            for code in self.codes(level):
                first = names.setdefault(plain_name(self.label(code)), code)
                if first != code:
                    raise LegendError(f"legend {self.name!r}: codes {first} and {code} have the same name")

    @cached_property
    def _by_code(self) -> dict[int, LegendClass]:
        return {entry.code: entry for entry in self.classes}

    @cached_property
    def _levels(self) -> dict[int, tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        for code in sorted(self._by_code):
            found.setdefault(self.level_of(code), []).append(code)
        return {level: tuple(codes) for level, codes in sorted(found.items())}

    @cached_property
    def _names(self) -> NameIndex:
        """All names of all classes; where one is met on several levels, as "Pastures", the deepest wins."""
        return NameIndex.of([[(code, self._names_of(code)) for code in self.codes(level)] for level in self.levels])

    def _names_of(self, code: int) -> list[str]:
        entry = self._by_code[code]
        return [name for name in (*(entry.alias or "").split("|"), entry.name) if name]

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels, coarsest first: ``(1, 2, 3)`` for CORINE, ``(1,)`` for a flat table."""
        return tuple(self._levels)

    @property
    def deepest(self) -> int:
        """The finest level, the one that sources are rasterised at."""
        return max(self._levels)

    def codes(self, level: int | None = None) -> tuple[int, ...]:
        """The codes of a level (the deepest by default), ascending.

        Raises
        ------
        LegendError
            If the legend has no such level.
        """
        level = self.deepest if level is None else level
        if level not in self._levels:
            raise LegendError(f"legend {self.name!r} has the levels {self.levels}, not {level}")
        return self._levels[level]

    def level_of(self, code: int) -> int:
        """The level that a code belongs to."""
        level, entry = 1, self._class(code)
        while entry.parent is not None:
            if level > len(self.classes):
                raise LegendError(f"legend {self.name!r}: the parents of code {code} run in a circle")
            level, entry = level + 1, self._class(entry.parent)
        return level

    def label(self, code: int, level: int | None = None) -> str:
        """The name of a class; with ``level``, the code must belong to that level."""
        entry = self._class(code)
        if level is not None and code not in self.codes(level):
            raise LegendError(f"legend {self.name!r}: code {code} is of level {self.level_of(code)}, not {level}")
        return entry.name

    def colour(self, code: int) -> Colour:
        """(red, green, blue), 0..255."""
        return self._class(code).colour

    def parent(self, code: int) -> int | None:
        """The code one level up; None on level 1."""
        return self._class(code).parent

    def children(self, code: int) -> tuple[int, ...]:
        """The codes one level down, ascending; empty on the deepest level."""
        self._class(code)
        return tuple(sorted(entry.code for entry in self.classes if entry.parent == code))

    def ancestor(self, code: int, level: int) -> int:
        """The code at ``level`` that holds ``code``; the code itself at its own level.

        Raises
        ------
        LegendError
            If ``level`` is finer than the code's own.
        """
        self.codes(level)
        own = self.level_of(code)
        if level > own:
            raise LegendError(f"legend {self.name!r}: code {code} is of level {own}, coarser than level {level}")
        current = code
        for _ in range(own - level):
            above = self._class(current).parent
            assert above is not None  # level_of counted these steps
            current = above
        return current

    def code_of(self, name_or_code: str | int | np.integer) -> int:
        """The code of a class given by code (``311``, ``"311"``) or name.

        Names are compared without case, punctuation and repeated spaces, then also without spaces and plurals, and
        BigEarthNet's and the newer EEA wordings are known ("Bare rock" for "Bare rocks", "Coastal salt marshes" for
        "Salt marshes"). A name met on several levels, such as "Pastures", means the deepest.

        Raises
        ------
        LegendError
            If the legend holds no such class; the message suggests near names.
        """
        if isinstance(name_or_code, int | np.integer) and not isinstance(name_or_code, bool):
            return self._class(int(name_or_code)).code
        text = str(name_or_code).strip()
        if text.isdecimal():
            return self._class(int(text)).code
        code = self._names.find(text)
        if code is None:
            near = dict.fromkeys(repr(self.label(code)) for code in self._names.near(text))
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise LegendError(f"legend {self.name!r} has no class named {name_or_code!r}{hint}")
        return code

    def to_level(self, codes: NDArray[np.integer], level: int) -> NDArray[np.unsignedinteger]:
        """Codes of the deepest level, taken to a coarser one.

        Parameters
        ----------
        codes : integer array of any shape
            Codes of the deepest level; 0 and ``nodata_codes`` are nodata.
        level : int

        Returns
        -------
        array of ``dtype(level)``, same shape, nodata 0

        Raises
        ------
        LegendError
            If a value is no code of the deepest level; the message lists all such values.
        """
        self.codes(level)
        table = {code: self.ancestor(code, level) for code in self.codes()}
        return translate(codes, {**table, **dict.fromkeys(self.nodata_codes, 0)}, self.dtype(level), self.name)

    def down_to(self, level: int) -> Legend:
        """The classes of a level and of those above it: the legend of a map of that level.

        Raises
        ------
        LegendError
            If the legend has no such level.
        """
        if self.codes(level) == self.codes():
            return self
        kept = {code for one in self.levels if one <= level for code in self.codes(one)}
        classes = tuple(entry for entry in self.classes if entry.code in kept)
        return self._of(self.name, classes, level)

    def only(self, level: int) -> Legend:
        """The classes of one level as a flat legend of their own: what a net of one level learns.

        Raises
        ------
        LegendError
            If the legend has no such level.
        """
        classes = tuple(replace(self._class(code), parent=None) for code in self.codes(level))
        return self._of(f"{self.name}-level{level}", classes, level)

    def _of(self, name: str, classes: tuple[LegendClass, ...], level: int) -> Legend:
        """A legend of some of the classes, of which ``level`` is the deepest."""

        def up(table: Mapping[int, int]) -> dict[int, int]:
            return {key: code and self.ancestor(code, level) for key, code in table.items()}

        return Legend(name, classes, self.nodata_codes, up(self.grid_codes), up(self.clc_codes))

    def dtype(self, level: int) -> np.dtype[Any]:
        """The smallest unsigned type for the codes of a level that leaves its largest value free: uint8 or uint16."""
        return np.dtype(np.uint8 if max(self.codes(level)) < 255 else np.uint16)

    def flags(self, level: int) -> dict[str, Any]:
        """CF attributes of a class map: ``flag_values``, ``flag_meanings``, ``flag_colors`` (#rrggbb), by code."""
        codes = self.codes(level)
        return {
            "flag_values": list(codes),
            "flag_meanings": " ".join(plain_name(self.label(c)).replace(" ", "_") for c in codes),
            "flag_colors": " ".join(hex_colour(self.colour(c)) for c in codes),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``model.json``; `from_dict` gives back an equal legend."""
        return {
            "name": self.name,
            "classes": [
                {
                    "code": entry.code,
                    "name": entry.name,
                    "colour": hex_colour(entry.colour),
                    "parent": entry.parent,
                    "alias": entry.alias,
                }
                for entry in self.classes
            ],
            "nodata_codes": list(self.nodata_codes),
            "grid_codes": {str(k): v for k, v in self.grid_codes.items()},
            "clc_codes": {str(k): v for k, v in self.clc_codes.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Legend:
        """The inverse of `to_dict`.

        Raises
        ------
        LegendError
            If a key is missing or the legend is inconsistent.
        """
        try:
            classes = tuple(
                LegendClass(int(e["code"]), e["name"], parse_colour(e["colour"]), e["parent"], e["alias"])
                for e in values["classes"]
            )
            grid_codes, clc_codes = (_int_table(values[key]) for key in ("grid_codes", "clc_codes"))
            return cls(values["name"], classes, tuple(values["nodata_codes"]), grid_codes, clc_codes)
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            raise LegendError(f"not a description of a legend: {type(problem).__name__}: {problem}") from None

    def _class(self, code: int) -> LegendClass:
        try:
            return self._by_code[code]
        except KeyError:
            some = ", ".join(str(c) for c in sorted(self._by_code)[:60])
            raise LegendError(f"legend {self.name!r} has no code {code}; it has {some}") from None


def legend(source: str | Path) -> Legend:
    """A legend by name or from a CSV file.

    Parameters
    ----------
    source : str or Path
        ``"corine"`` (44 classes, levels 1 to 3), ``"bigearthnet-43"`` (CORINE without 335), ``"bigearthnet-19"``
        (levels 1 and 2; its codes are explained in ``geoflow/data/README.md``), or a path to a CSV file with columns
        ``code,name,colour`` (``#rrggbb``) and, if wanted, ``parent`` (code of the class one level up), ``grid_code``
        (code in a raster edition) and ``alias`` (other names, separated by ``|``).

    Raises
    ------
    LegendError
        If the name is unknown, or the file is missing or inconsistent (named with line and value).
    """
    from geoflow import legendfile  # it builds Legends, so it imports this module

    if str(source) in BUILTIN:
        return legendfile.builtin(str(source))
    path = Path(source)
    if not path.is_file():
        raise LegendError(f"no legend {str(source)!r}: it is neither a file nor one of {', '.join(BUILTIN)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise LegendError(f"{path}: cannot be read as UTF-8 text: {problem}") from None
    return legendfile.from_csv(path.stem, text.splitlines(), str(path))


def map_codes(codes: NDArray[np.integer], source: Legend, target: Legend) -> NDArray[np.unsignedinteger]:
    """Deepest-level codes of one CORINE-like legend as those of another: 44 -> 43 -> 19 classes.

    A class that the target leaves out (335 in BigEarthNet; airports and others in the 19-class scheme) becomes 0.

    Raises
    ------
    LegendError
        If a legend is unrelated to CORINE, the way leads back (19 -> 43), or a value is no code of ``source``.
    """
    for one in (source, target):
        if not one.clc_codes:
            raise LegendError(f"legend {one.name!r} is unrelated to CORINE: its codes cannot be mapped")
    table: dict[int, int] = {}
    for clc, code in source.clc_codes.items():
        found = target.clc_codes.get(clc, NODATA_CODE)
        if code != NODATA_CODE and table.setdefault(code, found) != found:
            raise LegendError(
                f"legend {source.name!r} is coarser than {target.name!r}: its class {code} {source.label(code)!r} "
                "has several classes there"
            )
    nodata = dict.fromkeys(source.nodata_codes, NODATA_CODE)
    return translate(codes, {**table, **nodata}, target.dtype(target.deepest), source.name)


def translate(
    codes: NDArray[np.integer], table: Mapping[int, int], dtype: np.dtype[Any], name: str
) -> NDArray[np.unsignedinteger]:
    """Look every value up in ``table``; 0 stays 0 unless the table says otherwise.

    Raises
    ------
    LegendError
        If the array is not of an integer type or holds values that the table (of the legend ``name``) does not.
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise LegendError(f"class codes must be integers, not {codes.dtype}")
    unknown = np.iinfo(dtype).max
    lut = np.full(65537, unknown, dtype)
    lut[NODATA_CODE] = NODATA_CODE
    for code, result in table.items():
        lut[code] = result
    index = codes
    if codes.dtype not in (np.uint8, np.uint16):  # anything out of range goes to the last entry, which is unknown
        index = np.where((codes < 0) | (codes > 65535), 65536, codes)
    out = np.take(lut, index)
    if (bad := out == unknown).any():
        raise LegendError(f"legend {name!r} does not hold {listed(np.unique(codes[bad]).tolist())}")
    return out


def listed(values: Iterable[Any], most: int = 20) -> str:
    """Values for a message, cut off after ``most``."""
    values = list(values)
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(str(v) for v in values[:most]) + more


def _int_table(values: Mapping[str, int]) -> dict[int, int]:
    return {int(k): int(v) for k, v in values.items()}
