"""sd_notify(3), understood as systemd does, and nothing else raised on whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_daemon.warden.sdnotify import MAX_DATAGRAM_BYTES, Notice, NotifyError, parse


@pytest.mark.parametrize(
    ("datagram", "notice"),
    [
        (b"READY=1", Notice(ready=True)),
        (b"READY=1\n", Notice(ready=True)),
        (b"READY=1\nSTATUS=up\nMAINPID=42", Notice(ready=True, status="up", main_pid=42)),
        (b"STOPPING=1", Notice(stopping=True)),
        (b"RELOADING=1\nMONOTONIC_USEC=5", Notice(reloading=True)),
        (b"WATCHDOG=1", Notice(beat=True)),
        (b"WATCHDOG=trigger", Notice(trigger=True)),
        (b"WATCHDOG_USEC=2500000", Notice(watchdog_s=2.5)),
        (b"WATCHDOG_USEC=0", Notice(watchdog_s=0.0)),
        (b"EXTEND_TIMEOUT_USEC=1000000", Notice(extend_s=1.0)),
        (b"ERRNO=2", Notice(errno=2)),
        (b"MAINPID=0", Notice()),
        (b"STATUS=a=b\x07c", Notice(status="a=b?c")),
        ("STATUS=a\r\x85\u2028READY=1\nERRNO=2".encode(), Notice(status="a???READY=1", errno=2)),
        (b"STATUS=\xc3\xa9t\xc3\xa9", Notice(status="été")),
        (b"X_UNKNOWN=1\nFDSTORE=1", Notice()),
        (b"READY=yes", Notice(malformed=1)),
        (b"WATCHDOG_USEC=-1", Notice(malformed=1)),
        (b"WATCHDOG_USEC=" + b"9" * 40, Notice(malformed=1)),
        (b"ERRNO=two\nREADY=1\nnonsense", Notice(ready=True, malformed=2)),
        (b"READY=1\nREADY=1", Notice(ready=True)),
    ],
)
def test_words(datagram: bytes, notice: Notice) -> None:
    assert parse(datagram) == notice


@pytest.mark.parametrize(
    "datagram", [b"", b"hello", b"\xff\xfe=1", b"READY=1\0", b"READY=1\n" + b"x" * MAX_DATAGRAM_BYTES]
)
def test_what_is_none_of_it_is_refused(datagram: bytes) -> None:
    with pytest.raises(NotifyError):
        parse(datagram)


@given(st.one_of(st.binary(max_size=5000), st.text(max_size=500).map(str.encode)))
def test_nothing_else_is_ever_raised(datagram: bytes) -> None:
    try:
        notice = parse(datagram)
    except NotifyError:
        return
    assert notice.status is None or notice.status.isprintable()
