"""Overviews: what four pixels become, and that a store's overviews are what its pixels say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from odc.geo.geobox import GeoBox

import geoflow as gf
from geoflow.grid import Grid
from geoflow.store.pyramid import SHARE, SHARE_NODATA, factors_of, halve, halve_measure

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 7))
CODES = np.array([0, 0, 111, 112, 211, 231, 311, 512], np.uint16)


def nested(deepest):
    return {
        "level1": (deepest // 100).astype(np.uint8),
        "level2": (deepest // 10).astype(np.uint8),
        "level3": deepest,
    }


def squares(values):
    """(row, column, the pixels that there are of each four)"""
    height, width = values.shape
    for row in range(-(-height // 2)):
        for col in range(-(-width // 2)):
            yield row, col, values[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel()


@given(SHAPES.flatmap(lambda shape: arrays_of.arrays(np.uint8, shape, elements=st.integers(0, len(CODES) - 1))))
def test_classes_are_majorities_that_nest_and_are_never_invented(numbers):
    codes = CODES[numbers]
    halved = halve(nested(codes), {})
    assert (halved["level3"] // 100 == halved["level1"]).all()
    assert (halved["level3"] // 10 == halved["level2"]).all()
    for row, col, four in squares(codes):
        found = halved["level3"][row, col]
        seen = four[four != 0]
        if 2 * len(seen) < len(four) or not len(seen):
            assert found == 0
            continue
        assert found in seen
        for digits in (100, 10, 1):  # among the pixels of the level above's majority, the most frequent
            here, votes = np.unique(seen // digits, return_counts=True)
            assert votes[here == found // digits].item() == votes.max()
            seen = seen[seen // digits == found // digits]


def test_a_tie_goes_to_the_first_in_row_order():
    codes = np.array([[512, 111], [111, 512]], np.uint16)
    assert halve(nested(codes), {})["level3"].item() == 512
    assert halve(nested(codes.T[::-1]), {})["level3"].item() == 111


@given(
    SHAPES.flatmap(lambda shape: arrays_of.arrays(np.int16, shape, elements=st.sampled_from([-32768, -5, 0, 7, 32767])))
)
def test_measures_are_means_of_what_is_observed(values):
    halved = halve_measure(values, -32768)
    assert halved.dtype == values.dtype
    for row, col, four in squares(values):
        seen = four[four != -32768].astype(float)
        if 2 * len(seen) < len(four) or not len(seen):
            assert halved[row, col] == -32768
        else:
            assert abs(halved[row, col] - seen.mean()) <= 0.5


def test_what_changed_is_told_with_its_codes_and_share():
    change = np.array([[2, 2, 1, 1], [2, 1, 2, 0], [0, 0, 1, 1], [0, 2, 1, 1]], np.uint8)
    to = np.where(change == 2, np.array([112, 112, 311, 311], np.uint16), 0).astype(np.uint16)
    nodata = {"change": 0, "from_code": 0, "to_code": 0, SHARE: SHARE_NODATA}
    halved = halve({"change": change, "from_code": to, "to_code": to}, nodata)
    assert halved["change"].tolist() == [[2, 1], [0, 1]]
    assert halved["to_code"].tolist() == [[112, 0], [0, 0]]
    assert halved[SHARE].tolist() == [[7500, 3333], [SHARE_NODATA, 0]]
    again = halve(halved, nodata)
    assert again["change"].item() == 1  # two of three
    assert again[SHARE].item() == round((7500 + 3333) / 3)


def test_factors_go_on_until_all_lies_in_one_chunk():
    def grid(height, width, chunk):
        return Grid(
            GeoBox((height, width), GeoBox.from_bbox((0, 0, 1, 1), resolution=1).affine, "EPSG:3035"), chunk, chunk
        )

    assert factors_of(grid(100, 128, 128)) == ()
    assert factors_of(grid(100, 129, 128)) == (2,)
    assert factors_of(grid(512, 640, 128)) == (2, 4, 8)
    assert grid(5, 7, 4).coarser(2).shape == (3, 4)
    assert grid(5, 7, 4).coarser(2).resolution_m == 2


def test_a_run_has_overviews_of_every_layer(finished):
    _, out = finished
    country = gf.open(out)
    factors = [2, 4, 8]
    assert sorted(map(int, country["overviews"].children)) == factors
    layers = [n.path for n in country.subtree if n.data_vars and not n.path.startswith("/overviews")]
    assert {path.split("/")[1] for path in layers} == {"imagery", "labels", "map", "generalised", "change"}
    for path in layers:
        below = country[path].to_dataset(inherit=False).load()
        for factor in factors:
            here = country[f"overviews/{factor}{path}"].to_dataset(inherit=False).load()
            assert here.rio.crs == below.rio.crs
            assert here.rio.transform().a == 10 * factor
            assert here.rio.transform().c == below.rio.transform().c
            assert here.rio.transform().f == below.rio.transform().f
            nodata = {str(name): here[name].attrs["nodata"] for name in here.data_vars}
            assert nodata
            halved = halve({name: below[name].values for name in nodata if name in below}, nodata)
            for name in nodata:
                if name in below:
                    assert here[name].attrs.get("flag_colors") == below[name].attrs.get("flag_colors")
                np.testing.assert_array_equal(here[name].values, halved[name], err_msg=f"{path} {name} {factor}")
            below = here


def test_the_summary_tells_where_time_went_and_areas_by_zone(finished):
    summary = json.loads((finished[1] / "summary.json").read_text())
    assert set(summary["stages"]["imagery"]["spent"]) == {"read", "write"}
    assert set(summary["stages"]["predict"]["spent"]) == {"read", "net", "write"}
    assert all(seconds > 0 for seconds in summary["stages"]["predict"]["spent"].values())
    by_zone = summary["areas_by_zone"]["2018"]
    whole = sum(summary["areas_ha"]["2018"]["level1"].values())
    assert 0.9 * whole < sum(sum(zone["level1"].values()) for zone in by_zone.values()) <= whole


def test_the_root_says_where_the_overviews_are(finished):
    _, out = finished
    root = json.loads((out / "country.zarr/zarr.json").read_text())
    held, attrs = root["consolidated_metadata"]["metadata"], root["attributes"]
    assert attrs["proj:code"] == "EPSG:3035"
    assert attrs["title"] == "A tiny country"
    published = "Survey of Tinyland, licence CC-BY-4.0"
    assert attrs["attribution"] == f"{published}; Synthetic scenes made by geoflow; no real place; Synthetic"
    assert (attrs["institution"], attrs["license"]) == ("Survey of Tinyland", "CC-BY-4.0")
    assert attrs["publisher_url"] == "https://survey.example"
    assert attrs["history"].startswith("made by geoflow")
    layout = attrs["multiscales"]["layout"]
    assert {entry["asset"].split("/")[-1] for entry in layout} == {"imagery", "labels", "map", "generalised", "change"}
    for entry in layout:
        assert held[entry["asset"]]["node_type"] == "group"
        assert entry.get("derived_from", "map") in {other["asset"] for other in layout}
    sizes = [tuple(e["spatial:shape"]) for e in layout if e["asset"].split("/")[-1] == "map"]
    assert sizes == [tuple(held[f"{e['asset']}/2018/level3"]["shape"]) for e in layout if e["asset"].endswith("map")]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", ["level1", "level3", "confidence"])
def test_arrays_name_their_place_and_crs(finished, name):
    _, out = finished
    attrs = json.loads((out / f"country.zarr/overviews/2/map/2018/{name}/zarr.json").read_text())["attributes"]
    assert attrs["proj:code"] == "EPSG:3035"
    assert attrs["spatial:dimensions"] == ["y", "x"]
    assert attrs["spatial:transform"][0] == 20
