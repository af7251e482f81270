"""Small GeoTIFFs read with as little overhead as can be: of a patch's twelve, opening costs far more than decoding.

The files of BigEarthNet are of one plain kind (little-endian, one band of uint16 in strips, stored or deflated), and
those are read here directly. Whatever looks otherwise in any way goes to rasterio, which also finds the words for what
is broken.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _COUNTS = 256, 257, 258, 259, 273, 277, 279
_PREDICTOR, _FORMAT = 317, 339
_PIXEL_SCALE, _TIEPOINT, _GEOKEYS, _NODATA = 33550, 33922, 34735, 42113
_RASTER_TYPE, _PROJECTED_CRS = 1025, 3072
_PIXEL_IS_POINT, _USER_DEFINED = 2, 32767
_STORED, _DEFLATED = 1, 8
_TYPES = {2: ("s", 1), 3: ("H", 2), 4: ("I", 4), 12: ("d", 8)}  # ASCII, SHORT, LONG, DOUBLE
_PLAIN = {_BITS: (16,), _SAMPLES: (1,), _FORMAT: (1,)}
"""What these tags must be, where they are there, for the file to be of the plain kind."""


@dataclass(frozen=True)
class Place:
    """Where a patch lies: EPSG code of its CRS (0 where it has none), and its upper left corner in that, in metres."""

    epsg: int
    left: float
    top: float


@dataclass(frozen=True, eq=False)
class Raster:
    """One band as it is in its file: uint16 values, dims (y, x), the value that is nodata by its tag, and its place."""

    values: NDArray[np.uint16]
    nodata: float | None
    place: Place


def read_raster(path: str, side: int) -> Raster:
    """Read a file of one band of uint16.

    Parameters
    ----------
    path : str
    side : int
        Width and height that it must have.

    Raises
    ------
    LabelError
        If it is missing, damaged, or of another size or dtype.
    """
    name = os.path.basename(path)
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        raster = _parse(data)
    except FileNotFoundError:
        raise LabelError(f"{name} cannot be read: there is no such file") from None
    except (struct.error, zlib.error, ValueError, KeyError, IndexError):
        raster = None
    except OSError as problem:
        raise LabelError(f"{name} cannot be read: {problem.strerror}") from None
    if raster is None:
        raster = _read_with_rasterio(path)
    if raster.values.shape != (side, side):
        raise LabelError(f"{name} is {raster.values.shape} uint16, not {(side, side)} uint16")
    return raster


def _parse(data: bytes) -> Raster | None:
    """The raster of a file of the plain kind; None, or an error of what is missing, for any other."""
    if data[:4] != b"II*\0":
        return None
    start = int.from_bytes(data[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    if data[end : end + 4] != b"\0\0\0\0":  # a second image, an overview or a mask, or the end of a file cut short
        return None
    tags = {tag: (kind, n, v) for tag, kind, n, v in struct.iter_unpack("<HHII", data[start + 2 : end])}
    if any(tag in tags and _numbers(data, tags[tag]) != value for tag, value in _PLAIN.items()):
        return None
    (width,), (height,), (coding,) = (_numbers(data, tags[tag]) for tag in (_WIDTH, _HEIGHT, _COMPRESSION))
    strips = zip(_numbers(data, tags[_OFFSETS]), _numbers(data, tags[_COUNTS]), strict=True)
    pieces = [data[at : at + count] for at, count in strips]
    if coding == _DEFLATED:
        pieces = [zlib.decompress(piece) for piece in pieces]
    elif coding != _STORED:
        return None
    pixels = b"".join(pieces)
    if len(pixels) != 2 * width * height:
        return None
    values = np.frombuffer(pixels, "<u2").reshape(height, width)
    predictor = _numbers(data, tags[_PREDICTOR]) if _PREDICTOR in tags else (1,)
    if predictor == (2,):  # differences to the pixel on the left, modulo 65536
        values = np.cumsum(values, axis=1, dtype=np.uint16)
    elif predictor != (1,):
        return None
    nodata = _text(data, tags[_NODATA]) if _NODATA in tags else None
    return Raster(values, None if nodata is None else float(nodata), _place(data, tags))


def _numbers(data: bytes, entry: tuple[int, int, int]) -> tuple[Any, ...]:
    """The values of a tag: in its own four bytes where they fit, else where those point."""
    kind, count, value = entry
    letter, size = _TYPES[kind]
    if size * count <= 4:
        return struct.unpack_from(f"<{count}{letter}", value.to_bytes(4, "little"))
    return struct.unpack_from(f"<{count}{letter}", data, value)


def _text(data: bytes, entry: tuple[int, int, int]) -> str:
    text: bytes = _numbers(data, entry)[0]
    return text.rstrip(b"\0 ").decode("ascii")


def _place(data: bytes, tags: dict[int, tuple[int, int, int]]) -> Place:
    """From tie point, pixel scale and the key of a projected CRS; a file with other means goes to rasterio."""
    column, row, _, x, y, _ = _numbers(data, tags[_TIEPOINT])
    scale_x, scale_y, _ = _numbers(data, tags[_PIXEL_SCALE])
    keys = _numbers(data, tags[_GEOKEYS])
    by_key = {keys[at]: keys[at + 3] for at in range(4, len(keys), 4) if keys[at + 1] == 0}
    if by_key.get(_RASTER_TYPE) == _PIXEL_IS_POINT or by_key[_PROJECTED_CRS] == _USER_DEFINED:
        raise ValueError("a place that GDAL knows how to read")
    return Place(int(by_key[_PROJECTED_CRS]), x - column * scale_x, y + row * scale_y)


def _read_with_rasterio(path: str) -> Raster:
    import rasterio
    from rasterio.errors import RasterioError

    name = os.path.basename(path)
    try:
        with quiet_gdal(), rasterio.open(path) as src:
            if src.dtypes[0] != "uint16":
                raise LabelError(f"{name} is {src.shape} {src.dtypes[0]}, not uint16")
            place = Place((src.crs.to_epsg() if src.crs else None) or 0, src.transform.c, src.transform.f)
            return Raster(src.read(1), src.nodata, place)
    except RasterioError as problem:
        raise LabelError(f"{name} cannot be read: {problem}") from None


def enlarge(values: NDArray[np.uint16], factor: int) -> NDArray[np.uint16]:
    """Interpolate bilinearly to pixels ``factor`` times as fine.

    The rule is that of GDAL's ``bilinear`` for a whole raster, to the last bit: pixels are areas, so the centre of a
    fine pixel lies between the centres of two coarse ones, which weigh by their distance; beyond the outermost centres
    the border pixels go on; in whole numbers, and halves are rounded up.

    Parameters
    ----------
    values : uint16, dims (..., y, x)
    factor : int

    Returns
    -------
    uint16, dims (..., y * factor, x * factor)
    """
    low, high, weight = _taps(values.shape[-1], factor)
    whole = np.uint32(2 * factor)  # a fine pixel's distances to the two centres are multiples of 1 / (2 factor)
    coarse = values.astype(np.uint32)
    wide = coarse[..., low] * (whole - weight) + coarse[..., high] * weight
    low, high, weight = _taps(values.shape[-2], factor)
    fine = wide[..., low, :] * (whole - weight)[:, None]
    fine += wide[..., high, :] * weight[:, None]
    fine += whole * whole // 2
    fine //= whole * whole
    return fine.astype(np.uint16)


@cache
def _taps(size: int, factor: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint32]]:
    """For each fine pixel the two coarse ones around it, and the weight of the second in parts of 2 factor."""
    twice = 2 * np.arange(size * factor) + 1 - factor  # its centre in parts of 2 factor from the first coarse centre
    low, weight = np.divmod(twice, 2 * factor)
    return low.clip(0, size - 1), (low + 1).clip(0, size - 1), weight.astype(np.uint32)


def enlarge_with_gdal(path: str, side: int) -> NDArray[np.uint16]:
    """`enlarge` to ``side`` pixels where some values are nodata by the file's tag: they have no weight."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError

    out = np.empty((side, side), np.uint16)
    try:
        with quiet_gdal(), rasterio.open(path) as src:
            src.read(1, out=out, resampling=Resampling.bilinear)
    except RasterioError as problem:
        raise LabelError(f"{os.path.basename(path)} cannot be read: {problem}") from None
    return out


def quiet_gdal() -> Any:
    """GDAL must not list a patch's folder for every file that it opens."""
    import rasterio

    return rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR")
