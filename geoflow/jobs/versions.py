"""Whether client, scheduler and workers run the same code: pickles and pixels depend on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoflow.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

# Package -> how many parts of its version must be the same on client and workers. Tasks travel as pickles between the
# first ones; the others decide on pixels or on how chunks are written.
MATTERS: dict[str, int] = {
    "geoflow": 3, "python": 2, "dask": 3, "distributed": 3, "cloudpickle": 1, "numpy": 1, "zarr": 2, "xarray": 1,
    "rasterio": 2, "torch": 2, "openvino": 2,
}  # fmt: skip
_TOLD = (
    "msgpack",
    "pandas",
    "geopandas",
    "shapely",
    "pyproj",
    "odc-geo",
    "stackstac",
    "odc-stac",
    "s3fs",
    "safetensors",
)
_OF_A_SCHEDULER = ("python", "dask", "distributed")
"""It passes tasks on without opening them."""


@dataclass(frozen=True)
class Difference:
    """A package that is not the same everywhere.

    Attributes
    ----------
    package : str
    here : str
        Version of the client; ``none`` where it is not installed.
    there : mapping
        Address -> version, where it differs.
    matters : bool
        Whether it may break or alter the result.
    """

    package: str
    here: str
    there: Mapping[str, str]
    matters: bool

    def __str__(self) -> str:
        by_version: dict[str, list[str]] = {}
        for address, version in self.there.items():
            by_version.setdefault(version, []).append(address)
        there = "; ".join(f"{version} on {_some(addresses)}" for version, addresses in by_version.items())
        return f"{self.package}: {self.here} here, {there}"


def _some(addresses: list[str], most: int = 3) -> str:
    more = len(addresses) - most
    return ", ".join(addresses[:most]) + (f" and {more} more" if more > 0 else "")


def compare(versions: Mapping[str, Any]) -> list[Difference]:
    """Differences between the client and the rest, from `distributed.Client.get_versions`.

    Parameters
    ----------
    versions : mapping
        ``client``, ``scheduler`` and ``workers`` (by address), each with ``packages``.
    """
    here = versions["client"]["packages"]
    others = {f"worker {address}": found["packages"] for address, found in versions["workers"].items()}
    found = []
    for package in here:
        places = dict(others)
        if package in _OF_A_SCHEDULER and versions.get("scheduler"):
            places["the scheduler"] = versions["scheduler"]["packages"]
        mine = _text(here[package])
        there = {place: _text(packages.get(package)) for place, packages in places.items()}
        there = {place: version for place, version in there.items() if version != mine}
        parts = MATTERS.get(package)
        serious = {place: v for place, v in there.items() if parts and _head(v, parts) != _head(mine, parts)}
        if serious:
            found.append(Difference(package, mine, serious, True))
        elif there:
            found.append(Difference(package, mine, there, False))
    return found


def _text(version: Any) -> str:
    return "none" if version is None else str(version)


def _head(version: str, parts: int) -> list[str]:
    return version.split("+")[0].split(".")[:parts]


def check_versions(client: Client, say: Callable[[str], None]) -> None:
    """Compare the packages of a cluster with those here.

    Parameters
    ----------
    client : distributed.Client
    say : callable
        Told a line for each difference that does not matter.

    Raises
    ------
    ClusterError
        If one matters: it names package, versions and addresses.
    """
    versions: Any = client.get_versions(packages=[*MATTERS, *_TOLD])
    differences = compare(versions)
    if not any(d.matters for d in differences):
        differences += _other_code(client)
    serious = [str(d) for d in differences if d.matters]
    if serious:
        listed = "\n  ".join(serious)
        raise ClusterError(
            f"the cluster runs other versions than this machine:\n  {listed}\n"
            "Install the same versions on both sides, for example from one environment file or image."
        )
    for difference in differences:
        say(f"versions differ, which should do no harm: {difference}")


def _other_code(client: Client) -> list[Difference]:
    """The same version of geoflow, but other files: a checkout that was altered."""
    mine = code_fingerprint()
    found = client.run(code_fingerprint, on_error="return")
    there = {
        f"worker {address}": f"code {value[:8]}" if isinstance(value, str) else f"{type(value).__name__}: {value}"
        for address, value in found.items()
        if value != mine
    }
    return [Difference("geoflow", f"code {mine[:8]}", there, True)] if there else []


@cache
def code_fingerprint() -> str:
    """sha256 of all modules of geoflow as they lie on this machine."""
    root = Path(str(files("geoflow")))
    digest = hashlib.sha256()
    for path in sorted(_modules(root)):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _modules(root: Path) -> Iterable[Path]:
    return (path for path in root.rglob("*.py") if "__pycache__" not in path.parts)
