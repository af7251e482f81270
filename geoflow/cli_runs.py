"""``geoflow submit``, ``list``, ``status``, ``logs``, ``cancel``, ``resume``: runs that go on by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoflow.cli_options import (
    JobFile,
    Json,
    Limit,
    Out,
    Retries,
    Settings,
    TaskTimeout,
    Where,
    end_on_termination,
    patience_of,
    propose_runs,
)
from geoflow.cli_screen import screen
from geoflow.counting import counted
from geoflow.errors import GeoflowError, RunFailed

if TYPE_CHECKING:
    from geoflow.cli_screen import Screen
    from geoflow.jobs.records import Record
    from geoflow.jobs.submit import SubmittedRun

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's id or the beginning of it, or an output folder.",
        show_default=False,
        autocompletion=propose_runs,
    ),
]
DriverName = Annotated[
    str | None,
    typer.Option(
        "--driver",
        metavar="WHAT",
        help="process (on this machine, outlives the terminal), slurm (a SLURM job), or cluster (a task there).",
    ),
]


def _driver(name: str | None) -> Any:
    if name not in (None, "process", "slurm", "cluster"):
        raise GeoflowError(f"--driver {name!r} is not known; use process, slurm or cluster")
    return name


def submit(
    job: JobFile,
    out: Out = None,
    settings: Settings = None,
    cluster: Where = None,
    limit: Limit = None,
    driver: DriverName = None,
    retries: Retries = 2,
    task_timeout: TaskTimeout = None,
    as_json: Json = False,
) -> None:
    """Begin a run that goes on by itself, and come back at once with its id.

    Example: geoflow submit jobs/estonia.yaml --cluster jobs/clusters/slurm.yaml
    """
    from geoflow.jobs.jobfile import load_job
    from geoflow.jobs.submit import submit as begin

    loaded = load_job(job, settings or ())
    begun = begin(loaded, cluster, out, limit, _driver(driver), patience_of(retries, task_timeout))
    _tell_begun(begun, as_json)


def resume(run: RunName, driver: DriverName = None, as_json: Json = False) -> None:
    """Submit again what a run was to do; what is done is kept.

    Example: geoflow resume out/estonia
    """
    from geoflow.jobs.submit import resume as begin

    _tell_begun(begin(run, _driver(driver)), as_json)


def _tell_begun(begun: SubmittedRun, as_json: bool) -> None:
    record, shown = begun.record, screen(as_json)
    if as_json:
        shown.json({"id": begun.id, "out": str(record.out), "driver": record.content["driver"]})
    shown.last(f"Run [bold]{begun.id}[/] goes on by itself, into {record.out}")
    for command, what in (
        ("status", "how far it is"),
        ("logs -f", "what it prints"),
        ("cancel", "stops it; what is done is kept"),
    ):
        shown.out.print(f"  {f'geoflow {command} {begun.id}':<{len(begun.id) + 16}}  [dim]{what}[/]", highlight=False)


def list_runs(
    as_json: Json = False,
    number: Annotated[int, typer.Option("--number", "-n", min=1, metavar="N", help="The latest N.")] = 20,
) -> None:
    """List the latest runs of this user on this machine; with -q their ids alone.

    Example: geoflow list -n 5
    """
    from geoflow.jobs.records import known_records
    from geoflow.jobs.runtables import brief, print_runs

    records, shown = known_records()[-number:], screen(as_json)
    if as_json:
        shown.json([brief(record) for record in records])
    elif shown.quiet:
        typer.echo("\n".join(record.id for record in records), nl=bool(records))
    else:
        print_runs(shown.out, records)


def status(run: RunName, as_json: Json = False) -> None:
    """Show how far a run is, or how it ended.

    Example: geoflow status out/quickstart
    """
    from geoflow.jobs.records import find_record, read_summary, records_of
    from geoflow.jobs.runtables import brief, print_run, state_line
    from geoflow.jobs.tables import how_it_ended, print_paths, print_summary
    from geoflow.places import place

    shown = screen(as_json)
    # An output of a geoflow that kept no records still has its summary.
    if (place(run) / "summary.json").is_file() and not records_of(place(run)):
        summary, out = read_summary(place(run)), place(run)
        if as_json:
            shown.json({"state": summary["status"], "out": str(out), "summary": summary})
    else:
        record = find_record(run)
        if as_json:
            shown.json(brief(record))
        print_run(shown.out, record)
        if record.state not in ("complete", "failed") or not (record.out / "summary.json").is_file():
            if shown.quiet:
                shown.last(state_line(record))
            return
        summary, out = read_summary(record.out), record.out
    print_summary(shown.out, summary)
    print_paths(shown.out, out)
    shown.last(how_it_ended(summary, out))


def logs(
    run: RunName, follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends.")] = False
) -> None:
    """Show what a submitted run prints.

    Example: geoflow logs -f out/estonia
    """
    from geoflow.jobs.records import find_record
    from geoflow.jobs.submit import follow_log, read_log

    record = find_record(run)
    if record.content["driver"] in ("here", "cluster"):
        # Nobody catches what these print; what they had to tell is in the record.
        typer.echo(
            "\n".join(record.content["news"]) or f"run {record.id} has nothing to tell; see geoflow status {record.id}"
        )
        return
    if not follow:
        typer.echo(read_log(record), nl=False)
        return
    for part in follow_log(record):
        typer.echo(part, nl=False)


def cancel(
    run: RunName,
    now: Annotated[bool, typer.Option("--now", help="End its process on this machine, too.")] = False,
    as_json: Json = False,
) -> None:
    """Stop a run; what is done is kept, and `geoflow resume` goes on from there.

    Example: geoflow cancel out/estonia
    """
    from geoflow.jobs import submit as runs
    from geoflow.jobs.records import ENDED, find_record

    record, shown = find_record(run), screen(as_json)
    was = record.state
    if was in (*ENDED, "lost"):
        _tell_state(shown, record, was, f"does not run: it is {was}")
        return
    if now:
        runs.terminate(record)
    state = runs.cancel(record)
    if state not in (*ENDED, "lost"):
        raise RunFailed(
            f"run {record.id} was asked to stop and has not yet; it may be in a search or write its figures. "
            f"`geoflow cancel --now {record.id}` ends its process"
        )
    told = "was complete before it heard of it"
    if state != "complete":
        told = f"is {state}; to go on: geoflow resume {record.id}"
    _tell_state(shown, record, state, told)


def _tell_state(shown: Screen, record: Record, state: str, told: str) -> None:
    if shown.as_json:
        shown.json({"id": record.id, "out": str(record.out), "state": state})
    shown.last(f"Run {record.id} {told}")


def drive(folder: Annotated[str, typer.Argument(metavar="FOLDER")]) -> None:
    """Run what was submitted; drivers call it."""
    from geoflow.jobs.submit import drive as run
    from geoflow.places import place

    end_on_termination()
    try:
        summary = run(place(folder))
    except KeyboardInterrupt:
        typer.echo("Interrupted; what is done is kept.")
        raise typer.Exit(130) from None
    if summary["status"] != "complete":
        raise RunFailed(
            f"{counted(len(summary['failed']), 'task')} failed; what is done is kept, resume it to retry them"
        )


RUN_COMMANDS: dict[str, Callable[..., None]] = {
    "submit": submit,
    "list": list_runs,
    "status": status,
    "logs": logs,
    "cancel": cancel,
    "resume": resume,
}
"""The commands of submitted runs, by name; ``drive`` is what `submit` starts."""
