"""`export`: a finished run as files for GIS programs, catalogs and people."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import rasterio
from rasterio.errors import RasterioIOError

from geoflow.errors import ExportError
from geoflow.exports.clip import Clip, clip_of
from geoflow.exports.cog import GDAL_CACHE_BYTES, write_cog
from geoflow.exports.layers import ExportChoice, choose
from geoflow.exports.rasters import STATE_TAG, Made, raster_of
from geoflow.exports.source import Source, open_source
from geoflow.jobs.console import Console, QuietConsole
from geoflow.places import failures, files_below, is_remote, local_copy, local_folder, place, write_bytes

if TYPE_CHECKING:
    from geoflow.exports.layers import Layer

FOLDER = "export"
"""Where an export lies within the output of its run, if nothing else is said."""

# What a file takes with its overviews, of the bytes of its pixels: more than was ever measured (docs/how-to/export.md).
_SHARE = {"classes": 0.25, "state": 0.25, "percent": 0.8, "reflectance": 1.3}


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export: its path within the folder, its size, whether it was there already."""

    path: str
    bytes: int
    kept: bool


@dataclass(frozen=True)
class Exported:
    """What `export` did.

    Attributes
    ----------
    folder : Path
    files : tuple of ExportedFile
        By path.
    seconds : float
    notes : tuple of str
        What somebody should know.
    """

    folder: Path
    files: tuple[ExportedFile, ...]
    seconds: float
    notes: tuple[str, ...] = ()


def export(
    out: str | Path,
    to: str | Path | None = None,
    choice: ExportChoice | None = None,
    force: bool = False,
    console: Console | None = None,
) -> Exported:
    """Write the layers of a finished run as COGs with QGIS styles, attribute tables and pictures, and a STAC catalog.

    Parameters
    ----------
    out : path
        The output folder of a run that came to its end.
    to : path, optional
        The folder to write to; ``OUT/export`` by default. In an object store all files are written anew.
    choice : ExportChoice, optional
        Which layers, levels and epochs, and of what part of the country; all but imagery by default.
    force : bool
        Write files anew that are there. Without, those of the same state of the run are kept.
    console : Console, optional

    Returns
    -------
    Exported

    Raises
    ------
    StoreError
        If there is no run.
    ExportError
        If the run is not complete, has not what is asked for, files of another state are in the way, the disk has no
        room, or the folder cannot be written.
    """
    start, console = time.monotonic(), console or QuietConsole()
    source, choice = open_source(out), choice or ExportChoice()
    chosen, clip = choose(source.layers, choice), clip_of(source.store.grid, choice)
    target = source.out / FOLDER if to is None else place(to)
    if is_remote(target) and not force and (target / "collection.json").exists():
        raise ExportError(f"{target} holds an export: --force writes all of it anew")
    try:
        # GDAL would keep as much of what it read as a twentieth of the machine's memory.
        with local_folder(target) as folder, rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES):
            work = _Work(source, clip, folder, force, console)
            files, notes = work.do(chosen)
    except failures() as error:
        raise ExportError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    return Exported(target, files, round(time.monotonic() - start, 2), notes)


@dataclass(frozen=True)
class _Work:
    """One export on its way."""

    source: Source
    clip: Clip
    folder: Path
    force: bool
    console: Console

    def do(self, chosen: Sequence[Layer]) -> tuple[tuple[ExportedFile, ...], tuple[str, ...]]:
        """(files of the export, notes)."""
        wanted = [raster_of(self.source, layer, self.clip) for layer in chosen]
        new = [made for made in wanted if self.force or not self._is_there(made)]
        if stale := [made for made in new if not self.force and self._is_in_the_way(made)]:
            raise ExportError(
                f"{self.folder / stale[0].layer.file} is of another state of the run, or of another part of it"
                f"{f', and {len(stale) - 1} more files are' if len(stale) > 1 else ''}: --force writes them anew, "
                "--to takes another folder"
            )
        self._check_room(new)
        for at, made in enumerate(new, start=1):
            self._write(made, f"{at} of {len(new)}")
        there, notes = self._with_earlier(wanted)
        made_now = {made.layer.stem for made in new}
        self._polygons(wanted, made_now)
        with self.console.waiting("drawing"):
            self._draw(wanted, made_now)
        with self.console.waiting("cataloguing"):
            catalog = self._catalogue(there)
        return self._files(there, made_now, catalog), notes

    def _is_there(self, made: Made) -> bool:
        """Whether a layer's files are there, of the same state."""
        file = self.folder / made.layer.file
        beside = [file.with_suffix(".qml")]
        if made.raster.classes:
            beside.append(file.with_name(f"{file.name}.aux.xml"))
        return _state(file) == made.state and all(path.exists() for path in beside)

    def _is_in_the_way(self, made: Made) -> bool:
        """Whether a file of another state, or none of ours, has a layer's name."""
        file = self.folder / made.layer.file
        return file.exists() and _state(file) != made.state

    def _check_room(self, new: Sequence[Made]) -> None:
        if not new:
            return
        drafts = max(made.raster.bytes for made in new) * 5 // 3  # as it is, with overviews
        needed = drafts + sum(int(made.raster.bytes * _SHARE[made.layer.content]) for made in new)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ExportError(
                f"{self.folder} has {free / 1e9:.1f} GB free, the export may need {needed / 1e9:.1f} GB, drafts "
                "included: ask for less (--layers, --level, --epoch), or write it elsewhere (--to)"
            )

    def _write(self, made: Made, place_in_line: str) -> None:
        from geoflow.exports.pictures import stretch_of

        file, start = self.folder / made.layer.file, time.monotonic()
        # What goes beside an old file is not of the new one, and without it the new one does not count as complete.
        for path in (file.with_name(f"{file.name}.aux.xml"), file.with_suffix(".qml"), file.with_suffix(".png")):
            path.unlink(missing_ok=True)
        with self.console.waiting(f"{made.layer.file} ({place_in_line})"):
            counts = write_cog(made.raster, file)
            if (table := made.auxiliary(counts)) is not None:
                write_bytes(file.with_name(f"{file.name}.aux.xml"), table)
            write_bytes(file.with_suffix(".qml"), made.style(counts, stretch_of(made, file)))
        size, seconds = file.stat().st_size / 1e6, time.monotonic() - start
        self.console.say(f"{place_in_line:>9}  {size:9.2f} MB  {seconds:6.1f} s  {made.layer.file}")

    def _with_earlier(self, wanted: Sequence[Made]) -> tuple[list[Made], tuple[str, ...]]:
        """Layers of this export and of earlier ones of the same state into the same folder; what is said of others."""
        asked = {made.layer.stem: made for made in wanted}
        there, other = [], []
        for layer in self.source.layers:
            if layer.stem in asked:
                there.append(asked[layer.stem])
            elif (self.folder / layer.file).exists():
                made = raster_of(self.source, layer, self.clip)
                if self._is_there(made):
                    there.append(made)
                else:
                    other.append(layer.file)
        said = "is of another state of the run or another part of it, and is left out of the catalog"
        return there, tuple(f"{name} {said}" for name in other)

    def _polygons(self, wanted: Iterable[Made], made_now: set[str]) -> None:
        """Patches of change: the run's own files, or those patches of them that meet the part that is exported."""
        for made in wanted:
            if made.layer.content != "state":
                continue
            pair, item = made.layer.group.partition("/")[2], made.layer.item
            target, beginning = self.folder / item, self.source.out / "change"
            if not (beginning / f"{pair}.gpkg").exists():
                continue
            if made.layer.stem not in made_now and (target / f"{item}.gpkg").exists():
                continue
            if self.clip.is_all:
                for ending in (".gpkg", ".parquet", "-transitions.csv"):
                    _copy(local_copy(beginning / f"{pair}{ending}"), target / f"{item}{ending}")
            else:
                _part_of(local_copy(beginning / f"{pair}.gpkg"), self.clip, target, item)

    def _draw(self, wanted: Sequence[Made], made_now: set[str]) -> None:
        from geoflow.exports.pictures import draw, draw_thumbnail
        from geoflow.exports.stac import THUMBNAIL

        first = {made.layer.item: made for made in reversed(wanted)}
        for made in wanted:
            file = self.folder / made.layer.file
            picture, thumbnail = file.with_suffix(".png"), file.with_name(THUMBNAIL)
            # One picture of a change shows its state, and from what to what.
            if not (made.layer.kind == "change" and made.coding is not None) and not picture.exists():
                draw(made, file, self.source, picture)
            if first[made.layer.item] is made and (made.layer.stem in made_now or not thumbnail.exists()):
                draw_thumbnail(made, file, thumbnail)

    def _catalogue(self, there: Sequence[Made]) -> list[Path]:
        from geoflow.exports.stac import Catalogue

        return Catalogue(self.source, self.folder, self.clip, tuple(there)).write()

    def _files(self, there: Iterable[Made], made_now: set[str], catalog: Iterable[Path]) -> tuple[ExportedFile, ...]:
        stems = {made.layer.stem: made.layer.stem in made_now for made in there}
        items = {made.layer.item: False for made in there}
        for made in there:
            items[made.layer.item] |= stems[made.layer.stem]
        written = {path.relative_to(self.folder).as_posix() for path in catalog}
        found = []
        for path, size in files_below(self.folder):
            name = path.relative_to(self.folder).as_posix()
            stem = path.name.partition(".")[0]
            if name in written:
                found.append(ExportedFile(name, size, False))
            elif stem in stems:
                found.append(ExportedFile(name, size, not stems[stem]))
            elif path.parent.name in items and path.parent.parent == self.folder:
                found.append(ExportedFile(name, size, not items[path.parent.name]))
        return tuple(found)


def _state(file: Path) -> str | None:
    """The state that a COG says it is of; None where there is none that can be read."""
    if not file.exists():
        return None
    try:
        with rasterio.open(file) as raster:
            found = raster.tags().get(STATE_TAG)
            return None if found is None else str(found)
    except RasterioIOError:
        return None


def _copy(source: Path, target: Path) -> None:
    from geoflow.places import local_file

    if source.exists():
        with local_file(target) as draft:
            shutil.copyfile(source, draft)


def _part_of(polygons: Path, clip: Clip, target: Path, name: str) -> None:
    """The patches that meet the part that is exported, whole ones: their areas are theirs."""
    import geopandas
    import shapely

    from geoflow.mapping.patchfile import write_polygons

    bounds = tuple(clip.geobox.boundingbox)
    frame = geopandas.read_file(polygons, bbox=bounds)  # by the file's index: the others are not read
    where = shapely.union_all(clip.outlines) if clip.outlines else shapely.box(*bounds)
    write_polygons([frame[frame.intersects(where)].reset_index(drop=True)], target, name, "change")
