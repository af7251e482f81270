"""A country in a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from pyproj import CRS, Transformer

from geoflow.counting import counted
from geoflow.explore import html
from geoflow.explore.layers import KINDS, crs_name, geobox_of, groups, legend_of, store_of
from geoflow.explore.tracing import attributions
from geoflow.store.pyramid import OVERVIEWS

if TYPE_CHECKING:
    import xarray as xr

_LAYERS = {
    "imagery": "Imagery",
    "labels": "Labels",
    "map": "Maps",
    "generalised": "Generalised",
    "change": "Change",
}


@dataclass(frozen=True)
class Summary:
    """What a country holds; prints itself as text and as HTML. ``facts`` are (what, text)."""

    title: str
    facts: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        width = max((len(what) for what, _ in self.facts), default=0)
        return "\n".join([self.title, *(f"  {what:<{width}}  {text}" for what, text in self.facts)])

    def _repr_html_(self) -> str:
        rows = [(html.quiet(what), escape(text)) for what, text in self.facts]
        return html.heading(self.title) + html.table(rows)


def describe(tree: xr.DataTree) -> Summary:
    """Extent, CRS, epochs, levels, legend, sizes and whom to name."""
    found = {kind: groups(tree, kind) for kind in KINDS}
    filled = [node for nodes in found.values() for node in nodes.values()]
    facts: list[tuple[str, str]] = []
    if filled:
        facts += _place(filled[0].to_dataset())
    for kind, nodes in found.items():
        if nodes:
            facts.append((_LAYERS[kind], _contents(kind, nodes)))
    classes = [*found["map"].values(), *found["labels"].values()]
    if classes:
        legend = legend_of(classes[0].to_dataset())
        counts = ", ".join(f"{counted(len(legend.codes(level)), 'class')} at level {level}" for level in legend.levels)
        facts.append(("Legend", f"{legend.name}: {counts}"))
    if filled:
        facts.append(("Size", _size(filled)))
    factors = sorted(int(name) for name in tree[OVERVIEWS].children) if OVERVIEWS in tree.children else []
    facts.append(("Overviews", f"1 : {', '.join(map(str, factors))}" if factors else "none"))
    facts += [("Attribution", text) for text in attributions(tree)]
    return Summary(f"Country {store_of(tree) or ''}".strip(), tuple(facts))


def _place(dataset: xr.Dataset) -> list[tuple[str, str]]:
    box = geobox_of(dataset)
    height, width = box.shape
    res = abs(box.transform.a)
    crs = CRS.from_user_input(crs_name(box))
    bounds = box.boundingbox
    lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    west, south, east, north = lonlat.transform_bounds(*bounds.bbox, densify_pts=21)
    size = f"{width:,} x {height:,} pixels of {res:g} m"
    if crs.is_projected:
        size += f", {width * res / 1000:,.1f} x {height * res / 1000:,.1f} km"
    extent = f"{west:.3f} to {east:.3f} east, {south:.3f} to {north:.3f} north"
    return [
        ("Grid", size),
        ("CRS", f"{crs_name(box)}, {crs.name}" if box.crs is not None and box.crs.epsg else crs.name),
        ("Extent", extent),
    ]


def _contents(kind: str, nodes: dict[str, xr.DataTree]) -> str:
    names = ", ".join(nodes)
    first = next(iter(nodes.values())).to_dataset()
    layers = ", ".join(str(name) for name in first.data_vars)
    if kind == "imagery" and "band" in first.coords:
        bands = " ".join(first["band"].values.tolist())
        layers = f"{' and '.join(first['period'].values.tolist())}; {bands}"
    return f"{names} ({layers})"


def _size(nodes: list[xr.DataTree]) -> str:
    datasets = [node.to_dataset() for node in nodes]
    layers = [dataset[name] for dataset in datasets for name in dataset.data_vars]
    total = sum(layer.nbytes for layer in layers)
    chunk = next((layer.data.chunksize[-2:] for layer in layers if layer.chunks is not None), None)
    cut = f", chunks of {chunk[1]} x {chunk[0]}" if chunk else ""
    return f"{total / 1e9:,.2f} GB in memory{cut}"
