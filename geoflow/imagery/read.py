"""Reading one band of one scene onto a grid: the only place that opens scene files.

Both loaders read through it. A read that fails, after GDAL's own retries, is a `SceneError` that names the scene, the
band, the link and the cause; it never becomes nodata.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds
from rasterio.windows import Window, from_bounds, intersect, intersection

from geoflow.errors import SceneError
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.sign import sign

DN_NODATA = 0
"""Nodata of every file of Sentinel-2 level 2A, reflectance and SCL, whether the file says so or not."""

GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": 5,
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_CONNECTTIMEOUT": 15,
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_NUM_THREADS": 1,  # more gave blank pixels in remote reads (OSGeo/gdal#11552); threads are Dask's business
    "GDAL_CACHEMAX": 256 * 2**20,  # bytes, for the whole process: rasterio takes a small number as bytes as well
}

_DRIVERS = ["GTiff", "JP2OpenJPEG"]  # no format that can point at other files
_TOLERANCE_PX = 0.01  # error of the approximated transformation; 0.125, GDAL's default, shows as a step between tiles
_SAME_RESOLUTION = 0.9  # a grid that is up to a tenth coarser than the file is read without averaging
_MARGIN_PX = 8  # pixels read around the window, times the ratio of resolutions: more than any kernel reaches


@contextmanager
def open_scene(href: str, scene: str, band: str, catalog: Catalog) -> Iterator[DatasetReader]:
    """Open one file of a scene, signed if need be, with the catalog's GDAL options; close it afterwards.

    Raises
    ------
    SceneError
        If it cannot be opened, or reading inside the ``with`` fails.
    """
    with open_file(href, scene, band, catalog.signing, catalog.gdal) as dataset:
        yield dataset


@contextmanager
def open_file(href: str, scene: str, band: str, signing: str, gdal: Mapping[str, str]) -> Iterator[DatasetReader]:
    """`open_scene` from plain values, as they travel in a graph."""
    try:
        with (
            rasterio.Env(**{**GDAL_OPTIONS, **gdal}),
            DatasetReader(_address(href, signing), driver=_DRIVERS, sharing=False) as dataset,
        ):
            yield dataset
    except (RasterioError, OSError) as error:
        raise SceneError(f"scene {scene}, band {band}: {href} cannot be read: {_cause(error)}") from error


def _address(href: str, signing: str) -> str:
    """What GDAL opens. S3 goes to GDAL itself, which takes credentials from the environment."""
    if href.startswith("s3://"):
        return "/vsis3/" + href.removeprefix("s3://")
    return sign(href, signing)


def _cause(error: BaseException) -> str:
    """The innermost sentence, without the query of a signed link."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition("?")[0] if "sig=" in text else text


def read_onto(
    dataset: DatasetReader,
    crs: CRS,
    transform: Affine,
    shape: tuple[int, int],
    resampling: Resampling,
) -> NDArray[Any]:
    """Pixels of a dataset on a grid.

    Parameters
    ----------
    dataset : rasterio dataset
        One band; 0 is nodata.
    crs, transform, shape
        The grid, shape as (height, width).
    resampling : Resampling
        Nodata never mixes into its neighbours.

    Returns
    -------
    array of the dataset's dtype, dims (y, x)
        0 where the dataset has no data.
    """
    height, width = shape
    direct = _aligned_window(dataset, crs, transform, shape)
    if direct is not None:
        return _paste(dataset, direct)
    window = _source_window(dataset, crs, transform, shape)
    if window is None:
        return np.zeros(shape, dataset.dtypes[0])
    # GDAL warps twice as fast where it need not look for nodata, and most windows have none. The blocks read here stay
    # in GDAL's cache for the warp below, so that nothing is read or decoded twice.
    has_nodata = bool((dataset.read(1, window=window) == DN_NODATA).any())
    nodata = DN_NODATA if has_nodata else None
    with WarpedVRT(
        dataset,
        crs=crs,
        transform=transform,
        width=width,
        height=height,
        resampling=resampling,
        src_nodata=nodata,
        nodata=nodata,
        tolerance=_TOLERANCE_PX,
        **_kernel_scale(dataset, crs, transform, shape),
    ) as warped:
        return warped.read(1)


def _aligned_window(dataset: DatasetReader, crs: CRS, transform: Affine, shape: tuple[int, int]) -> Window | None:
    """The window of the dataset that is the grid, if they share CRS, resolution and pixel corners."""
    if dataset.crs != crs:
        return None
    step = ~dataset.transform * transform
    col, row = step.c, step.f
    same = max(abs(step.a - 1), abs(step.e - 1), abs(step.b), abs(step.d)) * max(shape) < 1e-3
    if not same or max(abs(col - round(col)), abs(row - round(row))) > 1e-3:
        return None
    return Window(round(col), round(row), shape[1], shape[0])


def _paste(dataset: DatasetReader, window: Window) -> NDArray[Any]:
    """Read a window that may reach beyond the dataset; 0 outside."""
    out = np.zeros((int(window.height), int(window.width)), dataset.dtypes[0])
    whole = Window(0, 0, dataset.width, dataset.height)
    if not intersect(window, whole):
        return out
    inside = intersection(window, whole)
    row, col = int(inside.row_off - window.row_off), int(inside.col_off - window.col_off)
    out[row : row + int(inside.height), col : col + int(inside.width)] = dataset.read(1, window=inside)
    return out


def _source_window(dataset: DatasetReader, crs: CRS, transform: Affine, shape: tuple[int, int]) -> Window | None:
    """The part of the dataset that the grid can touch, or None."""
    height, width = shape
    left, top = transform.c, transform.f
    right, bottom = left + width * transform.a, top + height * transform.e
    raw = from_bounds(*_bounds_in(dataset.crs, crs, (left, bottom, right, top)), dataset.transform)
    pad = math.ceil(_MARGIN_PX * max(1.0, raw.width / width, raw.height / height))
    first_col, first_row = math.floor(raw.col_off) - pad, math.floor(raw.row_off) - pad
    last_col, last_row = math.ceil(raw.col_off + raw.width) + pad, math.ceil(raw.row_off + raw.height) + pad
    window = Window(first_col, first_row, last_col - first_col, last_row - first_row)
    whole = Window(0, 0, dataset.width, dataset.height)
    return intersection(window, whole) if intersect(window, whole) else None


def _kernel_scale(dataset: DatasetReader, crs: CRS, transform: Affine, shape: tuple[int, int]) -> dict[str, str]:
    """GDAL's XSCALE and YSCALE: below 1 the kernel widens to average what a coarser grid skips.

    GDAL guesses them from the bounding box of each block, which a rotation between two CRS inflates: a grid of the same
    resolution came out blurred, differently in every block, at half the speed.
    """
    size = abs(transform.a) * _metres_ratio(dataset.crs, crs, transform * (shape[1] / 2, shape[0] / 2))
    scale = abs(dataset.transform.a) / size
    text = "1" if scale > _SAME_RESOLUTION else f"{scale:.6f}"
    return {"XSCALE": text, "YSCALE": text}


@lru_cache(maxsize=256)
def _metres_ratio(wanted: CRS, crs: CRS, at: tuple[float, float]) -> float:
    """How long a unit of one CRS is in units of another, at a place: the root of the ratio of areas."""
    step = 1.0 if crs.is_projected else 1e-5
    x, y = transform_points(crs, wanted, [at[0], at[0] + step, at[0]], [at[1], at[1], at[1] + step])
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    return math.sqrt(abs(area)) / step


@lru_cache(maxsize=256)
def _bounds_in(wanted: CRS, crs: CRS, bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Bounds in another CRS; cached, because it costs 20 ms and all bands of all scenes of a tile ask the same."""
    return tuple(transform_bounds(crs, wanted, *bounds, densify_pts=64))


class SceneReader:
    """Reads one file onto the loader's grid, a window at a time; stackstac's ``Reader`` protocol.

    Each read opens and closes its own dataset. That costs a millisecond and leaves nothing to share between threads;
    chunks are as large as tiles, so a file is opened once or twice.
    """

    def __init__(
        self,
        *,
        url: str,
        spec: Any,
        resampling: Resampling,
        names: Mapping[str, tuple[str, str]],
        signing: str,
        gdal: Mapping[str, str],
        **_: Any,
    ) -> None:
        self.url = url
        self.spec = spec
        self.resampling = resampling
        self.names = names
        self.signing = signing
        self.gdal = gdal

    def read(self, window: Window, **_: Any) -> NDArray[Any]:
        """Pixels of a window of the grid, dims (y, x), 0 where there is no data.

        Raises
        ------
        SceneError
            If the file cannot be read.
        """
        transform = self.spec.transform * Affine.translation(window.col_off, window.row_off)
        shape = (int(window.height), int(window.width))
        crs = CRS.from_epsg(self.spec.epsg)
        scene, band = self.names[self.url]
        with open_file(self.url, scene, band, self.signing, self.gdal) as dataset:
            return read_onto(dataset, crs, transform, shape, self.resampling)

    def close(self) -> None:
        """Nothing stays open between reads."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
