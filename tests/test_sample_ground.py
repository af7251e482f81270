"""The ground of the sample country: the same from every window, varied, and mapped as CORINE maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy import ndimage

from geoflow.errors import GridError
from geoflow.sample import corine, difficulty
from geoflow.sample import noise as nz
from geoflow.sample.geography import border_of, counties_of, frame_of, frame_pixels, square_name, tiles_of
from geoflow.sample.ground import MIN_CHANGE_PX, drop_small_changes, survey_block
from geoflow.sample.landscape import Landscape
from geoflow.sample.make import _inside
from geoflow.sample.signatures import BANDS, MATERIALS, VARIANTS, tables


@pytest.fixture(scope="module")
def land() -> Landscape:
    """The ground of the small country."""
    return Landscape.found(2018, 12800.0, 20480.0)


@pytest.fixture(scope="module")
def epochs(land):
    """Truth of the small country in both epochs, 0 outside."""
    frame = frame_of("small")
    window = slice(0, frame.height), slice(0, frame.width)
    survey = land.survey(*window)
    inside = _inside(border_of(land, frame), frame, *window)
    before = np.where(inside, survey.before, 0).astype(np.uint16)
    return before, drop_small_changes(before, np.where(inside, survey.after, 0).astype(np.uint16))


@settings(max_examples=15)
@given(row=st.integers(-300, 1500), col=st.integers(-300, 2300), spacing=st.sampled_from([22.0, 300.0, 4000.0]))
def test_noise_is_a_function_of_position(row, col, spacing):
    ys, xs = (np.arange(row, row + 40) + 0.5) * 10.0, (np.arange(col, col + 50) + 0.5) * 10.0
    whole = nz.noise(ys, xs, spacing, 7)
    np.testing.assert_array_equal(whole[13:20, 21:48], nz.noise(ys[13:20], xs[21:48], spacing, 7))


def test_noise_has_unit_spread():
    axis = np.arange(0, 40000, 20.0)
    field = nz.fbm(axis, axis, (400, 200), 3)
    assert abs(field.mean()) < 0.05
    assert 0.9 < field.std() < 1.1


def test_cells_are_the_nearest_points():
    y, x = (
        a.astype(np.float32) for a in np.meshgrid(np.arange(0, 3000, 10.0), np.arange(0, 3000, 10.0), indexing="ij")
    )
    quick, thorough = nz.cells(y, x, 500, 5, jitter=0.3), nz.cells(y, x, 500, 5, jitter=0.3, edges=True)
    assert (quick.id == thorough.id).mean() > 0.99
    assert (thorough.edge >= 0).all()
    assert (thorough.other != thorough.id).all()


def test_a_window_does_not_depend_on_its_neighbours(land):
    before, after, paint = survey_block(land, slice(400, 560), slice(700, 900))
    wide_before, wide_after, wide_paint = survey_block(land, slice(300, 600), slice(650, 950))
    core = slice(100, 260), slice(50, 250)
    np.testing.assert_array_equal(before, wide_before[core])
    np.testing.assert_array_equal(after, wide_after[core])
    for layer in ("before", "after", "tone", "vigour", "slope_y"):
        np.testing.assert_array_equal(getattr(paint, layer), getattr(wide_paint, layer)[core])


@pytest.mark.parametrize("seed", [2018, 1, 7])
def test_every_seed_has_the_classes_of_a_country(seed):
    land = Landscape.found(seed, 12800.0, 20480.0)
    codes, counts = np.unique(land.survey(slice(0, 1280), slice(0, 2048), 4).before, return_counts=True)
    share = dict(zip(codes.tolist(), (counts / counts.sum()).tolist(), strict=True))
    assert len(codes) >= 18
    assert {c // 100 for c in share} == {1, 2, 3, 4, 5}
    forest, farmed = (sum(share.get(c, 0) for c in group) for group in ((311, 312, 313), (211, 231, 242, 243)))
    assert 0.2 < forest < 0.5
    assert 0.2 < farmed < 0.5
    assert sum(sorted(share.values())[-4:]) > 0.4, "a few classes cover most of the country"
    assert sum(v < 0.01 for v in share.values()) >= 4, "and some are rare"


def test_another_seed_is_another_country(land):
    window = slice(100, 200), slice(700, 800)
    other = Landscape.found(7, 12800.0, 20480.0)
    assert (other.survey(*window).before != land.survey(*window).before).mean() > 0.5


def test_a_landscape_needs_its_thresholds():
    with pytest.raises(ValueError, match=r"Landscape\.found"):
        Landscape(1, 8000.0, 8000.0).survey(slice(0, 50), slice(0, 50))


def test_change_is_a_few_percent_in_patches_of_fields_and_stands(epochs):
    before, after = epochs
    inside = before > 0
    assert 0.02 <= (before != after)[inside].mean() <= 0.05
    assert ((after > 0) == inside).all()
    kind = np.where(before != after, before.astype(int) * 1000 + after, 0)
    sizes = []
    for key in np.unique(kind[kind > 0]):
        patches, count = ndimage.label(kind == key)
        sizes += np.bincount(patches.ravel())[1:].tolist()
        assert count > 0
    assert min(sizes) >= MIN_CHANGE_PX
    assert max(sizes) <= 5000
    reached = set(np.unique(after[before != after]).tolist())
    assert {324, 334, 512, 112} <= reached
    assert reached & {311, 312, 313}


def test_small_changes_are_dropped_and_no_others():
    before = np.full((40, 40), 211, np.uint16)
    after = before.copy()
    after[2:4, 2:4], after[10:20, 10:14] = 112, 121
    kept = drop_small_changes(before, after)
    assert (kept[2:4, 2:4] == 211).all()
    assert (kept[10:20, 10:14] == 121).all()


def test_border_has_islands_and_counties_share_it_out(land):
    frame = frame_of("small")
    border = border_of(land, frame)
    assert len(border.geoms) >= 3
    assert border.is_valid
    left, bottom, right, top = border.bounds
    assert (right - left) / 10 >= 2000
    assert (top - bottom) / 10 >= 1200
    counties = counties_of(border, frame, land.seed)
    assert len({code for code, _, _ in counties}) == len(counties) == 5
    assert sum(g.area for _, _, g in counties) == pytest.approx(border.area, rel=1e-6)


def test_corine_is_drawn_as_corine_is(land, epochs):
    before, _ = epochs
    frame = frame_of("small")
    drawn = corine.draw(corine.Cells.of(before), corine.Drawing(seed=land.seed))
    shapes = corine.polygons(corine.spill(drawn), frame.transform_at(0, 0, corine.STEP))
    areas = np.array([g.area for _, g in shapes])
    assert all(g.is_valid for _, g in shapes)
    # Only where a border or the coast cuts a polygon off, or its corners were smoothed, may it fall below 25 ha.
    assert (areas > 0.8 * corine.MMU_M2).mean() > 0.9
    image = rasterize([(g, int(c)) for c, g in shapes], before.shape, transform=frame.transform, dtype="uint16")
    inside = before > 0
    assert (image[inside] > 0).all()
    for level, divisor in ((1, 100), (3, 1)):
        low, high = difficulty.TARGETS[f"corine_level{level}"]
        assert low <= (image // divisor == before // divisor)[inside].mean() <= high


def test_generalising_drops_what_is_small_or_narrow():
    cells = np.full((120, 120), 312, np.uint16)
    cells[:, 60] = 122
    cells[20:25, 20:25] = 512
    cells[70:100, 70:100] = 211
    drawn = corine.generalise(cells, corine.Drawing(shift_m=0.0))
    assert set(np.unique(drawn)) == {211, 312}
    assert (drawn[75:95, 75:95] == 211).all()


def test_coarsening_takes_the_most_frequent_code():
    codes = np.repeat(np.repeat(np.array([[211, 312], [0, 112]], np.uint16), 4, 0), 4, 1)
    codes[0, 0:3] = 512
    np.testing.assert_array_equal(corine.coarsen(codes), [[211, 312], [0, 112]])


def test_frames_and_tiles():
    with pytest.raises(GridError, match="WIDTHxHEIGHT"):
        frame_of("huge")
    with pytest.raises(GridError, match="too small"):
        frame_of("100x100")
    frame = frame_of("small")
    assert frame.left % 10 == frame.top % 10 == 0
    assert (frame.width, frame.height) == (2048, 1280)
    west, east = tiles_of(frame)
    assert (west.epsg, east.epsg) == (32634, 32635)
    for tile in (west, east):
        assert tile.left % 60 == tile.top % 60 == tile.width % 6 == tile.height % 6 == 0
    whole = tiles_of(frame_of("tile"))
    assert [(t.height, t.width) for t in whole] == [(10980, 10980)]
    assert square_name(35, 372000, 6589000) == "LF", "Tallinn is in 35VLF"
    assert square_name(34, 334000, 6581000) == "CL", "Stockholm is in 34VCL"


def test_frame_pixels_agree_with_the_projection():
    from pyproj import Transformer

    frame = frame_of("small")
    tile = tiles_of(frame)[1]
    rows, cols = frame_pixels(tile, frame, slice(100, 400), slice(30, 500))
    x, y = Transformer.from_crs(tile.epsg, 3035, always_xy=True).transform(
        tile.left + (30 + 217 + 0.5) * 10, tile.top - (100 + 131 + 0.5) * 10
    )
    assert rows[131, 217] == int((frame.top - y) // 10)
    assert cols[131, 217] == int((x - frame.left) // 10)


def test_signatures_move_with_the_season():
    names = [m.name for m in MATERIALS]
    red, nir = BANDS.index("B04"), BANDS.index("B08")

    def ndvi(name: str, doy: int) -> float:
        mean = tables(doy)[0][names.index(name) * VARIANTS]
        return float((mean[nir] - mean[red]) / (mean[nir] + mean[red]))

    assert ndvi("birch", 115) < 0.6 < ndvi("birch", 190)
    assert ndvi("winter_crop", 140) > 0.7
    assert ndvi("winter_crop", 230) < ndvi("winter_crop", 140) - 0.2, "the harvest"
    assert ndvi("spring_crop", 115) < 0.4 < ndvi("spring_crop", 190)
    assert abs(ndvi("pasture", 190) - ndvi("meadow", 170)) < 0.15, "pasture and meadow overlap"
    assert len(MATERIALS) * VARIANTS <= 256
    for doy in (60, 115, 200, 260):
        assert (tables(doy)[0] > 0).all()
