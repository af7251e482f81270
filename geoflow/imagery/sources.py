"""Where scenes are offered: a STAC API, a static catalog, a file of items (GeoJSON or stac-geoparquet).

A source gives what it has, as plain dictionaries and unfiltered but for what it was asked; `geoflow.imagery.search`
applies every filter itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import shapely
from odc.geo.geom import Geometry

from geoflow.errors import CatalogError, SceneError
from geoflow.imagery.catalog import Catalog, is_parquet, is_remote
from geoflow.imagery.links import resolve_href
from geoflow.places import place, read_bytes

_PAGE = 100
_MAX_VERTICES = 400  # of the area that is sent along; servers refuse bodies that are too long
_STEP_DEG = 0.005
_NOT_PROPERTIES = {"type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "links", "assets", "collection"}


@dataclass(frozen=True)
class Question:
    """What a source is asked: where, when, and how narrow.

    Parameters
    ----------
    area : Geometry
        In EPSG:4326, split at the antimeridian.
    first, last : date
        Days of sensing, both included.
    max_cloud_percent : float or None
    tiles : tuple of str
        Names such as ``33TWN``; none is all.
    orbits : tuple of int
        None is all.
    """

    area: Geometry
    first: date
    last: date
    max_cloud_percent: float | None = None
    tiles: tuple[str, ...] = ()
    orbits: tuple[int, ...] = ()


@dataclass
class Answer:
    """What came of a question beside the items.

    Attributes
    ----------
    sent : list of str
        Filters that the server was given; what they drop it does not offer.
    matched : int or None
        How many items the server says that it has without them.
    """

    sent: list[str] = field(default_factory=list)
    matched: int | None = None


class Source:
    """The scenes that a catalog offers. A file or static catalog is read once, however often it is asked.

    Parameters
    ----------
    catalog : Catalog
        With an address.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._all: list[tuple[dict[str, Any], str]] | None = None
        self._client: Any = None

    def offered(self, question: Question, answer: Answer) -> Iterator[tuple[Any, str]]:
        """Every item, with the address of the document that holds it; notes in ``answer`` what was sent.

        Raises
        ------
        CatalogError
            If the catalog cannot be reached or read.
        """
        try:
            if self.catalog.kind == "api":
                yield from self._from_api(question, answer)
            elif is_parquet(str(self.catalog.url)):
                yield from _from_parquet(self.catalog, question)
            else:
                if self._all is None:
                    self._all = list(_from_files(self.catalog))
                yield from self._all
        except (CatalogError, SceneError) as error:
            raise CatalogError(_unread(self.catalog, error)) from error
        except Exception as error:  # pystac and pyarrow raise many kinds; each means that the catalog cannot be read
            raise CatalogError(_unread(self.catalog, _own_error(error) or error)) from error

    def _from_api(self, question: Question, answer: Answer) -> Iterator[tuple[Any, str]]:
        from pystac_client import Client

        if self._client is None:
            from geoflow.imagery.web import Web

            self._client = Client.open(str(self.catalog.url), stac_io=Web())
        client = self._client
        posts = _takes_posts(client)
        asked: dict[str, Any] = {
            "collections": [self.catalog.collection] if self.catalog.collection else None,
            "datetime": f"{question.first}T00:00:00Z/{question.last}T23:59:59.999Z",
            "limit": _PAGE,
            "method": "POST" if posts else "GET",
        }
        narrower = _filters(self.catalog, client, question, answer) if posts else {}
        for where in _places(question.area, posts):
            search = client.search(**asked, **where, **narrower)
            if narrower:
                plain = client.search(**{**asked, "limit": 1}, **where)
                answer.matched = _sum(answer.matched, _matched(client, plain))
            # As dictionaries, because pystac rewrites proj:epsg on the way to its own items.
            for page in client._stac_io.get_pages(search.url, search.method, search.get_parameters()):
                for item in page.get("features") or []:
                    yield item, str(self.catalog.url)


def _unread(catalog: Catalog, error: BaseException) -> str:
    return f"catalog {catalog.name} cannot be read at {catalog.url}: {error}"


def _own_error(error: BaseException | None) -> CatalogError | None:
    """The `CatalogError` under an exception of pystac, which wraps what a reader raises."""
    while error is not None and not isinstance(error, CatalogError):
        error = error.__cause__ or error.__context__
    return error


def _takes_posts(client: Any) -> bool:
    """Whether a search may be sent as a document; a link that names no method is one for GET."""
    methods = {link.extra_fields.get("method") or "GET" for link in client.get_links("search")}
    return not methods or "POST" in methods


def _places(area: Geometry, posts: bool) -> list[dict[str, Any]]:
    """The area as a server is asked for it: its outline where that can be sent, else a bbox for each side of 180°."""
    if posts:
        return [{"intersects": shapely.geometry.mapping(_outline(area.geom))}]
    parts = list(getattr(area.geom, "geoms", [area.geom]))
    east = [p.bounds for p in parts if p.bounds[0] >= 0]
    west = [p.bounds for p in parts if p.bounds[0] < 0]
    whole = [area.geom.bounds]
    crosses = whole[0][2] - whole[0][0] > 180
    sides = [s for s in (east, west) if s] if crosses else [whole]
    return [
        {"bbox": (min(b[0] for b in s), min(b[1] for b in s), max(b[2] for b in s), max(b[3] for b in s))}
        for s in sides
    ]


def _outline(shape: Any) -> Any:
    """The shape, or one around it that is simple enough to be sent."""
    step, simple = _STEP_DEG, shape
    while shapely.get_num_coordinates(simple) > _MAX_VERTICES:
        simple, step = shape.buffer(2 * step).simplify(step), 2 * step
    return simple


def _filters(catalog: Catalog, client: Any, question: Question, answer: Answer) -> dict[str, Any]:
    """The question's filters as CQL2 or as the query extension, whichever the server conforms to."""
    from pystac_client.conformance import ConformanceClasses

    wanted: list[tuple[str, str, Any]] = []  # (property, operator, value)
    fields = catalog.filters
    if question.max_cloud_percent is not None and fields.cloud:
        wanted.append((fields.cloud, "<=", question.max_cloud_percent))
    if question.tiles and fields.tile:
        wanted.append((fields.tile, "in", list(_tile_spellings(question.tiles, fields.tile))))
    if question.orbits and fields.orbit:
        wanted.append((fields.orbit, "in", list(question.orbits)))
    if not wanted:
        return {}
    said = " and ".join(f"{name} {op} {value}" for name, op, value in wanted)
    if client.conforms_to(ConformanceClasses.FILTER) and _speaks_json(client):
        answer.sent.append(f"CQL2: {said}")
        return {"filter": {"op": "and", "args": [_cql2(*part) for part in wanted]}, "filter_lang": "cql2-json"}
    if client.conforms_to(ConformanceClasses.QUERY):
        answer.sent.append(f"query: {said}")
        return {"query": {name: {"lte" if op == "<=" else op: value} for name, op, value in wanted}}
    return {}


def _speaks_json(client: Any) -> bool:
    return any(str(uri).endswith("/cql2-json") for uri in client.get_conforms_to())


def _cql2(name: str, op: str, value: Any) -> dict[str, Any]:
    """One comparison; a scene that does not say is not dropped."""
    here = {"property": name}
    return {"op": "or", "args": [{"op": op, "args": [here, value]}, {"op": "isNull", "args": [here]}]}


def _tile_spellings(tiles: Sequence[str], name: str) -> Iterator[str]:
    """``33TWN`` as the property holds it; providers differ on the leading zero of ``01WCR``."""
    head = "MGRS-" if name == "grid:code" else ""
    for tile in tiles:
        yield f"{head}{tile}"
        if tile.startswith("0"):
            yield f"{head}{tile[1:]}"


def _matched(client: Any, search: Any) -> int | None:
    """How many items a search has, where the server counts them; None too where it cannot say now."""
    try:
        page = next(client._stac_io.get_pages(search.url, search.method, search.get_parameters()))
    except CatalogError:
        return None
    found = page.get("numberMatched", (page.get("context") or {}).get("matched"))
    return found if isinstance(found, int) else None


def _sum(a: int | None, b: int | None) -> int | None:
    return b if a is None else a + (b or 0)


def _from_files(catalog: Catalog) -> Iterator[tuple[Any, str]]:
    """Items of a static catalog, or of a file that holds a collection of items."""
    import pystac

    url = str(catalog.url)
    reader = _reader(catalog)
    document = reader.read_json(url)
    if document.get("type") == "FeatureCollection":
        for item in document.get("features") or []:  # of any collection: a user chose these
            yield item, url
        return
    root = pystac.read_file(url, stac_io=reader)
    if not isinstance(root, pystac.Catalog):
        raise CatalogError(f"{url} is a STAC {document.get('type')}, not a catalog or a collection of items")
    # Documents as they are written: what is wrong with one is for the ledger to say.
    for folder, _, _ in root.walk():
        for link in folder.get_item_links():
            href = str(link.get_absolute_href())
            item = reader.read_json(href)
            if catalog.collection is None or item.get("collection") in (None, catalog.collection):
                yield item, href


def _reader(catalog: Catalog) -> Any:
    """Reads the documents of a static catalog: with retries, and never a local file outside the catalog's folder."""
    from pystac import Link
    from pystac.stac_io import DefaultStacIO

    from geoflow.imagery.web import Web

    network = Web()

    class Reader(DefaultStacIO):
        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            href = str(source.get_absolute_href() if isinstance(source, Link) else source)
            address = resolve_href(href, str(catalog.url), catalog)
            if address.startswith("s3://"):
                return read_bytes(place(address)).decode("utf-8")
            if is_remote(address):
                return network.request(address)
            with open(address, encoding="utf-8") as file:
                return file.read()

    return Reader()


def _from_parquet(catalog: Catalog, question: Question) -> Iterator[tuple[Any, str]]:
    url = str(catalog.url)
    file: Any = url
    if is_remote(url):
        from geoflow.imagery.web import Web

        file = io.BytesIO(read_bytes(place(url)) if url.startswith("s3://") else Web().fetch(url))
    for item in read_geoparquet(file, question.first, question.last):
        yield item, url


def read_geoparquet(file: Any, first: date, last: date) -> Iterator[dict[str, Any]]:
    """STAC items of a stac-geoparquet file, sensed within a range of days, row by row.

    The format: one row an item; ``geometry`` is WKB, ``bbox`` a struct, ``assets`` a struct, a map or JSON; every other
    column that an item has not at its top is a property; times are timestamps. What an item lacks is null
    (https://github.com/stac-utils/stac-geoparquet, specification 1.0 and 1.1). Rows without a time are given as well.

    Parameters
    ----------
    file : path or binary file

    Raises
    ------
    CatalogError
        If it lacks a column that items need.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    in_memory = isinstance(file, io.BytesIO)
    dataset = ds.dataset(pq.read_table(file)) if in_memory else ds.dataset(file, format="parquet")
    names = dataset.schema.names
    if missing := [name for name in ("id", "geometry", "assets") if name not in names]:
        raise CatalogError(f"it is Parquet, but not stac-geoparquet: there is no column {', '.join(missing)}")
    within = None
    if "datetime" in names and pa.types.is_timestamp(dataset.schema.field("datetime").type):
        start = datetime(first.year, first.month, first.day, tzinfo=UTC)
        end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
        time = ds.field("datetime")
        if dataset.schema.field("datetime").type.tz is None:
            start, end = start.replace(tzinfo=None), end.replace(tzinfo=None)
        within = time.is_null() | ((time >= start) & (time < end))
    wanted = [name for name in names if name != "links"]
    for batch in dataset.to_batches(columns=wanted, filter=within, batch_size=500):
        for row in batch.to_pylist():
            yield _item_of(row)


def _item_of(row: dict[str, Any]) -> dict[str, Any]:
    shape = row.get("geometry")
    box = row.get("bbox")
    properties = {k: _plain(v) for k, v in row.items() if k not in _NOT_PROPERTIES and v is not None}
    return {
        "type": "Feature",
        "stac_version": row.get("stac_version") or "1.0.0",
        "id": row.get("id"),
        "collection": row.get("collection"),
        "geometry": shapely.geometry.mapping(shapely.from_wkb(shape)) if isinstance(shape, bytes) else None,
        "bbox": [box[k] for k in ("xmin", "ymin", "xmax", "ymax")] if isinstance(box, dict) else box,
        "properties": properties,
        "assets": _assets(row.get("assets")),
    }


def _assets(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = json.loads(value)
    pairs = value.items() if isinstance(value, dict) else value or []
    found = {}
    for key, asset in pairs:
        if asset is not None:
            found[key] = {k: _plain(v) for k, v in asset.items() if v is not None}
    return found


def _plain(value: Any) -> Any:
    """Values as JSON has them: times as text, what is null left out."""
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        return text.replace("+00:00", "Z")
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
