"""Pictures of exported layers, drawn from the files themselves: they show what GIS programs will."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import odc.geo.xr  # noqa: F401  (the .odc accessor)
import rioxarray
import xarray as xr
from numpy.typing import NDArray

from geoflow.exports.rasters import Made
from geoflow.jobs import figures
from geoflow.jobs.quicklook import colours, quicklook, shown_bands, true_colour
from geoflow.places import local_file

if TYPE_CHECKING:
    from geoflow.exports.source import Source

THUMBNAIL_PX = 512

_ROWS = 512
"""Rows of a file in memory at a time, in whole blocks."""


def draw(made: Made, file: Path, source: Source, path: Path) -> None:
    """Draw a layer with its key, scale bar, north arrow, attribution and dates.

    Of a change, the picture of its ``state`` shows from what to what as well, and needs the files ``from`` and ``to``
    beside it.

    Parameters
    ----------
    made : Made
    file : Path
        Its COG on this machine.
    source : Source
    path : Path
        The PNG; replaced as a whole or not at all.
    """
    layer, title, foot = made.layer, source.title, foot_of(source, made)
    if layer.content == "state":
        before, after = layer.epochs
        figures.draw_change(change_of(made, file, source), source.legend, before, after, title, foot, path)
    elif made.coding is not None:
        legend = source.legend.down_to(made.coding.level)
        figures.draw_classes(opened(made, file), legend, layer.title, title, foot, path)
    elif layer.content == "percent":
        data = xr.Dataset({"confidence": opened(made, file)})
        epochs = "–".join(layer.epochs)
        if layer.kind == "change":
            caption = "Probability that the ground changed"
            figures.draw_confidence({epochs: data}, title, foot, path, "Probability of change", caption)
        else:
            figures.draw_confidence({epochs: data}, title, foot, path)
    else:
        figures.draw_composite(opened(made, file), layer.title, title, foot, path)


def draw_thumbnail(made: Made, file: Path, path: Path) -> None:
    """The layer alone, at most `THUMBNAIL_PX` along its longer side."""
    import matplotlib.image

    array = opened(made, file)
    if made.layer.content == "reflectance":
        image = true_colour(array, THUMBNAIL_PX)[0]
    else:
        image = _coloured(made, quicklook(array, THUMBNAIL_PX)[0])
    about: Any = {"Software": None}  # the same layer gives the same bytes
    with local_file(path) as draft:
        matplotlib.image.imsave(draft, image, format="png", metadata=about)


def stretch_of(made: Made, file: Path) -> dict[str, tuple[float, float]]:
    """Of a composite: the bands to show as red, green and blue, each with its 2nd and 98th percentile."""
    if made.layer.content != "reflectance":
        return {}
    array = opened(made, file).isel(period=0)
    found = {}
    for name in shown_bands(made.raster.bands):
        values = quicklook(array.sel(band=name), THUMBNAIL_PX)[0]
        seen = values[values != made.raster.nodata]
        low, high = np.percentile(seen, (2, 98)) if seen.size else (0.0, 3000.0)
        found[name] = (float(low), float(max(high, low + 1)))
    return found


def opened(made: Made, file: Path) -> xr.DataArray:
    """A COG as an array of the store: class codes again, composites with period and band. Lazy, some rows at a time."""
    array: Any = rioxarray.open_rasterio(file, chunks={"y": _ROWS, "x": -1}, lock=False)
    if made.layer.content == "reflectance":
        named = array.assign_coords(band=list(made.raster.bands))
        return named.expand_dims(period=[made.layer.select["period"]])
    flat = array.isel(band=0, drop=True)
    if made.coding is None:
        return flat
    dtype = made.coding.legend.dtype(made.coding.level)
    return xr.apply_ufunc(made.coding.decode, flat, dask="parallelized", output_dtypes=[dtype], keep_attrs=True)


def change_of(made: Made, file: Path, source: Source) -> xr.Dataset:
    """``change``, ``from_code`` and ``to_code`` of a change, from the files of its layers."""
    from geoflow.exports.coding import Coding

    coding = Coding(source.legend, source.legend.deepest)
    data = {"change": opened(made, file)}
    for name in ("from", "to"):
        beside = file.with_name(file.name.replace("-state.tif", f"-{name}.tif"))
        data[f"{name}_code"] = opened(Made(made.layer, made.raster, coding), beside)
    return xr.Dataset(data)


def foot_of(source: Source, made: Made) -> str:
    """What stands below a picture: attribution, when the scenes are of, when and with what it was made."""
    dates = {epoch: days for epoch in made.layer.epochs if (days := source.dates(epoch))}
    spans = [f"{epoch}: Sentinel-2 scenes of {start} to {end}" for epoch, (start, end) in dates.items()]
    said = f"Made {source.made:%Y-%m-%d} with geoflow {source.version}"
    return "  ·  ".join(part for part in (source.attribution, *spans, said) if part)


def _coloured(made: Made, values: NDArray[Any]) -> NDArray[np.uint8]:
    if made.coding is not None:
        return colours(values, made.coding.legend)
    table = np.zeros((256, 4), np.uint8)
    if made.layer.content == "state":
        for value, colour in made.raster.colours.items():
            table[value] = (*colour, 255)
    else:
        for start, colour in figures.CONFIDENCE_STEPS:
            table[start : made.raster.nodata] = (*colour, 255)
    return table[values]
