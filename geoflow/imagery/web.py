"""Asking a STAC server over HTTP, patiently: retries with backoff, whole answers only, and paging that must end.

pystac-client knows the protocol; this adds what a night-long national job needs from it. A busy server (429, 5xx) is
asked again after the time that it names, a dropped or cut-off answer is asked for again, an answer that drips for ever
is given up, and a server whose pages go in circles is an error and not a hang.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import requests
from pystac_client.stac_api_io import StacApiIO

from geoflow.errors import CatalogError

ATTEMPTS = 6
CONNECT_ATTEMPTS = 3  # a server that is not there is soon reported
BACKOFF_S = 0.5  # doubled with every attempt
MAX_WAIT_S = 60.0  # however long a server asks to wait
ANSWER_S = 300.0  # for the whole of one answer
MAX_ANSWER_BYTES = 2**30
MAX_IDLE_PAGES = 5  # pages in a row that bring nothing new

_TIMEOUT_S = (10.0, 60.0)  # to connect; between two bytes
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_CHUNK = 1 << 20


class Web(StacApiIO):
    """Reads STAC documents over http and https; see the module's description."""

    def __init__(self) -> None:
        super().__init__(timeout=_TIMEOUT_S, max_retries=None)

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """The text of an answer.

        Raises
        ------
        CatalogError
            If there is none after all attempts, or the server refuses.
        """
        return self.fetch(href, method, headers, parameters).decode("utf-8")

    def fetch(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> bytes:
        """The bytes of an answer; see `request`."""
        if not href.lower().startswith(("http://", "https://")):
            raise CatalogError(f"{href!r} is not an address of the web: it must start with http:// or https://")
        problem, failed, refused = "", 0, 0
        while failed < ATTEMPTS and refused < CONNECT_ATTEMPTS:
            wait = BACKOFF_S * 2**failed
            try:
                answer = self._ask(href, (method or "GET").upper(), headers, parameters)
                if answer.status_code < 400:
                    _check_not_moved(answer, method)
                    return _body(answer)
                problem = f"status {answer.status_code}: {_short(answer)}"
                if answer.status_code not in _RETRIED:
                    raise CatalogError(f"{href}: {problem}")
                wait = _asked_to_wait(answer) or wait
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                problem = _innermost(error)
                refused += isinstance(error, requests.ConnectTimeout) or "refused" in problem
            failed += 1
            if failed < ATTEMPTS and refused < CONNECT_ATTEMPTS:
                time.sleep(min(wait, MAX_WAIT_S))
        raise CatalogError(f"{href}: no answer after {failed} attempts; the last: {problem}")

    def _ask(
        self, href: str, method: str, headers: dict[str, str] | None, parameters: dict[str, Any] | None
    ) -> requests.Response:
        content: dict[str, Any] = {"json": parameters} if method == "POST" else {"params": parameters}
        return self.session.request(method, href, headers=headers, timeout=_TIMEOUT_S, stream=True, **content)

    def get_pages(
        self, url: str, method: str | None = None, parameters: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every page of a search, to the last one.

        An empty page ends nothing: only a page without a ``next`` link is the last.

        Raises
        ------
        CatalogError
            If the server announces a page that it gave before, or pages without end that bring nothing new.
        """
        page = self._json(url, method, None, parameters)
        asked = {_digest(url, method or "GET", parameters)}
        known: set[str] = set()
        idle, count = 0, 1
        while True:
            fresh = {str(f.get("id")) for f in page.get("features") or [] if isinstance(f, dict)} - known
            known |= fresh
            idle = 0 if fresh else idle + 1
            yield page
            link = _next_link(page)
            if link is None:
                return
            if idle >= MAX_IDLE_PAGES:
                raise CatalogError(f"{url}: the paging does not end: {idle} pages in a row brought no new scene")
            href, verb, body = urljoin(url, str(link["href"])), str(link.get("method") or "GET").upper(), {}
            if verb == "POST":
                body = {**(parameters or {} if link.get("merge") else {}), **(link.get("body") or {})}
            again = _digest(href, verb, body)
            if again in asked:
                raise CatalogError(
                    f"{url}: the paging goes in circles: page {count} announces one that was given before"
                )
            asked.add(again)
            page = self._json(href, verb, link.get("headers"), body)
            count += 1

    def _json(
        self, href: str, method: str | None, headers: dict[str, str] | None, parameters: dict[str, Any] | None
    ) -> dict[str, Any]:
        """One document; asked for again where it is cut off, which a server may do without a word."""
        for attempt in range(CONNECT_ATTEMPTS):
            if attempt:
                time.sleep(BACKOFF_S * 2**attempt)
            text = self.request(href, method, headers, parameters)
            try:
                document = json.loads(text)
            except ValueError as error:
                problem = f"{href}: the answer is not JSON ({error}); it begins {text[:60]!r}"
                continue
            if isinstance(document, dict):
                return document
            problem = f"{href}: the answer is a JSON {type(document).__name__}, not an object"
        raise CatalogError(problem)


def _check_not_moved(answer: requests.Response, method: str | None) -> None:
    """A search that is sent on by 301 or 302 loses what it asked for on the way, and would be given everything."""
    if method == "POST" and any(step.status_code in (301, 302, 303) for step in answer.history):
        raise CatalogError(f"{answer.history[0].url} has moved to {answer.url}: give the catalog's new url")


def _next_link(page: dict[str, Any]) -> dict[str, Any] | None:
    links = page.get("links") or []
    return next((k for k in links if isinstance(k, dict) and k.get("rel") == "next" and k.get("href")), None)


def _digest(href: str, method: str, body: Any) -> str:
    return json.dumps([href, method, body], sort_keys=True)


def _body(answer: requests.Response) -> bytes:
    """The whole body: not more than is sane, and not for longer than is."""
    deadline, parts, size = time.monotonic() + ANSWER_S, [], 0
    with answer:
        for part in answer.iter_content(_CHUNK):
            parts.append(part)
            size += len(part)
            if time.monotonic() > deadline:
                raise requests.Timeout(f"the answer was not complete after {ANSWER_S:g} s")
            if size > MAX_ANSWER_BYTES:
                raise CatalogError(f"{answer.url}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)


def _asked_to_wait(answer: requests.Response) -> float | None:
    """Seconds by the server's Retry-After, which is a number or a date."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


def _short(answer: requests.Response) -> str:
    """The beginning of what a server says about its error, on one line."""
    with answer:
        words = " ".join(answer.text[:2000].split())
    return (words[:160] + "…" if len(words) > 160 else words) or str(answer.reason or "no reason given")


def _innermost(error: BaseException) -> str:
    """What happened, without the layers of libraries around it."""
    for inner in reversed([a for a in error.args if isinstance(a, BaseException)]):
        reason = getattr(inner, "reason", None)
        return _innermost(reason if isinstance(reason, BaseException) else inner)
    return " ".join(str(error).split()) or type(error).__name__
