"""The map of how often the scenes of a job see its area: a panel for each epoch and period."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from geoflow.counting import counted
from geoflow.jobs.coverage import Coverage
from geoflow.jobs.figures import percent
from geoflow.jobs.mapkey import Entry, Key, Section
from geoflow.jobs.mapsheet import INK, Paper, Texts, arrange
from geoflow.jobs.quicklook import Extent

# What no scene sees must stand out; the rest from few to many, readable in grey and by the colour-blind (ColorBrewer).
_STEPS: tuple[tuple[int, tuple[int, int, int]], ...] = (
    (0, (202, 0, 32)),
    (1, (255, 255, 204)),
    (2, (199, 233, 180)),
    (3, (127, 205, 187)),
    (5, (65, 182, 196)),
    (8, (44, 127, 184)),
    (13, (37, 52, 148)),
)
_MOST_VALUES = 4  # columns of figures that the key has room for


def draw_coverage(found: Sequence[Coverage], area: Geometry, title: str, attribution: str, path: Path) -> None:
    """Draw the number of passes that see each place, with the border of the area.

    Parameters
    ----------
    found : sequence of Coverage
        In the order of the panels; at least one.
    area : Geometry
        In any CRS.
    title, attribution : str
    path : Path
        The PNG; replaced as a whole or not at all.
    """
    geobox = found[0].geobox
    box, crs = geobox.boundingbox, CRS(str(geobox.crs))
    name = f"{crs.proj.name} (EPSG:{crs.epsg})" if crs.epsg else crs.proj.name
    subtitle = f"Passes that see each place, clouds not counted, {_epochs(found)}  ·  {name}, coordinates in km"
    texts = Texts(title, subtitle, attribution)
    rows, columns = geobox.shape
    # Two rows for several epochs, each of whole epochs.
    per_epoch = max(1, len(found) // len({one.epoch for one in found}))
    first = math.ceil(len({one.epoch for one in found}) / 2) * per_epoch if len(found) > per_epoch else 0
    sheet = arrange(rows / columns, first, len(found) - first, coverage_key(found), texts)
    extent: Extent = (box.left, box.right, box.bottom, box.top)
    paper = Paper(sheet, texts, extent)
    border = area.to_crs(crs, resolution=math.inf)
    for place, one in zip(sheet.panels, found, strict=True):
        held = f"{counted(one.scenes, 'scene')} of {counted(one.passes, 'pass')}"
        note = f"{held}; at least {one.least}, median {one.median:g}"
        axes = paper.panel(place, _picture(one), extent, f"{one.epoch} {one.period}", note)
        for ring in _rings(border.geom):
            axes.plot(ring[:, 0], ring[:, 1], color=INK, linewidth=0.7)
    paper.scale_bars()
    paper.key()
    paper.save(path)


def _epochs(found: Sequence[Coverage]) -> str:
    return ", ".join(dict.fromkeys(one.epoch for one in found))


def _picture(one: Coverage) -> NDArray[np.uint8]:
    """Counts as colours, dims (y, x, 4); transparent outside the area."""
    most = int(one.counts.max(initial=0))
    table = np.zeros((most + 1, 4), np.uint8)
    for start, colour in _STEPS:
        table[start:] = (*colour, 255)
    image = table[one.counts]
    image[~one.inside] = 0
    return image


def coverage_key(found: Sequence[Coverage]) -> Key:
    """Steps with the share of the area that has so many."""
    heads = tuple(_short(one, found) for one in found) if len(found) <= _MOST_VALUES else ()
    starts = [start for start, _ in _STEPS]
    most = max(n for one in found for n in one.shares)
    entries = []
    for (start, colour), end in zip(_STEPS, [*starts[1:], None], strict=True):
        shares = [sum(s for n, s in one.shares.items() if n >= start and (end is None or n < end)) for one in found]
        if not any(shares):
            continue
        values = tuple(percent(share) if share else "–" for share in shares) if heads else ()
        said = end if end is None else min(end, most + 1)  # no "3 to 4" where nothing is seen four times
        entries.append(Entry(_step(start, said), swatches=(colour,), values=values))
    caption = "Passes, % of the area" if heads else "Passes that see a place"
    return Key((Section(caption, tuple(entries), heads, value_width=0.62),))


def _short(one: Coverage, found: Sequence[Coverage]) -> str:
    """What tells a panel from the others, in few letters."""
    epochs, periods = {f.epoch for f in found}, {f.period for f in found}
    if len(epochs) == 1:
        return one.period[:8]
    return one.epoch[:8] if len(periods) == 1 else f"{one.epoch[-4:]} {one.period[:2]}."


def _step(start: int, end: int | None) -> str:
    if start == 0:
        return "none"
    if end is None:
        return f"{start} and more"
    return str(start) if end == start + 1 else f"{start} to {end - 1}"


def _rings(shape: Any) -> list[NDArray[np.float64]]:
    polygons = [part for part in getattr(shape, "geoms", [shape]) if part.geom_type == "Polygon"]
    return [np.asarray(ring.coords)[:, :2] for p in polygons for ring in (p.exterior, *p.interiors)]
