"""Labels: CORINE and other class maps on the grid, and labelled patches, as the codes of a legend.

The names below are loaded on first use: who reads patches need not wait for what rasterising needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoflow.labels.bigearthnet import find_patches, read_patch, read_patches
    from geoflow.labels.borders import border_distance
    from geoflow.labels.changelabels import check_changes, load_change_labels
    from geoflow.labels.patches import Patches, open_patches, write_patches
    from geoflow.labels.rasterise import LabelTile, load_label_tile, load_labels
    from geoflow.labels.source import LabelSource, check_labels

__all__ = [
    "LabelSource",
    "LabelTile",
    "Patches",
    "border_distance",
    "check_changes",
    "check_labels",
    "find_patches",
    "load_change_labels",
    "load_label_tile",
    "load_labels",
    "open_patches",
    "read_patch",
    "read_patches",
    "write_patches",
]

_MODULES = {
    "bigearthnet": ("find_patches", "read_patch", "read_patches"),
    "borders": ("border_distance",),
    "changelabels": ("check_changes", "load_change_labels"),
    "patches": ("Patches", "open_patches", "write_patches"),
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
