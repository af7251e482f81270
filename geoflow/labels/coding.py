"""What the values of a label source mean: codes of the legend, CLC codes, GRID_CODEs or names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError, LegendError
from geoflow.legends import NODATA_CODE, Legend, listed, translate

CODINGS = ("code", "clc_code", "grid_code")
"""How a source may code its classes; legends unrelated to CORINE know the first alone."""

VECTOR_CODINGS = CODINGS[:2]


def value_codes(
    values: NDArray[Any], legend: Legend, where: str, coding: str | None = None
) -> NDArray[np.unsignedinteger]:
    """Values of a column, or sampled from a raster (integers, floats or text), as codes of the deepest level.

    Parameters
    ----------
    values : array
    legend : Legend
    where : str
        The file, for messages.
    coding : str, optional
        One of `CODINGS`; without it, the one of `VECTOR_CODINGS` that explains the values.

    Raises
    ------
    LabelError
        If a value is missing or unknown, or the coding cannot be told.
    """
    if values.dtype.kind in "iu":
        unique, inverse = np.unique(values, return_inverse=True)
        keys: list[int | str] = unique.tolist()
    else:
        unique, inverse = np.unique(as_text(values), return_inverse=True)
        keys = [_key(text) for text in unique.tolist()]
    if "" in keys:
        count = int((np.asarray(keys, object) == "")[inverse].sum())
        raise LabelError(f"{where}: {count} features have no value; give them a class, or delete them")
    table = _coding_table(keys, legend, where, coding)
    codes = np.array([table[key] for key in keys], legend.dtype(legend.deepest))
    return codes[inverse.reshape(values.shape)]


def raster_codes(values: NDArray[np.integer], legend: Legend, where: str, coding: str) -> NDArray[np.unsignedinteger]:
    """As `value_codes`, for many pixels of a known coding.

    Raises
    ------
    LabelError
        If a value is unknown.
    """
    table = coding_tables(legend)[coding]
    try:
        return translate(values, table, legend.dtype(legend.deepest), legend.name)
    except LegendError:
        raise _unknown(sorted(set(np.unique(values).tolist()) - set(table)), coding, legend, where) from None


def coding_tables(legend: Legend) -> dict[str, dict[int, int]]:
    """By coding, the values that a source may hold and the code (0: nodata) that each stands for."""
    nodata = {NODATA_CODE: NODATA_CODE, **dict.fromkeys(legend.nodata_codes, NODATA_CODE)}
    tables = {"code": {**nodata, **{code: code for code in legend.codes()}}}
    if legend.clc_codes:
        tables["clc_code"] = {**nodata, **legend.clc_codes}
    if legend.grid_codes:
        tables["grid_code"] = {NODATA_CODE: NODATA_CODE, **legend.grid_codes}
    return tables


def tell_coding(values: Iterable[int], legend: Legend, where: str, codings: Sequence[str] = VECTOR_CODINGS) -> str:
    """The coding that explains all values.

    A vector's GRID_CODE column says so by its name; a raster's GRID_CODEs are told by their values.

    Raises
    ------
    LabelError
        If none does, or several do with different results.
    """
    values = set(values)
    tables = {name: table for name, table in coding_tables(legend).items() if name in codings}
    fitting = [name for name, table in tables.items() if values <= set(table)]
    if not fitting:
        closest = min(tables, key=lambda name: len(values - set(tables[name])))
        raise _unknown(sorted(values - set(tables[closest])), closest, legend, where)
    readings = {tuple(tables[name][value] for value in sorted(values)) for name in fitting}
    # GRID_CODEs 1 to 5 alone, all of them towns, look like codes of level 1
    coarser = [level for level in legend.levels[:-1] if fitting == ["grid_code"] and values <= set(legend.codes(level))]
    if len(readings) > 1 or coarser:
        also = f" or codes of level {coarser[0]}" if coarser else ""
        raise LabelError(
            f"{where}: its values {listed(sorted(values))} may be {' or '.join(fitting)}{also}; "
            f"say which, as column: {fitting[-1]}"
        )
    return fitting[0]


def as_integers(values: NDArray[Any], nodata: float | None, where: str) -> NDArray[np.integer]:
    """Raster values as integers with 0 for nodata.

    Raises
    ------
    LabelError
        If a value is not a whole number.
    """
    if nodata is not None:
        missing = np.isnan(values) if np.isnan(nodata) else values == nodata
        values = np.where(missing, values.dtype.type(NODATA_CODE), values)
    if values.dtype.kind in "iu":
        return values
    whole = values.astype(np.int64)
    if not (whole == values).all():
        raise LabelError(
            f"{where}: holds {listed(values[whole != values][:5].tolist())}: class codes are whole numbers"
        )
    return whole


def as_text(values: NDArray[Any]) -> NDArray[np.str_]:
    return np.array(["" if _missing(v) else str(v).strip() for v in values.ravel().tolist()], str).reshape(values.shape)


def _missing(value: object) -> bool:
    return value is None or value != value


def _key(text: str) -> int | str:
    """``"311"``, ``"311.0"`` as a number; a name, or nothing, as it is."""
    return int(float(text)) if re.fullmatch(r"\d+(\.0*)?", text) else text


def _coding_table(keys: list[int | str], legend: Legend, where: str, coding: str | None) -> Mapping[int | str, int]:
    """What each value stands for; names are looked up in the legend."""
    named: dict[int | str, int] = {}
    for key in keys:
        if isinstance(key, str):
            try:
                named[key] = legend.code_of(key)
            except LegendError as problem:
                raise LabelError(f"{where}: {problem}") from None
            if named[key] not in legend.codes():
                raise LabelError(f"{where}: {key!r} is no class of level {legend.deepest} of {legend.name!r}")
    numbers = [key for key in keys if isinstance(key, int)]
    coding = coding or tell_coding(numbers, legend, where)
    table = coding_tables(legend)[coding]
    if unknown := sorted(set(numbers) - set(table)):
        raise _unknown(unknown, coding, legend, where)
    return {**{value: table[value] for value in numbers}, **named}


def _unknown(values: list[int], coding: str, legend: Legend, where: str) -> LabelError:
    accepted = "; ".join(f"{name}: {listed(table, 50)}" for name, table in coding_tables(legend).items())
    return LabelError(
        f"{where}: {listed(values)} not known to legend {legend.name!r} as {coding}. Accepted are {accepted}. "
        "A value that stands for no data must be the nodata value of the raster"
    )
