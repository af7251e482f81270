"""The command line. Every command is a few lines over the Python interface; heavy modules load when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoflow.cli_accuracy import app as accuracy_app
from geoflow.cli_audit import audit
from geoflow.cli_bigearthnet import app as bigearthnet_app
from geoflow.cli_doctor import doctor
from geoflow.cli_evaluate import evaluate
from geoflow.cli_labels import app as labels_app
from geoflow.cli_models import ensemble, learning_rates, models_app, weights_app
from geoflow.cli_options import (
    JobFile,
    Limit,
    Made,
    Out,
    Retries,
    Settings,
    TaskTimeout,
    Where,
    end_on_termination,
    patience_of,
)
from geoflow.cli_runs import RUN_COMMANDS, drive
from geoflow.cli_search import search
from geoflow.cli_verify import verify
from geoflow.errors import GeoflowError, RunFailed
from geoflow.redact import guard_process

if TYPE_CHECKING:
    import rich.console

    from geoflow.jobs.plan import Plan

app = typer.Typer(
    help=(
        "Country-scale land cover and change maps from Sentinel-2 and CORINE.\n\n"
        "Start here: [bold]geoflow sample out/sample[/], then [bold]geoflow run jobs/quickstart.yaml[/]."
    ),
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Refresh = Annotated[bool, typer.Option("--refresh", help="Search the catalog again, although the scenes are frozen.")]


def _console(stderr: bool = False) -> rich.console.Console:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True)


def run(
    job: JobFile,
    out: Out = None,
    settings: Settings = None,
    cluster: Where = None,
    limit: Limit = None,
    refresh: Refresh = False,
    retries: Retries = 2,
    task_timeout: TaskTimeout = None,
) -> None:
    """Run a job, or finish one that was begun: what is done is kept.

    Example: geoflow run jobs/quickstart.yaml --out out/try --limit 2
    """
    from geoflow.jobs.console import RichConsole
    from geoflow.jobs.jobfile import load_job
    from geoflow.jobs.run import run_job
    from geoflow.jobs.tables import print_summary

    console = _console()
    loaded = load_job(job, settings or ())
    folder = out or Path("out") / loaded.name
    end_on_termination()
    try:
        patience = patience_of(retries, task_timeout)
        summary = run_job(loaded, folder, cluster, limit, refresh, RichConsole(console), patience)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. What is done is kept; to go on: [bold]geoflow run {job} --out {folder}[/]")
        raise typer.Exit(130) from None
    print_summary(console, summary, folder)
    if summary["status"] != "complete":
        raise RunFailed(f"{len(summary['failed'])} tasks failed; what is done is kept, run again to retry them")


def plan(
    job: JobFile, out: Out = None, settings: Settings = None, limit: Limit = None, refresh: Refresh = False
) -> None:
    """Show what a run would do, and start nothing."""
    from geoflow.jobs.console import RichConsole
    from geoflow.jobs.jobfile import load_job
    from geoflow.jobs.plan import make_plan
    from geoflow.jobs.tables import print_plan

    console = _console()
    loaded = load_job(job, settings or ())
    planned: Plan = make_plan(loaded, out, limit, refresh, RichConsole(console))
    print_plan(console, planned)


def areas(
    out: Made,
    zones: Annotated[Path | None, typer.Option(help="Polygons, in any CRS; the whole country without.")] = None,
    column: Annotated[str | None, typer.Option(help="Column with the names of the zones.")] = None,
    to: Annotated[Path | None, typer.Option(help="CSV to write; OUT/areas.csv by default.")] = None,
) -> None:
    """Write the hectares of every class, per epoch, level and zone, as a table.

    Example: geoflow areas out/quickstart --zones out/sample/counties.gpkg --column name
    """
    from geoflow.jobs.areas import areas_of_run
    from geoflow.places import write_bytes

    target = to or out / "areas.csv"
    table = areas_of_run(out, zones, column)
    try:
        write_bytes(target, table.round({"ha": 4, "share": 6}).to_csv(index=False).encode())
    except OSError as error:
        raise GeoflowError(f"--to {target} cannot be written: {error.strerror}") from None
    counted = f"{len(table)} rows, {table['zone'].nunique()} zones, epochs {', '.join(table['epoch'].unique())}"
    _console().print(f"Areas in [bold]{target}[/]: {counted}")


def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to make it.", show_default=False)],
    size: Annotated[
        str, typer.Option(help="small (2048 x 1280 px), tile (10980 x 10980 px), or WIDTHxHEIGHT.")
    ] = "small",
    seed: Annotated[int, typer.Option(help="Another seed is another country.")] = 2018,
    patches: Annotated[int | None, typer.Option(min=0, help="Number of BigEarthNet-like patches.")] = None,
) -> None:
    """Make the sample country: synthetic Sentinel-2 scenes, CORINE, patches, and the truth behind them."""
    from geoflow.sample import make_sample

    console = _console()
    with console.status("making the sample country ..."):
        manifest = make_sample(folder, size=size, seed=seed, patches=patches)
    console.print(f"Sample country in [bold]{folder}[/]: {len(manifest['files'])} files, size {size}, seed {seed}")


def version() -> None:
    """Print the version."""
    from geoflow import __version__

    typer.echo(f"geoflow {__version__}")


_RUNS, _DATA, _NETS = "Run a job", "Data and labels", "Nets"
_RESULTS, _HERE = "What came out", "This installation"

_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    _RUNS: {"run": run, "plan": plan, **RUN_COMMANDS},
    _RESULTS: {"evaluate": evaluate, "areas": areas, "verify": verify},
    _DATA: {"search": search, "audit": audit, "sample": sample},
    _NETS: {"lr": learning_rates, "ensemble": ensemble},
    _HERE: {"doctor": doctor, "version": version},
}
for _panel, _commands in _PANELS.items():
    for _name, _function in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_function)
app.command("drive", hidden=True)(drive)
for _panel, _name, _group in (
    (_RESULTS, "accuracy", accuracy_app),
    (_DATA, "labels", labels_app),
    (_DATA, "bigearthnet", bigearthnet_app),
    (_NETS, "models", models_app),
    (_NETS, "weights", weights_app),
):
    app.add_typer(_group, name=_name, rich_help_panel=_panel)


def main() -> None:
    """Entry point: a user's error is one message and an exit code; a traceback is for bugs."""
    guard_process()
    try:
        app()
    except GeoflowError as error:
        console = _console(stderr=True)
        console.print("[bold red]error:[/] ", end="")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(error.exit_code)
