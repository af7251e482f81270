"""Writing rasters: windows into a plain GeoTIFF, then a cloud-optimised one with averaged overviews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

COG_OPTIONS: dict[str, Any] = {
    "driver": "COG",
    "compress": "DEFLATE",
    "level": 1,
    "predictor": "YES",
    "blocksize": 512,
    "bigtiff": "IF_SAFER",
}


def draft(path: Path, shape: tuple[int, int], dtype: str, crs: str, transform: Affine, nodata: int | None) -> Any:
    """Open an uncompressed GeoTIFF for writing windows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256} if min(shape) >= 256 else {}
    return rasterio.open(
        path, "w", driver="GTiff", height=shape[0], width=shape[1], count=1, dtype=dtype, crs=crs,
        transform=transform, nodata=nodata, bigtiff="IF_SAFER", sparse_ok=False, **tiled,
    )  # fmt: skip


def write_window(dataset: Any, values: NDArray[Any], row: int, col: int) -> None:
    """Write a rectangle of the first band at a pixel position."""
    dataset.write(values, 1, window=Window(col, row, values.shape[1], values.shape[0]))


def finish(source: Path, target: Path, overviews: str = "AVERAGE") -> None:
    """Turn a draft into a COG and remove the draft."""
    target.parent.mkdir(parents=True, exist_ok=True)
    rasterio.shutil.copy(source, target, overview_resampling=overviews, **COG_OPTIONS)
    source.unlink()


def percent(counts: NDArray[np.int64], values: tuple[int, ...], total: int) -> float:
    """Share of some values in a histogram, in percent with six decimals."""
    return round(float(100.0 * counts[list(values)].sum() / max(total, 1)), 6)
