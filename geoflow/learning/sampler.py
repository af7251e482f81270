"""Windows drawn from a country without ever holding it in memory.

A country is cut into blocks; a few blocks at a time lie in memory, windows are drawn from those, and one after the
other is exchanged for a new one, in a thread of its own, while the net computes. Every draw of a lane comes from seeded
generators, so the windows, their order and their augmentation are the same on every run; and a lane can say where it
stands, and go on from there in another process.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.inputs import NODATA, InputSpec
from geoflow.learning.augment import NO_ALTERATIONS, Alterations, alter, augment, jitter
from geoflow.learning.lanes import Lanes, prefetched, seeds
from geoflow.learning.samples import IGNORE, Hidden, Survey, check_borders, read

Position = dict[str, Any]
"""Where a lane stands: plain values. From there it draws what it would have drawn."""


@dataclass(frozen=True)
class SamplerOptions:
    """How windows are drawn.

    Parameters
    ----------
    window_px, batch : int
        Edge of a window; windows in a batch, over all lanes.
    seed : int
    border_m, border_weight : float
        Labels nearer than ``border_m`` to a border of classes count with the probability ``border_weight``, drawn anew
        for every window, and no window is chosen for their sake: drawn borders are generalised.
    rarity : float
        0 draws classes by area, 1 all classes equally often.
    jitter : float
        Spread of random gain and offset per window and channel, in standard deviations of the channel.
    alterations : Alterations
        What else is done to the windows.
    memory_mb : int
        Imagery held at once by all lanes together, at most.
    """

    window_px: int = 128
    batch: int = 8
    seed: int = 0
    border_m: float = 0.0
    border_weight: float = 0.0
    rarity: float = 0.5
    jitter: float = 0.05
    memory_mb: int = 512
    alterations: Alterations = NO_ALTERATIONS


@dataclass(frozen=True)
class Batch:
    """One step's worth of windows.

    Attributes
    ----------
    x : float32 array, dims (window, channel, y, x)
        Encoded by the model's `InputSpec`.
    target : int64 array, dims (window, y, x)
        Class index, or `IGNORE`.
    position : list of Position
        Where the lanes that it comes from stand after it.
    """

    x: NDArray[np.float32]
    target: NDArray[np.int64]
    position: list[Position] = field(default_factory=list)


@dataclass
class _Loaded:
    """A block in memory, with its training pixels sorted by class so that one of a class is found at once."""

    cube: NDArray[np.int16]
    target: NDArray[np.int16]
    near: NDArray[np.bool_]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]


class Sampler:
    """Endless, seeded windows from a country.

    Parameters
    ----------
    reflectance : array-like int16, dims (period, band, y, x)
    labels : array-like of codes, dims (y, x)
    found : Survey
        Of the same labels with the same ``held_out``.
    held_out : Hidden, optional
        Labels of these blocks are never drawn. Their imagery may lie within a window, as context.
    options : SamplerOptions
    border_m : array-like int16, dims (y, x), optional
        Metres to the nearest class border; needed where ``options.border_m`` is above 0.
    lanes : Lanes, optional
        One by default. Several share the blocks out among them, where there are enough.

    Raises
    ------
    LabelError
        If distances to borders are needed and not given, or of another shape than the labels.
    """

    def __init__(
        self,
        reflectance: Any,
        labels: Any,
        found: Survey,
        held_out: Hidden | None,
        options: SamplerOptions,
        border_m: Any = None,
        lanes: Lanes | None = None,
    ) -> None:
        if options.border_m > 0:
            check_borders(border_m, labels)
        self.border_m = border_m if options.border_m > 0 else None
        self.reflectance, self.labels, self.found = reflectance, labels, found
        self.held_out, self.options, self.lanes = held_out, options, lanes or Lanes()
        self.shape = (int(labels.shape[-2]), int(labels.shape[-1]))
        block = found.blocks[0]
        layers = int(np.prod(reflectance.shape[:2]))
        block_mb = layers * 2 * (block.y.stop - block.y.start) * (block.x.stop - block.x.start) / 2**20
        self.blocks_at_once = max(1, int(options.memory_mb / self.lanes.total / max(block_mb, 1e-9)))
        table = np.full(max(found.codes) + 2, IGNORE, np.int16)
        table[list(found.codes)] = np.arange(len(found.codes))
        self._index_of_code = table

    def raw(self) -> Generator[tuple[NDArray[np.int16], NDArray[np.int16]], None, None]:
        """Windows one by one: int16 cube (period, band, y, x) and class index (y, x), of the first lane."""
        lane = _Lane(self, 0, None)
        while True:
            yield lane.window()

    def batches(
        self, inputs: InputSpec, steps: int, position: Sequence[Position] | None = None
    ) -> Generator[Batch, None, None]:
        """``steps`` batches, encoded and augmented, prepared in a thread of their own ahead of the net.

        ``position`` is that of all lanes, of the last batch that is not to come again.
        """
        return prefetched(lambda: self._batches(inputs, steps, position))

    def _batches(self, inputs: InputSpec, steps: int, position: Sequence[Position] | None) -> Iterator[Batch]:
        share = self.lanes.share(self.options.batch)
        lanes = [_Lane(self, n, None if position is None else position[n]) for n in self.lanes.mine]
        for _ in range(steps):
            parts = [lane.batch(inputs, share) for lane in lanes]
            x, target = (_joined([part[i] for part in parts]) for i in (0, 1))
            yield Batch(x, target, [lane.position() for lane in lanes])

    def blocks_of(self, lane: int) -> NDArray[np.float64]:
        """How often a lane takes each block, up to a factor: as the square root of its labels; 0 for others' blocks."""
        weight = np.sqrt(self.found.counts.sum(axis=1).astype(float))
        usable = np.flatnonzero(weight)
        if len(usable) >= self.lanes.total > 1:
            order = np.random.default_rng([self.options.seed, 5]).permutation(usable)
            weight[np.setdiff1d(usable, order[lane :: self.lanes.total])] = 0
        return weight

    def load(self, number: int) -> _Loaded:
        """Read a block."""
        block = self.found.blocks[number]
        cube, codes = read(self.reflectance, block), read(self.labels, block)
        target = self._index_of_code[np.minimum(codes, len(self._index_of_code) - 1)]
        if self.border_m is None:
            near = np.zeros(target.shape, bool)
        else:
            near = read(self.border_m, block) < self.options.border_m
        if self.held_out is not None:
            target = np.where(self.held_out.mask(self.shape, block.y, block.x), np.int16(IGNORE), target)
        missing = [max(0, self.options.window_px - size) for size in target.shape]
        if any(missing):
            pad = ((0, missing[0]), (0, missing[1]))
            target = np.pad(target, pad, constant_values=IGNORE)
            near = np.pad(near, pad)
            cube = np.pad(cube, ((0, 0), (0, 0), *pad), constant_values=NODATA)
        sure = np.where(near, np.int16(IGNORE), target)
        if self.options.border_weight == 0:
            target = sure
        order = np.argsort(sure, axis=None, kind="stable")
        starts = np.searchsorted(sure.ravel()[order], np.arange(len(self.found.codes) + 1))
        return _Loaded(cube, target, near, order, starts)


class _Lane:
    """One stream of windows: its generators, and the blocks that it holds."""

    def __init__(self, sampler: Sampler, number: int, position: Position | None) -> None:
        self._sampler, self._options = sampler, sampler.options
        self._weight = sampler.blocks_of(number)
        seed = self._options.seed
        self._drawing = np.random.default_rng(seeds(seed, 1, lane=number))
        self._altering = np.random.default_rng(seeds(seed, 2, lane=number))
        usable = int((self._weight > 0).sum())
        self._size = min(usable, sampler.blocks_at_once)
        self._everything = self._size == usable
        if position is None:
            self._numbers = self._choose(self._size)
            self._draws = [0] * self._size
        else:
            self._drawing.bit_generator.state = position["drawing"]
            self._altering.bit_generator.state = position["altering"]
            self._numbers, self._draws = list(position["blocks"]), list(position["draws"])
        self._pool = [sampler.load(i) for i in self._numbers]

    def position(self) -> Position:
        """Where it stands."""
        return {
            "drawing": self._drawing.bit_generator.state,
            "altering": self._altering.bit_generator.state,
            "blocks": list(self._numbers),
            "draws": list(self._draws),
        }

    def batch(self, inputs: InputSpec, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Windows as a net reads them, augmented, and their targets."""
        drawn = [augment(self._altering, *self.window()) for _ in range(count)]
        x, observed = inputs.encode(np.stack([cube for cube, _ in drawn]))
        target = np.stack([index for _, index in drawn]).astype(np.int64)
        target[~observed] = IGNORE
        jitter(self._altering, x, self._options.jitter)
        alter(self._altering, x, len(inputs.periods), self._options.alterations)
        return x, target

    def window(self) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """The next window; a block that gave as many as cover it makes room for another one afterwards."""
        at = int(self._drawing.integers(len(self._pool)))
        window = self._draw(self._pool[at])
        self._draws[at] += 1
        if not self._everything and self._draws[at] >= self._draws_per_block(self._pool[at]):
            self._numbers[at], self._draws[at] = self._choose(1)[0], 0
            self._pool[at] = self._sampler.load(self._numbers[at])
        return window

    def _choose(self, count: int) -> list[int]:
        weight = self._weight
        return [int(i) for i in self._drawing.choice(len(weight), size=count, replace=False, p=weight / weight.sum())]

    def _draws_per_block(self, loaded: _Loaded) -> int:
        """As many windows as cover a block about once, so that reading never outweighs using."""
        return max(1, loaded.target.size // self._options.window_px**2)

    def _draw(self, loaded: _Loaded) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """A window that holds a random pixel of a random class."""
        rng = self._drawing
        size, (height, width) = self._options.window_px, loaded.target.shape
        counts = np.diff(loaded.starts).astype(float)
        chance = np.where(counts > 0, np.maximum(counts, 1) ** (1 - self._options.rarity), 0.0)
        if chance.sum() > 0:
            chosen = int(rng.choice(len(counts), p=chance / chance.sum()))
            pixel = int(loaded.order[rng.integers(loaded.starts[chosen], loaded.starts[chosen + 1])])
        else:  # every label of the block lies near a border
            pixel = int(rng.integers(loaded.target.size))
        y, x = divmod(pixel, width)
        top = int(np.clip(y - rng.integers(size), 0, height - size))
        left = int(np.clip(x - rng.integers(size), 0, width - size))
        part = (slice(top, top + size), slice(left, left + size))
        target, weight = loaded.target[part], self._options.border_weight
        if 0 < weight < 1 and loaded.near[part].any():
            left_out = loaded.near[part] & (rng.random(target.shape, np.float32) >= weight)
            target = np.where(left_out, np.int16(IGNORE), target)
        return loaded.cube[..., *part], target


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
