"""Ensembles and flips: the mean of what several nets or several views say, saved and mapped like any model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from geoflow import nets
from geoflow.cli import app
from geoflow.ensembles import ensemble
from geoflow.errors import ModelError
from geoflow.inputs import NODATA, InputSpec
from geoflow.legends import legend
from geoflow.mapping.engines import candidates, choose_engine, load_engine
from geoflow.mapping.netpool import net_pool
from geoflow.mapping.predict import MapOptions, predict
from geoflow.modelfile import LoadedModel, ModelCard, TrainedModel, load_model, save_model

CODES = (112, 211, 512)
INPUTS = InputSpec(("B03", "B04"), ("summer",), (1000.5, 900.5), (500.0, 400.0))
UNET = {"decoder_channels": [16, 16, 8, 8, 8]}


def made(folder: Path, seed: int, architecture: str = "unet", **changes: object) -> LoadedModel:
    options = UNET if architecture == "unet" else {}
    with nets.reproducible(seed):
        net = nets.build_segmenter(architecture, "resnet18", 2, 3, **options)
    record = {"held_out": {"block_px": 256, "share": 0.2, "seed": 0, "blocks": [[0, 1]]}}
    card = ModelCard("segmenter", architecture, "resnet18", options, INPUTS, CODES, legend("corine"), 64, 16, record)
    save_model(folder, TrainedModel(dataclasses.replace(card, **changes), net.state_dict()))  # type: ignore[arg-type]
    return load_model(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    """Two models of other architectures, whose inputs are of other scales."""
    folder = tmp_path_factory.mktemp("pair")
    other = InputSpec(INPUTS.bands, INPUTS.periods, (700.5, 1100.5), (650.0, 300.0))
    return made(folder / "a", 0), made(folder / "b", 1, "fpn", inputs=other)


def window(size: int = 64) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 3000, (1, 2, size, size)).astype(np.int16)
    values[..., 5:9, 7:30] = NODATA
    return values


def probabilities(model: LoadedModel, cube: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return model.trained.build()(torch.from_numpy(model.card.inputs.encode(cube)[0])[None]).softmax(1)


def test_the_joined_model_says_the_mean_of_what_its_members_say(
    pair: tuple[LoadedModel, LoadedModel], tmp_path: Path
) -> None:
    sha256 = save_model(tmp_path / "both", ensemble(pair))
    joined = load_model(tmp_path / "both", sha256)
    expected = (probabilities(pair[0], window()) + probabilities(pair[1], window())) / 2
    torch.testing.assert_close(probabilities(joined, window()), expected, rtol=1e-3, atol=1e-5)
    assert (expected - probabilities(pair[0], window())).abs().max() > 0.01
    assert [m["sha256"] for m in joined.card.training["members"]] == [m.sha256 for m in pair]
    assert joined.card.training["held_out"] == pair[0].card.training["held_out"]
    command = ["ensemble", *(str(m.path) for m in pair), "--to", str(tmp_path / "again")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert sha256[:12] in done.output
    assert load_model(tmp_path / "again").sha256 == sha256
    cube = xr.DataArray(window(96), {"period": ["summer"], "band": ["B03", "B04"]}, ("period", "band", "y", "x"))
    mapped = predict(cube, joined, MapOptions(engine="torch-fp32"))["level3"].values
    assert (mapped[window(96)[0, 0] == NODATA] == 0).all()
    assert set(np.unique(mapped)) <= {0, *CODES}


@pytest.mark.parametrize("flips", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_joined_model_runs_with_every_engine(
    flips: bool, pair: tuple[LoadedModel, LoadedModel], tmp_path: Path
) -> None:
    save_model(tmp_path / "both", ensemble(pair, flips))
    joined = load_model(tmp_path / "both")
    x, _ = joined.card.inputs.encode(window())
    exact = net_pool(False).submit(load_engine(joined, "torch-fp32").logits, x).result()
    assert np.exp(exact).sum(axis=-1) == pytest.approx(1, abs=1e-4)
    for name, tolerance in (("torch-bf16", 0.05), ("openvino-fp32", 1e-3)):
        found = net_pool(False).submit(load_engine(joined, name).logits, x).result()
        assert np.abs(found - exact).max() < tolerance * np.abs(exact).max(), name


def test_models_that_do_not_go_together_are_refused(pair: tuple[LoadedModel, LoadedModel], tmp_path: Path) -> None:
    a = pair[0]
    bands = dataclasses.replace(INPUTS, bands=("B03", "B08"))
    changes = [
        ({"inputs": bands}, r"bands is .*B08"),
        ({"codes": (112, 211, 523)}, "codes is .*523"),
        ({"window_px": 96}, "window_px is 96, not 64"),
        ({"halo_px": 8}, "halo_px is 8, not 16"),
    ]
    for at, (change, says) in enumerate(changes):
        with pytest.raises(ModelError, match=says):
            ensemble([a, made(tmp_path / str(at), 0, **change)])
    with pytest.raises(ModelError, match="at least two"):
        ensemble([a])
    save_model(tmp_path / "both", ensemble(pair))
    with pytest.raises(ModelError, match="is an ensemble; join its members"):
        ensemble([a, load_model(tmp_path / "both")])
    with nets.reproducible(0):
        net = nets.build_classifier("resnet18", 2, 3)
    save_model(tmp_path / "patches", TrainedModel(
        dataclasses.replace(a.card, kind="classifier", architecture="classifier", options={}), net.state_dict()
    ))  # fmt: skip
    with pytest.raises(ModelError, match="is a classifier"):
        ensemble([a, tmp_path / "patches"])
    for options in ({"members": []}, {"members": [{"architecture": "ensemble", "encoder": "", "options": {}}]}, {}):
        with pytest.raises(ModelError, match=r"at least one member|does not take"):
            nets.build_segmenter("ensemble", "none", 2, 3, **options)


def test_a_map_with_flips_follows_the_country_when_it_is_turned(pair: tuple[LoadedModel, LoadedModel]) -> None:
    x, _ = INPUTS.encode(window())

    def said(name: str, x: np.ndarray) -> np.ndarray:
        return net_pool(False).submit(load_engine(pair[0], name).logits, np.ascontiguousarray(x)).result().copy()

    def turned(values: np.ndarray) -> np.ndarray:
        return np.rot90(values, 1, axes=(0, 1))[:, ::-1]

    seen = turned(x.transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_allclose(turned(said("torch-fp32+flips", x)), said("torch-fp32+flips", seen), atol=1e-4)
    assert np.abs(turned(said("torch-fp32", x)) - said("torch-fp32", seen)).max() > 1e-3


def test_flips_are_part_of_the_engine_and_so_of_the_map(pair: tuple[LoadedModel, LoadedModel]) -> None:
    assert candidates("torch+flips")[-1] == "torch-fp32+flips"
    choice = choose_engine(pair[0], [window()], "torch-fp32+flips")
    assert (choice.engine, choice.agreement) == ("torch-fp32+flips", {"torch-fp32+flips": 1.0})
    assert MapOptions("torch-fp32", flips=True).runs == MapOptions("torch-fp32+flips").runs == "torch-fp32+flips"
    cube = xr.DataArray(window(96), {"period": ["summer"], "band": ["B03", "B04"]}, ("period", "band", "y", "x"))
    plain, flipped = (predict(cube, pair[0], MapOptions("torch-fp32", flips=f))["margin"].values for f in (False, True))
    assert (plain != flipped).any()
    with pytest.raises(ModelError, match="accepted are"):
        MapOptions("torch-fp32+spins")
