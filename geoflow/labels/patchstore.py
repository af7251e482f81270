"""BigEarthNet as one Zarr v3 store: made with every patch's place settled, filled chunk by chunk.

Along ``patch`` all that is read from files is chunked alike, so that one task writes whole chunks and no two tasks ever
touch the same file. A patch that cannot be read keeps its place, holds nodata and has ``valid`` 0. Moving the others up
instead would make each place depend on every file before it: then no chunk could be written, or written again, without
the ones before.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from geoflow.errors import LabelError
from geoflow.inputs import NODATA
from geoflow.labels.bigearthnet import PATCH_PX
from geoflow.labels.patchindex import Skipped, day_of
from geoflow.labels.patchlabels import SCHEMES, UNKNOWN, scheme_codes, scheme_legend
from geoflow.labels.patchplan import PatchPlan
from geoflow.labels.patchread import Layout, PatchChunk, Planned, codes_of
from geoflow.labels.splits import SPLIT_NAMES
from geoflow.places import entries, files_below, is_remote, place, upload, whole_array, write_bytes, zarr_store

FORMAT = "geoflow-patches-2"
ATTRIBUTE = "geoflow_patches"
ATTRIBUTION = "BigEarthNet (CDLA-Permissive-1.0), contains modified Copernicus Sentinel data 2017-2018"
PIXEL_CODECS = (BloscCodec(typesize=2, cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec())
SMALL_CODECS = (ZstdCodec(level=1), Crc32cCodec())
"""Each chunk ends in a checksum, so that flipped bits are an error on reading and never pixels."""

_PLAN_ROWS = 4096
_NOT_A_DAY = np.iinfo(np.int64).min


@dataclass(frozen=True)
class PatchStore:
    """A store as its own description tells it.

    Attributes
    ----------
    path : Path
    described : mapping
        What `create_store` wrote: ``id``, ``options``, ``layout``, ``patches``, ``chunk``, ``bands``, ``dropped``,
        ``strangers``, ``splits``, ``default_split``, ``software``; and after the last chunk ``complete``,
        ``read``, ``skipped``.
    """

    path: Path
    described: Mapping[str, Any]

    @property
    def patches(self) -> int:
        """Places, those of skipped patches included."""
        return int(self.described["patches"])

    @property
    def chunk(self) -> int:
        """Patches of a chunk; the last may have fewer."""
        return int(self.described["chunk"])

    @property
    def chunks(self) -> int:
        """Chunks along ``patch``."""
        return -(-self.patches // self.chunk)

    @property
    def bands(self) -> tuple[str, ...]:
        """Band names in the order of the pixels."""
        return tuple(self.described["bands"])

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return PATCH_PX, PATCH_PX

    @property
    def layout(self) -> Layout:
        """Where the files lie that it is made from."""
        return Layout(**self.described["layout"])

    def rows(self, number: int) -> slice:
        """The places of a chunk."""
        return slice(number * self.chunk, min((number + 1) * self.chunk, self.patches))

    def planned(self, number: int) -> list[Planned]:
        """What belongs into a chunk."""
        group = zarr.open_group(zarr_store(self.path), mode="r", use_consolidated=False)
        names, folders, listed = (
            np.asarray(_array(group, name)[self.rows(number)]) for name in ("name", "plan/folder", "plan/listed")
        )
        return [Planned(str(n), str(f), c) for n, f, c in zip(names, folders, codes_of(listed), strict=True)]

    def write(self, number: int, chunk: PatchChunk) -> tuple[Path, ...]:
        """Write a chunk whole, and name its files."""
        files = []
        for name, values in chunk.arrays().items():
            whole_array(self.path, name)[self.rows(number)] = values
            files.append(self.path.joinpath(name, "c", str(number), *("0" for _ in values.shape[1:])))
        return tuple(files)

    def facts(self, name: str) -> NDArray[Any]:
        """All values of a variable that is small for each patch, skipped ones included."""
        return np.asarray(_array(zarr.open_group(zarr_store(self.path), mode="r", use_consolidated=False), name)[:])

    def pixels(self, bands: Sequence[str]) -> Callable[[slice], NDArray[np.int16]]:
        """A function from places to the pixels of some bands, int16, dims (patch, band, y, x).

        Raises
        ------
        LabelError
            If the store lacks one of the bands.
        """
        if missing := [band for band in bands if band not in self.bands]:
            raise LabelError(f"{self.path} has no band {missing[0]}; it has {', '.join(self.bands)}")
        array = _array(zarr.open_group(zarr_store(self.path), mode="r", use_consolidated=False), "cube")
        at = [self.bands.index(band) for band in bands]
        whole = at == list(range(len(self.bands)))

        def read(places: slice) -> NDArray[np.int16]:
            cube = np.asarray(array[places])
            return cube if whole else cube[:, at]

        return read

    def split_counts(self) -> dict[str, dict[str, int]]:
        """Patches that were read of each part of each split."""
        group = zarr.open_group(zarr_store(self.path), mode="r", use_consolidated=False)
        valid = np.asarray(_array(group, "valid")[:]) == 1
        counts = {}
        for split in self.described["splits"]:
            parts = np.bincount(np.asarray(_array(group, f"split_{split}")[:])[valid], minlength=len(SPLIT_NAMES))
            counts[split] = {name: int(parts[code]) for code, name in SPLIT_NAMES.items()}
        return counts

    def labels(self, scheme: str) -> NDArray[np.uint8]:
        """Labels of the patches that were read, dims (patch, class): a few dozen bytes a patch."""
        group = zarr.open_group(zarr_store(self.path), mode="r", use_consolidated=False)
        valid = np.asarray(_array(group, "valid")[:]) == 1
        return np.asarray(_array(group, f"label_{scheme}")[:])[valid]

    def moments(self) -> Iterator[NDArray[np.float64]]:
        """Tables of `patch_moments`, chunk by chunk."""
        array = _array(zarr.open_group(zarr_store(self.path), mode="r", use_consolidated=False), "moments")
        yield from (np.asarray(array[self.rows(number)]) for number in range(self.chunks))

    def finish(self, read: int, skipped: Sequence[Skipped]) -> None:
        """Say in the store that it is complete, and what came of it."""
        facts = {"complete": True, "read": read, "skipped": len(skipped)}
        table = io.StringIO(newline="")
        csv.writer(table, lineterminator="\n").writerows([("name", "reason"), *skipped])
        write_bytes(self.path / "skipped.csv", table.getvalue().encode())
        group = zarr.open_group(zarr_store(self.path), mode="r+", use_consolidated=False)
        group.attrs.update({ATTRIBUTE: {**self.described, **facts}})
        _consolidate(self.path)


def read_store(path: str | Path) -> PatchStore:
    """The store at a path.

    Raises
    ------
    LabelError
        If there is none, or it is something else.
    """
    path = place(path)
    if not (path / "zarr.json").is_file():
        raise LabelError(
            f"no patches at {path}: there is no such Zarr store; make one with geoflow bigearthnet SRC OUT"
        )
    described = zarr.open_group(zarr_store(path), mode="r", use_consolidated=False).attrs.asdict().get(ATTRIBUTE)
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise LabelError(f"{path}: is a Zarr store, but not one of patches of this geoflow ({FORMAT})")
    return PatchStore(path, described)


def store_id(path: Path) -> str | None:
    """The id of the plan that a store was made for, whether complete or not; None where there is none."""
    try:
        return str(read_store(path).described["id"])
    except LabelError:
        return None


def create_store(path: str | Path, plan: PatchPlan) -> PatchStore:
    """Make the store of a plan, with places for all patches and nothing in them; it appears under its name once whole.

    Raises
    ------
    LabelError
        If the place is taken, or cannot be written to.
    """
    path = place(path)
    if any(entries(path)) or path.exists():
        raise LabelError(f"{path} is there already")
    described = _describe(plan)
    if is_remote(path):
        _upload_arrays(path, plan, described)
        return PatchStore(path, described)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        _create_arrays(draft, plan, described)
        draft.rename(path)
    except OSError as problem:
        raise LabelError(f"{path} cannot be written: {problem.strerror or problem}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return PatchStore(path, described)


def _upload_arrays(path: Path, plan: PatchPlan, described: dict[str, Any]) -> None:
    """Made here and uploaded, the root's metadata last: before that it is no store."""
    with tempfile.TemporaryDirectory(prefix="geoflow-") as name:
        made = Path(name) / path.name
        _create_arrays(made, plan, described)
        try:
            for file, _ in sorted(files_below(made), key=lambda one: one[0] == made / "zarr.json"):
                upload(file, path / file.relative_to(made).as_posix())
        except OSError as problem:
            raise LabelError(f"{path} cannot be written: {problem.strerror or problem}") from None


def _describe(plan: PatchPlan) -> dict[str, Any]:
    from geoflow import __version__

    index, options = plan.index, plan.options
    return {
        "format": FORMAT,
        "options": options.described(plan.source),
        "layout": {"root": str(index.root), "version": index.version, "maps": index.maps},
        "found": len(index.names),
        "patches": len(plan),
        "dropped": plan.dropped,
        "strangers": {"names": len(plan.strangers), "first": list(plan.strangers[:5])},
        "chunk": options.chunk,
        "bands": list(options.bands),
        "splits": sorted(plan.splits),
        "default_split": plan.default_split,
        "tables": [path.name for path in options.metadata or index.tables],
        "software": {"geoflow": __version__, "zarr": zarr.__version__, "numpy": np.__version__},
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "attribution": ATTRIBUTION,
        "complete": False,
        "id": plan.id,
    }


def _create_arrays(path: Path, plan: PatchPlan, described: dict[str, Any]) -> None:
    attrs = {ATTRIBUTE: described, "Conventions": "CF-1.11", "title": f"BigEarthNet v{plan.index.version} patches"}
    group = zarr.create_group(path, zarr_format=3, attributes=attrs)
    _write_known(group, plan)
    _make_read(group, plan)
    _consolidate(path)


def _write_known(group: zarr.Group, plan: PatchPlan) -> None:
    """What is known before a file is opened."""
    days = np.array([day_of(name) for name in plan.names], "datetime64[D]")
    numbers = np.where(np.isnat(days), _NOT_A_DAY, days.astype(np.int64))
    time = {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian", "standard_name": "time"}
    _put(group, "name", np.array(plan.names, object), ("patch",))
    _put(group, "v1_name", np.array(plan.v1_names, object), ("patch",))
    _put(group, "country", np.array(plan.countries, object), ("patch",))
    _put(group, "date", numbers, ("patch",), _NOT_A_DAY, {**time, "_FillValue": int(_NOT_A_DAY)})
    _put(group, "snow", plan.snow.astype(np.uint8), ("patch",), 0, {"long_name": "flagged: seasonal snow"})
    _put(group, "cloud", plan.cloud.astype(np.uint8), ("patch",), 0, {"long_name": "flagged: cloud or shadow"})
    parts = {"flag_values": list(SPLIT_NAMES), "flag_meanings": " ".join(SPLIT_NAMES.values())}
    for name, values in plan.splits.items():
        _put(group, f"split_{name}", values, ("patch",), 0, parts)
    _put(group, "band", np.array(plan.options.bands, object), ("band",))
    for scheme in SCHEMES:
        legend, codes = scheme_legend(scheme), np.array(scheme_codes(scheme), np.uint16)
        meanings = {"long_name": "class code", "class_names": [legend.label(int(code)) for code in codes]}
        _put(group, f"{scheme}_code", codes, (f"{scheme}_code",), 0, meanings)
    hidden = group.create_group("plan")
    _put(hidden, "folder", np.array(plan.folders, object), ("patch",))
    _put(hidden, "listed", plan.listed, ("patch", "nineteen_code"), UNKNOWN)


def _put(
    group: zarr.Group,
    name: str,
    values: NDArray[Any],
    dims: tuple[str, ...],
    fill: int = 0,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    text = values.dtype == object
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=str if text else values.dtype,
        chunks=(min(_PLAN_ROWS, len(values)), *values.shape[1:]),
        fill_value="" if text else fill,
        dimension_names=dims,
        compressors=SMALL_CODECS,
        attributes=dict(attrs or {}),
    )
    array[:] = values


def _make_read(group: zarr.Group, plan: PatchPlan) -> None:
    """What the files will fill, empty."""
    rows, count, bands = min(plan.options.chunk, len(plan)), len(plan), len(plan.options.bands)
    edge = (PATCH_PX, PATCH_PX)

    def make(name: str, dtype: str, fill: float, dims: tuple[str, ...], tail: tuple[int, ...], **attrs: Any) -> None:
        group.create_array(
            name,
            shape=(count, *tail),
            dtype=dtype,
            chunks=(rows, *tail),
            fill_value=fill,
            dimension_names=("patch", *dims),
            compressors=PIXEL_CODECS if dims[-2:] == ("y", "x") else SMALL_CODECS,
            attributes=attrs,
        )

    pixels = {"long_name": "reflectance", "units": "1e-4", "nodata": NODATA}
    make("cube", "int16", NODATA, ("band", "y", "x"), (bands, *edge), **pixels)
    if plan.index.maps:
        make("reference_map", "uint16", 0, ("y", "x"), edge, long_name="CLC level-3 code", nodata=0)
    for scheme in SCHEMES:
        told = f"1 where the patch holds the class, {UNKNOWN} where that is not known"
        make(f"label_{scheme}", "uint8", UNKNOWN, (f"{scheme}_code",), (len(scheme_codes(scheme)),), long_name=told)
    moments = {"long_name": "pixels that are not nodata, their mean, their sum of squared deviations"}
    make("moments", "float64", 0, ("band", "moment"), (bands, 3), **moments)
    make("valid", "uint8", 0, (), (), long_name="1 where the patch was read, 0 where it was skipped")
    make("epsg", "int32", 0, (), (), long_name="EPSG code of the patch's CRS")
    make("left", "float64", np.nan, (), (), long_name="easting of the upper left corner", units="metre")
    make("top", "float64", np.nan, (), (), long_name="northing of the upper left corner", units="metre")


def _consolidate(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        warnings.filterwarnings("ignore", message="Object at (receipts|skipped.csv) is not recognized")
        zarr.consolidate_metadata(zarr_store(path))


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise LabelError(f"{group.path}/{name} is no array: geoflow did not make it")
    return found
