"""Maps to look at: what is drawn where, in which colour, and how little of a country is read for it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import dask.array as da
import matplotlib.image
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from geoflow.errors import LegendError
from geoflow.grid import Grid
from geoflow.inputs import NODATA
from geoflow.jobs import mapkey, mapsheet
from geoflow.jobs.figures import UNCHANGED_COLOUR, draw_change, draw_confidence, draw_map, hectares, percent
from geoflow.jobs.mapkey import Entry, Key, Section
from geoflow.jobs.mapsheet import NODATA_COLOUR, Box, Texts, arrange, round_length
from geoflow.jobs.quicklook import change_picture, class_picture, colours, quicklook, stride, true_colour
from geoflow.legends import Legend, legend
from geoflow.store.zarr import Group, Store, Variable

HEIGHT, WIDTH, RES = 240, 320, 10.0
NW, NE, SW = 311, 211, 512
BECAME = 112


def raster(values: Any, name: str = "codes", chunks: int | None = None, **leading: list[str]) -> xr.DataArray:
    """An array on a grid of 10 m, dims (..., y, x)."""
    if chunks is not None:
        values = da.from_array(values, chunks=(*values.shape[:-2], chunks, chunks))
    box = GeoBox(values.shape[-2:], Affine(RES, 0, 400_000, 0, -RES, 5_200_000), "EPSG:32633")
    return xr.DataArray(values, dims=(*leading, "y", "x"), coords={**leading, **xr_coords(box)}, name=name)


@pytest.fixture(scope="module")
def corine() -> Legend:
    return legend("corine")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, corine: Legend) -> Store:
    """Three quarters of a country, one class each; the south-east is nodata. A patch in the north-west changes."""
    box = GeoBox((HEIGHT, WIDTH), Affine(RES, 0, 400_000, 0, -RES, 5_200_000), "EPSG:32633")
    made = Store.create(tmp_path_factory.mktemp("figures") / "country.zarr", Grid(box, 128, 64))
    before = np.zeros((HEIGHT, WIDTH), np.uint16)
    before[: HEIGHT // 2, : WIDTH // 2], before[: HEIGHT // 2, WIDTH // 2 :] = NW, NE
    before[HEIGHT // 2 :, : WIDTH // 2] = SW
    after = before.copy()
    after[40:60, 40:80] = BECAME
    reflectance = np.full((1, 3, HEIGHT, WIDTH), NODATA, np.int16)
    for i, level in enumerate((300, 600, 900)):
        reflectance[0, i] = np.where(before > 0, level + (before == NE) * 1500, NODATA)
    for epoch, codes in (("2018", before), ("2024", after)):
        maps = {"level3": codes, "confidence": np.where(codes > 0, 95, 255).astype(np.uint8)}
        write(made, f"map/{epoch}", maps, {"confidence": 255})
        coords = {"period": ["summer"], "band": ["B02", "B03", "B04"]}
        write(made, f"imagery/{epoch}", {"reflectance": reflectance}, {"reflectance": NODATA}, coords)
    write(made, "labels/corine", {"level3": before}, {})
    changed = before != after
    state = np.where(before > 0, np.where(changed, 2, 1), 0).astype(np.uint8)
    codes = {"from_code": np.where(changed, before, 0), "to_code": np.where(changed, after, 0)}
    write(made, "change/2018-2024", {"change": state, **codes}, {})
    return made


def write(into: Store, group: str, arrays: dict[str, NDArray[Any]], nodata: dict[str, int], coords: Any = None) -> None:
    coords = coords or {}
    variables = tuple(
        Variable(name, str(values.dtype), nodata.get(name, 0), tuple(coords)) for name, values in arrays.items()
    )
    into.ensure_group(Group(group, variables, coords))
    for tile in into.grid.tiles():
        parts = {name: np.ascontiguousarray(values[..., tile.y, tile.x]) for name, values in arrays.items()}
        into.write(group, tile, parts)


def read_png(path: Path) -> NDArray[np.uint8]:
    return np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(np.uint8)


def drawn(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return (image == np.array(colour, np.uint8)).all(axis=-1)


def middle(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Median row and column: swatches in the key are too small to move it."""
    rows, cols = np.nonzero(mask)
    return int(np.median(rows)), int(np.median(cols))


# What is read


@given(
    height=st.integers(1, 70),
    width=st.integers(2, 70),
    max_px=st.integers(1, 80),
    chunks=st.one_of(st.none(), st.integers(1, 40)),
)
@settings(max_examples=60)
def test_quicklook_picks_and_never_invents(height: int, width: int, max_px: int, chunks: int | None) -> None:
    values = np.random.default_rng(height * 100 + width).integers(0, 9999, (2, height + 1, width)).astype(np.uint16)
    array = raster(values, chunks=chunks, band=["a", "b"])
    picked, extent = quicklook(array, max_px)
    step = stride(array, max_px)
    assert max(picked.shape[1:]) <= max_px
    assert picked.dtype == values.dtype
    first = min(step // 2, height // 2, (width - 1) // 2)
    np.testing.assert_array_equal(picked, values[:, first::step, first::step])
    left, right, bottom, top = extent
    assert (left, top) == (400_000, 5_200_000)
    assert right - left == picked.shape[2] * step * RES
    assert top - bottom == picked.shape[1] * step * RES
    assert abs((right - left) / RES - width) < step
    assert abs((top - bottom) / RES - (height + 1)) < step


def test_a_country_is_never_in_memory_whole() -> None:
    side, chunk = 5120, 256
    blocks = da.full((side, side), 311, dtype=np.uint16, chunks=chunk)
    array = raster(blocks)
    change = xr.Dataset(dict.fromkeys(("from_code", "to_code"), array) | {"change": array.astype(np.uint8)})
    for read in (lambda: quicklook(array), lambda: class_picture(array), lambda: change_picture(change)):
        tracemalloc.start()
        read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.5 * side * side * 2


def test_class_picture_counts_every_pixel() -> None:
    values = np.zeros((90, 130), np.uint16)
    values[:50], values[50, 3] = 311, 512
    picture = class_picture(raster(values, chunks=32), max_px=20)
    assert picture.pixels == {311: 50 * 130, 512: 1}
    np.testing.assert_array_equal(picture.codes, quicklook(raster(values, chunks=32), max_px=20)[0])


@pytest.mark.parametrize("chunks", [16, 50, None])
def test_a_changed_pixel_survives_decimation(chunks: int | None) -> None:
    shape = (101, 64)
    state = np.ones(shape, np.uint8)
    state[90:] = 0
    before, after = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
    for row, col, new in ((7, 5, 324), (88, 63, 512)):
        state[row, col], before[row, col], after[row, col] = 2, 312, new
    arrays = {"change": state, "from_code": before, "to_code": after}
    change = xr.Dataset({name: raster(values, name, chunks) for name, values in arrays.items()})
    picture = change_picture(change, max_px=10)
    step = stride(change["change"], 10)
    assert step == 11
    assert picture.transitions == {(312, 324): 1, (312, 512): 1}
    assert picture.observed == 90 * 64
    assert picture.state[7 // step, 5 // step] == 2
    assert picture.codes[7 // step, 5 // step] == 324
    assert picture.codes[88 // step, 63 // step] == 512
    assert (picture.codes > 0).sum() == 2
    assert picture.state[-1, 0] == 0
    assert picture.state[0, -1] == 1


def test_colours_are_the_legends_and_nodata_is_transparent(corine: Legend) -> None:
    painted = colours(np.array([[0, 311], [523, 111]], np.uint16), corine)
    assert painted[0, 0].tolist() == [0, 0, 0, 0]
    assert painted[0, 1].tolist() == [*corine.colour(311), 255]
    assert painted[1, 0].tolist() == [*corine.colour(523), 255]


def test_a_code_that_is_in_no_legend_is_an_error(corine: Legend) -> None:
    with pytest.raises(LegendError, match="999"):
        colours(np.array([[999]], np.uint16), corine)


def composite(bands: list[str], observed: tuple[int, ...]) -> xr.DataArray:
    """A period for each number: so many rows of it are observed. Band i is brighter than band i - 1."""
    cube = np.full((len(observed), len(bands), 20, 30), NODATA, np.int16)
    ramp = np.arange(30, dtype=np.int16) * 50
    for period, rows in enumerate(observed):
        for band in range(len(bands)):
            cube[period, band, :rows] = ramp if band == 0 else ramp[::-1]
    return raster(cube, "reflectance", None, period=[f"p{i}" for i in range(len(observed))], band=bands)


def test_true_colour_is_red_green_blue_of_the_fullest_period() -> None:
    picture, _, caption = true_colour(composite(["B04", "B08", "B03", "B02"], (5, 12, 7)))
    assert caption == "true colour, p1"
    assert (picture[:12, :, 3] == 255).all()
    assert (picture[12:, :, 3] == 0).all()
    assert picture[0, -1, :3].tolist() == [255, 0, 0]  # B04 rises to the right, the others fall
    assert picture[0, 0, :3].tolist() == [0, 255, 255]


def test_true_colour_takes_the_last_of_equal_periods() -> None:
    assert true_colour(composite(["B02", "B03", "B04"], (9, 9)))[2] == "true colour, p1"


def test_other_bands_are_named() -> None:
    assert true_colour(composite(["B08", "B11", "B04", "B02"], (9,)))[2] == "bands B08, B11, B04, p0"
    picture, _, caption = true_colour(composite(["B08", "B11"], (9,)))
    assert caption == "band B08, p0"
    assert (picture[..., 0] == picture[..., 2]).all()


def test_a_composite_of_nothing_is_transparent() -> None:
    picture, _, _ = true_colour(composite(["B02", "B03", "B04"], (0,)))
    assert (picture[..., 3] == 0).all()


# Where it goes


def some_key(entries: int, sections: int = 1) -> Key:
    names = "Land principally occupied by agriculture, with significant areas of natural vegetation"
    lines = tuple(Entry(names[: 10 + 7 * i % 75], str(100 + i), ((9, 9, 9),), ("1.0", "2.0")) for i in range(entries))
    return Key(tuple(Section("Share", lines, heads=("2018", "2024")) for _ in range(sections)))


def overlap(a: Box, b: Box) -> bool:
    across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    along = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return across > 1e-6 and along > 1e-6


@given(
    aspect=st.floats(0.15, 6),
    context=st.integers(0, 4),
    maps=st.integers(1, 3),
    entries=st.integers(1, 49),
    sections=st.integers(1, 2),
)
@settings(max_examples=80)
def test_nothing_overlaps(aspect: float, context: int, maps: int, entries: int, sections: int) -> None:
    texts = Texts("A rather long title of a map of a country " * 3, "level 3", "Attribution. " * 40)
    sheet = arrange(aspect, context, maps, some_key(entries, sections), texts)
    boxes = [*sheet.panels, sheet.key]
    assert len(sheet.panels) == context + maps
    for i, box in enumerate(boxes):
        assert box.x >= 0
        assert box.y > 0
        assert box.x + box.width <= sheet.width + 1e-6
        assert box.y + box.height < sheet.height
        assert not any(overlap(box, other) for other in boxes[i + 1 :])
    for panel in sheet.panels:
        assert panel.height == pytest.approx(aspect * panel.width)
    assert sheet.width <= mapsheet.PAGE_WIDTH + 1e-6
    assert max(column.height for column in sheet.columns) <= sheet.key.height + 1e-6
    used = sum(column.width for column in sheet.columns) + mapsheet.KEY_GAP * (len(sheet.columns) - 1)
    assert used <= sheet.key.width + 1e-6


def test_maps_are_larger_than_context() -> None:
    sheet = arrange(0.6, 3, 2, some_key(25), Texts("t", "s", "a"))
    assert [len(row) for row in sheet.rows] == [3, 2]
    assert sheet.rows[1][0].width > sheet.rows[0][0].width


def test_the_key_keeps_its_order_and_every_line_fits() -> None:
    entries = []
    for group in range(1, 6):
        entries.append(Entry(f"Group {group}", str(group), values=("9.9",), bold=True))
        entries += [
            Entry(f"Class {group}{i} " + "of land " * i, f"{group}{i}", ((0, 0, 0),), ("0.1",)) for i in range(5)
        ]
    columns = mapkey.lay_out(Key((Section("Share", tuple(entries), heads=("2018",)),)), 3, 2.6)
    assert len(columns) == 3
    lines = [line for column in columns for line in column.lines[1:]]
    assert [" ".join(line.parts) for line in lines] == [entry.text.strip() for entry in entries]
    assert not any(column.lines[-1].bold for column in columns)
    for line in lines:
        for part in line.parts:
            width = mapkey.text_width(part, line.size, line.bold)
            assert line.text_at + width <= 2.6 - line.value_width


@given(text=st.text(st.characters(codec="latin-1", exclude_categories=["C"]), max_size=60), width=st.floats(0.3, 3))
@settings(max_examples=60)
def test_wrapped_text_fits(text: str, width: float) -> None:
    lines = mapkey.wrap(text, 8, width)
    assert all(mapkey.text_width(line, 8) <= width for line in lines)
    if not any("…" in line for line in lines):
        assert " ".join(lines).split() == text.split()


@pytest.mark.parametrize(("most", "length"), [(5000, 5000), (4999, 2000), (1.9, 1), (1000, 1000), (0.3, 0.2)])
def test_round_length(most: float, length: float) -> None:
    assert round_length(most) == pytest.approx(length)


def test_numbers_for_reading() -> None:
    assert [percent(s) for s in (0, 0.123, 0.0042, 0.00001, 1)] == ["0.0", "12.3", "0.42", "<0.01", "100.0"]
    assert [hectares(v) for v in (0.5, 99.94, 1234.5)] == ["0.5", "99.9", "1\u2009234"]


# What is drawn


def test_classes_stand_where_they_are(store: Store, corine: Legend, tmp_path: Path) -> None:
    draw_map({"2018": store.dataset("map/2018")}, {}, corine, "Title", "Source", tmp_path / "map.png")
    image = read_png(tmp_path / "map.png")
    nw, ne, sw = (middle(drawn(image, corine.colour(code))) for code in (NW, NE, SW))
    assert nw[0] == pytest.approx(ne[0], abs=3)
    assert nw[1] == pytest.approx(sw[1], abs=3)
    assert sw[0] > nw[0] + 100
    assert ne[1] > nw[1] + 100
    quarter = drawn(image, corine.colour(NW)).sum()
    assert drawn(image, corine.colour(NE)).sum() == pytest.approx(quarter, rel=0.02)
    # The south-east was not observed: the paper shows, and no class does.
    assert tuple(image[sw[0], ne[1]]) == NODATA_COLOUR
    assert drawn(image, NODATA_COLOUR).sum() == pytest.approx(quarter, rel=0.05)
    strangers = {corine.colour(code) for code in corine.codes()} - {corine.colour(code) for code in (NW, NE, SW)}
    assert not any(drawn(image, colour).any() for colour in strangers - {(0, 0, 0)})


def test_a_sheet_with_everything(store: Store, corine: Legend, tmp_path: Path) -> None:
    maps = {epoch: store.dataset(f"map/{epoch}") for epoch in ("2018", "2024")}
    composites = {epoch: store.dataset(f"imagery/{epoch}")["reflectance"] for epoch in maps}
    labels = store.dataset("labels/corine")["level3"]
    path = tmp_path / "new" / "map.png"
    draw_map(maps, composites, corine, "All of $it$ & <more>", "Source", path, labels=labels)
    image = read_png(path)
    # 311 in the labels and in both maps, and once as a swatch.
    columns = np.flatnonzero(drawn(image, corine.colour(NW)).any(axis=0))
    assert np.ptp(columns) > image.shape[1] * 0.6
    assert drawn(image, corine.colour(BECAME)).sum() > 100
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]


def test_the_same_map_gives_the_same_bytes(store: Store, corine: Legend, tmp_path: Path) -> None:
    maps = {"2018": store.dataset("map/2018")}
    for name in ("a.png", "b.png"):
        draw_map(maps, {"2018": None}, corine, "Title", "", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_legend_of_one_level(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("code,name,colour\n4,vegetation,#2e9a3a\n5,bare,#c8a165\n6,water,#2b6fd6\n")
    flat = legend(tmp_path / "classes.csv")
    values = np.full((50, 30), 4, np.uint8)
    values[:10] = 6
    values[40:] = 0
    draw_map({"2023": xr.Dataset({"level1": raster(values)})}, {}, flat, "Flat", "", tmp_path / "map.png")
    image = read_png(tmp_path / "map.png")
    assert middle(drawn(image, flat.colour(6)))[0] < middle(drawn(image, flat.colour(4)))[0]
    assert not drawn(image, flat.colour(5)).any()


def test_change_stands_where_it_is(store: Store, corine: Legend, tmp_path: Path) -> None:
    change = store.dataset("change/2018-2024")
    draw_change(change, corine, "2018", "2024", "Title", "Source", tmp_path / "change.png")
    image = read_png(tmp_path / "change.png")
    rows, cols = np.nonzero(drawn(image, UNCHANGED_COLOUR))
    top, left = rows.min(), cols.min()
    row, col = middle(drawn(image, corine.colour(BECAME)))
    px = (cols.max() - left) / WIDTH
    assert (row - top) / px == pytest.approx(50, abs=3)
    assert (col - left) / px == pytest.approx(60, abs=3)
    assert tuple(image[top + int(0.75 * HEIGHT * px), left + int(0.75 * WIDTH * px)]) == NODATA_COLOUR
    # What did not change is not in the key: forest is, as what became built-up, but not arable land.
    assert drawn(image, corine.colour(NW)).any()
    assert not drawn(image, corine.colour(NE)).any()


def test_a_change_map_without_change(corine: Legend, tmp_path: Path) -> None:
    none = np.zeros((30, 40), np.uint16)
    arrays = {"change": np.ones((30, 40), np.uint8), "from_code": none, "to_code": none}
    change = xr.Dataset({name: raster(values, name) for name, values in arrays.items()})
    draw_change(change, corine, "a", "b", "Title", "Source", tmp_path / "change.png")
    assert drawn(read_png(tmp_path / "change.png"), UNCHANGED_COLOUR).mean() > 0.3


def test_confidence_leaves_nodata_out(store: Store, tmp_path: Path) -> None:
    draw_confidence({"2018": store.dataset("map/2018")}, "Title", "Source", tmp_path / "c.png")
    image = read_png(tmp_path / "c.png")
    sure, empty = drawn(image, (37, 52, 148)), drawn(image, NODATA_COLOUR)
    assert sure.sum() == pytest.approx(3 * empty.sum(), rel=0.05)


def test_a_map_that_cannot_be_drawn_leaves_the_old_one(corine: Legend, tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    strange = xr.Dataset({"level3": raster(np.full((20, 20), 777, np.uint16))})
    with pytest.raises(LegendError, match="777"):
        draw_map({"2018": strange}, {}, corine, "Title", "", path)
    with pytest.raises(ValueError, match="no map"):
        draw_map({}, {}, corine, "Title", "", path)
    assert path.read_bytes() == b"old"
