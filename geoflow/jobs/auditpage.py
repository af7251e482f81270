"""An audit for people and programs: a page with the worst patches, a table with all of them, a summary."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoflow.colours import hex_colour
from geoflow.inputs import NODATA
from geoflow.jobs.audit import PATCH_M, Audit, Truth
from geoflow.jobs.pages import pages
from geoflow.learning.audit import found_share
from geoflow.places import local_file, write_bytes
from geoflow.store.receipts import write_json

if TYPE_CHECKING:
    import geopandas as gpd

TABLE, LIST, PAGE, SUMMARY = "audit.parquet", "audit.csv", "index.html", "audit.json"
TRUE_COLOUR = ("B04", "B03", "B02")
_GAMMA = 0.7
_LEAST_SPREAD = 600.0  # reflectance x 10000: a patch of nothing but water is not stretched into noise
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class LabelRow:
    """A label of a patch as the page shows it."""

    code: int
    name: str
    colour: str
    given: bool
    probability: float
    loss: float
    change: str
    """``remove``, ``add`` or empty."""


@dataclass(frozen=True)
class Card:
    """A patch as the page shows it."""

    rank: int
    name: str
    score: float
    fold: int
    longitude: float
    latitude: float
    chip: str
    labels: tuple[LabelRow, ...]
    verdict: str


def write_audit(
    audit: Audit, folder: Path, worst: int = 60, truth: Truth | None = None, retrain: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``audit.parquet``, ``audit.csv``, ``audit.json`` and ``index.html`` into a folder.

    Parameters
    ----------
    audit : Audit
    folder : Path
    worst : int
        Patches on the page.
    truth : mapping, optional
        True codes by patch: then it is told how many of the wrong ones were found.
    retrain : mapping, optional
        From `geoflow.jobs.auditretrain.retrained`.

    Returns
    -------
    dict
        The summary, as in ``audit.json``.
    """
    table = audit_table(audit)
    with local_file(folder / TABLE) as file:
        table.to_parquet(file, index=False)
    write_bytes(folder / LIST, table.drop(columns="geometry").to_csv(index=False).encode())
    summary = summary_of(audit, truth, retrain)
    write_json(folder / SUMMARY, summary)
    write_bytes(folder / PAGE, _page(audit, table, summary, worst).encode())
    return summary


def audit_table(audit: Audit) -> gpd.GeoDataFrame:
    """All audited patches, the most suspicious first, with their footprints in EPSG:4326.

    Columns: ``rank``, ``patch``, ``score``, ``fold``, ``given``, ``predicted`` (probability 0.5 or more), ``remove``,
    ``add`` (codes, separated by spaces), ``loss`` (sum over the labels), and for each class ``p_<code>``.
    """
    import geopandas as gpd
    import pandas as pd

    found = audit.suggestions()
    columns: dict[str, Any] = {
        "rank": audit.rank,
        "patch": audit.facts("name").tolist(),
        "score": audit.score.round(4),
        "fold": audit.fold,
        "given": _codes(audit.given, audit.codes),
        "predicted": _codes(audit.probability >= 0.5, audit.codes),
        "remove": _codes(found.remove, audit.codes),
        "add": _codes(found.add, audit.codes),
        "loss": audit.loss.sum(axis=1).round(4),
    }
    columns |= {f"p_{code}": audit.probability[:, i].astype(np.float32) for i, code in enumerate(audit.codes)}
    places = _footprints(*(audit.facts(name) for name in ("epsg", "left", "top")))
    frame = gpd.GeoDataFrame(pd.DataFrame(columns), geometry=places, crs="EPSG:4326")
    return frame.sort_values("rank", ignore_index=True)


def _codes(which: NDArray[np.bool_], codes: Sequence[int]) -> list[str]:
    names = np.array([str(code) for code in codes], object)
    return [" ".join(names[row]) for row in which]


def _footprints(epsg: NDArray[Any], left: NDArray[Any], top: NDArray[Any]) -> Any:
    """Squares of patches; zone by zone, since a million projections one by one take minutes."""
    import geopandas as gpd
    import shapely

    squares = shapely.box(left, top - PATCH_M, left + PATCH_M, top)
    found = np.empty(len(squares), object)
    for zone in np.unique(epsg):
        at = epsg == zone
        found[at] = gpd.GeoSeries(squares[at], crs=f"EPSG:{int(zone)}").to_crs("EPSG:4326").values
    return found


def summary_of(audit: Audit, truth: Truth | None = None, retrain: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain values: settings, counts by class, and what a truth says of it."""
    found, loss = audit.suggestions(), audit.loss
    legend = audit.subject.legend
    classes = {
        str(code): {
            "name": legend.label(code),
            "patches": int(audit.given[:, i].sum()),
            "remove": int(found.remove[:, i].sum()),
            "add": int(found.add[:, i].sum()),
            "loss_given": round(float(loss[audit.given[:, i], i].mean()), 4),
        }
        for i, code in enumerate(audit.codes)
    }
    summary = {
        "labels": audit.subject.scheme,
        "patches": len(audit.places),
        "suspicious": int(found.any.sum()),
        "loss": round(float(loss.sum(axis=1).mean()), 4),
        "loss_of_image_alone": round(float(_image_loss(audit)), 4),
        "settings": {**asdict(audit.options), "classifier": asdict(audit.subject.options)},
        "classes": classes,
    }
    if truth is not None:
        summary["truth"] = _against(audit, truth)
    if retrain is not None:
        summary["retrain"] = dict(retrain)
    return summary


def _image_loss(audit: Audit) -> float:
    from geoflow.learning.audit import surprise

    return float(surprise(audit.image, audit.given).sum(axis=1).mean())


def _against(audit: Audit, truth: Truth) -> dict[str, Any]:
    """How well wrong patches are ranked, and how often suggestions are right."""
    from geoflow.learning.audit import surprise, suspicion

    true, found = audit.true_labels(truth), audit.suggestions()
    wrong, rank = (true != audit.given).any(axis=1), audit.rank
    by_image = suspicion(surprise(audit.image, audit.given), audit.given)
    count = int(wrong.sum())
    right = {"remove": found.remove & ~true, "add": found.add & true}
    made = {"remove": found.remove, "add": found.add}
    return {
        "wrong": count,
        "in_worst_tenth": round(found_share(audit.score, wrong), 4) if count else None,
        "in_worst_tenth_by_image_alone": round(found_share(by_image, wrong), 4) if count else None,
        "precision_at_wrong": round(float(wrong[rank <= count].mean()), 4) if count else None,
        "ranks": sorted(rank[wrong].tolist()),
        "suggested_patches": int(found.any.sum()),
        "suggested_patches_wrong": int((found.any & wrong).sum()),
        **{f"{what}_suggested": int(made[what].sum()) for what in made},
        **{f"{what}_right": int(right[what].sum()) for what in right},
    }


def _page(audit: Audit, table: gpd.GeoDataFrame, summary: Mapping[str, Any], worst: int) -> str:
    environment = pages()
    shown = np.argsort(audit.rank)[:worst]
    centres = table.geometry.iloc[: len(shown)].representative_point()
    chips = _chips(audit, shown)
    cards = [
        _card(audit, int(at), (point.x, point.y), chip) for at, point, chip in zip(shown, centres, chips, strict=True)
    ]
    rows = sorted(summary["classes"].items(), key=lambda item: -(item[1]["remove"] + item[1]["add"]))
    colours = {code: hex_colour(audit.subject.legend.colour(int(code))) for code, _ in rows}
    return environment.get_template("audit.html.j2").render(
        source=audit.subject.store.path.name, summary=summary, cards=cards, classes=rows, colours=colours
    )


def _card(audit: Audit, at: int, centre: tuple[float, float], chip: str) -> Card:
    found, loss, legend = audit.suggestions(), audit.loss[at], audit.subject.legend
    given, probability = audit.given[at], audit.probability[at]
    remove, add = found.remove[at], found.add[at]
    # Without a confident suggestion: what made the patch suspicious.
    odd = np.argmax(np.where(given, loss, -1)), np.argmax(np.where(given, -1, loss))
    shown = given | (probability >= 0.5) | add
    shown[list(odd)] = True
    rows = [
        LabelRow(
            audit.codes[i],
            legend.label(audit.codes[i]),
            hex_colour(legend.colour(audit.codes[i])),
            bool(given[i]),
            float(probability[i]),
            float(loss[i]),
            "remove" if remove[i] else "add" if add[i] else "",
        )
        for i in sorted(np.flatnonzero(shown), key=lambda i: (not given[i], -probability[i]))
    ]
    verdict = _verdict([r for r in rows if r.change == "remove"], [r for r in rows if r.change == "add"])
    name = str(audit.subject.store.facts("name")[audit.places[at]])
    score, fold = float(audit.score[at]), int(audit.fold[at])
    return Card(int(audit.rank[at]), name, score, fold, *centre, chip, tuple(rows), verdict)


def _verdict(remove: Sequence[LabelRow], add: Sequence[LabelRow]) -> str:
    parts = []
    if remove:
        parts.append("remove " + ", ".join(row.name for row in remove))
    if add:
        parts.append("add " + ", ".join(row.name for row in add))
    said = "; ".join(parts)
    return said[:1].upper() + said[1:]


def _chips(audit: Audit, which: NDArray[np.intp]) -> list[str]:
    """True-colour pictures as data links; empty texts where the store lacks a band of them."""
    store = audit.subject.store
    if not set(TRUE_COLOUR) <= set(store.bands):
        return [""] * len(which)
    read = store.pixels(TRUE_COLOUR)
    places = [int(audit.places[at]) for at in which]
    return [picture(read(slice(at, at + 1))[0]) for at in places]


def picture(cube: NDArray[np.int16]) -> str:
    """A data link of a JPEG of three bands (red, green, blue; int16, dims (band, y, x)), stretched together so that
    colours stay what they are."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    seen = cube != NODATA
    low, high = np.percentile(cube[seen], (1, 99)) if seen.any() else (0.0, 1.0)
    middle, half = (low + high) / 2, max(high - low, _LEAST_SPREAD) / 2
    scaled = ((cube.astype(np.float32) - (middle - half)) / (2 * half)).clip(0, 1) ** _GAMMA
    values = np.where(seen, np.rint(scaled * 255), 128).astype(np.uint8)
    profile = {"driver": "JPEG", "count": 3, "height": cube.shape[1], "width": cube.shape[2], "dtype": "uint8"}
    with rasterio.MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(**profile, photometric="RGB", quality=_JPEG_QUALITY) as file:
            file.write(values)
        return "data:image/jpeg;base64," + base64.b64encode(memory.read()).decode("ascii")
