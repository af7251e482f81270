"""Areas of the maps of several epochs in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from geoflow.mapping.areas import areas

if TYPE_CHECKING:
    import geopandas
    import xarray as xr

    from geoflow.legends import Legend


def areas_by_epoch(
    maps: Mapping[str, xr.Dataset],
    zones: geopandas.GeoDataFrame | None,
    legend: Legend,
    levels: Sequence[int] | None = None,
    zone_column: str | None = None,
) -> pd.DataFrame:
    """Hectares per epoch, zone, level and class.

    Parameters
    ----------
    maps : mapping of epoch to Dataset
    zones, legend, levels, zone_column
        See `geoflow.mapping.areas.areas`.

    Returns
    -------
    pd.DataFrame
        ``epoch`` and the columns of `geoflow.mapping.areas.areas`.
    """
    found = []
    for epoch, dataset in maps.items():
        table = areas(dataset, zones, legend, levels, zone_column)
        table.insert(0, "epoch", epoch)
        found.append(table)
    return pd.concat(found, ignore_index=True)
