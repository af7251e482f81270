"""Runs that go on by themselves: submitted in one shell, stopped from another, and never two on one output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from distributed import Client

import geoflow as gf
from geoflow.errors import RunBusy, RunCancelled, RunFailed, StoreError
from geoflow.jobs.lease import NAME, Holder, Lease, holder_of
from geoflow.jobs.order import Order
from geoflow.jobs.patience import Patience
from geoflow.jobs.records import find_record, known_records, records_of

LABELS = ("imagery", "classifier", "train", "predict", "generalise", "change", "evaluate")
IMAGERY = ("labels", "classifier", "train", "predict", "generalise", "change", "evaluate")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of the tests are not remembered with those of whoever runs them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def geoflow(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "geoflow", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )


def as_json(*arguments: object) -> Any:
    done = geoflow(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def one_epoch(tiny_job: Callable[..., Path], name: str) -> Path:
    """A job that takes some seconds: composites of one epoch."""
    path = tiny_job(*IMAGERY, name=name)
    job = yaml.safe_load(path.read_text())
    del job["imagery"]["epochs"]["2024"]
    path.write_text(yaml.safe_dump(job))
    return path


def until(wanted: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


# --- from shells ----------------------------------------------------------------------------------------------------


def test_submit_in_one_shell_stop_from_another_resume_from_a_third(tiny_job, tmp_path):
    out, job = tmp_path / "out", one_epoch(tiny_job, "far")
    # A terminal of its own, which is closed at once: what was submitted must not go with it.
    with subprocess.Popen(
        [sys.executable, "-m", "geoflow", "submit", str(job), "--out", str(out), "--json", "--cluster", "threads"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        begun = json.loads(shell.communicate()[0])
    run = begun["id"]
    with contextlib.suppress(ProcessLookupError):  # nothing of it may be left
        os.killpg(shell.pid, signal.SIGHUP)
    until(lambda: bool(find_record(run).content["stages"]))
    done = geoflow("cancel", run[:20], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cancelled" in done.stdout
    assert as_json("status", out)["state"] == "cancelled"
    assert as_json("status", out)["stages"]["imagery"]["failed"] == 0
    assert holder_of(out) is None
    assert "geoflow resume" in geoflow("status", run).stdout

    again = as_json("resume", run)["id"]
    assert [r["id"] for r in as_json("list")] == [run, again]
    finished = geoflow("logs", "--follow", again)
    assert "Composites" in finished.stdout
    told = geoflow("status", again).stdout
    assert "complete" in told
    assert "Composites" in told
    assert json.loads((out / "summary.json").read_text())["status"] == "complete"


def test_a_run_whose_process_is_gone_is_lost_and_can_be_resumed(tiny_job, tmp_path):
    job = gf.load_job(one_epoch(tiny_job, "gone"))
    run = gf.submit(job, out=tmp_path / "out")
    until(lambda: run.status == "running")
    holder = holder_of(tmp_path / "out")
    assert holder is not None
    assert holder.run == run.id
    os.killpg(holder.pid, signal.SIGKILL)
    assert run.wait(10) == "lost"
    with pytest.raises(RunFailed, match="lost"):
        run.result()
    told = geoflow("status", run.id).stdout
    assert "its process is gone" in told
    assert f"geoflow resume {run.id}" in told


def test_what_cannot_run_is_refused_before_anything_is_begun(tiny_job, tmp_path):
    job = tiny_job(*LABELS)
    for wrong, text in (
        (("--driver", "pigeon"), "pigeon"),
        (("--cluster", "nowhere"), "nowhere"),
        (("--driver", "cluster"), "name a scheduler"),
        (("--set", f"labels.source={tmp_path}/none.gpkg"), "none.gpkg"),
    ):
        done = geoflow("submit", job, "--out", tmp_path / "out", *wrong)
        assert done.returncode == 2, done.stdout
        assert text in done.stderr
    assert "No runs yet" in geoflow("list").stdout
    missing = geoflow("status", "20990101-none")
    assert missing.returncode == 2
    assert "geoflow list" in missing.stderr


# --- from Python ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A scheduler and a worker that run anyway."""
    file = tmp_path / "scheduler.json"
    host = ["--host", "127.0.0.1", "--scheduler-file", str(file)]
    quiet: dict[str, Any] = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", *host, "--port", "0", "--no-dashboard"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", *host, "--nthreads", "2", "--no-dashboard"]
    with subprocess.Popen(scheduler, **quiet) as one:
        until(file.exists)
        with subprocess.Popen(worker, **quiet) as other:
            try:
                yield f"file:{file}"
            finally:
                other.terminate()
                other.wait()
                one.kill()


def test_a_run_that_a_task_on_the_cluster_drives(cluster, tiny_job, tmp_path):
    job = gf.load_job(tiny_job(*LABELS, name="there"))
    with Client(scheduler_file=cluster.removeprefix("file:")) as client:
        run = gf.submit(job, client, tmp_path / "out")
    # The client has left, and the run goes on.
    summary = run.result(120)
    assert summary["stages"]["labels"]["done"] == summary["stages"]["labels"]["tasks"] > 0
    assert run.status == "complete"
    assert "labels" in geoflow("status", run.id).stdout.lower()
    here = gf.run(job, tmp_path / "here", cluster="threads")
    assert here["status"] == "complete"
    for level in ("level1", "level3"):
        mine, theirs = (gf.open(tmp_path / name)[f"labels/clc2018/{level}"].values for name in ("here", "out"))
        np.testing.assert_array_equal(mine, theirs)


def test_a_run_here_can_be_stopped_and_says_so(tiny_job, tmp_path):
    job = gf.load_job(one_epoch(tiny_job, "here"))
    raised: list[BaseException] = []

    def run() -> None:
        try:
            gf.run(job, tmp_path / "out", cluster="threads")
        except RunCancelled as error:
            raised.append(error)

    running = threading.Thread(target=run)
    running.start()
    until(lambda: any(r.state == "running" for r in records_of(tmp_path / "out")))
    (record,) = records_of(tmp_path / "out")
    until(lambda: bool(record.read_again().content["stages"]))
    with pytest.raises(RunBusy, match=record.id):
        gf.run(job, tmp_path / "out", cluster="threads")
    with pytest.raises(RunBusy, match="geoflow cancel"):
        gf.submit(job, out=tmp_path / "out")
    assert [r.id for r in records_of(tmp_path / "out")] == [record.id], "who is refused leaves no trace"
    (record.folder / "cancel").touch()
    running.join(60)
    assert len(raised) == 1
    assert "geoflow resume" in str(raised[0])
    assert record.read_again().state == "cancelled"
    assert find_record(str(tmp_path / "out")).id == record.id
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["status"] == "cancelled"


def test_an_order_survives_being_written_down(tiny_job, tmp_path):
    job = gf.load_job(tiny_job())
    order = Order.of(job, tmp_path, cluster="threads", limit=3, patience=Patience(retries=5, task_s=60))
    again = Order.from_dict(json.loads(json.dumps(order.to_dict())))
    assert again == order


# --- the lease ------------------------------------------------------------------------------------------------------


def leave(out: Path, holder: Holder) -> None:
    (out / NAME).write_text(json.dumps(asdict(holder)))


def test_a_lease_holds_while_its_holder_lives(tmp_path):
    me = Holder.me("other")
    with Lease(tmp_path, "one"), pytest.raises(RunBusy, match="run one"):
        Lease(tmp_path, "two").acquire()
    assert holder_of(tmp_path) is None
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for left in (
        replace(me, pid=dead.pid),  # its process is gone
        replace(me, began=me.began - 1000),  # the number is another process by now
        replace(me, host="elsewhere", renewed=time.time() - 600),  # not renewed for long
    ):
        leave(tmp_path, left)
        assert not left.lives
        with Lease(tmp_path, "next"):
            holder = holder_of(tmp_path)
            assert holder is not None
            assert holder.run == "next"
    for living in (me, replace(me, host="elsewhere", renewed=time.time() - 20)):
        leave(tmp_path, living)
        with pytest.raises(RunBusy):
            Lease(tmp_path, "next").acquire()
    (tmp_path / NAME).write_text('{"run": "cut sho')
    with Lease(tmp_path, "next"):
        pass


def test_of_many_runs_at_once_one_gets_a_lease_that_was_left(tmp_path):
    """Whole processes, because they take it over from a dead one at the same moment."""
    leave(tmp_path, replace(Holder.me("dead"), host="elsewhere", renewed=0.0))
    code = (
        "import sys, time; from pathlib import Path; from geoflow.jobs.lease import Lease\n"
        "from geoflow.errors import RunBusy\n"
        "time.sleep(max(0, float(sys.argv[3]) - time.time()))\n"
        "try: Lease(Path(sys.argv[1]), sys.argv[2]).acquire()\n"
        "except RunBusy: sys.exit(3)\n"
        "print('mine'); time.sleep(float(sys.argv[3]) + 3 - time.time())\n"
    )
    start = time.time() + 6
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"r{n}", str(start)]) for n in range(6)]
    assert sorted(run.wait() for run in runs) == [0, 3, 3, 3, 3, 3]


def test_a_lease_that_was_taken_over_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("geoflow.jobs.lease.RENEW_S", 0.1)
    lease = Lease(tmp_path, "slept").acquire()
    lease.check()
    taker = replace(Holder.me("taker"), host="elsewhere")
    leave(tmp_path, taker)

    def noticed() -> bool:
        try:
            lease.check()
        except RunBusy as error:
            return "taken over by run taker" in str(error)
        return False

    until(noticed, 10)
    lease.release()
    assert holder_of(tmp_path) == taker, "a lease of another is not given back"


def test_runs_whose_output_is_gone_are_not_listed(tiny_job, tmp_path):
    from shutil import rmtree

    gf.run(gf.load_job(tiny_job(*LABELS)), tmp_path / "out", cluster="threads")
    (record,) = known_records()
    assert (record.state, record.out) == ("complete", tmp_path / "out")
    rmtree(tmp_path / "out")
    assert known_records() == []
    with pytest.raises(StoreError):
        find_record(record.id)
