"""BigEarthNet as one store: pixels, labels, splits, what is skipped, and what a kill leaves."""

from __future__ import annotations

import bz2
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.transform import from_origin
from test_bigearthnet import make_patch, name, native

import geoflow as gf
from geoflow.cli import main
from geoflow.errors import LabelError
from geoflow.inputs import BANDS, NODATA
from geoflow.jobs.patchingest import ingest_patches
from geoflow.jobs.patchreport import dataset_statistics
from geoflow.labels.bigearthnet import NATIVE_PX, read_patch
from geoflow.labels.patchlabels import UNKNOWN, UNLABELLED
from geoflow.labels.patchplan import PatchOptions, plan_patches
from geoflow.labels.patchstore import create_store, read_store
from geoflow.labels.patchtiff import Place, _parse, enlarge, read_raster
from geoflow.labels.splits import TRAIN, VALIDATION, squares_split
from geoflow.legends import legend

SCENE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
SMALL = PatchOptions(chunk=3)


def make_v2(root: Path, number: int, codes: tuple[int, ...] = (211, 122, 999), seed: int = 0) -> str:
    """A patch of version 2 with its reference map; no table."""
    patch = f"{SCENE}_{number}_43"
    make_patch(root / "BigEarthNet-S2" / SCENE, patch, seed=seed)
    (root / "BigEarthNet-S2" / SCENE / patch / f"{patch}_labels_metadata.json").unlink()
    values = np.random.default_rng(seed).choice(codes, (120, 120)).astype(np.uint16)
    folder = root / "Reference_Maps" / SCENE / patch
    folder.mkdir(parents=True)
    place = {"crs": "EPSG:32633", "transform": from_origin(600_000, 5_000_000, 10, 10)}
    path = folder / f"{patch}_reference_map.tif"
    with rasterio.open(
        path, "w", "GTiff", 120, 120, 1, dtype="uint16", compress="deflate", predictor=2, **place
    ) as dst:
        dst.write(values, 1)
    return patch


def make_table(path: Path, rows: list[dict]) -> Path:
    usual = {"labels": ["Arable land"], "split": "train", "country": "Austria", "s1_name": "", "s2v1_name": ""}
    usual |= {"contains_seasonal_snow": False, "contains_cloud_or_shadow": False}
    pq.write_table(pa.Table.from_pylist([{**usual, **row} for row in rows]), path)
    return path


def opened(path: Path) -> xr.Dataset:
    return xr.open_zarr(path).load()


def by_name(data: xr.Dataset) -> dict[str, xr.Dataset]:
    return {str(patch): data.isel(patch=i) for i, patch in enumerate(data["name"].values)}


def held(patch: xr.Dataset, scheme: str) -> list[int]:
    return patch[f"{scheme}_code"].values[patch[f"label_{scheme}"].values == 1].tolist()


def resampled(folder: Path, band: str) -> np.ndarray:
    """By rasterio, as anyone would."""
    with rasterio.open(folder / f"{folder.name}_{band}.tif") as src:
        return src.read(1, out_shape=(120, 120), resampling=Resampling.bilinear)


# --- reading TIFFs --------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.sampled_from([2, 3, 6]), st.integers(0, 2**32 - 1), st.sampled_from([3, 400, 65536]))
def test_bands_are_enlarged_as_gdal_does_it_to_the_last_bit(factor, seed, top):
    values = np.random.default_rng(seed).integers(0, top, (20, 20)).astype(np.uint16)
    with MemoryFile() as memory:
        place = {"crs": "EPSG:32633", "transform": from_origin(0, 0, 10, 10)}
        with memory.open(driver="GTiff", width=20, height=20, count=1, dtype="uint16", **place) as dst:
            dst.write(values, 1)
        with memory.open() as src:
            expected = src.read(1, out_shape=(20 * factor, 20 * factor), resampling=Resampling.bilinear)
    np.testing.assert_array_equal(enlarge(values, factor), expected)
    np.testing.assert_array_equal(enlarge(np.stack([values, values[::-1]]), factor)[0], expected)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"compress": "deflate"}, True),
        ({"compress": "deflate", "predictor": 2}, True),
        ({"nodata": 0}, True),
        ({"compress": "lzw"}, False),
        ({"compress": "zstd", "predictor": 2}, False),
        ({"tiled": True, "blockxsize": 16, "blockysize": 16}, False),
        ({"ENDIANNESS": "BIG"}, False),
        ({"BIGTIFF": "YES"}, False),
        ({"crs": None}, False),
    ],
    ids=str,
)
def test_any_tiff_is_read_as_rasterio_reads_it(tmp_path, options, plain):
    values = np.random.default_rng(1).integers(0, 65536, (60, 60)).astype(np.uint16)
    path = tmp_path / "a.tif"
    place = {"crs": "EPSG:32635", "transform": from_origin(399_960, 6_000_000, 20, 20)}
    with rasterio.open(path, "w", "GTiff", 60, 60, 1, dtype="uint16", **(place | options)) as dst:
        dst.write(values, 1)
    raster = read_raster(str(path), 60)
    np.testing.assert_array_equal(raster.values, values)
    assert raster.nodata == options.get("nodata")
    assert raster.place == Place(0 if "crs" in options else 32635, 399_960, 6_000_000)
    if plain:
        assert _parse(path.read_bytes()) is not None  # the quick way is taken


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_a_place_that_is_told_by_the_centre_of_a_pixel_is_its_corner_all_the_same(tmp_path):
    path = tmp_path / "a.tif"
    place = {"crs": "EPSG:32635", "transform": from_origin(399_960, 6_000_000, 20, 20)}
    with rasterio.open(path, "w", "GTiff", 60, 60, 1, dtype="uint16", **place) as dst:
        dst.update_tags(AREA_OR_POINT="Point")
        dst.write(np.ones((60, 60), np.uint16), 1)
    assert b"\x01\x04\x00\x00\x01\x00\x02\x00" in path.read_bytes(), "the file says that its pixels are points"
    assert read_raster(str(path), 60).place == Place(32635, 399_960, 6_000_000)


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_tiff_is_an_error_or_pixels_that_rasterio_reads_too(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "a.tif"
    values = np.arange(400, dtype=np.uint16).reshape(20, 20)
    place = {"crs": "EPSG:32635", "transform": from_origin(399_960, 6_000_000, 60, 60)}
    with rasterio.open(path, "w", "GTiff", 20, 20, 1, dtype="uint16", compress="deflate", **place) as dst:
        dst.write(values, 1)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, 250))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(raw))
    try:
        found = read_raster(str(path), 20).values
    except LabelError:
        return
    if not np.array_equal(found, values):
        with rasterio.open(path) as src:
            np.testing.assert_array_equal(found, src.read(1))


def test_values_that_the_files_tag_as_nodata_have_no_weight(tmp_path):
    """The files of version 2 have the tag, those of version 1 have not."""
    for number, tagged in ((1, True), (2, False)):
        folder = make_patch(tmp_path, name(number))
        for band in ("B05", "B09"):
            with rasterio.open(folder / f"{folder.name}_{band}.tif", "r+") as dst:
                values = dst.read(1)
                values[3:9, 4] = 0
                dst.write(values, 1)
                if tagged:
                    dst.nodata = 0
        cube = read_patch(folder, ("B02", "B05", "B09"))
        for i, band in enumerate(("B05", "B09"), 1):
            np.testing.assert_array_equal(cube[i], resampled(folder, band))


def test_a_tagged_value_other_than_0_never_becomes_a_pixel(tmp_path):
    folder = make_patch(tmp_path, name(1))
    for band, value in (("B02", 65535), ("B05", 9999)):
        with rasterio.open(folder / f"{folder.name}_{band}.tif", "r+") as dst:
            dst.nodata = value
        read_patch(folder, (band,))  # a tag alone says nothing
        with rasterio.open(folder / f"{folder.name}_{band}.tif", "r+") as dst:
            values = dst.read(1)
            values[3:9, 4] = value
            dst.write(values, 1)
        with pytest.raises(LabelError, match=rf"{band}.tif: 6 pixels hold {value}"):
            read_patch(folder, (band,))


# --- the store ------------------------------------------------------------------------------------------------------


def test_a_store_of_version_1(tmp_path):
    root = tmp_path / "BigEarthNet-v1.0"
    folders = {name(n): make_patch(root, name(n), ["Pastures", "Airports"], seed=n) for n in range(7)}
    made = ingest_patches(root, tmp_path / "a.zarr", SMALL, "threads")
    assert (made.read, made.chunks_done, made.chunks_kept, made.skipped, made.dropped) == (7, 3, 0, (), {})
    data = opened(tmp_path / "a.zarr")
    assert data["cube"].dims == ("patch", "band", "y", "x")
    assert (data["cube"].dtype, data["band"].values.tolist()) == (np.dtype(np.int16), list(BANDS))
    assert "reference_map" not in data
    for patch, found in by_name(data).items():
        for i, band in enumerate(BANDS):
            np.testing.assert_array_equal(found["cube"][i], resampled(folders[patch], band), err_msg=band)
        assert [held(found, s) for s in ("level1", "level2", "level3", "nineteen")] == [
            [1, 2],
            [12, 23],
            [124, 231],
            [231],
        ]
        assert (int(found["epsg"]), float(found["left"]), float(found["top"])) == (32633, 600_000, 5_000_000)
        assert str(found["date"].values)[:10] == "2018-06-13"
    assert set(by_name(data)) == set(folders)
    assert data["valid"].values.all()
    array = zarr.open_array(tmp_path / "a.zarr/cube", mode="r")
    assert array.metadata.zarr_format == 3
    assert array.chunks == (3, 12, 120, 120)


def test_a_store_of_version_2_has_maps_table_and_official_split(tmp_path):
    root = tmp_path / "reben"
    patches = [make_v2(root, n, seed=n) for n in range(5)]
    rows = [
        {"patch_id": patches[0], "split": "test", "labels": ["Arable land", "Pastures"], "s2v1_name": "old_0"},
        {"patch_id": patches[1], "split": "validation"},
        {"patch_id": patches[2], "contains_seasonal_snow": True},
    ]
    make_table(root / "metadata.parquet", rows)
    flagged = {"patch_id": patches[3], "contains_cloud_or_shadow": True}
    make_table(root / "metadata_for_patches_with_snow_cloud_or_shadow.parquet", [flagged])
    made = ingest_patches(root, tmp_path / "a.zarr", SMALL, "threads")
    assert made.dropped == {"seasonal snow": 1, "cloud or shadow": 1, "not in the metadata": 1}
    assert made.store.split_counts()["official"] == {"none": 0, "train": 0, "validation": 1, "test": 1}
    found = by_name(opened(tmp_path / "a.zarr"))
    assert set(found) == set(patches[:2])
    first = found[patches[0]]
    assert (str(first["country"].values), str(first["v1_name"].values)) == ("Austria", "old_0")
    with rasterio.open(root / f"Reference_Maps/{SCENE}/{patches[0]}/{patches[0]}_reference_map.tif") as src:
        codes = src.read(1)
    assert first["reference_map"].dtype == np.uint16
    np.testing.assert_array_equal(first["reference_map"], np.where(codes == 211, 211, 0))
    # The table's 19 classes are kept as published; the levels are those of the map, unlabelled classes included.
    assert [held(first, s) for s in ("level1", "level2", "level3", "nineteen")] == [
        [1, 2],
        [12, 21],
        [122, 211],
        [21, 231],
    ]
    both = ingest_patches(root, tmp_path / "b.zarr", PatchOptions(keep_flagged=True), "threads")
    assert (both.read, both.dropped) == (4, {"not in the metadata": 1})
    marks = {p: (int(d["snow"]), int(d["cloud"])) for p, d in by_name(opened(tmp_path / "b.zarr")).items()}
    assert [marks[p] for p in patches[:4]] == [(0, 0), (0, 0), (1, 0), (0, 1)]


def test_labels_that_cannot_be_known_are_unknown(tmp_path):
    root = tmp_path / "reben"
    with_map, without = make_v2(root, 1), make_v2(root, 2)
    shutil.rmtree(root / "Reference_Maps" / SCENE / without)
    table = make_table(tmp_path / "m.parquet", [{"patch_id": with_map}, {"patch_id": without}])
    made = ingest_patches(root / "BigEarthNet-S2", tmp_path / "a.zarr", PatchOptions(metadata=(table,)), "threads")
    assert made.without_map == 1
    found = by_name(opened(tmp_path / "a.zarr"))
    assert (found[without]["reference_map"] == 0).all()
    assert (found[without]["label_level3"] == UNKNOWN).all()
    assert (held(found[without], "level1"), held(found[without], "nineteen")) == ([2], [21])
    # without a table the 19 classes are those of the map, and a patch without either is not usable
    alone = ingest_patches(root, tmp_path / "b.zarr", cluster="threads")
    assert [(s.name, "neither" in s.reason) for s in alone.skipped] == [(without, True)]
    assert held(by_name(opened(tmp_path / "b.zarr"))[with_map], "nineteen") == [21]
    shutil.rmtree(root / "Reference_Maps")
    with pytest.raises(LabelError, match=r"has neither metadata\.parquet nor Reference_Maps"):
        ingest_patches(root, tmp_path / "c.zarr", cluster="threads")


def broken_set(root: Path) -> dict[str, str]:
    """Two whole patches and broken ones; name to a part of the reason."""
    make_patch(root, name(1))
    make_patch(root, name(9), seed=9)
    said = ["B08.tif cannot be read", "B04.tif cannot be read", "is missing", "cannot be understood", "'Pasture land'"]
    said += ["(60, 60) uint16, not (120, 120)", "names no label", "B01.tif cannot be read"]
    folders = [make_patch(root, name(n), seed=n) for n in range(10, 10 + len(said))]
    (folders[0] / f"{folders[0].name}_B08.tif").unlink()
    cut = folders[1] / f"{folders[1].name}_B04.tif"
    cut.write_bytes(cut.read_bytes()[:9000])
    metadata = [folder / f"{folder.name}_labels_metadata.json" for folder in folders]
    metadata[2].unlink()
    metadata[3].write_text("{not json")
    metadata[4].write_text('{"labels": ["Pasture land"]}')
    shutil.copy(folders[5] / f"{folders[5].name}_B11.tif", folders[5] / f"{folders[5].name}_B02.tif")
    metadata[6].write_text('{"labels": []}')
    (folders[7] / f"{folders[7].name}_B01.tif").write_bytes(b"")
    return dict(zip((folder.name for folder in folders), said, strict=True))


def test_broken_patches_are_listed_and_look_like_no_data(tmp_path, monkeypatch, capsys):
    broken = broken_set(tmp_path / "in")
    out = tmp_path / "a.zarr"
    made = ingest_patches(tmp_path / "in", out, SMALL, "threads")
    assert made.read == 2
    assert {s.name for s in made.skipped} == set(broken)
    for patch, reason in made.skipped:
        assert broken[patch] in reason
    with (out / "skipped.csv").open() as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == list(made.skipped)
    data = opened(out)
    bad = data.isel(patch=np.flatnonzero(data["valid"].values == 0))
    assert set(by_name(bad)) == set(broken)
    assert (bad["cube"] == NODATA).all()
    assert (bad["label_level3"] == UNKNOWN).all()
    assert np.isnan(bad["left"]).all()
    assert sum(made.store.split_counts()["random"].values()) == 2
    receipts = [json.loads(path.read_text()) for path in sorted((out / "receipts/chunks").iterdir())]
    assert sum(len(receipt["skipped"]) for receipt in receipts) == len(broken)
    # mended, they are read when asked for, and only then
    mended = tmp_path / "in" / name(12) / f"{name(12)}_labels_metadata.json"
    mended.write_text('{"labels": ["Pastures"]}')
    assert ingest_patches(tmp_path / "in", out, SMALL, "threads").chunks_done == 0
    again = ingest_patches(tmp_path / "in", out, SMALL, "threads", retry=True)
    assert (again.read, len(again.skipped)) == (3, len(broken) - 1)
    monkeypatch.setattr(sys, "argv", ["geoflow", "bigearthnet", str(tmp_path / "in"), str(out), "--chunk", "3"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert "3 patches of BigEarthNet v1, complete already" in said
    assert "1 PATCH_B08.tif cannot be read" in said
    assert "split random" in said


def test_nothing_usable_is_an_error(tmp_path):
    folder = make_patch(tmp_path / "in", name(1))
    (folder / f"{name(1)}_B02.tif").unlink()
    with pytest.raises(LabelError, match=r"none of the 1 patches in .* can be read; the first, S2A.*B02\.tif"):
        ingest_patches(tmp_path / "in", tmp_path / "a.zarr", cluster="threads")
    with pytest.raises(LabelError, match="there is no such folder"):
        ingest_patches(tmp_path / "missing", tmp_path / "b.zarr", cluster="threads")
    with pytest.raises(LabelError, match="version 2 is BigEarthNet-S2/SCENE/NAME"):
        ingest_patches(folder, tmp_path / "b.zarr", cluster="threads")
    assert not (tmp_path / "b.zarr").exists()


def test_lists_flag_and_leave_out(tmp_path):
    for number in range(4):
        make_patch(tmp_path / "in", name(number), seed=number)
    snow, cloud, other = tmp_path / "seasonal_snow.csv.bz2", tmp_path / "cloud_and_shadow.csv", tmp_path / "mine.csv"
    snow.write_bytes(bz2.compress(f"{name(0)}\n".encode()))
    cloud.write_text(f"{name(0)}\n{name(1)}\n")
    other.write_text(f"{name(2)}\n")
    plan = plan_patches(tmp_path / "in", PatchOptions(flags=(snow, cloud, other)))
    assert plan.names == [name(3)]
    assert plan.dropped == {"seasonal snow": 1, "cloud or shadow": 1, "in mine.csv": 1}
    kept = plan_patches(tmp_path / "in", PatchOptions(flags=(snow, cloud, other), keep_flagged=True))
    marks = dict(zip(kept.names, zip(kept.snow.tolist(), kept.cloud.tolist(), strict=True), strict=True))
    assert marks == {name(0): (True, True), name(1): (False, True), name(2): (False, False), name(3): (False, False)}
    other.write_text("\n".join(name(n) for n in range(4)))
    with pytest.raises(LabelError, match=r"no patch of .* is left: 4 in mine\.csv"):
        plan_patches(tmp_path / "in", PatchOptions(flags=(other,)))


def test_splits_and_order_are_those_of_the_seed(tmp_path):
    for number in range(40):
        (tmp_path / "in" / name(number)).mkdir(parents=True)
    (tmp_path / "mine.csv").write_text(f"{name(3)},val\n{name(4)},train\nunheard_of,test\n")
    plan = plan_patches(tmp_path / "in", PatchOptions(split=tmp_path / "mine.csv", validation=0.25))
    assert plan.default_split == "user"
    user = dict(zip(plan.names, plan.splits["user"].tolist(), strict=True))
    assert (user[name(3)], user[name(4)], user[name(5)]) == (VALIDATION, TRAIN, 0)
    assert plan.strangers == ("unheard_of",)
    assert (plan.splits["random"] == VALIDATION).sum() == 10
    np.testing.assert_array_equal(plan.splits["squares"], squares_split(plan.names))
    same, other = (plan_patches(tmp_path / "in", PatchOptions(seed=seed)) for seed in (0, 1))
    assert plan.names == same.names != other.names
    assert sorted(plan.names) == sorted(other.names) != plan.names
    assert plan.folders == plan.names
    (tmp_path / "mine.csv").write_text("unheard_of,train\n")
    with pytest.raises(LabelError, match="names not one of the 40 patches"):
        plan_patches(tmp_path / "in", PatchOptions(split=tmp_path / "mine.csv"))


def test_any_run_of_chunks_is_a_random_sample(tmp_path):
    """Patches of two scenes, whose names sort apart, are mixed in every chunk."""
    for number in range(400):
        day = "20180613" if number < 200 else "20180920"
        (tmp_path / "in" / f"S2A_MSIL2A_{day}T101031_{number % 90}_{number // 90}").mkdir(parents=True)
    plan = plan_patches(tmp_path / "in", PatchOptions(chunk=50))
    late = np.array(["20180920" in patch for patch in plan.names]).reshape(8, 50).sum(axis=1)
    assert late.min() >= 12
    assert late.max() <= 38


def test_other_options_on_the_same_store_are_named(tmp_path):
    for number in range(2):
        make_patch(tmp_path / "in", name(number))
    ingest_patches(tmp_path / "in", tmp_path / "a.zarr", SMALL, "threads")
    with pytest.raises(LabelError, match=r"other options: bands \[.*\], not \['B02'\]; chunk 3, not 4"):
        ingest_patches(tmp_path / "in", tmp_path / "a.zarr", PatchOptions(bands=("B02",), chunk=4), "threads")
    with pytest.raises(LabelError, match=r"source '.*in', not '.*elsewhere'"):
        ingest_patches(tmp_path / "elsewhere", tmp_path / "a.zarr", SMALL, "threads")
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(LabelError, match="no patches at"):
        ingest_patches(tmp_path / "in", tmp_path / "b.zarr", SMALL, "threads")
    zarr.open_group(tmp_path / "c.zarr", mode="w")
    with pytest.raises(LabelError, match="not one of patches"):
        ingest_patches(tmp_path / "in", tmp_path / "c.zarr", SMALL, "threads")
    with pytest.raises(LabelError, match=r"no band 'B10'; it has B01"):
        PatchOptions(bands=("B02", "B10"))
    with pytest.raises(LabelError, match="each once"):
        PatchOptions(bands=("B02", "B02"))


def test_damage_is_an_error_on_reading(tmp_path):
    make_patch(tmp_path / "in", name(1))
    ingest_patches(tmp_path / "in", tmp_path / "a.zarr", SMALL, "threads")
    for which in ("cube/c/0/0/0/0", "label_level3/c/0/0", "valid/c/0"):
        path = tmp_path / "a.zarr" / which
        whole = path.read_bytes()
        path.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
        with pytest.raises(ValueError, match="checksum"):
            zarr.open_array(tmp_path / "a.zarr" / which.split("/")[0], mode="r")[:]
        path.write_bytes(whole)
    # A chunk that is gone is written again: its receipt no longer vouches for it.
    (tmp_path / "a.zarr/cube/c/0/0/0/0").unlink()
    assert ingest_patches(tmp_path / "in", tmp_path / "a.zarr", SMALL, "threads").chunks_done == 1
    assert (opened(tmp_path / "a.zarr")["cube"] != NODATA).all()


def test_a_store_appears_whole_or_not_at_all(tmp_path):
    make_patch(tmp_path / "in", name(1))
    plan = plan_patches(tmp_path / "in", SMALL)
    (tmp_path / "full").write_text("a file where a folder should be")
    with pytest.raises(LabelError, match="cannot be written"):
        create_store(tmp_path / "full/a.zarr", plan)
    create_store(tmp_path / "a.zarr", plan)
    with pytest.raises(LabelError, match="is there already"):
        create_store(tmp_path / "a.zarr", plan)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "full", "a.zarr"}


# --- interrupted ----------------------------------------------------------------------------------------------------

SLOWLY = """
import sys, time
from geoflow.labels import patchread
quick = patchread.read_chunk
def slow(*args):
    time.sleep(0.4)
    return quick(*args)
patchread.read_chunk = slow
from geoflow.jobs.patchingest import ingest_patches
from geoflow.labels.patchplan import PatchOptions
ingest_patches(sys.argv[1], sys.argv[2], PatchOptions(chunk=3), "threads")
"""


def test_a_kill_loses_no_more_than_the_chunks_in_flight(tmp_path):
    for number in range(60):
        make_patch(tmp_path / "in", name(number), seed=number)
    out, expected = tmp_path / "a.zarr", tmp_path / "b.zarr"
    running = subprocess.Popen([sys.executable, "-c", SLOWLY, tmp_path / "in", out])
    done = out / "receipts/chunks"
    deadline = time.monotonic() + 60
    while len(list(done.glob("*.json")) if done.is_dir() else []) < 4:
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")}
    assert 4 <= len(kept) < 20
    assert not read_store(out).described["complete"]
    made = ingest_patches(tmp_path / "in", out, SMALL, "threads")
    assert (made.chunks_kept, made.chunks_done) == (len(kept), 20 - len(kept))
    assert {path.name: path.stat().st_mtime_ns for path in done.glob("*.json") if path.name in kept} == kept
    ingest_patches(tmp_path / "in", expected, SMALL, "threads")
    xr.testing.assert_identical(opened(out).drop_attrs(), opened(expected).drop_attrs())
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    shutil.rmtree(tmp_path / "in")  # a finished store needs its source no more
    assert ingest_patches(tmp_path / "in", out, SMALL, "threads").chunks_done == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps


# --- real patches ---------------------------------------------------------------------------------------------------


@pytest.fixture
def real() -> Path:
    root = os.environ.get("GEOFLOW_REAL_DATA")
    if root is None:
        pytest.skip("set GEOFLOW_REAL_DATA to the folder with the real data sets")
    return Path(root) / "bigearthnet-samples"


def test_the_real_patches_of_version_1_on_worker_processes(real, tmp_path):
    lists = tuple(sorted((real / "lists").glob("*.bz2")))
    options = PatchOptions(chunk=2, flags=lists, metadata=(real / "v2-metadata/metadata.parquet",), keep_flagged=True)
    made = ingest_patches(real / "v1", tmp_path / "a.zarr", options, "local")
    assert (made.read, made.chunks_done, made.skipped, made.dropped) == (6, 3, (), {})
    for patch, found in by_name(opened(tmp_path / "a.zarr")).items():
        folder = real / "v1/BigEarthNet-S2-Example" / patch
        assert all(_parse((folder / f"{patch}_{band}.tif").read_bytes()) is not None for band in BANDS)
        for i, band in enumerate(BANDS):
            expected = native(folder, band) if NATIVE_PX[band] == 120 else resampled(folder, band)
            np.testing.assert_array_equal(found["cube"][i], expected, err_msg=f"{patch} {band}")
        metadata = json.loads((folder / f"{patch}_labels_metadata.json").read_text())
        assert sorted(legend("corine").code_of(label) for label in metadata["labels"]) == held(found, "level3")
        corner = metadata["coordinates"]
        assert (float(found["left"]), float(found["top"])) == (corner["ulx"], corner["uly"])
        assert f'"EPSG","{int(found["epsg"])}"' in metadata["projection"]
        assert str(found["date"].values)[:10] == metadata["acquisition_date"][:10]
        assert bool(found["snow"]) == (patch == "S2B_MSIL2A_20180204T94161_57_38")
    again = plan_patches(real / "v1", PatchOptions(flags=lists))
    assert again.dropped == {"seasonal snow": 1}


def test_the_real_patch_of_version_2(real, tmp_path):
    """The real map is of another patch than the real pixels: under its name it serves to test with."""
    for part in ("BigEarthNet-S2", "Reference_Maps"):
        shutil.copytree(real / "v2" / part, tmp_path / "in" / part)
    patch, other = f"{SCENE}_75_43", f"{SCENE}_26_57"
    maps = tmp_path / "in/Reference_Maps" / SCENE
    (maps / other / f"{other}_reference_map.tif").rename(maps / other / f"{patch}_reference_map.tif")
    (maps / other).rename(maps / patch)
    table = real / "v2-metadata/metadata.parquet"
    made = ingest_patches(tmp_path / "in", tmp_path / "a.zarr", PatchOptions(metadata=(table,)), "threads")
    assert (made.read, made.without_map) == (1, 0)
    found = by_name(opened(tmp_path / "a.zarr"))[patch]
    folder = real / "v2/BigEarthNet-S2" / SCENE / patch
    for i, band in enumerate(BANDS):
        np.testing.assert_array_equal(found["cube"][i], resampled(folder, band), err_msg=band)
    with rasterio.open(next((real / "v2/Reference_Maps").rglob("*.tif"))) as src:
        codes = src.read(1)
    np.testing.assert_array_equal(found["reference_map"], codes)
    assert not np.isin(codes, UNLABELLED).any()
    assert held(found, "level3") == np.unique(codes).tolist()
    row = pq.read_table(table, filters=[("patch_id", "==", patch)]).to_pylist()[0]
    assert held(found, "nineteen") == sorted(legend("bigearthnet-19").code_of(label) for label in row["labels"])
    assert (str(found["country"].values), str(found["v1_name"].values)) == (row["country"], row["s2v1_name"])
    assert made.store.split_counts()["official"][row["split"]] == 1
    assert (int(found["epsg"]), float(found["left"]), float(found["top"])) == (32633, 390_000, 5_348_400)
    made = ingest_patches(real / "v2", tmp_path / "b.zarr", PatchOptions(metadata=(table,)), "threads")
    assert (made.read, made.without_map) == (1, 1)


# --- using it -------------------------------------------------------------------------------------------------------


def test_a_store_opens_as_a_lazy_dataset_of_what_was_read(tmp_path):
    broken_set(tmp_path / "in")
    for number in range(20, 27):
        make_patch(tmp_path / "in", name(number), seed=number)
    out = tmp_path / "a.zarr"
    made = ingest_patches(tmp_path / "in", out, SMALL, "threads")
    data = gf.open_patches(out)
    assert data.sizes["patch"] == made.read == 9
    assert data.cube.chunks is not None
    assert data.cube.dtype == np.int16
    assert not (data.cube == NODATA).any()
    one = data.sel(name=name(21), band="B04")
    np.testing.assert_array_equal(one.cube, native(tmp_path / "in" / name(21), "B04"))
    counts = made.store.split_counts()["random"]
    parts = {part: gf.open_patches(out, part) for part in ("train", "validation") if counts[part]}
    assert {part: found.sizes["patch"] for part, found in parts.items()} == {p: n for p, n in counts.items() if n}
    assert sorted(n for found in parts.values() for n in found.name.values) == sorted(data.name.values)
    squares = gf.open_patches(out, "train", "squares")
    assert (squares.split_squares == TRAIN).all()
    for wrong, said in (((None, "official"), "has random, squares"), (("tests", None), "'tests' is no part")):
        with pytest.raises(LabelError, match=said):
            gf.open_patches(out, *wrong)
    with pytest.raises(LabelError, match="no patch in part 'test'"):
        gf.open_patches(out, "test")


def test_statistics_of_a_store(tmp_path, monkeypatch, capsys):
    labels = (["Pastures"], ["Pastures", "Airports"], ["Sea and ocean"], ["Pastures", "Vineyards"])
    folders = [make_patch(tmp_path / "in", name(n), labels[n], seed=n) for n in range(4)]
    with rasterio.open(folders[3] / f"{folders[3].name}_B02.tif", "r+") as dst:
        dst.write(np.full((120, 120), 40_000, np.uint16), 1)  # beyond int16
    (make_patch(tmp_path / "in", name(8)) / f"{name(8)}_B03.tif").unlink()
    (tmp_path / "snow.csv").write_text(f"{name(7)}\n")
    make_patch(tmp_path / "in", name(7))
    out = tmp_path / "a.zarr"
    ingest_patches(tmp_path / "in", out, PatchOptions(chunk=2, flags=(tmp_path / "snow.csv",)), "threads")
    found = dataset_statistics(out)
    assert (found.patches, found.left_out) == (4, {"left out: seasonal snow": 1, "skipped": 1})
    assert found.labels["level3"].counts[231] == 3
    assert found.labels["level3"].cardinality == 6 / 4
    assert (found.labels["level1"].counts[2], found.labels["nineteen"].counts[231]) == (3, 3)
    assert sum(found.splits["random"].values()) == sum(found.splits["squares"].values()) == 4
    values = gf.open_patches(out).cube.astype(float).compute()
    for band, (mean, std, pixels) in found.bands.items():
        assert pixels == 4 * 120 * 120
        assert mean == pytest.approx(float(values.sel(band=band).mean()), rel=1e-12)
        assert std == pytest.approx(float(values.sel(band=band).std()), rel=1e-9)
    options = ["--plot", str(tmp_path / "s.png")]
    monkeypatch.setattr(sys, "argv", ["geoflow", "bigearthnet", "stats", str(out), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "4 patches, left out: seasonal snow 1, skipped 1" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_complete_is_neither_counted_nor_opened(tmp_path):
    make_patch(tmp_path / "in", name(1))
    create_store(tmp_path / "a.zarr", plan_patches(tmp_path / "in", SMALL))
    for use in (dataset_statistics, gf.open_patches):
        with pytest.raises(LabelError, match=r"not complete: finish it with geoflow bigearthnet .*in .*a\.zarr"):
            use(tmp_path / "a.zarr")
        with pytest.raises(LabelError, match=r"no patches at .*b\.zarr"):
            use(tmp_path / "b.zarr")


FEW, MANY = 160, 480
MOST_MB = 50
"""What 320 more patches may cost; their pixels alone are 110 MB. Caches are full after the first hundred."""

MEASURE = """
import re, sys
from geoflow.jobs.patchingest import ingest_patches
from geoflow.jobs.patchreport import dataset_statistics
from geoflow.labels.patchplan import PatchOptions
ingest_patches(sys.argv[1], sys.argv[2], PatchOptions(chunk=8), "threads")
assert dataset_statistics(sys.argv[2]).bands
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


def test_memory_does_not_grow_with_the_number_of_patches(tmp_path):
    first = make_patch(tmp_path / "one", name(0))
    peaks = []
    for count in (FEW, MANY):
        root = tmp_path / str(count)
        for number in range(count):
            folder = root / name(number)
            folder.mkdir(parents=True)
            for file in first.iterdir():
                (folder / file.name.replace(first.name, folder.name)).hardlink_to(file)
        command = [sys.executable, "-c", MEASURE, root, tmp_path / f"{count}.zarr"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < MOST_MB, peaks


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs/how-to/bigearthnet.md").read_text(encoding="utf-8")
    for number in range(5):
        make_patch(tmp_path / "BigEarthNet-v1.0", name(number), seed=number)
        make_v2(tmp_path / "reben", number, seed=number)
    rows = [{"patch_id": f"{SCENE}_{number}_43"} for number in range(5)]
    make_table(tmp_path / "reben/metadata.parquet", rows)
    for kind in ("seasonal_snow", "cloud_and_shadow"):
        (tmp_path / f"patches_with_{kind}.csv").write_text(f"{name(0)}\n")
    monkeypatch.chdir(tmp_path)
    commands = [line for line in page.splitlines() if line.startswith("geoflow ")]
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, command
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(compile(block, "bigearthnet.md", "exec"), {})
    assert "Pastures" in capsys.readouterr().out
    assert read_store(tmp_path / "patches.zarr").described["dropped"] == {"seasonal snow": 1}
    assert read_store(tmp_path / "patches2.zarr").described["default_split"] == "official"
