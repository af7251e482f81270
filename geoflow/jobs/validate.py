"""Everything that can be said about a job without the network and without a run: all at once, each with its line."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from geoflow.errors import GeoflowError
from geoflow.jobs.checks import check_disk, checks_of, free_bytes
from geoflow.jobs.console import Console, QuietConsole
from geoflow.jobs.estimate import bytes_to_write
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import (
    expand,
    explained,
    missing_inputs,
    path_problems,
    read_job_text,
    read_values,
    resolve_paths,
    unset_variables,
    with_text_keys,
)
from geoflow.jobs.joblines import JobLines
from geoflow.jobs.spec import Imagery, Job
from geoflow.places import is_remote, place

_FIRST_SCENE = dt.date(2015, 6, 27)
"""Sentinel-2A sent its first images four days after its launch."""
_KEY = re.compile(r"^([a-z_]+(?:\.[^\s:,]+)*): ")


@dataclass(frozen=True)
class Problem:
    """Something to mend in a job file.

    Parameters
    ----------
    level : str
        An ``error`` keeps a run from starting; a ``warning`` does not.
    key : str
        Dotted; empty where it is the file as a whole.
    message : str
        Starts with the key; names the value and what would be accepted.
    line : int, optional
        From 1; None for a value given with ``--set``, and for what is nowhere in the file.
    value : str, optional
        What the file says there, if it is a single value.
    """

    level: Literal["error", "warning"]
    key: str
    message: str
    line: int | None = None
    value: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        facts = ("level", "key", "line", "value", "message")
        return {name: getattr(self, name) for name in facts}


@dataclass(frozen=True)
class Validation:
    """What was found: problems in the order of the file, and what is known of the job.

    ``facts`` has, as far as the job allows, ``name``, ``area_km2``, ``crs``, ``resolution_m``, ``shape``, ``tiles``,
    ``epochs``, ``bytes_to_write``, ``bytes_free``.
    """

    file: Path
    problems: tuple[Problem, ...]
    facts: dict[str, Any]

    @property
    def errors(self) -> int:
        """How many problems keep a run from starting."""
        return sum(problem.level == "error" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        problems = [problem.to_dict() for problem in self.problems]
        return {"file": str(self.file), "valid": not self.errors, "problems": problems, "facts": self.facts}


def validate_job(
    file: str | Path,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    console: Console | None = None,
) -> Validation:
    """Look at a job file and at all that it names. Writes nothing, asks no server.

    Parameters
    ----------
    file : path
    overrides : sequence of str
        See `geoflow.jobs.jobfile.load_job`.
    out : path, optional
        Where the output would go, whose disk is looked at; ``out/<name>`` by default.
    console : Console, optional

    Raises
    ------
    JobError
        If there is no such file, or a value of ``overrides`` is none.
    """
    return _Look(Path(file), overrides, out, console or QuietConsole()).whole()


@dataclass
class _Look:
    """One look at one job: collects problems, and remembers which keys are not in order."""

    file: Path
    overrides: Sequence[str]
    out: str | Path | None
    console: Console
    lines: JobLines | None = None
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    facts: dict[str, Any] = field(default_factory=dict)

    def whole(self) -> Validation:
        text = read_job_text(self.file)
        try:
            self.lines = JobLines(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            told = f"not YAML: {getattr(error, 'problem', None) or error}"
            return self._result([Problem("error", "", told, None if mark is None else mark.line + 1)])
        try:
            values = read_values(self.file, text, self.overrides)
        except GeoflowError as error:
            if self.overrides:
                raise
            return self._result([Problem("error", "", str(error), 1)])
        for key, line, before in self.lines.repeated():
            self.tell(f"{key}: stands in line {before}, too; YAML keeps the last one alone", key, line=line)
        for where, told in unset_variables(values, self.file.name):
            key = ".".join(map(str, where))
            self.tell(f"{key}: {told}", key)
        job = self._read(with_text_keys(expand(values, self.file.name)))
        if job is not None:
            self._look_at(resolve_paths(job, self.file.resolve().parent))
        return self._result(self.problems)

    def _result(self, problems: list[Problem]) -> Validation:
        ordered = sorted(problems, key=lambda p: (p.line is None, p.line or 0))
        return Validation(self.file, tuple(dict.fromkeys(ordered)), self.facts)

    def tell(
        self, message: str, key: str, level: Literal["error", "warning"] = "error", line: int | None = None
    ) -> None:
        """One more problem; its key is the one that the message starts with, or ``key``."""
        found = _KEY.match(message)
        if found and found[1].partition(".")[0] in Job.model_fields and not key.startswith(f"{found[1]}."):
            key = found[1]
        elif not found and key:
            message = f"{key}: {message}"
        at, value = (None, None) if self.lines is None else self.lines.find(key)
        self.problems.append(Problem(level, key, message, line or at, value))
        if level == "error":
            self.broken.add(key)

    def _read(self, values: dict[str, Any]) -> Job | None:
        """The job; where values are not accepted, one without them, so that the rest can be looked at, too."""
        while True:
            try:
                return Job.model_validate(values)
            except ValidationError as error:
                told = explained(error, self.file.name)
                for place_, message in told:
                    # What was taken out below is missing now, and was told already.
                    if (key := ".".join(map(str, place_))) not in self.broken:
                        self.tell(message, key)
                dropped = [_drop(values, place_, message) for place_, message in told]
                if not all(dropped):
                    return None

    def _look_at(self, job: Job) -> None:
        self.facts["name"] = job.name
        for problem in (*path_problems(job, self.file.resolve().parent), *missing_inputs(job, remote=False)):
            if not self._is_broken((str(problem).partition(":")[0],)):
                self.tell(str(problem), "")
        if job.imagery is not None:
            for key, level, message in _period_problems(job.imagery):
                self.tell(message, key, level)
            if told := _margin_problem(job.imagery, job.grid.resolution_m):
                self.tell(told, "imagery.mask_speck_m", "warning")
        folder = place(self.out) if self.out is not None else Path("out") / job.name
        flow = Flow(job, folder if is_remote(folder) else folder.resolve())
        flow.freezes = False
        for check in checks_of(flow, self.console):
            if not self._is_broken(check.needs):
                self._try(check.key, check.look)
        if not self._is_broken(("area", "grid")):
            self._measure(flow)
        if job.imagery is not None and not self._is_broken(("imagery", "area")) and "://" not in str(flow.catalog.url):
            with self.console.waiting("searching for scenes"):
                self._search(flow)

    def _is_broken(self, needs: Sequence[str]) -> bool:
        return any(
            key == need or key.startswith(f"{need}.") or need.startswith(f"{key}.")
            for key in self.broken
            for need in needs
        )

    def _try(self, key: str, look: Any) -> None:
        try:
            look()
        except GeoflowError as error:
            self.tell(str(error), key)

    def _measure(self, flow: Flow) -> None:
        height, width = flow.grid.shape
        area = flow.area.to_crs("EPSG:6933").area / 1e6  # equal area, of the whole earth
        self.facts |= {
            "area_km2": round(area, 1),
            "crs": flow.job.grid.crs,
            "resolution_m": flow.grid.resolution_m,
            "shape": [height, width],
            "tiles": len(flow.tiles),
            "epochs": [] if flow.job.imagery is None else list(flow.job.imagery.epochs),
        }
        if self._is_broken(("labels", "imagery", "predict", "change")):
            return
        self.facts["bytes_to_write"] = bytes_to_write(flow)
        if not is_remote(flow.out):
            self.facts["bytes_free"] = free_bytes(flow.out)
            self._try("", lambda: check_disk(flow))

    def _search(self, flow: Flow) -> None:
        """A catalog of local files can be asked: every period needs a scene."""
        search, section = flow.search, flow.section("imagery")
        for epoch, periods in section.epochs.items():
            for name, days in periods.items():
                one = section.model_copy(update={"epochs": {epoch: {name: days}}})
                only = dataclasses.replace(search, section=one, pixels=False, freeze=False, refresh=True)
                try:
                    only.run()
                except GeoflowError as error:
                    self.tell(f"{error}; move its days, or leave the period out", f"imagery.epochs.{epoch}.{name}")


def _drop(values: dict[str, Any], where: Sequence[int | str], message: str) -> bool:
    """Take out what was not accepted; False if the job cannot do without it."""
    if not where:  # sections that do not fit each other: the message starts with the one that is too much
        where = (message.partition(":")[0].partition(".")[0],)
    path, node = list(where), values
    while len(path) > 1 and isinstance(node, dict | list):
        step = path[0]
        if isinstance(node, dict) and step not in node:
            break
        if isinstance(node, list) and not (isinstance(step, int) and step < len(node)):
            break
        if not isinstance(node[step], dict | list):
            break
        node, path = node[step], path[1:]
    # What is required goes with its section.
    top = str(where[0])
    missing = isinstance(node, dict) and path[0] not in node
    target, key = (values, top) if missing or isinstance(node, list) else (node, path[0])
    if target is values and key in ("name", "area", "grid"):
        if key != "name":
            return False
        values["name"] = "job"
        return True
    if not isinstance(target, dict) or key not in target:
        return False
    del target[key]
    return True


def _margin_problem(imagery: Imagery, resolution_m: float) -> str | None:
    """Whether single pixels that the scene classification takes for shadow get margins."""
    speck_px = round(imagery.mask_speck_m / resolution_m)
    if not imagery.mask_dilate_m or not imagery.mask_speck_m or speck_px > 1:
        return None
    return (
        f"imagery.mask_speck_m: {imagery.mask_speck_m:g} m is less than two pixels of {resolution_m:g} m and spares "
        f"nothing: rivers and roofs that are taken for shadow and cloud hide what is around them; "
        f"{3 * resolution_m:g} spares what is narrower than three pixels"
    )


def _period_problems(imagery: Imagery) -> Iterator[tuple[str, Literal["error", "warning"], str]]:
    """(key, level, message) of periods without scenes, and of days that count twice."""
    today = dt.datetime.now(dt.UTC).date()
    spans = [(f"imagery.epochs.{e}.{p}", days) for e, ps in imagery.epochs.items() for p, days in ps.items()]
    for key, days in spans:
        if days.end < _FIRST_SCENE:
            yield (
                key,
                "error",
                f"{key}: {days.start}/{days.end} is before Sentinel-2; its first scenes are of 2015-06-27",
            )
        elif days.start > today:
            yield key, "error", f"{key}: {days.start}/{days.end} has not come yet; there is no scene"
        elif days.end > today:
            yield key, "warning", f"{key}: {days.start}/{days.end} is not over; a later search may find more scenes"
    for at, (key, days) in enumerate(spans):
        for other, before in spans[:at]:
            first, last = max(days.start, before.start), min(days.end, before.end)
            if first <= last:
                yield key, "warning", f"{key}: {first}/{last} is in {other}, too: its scenes count in both"
