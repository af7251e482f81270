"""Search: static catalogs on disk and over HTTP, a real STAC API on loopback, recorded pages of Earth Search."""

import json
import os
from collections.abc import Callable, Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from imagery_scenes import AREA, Scene, serve, serve_folder, write_catalog
from odc.geo.geom import box

from geoflow.errors import CatalogError
from geoflow.imagery import SearchResult, load_catalog, search
from geoflow.imagery.catalog import Catalog

OLD = "GS2A_20240615T100031_046912_N05.00"
NEW = "GS2A_20240615T100031_046912_N05.10"
SCENES = [
    Scene("second", day="2024-06-20", tile="33TTN"),
    Scene("first", day="2024-06-10", epsg=32632, tile="32TQT"),
    Scene("cloudy", day="2024-06-12", cloud_percent=95.0),
    Scene("early", day="2024-05-31"),
    Scene("old-baseline", day="2024-06-15", baseline="05.00", datatake=OLD, generated="2024-06-15T16:00:00Z"),
    Scene("new-baseline", day="2024-06-15", baseline="05.10", datatake=NEW, generated="2024-09-01T16:00:00Z"),
]
WANTED = ["first", "new-baseline", "second"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("stac"), SCENES).parent


def june(catalog: Catalog, **changes: object) -> SearchResult:
    return search(catalog, AREA, "2024-06-01", date(2024, 6, 30), **{"max_cloud_percent": 60, **changes})


def test_static_catalog_on_disk(folder: Path) -> None:
    catalog = load_catalog("sample", str(folder / "catalog.json"))
    catalog = catalog.model_copy(update={"assets": {"B02": "blue", "B11": "swir16"}})
    found = june(catalog)
    assert [item["id"] for item in found.items] == WANTED
    reasons = {r.id: r.reason for r in found.refused}
    assert set(reasons) == {"cloudy", "early", "old-baseline"}
    assert "95.0 %" in reasons["cloudy"]
    assert "2024-05-31" in reasons["early"]
    assert "new-baseline" in reasons["old-baseline"]
    item = found.items[0]
    assert set(item["assets"]) == {"blue", "swir16", "scl"}
    assert item["assets"]["blue"]["href"] == str(folder / "first" / "B02.tif")
    assert item["properties"]["proj:epsg"] == 32632
    assert found == june(catalog), "the same search must give the same items"
    json.dumps(found.items)


def test_static_catalog_over_http(folder: Path) -> None:
    with serve_folder(folder) as address:
        found = june(load_catalog("sample", f"{address}/catalog.json"), bands=("B02", "B11"))
        assert [item["id"] for item in found.items] == WANTED
        assert found.items[0]["assets"]["blue"]["href"] == f"{address}/first/B02.tif"


def test_item_collection_file(folder: Path, tmp_path: Path) -> None:
    features = [json.loads(p.read_text()) for p in folder.glob("*/*.json")]
    file = tmp_path / "items.json"
    for feature in features:
        for asset in feature["assets"].values():
            asset["href"] = f"http://127.0.0.1/{feature['id']}/{asset['href']}"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features + features}))
    found = june(load_catalog("sample", str(file)), bands=("B02",))
    assert [item["id"] for item in found.items] == WANTED, "repeated items must count once"
    assert sorted(r.id for r in found.refused) == ["cloudy", "early", "old-baseline"]


@pytest.fixture(scope="module")
def api(folder: Path, rustac_serve: Callable[..., Any]) -> Iterator[str]:
    items = [json.loads(p.read_text()) for p in sorted(folder.glob("*/*.json"))]
    for item in items:
        item["links"] = []
        for asset in item["assets"].values():
            asset["href"] = (folder / item["id"] / asset["href"]).as_uri().replace("file://", "https://example.com")
    with rustac_serve(items) as address:
        yield address


def test_stac_api(api: str) -> None:
    catalog = load_catalog("earth-search", api)
    assert catalog.kind == "api"
    found = june(catalog, bands=("B02", "B04", "B11"))
    assert [item["id"] for item in found.items] == WANTED
    assert {r.id for r in found.refused} >= {"cloudy", "old-baseline"}
    assert found.items[0]["properties"]["proj:epsg"] == 32632


def test_unreachable_and_broken_catalogs_say_so(folder: Path, tmp_path: Path) -> None:
    with serve_folder(folder) as address:
        pass
    with pytest.raises(CatalogError, match=address):
        june(load_catalog("sample", f"{address}/catalog.json").model_copy(update={"kind": "api"}))
    (tmp_path / "catalog.json").write_text('{"type": "Catalog"')
    with pytest.raises(CatalogError, match="cannot be read"):
        june(load_catalog("sample", str(tmp_path / "catalog.json")))
    with pytest.raises(CatalogError, match="url"):
        june(load_catalog("sample"))


def test_an_empty_search_counts_what_dropped_the_scenes(folder: Path) -> None:
    catalog = load_catalog("sample", str(folder / "catalog.json"))
    with pytest.raises(CatalogError, match=r"2020-06-01 to 2020-06-30.*offered 6.*6 by date"):
        search(catalog, AREA, "2020-06-01", "2020-06-30", 60, bands=("B02",))
    with pytest.raises(CatalogError, match="6 by area"):
        search(catalog, box(0, 0, 1, 1, "EPSG:4326"), "2024-05-01", "2024-06-30", 60, bands=("B02",))
    with pytest.raises(CatalogError, match="by bands"):
        june(catalog, bands=("B03",))
    with pytest.raises(CatalogError, match="starts on"):
        search(catalog, AREA, "2024-07-01", "2024-06-01")
    with pytest.raises(CatalogError, match="'June'"):
        search(catalog, AREA, "June", "2024-06-01")


@pytest.mark.parametrize(
    "href", ["../../secret.tif", "/etc/hostname", "/vsicurl/http://127.0.0.1/x", "file:///etc/hostname"]
)
def test_links_must_not_leave_a_local_catalog(tmp_path: Path, href: str) -> None:
    path = write_catalog(tmp_path / "stac", [Scene("one")], bands=("B02", "SCL"))
    file = path.parent / "one" / "one.json"
    item = json.loads(file.read_text())
    item["assets"]["blue"]["href"] = href
    file.write_text(json.dumps(item))
    with pytest.raises(CatalogError, match="not allowed"):
        june(load_catalog("sample", str(path)), bands=("B02",))


def test_a_remote_catalog_must_not_name_local_files(tmp_path: Path) -> None:
    path = write_catalog(tmp_path / "stac", [Scene("one")], bands=("B02", "SCL"))
    file = path.parent / "one" / "one.json"
    item = json.loads(file.read_text())
    for href in ("/etc/hostname", "file:///etc/hostname", "/vsizip//etc/x.zip"):
        item["assets"]["blue"]["href"] = href
        file.write_text(json.dumps(item))
        with serve_folder(path.parent) as address, pytest.raises(CatalogError, match="not allowed"):
            june(load_catalog("sample", f"{address}/catalog.json"), bands=("B02",))


def test_documents_must_not_leave_a_local_catalog(tmp_path: Path) -> None:
    path = write_catalog(tmp_path / "stac", [Scene("one")], bands=("B02", "SCL"))
    outside = write_catalog(tmp_path / "other", [Scene("two")], bands=("B02", "SCL"))
    root = json.loads(path.read_text())
    root["links"].append({"rel": "child", "href": f"../other/{outside.name}"})
    path.write_text(json.dumps(root))
    with pytest.raises(CatalogError, match="not allowed"):
        june(load_catalog("sample", str(path)), bands=("B02",))


def test_recorded_pages_of_earth_search() -> None:
    """Three pages, the last one empty though a link announced it; each granule in two processings."""
    folder = os.environ.get("GEOFLOW_REAL_DATA")
    if not folder:
        pytest.skip("GEOFLOW_REAL_DATA is not set: no recorded answers of Earth Search")
    pages = Path(folder) / "stac-items" / "earth-search-v1"
    asked: list[int] = []

    class Recorded(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def _send(self, file: Path) -> None:
            host = f"http://127.0.0.1:{self.server.server_address[1]}"
            body = file.read_text().replace("https://earth-search.aws.element84.com/v1", host).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._send(pages / "root.json")

        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            page = {None: 1, "2020-03-02T10:27:44.563000Z,S2A_32TMT_20200302_0_L2A,sentinel-2-l2a": 2}.get(
                query.get("next"), 3
            )
            asked.append(page)
            self._send(pages / f"search_page_{page}.json")

    with serve(Recorded) as address:
        catalog = load_catalog("earth-search", address)
        found = search(catalog, box(9, 47, 10, 48, "EPSG:4326"), "2020-03-01", "2020-03-05", 100)
    assert asked == [1, 2, 3]
    ids = [item["id"] for item in found.items]
    assert len(ids) == len(set(ids)) == 8
    assert all(item["properties"]["s2:processing_baseline"] == "05.00" for item in found.items)
    assert len(found.refused) == 8
    assert all("older processing" in refusal.reason for refusal in found.refused)
