"""What the paper prints, keyed by level and class code: Ulmas and Liiv 2020, arXiv 2003.02899, Tables 2 to 9."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

CARDINALITY = {1: 1.78, 2: 2.48, 3: 2.96}
DENSITY = {1: 0.357, 2: 0.165, 3: 0.069}
"""Table 2."""

OVERALL = {
    1: {"exact": 0.753, "partial": 0.239, "incorrect": 0.008, "f1_micro": 0.920, "overall": 0.914},
    2: {"exact": 0.459, "partial": 0.521, "incorrect": 0.021, "f1_micro": 0.823, "overall": 0.758},
    3: {"exact": 0.331, "partial": 0.619, "incorrect": 0.049, "f1_micro": 0.749, "overall": 0.597},
}
"""Table 3. Which F1 it is, the paper does not say; its Tables 4 to 6 give the micro F1, to within 0.003."""

CORRELATION = {"images and F1": 0.59, "pixels and IoU": 0.66}
"""Section V.A. The first is that of level 3, as its Table 6 shows; of the second the level is not told."""

RECALL_OF_PIXELS = {1: 0.42, 2: 0.77, 3: 0.86, 4: 0.40, 5: 0.83}
"""The diagonal of Table 7, by code. A pixel accuracy is a mean of these, so at most 0.86: the 0.914 of Table 3 is of
something else."""


@cache
def per_class() -> dict[int, dict[str, float]]:
    """Tables 4, 5 and 6 by code: ``precision``, ``recall``, ``f1``, ``images``; each row beside its own class."""
    text = (resources.files("geoflow") / "data" / "paper.csv").read_text(encoding="utf-8")
    return {
        int(row["code"]): {name: float(row[name]) for name in ("precision", "recall", "f1", "images")}
        for row in csv.DictReader(text.splitlines())
    }
