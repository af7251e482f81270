"""One small file, changed by one process at a time: read, decided upon, and written before anybody else does.

On a disk a lock of the file system keeps others out. An object store has no locks; there a write is made on condition
that the object is still the one that was read (``If-Match``, ``If-None-Match``), and refused otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from geoflow.errors import StoreError
from geoflow.places import failures, is_remote, read_bytes, remove, write_bytes

_ATTEMPTS = 20

Change = Callable[[bytes | None], bytes | None]
"""From what a file holds (None: there is none) to what it shall hold (None: there shall be none)."""


def exchange(path: Path, change: Change) -> None:
    """Exchange what a file holds for what a function makes of it; nobody else changes it in between.

    Where a file system has no locks, or a server knows no conditional requests, that moment is a risk.

    Parameters
    ----------
    path : Path
        A local path, or one in an object store.
    change : callable
        See `Change`; called again if somebody was faster. What it raises is passed on, and nothing is changed.

    Raises
    ------
    StoreError
        If others change the object again and again.
    """
    if is_remote(path):
        _exchange_object(path, change)
        return
    with _locked(path.with_name(f".{path.stem}.lock")):
        found = _content(path)
        made = change(found)
        if made is None:
            remove(path)
        elif made != found:
            write_bytes(path, made)


def _content(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    file: IO[bytes] | None = None
    with contextlib.suppress(OSError):
        file = path.open("ab")
    if file is None:
        yield
        return
    with file:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _exchange_object(path: Path, change: Change) -> None:
    for attempt in range(_ATTEMPTS):
        # Not all at once: those that met would meet again.
        time.sleep(random.uniform(0, min(0.05 * attempt, 1.0)))
        # The tag first: what changes after it is noticed by the request that is held to it.
        tag = _tag(path)
        found = None if tag is None else _content(path)
        made = change(found)
        if made == found or _request(path, made, tag):
            return
    raise StoreError(f"{path} is changed by others again and again: {_ATTEMPTS} attempts came too late")


def _tag(path: Path) -> str | None:
    try:
        return str(path.fs.info(str(path))["ETag"])  # type: ignore[attr-defined]
    except FileNotFoundError:
        return None


def _request(path: Path, content: bytes | None, tag: str | None) -> bool:
    """Write or delete an object that is still the one with this tag; whether it was."""
    fs: Any = path.fs  # type: ignore[attr-defined]
    bucket, key, _ = fs.split_path(str(path))
    condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    method, body = ("delete_object", {}) if content is None else ("put_object", {"Body": content})
    try:
        fs.call_s3(method, Bucket=bucket, Key=key, **body, **condition)
    except (FileExistsError, FileNotFoundError):
        return False
    except failures() as error:
        number = getattr(error, "errno", None)
        if number in (errno.EINVAL, errno.EBUSY):  # 412, 409: it is another by now
            return False
        if number != errno.ENOSYS:
            raise
        fs.call_s3(method, Bucket=bucket, Key=key, **body)
    return True
