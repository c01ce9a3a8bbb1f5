"""GET of a JSON object from a server of the fleet, within a time and a size. Not for anything else."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from cli.exits import Exit, Problem

TIMEOUT_S = 3.0
MAX_BYTES = 16 << 20


def get(address: str, *path: str, query: str = "") -> dict[str, Any]:
    """What ``address/path…`` answers. Raises Problem with what was asked, and why there is no answer."""
    where = "/" + "/".join(quote(part, safe="") for part in path) + (f"?{query}" if query else "")
    try:
        parts = urlsplit(address)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", where, headers={"Accept": "application/json"})
            answer = connection.getresponse()
            content = answer.read(MAX_BYTES + 1)
        finally:
            connection.close()
        if len(content) > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES} bytes")
        found = msgspec.json.decode(content, type=dict[str, Any])
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        raise Problem(f"cannot get {address}{where}: {error}; see cdnctl status", Exit.UNKNOWN) from error
    if answer.status != 200:
        refusal = found.get("error")
        told = refusal if isinstance(refusal, dict) else {}
        why = f"{told.get('what', 'refused')} {told.get('value') or ''}".strip()
        raise Problem(f"cannot get {address}{where}: {answer.status}, {why}", Exit.UNKNOWN)
    return found
