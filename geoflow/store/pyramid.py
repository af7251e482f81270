"""Overviews: the layers of a store on coarser grids, each halved from the one below it.

``overviews/<factor>/<group>`` repeats ``<group>`` with pixels ``factor`` times as wide and high. What it holds, and how
four pixels become one, is told here; numpy in, numpy out. A pixel is observed where at least half of its four are, so
that borders neither grow nor shrink. Classes are decided from the coarsest level down, as maps are, so that the levels
of an overview nest; a tie goes to the first of the tied in row order, which favours no class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import GridError
from geoflow.grid import Grid
from geoflow.store.zarr import Group, Variable

OVERVIEWS = "overviews"
"""Group that holds them."""

SHARE = "change_share"
"""Variable of change in overviews alone: how much of a pixel has changed."""

SHARE_NODATA = 65535

_SHARE = Variable(
    SHARE, "uint16", SHARE_NODATA, attrs={"long_name": "changed share of what was observed", "units": "1e-4"}
)

Arrays = Mapping[str, NDArray[Any]]


def factors_of(grid: Grid) -> tuple[int, ...]:
    """Factors of a grid's overviews, 2, 4, 8 and so on, until all of it lies in one chunk."""
    factors, edge = list[int](), max(grid.shape)
    while edge > grid.chunk:
        factors.append(2 ** (len(factors) + 1))
        edge = -(-edge // 2)
    return tuple(factors)


def overview_path(factor: int, group: str) -> str:
    """Where the overview of a group lies."""
    return f"{OVERVIEWS}/{factor}/{group}"


def grid_of(grid: Grid, path: str) -> Grid:
    """The grid that a group or array lies on, by its path: the store's, or a coarser one.

    Raises
    ------
    GridError
        If it is the path of an overview without a factor.
    """
    first, _, rest = path.partition("/")
    if first != OVERVIEWS:
        return grid
    factor = rest.partition("/")[0]
    if not factor.isdigit() or int(factor) < 2:
        raise GridError(f"{path} is the path of no overview: they are {OVERVIEWS}/2, {OVERVIEWS}/4 and so on")
    return grid.coarser(int(factor))


def overview_group(base: Group, factor: int) -> Group:
    """What the overview of a group holds.

    Parameters
    ----------
    base : Group
        As it is at full resolution.
    factor : int

    Returns
    -------
    Group
        Class levels, reflectance, confidence and change of ``base``, and of change the changed share besides.
    """
    kind = base.path.partition("/")[0]
    kept = tuple(v for v in base.variables if v.name in _KEPT[kind] or _is_level(v.name))
    if kind == "change":
        kept = (*kept, _SHARE)
    used = {dim for variable in kept for dim in variable.leading}
    coords = {dim: labels for dim, labels in base.coords.items() if dim in used}
    return Group(overview_path(factor, base.path), kept, coords, base.attrs)


_KEPT = {
    "imagery": ("reflectance",),
    "labels": (),
    "map": ("confidence",),
    "generalised": (),
    "change": ("change", "from_code", "to_code", "confidence"),
}
"""Variables beside the class levels, by the first part of a group's path."""


def halve(arrays: Arrays, nodata: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Four pixels to one, for the variables of one group.

    Parameters
    ----------
    arrays : mapping of name -> array, dims (..., y, x)
        Of one shape in y and x, starting at an even row and column. An odd last row or column counts for itself.
    nodata : mapping of name -> value

    Returns
    -------
    dict of name -> array, dims (..., ceil(y / 2), ceil(x / 2))
        With `SHARE` where there is ``change``.
    """
    halved: dict[str, NDArray[Any]] = {}
    if "change" in arrays:
        halved |= _halve_change(arrays)
    levels = sorted((name for name in arrays if _is_level(name)), key=lambda name: int(name[5:]))
    halved |= _halve_nested({name: arrays[name] for name in levels})
    for name, values in arrays.items():
        if name not in halved:
            halved[name] = halve_measure(values, nodata[name])
    return halved


def halve_measure(values: NDArray[Any], nodata: int) -> NDArray[Any]:
    """The mean of what is observed of each four pixels; dims (..., y, x), any integer dtype, halves to even."""
    four = _fours(values, nodata)
    there = [part != nodata for part in four]
    count = _count(there)
    total = sum(np.where(seen, part, 0).astype(np.int32) for seen, part in zip(there, four, strict=True))
    mean = np.rint(np.divide(total, count, out=np.zeros(count.shape, np.float32), where=count > 0))
    return np.where(_observed(count, values.shape), mean, nodata).astype(values.dtype)


def _halve_nested(levels: Arrays) -> dict[str, NDArray[Any]]:
    """Codes of each level, coarsest first: the majority, among the pixels of the level above's majority."""
    halved: dict[str, NDArray[Any]] = {}
    use: list[NDArray[np.bool_]] | None = None
    for name, codes in levels.items():
        four = _fours(codes)
        if use is None:
            use = [part != 0 for part in four]
            enough = _observed(_count(use), codes.shape)
            use = [seen & enough for seen in use]
        halved[name] = _majority(four, use)
        use = [seen & (part == halved[name]) for seen, part in zip(use, four, strict=True)]
    return halved


def _halve_change(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Change by majority; what changed into what, among the pixels that did, where the majority did."""
    states = arrays["change"]
    halved = {**_halve_nested({"change": states})}
    changed = [part == 2 for part in _fours(states)]
    where = halved["change"] == 2
    for name in ("from_code", "to_code"):
        four = _fours(arrays[name])
        halved[name] = _majority(four, [seen & where for seen in changed])
    share = arrays.get(SHARE)
    if share is None:
        lut = np.array([SHARE_NODATA, 0, 10000], np.uint16)
        share = lut[states]
    halved[SHARE] = halve_measure(share, SHARE_NODATA)
    return halved


def _majority(four: list[NDArray[Any]], use: list[NDArray[np.bool_]]) -> NDArray[Any]:
    """The most frequent code of four, of those to use; the first of the tied, 0 where none is."""
    best = np.zeros(four[0].shape, np.uint8)
    chosen = np.zeros(four[0].shape, four[0].dtype)
    for code, seen in zip(four, use, strict=True):
        votes = np.zeros(code.shape, np.uint8)
        for other, also in zip(four, use, strict=True):
            votes += also & (other == code)
        better = seen & (votes > best)
        np.copyto(chosen, code, where=better)
        np.copyto(best, votes, where=better)
    return chosen


def _count(there: list[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    counts: NDArray[np.uint8] = np.sum(there, axis=0, dtype=np.uint8)
    return counts


def _observed(count: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether at least half of the pixels that there are, of each four, are observed."""
    rows, cols = (np.full(-(-size // 2), 2, np.uint8) for size in shape[-2:])
    for places, size in ((rows, shape[-2]), (cols, shape[-1])):
        if size % 2:
            places[-1] = 1
    there = rows[:, None] * cols
    return (count > 0) & (2 * count >= there)


def _fours(values: NDArray[Any], nodata: int = 0) -> list[NDArray[Any]]:
    """The four pixels of each square, as views of equal shape, in row order; nodata where there is no such pixel."""
    odd = [(0, 0)] * (values.ndim - 2) + [(0, size % 2) for size in values.shape[-2:]]
    padded = np.pad(values, odd, constant_values=nodata) if any(after for _, after in odd) else values
    return [padded[..., top::2, left::2] for top in (0, 1) for left in (0, 1)]


def _is_level(name: str) -> bool:
    return name.startswith("level") and name[5:].isdigit()
