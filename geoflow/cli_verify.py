"""``geoflow verify``: whether an output is still what its run made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from geoflow.cli_options import Json, Made, Where
from geoflow.cli_screen import make_console, screen
from geoflow.counting import counted

if TYPE_CHECKING:
    from rich.console import Console

    from geoflow.jobs.verify import Verified

_MOST_SHOWN = 20


def verify(
    out: Made,
    repair: Annotated[
        bool, typer.Option("--repair", help="Restore damaged metadata, and do again what is bad; nothing else.")
    ] = False,
    cluster: Where = None,
    as_json: Json = False,
) -> None:
    """Read everything that a run made, and name what is missing or altered. Exit code 1 if something is.

    Example: geoflow verify out/quickstart --repair
    """
    from geoflow.jobs.verify import repair_output, verify_output

    shown = screen(as_json)
    found = verify_output(out, cluster, shown.progress)
    if repair and not found.good:
        _print_problems(shown.out, found)
        found = repair_output(out, found, cluster, shown.progress)
    if as_json:
        shown.json(found.to_dict())
    else:
        _print_problems(make_console(), found)
    for note in found.notes[:_MOST_SHOWN]:
        shown.out.print(f"[dim]note[/] {note}", highlight=False)
    if found.repaired:
        shown.out.print(f"repaired {found.repaired}", highlight=False)
    shown.last(_verdict(found, repair))
    if not found.good:
        raise typer.Exit(1)


def _print_problems(screen: Console, found: Verified) -> None:
    for problem in found.problems[:_MOST_SHOWN]:
        task = f" ({problem.stage} {problem.key})" if problem.stage else ""
        screen.print("[bold red]bad[/] ", end="")
        screen.print(f"{problem.path} {problem.what}{task}", markup=False, highlight=False)
    if (more := len(found.problems) - _MOST_SHOWN) > 0:
        screen.print(f"[dim]and {more} more; --json lists them all[/]", highlight=False)


def _verdict(found: Verified, repair: bool) -> str:
    what = f"{counted(found.tasks, 'task')}, {counted(found.files, 'file')}"
    read = f"{what}, {found.bytes / 1e9:.3f} GB in {found.seconds:.1f} s"
    if found.good:
        return f"[bold green]good[/] {read}"
    return f"[bold red]{len(found.problems)} bad[/] {read}{'' if repair else '; --repair does again what is bad'}"
