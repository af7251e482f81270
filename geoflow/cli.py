"""The command line. Every command is a few lines over the Python interface; heavy modules load when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from geoflow.cli_accuracy import app as accuracy_app
from geoflow.cli_audit import audit
from geoflow.cli_bigearthnet import app as bigearthnet_app
from geoflow.cli_bigearthnet import make as make_patches
from geoflow.cli_doctor import doctor
from geoflow.cli_evaluate import evaluate
from geoflow.cli_export import export
from geoflow.cli_jobs import init, schema, validate
from geoflow.cli_labels import app as labels_app
from geoflow.cli_models import ensemble, learning_rates, models_app, weights_app
from geoflow.cli_options import (
    JobFile,
    Json,
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
from geoflow.cli_screen import Quiet, Verbose, give_manners, make_console, screen, set_volume
from geoflow.cli_search import search
from geoflow.cli_verify import verify
from geoflow.cli_view import view
from geoflow.counting import counted
from geoflow.errors import GeoflowError, RunFailed
from geoflow.redact import guard_process

app = typer.Typer(
    help=(
        "Country-scale land cover and change maps from Sentinel-2 and CORINE.\n\n"
        "Try it: [bold]geoflow sample out/sample[/], then [bold]geoflow run out/sample/quickstart.yaml[/].\n\n"
        "Your own area: [bold]geoflow init my.yaml[/], then validate, plan and run it."
    ),
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Refresh = Annotated[bool, typer.Option("--refresh", help="Search the catalog again, although the scenes are frozen.")]


def _tell_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version.", callback=_tell_version, is_eager=True, show_default=False),
]


@app.callback()
def _geoflow(verbose: Verbose = False, quiet: Quiet = False, told: Version = False) -> None:
    set_volume(verbose, quiet, from_start=True)


def run(
    job: JobFile,
    out: Out = None,
    settings: Settings = None,
    cluster: Where = None,
    limit: Limit = None,
    refresh: Refresh = False,
    retries: Retries = 2,
    task_timeout: TaskTimeout = None,
    as_json: Json = False,
) -> None:
    """Run a job, or finish one that was begun: what is done is kept.

    Example: geoflow run jobs/quickstart.yaml --out out/try --limit 2
    """
    from geoflow.jobs.jobfile import load_job
    from geoflow.jobs.run import run_job
    from geoflow.jobs.tables import how_it_ended, print_paths, print_summary

    shown = screen(as_json)
    loaded = load_job(job, settings or ())
    folder = out or Path("out") / loaded.name
    end_on_termination()
    patience = patience_of(retries, task_timeout)
    summary = run_job(loaded, folder, cluster, limit, refresh, shown.progress, patience)
    if as_json:
        shown.json(summary)
    print_summary(shown.out, summary)
    print_paths(shown.out, folder)
    shown.last(how_it_ended(summary, folder))
    if summary["status"] != "complete":
        raise RunFailed(
            f"{counted(len(summary['failed']), 'task')} failed; what is done is kept, run again to retry them"
        )


def plan(
    job: JobFile,
    out: Out = None,
    settings: Settings = None,
    limit: Limit = None,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """Show what a run would do, and start nothing.

    Example: geoflow plan jobs/quickstart.yaml --set grid.tile=1024
    """
    from geoflow.jobs.jobfile import load_job
    from geoflow.jobs.plan import make_plan
    from geoflow.jobs.tables import print_plan, what_it_takes

    shown = screen(as_json)
    planned = make_plan(load_job(job, settings or ()), out, limit, refresh, shown.progress)
    if as_json:
        shown.json(planned.to_dict())
    print_plan(shown.out, planned, shown.verbose)
    shown.last(what_it_takes(planned))


def areas(
    out: Made,
    zones: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Polygons, in any CRS; the whole country without.")
    ] = None,
    column: Annotated[str | None, typer.Option(metavar="NAME", help="Column with the names of the zones.")] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="CSV to write; OUT/areas.csv by default.")] = None,
    as_json: Json = False,
) -> None:
    """Write the hectares of every class, per epoch, level and zone, as a table.

    Example: geoflow areas out/quickstart --zones out/sample/counties.gpkg --column name
    """
    from geoflow.jobs.areas import areas_of_run
    from geoflow.places import write_bytes

    shown, target = screen(as_json), to or out / "areas.csv"
    with shown.progress.waiting("counting hectares"):
        table = areas_of_run(out, zones, column).round({"ha": 4, "share": 6})
    try:
        write_bytes(target, table.to_csv(index=False).encode())
    except OSError as error:
        raise GeoflowError(f"--to {target} cannot be written: {error.strerror}") from None
    if as_json:
        shown.json(table.to_dict("records"))
    held = f"{counted(len(table), 'row')}, {counted(table['zone'].nunique(), 'zone')}"
    shown.last(f"Areas in [bold]{target}[/]: {held}, epochs {', '.join(table['epoch'].unique())}")


def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to make it.", show_default=False)],
    size: Annotated[
        str, typer.Option(metavar="SIZE", help="small (2048 x 1280 px), tile (10980 x 10980 px), or WIDTHxHEIGHT.")
    ] = "small",
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed is another country.")] = 2018,
    patches: Annotated[int | None, typer.Option(min=0, metavar="N", help="Number of BigEarthNet-like patches.")] = None,
) -> None:
    """Make the sample country: synthetic Sentinel-2 scenes, CORINE, patches, and the truth behind them.

    Example: geoflow sample out/sample --size 1024x1024 --seed 7
    """
    from geoflow.sample import make_sample
    from geoflow.sample.job import JOB

    shown = screen()
    with shown.progress.waiting("making the sample country"):
        manifest = make_sample(folder, size=size, seed=seed, patches=patches)
    shown.last(
        f"Sample country in [bold]{folder}[/]: {counted(len(manifest['files']), 'file')}, size {size}, seed {seed}\n"
        f"Next: [bold]geoflow run {folder / JOB}[/]"
    )


def version() -> None:
    """Print the version.

    Example: geoflow version
    """
    from geoflow import __version__

    typer.echo(f"geoflow {__version__}")


_RUNS, _DATA, _NETS = "Jobs and runs", "Data and labels", "Nets"
_RESULTS, _HERE = "What came out", "This installation"

_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    _RUNS: {"init": init, "validate": validate, "run": run, "plan": plan, **RUN_COMMANDS},
    _RESULTS: {"view": view, "evaluate": evaluate, "areas": areas, "export": export, "verify": verify},
    _DATA: {"search": search, "audit": audit, "sample": sample},
    _NETS: {"lr": learning_rates, "ensemble": ensemble},
    _HERE: {"doctor": doctor, "schema": schema, "version": version},
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
give_manners(app, going_on=(run, audit, export, make_patches))


def main() -> None:
    """Entry point: a user's error is one message and an exit code; a traceback is for bugs."""
    guard_process()
    try:
        app()
    except GeoflowError as error:
        console = make_console(stderr=True)
        console.print("[bold red]error:[/] ", end="")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(error.exit_code)
