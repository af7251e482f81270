"""How much a random split flatters: the score on windows drawn at random less that on blocks of their own."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import JobError
from geoflow.jobs.console import duration
from geoflow.jobs.windows import Country, country_of
from geoflow.jobs.work import area_mask
from geoflow.learning.samples import Block, HeldOut, cut

if TYPE_CHECKING:
    from geoflow.learning.options import SegmenterOptions
    from geoflow.modelfile import LoadedModel

Scores = dict[str, dict[str, float]]
"""By level, ``overall`` accuracy and ``macro_f1``."""

_SQUARE_PX = 4096


def leakage_report(
    out: Path,
    window_px: int = 120,
    block_px: int = 960,
    share: float = 0.2,
    repeats: int = 3,
    options: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train the run's net on its own labels, once with windows held out at random and once with whole blocks.

    The score is the agreement of the net with the labels where it did not see them. Beside a training window the
    ground, its scenes and often its very polygon go on: a net scores better there, and would not elsewhere. Two splits
    hold out different ground, some of it harder; so both nets of a seed are compared on the same ground too, that which
    both splits hold out.

    Parameters
    ----------
    out : Path
        Output folder of a finished run with labels; its classifier, where it has one, is what the nets start from.
    window_px : int
        Edge of the windows of the random split, as in the paper.
    block_px : int
        Edge of the blocks; a multiple of ``window_px``.
    share : float
        Share of the country that is held out.
    repeats : int
        Splits of each kind, with seeds of their own; 2 or more give a standard error.
    options : mapping, optional
        Training options in place of the job's.
    tell : callable
        Called with a line of text before each training.

    Returns
    -------
    dict
        ``random`` and ``blocked``: by level the mean ``overall`` accuracy and ``macro_f1`` over the repeats, and the
        ``runs``; ``leakage``: random less blocked, mean and standard ``error`` of the pairs of one seed;
        ``same_ground``: these three on what both splits of a seed hold out, and its ``pixels``, or None where no seed
        has any; and the ``settings``.

    Raises
    ------
    StoreError
        If there is no such run, or it has nothing to learn from.
    JobError
        If a value is out of range, or an option unknown.
    """
    if block_px % window_px or block_px == window_px:
        raise JobError(f"blocks of {block_px} px must be a multiple of windows of {window_px} px, and larger")
    if repeats < 1:
        raise JobError(f"repeats must be at least 1, not {repeats}")
    country = country_of(out)
    trained_with = _options(country, options or {})
    runs: dict[str, list[Scores]] = {"random": [], "blocked": []}
    same: dict[str, list[Scores]] = {"random": [], "blocked": []}
    pixels, trained, began = [], 0, time.monotonic()
    for seed in range(repeats):
        held = {kind: HeldOut(edge, share, seed) for kind, edge in (("random", window_px), ("blocked", block_px))}
        for kind in held:
            tell(f"split {seed + 1} of {repeats}, {kind}: training{_left(time.monotonic() - began, trained, repeats)}")
            found = _matrices(country, kind, held, dataclasses.replace(trained_with, seed=seed))
            runs[kind].append(_scores(country, found[kind]))
            if shared := int(found["both"][country.flow.legend.levels[-1]].sum()):
                same[kind].append(_scores(country, found["both"]))
                pixels.append(shared)
            trained += 1
    return {
        **_compared(runs),
        "same_ground": {**_compared(same), "pixels": sum(pixels) // 2} if pixels else None,
        "settings": {
            "window_px": window_px,
            "block_px": block_px,
            "share": share,
            "repeats": repeats,
            "options": dict(options or {}),
        },
    }


def _left(seconds: float, trained: int, repeats: int) -> str:
    return f", about {duration(seconds / trained * (2 * repeats - trained))} left" if trained else ""


def _options(country: Country, changed: Mapping[str, Any]) -> SegmenterOptions:
    from geoflow.learning.options import SegmenterOptions

    given = country.flow.segmenter_options if country.flow.job.train else SegmenterOptions()
    known = {field.name for field in dataclasses.fields(given)}
    if unknown := sorted(set(changed) - known):
        raise JobError(f"options: {', '.join(unknown)} is unknown; accepted are {', '.join(sorted(known))}")
    return dataclasses.replace(given, **changed)


def _matrices(
    country: Country, kind: str, held: Mapping[str, HeldOut], options: SegmenterOptions
) -> dict[str, dict[int, NDArray[np.int64]]]:
    """Confusion by level of a net trained without one kind of squares, on these and on what both kinds hold."""
    from geoflow.learning.train import fit_segmenter
    from geoflow.modelfile import load_model, save_model

    classifier = country.flow.out / "classifier"
    encoder = load_model(classifier).trained if country.flow.job.classifier and classifier.exists() else None
    trained = fit_segmenter(
        country.reflectance,
        country.labels,
        country.flow.legend,
        tuple(str(b) for b in country.reflectance["band"].values),
        tuple(str(p) for p in country.reflectance["period"].values),
        options,
        encoder=encoder,
        held_out=held[kind],
        border_m=country.border_m,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), trained)
        return _confused(country, load_model(Path(folder)), kind, held)


def _confused(
    country: Country, model: LoadedModel, kind: str, held: Mapping[str, HeldOut]
) -> dict[str, dict[int, NDArray[np.int64]]]:
    """Square by square, so that a country need not fit into memory; large ones, because a map of a square runs the
    windows over its border too."""
    from geoflow.mapping.accuracy import confusion
    from geoflow.mapping.predict import MapOptions, predict_region

    legend, flow = country.flow.legend, country.flow
    found = {
        ground: {level: np.zeros((len(legend.codes(level)),) * 2, np.int64) for level in legend.levels}
        for ground in (kind, "both")
    }
    for square in cut(flow.grid.shape, _SQUARE_PX):
        inside = area_mask(flow.border, str(flow.area.crs), flow.grid.geobox[square.y, square.x])
        masks = {name: one.mask(flow.grid.shape, square.y, square.x) & inside for name, one in held.items()}
        part = _box_of(masks[kind], square)
        if part is None:
            continue
        # Torch, in the precision that the machine has: each net is used once, and OpenVINO first compiles it.
        mapped = predict_region(country.reflectance, model, part.y, part.x, MapOptions(engine="torch"))
        mapped = mapped.compute(scheduler="threads")
        true = country.labels.isel(y=part.y, x=part.x).values
        inner = _within_square(part, square)
        wheres = {kind: masks[kind][inner], "both": np.logical_and(*masks.values())[inner]}
        for level in legend.levels:
            codes: NDArray[Any] = mapped[f"level{level}"].values
            labels = legend.to_level(true, level)
            for ground, where in wheres.items():
                known = where & (true != 0) & (codes != 0)
                found[ground][level] += confusion(labels[known], codes[known], legend.codes(level))
    return found


def _box_of(mask: NDArray[np.bool_], square: Block) -> Block | None:
    """The smallest part of a square that holds all of a mask; None where there is nothing to hold."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    top, left = square.y.start, square.x.start
    return Block(
        slice(top + int(rows[0]), top + int(rows[-1]) + 1), slice(left + int(columns[0]), left + int(columns[-1]) + 1)
    )


def _within_square(part: Block, square: Block) -> tuple[slice, slice]:
    top, left = square.y.start, square.x.start
    return slice(part.y.start - top, part.y.stop - top), slice(part.x.start - left, part.x.stop - left)


def _scores(country: Country, matrices: Mapping[int, NDArray[np.int64]]) -> Scores:
    from geoflow.mapping.accuracy import accuracy

    found = {}
    for level, matrix in matrices.items():
        figures = accuracy(matrix, country.flow.legend.codes(level)).to_dict()
        found[f"level{level}"] = {"overall": figures["overall"], "macro_f1": figures["macro_f1"]}
    return found


def _compared(runs: Mapping[str, list[Scores]]) -> dict[str, Any]:
    """Means of each kind with the single runs, and their difference."""
    means = {kind: {**_mean(of_kind), "runs": of_kind} for kind, of_kind in runs.items()}
    return {**means, "leakage": _difference(runs["random"], runs["blocked"])}


def _mean(runs: list[Scores]) -> Scores:
    return {
        level: {name: round(float(np.mean([run[level][name] for run in runs])), 4) for name in figures}
        for level, figures in runs[0].items()
    }


def _difference(random: list[Scores], blocked: list[Scores]) -> dict[str, dict[str, Any]]:
    """Mean of the differences of one seed, and its standard error; None for one pair."""
    found: dict[str, dict[str, Any]] = {}
    for level, figures in random[0].items():
        for name in figures:
            pairs = [a[level][name] - b[level][name] for a, b in zip(random, blocked, strict=True)]
            error = float(np.std(pairs, ddof=1) / np.sqrt(len(pairs))) if len(pairs) > 1 else None
            found.setdefault(level, {})[name] = round(float(np.mean(pairs)), 4)
            found[level][f"{name}_error"] = None if error is None else round(error, 4)
    return found
