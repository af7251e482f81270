"""The files of the sample country: their layout, formats, faults, and that the same command makes the same bytes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
from rasterio.warp import Resampling, transform_bounds

from geoflow.errors import GridError, SceneError, StoreError
from geoflow.legends import legend
from geoflow.sample import difficulty, make_sample
from geoflow.sample.geography import frame_of
from geoflow.sample.make import WORK
from geoflow.sample.parallel import Workshop
from geoflow.sample.scenes import GSD, Sensor, View, weather_of
from geoflow.sample.signatures import BANDS, BRIGHT, INDEX, VARIANTS
from geoflow.sample.stac import ASSETS
from geoflow.sample.takes import TAKES

SIZE = "720x480"


@pytest.fixture(scope="module")
def country(tmp_path_factory) -> Path:
    """A small sample country, made with two threads."""
    folder = tmp_path_factory.mktemp("sample") / "country"
    make_sample(folder, SIZE, patches=20, workers=2)
    return folder


def items(country: Path) -> dict[str, dict]:
    """Item id -> item."""
    paths = (country / "stac" / "sentinel-2-l2a").glob("*/*.json")
    return {p.stem: json.loads(p.read_text("utf-8")) for p in sorted(paths)}


def band(country: Path, item: str, name: str) -> np.ndarray:
    """Pixels of one asset."""
    with rasterio.open(country / "stac" / "sentinel-2-l2a" / item / f"{name}.tif") as source:
        return source.read(1)


def real_data() -> Path:
    """The folder of real data, or skip."""
    if "GEOFLOW_REAL_DATA" not in os.environ:
        pytest.skip("GEOFLOW_REAL_DATA is not set")
    return Path(os.environ["GEOFLOW_REAL_DATA"])


def test_the_manifest_names_every_file_and_its_bytes(country):
    manifest = json.loads((country / "manifest.json").read_text("utf-8"))
    there = {p.relative_to(country).as_posix() for p in country.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == there
    assert manifest["seed"] == 2018
    assert manifest["size"] == SIZE
    for name in ("README.md", "border.gpkg", "truth/landcover_2018.tif"):
        assert hashlib.sha256((country / name).read_bytes()).hexdigest() == manifest["files"][name]
    assert "synthetic" in (country / "README.md").read_text("utf-8")
    assert not (country / WORK).exists()


def test_the_same_bytes_from_any_number_of_threads(country, tmp_path):
    again = make_sample(tmp_path / "again", SIZE, patches=20, workers=1)
    assert again == json.loads((country / "manifest.json").read_text("utf-8"))


def test_a_finished_sample_is_kept_and_an_unfinished_one_made_anew(country, tmp_path, monkeypatch):
    before = (country / "border.gpkg").stat().st_mtime_ns
    make_sample(country, SIZE, patches=20)
    assert (country / "border.gpkg").stat().st_mtime_ns == before

    def interrupted(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    half = tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        make_sample(half, SIZE, patches=0, progress=interrupted)
    assert (half / WORK).is_dir()
    (half / "corine").mkdir()
    (half / "corine" / "left-over.txt").write_text("from the interrupted run")
    whole = make_sample(half, SIZE, patches=0)
    assert not (half / "corine" / "left-over.txt").exists()
    assert "corine/clc2018.gpkg" in whole["files"]


def test_what_the_user_gets_wrong_is_named(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(StoreError, match="not empty"):
        make_sample(tmp_path, SIZE)
    with pytest.raises(StoreError, match="is a file"):
        make_sample(tmp_path / "mine.txt", SIZE)
    with pytest.raises(GridError, match="enormous"):
        make_sample(tmp_path / "new", "enormous")
    with pytest.raises(SceneError, match="-1"):
        make_sample(tmp_path / "new", SIZE, patches=-1)
    with pytest.raises(StoreError, match="GB free"):
        make_sample(tmp_path / "new", "900000x900000")
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    assert not (tmp_path / "new" / WORK).exists()


def test_truth_lies_on_the_national_grid_and_inside_the_border(country):
    frame = frame_of(SIZE)
    border = geopandas.read_file(country / "border.gpkg", layer="border")
    assert border.crs.to_epsg() == 3035
    for epoch in (2018, 2024):
        with rasterio.open(country / "truth" / f"landcover_{epoch}.tif") as source:
            assert source.crs.to_epsg() == 3035
            assert source.dtypes == ("uint16",)
            assert source.nodata == 0
            assert source.transform == frame.transform
            codes = source.read(1)
        mask = rasterio.features.geometry_mask(border.geometry, codes.shape, frame.transform, invert=True)
        np.testing.assert_array_equal(codes > 0, mask)
        assert set(np.unique(codes[codes > 0]).tolist()) <= set(legend("corine").codes(3))
    counties = geopandas.read_file(country / "counties.gpkg", layer="counties")
    assert {"code", "name"} <= set(counties.columns)
    assert (country / "truth" / "EVALUATION_ONLY").is_file()


def test_change_patches_are_the_difference_of_the_epochs(country):
    with rasterio.open(country / "truth" / "landcover_2018.tif") as a:
        before, transform = a.read(1), a.transform
    with rasterio.open(country / "truth" / "landcover_2024.tif") as b:
        after = b.read(1)
    change = geopandas.read_file(country / "truth" / "change_2018_2024.gpkg", layer="change")
    assert change.area_ha.min() >= 0.2
    assert np.allclose(change.area_ha, change.area / 1e4, atol=1e-3)
    assert change.area.sum() == pytest.approx(100.0 * (before != after).sum())
    for column, codes in (("from_code", before), ("to_code", after)):
        shapes = zip(change.geometry, change[column].astype(int), strict=True)
        image = rasterio.features.rasterize(shapes, codes.shape, transform=transform, dtype="uint16")
        np.testing.assert_array_equal(image[before != after], codes[before != after])
    assert not (change.kind == "other").any()


def test_corine_is_a_vector_with_the_codes_of_the_legend(country):
    corine = geopandas.read_file(country / "corine" / "clc2018.gpkg", layer="clc2018")
    assert corine.crs.to_epsg() == 3035
    assert all(isinstance(code, str) for code in corine.Code_18)
    assert {int(c) for c in corine.Code_18} <= set(legend("corine").codes(3))
    assert corine.geometry.is_valid.all()


def test_the_catalog_is_one_that_pystac_reads(country):
    catalog = pystac.Catalog.from_file(str(country / "stac" / "catalog.json"))
    found = {i.id: i for i in catalog.get_items(recursive=True)}
    assert set(found) == set(items(country))
    assert len(found) == 2 * (len(TAKES) + sum(len(t.products) - 1 for t in TAKES))
    for item in items(country).values():
        assert {v[0] for v in ASSETS.values()} | {"scl"} == set(item["assets"])
        folder = country / "stac" / "sentinel-2-l2a" / item["id"]
        for asset in item["assets"].values():
            assert asset["href"].startswith("./")
            with rasterio.open(folder / asset["href"]) as source:
                assert source.crs.to_epsg() == item["properties"]["proj:epsg"]
                assert list(source.shape) == asset["proj:shape"]
                assert list(source.transform)[:6] == asset["proj:transform"]
                assert source.nodata == 0
                assert source.dtypes == (asset["raster:bands"][0]["data_type"],)
                left, bottom, right, top = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
        west, south, east, north = item["bbox"]
        assert west >= left - 0.02
        assert east <= right + 0.02
        assert south >= bottom - 0.02
        assert north <= top + 0.02


def test_scenes_are_cogs_with_averaged_overviews(country):
    item = next(iter(items(country)))
    with rasterio.open(country / "stac" / "sentinel-2-l2a" / item / "B04.tif") as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.overviews(1)
        full, half = source.read(1).astype(float), source.read(1, out_shape=tuple(s // 2 for s in source.shape))
    height, width = (s // 2 * 2 for s in full.shape)
    mean = full[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    assert np.abs(mean[: half.shape[0], : half.shape[1]] - half).mean() < 1.0


def test_items_have_the_fields_of_real_ones(country):
    path = real_data() / "stac-items/earth-search-v1-mapchete/S2A_12RWT_20240106_0_L2A/S2A_12RWT_20240106_0_L2A.json"
    real = json.loads(path.read_text("utf-8"))
    for item in items(country).values():
        assert set(real["properties"]) - set(item["properties"]) == {"earthsearch:s3_path"}
        for key in item["assets"]:
            assert set(item["assets"][key]) == set(real["assets"][key])
        types = {k: type(v) for k, v in real["properties"].items() if not isinstance(v, int | float)}
        assert {k: type(item["properties"][k]) for k in types if k in item["properties"]} == {
            k: v for k, v in types.items() if k in item["properties"]
        }
        assert item["stac_extensions"] == real["stac_extensions"]


def test_the_two_tiles_overlap_and_show_the_same_ground(country):
    found = {k: v for k, v in items(country).items() if "20180716" in k}
    west, east = sorted(found)
    assert (found[west]["properties"]["proj:epsg"], found[east]["properties"]["proj:epsg"]) == (32634, 32635)
    assert found[west]["bbox"][2] > 24.0 > found[east]["bbox"][0]
    frame = frame_of(SIZE)
    grid = {"crs": "EPSG:3035", "transform": frame.transform, "height": frame.height, "width": frame.width}
    views = []
    for name in (west, east):
        path = country / "stac" / "sentinel-2-l2a" / name / "B08.tif"
        with rasterio.open(path) as source, rasterio.vrt.WarpedVRT(source, resampling=Resampling.nearest, **grid) as v:
            views.append(v.read(1).astype(float))
    both = (views[0] > 0) & (views[1] > 0)
    assert both.mean() > 0.1
    assert np.corrcoef(views[0][both], views[1][both])[0, 1] > 0.9


def test_offsets_and_flags_are_as_the_truth_says(country):
    state = {s["id"]: s for s in json.loads((country / "truth" / "scenes.json").read_text("utf-8"))}
    wrong = {True: 0, False: 0}
    for name, item in items(country).items():
        flag, baseline = (item["properties"][k] for k in ("earthsearch:boa_offset_applied", "s2:processing_baseline"))
        assert flag == state[name]["boa_offset_applied"]
        dark = band(country, name, "B12")
        present = np.percentile(dark[dark > 0], 0.5) > 900
        assert present == (state[name]["offset_in_pixels"] == 1000)
        if float(baseline) >= 4 and flag == present:
            wrong[flag] += 1
        assert item["assets"]["red"]["raster:bands"][0]["offset"] == (-0.1 if float(baseline) >= 4 else 0)
        assert not (present and name.split("_")[2].startswith("2018"))
    assert wrong[True] >= 1, "a flag says applied, but the pixels hold the offset"
    assert wrong[False] >= 1, "a flag says not applied, but the pixels lack the offset"


def test_duplicates_are_the_same_datatake_under_two_baselines(country):
    found = items(country)
    pairs = [(k, k.replace("_1_L2A", "_0_L2A")) for k in found if k.endswith("_1_L2A")]
    assert len(pairs) == 4
    for newer, older in pairs:
        new, old = found[newer]["properties"], found[older]["properties"]
        assert new["s2:processing_baseline"] > old["s2:processing_baseline"]
        assert new["s2:generation_time"] > old["s2:generation_time"]
        assert new["s2:datatake_id"][:-7] == old["s2:datatake_id"][:-7]
        assert new["datetime"] == old["datetime"]
        np.testing.assert_array_equal(band(country, newer, "B03"), band(country, older, "B03"))
        np.testing.assert_array_equal(band(country, newer, "SCL"), band(country, older, "SCL"))
    assert any(float(found[n]["properties"]["s2:processing_baseline"]) >= 4 and "_2018" in n for n, _ in pairs)


def test_weather_and_swath_edges(country):
    found = items(country)
    for epoch in ("2018", "2024"):
        dates = {k.split("_")[2] for k in found if k.split("_")[2].startswith(epoch)}
        assert len(dates) >= 4
        for period in ([d for d in dates if d[4:] <= "0615"], [d for d in dates if d[4:] > "0615"]):
            assert len(period) >= 2
        assert any(found[k]["properties"]["eo:cloud_cover"] > 60 for k in found if k.split("_")[2].startswith(epoch))
    cut = [k for k in found if found[k]["properties"]["s2:nodata_pixel_percentage"] > 5]
    assert cut
    for name in cut:
        scl = band(country, name, "SCL")
        assert (scl == 0).mean() * 100 == pytest.approx(
            found[name]["properties"]["s2:nodata_pixel_percentage"], abs=1e-4
        )
        assert ((band(country, name, "B05") == 0) == (scl == 0)).mean() > 0.99


def test_the_scene_classification_has_its_usual_faults():
    rows, cols = np.meshgrid(np.arange(0, 480, dtype=np.int32), np.arange(0, 720, dtype=np.int32), indexing="ij")
    ground = np.full(rows.shape, INDEX["pasture"] * VARIANTS, np.uint8)
    ground[:120] = next(iter(BRIGHT)) * VARIANTS
    flat = np.zeros(rows.shape, np.float32)
    scene = View(rows, cols, ground, ground, flat, flat, flat, flat)
    number = next(k for k, t in enumerate(TAKES) if 0.1 < t.cloud < 0.3)
    sensor = Sensor(TAKES[number], weather_of(TAKES[number], number, 3, 4800.0, 7200.0), scene, (3, number))
    bands = {name: sensor.band(name) for name in BANDS}
    scl = sensor.classes(bands)
    seen = scl > 0
    cloud, clouded = sensor.air[2][0], np.isin(scl, (8, 9, 10))
    assert (clouded & (cloud > 0.7) & seen).sum() > 0.95 * ((cloud > 0.7) & seen).sum() > 0
    thin = seen & (cloud > 0.17) & (cloud < 0.5)
    assert 0.02 < (~clouded[thin]).mean() < 0.6, "some thin cloud is missed"
    roofs = np.zeros(scl.shape, bool)
    roofs[:55] = True
    assert (clouded & seen & roofs & (cloud == 0)).sum() > 0, "bright roofs are taken for cloud"
    assert (clouded & seen & ~roofs & (cloud == 0))[65:].sum() == 0
    assert {GSD[b] for b in BANDS} == {10, 20, 60}


def test_patches_are_laid_out_like_bigearthnet(country):
    folders = sorted((country / "bigearthnet").iterdir())
    assert len(folders) == 20
    names = legend("bigearthnet-43")
    for folder in folders:
        assert len(list(folder.iterdir())) == 13
        label = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text("utf-8"))
        assert label["labels"]
        assert all(names.code_of(x) for x in label["labels"])
        for name, gsd in GSD.items():
            with rasterio.open(folder / f"{folder.name}_{name}.tif") as source:
                assert source.shape == (1200 // gsd, 1200 // gsd)
                assert source.dtypes == ("uint16",)
                assert source.nodata is None
                assert source.bounds.left == label["coordinates"]["ulx"]
                assert source.bounds.bottom == label["coordinates"]["lry"]
    for name in ("patches_with_cloud_and_shadow.csv", "patches_with_seasonal_snow.csv"):
        listed = (country / "bigearthnet-lists" / name).read_text("utf-8").split()
        assert set(listed) <= {f.name for f in folders}


def test_patch_metadata_has_the_fields_of_a_real_patch(country):
    real = next((real_data() / "bigearthnet-samples/v1").glob("*/*/*_labels_metadata.json"))
    ours = next((country / "bigearthnet").glob("*/*_labels_metadata.json"))
    a, b = (json.loads(p.read_text("utf-8")) for p in (real, ours))
    assert {k: type(v) for k, v in a.items()} == {k: type(v) for k, v in b.items()}
    assert set(a["coordinates"]) == set(b["coordinates"])
    assert b["projection"].startswith('PROJCS["WGS 84 / UTM zone 35N"')


def test_a_few_patches_have_wrong_labels_and_the_truth_lists_them(tmp_path):
    from geoflow.sample.patches import write_patches

    done = write_patches(tmp_path, 130, 2018, Workshop(tmp_path, 2, lambda *_: None))
    assert len(done) == len({p.name for p in done}) == 130
    with (tmp_path / "truth" / "patches_wrong_labels.csv").open(encoding="utf-8") as file:
        listed = {row["patch"] for row in csv.DictReader(file)}
    assert listed == {p.name for p in done if p.given != p.true}
    assert 1 <= len(listed) <= 10
    assert all(p.given for p in done)
    assert 1.5 < np.mean([len(p.true) for p in done]) < 4.5


def test_pixels_alone_do_not_give_the_classes_away(country):
    """A quick look at the difficulty; `test_difficulty_of_the_small_country` measures it in full."""
    with rasterio.open(country / "truth" / "landcover_2018.tif") as source:
        truth, transform = source.read(1), source.transform
    scenes = difficulty.read_scenes(country, *truth.shape, transform)
    assert len(scenes) == sum(t.epoch == 2018 for t in TAKES)
    best = min(scenes, key=lambda s: s.cloud)
    rgb = np.where(best.bands == difficulty.NODATA, np.nan, best.bands)[[3, 2, 1]].astype(np.float32)
    reached = difficulty.pixel_forest(rgb, truth, difficulty.blocks_held_out(truth.shape, 64), 8000)
    assert 0.5 < reached[1] < 0.9
    assert 0.2 < reached[3] < 0.7


@pytest.mark.slow
def test_difficulty_of_the_small_country(tmp_path):
    make_sample(tmp_path / "small", patches=0)
    figures = difficulty.measure_folder(tmp_path / "small")
    missed = {k: (figures[k], r) for k, r in difficulty.TARGETS.items() if not r[0] <= figures[k] <= r[1]}
    assert not missed


def test_its_job_is_the_quickstart_with_paths_into_it(country):
    import yaml

    from geoflow import load_job

    given = yaml.safe_load((Path(__file__).parents[1] / "jobs/quickstart.yaml").read_text("utf-8"))
    written = yaml.safe_load((country / "quickstart.yaml").read_text("utf-8"))
    assert json.loads(json.dumps(given).replace("../out/sample/", "")) == written
    job = load_job(country / "quickstart.yaml")
    for path in (
        job.area.file,
        job.labels.source,
        job.classifier.source,
        job.change.zones,
        *job.evaluate.truth.values(),
    ):
        assert Path(path).is_relative_to(country)
        assert Path(path).exists()


def test_an_older_sample_is_given_its_job(country, tmp_path):
    import shutil

    older = tmp_path / "older"
    shutil.copytree(country, older)
    (older / "quickstart.yaml").unlink()
    manifest = json.loads((older / "manifest.json").read_text("utf-8"))
    del manifest["files"]["quickstart.yaml"]
    (older / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    make_sample(older, SIZE, patches=20)
    assert (older / "quickstart.yaml").read_bytes() == (country / "quickstart.yaml").read_bytes()
