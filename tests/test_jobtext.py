"""Writing a job, checking it, and its schema: ``geoflow init``, ``validate``, ``schema``."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from geoflow.cli import main
from geoflow.errors import GeoflowError, JobError
from geoflow.jobs.jobfile import with_text_keys
from geoflow.jobs.joblines import JobLines
from geoflow.jobs.reference import section_of
from geoflow.jobs.schema import EXAMPLES, FILE, job_schema, schema_text
from geoflow.jobs.spec import Job
from geoflow.jobs.starter import Wishes, default_crs, starter_values, write_starter
from geoflow.jobs.validate import validate_job

ROOT = Path(__file__).parent.parent
JOBS = [*sorted((ROOT / "jobs").glob("*.yaml")), *sorted((ROOT / "tests/real").glob("slovenia.yaml"))]
BOX = "24.0,58.0,24.2,58.1"


def schema_errors(text: str) -> list[str]:
    found = jsonschema.Draft7Validator(job_schema()).iter_errors(with_text_keys(yaml.safe_load(text)))
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in found]


# The schema


def test_the_schema_is_one_and_the_file_for_editors_is_in_step():
    jsonschema.Draft7Validator.check_schema(job_schema())
    assert (ROOT / "jobs" / FILE).read_text("utf-8") == schema_text(), f"run: geoflow schema --to jobs/{FILE}"


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_every_job_fits_the_schema(path):
    text = path.read_text("utf-8")
    assert schema_errors(text) == []
    if path.parent.name == "jobs":
        assert text.startswith(f"# yaml-language-server: $schema={FILE}\n")


@pytest.mark.parametrize(
    ("was", "is_now", "told"),
    [
        ("tile: 512", "tile: large", "grid.tile"),
        ("tile: 512", "tiles: 512", "'tiles' was unexpected"),
        ("composite: median", "composites: median", "'composites' was unexpected"),
        ("summer: 2018-06-16/2018-09-30", "summer: 2018-06-16", "imagery.epochs.2018.summer"),
        ('from: "2018"', 'form: "2018"', "'from' is a required property"),
        ("steps: 5", "step: 5", "train.options"),
        ("steps: 5", "steps: many", "train.options.steps"),
        ("border.gpkg", "border.gpkg\n  bbox: [1, 2, 3, 4]", "area"),
    ],
)
def test_the_schema_refuses_what_the_job_refuses(was, is_now, told):
    text = (ROOT / "jobs/quickstart.yaml").read_text("utf-8")
    text = text.replace("  held_out_share: 0.25", "  held_out_share: 0.25\n  options: {steps: 5}")
    text = text.replace("  max_cloud_percent: 60", "  max_cloud_percent: 60\n  composite: median")
    assert schema_errors(text) == []
    assert was in text
    changed = text.replace(was, is_now)
    assert any(told in error for error in schema_errors(changed)), schema_errors(changed)
    from geoflow.jobs.jobfile import parse_job
    from geoflow.jobs.resolved import ResolvedJob

    with pytest.raises(GeoflowError):
        _ = ResolvedJob(parse_job(yaml.safe_load(changed)), Path("out")).segmenter_options


def test_every_example_of_a_key_is_accepted_there():
    schema = job_schema()
    for model, keys in EXAMPLES.items():
        for key, values in keys.items():
            inner = (schema if model == "Job" else schema["$defs"][model])["properties"][key]
            for value in values:
                jsonschema.Draft7Validator({**inner, "$defs": schema["$defs"]}).validate(value)
                assert inner["examples"] == values


# Places in the file


def test_keys_are_found_with_their_lines_and_values():
    lines = JobLines('a:\n  "1.5":\n    b: [x, {c: 7}]\n  2018: z\nlast:\n')
    assert lines.find("a.1.5.b.1.c") == (3, "7")
    assert lines.find(("a", "1.5", "b", 0)) == (3, "x")
    assert lines.find("a.2018") == (4, "z")
    assert lines.find("a.not.there") == (1, None)
    assert lines.find("nowhere") == (None, None)
    assert lines.find("last") == (5, "")


# Validate


@pytest.fixture
def job(tiny_country: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the job of the tiny country as text, with some of it replaced."""

    def write(*changes: tuple[str, str]) -> Path:
        text = TEXT.replace("COUNTRY", str(tiny_country))
        for was, is_now in changes:
            assert was in text
            text = text.replace(was, is_now)
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return write


TEXT = """\
name: tiny
area:
  file: COUNTRY/border.gpkg
grid: {crs: "EPSG:3035", tile: 256, chunk: 128}
imagery:
  catalog: sample
  url: COUNTRY/stac/catalog.json
  bands: [B02, B03, B04, B08]
  epochs:
    "2018":
      spring: 2018-04-01/2018-06-15
      summer: 2018-06-16/2018-09-30
labels:
  source: COUNTRY/corine/clc2018.gpkg
  epoch: "2018"
train:
  options:
    encoder: resnet18
    steps: 8
predict: {}
"""


def told(path: Path, *overrides: str) -> list[tuple[int | None, str, str]]:
    return [(p.line, p.level, p.message) for p in validate_job(path, overrides).problems]


def test_a_job_that_is_right_is_measured_and_nothing_is_written(job, tmp_path):
    found = validate_job(job(), out=tmp_path / "out")
    assert found.problems == ()
    assert found.facts["shape"] == [510, 640]
    assert found.facts["tiles"] == 6
    assert found.facts["epochs"] == ["2018"]
    assert found.facts["area_km2"] == pytest.approx(31.9, abs=0.1)
    assert 0 < found.facts["bytes_to_write"] < found.facts["bytes_free"]
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_everything_that_is_wrong_is_told_at_once_with_its_line(job):
    path = job(
        ("chunk: 128}", "chunk: 128, colour: red}"),
        ("  bands: [B02, B03, B04, B08]", "  bands: [B02, B99]\n  max_cloud_percent: 140"),
        ("2018-06-15", "2018-06-31"),
        ('  epoch: "2018"\n', '  epoch: "2018"\n  column: Kode\n'),
        ("corine/clc2018.gpkg", "corine/clc1066.gpkg"),
        ("name: tiny\n", "name: tiny\nname: again\n"),
    )
    found = told(path)
    assert [line for line, _, _ in found] == sorted(line for line, _, _ in found)
    by_line = {line: message for line, _, message in found}
    assert by_line[2] == "name: stands in line 1, too; YAML keeps the last one alone"
    assert by_line[5].startswith("grid.colour: unknown key; accepted here: crs, resolution_m, tile, chunk")
    assert "B99 is not a Sentinel-2 L2A band" in by_line[9]
    assert "less than or equal to 100, not 140" in by_line[10]
    assert by_line[13].startswith("imagery.epochs.2018.spring.end:")
    assert re.match(r"labels.source: there is no .*clc1066.gpkg", by_line[16])
    assert len(found) == 6


@pytest.mark.parametrize(
    ("was", "is_now", "line", "words"),
    [
        ("chunk: 128", "chunk: 100", 4, "tile 256 is not a multiple of chunk 100"),
        ("EPSG:3035", "EPSG:4326", 4, "is in degrees"),
        ("border.gpkg", "corine/nothing.gpkg", 3, "there is no"),
        ("catalog: sample", "catalog: simple", 6, "no catalog named 'simple'; known are"),
        ("2018-04-01/2018-06-15", "2011-04-01/2011-06-15", 11, "before Sentinel-2"),
        ("2018-04-01/2018-06-15", "2118-04-01/2118-06-15", 11, "has not come yet"),
        ("2018-04-01/2018-06-15", "2018-01-01/2018-01-15", 11, "no scene.*move its days"),
        ("url: COUNTRY", "url: ${NOBODY_SET_THIS}", 7, "environment variable NOBODY_SET_THIS is not set"),
        ('  epoch: "2018"', '  column: Kode\n  epoch: "2018"', 14, "has no column 'Kode'"),
        ('  epoch: "2018"', '  legend: legends/mine.csv\n  epoch: "2018"', 15, "there is no .*mine.csv"),
        ("encoder: resnet18", "encoder: resnet81", 17, "resnet81"),
        ("steps: 8", "stepz: 8", 19, "unknown key; accepted here"),
        ("predict: {}", "predict: {model: COUNTRY/model}", 20, "either a train section or predict.model"),
        ("predict: {}", "predict: {}\nchange: {from: 2018, to: 2024}", 21, "'2024' is not an epoch; there are 2018"),
        ("grid:", "grid", 4, "not YAML"),
    ],
)
def test_what_can_be_wrong_is_found_where_it_stands(job, tiny_country, was, is_now, line, words):
    is_now = is_now.replace("COUNTRY", str(tiny_country))
    found = told(job((was.replace("COUNTRY", str(tiny_country)), is_now)))
    assert len(found) == 1, found
    assert found[0][:2] == (line, "error")
    assert re.search(words, found[0][2]), found[0][2]


def test_days_that_count_twice_are_a_warning(job):
    path = job(("2018-06-16/2018-09-30", "2018-06-10/2018-09-30"))
    assert told(path) == [
        (12, "warning", "imagery.epochs.2018.summer: 2018-06-10/2018-06-15 is in imagery.epochs.2018.spring, too: its "
         "scenes count in both"),
    ]  # fmt: skip


def test_an_area_without_scenes_and_labels_is_told_so(job, tiny_country):
    found = told(job((f"  file: {tiny_country}/border.gpkg", "  bbox: [100, 10, 101, 11]")))
    assert [line for line, _, _ in found] == [11, 12, 14]
    assert "dropped 8 by area" in found[0][2]
    assert "holds no labels in the area" in found[2][2]


def test_zones_need_a_file_and_a_column(job, tiny_country):
    change = (
        f"predict: {{}}\nchange:\n  from: 2018\n  to: 2019\n  zones: {tiny_country}/counties.gpkg\n  zone_column: nome"
    )
    path = job(("predict: {}", change), ('epoch: "2018"', "epoch: 2018"), ('    "2018":\n', "    2018: &p\n"))
    path.write_text(path.read_text().replace("labels:\n", "    2019: *p\nlabels:\n", 1))
    found = told(path)
    assert [(line, message) for line, level, message in found if "zone" in message] == [
        (26, f"change.zone_column: {tiny_country}/counties.gpkg has no column 'nome'; it has code, name")
    ]


def test_zones_to_publish_are_looked_at_too(job, tiny_country):
    for zones, column, line, words in (
        ("corine/none.gpkg", "name", 22, "publish.zones: there is no .*none.gpkg"),
        ("counties.gpkg", "nome", 23, "publish.zone_column: .* has no column 'nome'; it has code, name"),
    ):
        publish = f"predict: {{}}\npublish:\n  zones: {tiny_country}/{zones}\n  zone_column: {column}"
        (found,) = told(job(("predict: {}", publish)))
        assert found[:2] == (line, "error")
        assert re.search(words, found[2])


def test_a_value_of_the_command_line_has_no_line(job):
    assert told(job(), "grid.tile=100") == [(4, "error", "grid: tile 100 is not a multiple of chunk 128; use tile 128")]
    with pytest.raises(JobError, match="write key=value"):
        validate_job(job(), ["grid.tile"])


def test_estonia_says_what_to_bring_and_from_where():
    found = told(ROOT / "jobs/estonia.yaml")
    assert len(found) == 5
    for key, page in (
        ("area.file", "naturalearthdata.com"),
        ("labels.source", "https://land.copernicus.eu/en/products/corine-land-cover/clc2018"),
        ("classifier.source", "https://bigearth.net"),
    ):
        assert [page in message for _, _, message in found if message.startswith(f"{key}: there is no")] == [True]


def test_the_command_validate(job, tmp_path, monkeypatch, capsys):
    def validate(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geoflow", "validate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    monkeypatch.chdir(tmp_path)
    wrong = job(("chunk: 128", "chunk: 100"))
    said = f"{wrong}:4: error: grid: tile 256 is not a multiple of chunk 100; use tile 300\n{wrong}: 1 error\n"
    assert validate(wrong) == (1, said, "")
    code, out, _ = validate(wrong, "--json")
    found = json.loads(out)
    assert (code, found["valid"]) == (1, False)
    assert (found["problems"][0]["line"], found["problems"][0]["key"]) == (4, "grid")
    code, out, _ = validate(job())
    assert code == 0
    assert re.search(r"valid; 32 km², 640 x 510 px of 10 m, 6 tiles, writes at most 0\.0\d GB", out)
    code, out, err = validate(tmp_path / "no.yaml")
    assert (code, out) == (2, "")
    assert "there is no job file" in err


# Init


def test_a_job_that_is_written_is_valid_and_has_every_key(tiny_country, tmp_path):
    wishes = Wishes(
        str(tiny_country / "border.gpkg"),
        "tiny",
        str(tiny_country / "stac/catalog.json"),
        labels=tiny_country / "corine/clc2018.gpkg",
        bigearthnet=tiny_country / "bigearthnet",
    )
    written = write_starter(tmp_path / "tiny.yaml", wishes)
    text = written.job.read_text()
    assert text.startswith(f"# yaml-language-server: $schema={FILE}\n")
    assert written.schema.read_text() == schema_text()
    assert schema_errors(text) == []
    found = validate_job(written.job)
    assert [p.message for p in found.problems] == []
    assert found.facts["crs"] == "EPSG:3035"
    for name, field in Job.model_fields.items():
        assert re.search(rf"^#?{name}:", text, re.MULTILINE), name
        section = section_of(field)
        for key, inner in section.model_fields.items() if section else ():
            assert re.search(rf"^#? +#?{inner.alias or key}: ?", text, re.MULTILINE), f"{name}.{key}"
            assert inner.description, f"{name}.{key} has nothing to be told"
    assert all(len(line) <= 120 for line in text.splitlines() if "# " in line)


def test_whatever_is_written_as_a_comment_could_be_said(tmp_path):
    """Without its "#" each of these lines is accepted, but for a second area."""
    text = write_starter(tmp_path / "job.yaml", Wishes(BOX)).job.read_text()
    lines = text.splitlines()
    tried = 0
    for at, line in enumerate(lines):
        if re.match(r" +#\w+: |#\w+: ", line) and not re.search("#(file|layer|where|geojson):", line):
            changed = [*lines[:at], line.replace("#", "", 1), *lines[at + 1 :]]
            assert schema_errors("\n".join(changed)) == [], line
            tried += 1
    assert tried > 30


def test_seasons_and_crs_follow_the_place():
    def box(west: float, south: float, east: float, north: float) -> Any:
        return type("Box", (), {"left": west, "bottom": south, "right": east, "top": north})

    assert default_crs(box(21, 57, 29, 60)) == "EPSG:3035"
    assert default_crs(box(-62, 15, -61, 17)) == "EPSG:32620"
    assert default_crs(box(170, -46, 172, -44)) == "EPSG:32759"
    south, _ = starter_values(Wishes("170,-46,172,-44", epochs="2024"), Path())
    assert south["imagery"]["epochs"]["2024"]["summer"] == "2023-12-16/2024-03-15"
    tropics, _ = starter_values(Wishes("-62,15,-61,17", epochs="2024"), Path())
    assert list(tropics["imagery"]["epochs"]["2024"]) == ["first_half", "second_half"]
    assert "change" not in tropics


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (Wishes(), "--area is missing: a file with the border"),
        (Wishes("nowhere.gpkg"), "--area nowhere.gpkg: there is no such file"),
        (Wishes("24,59,24.2,58"), "south < north"),
        (Wishes(BOX, epochs="2018,next"), "'next' is not a year"),
        (Wishes(BOX, catalog="google"), "no catalog named 'google'"),
        (Wishes(BOX, legend="mine.csv"), "mine.csv"),
        (Wishes(BOX, labels=Path("no.gpkg")), "no.gpkg"),
        (Wishes(BOX, labels_epoch="2012"), "--labels-epoch 2012: there are 2018, 2024"),
        (Wishes(BOX, crs="EPSG:0"), "--crs EPSG:0"),
        (Wishes(BOX, crs="EPSG:4326"), "is in degrees"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_refused_and_nothing_is_written(tmp_path, wishes, words):
    with pytest.raises(GeoflowError, match=re.escape(words)):
        write_starter(tmp_path / "job.yaml", wishes)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("mine")
    with pytest.raises(GeoflowError, match="--force"):
        write_starter(path, Wishes(BOX))
    assert path.read_text() == "mine"
    notes = write_starter(path, Wishes(BOX), force=True).notes
    assert any("clc2018 (register, free)" in note for note in notes)
    assert yaml.safe_load(path.read_text())["area"]["bbox"] == [24.0, 58.0, 24.2, 58.1]


def test_rivers_keep_their_banks_where_pixels_are_coarse(tmp_path):
    """A margin spares what is narrower than three pixels, where the default would spare nothing."""
    for resolution_m, speck_m in ((10, None), (33, None), (34, 102), (120, 360)):
        path = tmp_path / f"{resolution_m}.yaml"
        notes = write_starter(path, Wishes(BOX, resolution_m=resolution_m)).notes
        assert yaml.safe_load(path.read_text())["imagery"].get("mask_speck_m") == speck_m
        assert any("mask_speck_m" in note for note in notes) == (speck_m is not None)


def test_a_margin_around_single_pixels_is_a_warning(job):
    bands = "  bands: [B02, B03, B04, B08]"
    ((line, level, words),) = told(job((bands, f"{bands}\n  mask_speck_m: 14")))
    assert (line, level) == (9, "warning")
    assert "14 m is less than two pixels of 10 m" in words
    for more in ("mask_speck_m: 15", "mask_speck_m: 0", "mask_speck_m: 14\n  mask_dilate_m: 0"):
        assert not told(job((bands, f"{bands}\n  {more}")))


def test_the_interview_asks_again_until_it_can_use_the_answer(tmp_path, tiny_country):
    """On a real terminal."""
    counties = str(tiny_country / "counties.gpkg")
    answers = ["nowhere.gpkg", counties, "nome = 'x'", "", "", "google", "earth-search", "", "", "", "EPSG:4326000", ""]
    command = [sys.executable, "-m", "geoflow", "init", "talk.yaml"]
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path) as asked:
        os.close(terminal)
        said, deadline = "", time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([keyboard], [], [], 0.2)[0]:
                try:
                    said += os.read(keyboard, 4096).decode()
                except OSError:  # the other end is closed
                    break
            if said.rstrip().endswith(":") and answers:
                os.write(keyboard, f"{answers.pop(0)}\n".encode())
                said += "\n"
        asked.wait(10)
    os.close(keyboard)
    assert asked.returncode == 0, said
    assert not answers
    assert "there is no such file" in said
    assert "no catalog named 'google'" in said
    made = yaml.safe_load((tmp_path / "talk.yaml").read_text())
    assert "a condition such as name = '" in said
    assert made["area"]["file"].endswith("counties.gpkg")
    assert made["grid"]["crs"] == "EPSG:3035"
    assert made["labels"]["source"].endswith(".gpkg")


# On real data, as docs/how-to/first-job.md tells it


@pytest.fixture
def real() -> Path:
    folder = os.environ.get("GEOFLOW_REAL_DATA")
    if not folder:
        pytest.skip("GEOFLOW_REAL_DATA names no folder of real data")
    return Path(folder)


def test_the_first_job_of_the_docs(real, tmp_path):
    scenes = real / "s2-slovenia"
    wishes = Wishes(
        "15.05,45.0,16.35,46.9",
        "slovenia",
        str(scenes / "catalog.json"),
        epochs="2023",
        legend=str(scenes / "labels/legend.csv"),
        labels=scenes / "labels/scl.tif",
        resolution_m=120,
    )
    path = write_starter(tmp_path / "slovenia.yaml", wishes).job
    assert yaml.safe_load(path.read_text())["imagery"]["bands"] == ["B02", "B03", "B04", "B08"], "what the scenes have"
    (problem,) = validate_job(path).problems
    lines = path.read_text().splitlines()
    assert "spring" in lines[(problem.line or 0) - 1]
    assert "it offered 6, dropped 6 by date; move its days, or leave the period out" in problem.message
    path.write_text("\n".join(line for line in lines if "spring: 2023" not in line))
    found = validate_job(path)
    assert found.problems == ()
    assert (found.facts["shape"], found.facts["tiles"]) == ([1819, 968], 8)
    assert round(found.facts["area_km2"]) == 21285


def test_corine_of_a_national_agency_is_found_in_its_geopackage(real, tmp_path):
    source = real / "clc-lanjaron-spain-with-landsat8/clc.gpkg"
    path = write_starter(tmp_path / "lanjaron.yaml", Wishes("-3.5,36.9,-3.4,37.0", labels=source)).job
    assert yaml.safe_load(path.read_text())["labels"]["column"] == "CODE_18"
    assert validate_job(path).problems == ()
