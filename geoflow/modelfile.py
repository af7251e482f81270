"""The model folder: ``model.safetensors`` (weights) and ``model.json`` (all else that a prediction needs).

The card is written twice: readable in ``model.json``, and inside the header of the weights file. The sha256 of the
weights file therefore names the whole model (weights, bands, classes, window), and a ``model.json`` that was edited
by hand is noticed. Nothing in the folder depends on the time or the place, so equal models are equal bytes. Nothing
is pickled: loading a model never runs code from it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import GeoflowError, ModelError
from geoflow.inputs import InputSpec
from geoflow.legends import Legend
from geoflow.places import is_remote, local_copy, place, upload

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1
"""Version of the folder's layout; a newer one is refused, with a sentence."""

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
KINDS = ("classifier", "segmenter")


@dataclass(frozen=True)
class ModelCard:
    """Everything about a model but its weights.

    Parameters
    ----------
    kind : str
        ``"classifier"`` (labels of a patch) or ``"segmenter"`` (a class for each pixel).
    architecture, encoder : str
        Names in `geoflow.nets`.
    options : mapping
        Further arguments of the architecture.
    inputs : InputSpec
        Bands, periods and scale.
    codes : tuple of int
        Class codes of the legend's deepest level in logit order, ascending.
    legend : Legend
        The legend that the codes belong to.
    window_px, halo_px : int
        Edge of the square that the net reads at once, and the margin of it that is not kept.
    training : mapping
        The training record: options, steps, held-out blocks, metrics. Plain JSON values, none that depend on the clock.
    """

    kind: str
    architecture: str
    encoder: str
    options: Mapping[str, Any]
    inputs: InputSpec
    codes: tuple[int, ...]
    legend: Legend
    window_px: int
    halo_px: int
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelError(f"unknown kind of model {self.kind!r}; this geoflow knows {KINDS}")
        if list(self.codes) != sorted(set(self.codes)) or not self.codes or self.codes[0] <= 0:
            raise ModelError(f"class codes must be positive, ascending and without repeats, not {self.codes}")
        unknown = sorted(set(self.codes) - set(self.legend.codes(self.legend.levels[-1])))
        if unknown:
            raise ModelError(f"the classes {unknown} are not in the legend {self.legend.name!r}")
        if self.halo_px < 0 or self.window_px <= 2 * self.halo_px:
            raise ModelError(f"a window of {self.window_px} px has no core between halos of {self.halo_px} px")

    @property
    def core_px(self) -> int:
        """Edge of the square that one window decides: the window without its halo."""
        return self.window_px - 2 * self.halo_px

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``model.json``."""
        from geoflow import __version__

        return {
            "format": FORMAT,
            "geoflow": __version__,
            "kind": self.kind,
            "architecture": self.architecture,
            "encoder": self.encoder,
            "options": dict(self.options),
            "inputs": self.inputs.to_dict(),
            "codes": list(self.codes),
            "legend": self.legend.to_dict(),
            "window_px": self.window_px,
            "halo_px": self.halo_px,
            "training": dict(self.training),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelCard:
        """The inverse of `to_dict`.

        Raises
        ------
        ModelError
            If a key is missing or of a wrong type, or the format is newer than this geoflow.
        """
        version = values.get("format")
        if not isinstance(version, int) or version > FORMAT or version < 1:
            raise ModelError(f"the model has format {version!r}; this geoflow reads up to {FORMAT}: update geoflow")
        try:
            return cls(
                kind=values["kind"],
                architecture=values["architecture"],
                encoder=values["encoder"],
                options=dict(values["options"]),
                inputs=InputSpec.from_dict(values["inputs"]),
                codes=tuple(int(c) for c in values["codes"]),
                legend=Legend.from_dict(values["legend"]),
                window_px=int(values["window_px"]),
                halo_px=int(values["halo_px"]),
                training=dict(values["training"]),
            )
        except KeyError as missing:
            raise ModelError(f"the model's card lacks {missing}") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelError(f"the model's card is damaged: {error}") from None


@dataclass(frozen=True)
class TrainedModel:
    """A model in memory: its card, and its weights on the CPU by name."""

    card: ModelCard
    state: Mapping[str, Tensor] = field(repr=False)

    def build(self) -> nn.Module:
        """The net with these weights, ready to predict (evaluation mode, on the CPU).

        Raises
        ------
        ModelError
            If the architecture is unknown, or weights are missing, left over or of another shape.
        """
        from geoflow import nets

        card = self.card
        try:
            net = nets.build_net(
                card.kind, card.architecture, card.encoder, card.inputs.channels, len(card.codes), card.options
            )
        except (RuntimeError, ValueError, ArithmeticError, AttributeError, IndexError, MemoryError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"no {card.architecture!r} can be built with {dict(card.options)}: {told}") from None
        own = net.state_dict()
        missing, extra = sorted(own.keys() - self.state.keys()), sorted(self.state.keys() - own.keys())
        if missing or extra:
            raise ModelError(
                f"the weights do not belong to {card.architecture!r} with encoder {card.encoder!r}: "
                f"missing {len(missing)} {missing[:3]}, left over {len(extra)} {extra[:3]}"
            )
        for key, value in own.items():
            if value.shape != self.state[key].shape:
                raise ModelError(f"weight {key!r} has shape {tuple(self.state[key].shape)}, not {tuple(value.shape)}")
        net.load_state_dict(dict(self.state))
        return net.eval()


@dataclass(frozen=True)
class LoadedModel:
    """A model folder, checked and read: the trained model, and the identity that it goes by."""

    path: Path
    sha256: str
    trained: TrainedModel = field(repr=False)

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self.trained.card

    @property
    def ref(self) -> ModelRef:
        """The model as it travels through a task graph."""
        return ModelRef(str(self.path), self.sha256)


@dataclass(frozen=True)
class ModelRef:
    """A model by place and content: a few bytes, so that a graph carries it to every task and no weights."""

    path: str
    sha256: str

    def load(self) -> LoadedModel:
        """The model itself, read once per process."""
        return load_model(self.path, self.sha256)


def save_model(folder: str | Path, trained: TrainedModel) -> str:
    """Write a model folder; an existing one is replaced as a whole or not at all.

    Parameters
    ----------
    folder : path
        Created, parents included.
    trained : TrainedModel

    Returns
    -------
    str
        The sha256 that names the model: of ``model.safetensors``, whose header holds the card.

    Raises
    ------
    ModelError
        If the folder cannot be written, or exists and is no model folder.
    """
    from safetensors.torch import save_file

    target = place(folder)
    if is_remote(target):
        return _upload_model(target, trained)
    if target.exists() and not (target / CARD_FILE).is_file() and any(target.iterdir()):
        raise ModelError(f"{target} exists and is not a model folder; give another place for the model")
    card = trained.card.to_dict()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ModelError(f"cannot write the model to {target}: {error}") from None
    try:
        draft.chmod(0o755)
        tensors = {k: v.detach().cpu().contiguous() for k, v in sorted(trained.state.items())}
        save_file(tensors, draft / WEIGHTS_FILE, metadata={"geoflow": _canonical(card)})
        (draft / WEIGHTS_FILE).chmod(0o644)
        sha256 = _sha256(draft / WEIGHTS_FILE)
        text = json.dumps({**card, "sha256": sha256}, indent=2, ensure_ascii=False) + "\n"
        (draft / CARD_FILE).write_text(text, encoding="utf-8")
        _replace(draft, target)
    except OSError as error:
        raise ModelError(f"cannot write the model to {target}: {error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sha256


def _upload_model(target: Path, trained: TrainedModel) -> str:
    """The weights first and the card last: a folder without a card is no model."""
    with tempfile.TemporaryDirectory(prefix="geoflow-") as name:
        sha256 = save_model(Path(name) / "model", trained)
        try:
            for file in (WEIGHTS_FILE, CARD_FILE):
                upload(Path(name) / "model" / file, target / file)
        except OSError as error:
            raise ModelError(f"cannot write the model to {target}: {error}") from None
    return sha256


@dataclass(frozen=True)
class ModelHeader:
    """What a model folder holds, checked, without its weights in memory."""

    path: Path
    sha256: str
    card: ModelCard
    parameters: int


def read_header(folder: str | Path, sha256: str | None = None) -> ModelHeader:
    """Read and check a model folder, all but the weights themselves; cached per process by place and content.

    Needs no torch, which takes seconds to import: a run that finds its maps done asks no more than this.

    Parameters
    ----------
    folder : path
    sha256 : str, optional
        The model that is expected here.

    Raises
    ------
    ModelError
        If a file is missing or damaged, or the content is not the expected one.
    """
    given = place(folder)
    try:
        path = local_copy(given).resolve()
    except OSError:
        raise ModelError(f"no model at {given}: it lacks {CARD_FILE}") from None
    found = _read_card(path).get("sha256")
    if not isinstance(found, str):
        raise ModelError(f"{given / CARD_FILE} lacks the sha256 of the weights")
    if sha256 is not None and found != sha256:
        raise ModelError(f"{given} holds the model {found[:12]}, not {sha256[:12]} that was asked for")
    return _header_checked(path, found)


def load_model(folder: str | Path, sha256: str | None = None) -> LoadedModel:
    """Read and check a model folder; cached per process by place and content.

    Parameters
    ----------
    folder : path
    sha256 : str, optional
        The model that is expected here.

    Raises
    ------
    ModelError
        If a file is missing or damaged, the content is not the expected one, or the model is not one that this geoflow
        can run. Nothing from the folder is executed.
    """
    header = read_header(folder, sha256)
    loaded, given = _load_checked(header.path, header.sha256), place(folder)
    # What travels to other machines is the place, not this one's copy of it.
    return dataclasses.replace(loaded, path=given) if is_remote(given) else loaded


@functools.lru_cache(maxsize=8)
def _header_checked(path: Path, sha256: str) -> ModelHeader:
    weights = path / WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(f"{path} lacks {WEIGHTS_FILE}: the model was not copied completely")
    if _sha256(weights) != sha256:
        raise ModelError(f"{weights} is damaged or was exchanged: its sha256 is not the one in {CARD_FILE}")
    card = {k: v for k, v in _read_card(path).items() if k != "sha256"}
    with _open_weights(weights, "np") as file:
        inside = (file.metadata() or {}).get("geoflow")
        parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in list(file.keys()))
    if inside != _canonical(card):
        raise ModelError(f"{path / CARD_FILE} was changed after training; restore it or train the model again")
    try:
        return ModelHeader(path, sha256, ModelCard.from_dict(card), parameters)
    except GeoflowError as error:
        raise ModelError(f"{path}: {error}") from None


@functools.lru_cache(maxsize=8)
def _load_checked(path: Path, sha256: str) -> LoadedModel:
    with _open_weights(path / WEIGHTS_FILE, "pt") as file:
        # Cloned, because tensors of an open file are views of a map that dies with it.
        state = {key: file.get_tensor(key).clone() for key in sorted(file.keys())}
    trained = TrainedModel(_header_checked(path, sha256).card, state)
    try:
        trained.build()
    except GeoflowError as error:
        raise ModelError(f"{path}: {error}") from None
    return LoadedModel(path, sha256, trained)


@contextmanager
def _open_weights(weights: Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise ModelError(f"{weights} is not a readable safetensors file: {error}") from None


def _read_card(path: Path) -> dict[str, Any]:
    file = path / CARD_FILE
    if not file.is_file():
        raise ModelError(f"no model at {path}: it lacks {CARD_FILE}")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
    if not isinstance(card, dict):
        raise ModelError(f"{file} is not a model card")
    return card


def _canonical(card: Mapping[str, Any]) -> str:
    """One text for equal cards, whatever the order of their keys."""
    return json.dumps(card, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(draft: Path, target: Path) -> None:
    """Put a finished folder in place; for the blink between two renames there is none, never half of one."""
    if not target.exists():
        draft.rename(target)
        return
    old = draft.with_name(draft.name + ".old")
    target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)
