"""What an interpreted sample says about a run's maps: accuracy and areas, and whether another map is better.

Before anything is estimated, the map that the sample was drawn from is held against the store's: the weights of a
stratified sample are the areas of that map, and a sample of another one would give figures that look right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow import __version__
from geoflow.errors import GeoflowError
from geoflow.jobs.survey import MapChoice, OpenMap, groups, open_map
from geoflow.legends import listed
from geoflow.store.reading import open_store

if TYPE_CHECKING:
    from geoflow.mapping.estimators import Assessment, Comparison
    from geoflow.mapping.sampling import Sample

_ROUGH = 30  # below, an interval of 1.96 standard errors is rough


@dataclass(frozen=True)
class References:
    """Where classes come from and what is made of them.

    ``files`` are rasters or polygons by epoch, looked up where a reference is empty; ``column`` as in
    `geoflow.mapping.references`; ``level`` to assess at, that of the strata if None.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    column: str | None = None
    level: int | None = None
    allow_missing: bool = False


@dataclass(frozen=True)
class Report:
    """One assessment, ready to be printed and written."""

    title: str
    stem: str
    names: Mapping[int, str]
    assessment: Assessment
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompareReport:
    """Two maps on one sample."""

    title: str
    stem: str
    maps: tuple[str, str]
    comparison: Comparison
    facts: Mapping[str, Any]


def assess_file(out: Path, path: Path, references: References | None = None) -> list[Report]:
    """Accuracy and areas of a run's map from its interpreted sample; of its change map too where it was drawn for that.

    Parameters
    ----------
    out : Path
        The run's output folder.
    path : Path
        The GeoPackage of `draw_to_file`, filled in.
    references : References, optional

    Returns
    -------
    list of Report
        Land cover, and change where the sample has a reference in both epochs.

    Raises
    ------
    GeoflowError
        If the file is no sample of this map, points have no reference (counted and named), a code is unknown, or a
        stratum has fewer than 2 points.
    """
    from geoflow.mapping import changesample, sampling

    references = references or References()
    opened, sample, facts = read_interpreted(out, path, references)
    level, epoch = facts["level"], opened.choice.epoch
    table = sampling.count_strata(opened.codes, opened.legend, level)
    mapped = dict(zip(table["code"].tolist(), table["pixels"].tolist(), strict=True))
    found = _counted(sampling.assess(sample, opened.legend, level), mapped, sample)
    names = {code: opened.legend.label(code) for code in found.codes}
    notes = _notes(sample, facts["left_out"])
    # the same map may be assessed from a sample of its own, which must not be replaced
    stem = f"accuracy-{epoch}-level{level}" + (f"-from-{opened.choice.change}" if opened.choice.change else "")
    cover = {**facts, "what": "land cover", "epoch": epoch}
    about = (*notes, *_class_notes(found, mapped))
    reports = [Report(f"Land cover {epoch}, level {level}", stem, names, found, cover, about)]
    if opened.changes is None or opened.epochs is None:
        return reports
    columns, (before, after) = opened.references(), opened.epochs
    sample = changesample.add_change(sample, opened.changes)
    turned = changesample.count_changed(opened.changes, opened.legend, level)
    mapped = {changesample.UNCHANGED: sum(mapped.values()) - turned, changesample.CHANGED: turned}
    found = changesample.assess_change(sample, opened.legend, (columns[before], columns[after]), level)
    found = _counted(found, mapped, sample)
    if blank := changesample.unobserved(sample):
        notes = (*notes, f"{blank} points lie where the change map judges nothing; they count as mapped unchanged.")
    pair = f"{before}-{after}"
    title, stem = f"Change {pair}, level {level}", f"accuracy-change-{pair}-level{level}"
    change = {**facts, "what": "change", "from": before, "to": after}
    return [*reports, Report(title, stem, changesample.NAMES, found, change, notes)]


def _counted(found: Assessment, pixels: Mapping[int, int], sample: Sample) -> Assessment:
    """The same with the mapped areas counted: strata that are not the classes would have them estimated."""
    import numpy as np

    from geoflow.mapping.ratios import Estimate

    hectares = np.array([pixels.get(code, 0) for code in found.codes]) * sample.pixel_area_m2 / 1e4
    return replace(found, mapped_ha=Estimate(hectares, np.zeros(len(hectares))))


def read_interpreted(out: Path, path: Path, references: References) -> tuple[OpenMap, Sample, dict[str, Any]]:
    """The map, the points that have their references, and the facts for a report; see `assess_file` for errors."""
    from geoflow.mapping import references as lookup
    from geoflow.mapping import samplefile

    design = samplefile.read_design(path)
    level = design["level"] if references.level is None else references.level
    opened = open_map(out, MapChoice(design["epoch"], level, design["change"]))
    opened = replace(opened, choice=replace(opened.choice, level=design["level"]))
    _check_grid(opened, design, path, out)
    sample = samplefile.read_drawn(path, opened.legend)
    columns = opened.references()
    if strange := [epoch for epoch in references.files if epoch not in {"", *columns}]:
        raise GeoflowError(f"--reference {strange[0]}=...: the sample is of {listed(columns)}")
    for epoch, file in references.files.items():
        into = columns[epoch or opened.choice.epoch]
        sample = lookup.sample_reference(sample, file, opened.legend, references.column, into)
    drawn = len(sample.points)
    sample = samplefile.without_missing(sample, references.allow_missing, str(path))
    _check_units(sample, path)
    _check_pixels(opened, sample, path, out)
    facts = {
        "geoflow": __version__,
        "level": level,
        "left_out": drawn - len(sample.points),
        "reference": {epoch or opened.choice.epoch: str(file) for epoch, file in references.files.items()},
        "design": design,
        "strata": sample.strata.to_dict("records"),
    }
    return opened, sample, facts


def _check_grid(opened: OpenMap, design: Mapping[str, Any], path: Path, out: Path) -> None:
    here = f"map/{opened.choice.epoch} of {out}"
    if design["legend"] != opened.legend.name:
        raise GeoflowError(f"{path} is of a map with legend {design['legend']!r}; {here} has {opened.legend.name!r}")
    if (drawn := design["map"]["grid"]) != (grid := opened.identity["grid"]):
        raise GeoflowError(f"{path} was drawn from another map than {here}: on the grid {drawn}, not {grid}")


def _check_pixels(opened: OpenMap, sample: Sample, path: Path, out: Path) -> None:
    """The map at the points, and the size of every stratum, are as they were when the sample was drawn."""
    from geoflow.mapping.sampling import add_map, count_strata

    found, other = opened.legend, f"{path} was drawn from another map than map/{opened.choice.epoch} of {out}"
    column = f"level{found.deepest}"
    points = add_map(sample, opened.codes, found, "now").points
    if (moved := points[f"now_{column}"].fillna(0) != points[f"map_{column}"].fillna(0)).any():
        raise GeoflowError(
            f"{other}: the class differs at {int(moved.sum())} points, ids {listed(points['id'][moved])}"
        )
    table = count_strata(opened.codes, found, opened.choice.level, opened.changed)
    now, then = (dict(zip(t["name"], t["pixels"].tolist(), strict=True)) for t in (table, sample.strata))
    if differ := [f"{n}: {then.get(n, 0)}, now {now.get(n, 0)}" for n in {**then, **now} if then.get(n) != now.get(n)]:
        raise GeoflowError(f"{other}: the pixels of strata differ ({listed(differ)})")


def _check_units(sample: Sample, path: Path) -> None:
    left = sample.points["stratum"].value_counts().to_dict()
    rows = zip(sample.strata["name"], sample.strata["pixels"], strict=True)
    if few := [f"{name} ({left.get(name, 0)})" for name, pixels in rows if left.get(name, 0) < min(2, pixels)]:
        raise GeoflowError(
            f"{path}: 2 interpreted points a stratum are needed for a standard error; too few are in {listed(few)}"
        )


def _notes(sample: Sample, left_out: int) -> tuple[str, ...]:
    notes = []
    if left_out:
        notes.append(f"{left_out} points without a reference were left out; sound only if chance decided which.")
    counts = sample.points["stratum"].value_counts()
    rows = zip(sample.strata["name"], sample.strata["pixels"], strict=True)
    if rough := [name for name, pixels in rows if counts.get(name, 0) < min(_ROUGH, pixels)]:
        notes.append(f"Strata of fewer than {_ROUGH} points, whose intervals are rough: {listed(rough, 60)}.")
    return tuple(notes)


def _class_notes(found: Assessment, mapped: Mapping[int, int]) -> tuple[str, ...]:
    """What strata of another level than the assessed one leave thin."""
    notes = []
    counts = dict(zip(found.codes, found.counts.sum(axis=1).tolist(), strict=True))
    if rough := [code for code, n in counts.items() if 0 < n < min(_ROUGH, mapped.get(code, 0))]:
        notes.append(f"Classes mapped at fewer than {_ROUGH} points, whose intervals are rough: {listed(rough, 60)}.")
    if without := [code for code in mapped if not counts.get(code)]:
        notes.append(
            f"Classes of the map without a point, of whose mapped area nothing is known: {listed(without, 60)}."
        )
    return tuple(notes)


def compare_with(out: Path, path: Path, other: str, references: References | None = None) -> CompareReport:
    """Test whether a run's map and another differ in overall accuracy, on the interpreted sample of the first.

    Parameters
    ----------
    out, path, references
        As for `assess_file`; ``references.column`` serves the other map too, where that is a file.
    other : str
        A group of the store (``"labels/clc2018"``), or a raster or polygons of class codes.

    Raises
    ------
    GeoflowError
        As `assess_file`; or if the other map is not there, or has no class at a point (named).
    """
    from geoflow.mapping.references import add_map_file
    from geoflow.mapping.sampling import add_map, assess, compare_maps

    references = references or References()
    room, _, name = other.partition("/")
    country = open_store(out / "country.zarr")
    inside = room in ("labels", "map") and name in groups(country, room)
    if not inside and not Path(other).exists():
        maps = [f"{r}/{n}" for r in ("labels", "map") for n in groups(country, r)]
        raise GeoflowError(f"--with {other}: neither a file nor a map of {out}; it has {listed(maps)}")
    opened, sample, facts = read_interpreted(out, path, references)
    if inside:
        codes = country[other].to_dataset()[f"level{opened.legend.deepest}"]
        sample = add_map(sample, codes, opened.legend, other)
    else:
        sample = add_map_file(sample, other, opened.legend, other, references.column)
    level, epoch = facts["level"], opened.choice.epoch
    found = compare_maps(sample, opened.legend, other, level)
    both = {m: assess(sample, opened.legend, level, c).to_dict() for m, c in ((f"map/{epoch}", "map"), (other, other))}
    title = f"map/{epoch} and {other}, level {level}"
    stem = f"accuracy-{epoch}-level{level}-with-{name if inside else Path(other).stem}"
    return CompareReport(title, stem, (f"map/{epoch}", other), found, {**facts, "maps": both})
