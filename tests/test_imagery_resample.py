"""Resampling: as GDAL with its exact transformation, to the bit alike in every part of a grid."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling as GdalResampling
from rasterio.warp import reproject, transform

from geoflow.errors import GridError
from geoflow.imagery import interpolate
from geoflow.imagery.resample import Source, Target, is_window_of, lattice_of, resample

SIDE = 200
SOURCE = Source("EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_200_000), (SIDE, SIDE), "uint16")
METHODS = ("nearest", "bilinear", "cubic")


def noise(seed: int = 0, holes: float = 0.0, dtype: str = "uint16") -> np.ndarray:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 250, (SIDE, SIDE)).astype(dtype)
    pixels[rng.random(pixels.shape) < holes] = 0
    return pixels


def onto(pixels: np.ndarray, target: Target, method: str = "bilinear", source: Source = SOURCE) -> np.ndarray:
    return resample(lambda rows, cols: pixels[rows, cols], source, target, method)  # type: ignore[arg-type]


def middle(crs: str, size: int, resolution: float, shift: tuple[float, float] = (0.0, 0.0)) -> Target:
    """A grid over the middle of the source."""
    x, y = transform("EPSG:32633", crs, [501_000], [5_199_000])
    left, top = (round((v - s * size * resolution / 2) / resolution) * resolution for v, s in ((x[0], 1), (y[0], -1)))
    place = Affine(resolution, 0, left + shift[0] * resolution, 0, -resolution, top + shift[1] * resolution)
    return Target(crs, place, (size, size))


def by_gdal(pixels: np.ndarray, target: Target, method: str, **options: float) -> np.ndarray:
    out = np.zeros(target.shape, pixels.dtype)
    reproject(
        pixels,
        out,
        src_transform=SOURCE.transform,
        src_crs=SOURCE.crs,
        src_nodata=0,
        dst_transform=target.transform,
        dst_crs=target.crs,
        dst_nodata=0,
        resampling=GdalResampling[method],
        tolerance=0,
        **options,
    )
    return out


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:3035", "EPSG:32632", "EPSG:3301"])
@pytest.mark.parametrize("method", METHODS)
def test_as_gdal_with_the_exact_transformation(crs: str, method: str) -> None:
    pixels, target = noise(), middle(crs, 120, 10.0, (0.3, 0.4))
    ours = onto(pixels, target, method).astype(int)
    theirs = by_gdal(pixels, target, method, XSCALE=1, YSCALE=1)
    assert (ours > 0).all()
    if method == "nearest":
        assert (ours == theirs).mean() > 0.9995, "but for centres on the border of two pixels"
    else:
        assert np.abs(ours - theirs).max() <= 1


def test_a_coarser_grid_is_averaged_as_gdal_does() -> None:
    pixels, target = noise(), middle("EPSG:32633", 24, 60.0, (0.2, 0.1))
    ours = onto(pixels, target).astype(int)
    theirs = by_gdal(pixels, target, "bilinear", XSCALE=1 / 6, YSCALE=1 / 6)
    assert np.abs(ours - theirs).max() <= 1
    assert ours.std() < 0.2 * pixels.std()


@settings(max_examples=60)
@given(
    st.sampled_from(["EPSG:32633", "EPSG:3035", "EPSG:4326"]),
    st.sampled_from(METHODS),
    st.sampled_from([5.0, 10.0, 12.5, 40.0]),
    st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
    st.data(),
)
def test_a_part_is_the_part_of_the_whole(
    crs: str, method: str, resolution: float, shift: tuple[float, float], data: st.DataObject
) -> None:
    size = 70
    whole = middle(crs, size, resolution / 111_320 if crs == "EPSG:4326" else resolution, shift)
    pixels = noise(holes=0.05)
    top, left = data.draw(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)))
    height, width = data.draw(st.tuples(st.integers(1, size - top), st.integers(1, size - left)))
    part = Target(crs, whole.transform * Affine.translation(left, top), (height, width))
    np.testing.assert_array_equal(
        onto(pixels, part, method), onto(pixels, whole, method)[top : top + height, left : left + width]
    )


@settings(max_examples=40)
@given(st.integers(0, 1000), st.sampled_from(METHODS), st.sampled_from([10.0, 35.0]))
def test_data_where_the_pixel_under_the_centre_has_data(seed: int, method: str, resolution: float) -> None:
    pixels, target = noise(seed, holes=0.3), middle("EPSG:3035", 60, resolution)
    under = onto(pixels, target, "nearest")
    values = onto(pixels, target, method)
    np.testing.assert_array_equal(values == 0, under == 0)
    assert values.max() <= pixels.max() * (1.3 if method == "cubic" else 1.0)


def test_nodata_never_mixes_in() -> None:
    pixels = np.full((SIDE, SIDE), 1000, np.uint16)
    pixels[np.random.default_rng(1).random(pixels.shape) < 0.4] = 0
    for method in METHODS:
        for resolution in (7.0, 10.0, 33.0):
            values = onto(pixels, middle("EPSG:3035", 60, resolution), method)
            assert set(np.unique(values).tolist()) == {0, 1000}


def test_cubic_overshoots_within_the_type() -> None:
    pixels = np.full((SIDE, SIDE), 65535, np.uint16)
    pixels[::7, ::5] = 1
    values = onto(pixels, middle("EPSG:3035", 100, 10.0), "cubic")
    assert values.min() >= 1
    assert values.max() == 65535


def test_pixels_of_the_scene_itself_need_no_resampling() -> None:
    shifted = Target("EPSG:32633", SOURCE.transform * Affine.translation(-3, 5), (20, 20))
    assert is_window_of(SOURCE, shifted) == (5, -3)
    pixels = noise()
    for method in METHODS:
        np.testing.assert_array_equal(onto(pixels, shifted, method)[:, 3:], pixels[5:25, 0:17])
        assert (onto(pixels, shifted, method)[:, :3] == 0).all()
    for other in (
        Target("EPSG:3035", SOURCE.transform, (20, 20)),
        Target("EPSG:32633", SOURCE.transform * Affine.translation(0.5, 0), (20, 20)),
        Target("EPSG:32633", SOURCE.transform * Affine.scale(1.0001), (20, 20)),
    ):
        assert is_window_of(SOURCE, other) is None


@settings(max_examples=60)
@given(
    parts=st.integers(1, 6),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    corner=st.tuples(st.integers(-50, 90), st.integers(-50, 90)),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_pixels_that_are_whole_parts_of_a_scenes_are_those_of_the_general_way(parts, size, corner, shape) -> None:
    """20 m onto 10 m: repeated without a place for each pixel, and the same."""
    source = Source("EPSG:32633", Affine(10 * parts, 0, 500_000, 0, -10 * parts, 5_200_020), size, "uint8")
    place = Affine(10, 0, 500_000 + 10 * corner[1], 0, -10, 5_200_020 - 10 * corner[0])
    target = Target("EPSG:32633", place, shape)
    pixels = np.random.default_rng(parts).integers(0, 12, size).astype(np.uint8)
    found = onto(pixels, target, "nearest", source)
    at, slow = lattice_of(source, target), np.zeros(shape, np.uint8)
    interpolate.nearest(pixels, 0, 0, at.u, at.v, at.row, at.col, at.step, slow)
    np.testing.assert_array_equal(found, slow)


def test_only_what_is_needed_is_read_and_nothing_where_nothing_is() -> None:
    asked: list[tuple[slice, slice]] = []

    def read(rows: slice, cols: slice) -> np.ndarray:
        asked.append((rows, cols))
        return noise()[rows, cols]

    resample(read, SOURCE, middle("EPSG:3035", 10, 10.0), "bilinear")
    (rows, cols) = asked.pop()
    assert rows.stop - rows.start < 80
    assert cols.stop - cols.start < 80
    for crs, place in (("EPSG:3035", (9_000_000, 900_000)), ("EPSG:4326", (-170.0, -80.0))):
        size = 1e-4 if crs == "EPSG:4326" else 10.0
        far = Target(crs, Affine(size, 0, place[0], 0, -size, place[1]), (9, 9))
        assert (resample(read, SOURCE, far, "bilinear") == np.zeros((9, 9), np.uint16)).all()
    assert not asked


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(GridError, match="not rotated"):
        Target("EPSG:3035", Affine.rotation(10), (5, 5))
    with pytest.raises(GridError, match=r"'lanczos'.*bilinear"):
        onto(noise(), middle("EPSG:3035", 5, 10.0), "lanczos")
