"""Secrets do not leave: taken out of text before it is shown, logged or written.

Errors of GDAL, of HTTP libraries and of Dask quote what they were given: signed links, headers, addresses with a
password. What is taken out is replaced by ``***``; everything else stays as it is, since errors must still be of use.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

HIDDEN = "***"

# Names of parameters and variables whose values are secrets: these words, or names that end in one.
_NAME = (
    r"sig|signature|(?:[a-z0-9_\-]*[_\-])?(?:token|secret|password|passwd|pwd|api[_\-]?key|access[_\-]?key|secret[_\-]?key|"
    r"access[_\-]?key[_\-]?id|subscription[_\-]?key|account[_\-]?key|credential|signature|userpwd|bearer|sas)|"
    r"awsaccesskeyid|accountkey|sharedaccesskey|apikey|password|passwd|token|secret"
)
# After = or a quoted name, but not in prose ("the token: it has ended").
_PAIR = re.compile(
    rf"(?i)(?<![a-z0-9_\-])({_NAME})(\s*=\s*[\"']?|[\"']\s*:\s*[\"']|:(?=[^\s/]))(?!\*\*\*)"
    r"([^\s\"'&;,}\]>)]*[^\s\"'&;,}\]>):.])"
)
_HEADER = re.compile(
    r"\b((?i:bearer|basic|sharedkey|aws4-hmac-sha256))(\s+|%20)(?=\S*[0-9A-Z])(?!\*\*\*)[A-Za-z0-9._~+/=:\-]{8,}"
)
_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.\-]*://)[^\s/@\"'<>]+@")
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_SECRET_VARIABLE = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|ACCESS_KEY|API_?KEY|SUBSCRIPTION_KEY|ACCOUNT_KEY|SAS|USERPWD|BEARER|CONNECTION_STRING|"
    r"GDAL_HTTP_HEADERS"
)
_SHORTEST = 6  # a value of fewer characters would be found in words that mean nothing


def names_secret(name: str) -> bool:
    """Whether an environment variable is one that holds a secret, by its name."""
    return _SECRET_VARIABLE.search(name.upper()) is not None and not name.upper().endswith(("_FILE", "_URL"))


def redact(text: str) -> str:
    """A text without secrets.

    Taken out are the values of parameters that sign or authorise (``sig=``, ``X-Amz-Signature=``, ``token=`` and
    their like), ``Authorization`` headers, user and password of an address, AWS key ids, and, wherever they stand, the
    values that environment variables such as ``AWS_SECRET_ACCESS_KEY`` have here.
    """
    for value in _values_here():
        text = text.replace(value, HIDDEN)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    text = _PAIR.sub(rf"\1\2{HIDDEN}", text)
    return _KEY_ID.sub(HIDDEN, text)


def _values_here() -> list[str]:
    """Secrets of this process's environment, the longest first, since one may be a part of another."""
    values = {v for name, v in os.environ.items() if len(v) >= _SHORTEST and names_secret(name)}
    return sorted(values, key=len, reverse=True)


def redact_all(value: Any) -> Any:
    """The same for every text in plain values: mappings, lists, tuples."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_all(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_all(v) for v in value)
    return value


def scrub(error: BaseException) -> BaseException:
    """Take secrets out of the messages of an exception and of all that led to it, in place.

    Returns
    -------
    BaseException
        The same, or what replaces it: some libraries' exceptions (GDAL's) cannot be altered.
    """
    return _scrubbed(error, {})


def _scrubbed(error: BaseException, known: dict[int, BaseException]) -> BaseException:
    if id(error) in known:
        return known[id(error)]
    clean = error if _cleaned(error) else RuntimeError(redact(f"{type(error).__name__}: {error}"))
    known[id(error)] = clean
    for link in ("__cause__", "__context__"):
        if (led := getattr(error, link)) is not None:
            suppressed = error.__suppress_context__
            setattr(clean, link, _scrubbed(led, known))
            clean.__suppress_context__ = suppressed  # which setting a cause alters
    for inner in (*error.args, *getattr(error, "exceptions", ())):
        if isinstance(inner, BaseException):
            _scrubbed(inner, known)
    return clean.with_traceback(error.__traceback__)


def _cleaned(error: BaseException) -> bool:
    """Whether what an exception says is now without secrets."""
    try:
        args = tuple(redact_all(a) if isinstance(a, str | list | tuple | dict) else a for a in error.args)
        if args != error.args:
            error.args = args
        own = ["strerror", "filename", "filename2"] if isinstance(error, OSError) else []  # its str() is of these
        for name in [*own, *getattr(error, "__dict__", {})]:
            if isinstance(value := getattr(error, name), str) and redact(value) != value:
                setattr(error, name, redact(value))
    except (AttributeError, TypeError):
        return False
    return redact(said := f"{error} {error!r}") == said


@contextmanager
def without_secrets() -> Iterator[None]:
    """What is raised within leaves without secrets."""
    try:
        yield
    except BaseException as error:
        clean = scrub(error)
        if clean is error:
            raise
        raise clean from clean.__cause__


def guard_process() -> None:
    """From now on, logs and tracebacks of this process show no secrets. For programs; may be repeated."""
    if getattr(logging.getLogRecordFactory(), "_redacts", False):
        return
    make = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make(*args, **kwargs)
        try:
            said = made.getMessage()
        except Exception:  # noqa: BLE001  (a wrong format is for logging itself to tell)
            return made
        if (clean := redact(said)) != said:
            made.msg, made.args = clean, None
        if made.exc_info and made.exc_info[1] is not None:
            clean_error = scrub(made.exc_info[1])
            made.exc_info = (type(clean_error), clean_error, made.exc_info[2])
        return made

    record._redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    sys.excepthook = _print_redacted


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
