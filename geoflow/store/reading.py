"""Opening the national store for reading, with xarray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.places import place, zarr_store
from geoflow.store.axes import axes_of
from geoflow.store.pyramid import grid_of
from geoflow.store.zarr import grid_from_description, read_description

if TYPE_CHECKING:
    import xarray as xr


def open_store(path: str | Path) -> xr.DataTree:
    """Open a national store for reading.

    Parameters
    ----------
    path : str or Path
        The ``country.zarr`` that a run made, or the run's output folder.

    Returns
    -------
    DataTree
        Lazy, chunked as stored; groups ``imagery/<epoch>``, ``labels/<name>``, ``map/<epoch>``, ``change/<a>-<b>``.

    Raises
    ------
    StoreError
        If there is no such store, or a newer geoflow made it.
    """
    folder = place(path)
    if (folder / "country.zarr" / "zarr.json").is_file():
        folder = folder / "country.zarr"
    return open_tree(zarr_store(folder), read_description(folder))


def open_tree(target: Any, described: Mapping[str, Any], consolidated: bool | None = None) -> xr.DataTree:
    """Open a store whose description is known.

    The labels of rows and columns are computed from the grid, not read: each group has two arrays of them, and a
    national store with its overviews a hundred groups, each of which would be a request to a server.

    Parameters
    ----------
    target : zarr store
    described : mapping
        What `geoflow.store.zarr.check_description` gives.
    consolidated : bool, optional
        As xarray takes it.
    """
    import rioxarray  # noqa: F401  (readers expect .rio to be there)
    import xarray as xr

    grid = grid_from_description(described["grid"])
    # Without its format zarr would ask for the files of the older one, too.
    how: dict[str, Any] = {"zarr_format": 3, "consolidated": consolidated, "chunks": {}, "decode_coords": "all"}
    tree = xr.open_datatree(target, engine="zarr", drop_variables=["y", "x"], **how)
    for node in tree.subtree:
        if {"y", "x"} <= set(node.sizes):
            axes = axes_of(grid_of(grid, node.path.strip("/")).geobox)
            node.dataset = node.to_dataset(inherit=False).assign_coords(axes)
    return tree
