"""How fast two ranks on two Dask workers train, against one with all cores: the same batches, the same loss.

    python benchmarks/ranks.py [--size small|tile] [--json FILE]

Makes its own store, then trains a U-Net with a ResNet50 encoder for some steps:

alone     one worker process with all cores
ranks     two worker processes with half of the cores each, two lanes, sums by gloo over loopback

Seconds are those of the steps after the first two, in which memory is claimed.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zarr
from distributed import Client
from measuring import Row, command_line, report

from geoflow.jobs.clusters import connect
from geoflow.learning.loop import Setting
from geoflow.learning.options import SegmenterOptions
from geoflow.learning.ranks import Meeting, Ranks, join
from geoflow.learning.segmenter import fit_segmenter
from geoflow.legends import legend

SIZES = {"small": (1024, 8, 8), "tile": (2048, 16, 20)}  # pixels a side, batch, steps
WINDOW = 128
BANDS = ("B02", "B03", "B04", "B08")
CODES = (112, 211, 231, 311, 312, 512)
WARM = 2


def main() -> None:
    """Run both, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES)
    side, batch, steps = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as name, connect("local") as client:
        make_store(Path(name), side)
        pixels = (steps - WARM) * batch * WINDOW**2
        curves, rows = {}, []
        for variant, size in (("alone", 1), ("ranks", 2)):
            losses, seconds, memory_mb = train(client, Path(name), batch, steps, size)
            curves[variant] = losses
            rows.append(Row(variant, seconds, pixels / 1e6 / seconds, memory_mb))
    apart = float(np.abs(np.subtract(curves["alone"], curves["ranks"])).max())
    ratios = {"throughput_of_two_ranks": rows[0].seconds / rows[1].seconds, "losses_differ_by": apart}
    title = f"{steps - WARM} steps of {batch} windows of {WINDOW} px, memory of the first rank in all"
    report(title, rows, ratios, arguments.json)


def make_store(folder: Path, side: int) -> None:
    """Imagery and labels with something to learn, in chunks of 256 px."""
    rng = np.random.default_rng(0)
    kinds = np.kron(rng.integers(0, len(CODES), (side // 64, side // 64)), np.ones((64, 64), np.intp))
    spectra = rng.integers(300, 3500, (len(CODES), len(BANDS)))
    imagery = spectra[kinds].transpose(2, 0, 1)[None] + rng.integers(-300, 300, (1, len(BANDS), side, side))
    chunks = (1, len(BANDS), 256, 256)
    zarr.create_array(folder / "imagery", data=imagery.astype(np.int16), chunks=chunks)
    zarr.create_array(folder / "labels", data=np.array(CODES, np.uint16)[kinds], chunks=(256, 256))


def train(client: Client, folder: Path, batch: int, steps: int, size: int) -> tuple[list[float], float, float]:
    """Losses, seconds after the first steps, and megabytes of the first rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = Meeting("127.0.0.1", free.getsockname()[1], size)
    workers = list(client.nthreads())[:size]
    futures = [
        client.submit(on_rank, folder, batch, steps, meeting, rank, workers=[worker], pure=False)
        for rank, worker in enumerate(workers)
    ]
    return client.gather(futures)[0]


def on_rank(folder: Path, batch: int, steps: int, meeting: Meeting, rank: int) -> tuple[list[float], float, float]:
    """What a worker is handed."""
    import psutil

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // meeting.size))
    told: list[tuple[float, float]] = []
    ranks: Ranks = join(meeting, rank, "127.0.0.1", "cpu")
    options = SegmenterOptions(
        architecture="unet", decoder_steps=0, steps=steps, batch=batch, window_px=WINDOW, lanes=2, lr=1e-5
    )
    setting = Setting(ranks, progress=lambda news: told.append((time.perf_counter(), news["loss"])))
    imagery, labels = zarr.open_array(folder / "imagery", mode="r"), zarr.open_array(folder / "labels", mode="r")
    try:
        fit_segmenter(imagery, labels, legend("corine"), BANDS, ("summer",), options, setting)
    finally:
        ranks.leave()
    if not told:
        return [], 0.0, 0.0
    memory_mb = psutil.Process().memory_info().rss / 2**20
    return [loss for _, loss in told], told[-1][0] - told[WARM - 1][0], memory_mb


if __name__ == "__main__":
    main()
