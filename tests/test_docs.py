"""Every command and code block of README and docs is true."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import geoflow as gf
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.patchingest import ingest_patches
from geoflow.jobs.reference import job_reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    found = []
    for page in PAGES:
        for name, text in re.findall(
            r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            if name == language:
                found.append((page.name, text))
    return found


def test_the_job_reference_is_in_step_with_the_code():
    page = (ROOT / "docs/jobs.md").read_text(encoding="utf-8")
    assert page == job_reference(), "run: python -m geoflow.jobs.reference > docs/jobs.md"


def test_every_link_within_the_repository_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_python_block_runs(finished, tmp_path, monkeypatch, capsys):
    """In order and from the folder where a reader would stand, on a copy of a finished run in out/quickstart."""
    job, out = finished
    shutil.copytree(out, tmp_path / "out/quickstart")
    (tmp_path / "jobs").mkdir()
    shutil.copy(job, tmp_path / "jobs/quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    ingest_patches(gf.load_job(job).classifier.source, tmp_path / "patches.zarr", cluster="threads")
    found = blocks("python")
    assert found
    for page, text in found:
        exec(compile(text, page, "exec"), {})
    assert "DataTree" in capsys.readouterr().out


@pytest.mark.slow
def test_the_comparison_of_ways_to_find_change_runs(finished, tmp_path):
    """docs/change.md and docs/decisions/0004 show its table and its picture."""
    job, out = finished
    truth = gf.load_job(job).evaluate.truth["2018"].parent
    picture = tmp_path / "change.png"
    command = [sys.executable, ROOT / "benchmarks/change.py", out, "--truth", truth, "--picture", picture]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = dict(line.strip("| ").split(" | ", 1) for line in done.stdout.splitlines()[2:])
    assert list(table) == ["joint", "scenes alone", "classes alone", "post-classification"]
    figures = json.loads((out / "summary.json").read_text())["accuracy"]["change"]["all"]
    assert table["joint"].split(" | ")[:3] == [f"{figures[name] or 0:.2f}" for name in ("f1", "precision", "recall")]
    assert picture.stat().st_size > 5000


@pytest.mark.slow
def test_the_comparison_of_composites_runs(tmp_path):
    """docs/imagery.md shows its table and its picture, and what it says of them holds."""
    picture, figures = tmp_path / "composites.png", tmp_path / "composites.json"
    command = [sys.executable, ROOT / "benchmarks/composites.py", "--picture", picture, "--json", figures]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs/imagery.md").read_text(encoding="utf-8")
    assert done.stdout.strip() in page, "docs/imagery.md shows another table"
    rows = json.loads(figures.read_text())["rows"]
    assert len(rows) == 18
    for row in rows:
        assert (row["contaminated"] > 0.05) == (row["name"] == "single scene")
        assert row["name"] == "single scene" or row["contaminated"] <= 0.006
    assert picture.stat().st_size > 20000


def test_every_geoflow_command_is_one():
    """Commands are parsed by the real command line; the quick ones are run by tests/test_run.py."""
    import typer

    from geoflow.cli import app

    commands = [
        shlex.split(line)[1:]
        for _, text in [*blocks(""), *blocks("sh"), *blocks("bash")]
        for line in text.splitlines()
        if line.startswith("geoflow ")
    ]
    assert len(commands) >= 4
    root = typer.main.get_command(app)
    for arguments in commands:
        name, command, rest = root.resolve_command(
            root.make_context("geoflow", [arguments[0]], resilient_parsing=True), arguments
        )
        command.make_context(name, rest)
        for path in (a for a in rest if a.startswith("jobs/")):
            assert (ROOT / path).exists()


def test_every_yaml_block_is_what_it_looks_like():
    """Parts of a job, put into the quickstart; catalogs; cluster files. A policy of Kubernetes is not ours to check."""
    from geoflow.imagery.catalog import Catalog
    from geoflow.jobs.clusterfile import parse_cluster

    found = [(page, yaml.safe_load(text)) for page, text in blocks("yaml")]
    seen = set()
    for page, values in found:
        if values is None or "apiVersion" in values:
            continue
        if "url" in values:
            seen.add("catalog")
            Catalog(**values)
        elif "kind" in values:
            seen.add("cluster")
            parse_cluster(values, page)
        else:
            seen.add("job")
            job = yaml.safe_load((ROOT / "jobs/quickstart.yaml").read_text())
            for section, keys in values.items():
                job[section] = {**job.get(section, {}), **keys}
            job.pop("evaluate")  # the truth of other epochs
            parse_job(job, page)
    assert seen == {"catalog", "cluster", "job"}


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {m for page in PAGES for m in re.findall(r"`?make ([a-z-]+)`?$", page.read_text(), re.MULTILINE)}
    assert named
    assert named <= targets


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_job_that_is_shipped_is_valid(path):
    job = parse_job(yaml.safe_load(path.read_text()))
    assert job.name == path.stem


def test_no_placeholder_is_taken_for_a_tag():
    """``out/<name>`` outside of code is a tag to a browser, which shows ``out/``."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```|`[^`]*`|<https?:[^>]*>", "", page.read_text("utf-8"), flags=re.S | re.M)
        assert set(re.findall(r"<([A-Za-z]\w*)", text)) <= {"code"}, page.name
