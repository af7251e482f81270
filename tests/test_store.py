"""The national store: on the grid, in whole chunks, readable by everyone."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from zarr.codecs import GzipCodec

from geoflow.errors import StoreError
from geoflow.grid import Grid
from geoflow.store.reading import open_store
from geoflow.store.receipts import Receipts, digest, write_json
from geoflow.store.zarr import (
    Group,
    Store,
    Variable,
    consolidate,
    describe_grid,
    grid_from_description,
    open_for_writing,
)

MAP = Group(
    "map/2018",
    (
        Variable("level3", "uint16", 0, attrs={"flag_values": [211, 312]}),
        Variable("confidence", "uint8", 255),
    ),
    attrs={"legend": "corine"},
)
IMAGERY = Group(
    "imagery/2018",
    (Variable("reflectance", "int16", -32768, ("period", "band")),),
    {"period": ("spring", "summer"), "band": ("B02", "B03", "B04")},
)


@pytest.fixture
def grid() -> Grid:
    return Grid(GeoBox.from_bbox((5_300_000, 4_000_000, 5_301_500, 4_001_000), "EPSG:3035", resolution=10), 64, 32)


@pytest.fixture
def store(tmp_path, grid) -> Store:
    made = Store.create(tmp_path / "country.zarr", grid)
    made.ensure_group(MAP)
    made.ensure_group(IMAGERY)
    return made


def fill(store: Store, seed: int = 0) -> dict[str, np.ndarray]:
    """Write random codes tile by tile; returns them whole."""
    rng = np.random.default_rng(seed)
    level3 = rng.choice(np.array([0, 211, 312], np.uint16), store.grid.shape)
    confidence = rng.integers(0, 101, store.grid.shape).astype(np.uint8)
    for tile in store.grid.tiles():
        store.write("map/2018", tile, {"level3": level3[tile.y, tile.x], "confidence": confidence[tile.y, tile.x]})
    return {"level3": level3, "confidence": confidence}


def test_what_is_written_by_tiles_is_read_as_a_whole(store):
    written = fill(store)
    opened = open_store(store.path)
    for name, values in written.items():
        array = opened[f"map/2018/{name}"]
        assert array.dtype == values.dtype
        np.testing.assert_array_equal(array.values, values)


def test_every_group_knows_its_crs_and_nodata(store, grid):
    import rioxarray  # noqa: F401

    opened = open_store(store.path)
    for path, name, nodata in (("map/2018", "level3", 0), ("imagery/2018", "reflectance", -32768)):
        array = opened[path][name]
        assert array.rio.crs.to_epsg() == 3035
        assert array.rio.nodata == nodata
        assert array.rio.transform() == grid.geobox.transform
        assert array.odc.geobox == grid.geobox
    assert list(opened["imagery/2018"]["band"].values) == ["B02", "B03", "B04"]


def test_unwritten_pixels_are_nodata_never_a_class(store):
    opened = open_store(store.path)
    assert (opened["map/2018/level3"].values == 0).all()
    assert (opened["map/2018/confidence"].values == 255).all()


def test_an_empty_chunk_is_still_written(store):
    tile = store.grid.tile_at(0, 0)
    store.write("map/2018", tile, {"level3": np.zeros(tile.shape, np.uint16)})
    assert all(path.exists() for path in store.chunk_files("map/2018", ["level3"], tile))


def test_no_chunk_is_left_out_whatever_other_threads_set(store):
    """As on workers of several threads: what zarr leaves out of its own accord is a setting of the whole process."""
    ended = threading.Event()

    def set_and_set_back():
        while not ended.is_set():
            with zarr.config.set({"array.write_empty_chunks": True}):
                time.sleep(0.001)
            time.sleep(0.001)

    other = threading.Thread(target=set_and_set_back)
    other.start()
    try:
        for tile in store.grid.tiles():  # whose scenes are all cloud
            store.write("imagery/2018", tile, {"reflectance": np.full((2, 3, *tile.shape), -32768, np.int16)})
    finally:
        ended.set()
        other.join()
    files = [f for tile in store.grid.tiles() for f in store.chunk_files("imagery/2018", ["reflectance"], tile)]
    assert [file for file in files if not file.exists()] == []


def test_chunk_files_are_those_that_a_tile_writes(store):
    before = set(store.path.rglob("c/*/*"))
    tile = store.grid.tile_at(1, 2)
    store.write("map/2018", tile, {"level3": np.ones(tile.shape, np.uint16)})
    assert set(store.path.rglob("c/*/*")) - before == set(store.chunk_files("map/2018", ["level3"], tile))


@pytest.mark.parametrize("values", [np.zeros((64, 63), np.uint16), np.zeros((64, 64), np.uint8)])
def test_arrays_of_another_shape_or_dtype_are_refused(store, values):
    with pytest.raises(StoreError, match="the store wants uint16"):
        store.write("map/2018", store.grid.tile_at(0, 0), {"level3": values})


def test_opening_again_keeps_what_is_there(store, grid):
    written = fill(store)
    again = Store.create(store.path, grid)
    again.ensure_group(MAP)
    np.testing.assert_array_equal(open_store(store.path)["map/2018/level3"].values, written["level3"])


def test_preparing_a_group_twice_changes_no_byte(store):
    def content() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()}

    before = content()
    store.ensure_group(MAP)
    store.ensure_group(IMAGERY)
    assert content() == before


def test_another_grid_is_refused_before_anything_is_written(store):
    other = Grid(store.grid.geobox.pad(10), 64, 32)
    with pytest.raises(StoreError, match="another grid"):
        Store.create(store.path, other)


def test_a_group_of_another_dtype_or_of_other_bands_is_refused(store):
    with pytest.raises(StoreError, match="another output folder"):
        store.ensure_group(Group("map/2018", (Variable("level3", "uint8", 0),)))
    with pytest.raises(StoreError, match="B08"):
        store.ensure_group(Group("imagery/2018", (), {"band": ("B08",)}))


def test_what_is_not_a_store_is_refused(tmp_path, store):
    with pytest.raises(StoreError, match="not a Zarr store that geoflow made"):
        open_store(tmp_path / "nothing")
    stray = tmp_path / "stray.zarr"
    xr.Dataset({"a": ("x", [1, 2])}).to_zarr(stray, zarr_format=3)
    with pytest.raises(StoreError, match="not one that geoflow made"):
        open_store(stray)
    meta = json.loads((store.path / "zarr.json").read_text())
    meta["attributes"]["geoflow"]["format"] = 99
    (store.path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="update geoflow"):
        open_store(store.path)


def test_a_flipped_bit_is_noticed(store):
    fill(store)
    path = store.chunk_files("map/2018", ["level3"], store.grid.tile_at(0, 0))[0]
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Exception, match=r"(?i)checksum|corrupt|decompress|Zstd"):
        open_store(store.path)["map/2018/level3"].values[:]


def test_the_grid_comes_back_from_its_description(grid, store):
    assert grid_from_description(describe_grid(grid)) == grid
    assert open_for_writing(store.path).grid == grid


def test_gdal_sees_crs_nodata_and_place(tmp_path, grid, monkeypatch):
    """Asked of the newest GDAL at hand: rasterio's, or (on Python 3.11, where that is too old for Zarr v3) pyogrio's.

    The latter is built without zstd, so that this store is written with gzip; all that GDAL reads but the codec is the
    same. See docs/decisions/0002-zarr-layout.md.
    """
    for module in ("zarr", "axes"):
        monkeypatch.setattr(f"geoflow.store.{module}.COMPRESSOR", GzipCodec())
    store = Store.create(tmp_path / "country.zarr", grid)
    store.ensure_group(MAP)
    fill_from = np.arange(64 * 64).reshape(64, 64).astype(np.uint16) % 400
    store.write("map/2018", grid.tile_at(0, 0), {"level3": fill_from})
    info = _gdal_info(store.path / "map/2018/level3")
    assert info["size"] == [150, 100]
    assert info["transform"] == [5_300_000.0, 10.0, 0.0, 4_001_000.0, 0.0, -10.0]
    assert info["nodata"] == 0.0
    assert info["epsg"] == 3035
    assert info["first_row"] == fill_from[0].tolist()


def _gdal_info(path: Path) -> dict[str, object]:
    import rasterio

    if tuple(int(n) for n in rasterio.__gdal_version__.split(".")[:2]) >= (3, 11):
        with rasterio.open(path) as source:
            t = source.transform
            return {
                "size": [source.width, source.height],
                "transform": [t.c, t.a, t.b, t.f, t.d, t.e],
                "nodata": source.nodata,
                "epsg": source.crs.to_epsg(),
                "first_row": source.read(1)[0, :64].tolist(),
            }
    # In a process of its own: two GDALs in one process get in each other's way.
    done = subprocess.run([sys.executable, "-c", _ASK_PYOGRIOS_GDAL, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


_ASK_PYOGRIOS_GDAL = """
import ctypes, json, re, sys
import pyogrio, pyproj
from pathlib import Path
maps = Path("/proc/self/maps").read_text().split()
gdal = ctypes.CDLL(next(m for m in maps if re.search(r"pyogrio.*libgdal", m)))
gdal.GDALOpen.restype = gdal.GDALGetRasterBand.restype = ctypes.c_void_p
gdal.GDALGetProjectionRef.restype = gdal.CPLGetLastErrorMsg.restype = ctypes.c_char_p
gdal.GDALGetRasterNoDataValue.restype = ctypes.c_double
gdal.GDALAllRegister()
opened = gdal.GDALOpen(sys.argv[1].encode(), 0)
if not opened:
    sys.exit(gdal.CPLGetLastErrorMsg().decode())
data = ctypes.c_void_p(opened)
transform = (ctypes.c_double * 6)()
gdal.GDALGetGeoTransform(data, transform)
band = ctypes.c_void_p(gdal.GDALGetRasterBand(data, 1))
row = (ctypes.c_uint16 * 64)()
UINT16 = 2
gdal.GDALRasterIO(band, 0, 0, 0, 64, 1, row, 64, 1, UINT16, 0, 0)
print(json.dumps({
    "size": [gdal.GDALGetRasterXSize(data), gdal.GDALGetRasterYSize(data)],
    "transform": list(transform),
    "nodata": gdal.GDALGetRasterNoDataValue(band, None),
    "epsg": pyproj.CRS.from_wkt(gdal.GDALGetProjectionRef(data).decode()).to_epsg(),
    "first_row": list(row),
}))
"""


# --- receipts -------------------------------------------------------------------------------------------------------


def test_metadata_that_are_lost_are_made_again_around_the_chunks(store):
    level3 = fill(store)["level3"]
    before = {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    lost = [p for p in before if p.name == "zarr.json" and p.parent != store.path]
    for path in [*lost, store.path / "map/2018/x/c/0"]:
        path.unlink()
    store.ensure_group(MAP)
    store.ensure_group(IMAGERY)
    (store.path / "zarr.json").unlink()
    Store.restore(store.path, store.grid)
    consolidate(store.path)
    assert {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()} == before
    np.testing.assert_array_equal(open_store(store.path)["map/2018/level3"].values, level3)


@pytest.fixture
def receipts(tmp_path) -> Receipts:
    return Receipts(tmp_path / "receipts")


def written(tmp_path: Path, text: str = "data") -> Path:
    path = tmp_path / "chunk"
    path.write_text(text)
    return path


def test_a_receipt_is_valid_for_its_id_and_files_only(tmp_path, receipts):
    file = written(tmp_path)
    receipts.write("predict", "2018/r0000c0000", "abc", {"pixels": 4}, [file])
    assert receipts.valid("predict", "2018/r0000c0000", "abc")["pixels"] == 4
    assert receipts.valid("predict", "2018/r0000c0000", "other") is None
    assert receipts.valid("predict", "2018/r0000c0001", "abc") is None
    file.write_text("longer data")
    assert receipts.valid("predict", "2018/r0000c0000", "abc") is None
    file.unlink()
    assert receipts.valid("predict", "2018/r0000c0000", "abc") is None


def test_a_receipt_cut_short_counts_as_none(tmp_path, receipts):
    receipts.write("labels", "a", "abc", {}, [written(tmp_path)])
    path = receipts.path("labels", "a")
    path.write_text(path.read_text()[:20])
    assert receipts.valid("labels", "a", "abc") is None


def test_a_receipt_of_an_older_geoflow_without_checksums_counts_as_none(tmp_path, receipts):
    file = written(tmp_path)
    old = {"id": "abc", "stage": "labels", "key": "a", "files": {file.name: file.stat().st_size}}
    write_json(receipts.path("labels", "a"), old)
    assert receipts.valid("labels", "a", "abc") is None


def test_a_receipt_tells_sizes_and_checksums(tmp_path, receipts):
    file = written(tmp_path, "123456789")
    listed = receipts.write("labels", "a", "abc", {}, [file])["files"]
    assert listed == {file.name: "9 e3069283"}, "the check value of crc32c (RFC 3720)"


def test_no_receipt_without_the_files(tmp_path, receipts):
    with pytest.raises(StoreError, match="without writing"):
        receipts.write("labels", "a", "abc", {}, [tmp_path / "missing"])
    assert receipts.read("labels", "a") is None


def test_digests_depend_on_values_not_on_order_or_kind_of_sequence():
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    assert digest("a", 1) != digest("a", 2)
    assert digest({3, 1, 2}) == digest({1, 2, 3})
    with pytest.raises(TypeError, match="object"):
        digest(object())


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "deep" / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]
