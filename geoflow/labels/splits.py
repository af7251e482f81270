"""Splits of patches into training, validation and test: at random, official, a user's, or by squares within a tile.

None depends on the order in which patches were found: a random split goes by the rank of a hash of each name.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError

NONE, TRAIN, VALIDATION, TEST = 0, 1, 2, 3
SPLIT_NAMES = {NONE: "none", TRAIN: "train", VALIDATION: "validation", TEST: "test"}
"""Codes of a split; ``none`` is a patch that the split does not name."""

TILE_PATCHES = 91.5
"""Patches of 1.2 km along the edge of a Sentinel-2 tile of 109.8 km."""

_SPELLINGS = {"": NONE, "none": NONE, "train": TRAIN, "training": TRAIN, "val": VALIDATION, "validation": VALIDATION}
_SPELLINGS |= {"valid": VALIDATION, "test": TEST, "testing": TEST}
_PLACE = re.compile(r"_(\d{1,2})_(\d{1,2})$")


def split_code(name: str) -> int:
    """The code of a part by its name, in any usual spelling.

    Raises
    ------
    LabelError
        If it is none.
    """
    code = _SPELLINGS.get(name.strip().casefold())
    if code is None:
        raise LabelError(f"{name!r} is no part of a split; write train, validation or test")
    return code


def seeded_order(names: Sequence[str], seed: int, purpose: str) -> NDArray[np.intp]:
    """Positions of names in an order that is random, but depends on the set of names and the seed alone."""
    keys = [hashlib.sha256(f"{purpose}:{seed}:{name}".encode()).digest() for name in names]
    return np.array(sorted(range(len(names)), key=lambda i: (keys[i], names[i])), np.intp)


def random_split(names: Sequence[str], share: float, seed: int) -> NDArray[np.uint8]:
    """A random share, rounded down, for validation, and the rest for training.

    With a share of 0.2, as in the paper, 519,339 patches leave 103,867 for validation.

    Raises
    ------
    LabelError
        If the share is not within 0..1.
    """
    if not 0 <= share < 1:
        raise LabelError(f"the share for validation must be at least 0 and below 1, not {share}")
    parts = np.full(len(names), TRAIN, np.uint8)
    held = math.floor(share * len(names) + 1e-9)
    parts[seeded_order(names, seed, "split")[:held]] = VALIDATION
    return parts


def squares(
    column: NDArray[np.floating], row: NDArray[np.floating], size: float, shares: tuple[float, float] = (0.5, 0.25)
) -> NDArray[np.uint8]:
    """A geographic split of a square by concentric squares: the ring outside for training, then validation, then test.

    Parameters
    ----------
    column, row : float arrays
        Where each sample's centre lies, from the square's upper left corner.
    size : float
        Edge of the square, in the same unit.
    shares : pair of float
        Shares of the area for training and for validation; the centre is left for testing.

    Returns
    -------
    uint8 array, as `SPLIT_NAMES`

    Raises
    ------
    LabelError
        If the shares are negative or together more than 1.
    """
    train, validation = shares
    if min(train, validation) < 0 or train + validation > 1 + 1e-9:
        raise LabelError(f"the shares {shares} must not be negative, nor together more than 1")
    half = size / 2
    away = np.maximum(np.abs(np.asarray(column) - half), np.abs(np.asarray(row) - half)) / half
    inner, middle = math.sqrt(max(0.0, 1 - train - validation)), math.sqrt(1 - train)
    return np.select([away < inner, away < middle], [TEST, VALIDATION], TRAIN).astype(np.uint8)


def squares_split(names: Sequence[str]) -> NDArray[np.uint8]:
    """`squares` by the column and row that end a patch's name; 0 where a name has none.

    This is the rule of BigEarthNet v2's official split: on its 480,038 patches both agree without exception.
    """
    places = [_PLACE.search(name) for name in names]
    known = np.array([place is not None for place in places], bool)
    numbers = np.array([(int(p[1]), int(p[2])) if p else (0, 0) for p in places], float).reshape(-1, 2)
    parts = squares(numbers[:, 0] + 0.5, numbers[:, 1] + 0.5, TILE_PATCHES)
    return np.where(known, parts, NONE).astype(np.uint8)


def read_split(path: str | Path) -> dict[str, int]:
    """A user's split: a CSV file (or ``.csv.bz2``) of patch name and part, with or without a header.

    Raises
    ------
    LabelError
        If the file is missing, a line has no part, a part is unknown, or a patch is given two parts.
    """
    path = Path(path)
    found: dict[str, int] = {}
    for number, fields in enumerate(csv.reader(io.StringIO(read_text(path))), 1):
        cells = [field.strip() for field in fields]
        if not any(cells):
            continue
        if number == 1 and len(cells) > 1 and cells[1].casefold() in ("split", "part", "set", "subset"):
            continue
        if len(cells) < 2 or not cells[0]:
            raise LabelError(f"{path}, line {number}: {','.join(fields)!r} is not 'patch name,part'")
        try:
            part = split_code(cells[1])
        except LabelError as problem:
            raise LabelError(f"{path}, line {number}: {problem}") from None
        if found.setdefault(cells[0], part) != part:
            raise LabelError(f"{path}, line {number}: {cells[0]} was in another part before")
    if not found:
        raise LabelError(f"{path}: names no patch")
    return found


def read_names(path: str | Path) -> list[str]:
    """Patch names of a list, one a line, ``.csv`` or ``.csv.bz2``; of a file with more columns, the first.

    Raises
    ------
    LabelError
        If the file is missing or is no text.
    """
    return [line.split(",")[0].strip() for line in read_text(Path(path)).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """The text of a file, unpacked where its name ends in ``.bz2``."""
    try:
        raw = path.read_bytes()
        return (bz2.decompress(raw) if path.suffix == ".bz2" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise LabelError(f"no list of patches at {path}: there is no such file") from None
    except (OSError, ValueError) as problem:
        raise LabelError(f"{path}: cannot be read as a list of patch names: {problem}") from None


def parts_of(names: Iterable[str], other_names: Iterable[str], given: dict[str, int]) -> NDArray[np.uint8]:
    """The part of each patch, looked up by its name or, if that is not found, by its other one."""
    pairs = zip(names, other_names, strict=True)
    return np.array([given.get(name, given.get(other, NONE)) for name, other in pairs], np.uint8)
