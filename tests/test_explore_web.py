"""Countries that lie on a plain web server or in a bucket: real servers on loopback."""

from __future__ import annotations

import json
import shutil
import socket

import numpy as np
import pytest
import xarray as xr
from explore_country import TRANSFORM, make_country
from static_server import serve_files

import geoflow as gf
from geoflow.errors import StoreError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    make_country(folder / "run")
    return folder


def test_a_country_is_opened_over_http_by_its_run_or_its_store(runs):
    local = gf.open(runs / "run")
    with serve_files(runs) as server:
        for address in ("run", "run/", "run/country.zarr", "run/country.zarr/"):
            tree = gf.open(f"{server.url}/{address}")
            assert tree.groups == local.groups
        assert np.array_equal(tree["map/2018/level3"], local["map/2018/level3"])
        assert tree["map/2018/level3"].rio.crs == "EPSG:3035"
        assert server.url in repr(tree.gf)


def test_a_point_asks_for_the_chunks_that_hold_it_and_no_others(runs):
    with serve_files(runs) as server:
        tree = gf.open(f"{server.url}/run")
        x, y = TRANSFORM * (40.5, 20.5)
        tree.gf.at(x, y, crs="EPSG:3035")
        server.paths.clear()
        found = tree.gf.at(x, y, crs="EPSG:3035")
        assert found == gf.open(runs / "run").gf.at(x, y, crs="EPSG:3035")
        chunks = [path for path in server.paths if "/c/" in path]
        assert len(chunks) == 2 * 7 + 4 + 4  # two maps, labels, change
        assert {path.rpartition("/c/")[2] for path in chunks} == {"1/2"}
        assert server.paths == chunks


def test_opening_asks_for_no_array_however_many_groups_there_are(finished):
    """Labels of rows and columns are known from the grid; those of bands, classes and periods are read."""
    _, out = finished
    with serve_files(out) as server:
        tree = gf.open(server.url)
        local = xr.open_datatree(out / "country.zarr", engine="zarr", chunks={}, decode_coords="all")
        read = [path for path in server.paths if "/c/" in path]
        assert {path.rpartition("/c/")[0].rpartition("/")[2] for path in read} <= {"band", "class", "period"}
        assert len(server.paths) - len(read) <= 2
    assert tree.groups == local.groups
    for node in local.subtree:
        assert tree[node.path].to_dataset().coords.to_dataset().identical(node.to_dataset().coords.to_dataset())


def test_provenance_reads_the_run_over_http_and_says_what_is_not_handed_out(finished):
    _, out = finished
    local = gf.open(out)
    box = local["map/2018/level3"].odc.geobox
    x, y = box.transform * (300.5, 250.5)
    with serve_files(out) as server:
        assert gf.open(server.url).gf.provenance(x, y, "EPSG:3035") == local.gf.provenance(x, y, "EPSG:3035")
    with serve_files(out, refuse="/scenes/") as server:
        found = gf.open(server.url).gf.provenance(x, y, "EPSG:3035")
        assert "scenes/2018.json is not beside the store" in found.missing
        assert found.job == "quickstart"
    with serve_files(out / "country.zarr") as server:
        found = gf.open(server.url).gf.provenance(x, y, "EPSG:3035")
        assert "summary.json is not beside the store" in found.missing
        assert found.models[0].card == {}


def test_what_is_no_country_on_the_web_is_said(runs, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page/zarr.json").write_text("<html>not found, says a page with status 200</html>")
    shutil.copytree(runs / "run", tmp_path / "bare")
    root = tmp_path / "bare/country.zarr/zarr.json"
    described = json.loads(root.read_text())
    root.write_text(json.dumps({k: v for k, v in described.items() if k != "consolidated_metadata"}))
    (tmp_path / "foreign").mkdir()
    foreign = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    (tmp_path / "foreign/zarr.json").write_text(json.dumps(foreign))
    newer = {**described["attributes"], "geoflow": {**described["attributes"]["geoflow"], "format": 99}}
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer/zarr.json").write_text(json.dumps({**described, "attributes": newer}))
    said = {
        "nothing": "holds no store of geoflow's",
        "page": "no metadata of Zarr v3",
        "bare": "no consolidated metadata",
        "foreign": "not one that geoflow made",
        "newer": "update geoflow",
        "bare?token=1": "query",
    }
    with serve_files(tmp_path) as server:
        for name, words in said.items():
            with pytest.raises(StoreError, match=words) as caught:
                gf.open(f"{server.url}/{name}")
            assert "token" not in str(caught.value)
    with serve_files(tmp_path, refuse="zarr.json") as server, pytest.raises(StoreError, match="answers 403"):
        gf.open(f"{server.url}/bare")


def test_a_server_that_is_not_there_is_said_and_secrets_are_not():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StoreError, match="cannot be reached"):
        gf.open(f"http://127.0.0.1:{port}/run")
    with pytest.raises(StoreError, match="credentials") as caught:
        gf.open(f"http://me:hunter2@127.0.0.1:{port}/run")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StoreError, match="must start with"):
        gf.open("ftp://example.org/run")
