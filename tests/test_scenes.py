"""The scenes of a job: frozen, refreshed, counted over the area, shown; the command that does it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import stac_server as server
import yaml
from faulty_server import Faults, serve_with_faults
from imagery_scenes import Scene, item_dict, serve_folder, write_catalog
from matplotlib.image import imread
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, box
from rich.console import Console

from geoflow.errors import CatalogError, JobError, SceneError
from geoflow.imagery.catalog import catalog_folder
from geoflow.jobs.area import read_area
from geoflow.jobs.coverage import coverage
from geoflow.jobs.flow import Flow
from geoflow.jobs.imagerywork import reads_of
from geoflow.jobs.jobfile import load_job, parse_job
from geoflow.jobs.plan import make_plan
from geoflow.jobs.report import write_report
from geoflow.jobs.scenediff import changes, told
from geoflow.jobs.scenes import Scenes, identity
from geoflow.jobs.scenesearch import FoundScenes, search_scenes
from geoflow.jobs.scenetables import print_search
from geoflow.jobs.spec import Area, DateRange
from geoflow.legends import legend

OLD, NEW = (f"GS2A_20240615T100031_046912_N{baseline}" for baseline in ("05.00", "05.10"))
SCENES = [
    Scene("may", day="2024-05-10"),
    Scene("june", day="2024-06-10", epsg=32632, tile="32TQT"),
    Scene("cloudy", day="2024-06-12", cloud_percent=95.0),
    Scene("older", day="2024-06-15", baseline="05.00", datatake=OLD),
]
NEWER = Scene("newer", day="2024-06-15", baseline="05.10", datatake=NEW)
JOB = {
    "name": "try",
    "area": {"bbox": [11.998, 46.998, 12.009, 47.005]},
    "grid": {"crs": "EPSG:3035", "resolution_m": 10, "tile": 256, "chunk": 128},
    "imagery": {
        "catalog": "sample",
        "bands": ["B02", "B04"],
        "epochs": {"2024": {"spring": "2024-05-01/2024-05-31", "summer": "2024-06-01/2024-06-30"}},
        "max_cloud_percent": 60,
    },
}


@pytest.fixture
def stac(tmp_path: Path) -> Path:
    return write_catalog(tmp_path / "stac", SCENES)


def job_on(address: Path | str, **imagery: Any) -> Any:
    return parse_job({**JOB, "imagery": {**JOB["imagery"], "url": str(address), **imagery}})


def used(found: FoundScenes) -> list[str]:
    return [item["id"] for item in found.epochs["2024"].items]


# --- the area ---------------------------------------------------------------------------------------------------------


def test_an_area_from_geojson_in_the_job_or_in_a_file(tmp_path: Path) -> None:
    ring = [[11.9, 47.0], [12.1, 47.0], [12.1, 47.1], [11.9, 47.1], [11.9, 47.0]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {}, "geometry": shape}
    wanted = box(11.9, 47.0, 12.1, 47.1, "EPSG:4326")
    for source in (shape, feature, {"type": "FeatureCollection", "features": [feature]}):
        assert read_area(Area(geojson=source)).geom.equals(wanted.geom)
        (tmp_path / "area.geojson").write_text(json.dumps(source))
        (tmp_path / "job.yaml").write_text(yaml.safe_dump({**JOB, "area": {"geojson": "area.geojson"}}))
        assert read_area(load_job(tmp_path / "job.yaml").area).geom.equals(wanted.geom)
    frame = gpd.GeoDataFrame({"name": ["here", "there"]}, geometry=[wanted.geom, box(0, 0, 1, 1, "EPSG:4326").geom])
    frame.set_crs("EPSG:4326").to_crs("EPSG:3035").to_file(tmp_path / "areas.gpkg")
    found = read_area(Area(file=tmp_path / "areas.gpkg", where="name = 'here'"))
    assert found.to_crs("EPSG:4326").geom.symmetric_difference(wanted.geom).area < 1e-6


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"type": "Point", "coordinates": [1, 2]}, "no polygons, only Point"),
        ({"type": "Polygn"}, "not a GeoJSON"),
        ({"type": "FeatureCollection", "features": []}, "no features"),
        (Path("nowhere.geojson"), "nowhere.geojson cannot be read"),
    ],
)
def test_geojson_that_is_no_area(source: Any, says: str) -> None:
    with pytest.raises(JobError, match=rf"area\.geojson.*{re.escape(says)}"):
        read_area(Area(geojson=source))


def test_an_area_over_the_antimeridian_has_parts_on_both_sides() -> None:
    ring = [[179, -17], [-179, -17], [-179, -16], [179, -16], [179, -17]]
    for area in (Area(bbox=(179, -17, -179, -16)), Area(geojson={"type": "Polygon", "coordinates": [ring]})):
        parts = sorted(part.bounds for part in read_area(area).geom.geoms)
        assert parts == [(-180, -17, -179, -16), (179, -17, 180, -16)]
    world = {"type": "Polygon", "coordinates": [[[-180, -80], [180, -80], [180, 80], [-180, 80], [-180, -80]]]}
    assert read_area(Area(geojson=world)).geom.area == 360 * 160


# --- frozen and refreshed ---------------------------------------------------------------------------------------------


def test_the_list_is_frozen_with_every_scene_that_was_offered(stac: Path, tmp_path: Path) -> None:
    found = search_scenes(job_on(stac), tmp_path / "out")
    assert used(found) == ["may", "june", "older"]
    frozen = json.loads((tmp_path / "out/scenes/2024.json").read_text())
    assert [item["id"] for item in frozen["items"]] == ["may", "june", "older"]
    (refused,) = frozen["refused"]
    assert (refused["id"], refused["filter"], refused["period"]) == ("cloudy", "cloud", "summer")
    assert refused["geometry"]["type"] == "Polygon"
    assert refused["cloud"] == 95.0
    # What a file holds of other days is counted, for each period.
    assert {name: search["outside"] for name, search in frozen["searches"].items()} == {"spring": 3, "summer": 1}
    assert frozen["filters"]["max_cloud_percent"] == 60
    # A catalog that changes changes nothing, and need not even be there.
    stac.unlink()
    (stac.parent / "catalog.json").write_text("gone")
    again = search_scenes(job_on(stac), tmp_path / "out")
    assert used(again) == used(found)
    assert again.epochs["2024"].refused == found.epochs["2024"].refused
    with pytest.raises(CatalogError, match="cannot be read"):
        search_scenes(job_on(stac, max_cloud_percent=50), tmp_path / "out")


def test_no_signature_is_ever_frozen(tmp_path: Path) -> None:
    """Links of the Planetary Computer are kept as they are written; tokens come at the moment of reading."""
    link = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/33/T/TN/B02.tif"
    signed = f"{link}?st=2024-01-01&se=2024-01-02&sp=rl&sig=secret"
    items = [item_dict(SCENES[i], {k: {"href": signed} for k in ("B02", "B04", "SCL")}) for i in (0, 1)]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    found = search_scenes(
        job_on(tmp_path / "items.json", catalog="planetary-computer"), tmp_path / "out", freeze=False, pixels=False
    )
    hrefs = {a["href"] for item in found.epochs["2024"].items for a in item["assets"].values()}
    assert hrefs == {link}


def test_a_refresh_shows_what_would_change_and_changes_nothing(stac: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    search_scenes(job_on(stac), out)
    before = (out / "scenes/2024.json").read_bytes()
    later = [s for s in SCENES if s.id != "may"]
    late_may = Scene("late-may", day="2024-05-20")
    write_catalog(stac.parent, [*later, NEWER, late_may])
    found = search_scenes(job_on(stac), out, refresh=True, freeze=False)
    assert (out / "scenes/2024.json").read_bytes() == before
    assert found.files == ()
    seen = {(c.kind, c.id): c.why for c in found.changes["2024"]}
    assert set(seen) == {("added", "late-may"), ("superseded", "older"), ("removed", "may")}
    assert seen["superseded", "older"] == "by newer, baseline 05.10"
    assert seen["removed", "may"] == "the catalog no longer offers it"
    assert told("2024", found.changes["2024"])[0] == "Scenes of 2024: 1 added, 1 superseded, 1 removed"
    plan = make_plan(job_on(stac), out, refresh=True)
    assert [s["id"] for s in plan.scenes["2024"]["used"]] == ["late-may", "june", "newer"]
    assert (out / "scenes/2024.json").read_bytes() == before, "a plan changes nothing"
    applied = search_scenes(job_on(stac), out, refresh=True)
    assert used(applied) == ["late-may", "june", "newer"]
    assert used(search_scenes(job_on(stac), out)) == ["late-may", "june", "newer"]
    assert changes(search_scenes(job_on(stac), out, refresh=True).epochs["2024"], applied.epochs["2024"]) == []


def test_a_change_of_links_or_offset_is_told_and_changes_the_task(stac: Path, tmp_path: Path) -> None:
    old = search_scenes(job_on(stac), tmp_path / "out").epochs["2024"]
    moved = json.loads(json.dumps(old.items))
    moved[0]["assets"]["blue"]["href"] = "https://example.com/B02.tif"
    moved[1]["properties"]["geoflow:offset"]["add"] = -1000
    moved[2]["properties"]["eo:cloud_cover"] = 7.0
    new = Scenes("2024", tuple(moved), old.refused, old.periods)
    seen = {c.id: c.why for c in changes(old, new)}
    assert seen == {"may": "1 of its links lead elsewhere", "june": "its offset was 0 and is -1000"}
    same = [identity(a) == identity(b) for a, b in zip(old.items, new.items, strict=True)]
    assert same == [False, False, True], "an id of a task depends on links and offset, and on nothing else"


def test_only_tasks_that_meet_a_changed_scene_are_done_again(stac: Path, tmp_path: Path) -> None:
    wide = {"bbox": [11.990, 46.995, 12.020, 46.999]}
    job = parse_job(
        {**JOB, "area": wide, "grid": {**JOB["grid"], "tile": 32, "chunk": 32}, "imagery": job_on(stac).imagery}
    )
    path = stac.parent / "may/may.json"
    item = json.loads(path.read_text())

    def tasks(refresh: bool = True) -> dict[str, str]:
        path.write_text(json.dumps(item))
        flow = Flow(job, tmp_path / "out", refresh=refresh)
        return {task.key: task.id for task in flow._imagery_tasks}

    before = tasks()
    assert tasks(refresh=False) == before
    item["properties"]["eo:cloud_cover"] = 6.5
    assert tasks() == before, "a record that changes alters no pixel"
    west, south, _, north = item["bbox"]
    end = 11.995  # footprints are taken a hundredth of a degree larger than they are
    ring = [[west, south], [end, south], [end, north], [west, north], [west, south]]
    item["geometry"]["coordinates"] = [ring]
    after = tasks()
    changed = {key for key in before if before[key] != after[key]}
    tiles = {f"2024/{tile.id}": tile.geobox.geographic_extent.boundingbox for tile in Flow(job, tmp_path / "out").tiles}
    assert changed == {key for key, box_ in tiles.items() if box_.left > end + 0.01}
    assert 0 < len(changed) < len(tiles)


@pytest.mark.parametrize(
    ("filters", "kept", "by"),
    [
        ({"tiles": ["33TTN"]}, ["may", "older"], "tile"),
        ({"best_per_tile": 1}, ["may", "june", "older"], None),
        ({"max_cloud_percent": 100}, ["may", "june", "cloudy", "older"], None),
        ({"max_cloud_percent": 100, "best_per_tile": 1}, ["may", "june", "older"], "best"),
    ],
)
def test_filters_of_a_job(stac: Path, tmp_path: Path, filters: dict[str, Any], kept: list[str], by: str | None) -> None:
    found = search_scenes(job_on(stac, **filters), tmp_path / "out")
    assert used(found) == kept
    assert {r["filter"] for r in found.epochs["2024"].refused} >= ({by} if by else set())
    offered = {r["id"] for r in found.epochs["2024"].refused} | set(kept)
    assert offered == {scene.id for scene in SCENES}, "no scene is lost"


def test_a_scene_of_unknown_offset_is_refused_and_the_others_go_on(stac: Path, tmp_path: Path) -> None:
    file = stac.parent / "june/june.json"
    item = json.loads(file.read_text())
    del item["properties"]["s2:processing_baseline"], item["properties"]["earthsearch:boa_offset_applied"]
    item["properties"]["s2:datatake_id"] = ""
    file.write_text(json.dumps(item))
    found = search_scenes(job_on(stac), tmp_path / "out")
    assert used(found) == ["may", "older"]
    reasons = {r["id"]: r["reason"] for r in found.epochs["2024"].refused}
    assert "offset is unknown" in reasons["june"]


def test_an_offset_that_no_pixel_can_confirm_is_an_error_or_is_named(stac: Path, tmp_path: Path) -> None:
    """With ``skip_scene`` metadata stand in, the list says where and why, and a strict search makes it good."""
    faults, out = Faults(), tmp_path / "out"
    faults.plan("*/june/SCL.tif", 404, float("inf"))
    with (
        serve_with_faults(stac.parent, faults) as address,
        pytest.raises(SceneError, match=r"scene june, band SCL.*404"),
    ):
        search_scenes(job_on(f"{address}/catalog.json", timeout_s=3), out)
    assert not (out / "scenes/2024.json").exists()
    faults.plan("*/may/B02.tif", 503, 1)
    with serve_with_faults(stac.parent, faults) as address:
        strict = job_on(f"{address}/catalog.json", timeout_s=3)
        lenient = job_on(f"{address}/catalog.json", timeout_s=3, on_error="skip_scene")
        found = search_scenes(lenient, out)
        assert used(found) == ["may", "june", "older"]
        facts = {f["id"]: f for f in found.to_dict()["epochs"]["2024"]["used"]}
        assert {id_: f["offset_pixels"] for id_, f in facts.items()} == {
            "may": "absent", "june": "unreadable", "older": "absent",
        }  # fmt: skip
        assert (facts["june"]["offset_add"], facts["june"]["offset_rule"]) == (0, "flag")
        (unasked,) = reads_of({}, found.epochs)["2024"]["unasked"]
        assert (unasked["scene"], unasked["rule"], unasked["add"]) == ("june", "flag", 0)
        assert "404" in unasked["note"]
        retried = reads_of({}, found.epochs)["2024"]["retried"]
        assert {(event["scene"], event["band"]) for event in retried} == {("may", "B02"), ("june", "SCL")}

        text = StringIO()
        print_search(Console(file=text, width=200), found)
        assert "1 with an offset that no pixel could confirm" in text.getvalue()
        asked = len(faults.requests)
        assert search_scenes(lenient, out).epochs["2024"].unasked() == [unasked], "it is frozen"
        assert len(faults.requests) == asked

        faults.plans.clear()
        mended = search_scenes(strict, out).epochs["2024"]
        assert (mended.unasked(), mended.reads) == ([], ())
        assert reads_of({}, {"2024": mended}) == {}


def test_credentials_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list can be looked at without them; what reads pixels says which are missing before it starts."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assets = {k: {"href": f"s3://eodata/{k}.jp2"} for k in ("B02_10m", "B04_10m", "SCL_20m")}
    items = [item_dict(scene, dict(assets)) for scene in SCENES]
    api = server.StacApi(items, server.CORE + server.CQL2)
    with api.running() as address:
        job = job_on(address, catalog="cdse")
        with pytest.raises(CatalogError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            search_scenes(job, tmp_path / "out")
        found = search_scenes(job, tmp_path / "out", pixels=False)
    assert not (tmp_path / "out/scenes/2024.json").exists(), "what was not checked is not frozen"
    assert [f["offset_add"] for f in found.to_dict()["epochs"]["2024"]["used"]] == [-1000] * 3


def test_a_static_catalog_is_read_once_for_all_periods(stac: Path, tmp_path: Path) -> None:
    from functools import partial

    from imagery_scenes import RangeHandler, serve

    asked: list[str] = []

    class Counting(RangeHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    with serve(partial(Counting, directory=str(stac.parent))) as address:
        search_scenes(job_on(f"{address}/catalog.json"), tmp_path / "out", pixels=False)
    assert sorted(p for p in asked if p.count("/") == 2) == sorted(f"/{s.id}/{s.id}.json" for s in SCENES)


# --- coverage ---------------------------------------------------------------------------------------------------------


def strip(name: str, day: str, west: float, east: float, tile: str, take: str) -> dict[str, Any]:
    """A used scene from 46.9 to 47.1 degrees north."""
    ring = [[west, 46.9], [east, 46.9], [east, 47.1], [west, 47.1], [west, 46.9]]
    item = item_dict(Scene(name, day=day, tile=tile, datatake=f"GS2A_{take}_0_N05.10"), {})
    item["properties"]["geoflow:offset"] = {"add": 0, "rule": "flag"}
    return {**item, "geometry": {"type": "Polygon", "coordinates": [ring]}}


def test_coverage_counts_passes_over_the_area() -> None:
    """Left half seen twice, right half once; two tiles of one pass that overlap count once there."""
    items = (
        strip("one-left", "2024-06-01", 11.8, 12.0, "32TQT", "20240601T100031"),
        strip("one-right", "2024-06-01", 11.95, 12.3, "33TTN", "20240601T100031"),
        strip("two", "2024-06-04", 11.8, 12.0, "32TQT", "20240604T100031"),
        strip("july", "2024-07-04", 11.8, 12.3, "32TQT", "20240704T100031"),
    )
    periods = {
        "june": DateRange.model_validate("2024-06-01/2024-06-30"),
        "july": DateRange.model_validate("2024-07-01/2024-07-31"),
        "august": DateRange.model_validate("2024-08-01/2024-08-31"),
    }
    scenes = Scenes("2024", items, (), periods)
    area = Geometry(box(11.9, 46.95, 12.1, 47.05, "EPSG:4326").geom, "EPSG:4326")
    june, july, august = coverage({"2024": scenes}, area, "EPSG:32633")
    assert (june.scenes, june.passes, june.least) == (3, 2, 1)
    assert june.shares[2] == pytest.approx(0.5, abs=0.005)
    assert june.shares[1] == pytest.approx(0.5, abs=0.005)
    assert sum(june.shares.values()) == pytest.approx(1)
    assert july.shares == {0: 0.0, 1: 1.0}
    assert (july.least, july.median) == (1, 1)
    assert august.shares == {0: 1.0}
    # The picture is the right way round: west is left.
    middle = june.counts[june.counts.shape[0] // 2]
    assert middle[10] == 2
    assert middle[-10] == 1
    assert max(june.counts.shape) == 800


def test_the_files_of_a_search(stac: Path, tmp_path: Path) -> None:
    found = search_scenes(job_on(stac), tmp_path / "out")
    frame = gpd.read_parquet(tmp_path / "out/scenes/footprints.parquet")
    assert frame.crs == "EPSG:4326"
    by_id = frame.set_index("id")
    assert set(by_id.index) == {scene.id for scene in SCENES}
    assert list(by_id.loc[["may", "cloudy"], "used"]) == [True, False]
    assert by_id.loc["cloudy", "reason"] == "cloud cover 95.0 % is above 60 %"
    assert by_id.loc["june", "tile"] == "32TQT"
    assert by_id.loc["may", "period"] == "spring"
    centre = by_id.loc["june"].geometry.centroid
    assert (centre.x, centre.y) == pytest.approx((12.0, 47.0), abs=0.1)
    picture = imread(tmp_path / "out/scenes/coverage.png")
    assert picture.shape[0] > 300
    colours = {tuple(c) for c in np.unique((picture[..., :3] * 255).round().astype(int).reshape(-1, 3), axis=0)}
    assert (255, 255, 204) in colours, "the colour of what one pass sees"
    assert not list((tmp_path / "out/scenes").glob(".*")), "no drafts are left"
    assert len(found.files) == 2


def test_the_command(stac: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**JOB, "imagery": {**JOB["imagery"], "url": str(stac)}}))

    def command(*options: str) -> subprocess.CompletedProcess[str]:
        run = [sys.executable, "-m", "geoflow", "search", str(job), "--out", str(tmp_path / "out"), *options]
        return subprocess.run(run, capture_output=True, text=True, check=False)

    quick = command("--no-pixels", "--json")
    assert quick.returncode == 0, quick.stderr
    epoch = json.loads(quick.stdout)["epochs"]["2024"]
    assert [scene["id"] for scene in epoch["used"]] == ["may", "june", "older"]
    assert epoch["coverage"]["spring"] == {"scenes": 1, "passes": 1, "least": 1, "median": 1.0, "shares": {"1": 1.0}}
    assert not (tmp_path / "out/scenes/2024.json").exists()

    done = command()
    assert done.returncode == 0, done.stderr
    for words in (
        r"2024 summer +Date +Tile +Orbit +Cloud % +Baseline +Offset",
        r"june +2024-06-10 +32TQT +5\.0 +05\.10 +0 +used",
        r"cloudy .* refused: cloud cover 95\.0 % is above 60 %",
        r"2024-06-01 to 2024-06-30: 2 used, 1 refused; 1 outside these days",
        r"2024 spring +1 +1 +1 +1 +- +100\.0",
        r"scenes/coverage\.png",
    ):
        assert re.search(words, done.stdout), words
    write_catalog(stac.parent, [*SCENES, NEWER])
    shown = command("--refresh")
    assert "Scenes of 2024: 1 superseded" in shown.stdout
    assert "superseded older: by newer, baseline 05.10" in shown.stdout
    assert "Nothing was changed" in shown.stdout
    assert "older" in (tmp_path / "out/scenes/2024.json").read_text()
    assert command("--refresh", "--apply").returncode == 0
    assert '"newer"' in (tmp_path / "out/scenes/2024.json").read_text()
    wrong = command("--apply")
    assert wrong.returncode == 2
    assert "--refresh" in wrong.stderr
    without = tmp_path / "without.yaml"
    without.write_text(yaml.safe_dump({k: v for k, v in JOB.items() if k != "imagery"}))
    job = without
    assert "imagery: the job has no such section" in command().stderr


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_key_of_coverage_names_no_count_that_does_not_occur() -> None:
    from geoflow.jobs.coverage import Coverage
    from geoflow.jobs.coveragemap import coverage_key

    box = GeoBox.from_bbox((0, 0, 40, 10), "EPSG:3035", resolution=10)
    for most, said in ((3, ["1", "2", "3"]), (4, ["1", "2", "3 to 4"]), (6, ["1", "2", "5 to 6"])):
        counts = np.array([[1, 1, 2, most]], np.uint16)
        found = Coverage("2024", "june", 9, 9, counts, np.ones((1, 4), bool), box)
        (section,) = coverage_key([found]).sections
        assert [entry.text for entry in section.entries] == said


def test_the_report_shows_coverage_and_ledger_and_stays_short(stac: Path, tmp_path: Path) -> None:
    found = search_scenes(job_on(stac), tmp_path / "out")
    epoch = found.to_dict()["epochs"]["2024"]
    ledger = {name: epoch[name] for name in ("used", "refused", "searches")}
    many = [{"id": f"scene-{i}", "reason": "does not meet the area", "filter": "area"} for i in range(1000)]
    ledger["refused"] = ledger["refused"] + many
    ledger["searches"] = {"summer": {"sent": ["CQL2: grid:code in ['MGRS-33TTN']"], "dropped": 12}}
    summary = {"job": "try", "scenes": {"2024": ledger}, "coverage": {"2024": epoch["coverage"]}}
    path = tmp_path / "out/report.html"
    write_report(summary, {"coverage": tmp_path / "out/scenes/coverage.png"}, path, legend("corine"))
    text = path.read_text()
    assert "Map of the coverage" in text
    assert text.count("data:image/png") == 1
    assert "1,000 do not meet the area, 1 too clouded" in text
    assert "cloud cover 95.0 % is above 60 %" in text
    assert "scene-100<" in text
    assert "scene-999<" not in text
    assert "and 801 more in scenes/2024.json" in text
    assert "12 scenes were dropped by the server, which was sent CQL2: grid:code in" in text
    assert re.search(r"2024 spring</td><td class=\"n\">1</td><td class=\"n\">1</td><td class=\"n\">1</td>", text)


def test_serving_the_same_catalog_gives_the_same_scenes(stac: Path, tmp_path: Path) -> None:
    here = search_scenes(job_on(stac), tmp_path / "here")
    with serve_folder(stac.parent) as address:
        there = search_scenes(job_on(f"{address}/catalog.json"), tmp_path / "there")
    assert used(here) == used(there)
    assert [identity(i)[0::3] for i in here.epochs["2024"].items] == [
        identity(i)[0::3] for i in there.epochs["2024"].items
    ]


def test_the_sample_country_from_a_real_stac_api(
    tiny_country: Path, tiny_job: Any, tmp_path: Path, rustac_serve: Any
) -> None:
    """rustac's server, which knows no filter: the same scenes, decisions and refusals as from the static catalog."""
    stac = tiny_country / "stac"
    items = [json.loads(path.read_text()) for path in sorted(stac.rglob("*.json"))]
    paths = {json.loads(p.read_text())["id"]: p for p in stac.rglob("*.json")}
    items = [item for item in items if item["type"] == "Feature"]
    with serve_folder(tiny_country) as files:
        for item in items:
            folder = paths[item["id"]].parent
            for asset in item["assets"].values():
                asset["href"] = f"{files}/{(folder / asset['href']).resolve().relative_to(tiny_country.resolve())}"
            item["links"] = []
        facts = yaml.safe_load((catalog_folder() / "sample.yaml").read_text())
        only = {"best_per_tile": 1, "tiles": ["35VLE"], "max_cloud_percent": 50}
        found = {}
        with rustac_serve(items) as address:
            own = tmp_path / "own.yaml"
            own.write_text(yaml.safe_dump({**facts, "name": "own", "kind": "api", "url": address}))
            for name, catalog in (("static", {}), ("api", {"catalog": str(own), "url": None})):
                for which, filters in (("all", {}), ("few", only)):
                    job = load_job(
                        tiny_job("labels", "classifier", "train", "predict", "generalise", "change", "evaluate")
                    )
                    imagery = job.imagery.model_copy(
                        update={**catalog, **filters, "tiles": tuple(filters.get("tiles", ()))}
                    )
                    job = job.model_copy(update={"imagery": imagery})
                    found[name, which] = search_scenes(job, tmp_path / name / which)
    for which in ("all", "few"):
        static, api = (found[name, which].to_dict()["epochs"] for name in ("static", "api"))
        for epoch in ("2018", "2024"):
            assert api[epoch]["used"] == static[epoch]["used"]
            assert api[epoch]["refused"] == static[epoch]["refused"]
            assert api[epoch]["coverage"] == static[epoch]["coverage"]
            assert all(search["outside"] == search["repeated"] == 0 for search in api[epoch]["searches"].values())
    everything = found["api", "all"]
    offered = {r["id"] for s in everything.epochs.values() for r in s.refused}
    offered |= {item["id"] for s in everything.epochs.values() for item in s.items}
    assert offered == {item["id"] for item in items}, "no scene of the country is lost"
    assert {f["offset_add"] for f in everything.to_dict()["epochs"]["2024"]["used"]} == {0, -1000}
    few = found["api", "few"].epochs
    assert all(len(few[epoch].within(period)) == 1 for epoch in few for period in few[epoch].periods)
