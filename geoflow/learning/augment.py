"""What is done to windows and patches before a net learns from them, so that it meets more than there is.

All of it is drawn from the generator that is given, and with every option at 0 nothing is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import ModelError


@dataclass(frozen=True)
class Alterations:
    """How encoded imagery is altered; all 0 leaves it as it is.

    Parameters
    ----------
    brightness, contrast : float
        Spread of a random offset (in standard deviations of a channel) and of a random gain, one for each window and
        period, the same for all bands: haze and light of a scene.
    band_dropout : float
        Chance that a window has to do without a band, in all periods.
    period_dropout : float
        Chance that a window has to do without a period, as if it had been cloudy throughout.

    Raises
    ------
    ModelError
        If a spread is negative, or a chance not within 0 to below 1.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    band_dropout: float = 0.0
    period_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not (self.brightness >= 0 and self.contrast >= 0):
            raise ModelError(f"brightness and contrast must be at least 0, not {self.brightness}, {self.contrast}")
        if not (0 <= self.band_dropout < 1 and 0 <= self.period_dropout < 1):
            raise ModelError(
                "band_dropout and period_dropout must be at least 0 and below 1, not "
                f"{self.band_dropout}, {self.period_dropout}"
            )


NO_ALTERATIONS = Alterations()


def augment(
    rng: np.random.Generator, cube: NDArray[np.int16], target: NDArray[np.int16]
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """One of the eight rotations and reflections of a square window, the same for imagery and labels."""
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    cube, target = np.rot90(cube, turns, axes=(-2, -1)), np.rot90(target, turns, axes=(-2, -1))
    return (cube[..., ::-1], target[..., ::-1]) if flip else (cube, target)


def jitter(rng: np.random.Generator, x: NDArray[np.float32], spread: float) -> None:
    """Random gain and offset per window and channel, in place: haze and season differ from year to year."""
    if spread > 0:
        shape = (*x.shape[:2], 1, 1)
        x *= 1 + spread * rng.standard_normal(shape, np.float32)
        x += spread * rng.standard_normal(shape, np.float32)


def alter(rng: np.random.Generator, x: NDArray[np.float32], periods: int, how: Alterations) -> None:
    """Alter encoded windows in place.

    Parameters
    ----------
    rng : Generator
    x : float32 array, dims (window, period * band, y, x)
        Encoded: 0 is the mean of a channel, and what was not observed; it stays 0.
    periods : int
    how : Alterations
        No window loses all of its bands or periods.
    """
    n, channels, height, width = x.shape
    series = x.reshape(n, periods, channels // periods, height, width)
    if how.brightness > 0 or how.contrast > 0:
        shape = (n, periods, 1, 1, 1)
        gain = 1 + how.contrast * rng.standard_normal(shape, np.float32)
        offset = how.brightness * rng.standard_normal(shape, np.float32)
        series[...] = np.where(series == 0, np.float32(0), series * gain + offset)
    for chance, size, axis in ((how.band_dropout, channels // periods, 2), (how.period_dropout, periods, 1)):
        if chance > 0:
            lost = _lost(rng, n, size, chance)
            series *= ~np.expand_dims(lost, tuple(i for i in range(1, 5) if i != axis))


def _lost(rng: np.random.Generator, n: int, size: int, chance: float) -> NDArray[np.bool_]:
    """What each window loses: bool (window, size), True where lost; where that would be all, one at random is kept."""
    lost = rng.random((n, size)) < chance
    kept = rng.integers(size, size=n)
    everything = lost.all(axis=1)
    lost[everything, kept[everything]] = False
    return lost
