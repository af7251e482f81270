"""A store of patches as what a classifier learns from: which patches, in which part, with which statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.labels.patchdata import complete_store
from geoflow.labels.patchlabels import UNKNOWN
from geoflow.labels.patchstats import merged
from geoflow.labels.splits import TRAIN, VALIDATION

if TYPE_CHECKING:
    from geoflow.labels.patchstore import PatchStore
    from geoflow.learning.options import ClassifierOptions
    from geoflow.learning.patchstream import PatchSource


def source_of(
    path: Path, bands: Sequence[str], scheme: str, split: str | None, options: ClassifierOptions
) -> PatchSource:
    """The patches of a store whose labels are known; pixels are read when they are asked for.

    Training and validation are those of the split. Without one it is the store's own or the official; where there is
    neither, or it holds nothing back, a random share of the patches to learn from is.

    Raises
    ------
    LabelError
        If the store lacks a band or the split, or no patch's labels are known, or none is to be learned from.
    """
    from geoflow.learning.patchstream import random_parts

    store = complete_store(path)
    labels = store.facts(f"label_{scheme}")
    known = (store.facts("valid") == 1) & ~(labels == UNKNOWN).any(axis=1)
    if not known.any():
        raise LabelError(f"{path}: no patch tells its labels of {scheme}; set classifier.labels to another scheme")
    if split is not None and split not in store.described["splits"]:
        raise LabelError(f"{path} has no split {split!r}; it has {', '.join(store.described['splits'])}")
    default = store.described["default_split"]
    name = split or (None if default == "random" else default)
    parts = np.full(len(known), TRAIN, np.uint8) if name is None else store.facts(f"split_{name}")
    train, held = (np.flatnonzero(known & (parts == part)) for part in (TRAIN, VALIDATION))
    if not len(train):
        raise LabelError(f"split {name!r} of {path} has no patch to learn from")
    if not len(held):
        train, held = random_parts(train, options.validation, options.seed)
    return source_from(store, bands, labels == 1, train, held)


def source_from(
    store: PatchStore, bands: Sequence[str], labels: NDArray[np.bool_], train: NDArray[np.intp], held: NDArray[np.intp]
) -> PatchSource:
    """Some patches of a store to learn from and others to measure on (ascending places), with labels of any origin.

    Raises
    ------
    LabelError
        If the store lacks a band.
    """
    from geoflow.learning.patchstream import PatchSource

    shape = (len(bands), *store.patch_shape)
    return PatchSource(store.pixels(bands), store.chunk, shape, labels, train, held, _statistics(store, bands, train))


def _statistics(
    store: PatchStore, bands: Sequence[str], train: NDArray[np.intp]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each band over some patches, from the sums that each of them left."""
    learned = np.zeros(store.patches, bool)
    learned[train] = True

    def tables() -> Iterator[NDArray[np.float64]]:
        for number, table in enumerate(store.moments()):
            yield table[learned[store.rows(number)]]

    found = merged(tables(), len(store.bands))
    at = [store.bands.index(band) for band in bands]
    std = np.where(found.std > 0, found.std, 1.0)
    return tuple(found.mean[at].tolist()), tuple(std[at].tolist())
