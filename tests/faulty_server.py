"""A file server that fails on request, as object stores do now and then."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imagery_scenes import RangeHandler, serve


@dataclass
class Faults:
    """What goes wrong: for the paths that match a pattern, so many requests, of a kind.

    Kinds: an HTTP status (404, 403, 429, 500, 503), ``truncate`` (half of the promised body, then the connection is
    closed), ``reset`` (the connection is reset), ``stall`` (nothing more is sent for ``stall_s``).
    """

    stall_s: float = 30.0
    plans: list[tuple[str, Any, float]] = field(default_factory=list)
    seen: list[tuple[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, pattern: str, kind: Any, times: float = 1) -> None:
        """From now on, ``times`` requests for paths that match fail."""
        with self._lock:
            self.plans.append((pattern, kind, times))

    def due(self, path: str, query: str) -> Any:
        """The fault of a request, or None."""
        with self._lock:
            self.requests.append((path, query))
            for i, (pattern, kind, times) in enumerate(self.plans):
                if times > 0 and fnmatch.fnmatch(path, pattern):
                    self.plans[i] = (pattern, kind, times - 1)
                    self.seen.append((path, kind))
                    return kind
        return None

    def refused(self, path: str, query: str, kind: Any) -> Any:
        """Note a request that is refused without having been planned; gives the kind."""
        with self._lock:
            self.requests.append((path, query))
            self.seen.append((path, kind))
        return kind


class FaultyHandler(RangeHandler):
    """Files of a folder, with faults."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, faults: Faults, **kwargs: Any) -> None:
        self.faults = faults
        super().__init__(*args, **kwargs)

    def do_HEAD(self) -> None:
        if not self._failed():
            super().do_HEAD()

    def do_GET(self) -> None:
        if not self._failed():
            super().do_GET()

    def _failed(self) -> bool:
        path, _, query = self.path.partition("?")
        kind = self._fault(path, query)
        if kind is None:
            return False
        self.close_connection = True
        if isinstance(kind, int):
            self.send_response(kind)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            if kind in (429, 503):
                self.send_header("Retry-After", "0")
            self.end_headers()
        elif kind == "stall":
            self._begin()
            time.sleep(self.faults.stall_s)
        elif kind == "truncate":
            self._begin()
        else:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        return True

    def _fault(self, path: str, query: str) -> Any:
        return self.faults.due(path, query)

    def _begin(self) -> None:
        """Half of the body that is promised."""
        data = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        first, _, last = asked.partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start : start + (stop - start) // 2])
        self.wfile.flush()


@contextlib.contextmanager
def serve_with_faults(folder: Path, faults: Faults) -> Iterator[str]:
    """The address of a server of the folder's files."""
    with serve(partial(FaultyHandler, directory=str(folder), faults=faults)) as address:
        yield address


@contextlib.contextmanager
def serve_tokens(folder: Path, faults: Faults, uses: int) -> Iterator[tuple[str, str]]:
    """(address of a proxy that plays Azure's blob storage, address of the service that gives tokens for it).

    A token is good for so many requests; then it is refused, although it said that it would live for an hour.
    """
    given: list[str] = []
    left: dict[str, int] = {}
    lock = threading.Lock()

    class Service(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            with lock:
                given.append(f"sig=token{len(given)}")
                left[given[-1]] = uses
                expiry = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
                body = json.dumps({"token": given[-1], "msft:expiry": expiry}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Blobs(FaultyHandler):
        def translate_path(self, path: str) -> str:
            return super().translate_path(urlsplit(path).path.removeprefix("/s2"))

        def _fault(self, path: str, query: str) -> Any:
            with lock:
                left[query] = left.get(query, 0) - 1
                spent = left[query] < 0
            return self.faults.refused(path, query, 403) if spent else super()._fault(path, query)

    with serve(partial(Blobs, directory=str(folder), faults=faults)) as proxy, serve(Service) as tokens:
        yield proxy, tokens
