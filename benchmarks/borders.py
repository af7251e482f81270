"""How right CORINE is, by the distance to the nearest class border: the labels of the sample country against its truth.

    python benchmarks/borders.py [SAMPLE] [--picture FILE] [--json FILE]

SAMPLE is a folder that `geoflow sample` made, out/sample by default. Labels are put on the grid of the truth exactly as
a run does it. Prints a Markdown table of the share of pixels with the true class, and draws it where asked for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

import geoflow as gf
from geoflow.labels import load_label_tile

NEAR_M, STEP_M, FAR_M = 100, 20, 400
LEVELS = (1, 3)
COLOURS = {1: "#1f6f5c", 3: "#b3521f"}


def main() -> None:
    """Print the table, draw the picture, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sample", nargs="?", type=Path, default=Path("out/sample"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    border_m, right = compare(arguments.sample)
    near = border_m < NEAR_M
    places = {"everywhere": near | True, f"within {NEAR_M} m of a border": near, "farther inside polygons": ~near}
    rows = {
        name: {"share": float(where.mean()), **{f"level{lv}": float(right[lv][where].mean()) for lv in LEVELS}}
        for name, where in places.items()
    }
    print("| where | share of the area | level 1 | level 3 |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['share']:.1%} | " + " | ".join(f"{row[f'level{lv}']:.1%}" for lv in LEVELS) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.picture:
        draw(border_m, right, arguments.picture)


def compare(sample: Path) -> tuple[NDArray[np.int16], dict[int, NDArray[np.bool_]]]:
    """Of all pixels with a truth and a label: the distance to a border, and by level whether the label is right."""
    corine, path = gf.legend("corine"), sample / "truth" / "landcover_2018.tif"
    with rasterio.open(path) as src:
        geobox = GeoBox(src.shape, src.transform, src.crs)
    truth = gf.load_labels(path, geobox, corine).values
    found = load_label_tile(sample / "corine" / "clc2018.gpkg", geobox, corine)
    known = (truth != 0) & (found.codes != 0)
    true, labelled = truth[known], found.codes[known]
    right = {level: corine.to_level(true, level) == corine.to_level(labelled, level) for level in LEVELS}
    return found.border_m[known], right


def draw(border_m: NDArray[np.int16], right: dict[int, NDArray[np.bool_]], path: Path) -> None:
    """Agreement over distance, above the share of the country that lies that far from a border."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    edges = np.arange(0, FAR_M + STEP_M, STEP_M)
    bins = np.minimum(border_m // STEP_M, len(edges) - 1)  # the last: all that lies farther
    count = np.bincount(bins, minlength=len(edges))
    centres = edges + STEP_M / 2
    figure, (top, below) = plt.subplots(
        2, 1, figsize=(7, 4.6), layout="constrained", sharex=True, height_ratios=(3, 1), facecolor="white"
    )
    for level in LEVELS:
        share = np.bincount(bins, weights=right[level], minlength=len(edges)) / np.maximum(count, 1)
        top.plot(centres, share, color=COLOURS[level], marker="o", markersize=4, linewidth=2)
        above = 9 if level == LEVELS[0] else -17
        named = {"textcoords": "offset points", "color": COLOURS[level], "fontweight": "bold", "ha": "center"}
        top.annotate(f"level {level}", (centres[8], share[8]), (0, above), **named)
    top.axvspan(0, NEAR_M, color="#00000010", linewidth=0)
    top.set_ylabel("pixels with the true class")
    top.set_title("CORINE is wrong at its borders first: the sample country's labels against its truth", fontsize=11)
    below.bar(centres, count / count.sum(), width=STEP_M * 0.85, color="#9aa5b1")
    below.axvspan(0, NEAR_M, color="#00000010", linewidth=0)
    below.set_ylabel("of the area")
    ticks = np.arange(0, FAR_M + 1, NEAR_M)
    below.set_xticks([*ticks[:-1], centres[-1]], [*(f"{t}" for t in ticks[:-1]), f"{FAR_M}+"])
    below.set_xlabel("distance to the nearest class border, metres")
    for axis in (top, below):
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#00000018", linewidth=0.8)
        axis.set_axisbelow(True)
    top.set_xlim(0, FAR_M + 1.6 * STEP_M)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
