"""The seam check: what it counts, and that a seam is seen and no seam is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoflow.mapping.seams import INTERIOR, Pairs, compare, count_pairs, lines


def test_lines_lie_before_their_pixels() -> None:
    assert lines(0, 9, 4).tolist() == [False, False, False, True, False, False, False, True]
    assert lines(3, 6, 4).tolist() == [True, False]
    assert lines(0, 9, 8, [0, 2, 6]).nonzero()[0].tolist() == [1, 5, 7]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), height=st.integers(2, 12), width=st.integers(2, 12))
def test_counts_are_those_of_a_plain_loop(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (height, width)).astype(np.uint8)
    scenes = rng.integers(0, 2, (height, width))
    rows, cols = rng.random(height - 1) < 0.3, rng.random(width - 1) < 0.3
    found = count_pairs(codes, {"tile": (rows, cols)}, {"scene": scenes})
    wanted = {"tile": [0, 0], "scene": [0, 0], INTERIOR: [0, 0]}
    for y, x in np.ndindex(height, width):
        for other, on_line in (((y + 1, x), rows[y : y + 1]), ((y, x + 1), cols[x : x + 1])):
            if other[0] == height or other[1] == width or not codes[y, x] or not codes[other]:
                continue
            kinds = [k for k, on in (("tile", on_line.all()), ("scene", scenes[y, x] != scenes[other])) if on]
            for kind in kinds or [INTERIOR]:
                wanted[kind][0] += 1
                wanted[kind][1] += int(codes[y, x] != codes[other])
    assert {k: [p.pairs, p.differing] for k, p in found.items()} == wanted


def test_a_seam_is_seen() -> None:
    rng = np.random.default_rng(0)
    codes = np.repeat(np.repeat(rng.integers(1, 6, (64, 64)), 8, 0), 8, 1).astype(np.uint8)
    codes = np.roll(codes, 3, axis=(0, 1))  # fields that know nothing of tiles
    borders = {"tile": (lines(0, 512, 9), lines(0, 512, 9))}
    assert compare(count_pairs(codes, borders, {}))["tile"].ratio == pytest.approx(1, abs=0.05)
    for start in range(0, 512, 18):  # every other row of tiles is of another country
        codes[:, start : start + 9] = codes[::-1, start : start + 9]
    seam = compare(count_pairs(codes, borders, {}))["tile"]
    assert seam.ratio > 1.1
    assert seam.error is not None
    assert seam.ratio - 3 * seam.error > 1
    assert seam.share == pytest.approx(seam.ratio * seam.interior)


def test_nothing_to_compare() -> None:
    assert compare({"tile": Pairs(), INTERIOR: Pairs(10, 1)}) == {}
    assert compare({"tile": Pairs(4, 1), INTERIOR: Pairs(0, 0)}) == {}
