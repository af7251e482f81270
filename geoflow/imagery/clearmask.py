"""Which pixels of a scene show the ground: its scene classification, with a margin around cloud and shadow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

SCL_MASKED = (0, 1, 3, 8, 9, 10)
"""SCL classes left out by default: nodata, defective, cloud shadow, cloud (medium, high), cirrus. Snow (11) is kept,
because glaciers are land cover; a job without glaciers may add it."""

DETECTED = 12
"""What a cloud detector found (`geoflow.imagery.clouds`), as a class beside those of SCL. Always masked."""

SCL_DILATED = (3, 8, 9, 10, DETECTED)
"""Classes whose edges are uncertain and which grow by the margin, where they are masked."""

_STRIP_ROWS = 256


def clear_mask(
    scl: NDArray[np.uint8],
    valid: NDArray[np.bool_] | None = None,
    classes: Sequence[int] = SCL_MASKED,
    dilate_px: int = 0,
    speck_px: int = 0,
) -> NDArray[np.bool_]:
    """Which pixels show the ground.

    Parameters
    ----------
    scl : uint8 array, dims (..., y, x)
        Scene classification; 0 is nodata and `DETECTED` a detector's cloud, which are never clear.
    valid : bool array, the same dims, optional
        True where there is data; elsewhere nothing is clear.
    classes : sequence of int
        Classes that are not clear.
    dilate_px : int
        Cloud and shadow among them (`SCL_DILATED`) grow by so many pixels in every direction, diagonals included.
    speck_px : int
        What is narrower than this does not grow, and masks itself alone. Bright roofs are taken for cloud in every
        scene; grown, they would leave holes in towns that no scene fills.

    Returns
    -------
    bool array, dims (..., y, x)
        True where the ground is seen.
    """
    classes = (*classes, DETECTED)
    masked = _is_in(scl, (0, *classes))
    if valid is not None:
        masked |= ~valid
    if dilate_px > 0:
        grown = [c for c in classes if c in SCL_DILATED]
        for near, inner, rows in _strips(scl.shape, dilate_px + speck_px):
            cloud = clouds_in(scl[near], grown, speck_px)
            square = _square(cloud, 2 * dilate_px + 1, (dilate_px, dilate_px), np.logical_or, "constant")
            masked[rows] |= square[inner]
    return np.logical_not(masked, out=masked)


def _strips(shape: tuple[int, ...], reach: int) -> Iterator[tuple[tuple[Any, ...], slice, tuple[Any, ...]]]:
    """Some rows of each scene at a time, few enough for a core's cache: twice as fast as whole scenes.

    Yields
    ------
    near : index of an array of this shape
        The rows, and up to ``reach`` more on either side.
    inner : slice
        Where among those the rows are.
    rows : index of an array of this shape
    """
    *scenes, height, _ = shape
    for scene in np.ndindex(*scenes):
        for top in range(0, height, _STRIP_ROWS):
            bottom = min(top + _STRIP_ROWS, height)
            first = max(0, top - reach)
            yield (
                (*scene, slice(first, bottom + reach)),
                slice(top - first, bottom - first),
                (*scene, slice(top, bottom)),
            )


def clouds_in(scl: NDArray[np.uint8], classes: Sequence[int], speck_px: int = 0) -> NDArray[np.bool_]:
    """Where one of some classes is, without what is narrower than ``speck_px``; dims (..., y, x)."""
    cloud = _is_in(scl, classes)
    if speck_px > 1:  # an opening: the squares that fit in, and then what they cover
        fits = _square(cloud, speck_px, (0, speck_px - 1), np.logical_and, "edge")
        cloud = _square(fits, speck_px, (speck_px - 1, 0), np.logical_or, "constant")
    return cloud


def _square(
    mask: NDArray[np.bool_], side: int, reach: tuple[int, int], combine: np.ufunc, beyond: Literal["constant", "edge"]
) -> NDArray[np.bool_]:
    """Any (or all) of the pixels of a square around each pixel, ``reach`` before and after it; dims (..., y, x).

    Each pass combines runs that are twice as long, so that a square of 13 takes four passes an axis: ten times faster
    than a filter that moves a window.
    """
    for axis in (mask.ndim - 2, mask.ndim - 1):
        length = mask.shape[axis]
        runs = np.pad(mask, [reach if a == axis else (0, 0) for a in range(mask.ndim)], mode=beyond)
        run = 1
        while run < side:
            step = min(run, side - run)
            end = runs.shape[axis] - step
            runs = combine(_along(runs, axis, 0, end), _along(runs, axis, step, end + step))
            run += step
        mask = _along(runs, axis, 0, length)
    return mask


def _along(mask: NDArray[np.bool_], axis: int, start: int, stop: int) -> NDArray[np.bool_]:
    return mask[(slice(None),) * axis + (slice(start, stop),)]


def _is_in(scl: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.bool_]:
    bits = np.uint32(sum(1 << value for value in set(classes)))
    found = np.empty(scl.shape, bool)
    _are_in(np.ascontiguousarray(scl).reshape(-1), bits, found.reshape(-1))
    return found


@numba.njit(cache=True, nogil=True)
def _are_in(scl: Any, bits: Any, found: Any) -> None:
    """Whether the bit of each value is set: unlike a look in a table, a shift is something that vector units can do."""
    for i in range(scl.size):
        value = np.uint32(scl[i])
        found[i] = (value < 32) & ((bits >> (value & np.uint32(31))) & np.uint32(1) != 0)
