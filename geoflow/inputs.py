"""The one way into a net: which bands and periods, in which order, unit and scale.

An `InputSpec` travels with the model. The job that trains and the job that predicts call the same `InputSpec.encode`,
so that a model can never be fed bands in another order or another unit than it learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import ModelError

NODATA = -32768
"""Nodata of every reflectance cube: int16, so that 0 stays a possible (dark) reflectance."""

UNIT = "surface reflectance x 10000"
"""The one unit of every cube; offsets are already applied."""

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""Sentinel-2 L2A bands in the order of their names (B10 does not exist at level 2A)."""


@dataclass(frozen=True)
class InputSpec:
    """What a net expects as input.

    Parameters
    ----------
    bands : tuple of str
        Band names in channel order, for example ``("B04", "B03", "B02")``.
    periods : tuple of str
        Names of the composite periods in channel order; a single-date input has one.
    mean, std : tuple of float
        Per channel, in units of `UNIT`, channels ordered period by period, band by band.
    """

    bands: tuple[str, ...]
    periods: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ModelError(f"{name} has {len(values)} values, but there are {self.channels} channels")
        if not all(s > 0 for s in self.std):
            raise ModelError(f"std must be positive in every channel, not {self.std}")

    @property
    def channels(self) -> int:
        """Number of input channels: periods times bands."""
        return len(self.periods) * len(self.bands)

    def channel_bands(self) -> tuple[str, ...]:
        """The band name of each channel, in channel order."""
        return self.bands * len(self.periods)

    def encode(self, cube: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Standardise reflectance for the net.

        Parameters
        ----------
        cube : int16 array, dims (..., period, band, y, x)
            Reflectance x 10000, nodata `NODATA`, periods and bands in the order of this spec.

        Returns
        -------
        x : float32 array, dims (..., channel, y, x)
            Zero mean and unit spread over the training set; nodata becomes 0, the mean.
        observed : bool array, dims (..., y, x)
            True where at least one channel was observed.
        """
        if cube.shape[-4:-2] != (len(self.periods), len(self.bands)):
            raise ModelError(
                f"the cube has (period, band) = {cube.shape[-4:-2]}, the model wants {len(self.periods)} periods "
                f"{self.periods} and {len(self.bands)} bands {self.bands}"
            )
        flat = cube.reshape(*cube.shape[:-4], self.channels, *cube.shape[-2:])
        missing = flat == NODATA
        x = flat.astype(np.float32)
        x -= np.asarray(self.mean, np.float32)[:, None, None]
        x /= np.asarray(self.std, np.float32)[:, None, None]
        x[missing] = 0.0
        return x, ~missing.all(axis=-3)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``model.json``."""
        return {**asdict(self), "unit": UNIT, "nodata": NODATA}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputSpec:
        """The inverse of `to_dict`.

        Raises
        ------
        ModelError
            If the unit or nodata differ from this version's, or a key is missing.
        """
        if values.get("unit") != UNIT or values.get("nodata") != NODATA:
            raise ModelError(
                f"the model wants unit {values.get('unit')!r} with nodata {values.get('nodata')!r}; "
                f"this geoflow makes {UNIT!r} with nodata {NODATA}"
            )
        try:
            parts = {k: tuple(values[k]) for k in ("bands", "periods", "mean", "std")}
        except KeyError as missing:
            raise ModelError(f"the model's input description lacks {missing}") from None
        return cls(**parts)


def channel_statistics(
    cubes: Sequence[NDArray[np.int16]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel over samples, ignoring nodata.

    Parameters
    ----------
    cubes : sequence of int16 arrays, dims (period, band, y, x)

    Returns
    -------
    mean, std : tuples of float, one value a channel (period by period, band by band)
        Summed in float64 over all samples at once; a channel with no observation gets mean 0 and std 1.
    """
    channels = cubes[0].shape[0] * cubes[0].shape[1]
    count, total, squares = (np.zeros(channels) for _ in range(3))
    for cube in cubes:
        flat = cube.reshape(channels, -1)
        seen = flat != NODATA
        values = np.where(seen, flat, 0).astype(np.float64)
        count += seen.sum(axis=1)
        total += values.sum(axis=1)
        squares += (values**2).sum(axis=1)
    n = np.maximum(count, 1)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
    std = np.where((count > 0) & (std > 0), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
