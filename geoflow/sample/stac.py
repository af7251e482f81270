"""STAC items like those of Earth Search v1: same asset keys, properties and extensions, links relative."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from shapely.geometry import Polygon, mapping

from geoflow.sample.cog import percent
from geoflow.sample.geography import UtmTile
from geoflow.sample.scenes import GSD
from geoflow.sample.takes import Product, Take

COLLECTION = "sentinel-2-l2a"
# band: (asset key, title, common name, centre in um, width in um)
ASSETS: dict[str, tuple[str, str, str, float, float]] = {
    "B01": ("coastal", "Coastal aerosol (band 1)", "coastal", 0.443, 0.027),
    "B02": ("blue", "Blue (band 2)", "blue", 0.49, 0.098),
    "B03": ("green", "Green (band 3)", "green", 0.56, 0.045),
    "B04": ("red", "Red (band 4)", "red", 0.665, 0.038),
    "B05": ("rededge1", "Red edge 1 (band 5)", "rededge", 0.704, 0.019),
    "B06": ("rededge2", "Red edge 2 (band 6)", "rededge", 0.74, 0.018),
    "B07": ("rededge3", "Red edge 3 (band 7)", "rededge", 0.783, 0.028),
    "B08": ("nir", "NIR 1 (band 8)", "nir", 0.842, 0.145),
    "B8A": ("nir08", "NIR 2 (band 8A)", "nir08", 0.865, 0.033),
    "B09": ("nir09", "NIR 3 (band 9)", "nir09", 0.945, 0.026),
    "B11": ("swir16", "SWIR 1 (band 11)", "swir16", 1.61, 0.143),
    "B12": ("swir22", "SWIR 2 (band 12)", "swir22", 2.19, 0.242),
}
_EXTENSIONS = [
    "https://stac-extensions.github.io/grid/v1.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.1.0/schema.json",
    "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
    "https://stac-extensions.github.io/view/v1.0.0/schema.json",
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "https://stac-extensions.github.io/mgrs/v1.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
]
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"


@dataclass(frozen=True)
class SceneRecord:
    """What is known about one finished item; ``histogram`` counts the SCL values 0..11."""

    take: Take
    product: Product
    tile: UtmTile
    number: int
    histogram: NDArray[np.int64]
    footprint: Polygon

    @property
    def id(self) -> str:
        """Item id, for example ``S2A_34VFK_20180427_0_L2A``."""
        day = self.take.day.replace("-", "")
        return f"{self.take.platform}_{self.tile.mgrs}_{day}_{self.product.sequence}_L2A"


def _time(stamp: str, seconds: float = 0.0) -> str:
    moment = datetime.strptime(stamp, "%Y%m%dT%H%M%S") + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def lonlat(geometry: Polygon, crs: str | int) -> Polygon:
    """A polygon in longitude and latitude, six decimals."""
    to = Transformer.from_crs(crs, 4326, always_xy=True)
    moved = shapely.transform(geometry, lambda p: np.round(np.column_stack(to.transform(p[:, 0], p[:, 1])), 6))
    return Polygon(moved.exterior)


def _asset(band: str, tile: UtmTile, offset: float) -> dict[str, Any]:
    key, title, common, centre, width = ASSETS[band]
    gsd = GSD[band]
    return {
        "href": f"./{band}.tif",
        "type": _COG,
        "title": f"{title} - {gsd}m",
        "eo:bands": [
            {"name": key, "common_name": common, "description": title, "center_wavelength": centre,
             "full_width_half_max": width}
        ],
        "gsd": gsd,
        "proj:shape": list(tile.shape(gsd)),
        "proj:transform": [gsd, 0, tile.left, 0, -gsd, tile.top],
        "raster:bands": [
            {"nodata": 0, "data_type": "uint16", "bits_per_sample": 15, "spatial_resolution": gsd, "scale": 0.0001,
             "offset": offset}
        ],
        "roles": ["data", "reflectance"],
    }  # fmt: skip


def _scl_asset(tile: UtmTile) -> dict[str, Any]:
    return {
        "href": "./SCL.tif",
        "type": _COG,
        "title": "Scene classification map (SCL)",
        "proj:shape": list(tile.shape(20)),
        "proj:transform": [20, 0, tile.left, 0, -20, tile.top],
        "raster:bands": [{"nodata": 0, "data_type": "uint8", "spatial_resolution": 20}],
        "roles": ["data", "reflectance"],
    }


def _properties(scene: SceneRecord) -> dict[str, Any]:
    take, product, tile, counts = scene.take, scene.product, scene.tile, scene.histogram
    compact, baseline = product.baseline.replace(".", ""), product.baseline
    total, valid = int(counts.sum()), int(counts[1:].sum())
    orbit_number = 10000 + scene.number * 143
    _, flag = product.state(tile.zone)
    strip = f"{product.generated}_S{take.sensed}_N{baseline}"
    return {
        "created": _time(product.generated, 21600),
        "platform": {"S2A": "sentinel-2a", "S2B": "sentinel-2b"}[take.platform],
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": percent(counts, (8, 9, 10), valid),
        "proj:epsg": tile.epsg,
        "mgrs:utm_zone": tile.zone,
        "mgrs:latitude_band": "V",
        "mgrs:grid_square": tile.square,
        "grid:code": f"MGRS-{tile.mgrs}",
        "view:sun_azimuth": round(take.sun_azimuth, 6),
        "view:sun_elevation": round(take.sun_elevation, 6),
        "s2:degraded_msi_data_percentage": 0,
        "s2:nodata_pixel_percentage": percent(counts, (0,), total),
        "s2:saturated_defective_pixel_percentage": percent(counts, (1,), valid),
        "s2:dark_features_percentage": percent(counts, (2,), valid),
        "s2:cloud_shadow_percentage": percent(counts, (3,), valid),
        "s2:vegetation_percentage": percent(counts, (4,), valid),
        "s2:not_vegetated_percentage": percent(counts, (5,), valid),
        "s2:water_percentage": percent(counts, (6,), valid),
        "s2:unclassified_percentage": percent(counts, (7,), valid),
        "s2:medium_proba_clouds_percentage": percent(counts, (8,), valid),
        "s2:high_proba_clouds_percentage": percent(counts, (9,), valid),
        "s2:thin_cirrus_percentage": percent(counts, (10,), valid),
        "s2:snow_ice_percentage": percent(counts, (11,), valid),
        "s2:product_type": "S2MSI2A",
        "s2:processing_baseline": baseline,
        "s2:product_uri": (
            f"{take.platform}_MSIL2A_{take.sensed}_N{compact}_R{take.orbit:03d}_T{tile.mgrs}_{product.generated}.SAFE"
        ),
        "s2:generation_time": _time(product.generated),
        "s2:datatake_id": f"G{take.platform}_{take.sensed}_{orbit_number:06d}_N{baseline}",
        "s2:datatake_type": "INS-NOBS",
        "s2:datastrip_id": f"{take.platform}_OPER_MSI_L2A_DS_2APS_{strip}",
        "s2:granule_id": (
            f"{take.platform}_OPER_MSI_L2A_TL_2APS_{product.generated}_A{orbit_number:06d}_T{tile.mgrs}_N{baseline}"
        ),
        "s2:reflectance_conversion_factor": round(1 + 0.0334 * np.cos(2 * np.pi * (take.doy - 3) / 365.25), 12),
        "datetime": _time(take.sensed, 480.022 + (tile.zone % 2) * 4.3),
        "s2:sequence": str(product.sequence),
        "earthsearch:payload_id": f"synthetic/workflow-sentinel2-to-stac/{scene.id}",
        "earthsearch:boa_offset_applied": flag,
        "processing:software": {"sentinel2-to-stac": "0.1.1"},
        "updated": _time(product.generated, 21600),
    }


def item(scene: SceneRecord) -> dict[str, Any]:
    """The STAC item of a scene. ``raster:bands[].offset`` is -0.1 from baseline 04.00 on, applied or not, as Earth
    Search writes it."""
    offset = -0.1 if float(scene.product.baseline) >= 4 else 0
    footprint = lonlat(scene.footprint, scene.tile.epsg)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": scene.id,
        "properties": _properties(scene),
        "geometry": mapping(footprint),
        "links": [
            {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
            {"rel": "collection", "href": "../collection.json", "type": "application/json"},
            {"rel": "parent", "href": "../collection.json", "type": "application/json"},
        ],
        "assets": {ASSETS[b][0]: _asset(b, scene.tile, offset) for b in ASSETS} | {"scl": _scl_asset(scene.tile)},
        "bbox": list(footprint.bounds),
        "stac_extensions": _EXTENSIONS,
        "collection": COLLECTION,
    }


def write_json(path: Path, value: Any) -> None:
    """JSON with a fixed layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_catalog(folder: Path, scenes: list[SceneRecord]) -> None:
    """Write catalog, collection and items under ``folder`` (the COGs already lie beside the items)."""
    items = [item(s) for s in sorted(scenes, key=lambda s: s.id)]
    for one in items:
        write_json(folder / COLLECTION / one["id"] / f"{one['id']}.json", one)
    boxes = np.array([i["bbox"] for i in items])
    times = sorted(i["properties"]["datetime"] for i in items)
    extent = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    collection = {
        "type": "Collection",
        "id": COLLECTION,
        "stac_version": "1.0.0",
        "title": "Sentinel-2 Level-2A of the sample country (synthetic)",
        "description": "Synthetic scenes made by geoflow's sample generator; no satellite has seen this country",
        "license": "CC0-1.0",
        "extent": {"spatial": {"bbox": [extent]}, "temporal": {"interval": [[times[0], times[-1]]]}},
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
            *({"rel": "item", "href": f"./{i['id']}/{i['id']}.json", "type": "application/geo+json"} for i in items),
        ],
        "stac_extensions": [],
    }
    catalog = {
        "type": "Catalog",
        "id": "geoflow-sample",
        "stac_version": "1.0.0",
        "description": "The sample country of geoflow: entirely synthetic",
        "links": [
            {"rel": "root", "href": "./catalog.json", "type": "application/json"},
            {"rel": "child", "href": f"./{COLLECTION}/collection.json", "type": "application/json"},
        ],
    }
    write_json(folder / COLLECTION / "collection.json", collection)
    write_json(folder / "catalog.json", catalog)
