"""Pictures of the paper's report: confusion matrices by class, and reliability diagrams."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

_LONGEST = 44  # characters of a class name beside a row
_DPI = 150


def draw_matrix(found: Mapping[str, Any], level: str) -> bytes:
    """A confusion matrix of pixels as PNG, rows normalised.

    Parameters
    ----------
    found : mapping
        Of `geoflow.jobs.paper.evaluate_paper`.
    level : str
        ``level1`` and so on.
    """
    from matplotlib.figure import Figure

    here = found["segmentation"][level]
    kept = [
        i for i, c in enumerate(here["codes"]) if here["classes"][str(c)]["pixels"] or here["classes"][str(c)]["mapped"]
    ]
    codes = [here["codes"][i] for i in kept]
    counts = np.array(here["matrix"], float)[np.ix_(kept, kept)]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    size, left, top = (0.62 if len(codes) <= 8 else 0.44) * len(codes), 3.4, 1.1  # inches
    width, height = left + size + 0.2, top + size + 0.1
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, 0.1 / height, size / width, size / height))
    # Dark enough to stand out from 0 at a few percent: a square root of the share.
    axes.imshow(np.sqrt(np.nan_to_num(shares)), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.35 else "#222222"
            weight = "bold" if row == column else "normal"
            axes.text(
                column, row, _two_digits(share), ha="center", va="center", color=colour, fontsize=7, weight=weight
            )
    axes.set_xticks(range(len(codes)), [str(code) for code in codes], fontsize=8, rotation=90 if len(codes) > 12 else 0)
    axes.set_yticks(range(len(codes)), [_name(here["classes"][str(code)]["name"], code) for code in codes], fontsize=8)
    axes.xaxis.tick_top()
    edges = np.arange(len(codes) + 1) - 0.5
    axes.hlines(edges, -0.5, len(codes) - 0.5, color="#dddddd", linewidth=0.5)
    axes.vlines(edges, -0.5, len(codes) - 0.5, color="#dddddd", linewidth=0.5)
    for row in np.flatnonzero(totals[:, 0] == 0).tolist():
        axes.text(-0.3, row, "not in the labels", va="center", fontsize=7, color="#777777", style="italic")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    number = level.removeprefix("level")
    told = f"Level {number}: pixel accuracy {here['overall']:.1%}, mean IoU {here['mean_iou']:.3f}"
    told = f"{told}; {here['pixels']:,} pixels"
    axes.text(0, 1 + 0.75 / size, told, transform=axes.transAxes, fontsize=10, fontweight="bold", ha="left")
    axes.text(
        0, 1 + 0.5 / size, "Rows: class of the labels, columns: class of the map; shares of each row.",
        transform=axes.transAxes, fontsize=8.5, color="#444444", ha="left",
    )  # fmt: skip
    return _png(figure)


def _two_digits(share: float) -> str:
    """0.07 as .07: the cells are small."""
    return "1" if share >= 0.995 else f"{share:.2f}".removeprefix("0")


def _name(name: str, code: int) -> str:
    return f"{name if len(name) <= _LONGEST else name[: _LONGEST - 1] + '…'}  {code}"


def draw_reliability(found: Mapping[str, Any]) -> bytes:
    """Reliability diagrams as PNG: how often what was said with each probability was right, a line a level."""
    from matplotlib.figure import Figure

    parts = [
        (part, title)
        for part, title in (
            ("classification", "Classifier: a class of a patch"),
            ("segmentation", "Segmenter: the class of a pixel"),
        )
        if part in found
    ]
    figure = Figure(figsize=(4.6 * len(parts), 4.4), layout="constrained")
    for axes, (part, title) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
        for level, here in found[part].items():
            told = here["calibration"]
            if told is not None and told["bins"]:
                said, right = ([one[name] for one in told["bins"]] for name in ("said", "right"))
                label = f"level {level.removeprefix('level')}: ECE {told['ece']:.3f}"
                axes.plot(said, right, marker="o", markersize=3.5, linewidth=1.3, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("said with probability", fontsize=9)
        axes.set_ylabel("was right", fontsize=9)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.legend(fontsize=8, frameon=False, loc="upper left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib in it, equal figures are equal bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.1, metadata={"Software": None})
    return buffer.getvalue()
