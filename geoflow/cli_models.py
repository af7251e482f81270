"""``geoflow ensemble``, ``geoflow lr``, ``geoflow models``, ``geoflow weights``: what there is to do with nets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoflow.cli_options import Json, Made, values_of
from geoflow.cli_screen import screen


def ensemble(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Model folders, of the same bands and classes.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The model folder to write.")],
    flips: Annotated[
        bool, typer.Option("--flips", help="Look at every window in its eight rotations and reflections, too.")
    ] = False,
) -> None:
    """Join trained models into one that maps with the mean of their probabilities.

    Example: geoflow ensemble out/a/model out/b/model --to out/both
    """
    from geoflow.ensembles import ensemble as join
    from geoflow.modelfile import save_model

    joined = join(models, flips)
    sha256 = save_model(to, joined)
    screen().last(f"{len(models)} models joined in [bold]{to}[/], model {sha256[:12]}")


def learning_rates(
    out: Made,
    stage: Annotated[str, typer.Option(metavar="STAGE", help="classifier or train, as in the job.")] = "train",
    low: Annotated[float, typer.Option(min=1e-12, metavar="RATE", help="The first rate.")] = 1e-6,
    high: Annotated[float, typer.Option(metavar="RATE", help="The last rate.")] = 1.0,
    steps: Annotated[int, typer.Option(min=10, metavar="N", help="How many rates.")] = 60,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A training option in place of the job's.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves here, as PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Find learning rates: the loss of a net as its rate rises, for every stage of its training.

    Example: geoflow lr out/quickstart --stage train --plot rates.png
    """
    from geoflow.jobs.rates import plot_rates, rates_of
    from geoflow.jobs.tables import plain_table

    shown = screen(as_json)
    with shown.progress.waiting("trying rates"):
        found = rates_of(out, stage, low, high, steps, values_of(option or []))
    table = plain_table("Stage", "Option", "Suggested", "Now", "Lowest loss at", numbers=(2, 3, 4))
    for sweep in found:
        table.add_row(sweep.stage, sweep.option, f"{sweep.suggested:.1e}", f"{sweep.now:.1e}", f"{sweep.best:.1e}")
    if plot is not None:
        plot_rates(found, plot)
    if as_json:
        shown.json([sweep.to_dict() for sweep in found])
    shown.out.print(table)
    if plot is not None:
        shown.last(f"Drawn in [bold]{plot}[/]")


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
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="MODEL/item.json by default.")] = None,
) -> None:
    """Describe a model as a STAC item with the machine learning model extension.

    Example: geoflow models stac out/quickstart/model
    """
    from geoflow.modelitem import write_model_item

    screen().last(f"STAC item in [bold]{write_model_item(folder, to)}[/]")


def propose_weights(incomplete: str) -> list[str]:
    """Names of published weights."""
    from geoflow.weightsources import SOURCES

    return [name for name in SOURCES if name.startswith(incomplete)]


weights_app = typer.Typer(
    help="Published weights that training may start from.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@weights_app.command("list")
def list_weights(as_json: Json = False) -> None:
    """Show the weights that are known by name, and where their files are looked for.

    Example: geoflow weights list
    """
    from geoflow.errors import ModelError
    from geoflow.jobs.tables import plain_table
    from geoflow.weightsources import SOURCES, find_weights, weights_folder

    shown, rows = screen(as_json), []
    table = plain_table("Name", "Encoder", "Bands", "Licence", "File", "Here", numbers=())
    for name, source in SOURCES.items():
        try:
            file = str(find_weights(name, source.encoder, pickle_allowed=True))
        except ModelError:
            file = None
        kind = "pickle" if source.pickled else "safetensors"
        facts = {"encoder": source.encoder, "bands": source.bands, "licence": source.licence, "kind": kind}
        rows.append({"name": name, **facts, "url": source.url, "file": file})
        bands = " ".join(source.bands) if len(source.bands) <= 3 else f"{len(source.bands)} bands"
        table.add_row(name, source.encoder, bands, source.licence, kind, "yes" if file else "no")
    if as_json:
        shown.json(rows)
    shown.out.print(table)
    if shown.verbose:
        for row in rows:
            shown.out.print(f"  {row['name']}: {row['file'] or row['url']}", highlight=False)
    shown.last(f"Files lie in {weights_folder()}; geoflow weights fetch NAME brings one, -v tells from where")


@weights_app.command("fetch")
def fetch(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A name of `geoflow weights list`.", autocompletion=propose_weights),
    ],
) -> None:
    """Download published weights, the only way that geoflow ever downloads any.

    Example: geoflow weights fetch timm-resnet50
    """
    from geoflow.weightsources import SOURCES, fetch_weights

    file = fetch_weights(name)
    screen().last(f"Weights {name} in [bold]{file}[/] (licence {SOURCES[name].licence})")
