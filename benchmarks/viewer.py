"""How long it takes to look at a country: overviews made, the whole country opened, a map dragged.

    python benchmarks/viewer.py [--size small|tile] [--json FILE]

overviews  all of them, of a map's classes and confidence, in one process; Mpx/s count pixels at full resolution
ours       the page opened on the whole country in Chromium, until all is drawn and hectares are counted
usual      the same without overviews: the page reads every chunk

Frames are those of a drag of 1.5 s over the map at full resolution, and more than two screens wide.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from measuring import Row, command_line, measure, report
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from playwright.sync_api import Page, sync_playwright
from scipy.ndimage import uniform_filter

from geoflow.grid import Grid
from geoflow.jobs.layout import map_group
from geoflow.jobs.overviews import Overviews
from geoflow.jobs.tasks import Task
from geoflow.legends import legend
from geoflow.store.zarr import Group, Store
from geoflow.viewer.facts import Facts
from geoflow.viewer.server import ViewerServer

SIZES = {"small": (4096, 2), "tile": (16384, 1)}  # edge in pixels, repeats
TILE, CHUNK = 2048, 512

SETTLED = """async () => {
  await new Promise((done) => { viewer.map.once('rendercomplete', done); viewer.map.render(); });
  await Promise.all(viewer.legendPanels.map((panel) => panel.counting));
}"""
DRAGGED = """async () => {
  const times = [], [x, y] = viewer.view.getCenter(), step = viewer.view.getResolution();
  let last = performance.now();
  const frame = () => { times.push(performance.now() - last); last = performance.now(); };
  viewer.map.on('postrender', frame);
  const center = [x + 2600 * step, y + 600 * step];
  await new Promise((done) => viewer.view.animate({center, duration: 1500, easing: (t) => t}, done));
  viewer.map.un('postrender', frame);
  return times.slice(1);
}"""


def main() -> None:
    """Run all variants, print a table, write JSON."""
    arguments = command_line(__doc__, SIZES)
    edge, repeats = SIZES[arguments.size]
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise SystemExit("no Chromium to look at pages with: install Debian's package chromium")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        store = make_store(Path(name) / "country.zarr", edge)
        page = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"]).new_page(
            viewport={"width": 1280, "height": 800}
        )
        usual = opened("usual", page, store, repeats)
        made = measure("overviews", lambda: make_overviews(store), edge**2, 1)
        ours = opened("ours", page, store, repeats)
        frames = sorted(dragged(page, store))
        heap = page.evaluate("() => performance.memory.usedJSHeapSize / 1e6")
    ratios = {
        "speed_over_usual": usual.seconds / ours.seconds,
        "frame_ms_median": frames[len(frames) // 2],
        "frame_ms_p95": frames[int(0.95 * len(frames))],
        "page_heap_mb": heap,
    }
    report(f"looking at a map of {edge} x {edge} px", [made, usual, ours], ratios, arguments.json)


def make_store(path: Path, edge: int) -> Store:
    """A map of patches some tens of pixels wide, of ten classes."""
    grid = Grid(GeoBox.from_bbox((5e6, 4e6, 5e6 + 10 * edge, 4e6 + 10 * edge), "EPSG:3035", resolution=10), TILE, CHUNK)
    store, corine = Store.create(path, grid), legend("corine")
    group = map_group("2018", corine, {})
    kept = tuple(v for v in group.variables if v.name.startswith("level") or v.name == "confidence")
    store.ensure_group(Group(group.path, kept, {}, group.attrs))
    codes = np.array([112, 211, 231, 242, 243, 311, 312, 313, 412, 512], np.uint16)
    for number, tile in enumerate(grid.tiles()):
        smooth = uniform_filter(np.random.default_rng(number).standard_normal(tile.shape, np.float32), 31)
        ranks: NDArray[np.intp] = np.digitize(smooth, np.quantile(smooth[::16, ::16], np.arange(0.1, 1, 0.1)))
        deepest = codes[ranks]
        levels = {f"level{n}": corine.to_level(deepest, n).astype(corine.dtype(n)) for n in corine.levels}
        store.write(group.path, tile, {**levels, "confidence": (50 + 5 * ranks).astype(np.uint8)})
    return store


def make_overviews(store: Store) -> None:
    """All of them, one task after the other."""
    layers = {"map/2018": {tile.id: "made" for tile in store.grid.tiles()}}
    stages = Overviews(store.path, store.grid, lambda: layers, lambda stage, key, _, work: Task(stage, key, "id", work))
    for stage in stages.stages():
        stage.prepare()
        for task in stage.tasks():
            task.work()


def opened(name: str, page: Page, store: Store, repeats: int) -> Row:
    """The page opened on the whole country."""

    def run() -> None:
        with ViewerServer(Facts(store.path)) as server:
            server.start()
            page.goto(server.address)
            page.wait_for_selector(".legend h2")
            page.evaluate(SETTLED)
            server.shutdown()

    return measure(name, run, store.grid.shape[0] * store.grid.shape[1], repeats)


def dragged(page: Page, store: Store) -> list[float]:
    """Milliseconds between frames of a drag at full resolution."""
    with ViewerServer(Facts(store.path)) as server:
        server.start()
        page.goto(f"{server.address}#view=5010000,4010000,10")
        page.wait_for_selector(".legend h2")
        page.evaluate(SETTLED)
        times: list[float] = page.evaluate(DRAGGED)
        server.shutdown()
    return times


if __name__ == "__main__":
    main()
