"""The satellite passes over the sample country: dates, weather, products, and how wrong their metadata are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True)
class Product:
    """One processing of a datatake.

    ``offset`` is what the stored pixels hold above 10000 x reflectance (0 or 1000); ``flag`` is what the item's
    ``earthsearch:boa_offset_applied`` claims. ``exceptions`` holds (offset, flag) of single UTM zones.
    """

    baseline: str
    generated: str
    sequence: int = 0
    offset: int = 0
    flag: bool = True
    exceptions: tuple[tuple[int, int, bool], ...] = ()

    def state(self, zone: int) -> tuple[int, bool]:
        """(offset in the pixels, flag) of the item in a UTM zone."""
        for where, offset, flag in self.exceptions:
            if where == zone:
                return offset, flag
        return self.offset, self.flag


@dataclass(frozen=True)
class Take:
    """One pass: ``cloud`` is the share of the country under cloud, ``swath`` the share beyond the edge of the swath."""

    epoch: int
    day: str
    platform: str
    orbit: int
    cloud: float
    haze: float
    swath: float
    products: tuple[Product, ...]

    @property
    def date(self) -> date:
        """The day of sensing."""
        return date.fromisoformat(self.day)

    @property
    def doy(self) -> int:
        """Day of the year."""
        return self.date.timetuple().tm_yday

    @property
    def sensed(self) -> str:
        """Time of sensing as in product names."""
        return f"{self.day.replace('-', '')}T09{30 + self.orbit % 20:02d}31"

    @property
    def sun_elevation(self) -> float:
        """Degrees above the horizon, near enough for latitude 58.5 in the late morning."""
        return 31.5 + 21.0 - abs(self.doy - 172) ** 1.5 * 0.0105

    @property
    def sun_azimuth(self) -> float:
        """Degrees from north."""
        return 164.0 + (self.doy - 100) * 0.02


def _old(baseline: str, generated: str) -> Product:
    return Product(baseline, generated, flag=False)


TAKES: tuple[Take, ...] = (
    Take(2018, "2018-04-27", "S2A", 136, 0.09, 0.6, 0.0, (_old("02.07", "20180427T124213"),)),
    Take(
        2018, "2018-05-19", "S2B", 93, 0.05, 0.3, 0.0,
        (_old("02.08", "20180519T130541"), Product("05.00", "20230811T041927", 1)),
    ),
    Take(2018, "2018-06-11", "S2A", 136, 0.72, 0.9, 0.0, (_old("02.08", "20180611T115702"),)),
    Take(2018, "2018-07-16", "S2B", 93, 0.03, 0.2, 0.0, (_old("02.08", "20180716T122036"),)),
    Take(2018, "2018-08-24", "S2A", 136, 0.16, 0.5, 0.17, (_old("02.08", "20180824T121544"),)),
    Take(
        2024, "2024-04-24", "S2B", 93, 0.06, 0.5, 0.0,
        (Product("05.10", "20240424T125807", exceptions=((35, 0, False),)),),
    ),
    Take(
        2024, "2024-05-20", "S2A", 136, 0.14, 0.3, 0.17,
        (Product("05.10", "20240520T150214", exceptions=((34, 1000, False),)),),
    ),
    Take(
        2024, "2024-07-14", "S2B", 93, 0.04, 0.2, 0.0,
        (Product("05.09", "20240714T121911"), Product("05.10", "20240715T024455", 1)),
    ),
    Take(2024, "2024-08-08", "S2A", 136, 0.68, 0.9, 0.0, (Product("05.11", "20240808T144350"),)),
    Take(
        2024, "2024-09-06", "S2B", 93, 0.11, 0.6, 0.0,
        (Product("05.11", "20240906T123233", exceptions=((34, 1000, True),)),),
    ),
)  # fmt: skip
