"""Names of classes, found in any of the spellings in which they are met."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NameIndex:
    """The classes of a legend by their names.

    Attributes
    ----------
    plain : dict of str to int
        `plain_name` to code; where a name is met on several levels, the deepest has it.
    loose : dict of str to int
        `loose_name` to code; those that two classes of a level share are left out.
    """

    plain: dict[str, int]
    loose: dict[str, int]

    @classmethod
    def of(cls, levels: Sequence[Sequence[tuple[int, Sequence[str]]]]) -> NameIndex:
        """From the codes of every level, the coarsest first, each with its names, the proper one last."""
        plain = {plain_name(name): code for classes in levels for code, names in classes for name in names}
        loose: dict[str, int] = {}
        for classes in levels:
            here: dict[str, set[int]] = {}
            for code, names in classes:
                for name in names:
                    here.setdefault(loose_name(name), set()).add(code)
            loose |= {name: codes.pop() for name, codes in here.items() if len(codes) == 1}
        return cls(plain, loose)

    def find(self, name: str) -> int | None:
        """The code of a class of that name, or nearly so; None where there is none."""
        return self.plain.get(plain_name(name), self.loose.get(loose_name(name)))

    def near(self, name: str) -> list[int]:
        """The codes of the classes with names most like it, at most three."""
        return [self.plain[one] for one in difflib.get_close_matches(plain_name(name), self.plain, n=3)]


def plain_name(name: str) -> str:
    """A name without case, punctuation and repeated spaces, to compare by."""
    return " ".join("".join(c if c.isalnum() else " " for c in name.casefold()).split())


def loose_name(name: str) -> str:
    """A plain name without spaces and plurals: "Peat bogs", "Peatbogs" and "peat-bog" are one."""
    return "".join(word.removesuffix("s") for word in plain_name(name).split())
