"""Reading one band of one scene: the only place that opens scene files.

Both loaders read through it. A read is tried again where that may help; one that fails for good is a `ReadError` that
names the scene, the band, the link and the cause. It never becomes nodata.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from typing import Any, TypeVar

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from geoflow.errors import SceneError
from geoflow.imagery.catalog import Catalog, is_remote
from geoflow.imagery.harmonise import to_reflectance
from geoflow.imagery.resample import Resampling, Source, Target, is_window_of, resample
from geoflow.imagery.sign import forget_token, sign
from geoflow.places import gdal_options
from geoflow.stopwatch import READ, spending

GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": 2,  # quick ones inside GDAL for 429 and 5xx, which know Retry-After; the others are ours
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_NUM_THREADS": 1,  # more gave blank pixels in remote reads (OSGeo/gdal#11552); threads are Dask's business
    "GDAL_CACHEMAX": 256 * 2**20,  # bytes, for the whole process: rasterio takes a small number as bytes as well
}

_DRIVERS = ["GTiff", "JP2OpenJPEG"]  # no format that can point at other files
_UNCACHED = "/vsicurl/:/vsis3/"  # what GDAL must not take from its memory of earlier requests
_FIRST_PAUSE_S = 0.5

T = TypeVar("T")


class ReadError(SceneError):
    """A file of a scene that cannot be read, with the scene and the band for whoever can do without it."""

    def __init__(self, scene: str, band: str, message: str) -> None:
        super().__init__(scene, band, message)
        self.scene, self.band, self.message = scene, band, str(self.args[2])  # without secrets

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Access:
    """How a provider's files are opened: plain values, as they travel in a graph.

    Parameters
    ----------
    signing : "none" or "planetary-computer"
        See `geoflow.imagery.sign`.
    gdal : tuple of (name, value)
        GDAL options of the provider.
    attempts : int
        How often a remote read is tried; a local one is tried once.
    timeout_s : float
        Seconds that one request may take; half of it where nothing arrives. GDAL asks up to three times itself, so that
        a dead server costs ``3 * attempts * timeout_s`` at most.
    """

    signing: str = "none"
    gdal: tuple[tuple[str, str], ...] = ()
    attempts: int = 3
    timeout_s: float = 60.0

    @classmethod
    def of(cls, catalog: Catalog, attempts: int = 3, timeout_s: float = 60.0) -> Access:
        """Access to a catalog's files."""
        return cls(catalog.signing, tuple(sorted(catalog.gdal.items())), attempts, timeout_s)


@dataclass(frozen=True)
class SceneFile:
    """One band of one scene.

    Parameters
    ----------
    href : str
        Unsigned.
    scene, band : str
        What it is called when it cannot be read.
    add : int, optional
        What `geoflow.imagery.harmonise` adds to its digital numbers; None for classes.
    """

    href: str
    scene: str
    band: str
    add: int | None = None


@dataclass(frozen=True)
class ReadEvent:
    """A read that did not work at the first attempt, or not at all.

    Attributes
    ----------
    scene, band : str
    what : "retried" or "failed"
        Retries inside GDAL, of a single request, are among them.
    cause : str
        Without the query of a signed link.
    """

    scene: str
    band: str
    what: str
    cause: str

    def to_dict(self) -> dict[str, str]:
        """Plain values, for the ledger."""
        return asdict(self)


@dataclass
class ReadLog:
    """What went wrong while a lazy cube was computed, in the process that computed it.

    A copy in another process collects there: with a distributed scheduler, compute within one task, as jobs do.
    """

    events: list[ReadEvent] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, event: ReadEvent) -> None:
        """Note one event."""
        with self._lock:
            self.events.append(event)

    def __dask_tokenize__(self) -> str:
        """What is noted alters no pixel, and so no key of a graph."""
        return type(self).__name__

    def __getstate__(self) -> dict[str, Any]:
        return {"events": list(self.events)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.events, self._lock = state["events"], threading.Lock()


def read_file(file: SceneFile, access: Access, use: Callable[[DatasetReader], T], log: ReadLog | None = None) -> T:
    """Open one file of a scene, signed right now if need be, and use it; again after a failure that may pass.

    Parameters
    ----------
    file, access
    use : callable
        What to do with the open dataset; may be called once an attempt.
    log : ReadLog, optional
        Told about attempts that failed.

    Raises
    ------
    ReadError
        If the last attempt fails too, or the failure is one that stays: no such file, no permission, another format.
    """
    attempts = access.attempts if is_remote(file.href) else 1

    def note(what: str, cause: str) -> None:
        if log is not None:
            log.add(ReadEvent(file.scene, file.band, what, cause))

    for attempt in range(1, attempts + 1):
        address = _address(file.href, access.signing)
        try:
            with (
                _gdal_messages().noted(lambda cause: note("retried", cause)),
                rasterio.Env(**_options(access, fresh=attempt > 1 or attempts == 1)),
                DatasetReader(address, driver=_DRIVERS, sharing=False) as dataset,
            ):
                return use(dataset)
        except (RasterioError, OSError) as error:
            cause = _cause(error)
            # A second attempt in any case: a process remembers a missing file for good, though it may be there by now.
            again = attempt < attempts and (attempt == 1 or _may_pass(cause, access))
            note("retried" if again else "failed", cause)
            if not again:
                tried = f" (tried {attempt} times)" if attempt > 1 else ""
                where = f"scene {file.scene}, band {file.band}: {_unsigned(file.href)}"
                raise ReadError(file.scene, file.band, f"{where} cannot be read: {cause}{tried}") from error
            if _is_refusal(cause):
                forget_token(address)
        time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable: the last attempt returns or raises")


class _GdalMessages(logging.Filter):
    """Listens to what GDAL logs through rasterio: its own retries are noted, and no token of a link gets through."""

    def __init__(self) -> None:
        super().__init__()
        self._current = threading.local()

    @contextmanager
    def noted(self, note: Callable[[str], None]) -> Iterator[None]:
        """Tell ``note`` the cause of each retry in this thread, meanwhile."""
        self._current.note = note
        try:
            yield
        finally:
            self._current.note = None

    def filter(self, record: logging.LogRecord) -> bool:
        message = " ".join(_unsigned(word) for word in record.getMessage().split())
        record.msg, record.args = message, None
        note = getattr(self._current, "note", None)
        if note is None or "Retrying again" not in message:
            return True
        note(message.rpartition(" in ")[0].rpartition(" in ")[2].partition(" - ")[0])
        return False


@cache
def _gdal_messages() -> _GdalMessages:
    """The one listener of this process."""
    messages = _GdalMessages()
    logging.getLogger("rasterio._env").addFilter(messages)
    return messages


def _options(access: Access, fresh: bool) -> dict[str, Any]:
    """GDAL's configuration. It remembers failures and half-received files: another attempt must be ``fresh``."""
    timeouts = {
        "GDAL_HTTP_TIMEOUT": access.timeout_s,
        "GDAL_HTTP_CONNECTTIMEOUT": min(15.0, access.timeout_s),
        "GDAL_HTTP_LOW_SPEED_TIME": max(1, round(access.timeout_s / 2)),
        "GDAL_HTTP_LOW_SPEED_LIMIT": 100,  # bytes a second
    }
    uncached = {"CPL_VSIL_CURL_NON_CACHED": _UNCACHED} if fresh else {}
    return {**GDAL_OPTIONS, **timeouts, **gdal_options(), **dict(access.gdal), **uncached}


def _address(href: str, signing: str) -> str:
    """What GDAL opens. S3 goes to GDAL itself, which takes credentials from the environment."""
    if href.startswith("s3://"):
        return "/vsis3/" + href.removeprefix("s3://")
    return sign(href, signing)


def _may_pass(cause: str, access: Access) -> bool:
    """Whether another attempt may end better."""
    if "response code: 404" in cause or "NoSuchKey" in cause:
        return False
    return not _is_refusal(cause) or access.signing != "none"


def _is_refusal(cause: str) -> bool:
    return any(word in cause for word in ("response code: 401", "response code: 403", "AccessDenied", "Forbidden"))


def _cause(error: BaseException) -> str:
    """The innermost sentence, without the query of a signed link."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return " ".join(_unsigned(word) for word in text.split())


def _unsigned(word: str) -> str:
    """A link without its query, which may hold a token; anything else as it is."""
    return word.partition("?")[0] if "://" in word or "sig=" in word else word


def read_onto(
    file: SceneFile, target: Target, resampling: Resampling, access: Access, log: ReadLog | None = None
) -> NDArray[Any]:
    """One file of a scene on a grid, in the unit of the cube.

    Parameters
    ----------
    file, target, access, log
    resampling : "nearest", "bilinear" or "cubic"
        Of no account where the file's pixels are the grid's.

    Returns
    -------
    array, dims (y, x)
        int16, reflectance x 10000 and nodata -32768, if the file has an offset to add, see
        `geoflow.imagery.harmonise.to_reflectance`; else uint8 classes, nodata 0. No data where the file has none, see
        `geoflow.imagery.resample.resample`.

    Raises
    ------
    ReadError
        If the file cannot be read, or holds other numbers than Sentinel-2 level 2A does.
    """
    dtype = "uint8" if file.add is None else "uint16"

    def use(dataset: DatasetReader) -> NDArray[Any]:
        if dataset.dtypes != (dtype,):
            held = f"{dataset.count} bands of {', '.join(sorted(set(dataset.dtypes)))}"
            where = f"scene {file.scene}, band {file.band}: {_unsigned(file.href)}"
            raise ReadError(file.scene, file.band, f"{where} holds {held}; expected one band of {dtype}")
        return _digital_numbers(dataset, target, resampling)

    numbers = read_file(file, access, use, log)
    return numbers if file.add is None else to_reflectance(numbers, file.add)


def _digital_numbers(dataset: DatasetReader, target: Target, resampling: Resampling) -> NDArray[Any]:
    """Pixels of a dataset on a grid, 0 where it has no data."""
    source = Source(_crs_text(dataset.crs), dataset.transform, dataset.shape, dataset.dtypes[0])
    if (corner := is_window_of(source, target)) is not None:
        return _paste(dataset, corner, target.shape)

    def read(rows: slice, cols: slice) -> NDArray[Any]:
        return _pixels(dataset, rows, cols)

    return resample(read, source, target, resampling)


def _pixels(dataset: DatasetReader, rows: slice, cols: slice) -> NDArray[Any]:
    with spending(READ):
        values: NDArray[Any] = dataset.read(1, window=Window.from_slices(rows, cols))
    return values


def _paste(dataset: DatasetReader, corner: tuple[int, int], shape: tuple[int, int]) -> NDArray[Any]:
    """Read a window that may reach beyond the dataset; 0 outside."""
    (row, col), (height, width) = corner, shape
    rows = slice(max(0, row), min(dataset.height, row + height))
    cols = slice(max(0, col), min(dataset.width, col + width))
    if (rows.stop - rows.start, cols.stop - cols.start) == shape:
        return _pixels(dataset, rows, cols)
    out = np.zeros(shape, dataset.dtypes[0])
    if rows.start < rows.stop and cols.start < cols.stop:
        inside = out[rows.start - row : rows.stop - row, cols.start - col : cols.stop - col]
        inside[...] = _pixels(dataset, rows, cols)
    return out


@lru_cache(maxsize=64)
def _crs_text(crs: CRS) -> str:
    """A CRS as its code where it has one, else as WKT: what is compared and kept in caches."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt())


class SceneReader:
    """Reads one file onto the loader's grid, a window at a time; stackstac's ``Reader`` protocol.

    Each read opens and closes its own dataset. That costs a millisecond and leaves nothing to share between threads;
    chunks are as large as tiles, so a file is opened once or twice.
    """

    def __init__(
        self,
        *,
        url: str,
        spec: Any,
        resampling: Any,
        files: Mapping[str, SceneFile],
        access: Access,
        log: ReadLog | None,
        **_: Any,
    ) -> None:
        self.file = files[url]
        self.spec = spec
        self.resampling: Resampling = resampling.name
        self.access = access
        self.log = log

    def read(self, window: Window, **_: Any) -> NDArray[Any]:
        """Pixels of a window of the grid, see `read_onto`.

        Raises
        ------
        ReadError
            If the file cannot be read.
        """
        transform = self.spec.transform * Affine.translation(window.col_off, window.row_off)
        target = Target(f"EPSG:{self.spec.epsg}", transform, (int(window.height), int(window.width)))
        return read_onto(self.file, target, self.resampling, self.access, self.log)

    def close(self) -> None:
        """Nothing stays open between reads."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
