"""Composites of every method on real files: their scenes can be found, and no cut or order changes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
from imagery_scenes import AREA, Scene, grid, truth, write_catalog

import geoflow as gf
from geoflow.errors import CatalogError
from geoflow.imagery import CompositeOptions, Period, composite_tile, load_catalog, load_cube, search, with_decisions
from geoflow.imagery.clearmask import DETECTED, clear_mask
from geoflow.imagery.kernels import NO_SOURCE
from geoflow.imagery.load import Reading
from geoflow.imagery.scores import PARTS, day_scores, pixel_scores
from geoflow.inputs import NODATA
from geoflow.jobs import layout

JUNE = Period("june", date(2024, 6, 1), date(2024, 6, 30))
BANDS = ("B04", "B02", "B11")
# The third and fourth are one datatake, cut into two tiles: the first has no data in the west, the second none in the
# south; they overlap elsewhere.
TAKE = "GS2A_20240616T100031_031436_N05.10"
SCENES = [
    Scene("a", day="2024-06-03", constant={"B04": 700}),
    Scene("b", day="2024-06-10", cloud=(slice(40, 70), slice(40, 64)), constant={"B02": 6000}),
    Scene("c", day="2024-06-16", datatake=TAKE, nodata=(slice(0, 256), slice(0, 128)), constant={"B04": 620}),
    Scene("d", day="2024-06-16", datatake=TAKE, tile="33TUN", nodata=(slice(128, 256), slice(0, 256))),
    Scene("e", day="2024-06-28", epsg=32632, tile="32TQT"),
]
METHODS = ("median", "p25", "medoid", "geomedian", "best")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory):
    return load_catalog("sample", str(write_catalog(tmp_path_factory.mktemp("stac"), SCENES)))


@pytest.fixture(scope="module")
def items(catalog) -> tuple[dict, ...]:
    return with_decisions(search(catalog, AREA, "2024-06-01", "2024-06-30", bands=BANDS).items, catalog)


def options(method: str, **changes: object) -> CompositeOptions:
    return CompositeOptions(**{"periods": (JUNE,), "bands": BANDS, "method": method, "reach_m": 200.0, **changes})


@pytest.mark.parametrize("method", METHODS)
def test_order_loader_and_tiles_change_nothing(catalog, items: tuple[dict, ...], method: str) -> None:
    geobox = grid(128)
    numbers = {item["id"]: n for n, item in enumerate(items)}
    made = composite_tile(items, geobox, options(method), catalog, numbers=numbers).compute()
    assert ("source" in made) == (method in ("medoid", "best"))
    assert made.reflectance.dims == ("period", "band", "y", "x")
    assert made.reflectance.dtype == np.int16
    for name in set(made.data_vars) - {"reflectance"}:
        assert made[name].dims == ("period", "y", "x")
    mixed = [items[i] for i in (4, 2, 0, 3, 1)]
    again = composite_tile(mixed, geobox, options(method), catalog, numbers=numbers).compute()
    assert made.equals(again)
    odc = composite_tile(items, geobox, options(method, loader="odc-stac"), catalog, numbers=numbers).compute()
    assert made.equals(odc)
    for rows in (slice(0, 50), slice(50, 128)):
        part = composite_tile(items, geobox[rows, 20:90], options(method), catalog, numbers=numbers).compute()
        for name in made.data_vars:
            np.testing.assert_array_equal(part[name], made[name][..., rows, 20:90], err_msg=name)


@pytest.mark.parametrize("method", ["medoid", "best"])
@pytest.mark.parametrize("fuse", [True, False])
def test_a_pixel_leads_to_its_scene(catalog, items: tuple[dict, ...], method: str, fuse: bool) -> None:
    geobox = grid(120)
    numbers = {item["id"]: 7 * n + 1 for n, item in enumerate(items)}
    chosen = options(method, reading=Reading(fuse=fuse))
    made = composite_tile(items, geobox, chosen, catalog, numbers=numbers).compute().isel(period=0)
    source = made.source.values
    assert set(np.unique(source)) <= {*numbers.values(), NO_SOURCE}
    assert len(np.unique(source)) > 1
    for item in items:
        of_it = source == numbers[item["id"]]
        alone = load_cube([item], geobox, BANDS, catalog).values[0]
        np.testing.assert_array_equal(made.reflectance.values[:, of_it], alone[:, of_it])
    np.testing.assert_array_equal(source == NO_SOURCE, made.clear.values == 0)


def test_scenes_of_one_datatake_count_once(catalog, items: tuple[dict, ...]) -> None:
    c_and_d = [item for item in items if item["id"] in "cd"]
    made = composite_tile(c_and_d, grid(120), options("medoid"), catalog).compute().isel(period=0)
    assert set(np.unique(made.clear)) <= {0, 1}
    seen = made.clear.values == 1
    assert set(np.unique(made.source.values[seen])) == {0, 1}, "both have pixels that the other lacks"
    # Where both have data, the first in the order of ids is the source.
    first = load_cube([c_and_d[0]], grid(120), BANDS, catalog).values[0, 0] != NODATA
    np.testing.assert_array_equal(made.source.values[seen & first], 0)


@pytest.mark.parametrize("method", ["medoid", "best", "geomedian"])
def test_no_spectrum_is_put_together_from_two_scenes(method: str, tmp_path: Path) -> None:
    """At the edge of a swath a scene may lack one band: there the pixel is of the other scene in all bands."""
    one, other = (
        Scene(name, day="2024-06-16", datatake=TAKE, tile=tile, constant=dict.fromkeys(BANDS, value))
        for name, tile, value in (("c", "33TTN", 300), ("d", "33TUN", 500))
    )
    catalog = load_catalog("sample", str(write_catalog(tmp_path, [one, other])))
    with rasterio.open(tmp_path / "c/B04.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        pixels = file.read(1)
        pixels[:128] = 0
        file.write(pixels, 1)
    found = with_decisions(search(catalog, AREA, "2024-06-01", "2024-06-30", bands=BANDS).items, catalog)
    made = composite_tile(found, grid(120), options(method), catalog).compute().isel(period=0)
    spectra = made.reflectance.values.reshape(len(BANDS), -1)
    assert (spectra == spectra[0]).all(), "a pixel is 300 in all bands, or 500 in all"
    assert len(np.unique(spectra)) == 2
    if method != "geomedian":
        scenes = np.array([item["id"] for item in found])[made.source.values]
        np.testing.assert_array_equal(scenes == "d", made.reflectance.values[0] == spectra.max())


def test_best_takes_the_middle_of_the_period_and_flees_clouds(catalog, items: tuple[dict, ...]) -> None:
    geobox = grid(160)
    made = composite_tile(items, geobox, options("best", reach_m=300.0), catalog).compute().isel(period=0)
    names = np.array([item["id"] for item in items])
    source = names[made.source.values]
    assert {"c", "d"} <= set(np.unique(source)), "the 16th is the middle"
    xs, ys = np.meshgrid(geobox.coords["x"].values, geobox.coords["y"].values)
    off = np.abs(made.reflectance.sel(band="B11").values - truth("B11", xs, ys))
    assert off.max() <= 1.5
    # Of a cloudy scene and a later one, the later one wins near the cloud, the nearer to the middle far away.
    pair = [item for item in items if item["id"] in "be"]
    two = composite_tile(pair, geobox, options("best", reach_m=300.0), catalog).compute().isel(period=0)
    near = composite_tile(pair, geobox, options("best", reach_m=0.0), catalog).compute().isel(period=0)
    assert (two.source.values == 1).sum() > (near.source.values == 1).sum() + 500
    assert (near.source.values == 0).any()


def test_a_period_without_scenes_has_no_source(catalog, items: tuple[dict, ...]) -> None:
    winter = Period("winter", date(2023, 12, 1), date(2024, 1, 31))
    made = composite_tile(items, grid(16), options("best", periods=(winter, JUNE)), catalog).compute()
    assert (made.source.sel(period="winter") == NO_SOURCE).all()
    assert (made.reflectance.sel(period="winter") == NODATA).all()
    assert (made.source.sel(period="june") != NO_SOURCE).all()


def test_scores() -> None:
    assert day_scores((0.5, 15.0, 7.5), 15.0, 30) == pytest.approx((0.1543, 1.0, 0.6065), abs=1e-3)
    scl = np.full((2, 9, 21), 4, np.uint8)
    scl[0, :, 0], scl[0, 4, 20], scl[1, 0, 0], scl[1, 1, 1] = 9, 7, 0, 3
    score = pixel_scores(scl, (1.0, 0.0), dilate_px=2, reach_px=8)
    assert score.dtype == np.uint16
    assert (score[0, :, :3] == 0).all(), "cloud and its margin"
    rising = score[0, 4, 3:10].astype(int)
    assert (np.diff(rising) >= 0).all()
    assert rising[-1] > rising[0]
    assert score[0, 0, 20] == score[0].max() <= 3 * PARTS + 1
    assert score[0, 4, 20] == pytest.approx(int(score[0, 0, 20]) - PARTS / 2, abs=1), "unclassified is half as sure"
    assert score[1, 0, 0] == 0, "nodata"
    assert score[1, 8, 20] == pytest.approx(int(score[0, 0, 20]) - PARTS, abs=1), "a bad day"
    np.testing.assert_array_equal(score > 0, clear_mask(scl, dilate_px=2))


def test_what_a_detector_found_is_never_clear() -> None:
    scl = np.full((9, 9), 4, np.uint8)
    scl[4, 4] = DETECTED
    assert (~clear_mask(scl, classes=())).sum() == 1
    assert (~clear_mask(scl, classes=(), dilate_px=1)).sum() == 9
    assert (pixel_scores(scl[None], (1.0,), classes=(), dilate_px=1) == 0).sum() == 9


def test_identity_is_what_alters_pixels() -> None:
    one = options("median").identity()
    assert one == options("median", reach_m=50.0, reading=Reading(attempts=9)).identity()
    assert one != options("p50").identity()
    assert options("best").identity() != options("best", reach_m=50.0).identity()
    with pytest.raises(CatalogError, match="'p7x'"):
        options("p7x")


@pytest.mark.slow
def test_a_job_keeps_the_source_and_forgets_it_with_the_method(tiny_job: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny_job("labels", "classifier", "train", "predict", "generalise", "change", "evaluate", "publish")
    changes = ["imagery.composite=best", "imagery.best_reach_m=300"]
    gf.run(gf.load_job(path, changes), tmp_path, cluster="threads")
    group = gf.open(tmp_path)["imagery/2018"]
    frozen = [item["id"] for item in json.loads((tmp_path / "scenes/2018.json").read_text())["items"]]
    assert group.attrs["scenes"] == frozen
    source = group["source"]
    assert (source.dtype, source.attrs["nodata"]) == (np.uint16, NO_SOURCE == layout.NO_SOURCE and NO_SOURCE)
    values = source.values
    np.testing.assert_array_equal(values == NO_SOURCE, group["clear"].values == 0)
    receipts = [json.loads(path.read_text()) for path in (tmp_path / "receipts/imagery/2018").glob("*.json")]
    for number, name in enumerate(frozen):
        assert sum(r["source_px"].get(name, 0) for r in receipts) == (values == number).sum()
    for period, days in group.attrs["periods"].items():
        used = np.unique(source.sel(period=period).values)
        dates = [frozen[n].split("_")[2] for n in used if n != NO_SOURCE]
        assert dates
        assert all(days[0].replace("-", "") <= day <= days[1].replace("-", "") for day in dates)
    gf.run(gf.load_job(path), tmp_path, cluster="threads")
    again = gf.open(tmp_path)["imagery/2018"]
    assert "source" not in again
    assert "scenes" not in again.attrs
    assert again.attrs["composite"] == "median"
