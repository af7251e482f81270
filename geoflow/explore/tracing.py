"""Where a pixel comes from: scenes, model and job, from the files that a run leaves beside its store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geoflow.explore.layers import groups
from geoflow.explore.points import Places
from geoflow.explore.traces import ModelTrace, PeriodTrace, Provenance, SceneTrace, TaskTrace
from geoflow.grid import Grid
from geoflow.store.zarr import grid_from_description

if TYPE_CHECKING:
    import xarray as xr

Reader = Callable[[str], bytes | None]

_NO_SCENE = 65535


def trace(tree: xr.DataTree, places: Places, read: Reader | None) -> Provenance:
    """What is known of how one pixel came about.

    Parameters
    ----------
    tree : DataTree
        As `geoflow.open` gives it.
    places : Places
        One point.
    read : function, optional
        Of files of the run's folder, by relative path; None for a file that is not there. Without it only what the
        store says is told.
    """
    lon, lat = float(places.lon[0]), float(places.lat[0])
    if not places.inside[0]:
        return Provenance(lon, lat, None, missing=("the place is outside the map",))
    files = _Files(read)
    at = _Place(lon, lat, int(places.rows[0]), int(places.cols[0]))
    tile = _tile(tree, at)
    periods = tuple(
        period
        for epoch, node in groups(tree, "imagery").items()
        for period in _periods(epoch, node.to_dataset(), at, files, tile)
    )
    summary = files.json("summary.json")
    return Provenance(
        lon,
        lat,
        tile,
        periods=periods,
        models=tuple(_models(tree, files)),
        tasks=tuple(_tasks(tree, files, tile)),
        job=summary.get("job", ""),
        started=summary.get("started", ""),
        versions=summary.get("versions", {}),
        attribution=_attribution(tree, summary),
        missing=files.told(),
    )


@dataclass(frozen=True)
class _Place:
    lon: float
    lat: float
    row: int
    col: int


class _Files:
    """The run's files, and which of them were not to be had."""

    def __init__(self, read: Reader | None) -> None:
        self._read = read
        self._missing: list[str] = []

    def json(self, name: str) -> dict[str, Any]:
        content = None if self._read is None else self._read(name)
        try:
            found = json.loads(content) if content is not None else None
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        self._missing.append(name)
        return {}

    def told(self) -> tuple[str, ...]:
        if not self._missing:
            return ()
        if self._read is None:
            return ("this is not the store as it was opened: nobody knows which run it is of",)
        return tuple(f"{name} is not beside the store" for name in dict.fromkeys(self._missing))


def _tile(tree: xr.DataTree, at: _Place) -> str | None:
    described = tree.attrs.get("geoflow", {}).get("grid")
    if described is None:
        return None
    grid: Grid = grid_from_description(described)
    return grid.tile_at(at.row // grid.tile, at.col // grid.tile).id


def _periods(epoch: str, imagery: xr.Dataset, at: _Place, files: _Files, tile: str | None) -> list[PeriodTrace]:
    frozen = files.json(f"scenes/{epoch}.json")
    receipt = files.json(f"receipts/imagery/{epoch}/{tile}.json") if tile else {}
    names = [str(name) for name in imagery["period"].values]
    layers = {n: imagery[n] for n in ("clear", "source") if n in imagery}
    here = {name: layer.isel(y=at.row, x=at.col).compute(scheduler="threads").values for name, layer in layers.items()}
    days = {**imagery.attrs.get("periods", {}), **{k: v.split("/") for k, v in frozen.get("periods", {}).items()}}
    out = []
    for i, name in enumerate(names):
        first, last = days.get(name, ("", ""))
        scenes = _scenes(frozen, name, (first, last), at, receipt.get("scenes"))
        out.append(
            PeriodTrace(
                epoch,
                name,
                first,
                last,
                str(imagery.attrs.get("composite", "")),
                int(here["clear"][i]) if "clear" in here and here["clear"][i] != 255 else None,
                _source(here, i, imagery.attrs.get("scenes", ())),
                scenes,
            )
        )
    return out


def _source(here: Mapping[str, Any], period: int, scenes: Any) -> str | None:
    if "source" not in here or (place := int(here["source"][period])) == _NO_SCENE or place >= len(scenes):
        return None
    return str(scenes[place])


def _scenes(
    frozen: Mapping[str, Any], period: str, days: tuple[str, str], at: _Place, of_tile: Any
) -> tuple[SceneTrace, ...]:
    """Scenes of a period whose footprint holds the place, by date; refused ones with the reason."""
    found = []
    for item in frozen.get("items", ()):
        facts = item["properties"]
        day = facts["datetime"][:10]
        if not (days[0] <= day <= days[1] and _covers(item.get("geometry"), at)):
            continue
        lost = of_tile is not None and item["id"] not in of_tile
        why = "its tile did not read it" if lost else ""
        found.append(SceneTrace(item["id"], day, facts.get("eo:cloud_cover"), not lost, why))
    found += [
        SceneTrace(refused["id"], refused.get("date", ""), refused.get("cloud"), False, refused["reason"])
        for refused in frozen.get("refused", ())
        if refused.get("period") in (period, "") and _covers(refused.get("geometry"), at)
    ]
    return tuple(sorted(found, key=lambda scene: (scene.date, scene.id)))


def _covers(geometry: Any, at: _Place) -> bool:
    import shapely.geometry

    return geometry is not None and shapely.covers(
        shapely.geometry.shape(geometry), shapely.geometry.Point(at.lon, at.lat)
    )


def _models(tree: xr.DataTree, files: _Files) -> list[ModelTrace]:
    by_sha: dict[str, list[str]] = {}
    engines: dict[str, str] = {}
    for epoch, node in groups(tree, "map").items():
        sha = str(node.attrs.get("model_sha256", "unknown"))
        by_sha.setdefault(sha, []).append(epoch)
        engines[sha] = str(node.attrs.get("engine", ""))
    card = files.json("model/model.json") if by_sha else {}
    return [
        ModelTrace(sha, tuple(epochs), engines[sha], card if card.get("sha256") == sha else {})
        for sha, epochs in by_sha.items()
    ]


def _tasks(tree: xr.DataTree, files: _Files, tile: str | None) -> list[TaskTrace]:
    if tile is None:
        return []
    wanted = [f"imagery/{epoch}" for epoch in groups(tree, "imagery")]
    wanted += [f"labels/{name}" for name in groups(tree, "labels")]
    wanted += [f"predict/{epoch}" for epoch in groups(tree, "map")]
    wanted += [f"change/{pair}" for pair in groups(tree, "change")]
    found = []
    for key in wanted:
        receipt = files.json(f"receipts/{key}/{tile}.json")
        if receipt:
            found.append(TaskTrace(key, receipt.get("id", ""), receipt.get("seconds")))
    return found


def _attribution(tree: xr.DataTree, summary: Mapping[str, Any]) -> tuple[str, ...]:
    if summary.get("attribution"):
        return tuple(summary["attribution"])
    return attributions(tree)


def attributions(tree: xr.DataTree) -> tuple[str, ...]:
    """Whom the store's groups name, each once."""
    named = [str(node.attrs["attribution"]) for node in tree.subtree if node.attrs.get("attribution")]
    return tuple(dict.fromkeys(named))
