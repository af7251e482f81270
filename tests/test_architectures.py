"""Every architecture of the registry: trained, saved, loaded and mapped with like any other."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from geoflow import nets
from geoflow.errors import ModelError
from geoflow.inputs import InputSpec
from geoflow.learning.options import WELL_KNOWN_ENCODERS, SegmenterOptions
from geoflow.learning.train import fit_segmenter
from geoflow.legends import legend
from geoflow.mapping.engines import load_engine
from geoflow.mapping.netpool import net_pool
from geoflow.mapping.predict import MapOptions, predict
from geoflow.modelfile import ModelCard, TrainedModel, load_model, save_model

CORINE = legend("corine")
CODES = (112, 211, 512)
BANDS, PERIODS = ("B03", "B04", "B08"), ("spring", "summer")
TRAINED = sorted(name for name, a in nets.ARCHITECTURES.items() if a.kind == "segmenter" and a.trained)
OPTIONS: dict[str, dict[str, Any]] = {
    "temporal-unet": {"periods": 2, "decoder_channels": [16, 16, 8, 8, 8]},
    "temporal-cnn": {"periods": 2, "width": 8},
    "unet": {"decoder_channels": [16, 16, 8, 8, 8]},
    "context-unet": {"decoder_channels": [16, 16, 8, 8, 8], "context_channels": 8},
}


def built(architecture: str) -> nn.Module:
    with nets.reproducible(0):
        return nets.build_segmenter(architecture, "resnet18", 6, 3, **OPTIONS.get(architecture, {}))


def model(net: nn.Module, architecture: str, options: Any = None) -> TrainedModel:
    inputs = InputSpec(BANDS, PERIODS, (1000.0,) * 6, (500.0,) * 6)
    own = OPTIONS.get(architecture, {}) if options is None else options
    card = ModelCard("segmenter", architecture, "resnet18", own, inputs, CODES, CORINE, 64, 16)
    return TrainedModel(card, net.state_dict())


def cube(size: int = 96) -> xr.DataArray:
    values = np.random.default_rng(0).integers(0, 3000, (2, 3, size, size)).astype(np.int16)
    return xr.DataArray(values, {"period": list(PERIODS), "band": list(BANDS)}, ("period", "band", "y", "x"))


@pytest.mark.parametrize("architecture", TRAINED)
def test_answers_for_every_pixel_and_learns_with_every_weight(architecture: str) -> None:
    net = built(architecture).train()
    x = torch.randn(2, 6, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = net(x)
    assert logits.shape == (2, 3, 64, 64)
    for parameter in net.parameters():  # some start at zero and hold back what lies before them
        nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    net(x).square().mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    assert any(name.startswith("encoder.") for name, _ in net.named_parameters()) == (architecture != "temporal-cnn")


ENGINES = [(name, "torch-bf16", 0.05) for name in TRAINED]
ENGINES += [("temporal-unet", "openvino-fp32", 1e-3), ("temporal-cnn", "openvino-fp32", 1e-3)]
SLOW = [(name, "openvino-fp32", 1e-3) for name in TRAINED if not name.startswith("temporal")]


@pytest.mark.parametrize(
    ("architecture", "name", "tolerance"), [*ENGINES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_maps_after_a_round_trip_with_every_engine(
    architecture: str, name: str, tolerance: float, tmp_path: Path
) -> None:
    net = built(architecture).eval()
    save_model(tmp_path / "model", model(net, architecture))
    loaded = load_model(tmp_path / "model")
    x, _ = loaded.card.inputs.encode(cube(64).values)
    with torch.inference_mode():
        expected = net(torch.from_numpy(x)[None])[0].permute(1, 2, 0).numpy()
    assert expected.std() > 0
    for engine, within in (("torch-fp32", 1e-4), (name, tolerance)):
        running = load_engine(loaded, engine)
        found, again = (net_pool(False).submit(running.logits, x).result().copy() for _ in range(2))
        assert (found == again).all(), engine
        assert np.abs(found - expected).max() <= within * max(1, np.abs(expected).max()), engine
    mapped = predict(cube(64), tmp_path / "model", MapOptions(engine="torch-fp32"))["level3"].values
    assert mapped.shape == (64, 64)
    assert set(np.unique(mapped)) <= set(CODES)


@pytest.mark.parametrize("architecture", [name for name in TRAINED if nets.ARCHITECTURES[name].encoder])
def test_starts_from_a_classifier(architecture: str) -> None:
    classifier = nets.build_classifier("resnet18", 3, 5)
    net = built(architecture)
    assert nets.transfer_encoder(classifier.state_dict(), BANDS, net, BANDS * 2) == 1.0
    given, moved = classifier.encoder.conv1.weight, net.encoder.conv1.weight  # type: ignore[union-attr]
    one_period = architecture == "temporal-unet"
    torch.testing.assert_close(moved, given if one_period else torch.cat([given, given], dim=1) / 2)


def test_a_net_without_an_encoder_says_so() -> None:
    with pytest.raises(ModelError, match="TemporalCnn has no encoder"):
        nets.transfer_encoder({}, BANDS, built("temporal-cnn"), BANDS * 2)
    nets.check_names("temporal-cnn", "resnet18")
    with pytest.raises(ModelError, match="no encoder that could start"):
        nets.check_names("temporal-cnn", "resnet18", pretrained=True)
    with pytest.raises(ModelError, match="to train"):
        nets.check_names("ensemble", "resnet18")


@pytest.mark.parametrize("encoder", WELL_KNOWN_ENCODERS)
def test_encoders_that_a_job_is_not_asked_about_are_there(encoder: str) -> None:
    nets.check_names(SegmenterOptions.architecture, encoder, pretrained=True)


def test_periods_are_told_apart_by_attention_and_shared_by_the_encoder() -> None:
    net = built("temporal-unet").eval()
    x = torch.randn(1, 6, 64, 64)
    with torch.inference_mode():
        swapped = torch.cat([x[:, 3:], x[:, :3]], dim=1)
        torch.testing.assert_close(net(x), net(swapped))  # even attention is a mean
        net.favour[0] = 30.0  # all to the first period
        once = torch.cat([x[:, :3], torch.randn(1, 3, 64, 64)], dim=1)
        torch.testing.assert_close(net(x), net(once))
    with pytest.raises(ModelError, match="not those of 4 periods"):
        nets.build_segmenter("temporal-unet", "resnet18", 6, 3, periods=4)


def test_the_temporal_cnn_sees_one_pixel_alone() -> None:
    net = built("temporal-cnn").eval()
    x = torch.randn(1, 6, 8, 8)
    other = torch.randn(1, 6, 8, 8)
    other[:, :, 3, 5] = x[:, :, 3, 5]
    with torch.inference_mode():
        torch.testing.assert_close(net(x)[:, :, 3, 5], net(other)[:, :, 3, 5])
        # channels run period by period: a convolution over periods sees each band in its own place
        series = x.reshape(1, 2, 3, 64).transpose(1, 2)
        assert torch.equal(series[0, 1, 0], x[0, 1].flatten())


@pytest.mark.parametrize("architecture", ["temporal-unet", "temporal-cnn"])
def test_is_trained_by_name(architecture: str, tmp_path: Path) -> None:
    few = SegmenterOptions(
        architecture=architecture, encoder="resnet18", decoder_channels=(16, 16, 8, 8, 8), decoder_steps=1, steps=1,
        batch=2, window_px=64, map_window_px=96, map_halo_px=16,
    )  # fmt: skip
    labels = np.repeat(np.repeat(np.array([[112, 211], [211, 512]], np.uint16), 48, 0), 48, 1)
    shas = []
    for name in ("a", "b"):
        fitted = fit_segmenter(cube().values, labels, CORINE, BANDS, PERIODS, few)
        shas.append(save_model(tmp_path / name, fitted))
    assert shas[0] == shas[1]
    assert ("periods" in fitted.card.options) == architecture.startswith("temporal")
    assert fitted.build()(torch.zeros(1, 6, 64, 64)).shape == (1, 3, 64, 64)
    with pytest.raises(ModelError, match="yu-net"):
        fit_segmenter(cube().values, labels, CORINE, BANDS, PERIODS, dataclasses.replace(few, architecture="yu-net"))
