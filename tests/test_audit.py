"""Audits: no model judges what it learned, wrong labels come first, and what is trained is not trained again."""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from typer.testing import CliRunner

from geoflow.cli import app
from geoflow.errors import GeoflowError, JobError, LabelError
from geoflow.jobs.audit import AuditOptions, audit_tasks, judge, read_truth, subject_of
from geoflow.jobs.auditpage import picture
from geoflow.jobs.auditrun import audit_source
from geoflow.jobs.console import QuietConsole
from geoflow.jobs.manymodels import Lesson, answers_of, run_models
from geoflow.jobs.patchingest import ingest_patches
from geoflow.jobs.pixelaudit import GROUP, PixelOptions, audit_pixels
from geoflow.labels.patchlabels import scheme_codes
from geoflow.labels.patchplan import PatchOptions
from geoflow.learning import audit as kernels
from geoflow.store.zarr import open_for_writing

BANDS = ("B02", "B03", "B04", "B08")
TINY = {"encoder": "tu-mobilenetv3_small_050", "head_epochs": 0, "epochs": 1, "batch": 8}
FOREST, WATER = (312, "Coniferous forest"), (512, "Water bodies")
ROWS, COLUMNS = 4, 6
OPTIONS = AuditOptions(folds=3, cell_m=2400.0)


def name(row: int, column: int) -> str:
    return f"S2A_MSIL2A_20180613T101031_{column}_{row}"


SWAPPED = {name(1, 1): FOREST, name(2, 4): WATER}
"""Patches whose label is the other class than this true one: one amid forest, one amid water."""


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> Path:
    """A store of 24 patches, forest in the west and a lake in the east, two of them labelled as the other."""
    root = tmp_path_factory.mktemp("patches")
    rng = np.random.default_rng(0)
    for row in range(ROWS):
        for column in range(COLUMNS):
            _write(root / "BigEarthNet", row, column, rng)
    store = root / "patches.zarr"
    ingest_patches(root / "BigEarthNet", store, PatchOptions(bands=BANDS, chunk=8), cluster="threads")
    return store


def _write(root: Path, row: int, column: int, rng: np.random.Generator) -> None:
    patch, true = name(row, column), FOREST if column < COLUMNS // 2 else WATER
    given = true if patch not in SWAPPED else WATER if true is FOREST else FOREST
    folder = root / patch
    folder.mkdir(parents=True)
    for band, (green, blue) in zip(BANDS, ((300, 700), (500, 600), (300, 400), (3000, 200)), strict=True):
        values = rng.normal(green if true is FOREST else blue, 40, (120, 120)).clip(1).astype(np.uint16)
        place = {"crs": "EPSG:32633", "transform": from_origin(600_000 + 1200 * column, 5_001_600 - 1200 * row, 10, 10)}
        path = folder / f"{patch}_{band}.tif"
        with rasterio.open(path, "w", "GTiff", 120, 120, 1, dtype="uint16", **place) as file:
            file.write(values, 1)
    told = {"labels": [given[1]], "acquisition_date": "2018-06-13 10:10:31"}
    (folder / f"{patch}_labels_metadata.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "wrong.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patch", "given", "true"])
        writer.writerows([patch, "", true[0]] for patch, true in SWAPPED.items())
    return path


@pytest.fixture(scope="module")
def audited(patches, truth, tmp_path_factory) -> tuple[Path, dict]:
    """A whole audit: models of all folds, and those on cleaned labels."""
    folder = tmp_path_factory.mktemp("audit") / "out"
    found = audit_source(
        patches, folder, (), OPTIONS, TINY, 5, read_truth(truth), retrain=(0,), fix="correct", cluster="threads"
    )
    assert list(found) == [folder]
    return folder, found[folder]


# --- kernels --------------------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(0, 5), st.integers(30, 60))
def test_folds_by_place_never_part_a_square(folds, seed, count):
    rng = np.random.default_rng(seed)
    zone, left, top = rng.choice([32633, 32634], count), *(rng.integers(0, 20, (2, count)) * 1200.0)
    found = kernels.place_folds(zone, left, top, folds, seed, 3600.0)
    assert set(found) == set(range(folds))
    square = list(zip(zone, left // 3600, top // 3600, strict=True))
    assert len(set(zip(square, found, strict=True))) == len(set(square))
    np.testing.assert_array_equal(found, kernels.place_folds(zone, left, top, folds, seed, 3600.0))


@given(st.integers(2, 9), st.integers(0, 5), st.integers(9, 60))
def test_random_folds_are_of_one_size(folds, seed, count):
    sizes = np.bincount(kernels.random_folds(count, folds, seed), minlength=folds)
    assert sizes.sum() == count
    assert np.ptp(sizes) <= 1


def test_folds_that_cannot_be_are_refused():
    place = np.zeros(9), np.arange(9) * 1200.0, np.zeros(9)
    with pytest.raises(LabelError, match="2 squares of 6000 m, too few for 3 folds"):
        kernels.place_folds(*place, 3, 0, 6000.0)
    with pytest.raises(LabelError, match=r"at most the number of patches \(9\), not 10"):
        kernels.random_folds(9, 10, 0)


def test_rings_hold_neighbours_of_the_same_zone_and_never_the_patch_itself():
    row, column = np.divmod(np.arange(25), 5)
    zone = np.where(np.arange(25) == 24, 32634, 32633)
    beside, corner, further = kernels.rings_around(zone, 1200.0 * column, 1200.0 * row, 1200.0)
    middle = 12
    assert sorted(beside[[middle]].indices) == [7, 11, 13, 17]
    assert sorted(corner[[middle]].indices) == [6, 8, 16, 18]
    assert set(further[[middle]].indices) == {1, 2, 3, 5, 9, 10, 14, 15, 19, 21, 22, 23}
    for ring in (beside, corner, further):
        assert (ring != ring.T).nnz == 0
        assert not ring.diagonal().any()
        assert ring[[24]].nnz == 0


def test_the_same_place_at_another_date_counts_as_beside():
    beside, _, _ = kernels.rings_around(np.zeros(2), np.zeros(2), np.zeros(2), 1200.0)
    assert beside.toarray().tolist() == [[0, 1], [1, 0]]


@given(st.integers(0, 20))
def test_logistic_regression_is_that_of_scikit_learn(seed):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 3)) * (1, 5, 0.2)
    y = rng.random(200) < 1 / (1 + np.exp(-x @ (1, -0.5, 3) - 0.3))
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x, y)
    ours = kernels.fit_logistic(x, y, ridge=1.0)
    np.testing.assert_allclose(ours, [*theirs.coef_[0], theirs.intercept_[0]], atol=1e-3)


@given(st.integers(0, 20))
def test_a_patch_is_not_judged_by_its_own_label(seed):
    """Of one without neighbours nothing at all reaches its judgement."""
    rng = np.random.default_rng(seed)
    count, classes = 40, 3
    labels, image = rng.random((count, classes)) < 0.4, rng.random((count, classes))
    column = np.arange(count) * 1200.0
    column[-1] += 1e6
    rings = kernels.rings_around(np.zeros(count), column, np.zeros(count), 1200.0)
    fold = kernels.random_folds(count, 4, seed)
    before = kernels.with_surroundings(image, labels, rings, fold)
    flipped = labels.copy()
    flipped[-1] = ~flipped[-1]
    np.testing.assert_array_equal(before[-1], kernels.with_surroundings(image, flipped, rings, fold)[-1])
    assert ((before > 0) & (before < 1)).all()


def test_what_lies_around_decides_where_the_image_says_nothing():
    row, column = np.divmod(np.arange(144), 12)
    labels = np.stack([column < 6, column >= 6], axis=1)
    wrong = np.flatnonzero((row == 6) & (column == 2))
    labels[wrong] = ~labels[wrong]
    rings = kernels.rings_around(np.zeros(144), 1200.0 * column, 1200.0 * row, 1200.0)
    p = kernels.with_surroundings(np.full((144, 2), 0.5), labels, rings, kernels.random_folds(144, 4, 0))
    score = kernels.suspicion(kernels.surprise(p, labels), labels)
    assert kernels.ranks(score)[wrong] == 1
    found = kernels.suggest(p, labels, 0.8)
    np.testing.assert_array_equal(found.applied(labels)[wrong], ~labels[wrong])


def test_the_loss_is_binary_cross_entropy():
    import torch

    rng = np.random.default_rng(0)
    p, labels = rng.random((50, 4)), rng.random((50, 4)) < 0.5
    theirs = torch.nn.functional.binary_cross_entropy(
        torch.from_numpy(p), torch.from_numpy(labels.astype(float)), reduction="none"
    )
    np.testing.assert_allclose(kernels.surprise(p, labels), theirs.numpy())
    assert np.isfinite(kernels.surprise(np.round(p), labels)).all()


def test_suggestions_only_contradict_what_is_given():
    p = np.array([[0.02, 0.97, 0.6], [0.95, 0.5, 0.2]])
    labels = np.array([[True, False, False], [True, True, False]])
    found = kernels.suggest(p, labels, 0.9)
    assert found.remove.tolist() == [[True, False, False], [False, False, False]]
    assert found.add.tolist() == [[False, True, False], [False, False, False]]
    assert found.any.tolist() == [True, False]
    with pytest.raises(LabelError, match=r"above 0.5 and below 1, not 0.5"):
        kernels.suggest(p, labels, 0.5)


def test_the_share_that_was_found():
    score, wrong = np.arange(20.0), np.zeros(20, bool)
    wrong[[19, 18, 17, 3]] = True
    assert kernels.found_share(score, wrong) == 0.5
    assert kernels.ranks(score)[19] == 1
    assert np.isnan(kernels.found_share(score, ~wrong & wrong))


@given(st.integers(2, 5), st.integers(0, 3), st.integers(40, 90), st.integers(40, 90))
def test_folds_of_blocks_cover_the_country_once(folds, seed, height, width):
    parts = [kernels.FoldBlocks(16, seed=seed, folds=folds, fold=fold) for fold in range(folds)]
    masks = np.stack([part.mask((height, width)) for part in parts])
    assert (masks.sum(axis=0) == 1).all()
    y, x = slice(10, 33), slice(5, width)
    np.testing.assert_array_equal(parts[0].mask((height, width), y, x), masks[0][y, x])
    np.testing.assert_array_equal(masks[1][:16, :16], masks[1][0, 0])


def test_too_few_blocks_for_the_folds_are_refused():
    with pytest.raises(LabelError, match="4 blocks of 16 px are too few for 5 folds"):
        kernels.FoldBlocks(16, folds=5, fold=4).mask((32, 32))
    with pytest.raises(LabelError, match="fold 3 of 3"):
        kernels.FoldBlocks(16, folds=3, fold=3)


def test_labels_that_a_map_contradicts_are_doubted():
    codes, given = (111, 211, 312), np.array([[111, 211, 312, 0, 523]], np.uint16)
    parts = np.array([[250, 10, 100, 250, 250], [0, 0, 110, 0, 0], [0, 240, 40, 0, 0]], np.uint8)[:, None]
    found = kernels.doubts(parts, codes, given, 0.8)
    assert found["doubt"].tolist() == [[1, 2, 1, 0, 0]]
    assert found["given"].tolist() == [[0, 211, 0, 0, 0]]
    assert found["suggested"].tolist() == [[0, 312, 0, 0, 0]]
    assert found["confidence"].tolist() == [[255, 96, 255, 255, 255]]
    # Nothing of 250 parts is at most half of one.
    assert found["loss"].tolist() == [[0, 6215, round(-1000 * np.log(40 / 250)), 65535, 65535]]
    parts[:, 0, 1] = 255
    assert kernels.doubts(parts, codes, given, 0.8)["doubt"].tolist() == [[1, 0, 1, 0, 0]]


# --- models of folds ------------------------------------------------------------------------------------------------


def test_no_model_is_asked_about_what_it_learned(patches, tmp_path):
    subject = subject_of(patches, None, {**TINY, "keep": "best", "patience": 2})
    tasks = audit_tasks(subject, tmp_path, OPTIONS)
    assert all(task.work.options.keep == "last" for task in tasks), "its patches would choose the weights"
    lessons = [Lesson.load(task.work.lesson) for task in tasks]
    assert len(lessons) == 3
    for lesson in lessons:
        assert not set(lesson.train) & set(lesson.asked)
    assert sorted(np.concatenate([lesson.asked for lesson in lessons])) == list(range(ROWS * COLUMNS))


def test_a_lesson_survives_its_file(tmp_path):
    rng = np.random.default_rng(0)
    lesson = Lesson(np.arange(0, 9), np.arange(9, 12), rng.random((12, 19)) < 0.3)
    lesson.save(tmp_path / "lesson.npz")
    again = Lesson.load(tmp_path / "lesson.npz")
    np.testing.assert_array_equal(again.labels, lesson.labels)
    assert again.id == lesson.id
    other = lesson.labels.copy()
    other[10, 3] = ~other[10, 3]
    assert Lesson(lesson.train, lesson.asked, other).id != lesson.id


class _Interrupted(QuietConsole):
    """Ctrl-C when the first model is done."""

    @contextlib.contextmanager
    def stage(self, title, tasks, skipped):
        with super().stage(title, tasks, skipped) as progress:
            progress.advance = self._stop  # type: ignore[method-assign]
            yield progress

    def _stop(self, task) -> None:
        raise KeyboardInterrupt


def test_an_audit_that_was_interrupted_goes_on(patches, tmp_path):
    subject = subject_of(patches, None, TINY)
    options = AuditOptions(folds=2, cell_m=2400.0)
    with pytest.raises(KeyboardInterrupt):
        run_models(audit_tasks(subject, tmp_path, options), tmp_path, "audit", "threads", _Interrupted())
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "receipts").rglob("*.json")}
    assert kept
    done = run_models(audit_tasks(subject, tmp_path, options), tmp_path, "audit", "threads")
    assert done.skipped >= len(kept)
    assert done.tasks == 2
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert judge(subject, tmp_path, options).probability.shape == (24, 2)


# --- a whole audit --------------------------------------------------------------------------------------------------


def test_wrong_patches_come_first_and_are_corrected(audited):
    folder, summary = audited
    assert summary["truth"]["wrong"] == 2
    assert summary["truth"]["in_worst_tenth"] == 1.0
    assert summary["truth"]["ranks"] == [1, 2]
    table = gpd.read_parquet(folder / "audit.parquet")
    assert set(table["patch"][:2]) == set(SWAPPED)
    assert table["rank"].tolist() == list(range(1, 25))
    assert json.loads((folder / "audit.json").read_text()) == json.loads(json.dumps(summary))


def test_the_table_lies_where_the_patches_do(audited, patches):
    table = gpd.read_parquet(audited[0] / "audit.parquet")
    assert table.crs == "EPSG:4326"
    one = table[table["patch"] == name(2, 4)].to_crs("EPSG:32633")
    np.testing.assert_allclose(one.total_bounds, (604_800, 4_998_000, 606_000, 4_999_200), atol=0.01)
    assert one["given"].item() == "312"


def test_the_page_holds_all_it_shows(audited):
    page = (audited[0] / "index.html").read_text()
    assert page.count("<article") == 5
    assert page.count("data:image/jpeg;base64,") == 5
    assert "http" not in page
    assert "<script" not in page
    assert all(patch in page for patch in SWAPPED)


def test_cleaned_labels_are_compared_on_the_same_patches(audited):
    again = audited[1]["retrain"]
    assert again["learned"]["given"] == again["learned"]["cleaned-correct"]
    assert set(again["as_given"]) == set(again["true"]) == {"f1_micro", "f1_macro", "ap_macro", "exact"}
    row = again["true"]["f1_micro"]
    assert row["difference"] == pytest.approx(row["cleaned"] - row["given"])


def test_a_second_look_trains_nothing(audited, patches):
    folder, _ = audited
    before = {path: path.stat().st_mtime_ns for path in (folder / "answers").rglob("*.npy")}
    assert len(before) == 3 + 2
    audit_source(patches, folder, (), OPTIONS, TINY, worst=3, cluster="no such cluster")
    assert {path: path.stat().st_mtime_ns for path in (folder / "answers").rglob("*.npy")} == before
    assert answers_of(folder, "level3/fold0-seed0") in before


def test_the_answers_are_probabilities_of_the_classes_that_occur(audited):
    answer = np.load(answers_of(audited[0], "level3/fold0-seed0"))
    occur = [scheme_codes("level3").index(code) for code, _ in (FOREST, WATER)]
    assert np.isfinite(answer[:, occur]).all()
    assert ((answer[:, occur] >= 0) & (answer[:, occur] <= 1)).all()
    assert np.isnan(np.delete(answer, occur, axis=1)).all()


def test_a_flat_picture_is_not_stretched_into_noise():
    rng = np.random.default_rng(0)
    flat = rng.normal(300, 5, (3, 120, 120)).astype(np.int16)
    with warnings.catch_warnings(), rasterio.MemoryFile(base64.b64decode(picture(flat).partition(",")[2])) as memory:
        warnings.simplefilter("ignore")  # a picture lies nowhere
        values = memory.open().read()
    assert np.ptp(values.astype(int)) < 40


# --- what users get wrong -------------------------------------------------------------------------------------------


def test_mistakes_are_named(patches, tmp_path):
    with pytest.raises(GeoflowError, match="not the output of a run"):
        subject_of(tmp_path)
    with pytest.raises(LabelError, match="no labels 'level9'; there are level1"):
        subject_of(patches, "level9")
    with pytest.raises(JobError, match=r"option.ecnoder: unknown key"):
        subject_of(patches, None, {"ecnoder": "resnet18"})
    with pytest.raises(JobError, match="by place or random, not 'moon'"):
        AuditOptions(by="moon")
    bad = tmp_path / "truth.csv"
    bad.write_text("patch,label\na,312\n")
    with pytest.raises(LabelError, match="no column 'true'"):
        read_truth(bad)
    bad.write_text("patch,true\na,999\n")
    with pytest.raises(LabelError, match="999 is no CLC code"):
        read_truth(bad)


def test_the_command_says_what_was_found(audited, patches, truth):
    """Of an audit that is done already, so that no cluster is started."""
    folder, _ = audited
    options = ["--folds", "3", "--square", "2.4", "--truth", str(truth), "--to", str(folder)]
    settings = [f"--option={key}={value}" for key, value in TINY.items()]
    done = CliRunner().invoke(app, ["audit", str(patches), *options, *settings, "--cluster", "no such cluster"])
    assert done.exit_code == 0, done.output
    assert "of 2 patches known to be wrong 100% are in the worst tenth" in done.output


# --- minutes long ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2018, 7])
def test_wrong_patches_of_the_sample_are_in_the_worst_tenth(seed, tmp_path):
    from geoflow.sample.parallel import Workshop, default_workers
    from geoflow.sample.patches import write_patches

    write_patches(tmp_path, 320, seed, Workshop(tmp_path, default_workers(), lambda *news: None))
    flags = tuple(sorted((tmp_path / "bigearthnet-lists").glob("*.csv")))
    bands = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    ingest_patches(tmp_path / "bigearthnet", tmp_path / "patches.zarr", PatchOptions(flags=flags, bands=bands))
    known = read_truth(tmp_path / "truth/patches_wrong_labels.csv")
    options = {"encoder": "resnet18", "head_epochs": 0, "epochs": 6}
    (summary,) = audit_source(tmp_path / "patches.zarr", changed=options, truth=known).values()
    assert summary["truth"]["wrong"] >= 9
    assert summary["truth"]["in_worst_tenth"] >= 0.8


@pytest.mark.slow
def test_labels_of_pixels_are_held_to_maps_made_without_them(finished, tmp_path):
    _, out = finished
    options = PixelOptions(folds=2, block_px=128, confidence=0.5, min_ha=0.1)
    tiny = {"context_steps": 5, "decoder_steps": 0, "steps": 2}
    summary = audit_pixels(out, tmp_path, options, tiny, "threads")
    found = open_for_writing(tmp_path / "pixels.zarr").dataset(GROUP, dask=False)
    labels = open_for_writing(out / "country.zarr").dataset("labels/clc2018", dask=False)["level3"].values
    doubted = found["doubt"].values == kernels.DOUBTED
    np.testing.assert_array_equal(found["given"].values[doubted], labels[doubted])
    assert (found["suggested"].values[doubted] != labels[doubted]).all()
    assert summary["doubted_px"] == doubted.sum() > 0
    assert summary["judged_px"] == (found["loss"].values != kernels.LOSS_NODATA).sum()
    areas = gpd.read_parquet(tmp_path / "areas.parquet")
    assert areas["rank"].tolist() == list(range(1, len(areas) + 1))
    assert areas["area_ha"].min() >= 0.1
