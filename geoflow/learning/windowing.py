"""Windows of image and labels, as the paper trains on: which there are, which are worth drawing, how they are split.

The country is gone through block by block, labels and distances to borders together; it is never in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from geoflow.errors import LabelError
from geoflow.learning.samples import Block, cut, read

TRAIN, VALIDATION, TEST, LEFT_OUT = 0, 1, 2, 3
"""What a window is for; left out: too near a window of another part."""

PARTS = ("train", "validation", "test", "left out")

_BLOCK_PX = 1024


@dataclass(frozen=True)
class WindowOptions:
    """Which windows are drawn.

    Parameters
    ----------
    window_px : int
        Edge of a window; 120 as in the paper and in BigEarthNet.
    count : int, optional
        How many; all that serve by default.
    border_m : float
        Labels nearer to a class border than this, in metres, are not sure: no window is drawn for their sake.
    min_labelled : float
        Least share of pixels with a label, 0 to 1.
    rarity : float
        0 draws all alike, 1 draws windows so that all classes are drawn for about equally often.
    seed : int

    Raises
    ------
    LabelError
        If a value is out of range.
    """

    window_px: int = 120
    count: int | None = None
    border_m: float = 50.0
    min_labelled: float = 0.9
    rarity: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.window_px <= 0:
            raise LabelError(f"windows must have a positive edge, not {self.window_px} px")
        if self.count is not None and self.count <= 0:
            raise LabelError(f"the number of windows must be positive, not {self.count}")
        if not (self.border_m >= 0 and 0 <= self.min_labelled <= 1 and 0 <= self.rarity <= 1):
            raise LabelError(
                "border_m must be at least 0, min_labelled and rarity within 0..1, not "
                f"{self.border_m}, {self.min_labelled}, {self.rarity}"
            )


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows on a lattice over the country, counted.

    Attributes
    ----------
    window_px : int
    row, column : int64 arrays, dims (window)
        The north-west pixel of each, multiples of ``window_px``.
    codes : tuple of int
        The classes that occur, ascending.
    sure : int64 array, dims (window, class)
        Labelled pixels far enough from borders.
    near : int64 array, dims (window)
        Labelled pixels near borders.
    """

    window_px: int
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    codes: tuple[int, ...]
    sure: NDArray[np.int64]
    near: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Windows:
        """Some of them, in the order given."""
        found = (self.row[which], self.column[which], self.codes, self.sure[which], self.near[which])
        return Windows(self.window_px, *found)


def find_windows(labels: Any, border_m: Any, options: WindowOptions) -> Windows:
    """All whole windows of the lattice that hold labels enough.

    Parameters
    ----------
    labels : array-like of codes, dims (y, x)
        0 is nodata.
    border_m : array-like int16, dims (y, x)
        Metres to the nearest class border.
    options : WindowOptions

    Raises
    ------
    LabelError
        If no window serves.
    """
    size = options.window_px
    shape = (int(labels.shape[-2]) // size * size, int(labels.shape[-1]) // size * size)
    rows, columns, nears, counted = [], [], [], []
    highest = 1
    for block in cut(shape, max(1, _BLOCK_PX // size) * size):
        codes, near = read(labels, block), read(border_m, block) < options.border_m
        highest = max(highest, int(codes.max(initial=0)))
        for inner in cut(codes.shape, size):
            part = (inner.y, inner.x)
            labelled = codes[part] != 0
            if labelled.mean() < options.min_labelled:
                continue
            rows.append(block.y.start + inner.y.start)
            columns.append(block.x.start + inner.x.start)
            nears.append(int((labelled & near[part]).sum()))
            counted.append(np.bincount(codes[part][labelled & ~near[part]], minlength=1))
    if not rows:
        raise LabelError(f"no window of {size} px has labels on {options.min_labelled:.0%} of its pixels")
    sure = np.zeros((len(rows), highest + 1), np.int64)
    for into, counts in zip(sure, counted, strict=True):
        into[: len(counts)] = counts
    present = [int(code) for code in np.flatnonzero(sure.sum(axis=0)) if code != 0]
    place = (np.array(rows, np.int64), np.array(columns, np.int64))
    return Windows(size, *place, tuple(present), sure[:, present], np.array(nears, np.int64))


def draw_windows(windows: Windows, options: WindowOptions) -> Windows:
    """Some of the windows, without replacement and in random order; those with rare and sure labels come first.

    A window's weight is the sum over its sure pixels of ``share of the class ** -rarity``: by area alone for 0. Drawn
    as Efraimidis and Spirakis do ("Weighted random sampling with a reservoir", 2006).

    Raises
    ------
    LabelError
        If fewer windows than ``options.count`` have a label far enough from borders.
    """
    share = windows.sure.sum(axis=0) / max(1, windows.sure.sum())
    weight = windows.sure @ np.maximum(share, 1e-12) ** -options.rarity
    usable = int((weight > 0).sum())
    count = usable if options.count is None else options.count
    if not 0 < count <= usable:
        raise LabelError(
            f"{count} windows are asked for, but only {usable} of {len(windows)} hold labels at least "
            f"{options.border_m:g} m from a border"
        )
    rng = np.random.default_rng(options.seed)
    with np.errstate(divide="ignore"):
        key = np.log(rng.random(len(windows))) / weight
    return windows.take(np.argsort(-key, kind="stable")[:count])


def random_split(count: int, shares: tuple[float, float, float], seed: int) -> NDArray[np.uint8]:
    """Parts of windows drawn at random, as the paper splits them: `TRAIN`, `VALIDATION` or `TEST`; dims (window).

    Neighbours resemble each other, so a score on such a test set flatters: see `blocked_split`.

    Raises
    ------
    LabelError
        If the shares are not three numbers within 0..1 that sum up to 1.
    """
    limits = _limits(shares, count)
    parts = np.empty(count, np.uint8)
    parts[np.random.default_rng(seed).permutation(count)] = np.searchsorted(limits, np.arange(count), side="right")
    return parts


def blocked_split(
    windows: Windows, block_px: int, shares: tuple[float, float, float], seed: int, gap_px: int = 0
) -> NDArray[np.uint8]:
    """Parts of windows by blocks of the country, so that a test window has no training window beside it.

    Parameters
    ----------
    windows : Windows
    block_px : int
        Edge of a block; a multiple of the windows' edge, so that each window lies in one block.
    shares : tuple of three floats
        Of train, validation and test, by windows. Whole blocks go to the part that lacks most.
    seed : int
    gap_px : int
        Training windows nearer than this to a block of another part are `LEFT_OUT`.

    Raises
    ------
    LabelError
        If the block is no multiple of a window, the shares are wrong, or there are fewer blocks than parts.
    """
    size = windows.window_px
    if block_px <= 0 or block_px % size:
        raise LabelError(f"blocks of {block_px} px are no multiple of windows of {size} px: a window would lie in two")
    _limits(shares, len(windows))
    corner = np.stack([windows.row, windows.column]) // block_px
    blocks, of_window, held = np.unique(corner, axis=1, return_inverse=True, return_counts=True)
    of_window = of_window.ravel()
    wanted = np.array(shares)
    if blocks.shape[1] < (wanted > 0).sum():
        raise LabelError(
            f"the windows lie in {blocks.shape[1]} blocks of {block_px} px, too few for {(wanted > 0).sum()} parts; "
            "use smaller blocks"
        )
    part_of = np.empty(blocks.shape[1], np.uint8)
    missing = wanted * len(windows)
    for block in np.random.default_rng(seed).permutation(blocks.shape[1]):
        part_of[block] = np.argmax(np.where(wanted > 0, missing, -np.inf))
        missing[part_of[block]] -= held[block]
    parts = part_of[of_window]
    return with_gap(windows, parts, gap_px)


def squares_split(windows: Windows, block_px: int, shares: tuple[float, float, float]) -> NDArray[np.uint8]:
    """Parts of windows by concentric squares in each block: the ring outside is for training, the centre for testing.

    The rule of BigEarthNet v2, whose blocks are Sentinel-2 tiles (10,980 px of 10 m): neighbours of two
    parts meet along the squares alone, and nothing is drawn at random.

    Parameters
    ----------
    windows : Windows
    block_px : int
        Edge of a block.
    shares : tuple of three floats
        Of a block's area, for train, validation and test.

    Raises
    ------
    LabelError
        If the shares are wrong, a block is no larger than a window, or a part that is wanted gets no window.
    """
    _limits(shares, len(windows))
    if block_px <= windows.window_px:
        raise LabelError(
            f"squares in blocks of {block_px} px need windows smaller than that, not of {windows.window_px} px"
        )
    half = block_px / 2
    middle = np.stack([windows.row, windows.column]) + windows.window_px / 2
    away = np.abs(middle % block_px - half).max(axis=0) / half
    inner, outer = np.sqrt(shares[2]), np.sqrt(shares[1] + shares[2])
    parts = np.select([away < inner, away < outer], [TEST, VALIDATION], TRAIN).astype(np.uint8)
    for part, share in zip((TRAIN, VALIDATION, TEST), shares, strict=True):
        if share > 0 and not (parts == part).any():
            raise LabelError(
                f"no window lies in the square for {PARTS[part]}: in blocks of {block_px} px, windows of "
                f"{windows.window_px} px are too coarse for its share of {share:g}; use larger blocks or other shares"
            )
    return parts


def with_gap(windows: Windows, parts: NDArray[np.uint8], gap_px: int) -> NDArray[np.uint8]:
    """The same parts, but that training windows nearer than ``gap_px`` to one of another part are `LEFT_OUT`."""
    cells = -(-gap_px // windows.window_px)
    if cells <= 0:
        return parts
    row, column = windows.row // windows.window_px, windows.column // windows.window_px
    others = np.zeros((row.max() + 1, column.max() + 1), bool)
    others[row[parts != TRAIN], column[parts != TRAIN]] = True
    wide = ndimage.maximum_filter(others, 2 * cells + 1, mode="constant")
    return np.where((parts == TRAIN) & wide[row, column], np.uint8(LEFT_OUT), parts)


def _limits(shares: tuple[float, float, float], count: int) -> NDArray[np.int64]:
    """Where the second and the third part begin, of ``count``."""
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise LabelError(f"the shares of train, validation and test must sum up to 1, not {list(shares)}")
    return np.rint(np.cumsum(shares[:2]) * count).astype(np.int64)


def window_block(windows: Windows, at: int) -> Block:
    """Where a window lies."""
    row, column, size = int(windows.row[at]), int(windows.column[at]), windows.window_px
    return Block(slice(row, row + size), slice(column, column + size))
