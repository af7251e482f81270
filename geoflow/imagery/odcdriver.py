"""odc-loader's driver protocol on top of `geoflow.imagery.read`, so that both loaders read a pixel the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from odc.loader import RioDriver

from geoflow.imagery.read import Access, ReadLog, SceneFile, read_onto
from geoflow.imagery.resample import Resampling, Target


class SceneDriver(RioDriver):
    """Opens scenes through `read_file`: signed at the last moment, failures as `ReadError`."""

    def __init__(
        self, files: Mapping[str, SceneFile], access: Access, resampling: Resampling, log: ReadLog | None
    ) -> None:
        super().__init__()
        self._files = files
        self._access = access
        self._resampling = resampling
        self._log = log

    def open(self, src: Any, ctx: Any) -> Any:
        """A reader of one file."""
        return _FileReader(self._files[src.uri], self._access, self._resampling, self._log)


class _FileReader:
    def __init__(self, file: SceneFile, access: Access, resampling: Resampling, log: ReadLog | None) -> None:
        self._file, self._access, self._resampling, self._log = file, access, resampling, log

    def read(
        self, cfg: Any, dst_geobox: GeoBox, *, dst: Any = None, selection: Any = None
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """(where in the grid, pixels): always the whole of ``dst_geobox``."""
        shape = (dst_geobox.shape.y, dst_geobox.shape.x)
        target = Target(crs_text(dst_geobox.crs), dst_geobox.transform, shape)
        pixels = read_onto(self._file, target, self._resampling, self._access, self._log)
        if dst is not None:
            dst[...] = pixels
            pixels = dst
        return np.s_[0 : shape[0], 0 : shape[1]], pixels


def crs_text(crs: Any) -> str:
    """A CRS of odc-geo as `Target` takes it."""
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.to_wkt())


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
