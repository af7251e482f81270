"""The model folder: what goes in comes out, and anything damaged is refused with a sentence."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from geoflow import nets
from geoflow.errors import ModelError
from geoflow.inputs import InputSpec
from geoflow.legends import legend
from geoflow.modelfile import CARD_FILE, WEIGHTS_FILE, ModelCard, TrainedModel, load_model, read_header, save_model

BANDS = ("B02", "B03")
CODES = (111, 211, 512)
OPTIONS = {"decoder_channels": [16, 16, 8, 8, 8], "context_channels": 8}


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    with nets.reproducible(0):
        net = nets.build_segmenter("context-unet", "resnet18", 4, len(CODES), **OPTIONS)
    inputs = InputSpec(BANDS, ("spring", "summer"), (1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 2.0, 2.0))
    record = {"held_out": {"block_px": 256, "share": 0.2, "seed": 0, "blocks": [[0, 1]]}}
    card = ModelCard("segmenter", "context-unet", "resnet18", OPTIONS, inputs, CODES, legend("corine"), 96, 16, record)
    return TrainedModel(card, net.state_dict())


@pytest.fixture
def folder(trained: TrainedModel, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", trained)
    return tmp_path / "model"


def test_what_goes_in_comes_out(trained: TrainedModel, tmp_path: Path) -> None:
    sha256 = save_model(tmp_path / "deep" / "model", trained)
    loaded = load_model(tmp_path / "deep" / "model", sha256)
    assert loaded.card == trained.card
    assert loaded.sha256 == sha256
    assert loaded.trained.state.keys() == trained.state.keys()
    for key, value in loaded.trained.state.items():
        assert torch.equal(value, trained.state[key])
    header = read_header(tmp_path / "deep" / "model")
    assert (header.card, header.sha256) == (loaded.card, sha256)
    assert header.parameters == sum(value.numel() for value in trained.state.values())
    x = torch.randn(1, 4, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.trained.build()(x), trained.build()(x))
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["model"]


def test_equal_models_are_equal_bytes(trained: TrainedModel, tmp_path: Path) -> None:
    shas = [save_model(tmp_path / name, trained) for name in ("a", "b")]
    assert shas[0] == shas[1]
    for file in (WEIGHTS_FILE, CARD_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_name_covers_the_card(trained: TrainedModel, tmp_path: Path) -> None:
    wider = TrainedModel(dataclasses.replace(trained.card, window_px=128), trained.state)
    assert save_model(tmp_path / "a", trained) != save_model(tmp_path / "b", wider)


def test_loading_again_reads_nothing_again(folder: Path) -> None:
    assert load_model(folder) is load_model(str(folder))


def test_a_new_model_replaces_the_old_one(folder: Path, trained: TrainedModel) -> None:
    first = load_model(folder)
    save_model(folder, TrainedModel(dataclasses.replace(trained.card, halo_px=0), trained.state))
    assert load_model(folder).card.halo_px == 0
    assert load_model(folder).sha256 != first.sha256
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


def test_a_folder_with_other_things_is_left_alone(trained: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelError, match="not a model folder"):
        save_model(tmp_path, trained)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps({k: v for k, v in {**card, **changes}.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"window_px": 512}, "was changed after training"),
        ({"codes": [112, 211, 512]}, "was changed after training"),
        ({"training": None}, "was changed after training"),
        ({"sha256": None}, "lacks the sha256"),
        ({"sha256": "0" * 64}, "damaged or was exchanged"),
    ],
)
def test_a_card_that_was_edited_is_refused(folder: Path, changes: dict[str, object], says: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ModelError, match=says):
        load_model(folder)


def test_another_model_than_the_one_asked_for_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="asked for"):
        load_model(folder, "f" * 64)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CARD_FILE])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_model(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)
    (folder / CARD_FILE).write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(folder)


def test_a_pickle_in_disguise_runs_nothing(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(tmp_path / "boom"), "w")

    (folder / WEIGHTS_FILE).write_bytes(pickle.dumps(Bomb()))
    reseal(folder, keep_weights=True)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(folder)
    assert not (tmp_path / "boom").exists()


def reseal(folder: Path, keep_weights: bool = False, drop: str = "", **changes: object) -> None:
    """Write a folder whose sha256 is right but whose content is not: what a faulty program could write."""
    import hashlib

    card = {k: v for k, v in {**json.loads((folder / CARD_FILE).read_text()), **changes}.items() if k != "sha256"}
    if not keep_weights:
        state = {k: v for k, v in load_file(folder / WEIGHTS_FILE).items() if k != drop}
        text = json.dumps(card, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        save_file(state, folder / WEIGHTS_FILE, metadata={"geoflow": text})
    sha256 = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    (folder / CARD_FILE).write_text(json.dumps({**card, "sha256": sha256}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 99}, "format 99"),
        ({"architecture": "yu-net"}, "yu-net"),
        ({"encoder": "resnet34"}, "do not belong"),
        ({"codes": [111, 211]}, "shape"),
        ({"codes": [111, 211, 999]}, "999"),
        ({"codes": [512, 211, 111]}, "ascending"),
        ({"window_px": 32}, "no core"),
        ({"kind": "oracle"}, "oracle"),
        ({"legend": {"name": "corine"}}, "legend|lacks|damaged"),
    ],
)
def test_a_model_that_cannot_run_here_is_refused(folder: Path, changes: dict[str, object], says: str) -> None:
    reseal(folder, **changes)
    with pytest.raises(ModelError, match=says):
        load_model(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    reseal(folder, drop="encoder.conv1.weight")
    with pytest.raises(ModelError, match=r"encoder\.conv1\.weight"):
        load_model(folder)
