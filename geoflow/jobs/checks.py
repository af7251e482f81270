"""What can be wrong with a job, found before any work starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from geoflow.errors import GeoflowError, JobError, StoreError
from geoflow.jobs.estimate import bytes_to_write
from geoflow.jobs.jobfile import check_inputs_exist
from geoflow.jobs.scenediff import tell_changes
from geoflow.jobs.zonework import Zones
from geoflow.places import failures, is_remote, local_copy, remove, write_bytes

if TYPE_CHECKING:
    from geoflow.jobs.console import Console
    from geoflow.jobs.flow import Flow
    from geoflow.learning.options import ClassifierOptions, SegmenterOptions


def check_job(flow: Flow, console: Console) -> None:
    """Check everything that can be checked without computing a pixel.

    Raises
    ------
    GeoflowError
        Naming the key, the value and what is accepted.
    """
    check_inputs_exist(flow.job)
    for check in checks_of(flow, console):
        check.look()
    check_writable(flow.out)
    _check_repository(flow, ask=True)
    if flow.job.imagery is not None:
        _ = flow.composite_options
        with console.waiting("searching for scenes"):
            _ = flow.scenes
        tell_changes(flow.scenes, console)
    _ = flow.store
    check_disk(flow)


@dataclass(frozen=True)
class Check:
    """Something to look at before any work, with no network and without writing anything.

    Parameters
    ----------
    key : str
        Where in the job a complaint of it belongs.
    needs : tuple of str
        Sections or keys that must be in order before it makes sense.
    look : callable
        Raises a `GeoflowError` if it is not in order.
    """

    key: str
    needs: tuple[str, ...]
    look: Callable[[], None]


def checks_of(flow: Flow, console: Console) -> list[Check]:
    """What can be looked at in this job, in the order in which it makes sense."""
    job, found = flow.job, [Check("area", ("area", "grid"), lambda: _check_tiles(flow))]
    if job.imagery is not None:
        found.append(Check("imagery.catalog", ("imagery.catalog", "imagery.url"), lambda: _check_catalog(flow)))
        found.append(Check("imagery", ("imagery",), lambda: _check_options(flow)))
    if job.labels is not None:
        found.append(Check("labels.legend", ("labels.legend",), lambda: _check_legend(flow)))
        found.append(Check("labels.source", ("labels", "area"), lambda: _check_labels(flow)))
    if flow.change_layer is not None:
        found.append(
            Check("evaluate.change_truth", ("evaluate", "area", "labels.legend"), lambda: _check_change_layer(flow))
        )
    if job.classifier is not None:
        found.append(Check("classifier", ("classifier",), lambda: _check_patches(flow, console)))
    if job.train is not None:
        found.append(Check("train.options", ("train", "classifier.options"), lambda: _check_net(flow)))
    if job.predict is not None and job.predict.model is not None:
        found.append(Check("predict.model", ("predict", "imagery"), lambda: _check_model(flow)))
    if job.change is not None:
        found.append(Check("change.method", ("change", "imagery", "predict"), lambda: _check_method(flow)))
    for name in ("change", "publish"):
        section = getattr(job, name)
        if section is not None and section.zones is not None:
            zones = Zones(name, section.zones, section.zone_column)
            needs = (f"{name}.zones", f"{name}.zone_column", "area", "grid")
            found.append(Check(needs[0], needs, partial(_check_zones, flow, zones)))
    if job.publish is not None and job.publish.icechunk is not None:
        found.append(Check("publish.icechunk", ("publish.icechunk",), lambda: _check_repository(flow)))
    return found


def _check_repository(flow: Flow, ask: bool = False) -> None:
    """Of a repository in an object store only with ``ask``."""
    from geoflow.store.repository import check_holds_nothing_else, check_repository

    path = None if flow.job.publish is None else flow.job.publish.icechunk
    if path is None:
        return
    try:
        check_repository(path, flow.out)
        if ask and is_remote(path):
            _check_bucket(path, "publish.icechunk")
            check_holds_nothing_else(path)
    except StoreError as error:
        raise JobError(f"publish.icechunk: {error}") from None


def _check_zones(flow: Flow, zones: Zones) -> None:
    zones.on(flow.grid.geobox)


def _check_tiles(flow: Flow) -> None:
    if not flow.tiles:
        raise JobError(f"area: no tile of the grid meets it; its bounds are {tuple(flow.area.boundingbox)}")


def _check_catalog(flow: Flow) -> None:
    try:
        _ = flow.catalog
    except GeoflowError as error:
        raise JobError(f"imagery.catalog: {error}") from error


def _check_options(flow: Flow) -> None:
    _ = flow.composite_options


def _check_method(flow: Flow) -> None:
    _ = flow.joint_change


def _check_legend(flow: Flow) -> None:
    try:
        _ = flow.legend
    except GeoflowError as error:
        raise JobError(f"labels.legend: {error}") from error


def _check_patches(flow: Flow, console: Console) -> None:
    _check_weights("classifier.options", flow.classifier_options)
    with console.waiting("listing patches"):
        _ = flow.patch_id


def _check_labels(flow: Flow) -> None:
    from geoflow.labels import check_labels

    section = flow.job.labels
    if section is None:
        return
    try:
        check_labels(local_copy(section.source), flow.area, flow.legend, section.column)
    except GeoflowError as error:
        raise JobError(f"labels: {error}") from error


def _check_change_layer(flow: Flow) -> None:
    from geoflow.labels import check_changes

    layer = flow.change_layer
    if layer is None:
        return
    try:
        check_changes(local_copy(layer.path), flow.area, layer.legend, layer.columns)
    except GeoflowError as error:
        raise JobError(f"evaluate.change_truth: {error}") from error


def _check_weights(key: str, options: ClassifierOptions | SegmenterOptions) -> None:
    """The weights that training starts from are here: nothing is downloaded later."""
    from geoflow.weightsources import find_weights

    if options.weights is None:
        return
    try:
        find_weights(options.weights, options.encoder, options.weights_pickle)
    except GeoflowError as error:
        raise JobError(f"{key}.weights: {error}") from error


def _check_net(flow: Flow) -> None:
    """The net that is to be trained can be built. Torch and its like take ten seconds of a core to load: they are asked
    only for names that are not known without them, and not again once it is trained."""
    from geoflow.learning.options import WELL_KNOWN_ENCODERS, SegmenterOptions

    options = flow.segmenter_options
    _check_weights("train.options", options)
    if flow.receipts.read("train", "model") is not None:
        return
    if options.architecture == SegmenterOptions.architecture and options.encoder in WELL_KNOWN_ENCODERS:
        return
    from geoflow import nets

    try:
        pretrained = flow.job.classifier is not None or options.weights is not None
        nets.check_names(options.architecture, options.encoder, pretrained)
    except GeoflowError as error:
        raise JobError(f"train.options: {error}") from error


def _check_model(flow: Flow) -> None:
    """The given model fits the job's imagery."""
    from geoflow.modelfile import load_model

    imagery = flow.job.imagery
    if imagery is None:
        return
    card = load_model(flow.model_folder).card
    for what, wanted, held in (
        ("bands", card.inputs.bands, imagery.bands),
        ("periods", card.inputs.periods, imagery.periods),
    ):
        if missing := [w for w in wanted if w not in held]:
            raise JobError(
                f"predict.model: {flow.model_folder} reads the {what} {', '.join(wanted)}; imagery lacks "
                f"{', '.join(missing)} (it has {', '.join(held)})"
            )


def check_writable(folder: Path) -> None:
    """The output folder can be made and written.

    Raises
    ------
    JobError
        If not, saying which folder and why.
    """
    if is_remote(folder):
        _check_bucket(folder)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"--out {folder}: the folder cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise JobError(f"--out {folder}: no permission to write there")


def _check_bucket(folder: Path, key: str = "--out") -> None:
    probe = folder / ".geoflow-can-write"
    try:
        write_bytes(probe, b"")
        remove(probe)
    except failures() as error:
        told = " ".join(str(error).split())
        raise JobError(f"{key} {folder}: cannot be written to: {told}; is the bucket there, and yours?") from None


def check_disk(flow: Flow) -> None:
    if is_remote(flow.out):
        return
    wanted = bytes_to_write(flow)
    free = free_bytes(flow.out)
    if wanted > free:
        raise JobError(
            f"--out {flow.out}: the store may grow to {wanted / 1e9:,.1f} GB, but only {free / 1e9:,.1f} GB are free"
        )


def free_bytes(folder: Path) -> int:
    """Bytes free where a folder is or will be."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return shutil.disk_usage(there).free
