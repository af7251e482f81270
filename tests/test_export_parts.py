"""The parts of an export by themselves: numbering, windows, statistics, and a country larger than memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geoflow.errors import LegendError
from geoflow.exports import styles, tables
from geoflow.exports.clip import Clip, clip_of
from geoflow.exports.coding import Coding
from geoflow.exports.cog import Raster, write_cog
from geoflow.exports.layers import ExportChoice
from geoflow.grid import Grid
from geoflow.legends import Legend, LegendClass, legend


def flat(count: int, first: int = 1) -> Legend:
    return Legend("own", tuple(LegendClass(first + 3 * n, f"class {n}", (n % 256, 0, 0)) for n in range(count)))


@pytest.mark.parametrize(
    ("of", "level", "scheme", "dtype", "some"),
    [
        (legend("corine"), 3, "GRID_CODE", "uint8", {111: 1, 312: 24, 523: 44}),
        (legend("corine"), 2, "code", "uint8", {11: 11, 52: 52}),
        (legend("bigearthnet-43"), 3, "GRID_CODE", "uint8", {111: 1, 334: 33, 411: 35}),
        (legend("bigearthnet-19"), 2, "rank", "uint8", {11: 1, 331: 19}),  # several raster numbers lead to one class
        (legend("corine").only(2), 1, "code", "uint8", {11: 11}),
        (flat(10), 1, "code", "uint8", {1: 1, 28: 28}),
        (flat(254, first=300), 1, "rank", "uint8", {300: 1, 300 + 3 * 253: 254}),
        (flat(255, first=300), 1, "code", "uint16", {300: 300}),
    ],
    ids=lambda value: value.name if isinstance(value, Legend) else None,
)
def test_the_numbering_is_a_function_of_the_legend(
    of: Legend, level: int, scheme: str, dtype: str, some: dict[int, int]
) -> None:
    coding = Coding(of, level)
    assert (coding.scheme, str(coding.dtype)) == (scheme, dtype)
    assert {code: coding.values[code] for code in some} == some
    codes = np.array([0, *of.codes(level)], of.dtype(level))
    values = coding.encode(codes)
    assert len(np.unique(values)) == len(codes)
    np.testing.assert_array_equal(coding.decode(values), codes)
    assert [one.value for one in coding.classes] == sorted(coding.values.values())


def test_a_code_of_another_level_is_not_written() -> None:
    with pytest.raises(LegendError, match="does not hold 31"):
        Coding(legend("corine"), 3).encode(np.array([311, 31], np.uint16))


def grid(height: int = 700, width: int = 900) -> Grid:
    return Grid(GeoBox((height, width), Affine(10, 0, 5_120_000, 0, -10, 4_020_000), "EPSG:3035"), 256, 64)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([1, 2, 40, 4000]))
def test_blocks_cover_a_window_once_and_lie_on_whole_chunks(data: st.DataObject, pixel_bytes: int) -> None:
    whole = grid()
    top, left = data.draw(st.integers(0, 699)), data.draw(st.integers(0, 899))
    bottom, right = data.draw(st.integers(top + 1, 700)), data.draw(st.integers(left + 1, 900))
    clip = Clip(whole, slice(top, bottom), slice(left, right))
    seen = np.zeros(clip.shape, int)
    for block in clip.blocks(pixel_bytes):
        height, width = block.shape
        seen[block.top : block.top + height, block.left : block.left + width] += 1
        assert (block.rows.start - top, block.cols.start - left) == (block.top, block.left)
        for span, edges in ((block.rows, (top, bottom)), (block.cols, (left, right))):
            assert span.start in edges or span.start % 64 == 0
            assert span.stop in edges or span.stop % 64 == 0
    assert (seen == 1).all()


def test_a_box_takes_in_every_pixel_that_it_meets_and_no_more() -> None:
    whole = grid()
    west, south, east, north = whole.geobox[100:101, 200:201].geographic_extent.boundingbox
    clip = clip_of(whole, ExportChoice(bbox=(west, south, east, north)))
    assert clip.rows.start <= 100 < clip.rows.stop
    assert clip.cols.start <= 200 < clip.cols.stop
    assert clip.shape[0] <= 3
    assert clip.shape[1] <= 3
    assert clip.geobox == whole.geobox[clip.rows, clip.cols]
    everything = clip_of(whole, ExportChoice(bbox=(0, 40, 40, 70)))
    assert everything.is_all


def test_statistics_are_exact() -> None:
    values = np.random.default_rng(1).integers(0, 101, 5000).astype(np.uint8)
    values[:70] = 255
    xml = tables.statistics(np.bincount(values, minlength=256), 255)
    assert xml is not None
    said = {item.get("key"): float(item.text or "") for item in ET.fromstring(xml).iter("MDI")}
    seen = values[values != 255].astype(float)
    assert said["STATISTICS_MEAN"] == pytest.approx(seen.mean(), abs=1e-5)
    assert said["STATISTICS_STDDEV"] == pytest.approx(seen.std(), abs=1e-5)
    assert said["STATISTICS_VALID_PERCENT"] == pytest.approx(100 * 4930 / 5000)
    assert tables.statistics(np.bincount(np.full(9, 255), minlength=256), 255) is None


def test_names_with_signs_of_xml_stay_what_they_are() -> None:
    name = 'Sand & "gravel" <pits>'
    style = ET.fromstring(styles.paletted([(1, name, (1, 2, 3))]))
    entry = style.find("pipe/rasterrenderer/colorPalette/paletteEntry")
    assert entry is not None
    assert (entry.get("label"), entry.get("color")) == (name, "#010203")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    clip = Clip(grid(), slice(0, 700), slice(0, 900))
    path = tmp_path / "map.tif"

    def numbered(block: object) -> np.ndarray:
        return np.full((1, *block.shape), 3, np.uint8)  # type: ignore[attr-defined]

    def failing(block: object) -> np.ndarray:
        raise OSError("the disk is gone")

    counts = write_cog(Raster(numbered, clip, "uint8", 0, ("one",), True, {3: (1, 2, 3)}), path)
    assert counts is not None
    assert (counts[3], counts.sum()) == (700 * 900, 700 * 900)
    before = path.read_bytes()
    with pytest.raises(OSError, match="the disk is gone"):
        write_cog(Raster(failing, clip, "uint8", 0, ("one",), True, {3: (1, 2, 3)}), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


def test_more_than_254_classes_keep_a_palette(tmp_path: Path) -> None:
    coding = Coding(flat(255, first=300), 1)
    clip = Clip(grid(64, 64), slice(0, 64), slice(0, 64))
    codes = np.resize(np.array(coding.legend.codes(), np.uint16), (1, 64, 64))
    colours = {c.value: c.colour for c in coding.classes}
    counts = write_cog(Raster(lambda block: codes, clip, "uint16", 0, ("own",), True, colours), tmp_path / "own.tif")
    assert counts is not None
    assert counts.sum() == 64 * 64
    with rasterio.open(tmp_path / "own.tif") as raster:
        np.testing.assert_array_equal(raster.read(), codes)
        assert raster.colormap(1)[303] == (1, 0, 0, 255)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_country() -> None:
    """From 17 to 121 million pixels; docs/how-to/export.md has the figures of a country."""
    program, peaks = Path(__file__).parent.parent / "benchmarks/export.py", []
    for size in ("small", "tile"):
        command = [sys.executable, program, "--only", "ours", "--size", size]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(float(next(line for line in done.stdout.splitlines() if " ours " in line).split()[-2]))
    assert peaks[1] < peaks[0] + 100, peaks
