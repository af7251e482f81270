"""The runner on real worker processes: what fails is tried again, what kills is set aside, and all else goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster
from runner_work import Note

from geoflow.errors import ClusterError, RunCancelled
from geoflow.jobs.outcome import Outcome
from geoflow.jobs.patience import Patience, Watch
from geoflow.jobs.runner import run_tasks
from geoflow.jobs.tasks import Task
from geoflow.store.receipts import Receipts, digest

QUICK = Patience(backoff_s=0.05, gone_s=5)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client


def task(folder: Path, name: str, **how) -> Task:
    return Task("test", name, digest(name), Note(folder / "out", name, **how))


def run(client: Client, folder: Path, tasks: list[Task], patience: Patience = QUICK, **watch) -> Outcome:
    (folder / "out").mkdir(exist_ok=True)
    return run_tasks(client, tasks, folder / "out", Outcome(), Watch(**watch), patience)


def tries(folder: Path, name: str) -> int:
    return len((folder / "out" / f"{name}.tries").read_text().splitlines())


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(client, tmp_path):
    ended: list[str] = []
    said: list[str] = []
    tasks = [
        task(tmp_path, "good"),
        task(tmp_path, "twice", how="scene", times=2),
        task(tmp_path, "ever", how="scene", times=9),
        task(tmp_path, "job", how="job", times=9),
        task(tmp_path, "full", how="full", times=9),
        task(tmp_path, "bug", how="bug", times=9),
    ]
    outcome = run(client, tmp_path, tasks, on_done=lambda t: ended.append(t.key), say=said.append)
    assert sorted(ended) == sorted(t.key for t in tasks)
    assert outcome.done == 2
    assert {f["key"]: f["tries"] for f in outcome.failed} == {"ever": 3, "job": 1, "full": 1, "bug": 3}
    assert {name: tries(tmp_path, name) for name in ("good", "twice", "ever", "job", "full", "bug")} == {
        "good": 1, "twice": 3, "ever": 3, "job": 1, "full": 1, "bug": 3,
    }  # fmt: skip
    errors = {f["key"]: f["error"] for f in outcome.failed}
    assert errors["job"] == "grid.tile: is wrong"
    assert "No space left" in errors["full"]
    assert [f["key"] for f in outcome.failed if "traceback" in f] == ["bug"]
    assert sum("twice" in line for line in said) == 2
    receipts = Receipts(tmp_path / "out/receipts")
    assert [t.key for t in tasks if receipts.read("test", t.key)] == ["good", "twice"]


def test_a_task_that_kills_its_worker_is_set_aside_and_the_others_are_done(client, tmp_path):
    said: list[str] = []
    good = [task(tmp_path, f"t{n:02d}", seconds=0.1) for n in range(12)]
    poison = task(tmp_path, "poison", how="die", times=99)
    once = task(tmp_path, "once", how="die", times=1)
    outcome = run(client, tmp_path, [*good[:3], poison, once, *good[3:]], say=said.append)
    assert outcome.done == 13
    (failure,) = outcome.failed
    assert failure["key"] == "poison"
    assert "memory" in failure["error"]
    # Twice among others, twice alone.
    assert tries(tmp_path, "poison") == 4
    assert any(line.startswith("test poison: 2 workers died") for line in said)


def test_small_tasks_are_handed_out_together_and_each_has_its_receipt(client, tmp_path):
    tasks = [task(tmp_path, f"t{n:04d}") for n in range(400)]
    tasks[200] = task(tmp_path, "t0200", how="job", times=9)
    submitted = []
    submit = client.submit
    client.submit = lambda *args, **options: submitted.append(1) or submit(*args, **options)
    try:
        outcome = run(client, tmp_path, tasks)
    finally:
        del client.submit
    assert (outcome.done, [f["key"] for f in outcome.failed]) == (399, ["t0200"])
    assert len(submitted) < 200
    assert len(list((tmp_path / "out/receipts/test").iterdir())) == 399
    assert set(outcome.receipts) == {t.key for t in tasks} - {"t0200"}


def test_a_task_that_takes_too_long_is_ended_and_tried_again(client, tmp_path):
    slow = [task(tmp_path, "slow", how="hang", times=1)]
    good = [task(tmp_path, f"t{n:02d}", seconds=0.05) for n in range(8)]
    start = time.monotonic()
    outcome = run(client, tmp_path, [*slow, *good], Patience(backoff_s=0.05, task_s=3))
    assert (outcome.done, outcome.failed) == (9, [])
    outcome = run(client, tmp_path, [task(tmp_path, "ever", how="hang", times=9)], Patience(task_s=2, retries=0))
    (failure,) = outcome.failed
    assert (failure["key"], failure["tries"]) == ("ever", 1)
    assert "longer than 2 s" in failure["error"]
    assert time.monotonic() - start < 120, "nobody waited for the hour that it would have taken"


def test_a_wish_to_stop_leaves_nothing_on_the_cluster(client, tmp_path):
    start = time.monotonic()

    def tick() -> None:
        if time.monotonic() - start > 1:
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        run(client, tmp_path, [task(tmp_path, f"t{n:02d}", seconds=0.3) for n in range(100)], tick=tick)
    deadline = time.monotonic() + 20
    while any(client.processing().values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(client.processing().values())
    assert not client.futures


@pytest.mark.slow
def test_workers_that_go_and_come_lose_nothing(tmp_path):
    """As machines that are rented by the minute do; the last ones leave for good, and a local cluster is healed."""
    said: list[str] = []
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        LocalCluster(1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        began = time.monotonic()
        stage = iter(
            [
                (1, lambda: cluster.scale(0)),
                (16, lambda: cluster.scale(2)),
                (21, lambda: client.retire_workers(list(client.nthreads()))),
            ]
        )
        due = [next(stage)]

        def tick() -> None:
            if due and time.monotonic() - began > due[0][0]:
                due.pop()[1]()
                due.extend([following] if (following := next(stage, None)) else [])

        tasks = [task(tmp_path, f"t{n:02d}", seconds=0.5) for n in range(40)]
        outcome = run(client, tmp_path, tasks, replace(QUICK, heal_s=4, remind_s=1), tick=tick, say=said.append)
    assert (outcome.done, outcome.failed) == (40, [])
    assert sum("has had no worker for" in line for line in said) > 1, "whoever looks later is told, too"


@pytest.fixture
def scheduler(tmp_path) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler process of its own, without workers; its address is in ``scheduler.json``."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--no-dashboard", "--scheduler-file", str(tmp_path / "scheduler.json")]
    # It unpickles what it is handed, and so must know the tests' own work.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_cluster_that_stays_without_workers_is_an_error(scheduler, tmp_path):
    with (
        Client(scheduler_file=str(tmp_path / "scheduler.json")) as client,
        pytest.raises(ClusterError, match="has had no worker for"),
    ):
        run(client, tmp_path, [task(tmp_path, "t")], Patience(workers_s=1))


def test_a_scheduler_that_is_lost_is_an_error_that_says_how_to_go_on(scheduler, tmp_path):
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        client = Client(scheduler_file=str(tmp_path / "scheduler.json"), timeout=10)
        killing = iter([None, scheduler.kill])

        def tick() -> None:
            if act := next(killing, None):
                act()

        with pytest.raises(ClusterError, match="run again to go on"):
            run(client, tmp_path, [task(tmp_path, f"t{n}", seconds=0.5) for n in range(50)], tick=tick)
        client.close(timeout=1)
