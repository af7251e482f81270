"""From a reflectance cube to a land cover map, lazily, through `map_blocks`.

The map is made window by window (`geoflow.mapping.windows`): a window sees the same pixels whoever asks for it, windows
fade into each other where they overlap, and the class of a pixel is decided last, from the mean of what they say. So
the map does not depend on chunks, tiles, workers or batches.

A block of the map needs the windows over its border too, and so does its neighbour. With a folder for `Scratch`, such a
window runs once; without, once for each.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import GridError, ModelError
from geoflow.legendfile import attributes
from geoflow.legends import NODATA_CODE
from geoflow.mapping.decode import CONFIDENCE_NODATA, MARGIN_NODATA, Ladder, decision_type
from geoflow.mapping.engines import FLIPS, check_name
from geoflow.mapping.sweep import Block, sweep
from geoflow.mapping.windows import Lattice
from geoflow.modelfile import LoadedModel, ModelCard, ModelRef, load_model
from geoflow.stopwatch import READ, spending

BLOCK_BYTES, BLOCK_PX = 2**28, 4096
"""A block of the map is as large as these allow: imagery that it reads, and pixels a side. The larger, the fewer
windows lie over its border."""


@dataclass(frozen=True)
class MapOptions:
    """How a map is made.

    Attributes
    ----------
    engine : str
        What runs the net: ``auto``, ``torch``, ``openvino`` or one of `geoflow.mapping.engines.ENGINES`. ``auto`` is
        the fastest that the machine has, untried; a job tries it first (`geoflow.mapping.engines.choose_engine`).
    probabilities : bool
        Whether to keep the probabilities of all classes.
    flips : bool
        Whether each window is looked at in its eight rotations and reflections, and the mean of the probabilities taken
        (test-time augmentation): eight times as slow.
    scratch : str, optional
        Folder of windows that other blocks left and need, for this cube, model and engine alone.
    """

    engine: str = "auto"
    probabilities: bool = False
    scratch: str | None = None
    flips: bool = False

    def __post_init__(self) -> None:
        check_name(self.engine)

    @property
    def runs(self) -> str:
        """The engine, and whether it flips, in one name."""
        return self.engine.removesuffix(FLIPS) + (FLIPS if self.flips or self.engine.endswith(FLIPS) else "")


DEFAULT = MapOptions()


def predict(cube: xr.DataArray, model: str | Path | LoadedModel, options: MapOptions = DEFAULT) -> xr.Dataset:
    """Map the land cover of a whole cube.

    Parameters
    ----------
    cube : xr.DataArray int16, dims (period, band, y, x)
        Reflectance x 10000, nodata -32768; ``band`` and ``period`` with coordinates. More bands and periods than the
        model reads may be there, in any order: they are picked by name. Its origin is the origin of the national
        grid.
    model : path or LoadedModel
        A segmenter.
    options : MapOptions

    Returns
    -------
    xr.Dataset, lazy
        With dims (y, x): ``level1`` .. ``levelN`` (uint8 or uint16 codes, 0 nodata), which nest; ``confidence`` (uint8
        percent, 255 nodata), ``margin`` (int8 percent, -128 nodata) and ``second`` (code at the deepest level, 0
        nodata), as `geoflow.mapping.decode.decision_type` defines them. Where asked for, ``probabilities`` (uint8 parts
        of 250, 255 nodata; dims (class, y, x), ``class`` holds the codes). Coordinates of ``cube`` along y and x, and
        its CRS, are kept; attributes tell the legend.

    Raises
    ------
    ModelError
        If the model is no segmenter, the cube lacks a band or period that it reads, or the engine is unknown.
    """
    return predict_region(cube, model, slice(0, cube.sizes["y"]), slice(0, cube.sizes["x"]), options)


def predict_region(
    cube: xr.DataArray, model: str | Path | LoadedModel, y: slice, x: slice, options: MapOptions = DEFAULT
) -> xr.Dataset:
    """Map a part of a cube, exactly as `predict` maps it within the whole.

    Only the windows that meet the part are put into the graph, so that the task of one tile stays small whatever the
    country's size.

    Parameters
    ----------
    cube, model, options
        See `predict`; ``cube`` is the whole cube.
    y, x : slice
        The part, in pixels of the whole cube.

    Raises
    ------
    GridError
        If the part lies beyond the cube.
    ModelError
        See `predict`.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    card = loaded.card
    if card.kind != "segmenter":
        raise ModelError(f"{loaded.path} is a {card.kind}: it names the classes of a patch; a map needs a segmenter")
    picked = pick_inputs(cube, card)
    part = {"y": _checked(y, picked.sizes["y"], "y"), "x": _checked(x, picked.sizes["x"], "x")}
    decided = _decided(picked, loaded.ref, card, part["y"], part["x"], options)
    inner = picked.isel(part)
    coords = {k: v for k, v in inner.coords.items() if set(v.dims) <= {"y", "x"} and k not in ("band", "period")}
    return _as_dataset(decided, card, coords)


def _as_dataset(decided: da.Array, card: ModelCard, coords: dict[Any, Any]) -> xr.Dataset:
    """Positions of classes to codes, a variable each."""
    out = xr.Dataset(coords=coords, attrs=attributes(card.legend))
    ladder, levels = Ladder.of(card.legend, card.codes), card.legend.levels
    flags = {level: {**card.legend.flags(level), "nodata": NODATA_CODE} for level in levels}
    for at, level in enumerate(levels):
        codes = _looked_up(decided["best"], ladder, at, card.legend.dtype(level))
        out[f"level{level}"] = (("y", "x"), codes, flags[level])
    out["confidence"] = (("y", "x"), decided["confidence"], {"units": "percent", "nodata": CONFIDENCE_NODATA})
    out["margin"] = (("y", "x"), decided["margin"], {"units": "percent", "nodata": MARGIN_NODATA})
    second = _looked_up(decided["second"], ladder, -1, card.legend.dtype(levels[-1]))
    out["second"] = (("y", "x"), second, flags[levels[-1]])
    if "probabilities" in (decided.dtype.names or ()):
        ascending = np.argsort(ladder.codes[-1])
        out = out.assign_coords({"class": ladder.codes[-1][ascending].astype(card.legend.dtype(levels[-1]))})
        out["probabilities"] = (("class", "y", "x"), decided["probabilities"][..., ascending].transpose(2, 0, 1))
    return out


def _looked_up(positions: da.Array, ladder: Ladder, level: int, dtype: Any) -> da.Array:
    table = ladder.table(level).astype(dtype)
    return da.map_blocks(_take, positions, table, dtype=table.dtype, meta=np.empty((0, 0), table.dtype))


def _take(positions: NDArray[np.uint16], table: NDArray[Any]) -> NDArray[Any]:
    return table[positions]


def pick_inputs(cube: xr.DataArray, card: ModelCard) -> xr.DataArray:
    """The bands and periods that the model reads, in its order.

    Raises
    ------
    ModelError
        If the cube is not of the contract's dims and dtype, or a band or period is missing.
    """
    if cube.dims != ("period", "band", "y", "x") or cube.dtype != np.int16:
        raise ModelError(f"the cube must be int16 with dims (period, band, y, x), not {cube.dtype} with {cube.dims}")
    for dim, wanted in (("band", card.inputs.bands), ("period", card.inputs.periods)):
        held = [str(v) for v in cube[dim].values] if dim in cube.coords else []
        if missing := [name for name in wanted if name not in held]:
            raise ModelError(f"the model reads the {dim}s {list(wanted)}; the cube lacks {missing} (it holds {held})")
        order = [held.index(name) for name in wanted]
        if order != list(range(len(held))):
            cube = cube.isel({dim: order})
    return cube


def _checked(part: slice, size: int, dim: str) -> slice:
    start, stop, step = part.indices(size)
    if step != 1 or (part.stop is not None and part.stop > size) or stop <= start:
        raise GridError(f"the part {part} along {dim} is not within the {size} pixels of the cube")
    return slice(start, stop)


def _decided(cube: xr.DataArray, model: ModelRef, card: ModelCard, y: slice, x: slice, options: MapOptions) -> da.Array:
    """`decision_type` (y, x) of a part of the cube."""
    lattice = Lattice.over((cube.sizes["y"], cube.sizes["x"]), card.core_px, card.halo_px)
    own = dict(zip(cube.dims, cube.chunks, strict=True)) if cube.chunks is not None else {}
    size = _block_px(cube.sizes["period"] * cube.sizes["band"], card.window_px)
    rows, cols = (_blocks(part, size, own.get(dim)) for part, dim in ((y, "y"), (x, "x")))
    blocks = [[_one_block(cube, model, Block(lattice, row, col), options, card) for col in cols] for row in rows]
    return da.block(blocks)


def _data(part: xr.DataArray) -> da.Array:
    """As one chunk. What is no Dask array but lies in a file is read by the task, in one go."""
    if part.chunks is not None:
        return part.chunk(-1).data
    return da.from_delayed(dask.delayed(_read, pure=False)(part.variable), part.shape, part.dtype)


def _read(part: xr.Variable) -> NDArray[Any]:
    with spending(READ):
        values: NDArray[Any] = part[...].values  # of a copy: the variable would keep what it read
    return values


def _block_px(channels: int, window_px: int) -> int:
    """Pixels a side of a block whose imagery stays within `BLOCK_BYTES`."""
    fitting = int((BLOCK_BYTES / (2 * channels)) ** 0.5) - 2 * window_px
    return max(window_px, min(BLOCK_PX, fitting))


def _blocks(part: slice, size: int, own: tuple[int, ...] | None) -> list[slice]:
    """A stretch of the cube cut into blocks, at the cube's own chunk borders where that is possible."""
    chunk = max(own) if own else size
    step = max(size // chunk, 1) * chunk
    # Counted from the cube's origin, so that blocks of a part meet those of the cube.
    edges = [part.start, *range((part.start // step + 1) * step, part.stop, step), part.stop]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _one_block(cube: xr.DataArray, model: ModelRef, block: Block, options: MapOptions, card: ModelCard) -> da.Array:
    seen_y, seen_x = block.seen
    data = _data(cube.isel(y=seen_y, x=seen_x))
    dtype = decision_type(len(card.codes) if options.probabilities else 0)
    return da.map_blocks(
        sweep,
        data,
        model=model,
        block=block,
        options=options,
        dtype=dtype,
        drop_axis=[0, 1],
        chunks=((block.height,), (block.width,)),
        meta=np.empty((0, 0), dtype),
    )
