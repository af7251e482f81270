"""Lazy cubes of reflectance on a GeoBox.

stackstac is the default loader, odc-stac the alternative. Both are told everything that they would otherwise infer, and
both read through `geoflow.imagery.read`, so that a pixel does not depend on the loader and a failed read is always a
`SceneError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoflow.errors import CatalogError, GridError
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.harmonise import offset_of
from geoflow.imagery.items import Item, asset_href, granule_of, items_on, sensed
from geoflow.imagery.read import Access, ReadLog, SceneFile
from geoflow.imagery.resample import Resampling
from geoflow.inputs import NODATA, UNIT

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

Loader = Literal["stackstac", "odc-stac"]
Chunks = Mapping[str, int | tuple[int, ...]]

_DIMS = ("time", "band", "y", "x")
_DEFAULT_CHUNKS: dict[str, int | tuple[int, ...]] = {"time": 1, "band": 1, "y": 2048, "x": 2048}


@dataclass(frozen=True)
class Reading:
    """How scenes are read onto a grid.

    Parameters
    ----------
    resampling : "nearest", "bilinear" or "cubic"
        Of reflectance, where a scene's pixels are not the grid's; the scene classification is always nearest.
    fuse : bool
        Scenes of one datatake (one pass of one satellite, cut into tiles that overlap) become one time step: a pixel is
        that of the first of them that has data. Otherwise each scene is a time step of its own.
    attempts : int
        How often a remote file is tried.
    timeout_s : float
        Seconds that one request may take.

    Raises
    ------
    CatalogError
        If a value is not one of these.
    """

    resampling: Resampling = "bilinear"
    fuse: bool = True
    attempts: int = 3
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.resampling not in get_args(Resampling):
            known = ", ".join(get_args(Resampling))
            raise CatalogError(f"resampling {self.resampling!r} is not known; it is one of {known}")
        if self.attempts < 1 or not 0 < self.timeout_s < float("inf"):
            raise CatalogError(f"{self.attempts} attempts of {self.timeout_s} s: there must be one of some length")


@dataclass(frozen=True)
class _Request:
    """Everything that a loader is told: one link for each scene and band, in order, and how to read the files."""

    links: tuple[Mapping[str, str], ...]
    files: Mapping[str, SceneFile]
    times: tuple[Any, ...]
    geobox: GeoBox
    bands: tuple[str, ...]
    chunks: Mapping[str, Any]
    resampling: Resampling
    access: Access
    log: ReadLog | None
    dtype: np.dtype[Any]
    nodata: int


def load_cube(
    items: Sequence[Item],
    geobox: GeoBox,
    bands: Sequence[str],
    catalog: Catalog,
    chunks: Chunks | None = None,
    loader: Loader = "stackstac",
    reading: Reading = Reading(),
    log: ReadLog | None = None,
) -> xr.DataArray:
    """Reflectance of scenes on a GeoBox, lazily.

    Parameters
    ----------
    items : sequence of dict
        Frozen items, as `geoflow.imagery.search.search` returns them. Those that do not meet the GeoBox are left out.
        Where an item carries no offset decision yet, one is made now, which reads a little of it.
    geobox : GeoBox
        The grid of the result, north up. stackstac needs a CRS with an EPSG code.
    bands : sequence of str
        Band names such as ``B04``, in the order of the result.
    chunks : mapping, optional
        Chunk sizes by dimension (an int, -1 for all, or a tuple of sizes); by default one time step, one band, 2048
        pixels. A pixel does not depend on them.
    loader : "stackstac" or "odc-stac"
    reading : Reading
        Resampling, fusing of scenes, attempts and timeouts.
    log : ReadLog, optional
        Told about reads that failed or had to be tried again, when the cube is computed.

    Returns
    -------
    DataArray, int16, dims (time, band, y, x)
        Reflectance x 10000, offset applied, nodata -32768. One time step a datatake (see `time_steps`), at the time of
        its first scene; two may share a time. Lies on ``geobox`` exactly.

    Raises
    ------
    CatalogError
        If the catalog lacks a band or no item meets the GeoBox.
    SceneError
        If an item lacks an asset; on computing, `geoflow.imagery.read.ReadError` if a file cannot be read.
    """
    catalog.check_bands(bands)
    near = _near(items, geobox)
    steps = time_steps(near, reading.fuse)
    sizes = _sizes(chunks, len(steps))
    cube = _load(near, steps, geobox, bands, catalog, sizes, loader, reading, log)
    cube = _fused(cube, steps, sizes["time"], NODATA)
    return _described(cube, geobox, units=UNIT, nodata=NODATA, long_name="surface reflectance")


def load_scl(
    items: Sequence[Item],
    geobox: GeoBox,
    catalog: Catalog,
    chunks: Chunks | None = None,
    loader: Loader = "stackstac",
    reading: Reading = Reading(),
    log: ReadLog | None = None,
) -> xr.DataArray:
    """Scene classification of scenes on a GeoBox, lazily.

    Takes the arguments of `load_cube`, and orders, filters and fuses the items as it does.

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
    steps = time_steps(near, reading.fuse)
    sizes = _sizes(chunks, len(steps))
    scl = _load(near, steps, geobox, ("SCL",), catalog, sizes, loader, replace(reading, resampling="nearest"), log)
    scl = _fused(scl.isel(band=0, drop=True).transpose("time", "y", "x"), steps, sizes["time"], 0)
    return _described(scl, geobox, nodata=0, long_name="scene classification")


def time_steps(items: Sequence[Item], fuse: bool = True) -> tuple[tuple[int, ...], ...]:
    """The time steps of a cube, each as the positions of its items, of which an earlier one goes before a later one.

    Parameters
    ----------
    items : sequence of dict
        Those that meet the grid, see `geoflow.imagery.items.items_on`.
    fuse : bool
        Items of one datatake make one step; the steps are in order of their first items. Else each item is a step.
    """
    if not fuse:
        return tuple((i,) for i in range(len(items)))
    takes: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        takes.setdefault(granule_of(item)[0], []).append(i)
    return tuple(tuple(members) for members in takes.values())


def _near(items: Sequence[Item], geobox: GeoBox) -> tuple[Item, ...]:
    near = items_on(items, geobox)
    if not near:
        raise CatalogError(f"none of {len(items)} scenes meets the grid {tuple(geobox.boundingbox)} in {geobox.crs}")
    return near


def _sizes(chunks: Chunks | None, steps: int) -> dict[str, Any]:
    """Chunk sizes of every dimension, those of time as a tuple."""
    import dask.array as da

    unknown = set(chunks or ()) - set(_DIMS)
    if unknown:
        raise GridError(f"chunks for {', '.join(sorted(unknown))}: the dimensions are {', '.join(_DIMS)}")
    sizes: dict[str, Any] = {**_DEFAULT_CHUNKS, **(chunks or {})}
    sizes["time"] = da.core.normalize_chunks((sizes["time"],), (steps,))[0]
    return sizes


def _fused(array: xr.DataArray, steps: Sequence[Sequence[int]], sizes: tuple[int, ...], nodata: int) -> xr.DataArray:
    """Scenes to time steps; the array's chunks hold the scenes of so many whole steps each."""
    import dask.array as da

    counts = [len(step) for step in steps]
    if max(counts) == 1:
        return array
    parts, first = [], 0
    for start, stop in pairwise([0, *np.cumsum(sizes).tolist()]):
        part = array.data[first : first + sum(counts[start:stop])]
        first += part.shape[0]
        if max(counts[start:stop]) > 1:
            shape = ((stop - start,), *part.chunks[1:])
            kinds = {"dtype": array.dtype, "meta": np.empty((0,) * array.ndim, array.dtype)}
            part = part.map_blocks(first_valid, counts=tuple(counts[start:stop]), nodata=nodata, chunks=shape, **kinds)
        parts.append(part)
    firsts = np.cumsum([0, *counts[:-1]])
    return array.isel(time=firsts).copy(data=da.concatenate(parts))


def first_valid(scenes: NDArray[Any], counts: Sequence[int], nodata: int) -> NDArray[Any]:
    """Scenes fused into time steps.

    Parameters
    ----------
    scenes : array, dims (scene, ...)
    counts : sequence of int
        Scenes of each step, in order.
    nodata : int

    Returns
    -------
    array of the same dtype, dims (step, ...)
        The value of the first scene of the step that has one, else nodata.
    """
    out = np.empty((len(counts), *scenes.shape[1:]), scenes.dtype)
    first = 0
    for step, count in enumerate(counts):
        out[step] = scenes[first]
        for following in scenes[first + 1 : first + count]:
            np.copyto(out[step], following, where=out[step] == nodata)
        first += count
    return out


def _load(
    items: Sequence[Item],
    steps: Sequence[Sequence[int]],
    geobox: GeoBox,
    bands: Sequence[str],
    catalog: Catalog,
    sizes: Mapping[str, Any],
    loader: str,
    reading: Reading,
    log: ReadLog | None,
) -> xr.DataArray:
    """Pixels of the scenes of all steps, dims (time, band, y, x), one time for each scene, without attributes."""
    if loader not in get_args(Loader):
        raise CatalogError(f"loader {loader!r} is not known; it is one of {', '.join(get_args(Loader))}")
    ordered = [items[i] for step in steps for i in step]
    links = tuple({band: asset_href(item, band, catalog) for band in bands} for item in ordered)
    scl = tuple(bands) == ("SCL",)
    add = [None if scl else offset_of(item, catalog) for item in ordered]
    counts = np.cumsum([0, *(len(step) for step in steps)])
    ends = np.cumsum([0, *sizes["time"]])
    of_scenes = tuple(int(counts[b] - counts[a]) for a, b in pairwise(ends))
    request = _Request(
        links=links,
        files={
            href: SceneFile(href, item["id"], band, offset)
            for item, hrefs, offset in zip(ordered, links, add, strict=True)
            for band, href in hrefs.items()
        },
        times=tuple(sensed(item) for item in ordered),
        geobox=geobox,
        bands=tuple(bands),
        chunks={**sizes, "time": of_scenes},
        resampling=reading.resampling,
        access=Access.of(catalog, reading.attempts, reading.timeout_s),
        log=log,
        dtype=np.dtype(np.uint8 if scl else np.int16),
        nodata=0 if scl else NODATA,
    )
    data = _load_stackstac(request) if loader == "stackstac" else _load_odc(request)
    return _dressed(data, request.times, request.bands)


def _load_stackstac(request: _Request) -> da.Array:
    import stackstac
    from rasterio.enums import Resampling as GdalResampling

    from geoflow.imagery.read import SceneReader

    geobox = request.geobox
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
        for number, (hrefs, time) in enumerate(zip(request.links, request.times, strict=True))
    ]
    stack = stackstac.stack(
        stand_ins,
        assets=list(request.bands),
        epsg=epsg,
        resolution=(geobox.transform.a, -geobox.transform.e),
        bounds=bounds,
        snap_bounds=False,
        resampling=GdalResampling[request.resampling],
        chunksize=tuple(request.chunks[dim] for dim in _DIMS),
        dtype=request.dtype,
        fill_value=request.dtype.type(request.nodata),
        rescale=False,
        sortby_date=False,
        xy_coords=False,
        properties=False,
        band_coords=False,
        errors_as_nodata=(),
        reader=partial(SceneReader, files=dict(request.files), access=request.access, log=request.log),
    )
    expected = (len(request.links), len(request.bands), geobox.shape.y, geobox.shape.x)
    if stack.shape != expected:
        raise GridError(f"stackstac made a cube of {stack.shape} instead of {expected} for {geobox}")
    return stack.data


def _load_odc(request: _Request) -> da.Array:
    import dask.array as da
    import odc.stac

    from geoflow.imagery.odcdriver import SceneDriver, stand_in

    geobox, chunks = request.geobox, request.chunks
    driver = SceneDriver(dict(request.files), request.access, request.resampling, request.log)
    items = [
        stand_in(str(n), time, hrefs, geobox)
        for n, (hrefs, time) in enumerate(zip(request.links, request.times, strict=True))
    ]
    size = {dim: chunks[dim] if isinstance(chunks[dim], int) else max(chunks[dim]) for dim in ("y", "x")}
    size = {d: n if n > 0 else max(geobox.shape) for d, n in size.items()}
    # One call a scene: odc-stac groups scenes by time or id and orders them itself; here scene and time step are one.
    cubes = [
        odc.stac.load(
            [item],
            bands=list(request.bands),
            geobox=geobox,
            groupby="id",
            chunks=size,
            dtype=request.dtype.name,
            nodata=request.nodata,
            resampling=request.resampling,
            fail_on_error=True,
            driver=driver,
        )
        for item in items
    ]
    data = da.stack([da.stack([cube[band].data[0] for band in request.bands]) for cube in cubes])
    return data.rechunk(tuple(chunks[dim] for dim in _DIMS))


def _dressed(data: Any, times: Sequence[Any], bands: Sequence[str]) -> xr.DataArray:
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
