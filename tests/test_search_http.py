"""Search over HTTP: what is sent, what is done about what comes back, and servers that fail."""

from __future__ import annotations

import asyncio
import json
import os
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import stac_server as server
from imagery_scenes import AREA, Scene, item_dict, serve, serve_folder
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, box
from stac_server import CORE, CQL2, QUERY, StacApi

from geoflow.errors import CatalogError
from geoflow.imagery import SearchResult, Wishes, decide_offset, find, load_catalog, open_source, web
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.items import FootprintIndex, baseline_of, orbit_of, tile_of

ASSETS = {
    name: {"href": f"https://example.com/{name}.tif", "type": "image/tiff"} for name in ("blue", "red", "swir16", "scl")
}
SCENES = [
    Scene("a", day="2024-06-10", cloud_percent=5.0),
    Scene("b", day="2024-06-13", cloud_percent=70.0),
    Scene("c", day="2024-06-15", cloud_percent=5.0),
    Scene("d", day="2024-06-18", tile="32TQT", epsg=32632, cloud_percent=1.0),
    Scene("e", day="2024-06-20", cloud_percent=30.0),
]
ORBITS = {"a": 65, "b": 65, "c": 108, "d": 65, "e": 65}
BANDS = ("B02", "B04")


def items() -> list[dict[str, Any]]:
    found = [item_dict(scene, dict(ASSETS)) for scene in SCENES]
    for item in found:
        item["properties"]["sat:relative_orbit"] = ORBITS[item["id"]]
    return found


def catalog_at(address: str) -> Catalog:
    catalog = load_catalog("earth-search", address)
    filters = catalog.filters.model_copy(update={"orbit": "sat:relative_orbit"})
    return catalog.model_copy(update={"filters": filters})


def june(address: str, **wishes: Any) -> SearchResult:
    wanted = Wishes(**{"max_cloud_percent": 60.0, "bands": BANDS, **wishes})
    return find(open_source(catalog_at(address)), AREA, "2024-06-01", "2024-06-30", wanted)


def ids(result: SearchResult) -> list[str]:
    return [item["id"] for item in result.items]


def why(result: SearchResult) -> dict[str, str]:
    return {r.id: r.filter for r in result.refused}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BACKOFF_S", 0.01)


# --- what is sent and what is done about it -------------------------------------------------------------------------


@pytest.mark.parametrize("conforms", [CORE, CORE + QUERY, CORE + QUERY + CQL2], ids=["core", "query", "cql2"])
@pytest.mark.parametrize("sent", ["none", "place", "all"])
def test_the_same_scenes_whatever_a_server_can_do(conforms: tuple[str, ...], sent: str) -> None:
    api = StacApi(items(), conforms)
    with api.running() as address:
        found = june(address, tiles=("33TTN",), orbits=(65,), sent=sent)
    assert ids(found) == ["a", "e"]
    first = api.asked[0] if "filter" not in api.asked[-1] and "query" not in api.asked[-1] else api.asked[-1]
    if conforms == CORE or sent == "none":
        assert not {"filter", "query"} & set(first)
        assert found.sent == ()
        assert found.dropped is None
        assert why(found) == {"b": "cloud", "c": "orbit", "d": "tile"}
        return
    key, words = ("filter", "CQL2") if CQL2[0] in conforms else ("query", "query")
    assert key in first
    assert words in found.sent[0]
    assert "MGRS-33TTN" in found.sent[0]
    assert ("eo:cloud_cover <= 60" in found.sent[0]) == (sent == "all")
    assert why(found) == ({"b": "cloud"} if sent == "place" else {})
    assert found.dropped == (2 if sent == "place" else 3), "what the server drops is counted"


def test_a_scene_that_says_nothing_of_its_clouds_is_not_dropped() -> None:
    silent = items()
    del silent[1]["properties"]["eo:cloud_cover"]
    with StacApi(silent, CORE + CQL2).running() as address:
        assert ids(june(address, sent="all")) == ["a", "b", "c", "d", "e"]


def test_a_count_that_fails_costs_only_the_number() -> None:
    api = StacApi(items(), CORE + QUERY)
    api.faults = [server.status(400)]
    with api.running() as address:
        found = june(address, tiles=("33TTN",))
    assert ids(found) == ["a", "c", "e"]
    assert found.dropped is None


def test_a_server_that_ignores_filters_or_does_not_count() -> None:
    api = StacApi(items(), CORE, counts=False)
    api.conforms = CORE + QUERY
    with api.running() as address:
        found = june(address, tiles=("33TTN",))
        assert ids(found) == ["a", "c", "e"]
        assert found.dropped is None
    deaf = StacApi(items(), CORE + QUERY)
    deaf._search, plain = (
        (lambda handler, asked: plain(handler, {k: v for k, v in asked.items() if k != "query"})),
        (deaf._search),
    )
    with deaf.running() as address:
        found = june(address, tiles=("33TTN",))
    assert ids(found) == ["a", "c", "e"]
    assert why(found)["d"] == "tile"


def test_a_server_that_takes_no_posts() -> None:
    api = StacApi(items(), methods=("GET",))
    with api.running() as address:
        found = june(address)
    assert ids(found) == ["a", "c", "d", "e"]
    assert all("bbox" in asked for asked in api.asked)
    assert len(api.asked) == 3


def test_area_is_sent_as_an_outline_of_few_corners() -> None:
    api = StacApi(items())
    round_area = Geometry(AREA.geom.centroid.buffer(0.08, quad_segs=2000), "EPSG:4326")
    with api.running() as address:
        found = find(open_source(catalog_at(address)), round_area, "2024-06-01", "2024-06-30", Wishes(bands=BANDS))
    assert len(found.items) == 5
    assert len(api.asked[0]["intersects"]["coordinates"][0]) < 500


@pytest.mark.parametrize(
    ("count", "used"),
    [(1, ["c", "d"]), (2, ["a", "c", "d"]), (3, ["a", "c", "d", "e"])],
)
def test_best_of_each_tile(count: int, used: list[str]) -> None:
    """Of equal cloud the nearer to the middle of June wins."""
    with StacApi(items()).running() as address:
        found = june(address, best_per_tile=count)
        again = june(address, best_per_tile=count)
    assert ids(found) == used
    assert found == again
    beaten = {r.id: r.reason for r in found.refused if r.filter == "best"}
    assert set(beaten) == {"a", "c", "d", "e"} - set(used)
    if count == 1:
        assert beaten["e"] == "number 3 of tile 33TTN with cloud cover 30.0 %; the best 1 are used"


def test_a_datatake_is_judged_by_its_newest_processing() -> None:
    """An old processing that claims less cloud does not come in by the back door."""
    old, new = (
        item_dict(
            Scene(
                name, day="2024-06-16", baseline=base, cloud_percent=cloud, datatake=f"GS2A_20240616T100031_0_N{base}"
            ),
            dict(ASSETS),
        )
        for name, base, cloud in (("old", "02.14", 50.0), ("new", "05.00", 70.0))
    )
    with StacApi([*items(), old, new]).running() as address:
        found = june(address)
    assert "old" not in ids(found)
    assert why(found) == {"b": "cloud", "new": "cloud", "old": "superseded"}


def test_footprints_over_the_antimeridian() -> None:
    ring = [[179.5, -17.0], [-179.5, -17.0], [-179.5, -16.0], [179.5, -16.0], [179.5, -17.0]]
    fiji = items()[0]
    fiji |= {"geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [-179.5, -17.0, 179.5, -16.0]}
    no_shape = {**items()[2], "geometry": None, "bbox": [179.5, -17.0, -179.5, -16.0]}
    api = StacApi([])
    api.items = [fiji, no_shape]
    api._search = lambda handler, asked: server.send(  # it has no idea of the antimeridian, as many have not
        handler, {"type": "FeatureCollection", "features": api.items, "links": []}
    )

    def found_in(west: float, east: float) -> list[str]:
        with api.running() as address:
            area = box(west, -16.6, east, -16.4, "EPSG:4326")
            return ids(find(open_source(catalog_at(address)), area, "2024-06-01", "2024-06-30", Wishes(bands=BANDS)))

    assert found_in(179.6, 179.7) == ["a", "c"]
    assert found_in(-179.7, -179.6) == ["a", "c"]
    for elsewhere in ((0, 1), (-179.3, -179.1)):
        with pytest.raises(CatalogError, match="2 by area"):
            found_in(*elsewhere)


def test_scenes_and_tiles_over_the_antimeridian_meet() -> None:
    """A tile of the grid of Fiji or Chukotka, and scenes on both sides, across, and far away."""

    def scene(name: str, west: float, east: float) -> dict[str, Any]:
        ring = [[west, 67.5], [east, 67.5], [east, 68.0], [west, 68.0], [west, 67.5]]
        return {**items()[0], "id": name, "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": None}

    index = FootprintIndex(
        [
            scene("across", 179.0, -179.0),
            scene("west of it", 179.5, 179.9),
            scene("east of it", -179.9, -179.5),
            scene("Greenwich", -1.0, 1.0),
            scene("near by", 174.0, 175.0),
        ]
    )
    across = GeoBox.from_bbox((350_000, 7_490_000, 450_000, 7_550_000), "EPSG:32601", resolution=100)
    beside = GeoBox.from_bbox((450_000, 7_490_000, 500_000, 7_550_000), "EPSG:32601", resolution=100)
    assert [item["id"] for item in index.on(across)] == ["across", "west of it", "east of it"]
    assert index.on(beside) == ()


# --- servers that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        server.status(429, Retry_After="0"),
        server.status(500),
        server.status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        server.dropped,
        server.cut_off,
        server.says('{"type": "FeatureCollection", "features": ['),
    ],
    ids=["429", "500", "503", "dropped", "cut off", "half a document"],
)
def test_a_passing_fault_costs_nothing(fault: server.Fault) -> None:
    api = StacApi(items(), page=2)
    api.faults = [fault, None, fault, fault, None]
    with api.running() as address:
        found = june(address)
    assert ids(found) == ["a", "c", "d", "e"]
    assert len(api.asked) == 3 + 3, "three pages and three faults"


def test_the_wait_that_a_server_asks_for_is_kept() -> None:
    api = StacApi(items())
    api.faults = [server.status(429, Retry_After="1")]
    with api.running() as address:
        start = time.monotonic()
        assert len(june(address).items) == 4
    assert time.monotonic() - start >= 1.0


def test_a_fault_that_stays_is_an_error_that_names_it() -> None:
    api = StacApi(items())
    api.faults = [server.status(500)] * 99
    with api.running() as address, pytest.raises(CatalogError, match=r"no answer after 6 attempts.*status 500.*sorry"):
        june(address)
    assert len(api.asked) == web.ATTEMPTS
    refuses = StacApi(items())
    refuses.faults = [server.status(403)]
    with refuses.running() as address, pytest.raises(CatalogError, match="status 403"):
        june(address)
    assert len(refuses.asked) == 1, "what is refused is not asked for again"


def test_an_answer_that_drips_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "ANSWER_S", 0.3)
    monkeypatch.setattr(web, "ATTEMPTS", 2)
    monkeypatch.setattr(web, "_CHUNK", 1)

    def drips(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            pass
        return True

    api = StacApi(items())
    api.faults = [drips] * 9
    start = time.monotonic()
    with api.running() as address, pytest.raises(CatalogError, match="not complete after"):
        june(address)
    assert time.monotonic() - start < 12


def test_a_search_that_is_sent_on_does_not_lose_its_question() -> None:
    """A POST that is answered by 302 would go on as a GET without a body, and be given the whole archive."""
    real = StacApi(items())
    with real.running() as there:
        moved = StacApi(items())
        moved.faults = [server.status(302, Location=f"{there}/search")] * 9
        with moved.running() as address, pytest.raises(CatalogError, match=rf"has moved to {there}"):
            june(address)
        kept = StacApi(items())
        kept.faults = [server.status(307, Location=f"{there}/search")]
        with kept.running() as address:
            assert ids(june(address)) == ["a", "c", "d", "e"]
        assert "intersects" in real.asked[-1]


def test_an_empty_last_page_that_was_announced_is_the_end() -> None:
    api = StacApi(items(), page=5, empty_last_page=True)
    with api.running() as address:
        assert len(june(address).items) == 4
    assert len(api.asked) == 2


def test_an_empty_page_in_the_middle_is_not_the_end() -> None:
    api = StacApi(items(), page=2)

    def empty(handler: BaseHTTPRequestHandler) -> bool:
        link = {"rel": "next", "href": f"{server._host(handler)}/search", "method": "POST", "merge": True}
        page = {"type": "FeatureCollection", "features": [], "links": [{**link, "body": {"token": "02"}}]}
        server.send(handler, page)
        return True

    api.faults = [None, empty]
    with api.running() as address:
        assert ids(june(address)) == ["a", "c", "d", "e"]
    assert [asked.get("token") for asked in api.asked] == [None, 2, "02", 4]


def test_paging_without_end_is_an_error() -> None:
    same, fresh = StacApi(items(), page=5), StacApi(items(), page=5)

    def same_token(handler: BaseHTTPRequestHandler, asked: dict[str, Any], start: int) -> dict[str, Any]:
        return {"rel": "next", "href": f"{server._host(handler)}/search", "method": "POST", "body": {"token": 0}}

    def new_token(handler: BaseHTTPRequestHandler, asked: dict[str, Any], start: int) -> dict[str, Any]:
        body = {"token": 0, "page": int(asked.get("page", 0)) + 1}
        return {"rel": "next", "href": f"{server._host(handler)}/search", "method": "POST", "body": body}

    for api, link, words in ((same, same_token, "in circles"), (fresh, new_token, "no new scene")):
        api.empty_last_page, api._next = True, link
        with api.running() as address, pytest.raises(CatalogError, match=words):
            june(address)
        assert len(api.asked) < 12


@pytest.mark.parametrize("text", ["<html>hello</html>", '{"type": "Feature', "[]", ""])
def test_an_answer_that_is_no_document_is_an_error_that_shows_it(text: str) -> None:
    api = StacApi(items())
    api.faults = [server.says(text)] * 99
    with api.running() as address, pytest.raises(CatalogError, match=rf"{address}.*(not JSON|JSON list)"):
        june(address)


def test_what_is_no_item_is_refused_and_the_others_go_on() -> None:
    bad: dict[str, dict[str, Any]] = {
        "no geometry": {"geometry": None, "bbox": None},
        "odd geometry": {"geometry": {"type": "Polygon", "coordinates": [[[1, 2]]]}},
        "no time": {"properties": {**items()[0]["properties"], "datetime": None}},
        "odd time": {"properties": {**items()[0]["properties"], "datetime": "last June"}},
        "odd cloud": {"properties": {**items()[0]["properties"], "eo:cloud_cover": "much"}},
        "no assets": {"assets": None},
        "empty assets": {"assets": {}},
        "no scl": {"assets": {k: v for k, v in ASSETS.items() if k != "scl"}},
        "odd asset": {"assets": {**ASSETS, "blue": "here"}},
        "no properties": {"properties": None},
    }
    nonsense: list[Any] = [{**items()[0], "id": id_, **change} for id_, change in bad.items()]
    with StacApi([*nonsense, {"type": "Feature"}, "item", None, *items()], page=4).running() as address:
        found = june(address)
    assert ids(found) == ["a", "c", "d", "e"]
    reasons = {r.id: r.reason for r in found.refused if r.filter in ("item", "bands")}
    nameless = {f"(no id, number {n} of what was offered)" for n in (11, 12, 13)}
    assert set(reasons) == {*bad, *nameless}
    assert "neither geometry nor bbox" in reasons["no geometry"]
    assert "no usable datetime" in reasons["odd time"]
    assert "it has no assets" in reasons["no assets"]
    assert reasons["no scl"] == "lacks SCL"
    assert reasons["odd asset"] == "lacks B02"


# --- files of items -------------------------------------------------------------------------------------------------


def write_parquet(path: Path, found: list[dict[str, Any]]) -> Path:
    rustac = pytest.importorskip("rustac", reason="rustac writes the stac-geoparquet file")

    async def write() -> None:
        await rustac.write(str(path), found)

    asyncio.run(write())
    return path


def test_a_stac_geoparquet_file_on_disk_and_over_http(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "items.parquet", items())
    wishes = Wishes(60.0, BANDS)
    with StacApi(items()).running() as address:
        wanted = june(address)
    here = find(open_source(load_catalog("earth-search", str(path))), AREA, "2024-06-01", "2024-06-30", wishes)
    assert ids(here) == ids(wanted)
    assert why(here) == why(wanted)
    for one, other in zip(here.items, wanted.items, strict=True):
        assert one["assets"] == other["assets"]
        assert one["properties"].keys() == other["properties"].keys()
        assert tile_of(one) == tile_of(other)
    with serve_folder(tmp_path) as address:
        catalog = load_catalog("earth-search", f"{address}/items.parquet")
        assert catalog.kind == "static"
        assert find(open_source(catalog), AREA, "2024-06-01", "2024-06-30", wishes) == here
        short = find(open_source(catalog), AREA, "2024-06-11", "2024-06-15", wishes)
    assert ids(short) == ["c"]


def test_parquet_that_holds_no_items_is_an_error(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"id": ["a"], "value": [1]}).to_parquet(tmp_path / "table.parquet")
    catalog = load_catalog("earth-search", str(tmp_path / "table.parquet"))
    with pytest.raises(CatalogError, match=r"not stac-geoparquet.*geometry, assets"):
        find(open_source(catalog), AREA, "2024-06-01", "2024-06-30", Wishes())
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    broken = load_catalog("earth-search", str(tmp_path / "broken.parquet"))
    with pytest.raises(CatalogError, match=r"cannot be read at .*broken\.parquet"):
        find(open_source(broken), AREA, "2024-06-01", "2024-06-30", Wishes())


def test_links_in_a_parquet_file_must_not_leave_its_folder(tmp_path: Path) -> None:
    bad = items()
    bad[0]["assets"] = {**ASSETS, "blue": {"href": "/etc/hostname", "type": "image/tiff"}}
    catalog = load_catalog("earth-search", str(write_parquet(tmp_path / "items.parquet", bad)))
    with pytest.raises(CatalogError, match="not allowed"):
        find(open_source(catalog), AREA, "2024-06-01", "2024-06-30", Wishes(bands=BANDS))


# --- recorded answers of the three providers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> Path:
    folder = os.environ.get("GEOFLOW_REAL_DATA")
    if not folder:
        pytest.skip("GEOFLOW_REAL_DATA is not set: no recorded answers of the providers")
    return Path(folder) / "stac-items"


class Replay:
    """A provider's own root document and items, a page at a time, with links to the real host turned to this one."""

    def __init__(self, root: Path, found: list[dict[str, Any]], page: int) -> None:
        self.root, self.found, self.page = root, found, page
        self.asked: list[dict[str, Any]] = []

    def handler(self) -> type[BaseHTTPRequestHandler]:
        replay = self
        document = json.loads(self.root.read_text())
        real = next(link["href"] for link in document["links"] if link["rel"] == "search").removesuffix("/search")

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                server.send(self, json.dumps(document).replace(real, server._host(self)))

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                replay.asked.append(asked)
                start = int(asked.get("token", 0))
                links = []
                if start < len(replay.found):  # the last page that is announced is empty, as Earth Search does it
                    body = {**asked, "token": start + replay.page}
                    links = [{"rel": "next", "href": f"{server._host(self)}/search", "method": "POST", "body": body}]
                features = replay.found[start : start + replay.page]
                server.send(self, {"type": "FeatureCollection", "features": features, "links": links})

        return Handler


def read_items(paths: list[Path]) -> list[dict[str, Any]]:
    found = []
    for path in paths:
        document = json.loads(path.read_text())
        found += document["features"] if document["type"] == "FeatureCollection" else [document]
    return found


EARTH_SEARCH_V1 = ["earth-search-v1/search_page_1.json", "earth-search-v1/search_page_2.json"]


@pytest.mark.parametrize(
    ("name", "files", "span", "used", "superseded", "adds"),
    [
        ("earth-search", EARTH_SEARCH_V1, ("2020-03-01", "2020-03-05"), 8, 8, {0}),
        (
            "planetary-computer",
            ["planetary-computer/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json"],
            ("2019-06-01", "2019-06-30"),
            1,
            0,
            {0},  # baseline 02.12
        ),
        ("cdse", ["cdse/search.json"], ("2020-07-01", "2020-07-05"), 4, 0, {-1000}),  # baseline 05.00, never applied
        (
            "cdse",
            ["cdse/S2C_MSIL2A_20250330T100051_N0511_R122_T33UWP_20250330T145914.json"],
            ("2025-03-01", "2025-03-31"),
            1,
            0,
            {-1000},
        ),
    ],
)
def test_recorded_answers_page_by_page(
    recorded: Path, name: str, files: list[str], span: tuple[str, str], used: int, superseded: int, adds: set[int]
) -> None:
    offered = read_items([recorded / file for file in files])
    root = "earth-search-v1" if name == "earth-search" else name
    # Each page begins with the item that ended the one before, as the Planetary Computer's pages may.
    paged = [item for pair in zip(offered, offered, strict=True) for item in pair]
    replay = Replay(recorded / root / "root.json", paged, page=3)
    with serve(replay.handler()) as address:
        catalog = load_catalog(name, address)
        found = find(open_source(catalog), box(-180, -80, 180, 80, "EPSG:4326"), *span, Wishes())
    assert len(ids(found)) == len(set(ids(found))) == used
    assert found.repeated == len(offered)
    assert [r.filter for r in found.refused] == ["superseded"] * superseded
    assert replay.asked[0]["collections"] == ["sentinel-2-l2a"]
    assert len(replay.asked) == -(-len(paged) // 3) + 1
    raw = {item["id"]: item for item in offered}
    for item in found.items:
        for band in catalog.bands:
            key = catalog.asset_key(band)
            assert item["assets"][key]["href"] == raw[item["id"]]["assets"][key]["href"]
            assert band in item["assets"][key]["href"].rpartition("/")[2] or name == "earth-search"
        assert orbit_of(item) in (43, 65, 108, 122)
        assert tile_of(item) in item["id"] + str(item["properties"].get("s2:product_uri"))
    decisions = {decide_offset(item, catalog, read_pixels=False).add for item in found.items}
    assert decisions == adds
    if name == "earth-search":
        assert {baseline_of(item) for item in found.items} == {(5, 0)}


@pytest.mark.parametrize(("name", "tile", "orbit"), [("cdse", "32TNT", 65), ("planetary-computer", "06VVN", 43)])
def test_filters_are_sent_as_the_providers_name_them(recorded: Path, name: str, tile: str, orbit: int) -> None:
    """And every property that a filter names is one that all their items have."""
    files = sorted(p for p in (recorded / name).glob("*.json") if p.name.startswith(("S2", "search.json")))
    offered = read_items(files)
    catalog = load_catalog(name)
    for prop in filter(None, catalog.filters.model_dump().values()):
        assert all(prop in item["properties"] for item in offered), prop
    replay = Replay(recorded / name / "root.json", offered, page=10)
    with serve(replay.handler()) as address:
        wishes = Wishes(tiles=(tile,), orbits=(orbit,))
        area = box(-180, -80, 180, 80, "EPSG:4326")
        found = find(open_source(load_catalog(name, address)), area, "2016-01-01", "2026-01-01", wishes)
    assert {(tile_of(i), orbit_of(i)) for i in found.items} == {(tile, orbit)}
    asked = next(a for a in replay.asked if "filter" in a)
    assert asked["filter-lang"] == "cql2-json"
    text = json.dumps(asked["filter"])
    assert tile in text
    assert f"[{orbit}]" in text
    assert len(found.refused) == len(offered) - len(found.items)


def test_an_item_over_the_antimeridian_as_it_was_recorded(recorded: Path) -> None:
    name = "S2A_OPER_MSI_L2A_TL_2APS_20230602T025701_A041483_T01WCR.json"
    item = json.loads((recorded / "earth-search-v1-mapchete" / name).read_text())
    keys = {"B02": "blue", "B04": "red"}
    item["assets"] |= {k: {"href": f"https://example.com/{k}.tif"} for k in ("blue", "red", "scl")}
    catalog = load_catalog("earth-search").model_copy(update={"assets": keys, "kind": "api", "collection": None})
    api = StacApi([])
    api._search = lambda handler, asked: server.send(handler, {"type": "FeatureCollection", "features": [item]})
    with api.running() as address:
        source = open_source(catalog.model_copy(update={"url": address}))
        for west, east, meets in ((178.4, 178.6, True), (-179.6, -179.4, True), (0.0, 1.0, False), (-170, -169, False)):
            area = box(west, 67.8, east, 67.9, "EPSG:4326")
            if meets:
                (found,) = find(source, area, "2023-06-01", "2023-06-30", Wishes()).items
                assert (tile_of(found), orbit_of(found), baseline_of(found)) == ("01WCR", 16, (5, 9))
            else:
                with pytest.raises(CatalogError, match="1 by area"):
                    find(source, area, "2023-06-01", "2023-06-30", Wishes())
