"""A finished run as what is exported: what it made, of what, and what is to be said of it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import ExportError, StoreError
from geoflow.exports.layers import Layer, layers_there
from geoflow.jobs.records import read_summary
from geoflow.legends import Legend, legend
from geoflow.places import place, read_bytes
from geoflow.store.receipts import digest
from geoflow.store.seal import Seal, read_seal
from geoflow.store.zarr import Store, open_for_writing

if TYPE_CHECKING:
    from geoflow.exports.clip import Clip

FORMAT = 1
"""Version of what is written: files of another one are of another state."""

# Whose receipts vouch for the groups of the store.
_STAGES = {"map": "predict", "generalised": "generalise", "change": "change", "labels": "labels", "imagery": "imagery"}


@dataclass(frozen=True)
class Source:
    """A run that came to its end.

    Attributes
    ----------
    out : Path
    store : Store
    seal : Seal
    summary : mapping
        ``summary.json``.
    """

    out: Path
    store: Store
    seal: Seal
    summary: Mapping[str, Any]

    @cached_property
    def legend(self) -> Legend:
        """Of the maps; of the labels where there is no map."""
        if self.seal.legend is not None:
            return Legend.from_dict(self.seal.legend)
        section = self.seal.job.get("labels") or {}
        return legend(section.get("legend", "corine"))

    @cached_property
    def layers(self) -> list[Layer]:
        """Everything that can be exported."""
        section = self.seal.job.get("labels") or {}
        return layers_there(self.store, self.legend.levels, section.get("epoch"))

    @property
    def title(self) -> str:
        """Headline of the maps."""
        return str(self.summary["title"])

    @property
    def attribution(self) -> str:
        """Whom to name."""
        return "; ".join(self.summary["attribution"])

    @property
    def licence(self) -> str:
        """Of the maps, as SPDX writes it; empty where the job does not say."""
        return str((self.seal.job.get("publish") or {}).get("licence") or "")

    @property
    def publisher(self) -> dict[str, Any] | None:
        """Who publishes the maps, as a provider of STAC; None where the job does not say."""
        said = self.seal.job.get("publish") or {}
        if not said.get("publisher"):
            return None
        url = {"url": said["publisher_url"]} if said.get("publisher_url") else {}
        return {"name": said["publisher"], "roles": ["producer", "licensor"], **url}

    @property
    def made(self) -> dt.datetime:
        """When the run ended."""
        return dt.datetime.fromisoformat(self.summary["finished"])

    @property
    def version(self) -> str:
        """The geoflow that made the maps."""
        return str(self.summary["versions"]["geoflow"])

    def dates(self, epoch: str) -> tuple[dt.date, dt.date] | None:
        """First and last day of an epoch; None where the job has no imagery of it."""
        periods = ((self.seal.job.get("imagery") or {}).get("epochs") or {}).get(epoch)
        if not periods:
            return None
        starts, ends = (sorted(str(period[key]) for period in periods.values()) for key in ("start", "end"))
        return dt.date.fromisoformat(starts[0]), dt.date.fromisoformat(ends[-1])

    def scenes(self, epoch: str) -> list[dict[str, Any]]:
        """The STAC items that an epoch was made of; none where the job has no imagery."""
        try:
            return list(json.loads(read_bytes(self.out / "scenes" / f"{epoch}.json"))["items"])
        except FileNotFoundError:
            return []

    def state(self, layer: Layer, clip: Clip) -> str:
        """What a layer's file is of: the receipts of its pixels, the window, what is said in it.

        It is written into the file. As long as it is the same, the file need not be made again.
        """
        root, _, rest = layer.group.partition("/")
        tasks = self.seal.tasks.get(_STAGES[root], {})
        pixels = sorted((key, crc) for key, crc in tasks.items() if key.startswith(f"{rest}/"))
        said = [self.title, self.attribution, self.legend.to_dict() if layer.content == "classes" else None]
        return digest([FORMAT, layer.stem, pixels, clip.said(), said])[:16]


def open_source(out: str | Path) -> Source:
    """A run by its output folder.

    Raises
    ------
    StoreError
        If there is no run.
    ExportError
        If it did not come to its end.
    """
    folder = place(out)
    if not (folder / "country.zarr" / "zarr.json").is_file():
        raise StoreError(f"{folder} is not the output of a run: there is no country.zarr in it")
    seal = read_seal(folder)
    if seal is None or not seal.complete:
        what = "no run was completed there" if seal is None else "its last run is at work, or did not come to its end"
        raise ExportError(
            f"{folder} is not complete: {what}. `geoflow status {folder}` says what is missing, and "
            f"`geoflow run JOB --out {folder}` goes on from there"
        )
    return Source(folder, open_for_writing(folder / "country.zarr"), seal, read_summary(folder))
