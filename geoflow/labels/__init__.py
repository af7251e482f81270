"""Labels: CORINE and other class maps on the grid, and labelled patches, as the codes of a legend.

The names below are loaded on first use: who reads patches need not wait for what rasterising needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoflow.labels.bigearthnet import read_patch
    from geoflow.labels.borders import border_distance
    from geoflow.labels.changelabels import check_changes, load_change_labels
    from geoflow.labels.patchdata import open_patches
    from geoflow.labels.rasterise import LabelTile, load_label_tile, load_labels
    from geoflow.labels.source import LabelSource, check_labels

__all__ = [
    "LabelSource",
    "LabelTile",
    "border_distance",
    "check_changes",
    "check_labels",
    "load_change_labels",
    "load_label_tile",
    "load_labels",
    "open_patches",
    "read_patch",
]

_MODULES = {
    "bigearthnet": ("read_patch",),
    "borders": ("border_distance",),
    "changelabels": ("check_changes", "load_change_labels"),
    "patchdata": ("open_patches",),
    "rasterise": ("LabelTile", "load_label_tile", "load_labels"),
    "source": ("LabelSource", "check_labels"),
}
_PUBLIC = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value
