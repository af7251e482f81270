"""Auditing the labels of patches: models of folds judge what they did not learn from, and the worst are shown.

The audit's folder holds the lesson and the answers of each model with its receipt (`geoflow.jobs.manymodels`), so one
that was killed goes on where it was, and a second look with other thresholds trains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import JobError, LabelError
from geoflow.jobs.manymodels import Lesson, answers_of, lesson_task, load_array
from geoflow.jobs.tasks import Task
from geoflow.labels.patchdata import complete_store
from geoflow.labels.patchlabels import UNKNOWN, Label, multi_hot, scheme_codes, scheme_legend
from geoflow.learning.audit import (
    Suggestions,
    place_folds,
    random_folds,
    ranks,
    rings_around,
    suggest,
    surprise,
    suspicion,
    with_surroundings,
)
from geoflow.places import place

if TYPE_CHECKING:
    from geoflow.labels.patchstore import PatchStore
    from geoflow.learning.options import ClassifierOptions
    from geoflow.legends import Legend

PATCH_M = 1200.0
"""Edge of a patch of BigEarthNet."""

Truth = Mapping[str, tuple[int, ...]]
"""True CLC codes of patches by name; labels of patches that are not in it are right as given."""


@dataclass(frozen=True)
class AuditOptions:
    """How patches are audited.

    Parameters
    ----------
    folds, seeds : int
        Folds of the patches; nets of each fold, whose probabilities are averaged.
    seed : int
        Of the folds, and of the first net of each.
    by : str
        ``place``: folds of squares of land; ``random``: of patches.
    cell_m : float
        Edge of the squares.
    surroundings : bool
        Weigh what is given and seen in neighbouring patches; without, the image alone decides.
    confidence : float
        Least probability of a suggestion, above 0.5.
    """

    folds: int = 5
    seeds: int = 1
    seed: int = 0
    by: str = "place"
    cell_m: float = 4 * PATCH_M
    surroundings: bool = True
    confidence: float = 0.9

    def __post_init__(self) -> None:
        if self.by not in ("place", "random"):
            raise JobError(f"folds are by place or random, not {self.by!r}")
        if self.seeds < 1:
            raise JobError(f"seeds must be at least 1, not {self.seeds}")


@dataclass(frozen=True)
class Subject:
    """What is audited: a complete store of patches, and how classifiers learn from it.

    Parameters
    ----------
    store : PatchStore
    bands : tuple of str
    scheme : str
        Of the labels: ``level1``, ``level2``, ``level3`` or ``nineteen``.
    split : str, optional
        Which part is for validation when models are trained again on cleaned labels.
    options : ClassifierOptions
    default_folder : Path
        Where the audit goes if nothing else is said.
    """

    store: PatchStore
    bands: tuple[str, ...]
    scheme: str
    split: str | None
    options: ClassifierOptions
    default_folder: Path

    @property
    def legend(self) -> Legend:
        """The legend of the labels."""
        return scheme_legend(self.scheme)


def subject_of(source: str | Path, scheme: str | None = None, changed: Mapping[str, Any] | None = None) -> Subject:
    """What lies at a place: a store of patches, or the output of a finished run with a classifier.

    Parameters
    ----------
    source : path
    scheme : str, optional
        Labels; by default those that the run learned, level 3 of a store.
    changed : mapping, optional
        Training options in place of the run's, or of the defaults.

    Raises
    ------
    GeoflowError
        If there is neither, or an option is unknown.
    """
    from geoflow.jobs.flow import Flow
    from geoflow.jobs.jobfile import parse_job
    from geoflow.jobs.records import read_summary
    from geoflow.learning.options import ClassifierOptions

    path = place(source)
    if scheme is not None:
        scheme_codes(scheme)  # which refuses names that are none
    if (path / "zarr.json").exists():
        store = complete_store(path)
        folder, given = path.with_name(f"{path.stem}-audit"), ClassifierOptions()
        return Subject(store, store.bands, scheme or "level3", None, _options(given, changed), folder)
    flow = Flow(parse_job(read_summary(path)["config"]), path.absolute())
    section = flow.job.classifier
    if section is None:
        raise JobError(f"{path}: the job of this run has no classifier section, so it has no patches to audit")
    options = _options(flow.classifier_options, changed)
    scheme = scheme or section.labels
    split = section.split
    store = complete_store(flow.patch_store)
    return Subject(store, flow.section("imagery").bands, scheme, split, options, flow.out / "audit")


def _options(given: ClassifierOptions, changed: Mapping[str, Any] | None) -> ClassifierOptions:
    from geoflow.jobs.resolved import options_of

    return options_of(type(given), "option", {**asdict(given), **(changed or {})})


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found of the patches whose labels are known.

    Attributes
    ----------
    subject : Subject
    options : AuditOptions
    places : int array, dims (patch)
        Places in the store, ascending.
    codes : tuple of int
        Classes that occur.
    given : bool array, dims (patch, class)
    image, probability : float arrays, dims (patch, class)
        Out-of-fold probabilities by the image alone, and with the surroundings (or calibrated only).
    fold : int array, dims (patch)
    """

    subject: Subject
    options: AuditOptions
    places: NDArray[np.intp]
    codes: tuple[int, ...]
    given: NDArray[np.bool_]
    image: NDArray[np.float64]
    probability: NDArray[np.float64]
    fold: NDArray[np.intp]

    @property
    def loss(self) -> NDArray[np.float64]:
        """Surprise at each label; dims (patch, class)."""
        return surprise(self.probability, self.given)

    @property
    def score(self) -> NDArray[np.float64]:
        """How suspicious each patch is."""
        return suspicion(self.loss, self.given)

    @property
    def rank(self) -> NDArray[np.intp]:
        """1 for the most suspicious."""
        return ranks(self.score)

    def suggestions(self, confidence: float | None = None) -> Suggestions:
        """What to change; by default with the confidence of the options."""
        return suggest(self.probability, self.given, confidence or self.options.confidence)

    def facts(self, name: str) -> NDArray[Any]:
        """A small variable of the store, of the audited patches."""
        return self.subject.store.facts(name)[self.places]

    def true_labels(self, truth: Truth) -> NDArray[np.bool_]:
        """What is right: that of ``truth`` where it names the patch, else what is given.

        Raises
        ------
        LabelError
            If no patch of it is in the store.
        """
        names = self.facts("name")
        at = [i for i, name in enumerate(names.tolist()) if name in truth]
        if not at:
            raise LabelError("the truth names no patch that is audited; its names are those of the patches' folders")
        scheme = self.subject.scheme
        columns = [scheme_codes(scheme).index(code) for code in self.codes]
        rows = multi_hot([Label(truth[names[i]]) for i in at])[scheme]
        true = self.given.copy()
        true[at] = rows[:, columns] == 1
        return true


def audit_tasks(subject: Subject, folder: Path, options: AuditOptions) -> list[Task]:
    """The models that an audit needs, as tasks for `geoflow.jobs.manymodels.run_models`: one a fold and seed.

    Parameters
    ----------
    subject : Subject
        From `subject_of`.
    folder : Path
        The audit's own: lessons, answers, receipts.
    options : AuditOptions

    Raises
    ------
    LabelError
        If no labels are known, or there are too few patches for the folds.
    """
    labels, places = _known(subject)
    fold = _folds(subject, places, options)
    # With keep: best the patches that are judged would choose the weights of their judge.
    plain = dataclasses.replace(subject.options, keep="last", patience=0)
    tasks = []
    for (number, seed), key in fold_keys(subject.scheme, options).items():
        lesson = Lesson(places[fold != number], places[fold == number], labels)
        trained = dataclasses.replace(plain, seed=plain.seed + options.seed + seed)
        tasks.append(lesson_task(folder, key, subject.store, subject.bands, subject.scheme, trained, lesson))
    return tasks


def judge(subject: Subject, folder: Path, options: AuditOptions) -> Audit:
    """What the models of `audit_tasks`, once they are trained, say of the patches that they did not learn from."""
    labels, places = _known(subject)
    fold = _folds(subject, places, options)
    present = np.flatnonzero(labels[places].any(axis=0))
    image = np.zeros((len(places), len(present)))
    for (number, _), key in fold_keys(subject.scheme, options).items():
        # A class of no patch that a net saw is none that it could have expected.
        image[fold == number] += np.nan_to_num(load_array(answers_of(folder, key))[:, present]) / options.seeds
    given = labels[places][:, present]
    rings = rings_around(*_corners(subject, places), PATCH_M) if options.surroundings else ()
    probability = with_surroundings(image, given, rings, fold, options.seed)
    codes = tuple(scheme_codes(subject.scheme)[i] for i in present)
    return Audit(subject, options, places, codes, given, image, probability, fold)


def _known(subject: Subject) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """The labels of all places of the store, and the places where they are told."""
    labels = subject.store.facts(f"label_{subject.scheme}")
    places = np.flatnonzero((subject.store.facts("valid") == 1) & ~(labels == UNKNOWN).any(axis=1))
    if not len(places):
        raise LabelError(f"{subject.store.path}: no patch tells its labels of {subject.scheme}; audit another scheme")
    return labels == 1, places


def _folds(subject: Subject, places: NDArray[np.intp], options: AuditOptions) -> NDArray[np.intp]:
    if options.by == "random":
        return random_folds(len(places), options.folds, options.seed)
    return place_folds(*_corners(subject, places), options.folds, options.seed, options.cell_m)


def _corners(
    subject: Subject, places: NDArray[np.intp]
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """CRS (EPSG code) and upper left corner of patches."""
    epsg, left, top = (subject.store.facts(name)[places] for name in ("epsg", "left", "top"))
    return epsg, left, top


def fold_keys(scheme: str, options: AuditOptions) -> dict[tuple[int, int], str]:
    """Key of the model of each fold and seed."""
    pairs = ((fold, seed) for fold in range(options.folds) for seed in range(options.seeds))
    return {(fold, seed): f"{scheme}/fold{fold}-seed{options.seed + seed}" for fold, seed in pairs}


def read_truth(path: Path) -> dict[str, tuple[int, ...]]:
    """True labels from a CSV with the columns ``patch`` and ``true`` (CLC codes, separated by spaces).

    Raises
    ------
    LabelError
        If there is no such file, a column is missing or a code is none of CLC.
    """
    import csv

    from geoflow.legends import legend

    known = set(legend("corine").codes())
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = {row["patch"]: tuple(int(code) for code in row["true"].split()) for row in csv.DictReader(file)}
    except OSError as problem:
        raise LabelError(f"--truth {path} cannot be read: {problem.strerror}") from None
    except KeyError as missing:
        raise LabelError(f"--truth {path}: has no column {missing}; it needs patch and true") from None
    except (ValueError, AttributeError) as problem:
        raise LabelError(f"--truth {path}: codes are whole numbers, separated by spaces ({problem})") from None
    if strange := sorted({code for codes in found.values() for code in codes} - known):
        raise LabelError(f"--truth {path}: {strange[0]} is no CLC code of level 3")
    return found
