"""Change from scenes and class probabilities together."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoflow.errors import GridError
from geoflow.legends import legend
from geoflow.mapping.joint import HALO_PX, JointChange, transition_weights
from geoflow.mapping.spectral import PeriodChange, SpectralChange

CODES = (211, 311, 312, 324, 512)
CORINE = legend("corine")
NONE = transition_weights(CODES, {}, CORINE)


def learned(shares: tuple[float, ...] = (0.3, 0.2, 0.3, 0.1, 0.1)) -> JointChange:
    return JointChange.of(CODES, np.array(shares), PeriodChange({}))


def sure(code: int, shape: tuple[int, int] = (21, 21), share: float = 0.9) -> np.ndarray:
    """Probabilities that name one class, the rest spread evenly."""
    rest = (1 - share) / (len(CODES) - 1)
    p = np.array([share if c == code else rest for c in CODES])
    return np.broadcast_to(np.rint(p * 250).astype(np.uint8)[:, None, None], (len(CODES), *shape)).copy()


def test_both_sources_are_weighed() -> None:
    change = learned()

    def chance(before: int, after: int, scenes: int, share: float = 0.9) -> int:
        seen = np.full((21, 21), scenes, np.uint8)
        return int(change.chance(sure(before, share=share), sure(after, share=share), seen, NONE)[10, 10])

    assert chance(312, 324, 95) > 95
    assert chance(312, 312, 5) < 5
    assert chance(312, 324, 10) < chance(312, 324, 50) < chance(312, 324, 90)
    assert chance(312, 312, 60) < 50 < chance(312, 324, 60)
    # Two maps that disagree but are unsure are weaker evidence than two that are sure.
    assert chance(312, 324, 50, share=0.4) < chance(312, 324, 50, share=0.9)


def test_a_lone_pixel_is_outvoted_and_a_patch_is_not() -> None:
    before, after = sure(312), sure(312)
    scenes = np.full((21, 21), 5, np.uint8)
    after[:, 10, 10], scenes[10, 10] = sure(324)[:, 0, 0], 80
    assert learned().chance(before, after, scenes, NONE).max() < 50
    after[:, 5:15, 5:15], scenes[5:15, 5:15] = sure(324)[:, :10, :10], 80
    assert learned().chance(before, after, scenes, NONE)[7:13, 7:13].min() > 90


def test_nodata_is_never_a_change() -> None:
    before, after, scenes = sure(312), sure(324), np.full((21, 21), 99, np.uint8)
    before[:, 0] = 255
    after[:, 1] = 255
    scenes[2] = 255
    chance = learned().chance(before, after, scenes, NONE)
    assert (chance[:3] == 255).all()
    assert (chance[3:] <= 100).all()
    changed = np.ones((21, 21), bool)
    changed[20] = False
    first, second = learned().pairs(before, after, changed, NONE)
    for rows in (slice(0, 2), slice(20, 21)):
        assert not first[rows].any()
        assert not second[rows].any()
    assert (first[2:20], second[2:20]) == (pytest.approx(312), pytest.approx(324))


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_pairs_are_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = (rng.integers(0, 250, (len(CODES), 2, 3)).astype(np.uint8) for _ in range(2))
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], (len(CODES), len(CODES)))
    np.fill_diagonal(weights, 0)
    changed = rng.random((2, 3)) < 0.7
    first, second = learned().pairs(p, q, changed, weights)
    near = [np.where(changed, a, 0).sum((1, 2)).astype(float) for a in (p, q)]  # all lie within 9 x 9 pixels
    for y, x in np.argwhere(changed):
        value = weights * near[0][:, None] * near[1]
        found = value[CODES.index(int(first[y, x])), CODES.index(int(second[y, x]))]
        assert first[y, x] != second[y, x]
        assert found == pytest.approx(value[~np.eye(len(CODES), dtype=bool)].max())


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_a_window_with_its_halo_equals_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = (rng.integers(0, 250, (len(CODES), 30, 34)).astype(np.uint8) for _ in range(2))
    scenes = rng.choice([1, 20, 60, 99, 255], (30, 34)).astype(np.uint8)
    p[:, :4, :7] = 255
    whole = learned().chance(p, q, scenes, NONE)
    y, x = slice(8, 26), slice(5, 22)
    part = learned().chance(p[:, y, x], q[:, y, x], scenes[y, x], NONE)
    inner = slice(HALO_PX, -HALO_PX)
    np.testing.assert_array_equal(part[inner, inner], whole[y, x][inner, inner])
    pairs = learned().pairs(p, q, (whole >= 50) & (whole != 255), NONE)
    near = learned().pairs(p[:, y, x], q[:, y, x], (part >= 50) & (part != 255), NONE)
    for one, other in zip(near, pairs, strict=True):
        np.testing.assert_array_equal(one[inner, inner], other[y, x][inner, inner])


def test_transitions_can_be_weighed() -> None:
    weights = transition_weights(CODES, {"3-5": 0, "31-324": 4, "312-324": 2}, CORINE)
    at = CODES.index
    assert weights[at(311), at(512)] == weights[at(324), at(512)] == 0
    assert (weights[at(311), at(324)], weights[at(312), at(324)], weights[at(211), at(324)]) == (4, 2, 1)
    assert not np.diag(weights).any()
    scenes = np.full((21, 21), 50, np.uint8)
    chances = [
        learned().chance(sure(312), sure(324), scenes, transition_weights(CODES, given, CORINE))[10, 10]
        for given in ({"312-324": 0}, {}, {"312-324": 10})
    ]
    assert chances == sorted(chances)
    assert chances[0] < 50 < chances[2]
    for wrong, said in (
        ({"312": 1.0}, "write two codes"),
        ({"312-999": 1.0}, "999 is no class"),
        ({"312-324": -1.0}, "weight of 0 or more"),
    ):
        with pytest.raises(GridError, match=said):
            transition_weights(CODES, wrong, CORINE)


def test_it_survives_json() -> None:
    one = SpectralChange({0: np.zeros(2)}, {0: np.eye(2)}, (0.9, 0.1), (0.0, 3.0), (1.0, 1.0))
    change = JointChange.of(CODES, np.array([0.5, 0.2, 0.3, 0, 0]), PeriodChange({(0, 2): one}))
    again = JointChange.from_dict(json.loads(json.dumps(change.to_dict())))
    assert again.codes == CODES
    assert again.shares.min() >= 0.009
    np.testing.assert_array_equal(again.shares, change.shares)
    assert set(again.spectral.learned) == {(0, 2)}
