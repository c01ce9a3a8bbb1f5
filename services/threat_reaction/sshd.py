"""What OpenSSH's log says of who tried to log in. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from services.threat_reaction.judgement import Sighted
from services.threat_reaction.networks import BadNetworkError, read_address

_LINE = re.compile(
    r"(?P<at>\w{3} +\d{1,2} [\d:]{8}|\d{4}-\d\d-\d\d[T ][\d:.]{8,15}(?:Z|[+-]\d\d:?\d\d)?)"
    r" \S+ sshd(?:-session)?\[\d+\]: (?:message repeated (?P<times>\d{1,4}) times: \[ )?"
    r"(?P<what>Failed|Accepted) (?!none )\S+ for (?P<invalid>invalid user )?(?P<user>.*) from"
    r" (?P<address>[\da-fA-F.:]+) port \d+(?: ssh\d)?(?:: .*)?\]?"
)
"""The name is whatever somebody typed. It is matched to the last ``from … port`` of a whole line, so that one that
itself reads ``x from 192.0.2.1 port 22`` accuses nobody but who typed it. ``none`` is how every client begins, and
no guess."""
LINE_CHARS = 1000


def read_line(line: str, year: int) -> Sighted | None:
    """What the line tells, None if nothing; syslog's dates have no year, and no zone: UTC."""
    match = _LINE.fullmatch(line.rstrip()) if len(line) <= LINE_CHARS else None
    if match is None:
        return None
    try:
        address = read_address(match["address"])
        at = _at(match["at"], year)
    except (BadNetworkError, ValueError):
        return None
    if match["what"] == "Accepted":
        kind = "ssh_accepted"
    elif match["invalid"]:
        kind = "ssh_invalid_user"
    else:
        kind = "ssh_root_failed" if match["user"] == "root" else "ssh_failed"
    return Sighted(address=address, kind=kind, at_s=at.timestamp(), count=int(match["times"] or 1), source="sshd")


def _at(text: str, year: int) -> datetime:
    if text[0].isdigit():
        at = datetime.fromisoformat(text)
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    return datetime.strptime(f"{year} {text}", "%Y %b %d %H:%M:%S").replace(tzinfo=UTC)


def read_lines(lines: Iterable[str], year: int) -> list[Sighted]:
    """All that the lines tell."""
    return [sighted for line in lines if (sighted := read_line(line, year)) is not None]
