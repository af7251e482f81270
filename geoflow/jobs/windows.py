"""Windows of a finished run as one Zarr store of pairs, image and labels: the paper's training set, for any net."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import StoreError
from geoflow.jobs.flow import Flow
from geoflow.learning.windowing import PARTS

if TYPE_CHECKING:
    import xarray as xr

    from geoflow.learning.windowing import WindowOptions, Windows

FORMAT = "geoflow-windows-1"
CHUNK_WINDOWS = 32
_THREADS = 8


@dataclass(frozen=True)
class Split:
    """How windows are split.

    Parameters
    ----------
    kind : str
        ``"random"``, as in the paper, ``"blocked"``: whole blocks of the country, or ``"squares"``: concentric squares
        in each block, as BigEarthNet v2 splits Sentinel-2 tiles.
    shares : tuple of three floats
        Train, validation, test.
    block_px, gap_px : int
        See `geoflow.learning.windowing.blocked_split` and ``squares_split``; of no use to a random split.
    seed : int
    """

    kind: str = "blocked"
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    block_px: int = 960
    gap_px: int = 0
    seed: int = 0

    def parts(self, windows: Windows) -> NDArray[np.uint8]:
        """The part of each window."""
        from geoflow.learning.windowing import blocked_split, random_split, squares_split, with_gap

        if self.kind == "random":
            return random_split(len(windows), self.shares, self.seed)
        if self.kind == "blocked":
            return blocked_split(windows, self.block_px, self.shares, self.seed, self.gap_px)
        if self.kind == "squares":
            return with_gap(windows, squares_split(windows, self.block_px, self.shares), self.gap_px)
        raise StoreError(f"a split is random, blocked or squares, not {self.kind!r}")


@dataclass(frozen=True)
class Country:
    """The composites and labels of a finished run, lazily."""

    flow: Flow
    reflectance: xr.DataArray
    labels: xr.DataArray
    border_m: xr.DataArray


def country_of(out: Path) -> Country:
    """What a finished run has to learn from.

    Raises
    ------
    StoreError
        If there is no such run, or it has no labels or no imagery of their epoch.
    """
    from geoflow.jobs.jobfile import parse_job
    from geoflow.jobs.records import read_summary
    from geoflow.store.zarr import open_for_writing

    flow = Flow(parse_job(read_summary(out)["config"]), out.resolve())
    section = flow.job.labels
    if section is None:
        raise StoreError(f"{out} has no labels: the job has no labels section")
    store = open_for_writing(flow.store_path)
    # Without Dask: a window is read where it is sliced.
    labels = store.dataset(f"labels/{section.name}", dask=False)
    reflectance = store.dataset(f"imagery/{section.epoch}", dask=False)["reflectance"]
    if "border_m" not in labels:
        raise StoreError(f"{out} was made by an older geoflow, without distances to borders; run the job again")
    return Country(flow, reflectance, labels[f"level{flow.legend.levels[-1]}"], labels["border_m"])


def export_windows(out: Path, target: Path, options: WindowOptions, split: Split) -> dict[str, Any]:
    """Draw windows from a finished run and write them as a Zarr store.

    Parameters
    ----------
    out : Path
        Output folder of the run.
    target : Path
        The ``.zarr`` folder to make: it must not exist yet, and is there as a whole or not at all.
    options : WindowOptions
    split : Split

    Returns
    -------
    dict
        ``windows``, ``parts`` (part -> windows), ``codes`` and ``pixels`` (code -> labelled pixels far from borders).
        The store has ``image`` (int16 reflectance x 10000, -32768; dims window, period, band, y, x), ``label`` (codes,
        0), ``border_m`` (int16, -1), ``part`` (uint8: 0 train, 1 validation, 2 test, 3 left out), ``row``, ``column``.

    Raises
    ------
    StoreError
        If the target exists or there is no such run.
    LabelError
        If there are no such windows, or the split is not possible.
    """
    from geoflow.learning.windowing import draw_windows, find_windows

    if target.exists():
        raise StoreError(f"{target} exists already; name a new folder, or remove it")
    country = country_of(out)
    windows = draw_windows(find_windows(country.labels, country.border_m, options), options)
    parts = split.parts(windows)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        _write(draft, country, windows, parts, {"options": asdict(options), "split": asdict(split)})
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    counted = np.bincount(parts, minlength=len(PARTS)).tolist()
    return {
        "windows": len(windows),
        "parts": {name: n for name, n in zip(PARTS, counted, strict=True) if n},
        "codes": list(windows.codes),
        "pixels": {str(c): int(n) for c, n in zip(windows.codes, windows.sure.sum(axis=0), strict=True)},
    }


def _write(path: Path, country: Country, windows: Windows, parts: NDArray[np.uint8], how: Mapping[str, Any]) -> None:
    import zarr

    size, count = windows.window_px, len(windows)
    sources: dict[str, xr.DataArray] = {
        "image": country.reflectance, "label": country.labels, "border_m": country.border_m
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    root = zarr.open_group(path, mode="w", zarr_format=3, attributes=_attributes(country, how))
    arrays = {}
    for name, source in sources.items():
        leading = tuple(int(n) for n in source.shape[:-2])
        arrays[name] = root.create_array(
            name,
            shape=(count, *leading, size, size),
            chunks=(min(CHUNK_WINDOWS, count), *leading, size, size),
            dtype=source.dtype,
            fill_value=int(source.attrs["nodata"]),
            dimension_names=("window", *map(str, source.dims)),
        )
    for name, values in (("part", parts), ("row", windows.row), ("column", windows.column)):
        array = root.create_array(name, shape=(count,), dtype=values.dtype, dimension_names=("window",))
        array[:] = values
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, count, CHUNK_WINDOWS):
            span = range(first, min(first + CHUNK_WINDOWS, count))
            for name, source in sources.items():
                arrays[name][first : span.stop] = np.stack(list(pool.map(_reader(source, windows), span)))


def _reader(source: xr.DataArray, windows: Windows) -> Any:
    from geoflow.learning.samples import read
    from geoflow.learning.windowing import window_block

    return lambda at: read(source, window_block(windows, at))


def _attributes(country: Country, how: Mapping[str, Any]) -> dict[str, Any]:
    geobox = country.flow.grid.geobox
    return {
        "format": FORMAT,
        "legend": country.flow.legend.to_dict(),
        "bands": [str(b) for b in country.reflectance["band"].values],
        "periods": [str(p) for p in country.reflectance["period"].values],
        "parts": list(PARTS),
        "crs": str(geobox.crs),
        "transform": list(geobox.transform)[:6],
        **how,
    }
