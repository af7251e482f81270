"""BigEarthNet v1: labelled Sentinel-2 patches of 1.2 km, from folders of TIFFs to arrays and one Zarr store.

A patch is a folder ``NAME/`` with ``NAME_B01.tif`` .. ``NAME_B12.tif`` (120, 60 or 20 pixels wide, by the band's own
resolution) and ``NAME_labels_metadata.json``. Its values are reflectance x 10000 without an offset, as in every product
before processing baseline 04.00 (BigEarthNet is of 2017 and 2018), so they are in the unit of a cube as they are.
"""

from __future__ import annotations

import bz2
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError, LegendError
from geoflow.inputs import BANDS, NODATA
from geoflow.labels.patches import Patches, Skipped
from geoflow.labels.patchtiff import Place, enlarge, enlarge_with_gdal, read_raster
from geoflow.legends import NODATA_CODE, Legend, listed
from geoflow.legends import legend as find_legend

PATCH_PX = 120
"""Width and height of a patch at 10 m."""

NATIVE_PX = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 120),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 60),
    **dict.fromkeys(("B01", "B09"), 20),
}
"""Width and height of each band's file."""

_V1_NAME = re.compile(r"S2[A-C]_MSIL\d[AC]_\d{8}T\d{4,6}_\d+_\d+")
_V2_NAME = re.compile(r"S2[A-C]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\w{5}")


@dataclass(frozen=True)
class PatchIndex:
    """The patches found in a folder.

    Attributes
    ----------
    folders : tuple of Path
        In order of name.
    skipped : tuple of Skipped (name, reason)
        What was found and left out.
    """

    folders: tuple[Path, ...]
    skipped: tuple[Skipped, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the patches, ascending."""
        return tuple(folder.name for folder in self.folders)


def find_patches(source: str | Path, exclude: Sequence[str | Path] = ()) -> PatchIndex:
    """The patches of a BigEarthNet v1 folder, or of the folders in it. Nothing is opened yet.

    Parameters
    ----------
    source : path
    exclude : sequence of paths
        Lists of patch names to leave out, one a line, ``.csv`` or ``.csv.bz2`` (BigEarthNet's lists of snow and cloud).

    Raises
    ------
    LabelError
        If there is no such folder or list, no patch is left, or the folder has the layout of version 2 (reBEN), which
        is not read yet.
    """
    root = Path(source)
    if not root.is_dir():
        raise LabelError(f"no patches at {root}: there is no such folder")
    unwanted = {name: str(path) for path in exclude for name in _read_names(Path(path))}
    folders: list[Path] = []
    skipped: list[Skipped] = []
    for folder in sorted(_patch_folders(root), key=lambda f: f.name):
        if folder.name in unwanted:
            skipped.append(Skipped(folder.name, f"is in {unwanted[folder.name]}"))
        else:
            folders.append(folder)
    if not folders:
        why = (
            f"all {len(skipped)} are excluded" if skipped else "a patch is a folder NAME with NAME_labels_metadata.json"
        )
        raise LabelError(f"no patches in {root}, or one folder deeper: {why}")
    return PatchIndex(tuple(folders), tuple(skipped))


def read_patch(folder: str | Path, bands: Sequence[str]) -> NDArray[np.int16]:
    """The pixels of one patch.

    Parameters
    ----------
    folder : path
    bands : sequence of str
        ``"B01"`` .. ``"B12"``, ``"B8A"``; the order of the result.

    Returns
    -------
    int16, dims (band, y, x), 120 x 120
        Reflectance x 10000 (32767 at most); bands of 20 and 60 m are interpolated bilinearly, by the rule of
        `geoflow.labels.patchtiff.enlarge`. A pixel that is 0 in every band is nodata, -32768.

    Raises
    ------
    LabelError
        If a band is unknown, or its file is missing, damaged or of another size than BigEarthNet's.
    """
    return read_pixels(str(folder), Path(folder).name, bands)[0]


def read_pixels(folder: str, name: str, bands: Sequence[str]) -> tuple[NDArray[np.int16], Place]:
    """`read_patch` of the files ``NAME_<band>.tif``, and where the first of them says that the patch lies."""
    values = np.empty((len(bands), PATCH_PX, PATCH_PX), np.uint16)
    coarse: dict[int, list[tuple[int, NDArray[np.uint16]]]] = {}
    place: Place | None = None
    for i, band in enumerate(bands):
        side = NATIVE_PX.get(band)
        if side is None:
            raise LabelError(f"BigEarthNet has no band {band!r}; it has {', '.join(BANDS)}")
        path = f"{folder}/{name}_{band}.tif"
        raster = read_raster(path, side)
        place = place or raster.place
        if side == PATCH_PX:
            values[i] = raster.values
        elif raster.nodata is not None and (raster.values == raster.nodata).any():
            values[i] = enlarge_with_gdal(path, PATCH_PX)
        else:
            coarse.setdefault(side, []).append((i, raster.values))
    for side, found in coarse.items():
        values[[i for i, _ in found]] = enlarge(np.stack([v for _, v in found]), PATCH_PX // side)
    cube = np.minimum(values, np.iinfo(np.int16).max).astype(np.int16)
    if not values.all():
        cube[:, (values == 0).all(axis=0)] = NODATA
    return cube, place or Place(0, np.nan, np.nan)


def read_patches(
    source: str | Path,
    bands: Sequence[str],
    legend: Legend | str | Path,
    exclude: Sequence[str | Path] = (),
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Patches:
    """All patches of a BigEarthNet v1 folder with their labels.

    Parameters
    ----------
    source, exclude
        See `find_patches`.
    bands : sequence of str
        See `read_patch`.
    legend : Legend, or a name or path for `geoflow.legends.legend`
        BigEarthNet's 43 names are taken to its codes by CLC code; a label that it leaves out is dropped.
    workers : int
        Processes that read. One reads some 150 patches of ten bands a second, so more pay from some thousands on.
    progress : callable, optional
        Called with (patches read, all patches).

    Raises
    ------
    LabelError
        If not one patch can be read. One that is broken, partial or without a known class is skipped, and listed with
        the reason in ``skipped``.
    """
    legend = find_legend(legend) if isinstance(legend, str | Path) else legend
    if unknown := [band for band in bands if band not in NATIVE_PX]:
        raise LabelError(f"BigEarthNet has no band {listed(map(repr, unknown))}; it has {', '.join(BANDS)}")
    index = find_patches(source, exclude)
    codes = legend.codes()
    cube = np.empty((len(index.folders), len(bands), PATCH_PX, PATCH_PX), np.int16)
    labels = np.zeros((len(index.folders), len(codes)), bool)
    names: list[str] = []
    dates: list[np.datetime64] = []
    skipped = list(index.skipped)
    read = partial(_read_one, bands=tuple(bands), legend=legend)
    with _mapper(workers) as run:
        for done, (folder, result) in enumerate(zip(index.folders, run(read, index.folders), strict=True), 1):
            if isinstance(result, str):
                skipped.append(Skipped(folder.name, result))
            else:
                at = len(names)
                cube[at], classes, date = result
                labels[at] = np.isin(codes, classes)
                names.append(folder.name)
                dates.append(date)
            if progress is not None:
                progress(done, len(index.folders))
    if not names:
        raise LabelError(
            f"none of the {len(skipped)} patches in {source} can be used; the first, {': '.join(skipped[0])}"
        )
    days = np.array(dates, "datetime64[D]")
    kept = slice(0, len(names))
    return Patches(
        cube[kept], labels[kept], codes, tuple(bands), tuple(names), days, tuple(sorted(skipped)), legend.name
    )


def _read_one(
    folder: Path, bands: tuple[str, ...], legend: Legend
) -> tuple[NDArray[np.int16], list[int], np.datetime64] | str:
    """Pixels, codes and day of a patch, or the reason to skip it."""
    try:
        classes, date = _read_labels(folder, legend)
        return read_patch(folder, bands), classes, date
    except (LabelError, LegendError) as problem:
        return str(problem)


def _read_labels(folder: Path, legend: Legend) -> tuple[list[int], np.datetime64]:
    path = folder / f"{folder.name}_labels_metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        names = [str(name) for name in metadata["labels"]]
        date = np.datetime64(str(metadata.get("acquisition_date") or "NaT")[:10], "D")
    except FileNotFoundError:
        raise LabelError(f"{path.name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise LabelError(f"{path.name} cannot be understood: {type(problem).__name__}: {problem}") from None
    codes = [code for code in (_label_code(name, legend) for name in names) if code != NODATA_CODE]
    if not codes:
        raise LabelError(f"none of its labels ({listed(names) or 'it has none'}) is a class of legend {legend.name!r}")
    return codes, date


def _label_code(name: str, legend: Legend) -> int:
    """A BigEarthNet label as a code of the legend's deepest level; 0 where the legend leaves it out."""
    if not legend.clc_codes:
        return legend.code_of(name)
    clc = find_legend("corine").code_of(name)
    if clc not in legend.clc_codes:
        raise LabelError(f"label {name!r} is no level-3 class of CORINE")
    return legend.clc_codes[clc]


def _patch_folders(root: Path) -> Iterator[Path]:
    """Folders named like patches, or holding files of their own name, here and one level deeper."""
    for folder in _folders(root):
        if folder.name in ("BigEarthNet-S2", "Reference_Maps") or _V2_NAME.match(folder.name):
            raise LabelError(f"{root}: has the layout of BigEarthNet version 2 (reBEN); this version reads version 1")
        if _is_patch(folder):
            yield folder
        else:
            yield from (inner for inner in _folders(folder) if _is_patch(inner))


def _is_patch(folder: Path) -> bool:
    return bool(_V1_NAME.fullmatch(folder.name)) or (folder / f"{folder.name}_labels_metadata.json").is_file()


def _folders(root: Path) -> Iterable[Path]:
    with os.scandir(root) as entries:
        return [Path(e.path) for e in entries if e.is_dir() and not e.name.startswith(".")]


def _read_names(path: Path) -> list[str]:
    """Patch names of a list; of a CSV with more columns, the first."""
    try:
        raw = path.read_bytes()
        text = (bz2.decompress(raw) if path.suffix == ".bz2" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise LabelError(f"no list of patches at {path}: there is no such file") from None
    except (OSError, ValueError) as problem:
        raise LabelError(f"{path}: cannot be read as a list of patch names: {problem}") from None
    return [line.split(",")[0].strip() for line in text.splitlines() if line.strip()]


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """``map``, in this process or in several; threads do not help, since opening a file holds Python's lock."""
    if workers <= 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=32)
