"""Numbers read as people write them."""

import pytest

from geoflow.counting import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "zone", "0 zones"),
        (1, "zone", "1 zone"),
        (12345, "patch", "12,345 patches"),
        (1, "class", "1 class"),
        (2, "pass", "2 passes"),
    ],
)
def test_one_of_a_thing_is_no_plural(number, noun, text):
    assert counted(number, noun) == text
