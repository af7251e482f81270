"""How fast the U-Net learns from a Zarr store, against the bare training step and against what users write.

    python benchmarks/learning.py [--size small|tile] [--json FILE]

Makes its own store (ten bands, labels of six classes), then measures some steps of a U-Net with a ResNet50 encoder:

floor     the bare step (forward, loss, backward, AdamW), as geoflow runs it, on one batch that stays in memory
ours      geoflow.learning: windows drawn from the store by a thread ahead of the net, augmented, encoded, the same step
usual     the same net in float32 on windows cut one by one with xarray's isel(...).compute(); as users write it

Mpx/s count pixels of the windows.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import torch
import xarray as xr
import zarr
from measuring import command_line, measure, report
from torch import Tensor, nn

from geoflow import nets
from geoflow.inputs import InputSpec
from geoflow.learning.loop import Leg, Loop, Stage
from geoflow.learning.losses import HierarchyLoss
from geoflow.learning.sampler import Sampler, SamplerOptions
from geoflow.learning.samples import survey
from geoflow.legends import legend

SIZES = {"small": (1024, 4, 4, 1), "tile": (4096, 8, 20, 3)}  # pixels a side, batch, steps, repeats
WINDOW = 128
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
CODES = (112, 211, 231, 311, 312, 512)
INPUTS = InputSpec(BANDS, ("summer",), (1500.0,) * len(BANDS), (800.0,) * len(BANDS))

Batches = Iterator[tuple[Tensor, Tensor]]


def main() -> None:
    """Run all variants, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES)
    side, batch, steps, repeats = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name), side)
        variants = make_variants(Path(name), batch, steps)
        rows = [measure(name, run, steps * batch * WINDOW**2, repeats) for name, run in variants.items()]
    seconds = {row.name: row.seconds for row in rows}
    ratios = {
        "time_over_floor": seconds["ours"] / seconds["floor"],
        "speed_over_usual": seconds["usual"] / seconds["ours"],
    }
    compute = nets.best_compute()
    title = (
        f"{steps} steps of {batch} windows of {WINDOW} px, {compute.device}, bf16 {compute.bf16}, median of {repeats}"
    )
    report(title, rows, ratios, arguments.json)


def make_store(folder: Path, side: int) -> None:
    """Imagery and labels in Zarr: blobs of classes, each with its spectrum and noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, len(CODES), (side // 32, side // 32))
    kinds = np.kron(coarse, np.ones((32, 32), int))
    spectra = rng.integers(300, 4000, (len(BANDS), len(CODES)))
    cube = (spectra[:, kinds] + rng.normal(0, 150, (len(BANDS), side, side))).astype(np.int16)[None]
    zarr.create_array(folder / "imagery", data=cube, chunks=(1, 1, 256, 256))
    zarr.create_array(folder / "labels", data=np.array(CODES, np.uint16)[kinds], chunks=(256, 256))


def make_variants(folder: Path, batch: int, steps: int) -> dict[str, Callable[[], None]]:
    """What is measured, by name."""
    imagery, labels = zarr.open_array(folder / "imagery"), zarr.open_array(folder / "labels")
    corine = legend("corine")
    found = survey(labels, None, 1024, tuple(corine.codes(3)))
    loss = HierarchyLoss(corine, CODES, np.ones(len(CODES), np.float32), None, 0.0)
    best, plain = nets.best_compute(), nets.Compute("cpu", False)

    def train(compute: nets.Compute, net: nn.Module, batches: Batches) -> None:
        feed = nullcontext((x, target, {}) for x, target in batches)
        Loop(net, loss.to(compute.device), compute, 1e-3).run(
            [Leg(lambda position: feed, [Stage("bench", steps, 1e-4, 1e-4)])]
        )

    def net() -> nn.Module:
        return nets.build_segmenter("unet", "resnet50", len(BANDS), len(CODES))

    def ours() -> None:
        options = SamplerOptions(window_px=WINDOW, batch=batch, seed=0)
        sampler = Sampler(imagery, labels, found, None, options)
        with closing(sampler.batches(INPUTS, steps)) as drawn:
            train(
                best, best.place(net()), ((best.tensor(b.x), torch.from_numpy(b.target).to(best.device)) for b in drawn)
            )

    still = best.tensor(np.zeros((batch, len(BANDS), WINDOW, WINDOW), np.float32))
    target = torch.zeros((batch, WINDOW, WINDOW), dtype=torch.int64, device=best.device)
    return {
        "floor": lambda: train(best, best.place(net()), itertools.repeat((still, target))),
        "ours": ours,
        "usual": lambda: train(plain, net(), cut_one_by_one(folder, batch)),
    }


def cut_one_by_one(folder: Path, batch: int) -> Batches:
    """Windows at random places, each read when it is needed."""
    imagery = xr.DataArray(zarr_lazily(folder / "imagery"), dims=("period", "band", "y", "x"))
    labels = xr.DataArray(zarr_lazily(folder / "labels"), dims=("y", "x"))
    rng = np.random.default_rng(0)
    while True:
        xs, targets = [], []
        for _ in range(batch):
            top, left = rng.integers(0, labels.sizes["y"] - WINDOW, 2)
            part = {"y": slice(top, top + WINDOW), "x": slice(left, left + WINDOW)}
            xs.append((imagery.isel(part).compute().values[0].astype(np.float32) - 1500) / 800)
            targets.append(np.searchsorted(CODES, labels.isel(part).compute().values))
        yield torch.from_numpy(np.stack(xs)), torch.from_numpy(np.stack(targets))


def zarr_lazily(path: Path) -> object:
    """The array as dask opens it."""
    import dask.array as da

    return da.from_zarr(str(path))


if __name__ == "__main__":
    main()
