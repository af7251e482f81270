"""Make the sample country in a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
from numpy.typing import NDArray

from geoflow.errors import SceneError, StoreError
from geoflow.sample import cog, corine, vectors
from geoflow.sample.geography import CRS, Frame, border_of, counties_of, frame_of, ground_window, tiles_of
from geoflow.sample.ground import Ground, blocks, drop_small_changes, make_ground
from geoflow.sample.imagery import write_imagery, write_truth_of_scenes
from geoflow.sample.job import JOB, write_job
from geoflow.sample.landscape import PIXEL_M, Codes, Landscape
from geoflow.sample.parallel import Progress, Workshop, default_workers
from geoflow.sample.patches import write_patches
from geoflow.sample.stac import write_json

GENERATOR_VERSION = "1"
PATCHES = 320
WORK = ".work"
_REGIONS = ("border.gpkg", "counties.gpkg")
_FOLDERS = ("stac", "corine", "bigearthnet", "bigearthnet-lists", "truth", WORK)
_BYTES_PER_PIXEL = 400
"""Disk that a pixel of the frame takes at most, drafts included (measured: 210 in the end, 330 on the way)."""
TRUTH_BLOCK = 2048
GDAL_CACHE_BYTES = 256 * 2**20
"""GDAL would keep 5 % of the machine's memory in blocks of drafts."""

_README = """# The sample country

Everything in this folder is synthetic. No satellite has seen this country, nobody lives in it, and the files only
look like Sentinel-2, CORINE and BigEarthNet because they follow their formats. It was made by `geoflow sample` (size
{size}, seed {seed}), and the same command makes the same bytes again (`manifest.json` holds their sha256).

| path | what |
|---|---|
| `border.gpkg`, `counties.gpkg` | the national border with its islands, five counties, EPSG:3035 |
| `stac/catalog.json` | Sentinel-2 L2A as a static STAC catalog with items like those of Earth Search v1 |
| `corine/clc2018.gpkg` | a CORINE-like map of 2018 (`Code_18`): 25 ha units, generalised, about 15 % of the area wrong |
| `bigearthnet/`, `bigearthnet-lists/` | labelled patches like BigEarthNet v1, from ground elsewhere |
| `quickstart.yaml` | the main job on this country: `geoflow run` takes it |
| `truth/` | for evaluation only: land cover at 10 m in 2018 and 2024, the changes, wrong labels, the true state of the scenes |

The tiles are windows over the country ({tiles}), not whole MGRS tiles, except in size `tile`. Flags and scene
classifications are wrong where real ones tend to be; `truth/scenes.json` tells where.
"""
_MARKER = "The truth of the sample country. For evaluation only: no job may read this folder.\n"


def make_sample(
    folder: Path,
    size: str = "small",
    seed: int = 2018,
    patches: int | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Make the sample country.

    Parameters
    ----------
    folder : Path
        New or empty folder to fill.
    size : str
        ``small`` (2048 x 1280 px), ``tile`` (one full 10980 x 10980 px tile), ``country`` (20000 x 15000 px), or
        ``WIDTHxHEIGHT`` in 10 m pixels.
    seed : int
        Another seed is another country.
    patches : int, optional
        Number of labelled patches; 320 by default.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    workers : int, optional
        Threads; by default one a processor. The bytes do not depend on it.

    Returns
    -------
    dict
        The manifest, also written as ``manifest.json``: seed, size, generator version, sha256 of every file.

    Raises
    ------
    GridError
        If the size is unknown.
    SceneError
        If the number of patches is negative.
    StoreError
        If the folder holds something else. The very same sample is left as it is; an unfinished one is made anew.
    """
    frame = frame_of(size)
    folder = Path(folder)
    count = PATCHES if patches is None else patches
    if count < 0:
        raise SceneError(f"patches must not be negative, as {count} is")
    asked = {"seed": seed, "size": size, "patches": count, "generator_version": GENERATOR_VERSION}
    finished = _finished(folder, asked)
    if finished is not None:
        if not (folder / JOB).exists():  # an older version wrote none
            write_job(folder)
        return finished
    work = _prepare(folder, frame)
    tell = progress or (lambda stage, done, total: None)
    shop = Workshop(work, workers or default_workers(), tell)
    land = Landscape.found(seed, frame.height * PIXEL_M, frame.width * PIXEL_M)
    tiles = tiles_of(frame)
    _write_regions(folder, land, frame)
    tell("ground", 0, 1)
    ground = make_ground(land, *ground_window(tiles, frame), work / "ground", shop.workers)
    tell("ground", 1, 1)
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES):
        _write_truth(folder, work, ground, land, frame)
        records = write_imagery(folder / "stac", ground, frame, tiles, seed, shop)
    write_truth_of_scenes(folder / "truth" / "scenes.json", records)
    del ground
    write_patches(folder, count, seed, shop)
    names = ", ".join(f"{t.mgrs} of {t.width} x {t.height} px" for t in tiles)
    write_job(folder)
    (folder / "README.md").write_text(_README.format(size=size, seed=seed, tiles=names), encoding="utf-8")
    shutil.rmtree(work / "ground")
    manifest = {**asked, "files": _checksums(folder)}
    write_json(folder / "manifest.json", manifest)
    shutil.rmtree(work)
    return manifest


def _finished(folder: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the sample that is asked for, if the folder holds it already."""
    path = folder / "manifest.json"
    if not path.is_file() or (folder / WORK).exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    same = isinstance(manifest, dict) and all(manifest.get(k) == v for k, v in asked.items())
    return manifest if same and all((folder / name).is_file() for name in manifest["files"]) else None


def _prepare(folder: Path, frame: Frame) -> Path:
    """Make the folder, or empty it of an unfinished sample; the folder for drafts in it marks it unfinished."""
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file: name a folder for the sample country")
    try:
        if (folder / WORK).is_dir():
            _remove_parts(folder)
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(f"{folder} is not empty and holds another thing: name another folder, or remove it first")
        (folder / WORK).mkdir(parents=True)
    except OSError as problem:
        raise StoreError(f"{folder} cannot be written: {problem.strerror or problem}") from problem
    free, needed = shutil.disk_usage(folder).free, frame.height * frame.width * _BYTES_PER_PIXEL
    if free < needed:
        shutil.rmtree(folder / WORK)
        raise StoreError(f"{folder} has {free / 1e9:.1f} GB free, but this size needs {needed / 1e9:.1f} GB")
    return folder / WORK


def _remove_parts(folder: Path) -> None:
    """Remove what a sample consists of, and nothing else; the mark of being unfinished goes last."""
    for name in ("README.md", "manifest.json", JOB, *_REGIONS):
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)


def _write_regions(folder: Path, land: Landscape, frame: Frame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    border = border_of(land, frame)
    vectors.write_layer(folder / _REGIONS[0], "border", [border], {"name": ["Sample country"]}, "MultiPolygon")
    counties = counties_of(border, frame, land.seed)
    columns: dict[str, list[Any]] = {"code": [c for c, _, _ in counties], "name": [n for _, n, _ in counties]}
    vectors.write_layer(folder / _REGIONS[1], "counties", [g for _, _, g in counties], columns, "MultiPolygon")


def _inside(border: Any, frame: Frame, y: slice, x: slice) -> NDArray[np.bool_]:
    transform = frame.transform_at(y.start, x.start)
    shape = (y.stop - y.start, x.stop - x.start)
    mask: NDArray[np.bool_] = rasterio.features.geometry_mask([border], shape, transform, invert=True)
    return mask


def _write_truth(folder: Path, work: Path, ground: Ground, land: Landscape, frame: Frame) -> None:
    """Truth rasters, change patches, and the CORINE-like map, window by window."""
    truth = folder / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    (truth / "EVALUATION_ONLY").write_text(_MARKER, encoding="utf-8")
    border = border_of(land, frame)
    shape = (frame.height, frame.width)
    drafts = {e: work / f"landcover_{e}.tif" for e in (2018, 2024)}
    files = {e: cog.draft(p, shape, "uint16", CRS, frame.transform, 0) for e, p in drafts.items()}
    cells = corine.Cells(
        *(np.zeros((frame.height // corine.STEP, frame.width // corine.STEP), np.uint16) for _ in "ms")
    )
    found = []
    for y, x in blocks(slice(0, frame.height), slice(0, frame.width), TRUTH_BLOCK):
        inside = _inside(border, frame, y, x)
        before = np.where(inside, ground.read("code_before", y, x), 0).astype(np.uint16)
        after = np.where(inside, ground.read("code_after", y, x), 0).astype(np.uint16)
        after = drop_small_changes(before, after)
        cog.write_window(files[2018], before, y.start, x.start)
        cog.write_window(files[2024], after, y.start, x.start)
        found += vectors.change_patches(before, after, frame.transform_at(y.start, x.start))
        _put_cells(cells, before, y, x)
    for epoch, file in files.items():
        file.close()
        cog.finish(drafts[epoch], truth / f"landcover_{epoch}.tif", "MODE")
    _write_changes(truth / "change_2018_2024.gpkg", vectors.join_at_seams(found))
    _write_corine(folder / "corine" / "clc2018.gpkg", cells, land.seed, frame)


def _put_cells(cells: corine.Cells, before: Codes, y: slice, x: slice) -> None:
    part = corine.Cells.of(before)
    at = slice(y.start // corine.STEP, y.stop // corine.STEP), slice(x.start // corine.STEP, x.stop // corine.STEP)
    cells.main[at], cells.sample[at] = part.main, part.sample


def _write_changes(path: Path, patches: list[Any]) -> None:
    columns: dict[str, list[Any]] = {
        "from_code": [b for _, b, _ in patches],
        "to_code": [a for _, _, a in patches],
        "kind": [vectors.kind_of_change(b, a) for _, b, a in patches],
        "area_ha": [round(g.area / 1e4, 4) for g, _, _ in patches],
    }
    vectors.write_layer(path, "change", [g for g, _, _ in patches], columns, "Polygon")


def _write_corine(path: Path, cells: corine.Cells, seed: int, frame: Frame) -> None:
    drawn = corine.spill(corine.draw(cells, corine.Drawing(seed=seed)))
    shapes = corine.polygons(drawn, frame.transform_at(0, 0, corine.STEP))
    vectors.write_layer(path, "clc2018", [g for _, g in shapes], {"Code_18": [c for c, _ in shapes]}, "Polygon")


def _checksums(folder: Path) -> dict[str, str]:
    """The sha256 of every file of the sample, by relative path."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and WORK not in p.relative_to(folder).parts)
    sums = {}
    for path in found:
        with path.open("rb") as file:
            sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
