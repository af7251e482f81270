"""Patches of change as polygons, their files, and the table of transitions: the same however the map is cut."""

from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.features import geometry_mask
from rasterio.transform import from_origin
from scipy import ndimage

import geoflow as gf
from geoflow.errors import GridError, LegendError
from geoflow.mapping.changepatches import as_frame, batches, join, vectorise
from geoflow.mapping.patchfile import write_polygons

CORINE = gf.legend("corine")
PAIRS = [(312, 324), (211, 112), (131, 512)]


def change_map(state: np.ndarray, crs: str = "EPSG:3035") -> xr.Dataset:
    """A change map of these transitions: -1 not compared, 0 unchanged, n the n-th of `PAIRS`."""
    geobox = GeoBox(state.shape, from_origin(4_600_000, 2_900_000, 10, 10), crs)
    codes = np.array([(0, 0), *PAIRS], np.uint16)[np.maximum(state, 0)]
    rng = np.random.default_rng(1)
    planes = {
        "change": np.where(state < 0, 0, np.where(state > 0, 2, 1)).astype(np.uint8),
        "from_code": codes[..., 0],
        "to_code": codes[..., 1],
        "confidence": np.where(state < 0, 255, rng.integers(50, 101, state.shape)).astype(np.uint8),
    }
    return xr.Dataset({k: (("y", "x"), v) for k, v in planes.items()}, coords=xr_coords(geobox))


def cut(change: xr.Dataset, height: int, width: int, order: int = 0) -> geopandas.GeoDataFrame:
    """The polygons, block by block, in some order."""
    geobox = change["change"].odc.geobox
    rows, cols = change.sizes["y"], change.sizes["x"]
    parts = [
        (slice(t, min(t + height, rows)), slice(x, min(x + width, cols)))
        for t in range(0, rows, height)
        for x in range(0, cols, width)
    ]
    blocks = [vectorise({n: v.values for n, v in change.isel(y=y, x=x).items()}, y, x, geobox) for y, x in parts]
    np.random.default_rng(order).shuffle(blocks)
    frames = [as_frame(p, CORINE, geobox.crs) for p in batches(join(blocks), 3)]
    return pd.concat(frames).sort_values("id", ignore_index=True)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    block=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_blocks_do_not_alter_the_patches(seed: int, shape: tuple[int, int], block: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    state = rng.choice([-1, 0, 0, 0, 1, 1, 2, 3], shape)
    change = change_map(state)
    whole, parts = gf.change_patches(change, CORINE), cut(change, *block, order=seed)
    pd.testing.assert_frame_equal(whole.drop(columns="geometry"), parts.drop(columns="geometry"))
    assert whole.geometry.is_valid.all()
    assert parts.geometry.is_valid.all()
    assert shapely.equals(whole.geometry.values, parts.geometry.values).all()
    for at, (first, second) in enumerate(PAIRS):
        mine = whole[(whole.from_code == first) & (whole.to_code == second)]
        labels, count = ndimage.label(state == at + 1, np.ones((3, 3)))
        assert len(mine) == count
        assert sorted(mine.pixels) == sorted(np.bincount(labels.ravel())[1:])
        for row in mine.itertuples():
            inside = geometry_mask([row.geometry], state.shape, change["change"].odc.geobox.transform, invert=True)
            assert (inside == (labels == labels[row.id >> 32, row.id % 2**32])).all()
            assert row.area_ha == pytest.approx(row.geometry.area / 1e4)
            assert row.probability == pytest.approx(change["confidence"].values[inside].mean())
            assert row.probability_min == change["confidence"].values[inside].min()


def test_areas_are_those_on_the_ground() -> None:
    change = change_map(np.full((40, 40), 1), "EPSG:3857")
    patch = gf.change_patches(change, CORINE)
    assert len(patch) == 1
    # Mercator stretches: at this latitude, some 25 degrees north, areas look larger than they are.
    assert patch.area_ha[0] < 0.9 * patch.geometry.area[0] / 1e4
    assert patch.area_ha[0] == pytest.approx(gf.transitions(change, None, CORINE)["ha"].sum(), rel=1e-9)


def test_a_ring_around_four_blocks_is_one_patch_with_a_hole() -> None:
    state = np.zeros((12, 12), int)
    state[2:10, 2:10] = 1
    state[4:8, 4:8] = 0
    found = cut(change_map(state), 6, 6)
    assert len(found) == 1
    assert found.geometry[0].geom_type == "Polygon"
    assert len(found.geometry[0].interiors) == 1
    assert (found.from_name[0], found.to_name[0]) == (CORINE.label(312), CORINE.label(324))
    assert found.id[0] == 2 * 2**32 + 2


def test_files_hold_the_patches(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    change = change_map(rng.choice([0, 0, 1, 2], (40, 40)))
    wanted = gf.change_patches(change, CORINE)
    pieces = [wanted.iloc[a : a + 7] for a in range(0, len(wanted), 7)]
    package, parquet = write_polygons(iter(pieces), tmp_path / "change", "2018-2024", "change")
    assert sorted(p.name for p in (tmp_path / "change").iterdir()) == ["2018-2024.gpkg", "2018-2024.parquet"]
    for found in (geopandas.read_file(package, layer="change"), geopandas.read_parquet(parquet)):
        assert found.crs == wanted.crs
        assert shapely.equals(found.geometry.values, wanted.geometry.values).all()
        pd.testing.assert_frame_equal(
            found.drop(columns="geometry"), wanted.drop(columns="geometry"), check_dtype=False
        )
    assert pq.ParquetFile(parquet).num_row_groups == len(pieces)


def test_no_change_is_an_empty_file(tmp_path: Path) -> None:
    empty = gf.change_patches(change_map(np.zeros((5, 5), int)), CORINE)
    assert len(empty) == 0
    package, parquet = write_polygons(iter([empty]), tmp_path, "none", "change")
    for found in (geopandas.read_file(package), geopandas.read_parquet(parquet)):
        assert len(found) == 0
        assert set(found.columns) == set(empty.columns)
        assert found.crs == empty.crs


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    wanted = gf.change_patches(change_map(np.full((5, 5), 1)), CORINE)
    package, _ = write_polygons(iter([wanted]), tmp_path, "x", "change")
    before = package.read_bytes()

    def broken():
        yield wanted
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write_polygons(broken(), tmp_path, "x", "change")
    assert package.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.gpkg", "x.parquet"]


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), chunk=st.integers(3, 30), line=st.floats(10, 290))
def test_transitions_of_zones_that_tile_the_map_sum_to_it(seed: int, chunk: int, line: float) -> None:
    rng = np.random.default_rng(seed)
    state = rng.choice([-1, 0, 0, 1, 2, 3], (25, 30))
    change = change_map(state)
    left, bottom, right, top = change["change"].odc.geobox.boundingbox
    zones = geopandas.GeoDataFrame(
        {"name": ["west", "east"]},
        geometry=[shapely.box(left, bottom, left + line, top), shapely.box(left + line, bottom, right, top)],
        crs="EPSG:3035",
    )
    whole = gf.transitions(change.chunk(y=chunk, x=chunk), None, CORINE)
    parts = gf.transitions(change, zones, CORINE, "name")
    key = ["from_code", "to_code"]
    pd.testing.assert_series_equal(parts.groupby(key)["ha"].sum(), whole.groupby(key)["ha"].sum(), rtol=1e-9)
    for at, pair in enumerate([(0, 0), *PAIRS]):
        counted = whole[(whole.from_code == pair[0]) & (whole.to_code == pair[1])]["ha"].sum()
        assert counted == pytest.approx((state == at).sum() * 0.01)
    assert parts.groupby("zone")["share"].sum().to_numpy() == pytest.approx(1)


def test_what_is_no_change_map_is_refused() -> None:
    change = change_map(np.full((4, 4), 1))
    with pytest.raises(GridError, match="lacks to_code"):
        gf.transitions(change.drop_vars("to_code"), None, CORINE)
    with pytest.raises(GridError, match="lacks confidence"):
        gf.change_patches(change.drop_vars("confidence"), CORINE)
    change["to_code"][0, 0] = 777
    with pytest.raises(LegendError, match="777"):
        gf.transitions(change, None, CORINE)
