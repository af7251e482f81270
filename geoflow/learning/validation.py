"""Blocks that are set aside to choose the best weights by: neither learned from, nor held out to measure the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.learning.options import SegmenterOptions
from geoflow.learning.sampler import Sampler, SamplerOptions
from geoflow.learning.samples import BLOCK_PX, HeldOut, Hidden, Survey, held_out_mask, survey

BLOCK_OF_VALIDATION_PX = 128
"""Edge of the blocks where nothing is held out."""


@dataclass(frozen=True)
class SetAside:
    """Held-out blocks and those set aside: what training must not see.

    Parameters
    ----------
    held_out : HeldOut, optional
    share : float
        Share of all blocks that is set aside; those of them that are held out are not.
    seed : int
    """

    held_out: HeldOut | None
    share: float
    seed: int

    def chosen(self, shape: tuple[int, int], y: slice | None = None, x: slice | None = None) -> NDArray[np.bool_]:
        """The pixels that are set aside; dims (y, x), of the whole grid or of a part of it."""
        block_px = BLOCK_OF_VALIDATION_PX if self.held_out is None else self.held_out.block_px
        # A seed that no held-out blocks are drawn with, or both would be the same blocks.
        found = held_out_mask(shape, block_px, self.share, self.seed + 2**32, y, x)
        return found if self.held_out is None else found & ~self.held_out.mask(shape, y, x)

    def mask(self, shape: tuple[int, int], y: slice | None = None, x: slice | None = None) -> NDArray[np.bool_]:
        """The pixels that training must not see."""
        found = self.chosen(shape, y, x)
        return found if self.held_out is None else found | self.held_out.mask(shape, y, x)

    @property
    def others(self) -> Hidden:
        """All but those that are set aside, as what a validation must not see."""
        return _Others(self)


@dataclass(frozen=True)
class _Others:
    aside: SetAside

    def mask(self, shape: tuple[int, int], y: slice | None = None, x: slice | None = None) -> NDArray[np.bool_]:
        return ~self.aside.chosen(shape, y, x)


def validation_sampler(
    reflectance: Any,
    labels: Any,
    aside: SetAside,
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
    found = survey(labels, aside.others, BLOCK_PX, known)
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
    return Sampler(reflectance, labels, Survey(classes, found.blocks, counts), aside.others, drawing)
