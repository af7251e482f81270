"""Serves the page, the store's files and the facts about them, to this machine alone.

Everything is read only. The store may lie on disk or in an object store; its files go out as they are, because the page
decodes them itself.
"""

from __future__ import annotations

import gzip
import ipaddress
import json
import mimetypes
import threading
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from geoflow.errors import GeoflowError
from geoflow.places import failures, read_bytes
from geoflow.redact import redact_all
from geoflow.viewer.facts import Facts

POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""What the page may do: nothing of it leaves this server. ``data:`` is where the decoder's program comes from."""

_PACKED = 2000
"""Bytes from which text goes out packed."""


class ViewerServer(ThreadingHTTPServer):
    """A server for one run.

    Parameters
    ----------
    facts : Facts
    host : str
        Address to listen on. Others than loopback must be meant: whoever reaches it sees the maps.
    port : int
        0 for a free one.

    Raises
    ------
    GeoflowError
        If the address is not to be had, or is not of this machine alone and ``everyone`` is not said.
    StoreError
        If there is no store.
    """

    daemon_threads = True

    def __init__(self, facts: Facts, host: str = "127.0.0.1", port: int = 0, everyone: bool = False) -> None:
        if not everyone and not _is_loopback(host):
            raise GeoflowError(
                f"--host {host}: whoever reaches that address would see the maps, unencrypted; say --everyone if that "
                "is meant, or leave --host out and reach it by ssh -L"
            )
        self.facts, self.everyone = facts, everyone
        self.described = json.dumps(redact_all(facts.to_dict())).encode()
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise GeoflowError(
                f"--port {port}: cannot listen on {host}: {error.strerror}; --port 0 takes a free one"
            ) from None

    @property
    def address(self) -> str:
        """Where the page is."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    @cached_property
    def zones(self) -> bytes:
        """The zones as GeoJSON, read once."""
        return self.facts.zones_geojson().encode()

    def start(self) -> threading.Thread:
        """Serve from a thread of its own, until `shutdown`."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        return thread


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: ViewerServer

    def do_GET(self) -> None:
        """Answer with a file of the page, of the store, or a description."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """As GET, without the content."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        if not self._is_ours():
            return self._send(
                HTTPStatus.FORBIDDEN, b"this server answers to its own address alone", "text/plain", with_body
            )
        path = unquote(urlsplit(self.path).path)
        found = self._content(path)
        if found is None:
            return self._send(HTTPStatus.NOT_FOUND, b"not found", "text/plain", with_body)
        self._send(HTTPStatus.OK, *found, with_body)

    def _is_ours(self) -> bool:
        """Whether the request names this server: a page elsewhere whose name leads here would name its own."""
        if self.server.everyone:
            return True
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        return name == "localhost" or _is_loopback(name)

    def _content(self, path: str) -> tuple[bytes, str] | None:
        if path == "/view.json":
            return self.server.described, "application/json"
        if path == "/zones.json":
            return self.server.zones, "application/json"
        parts = PurePosixPath(path).parts[1:]
        if any(part.startswith(".") or "\\" in part or "\0" in part for part in parts):
            return None
        if parts[:1] == ("store",):
            return self._of_store(parts[1:])
        return _of_page("/".join(parts) or "index.html")

    def _of_store(self, parts: tuple[str, ...]) -> tuple[bytes, str] | None:
        """A file below the store. The names of its chunks and metadata never start with a dot, nor lead out of it."""
        if not parts:
            return None
        try:
            content = read_bytes(self.server.facts.store.joinpath(*parts))
        except failures():
            return None
        return content, "application/json" if parts[-1].endswith(".json") else "application/octet-stream"

    def _send(self, status: HTTPStatus, content: bytes, kind: str, with_body: bool) -> None:
        packs = len(content) > _PACKED and "gzip" in self.headers.get("Accept-Encoding", "")
        packed = packs and kind != "application/octet-stream"
        body = gzip.compress(content, 4) if packed else content
        self.send_response(status)
        self.send_header("Content-Type", kind if kind.startswith("application/octet") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-cache")
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for every chunk would bury what matters."""


def _of_page(name: str) -> tuple[bytes, str] | None:
    file = files("geoflow.viewer").joinpath("static", *name.split("/"))
    if not file.is_file():
        return None
    kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0] or "application/octet-stream"
    return file.read_bytes(), kind


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
