"""A process that composes needs the memory that the plan says, however many tiles it composes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from odc.geo.geom import box
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from geoflow.imagery import CompositeOptions, Period, load_catalog
from geoflow.jobs.clusters import WORKER_ENVIRONMENT
from geoflow.jobs.estimate import composite_bytes

pytestmark = pytest.mark.slow

SIDE, LEFT, TOP, EPSG = 2048, 500_000, 5_200_020, 32633
BANDS = ("B02", "B08")

COMPOSE = """
import json, sys
from datetime import date
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin
from geoflow.imagery import CompositeOptions, Period, composite_tile, load_catalog

told = json.load(sys.stdin)
periods = (Period("june", date(2024, 6, 1), date(2024, 6, 30)),)
options = CompositeOptions(periods, tuple(told["bands"]), method=told["method"])
for tile in range(told["tiles"]):  # each a little to the side, on a grid that is not the scenes'
    place = from_origin(told["left"] + 5 + 10 * tile, told["top"] - 5, 10, 10)
    geobox = GeoBox((told["side"], told["side"]), place, told["epsg"])
    made = composite_tile(told["items"], geobox, options, load_catalog("sample"))
    made = made.compute(scheduler="threads", num_workers=told["threads"])
    assert int((made.clear > 0).sum()) > 0.9 * told["side"] ** 2
    del made
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
"""


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Six scenes as large as the tile, of noise."""
    folder, catalog = tmp_path_factory.mktemp("scenes"), load_catalog("sample")
    bounds = transform_bounds(f"EPSG:{EPSG}", "EPSG:4326", LEFT, TOP - SIDE * 10, LEFT + SIDE * 10, TOP)
    found = []
    for number in range(6):
        rng = np.random.default_rng(number)
        pixels = rng.integers(200, 900, (SIDE, SIDE), np.uint16)
        assets = {catalog.asset_key(b): write(folder / f"{number}-{b}.tif", pixels, 10) for b in BANDS}
        assets[catalog.scl] = write(folder / f"{number}-scl.tif", np.full((SIDE // 2, SIDE // 2), 4, np.uint8), 20)
        properties = {"datetime": f"2024-06-{number + 1:02d}T10:00:00Z", "geoflow:offset": {"add": 0}}
        shape = box(*bounds, "EPSG:4326").json
        found.append({"id": str(number), "bbox": bounds, "geometry": shape, "properties": properties, "assets": assets})
    return found


def write(path: Path, pixels: np.ndarray, gsd: int) -> dict[str, Any]:
    profile = {"driver": "GTiff", "count": 1, "dtype": pixels.dtype, "nodata": 0, "tiled": True, "crs": EPSG}
    place = from_origin(LEFT, TOP, gsd, gsd)
    with rasterio.open(path, "w", height=len(pixels), width=len(pixels), transform=place, **profile) as file:
        file.write(pixels, 1)
    return {"href": str(path)}


def peak(items: list[dict[str, Any]], tiles: int, method: str = "median", threads: int = 1) -> int:
    """Bytes that a process of its own held at the most."""
    told = {"items": items, "tiles": tiles, "method": method, "threads": threads, "bands": BANDS}
    told |= {"side": SIDE, "left": LEFT, "top": TOP, "epsg": EPSG}
    done = subprocess.run(
        [sys.executable, "-c", COMPOSE],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **WORKER_ENVIRONMENT},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the highest resident memory is read from /proc")
@pytest.mark.parametrize(("method", "threads"), [("median", 1), ("median", 4), ("medoid", 1), ("p25", 2)])
def test_the_plan_is_right_within_a_quarter(items: list[dict[str, Any]], method: str, threads: int) -> None:
    june = Period("june", date(2024, 6, 1), date(2024, 6, 30))
    planned = composite_bytes(SIDE**2, [len(items)], CompositeOptions((june,), BANDS, method=method), threads)
    assert peak(items, 2, method, threads) == pytest.approx(planned, rel=0.25)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the highest resident memory is read from /proc")
def test_ten_times_the_area_needs_no_more(items: list[dict[str, Any]]) -> None:
    assert peak(items, 20) < 1.08 * peak(items, 2)
