"""A training that is interrupted goes on from its checkpoint, and ends in the same weights to the last bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import BANDS, CODES, CORINE, PERIODS, SMALL, country

from geoflow.errors import LabelError, ModelError
from geoflow.learning.checkpoint import Checkpoints
from geoflow.learning.loop import Setting
from geoflow.learning.train import ClassifierOptions, HeldOut, fit_classifier, fit_segmenter
from geoflow.modelfile import TrainedModel

CUBE, _, LABELS = country((160, 128))
SEGMENTER = dataclasses.replace(
    SMALL,
    architecture="context-unet",
    context_steps=3,
    context_batch=4,
    context_window_px=32,
    decoder_steps=3,
    steps=3,
    batch=2,
    window_px=32,
    average=0.9,
)
CLASSIFIER = ClassifierOptions(encoder="resnet18", head_epochs=1, epochs=1, batch=8)


class Interrupted(Exception):
    """As if the process had been killed here."""


def segmenter(setting: Setting | None = None, **changes: Any) -> TrainedModel:
    options = dataclasses.replace(SEGMENTER, **changes)
    return fit_segmenter(CUBE, LABELS, CORINE, BANDS, PERIODS, options, setting, held_out=HeldOut(64, 0.25, 1))


def classifier(setting: Setting | None = None, **changes: Any) -> TrainedModel:
    rng = np.random.default_rng(0)
    cube, labels = rng.integers(0, 4000, (45, 3, 32, 32)).astype(np.int16), rng.random((45, 5)) > 0.5
    return fit_classifier(cube, labels, CODES, CORINE, BANDS, dataclasses.replace(CLASSIFIER, **changes), setting)


def interrupted(train: Any, folder: Path, at: int, **changes: Any) -> int:
    """Train until the step ``at`` over all stages, with a checkpoint after each; how many steps were told."""
    told: list[dict[str, Any]] = []

    def progress(event: dict[str, Any]) -> None:
        told.append(event)
        if len(told) == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(Setting(checkpoints=Checkpoints(folder, every_s=0), progress=progress), **changes)
    return len(told)


def same(one: TrainedModel, other: TrainedModel) -> bool:
    return one.card == other.card and all(torch.equal(one.state[key], other.state[key]) for key in one.state)


@pytest.mark.parametrize("at", [2, 5, 6, 8])
def test_a_segmenter_goes_on(at: int, tmp_path: Path) -> None:
    whole = segmenter()
    interrupted(segmenter, tmp_path, at)
    told: list[dict[str, Any]] = []
    resumed = segmenter(Setting(checkpoints=Checkpoints(tmp_path), progress=told.append))
    assert len(told) == 9 - (at - 1), "the step that was told of was not saved yet; no other is taken again"
    assert same(whole, resumed)


@pytest.mark.parametrize("changes", [{"lanes": 2}, {"accumulate": 2}, {"keep": "best", "validation_steps": 2}])
def test_whatever_the_recipe(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = segmenter(**changes)
    interrupted(segmenter, tmp_path, 8, **changes)
    assert same(whole, segmenter(Setting(checkpoints=Checkpoints(tmp_path)), **changes))


@pytest.mark.parametrize("changes", [{}, {"lanes": 2, "keep": "best"}])
def test_a_classifier_goes_on(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = classifier(**changes)
    interrupted(classifier, tmp_path, 7, **changes)
    assert same(whole, classifier(Setting(checkpoints=Checkpoints(tmp_path)), **changes))


def test_a_damaged_checkpoint_is_not_trusted(tmp_path: Path) -> None:
    whole = segmenter()
    interrupted(segmenter, tmp_path, 8)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(bytes(content))
    told: list[dict[str, Any]] = []
    resumed = segmenter(Setting(checkpoints=Checkpoints(tmp_path), progress=told.append))
    assert len(told) == 9, "it began anew"
    assert same(whole, resumed)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    interrupted(segmenter, tmp_path, 4)
    with pytest.raises(ModelError, match="another training"):
        segmenter(Setting(checkpoints=Checkpoints(tmp_path)), lr=1e-3)


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, every_s=0)
    for step in (1, 2):
        facts = {"leg": 0, "stage": 0, "step": step, "course": "x"}
        kept.save({"net.a": torch.full((3,), float(step))}, facts)
    assert len(list(tmp_path.iterdir())) == 2
    found = kept.load("x")
    assert found is not None
    assert found[1]["step"] == 2
    assert found[0]["net.a"].tolist() == [2, 2, 2]
    index = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / index["file"]).unlink()
    assert kept.load("x") is None
    kept.clear()
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_no_gain_ends_it_early() -> None:
    told: list[dict[str, Any]] = []
    setting = Setting(progress=told.append)
    trained = classifier(setting, keep="best", patience=1, epochs=12, lr=1e-9, head_lr=1e-9)
    scores = [event["validation"] for event in told if "validation" in event]
    assert trained.card.training["ended_early"]
    assert len(scores) < 13
    assert max(scores[:-1]) >= scores[-1]


def test_the_best_weights_are_kept() -> None:
    """A training that is spoilt at the end: the last weights are worse than the best, and not kept."""
    told: list[dict[str, Any]] = []
    trained = classifier(Setting(progress=told.append), keep="best", epochs=4)
    scores = [event["validation"] for event in told if "validation" in event]
    assert not trained.card.training["ended_early"]
    assert len(scores) == 5


def test_what_is_set_aside_is_not_learned_from() -> None:
    """A class that only occurs in the blocks set aside is not learned; without them there is nothing to choose by."""
    from geoflow.learning.samples import Aside

    aside = Aside.beside(HeldOut(32, 0.25, 1), 1, 0.2)
    chosen = aside.own_mask(LABELS.shape)
    assert chosen.any()
    assert not (chosen & HeldOut(32, 0.25, 1).mask(LABELS.shape)).any()
    marked = np.where(chosen, np.uint16(523), np.where(LABELS == 0, np.uint16(0), LABELS))
    options = dataclasses.replace(SEGMENTER, keep="best", validation_share=0.2, seed=1)
    held_out = HeldOut(32, 0.25, 1)
    with pytest.raises(LabelError, match="set aside"):
        fit_segmenter(CUBE, marked, CORINE, BANDS, PERIODS, options, held_out=held_out)
    learned = fit_segmenter(CUBE, LABELS, CORINE, BANDS, PERIODS, options, held_out=held_out)
    assert set(learned.card.codes) <= set(CODES)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lanes": 3}, "multiple of the 3 lanes"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"clip": 0}, "clip must be above 0"),
        ({"patience": 2}, "keep: best"),
        ({"keep": "first"}, "keep must be last or best"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], told: str) -> None:
    for options in (SEGMENTER, CLASSIFIER):
        with pytest.raises(ModelError, match=told):
            dataclasses.replace(options, **changes)
