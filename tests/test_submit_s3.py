"""Submitted runs whose output lies in a bucket: asked after, stopped and resumed from other shells."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3_server import s3_bucket

import geoflow as gf
from geoflow.errors import JobError
from geoflow.jobs.records import find_record
from geoflow.jobs.submit import follow_log, read_log, submit
from geoflow.places import entries, place

ONLY_LABELS = ("imagery", "classifier", "train", "predict", "generalise", "change", "evaluate", "publish")
ONLY_IMAGERY = ("labels", *ONLY_LABELS[1:])


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with s3_bucket():
        yield


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def geoflow(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "geoflow", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(wanted: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


def test_submit_stop_resume_from_several_shells(server: None, tiny_job: Callable[..., Path], state: Path) -> None:
    path = tiny_job(*ONLY_IMAGERY, name="far")
    job: dict[str, Any] = yaml.safe_load(path.read_text())
    del job["imagery"]["epochs"]["2024"]
    path.write_text(yaml.safe_dump(job))
    out = "s3://output/submitted"
    run = json.loads(geoflow("submit", path, "--out", out, "--cluster", "threads", "--json"))["id"]
    until(lambda: bool(find_record(run).content["stages"]))
    assert "cancelled" in geoflow("cancel", run)
    assert json.loads(geoflow("status", out, "--json"))["state"] == "cancelled"
    again = json.loads(geoflow("resume", out, "--json"))["id"]
    until(lambda: find_record(again).state not in ("submitted", "running"))
    assert json.loads(geoflow("status", again, "--json"))["state"] == "complete", read_log(find_record(again))
    assert [r["id"] for r in json.loads(geoflow("list", "--json"))] == [run, again]
    assert "Read again" in geoflow("logs", again)
    assert (state / "geoflow/logs" / again / "log.txt").is_file()
    there = {p.name for p in entries(place(out) / "runs" / again)[1]}
    assert there == {"run.json"}, "the record lies in the bucket, and the log does not"


def test_where_the_log_lies_is_said_elsewhere(server: None, tiny_job: Callable[..., Path], state: Path) -> None:
    begun = submit(gf.load_job(tiny_job(*ONLY_LABELS, name="log")), "threads", "s3://output/logged", limit=1)
    assert begun.wait(90) == "complete", begun.logs()
    assert begun.record.log_host == socket.gethostname()
    assert "Read again" in begun.logs()
    log = str(state / "elsewhere/log.txt")
    away = replace(begun.record, content={**begun.record.content, "log_host": "another", "log": log})
    assert read_log(away) == f"run {begun.id} prints into {log} on another\n"
    assert next(follow_log(away)) == read_log(away)


def test_a_state_folder_that_cannot_be_made_is_an_error(
    server: None, tiny_job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(JobError, match=r"where its log would lie, cannot be made.*XDG_STATE_HOME"):
        submit(gf.load_job(tiny_job(*ONLY_LABELS, name="no")), "threads", "s3://output/no-state")
