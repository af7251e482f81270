"""Labelled patches as shuffled batches, read a few chunks at a time: BigEarthNet's pixels are 200 GB.

Each chunk is read once an epoch. Chunks come in an order of each epoch's own, as many at once as memory allows; the
patches of these are shuffled together, while a thread reads the next ones. Where all patches fit, that is shuffling
them all, and they are read just once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.inputs import InputSpec, channel_statistics
from geoflow.learning.augment import NO_ALTERATIONS, Alterations, alter
from geoflow.learning.lanes import Lanes, seeds

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


@dataclass(frozen=True)
class _Planned:
    """A batch before its pixels: which patches, how each is turned and whether it is reflected."""

    rows: list[int]
    turns: list[int]
    flips: list[bool]


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
        Patches in a batch, over all lanes.
    seed : int
    memory_mb : float
        For pixels; half of it is shuffled while the other half is read. At least one chunk a lane is.
    lanes : Lanes
    alterations : Alterations
        What is done to patches beside turning them.
    """

    source: PatchSource
    labels: NDArray[np.bool_]
    inputs: InputSpec
    batch: int
    seed: int
    memory_mb: float
    lanes: Lanes = field(default_factory=Lanes)
    alterations: Alterations = NO_ALTERATIONS
    _whole: dict[bytes, _Loaded] = field(default_factory=dict)

    def steps(self, which: Rows) -> int:
        """Batches in an epoch."""
        return -(-len(which) // self.batch)

    def epoch(self, which: Rows, number: int, skip: int = 0) -> Iterator[Batch]:
        """One shuffled, augmented pass. No batch but of all patches has one alone: batch norm needs a spread.

        Parameters
        ----------
        which : ascending positions
        number : int
            Of the epoch: each has an order of its own.
        skip : int
            Batches that were taken already: what only they need is not read.
        """
        share = self.lanes.share(self.batch)
        streams = [self._lane(which, number, lane, share, skip) for lane in self.lanes.mine]
        for parts in zip(*streams, strict=True):
            x, y = ([part[i] for part in parts] for i in (0, 1))
            yield (x[0], y[0]) if len(parts) == 1 else (np.concatenate(x), np.concatenate(y))

    def plain(self, which: Rows) -> Iterator[tuple[Rows, NDArray[np.float32]]]:
        """One pass as they are: positions, and what the net reads."""
        with self._pixels(which, which, None) as pixels:
            for rows in pixels.groups:
                for at in range(0, len(rows), self.batch):
                    some = rows[at : at + self.batch]
                    cube = np.stack(pixels.of(some.tolist()))
                    yield some, self.inputs.encode(cube[:, None])[0]

    def _lane(self, which: Rows, number: int, lane: int, share: int, skip: int) -> Iterator[Batch]:
        """A lane's share of an epoch's batches; one with fewer patches than another takes some of them again."""
        rng = np.random.default_rng(seeds(self.seed, 4, number, lane=lane))
        own, left = self._own(which, number, lane), self.steps(which)
        while left > 0:
            with self._pixels(which, own, rng) as pixels:
                planned = _plan(pixels.groups, rng, share)
                if self.lanes.total > 1:  # all lanes give equally many; one that has fewer left begins anew
                    planned = itertools.takewhile(lambda one: len(one.rows) == share, planned)
                planned = itertools.islice(planned, left)
                passed = sum(1 for _ in itertools.islice(planned, skip))
                skip, left = skip - passed, left - passed
                for one in planned:
                    left -= 1
                    yield self._encoded(one, pixels.of(one.rows))

    def _own(self, which: Rows, number: int, lane: int) -> Rows:
        """The patches of a lane in an epoch: whole chunks, unless all fit into memory anyway."""
        if self.lanes.total == 1:
            return which
        rng = np.random.default_rng([self.seed, 6, number])
        chunks = which // self.source.chunk
        if self._fits(which):
            own = rng.permutation(which)[lane :: self.lanes.total]
        else:
            own = which[np.isin(chunks, rng.permutation(np.unique(chunks))[lane :: self.lanes.total])]
        if len(own) < self.lanes.share(self.batch):
            raise LabelError(
                f"{len(which)} patches are too few for batches of {self.batch} from {self.lanes.total} lanes; set "
                "batch or lanes lower"
            )
        return np.sort(own)

    def _encoded(self, one: _Planned, cubes: list[NDArray[np.int16]]) -> Batch:
        turned = [np.rot90(cube, turns, axes=(-2, -1)) for cube, turns in zip(cubes, one.turns, strict=True)]
        turned = [cube[..., ::-1] if flip else cube for cube, flip in zip(turned, one.flips, strict=True)]
        x, _ = self.inputs.encode(np.stack(turned)[:, None])  # a patch is one period
        # Drawn anew for each batch, and the same for it wherever an epoch is taken up again.
        alter(np.random.default_rng([self.seed, 8, *one.rows, *one.turns]), x, 1, self.alterations)
        return x, self.labels[one.rows].astype(np.float32)

    def _chunks_at_once(self, lanes: int) -> int:
        one = 2 * self.source.chunk * int(np.prod(self.source.shape))
        return max(1, int(self.memory_mb * 2**20 / 2 / lanes / one))

    def _fits(self, which: Rows) -> bool:
        return len(np.unique(which // self.source.chunk)) <= self._chunks_at_once(1)

    def _pixels(self, which: Rows, own: Rows, rng: np.random.Generator | None) -> _Pixels:
        """Of the patches ``own`` of ``which``, a few chunks at a time; all of ``which`` are kept where they fit."""
        if self._fits(which):
            key = which.tobytes()
            if key not in self._whole:
                self._whole = {key: _load(self.source, which)}
            return _Pixels(self.source, [own], self._whole[key])
        chunks = np.unique(own // self.source.chunk)
        if rng is not None:
            chunks = rng.permutation(chunks)
        at_once = self._chunks_at_once(self.lanes.total)
        together = [np.sort(chunks[at : at + at_once]) for at in range(0, len(chunks), at_once)]
        return _Pixels(self.source, [np.concatenate(_by_chunk(own, some, self.source.chunk)) for some in together])


class _Pixels:
    """Groups of patches, each read as it is reached, while the one before is used."""

    def __init__(self, source: PatchSource, groups: list[Rows], whole: _Loaded | None = None) -> None:
        self.groups = groups
        self._source, self._whole, self._at = source, whole is not None, -1
        self._loaded = whole or _Loaded(np.empty(0, np.intp), np.empty(0, np.int16))
        self._group_of_chunk = {c: n for n, rows in enumerate(groups) for c in np.unique(rows // source.chunk).tolist()}
        self._reader: ThreadPoolExecutor | None = None
        self._coming: tuple[int, Future[_Loaded]] | None = None

    def __enter__(self) -> _Pixels:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def of(self, rows: list[int]) -> list[NDArray[np.int16]]:
        """Patches, in an order in which no group comes again once it was left."""
        found: list[NDArray[np.int16]] = []
        for row in rows:
            group = self._group_of_chunk[row // self._source.chunk]
            if not self._whole and group != self._at:
                # Copied, or a few patches would keep a whole group in memory.
                found = [cube.copy() for cube in found]
                self._reach(group)
            found.append(self._loaded[row])
        return found

    def _reach(self, number: int) -> None:
        """Read a group, and begin to read the next one."""
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, "patches")
        if self._coming is None or self._coming[0] != number:
            self._coming = (number, self._reader.submit(_load, self._source, self.groups[number]))
        self._loaded, self._at = self._coming[1].result(), number
        following = number + 1
        self._coming = None
        if following < len(self.groups):
            self._coming = (following, self._reader.submit(_load, self._source, self.groups[following]))


def _plan(groups: list[Rows], rng: np.random.Generator, batch: int) -> Iterator[_Planned]:
    """The patches of each group in random order, in batches that go on from one group into the next."""
    waiting: list[int] = []
    last: list[int] = []
    for rows in groups:
        waiting += rng.permutation(rows).tolist()
        while len(waiting) >= batch:
            last, waiting = waiting[:batch], waiting[batch:]
            yield _turned(last, rng)
    if waiting:
        yield _turned(waiting if len(waiting) > 1 else [*last[-1:], *waiting], rng)


def _turned(rows: list[int], rng: np.random.Generator) -> _Planned:
    turns = [int(rng.integers(4)) for _ in rows]
    return _Planned(rows, turns, [bool(rng.integers(2)) for _ in rows])


def _load(source: PatchSource, which: Rows) -> _Loaded:
    chunks = np.unique(which // source.chunk)
    cube = np.empty((len(which), *source.shape), np.int16)
    at = 0
    for start, rows in zip((chunks * source.chunk).tolist(), _by_chunk(which, chunks, source.chunk), strict=True):
        cube[at : at + len(rows)] = source.read(slice(start, start + source.chunk))[rows - start]
        at += len(rows)
    return _Loaded(which, cube)


def _by_chunk(which: Rows, chunks: NDArray[np.intp], size: int) -> list[Rows]:
    """Those of the ascending ``which`` that lie in each chunk."""
    return [which[slice(*np.searchsorted(which, (at * size, at * size + size)))] for at in chunks.tolist()]
