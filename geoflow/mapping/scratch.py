"""What windows said, kept for the neighbours: a window over the border of two tiles runs once, not twice.

Tiles are mapped in any order, by any worker, and each needs the windows over its borders. Whoever runs such a window
first leaves its probabilities here; whoever finds them need not run it. It is a shortcut and nothing else: a file that
is missing or damaged means that the window runs again, with the same result to the last bit.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


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
            return bytes(_codec().decode(self._file(window).read_bytes()))
        except (OSError, RuntimeError, ValueError):
            return None

    def save(self, window: tuple[int, int], said: bytes) -> None:
        """Keep what a window said, an even number of bytes; complete under its name or not there at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=".window-")
        with os.fdopen(handle, "wb") as file:
            file.write(_codec().encode(np.frombuffer(said, np.uint16)))
        os.replace(name, self._file(window))

    def finish(self, tile: str, windows: dict[tuple[int, int], tuple[str, ...]]) -> None:
        """Say that a tile is mapped, and drop the windows that nobody needs any more.

        Parameters
        ----------
        tile : str
            Its id.
        windows : mapping of (row, column) -> tile ids
            The windows that the tile shares, and all tiles of the job that need each.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{tile}.done").touch()
        done = {path.stem for path in self.folder.glob("*.done")}
        for window, tiles in windows.items():
            if done.issuperset(tiles):
                self._file(window).unlink(missing_ok=True)

    def _file(self, window: tuple[int, int]) -> Path:
        return self.folder / f"{window[0]}-{window[1]}.window"


def _codec() -> Any:
    from numcodecs import Blosc  # type: ignore[import-untyped]

    # Most classes have a chance near 0 nearly everywhere: the high bits are runs of zeros.
    return Blosc(cname="lz4", clevel=1, shuffle=Blosc.BITSHUFFLE)
