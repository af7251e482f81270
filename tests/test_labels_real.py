"""Labels from real CORINE files and from a real categorical raster."""

import os
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox
from scipy.ndimage import maximum_filter, minimum_filter

from geoflow.labels import check_labels, load_label_tile, load_labels
from geoflow.legends import legend


@pytest.fixture
def data() -> Path:
    root = os.environ.get("GEOFLOW_REAL_DATA")
    if root is None:
        pytest.skip("set GEOFLOW_REAL_DATA to the folder with the real data sets")
    return Path(root)


def at_borders(codes: np.ndarray) -> np.ndarray:
    """Pixels that have a neighbour of another class."""
    return maximum_filter(codes, 3) != minimum_filter(codes, 3)


def test_vector_and_raster_of_lanjaron_agree_on_the_grid_of_the_raster(data):
    folder = data / "clc-lanjaron-spain-with-landsat8"
    with rasterio.open(folder / "clc.tif") as src:  # EPSG:3042, whose axes are northing, easting
        raw, geobox = src.read(1), GeoBox(src.shape, src.transform, "EPSG:25830")
    vector = load_labels(folder / "clc.gpkg", geobox, "corine").values
    raster = load_labels(folder / "clc.tif", geobox, "corine").values
    np.testing.assert_array_equal(raster, np.where(raw == 2**32 - 1, 0, raw))
    differ = vector != raster
    assert differ.sum() <= 10  # of 353,130
    assert not (differ & ~at_borders(raster)).any()
    # Why they differ: the centre lies within half a step of the lattice from a border.
    shapes = pyogrio.read_dataframe(folder / "clc.gpkg", layer="clc").geometry.values
    rows, columns = np.nonzero(differ)
    centres = shapely.points(*(geobox.transform * (columns + 0.5, rows + 0.5)))
    far = shapely.distance(centres, shapely.union_all(shapely.boundary(shapes)))
    assert far.max() <= 25 / 1024 / 2 * 2**0.5
    assert load_label_tile(folder / "clc.gpkg", geobox, legend("corine")).overlap_px == 0


@pytest.mark.parametrize("crs", ["EPSG:32630", "EPSG:3035", "EPSG:3042", "EPSG:4326"])
def test_they_agree_but_for_borders_on_any_grid(data, crs):
    folder = data / "clc-lanjaron-spain-with-landsat8"
    geobox = GeoBox.from_bbox(BoundingBox(453_400, 4_085_000, 459_400, 4_091_000, "EPSG:25830"), resolution=20)
    geobox = geobox.to_crs(crs, resolution=0.0002 if crs == "EPSG:4326" else 20)
    vector, raster = (load_labels(folder / name, geobox, "corine").values for name in ("clc.gpkg", "clc.tif"))
    both = (vector != 0) & (raster != 0)
    assert both.mean() > 0.8
    # a neck narrower than a source pixel of 25 m is a border in the vector alone
    assert not ((vector != raster) & both & ~at_borders(raster) & ~at_borders(vector)).any()
    assert (vector == raster)[both].mean() > 0.965


def test_the_official_raster_of_guadeloupe_holds_the_right_codes(data):
    path = data / "clc2018-guadeloupe-raster" / "U2018_CLC2018_V2020_20u1_FR_GLP.tif"
    with rasterio.open(path) as src:
        raw, geobox = src.read(1), GeoBox(src.shape, src.transform, src.crs)
    assert check_labels(path, geobox, "corine").coding == "grid_code"
    labels = load_labels(path, geobox, "corine")
    corine = legend("corine")
    for grid_code in np.unique(raw):
        assert (labels.values[raw == grid_code] == corine.grid_codes[int(grid_code)]).all()
    assert (labels == 523).sum() == (raw == 44).sum() > 100_000


def test_scene_classes_of_slovenia_with_their_own_legend(data):
    folder = data / "s2-slovenia" / "labels"
    with rasterio.open(folder / "scl.tif") as src:
        raw, geobox = src.read(1), GeoBox(src.shape, src.transform, src.crs)
    labels = load_labels(folder / "scl.tif", geobox, folder / "legend.csv")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels.values, raw)
