"""odc-loader's driver protocol on top of `geoflow.imagery.read`, so that both loaders read a pixel the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from odc.loader import RioDriver
from rasterio.crs import CRS
from rasterio.enums import Resampling

from geoflow.imagery.read import open_file, read_onto


class SceneDriver(RioDriver):
    """Opens scenes through `open_file`: signed at the last moment, failures as `SceneError`."""

    def __init__(
        self, names: Mapping[str, tuple[str, str]], signing: str, gdal: Mapping[str, str], resampling: str
    ) -> None:
        super().__init__()
        self._names = names
        self._signing = signing
        self._gdal = gdal
        self._resampling = Resampling[resampling]

    def open(self, src: Any, ctx: Any) -> Any:
        """A reader of one file."""
        scene, band = self._names[src.uri]
        return _FileReader(src.uri, scene, band, self._signing, self._gdal, self._resampling)


class _FileReader:
    def __init__(
        self, href: str, scene: str, band: str, signing: str, gdal: Mapping[str, str], resampling: Resampling
    ) -> None:
        self._open = (href, scene, band, signing, gdal)
        self._resampling = resampling

    def read(
        self, cfg: Any, dst_geobox: GeoBox, *, dst: Any = None, selection: Any = None
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """(where in the grid, pixels): always the whole of ``dst_geobox``."""
        shape = (dst_geobox.shape.y, dst_geobox.shape.x)
        crs = CRS.from_user_input(str(dst_geobox.crs))
        with open_file(*self._open) as dataset:
            pixels = read_onto(dataset, crs, dst_geobox.transform, shape, self._resampling)
        if dst is not None:
            dst[...] = pixels
            pixels = dst
        return np.s_[0 : shape[0], 0 : shape[1]], pixels


def stand_in(name: str, time: datetime, hrefs: Mapping[str, str], geobox: GeoBox) -> Any:
    """A pystac item whose assets claim to lie on the grid itself: odc-stac need not guess, and the driver finds out."""
    import pystac

    extent = geobox.geographic_extent
    item = pystac.Item(name, extent.json, list(extent.boundingbox), time, {})
    fields: dict[str, Any] = {"proj:shape": list(geobox.shape), "proj:transform": list(geobox.transform)[:6]}
    epsg = None if geobox.crs is None else geobox.crs.epsg
    fields |= {"proj:code": f"EPSG:{epsg}"} if epsg else {"proj:wkt2": geobox.crs.to_wkt() if geobox.crs else ""}
    item.stac_extensions = ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"]
    for band, href in hrefs.items():
        item.add_asset(band, pystac.Asset(href, media_type="image/tiff", roles=["data"], extra_fields=fields))
    return item


__all__: Sequence[str] = ("SceneDriver", "stand_in")
