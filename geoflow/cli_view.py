"""``geoflow view``: the map in a browser."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from geoflow.cli_options import Made, place_of
from geoflow.cli_screen import screen


def view(
    out: Made,
    zones: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Polygons to find and zoom to; the job's by default.", parser=place_of),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column with the names of the zones.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    everyone: Annotated[bool, typer.Option("--everyone", help="Allow a --host that other machines reach.")] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Look at a run in the browser: map, imagery, labels and change, side by side. Ctrl-C ends it.

    Example: geoflow view out/quickstart --zones out/sample/counties.gpkg --column name
    """
    import webbrowser

    from geoflow.viewer.facts import Facts
    from geoflow.viewer.server import ViewerServer

    facts = Facts(out, zones, column)
    with ViewerServer(facts, host, port, everyone) as server:
        if facts.zones_file() is not None:
            _ = server.zones  # a file that cannot be read is told now
        shown = screen()
        shown.last(f"{facts.store} is at [bold]{server.address}[/]; Ctrl-C ends it")
        if browser and not webbrowser.open(server.address):
            shown.news.print("No browser could be opened; open the address above.")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
