"""What GDAL reads beside a file, ``NAME.tif.aux.xml``: the raster attribute table and category names, or statistics.

The format is that of GDAL's persistent auxiliary metadata; QGIS and ArcGIS read the table through it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from geoflow.exports.coding import Coding

# Types and usages of a column as GDAL numbers them.
_TYPES = {"Integer": 0, "Real": 1, "String": 2}
_USAGES = {"Generic": 0, "PixelCount": 1, "Name": 2, "MinMax": 5, "Red": 6, "Green": 7, "Blue": 8}

Column = tuple[str, str, str]
"""Name, type and usage."""


def class_table(coding: Coding, counts: NDArray[np.int64]) -> bytes:
    """The attribute table of a class map.

    One row a class of the level, whether it occurs or not: Value (in the file), Count (pixels), CODE (of the legend),
    NAME, LEVEL1 and so on (names of the classes that hold it), Red, Green, Blue.

    Parameters
    ----------
    coding : Coding
    counts : int64 array
        Pixels of each value of the file, at full resolution.
    """
    levels = range(1, 1 + len(coding.classes[0].names))
    columns: list[Column] = [
        ("Value", "Integer", "MinMax"),
        # Real: integers of GDAL's tables end at 2 147 483 647, a country at 10 m may have more pixels.
        ("Count", "Real", "PixelCount"),
        ("CODE", "Integer", "Generic"),
        ("NAME", "String", "Name"),
        *((f"LEVEL{level}", "String", "Generic") for level in levels),
        ("Red", "Integer", "Red"),
        ("Green", "Integer", "Green"),
        ("Blue", "Integer", "Blue"),
    ]
    rows = [[c.value, int(counts[c.value]), c.code, c.name, *c.names, *c.colour] for c in coding.classes]
    names = {c.value: f"{c.code} {c.name}" for c in coding.classes}
    return _auxiliary(columns, rows, names)


def state_table(names: Mapping[int, str], colours: Mapping[int, Sequence[int]], counts: NDArray[np.int64]) -> bytes:
    """The attribute table of a few values that are of no legend: Value, Count, NAME, Red, Green, Blue."""
    columns: list[Column] = [
        ("Value", "Integer", "MinMax"),
        ("Count", "Real", "PixelCount"),
        ("NAME", "String", "Name"),
        ("Red", "Integer", "Red"),
        ("Green", "Integer", "Green"),
        ("Blue", "Integer", "Blue"),
    ]
    rows = [[value, int(counts[value]), name, *colours[value]] for value, name in names.items()]
    return _auxiliary(columns, rows, names)


def statistics(counts: NDArray[np.int64], nodata: int) -> bytes | None:
    """Exact statistics of a measure of bytes, so that no program has to guess them; None where all is nodata."""
    valid = counts.astype(np.float64)
    valid[nodata] = 0
    total = valid.sum()
    if not total:
        return None
    values = np.arange(valid.size)
    mean = float((valid * values).sum() / total)
    deviation = math.sqrt(float((valid * (values - mean) ** 2).sum() / total))
    seen = np.flatnonzero(valid)
    said = {
        "STATISTICS_MINIMUM": int(seen[0]),
        "STATISTICS_MAXIMUM": int(seen[-1]),
        "STATISTICS_MEAN": round(mean, 6),
        "STATISTICS_STDDEV": round(deviation, 6),
        "STATISTICS_VALID_PERCENT": round(100 * total / float(counts.sum()), 4),
    }
    root = ET.Element("PAMDataset")
    metadata = ET.SubElement(ET.SubElement(root, "PAMRasterBand", band="1"), "Metadata")
    for key, value in said.items():
        ET.SubElement(metadata, "MDI", key=key).text = str(value)
    return as_bytes(root)


def as_bytes(root: ET.Element, head: str = "") -> bytes:
    """An indented XML document."""
    ET.indent(root, " ")
    return (head + ET.tostring(root, encoding="unicode") + "\n").encode()


def _auxiliary(columns: Sequence[Column], rows: Sequence[Sequence[Any]], names: Mapping[int, str]) -> bytes:
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    categories = ET.SubElement(band, "CategoryNames")
    for value in range(1 + max(names)):
        ET.SubElement(categories, "Category").text = names.get(value, "")
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for at, (name, kind, usage) in enumerate(columns):
        column = ET.SubElement(table, "FieldDefn", index=str(at))
        ET.SubElement(column, "Name").text = name
        ET.SubElement(column, "Type", typeAsString=kind).text = str(_TYPES[kind])
        ET.SubElement(column, "Usage", usageAsString=usage).text = str(_USAGES[usage])
    for at, row in enumerate(rows):
        line = ET.SubElement(table, "Row", index=str(at))
        for value in row:
            ET.SubElement(line, "F").text = str(value)
    return as_bytes(root)
