"""Layers as pictures for a notebook: classes in their colours with their names, a scale, nodata in light grey.

A picture has as many pixels as a screen. It is read from the coarsest overview that has enough of them, where the store
has overviews; else every n-th pixel is picked, a row of chunks at a time. Neither makes up a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.colours import Colour
from geoflow.errors import GridError, LegendError
from geoflow.explore.layers import geobox_of
from geoflow.jobs.figures import CONFIDENCE_NODATA, UNCHANGED_COLOUR
from geoflow.jobs.mapkey import text_width
from geoflow.jobs.mapsheet import LINE, MUTED, NODATA_COLOUR, rgb, round_length
from geoflow.jobs.quicklook import CHANGED, Extent, change_picture, colours, quicklook, true_colour
from geoflow.legends import Legend
from geoflow.store.pyramid import SHARE, SHARE_NODATA

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PX = 1400
"""Pixels along the longer side of a picture."""

IN_PART_COLOUR = (150, 150, 145)

COLOURINGS = {"true": ("B04", "B03", "B02"), "false": ("B08", "B04", "B03")}

# Inches.
_MAP_INCHES, _SWATCH_INCHES, _BAR_INCHES, _LINE_INCHES = 6.5, 0.55, 1.1, 0.157
_LEFT, _BOTTOM, _TOP = 0.55, 0.55, 0.35

KEY_PT = 7.5
_NAME_LETTERS, _LINES = 38, 48
_NODATA_NAME = "no data"


@dataclass(frozen=True)
class KeyEntry:
    """A line of the legend; without a colour it is a heading."""

    text: str
    colour: Colour | None = None


@dataclass(frozen=True)
class Picture:
    """What to draw.

    Attributes
    ----------
    image : uint8 array, dims (y, x, 4)
        Red, green, blue, alpha; transparent where there is no data.
    extent : Extent
    title : str
    key : tuple of KeyEntry
    smooth : bool
        For photographs; classes are never interpolated.
    """

    image: NDArray[np.uint8]
    extent: Extent
    title: str
    key: tuple[KeyEntry, ...] = ()
    smooth: bool = False


@dataclass(frozen=True)
class Scalar:
    """A measure to draw in a sequence of colours, from ``low`` to ``high``."""

    values: NDArray[Any]
    extent: Extent
    title: str
    label: str
    low: float
    high: float
    colours: str


def class_layer(codes: xr.DataArray, legend: Legend, title: str, max_px: int = MAX_PX) -> Picture:
    """Classes in the legend's colours; the key holds those that are in the picture, by group of level 1.

    Raises
    ------
    LegendError
        If the layer holds codes that the legend lacks.
    """
    values, extent = quicklook(codes, max_px)
    present = np.unique(values)
    key = list(_class_key([int(code) for code in present if code], legend))
    if present.size and present[0] == 0:
        key.append(KeyEntry(_NODATA_NAME, NODATA_COLOUR))
    return Picture(colours(values, legend), extent, title, tuple(key))


def _class_key(present: Sequence[int], legend: Legend) -> list[KeyEntry]:
    if not present:
        return []
    top = legend.levels[0]
    if len({legend.level_of(code) for code in present}) > 1:
        raise LegendError(f"the layer mixes levels of {legend.name!r}: {list(present)[:10]}")
    if legend.level_of(present[0]) == top:
        return [_entry(code, legend) for code in present]
    key = []
    for group in legend.codes(top):
        members = [code for code in present if legend.ancestor(code, top) == group]
        if members:
            key += [KeyEntry(f"{group} {legend.label(group)}"), *(_entry(code, legend) for code in members)]
    return key


def _entry(code: int, legend: Legend) -> KeyEntry:
    return KeyEntry(f"{code} {legend.label(code)}", legend.colour(code))


def change_layer(change: xr.Dataset, legend: Legend, title: str, max_px: int = MAX_PX) -> Picture:
    """Change in the colours of what the land became; a pixel of the picture is changed where any below it is."""
    picture = change_picture(change, max_px)
    image = colours(picture.codes, legend)
    image[picture.state != CHANGED] = (*UNCHANGED_COLOUR, 255)
    image[picture.state == 0] = 0
    some = _changed_in_part(change, picture.state, max_px)
    image[some] = (*IN_PART_COLOUR, 255)
    became = sorted({after for _, after in picture.transitions})
    key = [KeyEntry("became"), *(_entry(code, legend) for code in became)] if became else []
    if some.any():
        key.append(KeyEntry("changed in a small part", IN_PART_COLOUR))
    key.append(KeyEntry("unchanged", UNCHANGED_COLOUR))
    if (picture.state == 0).any():
        key.append(KeyEntry("not compared", NODATA_COLOUR))
    return Picture(image, picture.extent, title, tuple(key))


def _changed_in_part(change: xr.Dataset, state: NDArray[np.uint8], max_px: int) -> NDArray[np.bool_]:
    """Pixels of an overview that are unchanged by majority, though something below them changed."""
    if SHARE not in change:
        return np.zeros(state.shape, bool)
    share, _ = quicklook(change[SHARE], max_px)
    return (state != CHANGED) & (share > 0) & (share != SHARE_NODATA)


def reflectance_layer(reflectance: xr.DataArray, bands: Sequence[str], title: str, max_px: int = MAX_PX) -> Picture:
    """A composite in three of its bands; see `geoflow.jobs.quicklook.true_colour`.

    Raises
    ------
    GridError
        If it lacks one of the bands.
    """
    there = [str(name) for name in reflectance["band"].values]
    if missing := [band for band in bands if band not in there]:
        raise GridError(f"the imagery has no {', '.join(missing)}; it has {', '.join(there)}")
    picture, extent, caption = true_colour(reflectance, max_px, tuple(bands))
    key = (KeyEntry(_NODATA_NAME, NODATA_COLOUR),) if (picture[..., 3] == 0).any() else ()
    return Picture(picture, extent, f"{title}: {caption}", key, smooth=True)


def scalar_layer(layer: xr.DataArray, title: str, max_px: int = MAX_PX) -> Scalar:
    """A measure such as confidence, with a scale of colours that fits it."""
    values, extent = quicklook(layer, max_px)
    nodata = layer.attrs.get("nodata", CONFIDENCE_NODATA if layer.name == "confidence" else None)
    masked = np.ma.masked_equal(values, nodata) if nodata is not None else np.ma.masked_invalid(values)
    label = str(layer.attrs.get("long_name", layer.name)).partition(";")[0]
    units = layer.attrs.get("units", "1")
    label += {"percent": ", %", "1": ""}.get(units, f", {units}")
    if units == "percent":
        return Scalar(masked, extent, title, label, 0, 100, "YlGnBu")
    known = masked.compressed()
    low, high = (float(known.min()), float(np.percentile(known, 99))) if known.size else (0.0, 1.0)
    return Scalar(masked, extent, title, label, low, max(high, low + 1), "viridis")


def draw(picture: Picture | Scalar, layer: xr.DataArray, ax: Axes | None = None, note: str = "") -> Axes:
    """Draw on axes, or on those of a new figure that is as large as picture and legend need.

    Parameters
    ----------
    picture : Picture or Scalar
    layer : DataArray
        Whose grid gives scale and coordinates.
    ax : Axes, optional
    note : str
        Small, below: whom to name.
    """
    import textwrap

    from matplotlib.ticker import MaxNLocator

    left, right, bottom, top = picture.extent
    if ax is None:
        ax = _axes((top - bottom) / (right - left), _names(getattr(picture, "key", ())))
    ax.set_facecolor(rgb(NODATA_COLOUR))
    ax.set_title(picture.title, loc="left", fontsize=10, fontweight="bold")
    if isinstance(picture, Picture):
        style = "antialiased" if picture.smooth else "nearest"
        ax.imshow(picture.image, extent=picture.extent, interpolation=style)
        _draw_key(ax, picture.key)
    else:
        drawn = ax.imshow(
            picture.values,
            extent=picture.extent,
            interpolation="nearest",
            cmap=picture.colours,
            vmin=picture.low,
            vmax=picture.high,
        )
        bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1.02, 0.1, 0.025, 0.8)))
        bar.set_label("\n".join(textwrap.wrap(picture.label, 44)), fontsize=8, parse_math=False)
        if np.issubdtype(picture.values.dtype, np.integer):
            bar.locator = MaxNLocator(integer=True, nbins=6)
        bar.ax.tick_params(labelsize=7)
    box = geobox_of(layer)
    ax.set_xlim(box.boundingbox.left, box.boundingbox.right)
    ax.set_ylim(box.boundingbox.bottom, box.boundingbox.top)
    _furnish(ax, box, note)
    return ax


def _axes(aspect: float, names: Sequence[str]) -> Axes:
    """Axes of a new figure of pyplot's, which notebooks show by themselves; as large as map and legend need."""
    import matplotlib.pyplot as plt

    width, height = (_MAP_INCHES, _MAP_INCHES * aspect) if aspect <= 1.2 else (_MAP_INCHES * 1.2 / aspect, 7.8)
    columns = _columns(names)
    lines = [line for name in names for line in name.split("\n")]
    widest = max((text_width(line, KEY_PT, bold=True) for line in lines), default=0.0)
    beside = (widest + _SWATCH_INCHES) * columns if names else _BAR_INCHES
    tall = max(height, len(lines) / columns * _LINE_INCHES)
    whole = _LEFT + width + 0.1 + beside, _BOTTOM + tall + _TOP
    place = _LEFT / whole[0], 1 - (_TOP + height) / whole[1], width / whole[0], height / whole[1]
    return plt.figure(figsize=whole).add_axes(place)


def _names(key: Sequence[KeyEntry]) -> list[str]:
    import textwrap

    return ["\n".join(textwrap.wrap(entry.text, _NAME_LETTERS)) for entry in key]


def _lines(names: Sequence[str]) -> int:
    return sum(name.count("\n") + 1 for name in names)


def _columns(names: Sequence[str]) -> int:
    return 1 if _lines(names) <= _LINES else 2


def _draw_key(ax: Axes, key: Sequence[KeyEntry]) -> None:
    from matplotlib.patches import Patch

    if not key:
        return
    handles = [
        Patch(facecolor=rgb(entry.colour), edgecolor=LINE, linewidth=0.5)
        if entry.colour
        else Patch(facecolor="none", edgecolor="none")
        for entry in key
    ]
    names = _names(key)
    legend = ax.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=KEY_PT,
        ncols=_columns(names),
        handlelength=1.4,
        handleheight=1.0,
        labelspacing=0.35,
    )
    for text, entry in zip(legend.get_texts(), key, strict=True):
        text.set_parse_math(False)
        if entry.colour is None:
            text.set_fontweight("bold")
            text.set_position((-22, 0))  # to where the colours begin


def _furnish(ax: Axes, box: Any, note: str) -> None:
    """Kilometres on the axes and a scale bar, where the map is in metres; degrees otherwise."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    metres = box.crs.projected
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        if metres:
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:.8g}"))
    ax.tick_params(length=2.5, width=0.5, color=LINE, labelsize=7, labelcolor=MUTED)
    for spine in ax.spines.values():
        spine.set(color=LINE, linewidth=0.6)
    name = f"EPSG:{box.crs.epsg}" if box.crs.epsg else box.crs.proj.name
    below = f"{'km' if metres else 'degrees'}, {name}" + (f"  ·  {note}" if note else "")
    ax.set_xlabel(below, loc="left", fontsize=7, color=MUTED, parse_math=False)
    if metres:
        _scale_bar(ax, box.boundingbox.right - box.boundingbox.left)


def _scale_bar(ax: Axes, across: float) -> None:
    from matplotlib.font_manager import FontProperties
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]

    length = round_length(across * 0.25)
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    style = {"frameon": True, "color": "#1f2933", "size_vertical": across * 0.004, "pad": 0.3, "borderpad": 0.5}
    bar = AnchoredSizeBar(ax.transData, length, label, "lower left", fontproperties=FontProperties(size=7), **style)
    bar.patch.set(facecolor="white", alpha=0.8, linewidth=0)
    ax.add_artist(bar)
