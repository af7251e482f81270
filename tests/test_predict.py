"""Prediction: a map that does not depend on how it was computed, and levels that nest."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dask.core import flatten
from hypothesis import given, settings
from hypothesis import strategies as st

from geoflow import nets
from geoflow.errors import GridError, ModelError
from geoflow.inputs import NODATA, InputSpec
from geoflow.legends import legend
from geoflow.mapping.decode import Ladder, decode
from geoflow.mapping.predict import predict, predict_region
from geoflow.modelfile import LoadedModel, ModelCard, TrainedModel, load_model, save_model

CODES = (111, 112, 211, 231, 311, 312, 512)
BANDS, PERIODS = ("B02", "B08"), ("spring", "summer")
SHAPE = (150, 171)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """An untrained net, its weights spread so that the map is varied; window 64, halo 16, core 32."""
    options = {"decoder_channels": [16, 16, 8, 8, 8]}
    with nets.reproducible(3):
        net = nets.build_segmenter("unet", "resnet18", 4, len(CODES), **options)
    net.segmentation_head[0].weight.data *= 8
    inputs = InputSpec(BANDS, PERIODS, (1000.0,) * 4, (500.0,) * 4)
    card = ModelCard("segmenter", "unet", "resnet18", options, inputs, CODES, legend("corine"), 64, 16)
    folder = tmp_path_factory.mktemp("predict") / "model"
    save_model(folder, TrainedModel(card, net.state_dict()))
    return load_model(folder)


@pytest.fixture(scope="module")
def cube() -> xr.DataArray:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3000, (2, 2, *SHAPE)).astype(np.int16)
    values[:, :, :70, :80] = NODATA
    values[1, :, 100:110] = NODATA
    coords = {
        "period": list(PERIODS),
        "band": list(BANDS),
        "y": 5e6 - 10.0 * np.arange(SHAPE[0]),
        "x": 4e5 + 10.0 * np.arange(SHAPE[1]),
        "spatial_ref": xr.Variable((), 0, {"crs_wkt": "EPSG:32635"}),
    }
    return xr.DataArray(values, coords, ("period", "band", "y", "x")).chunk(y=64, x=64)


@pytest.fixture(scope="module")
def whole(cube: xr.DataArray, model: LoadedModel) -> xr.Dataset:
    return predict(cube, model).compute()


def test_the_map_follows_the_contract(cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset) -> None:
    lazy = predict(cube, model)
    assert {name: (v.dims, str(v.dtype)) for name, v in lazy.items()} == {
        "level1": (("y", "x"), "uint8"),
        "level2": (("y", "x"), "uint8"),
        "level3": (("y", "x"), "uint16"),
        "confidence": (("y", "x"), "uint8"),
    }
    assert all(v.chunks is not None for v in lazy.values())
    assert set(lazy.coords) == {"y", "x", "spatial_ref"}
    assert lazy["spatial_ref"].attrs == cube["spatial_ref"].attrs
    np.testing.assert_array_equal(lazy["x"], cube["x"])
    assert set(np.unique(whole["level3"])) <= {0, *CODES}
    assert len(np.unique(whole["level3"])) >= 4, "the net's map is too plain to tell anything"


def test_nodata_in_nodata_out(cube: xr.DataArray, whole: xr.Dataset) -> None:
    empty = (cube == NODATA).all(("period", "band")).values
    assert empty.any()
    for name in ("level1", "level2", "level3"):
        np.testing.assert_array_equal(whole[name].values == 0, empty)
    np.testing.assert_array_equal(whole["confidence"].values == 255, empty)
    assert whole["confidence"].values[~empty].max() <= 100


@pytest.mark.parametrize("chunks", [(32, 32), (50, 171), (150, 171), (96, 33)])
def test_chunks_do_not_alter_the_map(
    cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset, chunks: tuple[int, int]
) -> None:
    xr.testing.assert_identical(predict(cube.chunk(y=chunks[0], x=chunks[1]), model).compute(), whole)


def test_a_cube_in_memory_gives_the_same_map(cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset) -> None:
    xr.testing.assert_identical(predict(cube.compute(), model.path).compute(), whole)


@pytest.mark.parametrize("threads", [1, 4])
def test_workers_do_not_alter_the_map(cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset, threads: int) -> None:
    xr.testing.assert_identical(predict(cube, model).compute(scheduler="threads", num_workers=threads), whole)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_part_equals_the_whole(
    cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset, data: st.DataObject
) -> None:
    y, x = (
        slice(start, data.draw(st.integers(start + 1, size)))
        for size in SHAPE
        for start in [data.draw(st.integers(0, size - 1))]
    )
    part = predict_region(cube, model, y, x).compute()
    xr.testing.assert_identical(part, whole.isel(y=y, x=x))


def test_a_part_runs_only_its_own_windows(cube: xr.DataArray, model: LoadedModel) -> None:
    data = predict_region(cube, model, slice(64, 96), slice(64, 96))["level3"].data
    culled = data.dask.cull(set(flatten(data.__dask_keys__())))
    assert len([key for key in culled if str(key[0]).startswith("_predict_block")]) == 1


def test_the_graph_carries_no_weights(cube: xr.DataArray, model: LoadedModel) -> None:
    import cloudpickle

    lazy = predict(cube.chunk(), model)["level3"].data
    weights = (model.path / "model.safetensors").stat().st_size
    assert len(cloudpickle.dumps(lazy.dask)) < min(weights, cube.nbytes * 3)


def test_bands_and_periods_are_picked_by_name(cube: xr.DataArray, model: LoadedModel, whole: xr.Dataset) -> None:
    extra = cube.isel(band=[0]).assign_coords(band=["B12"])
    shuffled = xr.concat([extra, cube.isel(band=[1, 0])], "band").isel(period=[1, 0])
    xr.testing.assert_identical(predict(shuffled, model).compute(), whole)


def test_what_the_model_lacks_is_named(cube: xr.DataArray, model: LoadedModel) -> None:
    with pytest.raises(ModelError, match="B08"):
        predict(cube.isel(band=[0]), model)
    with pytest.raises(ModelError, match="summer"):
        predict(cube.assign_coords(period=["spring", "autumn"]), model)
    with pytest.raises(ModelError, match="float32"):
        predict(cube.astype("float32"), model)
    with pytest.raises(GridError, match="150 pixels"):
        predict_region(cube, model, slice(0, 151), slice(0, 10))


def test_a_classifier_makes_no_map(cube: xr.DataArray, tmp_path: Path) -> None:
    net = nets.build_classifier("resnet18", 4, 2)
    inputs = InputSpec(BANDS, PERIODS, (0.0,) * 4, (1.0,) * 4)
    card = ModelCard("classifier", "classifier", "resnet18", {}, inputs, (111, 211), legend("corine"), 120, 0)
    save_model(tmp_path / "model", TrainedModel(card, net.state_dict()))
    with pytest.raises(ModelError, match="needs a segmenter"):
        predict(cube, tmp_path / "model")


def test_a_legend_of_one_level_gives_one_level(cube: xr.DataArray, tmp_path: Path) -> None:
    flat = legend("bigearthnet-19")
    codes = flat.codes(flat.levels[-1])[:3]
    net = nets.build_segmenter("unet", "resnet18", 4, 3)
    inputs = InputSpec(BANDS, PERIODS, (1000.0,) * 4, (500.0,) * 4)
    card = ModelCard("segmenter", "unet", "resnet18", {}, inputs, codes, flat, 96, 0)
    save_model(tmp_path / "model", TrainedModel(card, net.state_dict()))
    found = predict(cube, tmp_path / "model").compute()
    assert set(found) == {*(f"level{n}" for n in flat.levels), "confidence"}
    assert set(np.unique(found[f"level{flat.levels[-1]}"])) <= {0, *codes}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_levels_nest_and_are_decided_from_the_top(seed: int) -> None:
    corine = legend("corine")
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(len(CODES), 0.5), 30).T.reshape(len(CODES), 5, 6).astype(np.float32)
    observed = rng.random((5, 6)) < 0.9
    levels, confidence = decode(p, observed, Ladder.of(corine, CODES))
    for y, x in np.ndindex(5, 6):
        if not observed[y, x]:
            assert [int(level[y, x]) for level in levels] == [0, 0, 0]
            assert confidence[y, x] == 255
            continue
        within = list(range(len(CODES)))
        for level, plane in zip((1, 2, 3), levels, strict=True):
            sums: dict[int, float] = {}
            for i in within:
                group = corine.ancestor(CODES[i], level)
                sums[group] = sums.get(group, 0.0) + float(p[i, y, x])
            assert plane[y, x] == max(sums, key=lambda g: sums[g])
            within = [i for i in within if corine.ancestor(CODES[i], level) == plane[y, x]]
        assert abs(confidence[y, x] - 100 * p[CODES.index(int(levels[2][y, x])), y, x]) <= 0.5 + 1e-4
