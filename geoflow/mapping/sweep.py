"""The work of one block of a map: its windows in row order, each encoded, run, blended and decided.

Windows are encoded, run and made into probabilities several at once, each on a thread of its own
(`geoflow.mapping.netpool`), and blended and decided one after the other, in row order.

What a window says of its neighbours' cells is carried on in two strips, along its right side and along the whole row.
So memory grows with the width of the block and the number of classes, never with its area.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import ModelError
from geoflow.inputs import NODATA
from geoflow.mapping.decode import Ladder, decide, decision_type, keep_probabilities, quantise, weigh
from geoflow.mapping.engines import candidates, load_engine
from geoflow.mapping.netpool import net_pool, worker_threads
from geoflow.mapping.scratch import Scratch
from geoflow.mapping.windows import Axis, Lattice

if TYPE_CHECKING:
    from geoflow.mapping.predict import MapOptions
    from geoflow.modelfile import ModelCard, ModelRef

Window = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """A part of the grid that is decided in one go.

    Parameters
    ----------
    lattice : Lattice
        Of the whole grid.
    y, x : slice
        The part, in pixels of the grid.
    """

    lattice: Lattice
    y: slice
    x: slice

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.y.stop - self.y.start)

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.x.stop - self.x.start)

    @property
    def seen(self) -> tuple[slice, slice]:
        """The pixels of the grid that the windows of the block see."""
        return self.lattice.margin(self.y, self.x)

    def shares(self, window: Window) -> bool:
        """Whether another block needs this window too."""
        said = self.lattice.y.said(window[0]), self.lattice.x.said(window[1])
        return any(
            theirs.start < own.start or theirs.stop > own.stop
            for theirs, own in zip(said, (self.y, self.x), strict=True)
        )


def sweep(data: NDArray[np.int16], *, model: ModelRef, block: Block, options: MapOptions) -> NDArray[np.void]:
    """Map one block.

    Parameters
    ----------
    data : int16 array, dims (period, band, y, x)
        The pixels that ``block.seen`` names, of the periods and bands that the model reads, in its order.
    model : ModelRef
    block : Block
    options : MapOptions

    Returns
    -------
    array of `geoflow.mapping.decode.decision_type`, dims (y, x)

    Raises
    ------
    ModelError
        If the net gives something that is no probability.
    """
    return _Sweep(data, model, block, options).run()


class _Sweep:
    def __init__(self, data: NDArray[np.int16], model: ModelRef, block: Block, options: MapOptions) -> None:
        loaded = model.load()
        self.card: ModelCard = loaded.card
        name = options.engine if "-" in options.engine else candidates(options.engine)[0]
        self.engine = load_engine(loaded, name)
        self.scratch = None if options.scratch is None else Scratch(Path(options.scratch))
        self.ladder = Ladder.of(self.card.legend, self.card.codes)
        self.data, self.block = data, block
        self.lattice, (self.seen_y, self.seen_x) = block.lattice, block.seen
        y, x, classes = self.lattice.y, self.lattice.x, len(self.card.codes)
        self.rows, self.cols = y.cells(block.y), x.cells(block.x)
        self.windows = y.windows(block.y), x.windows(block.x)
        self.out = np.zeros((block.height, block.width), decision_type(classes if options.probabilities else 0))
        inner = (
            slice(block.y.start - self.seen_y.start, block.y.stop - self.seen_y.start),
            slice(block.x.start - self.seen_x.start, block.x.stop - self.seen_x.start),
        )
        self.observed = (data[..., inner[0], inner[1]] != NODATA).any(axis=(0, 1))
        # What one window says, weighted, and what windows say beyond their own cell.
        self.total = np.empty((y.kept, x.kept, classes), np.uint32)
        self.right = np.zeros((y.core, 2 * x.blend, classes), np.uint32)
        width = (len(self.cols) + 1) * x.core + 2 * x.blend
        self.below = np.zeros((2 * y.blend, width, classes), np.uint32)
        self.next_below = np.zeros_like(self.below)

    def run(self) -> NDArray[np.void]:
        """All windows in row order."""
        # One row and column before the first cell: of these, only what reaches into the block counts.
        order = [
            (row, col)
            for row in range(self.rows.start - 1, self.rows.stop)
            for col in range(self.cols.start - 1, self.cols.stop)
        ]
        pool, ahead = net_pool(self.engine.gpu), worker_threads() + 1
        running: deque[tuple[Window, Future[NDArray[np.uint16] | None]]] = deque()
        try:
            for window in order:
                running.append((window, pool.submit(self._said, window)))
                if len(running) > ahead:
                    self._settle(*_awaited(running))
            while running:
                self._settle(*_awaited(running))
        finally:
            for _, future in running:
                future.cancel()
        return self.out

    def _said(self, window: Window) -> NDArray[np.uint16] | None:
        """What a window says: parts of `UNIT` (y, x, class) of the pixels that count, or None where it says nothing.

        A window is left out where it sees no imagery at all: none of its pixels is mapped then.
        """
        if window[0] not in self.windows[0] or window[1] not in self.windows[1]:
            return None
        pixels = self._pixels(window)
        if not (pixels != NODATA).any():
            return None
        scratch = self.scratch if self.block.shares(window) else None
        found = scratch.load(window, self.total.shape) if scratch is not None else None
        if found is not None:
            return found
        said = self._quantised(window, self.engine.logits(self.card.inputs.encode(pixels)[0]))
        if scratch is not None:
            scratch.save(window, said)
        return said

    def _pixels(self, window: Window) -> NDArray[np.int16]:
        """The imagery that a window sees, nodata beyond the grid."""
        taken, pad = [], [(0, 0), (0, 0)]
        for at, axis, held in zip(window, (self.lattice.y, self.lattice.x), (self.seen_y, self.seen_x), strict=True):
            seen = axis.seen(at)
            low, high = max(0, seen.start), min(axis.size, seen.stop)
            taken.append(slice(low - held.start, high - held.start))
            pad.append((low - seen.start, seen.stop - high))
        pixels = self.data[:, :, taken[0], taken[1]]
        return np.pad(pixels, pad, constant_values=NODATA) if any(sum(p) for p in pad) else pixels

    def _settle(self, window: Window, said: NDArray[np.uint16] | None) -> None:
        """Blend what a window said with what was carried to its cell, decide the cell, carry the rest on."""
        y, x = self.lattice.y, self.lattice.x
        col = window[1] - (self.cols.start - 1)
        if col == 0:
            self.below, self.next_below = self.next_below, self.below
            self.next_below[:] = 0
            self.right[:] = 0
        if said is None:
            self.total[:] = 0
        else:
            weigh(said, y.weights(window[0]), x.weights(window[1]), self.total)
        own_right = self.total[: y.core, x.core :].copy()
        columns = slice(col * x.core, col * x.core + x.kept)
        self.next_below[:, columns] += self.total[y.core :]
        self.total[: 2 * y.blend, : x.core] += self.below[:, columns.start : columns.start + x.core]
        self.total[: y.core, : 2 * x.blend] += self.right
        self.right = own_right
        if window[0] in self.rows and window[1] in self.cols:
            self._decide(window)

    def _quantised(self, window: Window, logits: NDArray[np.float32]) -> NDArray[np.uint16]:
        y, x = self.lattice.y, self.lattice.x
        kept = np.ascontiguousarray(logits[y.trim : y.trim + y.kept, x.trim : x.trim + x.kept])
        said = np.empty(kept.shape, np.uint16)
        wrong = quantise(kept, self.ladder.order, said)
        if wrong:
            raise ModelError(
                f"the model gives no finite logits at {wrong} pixels of window {window} with engine "
                f"{self.engine.name}: its weights are damaged, or too large for this precision (try torch-fp32)"
            )
        return said

    def _decide(self, window: Window) -> None:
        y, x = self.lattice.y, self.lattice.x
        total_rows, rows = _meeting(y, window[0], self.block.y)
        total_cols, cols = _meeting(x, window[1], self.block.x)
        total, out = self.total[total_rows], self.out[rows]
        observed = np.ascontiguousarray(self.observed[rows, cols])
        decide(total, total_cols.start, self.ladder.stop, observed, out, cols.start)
        if "probabilities" in (self.out.dtype.names or ()):
            keep_probabilities(total, total_cols.start, observed, out, cols.start)


def _awaited(
    running: deque[tuple[Window, Future[NDArray[np.uint16] | None]]],
) -> tuple[Window, NDArray[np.uint16] | None]:
    window, future = running.popleft()
    return window, future.result()


def _meeting(axis: Axis, cell: int, part: slice) -> tuple[slice, slice]:
    """Where a cell meets a part of the grid: counted from the cell, and from the part."""
    start = cell * axis.core - axis.blend
    low, high = max(start, part.start), min(start + axis.core, part.stop)
    return slice(low - start, high - start), slice(low - part.start, high - part.start)
