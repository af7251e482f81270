"""What windows said, kept for the neighbours: a window over the border of two tiles runs once, not twice.

Tiles are mapped in any order, by any worker, and each needs the windows over its borders. Whoever runs such a window
first leaves its probabilities here; whoever finds them need not run it. It is a shortcut and nothing else: a file that
is missing or damaged means that the window runs again, with the same result to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geoflow.places import entries, read_bytes, remove, write_bytes


@dataclass(frozen=True)
class Scratch:
    """A folder of windows.

    Parameters
    ----------
    folder : Path
        For one model, one engine and one imagery: the caller names it after all that alters what a window says.
    """

    folder: Path

    def load(self, window: tuple[int, int]) -> bytes | None:
        """What a window said, as it was saved; None where it is not known."""
        try:
            return bytes(_codec().decode(read_bytes(self._file(window))))
        except (OSError, RuntimeError, ValueError):
            return None

    def save(self, window: tuple[int, int], said: bytes) -> None:
        """Keep what a window said, an even number of bytes; complete under its name or not there at all."""
        write_bytes(self._file(window), bytes(_codec().encode(np.frombuffer(said, np.uint16))))

    def finish(self, tile: str, windows: dict[tuple[int, int], tuple[str, ...]]) -> None:
        """Say that a tile is mapped, and drop the windows that nobody needs any more.

        Parameters
        ----------
        tile : str
            Its id.
        windows : mapping of (row, column) -> tile ids
            The windows that the tile shares, and all tiles of the job that need each.
        """
        write_bytes(self.folder / f"{tile}.done", b"")
        done = {path.stem for path in entries(self.folder)[1] if path.suffix == ".done"}
        for window, tiles in windows.items():
            if done.issuperset(tiles):
                remove(self._file(window))

    def _file(self, window: tuple[int, int]) -> Path:
        return self.folder / f"{window[0]}-{window[1]}.window"


def _codec() -> Any:
    from numcodecs import Blosc  # type: ignore[import-untyped]

    # Most classes have a chance near 0 nearly everywhere: the high bits are runs of zeros.
    return Blosc(cname="lz4", clevel=1, shuffle=Blosc.BITSHUFFLE)
