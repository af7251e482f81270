"""Patches of change as polygons: from a map of any size, the same however it is cut.

A patch is a set of pixels that changed from one class to one other and hang together by edges or corners. Each block of
the map is vectorised by itself (`vectorise`). Patches within a block are complete; those at its border are pieces, and
`join` puts the pieces of all blocks together: it needs the patches along the borders of blocks, not the map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from geoflow.errors import GridError
from geoflow.legends import Legend
from geoflow.mapping.change import CHANGED

if TYPE_CHECKING:
    import geopandas
    import xarray as xr

_EIGHT = np.ones((3, 3), bool)
_BLOCK_PX = 2048  # where the map has no chunks
_ROW = 2**32  # ids are row * 2**32 + column of a patch's first pixel


@dataclass(frozen=True)
class Pieces:
    """The patches of one block.

    Attributes
    ----------
    ids : int64 array (patch,)
        ``row * 2**32 + column`` of the patch's first pixel in row order within the block, in pixels of the whole map.
    codes : uint16 array (patch, 2)
        From and to.
    pixels : int64 array (patch,)
    m2 : float64 array (patch,)
        Area on the ellipsoid.
    confidence : int64 array (patch, 2)
        Sum over the pixels, and minimum, in percent.
    wkb : object array (patch,)
        Polygon or multipolygon along the pixels' edges, in the map's CRS.
    inner : bool array (patch,)
        Whether the patch does not touch the block's border.
    edges : four int64 arrays
        For the pixels along the top, bottom, left and right edge, the position of the patch, -1 where none is.
    y, x : (start, stop)
        The block, in pixels of the whole map.
    """

    ids: NDArray[np.int64]
    codes: NDArray[np.uint16]
    pixels: NDArray[np.int64]
    m2: NDArray[np.float64]
    confidence: NDArray[np.int64]
    wkb: NDArray[Any]
    inner: NDArray[np.bool_]
    edges: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    y: tuple[int, int]
    x: tuple[int, int]


def vectorise(arrays: Mapping[str, NDArray[Any]], y: slice, x: slice, geobox: GeoBox) -> Pieces:
    """The patches of one block.

    Parameters
    ----------
    arrays : mapping of name to array, dims (y, x)
        ``change``, ``from_code``, ``to_code`` and ``confidence`` of a change map.
    y, x : slice
        The block, in pixels of the whole map.
    geobox : GeoBox
        Of the whole map.
    """
    from geoflow.mapping.pixelareas import pixel_areas

    changed = arrays["change"] == CHANGED
    labels = _labelled(changed, arrays["from_code"].astype(np.int64) * 65536 + arrays["to_code"])
    count = int(labels.max(initial=0))
    flat, numbers = labels.ravel(), np.arange(1, count + 1)
    first = np.full(count + 1, flat.size)
    np.minimum.at(first, flat, np.arange(flat.size))
    rows, cols = np.divmod(first[1:], max(labels.shape[1], 1))
    m2 = np.broadcast_to(pixel_areas(geobox).at(y, x), labels.shape)
    confidence = arrays["confidence"].astype(np.int64)
    edges = tuple(edge.astype(np.int64) - 1 for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]))
    inner = np.ones(count + 1, bool)
    inner[np.concatenate(edges) + 1] = False
    return Pieces(
        (rows + y.start) * _ROW + cols + x.start,
        np.stack([arrays[name].ravel()[first[1:]] for name in ("from_code", "to_code")], axis=1).astype(np.uint16),
        np.bincount(flat, minlength=count + 1)[1:],
        np.asarray(np.bincount(flat, m2.ravel(), minlength=count + 1)[1:], np.float64),
        np.stack(
            [
                np.bincount(flat, confidence.ravel(), minlength=count + 1)[1:].astype(np.int64),
                np.asarray(ndimage.minimum(confidence, labels, numbers), np.int64).reshape(count),
            ],
            axis=1,
        ),
        _polygons(labels, count, geobox[y, x]),
        inner[1:],
        edges,  # type: ignore[arg-type]
        (y.start, y.stop),
        (x.start, x.stop),
    )


def _labelled(changed: NDArray[np.bool_], keys: NDArray[np.int64]) -> NDArray[np.int32]:
    """Patches numbered from 1; 0 where nothing changed."""
    out, count = np.zeros(changed.shape, np.int32), 0
    for key in np.unique(keys[changed]):
        found, patches = ndimage.label(changed & (keys == key), _EIGHT)
        out += np.where(found, found + count, 0).astype(np.int32)
        count += patches
    return out


def _polygons(labels: NDArray[np.int32], count: int, geobox: GeoBox) -> NDArray[Any]:
    """WKB of each patch. Parts that meet at a corner only are parts of a multipolygon: one ring would touch itself."""
    from rasterio.features import shapes

    parts: list[list[Any]] = [[] for _ in range(count)]
    for shape, label in shapes(labels, labels > 0, connectivity=4, transform=geobox.transform):
        parts[int(label) - 1].append(shapely.geometry.shape(shape))
    out = np.empty(count, object)
    for at, held in enumerate(parts):
        out[at] = shapely.to_wkb(held[0] if len(held) == 1 else shapely.MultiPolygon(held))
    return out


@dataclass(frozen=True)
class Patches:
    """Complete patches; attributes as of `Pieces`, with the id of the whole patch."""

    ids: NDArray[np.int64]
    codes: NDArray[np.uint16]
    pixels: NDArray[np.int64]
    m2: NDArray[np.float64]
    confidence: NDArray[np.int64]
    wkb: NDArray[Any]


def join(blocks: Iterable[Pieces]) -> Iterator[Patches]:
    """Complete patches, block by block and then those that lie in several.

    Parameters
    ----------
    blocks : iterable of Pieces
        Of all blocks of the map, in any order. Only what lies along their borders is kept in memory.
    """
    borders = _Borders()
    for pieces in blocks:
        if pieces.inner.any():
            yield _chosen(pieces, pieces.inner)
        borders.add(pieces)
    yield from borders.joined()


def _chosen(pieces: Pieces, where: NDArray[np.bool_]) -> Patches:
    return Patches(
        pieces.ids[where],
        pieces.codes[where],
        pieces.pixels[where],
        pieces.m2[where],
        pieces.confidence[where],
        pieces.wkb[where],
    )


class _Borders:
    """The pieces that touch borders of blocks, and the pixels by which they do."""

    def __init__(self) -> None:
        self.held: list[Patches] = []
        self.count = 0
        self.pixels: list[NDArray[np.int64]] = []

    def add(self, pieces: Pieces) -> None:
        outer = ~pieces.inner
        numbers = np.cumsum(outer) - 1 + self.count
        (top, bottom), (left, right) = pieces.y, pieces.x
        across, down = np.arange(left, right), np.arange(top, bottom)
        lines = (
            (np.full_like(across, top), across),
            (np.full_like(across, bottom - 1), across),
            (down, np.full_like(down, left)),
            (down, np.full_like(down, right - 1)),
        )
        for (rows, cols), patch in zip(lines, pieces.edges, strict=True):
            known = patch >= 0
            keys = pieces.codes[patch[known]].astype(np.int64)
            key = keys[:, 0] * 65536 + keys[:, 1]
            self.pixels.append(np.stack([rows[known], cols[known], key, numbers[patch[known]]], axis=1))
        self.held.append(_chosen(pieces, outer))
        self.count += int(outer.sum())

    def joined(self) -> Iterator[Patches]:
        if not self.count:
            return
        pixels = np.unique(np.concatenate(self.pixels), axis=0)
        whole = _connected(pixels, self.count)
        merged = _together(self.held)
        order = np.argsort(whole, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(whole[order])) + 1):
            shape = shapely.from_wkb(merged.wkb[group])
            # Pieces share edges along borders of blocks; coordinates are those of one lattice, so no slivers arise.
            union = shape[0] if len(shape) == 1 else shapely.simplify(shapely.union_all(shape), 0)
            wkb = np.empty(1, object)
            wkb[0] = shapely.to_wkb(union)
            sums, least = merged.confidence[group, 0].sum(), merged.confidence[group, 1].min()
            yield Patches(
                merged.ids[group].min(keepdims=True),
                merged.codes[group[:1]],
                merged.pixels[group].sum(keepdims=True),
                merged.m2[group].sum(keepdims=True),
                np.array([[sums, least]]),
                wkb,
            )


def _connected(pixels: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """The whole patch of each piece: pieces are one where equal transitions are neighbours; pixels are (row, column,
    transition, piece)."""
    place = {(row, col): (key, piece) for row, col, key, piece in pixels.tolist()}
    pairs = []
    for (row, col), (key, piece) in place.items():
        for step in ((0, 1), (1, -1), (1, 0), (1, 1)):
            other = place.get((row + step[0], col + step[1]))
            if other is not None and other[0] == key and other[1] != piece:
                pairs.append((piece, other[1]))
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = sparse.coo_matrix((np.ones(len(a)), (a, b)), (count, count))
    return np.asarray(csgraph.connected_components(graph, directed=False)[1])


def batches(patches: Iterable[Patches], size: int) -> Iterator[Patches]:
    """The same patches in batches of at least ``size``, the last of what is left; at least one, which may be empty."""
    held = [_none()]
    yielded = False
    for found in patches:
        held.append(found)
        if sum(len(p.ids) for p in held) >= size:
            yield _together(held)
            held, yielded = [], True
    if held or not yielded:
        yield _together(held or [_none()])


def _together(parts: list[Patches]) -> Patches:
    return Patches(*(np.concatenate([getattr(p, name) for p in parts]) for name in Patches.__dataclass_fields__))


def as_frame(patches: Patches, legend: Legend, crs: Any) -> geopandas.GeoDataFrame:
    """Patches as a table.

    Parameters
    ----------
    patches : Patches
    legend : Legend
        For the names of the classes.
    crs : CRS of the map

    Returns
    -------
    GeoDataFrame
        ``id`` (int64, the same however the map was cut), ``from_code``, ``from_name``, ``to_code``, ``to_name``,
        ``area_ha`` (on the ellipsoid), ``pixels``, ``probability`` and ``probability_min`` (mean and least confidence
        of the pixels, percent), ``geometry``.
    """
    import geopandas

    columns = {
        "id": patches.ids,
        "from_code": patches.codes[:, 0],
        "from_name": [legend.label(int(code)) for code in patches.codes[:, 0]],
        "to_code": patches.codes[:, 1],
        "to_name": [legend.label(int(code)) for code in patches.codes[:, 1]],
        "area_ha": patches.m2 / 1e4,
        "pixels": patches.pixels,
        "probability": patches.confidence[:, 0] / patches.pixels,
        "probability_min": patches.confidence[:, 1],
    }
    return geopandas.GeoDataFrame(columns, geometry=shapely.from_wkb(patches.wkb), crs=crs)


def change_patches(change: xr.Dataset, legend: Legend) -> geopandas.GeoDataFrame:
    """The patches of a change map as polygons, ordered by ``id``; see `as_frame` for the columns.

    Parameters
    ----------
    change : xr.Dataset, dims (y, x)
        ``change``, ``from_code``, ``to_code`` and ``confidence``; with a CRS. Read block by block, but the table is in
        memory: for a whole country, use the files that a job writes.
    legend : Legend

    Raises
    ------
    GridError
        If the map has no CRS or lacks a variable.
    """
    import odc.geo.xr  # noqa: F401  (the .odc accessor)

    names = ["change", "from_code", "to_code", "confidence"]
    if missing := [name for name in names if name not in change]:
        raise GridError(f"a change map has {', '.join(names)}; this one lacks {', '.join(missing)}")
    geobox = change["change"].odc.geobox
    if geobox is None or geobox.crs is None:
        raise GridError("the change map has no CRS: set one, e.g. with change.odc.assign_crs('EPSG:3035')")
    held = change[names]
    blocks = (
        vectorise({n: v.values for n, v in held.isel(y=y, x=x).compute().items()}, y, x, geobox)  # type: ignore[misc]
        for y, x in _cut(held)
    )
    whole = _together([_none(), *join(blocks)])
    return as_frame(whole, legend, geobox.crs).sort_values("id", ignore_index=True)


def _cut(change: xr.Dataset) -> list[tuple[slice, slice]]:
    height, width = change.sizes["y"], change.sizes["x"]
    return [
        (slice(top, min(top + _BLOCK_PX, height)), slice(left, min(left + _BLOCK_PX, width)))
        for top in range(0, height, _BLOCK_PX)
        for left in range(0, width, _BLOCK_PX)
    ]


def _none() -> Patches:
    none = np.empty(0, np.int64)
    empty = np.empty((0, 2), np.int64)
    return Patches(none, empty.astype(np.uint16), none, none.astype(float), empty, np.empty(0, object))
