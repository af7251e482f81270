"""Labelled patches as shuffled batches, read a few chunks at a time: BigEarthNet's pixels are 200 GB.

Each chunk is read once an epoch. Chunks come in an order of each epoch's own, as many at once as memory allows; the
patches of these are shuffled together, while a thread reads the next ones. Where all patches fit, that is shuffling
them all, and they are read just once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.inputs import InputSpec, channel_statistics

Batch = tuple[NDArray[np.float32], NDArray[np.float32]]
Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class PatchSource:
    """Where labelled patches come from.

    Attributes
    ----------
    read : callable
        From a slice of patches, never across a multiple of ``chunk``, to int16, dims (patch, band, y, x), reflectance
        x 10000, nodata -32768.
    chunk : int
        Patches that are read together.
    shape : tuple of int
        Bands, height and width of a patch.
    labels : bool array, dims (patch, class)
    train, held : ascending positions
        Patches to learn from, and to measure on.
    statistics : pair of tuples of float
        Mean and standard deviation of each band over ``train``.
    """

    read: Callable[[slice], NDArray[np.int16]]
    chunk: int
    shape: tuple[int, ...]
    labels: NDArray[np.bool_]
    train: Rows
    held: Rows
    statistics: tuple[tuple[float, ...], tuple[float, ...]]

    @classmethod
    def of(cls, cube: NDArray[np.int16], labels: NDArray[np.bool_], validation: float, seed: int) -> PatchSource:
        """Of patches in memory, a random share of which is held back."""
        train, held = random_parts(np.arange(len(cube)), validation, seed)
        mean, std = channel_statistics([cube[i][None] for i in train])
        return cls(cube.__getitem__, len(cube), cube.shape[1:], labels, train, held, (mean, std))


def random_parts(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Training and validation positions, both ascending and neither empty.

    Raises
    ------
    LabelError
        If there are fewer than two.
    """
    if len(rows) < 2:
        raise LabelError(f"{len(rows)} patches are too few to train a classifier")
    order = np.random.default_rng([seed, 3]).permutation(len(rows))
    held = min(max(1, round(share * len(rows))), len(rows) - 1)
    return np.sort(rows[order[held:]]), np.sort(rows[order[:held]])


@dataclass(frozen=True, eq=False)
class _Loaded:
    """Some patches in memory: their positions, ascending, and their pixels."""

    rows: Rows
    cube: NDArray[np.int16]

    def __getitem__(self, row: int) -> NDArray[np.int16]:
        found: NDArray[np.int16] = self.cube[np.searchsorted(self.rows, row)]
        return found


@dataclass(eq=False)
class PatchStream:
    """Patches of a source as batches.

    Parameters
    ----------
    source : PatchSource
    labels : bool array, dims (patch, class)
        Those of the source that are learned, in the order of the logits.
    inputs : InputSpec
    batch : int
    seed : int
    memory_mb : float
        For pixels; half of it is shuffled while the other half is read. At least one chunk is.
    """

    source: PatchSource
    labels: NDArray[np.bool_]
    inputs: InputSpec
    batch: int
    seed: int
    memory_mb: float
    _whole: dict[bytes, _Loaded] = field(default_factory=dict)

    def epoch(self, which: Rows, number: int) -> Iterator[Batch]:
        """One shuffled, augmented pass. No batch but of all patches has one alone: batch norm needs a spread."""
        rng = np.random.default_rng([self.seed, 4, number])
        waiting: list[tuple[int, NDArray[np.int16]]] = []
        last: list[tuple[int, NDArray[np.int16]]] = []
        for loaded in self._loads(which, rng):
            waiting += [(row, loaded[row]) for row in rng.permutation(loaded.rows).tolist()]
            while len(waiting) >= self.batch:
                last, waiting = waiting[: self.batch], waiting[self.batch :]
                yield self._encoded(last, rng)
            # Copied, or a few patches would keep a whole load in memory.
            waiting, last = ([(row, cube.copy()) for row, cube in some] for some in (waiting, last[-1:]))
        if waiting:
            yield self._encoded(waiting if len(waiting) > 1 else [*last, *waiting], rng)

    def plain(self, which: Rows) -> Iterator[tuple[Rows, NDArray[np.float32]]]:
        """One pass as they are: positions, and what the net reads."""
        for loaded in self._loads(which, None):
            for at in range(0, len(loaded.rows), self.batch):
                rows = loaded.rows[at : at + self.batch]
                yield rows, self.inputs.encode(loaded.cube[at : at + self.batch, None])[0]

    def _encoded(self, patches: list[tuple[int, NDArray[np.int16]]], rng: np.random.Generator) -> Batch:
        cubes = [np.rot90(cube, int(rng.integers(4)), axes=(-2, -1)) for _, cube in patches]
        cubes = [cube[..., ::-1] if rng.integers(2) else cube for cube in cubes]
        x, _ = self.inputs.encode(np.stack(cubes)[:, None])  # a patch is one period
        return x, self.labels[[row for row, _ in patches]].astype(np.float32)

    def _loads(self, which: Rows, rng: np.random.Generator | None) -> Iterator[_Loaded]:
        """The patches, a few chunks at a time; the next are read while these are used."""
        chunks = np.unique(which // self.source.chunk)
        key = which.tobytes()
        if key in self._whole:
            yield self._whole[key]
            return
        one = 2 * self.source.chunk * int(np.prod(self.source.shape))
        at_once = max(1, int(self.memory_mb * 2**20 / 2 / one))
        if len(chunks) <= at_once:
            self._whole = {key: self._load(which, chunks)}
            yield self._whole[key]
            return
        if rng is not None:
            chunks = rng.permutation(chunks)
        groups = [chunks[at : at + at_once] for at in range(0, len(chunks), at_once)]
        with ThreadPoolExecutor(1, "patches") as reader:
            coming = reader.submit(self._load, which, groups[0])
            for following in [*groups[1:], None]:
                loaded = coming.result()
                if following is not None:
                    coming = reader.submit(self._load, which, following)
                yield loaded

    def _load(self, which: Rows, chunks: NDArray[np.intp]) -> _Loaded:
        size = self.source.chunk
        starts = (np.sort(chunks) * size).tolist()
        found = [which[slice(*np.searchsorted(which, (start, start + size)))] for start in starts]
        cube = np.empty((sum(map(len, found)), *self.source.shape), np.int16)
        at = 0
        for start, rows in zip(starts, found, strict=True):
            cube[at : at + len(rows)] = self.source.read(slice(start, start + size))[rows - start]
            at += len(rows)
        return _Loaded(np.concatenate(found), cube)
