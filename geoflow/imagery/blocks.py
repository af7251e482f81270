"""Composing kernels over the blocks of lazy cubes, without a copy of what they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import dask.array as da

Composed = tuple[NDArray[Any], ...]
Kernel = Callable[[NDArray[np.int16], NDArray[Any]], Composed]


def compose(kernel: Kernel, cube: da.Array, seen: da.Array, has_source: bool = False) -> tuple[da.Array, ...]:
    """A kernel of `geoflow.imagery.kernels` over every block.

    `xarray.apply_ufunc` would do, but it moves time to the end and joins the blocks of a dimension that is summed up,
    which copies every observation twice, across memory: a third of the time of a composite.

    Parameters
    ----------
    kernel : callable
        From observations and their mask (or scores) to value, dims (band, y, x), count, dims (band, y, x) or (y, x),
        and perhaps source, dims (y, x).
    cube : int16 dask array, dims (scene, band, y, x)
        All scenes in one chunk, and all bands, too, if the kernel looks at several at once.
    seen : bool or uint16 dask array, dims (time, y, x)
        Chunked as the cube.
    has_source : bool
        Whether the kernel returns a source.

    Returns
    -------
    value : int16, dims (band, y, x)
    count : uint8, dims (y, x)
        In the band that has fewest.
    source : uint16, dims (y, x); only if there is one
    """
    import dask.array as da

    made = da.blockwise(
        _whole_blocks, "byx", cube, "sbyx", seen, "tyx", kernel=kernel, concatenate=False, **_kind(object, 3)
    )
    value = made.map_blocks(itemgetter(0), **_kind(np.int16, 3))
    count = da.blockwise(_fewest, "yx", made, "byx", concatenate=False, **_kind(np.uint8, 2))
    if not has_source:
        return value, count
    return value, count, da.blockwise(_source, "yx", made, "byx", concatenate=False, **_kind(np.uint16, 2))


def _kind(dtype: Any, ndim: int) -> dict[str, Any]:
    return {"dtype": dtype, "meta": np.empty((0,) * ndim, dtype)}


def _whole_blocks(cube: Sequence[NDArray[np.int16]], seen: Sequence[NDArray[Any]], kernel: Kernel) -> Composed:
    """Dask hands over lists of the blocks along scenes and times, of which there is one."""
    (stack,), (mask,) = cube, seen
    return kernel(stack, mask)


def _fewest(made: Sequence[Composed]) -> NDArray[np.uint8]:
    """The smallest count of a pixel over the blocks of bands, and over the bands of a block."""
    counts = [count.min(axis=0) if count.ndim == 3 else count for _, count, *_ in made]
    return counts[0] if len(counts) == 1 else np.minimum.reduce(counts)


def _source(made: Sequence[Composed]) -> NDArray[np.uint16]:
    ((_, _, source),) = made
    return source
