"""The report: one file, everything escaped, a section for each part of the summary and none for what is not there."""

from __future__ import annotations

import base64
import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from geoflow.jobs.report import duration, hectares, moment, percent, points, without_machine_paths, write_report
from geoflow.legends import Legend, legend

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "br", "link", "input", "hr"}

SUMMARY: dict[str, Any] = {
    "job": "quickstart",
    "title": "Land cover of the sample country",
    "status": "complete",
    "started": "2026-11-23T19:10:05+00:00",
    "finished": "2026-11-23T19:14:05+00:00",
    "seconds": 240.4,
    "config": {"name": "quickstart", "grid": {"crs": "EPSG:32633", "resolution_m": 10.0}, "seed": 0},
    "grid": {"crs": "EPSG:32633", "resolution_m": 10.0, "shape": [1200, 2000], "tiles": [3, 4]},
    "stages": {
        "imagery": {
            "title": "Composites", "tasks": 24, "done": 20, "skipped": 4, "failed": 0, "seconds": 42.0,
            "work_seconds": 80.5,
        },
        "train": {
            "title": "Training", "tasks": 1, "done": 1, "skipped": 0, "failed": 0, "seconds": 120.0,
            "work_seconds": 119.0,
        },
    },
    "failed": [{"stage": "imagery", "key": "2018/r0000c0001", "error": "SceneError: B04 <is> cut short"}],
    "scenes": {
        "2018": {
            "used": [
                {
                    "id": "S2A_33TWN_20180601_0_L2A", "date": "2018-06-01", "cloud": 12.5, "baseline": "02.08",
                    "offset_add": 0, "offset_rule": "baseline before 04.00",
                }
            ],
            "refused": [{"id": "S2B_33TWN_20180606_0_L2A", "reason": "cloud 93 % is above 60 %"}],
        },
        "2024": {"used": [], "refused": []},
    },
    "model": {
        "architecture": "unet", "encoder": "resnet18", "classes": [112, 211, 311], "parameters": 14_321_937,
        "sha256": "ab" * 32, "training": {"options": {"lr": 0.0003, "steps": 400}, "final_loss": 0.8123},
    },
    "labels": {"name": "clc2018", "source": "clc2018.gpkg", "labelled_px": 89_340, "overlap_px": 1_207},
    "classifier": {"macro_f1": 0.512, "micro_f1": 0.701},
    "accuracy": {
        "epoch": "2018", "where": "held_out",
        "map": {"level1": 0.912, "level2": 0.81, "level3": 0.703},
        "labels": {"level1": 0.851, "level2": 0.78, "level3": 0.724},
        "everywhere": {"map": {"level1": 0.925}, "labels": {"level1": 0.856}},
        "pixels": {"held_out": 412_345, "all": 2_000_000},
        "per_class": {
            "level1": [
                {"code": 3, "name": "Forest and semi natural areas", "users": 0.95, "producers": 0.93, "f1": 0.94,
                 "iou": 0.88, "truth_px": 200_000},
                {"code": 4, "name": "Wetlands", "users": None, "producers": 0.0, "f1": 0.0, "iou": 0.0, "truth_px": 12},
            ],
            "level3": [
                {"code": 311, "name": "Broad-leaved forest", "users": 0.8, "producers": 0.7, "f1": 0.75, "iou": 0.6,
                 "truth_px": 90_000},
            ],
        },
        "confusion": {"level1": {"codes": [1, 3], "matrix": [[900, 100], [0, 5000]]}},
        "epochs": {"2024": {"map": {"level1": 0.887, "level2": 0.77, "level3": 0.66}}},
        "change": {
            "held_out": {"precision": 0.61, "recall": 0.55, "f1": 0.578, "area_bias": -0.098},
            "patches": {"precision": 0.5, "recall": 0.75, "f1": 0.6, "true": 8, "found": 6, "mapped": 12, "right": 6},
        },
    },
    "areas_ha": {
        "2018": {
            "level1": {"1": 1234.5, "3": 9000.0}, "level2": {"11": 1234.5, "31": 9000.0},
            "level3": {"112": 1234.5, "311": 6000.0, "312": 3000.0},
        },
        "2024": {
            "level1": {"1": 1300.5, "3": 8934.0}, "level2": {"11": 1300.5, "31": 8934.0},
            "level3": {"112": 1300.5, "311": 6000.0, "312": 2900.0, "324": 34.0},
        },
    },
    "change": {
        "2018-2024": {
            "changed_ha": 100.0,
            "transitions": [{"from": 312, "to": 112, "ha": 66.0}, {"from": 312, "to": 324, "ha": 34.0}],
        }
    },
    "paths": {"store": "country.zarr", "model": "model", "report": "report.html"},
    "attribution": ["Contains modified Copernicus Sentinel data 2018 (https://www.copernicus.eu/)"],
    "versions": {"geoflow": "0.1.0", "python": "3.11.9"},
}  # fmt: skip

SECTIONS = {
    "failures": "failed", "accuracy": "accuracy", "areas": "areas_ha", "change": "change", "stages": "stages",
    "scenes": "scenes", "job": "config", "files": "paths", "versions": "versions", "labels": "labels",
    "attribution": "attribution",
}  # fmt: skip
"""Element id -> the part of the summary that it is made from."""


class Page(HTMLParser):
    """A page that must be well formed: every element that opens is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href"):
                self.links.append((tag, value or ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words += " " + re.sub(r"[ \n]+", " ", data)


@pytest.fixture(scope="module")
def corine() -> Legend:
    return legend("corine")


def write(tmp_path: Path, summary: dict[str, Any], of: Legend, figures: dict[str, Path] | None = None) -> Page:
    path = tmp_path / "report.html"
    write_report(summary, figures or {}, path, of)
    return Page(path.read_text(encoding="utf-8"))


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in copy.deepcopy(SUMMARY).items() if key not in keys}


def test_all_sections_are_there_once(tmp_path: Path, corine: Legend) -> None:
    (tmp_path / "map.png").write_bytes(PNG)
    page = write(tmp_path, SUMMARY, corine, {"map": tmp_path / "map.png"})
    assert sorted(page.ids) == sorted([*SECTIONS, "maps", "model"])


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_without_its_part_is_absent(tmp_path: Path, corine: Legend, section: str) -> None:
    page = write(tmp_path, without(SECTIONS[section]), corine)
    assert section not in page.ids
    assert set(page.ids) == {*SECTIONS, "model"} - {section}


def test_a_summary_of_next_to_nothing_is_a_page(tmp_path: Path, corine: Legend) -> None:
    page = write(tmp_path, {"job": "tiny"}, corine)
    assert page.ids == []
    assert "tiny" in page.words


def test_empty_parts_are_absent_too(tmp_path: Path, corine: Legend) -> None:
    empty = {"job": "tiny", "failed": [], "scenes": {}, "stages": {}, "areas_ha": {}, "change": {}, "accuracy": None}
    assert write(tmp_path, empty, corine).ids == []


def test_change_alone_may_have_a_truth(tmp_path: Path, corine: Legend) -> None:
    summary = copy.deepcopy(SUMMARY)
    summary["accuracy"] = {key: summary["accuracy"][key] for key in ("where", "change")} | {"pixels": {}, "epochs": {}}
    page = write(tmp_path, summary, corine)
    assert "accuracy" in page.ids
    assert "Area bias, %" in page.words
    assert "Share of pixels with the right class" not in page.words


def test_the_statement_compares_map_and_labels(tmp_path: Path, corine: Legend) -> None:
    words = write(tmp_path, SUMMARY, corine).words
    assert "the map is right on 91.2\u202f% of the pixels in the held-out blocks" in words
    assert "right on 85.1\u202f% of the same pixels: 6.1 points better." in words


def test_the_statement_does_not_flatter(tmp_path: Path, corine: Legend) -> None:
    summary = without()
    summary["accuracy"] |= {"map": {"level1": 0.80}, "labels": {"level1": 0.85}, "where": "all"}
    words = write(tmp_path, summary, corine).words
    assert "5.0 points worse" in words
    assert "held-out blocks, whose labels" not in words
    assert "training areas included" in words


def test_what_could_not_be_read_is_told(tmp_path: Path, corine: Legend) -> None:
    epoch = next(iter(SUMMARY["scenes"]))
    lost = {"scene": "S2A_gone", "band": "B03", "cause": "404", "tiles": ["a", "b"], "pixels": 12345}
    retried = [{"scene": "S2A_slow", "band": "B04", "cause": "503", "times": times} for times in (3, 4)]
    unasked = [{"scene": "S2A_mute", "rule": "flag", "add": -1000, "note": "no pixel could be asked"}]
    summary = SUMMARY | {"reads": {epoch: {"lost": [lost], "retried": retried, "unasked": unasked}}}
    words = " ".join(write(tmp_path, summary, corine).words.split())
    assert "could not be read, and were left out" in words
    assert re.search(r"S2A_gone\W*B03\W*2\W*12.?345", words)
    assert "7 reads had to be tried again" in words
    assert re.search(r"S2A_mute\W*flag\W*1000\W*no pixel could be asked", words)
    assert "could not be read" not in write(tmp_path, SUMMARY, corine).words


def test_numbers_are_those_of_the_summary(tmp_path: Path, corine: Legend) -> None:
    words = write(tmp_path, SUMMARY, corine).words
    for text in ("90.0\u202f%", "10.0\u202f%", "+6.1", "\u22122.1", "14\u202f321\u202f937", "0.8123", "57.8\u202f%"):
        assert text in words, text
    assert "1\u202f207 of them lie in several polygons" in words
    assert "8\u202f934" in words  # forest in 2024
    assert "\u2212100" in words  # coniferous forest lost
    assert "+34.0" in words  # woodland-shrub, absent in 2018


def test_zones_and_the_matrix_of_change_are_told(tmp_path: Path, corine: Legend) -> None:
    zones = {"2024": {"Eastwold": {"level1": {"2": 25.0, "3": 75.0}}, "Aland": {"level1": {"5": 8.0}}}}
    words = write(tmp_path, {**SUMMARY, "areas_by_zone": zones}, corine).words
    assert re.search(r"By zone, 2024.*Aland\W*8\.00?\D.*Eastwold\W*100\D*0\.0\D*25\.0\D*75\.0", words, re.DOTALL)
    assert "By zone" not in write(tmp_path, SUMMARY, corine).words
    assert "on the diagonal between classes of one" in words


def test_self_contained(tmp_path: Path, corine: Legend) -> None:
    (tmp_path / "map.png").write_bytes(PNG)
    page = write(tmp_path, SUMMARY, corine, {"map": tmp_path / "map.png", "change": tmp_path / "none.png"})
    images = [value for tag, value in page.links if tag == "img"]
    assert len(images) == 1
    assert base64.b64decode(images[0].removeprefix("data:image/png;base64,")) == PNG
    links = [(tag, value) for tag, value in page.links if tag != "img" and not value.startswith("#")]
    assert links == [("a", "https://www.copernicus.eu/")]
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(" not in text


HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x.png onerror=alert(1)>{{ 7*7 }}"


def poisoned(value: Any) -> Any:
    """The same structure with every text replaced by a hostile one; what must stay a word or a time is kept."""
    if isinstance(value, dict):
        return {k: v if k in ("status", "where") else poisoned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_texts_stay_texts(tmp_path: Path, corine: Legend) -> None:
    page = write(tmp_path, poisoned(SUMMARY), corine)
    assert not {"script", "img"} & set(page.tags)
    assert "{{ 7*7 }}" in page.words
    assert "alert('x')" in page.words


def test_hostile_legend(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text('code,name,colour\n4,"<b>veg</b>",#2e9a3a\n6,water,#2b6fd6\n')
    flat = legend(tmp_path / "classes.csv")
    page = write(tmp_path, {"job": "j", "areas_ha": {"2023": {"level1": {"4": 10.0, "6": 30.0}}}}, flat)
    assert "<b>veg</b>" in page.words
    assert "75.0\u202f%" in page.words


def test_no_machine_paths(tmp_path: Path, corine: Legend) -> None:
    summary = without()
    summary["config"]["labels"] = {"source": "/home/anna/projects/clc/clc2018.gpkg"}
    summary["config"]["own"] = str(tmp_path / "scenes" / "2018.json")
    summary["failed"][0]["error"] = f"no file {tmp_path}/country.zarr/map/2018/c/0/0, see /var/lib/geo/logs/run.txt."
    write(tmp_path, summary, corine)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert "anna" not in text
    assert "/var/" not in text
    assert "…/clc/clc2018.gpkg" in text
    assert "own: scenes/2018.json" in text
    assert "no file country.zarr/map/2018/c/0/0, see …/logs/run.txt." in text


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a/b/c.json",
        "s3://bucket/a/b",
        "map/2018/level1",
        "and/or",
        "1 / 2",
        "EPSG:32633",
        "/",
        "a.b",
    ],
)
def test_what_is_no_machine_path_stays(tmp_path: Path, text: str) -> None:
    assert without_machine_paths(text, tmp_path) == text


def test_a_path_with_spaces_is_cut_whole(tmp_path: Path) -> None:
    file = tmp_path / "my data" / "border.gpkg"
    file.parent.mkdir()
    file.touch()
    assert without_machine_paths({"file": str(file)}, tmp_path / "out") == {"file": "…/my data/border.gpkg"}
    assert without_machine_paths(str(file), tmp_path) == "my data/border.gpkg"


def test_a_figure_that_fails_leaves_the_old_report(tmp_path: Path, corine: Legend) -> None:
    write(tmp_path, SUMMARY, corine)
    before = (tmp_path / "report.html").read_bytes()
    broken = without()
    broken["areas_ha"]["2018"]["level3"] = {"311": "many"}
    with pytest.raises(TypeError):
        write_report(broken, {}, tmp_path / "report.html", corine)
    assert (tmp_path / "report.html").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_numbers_for_reading() -> None:
    assert percent(0.91) == "91.0\u202f%"
    assert percent(None) == "–"
    assert points(-0.005) == "\u22120.5"
    assert hectares(1234.5) == "1\u202f234"
    assert hectares(-12.34) == "\u221212.3"
    assert hectares(5.0, sign=True) == "+5.0"
    assert [duration(s) for s in (0.44, 12.2, 59.7, 185, 7620, None)] == [
        "0.4 s", "12 s", "1 min 00 s", "3 min 05 s", "2 h 07 min", "–",
    ]  # fmt: skip
    assert moment("2026-11-23T19:10:05+00:00") == "2026-11-23 19:10 UTC"
    assert moment("yesterday") == "yesterday"
