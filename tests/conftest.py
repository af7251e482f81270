"""Shared parts of the tests: a tiny sample country, made once a session, and a job over it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import filelock
import hypothesis
import pytest
import yaml

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for what it runs in the background
    # Programs that tests start would inherit it, and Ctrl-C would pass them by.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What an example takes says more of the machine's other work than of the code.
hypothesis.settings.register_profile("geoflow", deadline=None)
hypothesis.settings.load_profile("geoflow")

# No test may reach out: a wanted download must be an error, not a wait.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # two nets at once on all cores each take three times as long as one by one
    os.environ.setdefault("OMP_NUM_THREADS", "1")


Once = Callable[[str, Callable[[Path], None]], Path]

# Files of tests are dealt out in this order: what makes the finished run first, and what only reads it at the end, so
# that one process makes the run while the other has work that needs none.
MAKES_THE_RUN = "test_run.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files for ``--dist loadfile --no-loadscope-reorder``; the tests of a file keep their order."""
    reading = {item.path for item in items if "finished" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path.name != MAKES_THE_RUN and 1 + (item.path in reading))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Gives the folder of a name, made by the first process of pytest-xdist that asks; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        path, made = shared / name, shared / f"{name}.made"
        with filelock.FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(path, ignore_errors=True)  # of a process that failed
                path.mkdir()
                make(path)
                made.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_country(once: Once) -> Path:
    """A sample country of 640 x 512 px with a dozen patches; no test may change it."""
    from geoflow.sample import make_sample

    return once("sample", lambda folder: make_sample(folder / "country", size="640x512", patches=12)) / "country"


@pytest.fixture(scope="session")
def rustac_serve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[str]]:
    """A STAC API on loopback that is not ours; it pages and knows area and dates, but no filter."""
    program = Path(sys.executable).with_name("rustac")

    @contextmanager
    def serve(items: list[dict[str, Any]]) -> Iterator[str]:
        if not program.exists():
            pytest.skip("rustac is not installed: no STAC API to ask")
        file = tmp_path_factory.mktemp("api") / "items.json"
        file.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [program, "serve", file, "--create-collections", "--use-duckdb", "false", "--addr", address]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                _wait_for(address, server)
                yield f"http://{address}"
            finally:
                server.terminate()

    return serve


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"rustac serve did not start at {address}")


@pytest.fixture(scope="session")
def tiny_job(tiny_country: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the whole job over the tiny country, with a net that trains in seconds; sections can be dropped."""
    folder = tmp_path_factory.mktemp("jobs")

    def write(*without: str, name: str = "tiny", **changes: Any) -> Path:
        job = {**_whole_job(tiny_country), "name": name, **changes}
        path = folder / f"{name}-{len(list(folder.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in job.items() if k not in without}))
        return path

    return write


@pytest.fixture(scope="session")
def finished(once: Once, tiny_country: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(job file, output folder) of a whole run on worker processes; no test may change it.

    The run is made once. Each process of the tests has a copy, since a run, even one that does nothing, locks its
    output.
    """

    def make(folder: Path) -> None:
        job = folder / "quickstart.yaml"
        job.write_text(yaml.safe_dump({**_whole_job(tiny_country), "name": "quickstart"}))
        command = [sys.executable, "-m", "geoflow", "run", str(job), "--out", str(folder / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "complete" in done.stdout
        assert "dashboard http://127.0.0.1" in done.stdout

    made = once("finished", make)
    out = tmp_path_factory.mktemp("run") / "out" / "quickstart"
    shutil.copytree(made / "out", out)
    return made / "quickstart.yaml", out


@pytest.fixture(scope="session")
def exported(once: Once, finished: tuple[Path, Path]) -> Path:
    """A copy of the output of a finished run with two exports in its folder ``export``; no test may change it.

    The first has layers of every kind that belong to 2018, of levels 1 and 3; the second the level 3 of 2024.
    """

    from typer.testing import CliRunner

    from geoflow.cli import app

    def make(folder: Path) -> None:
        out = folder / "out"
        shutil.copytree(finished[1], out, ignore=shutil.ignore_patterns("patches.zarr", "classifier", "logs"))
        kinds = "map,confidence,labels,generalised,change,imagery"
        for arguments in (
            ["--layers", kinds, "--level", "1,3", "--epoch", "2018"],
            ["--layers", "map", "--level", "3"],
        ):
            done = CliRunner().invoke(app, ["export", str(out), *arguments])
            assert done.exit_code == 0, done.output
            assert "map-2024/map-2024-level3.tif" in done.output or "--epoch" in arguments
            assert f"Export in {out / 'export'}" in done.output

    return once("exported", make) / "out"


def _whole_job(country: Path) -> dict[str, Any]:
    return {
        "seed": 3,
        "area": {"file": str(country / "border.gpkg")},
        "grid": {"crs": "EPSG:3035", "resolution_m": 10, "tile": 256, "chunk": 128},
        "imagery": {
            "catalog": "sample",
            "url": str(country / "stac/catalog.json"),
            "bands": ["B02", "B03", "B04", "B08"],
            "epochs": {
                "2018": {"spring": "2018-04-01/2018-06-15", "summer": "2018-06-16/2018-09-30"},
                "2024": {"spring": "2024-04-01/2024-06-15", "summer": "2024-06-16/2024-09-30"},
            },
            "max_cloud_percent": 60,
        },
        "labels": {"name": "clc2018", "source": str(country / "corine/clc2018.gpkg"), "epoch": "2018"},
        "classifier": {
            "source": str(country / "bigearthnet"),
            "options": {"encoder": "resnet18", "head_epochs": 0, "epochs": 1, "batch": 6},
        },
        "train": {
            "held_out_block_px": 128,
            "held_out_share": 0.25,
            "options": {
                "context_steps": 20,
                "decoder_steps": 0,
                "steps": 8,
                "batch": 4,
                "window_px": 64,
                "decoder_channels": [32, 16, 16, 8, 8],
            },
        },
        "predict": {},
        "generalise": {"1ha": {"mmu_ha": 1, "smooth_px": 3}},
        "change": {"from": "2018", "to": "2024", "min_confidence": 0, "mmu_ha": 0.1},
        "evaluate": {"truth": {epoch: str(country / f"truth/landcover_{epoch}.tif") for epoch in ("2018", "2024")}},
        "publish": {
            "title": "A tiny country",
            "attribution": "Synthetic",
            "publisher": "Survey of Tinyland",
            "publisher_url": "https://survey.example",
            "licence": "cc-by-4.0",
            "zones": str(country / "counties.gpkg"),
            "zone_column": "name",
        },
    }
