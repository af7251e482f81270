"""What is taken out of text, and what is left."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from geoflow.errors import CatalogError, JobError
from geoflow.imagery.catalog import load_catalog
from geoflow.imagery.read import ReadError
from geoflow.redact import redact, redact_all, scrub, without_secrets

PLANTED = "pl4nted-Secret"


@pytest.mark.parametrize(
    "text",
    [
        f"HTTP response code on https://a.blob.core.windows.net/c/x.tif?sv=2023&sig={PLANTED}%3D&se=1: 403",
        f"GET https://h/x?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP%2F1&X-Amz-Signature={PLANTED}",
        f"Authorization: Bearer {PLANTED}.abc",
        f"{{'authorization': 'Basic {PLANTED}=='}}",
        f"cannot reach https://me:{PLANTED}@host:8080/x",
        f"AccountName=a;AccountKey={PLANTED}==;EndpointSuffix=core.windows.net",
        f'{{"token": "{PLANTED}", "msft:expiry": "2026"}}',
        f"AWS_SECRET_ACCESS_KEY={PLANTED}",
        f"aws_session_token = {PLANTED}",
        f"from the environment: {PLANTED}!",
    ],
)
def test_secrets_are_taken_out(text, monkeypatch):
    if "environment" in text:
        monkeypatch.setenv("SOME_API_KEY", PLANTED)
    clean = redact(text)
    assert PLANTED not in clean
    assert "AKIA" not in clean
    assert "***" in clean
    assert clean[:4] == text[:4]
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "grid.tile: 1000 is not a multiple of chunk 512; use tile 1024",
        "no token: it must be given",
        "no token from the Planetary Computer at https://planetarycomputer.microsoft.com/api/sas/v1/token: timed out",
        "https://earth-search.aws.element84.com/v1/search?limit=100&datetime=2024-06-01",
        "s3://bucket/key@2x.tif",
        "a basic understanding of bearers",
        "sha256: 3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d5c1835420b6b9942dd4f1b",
    ],
)
def test_everything_else_stays(text):
    assert redact(text) == text


def test_every_error_of_ours_is_without(monkeypatch):
    link = f"https://h/x?sig={PLANTED}"
    for error in (JobError(link), CatalogError(link), ReadError("scene", "B02", link)):
        assert str(error) == "https://h/x?sig=***"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert PLANTED not in repr(error)


def test_what_led_to_an_error_is_without():
    def fail() -> None:
        try:
            raise OSError(2, f"https://h/x?sig={PLANTED}", f"/x?sig={PLANTED}")
        except OSError as inner:
            raise ValueError("outer", {"url": f"https://u:{PLANTED}@h"}) from inner

    with pytest.raises(ValueError, match="outer") as caught, without_secrets():
        fail()
    for error in (caught.value, caught.value.__cause__):
        assert PLANTED not in repr(error) + str(error)

    class Fixed(Exception):  # as GDAL's are in rasterio: its words cannot be altered
        args = property(lambda _: (f"https://h/x?sig={PLANTED}",))

        def __str__(self) -> str:
            return str(self.args[0])

    def fail_in_gdal() -> None:
        raise Fixed from Fixed()

    with pytest.raises(RuntimeError, match=r"Fixed: https://h/x\?sig=\*\*\*") as replaced, without_secrets():
        fail_in_gdal()
    assert PLANTED not in repr(replaced.value.__cause__) + repr(
        replaced.value.__context__ and replaced.value.__context__.__cause__
    )
    loop = ValueError(f"token={PLANTED}")
    loop.__context__ = loop
    scrub(loop)
    assert str(loop) == "token=***"
    assert redact_all({"a": [f"sig={PLANTED}", 1], "b": (None,)}) == {"a": ["sig=***", 1], "b": (None,)}


def test_logs_and_tracebacks_of_a_guarded_process_are_without():
    code = f"""
import logging
from geoflow.redact import guard_process
guard_process(); guard_process()
logging.getLogger("distributed.worker").error("Compute Failed: %r", OSError("https://h/x?sig={PLANTED}"))
try:
    raise OSError("https://u:{PLANTED}@h")
except OSError:
    logging.getLogger("x").exception("it failed with Bearer {PLANTED}")
raise KeyError("token={PLANTED}") from OSError("sig={PLANTED}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if not line.lstrip().startswith(("raise ", "File "))]
    assert done.returncode == 1
    assert "Compute Failed" in done.stderr
    assert "KeyError" in done.stderr
    assert PLANTED not in "\n".join(told)


def test_a_job_cannot_spell_out_a_secret(tiny_job, monkeypatch):
    from geoflow.jobs.jobfile import load_job

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    job = tiny_job(publish={"title": "${AWS_SECRET_ACCESS_KEY}", "attribution": "x"})
    with pytest.raises(JobError, match=r"uses .*AWS_SECRET_ACCESS_KEY.*, which looks like a secret") as error:
        load_job(job)
    assert PLANTED not in str(error.value)


@pytest.mark.parametrize("url", [f"https://me:{PLANTED}@h/stac", f"https://h/items.parquet?sv=1&sig={PLANTED}"])
def test_a_catalog_has_no_secret_in_its_address(url):
    with pytest.raises(CatalogError, match="must not hold a") as error:
        load_catalog("earth-search", url)
    assert PLANTED not in str(error.value)


@pytest.mark.parametrize(
    "source",
    ["/vsicurl/https://h/x.gpkg", "/vsizip//data/x.zip/y.shp", "vrt:///etc/x", "PG:host=h", "HDF5:x.h5:/y", "WFS:h"],
)
def test_a_job_names_files_and_no_connections(source, tiny_job):
    from geoflow.jobs.jobfile import load_job

    job = tiny_job(labels={"source": source, "epoch": "2018"})
    with pytest.raises(JobError, match=r"labels.source: .* is not a file, but a connection string of GDAL"):
        load_job(job)
