"""Whatever comes, a receiver raises nothing but its declared error, counts it, and goes on."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bus.endpoints import RunDir
from cdn_daemon.claim import claim
from cdn_daemon.warden.inbox import Inbox
from cdn_daemon.warden.sdnotify import MAX_DATAGRAM_BYTES, NotifyError, parse
from services.atlas.journal import Journal, line, replay
from tests.fuzz.mutation import damaged
from tests.fuzz.targets import TARGETS, entries
from tests.support import ROOT

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", TARGETS)
def test_honest_bytes_are_taken(name: str) -> None:
    """So that the damage is done to something."""
    for content in TARGETS[name].honest:
        TARGETS[name].receive(content)


@pytest.mark.parametrize("name", TARGETS)
@settings(deadline=None)
@given(chance=st.randoms(use_true_random=False))
def test_damaged_bytes(name: str, chance: random.Random) -> None:
    """Cut, flipped, doubled, mixed."""
    TARGETS[name].receive(damaged(TARGETS[name].honest, chance))


@pytest.mark.parametrize("name", TARGETS)
@settings(deadline=None)
@given(content=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
@example(b"")
@example(b"[" * 5000)
@example(b'{"a":' * 2000)
@example(b"\xff" * 100)
def test_noise(name: str, content: bytes) -> None:
    """Bytes that never were anything; and what is nested without end."""
    TARGETS[name].receive(content)


# -- damage, where it counts most -------------------------------------------------------------------------

WHOLE = list(entries(5))
LINES = [line(entry) for entry in WHOLE]


@UNTIMED
@given(at=st.integers(0, sum(map(len, LINES))))
@example(0)
@example(len(LINES[0]))
@example(len(LINES[0]) - 1)
def test_a_journal_that_was_cut_is_read_up_to_the_cut(tmp_path: Path, at: int) -> None:
    """Each line before it is there, and the next ATLAS writes on as if nothing had been."""
    content = b"".join(LINES)[:at]
    ends = [sum(map(len, LINES[: count + 1])) for count in range(len(LINES))]
    whole = WHOLE[: sum(end <= at for end in ends)]
    path = tmp_path / "journal"
    path.write_bytes(content)
    journal = Journal(path)
    book = journal.open(0.0)
    journal.close()
    assert list(book.entries()) == sorted(
        {each.id: each for each in whole}.values(), key=lambda each: each.kind is None
    )
    assert journal.corrupt == 0


@UNTIMED
@given(at=st.integers(0, sum(map(len, LINES)) - 1), bit=st.integers(0, 7))
@example(at=LINES[0].index(b"1"), bit=0)
@example(at=LINES[0].index(b"1"), bit=1)
@example(at=len(LINES[0]) - 1, bit=0)
@example(at=sum(map(len, LINES)) - 1, bit=0)
def test_a_flipped_bit_costs_a_line_and_is_counted(tmp_path: Path, at: int, bit: int) -> None:
    """Two, where it ends one in its middle; never does a line say something else, nor is one lost and not counted."""
    content = bytearray(b"".join(LINES))
    content[at] ^= 1 << bit
    path = tmp_path / "journal"
    path.write_bytes(content)
    journal = Journal(path)
    book = journal.open(0.0)
    journal.close()
    assert set(book.entries()) <= set(WHOLE)
    is_whole = book == replay(LINES)[0]  # as where it became a line of an earlier version
    has_no_end = content[-1:] != b"\n"  # then the last is not counted: ATLAS died while it wrote it
    is_set_aside = bool(list(tmp_path.glob("journal.version-*")))
    assert journal.corrupt in (1, 2) or is_whole or has_no_end or is_set_aside
    for each in tmp_path.iterdir():
        each.unlink()


@pytest.mark.parametrize(
    "content", [b'{"supervisor":"\xff"}', b'{"x":' + b"[" * 4000, b"\0" * 256, b"{}", b'{"pid":"x"}']
)
def test_a_damaged_lock_holds_up_nobodys_start(run_dir: RunDir, content: bytes) -> None:
    """Counting begins anew: the lock itself is the kernel's."""
    run_dir.lock("web").write_bytes(content)
    claimed = claim(run_dir, "web")
    os.close(claimed.fd)
    assert claimed.incarnation == 1


@UNTIMED
@given(
    datagrams=st.lists(st.binary(max_size=200) | st.sampled_from([b"WATCHDOG=1", b"READY=1", b"x" * 5000]), max_size=8)
)
def test_the_notify_socket_counts_what_is_none(run_path: Path, datagrams: list[bytes]) -> None:
    """Over a real socket: what makes sense is heard, in order; all else is counted by its cause."""
    inbox = Inbox(run_path / "notify")
    inbox.open("web")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for each in datagrams:
                sender.sendto(each, str(inbox.path("web")))
        heard = [notice for _, _, notice in inbox.drain(lambda _: os.getpid())]
    finally:
        inbox.close()
    expected, malformed = [], 0
    for each in datagrams:
        if len(each) <= MAX_DATAGRAM_BYTES:
            try:
                expected.append(parse(each))
            except NotifyError:
                malformed += 1
    assert heard == expected
    assert inbox.refused["malformed"] == malformed
    assert inbox.refused["too_large"] == sum(len(each) > MAX_DATAGRAM_BYTES for each in datagrams)


def test_it_can_go_on_for_longer(tmp_path: Path) -> None:
    """The command that CI runs, and anybody may; a target that there is not is said so."""
    fuzz = [sys.executable, "-m", "tests.fuzz"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*fuzz, "notices", "--engine=mutation", "--seconds=0.2"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("1 passed, 0 failed\n"), done.stderr
    (tmp_path / "one").write_bytes(b"READY=1")
    again = [*fuzz, "notices", "--replay", "one"]
    assert subprocess.run(again, cwd=tmp_path, env=environ, check=True, capture_output=True).stdout.endswith(
        b"raised\n"
    )
    done = subprocess.run([*fuzz, "nothing"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, "cannot fuzz nothing: targets are frames," in done.stderr) == (2, True)
