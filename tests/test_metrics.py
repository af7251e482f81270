"""Metrics and calibration: against scikit-learn and torchmetrics, by their own laws, and against the paper's tables."""

import csv
import math
import warnings
from importlib import resources

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm

from geoflow.labels.patchlabels import Label, multi_hot, scheme_codes
from geoflow.learning import calibration as cal
from geoflow.learning import metrics
from geoflow.legends import legend
from geoflow.mapping.accuracy import accuracy, row_shares

PAPER_TABLE_1 = {
    111: 10784, 112: 69872, 121: 12895, 122: 3384, 123: 509, 124: 979, 131: 4618, 132: 959, 133: 1174, 141: 1786,
    142: 5353, 211: 196695, 212: 13589, 213: 3793, 221: 9567, 222: 4754, 223: 12538, 231: 103554, 241: 7022,
    242: 107786, 243: 147095, 244: 30674, 311: 150944, 312: 211703, 313: 217119, 321: 12835, 322: 5890, 323: 11241,
    324: 173506, 331: 1578, 332: 3277, 333: 1563, 334: 328, 411: 6236, 412: 23207, 421: 1562, 422: 424, 423: 1003,
    511: 10572, 512: 83811, 521: 1498, 522: 1086, 523: 81612,
}  # fmt: skip
PAPER_TABLE_7_DIAGONAL = (0.42, 0.77, 0.86, 0.40, 0.83)


@st.composite
def labelled(draw, most=40):
    """Predicted labels, true ones and probabilities of some patches; classes may be missing, patches empty."""
    patches, classes = draw(st.integers(1, most)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = rng.random((patches, classes)) < draw(st.sampled_from([0.05, 0.3, 0.8]))
    # Few distinct values, so that ranks are tied.
    p = np.round(rng.random((patches, classes)), draw(st.sampled_from([1, 6])))
    return p > 0.5, truth, p


def ours(drawn):
    predicted, truth, p = drawn
    return metrics.label_metrics(predicted, truth, range(1, truth.shape[1] + 1), p)


@given(labelled())
@settings(max_examples=60)
def test_precision_recall_and_f1_are_those_of_scikit_learn(drawn):
    predicted, truth, _ = drawn
    found = ours(drawn)
    occurs = truth.any(axis=0)
    for average in ("micro", "macro", "weighted"):
        # scikit-learn takes a mean over all classes; ours is over those that occur.
        labels = np.flatnonzero(occurs) if average == "macro" else None
        if average == "macro" and not occurs.any():
            continue
        p, r, f, _ = sk.precision_recall_fscore_support(
            truth, predicted, average=average, labels=labels, zero_division=0
        )
        for name, theirs in (("precision", p), ("recall", r), ("f1", f)):
            if hasattr(found, f"{name}_{average}"):
                mine = getattr(found, f"{name}_{average}")
                assert theirs == pytest.approx(0 if math.isnan(mine) else mine), (name, average)
    p, r, f, support = sk.precision_recall_fscore_support(truth, predicted, average=None, zero_division=np.nan)
    np.testing.assert_allclose(found.precision, p)
    np.testing.assert_allclose(found.recall, r)
    np.testing.assert_allclose(found.f1, f)
    assert found.images.tolist() == support.tolist()


@given(labelled())
@settings(max_examples=60)
def test_average_precision_is_that_of_scikit_learn_and_torchmetrics(drawn):
    _, truth, p = drawn
    found = ours(drawn)
    occurs = truth.any(axis=0)
    at = np.flatnonzero(occurs)
    for i in at:
        assert found.ap[i] == pytest.approx(sk.average_precision_score(truth[:, i], p[:, i]))
    assert np.isnan(found.ap[~occurs]).all()
    if occurs.any():
        assert found.ap_micro == pytest.approx(sk.average_precision_score(truth.ravel(), p.ravel()))
        theirs = [tm.binary_average_precision(*map(torch.from_numpy, (p[:, i], truth[:, i] * 1))) for i in at]
        assert found.ap_macro == pytest.approx(np.mean(theirs), abs=1e-5)


@given(labelled())
@settings(max_examples=60)
def test_exact_partial_and_incorrect_share_out_the_patches(drawn):
    predicted, truth, p = drawn
    found = ours(drawn)
    assert found.exact + found.partial + found.incorrect == pytest.approx(1)
    theirs = tm.multilabel_exact_match(
        torch.from_numpy(p), torch.from_numpy(truth.astype(int)), truth.shape[1], threshold=0.5
    )
    assert found.exact == pytest.approx(float(theirs))
    sets = [({*np.flatnonzero(a)}, {*np.flatnonzero(b)}) for a, b in zip(predicted, truth, strict=True)]
    assert found.partial == pytest.approx(np.mean([a != b and bool(a & b) for a, b in sets]))


def test_what_never_occurs_is_undefined_and_not_nought():
    truth = np.array([[1, 0, 0], [1, 0, 0]], bool)
    predicted = np.array([[1, 0, 1], [0, 0, 0]], bool)
    found = metrics.label_metrics(predicted, truth, (311, 312, 313), predicted.astype(float)).to_dict()
    never = found["classes"]["312"]
    assert never == {"images": 0, "predicted": 0, "precision": None, "recall": None, "f1": None, "ap": None}
    wrong = found["classes"]["313"]
    assert (wrong["precision"], wrong["recall"], wrong["f1"], wrong["ap"]) == (0, None, 0, None)
    assert found["f1_macro"] == pytest.approx(2 / 3), "over the classes that occur"
    assert found["f1_micro"] == pytest.approx(1 / 2), "the label that was wrongly given counts"


def test_shapes_that_differ_and_no_patch_are_refused():
    one = np.ones((2, 3), bool)
    for bad in ((one, one[:1], (1, 2, 3)), (one, one, (1, 2)), (one[:0], one[:0], (1, 2, 3))):
        with pytest.raises(ValueError, match="one shape"):
            metrics.label_metrics(*bad)


@given(st.lists(st.sets(st.sampled_from(sorted(PAPER_TABLE_1))), min_size=1, max_size=8))
@settings(max_examples=30)
def test_labels_of_coarser_levels_are_the_parents_of_the_deepest(sets):
    tables = multi_hot([Label(tuple(sorted(codes))) for codes in sets])
    corine = legend("corine")
    for level in (1, 2):
        groups = [corine.ancestor(code, level) for code in scheme_codes("level3")]
        found = metrics.up_to_parents(tables["level3"] == 1, groups, corine.codes(level))
        np.testing.assert_array_equal(found, tables[f"level{level}"] == 1)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=40)
def test_labels_of_all_levels_nest_at_any_threshold(seed, threshold):
    p = np.random.default_rng(seed).random((20, 44))
    corine = legend("corine")
    groups = {n: [corine.ancestor(c, n) for c in corine.codes()] for n in (1, 2)}
    for level, of_level in groups.items():
        above = metrics.up_to_parents(p, of_level, corine.codes(level)) > threshold
        np.testing.assert_array_equal(above, metrics.up_to_parents(p > threshold, of_level, corine.codes(level)))


# --- the paper's own tables ------------------------------------------------------------------------------------------


def paper(level):
    """Rows of Tables 4, 5 and 6 by code, as the package holds them for its report."""
    lines = (resources.files("geoflow") / "data/paper.csv").read_text().splitlines()
    return {int(r["code"]): r for r in csv.DictReader(lines) if int(r["level"]) == level}


def of_paper(level):
    rows = paper(level)
    p, r, f, images = (np.array([float(v[k]) for v in rows.values()]) for k in ("precision", "recall", "f1", "images"))
    return p, r, f, images


def test_the_papers_numbers_stand_beside_the_right_classes():
    """Its Tables 5 and 6 print them in another order than the names; a fifth of each class's images validates."""
    assert [len(paper(level)) for level in (1, 2, 3)] == [5, 15, 43]
    for code, row in paper(3).items():
        assert 0.13 < int(row["images"]) / PAPER_TABLE_1[code] < 0.24, code
    for level in (1, 2):
        for code, row in paper(level).items():
            below = sum(int(r["images"]) for c, r in paper(3).items() if str(c).startswith(str(code)))
            assert int(row["images"]) <= below, code


@pytest.mark.parametrize(("level", "micro", "macro", "printed"), [
    (1, 0.918, 0.834, 0.920), (2, 0.822, 0.655, 0.823), (3, 0.752, 0.497, 0.749)
])  # fmt: skip
def test_the_f1_that_the_paper_prints_is_a_micro_f1(level, micro, macro, printed):
    p, r, f, images = of_paper(level)
    hits = r * images
    said = np.divide(hits, p, out=np.zeros_like(hits), where=p > 0)
    assert 2 * hits.sum() / (said.sum() + images.sum()) == pytest.approx(micro, abs=5e-4)
    assert f.mean() == pytest.approx(macro, abs=5e-4)
    assert abs(micro - printed) < 0.004 < abs(macro - printed)


def test_the_correlation_that_the_paper_prints_is_pearsons_of_level_3():
    _, _, f, images = of_paper(3)
    assert metrics.correlation(images, f) == pytest.approx(0.59, abs=5e-3)


def test_the_papers_pixel_accuracy_cannot_follow_from_its_table_7():
    """Whatever the classes' shares, the accuracy is a mean of the diagonal of a matrix whose rows are normalised."""
    rng = np.random.default_rng(0)
    pixels = rng.dirichlet(np.ones(5), 200) * 1e6
    shares = np.array(PAPER_TABLE_7_DIAGONAL)
    for row in pixels:
        matrix = np.diag(np.rint(row * shares)).astype(np.int64)
        matrix[range(5), (1, 2, 3, 4, 0)] += np.rint(row).astype(np.int64) - matrix.sum(axis=1)
        assert accuracy(matrix, (1, 2, 3, 4, 5)).overall <= 0.8601


def test_rows_of_a_confusion_matrix_are_shares_of_the_true_class():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 2, 4]], np.int64)
    shares = row_shares(matrix)
    np.testing.assert_allclose(shares[0], [0.75, 0.25, 0])
    assert np.isnan(shares[1]).all(), "a class without pixels has no shares"
    true = np.repeat([0, 0, 2, 2, 2], [3, 1, 2, 2, 4])
    mapped = np.repeat([0, 1, 0, 1, 2], [3, 1, 2, 2, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(
            np.nan_to_num(shares), sk.confusion_matrix(true, mapped, labels=[0, 1, 2], normalize="true")
        )


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
@settings(max_examples=40)
def test_figures_of_pixels_are_those_of_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    true, mapped = rng.integers(0, classes, (2, 200))
    matrix = sk.confusion_matrix(true, mapped, labels=range(classes))
    found = accuracy(matrix.astype(np.int64), tuple(range(1, classes + 1)))
    assert found.overall == pytest.approx(sk.accuracy_score(true, mapped))
    iou = sk.jaccard_score(true, mapped, labels=range(classes), average=None, zero_division=0)
    np.testing.assert_allclose(np.nan_to_num(found.iou), iou)
    assert found.mean_iou == pytest.approx(np.mean(iou[np.unique(true)]))
    assert found.weighted_f1 == pytest.approx(sk.f1_score(true, mapped, average="weighted", zero_division=0))


def test_correlation_needs_three_classes_and_a_spread():
    assert metrics.correlation([1, 2], [0.1, 0.2]) is None
    assert metrics.correlation([1, 2, 3], [0.1, None, 0.3]) is None
    assert metrics.correlation([1, 1, 1], [0.1, 0.2, 0.3]) is None
    assert metrics.correlation([1, 2, 3, 9], [0.1, 0.2, 0.3, None]) == pytest.approx(1)


# --- calibration -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=40)
def test_reliability_in_parts_is_that_of_torchmetrics(seed, parts):
    rng = np.random.default_rng(seed)
    p = rng.random(300)
    right = rng.random(300) < p**2
    found = cal.Reliability()
    for some in np.array_split(np.arange(300), parts):
        found.add(p[some], right[some])
    theirs = tm.binary_calibration_error(torch.from_numpy(p), torch.from_numpy(right.astype(int)), n_bins=cal.BINS)
    assert found.ece == pytest.approx(float(theirs), abs=1e-5)
    bins = found.to_dict()["bins"]
    assert sum(b["count"] for b in bins) == 300
    assert all(b["from"] <= b["said"] <= b["to"] for b in bins)


def test_reliability_of_pixels_is_that_of_their_best_class():
    rng = np.random.default_rng(1)
    logits, truth = rng.normal(0, 2, (500, 7)), rng.integers(0, 7, 500)
    theirs = tm.multiclass_calibration_error(
        torch.from_numpy(logits).softmax(1), torch.from_numpy(truth), 7, n_bins=cal.BINS
    )
    assert cal.reliability_of(logits, truth).ece == pytest.approx(float(theirs), abs=1e-5)
    assert cal.Reliability().to_dict() == {"ece": None, "count": 0, "bins": []}


@pytest.mark.parametrize("true_t", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["labels", "pixels"])
def test_the_temperature_that_spoiled_the_logits_is_found(kind, true_t):
    rng = np.random.default_rng(2)
    z = rng.normal(0, 2, (6000, 5))
    if kind == "labels":
        truth = rng.random(z.shape) < 1 / (1 + np.exp(-z))
    else:
        truth = (z + rng.gumbel(size=z.shape)).argmax(axis=1)  # a draw from the softmax
    spoiled = z * true_t
    found = cal.fit_temperature(spoiled, truth)
    assert found == pytest.approx(true_t, rel=0.06)
    around = [cal.nll(spoiled, truth, found * step) for step in (0.97, 1.03)]
    assert cal.nll(spoiled, truth, found) < min(around)
    told = cal.calibration(spoiled, truth, np.arange(len(z)) % 2)
    assert told["temperature"] == found
    assert told["nll_after"] <= told["nll_before"] + 1e-3
    if true_t != 1.0:
        assert told["ece_after"] < told["ece_before"] / 2


def test_nll_is_that_of_torch():
    rng = np.random.default_rng(3)
    z, labels, pixels = rng.normal(0, 9, (50, 4)), rng.random((50, 4)) < 0.4, rng.integers(0, 4, 50)
    of_labels = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(z), torch.from_numpy(labels * 1.0)
    )
    of_pixels = torch.nn.functional.cross_entropy(torch.from_numpy(z), torch.from_numpy(pixels))
    assert cal.nll(z, labels) == pytest.approx(float(of_labels))
    assert cal.nll(z, pixels) == pytest.approx(float(of_pixels))


def test_a_temperature_of_nothing_or_of_broken_logits_is_refused():
    for logits in (np.empty((0, 3)), np.array([[1.0, np.nan, 0.0]])):
        with pytest.raises(ValueError, match="finite logits"):
            cal.fit_temperature(logits, np.zeros(len(logits), int))
