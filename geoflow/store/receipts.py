"""Receipts: what was done, with what, and proof that it is there.

A task writes its pixels first and its receipt last, in one rename. A task that has no receipt, or one of another id, or
one whose files are gone, is done again; nothing else is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoflow.errors import StoreError


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
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


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
        """The receipt, or None if there is none that can be read (one cut short counts as none)."""
        try:
            return dict(json.loads(self.path(stage, key).read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None

    def write(
        self, stage: str, key: str, task_id: str, content: Mapping[str, Any], files: Sequence[Path]
    ) -> dict[str, Any]:
        """Write and return a receipt for files that are complete on disk.

        Raises
        ------
        StoreError
            If one of the files is not there: the task did not do what it says.
        """
        missing = [f for f in files if not f.exists()]
        if missing:
            raise StoreError(f"{stage} {key} ended without writing {missing[0]}; the disk may be full")
        root = self.folder.parent
        listed = {f.relative_to(root).as_posix(): f.stat().st_size for f in files}
        receipt = {**content, "id": task_id, "stage": stage, "key": key, "files": listed}
        write_json(self.path(stage, key), receipt)
        return receipt

    def valid(self, stage: str, key: str, task_id: str) -> dict[str, Any] | None:
        """The receipt if it is for this very task and its files have the size they had, else None."""
        receipt = self.read(stage, key)
        if receipt is None or receipt.get("id") != task_id:
            return None
        root = self.folder.parent
        for name, size in receipt.get("files", {}).items():
            try:
                if (root / name).stat().st_size != size:
                    return None
            except FileNotFoundError:
                return None
        return receipt
