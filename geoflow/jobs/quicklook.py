"""A country at the size of a screen: decimated reads of the store, and what they look like as colours.

A raster of 40000 x 40000 pixels is never in memory whole. It is read one row of chunks at a time, by local threads even
where a Dask cluster is running: pixels for a picture need not travel.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import odc.geo.xr  # noqa: F401  (the .odc accessor)
import xarray as xr
from numpy.typing import NDArray

from geoflow.inputs import NODATA
from geoflow.legends import NODATA_CODE, Legend

Extent = tuple[float, float, float, float]
"""(left, right, bottom, top) in CRS units, as matplotlib's ``imshow`` takes it."""

MAX_PX = 2400
"""Pixels along the longer side of a picture."""

CHANGED = 2
"""Value of ``change`` where the land cover changed; 1 is unchanged and 0 not observed."""

TRUE_COLOUR = ("B04", "B03", "B02")

GAMMA = 0.7

_PIECE = 1 << 20  # pixels counted at a time: np.bincount makes an int64 copy


@dataclass(frozen=True)
class ClassPicture:
    """A class map at the size of a screen.

    Attributes
    ----------
    codes : unsigned integer array, dims (y, x)
        Class codes, 0 nodata.
    extent : Extent
        Of the decimated picture.
    pixels : dict of code to int
        How many pixels of the whole raster have each code, nodata not among them: counted, not estimated.
    """

    codes: NDArray[Any]
    extent: Extent
    pixels: dict[int, int]


@dataclass(frozen=True)
class ChangePicture:
    """A change map at the size of a screen.

    Attributes
    ----------
    state : uint8 array, dims (y, x)
        0 not observed, 1 unchanged, 2 changed: the largest value within the pixel of the picture.
    codes : unsigned integer array, dims (y, x)
        A class that the land became within the pixel of the picture, 0 where nothing changed.
    extent : Extent
    transitions : dict of (from, to) to int
        Changed pixels of the whole raster.
    observed : int
        Pixels of the whole raster that were compared.
    """

    state: NDArray[np.uint8]
    codes: NDArray[Any]
    extent: Extent
    transitions: dict[tuple[int, int], int]
    observed: int


def quicklook(array: xr.DataArray, max_px: int = MAX_PX) -> tuple[NDArray[Any], Extent]:
    """Read every n-th pixel of a raster.

    Pixels are picked, never averaged or interpolated: every value of the result is one that the raster holds at that
    place, so class codes stay class codes. The raster is read one row of chunks at a time.

    Parameters
    ----------
    array : DataArray, dims (..., y, x)
        With a CRS and regular coordinates, as the store gives it.
    max_px : int
        Largest height and width of the result.

    Returns
    -------
    values : array, dims (..., y, x), dtype of ``array``
    extent : Extent
        Outer edges of the result. Each of its pixels stands for a square of n x n, so the last row and column may
        reach over the edge of the raster by less than one of them.
    """
    step = stride(array, max_px)
    first = _first(array, step)
    rows = np.arange(first, array.sizes["y"], step)
    parts = []
    for start, stop in _chunk_rows(array):
        wanted = rows[(rows >= start) & (rows < stop)]
        if wanted.size:
            strip = array.isel(y=slice(int(wanted[0]), int(wanted[-1]) + 1, step), x=slice(first, None, step))
            parts.append(_read(strip))
    values = np.concatenate(parts, axis=-2)
    return values, _extent(array, step, values.shape[-2:])


def stride(array: xr.DataArray, max_px: int = MAX_PX) -> int:
    """How many pixels of the raster one pixel of its picture stands for, along each axis."""
    return max(1, math.ceil(max(array.sizes["y"], array.sizes["x"]) / max_px))


def class_picture(codes: xr.DataArray, max_px: int = MAX_PX) -> ClassPicture:
    """A class map decimated as by `quicklook`, and in the same pass the number of pixels of every class.

    Parameters
    ----------
    codes : DataArray of unsigned integers, dims (y, x), nodata 0
    max_px : int
    """
    step = stride(codes, max_px)
    first = _first(codes, step)
    rows = np.arange(first, codes.sizes["y"], step)
    counts = np.zeros(int(np.iinfo(codes.dtype).max) + 1, np.int64)
    parts = []
    for start, stop in _chunk_rows(codes):
        strip = _read(codes.isel(y=slice(start, stop)))
        flat = strip.reshape(-1)
        for begin in range(0, flat.size, _PIECE):
            counts += np.bincount(flat[begin : begin + _PIECE], minlength=counts.size)
        wanted = rows[(rows >= start) & (rows < stop)] - start
        parts.append(strip[wanted, first::step])
    picture = np.concatenate(parts)
    counts[NODATA_CODE] = 0
    pixels = {int(code): int(counts[code]) for code in np.flatnonzero(counts)}
    return ClassPicture(picture, _extent(codes, step, picture.shape), pixels)


def change_picture(change: xr.Dataset, max_px: int = MAX_PX) -> ChangePicture:
    """A change map at the size of a screen, and in the same pass the number of pixels of every transition.

    Unlike `quicklook` it does not skip pixels: a pixel of the picture is changed where any pixel under it is, and takes
    the largest of the codes found there. A clear-cut of two hectares would otherwise be missing from the map of a
    country. Areas are to be taken from ``transitions``, not from the picture.

    Parameters
    ----------
    change : Dataset
        ``change`` (0 not observed, 1 unchanged, 2 changed), ``from_code`` and ``to_code`` (0 where not changed), dims
        (y, x).
    max_px : int
    """
    step = stride(change["change"], max_px)
    transitions: Counter[tuple[int, int]] = Counter()
    states, codes = [], []
    observed = 0
    for start, stop in _strips(change["change"], step):
        rows = {"y": slice(start, stop)}
        state, before, after = (_read(change[name].isel(rows)) for name in ("change", "from_code", "to_code"))
        changed = state == CHANGED
        observed += int(np.count_nonzero(state))
        pairs = before[changed].astype(np.int64) << 16 | after[changed]
        for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
            transitions[int(pair) >> 16, int(pair) & 0xFFFF] += int(count)
        states.append(_block_max(state, step))
        codes.append(_block_max(np.where(changed, after, 0), step))
    picture = np.concatenate(states)
    extent = _extent(change["change"], step, picture.shape)
    return ChangePicture(picture, np.concatenate(codes), extent, dict(transitions), observed)


def colours(codes: NDArray[Any], legend: Legend) -> NDArray[np.uint8]:
    """Class codes as the legend's colours.

    Parameters
    ----------
    codes : unsigned integer array, dims (y, x)
        0 is nodata.

    Returns
    -------
    uint8 array, dims (y, x, 4)
        Red, green, blue, alpha; nodata is transparent.

    Raises
    ------
    LegendError
        If a code is not in the legend.
    """
    present = np.unique(codes)
    table = np.zeros((int(present[-1]) + 1 if present.size else 1, 4), np.uint8)
    for code in present[present != NODATA_CODE].tolist():
        table[code] = (*legend.colour(code), 255)
    return table[codes]


def true_colour(
    reflectance: xr.DataArray, max_px: int = MAX_PX, bands: tuple[str, ...] = TRUE_COLOUR
) -> tuple[NDArray[np.uint8], Extent, str]:
    """A composite as it would look from above, or in other bands.

    Shows the period with the most observations (the last of equals). Each band is stretched by itself between its 2nd
    and 98th percentile, which dark water and a few clouds do not move, and brightened with a gamma, since most land is
    dark beside bare soil.

    Parameters
    ----------
    reflectance : int16 DataArray, dims (period, band, y, x)
        Reflectance x 10000, nodata -32768, band names as the coordinate ``band``.
    max_px : int
    bands : tuple of three str
        Shown as red, green and blue; where the composite lacks one of them, its first three.

    Returns
    -------
    picture : uint8 array, dims (y, x, 4)
        Red, green, blue, alpha; transparent where a band was not observed.
    extent : Extent
    caption : str
        What is shown: ``"true colour, summer"``; with other bands than red, green and blue, their names.
    """
    names = [str(name) for name in reflectance["band"].values]
    shown = shown_bands(names, bands)
    if shown == TRUE_COLOUR:
        what = "true colour"
    else:
        what = f"bands {', '.join(shown)}" if len(shown) > 1 else f"band {shown[0]}"
    best = _best_period(reflectance, names.index(shown[0]))
    chosen = reflectance.isel(period=best, band=[names.index(name) for name in shown])
    values, extent = quicklook(chosen, max_px)
    stretched = np.stack([_stretch(band) for band in values], axis=-1)
    observed = (values != NODATA).all(axis=0)
    picture = np.zeros((*observed.shape, 4), np.uint8)
    picture[..., :3] = stretched
    picture[..., 3] = np.where(observed, 255, 0)
    return picture, extent, f"{what}, {reflectance['period'].values[best]}"


def shown_bands(names: Sequence[str], wanted: tuple[str, ...] = TRUE_COLOUR) -> tuple[str, ...]:
    """Bands of a composite to show as red, green and blue: those wanted, else the first three; one of fewer."""
    if set(wanted) <= set(names):
        return wanted
    return tuple(names[:3]) if len(names) >= 3 else (names[0],)


def pixel_area_ha(array: xr.DataArray) -> float:
    """Area of one pixel in hectares; the CRS must be in metres, as every CRS of a job's grid is."""
    box = array.odc.geobox
    return abs(box.transform.a * box.transform.e) / 1e4


def _best_period(reflectance: xr.DataArray, band: int) -> int:
    """The period with most observations on a few lines across the country: enough to tell, and little to read."""
    height, width = reflectance.sizes["y"], reflectance.sizes["x"]
    lines = np.unique(np.linspace(0, height - 1, min(height, 15)).astype(int))
    sample = _read(reflectance.isel(band=band, y=lines, x=slice(None, None, max(1, width // 1000))))
    seen = np.count_nonzero(sample != NODATA, axis=(-2, -1))
    return int(np.flatnonzero(seen == seen.max())[-1])


def _stretch(band: NDArray[np.int16]) -> NDArray[np.uint8]:
    seen = band[band != NODATA]
    if not seen.size:
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(seen, (2, 98))
    scaled = (band.astype(np.float32) - low) / max(high - low, 1.0)
    return np.round(scaled.clip(0, 1) ** GAMMA * 255).astype(np.uint8)


def _block_max(values: NDArray[Any], step: int) -> NDArray[Any]:
    """The largest value of each square of ``step`` pixels; squares at the edges may be cut off."""
    if step == 1:
        return values
    rows = np.maximum.reduceat(values, np.arange(0, values.shape[0], step), axis=0)
    return np.maximum.reduceat(rows, np.arange(0, values.shape[1], step), axis=1)


def _first(array: xr.DataArray, step: int) -> int:
    """Where sampling starts: the middle of the first square, or the middle of a raster smaller than that."""
    return min(step // 2, (array.sizes["y"] - 1) // 2, (array.sizes["x"] - 1) // 2)


def _chunk_rows(array: xr.DataArray) -> Iterator[tuple[int, int]]:
    """The pixel rows (start, stop) of each row of chunks; of blocks of 1024 where the array has no chunks."""
    height = array.sizes["y"]
    sizes = array.chunksizes.get("y") or (1024,) * -(-height // 1024)
    start = 0
    for size in sizes:
        stop = min(start + size, height)
        if stop > start:
            yield start, stop
        start = stop


def _strips(array: xr.DataArray, step: int) -> Iterator[tuple[int, int]]:
    """Like `_chunk_rows`, but each strip starts on a multiple of ``step``."""
    chunk = max(stop - start for start, stop in _chunk_rows(array))
    height = array.sizes["y"]
    size = max(1, round(chunk / step)) * step
    for start in range(0, height, size):
        yield start, min(start + size, height)


def _read(array: xr.DataArray) -> NDArray[Any]:
    return np.asarray(array.compute(scheduler="threads").values)


def _extent(array: xr.DataArray, step: int, shape: tuple[int, ...]) -> Extent:
    transform = array.odc.geobox.transform
    height, width = shape[0] * step, shape[1] * step
    return transform.c, transform.c + width * transform.a, transform.f + height * transform.e, transform.f
