"""Label files as agencies deliver them: each works, or is refused with what to do."""

import sqlite3
import struct
from pathlib import Path

import geopandas
import numpy as np
import pyogrio.raw
import pytest
import shapely
from test_labels import CRS, GRID, LEFT, TOP, square, write

from geoflow.errors import LabelError
from geoflow.labels import check_labels, load_labels

WHOLE = square(0, 0, 500, 400)


def pixels(source: Path | str, column: str | None = None) -> dict[int, int]:
    """Pixels of each class, after the check that a job makes before it starts."""
    check_labels(source, GRID, "corine", column)
    codes, counts = np.unique(load_labels(source, GRID, "corine", column).values, return_counts=True)
    return dict(zip(codes.tolist(), counts.tolist(), strict=True))


def frame(shapes, columns: dict) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs=CRS)


@pytest.mark.parametrize("value", ["311 ", " 311", "311.0", 311, 311.0, np.int16(311)])
def test_a_code_as_text_integer_or_float(tmp_path, value):
    assert pixels(write(tmp_path / "a.gpkg", [WHOLE], {"CLC_CODE": [value]})) == {311: 2000}


@pytest.mark.parametrize("value", ["3.1.1", "CLC311", "311-"])
def test_a_code_in_another_dress_is_refused_by_its_value(tmp_path, value):
    with pytest.raises(LabelError, match=f"has no class named '{value}'"):
        pixels(write(tmp_path / "a.gpkg", [WHOLE], {"CLC_CODE": [value]}))


@pytest.mark.parametrize("values", [[None, "311"], [float("nan"), 311.0]])
def test_a_polygon_without_a_class_is_refused(tmp_path, values):
    with pytest.raises(LabelError, match="1 features have no value; give them a class, or delete them"):
        pixels(write(tmp_path / "a.gpkg", [square(0, 0, 9, 9), WHOLE], {"CLC_CODE": values}))


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1", "CP1252"])
def test_a_shapefile_in_the_encoding_that_its_cpg_names(tmp_path, encoding):
    (tmp_path / "own.csv").write_text("code,name,colour\n4,Forêt,#2e9a3a\n6,Eau,#2b6fd6\n", encoding="utf-8")
    path = tmp_path / "a.shp"
    frame([WHOLE], {"CLASSE": ["Forêt"]}).to_file(path, encoding=encoding)
    assert path.with_suffix(".cpg").exists()
    assert (load_labels(path, GRID, tmp_path / "own.csv", "CLASSE") == 4).all()


def test_parts_of_a_shapefile_that_are_missing_are_named(tmp_path):
    for part, message in ((".prj", "a shapefile needs its .prj"), (".dbf", r"the \.dbf of the shapefile is missing")):
        path = write(tmp_path / f"{part[1:]}.shp", [WHOLE], {"CODE_18": ["311"]})
        path.with_suffix(part).unlink()
        with pytest.raises(LabelError, match=message):
            pixels(path)


def test_polygons_and_multipolygons_mixed_with_empty_and_missing_ones(tmp_path):
    several = shapely.MultiPolygon([square(0, 0, 100, 100), square(200, 0, 300, 100)])
    shapes = [square(0, 200, 100, 300), several, shapely.Polygon(), None]
    columns = {"CLC_CODE": ["311", "512", "211", "112"]}
    expected = {0: 1700, 311: 100, 512: 200}
    assert pixels(write(tmp_path / "a.gpkg", shapes, columns)) == expected
    frame(shapes, columns).to_parquet(tmp_path / "a.parquet")
    assert pixels(tmp_path / "a.parquet") == expected


@pytest.mark.parametrize("suffix", [".gpkg", ".gdb", ".parquet"])
def test_a_ring_without_area_leaves_no_pixel(tmp_path, suffix):
    spike = shapely.Polygon([(LEFT, TOP), (LEFT + 100, TOP), (LEFT + 100, TOP - 100), (LEFT + 100, TOP), (LEFT, TOP)])
    shapes, columns = [spike, square(200, 200, 300, 300)], {"CLC_CODE": ["311", "512"]}
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        frame(shapes, columns).to_parquet(path)
    else:
        write(path, shapes, columns)
    assert pixels(path) == {0: 1900, 512: 100}


def test_a_layer_of_empty_geometries_alone_is_refused(tmp_path):
    with pytest.raises(LabelError, match="layer 'a' has no feature with a geometry"):
        pixels(write(tmp_path / "a.gpkg", [shapely.Polygon()], {"CLC_CODE": ["311"]}))


def test_collections_and_lines_are_refused_with_the_way_out(tmp_path):
    line = shapely.LineString([(LEFT, TOP), (LEFT + 9, TOP - 9)])
    shapes = [WHOLE, shapely.GeometryCollection([square(0, 0, 100, 100), line]), line]
    source = write(tmp_path / "a.gpkg", shapes, {"CLC_CODE": ["311", "512", "112"]})
    with pytest.raises(LabelError, match=r"2 features .* \(GeometryCollection, LineString\).*explode collections"):
        load_labels(source, GRID, "corine")


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".gdb", ".parquet"])
def test_heights_are_dropped(tmp_path, suffix):
    shape, path = shapely.force_3d(square(0, 0, 100, 100), 5.0), tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        frame([shape], {"CLC_CODE": ["311"]}).to_parquet(path)
    else:
        wkb = shapely.to_wkb(np.array([shape], object), output_dimension=3)
        driver = "OpenFileGDB" if suffix == ".gdb" else None
        fields = {"field_data": [np.array(["311"], object)], "fields": ["CLC_CODE"]}
        pyogrio.raw.write(str(path), wkb, **fields, geometry_type="Polygon Z", crs=CRS, driver=driver)
    assert pixels(path) == {0: 1900, 311: 100}


def test_curves_are_followed(tmp_path):
    """A half disc of radius 100 m, as MultiSurface of a CurvePolygon; GDAL breaks arcs into chords of 4 degrees."""
    path = write(tmp_path / "a.gpkg", [square(0, 0, 200, 100)], {"CLC_CODE": ["311"]})
    corners = [(LEFT, TOP - 200), (LEFT + 100, TOP - 100), (LEFT + 200, TOP - 200)]
    arc = struct.pack("<BII6d", 1, 8, 3, *(v for corner in corners for v in corner))
    line = struct.pack("<BII4d", 1, 2, 2, *corners[2], *corners[0])
    nested = (struct.pack("<BII", 1, kind, count) for kind, count in ((12, 1), (10, 1), (9, 2)))
    with sqlite3.connect(path) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f'DROP TRIGGER "{name}"')
        blob = b"GP\x00\x01" + struct.pack("<i", 32633) + b"".join(nested) + arc + line
        db.execute("UPDATE a SET geom = ?", (blob,))
        db.execute("UPDATE rtree_a_geom SET miny = ?, maxy = ?", (TOP - 200, TOP - 100))
        db.execute("UPDATE gpkg_geometry_columns SET geometry_type_name = 'MULTISURFACE'")
    assert pixels(path)[311] == pytest.approx(np.pi * 100**2 / 2 / 100, abs=3)
    row = load_labels(path, GRID, "corine").values[19]  # 5 m above the diameter
    assert (row[:20] == 311).all()
    assert (row[20:] == 0).all()


def test_two_layers_of_a_geodatabase_must_be_told_apart(tmp_path):
    path = write(tmp_path / "a.gdb", [WHOLE], {"Code_18": ["311"]}, layer="clc18")
    write(path, [WHOLE], {"Code_18": ["312"]}, layer="clc18_draft", append=True)
    with pytest.raises(LabelError, match=r"layers clc18, clc18_draft .*name one: .*a\.gdb\|layername=clc18"):
        pixels(path)
    assert pixels(f"{path}|layername=clc18_draft") == {312: 2000}
    with pytest.raises(LabelError, match="has no layer 'clc12' with geometries, only clc18, clc18_draft"):
        pixels(f"{path}|layername=clc12")


def test_geoparquet_of_another_encoding_is_refused_and_categories_are_read(tmp_path):
    table = frame([WHOLE], {"CLC_CODE": ["311"]})
    table.to_parquet(tmp_path / "a.parquet", geometry_encoding="geoarrow")
    with pytest.raises(LabelError, match="encoded as 'polygon'; write them as WKB"):
        pixels(tmp_path / "a.parquet")
    table.astype({"CLC_CODE": "category"}).to_parquet(tmp_path / "b.parquet")
    assert pixels(tmp_path / "b.parquet") == {311: 2000}
