"""Composites: the integer median against a slow one, masks, periods, and lazy against eager."""

import os
from datetime import date
from pathlib import Path

import dask
import numpy as np
import pytest
import rioxarray  # noqa: F401 - registers the accessor
from hypothesis import given, settings
from hypothesis import strategies as st
from imagery_scenes import AREA, Scene, grid, truth, write_catalog
from odc.geo.geom import box

from geoflow.errors import CatalogError, SceneError
from geoflow.grid import Grid
from geoflow.imagery import (
    CompositeOptions,
    Period,
    clear_mask,
    clearmask,
    composite_tile,
    load_catalog,
    load_cube,
    load_scl,
    median_composite,
    search,
    with_decisions,
)
from geoflow.inputs import NODATA

JUNE = Period("june", date(2024, 6, 1), date(2024, 6, 30))
JULY = Period("july", date(2024, 7, 1), date(2024, 7, 31))
BANDS = ("B04", "B02", "B11")
SCENES = [
    Scene("clear-1", day="2024-06-05"),
    Scene("clear-2", day="2024-06-10", epsg=32632, tile="32TQT", constant={"B04": 600}),
    Scene("raw", day="2024-06-15", flag=False, offset_in_pixels=1000),
    Scene("cloudy", day="2024-06-20", cloud=(slice(40, 70), slice(40, 64)), constant={"B02": 6000, "B04": 6000}),
    Scene("half", day="2024-07-05", nodata=(slice(0, 256), slice(0, 128))),
]


def test_clear_mask() -> None:
    scl = np.full((1, 9, 9), 4, np.uint8)
    scl[0, 4, 4], scl[0, 0, 0], scl[0, 8, 8], scl[0, 0, 8] = 9, 0, 1, 11
    assert (~clear_mask(scl)).sum() == 3
    grown = ~clear_mask(scl, dilate_px=2)[0]
    assert grown[2:7, 2:7].all(), "cloud grows"
    assert grown.sum() == 25 + 2, "nodata and defective pixels do not"
    assert clear_mask(scl, classes=(11,))[0, 4, 4]
    assert not clear_mask(scl, classes=(11,))[0, 0, 0], "nodata is never clear"
    assert not clear_mask(scl, np.zeros(scl.shape, bool)).any()


@pytest.mark.parametrize("seed", range(6))
def test_margins_and_specks_are_those_of_scipy(seed: int) -> None:
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    speck, dilate = int(rng.integers(1, 7)), int(rng.integers(0, 9))
    scl = np.where(ndimage.gaussian_filter(rng.normal(size=(11, 60, 47)), (0, 2, 2)) > 0.1, 9, 4).astype(np.uint8)
    cloud = (scl == 9).astype(np.uint8)
    if speck > 1:
        cloud = ndimage.grey_opening(cloud, size=(1, speck, speck), mode="nearest")
    grown = ndimage.maximum_filter(cloud, size=(1, 2 * dilate + 1, 2 * dilate + 1), mode="constant")
    wanted = ~((scl == 9) | ((grown > 0) & (dilate > 0)))
    found = clear_mask(scl, dilate_px=dilate, speck_px=speck)
    inner = (slice(None), slice(speck, -speck), slice(speck, -speck))  # at the very edge scipy replicates twice
    core = inner if dilate == 0 else (slice(None), slice(16, -16), slice(16, -16))
    np.testing.assert_array_equal(found[core], wanted[core])
    assert 0 < found.mean() < 1


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), dilate=st.integers(0, 6), speck=st.integers(0, 5))
def test_strips_of_rows_do_not_alter_a_mask(seed: int, rows: int, dilate: int, speck: int) -> None:
    scl = np.random.default_rng(seed).choice([0, 3, 4, 5, 9], (10, 23, 17), p=[0.02, 0.05, 0.7, 0.13, 0.1])
    scl = scl.astype(np.uint8)
    whole = clear_mask(scl, dilate_px=dilate, speck_px=speck)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clearmask, "_STRIP_ROWS", rows)
        np.testing.assert_array_equal(clear_mask(scl, dilate_px=dilate, speck_px=speck), whole)


def test_specks_mask_themselves_but_do_not_grow() -> None:
    scl = np.full((20, 20), 4, np.uint8)
    scl[3, 3], scl[10:13, 10:13] = 9, 9
    masked = ~clear_mask(scl, dilate_px=2, speck_px=3)
    assert masked[3, 3]
    assert masked[8:15, 8:15].all()
    assert masked.sum() == 1 + 49


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory):
    return load_catalog("sample", str(write_catalog(tmp_path_factory.mktemp("stac"), SCENES)))


@pytest.fixture(scope="module")
def items(catalog) -> tuple[dict, ...]:
    return with_decisions(search(catalog, AREA, "2024-06-01", "2024-07-31", bands=BANDS).items, catalog)


def options(**changes: object) -> CompositeOptions:
    return CompositeOptions(**{"periods": (JUNE, JULY), "bands": BANDS, **changes})


@pytest.mark.parametrize("loader", ["stackstac", "odc-stac"])
def test_composite_is_the_ground(catalog, items: tuple[dict, ...], loader: str) -> None:
    geobox = grid(120)
    made = composite_tile(items, geobox, options(loader=loader), catalog)
    assert dask.is_dask_collection(made)
    assert made.reflectance.dims == ("period", "band", "y", "x")
    assert made.clear.dims == ("period", "y", "x")
    assert (made.reflectance.dtype, made.clear.dtype) == (np.int16, np.uint8)
    assert made.period.values.tolist() == ["june", "july"]
    assert made.band.values.tolist() == list(BANDS)
    assert made.odc.geobox == geobox
    assert made.reflectance.rio.crs == geobox.crs
    made = made.compute()
    xs, ys = np.meshgrid(geobox.coords["x"].values, geobox.coords["y"].values)
    for band in ("B02", "B11"):  # three equal scenes and a cloudy one
        off = made.reflectance.sel(period="june", band=band).values - truth(band, xs, ys)
        assert np.abs(off).max() <= 1.5, band
    assert set(np.unique(made.clear.sel(period="june"))) == {3, 4}
    july = made.sel(period="july")
    gone = (july.reflectance == NODATA).any("band")
    assert 0.1 < gone.mean() < 0.9
    np.testing.assert_array_equal(july.clear == 0, gone)


def test_lazy_equals_the_kernels(catalog, items: tuple[dict, ...]) -> None:
    geobox = grid(100)
    june = items[:4]
    lazy = composite_tile(june, geobox, options(periods=(JUNE,), dilate_m=40.0), catalog).compute()
    cube = load_cube(june, geobox, BANDS, catalog).values
    scl = load_scl(june, geobox.pad(9), catalog).values
    clear = clear_mask(scl, dilate_px=4, speck_px=5)[:, 9:-9, 9:-9]
    median, count = median_composite(cube, clear)
    np.testing.assert_array_equal(lazy.reflectance.values[0], median)
    np.testing.assert_array_equal(lazy.clear.values[0], count.min(axis=0))


def test_tiles_join_without_a_seam(catalog, items: tuple[dict, ...]) -> None:
    """A cloud in one tile masks its margin in the next, as if there were no border."""
    whole = Grid(grid(128), tile=64, chunk=32)
    made = composite_tile(items, whole.geobox, options(dilate_m=100.0), catalog).compute()
    for tile in whole.tiles():
        part = composite_tile(items, tile.geobox, options(dilate_m=100.0), catalog).compute()
        np.testing.assert_array_equal(part.clear, made.clear.isel(tile.region))
        off = part.reflectance.values.astype(int) - made.reflectance.isel(tile.region).values
        assert np.abs(off).max() <= 1


def test_a_period_without_scenes_is_nodata(catalog, items: tuple[dict, ...]) -> None:
    empty = Period("winter", date(2023, 12, 1), date(2024, 1, 31))
    made = composite_tile(items, grid(16), options(periods=(JUNE, empty)), catalog).compute()
    assert (made.reflectance.sel(period="winter") == NODATA).all()
    assert (made.clear.sel(period="winter") == 0).all()
    assert (made.clear.sel(period="june") > 0).all()
    overcast = composite_tile(items, grid(16), options(scl_masked=tuple(range(12))), catalog).compute()
    assert (overcast.reflectance == NODATA).all()
    assert (overcast.clear == 0).all()


def test_a_broken_scene_fails_the_tile(catalog, items: tuple[dict, ...], tmp_path: Path) -> None:
    broken = {
        **items[1],
        "assets": {k: {**a, "href": str(tmp_path / f"{k}.tif")} for k, a in items[1]["assets"].items()},
    }
    with pytest.raises(SceneError, match=r"clear-2.*\.tif"):
        composite_tile((items[0], broken), grid(16), options(), catalog).compute(scheduler="threads")


def test_wrong_options_are_named(catalog, items: tuple[dict, ...]) -> None:
    for changes, words in (
        ({"periods": (JUNE, JUNE)}, "june"),
        ({"periods": ()}, "at least one"),
        ({"dilate_m": -1.0}, "-1"),
        ({"speck_m": float("nan")}, "nan"),
        ({"scl_masked": (3, 12)}, "12"),
        ({"method": "mean"}, "'mean'.*median"),
        ({"method": "p101"}, "'p101'.*p0 to p100"),
        ({"reach_m": float("inf")}, "reach_m"),
        ({"loader": "gdal"}, "'gdal'.*odc-stac"),
    ):
        with pytest.raises(CatalogError, match=words):
            options(**changes)
    with pytest.raises(CatalogError, match="starts on"):
        Period("x", date(2024, 2, 1), date(2024, 1, 1))
    with pytest.raises(CatalogError, match="B99"):
        composite_tile(items, grid(16), options(bands=("B99",)), catalog)


@pytest.mark.parametrize("method", ["median", "p25", "medoid", "geomedian", "best"])
def test_real_scenes_give_a_sane_composite(method: str) -> None:
    folder = os.environ.get("GEOFLOW_REAL_DATA")
    if not folder:
        pytest.skip("GEOFLOW_REAL_DATA is not set: no real scenes")
    catalog = load_catalog("sample", str(Path(folder) / "s2-slovenia" / "catalog.json"))
    area = box(15.3, 45.8, 16.1, 46.6, "EPSG:4326")
    bands = ("B04", "B03", "B02", "B08")
    found = with_decisions(search(catalog, area, "2023-08-01", "2023-08-31", bands=bands).items, catalog)
    geobox = Grid.cover(area, "EPSG:3035", 120, 512, 256).geobox
    period = Period("august", date(2023, 8, 1), date(2023, 8, 31))
    made = composite_tile(found, geobox, CompositeOptions((period,), bands, method=method), catalog).compute()
    image = made.reflectance.isel(period=0)
    inside = made.clear.isel(period=0).values > 0
    assert inside.mean() > 0.97
    middle = [float(np.median(image.sel(band=b).values[inside])) for b in bands]
    red, green, blue, nir = middle
    assert 150 < blue < green < 900, "August woods and fields are dark in visible light"
    assert blue < 600
    assert 200 < red < 700
    assert 2500 < nir < 4500, "and bright in the near infrared"
    bright = (image.sel(band="B02").values > 2000)[inside].mean()
    cloudy = load_cube(found[4:], geobox, ["B02"], catalog).max("time").values
    assert (cloudy > 2000).mean() > 0.2, "the 18th was cloudy"
    assert bright < 0.01, "and the composite is not"
