"""Blocks that are set aside to choose the best weights by: neither learned from, nor held out to measure the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.learning.options import SegmenterOptions
from geoflow.learning.sampler import Sampler, SamplerOptions
from geoflow.learning.samples import BLOCK_PX, Aside, Survey, survey


@dataclass(frozen=True)
class _Others:
    """All but what is set aside: what a validation must not see."""

    aside: Aside

    def mask(self, shape: tuple[int, int], y: slice | None = None, x: slice | None = None) -> NDArray[np.bool_]:
        return ~self.aside.own_mask(shape, y, x)


def validation_sampler(
    reflectance: Any,
    labels: Any,
    aside: Aside,
    classes: tuple[int, ...],
    known: tuple[int, ...],
    options: SegmenterOptions,
) -> Sampler:
    """Windows of what is set aside, drawn by area, with the ``classes`` that are learned, of the ``known`` ones.

    Raises
    ------
    LabelError
        If none of these classes occurs there.
    """
    others = _Others(aside)
    found = survey(labels, others, BLOCK_PX, known)
    counts = np.zeros((len(found.blocks), len(classes)), np.int64)
    for column, code in enumerate(classes):
        if code in found.codes:
            counts[:, column] = found.counts[:, found.codes.index(code)]
    if not counts.any():
        raise LabelError(
            f"no class that is learned occurs in the {aside.share:.0%} of the blocks that are set aside; raise "
            "validation_share, or set keep to last"
        )
    drawing = SamplerOptions(options.window_px, options.batch, rarity=0.0, jitter=0.0, memory_mb=options.memory_mb)
    return Sampler(reflectance, labels, Survey(classes, found.blocks, counts), others, drawing)
