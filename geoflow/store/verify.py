"""Whether what receipts vouch for is there: bytes, codecs, counts of nodata, levels that nest.

Nothing here knows a job. A receipt is held against the files that it lists, layer by layer, so that memory holds one
layer of one tile at a time and each byte is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from geoflow.errors import GridError, LegendError
from geoflow.grid import Grid, Tile
from geoflow.legends import Legend
from geoflow.places import at_once, files_below, is_remote, read_bytes
from geoflow.store.pyramid import grid_of
from geoflow.store.receipts import NODATA_COUNTS, Receipts, crc32c, measure, relative

STORE = "country.zarr"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    path : str
        The file, relative to the output folder.
    what : str
        What is wrong with it, for people.
    stage, key : str
        The task that makes it; empty where that is the run itself (metadata, report).
    """

    path: str
    what: str
    stage: str = ""
    key: str = ""


@dataclass
class Checked:
    """What was looked at, and what is wrong with it; grows by `add`."""

    tasks: int = 0
    files: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    tiles: set[tuple[str, str]] = field(default_factory=set)
    """(group, tile) that intact receipts vouch for."""

    def read(self, size: int | None) -> None:
        """One more file was read, if it was."""
        self.files += size is not None
        self.bytes += size or 0

    def add(self, other: Checked) -> None:
        """Take in what somebody else found."""
        self.tasks += other.tasks
        self.files += other.files
        self.bytes += other.bytes
        self.problems += other.problems
        self.tiles |= other.tiles


@dataclass(frozen=True)
class Checks:
    """What a receipt is held against.

    Parameters
    ----------
    out : Path
        The output folder.
    grid : Grid, optional
        The store's. Without it bytes are checked, pixels are not.
    legend : Legend, optional
        Of the class maps. Without it levels are not compared with each other.
    unreadable : frozenset of str
        Arrays (``map/2018/level1``) whose own metadata are damaged: their bytes are checked, their pixels are not,
        because a reader that is told wrong would blame every tile.
    """

    out: Path
    grid: Grid | None = None
    legend: Legend | None = None
    unreadable: frozenset[str] = frozenset()

    def receipt(self, stage: str, key: str) -> Checked:
        """Hold one receipt against the files that it lists."""
        receipts, found = Receipts(self.out / "receipts"), Checked(tasks=1)
        path = receipts.path(stage, key)
        receipt = receipts.read(stage, key)
        if receipt is None:
            what = "the receipt is damaged" if path.exists() else "there is no receipt"
            found.problems.append(Problem(relative(path, self.out), what, stage, key))
            return found
        pixels: dict[str, dict[str, str]] = {}
        for name, said in receipt["files"].items():
            array = array_of(name)
            if array is None:
                _, size, what = self._bytes(name, said, keep=False)
                found.read(size)
                found.problems += [Problem(name, what, stage, key)] if what else []
            else:
                pixels.setdefault(array, {})[name] = said
        if pixels:
            self._pixels(receipt, pixels, found)
        return found

    def _bytes(self, name: str, said: str, keep: bool = True) -> tuple[bytes, int | None, str]:
        """(the content, how many bytes were read, what is wrong with it); the content only if it is to be kept."""
        path, content = self.out / name, b""
        try:
            if keep:
                content = read_bytes(path)
                measured = f"{len(content)} {crc32c(content)}"
            else:
                measured = measure(path)
        except FileNotFoundError:
            return b"", None, "is missing"
        except OSError as error:
            return b"", None, f"cannot be read: {error.strerror or error}"
        return content, int(measured.partition(" ")[0]), differs(measured, said)

    def _pixels(self, receipt: Mapping[str, Any], arrays: Mapping[str, Mapping[str, str]], found: Checked) -> None:
        stage, key = receipt["stage"], receipt["key"]
        held: dict[str, NDArray[Any]] = {}
        group = next(iter(arrays)).rpartition("/")[0]
        tile = None if self.grid is None else grid_of(self.grid, group).tile_by_id(key.rpartition("/")[2])
        said = receipt.get(NODATA_COUNTS, {})
        for array, files in arrays.items():
            name, nodata, whole = _name(array), 0, True
            for layer in self._layers(array, files, tile, stage, key, found):
                if layer is None:
                    whole = False
                    continue
                values, fill = layer
                nodata += int(np.count_nonzero(values == fill))
                if name in _KEPT or name.startswith("level"):
                    held[name] = values
                if name == "clear" and "empty_px" in receipt:  # a layer for each period
                    held["empty"] = np.append(held.get("empty", []), np.count_nonzero(values == 0))
            if whole and tile is not None and nodata != said.get(name):
                what = f"has {nodata} pixels of nodata, the receipt says {said.get(name)}"
                found.problems.append(Problem(f"{STORE}/{array}", what, stage, key))
        deepest = max((n for n in map(_name, arrays) if n.startswith("level")), key=_level, default="")
        contents = [*self._nesting(held, deepest), *_change(held), *_counted(held, deepest, receipt)]
        found.problems += [Problem(f"{STORE}/{group}", what, stage, key) for what in contents]
        found.tiles.add((group, key.rpartition("/")[2]))

    def _layers(
        self, array: str, files: Mapping[str, str], tile: Tile | None, stage: str, key: str, found: Checked
    ) -> Iterator[tuple[NDArray[Any], Any] | None]:
        """(pixels, nodata) of each layer of a tile; None for one that cannot be decoded, or need not be."""
        layers: dict[tuple[int, ...], dict[str, str]] = {}
        for name in files:
            layers.setdefault(chunk_place(name)[:-2], {})[name] = files[name]
        opened = None if tile is None or array in self.unreadable else self._metadata(array)
        for lead, of_layer in layers.items():
            contents, bad = {}, False
            read = at_once(lambda one: self._bytes(*one), list(of_layer.items()), is_remote(self.out))
            for name, (content, size, what) in zip(of_layer, read, strict=True):
                found.read(size)
                if what:
                    found.problems.append(Problem(name, what, stage, key))
                bad |= bool(what)
                contents[name] = content
            if bad or opened is None or tile is None:
                yield None
                continue
            try:
                yield _decoded(opened, array, contents, (*lead, tile.y, tile.x))
            except (ValueError, RuntimeError, OSError, KeyError, IndexError) as error:
                said = f"cannot be decoded: {' '.join(str(error).split())}"
                found.problems.append(Problem(next(iter(of_layer)), said, stage, key))
                yield None

    def _metadata(self, array: str) -> bytes | None:
        try:
            return read_bytes(self.out / STORE / array / "zarr.json")
        except OSError:
            return None  # found when the metadata are checked

    def _nesting(self, held: Mapping[str, NDArray[Any]], deepest: str) -> Iterator[str]:
        """What is wrong between the levels of a class map."""
        if self.legend is None or deepest not in held:
            return
        for name in held:
            if not name.startswith("level") or name == deepest:
                continue
            try:
                wrong = int(np.count_nonzero(self.legend.to_level(held[deepest], _level(name)) != held[name]))
            except LegendError as error:
                yield str(error)
                return
            if wrong:
                yield f"{name} is not the parent of {deepest} in {wrong} pixels"


_KEPT = ("change", "from_code", "to_code")


def _name(array: str) -> str:
    return array.rpartition("/")[2]


def _level(name: str) -> int:
    return int(name.removeprefix("level"))


def _decoded(
    metadata: bytes, array: str, contents: Mapping[str, bytes], region: tuple[int | slice, ...]
) -> tuple[NDArray[Any], Any]:
    """Pixels of a region, from chunks that were read already, and the value that is nodata."""
    make = zarr.core.buffer.default_buffer_prototype().buffer.from_bytes
    prefix = f"{STORE}/{array}/"
    held = {name.removeprefix(prefix): make(content) for name, content in contents.items()}
    opened = zarr.open_array(MemoryStore({"zarr.json": make(metadata), **held}), mode="r")
    return np.asarray(opened[region]), opened.fill_value


def _change(held: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """What is wrong between a change map and its codes: they are there where it says changed, and only there."""
    for name in ("from_code", "to_code"):
        if name in held and "change" in held:
            wrong = int(np.count_nonzero((held["change"] == 2) != (held[name] != 0)))
            if wrong:
                yield f"{name} and change disagree in {wrong} pixels"


def _counted(held: Mapping[str, NDArray[Any]], deepest: str, receipt: Mapping[str, Any]) -> Iterator[str]:
    """Where the pixels of classes, or of periods without a clear look, are not as many as the receipt says."""
    counts = receipt.get("counts", {})
    if deepest and counts and deepest not in counts:  # of labels, the deepest level's alone
        counts = {deepest: counts}
    for name in counts.keys() & held.keys():
        found = np.bincount(held[name].ravel())
        there = {str(code): int(found[code]) for code in np.flatnonzero(found).tolist() if code}
        if there != dict(counts[name]):
            yield f"{name} has other numbers of pixels by class than the receipt"
    if len(held.get("empty", ())) == len(receipt.get("empty_px", ())) and "empty" in held:
        if held["empty"].tolist() == list(receipt["empty_px"]):
            return
        yield f"clear is 0 in {held['empty'].tolist()} pixels of the periods, the receipt says {receipt['empty_px']}"


def differs(measured: str, said: str) -> str:
    """In words, how two texts of `measure` differ; nothing where they do not."""
    if measured == said:
        return ""
    size, was = measured.partition(" ")[0], said.partition(" ")[0]
    return f"has {size} bytes, not {was}" if size != was else "its bytes are not those that were written"


def array_of(name: str) -> str | None:
    """``map/2018/level1`` for ``country.zarr/map/2018/level1/c/0/1``; None for what is no chunk of the store."""
    head, bar, _ = name.partition("/c/")
    return head.removeprefix(f"{STORE}/") if bar and head.startswith(f"{STORE}/") else None


def chunk_place(name: str) -> tuple[int, ...]:
    """Indices of a chunk from its file's name."""
    return tuple(int(part) for part in name.rpartition("/c/")[2].split("/"))


def stray_chunks(out: Path, array: str, grid: Grid, tiles: frozenset[str], most: int = 10) -> tuple[int, list[str]]:
    """Files among the chunks of an array that belong to no tile which a receipt vouches for.

    Parameters
    ----------
    out : Path
    array : str
        ``map/2018/level1``.
    grid : Grid
    tiles : set of str
        Ids of the tiles that have a receipt.
    most : int
        Names to give.

    Returns
    -------
    count : int
    names : list of str
        The first of them, relative to ``out``.
    """
    count, names, grid = 0, list[str](), grid_of(grid, array)
    for path, _ in files_below(out / STORE / array / "c"):
        name = relative(path, out)
        try:
            *_, row, col = chunk_place(name)
            tile = grid.tile_at(row * grid.chunk // grid.tile, col * grid.chunk // grid.tile).id
        except (ValueError, GridError):
            tile = ""
        if tile not in tiles:
            count += 1
            names += [name] if len(names) < most else []
    return count, names
