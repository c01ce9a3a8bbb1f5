"""OpenSSH's log: who failed, who got in, and nobody who was only named by whoever typed."""

from __future__ import annotations

import pytest

from services.threat_reaction.sshd import read_line

HEAD = "Dec 10 07:13:56 host sshd[24227]: "


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (HEAD + "Failed password for root from 203.0.113.9 port 42393 ssh2", ("203.0.113.9", "ssh_root_failed", 1)),
        (HEAD + "Failed password for fztu from 203.0.113.9 port 1 ssh2", ("203.0.113.9", "ssh_failed", 1)),
        (
            HEAD + "Failed password for invalid user  x from 203.0.113.9 port 1 ssh2",
            ("203.0.113.9", "ssh_invalid_user", 1),
        ),
        (
            HEAD + "Failed publickey for invalid user a from 2001:db8::1 port 1 ssh2",
            ("2001:db8::1", "ssh_invalid_user", 1),
        ),
        (
            HEAD + "message repeated 5 times: [ Failed password for root from 203.0.113.9 port 42393 ssh2]",
            ("203.0.113.9", "ssh_root_failed", 5),
        ),
        (HEAD + "Accepted password for fztu from 203.0.113.9 port 49116 ssh2", ("203.0.113.9", "ssh_accepted", 1)),
        (
            "2026-11-23T10:00:00.123456+01:00 host sshd-session[1]: Accepted publickey for a from 203.0.113.9 port 1 "
            "ssh2: ED25519 SHA256:abc",
            ("203.0.113.9", "ssh_accepted", 1),
        ),
        (
            HEAD + "Failed password for invalid user x from 192.0.2.1 port 22 ssh2 from 203.0.113.9 port 1 ssh2",
            ("203.0.113.9", "ssh_invalid_user", 1),
        ),
        (
            HEAD + "Failed password for invalid user x from 192.0.2.1 port 22 ssh2: y from 203.0.113.9 port 1 ssh2",
            ("203.0.113.9", "ssh_invalid_user", 1),
        ),
        (HEAD + "Failed password for " + "x" * 980 + " from 192.0.2.1 port 22 ssh2" + "x" * 200, None),
        (HEAD + "Failed password for root from 999.1.1.1 port 42393 ssh2", None),
        (HEAD + "Failed none for invalid user a from 203.0.113.9 port 1 ssh2", None),
        (HEAD + "Connection closed by 203.0.113.9 [preauth]", None),
        ("Dec 99 07:13:56 host sshd[1]: Failed password for root from 203.0.113.9 port 1 ssh2", None),
        ("", None),
    ],
)
def test_a_line(line: str, expected: tuple[str, str, int] | None) -> None:
    """What it tells, or nothing."""
    sighted = read_line(line, 2015)
    assert (None if sighted is None else (str(sighted.address), sighted.kind, sighted.count)) == expected


def test_when() -> None:
    """Syslog's year is the one that is given, and its zone UTC."""
    old = read_line(HEAD + "Failed password for root from 203.0.113.9 port 42393 ssh2", 2015)
    assert old is not None
    assert old.at_s == 1449731636.0
    new = read_line("2026-11-23T10:00:00+01:00 h sshd[1]: Failed password for a from 192.0.2.1 port 1 ssh2", 1)
    assert new is not None
    assert new.at_s == 1795424400.0
