"""The estimators give the printed figures of their papers, and their intervals cover the truth as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoflow.errors import GeoflowError
from geoflow.mapping.estimators import compare, estimate, estimate_strata
from geoflow.mapping.planning import allocate, sample_size

# Olofsson et al. 2014, table 8: deforestation, gain, forest, non-forest; pixels of 30 m
MATRIX = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
PIXELS = [200_000, 150_000, 3_200_000, 6_450_000]
CODES = (1, 2, 3, 4)

# Stehman 2014, table 2
NUMBER = dict(zip("ABCD", CODES, strict=True))
STRATA = list("A" * 10 + "B" * 10 + "C" * 10 + "D" * 10)
MAPPED = [NUMBER[c] for c in "AAAAAAABBBABBBBBBBBBBBCCCCCCBBDDDDDDDDDD"]
REFERENCE = [NUMBER[c] for c in "AAAAACBABCABBBBBAABBCCCCCDDBBADDDDDDDCCB"]
SIZES = {"A": 40_000, "B": 30_000, "C": 20_000, "D": 10_000}


def test_olofsson_2014() -> None:
    found = estimate(MATRIX, PIXELS, CODES, pixel_area_m2=900)
    assert found.units == 640
    assert round(float(found.overall.value), 4) == 0.9465
    assert round(float(found.overall.half_width), 4) == 0.0185
    assert found.users.value.round(3).tolist() == [0.880, 0.733, 0.927, 0.963]
    assert found.users.half_width.round(3).tolist() == [0.074, 0.101, 0.040, 0.021]
    assert found.producers.value.round(3).tolist() == [0.749, 0.847, 0.935, 0.962]
    assert found.area_ha.value.round().tolist() == [21_158, 11_686, 285_770, 581_386]
    assert found.area_ha.half_width.round().tolist() == [6_158, 3_756, 15_510, 16_282]
    assert found.mapped_ha.value == pytest.approx([18_000, 13_500, 288_000, 580_500])
    assert found.mapped_ha.se.tolist() == [0, 0, 0, 0]
    assert found.shares.value[0].round(4).tolist() == [0.0176, 0, 0.0013, 0.0011]
    assert found.shares.value.sum() == pytest.approx(1)


def test_olofsson_2014_sample_size() -> None:
    areas, users = [0.02, 0.015, 0.32, 0.645], [0.7, 0.6, 0.9, 0.95]
    assert sample_size(areas, users, 0.01) == 641
    assert sample_size(areas, users, 0.01, population=10_000_000) == 641
    assert sample_size(areas, users, 0.01, population=1_000) < 641


def test_stehman_2014() -> None:
    found = estimate_strata(STRATA, MAPPED, REFERENCE, SIZES, CODES, pixel_area_m2=1e4)
    shares, errors = found.area_ha.value / 1e5, found.area_ha.se / 1e5
    assert (shares[0], shares[2]) == (pytest.approx(0.35), pytest.approx(0.20))
    assert (errors[0].round(3), errors[2].round(3)) == (0.082, 0.064)
    assert float(found.overall.value) == pytest.approx(0.63)
    assert round(float(found.overall.se), 3) == 0.085
    assert (found.users.value[1].round(3), found.users.se[1].round(3)) == (0.574, 0.125)
    # this standard error is ours (regression), not compared with the printed one
    assert (found.producers.value[1].round(3), found.producers.se[1].round(3)) == (0.794, 0.117)
    assert found.shares.value[1, 2] == pytest.approx(0.08)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_both_ways_agree_where_the_strata_are_the_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.integers(1, 30, (3, 3))
    pixels = rng.integers(1_000, 100_000, 3)
    one = estimate(matrix, pixels, (1, 2, 3))
    rows, columns = (a.ravel() for a in np.indices(matrix.shape) + 1)
    mapped, reference = (np.repeat(a, matrix.ravel()) for a in (rows, columns))
    strata = [str(m) for m in mapped]
    two = estimate_strata(strata, mapped, reference, {str(i + 1): int(n) for i, n in enumerate(pixels)}, (1, 2, 3))
    for figure in ("shares", "overall", "users", "producers", "area_ha", "mapped_ha"):
        np.testing.assert_allclose(getattr(one, figure).value, getattr(two, figure).value, err_msg=figure)
        np.testing.assert_allclose(getattr(one, figure).se, getattr(two, figure).se, atol=1e-9, err_msg=figure)


def _producers_variance(matrix: np.ndarray, pixels: np.ndarray, j: int) -> float:
    """Olofsson et al. 2014, eq. 7, as printed."""
    n = matrix.sum(axis=1)
    users = matrix[j, j] / n[j]
    total = (pixels * matrix[:, j] / n).sum()
    producers = pixels[j] * users / total
    others = [i for i in range(len(n)) if i != j]
    p = matrix[:, j] / n
    own = pixels[j] ** 2 * (1 - producers) ** 2 * users * (1 - users) / (n[j] - 1)
    rest = sum(pixels[i] ** 2 * p[i] * (1 - p[i]) / (n[i] - 1) for i in others)
    return float((own + producers**2 * rest) / total**2)


def test_producers_variance_is_equation_7() -> None:
    matrix, pixels = np.array(MATRIX), np.array(PIXELS, float)
    found = estimate(MATRIX, PIXELS, CODES).producers.se
    assert found == pytest.approx([math.sqrt(_producers_variance(matrix, pixels, j)) for j in range(4)])


# Pixels of a country by map (rows) and reference (columns)
POPULATION = np.array([[340_000, 40_000, 20_000], [20_000, 85_000, 15_000], [30_000, 50_000, 900_000]])
N_SAMPLES = 1_000


def _coverage(found: list, truth: dict[str, float]) -> dict[str, float]:
    inside = dict.fromkeys(truth, 0)
    for one in found:
        for name, true in truth.items():
            figure, _, at = name.partition(" ")
            estimated = getattr(one, figure)
            index = int(at) if at else ()
            inside[name] += bool(estimated.low[index] <= true <= estimated.high[index])
    return {name: count / len(found) for name, count in inside.items()}


def _truth() -> dict[str, float]:
    users = POPULATION[1, 1] / POPULATION[1].sum()
    producers = POPULATION[1, 1] / POPULATION[:, 1].sum()
    overall = np.trace(POPULATION) / POPULATION.sum()
    return {"overall": overall, "users 1": users, "producers 1": producers, "area_ha 1": POPULATION[:, 1].sum() / 100}


def test_intervals_cover_the_truth_where_the_strata_are_the_classes() -> None:
    rng = np.random.default_rng(14)
    pixels = POPULATION.sum(axis=1)
    # counts of a simple random sample without replacement of each stratum
    drawn = [
        rng.multivariate_hypergeometric(row, n, N_SAMPLES) for row, n in zip(POPULATION, (150, 150, 300), strict=True)
    ]
    found = [estimate(matrix, pixels, (1, 2, 3)) for matrix in np.stack(drawn, axis=1)]
    coverage = _coverage(found, _truth())
    print(coverage)
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage


def test_intervals_cover_the_truth_where_the_strata_are_another_maps_classes() -> None:
    rng = np.random.default_rng(15)
    mapped, reference = (a.ravel() + 1 for a in np.indices(POPULATION.shape))
    inside = rng.dirichlet(np.ones(3), 9)  # how the pixels of each cell lie in the three strata
    cells = np.stack([(POPULATION.ravel() * inside[:, h]).astype(int) for h in (0, 1)])
    cells = np.vstack([cells, POPULATION.ravel() - cells.sum(axis=0)])
    sizes = {name: int(n) for name, n in zip("abc", cells.sum(axis=1), strict=True)}
    n = (200, 300, 400)
    strata = np.repeat(list("abc"), n)
    drawn = [rng.multivariate_hypergeometric(c, k, N_SAMPLES) for c, k in zip(cells, n, strict=True)]
    found = []
    for counts in zip(*drawn, strict=True):
        units = np.concatenate([np.repeat(np.arange(9), c) for c in counts])
        found.append(estimate_strata(strata, mapped[units], reference[units], sizes, (1, 2, 3)))
    coverage = _coverage(found, _truth())
    print(coverage)
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage
    bias = np.mean([one.area_ha.value for one in found], axis=0) / (POPULATION.sum(axis=0) / 100) - 1
    assert np.abs(bias).max() < 0.01


def test_a_class_that_is_only_in_the_reference() -> None:
    found = estimate([[40, 2, 8], [1, 30, 9], [0, 0, 0]], [9_000, 6_000, 0], (1, 2, 3))
    assert math.isnan(found.users.value[2])
    assert math.isnan(found.users.se[2])
    assert found.producers.value[2] == 0
    assert found.area_ha.value[2] > 0
    assert found.area_ha.se[2] > 0
    assert found.mapped_ha.value[2] == 0
    assert found.to_dict()["classes"]["3"]["users"]["value"] is None


def test_a_class_that_is_only_in_the_map() -> None:
    found = estimate([[40, 2, 0], [1, 30, 0], [5, 5, 0]], [9_000, 6_000, 500], (1, 2, 3))
    assert found.users.value[2] == 0
    assert math.isnan(found.producers.value[2])
    assert found.area_ha.value[2] == 0
    assert found.area_ha.low[2] == 0


def test_a_mapped_class_without_units_is_an_error() -> None:
    with pytest.raises(GeoflowError, match=r"stratum '3'.*\[500\] pixels"):
        estimate([[40, 2, 0], [1, 30, 0], [0, 0, 0]], [9_000, 6_000, 500], (1, 2, 3))
    with pytest.raises(GeoflowError, match="'E'"):
        estimate_strata(STRATA, MAPPED, REFERENCE, {**SIZES, "E": 7}, CODES)


def test_a_stratum_with_one_unit_has_values_but_no_standard_errors() -> None:
    found = estimate([[40, 2, 1], [1, 30, 0], [0, 1, 0]], [9_000, 6_000, 500], (1, 2, 3))
    assert found.single == ("3",)
    assert float(found.overall.value) == pytest.approx((9_000 * 40 / 43 + 6_000 * 30 / 31) / 15_500)
    assert math.isnan(found.overall.se)
    assert np.isnan(found.area_ha.se).all()
    # no pixel of the stratum is mapped as the other classes, so their user's accuracy does not depend on it
    assert np.isfinite(found.users.se[:2]).all()
    assert math.isnan(found.users.se[2])


def test_a_stratum_that_is_sampled_completely_adds_no_variance() -> None:
    found = estimate([[40, 2, 1], [1, 30, 0], [0, 1, 0]], [43, 31, 1], (1, 2, 3))
    assert found.single == ()
    assert found.overall.se == 0
    assert float(found.overall.value) == pytest.approx(70 / 75)


def test_intervals_end_at_what_is_possible() -> None:
    found = estimate([[19, 1], [0, 20]], [1_000, 1_000], (1, 2))
    assert found.users.high[0] == 1
    assert found.users.value[0] + found.users.half_width[0] > 1
    assert found.users.low[1] == found.users.high[1] == 1


@pytest.mark.parametrize(
    ("matrix", "pixels", "message"),
    [
        ([[1, 2]], [1, 2], "square"),
        ([[1, -2], [0, 1]], [10, 20], "0 or more"),
        ([[1.5, 2], [0, 1]], [10, 20], "whole numbers"),
        ([[5, 6], [0, 1]], [10, 20], "more sample units"),
        ([[0, 0], [0, 0]], [10, 20], "nothing to estimate"),
    ],
)
def test_what_is_no_matrix(matrix: list, pixels: list, message: str) -> None:
    with pytest.raises(GeoflowError, match=message):
        estimate(matrix, pixels, (1, 2))


def test_unknown_codes_strata_and_lengths_are_errors() -> None:
    with pytest.raises(GeoflowError, match=r"reference has the codes \[0\].*nodata"):
        estimate_strata(STRATA, MAPPED, [0, *REFERENCE[1:]], SIZES, CODES)
    with pytest.raises(GeoflowError, match=r"map has the codes \[4\]"):
        estimate_strata(STRATA, MAPPED, REFERENCE, SIZES, (1, 2, 3))
    with pytest.raises(GeoflowError, match=r"\['D'\]"):
        estimate_strata(STRATA, MAPPED, REFERENCE, {"A": 9, "B": 9, "C": 9}, CODES)
    with pytest.raises(GeoflowError, match="39"):
        estimate_strata(STRATA, MAPPED[1:], REFERENCE, SIZES, CODES)


def test_frame_and_dict() -> None:
    found = estimate(MATRIX, PIXELS, CODES, 900)
    table = found.frame({1: "loss", 2: "gain", 3: "forest", 4: "other"})
    assert table.loc[2, "name"] == "gain"
    assert table.loc[1, "area_ha_low"] == pytest.approx(21_158 - 6_158, abs=1)
    assert found.to_dict()["classes"]["1"]["area_ha"]["value"] == pytest.approx(21_157.76, abs=0.01)


def test_two_maps_on_one_sample() -> None:
    other = [*REFERENCE[:38], 1, 1]  # right but in the last two units
    found = compare(STRATA, MAPPED, other, REFERENCE, SIZES)
    first = estimate_strata(STRATA, MAPPED, REFERENCE, SIZES, CODES).overall
    assert (found.first.value, found.first.se) == (pytest.approx(first.value), pytest.approx(first.se))
    assert float(found.difference.value) == pytest.approx(0.63 - 0.98)
    # by hand: mean of d is -.5, -.2, -.5, -.1 in the four strata; sums of squares 5, 2, 5, 3
    assert found.only_first == 0
    gain = np.array(MAPPED) == np.array(REFERENCE), np.array(other) == np.array(REFERENCE)
    d = (gain[0].astype(int) - gain[1]).reshape(4, 10)
    se = math.sqrt(((np.array([0.4, 0.3, 0.2, 0.1]) ** 2) * d.var(axis=1, ddof=1) / 10).sum())
    assert float(found.difference.se) == pytest.approx(se)
    assert found.z == pytest.approx(-0.35 / se)
    assert found.p_value < 0.001
    assert found.mcnemar == pytest.approx((found.only_second - 1) ** 2 / found.only_second)


def test_mcnemar_with_continuity_correction() -> None:
    # 25 units only the first map has right, 10 only the second: chi2 = 14^2 / 35 = 5.6, p = 0.018
    reference = np.ones(100, int)
    first, second = np.ones(100, int), np.ones(100, int)
    second[:25], first[25:35] = 2, 2
    found = compare(["all"] * 100, first, second, reference, {"all": 10_000})
    assert (found.only_first, found.only_second) == (25, 10)
    assert found.mcnemar == pytest.approx(5.6)
    assert found.mcnemar_p == pytest.approx(0.01796, abs=1e-5)


def test_a_map_compared_with_itself() -> None:
    found = compare(STRATA, MAPPED, MAPPED, REFERENCE, SIZES)
    assert (found.z, found.p_value, found.mcnemar, found.mcnemar_p) == (0, 1, 0, 1)
    with pytest.raises(GeoflowError, match="1 units are nodata"):
        compare(STRATA, MAPPED, [0, *MAPPED[1:]], REFERENCE, SIZES)


def test_allocations() -> None:
    assert allocate(100, [100, 300, 600], "proportional", minimum=0).tolist() == [10, 30, 60]
    assert allocate(150, [100, 300, 600], "equal", minimum=0).tolist() == [50, 50, 50]
    assert allocate(641, PIXELS, minimum=75).tolist() == [75, 75, 163, 328]
    neyman = allocate(641, PIXELS, "neyman", [0.7, 0.6, 0.9, 0.95], minimum=0)
    weights = np.array(PIXELS) * np.sqrt([0.21, 0.24, 0.09, 0.0475])
    assert np.abs(neyman - 641 * weights / weights.sum()).max() <= 1
    assert allocate(300, [1_000, 2_000, 30_000], minimum=50, forced=[False, True, False]).tolist() == [50, 50, 200]
    assert allocate(130, [7, 0, 5_000], minimum=50).tolist() == [7, 0, 123]


@settings(max_examples=60)
@given(
    pixels=st.lists(st.integers(0, 10_000), min_size=1, max_size=6),
    minimum=st.integers(0, 60),
    method=st.sampled_from(["proportional", "equal", "neyman"]),
    share=st.floats(0, 1),
)
def test_an_allocation_keeps_its_bounds(pixels: list[int], minimum: int, method: str, share: float) -> None:
    sizes = np.array(pixels)
    least = np.minimum(minimum, sizes)
    total = int(least.sum() + share * (sizes.sum() - least.sum()))
    users = np.linspace(0.5, 1, len(pixels))
    found = allocate(total, pixels, method, users, minimum)
    assert found.sum() == total
    assert (found >= least).all()
    assert (found <= sizes).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: allocate(99, [1000, 1000], minimum=50), "need 100"),
        (lambda: allocate(30, [10, 10], minimum=0), "at most 20"),
        (lambda: allocate(30, [100, 100], "best"), "no allocation 'best'"),
        (lambda: allocate(300, [1000, 1000], "neyman"), "expected"),
        (lambda: allocate(300, [1000, 1000], forced=[True]), "forced"),
        (lambda: sample_size([1, 1], [0.5, 1.5], 0.01), "between 0 and 1"),
        (lambda: sample_size([0, 0], [0.5, 0.5], 0.01), "not all 0"),
        (lambda: sample_size([1, 1], [0.5, 0.5], 0), "standard error"),
    ],
)
def test_plans_that_cannot_be_made(call, message: str) -> None:
    with pytest.raises(GeoflowError, match=message):
        call()
