"""The national Zarr store: creating groups on the grid, writing tiles, opening it again.

Arrays are made with zarr's own interface rather than ``to_zarr``: every name, chunk, codec and attribute is then stated
in one place, and a tile task only ever writes numbers. Choices that someone would question are in
docs/decisions/0002-zarr-layout.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geoflow.errors import StoreError
from geoflow.grid import Grid, Tile
from geoflow.places import entries, whole_array, zarr_store
from geoflow.stopwatch import WRITE, spending
from geoflow.store.axes import ensure_axes
from geoflow.store.conventions import COMPRESSOR, place_attributes

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1
"""Version of the layout; a store of a newer one is refused rather than misread."""


@dataclass(frozen=True)
class Variable:
    """One array to be on the grid.

    Parameters
    ----------
    name : str
    dtype : str
        For example ``"uint8"``.
    nodata : int
        Fill value, and what a reader takes as "not observed".
    leading : tuple of str
        Dimensions before ``y, x``, for example ``("period", "band")``.
    attrs : mapping
        CF attributes (``long_name``, ``units``, ``flag_values``...).
    """

    name: str
    dtype: str
    nodata: int
    leading: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A group of the store: its path, its variables and the labels of their leading dimensions."""

    path: str
    variables: tuple[Variable, ...]
    coords: Mapping[str, Sequence[str]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """A national store opened for writing.

    Parameters
    ----------
    path : Path
        The ``.zarr`` folder.
    grid : Grid
        The one grid that all groups lie on.
    """

    def __init__(self, path: Path, grid: Grid) -> None:
        self.path = path
        self.grid = grid

    @classmethod
    def create(cls, path: Path, grid: Grid) -> Store:
        """Create the store, or open it again if it lies on the same grid.

        Raises
        ------
        StoreError
            If ``path`` holds something else: another grid, a newer format, or no store of geoflow's.
        """
        if any(entries(path)):
            found, wanted = read_description(path), describe_grid(grid)
            if found["grid"] != wanted:
                raise StoreError(
                    f"{path} lies on another grid: it has {found['grid']}, the job wants {wanted}; "
                    "give the job another output folder (--out)"
                )
        else:
            zarr.open_group(zarr_store(path), mode="w", zarr_format=3, attributes=_root_attributes(grid))
        return cls(path, grid)

    @classmethod
    def restore(cls, path: Path, grid: Grid) -> Store:
        """Describe a store anew whose root metadata are lost; groups, arrays and chunks stay."""
        zarr.open_group(zarr_store(path), mode="a", zarr_format=3, attributes=_root_attributes(grid))
        return cls(path, grid)

    def ensure_group(self, group: Group) -> None:
        """Create a group's arrays, filled with nodata, unless they are there already.

        Metadata that were lost are made again; the chunks of an array are never touched.

        Raises
        ------
        StoreError
            If an array of that name exists with another dtype, shape or chunk size.
        """
        self.ensure_groups([group])

    def ensure_groups(self, groups: Iterable[Group]) -> None:
        """`ensure_group` for several, whose metadata are gathered at the root once."""
        changed = [self._ensure_one(group) for group in groups]
        if any(changed):
            consolidate(self.path)

    def _ensure_one(self, group: Group) -> bool:
        """Whether the metadata of the group had to be changed."""
        root, parts = zarr.open_group(zarr_store(self.path), mode="a", use_consolidated=False), group.path.split("/")
        lost = [not self.has("/".join(parts[:depth])) for depth in range(1, len(parts) + 1)]
        for depth in range(1, len(parts) + 1):  # each by itself: zarr makes no parent of a group that is there
            root.require_group("/".join(parts[:depth]))
        # The consolidated list is of the last run, and this one may add to the group.
        node = zarr.open_group(zarr_store(self.path), mode="a", path=group.path, use_consolidated=False)
        changed = _update_attrs(node, group.attrs) or any(lost)
        sizes = {dim: len(labels) for dim, labels in group.coords.items()}
        for dim, labels in group.coords.items():
            changed |= _ensure_labels(node, dim, labels)
        changed |= ensure_axes(node, self.grid.geobox)
        changed |= _update_attrs(node, place_attributes(self.grid))
        for variable in group.variables:
            changed |= self._ensure_variable(node, variable, sizes)
        return changed

    def _ensure_variable(self, node: zarr.Group, variable: Variable, sizes: Mapping[str, int]) -> bool:
        leading = tuple(sizes[dim] for dim in variable.leading)
        shape = (*leading, *self.grid.shape)
        # One band of one period a chunk: a reader of one band never decodes the others.
        chunks = (*(1 for _ in leading), *(min(self.grid.chunk, size) for size in self.grid.shape))
        # `_CRS` is what GDAL looks for when it opens the array by itself, without its group.
        crs = {"grid_mapping": "spatial_ref", "_CRS": {"wkt": CRS(str(self.grid.geobox.crs)).wkt}}
        attrs = {**variable.attrs, **crs, **place_attributes(self.grid), "nodata": variable.nodata}
        if variable.name in node:
            array = _array(node, variable.name)
            found = (array.shape, array.chunks, str(array.dtype), int(array.fill_value))
            wanted = (shape, chunks, variable.dtype, variable.nodata)
            if found != wanted:
                raise StoreError(
                    f"{self.path}/{array.path} has shape, chunks, dtype and nodata {found}, the job wants "
                    f"{wanted}; give the job another output folder (--out)"
                )
            return _update_attrs(array, attrs)
        node.create_array(
            variable.name,
            shape=shape,
            chunks=chunks,
            dtype=variable.dtype,
            fill_value=variable.nodata,
            dimension_names=(*variable.leading, "y", "x"),
            compressors=COMPRESSOR,
            attributes=attrs,
        )
        return True

    def drop(self, group: str, variable: str, attribute: str) -> None:
        """Remove a variable and an attribute that an earlier run left in a group, where they are."""
        if not self.has(group):
            return
        node = zarr.open_group(zarr_store(self.path), mode="a", path=group, use_consolidated=False)
        if variable in node:
            del node[variable]
            attrs = node.attrs.asdict()
            attrs.pop(attribute, None)
            node.attrs.put(attrs)
            consolidate(self.path)

    def coarser(self, factor: int) -> Store:
        """The same store, for its groups on a grid ``factor`` times as coarse."""
        return Store(self.path, self.grid.coarser(factor))

    def described(self, group: str) -> Group:
        """What a group holds, as it was made: names, dtypes, nodata, labels and attributes.

        Raises
        ------
        StoreError
            If there is no such group.
        """
        if not self.has(group):
            raise StoreError(f"{self.path} has no group {group!r}")
        node = zarr.open_group(zarr_store(self.path), mode="r", path=group, use_consolidated=False)
        arrays = {name: array for name, array in node.arrays() if name not in ("x", "y", "spatial_ref")}
        labels = {n: a for n, a in arrays.items() if _dims(a) == (n,)}
        variables = tuple(_variable(name, arrays[name]) for name in sorted(arrays.keys() - labels.keys()))
        coords = {name: [str(label) for label in np.asarray(array[:])] for name, array in sorted(labels.items())}
        return Group(group, variables, coords, _own(node.attrs.asdict()))

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes of the root, where they differ."""
        if _update_attrs(zarr.open_group(zarr_store(self.path), mode="r+", use_consolidated=False), attributes):
            consolidate(self.path)

    def write(self, group: str, tile: Tile, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write one tile of some variables.

        Parameters
        ----------
        group : str
            Path of the group.
        tile : Tile
            Whose pixels; on chunk borders by construction.
        arrays : mapping of name -> array, dims (..., y, x)
            Of exactly the tile's shape and the variable's dtype.

        Raises
        ------
        StoreError
            If an array has another shape or dtype than the variable.
        """
        with spending(WRITE):
            for name, values in arrays.items():
                target = whole_array(self.path, f"{group}/{name}")
                wanted = (*target.shape[:-2], *tile.shape)
                if values.shape != wanted or values.dtype != target.dtype:
                    raise StoreError(
                        f"{group}/{name}, tile {tile.id}: got {values.dtype} {values.shape}, "
                        f"the store wants {target.dtype} {wanted}"
                    )
                target[..., tile.y, tile.x] = values

    def chunk_files(self, group: str, names: Sequence[str], tile: Tile) -> list[Path]:
        """The chunk files that hold a tile, in a fixed order, whether they exist or not."""
        node = zarr.open_group(zarr_store(self.path), mode="r", path=group, use_consolidated=False)
        files = []
        for name in names:
            array = _array(node, name)
            size_y, size_x = array.chunks[-2:]
            rows = range(tile.y.start // size_y, -(-tile.y.stop // size_y))
            cols = range(tile.x.start // size_x, -(-tile.x.stop // size_x))
            for lead in np.ndindex(*array.shape[:-2]):
                keys = ("/".join(map(str, (*lead, r, c))) for r in rows for c in cols)
                files += [self.path / group / name / "c" / key for key in keys]
        return files

    def nodata(self, group: str, names: Sequence[str]) -> dict[str, Any]:
        """The value of each variable that means "not observed"."""
        node = zarr.open_group(zarr_store(self.path), mode="r", path=group, use_consolidated=False)
        return {name: _array(node, name).fill_value for name in names}

    def has(self, group: str) -> bool:
        """Whether the group exists."""
        return (self.path / group / "zarr.json").is_file()

    def dataset(self, group: str, dask: bool = True) -> xr.Dataset:
        """A group, lazily, with its CRS as a coordinate.

        Parameters
        ----------
        group : str
        dask : bool
            True gives Dask arrays, chunked as stored; False arrays that are read where they are sliced, in that thread.

        Raises
        ------
        StoreError
            If there is no such group.
        """
        import xarray as xr

        if not self.has(group):
            raise StoreError(f"{self.path} has no group {group!r}")
        chunks: dict[str, int] | None = {} if dask else None
        return xr.open_zarr(zarr_store(self.path), group=group, consolidated=False, chunks=chunks, decode_coords="all")


def open_for_writing(path: Path) -> Store:
    """The store that `Store.create` made, on the grid that it says it lies on."""
    return Store(path, grid_from_description(read_description(path)["grid"]))


def describe_grid(grid: Grid) -> dict[str, Any]:
    """Plain values from which `grid_from_description` makes the same grid again."""
    t = grid.geobox.transform
    return {
        "crs": str(grid.geobox.crs),
        "transform": [t.a, t.b, t.c, t.d, t.e, t.f],
        "shape": list(grid.shape),
        "tile": grid.tile,
        "chunk": grid.chunk,
    }


def grid_from_description(described: Mapping[str, Any]) -> Grid:
    """The inverse of `describe_grid`."""
    from affine import Affine

    geobox = GeoBox(tuple(described["shape"]), Affine(*described["transform"]), described["crs"])
    return Grid(geobox, described["tile"], described["chunk"])


def consolidate(path: Path) -> None:
    """Gather the metadata of all groups at the root, so that opening the store is one read."""
    with warnings.catch_warnings():
        # Zarr v3 has no text for consolidated metadata yet; zarr-python, xarray and OpenLayers read it all the same.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(zarr_store(path))


def _root_attributes(grid: Grid) -> dict[str, Any]:
    return {"geoflow": {"format": FORMAT, "grid": describe_grid(grid)}, "Conventions": "CF-1.11"}


def read_description(path: Path) -> dict[str, Any]:
    """What the root of the store in a folder says of itself: its layout's version, and its grid.

    Raises
    ------
    StoreError
        If there is no store of geoflow's, or one of a newer geoflow.
    """
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path} is not a Zarr store that geoflow made; a run writes OUT/country.zarr")
    return check_description(zarr.open_group(zarr_store(path), mode="r", use_consolidated=False).attrs.asdict(), path)


def check_description(attributes: Any, where: str | Path) -> dict[str, Any]:
    """What the root of a store says of itself.

    Raises
    ------
    StoreError
        If it is no store of geoflow's, or one of a newer geoflow.
    """
    described = attributes.get("geoflow") if isinstance(attributes, dict) else None
    if not isinstance(described, dict) or "grid" not in described:
        raise StoreError(f"{where} is a Zarr store, but not one that geoflow made")
    if described.get("format", 0) > FORMAT:
        raise StoreError(f"{where} has layout {described['format']}, this geoflow reads up to {FORMAT}: update geoflow")
    return described


def _array(node: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of a group; a group of that name is not one of ours."""
    found = node[name]
    if not isinstance(found, zarr.Array):
        raise StoreError(f"{node.path}/{name} is a group, not an array: geoflow did not make it")
    return found


def _variable(name: str, array: zarr.Array[Any]) -> Variable:
    """An array as it was described when it was made."""
    return Variable(name, str(array.dtype), int(array.fill_value), _dims(array)[:-2], _own(array.attrs.asdict()))


def _dims(array: zarr.Array[Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in getattr(array.metadata, "dimension_names", None) or ())


def _own(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes less those that the grid gives."""
    given = ("grid_mapping", "_CRS", "nodata", "zarr_conventions")
    return {k: v for k, v in attrs.items() if k not in given and not k.startswith(("spatial:", "proj:"))}


def _update_attrs(node: zarr.Group | zarr.Array, attrs: Mapping[str, Any]) -> bool:
    """Set the attributes that differ; an attribute that is already right is not written again."""
    found = node.attrs.asdict()
    new = {key: value for key, value in attrs.items() if found.get(key) != value}
    if new:
        node.attrs.update(new)
    return bool(new)


def _ensure_labels(node: zarr.Group, dim: str, labels: Sequence[str]) -> bool:
    if dim in node:
        found = [str(v) for v in np.asarray(_array(node, dim)[:])]
        if found != list(labels):
            raise StoreError(f"{node.path}/{dim} is {found}, the job wants {list(labels)}; use another output (--out)")
        return False
    array = node.create_array(dim, shape=(len(labels),), chunks=(len(labels),), dtype=str, dimension_names=(dim,))
    array[:] = np.array(labels, dtype=object)
    return True
