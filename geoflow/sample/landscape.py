"""The truth: which land cover lies where, in 2018 and in 2024, as a function of position and seed.

`Landscape.survey` answers for any window of 10 m pixels (or every n-th pixel) of the sample country's frame, with no memory of
other windows. Codes are CORINE level 3. What the pixels are made of is decided in `geoflow.sample.paint`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoflow.sample import noise as nz
from geoflow.sample.noise import Float, Uint

PIXEL_M = 10.0
Codes = NDArray[np.uint16]


@dataclass(frozen=True)
class Fields:
    """The random fields of a window that land cover and materials share; float32 or uint32, dims (y, x).

    ``agri`` high is farmed land, ``wet`` high is wet, ``conifer`` high is conifers, ``height`` is metres above the sea in
    arbitrary scale; ``parcel``, ``stand``, ``block`` name fields, forest stands and farms.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    ys: NDArray[np.float64]
    xs: NDArray[np.float64]
    y: Float
    x: Float
    height: Float
    agri: Float
    agri_wide: Float
    fine: Float
    wet: Float
    conifer: Float
    mosaic: Float
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

    def key(self, n: int) -> int:
        """The hash key of the n-th random thing of this seed."""
        return (self.seed * 7919 + n * 104729) & 0x7FFFFFFF

    def axes(self, y: slice, x: slice, step: int) -> tuple[NDArray[np.int64], ...]:
        """Pixel numbers of a window."""
        return np.arange(y.start, y.stop, step), np.arange(x.start, x.stop, step)

    def height(self, ys: NDArray[np.float64], xs: NDArray[np.float64]) -> Float:
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

    def _islands(self, ys: NDArray[np.float64], xs: NDArray[np.float64]) -> Float:
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
        fine = nz.fbm(ys, xs, (420, 200, 90), k(11), 0.7)
        wide = nz.fbm(ys, xs, (3600, 1800, 900), k(12), 0.65)
        warp_y, warp_x = nz.noise(ys, xs, 260, k(13)) * 45, nz.noise(ys, xs, 260, k(14)) * 45
        gy, gx = (a.astype(np.float32) for a in np.meshgrid(ys, xs, indexing="ij"))
        block = nz.cells(gy + warp_y, gx + warp_x, 850, k(15)).id
        stand = nz.cells(gy + warp_y, gx + warp_x, 210, k(16)).id
        return Fields(
            rows=rows,
            cols=cols,
            ys=ys,
            xs=xs,
            y=gy,
            x=gx,
            height=self.height(ys, xs),
            agri=wide + 0.42 * fine,
            agri_wide=wide,
            fine=fine,
            wet=nz.fbm(ys, xs, (2400, 1200, 600, 250), k(17), 0.6),
            conifer=nz.fbm(ys, xs, (2100, 1000, 450, 180), k(18), 0.62),
            mosaic=nz.fbm(ys, xs, (2000, 1000, 400), k(19), 0.6),
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
        """Land cover of a window in both epochs."""
        f = self.fields(y, x, step)
        code = self._countryside(f)
        farmed = np.isin(code, (211, 231, 242, 243, 222))
        self._settle(f, code, farmed)
        self._water(f, code)
        self._roads(f, code)
        return Survey(code, self._changed(f, code), f)

    # -- the countryside -------------------------------------------------------------------------------------------

    def _countryside(self, f: Fields) -> Codes:
        """Farmland, mosaics, forest, heath and wetland, before anything is built."""
        code = self._forest(f)
        self._farmland(f, code)
        self._nature(f, code)
        return code

    def _forest(self, f: Fields) -> Codes:
        """Conifers, broad leaves, real mixtures of both, and stands that grow back after a cut."""
        c = f.conifer - 0.25 * f.wet
        code = np.where(c > 0.33, 312, np.where(c < -0.62, 311, 313)).astype(np.uint16)
        lot = nz.unit(nz.mix(f.stand, 21))
        np.putmask(code, lot < 0.07, 324)
        young = nz.unit(nz.mix(f.block, 22)) < 0.05
        np.putmask(code, young & (lot < 0.75), 324)
        return code

    def _farmland(self, f: Fields, code: Codes) -> None:
        """Arable land and pastures by parcels, orchards, and the two mosaics of the CORINE legend."""
        dry = f.wet < 1.5
        farmed = (f.agri > 0.16) & dry
        lot_block, lot = nz.unit(nz.mix(f.block, 31)), nz.unit(nz.mix(f.parcel, 32))
        grassy = (lot_block < 0.27) | (f.wet > 0.9)
        pasture = np.where(grassy, lot < 0.88, lot < 0.09)
        np.copyto(code, np.where(pasture, 231, 211).astype(np.uint16), where=farmed)
        np.putmask(code, farmed & (lot_block > 0.975) & (lot < 0.85), 222)
        strips = (f.mosaic > 1.15) & (f.agri_wide > 0.10) & dry & (f.agri > 0.0)
        np.putmask(code, strips, 242)
        fringe = (np.abs(f.agri_wide - 0.10 + 0.12 * f.fine) < 0.33) & (f.mosaic < -0.12) & dry
        np.putmask(code, fringe, 243)

    def _nature(self, f: Fields, code: Codes) -> None:
        """Bogs, marshes, heath, natural grassland and the shore."""
        apart = f.agri < 0.30
        np.putmask(code, (f.wet > 1.42) & apart, 322)
        np.putmask(code, (f.wet > 1.55) & apart, 412)
        np.putmask(code, (f.wet > 1.75) & ~apart, 411)
        meadow = (f.mosaic > 1.05) & (f.agri_wide < 0.05) & (f.conifer < 0.4)
        np.putmask(code, meadow, 321)
        if not self.coast:
            return
        shore = f.height + 0.05 * f.fine
        np.putmask(code, (shore < 0.30) & (f.conifer < 0.5), 321)
        np.putmask(code, (shore < 0.17) & (f.wet > 0.35), 421)
        np.putmask(code, (shore < 0.11) & (f.wet <= 0.2), 331)

    # -- what people built -----------------------------------------------------------------------------------------

    def _settle(self, f: Fields, code: Codes, farmed: NDArray[np.bool_]) -> None:
        """Towns with a core, suburbs, works, parks and sports grounds; villages and farms; pits."""
        k = self.key
        town = nz.cells(f.y, f.x, 5600, k(41), jitter=0.30)
        reach = town.distance * (1 + 0.22 * f.fine)
        radius = 420 + 900 * nz.unit(nz.mix(town.id, 1)) ** 2
        dry = (f.wet < 1.5) & (f.height > 0.12)
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
        basin = nz.fbm(f.ys, f.xs, (2600, 1200, 500, 200), k(51), 0.55)
        np.putmask(code, (basin > 1.78) & (f.fine > -0.2) & (f.height > 0.2), 411)
        lake = (basin > 1.92) & (f.height > 0.2)
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
        grown = np.where(f.conifer > 0.33, 312, np.where(f.conifer < -0.62, 311, 313)).astype(np.uint16)
        np.copyto(after, grown, where=shrub & (stand_lot < 0.22))
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
