"""The groups of the national store: names, dtypes, nodata and attributes (docs/architecture.md has them as a table)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from geoflow.inputs import NODATA, UNIT
from geoflow.legendfile import attributes
from geoflow.store.zarr import Group, Variable

if TYPE_CHECKING:
    from geoflow.jobs.spec import Job
    from geoflow.legends import Legend

NO_SOURCE = 65535
"""Nodata of the scene that a pixel is of, as `geoflow.imagery.kernels` writes it."""

_CLEAR = {"long_name": "fewest clear observations in any period; 0: mapped without that period", "units": "1"}
_CONFIDENCE = {"long_name": "probability of the class at the deepest level", "units": "percent"}
_MARGIN = {"long_name": "probability of the class less that of the second class", "units": "percent"}
_PROBABILITY = {"long_name": "probability of each class", "units": "1", "scale_note": "divide by 250"}


def imagery_group(
    epoch: str, coords: Mapping[str, Sequence[str]], attrs: Mapping[str, Any], scenes: Sequence[str] | None = None
) -> Group:
    """Composites of one epoch; with ``scenes``, their ids in order, each pixel says which one it is of."""
    reflectance = Variable(
        "reflectance",
        "int16",
        NODATA,
        ("period", "band"),
        {"long_name": UNIT, "units": "1", "scale_note": "divide by 10000"},
    )
    clear = Variable("clear", "uint8", 255, ("period",), {"long_name": "number of clear observations", "units": "1"})
    if scenes is None:
        return Group(f"imagery/{epoch}", (reflectance, clear), coords, attrs)
    told = {"long_name": "place of the scene in the attribute scenes of the group", "units": "1"}
    source = Variable("source", "uint16", NO_SOURCE, ("period",), told)
    return Group(f"imagery/{epoch}", (reflectance, clear, source), coords, {**attrs, "scenes": list(scenes)})


def store_attributes(job: Job, attribution: Sequence[str]) -> dict[str, Any]:
    """What the root of the store says of all of it, by CF and ACDD; the same for the same job and version."""
    from geoflow import __version__

    sources = []
    if job.imagery is not None:
        sources.append(f"Sentinel-2 level 2A, catalog {job.imagery.catalog}")
    if job.labels is not None:
        sources.append(f"labels {job.labels.source.name}")
    publish = job.publish
    named = (
        {"institution": publish.publisher, "publisher_url": publish.publisher_url, "license": publish.licence}
        if publish
        else {}
    )
    return {
        **{key: value for key, value in named.items() if value},
        "title": publish.title if publish else job.name,
        "source": "; ".join(sources),
        "history": f"made by geoflow {__version__}, job {job.name}",
        "references": "https://arxiv.org/abs/2003.02899",
        "attribution": "; ".join(attribution),
    }


def label_group(name: str, legend: Legend, source: str) -> Group:
    """Rasterised labels, and how far each pixel lies from the nearest border of the deepest level's classes."""
    from geoflow.labels.borders import BORDER_NODATA, CAP_M

    far = {"long_name": f"distance to the nearest class border, {CAP_M} for {CAP_M} and more", "units": "m"}
    variables = (*_levels(legend), Variable("border_m", "int16", BORDER_NODATA, attrs=far))
    return Group(f"labels/{name}", variables, attrs={**attributes(legend), "source": source})


def map_group(epoch: str, legend: Legend, attrs: Mapping[str, Any], probabilities: Sequence[int] = ()) -> Group:
    """The land cover map of one epoch; ``probabilities`` are the classes whose probabilities it keeps, if any."""
    deepest = legend.levels[-1]
    second = {"long_name": "most probable of the other classes", **legend.flags(deepest)}
    variables = [
        *_levels(legend),
        Variable("confidence", "uint8", 255, attrs=_CONFIDENCE),
        Variable("margin", "int8", -128, attrs=_MARGIN),
        Variable("second", str(legend.dtype(deepest)), 0, attrs=second),
        Variable("clear", "uint8", 255, attrs=_CLEAR),
    ]
    coords = {"class": [str(code) for code in sorted(probabilities)]} if probabilities else {}
    if probabilities:
        variables.append(Variable("probabilities", "uint8", 255, ("class",), _PROBABILITY))
    return Group(f"map/{epoch}", tuple(variables), coords, {**attributes(legend), **attrs})


def generalised_group(name: str, epoch: str, legend: Legend, attrs: Mapping[str, Any]) -> Group:
    """The land cover map of one epoch, generalised."""
    return Group(f"generalised/{name}/{epoch}", _levels(legend), attrs={**attributes(legend), **attrs})


def change_group(before: str, after: str, legend: Legend, attrs: Mapping[str, Any]) -> Group:
    """Change between two epochs."""
    deepest = legend.levels[-1]
    flags = legend.flags(deepest)
    dtype = str(legend.dtype(deepest))
    states = {"flag_values": [1, 2], "flag_meanings": "unchanged changed", "long_name": "change"}
    variables = (
        Variable("change", "uint8", 0, attrs=states),
        Variable("from_code", dtype, 0, attrs={"long_name": f"class in {before}, where changed", **flags}),
        Variable("to_code", dtype, 0, attrs={"long_name": f"class in {after}, where changed", **flags}),
        Variable("confidence", "uint8", 255, attrs={"long_name": "joint confidence of both maps", "units": "percent"}),
    )
    return Group(f"change/{before}-{after}", variables, attrs={**attributes(legend), **attrs})


def _levels(legend: Legend) -> tuple[Variable, ...]:
    return tuple(
        Variable(
            f"level{level}",
            str(legend.dtype(level)),
            0,
            attrs={"long_name": f"land cover, level {level} of {legend.name}", **legend.flags(level)},
        )
        for level in legend.levels
    )
