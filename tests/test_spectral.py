"""Spectral change: what is usual for a class is no change, what is not usual is one."""

import json

import numpy as np
import pytest

from geoflow.errors import GridError
from geoflow.inputs import NODATA
from geoflow.mapping.spectral import PROBABILITY_NODATA, PeriodChange, difference

FIELD, FOREST = 211, 311


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two epochs of fields, which vary much, and of forest, which varies little; and where forest was felled.

    The felled forest changed less than fields do from year to year: one threshold for all would not find it.
    """
    rng = np.random.default_rng(0)
    classes = np.full((120, 160), FIELD, np.uint16)
    classes[:, 80:] = FOREST
    spread = np.where(classes == FIELD, 600, 40)
    before = 2000 + rng.normal(0, 60, (2, 2, 120, 160))
    after = before + 100 + np.kron(rng.normal(0, 1, (2, 2, 12, 16)), np.ones((10, 10))) * spread
    felled = np.zeros(classes.shape, bool)
    felled[40:60, 100:120] = True
    after[..., felled] += np.array([500, -400, 450, -500]).reshape(2, 2, 1)
    return before.astype(np.int16), after.astype(np.int16), classes, felled


def learn(before: np.ndarray, after: np.ndarray, classes: np.ndarray) -> PeriodChange:
    found, known = difference(before, after)
    return PeriodChange.fit([(found.reshape(2, 2, -1), known.reshape(2, -1), classes.reshape(-1))])


def test_felled_forest_is_found_and_other_harvests_are_not(scenes):
    before, after, classes, felled = scenes
    chance = learn(before, after, classes).probability(*difference(before, after), classes)
    assert chance.dtype == np.uint8
    inner = np.zeros_like(felled)
    inner[42:58, 102:118] = True
    assert (chance[inner] > 90).mean() > 0.95
    assert (chance[~felled] >= 50).mean() < 0.05


def test_it_survives_json(scenes):
    before, after, classes, _ = scenes
    learned = learn(before, after, classes)
    again = PeriodChange.from_dict(json.loads(json.dumps(learned.to_dict())))
    seen = difference(before, after)
    np.testing.assert_array_equal(again.probability(*seen, classes), learned.probability(*seen, classes))


def test_what_was_not_seen_twice_is_not_judged(scenes):
    before, after, classes, _ = scenes
    learned = learn(before, after, classes)
    after, classes = after.copy(), classes.copy()
    after[0, 1, 5, 5] = after[1, 0, 5, 5] = NODATA
    classes[9, 9] = 0
    chance = learned.probability(*difference(before, after), classes)
    assert chance[5, 5] == chance[9, 9] == PROBABILITY_NODATA
    assert (chance == PROBABILITY_NODATA).sum() == 2


def test_a_cloud_over_one_period_leaves_the_others_to_judge_by(scenes):
    before, after, classes, felled = scenes
    after = after.copy()
    after[0, :, 30:80] = NODATA  # over all that was felled
    learned = learn(before, after, classes)
    assert set(learned.learned) == {(0, 1), (1,)}
    chance = learned.probability(*difference(before, after), classes)
    assert (chance != PROBABILITY_NODATA).all()
    inner = np.zeros_like(felled)
    inner[42:58, 102:118] = True
    assert (chance[inner] >= 50).mean() > 0.9
    # Judged by fewer periods than any that was learned with: not judged.
    after[1, :, :5] = NODATA
    after[0, :, :5] = before[0, :, :5]
    assert (learned.probability(*difference(before, after), classes)[:5] == PROBABILITY_NODATA).all()


def test_nodata_does_not_leak_into_its_neighbours():
    before = np.full((1, 1, 7, 7), 1000, np.int16)
    after = before + 200
    after[0, 0, 3, 3] = NODATA
    found, known = difference(before, after)
    assert not known[0, 3, 3]
    assert known.sum() == 48
    np.testing.assert_allclose(found[0, 0][known[0]], 200, rtol=1e-5)


def test_a_window_with_its_halo_equals_the_whole(scenes):
    before, after, _, _ = scenes
    whole, _ = difference(before, after)
    part, _ = difference(before[..., 9:41, 19:61], after[..., 9:41, 19:61])
    np.testing.assert_array_equal(part[..., 1:-1, 1:-1], whole[..., 10:40, 20:60])


def test_a_rare_class_is_judged_by_all(scenes):
    before, after, classes, _ = scenes
    classes = classes.copy()
    classes[0, :5] = 512
    learned = learn(before, after, classes)
    assert 512 not in learned.learned[0, 1].mean
    assert (learned.probability(*difference(before, after), classes)[0, :5] != PROBABILITY_NODATA).all()


def test_too_little_to_learn_from():
    with pytest.raises(GridError, match=r"too few.*post-classification"):
        PeriodChange.fit([])
    with pytest.raises(GridError, match="differ in shape"):
        difference(np.zeros((1, 1, 2, 2), np.int16), np.zeros((1, 1, 2, 3), np.int16))
