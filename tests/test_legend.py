"""Legends: the tables that geoflow ships, CSV files, and going from level to level."""

import csv
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geoflow.errors import LegendError
from geoflow.legends import BUILTIN, Legend, LegendClass, legend, map_codes

CORINE = legend("corine")


def real(path: str) -> Path:
    root = os.environ.get("GEOFLOW_REAL_DATA")
    if root is None:
        pytest.skip("set GEOFLOW_REAL_DATA to the folder with the real data sets")
    return Path(root) / path


def write_csv(folder: Path, *lines: str) -> Path:
    path = folder / "own.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_corine_has_five_fifteen_and_forty_four_classes():
    assert CORINE.levels == (1, 2, 3)
    assert [len(CORINE.codes(level)) for level in CORINE.levels] == [5, 15, 44]
    assert [CORINE.dtype(level) for level in CORINE.levels] == [np.uint8, np.uint8, np.uint16]


def test_corine_codes_nest_by_their_digits():
    for code in CORINE.codes(3):
        assert [CORINE.ancestor(code, level) for level in CORINE.levels] == [code // 100, code // 10, code]
        assert CORINE.parent(code) == code // 10
        assert code in CORINE.children(code // 10)
    assert CORINE.parent(5) is None
    assert CORINE.children(311) == ()


def test_corine_equals_the_official_table():
    with real("clc-legend/clc_legend.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        grid_code, code = int(row["GRID_CODE"]), int(row["CLC_CODE"])
        if grid_code > 44:
            assert CORINE.grid_codes[grid_code] == 0
            assert code in CORINE.nodata_codes
            continue
        assert CORINE.grid_codes[grid_code] == code
        assert CORINE.colour(code) == tuple(int(v) for v in row["RGB"].split("-"))
        assert CORINE.label(code) == row["LABEL3"]
        assert CORINE.label(code // 10, level=2) == row["LABEL2"]
        assert CORINE.label(code // 100, level=1) == row["LABEL1"]
    assert len(rows) == 48


def test_bigearthnet_tables_equal_the_published_ones():
    text = real("bigearthnet-samples/labels_43_to_19_and_clc_levels.json").read_text()
    tables = json.loads(text)
    many, few = legend("bigearthnet-43"), legend("bigearthnet-19")
    assert sorted(many.label(c) for c in many.codes()) == sorted(tables["OLD_LABELS"])
    assert sorted(few.label(c) for c in few.codes()) == sorted(tables["NEW_LABELS"])
    for old, new in tables["OLD2NEW_LABELS_DICT"].items():
        code = CORINE.code_of(old)
        assert code == int(tables["CLC_LV3_TO_CLC_CODE"][old]) == many.code_of(old)
        mapped = int(map_codes(np.array([code]), CORINE, few)[0])
        assert (few.label(mapped) if mapped else None) == new
    for level, key in ((1, "CLC_LV1_TO_CLC_CODE"), (2, "CLC_LV2_TO_CLC_CODE")):
        for name, code in tables[key].items():
            found = CORINE.code_of(name)
            assert CORINE.ancestor(found, level) == code  # "Pastures" alone means 231, a class of the group 23


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Bare rock", 332),
        ("Bare rocks", 332),
        ("Natural grassland", 321),
        ("Natural grasslands", 321),
        ("PEATBOGS", 412),
        ("Peat bogs", 412),
        ("peat-bog", 412),
        ("Transitional woodland shrubs", 324),
        ("Nonirrigated arable land", 211),
        ("Sport and leisure facility", None),
        ("Industrial or commercial units and public facilities", 121),
        ("Coastal salt marshes", 421),
        ("Beaches, dunes and sand plains", 331),
        (" Transitional   woodland/shrub ", 324),
        ("Transitional woodland-shrub", 324),
        ("Pastures", 231),
        ("Water bodies", 512),
        ("wetlands", 4),
        ("Inland waters", 51),
        ("311", 311),
        (311, 311),
        (np.uint16(31), 31),
    ],
)
def test_names_are_found_in_every_known_spelling(name, code):
    if code is None:
        with pytest.raises(LegendError, match="did you mean 'Sport and leisure facilities'"):
            CORINE.code_of(name)
    else:
        assert CORINE.code_of(name) == code


def test_no_two_classes_are_told_apart_by_a_plural_alone(tmp_path):
    own = legend(write_csv(tmp_path, "code,name,colour,alias", "1,Lake,#000001,Pond|Mere", "2,Lakes,#000002,"))
    assert [own.code_of(name) for name in ("lake", "lakes", "mere", "ponds")] == [1, 2, 1, 1]
    with pytest.raises(LegendError, match="has no class named 'la ke'"):
        own.code_of("la ke")


def test_an_unknown_name_is_refused_with_near_ones():
    with pytest.raises(LegendError, match=r"'Bare rokcs'; did you mean 'Bare rocks'"):
        CORINE.code_of("Bare rokcs")
    with pytest.raises(LegendError, match="has no code 336"):
        CORINE.code_of(336)
    with pytest.raises(LegendError, match="level 3, not 2"):
        CORINE.label(311, level=2)
    with pytest.raises(LegendError, match="coarser than level 3"):
        CORINE.ancestor(31, 3)
    with pytest.raises(LegendError, match=r"levels \(1, 2, 3\), not 4"):
        CORINE.codes(4)


# On a busy machine an example, or the making of one, may take longer than hypothesis grants by default.
patiently = settings(suppress_health_check=[HealthCheck.too_slow])

codes_and_gaps = hnp.arrays(
    st.sampled_from([np.uint16, np.int16, np.int64, np.uint32]),
    hnp.array_shapes(max_dims=3, max_side=8),
    elements=st.sampled_from([0, *CORINE.codes()]),
)


@patiently
@given(codes_and_gaps)
def test_to_level_drops_digits_and_keeps_nodata(codes):
    for level, divisor in ((1, 100), (2, 10), (3, 1)):
        coarser = CORINE.to_level(codes, level)
        assert coarser.dtype == CORINE.dtype(level)
        assert coarser.shape == codes.shape
        np.testing.assert_array_equal(coarser, codes // divisor)


def test_to_level_takes_special_codes_as_nodata_and_lists_unknown_ones():
    np.testing.assert_array_equal(CORINE.to_level(np.array([999, 990, 995, 523]), 1), [0, 0, 0, 5])
    with pytest.raises(LegendError, match=r"does not hold -7, 31, 600, 70000"):
        CORINE.to_level(np.array([600, 311, -7, 31, 70000]), 2)
    with pytest.raises(LegendError, match="integers, not float64"):
        CORINE.to_level(np.array([311.0]), 2)


@patiently
@given(codes_and_gaps)
def test_mapping_to_43_and_on_to_19_equals_mapping_to_19(codes):
    many, few = legend("bigearthnet-43"), legend("bigearthnet-19")
    by_two_steps = map_codes(map_codes(codes, CORINE, many), many, few)
    np.testing.assert_array_equal(by_two_steps, map_codes(codes, CORINE, few))
    level1 = few.to_level(by_two_steps, 1)
    kept = by_two_steps != 0
    np.testing.assert_array_equal(level1[kept], CORINE.to_level(codes, 1)[kept])


def test_mapping_has_no_way_back():
    assert 335 not in legend("bigearthnet-43").codes()
    assert map_codes(np.array([335]), CORINE, legend("bigearthnet-43")) == 0
    with pytest.raises(LegendError, match="coarser than"):
        map_codes(np.array([11]), legend("bigearthnet-19"), CORINE)
    flat = Legend("flat", (LegendClass(1, "a", (0, 0, 0)),))
    with pytest.raises(LegendError, match="unrelated to CORINE"):
        map_codes(np.array([1]), flat, CORINE)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_legend_survives_json_and_pickle(name):
    original = legend(name)
    assert Legend.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    assert pickle.loads(pickle.dumps(original)) == original
    assert hash(original) == hash(Legend.from_dict(original.to_dict()))


def test_a_broken_description_is_refused():
    values = CORINE.to_dict()
    del values["clc_codes"]
    with pytest.raises(LegendError, match="clc_codes"):
        Legend.from_dict(values)


def test_flags_are_in_order_of_code():
    flags = CORINE.flags(1)
    assert flags["flag_values"] == [1, 2, 3, 4, 5]
    assert len(flags["flag_meanings"].split()) == len(flags["flag_colors"].split()) == 5
    assert flags["flag_colors"].split()[0] == "#e6004d"


def test_a_flat_csv_has_one_level(tmp_path):
    own = legend(write_csv(tmp_path, "code,name,colour", "4,vegetation,#2e9a3a", "6,water,#2b6fd6"))
    assert (own.name, own.levels, own.codes(1), own.dtype(1)) == ("own", (1,), (4, 6), np.uint8)
    assert own.colour(4) == (0x2E, 0x9A, 0x3A)
    assert Legend.from_dict(own.to_dict()) == own


def test_a_csv_with_parents_has_more(tmp_path):
    lines = [
        "code,name,colour,parent",
        "20,Pine,#000001,2",
        "2,Forest,#000000,",
        "300,Lake,#000003,3",
        "3,Water,#000002,",
    ]
    own = legend(write_csv(tmp_path, *lines))
    assert own.levels == (1, 2)
    assert own.codes(2) == (20, 300)
    np.testing.assert_array_equal(own.to_level(np.array([300, 0, 20]), 1), [3, 0, 2])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["code,name", "1,a"], r"own\.csv: the columns are code, name; needed are code, name, colour"),
        (["code,name,colour,parnet", "1,a,#000000,2"], "allowed beside them parent"),
        (["code,name,colour", "1,a,red"], r"line 2: 'red' is not a colour"),
        (["code,name,colour", "1,a,#00000g"], r"line 2: '#00000g' is not a colour"),
        (["code,name,colour", "x,a,#000000"], r"line 2: code 'x' is not a whole number"),
        (["code,name,colour", "0,a,#000000"], r"line 2: code 0 is not in 1\.\.65534"),
        (["code,name,colour", "1,a,#000000", "1,b,#000000"], "line 3: code 1 appears twice"),
        (["code,name,colour", "1,a,#000000", "2,A ,#000000"], "codes 1 and 2 have the same name"),
        (["code,name,colour", "1,a,b,#000000"], "line 2: not as many values"),
        (["code,name,colour", "1,a"], "line 2: not as many values"),
        (["code,name,colour", "1,,#000000"], "line 2: code 1 has no name"),
        (["code,name,colour"], "has no classes"),
        (["code,name,colour,parent", "1,a,#000000,9"], "code 1 has the parent 9, not a class"),
        (["code,name,colour,parent", "1,a,#000000,2", "2,b,#000000,1"], "run in a circle"),
        (["code,name,colour,parent", "1,a,#000000,", "2,b,#000000,", "3,c,#000000,1"], "lie on several levels"),
    ],
)
def test_a_csv_that_is_wrong_is_refused_with_line_and_value(tmp_path, lines, message):
    with pytest.raises(LegendError, match=message):
        legend(write_csv(tmp_path, *lines))


def test_an_unknown_legend_is_refused_with_the_known_names():
    with pytest.raises(LegendError, match=r"neither a file nor one of corine, bigearthnet-43, bigearthnet-19"):
        legend("corrine")
