"""Signing of links right before they are read: tokens expire, so that frozen items and graphs never hold one."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from datetime import datetime
from urllib.parse import urlparse

from geoflow.errors import CatalogError

_TOKEN_URL = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
_BLOB_HOST = ".blob.core.windows.net"
_RENEW_BEFORE_S = 300.0
_TIMEOUT_S = 30.0
_ATTEMPTS = 4

_tokens: dict[tuple[str, str], tuple[str, float]] = {}  # (service, storage container) -> (token, when it expires)
_lock = threading.Lock()


def sign(href: str, signing: str) -> str:
    """The link as it can be read now.

    Parameters
    ----------
    href : str
        An unsigned link.
    signing : "none" or "planetary-computer"
        The catalog's way. For the Planetary Computer a link to Azure blob storage gets a token of its container, kept
        until five minutes before it expires; ``PC_SDK_SAS_URL`` replaces the address of the token service, as in
        Microsoft's own client.

    Raises
    ------
    CatalogError
        If no token can be had.
    """
    address = urlparse(href)
    if signing == "none" or not (address.hostname or "").endswith(_BLOB_HOST):
        return href
    account = str(address.hostname).removesuffix(_BLOB_HOST)
    container = address.path.strip("/").partition("/")[0]
    return f"{href}?{_token(os.environ.get('PC_SDK_SAS_URL', _TOKEN_URL), f'{account}/{container}')}"


def forget_token(address: str) -> None:
    """Ask for a new token next time, because the one in this address was refused (it may end before it said)."""
    with _lock:
        for key, (token, _) in list(_tokens.items()):
            if address.endswith(token):
                del _tokens[key]


def _token(service: str, container: str) -> str:
    with _lock:  # one thread asks, the others wait for its answer
        token, expires = _tokens.get((service, container), ("", 0.0))
        if expires - time.time() < _RENEW_BEFORE_S:
            token, expires = _ask(f"{service.rstrip('/')}/{container}")
            _tokens[service, container] = token, expires
        return token


def _ask(url: str) -> tuple[str, float]:
    """(token, when it expires) from the token service, tried a few times."""
    problem: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                values = json.load(answer)
            return values["token"], datetime.fromisoformat(values["msft:expiry"]).timestamp()
        except (OSError, ValueError, KeyError) as error:
            problem = error
    raise CatalogError(f"no token from the Planetary Computer at {url}: {problem}")
