"""Drafts: what was being written when its process was killed. They never have a final name, and only take room.

Ours have hidden names beside or in place of the final one; zarr's are called ``CHUNK.HASH.partial``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from geoflow.places import is_remote

_ZARRS = re.compile(r".+\.[0-9a-f]{32}\.partial")


def remove_drafts(out: Path, folders: Iterable[str]) -> list[str]:
    """Remove drafts; only while nobody writes into these folders.

    Parameters
    ----------
    out : Path
        An output folder. In an object store there are no drafts.
    folders : iterable of str
        Folders in it, such as ``country.zarr``, to look through with all that is below, and whose own drafts
        (``.model-x7``) are beside them. What is not there is passed over.

    Returns
    -------
    list of str
        What was removed, relative to ``out``, sorted.
    """
    if is_remote(out):
        return []
    wanted = list(folders)
    found = [path for name in wanted for path in out.glob(f".{name}[.-]*")]
    for folder in wanted:
        for base, below, files in os.walk(out / folder):
            drafts = [name for name in (*below, *files) if _is_draft(name)]
            below[:] = [name for name in below if name not in drafts]
            found += [Path(base, name) for name in drafts]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return sorted(path.relative_to(out).as_posix() for path in found)


def _is_draft(name: str) -> bool:
    return name.startswith(".") or _ZARRS.fullmatch(name) is not None
