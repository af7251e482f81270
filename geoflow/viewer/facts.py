"""What the page must know of a run before it reads a pixel: layers, legend, scenes, zones. Plain values for JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from geoflow.colours import hex_colour
from geoflow.errors import GeoflowError, StoreError
from geoflow.legends import Legend, legend
from geoflow.places import failures, place, read_bytes
from geoflow.redact import redact
from geoflow.store.seal import read_seal
from geoflow.store.zarr import grid_from_description

STORE = "country.zarr"

_SIMPLIFY_PX = 1.0
"""How far, in pixels, outlines of zones may be off on the screen."""


@dataclass(frozen=True)
class Facts:
    """A run's output, or a bare store, as the viewer sees it.

    Parameters
    ----------
    out : Path
        The output folder of a run, or its ``country.zarr``.
    zones : Path, optional
        Polygons to find and zoom to; those of the job's change section without.
    zone_column : str, optional
        Column with their names.

    Raises
    ------
    StoreError
        If there is no store of geoflow's.
    """

    out: Path
    zones: Path | None = None
    zone_column: str | None = None

    @cached_property
    def store(self) -> Path:
        """The ``country.zarr``."""
        return self.out if (self.out / "zarr.json").is_file() else self.out / STORE

    @cached_property
    def folder(self) -> Path | None:
        """The run's folder, unless a store stands alone."""
        folder = self.store.parent
        return folder if (folder / "summary.json").is_file() else None

    @cached_property
    def root(self) -> dict[str, Any]:
        """The root's metadata, those of all groups and arrays in it."""
        try:
            root: dict[str, Any] = json.loads(read_bytes(self.store / "zarr.json"))
            root["attributes"]["geoflow"]["grid"]
        except failures():
            raise StoreError(f"{self.out} is not the output of a run: there is no {self.store / 'zarr.json'}") from None
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{self.store} is a Zarr store, but not one that geoflow made") from None
        if not root.get("consolidated_metadata"):
            raise StoreError(
                f"{self.store} has no consolidated metadata; run its job again, or zarr.consolidate_metadata"
            )
        return root

    @cached_property
    def nodes(self) -> Mapping[str, Mapping[str, Any]]:
        """Metadata of every group and array by path."""
        nodes: Mapping[str, Mapping[str, Any]] = self.root["consolidated_metadata"]["metadata"]
        return nodes

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The run's ``summary.json``; empty for a store that stands alone."""
        return {} if self.folder is None else _read_json(self.folder / "summary.json")

    @cached_property
    def legend(self) -> Legend:
        """The legend of the maps."""
        seal = None if self.folder is None else read_seal(self.folder)
        if seal is not None and seal.legend is not None:
            return Legend.from_dict(seal.legend)
        config = self.summary.get("config", {})
        names = [node["attributes"]["legend"] for node in self.nodes.values() if "legend" in node.get("attributes", {})]
        return legend((config.get("labels") or {}).get("legend") or (names or ["corine"])[0])

    def to_dict(self) -> dict[str, Any]:
        """All of it, as the page gets it."""
        grid = grid_from_description(self.root["attributes"]["geoflow"]["grid"])
        t = grid.geobox.transform
        return {
            "title": self.summary.get("title") or "Land cover",
            "job": self.summary.get("job", ""),
            "finished": self.summary.get("finished", ""),
            "status": self.summary.get("status", ""),
            "attribution": self._attribution(),
            "crs": _crs(str(grid.geobox.crs)),
            "grid": {
                "shape": list(grid.shape),
                "origin": [t.c, t.f],
                "resolution": grid.resolution_m,
                "chunk": grid.chunk,
                "factors": [1, *self._factors()],
            },
            "legend": _legend(self.legend),
            "layers": self._layers(),
            "scenes": self._scenes(str(grid.geobox.crs)),
            "model": self._model(),
            "zones": self.zones_file() is not None,
        }

    def _factors(self) -> list[int]:
        below = (path.split("/") for path, node in self.nodes.items() if node["node_type"] == "group")
        return sorted(int(parts[1]) for parts in below if len(parts) == 2 and parts[0] == "overviews")

    def _attribution(self) -> list[str]:
        said = [node.get("attributes", {}).get("attribution", "") for node in self.nodes.values()]
        return list(dict.fromkeys(text for text in [*self.summary.get("attribution", []), *said] if text))

    def _layers(self) -> list[dict[str, Any]]:
        """Each group of the store with variables on the grid, in the order in which people ask for them."""
        found = []
        for path in sorted(self.nodes):
            kind = path.partition("/")[0]
            arrays = {
                name.removeprefix(f"{path}/"): node
                for name, node in self.nodes.items()
                if node["node_type"] == "array" and name.rpartition("/")[0] == path
            }
            if kind in _TITLES and "y" in arrays:
                found.append(self._layer(kind, path, arrays))
        order = list(_TITLES)
        return sorted(found, key=lambda layer: (order.index(layer["kind"]), layer["id"]))

    def _layer(self, kind: str, path: str, arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        name, attrs = path.partition("/")[2], self.nodes[path].get("attributes", {})
        variables = {
            variable: {"nodata": node["fill_value"], "dtype": node["data_type"], "dims": node["dimension_names"]}
            for variable, node in arrays.items()
            if (node.get("dimension_names") or [])[-2:] == ["y", "x"]
        }
        levels = sorted(int(v[5:]) for v in variables if v.startswith("level"))
        layer: dict[str, Any] = {"id": path, "kind": kind, "name": name, "title": f"{_TITLES[kind]} {name}"}
        layer |= {"variables": variables, "levels": levels}
        if kind == "generalised":
            mmu = attrs.get("mmu_ha")
            layer["title"] = f"Generalised {name.rpartition('/')[2]}" + (f", from {mmu:g} ha" if mmu else "")
        if kind == "change":
            layer["title"] = f"Change {attrs.get('before', '')}–{attrs.get('after', '')}"
            layer |= {"before": attrs.get("before"), "after": attrs.get("after")}
        if kind == "imagery":
            layer["periods"] = self._labels(path, "period")
            layer["bands"] = self._labels(path, "band")
            layer["dates"] = attrs.get("periods", {})
        if kind == "map" and "probabilities" in variables:
            layer["classes"] = [int(code) for code in self._labels(path, "class")]
        return layer

    def _labels(self, path: str, dim: str) -> list[str]:
        import zarr

        from geoflow.places import zarr_store

        array = zarr.open_array(zarr_store(self.store), mode="r", path=f"{path}/{dim}")
        return [str(value) for value in array[:]]  # type: ignore[union-attr]

    def _scenes(self, crs: str) -> dict[str, list[dict[str, Any]]]:
        """Used scenes of each epoch: id, date, periods, cloud, and where they have pixels, in the store's CRS."""
        if self.folder is None:
            return {}
        used = {epoch: told["used"] for epoch, told in self.summary.get("scenes", {}).items()}
        return {epoch: self._scenes_of(epoch, facts, crs) for epoch, facts in used.items()}

    def _scenes_of(self, epoch: str, used: list[dict[str, Any]], crs: str) -> list[dict[str, Any]]:
        from geoflow.imagery.items import footprint

        assert self.folder is not None
        items = {item["id"]: item for item in _read_json(self.folder / "scenes" / f"{epoch}.json").get("items", [])}
        told = []
        for scene in used:
            facts = {key: scene.get(key) for key in ("id", "date", "periods", "cloud", "tile", "baseline")}
            if scene["id"] in items:
                outline = footprint(items[scene["id"]]).to_crs(crs)
                facts["outline"] = [[round(x, 1), round(y, 1)] for x, y in outline.exterior.points]
            told.append(facts)
        return told

    def _model(self) -> dict[str, Any]:
        told = self.summary.get("model") or {}
        facts = {key: told[key] for key in ("architecture", "encoder", "bands", "sha256") if key in told}
        accuracy = self.summary.get("accuracy") or {}
        return {**facts, "accuracy": accuracy.get("map"), "where": accuracy.get("where")}

    def zones_file(self) -> Path | None:
        """The polygons to offer: those asked for, else the job's, where they can be read."""
        if self.zones is not None:
            return self.zones
        named = ((self.summary.get("config") or {}).get("change") or {}).get("zones")
        return place(named) if named and place(named).is_file() else None

    def zones_geojson(self) -> str:
        """The zones in the store's CRS, with the property ``name``, as GeoJSON.

        Raises
        ------
        GeoflowError
            If the file cannot be read, or has no such column.
        """
        import geopandas

        from geoflow.places import local_copy

        path = self.zones_file()
        if path is None:
            return json.dumps({"type": "FeatureCollection", "features": []})
        try:
            read = geopandas.read_file(local_copy(path))
        except (OSError, RuntimeError, ValueError) as error:
            raise GeoflowError(f"--zones {path} cannot be read: {redact(str(error))}") from None
        grid = grid_from_description(self.root["attributes"]["geoflow"]["grid"])
        table = read.to_crs(str(grid.geobox.crs))
        names = table[self._name_column(list(table.columns), path)].astype(str)
        outlines = table.geometry.simplify(_SIMPLIFY_PX * grid.resolution_m)
        return str(geopandas.GeoDataFrame({"name": names}, geometry=outlines, crs=None).to_json(drop_id=True))

    def _name_column(self, columns: list[str], path: Path) -> str:
        config = (self.summary.get("config") or {}).get("change") or {}
        wanted = self.zone_column or (config.get("zone_column") if self.zones is None else None)
        if wanted is not None:
            if wanted not in columns:
                raise GeoflowError(f"--column {wanted}: {path} has no such column; it has {', '.join(columns)}")
            return wanted
        named = [column for column in columns if column.lower() in ("name", "name_latn", "nuts_name", "nimi")]
        return (named or columns)[0]


_TITLES = {
    "map": "Land cover",
    "labels": "Labels",
    "imagery": "Imagery",
    "change": "Change",
    "generalised": "Generalised",
}
"""Kinds of layers in the order of the page's list, and what people call them."""


def _legend(legend: Legend) -> dict[str, Any]:
    classes = [
        {
            "code": code,
            "level": level,
            "parent": legend.parent(code),
            "name": legend.label(code, level),
            "colour": hex_colour(legend.colour(code)),
        }
        for level in legend.levels
        for code in legend.codes(level)
    ]
    return {"name": legend.name, "levels": list(legend.levels), "classes": classes}


def _crs(code: str) -> dict[str, str]:
    """A CRS as proj4js takes it: a position on the screen is that of the store, its degrees are for people."""
    from pyproj import CRS

    crs = CRS.from_user_input(code)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You will likely lose")
        return {"code": code, "proj4": crs.to_proj4(), "name": crs.name}


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a file; empty where there is none."""
    try:
        content = json.loads(read_bytes(path))
    except failures():
        return {}
    return content if isinstance(content, dict) else {}
