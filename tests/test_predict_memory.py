"""A process that maps a tile needs the memory that the plan says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

from geoflow import nets
from geoflow.grid import Grid
from geoflow.inputs import InputSpec
from geoflow.jobs.clusters import WORKER_ENVIRONMENT
from geoflow.jobs.estimate import predict_bytes
from geoflow.jobs.layout import imagery_group, map_group
from geoflow.legends import legend
from geoflow.mapping import engines
from geoflow.modelfile import ModelCard, TrainedModel, save_model
from geoflow.store.zarr import Store

pytestmark = pytest.mark.slow

BANDS = ("B02", "B03", "B04", "B08")
CODES = tuple(legend("corine").codes(3))

MAP = """
import sys
from pathlib import Path
from geoflow.jobs.mapwork import PredictWork
from geoflow.mapping import engines, netpool
from geoflow.modelfile import load_model
from geoflow.store.zarr import open_for_writing

folder, engine, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for module in (netpool, engines):
    module.worker_threads = lambda: threads
store, model = open_for_writing(folder / "country.zarr"), load_model(folder / "model")
tile, extent = store.grid.tile_at(0, 0), store.grid.geobox.extent
PredictWork(
    store.path, tile.id, "imagery/2018", "map/2018", model.path, model.sha256, engine, False,
    bytes(extent.geom.wkb), str(extent.crs), (tile.id,), None,
)()
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
"""


def peak(folder: Path, side: int, window: int, threads: int, engine: str) -> int:
    """Bytes that a process of its own held at the most."""
    net = nets.build_segmenter("unet", "resnet50", len(BANDS), len(CODES))
    inputs = InputSpec(BANDS, ("summer",), (1500.0,) * 4, (800.0,) * 4)
    card = ModelCard("segmenter", "unet", "resnet50", {}, inputs, CODES, legend("corine"), window, 32)
    save_model(folder / "model", TrainedModel(card, net.state_dict()))
    geobox = GeoBox((side, side), from_origin(4_600_000, 2_900_000, 10, 10), "EPSG:3035")
    store = Store.create(folder / "country.zarr", Grid(geobox, side, 512))
    store.ensure_group(imagery_group("2018", {"period": ["summer"], "band": list(BANDS)}, {}))
    store.ensure_group(map_group("2018", legend("corine"), {}))
    cube = np.random.default_rng(0).integers(500, 3000, (1, len(BANDS), side, side), np.int16)
    clear = np.full((1, side, side), 3, np.uint8)
    store.write("imagery/2018", store.grid.tile_at(0, 0), {"reflectance": cube, "clear": clear})
    command = [sys.executable, "-c", MAP, folder, engine, str(threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **WORKER_ENVIRONMENT}, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("side", "window", "threads"), [(1024, 576, 1), (1024, 288, 1), (2048, 576, 4), (4096, 576, 1)]
)
def test_the_plan_knows_the_memory_of_a_worker_that_maps(side: int, window: int, threads: int, tmp_path: Path) -> None:
    needed = peak(tmp_path, side, window, threads, engines.candidates("auto")[0])
    told = predict_bytes(side * side, len(BANDS), window, threads)
    assert 0.75 < told / needed < 1.25, (told, needed)
