"""What the layers say at points: only the chunks that hold them are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from geoflow.errors import GridError, StoreError
from geoflow.explore.layers import crs_name, legend_of, level_of, levels_of, stored
from geoflow.explore.opening import array_store, is_web
from geoflow.explore.records import ChangeAt, ClassAt, LabelAt, MapAt, PointRecord
from geoflow.jobs.quicklook import CHANGED
from geoflow.legends import NODATA_CODE, Legend
from geoflow.places import SCHEME, at_once

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

LONLAT = "EPSG:4326"

_STATES = {1: "unchanged", CHANGED: "changed"}


@dataclass(frozen=True)
class Places:
    """Points on a grid.

    Attributes
    ----------
    lon, lat, x, y : float64 arrays, dims (point,)
        Degrees, and the CRS of the grid.
    rows, cols : int64 arrays, dims (point,)
        The pixels that hold them; meaningless where not ``inside``.
    inside : bool array, dims (point,)
    crs : str
    """

    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    inside: NDArray[np.bool_]
    crs: str


def locate(box: GeoBox, first: Any, second: Any, crs: str = LONLAT) -> Places:
    """The pixels that hold some points. A pixel owns its western and northern edge, as in GDAL.

    Parameters
    ----------
    box : GeoBox
    first, second : numbers or sequences of them
        Longitude and latitude, or x and y of ``crs``.
    crs : str

    Raises
    ------
    GridError
        If the numbers of coordinates differ, one is not finite, or they are no longitudes and latitudes.
    """
    a, b = (np.atleast_1d(np.asarray(values, np.float64)) for values in (first, second))
    if a.shape != b.shape or a.ndim != 1:
        raise GridError(f"there are {a.size} first and {b.size} second coordinates: give as many of both")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise GridError("a coordinate is not a finite number")
    if CRS.from_user_input(crs).is_geographic and not ((np.abs(a) <= 360).all() and (np.abs(b) <= 90).all()):
        at = int(np.argmax((np.abs(a) > 360) | (np.abs(b) > 90)))
        raise GridError(
            f"{a[at]:g}, {b[at]:g} is no longitude and latitude in degrees; "
            f"for coordinates of the map say crs={crs_name(box)!r}"
        )
    grid = crs_name(box)
    x, y = _moved(crs, grid, a, b)
    lon, lat = _moved(crs, LONLAT, a, b)
    t = box.transform
    with np.errstate(invalid="ignore"):
        cols, rows = np.floor((x - t.c) / t.a), np.floor((y - t.f) / t.e)
    height, width = box.shape
    inside = (cols >= 0) & (cols < width) & (rows >= 0) & (rows < height)
    row, col = (np.where(inside, values, 0).astype(np.int64) for values in (rows, cols))
    return Places(lon, lat, x, y, row, col, inside, grid)


@lru_cache(maxsize=32)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def _moved(source: str, target: str, a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if source == target:
        return a, b
    x, y = _transformer(source, target).transform(a, b)
    return np.asarray(x), np.asarray(y)


Read = Mapping[str, Mapping[str, NDArray[Any]]]
"""Values at points, by group and variable."""


def read_points(groups: Mapping[str, xr.Dataset], places: Places, root: Any = None) -> Read:
    """Values of all layers with the dims (y, x) at the points; 0 where a point is outside.

    Parameters
    ----------
    groups : mapping of name to Dataset
        All on one grid.
    places : Places
    root : zarr.Group, optional
        The store that the layers were opened from; layers that still are its arrays are read from it directly, because
        to cut a Dask graph of a country down to one chunk takes longer than to read the chunk.
    """
    wanted = [
        (group, str(name), layer)
        for group, dataset in groups.items()
        for name, layer in dataset.data_vars.items()
        if set(layer.dims) == {"y", "x"}
    ]
    rows, cols = places.rows[places.inside], places.cols[places.inside]
    source = stored(wanted[0][2]) if wanted else None
    remote = source is not None and (is_web(source.store) or source.store.startswith(SCHEME))

    def one(entry: tuple[str, str, xr.DataArray]) -> NDArray[Any]:
        return _values(entry[2], rows, cols, root)

    found: dict[str, dict[str, NDArray[Any]]] = {group: {} for group in groups}
    for (group, name, layer), values in zip(wanted, at_once(one, wanted, remote), strict=True):
        out = np.zeros(places.inside.shape, layer.dtype)
        out[places.inside] = values
        found[group][name] = out
    return found


def _values(layer: xr.DataArray, rows: NDArray[Any], cols: NDArray[Any], root: Any) -> NDArray[Any]:
    if not rows.size:
        return np.empty(0, layer.dtype)
    at = stored(layer)
    if at is not None and root is not None and layer.dims == ("y", "x"):
        array = root[at.path]
        if rows.size == 1:
            return np.atleast_1d(array[int(rows[0]), int(cols[0])])
        return np.asarray(array.vindex[rows, cols])
    import xarray as xr

    picked = layer.isel(y=xr.DataArray(rows, dims="point"), x=xr.DataArray(cols, dims="point"))
    return np.asarray(picked.compute(scheduler="threads").values)


def open_root(store: str | None) -> Any:
    """The store as zarr sees it, or None where nobody knows it."""
    import zarr

    return None if store is None else zarr.open_group(array_store(store), mode="r")


@dataclass(frozen=True)
class Subject:
    """The groups that a question is about, all on one grid.

    Attributes
    ----------
    maps, labels, changes : mapping of name to Dataset
    """

    maps: Mapping[str, xr.Dataset]
    labels: Mapping[str, xr.Dataset]
    changes: Mapping[str, xr.Dataset]

    @property
    def groups(self) -> dict[str, xr.Dataset]:
        """All of them by kind and name."""
        kinds = {"map": self.maps, "labels": self.labels, "change": self.changes}
        return {f"{kind}/{name}": group for kind, found in kinds.items() for name, group in found.items()}

    @property
    def first(self) -> xr.Dataset:
        """One of them.

        Raises
        ------
        StoreError
            If there is none.
        """
        if not self.groups:
            raise StoreError("there are no maps, labels or changes here; imagery is read with .sel(x=..., y=...)")
        return next(iter(self.groups.values()))


def records(subject: Subject, places: Places, root: Any = None) -> list[PointRecord]:
    """A record for each point."""
    values = read_points(subject.groups, places, root)
    legends = {name: legend_of(group) for name, group in subject.groups.items()}
    out = []
    for i, inside in enumerate(places.inside.tolist()):
        here = {group: {name: v[i].item() for name, v in found.items()} for group, found in values.items()}
        where = (float(places.lon[i]), float(places.lat[i]), float(places.x[i]), float(places.y[i]), places.crs)
        if not inside:
            out.append(PointRecord(*where, None, None))
            continue
        maps = {n: _map_at(here[f"map/{n}"], group, legends[f"map/{n}"]) for n, group in subject.maps.items()}
        labels = {n: _label_at(here[f"labels/{n}"], g, legends[f"labels/{n}"]) for n, g in subject.labels.items()}
        changes = {n: _change_at(here[f"change/{n}"], g, legends[f"change/{n}"]) for n, g in subject.changes.items()}
        out.append(PointRecord(*where, int(places.rows[i]), int(places.cols[i]), maps, labels, changes))
    return out


def table(found: Iterable[PointRecord], subject: Subject, index: Any = None) -> pd.DataFrame:
    """Records as a table: one row a point, missing where there is no data; the same columns for any points."""
    import pandas as pd

    rows = [_flat(record) for record in found]
    names = ["lon", "lat", "inside", *_columns(subject)]
    columns = {name: pd.Series([row.get(name) for row in rows], index=index, dtype=_dtype(name)) for name in names}
    return pd.DataFrame(columns, index=index)


def _columns(subject: Subject) -> list[str]:
    names = []
    for epoch, group in subject.maps.items():
        more = [n for n in ("confidence", "margin", "second", "clear") if n in group]
        names += [f"map_{epoch}_{name}" for name in (*levels_of(group).values(), "name", *more)]
    for label, group in subject.labels.items():
        more = ["border_m"] if "border_m" in group else []
        names += [f"{label}_{name}" for name in (*levels_of(group).values(), "name", *more)]
    for pair in subject.changes:
        names += [f"change_{pair}_{name}" for name in ("state", "confidence", "from", "to")]
    return names


def _dtype(name: str) -> str:
    if name in ("lon", "lat"):
        return "float64"
    if name == "inside":
        return "bool"
    return "object" if name.endswith("_name") or name.endswith("_state") else "Int64"


def _flat(record: PointRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"lon": record.lon, "lat": record.lat, "inside": record.inside}
    for epoch, here in record.maps.items():
        row |= _classes(f"map_{epoch}", here.classes)
        row |= {f"map_{epoch}_{name}": getattr(here, name) for name in ("confidence", "margin")}
        row[f"map_{epoch}_second"] = here.second and here.second.code
        row[f"map_{epoch}_clear"] = here.clear
    for name, label in record.labels.items():
        row |= _classes(name, label.classes) | {f"{name}_border_m": label.border_m}
    for pair, change in record.changes.items():
        row |= {f"change_{pair}_state": change.state, f"change_{pair}_confidence": change.confidence}
        row |= {f"change_{pair}_from": change.before and change.before.code}
        row |= {f"change_{pair}_to": change.after and change.after.code}
    return row


def _classes(prefix: str, classes: tuple[ClassAt, ...]) -> dict[str, Any]:
    codes: dict[str, Any] = {f"{prefix}_level{one.level}": one.code for one in classes}
    return codes | {f"{prefix}_name": classes[-1].name if classes else None}


def _map_at(values: Mapping[str, Any], group: xr.Dataset, legend: Legend) -> MapAt:
    classes = _classes_at(values, group, legend)
    if not classes:
        return MapAt((), clear=_known(values, group, "clear"))
    second = values.get("second", NODATA_CODE)
    return MapAt(
        classes,
        _known(values, group, "confidence"),
        _known(values, group, "margin"),
        _class(second, legend, group.get("second")),
        _known(values, group, "clear"),
    )


def _label_at(values: Mapping[str, Any], group: xr.Dataset, legend: Legend) -> LabelAt:
    return LabelAt(_classes_at(values, group, legend), _known(values, group, "border_m"))


def _change_at(values: Mapping[str, Any], group: xr.Dataset, legend: Legend) -> ChangeAt:
    state = _STATES.get(values.get("change", 0))
    if state is None:
        return ChangeAt("not compared")
    before, after = (_class(values.get(name, 0), legend, group.get(name)) for name in ("from_code", "to_code"))
    return ChangeAt(state, before, after, _known(values, group, "confidence"))


def _classes_at(values: Mapping[str, Any], group: xr.Dataset, legend: Legend) -> tuple[ClassAt, ...]:
    found = (_class(values[name], legend, group[name]) for name in levels_of(values).values())
    return tuple(one for one in found if one is not None)


def _class(code: int, legend: Legend, layer: xr.DataArray | None) -> ClassAt | None:
    if code == NODATA_CODE:
        return None
    level = legend.deepest if layer is None else level_of(layer, legend)
    return ClassAt(level, code, legend.label(code), legend.colour(code))


def _known(values: Mapping[str, Any], group: xr.Dataset, name: str) -> int | None:
    """A value that is not the nodata of its layer."""
    if name not in values or values[name] == group[name].attrs.get("nodata"):
        return None
    return int(values[name])
