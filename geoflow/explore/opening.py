"""Opening a country for reading: a folder, a bucket or a plain web server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from geoflow.errors import StoreError
from geoflow.explore.layers import mark
from geoflow.places import failures, place, read_bytes, zarr_store
from geoflow.store.reading import open_store, open_tree
from geoflow.store.zarr import check_description

if TYPE_CHECKING:
    import xarray as xr

STORE = "country.zarr"
"""Name of the store in a run's folder."""

_TIMEOUT_S = 60


def open_country(path: str | Path) -> xr.DataTree:
    """Open a national store for reading, with the accessor ``.gf``.

    Parameters
    ----------
    path : str or Path
        The ``country.zarr`` that a run made, or the run's output folder: a local path, ``s3://BUCKET/FOLDER``, or
        ``http://`` or ``https://`` of any server that hands out files. It need not list folders.

    Returns
    -------
    DataTree
        Lazy, chunked as stored; groups ``imagery/<epoch>``, ``labels/<name>``, ``map/<epoch>``, ``change/<a>-<b>``.
        The tree, its groups and their layers have ``.gf`` (`geoflow.explore.accessor`).

    Raises
    ------
    StoreError
        If there is no such store, a newer geoflow made it, or the server cannot be reached or refuses.
    """
    from geoflow.explore import accessor  # noqa: F401  (registers .gf)

    if is_web(path):
        return _open_web(str(path))
    folder = place(path)
    tree = open_store(folder)
    inner = folder / STORE
    mark(tree, str(inner if (inner / "zarr.json").is_file() else folder))
    return tree


def is_web(path: Any) -> bool:
    """Whether it is the address of a web server."""
    return isinstance(path, str) and path.lower().startswith(("http://", "https://"))


def array_store(store: str) -> Any:
    """What zarr opens of a store that was opened before, by the name that `open_country` noted."""
    return _web_store(store) if is_web(store) else zarr_store(place(store))


def file_reader(store: str) -> Callable[[str], bytes | None]:
    """A function that reads files of the run's folder that the store lies in, by their relative paths.

    It gives None for a file that is not there, or that the server does not hand out.
    """
    if is_web(store):
        root, fs = store.rstrip("/").rpartition("/")[0], _filesystem()
        return lambda name: _fetched(fs, f"{root}/{name}")
    folder = place(store).parent

    def read(name: str) -> bytes | None:
        try:
            return read_bytes(folder / name)
        except failures():
            return None

    return read


def _open_web(text: str) -> xr.DataTree:
    url = _checked(text)
    fs = _filesystem()
    tried = [url] if url.endswith(f"/{STORE}") else [f"{url}/{STORE}", url]
    for address in tried:
        if (content := _asked(fs, f"{address}/zarr.json")) is not None:
            tree = open_tree(_web_store(address), _described(content, address), consolidated=True)
            mark(tree, address)
            return tree
    places = " and ".join(f"{address}/zarr.json" for address in tried)
    raise StoreError(f"{url} holds no store of geoflow's: there is nothing at {places}")


def _checked(text: str) -> str:
    """The address without a slash at its end.

    Raises
    ------
    StoreError
        If it holds credentials or a query: neither can be carried on to the thousands of files of a store.
    """
    parts = urlsplit(text)
    plain = urlunsplit((parts.scheme.lower(), parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    if "@" in parts.netloc:
        raise StoreError(f"{plain} was given with credentials: geoflow opens addresses that are open to read")
    if parts.query or parts.fragment:
        raise StoreError(f"{plain} was given with a query or fragment: give the address of the folder alone")
    return plain


def _described(content: bytes, address: str) -> dict[str, Any]:
    try:
        described = json.loads(content)
        attributes = described["attributes"] if described["node_type"] == "group" else None
    except (ValueError, TypeError, KeyError):
        raise StoreError(f"{address}/zarr.json is no metadata of Zarr v3: the server answers with a page?") from None
    found = check_description(attributes, address)
    if not described.get("consolidated_metadata"):
        raise StoreError(
            f"{address} has no consolidated metadata, and a web server cannot be asked what is there: "
            "run zarr.consolidate_metadata on the store, or complete its run"
        )
    return found


def _asked(fs: Any, url: str) -> bytes | None:
    """The content of a file; None where there is none.

    Raises
    ------
    StoreError
        If the server cannot be reached, or answers with something else than the file or 404.
    """
    import aiohttp

    try:
        return bytes(fs.cat_file(url))
    except FileNotFoundError:
        return None
    except aiohttp.ClientResponseError as error:
        raise StoreError(f"{url}: the server answers {error.status} {error.message}") from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        why = f"no answer in {_TIMEOUT_S} s" if isinstance(error, TimeoutError) else str(error)
        raise StoreError(f"{url} cannot be reached: {why}") from None


def _fetched(fs: Any, url: str) -> bytes | None:
    try:
        return _asked(fs, url)
    except StoreError:
        return None


def _filesystem() -> Any:
    import fsspec  # type: ignore[import-untyped]

    return fsspec.filesystem("http", **_options())


def _web_store(address: str) -> Any:
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(address, storage_options=_options(), read_only=True)


def _options() -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_S, sock_read=_TIMEOUT_S)
    # trust_env: a proxy that the environment names is used, as by every other program.
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
