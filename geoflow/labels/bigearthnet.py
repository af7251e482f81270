"""The pixels of one patch of BigEarthNet: twelve bands of 10, 20 and 60 m on one grid of 10 m.

A patch is a folder ``NAME/`` with ``NAME_B01.tif`` .. ``NAME_B12.tif`` (120, 60 or 20 pixels wide, by the band's own
resolution). Its values are reflectance x 10000 without an offset, as in every product before processing baseline 04.00
(BigEarthNet is of 2017 and 2018), so they are in the unit of a cube as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import LabelError
from geoflow.inputs import BANDS, NODATA
from geoflow.labels.patchtiff import Place, enlarge, enlarge_with_gdal, read_raster

PATCH_PX = 120
"""Width and height of a patch at 10 m."""

NATIVE_PX = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 120),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 60),
    **dict.fromkeys(("B01", "B09"), 20),
}
"""Width and height of each band's file."""


def read_patch(folder: str | Path, bands: Sequence[str]) -> NDArray[np.int16]:
    """The pixels of one patch.

    Parameters
    ----------
    folder : path
    bands : sequence of str
        ``"B01"`` .. ``"B12"``, ``"B8A"``; the order of the result.

    Returns
    -------
    int16, dims (band, y, x), 120 x 120
        Reflectance x 10000 (32767 at most); bands of 20 and 60 m are interpolated bilinearly, by the rule of
        `geoflow.labels.patchtiff.enlarge`. A pixel that is 0 in every band is nodata, -32768.

    Raises
    ------
    LabelError
        If a band is unknown, or its file is missing, damaged, of another size than BigEarthNet's, or holds a nodata
        value other than 0.
    """
    return read_pixels(str(folder), Path(folder).name, bands)[0]


def read_pixels(folder: str, name: str, bands: Sequence[str]) -> tuple[NDArray[np.int16], Place]:
    """`read_patch` of the files ``NAME_<band>.tif``, and where the first of them says that the patch lies."""
    values = np.empty((len(bands), PATCH_PX, PATCH_PX), np.uint16)
    coarse: dict[int, list[tuple[int, NDArray[np.uint16]]]] = {}
    place: Place | None = None
    for i, band in enumerate(bands):
        side = NATIVE_PX.get(band)
        if side is None:
            raise LabelError(f"BigEarthNet has no band {band!r}; it has {', '.join(BANDS)}")
        path = f"{folder}/{name}_{band}.tif"
        raster = read_raster(path, side)
        place = place or raster.place
        if raster.nodata and (raster.values == raster.nodata).any():
            count = int((raster.values == raster.nodata).sum())
            raise LabelError(
                f"{path}: {count} pixels hold {raster.nodata}, tagged as nodata; in BigEarthNet that is 0. Write "
                "the patch again with 0 there, or leave it out"
            )
        if side == PATCH_PX:
            values[i] = raster.values
        elif raster.nodata is not None and (raster.values == raster.nodata).any():
            values[i] = enlarge_with_gdal(path, PATCH_PX)
        else:
            coarse.setdefault(side, []).append((i, raster.values))
    for side, found in coarse.items():
        values[[i for i, _ in found]] = enlarge(np.stack([v for _, v in found]), PATCH_PX // side)
    cube = np.minimum(values, np.iinfo(np.int16).max).astype(np.int16)
    if not values.all():
        cube[:, (values == 0).all(axis=0)] = NODATA
    return cube, place or Place(0, np.nan, np.nan)
