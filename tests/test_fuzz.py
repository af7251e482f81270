"""Job files, cluster files and STAC items are data: whatever they hold, the answer is a named error or a value."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geoflow.errors import GeoflowError
from geoflow.imagery.catalog import Catalog, load_catalog
from geoflow.imagery.items import freeze
from geoflow.imagery.search import Wishes, find
from geoflow.jobs import clusterfile
from geoflow.jobs.jobfile import load_job

ROOT = Path(__file__).parent.parent
JOBS = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "jobs").glob("*.yaml"))]
CLUSTERS = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "jobs/clusters").glob("*.yaml"))]
ITEM: dict[str, Any] = {
    "type": "Feature",
    "stac_version": "1.0.0",
    "id": "S2A_33TWN_20240601_0_L2A",
    "collection": "sentinel-2-l2a",
    "geometry": {"type": "Polygon", "coordinates": [[[15, 47], [16, 47], [16, 48], [15, 48], [15, 47]]]},
    "bbox": [15, 47, 16, 48],
    "properties": {
        "datetime": "2024-06-01T10:00:00Z",
        "platform": "sentinel-2a",
        "eo:cloud_cover": 12.5,
        "grid:code": "MGRS-33TWN",
        "proj:epsg": 32633,
        "s2:processing_baseline": "05.10",
        "s2:product_uri": "S2A_MSIL2A_20240601T100031_N0510_R122_T33TWN_20240601T140000.SAFE",
        "s2:datatake_id": "GS2A_20240601T100031_046714_N05.10",
        "s2:generation_time": "2024-06-01T14:00:00Z",
    },
    "assets": {
        key: {"href": f"https://example.com/{key}.tif", "proj:shape": [10, 10], "raster:bands": [{"nodata": 0}]}
        for key in ("blue", "green", "red", "nir", "scl")
    },
    "links": [],
}  # fmt: skip

NASTY = [
    "", " ", "\0", "..", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "/vsicurl/http://127.0.0.1/x", "vrt://x",
    "HDF5:x:/y", "/vsizip//etc/x.zip", "http://[::1", "https://h:port/x", "https://u:p@h/x.tif", "s3://", "s3://b",
    "2024-13-45", "2024-06-01T10:00:00+99:99", "EPSG:999999999999", "EPSG:32633", "nan", "1e999", "0x10", "٣",
    "${HOME}",     "${NO_SUCH}", "²", "${AWS_SECRET_ACCESS_KEY}", "!!python/object:os.system", "a" * 5000, "é\u2028",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**18, max_value=10**30),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(NASTY),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(max_size=8), st.integers()), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything within plain values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, v in inner for p in places(v, (*path, key)))]


@st.composite
def spoiled(draw: st.DrawFn, wholes: list[Any]) -> Any:
    """A valid document in which things are replaced, dropped or added; now and then something else altogether."""
    if draw(st.integers(0, 19)) == 0:
        return draw(VALUES)
    document = copy.deepcopy(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(places(document)[1:] or [()]))
        if not path:
            return draw(VALUES)
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        act = draw(st.sampled_from(["replace", "replace", "drop", "add"]))
        if act == "drop":
            del holder[path[-1]]
        elif act == "add" and isinstance(holder, dict):
            holder[draw(st.one_of(st.text(max_size=8), st.integers(), st.sampled_from(NASTY)))] = draw(VALUES)
        else:
            holder[path[-1]] = draw(VALUES)
    return document


def named_errors_only(act: Any) -> None:
    said = "nothing went wrong"
    try:
        act()
    except GeoflowError as error:
        said = str(error)
    assert said.strip(), "an error that says nothing"


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return load_catalog("earth-search")


def fuzz_job(folder: Path, document: Any) -> None:
    file = folder / "job.yaml"
    try:
        text = yaml.safe_dump(document, allow_unicode=True)
    except (yaml.YAMLError, UnicodeEncodeError):
        return
    file.write_text(text, encoding="utf-8", errors="replace")
    named_errors_only(lambda: load_job(file))


def fuzz_item(folder: Path, catalog: Catalog, document: Any) -> None:
    base = "https://example.com/items/one.json"
    document = json.loads(json.dumps(document, default=str))  # as a server gives it
    named_errors_only(lambda: freeze(document, catalog, base))

    class Offering:
        def __init__(self) -> None:
            self.catalog = catalog

        def offered(self, *_: Any) -> Any:
            yield ITEM, base
            yield document, base

    from odc.geo.geom import box

    area = box(15.2, 47.2, 15.4, 47.4, "EPSG:4326")
    wishes = Wishes(50, ("B02", "B03"), ("33TWN",), (), 1)
    named_errors_only(lambda: find(Offering(), area, "2024-05-01", "2024-06-30", wishes))  # type: ignore[arg-type]


def many(count: int) -> Any:
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
        derandomize=True,
    )


@many(150)
@given(document=spoiled(JOBS))
def test_spoiled_jobs(tmp_path: Path, document: Any) -> None:
    fuzz_job(tmp_path, document)


@many(300)
@given(document=spoiled([ITEM]))
def test_spoiled_items(tmp_path: Path, catalog: Catalog, document: Any) -> None:
    fuzz_item(tmp_path, catalog, document)


@many(300)
@given(document=spoiled(CLUSTERS))
def test_spoiled_clusters(document: Any) -> None:
    named_errors_only(lambda: clusterfile.parse_cluster(document, "cluster.yaml", Path("/x")))


@pytest.mark.faults
@many(10_000)
@given(document=spoiled(JOBS))
def test_ten_thousand_spoiled_jobs(tmp_path: Path, document: Any) -> None:
    fuzz_job(tmp_path, document)


@pytest.mark.faults
@many(10_000)
@given(document=spoiled([ITEM]))
def test_ten_thousand_spoiled_items(tmp_path: Path, catalog: Catalog, document: Any) -> None:
    fuzz_item(tmp_path, catalog, document)


@many(200)
@given(text=st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_text_that_is_no_job(tmp_path: Path, text: Any) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
    named_errors_only(lambda: load_job(file))
    named_errors_only(lambda: clusterfile.load_cluster(file))
