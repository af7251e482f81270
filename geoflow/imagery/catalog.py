"""What geoflow must know about one provider of Sentinel-2 level 2A, read from a file in ``catalogs/``.

A catalog file holds facts and no code: where to search, what the assets are called, how the radiometric offset is to be
decided, how links are signed, which GDAL options the provider needs. A user's own file works like the ones that come
with geoflow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from geoflow.errors import CatalogError
from geoflow.imagery.links import carries_token
from geoflow.inputs import BANDS

REMOTE_SCHEMES = ("http", "https", "s3")
_GDAL_OPTION = re.compile(
    r"(AWS|AZURE|GS|OSS|SWIFT|VSI|CPL_VSIL|GDAL_HTTP|GTIFF|OPENJPEG|JP2)_[A-Z0-9_]+"
    r"|GDAL_(DISABLE_READDIR_ON_OPEN|INGESTED_BYTES_AT_OPEN|CACHEMAX|NUM_THREADS)|CPL_CURL_[A-Z0-9_]*|VSI_CACHE"
)
_SECRET = re.compile(
    r"SECRET|TOKEN|PASSW|ACCESS_KEY|SAS|USERPWD|BEARER|CREDENTIALS|PRIVATE|CONNECTION_STRING|HEADERS?$"
)


class Filters(BaseModel):
    """Names of the properties by which a server may filter scenes; one that its items lack would drop them all.

    Attributes
    ----------
    cloud, tile, orbit : str or None
        Cloud cover in per cent; Sentinel-2 tile (``MGRS-33TWN`` in ``grid:code``, ``33TWN`` in any other); relative
        orbit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cloud: str | None = None
    tile: str | None = None
    orbit: str | None = None


class Catalog(BaseModel):
    """One provider of scenes.

    Attributes
    ----------
    name : str
        Short name, shown in messages and receipts.
    kind : "static", "api" or "items"
        A static STAC catalog (file or http), a STAC API, or one file that holds items: a GeoJSON FeatureCollection, or
        stac-geoparquet (named ``.parquet`` or ``.geoparquet``).
    url : str or None
        Where it is: a URL or an absolute path. None where the user has to say it (the sample country).
    collection : str or None
        Collection to search; None takes every collection of a static catalog.
    assets : dict
        Band name (``B02``) -> asset key (``blue``).
    scl : str
        Asset key of the scene classification.
    offset : "earth-search", "baseline" or "none"
        How the radiometric offset is decided, see `geoflow.imagery.harmonise`.
    signing : "none" or "planetary-computer"
        How links are signed just before they are read.
    gdal : dict
        GDAL configuration options while reading this provider's files. No credentials: those come from the environment.
    filters : Filters
        What a server may be asked to filter by.
    needs : tuple of str
        Environment variables without which links to s3 cannot be read.
    allow_http : bool
        Follow links to http on any host: what comes may be read and altered on the way.
    licence, attribution : str
        Carried into what is made from the scenes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["static", "api", "items"]
    url: str | None = None
    collection: str | None = None
    assets: dict[str, str] = Field(min_length=1)
    scl: str
    offset: Literal["earth-search", "baseline", "none"]
    signing: Literal["none", "planetary-computer"] = "none"
    gdal: dict[str, str] = Field(default_factory=dict)
    filters: Filters = Filters()
    needs: tuple[str, ...] = ()
    allow_http: bool = False
    licence: str = Field(min_length=1)
    attribution: str = Field(min_length=1)

    @field_validator("url")
    @classmethod
    def _readable_url(cls, url: str | None) -> str | None:
        if url is None or not (scheme := urlparse(url).scheme) or len(scheme) == 1:  # one letter is a Windows drive
            return url
        if scheme.lower() not in REMOTE_SCHEMES:
            raise ValueError("it must be http, https, s3 or a local path")
        if problem := _secret_in(url):
            raise ValueError(problem)
        return url

    @field_validator("gdal", mode="before")
    @classmethod
    def _options_as_text(cls, gdal: Any) -> Any:
        """YAML reads a bare YES as true and 5 as a number; GDAL reads text."""
        if not isinstance(gdal, dict):
            return gdal
        words = {True: "YES", False: "NO"}
        return {k: words[v] if isinstance(v, bool) else str(v) for k, v in gdal.items()}

    @field_validator("gdal")
    @classmethod
    def _harmless_options(cls, gdal: dict[str, str]) -> dict[str, str]:
        for name in gdal:
            if _SECRET.search(name):
                raise ValueError(f"{name} is a credential; set it in the environment, not in a file that is passed on")
            if not _GDAL_OPTION.fullmatch(name) or "VERBOSE" in name:  # which prints headers, keys and all
                raise ValueError(
                    f"{name} is not an option for reading over a network (AWS_..., GDAL_HTTP_..., VSI_...)"
                )
        return gdal

    @field_validator("assets")
    @classmethod
    def _known_bands(cls, assets: dict[str, str]) -> dict[str, str]:
        unknown = sorted(set(assets) - set(BANDS))
        if unknown:
            raise ValueError(f"unknown bands {', '.join(unknown)}; Sentinel-2 level 2A has {', '.join(BANDS)}")
        return assets

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands that the catalog has, in the order of `geoflow.inputs.BANDS`."""
        return tuple(b for b in BANDS if b in self.assets)

    @property
    def root(self) -> str | None:
        """The folder that local files must stay in, or None where the catalog is remote."""
        if self.url is None or is_remote(self.url):
            return None
        return os.path.dirname(self.url)

    def check_bands(self, bands: Sequence[str]) -> None:
        """Raise `CatalogError` naming the bands that this catalog lacks and those that it has."""
        missing = [b for b in bands if b not in self.assets]
        if missing or not bands:
            what = ", ".join(missing) if missing else "an empty list of bands"
            raise CatalogError(f"catalog {self.name} does not have {what}; it has {', '.join(self.bands)}")

    def asset_key(self, band: str) -> str:
        """The asset key of a band; ``SCL`` is the scene classification."""
        return self.scl if band == "SCL" else self.assets[band]

    def check_credentials(self, hrefs: Sequence[str]) -> None:
        """Raise `CatalogError` if links lead to s3 and the environment lacks what the catalog says it needs."""
        missing = [name for name in self.needs if not os.environ.get(name)]
        if missing and "AWS_PROFILE" not in os.environ and any(href.startswith("s3://") for href in hrefs):
            raise CatalogError(
                f"catalog {self.name} is read with credentials from the environment: set {' and '.join(missing)}"
            )


def is_parquet(url: str) -> bool:
    """Whether an address is that of a Parquet file."""
    return urlparse(url).path.lower().endswith((".parquet", ".geoparquet"))


def is_remote(href: str) -> bool:
    """Whether an address is one that is fetched over a network."""
    return urlparse(href).scheme.lower() in REMOTE_SCHEMES


def catalog_folder() -> Path:
    """The folder of the catalogs that come with geoflow: packaged in a wheel, top level in a checkout."""
    packaged = Path(str(files("geoflow"))) / "catalogs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "catalogs"


def packaged_catalogs() -> tuple[str, ...]:
    """The names that `load_catalog` knows."""
    return tuple(sorted(p.stem for p in catalog_folder().glob("*.yaml")))


def load_catalog(name_or_path: str | Path, url: str | None = None) -> Catalog:
    """Read a catalog file.

    Parameters
    ----------
    name_or_path : str or path
        A name from `packaged_catalogs`, or the path of a YAML file (anything with a suffix or a folder in it).
    url : str, optional
        Overrides the catalog's ``url``: a URL, or a path relative to the current folder. Where it names a JSON file, a
        STAC API becomes a static catalog.

    Raises
    ------
    CatalogError
        If there is no such catalog, or the file is not one; the message names the key, its value and what is accepted.
    """
    path = _catalog_path(name_or_path)
    values = _read_yaml(path)
    try:
        catalog = Catalog.model_validate(values)
    except ValidationError as error:
        raise CatalogError(f"{path}: {_first_problem(error)}") from None
    if url is not None:
        return catalog.model_copy(update=_override(catalog, url))
    if catalog.url is not None and not is_remote(catalog.url):
        return catalog.model_copy(update={"url": os.path.normpath(path.resolve().parent / catalog.url)})
    return catalog


def _catalog_path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix or len(path.parts) > 1:
        if not path.is_file():
            raise CatalogError(f"there is no catalog file {path}")
        return path
    packaged = catalog_folder() / f"{path}.yaml"
    if not packaged.is_file():
        known = ", ".join(packaged_catalogs())
        raise CatalogError(
            f"there is no catalog named {str(path)!r}; known are {known}, or give the path of a YAML file"
        )
    return packaged


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(f"catalog file {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CatalogError(f"catalog file {path} must hold keys and values, not {type(values).__name__}")
    return values


def _override(catalog: Catalog, url: str) -> dict[str, Any]:
    """The values that change when a user points a catalog's facts at another place."""
    scheme = urlparse(url).scheme.lower()
    if scheme in REMOTE_SCHEMES:
        if problem := _secret_in(url):
            raise CatalogError(f"catalog url {url!r}: {problem}")
        is_file = urlparse(url).path.endswith((".json", ".geojson")) or is_parquet(url)
        return {"url": url, "kind": "static" if is_file and catalog.kind == "api" else catalog.kind}
    if scheme and len(scheme) > 1:  # one letter is a Windows drive
        raise CatalogError(f"catalog url {url!r} must be http, https, s3 or a local path")
    path = Path(url).absolute()
    if not path.is_file():
        raise CatalogError(f"catalog url {url!r}: there is no such file; give the path of a catalog.json")
    return {"url": os.path.normpath(path), "kind": "static" if catalog.kind == "api" else catalog.kind}


def _secret_in(url: str) -> str:
    """What is wrong with an address that holds a secret: it is shown in messages and written beside the scenes."""
    if "@" in urlparse(url).netloc:
        return "it must not hold a user and password"
    return "it must not hold a token" if carries_token(url) else ""


def _first_problem(error: ValidationError) -> str:
    """One sentence for the first thing that is wrong: key, what is wrong, value."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "file"
    if first["type"] == "extra_forbidden":
        return f"{key} is not a known key; accepted are {', '.join(Catalog.model_fields)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    said = f"{key}: {first['msg'].removeprefix('Value error, ')}"
    secret = key == "gdal" or "@" in str(first["input"])  # may hold what should not stand in a log
    return said if secret else f"{said} (it is {first['input']!r})"
