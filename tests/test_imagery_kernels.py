"""Every way to make one value of several observations, against a slow and plain one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geoflow.imagery.kernels import (
    GEOMEDIAN_ITERATIONS,
    NO_SOURCE,
    _geometric_median,
    _sorting_network,
    best_composite,
    geomedian_composite,
    median_composite,
    medoid_composite,
    percentile_composite,
)
from geoflow.inputs import NODATA

INT16 = st.one_of(st.integers(-32768, 32767), st.sampled_from([NODATA, -1, 0, 1, 32767]))
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))


@st.composite
def stacks(draw: st.DrawFn, values: st.SearchStrategy[int] = INT16) -> tuple[np.ndarray, np.ndarray]:
    """(cube, clear)."""
    shape = draw(SHAPES)
    cube = draw(hnp.arrays(np.int16, shape, elements=values))
    return cube, draw(hnp.arrays(bool, (shape[0], *shape[2:])))


def usable(cube: np.ndarray, clear: np.ndarray, y: int, x: int) -> list[int]:
    """Times at which all bands of a pixel may be used."""
    return [t for t in range(len(cube)) if clear[t, y, x] and (cube[t, :, y, x] != NODATA).all()]


@given(stacks(), st.sampled_from([0, 5, 25, 33, 50, 90, 100]))
@settings(max_examples=80)
def test_percentiles_are_those_of_a_slow_one(stack: tuple[np.ndarray, np.ndarray], percent: int) -> None:
    cube, clear = stack
    value, count = percentile_composite(cube, clear, percent)
    assert (value.dtype, count.dtype) == (np.int16, np.uint8)
    for b, y, x in np.ndindex(cube.shape[1:]):
        values = [int(v) for v, ok in zip(cube[:, b, y, x], clear[:, y, x], strict=True) if ok and v != NODATA]
        assert count[b, y, x] == len(values)
        want = int(np.floor(np.percentile(values, percent) + 0.5)) if values else NODATA
        assert abs(value[b, y, x] - want) <= (0 if percent in (0, 50, 100) else 1)
        if values:  # by the definition, in whole numbers
            place = (len(values) - 1) * percent
            low, high = (sorted(values)[min(k, len(values) - 1)] for k in (place // 100, place // 100 + 1))
            assert value[b, y, x] == (low * (100 - place % 100) + high * (place % 100) + 50) // 100


def test_a_percentile_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 100, not 101"):
        percentile_composite(np.zeros((1, 1, 1, 1), np.int16), np.ones((1, 1, 1), bool), 101)


def test_many_scenes_and_long_strips() -> None:
    rng = np.random.default_rng(0)
    cube = rng.integers(-200, 9000, (300, 1, 3, 40), dtype=np.int16)
    cube[..., :4] = NODATA
    clear = rng.random((300, 3, 40)) < 0.95
    clear[..., 5] = True
    median, count = median_composite(cube, clear)
    assert (median[..., :4] == NODATA).all()
    assert (count[..., 5] == 255).all()
    with_nan = np.where(clear[:, None] & (cube != NODATA), cube, np.nan)[..., 4:]
    np.testing.assert_array_equal(median[..., 4:], np.floor(np.nanmedian(with_nan, axis=0) + 0.5))
    wide = rng.integers(0, 9000, (5, 2, 40, 1700), dtype=np.int16)
    whole = median_composite(wide, np.ones((5, 40, 1700), bool))[0]
    np.testing.assert_array_equal(whole, np.median(wide, axis=0).astype(np.int16))


@pytest.mark.parametrize("n", range(1, 20))
def test_the_network_sorts(n: int) -> None:
    """The zero-one principle: a network that sorts every sequence of 0 and 1 sorts everything (Knuth, 5.3.4)."""
    values = (
        (np.arange(2**n)[None, :] >> np.arange(n)[:, None] & 1) if n < 15 else np.random.default_rng(n).random((n, 500))
    )
    for low, high in _sorting_network(n):
        values[[low, high]] = np.minimum(values[low], values[high]), np.maximum(values[low], values[high])
    assert (np.diff(values, axis=0) >= 0).all()


@given(stacks())
@settings(max_examples=80)
def test_the_medoid_is_the_first_of_the_most_central(stack: tuple[np.ndarray, np.ndarray]) -> None:
    cube, clear = stack
    value, count, source = medoid_composite(cube, clear)
    for y, x in np.ndindex(cube.shape[2:]):
        times = usable(cube, clear, y, x)
        assert count[y, x] == len(times)
        if not times:
            assert source[y, x] == NO_SOURCE
            assert (value[:, y, x] == NODATA).all()
            continue
        points = cube[times, :, y, x].astype(float)
        sums = [sum(float(np.sqrt(((p - q) ** 2).sum())) for q in points) for p in points]
        first = next(t for t, s in zip(times, sums, strict=True) if s <= min(sums) * (1 + 1e-12))
        assert sums[times.index(int(source[y, x]))] <= min(sums) * (1 + 1e-12)
        assert source[y, x] == first or len(set(sums)) == len(sums)
        np.testing.assert_array_equal(value[:, y, x], cube[source[y, x], :, y, x])


@given(stacks(st.integers(-50, 4000)))
@settings(max_examples=60)
def test_the_geomedian_is_nearest_to_all(stack: tuple[np.ndarray, np.ndarray]) -> None:
    """No observation, no mean, no median and no neighbour has a smaller sum of distances, beyond rounding."""
    cube, clear = stack
    value, count = geomedian_composite(cube, clear)
    for y, x in np.ndindex(cube.shape[2:]):
        times = usable(cube, clear, y, x)
        assert count[y, x] == len(times)
        if not times:
            assert (value[:, y, x] == NODATA).all()
            continue
        points = cube[times, :, y, x].astype(float)

        def total(at: np.ndarray, points: np.ndarray = points) -> float:
            return float(np.sqrt(((points - at) ** 2).sum(axis=1)).sum())

        rivals = [*points, points.mean(axis=0), np.median(points, axis=0), slow_geomedian(points)]
        rounding = len(times) * 0.5 * np.sqrt(cube.shape[1])
        assert total(value[:, y, x]) <= min(total(p) for p in rivals) + rounding + 0.1


def slow_geomedian(points: np.ndarray) -> np.ndarray:
    """Weiszfeld's iterations as they are in textbooks, from the mean."""
    centre = points.mean(axis=0)
    for _ in range(2000):
        weight = 1 / np.maximum(np.sqrt(((points - centre) ** 2).sum(axis=1)), 1e-9)
        centre = (points * weight[:, None]).sum(axis=0) / weight.sum()
    return centre


@pytest.mark.parametrize("seed", range(30))
def test_the_geometric_median_is_that_of_a_slow_one(seed: int) -> None:
    """On spectra as they occur: noise, a change of brightness from date to date, here and there a missed cloud."""
    rng = np.random.default_rng(seed)
    dates, bands = int(rng.integers(3, 9)), int(rng.integers(2, 11))
    points = rng.integers(200, 4000, bands) * (1 + 0.1 * rng.normal(size=(dates, 1))) + rng.normal(
        0, 40, (dates, bands)
    )
    if seed % 3 == 0:
        points[0] += 3000
    centre = np.empty(bands)
    used = _geometric_median(np.vstack([points, points[:1]]), dates, np.empty(dates), centre, np.empty(bands))
    assert used < GEOMEDIAN_ITERATIONS
    slow = slow_geomedian(points)
    sums = [np.sqrt(((points - at) ** 2).sum(axis=1)).sum() for at in (centre, slow)]
    assert sums[0] <= sums[1] + 0.02
    assert np.abs(centre - slow).max() < 4


def test_the_geomedian_of_two_is_their_mean_and_of_a_cross_its_centre() -> None:
    two = np.array([[0, 10], [100, 21]], np.int16).reshape(2, 2, 1, 1)
    value, _ = geomedian_composite(two, np.ones((2, 1, 1), bool))
    assert value.ravel().tolist() == [50, 16]
    cross = np.array([[-700, 0], [300, 0], [0, -50], [0, 9000], [0, 0]], np.int16).reshape(5, 2, 1, 1)
    value, count = geomedian_composite(cross, np.ones((5, 1, 1), bool))
    assert value.ravel().tolist() == [0, 0]
    assert count.item() == 5


@given(st.data(), stacks())
@settings(max_examples=60)
def test_the_best_has_the_highest_score(data: st.DataObject, stack: tuple[np.ndarray, np.ndarray]) -> None:
    cube, clear = stack
    score = data.draw(hnp.arrays(np.uint16, clear.shape, elements=st.integers(1, 4))) * clear
    value, count, source = best_composite(cube, score)
    for y, x in np.ndindex(cube.shape[2:]):
        times = usable(cube, clear, y, x)
        assert count[y, x] == len(times)
        want = max(times, key=lambda t: (score[t, y, x], -t), default=NO_SOURCE)
        assert source[y, x] == want
        assert (value[:, y, x] == (cube[want, :, y, x] if times else NODATA)).all()


@given(st.data(), stacks(st.integers(-50, 4000)))
@settings(max_examples=60)
def test_the_order_of_scenes_matters_only_between_equals(
    data: st.DataObject, stack: tuple[np.ndarray, np.ndarray]
) -> None:
    cube, clear = stack
    order = data.draw(st.permutations(range(len(cube))))
    mixed, mask = cube[list(order)], clear[list(order)]
    for percent in (10, 50):
        np.testing.assert_array_equal(
            percentile_composite(mixed, mask, percent)[0], percentile_composite(cube, clear, percent)[0]
        )
    one, other = medoid_composite(cube, clear), medoid_composite(mixed, mask)
    np.testing.assert_array_equal(one[1], other[1])
    for y, x in np.ndindex(cube.shape[2:]):
        points = cube[usable(cube, clear, y, x), :, y, x].astype(float)
        sums = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2)).sum(axis=1)
        if len(points) and (sums <= sums.min() * (1 + 1e-9)).sum() == 1:
            np.testing.assert_array_equal(one[0][:, y, x], other[0][:, y, x])


@pytest.mark.parametrize("method", [median_composite, medoid_composite, geomedian_composite])
def test_a_view_and_a_cut_give_the_same(method) -> None:
    """Memory that is not in order, as xarray hands it over, and blocks of any size."""
    rng = np.random.default_rng(3)
    cube = rng.integers(0, 4000, (5, 3, 33, 29), dtype=np.int16)
    clear = rng.random((5, 33, 29)) < 0.8
    whole = method(cube, clear)
    shuffled = np.moveaxis(np.ascontiguousarray(np.moveaxis(cube, 0, -1)), -1, 0)
    for one, other in zip(whole, method(shuffled, clear), strict=True):
        np.testing.assert_array_equal(one, other)
    part = method(cube[:, :, 7:20, 3:9], clear[:, 7:20, 3:9])
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[..., 7:20, 3:9], other)
