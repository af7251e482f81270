"""Accuracy of patches of change: places found, whatever the blocks."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from scipy import ndimage

from geoflow.mapping.change import CHANGED, UNCHANGED, UNOBSERVED
from geoflow.mapping.patchaccuracy import Compared, patch_accuracy


def a_geobox(shape: tuple[int, int]) -> GeoBox:
    return GeoBox(shape, Affine(10, 0, 4_000_000, 0, -10, 3_000_000), "EPSG:3035")


def scored(truth: np.ndarray, mapped: np.ndarray, min_px: int, block: int = 10**6) -> dict:
    height, width = truth.shape

    def blocks() -> list[Compared]:
        parts = [
            (slice(y, min(y + block, height)), slice(x, min(x + block, width)))
            for y in range(0, height, block)
            for x in range(0, width, block)
        ]
        return [Compared(truth[part], mapped[part], *part) for part in parts]

    return patch_accuracy(blocks, a_geobox(truth.shape), min_px)


def states(changed: list[str]) -> np.ndarray:
    """``.`` unchanged, ``#`` changed, ``?`` not observed."""
    signs = {".": UNCHANGED, "#": CHANGED, "?": UNOBSERVED}
    return np.array([[signs[c] for c in row] for row in changed], np.uint8)


def test_a_place_is_found_where_half_of_it_is_mapped() -> None:
    truth = states(["####..####", "####..####", "..........", "#........."])
    mapped = states(["..##..#...", "..##......", "..........", ".........#"])
    found = scored(truth, mapped, min_px=1)
    # Of three true patches one is half covered; of three mapped ones, two lie on true change.
    assert (found["true"], found["found"], found["mapped"], found["right"]) == (3, 1, 3, 2)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(4 / 9)


def test_small_patches_do_not_count_but_are_change_beneath_larger_ones() -> None:
    truth = states(["#.#.#.#.#", "........."])
    mapped = states(["#########", "........."])
    found = scored(truth, mapped, min_px=4)
    assert (found["true"], found["mapped"], found["right"]) == (0, 1, 1)
    assert found["recall"] is None
    assert found["f1"] is None


def test_what_either_map_did_not_see_is_left_out() -> None:
    truth = states(["####", "??##"])
    mapped = states(["##??", "##??"])
    found = scored(truth, mapped, min_px=2)
    assert (found["true"], found["found"], found["mapped"], found["right"]) == (1, 1, 1, 1)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    block=st.integers(2, 30),
    min_px=st.integers(1, 12),
)
def test_blocks_do_not_alter_the_figures(seed: int, shape: tuple[int, int], block: int, min_px: int) -> None:
    rng = np.random.default_rng(seed)
    truth, mapped = (rng.choice([0, 1, 1, 2], shape).astype(np.uint8) for _ in range(2))
    assert scored(truth, mapped, min_px, block) == scored(truth, mapped, min_px)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), min_px=st.integers(1, 12))
def test_it_equals_a_plain_count(seed: int, min_px: int) -> None:
    rng = np.random.default_rng(seed)
    truth, mapped = (rng.choice([0, 1, 1, 1, 2], (31, 27)).astype(np.uint8) for _ in range(2))

    def counted(own: np.ndarray, other: np.ndarray) -> tuple[int, int]:
        both = (own != 0) & (other != 0)
        labels, count = ndimage.label((own == CHANGED) & both, np.ones((3, 3)))
        patches = [labels == label for label in range(1, count + 1)]
        large = [patch for patch in patches if patch.sum() >= min_px]
        return len(large), sum((other[patch] == CHANGED).mean() >= 0.5 for patch in large)

    found = scored(truth, mapped, min_px)
    assert (found["true"], found["found"]) == counted(truth, mapped)
    assert (found["mapped"], found["right"]) == counted(mapped, truth)
