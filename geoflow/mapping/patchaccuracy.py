"""How many of the places that changed a map finds, and how many of those it shows did change.

Pixels count a change by its area: one large clear-cut outweighs a hundred new houses. Those who go and look count
places. A place is a patch, changed pixels that hang together by edges or corners, whatever they changed to; it is found
where at least half of its pixels are changed in the other map (the overlap of half is that of PASCAL VOC's detection
task, Everingham et al. 2010, IJCV 88, and usual for objects in change detection since).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoflow.mapping.change import CHANGED, UNOBSERVED
from geoflow.mapping.changepatches import Pieces, join, vectorise

LEAST_OVERLAP = 0.5
"""Least share of a patch that is changed in the other map as well, for it to count as found."""


@dataclass(frozen=True)
class Compared:
    """One block of two change maps.

    Attributes
    ----------
    truth, mapped : uint8 arrays, dims (y, x)
        0 not observed, 1 unchanged, 2 changed (`geoflow.mapping.change`).
    y, x : slice
        The block, in pixels of the whole map.
    """

    truth: NDArray[np.uint8]
    mapped: NDArray[np.uint8]
    y: slice
    x: slice


def patch_accuracy(blocks: Callable[[], Iterable[Compared]], geobox: GeoBox, min_px: int) -> dict[str, Any]:
    """Precision, recall and F1 of patches, the same for any blocks.

    Parameters
    ----------
    blocks : callable
        Gives the blocks of the map, each pixel once, in any order; called twice. Pixels that are not observed in
        either map are left out of both.
    geobox : GeoBox
        Of the whole map.
    min_px : int
        Patches of fewer pixels are not counted; changed pixels of smaller ones still count as changed beneath a larger
        patch of the other map.

    Returns
    -------
    dict
        ``true``, ``found`` (patches of the truth, and those that are found), ``mapped``, ``right`` (patches of the map,
        and those that changed); ``recall``, ``precision``, ``f1``, None where undefined.
    """
    true, found = _overlapping(_pieces(blocks(), geobox, mapped=False), min_px)
    mapped, right = _overlapping(_pieces(blocks(), geobox, mapped=True), min_px)
    recall, precision = found / true if true else None, right / mapped if mapped else None
    f1 = None if recall is None or precision is None else _harmonic(recall, precision)
    return {
        "true": true,
        "found": found,
        "mapped": mapped,
        "right": right,
        "recall": recall,
        "precision": precision,
        "f1": f1,
    }


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def _pieces(blocks: Iterable[Compared], geobox: GeoBox, mapped: bool) -> Iterator[Pieces]:
    """Patches of one of the two maps; their ``confidence`` is 1 where the other map changed too."""
    for block in blocks:
        both = (block.truth != UNOBSERVED) & (block.mapped != UNOBSERVED)
        own, other = (block.mapped, block.truth) if mapped else (block.truth, block.mapped)
        arrays = {
            "change": np.where(both, own, UNOBSERVED),
            # One transition for all: a place that turned into two classes is one place.
            "from_code": np.ones(own.shape, np.uint8),
            "to_code": np.full(own.shape, 2, np.uint8),
            "confidence": (both & (other == CHANGED)).astype(np.uint8),
        }
        yield vectorise(arrays, block.y, block.x, geobox)


def _overlapping(pieces: Iterable[Pieces], min_px: int) -> tuple[int, int]:
    """How many patches there are, and how many of them overlap enough."""
    total = overlapping = 0
    for patches in join(pieces):
        large = patches.pixels >= min_px
        enough = patches.confidence[:, 0] >= LEAST_OVERLAP * patches.pixels
        total, overlapping = total + int(large.sum()), overlapping + int((large & enough).sum())
    return total, overlapping
