"""What was ordered: a job, where it goes, where it runs, and with how much patience; it can be written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.patience import Patience
from geoflow.jobs.spec import Job
from geoflow.places import place


@dataclass(frozen=True)
class Order:
    """A job to be run.

    Parameters
    ----------
    job : Job
    out : Path
        The output folder, absolute.
    cluster : str, optional
        See `geoflow.jobs.clusters.where`.
    limit : int, optional
        Only the first so many tiles.
    refresh : bool
        Search the catalog again, although the list of scenes is frozen.
    patience : Patience
    """

    job: Job
    out: Path
    cluster: str | None = None
    limit: int | None = None
    refresh: bool = False
    patience: Patience = field(default_factory=Patience)

    @classmethod
    def of(cls, job: Job, out: str | Path | None = None, **how: Any) -> Order:
        """An order whose output is ``out/<job name>`` by default, and whose paths hold in another folder too."""
        folder = place(out) if out is not None else Path("out") / job.name
        cluster = how.get("cluster")
        if cluster is not None and cluster.endswith((".yaml", ".yml")):
            how["cluster"] = str(Path(cluster).resolve())
        return cls(job, folder.resolve(), **{k: v for k, v in how.items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which `from_dict` makes the same order."""
        return {
            "job": self.job.model_dump(mode="json", by_alias=True, exclude_none=True),
            "out": str(self.out),
            "cluster": self.cluster,
            "limit": self.limit,
            "refresh": self.refresh,
            "patience": asdict(self.patience),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Order:
        """The inverse of `to_dict`.

        Raises
        ------
        JobError
            If an older or newer geoflow wrote a job that this one does not know.
        """
        return cls(
            parse_job(values["job"], "the job of the run"),
            place(values["out"]),
            values["cluster"],
            values["limit"],
            values["refresh"],
            Patience(**values["patience"]),
        )
