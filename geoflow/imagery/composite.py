"""Cloud-free composites: mask with the scene classification, then a median per band over the scenes of a period.

`composite_tile` wraps the kernels of `geoflow.imagery.clearmask` and `geoflow.imagery.kernels` around lazy cubes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoflow.errors import CatalogError
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.clearmask import SCL_MASKED, clear_mask
from geoflow.imagery.items import Item, items_on, sensed
from geoflow.imagery.kernels import median_composite
from geoflow.imagery.load import Loader, Reading, load_cube, load_scl
from geoflow.imagery.read import ReadLog
from geoflow.inputs import NODATA, UNIT

if TYPE_CHECKING:
    import xarray as xr

Method = Literal["median"]


@dataclass(frozen=True)
class Period:
    """A named range of days, both ends included, in UTC."""

    name: str
    start: date
    end: date

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise CatalogError(f"period {self.name} starts on {self.start} and ends before that, on {self.end}")

    def holds(self, item: Item) -> bool:
        """Whether the scene was sensed within the period."""
        return self.start <= sensed(item).date() <= self.end


@dataclass(frozen=True)
class CompositeOptions:
    """How scenes become one composite per period.

    Parameters
    ----------
    periods : tuple of Period
    bands : tuple of str
        Band names in the order of the result.
    scl_masked : tuple of int
        SCL classes that are not used.
    dilate_m : float
        Margin around clouds and shadows, in units of the grid's CRS (metres).
    speck_m : float
        Clouds and shadows narrower than this get no margin, see `clear_mask`.
    method : "median"
    loader : "stackstac" or "odc-stac"
    reading : Reading
        Resampling, fusing of scenes, attempts and timeouts.
    """

    periods: tuple[Period, ...]
    bands: tuple[str, ...]
    scl_masked: tuple[int, ...] = SCL_MASKED
    dilate_m: float = 60.0
    speck_m: float = 50.0
    method: Method = "median"
    loader: Loader = "stackstac"
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        names = [period.name for period in self.periods]
        if not names or len(set(names)) != len(names):
            raise CatalogError(f"periods need different names, and at least one: {names}")
        for name in ("dilate_m", "speck_m"):
            if not 0 <= getattr(self, name) < math.inf:
                raise CatalogError(f"{name} is {getattr(self, name)}; it must be 0 or more metres")
        if any(not 0 <= value <= 11 for value in self.scl_masked):
            raise CatalogError(f"scl_masked is {self.scl_masked}; SCL classes are 0 to 11")
        for name, value, accepted in (
            ("method", self.method, get_args(Method)),
            ("loader", self.loader, get_args(Loader)),
        ):
            if value not in accepted:
                raise CatalogError(f"{name} {value!r} is not known; it is one of {', '.join(accepted)}")


def composite_tile(
    items: Sequence[Item], geobox: GeoBox, options: CompositeOptions, catalog: Catalog, log: ReadLog | None = None
) -> xr.Dataset:
    """Composites of all periods on a GeoBox, lazily.

    Parameters
    ----------
    items : sequence of dict
        Frozen items of any dates and places; each period takes those that it holds and that meet the GeoBox.
    geobox : GeoBox
    log : ReadLog, optional
        Told about reads that failed or had to be tried again.

    Returns
    -------
    Dataset
        ``reflectance``: int16, dims (period, band, y, x), reflectance x 10000, nodata -32768. ``clear``: uint8, dims
        (period, y, x), the number of observations behind each pixel, in the band that has fewest. 0 means that at least
        one band is nodata; where no scene meets the GeoBox, or none is clear, all bands are nodata.

    Raises
    ------
    CatalogError, SceneError
        As `geoflow.imagery.load.load_cube`.
    """
    import xarray as xr
    from odc.geo.xr import xr_coords

    catalog.check_bands(options.bands)
    parts = [_composite_period(items, geobox, period, options, catalog, log) for period in options.periods]
    period = xr.Variable("period", np.array([p.name for p in options.periods]))
    reflectance = xr.concat([p[0] for p in parts], dim="period").assign_coords(period=period)
    clear = xr.concat([p[1] for p in parts], dim="period").assign_coords(period=period)
    reflectance.attrs = {"long_name": "median surface reflectance", "units": UNIT, "nodata": NODATA}
    clear.attrs = {"long_name": "number of clear observations", "units": "1"}
    result = xr.Dataset({"reflectance": reflectance, "clear": clear}).assign_coords(xr_coords(geobox))
    for variable in result.data_vars.values():
        variable.encoding["grid_mapping"] = "spatial_ref"
    return result.transpose("period", "band", "y", "x")


def _composite_period(
    items: Sequence[Item],
    geobox: GeoBox,
    period: Period,
    options: CompositeOptions,
    catalog: Catalog,
    log: ReadLog | None,
) -> tuple[xr.DataArray, xr.DataArray]:
    """(reflectance (band, y, x), clear (y, x)) of one period."""
    import xarray as xr

    chosen = items_on([item for item in items if period.holds(item)], geobox)
    if not chosen:
        return _nothing(geobox, options.bands)
    chunks = {"time": -1, "band": 1, "y": 2048, "x": 2048}
    cube = load_cube(chosen, geobox, options.bands, catalog, chunks, options.loader, options.reading, log)
    clear = _clear(chosen, geobox, options, catalog, cube.chunksizes, log)
    median, count = xr.apply_ufunc(
        _median_last,
        cube,
        clear,
        input_core_dims=[["time"], ["time"]],
        output_core_dims=[[], []],
        dask="parallelized",
        output_dtypes=[np.int16, np.uint8],
        join="override",
    )
    return median, count.min("band")


def _median_last(cube: NDArray[Any], clear: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """`median_composite` with time as the last dimension, where `xarray.apply_ufunc` puts it."""
    first = np.moveaxis(clear, -1, 0)
    first = first.reshape(len(first), *(1,) * (cube.ndim - clear.ndim), *first.shape[1:])
    return median_composite(np.moveaxis(cube, -1, 0), first)


def _clear(
    items: Sequence[Item],
    geobox: GeoBox,
    options: CompositeOptions,
    catalog: Catalog,
    chunks: Any,
    log: ReadLog | None,
) -> xr.DataArray:
    """Clear mask, dims (time, y, x), chunked as the cube.

    Read with a margin, so that a cloud just outside a tile masks the same pixels inside it as in the tile next door.
    """
    dilate_px = math.ceil(options.dilate_m / abs(geobox.transform.a))
    speck_px = round(options.speck_m / abs(geobox.transform.a))
    pad = dilate_px + speck_px if dilate_px else 0
    padded = geobox.pad(pad)
    sizes: dict[str, Any] = {"time": -1}
    for dim in ("y", "x"):
        first, *rest = chunks[dim]
        widened = [first + pad, *rest]
        widened[-1] += pad
        sizes[dim] = tuple(widened)
    scl = load_scl(items, padded, catalog, sizes, options.loader, options.reading, log)
    data = scl.data.map_overlap(
        clear_mask,
        depth={0: 0, 1: pad, 2: pad},
        boundary="none",
        dtype=bool,
        meta=np.empty((0, 0, 0), bool),
        classes=options.scl_masked,
        dilate_px=dilate_px,
        speck_px=speck_px,
    )
    height, width = geobox.shape
    inner = data[:, pad : pad + height, pad : pad + width]
    return scl.isel(y=slice(pad, pad + height), x=slice(pad, pad + width)).copy(data=inner)


def _nothing(geobox: GeoBox, bands: tuple[str, ...]) -> tuple[xr.DataArray, xr.DataArray]:
    """What a period without a single scene looks like: nodata, and a count of 0."""
    import dask.array as da
    import xarray as xr

    height, width = geobox.shape
    values = da.full((len(bands), height, width), NODATA, dtype=np.int16, chunks=(1, 2048, 2048))
    count = da.zeros((height, width), dtype=np.uint8, chunks=(2048, 2048))
    reflectance = xr.DataArray(values, dims=("band", "y", "x"), coords={"band": np.array(bands)})
    return reflectance, xr.DataArray(count, dims=("y", "x"))
