"""The site of docs/: built strictly, complete, and loading nothing from other machines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import geoflow

ROOT = Path(__file__).parent.parent
LOADED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds: a dead link, or a page that is not on the map of docs/README.md, is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    command += ["--config-file", ROOT / "docs/site/mkdocs.yml", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """What a page has a browser load, not what it leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and values.get("rel") != "canonical":
            self.found.append(values.get(LOADED[tag]) or "")
        self.found += re.findall(r"url\(['\"]?([^'\")]+)", values.get("style") or "")


def test_nothing_is_loaded_from_other_machines(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    foreign, missing = [], []
    for page in pages:
        loads = Loads()
        text = page.read_text(encoding="utf-8")
        loads.feed(text)
        foreign += [
            (page.name, code) for code in re.findall(r"import\s*\(?['\"]https?://[^'\"]+|//cdn[a-z]*\.[^'\" ]+", text)
        ]
        for target in loads.found:
            if re.match(r"(https?:)?//", target):
                foreign.append((page.name, target))
            elif not target.startswith(("data:", "/")) and target and not (page.parent / target.split("?")[0]).exists():
                missing.append((page.name, target))  # 404.html alone is written for the server's root
    for style in site.rglob("*.css"):
        imports = re.findall(r"(?:@import|url\()\s*['\"]?((?:https?:)?//[^'\")]+)", style.read_text(encoding="utf-8"))
        foreign += [(style.name, target) for target in imports]
    assert foreign == []
    assert missing == []


def test_every_public_name_is_in_the_reference(site):
    listed = re.findall(r"^- `gf\.(\w+)`:", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(set(geoflow.__all__) - {"__version__"})
    page = (site / "api.html").read_text(encoding="utf-8")
    assert [name for name in listed if f'id="geoflow.{name}"' not in page] == []
    assert "CountryQuestions.at" in page


def test_files_outside_of_docs_can_be_read_in_the_site(site):
    shown = (site / "repository/jobs/clusters/slurm.yaml.html").read_text(encoding="utf-8")
    assert "walltime" in shown
    guide = (site / "how-to/clusters.html").read_text(encoding="utf-8")
    assert 'href="../repository/jobs/clusters.html"' in guide


def test_pages_are_found_by_words(site):
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"].split("#")[0] for entry in index["docs"] if "walltime" in entry["text"]}
    assert "how-to/clusters.html" in places
