"""The radiometric offset: decided by rule and baseline, checked against the pixels, recorded."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagery_scenes import AREA, Scene, serve, write_catalog
from odc.geo.geom import box

from geoflow.errors import CatalogError, SceneError
from geoflow.imagery import decide_offset, load_catalog, search, with_decisions
from geoflow.imagery.harmonise import PROPERTY, to_reflectance
from geoflow.imagery.sign import sign
from geoflow.inputs import NODATA

APPLIED, RAW = {"offset_in_pixels": 0}, {"offset_in_pixels": 1000}
CASES = [
    # id, scene, what must be added, what decides
    (Scene("flag-right", flag=True, **APPLIED), 0, "flag"),
    (Scene("flag-right-too", flag=False, **RAW), -1000, "flag"),
    (Scene("flag-wrong", flag=True, **RAW), -1000, "pixels"),
    (Scene("flag-wrong-too", flag=False, **APPLIED), 0, "pixels"),
    (Scene("no-flag", flag=None, **RAW), -1000, "baseline"),
    (Scene("no-flag-applied", flag=None, **APPLIED), 0, "pixels"),
    (Scene("old", baseline="02.14", flag=False, **APPLIED), 0, "baseline"),
    (Scene("old-and-bright", baseline="03.01", flag=False, constant={"B02": 1800, "B04": 1900}), 0, "baseline"),
    (Scene("desert", flag=True, constant={"B02": 1800, "B04": 2500}, scl=5), 0, "flag"),
    (Scene("desert-raw", flag=False, constant={"B02": 1800, "B04": 2500}, scl=5, **RAW), -1000, "flag"),
    (Scene("hazy", flag=True, constant={"B02": 760, "B04": 740}), 0, "flag"),
    (Scene("overcast", flag=True, scl=9, **RAW), 0, "flag"),
    (Scene("half-cloud", flag=True, cloud=(slice(0, 128), slice(0, 64)), **RAW), -1000, "pixels"),
]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory):
    scenes = [scene for scene, _, _ in CASES]
    for day, scene in enumerate(scenes):
        scene.day = f"2024-06-{day + 1:02d}"
    return load_catalog("sample", str(write_catalog(tmp_path_factory.mktemp("stac"), scenes)))


@pytest.fixture(scope="module")
def items(catalog) -> dict[str, dict]:
    found = search(catalog, AREA, "2024-06-01", "2024-06-30", bands=("B02", "B04"))
    return {item["id"]: item for item in found.items}


@pytest.mark.parametrize(("scene", "add", "rule"), CASES, ids=[case[0].id for case in CASES])
def test_decision(catalog, items: dict[str, dict], scene: Scene, add: int, rule: str) -> None:
    decision = decide_offset(items[scene.id], catalog)
    assert (decision.add, decision.rule) == (add, rule), decision
    assert bool(decision.note) == (rule == "pixels") == (decision.add != decision.expected)
    if rule == "pixels":
        assert str(decision.dark_dn) in decision.note


def test_catalogs_that_never_apply_it(catalog, items: dict[str, dict]) -> None:
    never = catalog.model_copy(update={"offset": "baseline"})
    assert decide_offset(items["flag-right-too"], never).add == -1000
    assert decide_offset(items["flag-right"], never, read_pixels=False).add == -1000
    assert decide_offset(items["flag-right"], never).rule == "pixels"
    none = catalog.model_copy(update={"offset": "none"})
    assert decide_offset(items["flag-wrong"], none).add == 0


def test_a_scene_without_baseline_and_flag_is_refused(catalog, items: dict[str, dict]) -> None:
    item = {**items["no-flag"], "properties": {"datetime": "2024-06-01T10:00:00Z"}}
    with pytest.raises(SceneError, match=r"no-flag.*baseline"):
        decide_offset(item, catalog)


def test_decisions_are_recorded_in_the_items(catalog, items: dict[str, dict]) -> None:
    decided = with_decisions(list(items.values()), catalog)
    assert [item["id"] for item in decided] == list(items)
    assert {i["id"]: i["properties"][PROPERTY]["add"] for i in decided} == {s.id: add for s, add, _ in CASES}
    assert all(PROPERTY not in item["properties"] for item in items.values())
    json.dumps(decided)


def test_real_scenes_whose_metadata_say_minus_a_tenth() -> None:
    folder = os.environ.get("GEOFLOW_REAL_DATA")
    if not folder:
        pytest.skip("GEOFLOW_REAL_DATA is not set: no real scenes")
    catalog = load_catalog("sample", str(Path(folder) / "s2-slovenia" / "catalog.json"))
    area = box(15, 45, 16, 47, "EPSG:4326")
    for item in search(catalog, area, "2023-08-01", "2023-08-31", bands=("B02", "B08")).items:
        decision = decide_offset(item, catalog)
        assert (decision.add, decision.pixels, decision.note) == (0, "absent", "")
        unflagged = {**item, "properties": {**item["properties"], "earthsearch:boa_offset_applied": False}}
        assert decide_offset(unflagged, catalog).add == 0, "the pixels must win over a wrong flag"


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=50), st.sampled_from([0, -1000]))
def test_to_reflectance(numbers: list[int], add: int) -> None:
    out = to_reflectance(np.array(numbers, np.uint16), add)
    assert out.dtype == np.int16
    for dn, value in zip(numbers, out.tolist(), strict=True):
        assert value == (NODATA if dn == 0 else min(dn + add, 32767))


def test_reflectance_of_a_part_of_an_array() -> None:
    """What is not contiguous cannot be turned in place, and must not come back as it was."""
    dn = np.arange(1000, 1024, dtype=np.uint16).reshape(4, 6)
    np.testing.assert_array_equal(to_reflectance(dn[:, ::2], -1000), np.arange(0, 24).reshape(4, 6)[:, ::2])


def test_links_are_signed_at_the_last_moment_and_again_when_the_token_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    life_s = [3600.0]

    class Tokens(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            asked.append(self.path)
            expiry = (datetime.now(UTC) + timedelta(seconds=life_s[0])).isoformat()
            body = json.dumps({"token": f"sig={len(asked)}", "msft:expiry": expiry}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    href = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/33/T/x.tif"
    with serve(Tokens) as address:
        monkeypatch.setenv("PC_SDK_SAS_URL", address)
        assert sign(href, "planetary-computer") == f"{href}?sig=1"
        assert sign(href, "planetary-computer") == f"{href}?sig=1"
        assert asked == ["/sentinel2l2a01/sentinel2-l2"]
        life_s[0] = 60.0
        other = href.replace("l2a01", "l2a02")
        assert sign(other, "planetary-computer") != sign(other, "planetary-computer"), "a token about to end is renewed"
        assert sign(href, "none") == href
        assert sign("/local/x.tif", "planetary-computer") == "/local/x.tif"
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(CatalogError, match="no token"):
        sign(href.replace("l2a01", "l2a03"), "planetary-computer")
