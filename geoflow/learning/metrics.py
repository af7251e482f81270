"""How good a multi-label classifier is: the paper's equations 3 to 6, and average precision. Numpy only.

What has no denominator is undefined: NaN in arrays, None in `LabelMetrics.to_dict`, never 0. A class occurs if a patch
of the truth holds it. Macro figures are means over the classes that occur; micro figures count every class, so that
labels of classes that do not occur still cost precision. Figures of pixels are in `geoflow.mapping.accuracy`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabelMetrics:
    """What `label_metrics` finds.

    Attributes
    ----------
    codes : tuple of int
    patches : int
    exact, partial, incorrect : float
        Shares of the patches. Exact match ratio (eq. 3): all labels right, none too many. Partial: not all right, but
        at least one. Incorrect: not exact, and not one right. They sum up to 1.
    images, predicted : int64 arrays, dims (class,)
        Patches that hold the class, and that are said to.
    precision, recall, f1, ap : float64 arrays, dims (class,)
        Equations 4, 5 and 6; F1 as 2 TP / (2 TP + FP + FN), which is the same and defined where only one of precision
        and recall is. Average precision: see `average_precision`.
    f1_micro, f1_macro, f1_weighted : float
        F1 of all labels together; mean over the classes that occur; that weighted by ``images``.
    precision_micro, recall_micro, precision_macro, recall_macro : float
        The same of precision and recall. A class that occurs but is never predicted counts with precision 0 in the
        macro mean, as scikit-learn has it.
    ap_micro, ap_macro : float
        Of all labels in one ranking; mean over the classes that occur. NaN without probabilities.
    """

    codes: tuple[int, ...]
    patches: int
    exact: float
    partial: float
    incorrect: float
    images: NDArray[np.int64]
    predicted: NDArray[np.int64]
    precision: Floats
    recall: Floats
    f1: Floats
    ap: Floats
    precision_micro: float
    recall_micro: float
    f1_micro: float
    precision_macro: float
    recall_macro: float
    f1_macro: float
    f1_weighted: float
    ap_micro: float
    ap_macro: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, NaN as None, classes by code."""
        arrays = ("images", "predicted", "precision", "recall", "f1", "ap")
        rows = zip(*(getattr(self, name).tolist() for name in arrays), strict=True)
        classes = {
            str(code): {name: plain(value) for name, value in zip(arrays, row, strict=True)}
            for code, row in zip(self.codes, rows, strict=True)
        }
        figures = {
            name: plain(value)
            for name, value in vars(self).items()
            if name != "codes" and not isinstance(value, np.ndarray)
        }
        return {**figures, "classes": classes}


def label_metrics(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    codes: Sequence[int],
    probabilities: NDArray[np.floating] | None = None,
) -> LabelMetrics:
    """Compare predicted labels with true ones.

    Parameters
    ----------
    predicted, truth : bool arrays, dims (patch, class)
    codes : sequence of int
        Code of each column.
    probabilities : float array, dims (patch, class), optional
        For average precision; any score that ranks as they do will serve.

    Raises
    ------
    ValueError
        If the shapes differ or there is no patch.
    """
    _check(predicted, truth, codes, probabilities)
    hits = (predicted & truth).sum(axis=0)
    said, true = predicted.sum(axis=0), truth.sum(axis=0)
    occurs = true > 0
    precision, recall = ratio(hits, said), ratio(hits, true)
    f1 = ratio(2 * hits, said + true)
    same, any_hit = (predicted == truth).all(axis=1), (predicted & truth).any(axis=1)
    ap, ap_micro = np.full(len(codes), np.nan), math.nan
    if probabilities is not None:
        ap = np.array([average_precision(probabilities[:, i], truth[:, i]) for i in range(len(codes))], np.float64)
        ap_micro = average_precision(probabilities.ravel(), truth.ravel())
    return LabelMetrics(
        codes=tuple(int(code) for code in codes),
        patches=len(truth),
        exact=float(same.mean()),
        partial=float((~same & any_hit).mean()),
        incorrect=float((~same & ~any_hit).mean()),
        images=true.astype(np.int64),
        predicted=said.astype(np.int64),
        precision=precision,
        recall=recall,
        f1=f1,
        ap=ap,
        precision_micro=_quotient(hits.sum(), said.sum()),
        recall_micro=_quotient(hits.sum(), true.sum()),
        f1_micro=_quotient(2 * hits.sum(), said.sum() + true.sum()),
        precision_macro=_mean(np.nan_to_num(precision[occurs])),
        recall_macro=_mean(recall[occurs]),
        f1_macro=_mean(f1[occurs]),
        f1_weighted=_quotient(float((f1[occurs] * true[occurs]).sum()), true.sum()),
        ap_micro=ap_micro,
        ap_macro=_mean(ap[occurs]),
    )


def average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Mean of the precisions down a ranking, each weighted by the recall gained there; no interpolation.

    Parameters
    ----------
    scores : float array, dims (n,)
        Equal scores are one step: their order means nothing.
    truth : bool array, dims (n,)

    Returns
    -------
    float
        NaN where nothing is true. Manning, Raghavan and Schuetze 2008, "Introduction to Information Retrieval", 8.4.
    """
    positives = int(truth.sum())
    if positives == 0:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(truth[order])[ends]
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / (ends + 1)).sum() / positives)


def up_to_parents(values: NDArray[Any], groups: Sequence[int], codes: Sequence[int]) -> NDArray[Any]:
    """Labels or probabilities of classes as those of the classes above them.

    A group's label is that of any of its classes, its probability the greatest of theirs. The greatest, not one less
    the product of what the others lack: that supposes that classes occur independently of each other, and would name a
    group of which no class is named. So the labels of all levels nest, whatever the threshold. It is the least that the
    probability of a union can be, and thus somewhat low.

    Parameters
    ----------
    values : bool or float array, dims (patch, class)
    groups : sequence of int
        Code of the group of each column.
    codes : sequence of int
        Codes of the groups wanted, in the order of the result.

    Returns
    -------
    array of the same type, dims (patch, group)
        False or 0 for a group without classes.
    """
    found = np.zeros((len(values), len(codes)), values.dtype)
    at = np.asarray(groups)
    for column, code in enumerate(codes):
        if (members := at == code).any():
            found[:, column] = values[:, members].max(axis=1)
    return found


def correlation(counts: Sequence[float], scores: Sequence[float | None]) -> float | None:
    """Pearson's correlation of how frequent classes are with how well they are found (section V.A of the paper).

    Classes without a score are left out; None where fewer than three remain, or all are alike in one of both.
    """
    pairs = [(n, score) for n, score in zip(counts, scores, strict=True) if score is not None and not math.isnan(score)]
    if len(pairs) < 3:
        return None
    x, y = np.array(pairs, np.float64).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Quotients, NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def plain(value: Any) -> Any:
    """A number for JSON: None where it is undefined."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _quotient(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else math.nan


def _check(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    codes: Sequence[int],
    probabilities: NDArray[np.floating] | None,
) -> None:
    shapes = {predicted.shape, truth.shape, (len(truth), len(codes))}
    shapes |= set() if probabilities is None else {probabilities.shape}
    if len(shapes) > 1 or len(truth) == 0:
        raise ValueError(f"labels must have one shape (patch, class), at least one patch; here are {sorted(shapes)}")
