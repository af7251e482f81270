"""``geoflow bigearthnet``: BigEarthNet as one Zarr store, and its statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import rich.console

app = typer.Typer(
    help="BigEarthNet: its patches as one Zarr store to train from, and statistics of its labels and bands.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def stats(
    source: Annotated[
        Path,
        typer.Argument(metavar="STORE_OR_PARQUET", help="A store, or metadata.parquet of v2.", show_default=False),
    ],
    to_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write them as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw them: .png, .svg or .pdf.")] = None,
) -> None:
    """Show counts of every class, cardinality and density of every level, imbalance, splits, and mean and std of bands.

    Example: geoflow bigearthnet stats metadata.parquet --json stats.json --plot stats.png
    """
    from geoflow.jobs.patchreport import dataset_statistics, draw_statistics, print_statistics, write_statistics

    console = _console()
    with console.status("counting ..."):
        found = dataset_statistics(source)
    print_statistics(console, found)
    if to_json is not None:
        write_statistics(found, to_json)
    if plot is not None:
        draw_statistics(found, plot)
    if written := [f"[bold]{path}[/]" for path in (to_json, plot) if path is not None]:
        console.print(f"Written to {', '.join(written)}", highlight=False)


def _console() -> rich.console.Console:
    from rich.console import Console

    return Console(soft_wrap=True)
