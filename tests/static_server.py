"""A plain static web server on loopback: hands out files, lists nothing, and notes what it was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Asked:
    """Paths that were asked for, in order, and the address of the server."""

    url: str = ""
    paths: list[str] = field(default_factory=list)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, asked: Asked, refuse: str, **kwargs: Any) -> None:
        self._asked, self._refuse = asked, refuse
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self._asked.paths.append(self.path)
        if self._refuse and self._refuse in self.path:
            self.send_error(HTTPStatus.FORBIDDEN)
        else:
            super().do_GET()

    def list_directory(self, path: Any) -> None:  # type: ignore[override]
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve_files(folder: Path, refuse: str = "") -> Iterator[Asked]:
    """Serve a folder; paths that hold ``refuse`` are answered with 403."""
    asked = Asked()
    handler = partial(_Handler, directory=str(folder), asked=asked, refuse=refuse)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        asked.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()
