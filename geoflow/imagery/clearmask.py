"""Which pixels of a scene show the ground: its scene classification, with a margin around cloud and shadow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SCL_MASKED = (0, 1, 3, 8, 9, 10)
"""SCL classes left out by default: nodata, defective, cloud shadow, cloud (medium, high), cirrus. Snow (11) is kept,
because glaciers are land cover; a job without glaciers may add it."""

SCL_DILATED = (3, 8, 9, 10)
"""SCL classes whose edges are uncertain and which grow by the margin, where they are masked."""


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
        Scene classification; 0 is nodata and never clear.
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

    table = np.zeros(256, bool)
    table[[0, *classes]] = True
    masked = table[scl]
    if valid is not None:
        masked |= ~valid
    grows = [c for c in classes if c in SCL_DILATED]
    if dilate_px > 0 and grows:
        table = np.zeros(256, np.uint8)
        table[grows] = 1
        cloud, single = table[scl], (1,) * (scl.ndim - 2)
        if speck_px > 1:
            cloud = ndimage.grey_opening(cloud, size=(*single, speck_px, speck_px), mode="nearest")
        window = 2 * dilate_px + 1
        masked |= ndimage.maximum_filter(cloud, size=(*single, window, window), mode="constant").astype(bool)
    return ~masked
