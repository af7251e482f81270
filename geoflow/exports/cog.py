"""One layer as a cloud-optimised GeoTIFF: read block by block, so that its memory does not grow with the country.

GDAL makes a COG from a file that is there, so a layer is written twice: into a plain draft, whose order is that of the
blocks, then by GDAL's own driver. Overviews are GDAL's: the most frequent value for classes, the mean for measures.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from geoflow.colours import Colour
from geoflow.exports.clip import Block, Clip, crs_of
from geoflow.places import local_file

if TYPE_CHECKING:
    from collections.abc import Callable

GDAL_CACHE_BYTES = 128 << 20
"""GDAL's cache of blocks, a twentieth of the machine's memory by default. rasterio hands the number on as bytes."""

COG_BLOCK_PX = 512

MOST_THREADS = 8
"""More would wait for the one that writes, each with a block in memory."""


@dataclass(frozen=True)
class Raster:
    """What a file is to hold.

    Attributes
    ----------
    read : callable
        A `Block` to an array of the file's dtype, dims (band, y, x).
    clip : Clip
    dtype : str
    nodata : int
    bands : tuple of str
        Descriptions, one a band.
    classes : bool
        Whether values are classes: overviews by mode, a palette.
    colours : mapping of value to Colour
        The palette, of one band of bytes or uint16.
    tags, band_tags : mapping of str to str
        Metadata of the file, and of each of its bands.
    scale : float
        What a value is to be multiplied with.
    unit : str
        Of the values.
    """

    read: Callable[[Block], NDArray[Any]]
    clip: Clip
    dtype: str
    nodata: int
    bands: tuple[str, ...]
    classes: bool
    colours: Mapping[int, Colour] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    band_tags: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0
    unit: str = ""

    @property
    def pixel_bytes(self) -> int:
        """Of one pixel with all its bands."""
        return len(self.bands) * np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """Of all its pixels, not compressed."""
        height, width = self.clip.shape
        return height * width * self.pixel_bytes


def write_cog(raster: Raster, path: Path, threads: int | None = None) -> NDArray[np.int64] | None:
    """Write a raster as a COG, which is there under its name as a whole or not at all.

    Parameters
    ----------
    raster : Raster
    path : Path
        Replaced if it is there.
    threads : int, optional
        For reading, and for GDAL's overviews and compression; as many as there are cores by default.

    Returns
    -------
    Pixels of each value 0, 1, 2 ..., if they are unsigned: counted while they pass.
    """
    threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
    largest = int(np.iinfo(raster.dtype).max)
    counts = np.zeros(largest + 1, np.int64) if np.dtype(raster.dtype).kind == "u" else None
    options = {"GDAL_CACHEMAX": GDAL_CACHE_BYTES, "GDAL_NUM_THREADS": str(threads), "GDAL_PAM_ENABLED": "NO"}
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(local_file(path))
        folder = stack.enter_context(_drafts(path, target))
        stack.enter_context(rasterio.Env(**options))
        draft = folder / "draft.tif"
        with rasterio.open(draft, "w", **_profile(raster)) as out:
            _describe(out, raster)
            for block, values in _read_ahead(raster, threads):
                out.write(values, window=Window(block.left, block.top, *reversed(block.shape)))
                if counts is not None:
                    counts += np.bincount(values.reshape(-1), minlength=counts.size)
        rasterio.shutil.copy(draft, folder / "cog.tif", **cog_options(raster, threads))
        shutil.move(folder / "cog.tif", target)
    return counts


@contextlib.contextmanager
def _drafts(path: Path, target: Path) -> Iterator[Path]:
    """A folder for drafts beside the file, where there is room for it, and from where a move is a rename."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_ahead(raster: Raster, threads: int) -> Iterator[tuple[Block, NDArray[Any]]]:
    """Blocks in order, some of them read while others are written."""
    waiting: deque[tuple[Block, Future[NDArray[Any]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="export") as pool:
        for block in raster.clip.blocks(raster.pixel_bytes):
            waiting.append((block, pool.submit(raster.read, block)))
            if len(waiting) > threads:
                first, values = waiting.popleft()
                yield first, values.result()
        while waiting:
            first, values = waiting.popleft()
            yield first, values.result()


def _profile(raster: Raster) -> dict[str, Any]:
    height, width = raster.clip.shape
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256} if min(height, width) >= 256 else {}
    return {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": len(raster.bands),
        "dtype": raster.dtype,
        "crs": crs_of(raster.clip.geobox).to_wkt(),
        "transform": raster.clip.geobox.transform,
        "nodata": raster.nodata,
        "bigtiff": "IF_SAFER",
        # One band after the other, as they are written and read.
        "interleave": "band",
        **tiled,
    }


def cog_options(raster: Raster, threads: int) -> dict[str, Any]:
    """How GDAL is to write a COG."""
    return {
        "driver": "COG",
        "compress": "DEFLATE",
        "predictor": "NO" if raster.classes else "YES",
        "blocksize": COG_BLOCK_PX,
        "overview_resampling": "MODE" if raster.classes else "AVERAGE",
        "bigtiff": "IF_SAFER",
        "num_threads": threads,
    }


def _describe(out: Any, raster: Raster) -> None:
    out.update_tags(**raster.tags)
    for at, name in enumerate(raster.bands, start=1):
        out.set_band_description(at, name)
        out.update_tags(at, **raster.band_tags)
    if raster.scale != 1.0:
        out.scales = (raster.scale,) * len(raster.bands)
    if raster.unit:
        out.units = (raster.unit,) * len(raster.bands)
    if raster.colours:
        out.write_colormap(1, {raster.nodata: (0, 0, 0, 0), **{v: (*c, 255) for v, c in raster.colours.items()}})
    elif len(raster.bands) == 1:
        out.colorinterp = (ColorInterp.gray,)
