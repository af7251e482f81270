"""From a catalog, an area and a season to a frozen, de-duplicated, ordered list of scenes.

Whatever a server was asked, every filter is applied again here: servers ignore parameters that they do not know. A
scene that was offered is either used or refused with a reason; none is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, Literal

from odc.geo.geom import Geometry

from geoflow.errors import CatalogError, SceneError
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.items import (
    Item,
    baseline_of,
    cloud_of,
    footprint,
    freeze,
    granule_of,
    orbit_of,
    sensed,
    tile_of,
)
from geoflow.imagery.lonlat import to_lonlat
from geoflow.imagery.sources import Answer, Question, Source

SentFilters = Literal["none", "place", "all"]


@dataclass(frozen=True)
class Wishes:
    """Which of the scenes of an area and a season are wanted.

    Parameters
    ----------
    max_cloud_percent : float
        Scenes with more cloud by their metadata are refused; a scene that does not say is taken.
    bands : tuple of str, optional
        Scenes that lack one of these, or the scene classification, are refused.
    tiles : tuple of str
        Sentinel-2 tiles such as ``33TWN``; all without.
    orbits : tuple of int
        Relative orbits; all without.
    best_per_tile : int, optional
        Use only so many scenes of a tile: the least clouded, then those nearest the middle of the season.
    sent : "none", "place" or "all"
        Which filters a server that knows CQL2 or the query extension is given beside area and days: none, tile and
        orbit, or the cloud limit as well. What a server drops cannot be listed as refused, only counted.
    """

    max_cloud_percent: float = 100.0
    bands: tuple[str, ...] | None = None
    tiles: tuple[str, ...] = ()
    orbits: tuple[int, ...] = ()
    best_per_tile: int | None = None
    sent: SentFilters = "place"


@dataclass(frozen=True)
class Refusal:
    """A scene that the catalog offered and that is not used.

    Attributes
    ----------
    id : str
    reason : str
        A sentence.
    filter : str
        What refused it: ``item`` (it is none), ``date``, ``area``, ``tile``, ``orbit``, ``bands``, ``superseded``,
        ``cloud`` or ``best``.
    item : dict or None
        The frozen item, where one could be made.
    """

    id: str
    reason: str
    filter: str = ""
    item: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    items : tuple of dict
        Frozen STAC items (see `geoflow.imagery.items.freeze`) in order of sensing time, then id.
    refused : tuple of Refusal
        Scenes that the catalog offered and that were left out, each with the reason.
    repeated : int
        How many times an item came again, as pages of an API may bring it.
    sent : tuple of str
        Filters that the server was given beside area and days.
    dropped : int or None
        Scenes that the server dropped by them; None where it does not count.
    """

    items: tuple[dict[str, Any], ...]
    refused: tuple[Refusal, ...]
    repeated: int = 0
    sent: tuple[str, ...] = ()
    dropped: int | None = None


def search(
    catalog: Catalog,
    area: Geometry,
    start: date | str,
    end: date | str,
    max_cloud_percent: float = 100.0,
    bands: Sequence[str] | None = None,
) -> SearchResult:
    """Find the scenes of an area and a range of days; `find` has more to wish for.

    Parameters
    ----------
    area : Geometry
        In any CRS; a scene is taken where its footprint meets it.
    start, end : date or ISO string
        First and last day of sensing, both included, in UTC.
    max_cloud_percent, bands
        See `Wishes`.

    Raises
    ------
    CatalogError
        If the catalog cannot be reached or read, lacks a band, or no scene is left; the message then counts the scenes
        that each filter dropped.
    """
    wishes = Wishes(max_cloud_percent, None if bands is None else tuple(bands))
    return find(open_source(catalog), area, start, end, wishes)


def open_source(catalog: Catalog) -> Source:
    """The catalog as something to be asked; ask the same one for several seasons, and a file is read once.

    Raises
    ------
    CatalogError
        If the catalog has no address.
    """
    if catalog.url is None:
        raise CatalogError(f"catalog {catalog.name} has no address of its own: say where it is with url")
    return Source(catalog)


def find(source: Source, area: Geometry, start: date | str, end: date | str, wishes: Wishes) -> SearchResult:
    """Find the scenes of an area and a range of days, in a source from `open_source`; see `search`."""
    catalog = source.catalog
    first, last = _day(start, "start"), _day(end, "end")
    if first > last:
        raise CatalogError(f"the search starts on {first} and ends before that, on {last}")
    catalog.check_bands(wishes.bands if wishes.bands is not None else catalog.bands)
    lonlat, answer = to_lonlat(area), Answer()
    question = _question(lonlat, first, last, wishes)
    found: dict[str, dict[str, Any]] = {}
    refused: list[Refusal] = []
    repeated = 0
    for number, (raw, base) in enumerate(source.offered(question, answer), start=1):
        try:
            item = freeze(raw, catalog, base)
        except SceneError as error:
            refused.append(_malformed(raw, number, error))
            continue
        repeated += item["id"] in found
        found.setdefault(item["id"], item)
    kept, others = _pick(found.values(), catalog, question, wishes)
    refused += others
    if not kept:
        asked = f"{first} to {last}, cloud cover up to {wishes.max_cloud_percent:g} %"
        raise CatalogError(f"catalog {catalog.name} ({catalog.url}) has no scene for {asked}: {_tally(refused)}")
    return SearchResult(
        tuple(sorted(kept, key=lambda item: (sensed(item), item["id"]))),
        tuple(sorted(refused, key=lambda r: (r.id, r.reason))),
        repeated,
        tuple(dict.fromkeys(answer.sent)),
        None if answer.matched is None else max(0, answer.matched - len(found)),
    )


def _question(area: Geometry, first: date, last: date, wishes: Wishes) -> Question:
    place = wishes.sent != "none"
    return Question(
        area,
        first,
        last,
        wishes.max_cloud_percent if wishes.sent == "all" and wishes.max_cloud_percent < 100 else None,
        wishes.tiles if place else (),
        wishes.orbits if place else (),
    )


def _day(value: date | str, name: str) -> date:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise CatalogError(f"{name} {value!r} is not a day such as 2024-06-30") from None
    return value


def _malformed(raw: Any, number: int, error: SceneError) -> Refusal:
    name = raw.get("id") if isinstance(raw, Mapping) else None
    return Refusal(str(name or f"(no id, number {number} of what was offered)"), f"not a usable item: {error}", "item")


def _pick(
    items: Iterable[dict[str, Any]], catalog: Catalog, question: Question, wishes: Wishes
) -> tuple[list[dict[str, Any]], list[Refusal]]:
    """What is used and what is refused.

    A datatake is judged by its newest processing, so superseded items go before the cloud limit is applied; and only
    what passed all of that competes for the best of its tile.
    """
    kept, refused = [], []
    for item in items:
        reason = _reason_against(item, catalog, question, wishes)
        if reason is None:
            kept.append(item)
        else:
            refused.append(Refusal(item["id"], reason[1], reason[0], item))
    kept, superseded = _newest(kept)
    kept, clouded = _clear_enough(kept, wishes.max_cloud_percent)
    kept, beaten = _best(kept, question, wishes.best_per_tile)
    return kept, refused + superseded + clouded + beaten


def _reason_against(item: Item, catalog: Catalog, question: Question, wishes: Wishes) -> tuple[str, str] | None:
    """(filter, sentence) if the scene is not one that was asked for."""
    day, tile, orbit = sensed(item).date(), tile_of(item), orbit_of(item)
    if not question.first <= day <= question.last:
        return "date", f"sensed on {day}, outside {question.first} to {question.last}"
    if not footprint(item).intersects(question.area):
        return "area", "does not meet the area"
    if wishes.tiles and tile not in wishes.tiles:
        return "tile", f"tile {tile or 'unknown'} is not among {', '.join(wishes.tiles)}"
    if wishes.orbits and orbit not in wishes.orbits:
        said = "unknown" if orbit is None else orbit
        return "orbit", f"relative orbit {said} is not among {', '.join(map(str, wishes.orbits))}"
    lacks = [b for b in (*(wishes.bands or ()), "SCL") if catalog.asset_key(b) not in item["assets"]]
    if lacks:
        return "bands", f"lacks {', '.join(lacks)}"
    return None


def _newest(items: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Refusal]]:
    """Keep the newest processing of each datatake and tile.

    Two items of one datatake, tile and baseline may be two datastrips that share the tile, each with a part of it; both
    are kept. Items of an older baseline than another of their datatake and tile are refused.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(granule_of(item), []).append(item)
    kept, refused = [], []
    for group in groups.values():
        best = max(group, key=_processing)
        strips: dict[str, Item] = {}
        for item in sorted(group, key=_processing, reverse=True):
            sensing = _sensing_of_strip(item) or item["id"]
            if baseline_of(item) == baseline_of(best) and sensing not in strips:
                strips[sensing] = item
                kept.append(item)
            else:
                winner = best if baseline_of(item) != baseline_of(best) else strips[sensing]
                reason = f"older processing of the same datatake than {winner['id']}"
                refused.append(Refusal(item["id"], reason, "superseded", item))
    return kept, refused


def _processing(item: Item) -> tuple[tuple[int, int], str, str]:
    """What orders the processings of one granule: baseline, then time of processing, then id."""
    made = item["properties"].get("s2:generation_time") or ""
    return baseline_of(item) or (-1, -1), str(made), item["id"]


def _sensing_of_strip(item: Item) -> str | None:
    """Start of sensing of the datastrip, from its id (``..._S20230815T095630_N05.09``)."""
    parts = [p for p in str(item["properties"].get("s2:datastrip_id") or "").split("_") if p.startswith("S2")]
    stamps = [p[1:] for p in parts if len(p) == 16 and p[9] == "T"]
    return stamps[-1] if stamps else None


def _clear_enough(items: Iterable[dict[str, Any]], limit: float) -> tuple[list[dict[str, Any]], list[Refusal]]:
    kept, refused = [], []
    for item in items:
        cloud = cloud_of(item)
        if cloud is not None and cloud > limit:
            refused.append(Refusal(item["id"], f"cloud cover {cloud:.1f} % is above {limit:g} %", "cloud", item))
        else:
            kept.append(item)
    return kept, refused


def _best(
    items: Sequence[dict[str, Any]], question: Question, count: int | None
) -> tuple[list[dict[str, Any]], list[Refusal]]:
    """The best scenes of each tile; the datastrips of one datatake, which share the tile, count as one scene."""
    if count is None:
        return list(items), []
    tiles: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for item in items:
        tiles.setdefault(tile_of(item), {}).setdefault(granule_of(item), []).append(item)
    middle = _middle(question)
    kept, refused = [], []
    for tile, scenes in tiles.items():
        ranked = sorted(scenes.values(), key=lambda group: min(_rank(item, middle) for item in group))
        kept += [item for group in ranked[:count] for item in group]
        for place, group in enumerate(ranked[count:], start=count + 1):
            for item in group:
                cloud = cloud_of(item)
                said = "unknown cloud cover" if cloud is None else f"cloud cover {cloud:.1f} %"
                reason = f"number {place} of tile {tile or 'unknown'} with {said}; the best {count} are used"
                refused.append(Refusal(item["id"], reason, "best", item))
    return kept, refused


def _middle(question: Question) -> datetime:
    start = datetime.combine(question.first, time(0))
    return start + (question.last + timedelta(days=1) - question.first) / 2


def _rank(item: Item, middle: datetime) -> tuple[float, float, str]:
    """Less cloud first (unknown last), then nearer to the middle of the season, then by id."""
    cloud = cloud_of(item)
    away = abs((sensed(item).replace(tzinfo=None) - middle).total_seconds())
    return 101.0 if cloud is None else cloud, away, item["id"]


def _tally(refused: Sequence[Refusal]) -> str:
    if not refused:
        return "it offered none"
    counts = Counter(r.filter for r in refused)
    parts = ", ".join(f"{n} by {which}" for which, n in sorted(counts.items()))
    return f"it offered {len(refused)}, dropped {parts}"
