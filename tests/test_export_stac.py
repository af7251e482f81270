"""The STAC catalog of an export: valid, self-contained, true."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pystac
import pytest
from jsonschema import Draft7Validator
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource

import geoflow as gf

# A folder with the schemas of the extensions: they are not ours to ship. docs/how-to/export.md says how to get them.
SCHEMAS = os.environ.get("GEOFLOW_STAC_SCHEMAS")
CORE = "https://schemas.stacspec.org/v1.1.0/{0}-spec/json-schema/{0}.json"


@pytest.fixture(scope="module")
def run(finished: tuple[Path, Path], exported: Path) -> Path:
    """See `exported`; what makes it is named, so that all tests of one finished run are one process's."""
    return exported


def documents(run: Path) -> Iterator[dict[str, Any]]:
    yield json.loads((run / "export/collection.json").read_text())
    for path in sorted((run / "export").glob("*/*.json")):
        if path.parent.name != "scenes":
            yield json.loads(path.read_text())


def errors(document: dict[str, Any], schema: str, known: dict[str, dict[str, Any]]) -> list[str]:
    registry = Registry().with_resources([(uri, Resource.from_contents(s)) for uri, s in known.items()])
    found = Draft7Validator(known[schema], registry=registry).iter_errors(document)
    return [f"{document['id']}: {list(error.path)}: {error.message[:300]}" for error in found]


def test_it_is_valid_stac(run: Path) -> None:
    known = get_local_schema_cache()
    ids = []
    for document in documents(run):
        kind = "collection" if document["type"] == "Collection" else "item"
        assert errors(document, CORE.format(kind), known) == []
        ids.append(document["id"])
    assert {"quickstart", "map-2018", "map-2024", "change-2018-2024", "labels-clc2018", "imagery-2018"} <= set(ids)
    assert any(one.startswith("geoflow-") for one in ids), "the model has an Item of its own"


def test_it_is_valid_by_the_schemas_of_its_extensions(run: Path) -> None:
    if SCHEMAS is None:
        pytest.skip("GEOFLOW_STAC_SCHEMAS names no folder with the schemas of STAC's extensions")
    known = dict(get_local_schema_cache())
    for path in Path(SCHEMAS).glob("*.json"):
        schema = json.loads(path.read_text())
        known[schema["$id"].rstrip("#")] = schema
    checked = set()
    for document in documents(run):
        for schema in document["stac_extensions"]:
            assert errors(document, schema, known) == [], schema
            checked.add(schema.split("/")[3])
    assert checked == {
        "classification",
        "eo",
        "file",
        "mlm",
        "processing",
        "projection",
        "raster",
        "render",
        "scientific",
    }


def test_the_collection_says_who_publishes_it_and_under_what_licence(run: Path) -> None:
    collection = pystac.Collection.from_file(str(run / "export/collection.json"))
    assert collection.license == "CC-BY-4.0"
    assert collection.get_single_link("license").href == "https://spdx.org/licenses/CC-BY-4.0.html"
    first, second = collection.providers
    assert (first.name, first.url) == ("Survey of Tinyland", "https://survey.example")
    assert first.roles == ["producer", "licensor"]
    assert (second.name, second.roles) == ("geoflow", ["processor"])


def test_pystac_walks_it_and_every_file_is_as_it_says(run: Path) -> None:
    collection = pystac.Collection.from_file(str(run / "export/collection.json"))
    items = {item.id: item for item in collection.get_items(recursive=True)}
    assert len(items) == 7
    for item in items.values():
        assert item.get_collection() is collection
        for key, asset in item.assets.items():
            place = Path(asset.get_absolute_href() or "")
            assert place.exists(), f"{item.id} {key}: {asset.href}"
            if "file:checksum" in asset.extra_fields:
                content = place.read_bytes()
                assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
                assert asset.extra_fields["file:size"] == len(content)
            else:
                assert "export" not in place.relative_to(run).parts, "what is not of the run itself has a checksum"
    zarr = Path(items["map-2018"].assets["zarr"].get_absolute_href() or "")
    assert (zarr / "level3/zarr.json").exists()
    assert zarr == run / "country.zarr/map/2018"
    assert set(collection.assets) == {"thumbnail", "report"}


def test_items_say_where_and_when_and_what(run: Path) -> None:
    import rasterio

    item = pystac.Item.from_file(str(run / "export/map-2018/map-2018.json"))
    with rasterio.open(run / "export/map-2018/map-2018-level3.tif") as raster:
        assert item.properties["proj:code"] == "EPSG:3035"
        assert item.properties["proj:shape"] == list(raster.shape)
        assert item.properties["proj:transform"] == list(raster.transform)[:6]
        assert item.properties["proj:bbox"] == list(raster.bounds)
        counts = {v: int((raster.read(1) == v).sum()) for v in range(1, 45)}
    assert (item.properties["start_datetime"], item.properties["end_datetime"]) == (
        "2018-04-01T00:00:00Z",
        "2018-09-30T23:59:59Z",
    )
    classes = item.assets["level3"].extra_fields["classification:classes"]
    assert {c["value"]: c["count"] for c in classes if not c.get("nodata")} == counts
    conifers = next(c for c in classes if c["value"] == 24)
    assert (conifers["name"], conifers["title"], conifers["color_hint"]) == ("312", "Coniferous forest", "00A600")
    assert sum(c.get("percentage", 0) for c in classes) == pytest.approx(100)
    assert item.properties["renders"]["level3"]["colormap"]["24"] == [0, 166, 0, 255]
    reflectance = pystac.Item.from_file(str(run / "export/imagery-2018/imagery-2018.json")).assets["summer"].to_dict()
    assert [band["name"] for band in reflectance["bands"]] == ["B02", "B03", "B04", "B08"]
    assert {band["raster:scale"] for band in reflectance["bands"]} == {0.0001}


def test_items_are_derived_from_scenes_maps_and_the_model(run: Path) -> None:
    scenes = json.loads((run / "scenes/2018.json").read_text())["items"]
    item = json.loads((run / "export/map-2018/map-2018.json").read_text())
    derived = [link for link in item["links"] if link["rel"] == "derived_from"]
    assert {link["title"] for link in derived if "title" in link} == {scene["id"] for scene in scenes}
    listed = json.loads((run / "export/scenes/2018.json").read_text())
    for link in derived[: len(scenes)]:
        file, _, name = link["href"].partition("#")
        assert (run / "export/map-2018" / file).resolve() == run / "export/scenes/2018.json"
        assert name in {feature["id"] for feature in listed["features"]}
    (model,) = [link for link in derived if "mlm:name" in link]
    found = json.loads((run / "export/map-2018" / model["href"]).read_text())
    assert found["properties"]["mlm:name"] == model["mlm:name"]
    assert found["properties"]["geoflow:sha256"] == item["properties"]["geoflow:model_sha256"]
    change = json.loads((run / "export/change-2018-2024/change-2018-2024.json").read_text())
    hrefs = [link["href"] for link in change["links"] if link["rel"] == "derived_from"]
    assert hrefs == ["../map-2018/map-2018.json", "../map-2024/map-2024.json"]


def test_scenes_that_have_an_address_are_linked_there(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("export"))
    ledger = json.loads((out / "scenes/2018.json").read_text())
    address = "https://stac.example.org/collections/s2/items/one"
    ledger["items"][0]["links"] = [{"rel": "self", "href": f"{address}?sig=SECRET-abcdef0123456789"}]
    (out / "scenes/2018.json").write_text(json.dumps(ledger))
    gf.export(out, choice=gf.ExportChoice(layers=("map",), levels=(1,), epochs=("2018",)))
    text = (out / "export/map-2018/map-2018.json").read_text()
    assert address in text
    assert "SECRET" not in text


def test_nothing_in_it_tells_of_this_machine(run: Path, finished: tuple[Path, Path], tmp_path: Path) -> None:
    places = {str(run), str(finished[1]), str(Path.cwd()), str(Path.home()), str(Path(__file__).parents[1]), "/tmp/"}
    elsewhere = gf.export(run, tmp_path / "e", gf.ExportChoice(layers=("map",), levels=(1,), epochs=("2018",)))
    assert "zarr" not in json.loads((elsewhere.folder / "map-2018/map-2018.json").read_text())["assets"]
    for folder in (run / "export", elsewhere.folder):
        for path in folder.rglob("*"):
            if path.suffix in (".json", ".xml", ".qml"):
                text = path.read_text()
                assert not [place for place in places if place in text], path.name
                assert not [p for p in ("../../../", "file://") if p in text], path.name
