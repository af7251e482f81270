"""A composite job over a server that fails: nothing is lost without being told, and what is made good is made good."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from faulty_server import Faults, serve_with_faults

import geoflow as gf
from geoflow.jobs.plan import make_plan

JOB = ("labels", "classifier", "train", "predict", "generalise", "change", "evaluate", "publish")
PATIENCE = {"attempts": 2, "timeout_s": 3}


def write_job(tiny_job: Callable[..., Path], address: str, **imagery: Any) -> Path:
    path = tiny_job(*JOB)
    job = yaml.safe_load(path.read_text())
    job["imagery"] |= {"url": f"{address}/stac/catalog.json", **PATIENCE, **imagery}
    del job["imagery"]["epochs"]["2024"]
    path.write_text(yaml.safe_dump(job))
    return path


def run(job: Path, out: Path) -> dict[str, Any]:
    return gf.run(gf.load_job(job), out, cluster="threads")


def pixels(out: Path) -> dict[str, np.ndarray]:
    composites = gf.open(out)["imagery/2018"]
    return {name: composites[name].values for name in ("reflectance", "clear")}


def same(one: Path, other: Path) -> None:
    for name, values in pixels(one).items():
        np.testing.assert_array_equal(values, pixels(other)[name])


@pytest.fixture
def served(tiny_country: Path):
    """An address of its own for each test, because GDAL remembers what it read from one."""
    faults = Faults(stall_s=8.0)
    with serve_with_faults(tiny_country, faults) as address:
        yield address, faults


@pytest.fixture(scope="module")
def undisturbed(tiny_country: Path, tiny_job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "out"
    with serve_with_faults(tiny_country, Faults()) as address:
        summary = run(write_job(tiny_job, address), out)
    assert summary["status"] == "complete"
    assert "reads" not in summary
    return out


@pytest.fixture
def fresh(served, tiny_job, tmp_path: Path) -> Path:
    """An output with the scenes found and decided, and nothing made of them."""
    job = gf.load_job(write_job(tiny_job, served[0]))
    make_plan(job, tmp_path / "out")
    return tmp_path / "out"


def a_scene(undisturbed: Path) -> str:
    return sorted(yaml.safe_load((undisturbed / "summary.json").read_text())["scenes"]["2018"]["used"], key=str)[1][
        "id"
    ]


def test_a_server_with_hiccups_gives_the_same_pixels_and_all_is_told(served, undisturbed, fresh, tiny_job) -> None:
    address, faults = served
    for kind in (503, "truncate", "reset", 500, "stall", 429):
        faults.plan("*/B0?.tif", kind, 1)
    # As many attempts as faults: a read that met two might fail, and its task start anew without what it had told.
    # And more time than the others: on a machine with other work an answer may take three seconds by itself.
    summary = run(write_job(tiny_job, address, attempts=6, timeout_s=6), fresh)
    faults.plans.clear()
    assert summary["status"] == "complete"
    same(fresh, undisturbed)
    failed = {path.split("/")[-2] for path, _ in faults.seen}
    assert len(faults.seen) == 6
    retried = summary["reads"]["2018"]["retried"]
    assert {entry["scene"] for entry in retried} == failed, retried
    assert sum(entry["times"] for entry in retried) >= 6
    assert summary["reads"]["2018"]["lost"] == []


def test_a_scene_that_is_gone_fails_its_tiles_or_is_left_out_and_counted(served, undisturbed, fresh, tiny_job) -> None:
    address, faults = served
    scene = a_scene(undisturbed)
    faults.plan(f"*/{scene}/B03.tif", 404, float("inf"))
    summary = run(write_job(tiny_job, address), fresh)
    assert summary["status"] == "failed"
    assert all(scene in failure["error"] for failure in summary["failed"])
    assert not any((fresh / "receipts/imagery" / f"{f['key']}.json").exists() for f in summary["failed"])

    summary = run(write_job(tiny_job, address, on_error="skip_scene"), fresh)
    assert summary["status"] == "complete"
    (lost,) = summary["reads"]["2018"]["lost"]
    assert (lost["scene"], lost["band"]) == (scene, "B03")
    assert "404" in lost["cause"]
    before, after = pixels(undisturbed), pixels(fresh)
    fewer = before["clear"].astype(int) - after["clear"]
    # Where another scene of the datatake steps in, it may be clear where the lost one was not.
    assert np.abs(fewer).max() == 1
    assert 0 < (fewer > 0).sum() <= lost["pixels"]
    differ = (before["reflectance"] != after["reflectance"]).any(axis=1)
    assert differ.any(axis=0).sum() <= lost["pixels"], "the other pixels are as they were"

    summary = run(write_job(tiny_job, address, on_error="skip_scene"), fresh)
    assert summary["stages"]["imagery"]["done"] == 0
    assert summary["reads"]["2018"]["lost"] == [lost], "what is missing is said again"

    faults.plans.clear()
    summary = run(write_job(tiny_job, address), fresh)
    assert summary["status"] == "complete"
    assert summary["stages"]["imagery"]["done"] == len(lost["tiles"])
    assert "reads" not in summary
    same(fresh, undisturbed)


def test_a_period_that_loses_all_its_scenes_is_a_failure(served, undisturbed, fresh, tiny_job) -> None:
    address, faults = served
    faults.plan("*/B04.tif", 404, float("inf"))
    summary = run(write_job(tiny_job, address, on_error="skip_scene"), fresh)
    faults.plans.clear()
    assert summary["status"] == "failed"
    assert "none of the" in summary["failed"][0]["error"]
    assert not list((fresh / "receipts").glob("imagery/**/*.json"))


def test_a_server_that_is_dead_ends_within_the_time_allowed(served, undisturbed, fresh, tiny_job) -> None:
    address, faults = served
    faults.plan("*.tif", "stall", float("inf"))
    start = time.monotonic()
    summary = run(write_job(tiny_job, address, attempts=1, timeout_s=1), fresh)
    faults.plans.clear()
    assert summary["status"] == "failed"
    assert len(summary["failed"]) == summary["stages"]["imagery"]["tasks"]
    assert time.monotonic() - start < 200
