"""The scenes of a job without a run: searched, frozen, counted over the area, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geoflow.errors import JobError
from geoflow.jobs.checks import check_writable
from geoflow.jobs.console import Console, QuietConsole
from geoflow.jobs.coverage import FOOTPRINTS, PICTURE, Coverage, coverage_table, write_footprints
from geoflow.jobs.resolved import ResolvedJob
from geoflow.jobs.scenediff import Change, changes
from geoflow.jobs.scenes import Scenes
from geoflow.jobs.spec import Job
from geoflow.places import place


@dataclass(frozen=True)
class FoundScenes:
    """What a search came to.

    Attributes
    ----------
    job, catalog : str
        Names.
    epochs : mapping of epoch to Scenes
    coverage : list of Coverage
        For every epoch and period.
    changes : mapping of epoch to list of Change
        Against the frozen list that was there; epochs that had none are absent.
    files : tuple of Path
        What was written beside the frozen lists.
    previewed : bool
        Whether this is what a new search would find, while the frozen list stays as it is.
    """

    job: str
    catalog: str
    epochs: Mapping[str, Scenes]
    coverage: list[Coverage]
    changes: Mapping[str, list[Change]]
    files: tuple[Path, ...] = ()
    previewed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ledger, coverage and changes of every epoch."""
        table = coverage_table(self.coverage)
        return {
            "job": self.job,
            "catalog": self.catalog,
            "previewed": self.previewed,
            "epochs": {
                epoch: {
                    "periods": {name: f"{p.start}/{p.end}" for name, p in scenes.periods.items()},
                    **scenes.ledger(),
                    "coverage": table[epoch],
                    "changes": [vars(change) for change in self.changes.get(epoch, [])],
                }
                for epoch, scenes in self.epochs.items()
            },
            "files": [str(path) for path in self.files],
        }


def search_scenes(
    job: Job,
    out: str | Path,
    refresh: bool = False,
    freeze: bool = True,
    pixels: bool = True,
    console: Console | None = None,
) -> FoundScenes:
    """Find the scenes of a job, as a run would, and say what they are good for.

    Parameters
    ----------
    job : Job
    out : path
        The output folder.
    refresh : bool
        Search again, although the list is frozen.
    freeze : bool
        Write the list, the footprints and the map of coverage; without, nothing is written.
    pixels : bool
        Check offsets against pixels; without, metadata decide, and the list is not frozen.
    console : Console, optional

    Raises
    ------
    GeoflowError
        As a run would before it works.
    """
    if job.imagery is None:
        raise JobError("imagery: the job has no such section, so there are no scenes to search for")
    console = console or QuietConsole()
    resolved = ResolvedJob(job, place(out).resolve(), refresh=refresh)
    if freeze:
        check_writable(resolved.out)
    with console.waiting("searching for scenes"):
        found = replace(resolved.search, freeze=freeze, pixels=pixels).run()
        resolved.scenes = {scenes.epoch: scenes for scenes in found}
    with console.waiting("counting how often they see the area"):
        counted = resolved.coverage
        files = write_search_files(resolved) if freeze else ()
    differences = {s.epoch: changes(s.before, s) for s in found if s.before is not None}
    return FoundScenes(
        job.name, resolved.catalog.name, resolved.scenes, counted, differences, files, previewed=refresh and not freeze
    )


def write_search_files(job: ResolvedJob) -> tuple[Path, ...]:
    """Write the footprints and the map of coverage into ``OUT/scenes``; returns their paths."""
    from geoflow.jobs.coveragemap import draw_coverage

    folder = job.out / "scenes"
    write_footprints(job.scenes, folder / FOOTPRINTS)
    title = job.job.publish.title if job.job.publish else job.job.name
    draw_coverage(job.coverage, job.area, title, job.catalog.attribution, folder / PICTURE)
    return folder / FOOTPRINTS, folder / PICTURE
