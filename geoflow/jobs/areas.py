"""Hectares per class and zone of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from geoflow.errors import JobError
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.records import read_summary
from geoflow.places import local_copy
from geoflow.store.reading import open_store

if TYPE_CHECKING:
    import pandas as pd


def areas_of_run(out: Path, zones: Path | None = None, zone_column: str | None = None) -> pd.DataFrame:
    """Hectares per epoch, zone, level and class of a run's maps.

    Parameters
    ----------
    out : Path
        The run's output folder.
    zones : Path, optional
        Polygons in any CRS; the whole country without.
    zone_column : str, optional
        Column of the zones' names; their number in the file without.

    Returns
    -------
    pandas.DataFrame
        ``epoch`` and the columns of `geoflow.mapping.areas.areas`.

    Raises
    ------
    StoreError, JobError, GridError
        If there is no such run or it has no map, the file of zones cannot be read, or no zone meets the map.
    """
    import geopandas

    from geoflow.mapping.epochareas import areas_by_epoch

    flow = Flow(parse_job(read_summary(out)["config"]), out.resolve())
    if not flow.job.predict:
        raise JobError(f"{out} holds no map: its job has no predict section")
    read = None
    if zones is not None:
        try:
            read = geopandas.read_file(local_copy(zones))
        except (OSError, RuntimeError, ValueError) as error:
            raise JobError(f"--zones {zones} cannot be read: {error}") from None
    country = open_store(flow.store_path)
    maps = {epoch: country[f"map/{epoch}"].to_dataset() for epoch in flow.job.mapped_epochs}
    return areas_by_epoch(maps, read, flow.legend, zone_column=zone_column)
