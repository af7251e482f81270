"""How fast BigEarthNet becomes a store, against just decoding its TIFFs.

    python benchmarks/patches.py [--size small|tile] [--json FILE]

Makes its own patches of version 1 and measures in rounds of all variants, on one process a core, started beforehand:

floor     the patches' twelve TIFFs opened and read with rasterio, nothing else
ours      the same into a store: found, planned, read, interpolated to 10 m, labels, compressed, checksums, receipts
usual     read with rasterio at 120 x 120 pixels, as users write it, each chunk put into a plain Zarr array
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import zarr
from distributed import Client
from measuring import command_line, measure_alternately, ratio_of, report
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from geoflow.inputs import BANDS
from geoflow.jobs.clusters import connect
from geoflow.jobs.patchingest import ingest_patches
from geoflow.labels.bigearthnet import NATIVE_PX
from geoflow.labels.patchplan import PatchOptions

SIZES = {"small": (768, 64, 5), "tile": (6144, 128, 3)}  # patches, patches a chunk, rounds


def main() -> None:
    """Run all variants, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES)
    patches, chunk, rounds = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as folder, connect("local") as client:
        root = make_patches(Path(folder) / "patches", patches)
        runs = variants(client, root, Path(folder), chunk)
        pixels = patches * len(BANDS) * 120 * 120
        rows, seconds = measure_alternately(runs, pixels, rounds)
        cores = len(client.nthreads())
        stored = sum(f.stat().st_size for f in (Path(folder) / "ours.zarr").rglob("*") if f.is_file())
    found = {f"speed_over_{name}": ratio_of(seconds, name, "ours") for name in ("floor", "usual")}
    ratios = {name: middle for name, (middle, _, _) in found.items()}
    ratios["patches_a_second"] = patches / next(row.seconds for row in rows if row.name == "ours")
    ratios["stored_over_raw"] = stored / (2 * pixels)
    report(f"{patches} patches of 12 bands, {cores} processes, median of {rounds}", rows, ratios, arguments.json)
    for name, (_, least, most) in found.items():
        print(f"{name:>24}  {least:.2f} to {most:.2f} over the rounds")


def make_patches(root: Path, count: int) -> Path:
    """Patches of the first version of BigEarthNet: one made, the others copies under other names."""
    rng = np.random.default_rng(0)
    bands = {band: rng.integers(1, 9000, (side, side), dtype=np.uint16) for band, side in NATIVE_PX.items()}
    for number in range(count):
        name = f"S2A_MSIL2A_20180613T101031_{number}_1"
        folder = root / name
        folder.mkdir(parents=True)
        for band, values in bands.items():
            side = len(values)
            place = {"crs": "EPSG:32633", "transform": from_origin(600_000, 5_000_000, 1200 / side, 1200 / side)}
            with rasterio.open(
                folder / f"{name}_{band}.tif", "w", "GTiff", side, side, 1, dtype="uint16", **place
            ) as dst:
                dst.write(values, 1)
        text = json.dumps({"labels": ["Pastures"], "acquisition_date": "2018-06-13 10:10:31"})
        (folder / f"{name}_labels_metadata.json").write_text(text)
    return root


def variants(client: Client, root: Path, folder: Path, chunk: int) -> dict[str, Callable[[], Any]]:
    """The ways of reading the patches."""
    names = sorted(path.name for path in root.iterdir())
    chunks = [names[at : at + chunk] for at in range(0, len(names), chunk)]
    address = str(client.scheduler.address)

    def floor() -> None:
        client.gather(client.map(decode, [str(root)] * len(chunks), chunks, pure=False))

    def ours() -> None:
        shutil.rmtree(folder / "ours.zarr", ignore_errors=True)
        ingest_patches(root, folder / "ours.zarr", PatchOptions(chunk=chunk), address)

    def usual() -> None:
        shutil.rmtree(folder / "usual.zarr", ignore_errors=True)
        shape = (len(names), len(BANDS), 120, 120)
        path = str(folder / "usual.zarr")
        zarr.create_array(path, shape=shape, dtype="uint16", chunks=(chunk, *shape[1:]))
        places = [at * chunk for at in range(len(chunks))]
        client.gather(client.map(resample, [str(root)] * len(chunks), chunks, [path] * len(chunks), places, pure=False))

    return {"floor": floor, "ours": ours, "usual": usual}


def decode(root: str, names: list[str]) -> None:
    """Open and read every file of some patches."""
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        for name in names:
            for band in BANDS:
                with rasterio.open(f"{root}/{name}/{name}_{band}.tif") as src:
                    src.read(1)


def resample(root: str, names: list[str], path: str, at: int) -> None:
    """Patches at 10 m into their places of an array."""
    cubes = np.empty((len(names), len(BANDS), 120, 120), np.uint16)
    for cube, name in zip(cubes, names, strict=True):
        for values, band in zip(cube, BANDS, strict=True):
            with rasterio.open(f"{root}/{name}/{name}_{band}.tif") as src:
                src.read(1, out=values, resampling=Resampling.bilinear)
    zarr.open_array(path, mode="r+")[at : at + len(names)] = cubes


if __name__ == "__main__":
    main()
