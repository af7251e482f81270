"""A first job file for somebody's own area: ``geoflow init`` turns a few wishes into a whole, commented job."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from geoflow.errors import GeoflowError, JobError
from geoflow.jobs.datasources import BIGEARTHNET_PAGE, BORDER_PAGES, corine_page
from geoflow.jobs.jobfile import parse_job
from geoflow.jobs.schema import write_schema
from geoflow.jobs.spec import Area, Imagery
from geoflow.jobs.startertext import job_text

if TYPE_CHECKING:
    from odc.geo.geom import Geometry

CATALOG, EPOCHS = "earth-search", "2018,2024"
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
_PLACEHOLDER = "data/U2018_CLC2018_V2020_20u1.gpkg"
_BOX = re.compile(r"\s*-?[\d.]+(\s*,\s*-?[\d.]+){3}\s*")
_EUROPE = (-25.0, 34.0, 45.0, 72.0)
"""West, south, east, north in degrees: where EPSG:3035, in which CORINE comes, is the default."""
_ATTRIBUTION = (
    "CORINE Land Cover: European Union, Copernicus Land Monitoring Service, European Environment Agency (EEA)"
)
_COUNTRY_PX = 50e6
"""From so many pixels on a net has enough to learn from to be worth long training: 5000 km² at 10 m."""


@dataclass(frozen=True)
class Wishes:
    """What somebody said about the job that they want; None where they said nothing.

    Parameters
    ----------
    area : str
        A file with the border, or ``west,south,east,north`` in degrees.
    name : str
    catalog : str
        A name or file of a catalog, or the ``catalog.json`` of a STAC on this machine.
    epochs : str
        Years with commas.
    legend : str
    labels : Path
    labels_epoch : str
    bigearthnet : Path
    resolution_m : float
    crs : str
    where : str
        Which features of the file of the area.
    """

    area: str | None = None
    name: str = "job"
    catalog: str | None = None
    epochs: str | None = None
    legend: str | None = None
    labels: Path | None = None
    labels_epoch: str | None = None
    bigearthnet: Path | None = None
    resolution_m: float = 10.0
    crs: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class Written:
    """The job file, the schema beside it, and what is still to be done or known."""

    job: Path
    schema: Path
    notes: tuple[str, ...]


def write_starter(file: Path, wishes: Wishes, force: bool = False) -> Written:
    """Write a whole job, every key explained, and the JSON Schema that its first line points to.

    Raises
    ------
    GeoflowError
        If the file is there and ``force`` is not given, it cannot be written, or a wish cannot be granted.
    """
    if file.exists() and not force:
        raise GeoflowError(f"{file} is there already; name another file, or give --force to replace it")
    values, notes = starter_values(wishes, file.resolve().parent)
    text = job_text(values)
    parse_job(yaml.safe_load(text), file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return Written(file, write_schema(file.parent), tuple(notes))
    except OSError as error:
        raise GeoflowError(f"{file} cannot be written: {error.strerror}") from None


def starter_values(wishes: Wishes, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The job as plain values, its paths relative to ``folder``, and notes for its author."""
    notes: list[str] = []
    section, area = read_wished_area(wishes)
    lonlat = area.to_crs("EPSG:4326").boundingbox
    country = area.to_crs("EPSG:6933").area / wishes.resolution_m**2 > _COUNTRY_PX  # equal area, of the whole earth
    crs = wishes.crs or default_crs(lonlat)
    found = features_of(wishes)
    if wishes.where is None and found is not None and found.count > 1:
        notes.append(f"the area is all {found.count} features of {wishes.area}; area.where takes {found.example}")
    epochs = epoch_values(wishes.epochs or EPOCHS, (lonlat.bottom + lonlat.top) / 2)
    sizes = grid_values(area, crs, wishes.resolution_m)
    imagery = imagery_values(wishes, folder, epochs)
    if speck_m := imagery.get("mask_speck_m"):
        notes.append(
            f"at {wishes.resolution_m:g} m a river is a pixel or two, often taken for shadow: "
            f"mask_speck_m is {speck_m:g}, so that such pixels get no margin"
        )
    values: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9_.-]+", "-", wishes.name).strip("-.") or "job",
        "area": _area_values(section, folder),
        "grid": {"crs": crs, "resolution_m": wishes.resolution_m, **sizes},
        "imagery": imagery,
        "labels": label_values(wishes, folder, list(epochs), notes),
    }
    if wishes.bigearthnet is not None:
        long = {"options": {"head_epochs": 10, "epochs": 5, "batch": 64}} if country else {}
        values["classifier"] = {"source": _relative(wishes.bigearthnet, folder), **long}
    else:
        notes.append(f"without BigEarthNet ({BIGEARTHNET_PAGE}) the net starts from nothing; add it as classifier")
    values["train"] = {"held_out_block_px": max(64, sizes["chunk"]), "held_out_share": 0.2}
    if country:
        values["train"]["options"] = {"decoder_steps": 10000, "steps": 10000, "batch": 16, "window_px": 256}
    values["predict"] = {"engine": "auto"}
    corine = values["labels"]["legend"] == "corine"
    if corine:
        values["generalise"] = {"25ha": {"mmu_ha": 25, "smooth_px": 5}}
    if len(epochs) > 1:
        values["change"] = {"from": min(epochs), "to": max(epochs)}
    values["publish"] = {
        "title": f"Land cover of {values['name'].replace('-', ' ').title()}",
        "attribution": _ATTRIBUTION if corine else "",
    }
    return values, notes


def read_wished_area(wishes: Wishes) -> tuple[Area, Geometry]:
    """The area as a section of a job and as a geometry.

    Raises
    ------
    JobError
        If none is given, or it cannot be read.
    """
    from geoflow.jobs.area import read_area

    if wishes.area is None:
        pages = " or ".join(page for _, page in BORDER_PAGES)
        raise JobError(
            f"--area is missing: a file with the border (from {pages}), or a box such as 21.7,57.5,28.3,59.9"
        )
    if _BOX.fullmatch(wishes.area):
        parsed = parse_job({"name": "area", "area": {"bbox": [float(n) for n in wishes.area.split(",")]}} | _GRID)
        section = parsed.area
    else:
        path = Path(wishes.area)
        if not path.exists():
            raise JobError(f"--area {path}: there is no such file; a box is west,south,east,north in degrees")
        section = Area.model_validate({"file": path, "where": wishes.where})
    return section, read_area(section)


_GRID = {"grid": {"crs": "EPSG:3035"}}


def default_crs(lonlat: Any) -> str:
    """EPSG:3035 in Europe, else the UTM zone of the middle; ``lonlat`` is a bounding box in degrees."""
    west, south, east, north = _EUROPE
    if west <= lonlat.left and lonlat.right <= east and south <= lonlat.bottom and lonlat.top <= north:
        return "EPSG:3035"
    middle, latitude = (lonlat.left + lonlat.right) / 2, (lonlat.bottom + lonlat.top) / 2
    zone = min(60, math.floor((middle + 180) / 6) + 1)
    return f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"


@dataclass(frozen=True)
class Features:
    """How many features a file has, and how to choose one, as an example."""

    count: int
    example: str


def features_of(wishes: Wishes) -> Features | None:
    """What is in the file of the area; None for a box."""
    import pyogrio

    if wishes.area is None or _BOX.fullmatch(wishes.area):
        return None
    info = pyogrio.read_info(wishes.area)
    texts = [name for name, kind in zip(info["fields"], info["dtypes"], strict=True) if kind == "object"]
    likely = sorted(texts, key=lambda name: "name" not in name.lower())[:1]
    if not likely:
        return Features(info["features"], "a condition such as id = 1")
    first = pyogrio.read_dataframe(wishes.area, columns=likely, read_geometry=False, max_features=1)[likely[0]][0]
    return Features(info["features"], f"a condition such as {likely[0]} = '{first}'")


def _area_values(section: Area, folder: Path) -> dict[str, Any]:
    if section.bbox is not None:
        return {"bbox": list(section.bbox)}
    return {"file": _relative(section.file, folder)} | ({"where": section.where} if section.where else {})


def _relative(path: str | Path | None, folder: Path) -> str:
    """A path as the job file has it: relative to its folder where that is shorter to read."""
    text = str(path)
    if "://" in text:
        return text
    whole = os.path.abspath(text)
    near = os.path.relpath(whole, folder)
    return whole if near.count("..") > 3 else near


def grid_values(area: Geometry, crs: str, resolution_m: float) -> dict[str, int]:
    """Tiles and chunks such that a small area has several, too; raises a JobError for a CRS that is none."""
    try:
        box = area.to_crs(crs).boundingbox
    except Exception as error:  # pyproj and odc-geo raise several kinds
        raise JobError(f"--crs {crs}: {error}; give one such as EPSG:3035 or EPSG:32635") from error
    edge = max(box.right - box.left, box.top - box.bottom) / resolution_m
    tile = 2048 if edge > 8192 else 1024 if edge > 3072 else 512
    return {"tile": tile, "chunk": min(512, tile // 2)}


def epoch_values(years: str, latitude: float) -> dict[str, dict[str, str]]:
    """Periods of each year: seasons of the temperate zones, halves of the year in the tropics."""
    found: dict[str, dict[str, str]] = {}
    for text in years.split(","):
        if not re.fullmatch(r"\s*20\d\d\s*", text):
            raise JobError(
                f"--epochs {years!r}: {text.strip()!r} is not a year; write years with commas, such as 2018,2024"
            )
        year = int(text)
        if abs(latitude) < 23.5:
            found[str(year)] = {
                "first_half": f"{year}-01-01/{year}-06-30",
                "second_half": f"{year}-07-01/{year}-12-31",
            }
        elif latitude > 0:
            found[str(year)] = {"spring": f"{year}-04-15/{year}-06-15", "summer": f"{year}-06-16/{year}-09-15"}
        else:
            found[str(year)] = {
                "spring": f"{year - 1}-10-15/{year - 1}-12-15",
                "summer": f"{year - 1}-12-16/{year}-03-15",
            }
    return found


def imagery_values(wishes: Wishes, folder: Path, epochs: Mapping[str, Any]) -> dict[str, Any]:
    """The imagery section; raises a CatalogError if there is no such catalog."""
    from geoflow.imagery import load_catalog

    name, url = wishes.catalog or CATALOG, None
    bands: tuple[str, ...] = BANDS
    if name.endswith(".json"):
        url = _relative(name, folder)
        name, bands = catalog_of(name)
    else:
        load_catalog(name)
        name = _relative(name, folder) if "/" in name or name.endswith((".yaml", ".yml")) else name
    where = {"catalog": name} | ({"url": url} if url else {})
    default_m = float(Imagery.model_fields["mask_speck_m"].default)
    # One pixel has a margin and two may; three are as wide in pixels as the default is where it was chosen.
    coarse = round(default_m / wishes.resolution_m) < 2
    speck = {"mask_speck_m": 3 * wishes.resolution_m} if coarse else {}
    return {**where, "bands": list(bands), "epochs": epochs, **speck}


def catalog_of(file: str) -> tuple[str, tuple[str, ...]]:
    """The catalog whose names of bands a STAC on this machine has, and which of our bands it holds.

    Raises
    ------
    CatalogError
        If it cannot be read, holds no scene, or names its bands as none of ours does.
    """
    import pystac

    from geoflow.errors import CatalogError
    from geoflow.imagery import load_catalog

    try:
        item = next(pystac.Catalog.from_file(file).get_items(recursive=True), None)
    except Exception as error:  # pystac passes on what files and JSON raise
        raise CatalogError(f"--catalog {file} cannot be read as a STAC catalog: {error}") from error
    if item is None:
        raise CatalogError(f"--catalog {file} holds no scene")
    for name in ("earth-search", "planetary-computer", "cdse"):
        catalog = load_catalog(name)
        bands = tuple(band for band in BANDS if catalog.assets.get(band) in item.assets)
        if bands and catalog.scl in item.assets:
            return name, bands
    raise CatalogError(
        f"--catalog {file}: its scenes have {', '.join(item.assets)}, which no shipped catalog knows; write a catalog "
        "file of your own and give that"
    )


def label_values(wishes: Wishes, folder: Path, epochs: Sequence[str], notes: list[str]) -> dict[str, Any]:
    """The labels section; raises a GeoflowError if the file holds no labels of the legend."""
    from geoflow.labels.source import inspect_labels
    from geoflow.legends import legend

    scheme = wishes.legend or "corine"
    known = legend(scheme)
    shown = scheme if scheme == "corine" else _relative(scheme, folder)
    if wishes.labels is None:
        if scheme != "corine":
            raise JobError("--labels is missing: with a legend of your own, name the polygons or raster of its classes")
        notes.append(
            f"bring CORINE from {corine_page(_PLACEHOLDER)} (register, free) as {_PLACEHOLDER}, or mend labels"
        )
        epoch = _labels_epoch(wishes, "2018", epochs)
        return {"name": "clc2018", "source": _PLACEHOLDER, "legend": shown, "epoch": epoch}
    found = inspect_labels(wishes.labels, known)
    epoch = _labels_epoch(wishes, wishes.labels.stem, epochs)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", wishes.labels.stem).strip("-.").lower() or "labels"
    column = {"column": found.column} if found.column else {}
    return {"name": name, "source": _relative(wishes.labels, folder), "legend": shown, **column, "epoch": epoch}


def _labels_epoch(wishes: Wishes, name: str, epochs: Sequence[str]) -> str:
    """The epoch that a file is named after, by four digits or by two; else the nearest, else the first."""
    if wishes.labels_epoch is not None:
        if wishes.labels_epoch not in epochs:
            raise JobError(f"--labels-epoch {wishes.labels_epoch}: there are {', '.join(epochs)}")
        return wishes.labels_epoch
    years = [int(text) for text in re.findall(r"(?<!\d)20[012]\d(?!\d)", name)]
    years += [2000 + int(text) for text in re.findall(r"(?<!\d)[012]\d(?!\d)", name)]
    return min(epochs, key=lambda epoch: abs(int(epoch) - years[0])) if years else epochs[0]
