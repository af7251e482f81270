"""From class probabilities to codes at every level, so that the levels nest. Numpy in, numpy out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoflow.legends import Legend

CONFIDENCE_NODATA = 255
"""Nodata of a confidence in percent."""


@dataclass(frozen=True)
class Ladder:
    """The classes of a model as groups on each level, coarsest first.

    Attributes
    ----------
    codes : tuple of arrays
        The group codes of each level, ascending; the last are the model's own classes.
    member : tuple of float32 arrays, dims (group, class)
        1 where a class of the model belongs to the group.
    parent : tuple of int arrays
        For each level, each group's position on the level above (zeros at the coarsest level).
    """

    codes: tuple[NDArray[np.uint16], ...]
    member: tuple[NDArray[np.float32], ...]
    parent: tuple[NDArray[np.intp], ...]

    @classmethod
    def of(cls, legend: Legend, classes: tuple[int, ...]) -> Ladder:
        """The ladder over ``classes``, codes of the legend's deepest level in logit order."""
        codes, member, parent = [], [], []
        above: NDArray[np.uint16] | None = None
        for level in legend.levels:
            group_of = np.array([legend.ancestor(c, level) for c in classes], np.uint16)
            groups = np.unique(group_of)
            codes.append(groups)
            member.append((groups[:, None] == group_of[None, :]).astype(np.float32))
            if above is None:
                parent.append(np.zeros(len(groups), np.intp))
            else:
                upper = np.array([legend.ancestor(int(g), legend.levels[len(codes) - 2]) for g in groups], np.uint16)
                parent.append(np.searchsorted(above, upper))
            above = groups
        return cls(tuple(codes), tuple(member), tuple(parent))


def decode(
    probabilities: NDArray[np.float32], observed: NDArray[np.bool_], ladder: Ladder
) -> tuple[list[NDArray[np.uint16]], NDArray[np.uint8]]:
    """Decide the class of every pixel on every level, from the top down.

    Parameters
    ----------
    probabilities : float32 array, dims (class, y, x)
        Sum 1 over the classes, which are in the order that ``ladder`` was made with.
    observed : bool array, dims (y, x)
        False where there was no imagery: nodata in, nodata out.
    ladder : Ladder

    Returns
    -------
    codes : list of uint16 arrays, dims (y, x), coarsest level first
        0 where not observed. The best group of level 1, then the best of its children, and so on: a code's parent is
        always the code one level up.
    confidence : uint8 array, dims (y, x)
        The probability, in whole percent, of the class on the deepest level that was decided for: the softmax value
        of that class among all classes, not conditional on the levels above. 255 where not observed.
    """
    levels = []
    best: NDArray[np.intp] | None = None
    flat = probabilities.reshape(len(probabilities), -1)
    for codes, member, parent in zip(ladder.codes, ladder.member, ladder.parent, strict=True):
        sums = flat if len(codes) == len(flat) else member @ flat
        if best is not None:
            sums = np.where(parent[:, None] == best[None, :], sums, np.float32(-1))
        best = sums.argmax(axis=0)
        levels.append(np.where(observed, codes[best].reshape(observed.shape), np.uint16(0)))
    chosen = np.take_along_axis(flat, best[None, :], axis=0)[0].reshape(observed.shape)  # type: ignore[index]
    percent = np.rint(np.clip(chosen, 0, 1) * 100).astype(np.uint8)
    return levels, np.where(observed, percent, np.uint8(CONFIDENCE_NODATA))
