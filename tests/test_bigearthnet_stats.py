"""Statistics and splits of BigEarthNet: the paper's tables, the real metadata of version 2, hard numbers."""

from __future__ import annotations

import bz2
import itertools
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoflow.cli import main
from geoflow.errors import LabelError
from geoflow.inputs import NODATA
from geoflow.jobs.patchreport import dataset_statistics
from geoflow.labels.patchlabels import UNKNOWN, Label, check_map_codes, clc_code, multi_hot, nineteen_of, scheme_codes
from geoflow.labels.patchmeta import read_table, split_counts
from geoflow.labels.patchstats import count_statistics, label_statistics, merged, patch_moments
from geoflow.labels.splits import (
    SPLIT_NAMES,
    TEST,
    TRAIN,
    VALIDATION,
    parts_of,
    random_split,
    read_split,
    squares,
    squares_split,
)
from geoflow.legends import legend

# Table 1 of the paper (BigEarthNet 1.0, 590,326 patches).
TABLE_1 = {
    111: 10784, 112: 69872, 121: 12895, 122: 3384, 123: 509, 124: 979, 131: 4618, 132: 959, 133: 1174, 141: 1786,
    142: 5353, 211: 196695, 212: 13589, 213: 3793, 221: 9567, 222: 4754, 223: 12538, 231: 103554, 241: 7022,
    242: 107786, 243: 147095, 244: 30674, 311: 150944, 312: 211703, 313: 217119, 321: 12835, 322: 5890, 323: 11241,
    324: 173506, 331: 1578, 332: 3277, 333: 1563, 334: 328, 411: 6236, 412: 23207, 421: 1562, 422: 424, 423: 1003,
    511: 10572, 512: 83811, 521: 1498, 522: 1086, 523: 81612,
}  # fmt: skip
PATCHES = 590_326


def test_the_papers_table_1_has_the_cardinality_and_density_of_its_table_2():
    found = count_statistics(TABLE_1, PATCHES)
    assert found.classes == 43
    assert found.cardinality == sum(TABLE_1.values()) / PATCHES == pytest.approx(2.9651, abs=5e-5)
    assert math.floor(100 * found.cardinality) / 100 == 2.96  # the paper cuts off
    assert f"{found.density:.3f}" == "0.069"
    assert found.imbalance.largest_over_smallest == 217119 / 328
    assert set(TABLE_1) == set(legend("bigearthnet-43").codes())


def test_imbalance_of_even_and_uneven_classes():
    even = count_statistics({1: 50, 2: 50, 3: 50}, 100).imbalance
    assert (even.largest_over_smallest, even.mean_ratio, even.rare_classes) == (1, 1, 0)
    assert even.evenness == pytest.approx(1)
    uneven = count_statistics({1: 1000, 2: 10, 3: 5, 4: 0}, 1000).imbalance
    assert uneven.largest_over_smallest == 200
    assert uneven.mean_ratio == pytest.approx((1 + 100 + 200) / 3)
    assert uneven.rare_classes == 1
    assert 0 < uneven.evenness < 0.1
    with pytest.raises(LabelError, match="no patch holds a class"):
        count_statistics({1: 0}, 10)
    with pytest.raises(LabelError, match="there are only 10"):
        count_statistics({1: 11}, 10)


def test_labels_are_counted_where_they_are_known():
    labels = np.array([[1, 0, 1], [1, 1, 1], [UNKNOWN] * 3, [1, 0, 1]], np.uint8)
    found = label_statistics(labels, (5, 6, 7))
    assert (found.patches, found.unknown) == (3, 1)
    assert found.counts == {5: 3, 6: 1, 7: 3}
    assert found.cardinality == pytest.approx(7 / 3)
    assert found.density == pytest.approx(7 / 9)
    assert found.cardinalities == (0, 0, 2, 1)
    assert found.label_sets == 2
    assert label_statistics(labels[2:3], (5, 6, 7)) is None


def test_every_scheme_follows_from_clc_codes():
    hot = multi_hot([Label((112, 124, 231)), Label((335,)), Label(None, (22, 231))])
    held = {name: [np.array(scheme_codes(name))[row == 1].tolist() for row in rows] for name, rows in hot.items()}
    assert held["level3"][:2] == [[112, 124, 231], [335]]
    assert held["level2"][:2] == [[11, 12, 23], [33]]
    assert held["level1"] == [[1, 2], [3], [2]]
    assert held["nineteen"] == [[11, 231], [], [22, 231]]
    # Class 22 of the 19 has parts in levels 22 and 24, so the 19 classes do not tell level 2 nor 3.
    assert (hot["level2"][2] == UNKNOWN).all()
    assert (hot["level3"][2] == UNKNOWN).all()
    assert not any((rows[:2] == UNKNOWN).any() for rows in hot.values())


def test_the_19_classes_are_those_of_the_published_table():
    table = json.loads((real_data() / "labels_43_to_19_and_clc_levels.json").read_text())["OLD2NEW_LABELS_DICT"]
    nineteen = legend("bigearthnet-19")
    for name, new in table.items():
        assert nineteen_of([clc_code(name)]) == (() if new is None else (nineteen.code_of(new),))


def test_a_reference_map_keeps_what_is_labelled():
    codes = np.array([[211, 122, 999], [335, 0, 523]], np.uint16)
    np.testing.assert_array_equal(check_map_codes(codes, "a.tif"), [[211, 0, 0], [0, 0, 523]])
    with pytest.raises(LabelError, match=r"a\.tif holds 777, which is no CLC code"):
        check_map_codes(np.array([[777]]), "a.tif")


# --- bands ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from([0, 9_990, 32_000]), st.integers()
)
def test_moments_merged_over_any_chunks_are_those_of_all_pixels(patches, bands, seed, offset, cuts):
    rng = np.random.default_rng(seed)
    cube = (offset + rng.integers(0, 8, (patches, bands, 5, 7))).astype(np.int16)
    cube[rng.random(cube.shape) < 0.2] = NODATA
    edges = sorted({0, patches, *np.random.default_rng(abs(cuts)).integers(0, patches + 1, 3).tolist()})
    chunks = [patch_moments(cube[a:b]) for a, b in itertools.pairwise(edges)]
    found = merged(chunks, bands)
    for band in range(bands):
        values = cube[:, band][cube[:, band] != NODATA].astype(np.float64)
        assert found.count[band] == values.size
        if values.size:
            assert found.mean[band] == pytest.approx(values.mean(), rel=1e-12)
            assert found.std[band] == pytest.approx(values.std(), rel=1e-9, abs=1e-9)


def test_bands_without_a_pixel_have_no_spread():
    found = merged([patch_moments(np.full((3, 2, 4, 4), NODATA, np.int16))], 2)
    assert found.count.tolist() == [0, 0]
    assert found.std.tolist() == [0, 0]


# --- splits ---------------------------------------------------------------------------------------------------------


def test_the_random_split_is_that_of_the_set_of_names(tmp_path):
    names = [f"S2A_MSIL2A_20180613T101031_{i}_{j}" for i in range(40) for j in range(25)]
    parts = dict(zip(names, random_split(names, 0.2, 7), strict=True))
    assert sum(part == VALIDATION for part in parts.values()) == 200
    assert sum(part == TRAIN for part in parts.values()) == 800
    shuffled = sorted(names, key=lambda n: n[::-1])
    assert dict(zip(shuffled, random_split(shuffled, 0.2, 7), strict=True)) == parts
    other = dict(zip(names, random_split(names, 0.2, 8), strict=True))
    assert 0.6 < np.mean([parts[n] == other[n] for n in names]) < 0.76
    assert int(0.2 * 519_339) == 103_867  # the paper's validation patches
    with pytest.raises(LabelError, match=r"not 1\.2"):
        random_split(names, 1.2, 0)


def test_squares_have_their_shares_of_any_tile():
    y, x = np.mgrid[:400, :400] + 0.5
    parts = squares(x, y, 400)
    assert [(parts == code).mean() for code in (TRAIN, VALIDATION, TEST)] == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    assert parts[200, 200] == TEST
    assert parts[0, 200] == parts[200, 399] == TRAIN
    # nested: along a line from the border to the centre there is train, then validation, then test
    assert np.diff(parts[200, :200].astype(int)).min() >= 0
    most = squares(x, y, 400, (0.8, 0.2))
    assert (most == TEST).mean() == 0
    with pytest.raises(LabelError, match="more than 1"):
        squares(x, y, 400, (0.8, 0.3))
    assert squares_split(["S2A_X_45_45", "S2A_X_0_3", "a_patch"]).tolist() == [TEST, TRAIN, 0]


def test_a_users_split_is_read_from_a_table(tmp_path):
    (tmp_path / "a.csv").write_text("patch_id,split\np1,train\np2,val\n\np3, Test \n")
    assert read_split(tmp_path / "a.csv") == {"p1": TRAIN, "p2": VALIDATION, "p3": TEST}
    (tmp_path / "b.csv.bz2").write_bytes(bz2.compress(b"p1,training\np2,validation\n"))
    given_parts = read_split(tmp_path / "b.csv.bz2")
    assert parts_of(["p2", "x", "y"], ["", "p1", ""], given_parts).tolist() == [VALIDATION, TRAIN, 0]
    for text, said in (("p1\n", "is not 'patch name,part'"), ("p1,tests\n", "line 1: 'tests' is no part")):
        (tmp_path / "c.csv").write_text(text)
        with pytest.raises(LabelError, match=said):
            read_split(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("p1,train\np1,test\n")
    with pytest.raises(LabelError, match="line 2: p1 was in another part"):
        read_split(tmp_path / "c.csv")
    with pytest.raises(LabelError, match="no such file"):
        read_split(tmp_path / "missing.csv")


# --- metadata of version 2 ------------------------------------------------------------------------------------------


def real_data() -> Path:
    root = os.environ.get("GEOFLOW_REAL_DATA")
    if root is None:
        pytest.skip("set GEOFLOW_REAL_DATA to the folder with the real data sets")
    return Path(root) / "bigearthnet-samples"


def test_statistics_of_the_real_metadata():
    found = dataset_statistics(real_data() / "v2-metadata/metadata.parquet")
    assert found.patches == 480_038
    assert found.splits["official"] == {"train": 237_871, "validation": 122_342, "test": 119_825}
    nineteen = found.labels["nineteen"]
    assert (nineteen.classes, nineteen.unknown) == (19, 0)
    # Counted once more, straight from the column of names.
    lists = pq.read_table(real_data() / "v2-metadata/metadata.parquet")["labels"]
    names = lists.combine_chunks().flatten()
    assert nineteen.cardinality == pytest.approx(len(names) / 480_038) == pytest.approx(2.949, abs=5e-4)
    assert nineteen.density == pytest.approx(len(names) / 480_038 / 19) == pytest.approx(0.1552, abs=5e-5)
    counted = {legend("bigearthnet-19").code_of(e["values"]): e["counts"] for e in names.value_counts().to_pylist()}
    assert nineteen.counts == counted
    assert set(found.labels) == {"level1", "nineteen"}
    assert sum(n * k for k, n in enumerate(nineteen.cardinalities)) == len(names)


def test_the_official_split_is_that_of_squares():
    table = read_table([real_data() / "v2-metadata/metadata.parquet"])
    np.testing.assert_array_equal(squares_split(table.names), table.split)


def write_table(path: Path, rows: list[dict]) -> Path:
    usual = {"split": "train", "country": "Austria", "s1_name": "s1", "s2v1_name": None}
    usual |= {"contains_seasonal_snow": False, "contains_cloud_or_shadow": False}
    pq.write_table(pa.Table.from_pylist([{**usual, **row} for row in rows]), path)
    return path


def test_a_table_is_read_in_order_of_names_whatever_its_own(tmp_path):
    rows = [
        {"patch_id": "b", "labels": ["Pastures", "Urban fabric"], "split": "test", "s2v1_name": "old_b"},
        {"patch_id": "a", "labels": [], "contains_seasonal_snow": True},
    ]
    table = read_table([write_table(tmp_path / "m.parquet", rows)])
    assert table.names == ("a", "b")
    assert split_counts(table) == {"train": 1, "validation": 0, "test": 1}
    assert table.row_of == {"a": 0, "b": 1, "old_b": 1}
    assert [label.nineteen for label in table.label_of] == [(), (11, 231)]
    assert table.snow.tolist() == [True, False]
    more = write_table(tmp_path / "n.parquet", [{"patch_id": "c", "labels": ["Pastures"]}])
    both = [read_table(paths) for paths in ([tmp_path / "m.parquet", more], [more, tmp_path / "m.parquet"])]
    assert both[0].names == both[1].names == ("a", "b", "c")
    with pytest.raises(LabelError, match="patch c appears twice"):
        read_table([more, more])


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(LabelError, match="no such file"):
        read_table([tmp_path / "m.parquet"])
    (tmp_path / "m.parquet").write_text("text")
    with pytest.raises(LabelError, match="cannot be read as Parquet"):
        read_table([tmp_path / "m.parquet"])
    pq.write_table(pa.table({"patch_id": ["a"]}), tmp_path / "m.parquet")
    with pytest.raises(LabelError, match="no column 'labels'"):
        read_table([tmp_path / "m.parquet"])
    write_table(tmp_path / "m.parquet", [{"patch_id": "a", "labels": ["Pastuers"]}])
    with pytest.raises(LabelError, match="did you mean 'Pastures'"):
        read_table([tmp_path / "m.parquet"])
    write_table(tmp_path / "m.parquet", [{"patch_id": "a", "labels": ["Agricultural areas"]}])
    with pytest.raises(LabelError, match="none of the 19 classes"):
        read_table([tmp_path / "m.parquet"])
    write_table(tmp_path / "m.parquet", [{"patch_id": "a", "labels": ["Pastures"], "split": "holdout"}])
    with pytest.raises(LabelError, match="'holdout' is no part"):
        read_table([tmp_path / "m.parquet"])


def test_the_command_prints_writes_and_draws(tmp_path, monkeypatch, capsys):
    rows = [
        {"patch_id": f"S2A_X_{i}_{i}", "labels": ["Pastures", "Urban fabric"][: 1 + i % 2], "split": part}
        for i, part in enumerate(list(SPLIT_NAMES.values())[1:] * 4)
    ]
    source = write_table(tmp_path / "metadata.parquet", rows)
    options = ["--plot", str(tmp_path / "s.png")]
    monkeypatch.setattr(sys, "argv", ["geoflow", "bigearthnet", "stats", str(source), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "12 patches" in said
    assert "Cardinality" in said
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", ["geoflow", "bigearthnet", "stats", str(source), "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["labels"]["nineteen"]["counts"]["231"] == 12
    monkeypatch.setattr(
        sys, "argv", ["geoflow", "bigearthnet", "stats", str(source), "--plot", str(tmp_path / "s.xyz")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--plot" in capsys.readouterr().err
