"""How good a change map is, from a sample whose points have a reference in both epochs.

What has changed depends on the level: a conifer forest that became a broad-leaved one has changed at level 3 of CORINE
and not at level 1. Map and reference are therefore compared at the level asked for, whatever level the change map was
made at. Whatever the strata were, the estimators are those of Stehman 2014 (`geoflow.mapping.estimators`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from geoflow.errors import GeoflowError, GridError
from geoflow.legends import Legend, listed
from geoflow.mapping import estimators
from geoflow.mapping.change import CHANGED, UNCHANGED, UNOBSERVED
from geoflow.mapping.sampling import Sample, at_level, sizes_of

NAMES = {UNCHANGED: "unchanged", CHANGED: "changed"}
"""The classes of the assessment of a change map."""

_VARIABLES = ("change", "from_code", "to_code")


def add_change(sample: Sample, change: xr.Dataset) -> Sample:
    """A sample with what a change map says at its points, as columns ``change``, ``from_code`` and ``to_code``.

    Parameters
    ----------
    sample : Sample
        Drawn from a map on the same grid.
    change : Dataset, dims (y, x)
        ``change`` (0 not observed, 1 unchanged, 2 changed), ``from_code`` and ``to_code`` (0 where not changed), as
        in the store's ``change/<a>-<b>``; dask or numpy.

    Raises
    ------
    GridError
        If a point lies outside of the change map.
    """
    geobox = change.odc.geobox
    points = sample.points.geometry.to_crs(geobox.crs.to_wkt())
    col, row = ~geobox.transform * (points.x.to_numpy(), points.y.to_numpy())
    row, col = np.floor(row).astype(int), np.floor(col).astype(int)
    height, width = geobox.shape
    if (outside := (row < 0) | (col < 0) | (row >= height) | (col >= width)).any():
        raise GridError(f"the points {listed(sample.points['id'][outside])} lie outside of the change map")
    y, x = geobox.dimensions
    at = change[list(_VARIABLES)].isel({y: xr.DataArray(row, dims="point"), x: xr.DataArray(col, dims="point")})
    values = at.compute()
    return replace(sample, points=sample.points.assign(**{name: values[name].values for name in _VARIABLES}))


def count_changed(change: xr.Dataset, legend: Legend, level: int) -> int:
    """Pixels that a change map shows as changed at a level, block by block; ``change`` as in `add_change`."""
    table = np.zeros(max(legend.codes()) + 1, np.int32)
    for code in legend.codes():
        table[code] = legend.ancestor(code, level)
    before, after = (
        xr.apply_ufunc(table.__getitem__, change[name], dask="parallelized", output_dtypes=[table.dtype])
        for name in ("from_code", "to_code")
    )
    return int(((change["change"] == CHANGED) & (before != after)).sum().compute())


def unobserved(sample: Sample) -> int:
    """Points of `add_change` that the change map does not judge."""
    return int((sample.points["change"] == UNOBSERVED).sum())


def assess_change(
    sample: Sample, legend: Legend, references: tuple[str, str], level: int | None = None
) -> estimators.Assessment:
    """Accuracy of a change map and the area of change, at a level.

    Parameters
    ----------
    sample : Sample
        With `add_change`; all points have both references.
    legend : Legend
    references : (str, str)
        The columns with the class of the earlier and of the later epoch.
    level : int, optional
        The coarsest by default.

    Returns
    -------
    Assessment
        Of the classes 1 (unchanged) and 2 (changed), see `NAMES`. What the change map does not judge counts as
        unchanged: it shows no change there.

    Raises
    ------
    GeoflowError
        If a reference is empty or coarser than the level, or a stratum has no unit.
    """
    level = legend.levels[0] if level is None else level
    points = sample.points
    for column in references:
        if (empty := points[column].isna()).any():
            raise GeoflowError(f"{column} is empty at {int(empty.sum())} points, ids {listed(points['id'][empty])}")
    before, after = (at_level(points, legend, level, column) for column in references)
    reference = _changed(before, after)
    codes = [[legend.ancestor(int(c), level) if c else 0 for c in points[name]] for name in ("from_code", "to_code")]
    judged = (points["change"] == CHANGED).to_numpy()
    mapped = np.where(judged, _changed(*codes), UNCHANGED)
    strata = points["stratum"].tolist()
    return estimators.estimate_strata(strata, mapped, reference, sizes_of(sample), list(NAMES), sample.pixel_area_m2)


def _changed(before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    return np.where(np.asarray(before) != np.asarray(after), CHANGED, UNCHANGED)
