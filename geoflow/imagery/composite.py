"""Cloud-free composites: scenes of a period, masked, to one image.

`composite_tile` wraps the functions of `geoflow.imagery.clearmask`, `geoflow.imagery.scores`, `geoflow.imagery.clouds`
and `geoflow.imagery.kernels` around lazy cubes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoflow.errors import CatalogError
from geoflow.imagery import kernels
from geoflow.imagery.blocks import compose
from geoflow.imagery.catalog import Catalog
from geoflow.imagery.clearmask import DETECTED, SCL_MASKED, clear_mask
from geoflow.imagery.clouds import DetectorOptions, Lattice
from geoflow.imagery.items import Item, items_on, sensed
from geoflow.imagery.kernels import NO_SOURCE
from geoflow.imagery.load import Loader, Reading, load_cube, load_scl, time_steps
from geoflow.imagery.read import ReadLog
from geoflow.imagery.scores import day_scores, pixel_scores
from geoflow.inputs import NODATA, UNIT

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

METHODS = ("median", "medoid", "geomedian", "best")
"""Ways to make one value of several observations, beside a percentile such as ``p25``."""

_SOURCED = ("medoid", "best")  # methods that take a whole observation, which has a scene
_BLOCK_BYTES = 2**27  # what the observations of one block may take where all bands of a pixel are needed at once


@dataclass(frozen=True)
class Period:
    """A named range of days, both ends included, in UTC."""

    name: str
    start: date
    end: date

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise CatalogError(f"period {self.name} starts on {self.start} and ends before that, on {self.end}")

    def holds(self, item: Item) -> bool:
        """Whether the scene was sensed within the period."""
        return self.start <= sensed(item).date() <= self.end

    def day_scores(self, items: Sequence[Item]) -> tuple[float, ...]:
        """How near to the middle of the period each scene is, see `geoflow.imagery.scores.day_scores`."""
        length = (self.end - self.start).days + 1
        days = [(sensed(item).date() - self.start).days + 0.5 for item in items]
        return day_scores(days, length / 2, length)


@dataclass(frozen=True)
class CompositeOptions:
    """How scenes become one composite per period.

    Parameters
    ----------
    periods : tuple of Period
    bands : tuple of str
        Band names in the order of the result.
    scl_masked : tuple of int
        SCL classes that are not used.
    dilate_m : float
        Margin around clouds and shadows, in units of the grid's CRS (metres).
    speck_m : float
        Clouds and shadows narrower than this get no margin, see `clear_mask`.
    method : str
        One of `METHODS`, or ``p0`` to ``p100``, see `geoflow.imagery.kernels`.
    reach_m : float
        For ``best``: clouds and shadows farther away than this do not count.
    detector : DetectorOptions, optional
        A cloud detector beside the scene classification.
    loader : "stackstac" or "odc-stac"
    reading : Reading
        Resampling, fusing of scenes, attempts and timeouts.
    """

    periods: tuple[Period, ...]
    bands: tuple[str, ...]
    scl_masked: tuple[int, ...] = SCL_MASKED
    dilate_m: float = 60.0
    speck_m: float = 50.0
    method: str = "median"
    reach_m: float = 600.0
    detector: DetectorOptions | None = None
    loader: Loader = "stackstac"
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        names = [period.name for period in self.periods]
        if not names or len(set(names)) != len(names):
            raise CatalogError(f"periods need different names, and at least one: {names}")
        for name in ("dilate_m", "speck_m", "reach_m"):
            if not 0 <= getattr(self, name) < math.inf:
                raise CatalogError(f"{name} is {getattr(self, name)}; it must be 0 or more metres")
        if any(not 0 <= value <= 11 for value in self.scl_masked):
            raise CatalogError(f"scl_masked is {self.scl_masked}; SCL classes are 0 to 11")
        if self.method not in METHODS and self.percent is None:
            known = ", ".join(METHODS)
            raise CatalogError(f"method {self.method!r} is not known; it is one of {known}, or p0 to p100")
        if self.loader not in get_args(Loader):
            raise CatalogError(f"loader {self.loader!r} is not known; it is one of {', '.join(get_args(Loader))}")

    @property
    def percent(self) -> int | None:
        """The percentile that the method takes of each band, or None where it takes pixels whole."""
        if self.method == "median":
            return 50
        match = re.fullmatch(r"p(100|[1-9]?[0-9])", self.method)
        return int(match[1]) if match else None

    @property
    def has_source(self) -> bool:
        """Whether every pixel comes from one scene."""
        return self.method in _SOURCED

    def identity(self) -> dict[str, Any]:
        """What of the options alters pixels."""
        parts = asdict(self)
        if self.method != "best":
            del parts["reach_m"]
        if self.percent is None:
            parts["fused"] = "whole pixels"  # once it was band by band: such outputs are made again
        parts["reading"] = {"resampling": self.reading.resampling, "fuse": self.reading.fuse}
        return {**parts, "detector": None if self.detector is None else self.detector.identity()}


def composite_tile(
    items: Sequence[Item],
    geobox: GeoBox,
    options: CompositeOptions,
    catalog: Catalog,
    log: ReadLog | None = None,
    numbers: Mapping[str, int] | None = None,
) -> xr.Dataset:
    """Composites of all periods on a GeoBox, lazily.

    Parameters
    ----------
    items : sequence of dict
        Frozen items of any dates and places; each period takes those that it holds and that meet the GeoBox. Their
        order does not matter.
    geobox : GeoBox
    log : ReadLog, optional
        Told about reads that failed or had to be tried again.
    numbers : mapping of id -> int, optional
        The number of each scene, below 65535, that ``source`` holds; by default its place in ``items``.

    Returns
    -------
    Dataset
        ``reflectance``: int16, dims (period, band, y, x), reflectance x 10000, nodata -32768. ``clear``: uint8, dims
        (period, y, x), the number of observations behind each pixel, in the band that has fewest. 0 means that at least
        one band is nodata; where no scene meets the GeoBox, or none is clear, all bands are nodata. Where the method
        has one, ``source``: uint16, dims (period, y, x), the number of the scene that the pixel is of, nodata 65535.

    Raises
    ------
    CatalogError, SceneError
        As `geoflow.imagery.load.load_cube`.
    """
    import xarray as xr
    from odc.geo.xr import xr_coords

    catalog.check_bands((*options.bands, *(() if options.detector is None else options.detector.bands)))
    known = numbers or {item["id"]: number for number, item in enumerate(items)}
    ordered = sorted(items, key=lambda item: (sensed(item), item["id"]))
    parts = [_Composer(ordered, geobox, period, options, catalog, log, known).made() for period in options.periods]
    result = xr.concat(parts, dim=xr.Variable("period", np.array([p.name for p in options.periods])))
    result = result.assign_coords(xr_coords(geobox)).transpose("period", "band", "y", "x")
    result.reflectance.attrs = {"long_name": f"{options.method} of surface reflectance", "units": UNIT}
    result.reflectance.attrs["nodata"] = NODATA
    result.clear.attrs = {"long_name": "number of clear observations", "units": "1"}
    if options.has_source:
        result.source.attrs = {"long_name": "number of the scene", "units": "1", "nodata": NO_SOURCE}
    for variable in result.data_vars.values():
        variable.encoding["grid_mapping"] = "spatial_ref"
    return result


class _Composer:
    """One period of one GeoBox: the scenes in order of time, and how they are read, masked and put together."""

    def __init__(
        self,
        items: Sequence[Item],
        geobox: GeoBox,
        period: Period,
        options: CompositeOptions,
        catalog: Catalog,
        log: ReadLog | None,
        numbers: Mapping[str, int],
    ) -> None:
        near = items_on([item for item in items if period.holds(item)], geobox)
        steps = time_steps(near, options.reading.fuse)
        # The scenes of one time step side by side, in the order in which the loaders fuse them.
        self.scenes = tuple(near[i] for step in steps for i in step)
        self.counts = tuple(len(step) for step in steps)
        self.geobox, self.period, self.options, self.catalog, self.log = geobox, period, options, catalog, log
        self.numbers = np.array([numbers[item["id"]] for item in self.scenes], np.uint16)

    def made(self) -> xr.Dataset:
        """``reflectance``, ``clear`` and, where the method has one, ``source``."""
        import xarray as xr

        names = ("reflectance", "clear", "source") if self.options.has_source else ("reflectance", "clear")
        made = self._computed() if self.scenes else self._nothing()
        found = xr.Dataset(dict(zip(names, made, strict=False)))
        return found.assign_coords(band=np.array(self.options.bands))

    def _nothing(self) -> tuple[xr.DataArray, ...]:
        """What a period without a single scene looks like: nodata, and a count of 0."""
        import dask.array as da
        import xarray as xr

        shape, bands = tuple(self.geobox.shape), len(self.options.bands)
        values = da.full((bands, *shape), NODATA, dtype=np.int16, chunks=(1, 2048, 2048))
        flat = (da.full(shape, fill, dtype=kind, chunks=2048) for fill, kind in ((0, np.uint8), (NO_SOURCE, np.uint16)))
        return xr.DataArray(values, dims=("band", "y", "x")), *(xr.DataArray(one, dims=("y", "x")) for one in flat)

    def _computed(self) -> tuple[xr.DataArray, ...]:
        import xarray as xr

        percent = self.options.percent
        cube = self._cube(one_band=percent is not None)
        seen = self._seen(cube.chunks[-2:])
        if percent is not None:
            composed = compose(partial(kernels.percentile_composite, percent=percent), cube, seen)
        else:
            whole = partial(_whole, method=self.options.method, counts=self.counts, numbers=self.numbers)
            composed = compose(whole, cube, seen, has_source=self.options.has_source)
        value, *flat = composed
        return xr.DataArray(value, dims=("band", "y", "x")), *(xr.DataArray(one, dims=("y", "x")) for one in flat)

    def _cube(self, one_band: bool) -> da.Array:
        """Reflectance, dims (time, band, y, x): by time step where bands go by themselves, else by scene."""
        bands = self.options.bands
        edge = 2048 if one_band else block_edge(len(self.scenes) * len(bands))
        chunks = {"time": -1, "band": 1 if one_band else -1, "y": edge, "x": edge}
        reading = self.options.reading
        if not one_band:  # fused in `_whole`, by pixels with all their bands
            reading = replace(reading, fuse=False)
        loader = self.options.loader
        return load_cube(self.scenes, self.geobox, bands, self.catalog, chunks, loader, reading, self.log).data

    def _seen(self, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
        """Clear mask (bool) or, for best pixels, scores (uint16); dims (time, y, x), chunked as the cube.

        Read with a margin, so that a cloud just outside a tile masks the same pixels in it as in the tile next door.
        """
        options, edge_m = self.options, abs(self.geobox.transform.a)
        dilate_px, speck_px = math.ceil(options.dilate_m / edge_m), round(options.speck_m / edge_m)
        how: dict[str, Any] = {"classes": options.scl_masked, "dilate_px": dilate_px, "speck_px": speck_px}
        reach = dilate_px
        function: Callable[..., NDArray[Any]] = clear_mask
        if options.method == "best":
            reach_px = round(options.reach_m / edge_m)
            reach = max(dilate_px, reach_px)
            firsts = np.cumsum([0, *self.counts[:-1]])
            days = self.period.day_scores([self.scenes[i] for i in firsts])
            function, how = pixel_scores, {**how, "reach_px": reach_px, "day": days}
        pad = reach + speck_px if reach else 0
        scl = self._classes(self.geobox.pad(pad), pad, chunks)
        kind = np.uint16 if options.method == "best" else bool
        seen = scl.map_overlap(
            function,
            depth={0: 0, 1: pad, 2: pad},
            boundary="none",
            dtype=kind,
            meta=np.empty((0, 0, 0), kind),
            **how,
        )
        height, width = self.geobox.shape
        inner = seen[:, pad : pad + height, pad : pad + width]
        return inner.map_blocks(np.ascontiguousarray, dtype=kind)  # once, not for every band

    def _classes(self, padded: GeoBox, pad: int, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
        """SCL, with `DETECTED` where the detector found a cloud; dims (time, y, x), on a grid wider by a margin."""
        import dask.array as da

        sizes: dict[str, Any] = {"time": -1}
        for dim, (first, *rest) in zip(("y", "x"), chunks, strict=True):
            widened = [first + pad, *rest]
            widened[-1] += pad
            sizes[dim] = tuple(widened)
        options = self.options
        scl = load_scl(self.scenes, padded, self.catalog, sizes, options.loader, options.reading, self.log).data
        if options.detector is None:
            return scl
        cloud = self._detected(padded, options.detector).rechunk(scl.chunks)
        return da.where(cloud & (scl != 0), np.uint8(DETECTED), scl)

    def _detected(self, padded: GeoBox, detector: DetectorOptions) -> da.Array:
        """Where the detector finds cloud, dims (time, y, x)."""
        lattice = Lattice.under(padded, detector.kind)
        chunks = {"time": 1, "band": -1, "y": -1, "x": -1}
        options = self.options
        cube = load_cube(
            self.scenes, lattice.geobox, detector.bands, self.catalog, chunks, options.loader, options.reading, self.log
        ).data
        shape = tuple(padded.shape)
        return cube.map_blocks(
            _detect,
            lattice=lattice,
            detector=detector,
            drop_axis=1,
            chunks=((1,) * cube.shape[0], (shape[0],), (shape[1],)),
            dtype=bool,
            meta=np.empty((0, 0, 0), bool),
        )


def _detect(cube: NDArray[np.int16], lattice: Lattice, detector: DetectorOptions) -> NDArray[np.bool_]:
    return np.stack([lattice.detect(scene, detector.build()) for scene in cube])


def block_edge(values: int) -> int:
    """Edge, in pixels, of the blocks that are composed at a time where a pixel has so many int16 values."""
    return next((edge for edge in (2048, 1024, 512) if values * edge * edge * 2 <= _BLOCK_BYTES), 256)


def _whole(
    stack: NDArray[np.int16], seen: NDArray[Any], method: str, counts: tuple[int, ...], numbers: NDArray[np.uint16]
) -> tuple[NDArray[Any], ...]:
    """A method that takes pixels whole, of blocks (scene, band, y, x) and (time, y, x).

    ``counts`` are the scenes of each time step. They arrive unfused, so that each pixel is of one scene in all bands.
    """
    fused, place = first_whole(stack, counts)
    if method == "geomedian":
        return kernels.geomedian_composite(fused, seen)
    make = kernels.best_composite if method == "best" else kernels.medoid_composite
    value, count, step = make(fused, seen)
    firsts = np.cumsum([0, *counts[:-1]])
    source = np.append(numbers[firsts], np.uint16(NO_SOURCE))[np.minimum(step, len(counts))]
    for number, within in place.items():
        taken = step == number
        source[taken] = numbers[firsts[number] + within[taken]]
    return value, count, source


def first_whole(
    scenes: NDArray[np.int16], counts: Sequence[int]
) -> tuple[NDArray[np.int16], dict[int, NDArray[np.uint8]]]:
    """Scenes fused into time steps, pixel by pixel with all bands: no spectrum is put together from two scenes.

    Parameters
    ----------
    scenes : int16 array, dims (scene, band, y, x)
    counts : sequence of int
        Scenes of each step, in order.

    Returns
    -------
    fused : int16 array, dims (step, band, y, x)
        The pixel of the first scene of the step that has all bands; where none has, that of the first scene.
    place : dict of step to uint8 array, dims (y, x)
        Which scene of the step that is, for steps of several scenes.
    """
    if len(scenes) == len(counts):
        return scenes, {}
    firsts = np.cumsum([0, *counts[:-1]])
    fused = scenes[firsts]
    place = {n: np.zeros(scenes.shape[2:], np.uint8) for n, count in enumerate(counts) if count > 1}
    for step, taken in place.items():
        lacking = (fused[step] == NODATA).any(axis=0)
        for following in range(1, counts[step]):
            scene = scenes[firsts[step] + following]
            found = lacking & (scene != NODATA).all(axis=0)
            np.copyto(fused[step], scene, where=found)
            taken[found] = following
            lacking &= ~found
    return fused, place
