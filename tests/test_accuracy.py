"""Accuracy figures agree with scikit-learn's, and nodata never counts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from geoflow.jobs.work import _matrix
from geoflow.mapping.accuracy import accuracy, areas_ha, change_accuracy, confusion, ignored

CODES = (111, 211, 311, 512)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(4, 300))
def test_figures_agree_with_scikit_learn(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.choice(CODES, (2, size)).astype(np.uint16)
    matrix = confusion(truth, predicted, CODES)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(truth, predicted, labels=CODES))
    figures = accuracy(matrix, CODES)
    assert figures.overall == pytest.approx(metrics.accuracy_score(truth, predicted))
    expected = metrics.precision_recall_fscore_support(truth, predicted, labels=CODES, zero_division=np.nan)
    np.testing.assert_allclose(figures.users, expected[0])
    np.testing.assert_allclose(figures.producers, expected[1])
    iou = metrics.jaccard_score(truth, predicted, labels=CODES, average=None, zero_division=0)
    np.testing.assert_allclose(np.nan_to_num(figures.iou), iou)
    occurring = [c for c in CODES if (truth == c).any()]
    macro = metrics.f1_score(truth, predicted, labels=occurring, average="macro", zero_division=0)
    assert figures.macro_f1 == pytest.approx(macro)


def test_matrices_of_parts_sum_to_the_matrix_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.choice((0, *CODES), (2, 60, 70)).astype(np.uint16)
    parts = sum(confusion(t, p, CODES) for t, p in zip(np.split(truth, 4), np.split(predicted, 4), strict=True))
    np.testing.assert_array_equal(parts, confusion(truth, predicted, CODES))


def test_nodata_is_counted_apart() -> None:
    truth, predicted = np.array([0, 111, 111, 0]), np.array([111, 0, 111, 0])
    assert confusion(truth, predicted, CODES).sum() == 1
    assert ignored(truth, predicted) == {"no_truth": 2, "no_map": 1}


def test_a_code_outside_the_classes_is_an_error() -> None:
    with pytest.raises(ValueError, match="324"):
        confusion(np.array([324]), np.array([111]), CODES)


def test_codes_need_not_be_ascending() -> None:
    matrix = confusion(np.array([311, 111]), np.array([111, 111]), (311, 111))
    assert matrix.tolist() == [[0, 1], [0, 1]]


def test_an_empty_matrix_has_no_figures() -> None:
    figures = accuracy(np.zeros((4, 4), np.int64), CODES).to_dict()
    assert figures["overall"] is None
    assert figures["macro_f1"] is None
    assert figures["classes"]["111"]["iou"] is None


def test_change_accuracy() -> None:
    truth = np.array([2, 2, 2, 1, 1, 0, 2], np.uint8)
    mapped = np.array([2, 2, 1, 2, 1, 2, 0], np.uint8)
    found = change_accuracy(truth, mapped)
    assert found == {
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "true_px": 3,
        "mapped_px": 3,
        "pixels": 5,
    }


def test_areas() -> None:
    codes = np.array([[0, 111, 111], [211, 111, 0]], np.uint16)
    assert areas_ha(codes, 100.0) == {111: 0.03, 211: 0.01}


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from([np.uint8, np.uint16]), share=st.floats(0, 1))
def test_pairs_of_a_tile_are_counted_as_one_by_one(seed: int, dtype: type, share: float) -> None:
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(1, np.iinfo(dtype).max, rng.integers(1, 9)))
    true, mapped = (rng.choice([0, *codes[rng.random(codes.size) < 0.7]], (7, 9)).astype(dtype) for _ in range(2))
    where = rng.random((7, 9)) < share
    pairs = [(int(a), int(b)) for a, b in zip(true[where], mapped[where], strict=True) if a and b]
    assert _matrix(true, mapped, where) == [[a, b, n] for (a, b), n in sorted(Counter(pairs).items())]
