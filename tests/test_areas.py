"""Areas: hectares that are true in any CRS, at any border and for any chunks."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr
from pyproj import CRS, Transformer
from shapely.affinity import rotate
from shapely.geometry import LineString, Point, Polygon, box

from geoflow.errors import GridError, LegendError
from geoflow.legends import legend
from geoflow.mapping.areas import areas
from geoflow.mapping.pixelareas import pixel_areas

CORINE = legend("corine")
CODES = np.array([0, 111, 112, 211, 311, 312, 990], np.uint16)
LEFT, TOP = 4_600_000.0, 2_600_000.0


def a_map(shape: tuple[int, int] = (12, 9), seed: int = 0, crs: str = "EPSG:3035", size: float = 10.0) -> xr.DataArray:
    """Codes of level 3 with nodata; the north-west corner lies at (LEFT, TOP)."""
    height, width = shape
    geobox = GeoBox.from_bbox((LEFT, TOP - height * size, LEFT + width * size, TOP), crs, resolution=size, tight=True)
    return on(geobox, seed)


def on(geobox: GeoBox, seed: int = 0) -> xr.DataArray:
    codes = np.random.default_rng(seed).choice(CODES, (geobox.shape.y, geobox.shape.x))
    return wrap_xr(codes, geobox).rename("level3")


def frame(shapes: dict[str, Any], crs: Any = "EPSG:3035") -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame({"name": list(shapes)}, geometry=list(shapes.values()), crs=crs)


def counted(codes: xr.DataArray) -> int:
    return int(np.isin(codes.values, CODES[1:-1]).sum())


def by_class(table: pd.DataFrame, level: int = 3) -> dict[int, float]:
    return table[table["level"] == level].groupby("code")["ha"].sum().to_dict()


def test_hectares_are_counted_pixels_on_every_level() -> None:
    codes = a_map()
    table = areas(codes, None, CORINE)
    assert list(table.columns) == ["zone", "level", "code", "name", "ha", "share"]
    assert set(table["zone"]) == {"all"}
    for level in (1, 2, 3):
        part = table[table["level"] == level]
        assert part["ha"].sum() == pytest.approx(counted(codes) * 0.01)
        assert part["share"].sum() == pytest.approx(1)
    expected = {int(c): float((codes == c).sum()) * 0.01 for c in CODES[1:-1]}
    assert by_class(table) == pytest.approx(expected)
    assert by_class(table, 1)[1] == pytest.approx(expected[111] + expected[112])
    assert table["name"].iloc[0] == CORINE.label(1)


def test_each_level_of_a_dataset_is_counted_on_its_own_map() -> None:
    codes = a_map()
    level1 = (codes * 0 + 5).astype(np.uint8)  # on purpose not what level 3 says
    maps = xr.Dataset({"level1": level1, "level3": codes, "confidence": level1})
    table = areas(maps, None, CORINE)
    assert by_class(table, 1) == pytest.approx({5: codes.size * 0.01})
    assert by_class(table, 2) == pytest.approx(by_class(areas(codes, None, CORINE, levels=[2]), 2))
    assert set(areas(maps, None, CORINE, levels=[3])["level"]) == {3}


def test_a_half_covered_pixel_gives_half() -> None:
    codes = a_map((1, 2))
    codes[:] = [[311, 211]]
    zone = box(LEFT + 5, TOP - 10, LEFT + 12.5, TOP)
    table = areas(codes, frame({"a": zone}), CORINE, levels=[3], zone_column="name")
    assert by_class(table) == pytest.approx({211: 0.0025, 311: 0.005})
    assert table["share"].tolist() == pytest.approx([1 / 3, 2 / 3])
    triangle = Polygon([(LEFT, TOP), (LEFT + 10, TOP), (LEFT, TOP - 10)])
    assert by_class(areas(codes, frame({"a": triangle}), CORINE)) == pytest.approx({311: 0.005})


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), angle=st.floats(0, 180), chunk=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_zones_that_tile_the_map_sum_to_it_for_any_chunks(seed: int, angle: float, chunk: tuple[int, int]) -> None:
    codes = a_map((11, 8), seed)
    centre = (LEFT + 37.3, TOP - 51.1)
    halves = [box(centre[0] - 1e3, centre[1], centre[0] + 1e3, centre[1] + 1e3)]
    halves.append(box(centre[0] - 1e3, centre[1] - 1e3, centre[0] + 1e3, centre[1]))
    zones = frame({n: rotate(h, angle, origin=centre) for n, h in zip("ab", halves, strict=True)})
    whole = areas(codes, zones, CORINE, zone_column="name")
    assert by_class(whole) == pytest.approx(by_class(areas(codes, None, CORINE)), rel=1e-6)
    chunked = areas(codes.chunk(y=chunk[0], x=chunk[1]), zones, CORINE, zone_column="name")
    pd.testing.assert_frame_equal(chunked, whole, rtol=1e-6)


@pytest.mark.parametrize("crs", ["EPSG:3035", "EPSG:4326"])
def test_large_blocks_are_counted_as_pixel_by_pixel(crs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zone with a hole, a speck and a spike: covered parts of a block are counted whole, the others by pixel."""
    geobox = GeoBox.from_bbox((LEFT, TOP, LEFT + 3100, TOP + 2900), "EPSG:3035", resolution=10, tight=True)
    if crs == "EPSG:4326":
        geobox = GeoBox.from_bbox((14.0, 46.0, 14.31, 46.29), crs, resolution=0.001, tight=True)
    codes = on(geobox)
    left, bottom, right, top = geobox.boundingbox
    width, height = right - left, top - bottom
    hole = Point(left + 0.6 * width, bottom + 0.5 * height).buffer(0.1 * width)
    spike = Polygon([(left, top), (right, top - 0.001 * height), (right, top - 0.002 * height)])
    disc = Point(left + 0.5 * width, bottom + 0.5 * height).buffer(0.45 * width)
    speck = Point(left + 0.013 * width, bottom + 0.017 * height).buffer(0.0001 * width)
    zones = frame({"a": disc.difference(hole).union(spike).union(speck), "b": hole}, crs)
    halved = areas(codes, zones, CORINE, zone_column="name")
    monkeypatch.setattr("geoflow.mapping.areas._BORDER_PX", 10**6)
    whole = areas(codes, zones, CORINE, zone_column="name")
    pd.testing.assert_frame_equal(halved, whole, rtol=1e-6)


def test_zones_in_another_crs_are_reprojected_and_may_overlap_or_have_holes() -> None:
    codes = a_map((40, 30), size=1000.0)
    inner = box(LEFT + 5500, TOP - 20300, LEFT + 21100, TOP - 4200)
    zones = frame({"in": inner, "out": box(LEFT, TOP - 40000, LEFT + 30000, TOP).difference(inner), "again": inner})
    expected = areas(codes, zones, CORINE, levels=[1], zone_column="name")
    fine = zones.set_geometry(zones.segmentize(500)).to_crs("EPSG:4326")
    moved = areas(codes, fine, CORINE, levels=[1], zone_column="name")
    pd.testing.assert_frame_equal(moved, expected, rtol=1e-4)
    assert expected["zone"].drop_duplicates().tolist() == ["in", "out", "again"]
    sums = expected.groupby("zone")["ha"].sum()
    assert sums["in"] == pytest.approx(sums["again"])
    assert sums["in"] + sums["out"] == pytest.approx(counted(codes) * 100)


def test_a_straight_border_is_bent_with_its_crs() -> None:
    """A parallel is no straight line in LAEA: two zones along one of 8 degrees must still be told apart by it."""
    geobox = GeoBox.from_bbox((4.2e6, 2.6e6, 4.9e6, 2.8e6), "EPSG:3035", resolution=20_000)
    codes = (on(geobox) * 0 + 311).astype(np.uint16)
    table = areas(codes, frame({"n": box(9, 47, 17, 48)}, "EPSG:4326"), CORINE, levels=[3])
    exact = CRS("EPSG:4326").get_geod().geometry_area_perimeter(box(9, 47, 17, 48).segmentize(0.01))[0] / 1e4
    assert table["ha"].sum() == pytest.approx(abs(exact), rel=1e-5)


@pytest.mark.parametrize(
    ("crs", "bounds", "size"),
    [
        ("EPSG:4326", (14.0, 46.0, 14.3, 46.2), 0.01),
        ("EPSG:4326", (14.0, -0.1, 14.4, 0.3), 0.1),
        ("EPSG:32633", (200_000, 5.00e6, 230_000, 5.02e6), 1000),
        ("EPSG:32633", (700_000, 5.1e6, 700_500, 5.1003e6), 10),
        ("EPSG:3857", (1.6e6, 5.80e6, 1.63e6, 5.82e6), 1000),
        ("EPSG:3035", (4.6e6, 2.60e6, 4.63e6, 2.62e6), 1000),
        ("EPSG:2263", (9.0e5, 1.5e5, 9.9e5, 2.1e5), 3000),
        ("ESRI:54009", (1.0e6, 5.00e6, 1.03e6, 5.02e6), 1000),
    ],
)
def test_areas_are_those_on_the_ellipsoid(crs: str, bounds: tuple[float, ...], size: float) -> None:
    codes = (on(GeoBox.from_bbox(bounds, crs, resolution=size, tight=True)) * 0 + 311).astype(np.uint16)
    outline = box(*bounds).segmentize(size / 5)
    lonlat = Transformer.from_crs(crs, CRS(crs).geodetic_crs, always_xy=True).transform(*outline.exterior.xy)
    exact = abs(CRS(crs).get_geod().polygon_area_perimeter(*lonlat)[0]) / 1e4
    assert areas(codes, None, CORINE, levels=[3])["ha"].sum() == pytest.approx(exact, rel=2e-6)
    chunked = codes.chunk(dict.fromkeys(codes.dims, 7))
    assert areas(chunked, None, CORINE, levels=[3])["ha"].sum() == pytest.approx(exact, rel=2e-6)


def test_pixel_areas_do_not_depend_on_the_block() -> None:
    per_pixel = pixel_areas(GeoBox.from_bbox((200_000, 5e6, 260_000, 5.04e6), "EPSG:32633", resolution=500))
    whole = per_pixel.at(slice(0, 80), slice(0, 120))
    np.testing.assert_allclose(per_pixel.at(slice(13, 51), slice(37, 99)), whole[13:51, 37:99], rtol=1e-12)
    assert pixel_areas(a_map().odc.geobox).at(slice(0, 5), slice(0, 5)).tolist() == [[100.0]]


def test_rows_from_the_south_give_the_same() -> None:
    codes = a_map()
    zones = frame({"a": box(LEFT, TOP - 33, LEFT + 44, TOP)})
    pd.testing.assert_frame_equal(areas(codes[::-1], zones, CORINE), areas(codes, zones, CORINE))


def test_nodata_is_no_class() -> None:
    codes = a_map()
    codes[:] = 0
    codes[0, 0], codes[0, 1] = 990, 311
    table = areas(codes, None, CORINE)
    assert table["code"].tolist() == [3, 31, 311]
    assert table["share"].tolist() == [1, 1, 1]
    assert areas(codes * 0, None, CORINE).empty


def test_zones_are_named_by_column_or_index() -> None:
    codes = a_map()
    zones = frame({"west": box(LEFT, TOP - 500, LEFT + 30, TOP), "far": box(0, 0, 1, 1)})
    assert set(areas(codes, zones, CORINE, zone_column="name")["zone"]) == {"west"}
    assert set(areas(codes, zones, CORINE)["zone"]) == {0}


def test_zones_that_cannot_be_used_are_refused() -> None:
    codes = a_map()
    here = box(LEFT, TOP - 50, LEFT + 50, TOP)
    cases = [
        (frame({"a": here}), "nuts", "no column 'nuts'; they have name"),
        (frame({"a": here}, None), "name", "no CRS"),
        (frame({"a": box(0, 0, 1, 1)}), "name", "no zone meets"),
        (frame({"a": box(0, 0, 1, 1)}, "EPSG:4326"), "name", "no zone meets"),
        (frame({"a": LineString([(0, 0), (1, 1)])}), "name", "'a' is a LineString"),
        (frame({"a": Polygon()}), "name", "'a' is empty"),
        (pd.concat([frame({"a": here}), frame({"a": here})]), "name", "twice: 'a'"),
        (pd.concat([frame({"a": here}), frame({"b": here})]), None, "twice: 0"),
        (frame({"a": here}).assign(name=None), "name", "without a name"),
    ]
    for zones, column, message in cases:
        with pytest.raises(GridError, match=message):
            areas(codes, zones, CORINE, zone_column=column)


def test_maps_that_cannot_be_measured_are_refused() -> None:
    codes = a_map()
    with pytest.raises(GridError, match="no CRS"):
        areas(xr.DataArray(codes.values, dims=("y", "x")), None, CORINE)
    with pytest.raises(GridError, match="dims"):
        areas(codes.expand_dims("time"), None, CORINE)
    with pytest.raises(LegendError, match="of level 3"):
        areas(codes.rename("level1"), None, CORINE)
    with pytest.raises(LegendError, match="level 3 cannot be counted"):
        areas((codes // 100).rename("level1"), None, CORINE, levels=[3])
    with pytest.raises(LegendError, match="not 4"):
        areas(codes, None, CORINE, levels=[4])
    with pytest.raises(LegendError, match="none of the variables level1"):
        areas(xr.Dataset({"confidence": codes}), None, CORINE)
    with pytest.raises(LegendError, match="no code 999"):
        areas(xr.full_like(codes, 9999), None, CORINE)
