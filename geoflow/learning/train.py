"""Training: the patch classifier, and the segmenter that takes over its encoder.

Both are deterministic: the same inputs, options and machine give the same bytes of weights. Budgets are counted in
steps, never in seconds, for that reason.
"""

from geoflow.learning.classifier import fit_classifier
from geoflow.learning.loop import Progress
from geoflow.learning.options import ClassifierOptions, SegmenterOptions
from geoflow.learning.samples import HeldOut
from geoflow.learning.segmenter import fit_segmenter

__all__ = ["ClassifierOptions", "HeldOut", "Progress", "SegmenterOptions", "fit_classifier", "fit_segmenter"]
