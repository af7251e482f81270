"""Labels near a border of classes, where `train.options.border_m` says not to trust them, leave no trace in the net."""

import os
from pathlib import Path

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from safetensors.numpy import load_file
from test_labels import CRS, LEFT, TOP, square, write

from geoflow.grid import Grid
from geoflow.jobs.layout import imagery_group, label_group
from geoflow.jobs.trainwork import TrainWork
from geoflow.jobs.work import LabelWork
from geoflow.learning.options import SegmenterOptions
from geoflow.learning.samples import HeldOut
from geoflow.legends import legend
from geoflow.store.zarr import Store

CORINE = legend("corine")
SIDE, NEAR_M = 128, 60
TINY = {
    "architecture": "unet",
    "encoder": "resnet18",
    "decoder_channels": (16, 16, 8, 8, 8),
    "decoder_steps": 0,
    "steps": 2,
    "batch": 2,
    "window_px": 64,
    "map_window_px": 96,
    "map_halo_px": 16,
    "max_class_weight": 5.0,  # above 1, what was counted weighs in the loss
}


@pytest.fixture(autouse=True)
def one_core():
    """Two threads that share busy cores wait for each other for minutes, and a net as small gains nothing by them."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def store(tmp_path) -> Store:
    """Imagery of noise; labels of three classes as the labels stage of a job puts them there."""
    from affine import Affine

    grid = Grid(GeoBox((SIDE, SIDE), Affine(10, 0, LEFT, 0, -10, TOP), CRS), SIDE, 64)
    found = Store.create(tmp_path / "country.zarr", grid)
    coords = {"period": ["summer"], "band": ["B03", "B04", "B08"]}
    found.ensure_group(imagery_group("2018", coords, {}))
    found.ensure_group(label_group("clc", CORINE, "clc.gpkg"))
    tile = next(iter(grid.tiles()))
    noise = np.random.default_rng(0).integers(100, 4000, (1, 3, SIDE, SIDE)).astype(np.int16)
    found.write("imagery/2018", tile, {"reflectance": noise})
    # The strip of 100 m lies within 60 m of a border all over: a class that nothing is learned of.
    shapes = [square(0, 0, 600, 1280), square(600, 0, 700, 1280), square(700, 0, 1280, 1280)]
    source = write(tmp_path / "clc.gpkg", shapes, {"Code_18": ["311", "511", "211"]})
    LabelWork(found.path, tile.id, "labels/clc", source, None, CORINE)()
    return found


def weights(store: Store, target: Path, **options) -> dict[str, np.ndarray]:
    """Of a net that a job's training task made."""
    chosen = SegmenterOptions(**{**TINY, **options})
    beside = target.parent
    work = TrainWork(
        *(target, beside / "checkpoint", beside / "log"),
        *(store.path, "imagery/2018", "labels/clc", CORINE, chosen, HeldOut(64, 0.25, 0), None),
    )
    work()
    return load_file(target / "model.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and (a[k] == b[k]).all() for k in a)


def test_labels_within_the_ignored_zone_do_not_reach_the_weights(store, tmp_path):
    tile = next(iter(store.grid.tiles()))
    stored = store.dataset("labels/clc", dask=False)
    codes, near = stored["level3"].values, stored["border_m"].values < NEAR_M
    assert 0.1 < near.mean() < 0.5
    assert near[codes == 511].all()
    first, trusting = weights(store, tmp_path / "a", border_m=NEAR_M), weights(store, tmp_path / "b")
    for name, turned in (
        ("another class", np.where(codes == 311, 211, 311)),
        ("a class that is nowhere else", np.full_like(codes, 523)),
        ("nodata", np.zeros_like(codes)),
    ):
        store.write("labels/clc", tile, {"level3": np.where(near, turned, codes).astype(codes.dtype)})
        assert same(first, weights(store, tmp_path / name, border_m=NEAR_M)), name
    # Without a zone the same labels do count, so what is tested above could have failed.
    assert not same(trusting, weights(store, tmp_path / "c"))
