"""Interpolation between the pixels of a scene: the kernels of `geoflow.imagery.resample`.

Each walks over the target row by row, and in a row cell by cell of the lattice. ``u`` and ``v`` are the source's column
and row at the nodes, ``step`` target pixels apart; ``row0`` and ``col0`` the target's first pixel, counted from the
first node. ``top`` and ``left`` are the source's row and column of the first of ``pixels``: places are computed in the
whole source and moved last, by whole numbers, so that the window that was read does not alter a bit. 0 is nodata.
Results go to ``out``, which is 0 before.

Where a cell lies inside of the window, its places are computed all at once, then its pixels fetched, then mixed: the
first and the last go by vectors, and all together twice as fast as pixel by pixel.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, inline="always")
def _floor(value: float) -> int:
    """Faster than math.floor, which asks the C library."""
    whole = int(value)
    return whole - (value < whole)


@numba.njit(cache=True, nogil=True, inline="always")
def _between(nodes: Any, row: int, col: int, down: float) -> tuple[float, float]:
    """Values at the left and right side of a cell, ``down`` of the way from its upper to its lower edge."""
    left = nodes[row, col] + (nodes[row + 1, col] - nodes[row, col]) * down
    right = nodes[row, col + 1] + (nodes[row + 1, col + 1] - nodes[row, col + 1]) * down
    return left, right


@numba.njit(cache=True, nogil=True, inline="always")
def _place(u: Any, v: Any, row: int, col: int, step: int) -> tuple[float, float]:
    """Column and row in the source of the pixel that is so many rows and columns from the first node."""
    node_row, down = row // step, (row % step + 0.5) / step
    node_col, along = col // step, (col % step + 0.5) / step
    u_left, u_right = _between(u, node_row, node_col, down)
    v_left, v_right = _between(v, node_row, node_col, down)
    return u_left + (u_right - u_left) * along, v_left + (v_right - v_left) * along


@numba.njit(cache=True, nogil=True, inline="always")
def _lies_inside(pixels: Any, top: int, left: int, u: tuple[float, float], v: tuple[float, float]) -> bool:
    """Whether the four pixels around every place of a cell are among those of the window; False if not finite."""
    rows, cols = pixels.shape
    return (
        min(u) - 0.5 >= left
        and max(u) + 0.5 <= left + cols - 1
        and min(v) - 0.5 >= top
        and max(v) + 0.5 <= top + rows - 1
    )


@numba.njit(cache=True, nogil=True)
def nearest(pixels: Any, top: int, left: int, u: Any, v: Any, row0: int, col0: int, step: int, out: Any) -> None:
    height, width = out.shape
    flat, cols = pixels.ravel(), pixels.shape[1]
    place = np.empty(step, np.int64)
    for y in range(height):
        node_row, down = (row0 + y) // step, ((row0 + y) % step + 0.5) / step
        x = 0
        while x < width:
            node_col = (col0 + x) // step
            end = min(width, (node_col + 1) * step - col0)
            first = col0 + x - node_col * step + 0.5
            u_left, u_right = _between(u, node_row, node_col, down)
            v_left, v_right = _between(v, node_row, node_col, down)
            if _lies_inside(pixels, top, left, (u_left, u_right), (v_left, v_right)):
                for k in range(end - x):
                    along = (first + k) / step
                    col = np.int32(u_left + (u_right - u_left) * along)
                    row = np.int32(v_left + (v_right - v_left) * along)
                    place[k] = np.int64(row - top) * cols + (col - left)
                for k in range(end - x):
                    out[y, x + k] = flat[np.uint64(place[k])]
            elif math.isfinite(u_left + u_right + v_left + v_right):
                for k in range(end - x):
                    along = (first + k) / step
                    at_u, at_v = u_left + (u_right - u_left) * along, v_left + (v_right - v_left) * along
                    if _has_data(pixels, _floor(at_v) - top, _floor(at_u) - left):
                        out[y, x + k] = pixels[_floor(at_v) - top, _floor(at_u) - left]
            x = end


@numba.njit(cache=True, nogil=True)
def repeated(pixels: Any, row0: int, col0: int, parts: int, out: Any) -> None:
    """Every pixel ``parts`` times a side; the first lands at this row and column of ``out``, which may be negative."""
    height, width = out.shape
    line = np.empty(pixels.shape[1] * parts, out.dtype)
    begin, end = max(0, col0), min(width, col0 + line.size)
    for r in range(pixels.shape[0]):
        if parts == 2:  # 20 m on 10 m: with a number that it knows, the compiler uses vectors
            for c in range(pixels.shape[1]):
                line[2 * c] = pixels[r, c]
                line[2 * c + 1] = pixels[r, c]
        else:
            for c in range(line.size):
                line[c] = pixels[r, c // parts]
        for y in range(max(0, row0 + r * parts), min(height, row0 + (r + 1) * parts)):
            out[y, begin:end] = line[begin - col0 : end - col0]


@numba.njit(cache=True, nogil=True, inline="always")
def _has_data(pixels: Any, row: int, col: int) -> bool:
    return 0 <= row < pixels.shape[0] and 0 <= col < pixels.shape[1] and pixels[row, col] != 0


@numba.njit(cache=True, nogil=True, inline="always")
def _mixed(pixels: Any, row: int, col: int, right: float, below: float) -> float:
    """Bilinear value at a place between four pixels, of those that have data; at least one has."""
    rows, cols = pixels.shape
    total, weights = 0.0, 0.0
    for i in range(2):
        r = row + i
        if not 0 <= r < rows:
            continue
        weight_row = below if i else 1.0 - below
        for j in range(2):
            c = col + j
            if not 0 <= c < cols or pixels[r, c] == 0:
                continue
            weight = weight_row * (right if j else 1.0 - right)
            total += weight * pixels[r, c]
            weights += weight
    return total / weights


@numba.njit(cache=True, nogil=True)
def _blend(a: Any, b: Any, c: Any, d: Any, right: float, below: float) -> int:
    """Bilinear value between four pixels that all have data: the only place that adds them up, for the sake of bits."""
    upper, lower = a * (1.0 - right) + b * right, c * (1.0 - right) + d * right
    return np.int32(upper * (1.0 - below) + lower * below + 0.5)  # type: ignore[return-value]


@numba.njit(cache=True, nogil=True)
def _bilinear_at(pixels: Any, top: int, left: int, at_u: float, at_v: float) -> int:
    """Bilinear value at any place of the source, 0 where the pixel under it has no data."""
    if not _has_data(pixels, _floor(at_v) - top, _floor(at_u) - left):
        return 0
    first_col, first_row = _floor(at_u - 0.5), _floor(at_v - 0.5)
    right, below = at_u - 0.5 - first_col, at_v - 0.5 - first_row
    row, col = first_row - top, first_col - left
    if 0 <= row < pixels.shape[0] - 1 and 0 <= col < pixels.shape[1] - 1:
        a, b, c, d = pixels[row, col], pixels[row, col + 1], pixels[row + 1, col], pixels[row + 1, col + 1]
        if a != 0 and b != 0 and c != 0 and d != 0:
            # Not `_mixed`, which may round a half the other way: a gap elsewhere in the cell must not alter this pixel.
            return _blend(a, b, c, d, right, below)
    return int(_mixed(pixels, row, col, right, below) + 0.5)


@numba.njit(cache=True, nogil=True)
def bilinear(pixels: Any, top: int, left: int, u: Any, v: Any, row0: int, col0: int, step: int, out: Any) -> None:
    height, width = out.shape
    flat, cols = pixels.ravel(), pixels.shape[1]
    one, below_it = np.uint64(1), np.uint64(cols)
    place, shares, corners = np.empty(step, np.int64), np.empty((2, step)), np.empty((4, step), pixels.dtype)
    right, below = shares
    a, b, c, d = corners
    for y in range(height):
        node_row, down = (row0 + y) // step, ((row0 + y) % step + 0.5) / step
        x = 0
        while x < width:
            node_col = (col0 + x) // step
            end = min(width, (node_col + 1) * step - col0)
            size, first = end - x, col0 + x - node_col * step + 0.5
            u_left, u_right = _between(u, node_row, node_col, down)
            v_left, v_right = _between(v, node_row, node_col, down)
            whole = _lies_inside(pixels, top, left, (u_left, u_right), (v_left, v_right))
            if whole:
                for k in range(size):
                    along = (first + k) / step
                    at_u, at_v = u_left + (u_right - u_left) * along - 0.5, v_left + (v_right - v_left) * along - 0.5
                    col, row = np.int32(at_u), np.int32(at_v)
                    right[k], below[k] = at_u - col, at_v - row
                    place[k] = np.int64(row - top) * cols + (col - left)
                for k in range(size):
                    at = np.uint64(place[k])  # of a signed one, a negative value would have to be looked into
                    a[k], b[k] = flat[at], flat[at + one]
                    c[k], d[k] = flat[at + below_it], flat[at + below_it + one]
                empty = False
                for k in range(size):
                    empty |= (a[k] == 0) | (b[k] == 0) | (c[k] == 0) | (d[k] == 0)
                whole = not empty
            if whole:
                for k in range(size):
                    out[y, x + k] = _blend(a[k], b[k], c[k], d[k], right[k], below[k])
            elif math.isfinite(u_left + u_right + v_left + v_right):
                for k in range(size):
                    along = (first + k) / step
                    at_u, at_v = u_left + (u_right - u_left) * along, v_left + (v_right - v_left) * along
                    out[y, x + k] = _bilinear_at(pixels, top, left, at_u, at_v)
            x = end


@numba.njit(cache=True, nogil=True, inline="always")
def _keys(t: float) -> tuple[float, float, float, float]:
    """Weights of the four pixels around a place, ``t`` of the way from the second to the third."""
    t2, t3 = t * t, t * t * t
    return (
        -0.5 * t3 + t2 - 0.5 * t,
        1.5 * t3 - 2.5 * t2 + 1.0,
        -1.5 * t3 + 2.0 * t2 + 0.5 * t,
        0.5 * t3 - 0.5 * t2,
    )


@numba.njit(cache=True, nogil=True)
def cubic(pixels: Any, top: int, left: int, u: Any, v: Any, row0: int, col0: int, step: int, out: Any) -> None:
    height, width = out.shape
    rows, cols = pixels.shape
    largest = 255 if pixels.itemsize == 1 else 65535
    for y in range(height):
        for x in range(width):
            at_u, at_v = _place(u, v, row0 + y, col0 + x, step)
            if not (math.isfinite(at_u) and math.isfinite(at_v)):
                continue
            if not _has_data(pixels, _floor(at_v) - top, _floor(at_u) - left):
                continue
            first_u, first_v = _floor(at_u - 0.5), _floor(at_v - 0.5)
            right, below = at_u - 0.5 - first_u, at_v - 0.5 - first_v
            col, row = first_u - left, first_v - top
            whole = 1 <= row < rows - 2 and 1 <= col < cols - 2
            total = 0.0
            if whole:
                across, downwards = _keys(right), _keys(below)
                for i in range(4):
                    for j in range(4):
                        value = pixels[row - 1 + i, col - 1 + j]
                        whole &= value != 0
                        total += downwards[i] * across[j] * value
            if not whole:
                total = _mixed(pixels, row, col, right, below)
            out[y, x] = int(min(max(total, 1.0), largest) + 0.5) if total < largest else largest


@numba.njit(cache=True, nogil=True)
def averaged(
    pixels: Any, top: int, left: int, u: Any, v: Any, row0: int, col0: int, step: int, scale: float, out: Any
) -> None:
    """A triangle of a grid pixel's width to each side of its centre, over the source pixels that have data."""
    height, width = out.shape
    rows, cols = pixels.shape
    reach = 1.0 / scale
    for y in range(height):
        for x in range(width):
            at_u, at_v = _place(u, v, row0 + y, col0 + x, step)
            if not (math.isfinite(at_u) and math.isfinite(at_v)):
                continue
            if not _has_data(pixels, _floor(at_v) - top, _floor(at_u) - left):
                continue
            total, weights = 0.0, 0.0
            for i in range(math.ceil(at_v - reach - 0.5), math.floor(at_v + reach - 0.5) + 1):
                row = i - top
                if not 0 <= row < rows:
                    continue
                weight_row = 1.0 - abs(i + 0.5 - at_v) * scale
                for j in range(math.ceil(at_u - reach - 0.5), math.floor(at_u + reach - 0.5) + 1):
                    col = j - left
                    if not 0 <= col < cols or pixels[row, col] == 0:
                        continue
                    weight = weight_row * (1.0 - abs(j + 0.5 - at_u) * scale)
                    total += weight * pixels[row, col]
                    weights += weight
            out[y, x] = int(total / weights + 0.5)
