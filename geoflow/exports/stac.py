"""An export as a self-contained STAC catalog: a Collection, an Item for each map, change, set of labels and composite.

STAC 1.1, with the extensions projection 2.0, raster 2.0, classification 2.0, render 2.0, processing 1.2, file 2.1,
scientific 1.0, and of the model mlm 1.5. All links are relative, none leads to a place of this machine: groups of the
store, the model and the report are linked where the export lies within the output of its run.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from geoflow.errors import ModelError
from geoflow.exports.clip import Clip, crs_of
from geoflow.exports.pictures import stretch_of
from geoflow.exports.rasters import SCALE, STATE_COLOURS, STATES, Made
from geoflow.places import is_remote, write_bytes
from geoflow.redact import redact

if TYPE_CHECKING:
    from geoflow.exports.source import Source

COLLECTION, SCENES, THUMBNAIL = "collection.json", "scenes", "thumbnail.png"

_EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
_OF_RASTERS = ("file/v2.1.0", "processing/v1.2.0", "projection/v2.0.0", "raster/v2.0.0", "render/v2.0.0")
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_TYPES = {
    ".tif": _COG,
    ".png": "image/png",
    ".qml": "application/xml",
    ".xml": "application/xml",
    ".gpkg": "application/geopackage+sqlite3",
    ".parquet": "application/vnd.apache.parquet",
    ".csv": "text/csv",
}
_PAPER = {
    "doi": "10.48550/arXiv.2003.02899",
    "citation": "Ulmas, P., Liiv, I. (2020): Segmentation of Satellite Imagery using U-Net Models for Land Cover "
    "Classification. arXiv:2003.02899",
}
_SCENE_FACTS = (
    "datetime", "platform", "constellation", "eo:cloud_cover", "grid:code", "s2:mgrs_tile", "s2:processing_baseline",
    "s2:product_uri", "sat:relative_orbit", "geoflow:offset",
)  # fmt: skip


_NEAR = 1e-5
"""Degrees, about a metre: how near the outline of an Item is to the true one, whose sides are curves."""


@dataclass(frozen=True)
class Catalogue:
    """What a catalog is made of.

    Attributes
    ----------
    source : Source
    folder : Path
        Of the export, on this machine.
    clip : Clip
    layers : tuple of Made
        Whose files are there.
    """

    source: Source
    folder: Path
    clip: Clip
    layers: tuple[Made, ...]

    def write(self) -> list[Path]:
        """Write the Collection, the Items and the lists of scenes; returns their files."""
        written: list[Path] = []
        items: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys(made.layer.item for made in self.layers):
            items[name] = self._item(name, [made for made in self.layers if made.layer.item == name])
        model = self._model()
        if model is not None:
            items[str(model["id"])] = model
        epochs = dict.fromkeys(epoch for made in self.layers for epoch in made.layer.epochs)
        lists = {epoch: found for epoch in epochs if (found := self.source.scenes(epoch))}
        written += [self._write(self.folder / SCENES / f"{e}.json", _scene_list(found)) for e, found in lists.items()]
        for name, item in items.items():
            self._link(item, items)
            written.append(self._write(self.folder / name / f"{name}.json", item))
        written.append(self._write(self.folder / COLLECTION, self._collection(items)))
        return written

    @staticmethod
    def _write(path: Path, content: Mapping[str, Any]) -> Path:
        write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        return path

    @property
    def _id(self) -> str:
        return str(self.source.summary["job"])

    @property
    def _inside(self) -> bool:
        """Whether the export lies within the output of its run, so that links from one to the other hold."""
        out = self.source.out
        return not is_remote(out) and self.folder.resolve().is_relative_to(out.resolve())

    def _item(self, name: str, layers: Sequence[Made]) -> dict[str, Any]:
        source, geobox = self.source, self.clip.geobox
        classes = any(made.coding is not None or made.layer.content == "state" for made in layers)
        extensions = (*_OF_RASTERS, "classification/v2.0.0") if classes else _OF_RASTERS
        first = layers[0].layer
        title = first.title.partition(", level ")[0]
        properties: dict[str, Any] = {
            "title": title,
            "description": f"{source.title}: {title}",
            **_times(self._days(first.epochs), source.made),
            "created": _utc(source.made),
            "gsd": self.clip.grid.resolution_m,
            **_projection(self.clip),
            "processing:level": "L3" if first.kind == "imagery" else "L4",
            "processing:software": {"geoflow": source.version},
            "processing:lineage": _LINEAGE[first.kind],
            "renders": {made.layer.name: self._render(made) for made in layers},
        }
        if source.attribution:
            properties["attribution"] = source.attribution
        if (sha256 := self._store_attrs(first.group).get("model_sha256")) is not None:
            properties["geoflow:model_sha256"] = sha256
        outline = geobox.geographic_extent.simplify(_NEAR)
        return {
            "type": "Feature",
            "stac_version": "1.1.0",
            "stac_extensions": sorted(_EXTENSION.format(one) for one in extensions),
            "id": name,
            "geometry": _rounded(outline.json),
            "bbox": [round(value, 7) for value in outline.boundingbox],
            "properties": properties,
            "collection": self._id,
            "assets": {key: asset for made in layers for key, asset in self._assets(made)} | self._others(name, first),
            "links": [],
        }

    def _assets(self, made: Made) -> Iterable[tuple[str, dict[str, Any]]]:
        layer, folder = made.layer, self.folder / made.layer.item
        file = folder / f"{layer.stem}.tif"
        data = _file(file, layer.title, ["data"])
        data |= {"raster:spatial_resolution": self.clip.grid.resolution_m, "raster:sampling": "area"}
        band: dict[str, Any] = {"data_type": made.raster.dtype, "nodata": made.raster.nodata}
        if layer.content == "reflectance":
            data["bands"] = [{"name": name, **band, "raster:scale": SCALE} for name in made.raster.bands]
        elif layer.content == "percent":
            data["bands"] = [{"name": layer.name, **band, "unit": "%"}]
        else:
            data["bands"] = [{"name": layer.name, **band}]
            data["classification:classes"] = _classes(made, folder / f"{layer.stem}.tif.aux.xml")
        yield layer.name, data
        for ending, key, title, roles in (
            (".qml", "style", "QGIS style", ["style"]),
            (".tif.aux.xml", "table", "attribute table", ["metadata"]),
            (".png", "picture", "picture with key", ["overview"]),
        ):
            beside = folder / f"{layer.stem}{ending}"
            if beside.exists():
                yield f"{layer.name}-{key}", _file(beside, f"{layer.title}: {title}", roles)

    def _others(self, name: str, first: Any) -> dict[str, dict[str, Any]]:
        """What belongs to the whole item: thumbnail, polygons, the group of the store."""
        folder, found = self.folder / name, {}
        if (folder / THUMBNAIL).exists():
            found["thumbnail"] = _file(folder / THUMBNAIL, "Thumbnail", ["thumbnail"])
        for ending, key, title in (
            (".gpkg", "polygons", "Patches of change as polygons, GeoPackage"),
            (".parquet", "polygons-parquet", "Patches of change as polygons, GeoParquet"),
            ("-transitions.csv", "transitions", "Hectares from class to class"),
        ):
            if (folder / f"{name}{ending}").exists():
                found[key] = _file(folder / f"{name}{ending}", title, ["data"])
        if self._inside:
            group = self.source.store.path / first.group
            found["zarr"] = {
                "href": _relative(group, folder),
                "type": "application/vnd.zarr; version=3",
                "title": f"The group {first.group} of the run's store",
                "roles": ["data", "source"],
            }
        return found

    def _render(self, made: Made) -> dict[str, Any]:
        layer = made.layer
        render: dict[str, Any] = {"title": layer.title, "assets": [layer.name], "nodata": made.raster.nodata}
        if made.raster.colours:
            colours = {str(value): [*colour, 255] for value, colour in made.raster.colours.items()}
            return {**render, "colormap": colours, "resampling": "nearest"}
        if layer.content == "percent":
            return {**render, "rescale": [[0, 100]], "colormap_name": "ylgnbu", "resampling": "nearest"}
        stretch = stretch_of(made, self.folder / layer.file)
        at = [1 + made.raster.bands.index(name) for name in stretch]
        return {**render, "bidx": at, "rescale": [list(ends) for ends in stretch.values()], "resampling": "bilinear"}

    def _link(self, item: dict[str, Any], items: Mapping[str, Any]) -> None:
        name = str(item["id"])
        up = f"../{COLLECTION}"
        links = [{"rel": rel, "href": up, "type": "application/json"} for rel in ("root", "parent", "collection")]
        own = [made.layer for made in self.layers if made.layer.item == name]
        for layer in own[:1]:
            if layer.kind in ("map", "confidence", "imagery"):
                links += [_scene_link(scene, epoch) for epoch in layer.epochs for scene in self.source.scenes(epoch)]
            if layer.kind in ("change", "generalised"):
                links += [_derived(f"map-{epoch}") for epoch in layer.epochs if f"map-{epoch}" in items]
            model = next((one for one in items.values() if "mlm:name" in one["properties"]), None)
            if model is not None and layer.kind in ("map", "confidence"):
                links.append({**_derived(str(model["id"])), "mlm:name": model["properties"]["mlm:name"]})
                reference = {"format": "stac-mlm", "expression": f"../{model['id']}/{model['id']}.json"}
                item["properties"]["processing:expression"] = reference
        item["links"] = links

    def _model(self) -> dict[str, Any] | None:
        """The Item of the model; none where its files are not reached from here."""
        from geoflow.modelfile import CARD_FILE, WEIGHTS_FILE, read_header
        from geoflow.modelitem import model_item

        if not self._inside or not any(made.layer.item.startswith("map-") for made in self.layers):
            return None
        folder = self.source.out / "model"
        try:
            header = read_header(folder)
        except ModelError:
            return None
        item = dict(model_item(header, self.source.made).to_dict())
        # Weights that it began with are named by a path of the machine that trained it.
        item["properties"]["mlm:hyperparameters"].pop("weights", None)
        here = self.folder / str(item["id"])
        for asset, name in (("weights", WEIGHTS_FILE), ("card", CARD_FILE)):
            item["assets"][asset]["href"] = _relative(folder / name, here)
        return {**item, "collection": self._id}

    def _collection(self, items: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        source = self.source
        placed = [item for item in items.values() if item["geometry"] is not None]
        boxes, spans = [item["bbox"] for item in placed], [_span(item["properties"]) for item in placed]
        levels = ", ".join(str(level) for level in source.legend.levels)
        description = (
            f"{source.title}. Land cover by the legend {source.legend.name}, levels {levels}, at "
            f"{self.clip.grid.resolution_m:g} m, mapped by geoflow {source.version} from Sentinel-2."
        )
        said: dict[str, Any] = {
            "type": "Collection",
            "stac_version": "1.1.0",
            "stac_extensions": [_EXTENSION.format("scientific/v1.0.0")],
            "id": self._id,
            "title": source.title,
            "description": description,
            "keywords": ["land cover", "land cover change", source.legend.name, "Sentinel-2"],
            # "other" is STAC's word for a licence that it is not told.
            "license": source.licence or "other",
            "providers": [
                *([source.publisher] if source.publisher else []),
                {"name": "geoflow", "roles": ["processor"], "description": f"version {source.version}"},
            ],
            "extent": {
                "spatial": {"bbox": [[*(min(b[i] for b in boxes) for i in (0, 1)),
                                      *(max(b[i] for b in boxes) for i in (2, 3))]]},
                "temporal": {"interval": [[min(s for s, _ in spans), max(e for _, e in spans)]]},
            },
            "summaries": {"proj:code": [placed[0]["properties"]["proj:code"]], "gsd": [self.clip.grid.resolution_m]},
            "sci:publications": [_PAPER],
            "assets": {},
            "links": [
                {"rel": "root", "href": f"./{COLLECTION}", "type": "application/json"},
                {"rel": "cite-as", "href": f"https://doi.org/{_PAPER['doi']}"},
                *([{"rel": "license", "href": f"https://spdx.org/licenses/{source.licence}.html"}]
                  if source.licence and not _is_own(source.licence) else []),
                *(
                    {"rel": "item", "href": f"./{name}/{name}.json", "type": "application/geo+json",
                     "title": item["properties"]["title"]}
                    for name, item in items.items()
                ),
            ],
        }  # fmt: skip
        if source.attribution:
            said["attribution"] = source.attribution
        for name in items:
            if (self.folder / name / THUMBNAIL).exists():
                said["assets"]["thumbnail"] = {
                    "href": f"./{name}/{THUMBNAIL}", "type": "image/png", "roles": ["thumbnail"], "title": "Thumbnail",
                }  # fmt: skip
                break
        if self._inside and (source.out / "report.html").exists():
            href = _relative(source.out / "report.html", self.folder)
            said["assets"]["report"] = {
                "href": href, "type": "text/html", "roles": ["metadata"], "title": "Report of the run",
            }  # fmt: skip
        return said

    def _days(self, epochs: Iterable[str]) -> tuple[dt.date, dt.date] | None:
        found = [days for epoch in epochs if (days := self.source.dates(epoch))]
        return (min(start for start, _ in found), max(end for _, end in found)) if found else None

    def _store_attrs(self, group: str) -> dict[Any, Any]:
        return dict(self.source.store.dataset(group, dask=False).attrs)


_LINEAGE = {
    "map": "Classified by a neural network from cloud-free Sentinel-2 composites.",
    "confidence": "Probability of the class that a neural network gave from cloud-free Sentinel-2 composites.",
    "labels": "Rasterised from a land cover data set; what the network learned from.",
    "generalised": "The land cover map with small patches merged into their neighbours.",
    "change": "Compared from scenes and class probabilities of both epochs.",
    "imagery": "Cloud-free composite of Sentinel-2 level 2A scenes.",
}


def checksum(path: Path) -> str:
    """sha256 of a file as a multihash in hexadecimal: 0x12 (sha2-256), 0x20 (32 bytes), digest."""
    with path.open("rb") as file:
        return "1220" + hashlib.file_digest(file, "sha256").hexdigest()


def _file(path: Path, title: str, roles: list[str]) -> dict[str, Any]:
    return {
        "href": f"./{path.name}",
        "type": _TYPES[path.suffix],
        "title": title,
        "roles": roles,
        "file:size": path.stat().st_size,
        "file:checksum": checksum(path),
    }


def _classes(made: Made, table: Path) -> list[dict[str, Any]]:
    """Values of a class file, with how many pixels have them."""
    counts = _counts(table)
    total = sum(counts.values())
    if made.coding is not None:
        named = [(c.value, str(c.code), c.name, c.colour) for c in made.coding.classes]
    else:
        named = [(value, name, name, STATE_COLOURS[value]) for value, name in STATES.items()]
    found: list[dict[str, Any]] = [
        {
            "value": value,
            "name": name,
            "title": title,
            "color_hint": "{:02X}{:02X}{:02X}".format(*colour),
            "count": counts.get(value, 0),
            "percentage": round(100 * counts.get(value, 0) / total, 6) if total else 0.0,
        }
        for value, name, title, colour in named
    ]
    return [*found, {"value": made.raster.nodata, "name": "nodata", "title": "no data", "nodata": True}]


def _counts(table: Path) -> dict[int, int]:
    """Pixels of each value, as the attribute table beside a file says."""
    rows = ET.parse(table).getroot().iterfind("PAMRasterBand/GDALRasterAttributeTable/Row")
    values = [[field.text or "" for field in row] for row in rows]
    return {int(fields[0]): int(float(fields[1])) for fields in values}


def _projection(clip: Clip) -> dict[str, Any]:
    geobox = clip.geobox
    t, crs = geobox.transform, crs_of(geobox)
    code = {"proj:code": f"EPSG:{crs.epsg}"} if crs.epsg else {"proj:code": None, "proj:wkt2": crs.to_wkt()}
    box = geobox.boundingbox
    return {
        **code,
        "proj:shape": list(clip.shape),
        "proj:transform": [t.a, t.b, t.c, t.d, t.e, t.f],
        "proj:bbox": [box.left, box.bottom, box.right, box.top],
    }


def _times(days: tuple[dt.date, dt.date] | None, made: dt.datetime) -> dict[str, Any]:
    if days is None:
        return {"datetime": _utc(made)}
    return {
        "datetime": None,
        "start_datetime": f"{days[0]}T00:00:00Z",
        "end_datetime": f"{days[1]}T23:59:59Z",
    }


def _span(properties: Mapping[str, Any]) -> tuple[str, str]:
    at = properties["datetime"]
    return properties.get("start_datetime") or at, properties.get("end_datetime") or at


def _utc(when: dt.datetime) -> str:
    return when.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _rounded(value: Any) -> Any:
    """A geometry with coordinates of seven decimals, a centimetre."""
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value


def _derived(name: str) -> dict[str, Any]:
    return {"rel": "derived_from", "href": f"../{name}/{name}.json", "type": "application/geo+json"}


def _scene_link(scene: Mapping[str, Any], epoch: str) -> dict[str, Any]:
    """Where a scene is described: in the catalog that it was found in, else in the list that goes with the export."""
    links = {link["rel"]: str(link["href"]) for link in scene.get("links", ())}
    own = links.get("self") or links.get("canonical") or ""
    href = redact(own) if own.startswith("https://") else f"../{SCENES}/{epoch}.json#{scene['id']}"
    return {"rel": "derived_from", "href": href, "type": "application/geo+json", "title": scene["id"]}


def _scene_list(scenes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Footprints of scenes with the facts that matter, and without links: those may be signed, or of this machine."""
    features = [
        {
            "type": "Feature",
            "id": scene["id"],
            "geometry": scene["geometry"],
            "properties": {
                "id": scene["id"],
                **{key: scene["properties"][key] for key in _SCENE_FACTS if key in scene["properties"]},
            },
        }
        for scene in scenes
    ]
    return {"type": "FeatureCollection", "features": features}


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _is_own(licence: str) -> bool:
    """Whether SPDX has no page of it: several joined, or one of somebody's own."""
    return " " in licence or licence.startswith("LicenseRef-")
