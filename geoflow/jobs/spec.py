"""What a job may say: its sections and their keys, each value checked before any work.

`geoflow.jobs.jobfile` reads the file.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from geoflow.inputs import BANDS
from geoflow.jobs.values import Licence, Method, Name, Place, WebAddress

_TILE = re.compile(r"(0[1-9]|[1-5][0-9]|60)[C-HJ-NP-X][A-HJ-NP-Z]{2}")


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Area(Section):
    """Where: a vector file, GeoJSON, or a bounding box in degrees."""

    file: Place | None = Field(None, description="vector file with the border (any CRS)")
    layer: str | None = Field(None, description="layer of the file; needed only if it has several")
    where: str | None = Field(None, description="filter on attributes of the file, for example \"NAME = 'Estonia'\"")
    geojson: dict[str, Any] | Place | None = Field(
        None, description="polygons in degrees: a geometry, feature or collection written here, or a file of one"
    )
    bbox: tuple[float, float, float, float] | None = Field(
        None, description="west, south, east, north in degrees; west above east crosses the 180th meridian"
    )

    @model_validator(mode="after")
    def _one_of(self) -> Area:
        given = [name for name in ("file", "geojson", "bbox") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of file, geojson and bbox, not {' and '.join(given) or 'none'}")
        if self.file is None and (self.layer or self.where):
            raise ValueError("layer and where choose within a file; give the area as file")
        if self.bbox is not None:
            west, south, east, north = self.bbox
            width = east - west if west < east else east - west + 360
            if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90):
                raise ValueError(f"bbox {list(self.bbox)} must be west, south, east, north in degrees, south < north")
            if west == east or (west > east and width > 180):
                raise ValueError(f"bbox {list(self.bbox)} must be west < east, or cross the 180th meridian")
        return self


class GridSection(Section):
    """The national raster."""

    crs: str = Field(description="projected CRS, for example EPSG:3035")
    resolution_m: float = Field(10.0, gt=0, description="edge of a pixel in metres")
    tile: int = Field(2048, gt=0, description="edge of a tile in pixels: the unit of work")
    chunk: int = Field(512, gt=0, description="edge of a Zarr chunk in pixels; tile is a multiple of it")

    @model_validator(mode="after")
    def _tile_of_chunks(self) -> GridSection:
        if self.tile % self.chunk:
            near = max(1, round(self.tile / self.chunk)) * self.chunk
            raise ValueError(f"tile {self.tile} is not a multiple of chunk {self.chunk}; use tile {near}")
        return self

    @field_validator("crs")
    @classmethod
    def _projected(cls, value: str) -> str:
        from odc.geo.crs import CRS

        try:
            crs = CRS(value)
        except Exception as error:  # noqa: BLE001  (pyproj and odc-geo raise several kinds)
            raise ValueError(f"{value!r} is not a CRS: {error}") from None
        if not crs.projected:
            raise ValueError(f"{value} is in degrees; areas need a projected CRS in metres, such as EPSG:3035")
        return value


class DateRange(Section):
    """A span of days, both ends included; written ``2018-04-15/2018-06-15``."""

    start: dt.date
    end: dt.date

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            start, slash, end = value.partition("/")
            if not slash:
                raise ValueError(f"{value!r} is not a date range; write 2018-04-15/2018-06-15")
            return {"start": start.strip(), "end": end.strip()}
        return value

    @model_validator(mode="after")
    def _forward(self) -> DateRange:
        if self.end < self.start:
            raise ValueError(f"the range ends ({self.end}) before it starts ({self.start})")
        return self


class Imagery(Section):
    """Which scenes, and how they become one composite per period."""

    catalog: str = Field(description="name of a file in catalogs/, or a path to one")
    url: str | None = Field(None, description="another address for that catalog, for example a local copy")
    bands: tuple[str, ...] = Field(("B02", "B03", "B04"), min_length=1, description="Sentinel-2 bands, B01..B12")
    epochs: dict[Name, dict[Name, DateRange]] = Field(min_length=1, description="epoch -> period -> dates")
    max_cloud_percent: float = Field(60.0, ge=0, le=100, description="scenes that claim more cloud are not read")
    tiles: tuple[str, ...] = Field((), description="only these Sentinel-2 tiles, for example `[33TWN, 33TWM]`")
    orbits: tuple[int, ...] = Field((), description="only these relative orbits, 1..143")
    best_per_tile: int | None = Field(
        None,
        ge=1,
        description="use only so many scenes of each Sentinel-2 tile and period: the least clouded, then those nearest "
        "the middle of the period",
    )
    server_filters: Literal["none", "place", "all"] = Field(
        "place",
        description="what a server is asked to filter by, beside area and dates: nothing, `tiles` and `orbits`, or the "
        "cloud limit too; what a server drops is counted at best, and not listed as refused",
    )
    mask_scl: tuple[int, ...] = Field((0, 1, 3, 8, 9, 10), description="SCL classes that are not used")
    mask_dilate_m: float = Field(60.0, ge=0, description="margin around clouds and shadows, in metres")
    mask_speck_m: float = Field(
        50.0,
        ge=0,
        description="clouds and shadows narrower than this get no margin: mostly roofs and rivers; less than two "
        "pixels spare nothing",
    )
    cloud_detector: Literal["s2cloudless", "omnicloudmask"] | None = Field(
        None,
        description="finds clouds beside the SCL; needs its package of that name and, see imagery.md, weights",
    )
    cloud_weights: Place | None = Field(None, description="file (s2cloudless) or folder (omnicloudmask) of its weights")
    cloud_threshold: float = Field(0.4, gt=0, lt=1, description="least probability of a cloud, for s2cloudless")
    composite: Method = Field(
        "median",
        description="how clear observations become one value: `median`, `medoid`, `geomedian`, `best`, or a percentile "
        "such as `p25`; see [imagery.md](imagery.md)",
    )
    best_reach_m: float = Field(
        600.0, ge=0, description="for `best`: clouds and shadows farther away than this do not count"
    )
    loader: Literal["stackstac", "odc-stac"] = Field("stackstac", description="which library reads the scenes")
    resampling: Literal["nearest", "bilinear", "cubic"] = Field(
        "bilinear", description="of reflectance onto the grid; the scene classification is always nearest"
    )
    on_error: Literal["fail", "skip_scene"] = Field(
        "fail",
        description="a file that cannot be read after all attempts: `fail` fails the tiles that need it, `skip_scene` "
        "does without the scene there, which the report and the receipts say; a later run with `fail` makes good what "
        "is missing. A scene whose pixels cannot be asked about its offset fails the search, or with `skip_scene` gets "
        "the offset that its metadata say, and is named",
    )
    attempts: int = Field(3, ge=1, le=20, description="how often a remote file is tried")
    timeout_s: float = Field(
        60.0, gt=0, description="seconds that one request may take; half of it where nothing arrives"
    )

    @field_validator("bands")
    @classmethod
    def _known_bands(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [b for b in value if b not in BANDS]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is not a Sentinel-2 L2A band; there are {', '.join(BANDS)}")
        if len(set(value)) < len(value):
            raise ValueError(f"a band is named twice in {list(value)}")
        return value

    @field_validator("tiles", mode="before")
    @classmethod
    def _tile_names(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        found = []
        for name in value:
            text = str(name).upper().removeprefix("MGRS-").removeprefix("T").zfill(5)
            if not _TILE.fullmatch(text):
                raise ValueError(f"{name!r} is not a Sentinel-2 tile, such as 33TWN")
            found.append(text)
        return tuple(dict.fromkeys(found))

    @field_validator("orbits")
    @classmethod
    def _relative_orbits(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if wrong := [n for n in value if not 1 <= n <= 143]:
            raise ValueError(f"{wrong[0]} is not a relative orbit of Sentinel-2, 1 to 143")
        return value

    @model_validator(mode="after")
    def _same_periods(self) -> Imagery:
        names = {epoch: tuple(periods) for epoch, periods in self.epochs.items()}
        if any(not p for p in names.values()):
            raise ValueError("every epoch needs at least one period of dates")
        if len(set(names.values())) > 1:
            raise ValueError(f"all epochs need the same periods in the same order, since one model reads them: {names}")
        return self

    @property
    def periods(self) -> tuple[str, ...]:
        """Names of the periods, in the order of the composite."""
        return tuple(next(iter(self.epochs.values())))


class Labels(Section):
    """What the segmentation learns from."""

    name: Name = Field("labels", description="group in the store: labels/NAME")
    source: Place = Field(description="vector or raster file; `file|layername=NAME` picks a layer")
    legend: str = Field("corine", description="corine, or a path to a CSV (code, name, colour)")
    column: str | None = Field(None, description="column of codes in a vector file; found by itself if possible")
    epoch: Name = Field(description="the epoch of imagery that the labels describe")


class Classifier(Section):
    """The patch classifier that becomes the encoder (BigEarthNet)."""

    source: Place = Field(
        description="folder of BigEarthNet v1 or v2 as published, or a store that `geoflow bigearthnet` made of one"
    )
    exclude: tuple[Place, ...] = Field((), description="lists of patches to leave out (cloud, shadow, snow)")
    metadata: tuple[Place, ...] = Field((), description="tables of v2; those beside the folder by default")
    keep_flagged: bool = Field(False, description="learn from patches that lists or tables flag, too")
    labels: Literal["level3", "nineteen"] = Field("level3", description="CLC level 3, or BigEarthNet's 19 classes")
    split: Literal["random", "squares", "official"] | None = Field(
        None,
        description="a split of the store; by default split_file, else official, else options.validation at random",
    )
    split_file: Place | None = Field(None, description="a split of your own: CSV of patch name and part")
    options: dict[str, Any] = Field(default_factory=dict, description="training options, see below")


class Train(Section):
    """The segmentation net."""

    held_out_block_px: int = Field(256, gt=0, description="edge of the blocks that are held out, in pixels")
    held_out_share: float = Field(0.2, ge=0, lt=1, description="share of blocks never learned from")
    options: dict[str, Any] = Field(default_factory=dict, description="training options, see below")


class Predict(Section):
    """The maps."""

    model: Place | None = Field(None, description="a trained model folder, instead of training one")
    epochs: tuple[Name, ...] | None = Field(None, min_length=1, description="which epochs; all by default")
    engine: Literal[
        "auto", "torch", "openvino", "torch-fp32", "torch-bf16", "torch-fp16", "openvino-fp32", "openvino-bf16"
    ] = Field(
        "auto",
        description="what runs the net; any but `torch-fp32` is first compared with it on the job's own imagery, and "
        "used only where 99.9 % of the pixels get the same class",
    )
    flips: bool = Field(
        False,
        description="look at every window in its eight rotations and reflections, and take the mean of the "
        "probabilities: eight times as slow; see [models.md](models.md#test-time-augmentation)",
    )
    probabilities: bool | None = Field(
        None,
        description="also keep the probabilities of all classes, a byte each, for change, relabelling and time series; "
        "by default where the change section needs them",
    )


class Generalise(Section):
    """A layer beside the map, without patches below a minimum mapping unit."""

    mmu_ha: float = Field(gt=0, description="patches smaller than this join a neighbour, the most similar class first")
    smooth_px: int = Field(1, ge=1, le=31, description="edge of the majority filter before that, odd; 1 for none")

    @field_validator("smooth_px")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"the window must be an odd number of pixels, not {value}")
        return value


class Change(Section):
    """Change between two epochs."""

    before: Name = Field(alias="from", description="the earlier epoch")
    after: Name = Field(alias="to", description="the later epoch")
    method: Literal["auto", "joint", "post-classification"] = Field(
        "auto",
        description="`joint`: the scenes and the class probabilities of both epochs, weighed together; "
        "`post-classification`: classes differ; `auto`: joint where the job has imagery of both epochs",
    )
    min_confidence: int = Field(
        70, ge=0, le=100, description="least probability of a change; of both maps being right, for post-classification"
    )
    transitions: dict[str, float] = Field(
        default_factory=dict,
        description="weights of single transitions, 1 where not named, codes of any level: `{5-1: 0, 312-324: 3}`; "
        "besides, of several transitions between CORINE classes a usual flow is preferred",
    )
    zones: Place | None = Field(None, description="polygons, in any CRS, for a table of transitions in each of them")
    zone_column: str | None = Field(None, description="column with the names of the zones; their number without")
    mmu_ha: float = Field(0.5, ge=0, description="smaller patches of change are dropped, in hectares")

    @model_validator(mode="after")
    def _two_epochs(self) -> Change:
        if self.before == self.after:
            raise ValueError(f"from and to are both {self.before!r}")
        return self


class Evaluate(Section):
    """How good it is, where the truth is known."""

    truth: dict[Name, Place] = Field(default_factory=dict, description="epoch -> raster or polygons of class codes")
    change_truth: Place | None = Field(
        None,
        description="polygons of change between the epochs of `change`, such as CLC-Change, instead of the difference "
        "of two truths; `file|layername=NAME` picks a layer",
    )
    change_columns: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=2,
        description="its columns with the class before and after, or the one that holds both; found by themselves if "
        "named like `Code_12` and `Code_18`",
    )

    @model_validator(mode="after")
    def _some_truth(self) -> Evaluate:
        if not self.truth and self.change_truth is None:
            raise ValueError("give truth, change_truth or both")
        return self


class Publish(Section):
    """What people look at."""

    title: str = Field("Land cover", description="headline of the maps and the report")
    attribution: str = Field("", description="line under the maps; the catalog's own is added")
    publisher: str = Field("", description="who publishes the maps, for example your agency")
    publisher_url: WebAddress | None = Field(None, description="the publisher's page")
    licence: Licence = Field("", description="of the maps, as SPDX writes it, for example `CC-BY-4.0`")
    zones: Place | None = Field(
        None, description="polygons, in any CRS, for areas in each of them; by default those of change.zones"
    )
    zone_column: str | None = Field(None, description="column with the names of the zones; their number without")
    icechunk: Place | None = Field(
        None,
        description="an icechunk repository, a folder or `s3://`, that gets one commit a complete run; see "
        "[how-to/icechunk.md](how-to/icechunk.md)",
    )


class Job(Section):
    """A whole job file."""

    name: Name = Field(description="names the output folder, out/NAME")
    area: Area
    grid: GridSection
    imagery: Imagery | None = None
    labels: Labels | None = None
    classifier: Classifier | None = None
    train: Train | None = None
    predict: Predict | None = None
    generalise: dict[Name, Generalise] = Field(
        default_factory=dict, description="name of the layer -> how it is made, for example `25ha: {mmu_ha: 25}`"
    )
    change: Change | None = None
    evaluate: Evaluate | None = None
    overviews: bool = Field(
        True,
        description="whether to add coarser copies of each layer, for the viewer and national plots: a third more",
    )
    publish: Publish | None = None
    seed: int = Field(0, ge=0, description="seed of everything random")

    @model_validator(mode="after")
    def _sections_fit(self) -> Job:
        epochs = () if self.imagery is None else tuple(self.imagery.epochs)
        if self.train and (self.imagery is None or self.labels is None):
            raise ValueError("train: learns from imagery and labels; both sections must be in the job")
        if self.classifier and self.imagery is None:
            raise ValueError("classifier: takes its bands from imagery; that section must be in the job")
        if self.predict:
            if self.imagery is None:
                raise ValueError("predict: maps the composites of imagery; that section must be in the job")
            if (self.predict.model is None) == (self.train is None):
                raise ValueError("predict: needs either a train section or predict.model, a trained model folder")
        if self.generalise and self.predict is None:
            raise ValueError("generalise: works on maps; a predict section must be in the job")
        self._check_epoch("labels.epoch", [] if self.labels is None else [self.labels.epoch], epochs)
        self._check_epoch("predict.epochs", (self.predict and self.predict.epochs) or [], epochs)
        if self.change and self.predict:
            self._check_epoch("change", [self.change.before, self.change.after], self.mapped_epochs)
        if self.evaluate:
            if self.predict is None:
                raise ValueError("evaluate: compares maps with a truth; a predict section must be in the job")
            self._check_epoch("evaluate.truth", list(self.evaluate.truth), self.mapped_epochs)
            if self.evaluate.change_truth and self.change is None:
                raise ValueError("evaluate.change_truth: compares a change map; a change section must be in the job")
        return self

    def _check_epoch(self, key: str, names: Sequence[str], accepted: Sequence[str]) -> None:
        for name in names:
            if accepted and name not in accepted:
                raise ValueError(f"{key}: {name!r} is not an epoch; there are {', '.join(accepted)}")

    @property
    def mapped_epochs(self) -> tuple[str, ...]:
        """The epochs that get a map."""
        if self.predict is None or self.imagery is None:
            return ()
        return self.predict.epochs or tuple(self.imagery.epochs)
