"""The work of one block of a map: its windows in row order, each encoded, run, blended and decided.

Windows are encoded, run and decided as far as they can be alone (`geoflow.mapping.said`) several at once, each on a
thread of its own (`geoflow.mapping.netpool`). Where neighbours overlap, what they say is added up in row order.

What a window says of its neighbours' cells is carried on in two strips, along its right side and along the whole row.
So memory grows with the width of the block and the number of classes, never with its area.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import ModelError
from geoflow.inputs import NODATA
from geoflow.mapping.decode import Ladder, decision_type, undecided
from geoflow.mapping.engines import candidates, load_engine
from geoflow.mapping.netpool import net_pool, windows_ahead
from geoflow.mapping.said import Said, blend, decide_all
from geoflow.mapping.scratch import Scratch
from geoflow.mapping.windows import Lattice
from geoflow.places import place
from geoflow.stopwatch import NET, spending

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
        name = options.runs if "-" in options.runs else candidates(options.runs)[0]
        self.engine = load_engine(loaded, name)
        self.scratch = None if options.scratch is None else Scratch(place(options.scratch))
        self.ladder = Ladder.of(self.card.legend, self.card.codes)
        self.data, self.block = data, block
        self.lattice, (self.seen_y, self.seen_x) = block.lattice, block.seen
        y, x, classes = self.lattice.y, self.lattice.x, len(self.card.codes)
        self.rows, self.cols = y.cells(block.y), x.cells(block.x)
        self.windows = y.windows(block.y), x.windows(block.x)
        self.probabilities = options.probabilities
        self.out, self.shares = undecided((block.height, block.width), classes, self.probabilities)
        inner = (
            slice(block.y.start - self.seen_y.start, block.y.stop - self.seen_y.start),
            slice(block.x.start - self.seen_x.start, block.x.stop - self.seen_x.start),
        )
        self.observed = (data[..., inner[0], inner[1]] != NODATA).any(axis=(0, 1))
        # Windows that were settled, to be filled again: new memory costs as much as a fifth of what fills it.
        self.spare: deque[Said] = deque()
        # What windows say beyond their own cell.
        self.right = np.zeros((y.core, classes, 2 * x.blend), np.uint32)
        width = (len(self.cols) + 1) * x.core + 2 * x.blend
        self.below = np.zeros((2 * y.blend, classes, width), np.uint32)
        self.next_below = np.zeros_like(self.below)

    def run(self) -> NDArray[np.void]:
        """All windows in row order."""
        # One row and column before the first cell: of these, only what reaches into the block counts.
        order = [
            (row, col)
            for row in range(self.rows.start - 1, self.rows.stop)
            for col in range(self.cols.start - 1, self.cols.stop)
        ]
        pool = net_pool(self.engine.gpu)
        running: deque[tuple[Window, Future[Said | None]]] = deque()
        with windows_ahead() as ahead:
            try:
                for window in order:
                    running.append((window, pool.submit(self._said, window)))
                    while len(running) > ahead():
                        self._settle_first(running)
                while running:
                    self._settle_first(running)
            finally:
                for _, future in running:
                    future.cancel()
        return self._with_shares() if self.probabilities else self.out

    def _with_shares(self) -> NDArray[np.void]:
        out = np.empty(self.out.shape, decision_type(len(self.card.codes)))
        for name in self.out.dtype.names or ():
            out[name] = self.out[name]
        out["probabilities"] = self.shares.transpose(0, 2, 1)
        return out

    def _said(self, window: Window) -> Said | None:
        """What a window says; None where it sees no imagery at all: none of its pixels is mapped then."""
        if window[0] not in self.windows[0] or window[1] not in self.windows[1]:
            return None
        pixels = self._pixels(window)
        if not (pixels != NODATA).any():
            return None
        scratch = self.scratch if self.block.shares(window) else None
        packed = scratch.load(window) if scratch is not None else None
        if packed is not None:
            said = Said.unpack(packed, self.lattice, len(self.card.codes), self.probabilities)
            if said is not None:
                return said
        said = self._asked(window, pixels)
        if scratch is not None:
            scratch.save(window, said.pack())
        return said

    def _asked(self, window: Window, pixels: NDArray[np.int16]) -> Said:
        x, observed = self.card.inputs.encode(pixels)
        with spending(NET):
            logits = self.engine.logits(x)
        try:
            said = self.spare.pop()
        except IndexError:
            said = Said.empty(self.lattice, len(self.card.codes), self.probabilities)
        wrong = said.listen(logits, observed, self.lattice, self.ladder)
        if wrong:
            raise ModelError(
                f"the model gives no finite logits at {wrong} pixels of window {window} with engine "
                f"{self.engine.name}: its weights are damaged, or too large for this precision (try torch-fp32)"
            )
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

    def _settle_first(self, running: deque[tuple[Window, Future[Said | None]]]) -> None:
        window, future = running.popleft()
        said = future.result()
        self._settle(window, said)
        if said is not None:
            self.spare.append(said)

    def _settle(self, window: Window, said: Said | None) -> None:
        """Blend what a window said with what was carried to its cell, decide the cell, carry the rest on."""
        y, x = self.lattice.y, self.lattice.x
        high, wide = 2 * y.blend, 2 * x.blend
        col = window[1] - (self.cols.start - 1)
        if col == 0:
            self.below, self.next_below = self.next_below, self.below
            self.next_below[:] = 0
            self.right[:] = 0
        # The two parts of the cell that others speak of too: its first rows, and the first columns of those below.
        first_rows = np.ascontiguousarray(self.below[:, :, col * x.core : (col + 1) * x.core])
        first_rows[:, :, :wide] += self.right[:high]
        first_cols = self.right[high:]
        self.right = np.zeros_like(self.right)
        if said is not None:
            wy, wx = y.weights(window[0]), x.weights(window[1])
            blend(said.top[:, :, : x.core], wy[:high], wx[: x.core], first_rows)
            blend(said.left, wy[high : y.core], wx[:wide], first_cols)
            blend(said.top[:, :, x.core :], wy[:high], wx[x.core :], self.right[:high])
            blend(said.right, wy[high : y.core], wx[x.core :], self.right[high:])
            blend(said.bottom, wy[y.core :], wx, self.next_below[:, :, col * x.core : col * x.core + x.kept])
        if window[0] in self.rows and window[1] in self.cols:
            self._decide(window, (slice(0, high), slice(0, x.core)), first_rows)
            self._decide(window, (slice(high, y.core), slice(0, wide)), first_cols)
            if said is not None:
                taken, into = self._meeting(window, (slice(high, y.core), slice(wide, x.core)))
                self.out[into] = said.inner[taken]
                self.shares[into[0], :, into[1]] = said.shares[taken[0], :, taken[1]]

    def _decide(self, window: Window, part: tuple[slice, slice], total: NDArray[np.uint32]) -> None:
        """Decide a part of a cell, as far as it lies within the block."""
        taken, into = self._meeting(window, part)
        observed = np.ascontiguousarray(self.observed[into])
        shares = self.shares[into[0], :, into[1]]
        decide_all(total[taken[0], :, taken[1]], self.ladder.stop, observed, self.out[into], shares)

    def _meeting(self, window: Window, part: tuple[slice, slice]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a part of a window's cell meets the block: counted from the part, and from the block."""
        taken, into = [], []
        axes = zip(window, (self.lattice.y, self.lattice.x), part, (self.block.y, self.block.x), strict=True)
        for cell, axis, stretch, block in axes:
            start = cell * axis.core - axis.blend + stretch.start
            low = max(start, block.start)
            high = max(low, min(start + stretch.stop - stretch.start, block.stop))
            taken.append(slice(low - start, high - start))
            into.append(slice(low - block.start, high - block.start))
        return (taken[0], taken[1]), (into[0], into[1])
