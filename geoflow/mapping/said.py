"""What a window says: decisions where no other window says anything, probabilities where its neighbours do too.

Both depend on the window alone, not on who asks. The greater part of a window is decided at once, while its logits are
in the processor's caches; only the frame that it shares with its neighbours is kept as probabilities, to be blended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from geoflow.mapping.decode import Ladder, decide, keep_probabilities, quantise, undecided
from geoflow.mapping.windows import FULL, Axis, Lattice

# Dims are (y, class, x): a row of pixels with its classes lies together. Planes of classes would lie a multiple of a
# page apart, and evict each other from the caches.

_ALONE = np.uint32(FULL * FULL)
"""Weight of the only window that says something of a pixel."""


@dataclass(frozen=True)
class Said:
    """What one window says of the pixels that it keeps: ``core`` pixels a side and ``blend`` around them.

    Attributes
    ----------
    inner, shares : arrays as `geoflow.mapping.decode.undecided` gives them, ``core - 2 blend`` pixels a side
        Decided: the core without the outer ``blend``, of which no other window says anything.
    top, bottom : uint16 arrays, dims (2 blend, class, core + 2 blend)
    left, right : uint16 arrays, dims (core - 2 blend, class, 2 blend)
        Parts of `geoflow.mapping.windows.UNIT`, in the ladder's order: the frame around it.
    """

    inner: NDArray[np.void]
    shares: NDArray[np.uint8]
    top: NDArray[np.uint16]
    bottom: NDArray[np.uint16]
    left: NDArray[np.uint16]
    right: NDArray[np.uint16]

    @classmethod
    def empty(cls, lattice: Lattice, classes: int, probabilities: bool) -> Said:
        """Room for what a window of a lattice says."""
        y, x = lattice.y, lattice.x
        inner, shares = undecided((_alone(y), _alone(x)), classes, probabilities)
        across, down = (2 * y.blend, classes, x.kept), (_alone(y), classes, 2 * x.blend)
        return cls(inner, shares, *(np.empty(shape, np.uint16) for shape in (across, across, down, down)))

    def listen(self, logits: NDArray[np.float32], observed: NDArray[np.bool_], lattice: Lattice, ladder: Ladder) -> int:
        """Fill it with what logits (y, x, logit) of a whole window say, of which ``observed`` (y, x) was seen.

        Returns
        -------
        int
            Pixels with a logit that is not finite, of those that it keeps; 0 unless the net is damaged.
        """
        y, x = lattice.y, lattice.x
        kept = slice(y.trim, y.trim + y.kept), slice(x.trim, x.trim + x.kept)
        wrong = _say(
            logits[kept], observed[kept], ladder.order, ladder.stop, 2 * y.blend, 2 * x.blend,
            self.inner, self.shares, self.top, self.bottom, self.left, self.right,
        )  # fmt: skip
        return int(wrong)

    def pack(self) -> bytes:
        """All of it as bytes, an even number of them."""
        packed = b"".join(part.tobytes() for part in self._parts())
        return packed + b"\0" * (len(packed) % 2)

    @classmethod
    def unpack(cls, packed: bytes, lattice: Lattice, classes: int, probabilities: bool) -> Said | None:
        """The inverse of `pack`; None where the bytes are not those of a window of this lattice."""
        said = cls.empty(lattice, classes, probabilities)
        size = sum(part.nbytes for part in said._parts())
        if len(packed) != size + size % 2:
            return None
        start = 0
        for part in said._parts():
            part.reshape(-1).view(np.uint8)[:] = np.frombuffer(packed, np.uint8, part.nbytes, start)
            start += part.nbytes
        return said

    def _parts(self) -> tuple[NDArray[Any], ...]:
        return self.top, self.bottom, self.left, self.right, self.inner, self.shares


def _alone(axis: Axis) -> int:
    return axis.core - 2 * axis.blend


@numba.njit(cache=True, nogil=True)
def _say(
    logits: NDArray[np.float32],
    observed: NDArray[np.bool_],
    order: NDArray[np.int64],
    stop: NDArray[np.int64],
    high: int,
    wide: int,
    inner: NDArray[np.void],
    shares: NDArray[np.uint8],
    top: NDArray[np.uint16],
    bottom: NDArray[np.uint16],
    left: NDArray[np.uint16],
    right: NDArray[np.uint16],
) -> int:
    """Row by row; ``high`` and ``wide`` are the overlaps with the neighbours below and beside."""
    height, width, classes = logits.shape
    q, alone = np.empty((classes, width), np.uint32), np.empty((classes, width - 2 * wide), np.uint32)
    p, power = np.empty((classes, width), np.float32), np.empty(classes * width, np.int32)
    wrong = 0
    for y in range(height):
        wrong += quantise(logits[y], order, p, power, q)
        if y < high:
            _scaled(q, np.uint32(1), top[y])
        elif y >= height - high:
            _scaled(q, np.uint32(1), bottom[y - (height - high)])
        else:
            row = y - high
            _scaled(q[:, :wide], np.uint32(1), left[row])
            _scaled(q[:, width - wide :], np.uint32(1), right[row])
            _scaled(q[:, wide : width - wide], _ALONE, alone)
            seen = observed[y, wide : width - wide]
            decide(alone, stop, seen, inner[row])
            keep_probabilities(alone, seen, shares[row])
    return wrong


@numba.njit(cache=True, nogil=True)
def _scaled(q: NDArray[np.uint32], by: np.uint32, out: NDArray[Any]) -> None:
    for c in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[c, x] = q[c, x] * by


@numba.njit(cache=True, nogil=True)
def blend(
    said: NDArray[np.uint16],
    wy: NDArray[np.uint32],
    wx: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> None:
    """Add what a window says, times its weights: dims (y, class, x), (y,), (x,); ``out`` as ``said``."""
    for y in range(said.shape[0]):
        for c in range(said.shape[1]):
            for x in range(said.shape[2]):
                out[y, c, x] += np.uint32(said[y, c, x]) * (wy[y] * wx[x])


@numba.njit(cache=True, nogil=True)
def decide_all(
    total: NDArray[np.uint32],
    stop: NDArray[np.int64],
    observed: NDArray[np.bool_],
    out: NDArray[np.void],
    shares: NDArray[np.uint8],
) -> None:
    """Decide pixels of which all windows were added up: dims (y, class, x); (y, x) of ``observed`` and ``out``."""
    for y in range(total.shape[0]):
        decide(total[y], stop, observed[y], out[y])
        keep_probabilities(total[y], observed[y], shares[y])
