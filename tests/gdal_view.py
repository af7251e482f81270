"""What GDAL itself sees beside a file: rasterio has no interface to attribute tables, so its library is asked."""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path

import rasterio


def _library() -> ctypes.CDLL:
    bundled = sorted((Path(rasterio.__file__).parent.parent / "rasterio.libs").glob("libgdal*"))
    gdal = ctypes.CDLL(str(bundled[0]) if bundled else ctypes.util.find_library("gdal"))
    for name in ("GDALOpen", "GDALGetRasterBand", "GDALGetDefaultRAT", "GDALGetRasterCategoryNames"):
        getattr(gdal, name).restype = ctypes.c_void_p
    for name in ("GDALRATGetNameOfCol", "GDALRATGetValueAsString"):
        getattr(gdal, name).restype = ctypes.c_char_p
    return gdal


def attribute_table(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """(names of the columns, GDAL's numbers of their usages, rows) of the first band; nothing where there is none."""
    gdal = _library()
    dataset = ctypes.c_void_p(gdal.GDALOpen(str(path).encode(), 0))
    assert dataset.value, path
    try:
        table = ctypes.c_void_p(gdal.GDALGetDefaultRAT(ctypes.c_void_p(gdal.GDALGetRasterBand(dataset, 1))))
        if not table.value:
            return [], [], []
        columns = range(gdal.GDALRATGetColumnCount(table))
        names = [gdal.GDALRATGetNameOfCol(table, at).decode() for at in columns]
        usages = [gdal.GDALRATGetUsageOfCol(table, at) for at in columns]
        rows = [
            [gdal.GDALRATGetValueAsString(table, row, at).decode() for at in columns]
            for row in range(gdal.GDALRATGetRowCount(table))
        ]
        return names, usages, rows
    finally:
        gdal.GDALClose(dataset)


def category_names(path: Path) -> list[str]:
    """Names of the values 0, 1, 2 ... of the first band."""
    gdal = _library()
    dataset = ctypes.c_void_p(gdal.GDALOpen(str(path).encode(), 0))
    try:
        band = ctypes.c_void_p(gdal.GDALGetRasterBand(dataset, 1))
        gdal.GDALGetDefaultRAT(band)  # GDAL 3.10 reads the auxiliary file of a GeoTIFF when it is asked for this
        found = gdal.GDALGetRasterCategoryNames(band)
        names: list[str] = []
        for name in ctypes.cast(found, ctypes.POINTER(ctypes.c_char_p)):
            if name is None:
                return names
            names.append(name.decode())
        return names
    finally:
        gdal.GDALClose(dataset)
