"""Which pixels of a scene show the ground: its scene classification, with a margin around cloud and shadow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SCL_MASKED = (0, 1, 3, 8, 9, 10)
"""SCL classes left out by default: nodata, defective, cloud shadow, cloud (medium, high), cirrus. Snow (11) is kept,
because glaciers are land cover; a job without glaciers may add it."""

DETECTED = 12
"""What a cloud detector found (`geoflow.imagery.clouds`), as a class beside those of SCL. Always masked."""

SCL_DILATED = (3, 8, 9, 10, DETECTED)
"""Classes whose edges are uncertain and which grow by the margin, where they are masked."""


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
    from scipy import ndimage

    classes = (*classes, DETECTED)
    masked = _is_in(scl, (0, *classes))
    if valid is not None:
        masked |= ~valid
    if dilate_px > 0:
        cloud = clouds_in(scl, [c for c in classes if c in SCL_DILATED], speck_px)
        size = (*(1,) * (scl.ndim - 2), 2 * dilate_px + 1, 2 * dilate_px + 1)
        masked |= ndimage.maximum_filter(cloud.view(np.uint8), size=size, mode="constant").astype(bool)
    return ~masked


def clouds_in(scl: NDArray[np.uint8], classes: Sequence[int], speck_px: int = 0) -> NDArray[np.bool_]:
    """Where one of some classes is, without what is narrower than ``speck_px``; dims (..., y, x)."""
    from scipy import ndimage

    cloud = _is_in(scl, classes)
    if speck_px > 1:
        size = (*(1,) * (scl.ndim - 2), speck_px, speck_px)
        cloud = ndimage.grey_opening(cloud.view(np.uint8), size=size, mode="nearest").astype(bool)
    return cloud


def _is_in(scl: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.bool_]:
    table = np.zeros(256, bool)
    table[list(classes)] = True
    return table[scl]
