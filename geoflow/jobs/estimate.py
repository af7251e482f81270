"""What a job will cost: bytes to read and write, and the memory of a worker. Estimates, from sizes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geoflow.jobs.flow import Flow

_COG_COMPRESSION = 0.6
"""Share of the raw bytes that a Sentinel-2 COG takes, typically."""


def bytes_to_write(flow: Flow) -> int:
    """Upper bound of the store's size: every variable of every group, uncompressed."""
    height, width = flow.grid.shape
    pixels, job, legend = height * width, flow.job, flow.legend
    levels = sum(legend.dtype(level).itemsize for level in legend.levels)
    total = 0
    if job.imagery:
        periods, bands = len(job.imagery.periods), len(job.imagery.bands)
        source = 2 if job.imagery.composite in ("medoid", "best") else 0
        total += len(job.imagery.epochs) * periods * (2 * bands + 1 + source)
    if job.labels:
        total += levels + 2  # and the distance to the nearest border
    if job.predict:
        classes = len(legend.codes(legend.levels[-1])) if flow.keeps_probabilities else 0
        # Besides the levels: confidence, margin, clear, and the second class.
        total += len(job.mapped_epochs) * (levels + 3 + legend.dtype(legend.levels[-1]).itemsize + classes)
    if job.change:
        total += 2 + 2 * legend.dtype(legend.levels[-1]).itemsize
    return total * pixels


def bytes_to_read(flow: Flow) -> int:
    """What the composites read from the scenes: the pixels under each tile, of each scene that meets it."""
    if flow.job.imagery is None:
        return 0
    per_pixel = 2 * len(flow.job.imagery.bands) + 1
    pixels = sum(
        tile.shape[0] * tile.shape[1] * len(scenes.on(tile)) for scenes in flow.scenes.values() for tile in flow.tiles
    )
    return int(pixels * per_pixel * _COG_COMPRESSION)


def peak_worker_bytes(flow: Flow) -> int:
    """Memory of a worker at its busiest: the scenes of one tile and period with their sorted copy, or the net's window.

    Besides the base of a Python process with the whole stack loaded.
    """
    base = 700 * 2**20
    if flow.job.imagery is None:
        return base
    tile_px = max(t.shape[0] * t.shape[1] for t in flow.tiles)
    scenes = max((len(s.on(t)) for s in flow.scenes.values() for t in flow.tiles), default=0)
    bands = len(flow.job.imagery.bands)
    composite = tile_px * scenes * (2 * bands * 2 + 3)
    predict = tile_px * len(flow.job.imagery.periods) * bands * 2 * 3 if flow.job.predict else 0
    return base + max(composite, predict)
