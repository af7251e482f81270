"""Change layers as labels: which columns are read, what becomes of each pixel, and what is refused."""

import numpy as np
import pytest
import shapely
from odc.geo.geobox import GeoBox
from test_labels import GRID, square, write

import geoflow as gf
from geoflow.errors import JobError, LabelError
from geoflow.grid import Grid
from geoflow.jobs.jobfile import parse_job
from geoflow.labels.changelabels import check_changes, find_change_columns
from geoflow.mapping.change import true_change


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (["ID", "Code_12", "Code_18", "Change", "Area_Ha"], ["Code_12", "Code_18"]),
        (["CODE_18", "CODE_12"], ["CODE_12", "CODE_18"]),
        (["clc2018", "clc2012"], ["clc2012", "clc2018"]),
        (["CLC00", "CLC90"], ["CLC90", "CLC00"]),
        (["code_2006", "code_12"], ["code_2006", "code_12"]),
        (["to_code", "from_code", "kind"], ["from_code", "to_code"]),
        (["OLD_CODE", "NEW_CODE"], ["OLD_CODE", "NEW_CODE"]),
        (["AREA", "CLC12_18"], ["CLC12_18"]),
        (["CHA1218"], ["CHA1218"]),
        (["Code_2012_2018"], ["Code_2012_2018"]),
        (["Change"], ["Change"]),
        (["Code_18", "AREA_HA"], []),
        (["code_2018"], []),
        (["name"], []),
    ],
)
def test_columns_met_in_the_wild(fields, found):
    assert find_change_columns(fields, None, "a test") == found


def test_columns_that_are_named_need_not_match_in_case():
    fields = ["before", "After", "Code_12", "Code_18"]
    assert find_change_columns(fields, ["BEFORE", "after"], "a test") == ["before", "After"]
    assert find_change_columns(fields, ["before", "later"], "a test") == []


SHAPES = [square(0, 0, 100, 100), square(200, 0, 300, 100), square(0, 200, 50, 250), square(40, 40, 60, 60)]
BEFORE, AFTER = ["211", "311", "312", "211"], ["112", "311", "999", "133"]


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".gdb", ".parquet"])
@pytest.mark.parametrize("kind", ["two columns", "one column", "numbers"])
def test_a_pixel_has_the_change_of_the_smallest_polygon_that_holds_its_centre(tmp_path, suffix, kind):
    columns = {"Code_18": AFTER, "Code_12": BEFORE}  # in the order in which nobody would expect them
    if kind == "one column":
        columns = {"Change": [f"{a}-{b}" for a, b in zip(BEFORE, AFTER, strict=True)]}
    if kind == "numbers":
        columns = {name: [int(v) for v in values] for name, values in columns.items()}
    path = tmp_path / f"cha{suffix}"
    if suffix == ".parquet":
        import geopandas

        geopandas.GeoDataFrame(columns, geometry=SHAPES, crs="EPSG:32633").to_parquet(path)
    else:
        write(path, SHAPES, columns)
    found = gf.load_change_labels(path, GRID)
    state, before, after = (found[name].values for name in ("change", "from_code", "to_code"))
    expected = np.ones((40, 50), np.uint8)
    expected[:10, :10] = 2
    expected[20:25, :5] = 0  # 999: nobody knows what it became
    np.testing.assert_array_equal(state, expected)
    np.testing.assert_array_equal(before, np.where(expected == 2, 211, 0))
    np.testing.assert_array_equal(np.unique(after), [0, 112, 133])
    assert (after[4:6, 4:6] == 133).all()
    assert (after == 133).sum() == 4
    assert (state.dtype, before.dtype) == (np.uint8, np.uint16)
    assert found.odc.geobox == GRID


def test_tiles_equal_the_whole(tmp_path):
    rng = np.random.default_rng(4)
    shapes = [square(x, y, x + w, y + h) for x, y, w, h in rng.uniform(-60, 500, (30, 4))]
    shapes = [shapely.affinity.rotate(s, a) for s, a in zip(shapes, rng.uniform(0, 90, 30), strict=True)]
    codes = gf.legend("corine").codes()
    columns = {name: rng.choice(codes, 30).tolist() for name in ("from_code", "to_code")}
    path = write(tmp_path / "a.fgb", shapes, columns)
    whole = gf.load_change_labels(path, GRID)
    assert len(np.unique(whole["change"])) == 2
    for part in Grid(GRID, 13, 13).tiles():
        found = gf.load_change_labels(path, part.geobox)
        for name in ("change", "from_code", "to_code"):
            np.testing.assert_array_equal(found[name].values, whole[name].values[part.y, part.x])


def test_the_changes_of_the_sample_country_are_the_difference_of_its_truths(tiny_country):
    truth = tiny_country / "truth"
    geobox = gf.load_labels(truth / "landcover_2018.tif", _grid_of(truth / "landcover_2018.tif"), "corine").odc.geobox
    before, after = (gf.load_labels(truth / f"landcover_{e}.tif", geobox, "corine").values for e in (2018, 2024))
    found = gf.load_change_labels(truth / "change_2018_2024.gpkg", geobox)
    known = before != 0
    expected = true_change(before, after)
    assert (expected == 2).sum() > 1000
    np.testing.assert_array_equal(found["change"].values[known], expected[known])
    np.testing.assert_array_equal(found["to_code"].values, np.where(expected == 2, after, 0))


def _grid_of(path) -> GeoBox:
    import rasterio

    with rasterio.open(path) as src:
        return GeoBox(src.shape, src.transform, src.crs)


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({"Code_12": ["211"]}, None, "no columns such as Code_12 and Code_18.*there are layer 'a': Code_12"),
        ({"Code_12": ["211"], "Code_18": ["112"]}, ["Code_12", "Code_19"], "not the columns Code_12 and Code_19"),
        ({"Code_06": ["211"], "Code_12": ["211"], "Code_18": ["1"]}, None, "Code_06, Code_12, Code_18 are of several"),
        ({"Code_12": ["211"], "Code_18": ["114"]}, None, "114 not known to legend 'corine'"),
        ({"Change": ["211/"]}, None, "'211/' is not a pair of codes such as 211-112"),
        ({"Change": ["211-112"]}, ["Change", "x", "y"], "two, before and after, or one"),
    ],
)
def test_layers_that_cannot_serve_are_refused(tmp_path, columns, given, message):
    path = write(tmp_path / "a.gpkg", [square(0, 0, 500, 400)], columns)
    for use in (gf.load_change_labels, check_changes):
        with pytest.raises(LabelError, match=message):
            use(path, GRID, "corine", given)


def test_what_is_no_file_of_polygons_is_refused(tmp_path):
    with pytest.raises(LabelError, match=r"no change labels at .*b\.gpkg"):
        gf.load_change_labels(tmp_path / "b.gpkg", GRID)
    (tmp_path / "b.tif").write_bytes(b"")
    with pytest.raises(LabelError, match=r"read from polygons, in one of \.gpkg"):
        gf.load_change_labels(tmp_path / "b.tif", GRID)


def test_a_job_that_compares_change_must_map_it():
    job = {"name": "a", "area": {"bbox": [0, 0, 1, 1]}, "grid": {"crs": "EPSG:3035"}, "predict": {"model": "m"}}
    job["imagery"] = {"catalog": "c", "epochs": {"2018": {"all": "2018-01-01/2018-12-31"}}}
    with pytest.raises(JobError, match="a change section must be in the job"):
        parse_job({**job, "evaluate": {"change_truth": "cha.gpkg"}})
    with pytest.raises(JobError, match="give truth, change_truth or both"):
        parse_job({**job, "evaluate": {}})
