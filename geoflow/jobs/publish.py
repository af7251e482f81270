"""What people look at: the map, the change, the report. Made from the finished store, anew where something was done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import StoreError
from geoflow.jobs.coverage import PICTURE

if TYPE_CHECKING:
    import xarray as xr

    from geoflow.jobs.console import Console
    from geoflow.jobs.flow import Flow
    from geoflow.jobs.run import Run


def publish(flow: Flow, summary: dict[str, Any], worked: bool, console: Console) -> None:
    """Draw ``map.png``, ``change.png`` and the coverage by scenes, and write ``report.html`` into the output folder.

    Parameters
    ----------
    flow : Flow
    summary : dict
        As in ``summary.json``.
    worked : bool
        Whether this run changed the store; where not, files that are there stay.
    console : Console
    """
    wanted = _figures(flow)
    report = flow.out / "report.html"
    if not worked and report.exists() and all(path.exists() for path in wanted.values()):
        return
    from geoflow.jobs.report import write_report
    from geoflow.jobs.scenesearch import write_search_files

    with console.waiting("drawing the maps"):
        if "map" in wanted:
            _draw_map(flow, summary, wanted["map"])
        if "change" in wanted:
            _draw_change(flow, summary, wanted["change"])
        if "coverage" in wanted:
            write_search_files(flow)
        write_report(summary, wanted, report, flow.legend)


def commit(run: Run) -> None:
    """Commit the sealed store to the icechunk repository of the job, if it names one and something differs."""
    section = run.flow.job.publish
    if section is None or section.icechunk is None:
        return
    if run.flow.limit is not None:
        run.say(f"{section.icechunk} takes whole maps only: nothing of a run with --limit is committed")
        return
    from geoflow.store.repository import commit_output

    try:
        with run.console.waiting("committing to the icechunk repository"):
            made = commit_output(run.flow.out, section.icechunk, run.lease.run, run.flow.job.name)
    except StoreError as error:
        raise StoreError(f"{run.flow.out} is complete, and not committed: {error}; run again to commit it") from error
    if made is None:
        run.say(f"{section.icechunk} holds this version already")
    else:
        run.say(f"{section.icechunk} has snapshot {made.snapshot}: {made.written} keys new, {made.removed} gone")


def _figures(flow: Flow) -> dict[str, Path]:
    figures = {}
    if flow.job.predict:
        figures["map"] = flow.out / "map.png"
    if flow.job.change:
        figures["change"] = flow.out / "change.png"
    if flow.job.imagery:
        figures["coverage"] = flow.out / "scenes" / PICTURE
    return figures


def _draw_map(flow: Flow, summary: dict[str, Any], path: Path) -> None:
    from geoflow.jobs.figures import draw_map

    maps = {epoch: flow.store.dataset(f"map/{epoch}") for epoch in flow.job.mapped_epochs}
    colours = {epoch: flow.store.dataset(f"imagery/{epoch}")["reflectance"] for epoch in flow.job.mapped_epochs}
    draw_map(
        maps,
        colours,
        flow.legend,
        summary["title"],
        "; ".join(summary["attribution"]),
        path,
        labels=_labels(flow),
    )


def _labels(flow: Flow) -> xr.DataArray | None:
    if flow.job.labels is None:
        return None
    return flow.store.dataset(f"labels/{flow.job.labels.name}")[f"level{flow.legend.levels[-1]}"]


def _draw_change(flow: Flow, summary: dict[str, Any], path: Path) -> None:
    from geoflow.jobs.figures import draw_change

    section = flow.job.change
    if section is None:
        return
    draw_change(
        flow.store.dataset(f"change/{section.before}-{section.after}"),
        flow.legend,
        section.before,
        section.after,
        summary["title"],
        "; ".join(summary["attribution"]),
        path,
    )
