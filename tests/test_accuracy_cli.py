"""geoflow accuracy: the printed figures of Olofsson et al. through the commands, and what they refuse."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rioxarray  # noqa: F401  (the .rio accessor)
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr
from typer.testing import CliRunner

from geoflow.cli_accuracy import app
from geoflow.errors import GeoflowError, GridError, LegendError, StoreError
from geoflow.grid import Grid
from geoflow.jobs.plain import as_json
from geoflow.legends import legend
from geoflow.mapping.changesample import add_change
from geoflow.mapping.planning import allocate, expected_se
from geoflow.mapping.samplefile import read_drawn
from geoflow.store.zarr import Group, Store, Variable

CORINE = legend("corine")
ROOT = Path(__file__).parent.parent
GEOBOX = GeoBox((128, 160), Affine(20, 0, 4_000_000, 0, -20, 3_000_000), "EPSG:3035")
CLASSES = np.array([112, 211, 231, 311, 312, 512])


def accuracy(*arguments: object) -> str:
    """What the command prints; raises what it raises."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def refuses(match: str, *arguments: object, kind: type[Exception] = GeoflowError) -> None:
    with pytest.raises(kind, match=match):
        accuracy(*arguments)


def levels(codes: np.ndarray) -> dict[str, np.ndarray]:
    return {f"level{level}": CORINE.to_level(codes, level) for level in CORINE.levels}


def make_store(out: Path, geobox: GeoBox, groups: dict[str, dict[str, np.ndarray]]) -> Path:
    """A store with these groups, written by tiles as a run writes them."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store.create(out / "country.zarr", Grid(geobox, 64, 32))
    for path, arrays in groups.items():
        variables = tuple(Variable(name, str(values.dtype), 0) for name, values in arrays.items())
        store.ensure_group(Group(path, variables, attrs={"legend": "corine", "model_sha256": "abc"}))
        for tile in store.grid.tiles():
            store.write(path, tile, {name: values[tile.y, tile.x] for name, values in arrays.items()})
    return out


def patchy(rng: np.random.Generator, shape: tuple[int, int] = GEOBOX.shape, edge: int = 8) -> np.ndarray:
    """Squares of one class each."""
    blocks = rng.choice(CLASSES, (shape[0] // edge, shape[1] // edge))
    return np.kron(blocks, np.ones((edge, edge), int)).astype(np.uint16)


def spoilt(rng: np.random.Generator, codes: np.ndarray, share: float) -> np.ndarray:
    """Another class, drawn at random, in a share of the pixels."""
    return np.where(rng.random(codes.shape) < share, rng.choice(CLASSES, codes.shape), codes).astype(np.uint16)


def country(out: Path) -> dict[str, np.ndarray]:
    """A run's output at ``out`` and the truth behind it: maps 12 % noise, change with misses and false alarms."""
    rng = np.random.default_rng(8)
    before = patchy(rng)
    turned = np.kron(rng.random((16, 20)) < 0.08, np.ones((8, 8), int)).astype(bool)
    after = np.where(turned, 112, before).astype(np.uint16)
    maps = [spoilt(rng, codes, 0.12) for codes in (before, after)]
    seen = (before != after) & (rng.random(before.shape) < 0.8) | (rng.random(before.shape) < 0.01)
    change = np.where(seen & (maps[0] != maps[1]), 2, 1).astype(np.uint8)
    change[:2] = 0
    pair = {"from_code": maps[0], "to_code": maps[1]}
    near = maps[0].copy()
    near[::40, ::40] = 512
    groups = {
        "map/2018": levels(maps[0]),
        "map/2024": levels(maps[1]),
        "labels/clc2018": levels(spoilt(rng, before, 0.45)),
        "labels/near": levels(near),
        "change/2018-2024": {
            "change": change,
            **{n: np.where(change == 2, v, 0).astype("u2") for n, v in pair.items()},
        },
    }
    make_store(out, GEOBOX, groups)
    return {
        "2018": before,
        "2024": after,
        "map/2018": maps[0],
        "change": change,
        **pair,
        "clc": groups["labels/clc2018"]["level3"],
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    out = tmp_path_factory.mktemp("run") / "out"
    return out, country(out)


def raster(path: Path, codes: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wrap_xr(codes, GEOBOX, nodata=0).rio.to_raster(path)
    return path


def fill(path: Path, **given: Callable[[Any], Any]) -> None:
    """What interpreters do: write into columns of the points, and nothing else."""
    points = pyogrio.read_dataframe(path, layer="points")
    points = points.assign(**{column: read(points) for column, read in given.items()})
    pyogrio.write_dataframe(points, path, layer="points", driver="GPKG")


def at(codes: np.ndarray) -> Callable[[Any], Any]:
    """The codes below the points."""

    def read(points: Any) -> Any:
        place = {"x": xr.DataArray(points.geometry.x, dims="p"), "y": xr.DataArray(points.geometry.y, dims="p")}
        return wrap_xr(codes, GEOBOX).sel(place, method="nearest").values.astype(int)

    return read


def result(out: Path, stem: str) -> dict[str, Any]:
    return json.loads((out / f"{stem}.json").read_text())


@pytest.fixture
def sampled(run: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> tuple[Path, dict[str, np.ndarray], Path]:
    """(run, truth, an interpreted sample of its 2018 map)."""
    out, truth = run
    path = tmp_path / "s.gpkg"
    accuracy("sample", out, "--epoch", "2018", "--level", 1, "--size", 500, "--seed", 3, "--to", path)
    fill(path, reference=at(truth["2018"]))
    return out, truth, path


# --- Olofsson et al. 2014 -------------------------------------------------------------------------------------------

MATRIX = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]  # table 8


@pytest.fixture(scope="module")
def olofsson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their map, a hundredth of the pixels of a hundred times the size: the same areas."""
    codes = np.repeat(np.array([111, 211, 311, 411], np.uint16), [2_000, 1_500, 32_000, 64_500]).reshape(250, 400)
    geobox = GeoBox(codes.shape, Affine(300, 0, 4_000_000, 0, -300, 3_000_000), "EPSG:3035")
    return make_store(tmp_path_factory.mktemp("olofsson"), geobox, {"map/2010": levels(codes)})


def test_olofsson_2014_size_of_the_sample(olofsson: Path) -> None:
    expected = [a for i, u in enumerate((0.7, 0.6, 0.9, 0.95), start=1) for a in ("--expect", f"{i}={u}")]
    said = accuracy("plan", olofsson, "--epoch", 2010, "--level", 1, *expected, "--overall-se", 0.01, "--minimum", 75)
    assert "0.01 of the overall accuracy needs 641 points" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line}
    assert rows["1"][-5:] == ["0.70", "13", "161", "75", "0.104"]
    assert [rows[c][-2] for c in "1234"] == ["75", "75", "163", "328"]
    assert [rows[c][-3] for c in "1234"] == ["161", "160", "160", "160"]
    assert rows["3"][-7:-5] == ["288,000", "32.00"]
    # by hand: W^2 U (1 - U) / (n - 1) of 75, 75, 163 and 328 points
    variance = 0.0004 * 0.21 / 74 + 0.000225 * 0.24 / 74 + 0.1024 * 0.09 / 162 + 0.416025 * 0.0475 / 327
    assert rows["Standard"][-1] == f"{variance**0.5:.4f}" == "0.0109"


def test_olofsson_2014_accuracy_and_areas(olofsson: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.gpkg"
    units = [a for i, row in enumerate(MATRIX, start=1) for a in ("--units", f"{i}={sum(row)}")]
    assert "640 points in 4 strata" in accuracy("sample", olofsson, "--epoch", 2010, *units, "--to", path)

    def interpreted(points: Any) -> Any:
        strata = pyogrio.read_dataframe(path, layer="units").set_index("id")["stratum"].loc[points["id"]].to_numpy()
        codes = np.zeros(len(points), int)
        for i, row in enumerate(MATRIX):
            codes[strata == str(i + 1)] = np.repeat([1, 2, 3, 4], row)
        return codes

    fill(path, reference=interpreted)
    said = accuracy("assess", olofsson, path)
    assert "overall accuracy 94.7 ± 1.8 % (640 points)" in said
    assert "21,158 ± 6,158" in said
    found = result(olofsson, "accuracy-2010-level1")
    assert found["counts"] == MATRIX
    assert round(found["overall"]["value"], 4) == 0.9465
    assert round(1.96 * found["overall"]["se"], 4) == 0.0185
    by_class = [found["classes"][c] for c in "1234"]
    assert [round(c["users"]["value"], 3) for c in by_class] == [0.880, 0.733, 0.927, 0.963]
    assert [round(1.96 * c["users"]["se"], 3) for c in by_class] == [0.074, 0.101, 0.040, 0.021]
    assert [round(c["producers"]["value"], 3) for c in by_class] == [0.749, 0.847, 0.935, 0.962]
    assert [round(c["area_ha"]["value"]) for c in by_class] == [21_158, 11_686, 285_770, 581_386]
    assert [round(1.96 * c["area_ha"]["se"]) for c in by_class] == [6_158, 3_756, 15_510, 16_282]
    assert [round(c["mapped_ha"]["value"]) for c in by_class] == [18_000, 13_500, 288_000, 580_500]
    assert found["design"]["seed"] == 0
    assert found["strata"][0] == {"name": "1", "code": 1, "changed": False, "pixels": 2000, "area_ha": 18000.0, "n": 75}

    rows = list(csv.DictReader((olofsson / "accuracy-2010-level1.csv").open()))
    area = next(r for r in rows if (r["figure"], r["code"]) == ("area_ha", "2"))
    assert (round(float(area["value"])), area["units"], area["name"]) == (11_686, "56", CORINE.label(2))
    assert sum(float(r["value"]) for r in rows if r["figure"] == "share") == pytest.approx(1)
    assert [round(float(r["value"]), 4) for r in rows if r["figure"] == "overall"] == [0.9465]

    page = (olofsson / "accuracy-2010-level1.md").read_text()
    assert "| 2 Agricultural areas | 75 | 73.3 ± 10.1 | 84.7 ± 25.4 | 13,500 | 11,686 ± 3,756 |" in page
    assert "| 1.76 | . | 0.13 | 0.11 | 75 |" in page
    assert "Olofsson et al. 2014" in page


# --- plan and sample ------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(users=st.lists(st.floats(0.05, 0.95), min_size=3, max_size=3), size=st.integers(200, 900))
def test_the_neyman_allocation_expects_the_smallest_error(users: list[float], size: int) -> None:
    pixels = [3_000, 20_000, 77_000]
    best = allocate(size, pixels, "neyman", users, minimum=2)
    for method in ("proportional", "equal"):
        assert expected_se(pixels, users, best) <= expected_se(pixels, users, allocate(size, pixels, method)) * 1.01
    assert math.isnan(expected_se(pixels, users, [1, 100, 100]))


def test_a_plan_counts_the_map_and_can_be_given_a_size(run) -> None:
    out, truth = run
    said = accuracy("plan", out, "--epoch", 2018, "--level", 3, "--expect", 0.9, "--expect", "311=0.7", "--size", 400)
    pixels = int((truth["map/2018"] == 311).sum())
    row = next(line for line in said.splitlines() if line.startswith("311"))
    assert f"{pixels * 0.04:,.0f}" in row
    assert " 0.70 " in row
    assert "planned are 400" in said
    changed = accuracy("plan", out, "--epoch", 2024, "--level", 1, "--change", "2018-2024", "--expect", "changed=0.6")
    row = next(line for line in changed.splitlines() if line.startswith("2 changed"))
    assert " 0.60 " in row
    assert row.split()[-2] == "50"


def test_a_sample_is_blind_and_offers_the_classes(run, tmp_path: Path) -> None:
    out, _ = run
    said = accuracy("sample", out, "--epoch", 2018, "--level", 3, "--size", 400, "--to", tmp_path / "s.gpkg")
    assert "400 points in 6 strata, seed 0" in said
    table, fields = (
        f(tmp_path / "s.gpkg", layer="points")
        for f in (pyogrio.read_dataframe, lambda p, layer: pyogrio.read_info(p, layer=layer)["fields"])
    )
    assert table["reference"].isna().all()
    assert set(fields) == {"id", "reference", "confidence", "comment", "interpreter", "lon", "lat"}
    # GDAL, and so QGIS, knows the choices of the field
    schema = pyogrio.raw.read_arrow(tmp_path / "s.gpkg", layer="points")[1].schema
    assert schema.field("reference").metadata[b"GDAL:OGR:domain_name"] == b"choices_reference"
    assert schema.field("confidence").metadata[b"GDAL:OGR:domain_name"] == b"choices_confidence"
    choices = pyogrio.read_dataframe(
        tmp_path / "s.gpkg", sql="SELECT * FROM gpkg_data_column_constraints", read_geometry=False
    )
    held = choices[choices["constraint_name"] == "choices_reference"].set_index("value")["description"]
    assert held["311"] == "311 Broad-leaved forest"
    assert set(held.index.astype(int)) == set(CORINE.codes(3))


def test_the_same_seed_draws_the_same_points(run, tmp_path: Path) -> None:
    out, _ = run
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        accuracy("sample", out, "--epoch", 2018, "--size", 300, "--seed", seed, "--to", tmp_path / f"{name}.gpkg")
    a, b, c = (read_drawn(tmp_path / f"{name}.gpkg", CORINE).points.geometry.to_wkt().tolist() for name in "abc")
    assert a == b
    assert a != c


def test_a_sample_is_not_overwritten_unasked(sampled) -> None:
    out, _, path = sampled
    before = path.read_bytes()
    refuses("may hold interpretations.*--force", "sample", out, "--epoch", 2018, "--size", 300, "--to", path)
    assert path.read_bytes() == before
    accuracy("sample", out, "--epoch", 2018, "--size", 300, "--to", path, "--force")
    assert read_drawn(path, CORINE).points["reference"].isna().all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--epoch", "2030", "--size", 300), "--epoch 2030.*2018, 2024"),
        (("--epoch", "2018", "--level", 4, "--size", 300), "--level 4.*1, 2, 3"),
        (("--epoch", "2018", "--change", "2018-2030", "--size", 300), "--change 2018-2030.*2018-2024"),
        (("--epoch", "2018", "--size", 100), "--size 100 with --minimum 50.*need 200"),
        (("--epoch", "2018", "--size", 100, "--minimum", 0, "--units", "1=5"), "either --size or --units"),
        (("--epoch", "2018", "--units", "1=50"), "--units says nothing of the strata 2, 3, 5"),
        (("--epoch", "2018", "--units", "1=50", "--units", "1=5"), "given twice"),
        (("--epoch", "2018", "--units", "1=some"), "STRATUM=N"),
        (
            ("--epoch", "2018", *(a for c in "1235" for a in ("--units", f"{c}={1 + 9 * (c != '5')}"))),
            r"too few.*5 \(1\)",
        ),
        (
            (
                "--epoch",
                "2018",
            ),
            "how many points",
        ),
        (("--epoch", "2018", "--size", 300, "--allocation", "neyman"), "proportional or equal"),
    ],
)
def test_samples_that_cannot_be_drawn(run, tmp_path: Path, arguments: tuple, match: str) -> None:
    refuses(match, "sample", run[0], *arguments, "--to", tmp_path / "s.gpkg")
    assert not list(tmp_path.iterdir())


def test_there_must_be_a_run(tmp_path: Path) -> None:
    refuses("country.zarr", "plan", tmp_path, "--epoch", 2018, kind=StoreError)
    refuses("--expect 9: no such stratum", "plan", make_small(tmp_path), "--epoch", 2018, "--expect", "9=0.5")
    refuses("'high' is not a number", "plan", tmp_path, "--epoch", 2018, "--expect", "1=high")


def make_small(out: Path) -> Path:
    return make_store(out, GEOBOX[:64, :64], {"map/2018": levels(np.full((64, 64), 311, np.uint16))})


# --- assess ---------------------------------------------------------------------------------------------------------


def census(mapped: np.ndarray, truth: np.ndarray, level: int) -> tuple[float, dict[int, float]]:
    """Overall accuracy and true hectares of every class, counted in all pixels."""
    one, two = CORINE.to_level(mapped, level), CORINE.to_level(truth, level)
    return float((one == two).mean()), {int(c): float((two == c).sum()) * 0.04 for c in np.unique(two)}


@pytest.mark.parametrize("level", [1, 3])
def test_an_assessment_agrees_with_the_census(sampled, level: int) -> None:
    out, truth, path = sampled
    accuracy("assess", out, path, "--level", level)
    found = result(out, f"accuracy-2018-level{level}")
    overall, areas = census(truth["map/2018"], truth["2018"], level)
    assert found["overall"]["low"] < overall < found["overall"]["high"]
    assert found["overall"]["high"] - found["overall"]["low"] < 0.08
    inside = [c["area_ha"]["low"] <= areas[int(code)] <= c["area_ha"]["high"] for code, c in found["classes"].items()]
    assert sum(inside) >= len(inside) - 1
    assert sum(c["area_ha"]["value"] for c in found["classes"].values()) == pytest.approx(sum(areas.values()))
    mapped = census(truth["map/2018"], truth["map/2018"], level)[1]
    assert {int(code): c["mapped_ha"]["value"] for code, c in found["classes"].items()} == pytest.approx(mapped)
    assert found["design"]["map"]["attrs"]["model_sha256"] == "abc"


def test_a_reference_file_serves_as_interpreter(sampled, tmp_path: Path) -> None:
    out, truth, filled = sampled
    accuracy("assess", out, filled)
    by_people = result(out, "accuracy-2018-level1")
    empty, file = tmp_path / "e.gpkg", raster(tmp_path / "truth.tif", truth["2018"])
    accuracy("sample", out, "--epoch", 2018, "--size", 500, "--seed", 3, "--to", empty)
    accuracy("assess", out, empty, "--reference", file)
    by_file = result(out, "accuracy-2018-level1")
    assert by_file["counts"] == by_people["counts"]
    assert by_file["reference"] == {"2018": str(file)}
    assert read_drawn(empty, CORINE).points["reference"].isna().all()
    refuses("--reference 2024=", "assess", out, empty, "--reference", f"2024={file}")


def test_what_is_wrong_in_a_filled_sample_is_named(sampled, tmp_path: Path) -> None:
    out, truth, path = sampled
    right = at(truth["2018"])
    fill(path, reference=lambda p: np.where(p["id"] <= 3, np.nan, right(p)))
    refuses("3 of 500 points have no reference, ids 1, 2, 3.*--allow-missing", "assess", out, path)
    assert "3 points without a reference were left out" in accuracy("assess", out, path, "--allow-missing")
    assert result(out, "accuracy-2018-level1")["units"] == 497
    fill(path, reference=lambda p: np.where(p["id"] == 7, 777, right(p)))
    refuses(r"777.*id 7\b", "assess", out, path, kind=LegendError)
    fill(path, reference=lambda p: np.where(p["id"] == 7, 3, right(p)))
    refuses("ids 7 are coarser than level 3", "assess", out, path, "--level", 3)
    stratum = read_drawn(path, CORINE).points.set_index("id")["stratum"]
    keep = [*stratum.index[stratum == "5"][:1], *stratum.index[stratum != "5"]]
    fill(path, reference=lambda p: np.where(p["id"].isin(keep), right(p), np.nan))
    refuses(r"too few are in 5 \(1\)", "assess", out, path, "--allow-missing")
    refuses("no such file", "assess", out, tmp_path / "none.gpkg")


def test_a_sample_of_another_map_is_refused(sampled, tmp_path: Path) -> None:
    _, truth, path = sampled
    rng = np.random.default_rng(2)
    shifted = GeoBox(GEOBOX.shape, Affine(20, 0, 4_000_020, 0, -20, 3_000_000), "EPSG:3035")
    other = make_store(tmp_path / "grid", shifted, {"map/2018": levels(truth["map/2018"])})
    refuses("another map.*on the grid", "assess", other, path)
    other = make_store(tmp_path / "again", GEOBOX, {"map/2018": levels(spoilt(rng, truth["map/2018"], 0.1))})
    refuses("another map.*the class differs at", "assess", other, path)
    # one pixel that the sample does not hold: only the size of its stratum tells
    free = np.ones(GEOBOX.shape, bool)
    points = read_drawn(path, CORINE).points
    free[((3_000_000 - points.geometry.y) // 20).astype(int), ((points.geometry.x - 4_000_000) // 20).astype(int)] = (
        False
    )
    codes = truth["map/2018"].copy()
    codes[tuple(np.argwhere(free & (codes == 311))[0])] = 512
    other = make_store(tmp_path / "one", GEOBOX, {"map/2018": levels(codes)})
    refuses("another map.*pixels of strata differ", "assess", other, path)
    refuses("--epoch 2018.*2020", "assess", make_store(tmp_path / "e", GEOBOX, {"map/2020": levels(codes)}), path)


def test_change_is_assessed_from_references_in_both_epochs(run, tmp_path: Path) -> None:
    out, truth = run
    path = tmp_path / "c.gpkg"
    said = accuracy("sample", out, "--epoch", 2018, "--level", 1, "--change", "2018-2024", "--size", 700, "--to", path)
    assert "reference, reference_2024" in said
    files = [a for e in ("2018", "2024") for a in ("--reference", f"{e}={raster(tmp_path / f'{e}.tif', truth[e])}")]
    refuses("700 points have no reference_2024", "assess", out, path, *files[:2])
    assert "Change 2018-2024, level 1" in accuracy("assess", out, path, *files)
    found = result(out, "accuracy-change-2018-2024-level1")
    at1 = {name: CORINE.to_level(truth[name], 1) for name in ("2018", "2024", "from_code", "to_code")}
    mapped = (truth["change"] == 2) & (at1["from_code"] != at1["to_code"])
    real = at1["2018"] != at1["2024"]
    changed = found["classes"]["2"]
    for figure, true in (
        ("users", (mapped & real).sum() / mapped.sum()),
        ("producers", (mapped & real).sum() / real.sum()),
        ("area_ha", real.sum() * 0.04),
    ):
        assert changed[figure]["low"] <= true <= changed[figure]["high"], figure
    assert 0 < changed["area_ha"]["low"] < changed["area_ha"]["high"] < 0.3 * real.size * 0.04
    assert changed["mapped_ha"]["value"] == pytest.approx(mapped.sum() * 0.04)
    assert found["names"] == {"1": "unchanged", "2": "changed"}
    # the land cover of the same points; its strata are not its classes
    cover = result(out, "accuracy-2018-level1-from-2018-2024")
    assert cover["overall"]["low"] < census(truth["map/2018"], truth["2018"], 1)[0] < cover["overall"]["high"]


def test_classes_that_a_coarser_sample_leaves_thin_are_named(tmp_path: Path) -> None:
    codes = np.full((64, 64), 311, np.uint16)
    codes[:, 60:] = 211
    codes[:8, :8], codes[63, 0] = 312, 313
    out, path = make_store(tmp_path / "out", GEOBOX[:64, :64], {"map/2018": levels(codes)}), tmp_path / "s.gpkg"
    accuracy("sample", out, "--epoch", 2018, "--size", 120, "--to", path)
    fill(path, reference=lambda p: at(np.pad(codes, ((0, 64), (0, 96))))(p))
    said = accuracy("assess", out, path, "--level", 3)
    assert "fewer than 30 points, whose intervals are rough: 312." in said
    assert "without a point, of whose mapped area nothing is known: 313." in said
    assert "rough" not in accuracy("assess", out, path)


def test_points_outside_of_the_change_map_are_named(run, tmp_path: Path) -> None:
    out, truth = run
    accuracy("sample", out, "--epoch", 2018, "--size", 200, "--to", tmp_path / "s.gpkg")
    sample = read_drawn(tmp_path / "s.gpkg", CORINE)
    part = xr.Dataset({name: wrap_xr(truth[name], GEOBOX) for name in ("change", "from_code", "to_code")})
    at_points = add_change(sample, part).points
    assert at_points["change"].tolist() == at(truth["change"])(at_points).tolist()
    outside = sample.points.loc[sample.points.geometry.y < 3_000_000 - 100 * 20, "id"]
    with pytest.raises(GridError, match=f"{outside.iloc[0]}.* outside of the change map"):
        add_change(sample, part.isel(y=slice(0, 100)))


# --- compare --------------------------------------------------------------------------------------------------------


def test_a_worse_map_is_found_to_be_worse(sampled, tmp_path: Path) -> None:
    out, truth, path = sampled
    said = accuracy("compare", out, path, "--with", "labels/clc2018")
    assert ": significant at 5 %" in said
    found = result(out, "accuracy-2018-level1-with-clc2018")
    real = census(truth["map/2018"], truth["2018"], 1)[0] - census(truth["clc"], truth["2018"], 1)[0]
    assert found["difference"]["low"] < real < found["difference"]["high"]
    assert found["p_value"] < 1e-6
    assert found["maps"]["map/2018"]["overall"] == found["overall"]["map/2018"]
    again = accuracy("compare", out, path, "--with", raster(tmp_path / "clc.tif", truth["clc"]))
    assert "significant" in again
    assert result(out, "accuracy-2018-level1-with-clc")["difference"] == found["difference"]


def test_a_map_that_is_nearly_the_same_is_not(sampled) -> None:
    out, _, path = sampled
    for level in (1, 3):
        assert ": not significant at 5 %" in accuracy("compare", out, path, "--with", "labels/near", "--level", level)
        found = result(out, f"accuracy-2018-level{level}-with-near")
        assert found["p_value"] > 0.05
        assert found["difference"]["low"] <= 0 <= found["difference"]["high"]
    refuses("labels/clc2024.*labels/clc2018, labels/near", "compare", out, path, "--with", "labels/clc2024")


def test_json_has_no_nan() -> None:
    assert json.loads(as_json({"a": [float("nan"), float("inf"), 1.5], "b": (2,)})) == {
        "a": [None, None, 1.5],
        "b": [2],
    }


# --- the guide ------------------------------------------------------------------------------------------------------


def test_every_command_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder where a reader stands; who interprets in QGIS is played by the truth."""
    truth = country(tmp_path / "out/quickstart")
    for epoch in ("2018", "2024"):
        raster(tmp_path / f"out/sample/truth/landcover_{epoch}.tif", truth[epoch])
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/how-to/accuracy.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("geoflow accuracy ")]
    assert {c[0] for c in commands} == {"plan", "sample", "assess", "compare"}
    for arguments in commands:
        accuracy(*arguments)
        if arguments[0] == "sample":
            path = Path(arguments[arguments.index("--to") + 1])
            columns = [c for c in read_drawn(path, CORINE).points if c.startswith("reference")]
            fill(path, **{c: at(truth["2024" if c.endswith("2024") else "2018"]) for c in columns})
    named = {word.strip("`,") for word in page.split() if word.startswith("`out/quickstart/accuracy-")}
    assert named
    assert all(Path(name).exists() for name in named), named
