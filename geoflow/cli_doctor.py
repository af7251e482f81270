"""``geoflow doctor``: will it run here, and what to do where it will not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from geoflow.cli_options import Out

_MARKS = {"green": "[green]✓[/]", "yellow": "[yellow]![/]", "red": "[bold red]✗[/]"}


def doctor(
    job: Annotated[Path | None, typer.Option(metavar="JOB", help="Look at what this job needs, too.")] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="WHERE", help="Try this cluster; without, one process of this machine.")
    ] = None,
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look whether geoflow will run here: packages, GDAL, memory, disk, catalogs, credentials, a cluster.

    Exit code 1 if a line is red. Example: geoflow doctor --job jobs/estonia.yaml --cluster jobs/clusters/slurm.yaml
    """
    from rich.console import Console

    from geoflow.jobs.doctor import examine, worst

    console, findings = Console(soft_wrap=True), []
    for finding in examine(job, out, cluster):
        findings.append(finding)
        if as_json:
            continue
        console.print(f"{_MARKS[finding.status]} [bold]{finding.name:<12}[/] ", end="")
        console.print(finding.found, markup=False, highlight=False)
        if finding.do:
            console.print(f"{'':15}→ {finding.do}", markup=False, highlight=False)
    if as_json:
        typer.echo(json.dumps({"status": worst(findings), "findings": [f.to_dict() for f in findings]}, indent=1))
    if worst(findings) == "red":
        raise typer.Exit(1)
