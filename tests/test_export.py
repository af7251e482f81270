"""An export of a finished run, as GDAL, rioxarray and people see it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas
import matplotlib.image
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from gdal_view import attribute_table, category_names
from numpy.typing import NDArray
from typer.testing import CliRunner

import geoflow as gf
from geoflow.cli import app
from geoflow.errors import ExportError, StoreError
from geoflow.exports.coding import Coding
from geoflow.exports.layers import KINDS, Layer, choose
from geoflow.exports.source import Source, open_source
from geoflow.legends import legend
from geoflow.places import read_bytes

CORINE = legend("corine")


@pytest.fixture(scope="module")
def run(finished: tuple[Path, Path], exported: Path) -> Path:
    """See `exported`; what makes it is named, so that all tests of one finished run are one process's."""
    return exported


@pytest.fixture(scope="module")
def source(run: Path) -> Source:
    return open_source(run)


@pytest.fixture(scope="module")
def layers(source: Source) -> list[Layer]:
    """What was exported."""
    chosen = choose(source.layers, gf.ExportChoice(layers=KINDS, levels=(1, 3), epochs=("2018",)))
    assert {layer.kind for layer in chosen} == set(KINDS)
    return chosen


def stored(source: Source, layer: Layer) -> xr.DataArray:
    array: xr.DataArray = source.store.dataset(layer.group)[layer.variable].sel(dict(layer.select))
    return array


def coding_of(source: Source, layer: Layer) -> Coding | None:
    return Coding(source.legend, layer.level) if layer.level is not None else None


def test_every_layer_has_the_pixels_of_the_store_on_the_same_ground(
    run: Path, source: Source, layers: list[Layer]
) -> None:
    for layer in layers:
        array, coding = stored(source, layer), coding_of(source, layer)
        with rasterio.open(run / "export" / layer.file) as raster:
            values = raster.read()
            found = values if layer.content == "reflectance" else values[0]
            if coding is not None:
                assert raster.dtypes == ("uint8",)
                found = coding.decode(found)
            np.testing.assert_array_equal(found, array.values, err_msg=layer.file)
            assert raster.crs.to_epsg() == 3035
            assert raster.transform == source.store.grid.geobox.transform
            assert raster.nodata == {"percent": 255, "reflectance": -32768}.get(layer.content, 0)
            assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert raster.block_shapes[0] == (512, 512)
            assert "Synthetic" in raster.tags()["TIFFTAG_COPYRIGHT"]


def test_numbers_and_colours_of_corine_are_those_of_the_eea(run: Path) -> None:
    with rasterio.open(run / "export/map-2018/map-2018-level3.tif") as raster:
        assert raster.colorinterp[0].name == "palette"
        palette = raster.colormap(1)
        assert raster.tags()["GEOFLOW_NUMBERING"] == "GRID_CODE"
        assert raster.tags(1)["CLASS_24"] == "312 Coniferous forest"
    assert palette[0][3] == 0, "what is not mapped is not drawn"
    assert palette[1] == (230, 0, 77, 255)  # 111, the EEA's first
    assert palette[24] == (0, 166, 0, 255)  # 312
    assert palette[44] == (230, 242, 255, 255)  # 523, its last


def test_overviews_are_modes_of_the_level_below_and_invent_no_class(run: Path, layers: list[Layer]) -> None:
    for layer in layers:
        if layer.content not in ("classes", "state"):
            continue
        file = run / "export" / layer.file
        with rasterio.open(file) as raster:
            below, steps = raster.read(1), raster.overviews(1)
        assert steps, layer.file
        for at in range(len(steps)):
            with rasterio.open(file, overview_level=at) as raster:
                above = raster.read(1)
            own, most = votes(below, above)
            np.testing.assert_array_equal(own, most, err_msg=f"{layer.file}, overview {at}")
            below = above


def votes(below: NDArray[Any], above: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of each pixel of an overview: how many of the four below have its value, and how many the most frequent one."""
    squares = np.zeros((2 * above.shape[0], 2 * above.shape[1]), below.dtype)
    squares[: below.shape[0], : below.shape[1]] = below
    four = squares.reshape(above.shape[0], 2, above.shape[1], 2).transpose(0, 2, 1, 3).reshape(*above.shape, 4)
    counts = [((four == four[..., [i]]) & (four[..., [i]] != 0)).sum(-1) for i in range(4)]
    return ((four == above[..., None]) & (four != 0)).sum(-1), np.max(counts, axis=0)


def test_overviews_of_measures_are_means(run: Path) -> None:
    file = run / "export/map-2018/map-2018-confidence.tif"
    with rasterio.open(file) as raster, rasterio.open(file, overview_level=0) as half:
        below, above = raster.read(1, masked=True), half.read(1, masked=True)
    means = below.reshape(above.shape[0], 2, above.shape[1], 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(np.ma.getmaskarray(above), np.ma.getmaskarray(means))
    assert np.abs(above.astype(float) - means).max() <= 0.5


def test_gdal_reads_the_attribute_table(run: Path, source: Source) -> None:
    for level, columns in ((3, ["LEVEL1", "LEVEL2", "LEVEL3"]), (1, ["LEVEL1"])):
        file = run / f"export/map-2018/map-2018-level{level}.tif"
        names, usages, rows = attribute_table(file)
        assert names == ["Value", "Count", "CODE", "NAME", *columns, "Red", "Green", "Blue"]
        assert [usages[names.index(n)] for n in ("Value", "Count", "NAME", "Red", "Green", "Blue")] == [
            5,
            1,
            2,
            6,
            7,
            8,
        ]
        table = {int(row[0]): dict(zip(names, row, strict=True)) for row in rows}
        codes, counts = np.unique(source.store.dataset("map/2018")[f"level{level}"].values, return_counts=True)
        there = {int(code): int(count) for code, count in zip(codes, counts, strict=True) if code}
        assert {int(r["CODE"]): float(r["Count"]) for r in table.values() if float(r["Count"])} == there
        assert len(table) == len(CORINE.codes(level)), "classes that do not occur have a row as well"
    names, _, rows = attribute_table(run / "export/map-2018/map-2018-level3.tif")
    row = dict(zip(names, rows[23], strict=True))
    assert row["Value"] == "24"
    assert [row[n] for n in ("CODE", "NAME", "LEVEL1", "LEVEL2")] == [
        "312", "Coniferous forest", "Forest and semi natural areas", "Forests",
    ]  # fmt: skip
    assert [row[n] for n in ("Red", "Green", "Blue")] == ["0", "166", "0"]
    assert category_names(run / "export/map-2018/map-2018-level3.tif")[24] == "312 Coniferous forest"


def test_gdal_reads_states_and_statistics(run: Path, source: Source) -> None:
    names, _, rows = attribute_table(run / "export/change-2018-2024/change-2018-2024-state.tif")
    change = source.store.dataset("change/2018-2024")["change"].values
    assert [(row[names.index("NAME")], float(row[1])) for row in rows] == [
        ("unchanged", float((change == 1).sum())), ("changed", float((change == 2).sum())),
    ]  # fmt: skip
    values = source.store.dataset("map/2018")["confidence"].values
    seen = values[values != 255].astype(float)
    with rasterio.open(run / "export/map-2018/map-2018-confidence.tif") as raster:
        tags = raster.tags(1)
        assert raster.units == ("%",)
    assert float(tags["STATISTICS_MEAN"]) == pytest.approx(seen.mean(), abs=1e-5)
    assert float(tags["STATISTICS_STDDEV"]) == pytest.approx(seen.std(), abs=1e-5)
    assert (tags["STATISTICS_MINIMUM"], tags["STATISTICS_MAXIMUM"]) == (str(int(seen.min())), str(int(seen.max())))


def test_rioxarray_opens_it(run: Path) -> None:
    level3 = rioxarray.open_rasterio(run / "export/map-2018/map-2018-level3.tif")
    assert level3.rio.crs.to_epsg() == 3035
    assert level3.rio.nodata == 0
    composite = rioxarray.open_rasterio(run / "export/imagery-2018/imagery-2018-summer.tif")
    assert composite.attrs["long_name"] == ("B02", "B03", "B04", "B08")
    assert set(composite.attrs["scales"] if "scales" in composite.attrs else [composite.attrs["scale_factor"]]) == {
        1e-4
    }


def test_styles_draw_the_values_that_occur_in_the_colours_of_the_legend(
    run: Path, source: Source, layers: list[Layer]
) -> None:
    for layer in layers:
        style = ET.parse((run / "export" / layer.file).with_suffix(".qml")).getroot()
        assert style.tag == "qgis"
        renderer = style.find("pipe/rasterrenderer")
        assert renderer is not None
        kinds = {"classes": "paletted", "state": "paletted", "percent": "singlebandpseudocolor"}
        assert renderer.get("type") == kinds.get(layer.content, "multibandcolor")
        coding = coding_of(source, layer)
        if coding is not None:
            found = {int(e.get("value", "")): e for e in renderer.iterfind("colorPalette/paletteEntry")}
            present = set(np.unique(coding.encode(stored(source, layer).values)).tolist()) - {0}
            assert set(found) == present, layer.file
            for one in coding.classes:
                if one.value in present:
                    entry = found[one.value]
                    assert entry.get("label") == f"{one.code} {one.name}"
                    assert entry.get("color") == "#{:02x}{:02x}{:02x}".format(*one.colour)
    steps = ET.parse(run / "export/map-2018/map-2018-confidence.qml").iterfind(".//colorrampshader/item")
    assert [step.get("value") for step in steps] == ["39", "59", "79", "89", "100"]
    bands = ET.parse(run / "export/imagery-2018/imagery-2018-summer.qml").find("pipe/rasterrenderer")
    assert bands is not None
    assert [bands.get(f"{colour}Band") for colour in ("red", "green", "blue")] == ["3", "2", "1"]
    assert all(
        float(e.findtext("minValue", "")) < float(e.findtext("maxValue", "")) for e in bands if "Contrast" in e.tag
    )


def test_every_layer_has_a_picture_in_its_own_colours(run: Path, source: Source, layers: list[Layer]) -> None:
    for layer in layers:
        picture = (run / "export" / layer.file).with_suffix(".png")
        if layer.kind == "change" and layer.content == "classes":
            assert not picture.exists(), "the picture of the state shows from what to what"
            continue
        image = matplotlib.image.imread(picture)
        assert image.shape[1] > 1000, layer.file
        coding = coding_of(source, layer)
        if coding is not None:
            codes, counts = np.unique(stored(source, layer).values, return_counts=True)
            red, green, blue = source.legend.colour(int(codes[1:][counts[1:].argmax()]))
            packed = (image[::4, ::4, :3] * 255).round().astype(int) @ [1 << 16, 1 << 8, 1]
            assert (packed == (red << 16) + (green << 8) + blue).mean() > 0.02, layer.file
    thumbnail = matplotlib.image.imread(run / "export/map-2018/thumbnail.png")
    assert max(thumbnail.shape[:2]) <= 640


def test_polygons_are_the_runs_own(run: Path) -> None:
    for ending in ("gpkg", "parquet"):
        file = run / f"export/change-2018-2024/change-2018-2024.{ending}"
        assert file.read_bytes() == (run / f"change/2018-2024.{ending}").read_bytes()


def test_what_is_there_is_kept_and_what_is_of_another_state_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    choice = gf.ExportChoice(layers=("map",), levels=(1,), epochs=("2018",))
    first = gf.export(run, tmp_path / "e", choice)
    made = tmp_path / "e/map-2018/map-2018-level1.tif"
    before = made.stat().st_mtime_ns
    again = gf.export(run, tmp_path / "e", gf.ExportChoice(layers=("map", "confidence"), levels=(1,), epochs=("2018",)))
    assert made.stat().st_mtime_ns == before
    kept = {file.path: file.kept for file in again.files}
    assert kept["map-2018/map-2018-level1.tif"]
    assert not kept["map-2018/map-2018-confidence.tif"]
    assert {file.path for file in first.files} < set(kept)
    item = json.loads((tmp_path / "e/map-2018/map-2018.json").read_text())
    assert {"level1", "confidence"} <= set(item["assets"]), "what an earlier export made is in the catalog too"

    part = gf.ExportChoice(layers=("map",), levels=(1,), epochs=("2018",), bbox=(23.97, 58.5, 23.98, 58.51))
    with pytest.raises(ExportError, match="another state of the run, or of another part of it: --force"):
        gf.export(run, tmp_path / "e", part)
    assert made.stat().st_mtime_ns == before
    forced = gf.export(run, tmp_path / "e", part, force=True)
    assert any("map-2018-confidence.tif is of another state" in note for note in forced.notes)
    with rasterio.open(made) as raster:
        assert raster.width < 100
    assert not list((tmp_path / "e").rglob(".*")), "drafts are gone"


def test_an_export_that_was_interrupted_goes_on(run: Path, tmp_path: Path) -> None:
    choice = gf.ExportChoice(layers=("map",), levels=(1,), epochs=("2018",))
    whole = gf.export(run, tmp_path, choice)
    contents = {file.path: (tmp_path / file.path).read_bytes() for file in whole.files}
    (tmp_path / "map-2018/map-2018-level1.qml").unlink()  # what is written after the raster
    (tmp_path / "map-2018/map-2018-level1.png").unlink()
    again = gf.export(run, tmp_path, choice)
    assert not next(file for file in again.files if file.path.endswith(".tif")).kept
    assert {file.path: (tmp_path / file.path).read_bytes() for file in again.files} == contents, (
        "and ends in the same bytes"
    )


def test_an_object_store_is_a_place_like_any_other(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs
    from s3_server import serve_s3, upload

    choice = gf.ExportChoice(layers=("map",), levels=(1,), epochs=("2018",))
    here = gf.export(run, tmp_path / "here", choice)
    part = tmp_path / "part"
    shutil.copytree(
        run,
        part,
        ignore=shutil.ignore_patterns("export", "model", "imagery", "labels", "generalised", "change", "overviews"),
    )
    for name in ("level2", "level3", "confidence", "margin", "second", "clear", "probabilities"):
        for chunks in part.glob(f"country.zarr/map/*/{name}/c"):
            shutil.rmtree(chunks)
    with serve_s3() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        address = upload(part, "bucket", "out")
        there = gf.export(address, "s3://bucket/export", choice)
        assert [file.path for file in there.files] == [file.path for file in here.files]
        for file in there.files:
            assert read_bytes(there.folder / file.path) == (tmp_path / "here" / file.path).read_bytes(), file.path
        with pytest.raises(ExportError, match="holds an export: --force writes all of it anew"):
            gf.export(address, "s3://bucket/export", choice)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_part_of_the_country_lies_on_the_same_pixels(run: Path, source: Source, tmp_path: Path) -> None:
    whole = source.store.dataset("map/2018")["level3"]
    border = geopandas.GeoSeries.from_wkt(
        ["POLYGON ((23.965 58.50, 23.99 58.50, 23.975 58.52, 23.965 58.50))"], crs=4326
    )
    border.to_file(tmp_path / "area.gpkg")
    arguments = ["export", str(run), "--to", str(tmp_path / "e"), "--layers", "map,change", "--level", "3", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--area", str(tmp_path / "area.gpkg")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["folder"] == str(tmp_path / "e")
    triangle = border.to_crs(3035).iloc[0]
    part = rioxarray.open_rasterio(tmp_path / "e/map-2018/map-2018-level3.tif").squeeze(drop=True)
    same = whole.sel(x=part.x, y=part.y)  # the very coordinates of the grid
    x, y = np.meshgrid(part.x, part.y)
    from shapely import contains_xy

    inside = contains_xy(triangle, x.ravel(), y.ravel()).reshape(x.shape)
    decoded = Coding(CORINE, 3).decode(part.values)
    assert inside.any()
    np.testing.assert_array_equal(decoded[inside], same.values[inside])
    assert (decoded[~inside] == 0).all()
    patches = geopandas.read_file(tmp_path / "e/change-2018-2024/change-2018-2024.gpkg")
    every = geopandas.read_file(run / "change/2018-2024.gpkg")
    assert 0 < len(patches) < len(every)
    assert len(patches) == every.intersects(triangle).sum()
    assert not (tmp_path / "e/change-2018-2024/change-2018-2024-transitions.csv").exists(), "it is of the whole country"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--layers", "map,forest"], "--layers 'forest' is none of map, confidence"),
        (["--level", "4"], "--level 4: the run's maps have the levels 1, 2, 3"),
        (["--level", "deep"], "--level 'deep' is not a number"),
        (["--epoch", "1990"], "--epoch 1990: the run has the epochs 2018, 2024"),
        (["--bbox", "24,58"], "--bbox '24,58': write west,south,east,north"),
        (["--bbox", "25,58,24,59"], "it must be west,south,east,north in degrees"),
        (["--bbox", "10,50,11,51"], "--bbox 10,50,11,51 does not meet the map, which covers longitude 23."),
        (["--area", "nowhere.gpkg"], "--area nowhere.gpkg cannot be read"),
        (["--area", "nowhere.gpkg", "--bbox", "23,58,24,59"], "give one of them"),
        (["--layers", "labels", "--epoch", "2024"], "nothing is left to export"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    run: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = CliRunner().invoke(app, ["export", str(run), "--to", str(tmp_path / "e"), *arguments])
    assert isinstance(done.exception, ExportError)
    assert says in str(done.exception)
    assert not list(tmp_path.rglob("*.tif"))


def test_a_run_that_is_none_or_not_complete_is_not_exported(run: Path, source: Source, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is not the output of a run: there is no country\.zarr in it"):
        gf.export(tmp_path)
    out = tmp_path / "out"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("export", "model", "scenes", "c"))
    source.seal.reopened().write(out)
    with pytest.raises(ExportError, match=r"is at work, or did not come to its end\. `geoflow status .*` says"):
        gf.export(out)
    (out / "receipts/seal.json").unlink()
    with pytest.raises(ExportError, match="no run was completed there"):
        gf.export(out)


def test_a_disk_without_room_is_found_before_work_begins(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(
        ExportError, match=r"has 0\.0 GB free, the export may need 0\.0 GB, drafts included: ask for less"
    ):
        gf.export(run, tmp_path / "e", gf.ExportChoice(layers=("map",)))
    assert not list(tmp_path.rglob("*.tif"))


def test_a_folder_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written: "):
        gf.export(run, tmp_path / "file")
