"""From a reflectance cube to a land cover map, lazily, through `map_blocks`.

The map is made window by window. Windows are anchored to the origin of the array at multiples of the model's core
(the window without its halo), each pixel is decided by exactly one window, and a window always sees the same pixels:
those of the cube, and nodata beyond its edge. So the map does not depend on chunks, tiles, workers or batches. The
cube is rechunked to multiples of the core; chunks that already are stay as they are.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import GridError, ModelError
from geoflow.inputs import NODATA
from geoflow.mapping.decode import CONFIDENCE_NODATA, Ladder, decode
from geoflow.modelfile import LoadedModel, ModelCard, ModelRef, load_model

TARGET_CHUNK_PX = 1024
"""Edge of the chunks that a cube is cut into where its own are no multiple of the core."""

_NET_LOCK = threading.Lock()
"""One net at a time in a process: it uses all of the process's threads, while other tasks read and write."""


def predict(cube: xr.DataArray, model: str | Path | LoadedModel) -> xr.Dataset:
    """Map the land cover of a whole cube.

    Parameters
    ----------
    cube : xr.DataArray int16, dims (period, band, y, x)
        Reflectance x 10000, nodata -32768; ``band`` and ``period`` with coordinates. More bands and periods than the
        model reads may be there, in any order: they are picked by name. Its origin is the origin of the national
        grid.
    model : path or LoadedModel
        A segmenter.

    Returns
    -------
    xr.Dataset, dims (y, x), lazy
        ``level1`` .. ``levelN`` (uint8 or uint16 codes, 0 nodata) and ``confidence`` (uint8 percent, 255 nodata), as
        `geoflow.mapping.decode.decode` defines them. Coordinates of ``cube`` along y and x, and its CRS, are kept.

    Raises
    ------
    ModelError
        If the model is no segmenter, or the cube lacks a band or period that it reads.
    """
    return predict_region(cube, model, slice(0, cube.sizes["y"]), slice(0, cube.sizes["x"]))


def predict_region(cube: xr.DataArray, model: str | Path | LoadedModel, y: slice, x: slice) -> xr.Dataset:
    """Map a part of a cube, exactly as `predict` maps it within the whole.

    Only the windows that meet the part are put into the graph, so that the task of one tile stays small whatever the
    country's size. A part whose borders are multiples of the model's core costs no more than its own pixels.

    Parameters
    ----------
    cube, model
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
    spans = [_Span.around(part, picked.sizes[dim], dim, card.core_px) for part, dim in ((y, "y"), (x, "x"))]
    stacked = _windows(picked, loaded.ref, card, spans)
    part = {"y": slice(spans[0].start, spans[0].stop), "x": slice(spans[1].start, spans[1].stop)}
    inner = picked.isel(part)
    coords = {k: v for k, v in inner.coords.items() if set(v.dims) <= {"y", "x"} and k not in ("band", "period")}
    out = xr.Dataset(coords=coords)
    levels = card.legend.levels
    for at, level in enumerate(levels):
        out[f"level{level}"] = (("y", "x"), stacked[at].astype(card.legend.dtype(level)))
    out["confidence"] = (("y", "x"), stacked[len(levels)].astype(np.uint8))
    return out


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


@dataclass(frozen=True)
class _Span:
    """A stretch of pixels along one axis, and the whole cores around it."""

    start: int
    stop: int
    first: int
    last: int
    size: int

    @classmethod
    def around(cls, part: slice, size: int, dim: str, core: int) -> _Span:
        start, stop, step = part.indices(size)
        if step != 1 or (part.stop is not None and part.stop > size) or stop <= start:
            raise GridError(f"the part {part} along {dim} is not within the {size} pixels of the cube")
        return cls(start, stop, start // core * core, -(-stop // core) * core, size)


def _windows(cube: xr.DataArray, model: ModelRef, card: ModelCard, spans: list[_Span]) -> da.Array:
    """uint16 (level... and confidence, y, x) of the part that ``spans`` describe."""
    core, halo, ring = card.core_px, card.halo_px, -(-card.halo_px // card.core_px) * card.core_px
    take, pad, chunks = [], [(0, 0), (0, 0)], []
    own = dict(zip(cube.dims, cube.chunks, strict=True)) if cube.chunks is not None else {}
    for span, dim in zip(spans, ("y", "x"), strict=True):
        # One ring of cores around the part: its pixels serve as halo, its own windows are never computed.
        low, high = span.first - ring, span.last + ring
        take.append(slice(max(0, low), min(span.size, high)))
        pad.append((max(0, -low), max(0, high - span.size)))
        inner = _chunk_sizes(span, own.get(dim), core)
        chunks.append((ring, *inner, ring) if ring else inner)
    data = da.asarray(cube.isel(y=take[0], x=take[1]).data)
    data = da.pad(data, pad, mode="constant", constant_values=NODATA)
    data = data.rechunk((-1, -1, *chunks))
    if halo:
        boundary = {0: "none", 1: "none", 2: NODATA, 3: NODATA}
        data = da.overlap.overlap(data, {0: 0, 1: 0, 2: halo, 3: halo}, boundary, allow_rechunk=False)
    mapped = da.map_blocks(
        _predict_block,
        data,
        model=model,
        dtype=np.uint16,
        drop_axis=[0, 1],
        new_axis=0,
        chunks=(len(card.legend.levels) + 1, *chunks),
        meta=np.empty((0, 0, 0), np.uint16),
    )
    y, x = (slice(ring + s.start - s.first, ring + s.stop - s.first) for s in spans)
    return mapped[:, y, x]


def _chunk_sizes(span: _Span, own: tuple[int, ...] | None, core: int) -> tuple[int, ...]:
    """Chunks of the cores of a span: near the cube's own, and always multiples of the core."""
    wanted = max(own) if own else TARGET_CHUNK_PX
    size = max(core, wanted // core * core)
    # Counted from the cube's origin, so that chunks of a part meet those of the cube.
    edges = [span.first, *range((span.first // size + 1) * size, span.last, size), span.last]
    return tuple(int(n) for n in np.diff(edges))


# --- inside a task --------------------------------------------------------------------------------------------------


def _predict_block(block: NDArray[np.int16], model: ModelRef) -> NDArray[np.uint16]:
    """All windows of one chunk with its halo: int16 (period, band, y, x) to uint16 (level... and confidence, y, x)."""
    runner = _runner(model.path, model.sha256)
    card, core, halo = runner.card, runner.card.core_px, runner.card.halo_px
    height, width = block.shape[2] - 2 * halo, block.shape[3] - 2 * halo
    out = np.zeros((len(card.legend.levels) + 1, height, width), np.uint16)
    out[-1] = CONFIDENCE_NODATA
    for top in range(0, height, core):
        for left in range(0, width, core):
            window = block[:, :, top : top + card.window_px, left : left + card.window_px]
            runner.decide(window, out[:, top : top + core, left : left + core])
    return out


class _Runner:
    """One copy of the net per process, ready to run on this machine."""

    def __init__(self, loaded: LoadedModel) -> None:
        from geoflow import nets

        self.card = loaded.card
        self.ladder = Ladder.of(loaded.card.legend, loaded.card.codes)
        self.compute = nets.best_compute()
        self.net = self.compute.place(loaded.trained.build())

    def decide(self, window: NDArray[np.int16], out: NDArray[np.uint16]) -> None:
        """Fill ``out`` (level... and confidence, y, x) with the core of a window; left as it is where all is nodata."""
        halo, edge = self.card.halo_px, self.card.halo_px + self.card.core_px
        core = (..., slice(halo, edge), slice(halo, edge))
        if not (window[core] != NODATA).any():
            return
        x, observed = self.card.inputs.encode(window)
        levels, confidence = decode(self.probabilities(x)[core], observed[core], self.ladder)
        for plane, values in zip(out, [*levels, confidence], strict=True):
            plane[:] = values

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities float32 (class, y, x) of one encoded window.

        One window at a time: kernels differ with the batch, and with them the last bits, and a class may turn on those.
        """
        import torch

        with _NET_LOCK, torch.inference_mode():
            threads = _threads()
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with self.compute.autocast():
                logits = self.net(self.compute.tensor(np.ascontiguousarray(x)[None]))
            return logits.float().softmax(dim=1)[0].cpu().numpy()


@functools.lru_cache(maxsize=4)
def _cached_runner(path: str, sha256: str) -> _Runner:
    return _Runner(ModelRef(path, sha256).load())


_RUNNER_LOCK = threading.Lock()


def _runner(path: str, sha256: str) -> _Runner:
    """The net of this process; the lock keeps two threads from loading it twice."""
    with _RUNNER_LOCK:
        return _cached_runner(path, sha256)


def _threads() -> int:
    """Threads for the net: those of the Dask worker that this process is, else the cores that it may use.

    The worker is looked up by process, not by `distributed.get_worker`: inside a worker's task, chunks are computed in
    threads of a pool of their own, which do not know the worker.
    """
    module = sys.modules.get("distributed.worker")
    workers = list(module.Worker._instances) if module is not None else []
    if workers:
        return max(1, sum(int(worker.state.nthreads) for worker in workers))
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
