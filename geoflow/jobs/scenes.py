"""The scenes of a job, searched once and frozen into the output.

What a run maps must not change because a catalog did: the first run writes the list of scenes it found, later runs read
it. It is searched again when the job asks something else, or with ``--refresh``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odc.geo.geom import Geometry

from geoflow.errors import CatalogError
from geoflow.jobs.spec import Imagery
from geoflow.store.receipts import digest, write_json

if TYPE_CHECKING:
    from geoflow.grid import Tile
    from geoflow.imagery import Catalog
    from geoflow.imagery.items import FootprintIndex


@dataclass(frozen=True)
class Scenes:
    """The frozen scenes of one epoch.

    Attributes
    ----------
    epoch : str
    items : tuple of dict
        STAC items with unsigned links, their offset decided.
    refused : tuple of dict
        ``id`` and ``reason`` of the scenes that the catalog offered and that are not used.
    """

    epoch: str
    items: tuple[dict[str, Any], ...]
    refused: tuple[dict[str, str], ...]

    def on(self, tile: Tile) -> tuple[dict[str, Any], ...]:
        """The scenes whose footprint meets a tile."""
        return tuple(dict(item) for item in self._index.on(tile.geobox))

    @cached_property
    def _index(self) -> FootprintIndex:
        from geoflow.imagery.items import FootprintIndex

        return FootprintIndex(self.items)

    def ledger(self) -> dict[str, list[dict[str, Any]]]:
        """What people are told: used scenes with the decisions made for them, refused ones with the reason."""
        return {"used": [_facts(item) for item in self.items], "refused": list(self.refused)}


def identity(item: dict[str, Any]) -> list[Any]:
    """What of a scene alters pixels: its id, its links and its offset; not when a provider last touched its record."""
    links = sorted((key, asset["href"]) for key, asset in item["assets"].items())
    return [item["id"], item["properties"]["datetime"], links, item["properties"]["geoflow:offset"]["add"]]


def footprint_wkb(item: dict[str, Any]) -> bytes:
    """Where a scene has pixels, as WKB in EPSG:4326."""
    from geoflow.imagery.items import footprint

    return bytes(footprint(item).to_crs("EPSG:4326").geom.wkb)


def find_scenes(
    section: Imagery, catalog: Catalog, area: Geometry, folder: Path, refresh: bool = False
) -> list[Scenes]:
    """The scenes of every epoch, from the frozen list if it answers the same question, else from the catalog.

    Parameters
    ----------
    section : Imagery
        The job's imagery section.
    catalog : Catalog
    area : Geometry
    folder : Path
        ``OUT/scenes``.
    refresh : bool
        Search again even if nothing in the job changed.

    Raises
    ------
    CatalogError
        If a period of an epoch has no scene.
    """
    return [_find_epoch(epoch, section, catalog, area, folder, refresh) for epoch in section.epochs]


def _find_epoch(epoch: str, section: Imagery, catalog: Catalog, area: Geometry, folder: Path, refresh: bool) -> Scenes:
    from geoflow.imagery import with_decisions

    periods = section.epochs[epoch]
    question = digest(
        catalog.model_dump(mode="json"),
        area.to_crs("EPSG:4326").wkt,
        {name: [str(p.start), str(p.end)] for name, p in periods.items()},
        section.max_cloud_percent,
        list(section.bands),
    )
    path = folder / f"{epoch}.json"
    if not refresh and (frozen := _read(path, question)) is not None:
        return Scenes(epoch, tuple(frozen["items"]), tuple(frozen["refused"]))
    items, refused = _search(epoch, section, catalog, area)
    decided = tuple(dict(item) for item in with_decisions(items, catalog))
    scenes = Scenes(epoch, decided, tuple(refused))
    write_json(path, {"question": question, "items": scenes.items, "refused": scenes.refused})
    return scenes


def _search(
    epoch: str, section: Imagery, catalog: Catalog, area: Geometry
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The scenes of all periods together, each once."""
    from geoflow.imagery import search

    items: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for name, period in section.epochs[epoch].items():
        try:
            found = search(catalog, area, period.start, period.end, section.max_cloud_percent, section.bands)
        except CatalogError as error:
            raise CatalogError(f"imagery.epochs.{epoch}.{name}: {error}") from error
        items |= {item["id"]: item for item in found.items}
        # A scene outside these days was not offered by an API either: it is no news that it is not used.
        refused |= {r.id: r.reason for r in found.refused if not r.reason.startswith("sensed on")}
    ordered = sorted(items.values(), key=lambda item: (item["properties"]["datetime"], item["id"]))
    return ordered, [{"id": i, "reason": r} for i, r in sorted(refused.items()) if i not in items]


def _read(path: Path, question: str) -> dict[str, Any] | None:
    try:
        frozen = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return dict(frozen) if frozen.get("question") == question else None


def _facts(item: dict[str, Any]) -> dict[str, Any]:
    properties = item["properties"]
    decision = properties["geoflow:offset"]
    return {
        "id": item["id"],
        "date": properties["datetime"][:10],
        "cloud": properties.get("eo:cloud_cover"),
        "baseline": properties.get("s2:processing_baseline"),
        "offset_add": decision["add"],
        "offset_rule": decision["rule"],
        "note": decision.get("note", ""),
    }


def used_ids(scenes: Sequence[Scenes]) -> dict[str, list[str]]:
    """Ids of the scenes of each epoch."""
    return {s.epoch: [item["id"] for item in s.items] for s in scenes}
