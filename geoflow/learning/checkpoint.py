"""Where a training stands, on disk: enough to go on as if nothing had happened, to the last bit.

A folder with one file of tensors and ``checkpoint.json``, which names it with its sha256 and is replaced last. Whoever
is killed while saving leaves the checkpoint before it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geoflow.errors import ModelError
from geoflow.places import entries, local_copy, local_file, read_bytes, remove, remove_tree, write_bytes

FORMAT = 1
_INDEX = "checkpoint.json"


@dataclass
class Checkpoints:
    """The checkpoint of one training.

    Parameters
    ----------
    folder : Path
        Of this training alone; on storage that all ranks see.
    every_s : float
        Seconds from one to the next, at least; on slow storage more, so that saving takes a few percent of the time.
        0 saves after every step.
    """

    folder: Path
    every_s: float = 60.0
    _saved: float = field(default_factory=time.monotonic)
    _took_s: float = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time for the next."""
        wait = max(self.every_s, 30 * self._took_s) if self.every_s else 0.0
        return time.monotonic() - self._saved >= wait

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Parameters
        ----------
        tensors : mapping of str to tensor
        facts : mapping
            Plain JSON values.
        """
        from safetensors.torch import save_file

        began = time.monotonic()
        name = f"step-{facts['leg']}-{facts['stage']}-{facts['step']:08d}.safetensors"
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        with local_file(self.folder / name) as file:
            save_file(plain, file)
            sha256 = _sha256(file)
        index = {"format": FORMAT, "file": name, "sha256": sha256, **facts}
        write_bytes(self.folder / _INDEX, json.dumps(index).encode())
        for path in entries(self.folder)[1]:
            if path.name not in (name, _INDEX):
                remove(path)
        self._saved = time.monotonic()
        self._took_s = self._saved - began

    def load(self, course: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The checkpoint, or None where there is none that is whole.

        Parameters
        ----------
        course : str
            Identity of the training that wants to go on.

        Raises
        ------
        ModelError
            If it is that of another training.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            index = json.loads(read_bytes(self.folder / _INDEX))
            file = local_copy(self.folder / index["file"])
            if index["format"] != FORMAT or _sha256(file) != index["sha256"]:
                return None
            tensors = load_file(file)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None
        if index.get("course") != course:
            raise ModelError(
                f"{self.folder} holds a checkpoint of another training; give an empty folder, or remove it"
            )
        return tensors, index

    def clear(self) -> None:
        """Remove it: the training is done."""
        remove_tree(self.folder)


def course_of(*parts: Any) -> str:
    """The identity of a training: the digest of all that alters it, as plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def random_state(device: str) -> dict[str, Tensor]:
    """The state of torch's generators."""
    state = {"random.cpu": torch.get_rng_state()}
    return state | ({"random.cuda": torch.cuda.get_rng_state()} if device == "cuda" else {})


def restore_random(state: Mapping[str, Tensor]) -> None:
    """Put torch's generators where they were."""
    torch.set_rng_state(state["random.cpu"])
    if "random.cuda" in state:
        torch.cuda.set_rng_state(state["random.cuda"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
