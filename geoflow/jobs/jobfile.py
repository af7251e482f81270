"""The job file: read, completed and checked, before any work.

A job is a YAML file whose sections are the stages of the flow (`geoflow.jobs.spec`). Any subset of them is a job, as
long as what a section needs is in the job or already in the output. Relative paths are relative to the job file;
``${NAME}`` is replaced by that environment variable. A relative path in a variable is one from where the command is
given, as in any shell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from geoflow.errors import JobError
from geoflow.jobs.datasources import where_from
from geoflow.jobs.spec import Job
from geoflow.places import SCHEME, failures, is_remote, place
from geoflow.redact import names_secret

EVALUATION_ONLY = "EVALUATION_ONLY"
"""A folder with a file of this name holds a truth: no section but ``evaluate`` may read from it."""

_CONNECTION = re.compile(r"[A-Za-z][A-Za-z0-9_+]+:(?!\\)")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read and check a job file.

    Parameters
    ----------
    path : str or Path
        The YAML file.
    overrides : sequence of str
        ``"grid.tile=1024"``: replaces a value; the right side is YAML.

    Raises
    ------
    JobError
        Naming the key, the value and what is accepted.
    """
    file = Path(path)
    values = read_values(file, read_job_text(file), overrides)
    job = resolve_paths(parse_job(_expand(values, file.name), file.name), file.resolve().parent)
    for problem in path_problems(job, file.resolve().parent):
        raise problem
    return job


def read_job_text(file: Path) -> str:
    """The text of a job file.

    Raises
    ------
    JobError
        If there is none, or it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise JobError(f"there is no job file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{file} cannot be read: {error}") from None


def read_values(file: Path, text: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a job's text, with some replaced; see `load_job`."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"{file} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise JobError(f"{file} is not a job: it should hold sections such as area, grid, imagery")
    for override in overrides:
        _apply_override(values, override)
    return values


def parse_job(values: Mapping[str, Any], source: str = "job") -> Job:
    """Check plain values as a job; see `load_job`."""
    try:
        return Job.model_validate(with_text_keys(values))
    except ValidationError as error:
        raise JobError(_explain(error, source)) from None


def with_text_keys(value: Any) -> Any:
    """YAML reads a bare ``2018:`` as a number; names are text."""
    if isinstance(value, Mapping):
        return {str(k): with_text_keys(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_text_keys(v) for v in value]
    return value


def _explain(error: ValidationError, source: str) -> str:
    """One line for each thing that is wrong: key, value, what is accepted."""
    return "\n".join(told for _, told in explained(error, source))


def explained(error: ValidationError, source: str) -> list[tuple[tuple[int | str, ...], str]]:
    """(place, sentence) of each thing that is wrong; the sentence starts with the key."""
    lines = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"]) or source
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"unknown key; accepted here: {', '.join(_accepted_keys(detail['loc'][:-1]))}"
        elif detail["type"] == "missing":
            message = "is missing"
        elif detail["type"] != "value_error":
            message = f"{message}, not {detail['input']!r}"
        named = message.startswith(f"{key}:") or not detail["loc"]
        lines.append((detail["loc"], message if named else f"{key}: {message}"))
    return lines


def _accepted_keys(location: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = Job
    for part in location:
        if str(part) not in model.model_fields:
            continue  # a name that the user chose, within a mapping
        annotation = model.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        nested = [a for a in options if isinstance(a, type) and issubclass(a, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise JobError(f"--set {override!r}: write key=value, for example --set grid.tile=1024")
    node = values
    *parents, last = key.split(".")
    for part in parents:
        found = _same_key(node, part)
        child = node.setdefault(found, {})
        if not isinstance(child, dict):
            raise JobError(f"--set {key}: {part} is {child!r}, not a section")
        node = child
    try:
        node[_same_key(node, last)] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"--set {key}: {text!r} is not a value: {error}") from None


def _same_key(node: Mapping[Any, Any], part: str) -> Any:
    """The key of ``node`` that reads like ``part``: YAML may hold 2018 as a number."""
    return next((k for k in node if str(k) == part), part)


def unset_variables(value: Any, source: str, place: tuple[int | str, ...] = ()) -> Iterator[tuple[Any, str]]:
    """(place, sentence) of each text whose variables cannot be replaced."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unset_variables(one, source, (*place, key))
        return
    try:
        _expand(value, source)
    except JobError as error:
        yield place, str(error)


def expand(value: Any, source: str) -> Any:
    """Replace ``${NAME}`` by environment variables, wherever that can be done."""
    if isinstance(value, dict):
        return {k: expand(v, source) for k, v in value.items()}
    if isinstance(value, list):
        return [expand(v, source) for v in value]
    try:
        return _expand(value, source)
    except JobError:
        return value


def _expand(value: Any, source: str) -> Any:
    """Replace ``${NAME}`` by environment variables, everywhere in the job."""
    if isinstance(value, dict):
        return {k: _expand(v, source) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, source) for v in value]
    if isinstance(value, str):
        for name in _VARIABLE.findall(value):
            if names_secret(name):
                raise JobError(
                    f"{source} uses ${{{name}}}, which looks like a secret: a job is written into receipts and "
                    "reports. What reads your data takes secrets from the environment by itself"
                )
            if name not in os.environ:
                raise JobError(f"{source} uses ${{{name}}}, but the environment variable {name} is not set")
        return _VARIABLE.sub(lambda match: _from_environment(match[1]), value)
    return value


def _from_environment(name: str) -> str:
    value = os.environ[name]
    # A path, not a word that happens to be the name of a folder.
    return os.path.abspath(value) if "/" in value and Path(value).exists() else value


def resolve_paths(job: Job, folder: Path) -> Job:
    """Make relative paths relative to the folder of the job file."""

    def resolve(section: Any) -> Any:
        if isinstance(section, BaseModel):
            changed = {name: resolve(getattr(section, name)) for name in type(section).model_fields}
            return section.model_copy(update=changed)
        if isinstance(section, Path):
            return section if section.is_absolute() else Path(os.path.normpath(folder / section))
        if isinstance(section, tuple):
            return tuple(resolve(v) for v in section)
        if isinstance(section, dict):
            return {k: resolve(v) for k, v in section.items()}
        return section

    resolved: Job = resolve(job)
    if resolved.imagery and resolved.imagery.url:
        resolved = _with_imagery(resolved, url=_local_or_url(resolved.imagery.url, folder))
    if resolved.imagery and "/" in resolved.imagery.catalog:
        resolved = _with_imagery(resolved, catalog=_local_or_url(resolved.imagery.catalog, folder))
    if resolved.labels and "/" in resolved.labels.legend:
        legend = _local_or_url(resolved.labels.legend, folder)
        resolved = resolved.model_copy(update={"labels": resolved.labels.model_copy(update={"legend": legend})})
    return resolved


def path_problems(job: Job, folder: Path) -> Iterator[JobError]:
    """What is wrong with the paths themselves; truth is kept out of everything but ``evaluate``."""
    for key, path in input_paths(job):
        if is_remote(path):  # its server is asked when the job is checked
            continue
        try:
            _refuse_connection(key, path, folder)
            if not key.startswith("evaluate"):
                _refuse_truth(key, path)
        except JobError as error:
            yield error


def _refuse_connection(key: str, path: Path, folder: Path) -> None:
    """A job names files: what GDAL would take for an archive, a server or a database has no place in it."""
    text = os.path.relpath(path, folder)
    if str(path).startswith("/vsi") or _CONNECTION.match(text):
        shown = path if str(path).startswith("/vsi") else text
        raise JobError(f"{key}: {shown} is not a file, but a connection string of GDAL; unpack or download it first")


def _with_imagery(job: Job, **changes: Any) -> Job:
    if job.imagery is None:
        return job
    return job.model_copy(update={"imagery": job.imagery.model_copy(update=changes)})


def _local_or_url(text: str, folder: Path) -> str:
    return text if "://" in text else os.path.normpath(folder / text)


def input_paths(job: Job) -> list[tuple[str, Path]]:
    """All files and folders that the job reads, with the key that names each."""
    found: list[tuple[str, Path | str | None]] = [("area.file", job.area.file)]
    found += [("area.geojson", job.area.geojson if isinstance(job.area.geojson, Path) else None)]
    if job.imagery:
        found += [("imagery.url", job.imagery.url), ("imagery.cloud_weights", job.imagery.cloud_weights)]
        found += [("imagery.catalog", job.imagery.catalog if "/" in job.imagery.catalog else None)]
    if job.labels:
        found += [("labels.source", job.labels.source)]
        found += [("labels.legend", job.labels.legend if "/" in job.labels.legend else None)]
    if job.classifier:
        found += [("classifier.source", job.classifier.source)]
        found += [(f"classifier.exclude.{i}", path) for i, path in enumerate(job.classifier.exclude)]
        found += [(f"classifier.metadata.{i}", path) for i, path in enumerate(job.classifier.metadata)]
        found += [("classifier.split_file", job.classifier.split_file)]
    if job.predict:
        found += [("predict.model", job.predict.model)]
    if job.change:
        found += [("change.zones", job.change.zones)]
    if job.publish:
        found += [("publish.zones", job.publish.zones)]
    if job.evaluate:
        found += [(f"evaluate.truth.{epoch}", path) for epoch, path in job.evaluate.truth.items()]
        found += [("evaluate.change_truth", job.evaluate.change_truth)]
    named = ((key, str(path)) for key, path in found if path is not None)
    files = ((key, path.partition("|layername=")[0]) for key, path in named)
    return [(key, place(path)) for key, path in files if "://" not in path or path.startswith(SCHEME)]


def check_inputs_exist(job: Job) -> None:
    """Every file and folder that the job names is there.

    Raises
    ------
    JobError
        Naming the first that is not.
    """
    for problem in missing_inputs(job):
        raise problem


def missing_inputs(job: Job, remote: bool = True) -> Iterator[JobError]:
    """What is wrong with each file and folder that the job names; ``remote``: whether servers are asked, too."""
    for key, path in input_paths(job):
        if is_remote(path) and not remote:
            continue
        try:
            there = path.exists()
        except failures() as error:
            yield JobError(f"{key}: {path} cannot be reached: {' '.join(str(error).split())}")
            continue
        if not there:
            source = where_from(key, job)
            yield JobError(f"{key}: there is no {path}{f'; {source}' if source else ''}")
        elif is_remote(path) and not key.startswith("evaluate"):
            try:
                _refuse_truth(key, path)
            except JobError as error:
                yield error


def _refuse_truth(key: str, path: Path) -> None:
    folders = [path, *path.parents]
    if any((folder / EVALUATION_ONLY).exists() for folder in folders):
        raise JobError(f"{key}: {path} is a truth for evaluation only; no other section may read it")
