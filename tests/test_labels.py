"""Labels on the grid: which pixel gets which class, from which kinds of files, and what is refused."""

from pathlib import Path

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, box
from pyproj import Transformer

from geoflow.errors import LabelError
from geoflow.grid import Grid
from geoflow.labels import check_labels, load_labels
from geoflow.legends import legend

CRS = "EPSG:32633"
LEFT, TOP = 500_000, 5_000_000
GRID = GeoBox.from_bbox(BoundingBox(LEFT, TOP - 400, LEFT + 500, TOP, CRS), resolution=10)


def square(x0: float, y0: float, x1: float, y1: float) -> shapely.Polygon:
    """A rectangle in metres east and south of the grid's corner."""
    return shapely.box(LEFT + x0, TOP - y1, LEFT + x1, TOP - y0)


def write(path: Path, shapes, columns: dict, crs: str = CRS, layer: str | None = None, append: bool = False) -> Path:
    fields = [np.asarray(v, None if isinstance(v[0], int | float) else object) for v in columns.values()]
    pyogrio.raw.write(
        str(path),
        shapely.to_wkb(np.asarray(shapes, object)),
        fields,
        list(columns),
        driver="OpenFileGDB" if path.suffix == ".gdb" else None,
        geometry_type="Unknown" if path.suffix in (".gpkg", ".geojson") else "Polygon",
        crs=crs,
        layer=layer,
        append=append,
    )
    return path


def write_raster(path: Path, values: np.ndarray, geobox: GeoBox = GRID, nodata=None, crs=CRS) -> Path:
    profile = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "crs": crs, "transform": geobox.transform}
    with rasterio.open(path, "w", height=values.shape[0], width=values.shape[1], nodata=nodata, **profile) as dst:
        dst.write(values, 1)
    return path


def test_a_pixel_has_the_class_that_its_centre_lies_in(tmp_path):
    # 14 m: covers the first pixel, and of the second less than half; 16 m: more than half of it
    source = write(tmp_path / "a.gpkg", [square(0, 0, 14, 10), square(0, 20, 16, 30)], {"Code_18": ["311", "512"]})
    labels = load_labels(source, GRID, "corine")
    expected = np.zeros((40, 50), np.uint16)
    expected[0, 0], expected[2, :2] = 311, 512
    np.testing.assert_array_equal(labels.values, expected)
    assert labels.dims == ("y", "x")
    assert labels.dtype == np.uint16
    assert labels.odc.geobox == GRID
    assert labels.attrs["nodata"] == 0


def test_the_smaller_of_two_polygons_wins_and_of_equals_the_later(tmp_path):
    shapes = [square(100, 100, 110, 110), square(0, 0, 300, 300), square(0, 310, 30, 320), square(0, 310, 30, 320)]
    source = write(tmp_path / "a.gpkg", shapes, {"code": [111, 311, 211, 212]})
    codes = load_labels(source, GRID, "corine").values
    assert codes[10, 10] == 111
    assert codes[9, 9] == codes[29, 29] == 311
    assert codes[31, 0] == 212
    assert codes[35, 0] == 0


def test_a_hole_stays_empty_and_a_bow_tie_is_mended(tmp_path):
    with_hole = square(0, 0, 100, 100) - square(40, 40, 60, 60)
    tie = shapely.Polygon([(LEFT + x, TOP - y) for x, y in [(200, 0), (300, 100), (300, 0), (200, 100)]])
    assert not tie.is_valid
    codes = load_labels(write(tmp_path / "a.gpkg", [with_hole, tie], {"code": [311, 512]}), GRID, "corine").values
    assert codes[5, 5] == 0
    assert codes[3, 5] == 311
    assert codes[5, 21] == codes[5, 28] == 512
    assert codes[0, 25] == codes[9, 25] == 0


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".gdb", ".fgb", ".geojson", ".parquet"])
@pytest.mark.parametrize("crs", [CRS, "EPSG:3035", "EPSG:4326", "EPSG:3045"])  # the last: northing before easting
def test_every_kind_of_file_and_crs_gives_the_same_pixels(tmp_path, suffix, crs):
    if suffix == ".geojson" and crs != "EPSG:4326":
        pytest.skip("GeoJSON is in EPSG:4326 alone")
    to_crs = Transformer.from_crs(CRS, crs, always_xy=True)
    shapes = [shapely.segmentize(s, 20) for s in (square(3, 3, 203, 203), square(253, 103, 403, 303))]
    shapes = [shapely.transform(s, to_crs.transform, interleaved=False) for s in shapes]
    path = tmp_path / f"labels{suffix}"
    if suffix == ".parquet":
        import geopandas

        geopandas.GeoDataFrame({"CLC_CODE": ["311", "512"]}, geometry=shapes, crs=crs).to_parquet(path)
    else:
        write(path, shapes, {"CLC_CODE": ["311", "512"]}, crs)
    check_labels(path, GRID, "corine")
    expected = np.zeros((40, 50), np.uint16)
    expected[0:20, 0:20], expected[10:30, 25:40] = 311, 512
    np.testing.assert_array_equal(load_labels(path, GRID, "corine").values, expected)


@pytest.mark.parametrize(
    "column", ["Code_18", "CODE_18", "CLC_CODE", "clc_code", "CLC18", "code_12", "code", "CLC_2018"]
)
@pytest.mark.parametrize("value", ["311", 311, 311.0, "Broad-leaved forest"])
def test_columns_and_values_met_in_the_wild(tmp_path, column, value):
    source = write(tmp_path / "a.fgb", [square(0, 0, 500, 400)], {"AREA_HA": [20.0], column: [value]})
    assert check_labels(source, GRID, "corine").column == column
    assert (load_labels(source, GRID, "corine") == 311).all()


def test_a_grid_code_column_is_read_as_such(tmp_path):
    source = write(tmp_path / "a.gpkg", [square(0, 0, 500, 400), square(0, 0, 10, 10)], {"GRID_CODE": [23, 48]})
    codes = load_labels(source, GRID, "corine").values
    assert codes[0, 0] == 0
    assert codes[5, 5] == 311


def test_special_codes_become_nodata_and_corine_serves_the_19_classes(tmp_path):
    shapes = [square(0, 0, 100, 400), square(100, 0, 200, 400), square(200, 0, 300, 400)]
    source = write(tmp_path / "a.gpkg", shapes, {"Code_18": ["999", "112", "333"]})
    row = load_labels(source, GRID, "bigearthnet-19").values[0]
    assert row[0] == 0
    assert row[10] == 11
    assert row[20] == 321


def test_several_columns_or_layers_must_be_named(tmp_path):
    source = write(
        tmp_path / "a.gpkg", [square(0, 0, 500, 400)], {"Code_12": ["311"], "Code_18": ["324"]}, layer="change"
    )
    with pytest.raises(LabelError, match=r"Code_12, Code_18 may all hold the classes; name one, as column: Code_18"):
        load_labels(source, GRID, "corine")
    assert (load_labels(source, GRID, "corine", column="code_12") == 311).all()
    write(source, [square(0, 0, 500, 400)], {"CODE_18": ["512"]}, layer="status", append=True)
    with pytest.raises(LabelError, match=r"name one: .*a\.gpkg\|layername=change"):
        load_labels(source, GRID, "corine", column="Code_18")
    assert (load_labels(f"{source}|layername=status", GRID, "corine") == 512).all()


def test_only_what_is_near_is_read(tmp_path):
    far = square(1_000_000, 0, 1_000_100, 100)
    source = write(tmp_path / "a.gpkg", [square(0, 0, 500, 400), far], {"Code_18": ["311", "nonsense"]})
    assert (load_labels(source, GRID, "corine") == 311).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["x"]}, r"no column with a name such as Code_18.*there are layer 'a': name"),
        ({"Code_18": ["312a"]}, "has no class named '312a'"),
        ({"Code_18": ["314"]}, "314 not known to legend 'corine' as code"),
        ({"Code_18": ["31"]}, "31 not known to legend 'corine'"),
        ({"Code_18": ["Forests"]}, "'Forests' is no class of level 3"),
        ({"Code_18": [""]}, "1 features have no value"),
    ],
)
def test_labels_that_cannot_serve_are_refused(tmp_path, columns, message):
    source = write(tmp_path / "a.gpkg", [square(0, 0, 500, 400)], columns)
    for use in (check_labels, load_labels):
        with pytest.raises(LabelError, match=message):
            use(source, GRID, "corine")


def test_labels_elsewhere_missing_or_not_polygons_are_refused(tmp_path):
    source = write(tmp_path / "a.gpkg", [square(9000, 0, 9500, 400)], {"Code_18": ["311"]})
    with pytest.raises(LabelError, match=r"holds no labels in the area; it covers \(509000\.0"):
        check_labels(source, GRID, "corine")
    assert (load_labels(source, GRID, "corine") == 0).all()
    assert check_labels(source, box(509_000, TOP - 300, 509_200, TOP, CRS), "corine").column == "Code_18"
    with pytest.raises(LabelError, match=r"no labels at .*b\.gpkg"):
        check_labels(tmp_path / "b.gpkg", GRID, "corine")
    with pytest.raises(LabelError, match="no column 'Code_19'"):
        check_labels(source, GRID, "corine", column="Code_19")
    points = write(tmp_path / "p.gpkg", [shapely.Point(LEFT + 5, TOP - 5)], {"code": [311]})
    with pytest.raises(LabelError, match="lines or points"):
        load_labels(points, GRID, "corine")
    (tmp_path / "c.gpkg").write_bytes(b"not a geopackage")
    with pytest.raises(LabelError, match="cannot be read as a vector file"):
        check_labels(tmp_path / "c.gpkg", GRID, "corine")
    (tmp_path / "c.csv").write_text("code\n311\n")
    with pytest.raises(LabelError, match=r"not a kind of file that labels are read from: \.gpkg"):
        check_labels(tmp_path / "c.csv", GRID, "corine")


# ---- rasters


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("nodata", [None, 0, 255])
def test_a_raster_of_grid_codes(tmp_path, dtype, nodata):
    values = np.array([[23, 44], [255, 0]]).repeat(20, 0).repeat(25, 1).astype(dtype)
    source = write_raster(tmp_path / "a.tif", values, nodata=nodata)
    assert check_labels(source, GRID, "corine").coding == "grid_code"
    codes = load_labels(source, GRID, "corine").values
    assert (codes[0, 0], codes[0, 49], codes[39, 0], codes[39, 49]) == (311, 523, 0, 0)


def test_a_raster_as_the_eea_ships_it(tmp_path):
    """int8 with nodata -128 and a colour table."""
    values = np.where(np.arange(50) < 25, 23, -128)[None].repeat(40, 0).astype(np.int8)
    values[-1] = 44  # 23 alone could be a code of level 2
    source = write_raster(tmp_path / "a.tif", values, nodata=-128)
    codes = load_labels(source, GRID, "corine").values
    assert (codes[:-1, :25] == 311).all()
    assert (codes[:-1, 25:] == 0).all()
    assert (codes[-1] == 523).all()
    coloured = write_raster(tmp_path / "b.tif", np.where(values < 0, 0, values).astype(np.uint8))
    with rasterio.open(coloured, "r+") as dst:
        dst.write_colormap(1, {23: (128, 255, 0, 255), 44: (230, 242, 255, 255)})
    np.testing.assert_array_equal(load_labels(coloured, GRID, "corine").values, codes)


def test_a_raster_of_codes_and_beyond_its_border(tmp_path):
    values = np.full((20, 50), 311, np.int32)
    values[:, :10] = -2147483648
    source = write_raster(tmp_path / "a.tif", values, nodata=-2147483648)
    codes = load_labels(source, GRID, "corine").values
    assert (codes[:20, 10:] == 311).all()
    assert (codes[:, :10] == 0).all()
    assert (codes[20:] == 0).all()


def test_rasters_that_cannot_be_understood_are_refused(tmp_path):
    towns = write_raster(tmp_path / "towns.tif", np.full((40, 50), 2, np.uint8))
    with pytest.raises(
        LabelError, match=r"values 2 may be grid_code or codes of level 1; say which, as column: grid_code"
    ):
        check_labels(towns, GRID, "corine")
    assert (load_labels(towns, GRID, "corine", column="grid_code") == 112).all()
    with pytest.raises(LabelError, match="may only be one of code, clc_code, grid_code"):
        check_labels(towns, GRID, "corine", column="Code_18")
    mixed = write_raster(tmp_path / "mixed.tif", np.array([[23, 311]], np.int16).repeat(25, 1).repeat(40, 0))
    with pytest.raises(LabelError, match="not known to legend 'corine'"):
        check_labels(mixed, GRID, "corine")
    halves = write_raster(tmp_path / "halves.tif", np.full((40, 50), 23.5, np.float32))
    with pytest.raises(LabelError, match=r"holds 23\.5: class codes are whole numbers"):
        check_labels(halves, GRID, "corine")
    empty = write_raster(tmp_path / "empty.tif", np.zeros((40, 50), np.uint8))
    with pytest.raises(LabelError, match="nothing but nodata"):
        check_labels(empty, GRID, "corine")
    nowhere = write_raster(tmp_path / "nowhere.tif", np.full((40, 50), 23, np.uint8), crs=None)
    with pytest.raises(LabelError, match="no coordinate system"):
        check_labels(nowhere, GRID, "corine")


def test_a_legend_of_ones_own_from_a_raster(tmp_path):
    (tmp_path / "own.csv").write_text("code,name,colour\n4,vegetation,#2e9a3a\n6,water,#2b6fd6\n")
    source = write_raster(tmp_path / "a.tif", np.full((40, 50), 6, np.uint8), nodata=0)
    labels = load_labels(source, GRID, tmp_path / "own.csv")
    assert labels.dtype == np.uint8
    assert (labels == 6).all()
    assert labels.attrs["flag_meanings"] == "vegetation water"


# ---- tiles put together equal the whole

corners = st.integers(-20, 130).map(lambda v: v * 5.0)  # on pixel centres and corners: where rounding could decide
rings = st.lists(st.tuples(corners, corners), min_size=3, max_size=7, unique=True)
polygons = rings.map(lambda ring: shapely.Polygon([(LEFT + x, TOP - y) for x, y in ring])).filter(lambda p: p.area > 0)
slow_fixture = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tiles_equal_the_whole(source: Path, geobox: GeoBox, tile: int) -> np.ndarray:
    whole = load_labels(source, geobox, "corine").values
    for part in Grid(geobox, tile, tile).tiles():
        np.testing.assert_array_equal(load_labels(source, part.geobox, "corine").values, whole[part.y, part.x])
    return whole


@slow_fixture
@given(
    shapes=st.lists(polygons, min_size=1, max_size=6),
    tile=st.integers(7, 40),
    crs=st.sampled_from([CRS, "EPSG:3035", "EPSG:4326"]),
    resolution=st.sampled_from([10, 15]),
    data=st.data(),
)
def test_tiles_of_polygons_equal_the_whole(tmp_path, shapes, tile, crs, resolution, data):
    codes = data.draw(st.lists(st.sampled_from(legend("corine").codes()), min_size=len(shapes), max_size=len(shapes)))
    to_crs = Transformer.from_crs(CRS, crs, always_xy=True)
    placed = [shapely.transform(s, to_crs.transform, interleaved=False) for s in shapes]
    source = write(tmp_path / f"{data.draw(st.uuids())}.fgb", placed, {"code": codes}, crs)
    geobox = GeoBox.from_bbox(BoundingBox(LEFT, TOP - 600, LEFT + 600, TOP, CRS), resolution=resolution)
    whole = tiles_equal_the_whole(source, geobox, tile)
    if crs == CRS:
        expect_by_point_in_polygon(whole, shapes, codes, geobox)


def test_edges_through_pixel_centres_are_decided_alike_far_from_the_corner(tmp_path):
    """Corners on a third of a pixel, which no float holds: rounding would differ with the offset of the tile."""
    rng = np.random.default_rng(0)
    cells = rng.choice(93 * 93, 300, replace=False)
    rows, cols = (cells // 93 * 32).tolist(), (cells % 93 * 32).tolist()
    shapes = []
    for row, col in zip(rows, cols, strict=True):
        corners = rng.integers(0, 96, (int(rng.integers(3, 7)), 2)) * 5
        shapes.append(shapely.Polygon(np.array([LEFT + col * 15, TOP - row * 15]) + corners * [1, -1]))
    source = write(tmp_path / "a.fgb", shapes, {"code": [311] * len(shapes)})
    geobox = GeoBox.from_bbox(BoundingBox(LEFT, TOP - 45_000, LEFT + 45_000, TOP, CRS), resolution=15)
    whole = load_labels(source, geobox, "corine").values
    for row, col in zip(rows, cols, strict=True):
        part = np.s_[row : row + 32, col : col + 32]
        np.testing.assert_array_equal(load_labels(source, geobox[part], "corine").values, whole[part])


def expect_by_point_in_polygon(whole, shapes, codes, geobox) -> None:
    """The same rule asked of shapely, pixel by pixel; centres on a border are nobody's for sure, and left out."""
    ys, xs = np.meshgrid(geobox.coords["y"].values, geobox.coords["x"].values, indexing="ij")
    valid = [shapely.make_valid(shape) for shape in shapes]
    expected, unsure = np.zeros(whole.shape, int), np.zeros(whole.shape, bool)
    for i in sorted(range(len(shapes)), key=lambda i: (-round(valid[i].area, 6), i)):
        expected[shapely.contains_xy(valid[i], xs, ys)] = codes[i]
        unsure |= shapely.distance(shapely.boundary(valid[i]), shapely.points(xs, ys)) < 0.05
    np.testing.assert_array_equal(whole[~unsure], expected[~unsure])


@slow_fixture
@given(
    tile=st.integers(7, 40),
    crs=st.sampled_from([CRS, "EPSG:25833", "EPSG:3035"]),
    shift=st.sampled_from([0, 5, 12.5]),
    resolution=st.sampled_from([5, 10, 25]),
    seed=st.integers(0, 99),
)
def test_tiles_of_rasters_equal_the_whole(tmp_path, tile, crs, shift, resolution, seed):
    geobox = GeoBox.from_bbox(BoundingBox(LEFT, TOP - 500, LEFT + 500, TOP, CRS), resolution=resolution)
    if crs == "EPSG:3035":
        box_ = geobox.extent.to_crs(crs).boundingbox
    else:
        box_ = BoundingBox(LEFT + shift, TOP - 500 + shift, LEFT + 500 + shift, TOP + shift, crs)
    under = GeoBox.from_bbox(BoundingBox(*box_.bbox, crs), resolution=10)
    values = np.random.default_rng(seed).choice(legend("corine").codes(), under.shape).astype(np.uint16)
    source = write_raster(tmp_path / f"{tile}-{crs[5:]}-{shift}-{resolution}-{seed}.tif", values, under, crs=crs)
    whole = tiles_equal_the_whole(source, geobox, tile)
    if crs == CRS and shift == 0 and resolution == 10:
        np.testing.assert_array_equal(whole, values)
