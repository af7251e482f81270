"""How good an observation is, for the composite of best pixels: far from cloud, near the middle of the period, sure.

After the scores of Griffiths et al. (2013, doi:10.1109/JSTARS.2012.2228167) and White et al. (2014,
doi:10.1080/07038992.2014.945827), equally weighted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from geoflow.imagery.clearmask import DETECTED, SCL_DILATED, SCL_MASKED, clear_mask, clouds_in

PARTS = 10_000
"""The best possible score is three times this, plus 1."""

_SURE = {2: 0.5, 4: 1.0, 5: 1.0, 6: 1.0, 7: 0.5, 11: 0.5}  # by SCL class; a cloud or shadow that the job keeps scores 0


def day_scores(days: Sequence[float], middle: float, length: float) -> tuple[float, ...]:
    """1 in the middle of a period, 0.61 half way to its ends, 0.14 at them: a normal curve.

    Parameters
    ----------
    days : sequence of float
        Days of sensing.
    middle, length : float
        The period's middle, counted as the days are, and its length in days.
    """
    deviation = max(length, 1.0) / 4
    return tuple(float(np.exp(-0.5 * ((day - middle) / deviation) ** 2)) for day in days)


def pixel_scores(
    scl: NDArray[np.uint8],
    day: Sequence[float],
    classes: Sequence[int] = SCL_MASKED,
    dilate_px: int = 0,
    speck_px: int = 0,
    reach_px: int = 60,
) -> NDArray[np.uint16]:
    """Score of each pixel of each scene.

    Parameters
    ----------
    scl : uint8 array, dims (time, y, x)
        Scene classification; 0 is nodata.
    day : sequence of float
        Score of each scene's day, 0 to 1.
    classes, dilate_px, speck_px
        As for `clear_mask`.
    reach_px : int
        Distance from which on a cloud or a shadow no longer counts. Pixels nearer than this to the array's edge may
        miss a cloud beyond it.

    Returns
    -------
    uint16 array, dims (time, y, x)
        0 where the ground is not seen, else 1 to ``3 * PARTS + 1``: the sum of a logistic curve of the distance to the
        next masked cloud or shadow, the score of the day, and how sure the classification is.
    """
    from scipy import ndimage

    clear = clear_mask(scl, None, classes, dilate_px, speck_px)
    sure = np.zeros(256, np.float32)
    sure[list(_SURE)] = list(_SURE.values())
    score = np.zeros(scl.shape, np.uint16)
    grown = tuple(c for c in (*classes, DETECTED) if c in SCL_DILATED)
    for step, (scene, good) in enumerate(zip(scl, day, strict=True)):
        cloud = clouds_in(scene, grown, speck_px)
        near = np.full(scene.shape, np.float32(reach_px))
        if reach_px > 0 and cloud.any():
            near = np.minimum(ndimage.distance_transform_edt(~cloud), reach_px).astype(np.float32)
        far = 1 / (1 + np.exp(5 - np.float32(10 / max(reach_px, 1)) * near))
        total = (far + np.float32(good) + sure[scene]) * np.float32(PARTS)
        score[step] = np.where(clear[step], np.rint(total).astype(np.uint16) + np.uint16(1), np.uint16(0))
    return score
