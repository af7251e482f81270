"""From what to what, in hectares: a change map summed up by transition and zone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import GridError, LegendError
from geoflow.legends import Legend
from geoflow.mapping.areas import Tally, geobox_of, north_up, tally_blocks, zones_on
from geoflow.mapping.change import CHANGED, UNCHANGED

if TYPE_CHECKING:
    import geopandas

_UNCHANGED = 1  # among the numbers that stand for transitions; 0 is nodata
_FIRST = 2


def transitions(
    change: xr.Dataset, zones: geopandas.GeoDataFrame | None, legend: Legend, zone_column: str | None = None
) -> pd.DataFrame:
    """Hectares of every transition in every zone.

    Parameters
    ----------
    change : xr.Dataset, dims (y, x)
        A change map: ``change``, ``from_code`` and ``to_code``, codes of the legend's deepest level. Read block by
        block.
    zones, legend, zone_column
        See `geoflow.mapping.areas.areas`.

    Returns
    -------
    pd.DataFrame
        One row for each transition that occurs, the largest of a zone first: ``zone``, ``from_code``, ``from_name``,
        ``to_code``, ``to_name``, ``ha`` and ``share`` (0..1, of what was compared in the zone). The first row of a zone
        is what did not change, with the codes 0. Pixels that were not compared are not counted.

    Raises
    ------
    GridError, LegendError
        If the map is no change map, or as `geoflow.mapping.areas.areas` says.

    Notes
    -----
    Areas are on the ellipsoid and exact at the borders of zones, as those of `geoflow.mapping.areas.areas`.
    """
    if missing := [name for name in ("change", "from_code", "to_code") if name not in change]:
        raise GridError(f"a change map has change, from_code and to_code; this one lacks {', '.join(missing)}")
    codes = np.array(legend.codes(legend.deepest), np.int64)
    numbers = north_up(_numbered(change, codes))
    geobox = geobox_of(numbers)
    names, shapes = (["all"], None) if zones is None else zones_on(zones, zone_column, geobox)
    return _table(tally_blocks({0: numbers}, shapes, geobox), names, codes, legend)


def _numbered(change: xr.Dataset, codes: NDArray[np.int64]) -> xr.DataArray:
    parts = [change[name] for name in ("change", "from_code", "to_code")]
    numbered = xr.apply_ufunc(_number, *parts, kwargs={"codes": codes}, dask="parallelized", output_dtypes=[np.uint32])
    return change["change"].copy(data=numbered.data)


def _number(
    state: NDArray[np.uint8], first: NDArray[Any], second: NDArray[Any], codes: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """One number for each transition: from the position of both codes among all."""
    out = np.where(state == UNCHANGED, _UNCHANGED, 0).astype(np.uint32)
    changed = state == CHANGED
    pairs = np.stack([first[changed], second[changed]]).astype(np.int64)
    at = np.searchsorted(codes, pairs)
    known = codes[np.minimum(at, len(codes) - 1)] == pairs
    if not known.all():
        raise LegendError(f"the change map holds codes that the legend lacks: {np.unique(pairs[~known])[:5].tolist()}")
    out[changed] = _FIRST + at[0] * len(codes) + at[1]
    return out


def _table(tally: Tally, names: list[Any], codes: NDArray[np.int64], legend: Legend) -> pd.DataFrame:
    compared: Counter[int] = Counter()
    for (zone, _, _), m2 in tally.items():
        compared[zone] += m2
    rows = []
    for (zone, _, number), m2 in tally.items():
        pair = (0, 0) if number == _UNCHANGED else tuple(codes[list(divmod(number - _FIRST, len(codes)))].tolist())
        named = [("unchanged" if code == 0 else legend.label(code)) for code in pair]
        rows.append((zone, number != _UNCHANGED, pair[0], named[0], pair[1], named[1], m2 / 1e4, m2 / compared[zone]))
    rows.sort(key=lambda row: (row[0], row[1], -row[6], row[2], row[4]))
    columns = ["zone", "from_code", "from_name", "to_code", "to_name", "ha", "share"]
    return pd.DataFrame([(names[zone], *rest) for zone, _, *rest in rows], columns=columns)
