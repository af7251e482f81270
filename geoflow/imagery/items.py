"""Frozen scenes: plain STAC item dictionaries with only what reading their pixels and telling their story needs.

Freezing turns what three providers write in three ways (``proj:epsg`` or ``proj:code``, ``s2:processing_baseline`` or
``processing:version``) into one, makes links absolute, and drops what changes without the pixels changing, so that a
digest of the items is a digest of the input.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlparse

from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, box
from shapely import STRtree

from geoflow.errors import CatalogError, SceneError
from geoflow.imagery.catalog import Catalog, is_remote

Item = Mapping[str, Any]

_PROPERTIES = (
    "datetime",
    "platform",
    "constellation",
    "eo:cloud_cover",
    "grid:code",
    "sat:relative_orbit",
    "s2:processing_baseline",
    "s2:product_uri",
    "s2:datatake_id",
    "s2:datastrip_id",
    "s2:generation_time",
    "earthsearch:boa_offset_applied",
)
_ASSET_FIELDS = ("href", "type", "gsd", "proj:bbox", "proj:shape", "proj:transform", "raster:bands")
_GEOBOX_MARGIN_DEG = 0.01  # item footprints are simplified polygons: take a scene too many rather than one too few


def freeze(item: Item, catalog: Catalog, base: str) -> dict[str, Any]:
    """The part of a STAC item that geoflow keeps.

    Parameters
    ----------
    item : dict
        A STAC item, version 1.0 or 1.1.
    catalog : Catalog
        Says which assets are kept.
    base : str
        Address of the document that holds the item; relative links are resolved against it.

    Returns
    -------
    dict
        A STAC item with ``proj:epsg`` and ``s2:processing_baseline`` in its properties where they are known, absolute
        and unsigned hrefs, and no links.

    Raises
    ------
    CatalogError
        If a link leaves the catalog's root.
    """
    wanted = (*catalog.assets.values(), catalog.scl)
    found = {key: item["assets"][key] for key in wanted if key in item.get("assets", {})}
    known = item["properties"]
    properties = {key: known[key] for key in _PROPERTIES if known.get(key) is not None}
    properties.update(_unified(known, found))
    assets = {}
    for key, asset in found.items():
        assets[key] = {field: asset[field] for field in _ASSET_FIELDS if field in asset}
        assets[key]["href"] = resolve_href(asset["href"], base, catalog.root)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": item["id"],
        "collection": item.get("collection"),
        "geometry": item.get("geometry"),
        "bbox": item.get("bbox"),
        "properties": properties,
        "assets": assets,
        "links": [],
    }


def _unified(properties: dict[str, Any], assets: dict[str, Any]) -> dict[str, Any]:
    """CRS, baseline, tile and datatake under one name each, whatever the provider calls them."""
    result: dict[str, Any] = {}
    epsg = epsg_of(properties) or next(filter(None, (epsg_of(a) for a in assets.values())), None)
    if epsg is not None:
        result["proj:epsg"] = epsg
    for ours, theirs in (("s2:processing_baseline", "processing:version"), ("s2:datatake_id", "eopf:datatake_id")):
        if properties.get(ours) is None and properties.get(theirs) is not None:
            result[ours] = properties[theirs]
    if properties.get("grid:code") is None and properties.get("s2:mgrs_tile") is not None:
        result["grid:code"] = f"MGRS-{properties['s2:mgrs_tile']}"
    return result


def epsg_of(fields: dict[str, Any]) -> int | None:
    """The EPSG code in a STAC object's projection fields: ``proj:epsg`` (STAC 1.0) or ``proj:code`` (1.1)."""
    if fields.get("proj:epsg") is not None:
        return int(fields["proj:epsg"])
    match = re.fullmatch(r"EPSG:(\d+)", str(fields.get("proj:code") or ""), re.IGNORECASE)
    return int(match[1]) if match else None


def resolve_href(href: str, base: str, root: str | None) -> str:
    """An absolute address that is safe to open.

    A link may be http, https or s3; a link to a local file is accepted only from a local catalog and inside its folder,
    because a catalog is data and must not choose which files of this machine are read.

    Raises
    ------
    CatalogError
        Naming the link and the folder that it should be in.
    """
    if is_remote(href):
        return href
    scheme = urlparse(href).scheme
    local = unquote(urlparse(href).path) if scheme == "file" else href
    if root is None and scheme == "" and not href.startswith("/"):
        from urllib.parse import urljoin

        return urljoin(base, href)
    if root is not None and scheme in ("", "file"):
        path = os.path.normpath(os.path.join(os.path.dirname(base), local))
        if path.startswith(os.path.join(root, "")):
            return path
    allowed = "http, https or s3" if root is None else f"http, https, s3 or a file inside {root}"
    raise CatalogError(f"a link to {href!r} in {base} is not allowed: it must be {allowed}")


def sensed(item: Item) -> datetime:
    """When the scene was sensed, in UTC."""
    text = item["properties"].get("datetime") or item["properties"].get("start_datetime")
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise SceneError(f"scene {item.get('id')!r} has no usable datetime: it is {text!r}") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def footprint(item: Item) -> Geometry:
    """Where the scene has data, in EPSG:4326: its geometry, or its bbox where it has none."""
    if item.get("geometry"):
        return Geometry(item["geometry"], "EPSG:4326")
    if item.get("bbox"):
        bounds = item["bbox"]
        half = len(bounds) // 2  # a bbox may have heights
        return box(bounds[0], bounds[1], bounds[half], bounds[half + 1], "EPSG:4326")
    raise SceneError(f"scene {item.get('id')!r} has neither geometry nor bbox")


class FootprintIndex:
    """Scenes by place: asked once per tile of a country, where trying every scene for every tile would take hours.

    Parameters
    ----------
    items : sequence of Item
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = tuple(items)
        self._tree = STRtree([footprint(item).geom for item in self._items])

    def on(self, geobox: GeoBox) -> tuple[Item, ...]:
        """The scenes that may hold pixels of a GeoBox, in their order.

        Footprints in catalogs are simplified, so the test is generous by about a kilometre; a scene that only comes
        near costs one file header per band and contributes nodata.
        """
        extent = geobox.geographic_extent.buffer(_GEOBOX_MARGIN_DEG)
        return tuple(self._items[i] for i in sorted(self._tree.query(extent.geom, predicate="intersects")))


def items_on(items: Sequence[Item], geobox: GeoBox) -> tuple[Item, ...]:
    """The scenes that may hold pixels of one GeoBox, in their order; see `FootprintIndex.on`."""
    return FootprintIndex(items).on(geobox)


def asset_href(item: Item, band: str, catalog: Catalog) -> str:
    """The link to one band (or ``SCL``) of a scene.

    Raises
    ------
    SceneError
        If the scene lacks it; the message names what it has.
    """
    key = catalog.asset_key(band)
    asset = item["assets"].get(key)
    if asset is None:
        has = ", ".join(sorted(item["assets"])) or "none"
        raise SceneError(f"scene {item['id']} has no asset {key!r} for band {band}; it has {has}")
    return str(asset["href"])


def baseline_of(item: Item) -> tuple[int, int] | None:
    """Processing baseline as (5, 9), or None where the item does not say."""
    match = re.fullmatch(r"N?(\d{2})\.?(\d{2})", str(item["properties"].get("s2:processing_baseline") or ""))
    if match is None:
        match = re.search(r"_N(\d{2})(\d{2})_R\d{3}_", f"{item['properties'].get('s2:product_uri')} {item['id']}_")
    return (int(match[1]), int(match[2])) if match else None


def granule_of(item: Item) -> tuple[str, str]:
    """(datatake, tile): what one pass of one satellite over one tile has in common in every processing of it.

    Taken from the item's properties, else from the product's name, else platform and second of sensing.
    """
    properties = item["properties"]
    name = re.search(
        r"(S2[A-D])_MSIL\w\w_(\d{8}T\d{6})_N\d{4}_R\d{3}_T(\w{5})", f"{properties.get('s2:product_uri')} {item['id']}"
    )
    take = re.fullmatch(r"G(S2[A-D])_(\d{8}T\d{6})_.*", str(properties.get("s2:datatake_id") or ""))
    tile = str(properties.get("grid:code") or "").removeprefix("MGRS-") or (name[3] if name else "")
    if take or name:
        match = take or name
        return f"{match[1]}_{match[2]}", tile.upper().zfill(5)  # type: ignore[index]
    return f"{properties.get('platform')}_{sensed(item):%Y%m%dT%H%M%S}", tile.upper().zfill(5) or item["id"]
