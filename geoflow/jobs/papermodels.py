"""The paper's six nets: a classifier and a segmenter for each level of the legend, trained as the run's own were."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import GeoflowError, JobError
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import parse_job
from geoflow.places import read_bytes, write_bytes
from geoflow.store.receipts import digest

if TYPE_CHECKING:
    from geoflow.learning.patchstream import PatchSource
    from geoflow.legends import Legend
    from geoflow.modelfile import LoadedModel, TrainedModel

Tell = Callable[[str], None]
ALL = "all"
"""Key of the net over all levels, beside the levels."""


@dataclass(frozen=True)
class Pair:
    """A classifier, and a segmenter that began with its encoder; None of what the job does not train."""

    classifier: LoadedModel | None
    segmenter: LoadedModel | None


def with_options(flow: Flow, changed: Mapping[str, Any]) -> Flow:
    """The same job with other training options.

    Parameters
    ----------
    flow : Flow
    changed : mapping
        Options of the segmenter by name; of the classifier by ``classifier.`` and name.

    Raises
    ------
    JobError
        If an option is unknown, its value is out of range, or the job trains no such net.
    """
    values = flow.job.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, value in changed.items():
        section, dot, name = key.rpartition(".")
        section = section if dot else "train"
        if section not in ("classifier", "train") or section not in values:
            raise JobError(f"--option {key}: the job trains no {section!r}; name options as steps or classifier.epochs")
        values[section]["options"] = {**values[section].get("options", {}), name: value}
    found = Flow(parse_job(values), flow.out)
    for section, options in (("classifier", "classifier_options"), ("train", "segmenter_options")):
        if section in values:
            getattr(found, options)  # unknown names and wrong values are refused before anything is trained
    return found


def patches_of(flow: Flow) -> PatchSource:
    """The patches that the run's classifier learned from and was measured on."""
    from geoflow.jobs.patchsource import source_of

    section = flow.section("classifier")
    bands = flow.section("imagery").bands
    return source_of(flow.patch_store, bands, section.labels, section.split, flow.classifier_options)


def patch_legend(flow: Flow) -> Legend:
    """The legend of the patches' labels; that of the map where the job has no patches."""
    from geoflow.labels.patchlabels import scheme_legend

    legend: Legend = flow.legend
    return scheme_legend(flow.job.classifier.labels) if flow.job.classifier else legend


def train_pairs(flow: Flow, levels: tuple[int | str, ...], folder: Path, tell: Tell) -> dict[int | str, Pair]:
    """A classifier and a segmenter for each level; those that are in the folder already, of the same tasks, are taken.

    Parameters
    ----------
    flow : Flow
        Its options are those of every net. Of a net of one level, ``level_weights`` do not apply.
    levels : tuple
        Levels of the legend, or `ALL`.
    folder : Path
        ``<level>/classifier`` and ``<level>/segmenter`` below it.
    tell : callable
        Called with a line of text before each training.
    """
    found: dict[int | str, Pair] = {}
    encoder: LoadedModel | None = None
    for level in levels:
        found[level] = _pair(flow, level, folder / (ALL if level == ALL else f"level{level}"), encoder, tell)
        encoder = found[level].classifier or encoder
    return found


def _pair(flow: Flow, level: Any, folder: Path, coarser: LoadedModel | None, tell: Tell) -> Pair:
    """Both nets of a level; where patches do not tell it, the segmenter begins with a ``coarser`` classifier."""
    # The ids of the run's tasks stand for everything that a net depends on: data, options, split, seed.
    ids = {stage.name: stage.tasks()[0].id for stage in flow.stages() if stage.name in ("classifier", "train")}
    title = "all levels" if level == ALL else f"level {level}"
    classifier = segmenter = None
    if "classifier" in ids and level in (ALL, *patch_legend(flow).levels):
        identity = digest("paper", level, ids["classifier"])
        folder_of, told = folder / "classifier", f"{title}, classifier"
        classifier = _made(folder_of, identity, lambda: _classifier(flow, level), told, tell)
    if "train" in ids and level in (ALL, *flow.legend.levels):
        identity = digest("paper", level, ids["train"])
        source = classifier or coarser
        encoder = None if source is None else source.trained
        folder_of, told = folder / "segmenter", f"{title}, segmenter"
        segmenter = _made(folder_of, identity, lambda: _segmenter(flow, level, encoder), told, tell)
    return Pair(classifier, segmenter)


def _made(folder: Path, identity: str, train: Callable[[], TrainedModel], title: str, tell: Tell) -> LoadedModel:
    """The model of this identity, trained unless it is there."""
    from geoflow.modelfile import load_model, save_model

    beside = folder.with_name(f"{folder.name}.json")
    try:
        told = json.loads(read_bytes(beside))
        if told["id"] == identity:
            return load_model(folder, told["sha256"])
    except (OSError, ValueError, KeyError, GeoflowError):
        pass  # there is none, or it is not whole: it is trained
    tell(f"{title}: training")
    sha256 = save_model(folder, train())
    write_bytes(beside, (json.dumps({"id": identity, "sha256": sha256}) + "\n").encode())
    return load_model(folder, sha256)


def _at(legend: Legend, level: Any) -> Legend:
    return legend if level == ALL else legend.only(level)


def _classifier(flow: Flow, level: Any) -> TrainedModel:
    from geoflow.learning.classifier import fit_patches
    from geoflow.learning.metrics import up_to_parents

    source, legend = patches_of(flow), patch_legend(flow)
    codes = legend.codes()
    if level != ALL:
        groups, codes = [legend.ancestor(code, level) for code in codes], legend.codes(level)
        source = dataclasses.replace(source, labels=up_to_parents(source.labels, groups, codes))
    bands = flow.section("imagery").bands
    return fit_patches(source, codes, _at(legend, level), bands, flow.classifier_options)


def _segmenter(flow: Flow, level: Any, encoder: TrainedModel | None) -> TrainedModel:
    from geoflow.learning.train import fit_segmenter
    from geoflow.store.zarr import open_for_writing

    section, options = flow.section("labels"), flow.segmenter_options
    store = open_for_writing(flow.store_path)
    # Without Dask: a window is read where it is sliced.
    labels = store.dataset(f"labels/{section.name}", dask=False)
    reflectance = store.dataset(f"imagery/{section.epoch}", dask=False)["reflectance"]
    if level != ALL:
        options = dataclasses.replace(options, level_weights=None)
    return fit_segmenter(
        reflectance,
        labels[f"level{flow.legend.deepest if level == ALL else level}"],
        _at(flow.legend, level),
        tuple(str(b) for b in reflectance["band"].values),
        tuple(str(p) for p in reflectance["period"].values),
        options,
        encoder=encoder,
        held_out=flow.held_out,
        border_m=labels["border_m"] if options.border_m > 0 else None,
    )
