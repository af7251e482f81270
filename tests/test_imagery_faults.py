"""Reading over a network that fails: what may pass is tried again and gives the same pixels, what stays is an error."""

import contextlib
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dask
import numpy as np
import pystac
import pytest
from faulty_server import Faults, serve_tokens, serve_with_faults
from imagery_scenes import Scene, grid, write_catalog

from geoflow.errors import SceneError
from geoflow.imagery import CompositeOptions, Period, load_catalog, load_cube
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.harmonise import PROPERTY
from geoflow.imagery.items import freeze
from geoflow.imagery.load import Reading
from geoflow.imagery.read import ReadError, ReadLog
from geoflow.inputs import NODATA
from geoflow.jobs.imagerywork import CompositeWork

BANDS = ("B02", "B04")
QUICK = Reading(fuse=False, attempts=3, timeout_s=4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stac")
    write_catalog(path, [Scene("first"), Scene("second", day="2024-06-20")])
    return path


@pytest.fixture(scope="module")
def clean(folder: Path) -> np.ndarray:
    catalog = load_catalog("sample", str(folder / "catalog.json"))
    return load_cube(frozen(folder, catalog, str(folder)), grid(), BANDS, catalog, reading=QUICK).values


def frozen(folder: Path, catalog: Catalog, address: str) -> list[dict]:
    items = []
    for name in ("first", "second"):
        raw = pystac.Item.from_file(str(folder / name / f"{name}.json")).to_dict()
        item = freeze(raw, catalog, str(folder / name / "x.json"))
        item["properties"][PROPERTY] = {"add": 0}
        for asset in item["assets"].values():
            asset["href"] = asset["href"].replace(str(folder), address)
        items.append(item)
    return items


@contextlib.contextmanager
def served(folder: Path, faults: Faults) -> Iterator[tuple[list[dict], Catalog]]:
    catalog = load_catalog("sample", str(folder / "catalog.json"))
    with serve_with_faults(folder, faults) as address:
        yield frozen(folder, catalog, address), catalog


@pytest.mark.parametrize("loader", ["stackstac", "odc-stac"])
@pytest.mark.parametrize("kind", [429, 500, 503, "truncate", "reset", "stall"])
def test_what_passes_is_tried_again_and_alters_no_pixel(
    folder: Path, clean: np.ndarray, kind: int | str, loader: str
) -> None:
    faults, log = Faults(stall_s=6.0), ReadLog()
    with served(folder, faults) as (items, catalog):
        faults.plan("/second/B04.tif", kind, 2)
        start = time.monotonic()
        cube = load_cube(items, grid(), BANDS, catalog, None, loader, QUICK, log)  # type: ignore[arg-type]
        np.testing.assert_array_equal(cube.values, clean)
        assert time.monotonic() - start < 40
    assert {path for path, _ in faults.seen} == {"/second/B04.tif"}
    assert {(e.scene, e.band, e.what) for e in log.events} == {("second", "B04", "retried")}
    if isinstance(kind, int):
        assert [e.cause for e in log.events] == [f"HTTP error code: {kind}"] * 2


@pytest.mark.parametrize("kind", [404, 403])
def test_what_stays_is_an_error_soon(folder: Path, kind: int) -> None:
    faults, log = Faults(), ReadLog()
    with served(folder, faults) as (items, catalog):
        faults.plan("/second/B04.tif", kind, float("inf"))
        with pytest.raises(
            ReadError, match=rf"scene second, band B04: http.*second/B04.tif cannot.*{kind}.*2 times"
        ) as caught:
            load_cube(items, grid(), BANDS, catalog, reading=QUICK, log=log).compute()
    assert (caught.value.scene, caught.value.band) == ("second", "B04")
    assert [e.what for e in log.events] == ["retried", "failed"]


@pytest.mark.parametrize("kind", [500, "truncate", "reset", "stall"])
def test_what_never_passes_is_an_error_within_the_time_allowed(folder: Path, kind: int | str) -> None:
    faults, log = Faults(stall_s=8.0), ReadLog()
    reading = Reading(attempts=2, timeout_s=2.0)
    with served(folder, faults) as (items, catalog):
        faults.plan("/first/B02.tif", kind, float("inf"))
        start = time.monotonic()
        with pytest.raises(SceneError, match=r"first, band B02.*tried 2 times"):
            load_cube(items[:1], grid(), ["B02"], catalog, reading=reading, log=log).compute()
        assert time.monotonic() - start < 2 * 3 * 2.0 + 8
        assert [e.what for e in log.events][-1] == "failed"
        assert {e.what for e in log.events[:-1]} == {"retried"}
        faults.plans.clear()  # a failure must not stay in GDAL's memory once the server is well again
        assert (load_cube(items[:1], grid(), ["B02"], catalog, reading=reading) != NODATA).all()


def test_a_file_of_other_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    catalog = load_catalog("sample", str(folder / "catalog.json"))
    items = frozen(folder, catalog, str(folder))[:1]
    items[0]["assets"]["red"]["href"] = items[0]["assets"]["scl"]["href"]
    with pytest.raises(ReadError, match=r"band B04.*holds 1 bands of uint8; expected one band of uint16"):
        load_cube(items, grid(), ["B04"], catalog).compute()


def test_a_token_that_ends_early_is_renewed(folder: Path, clean: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The links are those of Azure's hosts; a proxy that plays them refuses each token after a few requests."""
    faults, log = Faults(), ReadLog()
    base = load_catalog("sample", str(folder / "catalog.json"))
    with serve_tokens(folder, faults, uses=5) as (proxy, tokens):
        monkeypatch.setenv("PC_SDK_SAS_URL", tokens)
        catalog = base.model_copy(update={"signing": "planetary-computer", "gdal": {"GDAL_HTTP_PROXY": proxy}})
        items = frozen(folder, catalog, "http://sentinel2l2a77.blob.core.windows.net/s2")
        reading = Reading(fuse=False, attempts=6, timeout_s=4.0)
        cube = load_cube(items, grid(), BANDS, catalog, reading=reading, log=log)
        with dask.config.set(scheduler="synchronous"):  # readers at once would use up each other's tokens
            np.testing.assert_array_equal(cube.values, clean)
    assert any("403" in event.cause for event in log.events)
    assert len({query for _, query in faults.requests if query}) > 1, "more than one token was used"
    assert "sig=" not in str(log.events)


def test_a_token_that_ends_in_the_middle_of_a_composite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task signs anew: the pixels of a clean one, no scene lost, and every refusal in its account."""
    base = load_catalog("sample", str(folder / "catalog.json"))
    june = Period("june", date(2024, 6, 1), date(2024, 6, 30))
    options = CompositeOptions((june,), BANDS, reading=Reading(attempts=6, timeout_s=4.0))
    here = CompositeWork(folder, "r0000c0000", "imagery/x", tuple(frozen(folder, base, str(folder))), base, options)
    wanted, _, _ = here._read_what_can_be_read(grid())
    # More than one file takes at a second attempt, which GDAL makes without its cache; fewer than all files take.
    with serve_tokens(folder, Faults(), uses=8) as (proxy, tokens):
        monkeypatch.setenv("PC_SDK_SAS_URL", tokens)
        catalog = base.model_copy(update={"signing": "planetary-computer", "gdal": {"GDAL_HTTP_PROXY": proxy}})
        items = tuple(frozen(folder, catalog, "http://sentinel2l2a78.blob.core.windows.net/s2"))
        there = CompositeWork(folder, "r0000c0000", "imagery/x", items, catalog, options, None, "skip_scene")
        arrays, used, reads = there._read_what_can_be_read(grid())
    assert reads.lost == []
    assert [item["id"] for item in used] == ["first", "second"]
    for name, values in wanted.items():
        np.testing.assert_array_equal(arrays[name], values)
    told = reads.content()["reads"]
    assert any("403" in event["cause"] for event in told)
    assert {event["what"] for event in told} == {"retried"}
    assert "sig=" not in str(told)


def test_a_scene_of_other_numbers_is_left_out_like_one_that_is_gone(folder: Path) -> None:
    """It is refused without a failed read, and must not be tried for ever."""
    catalog = load_catalog("sample", str(folder / "catalog.json"))
    items = frozen(folder, catalog, str(folder))
    items[1]["assets"]["red"]["href"] = items[1]["assets"]["scl"]["href"]
    options = CompositeOptions((Period("june", date(2024, 6, 1), date(2024, 6, 30)),), BANDS)
    work = CompositeWork(folder, "r0000c0000", "imagery/x", tuple(items), catalog, options, None, "skip_scene")
    arrays, used, reads = work._read_what_can_be_read(grid())
    assert [item["id"] for item in used] == ["first"]
    (lost,) = reads.lost
    assert (lost.scene, lost.band, lost.pixels) == ("second", "B04", 96 * 96)
    assert "uint8" in lost.cause
    assert (arrays["clear"] == 1).all()
