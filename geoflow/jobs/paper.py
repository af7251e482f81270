"""The paper's evaluation of a finished run: classifier on patches, segmenter in held-out blocks, on every level.

Nothing here is a truth: patches and pixels are compared with labels, as in the paper. What is made of the
figures is in `geoflow.jobs.paperreport`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import JobError, StoreError
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.papermodels import ALL, Pair, patch_legend, patches_of, train_pairs, with_options
from geoflow.jobs.records import read_summary
from geoflow.jobs.work import area_mask

if TYPE_CHECKING:
    import xarray as xr

    from geoflow.grid import Tile
    from geoflow.learning.calibration import Reliability
    from geoflow.legends import Legend
    from geoflow.modelfile import LoadedModel
    from geoflow.store.zarr import Store

FOLDER = "paper"
"""Folder of an output that the report and its nets lie in."""


def evaluate_paper(
    out: Path,
    single: bool = False,
    options: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Figures for the paper's Tables 2 to 9 from a finished run.

    Parameters
    ----------
    out : Path
        The run's output folder.
    single : bool
        Also train one net per level, as the paper did, and evaluate them in the same way. They lie in
        ``OUT/paper/models`` and are taken from there the next time.
    options : mapping, optional
        Training options in place of the job's, see `geoflow.jobs.papermodels.with_options`; the net over all levels is
        trained anew with them too, or the two would not differ by one thing alone. Only with ``single``.
    tell : callable
        Called with a line of text before anything that takes long.

    Returns
    -------
    dict
        ``run``; ``classes``; ``dataset``, ``classification`` and ``segmentation`` by level; with ``single`` the same of
        the nets of one level under ``single``. Plain values.

    Raises
    ------
    StoreError
        If there is no such run, or it has neither a classifier nor labels and a segmenter.
    JobError
        If an option is unknown, or there is nothing to train.
    """
    if options and not single:
        raise JobError("--option: the run's own nets are as they are; with --single nets are trained anew")
    flow = Flow(parse_job(read_summary(out)["config"]), out if out.is_absolute() else out.resolve())
    trained = with_options(flow, options or {}) if single else flow
    folder = flow.out / FOLDER / "models"
    if single and not (flow.job.classifier or flow.job.train):
        raise JobError("--single: the job trains no nets, so there are no options to train others by")
    own = train_pairs(trained, (ALL,), folder, tell)[ALL] if options else _own_pair(flow)
    if own.classifier is None and own.segmenter is None:
        raise StoreError(f"{out} has neither a classifier of patches nor labels and a segmenter: nothing to evaluate")
    levels = tuple(sorted({*flow.legend.levels, *(patch_legend(flow).levels if own.classifier else ())}))
    found: dict[str, Any] = {
        "run": {**_run_facts(flow, own, options or {}), "levels": list(levels)},
        "classes": _classes(flow.legend),
        **_evaluated(flow, dict.fromkeys(levels, own), own.segmenter is not None and not options, tell),
    }
    if single:
        pairs = train_pairs(trained, levels, folder, tell)
        found["single"] = _evaluated(flow, {int(level): pair for level, pair in pairs.items()}, False, tell)
        found["single"]["models"] = {f"level{level}": _shas(pair) for level, pair in pairs.items()}
    return found


def _own_pair(flow: Flow) -> Pair:
    """The run's own nets."""
    from geoflow.modelfile import load_model

    classifier = load_model(flow.out / "classifier") if flow.job.classifier else None
    segmenter = load_model(flow.model_folder) if flow.job.labels and (flow.job.train or flow.job.predict) else None
    return Pair(classifier, segmenter)


def _shas(pair: Pair) -> dict[str, str | None]:
    both = {"classifier": pair.classifier, "segmenter": pair.segmenter}
    return {name: None if model is None else model.sha256 for name, model in both.items()}


def _run_facts(flow: Flow, own: Pair, options: Mapping[str, Any]) -> dict[str, Any]:
    from geoflow import __version__

    calibrated = {
        name: None if model is None else model.card.training.get("calibration")
        for name, model in (("classifier", own.classifier), ("segmenter", own.segmenter))
    }
    return {
        "geoflow": __version__,
        "job": flow.job.name,
        "legend": flow.legend.name,
        "patch_legend": None if own.classifier is None else patch_legend(flow).name,
        "models": _shas(own),
        "calibration": calibrated,
        "where": "held_out" if _holds_out(flow) else "all",
        "options": dict(options),
    }


def _holds_out(flow: Flow) -> bool:
    return flow.held_out is not None and flow.held_out.share > 0


def _classes(legend: Legend) -> dict[str, dict[str, Any]]:
    """Every class by its code."""
    return {
        str(code): {
            "name": legend.label(code),
            "level": level,
            "parent": legend.parent(code),
            "colour": "#{:02x}{:02x}{:02x}".format(*legend.colour(code)),
        }
        for level in legend.levels
        for code in legend.codes(level)
    }


def _evaluated(flow: Flow, pairs: Mapping[int, Pair], stored: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Classification and segmentation by the nets of each level, as far as there are any."""
    found: dict[str, Any] = {}
    # The patches' legend may be another one than the map's, with other levels.
    classifiers = {
        n: pair.classifier for n, pair in pairs.items() if pair.classifier and n in patch_legend(flow).levels
    }
    segmenters = {n: pair.segmenter for n, pair in pairs.items() if pair.segmenter and n in flow.legend.levels}
    if classifiers:
        tell("classifier: validation patches")
        found |= classification(flow, classifiers)
    if segmenters:
        tell("segmenter: " + ("held-out blocks" if _holds_out(flow) else "all labelled pixels"))
        found |= segmentation(flow, segmenters, stored)
    return found


# --- patches ---------------------------------------------------------------------------------------------------------


def classification(flow: Flow, models: Mapping[int, LoadedModel]) -> dict[str, Any]:
    """Classifiers on the validation patches, a model a level; one model may serve all.

    Of a model of the deepest level, a level's labels and probabilities are those of `up_to_parents`.
    """
    from geoflow.labels.patchstats import label_statistics
    from geoflow.learning.calibration import label_reliability
    from geoflow.learning.metrics import correlation, label_metrics, up_to_parents

    legend, source = patch_legend(flow), patches_of(flow)
    codes = legend.codes()
    every = np.sort(np.concatenate([source.train, source.held]))
    known = _probabilities(source, models)
    dataset, found, predicted = {}, {}, {}
    for level, model in models.items():
        classes = legend.codes(level)
        groups = [legend.ancestor(code, level) for code in codes]
        labels = up_to_parents(source.labels, groups, classes)
        if (counted := label_statistics(labels[every], classes)) is not None:
            dataset[f"level{level}"] = {
                "patches": counted.patches, "classes": counted.classes,
                "cardinality": counted.cardinality, "density": counted.density,
            }  # fmt: skip
        heads = [legend.ancestor(code, level) for code in model.card.codes]
        p = up_to_parents(known[model.sha256], heads, classes)
        truth, predicted[level] = labels[source.held], p > 0.5
        metrics = label_metrics(predicted[level], truth, classes, p).to_dict()
        scores = [metrics["classes"][str(code)] for code in classes]
        for code, row in zip(classes, scores, strict=True):
            row["name"] = legend.label(code)
        occurring = [row for row in scores if row["images"]]
        taught = np.isin(classes, heads)
        found[f"level{level}"] = {
            **metrics,
            "correlation": correlation([r["images"] for r in occurring], [r["f1"] for r in occurring]),
            "calibration": label_reliability(p[:, taught], truth[:, taught]).to_dict(),
        }
    nested = _nested_labels(predicted, legend)
    return {"dataset": dataset, "classification": found, "nested_patches": nested}


def _probabilities(source: Any, models: Mapping[int, LoadedModel]) -> dict[str, NDArray[np.float32]]:
    """By model, probabilities of its classes on the validation patches, dims (patch, class)."""
    from geoflow.learning.scoring import patch_logits

    found: dict[str, NDArray[np.float32]] = {}
    for model in models.values():
        if model.sha256 not in found:
            logits = patch_logits(model.trained, source, source.held)
            found[model.sha256] = np.float32(0.5) * (1 + np.tanh(logits / 2))
    return found


def _nested_labels(predicted: Mapping[int, NDArray[np.bool_]], legend: Legend) -> float:
    """Share of the patches whose labels of each level are the parents of those of the next."""
    from geoflow.learning.metrics import up_to_parents

    levels = sorted(predicted)
    fits = np.ones(len(predicted[levels[0]]), bool)
    for above, below in itertools.pairwise(levels):
        groups = [legend.ancestor(code, above) for code in legend.codes(below)]
        fits &= (up_to_parents(predicted[below], groups, legend.codes(above)) == predicted[above]).all(axis=1)
    return float(fits.mean())


# --- pixels ----------------------------------------------------------------------------------------------------------


@dataclass
class Maps:
    """Classes of pixels and their probabilities, tile by tile, from nets or from the run's finished map.

    Parameters
    ----------
    flow : Flow
    models : mapping of level -> LoadedModel
        One may serve all levels.
    stored : bool
        Take the map that the run made with this net, where it is there, and run no net again.
    """

    flow: Flow
    models: Mapping[int, LoadedModel]
    stored: bool

    @cached_property
    def store(self) -> Store:
        """The national store."""
        from geoflow.store.zarr import open_for_writing

        return open_for_writing(self.flow.store_path)

    @cached_property
    def reflectance(self) -> xr.DataArray:
        """The composites that the labels describe. Without Dask: a tile is read in one go."""
        return self.store.dataset(f"imagery/{self.flow.section('labels').epoch}", dask=False)["reflectance"]

    @cached_property
    def finished(self) -> xr.Dataset | None:
        """The run's map of that epoch, if it is of this net."""
        epoch = self.flow.section("labels").epoch
        if not self.stored or not self.flow.job.predict or epoch not in self.flow.job.mapped_epochs:
            return None
        found = self.store.dataset(f"map/{epoch}", dask=False)
        return found if found.attrs.get("model_sha256") in {m.sha256 for m in self.models.values()} else None

    def on(self, tile: Tile) -> dict[int, tuple[NDArray[Any], NDArray[np.float32] | None]]:
        """By level, codes (y, x) with 0 nodata, and the probability of each pixel's class, None if it is not kept."""
        maps = {model.sha256: self._map(model, tile) for model in {m.sha256: m for m in self.models.values()}.values()}
        legend = self.flow.legend
        return {level: _at_level(maps[model.sha256], model, legend, level) for level, model in self.models.items()}

    def _map(self, model: LoadedModel, tile: Tile) -> xr.Dataset:
        from geoflow.mapping.predict import MapOptions, predict_region

        if self.finished is not None:
            used = [
                n for n in self.finished.data_vars if str(n).startswith("level") or n in ("confidence", "probabilities")
            ]
            return self.finished[used].isel(tile.region).load()
        lazily = predict_region(self.reflectance, model, tile.y, tile.x, MapOptions(probabilities=True))
        return lazily.compute(scheduler="threads", num_workers=1)


def _at_level(
    found: xr.Dataset, model: LoadedModel, legend: Legend, level: int
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    own = model.card.legend
    codes = found[f"level{own.deepest if len(own.levels) == 1 else level}"].values
    if "probabilities" in found:
        return codes, _group_probability(found["probabilities"].values, codes, model, legend, level)
    sure = found["confidence"].values
    of_deepest = level == legend.deepest
    return codes, np.where(sure == 255, 0, sure / 100).astype(np.float32) if of_deepest else None


def _group_probability(
    parts: NDArray[np.uint8], codes: NDArray[Any], model: LoadedModel, legend: Legend, level: int
) -> NDArray[np.float32]:
    """Probability of each pixel's class: the sum over the classes that it holds; parts of 250, dims (class, y, x)."""
    groups = np.array([legend.ancestor(code, level) for code in model.card.codes])
    found = np.zeros(codes.shape, np.float32)
    for code in np.unique(codes[codes != 0]):
        here = codes == code
        found[here] = parts[groups == code][:, here].sum(axis=0, dtype=np.float32) / 250
    return np.minimum(found, 1)


@dataclass
class _Counted:
    """What is counted of one level."""

    matrix: NDArray[np.int64]
    reliability: Reliability
    told: bool = field(default=True)


def segmentation(flow: Flow, models: Mapping[int, LoadedModel], stored: bool) -> dict[str, Any]:
    """Segmenters in the held-out blocks against the labels, tile by tile, a model a level; one model may serve all."""
    from geoflow.learning.calibration import Reliability
    from geoflow.mapping.accuracy import confusion

    legend, maps = flow.legend, Maps(flow, models, stored)
    labels = maps.store.dataset(f"labels/{flow.section('labels').name}", dask=False)[f"level{legend.deepest}"]
    counted = {level: _Counted(np.zeros((len(legend.codes(level)),) * 2, np.int64), Reliability()) for level in models}
    pixels = nested = 0
    for tile in flow.tiles:
        true = labels.isel(tile.region).values
        where = (true != 0) & area_mask(flow.border, str(flow.area.crs), tile.geobox)  # as the maps of a run end there
        if _holds_out(flow):
            where &= flow.held_out.mask(flow.grid.shape, tile.y, tile.x)
        if not where.any():
            continue
        found = maps.on(tile)
        for codes, _ in found.values():
            where &= codes != 0  # all levels over the same pixels
        for level, (codes, sure) in found.items():
            of_level = legend.to_level(true[where], level)
            counted[level].matrix += confusion(of_level, codes[where], legend.codes(level))
            if sure is None:
                counted[level].told = False
            else:
                counted[level].reliability.add(sure[where], codes[where] == of_level)
        pixels += int(where.sum())
        nested += int(_nest({level: codes[where] for level, (codes, _) in found.items()}, legend).sum())
    if pixels == 0:
        raise StoreError(f"{flow.out}: no labelled pixel to compare a map with, held out of training or not")
    figures = {f"level{level}": _pixel_figures(of, legend, level) for level, of in counted.items()}
    return {"segmentation": figures, "pixels": pixels, "nested_pixels": nested / pixels}


def _nest(codes: Mapping[int, NDArray[Any]], legend: Legend) -> NDArray[np.bool_]:
    """Where the class of each level is the parent of that of the next."""
    from geoflow.legends import translate

    levels = sorted(codes)
    fits = np.ones(codes[levels[0]].shape, bool)
    for above, below in itertools.pairwise(levels):
        table = {code: legend.ancestor(code, above) for code in legend.codes(below)}
        fits &= translate(codes[below], table, legend.dtype(above), legend.name) == codes[above]
    return fits


def _pixel_figures(counted: _Counted, legend: Legend, level: int) -> dict[str, Any]:
    from geoflow.learning.metrics import correlation
    from geoflow.mapping.accuracy import accuracy

    codes = legend.codes(level)
    figures = accuracy(counted.matrix, codes).to_dict()
    true, mapped = (counted.matrix.sum(axis=axis).tolist() for axis in (1, 0))
    for code, in_labels, in_map in zip(codes, true, mapped, strict=True):
        figures["classes"][str(code)] |= {"pixels": in_labels, "mapped": in_map, "name": legend.label(code)}
    occurring = [row for row in figures["classes"].values() if row["pixels"]]
    return {
        **figures,
        "correlation": correlation([r["pixels"] for r in occurring], [r["iou"] for r in occurring]),
        "codes": list(codes),
        "matrix": counted.matrix.tolist(),
        "calibration": counted.reliability.to_dict() if counted.told else None,
    }
