"""``.gf`` of an opened country: each answer is held to the numbers that are in the store."""

from __future__ import annotations

import json
import shutil

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from explore_country import TRANSFORM, make_country
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

import geoflow as gf
from geoflow.errors import GeoflowError, GridError, LegendError, StoreError
from geoflow.explore.layers import store_of, stored
from geoflow.explore.points import locate
from geoflow.legends import Legend, LegendClass

TO_LONLAT = Transformer.from_crs("EPSG:3035", "EPSG:4326", always_xy=True)
HEIGHT, WIDTH = 80, 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_country(tmp_path_factory.mktemp("explore"))


@pytest.fixture(scope="module")
def country(folder):
    return gf.open(folder)


@pytest.fixture(scope="module")
def loaded(country):
    """All layers in memory."""
    return {f"{kind}/{name}": country[f"{kind}/{name}"].to_dataset().compute() for kind, name in GROUPS}


GROUPS = (("map", "2018"), ("map", "2024"), ("labels", "clc2018"), ("change", "2018-2024"))


def box(left_px, top_px, right_px, bottom_px):
    """A rectangle in pixels, as a polygon of the map's CRS."""
    (x0, y0), (x1, y1) = TRANSFORM * (left_px, top_px), TRANSFORM * (right_px, bottom_px)
    return shapely.box(x0, y1, x1, y0)


def frame(*shapes, names=None):
    return gpd.GeoDataFrame({"name": names or list("abcdef"[: len(shapes)])}, geometry=list(shapes), crs="EPSG:3035")


# at


@given(
    col=st.integers(0, WIDTH - 1),
    row=st.integers(0, HEIGHT - 1),
    right=st.sampled_from([0.0, 1e-6, 0.5, 0.999]),
    down=st.sampled_from([0.0, 1e-6, 0.5, 0.999]),
    lonlat=st.booleans(),
)
@settings(max_examples=40)
def test_at_is_the_pixel_that_rasterio_and_xarray_give(country, loaded, col, row, right, down, lonlat):
    """In the map's CRS to its very edges; through degrees as exactly as degrees can say it."""
    x, y = TRANSFORM * (col + right, row + down)
    maps = loaded["map/2018"]
    if lonlat:
        lon, lat = TO_LONLAT.transform(x, y)
        x, y = Transformer.from_crs("EPSG:4326", "EPSG:3035", always_xy=True).transform(lon, lat)
        got = country.gf.at(lon, lat)
    else:
        got = country.gf.at(x, y, crs="EPSG:3035")
    wanted = rasterio.transform.rowcol(TRANSFORM, x, y)
    if not (0 <= wanted[0] < HEIGHT and 0 <= wanted[1] < WIDTH):  # degrees may miss the edge by a nanometre
        assert not got.inside
        return
    assert (got.row, got.col) == wanted
    if 0.4 < right < 0.6 and 0.4 < down < 0.6:
        near = maps["level3"].sel(x=x, y=y, method="nearest")
        assert int(near) == int(maps["level3"][got.row, got.col])
    _check_record(got, loaded)


def _check_record(got, loaded):
    at = {"y": got.row, "x": got.col}
    for epoch in ("2018", "2024"):
        here = {name: int(v) for name, v in loaded[f"map/{epoch}"].isel(at).data_vars.items()}
        said = got.maps[epoch]
        if here["level3"] == 0:
            assert said.classes == ()
            assert said.confidence is None
            continue
        assert [c.code for c in said.classes] == [here["level1"], here["level2"], here["level3"]]
        assert [c.name for c in said.classes] == [gf.legend("corine").label(c.code) for c in said.classes]
        assert (said.confidence, said.margin, said.clear) == (here["confidence"], here["margin"], here["clear"])
        assert (said.second.code if said.second else 0) == here["second"]
    change = loaded["change/2018-2024"].isel(at)
    states = {0: "not compared", 1: "unchanged", 2: "changed"}
    assert got.changes["2018-2024"].state == states[int(change["change"])]
    if int(change["change"]) == 2:
        assert got.changes["2018-2024"].before.code == int(change["from_code"])
        assert got.changes["2018-2024"].after.code == int(change["to_code"])


def test_the_far_edges_of_the_map_are_outside(country):
    for col, row, inside in ((0, 0, True), (WIDTH, 0, False), (0, HEIGHT, False), (-1e-6, 0, False)):
        assert country.gf.at(*(TRANSFORM * (col, row)), crs="EPSG:3035").inside is inside


def test_outside_and_nodata_are_said_and_are_no_class(country):
    outside = country.gf.at(0.0, 0.0)
    assert not outside.inside
    assert outside.maps == {}
    assert "outside the map" in repr(outside)
    assert "outside the map" in outside._repr_html_()
    row, col = np.argwhere(country["map/2018/level3"].values == 0)[0]
    empty = country.gf.at(*(TRANSFORM * (col + 0.5, row + 0.5)), crs="EPSG:3035")
    assert empty.inside
    assert empty.maps["2018"].classes == ()
    assert "no data: not mapped here" in repr(empty)


def test_many_points_give_a_table(country):
    cols, rows = np.array([3, 50, 400]), np.array([7, 60, 3])
    x, y = TRANSFORM.a * (cols + 0.5) + TRANSFORM.c, TRANSFORM.e * (rows + 0.5) + TRANSFORM.f
    table = country.gf.at(x, y, crs="EPSG:3035")
    assert table["inside"].tolist() == [True, True, False]
    level3 = country["map/2024/level3"].values
    wanted = [int(level3[r, c]) or None for r, c in ((7, 3), (60, 50))]
    assert [None if v is None or v != v or str(v) == "<NA>" else v for v in table["map_2024_level3"][:2]] == wanted
    assert str(table["map_2024_level3"].dtype) == "Int64"
    assert country.gf.at([0.0], [0.0]).columns.equals(table.columns)
    points = gpd.GeoSeries.from_xy(x, y, crs="EPSG:3035", index=list("abc")).to_crs("EPSG:4326")
    again = country.gf.at(points)
    assert again.index.tolist() == list("abc")
    assert again["map_2024_level3"].tolist()[:2] == table["map_2024_level3"].tolist()[:2]
    pairs = country.gf.at(list(zip(points.x, points.y, strict=True)))
    assert pairs["clc2018_level1"].equals(again["clc2018_level1"].reset_index(drop=True))


def test_a_group_and_a_layer_answer_for_themselves(country):
    x, y = TRANSFORM * (20.5, 30.5)
    whole = country.gf.at(x, y, crs="EPSG:3035")
    of_map = country["map/2018"].gf.at(x, y, crs="EPSG:3035")
    assert list(of_map.maps) == ["2018"]
    assert of_map.changes == {}
    of_layer = country["map/2018/level2"].gf.at(x, y, crs="EPSG:3035")
    (said,) = of_layer.maps.values()
    assert [c.code for c in said.classes] == [c.code for c in whole.maps["2018"].classes if c.level == 2]
    part = country["map/2018"].to_dataset().isel(x=slice(17, None), y=slice(5, 70))
    assert part.gf.at(x, y, crs="EPSG:3035").maps["map"].classes == whole.maps["2018"].classes


def test_layers_that_were_altered_are_not_read_from_the_store(country):
    """The short way to the chunks is for the store's own arrays; what somebody computed from them is asked itself."""
    layer = country["map/2018/level1"]
    assert stored(layer).path == "map/2018/level1"
    assert stored(layer.copy(data=layer.data * 0 + 3)) is None
    assert stored(layer.isel(x=slice(None, None, -1))) is None
    altered = layer.copy(data=(layer.data * 0 + 3).astype("uint8"))
    (said,) = altered.gf.at(*(TRANSFORM * (20.5, 30.5)), crs="EPSG:3035").maps.values()
    assert [c.code for c in said.classes] == [3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((5_120_000, 4_019_000), "crs='EPSG:3035'"),
        ((float("nan"), 58.0), "not a finite number"),
        (([24.0, 25.0], [58.0]), "2 first and 1 second"),
        (("Tallinn",), "a longitude and a latitude"),
        (([1.0, 2.0, 3.0],), "list of pairs"),
    ],
)
def test_what_is_no_place_is_said(country, arguments, said):
    with pytest.raises(GridError, match=said):
        country.gf.at(*arguments)


def test_imagery_is_no_place_to_ask_for_classes(country):
    with pytest.raises(StoreError, match="no maps, labels or changes"):
        country["imagery/2018"].gf.at(24.0, 58.0)


# clip, areas


@given(
    edges=st.tuples(st.integers(0, 90), st.integers(0, 70), st.integers(1, 40), st.integers(1, 40)),
    aligned=st.booleans(),
)
@settings(max_examples=8)
def test_clip_then_areas_is_areas_of_the_zone(country, edges, aligned):
    left, top, width, height = edges
    shift = 0.0 if aligned else 0.31
    zone = frame(box(left + shift, top + shift, left + width, top + height))
    direct = country["map/2018"].gf.areas(zone, levels=[1, 3])
    clipped = country["map/2018"].gf.clip(zone, all_touched=True).gf.areas(zone, levels=[1, 3])
    assert np.allclose(direct["ha"], clipped["ha"])
    assert direct["code"].tolist() == clipped["code"].tolist()
    if aligned:
        whole = country["map/2018"].gf.clip(zone).gf.areas(levels=[1, 3])
        assert np.allclose(direct["ha"], whole["ha"])


def test_clip_is_lazy_and_keeps_what_matters(country, tmp_path):
    triangle = shapely.Polygon([TRANSFORM * (10, 10), TRANSFORM * (60, 15), TRANSFORM * (20, 70)])
    cut = country.gf.clip(triangle, crs="EPSG:3035")
    layer, source = cut["map/2018/level3"], country["map/2018/level3"]
    assert layer.chunks is not None
    assert (layer.dtype, layer.rio.crs, layer.rio.nodata) == (source.dtype, source.rio.crs, 0)
    assert layer.attrs["flag_colors"] == source.attrs["flag_colors"]
    assert cut["map/2018"].attrs["legend"] == "corine"
    assert layer.rio.bounds() == tuple(layer.odc.geobox.boundingbox)
    mask = rasterio.features.geometry_mask([triangle], (HEIGHT, WIDTH), TRANSFORM, invert=True)
    wanted = np.where(mask, source.values, 0)[10:70, 10:60]
    assert np.array_equal(layer.values, wanted)
    reflectance = cut["imagery/2018/reflectance"]
    assert (reflectance.values[..., ~mask[10:70, 10:60]] == -32768).all()
    assert store_of(cut) == store_of(country)
    assert stored(layer) is None
    layer.rio.to_raster(tmp_path / "cut.tif")
    with rasterio.open(tmp_path / "cut.tif") as file:
        assert np.array_equal(file.read(1), wanted)
        assert file.transform.c == TRANSFORM.c + 100


def test_a_clipped_store_can_be_written_and_opened(country, tmp_path):
    cut = country["map/2018"].gf.clip(box(8, 8, 40, 40), crs="EPSG:3035").to_dataset().chunk(y=16, x=16)
    cut.to_zarr(tmp_path / "cut.zarr", consolidated=False)
    again = xr.open_zarr(tmp_path / "cut.zarr", decode_coords="all", consolidated=False)
    assert again.rio.crs == "EPSG:3035"
    assert np.array_equal(again["level1"], cut["level1"])


def test_geometries_of_all_forms_mean_the_same(country, tmp_path):
    shape = box(8, 8, 40, 40)
    there = frame(shape)
    there.to_file(tmp_path / "zone.gpkg")
    lonlat = shapely.segmentize(shape, 10)
    lonlat = shapely.transform(lonlat, TO_LONLAT.transform, interleaved=False)
    geojson = shapely.geometry.mapping(lonlat)
    forms = [
        (there, None),
        (there.geometry, None),
        (shape, "EPSG:3035"),
        (geojson, None),
        ({"type": "Feature", "geometry": geojson, "properties": {}}, None),
        (
            {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": geojson, "properties": None}]},
            None,
        ),
        (str(tmp_path / "zone.gpkg"), None),
        (tmp_path / "zone.gpkg", None),
    ]
    sums = [float(country["map/2018"].gf.areas(zone, levels=[1], crs=crs)["ha"].sum()) for zone, crs in forms]
    assert np.allclose(sums, sums[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("geometry", "crs", "said"),
    [
        (shapely.box(0, 0, 1, 1), None, "has no CRS"),
        (shapely.box(0, 0, 1, 1), "EPSG:4326", "no zone meets the map"),
        ({"type": "Nonsense"}, None, "not GeoJSON"),
        ("missing.gpkg", None, "cannot be read"),
        (7, None, "is no geometry"),
        (shapely.Point(0, 0), "EPSG:3035", "not a polygon"),
    ],
)
def test_what_is_no_geometry_is_said(country, geometry, crs, said):
    with pytest.raises(GridError, match=said):
        country.gf.clip(geometry, crs=crs)


def test_areas_of_the_country_are_by_epoch(country):
    table = country.gf.areas(levels=[1])
    assert sorted(table["epoch"].unique()) == ["2018", "2024"]
    for epoch, rows in table.groupby("epoch"):
        codes, counts = np.unique(country[f"map/{epoch}/level1"], return_counts=True)
        wanted = {int(c): n / 100 for c, n in zip(codes, counts, strict=True) if c}
        assert dict(zip(rows["code"], rows["ha"], strict=True)) == pytest.approx(wanted)
    zones = frame(box(0, 0, 48, 80), box(48, 0, 96, 80), names=["west", "east"])
    halves = country.gf.areas(zones, column="name", levels=[3])
    assert halves["ha"].sum() == pytest.approx(country.gf.areas(levels=[3])["ha"].sum())
    assert "epoch" not in country["labels/clc2018"].gf.areas()


# level, legend, compare


def test_level_gives_what_is_stored_and_makes_what_is_not(country):
    both = country.gf.level(2)
    assert both.dims == ("epoch", "y", "x")
    assert np.array_equal(both.sel(epoch="2024"), country["map/2024/level2"])
    lacking = country["map/2018"].to_dataset().drop_vars(["level1", "level2"])
    assert np.array_equal(lacking.gf.level(1), country["map/2018/level1"])
    assert lacking.gf.level(1).attrs["flag_values"] == [1, 2, 3, 4, 5]
    with pytest.raises(LegendError, match="not 4"):
        country.gf.level(4)


def test_a_legend_is_known_by_name_by_its_table_and_by_its_flags(country, tmp_path):
    assert country.gf.legend == gf.legend("corine")
    assert country["map/2018/level2"].gf.legend == gf.legend("corine")
    classes = [LegendClass(1, "Dry land", (200, 200, 0)), LegendClass(2, "Wet land", (0, 0, 200))]
    classes += [LegendClass(7, "Sand & stone", (250, 250, 0), 1), LegendClass(8, "Mire", (0, 0, 250), 2)]
    own = Legend("own", tuple(classes))
    store = gf.open(make_country(tmp_path / "own", own))
    assert store["map/2018"].gf.legend == own
    assert store.gf.legend == own
    x, y = TRANSFORM * np.argwhere(store["map/2018/level2"].values == 7)[0][::-1].astype(float) + np.array([5, -5])
    assert [c.name for c in store.gf.at(x, y, crs="EPSG:3035").maps["2018"].classes] == ["Dry land", "Sand & stone"]
    layer = store["map/2018/level2"]
    assert layer.gf.legend.label(7) == "Sand stone"  # CF flags have no other letters
    with pytest.raises(LegendError, match="no classes"):
        _ = store["imagery/2018"].gf.legend


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_comparison_sums_up_to_what_both_saw(country, level):
    found = country.gf.compare(level=level)
    a, b = (country[f"map/{epoch}/level{level}"].values for epoch in ("2018", "2024"))
    both = (a > 0) & (b > 0)
    assert found.total_ha == pytest.approx(both.sum() / 100)
    assert found.only_first_ha == pytest.approx(((a > 0) & (b == 0)).sum() / 100)
    assert found.only_second_ha == pytest.approx(((a == 0) & (b > 0)).sum() / 100)
    assert found.agreement == pytest.approx((a == b)[both].mean())
    for (row, col), ha in np.ndenumerate(found.matrix.to_numpy()):
        pair = (a == found.matrix.index[row]) & (b == found.matrix.columns[col])
        assert ha == pytest.approx(pair.sum() / 100)
    assert found.table["ha"].sum() == pytest.approx(found.total_ha)
    assert found.table["share"].sum() == pytest.approx(1)
    assert "% the same" in repr(found)
    assert "background:#" in found._repr_html_()


def test_maps_are_compared_with_labels_and_with_other_countries(country, tmp_path):
    by_path = country["map/2018"].gf.compare("labels/clc2018")
    by_node = country["map/2018"].gf.compare(country["labels/clc2018"])
    assert by_path.matrix.equals(by_node.matrix)
    assert (by_path.first, by_path.second) == ("Map 2018", "Labels clc2018")
    assert country.gf.compare(country).agreement == 1.0
    part = country["map/2024"].to_dataset().isel(x=slice(16, 64), y=slice(7, 80))
    cut = part.gf.compare(country["map/2024"], level=1)
    assert cut.agreement == 1.0
    assert cut.total_ha == pytest.approx((part["level1"].values > 0).sum() / 100)
    reverse = country["map/2024"].gf.compare(part, level=1)
    assert reverse.total_ha == pytest.approx(cut.total_ha)
    zone = frame(box(10.5, 10, 40, 30))
    within = country["map/2018"].gf.compare("map/2018", level=1, within=zone)
    assert within.total_ha == pytest.approx(country["map/2018"].gf.areas(zone, levels=[1])["ha"].sum())


def test_maps_that_do_not_match_are_refused(country, tmp_path):
    moved = country["map/2018/level1"].assign_coords(x=country["map/2018/level1"]["x"] + 3)
    with pytest.raises(GridError, match="do not share their pixels"):
        country["map/2018/level1"].gf.compare(moved)
    own = Legend("own", (LegendClass(1, "Land", (1, 2, 3)), LegendClass(2, "Water", (3, 2, 1))))
    other = gf.open(make_country(tmp_path / "other", own))
    with pytest.raises(LegendError, match="not the same classes"):
        country["map/2018"].gf.compare(other["map/2018"])
    with pytest.raises(StoreError, match="no group 'map/1999'"):
        country["map/2018"].gf.compare("map/1999")


# plot


def drawn_colours(ax):
    return {tuple(pixel) for pixel in np.asarray(ax.images[0].get_array()).reshape(-1, 4).tolist() if pixel[3]}


def legend_names(ax):
    return [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]


def test_a_map_is_drawn_in_its_colours_with_the_names_of_what_is_there(country):
    legend = gf.legend("corine")
    ax = country["map/2018"].gf.plot()
    codes = [c for c in np.unique(country["map/2018/level3"]).tolist() if c]
    assert drawn_colours(ax) == {(*legend.colour(c), 255) for c in codes}
    groups = sorted({legend.ancestor(c, 1) for c in codes})
    wanted = []
    for group in groups:
        wanted.append(f"{group} {legend.label(group)}")
        wanted += [f"{c} {legend.label(c)}" for c in codes if legend.ancestor(c, 1) == group]
    assert legend_names(ax) == [*wanted, "no data"]
    assert ax.get_title(loc="left") == "Map 2018, level 3"
    assert "km, EPSG:3035" in ax.get_xlabel()
    assert "Nobody" in ax.get_xlabel()


def test_everything_that_a_country_holds_can_be_drawn(country):
    import matplotlib.pyplot as plt

    for layer in (None, "map/2018", "labels/clc2018", "change/2018-2024", "imagery/2018", "map/2018/confidence"):
        assert country.gf.plot(layer).get_title(loc="left")
    assert country["map/2018/level1"].gf.plot().get_title(loc="left") == "Map 2018, level 1"
    assert country["map/2018"].gf.plot("second").get_title(loc="left") == "Map 2018, second"
    assert country["imagery/2018"].gf.plot(bands="false").get_title(loc="left").endswith("B08, B04, B03, summer")
    assert country.gf.level(1).sel(epoch="2018").gf.plot().images
    _, axes = plt.subplots()
    assert country["map/2024"].gf.plot(level=1, ax=axes) is axes
    assert country.gf.compare(level=1).plot().images
    plt.close("all")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda c: c.gf.plot("map/1999"), "no group 'map/1999'"),
        (lambda c: c["map/2018"].gf.plot("nonsense"), "no layer 'nonsense'"),
        (lambda c: c["map/2018"].gf.plot(level=7), "not 7"),
        (lambda c: c["imagery/2018"].gf.plot(bands=["B12", "B03", "B02"]), "no B12"),
        (lambda c: c["imagery/2018"].gf.plot(bands="infra"), "true, false"),
        (lambda c: c["imagery/2018"].gf.plot(period="winter"), "no period 'winter'"),
        (lambda c: c.gf.level(1).gf.plot(), "epoch"),
    ],
)
def test_what_cannot_be_drawn_is_said(country, ask, said):
    with pytest.raises(GeoflowError, match=said):
        ask(country)


# provenance, summary


def test_provenance_of_a_bare_store_says_what_is_missing(country):
    found = country.gf.provenance(*(TRANSFORM * (20.5, 30.5)), crs="EPSG:3035")
    assert found.tile == "r0000c0000"
    assert found.models[0].sha256 == "a" * 64
    assert found.periods[0].clear == int(country["imagery/2018/clear"][0, 30, 20])
    assert "scenes/2018.json is not beside the store" in found.missing
    assert "summary.json is not beside the store" in found.missing
    assert "not known" in repr(found)
    assert "outside" in repr(country.gf.provenance(0.0, 0.0))


def test_provenance_of_a_run_names_scenes_model_and_job(finished, tmp_path):
    _, out = finished
    tree = gf.open(out)
    geobox = tree["map/2018/level3"].odc.geobox
    row, col = np.argwhere(tree["map/2018/level3"].values > 0)[1000]
    x, y = geobox.transform * (col + 0.5, row + 0.5)
    found = tree.gf.provenance(x, y, crs="EPSG:3035")
    frozen = json.loads((out / "scenes/2018.json").read_text())
    receipt = json.loads((out / f"receipts/imagery/2018/{found.tile}.json").read_text())
    used = found.scenes.query("epoch == '2018' and used")
    assert set(used["id"]) <= set(receipt["scenes"])
    assert len(used)
    refused = found.scenes.query("epoch == '2018' and not used")
    assert set(refused["id"]) <= {entry["id"] for entry in frozen["refused"]}
    card = json.loads((out / "model/model.json").read_text())
    assert found.models[0].sha256 == card["sha256"]
    assert found.models[0].card["architecture"] == card["architecture"]
    assert found.job == "quickstart"
    assert {task.key for task in found.tasks} >= {"imagery/2018", "predict/2018", "change/2018-2024"}
    assert found.missing == ()
    assert card["sha256"][:12] in found._repr_html_()
    assert json.dumps(found.to_dict())


def test_the_summary_says_what_is_there(country):
    text = repr(country.gf)
    for word in ("96 x 80 pixels of 10 m", "EPSG:3035", "2018, 2024", "clc2018", "corine", "44 classes", "Nobody"):
        assert word in text
    assert "96 x 80" in country.gf._repr_html_()


def test_a_store_without_overviews_and_with_them_are_drawn_alike(folder, tmp_path):
    """A picture of few pixels is read from the overview: the full resolution can be gone."""
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run/country.zarr"
    _add_overviews(path)
    tree = gf.open(tmp_path / "run")
    shutil.rmtree(path / "map/2018/level1/c")
    for ax in (tree["map/2018"].gf.plot(level=1, max_px=20), tree["map/2018/level1"].gf.plot(max_px=20)):
        half = tree["overviews/2/map/2018/level1"].values
        seen = {(*gf.legend("corine").colour(int(c)), 255) for c in np.unique(half) if c}
        assert drawn_colours(ax) <= seen
        assert drawn_colours(ax)
    assert tree.gf.summary.facts[-2] == ("Overviews", "1 : 2, 4")


def _add_overviews(path):
    import zarr

    from geoflow.store.pyramid import factors_of, halve, overview_group
    from geoflow.store.zarr import Group, Variable, consolidate, open_for_writing

    whole = open_for_writing(path)
    source = zarr.open_group(path, mode="r")["map/2018"]
    names = ("level1", "level2", "level3")
    arrays = {name: source[name][:] for name in names}
    variables = tuple(Variable(n, str(arrays[n].dtype), 0, attrs=dict(source[n].attrs)) for n in names)
    for factor in factors_of(whole.grid)[:2]:
        arrays = halve(arrays, dict.fromkeys(names, 0))
        whole.coarser(factor).ensure_group(
            overview_group(Group("map/2018", variables, attrs={"legend": "corine"}), factor)
        )
        group = zarr.open_group(path, mode="r+", path=f"overviews/{factor}/map/2018", use_consolidated=False)
        for name in names:
            group[name][:] = arrays[name]
    consolidate(path)


def test_points_are_located_without_a_country():
    from odc.geo.geobox import GeoBox

    places = locate(GeoBox((10, 10), TRANSFORM, "EPSG:3035"), [5_120_005.0], [4_019_995.0], "EPSG:3035")
    assert (places.rows[0], places.cols[0], bool(places.inside[0])) == (0, 0, True)
    assert TO_LONLAT.transform(5_120_005.0, 4_019_995.0) == pytest.approx((places.lon[0], places.lat[0]))
