"""Receipts of a stage as a mapping that lies on disk: a country has more of them than a driver should hold."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, MutableMapping
from typing import Any


class Spool(MutableMapping[str, dict[str, Any]]):
    """Plain values by key, in an unnamed temporary database that vanishes with its last user.

    Values come back as copies: what is to stay must be set.
    """

    def __init__(self) -> None:
        # An empty name: SQLite keeps some pages in memory and the rest in a file without a name.
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("CREATE TABLE spool (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def __setitem__(self, key: str, value: dict[str, Any]) -> None:
        self._rows.execute("INSERT OR REPLACE INTO spool VALUES (?, ?)", (key, json.dumps(value)))

    def __getitem__(self, key: str) -> dict[str, Any]:
        found = self._rows.execute("SELECT value FROM spool WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise KeyError(key)
        return dict(json.loads(found[0]))

    def __delitem__(self, key: str) -> None:
        if not self._rows.execute("DELETE FROM spool WHERE key = ?", (key,)).rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (str(row[0]) for row in self._rows.execute("SELECT key FROM spool ORDER BY key"))

    def __len__(self) -> int:
        return int(self._rows.execute("SELECT count(*) FROM spool").fetchone()[0])
