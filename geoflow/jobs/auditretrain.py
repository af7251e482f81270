"""Is it worth it? Models trained on labels as given and on cleaned ones, compared on the same patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import JobError
from geoflow.jobs.audit import Audit, Truth
from geoflow.jobs.console import Console
from geoflow.jobs.manymodels import Lesson, answers_of, lesson_task, load_array, run_models
from geoflow.labels.patchlabels import scheme_codes

FIXES = ("drop", "correct")
FIGURES = ("f1_micro", "f1_macro", "ap_macro", "exact")
"""What is compared, see `geoflow.learning.metrics.LabelMetrics`."""


def retrained(
    audit: Audit,
    folder: Path,
    seeds: Sequence[int],
    fix: str = "drop",
    truth: Truth | None = None,
    cluster: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train on the labels as given and on cleaned ones, each with the same seeds and validation patches, and compare.

    Only labels of training patches are cleaned. The models of the audit that suggest the changes have seen labels of
    validation patches, so the comparison is a little in favour of the cleaned labels.

    Parameters
    ----------
    audit : Audit
    folder : Path
    seeds : sequence of int
    fix : str
        ``drop``: patches with a suggestion are left out; ``correct``: suggestions are followed.
    truth : mapping, optional
        Then it is also measured against what is true.
    cluster, console
        See `geoflow.jobs.auditrun.audit_source`.

    Returns
    -------
    dict
        ``fix``, ``confidence``, ``changed`` (training patches), ``learned``, ``validated`` (patches), and by
        ``as_given`` and ``true`` (with a truth): for each figure means over the seeds on ``given`` and ``cleaned``
        labels, their ``difference`` and its standard ``error`` (None for one seed).
    """
    from geoflow.jobs.patchsource import source_of

    if fix not in FIXES:
        raise JobError(f"suspicious patches are dropped or corrected (drop, correct), not {fix!r}")
    subject = audit.subject
    parts = source_of(subject.store.path, subject.bands, subject.scheme, subject.split, subject.options)
    variants, changed = _variants(audit, parts.train, parts.held, parts.labels, fix)
    seeds_of = {seed: dataclasses.replace(subject.options, seed=subject.options.seed + seed) for seed in seeds}
    keys = {(name, seed): f"{subject.scheme}/{name}-seed{seed}" for name in variants for seed in seeds_of}
    tasks = [
        lesson_task(
            folder, keys[name, seed], subject.store, subject.bands, subject.scheme, seeds_of[seed], variants[name]
        )
        for name, seed in keys
    ]
    run_models(tasks, folder, "retrain", cluster, console)
    answers = {at: load_array(answers_of(folder, key)) for at, key in keys.items()}
    validated = np.isin(audit.places, parts.held)
    columns = [scheme_codes(subject.scheme).index(code) for code in audit.codes]
    report = {"fix": fix, "confidence": audit.options.confidence, "changed": changed, "seeds": list(seeds)}
    report |= {"learned": {name: len(lesson.train) for name, lesson in variants.items()}, "validated": len(parts.held)}
    against = {"as_given": audit.given} | ({} if truth is None else {"true": audit.true_labels(truth)})
    for name, labels in against.items():
        report[name] = _compared(answers, seeds, columns, labels[validated], audit.codes)
    return report


def _variants(
    audit: Audit, train: NDArray[np.intp], held: NDArray[np.intp], labels: NDArray[np.bool_], fix: str
) -> tuple[dict[str, Lesson], int]:
    """The lesson of the labels as given, the one of cleaned labels, and how many training patches differ."""
    found = audit.suggestions()
    learned = np.isin(audit.places, train)
    changed = audit.places[found.any & learned]
    cleaned, kept = labels.copy(), train
    if fix == "drop":
        kept = np.setdiff1d(train, changed)
    else:
        columns = np.array([scheme_codes(audit.subject.scheme).index(code) for code in audit.codes])
        cleaned[np.ix_(audit.places[learned], columns)] = found.applied(audit.given)[learned]
    return {"given": Lesson(train, held, labels), f"cleaned-{fix}": Lesson(kept, held, cleaned)}, len(changed)


def _compared(
    answers: Mapping[tuple[str, int], NDArray[Any]],
    seeds: Sequence[int],
    columns: Sequence[int],
    labels: NDArray[np.bool_],
    codes: tuple[int, ...],
) -> dict[str, Any]:
    from geoflow.learning.metrics import label_metrics

    of: dict[str, dict[str, list[float]]] = {}
    for (variant, _), answer in answers.items():
        said = np.nan_to_num(answer[:, columns])
        found = label_metrics(said > 0.5, labels, codes, said)
        for name in FIGURES:
            of.setdefault(variant.partition("-")[0], {}).setdefault(name, []).append(float(getattr(found, name)))
    table = {}
    for name in FIGURES:
        pairs = np.array(of["cleaned"][name]) - np.array(of["given"][name])
        error = float(pairs.std(ddof=1) / np.sqrt(len(pairs))) if len(seeds) > 1 else None
        table[name] = {variant: float(np.mean(values[name])) for variant, values in of.items()}
        table[name] |= {"difference": float(pairs.mean()), "error": error}  # type: ignore[dict-item]
    return table
