"""Where to get what a job asks its user to bring."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geoflow.jobs.spec import Job

CORINE_PAGES = {
    year: f"https://land.copernicus.eu/en/products/corine-land-cover/clc{year}"
    for year in ("1990", "2000", "2006", "2012", "2018")
}
CORINE_CHANGE_PAGE = "https://land.copernicus.eu/en/products/corine-land-cover"
BIGEARTHNET_PAGE = "https://bigearth.net"
BORDER_PAGES = (
    ("GISCO, the European Commission's borders", "https://ec.europa.eu/eurostat/web/gisco/geodata"),
    ("Natural Earth, the world's, public domain", "https://www.naturalearthdata.com/downloads/10m-cultural-vectors"),
)
"""What they are, and their pages; national mapping agencies have finer ones."""


def corine_page(name: str) -> str:
    """The download page of the CORINE status layer whose year a file name holds; of 2018 without."""
    return next((page for year, page in reversed(CORINE_PAGES.items()) if year in name), CORINE_PAGES["2018"])


def where_from(key: str, job: Job) -> str:
    """Where the file of a key can be had, as half a sentence; empty where only the user knows."""
    if job.imagery is not None and job.imagery.catalog == "sample":
        return "geoflow sample DIR makes the sample country"
    if key in ("area.file", "area.geojson"):
        return "borders are at " + " and at ".join(f"{page} ({what})" for what, page in BORDER_PAGES)
    if key == "labels.source" and job.labels is not None and job.labels.legend == "corine":
        return f"CORINE is at {corine_page(job.labels.source.name)} (register, free)"
    if key == "evaluate.change_truth":
        return f"the layers of CORINE change are at {CORINE_CHANGE_PAGE} (register, free)"
    if key.startswith(("classifier.source", "classifier.exclude", "classifier.metadata")):
        return f"BigEarthNet is at {BIGEARTHNET_PAGE} (free)"
    return ""
