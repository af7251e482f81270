"""From a provider's digital numbers to the one unit of every cube: reflectance x 10000, offset applied, nodata -32768.

Since processing baseline 04.00 (January 2022) ESA's level 2A holds ``DN = 10000 * reflectance + 1000``; some providers
take the 1000 off again, some do not, and one says whether it did in a flag that is wrong for a part of its items
(Element84/earth-search issues 9, 66 and 71). The sensing date is no guide, because old scenes are reprocessed. So the
offset is decided per scene from the provider's rule and the baseline, checked against the darkest clear pixels, and
the decision is recorded. This module is the only place that knows about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numpy.typing import NDArray

from geoflow.errors import SceneError
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.items import Item, asset_href, baseline_of
from geoflow.inputs import NODATA

if TYPE_CHECKING:
    from geoflow.imagery.read import ReadLog

OFFSET = -1000
"""What has to be added to a digital number that carries ESA's offset."""

PROPERTY = "geoflow:offset"
"""Property of a frozen item that holds its decision."""

UNREADABLE = "unreadable"
"""`OffsetDecision.pixels` of a scene whose pixels were to be asked and could not be read."""

_FIRST_BASELINE_WITH_OFFSET = (4, 0)
_DARK_BANDS = ("B02", "B04", "B03")  # in order of preference; two of them are read
_DARK_CLASSES = (2, 3, 4, 6)  # SCL: dark area, cloud shadow, vegetation, water: all dark in blue and red
_DARK_PERCENTILE = 5.0
_MIN_DARK_PIXELS = 200
_SAMPLE_PX = 512
_ABSENT_BELOW, _PRESENT_ABOVE = 650, 850


@dataclass(frozen=True)
class OffsetDecision:
    """What is added to a scene's digital numbers, and why.

    Attributes
    ----------
    add : int
        0 or -1000.
    rule : str
        What decided: ``none``, ``baseline``, ``flag`` or ``pixels``.
    expected : int
        What metadata alone would have decided.
    pixels : str
        What the dark pixels say about the offset in the digital numbers: ``present``, ``absent``, ``unclear``,
        ``not read``, or ``unreadable`` where they were to be asked and could not.
    dark_dn : int or None
        The 5th percentile of the digital numbers over dark clear pixels, in the darker of two visible bands.
    dark_pixels : int
        How many pixels that rests on.
    note : str
        One sentence where metadata and pixels disagree, or pixels could not be read; else empty.
    """

    add: int
    rule: str
    expected: int
    pixels: str = "not read"
    dark_dn: int | None = None
    dark_pixels: int = 0
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the frozen item and the ledger."""
        return asdict(self)


@dataclass(frozen=True)
class DarkPixels:
    """How the pixels of a scene are asked about its offset.

    Parameters
    ----------
    attempts, timeout_s
        As of `geoflow.imagery.read.Access`.
    must : bool
        Whether pixels that cannot be read are an error; else the metadata stand, and the decision says so.
    log : ReadLog, optional
        Told about reads that failed or had to be tried again.
    """

    attempts: int = 3
    timeout_s: float = 60.0
    must: bool = True
    log: ReadLog | None = None


def decide_offset(
    item: Item, catalog: Catalog, read_pixels: bool = True, asking: DarkPixels = DarkPixels()
) -> OffsetDecision:
    """Decide what has to be added to a scene's digital numbers.

    Before baseline 04.00 there was no offset, whatever a flag says. From then on the catalog's rule tells what to
    expect, and the pixels are asked: vegetation, water and shadow reflect less than 5 % of blue or red light, so that
    their digital numbers lie near 200 without the offset and near 1200 with it. Where the pixels clearly contradict
    the metadata, the pixels win. Where a scene has too few dark pixels, or they are unclear, the metadata stand.

    Parameters
    ----------
    item : dict
        A frozen item.
    read_pixels : bool
        False decides from metadata alone and opens no file.
    asking : DarkPixels

    Raises
    ------
    SceneError
        If metadata say nothing of the offset, or the pixels cannot be read and must be.
    """
    from geoflow.imagery.read import ReadError

    expected, rule = _from_metadata(item, catalog)
    baseline = baseline_of(item)
    settled = rule == "none" or (baseline is not None and baseline < _FIRST_BASELINE_WITH_OFFSET)
    if settled or not read_pixels:
        return OffsetDecision(expected, rule, expected)
    try:
        verdict, dark_dn, count = _dark_pixel_test(item, catalog, asking)
    except ReadError as error:
        if asking.must:
            raise
        note = f"{rule} says add {expected}, and no pixel could be asked: {error}"
        return OffsetDecision(expected, rule, expected, UNREADABLE, note=note)
    seen = {"present": OFFSET, "absent": 0}.get(verdict, expected)
    if seen == expected:
        return OffsetDecision(expected, rule, expected, verdict, dark_dn, count)
    note = f"{rule} says add {expected}, but dark pixels have DN {dark_dn}, so the offset is {verdict}: adding {seen}"
    return OffsetDecision(seen, "pixels", expected, verdict, dark_dn, count, note)


def with_decisions(
    items: Sequence[Item], catalog: Catalog, workers: int = 8, asking: DarkPixels = DarkPixels()
) -> tuple[dict[str, Any], ...]:
    """The items with each one's `OffsetDecision` in ``properties["geoflow:offset"]``.

    Meant for the driver, once, after the search: tasks then need no reads of their own to know the offset.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        decisions = list(pool.map(lambda item: decide_offset(item, catalog, asking=asking), items))
    return tuple(
        {**item, "properties": {**item["properties"], PROPERTY: decision.to_dict()}}
        for item, decision in zip(items, decisions, strict=True)
    )


def offset_of(item: Item, catalog: Catalog) -> int:
    """The offset to add for a scene: the recorded decision, or one made now."""
    recorded = item["properties"].get(PROPERTY)
    return int(recorded["add"]) if recorded else decide_offset(item, catalog).add


def to_reflectance(dn: NDArray[np.uint16], add: int) -> NDArray[np.int16]:
    """Digital numbers to the unit of the cube, in place where the array is contiguous.

    Parameters
    ----------
    dn : uint16 array, any dims
        Digital numbers; 0 is nodata. Its memory becomes the result's: it must not be used any more.
    add : int
        What is added to each valid number.

    Returns
    -------
    int16 array, the same dims
        Reflectance x 10000, nodata `geoflow.inputs.NODATA`. Valid dark pixels may come out a little below 0 and stay
        valid; what exceeds int16 (reflectance above 3.27, glint) is clipped to 32767.
    """
    dn = np.ascontiguousarray(dn)  # of another, reshape would make a copy, and the result would be the raw numbers
    _to_reflectance(dn.reshape(-1), np.int32(add))
    return dn.view(np.int16)


@numba.njit(cache=True, nogil=True)
def _to_reflectance(dn: Any, add: Any) -> None:
    """Int16 values, written as the uint16 of the same bits: with one array the compiler uses vectors, with two views of
    the same memory it does not dare to."""
    lowest, highest, nodata = np.int32(NODATA + 1), np.int32(32767), np.int32(NODATA)
    for i in range(dn.size):
        value = np.int32(dn[i])
        moved = min(max(value + add, lowest), highest)
        dn[i] = np.uint16((moved if value != 0 else nodata) & np.int32(0xFFFF))


def _from_metadata(item: Item, catalog: Catalog) -> tuple[int, str]:
    """(what to add, rule) by the provider's rule, the baseline and the flag."""
    baseline = baseline_of(item)
    if catalog.offset == "none":
        return 0, "none"
    if baseline is not None and baseline < _FIRST_BASELINE_WITH_OFFSET:
        return 0, "baseline"
    applied = item["properties"].get("earthsearch:boa_offset_applied")
    if catalog.offset == "earth-search" and applied is not None:
        return (0, "flag") if applied else (OFFSET, "flag")
    if baseline is None:
        raise SceneError(
            f"scene {item['id']} has no processing baseline, so its radiometric offset is unknown: "
            "expected s2:processing_baseline or processing:version"
        )
    return OFFSET, "baseline"


def _dark_pixel_test(item: Item, catalog: Catalog, asking: DarkPixels) -> tuple[str, int | None, int]:
    """(verdict, 5th percentile of the darker band, pixels) from a thinned-out reading of two bands and SCL."""
    bands = [b for b in _DARK_BANDS if b in catalog.assets and catalog.assets[b] in item["assets"]][:2]
    if not bands or catalog.scl not in item["assets"]:
        return "not read", None, 0
    scl = _thinned(item, "SCL", catalog, asking)
    samples = [_thinned(item, band, catalog, asking) for band in bands]
    dark = np.isin(scl, _DARK_CLASSES)
    for sample in samples:
        dark &= sample > 0
    count = int(dark.sum())
    if count < _MIN_DARK_PIXELS:
        return "unclear", None, count
    dn = int(min(np.percentile(sample[dark], _DARK_PERCENTILE) for sample in samples))
    if dn <= _ABSENT_BELOW:
        return "absent", dn, count
    return ("present" if dn >= _PRESENT_ABOVE else "unclear"), dn, count


def _thinned(item: Item, band: str, catalog: Catalog, asking: DarkPixels) -> NDArray[Any]:
    """The whole scene in one band at `_SAMPLE_PX` pixels a side, from the overviews where there are any."""
    from geoflow.imagery.read import Access, SceneFile, read_file

    file = SceneFile(asset_href(item, band, catalog), item["id"], band)
    access = Access.of(catalog, asking.attempts, asking.timeout_s)
    shape = (_SAMPLE_PX, _SAMPLE_PX)
    return read_file(file, access, lambda dataset: dataset.read(1, out_shape=shape), asking.log)
