"""What feeds the nets: held-out blocks, and windows drawn from a country without ever holding it in memory.

Imagery and labels are anything that slices like an array: numpy, Zarr, or xarray over Zarr. A country is cut into
blocks; a few blocks at a time lie in memory, windows are drawn from those, and one after the other is exchanged for a
new one, in a thread of its own, while the net computes. Every draw comes from one seeded generator, so the windows,
their order and their augmentation are the same on every run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.inputs import NODATA, InputSpec

IGNORE = -1
"""Class index of pixels that no loss counts: nodata, held out, too near a border, or of a class that is not learned."""

BLOCK_PX = 1024
"""Edge of the squares that imagery is read in where it does not fit into memory at once."""


@dataclass(frozen=True)
class HeldOut:
    """Which squares of the country no training may see the labels of.

    Parameters
    ----------
    block_px : int
        Edge of a square. Squares, not pixels: neighbouring pixels resemble each other, and a pixel beside a training
        pixel proves nothing.
    share : float
        Share of the squares, 0 to below 1.
    seed : int
    """

    block_px: int = 256
    share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.block_px <= 0:
            raise LabelError(f"held-out blocks must have a positive edge, not {self.block_px} px")
        if not 0 <= self.share < 1:
            raise LabelError(f"the held-out share must be at least 0 and below 1, not {self.share}")

    def blocks(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """`held_out_blocks` of a grid of ``shape`` pixels."""
        return held_out_blocks(shape, self.block_px, self.share, self.seed)

    def mask(self, shape: tuple[int, int], y: slice | None = None, x: slice | None = None) -> NDArray[np.bool_]:
        """`held_out_mask` of a grid of ``shape`` pixels."""
        return held_out_mask(shape, self.block_px, self.share, self.seed, y, x)

    def record(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Plain values for the model's card, with the list of held-out [row, column]."""
        blocks = np.argwhere(self.blocks(shape)).tolist()
        return {"block_px": self.block_px, "share": self.share, "seed": self.seed, "blocks": blocks}


def held_out_blocks(shape: tuple[int, int], block_px: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the blocks that training must not see.

    Parameters
    ----------
    shape : (height, width) of the national grid in pixels
    block_px, share, seed
        See `HeldOut`.

    Returns
    -------
    bool array, dims (row, col) of blocks
        True where held out. At least one block if ``share`` is above 0, and never all of them.
    """
    rows, cols = (-(-size // block_px) for size in shape)
    count = rows * cols
    chosen = 0 if share == 0 else min(max(1, round(share * count)), count - 1)
    blocks = np.zeros(count, bool)
    blocks[np.random.default_rng(seed).permutation(count)[:chosen]] = True
    return blocks.reshape(rows, cols)


def held_out_mask(
    shape: tuple[int, int],
    block_px: int,
    share: float,
    seed: int,
    y: slice | None = None,
    x: slice | None = None,
) -> NDArray[np.bool_]:
    """The held-out blocks as pixels: bool array, dims (y, x), of the whole grid or of the part ``y``, ``x``."""
    blocks = held_out_blocks(shape, block_px, share, seed)
    rows, cols = (
        np.arange(size)[slice(None) if part is None else part] // block_px
        for size, part in zip(shape, (y, x), strict=True)
    )
    return blocks[np.ix_(rows, cols)]


@dataclass(frozen=True)
class Block:
    """A square of the country."""

    y: slice
    x: slice


@dataclass(frozen=True)
class Survey:
    """The training labels counted: what there is to learn, and where.

    Attributes
    ----------
    codes : tuple of int
        Class codes present, ascending.
    blocks : tuple of Block
    counts : int64 array, dims (block, class)
        Pixels of each class in each block, held-out pixels and labels left out.
    """

    codes: tuple[int, ...]
    blocks: tuple[Block, ...]
    counts: NDArray[np.int64]


def read(array: Any, block: Block) -> NDArray[Any]:
    """The pixels of a block as numpy: the last two dims of an xarray, Zarr or numpy array."""
    if hasattr(array, "isel"):
        return np.asarray(array.isel(y=block.y, x=block.x).values)
    return np.asarray(array[..., block.y, block.x])


def cut(shape: tuple[int, int], edge_px: int) -> tuple[Block, ...]:
    """Cut a raster into squares of ``edge_px``, row by row; those at the far edges may be smaller."""
    spans = [[slice(at, min(at + edge_px, size)) for at in range(0, size, edge_px)] for size in shape]
    return tuple(Block(y, x) for y in spans[0] for x in spans[1])


def survey(
    labels: Any,
    held_out: HeldOut | None,
    edge_px: int,
    known: tuple[int, ...],
    border_m: Any = None,
    nearest_m: float = 0.0,
) -> Survey:
    """Count the training labels block by block.

    Parameters
    ----------
    labels : array-like of codes, dims (y, x)
        0 is nodata.
    held_out : HeldOut, optional
    edge_px : int
        Edge of the blocks.
    known : tuple of int
        The legend's codes at its deepest level.
    border_m : array-like int16, dims (y, x), optional
        Metres to the nearest class border. Labels nearer than ``nearest_m`` are not counted: what no loss sees must not
        decide on classes, their weights or where windows are drawn.
    nearest_m : float

    Raises
    ------
    LabelError
        If there is no label to learn from, or a code that the legend lacks.
    """
    shape = (int(labels.shape[-2]), int(labels.shape[-1]))
    blocks = cut(shape, edge_px)
    size = max(known) + 1
    counts = np.zeros((len(blocks), size), np.int64)
    for row, block in zip(counts, blocks, strict=True):
        codes = read(labels, block)
        if codes.max(initial=0) >= size:
            raise LabelError(f"the labels hold the code {int(codes.max())}, which the legend lacks")
        if held_out is not None:
            codes = np.where(held_out.mask(shape, block.y, block.x), codes.dtype.type(0), codes)
        if border_m is not None:
            codes = np.where(read(border_m, block) < nearest_m, codes.dtype.type(0), codes)
        row[:] = np.bincount(codes.ravel(), minlength=size)
    present = [int(c) for c in np.flatnonzero(counts.sum(axis=0)) if c != 0]
    if unknown := sorted(set(present) - set(known)):
        raise LabelError(f"the labels hold the codes {unknown}, which the legend lacks")
    if not present:
        near = "" if border_m is None else f" or nearer than {nearest_m:g} m to a border"
        raise LabelError(f"there is no label to learn from: all pixels are nodata or held out{near}")
    return Survey(tuple(present), blocks, counts[:, present])


@dataclass(frozen=True)
class SamplerOptions:
    """How windows are drawn.

    Parameters
    ----------
    window_px, batch : int
        Edge of a window; windows in a batch.
    seed : int
    border_m, border_weight : float
        Labels nearer than ``border_m`` to a border of classes count with the probability ``border_weight``, drawn anew
        for every window, and no window is chosen for their sake: drawn borders are generalised.
    rarity : float
        0 draws classes by area, 1 all classes equally often.
    jitter : float
        Spread of random gain and offset per window and channel, in standard deviations of the channel.
    memory_mb : int
        Imagery held at once, at most.
    """

    window_px: int = 128
    batch: int = 8
    seed: int = 0
    border_m: float = 0.0
    border_weight: float = 0.0
    rarity: float = 0.5
    jitter: float = 0.05
    memory_mb: int = 512


@dataclass(frozen=True)
class Batch:
    """One step's worth of windows.

    Attributes
    ----------
    x : float32 array, dims (window, channel, y, x)
        Encoded by the model's `InputSpec`.
    target : int64 array, dims (window, y, x)
        Class index, or `IGNORE`.
    """

    x: NDArray[np.float32]
    target: NDArray[np.int64]


@dataclass
class _Loaded:
    """A block in memory, with its training pixels sorted by class so that one of a class is found at once."""

    cube: NDArray[np.int16]
    target: NDArray[np.int16]
    near: NDArray[np.bool_]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    draws: int = 0


class Sampler:
    """Endless, seeded windows from a country.

    Parameters
    ----------
    reflectance : array-like int16, dims (period, band, y, x)
    labels : array-like of codes, dims (y, x)
    found : Survey
        Of the same labels with the same ``held_out``.
    held_out : HeldOut, optional
        Labels of these blocks are never drawn. Their imagery may lie within a window, as context.
    options : SamplerOptions
    border_m : array-like int16, dims (y, x), optional
        Metres to the nearest class border; needed where ``options.border_m`` is above 0.

    Raises
    ------
    LabelError
        If it is needed and not given, or of another shape than the labels.
    """

    def __init__(
        self,
        reflectance: Any,
        labels: Any,
        found: Survey,
        held_out: HeldOut | None,
        options: SamplerOptions,
        border_m: Any = None,
    ) -> None:
        if options.border_m > 0:
            check_borders(border_m, labels)
        self.border_m = border_m if options.border_m > 0 else None
        self.reflectance, self.labels, self.found = reflectance, labels, found
        self.held_out, self.options = held_out, options
        self.shape = (int(labels.shape[-2]), int(labels.shape[-1]))
        block = found.blocks[0]
        layers = int(np.prod(reflectance.shape[:2]))
        block_mb = layers * 2 * (block.y.stop - block.y.start) * (block.x.stop - block.x.start) / 2**20
        usable = int((found.counts.sum(axis=1) > 0).sum())
        self.pool_size = min(usable, max(1, int(options.memory_mb / max(block_mb, 1e-9))))
        table = np.full(max(found.codes) + 2, IGNORE, np.int16)
        table[list(found.codes)] = np.arange(len(found.codes))
        self._index_of_code = table

    def raw(self) -> Generator[tuple[NDArray[np.int16], NDArray[np.int16]], None, None]:
        """Windows one by one: int16 cube (period, band, y, x) and class index (y, x)."""
        rng = np.random.default_rng([self.options.seed, 1])
        weight = np.sqrt(self.found.counts.sum(axis=1).astype(float))
        pool = [self._load(i) for i in self._choose(rng, weight, self.pool_size)]
        everything = self.pool_size == int((weight > 0).sum())
        while True:
            at = int(rng.integers(len(pool)))
            loaded = pool[at]
            yield self._draw(rng, loaded)
            loaded.draws += 1
            if not everything and loaded.draws >= self._draws_per_block(loaded):
                pool[at] = self._load(self._choose(rng, weight, 1)[0])

    def batches(self, inputs: InputSpec, steps: int) -> Generator[Batch, None, None]:
        """``steps`` batches, encoded and augmented, prepared in a thread of their own ahead of the net."""
        return _prefetched(lambda: self._batches(inputs, steps))

    def _batches(self, inputs: InputSpec, steps: int) -> Iterator[Batch]:
        windows = self.raw()
        rng = np.random.default_rng([self.options.seed, 2])
        for _ in range(steps):
            drawn = [augment(rng, *next(windows)) for _ in range(self.options.batch)]
            x, observed = inputs.encode(np.stack([cube for cube, _ in drawn]))
            target = np.stack([index for _, index in drawn]).astype(np.int64)
            target[~observed] = IGNORE
            jitter(rng, x, self.options.jitter)
            yield Batch(x, target)

    def _choose(self, rng: np.random.Generator, weight: NDArray[np.float64], count: int) -> list[int]:
        return [int(i) for i in rng.choice(len(weight), size=count, replace=False, p=weight / weight.sum())]

    def _draws_per_block(self, loaded: _Loaded) -> int:
        """As many windows as cover a block about once, so that reading never outweighs using."""
        return max(1, loaded.target.size // self.options.window_px**2)

    def _load(self, number: int) -> _Loaded:
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

    def _draw(self, rng: np.random.Generator, loaded: _Loaded) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """A window that holds a random pixel of a random class."""
        size, (height, width) = self.options.window_px, loaded.target.shape
        counts = np.diff(loaded.starts).astype(float)
        chance = np.where(counts > 0, np.maximum(counts, 1) ** (1 - self.options.rarity), 0.0)
        if chance.sum() > 0:
            chosen = int(rng.choice(len(counts), p=chance / chance.sum()))
            pixel = int(loaded.order[rng.integers(loaded.starts[chosen], loaded.starts[chosen + 1])])
        else:  # every label of the block lies near a border
            pixel = int(rng.integers(loaded.target.size))
        y, x = divmod(pixel, width)
        top = int(np.clip(y - rng.integers(size), 0, height - size))
        left = int(np.clip(x - rng.integers(size), 0, width - size))
        part = (slice(top, top + size), slice(left, left + size))
        target, weight = loaded.target[part], self.options.border_weight
        if 0 < weight < 1 and loaded.near[part].any():
            left_out = loaded.near[part] & (rng.random(target.shape, np.float32) >= weight)
            target = np.where(left_out, np.int16(IGNORE), target)
        return loaded.cube[..., *part], target


def check_borders(border_m: Any, labels: Any) -> None:
    """See that there are distances to borders, one for each label."""
    if border_m is None:
        raise LabelError(
            "border_m is above 0, but no distances to borders are given; the labels stage stores them as border_m, and "
            "geoflow.labels.border_distance makes them"
        )
    if tuple(border_m.shape[-2:]) != tuple(labels.shape[-2:]):
        raise LabelError(f"distances of {tuple(border_m.shape)} pixels do not lie on labels of {tuple(labels.shape)}")


def augment(
    rng: np.random.Generator, cube: NDArray[np.int16], target: NDArray[np.int16]
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """One of the eight rotations and reflections of a square window, the same for imagery and labels."""
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    cube, target = np.rot90(cube, turns, axes=(-2, -1)), np.rot90(target, turns, axes=(-2, -1))
    return (cube[..., ::-1], target[..., ::-1]) if flip else (cube, target)


def jitter(rng: np.random.Generator, x: NDArray[np.float32], spread: float) -> None:
    """Random gain and offset per window and channel, in place: haze and season differ from year to year."""
    if spread > 0:
        shape = (*x.shape[:2], 1, 1)
        x *= 1 + spread * rng.standard_normal(shape, np.float32)
        x += spread * rng.standard_normal(shape, np.float32)


_END = object()


def _prefetched(make: Callable[[], Iterator[Batch]], depth: int = 4) -> Generator[Batch, None, None]:
    """Run a generator in a thread, ``depth`` items ahead; its exception is raised here, and leaving early stops it."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in make():
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            put(error)

    thread = threading.Thread(target=work, name="geoflow-windows", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
