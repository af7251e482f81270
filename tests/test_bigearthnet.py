"""BigEarthNet patches: what is read, what is skipped and why, and the store that they are kept in."""

import bz2
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from geoflow.errors import LabelError, LegendError
from geoflow.inputs import NODATA
from geoflow.labels import Patches, find_patches, open_patches, read_patch, read_patches, write_patches
from geoflow.labels.bigearthnet import NATIVE_PX
from geoflow.legends import legend

BANDS = ("B02", "B04", "B08", "B11", "B01")


def make_patch(root: Path, name: str, labels=("Pastures", "Bare rock"), seed: int = 0) -> Path:
    """A patch as published: twelve uint16 TIFFs and a JSON file."""
    folder = root / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for band, side in NATIVE_PX.items():
        values = rng.integers(1, 9000, (side, side), dtype=np.uint16)
        place = {"crs": "EPSG:32633", "transform": from_origin(600_000, 5_000_000, 1200 / side, 1200 / side)}
        path = folder / f"{name}_{band}.tif"
        with rasterio.open(path, "w", "GTiff", side, side, 1, dtype="uint16", **place) as dst:
            dst.write(values, 1)
    metadata = {"labels": list(labels), "acquisition_date": "2018-06-13 10:10:31"}
    (folder / f"{name}_labels_metadata.json").write_text(json.dumps(metadata))
    return folder


def name(number: int) -> str:
    return f"S2A_MSIL2A_20180613T101031_{number}_48"


def native(folder: Path, band: str) -> np.ndarray:
    with rasterio.open(folder / f"{folder.name}_{band}.tif") as src:
        return src.read(1)


def test_pixels_are_those_of_the_files_and_coarse_bands_are_interpolated(tmp_path):
    folder = make_patch(tmp_path, name(1))
    cube = read_patch(folder, BANDS)
    assert (cube.shape, cube.dtype) == ((5, 120, 120), np.int16)
    for i, band in enumerate(BANDS[:3]):
        np.testing.assert_array_equal(cube[i], native(folder, band))
    coarse = native(folder, "B11").astype(float)
    # centre of the second 10 m pixel: a quarter of a 20 m pixel beyond the first one's centre, in both directions
    expected = (9 * coarse[0, 0] + 3 * coarse[0, 1] + 3 * coarse[1, 0] + coarse[1, 1]) / 16
    assert abs(cube[3, 1, 1] - expected) <= 1
    assert abs(cube[4].mean() - native(folder, "B01").mean()) < 100


def test_order_of_bands_is_as_asked(tmp_path):
    folder = make_patch(tmp_path, name(1))
    np.testing.assert_array_equal(read_patch(folder, BANDS[::-1]), read_patch(folder, BANDS)[::-1])


def test_nodata_is_zero_in_every_band_and_bright_values_are_kept_in_range(tmp_path):
    folder = make_patch(tmp_path, name(1))
    for band, value in (("B02", 0), ("B03", 0), ("B04", 65535)):
        with rasterio.open(folder / f"{folder.name}_{band}.tif", "r+") as dst:
            values = dst.read(1)
            values[:2] = 0
            values[2:4] = value
            dst.write(values, 1)
    cube = read_patch(folder, ("B02", "B03", "B04"))
    assert (cube[:, :2] == NODATA).all()
    assert (cube[:2, 2:4] == 0).all()
    assert (cube[2, 2:4] == 32767).all()
    assert (cube[:, 4:] > 0).all()


def test_labels_become_codes_of_any_related_legend(tmp_path):
    make_patch(tmp_path, name(1), ["Pastures", "Natural grassland", "Airports"])
    for which, codes in (
        ("corine", (124, 231, 321)),
        ("bigearthnet-43", (124, 231, 321)),
        ("bigearthnet-19", (231, 321)),
    ):
        patches = read_patches(tmp_path, BANDS, which)
        assert patches.codes == legend(which).codes()
        assert tuple(np.array(patches.codes)[patches.labels[0]]) == codes
    assert patches.dates.tolist() == [np.datetime64("2018-06-13").item()]


def test_labels_of_coarser_levels_are_the_union_of_their_classes(tmp_path):
    make_patch(tmp_path, name(1), ["Pastures", "Vineyards"])
    make_patch(tmp_path, name(2), ["Sea and ocean", "Peatbogs"])
    corine = legend("corine")
    patches = read_patches(tmp_path, BANDS, corine)
    codes, labels = patches.labels_at(corine, 1)
    assert codes == (1, 2, 3, 4, 5)
    np.testing.assert_array_equal(labels, [[0, 1, 0, 0, 0], [0, 0, 0, 1, 1]])
    codes, labels = patches.labels_at(corine, 2)
    assert [np.array(codes)[row].tolist() for row in labels] == [[22, 23], [41, 52]]
    np.testing.assert_array_equal(patches.labels_at(corine, 3)[1], patches.labels)
    with pytest.raises(LegendError, match="legend 'corine', not 'bigearthnet-43'"):
        patches.labels_at(legend("bigearthnet-43"), 1)


def test_a_broken_patch_is_skipped_with_its_reason(tmp_path):
    make_patch(tmp_path, name(1))
    broken = [make_patch(tmp_path, name(n), seed=n) for n in range(2, 9)]
    (broken[0] / f"{broken[0].name}_B08.tif").unlink()
    cut = broken[1] / f"{broken[1].name}_B04.tif"
    cut.write_bytes(cut.read_bytes()[:9000])
    (broken[2] / f"{broken[2].name}_labels_metadata.json").unlink()
    (broken[3] / f"{broken[3].name}_labels_metadata.json").write_text("{not json")
    (broken[4] / f"{broken[4].name}_labels_metadata.json").write_text('{"labels": ["Pasture land"]}')
    (broken[5] / f"{broken[5].name}_labels_metadata.json").write_text('{"labels": ["Glaciers and perpetual snow"]}')
    shutil.copy(broken[6] / f"{broken[6].name}_B11.tif", broken[6] / f"{broken[6].name}_B02.tif")
    patches = read_patches(tmp_path, BANDS, "bigearthnet-43")
    assert patches.names == (name(1),)
    assert len(patches.cube) == len(patches.labels) == len(patches.dates) == 1
    reasons = [skipped.reason for skipped in patches.skipped]
    assert [skipped.name for skipped in patches.skipped] == [name(n) for n in range(2, 9)]
    told = ["B08.tif cannot be read", "B04.tif cannot be read", "is missing", "cannot be understood", "'Pasture land'"]
    told += ["none of its labels", "is (60, 60) uint16, not (120, 120) uint16"]
    for reason, part in zip(reasons, told, strict=True):
        assert part in reason


def test_lists_of_cloud_and_snow_are_left_out_and_told(tmp_path):
    root = tmp_path / "v1" / "BigEarthNet-v1.0"
    for number in (3, 1, 2):
        make_patch(root, name(number), seed=number)
    (tmp_path / "cloud.csv").write_text(f"{name(3)}\n")
    (tmp_path / "snow.csv.bz2").write_bytes(bz2.compress(f"{name(1)}\nS2A_MSIL2A_20170613T101031_0_0\n".encode()))
    index = find_patches(tmp_path / "v1", [tmp_path / "cloud.csv", tmp_path / "snow.csv.bz2"])
    assert index.names == (name(2),)
    assert [(s.name, Path(s.reason).name) for s in index.skipped] == [(name(1), "snow.csv.bz2"), (name(3), "cloud.csv")]
    assert find_patches(tmp_path / "v1").names == (name(1), name(2), name(3))


def test_several_processes_read_the_same(tmp_path):
    for number in range(3):
        make_patch(tmp_path, name(number), seed=number)
    calls: list[tuple[int, int]] = []
    one = read_patches(tmp_path, BANDS, "corine", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert read_patches(tmp_path, BANDS, "corine", workers=2).digest == one.digest


def test_what_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(LabelError, match="there is no such folder"):
        find_patches(tmp_path / "missing")
    with pytest.raises(LabelError, match="a patch is a folder NAME"):
        find_patches(tmp_path)
    folder = make_patch(tmp_path, name(1))
    with pytest.raises(LabelError, match=r"no band 'B10'; it has B01, B02"):
        read_patches(tmp_path, ["B02", "B10"], "corine")
    with pytest.raises(LabelError, match="no list of patches at"):
        find_patches(tmp_path, [tmp_path / "missing.csv"])
    (tmp_path / "all.csv").write_text(name(1))
    with pytest.raises(LabelError, match="all 1 are excluded"):
        find_patches(tmp_path, [tmp_path / "all.csv"])
    (folder / f"{folder.name}_B02.tif").unlink()
    with pytest.raises(
        LabelError, match=r"none of the 1 patches .* can be used; the first, S2A.*B02\.tif cannot be read"
    ):
        read_patches(tmp_path, BANDS, "corine")
    (tmp_path / "v2" / "Reference_Maps").mkdir(parents=True)
    with pytest.raises(LabelError, match="layout of BigEarthNet version 2"):
        find_patches(tmp_path / "v2")


@pytest.fixture
def patches(tmp_path) -> Patches:
    for number in range(3):
        make_patch(tmp_path / "in", name(number), seed=number)
    (tmp_path / "in" / name(9)).mkdir()
    return read_patches(tmp_path / "in", BANDS, "corine")


def test_a_store_gives_back_the_same_patches(tmp_path, patches):
    path = tmp_path / "new" / "patches.zarr"
    digest = write_patches(patches, path)
    back = open_patches(path)
    assert back.digest == patches.digest == digest
    np.testing.assert_array_equal(back.cube, patches.cube)
    np.testing.assert_array_equal(back.labels, patches.labels)
    np.testing.assert_array_equal(back.dates, patches.dates)
    for attribute in ("codes", "bands", "names", "skipped", "legend"):
        assert getattr(back, attribute) == getattr(patches, attribute)
    assert back.cube.dtype == np.int16
    assert back.skipped[0].name == name(9)
    assert [entry.name for entry in path.parent.iterdir()] == ["patches.zarr"]


def test_a_store_is_replaced_whole_or_not_at_all(tmp_path, patches):
    path = tmp_path / "patches.zarr"
    write_patches(patches, path)
    fewer = read_patches(tmp_path / "in", BANDS[:2], "corine")
    (tmp_path / "full").write_text("a file where a folder should be")
    with pytest.raises(LabelError, match="cannot write patches"):
        write_patches(fewer, tmp_path / "full" / "patches.zarr")
    assert open_patches(path).digest == patches.digest
    write_patches(fewer, path)
    assert open_patches(path).bands == BANDS[:2]


def test_damage_is_noticed(tmp_path, patches):
    path = tmp_path / "patches.zarr"
    write_patches(patches, path)
    chunk = path / "cube" / "c" / "0" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    with pytest.raises(LabelError, match="is damaged"):
        open_patches(path)
    chunk.unlink()
    with pytest.raises(LabelError, match="is damaged"):
        open_patches(path)
    with pytest.raises(LabelError, match="no patches at"):
        open_patches(tmp_path / "missing.zarr")


@pytest.fixture
def real() -> Path:
    root = os.environ.get("GEOFLOW_REAL_DATA")
    if root is None:
        pytest.skip("set GEOFLOW_REAL_DATA to the folder with the real data sets")
    return Path(root) / "bigearthnet-samples"


def test_the_real_patches_become_a_store_with_the_pixels_of_the_files(real, tmp_path):
    patches = read_patches(real / "v1", tuple(NATIVE_PX), "bigearthnet-43")
    write_patches(patches, tmp_path / "real.zarr")
    back = open_patches(tmp_path / "real.zarr")
    assert len(back) == 6
    for at, found in enumerate(back.names):
        folder = real / "v1" / "BigEarthNet-S2-Example" / found
        metadata = json.loads((folder / f"{found}_labels_metadata.json").read_text())
        assert sorted(legend("bigearthnet-43").label(c) for c in np.array(back.codes)[back.labels[at]]) == sorted(
            metadata["labels"]
        )
        for i, band in enumerate(back.bands):
            values = native(folder, band).astype(int)
            if values.shape == (120, 120):
                np.testing.assert_array_equal(back.cube[at, i], values)
            else:
                assert values.min() <= back.cube[at, i].min() <= back.cube[at, i].max() <= values.max()
    assert str(back.dates[0]) == "2017-06-13"


def test_the_real_list_of_snow_leaves_out_the_snowy_patch(real):
    index = find_patches(real / "v1", sorted((real / "lists").glob("*.bz2")))
    assert len(index.names) == 5
    assert [s.name for s in index.skipped] == ["S2B_MSIL2A_20180204T94161_57_38"]


def test_the_real_second_version_is_refused(real):
    with pytest.raises(LabelError, match="version 2"):
        read_patches(real / "v2", BANDS, "corine")
