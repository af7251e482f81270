"""The figures of `geoflow.jobs.paper` as the paper's Tables 2 to 9: Markdown, CSV, JSON, pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.jobs import published
from geoflow.jobs.paper import FOLDER

if TYPE_CHECKING:
    import rich.console

Cell = str | int | float | None
Rows = list[tuple[Cell, ...]]
Figures = Mapping[str, Any]

PAPER = "paper"
"""What columns with the paper's own figures begin with."""

_WIDEST = 8  # classes of a confusion matrix that is also printed as a table
_DIFFER = (
    "Columns named *paper* are what Ulmas and Liiv (2020) print: of 103,867 patches of BigEarthNet and 1,656 windows "
    "of Estonia, split at random, from RGB. The data differ, so they are to be compared in kind, not in value."
)


@dataclass(frozen=True)
class Table:
    """One table: ``name`` is the stem of its CSV, ``formats`` how each column is printed in Markdown."""

    name: str
    title: str
    head: tuple[str, ...]
    formats: tuple[str, ...]
    rows: Rows
    note: str = ""
    picture: str = ""
    printed: bool = True

    def csv(self) -> str:
        """All digits; empty where undefined."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.head)
        writer.writerows([round(cell, 6) if isinstance(cell, float) else cell for cell in row] for row in self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """Title, table, picture and note."""
        parts = [f"## {self.title}"]
        if self.printed:
            left = [fmt == "s" for fmt in self.formats]  # "r" is text too, set to the right
            lines = [list(self.head), ["---" if plain else "---:" for plain in left], *map(self._cells, self.rows)]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if self.picture:
            parts.append(f"![{self.title}]({self.picture})")
        return "\n\n".join([*parts, *([self.note] if self.note else [])])

    def _cells(self, row: Sequence[Cell]) -> list[str]:
        return [
            "-" if cell is None else str(cell).replace("|", "\\|") if fmt in "sr" else format(cell, fmt)
            for cell, fmt in zip(row, self.formats, strict=True)
        ]


def tables(found: Figures) -> Iterator[Table]:
    """The tables that the figures allow, in the paper's order."""
    levels = [f"level{n}" for n in found["run"]["levels"]]
    if "dataset" in found:
        yield _dataset(found)
    yield _overall(found, levels)
    yield from (_by_class(found, level) for level in found.get("classification", ()))
    yield from (_matrix(found, level) for level in found.get("segmentation", ()))
    yield from (_pixels_by_class(found, level) for level in found.get("segmentation", ()))
    yield _correlations(found, levels)
    yield _calibration(found, levels)
    if "single" in found:
        yield _comparison(found, levels)


def _published(found: Figures, part: str, table: Mapping[Any, Any], key: Any) -> Any:
    """A figure of the paper, where the run's classes are those of the paper."""
    legend = found["run"]["patch_legend" if part == "classification" else "legend"]
    return table.get(key) if legend in ("corine", "bigearthnet-43") else None


def _figure(found: Figures, part: str, level: str, name: str) -> Any:
    """None where a part has no such level."""
    return found[part].get(level, {}).get(name)


def _number(level: str) -> int:
    return int(level.removeprefix("level"))


def _dataset(found: Figures) -> Table:
    rows: Rows = []
    for level, here in found["dataset"].items():
        n, tables = _number(level), (published.CARDINALITY, published.DENSITY)
        theirs = [_published(found, "classification", table, n) for table in tables]
        rows.append((n, here["cardinality"], here["density"], here["classes"], here["patches"], *theirs))
    return Table(
        "table2",
        "Table 2. Cardinality and density of the patches",
        ("Level", "Cardinality", "Density", "Classes", "Patches", f"{PAPER}: cardinality", f"{PAPER}: density"),
        ("d", ".2f", ".3f", "d", ",d", ".2f", ".3f"),
        rows,
        "Eqs. 1 and 2: mean number of labels of a patch, and that over the classes that occur.",
    )


_OVERALL = (
    ("Exact match", "classification", "exact", ".1%"),
    ("Partial", "classification", "partial", ".1%"),
    ("Incorrect", "classification", "incorrect", ".1%"),
    ("F1 micro", "classification", "f1_micro", ".3f"),
    ("F1 macro", "classification", "f1_macro", ".3f"),
    ("F1 weighted", "classification", "f1_weighted", ".3f"),
    ("AP micro", "classification", "ap_micro", ".3f"),
    ("AP macro", "classification", "ap_macro", ".3f"),
    ("Pixel accuracy", "segmentation", "overall", ".1%"),
    ("Mean IoU", "segmentation", "mean_iou", ".3f"),
    ("Pixel F1 macro", "segmentation", "macro_f1", ".3f"),
    ("Pixel F1 weighted", "segmentation", "weighted_f1", ".3f"),
)


def _overall(found: Figures, levels: list[str]) -> Table:
    """A row a measure, so that ours and the paper's stand side by side."""
    held = _held(found)
    rows: Rows = []
    for title, part, name, fmt in _OVERALL:
        if part not in found:
            continue
        ours = [_shown(_figure(found, part, level, name), fmt) for level in levels]
        printed = [_published(found, part, published.OVERALL, _number(level)) or {} for level in levels]
        theirs = [_shown(one.get(name), fmt) for one in printed]
        rows.append((title, *ours, *theirs))
    names = [f"Level {_number(level)}" for level in levels]
    pixels = f" {found['pixels']:,} pixels {held}." if "pixels" in found else ""
    counted = {here["patches"] for here in found.get("classification", {}).values()}
    patches = f" {counted.pop():,} validation patches." if counted else ""
    return Table(
        "table3",
        "Table 3. Classification and segmentation",
        ("Measure", *names, *(f"{PAPER}: {name.lower()}" for name in names)),
        ("s", *("r",) * 2 * len(levels)),
        rows,
        f"Eqs. 3 to 8.{patches}{pixels} Macro figures and mean IoU are over the classes that occur; which F1 the paper "
        "prints it does not say, but its Tables 4 to 6 give the micro F1. Its pixel accuracy of level 1 cannot follow "
        "from its Table 7, by which it is at most 86 %.",
    )


def _shown(value: float | None, fmt: str) -> str | None:
    return None if value is None else format(value, fmt)


def _held(found: Figures) -> str:
    return (
        "in blocks held out of training" if found["run"]["where"] == "held_out" else "everywhere, learned from or not"
    )


def _by_class(found: Figures, level: str) -> Table:
    here, n = found["classification"][level], _number(level)
    rows: Rows = []
    for code, row in here["classes"].items():
        if row["images"] or row["predicted"]:
            theirs = (_published(found, "classification", published.per_class(), int(code)) or {}).get("f1")
            figures = [row[name] for name in ("precision", "recall", "f1", "ap", "images", "predicted")]
            rows.append((int(code), row["name"], *figures, theirs))
    return Table(
        f"table{3 + n}",
        f"Table {3 + n}. Classification, level {n}",
        ("Code", "Class", "Precision", "Recall", "F1", "AP", "Images", "Predicted", f"{PAPER}: F1"),
        ("d", "s", ".2f", ".2f", ".2f", ".2f", ",d", ",d", ".2f"),
        rows,
        "" if n == 1 else "The paper prints these rows in another order than their names; here they are put right.",
    )


def _matrix(found: Figures, level: str) -> Table:
    here, n = found["segmentation"][level], _number(level)
    codes = _mapped_codes(here)
    at = [here["codes"].index(code) for code in codes]
    rows: Rows = []
    for code, i in zip(codes, at, strict=True):
        total = sum(here["matrix"][i])
        shares = [here["matrix"][i][j] / total if total else None for j in at]
        rows.append((code, here["classes"][str(code)]["name"], *shares, total))
    note = "Rows are the labels, columns the map; each row sums up to 1."
    if n == 1 and _published(found, "segmentation", published.RECALL_OF_PIXELS, 1):
        diagonal = ", ".join(f"{share:.2f} ({code})" for code, share in published.RECALL_OF_PIXELS.items())
        note += f" The paper's diagonal: {diagonal}."
    return Table(
        f"table{6 + n}",
        f"Table {6 + n}. Confusion matrix of the segmentation, level {n}",
        ("Code", "Class", *map(str, codes), "Pixels"),
        ("d", "s", *(".2f",) * len(codes), ",d"),
        rows,
        note,
        f"matrix_level{n}.png",
        len(codes) <= _WIDEST,
    )


def _mapped_codes(here: Figures) -> list[int]:
    """The classes that occur in the labels or in the map."""
    return [int(code) for code, row in here["classes"].items() if row["pixels"] or row["mapped"]]


def _pixels_by_class(found: Figures, level: str) -> Table:
    here, n = found["segmentation"][level], _number(level)
    rows: Rows = []
    for code in _mapped_codes(here):
        row = here["classes"][str(code)]
        figures = [row[name] for name in ("iou", "f1", "users", "producers", "pixels", "mapped")]
        rows.append((code, row["name"], *figures))
    return Table(
        f"iou_level{n}",
        f"Pixels by class, level {n}",
        ("Code", "Class", "IoU", "F1", "Precision", "Recall", "Pixels", "Mapped"),
        ("d", "s", ".3f", ".3f", ".2f", ".2f", ",d", ",d"),
        rows,
        "IoU is eq. 8; the mean is over the classes with pixels in the labels.",
    )


def _correlations(found: Figures, levels: list[str]) -> Table:
    rows: Rows = []
    for title, part, key in (
        ("images and F1", "classification", "images and F1"), ("pixels and IoU", "segmentation", "pixels and IoU")
    ):  # fmt: skip
        if part in found:
            ours = [_figure(found, part, level, "correlation") for level in levels]
            rows.append((title, *ours, _published(found, part, published.CORRELATION, key)))
    return Table(
        "correlation",
        "Are frequent classes found better?",
        ("Correlation of", *(f"Level {_number(level)}" for level in levels), PAPER),
        ("s", *(".2f",) * len(levels), ".2f"),
        rows,
        "Pearson's, over the classes that occur (section V.A); the paper's 0.59 is that of its level 3.",
    )


def _calibration(found: Figures, levels: list[str]) -> Table:
    rows: Rows = []
    for part, title in (
        ("classification", "Classifier: each class of each patch"),
        ("segmentation", "Segmenter: class of each pixel"),
    ):
        if part in found:
            told = [_figure(found, part, level, "calibration") for level in levels]
            rows.append((title, *(None if one is None else one["ece"] for one in told)))
    said = [
        f"The {name} was calibrated when it was trained, by the temperature {one['temperature']:.2f}."
        for name, one in found["run"]["calibration"].items()
        if one is not None
    ]
    return Table(
        "calibration",
        "Calibration: expected calibration error",
        ("What is said", *(f"Level {_number(level)}" for level in levels)),
        ("s", *(".3f",) * len(levels)),
        rows,
        " ".join(
            [
                "Mean distance of how often it is right from how probable it was said to be, in 15 bins. "
                "A dash: the run keeps no probabilities of that level.",
                *said,
            ]
        ),
        "reliability.png",
    )


def _comparison(found: Figures, levels: list[str]) -> Table:
    """The net over all levels beside the nets of one level."""
    rows: Rows = []
    for title, part, name, fmt in _OVERALL:
        if part not in found or part not in found["single"]:
            continue
        for level in levels:
            one, three = (_figure(of, part, level, name) for of in (found, found["single"]))
            gain = None if one is None or three is None else one - three
            sign = "+.1%" if fmt == ".1%" else "+.3f"
            rows.append((title, _number(level), _shown(one, fmt), _shown(three, fmt), _shown(gain, sign)))
    for title, name in (("Patches whose levels nest", "nested_patches"), ("Pixels whose levels nest", "nested_pixels")):
        if name in found and name in found["single"]:
            one, three = found[name], found["single"][name]
            rows.append((title, None, f"{one:.1%}", f"{three:.1%}", f"{one - three:+.1%}"))
    return Table(
        "comparison",
        "One net over all levels, or one for each",
        ("Measure", "Level", "One net", "One per level", "Difference"),
        ("s", "d", "r", "r", "r"),
        rows,
        "The same data, options, seed and held-out blocks; each segmenter starts from the classifier of its own level, "
        "as in the paper. The nets of one level know no other: neither in their loss nor when a class is decided. "
        "One training each: another seed may differ by as much.",
    )


def markdown(found: Figures) -> str:
    """All tables on one page."""
    run = found["run"]
    models = ", ".join(f"{name} `{sha[:12]}`" for name, sha in run["models"].items() if sha)
    intro = [
        f"# The paper's tables: {run['job']}",
        f"geoflow {run['geoflow']}; {models}. Classes are keyed by their codes.",
    ]
    if run["options"]:
        changed = ", ".join(f"`{key}={value}`" for key, value in run["options"].items())
        intro.append(f"All nets were trained anew, with {changed}.")
    if run["where"] == "all":
        intro.append("**No blocks were held out of training: the figures of pixels flatter.**")
    return "\n\n".join([*intro, _DIFFER, *(table.markdown() for table in tables(found))]) + "\n"


def write_paper(found: Figures, out: Path) -> Path:
    """Write ``OUT/paper``: ``tables.md``, a CSV a table, ``figures.json``, ``classes.json``, a PNG of each matrix.

    Returns
    -------
    Path
        Of ``tables.md``.

    Raises
    ------
    GeoflowError
        If it cannot be written.
    """
    from geoflow.errors import GeoflowError
    from geoflow.jobs.paperfigures import draw_matrix, draw_reliability
    from geoflow.places import make_folder, write_bytes

    folder = out / FOLDER
    files = {f"{table.name}.csv": table.csv().encode() for table in tables(found)}
    files["figures.json"] = (json.dumps(found, indent=1, allow_nan=False) + "\n").encode()
    files["classes.json"] = (json.dumps(found["classes"], indent=1) + "\n").encode()
    for level in found.get("segmentation", ()):
        files[f"matrix_{level}.png"] = draw_matrix(found, level)
    files["reliability.png"] = draw_reliability(found)
    files["tables.md"] = markdown(found).encode()
    try:
        make_folder(folder)
        for name, content in files.items():
            write_bytes(folder / name, content)
    except OSError as error:
        raise GeoflowError(f"{folder} cannot be written: {error.strerror}") from None
    return folder / "tables.md"


def print_paper(console: rich.console.Console, found: Figures) -> None:
    """Tables 2 and 3."""
    from geoflow.jobs.tables import plain_table

    for table in tables(found):
        if table.name in ("table2", "table3", "comparison"):
            console.print(f"[bold]{table.title}[/]")
            shown = plain_table(*table.head)
            for row in table.rows:
                shown.add_row(*table._cells(row))
            console.print(shown)
