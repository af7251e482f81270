"""How good a map is: one confusion matrix of pixels, and what follows from it. Numpy only.

Never average figures over batches or tiles: sum their int64 matrices, then divide. Rows are the truth, columns the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion(truth: NDArray[Any], predicted: NDArray[Any], codes: Sequence[int]) -> NDArray[np.int64]:
    """Count pixels by true and by predicted class.

    Parameters
    ----------
    truth, predicted : integer arrays of one shape
        Class codes; pixels with 0 in either are not counted (see `ignored`).
    codes : sequence of int
        The classes, in the order of the matrix. Must hold every code that occurs.

    Returns
    -------
    int64 array, dims (true class, predicted class)

    Raises
    ------
    ValueError
        If the shapes differ, or a code occurs that ``codes`` lacks: dropping it would flatter the map.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has shape {truth.shape}, the map {predicted.shape}")
    classes = np.asarray(codes, np.int64)
    order = np.argsort(classes)
    both = (truth != 0) & (predicted != 0)
    rows, cols = (_positions(a[both].astype(np.int64), classes, order) for a in (truth, predicted))
    return (
        np.bincount(rows * len(classes) + cols, minlength=len(classes) ** 2).reshape(len(classes), -1).astype(np.int64)
    )


def _positions(values: NDArray[np.int64], classes: NDArray[np.int64], order: NDArray[np.intp]) -> NDArray[np.int64]:
    found = order[np.searchsorted(classes, values, sorter=order).clip(max=len(classes) - 1)]
    if (unknown := values[classes[found] != values]).size:
        raise ValueError(
            f"the codes {np.unique(unknown).tolist()} occur, but are not among the classes {classes.tolist()}"
        )
    return found


def ignored(truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, int]:
    """Pixels that `confusion` does not count: ``no_truth``, and ``no_map`` (a truth, but no map)."""
    return {"no_truth": int((truth == 0).sum()), "no_map": int(((truth != 0) & (predicted == 0)).sum())}


@dataclass(frozen=True)
class Accuracy:
    """The figures of a confusion matrix; a class without pixels has NaN and takes no part in a macro figure.

    Attributes
    ----------
    codes : tuple of int
    pixels : int
        Pixels counted.
    overall : float
        Share of pixels with the right class.
    users, producers, f1, iou : float64 arrays, one value a class
        Users' (precision): the share of the pixels mapped as the class that are it. Producers' (recall): the share of
        the class's pixels that are mapped as it. F1: their harmonic mean. IoU: intersection over union.
    macro_f1, weighted_f1, mean_iou : float
        Means over the classes that occur in the truth; of ``weighted_f1`` each counts by its pixels there.
    """

    codes: tuple[int, ...]
    pixels: int
    overall: float
    users: NDArray[np.float64]
    producers: NDArray[np.float64]
    f1: NDArray[np.float64]
    iou: NDArray[np.float64]
    macro_f1: float
    weighted_f1: float
    mean_iou: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, NaN as None, classes by code."""
        per_class = {
            str(code): {name: _plain(getattr(self, name)[i]) for name in ("users", "producers", "f1", "iou")}
            for i, code in enumerate(self.codes)
        }
        return {
            "pixels": self.pixels,
            "overall": _plain(self.overall),
            "macro_f1": _plain(self.macro_f1),
            "weighted_f1": _plain(self.weighted_f1),
            "mean_iou": _plain(self.mean_iou),
            "classes": per_class,
        }


def accuracy(matrix: NDArray[np.int64], codes: Sequence[int]) -> Accuracy:
    """The figures of a confusion matrix with rows = truth (`confusion`)."""
    hits = np.diag(matrix).astype(float)
    true, mapped = matrix.sum(axis=1).astype(float), matrix.sum(axis=0).astype(float)
    total = float(matrix.sum())
    f1 = _ratio(2 * hits, true + mapped)
    iou = _ratio(hits, true + mapped - hits)
    occurs = true > 0
    return Accuracy(
        codes=tuple(int(c) for c in codes),
        pixels=int(total),
        overall=float(hits.sum() / total) if total else float("nan"),
        users=_ratio(hits, mapped),
        producers=_ratio(hits, true),
        f1=f1,
        iou=iou,
        macro_f1=float(f1[occurs].mean()) if occurs.any() else float("nan"),
        weighted_f1=float((f1[occurs] * true[occurs]).sum() / total) if total else float("nan"),
        mean_iou=float(iou[occurs].mean()) if occurs.any() else float("nan"),
    )


def row_shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """A confusion matrix whose rows sum up to 1: of each true class, the share mapped as each class.

    NaN in the row of a class without pixels. The diagonal is the producers' accuracy.
    """
    pixels = matrix.sum(axis=1, keepdims=True).astype(float)
    return np.divide(matrix, pixels, out=np.full(matrix.shape, np.nan), where=pixels > 0)


def change_accuracy(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> dict[str, float | int | None]:
    """Precision, recall and F1 of the changed pixels.

    Parameters
    ----------
    truth, predicted : uint8 arrays of one shape
        0 not observed, 1 unchanged, 2 changed (`geoflow.mapping.change`); pixels with 0 in either are not counted.

    Returns
    -------
    dict
        ``precision``, ``recall``, ``f1`` (None where undefined), ``true_px``, ``mapped_px`` (changed pixels) and
        ``pixels`` counted.
    """
    matrix = confusion(truth, predicted, (1, 2))
    figures = accuracy(matrix, (1, 2))
    return {
        "precision": _plain(figures.users[1]),
        "recall": _plain(figures.producers[1]),
        "f1": _plain(figures.f1[1]),
        "true_px": int(matrix[1].sum()),
        "mapped_px": int(matrix[:, 1].sum()),
        "pixels": int(matrix.sum()),
    }


def areas_ha(codes: NDArray[Any], pixel_area_m2: float) -> dict[int, float]:
    """Mapped area of each class that occurs, in hectares, by code; nodata (0) is left out.

    These are counted pixels; they carry the map's errors with them.
    """
    values, counts = np.unique(codes, return_counts=True)
    return {int(v): float(n * pixel_area_m2 / 1e4) for v, n in zip(values, counts, strict=True) if v != 0}


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
