"""``geoflow verify``: whether an output is still what its run made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from geoflow.cli_options import Made

if TYPE_CHECKING:
    from rich.console import Console

    from geoflow.jobs.verify import Verified

_MOST_SHOWN = 20


def verify(
    out: Made,
    repair: Annotated[
        bool, typer.Option("--repair", help="Restore damaged metadata, and do again what is bad; nothing else.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all that was found as JSON.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="WHERE", help="As in run: local, threads, tls://HOST:PORT, file:PATH or a cluster file."),
    ] = None,
) -> None:
    """Read everything that a run made, and name what is missing or altered. Exit code 1 if something is.

    Example: geoflow verify out/quickstart --repair
    """
    import json

    from rich.console import Console

    from geoflow.jobs.console import QuietConsole, RichConsole
    from geoflow.jobs.verify import repair_output, verify_output

    screen = Console(soft_wrap=True)
    console = QuietConsole() if as_json else RichConsole(screen)
    found = verify_output(out, cluster, console)
    if repair and not found.good:
        if not as_json:
            _print_problems(screen, found)
        found = repair_output(out, found, cluster, console)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        _print_verified(screen, found, repair)
    if not found.good:
        raise typer.Exit(1)


def _print_problems(screen: Console, found: Verified) -> None:
    for problem in found.problems[:_MOST_SHOWN]:
        task = f" ({problem.stage} {problem.key})" if problem.stage else ""
        screen.print("[bold red]bad[/] ", end="")
        screen.print(f"{problem.path} {problem.what}{task}", markup=False, highlight=False)
    if (more := len(found.problems) - _MOST_SHOWN) > 0:
        screen.print(f"[dim]and {more} more; --json lists them all[/]", highlight=False)


def _print_verified(screen: Console, found: Verified, repair: bool) -> None:
    _print_problems(screen, found)
    for note in found.notes[:_MOST_SHOWN]:
        screen.print(f"[dim]note[/] {note}", highlight=False)
    if found.repaired:
        screen.print(f"repaired {found.repaired}", highlight=False)
    read = f"{found.tasks} tasks, {found.files} files, {found.bytes / 1e9:.3f} GB in {found.seconds:.1f} s"
    if found.good:
        screen.print(f"[bold green]good[/] {read}", highlight=False)
    else:
        hint = "" if repair else "; --repair does again what is bad"
        screen.print(f"[bold red]{len(found.problems)} bad[/] {read}{hint}", highlight=False)
