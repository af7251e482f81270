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
_TOGETHER = 8  # scenes whose masks are the bits of one byte

Bits = NDArray[np.uint8]


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
    height, width = scl.shape[-2:]
    scenes = np.ascontiguousarray(scl).reshape(-1, height, width)
    classes = (*classes, DETECTED)
    hidden = _bits_of((0, *classes))
    growing = _bits_of([c for c in classes if c in SCL_DILATED]) if dilate_px > 0 else np.uint32(0)
    clear = np.empty(scenes.shape, bool)
    for first in range(0, len(scenes), _TOGETHER):
        some = slice(first, first + _TOGETHER)
        for near, inner, rows in _strips(height, dilate_px + speck_px):
            clouds = _packed(scenes[some, near], growing)
            if growing and clouds.any():
                clouds = _opened(clouds, speck_px)
                clouds = _square(clouds, 2 * dilate_px + 1, (dilate_px, dilate_px), np.bitwise_or, "constant")
            _unpack(scenes[some, rows], hidden, clouds[inner], clear[some, rows])
    found: NDArray[np.bool_] = clear.reshape(scl.shape)
    return found if valid is None else found & valid


def _strips(height: int, reach: int) -> Iterator[tuple[slice, slice, slice]]:
    """Some rows at a time, few enough for a core's cache: twice as fast as whole scenes.

    Yields
    ------
    near : slice
        The rows, and up to ``reach`` more on either side.
    inner : slice
        Where among those the rows are.
    rows : slice
    """
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, height)
        first = max(0, top - reach)
        yield slice(first, bottom + reach), slice(top - first, bottom - first), slice(top, bottom)


def clouds_in(scl: NDArray[np.uint8], classes: Sequence[int], speck_px: int = 0) -> NDArray[np.bool_]:
    """Where one of some classes is, without what is narrower than ``speck_px``; dims (y, x)."""
    return _opened(_packed(scl[None], _bits_of(classes)), speck_px).view(bool)


def _opened(clouds: Bits, speck_px: int) -> Bits:
    """An opening: the squares that fit in, and then what they cover; dims (y, x)."""
    if speck_px <= 1:
        return clouds
    fits = _square(clouds, speck_px, (0, speck_px - 1), np.bitwise_and, "edge")
    return _square(fits, speck_px, (speck_px - 1, 0), np.bitwise_or, "constant")


def _square(
    mask: Bits, side: int, reach: tuple[int, int], combine: np.ufunc, beyond: Literal["constant", "edge"]
) -> Bits:
    """Any (or all) of the pixels of a square around each pixel, ``reach`` before and after it; dims (y, x).

    Each pass combines runs that are twice as long, so that a square of 13 takes four passes an axis: ten times faster
    than a filter that moves a window.
    """
    for axis in (0, 1):
        length = mask.shape[axis]
        runs = np.pad(mask, [reach if a == axis else (0, 0) for a in (0, 1)], mode=beyond)
        run = 1
        while run < side:
            step = min(run, side - run)
            end = runs.shape[axis] - step
            runs = combine(_along(runs, axis, 0, end), _along(runs, axis, step, end + step))
            run += step
        mask = _along(runs, axis, 0, length)
    return mask


def _along(mask: Bits, axis: int, start: int, stop: int) -> Bits:
    return mask[start:stop] if axis == 0 else mask[:, start:stop]


def _bits_of(classes: Sequence[int]) -> np.uint32:
    return np.uint32(sum(1 << value for value in set(classes)))


@numba.njit(cache=True, nogil=True, inline="always")
def _is_among(value: Any, classes: Any) -> Any:
    """Whether the bit of a class is set: unlike a look in a table, a shift is something that vector units can do."""
    wide = np.uint32(value)
    return (wide < 32) & ((classes >> (wide & np.uint32(31))) & np.uint32(1) != 0)


@numba.njit(cache=True, nogil=True)
def _packed(scenes: Any, classes: Any) -> Any:
    """Where one of some classes is, of scene n as bit n; dims (scene, y, x), then (y, x)."""
    count, height, width = scenes.shape
    packed = np.zeros((height, width), np.uint8)
    for y in range(height):
        bits = packed[y]
        for n in range(count):
            scene, bit = scenes[n, y], np.uint8(1 << n)
            for x in range(width):
                bits[x] |= bit if _is_among(scene[x], classes) else np.uint8(0)
    return packed


@numba.njit(cache=True, nogil=True)
def _unpack(scenes: Any, hidden: Any, clouds: Any, clear: Any) -> None:
    """Clear is what is neither of a hidden class nor under a cloud, of scene n bit n; dims as of `_packed`."""
    count, height, width = scenes.shape
    for y in range(height):
        bits = clouds[y]
        for n in range(count):
            scene, bit, seen = scenes[n, y], np.uint8(1 << n), clear[n, y]
            for x in range(width):
                seen[x] = ((bits[x] & bit) == 0) & (not _is_among(scene[x], hidden))
