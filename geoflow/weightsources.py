"""Named pretrained weights: where they come from, what they read, and where a copy of them is looked for.

Nothing is downloaded but by `fetch_weights`, which is only ever called by name. Needs no torch, so that a job whose
weights are missing ends at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoflow.errors import ModelError

_RGB = ("B04", "B03", "B02")
_TEN = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
_THIRTEEN = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


@dataclass(frozen=True)
class WeightSource:
    """Published weights of an encoder.

    Attributes
    ----------
    url : str
        The file, https.
    encoder : str
        The encoder that it is of, a name of segmentation-models-pytorch.
    bands : tuple of str
        What the channels of its first layer read, in order.
    licence : str
    sha256 : str
        How the file's sha256 begins, where its publisher says so: the last part of the names of torchvision's and
        torchgeo's files. Empty where none is published.
    """

    url: str
    encoder: str
    bands: tuple[str, ...]
    licence: str
    sha256: str = ""

    @property
    def pickled(self) -> bool:
        """Whether the file is a pickle, which torch reads, and not safetensors."""
        return not self.url.endswith(".safetensors")


def _torchvision(file: str, encoder: str) -> WeightSource:
    # URLs: torchvision/models/resnet.py, IMAGENET1K_V1 and V2; licence: timm's entries for the same files.
    url = f"https://download.pytorch.org/models/{file}.pth"
    return WeightSource(url, encoder, _RGB, "BSD-3-Clause", file.rpartition("-")[2])


def _torchgeo(name: str, commit: str, sha256: str, encoder: str, bands: tuple[str, ...]) -> WeightSource:
    # URLs and bands: torchgeo/models/resnet.py; licence: the repositories on Hugging Face. SSL4EO-S12 is level 1C.
    url = f"https://hf.co/torchgeo/{name}/resolve/{commit}/{name}-{sha256}.pth"
    return WeightSource(url, encoder, bands, "CC-BY-4.0", sha256)


SOURCES: Mapping[str, WeightSource] = {
    "imagenet-resnet18": _torchvision("resnet18-f37072fd", "resnet18"),
    "imagenet-resnet34": _torchvision("resnet34-b627a593", "resnet34"),
    "imagenet-resnet50": _torchvision("resnet50-0676ba61", "resnet50"),
    "imagenet-resnet50-v2": _torchvision("resnet50-11ad3fa6", "resnet50"),
    "imagenet-resnet101": _torchvision("resnet101-63fe2227", "resnet101"),
    "timm-resnet50": WeightSource(  # the same weights as imagenet-resnet50, as safetensors; timm/models/resnet.py
        "https://huggingface.co/timm/resnet50.tv_in1k/resolve/main/model.safetensors", "resnet50", _RGB, "BSD-3-Clause"
    ),
    "ssl4eo-resnet18": _torchgeo(
        "resnet18_sentinel2_all_moco", "5b8cddc9a14f3844350b7f40b85bcd32aed75918", "59bfdff9", "resnet18", _THIRTEEN
    ),
    "ssl4eo-resnet50": _torchgeo(
        "resnet50_sentinel2_all_moco", "da4f3c9dbe09272eb902f3b37f46635fa4726879", "df8b932e", "resnet50", _THIRTEEN
    ),
    "ssl4eo-rgb-resnet50": _torchgeo(
        "resnet50_sentinel2_rgb_moco", "efd9723b59a88e9dc1420dc1e96afb25b0630a3c", "2b57ba8b", "resnet50", _RGB
    ),
    # The band order is that of versions from 0.2.0 on, as the models' pages say; 0.1.1 had another.
    "reben-resnet50": WeightSource(
        "https://huggingface.co/BIFOLD-BigEarthNetv2-0/resnet50-s2-v0.2.0/resolve/main/model.safetensors",
        "resnet50",
        _TEN,
        "MIT",
    ),
}
"""Weights by name; `geoflow weights list` shows them."""


def weights_folder() -> Path:
    """Where `geoflow weights fetch` puts files: ``GEOFLOW_WEIGHTS``, else a folder in the user's cache."""
    given = os.environ.get("GEOFLOW_WEIGHTS")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache / "geoflow" / "weights"


def file_name(name: str) -> str:
    """What the file of a source is called in `weights_folder`."""
    last = SOURCES[name].url.rpartition("/")[2]
    return f"{name}.safetensors" if last == "model.safetensors" else last


def find_weights(wanted: str, encoder: str, pickle_allowed: bool = False) -> Path:
    """The local file of weights that are given by name or path.

    Parameters
    ----------
    wanted : str
        A key of `SOURCES`, or the path of a file.
    encoder : str
        The encoder that is to start from them; checked for a source.
    pickle_allowed : bool
        Whether a pickle will do: torch's ``.pth`` and ``.pt``.

    Raises
    ------
    ModelError
        If there is none (it says which file to bring, and where to), it is of another encoder, or a pickle that is not
        allowed.
    """
    source = SOURCES.get(wanted)
    if source is None:
        file = Path(wanted)
        if not file.is_file():
            known = "" if file.suffix or file.parent != Path() else f"; known names are {', '.join(SOURCES)}"
            raise ModelError(f"no weights at {file}: give a local file of this encoder's weights{known}")
    else:
        if encoder.removeprefix("tu-") != source.encoder:
            raise ModelError(f"weights {wanted!r} are of encoder {source.encoder!r}, not {encoder!r}")
        found = next((path for path in _places(wanted, source) if path.is_file()), None)
        if found is None:
            raise ModelError(
                f"weights {wanted!r} are not on this machine, and a run never downloads any: put {source.url} at "
                f"{weights_folder() / file_name(wanted)}, or run: geoflow weights fetch {wanted}"
            )
        file = found
    if is_pickle(file) and not pickle_allowed:
        raise ModelError(
            f"{file} is a pickle of torch, which may hold more than weights: convert it, with torch.load(FILE, "
            "weights_only=True) and safetensors.torch.save_file, or trust where it is from: weights_pickle: true"
        )
    return file


def is_pickle(file: Path) -> bool:
    """Whether a file is to be read as torch's own format; only the name says so, and safetensors is the default."""
    return file.suffix.lower() in (".pth", ".pt", ".bin", ".ckpt", ".pkl")


def _places(name: str, source: WeightSource) -> list[Path]:
    """Where a copy may be: geoflow's folder, and the caches of torch and Hugging Face."""
    last = source.url.rpartition("/")[2]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    torch_hub = Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"
    found = [weights_folder() / file_name(name)]
    if last != "model.safetensors":
        found.append(torch_hub / last)
    host, _, rest = source.url.removeprefix("https://").partition("/")
    if host in ("hf.co", "huggingface.co"):
        hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub")
        owner, repository = rest.split("/")[:2]
        found += sorted((hub / f"models--{owner}--{repository}" / "snapshots").glob(f"*/{last}"))
    return found


def check_file(name: str, file: Path) -> str:
    """The sha256 of a source's file.

    Raises
    ------
    ModelError
        If the publisher says that it begins otherwise.
    """
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    source = SOURCES.get(name)
    if source is not None and not sha256.startswith(source.sha256):
        raise ModelError(
            f"{file} is damaged, or not the file of {name!r}: its sha256 begins with {sha256[:8]}, not {source.sha256}"
        )
    return sha256


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"it leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch_weights(name: str) -> Path:
    """Download the file of a source into `weights_folder`, and check it.

    Raises
    ------
    ModelError
        If the name is unknown, the file cannot be had, or is not the one that was published.
    """
    if name not in SOURCES:
        raise ModelError(f"unknown weights {name!r}; there are {', '.join(SOURCES)}")
    target = weights_folder() / file_name(name)
    draft = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        opener = urllib.request.build_opener(_OnlyHttps)
        with (
            opener.open(SOURCES[name].url, timeout=60) as answer,
            tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as file,
        ):
            draft = Path(file.name)
            shutil.copyfileobj(answer, file)
        check_file(name, draft)
        draft.replace(target)
    except OSError as error:
        raise ModelError(
            f"{SOURCES[name].url} cannot be fetched to {target}: {error}; bring the file there by hand"
        ) from None
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
    return target
