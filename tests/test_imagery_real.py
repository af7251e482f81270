"""Composites of real scenes: no seam where two tiles overlap, and no cloud that the scene classification knew of."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from odc.geo.geom import box

from geoflow.grid import Grid
from geoflow.imagery import (
    Catalog,
    CompositeOptions,
    Period,
    composite_tile,
    load_catalog,
    load_cube,
    load_scl,
    search,
    with_decisions,
)
from geoflow.imagery.clearmask import SCL_MASKED
from geoflow.inputs import NODATA

BANDS = ("B02", "B03", "B04", "B08")
AUGUST = Period("august", date(2023, 8, 10), date(2023, 8, 20))
AREA = box(15.05, 45.0, 16.35, 46.9, "EPSG:4326")
# As tests/real/slovenia.yaml: on this grid, the tiles' own, their borders are rows.
GEOBOX = Grid.cover(AREA, "EPSG:32633", 120, 512, 256).geobox


@pytest.fixture(scope="module")
def scenes() -> tuple[Catalog, tuple[dict, ...]]:
    folder = os.environ.get("GEOFLOW_REAL_DATA")
    if not folder:
        pytest.skip("GEOFLOW_REAL_DATA is not set: no real scenes")
    catalog = load_catalog(Path(__file__).parent / "real/s2-slovenia.yaml", f"{folder}/s2-slovenia/catalog.json")
    return catalog, with_decisions(search(catalog, AREA, "2023-08-10", "2023-08-20", bands=BANDS).items, catalog)


def composed(scenes: tuple[Catalog, tuple[dict, ...]], method: str) -> xr.Dataset:
    catalog, items = scenes
    options = CompositeOptions((AUGUST,), BANDS, dilate_m=240, speck_m=400, method=method)
    return composite_tile(items, GEOBOX, options, catalog).isel(period=0).compute()


def borders(items: tuple[dict, ...]) -> list[int]:
    """Rows of the grid at which a tile begins or ends, within the other tile."""
    edges = {}
    for item in items:
        place = item["assets"]["blue"]
        top, (height, _) = place["proj:transform"][5], place["proj:shape"]
        edges[item["id"].split("_")[1]] = (top, top - 120 * height)
    (north_top, north_bottom), (south_top, south_bottom) = edges["33TWM"], edges["33TWL"]
    assert north_top > south_top > north_bottom > south_bottom, "the tiles overlap"
    return [round((GEOBOX.boundingbox.top - y) / 120) for y in (south_top, north_bottom)]


def differences(scenes: tuple[Catalog, tuple[dict, ...]]) -> dict[str, float]:
    """How far the two products of one datatake are apart where both are clear: the most of any date, by band."""
    catalog, items = scenes
    found = dict.fromkeys(BANDS, 0.0)
    for north in [item for item in items if "_33TWM_" in item["id"]]:
        south = next(item for item in items if item["id"] == north["id"].replace("33TWM", "33TWL"))
        one, other = (
            load_cube([item], GEOBOX, BANDS, catalog).isel(time=0).values.astype(int) for item in (north, south)
        )
        scl = [load_scl([item], GEOBOX, catalog).isel(time=0).values for item in (north, south)]
        both = (one[0] != NODATA) & (other[0] != NODATA) & ~np.isin(scl, SCL_MASKED).any(axis=0)
        assert both.sum() > 30_000
        for band, name in enumerate(BANDS):
            found[name] = max(found[name], abs(float((other - one)[band][both].mean())))
    return found


@pytest.mark.parametrize("method", ["median", "medoid", "best"])
def test_a_border_of_tiles_adds_nothing_to_the_scenes(scenes, method):
    """Steps from row to row at a border are as large as any around, and lean to one side no more than the products do.

    The two products of a datatake differ, as each is corrected for an atmosphere of its own: docs/imagery.md.
    """
    image = composed(scenes, method).reflectance.values.astype(float)
    image[image == NODATA] = np.nan
    steps = image[:, 1:] - image[:, :-1]  # steps[:, r] lead from row r to row r + 1
    rows, apart = borders(scenes[1]), differences(scenes)
    for row in rows:
        around = [r for r in range(row - 60, row + 60) if all(abs(r - border) > 3 for border in rows)]
        for band, name in enumerate(BANDS):
            for kind, of, allowed in (("size", np.abs(steps[band]), 0.0), ("lean", steps[band], apart[name])):
                usual = np.array([np.nanmean(of[r]) for r in around])
                # The grids of the tiles differ by half a pixel, so the border may be a row before or after.
                at = np.array([np.nanmean(of[r]) for r in (row - 2, row - 1, row)])
                off = float(np.abs(at - usual.mean()).max())
                print(f"{method} {name} row {row} {kind}: {off:.1f}, usual {usual.mean():.1f} +- {usual.std():.1f}")
                assert off < allowed + 4 * usual.std(), (name, row, kind)


def test_no_cloud_is_left_that_the_classification_knew_of(scenes):
    """A pixel lies between its clear observations, and has a value only where there is one."""
    catalog, items = scenes
    cube = load_cube(items, GEOBOX, BANDS, catalog).compute().values.astype(float)
    scl = load_scl(items, GEOBOX, catalog).compute().values
    clear = ~np.isin(scl, SCL_MASKED)
    assert 0.05 < (np.isin(scl, (8, 9, 10)) & (cube[:, 0] != NODATA)).mean() < 0.4, "there was cloud to be found"
    cube[~clear[:, None] | (cube == NODATA)] = np.nan
    made = composed(scenes, "median").reflectance.values
    filled = made != NODATA
    assert filled.mean() > 0.8
    assert not (filled & np.isnan(cube).all(axis=0)).any()
    with np.errstate(invalid="ignore"):
        low, high = np.fmin.reduce(cube), np.fmax.reduce(cube)
        assert ((made >= low) & (made <= high + 0.5))[filled].all()


def test_the_source_of_a_pixel_saw_the_ground(scenes):
    """Of a method that takes whole observations, the scene that a pixel is of was clear there."""
    catalog, items = scenes
    made = composed(scenes, "best")
    for number, item in enumerate(items):
        taken = made.source.values == number
        assert taken.any()
        scl = load_scl([item], GEOBOX, catalog).isel(time=0).values
        assert not np.isin(scl[taken], SCL_MASKED).any()
