"""Accuracy assessments on a terminal and as files: JSON for programs, CSV for spreadsheets, Markdown to publish."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.counting import counted
from geoflow.errors import GeoflowError
from geoflow.jobs.assess import CompareReport, Report
from geoflow.jobs.plain import as_json
from geoflow.jobs.survey import SamplePlan

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from geoflow.mapping.estimators import Assessment
    from geoflow.mapping.ratios import Estimate

_WIDE = 8  # a confusion matrix of more classes does not fit a terminal
_HYPHENS = {"proportional": "Propor-\ntional", "recommended": "Recom-\nmended"}
_FIGURES = ("users", "producers", "area_ha", "mapped_ha")
_COLUMNS = ("figure", "code", "reference_code", "name", "units", "value", "se", "low", "high")
_METHOD = (
    "Stratified random sample, estimators of Olofsson et al. 2014 (Remote Sensing of Environment 148, 42-57) and "
    "Stehman 2014 (International Journal of Remote Sensing 35, 4923-4939); 95 % intervals of 1.96 standard errors."
)


def write_report(report: Report, out: Path) -> list[Path]:
    """Write ``OUT/<stem>.json``, ``.csv`` and ``.md``; what an earlier assessment wrote is replaced.

    The CSV has one row a figure: ``figure`` (overall, users, producers, area_ha, mapped_ha, share), ``code`` and
    ``name`` (of the map's class for ``share``, a cell of the confusion matrix as share of the area, whose reference
    class is ``reference_code``), ``units``, ``value``, ``se``, ``low``, ``high``.

    Raises
    ------
    GeoflowError
        If the folder cannot be written to.
    """
    import pandas as pd

    table = pd.DataFrame(_rows(report), columns=_COLUMNS).astype({"code": "Int64", "reference_code": "Int64"})
    texts = {
        ".json": as_json(report_values(report)),
        ".csv": table.to_csv(index=False),
        ".md": markdown(report),
    }
    return [_write(out / f"{report.stem}{suffix}", text) for suffix, text in texts.items()]


def report_values(report: Report) -> dict[str, Any]:
    """An assessment as plain values; numbers that are not known are NaN."""
    names = {str(code): name for code, name in report.names.items()}
    return {
        "title": report.title, **report.facts, "notes": report.notes, "names": names, **report.assessment.to_dict()
    }  # fmt: skip


def write_comparison(report: CompareReport, out: Path) -> Path:
    """Write ``OUT/<stem>.json``; errors as `write_report`."""
    return _write(out / f"{report.stem}.json", as_json(comparison_values(report)))


def comparison_values(report: CompareReport) -> dict[str, Any]:
    """A comparison as plain values."""
    found = report.comparison
    accuracies = dict(zip(report.maps, (found.first.plain(), found.second.plain()), strict=True))
    test = {"difference": found.difference.plain(), "z": found.z, "p_value": found.p_value}
    mcnemar = {name: getattr(found, name) for name in ("only_first", "only_second", "mcnemar", "mcnemar_p")}
    return {"title": report.title, "overall": accuracies, **test, **mcnemar, **report.facts}


def _write(path: Path, text: str) -> Path:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GeoflowError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _rows(report: Report) -> Iterator[dict[str, Any]]:
    """The rows of the CSV."""
    found = report.assessment
    yield {"figure": "overall", "units": found.units, **found.overall.plain()}
    units = {"users": found.counts.sum(axis=1), "producers": found.counts.sum(axis=0)}
    units |= {"area_ha": units["producers"], "mapped_ha": units["users"]}
    for figure in _FIGURES:
        for i, code in enumerate(found.codes):
            one = {"figure": figure, "code": code, "name": report.names[code], "units": int(units[figure][i])}
            yield one | getattr(found, figure).plain(i)
    for i, code in enumerate(found.codes):
        for j, other in enumerate(found.codes):
            one = {"figure": "share", "code": code, "name": report.names[code], "reference_code": other}
            yield one | {"units": int(found.counts[i, j])} | found.shares.plain((i, j))


def markdown(report: Report) -> str:
    """Overall accuracy, figures by class, confusion matrix, notes and method as Markdown."""
    found = report.assessment
    names = [f"{code} {report.names[code]}" for code in found.codes]
    units = [str(n) for n in found.counts.sum(axis=1)]
    head = ["Class", "Points mapped", "User's accuracy %", "Producer's accuracy %", "Mapped ha", "Area ha"]
    rows = [[name, n, *figures] for name, n, figures in zip(names, units, _by_class(found), strict=True)]
    matrix = [[name, *shares] for name, shares in zip(names, _matrix(found), strict=True)]
    codes = [str(code) for code in found.codes]
    parts = [
        f"# Accuracy: {report.title}",
        f"Overall accuracy {_percent(found.overall)} % of the area ({counted(found.units, 'point')}).",
        _pipes(head, rows),
        "Confusion matrix in percent of the area: rows are the map, columns the reference.",
        _pipes(["Map / reference", *codes, "Points"], [[*row, n] for row, n in zip(matrix, units, strict=True)]),
        *report.notes,
        f"{_METHOD} Sample drawn {report.facts['design']['drawn']}, seed {report.facts['design']['seed']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *[[cell.replace("|", "\\|") for cell in r] for r in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_class(found: Assessment) -> list[list[str]]:
    """User's, producer's, mapped and adjusted area of each class, with half-widths."""
    return [
        [
            _percent(found.users, i),
            _percent(found.producers, i),
            _hectares(found.mapped_ha, i),
            _hectares(found.area_ha, i),
        ]
        for i in range(len(found.codes))
    ]


def _matrix(found: Assessment) -> list[list[str]]:
    return [["." if share == 0 else f"{100 * share:.2f}" for share in row] for row in found.shares.value.tolist()]


def _percent(found: Estimate, index: Any = ()) -> str:
    return _plus_minus(found.times(100), index, lambda _: ".1f")


def _hectares(found: Estimate, index: int) -> str:
    return _plus_minus(found, index, _spelling)


def _spelling(hectares: float) -> str:
    return ",.0f" if hectares >= 100 else ",.2f"


def _plus_minus(found: Estimate, index: Any, spelling: Any) -> str:
    value, half = float(found.value[index]), float(found.half_width[index])
    if math.isnan(value):
        return "-"
    how = spelling(value)
    if half == 0:
        return format(value, how)
    return f"{value:{how}} ± {'?' if math.isnan(half) else format(half, how)}"


def print_report(console: Console, report: Report) -> None:
    """The assessment as tables."""
    from rich.markup import escape

    found = report.assessment
    console.print(
        f"[bold]{escape(report.title)}[/]: overall accuracy {_percent(found.overall)} % "
        f"({counted(found.units, 'point')})"
    )
    table = _table("Class", "Points", "User's %", "Producer's %", "Mapped ha", "Area ha")
    units = found.counts.sum(axis=1).tolist()
    for code, n, figures in zip(found.codes, units, _by_class(found), strict=True):
        table.add_row(f"{code} {escape(report.names[code])}", str(n), *figures)
    console.print(table)
    if len(found.codes) <= _WIDE:
        shares = _table("% of the area, map / reference", *[str(code) for code in found.codes])
        for code, row in zip(found.codes, _matrix(found), strict=True):
            shares.add_row(f"{code} {escape(report.names[code])}", *row)
        console.print(shares)
    for note in report.notes:
        console.print(f"  [dim]{escape(note)}[/]", highlight=False)


def print_comparison(console: Console, report: CompareReport) -> None:
    """Both accuracies, the difference, and whether it is significant."""
    from rich.markup import escape

    found = report.comparison
    table = _table(f"Overall accuracy, level {report.facts['level']}", "%")
    for name, one in zip(report.maps, (found.first, found.second), strict=True):
        table.add_row(escape(name), _percent(one))
    table.add_row("difference", _percent(found.difference))
    console.print(table)
    verdict = "no standard error, so no test"
    if not math.isnan(found.p_value):
        negation = "" if found.p_value < 0.05 else "not "
        verdict = f"z {found.z:.2f}, p {_probability(found.p_value)}: {negation}significant at 5 %"
    console.print(f"Design-based test: {verdict}", highlight=False)
    console.print(
        f"  [dim]{found.only_first} points only {escape(report.maps[0])} has right, {found.only_second} only "
        f"{escape(report.maps[1])}; McNemar's chi-square {found.mcnemar:.2f}, p {_probability(found.mcnemar_p)}, "
        "which does not know the strata[/]",
        highlight=False,
    )


def _probability(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def print_sample_plan(console: Console, plan: SamplePlan) -> None:
    """Strata and what they would get."""
    from rich.markup import escape

    allocations = tuple(plan.expected_se)
    table = _table(
        "Stratum",
        "Area ha",
        "Share %",
        "User's\nexpected",
        *(_HYPHENS.get(a, a.capitalize()) for a in allocations),
        "±\nuser's",
    )
    for row in plan.table.to_dict("records"):
        planned = [str(row[name]) for name in allocations]
        cells = [
            format(row["area_ha"], _spelling(row["area_ha"])),
            f"{100 * row['share']:.2f}",
            f"{row['expected']:.2f}",
            *planned,
        ]
        table.add_row(f"{row['name']} {escape(row['label'])}", *cells, f"{row['users_half_width']:.3f}")
    errors = ["-" if math.isnan(se) else f"{se:.4f}" for se in plan.expected_se.values()]
    sums = [str(int(plan.table[name].sum())) for name in allocations]
    table.add_row("Points", "", "", "", *sums, "", style="bold")
    table.add_row("Standard error, overall", "", "", "", *errors, "")
    console.print(table)


def what_is_needed(plan: SamplePlan) -> str:
    """How many points, as one line."""
    return (
        f"A standard error of {plan.target_se:g} of the overall accuracy needs {plan.needed} points; planned are "
        f"{plan.size}."
    )


def _table(first: str, *numbers: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)  # names are wrapped where a terminal is narrow, figures never cut
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
