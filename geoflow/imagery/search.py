"""From a catalog, an area and a season to a frozen, de-duplicated, ordered list of scenes.

Whatever a server was asked, every filter is applied again here: servers ignore parameters that they do not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from odc.geo.geom import Geometry

from geoflow.errors import CatalogError, SceneError
from geoflow.imagery.catalog import Catalog, is_remote
from geoflow.imagery.items import Item, baseline_of, footprint, freeze, granule_of, resolve_href, sensed

_PAGE = 100
_TIMEOUT_S = (10.0, 60.0)  # connect, read
_RETRIES = 5
_CONNECT_RETRIES = 2  # a server that is not there is soon reported


@dataclass(frozen=True)
class Refusal:
    """A scene that the catalog offered and that is not used."""

    id: str
    reason: str


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    items : tuple of dict
        Frozen STAC items (see `geoflow.imagery.items.freeze`) in order of sensing time, then id.
    refused : tuple of Refusal
        Scenes that the catalog offered and that were left out, each with the reason.
    """

    items: tuple[dict[str, Any], ...]
    refused: tuple[Refusal, ...]


def search(
    catalog: Catalog,
    area: Geometry,
    start: date | str,
    end: date | str,
    max_cloud_percent: float = 100.0,
    bands: Sequence[str] | None = None,
) -> SearchResult:
    """Find the scenes of an area and a range of days.

    Parameters
    ----------
    area : Geometry
        In any CRS; a scene is taken where its footprint meets it.
    start, end : date or ISO string
        First and last day of sensing, both included, in UTC.
    max_cloud_percent : float
        Scenes with more cloud by their metadata are refused; a scene that does not say is taken.
    bands : sequence of str, optional
        Scenes that lack one of these, or the scene classification, are refused.

    Raises
    ------
    CatalogError
        If the catalog cannot be reached or read, lacks a band, or no scene is left; the message then counts the scenes
        that each filter dropped.
    """
    first, last = _day(start, "start"), _day(end, "end")
    if first > last:
        raise CatalogError(f"the search starts on {first} and ends before that, on {last}")
    catalog.check_bands(bands if bands is not None else catalog.bands)
    if catalog.url is None:
        raise CatalogError(f"catalog {catalog.name} has no address of its own: say where it is with url")
    lonlat = area.to_crs("EPSG:4326")
    found: dict[str, dict[str, Any]] = {}
    for raw, base in _offered(catalog, lonlat, first, last):
        item = freeze(raw, catalog, base)
        found.setdefault(item["id"], item)  # pages of an API may repeat an item
    refused: list[tuple[str, str, str]] = []
    kept = []
    for item in found.values():
        reason = _reason_against(item, catalog, lonlat, (first, last), max_cloud_percent, bands)
        if reason is None:
            kept.append(item)
        else:
            refused.append((item["id"], *reason))
    newest, superseded = _newest(kept)
    refused += superseded
    if not newest:
        asked = f"{first} to {last}, cloud cover up to {max_cloud_percent:g} %"
        raise CatalogError(f"catalog {catalog.name} ({catalog.url}) has no scene for {asked}: {_tally(refused)}")
    order = sorted(newest, key=lambda item: (sensed(item), item["id"]))
    reasons = sorted((Refusal(id_, text) for id_, _, text in refused), key=lambda r: (r.id, r.reason))
    return SearchResult(tuple(order), tuple(reasons))


def _day(value: date | str, name: str) -> date:
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise CatalogError(f"{name} {value!r} is not a day such as 2024-06-30") from None
    return value


def _reason_against(
    item: Item,
    catalog: Catalog,
    area: Geometry,
    days: tuple[date, date],
    max_cloud: float,
    bands: Sequence[str] | None,
) -> tuple[str, str] | None:
    """(filter, sentence) if the scene is not wanted."""
    day = sensed(item).date()
    if not days[0] <= day <= days[1]:
        return "date", f"sensed on {day}, outside {days[0]} to {days[1]}"
    if not footprint(item).intersects(area):
        return "area", "does not meet the area"
    cloud = item["properties"].get("eo:cloud_cover")
    if cloud is not None and cloud > max_cloud:
        return "cloud", f"cloud cover {cloud:.1f} % is above {max_cloud:g} %"
    lacks = [b for b in (*(bands or ()), "SCL") if catalog.asset_key(b) not in item["assets"]]
    if lacks:
        return "bands", f"lacks {', '.join(lacks)}"
    return None


def _newest(items: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
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
                refused.append((item["id"], "superseded", f"older processing of the same datatake than {winner['id']}"))
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


def _tally(refused: Sequence[tuple[str, str, str]]) -> str:
    if not refused:
        return "it offered none"
    counts = Counter(which for _, which, _ in refused)
    parts = ", ".join(f"{n} by {which}" for which, n in sorted(counts.items()))
    return f"it offered {len(refused)}, dropped {parts}"


def _offered(catalog: Catalog, area: Geometry, first: date, last: date) -> Iterator[tuple[dict[str, Any], str]]:
    """Every item that the catalog offers, unfiltered, with the address it came from."""
    source = _api_items(catalog, area, first, last) if catalog.kind == "api" else _file_items(catalog)
    try:
        yield from source
    except (CatalogError, SceneError):
        raise
    except Exception as error:  # pystac and requests raise many kinds; each means that the catalog cannot be read
        ours = _own_error(error)
        reason = f"catalog {catalog.name} cannot be read at {catalog.url}: {ours or error}"
        raise CatalogError(reason) from error


def _own_error(error: BaseException | None) -> CatalogError | None:
    """The `CatalogError` under an exception of pystac, which wraps what a reader raises."""
    while error is not None and not isinstance(error, CatalogError):
        error = error.__cause__ or error.__context__
    return error


def _api_items(catalog: Catalog, area: Geometry, first: date, last: date) -> Iterator[tuple[dict[str, Any], str]]:
    from pystac_client import Client
    from pystac_client.conformance import ConformanceClasses
    from pystac_client.stac_api_io import StacApiIO

    client = Client.open(str(catalog.url), stac_io=StacApiIO(timeout=_TIMEOUT_S, max_retries=_retry()))
    bounds = area.boundingbox
    asked = client.search(
        collections=[catalog.collection] if catalog.collection else None,
        bbox=(bounds.left, bounds.bottom, bounds.right, bounds.top),
        datetime=f"{first}T00:00:00Z/{last}T23:59:59Z",
        limit=_PAGE,
        method="POST" if client.conforms_to(ConformanceClasses.ITEM_SEARCH) else None,
    )
    # As dictionaries, because pystac rewrites proj:epsg on the way to its own items. Cloud cover is not sent along: the
    # scenes that it drops belong into the ledger too.
    for item in asked.items_as_dicts():
        yield item, str(catalog.url)


def _file_items(catalog: Catalog) -> Iterator[tuple[dict[str, Any], str]]:
    """Items of a static catalog, or of a file that holds a collection of items."""
    import pystac

    reader = _reader(catalog)
    document = reader.read_json(str(catalog.url))
    if document.get("type") == "FeatureCollection":
        for item in document["features"]:
            yield item, str(catalog.url)
        return
    root = pystac.read_file(str(catalog.url), stac_io=reader)
    if not isinstance(root, pystac.Catalog):
        raise CatalogError(f"{catalog.url} is a STAC {document.get('type')}, not a catalog or a collection of items")
    for item in root.get_items(recursive=True):
        if catalog.collection is None or item.collection_id in (None, catalog.collection):
            href = item.get_self_href() or str(catalog.url)
            yield item.to_dict(include_self_link=False, transform_hrefs=False), href


def _reader(catalog: Catalog) -> Any:
    """Reads the documents of a static catalog: with retries, and never a local file outside the catalog's folder."""
    from pystac import Link
    from pystac.stac_io import DefaultStacIO
    from pystac_client.stac_api_io import StacApiIO

    network = StacApiIO(timeout=_TIMEOUT_S, max_retries=_retry())

    class Reader(DefaultStacIO):
        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            href = str(source.get_absolute_href() if isinstance(source, Link) else source)
            address = resolve_href(href, str(catalog.url), catalog.root)
            if is_remote(address):
                return network.request(address)
            with open(address, encoding="utf-8") as file:
                return file.read()

    return Reader()


def _retry() -> Any:
    from urllib3 import Retry

    return Retry(
        total=_RETRIES,
        connect=_CONNECT_RETRIES,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,
    )
