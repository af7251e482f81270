"""The sample of a map does not depend on its chunks, is uniform, survives a file, and its figures are right."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rioxarray  # noqa: F401  (the .rio accessor)
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr
from shapely.geometry import box

from geoflow.errors import GeoflowError, GridError, LabelError, LegendError
from geoflow.legends import legend
from geoflow.mapping.planning import allocate
from geoflow.mapping.references import sample_reference
from geoflow.mapping.samplefile import read_sample, write_sample
from geoflow.mapping.sampling import (
    Sample,
    add_map,
    assess,
    compare_maps,
    count_strata,
    draw_sample,
)

CORINE = legend("corine")
GEOBOX = GeoBox.from_bbox((4_000_000, 3_000_000, 4_001_400, 3_001_200), "EPSG:3035", resolution=20)
N = {"1": 6, "2": 8, "3": 10}


def _map(codes: np.ndarray | None = None, dtype: type = np.uint16) -> xr.DataArray:
    rng = np.random.default_rng(5)
    values = rng.choice([0, 112, 211, 231, 311, 312], GEOBOX.shape) if codes is None else codes
    return wrap_xr(values.astype(dtype), GEOBOX, nodata=0)


def _mask() -> xr.DataArray:
    return wrap_xr(np.random.default_rng(6).choice([0, 1, 2], GEOBOX.shape, p=[0.1, 0.8, 0.1]).astype(np.uint8), GEOBOX)


def _filled(sample: Sample, wrong: int = 0) -> Sample:
    """The map's own codes as reference, with the first ``wrong`` points of class 512."""
    reference = sample.points["map_level3"].copy()
    reference.iloc[:wrong] = 512
    return Sample(sample.points.assign(reference=reference), sample.strata)


def test_strata_are_counted() -> None:
    codes, mask = _map(), _mask()
    table = count_strata(codes.chunk({"y": 17, "x": 31}), CORINE, level=1)
    groups = CORINE.to_level(codes.values, 1)
    assert table["name"].tolist() == ["1", "2", "3"]
    assert table["pixels"].tolist() == [(groups == c).sum() for c in (1, 2, 3)]
    assert table["area_ha"].tolist() == pytest.approx((table["pixels"] * 0.04).tolist())
    crossed = count_strata(codes, CORINE, 1, mask).set_index("name")
    assert crossed.loc["2 changed", "pixels"] == ((groups == 2) & (mask.values == 2)).sum()
    assert crossed.loc["2", "pixels"] == ((groups == 2) & (mask.values != 2)).sum()
    assert crossed["changed"].tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("chunks", [{"y": 60, "x": 70}, {"y": 7, "x": 70}, {"y": 60, "x": 9}, {"y": 13, "x": 11}])
@pytest.mark.parametrize("changed", [False, True])
def test_the_draw_does_not_depend_on_the_chunks(chunks: dict, changed: bool) -> None:
    codes, mask = _map(), _mask() if changed else None
    n = {**N, "2 changed": 5} if changed else N
    whole = draw_sample(codes, CORINE, n, seed=3, level=1, changed=mask)
    parts = draw_sample(codes.chunk(chunks), CORINE, n, 3, 1, None if mask is None else mask.chunk({"y": 8, "x": 8}))
    pd.testing.assert_frame_equal(pd.DataFrame(whole.points), pd.DataFrame(parts.points))
    pd.testing.assert_frame_equal(whole.strata, parts.strata)


def test_points_are_pixel_centres_of_their_stratum() -> None:
    codes, mask = _map(), _mask()
    sample = draw_sample(codes, CORINE, {**N, "3 changed": 9}, 1, 1, mask)
    points = sample.points
    assert points.crs == "EPSG:3035"
    assert points["id"].tolist() == list(range(1, 34))
    assert not points.geometry.duplicated().any()
    at = {"x": xr.DataArray(points.geometry.x, dims="p"), "y": xr.DataArray(points.geometry.y, dims="p")}
    held = codes.sel(at).values  # exact: raises unless these are pixel centres
    assert points["map_level3"].tolist() == held.tolist()
    assert points["map_level1"].tolist() == (held // 100).tolist()
    turned = np.where(mask.sel(at).values == 2, " changed", "")
    assert points["stratum"].tolist() == [f"{c}{t}" for c, t in zip(held // 100, turned, strict=True)]
    assert points.groupby("stratum").size().to_dict() == {**N, "3 changed": 9}
    assert points["reference"].isna().all()
    degrees = points.geometry.to_crs(4326)
    assert points["lon"].tolist() == pytest.approx(degrees.x.tolist())
    assert sample.pixel_area_m2 == pytest.approx(400)


def test_the_draw_of_a_stratum_is_its_own_and_order_is_mixed() -> None:
    some, more = (draw_sample(_map(), CORINE, n, 3, 1).points for n in (N, {**N, "1": 30}))
    places = [set(p.loc[p["stratum"] == "3", "geometry"].to_wkt()) for p in (some, more)]
    assert places[0] == places[1]
    runs = (more["stratum"] != more["stratum"].shift()).sum()
    assert runs > 10
    other = draw_sample(_map(), CORINE, N, 4, 1).points
    assert set(other.geometry.to_wkt()) != set(some.geometry.to_wkt())


def test_the_draw_is_uniform() -> None:
    small = GEOBOX[:6, :5]
    codes = wrap_xr(np.full((6, 5), 311, np.uint16), small)
    drawn = [draw_sample(codes, CORINE, {"3": 6}, seed, 1).points for seed in range(150)]
    hits = pd.concat(drawn).geometry.to_wkt().value_counts()
    assert len(hits) == 30
    # 900 draws on 30 pixels; a chi-square of 29 degrees of freedom exceeds 58.3 once in a thousand
    assert ((hits - 30) ** 2 / 30).sum() < 58.3


def test_a_whole_stratum_can_be_drawn() -> None:
    codes = _map()
    size = int(count_strata(codes, CORINE, 3).set_index("name").loc["112", "pixels"])
    assert not draw_sample(codes, CORINE, {"112": size}, 0, 3).points.geometry.duplicated().any()
    with pytest.raises(GeoflowError, match=f"{size + 1} of the {size} pixels of '112'"):
        draw_sample(codes, CORINE, {"112": size + 1}, 0, 3)
    with pytest.raises(GeoflowError, match="no strata \\['512'\\]"):
        draw_sample(codes, CORINE, {"512": 1}, 0, 3)
    with pytest.raises(GeoflowError, match="no units"):
        draw_sample(codes, CORINE, {"112": 0}, 0, 3)


def test_maps_that_cannot_be_sampled() -> None:
    with pytest.raises(LegendError, match="31"):
        count_strata(_map(np.full(GEOBOX.shape, 31)), CORINE, 3)
    with pytest.raises(LegendError, match="999"):
        count_strata(_map(np.full(GEOBOX.shape, 999)), CORINE, 1)
    with pytest.raises(LegendError, match="integers"):
        count_strata(_map(dtype=np.float32), CORINE, 1)
    with pytest.raises(GeoflowError, match="empty"):
        count_strata(_map(np.zeros(GEOBOX.shape)), CORINE, 1)
    with pytest.raises(GridError, match="change mask"):
        count_strata(_map(), CORINE, 1, _mask()[1:])
    degrees = GeoBox.from_bbox((10, 50, 11, 51), "EPSG:4326", resolution=0.1)
    with pytest.raises(GridError, match="metres"):
        count_strata(wrap_xr(np.full(degrees.shape, 311, np.uint16), degrees), CORINE, 1)


@pytest.mark.parametrize("blind", [False, True])
def test_a_sample_survives_its_file(tmp_path: Path, blind: bool) -> None:
    sample = _filled(draw_sample(_map(), CORINE, N, 3, 1), wrong=4)
    path = write_sample(sample, tmp_path / "s.gpkg", blind)
    seen = pyogrio.read_dataframe(path, layer="points")
    assert {"id", "reference", "confidence", "comment", "interpreter", "lon", "lat"} <= set(seen.columns)
    assert ("map_level1" in seen.columns or "stratum" in seen.columns) is not blind
    back = read_sample(path, CORINE)
    order = list(sample.points.columns)
    pd.testing.assert_frame_equal(
        pd.DataFrame(back.points[order]).drop(columns=["geometry"]),
        pd.DataFrame(sample.points).drop(columns=["geometry"]),
        check_dtype=False,
    )
    assert back.points["reference"].dtype == "Int64"
    assert back.points.geometry.geom_equals_exact(sample.points.geometry, 1e-6).all()
    pd.testing.assert_frame_equal(back.strata, sample.strata, check_dtype=False)
    assert assess(back, CORINE).to_dict() == assess(sample, CORINE).to_dict()
    with pytest.raises(GeoflowError, match="exists"):
        write_sample(sample, path)


def _rewrite(path: Path, points: gpd.GeoDataFrame) -> None:
    pyogrio.write_dataframe(points, path, layer="points", driver="GPKG")


def test_what_interpreters_may_get_wrong(tmp_path: Path) -> None:
    sample = _filled(draw_sample(_map(), CORINE, N, 3, 1))
    path = write_sample(sample, tmp_path / "s.gpkg", blind=True)
    points = pyogrio.read_dataframe(path, layer="points")
    _rewrite(path, points.assign(reference=points["reference"].where(points["id"] > 3)))
    with pytest.raises(GeoflowError, match="3 of 24 points have no reference, ids 1, 2, 3"):
        read_sample(path, CORINE)
    assert len(read_sample(path, CORINE, allow_missing=True).points) == 21
    _rewrite(path, points.assign(reference=points["reference"].where(points["id"] != 7, 777)))
    with pytest.raises(LegendError, match=r"777.*id 7"):
        read_sample(path, CORINE)
    _rewrite(path, points.assign(reference=points["reference"].astype("Int64").astype(str)))
    assert read_sample(path, CORINE).points["reference"].dtype == "Int64"
    _rewrite(path, points.iloc[1:])
    with pytest.raises(GeoflowError, match="added or removed: ids 1"):
        read_sample(path, CORINE)
    _rewrite(path, pd.concat([points, points.iloc[:1]]))
    with pytest.raises(GeoflowError, match="repeated"):
        read_sample(path, CORINE)


def test_files_that_are_no_samples(tmp_path: Path) -> None:
    with pytest.raises(GeoflowError, match="no such file"):
        read_sample(tmp_path / "none.gpkg", CORINE)
    (tmp_path / "text.gpkg").write_text("hello")
    with pytest.raises(GeoflowError, match="no sample"):
        read_sample(tmp_path / "text.gpkg", CORINE)
    pyogrio.write_dataframe(pd.DataFrame({"a": [1]}), tmp_path / "other.gpkg", layer="a")
    with pytest.raises(GeoflowError, match="layers"):
        read_sample(tmp_path / "other.gpkg", CORINE)


def test_two_maps_are_assessed_and_compared_on_one_sample() -> None:
    codes = _map()
    table = count_strata(codes, CORINE, 1)
    n = dict(zip(table["name"], allocate(120, table["pixels"], minimum=30).tolist(), strict=True))
    sample = _filled(draw_sample(codes, CORINE, n, 3, 1))
    worse = codes.copy(data=np.where(codes.values == 311, 312, codes.values).astype(np.uint16))
    coarse = worse.chunk({"y": 16, "x": 16})
    sample = add_map(sample, coarse, CORINE, "corine")
    own = assess(sample, CORINE, level=3)
    assert float(own.overall.value) == 1
    assert own.area_ha.value.sum() == pytest.approx(table["area_ha"].sum())
    other = assess(sample, CORINE, 3, "corine")
    share = (sample.points["map_level3"] == 311)[sample.points["stratum"] == "3"].mean()
    weight = table.set_index("name").loc["3", "pixels"] / table["pixels"].sum()
    assert float(other.overall.value) == pytest.approx(1 - share * weight)
    assert float(assess(sample, CORINE, 1, "corine").overall.value) == 1
    test = compare_maps(sample, CORINE, "corine", level=3)
    assert float(test.difference.value) == pytest.approx(share * weight)
    assert test.p_value < 0.001
    assert test.only_second == 0
    with pytest.raises(GeoflowError, match="'esa_level1'"):
        assess(sample, CORINE, 1, "esa")


def test_a_reference_may_be_coarse_but_not_coarser_than_asked() -> None:
    sample = _filled(draw_sample(_map(), CORINE, N, 3, 1))
    sample.points.loc[0, "reference"] = 3
    assert assess(sample, CORINE, 1).units == 24
    with pytest.raises(GeoflowError, match="ids 1 are coarser"):
        assess(sample, CORINE, 2)


def test_a_map_that_lacks_points_is_an_error() -> None:
    sample = _filled(draw_sample(_map(), CORINE, N, 3, 1))
    part = add_map(sample, _map()[:30], CORINE, "part")
    with pytest.raises(GeoflowError, match="part_level1 is empty at"):
        assess(part, CORINE, 1, "part")


def test_a_reference_raster(tmp_path: Path) -> None:
    codes = _map()
    sample = draw_sample(codes, CORINE, N, 3, 1)
    codes.rio.to_raster(tmp_path / "r.tif")
    found = sample_reference(sample, tmp_path / "r.tif", CORINE)
    assert found.points["reference"].tolist() == sample.points["map_level3"].tolist()
    assert sample.points["reference"].isna().all()
    back = {code: grid for grid, code in CORINE.grid_codes.items()}
    grid = codes.copy(data=np.vectorize(lambda c: back.get(c, 0) if c else 0)(codes.values).astype(np.uint8))
    grid.rio.to_raster(tmp_path / "g.tif")
    again = sample_reference(sample, tmp_path / "g.tif", CORINE, "grid_code")
    assert again.points["reference"].tolist() == sample.points["map_level3"].tolist()
    with pytest.raises(LabelError, match="no such file"):
        sample_reference(sample, tmp_path / "none.tif", CORINE)


def test_reference_polygons_in_another_crs(tmp_path: Path) -> None:
    sample = draw_sample(_map(), CORINE, N, 3, 1)
    halves = [box(4_000_000, 3_000_000, 4_000_700, 3_001_200), box(4_000_700, 3_000_000, 4_001_000, 3_001_200)]
    shapes = gpd.GeoDataFrame({"kind": ["Sea and ocean", "311"]}, geometry=halves, crs=3035).to_crs(32632)
    shapes.to_file(tmp_path / "p.gpkg")
    points = sample_reference(sample, tmp_path / "p.gpkg", CORINE, "kind").points
    x = points.geometry.x
    assert (points.loc[x < 4_000_690, "reference"] == 523).all()
    assert (points.loc[(x > 4_000_710) & (x < 4_000_990), "reference"] == 311).all()
    assert points.loc[x > 4_001_010, "reference"].isna().all()
    with pytest.raises(LabelError, match="'class'"):
        sample_reference(sample, tmp_path / "p.gpkg", CORINE, "class")
    shapes.assign(kind="moon").to_file(tmp_path / "m.gpkg")
    with pytest.raises(LegendError, match="moon"):
        sample_reference(sample, tmp_path / "m.gpkg", CORINE, "kind")
    pd.concat([shapes, shapes.assign(kind="112")]).to_file(tmp_path / "o.gpkg")
    with pytest.raises(LabelError, match="different classes"):
        sample_reference(sample, tmp_path / "o.gpkg", CORINE, "kind")
