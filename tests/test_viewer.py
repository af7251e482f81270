"""The viewer, in a real Chromium: its colours, numbers and manners. And that its server gives nothing else away."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from s3_server import SECRET, serve_s3, upload

import geoflow as gf
from geoflow.errors import GeoflowError, StoreError
from geoflow.legends import legend
from geoflow.places import place
from geoflow.viewer.facts import Facts
from geoflow.viewer.server import ViewerServer

WIDE = {"width": 1200, "height": 700}
FREE = (slice(60, 640), slice(340, 1100))
"""Screen pixels, rows and columns, that no panel covers at that size."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: .ci/run installs one")
        pytest.skip("no Chromium to look at pages with: install Debian's package chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def served(finished: tuple[Path, Path], tiny_country: Path) -> Iterator[ViewerServer]:
    with ViewerServer(Facts(finished[1], tiny_country / "counties.gpkg", "name")) as server:
        server.start()
        yield server
        server.shutdown()


class Page:
    """A page with the viewer in it, and what it asked for and complained of."""

    def __init__(self, browser: Any, server: ViewerServer, **options: Any) -> None:
        self.page = browser.new_page(**{"viewport": WIDE, **options})
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.address = server.address

    def open(self, **state: Any) -> Page:
        said = "&".join(f"{key}={value}" for key, value in state.items())
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}#{said}")
        self.page.wait_for_selector(".legend h2")
        return self.settle()

    def settle(self) -> Page:
        """Wait until all tiles are drawn and all hectares counted."""
        self.page.evaluate(
            """async () => {
              await new Promise((done) => { viewer.map.once('rendercomplete', done); viewer.map.render(); });
              await Promise.all(viewer.legendPanels.map((panel) => panel.counting));
            }"""
        )
        return self

    def screen(self) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))


@pytest.fixture
def page(browser: Any, served: ViewerServer) -> Iterator[Page]:
    opened = Page(browser, served)
    yield opened
    opened.page.close()


class Country:
    """The same pixels by way of xarray."""

    def __init__(self, out: Path) -> None:
        self.tree = gf.open(out)
        self.box = self.tree["map/2018"].to_dataset(inherit=False).odc.geobox

    def view(self, factor: int = 1) -> str:
        """A view of the middle in which a screen pixel is a pixel of that factor."""
        x, y = self.middle(factor)
        return f"{x},{y},{10 * factor}"

    def middle(self, factor: int) -> tuple[float, float]:
        t, (height, width) = self.box.transform, self.box.shape
        step = 10 * factor  # on a corner of pixels, so that screen and store share theirs
        return t.c + (width * 10 // 2) // step * step, t.f - (height * 10 // 2) // step * step

    def on_screen(self, path: str, factor: int = 1, size: dict[str, int] = WIDE) -> np.ndarray:
        """A layer as it lies on the screen; 0 outside the country."""
        prefix = "" if factor == 1 else f"overviews/{factor}/"
        group, _, name = path.rpartition("/")
        values = self.tree[prefix + group][name].values
        x, y = self.middle(factor)
        col = size["width"] // 2 - round((x - self.box.transform.c) / (10 * factor))
        row = size["height"] // 2 - round((self.box.transform.f - y) / (10 * factor))
        screen = np.zeros((size["height"], size["width"]), values.dtype)
        top, left = max(row, 0), max(col, 0)
        part = values[top - row : top - row + size["height"] - top, left - col : left - col + size["width"] - left]
        screen[top : top + part.shape[0], left : left + part.shape[1]] = part
        return screen


@pytest.fixture(scope="module")
def country(finished: tuple[Path, Path]) -> Country:
    return Country(finished[1])


def assert_colours(screen: np.ndarray, codes: np.ndarray, where: tuple[slice, slice] = FREE) -> None:
    corine, shown, codes = legend("corine"), screen[where], codes[where]
    present = set(np.unique(codes).tolist()) - {0}
    assert present
    for code in present:
        assert (shown[codes == code] == corine.colour(code)).all(), code
    colours = [corine.colour(code) for code in present]
    assert not any((shown[codes == 0] == colour).all(axis=-1).any() for colour in colours), "nodata is shown as a class"


@pytest.mark.parametrize(("level", "factor"), [(3, 1), (1, 1), (2, 2), (3, 4)])
def test_every_pixel_has_the_colour_of_its_class(page, country, level, factor):
    page.open(a="map/2018", level=level, view=country.view(factor))
    assert_colours(page.screen(), country.on_screen(f"map/2018/level{level}", factor))
    assert not page.complaints


def test_nothing_is_asked_of_another_machine(page, served, country):
    page.open(a="imagery/2018:summer-true", b="change/2018-2024:where", under=1, pixel=country.view().rsplit(",", 1)[0])
    page.page.wait_for_selector("#record h3")
    assert len(page.asked) > 20
    assert all(url.startswith((served.address, "data:", "about:")) for url in page.asked), page.asked
    assert not page.complaints


def test_a_line_divides_two_epochs_and_can_be_moved(page, country):
    page.open(a="map/2018", b="map/2024", swipe=0.5, view=country.view())
    line, halves = WIDE["width"] // 2, (slice(340, 580), slice(620, 900))
    before, after = country.on_screen("map/2018/level3"), country.on_screen("map/2024/level3")
    assert (before[FREE] != after[FREE]).any()
    rows = slice(60, 320)  # above the handle of the line
    assert_colours(page.screen(), before, (rows, halves[0]))
    assert_colours(page.screen(), after, (rows, halves[1]))
    page.page.mouse.move(line, 350)
    page.page.mouse.down()
    page.page.mouse.move(760, 350, steps=4)
    page.page.mouse.up()
    page.settle()
    assert_colours(page.screen(), before, (rows, slice(340, 740)))
    assert_colours(page.screen(), after, (rows, slice(780, 900)))
    page.page.keyboard.press("x")  # left becomes right
    page.settle()
    assert_colours(page.screen(), after, (rows, slice(340, 740)))


def test_a_click_tells_all_of_a_pixel(page, country):
    page.open(a="map/2018", view=country.view())
    codes = country.on_screen("map/2018/level3")
    inside = np.argwhere(codes[FREE])
    row, col = inside[len(inside) // 2] + [FREE[0].start, FREE[1].start]
    page.page.mouse.click(int(col), int(row))
    page.page.wait_for_selector("#record h3")
    told = page.page.inner_text("#record")
    corine, flat = legend("corine"), " ".join(told.split())
    for epoch in ("2018", "2024"):
        for level in (1, 2, 3):
            code = int(country.on_screen(f"map/{epoch}/level{level}")[row, col])
            assert f"{code} {corine.label(code, level)} level {level}" in flat
        assert f"Confidence {country.on_screen(f'map/{epoch}/confidence')[row, col]} %" in flat
    label = int(country.on_screen("labels/clc2018/level3")[row, col])
    assert (f"Labels clc2018 {label} " if label else "Labels clc2018 no data here") in flat
    state = int(country.on_screen("change/2018-2024/change")[row, col])
    assert {1: "unchanged", 2: "changed"}[state] in flat.partition("Change 2018–2024")[2]
    assert re.search(r"S2\w+ \(2018-\d\d-\d\d, \d+ % cloud\)", flat)
    page.page.locator("#record summary").first.click()
    shown = page.page.inner_text("#record details[open]")
    best = country.tree["map/2018"]["probabilities"].max("class").values
    x, y = country.middle(1)
    at = (
        row - WIDE["height"] // 2 + round((country.box.transform.f - y) / 10),
        col - 600 + round((x - country.box.transform.c) / 10),
    )
    assert f"{best[at] / 2.5:.1f} %" in shown
    page.page.keyboard.press("Escape")
    assert page.page.is_hidden("#record")


def test_outside_the_country_is_no_class(page, country):
    page.open(a="map/2018", view=country.view(), pixel="1000000,1000000")
    assert "outside the country" in page.page.inner_text("#record")


def test_the_legend_counts_what_is_in_view_and_hides_classes(page, country):
    page.open(a="map/2018", level=1, view=country.view())
    codes = country.on_screen("map/2018/level1")
    counts = {
        int(code): int(count) for code, count in zip(*np.unique(codes[codes != 0], return_counts=True), strict=True)
    }
    told = {
        int(row.get_attribute("data-code")): float(row.query_selector(".ha").inner_text().replace(",", ""))
        for row in page.page.query_selector_all("#legend li:not([hidden])")
    }
    assert told.keys() == counts.keys()
    for code, count in counts.items():
        assert told[code] == pytest.approx(count / 100, rel=2e-3, abs=0.06)
    gone = max(counts, key=lambda code: counts[code])
    page.page.click(f"#legend li[data-code='{gone}'] label")
    screen = page.settle().screen()
    assert not (screen[FREE][codes[FREE] == gone] == legend("corine").colour(gone)).all(axis=-1).any()
    assert_colours(screen, np.where(codes == gone, 0, codes))
    assert f"off={gone}" in page.page.url


def test_the_address_brings_the_same_view_back(page, country):
    page.open(a="map/2024", b="labels/clc2018", swipe=0.7, level=2, view=country.view(2), opacity=0.5, off="31")
    first, url = page.screen(), page.page.url
    page.page.goto("about:blank")
    page.page.goto(url)
    page.page.wait_for_selector(".legend h2")
    np.testing.assert_array_equal(page.settle().screen()[FREE], first[FREE])
    assert page.page.url == url


def test_an_address_of_nonsense_shows_the_first_map(page):
    page.open(a="map/1066", level=9, swipe="far", view="a,b", off="x")
    assert page.page.input_value("#a") == "map/2018"
    assert not page.complaints


def test_keys_and_search(page, tiny_country):
    import geopandas

    counties = geopandas.read_file(tiny_country / "counties.gpkg").to_crs(3035)
    page.open()
    page.page.keyboard.press("1")
    page.settle()
    assert "level=1" in page.page.url
    page.page.keyboard.press("/")
    page.page.wait_for_selector("#places option", state="attached")
    page.page.keyboard.type(counties["name"][0])
    page.page.keyboard.press("Enter")
    page.settle()
    assert "level=1" in page.page.url, "a figure in the name is no key"
    x, y, resolution = page.page.evaluate("() => viewer.state.view")
    left, bottom, right, top = counties.geometry[0].bounds
    seen = x + resolution * (330 - WIDE["width"] / 2), x + resolution * WIDE["width"] / 2  # beside the panel
    assert seen[0] < left < right < seen[1]
    assert y - resolution * WIDE["height"] / 2 < bottom < top < y + resolution * WIDE["height"] / 2


@pytest.mark.parametrize(("scheme", "least", "most"), [("light", 200, 256), ("dark", 0, 60)])
def test_narrow_screens_light_and_dark(browser, served, scheme, least, most):
    narrow = Page(browser, served, viewport={"width": 360, "height": 740}, color_scheme=scheme).open()
    assert narrow.page.evaluate("() => document.documentElement.scrollWidth") == 360
    panel = narrow.page.locator("#panel").bounding_box()
    assert panel["y"] > 300
    header = narrow.screen()[int(panel["y"]) + 12, 5:15]
    assert least <= header.mean() < most
    narrow.page.click("#fold")
    assert narrow.page.locator("#panel").bounding_box()["height"] < 80
    assert not narrow.complaints
    narrow.page.close()


def test_a_damaged_chunk_is_told_not_drawn(browser, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[1] / "country.zarr", out / "country.zarr")
    chunk = out / "country.zarr/map/2018/level3/c/1/2"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 16
    chunk.write_bytes(content)
    country = Country(finished[1])
    with ViewerServer(Facts(out)) as server:
        server.start()
        shown = Page(browser, server).open(a="map/2018", view=country.view())
        assert "damaged" in shown.page.inner_text("#notice")
        shown.page.close()
        server.shutdown()


def test_openlayers_reads_the_store_by_its_conventions(page, country):
    """Its GeoZarr source, told no more than the address: the pyramid, the CRS and nodata come from the store."""
    page.open()
    found = page.page.evaluate(
        """async () => {
          const {GeoZarr} = await import('/vendor.js');
          const url = new URL('store', location.href).href;
          const source = new GeoZarr({url, bands: ['2018/level3'], resample: 'nearest'});
          while (source.getState() === 'loading') await new Promise((done) => setTimeout(done, 20));
          const grid = source.getTileGrid();
          const z = grid.getResolutions().length - 1;
          const size = grid.getTileSize(z);
          const tile = source.getTile(z, 0, 0, 1, source.getProjection());
          tile.load();
          while (tile.getState() < 2) await new Promise((done) => setTimeout(done, 20));
          return {
            state: source.getState(), resolutions: grid.getResolutions(), extent: grid.getExtent(),
            nodata: source.nodataBandIndex, code: source.getProjection().getCode(), size: [size].flat(),
            data: [...tile.getData()],
          };
        }"""
    )
    assert found["state"] == "ready"
    assert found["code"] == "EPSG:3035"
    assert found["resolutions"] == [80, 40, 20, 10]
    assert found["extent"] == list(country.box.boundingbox)
    assert found["nodata"] == 2
    width, height = found["size"] if len(found["size"]) == 2 else found["size"] * 2
    data = np.reshape(found["data"], (height, width, 2))
    codes = country.tree["map/2018"].level3.values[:height, :width]
    np.testing.assert_array_equal(data[: codes.shape[0], : codes.shape[1], 0], codes)


def answer(server: ViewerServer, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2])
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
    connection.endheaders()
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize(
    "path",
    [
        "/store/../summary.json", "/store/%2e%2e/summary.json", "/store/..%2f..%2fetc/passwd", "/store//etc/passwd",
        "/store/map/..\\..\\summary.json", "/store", "/store/", "/store/nothing/zarr.json", "/../facts.py", "/facts.py",
        "/static/app.js/",
    ],
)  # fmt: skip
def test_only_the_page_and_the_store_are_served(served, path):
    assert answer(served, path)[0] == 404


def test_the_server_answers_to_its_own_name_and_to_reading_alone(served):
    assert answer(served, "/view.json")[0] == 200
    assert answer(served, "/view.json", host="localhost:1")[0] == 200
    assert answer(served, "/view.json", host="evil.example")[0] == 403
    assert answer(served, "/view.json", "POST")[0] == 501
    assert answer(served, "/view.json", "HEAD") == (200, b"")


def test_other_addresses_than_loopback_must_be_meant(finished):
    with pytest.raises(GeoflowError, match="--everyone"):
        ViewerServer(Facts(finished[1]), "0.0.0.0")


def test_bad_input_is_told_before_the_server_starts(finished, tiny_country, tmp_path):
    with pytest.raises(StoreError, match="not the output of a run"):
        ViewerServer(Facts(tmp_path))
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match="not one that geoflow made"):
        ViewerServer(Facts(tmp_path))
    with pytest.raises(GeoflowError, match="no such column; it has code, name"):
        Facts(finished[1], tiny_country / "counties.gpkg", "nimi").zones_geojson()
    with pytest.raises(GeoflowError, match="cannot be read"):
        Facts(finished[1], tiny_country / "nothing.gpkg").zones_geojson()


def test_no_path_of_this_machine_reaches_the_page(served, finished, tiny_country):
    told = answer(served, "/view.json")[1].decode()
    assert str(finished[1]) not in told
    assert str(tiny_country) not in told
    facts = json.loads(told)
    assert {layer["kind"] for layer in facts["layers"]} == {"map", "labels", "imagery", "change", "generalised"}


def test_the_command_says_where_the_page_is_and_ends_with_ctrl_c(finished):
    command = [sys.executable, "-m", "geoflow", "view", str(finished[1]), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", running.stdout.readline())
        assert address is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]))
        connection.request("GET", "/")
        assert b"<title>geoflow</title>" in connection.getresponse().read()
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import s3fs

    with serve_s3() as environment:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield "viewed"
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_is_read_and_its_key_kept(bucket, finished, tmp_path):
    store, part = finished[1] / "country.zarr", tmp_path / "out"
    for path in store.rglob("*"):
        name = path.relative_to(store)
        if path.is_file() and (path.name == "zarr.json" or {"band", "period", "class", "level3"} & set(name.parts)):
            (part / "country.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, part / "country.zarr" / name)
    with ViewerServer(Facts(place(upload(part, bucket, "run")))) as server:
        server.start()
        status, content = answer(server, "/store/map/2018/level3/c/0/1")
        assert (status, content) == (200, (store / "map/2018/level3/c/0/1").read_bytes())
        told = answer(server, "/view.json")[1]
        server.shutdown()
    assert {layer["kind"] for layer in json.loads(told)["layers"]} >= {"map", "imagery"}
    assert SECRET.encode() not in told


@pytest.mark.slow
def test_the_libraries_are_what_their_recipe_makes(tmp_path):
    """Needs npm and its registry."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: the committed bundle cannot be made again here")
    viewer = Path(gf.__file__).parent / "viewer"
    shutil.copytree(viewer / "vendor", tmp_path / "vendor", ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "static").mkdir()
    for command in (["npm", "ci", "--ignore-scripts"], ["npm", "run", "build"]):
        subprocess.run(command, cwd=tmp_path / "vendor", check=True, capture_output=True)
    for name in ("vendor.js", "ol.css", "vendor-licences.txt"):
        assert (tmp_path / "static" / name).read_bytes() == (viewer / "static" / name).read_bytes(), name
