"""The labels of rows and columns, and the CRS, as they stand in each group of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from geoflow.store.conventions import COMPRESSOR

if TYPE_CHECKING:
    import xarray as xr

_STANDARD_NAMES = {"y": "projection_y_coordinate", "x": "projection_x_coordinate"}


def axes_of(geobox: GeoBox) -> dict[str, xr.DataArray]:
    """The coordinates of pixel centres, from north to south and west to east, with their CF attributes.

    Returns
    -------
    dict
        ``y`` and ``x``, each of that dimension, float64, in the unit of the CRS.
    """
    import xarray as xr

    coords, axes = xr_coords(geobox), {}
    for dim, standard in _STANDARD_NAMES.items():
        attrs = {"units": coords[dim].attrs.get("units", "metre"), "standard_name": standard, "axis": dim.upper()}
        axes[dim] = xr.DataArray(coords[dim].values, dims=(dim,), attrs=attrs)
    return axes


def ensure_axes(node: zarr.Group, geobox: GeoBox) -> bool:
    """Write coordinates as the grid has them, where they are not there or have other values; True if any was."""
    changed = False
    for dim, labels in axes_of(geobox).items():
        if dim in node and np.array_equal(_read(node, dim), labels.values):
            continue
        array = node.create_array(
            dim,
            shape=labels.shape,
            chunks=labels.shape,
            dtype="float64",
            dimension_names=(dim,),
            compressors=COMPRESSOR,
            attributes=dict(labels.attrs),
            overwrite=True,
        )
        array[:] = labels.values
        changed = True
    reference = xr_coords(geobox)["spatial_ref"]
    if "spatial_ref" not in node or _read(node, "spatial_ref") != int(reference):
        options: dict[str, Any] = {"dtype": "int32", "attributes": dict(reference.attrs), "overwrite": True}
        array = node.create_array("spatial_ref", shape=(), **options)
        array[...] = int(reference)
        changed = True
    return changed


def _read(node: zarr.Group, name: str) -> Any:
    array: Any = node[name]
    return np.asarray(array[...])
