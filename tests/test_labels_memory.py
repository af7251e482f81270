"""A national file is never in a worker's memory as a whole, and what a tile does not meet is not read."""

import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pyogrio.raw
import pytest
import shapely
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox
from test_labels import CRS, LEFT, TOP

from geoflow.labels.features import read_features

CELL_M, VERTICES = 500.0, 24
MANY, FEW = 100_000, 25_000
MOST_MB = 20
"""What four times the polygons may cost more. A GeoPackage costs nothing more; GeoParquet up to 16 MB, which pyarrow's
allocator keeps. The vertices of the other 75,000 polygons alone are 29 MB, several times that as shapes."""

MEASURE = """
import re, sys
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox
from geoflow.labels import load_label_tile
from geoflow.legends import legend
left, bottom, right, top = map(float, sys.argv[2:])
grid = GeoBox.from_bbox(BoundingBox(left, bottom, right, top, "EPSG:32633"), resolution=10)
found = load_label_tile(sys.argv[1], grid, legend("corine"))
assert (found.codes != 0).mean() > 0.5
# Not getrusage: a process inherits the peak of the one that started it.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""

MEASURE_POOL = """
import sys
import pyarrow
from geoflow.labels.features import read_features
fids, _, _ = read_features(sys.argv[1], None, ["Code_18"], tuple(map(float, sys.argv[2:])))
print(len(fids), pyarrow.default_memory_pool().max_memory())
"""


def blobs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Polygons in a square of cells, row by row, and their codes."""
    across = int(np.ceil(np.sqrt(count)))
    number = np.arange(count)
    centres = np.stack([LEFT + number % across * CELL_M, TOP - number // across * CELL_M], axis=1)
    angles = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    rings = centres[:, None] + 0.48 * CELL_M * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return shapely.polygons(rings), np.where(number % 2, "311", "512").astype(object)


def national(path: Path, count: int, **options) -> Path:
    shapes, codes = blobs(count)
    if path.suffix == ".parquet":
        geopandas.GeoDataFrame({"Code_18": codes}, geometry=shapes, crs=CRS).to_parquet(path, **options)
    else:
        fields = {"field_data": [codes], "fields": ["Code_18"]}
        pyogrio.raw.write(str(path), shapely.to_wkb(shapes), **fields, geometry_type="Polygon", crs=CRS)
    return path


def peak_mb(path: Path, count: int) -> float:
    """Of a process of its own that puts a tile in the middle of the file on its grid."""
    half = np.sqrt(count) * CELL_M / 2
    bounds = (LEFT + half - 2560, TOP - half - 2560, LEFT + half + 2560, TOP - half + 2560)
    bounds = [round(v / 10) * 10 for v in bounds]
    command = [sys.executable, "-c", MEASURE, path, *bounds]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".gpkg", {}),
        pytest.param(".parquet", {}, marks=pytest.mark.slow),
        pytest.param(".parquet", {"row_group_size": 10_000, "write_covering_bbox": True}, marks=pytest.mark.slow),
    ],
    ids=["GeoPackage", "GeoParquet of one row group", "GeoParquet with a covering"],
)
def test_a_tile_needs_no_more_memory_of_a_larger_file(tmp_path, suffix, options):
    peaks = [peak_mb(national(tmp_path / f"{n}{suffix}", n, **options), n) for n in (FEW, MANY)]
    assert peaks[1] - peaks[0] < MOST_MB, peaks


def test_a_row_group_is_read_bit_by_bit(tmp_path):
    """A file may be one row group of gigabytes; its bytes are not fetched at once."""
    path = national(tmp_path / "a.parquet", MANY)
    command = [sys.executable, "-c", MEASURE_POOL, path, LEFT, TOP - 5100, LEFT + 1000, TOP - 4900]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, most = map(int, done.stdout.split())
    assert found > 0
    assert most < 0.7 * path.stat().st_size  # 0.45; 1.4 where pyarrow may fetch ahead


@pytest.mark.parametrize("covering", [False, True])
@pytest.mark.parametrize("rows", [7, 1000, 10_000])
def test_features_near_an_area_are_found_in_any_geoparquet(tmp_path, covering, rows):
    path = national(tmp_path / "a.parquet", 3000, row_group_size=rows, write_covering_bbox=covering)
    shapes, codes = blobs(3000)
    bounds = (LEFT + 3000, TOP - 9100, LEFT + 5200, TOP - 7000)
    expected = np.flatnonzero(shapely.intersects(shapely.box(*bounds), shapely.envelope(shapes)))
    fids, found, (values,) = read_features(str(path), None, ["Code_18"], bounds)
    np.testing.assert_array_equal(fids, expected)
    assert shapely.equals(found, shapes[expected]).all()
    np.testing.assert_array_equal(values, codes[expected])


def test_row_groups_that_lie_elsewhere_are_not_read(tmp_path, monkeypatch):
    import pyarrow.parquet

    path = national(tmp_path / "a.parquet", 2500, row_group_size=50, write_covering_bbox=True)  # one row of cells each
    read = []
    batches = pyarrow.parquet.ParquetFile.iter_batches

    def watched(self, *args, **kwargs):
        read.extend(kwargs["row_groups"])
        return batches(self, *args, **kwargs)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", watched)
    read_features(str(path), None, ["Code_18"], (LEFT, TOP - 5100, LEFT + 1000, TOP - 4900))
    assert read == [10]


def test_a_geobox_beyond_all_row_groups_is_empty(tmp_path):
    path = national(tmp_path / "a.parquet", 500, row_group_size=50)
    fids, shapes, (values,) = read_features(str(path), None, ["Code_18"], (0, 0, 1, 1))
    assert len(fids) == len(shapes) == len(values) == 0
    grid = GeoBox.from_bbox(BoundingBox(0, 0, 100, 100, CRS), resolution=10)
    from geoflow.labels import load_labels

    assert (load_labels(path, grid, "corine") == 0).all()
