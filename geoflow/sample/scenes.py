"""What Sentinel-2 sees of the ground: twelve bands and the scene classification of one pass over one window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from geoflow.sample import noise as nz
from geoflow.sample.ground import Ground
from geoflow.sample.landscape import PIXEL_M
from geoflow.sample.noise import Float
from geoflow.sample.signatures import BANDS, VARIANTS, WATER, tables
from geoflow.sample.takes import Take

GSD = dict(zip(BANDS, (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20), strict=True))
_CLOUD = dict(zip(BANDS, (52, 54, 53, 54, 55, 56, 57, 58, 58, 40, 38, 30), strict=True))
_HAZE = dict(zip(BANDS, (190, 150, 95, 65, 50, 40, 35, 28, 24, 20, 8, 5), strict=True))
_VISIBLE = {"B01", "B02", "B03", "B04"}


@dataclass(frozen=True)
class Weather:
    """Clouds of one pass over the whole country: the threshold of the cloud field that gives the wanted cover."""

    key: int
    threshold: float
    seed: int
    swath_x: float
    """Easting in the frame (m, at its north edge) beyond which nothing was sensed; infinity without a swath edge."""


@dataclass(frozen=True)
class View:
    """The ground under one window of a tile, gathered once and seen by every pass; dims (y, x), 10 m."""

    rows: NDArray[np.int32]
    cols: NDArray[np.int32]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    tone: Float
    vigour: Float
    slope_y: Float
    slope_x: Float


def view(ground: Ground, rows: NDArray[np.int32], cols: NDArray[np.int32]) -> View:
    """Gather the ground at the frame pixels of a window."""

    def scaled(layer: str) -> Float:
        return ground.gather(layer, rows, cols).astype(np.float32) * np.float32(1 / 250)

    return View(
        rows, cols, ground.gather("before", rows, cols), ground.gather("after", rows, cols),
        scaled("tone"), scaled("vigour"), scaled("slope_y"), scaled("slope_x"),
    )  # fmt: skip


def cloud_field(ys: NDArray[np.floating[Any]], xs: NDArray[np.floating[Any]], key: int) -> Float:
    """The field whose high values are clouds."""
    return nz.fbm(ys, xs, (3300, 1500, 700, 330, 150), key, 0.58)


def weather_of(take: Take, number: int, seed: int, height_m: float, width_m: float) -> Weather:
    """Find the threshold that puts ``take.cloud`` of the country under cloud."""
    key = (seed * 31 + number * 977 + 5) & 0x7FFFFFFF
    step = max(80.0, width_m / 400)
    field = cloud_field(np.arange(0, height_m, step), np.arange(0, width_m, step), key)
    swath_x = (1 - take.swath) * width_m if take.swath else np.inf
    return Weather(key, float(np.quantile(field, 1 - take.cloud)), seed, swath_x)


def _sample_coarse(
    rows: NDArray[np.int32], cols: NDArray[np.int32], evaluate: Any, shift: tuple[float, float]
) -> Float:
    """A smooth field at frame pixels, by bilinear interpolation of its values every 40 m."""
    r = (rows + np.float32(shift[0] / PIXEL_M)).astype(np.float32) / 4
    c = (cols + np.float32(shift[1] / PIXEL_M)).astype(np.float32) / 4
    r0, c0 = int(np.floor(r.min())) - 1, int(np.floor(c.min())) - 1
    ys = (np.arange(r0, int(r.max()) + 3) * 4 + 0.5) * PIXEL_M
    xs = (np.arange(c0, int(c.max()) + 3) * 4 + 0.5) * PIXEL_M
    field: Float = ndimage.map_coordinates(evaluate(ys, xs), (r - r0, c - c0), order=1, output=np.float32)
    return field


def sky(take: Take, weather: Weather, rows: NDArray[np.int32], cols: NDArray[np.int32]) -> tuple[Float, Float, Float]:
    """Opacity of the clouds (0..1), depth of their shadows (0..1) and haze (0..1) at frame pixels."""

    def opacity(ys: NDArray[np.floating[Any]], xs: NDArray[np.floating[Any]]) -> Float:
        z = cloud_field(ys, xs, weather.key) - np.float32(weather.threshold)
        return np.clip(z * 2.6 + 0.25, 0, 1)

    height_m = 1100.0
    length = height_m / np.tan(np.radians(take.sun_elevation))
    south, east = -np.cos(np.radians(take.sun_azimuth)), np.sin(np.radians(take.sun_azimuth))
    cloud = _sample_coarse(rows, cols, opacity, (0.0, 0.0))
    shadow = _sample_coarse(rows, cols, opacity, (south * length, east * length))
    haze = _sample_coarse(rows, cols, lambda y, x: nz.rank(nz.fbm(y, x, (6000, 2500), weather.key + 7)), (0.0, 0.0))
    return cloud, np.clip(shadow * 1.4, 0, 1) * (1 - cloud), haze * np.float32(take.haze)


def _blur(a: Float, side: float) -> Float:
    """The point spread: three taps along each axis."""
    w = np.float32(side)
    out = a * (1 - 2 * w)
    out[1:] += a[:-1] * w
    out[:-1] += a[1:] * w
    out[0] += a[0] * w
    out[-1] += a[-1] * w
    b = out * (1 - 2 * w)
    b[:, 1:] += out[:, :-1] * w
    b[:, :-1] += out[:, 1:] * w
    b[:, 0] += out[:, 0] * w
    b[:, -1] += out[:, -1] * w
    return b


def _mean(a: Float, factor: int) -> Float:
    """Average of squares of ``factor`` pixels."""
    if factor == 1:
        return a
    rows = a[::factor].copy()
    for k in range(1, factor):
        rows += a[k::factor]
    out = rows[:, ::factor].copy()
    for k in range(1, factor):
        out += rows[:, k::factor]
    out *= np.float32(1 / factor**2)
    return out


def _adjacent(a: Float) -> Float:
    """Light scattered in from the neighbourhood: the surroundings of about 200 m, smoothly."""
    factor = 12 if a.shape[0] % 12 == 0 and a.shape[1] % 12 == 0 else 6
    coarse = ndimage.uniform_filter(_mean(a, factor), 3, mode="nearest")
    return np.repeat(np.repeat(coarse, factor, axis=0), factor, axis=1)


class Sensor:
    """Renders the bands of one pass over one view."""

    def __init__(self, take: Take, weather: Weather, scene: View, noise_key: tuple[int, ...]) -> None:
        self.take, self.scene, self.noise_key = take, scene, noise_key
        self.material = (scene.before if take.epoch == 2018 else scene.after).astype(np.intp)
        self.mean, self.slope = tables(take.doy)
        self.cloud, self.shadow, self.haze = sky(take, weather, scene.rows, scene.cols)
        self.air = {f: tuple(_mean(a, f) for a in (self.cloud, self.shadow, self.haze)) for f in (1, 2, 6)}
        azimuth = np.radians(take.sun_azimuth)
        tangent = 0.55 / np.tan(np.radians(take.sun_elevation))
        lit = (
            np.float32(tangent * np.cos(azimuth)) * scene.slope_y
            - np.float32(tangent * np.sin(azimuth)) * scene.slope_x
        )
        self.light = (1 + scene.tone) * (1 + lit)
        edge = weather.swath_x
        x, y = (scene.cols + 0.5) * PIXEL_M, (scene.rows + 0.5) * PIXEL_M
        self.seen = (x + 0.22 * y < edge) if np.isfinite(edge) else None
        self.calibration = np.random.default_rng([weather.seed, weather.key]).normal(0, 1, (len(BANDS), 2))

    def surface(self, name: str) -> Float:
        """10000 x reflectance of the ground at the band's own pixel size, as a faultless sensor would see it: point
        spread and light from the surroundings, but no haze, cloud, shadow, error of calibration or noise."""
        b = BANDS.index(name)
        surface = self.mean[:, b].take(self.material)
        surface += self.slope[:, b].take(self.material) * self.scene.vigour
        surface *= self.light
        surface = _blur(surface, 0.15)
        surface *= np.float32(0.93)
        surface += np.float32(0.07) * _adjacent(surface)
        return _mean(surface, GSD[name] // 10)

    def clear_sky(self, name: str) -> Float:
        """`surface` through haze and with the errors of calibration: what is seen without cloud, shadow and noise."""
        gain, shift = self.calibration[BANDS.index(name)]
        values = self.surface(name) * np.float32(1 + 0.02 * gain) + np.float32(8 * shift)
        values += self.air[GSD[name] // 10][2] * np.float32(_HAZE[name])
        return values

    def band(self, name: str) -> NDArray[np.uint16]:
        """10000 x reflectance at the band's own pixel size, without offset; 0 where nothing was sensed."""
        b, factor = BANDS.index(name), GSD[name] // 10
        values = self.clear_sky(name)
        opacity, shadow, _ = self.air[factor]
        values *= 1 - np.float32(0.62) * shadow
        if name in _VISIBLE:
            values += np.float32(40) * shadow
        values += opacity * (np.float32(_CLOUD[name] * 100) - values)
        rng = np.random.default_rng([*self.noise_key, b])
        grain = rng.standard_normal(values.shape, dtype=np.float32)
        values += grain * (np.float32(9) + np.float32(0.022) * np.abs(values))
        out = np.clip(np.rint(values), 1, 19000).astype(np.uint16)
        if self.seen is not None:
            out[~self.seen[factor // 2 :: factor, factor // 2 :: factor]] = 0
        return out

    def classes(self, bands: dict[str, NDArray[np.uint16]]) -> NDArray[np.uint8]:
        """The scene classification at 20 m, with its usual faults.

        Thin cloud is missed in patches, bright roofs are taken for cloud, some shadow is missed, some dark ground is
        taken for shadow.
        """
        blue, red, nir = (_mean(bands[n].astype(np.float32), 2) for n in ("B02", "B04", "B08"))
        swir = bands["B11"].astype(np.float32)
        ndvi = (nir - red) / np.maximum(nir + red, 1)
        rng = np.random.default_rng([*self.noise_key, 99])
        lot = rng.random(blue.shape, dtype=np.float32)
        blob = ndimage.uniform_filter(rng.random(blue.shape, dtype=np.float32), 9) * 9 - 4.0
        scl = np.where(ndvi > 0.36, 4, 5).astype(np.uint8)
        wet = np.isin(self.material[1::2, 1::2] // VARIANTS, list(WATER))
        scl[(ndvi < 0.1) & (nir < 700) & (swir < 600)] = 2
        scl[(nir < 900) & (wet & (lot < 0.985))] = 6
        scl[(lot > 0.996) & (scl == 5)] = 7
        cloud, shadow, _ = self.air[2]
        scl[(shadow > 0.35) & (blob < 1.3)] = 3
        scl[(shadow > 0.6) & (nir < 700) & (blob >= 1.3)] = 2
        seen_cloud = cloud > np.where(blob > 0.9, 0.55, 0.16)
        scl[seen_cloud] = 10
        scl[seen_cloud & (cloud > 0.35)] = 8
        scl[seen_cloud & (cloud > 0.62)] = 9
        scl[(blue > 1750) & (cloud < 0.1) & (lot < 0.7)] = 8
        if self.seen is not None:
            scl[~self.seen[1::2, 1::2]] = 0
        return scl
