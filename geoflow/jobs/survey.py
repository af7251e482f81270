"""Planning and drawing the sample that a run's map is assessed with.

The file of a sample carries its design: which map it was drawn from, the level and the change map of its strata, the
seed, the geoflow that drew it. `geoflow.jobs.assess` reads it and holds the map against the store's.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow import __version__
from geoflow.errors import GeoflowError, StoreError
from geoflow.legends import BUILTIN, Legend, legend, listed
from geoflow.store.reading import open_store

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from geoflow.mapping.sampling import Sample

MINIMUM = 50
"""Points of each stratum at least, unless told otherwise (Olofsson et al. 2014, section 5, advise 50 to 100)."""

ALLOCATIONS = ("proportional", "equal")
"""How the points that the minima leave are shared out."""


@dataclass(frozen=True)
class MapChoice:
    """Which map is sampled: ``map/<epoch>``, with the classes of a level as strata; ``change`` is ``"2018-2024"``."""

    epoch: str
    level: int
    change: str | None = None


@dataclass(frozen=True)
class OpenMap:
    """A `MapChoice` in its store.

    Attributes
    ----------
    choice : MapChoice
    country : DataTree
        The whole store, lazy.
    legend : Legend
    codes : DataArray, dims (y, x)
        The map at the deepest level of the legend, lazy.
    changes : Dataset, dims (y, x), or None
        The group ``change/<a>-<b>`` of the choice, lazy.
    epochs : (str, str) or None
        Its epochs, the earlier first.
    """

    choice: MapChoice
    country: xr.DataTree
    legend: Legend
    codes: xr.DataArray
    changes: xr.Dataset | None = None
    epochs: tuple[str, str] | None = None

    @property
    def changed(self) -> xr.DataArray | None:
        """The change map, whose changed pixels are strata of their own."""
        return None if self.changes is None else self.changes["change"]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this map from another, plain values."""
        kept = ("crs", "transform", "shape")
        grid = self.country.attrs["geoflow"]["grid"]
        attrs = self.country[f"map/{self.choice.epoch}"].attrs
        return {
            "grid": {key: list(v) if isinstance(v := grid[key], tuple) else v for key in kept},
            "attrs": dict(attrs),
        }

    def references(self) -> dict[str, str]:
        """Epoch to the column with its reference; the map's own epoch has the plain name."""
        epochs = self.epochs or (self.choice.epoch,)
        return {e: "reference" if e == self.choice.epoch else f"reference_{e}" for e in epochs}


@dataclass(frozen=True)
class Draw:
    """How many points: ``size`` shared out by ``allocation``, at least ``minimum`` each, or ``units`` by stratum."""

    size: int | None = None
    units: Mapping[str, int] = field(default_factory=dict)
    allocation: str = "proportional"
    minimum: int = MINIMUM
    seed: int = 0


@dataclass(frozen=True)
class SamplePlan:
    """Strata by row with planned points, the size they sum to, and what that size should achieve.

    ``table`` has ``name``, ``label``, ``area_ha``, ``share``, ``expected``, the allocations ``proportional``,
    ``equal`` and ``recommended``, and ``users_half_width`` of the recommended one; ``expected_se`` is the standard
    error of the overall accuracy under each allocation (NaN where a stratum would get fewer than 2 points).
    """

    choice: MapChoice
    table: pd.DataFrame
    needed: int
    size: int
    target_se: float
    expected_se: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        strata = self.table.to_dict("records")
        sizes = {"needed": self.needed, "size": self.size, "target_se": self.target_se}
        return {"epoch": self.choice.epoch, **sizes, "expected_se": dict(self.expected_se), "strata": strata}


def open_map(out: Path, choice: MapChoice) -> OpenMap:
    """Open the map of a run, and check that it is there.

    Raises
    ------
    StoreError, GeoflowError
        If there is no such store, epoch, level or change map (what there is, is named).
    """
    country = open_store(out / "country.zarr")
    epochs = groups(country, "map")
    if choice.epoch not in epochs:
        raise StoreError(
            f"--epoch {choice.epoch}: {out} has no such map; it has maps of {listed(epochs) or 'no epoch'}"
        )
    maps = country[f"map/{choice.epoch}"].to_dataset()
    found = _legend_of(out, str(maps.attrs.get("legend", "")))
    if choice.level not in found.levels:
        raise GeoflowError(f"--level {choice.level}: legend {found.name!r} has the levels {listed(found.levels)}")
    opened = OpenMap(choice, country, found, maps[f"level{found.deepest}"])
    if choice.change is None:
        return opened
    changes = groups(country, "change")
    if choice.change not in changes:
        raise StoreError(f"--change {choice.change}: {out} has no such change map; it has {listed(changes) or 'none'}")
    pair = _epochs_of(choice)
    return replace(opened, changes=country[f"change/{choice.change}"].to_dataset(), epochs=pair)


def groups(country: xr.DataTree, name: str) -> list[str]:
    """Names of the groups below one of the store's, such as the epochs of ``map``."""
    return list(country[name].children) if name in country.children else []


def _legend_of(out: Path, name: str) -> Legend:
    """The legend of a run: that of its job, or the built-in one that the store names."""
    if (out / "summary.json").exists():
        from geoflow.jobs.flow import Flow
        from geoflow.jobs.jobfile import parse_job
        from geoflow.jobs.records import read_summary

        found: Legend = Flow(parse_job(read_summary(out)["config"]), out.resolve()).legend
        if found.name == name:
            return found
    if name not in BUILTIN:
        raise StoreError(f"{out}: the map's legend {name!r} is neither its job's nor one of {listed(BUILTIN)}")
    return legend(name)


def _epochs_of(choice: MapChoice) -> tuple[str, str]:
    change, epoch = choice.change or "", choice.epoch
    if change.startswith(f"{epoch}-"):
        return epoch, change.removeprefix(f"{epoch}-")
    if change.endswith(f"-{epoch}"):
        return change.removesuffix(f"-{epoch}"), epoch
    raise GeoflowError(f"--epoch {epoch} is not one of the epochs of --change {change}")


def plan_sample(
    out: Path, choice: MapChoice, expected: Mapping[str, float], target_se: float, draw: Draw | None = None
) -> SamplePlan:
    """Plan a sample from the mapped areas and the user's accuracies expected.

    Parameters
    ----------
    out : Path
        The run's output folder.
    choice : MapChoice
    expected : mapping of stratum to float in 0..1
        ``"311"`` for a stratum, ``"changed"`` for all strata of change, ``""`` for all others.
    target_se : float
        Standard error wanted of the overall accuracy.
    draw : Draw, optional
        Its ``size`` (instead of the size that ``target_se`` needs) and ``minimum`` count.

    Raises
    ------
    GeoflowError
        If there is no such map, a stratum is unknown (what there is, is named) or a value is out of range.
    """
    import numpy as np

    from geoflow.mapping.planning import allocate, expected_se, sample_size
    from geoflow.mapping.ratios import Z95
    from geoflow.mapping.sampling import count_strata

    draw = draw or Draw()
    opened = open_map(out, choice)
    table = count_strata(opened.codes, opened.legend, choice.level, opened.changed)
    pixels, users = table["pixels"].to_numpy(), _expected_users(table, expected)
    needed = sample_size(pixels, users, target_se)
    least = int(np.minimum(draw.minimum, pixels).sum())
    size = min(max(draw.size or needed, least), int(pixels.sum()))
    units = {
        "proportional": allocate(size, pixels, "proportional", minimum=0),
        "equal": allocate(size, pixels, "equal", minimum=0),
        "recommended": allocate(size, pixels, "proportional", minimum=draw.minimum, forced=table["changed"]),
    }
    labels = [opened.legend.label(code) for code in table["code"].tolist()]
    share = table["area_ha"] / table["area_ha"].sum()
    half = Z95 * np.sqrt(users * (1 - users) / np.maximum(units["recommended"] - 1, 1))
    columns = {"label": labels, "share": share, "expected": users, **units, "users_half_width": half}
    ses = {name: expected_se(pixels, users, found) for name, found in units.items()}
    return SamplePlan(choice, table.assign(**columns), needed, size, target_se, ses)


def _expected_users(table: pd.DataFrame, expected: Mapping[str, float]) -> Any:
    import numpy as np

    strata = table["name"].tolist()
    if unknown := [key for key in expected if key not in {"", "changed", *strata}]:
        raise GeoflowError(f"--expect {unknown[0]}: no such stratum; there are {listed(strata, 60)}")
    base = expected.get("", 0.8)
    general = np.where(table["changed"], expected.get("changed", base), base)
    return np.array([expected.get(name, one) for name, one in zip(strata, general.tolist(), strict=True)], float)


def draw_to_file(out: Path, choice: MapChoice, draw: Draw, to: Path, overwrite: bool = False) -> Sample:
    """Draw the stratified random sample of a map and write it for interpreters, blind.

    Parameters
    ----------
    out, choice
        As for `plan_sample`.
    draw : Draw
    to : Path
        GeoPackage to write; layer ``points`` has neither stratum nor map class.
    overwrite : bool
        Replace a file that is there, with what interpreters wrote in it.

    Raises
    ------
    GeoflowError
        If the file exists, there is no such map, or the points cannot be shared out so that every stratum gets 2.
    """
    from geoflow.mapping.samplefile import write_sample
    from geoflow.mapping.sampling import count_strata, draw_sample

    if to.exists() and not overwrite:
        raise GeoflowError(f"{to} exists and may hold interpretations: name another file (--to), or give --force")
    opened = open_map(out, choice)
    table = count_strata(opened.codes, opened.legend, choice.level, opened.changed)
    units = _units(table, draw)
    sample = draw_sample(opened.codes, opened.legend, units, draw.seed, choice.level, opened.changed)
    points = sample.points
    for place, column in enumerate(c for c in opened.references().values() if c not in points):
        points.insert(points.columns.get_loc("reference") + 1 + place, column, points["reference"])
    part = to.with_name(f".{to.stem}.part.gpkg")
    part.unlink(missing_ok=True)
    write_sample(sample, part, True, _design(opened, draw), _choices(opened.legend, choice.level))
    os.replace(part, to)
    return sample


def _units(table: pd.DataFrame, draw: Draw) -> dict[str, int]:
    """Points by stratum."""
    from geoflow.mapping.planning import allocate

    names, pixels = table["name"].tolist(), table["pixels"].to_numpy()
    if draw.allocation not in ALLOCATIONS:
        raise GeoflowError(f"--allocation {draw.allocation}: it is {' or '.join(ALLOCATIONS)}")
    if draw.units:
        units = {**draw.units}
        if missing := [name for name in names if name not in units]:
            raise GeoflowError(
                f"--units says nothing of the strata {listed(missing)}: a sample must cover the whole map"
            )
    elif draw.size is None:
        raise GeoflowError("how many points? give --size (geoflow accuracy plan proposes one), or --units by stratum")
    else:
        forced = table["changed"].to_numpy() if draw.allocation == "proportional" else None
        try:
            shared = allocate(draw.size, pixels, draw.allocation, minimum=draw.minimum, forced=forced)
        except GeoflowError as problem:
            raise GeoflowError(f"--size {draw.size} with --minimum {draw.minimum}: {problem}") from None
        units = dict(zip(names, shared.tolist(), strict=True))
    sizes = dict(zip(names, pixels.tolist(), strict=True))
    if few := [f"{name} ({n})" for name, n in units.items() if n < min(2, sizes.get(name, 0))]:
        raise GeoflowError(f"2 points a stratum are needed for a standard error; too few would lie in {listed(few)}")
    return units


def _design(opened: OpenMap, draw: Draw) -> dict[str, Any]:
    choice = opened.choice
    return {
        "geoflow": __version__,
        "drawn": dt.datetime.now(dt.UTC).date().isoformat(),
        "epoch": choice.epoch,
        "level": choice.level,
        "change": choice.change,
        "legend": opened.legend.name,
        "seed": draw.seed,
        "allocation": "by hand" if draw.units else draw.allocation,
        "minimum": None if draw.units else draw.minimum,
        "map": opened.identity,
    }


def _choices(found: Legend, level: int) -> dict[int, str]:
    """What an interpreter may choose: the classes of the level and finer, each below the one that holds it."""
    codes = [code for finer in found.levels if finer >= level for code in found.codes(finer)]
    return {code: f"{code} {found.label(code)}" for code in sorted(codes, key=str)}
