"""Five kinds of planted secrets, in use in a run that fails in reading: no hit in anything written or printed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from faulty_server import Faults, serve_tokens, serve_with_faults

import geoflow as gf
from geoflow.jobs.flow import Flow

LEFT_OUT = ("labels", "classifier", "train", "predict", "generalise", "change", "evaluate", "publish")
ROOT = Path(__file__).parent.parent
BLOBS = "http://sentinel2l2a77.blob.core.windows.net/s2"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED000000001",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/secret/key",
    "AWS_SESSION_TOKEN": "planted-session-token",
    "GDAL_HTTP_HEADERS": "Authorization: Bearer planted-bearer-token-123",
    "HTTPS_PROXY": "http://me:planted-url-password@127.0.0.1:9",
}
NEEDLES = (
    "sig=token", "signed-in-the-item", "AKIAPLANTED000000001", "planted/aws/secret/key", "planted-session-token",
    "planted-bearer-token-123", "planted-url-password", "planted%2Faws", "AWS4-HMAC-SHA256 Credential=AKIA",
)  # fmt: skip


def hits(what: str, content: bytes) -> list[str]:
    return [f"{needle} in {what}" for needle in NEEDLES if needle.encode() in content]


def blob_country(country: Path, folder: Path, green_on_s3: bool) -> Path:
    """The catalog of the tiny country with links to Azure's hosts, one of them signed; one band on S3 perhaps."""
    shutil.copytree(country / "stac", folder / "stac")
    files = sorted((folder / "stac").rglob("*.json"))
    scenes = [path for path in files if json.loads(path.read_text()).get("type") == "Feature"]
    for number, path in enumerate(scenes):
        item = json.loads(path.read_text())
        for key, asset in item["assets"].items():
            inside = os.path.relpath(os.path.normpath(path.parent / asset["href"]), folder)
            asset["href"] = f"{BLOBS}/{inside}" + ("?sv=1&sig=signed-in-the-item" if number == 0 else "")
            if green_on_s3 and key == "green":
                asset["href"] = f"s3://eodata/{inside}"
        path.write_text(json.dumps(item))
    return folder / "stac/catalog.json"


def write_job(tiny_job: Callable[..., Path], folder: Path, catalog: Path, proxy: str) -> Path:
    facts = yaml.safe_load((ROOT / "catalogs/sample.yaml").read_text())
    facts |= {"signing": "planetary-computer", "allow_http": True, "gdal": {"GDAL_HTTP_PROXY": proxy}}
    (folder / "blobs.yaml").write_text(yaml.safe_dump(facts))
    path = tiny_job(*LEFT_OUT)
    job = yaml.safe_load(path.read_text())
    job["imagery"] |= {"catalog": str(folder / "blobs.yaml"), "url": str(catalog), "attempts": 2, "timeout_s": 3}
    job["imagery"]["epochs"] = {"2018": {"summer": "2018-06-16/2018-09-30"}}
    path.write_text(yaml.safe_dump(job))
    return path


def geoflow(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "geoflow", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}, check=False)


@pytest.mark.slow
def test_no_secret_is_written_or_printed(tiny_country, tiny_job, tmp_path, monkeypatch):
    catalog, faults, keys = blob_country(tiny_country, tmp_path, green_on_s3=False), Faults(), Faults()
    out = tmp_path / "out"
    with serve_tokens(tiny_country, faults, uses=10**6) as (proxy, tokens), serve_with_faults(tmp_path, keys) as s3:
        s3_options = {"AWS_S3_ENDPOINT": s3.removeprefix("http://"), "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}
        environment = {
            **SECRETS,
            **s3_options,
            "PC_SDK_SAS_URL": tokens,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        job = write_job(tiny_job, tmp_path, catalog, proxy)

        # Reading fails: on the one hand of signed links, on the other of links to S3.
        faults.plan("*/B03.tif", 403, float("inf"))
        failed = geoflow("run", job, "--out", out, "--limit", 1, **environment)
        assert failed.returncode == 1, failed.stdout.decode() + failed.stderr.decode()
        assert any("sig=token" in query for _, query in faults.requests), "the token was in use"
        assert b"B03" in failed.stdout + failed.stderr
        assert "403" in json.loads((out / "summary.json").read_text())["failed"][0]["error"]

        keys.plan("/eodata/*", 403, float("inf"))
        other = write_job(tiny_job, tmp_path, blob_country(tiny_country, tmp_path / "s3", green_on_s3=True), proxy)
        on_s3 = geoflow("run", other, "--out", tmp_path / "out-s3", "--limit", 1, "--cluster", "threads", **environment)
        assert on_s3.returncode != 0
        assert any("/eodata/" in path for path, _ in keys.requests), "the keys were in use"

        wrong = geoflow("plan", job, "--set", "imagery.url=https://me:planted-url-password@h/stac", **environment)
        assert wrong.returncode == 2
        assert b"must not hold a user and password" in wrong.stderr

        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        flow = Flow(gf.load_job(job), out, None, False)
        (stage, *_) = flow.stages()
        graph = pickle.dumps(stage.tasks())

    found = hits("the graph", graph)
    for name, done in {"run": failed, "s3": on_s3, "url": wrong}.items():
        found += hits(f"what {name} printed", done.stdout + done.stderr)
    written = [path for folder in (out, tmp_path / "out-s3") for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "summary.json" for path in written)
    for path in written:
        found += hits(str(path.relative_to(tmp_path)), path.read_bytes())
    assert not found


def test_a_signed_link_is_refused_where_nobody_would_sign_it_again(tiny_country, tiny_job, tmp_path):
    catalog = blob_country(tiny_country, tmp_path, green_on_s3=False)
    facts = yaml.safe_load((ROOT / "catalogs/sample.yaml").read_text())
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**facts, "allow_http": True}))
    found = gf.search(
        gf.load_catalog(tmp_path / "c.yaml", str(catalog)), gf_area(tiny_country), "2018-01-01", "2024-12-31", 100
    )
    (refusal,) = [r for r in found.refused if "carries a token" in r.reason]
    assert "signed-in-the-item" not in refusal.reason
    assert "signed-in-the-item" not in json.dumps(found.items)


def gf_area(country: Path):
    import geopandas
    from odc.geo.geom import Geometry

    border = geopandas.read_file(country / "border.gpkg")
    return Geometry(border.union_all(), border.crs)
