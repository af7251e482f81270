"""Which pixel a polygon holds, how many hold it, how far it lies from a border: exact, whatever the tile."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox
from pyproj import Transformer
from test_labels import CRS, GRID, LEFT, TOP, square, write, write_raster

from geoflow.errors import LabelError, LegendError
from geoflow.grid import Grid
from geoflow.labels import border_distance, load_label_tile, load_labels
from geoflow.labels.borders import BORDER_NODATA, halo_px
from geoflow.labels.levels import codes_by_level
from geoflow.labels.scanline import STEPS, fill, outlines
from geoflow.legends import legend

CORINE = legend("corine")
quick = settings(max_examples=60)
with_files = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def burnt(shapes: list, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Polygons in pixel coordinates, numbered from 1."""
    placed = outlines(np.array(shapes, object), Affine.identity(), None, "a test")
    return fill(placed, np.arange(1, len(shapes) + 1, dtype=np.uint16), shape)


# ---- which pixels a polygon holds

steps = st.integers(-6 * STEPS, 26 * STEPS)
halves = st.integers(-12, 52).map(
    lambda v: v * STEPS // 2
)  # centres and corners of pixels: where rounding would decide


@quick
@given(st.lists(st.tuples(st.one_of(steps, halves), st.one_of(steps, halves)), min_size=3, max_size=8))
def test_a_centre_is_held_by_the_even_odd_rule_in_exact_arithmetic(corners):
    """The definition with fractions: count the edges that a ray from the centre to the left crosses."""
    from fractions import Fraction

    ring = [*corners, corners[0]]
    found, claims = burnt([shapely.Polygon(np.array(ring) / STEPS)], (20, 20))
    for row in range(20):
        for column in range(20):
            x, y, crossed = column * STEPS + STEPS // 2, row * STEPS + STEPS // 2, 0
            for (x0, y0), (x1, y1) in itertools.pairwise(ring):
                if min(y0, y1) <= y < max(y0, y1):
                    crossed += x0 + Fraction((y - y0) * (x1 - x0), y1 - y0) <= x
            assert found[row, column] == claims[row, column] == crossed % 2


@quick
@given(st.lists(st.tuples(st.one_of(steps, halves), st.one_of(steps, halves)), min_size=4, max_size=25, unique=True))
def test_polygons_that_share_borders_share_the_pixels_out(points):
    """A triangulation covers its hull: each pixel of the hull is held once, whatever lies exactly on an edge."""
    triangles = shapely.delaunay_triangles(shapely.MultiPoint(np.array(points) / STEPS))
    shapes = [t for t in triangles.geoms if t.area > 0]
    if not shapes:
        return
    _, claims = burnt(shapes, (20, 20))
    _, hull = burnt([shapely.union_all(shapes)], (20, 20))
    np.testing.assert_array_equal(claims, hull)


def test_a_hole_that_another_polygon_fills_leaves_no_pixel_over():
    ring = shapely.Point(10, 10).buffer(7.3, 7)
    claims = burnt([shapely.box(0, 0, 20, 20) - ring, ring], (20, 20))[1]
    assert (claims == 1).all()


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(LabelError, match="has no coordinates"):
        outlines(np.array([square(0, 0, 9, 9)], object), Affine.identity(), lambda x, y: (x * np.inf, y), "a test")
    with pytest.raises(LabelError, match="more than a million pixels"):
        outlines(np.array([shapely.box(0, 0, 2e6, 1)], object), Affine.identity(), None, "a test")


def test_a_long_straight_border_of_another_crs_is_followed(tmp_path):
    """A box of 80 km in EPSG:3035: its sides are curves on a UTM grid, tens of metres off the chord."""
    to_laea = Transformer.from_crs(CRS, "EPSG:3035", always_xy=True)
    x, y = to_laea.transform(LEFT, TOP)
    side = shapely.box(x - 40_000, y, x + 40_000, y + 500)
    source = write(tmp_path / "a.fgb", [side], {"code": [311]}, "EPSG:3035")
    found = load_labels(source, GRID, CORINE).values
    xs, ys = np.meshgrid(GRID.coords["x"].values, GRID.coords["y"].values)
    px, py = to_laea.transform(xs, ys)
    unsure = np.abs(py - y) < 0.1
    expected = shapely.contains_xy(side, px, py)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal((found == 311)[~unsure], expected[~unsure])


# ---- several claims


def test_pixels_that_several_polygons_claim_are_counted(tmp_path):
    shapes = [square(0, 0, 300, 300), square(100, 100, 130, 130), square(290, 0, 400, 300), square(400, 0, 500, 300)]
    source = write(tmp_path / "a.gpkg", shapes, {"code": [311, 111, 211, 512]})
    found = load_label_tile(source, GRID, CORINE)
    assert found.overlap_px == 3 * 3 + 1 * 30
    np.testing.assert_array_equal(found.codes, load_labels(source, GRID, CORINE).values)
    parts = [load_label_tile(source, part.geobox, CORINE).overlap_px for part in Grid(GRID, 16, 16).tiles()]
    assert sum(parts) == found.overlap_px
    raster = write_raster(tmp_path / "a.tif", np.full((40, 50), 311, np.int32))
    assert load_label_tile(raster, GRID, CORINE).overlap_px == 0


# ---- distance to the nearest border

grids = hnp.arrays(
    np.uint16, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 112, 311])
)


def by_definition(codes: np.ndarray, resolution: float, cap: int) -> np.ndarray:
    """The distance from each centre to every border edge, as line segments."""
    height, width = codes.shape
    edges = [
        shapely.LineString([(x + 1, y), (x + 1, y + 1)])
        for y in range(height)
        for x in range(width - 1)
        if codes[y, x] != codes[y, x + 1]
    ] + [
        shapely.LineString([(x, y + 1), (x + 1, y + 1)])
        for y in range(height - 1)
        for x in range(width)
        if codes[y, x] != codes[y + 1, x]
    ]
    centres = shapely.points(*np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5))
    if not edges:
        return np.where(codes == 0, BORDER_NODATA, cap)
    far = shapely.distance(centres, shapely.union_all(edges)) * resolution
    return np.where(codes == 0, BORDER_NODATA, np.minimum(np.floor(far + 1e-6), cap))


@quick
@given(
    codes=grids,
    resolution=st.sampled_from([10.0, 12.5, 100.0, 1 / 3]),
    cap=st.sampled_from([1, 25, 1000]),
    margin=st.integers(0, 4),
)
def test_distances_are_those_to_the_edges_between_classes(codes, resolution, cap, margin):
    margin = min(margin, (min(codes.shape) - 1) // 2)
    found = border_distance(codes, resolution, cap, margin)
    assert found.dtype == np.int16
    inner = np.s_[margin : codes.shape[0] - margin, margin : codes.shape[1] - margin]
    np.testing.assert_array_equal(found, by_definition(codes, resolution, cap)[inner])


def test_distances_of_large_patches():
    codes = np.full((150, 170), 311, np.uint16)
    codes[:, 100:] = 211
    codes[70, 20] = 512
    np.testing.assert_array_equal(border_distance(codes, 10.0), by_definition(codes, 10.0, 1000))


def test_what_no_distance_can_be_told_in_is_refused():
    codes = np.ones((3, 3), np.uint16)
    for resolution, cap in ((10.0, 0), (10.0, 40_000), (0.0, 100), (0.1, 32_000)):
        with pytest.raises(LabelError, match=r"kept up to 1 to 32767|positive size|too many pixels"):
            border_distance(codes, resolution, cap)
    with pytest.raises(LabelError, match="a margin of 2 px leaves nothing of 3 x 3 px"):
        border_distance(codes, 10.0, margin=2)


def test_a_border_beyond_the_tile_and_beyond_the_grid_counts(tmp_path):
    source = write(tmp_path / "a.gpkg", [square(-2000, -2000, 530, 2000)], {"code": [311]})
    east = load_label_tile(source, GRID, CORINE).border_m
    assert east[0, -1] == 35  # the polygon ends 30 m east of the grid
    assert east[0, 0] == 525
    assert load_label_tile(source, GRID, CORINE, cap_m=100).border_m[0, 0] == 100


@with_files
@given(
    seed=st.integers(0, 10**6),
    tile=st.integers(5, 60),
    resolution=st.sampled_from([10, 15]),
    crs=st.sampled_from([CRS, "EPSG:3035"]),
    cap=st.sampled_from([30, 200]),
    kind=st.sampled_from(["vector", "raster"]),
)
def test_codes_and_distances_of_tiles_equal_the_whole(tmp_path, seed, tile, resolution, crs, cap, kind):
    rng = np.random.default_rng(seed)
    geobox = GeoBox.from_bbox(BoundingBox(LEFT, TOP - 600, LEFT + 600, TOP, CRS), resolution=resolution)
    source = tmp_path / f"{seed}-{tile}-{resolution}-{crs[5:]}-{cap}"
    if kind == "vector":
        source = polygons_file(source.with_suffix(".fgb"), rng, crs)
    else:
        wide = geobox.pad(30).to_crs(crs, resolution=40)
        values = rng.choice(CORINE.codes()[:3], (wide.shape.y, wide.shape.x)).astype(np.uint16)
        source = write_raster(source.with_suffix(".tif"), values, wide, crs=crs)
    whole = load_label_tile(source, geobox, CORINE, cap_m=cap)
    np.testing.assert_array_equal(whole.codes, load_labels(source, geobox, CORINE).values)
    for part in Grid(geobox, tile, tile).tiles():
        found = load_label_tile(source, part.geobox, CORINE, cap_m=cap)
        np.testing.assert_array_equal(found.codes, whole.codes[part.y, part.x])
        np.testing.assert_array_equal(found.border_m, whole.border_m[part.y, part.x])


def polygons_file(path: Path, rng: np.random.Generator, crs: str) -> Path:
    """Blobs over the grid and around it."""
    to_crs = Transformer.from_crs(CRS, crs, always_xy=True)
    centres = np.array([LEFT, TOP - 600]) + rng.uniform(-200, 800, (12, 2))
    shapes = [shapely.Point(c).buffer(r, 4) for c, r in zip(centres, rng.uniform(20, 300, 12), strict=True)]
    shapes = [shapely.transform(s, to_crs.transform, interleaved=False) for s in shapes]
    return write(path, shapes, {"code": rng.choice(CORINE.codes(), 12).tolist()}, crs)


def test_the_halo_is_as_wide_as_the_cap():
    assert halo_px(10.0, 1000) == 101
    assert halo_px(100.0, 1000) == 11


# ---- what tells one source from another


def test_a_change_in_any_file_of_a_source_is_noticed(tmp_path):
    """A shapefile's codes lie in its .dbf, a geodatabase's in files within a folder."""
    from geoflow.jobs.learnflow import file_stamp

    for name in ("a.shp", "a.gdb", "a.gpkg"):
        stamps = []
        for code in ("311", "312"):
            path = tmp_path / code / name
            path.parent.mkdir(exist_ok=True)
            stamps.append(file_stamp(write(path, [square(0, 0, 100, 100)], {"Code_18": [code]})))
        assert stamps[0] != stamps[1], name
        assert stamps[1] == file_stamp(tmp_path / "312" / name)


# ---- all levels of a tile


@pytest.mark.parametrize("name", ["corine", "bigearthnet-19"])
def test_levels_and_counts_are_those_of_the_legend(name):
    known = legend(name)
    deepest = known.dtype(known.deepest)
    codes = np.random.default_rng(0).choice([0, *known.codes()], (70, 90)).repeat(3, axis=1).astype(deepest)
    levels, counts = codes_by_level(codes, known)
    assert list(levels) == list(known.levels)
    for level, found in levels.items():
        assert found.dtype == known.dtype(level)
        np.testing.assert_array_equal(found, known.to_level(codes, level))
    assert counts == {int(c): int((codes == c).sum()) for c in np.unique(codes) if c}
    assert codes_by_level(np.zeros((3, 4), deepest), known)[1] == {}
    with pytest.raises(LegendError, match="does not hold 9"):
        codes_by_level(np.full((3, 4), 9, deepest), known)


def test_far_borders_are_ranked_in_32_bits():
    codes = np.full((3, 1200), 311, np.uint16)
    codes[:, 1000:] = 211
    found = border_distance(codes, 1.0, 900)[1]
    np.testing.assert_array_equal(found[:1000], np.minimum(900, np.arange(1000)[::-1]))
