"""What a training tells, kept as curves: for TensorBoard, and for MLflow where it is told where to write."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

_CURVES = ("loss", "lr", "samples_per_s", "waiting", "validation")


class Curves:
    """A TensorBoard log of a training.

    Parameters
    ----------
    folder : Path, optional
        ``tensorboard --logdir`` it; None keeps nothing. A training that goes on adds to what is there.

    Notes
    -----
    Steps are counted from the start of each stage. Where ``MLFLOW_TRACKING_URI`` is set and mlflow can be imported, the
    same figures go into a new run there, named after the folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: Any = None
        self._mlflow: Any = None

    def __enter__(self) -> Curves:
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
            if os.environ.get("MLFLOW_TRACKING_URI") and find_spec("mlflow"):
                import mlflow

                self._mlflow = mlflow
                mlflow.start_run(run_name=self._folder.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._mlflow is not None:
            self._mlflow.end_run("FINISHED" if kind is None else "FAILED")

    def add(self, event: dict[str, Any]) -> None:
        """A step's figures, of a `Progress` event."""
        if self._writer is None:
            return
        step = int(event["step"])
        for name in _CURVES:
            if name in event:
                self._writer.add_scalar(f"{event['stage']}/{name}", event[name], step)
        if self._mlflow is not None:
            figures = {f"{event['stage']} {name}": float(event[name]) for name in _CURVES if name in event}
            self._mlflow.log_metrics(figures, step=step)
