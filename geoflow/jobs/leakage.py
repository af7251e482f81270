"""How much a random split flatters: the score on windows drawn at random less that on blocks of their own."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import JobError
from geoflow.jobs.windows import Country, country_of


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
    ground, its scenes and often its very polygon go on: a net scores better there, and would not elsewhere.

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
        ``runs``; ``leakage``: random less blocked, mean and standard ``error`` of the pairs of one seed; and the
        settings.

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
    runs: dict[str, list[dict[str, dict[str, float]]]] = {"random": [], "blocked": []}
    for seed in range(repeats):
        for kind, edge in (("random", window_px), ("blocked", block_px)):
            tell(f"split {seed + 1} of {repeats}, {kind}: training")
            runs[kind].append(_score(country, edge, share, seed, dict(options or {})))
    return {
        **{kind: {**_mean(of_kind), "runs": of_kind} for kind, of_kind in runs.items()},
        "leakage": _difference(runs["random"], runs["blocked"]),
        "settings": {
            "window_px": window_px,
            "block_px": block_px,
            "share": share,
            "repeats": repeats,
            "options": dict(options or {}),
        },
    }


def _score(
    country: Country, edge_px: int, share: float, seed: int, changed: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """By level, the accuracy of a net that was trained without the held-out squares, within them."""
    from geoflow.learning.samples import HeldOut
    from geoflow.learning.train import SegmenterOptions, fit_segmenter
    from geoflow.modelfile import load_model, save_model

    held_out = HeldOut(edge_px, share, seed)
    given = country.flow.segmenter_options if country.flow.job.train else SegmenterOptions()
    known = {field.name for field in dataclasses.fields(given)}
    if unknown := sorted(set(changed) - known):
        raise JobError(f"options: {', '.join(unknown)} is unknown; accepted are {', '.join(sorted(known))}")
    options = dataclasses.replace(given, **{**changed, "seed": seed})
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
        held_out=held_out,
        border_m=country.border_m,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), trained)
        return _compared(country, load_model(Path(folder)), held_out)


def _compared(country: Country, model: Any, held_out: Any) -> dict[str, dict[str, float]]:
    """Tile by tile, so that a country need not fit into memory."""
    from geoflow.mapping.accuracy import accuracy, confusion
    from geoflow.mapping.predict import predict_region

    legend, flow = country.flow.legend, country.flow
    matrices = {level: np.zeros((len(legend.codes(level)),) * 2, np.int64) for level in legend.levels}
    for tile in flow.tiles:
        held = held_out.mask(flow.grid.shape, tile.y, tile.x)
        if not held.any():
            continue
        mapped = predict_region(country.reflectance.chunk(y=512, x=512), model, tile.y, tile.x)
        mapped = mapped.compute(scheduler="threads")
        true = country.labels.isel(tile.region).values
        for level, matrix in matrices.items():
            codes: NDArray[Any] = mapped[f"level{level}"].values
            where = held & (true != 0) & (codes != 0)
            matrix += confusion(legend.to_level(true, level)[where], codes[where], legend.codes(level))
    found = {}
    for level, matrix in matrices.items():
        figures = accuracy(matrix, legend.codes(level)).to_dict()
        found[f"level{level}"] = {"overall": figures["overall"], "macro_f1": figures["macro_f1"]}
    return found


def _mean(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        level: {name: round(float(np.mean([run[level][name] for run in runs])), 4) for name in figures}
        for level, figures in runs[0].items()
    }


def _difference(
    random: list[dict[str, dict[str, float]]], blocked: list[dict[str, dict[str, float]]]
) -> dict[str, dict[str, Any]]:
    """Mean of the differences of one seed, and its standard error; None for one pair."""
    found: dict[str, dict[str, Any]] = {}
    for level, figures in random[0].items():
        for name in figures:
            pairs = [a[level][name] - b[level][name] for a, b in zip(random, blocked, strict=True)]
            error = float(np.std(pairs, ddof=1) / np.sqrt(len(pairs))) if len(pairs) > 1 else None
            found.setdefault(level, {})[name] = round(float(np.mean(pairs)), 4)
            found[level][f"{name}_error"] = None if error is None else round(error, 4)
    return found
