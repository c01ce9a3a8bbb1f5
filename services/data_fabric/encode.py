"""Rows as JSON, CSV and NDJSON. Pure.

A blob is written as base64 text. JSON has no infinity: it is written as null.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from cdn_daemon.api import RefusedError
from services.data_fabric.infer import Value

_JSON = msgspec.json.Encoder()


class Format(StrEnum):
    """What an answer may be written in."""

    JSON = "json"
    CSV = "csv"
    NDJSON = "ndjson"
    GEOJSON = "geojson"
    NODE_LINK = "node-link"


MEDIA_TYPES = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv; charset=utf-8",
    Format.NDJSON: "application/x-ndjson",
    Format.GEOJSON: "application/geo+json",
    Format.NODE_LINK: "application/json",
}
_ACCEPTED = {
    "application/json": Format.JSON,
    "application/*": Format.JSON,
    "*/*": Format.JSON,
    "text/csv": Format.CSV,
    "text/*": Format.CSV,
    "application/x-ndjson": Format.NDJSON,
    "application/ndjson": Format.NDJSON,
    "application/jsonl": Format.NDJSON,
    "application/geo+json": Format.GEOJSON,
}


def choose(asked: str | None, accept: str | None) -> Format:
    """The format by ``?format=``, else by Accept (RFC 9110, 12.5.1), else JSON; raises RefusedError with 406."""
    if asked is not None:
        try:
            return Format(asked.lower())
        except ValueError:
            raise RefusedError(406, "cannot answer in this format", value=asked, limit=", ".join(Format)) from None
    if not accept:
        return Format.JSON
    wishes: list[tuple[float, int, Format]] = []
    for at, part in enumerate(accept.split(",")):
        media, *options = [piece.strip().lower() for piece in part.split(";")]
        weight = 1.0
        for option in options:
            if option.startswith("q="):
                try:
                    weight = float(option[2:])
                except ValueError:
                    weight = 0.0
        if media in _ACCEPTED and weight > 0:
            wishes.append((-weight, at, _ACCEPTED[media]))
    if not wishes:
        raise RefusedError(
            406, "cannot answer in this format", value=accept, limit="application/json, text/csv, application/x-ndjson"
        )
    return min(wishes)[2]


def head(form: Format, columns: Sequence[str]) -> bytes:
    """What comes before the rows: a CSV's header."""
    return csv_lines([columns]) if form is Format.CSV else b""


def lines(form: Format, columns: Sequence[str], rows: Sequence[tuple[Value, ...]]) -> bytes:
    """The rows, each a line."""
    if form is Format.CSV:
        return csv_lines(rows)
    return b"".join(_JSON.encode(dict(zip(columns, row, strict=True))) + b"\n" for row in rows)


def csv_lines(rows: Sequence[Sequence[Value]]) -> bytes:
    """RFC 4180 lines, ended by CRLF; NULL and the empty text both are an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_MINIMAL)
    for row in rows:
        writer.writerow([base64.b64encode(v).decode() if isinstance(v, bytes) else v for v in row])
    return text.getvalue().encode()


def json_rows(rows: Sequence[tuple[Value, ...]]) -> bytes:
    """The rows as the inside of a JSON array: ``[1,"a"],[2,"b"]``."""
    return _JSON.encode(rows)[1:-1]
