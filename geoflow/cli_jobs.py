"""``geoflow init``, ``geoflow validate``, ``geoflow schema``: writing a job file, and seeing that it is right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoflow.cli_options import JobFile, Json, Out, Settings, propose_catalogs
from geoflow.cli_screen import make_console, screen

if TYPE_CHECKING:
    from geoflow.jobs.validate import Problem, Validation

_COLOURS = {"error": "bold red", "warning": "yellow"}


def validate(job: JobFile, out: Out = None, settings: Settings = None, as_json: Json = False) -> None:
    """Look at a job and all that it names, without the network: every problem at once, with its line.

    Exit code 1 if something is wrong with the job; warnings alone are no reason.

    Example: geoflow validate jobs/estonia.yaml
    """
    from geoflow.jobs.validate import validate_job

    shown = screen(as_json)
    found = validate_job(job, settings or (), out, shown.progress)
    if as_json:
        shown.json(found.to_dict())
    else:
        for problem in found.problems:
            _print_problem(found.file, problem)
    shown.last(_verdict(found))
    if found.errors:
        raise typer.Exit(1)


def _print_problem(file: Path, problem: Problem) -> None:
    """As compilers write it, so that editors and terminals find the line."""
    console = make_console()
    place = f"{file}:{problem.line}" if problem.line else str(file)
    console.print(f"{place}: ", end="", markup=False, highlight=False)
    console.print(problem.level, end="", style=_COLOURS[problem.level])
    console.print(f": {problem.message}", markup=False, highlight=False)


def _verdict(found: Validation) -> str:
    warnings = len(found.problems) - found.errors
    counted = [f"{n} {word}{'s' * (n != 1)}" for n, word in ((found.errors, "error"), (warnings, "warning")) if n]
    if found.errors:
        return f"[bold]{found.file}[/]: [bold red]{', '.join(counted)}[/]"
    facts, told = found.facts, []
    if "tiles" in facts:
        height, width = facts["shape"]
        told.append(f"{facts['area_km2']:,.0f} km², {width:,} x {height:,} px of {facts['resolution_m']:g} m")
        told.append(f"{facts['tiles']:,} tile{'s' * (facts['tiles'] != 1)}")
    if "bytes_to_write" in facts:
        told.append(f"writes at most {facts['bytes_to_write'] / 1e9:,.2f} GB")
    valid = "[green]valid[/]" + (f", {', '.join(counted)}" if counted else "")
    return f"[bold]{found.file}[/]: {valid}; {', '.join(told)}. Next: geoflow plan {found.file}"


def schema(
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it here instead of printing it.", show_default=False)
    ] = None,
) -> None:
    """Print the JSON Schema of job files, with which editors complete and check them.

    Example: geoflow schema --to jobs/job.schema.json
    """
    from geoflow.errors import GeoflowError
    from geoflow.jobs.schema import schema_text

    if to is None:
        typer.echo(schema_text(), nl=False)
        return
    try:
        to.write_text(schema_text(), encoding="utf-8")
    except OSError as error:
        raise GeoflowError(f"--to {to} cannot be written: {error.strerror}") from None
    screen().last(f"JSON Schema of job files in [bold]{to}[/]")


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job file to write.", show_default=True)] = Path(
        "job.yaml"
    ),
    area: Annotated[
        str | None,
        typer.Option(metavar="FILE|W,S,E,N", help="File with the border, or a box in degrees.", show_default=False),
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Which features of that file, e.g. \"NAME = 'Estonia'\".")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the job; that of FILE by default.")] = None,
    catalog: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Where scenes come from: a catalog, or a catalog.json of STAC; earth-search by default.",
            autocompletion=propose_catalogs,
        ),
    ] = None,
    epochs: Annotated[str | None, typer.Option(metavar="YEAR,...", help="Years to map; 2018,2024 by default.")] = None,
    legend: Annotated[str | None, typer.Option(metavar="corine|CSV", help="Classes; corine by default.")] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What to learn from: polygons or a raster of classes.")
    ] = None,
    labels_epoch: Annotated[
        str | None, typer.Option(metavar="YEAR", help="Epoch of the labels; by default as their file is named.")
    ] = None,
    bigearthnet: Annotated[
        Path | None, typer.Option(metavar="DIR", help="BigEarthNet, to train the encoder first; none by default.")
    ] = None,
    resolution: Annotated[float, typer.Option(min=1, metavar="M", help="Edge of a pixel, in metres.")] = 10.0,
    crs: Annotated[
        str | None, typer.Option(metavar="EPSG:CODE", help="EPSG:3035 in Europe, else the UTM zone, by default.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
) -> None:
    """Write a job file for your own area and labels, every key explained; on a terminal it asks what it needs.

    Example: geoflow init estonia.yaml --area border.gpkg --labels U2018_CLC2018_V2020_20u1.gpkg
    """
    import sys

    from geoflow.cli_interview import interview
    from geoflow.jobs.starter import Wishes, write_starter

    wishes = Wishes(
        area, name or file.stem, catalog, epochs, legend, labels, labels_epoch, bigearthnet, resolution, crs, where
    )
    if not yes and sys.stdin.isatty():
        wishes = interview(wishes, file.resolve().parent)
    written = write_starter(file, wishes, force)
    shown = screen()
    for line in written.notes:
        shown.out.print(f"  {line}", markup=False, highlight=False)
    shown.last(f"Job in [bold]{file}[/], and {written.schema.name} for editors. Next: geoflow validate {file}")
