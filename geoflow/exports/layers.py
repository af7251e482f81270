"""What a run has that can be exported, and choosing among it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from geoflow.errors import ExportError
from geoflow.legends import listed
from geoflow.places import entries

if TYPE_CHECKING:
    from geoflow.store.zarr import Store

Content = Literal["classes", "state", "percent", "reflectance"]

KINDS = ("map", "confidence", "labels", "generalised", "change", "imagery")
"""What may be asked for."""

USUAL = tuple(kind for kind in KINDS if kind != "imagery")
"""What is exported if nothing is asked for: composites are large, and there is a better copy of them in the store."""


@dataclass(frozen=True)
class Layer:
    """One raster to be a file.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    item : str
        The STAC item that it belongs to, and its folder: ``map-2018``.
    name : str
        Within the item: ``level3``.
    title : str
    group, variable : str
        Where it is in the store.
    content : str
        ``classes`` (codes of ``level``), ``state`` (of a change), ``percent`` or ``reflectance``.
    level : int, optional
    epochs : tuple of str
        One, or two of a change; of labels none, or the one they are of.
    select : mapping
        Labels of leading dimensions: ``{"period": "summer"}``.
    """

    kind: str
    item: str
    name: str
    title: str
    group: str
    variable: str
    content: Content
    level: int | None = None
    epochs: tuple[str, ...] = ()
    select: Mapping[str, str] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Name of its files without their endings."""
        return f"{self.item}-{self.name}"

    @property
    def file(self) -> str:
        """Its COG within the export."""
        return f"{self.item}/{self.stem}.tif"


@dataclass(frozen=True)
class ExportChoice:
    """What to export; by default all but imagery, of all levels and epochs, of the whole grid.

    Attributes
    ----------
    layers : tuple of str
        Of ``map``, ``confidence``, ``labels``, ``generalised``, ``change``, ``imagery``.
    levels : tuple of int
        Of class maps; all if empty.
    epochs : tuple of str
        All if empty. A change belongs to the epochs that it compares: one of them is enough.
    bbox : tuple, optional
        (west, south, east, north) in degrees. The files reach out to whole pixels.
    area : path, optional
        A file of polygons in any CRS. The files cover what is around them, and are nodata outside.
    """

    layers: tuple[str, ...] = USUAL
    levels: tuple[int, ...] = ()
    epochs: tuple[str, ...] = ()
    bbox: tuple[float, float, float, float] | None = None
    area: Path | str | None = None


def layers_there(store: Store, levels: Sequence[int], labels_epoch: str | None = None) -> list[Layer]:
    """All layers of a store, in the order in which people look for them.

    Parameters
    ----------
    store : Store
    levels : sequence of int
        Of the legend.
    labels_epoch : str, optional
        The epoch that the labels are of.
    """
    found: list[Layer] = []
    for epoch in _names(store, "map"):
        found += _classes(f"map/{epoch}", "map", f"map-{epoch}", f"Land cover {epoch}", levels, (epoch,))
        title = f"Confidence of the land cover {epoch}"
        found.append(
            Layer("confidence", f"map-{epoch}", "confidence", title, f"map/{epoch}", "confidence", "percent",
                  epochs=(epoch,))
        )  # fmt: skip
    for name in _names(store, "generalised"):
        for epoch in _names(store, f"generalised/{name}"):
            title, item = f"Land cover {epoch}, generalised ({name})", f"generalised-{name}-{epoch}"
            found += _classes(f"generalised/{name}/{epoch}", "generalised", item, title, levels, (epoch,))
    for pair in _names(store, "change"):
        found += _change(store, pair, max(levels))
    for name in _names(store, "labels"):
        of = (labels_epoch,) if labels_epoch else ()
        found += _classes(f"labels/{name}", "labels", f"labels-{name}", f"Labels {name}", levels, of)
    for epoch in _names(store, "imagery"):
        found += _imagery(store, epoch)
    return found


def choose(there: Iterable[Layer], choice: ExportChoice) -> list[Layer]:
    """The layers that are asked for.

    Raises
    ------
    ExportError
        If a layer, level or epoch is asked for that the run does not have.
    """
    there = list(there)
    if unknown := [name for name in choice.layers if name not in KINDS]:
        raise ExportError(f"--layers {unknown[0]!r} is none of {', '.join(KINDS)}")
    kinds = {layer.kind for layer in there}
    if choice.layers != USUAL and (absent := [name for name in choice.layers if name not in kinds]):
        raise ExportError(f"--layers {absent[0]}: the run has none; it has {listed(k for k in KINDS if k in kinds)}")
    levels = sorted({layer.level for layer in there if layer.level is not None})
    if strange := [level for level in choice.levels if level not in levels]:
        raise ExportError(f"--level {strange[0]}: the run's maps have the levels {listed(levels)}")
    epochs = sorted({epoch for layer in there for epoch in layer.epochs})
    if missing := [epoch for epoch in choice.epochs if epoch not in epochs]:
        raise ExportError(f"--epoch {missing[0]}: the run has the epochs {listed(epochs)}")
    chosen = [layer for layer in there if layer.kind in choice.layers]
    if choice.levels:
        # What has no level of its own (confidence, change) is there whatever the level.
        chosen = [one for one in chosen if one.level is None or one.kind == "change" or one.level in choice.levels]
    if choice.epochs:
        chosen = [layer for layer in chosen if not layer.epochs or set(layer.epochs) & set(choice.epochs)]
    if not chosen:
        raise ExportError("nothing is left to export: ask for more layers, levels or epochs")
    return chosen


def _classes(
    group: str, kind: str, item: str, title: str, levels: Sequence[int], epochs: tuple[str, ...]
) -> list[Layer]:
    return [
        Layer(kind, item, f"level{n}", f"{title}, level {n}" if len(levels) > 1 else title, group, f"level{n}",
              "classes", n, epochs)
        for n in reversed(levels)
    ]  # fmt: skip


def _change(store: Store, pair: str, deepest: int) -> list[Layer]:
    group, item = f"change/{pair}", f"change-{pair}"
    attrs: dict[str, Any] = dict(store.dataset(group, dask=False).attrs)
    epochs = tuple(str(attrs.get(key, part)) for key, part in zip(("before", "after"), pair.split("-"), strict=False))
    before, after = epochs
    what = f"Land cover change {before} to {after}"

    def layer(name: str, title: str, variable: str, content: Content, level: int | None = None) -> Layer:
        return Layer("change", item, name, title, group, variable, content, level, epochs)

    return [
        layer("state", what, "change", "state"),
        layer("from", f"{what}: class in {before}, where changed", "from_code", "classes", deepest),
        layer("to", f"{what}: class in {after}, where changed", "to_code", "classes", deepest),
        layer("confidence", f"{what}: probability of change", "confidence", "percent"),
    ]


def _imagery(store: Store, epoch: str) -> list[Layer]:
    group = f"imagery/{epoch}"
    periods = [str(name) for name in store.dataset(group, dask=False)["period"].values]
    return [
        Layer("imagery", f"imagery-{epoch}", period, f"Sentinel-2 composite {epoch}, {period}", group, "reflectance",
              "reflectance", None, (epoch,), {"period": period})
        for period in periods
    ]  # fmt: skip


def _names(store: Store, group: str) -> list[str]:
    """Groups in a group, sorted."""
    return sorted(path.name for path in entries(store.path / group)[0] if (path / "zarr.json").is_file())
