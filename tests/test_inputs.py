"""The one way into a net."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geoflow.errors import ModelError
from geoflow.inputs import NODATA, InputSpec, channel_statistics


def spec(**changes):
    values = {"bands": ("B04", "B03"), "periods": ("spring",), "mean": (100.0, 200.0), "std": (10.0, 20.0)}
    return InputSpec(**{**values, **changes})


def test_encode_standardises_each_channel_and_marks_what_was_observed():
    cube = np.array([[[[110, NODATA]], [[160, NODATA]]]], np.int16)
    x, observed = spec().encode(cube)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[:, 0, 0], [1.0, -2.0])
    np.testing.assert_array_equal(x[:, 0, 1], 0.0)
    np.testing.assert_array_equal(observed, [[True, False]])


def test_one_missing_channel_leaves_the_pixel_observed():
    cube = np.array([[[[NODATA]], [[200]]]], np.int16)
    x, observed = spec().encode(cube)
    assert observed.all()
    np.testing.assert_array_equal(x[:, 0, 0], [0, 0])


def test_a_cube_of_other_bands_is_refused():
    with pytest.raises(ModelError, match=r"2 bands \('B04', 'B03'\)"):
        spec().encode(np.zeros((1, 3, 4, 4), np.int16))


@pytest.mark.parametrize(("changes", "says"), [({"mean": (1.0,)}, "2 channels"), ({"std": (1.0, 0.0)}, "positive")])
def test_a_spec_that_contradicts_itself_is_refused(changes, says):
    with pytest.raises(ModelError, match=says):
        spec(**changes)


def test_round_trip_and_another_unit():
    assert InputSpec.from_dict(spec().to_dict()) == spec()
    with pytest.raises(ModelError, match="wants unit 'DN'"):
        InputSpec.from_dict({**spec().to_dict(), "unit": "DN"})
    incomplete = spec().to_dict()
    del incomplete["std"]
    with pytest.raises(ModelError, match="std"):
        InputSpec.from_dict(incomplete)


@given(hnp.arrays(np.int16, (3, 1, 2, 4, 5), elements=st.one_of(st.just(NODATA), st.integers(-500, 12000))))
def test_statistics_are_those_of_all_observed_values(cubes):
    mean, std = channel_statistics(list(cubes))
    for channel in range(2):
        values = cubes[:, 0, channel].ravel()
        values = values[values != NODATA].astype(float)
        if values.size == 0:
            assert (mean[channel], std[channel]) == (0.0, 1.0)
            continue
        assert mean[channel] == pytest.approx(values.mean(), abs=1e-6)
        if values.std() > 1e-3:
            assert std[channel] == pytest.approx(values.std(), rel=1e-6)
