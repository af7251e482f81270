"""Areas by zone: tile by tile as much as over the whole map; bad zones are told before work starts."""

from __future__ import annotations

import geopandas
import pytest
import shapely

import geoflow as gf
from geoflow.errors import JobError
from geoflow.jobs.checks import checks_of
from geoflow.jobs.console import QuietConsole
from geoflow.jobs.flow import Flow
from geoflow.jobs.zonework import ZoneAreasWork, Zones, zone_areas
from geoflow.legends import legend
from geoflow.store.zarr import open_for_writing


def test_tiles_sum_up_to_the_whole(finished, tiny_country):
    store, corine = finished[1] / "country.zarr", legend("corine")
    zones = Zones("publish", tiny_country / "counties.gpkg", "name")
    tiles = [tile.id for tile in open_for_writing(store).grid.tiles()]
    receipts = {f"2018/{tile}": ZoneAreasWork(store, tile, "map/2018", corine, zones)().content for tile in tiles}
    found = zone_areas(receipts, corine)["2018"]
    counties = geopandas.read_file(zones.file)
    table = gf.areas(gf.open(finished[1])["map/2018"].to_dataset(), counties, corine, zone_column="name")
    assert set(found) == set(table["zone"])
    for row in table.itertuples():
        assert found[row.zone][f"level{row.level}"][str(row.code)] == pytest.approx(row.ha, rel=1e-6, abs=1e-3)
    assert sum(len(codes) for levels in found.values() for codes in levels.values()) == len(table)


def test_a_zone_that_only_touches_a_tile_has_no_area_there(finished, tmp_path):
    store, corine = open_for_writing(finished[1] / "country.zarr"), legend("corine")
    tiles = list(store.grid.tiles())
    squares = [tile.geobox.extent.geom for tile in tiles]
    file = tmp_path / "squares.gpkg"
    geopandas.GeoDataFrame({"name": [t.id for t in tiles]}, geometry=squares, crs=3035).to_file(file)
    zones = Zones("publish", file, "name")
    for tile in tiles:
        found = ZoneAreasWork(store.path, tile.id, "map/2018", corine, zones)().content["zones"]
        mapped = int((store.dataset("map/2018")["level3"].isel(tile.region) != 0).sum())
        assert set(found) == ({tile.id} if mapped else set())
        assert sum(found.get(tile.id, {}).values()) == pytest.approx(mapped / 100, rel=1e-6)


def problems(job, tmp_path) -> list[str]:
    found = []
    for check in checks_of(Flow(job, tmp_path / "out"), QuietConsole()):
        if check.key.endswith(".zones"):
            with pytest.raises(JobError) as told:
                check.look()
            found.append(str(told.value))
    return found


def test_bad_zones_are_told_before_work_starts(tiny_job, tmp_path):
    file = tmp_path / "zones.gpkg"
    squares = [shapely.box(x, 0, x + 1, 1) for x in range(3)]
    geopandas.GeoDataFrame({"name": ["a", "b", "a"]}, geometry=squares, crs=4326).to_file(file)

    def job(**publish):
        return gf.load_job(tiny_job(publish=publish))

    assert "publish.zone_column" in problems(job(zones=str(file), zone_column="nimi"), tmp_path)[0]
    assert "names zones twice: 'a'" in problems(job(zones=str(file), zone_column="name"), tmp_path)[0]
    assert "no zone meets the map" in problems(job(zones=str(file)), tmp_path)[0]
    assert "cannot be read" in problems(job(zones=str(tmp_path / "none.gpkg")), tmp_path)[0]
