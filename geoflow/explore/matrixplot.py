"""A comparison of two maps as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geoflow.jobs.mapkey import fit
from geoflow.jobs.mapsheet import LINE, MUTED, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from geoflow.explore.comparing import Comparison

_MOST_FIGURES = 26
"""Classes beyond which the cells are too small for figures."""


def draw_matrix(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Rows are the first map's classes, shaded by the share of each that the second calls what; hectares in the cells.

    Parameters
    ----------
    comparison : Comparison
    ax : Axes, optional
        A new figure of pyplot's without.
    """
    import matplotlib.pyplot as plt

    hectares = comparison.matrix.to_numpy()
    codes = comparison.matrix.index.tolist()
    count = len(codes)
    if ax is None:
        side = max(2.5, 0.36 * count)
        ax = plt.subplots(figsize=(side + 4.4, side + 1.1), layout="constrained")[1]
    sums = hectares.sum(axis=1, keepdims=True)
    shares = np.divide(hectares, sums, out=np.zeros_like(hectares), where=sums > 0)
    drawn = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    if count <= _MOST_FIGURES:
        for (row, col), ha in np.ndenumerate(hectares):
            if ha:
                ink = "white" if shares[row, col] > 0.55 else "#1f2933"
                ax.text(col, row, _short(ha), ha="center", va="center", fontsize=5.5, color=ink)
    names = [fit(f"{code} {comparison.legend.label(code)}", 7, 2.4) for code in codes]
    ax.set_yticks(range(count), names, fontsize=7)
    ax.set_xticks(range(count), [str(code) for code in codes], fontsize=7, rotation=90 if count > 12 else 0)
    ax.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    ax.grid(which="minor", color=LINE, linewidth=0.3)
    ax.tick_params(which="both", length=0)
    for i, code in enumerate(codes):  # the diagonal in the colours of the classes
        edge = rgb(comparison.legend.colour(code))
        ax.add_patch(plt.Rectangle((i - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=edge, linewidth=1.6))
    ax.set_xlabel(comparison.second, fontsize=8)
    ax.set_ylabel(comparison.first, fontsize=8)
    agree = f"{100 * comparison.agreement:.1f} % of {comparison.total_ha:,.0f} ha agree"
    ax.set_title(f"{comparison.first} against {comparison.second}: {agree}", loc="left", fontsize=9, fontweight="bold")
    bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.5, pad=0.02)
    bar.set_label(f"share of the class in {comparison.first}; hectares in the cells", fontsize=7, color=MUTED)
    bar.ax.tick_params(labelsize=6)
    return ax


def _short(ha: float) -> str:
    if ha >= 100_000:
        return f"{ha / 1e6:.1f}M" if ha >= 1e6 else f"{ha / 1000:.0f}k"
    return f"{ha / 1000:.1f}k" if ha >= 10_000 else f"{ha:.0f}" if ha >= 10 else f"{ha:.1f}"
