"""Series: the chain against all of its paths, transition matrices, and smoothing of maps with a known truth."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geoflow.errors import GridError, LegendError
from geoflow.legends import legend
from geoflow.mapping.hmm import Evidence, first_detection, smooth
from geoflow.mapping.series import TransitionMatrix, decimal_year, series

CORINE = legend("corine")
CODES = (112, 211, 311, 312, 324)


def a_chain(rng: np.random.Generator, classes: int, epochs: int, impossible: float = 0.0) -> dict[str, NDArray[Any]]:
    """Random transitions, of which some are impossible, a prior and likelihoods."""
    transitions = rng.dirichlet(np.full(classes, 0.5), (epochs - 1, classes)) + 1e-3
    transitions[(rng.random(transitions.shape) < impossible) & ~np.eye(classes, dtype=bool)] = 0
    transitions /= transitions.sum(axis=2, keepdims=True)
    shares = Evidence(dict(enumerate(rng.dirichlet(np.ones(classes))))).shares(range(classes))
    return {"transitions": transitions, "prior": shares, "likelihood": Evidence(doubt=0.02).likelihood(shares)}


def some_probabilities(
    rng: np.random.Generator, epochs: int, classes: int, size: tuple[int, int], missing: float = 0.2
) -> NDArray[np.uint8]:
    p = np.rint(rng.dirichlet(np.full(classes, 0.4), (epochs, *size)) * 250).astype(np.uint8).transpose(0, 3, 1, 2)
    return np.where(rng.random((epochs, 1, *size)) < missing, np.uint8(255), p)


def all_paths(q: NDArray[np.uint8], chain: dict[str, NDArray[Any]]) -> dict[tuple[int, ...], float]:
    """The joint probability of every sequence of classes of one pixel, (epoch, class)."""
    epochs, classes = q.shape
    out = {}
    for path in itertools.product(range(classes), repeat=epochs):
        chance = float(chain["prior"][path[0]])
        for at, c in enumerate(path):
            chance *= float(chain["likelihood"][c, q[at, c]])
            if at:
                chance *= float(chain["transitions"][at - 1, path[at - 1], c])
        out[path] = chance
    return out


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), epochs=st.integers(1, 4), impossible=st.floats(0, 0.7))
def test_the_best_path_and_its_marginals_are_those_of_all_paths(
    seed: int, classes: int, epochs: int, impossible: float
) -> None:
    rng = np.random.default_rng(seed)
    chain = a_chain(rng, classes, epochs, impossible)
    q = some_probabilities(rng, epochs, classes, (2, 3))
    best, confidence = smooth(q, **chain, fill=True)
    for y, x in np.ndindex(2, 3):
        paths = all_paths(q[:, :, y, x], chain)
        if (q[:, 0, y, x] == 255).all():
            assert (best[:, y, x] == classes).all()
            assert (confidence[:, y, x] == 255).all()
            continue
        path = tuple(int(c) for c in best[:, y, x])
        assert paths[path] >= max(paths.values()) * (1 - 1e-5)
        whole = sum(paths.values())
        for at, c in enumerate(path):
            marginal = sum(chance for one, chance in paths.items() if one[at] == c) / whole
            assert abs(int(confidence[at, y, x]) - 100 * marginal) <= 0.51


def test_a_long_series_does_not_underflow() -> None:
    """300 epochs of 44 classes, none of them sure: the probability of any path is far below the least float64."""
    rng = np.random.default_rng(0)
    codes = CORINE.codes()
    p = rng.dirichlet(np.full(44, 5.0), (300, 1, 2))
    p[..., 7] += 0.03
    q = np.rint(p * 250).astype(np.uint8).transpose(0, 3, 1, 2)
    shares = Evidence().shares(codes)
    step = TransitionMatrix.from_rate(codes, 1e-5).yearly
    best, confidence = smooth(q, np.stack([step] * 299), shares, Evidence().likelihood(shares))
    assert (best == 7).all()
    assert (confidence >= 99).all()
    assert (confidence <= 100).all()


def test_an_impossible_transition_never_occurs_however_strong_the_evidence() -> None:
    q = np.array([[250, 0, 0], [0, 250, 0], [0, 250, 0]], np.uint8)[:, :, None, None]
    shares = Evidence().shares((1, 2, 3))
    likelihood = Evidence().likelihood(shares)
    for first_to_second, expected in ((0.0, [1, 1, 1]), (0.1, [0, 1, 1])):
        step = TransitionMatrix.from_table((1, 2, 3), {(1, 2): first_to_second}).yearly
        best, _ = smooth(q, np.stack([step, step]), shares, likelihood)
        assert best[:, 0, 0].tolist() == expected


def test_epochs_that_were_not_observed_are_nodata_unless_filled() -> None:
    rng = np.random.default_rng(4)
    chain = a_chain(rng, 4, 5)
    q = some_probabilities(rng, 5, 4, (20, 20), missing=0.5)
    missing = q[:, 0] == 255
    never = missing.all(axis=0)
    assert never.any()
    best, confidence = smooth(q, **chain)
    np.testing.assert_array_equal(best == 4, missing)
    np.testing.assert_array_equal(confidence == 255, missing)
    filled, sure = smooth(q, **chain, fill=True)
    np.testing.assert_array_equal(filled == 4, np.broadcast_to(never, missing.shape))
    np.testing.assert_array_equal(sure == 255, np.broadcast_to(never, missing.shape))
    np.testing.assert_array_equal(filled[~missing], best[~missing])
    np.testing.assert_array_equal(sure[~missing], confidence[~missing])


def test_one_map_alone_is_what_the_net_says() -> None:
    """The share of the classes that the likelihood is divided by comes back as the prior of the first epoch."""
    p = np.array([0.6, 0.3, 0.1])
    evidence = Evidence({1: 0.2, 2: 0.5, 3: 0.3}, doubt=1e-9)
    shares = evidence.shares((1, 2, 3))
    q = np.rint(p * 250).astype(np.uint8)[None, :, None, None]
    best, confidence = smooth(q, np.empty((0, 3, 3)), shares, evidence.likelihood(shares))
    assert (best.item(), confidence.item()) == (0, 60)


def test_a_weight_of_one_over_the_epochs_counts_equal_maps_once() -> None:
    q = np.repeat(np.array([150, 75, 25], np.uint8)[None, :, None, None], 5, axis=0)
    shares = Evidence().shares((1, 2, 3))
    still = np.stack([np.eye(3)] * 4)
    _, alone = smooth(q, still, shares, Evidence(doubt=1e-9, weight=0.2).likelihood(shares))
    assert alone.ravel().tolist() == [60] * 5
    _, summed = smooth(q, still, shares, Evidence(doubt=1e-9).likelihood(shares))
    assert summed.ravel().tolist() == [97] * 5  # 6**5 / (6**5 + 3**5 + 1)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 6),
    years=st.floats(0.05, 12),
    more=st.floats(0.05, 12),
    impossible=st.floats(0, 0.8),
)
def test_a_matrix_over_any_span_is_a_matrix(
    seed: int, classes: int, years: float, more: float, impossible: float
) -> None:
    rng = np.random.default_rng(seed)
    yearly = a_chain(rng, classes, 2, impossible)["transitions"][0]
    matrix = TransitionMatrix(tuple(range(1, classes + 1)), yearly)
    over = matrix.over(years)
    assert (over >= 0).all()
    np.testing.assert_allclose(over.sum(axis=1), 1, atol=1e-12)
    if years < 1:  # what takes no step is possible
        assert (np.diag(over) > 0).all()
    np.testing.assert_allclose(matrix.over(3), yearly @ yearly @ yearly, atol=1e-12)
    rate = TransitionMatrix.from_rate(matrix.codes, 0.1)  # one rate for all has a generator: spans add up exactly
    np.testing.assert_allclose(rate.over(years) @ rate.over(more), rate.over(years + more), atol=1e-9)


def test_what_is_impossible_within_a_year_stays_so_within_a_part_of_it() -> None:
    matrix = TransitionMatrix.from_table((1, 2, 3), {(1, 2): 0.1, (2, 3): 0.1})
    assert matrix.over(0.4)[0, 2] == 0
    assert matrix.over(0.4)[0, 1] == pytest.approx(0.04)
    assert matrix.over(2)[0, 2] == pytest.approx(0.01)
    swap = TransitionMatrix((1, 2), np.array([[0.0, 1.0], [1.0, 0.0]]))  # no root of it is a matrix of probabilities
    np.testing.assert_allclose(swap.over(1.5), [[0.5, 0.5], [0.5, 0.5]])


def test_a_matrix_from_a_rate_and_from_a_table() -> None:
    rate = TransitionMatrix.from_rate(CODES, 0.04)
    np.testing.assert_allclose(np.diag(rate.yearly), 0.96)
    assert rate.yearly[0, 1] == pytest.approx(0.01)
    table = TransitionMatrix.from_table(CODES, {(311, 324): 0.02, (324, 311): 0.1, (112, 211): 0}, other=0.001)
    at = {code: i for i, code in enumerate(CODES)}
    assert table.yearly[at[311], at[324]] == 0.02
    assert table.yearly[at[324], at[311]] == 0.1
    assert table.yearly[at[112], at[211]] == 0
    assert table.yearly[at[112], at[112]] == pytest.approx(0.997)


def test_a_matrix_survives_json_and_a_change_of_order() -> None:
    table = TransitionMatrix.from_table(CODES, {(311, 324): 0.02, (324, 211): 0.1}, other=0.001)
    back = TransitionMatrix.from_dict(json.loads(json.dumps(table.to_dict())))
    assert back.codes == table.codes
    np.testing.assert_array_equal(back.yearly, table.yearly)
    few = table.restricted((324, 311))
    np.testing.assert_allclose(few.yearly, [[0.999, 0.001], [0.02, 0.98]])
    with pytest.raises(LegendError, match="231"):
        table.restricted((311, 231))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: TransitionMatrix.from_rate(CODES, 1.5), GridError, "1.5"),
        (lambda: TransitionMatrix.from_rate((1,), 0.1), LegendError, "two classes"),
        (lambda: TransitionMatrix.from_table(CODES, {(311, 999): 0.1}), LegendError, "999"),
        (lambda: TransitionMatrix.from_table(CODES, {(311, 311): 0.1}), LegendError, "311, 311"),
        (lambda: TransitionMatrix.from_table(CODES, {(311, 324): 0.7, (311, 112): 0.7}), GridError, "from class 311"),
        (lambda: TransitionMatrix.from_table(CODES, {(311, 324): -0.1}), GridError, "from class 311"),
        (lambda: TransitionMatrix((1, 2), np.full((2, 2), np.nan)), GridError, "from class 1"),
        (lambda: TransitionMatrix((1, 1), np.eye(2)), LegendError, "each once"),
        (lambda: TransitionMatrix.from_rate(CODES, 0.1).over(0), GridError, "0 years"),
        (lambda: Evidence(doubt=0), GridError, "doubt"),
        (lambda: Evidence(weight=1.1), GridError, "weight"),
        (lambda: Evidence({311: -1.0, 312: 2.0}), GridError, "prior"),
        (lambda: Evidence({311: 1.0}).shares((311, 312)), LegendError, "312"),
    ],
)
def test_what_is_no_matrix_and_no_evidence_is_refused(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


# What a net makes of each class (row) on average; every class is taken for another one now and then.
CONFUSION = np.array(
    [
        [0.80, 0.08, 0.04, 0.04, 0.04],
        [0.06, 0.80, 0.04, 0.02, 0.08],
        [0.02, 0.04, 0.74, 0.14, 0.06],
        [0.02, 0.02, 0.14, 0.76, 0.06],
        [0.05, 0.09, 0.09, 0.07, 0.70],
    ]
)


def posteriors(rng: np.random.Generator, truth: NDArray[np.intp], prior: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Probabilities (epoch, class, ...) of a calibrated net that errs as `CONFUSION` says, independently each time."""
    seen = (rng.random(truth.shape)[..., None] > CONFUSION.cumsum(axis=1)[truth]).sum(axis=-1)
    p = prior[:, None] * CONFUSION
    return np.rint(np.moveaxis((p / p.sum(axis=0)).T[seen], -1, 1) * 250).astype(np.uint8)


def test_estimation_finds_the_matrix_that_made_the_series() -> None:
    rng = np.random.default_rng(1)
    prior = np.full(5, 0.2)
    true = TransitionMatrix.from_table(CODES, {(311, 324): 0.10, (324, 311): 0.2, (211, 112): 0.05}, other=0.0)
    years = [2000, 2001, 2003, 2004, 2006, 2007, 2008]
    truth = [rng.choice(5, 20_000, p=prior)]
    for gap in np.diff(years):
        chances = true.over(float(gap))[truth[-1]].cumsum(axis=1)
        truth.append((rng.random(20_000)[:, None] > chances[:, :-1]).sum(axis=1))
    q = posteriors(rng, np.stack(truth), prior)
    q[2, :, :3000] = 255
    start = TransitionMatrix.from_rate(CODES, 0.05)
    found = TransitionMatrix.estimate(q, years, start, Evidence(doubt=1e-4), strength=1)
    np.testing.assert_allclose(found.yearly, true.yearly, atol=0.015)
    assert np.abs(start.yearly - true.yearly).max() > 0.15  # so the start was no answer
    barred = TransitionMatrix.from_table(CODES, {(311, 324): 0}, other=0.01)
    kept = TransitionMatrix.estimate(q, years, barred, Evidence(doubt=1e-4), strength=1)
    assert kept.yearly[2, 4] == 0
    trusted = TransitionMatrix.estimate(q, years, start, Evidence(doubt=1e-4), strength=1e9)
    np.testing.assert_allclose(trusted.yearly, start.yearly, atol=1e-4)


def test_an_estimate_needs_what_can_be_learned_from() -> None:
    start = TransitionMatrix.from_rate((1, 2), 0.1)
    q = np.full((2, 2, 10), 125, np.uint8)
    with pytest.raises(GridError, match="half a year"):
        TransitionMatrix.estimate(q, [2018, 2018.2], start)
    with pytest.raises(GridError, match="2 classes"):
        TransitionMatrix.estimate(q[:, :1], [2018, 2019], start)
    q[1] = 255
    with pytest.raises(GridError, match="two epochs"):
        TransitionMatrix.estimate(q, [2018, 2019], start)


def test_detection_dates_what_stays_changed() -> None:
    rows = {
        (3, 3, 3, 3): (0, 0, 0, 0, 0),
        (3, 2, 2, 2): (1, 1, 2010, 2010, 1),
        (3, 3, 2, 1): (2, 3, 2014, 2016, 2),
        (3, 2, 3, 3): (0, 2, 0, 2014, 2),  # it turned back
        (3, 2, 3, 1): (3, 3, 2016, 2016, 3),
        (3, 0, 2, 2): (2, 2, 2014, 2014, 1),  # dated by the first epoch that shows it
        (0, 3, 0, 2): (3, 3, 2016, 2016, 1),
        (0, 3, 0, 0): (0, 0, 0, 0, 0),
        (0, 0, 0, 0): (0, 0, 0, 0, 255),
    }
    codes = np.array(list(rows), np.uint16).T[:, None, :]
    found = first_detection(codes, np.array([2006, 2010, 2014, 2016], np.uint16))
    got = [tuple(int(part[0, at]) for part in found) for at in range(len(rows))]
    assert got == list(rows.values())
    assert [part.dtype for part in found] == [np.uint8, np.uint8, np.uint16, np.uint16, np.uint8]
    with pytest.raises(GridError, match="a year for each"):
        first_detection(codes, np.array([2006, 2010], np.uint16))


def maps_of(q: NDArray[np.uint8], names: list[str], codes: tuple[int, ...] = CODES) -> dict[str, xr.Dataset]:
    height, width = q.shape[2:]
    coords = {
        "class": np.array(codes, np.uint16),
        "y": 100 - 10.0 * np.arange(height),
        "x": 10.0 * np.arange(width),
        "spatial_ref": 0,
    }
    return {
        name: xr.Dataset({"probabilities": (("class", "y", "x"), one)}, coords)
        for name, one in zip(names, q, strict=True)
    }


SIX_YEARS: dict[str, float | dt.date] = {"a": 2016.5, "b": 2017.5, "c": 2018.5, "d": 2019.5, "e": 2020.5, "f": 2022.5}


def turns(codes: NDArray[Any], true: NDArray[Any]) -> int:
    """How often the class of a pixel changes from one epoch to the next while the ground does not."""
    return int(((np.diff(codes, axis=0) != 0) & (np.diff(true, axis=0) == 0)).sum())


def test_smoothing_beats_the_single_maps_and_knows_how_sure_it_is() -> None:
    """A truth that is a chain, and six maps that are wrong in a quarter of their pixels."""
    rng = np.random.default_rng(7)
    matrix = TransitionMatrix.from_table(CODES, {(311, 324): 0.04, (324, 311): 0.08}, other=0.002)
    truth = [rng.choice(5, (100, 100))]
    for gap in np.diff(list(SIX_YEARS.values())):
        chances = matrix.over(gap)[truth[-1]].cumsum(axis=-1)
        truth.append((rng.random((100, 100, 1)) > chances[..., :-1]).sum(axis=-1))
    true = np.array(CODES)[np.stack(truth)]
    q = posteriors(rng, np.stack(truth), np.full(5, 0.2))
    single = np.array(CODES)[q.argmax(axis=1)]
    found = series(maps_of(q, list(SIX_YEARS)), SIX_YEARS, CORINE, matrix, Evidence(doubt=1e-4))
    codes = found["level3"].values
    before, after = float((single == true).mean()), float((codes == true).mean())
    assert before < 0.78
    assert after > 0.91
    assert turns(codes, true) * 20 < turns(single, true)
    assert abs(found["confidence"].values.mean() / 100 - after) < 0.01
    for low, high in ((40, 70), (70, 90), (90, 101)):
        within = (found["confidence"].values >= low) & (found["confidence"].values < high)
        assert abs(found["confidence"].values[within].mean() / 100 - (codes == true)[within].mean()) < 0.03


def test_a_clear_cut_is_dated_by_the_year_that_first_shows_it() -> None:
    """Felled between the third and the fourth of six maps, with confident blunders in a twentieth of their pixels and
    a cloud over a part of the fourth."""
    rng = np.random.default_rng(8)
    truth = np.full((6, 80, 80), CODES.index(311))
    truth[3:, 20:60, 30:70] = CODES.index(324)
    cut = truth[-1] != truth[0]
    blurred = rng.random(truth.shape) < 0.05
    p = np.full((6, 5, 80, 80), 0.03)
    np.put_along_axis(p, np.where(blurred, rng.integers(0, 5, truth.shape), truth)[:, None], 0.88, axis=1)
    q = np.rint(p * 250).astype(np.uint8)
    q[3, :, 20:30] = 255
    matrix = TransitionMatrix.from_table(CODES, {(311, 324): 0.02}, other=0.001)
    found = series(maps_of(q, list(SIX_YEARS)), SIX_YEARS, CORINE, matrix)
    year, hidden = found["changed_year"].values, cut & (q[3, 0] == 255)
    assert (year[cut & ~hidden] == 2019).mean() > 0.88  # a blunder in 2018 or 2019 hides it
    assert (year[hidden] == 2020).mean() > 0.85
    assert (year[~cut] == 0).mean() > 0.99
    single = np.where(q[:, 0] != 255, np.array(CODES)[q.argmax(axis=1)], 0)
    noisy = first_detection(single, np.arange(2016, 2022, dtype=np.uint16))
    assert (noisy.changes[~cut] == 0).mean() < 0.8
    assert (found["changes"].values[~cut] == 0).mean() > 0.99


def test_levels_nest_and_nodata_stays() -> None:
    rng = np.random.default_rng(3)
    q = some_probabilities(rng, 3, 5, (15, 20), missing=0.4)
    found = series(maps_of(q, ["2012", "2018", "2024"]), {"2012": 2012, "2018": 2018, "2024": 2024}, CORINE)
    assert found["level3"].dims == ("epoch", "y", "x")
    assert [found[f"level{n}"].dtype for n in (1, 2, 3)] == [np.uint8, np.uint8, np.uint16]
    np.testing.assert_array_equal(found["level2"], found["level3"] // 10)
    np.testing.assert_array_equal(found["level1"], found["level3"] // 100)
    np.testing.assert_array_equal(found["level3"] == 0, q[:, 0] == 255)
    np.testing.assert_array_equal(found["confidence"] == 255, q[:, 0] == 255)
    np.testing.assert_array_equal(found["changes"] == 255, (q[:, 0] == 255).all(axis=0))
    assert found["changed_year"].dtype == found["last_changed_year"].dtype == np.uint16
    assert found["epoch"].values.tolist() == ["2012", "2018", "2024"]
    assert found["date"].values.tolist() == [2012, 2018, 2024]
    assert {"y", "x", "spatial_ref"} <= set(found.coords)
    assert "class" not in found.coords


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), y=st.integers(9, 40), x=st.integers(9, 45), fill=st.booleans())
def test_chunks_do_not_alter_the_result(seed: int, y: int, x: int, fill: bool) -> None:
    rng = np.random.default_rng(seed)
    maps = maps_of(some_probabilities(rng, 3, 5, (33, 41)), ["a", "b", "c"])
    dates: dict[str, float | dt.date] = {"a": dt.date(2017, 7, 1), "b": 2019.25, "c": dt.date(2024, 7, 1)}
    whole = series(maps, dates, CORINE, 0.1, fill=fill)
    chunked = {name: one.chunk({"y": y, "x": x + at, "class": 2 + at}) for at, (name, one) in enumerate(maps.items())}
    lazy = series(chunked, dates, CORINE, 0.1, fill=fill)
    assert lazy["level1"].chunks is not None
    assert lazy["changed_year"].chunks is not None
    assert lazy["level3"].chunks[1][0] == min(y, 33)
    xr.testing.assert_identical(lazy.compute(scheduler="sync"), whole)


def test_classes_in_another_order_and_a_matrix_of_more_classes_are_the_same_series() -> None:
    rng = np.random.default_rng(5)
    q = some_probabilities(rng, 2, 5, (9, 9))
    dates: dict[str, float | dt.date] = {"a": 2018, "b": 2024}
    maps = maps_of(q, ["a", "b"])
    matrix = TransitionMatrix.from_table(CORINE.codes(), {(311, 324): 0.03}, other=0.001)
    expected = series(maps, dates, CORINE, matrix)
    turned = {"a": maps["a"], "b": maps["b"].isel({"class": [4, 2, 0, 1, 3]})}
    turned["b"] = turned["b"].assign_coords({"class": turned["b"]["class"].values.astype(str)})  # as stores hold them
    xr.testing.assert_identical(series(turned, dates, CORINE, matrix), expected)


def test_dates_are_days_or_decimal_years() -> None:
    assert decimal_year(2018.5) == 2018.5
    assert decimal_year(dt.date(2018, 1, 1)) == 2018
    assert decimal_year(dt.date(2018, 7, 2)) == pytest.approx(2018 + 182 / 365)
    assert decimal_year(dt.datetime(2020, 12, 31, 12)) == pytest.approx(2020 + 365 / 366)
    with pytest.raises(GridError, match="20180701"):
        decimal_year(20180701)


def test_what_is_no_series_is_refused() -> None:
    rng = np.random.default_rng(6)
    q = some_probabilities(rng, 2, 5, (8, 9))
    maps = maps_of(q, ["a", "b"])
    dates: dict[str, float | dt.date] = {"a": 2018, "b": 2024}

    def refused(says: str, error: type[Exception] = GridError, **changes: Any) -> None:
        given = {"maps": maps, "dates": dates, "legend": CORINE, **changes}
        with pytest.raises(error, match=says):
            series(**given)

    refused("two epochs", maps={"a": maps["a"]})
    refused(r"\['b'\] have no date", dates={"a": 2018})
    refused("a .2018.00. comes before b .2018.00.", dates={"a": 2018, "b": dt.date(2018, 1, 1)})
    refused("map b has no probabilities", maps={"a": maps["a"], "b": maps["b"].drop_vars("probabilities")})
    refused("float64", maps={"a": maps["a"], "b": maps["b"].astype(float)})
    refused("a and b differ in the classes 324", maps={"a": maps["a"], "b": maps["b"].isel({"class": slice(0, 4)})})
    refused(
        "a and b lie on different pixels", maps={"a": maps["a"], "b": maps["b"].assign_coords(x=np.arange(9) + 0.5)}
    )
    refused("a and b lie on different pixels", maps={"a": maps["a"], "b": maps["b"].isel(y=slice(1, 8))})
    refused("31 at level 3", LegendError, maps=maps_of(q, ["a", "b"], (112, 211, 311, 312, 31)))
    refused("lacks the classes 324", LegendError, transition=TransitionMatrix.from_rate(CODES[:4], 0.1))
    refused("2.0", transition=2.0)
