"""A job with its questions answered: its area, grid, tiles, scenes, legend and options, each resolved once."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odc.geo.geom import Geometry

from geoflow.errors import GeoflowError, JobError
from geoflow.grid import Grid, Tile
from geoflow.jobs.scenes import Scenes, Search
from geoflow.jobs.spec import Job
from geoflow.jobs.zonework import Zones
from geoflow.places import local_copy
from geoflow.store.receipts import Receipts
from geoflow.store.zarr import Store

if TYPE_CHECKING:
    from geoflow.jobs.coverage import Coverage


class ResolvedJob:
    """A job and its output folder, with what both come to.

    Parameters
    ----------
    job : Job
    out : Path
        The output folder; nothing is written before `prepare_output`.
    limit : int, optional
        Only the first so many tiles.
    refresh : bool
        Search the catalog again.
    """

    def __init__(self, job: Job, out: Path, limit: int | None = None, refresh: bool = False) -> None:
        self.job, self.out, self.limit, self.refresh = job, out, limit, refresh
        self.freezes = True  # a plan shows what a new search would find, and leaves the frozen list alone
        self.receipts = Receipts(out / "receipts")
        self.store_path = out / "country.zarr"

    @cached_property
    def area(self) -> Geometry:
        """The area as one geometry, in the CRS it came in."""
        from geoflow.jobs.area import read_area

        return read_area(self.job.area)

    @cached_property
    def grid(self) -> Grid:
        """The national grid over the area."""
        section = self.job.grid
        return Grid.cover(self.area, section.crs, section.resolution_m, section.tile, section.chunk)

    @cached_property
    def tiles(self) -> list[Tile]:
        """The tiles that meet the area, in row order."""
        return list(self.grid.tiles(self.area))[: self.limit]

    @cached_property
    def catalog(self) -> Any:
        """The catalog of the imagery section."""
        from geoflow.imagery import load_catalog

        section = self.section("imagery")
        catalog = load_catalog(section.catalog, section.url)
        catalog.check_bands(section.bands)
        return catalog

    @cached_property
    def scenes(self) -> dict[str, Scenes]:
        """The frozen scenes of each epoch."""
        return {s.epoch: s for s in self.search.run()}

    @cached_property
    def coverage(self) -> list[Coverage]:
        """How often the scenes of each epoch and period see the area."""
        from geoflow.jobs.coverage import coverage

        return coverage(self.scenes, self.area, self.job.grid.crs)

    @property
    def search(self) -> Search:
        """How the scenes are searched."""
        section, folder = self.section("imagery"), self.out / "scenes"
        return Search(section, self.catalog, self.area, folder, self.refresh, freeze=self.freezes)

    @cached_property
    def legend(self) -> Any:
        """The legend of the labels; of the model where there are none."""
        from geoflow.legends import legend
        from geoflow.modelfile import read_header

        if self.job.labels is not None:
            return legend(self.job.labels.legend)
        if self.job.predict is not None and self.job.predict.model is not None:
            return read_header(self.job.predict.model).card.legend
        return legend("corine")

    @cached_property
    def border(self) -> bytes:
        """The area as WKB, for the tasks."""
        return bytes(self.area.geom.wkb)

    @cached_property
    def store(self) -> Store:
        """The national store, created if need be."""
        return Store.create(self.store_path, self.grid)

    @cached_property
    def composite_options(self) -> Any:
        """The imagery section as options of `geoflow.imagery`, for each epoch."""
        from geoflow.imagery import CompositeOptions, Period, Reading

        section = self.section("imagery")
        return {
            epoch: CompositeOptions(
                periods=tuple(Period(name, p.start, p.end) for name, p in periods.items()),
                bands=section.bands,
                scl_masked=section.mask_scl,
                dilate_m=section.mask_dilate_m,
                speck_m=section.mask_speck_m,
                method=section.composite,
                reach_m=section.best_reach_m,
                detector=self.cloud_detector,
                loader=section.loader,
                reading=Reading(section.resampling, attempts=section.attempts, timeout_s=section.timeout_s),
            )
            for epoch, periods in section.epochs.items()
        }

    @cached_property
    def cloud_detector(self) -> Any:
        """The detector beside the scene classification, if the job wants one."""
        from geoflow.imagery import find_detector

        section = self.section("imagery")
        if section.cloud_detector is None:
            return None
        weights = None if section.cloud_weights is None else local_copy(section.cloud_weights)
        try:
            found = find_detector(section.cloud_detector, weights, section.cloud_threshold)
            self.catalog.check_bands(found.bands)
        except GeoflowError as error:
            raise JobError(f"imagery.cloud_detector: {error}") from None
        return found

    @cached_property
    def held_out(self) -> Any:
        """The blocks that training never learns from; of the model's record where a trained model is used."""
        from geoflow.learning.samples import HeldOut
        from geoflow.modelfile import read_header

        if self.job.train is not None:
            return HeldOut(self.job.train.held_out_block_px, self.job.train.held_out_share, self.job.seed)
        if self.job.predict is not None and self.job.predict.model is not None:
            record = read_header(self.job.predict.model).card.training.get("held_out")
            return None if not record else HeldOut(record["block_px"], record["share"], record["seed"])
        return None

    @cached_property
    def classifier_options(self) -> Any:
        """Training options of the classifier."""
        from geoflow.learning.options import ClassifierOptions

        options = self.section("classifier").options
        return options_of(ClassifierOptions, "classifier.options", {"seed": self.job.seed, **options})

    @cached_property
    def segmenter_options(self) -> Any:
        """Training options of the segmenter; its encoder is the classifier's."""
        from geoflow.learning.options import SegmenterOptions

        options = {"seed": self.job.seed, **self.section("train").options}
        if self.job.classifier is not None:
            options.setdefault("encoder", self.classifier_options.encoder)
        return options_of(SegmenterOptions, "train.options", options)

    @property
    def model_folder(self) -> Path:
        """Where the segmenter is: the one given, or the one that this run trains."""
        given = None if self.job.predict is None else self.job.predict.model
        return given or self.out / "model"

    @property
    def zones(self) -> Zones | None:
        """The polygons in which areas are told: those to publish, or those of the change section."""
        for name in ("publish", "change"):
            section = getattr(self.job, name)
            if section is not None and section.zones is not None:
                return Zones(name, section.zones, section.zone_column)
        return None

    @property
    def joint_change(self) -> bool:
        """Whether change is judged by the scenes and by the probabilities of both maps, not by their classes alone."""
        change, imagery, predict = self.job.change, self.job.imagery, self.job.predict
        if change is None or change.method == "post-classification":
            return False
        epochs = {change.before, change.after}
        seen = imagery is not None and epochs <= set(imagery.epochs)
        mapped = predict is not None and predict.probabilities is not False and epochs <= set(self.job.mapped_epochs)
        if not (seen and mapped) and change.method == "joint":
            raise JobError(
                f"change.method: joint reads the composites of {change.before} and {change.after} and the "
                "probabilities of their maps, which this job does not make; add both epochs to imagery.epochs and "
                "predict.epochs, do not set predict.probabilities to false, or say post-classification"
            )
        return seen and mapped

    @property
    def keeps_probabilities(self) -> bool:
        """Whether maps keep the probabilities of all classes."""
        predict = self.job.predict
        if predict is None or predict.probabilities is None:
            return self.joint_change
        return predict.probabilities

    def section(self, name: str) -> Any:
        """A section of the job that must be there."""
        section = getattr(self.job, name)
        if section is None:
            raise JobError(f"{name}: the job has no such section, but another needs it")
        return section


def options_of(kind: type, key: str, values: dict[str, Any]) -> Any:
    """Options of a room from the job's plain values, with unknown names and wrong types refused."""
    from pydantic import TypeAdapter, ValidationError

    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise JobError(f"{key}.{unknown[0]}: unknown key; accepted here: {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(p) for p in first["loc"])
        raise JobError(f"{key}.{name}: {first['msg']}, not {first['input']!r}") from None
    except GeoflowError as error:
        raise JobError(f"{key}: {error}") from None
