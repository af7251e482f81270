"""Each kind of layer as a raster to be written, and what goes beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.exports import styles, tables
from geoflow.exports.coding import Coding
from geoflow.exports.cog import Raster
from geoflow.inputs import NODATA
from geoflow.jobs.figures import CONFIDENCE_NODATA, CONFIDENCE_STEPS, UNCHANGED_COLOUR

if TYPE_CHECKING:
    from geoflow.exports.clip import Block, Clip
    from geoflow.exports.layers import Layer
    from geoflow.exports.source import Source

STATES = {1: "unchanged", 2: "changed"}
STATE_COLOURS = {1: UNCHANGED_COLOUR, 2: (202, 0, 32)}

STATE_TAG = "GEOFLOW_STATE"
"""Metadata item of a file: see `geoflow.exports.source.Source.state`."""

SCALE = 0.0001
"""Of reflectance."""


@dataclass(frozen=True)
class Made:
    """A layer with all that its files are made from.

    Attributes
    ----------
    layer : Layer
    raster : Raster
    coding : Coding, optional
        Of class maps.
    """

    layer: Layer
    raster: Raster
    coding: Coding | None = None

    @property
    def state(self) -> str:
        """See `geoflow.exports.source.Source.state`."""
        return self.raster.tags[STATE_TAG]

    def auxiliary(self, counts: NDArray[np.int64] | None) -> bytes | None:
        """``.aux.xml`` of a file with so many pixels of each value; None where there is nothing to say."""
        if counts is None:
            return None
        if self.coding is not None:
            return tables.class_table(self.coding, counts)
        if self.layer.content == "state":
            return tables.state_table(STATES, STATE_COLOURS, counts)
        return tables.statistics(counts, self.raster.nodata)

    def style(self, counts: NDArray[np.int64] | None, stretch: Mapping[str, tuple[float, float]]) -> bytes:
        """``.qml``; of classes those that occur, of composites with the range of values of each band shown."""
        if self.coding is not None and counts is not None:
            present = [c for c in self.coding.classes if counts[c.value]]
            return styles.paletted([(c.value, f"{c.code} {c.name}", c.colour) for c in present])
        if self.layer.content == "state":
            return styles.paletted([(value, name, STATE_COLOURS[value]) for value, name in STATES.items()])
        if self.layer.content == "percent":
            starts = [start for start, _ in CONFIDENCE_STEPS]
            ends = [start - 1 for start in starts[1:]] + [100]
            labels = [f"{start} to {end} %" for start, end in zip(starts, ends, strict=True)]
            steps = zip(labels, CONFIDENCE_STEPS, strict=True)
            return styles.stepped([(start, label, colour) for label, (start, colour) in steps], 100, " %")
        at = [1 + self.raster.bands.index(name) for name in stretch]
        return styles.three_colours((at * 3)[:3], (list(stretch.values()) * 3)[:3])


def raster_of(source: Source, layer: Layer, clip: Clip) -> Made:
    """A layer, ready to be written.

    Values outside the area are nodata. Classes are numbered as `geoflow.exports.coding` says; all other values are
    those of the store.
    """
    array = source.store.dataset(layer.group, dask=False)[layer.variable].sel(dict(layer.select))

    def read(block: Block) -> NDArray[Any]:
        return np.asarray(array[..., block.rows, block.cols].values)

    tags = _tags(source, layer, clip)
    if layer.content == "classes":
        coding = Coding(source.legend, _level(layer))
        tags |= {"GEOFLOW_LEGEND": source.legend.name, "GEOFLOW_NUMBERING": coding.scheme}
        raster = Raster(
            _masked(lambda block: coding.encode(read(block)), clip, 0),
            clip,
            str(coding.dtype),
            0,
            (layer.title,),
            classes=True,
            colours={c.value: c.colour for c in coding.classes},
            tags=tags,
            band_tags={f"CLASS_{c.value}": f"{c.code} {c.name}" for c in coding.classes},
        )
        return Made(layer, raster, coding)
    if layer.content == "state":
        names = {f"CLASS_{value}": name for value, name in STATES.items()}
        raster = Raster(_masked(read, clip, 0), clip, "uint8", 0, (layer.title,), True, STATE_COLOURS, tags, names)
    elif layer.content == "percent":
        raster = Raster(
            _masked(read, clip, CONFIDENCE_NODATA), clip, "uint8", CONFIDENCE_NODATA, (layer.title,), False,
            tags=tags, unit="%",
        )  # fmt: skip
    else:
        bands = tuple(str(name) for name in array["band"].values)
        raster = Raster(_masked(read, clip, NODATA), clip, "int16", NODATA, bands, False, tags=tags, scale=SCALE)
    return Made(layer, raster)


def _level(layer: Layer) -> int:
    assert layer.level is not None  # class layers have one
    return layer.level


def _masked(read: Callable[[Block], NDArray[Any]], clip: Clip, nodata: int) -> Callable[[Block], NDArray[Any]]:
    """Blocks with dims (band, y, x), nodata outside the area."""

    def read_inside(block: Block) -> NDArray[Any]:
        values = read(block)
        if values.ndim == 2:
            values = values[None]
        outside = clip.outside(block)
        return values if outside is None else np.where(outside, values.dtype.type(nodata), values)

    return read_inside


def _tags(source: Source, layer: Layer, clip: Clip) -> dict[str, str]:
    from geoflow import __version__

    tags = {
        "TIFFTAG_IMAGEDESCRIPTION": f"{source.title}: {layer.title}",
        "TIFFTAG_SOFTWARE": f"geoflow {__version__}",
        "TIFFTAG_DATETIME": source.made.strftime("%Y:%m:%d %H:%M:%S"),
        STATE_TAG: source.state(layer, clip),
    }
    if source.attribution:
        tags["TIFFTAG_COPYRIGHT"] = source.attribution
    for epoch in layer.epochs:
        if days := source.dates(epoch):
            tags[f"GEOFLOW_EPOCH_{epoch}"] = f"{days[0]}/{days[1]}"
    return tags
