"""Arguments and options that several commands share."""

from __future__ import annotations

import signal
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoflow.errors import GeoflowError

if TYPE_CHECKING:
    from geoflow.jobs.patience import Patience

_MOST_PROPOSED = 200


def propose_jobs(incomplete: str) -> list[str]:
    """Job files for the shell to complete: YAML files here and one folder down; without any the shell looks itself."""
    here = [Path(path) for path in sorted(glob(f"{incomplete}*"))[:_MOST_PROPOSED]]
    below = [one for folder in here if folder.is_dir() for one in sorted(folder.iterdir())[:_MOST_PROPOSED]]
    return [str(path) for path in (*here, *below) if path.suffix in (".yaml", ".yml")]


def propose_catalogs(incomplete: str) -> list[str]:
    """Names of the catalogs that are shipped."""
    from geoflow.imagery.catalog import packaged_catalogs

    return [name for name in packaged_catalogs() if name.startswith(incomplete)]


def propose_clusters(incomplete: str) -> list[str]:
    """Words for ``--cluster``, and cluster files."""
    return [word for word in ("local", "threads", "cuda") if word.startswith(incomplete)] + propose_jobs(incomplete)


def propose_runs(incomplete: str) -> list[str]:
    """Ids of runs of this user; without any the shell looks for folders."""
    from geoflow.jobs.records import state_folder

    return sorted(path.name for path in state_folder().glob(f"{incomplete}*"))[-20:]


JobFile = Annotated[
    Path, typer.Argument(metavar="JOB", help="Job file (YAML).", show_default=False, autocompletion=propose_jobs)
]


def place_of(text: str) -> Path:
    """A place given on the command line."""
    from geoflow.places import place

    return place(text)


Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Output folder, or s3://BUCKET/FOLDER; out/<job name> by default.", parser=place_of
    ),
]
Made = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="Output of a run: folder or s3://...", show_default=False, parser=place_of),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the job, e.g. --set grid.tile=1024."),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="WHERE",
        help="local, threads, cuda, tls://HOST:PORT, file:PATH or a cluster file; local by default, or "
        "DASK_SCHEDULER_ADDRESS.",
        autocompletion=propose_clusters,
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N tiles, to try a job out.")]
Retries = Annotated[
    int, typer.Option(min=0, metavar="N", help="How often a task is tried again after an error that may pass.")
]
TaskTimeout = Annotated[
    float | None,
    typer.Option(min=1, metavar="SECONDS", help="End a task that takes longer, with its worker, and try it again."),
]
Json = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output, and nothing else there.")]


def patience_of(retries: int, task_timeout: float | None) -> Patience:
    """The options as one value."""
    from geoflow.jobs.patience import Patience

    return Patience(retries=retries, task_s=task_timeout)


def values_of(settings: list[str]) -> dict[str, Any]:
    """``--option KEY=VALUE`` as values, each read as YAML."""
    import yaml

    pairs = [setting.partition("=") for setting in settings]
    if wrong := [key + equals + value for key, equals, value in pairs if not (key and equals)]:
        raise GeoflowError(f"--option {wrong[0]!r}: write KEY=VALUE, for example steps=20")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def end_on_termination() -> None:
    """Let SIGTERM (a batch system at the end of its walltime, `kill`) end a run as Ctrl-C does: its record says so."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
