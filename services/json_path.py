"""Paths of SQLite's JSON functions (sqlite.org/json1.html)."""

from __future__ import annotations

import msgspec


def member(*names: str) -> str:
    """To the member of that name, in the one before it; whatever characters it has."""
    return "$" + "".join(f".{msgspec.json.encode(name).decode()}" for name in names)
