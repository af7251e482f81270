"""The table of BigEarthNet v2 (reBEN), ``metadata.parquet``: names, 19-class labels, split, flags, names in version 1.

The official download has two: ``metadata.parquet`` of 480,038 patches, and one of those with snow, cloud or shadow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError, LegendError
from geoflow.labels.patchlabels import NINETEEN, Label, scheme_codes
from geoflow.labels.splits import SPLIT_NAMES, split_code
from geoflow.legends import legend

COLUMNS = ("patch_id", "labels", "split", "country", "s2v1_name", "contains_seasonal_snow", "contains_cloud_or_shadow")


@dataclass(frozen=True, eq=False)
class PatchTable:
    """The rows of one or more tables of metadata, in the order of their names.

    Attributes
    ----------
    names, v1_names, countries : tuples of str
        The patch's name in version 2 and in version 1, and its country.
    labels : bool, dims (patch, class)
        Classes of the 19-class scheme, columns in the order of ``scheme_codes("nineteen")``.
    split : uint8, dims (patch)
        The official split, as in `geoflow.labels.splits.SPLIT_NAMES`.
    snow, cloud : bool, dims (patch)
        Flagged as holding seasonal snow, and cloud or shadow.
    """

    names: tuple[str, ...]
    v1_names: tuple[str, ...]
    countries: tuple[str, ...]
    labels: NDArray[np.bool_]
    split: NDArray[np.uint8]
    snow: NDArray[np.bool_]
    cloud: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Name, of either version, to row."""
        return {**{n: i for i, n in enumerate(self.v1_names) if n}, **{n: i for i, n in enumerate(self.names)}}

    @cached_property
    def label_of(self) -> list[Label]:
        """The label of each row; equal ones are one object."""
        codes = np.array(scheme_codes(NINETEEN))
        distinct, at = np.unique(self.labels, axis=0, return_inverse=True)
        made = [Label(None, tuple(codes[row].tolist())) for row in distinct]
        return [made[i] for i in at.ravel().tolist()]


def read_table(paths: Sequence[str | Path]) -> PatchTable:
    """Read tables of metadata.

    Raises
    ------
    LabelError
        If a file is missing or no such table, a label or a split is unknown, or a patch is in the tables twice.
    """
    import pyarrow as pa

    table = pa.concat_tables([_read(Path(path)) for path in paths]).combine_chunks()
    names = table["patch_id"].to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    if twice := next((names[a] for a, b in itertools.pairwise(order) if names[a] == names[b]), None):
        raise LabelError(f"{_listed(paths)}: patch {twice} appears twice")
    table = table.take(order)
    try:
        labels = _multi_hot(table["labels"])
        split = _coded(table["split"], split_code, np.dtype(np.uint8))
    except (LabelError, LegendError) as problem:
        raise LabelError(f"{_listed(paths)}: {problem}") from None
    return PatchTable(
        tuple(table["patch_id"].to_pylist()),
        tuple(name or "" for name in table["s2v1_name"].to_pylist()),
        tuple(country or "" for country in table["country"].to_pylist()),
        labels,
        split,
        *(table[name].to_numpy(zero_copy_only=False).astype(bool) for name in COLUMNS[-2:]),
    )


def _read(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise LabelError(f"no metadata at {path}: there is no such file")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as problem:
        raise LabelError(f"{path}: cannot be read as Parquet: {problem}") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise LabelError(
            f"{path}: is no metadata of BigEarthNet v2: it has no column {missing[0]!r} (it has "
            f"{', '.join(table.column_names)})"
        )
    table = table.select(list(COLUMNS))
    # A column that is empty throughout comes without a type.
    kinds = {name: pa.string() for name in ("patch_id", "split", "country", "s2v1_name")}
    return table.cast(pa.schema([(f.name, kinds.get(f.name, f.type)) for f in table.schema]))


def _multi_hot(column: Any) -> NDArray[np.bool_]:
    """A column of lists of names as bool, dims (patch, class)."""
    nineteen = legend("bigearthnet-19")
    lists = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    codes = _coded(lists.flatten(), nineteen.code_of, np.dtype(np.int64))
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    columns = np.array(scheme_codes(NINETEEN))
    if coarse := sorted(set(codes.tolist()) - set(columns.tolist())):
        raise LabelError(f"{nineteen.label(coarse[0])!r} is none of the 19 classes")
    found = np.zeros((len(lists), len(columns)), bool)
    found[np.repeat(np.arange(len(lists)), lengths), np.searchsorted(columns, codes)] = True
    return found


def _coded(column: Any, code_of: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A column of a few distinct texts, each looked up once."""
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    coded = column.fill_null("").dictionary_encode()
    table = np.array([code_of(text) for text in coded.dictionary.to_pylist()], dtype)
    return table[coded.indices.to_numpy(zero_copy_only=False)] if len(table) else np.zeros(0, dtype)


def _listed(paths: Sequence[str | Path]) -> str:
    return ", ".join(str(path) for path in paths)


def split_counts(table: PatchTable) -> dict[str, int]:
    """Patches of each part of the official split."""
    return {name: int((table.split == code).sum()) for code, name in SPLIT_NAMES.items() if code}
