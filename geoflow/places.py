"""Where things lie: folders of this machine, or ``s3://`` of any object store that speaks S3.

A place is a `pathlib.Path`, or for ``s3://`` a `upath.UPath`, which has the same methods; what both do alike is done
with these. The rest is here: whole files appear under their final name at once, listings are not believed for longer
than a moment, and programs that know only files (GDAL, GeoPackage, safetensors) get a local copy or leave one behind.

Credentials and endpoint come from the environment alone, as every S3 client reads them: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, a role of the machine. A place
that travels to a worker holds its bucket and key and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

from geoflow.errors import StoreError
from geoflow.extras import how_to_install

SCHEME = "s3://"

REMOTE_REQUESTS = 32
"""Requests to an object store at once, where there are many small ones to make."""

CACHE_DAYS = 30
"""Days after which a local copy that nobody asked for is removed."""

_LAYER = "|layername="


def is_remote(path: Any) -> bool:
    """Whether a place is one in an object store; text is not a place yet."""
    return not isinstance(path, str | Path) and str(path).startswith(SCHEME)


def place(path: Any) -> Path:
    """A place from text: a local path, or ``s3://bucket/key``.

    Parameters
    ----------
    path : str or path
        A place is given back as it is.

    Returns
    -------
    Path
        For ``s3://`` an ``upath.UPath``, of which the type checker believes that it is a Path.

    Raises
    ------
    StoreError
        If it is an address of another kind, holds credentials, names no bucket, or s3fs is not installed.
    """
    if isinstance(path, Path) or is_remote(path):
        return cast(Path, path)
    text = os.fspath(path)
    scheme, bar, _ = text.partition("://")
    if not bar or len(scheme) < 2:
        return Path(text)
    shown = text.rpartition("@")[2] if "@" in urlparse(text).netloc else text
    if scheme != "s3":
        raise StoreError(f"{shown} is neither a local path nor one of an object store: it must start with {SCHEME}")
    if "@" in urlparse(text).netloc:
        raise StoreError(f"{SCHEME}{shown} was given with credentials: take them out, and set them in the environment")
    if not urlparse(text).netloc:
        raise StoreError(f"{text} names no bucket: write s3://BUCKET/FOLDER")
    try:
        import s3fs  # noqa: F401
        from upath import UPath
    except ImportError:
        raise StoreError(f"{text} needs s3fs and universal-pathlib: {how_to_install('s3')}") from None
    return cast(Path, UPath(text.rstrip("/"), **_options()))


def _options() -> dict[str, Any]:
    """How s3fs is asked; no secrets, because they travel with each place."""
    settings: dict[str, Any] = {"retries": {"mode": "standard", "max_attempts": 6}}
    if endpoint():
        settings["s3"] = {"addressing_style": "path"}  # a bucket of MinIO or Ceph is no host of its own
    # Other processes write at the same time: a listing that is kept would tell of what was there before.
    return {"use_listings_cache": False, "skip_instance_cache": False, "config_kwargs": settings}


def endpoint() -> str | None:
    """The address of an object store that is not Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def gdal_options() -> dict[str, str]:
    """What GDAL must be told of the endpoint, which it calls otherwise; credentials it finds by itself."""
    if (address := endpoint()) is None:
        return {}
    url = urlparse(address)
    return {
        "AWS_S3_ENDPOINT": url.netloc + url.path.rstrip("/"),
        "AWS_HTTPS": "NO" if url.scheme == "http" else "YES",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }


def zarr_store(path: Path) -> Any:
    """What zarr and xarray open at a place: the folder itself, or a store that reads and writes whole objects."""
    if not is_remote(path):
        return path
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(str(path), storage_options=_options())


def whole_array(path: Path, name: str) -> Any:
    """An array of a Zarr store, open for writing whole chunks, those of nothing but the fill value too.

    A chunk that is missing then always means data that is missing. Left to itself zarr writes no such chunks; its
    setting for that is the process's, so that a thread that sets it back takes it from another one in mid-write.

    Parameters
    ----------
    path : Path
        The store.
    name : str
        Path of the array within it.

    Returns
    -------
    zarr.Array

    Raises
    ------
    FileNotFoundError
        If there is no such array.
    """
    import zarr

    found = zarr.open_array(zarr_store(path), path=name, mode="r+", zarr_format=3)
    return found.with_config({"write_empty_chunks": True})


def read_bytes(path: Path) -> bytes:
    """The content of a file, in one request.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if not is_remote(path):
        return path.read_bytes()
    return bytes(_fs(path).cat_file(_key(path)))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one: a rename, or one PUT."""
    if is_remote(path):
        _fs(path).pipe_file(_key(path), content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """A folder, parents included; an object store has none, and its bucket must be there."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
    elif _fs(path).exists(_key(path)):
        _fs(path).rm_file(_key(path))


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif keys := _fs(path).find(_key(path)):
        _fs(path).rm(keys)


def files_below(path: Path) -> list[tuple[Path, int]]:
    """All files below a folder with their sizes in bytes, sorted; of an object store in one listing."""
    if not is_remote(path):
        return [(p, p.stat().st_size) for p in sorted(path.rglob("*")) if p.is_file()]
    found = _fs(path).find(_key(path), detail=True)
    start = len(_key(path)) + 1
    return [(path / key[start:], int(facts["size"])) for key, facts in sorted(found.items()) if key[start:]]


def entries(path: Path) -> tuple[list[Path], list[Path]]:
    """(folders, files) of a folder, each sorted; nothing of one that is not there."""
    if not is_remote(path):
        there = sorted(path.iterdir()) if path.is_dir() else []
        return [p for p in there if p.is_dir()], [p for p in there if not p.is_dir()]
    try:
        found = _fs(path).ls(_key(path), detail=True)
    except FileNotFoundError:
        return [], []
    named = {kind: sorted(_last(f["name"]) for f in found if f["type"] == kind) for kind in ("directory", "file")}
    return [path / name for name in named["directory"]], [path / name for name in named["file"] if name]


def stamp(path: Path) -> list[Any]:
    """What tells an object from another one: its name, size and ETag."""
    facts = _fs(path).info(_key(path))
    return [path.name, facts.get("size"), facts.get("ETag")]


@contextmanager
def local_folder(folder: Path) -> Iterator[Path]:
    """A folder of this machine to write whole files into; what is in it at the end lies in ``folder``.

    Of a local folder it is that folder. Of one in an object store it is a temporary one, whose files are uploaded when
    the context ends well, in the order of their names.
    """
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="geoflow-") as name:
        yield Path(name)
        for path, _ in files_below(Path(name)):
            upload(path, folder / path.relative_to(name).as_posix())


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """A path of this machine to write one file to, which lies at ``path`` as a whole when the context ends well."""
    if is_remote(path):
        with local_folder(path.parent) as folder:
            yield folder / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def upload(source: Path, target: Path) -> None:
    """A local file to an object store; it is there as a whole or not at all."""
    _fs(target).put_file(str(source), _key(target))


def local_copy(path: Path) -> Path:
    """A file or folder as programs need it that know only this machine: a local path.

    What lies in an object store is copied once for each content, into ``GEOFLOW_CACHE`` or a folder of the user's below
    that for temporary files; a copy that nobody asks for is removed after `CACHE_DAYS`. A shapefile brings the files
    beside it; ``|layername=`` is kept.

    Raises
    ------
    FileNotFoundError
        If there is nothing at that place.
    """
    if not is_remote(path):
        return path
    text, bar, layer = str(path).partition(_LAYER)
    source = place(text) if bar else path
    fs, key = _fs(source), _key(source)
    found = _with_companions(fs, key)
    if not found:
        raise FileNotFoundError(f"there is nothing at {source}")
    facts = [[name, found[name].get("size"), found[name].get("ETag")] for name in sorted(found)]
    name = hashlib.sha256(repr([endpoint(), facts]).encode()).hexdigest()[:32]
    target = _cache() / name
    if target.is_dir():
        os.utime(target)  # in use: see _forget_old
    else:
        _fetch(fs, key, list(found), target)
        _forget_old(target.parent)
    copy = target / source.name
    return Path(f"{copy}{bar}{layer}") if bar else copy


def _fetch(fs: Any, key: str, objects: Sequence[str], target: Path) -> None:
    """Copy objects into a folder, which is there as a whole or not at all."""
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for one in objects:
            below = f"{_last(key)}{one.removeprefix(key)}" if one.startswith(f"{key}/") else _last(one)
            local = draft / below
            local.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(one, str(local))
        try:
            draft.rename(target)
        except OSError:  # somebody else was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _with_companions(fs: Any, key: str) -> dict[str, dict[str, Any]]:
    """The objects at or below a key, with their facts; of a shapefile those of its stem."""
    if not key.lower().endswith(".shp"):
        return dict(fs.find(key, detail=True))
    listed = fs.ls(key.rpartition("/")[0], detail=True)
    stem = key[: -len("shp")]
    return {f["name"]: f for f in listed if f["name"].startswith(stem)}


@cache
def _cache() -> Path:
    """The folder of local copies; of this user alone, because others could exchange what is in it."""
    given = os.environ.get("GEOFLOW_CACHE")
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"geoflow-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if not given and (facts.st_uid != os.getuid() or stat.S_ISLNK(facts.st_mode) or facts.st_mode & 0o022):
        raise StoreError(f"{folder} is not yours alone: set GEOFLOW_CACHE to a folder for copies of remote files")
    return folder


def _forget_old(folder: Path) -> None:
    """Remove copies that nobody has asked for in a long time, and what was left of copying."""
    oldest = time.time() - CACHE_DAYS * 86400
    for copy in folder.iterdir():
        with suppress(OSError):  # another process is faster
            if copy.is_dir() and re.fullmatch(r"\.?[0-9a-f]{32}(-\w+)?", copy.name) and copy.stat().st_mtime < oldest:
                shutil.rmtree(copy, ignore_errors=True)


def at_once(function: Any, items: Sequence[Any] | Iterable[Any], remote: bool) -> list[Any]:
    """``function`` of each item, in order: many requests at once where they go to an object store."""
    if not remote:
        return [function(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(REMOTE_REQUESTS) as pool:
        return list(pool.map(function, items))


def failures() -> tuple[type[Exception], ...]:
    """What reading or writing a place may raise: errors of files, and those of the client of an object store."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return (OSError,)
    return (OSError, BotoCoreError)


def _fs(path: Path) -> Any:
    return path.fs  # type: ignore[attr-defined]


def _key(path: Path) -> str:
    return str(path.path).rstrip("/")  # type: ignore[attr-defined]


def _last(key: str) -> str:
    return key.rstrip("/").rpartition("/")[2]
