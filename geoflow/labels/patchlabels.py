"""Labels of patches: which classes each holds, at CORINE's three levels and in BigEarthNet's 19-class scheme.

Everything is keyed by code. A published label is a name or a map of CLC codes; what is kept is one row of 0 and 1 a
patch and scheme, and `UNKNOWN` throughout the row where the published label does not say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.legends import NODATA_CODE, Legend, legend, listed

UNKNOWN = 255
"""A label that the source does not tell: version 2 without its reference map has no level 3."""

LEVELS = {"level1": 1, "level2": 2, "level3": 3}
NINETEEN = "nineteen"
SCHEMES = (*LEVELS, NINETEEN)
"""The schemes: CORINE's levels (5, 15 and 44 classes) and the 19 classes of Sumbul et al. 2021."""

UNLABELLED = (122, 123, 124, 131, 132, 133, 141, 142, 332, 334, 335, 423)
"""CLC codes that the 19-class scheme leaves out, and with it the reference maps of version 2; 999 and 0 besides."""


@dataclass(frozen=True)
class Label:
    """What is published about the classes of one patch.

    Attributes
    ----------
    clc : tuple of int, or None
        CLC level-3 codes, ascending; None where they are not told.
    nineteen : tuple of int, or None
        Codes of ``bigearthnet-19``, ascending; None where they are those of ``clc``.
    """

    clc: tuple[int, ...] | None
    nineteen: tuple[int, ...] | None = None


def scheme_legend(scheme: str) -> Legend:
    """The legend that the codes of a scheme belong to."""
    return legend("bigearthnet-19" if scheme == NINETEEN else "corine")


def scheme_codes(scheme: str) -> tuple[int, ...]:
    """The codes of a scheme, ascending: one column of its labels each.

    Raises
    ------
    LabelError
        If there is no such scheme.
    """
    if scheme not in SCHEMES:
        raise LabelError(f"no labels {scheme!r}; there are {', '.join(SCHEMES)}")
    return scheme_legend(scheme).codes(LEVELS.get(scheme))


def clc_code(name: str) -> int:
    """The CLC level-3 code of a label of version 1.

    Raises
    ------
    LegendError
        If there is no such class.
    LabelError
        If it is one of a coarser level.
    """
    code = legend("corine").code_of(name)
    if code not in legend("corine").codes():
        raise LabelError(f"label {name!r} is no level-3 class of CORINE")
    return code


def nineteen_of(clc: Iterable[int]) -> tuple[int, ...]:
    """CLC codes as those of the 19-class scheme, ascending, the ones that it leaves out dropped."""
    table = legend("bigearthnet-19").clc_codes
    return tuple(sorted({table[code] for code in clc} - {NODATA_CODE}))


def multi_hot(labels: Sequence[Label]) -> dict[str, NDArray[np.uint8]]:
    """The labels of patches as rows of 0 and 1.

    Parameters
    ----------
    labels : sequence of Label

    Returns
    -------
    dict of scheme -> uint8, dims (patch, class)
        Columns in the order of `scheme_codes`; a row of `UNKNOWN` where the scheme cannot be told. The 19 classes alone
        tell level 1, since each lies within one of its classes, but neither level 2 nor 3.
    """
    rows: dict[Label, int] = {}
    seen: dict[int, int] = {}  # equal labels are mostly one object, and those are found without hashing all codes
    at = np.array([_at(label, rows, seen) for label in labels], np.intp)
    tables = {scheme: np.zeros((len(rows), len(scheme_codes(scheme))), np.uint8) for scheme in SCHEMES}
    for scheme, table in tables.items():
        for label, row in rows.items():
            table[row] = _row(scheme, label)
    return {scheme: table[at] for scheme, table in tables.items()}


def _at(label: Label, rows: dict[Label, int], seen: dict[int, int]) -> int:
    row = seen.get(id(label))
    if row is None:
        row = seen[id(label)] = rows.setdefault(label, len(rows))
    return row


def _row(scheme: str, label: Label) -> NDArray[np.uint8]:
    held = _held(scheme, label)
    codes = scheme_codes(scheme)
    if held is None:
        return np.full(len(codes), UNKNOWN, np.uint8)
    return np.isin(codes, sorted(held)).astype(np.uint8)


def _held(scheme: str, label: Label) -> set[int] | None:
    if scheme == NINETEEN:
        if label.nineteen is not None:
            return set(label.nineteen)
        return None if label.clc is None else set(nineteen_of(label.clc))
    if label.clc is not None:
        return {legend("corine").ancestor(code, LEVELS[scheme]) for code in label.clc}
    above = _above_nineteen(LEVELS[scheme])
    return None if label.nineteen is None or above is None else {above[code] for code in label.nineteen}


@cache
def _above_nineteen(level: int) -> dict[int, int] | None:
    """The class of a CORINE level that holds each of the 19, or None where one of them has parts in several."""
    corine, table = legend("corine"), legend("bigearthnet-19").clc_codes
    pairs = {(code, corine.ancestor(clc, level)) for clc, code in table.items() if code != NODATA_CODE}
    found = dict(pairs)
    return found if len(found) == len(pairs) else None


def check_map_codes(codes: NDArray[np.integer], name: str) -> NDArray[np.uint16]:
    """A reference map as a target: CLC level-3 codes, 0 where it is unlabelled.

    Raises
    ------
    LabelError
        If it holds a value that is neither a CLC code nor nodata.
    """
    corine = legend("corine")
    found = np.unique(codes)
    if strange := sorted(set(found.tolist()) - {*corine.codes(), *corine.nodata_codes, NODATA_CODE}):
        raise LabelError(f"{name} holds {listed(strange)}, which is no CLC code")
    left_out = (*UNLABELLED, *corine.nodata_codes)
    return np.where(np.isin(codes, left_out), NODATA_CODE, codes).astype(np.uint16)
