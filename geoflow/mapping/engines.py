"""What runs the net: torch in the precision that the machine is fastest in, or OpenVINO.

An engine other than float32 torch is used only where it says the same: `choose_engine` runs both on windows of the
user's own imagery, and takes the first candidate whose classes agree on at least 99.9 % of the pixels. Which one it is
becomes part of the identity of the map.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import ModelError
from geoflow.extras import how_to_install
from geoflow.inputs import NODATA
from geoflow.mapping.netpool import net_pool, worker_threads

if TYPE_CHECKING:
    from geoflow.modelfile import LoadedModel, TrainedModel

MIN_AGREEMENT = 0.999
"""Least share of pixels on which an engine must give the class that float32 torch gives."""

REFERENCE = "torch-fp32"
ENGINES = (REFERENCE, "torch-bf16", "torch-fp16", "openvino-fp32", "openvino-bf16")
"""Names of engines: what runs, and in which precision."""

FLIPS = "+flips"
"""Ends the name of an engine that looks at every window in its eight rotations and reflections, and takes the mean."""


class Engine(Protocol):
    """A net, ready to run on this machine."""

    name: str
    gpu: bool

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (y, x, logit) of one encoded window (channel, y, x), to be called in `net_pool` alone.

        One window at a time, on one thread: kernels differ with the batch and with the threads, and with them the last
        bits, and a class may turn on those. What is returned is valid until the thread asks for the next window.
        """


def check_name(wanted: str) -> None:
    """A name that `engine:` accepts.

    Raises
    ------
    ModelError
        If it is not.
    """
    if wanted.removesuffix(FLIPS) not in ("auto", "torch", "openvino", *ENGINES):
        raise ModelError(f"engine {wanted!r}: accepted are auto, torch, openvino, {', '.join(ENGINES)}")


def candidates(wanted: str) -> list[str]:
    """The engines to try on this machine, fastest first.

    Parameters
    ----------
    wanted : str
        ``auto`` (OpenVINO where it is installed and the processor has AMX, else torch), ``torch`` or ``openvino`` (in
        the precision that the machine has), or the name of one engine.

    Raises
    ------
    ModelError
        If the machine cannot run it.
    """
    from geoflow import nets

    check_name(wanted)
    if wanted.endswith(FLIPS):
        return [name + FLIPS for name in candidates(wanted.removesuffix(FLIPS))]
    compute = nets.best_compute()
    native = "torch-fp16" if compute.device == "cuda" else "torch-bf16" if compute.bf16 else REFERENCE
    installed = importlib.util.find_spec("openvino") is not None
    if wanted.startswith("openvino") and not installed:
        raise ModelError(f"engine {wanted!r} needs OpenVINO: {how_to_install('openvino')}")
    if wanted == "openvino":
        return ["openvino-bf16" if compute.bf16 else "openvino-fp32"]
    if wanted in ENGINES:
        if wanted == "torch-fp16" and compute.device != "cuda":
            raise ModelError("engine torch-fp16 needs a GPU; a processor computes in bf16 or fp32")
        return [wanted]
    # Measured: OpenVINO is twice as fast as torch with AMX, and slower than it without (benchmarks/maps.py).
    first = ["openvino-bf16"] if wanted == "auto" and compute.device == "cpu" and installed and _has_amx() else []
    return list(dict.fromkeys([*first, native, REFERENCE]))


@dataclass(frozen=True)
class Choice:
    """The engine that a map is made with, and why.

    Attributes
    ----------
    engine : str
    agreement : mapping of str to float
        Share of the tried pixels on which each engine that was tried gave the class of float32 torch.
    pixels : int
        How many were tried.
    """

    engine: str
    agreement: dict[str, float]
    pixels: int


def choose_engine(model: LoadedModel, windows: Sequence[NDArray[np.int16]], wanted: str = "auto") -> Choice:
    """Choose the engine for a model by trying it.

    Parameters
    ----------
    model : LoadedModel
        A segmenter.
    windows : sequence of int16 arrays, dims (period, band, y, x)
        Imagery to try it on, of the model's window size; nodata -32768.
    wanted : str
        See `candidates`.

    Raises
    ------
    ModelError
        If the engine that was named disagrees with float32 torch on more than 0.1 % of the pixels.
    """
    tried: dict[str, float] = {}
    inputs = [model.card.inputs.encode(window) for window in windows if (window != NODATA).any()]
    pixels = int(sum(observed.sum() for _, observed in inputs))
    reference: list[NDArray[np.intp]] | None = None
    for name in candidates(wanted):
        exact = REFERENCE + (FLIPS if name.endswith(FLIPS) else "")
        if name == exact or not pixels:
            return Choice(name, {**tried, name: 1.0}, pixels)
        if reference is None:
            reference = _classes(load_engine(model, exact), inputs)
        found = _classes(load_engine(model, name), inputs)
        same = sum(int((f == r)[seen].sum()) for f, r, (_, seen) in zip(found, reference, inputs, strict=True))
        tried[name] = same / pixels
        if tried[name] >= MIN_AGREEMENT:
            return Choice(name, tried, pixels)
    raise ModelError(
        f"engine {wanted}: {tried[name]:.2%} of {pixels} pixels get the class that float32 torch gives, less than "
        f"{MIN_AGREEMENT:.1%}; use engine: auto or {REFERENCE}"
    )


def _classes(engine: Engine, inputs: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> list[NDArray[np.intp]]:
    return list(net_pool(engine.gpu).map(lambda encoded: engine.logits(encoded[0]).argmax(axis=-1), inputs))


@functools.lru_cache(maxsize=4)
def _loaded(path: str, sha256: str, name: str) -> Engine:
    from geoflow.modelfile import load_model

    trained = load_model(path, sha256).trained
    return _OpenVino(trained, name) if name.startswith("openvino") else _Torch(trained, name)


def _net(trained: TrainedModel, name: str) -> Any:
    """What an engine of a name runs, in float32."""
    from geoflow.netparts import Ensemble

    net = trained.build()
    return Ensemble([net], trained.card.inputs.channels, flips=True).eval() if name.endswith(FLIPS) else net


_LOADING = threading.Lock()


def load_engine(model: LoadedModel, name: str) -> Engine:
    """The net of this process; the lock keeps two threads from loading it twice."""
    with _LOADING:
        return _loaded(str(model.path), model.sha256, name)


class _Torch:
    """Torch: channels last, batch norms folded into the convolutions where the net allows it."""

    def __init__(self, trained: TrainedModel, name: str) -> None:
        import torch

        from geoflow import nets

        self.name = name
        self.device = nets.best_compute().device
        self.gpu = self.device == "cuda"
        # Windows take turns on a GPU: its memory may hold the activations of one alone.
        self._turn: Any = threading.Lock() if self.gpu else contextlib.nullcontext()
        kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        self.dtype = kinds[name.removeprefix("torch-").removesuffix(FLIPS)]
        net = _net(trained, name)
        if self.dtype is not torch.float32:
            net = _reduced(net)
        self.net = nets.best_compute().place(net)

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        reduced = self.dtype is not torch.float32
        with self._turn, torch.inference_mode(), torch.autocast(self.device, dtype=self.dtype, enabled=reduced):
            batch = torch.from_numpy(np.ascontiguousarray(x)[None]).to(self.device)
            logits = self.net(batch.contiguous(memory_format=torch.channels_last))
            # Channels last: a pixel's classes lie side by side, as the kernels that follow read them.
            return np.asarray(logits[0].permute(1, 2, 0).contiguous().float().cpu().numpy())


def _reduced(net: Any) -> Any:
    """The net as it runs in half the bits; of an ensemble, each member."""
    from geoflow.netparts import Ensemble

    if not isinstance(net, Ensemble):
        return _exact_logits(_folded(net))
    for at, member in enumerate(net.members):
        net.members[at] = _reduced(member)
    return net


def _folded(net: Any) -> Any:
    """The net with its batch norms folded into the convolutions before them; as it is where it cannot be traced."""
    import torch.fx
    from torch.fx.experimental.optimization import fuse

    try:
        return fuse(net)
    except (torch.fx.proxy.TraceError, TypeError, RuntimeError):
        # Control flow that depends on the input's size; the net is right as it is, some 10 % slower.
        return net


def _exact_logits(net: Any) -> Any:
    """The net with its last convolution in float32.

    Logits of 8 bits, as bf16 has them, cannot tell classes apart whose logits are near 10 and 0.03 apart.
    """
    import torch

    class Exact(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return torch.as_tensor(self.layer(x.float()))

    *_, name = (name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d))
    net.set_submodule(name, Exact(net.get_submodule(name)))
    return net


_FIRST_TENSOR = threading.Lock()


class _OpenVino:
    """OpenVINO on the processor, converted through ONNX."""

    def __init__(self, trained: TrainedModel, name: str) -> None:
        import openvino  # type: ignore[import-untyped]

        self.name, self.gpu = name, False
        with _FIRST_TENSOR:
            # Its bindings look numpy up with the first array that they meet, and give the interpreter's lock away
            # meanwhile: two threads that bring the first ones at once wait for each other for ever (seen once).
            openvino.Tensor(np.zeros(1, np.float32))
        self._core = openvino.Core()
        self._trained = trained
        self._precision = {"fp32": "f32", "bf16": "bf16"}[name.removeprefix("openvino-").removesuffix(FLIPS)]
        self._compiling = threading.Lock()
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._requests = threading.local()

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        found = self._request(x.shape).infer([np.ascontiguousarray(x)[None]], share_inputs=True, share_outputs=True)
        logits: NDArray[np.float32] = next(iter(found.values()))[0]
        return logits

    def _request(self, shape: tuple[int, ...]) -> Any:
        """What this thread runs windows of one shape with."""
        own: dict[str, Any] = vars(self._requests)
        if str(shape) not in own:
            with self._compiling:
                if shape not in self._compiled:
                    self._compiled[shape] = self._compile(shape)
            own[str(shape)] = self._compiled[shape].create_infer_request()
        return own[str(shape)]

    def _compile(self, shape: tuple[int, ...]) -> Any:
        import torch

        class Mapped(torch.nn.Module):
            def __init__(self, net: Any) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.as_tensor(self.net(x)).permute(0, 2, 3, 1)

        model = self._core.read_model(_onnx(Mapped(_net(self._trained, self.name)).eval(), shape))
        threads = str(worker_threads())
        options = {
            "INFERENCE_PRECISION_HINT": self._precision,
            # As many streams as threads: one thread a window.
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            # OpenVINO would bind its threads to the first cores, and those of every worker of a machine to the same
            # ones: two workers on two cores would be no faster than one.
            "ENABLE_CPU_PINNING": "NO",
        }
        return self._core.compile_model(model, "CPU", options)


def _onnx(net: Any, shape: tuple[int, ...]) -> bytes:
    """A net for windows of one shape as ONNX."""
    import io
    import warnings

    import torch

    buffer = io.BytesIO()
    # Exported with gradients, the activations of all layers would be held: 0.8 GB of a window of 576 px, ResNet50.
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter that follows TorchScript is called legacy; it needs no more packages and is several times faster.
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(1, *shape),), buffer, dynamo=False, opset_version=17)  # type: ignore[arg-type]
    return buffer.getvalue()


def _has_amx() -> bool:
    """Whether the processor has matrix units for bf16 (Linux tells; elsewhere: no)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return "amx_bf16" in file.read()
    except OSError:
        return False
