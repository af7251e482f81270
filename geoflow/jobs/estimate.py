"""What a job will cost: bytes to read and write, and the memory of a worker. Estimates, from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geoflow.imagery import CompositeOptions
    from geoflow.jobs.clusters import Needs
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
    overviews = 1 / 3 if job.overviews else 0  # 1/4 + 1/16 + ..., of most of it
    return round(total * pixels * (1 + overviews))


def bytes_to_read(flow: Flow) -> int:
    """What the composites read from the scenes: the pixels under each tile, of each scene that meets it."""
    if flow.job.imagery is None:
        return 0
    per_pixel = 2 * len(flow.job.imagery.bands) + 1
    pixels = sum(
        tile.shape[0] * tile.shape[1] * len(scenes.on(tile)) for scenes in flow.scenes.values() for tile in flow.tiles
    )
    return int(pixels * per_pixel * _COG_COMPRESSION)


_COMPOSITE_BASE = 380 * 2**20  # Python with what reads and composes scenes loaded
_LEARN_BASE = 700 * 2**20  # with torch
_PREDICT_BASE = 2000 * 2**20  # and with OpenVINO and a U-Net with ResNet50


def peak_worker_bytes(flow: Flow) -> int:
    """Memory of a worker of one thread that composes or maps: training is one task, and needs what its options ask."""
    if flow.job.imagery is None:
        return _LEARN_BASE
    tile_px = max(t.shape[0] * t.shape[1] for t in flow.tiles)
    return max(_composite_peak(flow, tile_px), _predict_peak(flow, tile_px) if flow.job.predict else _LEARN_BASE)


def map_worker_bytes(flow: Flow) -> int:
    """Memory of a worker of one thread that maps, or learns: what can be told without knowing the scenes."""
    if flow.job.imagery is None or not flow.job.predict:
        return _LEARN_BASE
    return _predict_peak(flow, max(t.shape[0] * t.shape[1] for t in flow.tiles))


def worker_needs(flow: Flow) -> Needs:
    """What the job asks of a worker, for clusters that can choose."""
    from geoflow.jobs.clusters import Needs

    nets = any(section is not None for section in (flow.job.classifier, flow.job.train, flow.job.predict))
    return Needs(peak_worker_bytes(flow), nets=nets)


def _predict_peak(flow: Flow, tile_px: int) -> int:
    from geoflow.modelfile import read_header

    imagery, given = flow.section("imagery"), flow.section("predict").model
    # One that this run trains is not looked at: it may be damaged, which training it again will mend.
    window_px = flow.segmenter_options.map_window_px if given is None else read_header(given).card.window_px
    classes = len(flow.legend.codes(flow.legend.levels[-1])) if flow.keeps_probabilities else 0
    return predict_bytes(tile_px, len(imagery.periods) * len(imagery.bands), window_px, 1, classes)


def predict_bytes(tile_px: int, channels: int, window_px: int, threads: int, probabilities: int = 0) -> int:
    """Peak memory of a process that maps tile after tile with a U-Net with ResNet50; smaller nets need less.

    Held against what such processes take (resident memory, Linux, OpenVINO): tests/test_predict_memory.py.

    Parameters
    ----------
    tile_px : int
        Pixels of a tile.
    channels : int
        Bands times periods that the net reads.
    window_px : int
        Edge of a window of the net.
    threads : int
        Windows that are run at once.
    probabilities : int
        Classes whose probabilities are kept.
    """
    windows = window_px**2 * (_COMPILE_BYTES_PER_PX + threads * _WINDOW_BYTES_PER_PX)
    return _PREDICT_BASE + windows + tile_px * (2 * channels + _MAP_BYTES_PER_PX + 2 * probabilities)


_COMPILE_BYTES_PER_PX = 750  # while OpenVINO prepares the net for windows of this size, which takes the most
_WINDOW_BYTES_PER_PX = 190  # activations of a window, and what it says of 44 classes, beyond that
_MAP_BYTES_PER_PX = 22  # decisions, and the layers made of them


def _composite_peak(flow: Flow, tile_px: int) -> int:
    from geoflow.jobs.imagerywork import read_threads

    most = 0
    for epoch, scenes in flow.scenes.items():
        options = flow.composite_options[epoch]
        for tile in flow.tiles:
            items = scenes.on(tile)
            counts = [sum(period.holds(item) for item in items) for period in options.periods]
            most = max(most, composite_bytes(tile_px, counts, options, read_threads(items, flow.catalog)))
    return most


def composite_bytes(tile_px: int, scenes: Sequence[int], options: CompositeOptions, threads: int) -> int:
    """Peak memory of a process that composes tile after tile, without that of a cloud detector.

    Held against what such processes take (resident memory, Linux): within 15 % for tiles of 1024 and 2048 px, 4 to 20
    scenes, 1 to 4 threads, medians and medoids.

    Parameters
    ----------
    tile_px : int
        Pixels of a tile.
    scenes : sequence of int
        Scenes of each period that meet it.
    options : CompositeOptions
    threads : int
        Blocks that are worked on at once.
    """
    from geoflow.imagery.composite import block_edge

    bands = len(options.bands)
    results = len(options.periods) * (2 * bands + (3 if options.has_source else 1))
    classes = 2 * sum(scenes)  # SCL and the mask of all periods: small, read first, needed by every band
    tile = tile_px * (2 * results + classes)  # results in blocks, and joined
    if options.percent is not None:
        block = tile_px * (2 * max(scenes) + 5)  # observations; value, count and the file that is being read
    else:
        block = min(tile_px, block_edge(max(scenes) * bands) ** 2) * (2 * bands * max(scenes) + 2 * bands + 5)
    return _COMPOSITE_BASE + tile + threads * block
