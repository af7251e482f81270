"""The national grid: every pixel has one owner, and writes touch whole chunks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.geom import box, polygon

from geoflow.errors import GridError
from geoflow.grid import Grid


def grid_of(height: int, width: int, tile: int = 64, chunk: int = 32) -> Grid:
    geobox = GeoBox.from_bbox((0, 0, width * 10, height * 10), "EPSG:3035", resolution=10)
    return Grid(geobox, tile, chunk)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 4), st.sampled_from([16, 32, 50]))
def test_tiles_own_every_pixel_once_and_whole_chunks(height, width, chunks_a_tile, chunk):
    grid = grid_of(height, width, chunk * chunks_a_tile, chunk)
    owners = np.zeros(grid.shape, int)
    for tile in grid.tiles():
        owners[tile.y, tile.x] += 1
        for part, size in ((tile.y, height), (tile.x, width)):
            assert part.start % chunk == 0
            assert part.stop % chunk == 0 or part.stop == size
    assert (owners == 1).all()


@given(st.integers(0, 90), st.integers(33, 300), st.integers(33, 300))
def test_neighbourhood_is_what_a_padded_read_touches(pad, height, width):
    grid = grid_of(height, width)
    for tile in grid.tiles():
        y, x = tile.padded(pad)
        touched = {t.id for t in grid.tiles() if t.y.start < y.stop and t.y.stop > y.start}
        touched &= {t.id for t in grid.tiles() if t.x.start < x.stop and t.x.stop > x.start}
        assert {t.id for t in tile.neighbourhood(pad)} == touched


def test_tile_names_lead_back_to_the_tile():
    grid = grid_of(300, 200)
    for tile in grid.tiles():
        assert grid.tile_by_id(tile.id) == tile
    with pytest.raises(GridError, match="no tile at row 9"):
        grid.tile_by_id("r0009c0000")
    with pytest.raises(GridError, match="not the name of a tile"):
        grid.tile_by_id("x1")


def test_a_tile_lies_where_its_pixels_lie():
    grid = grid_of(300, 200)
    tile = grid.tile_at(2, 1)
    bounds = tile.geobox.boundingbox
    assert (bounds.left, bounds.top) == (640, 3000 - 1280)
    assert tile.shape == (64, 64)


def test_cover_snaps_to_multiples_so_that_grids_share_pixels():
    small = Grid.cover(box(4_321_003, 3_210_007, 4_322_999, 3_212_001, "EPSG:3035"), "EPSG:3035", 10, 64, 32)
    assert tuple(small.geobox.boundingbox) == (4_321_000, 3_210_000, 4_323_000, 3_212_010)
    assert small.shape == (201, 200)


def test_cover_takes_an_area_in_another_crs():
    area = box(24.0, 58.4, 24.2, 58.5, "EPSG:4326")
    grid = Grid.cover(area, "EPSG:3035", 10, 512, 256)
    assert grid.geobox.extent.contains(area.to_crs("EPSG:3035"))


def test_only_tiles_that_meet_the_area():
    grid = grid_of(256, 256)
    corner = polygon([(0, 2560), (600, 2560), (0, 1960), (0, 2560)], "EPSG:3035")
    assert [t.id for t in grid.tiles(corner)] == ["r0000c0000"]


@pytest.mark.parametrize(
    ("tile", "chunk", "says"), [(100, 32, "use tile 96 or 128"), (0, 32, "positive"), (16, 32, "32")]
)
def test_sizes_that_would_lose_pixels_are_refused(tile, chunk, says):
    with pytest.raises(GridError, match=says):
        grid_of(300, 300, tile, chunk)


def test_a_rotated_grid_is_refused():
    geobox = GeoBox.from_bbox((0, 0, 1000, 1000), "EPSG:3035", resolution=10).rotate(10)
    with pytest.raises(GridError, match="rotated"):
        Grid(geobox, 64, 32)
