"""What lies where in an opened country: groups by kind, levels, legends, and the arrays of the store behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from odc.geo.geobox import GeoBox

from geoflow.colours import parse_colour
from geoflow.errors import GridError, LegendError
from geoflow.legendfile import TABLE
from geoflow.legends import BUILTIN, Legend, LegendClass, legend

if TYPE_CHECKING:
    import xarray as xr

_MARK = "geoflow"

KINDS = ("imagery", "labels", "map", "generalised", "change")
"""First parts of the paths of groups."""

# What of a group's attributes holds for its full extent alone.
_EXTENT_ATTRS = ("spatial:bbox", "spatial:shape", "spatial:transform", "multiscales", "geoflow")


@dataclass(frozen=True)
class Stored:
    """An array as it lies in a store."""

    store: str
    path: str


def mark(tree: xr.DataTree, store: str) -> None:
    """Note with every layer of a tree which array of the store it is.

    The note is bound to the name of the layer's Dask array, which changes with whatever is done to it: a layer whose
    note still fits is the whole stored array, and may be read in a shorter way than through its graph.
    """
    for node in tree.subtree:
        for name in node.data_vars:
            variable = node.variables[str(name)]
            path = f"{node.path.strip('/')}/{name}"
            variable.encoding[_MARK] = (store, path, getattr(variable.data, "name", ""))


def mark_derived(dataset: xr.Dataset, store: str | None) -> None:
    """Note that layers come from a store, but are not its arrays any more."""
    for name in dataset.data_vars if store else ():
        dataset.variables[name].encoding[_MARK] = (store, "", "")


def stored(array: xr.DataArray) -> Stored | None:
    """The array of a store that this is, whole and unaltered; None for anything else."""
    store, path, name = array.encoding.get(_MARK, ("", "", ""))
    return Stored(store, path) if path and name and getattr(array.variable._data, "name", None) == name else None


def store_of(data: xr.DataTree | xr.Dataset | xr.DataArray) -> str | None:
    """Path or address of the store that something was opened from; None if nobody knows."""
    import xarray as xr

    if isinstance(data, xr.DataArray):
        return data.encoding.get(_MARK, (None,))[0] or None
    if isinstance(data, xr.Dataset):
        return next((found for name in data.data_vars if (found := store_of(data[name]))), None)
    return next((found for node in data.subtree if (found := store_of(node.to_dataset(inherit=False)))), None)


def groups(tree: xr.DataTree, kind: str) -> dict[str, xr.DataTree]:
    """The groups of a kind that hold layers, by what follows the kind in their paths (``2018``)."""
    if kind not in tree.children:
        return {}
    top = tree[kind]
    start = len(top.path) + 1
    return {node.path[start:]: node for node in top.subtree if node.data_vars}


def epochs(tree: xr.DataTree) -> list[str]:
    """Epochs that are mapped, in order."""
    return sorted(groups(tree, "map"))


def levels_of(dataset: Mapping[Any, Any]) -> dict[int, str]:
    """The levels that a group holds, coarsest first, with the names of their variables."""
    names = [str(name) for name in dataset]
    found = {int(n.removeprefix("level")): n for n in names if n.startswith("level") and n[5:].isdecimal()}
    return dict(sorted(found.items()))


def geobox_of(data: xr.Dataset | xr.DataArray) -> GeoBox:
    """The grid that layers lie on.

    Raises
    ------
    GridError
        If they have no CRS or no regular coordinates.
    """
    import odc.geo.xr  # noqa: F401  (the .odc accessor)

    box = data.odc.geobox
    if box is None or box.crs is None:
        raise GridError("these layers have no CRS or no regular x and y: open the store with geoflow.open")
    return box


def crs_name(box: GeoBox) -> str:
    """The CRS in as few words as programs understand: ``EPSG:3035``, else WKT."""
    crs = box.crs
    return f"EPSG:{crs.epsg}" if crs is not None and crs.epsg else str(crs)


def legend_of(data: xr.Dataset | xr.DataArray) -> Legend:
    """The legend of a group of class layers, or of one layer.

    A built-in one by its name; another from the table that its group keeps; else what the layers' CF flags say: codes,
    names without capitals, colours, and as parent of a class the one of the level above whose code it begins with.

    Raises
    ------
    LegendError
        If nothing says which classes these are.
    """
    import xarray as xr

    attrs = data.attrs
    if TABLE in attrs:
        return Legend.from_dict(attrs[TABLE])
    if attrs.get("legend") in BUILTIN:
        return legend(attrs["legend"])
    layers = {1: data} if isinstance(data, xr.DataArray) else {n: data[name] for n, name in levels_of(data).items()}
    flags = {level: layer.attrs for level, layer in layers.items() if "flag_values" in layer.attrs}
    if not flags:
        raise LegendError("there are no classes here: no legend is named, and no layer has flag_values")
    return _builtin(flags[max(flags)]) or _from_flags(str(attrs.get("legend", "classes")), flags)


def level_of(layer: xr.DataArray, classes: Legend) -> int:
    """The level of the legend that a class layer is of: by its flags, else by its name."""
    values = layer.attrs.get("flag_values")
    for level in classes.levels:
        if values is not None and list(map(int, values)) == list(classes.codes(level)):
            return level
    named = levels_of({layer.name: layer}) if layer.name is not None else {}
    return next(iter(named), classes.deepest)


def without_extent(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attributes of a group that hold for a part of it as well."""
    return {key: value for key, value in attrs.items() if key not in _EXTENT_ATTRS}


def _builtin(flags: Mapping[str, Any]) -> Legend | None:
    wanted = [int(v) for v in flags["flag_values"]], flags.get("flag_colors")
    for name in BUILTIN:
        known = legend(name)
        for level in known.levels:
            if wanted == (list(known.codes(level)), known.flags(level)["flag_colors"]):
                return known
    return None


def _from_flags(name: str, flags: Mapping[int, Mapping[str, Any]]) -> Legend:
    classes: list[LegendClass] = []
    above: list[int] = []
    first = min(flags)
    for level, attrs in sorted(flags.items()):
        codes = [int(v) for v in attrs["flag_values"]]
        names = str(attrs.get("flag_meanings", "")).split() or [str(code) for code in codes]
        colours = str(attrs.get("flag_colors", "")).split() or ["#808080"] * len(codes)
        for code, meaning, colour in zip(codes, names, colours, strict=True):
            parents = [one for one in above if str(code).startswith(str(one))]
            if level > first and not parents:  # codes that do not nest by their digits: one level is all there is
                return _from_flags(name, {max(flags): flags[max(flags)]})
            text = meaning.replace("_", " ").capitalize()
            classes.append(LegendClass(code, text, parse_colour(colour), max(parents, default=None)))
        above = codes
    return Legend(name, tuple(classes))
