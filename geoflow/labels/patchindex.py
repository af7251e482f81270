"""Which patches a folder of BigEarthNet holds, in either layout as published. Folders are listed, no file is opened.

Version 1: ``<patch>/<patch>_B01.tif`` .. and ``<patch>_labels_metadata.json``, possibly one folder deeper. Version 2
(reBEN): ``BigEarthNet-S2/<scene>/<patch>/<patch>_B01.tif`` .., beside it ``Reference_Maps/<scene>/<patch>/
<patch>_reference_map.tif`` and ``metadata*.parquet``.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geoflow.errors import LabelError

V2_IMAGES, V2_MAPS = "BigEarthNet-S2", "Reference_Maps"
_V1_PATCH = re.compile(r"S2[A-C]_MSIL\d[AC]_\d{8}T\d{4,6}_\d+_\d+")
_V2_SCENE = re.compile(r"S2[A-C]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\w{5}")
_DAY = re.compile(r"_(\d{4})(\d{2})(\d{2})T\d{4}")


class Skipped(NamedTuple):
    """A patch that could not be read."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class PatchIndex:
    """The patches of a folder, ascending by name.

    Attributes
    ----------
    root : Path
        What ``folders`` are relative to.
    version : int
        1 or 2, of BigEarthNet.
    names, folders : tuple of str
        Each patch's name, and the folder that its files lie in.
    maps : str
        Folder of the reference maps under ``root``; empty where there are none.
    tables : tuple of Path
        Tables of metadata found beside.
    """

    root: Path
    version: int
    names: tuple[str, ...]
    folders: tuple[str, ...]
    maps: str = ""
    tables: tuple[Path, ...] = ()


def index_patches(source: str | Path) -> PatchIndex:
    """Find the patches of a folder.

    Parameters
    ----------
    source : path
        The folder of the patches, or the one above; of version 2, ``BigEarthNet-S2`` or the one that holds it.

    Raises
    ------
    LabelError
        If there is no such folder, or no patch in it.
    """
    root = Path(source).resolve()
    if not root.is_dir():
        raise LabelError(f"no patches at {source}: there is no such folder")
    images = next((folder for folder in (root, root / V2_IMAGES) if _holds_scenes(folder)), None)
    version = 1 if images is None else 2
    if images is None:
        found = sorted((name, folder) for folder, name in _v1_patches(root))
    else:
        root = images.parent
        found = sorted((name, folder) for folder, name in _v2_patches(root, images.name))
    if not found:
        raise LabelError(
            f"no patches in {source}: version 1 is folders NAME with NAME_labels_metadata.json, there or one folder "
            f"deeper, and version 2 is {V2_IMAGES}/SCENE/NAME"
        )
    names, folders = zip(*found, strict=True)
    if twice := next((a for a, b in itertools.pairwise(names) if a == b), None):
        raise LabelError(f"{source}: patch {twice} is there twice; name the folder of one of them")
    maps = V2_MAPS if version == 2 and (root / V2_MAPS).is_dir() else ""
    tables = tuple(sorted(root.glob("metadata*.parquet")))
    return PatchIndex(root, version, names, folders, maps, tables)


def day_of(name: str) -> np.datetime64:
    """The day of acquisition that a patch's name holds; NaT where it has none."""
    found = _DAY.search(name)
    try:
        return np.datetime64("-".join(found.groups()), "D") if found else np.datetime64("NaT", "D")
    except ValueError:
        return np.datetime64("NaT", "D")


def _v1_patches(root: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) of folders named like patches, or holding files of their own name, here and one level deeper."""
    for name in _folders(root):
        if _is_v1_patch(root, name):
            yield name, name
        else:
            inner_root = root / name
            yield from ((f"{name}/{inner}", inner) for inner in _folders(inner_root) if _is_v1_patch(inner_root, inner))


def _is_v1_patch(root: Path, name: str) -> bool:
    return bool(_V1_PATCH.fullmatch(name)) or (root / name / f"{name}_labels_metadata.json").is_file()


def _v2_patches(root: Path, images: str) -> Iterator[tuple[str, str]]:
    for scene in _folders(root / images):
        if _V2_SCENE.fullmatch(scene):
            names = _folders(root / images / scene)
            yield from ((f"{images}/{scene}/{name}", name) for name in names if name.startswith(f"{scene}_"))


def _holds_scenes(folder: Path) -> bool:
    return folder.is_dir() and any(_V2_SCENE.fullmatch(name) for name in _folders(folder))


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as problem:
        raise LabelError(f"{root} cannot be listed: {problem.strerror}") from None
