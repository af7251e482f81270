"""The job file: what to make. Every value is checked here, before any work.

A job is a YAML file whose sections are the stages of the flow. Any subset of them is a job, as long as what a section
needs is in the job or already in the output. Relative paths are relative to the job file; ``${NAME}`` is replaced by
that environment variable. A relative path in a variable is one from where the command is given, as in any shell.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from geoflow.errors import JobError
from geoflow.inputs import BANDS

EVALUATION_ONLY = "EVALUATION_ONLY"
"""A folder with a file of this name holds a truth: no section but ``evaluate`` may read from it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a name; use letters, digits, '_', '-' and '.'")
    return value


Name = Annotated[str, AfterValidator(_check_name)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Area(Section):
    """Where: a vector file or a bounding box in degrees."""

    file: Path | None = Field(None, description="vector file with the border (any CRS)")
    layer: str | None = Field(None, description="layer of the file; needed only if it has several")
    where: str | None = Field(None, description="filter on attributes, for example \"NAME = 'Estonia'\"")
    bbox: tuple[float, float, float, float] | None = Field(None, description="west, south, east, north in degrees")

    @model_validator(mode="after")
    def _one_of(self) -> Area:
        if (self.file is None) == (self.bbox is None):
            raise ValueError("give either file or bbox")
        if self.bbox is not None:
            west, south, east, north = self.bbox
            if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
                raise ValueError(f"bbox {list(self.bbox)} must be west < east, south < north in degrees")
        return self


class GridSection(Section):
    """The national raster."""

    crs: str = Field(description="projected CRS, for example EPSG:3035")
    resolution_m: float = Field(10.0, gt=0, description="edge of a pixel in metres")
    tile: int = Field(2048, gt=0, description="edge of a tile in pixels: the unit of work")
    chunk: int = Field(512, gt=0, description="edge of a Zarr chunk in pixels; tile is a multiple of it")

    @model_validator(mode="after")
    def _tile_of_chunks(self) -> GridSection:
        if self.tile % self.chunk:
            near = max(1, round(self.tile / self.chunk)) * self.chunk
            raise ValueError(f"tile {self.tile} is not a multiple of chunk {self.chunk}; use tile {near}")
        return self

    @field_validator("crs")
    @classmethod
    def _projected(cls, value: str) -> str:
        from odc.geo.crs import CRS

        try:
            crs = CRS(value)
        except Exception as error:  # noqa: BLE001  (pyproj and odc-geo raise several kinds)
            raise ValueError(f"{value!r} is not a CRS: {error}") from None
        if not crs.projected:
            raise ValueError(f"{value} is in degrees; areas need a projected CRS in metres, such as EPSG:3035")
        return value


class DateRange(Section):
    """A span of days, both ends included; written ``2018-04-15/2018-06-15``."""

    start: dt.date
    end: dt.date

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            start, slash, end = value.partition("/")
            if not slash:
                raise ValueError(f"{value!r} is not a date range; write 2018-04-15/2018-06-15")
            return {"start": start.strip(), "end": end.strip()}
        return value

    @model_validator(mode="after")
    def _forward(self) -> DateRange:
        if self.end < self.start:
            raise ValueError(f"the range ends ({self.end}) before it starts ({self.start})")
        return self


class Imagery(Section):
    """Which scenes, and how they become one composite per period."""

    catalog: str = Field(description="name of a file in catalogs/, or a path to one")
    url: str | None = Field(None, description="another address for that catalog, for example a local copy")
    bands: tuple[str, ...] = Field(("B02", "B03", "B04"), min_length=1, description="Sentinel-2 bands, B01..B12")
    epochs: dict[Name, dict[Name, DateRange]] = Field(min_length=1, description="epoch -> period -> dates")
    max_cloud_percent: float = Field(60.0, ge=0, le=100, description="scenes that claim more cloud are not read")
    mask_scl: tuple[int, ...] = Field((0, 1, 3, 8, 9, 10), description="SCL classes that are not used")
    mask_dilate_m: float = Field(60.0, ge=0, description="margin around clouds and shadows, in metres")
    mask_speck_m: float = Field(
        50.0, ge=0, description="clouds and shadows narrower than this get no margin: mostly roofs and rivers"
    )
    composite: Literal["median"] = Field("median", description="how clear observations become one value")
    loader: Literal["stackstac", "odc-stac"] = Field("stackstac", description="which library reads the scenes")

    @field_validator("bands")
    @classmethod
    def _known_bands(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [b for b in value if b not in BANDS]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is not a Sentinel-2 L2A band; there are {', '.join(BANDS)}")
        if len(set(value)) < len(value):
            raise ValueError(f"a band is named twice in {list(value)}")
        return value

    @model_validator(mode="after")
    def _same_periods(self) -> Imagery:
        names = {epoch: tuple(periods) for epoch, periods in self.epochs.items()}
        if any(not p for p in names.values()):
            raise ValueError("every epoch needs at least one period of dates")
        if len(set(names.values())) > 1:
            raise ValueError(f"all epochs need the same periods in the same order, since one model reads them: {names}")
        return self

    @property
    def periods(self) -> tuple[str, ...]:
        """Names of the periods, in the order of the composite."""
        return tuple(next(iter(self.epochs.values())))


class Labels(Section):
    """What the segmentation learns from."""

    name: Name = Field("labels", description="group in the store: labels/<name>")
    source: Path = Field(description="vector or raster file")
    legend: str = Field("corine", description="corine, or a path to a CSV (code, name, colour)")
    column: str | None = Field(None, description="column of codes in a vector file; found by itself if possible")
    epoch: Name = Field(description="the epoch of imagery that the labels describe")


class Classifier(Section):
    """The patch classifier that becomes the encoder (BigEarthNet)."""

    source: Path = Field(description="folder of patches, as BigEarthNet v1 is published")
    exclude: tuple[Path, ...] = Field((), description="lists of patches to leave out (cloud, shadow, snow)")
    options: dict[str, Any] = Field(default_factory=dict, description="training options, see below")


class Train(Section):
    """The segmentation net."""

    held_out_block_px: int = Field(256, gt=0, description="edge of the blocks that are held out, in pixels")
    held_out_share: float = Field(0.2, ge=0, lt=1, description="share of blocks never learned from")
    options: dict[str, Any] = Field(default_factory=dict, description="training options, see below")


class Predict(Section):
    """The maps."""

    model: Path | None = Field(None, description="a trained model folder, instead of training one")
    epochs: tuple[Name, ...] | None = Field(None, min_length=1, description="which epochs; all by default")
    engine: Literal[
        "auto", "torch", "openvino", "torch-fp32", "torch-bf16", "torch-fp16", "openvino-fp32", "openvino-bf16"
    ] = Field(
        "auto",
        description="what runs the net; any but `torch-fp32` is first compared with it on the job's own imagery, and "
        "used only where 99.9 % of the pixels get the same class",
    )
    probabilities: bool | None = Field(
        None,
        description="also keep the probabilities of all classes, a byte each, for change, relabelling and time series; "
        "by default where the change section needs them",
    )


class Change(Section):
    """Change between two epochs."""

    before: Name = Field(alias="from", description="the earlier epoch")
    after: Name = Field(alias="to", description="the later epoch")
    method: Literal["auto", "joint", "post-classification"] = Field(
        "auto",
        description="`joint`: the scenes and the class probabilities of both epochs, weighed together; "
        "`post-classification`: classes differ; `auto`: joint where the job has imagery of both epochs",
    )
    min_confidence: int = Field(
        70, ge=0, le=100, description="least probability of a change; of both maps being right, for post-classification"
    )
    transitions: dict[str, float] = Field(
        default_factory=dict,
        description="weights of single transitions, 1 where not named, codes of any level: `{5-1: 0, 312-324: 3}`",
    )
    mmu_ha: float = Field(0.5, ge=0, description="smaller patches of change are dropped, in hectares")

    @model_validator(mode="after")
    def _two_epochs(self) -> Change:
        if self.before == self.after:
            raise ValueError(f"from and to are both {self.before!r}")
        return self


class Evaluate(Section):
    """How good it is, where the truth is known."""

    truth: dict[Name, Path] = Field(min_length=1, description="epoch -> raster of class codes")


class Publish(Section):
    """What people look at."""

    title: str = Field("Land cover", description="headline of the maps and the report")
    attribution: str = Field("", description="line under the maps; the catalog's own is added")


class Job(Section):
    """A whole job file."""

    name: Name = Field(description="names the output folder, out/<name>")
    area: Area
    grid: GridSection
    imagery: Imagery | None = None
    labels: Labels | None = None
    classifier: Classifier | None = None
    train: Train | None = None
    predict: Predict | None = None
    change: Change | None = None
    evaluate: Evaluate | None = None
    publish: Publish | None = None
    seed: int = Field(0, ge=0, description="seed of everything random")

    @model_validator(mode="after")
    def _sections_fit(self) -> Job:
        epochs = () if self.imagery is None else tuple(self.imagery.epochs)
        if self.train and (self.imagery is None or self.labels is None):
            raise ValueError("train: learns from imagery and labels; both sections must be in the job")
        if self.classifier and self.imagery is None:
            raise ValueError("classifier: takes its bands from imagery; that section must be in the job")
        if self.predict:
            if self.imagery is None:
                raise ValueError("predict: maps the composites of imagery; that section must be in the job")
            if (self.predict.model is None) == (self.train is None):
                raise ValueError("predict: needs either a train section or predict.model, a trained model folder")
        self._check_epoch("labels.epoch", [] if self.labels is None else [self.labels.epoch], epochs)
        self._check_epoch("predict.epochs", (self.predict and self.predict.epochs) or [], epochs)
        if self.change and self.predict:
            self._check_epoch("change", [self.change.before, self.change.after], self.mapped_epochs)
        if self.evaluate:
            if self.predict is None:
                raise ValueError("evaluate: compares maps with a truth; a predict section must be in the job")
            self._check_epoch("evaluate.truth", list(self.evaluate.truth), self.mapped_epochs)
        return self

    def _check_epoch(self, key: str, names: Sequence[str], accepted: Sequence[str]) -> None:
        for name in names:
            if accepted and name not in accepted:
                raise ValueError(f"{key}: {name!r} is not an epoch; there are {', '.join(accepted)}")

    @property
    def mapped_epochs(self) -> tuple[str, ...]:
        """The epochs that get a map."""
        if self.predict is None or self.imagery is None:
            return ()
        return self.predict.epochs or tuple(self.imagery.epochs)


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
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"there is no job file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{file} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise JobError(f"{file} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise JobError(f"{file} is not a job: it should hold sections such as area, grid, imagery")
    for override in overrides:
        _apply_override(values, override)
    job = parse_job(_expand(values, file.name), file.name)
    return _resolve_paths(job, file.resolve().parent)


def parse_job(values: Mapping[str, Any], source: str = "job") -> Job:
    """Check plain values as a job; see `load_job`."""
    try:
        return Job.model_validate(_with_text_keys(values))
    except ValidationError as error:
        raise JobError(_explain(error, source)) from None


def _with_text_keys(value: Any) -> Any:
    """YAML reads a bare ``2018:`` as a number; names are text."""
    if isinstance(value, Mapping):
        return {str(k): _with_text_keys(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_text_keys(v) for v in value]
    return value


def _explain(error: ValidationError, source: str) -> str:
    """One line for each thing that is wrong: key, value, what is accepted."""
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
        lines.append(message if message.startswith(f"{key}:") or not detail["loc"] else f"{key}: {message}")
    return "\n".join(lines)


def _accepted_keys(location: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = Job
    for part in location:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
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


def _expand(value: Any, source: str) -> Any:
    """Replace ``${NAME}`` by environment variables, everywhere in the job."""
    if isinstance(value, dict):
        return {k: _expand(v, source) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, source) for v in value]
    if isinstance(value, str):
        for name in _VARIABLE.findall(value):
            if name not in os.environ:
                raise JobError(f"{source} uses ${{{name}}}, but the environment variable {name} is not set")
        return _VARIABLE.sub(lambda match: _from_environment(match[1]), value)
    return value


def _from_environment(name: str) -> str:
    value = os.environ[name]
    # A path, not a word that happens to be the name of a folder.
    return os.path.abspath(value) if "/" in value and Path(value).exists() else value


def _resolve_paths(job: Job, folder: Path) -> Job:
    """Make relative paths relative to the job file, and keep truth out of everything but ``evaluate``."""

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
    for key, path in _input_paths(resolved):
        if not key.startswith("evaluate"):
            _refuse_truth(key, path)
    return resolved


def _with_imagery(job: Job, **changes: Any) -> Job:
    if job.imagery is None:
        return job
    return job.model_copy(update={"imagery": job.imagery.model_copy(update=changes)})


def _local_or_url(text: str, folder: Path) -> str:
    return text if "://" in text else os.path.normpath(folder / text)


def _input_paths(job: Job) -> list[tuple[str, Path]]:
    """All files and folders that the job reads, with the key that names each."""
    found: list[tuple[str, Path | str | None]] = [("area.file", job.area.file)]
    if job.imagery:
        found += [("imagery.url", job.imagery.url)]
        found += [("imagery.catalog", job.imagery.catalog if "/" in job.imagery.catalog else None)]
    if job.labels:
        found += [("labels.source", job.labels.source)]
        found += [("labels.legend", job.labels.legend if "/" in job.labels.legend else None)]
    if job.classifier:
        found += [("classifier.source", job.classifier.source)]
        found += [(f"classifier.exclude.{i}", path) for i, path in enumerate(job.classifier.exclude)]
    if job.predict:
        found += [("predict.model", job.predict.model)]
    if job.evaluate:
        found += [(f"evaluate.truth.{epoch}", path) for epoch, path in job.evaluate.truth.items()]
    return [(key, Path(path)) for key, path in found if path is not None and "://" not in str(path)]


def check_inputs_exist(job: Job) -> None:
    """Every file and folder that the job names is there.

    Raises
    ------
    JobError
        Naming the first that is not.
    """
    for key, path in _input_paths(job):
        if not path.exists():
            raise JobError(f"{key}: there is no {path}")


def _refuse_truth(key: str, path: Path) -> None:
    folders = [path, *path.parents]
    if any((folder / EVALUATION_ONLY).exists() for folder in folders):
        raise JobError(f"{key}: {path} is a truth for evaluation only; no other section may read it")
