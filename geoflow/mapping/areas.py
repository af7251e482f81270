"""Areas: hectares of each class, on each level and in each zone, of a map in any CRS and of any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import odc.geo.xr  # noqa: F401  (the .odc accessor)
import pandas as pd
import shapely
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from geoflow.errors import GridError, LegendError
from geoflow.legends import NODATA_CODE, Legend, listed
from geoflow.mapping.pixelareas import PixelAreas, pixel_areas

if TYPE_CHECKING:
    import geopandas

_BLOCK_PX = 2048
"""Block size where the map has no chunks."""

_BORDER_PX = 128
"""Blocks are halved down to this size along the borders of zones."""

_EDGE_M = 1000.0
"""Longest straight piece of a border when zones are reprojected: a chord of 1 km strays by 2 cm from its arc."""

_RADIUS_M = 6_378_137.0

Tally = Counter[tuple[int, int, int]]
"""Square metres by (position of the zone, level, code)."""


def areas(
    maps: xr.Dataset | xr.DataArray,
    zones: geopandas.GeoDataFrame | None,
    legend: Legend,
    levels: Sequence[int] | None = None,
    zone_column: str | None = None,
) -> pd.DataFrame:
    """Hectares per zone, level and class.

    Parameters
    ----------
    maps : xr.Dataset or xr.DataArray, dims (y, x)
        ``level<n>`` variables of class codes, or one map of codes, of the level that its name ``level<n>`` says, else
        of the legend's deepest. 0 and the legend's ``nodata_codes`` are nodata and not counted. Read block by block.
    zones : GeoDataFrame or None
        Polygons in any CRS; None means the whole map as one zone named ``"all"``. Zones may overlap: each is counted
        by itself. Invalid polygons are repaired (`shapely.make_valid`).
    legend : Legend
    levels : sequence of int, optional
        All that the map holds or that follow from it by default. A level that the map lacks is summed up from the
        next finer one that it holds.
    zone_column : str, optional
        The column with the zones' names, which must be unique; the index of ``zones`` by default.

    Returns
    -------
    pd.DataFrame
        One row for each class that occurs, ordered by zones, levels and codes: ``zone``, ``level``, ``code``, ``name``,
        ``ha`` and ``share`` (0..1, of the zone's area that is not nodata on that level).

    Raises
    ------
    GridError
        If map or zones have no CRS, the map is rotated, the zone column is missing or its names repeat, a zone is no
        polygon, or no zone meets the map.
    LegendError
        If a level is neither held by the map nor follows from it, or a code is not of its level.

    Notes
    -----
    Areas are those on the CRS's ellipsoid (`pixel_areas`). A pixel on the border of a zone counts with the fraction of
    it that lies within, computed without sampling by exactextract (Baston, https://github.com/isciences/exactextract),
    so zones that tile a region sum to the region. Only one row of blocks is in memory at a time.
    """
    sources = _sources(maps, legend)
    wanted = _wanted(sources, legend, levels)
    arrays = {level: north_up(sources[level]) for level in sorted(set(wanted.values()))}
    geobox = geobox_of(next(iter(arrays.values())))
    names, shapes = (["all"], None) if zones is None else zones_on(zones, zone_column, geobox)
    tally = tally_blocks(arrays, shapes, geobox)
    return _table(_by_level(tally, wanted, legend), names, legend)


def _sources(maps: xr.Dataset | xr.DataArray, legend: Legend) -> dict[int, xr.DataArray]:
    """The maps by level."""
    named = {f"level{level}": level for level in legend.levels}
    if isinstance(maps, xr.DataArray):
        found = {named.get(str(maps.name), legend.deepest): maps}
    else:
        found = {level: maps[name] for name, level in named.items() if name in maps.data_vars}
    if not found:
        raise LegendError(f"the map has none of the variables {listed(named)}; it has {listed(maps)}")
    for codes in found.values():
        if codes.dtype.kind != "u":
            raise LegendError(f"class codes are unsigned integers, not {codes.dtype}")
    return found


def _wanted(held: dict[int, xr.DataArray], legend: Legend, levels: Sequence[int] | None) -> dict[int, int]:
    """For each level to report, the level of the map that it is counted on."""
    levels = [level for level in legend.levels if level <= max(held)] if levels is None else sorted(set(levels))
    for level in levels:
        legend.codes(level)  # complains of a level that the legend does not have
        if level > max(held):
            raise LegendError(f"level {level} cannot be counted on a map that holds the levels {sorted(held)}")
    return {level: min(source for source in held if source >= level) for level in levels}


def north_up(codes: xr.DataArray) -> xr.DataArray:
    """The map with dims (y, x), rows from the north, in blocks."""
    dims = codes.odc.spatial_dims
    if dims is None or set(dims) != set(codes.dims):
        raise GridError(f"a map to measure has the dims (y, x), not {codes.dims}")
    codes = codes.transpose(*dims)
    if codes.chunks is None:
        codes = codes.chunk(dict.fromkeys(dims, _BLOCK_PX))
    if geobox_of(codes).transform.e > 0:
        codes = codes.isel({dims[0]: slice(None, None, -1)})
    return codes


def geobox_of(codes: xr.DataArray) -> GeoBox:
    geobox = codes.odc.geobox
    if geobox is None or geobox.crs is None:
        raise GridError(f"the map {codes.name or ''} has no CRS: set one, e.g. with codes.odc.assign_crs('EPSG:3035')")
    if not geobox.axis_aligned or geobox.transform.a <= 0:
        raise GridError("the map must not be rotated or mirrored")
    return geobox


def zones_on(frame: geopandas.GeoDataFrame, column: str | None, geobox: GeoBox) -> tuple[list[Any], NDArray[Any]]:
    """Names and polygons, in the map's CRS, of the zones that meet the map."""
    if frame.crs is None:
        raise GridError("the zones have no CRS: set one with zones.set_crs")
    names = _names(frame, column)
    shapes = np.asarray(frame.geometry.array)
    for name, shape in zip(names, shapes, strict=True):
        if shape is None or shape.is_empty or shape.geom_type not in ("Polygon", "MultiPolygon"):
            kind = "empty" if shape is None or shape.is_empty else f"a {shape.geom_type}"
            raise GridError(f"zone {name!r} is {kind}, not a polygon")
    shapes = np.array([_polygonal(shapely.make_valid(s)) for s in shapes], dtype=object)
    crs = CRS.from_user_input(geobox.crs)
    if frame.crs != crs:
        near = _near(frame.crs, geobox, shapes)
        names = [name for name, is_near in zip(names, near, strict=True) if is_near]
        shapes = _reproject(shapes[near], frame.crs, crs)
    extent = shapely.box(*geobox.boundingbox)
    meets = shapely.area(shapely.intersection(shapes, extent)) > 0
    if not meets.any():
        raise GridError(f"no zone meets the map, whose bounds are {tuple(geobox.boundingbox)} in {crs.name}")
    return [n for n, m in zip(names, meets, strict=True) if m], shapes[meets]


def _names(frame: geopandas.GeoDataFrame, column: str | None) -> list[Any]:
    if column is not None and column not in frame.columns:
        others = [c for c in frame.columns if c != frame.geometry.name]
        raise GridError(f"the zones have no column {column!r}; they have {listed(others) or 'none'}")
    values = frame.index.to_series() if column is None else frame[column]
    where = "the zones' index" if column is None else f"the zone column {column!r}"
    if values.isna().any():
        raise GridError(f"{where} has {int(values.isna().sum())} zones without a name")
    if values.duplicated().any():
        twice = listed(repr(v) for v in dict.fromkeys(values[values.duplicated()].tolist()))
        raise GridError(f"{where} names zones twice: {twice}; dissolve them (zones.dissolve) or use another column")
    return values.tolist()


def _near(crs: Any, geobox: GeoBox, shapes: NDArray[Any]) -> NDArray[np.bool_]:
    """Which zones may meet the map. The others are left out before reprojecting: they may lie where the map's CRS is
    not defined."""
    back = Transformer.from_crs(CRS.from_user_input(geobox.crs), crs, always_xy=True)
    bounds = geobox.boundingbox
    left, bottom, right, top = back.transform_bounds(bounds.left, bounds.bottom, bounds.right, bounds.top, 101)
    if not np.isfinite([left, bottom, right, top]).all() or right < left:
        return np.ones(len(shapes), bool)
    x, y = (right - left) * 0.05, (top - bottom) * 0.05
    return shapely.intersects(shapes, shapely.box(left - x, bottom - y, right + x, top + y))


def _reproject(shapes: NDArray[Any], source: Any, target: CRS) -> NDArray[Any]:
    source = CRS.from_user_input(source)
    step = _EDGE_M / source.axis_info[0].unit_conversion_factor / (_RADIUS_M if source.is_geographic else 1)
    project = Transformer.from_crs(source, target, always_xy=True)
    moved = shapely.transform(shapely.segmentize(shapes, step), project.transform, interleaved=False)
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise GridError(f"a zone reaches beyond the area where the map's CRS {target.name!r} is defined; clip it first")
    return np.array([_polygonal(shapely.make_valid(s)) for s in moved], dtype=object)


def _polygonal(shape: Any) -> Any:
    """The polygons of a geometry, without lines and points that an intersection or a repair may leave."""
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    parts = [p for p in shapely.get_parts(shape) if p.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts) if parts else shapely.Polygon()


Pieces = tuple[tuple[int, Any], ...]
"""The zones on a block: position, and the polygon within the block or None where it covers the block."""


def tally_blocks(
    arrays: dict[int, xr.DataArray], shapes: NDArray[Any] | None, geobox: GeoBox, scheduler: str | None = None
) -> Tally:
    """`tally_block` of all blocks, computed one row of them at a time, by Dask's scheduler of that name, else by the
    one that is set."""
    from dask.array.core import slices_from_chunks  # half a second to load, which who only names zones need not wait

    first = next(iter(arrays.values())).data
    data = {level: array.data.rechunk(first.chunks) for level, array in arrays.items()}
    pixels = pixel_areas(geobox)
    tree = None
    if shapes is not None:
        shapely.prepare(shapes)
        tree = shapely.STRtree(shapes)
    rows, cols = ([part for (part,) in slices_from_chunks((sizes,))] for sizes in first.chunks)
    if shapes is not None:  # a graph of the whole map costs more than to count a county
        down, right = _met(shapes, pixels, rows, cols)
        data = {level: array.blocks[down, right] for level, array in data.items()}
        rows, cols = rows[down], cols[right]
    total: Tally = Counter()
    for at, y in enumerate(rows):
        parts = {level: array.blocks[at].to_delayed().ravel() for level, array in data.items()}
        jobs = []
        for column, x in enumerate(cols):
            if pieces := ((0, None),) if shapes is None else _pieces(pixels.bounds(y, x), shapes, tree):
                codes = {level: part[column] for level, part in parts.items()}
                # Bound, not passed: Dask would look for graphs in every polygon.
                count = partial(tally_block, pixels=pixels, origin=(y.start, x.start), pieces=pieces)
                jobs.append(dask.delayed(count, pure=False, traverse=False)(codes))
        for tally in dask.compute(*jobs, scheduler=scheduler):
            total.update(tally)
    return total


def _met(shapes: NDArray[Any], pixels: PixelAreas, rows: list[slice], cols: list[slice]) -> tuple[slice, slice]:
    """Which rows and columns of blocks the zones' common bounding box meets; the zones meet the map."""
    west, south, east, north = shapely.total_bounds(shapes)
    bounds = [pixels.bounds(y, cols[0]) for y in rows], [pixels.bounds(rows[0], x) for x in cols]
    met_rows = [at for at, (_, bottom, _, top) in enumerate(bounds[0]) if bottom <= north and top >= south]
    met_cols = [at for at, (left, _, right, _) in enumerate(bounds[1]) if left <= east and right >= west]
    return slice(met_rows[0], met_rows[-1] + 1), slice(met_cols[0], met_cols[-1] + 1)


def _pieces(bounds: tuple[float, ...], shapes: NDArray[Any], tree: Any) -> Pieces:
    box = shapely.box(*bounds)
    out = []
    for zone in sorted(tree.query(box, predicate="intersects").tolist()):
        if shapely.covers(shapes[zone], box):
            out.append((zone, None))
        elif not (piece := _polygonal(shapely.intersection(shapes[zone], box))).is_empty:
            out.append((zone, piece))
    return tuple(out)


def tally_block(codes: dict[int, NDArray[Any]], pixels: PixelAreas, origin: tuple[int, int], pieces: Pieces) -> Tally:
    """Square metres by (zone, level, code) in the block whose first pixel is at ``origin`` (row, column); ``codes`` by
    level, dims (y, x), 0 nodata."""
    shape = next(iter(codes.values())).shape
    y, x = (slice(start, start + size) for start, size in zip(origin, shape, strict=True))
    pixel_m2 = pixels.at(y, x)
    tally: Tally = Counter()
    for zone, piece in pieces:
        for part, within in _parts(piece, pixels, y, x):
            here = tuple(slice(p.start - start, p.stop - start) for p, start in zip(part, origin, strict=True))
            m2 = pixel_m2 if pixel_m2.size == 1 else np.broadcast_to(pixel_m2, shape)[here]
            size = here[0].stop - here[0].start, here[1].stop - here[1].start
            covered = None if within is None else _covered(within, pixels.bounds(*part), size)
            for level, values in codes.items():
                sums = _sums(values[here], m2, covered)
                if not np.isfinite(sums).all():
                    raise GridError(f"level{level} has classes beyond the area where its CRS is defined")
                for code in np.flatnonzero(sums).tolist():
                    tally[zone, level, code] += sums[code].item()
    return tally


def _parts(piece: Any, pixels: PixelAreas, y: slice, x: slice) -> Iterator[tuple[tuple[slice, slice], Any]]:
    """Parts (y, x) of a block that a polygon meets, each with the polygon within it, or None where it covers the part.

    The block is halved until only the parts along the border are left to be asked pixel by pixel, which costs a hundred
    times what a covered pixel costs.
    """
    if piece is None:
        yield (y, x), None
        return
    box = shapely.box(*pixels.bounds(y, x))
    piece = _polygonal(shapely.intersection(piece, box))
    if piece.is_empty:
        return
    if shapely.covers(piece, box):
        yield (y, x), None
    elif max(y.stop - y.start, x.stop - x.start) <= _BORDER_PX:
        yield (y, x), piece
    else:
        for rows in _halves(y):
            for cols in _halves(x):
                yield from _parts(piece, pixels, rows, cols)


def _halves(part: slice) -> tuple[slice, ...]:
    if part.stop - part.start <= _BORDER_PX:
        return (part,)
    middle = (part.start + part.stop) // 2
    return slice(part.start, middle), slice(middle, part.stop)


Covered = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Positions in a flattened part of a block of the pixels that a polygon meets, and the fractions of them within it."""


def _sums(codes: NDArray[Any], m2: NDArray[np.float64], covered: Covered | None) -> NDArray[np.float64]:
    """Square metres by code; ``m2`` is of the shape of the codes, or one for all of them. Nodata has none."""
    if covered is None and m2.size == 1:
        counts = np.bincount(codes.ravel(), minlength=NODATA_CODE + 1)
        # Not m2 * counts: where m2 is infinite, codes that do not occur are none of its business.
        sums = np.multiply(counts, m2.item(), out=np.zeros(counts.size), where=counts > 0)
    else:
        cells, fractions = (slice(None), 1.0) if covered is None else covered
        weights = np.broadcast_to(m2, codes.shape).ravel()[cells] * fractions
        sums = np.bincount(codes.ravel()[cells], weights, minlength=NODATA_CODE + 1)
    sums[NODATA_CODE] = 0
    return sums


def _covered(piece: Any, bounds: tuple[float, ...], shape: tuple[int, ...]) -> Covered:
    from exactextract import exact_extract  # type: ignore[import-untyped]
    from exactextract.feature import JSONFeatureSource  # type: ignore[import-untyped]
    from exactextract.raster import NumPyRasterSource  # type: ignore[import-untyped]

    raster = NumPyRasterSource(np.zeros(shape, np.uint8), *bounds)
    feature = JSONFeatureSource([{"type": "Feature", "geometry": shapely.geometry.mapping(piece), "properties": {}}])
    found = exact_extract(raster, feature, ["cell_id", "coverage"])[0]["properties"]
    return np.asarray(found["cell_id"], np.int64), np.asarray(found["coverage"], np.float64)


def _by_level(tally: Tally, wanted: dict[int, int], legend: Legend) -> Tally:
    """Sum up from the levels that were counted to those to report."""
    out: Tally = Counter()
    for (zone, source, code), m2 in tally.items():
        if code in legend.nodata_codes:
            continue
        if legend.level_of(code) != source:
            raise LegendError(
                f"code {code} is of level {legend.level_of(code)}, but was met in a map of level {source}"
            )
        for level, counted in wanted.items():
            if counted == source:
                out[zone, level, legend.ancestor(code, level)] += m2
    return out


def _table(tally: Tally, names: list[Any], legend: Legend) -> pd.DataFrame:
    mapped: Counter[tuple[int, int]] = Counter()
    for (zone, level, _), m2 in tally.items():
        mapped[zone, level] += m2
    rows = [
        (names[zone], level, code, legend.label(code), tally[zone, level, code] / 1e4, tally[zone, level, code] / whole)
        for zone, level, code in sorted(tally)
        if (whole := mapped[zone, level])
    ]
    return pd.DataFrame(rows, columns=["zone", "level", "code", "name", "ha", "share"])
