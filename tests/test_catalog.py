"""Catalog files: what is accepted, what is refused and how, and whether they fit what the providers answer."""

import json
import os
import re
from pathlib import Path

import pytest

from geoflow.errors import CatalogError
from geoflow.imagery import decide_offset, load_catalog, packaged_catalogs
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.items import baseline_of, epsg_of, freeze
from geoflow.imagery.links import carries_token, resolve_href
from geoflow.inputs import BANDS

VALID = {
    "name": "mine",
    "kind": "static",
    "url": "stac/catalog.json",
    "assets": {"B02": "blue", "B04": "red"},
    "scl": "scl",
    "offset": "baseline",
    "licence": "CC-BY-4.0",
    "attribution": "me",
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(json.dumps({k: v for k, v in {**VALID, **changes}.items() if v != "REMOVED"}))
    return path


@pytest.fixture(scope="session")
def real_items() -> Path:
    folder = os.environ.get("GEOFLOW_REAL_DATA")
    if not folder:
        pytest.skip("GEOFLOW_REAL_DATA is not set: no recorded answers of the providers")
    return Path(folder) / "stac-items"


def test_packaged_catalogs_are_complete() -> None:
    assert set(packaged_catalogs()) >= {"sample", "earth-search", "planetary-computer", "cdse"}
    for name in packaged_catalogs():
        catalog = load_catalog(name)
        assert catalog.name == name
        assert catalog.bands == BANDS
        assert catalog.licence
        assert catalog.attribution


def test_a_users_file_is_read_and_its_url_is_relative_to_it(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path))
    assert catalog.url == str(tmp_path / "stac" / "catalog.json")
    assert catalog.root == str(tmp_path / "stac")
    assert catalog.bands == ("B02", "B04")


def test_url_override_turns_an_api_into_a_static_catalog(tmp_path: Path) -> None:
    (tmp_path / "catalog.json").write_text("{}")
    here = load_catalog("earth-search", str(tmp_path / "catalog.json"))
    assert (here.kind, here.root) == ("static", str(tmp_path))
    assert load_catalog("earth-search", "http://127.0.0.1:1/stac/catalog.json").kind == "static"
    assert load_catalog("earth-search", "http://127.0.0.1:1/v1").kind == "api"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colection": "x"}, ("colection", "accepted are", "collection")),
        ({"scl": "REMOVED"}, ("scl", "missing")),
        ({"kind": "ftp"}, ("kind", "'ftp'", "static")),
        ({"offset": "sometimes"}, ("offset", "'sometimes'", "earth-search")),
        ({"assets": {"B10": "cirrus"}}, ("assets", "B10", "B12")),
        ({"assets": {}}, ("assets",)),
    ],
)
def test_a_bad_file_is_refused_with_key_value_and_what_is_accepted(
    tmp_path: Path, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, **changes))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["just words", "[1, 2]", "a: [", ""])
def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(CatalogError, match=r"bad\.yaml"):
        load_catalog(tmp_path / "bad.yaml")


def test_unknown_names_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"'earth-serch'.*earth-search"):
        load_catalog("earth-serch")
    with pytest.raises(CatalogError, match=r"nothing\.yaml"):
        load_catalog(tmp_path / "nothing.yaml")
    with pytest.raises(CatalogError, match=r"nowhere/catalog\.json"):
        load_catalog("sample", str(tmp_path / "nowhere" / "catalog.json"))
    with pytest.raises(CatalogError, match="ftp://"):
        load_catalog("sample", "ftp://somewhere/catalog.json")


def test_missing_bands_are_named_with_those_that_exist(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path))
    catalog.check_bands(["B04"])
    with pytest.raises(CatalogError, match=r"B08.*it has B02, B04"):
        catalog.check_bands(["B04", "B08"])


def items_of(folder: Path, name: str) -> list[dict]:
    found = []
    for path in sorted((folder / name).rglob("*")):
        if path.is_dir() or "request" in path.name:
            continue
        document = json.loads(path.read_text())
        found += document["features"] if document.get("type") == "FeatureCollection" else []
        found += [document] if document.get("type") == "Feature" else []
    return found


@pytest.mark.parametrize(
    ("name", "folder", "count"),
    [
        ("earth-search", "earth-search-v1", 16),
        ("planetary-computer", "planetary-computer", 1),
        ("cdse", "cdse", 5),
    ],
)
def test_packaged_bands_exist_in_real_items(real_items: Path, name: str, folder: str, count: int) -> None:
    catalog = load_catalog(name)
    items = items_of(real_items, folder)
    assert len(items) == count
    for item in items:
        frozen = freeze(item, catalog, str(catalog.url))
        assert set(frozen["assets"]) == {*catalog.assets.values(), catalog.scl}
        assert 32601 <= frozen["properties"]["proj:epsg"] <= 32760
        assert baseline_of(frozen) is not None
        for band in catalog.bands:
            asset = item["assets"][catalog.asset_key(band)]
            assert asset["gsd"] == {"B01": 60, "B09": 60, "B02": 10, "B03": 10, "B04": 10, "B08": 10}.get(band, 20)


def expected_offset(item: dict, provider: str) -> int:
    """What the facts say: nothing before 04.00; Earth Search when its flag says applied; the others never apply it."""
    properties = item["properties"]
    baseline = float(properties.get("s2:processing_baseline") or properties["processing:version"])
    if baseline < 4:
        return 0
    if provider == "earth-search":
        return 0 if properties["earthsearch:boa_offset_applied"] else -1000
    return -1000


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("earth-search", "earth-search-v1"),
        ("earth-search", "earth-search-v1-mapchete"),
        ("planetary-computer", "planetary-computer"),
        ("cdse", "cdse"),
    ],
)
def test_offset_by_rule_of_real_items(real_items: Path, name: str, folder: str) -> None:
    catalog = load_catalog(name)
    items = [i for i in items_of(real_items, folder) if i["collection"] == "sentinel-2-l2a"]
    assert items
    for item in items:
        decision = decide_offset(freeze(item, catalog, str(catalog.url)), catalog, read_pixels=False)
        assert decision.add == expected_offset(item, name), item["id"]


def test_both_spellings_of_the_crs_are_understood() -> None:
    assert epsg_of({"proj:epsg": 32633}) == 32633
    assert epsg_of({"proj:code": "EPSG:32633"}) == 32633
    assert epsg_of({"proj:epsg": None, "proj:code": "EPSG:3035"}) == 3035
    assert epsg_of({"proj:code": "IAU_2015:30100"}) is None


def test_catalogs_are_frozen() -> None:
    catalog = load_catalog("sample")
    with pytest.raises(ValueError, match="frozen"):
        catalog.name = "other"
    assert Catalog.model_validate_json(catalog.model_dump_json()) == catalog


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "ftp://host/catalog.json"}, ("url", "http, https, s3 or a local path")),
        ({"url": "gs://bucket/catalog.json"}, ("url", "http, https, s3 or a local path")),
        ({"url": "https://me:hush@host/v1"}, ("url", "user and password")),
        ({"gdal": {"AWS_SECRET_ACCESS_KEY": "hush"}}, ("gdal", "AWS_SECRET_ACCESS_KEY", "environment")),
        ({"gdal": {"GDAL_HTTP_USERPWD": "me:hush"}}, ("gdal", "GDAL_HTTP_USERPWD", "environment")),
        ({"gdal": {"GDAL_HTTP_HEADERS": "Authorization: hush"}}, ("gdal", "GDAL_HTTP_HEADERS", "environment")),
        ({"gdal": {"GDAL_DRIVER_PATH": "/tmp"}}, ("gdal", "GDAL_DRIVER_PATH", "GDAL_HTTP_")),
        ({"gdal": {"GDAL_VRT_ENABLE_PYTHON": True}}, ("gdal", "GDAL_VRT_ENABLE_PYTHON")),
        ({"filters": {"clouds": "eo:cloud_cover"}}, ("filters", "clouds")),
        ({"licence": ""}, ("licence",)),
    ],
)
def test_a_catalog_file_holds_no_secrets_and_no_code(
    tmp_path: Path, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, **changes))
    for word in words:
        assert word in str(caught.value)
    assert "hush" not in str(caught.value)


def test_options_of_gdal_may_be_written_as_yaml_reads_them(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, gdal={"AWS_HTTPS": True, "GDAL_HTTP_MAX_RETRY": 5, "AWS_REGION": "eu"}))
    assert catalog.gdal == {"AWS_HTTPS": "YES", "GDAL_HTTP_MAX_RETRY": "5", "AWS_REGION": "eu"}


def test_the_catalog_in_the_docs_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/how-to/scenes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "our.yaml").write_text(block)
    catalog = load_catalog(tmp_path / "our.yaml")
    assert catalog.url == str(tmp_path / "scenes.parquet")
    assert catalog.bands == ("B02", "B03", "B04", "B08")


@pytest.mark.parametrize(
    ("url", "href", "wanted"),
    [
        ("https://h/c.json", "https://other/x.tif", "https://other/x.tif"),
        ("https://h/c.json", "HTTPS://other/x.tif", "https://other/x.tif"),
        ("https://h/c.json", "S3://bucket/a/b.jp2", "s3://bucket/a/b.jp2"),
        ("https://h/a/c.json", "../x.tif", "https://h/x.tif"),
        ("http://h/a/c.json", "http://h/x.tif", "http://h/x.tif"),
        ("/data/c.json", "sub/x.tif", "/data/sub/x.tif"),
        ("/data/c.json", "file:///data/sub/x%20y.tif", "/data/sub/x y.tif"),
        ("/data/c.json", "http://127.0.0.1:80/x.tif", "http://127.0.0.1:80/x.tif"),
    ],
)
def test_links_that_may_be_opened(url, href, wanted):
    catalog = load_catalog("earth-search").model_copy(update={"url": url})
    assert resolve_href(href, url, catalog) == wanted


@pytest.mark.parametrize("url", ["https://h/c.json", "/data/c.json"])
@pytest.mark.parametrize(
    "href",
    [
        "http://other/x.tif", "http://169.254.169.254/latest/meta-data", "ftp://h/x", "gs://b/x", "zip+https://h/x.zip!y",
        "vrt://https://h/x.tif", "HDF5:/data/x.h5://y", "NETCDF:x.nc:y", "/vsicurl/https://h/x", "/vsizip//etc/x.zip",
        "vsis3/b/x", "file:///etc/passwd", "/etc/passwd", "../x.tif", "sub/../../x.tif", "https://me:pw@h/x", "https:///x",
        "https://h:port/x", "https://h/x y.tif", "https://h/x\n.tif", "https://h/<VRT/>", "s3://bucket", "s3://b/x?y=1",
        "http://[::1", "https://h/" + "x" * 5000, "<VRTDataset rasterXSize='1'/>", "PG:host=h", "data:text/plain,x",
    ],
)  # fmt: skip
def test_links_that_may_not(url, href):
    catalog = load_catalog("earth-search").model_copy(update={"url": url})
    if url.startswith("https") and href in ("../x.tif", "sub/../../x.tif", "vsis3/b/x"):
        assert resolve_href(href, url, catalog).startswith("https://h/"), "relative to an address, they are addresses"
        return
    if url.startswith("/") and href == "vsis3/b/x":
        assert resolve_href(href, url, catalog) == "/data/vsis3/b/x"
        return
    if url.startswith("/") and href.startswith("<"):
        assert resolve_href(href, url, catalog) == f"/data/{href}", "the name of a file in the folder, if there is one"
        return
    with pytest.raises(CatalogError, match="is not allowed"):
        resolve_href(href, url, catalog)


def test_http_where_the_catalog_says_so_and_tokens_nowhere():
    catalog = load_catalog("earth-search").model_copy(update={"allow_http": True})
    assert resolve_href("http://other/x.tif", str(catalog.url), catalog) == "http://other/x.tif"
    assert carries_token("https://h/x?sv=1&sig=abc")
    assert carries_token("https://h/x?X-Amz-Signature=abc")
    assert not carries_token("https://h/x?design=abc")


@pytest.mark.parametrize("option", ["CPL_CURL_VERBOSE", "CPL_DEBUG", "GDAL_HTTP_HEADERS", "AWS_SECRET_ACCESS_KEY"])
def test_a_catalog_cannot_have_headers_printed_or_secrets_set(tmp_path, option):
    import yaml

    facts = yaml.safe_load((Path(__file__).parent.parent / "catalogs/cdse.yaml").read_text())
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**facts, "gdal": {option: "YES"}}))
    with pytest.raises(CatalogError, match=option):
        load_catalog(tmp_path / "c.yaml")
