"""Labels: CORINE and other class maps on the grid, and labelled patches, as the codes of a legend."""

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
