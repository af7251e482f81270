"""How fast a stored composite becomes a stored map, against the bare net and against what users write.

    python benchmarks/maps.py [--size small|tile] [--json FILE]

Makes its own composite (a Zarr store of one tile, four bands) and a U-Net with a ResNet50 encoder and random weights,
scaled so that it is as sure of its classes as a trained one: the time does not depend on what the net has learned.
Measures in one run:

floor     the bare net of the same engine, on as many windows as the map needs, ready in memory
ours      the predict task of a job: read, encode, net, blend, decide, compress and write, all layers
usual     dask map_overlap of a float32 net on blocks of 256 px with 50 % overlap, softmax averaged, as users write it
monai     MONAI's sliding_window_inference of the float32 net with our windows and overlap, Gaussian weights
monai_bf16  the same in the precision of our engine

Mpx/s count finished pixels.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
from measuring import command_line, measure, report
from monai.inferers import sliding_window_inference
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

from geoflow import nets
from geoflow.grid import Grid
from geoflow.inputs import InputSpec
from geoflow.jobs.layout import imagery_group, map_group
from geoflow.jobs.mapwork import PredictWork
from geoflow.legends import legend
from geoflow.mapping import engines
from geoflow.mapping.netpool import net_pool
from geoflow.modelfile import LoadedModel, ModelCard, TrainedModel, load_model, save_model
from geoflow.store.zarr import Store

SIZES = {"small": (1536, 3), "tile": (10_752, 1)}  # pixels a side, repeats; "tile" is 10980 cut to whole windows
USUAL_PX = 1024  # the others are measured on no more than this: they take as long per pixel everywhere
WINDOW, HALO = 576, 32
BANDS = ("B02", "B03", "B04", "B08")
CODES = tuple(legend("corine").codes(3))
CHUNK, BLOCK = 512, 256  # of the store, as jobs have it; of the usual way


def main() -> None:
    """Run all variants, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES)
    side, repeats = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        store, cube = make_store(folder / "country.zarr", side)
        small = cube[:, :, :USUAL_PX, :USUAL_PX]
        engine = engines.candidates("auto")[0]
        some, all_of_it = small.shape[2] * small.shape[3], side * side
        variants: dict[str, tuple[int, Callable[[], Any]]] = {
            "floor": (all_of_it, bare_net(model, engine, side)),
            "ours": (all_of_it, predict_work(store, model, engine, folder / "scratch")),
            "usual": (some, lambda: with_map_overlap(small, model)),
            "monai": (some, lambda: with_monai(small, model, torch.float32)),
            "monai_bf16": (some, lambda: with_monai(small, model, torch.bfloat16)),
        }
        rows = [measure(name, run, pixels, repeats) for name, (pixels, run) in variants.items()]
    speed = {row.name: row.mpx_per_s for row in rows}
    window, core = model.card.window_px, model.card.core_px
    ratios = {
        "time_over_floor": speed["floor"] / speed["ours"],
        "speed_over_usual": speed["ours"] / speed["usual"],
        "speed_over_monai": speed["ours"] / speed["monai"],
        "speed_over_monai_bf16": speed["ours"] / speed["monai_bf16"],
        "pixels_with_halo": (math.ceil(side / core) * window / side) ** 2,
    }
    title = f"{side} x {side} px, {len(BANDS)} bands, {engine}, median of {repeats}"
    report(title, rows, ratios, arguments.json)


def make_model(folder: Path) -> LoadedModel:
    """A U-Net of the paper's size with random weights."""
    with nets.reproducible(0):
        net = nets.build_segmenter("unet", "resnet50", len(BANDS), len(CODES))
    # As sure of its classes as a trained net: with fresh weights all classes are about as likely everywhere.
    net.segmentation_head[0].weight.data *= 30
    inputs = InputSpec(BANDS, ("summer",), (1500.0,) * len(BANDS), (800.0,) * len(BANDS))
    card = ModelCard("segmenter", "unet", "resnet50", {}, inputs, CODES, legend("corine"), WINDOW, HALO)
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


def predict_work(store: Store, model: LoadedModel, engine: str, scratch: Path) -> Callable[[], Any]:
    """The task that a job runs for one tile."""
    tile = store.grid.tile_at(0, 0)
    extent = store.grid.geobox.extent
    work = PredictWork(
        store.path,
        tile.id,
        "imagery/2018",
        "map/2018",
        model.path,
        model.sha256,
        engine,
        False,
        bytes(extent.geom.wkb),
        str(extent.crs),
        (tile.id,),
        scratch,
    )

    def run() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        work()

    return run


def bare_net(model: LoadedModel, engine: str, side: int) -> Callable[[], None]:
    """The net of an engine on as many windows as the map has, on as many threads as geoflow uses."""
    loaded: Any = engines.load_engine(model, engine)
    window = np.zeros((len(BANDS), model.card.window_px, model.card.window_px), np.float32)
    count = math.ceil(side / model.card.core_px) ** 2
    pool = net_pool(loaded.gpu)
    if not engine.startswith("torch"):
        return lambda: list(pool.map(lambda _: loaded.logits(window) is None, range(count))) and None
    x = torch.from_numpy(window[None]).to(loaded.device).contiguous(memory_format=torch.channels_last)
    reduced = loaded.dtype is not torch.float32

    @torch.inference_mode()
    def one(_: int) -> None:
        with torch.autocast(loaded.device, dtype=loaded.dtype, enabled=reduced):
            loaded.net(x)

    def run() -> None:
        list(pool.map(one, range(count)))
        if loaded.device == "cuda":
            torch.cuda.synchronize()

    return run


@torch.inference_mode()
def with_monai(cube: np.ndarray, model: LoadedModel, dtype: torch.dtype) -> np.ndarray:
    """MONAI's inferer, channels last."""
    net = model.trained.build().to(memory_format=torch.channels_last)
    x, _ = model.card.inputs.encode(cube)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
        p = sliding_window_inference(
            torch.from_numpy(x)[None].contiguous(memory_format=torch.channels_last),
            roi_size=(WINDOW, WINDOW),
            sw_batch_size=1,
            predictor=lambda window: net(window).float().softmax(1),
            overlap=2 * HALO / WINDOW,
            mode="gaussian",
        )
    return np.asarray(p[0].argmax(0).numpy().astype(np.uint8))


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
