"""Receipts: what was done, with what, and proof that it is there.

A task writes its pixels first and its receipt last, in one rename. A task that has no receipt, or one of another id, or
one whose files are gone, is done again; nothing else is.

A receipt lists each file with its size and the crc32c of its bytes, and ends in the crc32c of itself. Whether to go on
from it is decided by sizes, which is cheap; `geoflow.store.verify` reads the bytes. A receipt that is not, byte for
byte, what was written vouches for nothing, and neither does one of an older geoflow without checksums: its task is
done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from geoflow.errors import StoreError
from geoflow.places import at_once, files_below, is_remote, read_bytes, write_bytes

CHECKSUM = "checksum"
"""Last key of a sealed file: the crc32c of its text without this key."""

NODATA_COUNTS = "nodata_px"
"""Key of a receipt of pixels: how many of each variable are nodata."""

_BLOCK = 2**23


def digest(*parts: Any) -> str:
    """sha256 over plain values, the same on every machine and in every order of dictionary keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | set | frozenset):
        return sorted(value) if not isinstance(value, tuple) else list(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"cannot make a digest of {type(value).__name__}: {value!r}")


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that the file is either the old one or the whole new one."""
    write_bytes(path, _text(values).encode())


def _text(values: Any) -> str:
    return json.dumps(values, indent=1) + "\n"


def crc32c(content: bytes) -> str:
    """crc32c of bytes, as 8 hexadecimal digits."""
    return f"{google_crc32c.value(content):08x}"


def measure(path: Path) -> str:
    """Size in bytes and crc32c of a file, ``"1834 9f3b0c1a"``; read block by block.

    One short text for both, because a country has millions of files.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    if is_remote(path):
        content = read_bytes(path)
        return f"{len(content)} {crc32c(content)}"
    size, value = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, value = size + len(block), google_crc32c.extend(value, block)
    return f"{size} {value:08x}"


def write_sealed(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write and return plain values with the checksum of their text as last key; see `read_sealed`."""
    plain = json.loads(json.dumps(dict(values)))  # as it will be read: text keys, no tuples
    plain.pop(CHECKSUM, None)
    sealed = {**plain, CHECKSUM: crc32c(_text(plain).encode())}
    write_json(path, sealed)
    return sealed


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None if there is no such file, or a single bit of it is another one.

    The text is made again from what it says and compared, because some flips (of the case of an exponent, say) leave
    the values as they were.
    """
    try:
        content = read_bytes(path)
        values = json.loads(content)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or _text(values).encode() != content:
        return None
    rest = {key: value for key, value in values.items() if key != CHECKSUM}
    return values if values.get(CHECKSUM) == crc32c(_text(rest).encode()) else None


@dataclass(frozen=True)
class Receipts:
    """The receipts of one output folder.

    Parameters
    ----------
    folder : Path
        ``OUT/receipts``; a receipt lies at ``<stage>/<key>.json``, for example ``predict/2018/r0000c0001.json``.
    """

    folder: Path

    def path(self, stage: str, key: str) -> Path:
        """Where the receipt of a task lies."""
        return self.folder / stage / f"{key}.json"

    def read(self, stage: str, key: str) -> dict[str, Any] | None:
        """The receipt, or None if there is none that is whole (one cut short or altered by a bit counts as none)."""
        return read_sealed(self.path(stage, key))

    def write(
        self, stage: str, key: str, task_id: str, content: Mapping[str, Any], files: Sequence[Path]
    ) -> dict[str, Any]:
        """Write and return a receipt for files that are complete on disk.

        Raises
        ------
        StoreError
            If one of the files is not there: the task did not do what it says.
        """
        measured = at_once(_measured, files, is_remote(self.folder))
        for file, found in zip(files, measured, strict=True):
            if found is None:
                raise StoreError(f"{stage} {key} ended without writing {file}; the disk may be full")
        root = self.folder.parent
        listed = {relative(f, root): found for f, found in zip(files, measured, strict=True)}
        receipt = {**content, "id": task_id, "stage": stage, "key": key, "files": listed}
        return write_sealed(self.path(stage, key), receipt)

    def valid(self, stage: str, key: str, task_id: str) -> dict[str, Any] | None:
        """The receipt if it is for this very task and its files have the size they had, else None."""
        return self.all_valid([(stage, key, task_id)])[0]

    def all_valid(self, wanted: Sequence[tuple[str, str, str]]) -> list[dict[str, Any] | None]:
        """As `valid`, of many tasks (stage, key, id), in order.

        In an object store receipts are read many at once, and sizes come from listings of whole arrays: to ask for
        each chunk by itself would take longer than to make it.
        """
        remote = is_remote(self.folder)
        read = at_once(lambda task: self.read(task[0], task[1]), wanted, remote)
        found = [r if r is not None and r.get("id") == w[2] else None for r, w in zip(read, wanted, strict=True)]
        sizes = self._listed(found) if remote else None
        return [r if r is None or self._as_large_as_they_were(r, sizes) else None for r in found]

    def _as_large_as_they_were(self, receipt: Mapping[str, Any], sizes: Mapping[str, int] | None) -> bool:
        root = self.folder.parent
        for name, measured in receipt.get("files", {}).items():
            try:
                size = (root / name).stat().st_size if sizes is None else sizes[name]
            except (FileNotFoundError, KeyError):
                return False
            if size != int(measured.partition(" ")[0]):
                return False
        return True

    def _listed(self, receipts: Sequence[Mapping[str, Any] | None]) -> dict[str, int]:
        """Sizes of all files below the folders in which files of receipts lie."""
        folders = {_folder(name) for r in receipts if r is not None for name in r.get("files", {})}
        root = self.folder.parent
        listings = at_once(lambda folder: files_below(root / folder), sorted(folders), True)
        return {relative(path, root): size for listing in listings for path, size in listing}


def _folder(name: str) -> str:
    """The folder to list for a file: of a chunk, its array's."""
    head, bar, _ = name.partition("/c/")
    return f"{head}/c" if bar else name.rpartition("/")[0] or name


def _measured(path: Path) -> str | None:
    try:
        return measure(path)
    except FileNotFoundError:
        return None


def relative(path: Path, root: Path) -> str:
    """The name of a file below a folder, with slashes."""
    return str(path)[len(str(root)) + 1 :].replace(os.sep, "/")
