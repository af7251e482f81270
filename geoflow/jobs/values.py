"""Kinds of values in a job file, each checked as it is read, with an error that says what is accepted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator

from geoflow.errors import StoreError
from geoflow.places import is_remote, place

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a name; use letters, digits, '_', '-' and '.'")
    return value


def _text_of_year(value: Any) -> Any:
    """YAML reads a bare ``2018`` as a number; names are text."""
    return str(value) if type(value) is int else value


Name = Annotated[str, BeforeValidator(_text_of_year, json_schema_input_type=str | int), AfterValidator(_check_name)]


def _check_licence(value: str) -> str:
    if not value:
        return value
    try:
        return str(canonicalize_license_expression(value))
    except InvalidLicenseExpression:
        raise ValueError(
            f"{value!r} is no licence that SPDX lists: write for example CC-BY-4.0 (https://spdx.org/licenses), or "
            "LicenseRef-NAME for one of your own"
        ) from None


Licence = Annotated[str, AfterValidator(_check_licence)]


def _check_web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError(f"{value!r} is no address of a page; it begins with https://")
    return value


WebAddress = Annotated[str, AfterValidator(_check_web_address)]

_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
"""What people may take for a place to read from; `place` says which of them is one."""


def _check_place(value: Any, as_path: ValidatorFunctionWrapHandler) -> Any:
    """Text as a local path, which a job file resolves, or as a place in an object store."""
    if is_remote(value):
        return value
    if isinstance(value, str) and value.partition("://")[0].lower() in _STORES and "://" in value:
        try:
            return place(value)
        except StoreError as error:
            raise ValueError(str(error)) from None
    return as_path(value)


Place = Annotated[Path, WrapValidator(_check_place), PlainSerializer(str, when_used="json")]


def _check_method(value: str) -> str:
    if value not in ("median", "medoid", "geomedian", "best") and not re.fullmatch(r"p(100|[1-9]?[0-9])", value):
        raise ValueError("it must be 'median', 'medoid', 'geomedian', 'best', or a percentile, 'p0' to 'p100'")
    return value


Method = Annotated[str, AfterValidator(_check_method)]
