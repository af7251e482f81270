"""The ground of a window, kept on disk while scenes and truth are made from it, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from geoflow.sample.landscape import Codes, Landscape
from geoflow.sample.paint import Paint, Painter
from geoflow.sample.parallel import run_all

BLOCK = 1024
MARGIN = 32
MIN_CHANGE_PX = 20
"""Smallest changed patch: 0.2 ha."""

LAYERS: dict[str, type] = {
    "code_before": np.uint16,
    "code_after": np.uint16,
    "before": np.uint8,
    "after": np.uint8,
    "tone": np.int8,
    "vigour": np.int8,
    "slope_y": np.int8,
    "slope_x": np.int8,
}


def blocks(rows: slice, cols: slice, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut a window into blocks, row by row."""
    for r in range(rows.start, rows.stop, size):
        for c in range(cols.start, cols.stop, size):
            yield slice(r, min(r + size, rows.stop)), slice(c, min(c + size, cols.stop))


def drop_small_changes(before: Codes, after: Codes, min_px: int = MIN_CHANGE_PX) -> Codes:
    """``after`` without changed patches (same codes, touching edges) of fewer than ``min_px`` pixels."""
    changed = before != after
    if not changed.any():
        return after
    kind = np.where(changed, before.astype(np.int32) * 1000 + after, 0)
    out = after.copy()
    for key in np.unique(kind[changed]):
        patches, count = ndimage.label(kind == key)
        small = np.bincount(patches.ravel(), minlength=count + 1) < min_px
        small[0] = False
        mask = small[patches]
        out[mask] = before[mask]
    return out


def survey_block(land: Landscape, y: slice, x: slice) -> tuple[Codes, Codes, Paint]:
    """Codes of both epochs and materials of one window, free of effects of its own edges."""
    wide_y, wide_x = slice(y.start - MARGIN, y.stop + MARGIN), slice(x.start - MARGIN, x.stop + MARGIN)
    survey = land.survey(wide_y, wide_x)
    after = drop_small_changes(survey.before, survey.after)
    paint = Painter(survey.fields, land.seed).paint(survey.before, after)
    core = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    cut = Paint(**{name: getattr(paint, name)[core] for name in Paint.__dataclass_fields__})
    return survey.before[core], after[core], cut


@dataclass(frozen=True)
class Ground:
    """Layers of a window on disk. ``rows`` and ``cols`` are frame pixels; negative ones lie outside the frame."""

    rows: slice
    cols: slice
    layers: Mapping[str, NDArray[Any]]

    def read(self, layer: str, y: slice, x: slice) -> NDArray[Any]:
        """A copy of a rectangle of a layer, addressed in frame pixels."""
        r0, c0 = self.rows.start, self.cols.start
        return np.array(self.layers[layer][y.start - r0 : y.stop - r0, x.start - c0 : x.stop - c0])

    def gather(self, layer: str, row: NDArray[np.int32], col: NDArray[np.int32]) -> NDArray[Any]:
        """A layer at given frame pixels; positions outside are moved to the nearest pixel."""
        stored = self.layers[layer]
        r = np.clip(row - self.rows.start, 0, stored.shape[0] - 1)
        c = np.clip(col - self.cols.start, 0, stored.shape[1] - 1)
        r0, r1, c0, c1 = int(r.min()), int(r.max()) + 1, int(c.min()), int(c.max()) + 1
        part = np.ascontiguousarray(stored[r0:r1, c0:c1])
        return part.ravel().take((r - r0) * (c1 - c0) + (c - c0))


def make_ground(land: Landscape, rows: slice, cols: slice, folder: Path, workers: int) -> Ground:
    """Survey a window block by block into files under ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (rows.stop - rows.start, cols.stop - cols.start)
    layers = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, dtype in LAYERS.items()
    }

    def one(y: slice, x: slice) -> None:
        before, after, paint = survey_block(land, y, x)
        at = (slice(y.start - rows.start, y.stop - rows.start), slice(x.start - cols.start, x.stop - cols.start))
        layers["code_before"][at], layers["code_after"][at] = before, after
        for name in Paint.__dataclass_fields__:
            layers[name][at] = getattr(paint, name)

    run_all(one, blocks(rows, cols, BLOCK), workers)
    for written in layers.values():
        written.flush()
    # Mapped anew for reading, so that the pages written above no longer count as this process's memory.
    return Ground(rows, cols, {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in LAYERS})
