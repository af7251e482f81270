"""A small real STAC API on loopback: conformance, search by POST or GET, paging, query, CQL2-JSON; and its faults.

It filters as the standard says, so what it drops is not offered; the tests of the search look at what was asked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import shapely
from imagery_scenes import serve

CORE = (
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
)
QUERY = ("https://api.stacspec.org/v1.0.0/item-search#query",)
CQL2 = (
    "https://api.stacspec.org/v1.0.0-rc.2/item-search#filter",
    "http://www.opengis.net/spec/ogcapi-features-3/1.0/conf/filter",
    "http://www.opengis.net/spec/cql2/1.0/conf/basic-cql2",
    "http://www.opengis.net/spec/cql2/1.0/conf/cql2-json",
)

Fault = Callable[[BaseHTTPRequestHandler], bool]
"""Does something to a search request and says whether that was all the answer it gets."""


class StacApi:
    """The state of a server: its items, what it can do, what it was asked, and its faults, one for each request."""

    def __init__(
        self,
        items: list[Any],
        conforms: tuple[str, ...] = CORE,
        page: int = 2,
        methods: tuple[str, ...] = ("GET", "POST"),
        empty_last_page: bool = False,
        counts: bool = True,
    ) -> None:
        self.items, self.conforms, self.page, self.methods = items, conforms, page, methods
        self.empty_last_page, self.counts = empty_last_page, counts
        self.asked: list[dict[str, Any]] = []
        self.faults: list[Fault | None] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if parts.path == "/search":
                    api._search(self, _from_text({k: v[0] for k, v in parse_qs(parts.query).items()}))
                else:
                    send(self, api._root(_host(self)))

            def do_POST(self) -> None:
                api._search(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        with serve(Handler) as address:
            yield address

    def _root(self, host: str) -> dict[str, Any]:
        searches = [
            {"rel": "search", "type": "application/geo+json", "href": f"{host}/search", "method": m}
            for m in self.methods
        ]
        return {
            "type": "Catalog",
            "id": "tiny",
            "stac_version": "1.0.0",
            "description": "a small STAC API",
            "conformsTo": list(self.conforms),
            "links": [{"rel": "root", "href": host}, {"rel": "self", "href": host}, *searches],
        }

    def _search(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        self.asked.append(asked)
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None and fault(handler):
            return
        matched = [item for item in self.items if _matches(item, asked)]
        start, size = int(asked.get("token", 0)), min(self.page, int(asked.get("limit", 10)))
        features = matched[start : start + size]
        page: dict[str, Any] = {"type": "FeatureCollection", "features": features, "links": []}
        if self.counts:
            page["numberMatched"] = len(matched)
        more = start + size < len(matched) or (self.empty_last_page and features)
        if more:
            page["links"] = [self._next(handler, asked, start + size)]
        send(handler, page)

    def _next(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any], start: int) -> dict[str, Any]:
        if handler.command == "GET":
            path = handler.path.partition("&token=")[0]
            return {"rel": "next", "href": f"{_host(handler)}{path}&token={start}"}
        return {
            "rel": "next",
            "href": f"{_host(handler)}/search",
            "method": "POST",
            "merge": True,
            "body": {"token": start},
        }


def send(handler: BaseHTTPRequestHandler, document: Any, status: int = 200, **headers: str) -> None:
    """A whole answer; text goes as it is."""
    body = (document if isinstance(document, str) else json.dumps(document)).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int, **headers: str) -> Fault:
    """An answer that is an error."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        send(handler, "<html>sorry</html>", code, **headers)
        return True

    return fault


def dropped(handler: BaseHTTPRequestHandler) -> bool:
    """The connection closes before an answer."""
    handler.close_connection = True
    handler.connection.close()
    return True


def cut_off(handler: BaseHTTPRequestHandler) -> bool:
    """The answer ends in the middle."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"type": "FeatureCollection", "features": [')
    handler.close_connection = True
    return True


def says(text: str) -> Fault:
    """An answer of some text."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        send(handler, text)
        return True

    return fault


def _host(handler: BaseHTTPRequestHandler) -> str:
    return f"http://127.0.0.1:{handler.server.server_address[1]}"


def _from_text(asked: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = dict(asked)
    if "bbox" in asked:
        found["bbox"] = [float(v) for v in asked["bbox"].split(",")]
    if "collections" in asked:
        found["collections"] = asked["collections"].split(",")
    return found


def _matches(item: Any, asked: dict[str, Any]) -> bool:
    try:
        return _is_asked_for(item, asked)
    except (TypeError, KeyError, AttributeError, ValueError, shapely.GEOSException):
        return True  # what is no item is offered as it is


def _is_asked_for(item: dict[str, Any], asked: dict[str, Any]) -> bool:
    properties, shape = item["properties"], shapely.geometry.shape(item["geometry"])
    start, _, end = asked.get("datetime", "1900-01-01T00:00:00Z/2100-01-01T00:00:00Z").partition("/")
    moment = datetime.fromisoformat(properties["datetime"])
    place = shapely.geometry.shape(asked["intersects"]) if "intersects" in asked else None
    place = shapely.box(*asked["bbox"]) if "bbox" in asked else place
    return (
        item.get("collection") in asked.get("collections", [item.get("collection")])
        and datetime.fromisoformat(start) <= moment <= datetime.fromisoformat(end)
        and (place is None or shape.intersects(place))
        and all(_compares(properties.get(k), op, v) for k, t in asked.get("query", {}).items() for op, v in t.items())
        and ("filter" not in asked or _holds(asked["filter"], properties))
    )


def _compares(value: Any, op: str, wanted: Any) -> bool:
    if value is None:
        return False
    return value <= wanted if op in ("lte", "<=") else value in wanted


def _holds(expression: dict[str, Any], properties: dict[str, Any]) -> bool:
    op, args = expression["op"], expression["args"]
    if op in ("and", "or"):
        return (all if op == "and" else any)(_holds(a, properties) for a in args)
    value = properties.get(args[0]["property"])
    return value is None if op == "isNull" else _compares(value, op, args[1])
