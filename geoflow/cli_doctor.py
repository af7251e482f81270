"""``geoflow doctor``: will it run here, and what to do where it will not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoflow.cli_options import Json, Out, Where, propose_jobs
from geoflow.cli_screen import make_console, screen

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

    shown, findings = screen(as_json), []
    for finding in examine(job, out, cluster):
        findings.append(finding)
        # Under -q what is wrong is all that there is to say.
        console = make_console() if shown.quiet and finding.status == "red" else shown.out
        console.print(f"{_MARKS[finding.status]} [bold]{finding.name:<12}[/] ", end="")
        console.print(finding.found, markup=False, highlight=False)
        if finding.do:
            console.print(f"{'':15}→ {finding.do}", markup=False, highlight=False)
    state = worst(findings)
    if as_json:
        shown.json({"status": state, "findings": [f.to_dict() for f in findings]})
    shown.last(_VERDICTS[state])
    if state == "red":
        raise typer.Exit(1)
