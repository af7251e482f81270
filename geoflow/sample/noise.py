"""Random fields as functions of position: the same value at the same place, whichever block asks for it.

Everything random about the sample country's ground comes from hashing integer positions, so a block can be computed
alone, in any order, by any number of workers. Coordinates are metres from the north-west corner of the country's frame
(x to the east, y to the south). Only additions, multiplications and square roots are used, so that the fields are
equal to the last bit on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Float = NDArray[np.float32]
Uint = NDArray[np.uint32]

# The standard deviation of cubic B-spline noise over independent uniform(-1, 1) knots, over both axes.
_SPLINE_SD = 0.2736


def hash32(i: NDArray[Any], j: NDArray[Any], key: int) -> Uint:
    """A well mixed 32-bit hash of two integer arrays (broadcast) and a key (the murmur3 finaliser)."""
    h = np.asarray(i).astype(np.uint32) * np.uint32(0x9E3779B1)
    h = h ^ (np.asarray(j).astype(np.uint32) * np.uint32(0x85EBCA77)) ^ np.uint32((key * 0xC2B2AE3D) & 0xFFFFFFFF)
    return mix(h)


def mix(h: Uint, key: int = 0) -> Uint:
    """Mix the bits of hashes once more; another ``key`` gives independent values."""
    h = h ^ np.uint32((key * 0x27D4EB2F) & 0xFFFFFFFF)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def unit(h: Uint) -> Float:
    """Hashes as uniform numbers in [0, 1)."""
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def white(rows: NDArray[Any], cols: NDArray[Any], key: int) -> Float:
    """Uniform white noise of pixels, dims (y, x)."""
    return unit(hash32(cols[None, :], rows[:, None], key))


def _weights(at: NDArray[np.floating[Any]], spacing: float) -> tuple[sparse.csr_matrix, int, int]:
    """Cubic B-spline weights of points over knots, the first knot and the number of knots."""
    t = at / spacing
    base = np.floor(t).astype(np.int64)
    f = t - base
    w = np.stack([(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3], axis=1) / 6.0
    first = int(base.min()) - 1
    count = int(base.max()) + 3 - first
    indices = (base[:, None] - 1 - first + np.arange(4)).ravel()
    pointers = np.arange(0, 4 * len(at) + 1, 4)
    matrix = sparse.csr_matrix((w.astype(np.float32).ravel(), indices, pointers), shape=(len(at), count))
    return matrix, first, count


def noise(ys: NDArray[np.floating[Any]], xs: NDArray[np.floating[Any]], spacing: float, key: int) -> Float:
    """Smooth noise with about zero mean and unit deviation, dims (y, x), with features of ``spacing`` metres."""
    wy, y0, ny = _weights(ys, spacing)
    wx, x0, nx = _weights(xs, spacing)
    knots = unit(hash32(np.arange(x0, x0 + nx)[None, :], np.arange(y0, y0 + ny)[:, None], key)) * 2 - 1
    across = np.ascontiguousarray((wx @ np.ascontiguousarray(knots.T)).T)
    field: Float = (wy @ across) * np.float32(1 / _SPLINE_SD)
    return field


def fbm(
    ys: NDArray[np.floating[Any]],
    xs: NDArray[np.floating[Any]],
    spacings: tuple[float, ...],
    key: int,
    falloff: float = 0.6,
) -> Float:
    """A sum of octaves, each ``falloff`` times as strong as the one before, with unit deviation."""
    total = np.zeros((len(ys), len(xs)), np.float32)
    weight, power = 1.0, 0.0
    for k, spacing in enumerate(spacings):
        total += np.float32(weight) * noise(ys, xs, spacing, key + 101 * k)
        power += weight**2
        weight *= falloff
    total *= np.float32(power**-0.5)
    return total


def rank(z: Float) -> Float:
    """Noise of unit deviation as roughly uniform numbers in (0, 1)."""
    return 0.5 + 0.5 * z / np.sqrt(1.3 + z * z)


@dataclass(frozen=True)
class Cells:
    """Voronoi cells of jittered lattice points.

    ``id`` is a hash that names the cell; ``distance`` (m) is that to its point; ``edge`` (m) is about twice the
    distance to the nearest border with another cell, and ``other`` names that cell.
    """

    id: Uint
    distance: Float
    edge: Float
    other: Uint


def cells(y: Float, x: Float, spacing: float, key: int, jitter: float = 0.38, edges: bool = False) -> Cells:
    """The cell of each position. ``y`` and ``x`` (m, dims (y, x)) may be warped, which bends the borders.

    The four nearest lattice squares are searched, or the nine nearest with ``edges``; with this jitter the true
    nearest point is nearly always among them, and where it is not, the border is merely a little straighter.
    """
    inverse = np.float32(1 / spacing)
    u, v = x * inverse, y * inverse
    offset, reach = (0.0, (-1, 0, 1)) if edges else (0.5, (0, 1))
    ci = np.floor(u - np.float32(offset)).astype(np.int32)
    cj = np.floor(v - np.float32(offset)).astype(np.int32)
    best = np.full(u.shape, np.inf, np.float32)
    second = best.copy()
    winner, runner = np.zeros(u.shape, np.uint32), np.zeros(u.shape, np.uint32)
    lo_i, lo_j = int(ci.min()) + reach[0], int(cj.min()) + reach[0]
    ni, nj = int(ci.max()) + 2 - lo_i, int(cj.max()) + 2 - lo_j
    li, lj = np.arange(lo_i, lo_i + ni)[None, :], np.arange(lo_j, lo_j + nj)[:, None]
    names = hash32(li, lj, key)
    px = (li + 0.5 + (unit(mix(names, 1)) * 2 - 1) * np.float32(jitter)).astype(np.float32).ravel()
    py = (lj + 0.5 + (unit(mix(names, 2)) * 2 - 1) * np.float32(jitter)).astype(np.float32).ravel()
    names = names.ravel()
    base = (cj - lo_j) * ni + (ci - lo_i)
    for dj in reach:
        for di in reach:
            at = base + (dj * ni + di)
            dx, dy = px[at] - u, py[at] - v
            d = dx * dx + dy * dy
            nearer = d < best
            if edges:
                name = names[at]
                closer = ~nearer & (d < second)
                second = np.where(nearer, best, np.where(closer, d, second))
                runner = np.where(nearer, winner, np.where(closer, name, runner))
                winner = np.where(nearer, name, winner)
            else:
                np.copyto(winner, at.astype(np.uint32), where=nearer)
            np.copyto(best, d, where=nearer)
    if not edges:
        winner = names[winner]
    nearest = np.sqrt(best) * np.float32(spacing)
    gap = np.sqrt(second) * np.float32(spacing) - nearest if edges else best
    return Cells(winner, nearest, gap, runner)


def bricks(y: Float, x: Float, angle: Float, length: Float, width: Float, key: int, salt: Uint) -> Uint:
    """Names of rectangular parcels laid in rows along ``angle`` (its sine, in [-1, 1]); ``salt`` separates the regions.

    Rows are ``width`` metres wide, parcels ``length`` metres long, each row shifted at random.
    """
    sine = angle
    cosine = np.sqrt(np.maximum(0, 1 - sine * sine))
    along, across = x * cosine + y * sine, y * cosine - x * sine
    row = np.floor(across / width).astype(np.int32)
    row_hash = mix(salt ^ hash32(row, np.zeros(1, np.int32), key))
    place = np.floor(along / length + unit(row_hash)).astype(np.int32)
    return mix(row_hash ^ hash32(place, np.ones(1, np.int32), key + 1))
