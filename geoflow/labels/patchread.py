"""Reading the patches of one chunk: pixels, place, labels and reference map of each, or the reason to skip it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError, LegendError
from geoflow.inputs import NODATA
from geoflow.labels.bigearthnet import PATCH_PX, read_pixels
from geoflow.labels.patchindex import Skipped
from geoflow.labels.patchlabels import (
    NINETEEN,
    SCHEMES,
    UNKNOWN,
    Label,
    check_map_codes,
    clc_code,
    multi_hot,
    scheme_codes,
)
from geoflow.labels.patchstats import patch_moments
from geoflow.labels.patchtiff import Place, read_raster
from geoflow.legends import NODATA_CODE, legend


@dataclass(frozen=True)
class Planned:
    """A patch that is to be read.

    Attributes
    ----------
    name, folder : str
        ``folder`` is relative to the root of the data set.
    nineteen : tuple of int, or None
        Codes of its 19 classes by the table; None where no table has it.
    """

    name: str
    folder: str
    nineteen: tuple[int, ...] | None


@dataclass(frozen=True)
class Layout:
    """Where the files lie: root of the data set, its version, folder of reference maps under the root or nothing."""

    root: str
    version: int
    maps: str


@dataclass(eq=False)
class PatchChunk:
    """Consecutive patches as they are stored. A patch that is skipped keeps its place, and looks like no data.

    Attributes
    ----------
    cube : int16, dims (patch, band, y, x)
        Reflectance x 10000, nodata -32768; throughout where the patch was skipped.
    maps : uint16, dims (patch, y, x), or None
        CLC level-3 codes, 0 where unlabelled, where there is no map, and where the patch was skipped.
    labels : dict of scheme -> uint8, dims (patch, class)
        `UNKNOWN` where skipped.
    valid : uint8, dims (patch)
        1 where the patch was read.
    moments : float64, dims (patch, band, 3)
        Pixels that are not nodata, their mean and sum of squared deviations, as `patch_moments` has them.
    epsg : int32; left, top : float64; dims (patch)
        CRS, and upper left corner in it; 0 and NaN where skipped.
    skipped : list of Skipped (name, reason)
    without_map : int
        Patches read that have no reference map, where others have.
    """

    cube: NDArray[np.int16]
    maps: NDArray[np.uint16] | None
    labels: dict[str, NDArray[np.uint8]]
    valid: NDArray[np.uint8]
    moments: NDArray[np.float64]
    epsg: NDArray[np.int32]
    left: NDArray[np.float64]
    top: NDArray[np.float64]
    skipped: list[Skipped] = field(default_factory=list)
    without_map: int = 0

    @classmethod
    def empty(cls, patches: int, bands: int, with_maps: bool) -> PatchChunk:
        """Nothing read yet."""
        nan = np.full(patches, np.nan)
        return cls(
            np.full((patches, bands, PATCH_PX, PATCH_PX), NODATA, np.int16),
            np.zeros((patches, PATCH_PX, PATCH_PX), np.uint16) if with_maps else None,
            {scheme: np.full((patches, len(scheme_codes(scheme))), UNKNOWN, np.uint8) for scheme in SCHEMES},
            np.zeros(patches, np.uint8),
            np.zeros((patches, bands, 3)),
            np.zeros(patches, np.int32),
            nan,
            nan.copy(),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name in the store to values."""
        found: dict[str, NDArray[Any]] = {f"label_{scheme}": values for scheme, values in self.labels.items()}
        found |= {
            "cube": self.cube,
            "moments": self.moments,
            "epsg": self.epsg,
            "left": self.left,
            "top": self.top,
            "valid": self.valid,
        }
        return found if self.maps is None else {**found, "reference_map": self.maps}


def read_chunk(patches: Sequence[Planned], layout: Layout, bands: Sequence[str]) -> PatchChunk:
    """Read patches; one that is broken or partial is skipped and listed with the reason.

    Version 1 has its labels in ``_labels_metadata.json``. Version 2 has its 19 classes in the table, and all CLC
    classes, those that the 19 leave out included, in the reference map; without the map levels 2 and 3 are unknown,
    and without the table the 19 classes are those of the map.
    """
    chunk = PatchChunk.empty(len(patches), len(bands), bool(layout.maps))
    read: list[int] = []
    labels: list[Label] = []
    for at, patch in enumerate(patches):
        folder = f"{layout.root}/{patch.folder}"
        try:
            target, codes = _read_map(patch, layout)
            label = _v1_label(folder, patch.name) if layout.version == 1 else _v2_label(patch, codes)
            pixels, place = read_pixels(folder, patch.name, bands)
        except (LabelError, LegendError) as problem:
            chunk.skipped.append(Skipped(patch.name, str(problem)))
            continue
        chunk.cube[at] = pixels
        _put_place(chunk, at, place)
        if chunk.maps is not None and target is not None:
            chunk.maps[at] = target
        chunk.without_map += bool(layout.maps) and target is None
        read.append(at)
        labels.append(label)
    if read:
        chunk.moments[read] = patch_moments(chunk.cube[read])
        for scheme, rows in multi_hot(labels).items():
            chunk.labels[scheme][read] = rows
    return chunk


def _put_place(chunk: PatchChunk, at: int, place: Place) -> None:
    chunk.valid[at] = 1
    chunk.epsg[at], chunk.left[at], chunk.top[at] = place.epsg, place.left, place.top


def _read_map(patch: Planned, layout: Layout) -> tuple[NDArray[np.uint16] | None, tuple[int, ...] | None]:
    """The map as a target, and all CLC codes in it; None where the patch has no map."""
    if not layout.maps:
        return None, None
    scene = patch.folder.split("/")[-2]
    path = f"{layout.root}/{layout.maps}/{scene}/{patch.name}/{patch.name}_reference_map.tif"
    if not Path(path).is_file():
        return None, None
    values = read_raster(path, PATCH_PX).values
    target = check_map_codes(values, Path(path).name)
    known = set(np.unique(values).tolist()) - {NODATA_CODE, *legend("corine").nodata_codes}
    return target, tuple(sorted(known))


def _v2_label(patch: Planned, codes: tuple[int, ...] | None) -> Label:
    if codes is None and patch.nineteen is None:
        raise LabelError("has neither a row in the metadata nor a reference map, so its classes are not known")
    return Label(codes, patch.nineteen)


def _v1_label(folder: str, name: str) -> Label:
    path = f"{name}_labels_metadata.json"
    try:
        with open(f"{folder}/{path}", "rb") as file:
            names = json.loads(file.read())["labels"]
        if not names or isinstance(names, str):
            raise LabelError(f"{path} names no label")
        return _label_of(tuple(sorted(map(str, names))))
    except FileNotFoundError:
        raise LabelError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise LabelError(f"{path} cannot be understood: {type(problem).__name__}: {problem}") from None


@lru_cache(maxsize=4096)
def _label_of(names: tuple[str, ...]) -> Label:
    """Equal labels are mostly one object, which `multi_hot` is quick with."""
    return Label(tuple(sorted({clc_code(name) for name in names})))


def codes_of(listed: NDArray[np.uint8]) -> list[tuple[int, ...] | None]:
    """Rows of 19 classes as in a plan to their codes; None where `UNKNOWN`."""
    codes = np.array(scheme_codes(NINETEEN))
    return [None if (row == UNKNOWN).any() else tuple(codes[row == 1].tolist()) for row in listed]
