"""``geoflow doctor``: will it run here, and what to do where it will not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoflow.cli_options import Json, Out, Where, propose_jobs
from geoflow.cli_screen import make_console, screen

if TYPE_CHECKING:
    from rich.console import Console

    from geoflow.jobs.doctor import Finding

_MARKS = {"green": "[green]✓[/]", "yellow": "[yellow]![/]", "red": "[bold red]✗[/]"}
_VERDICTS = {
    "green": "[green]geoflow will run here[/]",
    "yellow": "[yellow]geoflow will run here; look at the lines with a ![/]",
    "red": "[bold red]geoflow will not run here; mend the lines with a ✗[/]",
}


def doctor(
    job: Annotated[
        Path | None,
        typer.Option(metavar="JOB", help="Look at what this job needs, too.", autocompletion=propose_jobs),
    ] = None,
    cluster: Where = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Look whether geoflow will run here: packages, GDAL, memory, disk, catalogs, credentials, a cluster.

    Exit code 1 if a line is red.

    Example: geoflow doctor --job jobs/estonia.yaml --cluster jobs/clusters/slurm.yaml
    """
    from geoflow.jobs.doctor import examine, worst

    shown, findings, told = screen(as_json), [], ""
    for finding in examine(job, out, cluster):
        findings.append(finding)
        # Under -q what is wrong is all that there is to say.
        console = make_console() if shown.quiet and finding.status == "red" else shown.out
        _print_finding(console, finding, told)
        told = finding.do
    state = worst(findings)
    if as_json:
        shown.json({"status": state, "findings": [f.to_dict() for f in findings]})
    shown.last(_VERDICTS[state])
    if state == "red":
        raise typer.Exit(1)


def _print_finding(console: Console, finding: Finding, told: str) -> None:
    """A line, or on a narrow terminal a paragraph; ``told`` is what to do as it was said last, and is not repeated."""
    from rich.table import Table
    from rich.text import Text

    lines = Table.grid(padding=(0, 1, 0, 0))
    lines.add_column(width=1)
    lines.add_column(width=12, style="bold")
    lines.add_column(overflow="fold")
    lines.add_row(_MARKS[finding.status], finding.name, Text(finding.found))
    if finding.do and finding.do != told:
        lines.add_row("", "", Text(f"→ {finding.do}"))
    console.print(lines, soft_wrap=not console.is_terminal)
