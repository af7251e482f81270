"""The summary of a run, ``OUT/summary.json``: a contract that other programs read.

Its keys are described in docs/summary.md.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from geoflow.jobs.coverage import coverage_table
from geoflow.jobs.imagerywork import reads_of
from geoflow.jobs.zonework import zone_areas

if TYPE_CHECKING:
    from geoflow.jobs.flow import Flow
    from geoflow.jobs.outcome import Outcome
    from geoflow.jobs.run import Run
    from geoflow.jobs.spec import Labels, Publish

_PACKAGES = (
    "geoflow", "xarray", "dask", "distributed", "rioxarray", "stackstac", "odc-stac", "odc-geo", "pystac-client",
    "zarr", "torch", "segmentation-models-pytorch", "timm", "geopandas", "rasterio", "numpy",
)  # fmt: skip


def summarise(run: Run) -> dict[str, Any]:
    """Everything that there is to say about a run, as plain values."""
    flow, now = run.flow, dt.datetime.now(dt.UTC)
    summary: dict[str, Any] = {
        "job": flow.job.name,
        "title": flow.job.publish.title if flow.job.publish else flow.job.name,
        "status": run.status,
        "started": run.started.isoformat(timespec="seconds"),
        "finished": now.isoformat(timespec="seconds"),
        "seconds": round((now - run.started).total_seconds(), 1),
        "config": flow.job.model_dump(mode="json", by_alias=True, exclude_none=True),
        "grid": {
            "crs": flow.job.grid.crs,
            "resolution_m": flow.grid.resolution_m,
            "shape": list(flow.grid.shape),
            "tiles": list(flow.grid.tile_counts),
        },
        "stages": {
            name: _stage(run.titles[name], outcome, run.seconds.get(name, 0.0))
            for name, outcome in run.outcomes.items()
        },
        "verified": run.verified,
        "failed": [failure for outcome in run.outcomes.values() for failure in outcome.failed],
        "scenes": {epoch: s.ledger() for epoch, s in flow.scenes.items()} if flow.job.imagery else {},
        "coverage": coverage_table(flow.coverage) if flow.job.imagery else {},
        "versions": versions(),
        "attribution": attribution(flow),
        "paths": {"store": "country.zarr", "receipts": "receipts", "report": "report.html", "model": "model"},
    }
    receipts = {name: outcome.receipts for name, outcome in run.outcomes.items()}
    if receipts.get("labels") and flow.job.labels:
        summary["labels"] = _labels(receipts["labels"].values(), flow.job.labels)
    if receipts.get("patches"):
        summary["patches"] = _patches(receipts["patches"].values())
    if "classifier" in receipts and (found := receipts["classifier"].get("classifier")):
        summary["classifier"] = found["validation"]
    if found := reads_of(receipts.get("imagery", {}), flow.scenes if flow.job.imagery else {}):
        summary["reads"] = found
    if "predict" in receipts:
        summary["areas_ha"] = _areas(receipts["predict"], flow)
    if receipts.get("areas"):
        summary["areas_by_zone"] = zone_areas(receipts["areas"], flow.legend)
    if "change" in receipts and flow.job.change:
        summary["change"] = _change(receipts["change"], flow)
    if "engine" in receipts and (found := receipts["engine"].get("engine")):
        summary["engine"] = {key: found[key] for key in ("engine", "agreement", "tried_px")}
    if receipts.get("seams"):
        summary["seams"] = _seams(receipts["seams"])
    if receipts.get("evaluate"):
        summary["accuracy"] = accuracy_summary(receipts["evaluate"].values(), flow)
    if run.status == "complete" and flow.job.predict:
        summary["model"] = _model(flow)
    return summary


def versions() -> dict[str, str]:
    """Python's and the packages' versions that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _stage(title: str, outcome: Outcome, seconds: float) -> dict[str, Any]:
    return {
        "title": title,
        "tasks": outcome.tasks,
        "done": outcome.done,
        "skipped": outcome.skipped,
        "failed": len(outcome.failed),
        "seconds": round(seconds, 2),
        "work_seconds": round(outcome.work_seconds, 2),
        "spent": {kind: round(seconds, 2) for kind, seconds in outcome.spent.items()},
    }


def attribution(flow: Flow) -> list[str]:
    """Whom to name beside the maps: who publishes them, the imagery's owner, and whom the job names."""
    publish = flow.job.publish
    lines = [_published(publish)] if publish else []
    if flow.job.imagery:
        lines.append(flow.catalog.attribution)
    if publish:
        lines.append(publish.attribution)
    return [line for line in lines if line]


def _published(publish: Publish) -> str:
    licence = f"licence {publish.licence}" if publish.licence else ""
    return ", ".join(part for part in (publish.publisher, licence) if part)


def _labels(receipts: Iterable[Mapping[str, Any]], section: Labels) -> dict[str, Any]:
    """What the labels came from, how many pixels they cover, and how many of these several polygons claim."""
    every = list(receipts)
    labelled = sum(sum(r["counts"].values()) for r in every)
    overlap = sum(r["overlap_px"] for r in every)
    return {"name": section.name, "source": section.source.name, "labelled_px": labelled, "overlap_px": overlap}


def _pixel_ha(flow: Flow) -> float:
    return flow.grid.resolution_m**2 / 1e4


def _areas(receipts: Mapping[str, Mapping[str, Any]], flow: Flow) -> dict[str, Any]:
    """Hectares of each class, epoch and level: counted pixels."""
    areas: dict[str, Any] = {}
    for key, receipt in receipts.items():
        epoch = key.partition("/")[0]
        for level, counts in receipt["counts"].items():
            into = areas.setdefault(epoch, {}).setdefault(level, {})
            for code, pixels in counts.items():
                into[code] = into.get(code, 0.0) + pixels * _pixel_ha(flow)
    return {
        e: {lv: dict(sorted(c.items(), key=lambda kv: int(kv[0]))) for lv, c in v.items()} for e, v in areas.items()
    }


def _change(receipts: Mapping[str, Mapping[str, Any]], flow: Flow) -> dict[str, Any]:
    section = flow.job.change
    if section is None:
        return {}
    totals: dict[tuple[int, int], int] = {}
    for receipt in receipts.values():
        for before, after, pixels in receipt["transitions"]:
            totals[before, after] = totals.get((before, after), 0) + pixels
    hectares = {pair: pixels * _pixel_ha(flow) for pair, pixels in totals.items()}
    ranked = sorted(hectares.items(), key=lambda item: (-item[1], item[0]))
    transitions = [{"from": a, "to": b, "ha": round(ha, 4)} for (a, b), ha in ranked]
    return {
        f"{section.before}-{section.after}": {
            "changed_ha": round(sum(hectares.values()), 4),
            "transitions": transitions,
        }
    }


def _seams(receipts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Borders of the process against the interior, per epoch: see `geoflow.mapping.seams`."""
    from geoflow.mapping.seams import Pairs, compare

    counted: dict[str, dict[str, Pairs]] = {}
    for key, receipt in receipts.items():
        into = counted.setdefault(key.partition("/")[0], {})
        for kind, counts in receipt["pairs"].items():
            into[kind] = into.get(kind, Pairs()) + Pairs(**counts)
    return {
        epoch: {kind: dataclasses.asdict(seam) for kind, seam in compare(kinds).items()}
        for epoch, kinds in counted.items()
    }


def _model(flow: Flow) -> dict[str, Any]:
    from geoflow.modelfile import read_header

    model = read_header(flow.model_folder)
    card = model.card
    return {
        "architecture": card.architecture,
        "encoder": card.encoder,
        "classes": list(card.codes),
        "bands": list(card.inputs.bands),
        "periods": list(card.inputs.periods),
        "parameters": model.parameters,
        "sha256": model.sha256,
        "training": dict(card.training),
    }


def accuracy_summary(receipts: Iterable[Mapping[str, Any]], flow: Flow) -> dict[str, Any]:
    """Accuracy from the summed matrices of all tiles (in held-out blocks, and everywhere) and from patches of change.

    The top-level ``map`` and ``labels`` are shares of right pixels in the held-out blocks of the epoch that the labels
    describe; both are over the same pixels' truth.
    """
    every = list(receipts)
    receipts = [r for r in every if "matrices" in r]
    truth_epochs = list(flow.job.evaluate.truth) if flow.job.evaluate else []
    labels = flow.job.labels
    where = "held_out" if flow.held_out is not None else "all"
    found: dict[str, Any] = {"where": where, "everywhere": {}, "pixels": {}, "epochs": {}}
    if truth_epochs:
        epoch = labels.epoch if labels and labels.epoch in truth_epochs else truth_epochs[0]
        found |= {"epoch": epoch, **_of_maps(receipts, epoch, truth_epochs, where, flow)}
    if any(r["change"] for r in receipts):
        found["change"] = {part: _change_figures(receipts, part) for part in ("held_out", "all")}
    for patches in (r["patches"] for r in every if "patches" in r):
        found["change"]["patches"] = patches
    return found


def _of_maps(
    receipts: Sequence[Mapping[str, Any]], epoch: str, truth_epochs: Sequence[str], where: str, flow: Flow
) -> dict[str, Any]:
    """Maps and labels against the truth of their epochs."""
    found: dict[str, Any] = {"everywhere": {}, "pixels": {}, "epochs": {}}
    for kind in ("map", "labels"):
        if any(epoch in r["matrices"].get(kind, {}) for r in receipts):
            found[kind] = _overall(receipts, kind, epoch, where, flow)
            found["everywhere"][kind] = _overall(receipts, kind, epoch, "all", flow)
    first = f"level{flow.legend.levels[0]}"
    for part in ("held_out", "all"):
        found["pixels"][part] = int(_matrix(receipts, "map", epoch, first, part, flow).sum())
    found |= _details(receipts, epoch, where, flow)
    for other in truth_epochs:
        found["epochs"][other] = {"map": _overall(receipts, "map", other, where, flow)}
    return found


def _overall(
    receipts: Sequence[Mapping[str, Any]], kind: str, epoch: str, where: str, flow: Flow
) -> dict[str, float | None]:
    from geoflow.mapping.accuracy import accuracy

    shares: dict[str, float | None] = {}
    for level in flow.legend.levels:
        matrix = _matrix(receipts, kind, epoch, f"level{level}", where, flow)
        shares[f"level{level}"] = accuracy(matrix, flow.legend.codes(level)).to_dict()["overall"]
    return shares


def _matrix(
    receipts: Sequence[Mapping[str, Any]], kind: str, epoch: str, level: str, where: str, flow: Flow
) -> np.ndarray:
    """One int64 matrix over all tiles, dims (true class, mapped class), classes as in the legend."""
    codes = flow.legend.codes(int(level.removeprefix("level")))
    place = {code: i for i, code in enumerate(codes)}
    matrix = np.zeros((len(codes), len(codes)), np.int64)
    for receipt in receipts:
        for true, mapped, pixels in receipt["matrices"][kind][epoch][level][where]:
            matrix[place[true], place[mapped]] += pixels
    return matrix


def _patches(receipts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Patches that were read, and those that could not be, each with its reason."""
    every = list(receipts)
    skipped = sorted((entry for receipt in every for entry in receipt["skipped"]), key=lambda entry: entry["name"])
    return {"read": sum(receipt["patches"] for receipt in every), "skipped": skipped}


def _details(receipts: Sequence[Mapping[str, Any]], epoch: str, where: str, flow: Flow) -> dict[str, Any]:
    """Figures per class, and the confusion matrix, of the map at each level; classes that occur only."""
    from geoflow.mapping.accuracy import accuracy

    per_class, confusions = {}, {}
    for level in flow.legend.levels:
        codes, name = flow.legend.codes(level), f"level{level}"
        matrix = _matrix(receipts, "map", epoch, name, where, flow)
        occurs = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
        figures = accuracy(matrix, codes).to_dict()["classes"]
        per_class[name] = [
            {
                "code": codes[i],
                "name": flow.legend.label(codes[i]),
                **figures[str(codes[i])],
                "truth_px": int(matrix[i].sum()),
            }
            for i in occurs
        ]
        confusions[name] = {"codes": [codes[i] for i in occurs], "matrix": matrix[np.ix_(occurs, occurs)].tolist()}
    return {"per_class": per_class, "confusion": confusions}


def _change_figures(receipts: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Precision, recall, F1 and area bias of the changed pixels."""
    counts = {(a, b): 0 for a in (1, 2) for b in (1, 2)}
    for receipt in receipts:
        for true, mapped, pixels in receipt["change"].get(where, []):
            counts[true, mapped] += pixels
    hits, mapped_px, true_px = counts[2, 2], counts[1, 2] + counts[2, 2], counts[2, 1] + counts[2, 2]
    return {
        "precision": hits / mapped_px if mapped_px else None,
        "recall": hits / true_px if true_px else None,
        "f1": 2 * hits / (mapped_px + true_px) if mapped_px + true_px else None,
        "area_bias": mapped_px / true_px - 1 if true_px else None,
        "true_px": true_px,
        "mapped_px": mapped_px,
    }
