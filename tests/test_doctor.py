"""``geoflow doctor`` finds what is wrong, says what to do, and shows no secret."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from geoflow.jobs.doctor import Finding, examine, worst
from geoflow.jobs.doctorcluster import examine_cluster

LEFT_OUT = ("labels", "classifier", "train", "predict", "generalise", "change", "evaluate", "publish")


def doctor(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "geoflow", "doctor", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    """The worst finding of each name."""
    order = ["green", "yellow", "red"]
    return {f.name: f for f in sorted(findings, key=lambda f: order.index(f.status))}


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/stac"
        server.shutdown(socket.SHUT_RDWR)


def test_a_machine_that_is_fine_and_a_job_that_is_valid(tiny_job, tmp_path):
    job = tiny_job(*LEFT_OUT)
    done = doctor(
        "--job", job, "--out", tmp_path / "out", "--cluster", "threads", "--json", HTTPS_PROXY="http://me:pw@p:1"
    )
    said = json.loads(done.stdout)
    found = by_name([Finding(**f) for f in said["findings"]])
    assert [name for name, f in found.items() if f.status == "red"] == []
    assert done.returncode == 0
    assert said["status"] == worst([*found.values()])
    assert "valid" in found["job"].found
    assert "the job writes" in found["disk"].found
    assert found["catalogs"].found.startswith("sample: /")
    assert "1 worker" in found["cluster"].found
    assert "HTTPS_PROXY" in found["credentials"].found
    assert "pw" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists(), "it changes nothing"


def test_what_is_red_ends_with_1_and_says_what_to_do(tiny_job, tmp_path):
    job = tiny_job(*LEFT_OUT, imagery={"catalog": "cdse", "epochs": {"2018": {"s": "2018-05-01/2018-06-01"}}})
    environment = {"CUDA_VISIBLE_DEVICES": "", "AWS_ACCESS_KEY_ID": "planted-key-id", "AWS_SECRET_ACCESS_KEY": ""}
    values = yaml.safe_load(job.read_text())
    values["imagery"]["url"] = "http://127.0.0.1:9/nothing"
    job.write_text(yaml.safe_dump(values))
    done = doctor("--job", job, "--cluster", "cuda", **environment)
    assert done.returncode == 1
    assert "planted-key-id" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for mark, what, fix in (
        ("✗ credentials", "AWS_ACCESS_KEY_ID", "catalog cdse needs AWS_SECRET_ACCESS_KEY: export them"),
        ("✗ catalogs", "cdse: ConnectionError", "behind a proxy, export HTTPS_PROXY"),
        ("✗ cluster", "this machine shows no GPU", "see docs/how-to/clusters.md"),
    ):
        (at,) = [i for i, line in enumerate(lines) if line.startswith(mark)]
        assert what in lines[at]
        assert fix in lines[at + 1]


@pytest.mark.slow
def test_a_job_that_is_not_valid_and_a_folder_that_cannot_be_written(tiny_job, tmp_path):
    job = tiny_job(*LEFT_OUT, grid={"crs": "EPSG:4326"})
    (tmp_path / "file").touch()
    found = by_name(list(examine(job, tmp_path / "file/out", "threads")))
    assert found["job"].status == found["disk"].status == "red"
    assert "grid.crs" in found["job"].found
    assert "--out" in found["disk"].do


@pytest.mark.slow
def test_catalogs_that_never_answer_do_not_hold_it_up(tmp_path, monkeypatch, silent):
    from geoflow.imagery import catalog

    monkeypatch.setattr(catalog, "catalog_folder", lambda: tmp_path)
    shipped = yaml.safe_load((Path(__file__).parent.parent / "catalogs/earth-search.yaml").read_text())
    for number in range(3):
        (tmp_path / f"c{number}.yaml").write_text(yaml.safe_dump({**shipped, "name": f"c{number}", "url": silent}))
    start = time.monotonic()
    lines = [f for f in examine(cluster="threads") if f.name == "catalogs"]
    assert [f.status for f in lines] == ["yellow"] * 3, "no job asks for them"
    assert all("Timeout" in f.found for f in lines)
    assert time.monotonic() - start < 40


@pytest.mark.slow
def test_the_projections_of_another_installation(tmp_path):
    """PROJ_DATA that points at a folder without a database is what a mix of conda and pip leaves behind."""
    done = doctor("--cluster", "threads", "--json", PROJ_DATA=str(tmp_path), PROJ_LIB=str(tmp_path))
    found = by_name([Finding(**f) for f in json.loads(done.stdout)["findings"]])
    assert (found["projections"].status, done.returncode) == ("red", 1)
    assert found["projections"].do == "unset PROJ_LIB PROJ_DATA"


def test_what_the_workers_do_not_see_or_have_not(tmp_path):
    lines = list(examine_cluster("threads", [tmp_path / "out", tmp_path / "a", tmp_path / "no"], 2**60))
    assert [status for status, _, _ in lines] == ["green", "red", "red", "red"]
    assert f"{tmp_path / 'a'} is not seen by 1 of 1 workers" in lines[1][1]
    assert "one that maps takes 1073741824.0 GiB" in lines[3][1]
