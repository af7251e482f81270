"""Maps to look at and to print: land cover, change, confidence.

Classes are drawn in the legend's colours and never interpolated; what was not observed stays the grey of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.jobs.mapkey import Entry, Key, Section
from geoflow.jobs.mapsheet import NODATA_COLOUR, Paper, Texts, arrange
from geoflow.jobs.quicklook import (
    ChangePicture,
    ClassPicture,
    Extent,
    change_picture,
    class_picture,
    colours,
    pixel_area_ha,
    quicklook,
    shown_bands,
    true_colour,
)
from geoflow.legends import Legend

__all__ = ["draw_change", "draw_classes", "draw_composite", "draw_confidence", "draw_map", "quicklook", "true_colour"]

UNCHANGED_COLOUR = (214, 214, 209)
TOP_TRANSITIONS = 10
CONFIDENCE_NODATA = 255
_LIGHTS = ((214, 39, 40), (44, 160, 44), (31, 119, 180))  # which band is which light

CONFIDENCE_STEPS = (
    (0, (255, 255, 204)),
    (40, (161, 218, 180)),
    (60, (65, 182, 196)),
    (80, (44, 127, 184)),
    (90, (37, 52, 148)),
)
"""From where each of five steps begins, in per cent, and its colour: from doubtful to sure, readable in grey and by the
colour-blind (ColorBrewer YlGnBu)."""


@dataclass(frozen=True)
class Panel:
    """A picture (dims (y, x, 4), uint8) and what stands above it."""

    image: NDArray[np.uint8]
    extent: Extent
    title: str
    note: str = ""
    smooth: bool = False


def draw_map(
    dataset_by_epoch: Mapping[str, xr.Dataset],
    rgb_by_epoch: Mapping[str, xr.DataArray | None],
    legend: Legend,
    title: str,
    attribution: str,
    path: Path,
    labels: xr.DataArray | None = None,
) -> None:
    """Draw the land cover of one or more epochs as one sheet.

    Parameters
    ----------
    dataset_by_epoch : mapping of epoch to Dataset
        ``map/<epoch>`` of the store; its deepest level is drawn (``level3``; dims (y, x), 0 nodata).
    rgb_by_epoch : mapping of epoch to DataArray or None
        ``reflectance`` of ``imagery/<epoch>``, dims (period, band, y, x); see `true_colour`. May lack epochs.
    legend : Legend
        Of the maps and the labels. The key lists the classes that occur, with their share of the mapped area, counted
        over all pixels of the store.
    title, attribution : str
    path : Path
        The PNG; replaced as a whole or not at all.
    labels : DataArray, optional
        Codes of the deepest level that the model learned from, dims (y, x), 0 nodata.

    Raises
    ------
    LegendError
        If a map or the labels hold a code that the legend lacks.
    ValueError
        If there is no epoch.
    """
    if not dataset_by_epoch:
        raise ValueError("no map to draw: dataset_by_epoch is empty")
    level = f"level{legend.deepest}"
    layers = {epoch: data[level] for epoch, data in dataset_by_epoch.items()}
    maps = {epoch: class_picture(layer) for epoch, layer in layers.items()}
    learned = None if labels is None else class_picture(labels)
    context = _composites(rgb_by_epoch)
    if learned is not None:
        context.append(Panel(colours(learned.codes, legend), learned.extent, "Training labels"))

    first = next(iter(layers.values()))
    key = Key((_class_section(maps, learned, legend, _size(first)),))
    texts = Texts(title, _subtitle(f"Land cover {', '.join(maps)}", first), attribution)
    sheet = arrange(_aspect(first), len(context), len(maps), key, texts)
    paper = Paper(sheet, texts, _bounds(first))
    boxes = iter(sheet.panels)
    for panel in context:
        paper.panel(next(boxes), panel.image, panel.extent, panel.title, panel.note, panel.smooth)
    for epoch, picture in maps.items():
        paper.panel(next(boxes), colours(picture.codes, legend), picture.extent, f"Land cover {epoch}")
    paper.scale_bars()
    paper.key()
    paper.save(path)


def draw_change(
    change: xr.Dataset, legend: Legend, before: str, after: str, title: str, attribution: str, path: Path
) -> None:
    """Draw what changed between two epochs, in the colours of what the land became.

    Parameters
    ----------
    change : Dataset
        ``change/<a>-<b>`` of the store: ``change`` (0 not observed, 1 unchanged, 2 changed), ``from_code`` and
        ``to_code`` (0 where not changed), dims (y, x). A patch smaller than a pixel of the picture is drawn as one.
        Areas are counted over all pixels of the store.
    legend : Legend
    before, after : str
        Names of the epochs.
    title, attribution : str
    path : Path
        The PNG; replaced as a whole or not at all.

    Raises
    ------
    LegendError
        If a code is not in the legend.
    """
    layer = change["change"]
    picture = change_picture(change)
    key = _change_key(picture, legend, pixel_area_ha(layer), after)
    texts = Texts(title, _subtitle(f"Land cover change {before}–{after}", layer), attribution)
    sheet = arrange(_aspect(layer), 0, 1, key, texts)
    paper = Paper(sheet, texts, _bounds(layer))
    image = colours(picture.codes, legend)
    image[picture.state == 1] = (*UNCHANGED_COLOUR, 255)
    paper.panel(sheet.panels[0], image, picture.extent, f"Change {before}–{after}", f"coloured as in {after}")
    paper.scale_bars()
    paper.key()
    paper.save(path)


def draw_classes(codes: xr.DataArray, legend: Legend, what: str, title: str, attribution: str, path: Path) -> None:
    """Draw one class map by itself.

    Parameters
    ----------
    codes : DataArray, dims (y, x)
        Codes of the deepest level of ``legend``, 0 nodata.
    legend : Legend
        See `geoflow.legends.Legend.down_to` for a map of a coarser level.
    what : str
        Above the map: ``"Land cover 2018, level 2"``.
    title, attribution : str
    path : Path
        The PNG; replaced as a whole or not at all.

    Raises
    ------
    LegendError
        If the map holds a code that the legend lacks.
    """
    picture = class_picture(codes)
    key = Key((_class_section({"%": picture}, None, legend, _size(codes)),))
    _draw_one(codes, Panel(colours(picture.codes, legend), picture.extent, what), key, (title, attribution), path)


def draw_composite(reflectance: xr.DataArray, what: str, title: str, attribution: str, path: Path) -> None:
    """Draw a composite as it would look from above.

    Parameters
    ----------
    reflectance : int16 DataArray, dims (period, band, y, x)
        See `true_colour`.
    what, title, attribution : str
        See `draw_classes`.
    path : Path
        The PNG; replaced as a whole or not at all.
    """
    image, extent, caption = true_colour(reflectance)
    bands = shown_bands([str(name) for name in reflectance["band"].values])
    entries = [Entry(band, swatches=(colour,)) for band, colour in zip(bands, _LIGHTS, strict=False)]
    if not image[..., 3].all():
        entries.append(Entry("no data", swatches=(NODATA_COLOUR,)))
    section = Section("Reflectance, each band from its 2nd to its 98th percentile", tuple(entries))
    panel = Panel(image, extent, what, caption, smooth=True)
    _draw_one(reflectance, panel, Key((section,)), (title, attribution), path)


def _draw_one(layer: xr.DataArray, panel: Panel, key: Key, said: tuple[str, str], path: Path) -> None:
    texts = Texts(said[0], _subtitle(panel.title, layer), said[1])
    sheet = arrange(_aspect(layer), 0, 1, key, texts)
    paper = Paper(sheet, texts, _bounds(layer))
    paper.panel(sheet.panels[0], panel.image, panel.extent, panel.title, panel.note, panel.smooth)
    paper.scale_bars()
    paper.key()
    paper.save(path)


def draw_confidence(
    dataset_by_epoch: Mapping[str, xr.Dataset],
    title: str,
    attribution: str,
    path: Path,
    what: str = "Confidence",
    caption: str = "Confidence: probability of the class shown",
) -> None:
    """Draw how sure the model is of its map, in five steps.

    Parameters
    ----------
    dataset_by_epoch : mapping of epoch to Dataset
        ``map/<epoch>`` of the store; ``confidence`` (uint8 per cent, 255 nodata), dims (y, x).
    title, attribution : str
    path : Path
        The PNG; replaced as a whole or not at all.
    what, caption : str
        What it is the confidence of, above the maps and above the key.
    """
    layers = {epoch: data["confidence"] for epoch, data in dataset_by_epoch.items()}
    steps = CONFIDENCE_STEPS
    table = np.zeros((256, 4), np.uint8)
    for start, colour in steps:
        table[start:CONFIDENCE_NODATA] = (*colour, 255)
    ends = [start for start, _ in steps[1:]] + [100]
    entries = [Entry(f"{start} to {end} %", swatches=(c,)) for (start, c), end in zip(steps, ends, strict=True)]
    pictures = {epoch: quicklook(layer) for epoch, layer in layers.items()}
    if any((values == CONFIDENCE_NODATA).any() for values, _ in pictures.values()):
        entries.append(Entry("no data", swatches=(NODATA_COLOUR,)))
    key = Key((Section(caption, tuple(entries)),))
    first = next(iter(layers.values()))
    texts = Texts(title, _subtitle(f"{what} {', '.join(layers)}", first), attribution)
    sheet = arrange(_aspect(first), 0, len(layers), key, texts)
    paper = Paper(sheet, texts, _bounds(first))
    for box, (epoch, (values, extent)) in zip(sheet.panels, pictures.items(), strict=True):
        paper.panel(box, table[values], extent, f"{what} {epoch}")
    paper.scale_bars()
    paper.key()
    paper.save(path)


def percent(share: float) -> str:
    """A share of 0..1 for a reader: ``12.3``, ``0.04``, ``<0.01``; without the sign."""
    value = 100 * share
    if value >= 0.995 or value == 0:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.005 else "<0.01"


def hectares(value: float) -> str:
    """Hectares for a reader: ``1 234``, ``12.3``; thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u2009") if value >= 100 else f"{value:.1f}"


def _composites(rgb_by_epoch: Mapping[str, xr.DataArray | None]) -> list[Panel]:
    panels = []
    for epoch, reflectance in rgb_by_epoch.items():
        if reflectance is not None:
            image, extent, caption = true_colour(reflectance)
            panels.append(Panel(image, extent, f"Sentinel-2 {epoch}", caption, smooth=True))
    return panels


def _class_section(
    maps: Mapping[str, ClassPicture], learned: ClassPicture | None, legend: Legend, size: int
) -> Section:
    """Classes that occur, by group of level 1, with their share in each epoch."""
    present = {code for picture in maps.values() for code in picture.pixels}
    present |= set(learned.pixels) if learned is not None else set()

    def shares(codes: set[int]) -> tuple[str, ...]:
        values = []
        for picture in maps.values():
            total = sum(picture.pixels.values())
            part = sum(picture.pixels.get(code, 0) for code in codes)
            values.append(percent(part / total) if part else "–")
        return tuple(values)

    entries = []
    for group in legend.codes(legend.levels[0]):
        members = {code for code in present if legend.ancestor(code, legend.levels[0]) == group}
        if not members:
            continue
        if len(legend.levels) > 1:
            entries.append(Entry(legend.label(group), str(group), values=shares(members), bold=True))
        entries += [_entry(code, legend, shares({code})) for code in sorted(members)]
    if any(sum(picture.pixels.values()) < size for picture in maps.values()):
        entries.append(Entry("no data", swatches=(NODATA_COLOUR,)))
    return Section("Share of the mapped area in %", tuple(entries), heads=tuple(maps))


def _entry(code: int, legend: Legend, values: tuple[str, ...]) -> Entry:
    return Entry(legend.label(code), str(code), (legend.colour(code),), values)


def _change_key(picture: ChangePicture, legend: Legend, pixel_ha: float, after: str) -> Key:
    """What the land became, and the largest transitions, in hectares."""
    gained: dict[int, int] = {}
    for (_, code), count in picture.transitions.items():
        gained[code] = gained.get(code, 0) + count
    total = sum(gained.values())
    became = [_entry(code, legend, (hectares(gained[code] * pixel_ha),)) for code in sorted(gained)]
    share = total / picture.observed if picture.observed else 0.0
    became.append(
        Entry(f"all: {percent(share)} % of the area compared", values=(hectares(total * pixel_ha),), bold=True)
    )
    became.append(Entry("unchanged", swatches=(UNCHANGED_COLOUR,)))
    if (picture.state == 0).any():
        became.append(Entry("not compared: no data", swatches=(NODATA_COLOUR,)))
    sections = [Section(f"Became, by {after}", tuple(became), heads=("ha",), value_width=0.62)]
    largest = sorted(picture.transitions.items(), key=lambda item: (-item[1], item[0]))[:TOP_TRANSITIONS]
    if largest:
        rows = [
            Entry(
                f"{legend.label(old)} → {legend.label(new)}",
                f"{old} → {new}",
                (legend.colour(old), legend.colour(new)),
                (hectares(count * pixel_ha),),
            )
            for (old, new), count in largest
        ]
        sections.append(Section("Largest transitions", tuple(rows), heads=("ha",), value_width=0.62))
    return Key(tuple(sections))


def _size(layer: xr.DataArray) -> int:
    return layer.sizes["y"] * layer.sizes["x"]


def _aspect(layer: xr.DataArray) -> float:
    return layer.sizes["y"] / layer.sizes["x"]


def _bounds(layer: xr.DataArray) -> Extent:
    box = layer.odc.geobox.boundingbox
    return box.left, box.right, box.bottom, box.top


def _subtitle(what: str, layer: xr.DataArray) -> str:
    box: Any = layer.odc.geobox
    name, epsg = box.crs.proj.name, box.crs.epsg
    crs = f"{name} (EPSG:{epsg})" if epsg else name
    return f"{what}  ·  pixels of {abs(box.transform.a):g} m  ·  {crs}, coordinates in km"
