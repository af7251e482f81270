"""The work of the imagery stage: scenes to composites, with an account of what could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import SceneError
from geoflow.jobs.tasks import Done
from geoflow.jobs.work import TileWork, computed, written

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from geoflow.imagery import Catalog, CompositeOptions
    from geoflow.imagery.read import ReadError, ReadEvent
    from geoflow.jobs.scenes import Scenes

REMOTE_READS = 4
"""Files that a task reads at once over a network, where most of the time is spent waiting."""

OnError = Literal["fail", "skip_scene"]

LOST = "lost"
"""Key of a receipt that lists the scenes which a tile had to do without."""


def read_threads(items: Sequence[Mapping[str, Any]], catalog: Catalog) -> int:
    """How many files a task reads at once: one of a disk, where more would only take turns, several of a network."""
    from geoflow.imagery.catalog import is_remote

    scl = [item["assets"].get(catalog.scl, {}).get("href", "") for item in items]
    return REMOTE_READS if any(is_remote(href) for href in scl) else 1


@dataclass(frozen=True)
class Loss:
    """A scene that a tile had to do without, because one of its files could not be read.

    Attributes
    ----------
    scene, band, cause : str
    pixels : int
        Pixels of the tile that the scene's footprint holds: so many observations are missing, at the most.
    """

    scene: str
    band: str
    cause: str
    pixels: int


@dataclass
class Reads:
    """How the reads of a tile went: the scenes lost, and every attempt that failed."""

    lost: list[Loss] = field(default_factory=list)
    events: list[ReadEvent] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """For the receipt; nothing where nothing happened."""
        found = {LOST: [asdict(loss) for loss in self.lost], "reads": [event.to_dict() for event in self.events]}
        return {key: values for key, values in found.items() if values}


@dataclass(frozen=True)
class CompositeWork(TileWork):
    """Scenes of one epoch to composites of one tile."""

    group: str
    items: tuple[Mapping[str, Any], ...]
    catalog: Catalog
    options: CompositeOptions
    numbers: Mapping[str, int] | None = None
    """Places of the items in the epoch's list of scenes, where the method has a source."""
    on_error: OnError = "fail"

    def __call__(self) -> Done:
        store, tile = self.open()
        arrays, used, reads = self._read_what_can_be_read(tile.geobox)
        clear = arrays["clear"]
        content = {
            "scenes": [item["id"] for item in used],
            "observed_px": int((clear > 0).any(axis=0).sum()),
            "empty_px": [int(n) for n in (clear == 0).sum(axis=(1, 2))],
            "pixels": tile.shape[0] * tile.shape[1],
            **reads.content(),
        }
        if self.numbers is not None:
            taken = np.bincount(arrays["source"].ravel(), minlength=2**16)
            content["source_px"] = {item["id"]: int(taken[self.numbers[item["id"]]]) for item in used}
        return written(store, self.group, tile, arrays, content)

    def _read_what_can_be_read(
        self, geobox: GeoBox
    ) -> tuple[dict[str, NDArray[Any]], Sequence[Mapping[str, Any]], Reads]:
        """(arrays, scenes used, how it went); a scene that fails is left out whole, in all its bands, if it may be."""
        from geoflow.imagery import ReadError, ReadLog, composite_tile

        items, reads = list(self.items), Reads()
        while True:
            log = ReadLog()
            try:
                lazy = composite_tile(items, geobox, self.options, self.catalog, log, self.numbers)
                arrays = computed(lazy, read_threads(items, self.catalog))
            except ReadError as error:
                reads.events += log.events
                if self.on_error == "fail":
                    raise
                # The scene that ended the round goes in any case, so that there is an end to rounds. Other threads may
                # have met other files by now: each scene that is known to fail saves a round.
                failed = {event.scene: (event.band, event.cause) for event in log.events if event.what == "failed"}
                failed.setdefault(error.scene, (error.band, error.message))
                for lost in [item for item in items if item["id"] in failed]:
                    reads.lost.append(Loss(lost["id"], *failed[lost["id"]], _pixels_under(lost, geobox)))
                    items.remove(lost)
                self._check_something_is_left(items, geobox, error)
            else:
                reads.events += log.events
                return arrays, items, reads

    def _check_something_is_left(self, items: Sequence[Mapping[str, Any]], geobox: GeoBox, error: ReadError) -> None:
        """A period that loses all its scenes is a failure: it would be empty without anybody having looked."""
        from geoflow.imagery import items_on

        for period in self.options.periods:
            had = [item for item in items_on(self.items, geobox) if period.holds(item)]
            if had and not any(period.holds(item) for item in items_on(items, geobox)):
                message = f"none of the {len(had)} scenes of {period.name} can be read, of the last one: {error}"
                raise SceneError(message) from error


def _pixels_under(item: Mapping[str, Any], geobox: GeoBox) -> int:
    """Pixels of a GeoBox with their centre in a scene's footprint."""
    from rasterio.features import geometry_mask

    from geoflow.imagery.items import footprint

    shape = footprint(item).to_crs(str(geobox.crs), resolution=0.01)
    return int(np.count_nonzero(geometry_mask([shape.geom], geobox.shape, geobox.transform, invert=True)))


def reads_of(receipts: Mapping[str, Mapping[str, Any]], scenes: Mapping[str, Scenes]) -> dict[str, dict[str, Any]]:
    """What could not be read, or not at once, over all tiles and while offsets were decided.

    Parameters
    ----------
    receipts : mapping
        Receipts of the imagery stage by their key, ``<epoch>/<tile>``.
    scenes : mapping of epoch to Scenes

    Returns
    -------
    dict
        By epoch: ``lost``, one entry for each scene that a tile had to do without (``scene``, ``band``, ``cause``,
        ``tiles``, ``pixels``), ``retried`` (``scene``, ``band``, ``cause``, ``times``), and ``unasked``, the scenes
        whose offset no pixel could confirm, see `Scenes.unasked`. Epochs without any are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for epoch, searched in scenes.items():
        for event in searched.reads:
            _count_retry(found, epoch, event)
        if unasked := searched.unasked():
            found.setdefault(epoch, _nothing())["unasked"] = unasked
    for key, receipt in sorted(receipts.items()):
        epoch, _, tile = key.partition("/")
        for loss in receipt.get(LOST, []):
            known = _entry(found, epoch, LOST, loss, {"tiles": [], "pixels": 0})
            known["tiles"].append(tile)
            known["pixels"] += loss["pixels"]
        for event in receipt.get("reads", []):
            _count_retry(found, epoch, event)
    return found


def _nothing() -> dict[str, Any]:
    return {LOST: [], "retried": [], "unasked": []}


def _count_retry(found: dict[str, dict[str, Any]], epoch: str, event: Mapping[str, Any]) -> None:
    if event["what"] == "retried":
        _entry(found, epoch, "retried", event, {"times": 0})["times"] += 1


def _entry(
    found: dict[str, dict[str, Any]],
    epoch: str,
    kind: str,
    event: Mapping[str, Any],
    empty: dict[str, Any],
) -> dict[str, Any]:
    """The entry of a scene, band and cause, made if need be."""
    entries: list[dict[str, Any]] = found.setdefault(epoch, _nothing())[kind]
    facts = {key: event[key] for key in ("scene", "band", "cause")}
    for entry in entries:
        if all(entry[key] == value for key, value in facts.items()):
            return entry
    entries.append({**facts, **empty})
    return entries[-1]
