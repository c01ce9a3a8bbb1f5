"""STIX patterns: which values a pattern stands for, if it stands for plain values.

A pattern is indexed if any one of its values makes it true: comparisons of an address, a network, a name,
a URL or a hash with ``=``, ``IN`` or ``ISSUBSET``, joined by OR. That is what feeds send, by the hundred thousand, so
it is read by a regular expression in a few microseconds. Whatever else is parsed by OASIS' own stix2-patterns (0.4 ms,
and 45 ms to import, hence late) to see that it is a pattern at all, then stored, and said to be not indexed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from services.threat_intel.values import HASHES, Kind, NoValue, Value, read


class BadPattern(ValueError):
    """What is no STIX pattern; the text says why."""


_STRING = r"'(?:[^'\\]|\\['\\])*'"
_OPEN = re.compile(r"\s*\[")
_COMPARISON = re.compile(
    rf"\s*([a-z0-9-]+:[A-Za-z0-9_.'-]+)\s*(?:(=|ISSUBSET)\s*({_STRING})|IN\s*\(\s*({_STRING}(?:\s*,\s*{_STRING})*)\s*\))"
)
_NEXT = re.compile(r"\s*(OR\b|\](?:\s*OR\b|\s*\Z))")
_STRINGS = re.compile(_STRING)
_KINDS = {
    "ipv4-addr:value": Kind.IPV4,
    "ipv6-addr:value": Kind.IPV6,
    "domain-name:value": Kind.DOMAIN,
    "url:value": Kind.URL,
}
_TRAFFIC = {"network-traffic:dst_ref.value", "network-traffic:src_ref.value"}
_ADDRESSES = {Kind.IPV4, Kind.IPV6}
_HASH = re.compile(r"file:hashes\.'?(MD5|SHA-?1|SHA-?256|SHA-?512)'?")


def read_pattern(pattern: str) -> tuple[Value, ...]:
    """The values that a pattern stands for; none if it is not of the kind that is indexed. Raises BadPattern."""
    values: list[Value] = []
    for path, operator, text in _comparisons(pattern) or ():
        value = _value(path, operator, text)
        if value is None:
            break
        values.append(value)
    else:
        if values:
            return tuple(dict.fromkeys(values))
    _check(pattern)
    return ()


def _comparisons(pattern: str) -> list[tuple[str, str, str]] | None:
    """(path, operator, text) of each comparison; None if there is anything in the pattern but those, joined by OR."""
    found: list[tuple[str, str, str]] = []
    at, is_inside = 0, False
    while at < len(pattern):
        if not is_inside:
            opened = _OPEN.match(pattern, at)
            if opened is None:
                return None
            at, is_inside = opened.end(), True
        comparison = _COMPARISON.match(pattern, at)
        if comparison is None:
            return None
        path, operator, one, several = comparison.groups()
        found += [(path, operator or "IN", text) for text in _unquoted(one or several)]
        after = _NEXT.match(pattern, comparison.end())
        if after is None:
            return None
        at, is_inside = after.end(), after[1] == "OR"
        if after[1].startswith("]") and after[1].endswith("OR") and at >= len(pattern):
            return None
    return None if is_inside else found


def _unquoted(strings: str) -> Iterator[str]:
    for string in _STRINGS.findall(strings):
        yield string[1:-1].replace("\\'", "'").replace("\\\\", "\\")


def _value(path: str, operator: str, text: str) -> Value | None:
    try:
        value = read(text)
    except NoValue:
        return None
    if operator == "ISSUBSET" and value.kind not in _ADDRESSES:
        return None
    if path in _TRAFFIC:
        return value if value.kind in _ADDRESSES | {Kind.DOMAIN} else None
    if hash_path := _HASH.fullmatch(path):
        name = hash_path[1].replace("-", "")
        return value if value.kind is Kind.FILE and HASHES[len(value.key)].replace("-", "") == name else None
    return value if _KINDS.get(path) is value.kind else None


def _check(pattern: str) -> None:
    from stix2patterns.exceptions import ParseException
    from stix2patterns.v21.pattern import Pattern

    try:
        Pattern(pattern)
    except (ParseException, RecursionError) as error:
        raise BadPattern(f"it is no STIX pattern: {str(error) or 'nested too deeply'}") from error
