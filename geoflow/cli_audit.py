"""``geoflow audit``: which labels of patches are suspicious, what they should be, and whether mending them helps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoflow.cli_options import Json, Where, end_on_termination, values_of
from geoflow.cli_screen import screen

if TYPE_CHECKING:
    from geoflow.cli_screen import Screen


def audit(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Store of patches, or output of a run.", show_default=False)
    ],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the audit goes; OUT/audit or STORE-audit by default.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCHEME", help="level1, level2, level3 or nineteen; several at once by naming them again."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, metavar="N", help="Folds of the patches: a model each.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Models of each fold, averaged.")] = 1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the folds and of the first models.")] = 0,
    by: Annotated[
        str, typer.Option(metavar="HOW", help="Folds of squares of land (place), or of patches (random).")
    ] = "place",
    square: Annotated[float, typer.Option(min=0.1, metavar="KM", help="Edge of the squares of land.")] = 4.8,
    image_alone: Annotated[bool, typer.Option("--image-alone", help="Do not weigh labels of patches around.")] = False,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=1, metavar="SHARE", help="Least probability of a suggestion.")
    ] = 0.9,
    worst: Annotated[int, typer.Option(min=1, metavar="N", help="Patches on the page.")] = 60,
    retrain: Annotated[
        int,
        typer.Option(min=0, metavar="SEEDS", help="Train again on given and on cleaned labels, with so many seeds."),
    ] = 0,
    fix: Annotated[
        str, typer.Option(metavar="HOW", help="Cleaning: drop suspicious patches, or correct their labels.")
    ] = "drop",
    truth: Annotated[
        Path | None, typer.Option(metavar="CSV", help="True labels, columns patch and true: how many were found?")
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Audit the rasterised labels of a run instead, with its segmenter.")
    ] = False,
    block: Annotated[int, typer.Option(min=1, metavar="PX", help="With --pixels: edge of the blocks of folds.")] = 256,
    min_ha: Annotated[float, typer.Option(min=0, metavar="HA", help="With --pixels: smallest area to list.")] = 2.0,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A training option of the net.")] = None,
    cluster: Where = None,
    as_json: Json = False,
) -> None:
    """Rank the patches of a data set by how suspicious their labels are, and suggest what to change.

    Models of folds, seeds and levels are trained several at once; an audit that was interrupted goes on.

    Example: geoflow audit out/quickstart --retrain 2 --truth out/sample/truth/patches_wrong_labels.csv
    """
    from geoflow.jobs.audit import AuditOptions, read_truth
    from geoflow.jobs.auditrun import audit_source
    from geoflow.jobs.pixelaudit import PixelOptions, audit_pixels

    shown = screen(as_json)
    options = AuditOptions(folds, seeds, seed, by, square * 1000, surroundings=not image_alone, confidence=confidence)
    known = None if truth is None else read_truth(truth)
    end_on_termination()
    if pixels:
        judged = PixelOptions(folds, block, seed, confidence, min_ha)
        where = to or source / "audit" / "pixels"
        counted = audit_pixels(source, where, judged, values_of(option or []), cluster, shown.progress)
        if as_json:
            shown.json({**counted, "out": str(where)})
        shown.last(
            f"labels of {counted['doubted_px'] / max(1, counted['judged_px']):.1%} of the pixels are doubted; "
            f"{counted['areas']:,} areas, {counted['areas_ha']:,.0f} ha, in [bold]{where / 'areas.parquet'}[/]"
        )
        return
    found = audit_source(
        source, to, tuple(labels or ()), options, values_of(option or []), worst, known, range(retrain), fix,
        cluster, shown.progress,
    )  # fmt: skip
    if as_json:
        shown.json([{**summary, "out": str(folder)} for folder, summary in found.items()])
    for folder, summary in found.items():
        _print(shown, folder, summary)


def _print(shown: Screen, folder: Path, summary: dict[str, Any]) -> None:
    lines = []
    told = summary.get("truth")
    if told and told["wrong"]:
        lines.append(
            f"  of {told['wrong']} patches known to be wrong {told['in_worst_tenth']:.0%} are in the worst tenth "
            f"({told['in_worst_tenth_by_image_alone']:.0%} by the image alone)"
        )
    again = summary.get("retrain")
    if again:
        lines.append(
            f"  trained again, {again['changed']} patches {again['fix']}ped".replace("correctped", "corrected")
        )
        for key, words in (("as_given", "labels as given"), ("true", "true labels")):
            if key in again:
                row = again[key]["f1_micro"]
                error = "" if row["error"] is None else f" ± {row['error']:.3f}"
                lines.append(
                    f"  F1 (micro) against {words}: {row['given']:.3f} -> {row['cleaned']:.3f} "
                    f"({row['difference']:+.3f}{error})"
                )
    for line in lines:
        shown.out.print(line, highlight=False)
    shown.last(
        f"{summary['labels']}: labels of {summary['suspicious']:,} of {summary['patches']:,} patches are doubted; "
        f"[bold]{folder / 'index.html'}[/]"
    )
