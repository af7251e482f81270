"""``geoflow accuracy``: the accuracy assessment of a finished run, from planning the sample to what is published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoflow.cli_options import Json
from geoflow.cli_screen import screen
from geoflow.counting import counted
from geoflow.errors import GeoflowError

if TYPE_CHECKING:
    from geoflow.jobs.assess import References

app = typer.Typer(
    help="Accuracy of the maps of a finished run, from a sample that people interpret: plan, sample, assess, compare.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a finished run.", show_default=False)]
SampleFile = Annotated[
    Path, typer.Argument(metavar="SAMPLE", help="GeoPackage of geoflow accuracy sample.", show_default=False)
]
Epoch = Annotated[str, typer.Option(metavar="EPOCH", help="Which map.", show_default=False)]
Level = Annotated[int, typer.Option(metavar="N", help="Level of the legend whose classes are the strata.")]
Change = Annotated[
    str | None, typer.Option(metavar="A-B", help="Also make strata of what this change map shows as changed.")
]
Minimum = Annotated[int, typer.Option(min=0, metavar="N", help="Points that each stratum gets at least.")]
Reference = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[EPOCH=]FILE", help="Raster or polygons, looked up at the points that have no reference of their own."
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of the polygons' classes; for a raster grid_code or clc_code, if it holds such codes.",
    ),
]
AtLevel = Annotated[
    int | None, typer.Option("--level", metavar="N", help="Level to assess; that of the strata by default.")
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Leave points without a reference out. Biased where the hard ones are.")
]


@app.command()
def plan(
    out: Out,
    epoch: Epoch,
    level: Level = 1,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CODE=]SHARE", help="User's accuracy expected, of a class or of all others; 0.8 without."
        ),
    ] = None,
    overall_se: Annotated[
        float, typer.Option(metavar="SE", help="Standard error of the overall accuracy wanted.")
    ] = 0.01,
    size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Plan this many points instead.")] = None,
    minimum: Minimum = 50,
    change: Change = None,
    as_json: Json = False,
) -> None:
    """Show how many points an assessment needs, and how they would be shared out among the strata.

    Example: geoflow accuracy plan out/quickstart --epoch 2018 --level 1 --expect 0.85 --expect 4=0.7
    """
    from geoflow.jobs.accuracyreport import print_sample_plan, what_is_needed
    from geoflow.jobs.survey import Draw, MapChoice, plan_sample

    expected = {key: _number(value, f"--expect {key}") for key, value in _pairs(expect).items()}
    draw, shown = Draw(size=size, minimum=minimum), screen(as_json)
    planned = plan_sample(out, MapChoice(epoch, level, change), expected, overall_se, draw)
    if as_json:
        shown.json(planned.to_dict())
    print_sample_plan(shown.out, planned)
    shown.last(what_is_needed(planned))


@app.command()
def sample(
    out: Out,
    epoch: Epoch,
    level: Level = 1,
    size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Points of the whole sample.")] = None,
    units: Annotated[
        list[str] | None, typer.Option(metavar="STRATUM=N", help="Points of each stratum, instead of --size.")
    ] = None,
    allocation: Annotated[
        str, typer.Option(metavar="HOW", help="proportional or equal: the points that --minimum leaves.")
    ] = "proportional",
    minimum: Minimum = 50,
    change: Change = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed draws the same points.")] = 0,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="GeoPackage to write; OUT/sample-EPOCH-levelN.gpkg by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a sample and what was filled in.")] = False,
) -> None:
    """Draw a stratified random sample of a map, as a GeoPackage for interpreters who do not see the map's class.

    Example: geoflow accuracy sample out/quickstart --epoch 2018 --level 1 --size 600 --to sample.gpkg
    """
    from geoflow.jobs.survey import Draw, MapChoice, draw_to_file

    counts = {key: _whole(key, value) for key, value in _pairs(units).items()}
    if counts and size is not None:
        raise GeoflowError("give either --size or --units")
    target = to or out / f"sample-{change or epoch}-level{level}.gpkg"
    draw = Draw(size, counts, allocation, minimum, seed)
    drawn = draw_to_file(out, MapChoice(epoch, level, change), draw, target, force)
    columns = [c for c in drawn.points.columns if c.startswith("reference")]
    screen().last(
        f"Sample in [bold]{target}[/]: {counted(len(drawn.points), 'point')} in {len(drawn.strata)} strata, "
        f"seed {seed}. "
        f"To fill in, in the layer points: {', '.join(columns)}"
    )


@app.command()
def assess(
    out: Out,
    sample: SampleFile,
    reference: Reference = None,
    column: Column = None,
    level: AtLevel = None,
    allow_missing: AllowMissing = False,
    as_json: Json = False,
) -> None:
    """Estimate accuracy and areas, with 95 % intervals, from an interpreted sample, or from a reference that exists.

    Example: geoflow accuracy assess out/quickstart sample.gpkg --reference out/sample/truth/landcover_2018.tif
    """
    from geoflow.jobs.accuracyreport import print_report, report_values, write_report
    from geoflow.jobs.assess import assess_file

    shown, written = screen(as_json), []
    reports = list(assess_file(out, sample, _references(reference, column, level, allow_missing)))
    for report in reports:
        written += write_report(report, out)
        print_report(shown.out, report)
    if as_json:
        shown.json([report_values(report) for report in reports])
    shown.last(f"Written to {', '.join(f'[bold]{path}[/]' for path in written)}")


@app.command()
def compare(
    out: Out,
    sample: SampleFile,
    other: Annotated[
        str, typer.Option("--with", metavar="MAP", help="labels/NAME or map/EPOCH of OUT, or a raster or polygons.")
    ],
    reference: Reference = None,
    column: Column = None,
    level: AtLevel = None,
    allow_missing: AllowMissing = False,
    as_json: Json = False,
) -> None:
    """Test whether the map and another one differ in accuracy, on the same interpreted sample.

    Example: geoflow accuracy compare out/quickstart sample.gpkg --with labels/clc2018
    """
    from geoflow.jobs.accuracyreport import comparison_values, print_comparison, write_comparison
    from geoflow.jobs.assess import compare_with

    shown = screen(as_json)
    report = compare_with(out, sample, other, _references(reference, column, level, allow_missing))
    written = write_comparison(report, out)
    print_comparison(shown.out, report)
    if as_json:
        shown.json(comparison_values(report))
    shown.last(f"Written to [bold]{written}[/]")


def _references(files: list[str] | None, column: str | None, level: int | None, allow_missing: bool) -> References:
    from geoflow.jobs.assess import References

    return References({epoch: Path(file) for epoch, file in _pairs(files).items()}, column, level, allow_missing)


def _pairs(texts: list[str] | None) -> dict[str, str]:
    """``KEY=VALUE`` by key; ``VALUE`` alone has the key ``""``."""
    found: dict[str, str] = {}
    for text in texts or ():
        key, _, value = text.rpartition("=")
        if key in found:
            raise GeoflowError(f"{text!r}: {f'{key} is' if key else 'a value without a name is'} given twice")
        found[key] = value
    return found


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise GeoflowError(f"{option.rstrip()} {text!r} is not a number") from None


def _whole(stratum: str, text: str) -> int:
    if not (stratum and text.isdecimal()):
        raise GeoflowError(f"--units {stratum}={text}: write STRATUM=N, for example 311=75")
    return int(text)
