"""The store as commits of an icechunk repository, with the real icechunk; in a bucket through moto's server."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import icechunk
import pytest
import xarray as xr
import yaml
from s3_server import s3_bucket

import geoflow as gf
from geoflow.errors import JobError, StoreError
from geoflow.jobs.jobfile import parse_job
from geoflow.places import place
from geoflow.store.receipts import measure
from geoflow.store.repository import _open, check_repository, commit_output
from geoflow.store.seal import read_seal


@pytest.fixture
def out(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """A small sealed output: a part of the finished store, which a test may alter."""
    there, out = finished[1], tmp_path / "out"
    shutil.copytree(there / "receipts", out / "receipts")
    shutil.copytree(there / "country.zarr", out / "country.zarr", ignore=shutil.ignore_patterns("imagery", "overviews"))
    return out


def seal_again(out: Path) -> None:
    """As a run does that altered the store."""
    seal = read_seal(out)
    files = {f"country.zarr/{name}": measure(out / "country.zarr" / name) for name in stored(out)}
    dataclasses.replace(seal, files=files).write(out)


def stored(out: Path) -> dict[str, bytes]:
    root = out / "country.zarr"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def committed(repository: Path, **version: Any) -> dict[str, bytes]:
    """Every key of a version with its bytes."""
    from zarr.core.buffer import default_buffer_prototype

    store = _open(repository).readonly_session(**(version or {"branch": "main"})).store

    async def read() -> dict[str, bytes]:
        found = {}
        async for key in store.list():
            found[key] = (await store.get(key, default_buffer_prototype())).to_bytes()
        return found

    return asyncio.run(read())


def history(repository: Path) -> list[Any]:
    return list(_open(repository).ancestry(branch="main"))[:-1]  # the last is the empty one that icechunk makes


def test_two_commits_hold_two_versions_and_an_equal_run_makes_none(out, tmp_path):
    repository = tmp_path / "repository"
    first = commit_output(out, repository, "run-1", "tiny")
    before = stored(out)
    assert first.written == len(before) > 200
    assert committed(repository) == before
    assert commit_output(out, repository, "run-2", "tiny") is None
    seal_again(out)  # other words about the same bytes
    assert commit_output(out, repository, "run-2", "tiny") is None

    chunk = next(name for name in sorted(before) if name.startswith("map/2018/level3/c/"))
    other = next(name for name in sorted(before) if name.startswith("map/2024/level3/c/"))
    (out / "country.zarr" / chunk).write_bytes(before[other])
    (out / "country.zarr" / other).unlink()
    shutil.rmtree(out / "country.zarr/generalised")
    seal_again(out)
    second = commit_output(out, repository, "run-3", "tiny")
    assert second.written == 1
    assert second.removed == 2
    assert committed(repository) == stored(out)
    assert committed(repository, snapshot_id=first.snapshot) == before
    newest, oldest = history(repository)
    assert (newest.id, oldest.id) == (second.snapshot, first.snapshot)
    assert newest.message == "tiny: run run-3"
    assert newest.metadata["run"] == "run-3"
    assert newest.metadata["geoflow"] == gf.__version__
    assert newest.metadata["seal"] == json.loads((out / "receipts/seal.json").read_text())["checksum"]


def test_xarray_reads_the_same(out, tmp_path):
    commit_output(out, tmp_path / "repository", "run-1", "tiny")
    store = _open(tmp_path / "repository").readonly_session("main").store
    how = {"engine": "zarr", "zarr_format": 3, "consolidated": False, "group": "map/2018", "decode_coords": "all"}
    there, here = (xr.open_dataset(target, **how).load() for target in (store, out / "country.zarr"))
    xr.testing.assert_identical(there, here)
    assert here["level3"].max() > 100


def test_an_array_on_another_grid_keeps_no_old_chunk(out, tmp_path):
    import numpy as np
    import zarr

    array = out / "country.zarr/map/2018/level3"
    commit_output(out, tmp_path / "repository", "run-1", "tiny")
    shutil.rmtree(array)
    zarr.create_array(array, shape=(64, 64), chunks=(64, 64), dtype="uint16")[:] = np.uint16(311)
    seal_again(out)
    commit_output(out, tmp_path / "repository", "run-2", "tiny")
    assert committed(tmp_path / "repository") == stored(out)


def test_what_is_killed_leaves_the_version_before(out, tmp_path):
    repository = tmp_path / "repository"
    first = commit_output(out, repository, "run-1", "tiny")
    before = stored(out)
    for name in before:
        if name.startswith("change/") and "/c/" in name:
            (out / "country.zarr" / name).write_bytes(before[name] + b"more")
    seal_again(out)
    code = """
import os, signal, sys
from pathlib import Path
from geoflow.store import repository
calls = []
real = repository._Mirror._set
async def dying(self, key, content):
    await real(self, key, content)
    calls.append(key)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
repository._Mirror._set = dying
repository.commit_output(Path(sys.argv[1]), Path(sys.argv[2]), "run-2", "tiny")
"""
    done = subprocess.run([sys.executable, "-c", code, str(out), str(repository)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [one.id for one in history(repository)] == [first.snapshot]
    assert committed(repository) == before
    assert commit_output(out, repository, "run-3", "tiny").written > 5
    assert committed(repository) == stored(out) != before


def test_an_output_that_is_not_sealed_or_a_part_is_not_committed(out, tmp_path):
    read_seal(out).reopened().write(out)
    with pytest.raises(StoreError, match="not the output of a complete run"):
        commit_output(out, tmp_path / "repository", "run-1", "tiny")
    dataclasses.replace(read_seal(out), complete=True, limit=2).write(out)
    with pytest.raises(StoreError, match="only the first 2 tiles"):
        commit_output(out, tmp_path / "repository", "run-1", "tiny")
    assert not (tmp_path / "repository").exists()


def test_mistakes_are_told_before_work(finished, tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("mine")
    values = yaml.safe_load(finished[0].read_text())

    def run(repository: Path) -> None:
        job = parse_job({**values, "publish": {**values["publish"], "icechunk": str(repository)}})
        gf.run(job, tmp_path / "new", cluster="threads")

    with pytest.raises(JobError, match=r"publish.icechunk: .*taken is not empty, and no icechunk repository"):
        run(taken)
    with pytest.raises(JobError, match=r"publish.icechunk: .*letter.txt is a file"):
        run(taken / "letter.txt")
    with pytest.raises(JobError, match=r"publish.icechunk: .*lie in one another"):
        run(tmp_path / "new/history")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StoreError, match=r"needs the package icechunk: pip install"):
        check_repository(tmp_path / "r", tmp_path / "o")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as name:
        yield name


def test_a_repository_in_a_bucket(out, bucket):
    for name in ("generalised", "labels"):
        shutil.rmtree(out / "country.zarr" / name)
    repository = place(f"s3://{bucket}/history")
    first = commit_output(out, repository, "run-1", "tiny")
    assert committed(repository) == stored(out)
    assert commit_output(out, repository, "run-2", "tiny") is None
    assert [one.id for one in history(repository)] == [first.snapshot]
    with pytest.raises(StoreError, match="no-such-bucket/x could not be written"):
        commit_output(out, place("s3://no-such-bucket/x"), "run-1", "tiny")


def test_a_run_commits_when_it_is_complete(finished, tmp_path):
    """Nothing is left to do in a copy of the finished run but the commit."""
    out, repository = tmp_path / "out", tmp_path / "history"
    shutil.copytree(finished[1], out)
    values = yaml.safe_load(finished[0].read_text())
    job = parse_job({**values, "publish": {**values["publish"], "icechunk": str(repository)}})
    summary = gf.run(job, out, cluster="threads")
    assert sum(stage["done"] for stage in summary["stages"].values()) == 0
    assert committed(repository) == stored(out)

    # A repository that cannot be written: the output is complete all the same, and the next run makes the commit.
    refs, away = repository / "refs", tmp_path / "refs"
    refs.rename(away)
    refs.write_bytes(b"in the way")
    with pytest.raises(StoreError, match=r"out is complete, and not committed: .*; run again to commit it"):
        gf.run(job, out, cluster="threads")
    seal = read_seal(out)
    assert seal is not None
    assert seal.complete
    refs.unlink()
    away.rename(refs)
    gf.run(job, out, cluster="threads")
    assert len(history(repository)) == 1
    assert isinstance(history(repository)[0], icechunk.SnapshotInfo)
