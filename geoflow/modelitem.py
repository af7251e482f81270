"""A model folder as a STAC item with the machine learning model extension, for catalogs of models.

It is made on request and beside the model: it tells a time and a place, which the folder itself does not.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import ModelError
from geoflow.modelfile import CARD_FILE, WEIGHTS_FILE, ModelCard, ModelHeader, read_header

if TYPE_CHECKING:
    import pystac

MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
"""The version of the extension that items are written for."""

EO = "https://stac-extensions.github.io/eo/v1.1.0/schema.json"
"""Names the bands that a model reads."""


def write_model_item(folder: str | Path, to: str | Path | None = None, when: dt.datetime | None = None) -> Path:
    """Write a model folder's STAC item.

    Parameters
    ----------
    folder : path
        A local model folder.
    to : path, optional
        The file; ``item.json`` in the folder by default, where it alters nothing of the model.
    when : datetime, optional
        The item's time, with a time zone; now by default.

    Raises
    ------
    ModelError
        If the folder is no model, or the item cannot be written.
    """
    import json

    header = read_header(folder)
    target = Path(folder) / "item.json" if to is None else Path(to)
    item = model_item(header, when or dt.datetime.now(dt.UTC))
    for asset, name in (("weights", WEIGHTS_FILE), ("card", CARD_FILE)):
        item.assets[asset].href = os.path.relpath(header.path / name, target.resolve().parent).replace(os.sep, "/")
    try:
        target.write_text(json.dumps(item.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelError(f"cannot write the item to {target}: {error}") from None
    return target


def model_item(header: ModelHeader, when: dt.datetime) -> pystac.Item:
    """The STAC item of a model, without a place on earth: it does not record where it may be used.

    Parameters
    ----------
    header : ModelHeader
    when : datetime
        With a time zone.
    """
    import pystac

    card = header.card
    name = f"geoflow-{card.architecture}-{header.sha256[:12]}"
    started = card.training.get("encoder_from") or card.training.get("weights")
    task = "semantic-segmentation" if card.kind == "segmenter" else "scene-classification"
    properties = {
        "title": f"geoflow {card.kind} {card.architecture}, encoder {card.encoder}",
        "mlm:name": name,
        "mlm:architecture": card.architecture,
        "mlm:tasks": [task],
        "mlm:framework": "PyTorch",
        "mlm:total_parameters": header.parameters,
        "mlm:pretrained": bool(started),
        "mlm:input": [_input(card)],
        "mlm:output": [_output(card, task)],
        "mlm:hyperparameters": {"encoder": card.encoder, **card.options, **card.training.get("options", {})},
        "geoflow:sha256": header.sha256,
        "geoflow:halo_px": card.halo_px,
    }
    item = pystac.Item(name, None, None, when, properties, stac_extensions=[EO, MLM])
    # The extension wants STAC 1.1's own bands in the item's properties, where STAC 1.1 forbids them: so those of eo.
    bands = [{"name": band} for band in card.inputs.bands]
    extra = {"mlm:artifact_type": "safetensors.torch.save_file", "eo:bands": bands}
    item.add_asset(
        "weights",
        pystac.Asset(WEIGHTS_FILE, "Weights", None, "application/octet-stream", ["mlm:model", "mlm:weights"], extra),
    )
    item.add_asset("card", pystac.Asset(CARD_FILE, "Model card", None, "application/json", ["metadata"]))
    return item


def _input(card: ModelCard) -> dict[str, Any]:
    inputs = card.inputs
    scaling = zip(inputs.mean, inputs.std, strict=True)
    return {
        "name": "reflectance",
        "description": f"Surface reflectance x 10000, the periods {', '.join(inputs.periods)} one after the other; "
        "what was not observed is 0 after scaling",
        "bands": list(inputs.channel_bands()),
        "input": {
            "shape": [-1, inputs.channels, card.window_px, card.window_px],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [{"type": "z-score", "mean": mean, "stddev": std} for mean, std in scaling],
    }


def _output(card: ModelCard, task: str) -> dict[str, Any]:
    size = [card.window_px, card.window_px] if card.kind == "segmenter" else []
    colours = {entry.code: entry.colour for entry in card.legend.classes}
    classes = [
        {
            "value": code,
            "name": str(code),
            "description": card.legend.label(code),
            "color_hint": "{:02X}{:02X}{:02X}".format(*colours[code]),
        }
        for code in card.codes
    ]
    return {
        "name": "logits",
        "tasks": [task],
        "result": {
            "shape": [-1, len(card.codes), *size],
            "dim_order": ["batch", "class", *(("height", "width") if size else ())],
            "data_type": "float32",
        },
        "classification:classes": classes,
    }
