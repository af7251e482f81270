"""A store of patches as an xarray Dataset, for notebooks: small things at once, pixels and labels when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geoflow.errors import LabelError
from geoflow.labels.patchlabels import SCHEMES
from geoflow.labels.patchstore import ATTRIBUTE, PatchStore, read_store
from geoflow.labels.splits import SPLIT_NAMES, split_code

if TYPE_CHECKING:
    import xarray as xr

_TEXTS = ("name", "v1_name", "country", "band")
_FACTS = ("name", "v1_name", "country", "date", "snow", "cloud", "epsg", "left", "top")


def open_patches(path: str | Path, part: str | None = None, split: str | None = None) -> xr.Dataset:
    """Open a store that ``geoflow bigearthnet SRC OUT.zarr`` made.

    Parameters
    ----------
    path : path
    part : str, optional
        Only this part of the split: ``train``, ``validation`` or ``test``.
    split : str, optional
        ``random``, ``squares``, ``official`` or ``user``; the store's own default without.

    Returns
    -------
    Dataset, with only the patches that were read, in the store's random order
        ``cube`` int16 (patch, band, y, x), reflectance x 10000, nodata -32768; ``reference_map`` uint16 (patch, y, x),
        CLC level-3 codes, 0 is nodata, where there are reference maps; ``label_level1``, ``_level2``, ``_level3`` and
        ``_nineteen`` uint8 (patch, <scheme>_code), 255 where not known. These are Dask arrays, a chunk of the store
        each. ``name`` (an index: ``data.sel(name=...)``), ``date``, ``country``, ``epsg``, ``left``, ``top`` and the
        splits are coordinates in memory, some 300 bytes a patch.

    Raises
    ------
    LabelError
        If there is no such store, it is not complete, or has no such split or part.
    """
    import xarray as xr

    store = complete_store(path)
    splits = tuple(store.described["splits"])
    wanted = _wanted(store, part, split)
    data = xr.open_zarr(path, chunks=None, consolidated=True)
    coords = data[[*_FACTS, *(f"split_{name}" for name in splits), "valid"]].load()
    names = ["cube", *(f"label_{scheme}" for scheme in SCHEMES)]
    names += [name for name in ("reference_map",) if name in data]
    data = data[names].chunk({"patch": store.chunk}).assign_coords({n: v.variable for n, v in coords.data_vars.items()})
    data = data.assign_coords({name: data[name].astype(object) for name in _TEXTS})
    keep = data["valid"].values == 1
    if wanted is not None:
        keep &= data[f"split_{wanted[0]}"].values == wanted[1]
    if not keep.all():
        data = data.isel(patch=np.flatnonzero(keep))
    data.attrs = {k: v for k, v in data.attrs.items() if k != ATTRIBUTE} | {
        "attribution": store.described["attribution"]
    }
    return data.drop_vars("valid").set_xindex("name")


def complete_store(path: str | Path) -> PatchStore:
    """The store, if all its chunks are there.

    Raises
    ------
    LabelError
        If there is no such store, or it is not complete.
    """
    store = read_store(path)
    if not store.described["complete"]:
        source = store.described["options"]["source"]
        raise LabelError(f"{path} is not complete: finish it with geoflow bigearthnet {source} {path}")
    return store


def _wanted(store: PatchStore, part: str | None, split: str | None) -> tuple[str, int] | None:
    splits = store.described["splits"]
    if split is not None and split not in splits:
        raise LabelError(f"{store.path} has no split {split!r}; it has {', '.join(splits)}")
    if part is None:
        return None
    code = split_code(part)
    name = split or store.described["default_split"]
    if not store.split_counts()[name][SPLIT_NAMES[code]]:
        raise LabelError(f"split {name!r} of {store.path} has no patch in part {part!r}")
    return name, code
