"""From a STAC catalog to harmonised, cloud-free reflectance on a GeoBox.

``catalog`` (what a provider is like) -> ``search`` (frozen scenes) -> ``harmonise`` (their offset) -> ``load`` (lazy
cubes) -> ``composite`` (one image a period, with the functions of ``clearmask`` and ``kernels``). Only ``read`` and
``sign`` touch files and networks for pixels.
"""

from geoflow.imagery.catalog import Catalog, load_catalog, packaged_catalogs
from geoflow.imagery.clearmask import clear_mask
from geoflow.imagery.clouds import CloudDetector, DetectorOptions, find_detector
from geoflow.imagery.composite import CompositeOptions, Period, composite_tile
from geoflow.imagery.harmonise import OffsetDecision, decide_offset, with_decisions
from geoflow.imagery.items import items_on
from geoflow.imagery.kernels import (
    best_composite,
    geomedian_composite,
    median_composite,
    medoid_composite,
    percentile_composite,
)
from geoflow.imagery.load import Reading, load_cube, load_scl, time_steps
from geoflow.imagery.read import ReadError, ReadLog
from geoflow.imagery.search import Refusal, SearchResult, Wishes, find, open_source, search

__all__ = [
    "Catalog",
    "CloudDetector",
    "CompositeOptions",
    "DetectorOptions",
    "OffsetDecision",
    "Period",
    "ReadError",
    "ReadLog",
    "Reading",
    "Refusal",
    "SearchResult",
    "Wishes",
    "best_composite",
    "clear_mask",
    "composite_tile",
    "decide_offset",
    "find",
    "find_detector",
    "geomedian_composite",
    "items_on",
    "load_catalog",
    "load_cube",
    "load_scl",
    "median_composite",
    "medoid_composite",
    "open_source",
    "packaged_catalogs",
    "percentile_composite",
    "search",
    "time_steps",
    "with_decisions",
]
