"""The tables, and how a feature lies in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import numpy as np
from msgspec import Struct

from services.geospatial.geojson import Bounds, Feature
from services.geospatial.layer import Change
from services.geospatial.table import Table
from services.geospatial.times import Interval

VERSION = 1
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS collections (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, settings BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS features (
    number INTEGER PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL, fid TEXT NOT NULL,
    west REAL, south REAL, east REAL, north REAL, begin_s REAL, end_s REAL, vertices INTEGER NOT NULL,
    body TEXT NOT NULL, wkb BLOB
);
CREATE UNIQUE INDEX IF NOT EXISTS features_fid ON features (collection, fid);
CREATE TABLE IF NOT EXISTS positions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, object TEXT NOT NULL, at_s REAL NOT NULL,
    lon REAL NOT NULL, lat REAL NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS positions_object ON positions (object, at_s);
CREATE TABLE IF NOT EXISTS fences (id TEXT PRIMARY KEY, body TEXT NOT NULL, wkb BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inside (
    object TEXT NOT NULL, fence TEXT NOT NULL, PRIMARY KEY (object, fence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS crossings (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, object TEXT NOT NULL, fence TEXT NOT NULL,
    crossing TEXT NOT NULL, lon REAL NOT NULL, lat REAL NOT NULL, at_s REAL NOT NULL
);
PRAGMA user_version={VERSION};
"""
PUT = """
INSERT INTO features (number, collection, fid, west, south, east, north, begin_s, end_s, vertices, body, wkb)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (number) DO UPDATE SET
    west = excluded.west, south = excluded.south, east = excluded.east, north = excluded.north,
    begin_s = excluded.begin_s, end_s = excluded.end_s, vertices = excluded.vertices, body = excluded.body,
    wkb = excluded.wkb
"""


class Settings(Struct, frozen=True, kw_only=True):
    """Of a collection, as it is stored."""

    title: str = ""
    description: str = ""
    created_s: float
    updated_s: float
    names: tuple[str, ...] = ()
    """Of properties that can be asked for."""


class Row(Struct, frozen=True):
    """A feature that was checked, and its shape if it is no point."""

    feature: Feature
    wkb: bytes | None = None
    shape: Any = None

    def stored(self, number: int, collection: int) -> tuple[Any, ...]:
        """As PUT wants it."""
        one = self.feature
        bounds: Sequence[float | None] = one.bounds or (None, None, None, None)
        time: Sequence[float | None] = one.time or (None, None)
        fid = one.fid or str(number)
        return (number, collection, fid, *bounds, *time, one.vertices, one.body(fid), self.wkb)

    def change(self, number: int) -> Change:
        """As the layer wants it."""
        one = self.feature
        return Change(number=number, bounds=one.bounds, time=one.time, is_point=one.is_point, shape=self.shape)


def query(connection: apsw.Connection, sql: str, bindings: Sequence[Any] = ()) -> list[Any]:
    """All rows."""
    return connection.execute(sql, bindings).fetchall()


def loaded(connection: apsw.Connection, collection: int) -> tuple[Table, dict[int, Any]]:
    """A collection as it is in memory: its table, and its shapes by slot."""
    found = query(
        connection,
        "SELECT number, west, south, east, north, begin_s, end_s, vertices FROM features WHERE collection = ? "
        "ORDER BY number",
        (collection,),
    )
    numbers = np.array([row[0] for row in found], np.int64)
    columns = np.array([row[1:] for row in found], np.float64).reshape(-1, 7).T.copy()  # None becomes nan
    table = Table.of(numbers, columns[:4], columns[4:6], columns[6] == 1)
    shaped = query(
        connection,
        "SELECT number, wkb FROM features WHERE collection = ? AND wkb IS NOT NULL ORDER BY number",
        (collection,),
    )
    if not shaped:
        return table, {}
    import shapely

    slots = np.searchsorted(numbers, np.array([number for number, _ in shaped])).tolist()
    return table, dict(zip(slots, shapely.from_wkb([wkb for _, wkb in shaped]), strict=True))


def made(rows: Sequence[Row], numbers: Sequence[int]) -> tuple[Table, dict[int, Any]]:
    """The same, of rows that are about to be stored."""
    nowhere: Bounds = (np.nan, np.nan, np.nan, np.nan)
    never: Interval = (np.nan, np.nan)
    features = [row.feature for row in rows]
    table = Table.of(
        np.array(numbers, np.int64),
        np.array([one.bounds or nowhere for one in features], np.float64).reshape(-1, 4).T.copy(),
        np.array([one.time or never for one in features], np.float64).reshape(-1, 2).T.copy(),
        np.array([one.is_point for one in features], np.bool_),
    )
    return table, {slot: row.shape for slot, row in enumerate(rows) if row.shape is not None}
