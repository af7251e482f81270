"""The scenes of a job, searched once and frozen into the output.

What a run maps must not change because a catalog did: the first run writes the list of scenes it found, later runs read
it. It is searched again when the job asks something else, or with ``--refresh``. The list holds every scene that the
catalog offered: the used ones whole, the refused ones with the reason.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odc.geo.geom import Geometry

from geoflow.errors import CatalogError, SceneError
from geoflow.jobs.spec import DateRange, Imagery
from geoflow.places import read_bytes
from geoflow.store.receipts import digest, write_json

if TYPE_CHECKING:
    from geoflow.grid import Tile
    from geoflow.imagery import Catalog, Refusal, SearchResult
    from geoflow.imagery.items import FootprintIndex
    from geoflow.imagery.sources import Source


@dataclass(frozen=True)
class Scenes:
    """The frozen scenes of one epoch.

    Attributes
    ----------
    epoch : str
    items : tuple of dict
        STAC items with unsigned links, their offset decided.
    refused : tuple of dict
        Scenes that the catalog offered and that are not used: ``id``, ``reason``, ``filter``, ``period`` and, as far as
        they are known, ``date``, ``tile``, ``orbit``, ``cloud``, ``baseline``, ``geometry``.
    periods : mapping of name to DateRange
    searches : mapping of period to dict
        How the catalog answered: ``repeated`` items, filters ``sent`` to the server, scenes ``dropped`` by them (None
        where it does not count), scenes ``outside`` the dates that a file holds.
    reads : tuple of dict
        Reads that failed, or had to be tried again, while the offsets were decided: ``scene``, ``band``, ``what``,
        ``cause``.
    before : Scenes, optional
        The list that this one replaces, where there was one.
    """

    epoch: str
    items: tuple[dict[str, Any], ...]
    refused: tuple[dict[str, Any], ...]
    periods: Mapping[str, DateRange] = field(default_factory=dict)
    searches: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    reads: tuple[dict[str, Any], ...] = ()
    before: Scenes | None = None

    def on(self, tile: Tile) -> tuple[dict[str, Any], ...]:
        """The scenes whose footprint meets a tile."""
        return tuple(dict(item) for item in self._index.on(tile.geobox))

    @cached_property
    def _index(self) -> FootprintIndex:
        from geoflow.imagery.items import FootprintIndex

        return FootprintIndex(self.items)

    def within(self, period: str) -> tuple[dict[str, Any], ...]:
        """The used scenes of one period."""
        return tuple(item for item in self.items if period in periods_of(item["properties"]["datetime"], self.periods))

    def unasked(self) -> list[dict[str, Any]]:
        """Scenes whose pixels could not be asked about the offset: ``scene``, ``rule``, ``add`` and ``note``."""
        from geoflow.imagery.harmonise import PROPERTY, UNREADABLE

        decided = [(item["id"], item["properties"][PROPERTY]) for item in self.items]
        return [
            {"scene": id_, **{key: made.get(key) for key in ("rule", "add", "note")}}
            for id_, made in decided
            if made.get("pixels") == UNREADABLE
        ]

    def ledger(self) -> dict[str, Any]:
        """What people are told: used scenes with the decisions made for them, refused ones with the reason."""
        return {
            "used": [_facts(item, self.periods) for item in self.items],
            "refused": [{k: v for k, v in refused.items() if k != "geometry"} for refused in self.refused],
            "searches": {name: dict(search) for name, search in self.searches.items()},
        }


def identity(item: dict[str, Any]) -> list[Any]:
    """What of a scene alters pixels: its id, its links and its offset; not when a provider last touched its record."""
    links = sorted((key, asset["href"]) for key, asset in item["assets"].items())
    return [item["id"], item["properties"]["datetime"], links, item["properties"]["geoflow:offset"]["add"]]


def footprint_wkb(item: dict[str, Any]) -> bytes:
    """Where a scene has pixels, as WKB in EPSG:4326."""
    from geoflow.imagery.items import footprint

    return bytes(footprint(item).to_crs("EPSG:4326").geom.wkb)


def periods_of(moment: str, periods: Mapping[str, DateRange]) -> list[str]:
    """Names of the periods that hold a moment of sensing (ISO, UTC)."""
    from geoflow.imagery.items import sensed

    day = sensed({"properties": {"datetime": moment}}).date()
    return [name for name, period in periods.items() if period.start <= day <= period.end]


@dataclass(frozen=True)
class Search:
    """How the scenes of a job are searched.

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
    freeze : bool
        Write down what was found; without, it is only shown.
    pixels : bool
        Check offsets against pixels; without, metadata alone decide, nothing is read and nothing is frozen.
    """

    section: Imagery
    catalog: Catalog
    area: Geometry
    folder: Path
    refresh: bool = False
    freeze: bool = True
    pixels: bool = True

    def run(self) -> list[Scenes]:
        """The scenes of every epoch, from the frozen list if it answers the same question, else from the catalog.

        Raises
        ------
        CatalogError
            If the catalog cannot be read, or a period of an epoch has no scene.
        """
        from geoflow.imagery.search import open_source

        source = open_source(self.catalog)
        return [self._epoch(epoch, source) for epoch in self.section.epochs]

    def _epoch(self, epoch: str, source: Source) -> Scenes:
        periods, path = self.section.epochs[epoch], self.folder / f"{epoch}.json"
        question, frozen = self._question(epoch), _read(path)
        before = None if frozen is None else _thaw(epoch, frozen)
        owed = before is not None and self.section.on_error == "fail" and bool(before.unasked())
        if before is not None and not self.refresh and not owed and frozen and frozen.get("question") == question:
            return before
        found = {name: self._period(source, epoch, name) for name in periods}
        items, refused = _merged(found)
        kept, undecided, reads = self._decided(items)
        searches = {name: _account(result) for name, result in found.items()}
        scenes = Scenes(
            epoch, kept, tuple(sorted(refused + undecided, key=lambda r: r["id"])), periods, searches, reads, before
        )
        self._check_periods(scenes)
        if self.freeze and self.pixels:
            write_json(path, {"question": question, **self._described(epoch), **_frozen(scenes)})
        return scenes

    def _question(self, epoch: str) -> str:
        """A digest of everything that decides which scenes are used."""
        section = self.section
        return digest(
            self.catalog.model_dump(mode="json"),
            self.area.to_crs("EPSG:4326").wkt,
            {name: [str(p.start), str(p.end)] for name, p in section.epochs[epoch].items()},
            [section.max_cloud_percent, list(section.bands), list(section.tiles), list(section.orbits)],
            [section.best_per_tile, section.server_filters],
        )

    def _described(self, epoch: str) -> dict[str, Any]:
        """The same for a reader of the file."""
        section = self.section
        return {
            "catalog": {"name": self.catalog.name, "url": self.catalog.url, "collection": self.catalog.collection},
            "searched": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "filters": {
                "max_cloud_percent": section.max_cloud_percent,
                "bands": list(section.bands),
                "tiles": list(section.tiles),
                "orbits": list(section.orbits),
                "best_per_tile": section.best_per_tile,
            },
            "periods": {name: f"{p.start}/{p.end}" for name, p in section.epochs[epoch].items()},
        }

    def _period(self, source: Source, epoch: str, name: str) -> SearchResult:
        from geoflow.imagery.search import Wishes, find

        section, period = self.section, self.section.epochs[epoch][name]
        wishes = Wishes(
            section.max_cloud_percent,
            section.bands,
            section.tiles,
            section.orbits,
            section.best_per_tile,
            section.server_filters,
        )
        try:
            return find(source, self.area, period.start, period.end, wishes)
        except CatalogError as error:
            raise CatalogError(f"imagery.epochs.{epoch}.{name}: {error}") from error

    def _decided(
        self, items: Sequence[dict[str, Any]]
    ) -> tuple[tuple[dict[str, Any], ...], list[dict[str, Any]], tuple[dict[str, Any], ...]]:
        """Items with their offset, those for which not even metadata say one, and reads that did not work at once."""
        from geoflow.imagery import ReadLog, decide_offset, with_decisions
        from geoflow.imagery.harmonise import PROPERTY, DarkPixels
        from geoflow.imagery.search import Refusal

        kept, refused = [], []
        for item in items:
            try:
                decision = decide_offset(item, self.catalog, read_pixels=False)
            except SceneError as error:
                refused.append(_refused(Refusal(item["id"], str(error), "offset", item), ""))
            else:
                kept.append({**item, "properties": {**item["properties"], PROPERTY: decision.to_dict()}})
        if not self.pixels:
            return tuple(kept), refused, ()
        known = {item["id"] for item in kept}
        plain = [item for item in items if item["id"] in known]
        self.catalog.check_credentials([a["href"] for item in plain for a in item["assets"].values()])
        log, section = ReadLog(), self.section
        asking = DarkPixels(section.attempts, section.timeout_s, must=section.on_error == "fail", log=log)
        decided = tuple(dict(item) for item in with_decisions(plain, self.catalog, asking=asking))
        return decided, refused, tuple(event.to_dict() for event in log.events)

    def _check_periods(self, scenes: Scenes) -> None:
        for name in scenes.periods:
            if not scenes.within(name):
                why = "; ".join(r["reason"] for r in scenes.refused if r["filter"] == "offset")
                raise CatalogError(f"imagery.epochs.{scenes.epoch}.{name}: no scene is left: {why}")


def _merged(found: Mapping[str, SearchResult]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The scenes of all periods together, each once; one that any period uses is used."""
    items: dict[str, dict[str, Any]] = {}
    refused: dict[str, dict[str, Any]] = {}
    for name, result in found.items():
        items |= {item["id"]: item for item in result.items}
        for refusal in result.refused:
            if refusal.filter != "date":  # an API does not offer these; a file does, and they are counted
                refused.setdefault(refusal.id, _refused(refusal, name))
    ordered = sorted(items.values(), key=lambda item: (item["properties"]["datetime"], item["id"]))
    return ordered, [entry for id_, entry in refused.items() if id_ not in items]


def _refused(refusal: Refusal, period: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": refusal.id, "reason": refusal.reason, "filter": refusal.filter, "period": period}
    if refusal.item is not None:
        entry |= {**_place_and_time(refusal.item), "geometry": refusal.item.get("geometry")}
    return entry


def _account(result: SearchResult) -> dict[str, Any]:
    outside = sum(r.filter == "date" for r in result.refused)
    return {
        "used": len(result.items),
        "refused": len(result.refused) - outside,
        "outside": outside,
        "repeated": result.repeated,
        "sent": list(result.sent),
        "dropped": result.dropped,
    }


def _frozen(scenes: Scenes) -> dict[str, Any]:
    found = {"searches": dict(scenes.searches), "items": scenes.items, "refused": scenes.refused}
    return {**found, "reads": scenes.reads} if scenes.reads else found


def _thaw(epoch: str, frozen: Mapping[str, Any]) -> Scenes:
    periods = {name: DateRange.model_validate(text) for name, text in frozen.get("periods", {}).items()}
    items, refused = tuple(frozen["items"]), tuple(frozen["refused"])
    return Scenes(epoch, items, refused, periods, frozen.get("searches", {}), tuple(frozen.get("reads", ())))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        frozen = json.loads(read_bytes(path))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return dict(frozen) if isinstance(frozen, dict) and {"items", "refused"} <= set(frozen) else None


def _place_and_time(item: Mapping[str, Any]) -> dict[str, Any]:
    from geoflow.imagery.items import cloud_of, orbit_of, tile_of

    properties = item["properties"]
    return {
        "date": properties["datetime"][:10],
        "tile": tile_of(item),
        "orbit": orbit_of(item),
        "cloud": cloud_of(item),
        "baseline": properties.get("s2:processing_baseline"),
    }


def _facts(item: dict[str, Any], periods: Mapping[str, DateRange]) -> dict[str, Any]:
    decision = item["properties"]["geoflow:offset"]
    return {
        "id": item["id"],
        "periods": periods_of(item["properties"]["datetime"], periods),
        **_place_and_time(item),
        "offset_add": decision["add"],
        "offset_rule": decision["rule"],
        "offset_pixels": decision.get("pixels", ""),
        "note": decision.get("note", ""),
    }
