"""What is altered in a finished output is found, and repaired to the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

import geoflow as gf
from geoflow.cli import app
from geoflow.errors import StoreError
from geoflow.jobs.estimate import worker_needs
from geoflow.jobs.flow import Flow
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.records import read_summary
from geoflow.jobs.verify import Verified, repair_output, verify_output
from geoflow.legends import Legend
from geoflow.store.receipts import Receipts, read_sealed
from geoflow.store.seal import COPIES, SEAL, read_seal
from geoflow.store.verify import Checks
from geoflow.store.zarr import grid_from_description

LABELS_ONLY = ("imagery", "classifier", "train", "predict", "generalise", "change", "evaluate", "publish")


@pytest.fixture
def copy(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the finished output that a test may damage."""
    return Path(shutil.copytree(finished[1], tmp_path / "out"))


def contents(out: Path) -> dict[str, bytes]:
    """What belongs to the result, by name; not the records and logs of single runs."""
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(("runs/", "logs/"))}


def tasks_of_files(out: Path) -> dict[str, tuple[str, str]]:
    """The task that a file, or a receipt, is of."""
    owners = {}
    for path in (out / "receipts").rglob("*.json"):
        receipt = json.loads(path.read_text())
        if "stage" in receipt:
            names = [*receipt["files"], path.relative_to(out).as_posix()]
            owners |= dict.fromkeys(names, (receipt["stage"], receipt["key"]))
    return owners


def flip(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    bit = int(rng.integers(8 * len(content)))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def damage(out: Path, flips: int, deleted: int, seed: int) -> set[str]:
    """Flip single bits of files drawn at random and delete chunks; returns the names of those that are altered."""
    rng, before = np.random.default_rng(seed), contents(out)
    drawn = [name for name, content in before.items() if content]
    for at in rng.integers(len(drawn), size=flips):
        flip(out / drawn[at], rng)
    chunks = [name for name in before if name.startswith("country.zarr/") and "/c/" in name]
    for at in rng.choice(len(chunks), deleted, replace=False):
        (out / chunks[at]).unlink()
    after = contents(out)
    return {name for name, content in before.items() if after.get(name) != content}


def missed(found: Verified, altered: set[str], owners: dict[str, tuple[str, str]]) -> list[str]:
    """Altered files that are neither named nor of a task that is to be done again."""
    named = {problem.path for problem in found.problems}
    tasks = {(problem.stage, problem.key) for problem in found.problems if problem.stage}
    return [name for name in altered if name not in named and owners.get(name) not in tasks]


def test_a_finished_run_is_good_and_sealed(finished):
    out = finished[1]
    found = verify_output(out, "threads")
    assert found.good
    assert not found.notes
    summary = json.loads((out / "summary.json").read_text())
    assert found.tasks == sum(stage["tasks"] for stage in summary["stages"].values())
    assert summary["verified"]["tasks"] == found.tasks
    chunks = [p for p in (out / "country.zarr").rglob("*") if p.is_file()]
    assert found.bytes > sum(p.stat().st_size for p in chunks)
    assert read_seal(out).complete


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_flipped_bits_and_deleted_chunks_are_all_found(copy, seed):
    owners = tasks_of_files(copy)
    altered = damage(copy, flips=300, deleted=100, seed=seed)
    assert len(altered) > 300
    found = verify_output(copy, "threads")
    assert missed(found, altered, owners) == []
    blamed = {(p.stage, p.key) for p in found.problems if p.stage}
    assert blamed <= {owners[name] for name in altered if name in owners}, "an intact task is to be done again"


def test_repair_restores_the_same_bytes(copy):
    """A handful of each kind, but no model: that is trained again in test_everything_is_repaired."""
    before = contents(copy)
    store, rng = copy / "country.zarr", np.random.default_rng(7)
    tiles = sorted((copy / "receipts/change/2018-2024").iterdir())
    flipped = [
        store / "zarr.json",
        store / "imagery/2018/zarr.json",
        store / "map/2018/level3/zarr.json",
        store / "labels/clc2018/level2/c/1/2",
        store / "labels/clc2018/y/c/0",
        store / "imagery/2024/band/zarr.json",
        copy / "patches.zarr/name/zarr.json",
        copy / "scenes/2018.json",
        copy / "generalised/1ha/2018/codes.npz",
        copy / "map.png",
        tiles[0],
    ]
    for path in flipped:
        flip(path, rng)
    deleted = [store / "map/zarr.json", store / "change/2018-2024/to_code/c/3/1", tiles[1], copy / "report.html"]
    for path in deleted:
        path.unlink()
    found = verify_output(copy, "threads")
    assert {p.path for p in found.problems} == {p.relative_to(copy).as_posix() for p in [*flipped, *deleted]}

    mended = repair_output(copy, found, "threads")
    assert mended.good, mended.problems
    assert mended.repaired == len(flipped) + len(deleted)
    after = contents(copy)
    assert set(after) == set(before)
    other = {name for name in before if before[name] != after[name]}
    assert other - {"summary.json", "report.html"} <= {n for n in before if n.startswith("receipts/")}
    summary = json.loads((copy / "summary.json").read_text())
    done = {name: stage["done"] for name, stage in summary["stages"].items() if stage["done"]}
    assert done == {"labels": 1, "merge-1ha": 1, "change": 3}, "more was done again than was bad"


def test_a_damaged_model_does_not_stop_the_run_that_trains_it_again(copy):
    job = parse_job(read_summary(copy)["config"])
    before = worker_needs(Flow(job, copy))
    flip(copy / "model/model.safetensors", np.random.default_rng(4))
    assert worker_needs(Flow(job, copy)) == before


@pytest.mark.slow
def test_everything_is_repaired(copy):
    """The model too: it is trained again, to the same weights."""
    before, altered = contents(copy), damage(copy, flips=300, deleted=100, seed=4)
    flip(copy / "model/model.safetensors", np.random.default_rng(4))
    mended = repair_output(copy, verify_output(copy, "threads"), "local")
    assert altered
    assert mended.good, mended.problems
    after = contents(copy)
    other = {name for name in before if before[name] != after[name]}
    assert other - {"summary.json", "report.html"} <= {n for n in before if n.startswith("receipts/")}


def test_the_command_tells_programs(copy):
    stray = copy / "country.zarr/map/2018/level1/c/9/9"
    stray.parent.mkdir()
    shutil.copy(stray.parent.parent / "0/0", stray)
    flip(copy / "country.zarr/map/2018/confidence/c/0/0", np.random.default_rng(0))
    command = [sys.executable, "-m", "geoflow", "verify", str(copy), "--cluster", "threads", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert not told["good"]
    assert told["problems"] == [
        {
            "path": "country.zarr/map/2018/confidence/c/0/0",
            "what": "its bytes are not those that were written",
            "stage": "predict",
            "key": "2018/r0000c0000",
        }
    ]
    assert len(told["notes"]) == 1
    assert told["notes"][0].startswith("1 file in country.zarr/map/2018/level1 of no task that has a receipt")


def test_what_is_no_output_is_refused(tmp_path):
    with pytest.raises(StoreError, match="is not the output of a run"):
        verify_output(tmp_path, "threads")


# A job of labels alone runs in a second, and has all there is to a seal.


@pytest.fixture
def labels(tiny_job: Callable[..., Path], tmp_path: Path) -> tuple[gf.Job, Path]:
    job, out = gf.load_job(tiny_job(*LABELS_ONLY, name="labels")), tmp_path / "out"
    assert gf.run(job, out, cluster="threads")["status"] == "complete"
    return job, out


def test_a_run_verifies_what_it_made_and_reads_what_it_kept_no_more(labels):
    job, out = labels
    first = json.loads((out / "summary.json").read_text())["verified"]
    assert first["tasks"] == 6 + 4  # tiles, and those of three overviews
    assert first["kept"] == 0
    assert first["bytes"] > 0
    again = gf.run(job, out, cluster="threads")["verified"]
    assert again == {"tasks": 0, "kept": 10, "files": 0, "bytes": 0}
    assert verify_output(out, "threads").good


def test_a_run_that_never_ended_is_told_and_the_next_one_verifies_what_it_left(labels):
    job, out = labels
    read_seal(out).reopened().write(out)
    assert [p.what for p in verify_output(out, "threads").problems] == ["the last run did not come to its end"]
    (out / SEAL).unlink()
    chunk = out / "country.zarr/labels/clc2018/level3/c/0/0"
    flip(chunk, np.random.default_rng(0))
    summary = gf.run(job, out, cluster="threads")
    assert summary["status"] == "failed", "its size is right, its bytes are not"
    assert "level3/c/0/0 its bytes are not those that were written" in summary["failed"][0]["error"]
    assert gf.run(job, out, cluster="threads")["status"] == "complete"
    assert verify_output(out, "threads").good


def test_metadata_without_a_copy_are_made_anew_and_no_chunk_is_lost(labels):
    out = labels[1]
    before = contents(out)
    group = out / "country.zarr/labels/clc2018"
    for path in (group / "level1/zarr.json", group / "zarr.json", group / "x/c/0", out / "country.zarr/zarr.json"):
        flip(path, np.random.default_rng(3))
    (out / COPIES).write_bytes(b"no archive")
    mended = repair_output(out, verify_output(out, "threads"), "threads")
    assert mended.good, mended.problems
    after = contents(out)
    assert {name for name in before if before[name] != after.get(name)} <= {"summary.json", "report.html", SEAL}


def test_pixels_that_do_not_fit_their_receipt_are_found(labels):
    """Whole files with right checksums, of a task that wrote something else than it says."""
    out = labels[1]
    receipts, seal = Receipts(out / "receipts"), read_seal(out)
    checks = Checks(out, grid_from_description(seal.grid), Legend.from_dict(seal.legend))
    key = "clc2018/r0000c0000"
    receipt = receipts.read("labels", key)
    assert not checks.receipt("labels", key).problems

    def told(**changes: object) -> list[str]:
        content = {**receipt, **changes}
        files = [out / name for name in receipt["files"]]
        receipts.write("labels", key, receipt["id"], content, files)
        return [problem.what for problem in checks.receipt("labels", key).problems]

    nodata = {**receipt["nodata_px"], "level1": receipt["nodata_px"]["level1"] - 1}
    assert len(told(nodata_px=nodata)) == 1
    counts = {code: pixels + (at == 0) for at, (code, pixels) in enumerate(receipt["counts"].items())}
    assert told(counts=counts) == ["level3 has other numbers of pixels by class than the receipt"]
    level1 = zarr.open_array(out / "country.zarr/labels/clc2018/level1", mode="r+")
    right = np.asarray(level1[:])
    level1[:] = np.where(right == 3, 1, right).astype(right.dtype)
    assert any("level1 is not the parent of level3" in what for what in told())


def test_every_bit_of_a_receipt_counts(labels):
    out = labels[1]
    path = out / "receipts/labels/clc2018/r0000c0000.json"
    content = path.read_bytes()
    assert read_sealed(path) is not None
    for bit in range(8 * len(content)):
        altered = bytearray(content)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        assert read_sealed(path) is None, f"bit {bit}: {content[bit // 8 - 5 : bit // 8 + 5]!r}"


def test_the_command_tells_people_and_repairs(labels):
    out = labels[1]
    ask = ["verify", str(out), "--cluster", "threads"]
    flip(out / "country.zarr/labels/clc2018/level2/c/0/1", np.random.default_rng(0))
    bad = CliRunner().invoke(app, ask)
    assert bad.exit_code == 1
    assert "level2/c/0/1 its bytes are not those that were written (labels clc2018/r0000c0000)" in bad.stdout
    assert "1 bad" in bad.stdout
    assert "--repair" in bad.stdout
    mended = CliRunner().invoke(app, [*ask, "--repair"])
    assert mended.exit_code == 0
    assert "repaired 1" in mended.stdout
    good = CliRunner().invoke(app, ask)
    assert good.exit_code == 0
    assert "good 10 tasks" in good.stdout
