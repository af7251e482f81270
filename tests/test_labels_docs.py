"""What docs/labels.md shows can be made again."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox

import geoflow as gf
from geoflow.labels import load_label_tile

ROOT = Path(__file__).parent.parent


def test_the_table_and_the_picture_of_borders(tiny_country, tmp_path):
    picture, figures = tmp_path / "borders.png", tmp_path / "borders.json"
    command = [sys.executable, ROOT / "benchmarks/borders.py", tiny_country, "--picture", picture, "--json", figures]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 5000
    rows = json.loads(figures.read_text())
    assert len(done.stdout.splitlines()) == 2 + len(rows)
    truth_file = tiny_country / "truth/landcover_2018.tif"
    with rasterio.open(truth_file) as src:
        truth, geobox = src.read(1), GeoBox(src.shape, src.transform, src.crs)
    found = load_label_tile(tiny_country / "corine/clc2018.gpkg", geobox, gf.legend("corine"))
    known = (truth != 0) & (found.codes != 0)
    near = known & (found.border_m < 100)
    for name, where in (("everywhere", known), ("within 100 m of a border", near)):
        assert rows[name]["share"] == pytest.approx(where.sum() / known.sum())
        assert rows[name]["level3"] == pytest.approx((truth == found.codes)[where].mean())
        assert rows[name]["level1"] == pytest.approx((truth // 100 == found.codes // 100)[where].mean())
    assert rows["within 100 m of a border"]["level3"] < rows["farther inside polygons"]["level3"]
    assert np.isclose(sum(rows[name]["share"] for name in list(rows)[1:]), 1)


def test_the_benchmark_of_labels_measures_what_it_says(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    labels = importlib.import_module("labels")
    case = labels.Case(tmp_path, 512, 900, 600.0)
    ways = {**labels.rasterising(case), **labels.storing(case), **labels.parts(case)}
    floor, ours, usual = (np.asarray(ways[name]()) for name in ("floor", "ours", "usual"))
    np.testing.assert_array_equal(floor, usual)
    assert (floor == ours).mean() > 0.9  # of the polygons that overlap, the smaller one has the pixel, not the later
    assert ways["job"]()["counts"]
    for name in ways.keys() - {"floor", "ours", "usual", "job"}:
        ways[name]()
