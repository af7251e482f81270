"""``geoflow ensemble``, ``geoflow lr``, ``geoflow models``, ``geoflow weights``: what there is to do with nets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoflow.cli_options import Made, values_of


def ensemble(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Model folders, of the same bands and classes.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The model folder to write.")],
    flips: Annotated[
        bool, typer.Option("--flips", help="Look at every window in its eight rotations and reflections, too.")
    ] = False,
) -> None:
    """Join trained models into one that maps with the mean of their probabilities.

    Example: geoflow ensemble out/a/model out/b/model --to out/both
    """
    from rich.console import Console

    from geoflow.ensembles import ensemble as join
    from geoflow.modelfile import save_model

    joined = join(models, flips)
    sha256 = save_model(to, joined)
    Console(soft_wrap=True).print(f"{len(models)} models joined in [bold]{to}[/], model {sha256[:12]}")


def learning_rates(
    out: Made,
    stage: Annotated[str, typer.Option(help="classifier or train, as in the job.")] = "train",
    low: Annotated[float, typer.Option(min=1e-12, help="The first rate.")] = 1e-6,
    high: Annotated[float, typer.Option(help="The last rate.")] = 1.0,
    steps: Annotated[int, typer.Option(min=10, help="How many rates.")] = 60,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A training option in place of the job's.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves here, as PNG.")] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the curves here, as JSON.")] = None,
) -> None:
    """Find learning rates: the loss of a net as its rate rises, for every stage of its training.

    Example: geoflow lr out/quickstart --stage train --plot rates.png
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from geoflow.jobs.rates import plot_rates, rates_of
    from geoflow.places import write_bytes

    console = Console(soft_wrap=True)
    with console.status("trying rates ..."):
        found = rates_of(out, stage, low, high, steps, values_of(option or []))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("Stage", "Option", "Suggested", "Now", "Lowest loss at"):
        table.add_column(name)
    for sweep in found:
        table.add_row(sweep.stage, sweep.option, f"{sweep.suggested:.1e}", f"{sweep.now:.1e}", f"{sweep.best:.1e}")
    console.print(table)
    if to is not None:
        write_bytes(to, (json.dumps([sweep.to_dict() for sweep in found], indent=1) + "\n").encode())
    if plot is not None:
        plot_rates(found, plot)


models_app = typer.Typer(
    help="Model folders.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@models_app.callback()
def _models() -> None:
    """Model folders."""


@models_app.command("stac")
def stac(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model folder.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="FOLDER/item.json by default.")] = None,
) -> None:
    """Describe a model as a STAC item with the machine learning model extension.

    Example: geoflow models stac out/quickstart/model
    """
    from rich.console import Console

    from geoflow.modelitem import write_model_item

    Console(soft_wrap=True).print(f"STAC item in [bold]{write_model_item(folder, to)}[/]")


weights_app = typer.Typer(
    help="Published weights that training may start from.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@weights_app.command("list")
def list_weights() -> None:
    """Show the weights that are known by name, and where their files are looked for.

    Example: geoflow weights list
    """
    from rich.console import Console

    from geoflow.errors import ModelError
    from geoflow.weightsources import SOURCES, find_weights, weights_folder

    console = Console(soft_wrap=True)
    for name, source in SOURCES.items():
        try:
            where = f"here: {find_weights(name, source.encoder, pickle_allowed=True)}"
        except ModelError:
            where = f"not here: {source.url}"
        kind = "pickle" if source.pickled else "safetensors"
        console.print(f"[bold]{name}[/]: {source.encoder}, {' '.join(source.bands)}, {source.licence}, {kind}")
        console.print(f"  {where}", highlight=False)
    console.print(f"Files are fetched to {weights_folder()}")


@weights_app.command("fetch")
def fetch(name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `geoflow weights list`.")]) -> None:
    """Download published weights, the only way that geoflow ever downloads any.

    Example: geoflow weights fetch timm-resnet50
    """
    from rich.console import Console

    from geoflow.weightsources import SOURCES, fetch_weights

    file = fetch_weights(name)
    Console(soft_wrap=True).print(f"Weights {name} in [bold]{file}[/] (licence {SOURCES[name].licence})")
