"""Which links of a catalog may be opened: a catalog is data, and must not choose what this machine reads.

https and s3 always. http where the catalog itself is of http and of the same host, where it is of this machine and
leads to this machine, or where the catalog says ``allow_http``. Files only from a local catalog, and within its folder.
Nothing that GDAL would take for more than an address: no ``/vsi`` prefix, no ``vrt://`` or ``HDF5:``, no connection.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from geoflow.errors import CatalogError
from geoflow.redact import redact

if TYPE_CHECKING:
    from geoflow.imagery.catalog import Catalog

_CONTROL = re.compile(r"[\x00-\x20\x7f\\<>\"{}|^`]")
_TOKEN = re.compile(
    r"(?i)(^|&)(sig|x-amz-signature|x-goog-signature|signature|token|access_token|x-amz-security-token)="
)
_LONGEST = 4096


def resolve_href(href: str, base: str, catalog: Catalog) -> str:
    """An absolute address that is safe to open.

    Parameters
    ----------
    href : str
        As it stands in a document of the catalog.
    base : str
        Address of that document.
    catalog : Catalog

    Raises
    ------
    CatalogError
        Naming the link and what would be allowed.
    """
    try:
        resolved = _remote(href, base, catalog) if _leads_away(href, catalog) else _local(href, base, catalog)
    except ValueError:  # urllib's word for a host or port that is none
        resolved = None
    if resolved is None:
        shown = redact(href if len(href) < 200 else href[:200] + "…")
        raise CatalogError(f"a link to {shown!r} in {redact(base)} is not allowed: it must be {_allowed(catalog)}")
    return resolved


def carries_token(href: str) -> bool:
    """Whether a link is signed: a secret that must not be written down, and that ends."""
    return "?" in href and _TOKEN.search(href.partition("?")[2]) is not None


def _allowed(catalog: Catalog) -> str:
    files = "" if catalog.root is None else f", a file inside {catalog.root}"
    return f"https, s3{files}, or http where the catalog says allow_http: true; without user, spaces or GDAL's prefixes"


def _leads_away(href: str, catalog: Catalog) -> bool:
    scheme = urlsplit(href).scheme.lower()
    return scheme in ("http", "https", "s3") or (catalog.root is None and scheme == "" and not href.startswith("/"))


def _remote(href: str, base: str, catalog: Catalog) -> str | None:
    address = href if urlsplit(href).scheme else _joined(base, href)
    parts = urlsplit(address)
    if len(address) > _LONGEST or _CONTROL.search(address) or not parts.hostname or "@" in parts.netloc:
        return None
    _ = parts.port  # raises where it is none
    scheme = parts.scheme.lower()
    if scheme == "s3":
        return f"s3://{parts.netloc}{parts.path}" if parts.path.strip("/") and not parts.query else None
    if scheme == "http" and not _http_is_meant(parts, catalog):
        return None
    return parts._replace(scheme=scheme).geturl()


def _joined(base: str, href: str) -> str:
    if base.startswith("s3://"):  # which urljoin does not know to have folders
        return "s3:" + urljoin(base.removeprefix("s3:"), href)
    return urljoin(base, href)


def _http_is_meant(parts: SplitResult, catalog: Catalog) -> bool:
    own = urlsplit(str(catalog.url))
    if catalog.allow_http or (own.scheme == "http" and own.hostname == parts.hostname):
        return True
    return catalog.root is not None and is_this_machine(parts.hostname or "")


def is_this_machine(host: str) -> bool:
    """Whether a host is loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _local(href: str, base: str, catalog: Catalog) -> str | None:
    parts = urlsplit(href)
    if catalog.root is None or parts.scheme.lower() not in ("", "file") or len(href) > _LONGEST or "\0" in href:
        return None
    local = unquote(parts.path) if parts.scheme else href
    path = os.path.normpath(os.path.join(os.path.dirname(base), local))
    return path if path.startswith(os.path.join(catalog.root, "")) and "\0" not in path else None
