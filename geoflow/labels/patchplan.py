"""What will be read of a BigEarthNet folder: which patches, in which order, in which parts of which splits.

All of it is settled from names, lists and tables before the first pixel is read, so that every patch has its place in
the store from the start. The order is random, but the same for the same names and seed: any run of chunks is then a
random sample, and reading chunk after chunk is reading in random order.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.inputs import BANDS
from geoflow.labels.bigearthnet import NATIVE_PX
from geoflow.labels.patchindex import PatchIndex, index_patches
from geoflow.labels.patchlabels import NINETEEN, UNKNOWN, scheme_codes
from geoflow.labels.patchmeta import PatchTable, read_table
from geoflow.labels.splits import NONE, parts_of, random_split, read_names, read_split, seeded_order, squares_split

CHUNK_PATCHES = 128
"""Patches of a chunk: 44 MB of twelve bands; large enough to read at the disk's pace, small enough to hold several."""


@dataclass(frozen=True)
class PatchOptions:
    """What may be chosen about a store of patches.

    Attributes
    ----------
    bands : tuple of str
    metadata : tuple of Path
        Tables of version 2, ``metadata.parquet``; none takes those beside the patches.
    flags : tuple of Path
        Lists of patches with cloud, shadow or snow, as published with version 1.
    keep_flagged : bool
        Keep the patches that a list or a table flags, with their flags, instead of leaving them out.
    split : Path, optional
        A split of one's own: CSV of patch name and part.
    validation : float
        Share that the random split holds back.
    seed : int
        Of the order and of the random split.
    chunk : int
        Patches of a chunk.
    """

    bands: tuple[str, ...] = BANDS
    metadata: tuple[Path, ...] = ()
    flags: tuple[Path, ...] = ()
    keep_flagged: bool = False
    split: Path | None = None
    validation: float = 0.2
    seed: int = 0
    chunk: int = CHUNK_PATCHES

    def __post_init__(self) -> None:
        if wrong := [band for band in self.bands if band not in NATIVE_PX]:
            raise LabelError(f"BigEarthNet has no band {wrong[0]!r}; it has {', '.join(BANDS)}")
        if not self.bands or len(set(self.bands)) < len(self.bands):
            raise LabelError(f"bands must be some, each once, not {', '.join(self.bands) or 'none'}")
        if self.chunk < 1:
            raise LabelError(f"a chunk must hold at least one patch, not {self.chunk}")

    def described(self, source: Path) -> dict[str, Any]:
        """Plain values that tell one store from another: the options, and what the files that they name hold."""
        values = asdict(self) | {"source": str(source.resolve()), "bands": list(self.bands)}
        values["metadata"] = [_stamp(path) for path in self.metadata]
        values["flags"] = [_stamp(path) for path in self.flags]
        values["split"] = None if self.split is None else _stamp(self.split)
        return values


def _stamp(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    except OSError as problem:
        raise LabelError(f"{path} cannot be read: {problem.strerror}") from None


@dataclass(frozen=True, eq=False)
class PatchPlan:
    """The patches of a store in the order of their places.

    Attributes
    ----------
    source : Path
        As it was named.
    index : PatchIndex
    options : PatchOptions
    names, folders, v1_names, countries : lists of str
        ``v1_names``, ``countries`` are empty where no table tells them.
    snow, cloud : bool, dims (patch)
    listed : uint8, dims (patch, class)
        The table's 19 classes, `UNKNOWN` where no table has the patch.
    splits : dict of name -> uint8, dims (patch)
        ``random``, ``squares``; ``official`` where a table was given, ``user`` where a CSV was.
    dropped : dict of reason -> patches
    strangers : tuple of str
        Names in the user's CSV that no patch of the source has, ascending.
    """

    source: Path
    index: PatchIndex
    options: PatchOptions
    names: list[str]
    folders: list[str]
    v1_names: list[str]
    countries: list[str]
    snow: NDArray[np.bool_]
    cloud: NDArray[np.bool_]
    listed: NDArray[np.uint8]
    splits: dict[str, NDArray[np.uint8]]
    dropped: dict[str, int]
    strangers: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def id(self) -> str:
        """sha256 of all that the store will hold but the pixels: options, names in order, labels, flags, splits."""
        parts = [self.options.described(self.source), self.names, self.v1_names, self.countries, sorted(self.splits)]
        state = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for values in (self.listed, self.snow, self.cloud, *(self.splits[name] for name in sorted(self.splits))):
            state.update(np.ascontiguousarray(values).tobytes())
        return state.hexdigest()

    @property
    def default_split(self) -> str:
        """The one that training takes: one's own, else the official, else the paper's random one."""
        return next(name for name in ("user", "official", "random") if name in self.splits)


def plan_patches(source: str | Path, options: PatchOptions) -> PatchPlan:
    """Settle what will be read.

    Raises
    ------
    LabelError
        If there are no patches, all are left out, a list or table cannot be read, version 2 has neither metadata nor
        reference maps, or a split names not one of the patches.
    """
    index = index_patches(source)
    table = _table(index, options)
    names = index.names
    rows = np.full(len(names), -1, np.intp) if table is None else _rows(table, names)
    snow, cloud, other = _flagged(names, rows, table, options)
    dropped = _dropped(index, options, rows, table, (snow, cloud, other))
    keep = np.array([not reason for reason in dropped], bool)
    counts = Counter(reason for reason in dropped if reason)
    if not keep.any():
        raise LabelError(f"no patch of {source} is left: {', '.join(f'{n} {reason}' for reason, n in counts.items())}")
    kept = np.flatnonzero(keep)
    order = kept[seeded_order([names[i] for i in kept], options.seed, "order")]
    chosen, all_rows, rows = [names[i] for i in order], rows, rows[order]
    given = {} if options.split is None else read_split(options.split)
    strangers = set(given).difference(names, _texts(all_rows, None if table is None else table.v1_names))
    v1_names = _texts(rows, None if table is None else table.v1_names)
    return PatchPlan(
        Path(source),
        index,
        options,
        chosen,
        [index.folders[i] for i in order],
        v1_names,
        _texts(rows, None if table is None else table.countries),
        snow[order],
        cloud[order],
        _listed(rows, table),
        _splits(chosen, v1_names, rows, table, options, given),
        dict(sorted(counts.items())),
        tuple(sorted(strangers)),
    )


def _table(index: PatchIndex, options: PatchOptions) -> PatchTable | None:
    paths = options.metadata or index.tables
    if paths:
        table = read_table(paths)
        if not len(table):
            raise LabelError(f"{paths[0]}: has no row")
        return table
    if index.version == 2 and not index.maps:
        raise LabelError(
            f"{index.root}: has neither metadata.parquet nor Reference_Maps, so nothing says what its patches show; "
            "name the table with --metadata"
        )
    return None


def _rows(table: PatchTable, names: tuple[str, ...]) -> NDArray[np.intp]:
    """The table's row of each patch, by either name; -1 where it has none."""
    row_of = table.row_of
    return np.array([row_of.get(name, -1) for name in names], np.intp)


def _flagged(
    names: tuple[str, ...], rows: NDArray[np.intp], table: PatchTable | None, options: PatchOptions
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
    """Snow, cloud or shadow, by lists and tables; and lists whose name tells of neither, by their name."""
    snow, cloud = np.zeros(len(names), bool), np.zeros(len(names), bool)
    if table is not None:
        snow, cloud = (flag[rows] & (rows >= 0) for flag in (table.snow, table.cloud))
    v1_names = _texts(rows, None if table is None else table.v1_names)
    other: dict[str, NDArray[np.bool_]] = {}
    for path in options.flags:
        wanted = set(read_names(path))
        found = np.array([name in wanted or v1 in wanted for name, v1 in zip(names, v1_names, strict=True)], bool)
        lower = path.name.casefold()
        if "snow" in lower:
            snow |= found
        elif "cloud" in lower or "shadow" in lower:
            cloud |= found
        else:
            other[path.name] = found
    return snow, cloud, other


def _dropped(
    index: PatchIndex,
    options: PatchOptions,
    rows: NDArray[np.intp],
    table: PatchTable | None,
    flagged: tuple[NDArray[np.bool_], NDArray[np.bool_], dict[str, NDArray[np.bool_]]],
) -> list[str]:
    """Why each patch is left out; an empty text where it is not."""
    snow, cloud, other = flagged
    reasons = np.full(len(index.names), "", object)
    if not options.keep_flagged:
        for name, found in other.items():
            reasons[found] = f"in {name}"
        reasons[cloud] = "cloud or shadow"
        reasons[snow] = "seasonal snow"
    if index.version == 2 and table is not None:
        # The usual table leaves out the flagged ones, which have a table of their own.
        reasons[rows < 0] = "not in the metadata"
    return [str(reason) for reason in reasons]


def _texts(rows: NDArray[np.intp], column: tuple[str, ...] | None) -> list[str]:
    return [""] * len(rows) if column is None else [column[row] if row >= 0 else "" for row in rows]


def _listed(rows: NDArray[np.intp], table: PatchTable | None) -> NDArray[np.uint8]:
    listed = np.full((len(rows), len(scheme_codes(NINETEEN))), UNKNOWN, np.uint8)
    if table is not None:
        listed[rows >= 0] = table.labels[rows[rows >= 0]]
    return listed


def _splits(
    names: list[str],
    v1_names: list[str],
    rows: NDArray[np.intp],
    table: PatchTable | None,
    options: PatchOptions,
    given: dict[str, int],
) -> dict[str, NDArray[np.uint8]]:
    splits = {"random": random_split(names, options.validation, options.seed), "squares": squares_split(names)}
    if table is not None:
        splits["official"] = np.where(rows >= 0, table.split[rows], NONE).astype(np.uint8)
    if options.split is not None:
        splits["user"] = parts_of(names, v1_names, given)
        if not splits["user"].any():
            raise LabelError(f"{options.split}: names not one of the {len(names)} patches, such as {names[0]}")
    return splits
