"""Labelled patches in memory, and as one Zarr store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError, LegendError
from geoflow.inputs import NODATA
from geoflow.legends import Legend


class Skipped(NamedTuple):
    """A patch that was left out."""

    name: str
    reason: str


_STORE_FORMAT = "geoflow-patches-1"
_CHUNK_PATCHES = 64


@dataclass(frozen=True, eq=False)
class Patches:
    """Labelled patches in memory.

    Attributes
    ----------
    cube : int16, dims (patch, band, y, x)
        Reflectance x 10000, nodata -32768, 120 x 120 pixels of 10 m.
    labels : bool, dims (patch, class)
        True where the patch holds the class ``codes[class]``; several can be.
    codes : tuple of int
        All codes of the legend's deepest level, ascending.
    bands : tuple of str
    names : tuple of str
    dates : datetime64[D], dims (patch)
        Day of acquisition; NaT where the patch does not say.
    skipped : tuple of Skipped (name, reason)
        The patches left out: broken, partial, or on a list of excluded ones.
    legend : str
        Name of the legend that ``codes`` belong to.
    """

    cube: NDArray[np.int16]
    labels: NDArray[np.bool_]
    codes: tuple[int, ...]
    bands: tuple[str, ...]
    names: tuple[str, ...]
    dates: NDArray[np.datetime64]
    skipped: tuple[Skipped, ...]
    legend: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """sha256 of everything that training can depend on: pixels, labels, codes, bands, names and dates."""
        text = json.dumps([self.codes, self.bands, self.names, self.dates.astype(str).tolist(), self.legend])
        state = hashlib.sha256(text.encode())
        for values in (self.cube, self.labels):
            state.update(np.ascontiguousarray(values).data)
        return state.hexdigest()

    def labels_at(self, legend: Legend, level: int) -> tuple[tuple[int, ...], NDArray[np.bool_]]:
        """Codes of a level, and bool labels of dims (patch, class): a patch holds a group if it holds a class of it.

        Raises
        ------
        LegendError
            If the legend is not the one that these patches were read with.
        """
        if legend.name != self.legend:
            raise LegendError(f"these patches have the codes of legend {self.legend!r}, not {legend.name!r}")
        codes = legend.codes(level)
        parents = np.array([legend.ancestor(code, level) for code in self.codes])
        return codes, np.stack([self.labels[:, parents == code].any(axis=1) for code in codes], axis=1)


def write_patches(patches: Patches, path: str | Path) -> str:
    """Write patches as one Zarr v3 store, all or nothing: it appears under its name once it is whole.

    Returns
    -------
    str
        `Patches.digest`, also kept in the store.

    Raises
    ------
    LabelError
        If the place cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest = patches.digest
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        _write_arrays(patches, temporary, digest)
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except OSError as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        raise LabelError(f"cannot write patches to {path}: {problem}") from None
    return digest


def open_patches(path: str | Path) -> Patches:
    """Read back what `write_patches` wrote.

    Raises
    ------
    LabelError
        If there is no such store, or its content does not fit its digest.
    """
    import zarr
    from zarr.errors import GroupNotFoundError

    try:
        group = zarr.open_group(str(path), mode="r")
    except (FileNotFoundError, GroupNotFoundError):
        raise LabelError(f"no patches at {path}: there is no such Zarr store") from None
    attrs: dict[str, Any] = dict(group.attrs)
    if attrs.get("format") != _STORE_FORMAT:
        raise LabelError(f"{path}: format {attrs.get('format')!r} is not {_STORE_FORMAT!r}: not a store of patches")
    try:
        cube, labels, days, text = (np.asarray(group[name]) for name in ("cube", "labels", "dates", "names"))
    except (KeyError, OSError, RuntimeError, ValueError) as problem:
        raise LabelError(f"{path}: is damaged: {problem}") from None
    patches = Patches(
        cube=cube,
        labels=labels,
        codes=tuple(attrs["codes"]),
        bands=tuple(attrs["bands"]),
        names=tuple(bytes(row).rstrip(b"\0").decode() for row in text),
        dates=days.view("datetime64[D]"),
        skipped=tuple(Skipped(name, reason) for name, reason in attrs["skipped"]),
        legend=attrs["legend"],
    )
    if patches.digest != attrs["digest"]:
        raise LabelError(
            f"{path}: is damaged: its content does not fit its digest; remove it and read the patches again"
        )
    return patches


def _write_arrays(patches: Patches, path: Path, digest: str) -> None:
    """Names as UTF-8 bytes padded with 0 and days as int64: types that every reader of Zarr v3 has."""
    import zarr
    from zarr.codecs import ZstdCodec

    group = zarr.create_group(str(path), overwrite=True)
    encoded = [name.encode() for name in patches.names]
    text = np.array(encoded, dtype=f"S{max(map(len, encoded))}")
    arrays: dict[str, tuple[NDArray[Any], Any, tuple[str, ...]]] = {
        "cube": (patches.cube, NODATA, ("patch", "band", "y", "x")),
        "labels": (patches.labels, False, ("patch", "class")),
        "names": (text.view(np.uint8).reshape(len(text), -1), 0, ("patch", "byte")),
        "dates": (patches.dates.astype("datetime64[D]").view(np.int64), 0, ("patch",)),
    }
    for name, (values, fill, dims) in arrays.items():
        rows = _CHUNK_PATCHES if name == "cube" else max(len(patches), 1)
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(min(rows, len(patches)), *values.shape[1:]),
            fill_value=fill,
            compressors=ZstdCodec(level=1, checksum=True),
            dimension_names=dims,
            config={"write_empty_chunks": True},
        )
        array[:] = values
    group.attrs.update(
        {
            "format": _STORE_FORMAT,
            "digest": digest,
            "legend": patches.legend,
            "codes": list(patches.codes),
            "bands": list(patches.bands),
            "skipped": [list(entry) for entry in patches.skipped],
        }
    )
