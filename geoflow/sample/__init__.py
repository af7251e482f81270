"""The sample country: a synthetic ground with a known truth, seen by a synthetic Sentinel-2.

Everything here is made up, by seed, and says so. It is the embedded default of geoflow, and the yardstick of its
accuracy claims: `geoflow.sample.difficulty` measures how hard it is.
"""

from __future__ import annotations

from geoflow.sample.make import make_sample

__all__ = ["make_sample"]
