"""``geoflow search``: the scenes of a job, used and refused, and how often they see its area."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from geoflow.cli_options import JobFile, Out, Settings


def search(
    job: JobFile,
    out: Out = None,
    settings: Settings = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Search again, and show what that would change; change nothing.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="With --refresh: take the new list over.")] = False,
    pixels: Annotated[
        bool,
        typer.Option(help="Check offsets against pixels. Without, metadata alone decide and nothing is frozen: quick."),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List the scenes of a job, used and refused, and count how often they see its area.

    Freezes the list as a run would, and writes OUT/scenes/footprints.parquet and OUT/scenes/coverage.png.

    Example: geoflow search jobs/quickstart.yaml
    """
    from rich.console import Console

    from geoflow.errors import GeoflowError
    from geoflow.jobs.console import RichConsole
    from geoflow.jobs.jobfile import load_job
    from geoflow.jobs.scenesearch import search_scenes
    from geoflow.jobs.scenetables import print_search

    if apply and not refresh:
        raise GeoflowError("--apply takes over what --refresh found: give both")
    console = Console(soft_wrap=True)
    loaded = load_job(job, settings or ())
    folder = out or Path("out") / loaded.name
    found = search_scenes(loaded, folder, refresh, not refresh or apply, pixels, RichConsole(Console(stderr=True)))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        print_search(console, found)
