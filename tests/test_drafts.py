"""What processes that were killed left half-written is gone when a run is complete, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import geoflow as gf
from geoflow.jobs.records import records_of
from geoflow.store.drafts import remove_drafts

OF_A_RUN = (
    "country.zarr/map/2018/level1/c/2/0.0239ff8a0543482d959d16ed1fc25dc0.partial",
    "country.zarr/map/2018/level1/.zarr.json.41-7.tmp",
    "receipts/labels/.r0000c0000.json.41-7.tmp",
    "change/.2018-2024-41.gpkg",
    ".model-x7ab3/weights.safetensors",
    ".patches.zarr.41.tmp/zarr.json",
)
OF_OTHERS = (
    "country.zarr/map/2018/level1/c/2/0",
    "country.zarr/map/2018/level1/zarr.json",
    "change/2018-2024.gpkg",
    "export/.map-2018.41-7.tif",  # by an export that is at work
    ".lease.lock",
    "a.partial",
    "model/weights.safetensors",
)


def write(out: Path, *names: str) -> None:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"\0")


def test_drafts_are_told_from_everything_else(tmp_path):
    write(tmp_path, *OF_A_RUN, *OF_OTHERS)
    removed = remove_drafts(tmp_path, ["country.zarr", "receipts", "change", "model", "patches.zarr", "none"])
    of_a_run = {name.partition("/")[0] if name.startswith(".") else name for name in OF_A_RUN}
    assert removed == sorted(of_a_run)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(OF_OTHERS)


def test_a_run_that_completes_leaves_no_drafts(tiny_job, tmp_path):
    job = gf.load_job(tiny_job("imagery", "classifier", "train", "predict", "generalise", "change", "evaluate"))
    assert gf.run(job, tmp_path, cluster="threads", limit=1)["status"] == "complete"
    drafts = [name.replace("map/2018", "labels/clc2018") for name in OF_A_RUN[:3]]
    write(tmp_path, *drafts, *OF_OTHERS[3:5])
    assert gf.run(job, tmp_path, cluster="threads")["status"] == "complete"
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert not set(left) & set(drafts)
    assert set(OF_OTHERS[3:5]) <= set(left)
    news = records_of(tmp_path)[-1].content["news"]
    assert any("3 drafts" in line for line in news)
