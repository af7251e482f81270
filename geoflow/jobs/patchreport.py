"""The statistics of a data set of patches, for people and programs: tables, JSON, a plot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geoflow.counting import counted
from geoflow.errors import LabelError
from geoflow.labels.patchlabels import LEVELS, NINETEEN, SCHEMES, multi_hot, scheme_codes, scheme_legend
from geoflow.labels.patchstats import LabelStatistics, Moments, label_statistics
from geoflow.labels.splits import NONE, SPLIT_NAMES
from geoflow.places import place

if TYPE_CHECKING:
    import rich.console

_NAME_WIDTH, _LINEAR_UP_TO = 46, 20
_TEXT_COLUMNS = ("Class", "Measure", "Split", "Band")
SCHEME_TITLES = {**{name: f"Level {level}" for name, level in LEVELS.items()}, NINETEEN: "19 classes"}


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """Everything that is told about a data set.

    Attributes
    ----------
    source : str
        What was read.
    patches : int
        Patches that count; those left out are in ``left_out``.
    labels : dict of scheme -> LabelStatistics
        Of the schemes that the source tells.
    splits : dict of split -> part -> patches
    bands : dict of band -> mean, std, pixels
        Reflectance x 10000 over all pixels that are not nodata; empty for a table of metadata.
    left_out : dict of reason -> patches
    """

    source: str
    patches: int
    labels: Mapping[str, LabelStatistics]
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    bands: Mapping[str, tuple[float, float, int]] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "patches": self.patches,
            "labels": {scheme: found.to_dict() for scheme, found in self.labels.items()},
            "splits": {name: dict(parts) for name, parts in self.splits.items()},
            "bands": {b: {"mean": mean, "std": std, "pixels": n} for b, (mean, std, n) in self.bands.items()},
            "left_out": dict(self.left_out),
        }


def dataset_statistics(source: str | Path) -> DatasetStatistics:
    """The statistics of a store of patches, or of a table of BigEarthNet v2 (``metadata.parquet``).

    Of a store, band statistics are merged from those that each patch brought along when it was read, chunk by chunk, so
    that no pixel is read again.

    Raises
    ------
    LabelError
        If there is no such source, it is none of them, or the store is not complete.
    """
    path = place(source)
    if path.suffix == ".parquet":
        return _of_table(path)
    return _of_store(path)


def _of_table(path: Path) -> DatasetStatistics:
    from geoflow.labels.patchmeta import read_table, split_counts

    table = read_table([path])
    left_out = {"seasonal snow": int(table.snow.sum()), "cloud or shadow": int(table.cloud.sum())}
    return DatasetStatistics(
        path.name,
        len(table),
        labels_of(multi_hot(table.label_of)),
        {"official": split_counts(table)},
        left_out={f"of which flagged: {reason}": n for reason, n in left_out.items() if n},
    )


def _of_store(path: Path) -> DatasetStatistics:
    from geoflow.labels.patchdata import complete_store
    from geoflow.labels.patchstats import merged

    store = complete_store(path)
    skipped = int(store.described["skipped"])
    return DatasetStatistics(
        path.name,
        int(store.described["read"]),
        labels_of({scheme: store.labels(scheme) for scheme in SCHEMES}),
        {name: _named(parts) for name, parts in store.split_counts().items()},
        bands_of(store.bands, merged(store.moments(), len(store.bands))),
        {f"left out: {reason}": n for reason, n in store.described["dropped"].items()}
        | ({"skipped": skipped} if skipped else {}),
    )


def _named(parts: Mapping[str, int]) -> dict[str, int]:
    """Parts of a split without the patches in none of them, where there are no such patches."""
    return {part: n for part, n in parts.items() if n or part != SPLIT_NAMES[NONE]}


def labels_of(labels: Mapping[str, Any]) -> dict[str, LabelStatistics]:
    """The statistics of the schemes in which any patch is known."""
    found = {scheme: label_statistics(labels[scheme], scheme_codes(scheme)) for scheme in SCHEMES}
    return {scheme: stats for scheme, stats in found.items() if stats is not None}


def bands_of(bands: tuple[str, ...], moments: Moments) -> dict[str, tuple[float, float, int]]:
    """Mean, standard deviation and pixels by band."""
    values = zip(bands, moments.mean.tolist(), moments.std.tolist(), moments.count.tolist(), strict=True)
    return {band: (mean, std, count) for band, mean, std, count in values}


def print_statistics(console: rich.console.Console, found: DatasetStatistics) -> None:
    """Print tables: counts by class, complexity by level, splits, bands."""
    left = "".join(f", {reason} {n:,}" for reason, n in found.left_out.items())
    console.print(f"[bold]{found.source}[/]: {counted(found.patches, 'patch')}{left}", highlight=False)
    for title, rows in (
        ("Patches of each class", _class_rows(found)),
        ("Complexity and imbalance", _complexity_rows(found)),
        ("Splits", _split_rows(found)),
        ("Bands (reflectance x 10000)", _band_rows(found)),
    ):
        if len(rows) > 1:
            console.print(_table(title, rows))


def _table(title: str, rows: list[tuple[str, ...]]) -> Any:
    """The first column of names may wrap; numbers never do."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, *values in zip(*rows, strict=True):
        text = name in _TEXT_COLUMNS
        width = None if text else max(map(len, (name, *values)))
        table.add_column(name, justify="left" if text else "right", no_wrap=not text, min_width=width)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _class_rows(found: DatasetStatistics) -> list[tuple[str, ...]]:
    """Codes and names of every level that is known, indented as in the paper's Table 1; else of the 19 classes."""
    levels = [scheme for scheme in LEVELS if scheme in found.labels]
    rows: list[tuple[str, ...]] = [("Code", "Class", "Patches", "%")]
    if "level3" in levels:
        corine = scheme_legend("level3")
        for top in corine.codes(1):
            rows.append(_class_row(found, "level1", top, 0))
            for group in corine.children(top):
                rows.append(_class_row(found, "level2", group, 1))
                rows += [_class_row(found, "level3", code, 2) for code in corine.children(group)]
        return rows
    for scheme in (*levels, NINETEEN):
        if scheme in found.labels:
            rows += [_class_row(found, scheme, code, 0 if scheme == "level1" else 1) for code in _in_order(scheme)]
    return rows


def _in_order(scheme: str) -> list[int]:
    """Codes as a table of classes has them: 11, 121, 21."""
    return sorted(scheme_codes(scheme), key=str)


def _class_row(found: DatasetStatistics, scheme: str, code: int, indent: int) -> tuple[str, ...]:
    stats = found.labels[scheme]
    count = stats.counts[code]
    name = "  " * indent + scheme_legend(scheme).label(code)
    return str(code), name, f"{count:,}", f"{100 * count / stats.patches:.2f}"


def _complexity_rows(found: DatasetStatistics) -> list[tuple[str, ...]]:
    """A row a measure, a column a scheme."""
    stats = tuple(found.labels.values())
    measures: tuple[tuple[str, Callable[[LabelStatistics], str]], ...] = (
        ("Cardinality", lambda s: f"{s.cardinality:.2f}"),
        ("Density (of the classes that occur)", lambda s: f"{s.density:.3f}"),
        ("Classes that occur", lambda s: str(s.classes)),
        ("Distinct label sets", lambda s: f"{s.label_sets:,}"),
        ("Most frequent / rarest class", lambda s: f"{s.imbalance.largest_over_smallest:,.1f}"),
        ("Mean imbalance ratio", lambda s: f"{s.imbalance.mean_ratio:.1f}"),
        ("Evenness (1 is even)", lambda s: f"{s.imbalance.evenness:.2f}"),
        ("Classes of less than 1 %", lambda s: str(s.imbalance.rare_classes)),
        ("Patches", lambda s: f"{s.patches:,}"),
        ("Patches not told", lambda s: f"{s.unknown:,}"),
    )
    head = ("Measure", *(SCHEME_TITLES[scheme] for scheme in found.labels))
    return [head, *((name, *(show(s) for s in stats)) for name, show in measures)]


def _split_rows(found: DatasetStatistics) -> list[tuple[str, ...]]:
    parts = list(dict.fromkeys(part for counts in found.splits.values() for part in counts))
    rows: list[tuple[str, ...]] = [("Split", *(part.capitalize() for part in parts))]
    rows += [(name, *(f"{counts.get(part, 0):,}" for part in parts)) for name, counts in found.splits.items()]
    return rows


def _band_rows(found: DatasetStatistics) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("Band", "Mean", "Std", "Pixels")]
    rows += [(band, f"{mean:.1f}", f"{std:.1f}", f"{n:,}") for band, (mean, std, n) in found.bands.items()]
    return rows


def draw_statistics(found: DatasetStatistics, path: Path) -> None:
    """Draw them: patches of each class in the legend's colours, labels of a patch, and the bands where known.

    Raises
    ------
    LabelError
        If the file cannot be written, or its ending is no format of pictures.
    """
    from matplotlib.figure import Figure

    scheme = "level3" if "level3" in found.labels else NINETEEN
    stats = found.labels[scheme]
    codes = [code for code in _in_order(scheme) if stats.counts[code]]
    figure = Figure(figsize=(11, 2.0 + 0.24 * max(len(codes), 14)), layout="constrained")
    grid = figure.add_gridspec(2 if found.bands else 1, 2, width_ratios=(1.7, 1))
    _draw_classes(figure.add_subplot(grid[:, 0]), scheme, codes, stats)
    _draw_cardinality(figure.add_subplot(grid[0, 1]), found)
    if found.bands:
        _draw_bands(figure.add_subplot(grid[1, 1]), found)
    figure.suptitle(
        f"{found.source}: {counted(found.patches, 'patch')}", x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as problem:
        raise LabelError(f"--plot {path} cannot be written: {problem}") from None


def _draw_classes(axes: Any, scheme: str, codes: list[int], stats: LabelStatistics) -> None:
    legend = scheme_legend(scheme)
    counts = [stats.counts[code] for code in codes]
    colours = [tuple(c / 255 for c in legend.colour(code)) for code in codes]
    names = [legend.label(code) for code in codes]
    labels = [f"{textwrap.fill(name, _NAME_WIDTH)}  {code}" for name, code in zip(names, codes, strict=True)]
    places = np.arange(len(codes))
    axes.barh(places, counts, color=colours, edgecolor="#555555", linewidth=0.4, height=0.75)
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(len(codes) - 0.4, -0.6)
    uneven = max(counts) > _LINEAR_UP_TO * min(counts)
    if uneven:
        axes.set_xscale("log")
        axes.set_xlim(min(counts) / 2, max(counts) * 4)
    else:
        axes.set_xlim(0, max(counts) * 1.15)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for row, count in zip(places, counts, strict=True):
        axes.annotate(
            f"{count:,}", (count, row), (4, 0), textcoords="offset points", va="center", fontsize=7, color="#333333"
        )
    axes.set_xlabel(f"patches that hold the class{' (logarithmic)' if uneven else ''}", fontsize=9)
    _plain(axes)


def _draw_cardinality(axes: Any, found: DatasetStatistics) -> None:
    """A line a scheme: the share of patches with so many labels, and the mean, the cardinality."""
    for scheme, stats in found.labels.items():
        share = 100 * np.array(stats.cardinalities) / stats.patches
        label = f"{SCHEME_TITLES[scheme]}: cardinality {stats.cardinality:.2f}, density {stats.density:.3f}"
        style = "--" if scheme == NINETEEN else "-"  # where no class is left out, it lies on the line of level 3
        axes.plot(np.arange(len(share)), share, style, marker="o", markersize=3, linewidth=1.2, label=label)
    axes.set_xlabel("labels of a patch", fontsize=9)
    axes.set_ylabel("% of patches", fontsize=9)
    axes.set_ylim(0, axes.get_ylim()[1])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    _plain(axes)


def _draw_bands(axes: Any, found: DatasetStatistics) -> None:
    places = np.arange(len(found.bands))
    mean, std = (np.array([values[i] for values in found.bands.values()]) for i in (0, 1))
    axes.errorbar(places, mean, std, fmt="o", markersize=4, capsize=2, linewidth=1, color="#08519c")
    axes.set_xticks(places, found.bands, fontsize=8, rotation=45)
    axes.set_ylabel("reflectance x 10000,\nmean and standard deviation", fontsize=9)
    axes.axhline(0, color="#999999", linewidth=0.5)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
