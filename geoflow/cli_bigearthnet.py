"""``geoflow bigearthnet``: BigEarthNet as one Zarr store, and its statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from geoflow.cli_options import Json
from geoflow.cli_screen import screen
from geoflow.counting import counted

_DEFAULT = "make"


class _MakeByDefault(TyperGroup):
    """``geoflow bigearthnet SRC OUT`` is ``geoflow bigearthnet make SRC OUT``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See typer: put the default command in front where none is named."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_MakeByDefault,
    help=(
        "BigEarthNet: its patches as one Zarr store to train from, and statistics of its labels and bands.\n\n"
        "[bold]geoflow bigearthnet SRC OUT.zarr[/] makes the store: it is short for the command make."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(_DEFAULT)
def make(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="BigEarthNet v1 or v2, as published.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="The store to make.", show_default=False)],
    bands: Annotated[str | None, typer.Option(metavar="B02,B03,...", help="Only these; all 12 without.")] = None,
    metadata: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Table of v2, or several; those beside SRC without.", show_default=False),
    ] = None,
    flags: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="List of patches with cloud, shadow or snow; or several.", show_default=False
        ),
    ] = None,
    keep_flagged: Annotated[
        bool, typer.Option("--keep-flagged", help="Keep patches with cloud, shadow or snow, and mark them.")
    ] = False,
    split: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Your own split: patch name, part.", show_default=False)
    ] = None,
    validation: Annotated[float, typer.Option(min=0, max=1, help="Share that the random split holds back.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the order of the patches, and of the random split.")] = 0,
    chunk: Annotated[int, typer.Option(min=1, metavar="N", help="Patches of a chunk.")] = 128,
    cluster: Annotated[
        str, typer.Option(metavar="WHERE", help="local, threads, tcp://HOST:PORT, tls://HOST:PORT or file:PATH.")
    ] = "local",
    retry: Annotated[bool, typer.Option("--retry", help="Try patches again that were skipped.")] = False,
) -> None:
    """Make one Zarr store of BigEarthNet's patches, or finish one: what is done is kept.

    Example: geoflow bigearthnet BigEarthNet-v1.0 patches.zarr --flags patches_with_seasonal_snow.csv
    """
    from geoflow.jobs.patchingest import ingest_patches
    from geoflow.jobs.patchprogress import IngestProgress, print_ingested
    from geoflow.labels.patchplan import PatchOptions

    options = PatchOptions(
        metadata=tuple(metadata or ()),
        flags=tuple(flags or ()),
        keep_flagged=keep_flagged,
        split=split,
        validation=validation,
        seed=seed,
        chunk=chunk,
    )
    if bands is not None:
        options = replace(options, bands=tuple(band.strip() for band in bands.split(",") if band.strip()))
    shown = screen()
    with IngestProgress(shown.news) as progress:
        made = ingest_patches(source, out, options, cluster, retry, progress)
    print_ingested(shown.out, made, out)
    if shown.quiet:
        shown.last(f"[bold]{out}[/]: {counted(made.read, 'patch')}, {len(made.skipped):,} skipped")


@app.command()
def stats(
    source: Annotated[
        Path,
        typer.Argument(metavar="STORE_OR_PARQUET", help="A store, or metadata.parquet of v2.", show_default=False),
    ],
    as_json: Json = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw them: .png, .svg or .pdf.")] = None,
) -> None:
    """Show counts of every class, cardinality and density of every level, imbalance, splits, and mean and std of bands.

    Example: geoflow bigearthnet stats metadata.parquet --plot stats.png
    """
    from geoflow.jobs.patchreport import dataset_statistics, draw_statistics, print_statistics

    shown = screen(as_json)
    with shown.progress.waiting("counting"):
        found = dataset_statistics(source)
    if plot is not None:
        draw_statistics(found, plot)
    if as_json:
        shown.json(found.to_dict())
    print_statistics(shown.out, found)
    if plot is not None:
        shown.last(f"Drawn in [bold]{plot}[/]")
