"""Published weights: found by name, never downloaded by a run, renamed by rule, fitted by band, and never trusted."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from geoflow import nets, weightsources
from geoflow.cli import app
from geoflow.errors import ModelError
from geoflow.jobs.learnflow import trained_with
from geoflow.learning.options import ClassifierOptions
from geoflow.learning.train import fit_classifier
from geoflow.legends import legend
from geoflow.weightsources import SOURCES, WeightSource, fetch_weights, find_weights

BANDS = ("B02", "B08", "B04")


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of the machine's user play no part."""
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GEOFLOW_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path


def published(bands: int, prefix: str = "", encoder: str = "resnet18") -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """An encoder, and its weights under the names that publishers give them, with a head."""
    net = nets.build_classifier(encoder, bands, 2).encoder
    assert isinstance(net, nn.Module)
    state = {prefix + key: value.clone() for key, value in net.state_dict().items()}
    return net, {**state, f"{prefix}fc.weight": torch.zeros(10, 512), f"{prefix}fc.bias": torch.zeros(10)}


def start(wanted: str, bands: tuple[str, ...] = BANDS, pickled: bool = False) -> tuple[nn.Module, dict[str, object]]:
    net = nets.build_classifier("resnet18", len(bands), 2)
    return net, nets.start_encoder(wanted, net, "resnet18", bands, ("B04", "B03", "B02"), pickled)


@pytest.mark.parametrize("prefix", ["", "model.vision_encoder.", "encoder.", "module.encoder_q."])
def test_names_of_any_publisher_are_understood(prefix: str, empty_caches: Path) -> None:
    given, state = published(3, prefix)
    file = empty_caches / "some.safetensors"
    save_file(state, file)
    net, record = start(str(file))
    assert record["share"] == 1.0
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (record["name"], record["bands"]) == ("some.safetensors", ["B04", "B03", "B02"])
    own, filters = net.encoder.conv1.weight, given.conv1.weight  # type: ignore[union-attr]
    torch.testing.assert_close(own[:, 0], filters[:, 2])
    torch.testing.assert_close(own[:, 2], filters[:, 0])
    torch.testing.assert_close(own[:, 1], filters.mean(dim=1))
    key = "layer2.0.conv1.weight"
    assert torch.equal(net.encoder.state_dict()[key], state[prefix + key])  # type: ignore[union-attr]


def test_encoders_of_timm_start_from_files_of_timm(empty_caches: Path) -> None:
    net = nets.build_classifier("tu-resnet18", 3, 2)
    state = {k.removeprefix("model."): v.clone() + 1 for k, v in net.encoder.state_dict().items()}  # type: ignore[union-attr]
    assert "conv1.weight" in state
    save_file(state, empty_caches / "timm.safetensors")
    file = str(empty_caches / "timm.safetensors")
    record = nets.start_encoder(file, net, "tu-resnet18", ("B04", "B03", "B02"), ("B04", "B03", "B02"))
    assert record["share"] == 1.0
    assert torch.equal(net.encoder.state_dict()["model.conv1.weight"], state["conv1.weight"])  # type: ignore[union-attr]


def test_thirteen_bands_of_level_1c_become_those_of_a_job(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, state = published(13)
    source = SOURCES["ssl4eo-resnet18"]
    file = empty_caches / "weights" / source.url.rpartition("/")[2]
    torch.save(state, file)
    with pytest.raises(ModelError, match="sha256 begins with"):
        start("ssl4eo-resnet18", pickled=True)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    known = WeightSource(source.url, source.encoder, source.bands, source.licence, sha256[:8])
    monkeypatch.setitem(weightsources.SOURCES, "ssl4eo-resnet18", known)  # type: ignore[arg-type]
    net, record = start("ssl4eo-resnet18", pickled=True)
    own, filters = net.encoder.conv1.weight, given.conv1.weight  # type: ignore[union-attr]
    for at, band in enumerate(BANDS):
        torch.testing.assert_close(own[:, at], filters[:, source.bands.index(band)])
    assert (record["name"], record["sha256"]) == ("ssl4eo-resnet18", sha256)
    with pytest.raises(ModelError, match=r"is a pickle of torch.*weights_pickle: true"):
        start("ssl4eo-resnet18")


@pytest.mark.parametrize("name", list(SOURCES))
def test_what_is_not_here_is_named_with_its_place_and_never_fetched(
    name: str, empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise AssertionError("a run reached for the network")

    monkeypatch.setattr(weightsources.urllib.request, "build_opener", offline)
    source = SOURCES[name]
    assert source.url.startswith("https://")
    assert set(source.bands) <= {f"B{n:02}" for n in range(1, 13)} | {"B8A"}
    with pytest.raises(ModelError, match="never downloads any") as raised:
        find_weights(name, source.encoder, True)
    file = weightsources.weights_folder() / weightsources.file_name(name)
    assert source.url in str(raised.value)
    assert str(file) in str(raised.value)
    file.touch()
    assert find_weights(name, source.encoder, True) == file
    with pytest.raises(ModelError, match="not 'resnet152'"):
        find_weights(name, "resnet152", True)


def test_caches_of_other_programs_serve(empty_caches: Path) -> None:
    cache = empty_caches / "cache"
    for name, place in (
        ("imagenet-resnet50", "torch/hub/checkpoints/resnet50-0676ba61.pth"),
        ("timm-resnet50", "huggingface/hub/models--timm--resnet50.tv_in1k/snapshots/abc/model.safetensors"),
    ):
        (cache / place).parent.mkdir(parents=True)
        (cache / place).touch()
        assert find_weights(name, "resnet50", True) == cache / place
    assert find_weights("timm-resnet50", "tu-resnet50") == cache / place


def test_a_download_is_checked_before_it_counts(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        def open(self, url: str, timeout: float) -> object:
            assert url == SOURCES["imagenet-resnet18"].url
            return (empty_caches / "sent").open("rb")

    monkeypatch.setattr(weightsources.urllib.request, "build_opener", lambda *_: Answer())
    (empty_caches / "sent").write_bytes(b"something else")
    with pytest.raises(ModelError, match="not the file of 'imagenet-resnet18'"):
        fetch_weights("imagenet-resnet18")
    assert list((empty_caches / "weights").iterdir()) == []
    (empty_caches / "sent").unlink()
    with pytest.raises(ModelError, match="bring the file there by hand"):
        fetch_weights("imagenet-resnet18")
    with pytest.raises(ModelError, match="there are imagenet-resnet18"):
        fetch_weights("imagenet")
    request = weightsources.urllib.request.Request("https://example.org")
    with pytest.raises(OSError, match="not https"):
        weightsources._OnlyHttps().redirect_request(request, None, 302, "", {}, "http://example.org/w")
    shown = CliRunner().invoke(app, ["weights", "list"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in ("reben-resnet50", "ssl4eo-resnet50"))


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("name", ["bomb.pth", "bomb.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_runs_nothing(name: str, zipped: bool, empty_caches: Path) -> None:
    file, trace = empty_caches / name, empty_caches / "boom"
    hostile = {"conv1.weight": Bomb(trace)}
    if zipped:
        torch.save(hostile, file)
    else:
        file.write_bytes(pickle.dumps(hostile))
    with pytest.raises(ModelError, match=r"holds more than weights|not a readable safetensors file"):
        start(str(file), pickled=True)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"", b"no weights", (2**60).to_bytes(8, "little") + b"{", b"\x08" + b"\0" * 7 + b"{}      "]
)
def test_damaged_files_are_refused(content: bytes, empty_caches: Path) -> None:
    for name in ("some.safetensors", "some.pth"):
        (empty_caches / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"readable|damaged|fit"):
            start(str(empty_caches / name), pickled=True)


def test_a_table_of_something_else_is_refused(empty_caches: Path) -> None:
    file = empty_caches / "some.pth"
    torch.save({"epoch": 3}, file)
    with pytest.raises(ModelError, match="not a table of weights"):
        start(str(file), pickled=True)
    _, state = published(3)
    torch.save({"epoch": 3, "state_dict": state}, file)
    assert start(str(file), pickled=True)[1]["share"] == 1.0
    with pytest.raises(ModelError, match="known names are imagenet-resnet18"):
        find_weights("imagenet", "resnet18")


def test_the_record_says_what_training_started_from(empty_caches: Path) -> None:
    _, state = published(3)
    file = empty_caches / "some.safetensors"
    save_file(state, file)
    cube = np.random.default_rng(0).integers(0, 3000, (6, 3, 32, 32)).astype(np.int16)
    labels = np.random.default_rng(1).random((6, 2)) < 0.6
    options = ClassifierOptions(encoder="resnet18", head_epochs=0, epochs=1, batch=4, weights=str(file))
    model = fit_classifier(cube, labels, (112, 211), legend("corine"), BANDS, options)
    assert model.card.training["weights"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert str(empty_caches) not in str(model.card.training["weights"])


def test_an_exchanged_file_is_another_training(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By path or by name: what is in the file is part of the identity of what starts from it."""
    _, state = published(3)
    file = empty_caches / "some.safetensors"
    found = []
    for number in (0, 1, 0):
        save_file({**state, "conv1.weight": state["conv1.weight"] + number}, file)
        found.append(trained_with(ClassifierOptions(encoder="resnet18", weights=str(file))))
    assert found[0] != found[1]
    assert found[0] == found[2]
    monkeypatch.setattr(weightsources, "find_weights", lambda wanted, encoder, pickled: file)
    assert (
        trained_with(ClassifierOptions(encoder="resnet18", weights="imagenet-resnet18"))["weights"]
        == found[2]["weights"]
    )
    assert trained_with(ClassifierOptions())["weights"] is None
