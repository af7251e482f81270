"""A group of layers as questions see it: its kind, name, legend, and how it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import xarray as xr

from geoflow.errors import GridError, LegendError, StoreError
from geoflow.explore import drawing
from geoflow.explore.comparing import Side
from geoflow.explore.layers import legend_of, level_of, levels_of, stored
from geoflow.explore.overviews import coarser, coarser_layer
from geoflow.legendfile import TABLE
from geoflow.legends import Legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Group:
    """A group of a country.

    Attributes
    ----------
    path : str
        In the store, ``map/2018``; empty where the layers have left it.
    dataset : xr.Dataset
    origin : str
        The group of the store that layers without a path were taken from, if they still are what it holds.
    """

    path: str
    dataset: xr.Dataset
    origin: str = ""

    @classmethod
    def of(cls, dataset: xr.Dataset) -> Group:
        """Layers without a path; what they are is seen from their names."""
        return cls("", dataset, next((_origin(dataset[name]) for name in dataset.data_vars), ""))

    @classmethod
    def of_layer(cls, layer: xr.DataArray) -> Group:
        """One layer; a class layer under the name of its level, whatever it is called."""
        name = str(layer.name) if layer.name is not None else "layer"
        if "flag_values" in layer.attrs and name not in ("second", "change", "from_code", "to_code"):
            name = f"level{level_of(layer, legend_of(layer))}"
        attrs = {key: layer.attrs[key] for key in ("legend", TABLE) if key in layer.attrs}
        called = str(layer.name) if name.startswith("level") and layer.name not in (None, name) else ""
        return cls("", layer.rename(name).to_dataset().assign_attrs(attrs), _origin(layer) or called)

    @property
    def kind(self) -> str:
        """``map``, ``labels`` and so on; ``change`` or ``imagery`` by the variables, else empty, without a path."""
        if self.path:
            return self.path.partition("/")[0]
        if {"change", "from_code", "to_code"} <= set(self.dataset):
            return "change"
        return "imagery" if "reflectance" in self.dataset else ""

    @property
    def name(self) -> str:
        """What follows the kind: the epoch, the name of the labels."""
        return self.path.partition("/")[2] or "map"

    @property
    def title(self) -> str:
        """For a reader."""
        text = (self.path or self.origin).replace("/", " ") or self.kind or "map"
        return text[0].upper() + text[1:]

    @property
    def is_classes(self) -> bool:
        """Whether it holds class maps."""
        return bool(levels_of(self.dataset))

    @property
    def finest(self) -> xr.Dataset:
        """The deepest level of its classes by itself: levels nest, so all others can be counted on it."""
        held = levels_of(self.dataset)
        return self.dataset[[held[max(held)]]] if held else self.dataset

    @cached_property
    def legend(self) -> Legend:
        """Of its classes."""
        layers = levels_of(self.dataset)
        alone = self.dataset[next(iter(layers.values()))] if len(layers) == 1 else None
        known = "legend" in self.dataset.attrs or TABLE in self.dataset.attrs
        return legend_of(self.dataset if known or alone is None else alone)


def _origin(layer: xr.DataArray) -> str:
    at = stored(layer)
    return at.path.rpartition("/")[0] if at else ""


def only_group(groups: Mapping[str, Group]) -> Group:
    """The group that is meant, where it is one.

    Raises
    ------
    StoreError
        If there are several or none.
    """
    if len(groups) != 1:
        raise StoreError(f"one group is meant: there are {', '.join(groups) or 'none'}")
    return next(iter(groups.values()))


def class_group(groups: Mapping[str, Group]) -> Group:
    """The first group with classes.

    Raises
    ------
    LegendError
        If there is none.
    """
    for group in groups.values():
        if group.is_classes or group.kind == "change":
            return group
    raise LegendError("there are no classes here")


def level_layer(group: Group, level: int) -> xr.DataArray:
    """The layer of a level; one that the group lacks is made from the deepest that it has.

    Raises
    ------
    LegendError
        If the legend has no such level, or it is finer than what the group holds.
    """
    legend, held = group.legend, levels_of(group.dataset)
    legend.codes(level)
    if level in held:
        return group.dataset[held[level]]
    if not held or level > max(held):
        raise LegendError(f"{group.title} holds the levels {sorted(held)}, not {level}")
    if max(held) != legend.deepest:
        raise LegendError(f"level {level} is made from level {legend.deepest}, which {group.title} does not hold")
    source = group.dataset[held[max(held)]]
    made = xr.apply_ufunc(
        legend.to_level, source, kwargs={"level": level}, dask="parallelized", output_dtypes=[legend.dtype(level)]
    )
    attrs = {"long_name": f"land cover, level {level} of {legend.name}", **legend.flags(level), "nodata": 0}
    return made.rename(f"level{level}").assign_attrs(attrs)


def as_side(first: Group, second: Group, level: int | None) -> tuple[Side, Side]:
    """Both groups at one level, the deepest that both hold by default.

    Raises
    ------
    LegendError
        If they have no level in common.
    """
    if level is None:
        both = set(levels_of(first.dataset)) & set(levels_of(second.dataset))
        if not both:
            raise LegendError(f"{first.title} and {second.title} have no level in common")
        level = max(both)
    names = (first.title, second.title)
    if names[0] == names[1]:
        names = ("This map", "Other map") if names[0] == "Map" else (names[0], f"{names[1]} of the other")
    return tuple(  # type: ignore[return-value]
        Side(name, level_layer(group, level), group.legend, level)
        for name, group in zip(names, (first, second), strict=True)
    )


def plot_group(
    group: Group, name: str | None, tree: xr.DataTree | None, options: Mapping[str, Any], place: tuple[Axes | None, int]
) -> Axes:
    """Draw a layer of a group.

    Parameters
    ----------
    group : Group
    name : str, optional
        The variable; what the group is about by default.
    tree : DataTree, optional
        Of the store, for its overviews.
    options : mapping
        ``level``, ``bands`` and ``period``, as `geoflow.explore.accessor` describes them.
    place : tuple
        (axes or None, pixels along the longer side).
    """
    axes, max_px = place
    name = name or _about(group, options["level"])
    if name not in group.dataset:
        layers = ", ".join(str(v) for v in group.dataset.data_vars)
        raise StoreError(f"{group.title} has no layer {name!r}; it has {layers}")
    whole = group.dataset[name]
    small = _smaller(group, name, tree, max_px)
    note = str(group.dataset.attrs.get("attribution", ""))
    return drawing.draw(_picture(group, small, name, options, max_px), whole, axes, note)


def _smaller(group: Group, name: str, tree: xr.DataTree | None, max_px: int) -> xr.Dataset:
    """The group from an overview that has the layer, or as it is."""
    if group.path:
        small = coarser(group.dataset, group.path, tree, max_px)
        return small if name in small else group.dataset
    if tree is not None or name == "change":  # of change, an overview by itself lacks what became of it
        return group.dataset
    return coarser_layer(group.dataset[name], max_px).to_dataset(name=name)


def _about(group: Group, level: int | None) -> str:
    if group.kind in ("imagery", "change"):
        return {"imagery": "reflectance", "change": "change"}[group.kind]
    held = levels_of(group.dataset)
    if not held:
        names = [str(name) for name in group.dataset.data_vars]
        if len(names) == 1:
            return names[0]
        raise StoreError(f"which layer? There are {', '.join(names)}")
    if level is not None and level not in held:
        raise LegendError(f"{group.title} holds the levels {sorted(held)}, not {level}")
    return held[max(held) if level is None else level]


def _picture(
    group: Group, data: xr.Dataset, name: str, options: Mapping[str, Any], max_px: int
) -> drawing.Picture | drawing.Scalar:
    layer = data[name]
    if extra := [str(d) for d in layer.dims if d not in ("y", "x") and name != "reflectance"]:
        if layer.sizes[extra[0]] == 1:
            layer = layer.isel(dict.fromkeys(extra, 0))
        else:
            raise StoreError(f"{name} has the dim {extra[0]!r}: pick one with .sel({extra[0]}=...)")
    title = group.title
    if name == "reflectance":
        return _imagery(layer, options, title, max_px)
    if name == "change" and {"from_code", "to_code"} <= set(data):
        return drawing.change_layer(data, group.legend, title, max_px)
    if "flag_values" in layer.attrs and name != "change":
        at = f", level {levels_of({name: layer}).popitem()[0]}" if levels_of({name: layer}) else f", {name}"
        return drawing.class_layer(layer, group.legend, title + at, max_px)
    return drawing.scalar_layer(layer, f"{title}: {name}", max_px)


def _imagery(layer: xr.DataArray, options: Mapping[str, Any], title: str, max_px: int) -> drawing.Picture:
    period, bands = options["period"], options["bands"]
    if period is not None:
        there = [str(name) for name in layer["period"].values]
        if period not in there:
            raise StoreError(f"there is no period {period!r} here; there are {', '.join(there)}")
        layer = layer.isel(period=[there.index(period)])
    if isinstance(bands, str):
        if bands not in drawing.COLOURINGS:
            raise GridError(f"bands is {bands!r}: it is one of {', '.join(drawing.COLOURINGS)}, or three bands")
        bands = drawing.COLOURINGS[bands]
    if len(bands) != 3:
        raise GridError(f"three bands make a picture, not {', '.join(bands) or 'none'}")
    return drawing.reflectance_layer(layer, tuple(bands), title, max_px)
