"""What there is to learn from: held-out blocks, and a country's labels counted block by block.

Imagery and labels are anything that slices like an array: numpy, Zarr, or xarray over Zarr.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError

IGNORE = -1
"""Class index of pixels that no loss counts: nodata, held out, too near a border, or of a class that is not learned."""

BLOCK_PX = 1024
"""Edge of the squares that imagery is read in where it does not fit into memory at once."""


class Hidden(Protocol):
    """Parts of the country whose labels must not be seen."""

    def mask(self, shape: tuple[int, int], y: slice | None = None, x: slice | None = None) -> NDArray[np.bool_]:
        """True where they must not; dims (y, x), of a grid of ``shape`` pixels or of the part ``y``, ``x``."""


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
    return _pixels(held_out_blocks(shape, block_px, share, seed), block_px, shape, y, x)


def _pixels(
    blocks: NDArray[np.bool_], block_px: int, shape: tuple[int, int], y: slice | None, x: slice | None
) -> NDArray[np.bool_]:
    rows, cols = (
        np.arange(size)[slice(None) if part is None else part] // block_px
        for size, part in zip(shape, (y, x), strict=True)
    )
    return blocks[np.ix_(rows, cols)]


ASIDE_SHARE = 0.1
"""Share of the blocks that are set aside by default."""


@dataclass(frozen=True)
class Aside(HeldOut):
    """Blocks set aside from training, to choose weights by or to fit a temperature on, and with them those held out.

    Both belong to training: blocks that a map is judged by must not be fitted to. So these are drawn from the others.

    Parameters
    ----------
    block_px, share, seed
        See `HeldOut`.
    held_out : HeldOut, optional
        With blocks of the same edge; those held out for good, or set aside for something else.
    """

    held_out: HeldOut | None = None

    @classmethod
    def beside(cls, held_out: HeldOut | None, seed: int, share: float = ASIDE_SHARE) -> Aside:
        """A share of the blocks, beside those that are held out."""
        edge = HeldOut().block_px if held_out is None else held_out.block_px
        return cls(edge, share, seed + 1, held_out)

    def own(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """The blocks set aside, dims (row, column); at least two.

        Raises
        ------
        LabelError
            If there are fewer than three that are not held out.
        """
        taken = self._for_good(shape)
        free = np.flatnonzero(~taken)
        if len(free) < 3:
            raise LabelError(
                f"{len(free)} blocks of {self.block_px} px are not held out; three at least are needed, two to set "
                "aside (calibrate, keep: best) and one to learn from: hold out fewer or smaller blocks"
            )
        count = min(max(2, round(self.share * taken.size)), len(free) - 1)
        found = np.zeros(taken.size, bool)
        found[np.random.default_rng([self.seed, 7]).permutation(free)[:count]] = True
        return found.reshape(taken.shape)

    def _for_good(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        if self.held_out is not None:
            return self.held_out.blocks(shape)
        rows, cols = (-(-size // self.block_px) for size in shape)
        return np.zeros((rows, cols), bool)

    def blocks(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """All blocks whose labels the net does not learn from."""
        return self.own(shape) | self._for_good(shape)

    def mask(self, shape: tuple[int, int], y: slice | None = None, x: slice | None = None) -> NDArray[np.bool_]:
        """The same as pixels."""
        return _pixels(self.blocks(shape), self.block_px, shape, y, x)

    def own_mask(self, shape: tuple[int, int], y: slice | None = None, x: slice | None = None) -> NDArray[np.bool_]:
        """The blocks set aside, as pixels."""
        return _pixels(self.own(shape), self.block_px, shape, y, x)

    def record(self, shape: tuple[int, int]) -> dict[str, Any] | None:  # type: ignore[override]
        """Of the blocks that are held out for good: no more are independent of the net."""
        return None if self.held_out is None else self.held_out.record(shape)


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
    held_out: Hidden | None,
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
    held_out : Hidden, optional
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


def check_borders(border_m: Any, labels: Any) -> None:
    """See that there are distances to borders, one for each label."""
    if border_m is None:
        raise LabelError(
            "border_m is above 0, but no distances to borders are given; the labels stage stores them as border_m, and "
            "geoflow.labels.border_distance makes them"
        )
    if tuple(border_m.shape[-2:]) != tuple(labels.shape[-2:]):
        raise LabelError(f"distances of {tuple(border_m.shape)} pixels do not lie on labels of {tuple(labels.shape)}")
