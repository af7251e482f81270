"""Losses: each is its formula, level by level, whatever the labels lack."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from geoflow.errors import ModelError
from geoflow.learning.losses import HierarchyLoss, MultiLabelLoss, class_weights
from geoflow.learning.options import ClassifierOptions, LossForm, SegmenterOptions
from geoflow.learning.samples import IGNORE
from geoflow.legends import legend

CORINE = legend("corine")
CODES = (112, 211, 311, 312, 512)
EVEN = np.ones(5, np.float32)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits, target = 2 * torch.randn(2, 5, 3, 4), torch.randint(0, 5, (2, 3, 4))
    target[0, 0, :2] = IGNORE
    return logits, target


def groups(p: NDArray[Any], level: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for code, value in zip(CODES, p, strict=True):
        group = CORINE.ancestor(code, level)
        found[group] = found.get(group, 0.0) + float(value)
    return found


def naive(penalty: Callable[[float, float], float]) -> float:
    """Mean over labelled pixels and levels of a penalty of the label's group and the likeliest group."""
    logits, target = batch()
    p = logits.softmax(1).permute(0, 2, 3, 1).numpy()
    values = []
    for at in np.ndindex(*target.shape):
        if target[at] == IGNORE:
            continue
        for level in CORINE.levels:
            of = groups(p[at], level)
            values.append(penalty(of[CORINE.ancestor(CODES[int(target[at])], level)], max(of.values())))
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("form", "penalty"),
    [
        (LossForm("cross-entropy"), lambda p, best: -np.log(p)),
        (LossForm("focal", focal_gamma=1.5), lambda p, best: -((1 - p) ** 1.5) * np.log(p)),
        (LossForm("bootstrapped", bootstrap=0.7), lambda p, best: -0.7 * np.log(p) - 0.3 * np.log(best)),
        (LossForm(), lambda p, best: (1 - p**0.4) / 0.4),
    ],
    ids=lambda value: getattr(value, "loss", ""),
)
def test_each_loss_is_its_formula_on_every_level(form: LossForm, penalty: Callable[[float, float], float]) -> None:
    found = HierarchyLoss(CORINE, CODES, EVEN, None, 0.4, form)(*batch())
    assert float(found) == pytest.approx(naive(penalty), rel=1e-5)


@pytest.mark.parametrize("kind", ["dice", "jaccard"])
def test_the_overlap_term_is_its_formula_on_every_level(kind: str) -> None:
    logits, target = batch()
    target[target == 3] = IGNORE  # broad-leaved forest is left alone in its group: other levels, other overlaps
    p = logits.softmax(1).permute(0, 2, 3, 1).numpy()
    seen = [at for at in np.ndindex(*target.shape) if target[at] != IGNORE]
    expected = []
    for level in CORINE.levels:
        said = [groups(p[at], level) for at in seen]
        label = [CORINE.ancestor(CODES[int(target[at])], level) for at in seen]
        scores = []
        for group in set(label):
            both = sum(of[group] for of, true in zip(said, label, strict=True) if true == group)
            area, size = sum(of[group] for of in said), label.count(group)
            scores.append(2 * both / (area + size) if kind == "dice" else both / (area + size - both))
        expected.append(1 - np.mean(scores))
    plain = HierarchyLoss(CORINE, CODES, EVEN, None, 0.0)
    more = HierarchyLoss(CORINE, CODES, EVEN, None, 0.0, LossForm(**{kind: 2.0}))
    assert float(more(logits, target) - plain(logits, target)) == pytest.approx(2 * np.mean(expected), rel=1e-4)
    torch.testing.assert_close(more.terms(logits, target)[1], plain.terms(logits, target)[1])


FORMS = [
    LossForm(),
    LossForm("cross-entropy"),
    LossForm("focal"),
    LossForm("bootstrapped"),
    LossForm(dice=1.0, jaccard=1.0),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.loss)
def test_nothing_unlabelled_teaches_and_nothing_hopeless_breaks(form: LossForm) -> None:
    loss = HierarchyLoss(CORINE, CODES, EVEN, None, (0.8, 0.2), form)
    logits, target = batch()
    logits[0, :, 1, 1] = torch.tensor([300.0, 0, 0, 0, 0])  # sure beyond float32, and wrong
    target[0, 1, 1] = 4
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    assert torch.isfinite(gradient).all()
    unlabelled = (target == IGNORE)[:, None].expand_as(gradient)
    assert (gradient[unlabelled] == 0).all()
    assert (gradient[~unlabelled] != 0).any()
    (nothing,) = torch.autograd.grad(loss(logits, torch.full_like(target, IGNORE)), logits)
    assert (nothing == 0).all()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.loss)
def test_every_loss_is_least_where_the_net_is_right(form: LossForm) -> None:
    loss = HierarchyLoss(CORINE, CODES, EVEN, None, (0.8, 0.2), form)
    _, target = batch()
    right = 20 * functional.one_hot(target.clamp_min(0), 5).permute(0, 3, 1, 2).float()
    assert float(loss(right, target)) < 1e-4
    assert float(loss(right.roll(1, dims=1), target)) > 0.5


def test_effective_numbers_follow_their_formula() -> None:
    counts = np.array([10**6, 10**4, 200], np.int64)
    effective = (1 - 0.9999**counts) / (1 - 0.9999)
    weights = class_weights(counts, 1e9, "effective-number", 0.9999)
    np.testing.assert_allclose(weights / weights[0], effective[0] / effective, rtol=1e-5)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert class_weights(counts, 10, "effective-number", 0.9999)[2] / class_weights(
        counts, 10, "effective-number", 0.9999
    )[1] == pytest.approx(10)
    assert class_weights(counts, 9.0, "none").tolist() == [1, 1, 1]


def test_patch_losses_are_their_formulas() -> None:
    torch.manual_seed(1)
    logits, target = torch.randn(6, 4), (torch.rand(6, 4) < 0.4).float()
    weights = torch.tensor([1.0, 2.0, 3.0, 5.0])
    p, y, w = (v.numpy().astype(float) for v in (torch.sigmoid(logits), target, weights.expand(6, 4)))
    shifted = np.maximum(p - 0.05, 0)
    expected = {
        "bce": -w * y * np.log(p) - (1 - y) * np.log(1 - p),
        "focal": -w * y * (1 - p) ** 2 * np.log(p) - (1 - y) * p**2 * np.log(1 - p),
        "asymmetric": -y * np.log(p) - (1 - y) * shifted**4 * np.log(1 - shifted),
    }
    for form, values in expected.items():
        assert float(MultiLabelLoss(weights, form)(logits, target)) == pytest.approx(values.mean(), rel=1e-5)
    exact = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, target)
    assert torch.equal(MultiLabelLoss(weights)(logits, target), exact)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": "hinge"}, "'hinge': accepted are generalised, cross-entropy, focal, bootstrapped"),
        ({"focal_gamma": -1.0}, "at least 0"),
        ({"bootstrap": 1.5}, "1.5"),
        ({"class_weights": "inverse"}, "accepted are none"),
        ({"max_class_weight": 0.5}, "at least 1"),
        ({"class_weights": "effective-number"}, "does nothing with max_class_weight 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        dataclasses.replace(SegmenterOptions(), **changes)
    with pytest.raises(ModelError, match="accepted are bce"):
        ClassifierOptions(loss="hinge")  # type: ignore[arg-type]
