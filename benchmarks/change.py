"""What each source of evidence is worth for change: a finished run of jobs/quickstart.yaml against the sample's truth.

    python benchmarks/change.py [OUT] [--truth FOLDER] [--picture FILE]

Compares over the same pixels, all with the run's smallest patch:

joint                the run's own change map: scenes and class probabilities of both epochs
scenes               the spectral distance alone, at a threshold of 50 to 95 %; the best one
classes              the class probabilities alone, with a prior of one half; the best threshold
post-classification  two maps compared, from a joint confidence of 0 to 80 % on; the best one

"Best" is chosen with the truth in hand, which nobody has outside a sample country: a favour to the others. The picture
shows what joint and post-classification hit, miss and invent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import geoflow as gf
from geoflow.legends import legend
from geoflow.mapping import joint, spectral
from geoflow.mapping.accuracy import change_accuracy
from geoflow.mapping.change import CHANGED, UNOBSERVED, detect_change, drop_small, true_change
from geoflow.mapping.patchaccuracy import Compared, patch_accuracy

BEFORE, AFTER, MIN_PX = "2018", "2024", 50
States = NDArray[np.uint8]
PICTURE_PX = 420
HIT, MISSED, INVENTED, GROUND = (46, 125, 50), (25, 95, 190), (214, 69, 30), (236, 236, 230)


def main() -> None:
    """Print the table as Markdown; draw the picture where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("out/quickstart"))
    parser.add_argument("--truth", type=Path, default=Path("out/sample/truth"))
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    country = gf.open(arguments.out)
    ours = country[f"change/{BEFORE}-{AFTER}/change"]
    geobox, seen = ours.odc.geobox, ours.values != UNOBSERVED
    corine = legend("corine")
    paths = [arguments.truth / f"landcover_{epoch}.tif" for epoch in (BEFORE, AFTER)]
    truth = true_change(*(gf.load_labels(path, geobox, corine).values for path in paths))
    learned = joint.JointChange.from_dict(json.loads((arguments.out / "differences.json").read_text()))

    print("| | F1 of pixels | precision | recall | F1 of patches | area bias |\n|---|---|---|---|---|---|")
    best = {"joint": ours.values}
    others = {
        "scenes alone": by_scenes(country, learned),
        "classes alone": by_classes(country, learned),
        "post-classification": by_maps(country),
    }
    for name, variants in others.items():
        states = [np.where(seen, state, UNOBSERVED).astype(np.uint8) for state in variants]
        best[name] = max(states, key=lambda state: change_accuracy(truth, state)["f1"] or 0)
    for name, state in best.items():
        print(row(name, truth, state, geobox))
    if arguments.picture:
        draw(truth, best, arguments.picture)


def row(name: str, truth: States, state: States, geobox: Any) -> str:
    """One line of the table."""
    whole = (slice(0, truth.shape[0]), slice(0, truth.shape[1]))
    pixels = change_accuracy(truth, state)
    patches = patch_accuracy(lambda: [Compared(truth, state, *whole)], geobox, MIN_PX)
    bias = (pixels["mapped_px"] or 0) / (pixels["true_px"] or 1) - 1
    figures = [pixels["f1"], pixels["precision"], pixels["recall"], patches["f1"]]
    return f"| {name} | " + " | ".join(f"{value or 0:.2f}" for value in figures) + f" | {bias:+.0%} |"


def by_maps(country: Any) -> Iterator[States]:
    """Maps compared, from several confidences on."""
    maps = [country[f"map/{epoch}"].to_dataset()[["level3", "confidence"]].load() for epoch in (BEFORE, AFTER)]
    for least in range(0, 90, 10):
        yield detect_change(*maps, None, least, MIN_PX)["change"].values


def by_scenes(country: Any, learned: joint.JointChange) -> Iterator[States]:
    """Spectral distance, from several probabilities on."""
    before, after = (country[f"imagery/{epoch}/reflectance"].values for epoch in (BEFORE, AFTER))
    chance = learned.spectral.probability(*spectral.difference(before, after), country[f"map/{BEFORE}/level3"].values)
    yield from thresholds(chance)


def by_classes(country: Any, learned: joint.JointChange) -> Iterator[States]:
    """Class probabilities of both epochs where the scenes say nothing."""
    p, q = (country[f"map/{epoch}/probabilities"].values for epoch in (BEFORE, AFTER))
    undecided = np.full(p.shape[1:], 50, np.uint8)
    weights = joint.transition_weights(learned.codes, {}, legend("corine"))
    yield from thresholds(learned.chance(p, q, undecided, weights))


def thresholds(chance: NDArray[np.uint8]) -> Iterator[States]:
    """1 and 2 from several percentages on."""
    for least in (50, 60, 70, 80, 90, 95):
        yield (1 + drop_small((chance >= least) & (chance != 255), MIN_PX)).astype(np.uint8)


def draw(truth: States, states: dict[str, States], path: Path) -> None:
    """Hits, misses and inventions of two of them, where most changed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    part = densest(truth == CHANGED)
    figure, axes = plt.subplots(1, 2, figsize=(9, 5.1), layout="constrained")
    for axis, name in zip(axes, ("post-classification", "joint"), strict=True):
        true, mapped = truth[part] == CHANGED, states[name][part] == CHANGED
        image = np.full((*true.shape, 3), GROUND, np.uint8)
        for where, colour in ((true & mapped, HIT), (true & ~mapped, MISSED), (mapped & ~true, INVENTED)):
            image[where] = colour
        axis.imshow(image, interpolation="nearest")
        axis.set_title({"joint": "Scenes and classes of both epochs", "post-classification": "Two maps compared"}[name])
        axis.set_axis_off()
    names = (("changed and found", HIT), ("changed and missed", MISSED), ("found and not changed", INVENTED))
    keys = [Patch(color=np.array(colour) / 255, label=label) for label, colour in names]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def densest(changed: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The square of the picture's size with most change."""
    sums = np.pad(changed.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    size = min(PICTURE_PX, *changed.shape)
    inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    y, x = (int(v) for v in np.unravel_index(inside.argmax(), inside.shape))
    return slice(y, y + size), slice(x, x + size)


if __name__ == "__main__":
    main()
