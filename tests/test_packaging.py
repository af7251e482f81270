"""What a newcomer gets: dependencies in step, a light command line, files where the README says they are."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent

CONDA_NAMES = {"dask[array]": "dask-core", "torch": "pytorch", "matplotlib": "matplotlib-base"}


def _split(requirement: str) -> tuple[str, str]:
    name, _, bound = requirement.partition(">=")
    return name.strip(), bound.strip()


def test_environment_and_pyproject_are_in_step():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(_split(r) for r in project["dependencies"])
    wanted = {CONDA_NAMES.get(name, name): bound for name, bound in wanted.items()}
    wanted["python"] = project["requires-python"].removeprefix(">=")
    conda = dict(_split(r) for r in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"])
    assert conda == wanted


def test_the_command_line_loads_nothing_heavy():
    heavy = (
        "torch",
        "distributed",
        "dask",
        "xarray",
        "matplotlib",
        "geopandas",
        "rasterio",
        "zarr",
        "pydantic",
        "numba",
        "numpy",
    )
    code = f"import sys, geoflow.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["", "run", "plan", "status", "evaluate", "areas", "accuracy", "sample"])
def test_help_of_every_command(name):
    arguments = [name, "--help"] if name else ["--help"]
    done = subprocess.run([sys.executable, "-m", "geoflow", *arguments], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout


def test_every_public_name_can_be_had():
    import geoflow

    for name in geoflow.__all__:
        assert getattr(geoflow, name) is not None
    assert callable(geoflow.legend)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = geoflow.nonsense


def test_version_is_the_same_everywhere():
    import geoflow

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert geoflow.__version__ == project["version"]
    assert re.search(rf"^## {re.escape(geoflow.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_no_machine_paths_in_what_is_shipped():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = files.stdout.split()
    if not names:
        pytest.skip("not a git checkout: there is no list of shipped files")
    homes = re.compile("|".join(re.escape(p) for p in ("/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/")))
    found = [
        name
        for name in names
        if not name.startswith("tests/")
        and Path(name).suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".csv"}
        and (ROOT / name).exists()
        and homes.search((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert found == []


def test_no_module_has_the_name_of_something_public():
    """Once it is imported, a submodule stands in the package under its own name, and hides what was there."""
    import pkgutil

    import geoflow

    modules = {module.name for module in pkgutil.iter_modules(geoflow.__path__)}
    assert not modules & set(geoflow.__all__)


def test_a_wheel_holds_all_that_geoflow_reads(tmp_path):
    """Who installs it has no repository: catalogs, the sample's job, tables, the viewer and templates come along."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    there = set(zipfile.ZipFile(wheel).namelist())
    data = {p.relative_to(ROOT) for p in (ROOT / "geoflow").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p.as_posix() for p in data if "vendor" not in p.parts} <= there
    assert {f"geoflow/catalogs/{p.name}" for p in (ROOT / "catalogs").glob("*.yaml")} <= there
    assert "geoflow/jobs/quickstart.yaml" in there


def test_nobody_is_told_to_install_geoflow_by_name():
    """The public index holds another project of that name: packages are named, or the repository is."""
    by_name = re.compile(r"""(?<![./\w])geoflow\[\w+\]|pip3? install [^\n`)]*(?<![./\w'-])geoflow(?![\w/.-])""")
    assert by_name.search("pip install 'geoflow[s3]'")
    assert by_name.search("pip install --upgrade geoflow")
    folders = [ROOT / "geoflow", ROOT / "jobs", ROOT / "docs", ROOT / "README.md"]
    files = [f for folder in folders for f in (folder.rglob("*") if folder.is_dir() else [folder])]
    texts = {f: f.read_text() for f in files if f.suffix in {".py", ".md", ".yaml", ".json", ".j2", ".ipynb"}}
    assert {str(f): match[0] for f, text in texts.items() if (match := by_name.search(text))} == {}


def test_errors_name_the_packages_of_an_extra(monkeypatch):
    from importlib import metadata

    from geoflow.extras import how_to_install

    listed = ["numpy>=2", "a-b>=1.2 ; extra == 'x'", "c ; extra == 'x' and python_version > '3'", "d ; extra == 'y'"]
    monkeypatch.setattr(metadata, "requires", lambda name: listed)
    assert how_to_install("x") == "pip install 'a-b>=1.2' c"
    assert how_to_install("none") == "pip install '.[none]' in the repository"
