"""Frozen scenes: plain STAC item dictionaries with only what reading their pixels and telling their story needs.

Freezing turns what three providers write in three ways (``proj:epsg`` or ``proj:code``, ``s2:processing_baseline`` or
``processing:version``) into one, makes links absolute, and drops what changes without the pixels changing, so that a
digest of the items is a digest of the input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlparse

from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from shapely import STRtree

from geoflow.errors import SceneError
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.links import carries_token, resolve_href
from geoflow.imagery.lonlat import LONLAT, extent_of, shape_of
from geoflow.redact import redact

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
_SPELLINGS = {
    "s2:processing_baseline": ("processing:version", "sentinel2:processing_baseline"),
    "s2:product_uri": ("sentinel2:product_title",),
    "s2:datatake_id": ("eopf:datatake_id",),
    "s2:datastrip_id": ("eopf:datastrip_id",),
    "s2:generation_time": ("processing:datetime", "sentinel2:generation_time"),
    "sat:relative_orbit": ("sentinel2:relative_orbit_number",),
}
"""What we call a property -> what other providers call it."""

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
        A STAC item with ``proj:epsg``, ``s2:processing_baseline``, ``grid:code`` and ``sat:relative_orbit`` in its
        properties where they are known, absolute and unsigned hrefs, and no links.

    Raises
    ------
    SceneError
        If it is no STAC item that a scene can be made of; the message is the reason.
    CatalogError
        If a link leaves the catalog's root.
    """
    known, offered = _parts(item)
    wanted = (*catalog.assets.values(), catalog.scl)
    found = {key: offered[key] for key in wanted if isinstance(offered.get(key), Mapping) and offered[key].get("href")}
    properties = {key: known[key] for key in _PROPERTIES if known.get(key) is not None}
    properties |= _unified(item, known, found)
    if properties.get("datetime") is None and known.get("start_datetime") is not None:
        properties["datetime"] = known["start_datetime"]
    assets = {}
    for key, asset in found.items():
        assets[key] = {field: asset[field] for field in _ASSET_FIELDS if field in asset}
        assets[key]["href"] = _unsigned(resolve_href(str(asset["href"]), base, catalog), catalog)
    frozen = {
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
    for ask in (sensed, footprint, cloud_of):
        ask(frozen)  # raises where there is none that makes sense
    return frozen


def _unsigned(href: str, catalog: Catalog) -> str:
    """The link without a token: it would expire, and must not be written down.

    Raises
    ------
    SceneError
        If it has one, and the catalog does not sign links by itself.
    """
    if not carries_token(href):
        return href
    if catalog.signing == "none":
        raise SceneError(
            f"the link {redact(href)} carries a token, which would end and must not be written down; take links "
            "without, and a catalog that signs them (signing: planetary-computer)"
        )
    return urlparse(href)._replace(query="").geturl()


def _parts(item: Item) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(properties, assets) of something that a catalog offers as an item."""
    if not isinstance(item, Mapping) or not isinstance(item.get("id"), str) or not item["id"]:
        raise SceneError("it has no id")
    known, offered = item.get("properties"), item.get("assets")
    if not isinstance(known, Mapping):
        raise SceneError("it has no properties")
    if not isinstance(offered, Mapping) or not offered:
        raise SceneError("it has no assets")
    return known, offered


def _unified(item: Item, properties: Mapping[str, Any], assets: Mapping[str, Any]) -> dict[str, Any]:
    """CRS, baseline, tile, orbit and datatake under one name each, whatever the provider calls them."""
    result: dict[str, Any] = {}
    epsg = epsg_of(properties) or next(filter(None, (epsg_of(a) for a in assets.values())), None)
    if epsg is not None:
        result["proj:epsg"] = epsg
    for ours, others in _SPELLINGS.items():
        values = [properties[name] for name in others if properties.get(name) is not None]
        if properties.get(ours) is None and values:
            result[ours] = values[0]
    if properties.get("grid:code") is None and properties.get("s2:mgrs_tile") is not None:
        result["grid:code"] = f"MGRS-{properties['s2:mgrs_tile']}"
    product = f"{properties.get('s2:product_uri') or result.get('s2:product_uri')} {item['id']}_"
    orbit = re.search(r"_R(\d{3})_", product)
    if properties.get("sat:relative_orbit") is None and "sat:relative_orbit" not in result and orbit:
        result["sat:relative_orbit"] = int(orbit[1])
    return result


def epsg_of(fields: Mapping[str, Any]) -> int | None:
    """The EPSG code in a STAC object's projection fields: ``proj:epsg`` (STAC 1.0) or ``proj:code`` (1.1).

    Raises
    ------
    SceneError
        If it is none.
    """
    if (code := fields.get("proj:epsg")) is not None:
        if isinstance(code, bool) or not re.fullmatch(r"[0-9]{4,6}", str(code)):
            raise SceneError(f"proj:epsg {code!r} is not the code of a CRS")
        return int(code)
    match = re.fullmatch(r"EPSG:(\d+)", str(fields.get("proj:code") or ""), re.IGNORECASE)
    return int(match[1]) if match else None


def sensed(item: Item) -> datetime:
    """When the scene was sensed, in UTC."""
    text = item["properties"].get("datetime")
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise SceneError(f"scene {item.get('id')!r} has no usable datetime: it is {text!r}") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def footprint(item: Item) -> Geometry:
    """Where the scene has data, in EPSG:4326, split at the antimeridian: its geometry, or its bbox where it has none.

    Raises
    ------
    SceneError
        If it has neither, or one that makes no sense.
    """
    try:
        shape = shape_of(item.get("geometry"), item.get("bbox"))
    except (ValueError, TypeError) as error:
        raise SceneError(f"scene {item.get('id')!r} has no usable place: {error}") from None
    if shape is None:
        raise SceneError(f"scene {item.get('id')!r} has neither geometry nor bbox")
    return Geometry(shape, LONLAT)


class FootprintIndex:
    """Scenes by place: asked once per tile of a country, where trying every scene for every tile would take hours.

    Parameters
    ----------
    items : sequence of Item
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = tuple(items)
        self._tree = STRtree([footprint(item).geom for item in self._items])
        self._known: dict[GeoBox, tuple[Item, ...]] = {}

    def on(self, geobox: GeoBox) -> tuple[Item, ...]:
        """The scenes that may hold pixels of a GeoBox, in their order.

        Footprints in catalogs are simplified, so the test is generous by about a kilometre; a scene that only comes
        near costs one file header per band and contributes nodata.
        """
        if geobox not in self._known:
            extent = extent_of(geobox).buffer(_GEOBOX_MARGIN_DEG)
            found = sorted(self._tree.query(extent.geom, predicate="intersects"))
            self._known[geobox] = tuple(self._items[i] for i in found)
        return self._known[geobox]


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


def tile_of(item: Item) -> str:
    """The Sentinel-2 tile, such as ``33TWN`` or ``01WCR``; empty where the item does not say."""
    code = str(item["properties"].get("grid:code") or "").upper().removeprefix("MGRS-")
    if not code:
        name = re.search(r"_T(\w{5})(?:_|\b)", f"{item['properties'].get('s2:product_uri')} {item['id']}")
        code = name[1].upper() if name else ""
    return code.zfill(5) if code else ""


def orbit_of(item: Item) -> int | None:
    """The relative orbit, 1 to 143, or None where the item does not say."""
    text = str(item["properties"].get("sat:relative_orbit") or "")
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) else None


def cloud_of(item: Item) -> float | None:
    """Cloud cover in per cent by the item's metadata, or None where it does not say."""
    value = item["properties"].get("eo:cloud_cover")
    try:
        return None if value is None or math.isnan(float(value)) else float(value)
    except (TypeError, ValueError):
        raise SceneError(f"scene {item.get('id')!r} has no usable cloud cover: it is {value!r}") from None


def granule_of(item: Item) -> tuple[str, str]:
    """(datatake, tile): what one pass of one satellite over one tile has in common in every processing of it.

    Taken from the item's properties, else from the product's name, else platform and second of sensing.
    """
    properties = item["properties"]
    name = re.search(
        r"(S2[A-D])_MSIL\w\w_(\d{8}T\d{6})_N\d{4}_R\d{3}_T(\w{5})", f"{properties.get('s2:product_uri')} {item['id']}"
    )
    take = re.fullmatch(r"G(S2[A-D])_(\d{8}T\d{6})_.*", str(properties.get("s2:datatake_id") or ""))
    tile = tile_of(item)
    if take or name:
        match = take or name
        return f"{match[1]}_{match[2]}", tile  # type: ignore[index]
    return f"{properties.get('platform')}_{sensed(item):%Y%m%dT%H%M%S}", tile or item["id"]
