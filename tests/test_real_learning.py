"""Fine-tuning on the real patches of BigEarthNet."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from geoflow.jobs.patchingest import ingest_patches
from geoflow.jobs.patchsource import source_of
from geoflow.labels.patchlabels import scheme_codes
from geoflow.labels.patchplan import PatchOptions
from geoflow.learning.classifier import fit_patches
from geoflow.learning.options import ClassifierOptions
from geoflow.learning.patchstream import PatchSource
from geoflow.learning.scoring import patch_logits
from geoflow.legends import legend

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> PatchSource:
    """The published example patches of version 1, all to learn from and all to look at."""
    root = os.environ.get("GEOFLOW_REAL_DATA")
    if not root:
        pytest.skip("set GEOFLOW_REAL_DATA to the folder with the real data sets")
    folder = Path(root) / "bigearthnet-samples/v1/BigEarthNet-S2-Example"
    store = tmp_path_factory.mktemp("six") / "patches.zarr"
    ingest_patches(folder, store, PatchOptions(keep_flagged=True), cluster="threads")
    found = source_of(store, BANDS, "level3", None, ClassifierOptions())
    rows = np.sort(np.concatenate([found.train, found.held]))
    assert len(rows) == 6
    return PatchSource(found.read, found.chunk, found.shape, found.labels, rows, rows, found.statistics)


def test_six_patches_are_learned_by_heart(six: PatchSource) -> None:
    options = ClassifierOptions(encoder="resnet18", head_epochs=1, epochs=40, batch=6, lr=1e-3, dropout=0.0)
    model = fit_patches(six, scheme_codes("level3"), legend("corine"), BANDS, options)
    column = [scheme_codes("level3").index(code) for code in model.card.codes]
    given = six.labels[:, column]
    assert given[six.train].sum() == six.labels[six.train].sum(), "every label that occurs is learned"
    predicted = patch_logits(model, six, six.train) > 0
    hits = (predicted & given[six.train]).sum()
    assert 2 * hits / (predicted.sum() + given[six.train].sum()) == 1.0
    assert model.card.training["validation"]["micro_f1"] == 1.0
