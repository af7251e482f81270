"""The accessor ``.gf`` of countries (DataTree), their groups (DataTree, Dataset) and layers (DataArray).

It is there once `geoflow.open` was called. On the tree it asks all maps, labels and changes; on a group or layer only
that one: ``country.gf.at(24.75, 59.44)``, ``country["map/2018"].gf.plot()``, ``country["map/2018/level1"].gf.areas()``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from geoflow.errors import GridError, StoreError
from geoflow.explore import layers as found
from geoflow.explore.clipping import clip_dataset, clip_tree
from geoflow.explore.comparing import Comparison, compare
from geoflow.explore.describing import Summary, describe
from geoflow.explore.geometry import frame_of
from geoflow.explore.opening import file_reader
from geoflow.explore.points import LONLAT, Subject, locate, open_root, records, table
from geoflow.explore.records import PointRecord
from geoflow.explore.subjects import Group, as_side, class_group, level_layer, only_group, plot_group
from geoflow.explore.traces import Provenance
from geoflow.explore.tracing import trace
from geoflow.legends import Legend
from geoflow.mapping.epochareas import areas_by_epoch

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class _Questions(ABC):
    """What can be asked of a country, a group of it or one of its layers."""

    @abstractmethod
    def _groups(self) -> dict[str, Group]:
        """The groups that a question is about, by their paths."""

    def _root(self) -> Any:
        return None

    @property
    def _tree(self) -> xr.DataTree | None:
        return None

    @property
    def legend(self) -> Legend:
        """The legend of the classes: codes, names, colours and levels.

        Raises
        ------
        LegendError
            If there are no classes here.
        """
        return class_group(self._groups()).legend

    def at(self, lon: Any, lat: Any = None, crs: str = LONLAT) -> PointRecord | pd.DataFrame:
        """What is known of a place: classes at all levels, confidence, second choice, labels, change.

        Only the chunks that hold the points are read.

        Parameters
        ----------
        lon, lat : numbers, or sequences of them
            Or a GeoSeries or GeoDataFrame of points as the first argument alone.
        crs : str
            Of the coordinates, ``x`` and ``y`` then: the map's own, or any other.

        Returns
        -------
        PointRecord
            Of one place. Outside the map and where nothing is mapped it says so, and holds no class.
        pd.DataFrame
            Of several: one row each, missing where there is no data.

        Raises
        ------
        GridError
            If the coordinates are none.
        StoreError
            If there are no maps, labels or changes here.
        """
        index = None
        if lat is None:
            index, lon, lat, crs = _points_of(lon, crs)
        subject = _subject(self._groups())
        places = locate(found.geobox_of(subject.first), lon, lat, crs)
        answers = records(subject, places, self._root())
        return table(answers, subject, index) if hasattr(lon, "__len__") else answers[0]

    def areas(
        self, zones: Any = None, column: str | None = None, levels: Sequence[int] | None = None, crs: Any = None
    ) -> pd.DataFrame:
        """Hectares of each class, by zone and level, and of a country by epoch.

        Parameters
        ----------
        zones, crs : optional
            Polygons, in any of the forms of `geoflow.explore.geometry.frame_of`; all of it without.
        column : str, optional
            Column of the zones' names; their index without.
        levels : sequence of int, optional
            All by default.

        Returns
        -------
        pd.DataFrame
            ``epoch`` (of a country), ``zone``, ``level``, ``code``, ``name``, ``ha``, ``share``; see
            `geoflow.mapping.areas.areas`. All are counted on the deepest level. Areas are those on the ellipsoid; a
            pixel on the border of a zone counts with the part of it that is within.

        Raises
        ------
        GridError, LegendError
            As `geoflow.mapping.areas.areas`.
        """
        frame = None if zones is None else frame_of(zones, crs)
        maps = {path: group for path, group in self._groups().items() if group.kind in ("map", "")}
        maps = maps or {path: group for path, group in self._groups().items() if group.is_classes}
        legend = class_group(maps).legend
        counted = {group.name: group.finest for group in maps.values()}
        hectares = areas_by_epoch(counted, frame, legend, levels, column)
        return hectares if self._is_country else hectares.drop(columns="epoch")

    _is_country = False

    def level(self, level: int) -> xr.DataArray:
        """The map at one level of the legend, lazily; of a country the maps of all epochs, with the dim ``epoch``.

        Raises
        ------
        LegendError
            If the legend has no such level, or it is finer than the map.
        """
        maps = {g.name: g for g in self._groups().values() if g.kind == "map" or not self._is_country}
        if not self._is_country:
            return level_layer(class_group(self._groups()), level)
        chosen = {epoch: level_layer(group, level) for epoch, group in sorted(maps.items())}
        if not chosen:
            raise StoreError("there is no map here")
        stacked = xr.concat(list(chosen.values()), dim="epoch", join="exact", combine_attrs="override")
        return stacked.assign_coords(epoch=list(chosen))

    def compare(self, other: Any = None, level: int | None = None, within: Any = None) -> Comparison:
        """From what to what, in hectares, with agreement and a plot.

        Parameters
        ----------
        other : optional
            A group or layer of this or another country (``country["map/2024"]``, ``country["labels/clc2018"]``), or its
            path in this one. Of a country without it: its first map against its last; with another country: the last
            epoch that both map.
        level : int, optional
            The deepest that both hold by default.
        within : optional
            Only in this geometry.

        Raises
        ------
        LegendError, GridError
            If classes or pixels do not match.
        """
        mine, theirs = self._sides(other)
        return compare(*as_side(mine, theirs, level), within)

    def _sides(self, other: Any) -> tuple[Group, Group]:
        return class_group(self._groups()), class_group(self._others(other))

    def _others(self, other: Any) -> dict[str, Group]:
        if isinstance(other, str):
            if self._tree is None or other not in _paths(self._tree):
                raise StoreError(f"there is no group {other!r} here to compare with")
            other = self._tree[other]
        if not isinstance(other, xr.DataTree | xr.Dataset | xr.DataArray):
            raise StoreError(
                f"cannot compare with a {type(other).__name__}: give a group or layer of a country, or a path"
            )
        groups: dict[str, Group] = other.gf._groups()
        return groups

    def plot(
        self,
        layer: str | None = None,
        *,
        level: int | None = None,
        bands: str | Sequence[str] = "true",
        period: str | None = None,
        ax: Axes | None = None,
        max_px: int = 1400,
    ) -> Axes:
        """Draw it: classes in their colours with a legend, imagery in true or false colour, confidence, change.

        Parameters
        ----------
        layer : str, optional
            The variable of a group; what the group is about by default. Of a country, the path of a group
            (``"map/2018"``, ``"change/2018-2024"``, ``"map/2018/confidence"``); its latest map by default.
        level : int, optional
            Of the legend; the deepest by default.
        bands : str or sequence of three str
            Of imagery: ``"true"``, ``"false"``, or bands for red, green and blue.
        period : str, optional
            Of imagery; the one with most observations by default.
        ax : matplotlib Axes, optional
            Where to draw; a figure of its own without.
        max_px : int
            Pixels of the picture along its longer side. Overviews are used where the store has them.

        Raises
        ------
        StoreError, GridError, LegendError
            If there is no such layer, band or level.
        """
        group, name = self._to_plot(layer)
        options = {"level": level, "bands": bands, "period": period}
        return plot_group(group, name, self._tree, options, (ax, max_px))

    def _to_plot(self, layer: str | None) -> tuple[Group, str | None]:
        return only_group(self._groups()), layer


@xr.register_datatree_accessor("gf")
class CountryQuestions(_Questions):
    """Questions to a country, or to a group of it."""

    def __init__(self, tree: xr.DataTree) -> None:
        self._node = tree

    @property
    def _is_country(self) -> bool:  # type: ignore[override]
        return not self._node.data_vars

    @property
    def _tree(self) -> xr.DataTree:
        return self._node.root

    @cached_property
    def _zarr(self) -> Any:
        return open_root(found.store_of(self._node))

    def _root(self) -> Any:
        return self._zarr if self._node is self._tree else self._tree.gf._root()

    def _groups(self) -> dict[str, Group]:
        start = self._node.path.strip("/")
        if self._node.data_vars and start.partition("/")[0] not in found.KINDS:  # cut out of its country
            return {"": Group.of(self._node.to_dataset())}
        paths = [path for path in _paths(self._tree) if path == start or not start or path.startswith(f"{start}/")]
        return {path: Group(path, self._tree[path].to_dataset()) for path in paths}

    def clip(self, geometry: Any, crs: Any = None, all_touched: bool = False) -> xr.DataTree:
        """All layers within a geometry, lazily; see `geoflow.explore.clipping.clip_dataset`."""
        return clip_tree(self._node, geometry, crs, all_touched)

    def provenance(self, lon: float, lat: float, crs: str = LONLAT) -> Provenance:
        """Where the pixel at a place comes from: scenes, model, tasks, job, versions, and whom to name.

        The store tells some of it, the rest is read from the run's folder that it lies in, over http too if the server
        hands out the whole folder. What is not to be had is named.

        Raises
        ------
        GridError
            If the coordinates are none.
        """
        groups = CountryQuestions(self._tree)._groups()
        if not groups:
            raise StoreError("there are no layers here")
        places = locate(found.geobox_of(next(iter(groups.values())).dataset), lon, lat, crs)
        store = found.store_of(self._tree)
        whole = "geoflow" in self._tree.attrs and store is not None
        return trace(self._tree, places, file_reader(store) if whole and store else None)

    @property
    def summary(self) -> Summary:
        """Extent, CRS, epochs, levels, legend, sizes and whom to name."""
        return describe(self._tree)

    def __repr__(self) -> str:
        return repr(self.summary)

    def _repr_html_(self) -> str:
        return self.summary._repr_html_()

    def _sides(self, other: Any) -> tuple[Group, Group]:
        if not self._is_country:
            return super()._sides(other)
        maps = {g.name: g for g in self._groups().values() if g.kind == "map"}
        if other is None:
            if len(maps) < 2:
                raise StoreError("there are no two maps here to compare: say with what")
            return maps[min(maps)], maps[max(maps)]
        theirs = {g.name: g for g in self._others(other).values()}
        if not (both := sorted(set(maps) & set(theirs))):
            raise StoreError(
                f"no epoch is mapped in both: {', '.join(maps) or 'none'} and {', '.join(theirs) or 'none'}"
            )
        return maps[both[-1]], theirs[both[-1]]

    def _to_plot(self, layer: str | None) -> tuple[Group, str | None]:
        if not self._is_country:
            return super()._to_plot(layer)
        groups = self._groups()
        if layer is None:
            maps = sorted(path for path, group in groups.items() if group.kind == "map")
            if not (chosen := maps or sorted(groups)):
                raise StoreError("there is nothing to draw here")
            return groups[chosen[-1]], None
        if layer in groups:
            return groups[layer], None
        path, _, name = layer.rpartition("/")
        if path not in groups:
            raise StoreError(f"there is no group {layer!r} here; there are {', '.join(groups) or 'none'}")
        return groups[path], name


class _Layered(_Questions):
    """Questions to layers that have left their tree."""

    def __init__(self, data: Any) -> None:
        self._data = data

    @cached_property
    def _zarr(self) -> Any:
        return open_root(found.store_of(self._data))

    def _root(self) -> Any:
        return self._zarr


@xr.register_dataset_accessor("gf")
class GroupQuestions(_Layered):
    """Questions to the layers of one group."""

    def _groups(self) -> dict[str, Group]:
        return {"": Group.of(self._data)}

    def clip(self, geometry: Any, crs: Any = None, all_touched: bool = False) -> xr.Dataset:
        """The layers within a geometry, lazily; see `geoflow.explore.clipping.clip_dataset`."""
        return clip_dataset(self._data, geometry, crs, all_touched)


@xr.register_dataarray_accessor("gf")
class LayerQuestions(_Layered):
    """Questions to one layer."""

    def _groups(self) -> dict[str, Group]:
        return {"": Group.of_layer(self._data)}

    def clip(self, geometry: Any, crs: Any = None, all_touched: bool = False) -> xr.DataArray:
        """The layer within a geometry, lazily; see `geoflow.explore.clipping.clip_dataset`."""
        name = self._data.name
        clipped = clip_dataset(self._data.to_dataset(name="layer"), geometry, crs, all_touched)
        return clipped["layer"].rename(name)


def _paths(tree: xr.DataTree) -> list[str]:
    return [f"{kind}/{name}" for kind in found.KINDS for name in found.groups(tree, kind)]


def _subject(groups: Mapping[str, Group]) -> Subject:
    def of(*kinds: str) -> dict[str, xr.Dataset]:
        return {g.name: g.dataset for g in groups.values() if g.kind in kinds}

    lone = {g.name: g.dataset for g in groups.values() if g.kind in ("generalised", "")} if len(groups) == 1 else {}
    return Subject({**of("map"), **lone}, of("labels"), of("change"))


def _points_of(points: Any, crs: str) -> tuple[Any, Any, Any, str]:
    """(index, x, y, CRS) of a GeoSeries, GeoDataFrame or sequence of pairs."""
    import geopandas
    import numpy as np

    if isinstance(points, geopandas.GeoDataFrame | geopandas.GeoSeries):
        shapes = points.geometry
        if shapes.crs is None:
            raise GridError("the points have no CRS: set one with .set_crs")
        if not (shapes.geom_type == "Point").all():
            raise GridError("these are not all points: take .representative_point() of other shapes")
        return points.index, shapes.x.to_numpy(), shapes.y.to_numpy(), shapes.crs.to_wkt()
    if isinstance(points, str | Path) or not hasattr(points, "__len__"):
        raise GridError("a place is a longitude and a latitude: at(24.75, 59.44)")
    pairs = np.asarray(points, float)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise GridError("a list of places is a list of pairs: [(24.75, 59.44), (24.80, 59.40)]")
    return None, pairs[:, 0], pairs[:, 1], crs
