"""The pixels of BigEarthNet patches."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from geoflow.errors import LabelError
from geoflow.inputs import NODATA
from geoflow.labels import read_patch
from geoflow.labels.bigearthnet import NATIVE_PX

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


def test_a_band_that_is_not_there_is_named(tmp_path):
    folder = make_patch(tmp_path, name(1))
    with pytest.raises(LabelError, match=r"no band 'B10'; it has B01, B02"):
        read_patch(folder, ("B02", "B10"))
    (folder / f"{folder.name}_B03.tif").unlink()
    with pytest.raises(LabelError, match=r"B03\.tif cannot be read: there is no such file"):
        read_patch(folder, ("B02", "B03"))
