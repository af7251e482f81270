"""Windows of image and labels: which are found and drawn, how they are split, and the store of pairs."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import geoflow as gf
from geoflow.errors import JobError, LabelError, StoreError
from geoflow.jobs.windows import Split, country_of, export_windows
from geoflow.labels.splits import squares
from geoflow.learning.samples import HeldOut
from geoflow.learning.windowing import (
    LEFT_OUT,
    TEST,
    TRAIN,
    VALIDATION,
    WindowOptions,
    Windows,
    blocked_split,
    draw_windows,
    find_windows,
    random_split,
    squares_split,
)

SHARES = (0.6, 0.15, 0.25)


def lattice(rows: int, columns: int, size: int = 10) -> Windows:
    """Windows that cover a country, all of one class."""
    row, column = (a.ravel() * size for a in np.mgrid[:rows, :columns])
    ones = np.full((len(row), 1), size * size)
    return Windows(size, row, column, (311,), ones, np.zeros(len(row), np.int64))


def test_windows_are_counted_by_class_away_from_borders():
    labels = np.zeros((1500, 1230), np.uint16)  # more than one block each way, and odd ends
    labels[:, :700] = 311
    labels[:120, 700:] = 512
    labels[130:140, 250:260] = 0
    far = np.full(labels.shape, 200, np.int16)
    far[:, 690:710] = 10
    found = find_windows(labels, far, WindowOptions(window_px=120, border_m=50, min_labelled=0.9))
    placed = {(int(r), int(c)): i for i, (r, c) in enumerate(zip(found.row, found.column, strict=True))}
    assert found.codes == (311, 512)
    assert set(placed) == {(r, c) for r in range(0, 1440, 120) for c in range(0, 600, 120)} | {
        (0, c) for c in range(600, 1200, 120)
    }
    for (r, c), i in placed.items():
        part = np.s_[r : r + 120, c : c + 120]
        sure = (labels[part] != 0) & (far[part] >= 50)
        assert found.sure[i].tolist() == [(labels[part][sure] == code).sum() for code in found.codes]
        assert found.near[i] == ((labels[part] != 0) & (far[part] < 50)).sum()


def test_a_country_without_labels_has_no_windows():
    with pytest.raises(LabelError, match="no window of 120 px has labels on 90% of its pixels"):
        find_windows(np.zeros((300, 300), np.uint16), np.zeros((300, 300), np.int16), WindowOptions())


def drawn_from(rarity: float) -> Windows:
    found = lattice(20, 20)
    sure = np.zeros((400, 2), np.int64)
    sure[:, 0] = 100
    sure[:20] = [60, 40]  # the rare class lies in one row
    sure[300:] = 0  # all of it near borders
    whole = Windows(10, found.row, found.column, (311, 512), sure, 100 - sure.sum(axis=1))
    return draw_windows(whole, WindowOptions(10, count=100, rarity=rarity, seed=3))


def test_rare_classes_are_drawn_first_and_borders_never():
    common, rare = drawn_from(0.0), drawn_from(1.0)
    for drawn in (common, rare):
        assert len(drawn) == 100
        assert len({(r, c) for r, c in zip(drawn.row.tolist(), drawn.column.tolist(), strict=True)}) == 100
        assert (drawn.row < 150).all()
    assert (rare.sure[:, 1] > 0).sum() > 1.5 * (common.sure[:, 1] > 0).sum()
    assert (drawn_from(1.0).row == rare.row).all()
    with pytest.raises(LabelError, match="500 windows are asked for, but only 400 of 400"):
        draw_windows(lattice(20, 20), WindowOptions(10, count=500))


@settings(max_examples=40)
@given(
    rows=st.integers(4, 30), columns=st.integers(4, 30), windows_a_block=st.integers(1, 2), seed=st.integers(0, 9999)
)
def test_blocks_lie_in_one_part(rows, columns, windows_a_block, seed):
    found = lattice(rows, columns)
    parts = blocked_split(found, windows_a_block * 10, SHARES, seed)
    block = (found.row // (windows_a_block * 10)) * 1000 + found.column // (windows_a_block * 10)
    for one in np.unique(block):
        assert len(np.unique(parts[block == one])) == 1
    largest = np.unique(block, return_counts=True)[1].max()
    for part, share in zip((TRAIN, VALIDATION, TEST), SHARES, strict=True):
        assert abs((parts == part).sum() - share * len(found)) <= largest
    np.testing.assert_array_equal(parts, blocked_split(found, windows_a_block * 10, SHARES, seed))


def test_a_gap_keeps_training_windows_away():
    found = lattice(30, 30)
    parts = blocked_split(found, 50, SHARES, 1, gap_px=15)
    train, other = (
        np.stack([found.row, found.column], axis=1)[np.isin(parts, which)] for which in ([TRAIN], [VALIDATION, TEST])
    )
    apart = np.abs(train[:, None] - other[None]).max(axis=2).min()
    assert apart == 30, "two windows of 10 px lie between: at least 15 px"
    assert (parts == LEFT_OUT).any()
    plain = blocked_split(found, 50, SHARES, 1)
    np.testing.assert_array_equal(parts[parts != LEFT_OUT], plain[parts != LEFT_OUT])


@given(count=st.integers(0, 500), seed=st.integers(0, 99))
def test_a_random_split_has_the_shares(count, seed):
    parts = random_split(count, (0.8, 0.0, 0.2), seed)
    assert (parts == VALIDATION).sum() == 0
    assert abs((parts == TRAIN).sum() - 0.8 * count) <= 0.5


def test_concentric_squares_are_those_of_bigearthnet():
    found = lattice(45, 70)
    parts = squares_split(found, 200, (0.5, 0.25, 0.25))
    inner = (found.column % 200 + 5.0, found.row % 200 + 5.0)
    np.testing.assert_array_equal(parts + 1, squares(*inner, 200), "codes of patches begin with 1")
    whole = (found.row < 400) & (found.column < 600)
    for part, share in zip((TRAIN, VALIDATION, TEST), (0.5, 0.25, 0.25), strict=True):
        assert (parts[whole] == part).mean() == pytest.approx(share, abs=0.06)
    apart = Split("squares", (0.5, 0.25, 0.25), 200, gap_px=10).parts(found)
    assert (apart == LEFT_OUT).any()
    np.testing.assert_array_equal(apart[apart != LEFT_OUT], parts[apart != LEFT_OUT])


def test_splits_that_cannot_be_are_refused():
    with pytest.raises(LabelError, match=r"must sum up to 1, not \[0\.5, 0\.1, 0\.1\]"):
        random_split(10, (0.5, 0.1, 0.1), 0)
    with pytest.raises(LabelError, match="blocks of 25 px are no multiple of windows of 10 px"):
        blocked_split(lattice(4, 4), 25, SHARES, 0)
    with pytest.raises(LabelError, match="lie in 1 blocks of 100 px, too few for 3 parts"):
        blocked_split(lattice(4, 4), 100, SHARES, 0)
    with pytest.raises(LabelError, match="squares in blocks of 10 px need windows smaller than that, not of 10 px"):
        squares_split(lattice(4, 4), 10, SHARES)
    with pytest.raises(LabelError, match="no window lies in the square for validation: in blocks of 80 px"):
        squares_split(lattice(16, 16), 80, (0.7, 0.1, 0.2))
    with pytest.raises(StoreError, match="random, blocked or squares, not 'ring'"):
        Split("ring").parts(lattice(4, 4))
    with pytest.raises(LabelError, match=r"within 0\.\.1, not 50\.0, 2, 0\.5"):
        WindowOptions(min_labelled=2)


# ---- on a finished run


def test_pairs_are_those_of_the_store(finished, tmp_path):
    _, out = finished
    options = WindowOptions(window_px=60, count=40, border_m=20, min_labelled=0.5, seed=5)
    target = tmp_path / "windows.zarr"
    told = export_windows(out, target, options, Split("blocked", (0.6, 0.2, 0.2), 120, seed=5))
    pairs, country = zarr.open_group(target, mode="r"), gf.open(out)
    sources = {
        "image": country["imagery/2018/reflectance"].values,
        "label": country["labels/clc2018/level3"].values,
        "border_m": country["labels/clc2018/border_m"].values,
    }
    rows, columns = pairs["row"][:], pairs["column"][:]
    assert len(rows) == told["windows"] == 40
    for name, whole in sources.items():
        assert pairs[name].dtype == whole.dtype
        for i, (r, c) in enumerate(zip(rows, columns, strict=True)):
            np.testing.assert_array_equal(pairs[name][i], whole[..., r : r + 60, c : c + 60])
    assert pairs["label"].metadata.dimension_names == ("window", "y", "x")
    assert pairs.attrs["bands"] == ["B02", "B03", "B04", "B08"]
    assert gf.Legend.from_dict(pairs.attrs["legend"]) == gf.legend("corine")
    assert sum(told["parts"].values()) == 40
    by_block = {}
    for r, c, part in zip(rows // 120, columns // 120, pairs["part"][:], strict=True):
        assert by_block.setdefault((int(r), int(c)), int(part)) == part
    with pytest.raises(StoreError, match="exists already"):
        export_windows(out, target, options, Split())
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_commands(finished, tmp_path):
    _, out = finished
    target = tmp_path / "w.zarr"
    done = labels("windows", out, target, "--window", "60", "--labelled", "0.5", "--split", "random", "--count", "30")
    assert done.returncode == 0, done.stderr
    assert "30 windows" in done.stdout
    assert sorted(zarr.open_group(target, mode="r")["part"][:].tolist()) == [TRAIN] * 21 + [VALIDATION] * 3 + [TEST] * 6
    wrong = labels("leakage", out, "--window", "64", "--block", "100")
    assert wrong.returncode == 2
    assert "must be a multiple of windows of 64 px" in wrong.stderr


def test_nets_are_judged_within_the_area_on_what_they_did_not_see(finished):
    from geoflow.jobs.leakage import _confused

    _, out = finished
    country, model = country_of(out), gf.load_model(out / "model")
    held = {"random": HeldOut(64, 0.3, 1), "blocked": HeldOut(128, 0.3, 1)}
    found = _confused(country, model, "random", held)
    legend, labels = country.flow.legend, country.labels.values
    random, blocked = (one.mask(labels.shape) for one in held.values())
    assert set(found) == {"random", "both"}
    for kind, where in (("random", random), ("both", random & blocked)):
        for level, matrix in found[kind].items():
            # The run's own map is of the same net, in another engine perhaps, and ends where the area does.
            true, said = legend.to_level(labels, level), gf.open(out)[f"map/2018/level{level}"].values
            assert (random & (true != 0) & (said == 0)).any(), "labels go on beyond the area"
            known = where & (true != 0) & (said != 0)
            assert matrix.sum() == known.sum() > 1000
            assert np.trace(matrix) == pytest.approx((true == said)[known].sum(), abs=0.01 * known.sum())


@pytest.mark.slow
def test_the_command_that_measures_leakage(finished, tmp_path):
    _, out = finished
    few = [f"{key}={value}" for key, value in (("steps", 2), ("context_steps", 3), ("decoder_channels", [8] * 5))]
    options = [word for pair in few for word in ("--option", pair)]
    done = labels("leakage", out, "--window", "64", "--block", "128", "--repeats", "1", "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for part, level, name in itertools.product(
        (found, found["same_ground"]), ("level1", "level2", "level3"), ("overall", "macro_f1")
    ):
        expected = part["random"][level][name] - part["blocked"][level][name]
        assert part["leakage"][level][name] == pytest.approx(expected, abs=2e-4)
        assert 0 < part["random"][level][name] <= 1
    assert found["leakage"]["level1"]["overall_error"] is None


def test_the_table_of_leakage_tells_scores_difference_and_error():
    from geoflow.cli_labels import _leakage_rows

    random, blocked = {"overall": 0.8, "macro_f1": 0.5}, {"overall": 0.7, "macro_f1": 0.55}
    leakage = {"overall": 0.1, "overall_error": 0.02, "macro_f1": -0.05, "macro_f1_error": None}
    part = {kind: {"level1": of} for kind, of in (("random", random), ("blocked", blocked), ("leakage", leakage))}
    assert list(_leakage_rows(part)) == [
        ("level 1, overall", "0.800", "0.700", "+0.100", "0.020"),
        ("level 1, macro f1", "0.500", "0.550", "-0.050", "-"),
    ]


def test_leakage_refuses_what_it_cannot_measure(finished):
    from geoflow.jobs.leakage import leakage_report

    _, out = finished
    with pytest.raises(JobError, match="repeats must be at least 1"):
        leakage_report(out, 64, 128, repeats=0)
    with pytest.raises(JobError, match=r"options: stepz is unknown; accepted are .*architecture"):
        leakage_report(out, 64, 128, options={"stepz": 3})


def labels(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "geoflow", "labels", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
