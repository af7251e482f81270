"""The model folder: what goes in comes out, and anything damaged is refused with a sentence."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pystac
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from geoflow import nets
from geoflow.cli import app
from geoflow.errors import ModelError
from geoflow.inputs import InputSpec
from geoflow.legends import legend
from geoflow.mapping.predict import predict
from geoflow.modelfile import CARD_FILE, WEIGHTS_FILE, ModelCard, TrainedModel, load_model, read_header, save_model
from geoflow.modelitem import write_model_item

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


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_beside_the_weights_is_not_even_read(folder: Path, tmp_path: Path, zipped: bool) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "boom"), "w")

    for name in ("model.pt", "model.pth", "pytorch_model.bin"):
        if zipped:
            torch.save(Bomb(), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Bomb()))
    load_model(folder)
    (folder / WEIGHTS_FILE).write_bytes((folder / "model.pt").read_bytes())
    reseal(folder, keep_weights=True)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(folder)
    assert not (tmp_path / "boom").exists()


TENSOR = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}'


@pytest.mark.parametrize(
    "content",
    [
        (2**62).to_bytes(8, "little") + b"{}",  # a header of exabytes
        len(TENSOR % (2**60, 2**62)).to_bytes(8, "little") + TENSOR % (2**60, 2**62),  # a tensor of exabytes
        len(TENSOR % (4, 64)).to_bytes(8, "little") + TENSOR % (4, 64) + b"\0" * 64,  # sizes that do not agree
        (2).to_bytes(8, "little") + b"[]",
        b"",
    ],
)
def test_a_file_that_claims_what_it_does_not_hold_is_refused(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS_FILE).write_bytes(content)
    reseal(folder, keep_weights=True)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(folder)


def test_a_card_of_brackets_is_refused(folder: Path) -> None:
    (folder / CARD_FILE).write_text("[" * 200_000)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(folder)


def test_a_model_of_other_bands_or_periods_says_which(folder: Path) -> None:
    values = np.zeros((2, 2, 96, 96), np.int16)
    for periods, bands, says in (
        (("spring", "summer"), ("B02", "B04"), r"bands .*lacks \['B03'\]"),
        (("spring", "autumn"), ("B02", "B03"), r"periods .*lacks \['summer'\]"),
    ):
        cube = xr.DataArray(values, {"period": list(periods), "band": list(bands)}, ("period", "band", "y", "x"))
        with pytest.raises(ModelError, match=says):
            predict(cube, folder)


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
        ({"window_px": float("inf")}, "damaged"),
        ({"options": {"decoder_channels": [-1] * 5}}, "can be built"),
        ({"options": {"decoder_channels": [2**40] * 5}}, "can be built"),
        ({"options": {"decoder_channels": "wide"}}, "can be built|does not take"),
        ({"architecture": "ensemble", "options": {"members": [1]}}, "does not take"),
        ({"architecture": "ensemble", "options": {"members": "all"}}, "does not take"),
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


def test_a_model_is_described_for_catalogs(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    done = CliRunner().invoke(app, ["models", "stac", str(folder)])
    assert done.exit_code == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "item.json"} == before
    item = pystac.Item.from_file(str(folder / "item.json"))
    assert [one.split("/")[-3:-1] for one in item.stac_extensions] == [["eo", "v1.1.0"], ["mlm", "v1.5.2"]]
    found, header = item.properties, read_header(folder)
    for key in ("mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"):
        assert found[key], "the extension asks for it"
    (given,), (output,) = found["mlm:input"], found["mlm:output"]
    assert given["bands"] == ["B02", "B03", "B02", "B03"]
    assert given["input"]["shape"] == [-1, 4, 96, 96]
    assert [s["mean"] for s in given["value_scaling"]] == list(header.card.inputs.mean)
    assert output["result"]["shape"] == [-1, 3, 96, 96]
    assert [c["value"] for c in output["classification:classes"]] == list(CODES)
    weights = item.assets["weights"]
    assert {band["name"] for band in weights.extra_fields["eo:bands"]} == set(given["bands"])
    assert weights.get_absolute_href() == str((folder / WEIGHTS_FILE).resolve())
    assert "mlm:model" in (weights.roles or [])
    assert weights.extra_fields["mlm:artifact_type"] == "safetensors.torch.save_file"
    assert load_model(folder).sha256 == header.sha256 == found["geoflow:sha256"]
    with pytest.raises(ModelError, match="no model at"):
        write_model_item(folder / "nothing")
    with pytest.raises(ModelError, match="cannot write the item"):
        write_model_item(folder, folder / "absent" / "item.json")
