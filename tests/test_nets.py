"""Nets: the registry, and weights that follow their bands from one net to another."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from geoflow import nets
from geoflow.errors import ModelError

RGB = ("B04", "B03", "B02")


@pytest.mark.parametrize("architecture", ["unet", "context-unet"])
def test_a_segmenter_answers_for_every_pixel(architecture: str) -> None:
    net = nets.build_segmenter(architecture, "resnet18", 4, 7, decoder_channels=[32, 16, 16, 16, 16]).eval()
    with torch.inference_mode():
        assert net(torch.zeros(1, 4, 64, 96)).shape == (1, 7, 64, 96)


def test_a_classifier_answers_for_a_patch() -> None:
    net = nets.build_classifier("resnet18", 4, 7).eval()
    with torch.inference_mode():
        assert net(torch.zeros(2, 4, 120, 120)).shape == (2, 7)


def test_timm_encoders_work_by_name() -> None:
    net = nets.build_classifier("tu-resnet18", 4, 3).eval()
    with torch.inference_mode():
        assert net(torch.zeros(1, 4, 64, 64)).shape == (1, 3)


def test_unknown_names_are_errors_that_say_what_is_known() -> None:
    with pytest.raises(ModelError, match="context-unet"):
        nets.build_segmenter("yu-net", "resnet18", 3, 2)
    with pytest.raises(ModelError, match="resnet51"):
        nets.build_classifier("resnet51", 3, 2)
    with pytest.raises(ModelError, match="wings"):
        nets.build_segmenter("unet", "resnet18", 3, 2, wings=2)
    with pytest.raises(ModelError, match="segmenter"):
        nets.build_net("segmenter", "classifier", "resnet18", 3, 2)


def test_the_classifiers_encoder_moves_into_the_unet() -> None:
    classifier = nets.build_classifier("resnet18", 3, 5)
    segmenter = nets.build_segmenter("context-unet", "resnet18", 6, 4)
    assert nets.transfer_encoder(classifier.state_dict(), RGB, segmenter, RGB * 2) == 1.0
    source, moved = classifier.encoder.eval(), segmenter.encoder.eval()
    one_date = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = source(one_date), moved(one_date.repeat(1, 2, 1, 1))
    # A scene that does not change between the periods looks the same to both encoders.
    for a, b in zip(expected[1:], found[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_filters_follow_band_names() -> None:
    classifier = nets.build_classifier("resnet18", 3, 5)
    target = nets.build_classifier("resnet18", 4, 5)
    nets.transfer_encoder(classifier.state_dict(), RGB, target, ("B02", "B8A", "B04", "B03"))
    given, moved = classifier.encoder.conv1.weight, target.encoder.conv1.weight
    torch.testing.assert_close(moved[:, 0], given[:, 2])
    torch.testing.assert_close(moved[:, 2], given[:, 0])
    torch.testing.assert_close(moved[:, 3], given[:, 1])
    torch.testing.assert_close(moved[:, 1], given.mean(dim=1))


def test_weights_of_another_encoder_are_refused() -> None:
    other = nets.build_classifier("resnet34", 3, 5)
    target = nets.build_classifier("resnet50", 3, 5)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(ModelError, match="of the encoder's weights fit"):
        nets.transfer_encoder(other.state_dict(), RGB, target, RGB)
    for key, value in target.state_dict().items():
        torch.testing.assert_close(value, before[key])


def test_a_wrong_band_count_is_refused() -> None:
    source = nets.build_classifier("resnet18", 12, 5)
    with pytest.raises(ModelError, match="conv1"):
        # 121 of resnet18's 122 tensors fit; the one that does not is the only one that knows the bands
        nets.transfer_encoder(source.state_dict(), RGB, nets.build_classifier("resnet18", 3, 5), RGB)


def test_local_weights(tmp_path: Path) -> None:
    source = nets.build_classifier("resnet18", 3, 5)
    file = tmp_path / "resnet18.safetensors"
    save_file({k: v.clone() for k, v in source.encoder.state_dict().items()}, file)  # no "encoder." prefix
    target = nets.build_classifier("resnet18", 3, 2)
    assert nets.load_encoder_file(file, target, RGB, RGB) == 1.0
    torch.testing.assert_close(target.encoder.conv1.weight, source.encoder.conv1.weight)
    file.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="readable"):
        nets.load_encoder_file(file, target, RGB, RGB)
    with pytest.raises(ModelError, match="never downloads"):
        nets.load_encoder_file(tmp_path / "absent.safetensors", target, RGB, RGB)


def test_reproducible_leaves_the_callers_state_alone() -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    with nets.reproducible(1):
        first = torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    with nets.reproducible(1):
        torch.testing.assert_close(torch.rand(3), first)
