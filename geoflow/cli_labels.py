"""``geoflow labels``: windows of image and labels from a finished run, and how much a random split of them flatters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from geoflow.cli_options import Json, values_of
from geoflow.cli_screen import screen
from geoflow.counting import counted

app = typer.Typer(
    help="Windows of image and labels of a finished run, and how much a random split of them flatters.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a finished run.", show_default=False)]
WindowPx = Annotated[int, typer.Option("--window", min=1, metavar="PX", help="Edge of a window, in pixels.")]
BlockPx = Annotated[int, typer.Option("--block", min=1, metavar="PX", help="Edge of a block: a multiple of a window.")]


@app.command()
def windows(
    out: Out,
    to: Annotated[Path, typer.Argument(metavar="ZARR", help="The store to make.", show_default=False)],
    window: WindowPx = 120,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many; all that serve without.")] = None,
    split: Annotated[
        str, typer.Option(help="random (the paper's), blocked: whole blocks, or squares: rings in each block.")
    ] = ("blocked"),
    shares: Annotated[
        tuple[float, float, float], typer.Option(metavar="TRAIN VALIDATION TEST", help="Of the windows; sum 1.")
    ] = (0.7, 0.1, 0.2),
    block: BlockPx = 960,
    gap: Annotated[
        int, typer.Option(min=0, metavar="PX", help="Training windows nearer to another part are left out.")
    ] = 0,
    border: Annotated[
        float, typer.Option(min=0, metavar="M", help="Labels nearer to a border, in metres, draw no window.")
    ] = 50.0,
    labelled: Annotated[float, typer.Option(min=0, max=1, help="Least share of labelled pixels.")] = 0.9,
    rarity: Annotated[float, typer.Option(min=0, max=1, help="0 draws by area, 1 all classes about alike.")] = 0.5,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed draws and splits otherwise.")] = 0,
    as_json: Json = False,
) -> None:
    """Write windows of composites and labels as pairs, with their split, into one Zarr store.

    Example: geoflow labels windows out/quickstart windows.zarr --count 100 --block 240
    """
    from geoflow.jobs.windows import Split, export_windows
    from geoflow.learning.windowing import WindowOptions

    options = WindowOptions(window, count, border, labelled, rarity, seed)
    found = export_windows(out, to, options, Split(split, shares, block, gap, seed))
    parts = ", ".join(f"{name} {n}" for name, n in found["parts"].items())
    shown = screen(as_json)
    if as_json:
        shown.json({"out": str(to), "windows": found["windows"], "parts": found["parts"], "codes": found["codes"]})
    shown.last(
        f"{counted(found['windows'], 'window')} in [bold]{to}[/]: {parts}; {counted(len(found['codes']), 'class')}"
    )


@app.command()
def leakage(
    out: Out,
    window: WindowPx = 120,
    block: BlockPx = 960,
    share: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the country that is held out.")] = 0.2,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Splits of each kind.")] = 3,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A training option in place of the job's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how much better a net scores on windows drawn at random than on blocks of their own.

    Trains the run's net anew, twice for each repeat: with the options of a long training that takes as long. Shorter
    ones tell of a net that learned less.

    Example: geoflow labels leakage out/quickstart --block 480 --option context_steps=150 --option steps=6
    """
    from geoflow.jobs.leakage import leakage_report
    from geoflow.jobs.tables import plain_table

    shown = screen(as_json)
    found = leakage_report(out, window, block, share, repeats, values_of(option or []), shown.news.print)
    for title, part in (
        ("Agreement with labels not seen, each net on its own", found),
        ("On the same ground, that both nets did not see", found["same_ground"]),
    ):
        if part is not None:
            table = plain_table(title, "Random", "Blocked", "Leakage", "Standard error")
            for row in _leakage_rows(part):
                table.add_row(*row)
            shown.out.print(table, "")
    if as_json:
        shown.json(found)


def _leakage_rows(part: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for level, figures in part["leakage"].items():
        for name in ("overall", "macro_f1"):
            error = figures[f"{name}_error"]
            yield (
                f"{level.replace('level', 'level ')}, {name.replace('_', ' ')}",
                f"{part['random'][level][name]:.3f}",
                f"{part['blocked'][level][name]:.3f}",
                f"{figures[name]:+.3f}",
                "-" if error is None else f"{error:.3f}",
            )
