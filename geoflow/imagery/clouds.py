"""Cloud detectors beside the scene classification: a small protocol, and two that others have trained.

A detector sees reflectance on a coarse lattice that is fixed to the CRS, window by window where it looks at
surroundings, so that what it finds at a place does not depend on the tile that asks. Its libraries and weights are
optional: the extra ``clouds``. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoflow.errors import CatalogError
from geoflow.extras import how_to_install
from geoflow.inputs import NODATA

DetectorName = Literal["s2cloudless", "omnicloudmask"]
Int16 = NDArray[np.int16]
Clouds = NDArray[np.bool_]


class CloudDetector(Protocol):
    """What finds clouds.

    Attributes
    ----------
    bands : tuple of str
        The bands it wants, in its order.
    resolution_m : float
        Edge of the pixels it wants.
    window_px, margin_px : int
        It is asked for squares of ``window_px`` (0: any size) and gets ``margin_px`` more on every side.
    """

    bands: ClassVar[tuple[str, ...]]
    resolution_m: ClassVar[float]
    window_px: ClassVar[int]
    margin_px: ClassVar[int]

    def __call__(self, reflectance: Int16) -> Clouds:
        """Where there is cloud or shadow.

        Parameters
        ----------
        reflectance : int16 array, dims (band, y, x)
            Reflectance x 10000, nodata `geoflow.inputs.NODATA`.

        Returns
        -------
        bool array, dims (y, x)
            True for cloud and for shadow; False where there is no data.
        """


@dataclass(frozen=True)
class DetectorOptions:
    """Which detector, and its weights, as they travel to workers.

    Parameters
    ----------
    name : "s2cloudless" or "omnicloudmask"
    threshold : float
        Least probability of a cloud, for s2cloudless.
    weights : tuple of Path
        The files that hold what it learned.
    sha256 : str
        Digest of those files.
    """

    name: DetectorName
    threshold: float
    weights: tuple[Path, ...]
    sha256: str

    def identity(self) -> dict[str, Any]:
        """What alters its pixels: all but where the weights lie."""
        return {key: value for key, value in asdict(self).items() if key != "weights"}

    @property
    def kind(self) -> type[CloudDetector]:
        """What detects, without its weights."""
        return S2Cloudless if self.name == "s2cloudless" else OmniCloudMask

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands that it reads."""
        return self.kind.bands

    def build(self) -> CloudDetector:
        """The detector, its weights loaded once a process.

        Raises
        ------
        CatalogError
            If the weights are not those of ``sha256``.
        """
        return _build(self)


def find_detector(name: str, weights: Path | None = None, threshold: float = 0.4) -> DetectorOptions:
    """Look a detector up: its libraries and its weights.

    Parameters
    ----------
    name : "s2cloudless" or "omnicloudmask"
    weights : Path, optional
        File of s2cloudless's trees (its package has one), or folder with omnicloudmask's ``.safetensors``.
    threshold : float
        Least probability of a cloud, for s2cloudless.

    Raises
    ------
    CatalogError
        If the name is not known, a library is not installed or a file is missing; it says what to bring.
    """
    if name not in get_args(DetectorName):
        raise CatalogError(f"cloud detector {name!r} is not known; it is one of {', '.join(get_args(DetectorName))}")
    if not 0 < threshold < 1:
        raise CatalogError(f"the threshold of a cloud detector is {threshold}; it must lie between 0 and 1")
    needed = ("s2cloudless", "lightgbm") if name == "s2cloudless" else ("omnicloudmask",)
    if missing := [module for module in needed if importlib.util.find_spec(module) is None]:
        raise CatalogError(
            f"cloud detector {name} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed: {how_to_install('clouds')}"
        )
    files = _s2cloudless_file(weights) if name == "s2cloudless" else _omnicloudmask_files(weights)
    return DetectorOptions(name, threshold, files, _sha256(files))  # type: ignore[arg-type]


def _sha256(files: tuple[Path, ...]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


@lru_cache(maxsize=4)
def _build(options: DetectorOptions) -> CloudDetector:
    try:
        found = _sha256(options.weights)
    except OSError as error:
        raise CatalogError(f"weights of {options.name} cannot be read: {error}") from None
    if found != options.sha256:
        raise CatalogError(f"weights of {options.name} changed since the job was planned: {options.weights}")
    return S2Cloudless(options) if options.name == "s2cloudless" else OmniCloudMask(options)


# ---------------------------------------------------------------------------------------------------- s2cloudless


def _s2cloudless_file(given: Path | None) -> tuple[Path, ...]:
    """The trees. The package itself is not imported: it would load a client for a web service."""
    spec = importlib.util.find_spec("s2cloudless")
    origin = Path(spec.origin) if spec is not None and spec.origin else Path()
    path = given or origin.parent / "models" / "pixel_s2_cloud_detector_lightGBM_v0.1.txt"
    if not path.is_file():
        raise CatalogError(f"cloud detector s2cloudless: there is no file of trees {path}")
    return (path,)


class S2Cloudless:
    """Zupanc's s2cloudless: boosted trees on the spectrum of a pixel, at 60 m.

    Skakun et al. (2022, doi:10.1016/j.rse.2022.112990) compare it with others. The trees learned from level 1C, top of
    atmosphere, and from band 10, which level 2A does not have. It is given as 0.01, a hint of cirrus that leaves the
    verdict to the other bands: with 0, a sky without cirrus, the trees acquit even thick cloud, and with 0.01 clear
    vegetation, soil and roofs still stay below 0.1 (spectra of the sample country). Finds clouds and no shadows.
    """

    bands: ClassVar[tuple[str, ...]] = ("B01", "B02", "B04", "B05", "B08", "B8A", "B09", "B11", "B12")
    resolution_m: ClassVar[float] = 60.0
    window_px: ClassVar[int] = 0
    margin_px: ClassVar[int] = 4
    """Probabilities are averaged over a disc of this radius, as the library's own users do at 60 m."""

    BAND_10 = 0.01
    """What band 10 is taken to reflect."""

    _BAND_10_AT = 7

    def __init__(self, options: DetectorOptions) -> None:
        from lightgbm import Booster

        self._trees = Booster(model_file=str(options.weights[0]))
        if self._trees.num_feature() != len(self.bands) + 1:
            raise CatalogError(
                f"cloud detector s2cloudless: the trees in {options.weights[0]} want {self._trees.num_feature()} bands "
                f"instead of {len(self.bands) + 1}"
            )
        self._threshold = options.threshold
        y, x = np.ogrid[-self.margin_px : self.margin_px + 1, -self.margin_px : self.margin_px + 1]
        disc = (x * x + y * y <= self.margin_px**2).astype(np.float32)
        self._disc = disc / disc.sum()

    def __call__(self, reflectance: Int16) -> Clouds:
        """See `CloudDetector`."""
        from scipy import ndimage

        valid = (reflectance != NODATA).all(axis=0)
        probability = np.zeros(valid.shape, np.float32)
        if valid.any():
            spectra = reflectance[:, valid].T / 1e4
            spectra = np.insert(spectra, self._BAND_10_AT, self.BAND_10, axis=1)
            probability[valid] = self._trees.predict(spectra, num_threads=1)
        seen = ndimage.convolve(valid.astype(np.float32), self._disc, mode="constant")
        mean = ndimage.convolve(probability, self._disc, mode="constant") / np.maximum(seen, 1e-6)
        cloud: Clouds = valid & (mean > self._threshold)
        return cloud


# -------------------------------------------------------------------------------------------------- omnicloudmask


def _omnicloudmask_names() -> tuple[tuple[str, str], ...]:
    """(file, encoder) of the newest models that the installed package knows."""
    import csv

    spec = importlib.util.find_spec("omnicloudmask")
    origin = Path(spec.origin) if spec is not None and spec.origin else Path()
    with (origin.parent / "model_download_links.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("model_library") == "smp"]
    newest = max((float(row["version"]) for row in rows), default=0.0)
    return tuple((r["file_name"], r["timm_model_name"]) for r in rows if float(r["version"]) == newest)


def _omnicloudmask_files(folder: Path | None) -> tuple[Path, ...]:
    names = [name for name, _ in _omnicloudmask_names()]
    if not names:
        raise CatalogError("cloud detector omnicloudmask: the installed package is too old; 1.8 or newer is needed")
    bring = f"bring {' and '.join(names)} from huggingface.co/NickWright/OmniCloudMask; geoflow downloads nothing"
    if folder is None:
        raise CatalogError(f"cloud detector omnicloudmask needs a folder with its weights: {bring}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CatalogError(f"cloud detector omnicloudmask: {folder} lacks {' and '.join(missing)}: {bring}")
    return tuple(folder / name for name in names)


class OmniCloudMask:
    """Wright et al.'s OmniCloudMask (2025, doi:10.1016/j.rse.2025.114694): two U-Nets on red, green and near infrared.

    Finds thick and thin cloud and shadow. Its input is normalised window by window, so windows are fixed to the CRS.
    """

    bands: ClassVar[tuple[str, ...]] = ("B04", "B03", "B08")
    resolution_m: ClassVar[float] = 20.0
    window_px: ClassVar[int] = 512
    margin_px: ClassVar[int] = 128

    def __init__(self, options: DetectorOptions) -> None:
        import torch
        from omnicloudmask.model_utils import load_model_from_weights
        from safetensors import SafetensorError

        encoders = dict(_omnicloudmask_names())
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Its cache is keyed by path: other weights in the same place would not be seen.
        load = getattr(load_model_from_weights, "__wrapped__", load_model_from_weights)
        self._models = []
        for path in options.weights:
            try:
                model = load(
                    model_name=encoders[path.name], weights_path=path, model_library="smp", device=self._device
                )
            except (RuntimeError, OSError, ValueError, SafetensorError) as error:
                raise CatalogError(
                    f"cloud detector omnicloudmask: {path} does not fit {encoders[path.name]}: {error}"
                ) from None
            self._models.append(model)

    def __call__(self, reflectance: Int16) -> Clouds:
        """See `CloudDetector`."""
        from omnicloudmask import predict_from_array

        valid = (reflectance != NODATA).all(axis=0)
        if not valid.any():
            return np.zeros(valid.shape, bool)
        # 0 is its nodata, so a valid 0 becomes 1.
        image = np.where(valid, np.maximum(reflectance, 1), 0).astype(np.float32)
        side = max(valid.shape)
        classes = predict_from_array(
            image, patch_size=side, patch_overlap=0, inference_device=self._device, custom_models=list(self._models)
        )
        cloud: Clouds = valid & (classes[0] > 0)
        return cloud


# -------------------------------------------------------------------------------------- from the lattice to a grid


@dataclass(frozen=True)
class Lattice:
    """The coarse pixels that a detector needs to say something about every pixel of a GeoBox.

    Attributes
    ----------
    geobox : GeoBox
        Its pixels are multiples of the detector's resolution, its windows multiples of the windows, counted from the
        origin of the CRS.
    margin_px, window_px : int
        In pixels of the lattice; a window of 0 is all of it.
    target : GeoBox
        The grid of the result.
    """

    geobox: GeoBox
    margin_px: int
    window_px: int
    target: GeoBox

    @classmethod
    def under(cls, target: GeoBox, detector: CloudDetector | type[CloudDetector]) -> Lattice:
        """The lattice of a detector under a grid, which may have any pixel size."""
        step = detector.resolution_m * max(detector.window_px, 1)
        margin = detector.margin_px * detector.resolution_m
        left, bottom, right, top = target.boundingbox
        west, south = (math.floor(v / step) * step - margin for v in (left, bottom))
        east, north = (math.ceil(v / step) * step + margin for v in (right, top))
        geobox = GeoBox.from_bbox((west, south, east, north), target.crs, resolution=detector.resolution_m, tight=True)
        return cls(geobox, detector.margin_px, detector.window_px, target)

    def detect(self, reflectance: Int16, detector: Callable[[Int16], Clouds]) -> Clouds:
        """Ask a detector about the lattice and bring its answer onto the grid.

        Parameters
        ----------
        reflectance : int16 array, dims (band, y, x)
            On ``self.geobox``.

        Returns
        -------
        bool array, dims (y, x)
            On ``self.target``: each pixel has the answer of the coarse pixel that its centre lies in.
        """
        height, width = self.geobox.shape
        m = self.margin_px
        step = self.window_px or max(height, width)
        found = np.zeros((height, width), bool)
        for y in range(m, height - m, step):
            for x in range(m, width - m, step):
                bottom, right = min(y + step, height - m), min(x + step, width - m)
                answer = detector(reflectance[:, y - m : bottom + m, x - m : right + m])
                found[y:bottom, x:right] = answer[m : m + bottom - y, m : m + right - x]
        return found[np.ix_(*self._rows_and_columns())]

    def _rows_and_columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The coarse row of each row of the target, and the coarse column of each column."""
        fine, coarse = self.target.transform, self.geobox.transform
        height, width = self.target.shape
        y = fine.f + fine.e * (np.arange(height) + 0.5)
        x = fine.c + fine.a * (np.arange(width) + 0.5)
        rows = np.floor((y - coarse.f) / coarse.e).astype(np.int64)
        columns = np.floor((x - coarse.c) / coarse.a).astype(np.int64)
        return rows, columns
