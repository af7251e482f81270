"""``geoflow evaluate``: the maps of a finished run against a truth, and the paper's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoflow.cli_options import Json, Made, values_of
from geoflow.cli_screen import screen
from geoflow.errors import GeoflowError


def evaluate(
    out: Made,
    truth: Annotated[
        list[str] | None, typer.Option("--truth", metavar="EPOCH=FILE", help="Raster or vector of true class codes.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's Tables 2 to 9 of this run, into OUT/paper (docs/paper.md).")
    ] = False,
    single: Annotated[
        bool, typer.Option("--single", help="With --paper: also train one net per level, and compare.")
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="With --single: a training option in place of the job's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the maps of a finished run with a truth, or make the paper's tables of it.

    Example: geoflow evaluate out/quickstart --truth 2018=out/sample/truth/landcover_2018.tif
    """
    if (single or option) and not paper:
        raise GeoflowError("--single and --option belong to --paper")
    if not (truth or paper):
        raise GeoflowError("say what to compare with: --truth EPOCH=FILE, or --paper for the paper's tables")
    shown, answer = screen(as_json), {}
    pairs = [pair.partition("=") for pair in truth or ()]
    if wrong := [epoch + equals + path for epoch, equals, path in pairs if not (epoch and path)]:
        raise GeoflowError(f"--truth {wrong[0]!r}: write EPOCH=FILE, for example 2018=truth.tif")
    if pairs:
        from geoflow.jobs.evaluate import evaluate_run
        from geoflow.jobs.tables import overall_line, print_accuracy

        with shown.progress.waiting("comparing"):
            accuracy = evaluate_run(out, {epoch: Path(path) for epoch, _, path in pairs})
        answer["accuracy"] = accuracy
        print_accuracy(shown.out, accuracy)
        if shown.quiet:
            shown.last(overall_line(accuracy))
    if paper:
        from geoflow.jobs.paper import evaluate_paper
        from geoflow.jobs.paperreport import print_paper, write_paper

        found = evaluate_paper(out, single, values_of(option or []), shown.news.print)
        answer["paper"] = found
        written = write_paper(found, out)
        print_paper(shown.out, found)
        shown.last(f"All tables in [bold]{written}[/]")
    if as_json:
        shown.json(answer)
