"""Which indexes a query could use: from its equalities, ranges and ORDER BY. Pure.

A reading of the text that knows where it is out of its depth: what it does not understand
(OR, functions of a column, COLLATE, views) it leaves out. What it proposes is put before
SQLite's own planner (plans.py) before anybody believes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from msgspec import Struct

from services.data_fabric.sql_text import Kind, Token, tokens

Schema: TypeAlias = Mapping[str, Sequence[str]]
"""Table → its columns, as they are written in its declaration."""

MAX_INDEX_COLUMNS = 5
MAX_CANDIDATES = 8
MAX_DEPTH = 100
"""Brackets within brackets; what is deeper is not looked at. SQLite's parser ends at about the same depth."""
_CLAUSES = ("select", "from", "where", "group", "having", "window", "order", "limit")
_JOINS = {"join", "natural", "left", "right", "full", "inner", "outer", "cross"}
_EQUALS = {"=", "==", "is"}
_RANGES = {"<", ">", "<=", ">=", "between"}


class IndexSpec(Struct, frozen=True, order=True):
    """An index that could be: a table's columns in order, each with whether it is descending."""

    table: str
    columns: tuple[tuple[str, bool], ...]

    def __str__(self) -> str:
        return f"{self.table}({', '.join(name + (' DESC' if desc else '') for name, desc in self.columns)})"

    def starts(self, other: IndexSpec) -> bool:
        """Whether other can do all that this can: the same columns, and perhaps more after them."""
        return self.table == other.table and other.columns[: len(self.columns)] == self.columns


Tree: TypeAlias = "list[Token | Tree]"
_Column: TypeAlias = tuple[str, str]  # alias of a table in this scope, column


def candidates(sql: str, schema: Schema) -> tuple[IndexSpec, ...]:
    """Indexes that may serve the query, at most MAX_CANDIDATES, the widest use first."""
    found: dict[IndexSpec, None] = {}
    for select in _selects(_tree(tokens(sql))):
        for spec in _of_select(select, schema):
            found.setdefault(spec)
    return tuple(found)[:MAX_CANDIDATES]


def _tree(flat: list[Token]) -> Tree:
    stack: list[Tree] = [[]]
    for token in flat:
        if token == Token(Kind.OPERATOR, "("):
            stack.append([])
            if len(stack) > MAX_DEPTH:
                return []
        elif token == Token(Kind.OPERATOR, ")") and len(stack) > 1:
            inner = stack.pop()
            stack[-1].append(inner)
        else:
            stack[-1].append(token)
    while len(stack) > 1:
        inner = stack.pop()
        stack[-1].append(inner)
    return stack[0]


def _selects(tree: Tree) -> Iterator[Tree]:
    """Every SELECT in the tree, each without the others of its compound; outer ones first."""
    pending = [tree]
    while pending:
        branch = pending.pop(0)
        part: Tree = []
        for node in branch:
            if _word(node) in {"union", "intersect", "except"}:
                yield part
                part = []
            else:
                part.append(node)
            if isinstance(node, list):
                pending.append(node)
        if any(_word(node) == "select" for node in part):
            yield part


def _of_select(select: Tree, schema: Schema) -> Iterator[IndexSpec]:
    clauses = _clauses(select)
    tables, conditions = _from(clauses.get("from", []), schema)
    if not tables:
        return
    conjuncts = [*_conjuncts(clauses.get("where", [])), *(c for on in conditions for c in _conjuncts(on))]
    scope = _Scope(tables)
    equal: dict[str, set[str]] = {alias: set() for alias in tables}
    listed: dict[str, set[str]] = {alias: set() for alias in tables}
    ranged: dict[str, list[str]] = {alias: [] for alias in tables}
    for conjunct in conjuncts:
        for (alias, column), operator in scope.terms(conjunct):
            if operator in _EQUALS:
                equal[alias].add(column)
            elif operator == "in":
                listed[alias].add(column)
            elif column not in ranged[alias]:
                ranged[alias].append(column)
    order = scope.order(clauses.get("group", [])) or scope.order(clauses.get("order", []))
    for alias, table in tables.items():
        fixed = [*sorted(equal[alias]), *sorted(listed[alias] - equal[alias])]
        spans = [column for column in ranged[alias] if column not in fixed]
        sorting = [(c, d) for a, c, d in order if a == alias and c not in fixed]
        if sorting and not fixed and not spans and "limit" not in clauses and "group" not in clauses:
            sorting = []  # a whole table in order: an index saves the sort, and pays for it with a seek per row
        if sorting and sorting[0][1]:  # an index is read backwards as well
            sorting = [(column, not desc) for column, desc in sorting]
        first = [(c, False) for c in fixed]
        yield from _spec(table.name, [*first, *sorting, *((c, False) for c in spans if c not in dict(sorting))])
        if spans and sorting:
            yield from _spec(table.name, [*first, (spans[0], False)])
        if sorting and fixed:
            yield from _spec(table.name, first)
        if len(fixed) > 1:  # of a join's two sides only one may be known when this table's turn comes
            yield from (spec for column in first for spec in _spec(table.name, [column]))


def _spec(table: str, columns: list[tuple[str, bool]]) -> Iterator[IndexSpec]:
    if columns:
        yield IndexSpec(table, tuple(columns[:MAX_INDEX_COLUMNS]))


class _Table(Struct, frozen=True):
    name: str
    columns: dict[str, str]  # lower case → as declared


class _Scope:
    """The tables of one FROM, and what names mean among them."""

    def __init__(self, tables: dict[str, _Table]) -> None:
        self.tables = tables

    def column(self, nodes: Tree) -> _Column | None:
        """What the nodes name, if they name a column here and nothing else."""
        names = [node.text.lower() for node in nodes if isinstance(node, Token)]
        if len(names) != len(nodes):
            return None
        match nodes:
            case [Token(kind=Kind.WORD | Kind.QUOTED)]:
                owners = [alias for alias, table in self.tables.items() if names[0] in table.columns]
                return (owners[0], self.tables[owners[0]].columns[names[0]]) if len(owners) == 1 else None
            case [Token(kind=Kind.WORD | Kind.QUOTED), Token(text="."), Token(kind=Kind.WORD | Kind.QUOTED)]:
                table = self.tables.get(names[0])
                return (names[0], table.columns[names[2]]) if table and names[2] in table.columns else None
        return None

    def mentions(self, nodes: Tree, alias: str) -> bool:
        """Whether anything in the nodes is, or may be, of that table."""
        for at, node in enumerate(nodes):
            if isinstance(node, list):
                if self.mentions(node, alias):
                    return True
            elif node.kind in (Kind.WORD, Kind.QUOTED):
                qualified = at >= 2 and nodes[at - 1] == Token(Kind.OPERATOR, ".")
                before = nodes[at - 2] if qualified else None
                if isinstance(before, Token):
                    if before.text.lower() == alias:
                        return True
                elif node.text.lower() in self.tables[alias].columns:
                    return True
        return False

    def terms(self, conjunct: Tree) -> Iterator[tuple[_Column, str]]:
        """(column, operator) for each column that the conjunct compares with something not of its own table."""
        words = [_word(node) for node in conjunct]
        if "collate" in words or "or" in words or (words and words[0] in {"not", "exists", "case"}):
            return
        at = next((i for i, node in enumerate(conjunct) if _operator(node) in _EQUALS | _RANGES | {"in"}), None)
        if at is None:
            return
        operator = _operator(conjunct[at])
        left, right = conjunct[:at], conjunct[at + 1 :]
        if (left and _word(left[-1]) == "not") or (right and _word(right[0]) == "not"):
            return
        column = self.column(left)
        if column is not None and not self.mentions(right, column[0]):
            yield column, operator
        if operator not in {"in", "between"}:
            column = self.column(right)
            if column is not None and not self.mentions(left, column[0]):
                yield column, operator

    def order(self, clause: Tree) -> list[tuple[str, str, bool]]:
        """(alias, column, descending) of an ORDER BY or GROUP BY of plain columns of one table; else nothing."""
        found: list[tuple[str, str, bool]] = []
        for term in _split(clause[1:], ","):  # clause[0] is BY
            descending = bool(term) and _word(term[-1]) == "desc"
            if term and _word(term[-1]) in {"asc", "desc"}:
                term = term[:-1]
            column = self.column(term)
            if column is None or (found and found[0][0] != column[0]):
                return []
            found.append((*column, descending))
        return found


def _clauses(select: Tree) -> dict[str, Tree]:
    clauses: dict[str, Tree] = {}
    current: Tree | None = None
    for node in select:
        word = _word(node)
        if word in _CLAUSES and (current is not None or word == "select") and word not in clauses:
            current = clauses[word] = []
        elif current is not None:
            current.append(node)
    return clauses


def _from(clause: Tree, schema: Schema) -> tuple[dict[str, _Table], list[Tree]]:
    """Tables by alias, and the conditions of their joins. Outer joins' conditions count: SQLite decides."""
    known = {name.lower(): _Table(name, {c.lower(): c for c in columns}) for name, columns in schema.items()}
    tables: dict[str, _Table] = {}
    conditions: list[Tree] = []
    item: Tree = []
    items: list[Tree] = [item]
    for node in clause:
        if _word(node) in _JOINS or _operator(node) == ",":
            items.append(item := [])
        else:
            item.append(node)
    for item in items:
        words = [_word(node) for node in item]
        if "on" in words:
            conditions.append(item[words.index("on") + 1 :])
            item = item[: words.index("on")]
        elif "using" in words:
            item = item[: words.index("using")]
        names = [node.text.lower() for node in item if isinstance(node, Token) and _word(node) != "as"]
        if not names or isinstance(item[0], list) or any(isinstance(node, list) for node in item):
            continue
        if len(names) >= 3 and names[1] == ".":
            if names[0] != "main":
                continue
            names = names[2:]
        if names[0] in known:
            tables[names[1] if len(names) == 2 else names[0]] = known[names[0]]
    return tables, conditions


def _conjuncts(clause: Tree) -> Iterator[Tree]:
    """What must all hold; nothing of it, if some of it is an OR."""
    if any(_word(node) == "or" for node in clause):
        return
    for part in _split(clause, "and"):
        if len(part) == 1 and isinstance(part[0], list) and not any(_word(node) == "select" for node in part[0]):
            yield from _conjuncts(part[0])
        else:
            yield part


def _split(nodes: Tree, separator: str) -> list[Tree]:
    """Parts between separators; the AND that belongs to a BETWEEN separates nothing."""
    parts: list[Tree] = [[]]
    between = False
    for node in nodes:
        word = _operator(node)
        if word == separator and not (between and word == "and"):
            parts.append([])
        else:
            between = word == "between" or (between and word != "and")
            parts[-1].append(node)
    return [part for part in parts if part]


def _word(node: Token | Tree) -> str:
    return node.text if isinstance(node, Token) and node.kind is Kind.WORD else ""


def _operator(node: Token | Tree) -> str:
    return node.text if isinstance(node, Token) and node.kind in (Kind.WORD, Kind.OPERATOR) else ""
