"""Cutting layers to a geometry, lazily: what lies outside becomes nodata, block by block, when it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoflow.errors import GridError
from geoflow.explore.geometry import frame_of
from geoflow.explore.layers import geobox_of, mark_derived, store_of, without_extent
from geoflow.mapping.areas import zones_on

if TYPE_CHECKING:
    import geopandas

_BLOCK_PX = 2048  # where a layer has no chunks


def clip_tree(tree: xr.DataTree, geometry: Any, crs: Any = None, all_touched: bool = False) -> xr.DataTree:
    """All layers of a tree within a geometry; see `clip_dataset`."""
    frame, store = frame_of(geometry, crs), store_of(tree)
    clipped = {}
    for node in tree.subtree:
        dataset = node.to_dataset(inherit=False)
        if node.data_vars:
            dataset = _clipped(dataset, frame, all_touched)
            mark_derived(dataset, store)
        path = node.relative_to(tree)
        clipped["/" if path == "." else path] = dataset.assign_attrs({}) if node.data_vars else _bare(dataset)
    return xr.DataTree.from_dict(clipped, name=tree.name)


def clip_dataset(dataset: xr.Dataset, geometry: Any, crs: Any = None, all_touched: bool = False) -> xr.Dataset:
    """Layers within a geometry.

    Parameters
    ----------
    dataset : xr.Dataset, dims (..., y, x)
    geometry, crs
        See `geoflow.explore.geometry.frame_of`; several polygons are one area.
    all_touched : bool
        Keep every pixel that the geometry touches; otherwise those whose centre it holds.

    Returns
    -------
    xr.Dataset, lazy
        The smallest part of the grid that holds the geometry; nodata of each layer outside it. Types, attributes and
        CRS are kept; attributes that tell the full extent are left out.

    Raises
    ------
    GridError
        If the geometry cannot be read or does not meet the layers, or a layer has no value for nodata.
    """
    clipped = _clipped(dataset, frame_of(geometry, crs), all_touched)
    mark_derived(clipped, store_of(dataset))
    return clipped


def _bare(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.copy().drop_attrs(deep=False).assign_attrs(without_extent(dataset.attrs))


def _clipped(dataset: xr.Dataset, frame: geopandas.GeoDataFrame, all_touched: bool) -> xr.Dataset:
    import shapely

    box = geobox_of(dataset)
    _, shapes = zones_on(frame.reset_index(drop=True), None, box)
    area = shapely.union_all(shapes)
    window = _window(box, area)
    part = dataset.isel(y=window[0], x=window[1])
    inner = box[window]
    masks: dict[Any, xr.DataArray] = {}
    layers = {}
    for name, layer in part.data_vars.items():
        if not {"y", "x"} <= set(layer.dims):
            continue
        sizes = _chunks(layer)
        if sizes not in masks:
            inside = _inside(area, inner, sizes, all_touched)
            masks[sizes] = xr.DataArray(inside, dims=("y", "x"), coords={"y": part["y"], "x": part["x"]})
        kept = layer.where(masks[sizes], _nodata(layer)).astype(layer.dtype)
        layers[name] = kept.assign_attrs(layer.attrs)
    clipped = part.assign(layers).drop_attrs(deep=False).assign_attrs(without_extent(dataset.attrs))
    for name in layers:  # what was written of the old extent must not come back on the way to a file
        clipped[name].encoding = {k: v for k, v in dataset[name].encoding.items() if k == "grid_mapping"}
    return _with_transform(clipped, inner)


def _window(box: GeoBox, area: Any) -> tuple[slice, slice]:
    """Rows and columns of the pixels that a geometry in the grid's CRS touches."""
    left, bottom, right, top = area.bounds
    t = box.transform
    height, width = box.shape
    cols = max(0, int(np.floor((left - t.c) / t.a))), min(width, int(np.ceil((right - t.c) / t.a)))
    rows = max(0, int(np.floor((top - t.f) / t.e))), min(height, int(np.ceil((bottom - t.f) / t.e)))
    return slice(*rows), slice(*cols)


def _chunks(layer: xr.DataArray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = layer.chunksizes
    return tuple(  # type: ignore[return-value]
        tuple(sizes.get(dim) or da.core.normalize_chunks(_BLOCK_PX, (layer.sizes[dim],))[0]) for dim in ("y", "x")
    )


def _inside(area: Any, box: GeoBox, chunks: tuple[tuple[int, ...], ...], all_touched: bool) -> da.Array:
    """Whether pixels lie in a geometry: bool, dims (y, x)."""
    return da.map_blocks(
        _inside_block,
        chunks=chunks,
        dtype=bool,
        meta=np.empty((0, 0), bool),
        area=area,
        box=box,
        all_touched=all_touched,
    )


def _inside_block(area: Any, box: GeoBox, all_touched: bool, block_info: Any = None) -> NDArray[np.bool_]:
    import shapely
    from rasterio.features import geometry_mask

    (top, bottom), (left, right) = block_info[None]["array-location"]
    part = box[top:bottom, left:right]
    outline = shapely.box(*part.boundingbox)
    if not shapely.intersects(area, outline):
        return np.zeros(part.shape, bool)
    if shapely.covers(area, outline):
        return np.ones(part.shape, bool)
    return geometry_mask([area], part.shape, part.transform, all_touched=all_touched, invert=True)


def _nodata(layer: xr.DataArray) -> Any:
    value = layer.attrs.get("nodata", layer.attrs.get("_FillValue"))
    if value is None and layer.dtype.kind == "f":
        return np.nan
    if value is None and "flag_values" in layer.attrs:
        return 0
    if value is None:
        raise GridError(f"layer {layer.name!r} has no attribute nodata: it has no value for what lies outside")
    return layer.dtype.type(value)


def _with_transform(dataset: xr.Dataset, box: GeoBox) -> xr.Dataset:
    """With the transform of a part in the CRS coordinate, which rioxarray and GDAL believe more than x and y."""
    from odc.geo.xr import xr_coords

    reference = xr_coords(box)["spatial_ref"]
    return dataset.assign_coords(spatial_ref=reference) if "spatial_ref" in dataset.coords else dataset
