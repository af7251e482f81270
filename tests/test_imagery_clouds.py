"""Cloud detectors: the lattice that makes them independent of tiles, what they need, and both for real."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from imagery_scenes import grid
from odc.geo.geom import Geometry, box

import geoflow as gf
from geoflow.errors import CatalogError, JobError
from geoflow.imagery import CompositeOptions, Period, composite_tile, find_detector, load_catalog, load_scl
from geoflow.imagery import clouds as detectors
from geoflow.imagery.clouds import Lattice, S2Cloudless
from geoflow.imagery.harmonise import with_decisions
from geoflow.imagery.search import search
from geoflow.inputs import NODATA
from geoflow.sample.signatures import BANDS

s2cloudless = pytest.mark.skipif(
    importlib.util.find_spec("s2cloudless") is None, reason="s2cloudless is not installed (the extra clouds)"
)
omnicloudmask = pytest.mark.skipif(
    importlib.util.find_spec("omnicloudmask") is None,
    reason="omnicloudmask is not installed (the extra clouds)",
)


class Bright:
    """A detector that looks at surroundings: cloud where a pixel is brighter than the mean of its window."""

    bands = ("B02",)
    resolution_m = 60.0
    window_px = 8
    margin_px = 3

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, reflectance: np.ndarray) -> np.ndarray:
        self.shapes.add(reflectance.shape)
        return reflectance[0] > reflectance[0].mean()


@pytest.mark.parametrize("resolution", [10.0, 25.0])
def test_what_is_found_does_not_depend_on_the_tile(resolution: float) -> None:
    """Every part of a grid gets the answer that the whole gets, and each coarse pixel that of its windows."""

    def ground(geobox) -> np.ndarray:
        x, y = np.meshgrid(geobox.coords["x"].values, geobox.coords["y"].values)
        return (1000 + 500 * np.sin(x / 130) * np.cos(y / 170)).astype(np.int16)[None]

    detector, whole = Bright(), grid(200, resolution)

    def found(target) -> np.ndarray:
        lattice = Lattice.under(target, detector)
        assert lattice.geobox.resolution.x == 60
        return lattice.detect(ground(lattice.geobox), detector)

    everywhere = found(whole)
    assert 0.2 < everywhere.mean() < 0.8
    for rows, columns in ((slice(0, 77), slice(3, 90)), (slice(77, 200), slice(120, 200)), (slice(9, 10), slice(5, 6))):
        np.testing.assert_array_equal(found(whole[rows, columns]), everywhere[rows, columns])
    assert detector.shapes == {(1, 14, 14)}, "windows of 8 and margins of 3, always"


def test_names_thresholds_and_libraries_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CatalogError, match="'fmask' is not known; it is one of s2cloudless, omnicloudmask"):
        find_detector("fmask")
    with pytest.raises(CatalogError, match="threshold of a cloud detector is 1"):
        find_detector("s2cloudless", threshold=1.0)
    monkeypatch.setattr(detectors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CatalogError, match=r"needs s2cloudless and lightgbm, which are not installed: pip install '"):
        find_detector("s2cloudless")
    with pytest.raises(CatalogError, match=r"needs omnicloudmask, which is not installed"):
        find_detector("omnicloudmask")


@s2cloudless
def test_s2cloudless_is_identified_by_its_trees(tmp_path: Path) -> None:
    packaged = find_detector("s2cloudless")
    assert len(packaged.sha256) == 64
    copy = tmp_path / "trees.txt"
    copy.write_bytes(packaged.weights[0].read_bytes())
    assert find_detector("s2cloudless", copy).identity() == packaged.identity()
    assert find_detector("s2cloudless", copy, 0.5).identity() != packaged.identity()
    found = find_detector("s2cloudless", copy)
    copy.write_text("other trees")
    with pytest.raises(CatalogError, match="changed since the job was planned"):
        found.build()
    with pytest.raises(CatalogError, match=r"no file of trees .*nowhere"):
        find_detector("s2cloudless", tmp_path / "nowhere")


@s2cloudless
def test_s2cloudless_is_what_its_library_says() -> None:
    """The same probabilities and the same average as `S2PixelCloudDetector`'s, with band 10 as we give it."""
    from s2cloudless import S2PixelCloudDetector

    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(100, 7000, (9, 6, 6)), 8, axis=1), 8, axis=2).astype(np.int16)
    found = find_detector("s2cloudless").build()(smooth)
    theirs = S2PixelCloudDetector(threshold=0.4, average_over=4, dilation_size=0)
    bands = np.insert(np.moveaxis(smooth, 0, -1) / 1e4, 7, S2Cloudless.BAND_10, axis=-1)
    wanted = theirs.get_cloud_masks(bands[None])[0].astype(bool)
    inner = (slice(4, -4), slice(4, -4))  # the library reflects what lies beyond the edge
    assert 0.1 < wanted[inner].mean() < 0.9
    assert (found[inner] == wanted[inner]).mean() > 0.995
    smooth[:, :10] = NODATA
    assert not find_detector("s2cloudless").build()(smooth)[:10].any()


@pytest.fixture(scope="module")
def cloudy(tiny_country: Path):
    """(catalog, the two scenes of the cloudiest day) of the tiny country."""
    catalog = load_catalog("sample", str(tiny_country / "stac/catalog.json"))
    area = box(20, 55, 28, 61, "EPSG:4326")
    return catalog, with_decisions(search(catalog, area, "2018-06-11", "2018-06-11", bands=("B02",)).items, catalog)


def country_grid(tiny_country: Path):
    import geopandas

    border = geopandas.read_file(tiny_country / "border.gpkg")
    return gf.Grid.cover(Geometry(border.union_all(), border.crs), "EPSG:3035", 10, 256, 128).geobox


@s2cloudless
def test_s2cloudless_finds_the_clouds_of_the_sample_country(cloudy, tiny_country: Path) -> None:
    """72 % of that day is under cloud; where SCL is sure of thick cloud, the detector agrees, and masks it."""
    catalog, items = cloudy
    geobox = country_grid(tiny_country)
    day = Period("day", date(2018, 6, 11), date(2018, 6, 11))
    found = find_detector("s2cloudless")
    alone = CompositeOptions((day,), ("B02", "B08"), scl_masked=(0, 1), dilate_m=0.0, detector=found)
    made = composite_tile(items, geobox, alone, catalog).compute().isel(period=0)
    scl = load_scl(items, geobox, catalog).values
    seen = (scl != 0).any(axis=0)
    thick = (scl == 9).any(axis=0)
    ground = np.isin(scl, (4, 5, 6)).any(axis=0)
    masked = (made.clear.values == 0) & seen
    assert masked[thick].mean() > 0.85
    assert masked[ground].mean() < 0.35, "its disc of 240 m reaches beyond the cloud"
    part = composite_tile(items, geobox[100:300, 50:260], alone, catalog).compute().isel(period=0)
    np.testing.assert_array_equal(part.clear, made.clear[100:300, 50:260])
    both = replace(alone, scl_masked=(0, 1, 3, 8, 9, 10))
    assert (composite_tile(items, geobox, both, catalog).compute().clear.sum()) < made.clear.sum()


def omnicloudmask_weights(folder: Path) -> Path:
    """Weights of the right shapes that know nothing: random, but always the same."""
    import segmentation_models_pytorch as smp
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    for name, encoder in detectors._omnicloudmask_names():
        torch.manual_seed(0)
        model = smp.Unet(encoder_name=encoder, encoder_weights=None, in_channels=3, classes=4)
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.running_var.fill_(1.0)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / name)
    return folder


@omnicloudmask
def test_omnicloudmask_says_which_files_to_bring(tmp_path: Path) -> None:
    names = [name for name, _ in detectors._omnicloudmask_names()]
    assert len(names) == 2
    with pytest.raises(CatalogError, match=rf"needs a folder with its weights: bring {names[0]} and {names[1]} from"):
        find_detector("omnicloudmask")
    (tmp_path / names[0]).write_bytes(b"")
    with pytest.raises(CatalogError, match=rf"{tmp_path} lacks {names[1]}: bring .*geoflow downloads nothing"):
        find_detector("omnicloudmask", tmp_path)


@pytest.mark.slow
@omnicloudmask
def test_omnicloudmask_runs_with_local_weights(tmp_path: Path) -> None:
    """The adapter, with weights that were never trained: what the library says is what comes back."""
    from omnicloudmask import predict_from_array

    found = find_detector("omnicloudmask", omnicloudmask_weights(tmp_path / "weights"))
    detector = found.build()
    assert found.build() is detector, "loaded once a process"
    rng = np.random.default_rng(0)
    image = rng.integers(0, 6000, (3, 96, 96)).astype(np.int16)
    image[:, :20] = NODATA
    cloud = detector(image)
    assert (cloud.dtype, cloud.shape) == (np.bool_, (96, 96))
    assert not cloud[:20].any()
    filled = np.where(image == NODATA, 0, np.maximum(image, 1)).astype(np.float32)
    wanted = predict_from_array(filled, patch_size=96, patch_overlap=0, custom_models=list(detector._models))[0] > 0
    np.testing.assert_array_equal(cloud[20:], wanted[20:])
    assert not detector(np.full((3, 96, 96), NODATA, np.int16)).any()
    for path in found.weights:
        path.write_bytes(b"not weights")
    with pytest.raises(CatalogError, match="does not fit"):
        find_detector("omnicloudmask", tmp_path / "weights").build()


@s2cloudless
def test_a_job_with_a_detector_is_checked_and_run(tiny_job: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny_job("labels", "classifier", "train", "predict", "generalise", "change", "evaluate", "publish")
    with pytest.raises(JobError, match=r"imagery.cloud_detector: cloud detector omnicloudmask needs"):
        gf.run(gf.load_job(path, ["imagery.cloud_detector=omnicloudmask"]), tmp_path / "none", cluster="threads")
    without_trees = gf.load_job(path, ["imagery.cloud_detector=s2cloudless", "imagery.cloud_weights=/no/trees"])
    with pytest.raises(JobError, match=r"imagery.cloud_weights: there is no .*trees"):
        gf.run(without_trees, tmp_path / "none", cluster="threads")
    job = gf.load_job(path, ["imagery.cloud_detector=s2cloudless"])
    gf.run(job, tmp_path / "with", cluster="threads", limit=1)
    assert (gf.open(tmp_path / "with")["imagery/2018"]["clear"].values > 0).any()


def test_the_bands_of_the_detectors_are_those_that_level_2a_has() -> None:
    assert set(S2Cloudless.bands) | set(detectors.OmniCloudMask.bands) <= set(BANDS)
