"""The job file: a mistake is one sentence that names the key, the value and what is accepted."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from geoflow.errors import GeoflowError, JobError
from geoflow.jobs.jobfile import EVALUATION_ONLY, check_inputs_exist, load_job, parse_job

JOB = {
    "name": "test",
    "area": {"bbox": [24.0, 58.0, 24.3, 58.2]},
    "grid": {"crs": "EPSG:3035", "resolution_m": 10, "tile": 512, "chunk": 256},
    "imagery": {
        "catalog": "sample",
        "url": "sample/catalog.json",
        "bands": ["B02", "B03"],
        "epochs": {
            "2018": {"spring": "2018-04-01/2018-06-15", "summer": "2018-06-16/2018-09-15"},
            "2024": {"spring": "2024-04-01/2024-06-15", "summer": "2024-06-16/2024-09-15"},
        },
    },
    "labels": {"source": "clc.gpkg", "epoch": "2018"},
    "train": {},
    "predict": {},
    "change": {"from": "2018", "to": "2024"},
}


def changed(key: str, value: object) -> dict:
    job = copy.deepcopy(JOB)
    node = job
    *parents, last = key.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return job


def test_a_whole_job():
    job = parse_job(JOB)
    assert job.imagery.periods == ("spring", "summer")
    assert job.mapped_epochs == ("2018", "2024")
    assert (job.change.before, job.change.after) == ("2018", "2024")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("grid.tilesize", 512, r"grid.tilesize: unknown key; accepted here: crs, resolution_m, tile, chunk"),
        (
            "publish.licence",
            "free",
            r"publish.licence: .*'free' is no licence that SPDX lists: write for example CC-BY-4.0",
        ),
        (
            "publish.publisher_url",
            "www.agency.eu",
            r"publisher_url: .*'www.agency.eu' is no address .* begins with https",
        ),
        ("publish.publisher_url", "https://me:key@a.eu", r"publisher_url: .* is no address of a page"),
        ("colour", "red", r"colour: unknown key; accepted here: name, area, grid"),
        ("change.form", "2018", r"change.form: unknown key; accepted here: from, to"),
        ("grid.tile", "big", r"grid.tile: .*integer.* not 'big'"),
        ("grid.tile", 700, r"grid: tile 700 is not a multiple of chunk 256; use tile 768"),
        ("grid.crs", "EPSG:4326", r"grid.crs: .*in degrees"),
        ("grid.crs", "EPSG:99999", r"grid.crs: 'EPSG:99999' is not a CRS"),
        ("grid.resolution_m", -1, r"grid.resolution_m: .*greater than 0"),
        ("imagery.bands", ["B02", "B10"], r"imagery.bands: B10 is not a Sentinel-2 L2A band; there are B01"),
        ("imagery.bands", ["B02", "B02"], r"named twice"),
        ("imagery.epochs.2018.spring", "2018-06-01", r"imagery.epochs.2018.spring: .*write 2018-04-15/2018-06-15"),
        ("imagery.epochs.2018.spring", "2018-06-01/2018-04-01", r"ends \(2018-04-01\) before it starts"),
        ("imagery.epochs.2018.spring", "2018-06-31/2018-07-01", r"imagery.epochs.2018.spring.start"),
        ("imagery.epochs.2030", {"winter": "2030-01-01/2030-02-01"}, r"all epochs need the same periods"),
        ("imagery.max_cloud_percent", 101, r"imagery.max_cloud_percent: .*less than or equal to 100"),
        ("imagery.composite", "mean", r"imagery.composite: .*'median'"),
        ("labels.epoch", "2017", r"labels.epoch: '2017' is not an epoch; there are 2018, 2024"),
        ("labels.name", "../x", r"labels.name: '../x' is not a name"),
        ("change.to", "2018", r"from and to are both '2018'"),
        ("change.to", "2023", r"change: '2023' is not an epoch"),
        ("predict.epochs", ["2019"], r"predict.epochs: '2019' is not an epoch"),
        ("predict.model", "model", r"either a train section or predict.model"),
        ("evaluate", {"truth": {"2019": "x.tif"}}, r"evaluate.truth: '2019' is not an epoch"),
        ("area", {}, r"area: give one of file, geojson and bbox, not none"),
        ("area.file", "x.gpkg", r"area: give one of file, geojson and bbox, not file and bbox"),
        ("area.where", "NAME = 'Estonia'", r"area: layer and where choose within a file"),
        ("area.bbox", [170, -20, 170, -15], r"west < east, or cross the 180th meridian"),
        ("area.bbox", [24, 58, 23, 59], r"west < east"),
        ("name", "a b", r"name: 'a b' is not a name"),
    ],
)
def test_mistakes(key, value, says):
    with pytest.raises(JobError, match=says):
        parse_job(changed(key, value))


@pytest.mark.parametrize("section", ["area", "grid", "name"])
def test_what_a_job_must_have(section):
    job = {k: v for k, v in JOB.items() if k != section}
    with pytest.raises(JobError, match=f"{section}: is missing"):
        parse_job(job)


@pytest.mark.parametrize(
    ("without", "says"),
    [("labels", "train: learns from"), ("imagery", "train: learns from"), ("train", "either a train section")],
)
def test_sections_that_need_others(without, says):
    job = {k: v for k, v in JOB.items() if k != without}
    with pytest.raises(JobError, match=says):
        parse_job(job)


@pytest.mark.parametrize("kept", [("imagery",), ("labels",), ("imagery", "labels"), ("imagery", "labels", "train"), ()])
def test_any_subset_that_fits_is_a_job(kept):
    parse_job({k: v for k, v in JOB.items() if k in {"name", "area", "grid", *kept}})


def write(folder: Path, values: object = JOB) -> Path:
    path = folder / "job.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_paths_are_relative_to_the_job_file(tmp_path):
    job = load_job(write(tmp_path))
    assert job.labels.source == tmp_path / "clc.gpkg"
    assert job.imagery.url == str(tmp_path / "sample/catalog.json")


def test_years_may_be_written_as_numbers(tmp_path):
    text = yaml.safe_dump(JOB).replace("'2018'", "2018").replace("'2024'", "2024")
    job = load_job(
        write(
            tmp_path,
            text.replace("epoch: 2018", "epoch: '2018'")
            .replace("from: 2018", "from: '2018'")
            .replace("to: 2024", "to: '2024'"),
        )
    )
    assert job.mapped_epochs == ("2018", "2024")


def test_overrides(tmp_path):
    job = load_job(write(tmp_path), ["grid.tile=1024", "imagery.epochs.2018.spring=2018-05-01/2018-05-31"])
    assert job.grid.tile == 1024
    assert job.imagery.epochs["2018"]["spring"].start.month == 5
    for wrong, says in (
        ("grid.tile", "write key=value"),
        ("name.x=1", "not a section"),
        ("grid.tile=[", "not a value"),
    ):
        with pytest.raises(JobError, match=says):
            load_job(write(tmp_path), [wrong])


def test_environment_variables(tmp_path, monkeypatch):
    path = write(tmp_path, changed("labels.source", "${CORINE}/clc.gpkg"))
    monkeypatch.delenv("CORINE", raising=False)
    with pytest.raises(JobError, match="CORINE is not set"):
        load_job(path)
    monkeypatch.setenv("CORINE", "/data")
    assert load_job(path).labels.source == Path("/data/clc.gpkg")


def test_a_relative_path_in_the_environment_is_relative_to_the_shell(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "project").mkdir()
    (tmp_path / "jobs").mkdir()
    path = write(tmp_path / "jobs", changed("labels.source", "${CORINE}/clc.gpkg"))
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("CORINE", "../shared")
    assert load_job(path).labels.source == tmp_path / "shared" / "clc.gpkg"
    monkeypatch.setenv("CORINE", "a-word")
    assert load_job(path).labels.source == tmp_path / "jobs" / "a-word" / "clc.gpkg"


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "a: [", "!!python/object/apply:os.system ['true']"])
def test_files_that_are_no_job(tmp_path, text):
    with pytest.raises(JobError, match=r"job\.yaml"):
        load_job(write(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(JobError, match="no job file"):
        load_job(tmp_path / "none.yaml")


def test_missing_inputs_are_named(tmp_path):
    with pytest.raises(JobError, match=r"imagery.url: there is no .*catalog.json"):
        check_inputs_exist(load_job(write(tmp_path)))


def test_a_truth_can_only_be_evaluated_against(tmp_path):
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / EVALUATION_ONLY).touch()
    with pytest.raises(JobError, match=r"labels.source: .* is a truth for evaluation only"):
        load_job(write(tmp_path, changed("labels.source", "truth/landcover.tif")))
    load_job(write(tmp_path, changed("evaluate", {"truth": {"2018": "truth/landcover.tif"}})))


_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8))
_values = st.recursive(_scalars, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(st.text(max_size=8), v)))
_keys = st.sampled_from([f"{s}.{k}" for s, section in JOB.items() if isinstance(section, dict) for k in section])


@settings(max_examples=300)
@given(key=_keys, value=_values)
def test_any_value_is_accepted_or_refused_with_a_sentence(key, value):
    try:
        parse_job(changed(key, value))
    except GeoflowError as error:
        if not str(error):
            pytest.fail("an error without a sentence")


def test_licences_are_written_as_spdx_writes_them():
    assert parse_job(changed("publish.licence", "cc-by-4.0")).publish.licence == "CC-BY-4.0"
    assert parse_job(changed("publish.licence", "LicenseRef-Survey")).publish.licence == "LicenseRef-Survey"
