"""Faults on purpose: whole jobs whose driver, workers, memory and disk fail. Minutes long: make test-faults.

What each comes to is in docs/reliability.md; the figures are printed (pytest -s) and asserted only where they do
not depend on the machine's speed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from distributed import Client, LocalCluster
from distributed.chaos import KillWorker
from runner_work import Note

from geoflow.jobs.clusters import Needs, connect
from geoflow.jobs.lease import holder_of
from geoflow.jobs.outcome import Outcome
from geoflow.jobs.patience import Patience
from geoflow.jobs.runner import TOPIC, run_tasks
from geoflow.jobs.tasks import Task
from geoflow.store.receipts import Receipts, digest

pytestmark = pytest.mark.faults
SEED = 20
KILLS = 20


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file of the store."""
    store = folder / "country.zarr"
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def start(job: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "geoflow", "run", str(job), "--out", str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(job: Path, out: Path, *more: str) -> float:
    """Run to the end; seconds that it took."""
    began = time.monotonic()
    with start(job, out, *more) as run:
        told = run.communicate()[0]
    assert run.returncode == 0, told
    return time.monotonic() - began


def receipts_of(out: Path) -> dict[str, int]:
    """When the receipt of each task was written; the seal, which every run writes anew, is of none."""
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in (out / "receipts").glob("*/**/*.json")}


def print_figures(name: str, **figures: object) -> None:
    print(f"\nFIGURES {name}: {json.dumps(figures)}")


@pytest.fixture(scope="module")
def undisturbed(tiny_job: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """A whole job, its output, and the seconds that it took when nothing failed.

    The tiny country's; or another one: ``GEOFLOW_FAULTS_JOB=jobs/quickstart.yaml make test-faults``.
    """
    given = os.environ.get("GEOFLOW_FAULTS_JOB")
    job = Path(given).resolve() if given else tiny_job(name="faults")
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return job, out, finish(job, out)


def test_a_driver_that_is_killed_twenty_times(undisturbed, tmp_path):
    """At moments over the whole job: an output that is complete before the last kill is held up, and another begun."""
    job, reference, seconds = undisturbed
    chance, kills, outputs, done_again = random.Random(SEED), 0, 1, 0
    began = time.monotonic()
    while kills < KILLS:
        out = tmp_path / f"out-{outputs}"
        before = receipts_of(out) if out.exists() else {}
        with start(job, out) as run:
            try:
                told = run.communicate(timeout=chance.uniform(1.0, max(40.0, 0.15 * seconds)))[0]
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                kills += 1
            else:
                assert run.returncode == 0, told
                assert content(out) == content(reference)
                outputs += 1
        after = receipts_of(out) if out.exists() else {}
        done_again += sum(after.get(name) != written for name, written in before.items())
    out = tmp_path / f"out-{outputs}"
    finish(job, out)
    spent = round(time.monotonic() - began)
    print_figures("driver killed", kills=kills, outputs=outputs, done_again=done_again, seconds=spent)
    assert done_again == 0, "a task that had its receipt was done again"
    assert content(out) == content(reference)


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[tuple[str, Client]]:
    """Two workers of a scheduler that lets a task take down any number of them: here it is never the task's fault.

    Dask gives a worker up for good that dies while it starts. Whoever owns a cluster replaces such workers (SLURM's
    adaptive jobs do, and Kubernetes); a run that is only a client of it cannot.
    """
    ended = threading.Event()

    def replace_workers(cluster: LocalCluster) -> None:
        while not ended.wait(5):
            cluster.scale(2)

    # As `geoflow run` starts one, but one that the run does not own.
    with connect("local", Needs(nets=True)) as client:
        client.run_on_scheduler(_allow_failures)
        owner = threading.Thread(target=replace_workers, args=[client.cluster])
        owner.start()
        try:
            yield client.scheduler.address, client
        finally:
            ended.set()
            owner.join()


def _allow_failures(dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = 1000


def test_workers_that_are_killed_during_every_third_task(undisturbed, own_cluster, tmp_path):
    job, reference, seconds = undisturbed
    address, client = own_cluster
    chance, seen, killed = random.Random(SEED), set(), []

    def on_event(event: tuple[float, dict]) -> None:
        told = event[1]
        if told["event"] == "began" and (name := (told["key"], told["place"])) not in seen:
            seen.add(name)
            if chance.random() < 0.3:
                killed.append(name)
                threading.Timer(chance.uniform(0, 0.5), kill, [told["worker"]]).start()

    def kill(worker: str) -> None:
        with contextlib.suppress(Exception):
            pid = client.run(os.getpid, workers=[worker])[worker]
            os.kill(pid, signal.SIGKILL)

    client.subscribe_topic(TOPIC, on_event)
    out = tmp_path / "out"
    took = finish(job, out, "--cluster", address, "--retries", "20")
    client.unsubscribe_topic(TOPIC)
    print_figures("workers killed", tasks=len(seen), kills=len(killed), seconds=took, undisturbed=seconds)
    assert len(killed) > 0.15 * len(seen)
    assert content(out) == content(reference)


def test_workers_that_end_by_chance(undisturbed, own_cluster, tmp_path):
    job, reference, seconds = undisturbed
    address, client = own_cluster
    client.register_plugin(KillWorker(delay="30 s", mode="sys.exit"))
    took = finish(job, tmp_path / "out", "--cluster", address, "--retries", "20")
    print_figures("distributed.chaos.KillWorker", delay_s=30, seconds=took, undisturbed=seconds)
    assert content(tmp_path / "out") == content(reference)


def test_a_tile_that_always_needs_more_memory_than_there_is(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    names = [f"t{n:02d}" for n in range(30)]
    tasks = [Task("test", n, digest(n), Note(out, n, "eat", 99 if n == "t07" else 0, 0.1)) for n in names]
    began = time.monotonic()
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            2, threads_per_worker=1, memory_limit="400MB", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        outcome = run_tasks(client, tasks, out, Outcome(), patience=Patience(backoff_s=0.1))
    print_figures("one tile out of memory", done=outcome.done, seconds=time.monotonic() - began)
    assert outcome.done == 29
    (failure,) = outcome.failed
    assert failure["key"] == "t07"
    assert "memory" in failure["error"]
    assert Receipts(out / "receipts").read("test", "t07") is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many megabytes, which can be made larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(megabytes: int) -> Path:
        how = f"{'remount,' if os.path.ismount(folder) else ''}size={megabytes}m"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        return folder

    yield size
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_in_the_middle(undisturbed, small_disk, tmp_path, monkeypatch):
    job, reference, _ = undisturbed
    out = small_disk(512) / "out"
    finish(job, out, "--limit", "1")
    shutil.rmtree(out)
    # The check before a run would refuse a disk this small: the space goes while the run is at work.
    small_disk(512)
    run = start(job, out)
    while not list((out / "country.zarr").glob("imagery/2018/reflectance/c/*")):
        assert run.poll() is None
        time.sleep(0.05)
    taken = out.parent / "taken"
    with contextlib.suppress(OSError), taken.open("wb") as file:
        while True:
            file.write(bytes(2**16))
    told = run.communicate()[0]
    assert run.returncode == 1, told
    assert "No space left on device" in told
    assert "Traceback" not in told
    taken.unlink()
    finish(job, out)
    assert content(out) == content(reference)


def test_two_runs_at_once_on_one_output(undisturbed, tmp_path):
    job, reference, _ = undisturbed
    runs = [start(job, tmp_path / "out") for _ in range(2)]
    told = [run.communicate()[0] for run in runs]
    codes = [run.returncode for run in runs]
    if sorted(codes) == [0, 0]:  # the second came so late that all was done
        assert any(" kept" in text for text in told)
    else:
        assert sorted(codes) == [0, 2], told
        assert "is being written by run" in told[codes.index(2)]
    assert holder_of(tmp_path / "out") is None
    assert content(tmp_path / "out") == content(reference)


def test_the_whole_job_twice_gives_the_same_bytes(undisturbed, tmp_path):
    """Without which the others could not be told from luck."""
    job, reference, _ = undisturbed
    values = yaml.safe_load(job.read_text())
    assert values["seed"] == 3
    finish(job, tmp_path / "out")
    assert content(tmp_path / "out") == content(reference)
