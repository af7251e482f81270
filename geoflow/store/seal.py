"""The seal of an output: which tasks a run verified, and what else belongs to its result.

Receipts vouch for what tasks write. The seal, ``OUT/receipts/seal.json``, vouches for the rest: that these receipts are
all there, for the metadata and coordinates of the stores, the frozen scenes, the report. What cannot be computed again
for certain, or is what everything else hangs on, it keeps a second time in ``OUT/receipts/copies.zip``: a few
megabytes, from which a damaged ``zarr.json`` gets its very bytes back.

While a run is at work the seal is open: nobody takes the output for complete, and the next run still knows which
receipts were verified.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geoflow.places import at_once, entries, files_below, is_remote, read_bytes, write_bytes
from geoflow.store.receipts import measure, read_sealed, relative, write_sealed
from geoflow.store.verify import STORE, Checked, Problem, differs

SEAL, COPIES = "receipts/seal.json", "receipts/copies.zip"
PATCHES = "patches.zarr"
_REPORTED = ("summary.json", "report.html", "map.png", "change.png")
FORMAT = 1


@dataclass(frozen=True)
class Seal:
    """What a run says about its output as a whole.

    Attributes
    ----------
    complete : bool
        Whether the last run came to its end, and everything was verified.
    job, legend, grid : mapping
        Plain values of the job, of the legend of its maps and of its grid.
    limit : int, optional
        Only so many tiles were asked for.
    tasks : mapping
        By stage and key, the checksums of the receipts that were verified.
    files : mapping
        By name, sizes and checksums of all that no receipt vouches for.
    """

    complete: bool
    job: Mapping[str, Any]
    legend: Mapping[str, Any] | None
    grid: Mapping[str, Any]
    limit: int | None
    tasks: Mapping[str, Mapping[str, str]]
    files: Mapping[str, str] = field(default_factory=dict)

    def write(self, out: Path) -> None:
        """Put the seal on an output, in place of an earlier one."""
        write_sealed(out / SEAL, {"format": FORMAT, **dataclasses.asdict(self)})

    def reopened(self) -> Seal:
        """The same while a run is at work."""
        return dataclasses.replace(self, complete=False)


def read_seal(out: Path) -> Seal | None:
    """The seal of an output; None where there is none that is whole."""
    values = read_sealed(out / SEAL)
    if values is None or values.get("format") != FORMAT:
        return None
    return Seal(**{f.name: values[f.name] for f in dataclasses.fields(Seal)})


def metadata_files(store: Path) -> Iterator[Path]:
    """Metadata of all groups and arrays of a national store, and all of the arrays that do not hold tiles.

    Folders of chunks are not listed: a country has millions.
    """
    yield store / "zarr.json"
    for path in entries(store)[0]:
        folders, files = entries(path)
        scalar = [p for p in files if p.name == "c"]  # whose only chunk has no place
        if scalar or any(p.name == "c" for p in folders) or _node(path / "zarr.json").get("node_type") == "array":
            yield path / "zarr.json"
            if not holds_tiles(path / "zarr.json"):
                yield from [*scalar, *(p for p, _ in files_below(path / "c"))]
        else:
            yield from metadata_files(path)


def holds_tiles(path: Path) -> bool:
    """Whether an array, by its ``zarr.json``, lies on the national grid."""
    return list(_node(path).get("dimension_names") or ())[-2:] == ["y", "x"]


def _node(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def sealed_files(out: Path, receipted: frozenset[str]) -> tuple[list[Path], list[Path]]:
    """What the seal vouches for: (files that it keeps a copy of, files that a run writes anew).

    Parameters
    ----------
    out : Path
    receipted : set of str
        Files within ``patches.zarr`` that receipts vouch for.
    """
    folders, files = entries(out)
    there = {path.name for path in folders}
    kept = list(metadata_files(out / STORE)) if STORE in there else []
    kept += [path for path, _ in files_below(out / PATCHES) if relative(path, out) not in receipted]
    scenes = entries(out / "scenes")[1]
    kept += [path for path in scenes if path.suffix == ".json"]
    anew = [path for path in scenes if path.suffix != ".json"]
    return kept, anew + [path for path in files if path.name in _REPORTED]


def write_copies(out: Path, paths: Sequence[Path]) -> None:
    """Keep files a second time; equal files make equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in zip(paths, at_once(read_bytes, paths, is_remote(out)), strict=True):
            entry = zipfile.ZipInfo(relative(path, out))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    write_bytes(out / COPIES, buffer.getvalue())


class Copies:
    """The second copies of an output; what is damaged among them is as good as not there.

    A damaged archive claims anything: `zipfile` answers a flipped method or flag with NotImplementedError, a lost
    password with RuntimeError.
    """

    def __init__(self, out: Path) -> None:
        self.names: tuple[str, ...] = ()
        self._archive: zipfile.ZipFile | None = None
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(read_bytes(out / COPIES)))
            self.names = tuple(self._archive.namelist())
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
            self._archive = None

    def read(self, name: str) -> bytes | None:
        """A copy, if it is there and whole."""
        if self._archive is None or name not in self.names:
            return None
        try:
            return self._archive.read(name)
        except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError):
            return None


def check_sealed(out: Path, seal: Seal | None) -> Checked:
    """Hold the files that no receipt vouches for against the seal.

    Where the seal itself is damaged its copies are what they are held against, and what neither of them knows is wrong:
    nobody can say that it is right.
    """
    found, copies = Checked(), Copies(out)
    if seal is None:
        what = "the seal is damaged" if (out / SEAL).exists() else "no run was completed here: there is no seal"
        found.problems.append(Problem(SEAL, what))
        names: Iterable[str] = sorted({relative(p, out) for p in _all(out)} | set(copies.names))
    else:
        names = seal.files
        if not seal.complete:
            found.problems.append(Problem(SEAL, "the last run did not come to its end"))
    ordered, said = list(names), {} if seal is None else seal.files
    compared = at_once(lambda name: _compare(out, name, said.get(name), copies), ordered, is_remote(out))
    found.files += len(ordered)
    found.problems += [Problem(name, what) for name, (what, _) in zip(ordered, compared, strict=True) if what]
    found.bytes += sum(size for _, size in compared)
    return found


def _all(out: Path) -> list[Path]:
    kept, anew = sealed_files(out, frozenset())
    # Pixels of patches have receipts of their own.
    return [p for p in kept if not relative(p, out).startswith(f"{PATCHES}/") or p.name == "zarr.json"] + anew


def _compare(out: Path, name: str, said: str | None, copies: Copies) -> tuple[str, int]:
    """(what is wrong, bytes read)."""
    try:
        if said is not None:
            measured = measure(out / name)
            return differs(measured, said), int(measured.partition(" ")[0])
        copy, content = copies.read(name), read_bytes(out / name)
    except FileNotFoundError:
        return "is missing", 0
    except OSError as error:
        return f"cannot be read: {error.strerror or error}", 0
    if copy is None:
        return "cannot be vouched for: neither the seal nor its copies are whole", len(content)
    return "" if copy == content else "its bytes are not those of its copy", len(content)


def restore(out: Path, names: Iterable[str], seal: Seal | None) -> list[str]:
    """Give files their bytes back from the copies; returns the names of those that could not be helped."""
    copies, left = Copies(out), []
    for name in names:
        content = copies.read(name)
        if content is None:
            left.append(name)
            continue
        write_bytes(out / name, content)
        if seal is not None and name in seal.files and measure(out / name) != seal.files[name]:
            left.append(name)
    return left
