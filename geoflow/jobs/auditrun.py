"""An audit from beginning to end: of one or several schemes of labels, with all that is written of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geoflow.errors import GeoflowError
from geoflow.jobs.audit import AuditOptions, Truth, audit_tasks, judge, subject_of
from geoflow.jobs.auditpage import write_audit
from geoflow.jobs.auditretrain import retrained
from geoflow.jobs.console import Console
from geoflow.jobs.manymodels import run_models
from geoflow.places import make_folder, place


def audit_source(
    source: str | Path,
    to: str | Path | None = None,
    schemes: Sequence[str] = (),
    options: AuditOptions | None = None,
    changed: Mapping[str, Any] | None = None,
    worst: int = 60,
    truth: Truth | None = None,
    retrain: Sequence[int] = (),
    fix: str = "drop",
    cluster: str | None = None,
    console: Console | None = None,
) -> dict[Path, dict[str, Any]]:
    """Audit a store of patches or the patches of a run, and write what was found.

    Parameters
    ----------
    source : path
        See `geoflow.jobs.audit.subject_of`.
    to : path, optional
        The audit's folder; ``OUT/audit``, or ``<store>-audit`` beside a store.
    schemes : sequence of str
        Labels to audit; by default those of the run. The models of all are trained at once; of several, each is written
        into a folder of its name.
    options : AuditOptions, optional
    changed : mapping, optional
        Training options in place of the run's, or of the defaults.
    worst : int
        Patches on the page.
    truth : mapping, optional
        See `geoflow.jobs.audit.read_truth`.
    retrain : sequence of int
        Seeds to train with again, on given and cleaned labels; none by default.
    fix : str
        See `geoflow.jobs.auditretrain.retrained`.
    cluster : str, optional
        See `geoflow.jobs.clusters.where`; it must see source and folder under the same paths.
    console : Console, optional

    Returns
    -------
    dict of folder -> summary
        One entry a scheme; summaries as in ``audit.json``.

    Raises
    ------
    GeoflowError
        If there is nothing to audit there, an option is wrong, or a model failed.
    """
    options = options or AuditOptions()
    subjects = [subject_of(source, scheme, changed) for scheme in (schemes or (None,))]
    folder = place(to) if to is not None else subjects[0].default_folder
    try:
        make_folder(folder)
    except OSError as problem:
        raise GeoflowError(f"--to {folder} cannot be written: {problem.strerror}") from None
    tasks = [task for subject in subjects for task in audit_tasks(subject, folder, options)]
    run_models(tasks, folder, "audit", cluster, console)
    found = {}
    for subject in subjects:
        audit = judge(subject, folder, options)
        again = retrained(audit, folder, retrain, fix, truth, cluster, console) if retrain else None
        own = folder / subject.scheme if len(subjects) > 1 else folder
        found[own] = write_audit(audit, own, worst, truth, again)
    return found
