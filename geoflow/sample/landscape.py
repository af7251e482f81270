"""The truth: which land cover lies where, in 2018 and in 2024, as a function of position and seed.

`Landscape.survey` answers for any window of 10 m pixels (or every n-th pixel) of the sample country's frame, with no
memory of other windows. Codes are CORINE level 3. What the pixels are made of is decided in `geoflow.sample.paint`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from geoflow.sample import noise as nz
from geoflow.sample.noise import Float, Uint

PIXEL_M = 10.0
Codes = NDArray[np.uint16]


@dataclass(frozen=True)
class Fields:
    """The random fields of a window that land cover and materials share; float32 or uint32, dims (y, x).

    ``agri`` high is farmed land, ``wet`` high is wet, ``conifer`` high is conifers, ``height`` is metres above the
    sea in arbitrary scale; ``parcel``, ``stand``, ``block`` name fields, forest stands and farms.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    ys: NDArray[np.floating[Any]]
    xs: NDArray[np.floating[Any]]
    y: Float
    x: Float
    height: Float
    agri: Float
    agri_wide: Float
    fine: Float
    wet: Float
    conifer: Float
    mosaic: Float
    basin: Float
    parcel: Uint
    stand: Uint
    block: Uint


@dataclass(frozen=True)
class Survey:
    """Land cover of a window: codes of both epochs, and the fields that they came from; dims (y, x)."""

    before: Codes
    after: Codes
    fields: Fields


@dataclass(frozen=True)
class Levels:
    """Thresholds of the fields, set so that every seed's country has about the same shares of land cover."""

    farmed: float
    strips_agri: float
    strips: float
    fringe_low: float
    fringe_high: float
    fringe_mosaic: float
    bog: float
    heath: float
    lake: float
    reeds: float
    conifers: float
    broadleaves: float
    meadow: float
    meadow_agri: float


@dataclass(frozen=True)
class Landscape:
    """A synthetic ground.

    Parameters
    ----------
    seed : int
        Another seed is another country.
    height_m, width_m : float
        The frame; the sea lies at its western end.
    coast : bool
        Without it there is no sea, as for the ground of the labelled patches far from the country.
    burnt : tuple of (y, x, radius) in m
        Where the fires between the epochs were.
    """

    seed: int
    height_m: float
    width_m: float
    coast: bool = True
    burnt: tuple[tuple[float, float, float], ...] = ()
    levels: Levels | None = None

    @classmethod
    def found(cls, seed: int, height_m: float, width_m: float, coast: bool = True) -> Landscape:
        """A landscape whose thresholds give the wanted shares over its frame, and with its fires."""
        bare = cls(seed, height_m, width_m, coast)
        step = max(8, round(max(height_m, width_m) / PIXEL_M / 256))
        window = slice(0, int(height_m / PIXEL_M)), slice(0, int(width_m / PIXEL_M))
        levelled = replace(bare, levels=_levels(bare.fields(*window, step)))
        return replace(levelled, burnt=_fires(levelled, window, step))

    def key(self, n: int) -> int:
        """The hash key of the n-th random thing of this seed."""
        return (self.seed * 7919 + n * 104729) & 0x7FFFFFFF

    def axes(self, y: slice, x: slice, step: int) -> tuple[NDArray[np.int64], ...]:
        """Pixel numbers of a window."""
        return np.arange(y.start, y.stop, step), np.arange(x.start, x.stop, step)

    def height(self, ys: NDArray[np.floating[Any]], xs: NDArray[np.floating[Any]]) -> Float:
        """Height above the sea, about -3 to 3; 0 is the coast. Islands lie off the coast."""
        k = self.key
        relief = nz.fbm(ys, xs, (9000, 4500, 2200, 1100, 500), k(1), 0.55)
        detail = nz.fbm(ys, xs, (240, 110), k(2))
        if not self.coast:
            return 1.2 + 0.2 * relief + 0.02 * detail
        west = 0.13 * self.width_m
        inland = ((xs - west) / 1500.0).astype(np.float32)[None, :]
        rise = 1.6 * inland / np.sqrt(1 + inland * inland)
        wavy = 0.8 * nz.fbm(ys, xs, (3600, 1500, 700), k(3))
        land = rise + wavy + 0.18 * relief * (inland > 0) + 0.03 * detail
        return np.maximum(land, self._islands(ys, xs) + 0.12 * wavy + 0.04 * detail).astype(np.float32)

    def _islands(self, ys: NDArray[np.floating[Any]], xs: NDArray[np.floating[Any]]) -> Float:
        """Height of three islands, positive on them."""
        out = np.full((len(ys), len(xs)), -9.0, np.float32)
        for fy, fx, radius in ((0.22, 0.030, 620.0), (0.56, 0.022, 480.0), (0.83, 0.035, 560.0)):
            dy = ((ys - fy * self.height_m) / radius).astype(np.float32)[:, None]
            dx = ((xs - fx * self.width_m) / radius).astype(np.float32)[None, :]
            np.maximum(out, 0.9 - 0.9 * np.sqrt(dy * dy + dx * dx), out=out)
        return out

    def fields(self, y: slice, x: slice, step: int = 1) -> Fields:
        """The fields of the window of pixels ``y``, ``x`` (pixel numbers from the north-west corner of the frame)."""
        k = self.key
        rows, cols = self.axes(y, x, step)
        ys, xs = (rows + 0.5) * PIXEL_M, (cols + 0.5) * PIXEL_M
        fine = nz.fbm(ys, xs, (420, 200, 90), k(11), 0.6)
        wide = nz.fbm(ys, xs, (4000, 2000), k(12), 0.5)
        warp_y, warp_x = nz.noise(ys, xs, 260, k(13)) * 45, nz.noise(ys, xs, 260, k(14)) * 45
        gy, gx = (a.astype(np.float32) for a in np.meshgrid(ys, xs, indexing="ij"))
        block = nz.cells(gy + warp_y, gx + warp_x, 1250, k(15)).id
        stand = nz.cells(gy + warp_y, gx + warp_x, 210, k(16)).id
        return Fields(
            rows=rows,
            cols=cols,
            ys=ys,
            xs=xs,
            y=gy,
            x=gx,
            height=self.height(ys, xs),
            agri=_with_islets(wide + 0.12 * fine, nz.noise(ys, xs, 360, k(21))),
            agri_wide=wide,
            fine=fine,
            wet=nz.fbm(ys, xs, (2400, 1200), k(17), 0.42) - 0.4 * wide + 0.05 * fine,
            conifer=nz.fbm(ys, xs, (3000, 1400), k(18), 0.4) + 0.05 * fine,
            mosaic=nz.fbm(ys, xs, (2300, 1100), k(19), 0.42),
            basin=nz.fbm(ys, xs, (2000, 900), k(51), 0.42) + 0.05 * fine,
            parcel=self._parcels(gy, gx, block),
            stand=stand,
            block=block,
        )

    def _parcels(self, gy: Float, gx: Float, block: Uint) -> Uint:
        """Rectangular fields; each farm block has its own direction and size of parcels."""
        angle = (nz.unit(nz.mix(block, 3)) * 2 - 1) * np.float32(0.95)
        size = nz.unit(nz.mix(block, 4))
        return nz.bricks(gy, gx, angle, 190 + 260 * size, 95 + 130 * size, self.key(20), block)

    def survey(self, y: slice, x: slice, step: int = 1) -> Survey:
        """Land cover of a window in both epochs.

        Raises
        ------
        ValueError
            If the landscape was not made with `found`.
        """
        f = self.fields(y, x, step)
        code = self._countryside(f)
        farmed = np.isin(code, (211, 231, 242, 243, 222))
        self._settle(f, code, farmed)
        self._water(f, code)
        self._roads(f, code)
        return Survey(code, self._changed(f, code), f)

    # -- the countryside -------------------------------------------------------------------------------------------

    @property
    def _at(self) -> Levels:
        if self.levels is None:
            raise ValueError("a landscape is made with Landscape.found")
        return self.levels

    def _forest_types(self, f: Fields) -> Codes:
        """Conifers, broad leaves, and real mixtures of both."""
        at = self._at
        return np.where(f.conifer > at.conifers, 312, np.where(f.conifer < at.broadleaves, 311, 313)).astype(np.uint16)

    def _countryside(self, f: Fields) -> Codes:
        """Farmland, mosaics, forest, heath and wetland, before anything is built."""
        code = self._forest_types(f)
        lot = nz.unit(nz.mix(f.stand, 21))
        np.putmask(code, lot < 0.010, 324)
        young = nz.unit(nz.mix(f.block, 22)) < 0.12
        np.putmask(code, young & (lot < 0.92), 324)
        self._farmland(f, code)
        self._nature(f, code)
        return code

    def _farmland(self, f: Fields, code: Codes) -> None:
        """Arable land and pastures by parcels, orchards, and the two mosaics of the CORINE legend."""
        at = self._at
        farmed = f.agri > at.farmed
        lot_block, lot = nz.unit(nz.mix(f.block, 31)), nz.unit(nz.mix(f.parcel, 32))
        grassy = lot_block < 0.32
        pasture = np.where(grassy, lot < 0.975, lot < 0.02)
        np.copyto(code, np.where(pasture, 231, 211).astype(np.uint16), where=farmed)
        np.putmask(code, farmed & (lot_block > 0.982) & (lot < 0.9), 222)
        np.putmask(code, (f.mosaic > at.strips) & (f.agri > at.strips_agri), 242)
        edge = f.agri_wide + 0.05 * f.fine
        fringe = (edge > at.fringe_low) & (edge < at.fringe_high) & (f.mosaic < at.fringe_mosaic)
        np.putmask(code, fringe, 243)

    def _nature(self, f: Fields, code: Codes) -> None:
        """Bogs, heath, natural grassland and the shore."""
        at = self._at
        np.putmask(code, f.wet > at.heath, 322)
        np.putmask(code, f.wet > at.bog, 412)
        np.putmask(code, (f.mosaic > at.meadow) & (f.agri_wide < at.meadow_agri), 321)
        if not self.coast:
            return
        shore = f.height + 0.05 * f.fine
        np.putmask(code, (shore < 0.24) & (f.conifer < 0.3), 321)
        np.putmask(code, (shore < 0.17) & (f.wet > 0.4), 421)
        np.putmask(code, (shore < 0.09) & (f.wet <= 0.3), 331)

    # -- what people built -----------------------------------------------------------------------------------------

    def _settle(self, f: Fields, code: Codes, farmed: NDArray[np.bool_]) -> None:
        """Towns with a core, suburbs, works, parks and sports grounds; villages and farms; pits."""
        k = self.key
        town = nz.cells(f.y, f.x, 5600, k(41), jitter=0.30)
        reach = town.distance * (1 + 0.22 * f.fine)
        radius = 420 + 900 * nz.unit(nz.mix(town.id, 1)) ** 2
        dry = (f.wet < self._at.heath) & (f.height > 0.12)
        np.putmask(code, (reach < radius) & dry, 112)
        quarter = nz.unit(nz.mix(f.stand, 42))
        ring = (reach < 1.12 * radius) & dry
        np.putmask(code, ring & (reach > 0.55 * radius) & (nz.unit(nz.mix(f.block, 43)) < 0.42), 121)
        np.putmask(code, ring & (quarter > 0.93), 141)
        np.putmask(code, ring & (quarter < 0.05), 142)
        np.putmask(code, (reach < 0.34 * radius) & (radius > 560) & dry, 111)
        village = nz.cells(f.y, f.x, 1150, k(44), jitter=0.36)
        lot = nz.unit(nz.mix(village.id, 2))
        small = np.where(lot < 0.5, 45 + 110 * lot, np.where(lot > 0.86, 230.0, 0.0))
        np.putmask(code, (village.distance * (1 + 0.35 * f.fine) < small) & (f.agri > -0.5) & dry, 112)
        pit = nz.cells(f.y, f.x, 3700, k(45), jitter=0.33)
        hole = 130 + 300 * nz.unit(nz.mix(pit.id, 3))
        inside = (pit.distance * (1 + 0.3 * f.fine) < hole) & dry & (nz.unit(nz.mix(pit.id, 4)) < 0.55)
        np.putmask(code, inside, 131)

    def _water(self, f: Fields, code: Codes) -> None:
        """Lakes with reedy shores, ponds, rivers as level curves of a field, and the sea."""
        k = self.key
        at = self._at
        np.putmask(code, (f.basin > at.reeds) & (f.fine > -0.3) & (f.height > 0.2), 411)
        lake = (f.basin > at.lake) & (f.height > 0.2)
        pond = nz.cells(f.y, f.x, 900, k(52))
        lake |= (pond.distance * (1 + 0.3 * f.fine) < 20 + 60 * nz.unit(nz.mix(pond.id, 1))) & (
            nz.unit(nz.mix(pond.id, 2)) < 0.55
        )
        np.putmask(code, lake & ~np.isin(code, (111, 121)), 512)
        np.putmask(code, self._river(f), 511)
        if self.coast:
            np.putmask(code, f.height < 0, 523)

    def _river(self, f: Fields) -> NDArray[np.bool_]:
        """Where the zero line of a smooth field passes closer than half the river's width."""
        k = self.key
        flow = nz.fbm(f.ys, f.xs, (9500, 3800, 1300), k(53), 0.42)
        step_m = (f.ys[1] - f.ys[0]) if len(f.ys) > 1 else PIXEL_M
        gy, gx = np.gradient(flow, step_m)
        steep = np.sqrt(gy * gy + gx * gx) + 1e-5
        width = 22 + 48 * nz.rank(nz.noise(f.ys, f.xs, 5000, k(54)))
        return (np.abs(flow) < width * steep) & (f.height > 0)

    def _roads(self, f: Fields, code: Codes) -> None:
        """Roads along the borders of large cells; some with a railway beside them are wide enough for CORINE."""
        net = nz.cells(f.y, f.x, 4300, self.key(61), edges=True)
        pair = nz.mix(net.id ^ net.other, 5)
        lot = nz.unit(pair)
        half = np.where(lot < 0.18, 62.0, np.where(lot < 0.75, 11.0, 0.0))
        road = (net.edge * 0.5 < half) & (f.height > 0.05)
        np.putmask(code, road & ~np.isin(code, (512, 523, 412)), 122)

    # -- six years later -------------------------------------------------------------------------------------------

    def _changed(self, f: Fields, before: Codes) -> Codes:
        """Clear-cuts, regrowth, new built-up land, flooded pits, a fire."""
        after = before.copy()
        stand_lot, parcel_lot = nz.unit(nz.mix(f.stand, 71)), nz.unit(nz.mix(f.parcel, 72))
        forest = np.isin(before, (311, 312, 313))
        np.putmask(after, forest & (stand_lot < 0.050), 324)
        shrub = before == 324
        np.copyto(after, self._forest_types(f), where=shrub & (stand_lot < 0.16))
        self._built(f, before, after, parcel_lot)
        pit_lot = nz.unit(nz.mix(nz.cells(f.y, f.x, 170, self.key(73)).id, 6))
        np.putmask(after, (before == 131) & (pit_lot < 0.20), 512)
        for y, x, radius in self.burnt:
            d = np.sqrt((f.y - y) ** 2 + (f.x - x) ** 2) * (1 + 0.25 * f.fine)
            np.putmask(after, (d < radius) & np.isin(before, (311, 312, 313, 321, 322, 324)), 334)
        return after

    def _built(self, f: Fields, before: Codes, after: Codes, lot: Float) -> None:
        """Parcels around towns that became suburbs, works or building sites."""
        town = nz.cells(f.y, f.x, 5600, self.key(41), jitter=0.30)
        radius = 420 + 900 * nz.unit(nz.mix(town.id, 1)) ** 2
        near = (town.distance < 2.4 * radius) & np.isin(before, (211, 231, 242))
        new = np.where(lot < 0.035, 112, np.where(lot < 0.055, 121, 133)).astype(np.uint16)
        np.copyto(after, new, where=near & (lot < 0.07))
        far = ~near & np.isin(before, (211, 231))
        np.putmask(after, far & (lot > 0.996), 112)


def _with_islets(agri: Float, islet: Float) -> Float:
    """Groves in the fields and clearings in the forest, of some hectares each, which no CORINE map shows."""
    return agri + np.where(islet > 1.8, -2.5, np.where(islet < -1.8, 2.5, 0.0)).astype(np.float32)


def _levels(f: Fields) -> Levels:
    """Thresholds from a coarse survey of the whole frame."""
    land = f.height > 0.1

    def q(field: Float, share: float) -> float:
        return float(np.quantile(field[land], share))

    edge = f.agri_wide + 0.05 * f.fine
    return Levels(
        farmed=q(f.agri, 0.61), strips_agri=q(f.agri, 0.58), strips=q(f.mosaic, 0.90),
        fringe_low=q(edge, 0.43), fringe_high=q(edge, 0.67), fringe_mosaic=q(f.mosaic, 0.48),
        bog=q(f.wet, 0.955), heath=q(f.wet, 0.936), lake=q(f.basin, 0.983), reeds=q(f.basin, 0.973),
        conifers=q(f.conifer, 0.60), broadleaves=q(f.conifer, 0.27),
        meadow=q(f.mosaic, 0.94), meadow_agri=q(f.agri_wide, 0.45),
    )  # fmt: skip


def _fires(land: Landscape, window: tuple[slice, slice], step: int) -> tuple[tuple[float, float, float], ...]:
    """Centres and radii (m) of fires, one for about every 400 km2, each where there is most forest or heath to burn."""
    before = land.survey(*window, step).before
    fuel = np.isin(before, (311, 312, 313, 321, 322, 324)).astype(np.float32)
    density = ndimage.uniform_filter(fuel, max(3, 60 // step), mode="constant")
    height, width = density.shape
    inner = density[height // 6 : -height // 6]
    count = max(1, round(land.height_m * land.width_m * 1e-6 / 400))
    fires = []
    for columns in np.array_split(np.arange(width // 5, width - width // 8), count):
        r, c = np.unravel_index(int(inner[:, columns].argmax()), (inner.shape[0], len(columns)))
        fires.append((float(r + height // 6) * step * PIXEL_M, float(columns[c]) * step * PIXEL_M, 300.0))
    return tuple(fires)
