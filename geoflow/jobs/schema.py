"""The JSON Schema of job files, for editors: ``geoflow schema``.

It describes the YAML as people write it: keys by their aliases, date ranges as ``start/end``, and the training options,
which the models themselves leave open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoflow.jobs.reference import documented
from geoflow.jobs.spec import Job

FILE = "job.schema.json"
"""Name of the file that the first line of a job points to."""
MODELINE = f"# yaml-language-server: $schema={FILE}"
"""That line."""

_DAY = r"\d{4}-\d{2}-\d{2}"
EXAMPLES: Mapping[str, Mapping[str, list[Any]]] = {
    # By model and key: something that is accepted there, for editors and for ``geoflow init``.
    "Job": {
        "name": ["estonia"],
        "seed": [1],
        "generalise": [{"25ha": {"mmu_ha": 25, "smooth_px": 5}}],
    },
    "Area": {
        "file": ["data/border.gpkg"],
        "layer": ["countries"],
        "where": ["NAME = 'Estonia'"],
        "geojson": ["data/border.geojson"],
        "bbox": [[21.7, 57.5, 28.3, 59.9]],
    },
    "GridSection": {"crs": ["EPSG:3035", "EPSG:32635"], "resolution_m": [10, 20], "tile": [2048], "chunk": [512]},
    "Imagery": {
        "catalog": ["earth-search", "planetary-computer", "cdse"],
        "url": ["data/stac/catalog.json"],
        "bands": [["B02", "B03", "B04", "B08"]],
        "epochs": [{"2018": {"spring": "2018-04-15/2018-06-15", "summer": "2018-06-16/2018-09-15"}}],
        "tiles": [["35VLF", "35VMF"]],
        "orbits": [[36, 136]],
        "best_per_tile": [5],
        "cloud_weights": ["weights/s2cloudless.txt"],
        "composite": ["median", "medoid", "geomedian", "best", "p25"],
    },
    "Labels": {
        "name": ["clc2018"],
        "source": ["data/U2018_CLC2018_V2020_20u1.gpkg", "data/U2018_CLC2018_V2020_20u1.tif"],
        "legend": ["corine", "legends/forests.csv"],
        "column": ["Code_18"],
        "epoch": ["2018"],
    },
    "Classifier": {
        "source": ["data/BigEarthNet-v1.0", "patches.zarr"],
        "exclude": [["data/patches_with_cloud_and_shadow.csv", "data/patches_with_seasonal_snow.csv"]],
        "metadata": [["data/metadata.parquet"]],
        "split_file": ["data/split.csv"],
    },
    "Predict": {"model": ["out/estonia/model"], "epochs": [["2018", "2024"]], "probabilities": [True]},
    "Generalise": {"mmu_ha": [25, 5, 1]},
    "Change": {
        "from": ["2018"],
        "to": ["2024"],
        "transitions": [{"5-1": 0, "312-324": 3}],
        "zones": ["data/counties.gpkg"],
        "zone_column": ["name"],
    },
    "Evaluate": {
        "truth": [{"2018": "data/field-survey.gpkg"}],
        "change_truth": ["data/U2018_CHA1218_V2020_20u1.gpkg"],
        "change_columns": [["Code_12", "Code_18"]],
    },
    "Publish": {"title": ["Land cover of Estonia"], "zones": ["data/counties.gpkg"], "zone_column": ["name"]},
}


def job_schema() -> dict[str, Any]:
    """JSON Schema (draft 7, which editors know best) of a job file."""
    schema = Job.model_json_schema()
    definitions = schema.pop("$defs")
    definitions["DateRange"] = _date_range(definitions["DateRange"])
    definitions["Area"]["oneOf"] = [{"required": [key]} for key in ("file", "geojson", "bbox")]
    for key, field in schema["properties"].items():
        # An empty section is a mistake; and of two kinds that both fail, editors cannot say what is wrong.
        sections = [kind for kind in field.get("anyOf", ()) if "$ref" in kind]
        if sections:
            schema["properties"][key] = sections[0]
    for section, options in _options().items():
        definitions[section]["properties"]["options"] = options
    for name, examples in EXAMPLES.items():
        target = schema if name == "Job" else definitions[name]
        for key, values in examples.items():
            target["properties"][key]["examples"] = values
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "geoflow job"}
    return {**head, **_for_editors({**schema, "title": "geoflow job"}), "$defs": _for_editors(definitions)}


def schema_text() -> str:
    """`job_schema` as the text of a file."""
    return json.dumps(job_schema(), indent=1, ensure_ascii=False) + "\n"


def write_schema(folder: Path) -> Path:
    """Write `FILE` into the folder of a job, where its first line points to; what is there is brought up to date."""
    path = folder / FILE
    path.write_text(schema_text(), encoding="utf-8")
    return path


def _date_range(model: Mapping[str, Any]) -> dict[str, Any]:
    text = {"type": "string", "pattern": rf"^\s*{_DAY}\s*/\s*{_DAY}\s*$", "examples": ["2018-04-15/2018-06-15"]}
    return {"description": model["description"], "anyOf": [text, {k: model[k] for k in model if k != "description"}]}


def _options() -> dict[str, dict[str, Any]]:
    """The training options, by the section that holds them."""
    from pydantic import TypeAdapter

    from geoflow.learning.options import ClassifierOptions, SegmenterOptions

    found = {}
    for section, kind in (("Classifier", ClassifierOptions), ("Train", SegmenterOptions)):
        schema: dict[str, Any] = TypeAdapter(kind).json_schema()
        said = documented(kind.__doc__ or "")
        for name, field in schema["properties"].items():
            if said.get(name):
                field["description"] = said[name]
        where = "classifier.options" if section == "Classifier" else "train.options"
        schema["description"] = f"Training options: docs/jobs.md, {where}"
        found[section] = {**schema, "additionalProperties": False}
    return found


def plain_description(text: str) -> str:
    """A description without the links of Markdown, on one line."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(text.split()))
    return text.replace("``", "`").replace(", see below", ", see docs/jobs.md")


def _for_editors(node: Any) -> Any:
    """Drop what editors show and nobody needs: titles made of keys, links of Markdown; tuples as draft 7 has them."""
    if isinstance(node, list):
        return [_for_editors(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {}
    for key, value in node.items():
        if key == "title" and isinstance(value, str) and value != "geoflow job":
            continue
        if key == "description" and isinstance(value, str):
            found[key] = plain_description(value)
        elif key == "prefixItems":
            found["items"] = _for_editors(value)
        else:
            found[key] = _for_editors(value)
    return found
