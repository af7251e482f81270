"""The reference of job keys, docs/jobs.md, written from the models themselves: ``python -m geoflow.jobs.reference``."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from geoflow.jobs.spec import Job, Section

_HEAD = """# Job files

A job is a YAML file that says what to make. Its sections are the stages of the flow; any subset of them is a job, as
long as what a section needs is in the job or already in the output. [jobs/quickstart.yaml](../jobs/quickstart.yaml) is
a whole one.

- Paths are relative to the job file. `${NAME}` is replaced by the environment variable of that name; a relative path in
  it is relative to where the command is given.
- `geoflow run JOB --set grid.tile=1024` replaces a value.
- An unknown key, a wrong type or a value out of range is an error that names the key and what is accepted.
- A folder that holds a file named `EVALUATION_ONLY` is a truth: no section but `evaluate` may read from it.

This page is written by `python -m geoflow.jobs.reference`; a test holds it in step with the code.
"""


def job_reference() -> str:
    """The whole page, Markdown."""
    parts = [_HEAD, "## Top level\n", _table(Job)]
    for name, field in Job.model_fields.items():
        section = section_of(field)
        if section is not None:
            parts += [f"## {name}\n", f"{(section.__doc__ or '').strip()}\n", _table(section)]
    parts += _training_options()
    return "\n".join(parts)


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a key of the job holds, or holds by name."""
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]  # itself, of a union, or of a mapping
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)


def _table(model: type[BaseModel]) -> str:
    rows = ["| key | default | what |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        section = section_of(field)
        below = f"see [below](#{name})" if section else ""
        what = "; ".join(part for part in (field.description, below) if part)
        rows.append(f"| `{field.alias or name}` | {default} | {what.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def _shown(value: Any) -> str:
    if value in (None, "", {}):
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def _training_options() -> list[str]:
    from geoflow.learning.options import ClassifierOptions, SegmenterOptions

    parts = []
    for key, options in (("classifier.options", ClassifierOptions), ("train.options", SegmenterOptions)):
        said = documented(options.__doc__ or "")
        rows = ["| key | default | what |", "|---|---|---|"]
        rows += [f"| `{f.name}` | {_shown(f.default)} | {said.get(f.name, '')} |" for f in dataclasses.fields(options)]
        parts += [f"## {key}\n", "\n".join(rows) + "\n"]
    return parts


def documented(docstring: str) -> dict[str, str]:
    """Parameter -> text, of a numpy docstring; parameters on one line share their text."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in docstring.partition("----------\n")[2].splitlines():
        heading = re.fullmatch(r"    (\w+(?:, \w+)*)(?: : .*)?", line)
        if heading:
            names = heading[1].split(", ")
        elif line.strip():
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return {name: text.replace("``", "`") for name, text in found.items()}


if __name__ == "__main__":
    print(job_reference(), end="")
