"""How fast a stored composite becomes a stored map, against the bare net and against what users write.

    python benchmarks/maps.py [--size small|tile] [--json FILE]

Makes its own composite (a Zarr store of one tile, four bands) and a U-Net with a ResNet50 encoder and random weights:
the time does not depend on what the net has learned. Measures in one run:

floor     the bare net, as geoflow runs it, on as many windows as the map needs, ready in memory
ours      the predict task of a job: read, encode, net, decode, compress and write, all layers
usual     dask map_overlap of a float32 net on blocks of 256 px with 50 % overlap, softmax averaged, as users write it

Mpx/s count finished pixels.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
from measuring import command_line, measure, report
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

from geoflow import nets
from geoflow.grid import Grid
from geoflow.inputs import InputSpec
from geoflow.jobs.layout import imagery_group, map_group
from geoflow.jobs.work import PredictWork
from geoflow.legends import legend
from geoflow.modelfile import LoadedModel, ModelCard, TrainedModel, load_model, save_model
from geoflow.store.zarr import Store

SIZES = {"small": (768, 2), "tile": (10_752, 1)}  # pixels a side, repeats; "tile" is 10980 cut to whole chunks
USUAL_PX = 768  # the usual way is measured on no more than this: it takes as long per pixel everywhere
BANDS = ("B02", "B03", "B04", "B08")
CODES = tuple(legend("corine").codes(3))
CHUNK, BLOCK = 256, 256


def main() -> None:
    """Run all variants, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES)
    side, repeats = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        store, cube = make_store(folder / "country.zarr", side)
        small = cube[:, :, :USUAL_PX, :USUAL_PX]
        pixels = {"floor": side * side, "ours": side * side, "usual": small.shape[2] * small.shape[3]}
        variants = {
            "floor": lambda: bare_net(model, side),
            "ours": predict_work(store, model),
            "usual": lambda: with_map_overlap(small, model),
        }
        rows = [measure(name, run, pixels[name], repeats) for name, run in variants.items()]
    speed = {row.name: row.mpx_per_s for row in rows}
    window, core = model.card.window_px, model.card.core_px
    ratios = {
        "time_over_floor": speed["floor"] / speed["ours"],
        "speed_over_usual": speed["ours"] / speed["usual"],
        "pixels_with_halo": (math.ceil(side / core) * window / side) ** 2,
    }
    compute = nets.best_compute()
    title = f"{side} x {side} px, {len(BANDS)} bands, {compute.device}, bf16 {compute.bf16}, median of {repeats}"
    report(title, rows, ratios, arguments.json)


def make_model(folder: Path) -> LoadedModel:
    """A U-Net of the paper's size with random weights."""
    with nets.reproducible(0):
        net = nets.build_segmenter("unet", "resnet50", len(BANDS), len(CODES))
    inputs = InputSpec(BANDS, ("summer",), (1500.0,) * len(BANDS), (800.0,) * len(BANDS))
    card = ModelCard("segmenter", "unet", "resnet50", {}, inputs, CODES, legend("corine"), 320, 32)
    save_model(folder, TrainedModel(card, net.state_dict()))
    return load_model(folder)


def make_store(path: Path, side: int) -> tuple[Store, np.ndarray]:
    """A store of one tile that holds a composite of smooth ground and noise; and the composite itself."""
    geobox = GeoBox((side, side), from_origin(4_600_000, 2_900_000, 10, 10), "EPSG:3035")
    store = Store.create(path, Grid(geobox, side, CHUNK))
    store.ensure_group(imagery_group("2018", {"period": ["summer"], "band": list(BANDS)}, {}))
    store.ensure_group(map_group("2018", legend("corine"), {}))
    rng = np.random.default_rng(0)
    ground = 1500 + 500 * np.sin(np.arange(side) / 40)[:, None]
    cube = np.stack([(ground + rng.normal(0, 80, (side, side))).astype(np.int16) for _ in BANDS])[None]
    tile = store.grid.tile_at(0, 0)
    store.write("imagery/2018", tile, {"reflectance": cube, "clear": np.full((1, side, side), 3, np.uint8)})
    return store, cube


def predict_work(store: Store, model: LoadedModel) -> Callable[[], Any]:
    """The task that a job runs for one tile."""
    tile = store.grid.tile_at(0, 0)
    extent = store.grid.geobox.extent
    return PredictWork(
        store.path,
        tile.id,
        "imagery/2018",
        "map/2018",
        model.path,
        model.sha256,
        bytes(extent.geom.wkb),
        str(extent.crs),
    )


@torch.inference_mode()
def bare_net(model: LoadedModel, side: int) -> None:
    """The net on as many windows as the map has, one at a time as geoflow does."""
    compute = nets.best_compute()
    net = compute.place(model.trained.build())
    window = np.zeros((1, len(BANDS), model.card.window_px, model.card.window_px), np.float32)
    x = compute.tensor(window)
    for _ in range(math.ceil(side / model.card.core_px) ** 2):
        with compute.autocast():
            net(x)
    if compute.device == "cuda":
        torch.cuda.synchronize()


def with_map_overlap(cube: np.ndarray, model: LoadedModel) -> np.ndarray:
    """Blocks of 256 px, each seen with half a block around it and averaged: the pattern of many notebooks."""
    net = model.trained.build()
    mean = np.asarray(model.card.inputs.mean, np.float32)[:, None, None]
    half = BLOCK // 2

    @torch.inference_mode()
    def predict(block: np.ndarray) -> np.ndarray:
        height, width = block.shape[1] - 2 * half, block.shape[2] - 2 * half
        total = np.zeros((len(CODES), height + 2 * half, width + 2 * half), np.float32)
        x = torch.from_numpy((block.astype(np.float32) - mean) / 800)[None]
        for top in range(0, height + 1, half):
            for left in range(0, width + 1, half):
                window = (..., slice(top, top + BLOCK), slice(left, left + BLOCK))
                total[window] += net(x[window]).softmax(1)[0].numpy()
        return total[:, half:-half, half:-half].argmax(0).astype(np.uint8)

    data = da.from_array(cube[0], chunks=(-1, BLOCK, BLOCK))
    padded = da.overlap.overlap(data, {0: 0, 1: half, 2: half}, {0: "none", 1: "reflect", 2: "reflect"})
    with dask.config.set(scheduler="threads", num_workers=1):
        mapped = da.map_blocks(
            predict, padded, dtype=np.uint8, drop_axis=0, chunks=data.chunks[1:], meta=np.empty((0, 0), np.uint8)
        )
        return np.asarray(mapped.compute())


if __name__ == "__main__":
    main()
