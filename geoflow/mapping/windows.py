"""Windows over the national grid: where they lie, and how they fade into each other.

A net sees one window at a time. Windows are anchored to the origin of the grid at multiples of the model's core (the
window without its halo), whatever part of the grid is asked for. Neighbours overlap by two halos, and there each pixel
is the weighted mean of what they say, so that no line shows where one window ends.

All of it is integer arithmetic: probabilities are parts of `UNIT`, the weights of all windows over a pixel sum up to
`FULL` along each axis, and sums of integers do not depend on their order. So a map cannot depend on chunks, tiles or
workers, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNIT = 65535
"""A probability of one, in a uint16."""

FULL = 256
"""The weights of all windows over a pixel, along one axis. ``UNIT * FULL * FULL`` is within a uint32."""


@dataclass(frozen=True)
class Axis:
    """The windows along one axis of the grid.

    Parameters
    ----------
    size : int
        Pixels of the grid.
    core, halo : int
        Of the model, in pixels: a window is ``core + 2 * halo`` wide, window ``k`` starts at ``k * core - halo``.

    Notes
    -----
    Window ``k`` and its successor share the pixels from ``(k + 1) * core - blend`` on. Cell ``k`` is the stretch of
    ``core`` pixels from ``k * core - blend`` on: with windows ``k - 1`` and ``k``, all that is said of it is known.
    """

    size: int
    core: int
    halo: int

    @property
    def count(self) -> int:
        """Number of windows: those whose core meets the grid."""
        return -(-self.size // self.core)

    @property
    def blend(self) -> int:
        """How far windows reach beyond their core into the mean: the halo, but never beyond the next core's middle."""
        return min(self.halo, self.core // 2)

    @property
    def trim(self) -> int:
        """The outer pixels of a window that serve as surroundings alone."""
        return self.halo - self.blend

    @property
    def kept(self) -> int:
        """Pixels of a window that count: the core, and ``blend`` on both sides."""
        return self.core + 2 * self.blend

    def cells(self, part: slice) -> range:
        """The cells that meet a stretch of pixels."""
        return range((part.start + self.blend) // self.core, (part.stop - 1 + self.blend) // self.core + 1)

    def windows(self, part: slice) -> range:
        """The windows that say something of a stretch of pixels."""
        first = (part.start - self.blend) // self.core
        return range(max(0, first), min(self.count, -(-(part.stop + self.blend) // self.core)))

    def seen(self, window: int) -> slice:
        """The pixels that the net sees; may reach beyond the grid."""
        start = window * self.core - self.halo
        return slice(start, start + self.core + 2 * self.halo)

    def said(self, window: int) -> slice:
        """The pixels of the grid that a window says something of."""
        start = window * self.core - self.blend
        return slice(max(0, start), min(self.size, start + self.kept))

    def weights(self, window: int) -> NDArray[np.uint32]:
        """Weights (kept,) of a window: a raised cosine over the overlaps, `FULL` elsewhere and at the grid's ends."""
        weights = np.full(self.kept, FULL, np.uint32)
        overlap = 2 * self.blend
        if overlap:
            rising = np.rint(FULL * np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / overlap) ** 2).astype(np.uint32)
            if window > 0:
                weights[:overlap] = rising
            if window < self.count - 1:
                # Not mirrored but the complement: the two sum up to FULL after rounding too.
                weights[-overlap:] = FULL - rising
        return weights


@dataclass(frozen=True)
class Lattice:
    """The windows of a grid."""

    y: Axis
    x: Axis

    @classmethod
    def over(cls, shape: tuple[int, int], core: int, halo: int) -> Lattice:
        """The windows over a grid of (height, width) pixels."""
        return cls(Axis(shape[0], core, halo), Axis(shape[1], core, halo))

    def windows(self, y: slice, x: slice) -> Iterator[tuple[int, int]]:
        """(row, column) of the windows that say something of a part, in row order."""
        return ((row, col) for row in self.y.windows(y) for col in self.x.windows(x))

    def margin(self, y: slice, x: slice) -> tuple[slice, slice]:
        """The pixels of the grid that these windows see."""
        found = []
        for axis, part in ((self.y, y), (self.x, x)):
            rows = axis.windows(part)
            start, stop = axis.seen(rows.start).start, axis.seen(rows.stop - 1).stop
            found.append(slice(max(0, start), min(axis.size, stop)))
        return found[0], found[1]
