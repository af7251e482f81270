"""``geoflow export``: a finished run as files for GIS programs, catalogs and people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoflow.cli_options import Json, Made, place_of
from geoflow.cli_screen import screen
from geoflow.counting import counted
from geoflow.errors import ExportError

if TYPE_CHECKING:
    from rich.console import Console

    from geoflow.exports.export import Exported, ExportedFile


def export(
    out: Made,
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder, or s3://BUCKET/FOLDER; OUT/export by default.", parser=place_of),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", help="map, confidence, labels, generalised, change, imagery; all but imagery."
        ),
    ] = None,
    level: Annotated[
        list[str] | None, typer.Option(metavar="N", help="Level of class maps, e.g. 3 or 1,3; all by default.")
    ] = None,
    epoch: Annotated[list[str] | None, typer.Option(metavar="EPOCH", help="Epoch, e.g. 2018; all by default.")] = None,
    bbox: Annotated[
        str | None, typer.Option(metavar="W,S,E,N", help="Only this box, in degrees; reaches out to whole pixels.")
    ] = None,
    area: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only within these polygons, in any CRS.", parser=place_of)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write files anew that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Write COGs with palettes, QGIS styles, attribute tables and pictures, polygons of change, and a STAC catalog.

    Example: geoflow export out/quickstart --layers map,change --level 3 --epoch 2018
    """
    import dataclasses

    from geoflow.exports.export import export as export_run
    from geoflow.exports.layers import USUAL, ExportChoice

    choice = ExportChoice(
        layers=tuple(_listed([layers])) if layers else USUAL,
        levels=tuple(_number(text, "--level") for text in _listed(level)),
        epochs=tuple(_listed(epoch)),
        bbox=_box(bbox),
        area=area,
    )
    shown = screen(as_json)
    exported = export_run(out, to, choice, force, shown.progress)
    if as_json:
        shown.json({**dataclasses.asdict(exported), "folder": str(exported.folder)})
        return
    _print_folders(shown.out, exported)
    for note in exported.notes:
        shown.out.print("[dim]note[/] ", end="")
        shown.out.print(note, markup=False, highlight=False)
    total = _size(sum(file.bytes for file in exported.files))
    shown.last(
        f"Export in [bold]{exported.folder}[/]: {counted(len(exported.files), 'file')}, {total}, "
        f"in {exported.seconds:.1f} s; open a .tif in QGIS, or collection.json with any STAC client"
    )


def _print_folders(out: Console, exported: Exported) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("folder")
    for name in ("files", "kept", "size"):
        table.add_column(name, justify="right")
    folders: dict[str, list[ExportedFile]] = {}
    for file in exported.files:
        folders.setdefault(file.path.rpartition("/")[0] or ".", []).append(file)
    for folder, files in folders.items():
        kept = sum(file.kept for file in files)
        table.add_row(folder, str(len(files)), str(kept or ""), _size(sum(file.bytes for file in files)))
    out.print(table, highlight=False)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _listed(given: list[str] | None) -> list[str]:
    """Values of an option that may be repeated, or hold several with commas between them."""
    return [part.strip() for text in given or () for part in text.split(",") if part.strip()]


def _number(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ExportError(f"{option} {text!r} is not a number") from None


def _box(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise ExportError(f"--bbox {text!r}: write west,south,east,north in degrees, for example 24,58,25,59") from None
    return west, south, east, north
