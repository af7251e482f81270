"""Change between two maps: what differs, is sure enough and large enough."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from geoflow.errors import GridError
from geoflow.mapping.decode import CONFIDENCE_NODATA

UNOBSERVED, UNCHANGED, CHANGED = 0, 1, 2
"""The values of a change map."""

_EIGHT = np.ones((3, 3), bool)


def joint_confidence(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The product of two confidences in percent, rounded: the chance that both maps are right, if their errors are
    independent. 255 where either is."""
    product = (before.astype(np.uint16) * after + 50) // 100
    missing = (before == CONFIDENCE_NODATA) | (after == CONFIDENCE_NODATA)
    return np.where(missing, CONFIDENCE_NODATA, product).astype(np.uint8)


def true_change(before: NDArray[np.unsignedinteger[Any]], after: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """The change between two truths, uint8 as of a change map: `UNOBSERVED` where either has 0."""
    known = (before != 0) & (after != 0)
    return np.where(known, np.where(before != after, CHANGED, UNCHANGED), UNOBSERVED).astype(np.uint8)


def drop_small(changed: NDArray[np.bool_], mmu_px: int) -> NDArray[np.bool_]:
    """Drop connected patches (eight neighbours) of fewer than ``mmu_px`` pixels."""
    if mmu_px <= 1:
        return changed
    patches, count = ndimage.label(changed, _EIGHT)
    sizes = np.bincount(patches.ravel(), minlength=count + 1)
    keep = sizes >= mmu_px
    keep[0] = False
    return keep[patches]


def change(
    before: NDArray[np.unsignedinteger[Any]],
    after: NDArray[np.unsignedinteger[Any]],
    confidence: NDArray[np.uint8],
    min_confidence: int,
    mmu_px: int,
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[np.uint8]]:
    """Compare two class maps.

    Parameters
    ----------
    before, after : unsigned integer arrays, dims (y, x)
        Class codes of one level, 0 where not observed.
    confidence : uint8 array, dims (y, x)
        How sure a change here would be, in percent, 255 where that is not known: `joint_confidence` of the two maps,
        or the probability of `geoflow.mapping.spectral`.
    min_confidence : int
        Least confidence of a change, in percent.
    mmu_px : int
        Least size of a connected patch of change, in pixels; 0 or 1 keeps all.

    Returns
    -------
    change : uint8
        `UNOBSERVED` where either map is empty or the confidence is not known, `CHANGED`, or `UNCHANGED`.
    from_code, to_code : as ``before``
        The codes where changed, else 0.
    confidence : uint8
        As given; 255 where not observed.
    """
    observed = (before != 0) & (after != 0) & (confidence != CONFIDENCE_NODATA)
    changed = drop_small(observed & (before != after) & (confidence >= min_confidence), mmu_px)
    state = np.where(observed, np.where(changed, CHANGED, UNCHANGED), UNOBSERVED).astype(np.uint8)
    known = np.where(observed, confidence, np.uint8(CONFIDENCE_NODATA))
    return state, np.where(changed, before, 0), np.where(changed, after, 0), known


def _stacked(maps: NDArray[np.uint16], margin: tuple[int, int], min_confidence: int, mmu_px: int) -> NDArray[np.uint16]:
    """`change` on (before, after, confidence) as one array, dims (variable, y, x), without the margin."""
    before, after, confidence = maps
    found = change(before, after, confidence.astype(np.uint8), min_confidence, mmu_px)
    result = np.stack([a.astype(np.uint16) for a in found])
    y, x = margin
    return result[:, y : result.shape[1] - y, x : result.shape[2] - x]


def detect_change(
    before: xr.Dataset,
    after: xr.Dataset,
    level: int | None = None,
    min_confidence: int = 0,
    mmu_px: int = 1,
    confidence: xr.DataArray | None = None,
) -> xr.Dataset:
    """Change between two maps of `geoflow.mapping.predict`, lazily where they are lazy.

    Parameters
    ----------
    before, after : xr.Dataset, dims (y, x), on the same pixels
        With ``level<n>`` (codes, 0 nodata) and ``confidence`` (uint8 percent, 255 nodata).
    level : int, optional
        The level whose codes are compared; the deepest by default.
    min_confidence, mmu_px : int
        See `change`.
    confidence : xr.DataArray, dims (y, x), optional
        uint8 percent of a change on the same pixels, see `change`; by default the `joint_confidence` of the maps.

    Returns
    -------
    xr.Dataset
        ``change`` (uint8), ``from_code``, ``to_code`` (as the maps), ``confidence`` (uint8); see `change`.
        Coordinates and CRS are those of ``before``.

    Raises
    ------
    GridError
        If the maps do not lie on the same pixels, or lack the level.

    Notes
    -----
    Chunks are compared with a margin of ``mmu_px`` pixels, and that is exact: from any pixel of a patch, its nearest
    ``mmu_px`` pixels (counted along the patch) are at most ``mmu_px - 1`` steps away, and a step of eight neighbours
    moves by one row and one column at most. So a patch that reaches the limit is seen to reach it within the margin,
    and a patch that does not lies within the margin as a whole. For the same reason a tile that is read with a margin
    of ``mmu_px`` and cropped equals the whole country.
    """
    name = f"level{_level(before, after, level)}"
    _check_same_pixels(before, after)
    if confidence is None:
        confidence = before["confidence"].copy(
            data=joint_confidence(before["confidence"].data, after["confidence"].data)
        )
    parts = [before[name], after[name], confidence]
    options = {"min_confidence": int(min_confidence), "mmu_px": int(mmu_px)}
    if any(part.chunks is not None for part in parts):
        stacked: Any = _lazily([da.asarray(part.data) for part in parts], options)
    else:
        stacked = _stacked(np.stack([part.values.astype(np.uint16) for part in parts]), (0, 0), **options)
    dtypes = {"change": np.uint8, "from_code": parts[0].dtype, "to_code": parts[0].dtype, "confidence": np.uint8}
    out = xr.Dataset(coords=before.coords)
    for at, (variable, dtype) in enumerate(dtypes.items()):
        out[variable] = (("y", "x"), stacked[at].astype(dtype))
    return out


def _lazily(parts: list[da.Array], options: dict[str, int]) -> da.Array:
    """`_stacked` chunk by chunk, each read with its margin."""
    maps = da.stack([part.astype(np.uint16).rechunk(parts[0].chunks) for part in parts]).rechunk({0: -1})
    wanted = options["mmu_px"] if options["mmu_px"] > 1 else 0
    # A margin as wide as the map holds all of it, so a wider one could add nothing (and dask refuses it).
    margin = (min(wanted, maps.shape[1]), min(wanted, maps.shape[2]))
    wide = da.overlap.overlap(maps, depth={0: 0, 1: margin[0], 2: margin[1]}, boundary={0: "none", 1: 0, 2: 0})
    chunks = (4, *(tuple(c - 2 * m for c in sizes) for sizes, m in zip(wide.chunks[1:], margin, strict=True)))
    meta = np.empty((0, 0, 0), np.uint16)
    return da.map_blocks(_stacked, wide, margin=margin, **options, dtype=np.uint16, chunks=chunks, meta=meta)


def _level(before: xr.Dataset, after: xr.Dataset, level: int | None) -> int:
    """The level to compare: the one asked for, or the deepest of the first map."""
    held = [
        {int(str(v).removeprefix("level")) for v in m.data_vars if str(v).startswith("level")} for m in (before, after)
    ]
    common = sorted(held[0] & held[1])
    if not common or (level is not None and level not in common):
        raise GridError(f"both maps must hold level {level or 1}; they share the levels {common}")
    return common[-1] if level is None else level


def _check_same_pixels(before: xr.Dataset, after: xr.Dataset) -> None:
    for dim in ("y", "x"):
        sizes = before.sizes[dim], after.sizes[dim]
        if sizes[0] != sizes[1]:
            raise GridError(f"the maps differ in size along {dim}: {sizes[0]} and {sizes[1]} pixels")
        if dim in before.coords and dim in after.coords and not np.array_equal(before[dim], after[dim]):
            raise GridError(f"the maps lie on different pixels along {dim}; put both on one grid first")
