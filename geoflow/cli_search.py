"""``geoflow search``: the scenes of a job, used and refused, and how often they see its area."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoflow.cli_options import JobFile, Json, Out, Settings
from geoflow.cli_screen import screen


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
    as_json: Json = False,
) -> None:
    """List the scenes of a job, used and refused, and count how often they see its area.

    Freezes the list as a run would, and writes OUT/scenes/footprints.parquet and OUT/scenes/coverage.png.

    Example: geoflow search jobs/quickstart.yaml
    """
    from geoflow.errors import GeoflowError
    from geoflow.jobs.jobfile import load_job
    from geoflow.jobs.scenesearch import search_scenes
    from geoflow.jobs.scenetables import how_many, print_search

    if apply and not refresh:
        raise GeoflowError("--apply takes over what --refresh found: give both")
    shown = screen(as_json)
    loaded = load_job(job, settings or ())
    folder = out or Path("out") / loaded.name
    found = search_scenes(loaded, folder, refresh, not refresh or apply, pixels, shown.progress)
    if as_json:
        shown.json(found.to_dict())
    print_search(shown.out, found)
    shown.last(how_many(found))
