"""Input and output in an object store: a real server on loopback, and the same pixels as on a local disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3_server import SECRET, s3_bucket, upload
from typer.testing import CliRunner

import geoflow as gf
from geoflow.cli import app
from geoflow.errors import JobError, StoreError
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.verify import repair_output, verify_output
from geoflow.places import (
    CACHE_DAYS,
    entries,
    files_below,
    local_copy,
    local_file,
    place,
    read_bytes,
    remove,
    write_bytes,
)
from geoflow.store.receipts import Receipts


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with s3_bucket():
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for copies of remote files."""
    from geoflow import places

    monkeypatch.setenv("GEOFLOW_CACHE", str(tmp_path / "cache"))
    places._cache.cache_clear()
    yield tmp_path / "cache"
    places._cache.cache_clear()


def objects(out: Path) -> dict[str, bytes]:
    found = {str(path).removeprefix(f"{out}/"): read_bytes(path) for path, _ in files_below(out)}
    return {name: content for name, content in found.items() if not of_a_run(name)}


def of_a_run(name: str) -> bool:
    """Records of single runs, named after the moment; curves of trainings and the lock, which only a disk has."""
    return name.startswith(("runs/", "logs/")) or name.endswith(".lock")


def chunks(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in contents.items() if name.startswith("country.zarr/") and "/c/" in name}


def moved(job: Path, country: Path, address: str) -> dict[str, Any]:
    """The values of a job, with its inputs at an address."""
    values: dict[str, Any] = yaml.safe_load(job.read_text().replace(str(country), address))
    return values


def files(out: Path) -> dict[str, bytes]:
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if not of_a_run(name)}


@pytest.mark.parametrize("maps", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_on_s3_makes_the_same_bytes_and_resumes_and_is_verified(
    maps: bool,
    finished: tuple[Path, Path],
    tiny_country: Path,
    tiny_job: Callable[..., Path],
    tmp_path: Path,
    server: None,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scenes, labels, border and model come from a bucket, and everything that is made goes into another."""
    monkeypatch.chdir(tmp_path)
    address = upload(tiny_country, "input", "country")
    model = upload(finished[1] / "model", "input", "model")
    without = ("classifier", "train", "generalise", "change", "evaluate")
    written = tiny_job(*without, *(() if maps else ("predict", "publish")), name="s3")

    def job(values: dict[str, Any], model: str) -> gf.Job:
        if maps:
            values["predict"] = {"model": model, "engine": "torch"}
        del values["imagery"]["epochs"]["2024"]
        return parse_job(values)

    on_disk = job(yaml.safe_load(written.read_text()), str(finished[1] / "model"))
    assert gf.run(on_disk, tmp_path / "out", cluster="threads", limit=1)["status"] == "complete"
    there = files(tmp_path / "out")

    remote, out = job(moved(written, tiny_country, address), model), place(f"s3://output/run-{maps}")
    summary = gf.run(remote, out, cluster="threads", limit=1)
    assert summary["status"] == "complete"
    assert summary["config"]["labels"]["source"] == f"{address}/corine/clc2018.gpkg"
    made = objects(out)
    assert set(made) == set(there), "no scratch, no draft, and nothing is missing"
    assert len(chunks(made)) > 50
    assert chunks(made) == chunks(there)
    assert not [name for name, content in made.items() if SECRET.encode() in content]
    assert {p.name for p in tmp_path.iterdir()} <= {"out", "cache"}, "an address was taken for a local path"
    assert gf.open(str(out))["labels/clc2018/level3"].rio.crs == "EPSG:3035"

    again = gf.run(remote, str(out), cluster="threads", limit=1)
    assert {name: stage["done"] for name, stage in again["stages"].items() if stage["done"]} == {}

    lost, altered = "country.zarr/labels/clc2018/level1/c/0/0", "country.zarr/labels/clc2018/zarr.json"
    remove(out / lost)
    write_bytes(out / altered, made[altered].replace(b"corine", b"corinx"))
    found = verify_output(str(out), "threads")
    assert [(p.path, p.what) for p in found.problems] == [
        (altered, "its bytes are not those that were written"),
        (lost, "is missing"),
    ]
    mended = repair_output(out, found, "threads")
    assert mended.good, mended.problems
    assert mended.notes == []
    assert {name: read_bytes(out / name) for name in (lost, altered)} == {name: made[name] for name in (lost, altered)}
    shown = CliRunner().invoke(app, ["status", str(out)])
    assert shown.exit_code == 0, shown.output
    assert f"{out}/report.html" in shown.output.replace("\n", "")


@pytest.mark.slow
def test_the_whole_job_makes_the_same_bytes(
    finished: tuple[Path, Path], tiny_country: Path, tiny_job: Callable[..., Path], server: None, cache: Path
) -> None:
    """Patches, classifier and model are made in the bucket too, and change as GeoPackage, GeoParquet and table."""
    address = upload(tiny_country, "input", "country")
    values = moved(tiny_job(name="quickstart"), tiny_country, address)
    values["classifier"]["source"] = str(tiny_country / "bigearthnet")
    out = place("s3://output/whole")
    assert gf.run(parse_job(values), out, cluster="local")["status"] == "complete"
    made = objects(out)
    there = files(finished[1])
    assert set(made) == set(there)
    assert chunks(made) == chunks(there)
    for name in ("model/model.safetensors", "classifier/model.safetensors", "change/2018-2024-transitions.csv"):
        assert made[name] == there[name]


def test_places_are_local_paths_or_buckets():
    assert place("out/x") == Path("out/x")
    with pytest.raises(StoreError, match="must start with s3://"):
        place("gs://bucket/x")
    with pytest.raises(StoreError, match="names no bucket"):
        place("s3://")
    with pytest.raises(StoreError, match="credentials") as told:
        place(f"s3://key:{SECRET}@bucket/x")
    assert SECRET not in str(told.value)


def test_a_place_that_travels_holds_no_credentials(server):
    import pickle

    held = pickle.dumps(place("s3://output/x"))
    assert SECRET.encode() not in held
    assert b"planted-key" not in held
    assert str(pickle.loads(held)) == "s3://output/x"


def test_files_are_whole_or_not_there(server):
    """A file that is made locally is uploaded when it is done, and not when making it failed."""
    target = place("s3://output/whole-or-not/map.png")

    def fail() -> None:
        with local_file(target) as file:
            file.write_bytes(b"half")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert not target.exists()
    with local_file(target) as file:
        file.write_bytes(b"whole")
    assert read_bytes(target) == b"whole"
    assert [p.name for p in entries(target.parent)[1]] == ["map.png"]


def test_what_others_write_is_seen_at_once(server):
    """Listings are not kept: a driver must see what workers wrote a moment ago."""
    import subprocess
    import sys

    folder = place("s3://output/seen")
    write_bytes(folder / "a", b"1")
    assert [size for _, size in files_below(folder)] == [1]
    code = "from geoflow.places import *; write_bytes(place('s3://output/seen/b'), b'22')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [(p.name, size) for p, size in files_below(folder)] == [("a", 1), ("b", 2)]
    assert (folder / "b").exists()


def test_copies_are_made_once_for_each_content(server, cache):
    source = place("s3://output/copied/file.txt")
    write_bytes(source, b"first")
    first = local_copy(source)
    assert first.read_bytes() == b"first"
    assert first.name == "file.txt"
    assert local_copy(source) == first
    write_bytes(source, b"other")
    assert local_copy(source).read_bytes() == b"other"
    assert first.read_bytes() == b"first"
    with pytest.raises(FileNotFoundError, match="nothing"):
        local_copy(place("s3://output/copied/none"))


def test_copies_that_nobody_asks_for_are_forgotten(server, cache):
    source, another = place("s3://output/old/file.txt"), place("s3://output/old/another.txt")
    write_bytes(source, b"used")
    write_bytes(another, b"not used")
    used, unused = local_copy(source), local_copy(another)
    long_ago = time.time() - (CACHE_DAYS + 1) * 86400
    for copy in (used, unused):
        os.utime(copy.parent, (long_ago, long_ago))
    (used.parent.parent / "mine").mkdir()
    os.utime(used.parent.parent / "mine", (long_ago, long_ago))
    assert local_copy(source) == used
    write_bytes(source, b"a third copy is made")
    local_copy(source)
    assert used.exists()
    assert not unused.exists()
    assert (used.parent.parent / "mine").exists(), "a folder that is no copy, where GEOFLOW_CACHE is shared"
    assert local_copy(another).read_bytes() == b"not used"


def test_a_shapefile_brings_the_files_beside_it(server, cache):
    for name in ("zones.shp", "zones.dbf", "zones.prj", "other.shp"):
        write_bytes(place(f"s3://output/shapes/{name}"), name.encode())
    copy = local_copy(place("s3://output/shapes/zones.shp"))
    assert sorted(p.name for p in copy.parent.iterdir()) == ["zones.dbf", "zones.prj", "zones.shp"]


def test_receipts_are_read_many_at_once_and_sizes_listed(server):
    root = place("s3://output/receipted")
    receipts = Receipts(root / "receipts")
    for tile in range(5):
        chunk = root / f"country.zarr/map/level1/c/0/{tile}"
        write_bytes(chunk, b"x" * tile)
        receipts.write("predict", f"t{tile}", f"id{tile}", {}, [chunk])
    write_bytes(root / "country.zarr/map/level1/c/0/3", b"shorter or longer")
    remove(root / "country.zarr/map/level1/c/0/4")
    wanted = [("predict", f"t{tile}", "id2" if tile == 1 else f"id{tile}") for tile in range(6)]
    found = receipts.all_valid(wanted)
    assert [r is not None for r in found] == [True, False, True, False, False, False]


def test_patches_and_models_may_lie_there(server, cache, tiny_country, finished):
    from geoflow.jobs.patchingest import ingest_patches
    from geoflow.modelfile import save_model

    made = ingest_patches(tiny_country / "bigearthnet", "s3://output/patches.zarr", cluster="threads")
    assert made.read == 12
    assert gf.open_patches("s3://output/patches.zarr")["cube"].shape[0] == 12
    loaded = gf.load_model(finished[1] / "model")
    assert save_model("s3://output/model", loaded.trained) == loaded.sha256
    remote = gf.load_model("s3://output/model")
    assert remote.sha256 == loaded.sha256
    assert remote.ref.path == "s3://output/model", "workers have no copy of this machine's"


def test_mistakes_are_told_before_work(server, tiny_job, tiny_country):
    written = tiny_job("classifier", "train", "predict", "generalise", "change", "evaluate")
    with pytest.raises(JobError, match=r"area.file: there is no s3://no/x/border.gpkg"):
        gf.run(parse_job(moved(written, tiny_country, "s3://no/x")), "s3://output/x", cluster="threads")
    with pytest.raises(JobError, match=r"--out s3://no-such-bucket/x: cannot be written to"):
        gf.run(gf.load_job(written), "s3://no-such-bucket/x", cluster="threads")
    values = moved(written, tiny_country, "gs://bucket")
    with pytest.raises(JobError, match=r"area.file: gs://bucket/border.gpkg is neither a local path"):
        parse_job(values)


def test_a_folder_of_patches_there_is_refused(server, cache, tiny_job, tiny_country):
    address = upload(tiny_country, "input", "country")
    values = moved(tiny_job("train", "predict", "generalise", "change", "evaluate"), tiny_country, address)
    with pytest.raises(JobError, match=r"classifier.source: s3://input/country/bigearthnet is no store of patches"):
        gf.run(parse_job(values), "s3://output/patches-refused", cluster="threads")
