"""Lazy cubes of reflectance on a GeoBox.

stackstac is the default loader, odc-stac the alternative. Both are told everything that they would otherwise infer, and
both read through `geoflow.imagery.read`, so that a pixel does not depend on the loader and a failed read is always a
`SceneError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from odc.geo.geobox import GeoBox

from geoflow.errors import CatalogError, GridError
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.harmonise import offset_of, to_reflectance
from geoflow.imagery.items import Item, asset_href, items_on, sensed
from geoflow.inputs import NODATA, UNIT

if TYPE_CHECKING:
    import xarray as xr

Loader = Literal["stackstac", "odc-stac"]
Chunks = Mapping[str, int | tuple[int, ...]]

_DIMS = ("time", "band", "y", "x")
_DEFAULT_CHUNKS: dict[str, int | tuple[int, ...]] = {"time": 1, "band": 1, "y": 2048, "x": 2048}


def load_cube(
    items: Sequence[Item],
    geobox: GeoBox,
    bands: Sequence[str],
    catalog: Catalog,
    chunks: Chunks | None = None,
    loader: Loader = "stackstac",
) -> xr.DataArray:
    """Reflectance of scenes on a GeoBox, lazily.

    Parameters
    ----------
    items : sequence of dict
        Frozen items, as `geoflow.imagery.search.search` returns them. Those that do not meet the GeoBox are left out.
        Where an item carries no offset decision yet, one is made now, which reads a little of it.
    geobox : GeoBox
        The grid of the result. stackstac needs a CRS with an EPSG code.
    bands : sequence of str
        Band names such as ``B04``, in the order of the result.
    chunks : mapping, optional
        Chunk sizes by dimension (an int, -1 for all, or a tuple of sizes); by default one scene, one band, 2048 pixels.
    loader : "stackstac" or "odc-stac"

    Returns
    -------
    DataArray, int16, dims (time, band, y, x)
        Reflectance x 10000, offset applied, nodata -32768; bilinear where a scene's pixels are not the grid's. One time
        step a scene, in order of the items; two scenes may share a time. Lies on ``geobox`` exactly.

    Raises
    ------
    CatalogError
        If the catalog lacks a band or no item meets the GeoBox.
    SceneError
        If an item lacks an asset; on computing, if a file cannot be read.
    """
    import xarray as xr

    catalog.check_bands(bands)
    near = _near(items, geobox)
    raw = _load(near, geobox, bands, catalog, chunks, loader, np.dtype(np.uint16), "bilinear")
    add = xr.DataArray([offset_of(item, catalog) for item in near], dims="time")
    if raw.chunks is not None:
        add = add.chunk(time=raw.chunksizes["time"])
    cube = xr.apply_ufunc(_harmonise, raw, add, dask="parallelized", output_dtypes=[np.int16])
    return _described(cube.transpose(*_DIMS), geobox, units=UNIT, nodata=NODATA, long_name="surface reflectance")


def load_scl(
    items: Sequence[Item],
    geobox: GeoBox,
    catalog: Catalog,
    chunks: Chunks | None = None,
    loader: Loader = "stackstac",
) -> xr.DataArray:
    """Scene classification of scenes on a GeoBox, lazily.

    Takes the arguments of `load_cube`, and orders and filters the items as it does.

    Returns
    -------
    DataArray, uint8, dims (time, y, x)
        SCL classes 1 to 11, 0 nodata; nearest neighbour.

    Raises
    ------
    CatalogError, SceneError
        As `load_cube`.
    """
    near = _near(items, geobox)
    raw = _load(near, geobox, ("SCL",), catalog, chunks, loader, np.dtype(np.uint8), "nearest")
    scl = raw.isel(band=0, drop=True).transpose("time", "y", "x")
    return _described(scl, geobox, nodata=0, long_name="scene classification")


def _near(items: Sequence[Item], geobox: GeoBox) -> tuple[Item, ...]:
    near = items_on(items, geobox)
    if not near:
        raise CatalogError(f"none of {len(items)} scenes meets the grid {tuple(geobox.boundingbox)} in {geobox.crs}")
    return near


def _harmonise(dn: np.ndarray, add: np.ndarray) -> np.ndarray:
    """`to_reflectance` over leading time steps: dn (..., with time where ``add`` has it)."""
    out = np.empty(dn.shape, np.int16)
    for step, value in enumerate(np.broadcast_to(add, (dn.shape[0], *add.shape[1:])).reshape(dn.shape[0], -1)[:, 0]):
        out[step] = to_reflectance(dn[step], int(value))
    return out


def _load(
    items: Sequence[Item],
    geobox: GeoBox,
    bands: Sequence[str],
    catalog: Catalog,
    chunks: Chunks | None,
    loader: str,
    dtype: np.dtype[Any],
    resampling: str,
) -> xr.DataArray:
    """Digital numbers, dims (time, band, y, x), 0 where there is no data, without attributes."""
    if loader not in get_args(Loader):
        raise CatalogError(f"loader {loader!r} is not known; it is one of {', '.join(get_args(Loader))}")
    unknown = set(chunks or ()) - set(_DIMS)
    if unknown:
        raise GridError(f"chunks for {', '.join(sorted(unknown))}: the dimensions are {', '.join(_DIMS)}")
    links = [{band: asset_href(item, band, catalog) for band in bands} for item in items]
    names = {links[i][band]: (items[i]["id"], band) for i in range(len(items)) for band in bands}
    sizes = {**_DEFAULT_CHUNKS, **(chunks or {})}
    load = _load_stackstac if loader == "stackstac" else _load_odc
    times = [sensed(item) for item in items]
    return load(links, times, geobox, tuple(bands), names, catalog, sizes, dtype, resampling)


def _load_stackstac(
    links: Sequence[Mapping[str, str]],
    times: Sequence[Any],
    geobox: GeoBox,
    bands: tuple[str, ...],
    names: Mapping[str, tuple[str, str]],
    catalog: Catalog,
    chunks: Mapping[str, Any],
    dtype: np.dtype[Any],
    resampling: str,
) -> xr.DataArray:
    import stackstac
    from rasterio.enums import Resampling

    from geoflow.imagery.read import SceneReader

    epsg = None if geobox.crs is None else geobox.crs.epsg
    if epsg is None:
        raise GridError(f"the stackstac loader needs a CRS with an EPSG code, not {geobox.crs}; use loader odc-stac")
    bounds = tuple(geobox.boundingbox)
    # stackstac drops scenes and assets that it believes to lie outside, by corner points alone, which cuts off pixels
    # at the curved edges of a reprojected scene. So each item claims the whole grid, and the reader finds out.
    stand_ins = [
        {
            "id": str(number),
            "type": "Feature",
            "properties": {"datetime": time.isoformat(), "proj:epsg": epsg, "proj:bbox": bounds},
            "assets": {band: {"href": href} for band, href in hrefs.items()},
        }
        for number, (hrefs, time) in enumerate(zip(links, times, strict=True))
    ]
    stack = stackstac.stack(
        stand_ins,
        assets=list(bands),
        epsg=epsg,
        resolution=(geobox.transform.a, -geobox.transform.e),
        bounds=bounds,
        snap_bounds=False,
        resampling=Resampling[resampling],
        chunksize=tuple(chunks[dim] for dim in _DIMS),
        dtype=dtype,
        fill_value=dtype.type(0),
        rescale=False,
        sortby_date=False,
        xy_coords=False,
        properties=False,
        band_coords=False,
        errors_as_nodata=(),
        reader=partial(SceneReader, names=dict(names), signing=catalog.signing, gdal=dict(catalog.gdal)),
    )
    expected = (len(links), len(bands), geobox.shape.y, geobox.shape.x)
    if stack.shape != expected:
        raise GridError(f"stackstac made a cube of {stack.shape} instead of {expected} for {geobox}")
    return _dressed(stack.data, times, bands, geobox)


def _load_odc(
    links: Sequence[Mapping[str, str]],
    times: Sequence[Any],
    geobox: GeoBox,
    bands: tuple[str, ...],
    names: Mapping[str, tuple[str, str]],
    catalog: Catalog,
    chunks: Mapping[str, Any],
    dtype: np.dtype[Any],
    resampling: str,
) -> xr.DataArray:
    import dask.array as da
    import odc.stac

    from geoflow.imagery.odcdriver import SceneDriver, stand_in

    driver = SceneDriver(names=dict(names), signing=catalog.signing, gdal=dict(catalog.gdal), resampling=resampling)
    items = [stand_in(str(n), time, hrefs, geobox) for n, (hrefs, time) in enumerate(zip(links, times, strict=True))]
    size = {dim: chunks[dim] if isinstance(chunks[dim], int) else max(chunks[dim]) for dim in ("y", "x")}
    size = {d: n if n > 0 else max(geobox.shape) for d, n in size.items()}
    # One call a scene: odc-stac groups scenes by time or id and orders them itself; here scene and time step are one.
    cubes = [
        odc.stac.load(
            [item],
            bands=list(bands),
            geobox=geobox,
            groupby="id",
            chunks=size,
            dtype=dtype.name,
            nodata=0,
            resampling=resampling,
            fail_on_error=True,
            driver=driver,
        )
        for item in items
    ]
    data = da.stack([da.stack([cube[band].data[0] for band in bands]) for cube in cubes])
    return _dressed(data.rechunk(tuple(chunks[dim] for dim in _DIMS)), times, bands, geobox)


def _dressed(data: Any, times: Sequence[Any], bands: Sequence[str], geobox: GeoBox) -> xr.DataArray:
    """Dimensions and the coordinates of time and band."""
    import xarray as xr

    stamps = np.array([time.replace(tzinfo=None) for time in times], "datetime64[ns]")
    return xr.DataArray(data, dims=_DIMS, coords={"time": stamps, "band": np.array(bands)})


def _described(array: xr.DataArray, geobox: GeoBox, **attrs: Any) -> xr.DataArray:
    """Coordinates of the GeoBox, the CRS where rioxarray and odc-geo look for it, attributes that can be written."""
    from odc.geo.xr import xr_coords

    placed = array.assign_coords(xr_coords(geobox))
    placed.attrs = attrs
    placed.encoding = {"grid_mapping": "spatial_ref"}
    placed.name = "reflectance" if "units" in attrs else "scl"
    return placed
