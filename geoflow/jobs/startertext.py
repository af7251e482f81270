"""A job as commented YAML: what each key does and what else it can be, from the models themselves."""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from geoflow.jobs.reference import section_of
from geoflow.jobs.schema import EXAMPLES, MODELINE, plain_description
from geoflow.jobs.spec import Job

_WIDTH = 100
_HEAD = (
    'A job of geoflow: what to make. A line that begins with "#" and a key is something else that could be said, '
    'mostly with its default: take the "#" away to say it.',
    "Paths are relative to this file. docs/jobs.md has all keys and the training options.",
    "geoflow validate, geoflow plan and geoflow run take this file, in this order.",
)
_PERIODS = (
    "Periods are windows of a season: each becomes one cloud-free composite, both days included, and all epochs have "
    "the same. Make them longer where it is cloudy."
)


def job_text(values: Mapping[str, Any]) -> str:
    """YAML of a job, with every key that there is.

    Parameters
    ----------
    values : mapping
        Sections and keys that are set; the others are written as comments.
    """
    lines = [MODELINE, *(line for part in _HEAD for line in _comment(part)), ""]
    for name, field in Job.model_fields.items():
        section = section_of(field)
        if section is None:
            lines += [*_key(name, field, values, Job), ""]
        elif typing.get_origin(field.annotation) is dict:
            lines += [*_named_sections(name, field, section, values.get(name)), ""]
        else:
            lines += [*_section(name, section, values.get(name)), ""]
    return "\n".join(lines)


def _section(name: str, model: type[BaseModel], values: Mapping[str, Any] | None) -> Iterator[str]:
    """A section with all its keys; as a comment where the job has none."""
    yield from _comment(plain_description(model.__doc__ or ""))
    if values is None:
        yield f"#{name}:"
        for key, field in model.model_fields.items():
            yield from (f"#{line}" for line in _indented(_key(key, field, _required(model), model)))
        return
    if not values:
        yield f"{name}: {{}}"
        yield from (f"#{line}" for key, f in model.model_fields.items() for line in _indented(_key(key, f, {}, model)))
        return
    yield f"{name}:"
    for key, field in model.model_fields.items():
        yield from _indented(_key(key, field, values, model))


def _named_sections(
    name: str, field: FieldInfo, model: type[BaseModel], values: Mapping[str, Any] | None
) -> Iterator[str]:
    yield from _comment(plain_description(f"{(model.__doc__ or '').strip().rstrip('.')}: {field.description}"))
    off = "" if values else "#"
    yield f"{off}{name}:"
    for layer, keys in (values or EXAMPLES["Job"][name][0]).items():
        yield f"{off}  {_plain(layer)}:"
        for key, inner in model.model_fields.items():
            yield from (f"{off}  {line}" for line in _indented(_key(key, inner, keys, model)))


def _required(model: type[BaseModel]) -> dict[str, Any]:
    """An example of each key that a section cannot do without."""
    examples = EXAMPLES.get(model.__name__, {})
    names = (field.alias or name for name, field in model.model_fields.items() if field.is_required())
    return {name: examples[name][0] for name in names}


def _key(name: str, field: FieldInfo, values: Mapping[str, Any], model: type[BaseModel]) -> Iterator[str]:
    """A key below what it means: as it is set, or as a comment with its default or an example."""
    name = field.alias or name
    said = "; ".join(part for part in (plain_description(field.description or ""), _accepted(field)) if part)
    yield from _comment(said)
    if name == "epochs" and name in values and isinstance(values[name], Mapping):
        yield from _comment(_PERIODS)
        yield "epochs:"
        for epoch, periods in values[name].items():
            yield f"  {_plain(epoch)}:"
            yield from (f"    {period}: {days}" for period, days in periods.items())
        return
    if name in values:
        value = values[name]
        if isinstance(value, Mapping) and value and name == "options":
            yield f"{name}:"
            yield from (f"  {key}: {_plain(one)}" for key, one in value.items())
        else:
            yield f"{name}: {_plain(value)}"
        return
    default = field.get_default(call_default_factory=True)
    if default in (None, (), {}, ""):
        default = next(iter(EXAMPLES.get(model.__name__, {}).get(name, [*_words(field), default])))
    yield f"#{name}: {_plain(default)}"


def _words(field: FieldInfo) -> tuple[Any, ...]:
    """The words that a key takes, where it takes only certain ones."""
    kinds = [field.annotation, *typing.get_args(field.annotation)]
    return next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is Literal), ())


def _accepted(field: FieldInfo) -> str:
    """The words or the range that a key takes."""
    words = _words(field)
    parts = [f"one of {', '.join(map(str, words))}"] if words else []
    bounds: dict[str, float] = {}
    for note in field.metadata:
        for kind, word in ((Ge, "ge"), (Gt, "gt"), (Le, "le"), (Lt, "lt")):
            if isinstance(note, kind):
                bounds[word] = getattr(note, word)
    if {"ge", "le"} <= set(bounds):
        parts.append(f"{bounds['ge']:g} to {bounds['le']:g}")
    else:
        said = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        parts += [" and ".join(f"{said[word]} {value:g}" for word, value in bounds.items())] if bounds else []
    return "; ".join(parts)


def _plain(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, str) and yaml.safe_dump(value).startswith("'") and not set(value) & {'"', "\\"}:
        return f'"{value}"'
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _comment(text: str) -> list[str]:
    wrapped = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"# {line}" for line in wrapped]
