"""QGIS styles, ``NAME.qml``: QGIS takes the one beside a raster when it opens it.

Written as QGIS 3 writes them itself, with what it needs to draw and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

from geoflow.colours import Colour, hex_colour
from geoflow.exports.tables import as_bytes

_HEAD = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_VERSION = "3.34.0-Prizren"
"""The long-term release whose format this is; newer ones read it."""

Entry = tuple[int, str, Colour]
"""Value, label, colour."""


def paletted(entries: Sequence[Entry]) -> bytes:
    """One colour and label a value; values that are not named, and nodata, are not drawn."""
    renderer, root = _renderer("paletted", band="1")
    _origin(renderer, "None")
    palette = ET.SubElement(renderer, "colorPalette")
    for value, label, colour in entries:
        ET.SubElement(palette, "paletteEntry", value=str(value), label=label, color=hex_colour(colour), alpha="255")
    return _finish(root, "nearestNeighbour")


def stepped(steps: Sequence[Entry], most: int, unit: str) -> bytes:
    """A measure in steps of one colour each.

    Parameters
    ----------
    steps : sequence of Entry
        From where each step begins; its label.
    most : int
        The largest value.
    unit : str
        Behind the values of the legend.
    """
    least = steps[0][0]
    renderer, root = _renderer(
        "singlebandpseudocolor", band="1", classificationMin=str(least), classificationMax=str(most)
    )
    _origin(renderer, "MinMax")
    shader = ET.SubElement(
        ET.SubElement(renderer, "rastershader"),
        "colorrampshader",
        # Discrete: a value has the colour of the first item that is not below it.
        colorRampType="DISCRETE",
        classificationMode="1",
        clip="0",
        labelPrecision="0",
        minimumValue=str(least),
        maximumValue=str(most),
    )
    ends = [start - 1 for start, _, _ in steps[1:]] + [most]
    for (_, label, colour), end in zip(steps, ends, strict=True):
        ET.SubElement(shader, "item", value=str(end), label=label, color=hex_colour(colour), alpha="255")
    ET.SubElement(shader, "rampLegendSettings", suffix=unit, prefix="", useContinuousLegend="0", direction="0",
                  orientation="2", minimumLabel="", maximumLabel="")  # fmt: skip
    return _finish(root, "nearestNeighbour")


def three_colours(bands: Sequence[int], ranges: Sequence[tuple[float, float]]) -> bytes:
    """Red, green and blue of three bands (numbered from 1), each stretched between two values."""
    names = ("red", "green", "blue")
    renderer, root = _renderer("multibandcolor", **{f"{n}Band": str(b) for n, b in zip(names, bands, strict=True)})
    _origin(renderer, "CumulativeCut")
    for name, (low, high) in zip(names, ranges, strict=True):
        enhancement = ET.SubElement(renderer, f"{name}ContrastEnhancement")
        ET.SubElement(enhancement, "minValue").text = f"{low:g}"
        ET.SubElement(enhancement, "maxValue").text = f"{high:g}"
        ET.SubElement(enhancement, "algorithm").text = "StretchToMinimumMaximum"
    return _finish(root, "bilinear")


def _renderer(kind: str, **attributes: Any) -> tuple[ET.Element, ET.Element]:
    root = ET.Element("qgis", version=_VERSION, styleCategories="AllStyleCategories", hasScaleBasedVisibilityFlag="0",
                      minScale="1e+08", maxScale="0")  # fmt: skip
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(
        pipe, "rasterrenderer", type=kind, opacity="1", alphaBand="-1", nodataColor="", **attributes
    )
    ET.SubElement(renderer, "rasterTransparency")
    return renderer, root


def _origin(renderer: ET.Element, limits: str) -> None:
    """Where the limits of the stretch came from."""
    origin = ET.SubElement(renderer, "minMaxOrigin")
    said = {"limits": limits, "extent": "WholeRaster", "statAccuracy": "Exact", "cumulativeCutLower": "0.02",
            "cumulativeCutUpper": "0.98", "stdDevFactor": "2"}  # fmt: skip
    for name, value in said.items():
        ET.SubElement(origin, name).text = value


def _finish(root: ET.Element, zoomed_in: str) -> bytes:
    pipe = root[0]
    provider = ET.Element("provider")
    ET.SubElement(provider, "resampling", enabled="false", maxOversampling="2", zoomedInResamplingMethod=zoomed_in,
                  zoomedOutResamplingMethod="nearestNeighbour")  # fmt: skip
    pipe.insert(0, provider)
    ET.SubElement(pipe, "brightnesscontrast", brightness="0", contrast="0", gamma="1")
    ET.SubElement(pipe, "huesaturation", colorizeOn="0", colorizeRed="255", colorizeGreen="128", colorizeBlue="128",
                  colorizeStrength="100", grayscaleMode="0", saturation="0", invertColors="0")  # fmt: skip
    ET.SubElement(pipe, "rasterresampler", maxOversampling="2")
    ET.SubElement(pipe, "resamplingStage").text = "resamplingFilter"
    ET.SubElement(root, "blendMode").text = "0"
    return as_bytes(root, _HEAD)
