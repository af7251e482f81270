"""The paper's tables of a finished run: figures, files, nets of one level."""

import csv
import json
import shutil

import numpy as np
import pytest
from sklearn import metrics as sk
from typer.testing import CliRunner

import geoflow as gf
from geoflow.cli import app
from geoflow.errors import JobError, LegendError, StoreError
from geoflow.jobs import paperreport
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.paper import evaluate_paper
from geoflow.jobs.papermodels import patches_of
from geoflow.jobs.records import read_summary
from geoflow.legends import legend

CORINE = legend("corine")


@pytest.mark.parametrize("level", [1, 2, 3])
def test_one_level_of_a_legend_is_a_flat_legend(level):
    flat = CORINE.only(level)
    assert flat.levels == (1,)
    assert flat.codes() == CORINE.codes(level)
    assert [flat.label(c) for c in flat.codes()] == [CORINE.label(c) for c in CORINE.codes(level)]
    codes = np.array([0, *CORINE.codes(), 999], np.uint16)
    raised = np.array([flat.clc_codes.get(int(c), 0) for c in codes])
    np.testing.assert_array_equal(raised, CORINE.to_level(codes, level))
    assert set(flat.grid_codes) == set(CORINE.grid_codes)
    assert gf.legends.Legend.from_dict(flat.to_dict()) == flat
    with pytest.raises(LegendError, match="levels"):
        CORINE.only(4)


@pytest.fixture(scope="module")
def own(finished, tmp_path_factory):
    """A copy of the finished run that may be written to."""
    out = tmp_path_factory.mktemp("paper") / "quickstart"
    shutil.copytree(finished[1], out)
    return out


@pytest.fixture(scope="module")
def figures(own):
    return evaluate_paper(own)


def test_figures_of_patches_are_those_of_scikit_learn(own, figures):
    from geoflow.learning.scoring import patch_logits
    from geoflow.modelfile import load_model

    flow = Flow(parse_job(read_summary(own)["config"]), own)
    source, model = patches_of(flow), load_model(own / "classifier")
    p = 1 / (1 + np.exp(-patch_logits(model.trained, source, source.held)))
    at = [CORINE.codes().index(code) for code in model.card.codes]
    truth = source.labels[source.held][:, at]
    found = figures["classification"]["level3"]
    assert found["patches"] == len(source.held)
    assert found["f1_micro"] == pytest.approx(sk.f1_score(truth, p > 0.5, average="micro", zero_division=0))
    assert found["exact"] == pytest.approx(sk.accuracy_score(truth, p > 0.5))
    above = {level: [CORINE.ancestor(c, level) for c in model.card.codes] for level in (1, 2)}
    for level, groups in above.items():
        held, said = ({(i, groups[j]) for i, j in np.argwhere(a)} for a in (truth, p > 0.5))
        f1 = figures["classification"][f"level{level}"]["f1_micro"]
        assert f1 == pytest.approx(2 * len(held & said) / (len(held) + len(said)))
    assert figures["nested_patches"] == 1
    for level in (1, 2, 3):
        dataset = figures["dataset"][f"level{level}"]
        assert dataset["patches"] == len(source.train) + len(source.held)
        assert dataset["density"] == pytest.approx(dataset["cardinality"] / dataset["classes"])


def test_figures_of_pixels_are_those_of_map_and_labels_where_both_are_held_out(own, figures):
    flow = Flow(parse_job(read_summary(own)["config"]), own)
    tree = gf.open(own / "country.zarr")
    held = flow.held_out.mask(flow.grid.shape)
    for level in (1, 2, 3):
        true, mapped = (tree[group][f"level{level}"].values for group in ("labels/clc2018", "map/2018"))
        where = held & (true != 0) & (mapped != 0)
        found = figures["segmentation"][f"level{level}"]
        assert found["pixels"] == figures["pixels"] == int(where.sum())
        assert found["overall"] == pytest.approx(sk.accuracy_score(true[where], mapped[where]))
        iou = sk.jaccard_score(true[where], mapped[where], average=None, labels=np.unique(true[where]), zero_division=0)
        assert found["mean_iou"] == pytest.approx(iou.mean())
    assert figures["nested_pixels"] == 1
    confidence = tree["map/2018"]["confidence"].values[where]
    said = sum(b["said"] * b["count"] for b in figures["segmentation"]["level3"]["calibration"]["bins"])
    assert said / where.sum() == pytest.approx(confidence.mean() / 100, abs=0.01)


def test_a_map_made_anew_gives_the_figures_of_the_stored_one(own, figures):
    from geoflow.jobs.paper import Maps, segmentation
    from geoflow.modelfile import load_model

    flow = Flow(parse_job(read_summary(own)["config"]), own)
    models = dict.fromkeys((1, 2, 3), load_model(own / "model"))
    assert Maps(flow, models, True).finished is not None, "the finished map is taken"
    assert Maps(flow, models, False).finished is None
    anew = segmentation(flow, models, False)
    for level, found in anew["segmentation"].items():
        stored = figures["segmentation"][level]
        assert found["overall"] == pytest.approx(stored["overall"], abs=0.005)
        assert found["calibration"]["ece"] == pytest.approx(stored["calibration"]["ece"], abs=0.01)


def test_the_report_is_written_whole(own, figures):
    page = paperreport.write_paper(figures, own)
    text = page.read_text()
    folder = own / "paper"
    names = {path.name for path in folder.iterdir()}
    tables = {f"table{n}.csv" for n in range(2, 10)}
    assert tables | {"figures.json", "classes.json", "tables.md", "reliability.png", "calibration.csv"} <= names
    assert {f"matrix_level{n}.png" for n in (1, 2, 3)} <= names
    for number in range(2, 10):
        assert f"## Table {number}." in text
    for picture in folder.glob("*.png"):
        assert f"]({picture.name})" in text
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 8000
    told = json.loads((folder / "figures.json").read_text())
    assert told == json.loads(json.dumps(figures)), "plain values alone"
    classes = json.loads((folder / "classes.json").read_text())
    assert (classes["311"]["name"], classes["311"]["parent"]) == ("Broad-leaved forest", 31)
    with (folder / "table9.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        shares = [float(v) for k, v in row.items() if k not in ("Code", "Class", "Pixels") and v]
        assert sum(shares) == pytest.approx(1 if int(row["Pixels"]) else 0, abs=1e-4)
    with (folder / "table4.csv").open() as file:
        printed = {row["Code"]: row["paper: F1"] for row in csv.DictReader(file)}
    assert printed
    assert printed.items() <= {"1": "0.77", "2": "0.94", "3": "0.95", "4": "0.58", "5": "0.93"}.items()
    paperreport.write_paper(figures, own)
    assert page.read_text() == text


def test_what_cannot_be_evaluated_is_refused(own, tmp_path):
    with pytest.raises(StoreError, match="not the output of a run"):
        evaluate_paper(tmp_path)
    with pytest.raises(JobError, match="--single"):
        evaluate_paper(own, options={"steps": 1})
    with pytest.raises(JobError, match="strides"):
        evaluate_paper(own, single=True, options={"strides": 1})
    with pytest.raises(JobError, match="unet"):
        evaluate_paper(own, single=True, options={"unet.steps": 1})
    for arguments, told in (
        ([], "--truth EPOCH=FILE, or --paper"),
        (["--single"], "belong to --paper"),
        (["--paper", "--single", "--option", "steps"], "KEY=VALUE"),
    ):
        failed = CliRunner().invoke(app, ["evaluate", str(own), *arguments])
        assert told in str(failed.exception)


@pytest.mark.slow
def test_one_net_over_all_levels_beside_one_for_each(own):
    """Nets of one level are flat, start from the classifier of their level, and are trained once."""
    changed = {"context_steps": 2, "steps": 1, "batch": 2}
    said: list[str] = []
    found = evaluate_paper(own, single=True, options=changed, tell=said.append)
    trainings = [line for line in said if "training" in line]
    assert len(trainings) == 8, "two over all levels, two for each of three"
    from geoflow.modelfile import read_header

    for level in (1, 2, 3):
        for name in ("classifier", "segmenter"):
            card = read_header(own / f"paper/models/level{level}/{name}").card
            assert card.legend.levels == (1,)
            assert set(card.codes) <= set(CORINE.codes(level))
        assert card.training["encoder_from"] is not None
        assert card.training["options"]["steps"] == 1
        of_level = found["single"]["segmentation"][f"level{level}"]
        assert of_level["codes"] == list(CORINE.codes(level))
        assert found["single"]["pixels"] == found["pixels"] == sum(map(sum, of_level["matrix"]))
    assert 0 <= found["single"]["nested_pixels"] <= found["nested_pixels"] == 1
    table = next(t for t in paperreport.tables(found) if t.name == "comparison")
    accuracy = {row[1]: row for row in table.rows if row[0] == "Pixel accuracy"}
    assert accuracy[2][2] == f"{found['segmentation']['level2']['overall']:.1%}"
    assert accuracy[2][3] == f"{found['single']['segmentation']['level2']['overall']:.1%}"
    said.clear()
    again = evaluate_paper(own, single=True, options=changed, tell=said.append)
    assert not [line for line in said if "training" in line]
    assert again == found
