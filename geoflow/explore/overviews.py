"""The coarser copy of a layer that is enough for a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from geoflow.explore.layers import stored
from geoflow.explore.opening import array_store
from geoflow.store.pyramid import OVERVIEWS, overview_path

if TYPE_CHECKING:
    from collections.abc import Iterable


def coarser(dataset: xr.Dataset, path: str, tree: xr.DataTree | None, max_px: int) -> xr.Dataset:
    """The coarsest overview of a group that has at least ``max_px`` pixels along its longer side, or the group itself.

    Parameters
    ----------
    dataset : xr.Dataset
        The group at full resolution.
    path : str
        Of the group in the store.
    tree : DataTree, optional
        The tree that it is of, with its overviews; a store of an older geoflow has none.
    max_px : int
    """
    if tree is None or OVERVIEWS not in tree.children:
        return dataset
    factor = _factor(dataset, tree[OVERVIEWS].children, max_px)
    where = overview_path(factor, path)
    return tree[where].to_dataset() if factor > 1 and _has(tree, where) else dataset


def coarser_layer(layer: xr.DataArray, max_px: int) -> xr.DataArray:
    """As `coarser`, of a layer by itself, if it is a whole array of a store with overviews."""
    at = stored(layer)
    if at is None or max(layer.sizes["y"], layer.sizes["x"]) <= max_px:
        return layer
    import zarr

    store = array_store(at.store)
    root = zarr.open_group(store, mode="r")
    group, _, name = at.path.rpartition("/")
    factors = [key for key, _ in root[OVERVIEWS].groups()] if OVERVIEWS in root else []  # type: ignore[union-attr]
    where = overview_path(_factor(layer, factors, max_px), group)
    if f"{where}/{name}" not in root:
        return layer
    return xr.open_zarr(store, group=where, chunks={}, decode_coords="all", consolidated=None)[name]


def _factor(data: xr.Dataset | xr.DataArray, names: Iterable[Any], max_px: int) -> int:
    longest = max(data.sizes["y"], data.sizes["x"])
    there = [int(name) for name in names if str(name).isdecimal()]
    return max((factor for factor in there if longest // factor >= max_px), default=1)


def _has(tree: xr.DataTree, path: str) -> bool:
    try:
        return bool(tree[path].data_vars)
    except KeyError:
        return False
