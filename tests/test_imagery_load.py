"""Cubes: the right pixel in the right place, nodata kept apart from dark, and failures that are never nodata."""

import copy
from pathlib import Path

import dask
import numpy as np
import odc.stac
import pystac
import pytest
import rasterio
import rioxarray  # noqa: F401 - registers the accessor
import stackstac
import xarray as xr
from imagery_scenes import CORNERS, Scene, grid, serve_folder, truth, write_catalog, write_cog, write_scene
from odc.geo.geobox import GeoBox
from rasterio.env import get_gdal_config
from rasterio.warp import transform as transform_points
from scipy.ndimage import map_coordinates

from geoflow.errors import CatalogError, GridError, SceneError
from geoflow.imagery import items_on, load_catalog, load_cube, load_scl
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.harmonise import PROPERTY
from geoflow.imagery.items import freeze
from geoflow.imagery.load import Reading, time_steps
from geoflow.imagery.read import Access, SceneFile, read_file
from geoflow.inputs import NODATA

BANDS = ("B04", "B02", "B11")
LOADERS = ("stackstac", "odc-stac")
APART = Reading(fuse=False)
VRT = """<VRTDataset rasterXSize="256" rasterYSize="256"><SRS>EPSG:32633</SRS>
<GeoTransform>271000, 10, 0, 5211000, 0, -10</GeoTransform><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>
<SourceFilename relativeToVRT="0">{href}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>
</VRTDataset>"""
SCENES = [
    Scene("west", day="2024-06-10", epsg=32632, tile="32TQT"),
    Scene("east", day="2024-06-10", epsg=32633),
    Scene("raw", day="2024-06-20", flag=False, offset_in_pixels=1000),
    Scene("edge", day="2024-06-25", nodata=(slice(0, 256), slice(0, 128))),
]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = write_catalog(tmp_path_factory.mktemp("stac"), SCENES)
    return load_catalog("sample", str(path))


@pytest.fixture(scope="module")
def items(catalog: Catalog) -> list[dict]:
    return [frozen(catalog, scene.id) for scene in SCENES]


def frozen(catalog: Catalog, name: str, **properties: object) -> dict:
    folder = Path(str(catalog.root)) / name
    item = freeze(pystac.Item.from_file(str(folder / f"{name}.json")).to_dict(), catalog, str(folder / "x.json"))
    item["properties"].update(properties)
    return item


def expected(geobox: GeoBox, band: str) -> np.ndarray:
    ys, xs = geobox.coords["y"].values, geobox.coords["x"].values
    return truth(band, *np.meshgrid(xs, ys))


@pytest.mark.parametrize("loader", LOADERS)
def test_contract_and_reflectance_of_two_zones_on_one_grid(catalog: Catalog, items: list[dict], loader: str) -> None:
    geobox = grid()
    cube = load_cube(items, geobox, BANDS, catalog, loader=loader, reading=APART)
    assert dask.is_dask_collection(cube)
    assert cube.dims == ("time", "band", "y", "x")
    assert cube.dtype == np.int16
    assert cube.band.values.tolist() == list(BANDS)
    assert cube.odc.geobox == geobox
    assert cube.rio.crs == geobox.crs
    assert cube.rio.transform() == geobox.transform
    assert cube.attrs["nodata"] == NODATA
    values = cube.compute()
    for step, band in np.ndindex(3, len(BANDS)):  # west, east and raw cover the grid whole
        off = np.abs(values[step, band].values - expected(geobox, BANDS[band]))
        assert off.max() <= 1.0, (SCENES[step].id, BANDS[band])


def test_what_is_made_can_be_written(catalog: Catalog, items: list[dict], tmp_path: Path) -> None:
    cube = load_cube(items[:3], grid(32), BANDS, catalog)
    cube.to_zarr(tmp_path / "cube.zarr")
    again = xr.open_zarr(tmp_path / "cube.zarr", decode_coords="all").reflectance
    assert again.rio.crs == cube.rio.crs
    np.testing.assert_array_equal(again.values, cube.values)


def test_the_loaders_agree_to_the_pixel(catalog: Catalog, items: list[dict]) -> None:
    for geobox, reading in (
        (grid(), APART),
        (grid(), Reading("cubic")),
        (grid(40, 30.0), Reading()),
        (grid(epsg=32633), Reading("nearest")),
    ):
        ours, other = (
            load_cube(items, geobox, BANDS, catalog, loader=loader, reading=reading).values for loader in LOADERS
        )
        np.testing.assert_array_equal(ours, other)
        ours, other = (load_scl(items, geobox, catalog, loader=loader).values for loader in LOADERS)
        np.testing.assert_array_equal(ours, other)


def test_on_its_own_grid_a_scene_is_what_the_libraries_read(catalog: Catalog) -> None:
    """Against stackstac and odc-stac with their own readers, where resampling leaves no choice."""
    item = frozen(catalog, "east")
    geobox = grid(epsg=32633)
    ours = load_cube([item], geobox, ["B02"], catalog).values[0, 0]
    plain = {**item, "properties": {**item["properties"], "proj:code": "EPSG:32633"}}
    theirs = odc.stac.load([pystac.Item.from_dict(plain)], bands=["blue"], geobox=geobox, dtype="uint16", nodata=0)
    np.testing.assert_array_equal(ours, theirs.blue.values[0])
    stack = stackstac.stack(
        [item],
        assets=["blue"],
        epsg=32633,
        bounds=tuple(geobox.boundingbox),
        resolution=10,
        dtype=np.uint16,
        fill_value=np.uint16(0),
        rescale=False,
    )
    np.testing.assert_array_equal(ours, stack.values[0, 0])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("reading", [APART, Reading("cubic")])
def test_pixels_do_not_depend_on_chunks(catalog: Catalog, items: list[dict], loader: str, reading: Reading) -> None:
    geobox = grid()
    whole = load_cube(items, geobox, BANDS, catalog, loader=loader, reading=reading).values
    chunks = {"time": 2, "band": -1, "y": 40, "x": 64}
    parts = load_cube(items, geobox, BANDS, catalog, chunks, loader, reading)
    assert parts.chunks[1:] == ((3,), (40, 40, 16), (64, 32))
    assert parts.chunks[0] == ((2, 2) if reading is APART else (2, 1))
    np.testing.assert_array_equal(parts.values, whole)


def test_pixels_do_not_depend_on_the_part_of_the_grid(catalog: Catalog, items: list[dict]) -> None:
    """To the bit, in every part of the grid, however small: what a map that is made tile by tile rests on."""
    for size, resolution in ((96, 10.0), (24, 60.0)):
        geobox = grid(size, resolution)
        whole, scl = load_cube(items, geobox, BANDS, catalog), load_scl(items, geobox, catalog)
        for rows, cols in ((slice(0, 7), slice(3, 11)), (slice(11, 24), slice(0, 24)), (slice(5, 6), slice(17, 18))):
            part = geobox[rows, cols]
            np.testing.assert_array_equal(load_cube(items, part, BANDS, catalog), whole.values[..., rows, cols])
            np.testing.assert_array_equal(load_scl(items, part, catalog), scl.values[..., rows, cols])


@pytest.mark.parametrize("loader", LOADERS)
def test_scenes_of_one_datatake_are_one_time_step(catalog: Catalog, items: list[dict], loader: str) -> None:
    assert time_steps(items) == ((0, 1), (2,), (3,))
    assert time_steps(items, fuse=False) == ((0,), (1,), (2,), (3,))
    halves = [
        {**item, "properties": {**item["properties"], "s2:datatake_id": "GS2A_20240625T100031_031436_N05.10"}}
        for item in items
    ]
    order = [halves[3], halves[1], halves[2]]  # edge has data in its east only; east and raw have it everywhere
    geobox = grid()
    fused = load_cube(order, geobox, BANDS, catalog, loader=loader).values
    apart = load_cube(order, geobox, BANDS, catalog, loader=loader, reading=APART).values
    assert fused.shape == (1, *apart.shape[1:])
    np.testing.assert_array_equal(fused[0], np.where(apart[0] != NODATA, apart[0], apart[1]))
    scl = load_scl(order, geobox, catalog, loader=loader)
    assert scl.dims == ("time", "y", "x")
    assert (scl.values == 4).all()


@pytest.mark.parametrize("epsg", [3035, 32633])
def test_nodata_does_not_darken_its_neighbours(catalog: Catalog, epsg: int) -> None:
    geobox = grid(epsg=epsg, size=128)
    item = frozen(catalog, "edge")
    values = load_cube([item], geobox, BANDS, catalog).values[0]
    missing = values == NODATA
    assert 0.2 < missing.mean() < 0.8
    for band, name in enumerate(BANDS):
        if epsg == 3035:
            right = expected(geobox, name)
        else:
            right = load_cube([frozen(catalog, "east")], geobox, [name], catalog).values[0, 0]
        off = np.abs(values[band] - right)[~missing[band]]
        # Extrapolating a plane by half a source pixel costs a few counts; mixing with 0 would cost a hundred.
        assert off.max() <= 3, name


def test_dark_is_not_nodata(catalog: Catalog, tmp_path: Path) -> None:
    scene = Scene("dark", flag=False, constant={"B02": 0, "B04": -40}, offset_in_pixels=1000)
    own = load_catalog("sample", str(write_catalog(tmp_path, [scene])))
    item = frozen(own, "dark", **{PROPERTY: {"add": -1000}})
    values = load_cube([item], grid(), ["B02", "B04"], own).values
    assert (values[0, 0] == 0).all()
    assert (values[0, 1] == -40).all()


def test_a_saturated_pixel_stays_valid(catalog: Catalog, tmp_path: Path) -> None:
    own = load_catalog("sample", str(write_catalog(tmp_path, [Scene("bright", constant={"B02": 60000})])))
    values = load_cube([frozen(own, "bright")], grid(8), ["B02"], own).values
    assert (values == 32767).all()


def test_scl_is_nearest_and_uint8(catalog: Catalog, tmp_path: Path) -> None:
    scene = Scene("cloud", cloud=(slice(40, 80), slice(30, 70)), scl=5)
    own = load_catalog("sample", str(write_catalog(tmp_path, [scene])))
    scl = load_scl([frozen(own, "cloud")], grid(), own)
    assert (scl.dims, scl.dtype) == (("time", "y", "x"), np.uint8)
    assert set(np.unique(scl.values)) == {5, 9}


def test_a_coarser_grid_averages(tmp_path: Path) -> None:
    """Columns of 0 and 2000 by turns must come out near 1000 at 60 m, not as one or the other."""
    own = load_catalog("sample", str(write_catalog(tmp_path, [Scene("stripes")])))
    pixels = np.tile(np.array([1, 1999], np.uint16), (256, 128))
    write_cog(tmp_path / "stripes" / "B02.tif", pixels, 32633, CORNERS[32633], 10)
    values = load_cube([frozen(own, "stripes")], grid(16, 60.0), ["B02"], own).values
    assert np.abs(values - 1000.0).max() < 150


def test_bilinear_is_bilinear_on_a_turned_grid(tmp_path: Path) -> None:
    """Against scipy, on noise: GDAL left to itself blurs it, and differently in every block."""
    own = load_catalog("sample", str(write_catalog(tmp_path, [Scene("noise")])))
    pixels = np.random.default_rng(0).integers(500, 1500, (256, 256)).astype(np.uint16)
    write_cog(tmp_path / "noise" / "B02.tif", pixels, 32633, CORNERS[32633], 10)
    item = frozen(own, "noise", **{PROPERTY: {"add": 0}})
    geobox = grid(128)
    xs, ys = np.meshgrid(geobox.coords["x"].values, geobox.coords["y"].values)
    east, north = transform_points("EPSG:3035", "EPSG:32633", xs.ravel(), ys.ravel())
    left, top = CORNERS[32633]
    cols, rows = (np.array(east) - left) / 10 - 0.5, (top - np.array(north)) / 10 - 0.5
    right = map_coordinates(pixels.astype(float), [rows, cols], order=1).reshape(geobox.shape)
    for chunks in (None, {"y": 50, "x": 128}):
        values = load_cube([item], geobox, ["B02"], own, chunks).values[0, 0]
        assert np.abs(values - right).max() <= 1.5


def test_gdal_keeps_blocks_in_its_cache(catalog: Catalog) -> None:
    """rasterio takes GDAL_CACHEMAX in bytes: 256 of them made every read decode its blocks many times over."""
    file = SceneFile(f"{catalog.root}/east/B02.tif", "east", "B02")
    assert read_file(file, Access(), lambda _: get_gdal_config("GDAL_CACHEMAX")) >= 64 * 2**20


def test_jpeg2000_is_read_as_cogs_are(catalog: Catalog, items: list[dict], tmp_path: Path) -> None:
    """As the Copernicus Data Space has them: without nodata in the file, and 0 for it."""
    item = copy.deepcopy(items[3])
    for key, asset in item["assets"].items():
        with rasterio.open(asset["href"]) as file:
            profile = {k: file.profile[k] for k in ("width", "height", "count", "dtype", "crs", "transform")}
            pixels = file.read()
        asset["href"] = str(tmp_path / f"{key}.jp2")
        with rasterio.open(asset["href"], "w", driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", **profile) as file:
            file.write(pixels)
    cog, jp2 = (load_cube([one], grid(), BANDS, catalog).values for one in (items[3], item))
    np.testing.assert_array_equal(jp2, cog)
    assert len(np.unique(jp2)) > 10
    assert 0.1 < (jp2 == NODATA).mean() < 0.9
    np.testing.assert_array_equal(*(load_scl([one], grid(), catalog).values for one in (items[3], item)))


def test_scenes_elsewhere_are_left_out(catalog: Catalog, items: list[dict]) -> None:
    far = GeoBox.from_bbox((3_000_000, 2_000_000, 3_001_000, 2_001_000), "EPSG:3035", resolution=10)
    assert items_on(items, far) == ()
    assert len(items_on(items, grid())) == 4
    with pytest.raises(CatalogError, match="none of 4 scenes"):
        load_cube(items, far, BANDS, catalog)


def test_a_scene_that_only_comes_near_gives_nodata(catalog: Catalog) -> None:
    item = frozen(catalog, "east")
    left, top = CORNERS[32633]
    beside = GeoBox.from_bbox((left - 700, top - 500, left - 200, top), "EPSG:32633", resolution=10, tight=True)
    assert len(items_on([item], beside)) == 1
    for geobox in (beside, beside.to_crs("EPSG:3035")):
        assert (load_cube([item], geobox, ["B02"], catalog).values == NODATA).all()


def test_wrong_arguments_are_named(catalog: Catalog, items: list[dict]) -> None:
    with pytest.raises(CatalogError, match="B99"):
        load_cube(items, grid(), ["B99"], catalog)
    with pytest.raises(CatalogError, match=r"'rioxarray'.*stackstac"):
        load_cube(items, grid(), BANDS, catalog, loader="rioxarray")
    with pytest.raises(GridError, match="lat"):
        load_cube(items, grid(), BANDS, catalog, {"lat": 12})
    without = GeoBox((8, 8), grid(8).transform, "+proj=laea +lat_0=52 +lon_0=10 +x_0=4321001 +y_0=3210000 +ellps=GRS80")
    with pytest.raises(GridError, match="odc-stac"):
        load_cube(items, without, BANDS, catalog)
    assert (load_cube(items, without, BANDS, catalog, loader="odc-stac")[:2] > 0).all()
    with pytest.raises(SceneError, match=r"west.*coastal.*B01.*blue"):
        load_cube(items, grid(), ["B01"], catalog)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage", "vrt"])
def test_a_file_that_cannot_be_read_is_an_error(catalog: Catalog, tmp_path: Path, loader: str, damage: str) -> None:
    path = write_catalog(tmp_path, [Scene("whole"), Scene("broken")])
    own = load_catalog("sample", str(path))
    file = tmp_path / "broken" / "B04.tif"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "vrt":  # a format that points at other files must not be followed, though this one could be
        file.write_text(VRT.format(href=tmp_path / "whole" / "B04.tif"))
        with rasterio.open(file) as followed:
            assert followed.read(1).any()
    else:
        file.write_bytes(b"not a picture")
    items = [frozen(own, name, **{PROPERTY: {"add": 0}}) for name in ("whole", "broken")]
    cube = load_cube(items, grid(), ["B02", "B04"], own, loader=loader, reading=APART)
    with pytest.raises(SceneError, match=r"broken, band B04: .*B04\.tif") as caught:
        cube.compute()
    assert caught.value.__cause__ is not None
    assert (cube.isel(time=0) != NODATA).all()


def test_reading_over_http(catalog: Catalog, items: list[dict], tmp_path: Path) -> None:
    local = load_cube(items[:2], grid(), BANDS, catalog).values
    root = str(catalog.root)
    with serve_folder(Path(root)) as address:
        remote = [
            {
                **item,
                "assets": {k: {**a, "href": a["href"].replace(root, address)} for k, a in item["assets"].items()},
            }
            for item in items[:2]
        ]
        np.testing.assert_array_equal(load_cube(remote, grid(), BANDS, catalog).values, local)
        remote[0]["assets"]["red"]["href"] += ".gone"
        with pytest.raises(SceneError, match=r"west, band B04.*404"):
            load_cube(remote, grid(), BANDS, catalog).compute()


def test_write_scene_is_deterministic(tmp_path: Path) -> None:
    first, second = (write_scene(tmp_path / n, Scene("same")) for n in ("a", "b"))
    assert first == second
    assert (tmp_path / "a/same/B02.tif").read_bytes() == (tmp_path / "b/same/B02.tif").read_bytes()
