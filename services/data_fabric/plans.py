"""What SQLite's planner says: which indexes a query uses, and which it would use if they were there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeAlias

import apsw

from services.data_fabric.candidates import IndexSpec, candidates
from services.data_fabric.ingest import Column
from services.data_fabric.sql_text import tokens
from services.data_fabric.workload import Plan

Params: TypeAlias = "Sequence[Any] | Mapping[str, Any]"

_USING = re.compile(r"USING (?:COVERING )?INDEX (\S+)")
_SUPPOSED = "cdn_suppose_"


def quoted(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def columns_sql(spec: IndexSpec) -> str:
    """The index's columns as CREATE INDEX wants them."""
    return ", ".join(quoted(name) + (" DESC" if desc else "") for name, desc in spec.columns)


def plan(connection: apsw.Connection, sql: str, params: Params, tables: Mapping[str, Collection[Column]]) -> Plan:
    """Ask the planner about a query that has run; tables are those whose indexes may be changed.

    Its wishes come from a database with the same tables, all empty, where every
    candidate index exists: those that the planner then picks.
    """
    uses = _indexes_used(connection, sql, params)
    proposed = candidates(sql, {name: [column.name for column in columns] for name, columns in tables.items()})
    if not proposed:
        return Plan(uses)
    with closing(apsw.Connection(":memory:")) as supposed:
        mentioned = {token.text.lower() for token in tokens(sql)}
        for name in tables:
            if name.lower() in mentioned:
                declared = ", ".join(f"{quoted(column.name)} {column.type}" for column in tables[name])
                supposed.execute(f"CREATE TABLE {quoted(name)} ({declared})")
        for at, spec in enumerate(proposed):
            supposed.execute(f"CREATE INDEX {_SUPPOSED}{at} ON {quoted(spec.table)} ({columns_sql(spec)})")
        try:
            picked = _indexes_used(supposed, sql, params)
        except apsw.Error:  # it also reads what is not ours, such as an attached file
            return Plan(uses)
    return Plan(uses, tuple(spec for at, spec in enumerate(proposed) if f"{_SUPPOSED}{at}" in picked))


def _indexes_used(connection: apsw.Connection, sql: str, params: Params) -> tuple[str, ...]:
    steps = connection.execute(f"EXPLAIN QUERY PLAN {sql}", params)
    return tuple(dict.fromkeys(name for row in steps for name in _USING.findall(str(row[3]))))
