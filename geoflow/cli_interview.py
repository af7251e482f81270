"""The questions of ``geoflow init``, on a terminal: one for each thing that was not said by an option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from geoflow.cli_screen import make_console
from geoflow.errors import GeoflowError

if TYPE_CHECKING:
    from geoflow.jobs.starter import Wishes


def interview(wishes: Wishes, folder: Path) -> Wishes:
    """Ask for what was not said; an answer that cannot be used is asked for again, with the reason."""
    from geoflow.jobs import starter
    from geoflow.jobs.datasources import BIGEARTHNET_PAGE
    from geoflow.legends import legend

    if wishes.area is None:
        answer = _ask(
            "Border of the area (a file, or west,south,east,north in degrees)",
            None,
            lambda text: starter.read_wished_area(replace(wishes, area=text)),
        )
        wishes = replace(wishes, area=answer)
    wishes = _ask_which(wishes)
    _, area = starter.read_wished_area(wishes)
    lonlat = area.to_crs("EPSG:4326").boundingbox
    if wishes.epochs is None:
        answer = _ask("Years to map", starter.EPOCHS, lambda text: starter.epoch_values(text, lonlat.bottom))
        wishes = replace(wishes, epochs=answer)
    if wishes.catalog is None:
        answer = _ask(
            _catalog_question(),
            starter.CATALOG,
            lambda text: starter.imagery_values(replace(wishes, catalog=text), folder, {}),
        )
        wishes = replace(wishes, catalog=answer)
    if wishes.legend is None:
        wishes = replace(wishes, legend=_ask("Classes (corine, or a CSV of your own)", "corine", legend))
    wishes = _ask_for_labels(wishes, folder)
    if wishes.bigearthnet is None:
        question = f"Folder of BigEarthNet, to train the encoder first ({BIGEARTHNET_PAGE})"
        answer = _ask(question, "none", _is_there_or_none)
        wishes = wishes if answer == "none" else replace(wishes, bigearthnet=Path(answer))
    if wishes.crs is None:
        usual = starter.default_crs(lonlat)
        answer = _ask("Projected CRS of the map", usual, lambda text: starter.grid_values(area, text, 10))
        wishes = replace(wishes, crs=answer)
    return wishes


def _ask_which(wishes: Wishes) -> Wishes:
    """Files of borders hold many countries, and a job maps one area."""
    from geoflow.jobs import starter

    found = starter.features_of(wishes)
    if wishes.where is not None or found is None or found.count < 2:
        return wishes
    question = f"Which of its {found.count} features ({found.example}, or all)"
    answer = _ask(question, "all", lambda text: text == "all" or starter.read_wished_area(replace(wishes, where=text)))
    return wishes if answer == "all" else replace(wishes, where=answer)


def _catalog_question() -> str:
    from geoflow.imagery.catalog import packaged_catalogs

    known = ", ".join(name for name in packaged_catalogs() if name != "sample")
    return f"Where scenes come from ({known}, or a catalog.json on this machine)"


def _ask_for_labels(wishes: Wishes, folder: Path) -> Wishes:
    from geoflow.jobs import starter
    from geoflow.jobs.datasources import CORINE_PAGES

    if wishes.labels is not None:
        return wishes
    epochs = list(starter.epoch_values(wishes.epochs or starter.EPOCHS, 50))
    later = "later" if wishes.legend == "corine" else None
    answer = _ask(
        f"What to learn from (polygons or a raster; CORINE is at {CORINE_PAGES['2018']})",
        later,
        lambda text: text == later or starter.label_values(replace(wishes, labels=Path(text)), folder, epochs, []),
    )
    return wishes if answer == later else replace(wishes, labels=Path(answer))


def _is_there_or_none(text: str) -> None:
    if text != "none" and not Path(text).exists():
        raise GeoflowError(f"there is no {text}")


def _ask(question: str, default: str | None, check: Callable[[str], object]) -> str:
    while True:
        answer = str(typer.prompt(question, default=default)).strip()
        try:
            check(answer)
        except GeoflowError as error:
            make_console(stderr=True).print(f"  {error}", markup=False, highlight=False)
        else:
            return answer
