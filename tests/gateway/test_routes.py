"""The routing table: what each status does to it, and what no history can."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import DaemonStatus, HealthStatus, LifecyclePhase
from services.gateway.routes import (
    FORGET_S,
    SILENT_S,
    STEP_S,
    BadPath,
    Table,
    Target,
    hear,
    restore,
    split,
    takes_traffic,
    target_of,
)
from tests.gateway.support import status_of

ADDRESS = "http://127.0.0.1:18100"


@pytest.mark.parametrize("phase", LifecyclePhase)
@pytest.mark.parametrize("health", HealthStatus)
@pytest.mark.parametrize("address", [ADDRESS, None, "https://127.0.0.1:1"])
def test_every_phase_health_and_address(phase: LifecyclePhase, health: HealthStatus, address: str | None) -> None:
    """Only who is serving, not unhealthy and has a plain address gets traffic; the service is known either way."""
    table = hear(Table(), [status_of("x", address=address, phase=phase, health=health)], 0.0)
    serves = phase is LifecyclePhase.SERVING and health is not HealthStatus.UNHEALTHY and address == ADDRESS
    assert [target.instance for target in table.routes["x"]] == ["x"] * serves


@pytest.mark.parametrize(
    ("address", "authority"),
    [
        ("http://127.0.0.1:18100", "127.0.0.1:18100"),
        ("http://127.0.0.1:18100/", "127.0.0.1:18100"),
        ("http://[::1]:18100", "[::1]:18100"),
        ("http://host-1.example:80", "host-1.example:80"),
        ("http://127.0.0.1", None),
        ("http://127.0.0.1:99999", None),
        ("http://127.0.0.1:x", None),
        ("http://127.0.0.1:0", None),
        ("http://127.0.0.1:1/path", None),
        ("http://127.0.0.1:1?q", None),
        ("http://user@127.0.0.1:1", None),
        ("http://a b:1", None),
        ("http://a%0d%0a:1", None),
        ("https://127.0.0.1:1", None),
        ("127.0.0.1:1", None),
        ("http://[::1", None),
        ("", None),
        (None, None),
    ],
)
def test_addresses(address: str | None, authority: str | None) -> None:
    """Only http://HOST:PORT is a target; anything else is none, and no error."""
    target = target_of("s", "i", address)
    assert (target.authority if target else None) == authority


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/a/b", ("a", b"/b")),
        (b"/a", ("a", b"/")),
        (b"/a/", ("a", b"/")),
        (b"/a//b", ("a", b"//b")),
        (b"/a/b%2Fc", ("a", b"/b%2Fc")),
        (b"/a/...", ("a", b"/...")),
        (b"/a/b..c/..d/e..", ("a", b"/b..c/..d/e..")),
        (b"/a/%252e%252e/", ("a", b"/%252e%252e/")),
        (b"/cdn-data-fabric/x?", ("cdn-data-fabric", b"/x?")),
    ],
)
def test_paths_that_are_routed(path: bytes, expected: tuple[str, bytes]) -> None:
    """The first segment is the service, the rest is left as it is."""
    assert split(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"*",
        b"a/b",
        b"/",
        b"//a",
        b"/../a",
        b"/./a",
        b"/%61/b",
        b"/a%2Fb",
        b"/-a/",
        b"/" + b"a" * 129,
        b"/a/../atlas/",
        b"/a/.",
        b"/a/..",
        b"/a/%2e%2e/atlas",
        b"/a/%2E./atlas",
        b"/a/x%2f..%2F..%2fatlas",
        b"/a/..%5catlas",
        b"/a/..\\atlas",
        b"/a/..;x/atlas",
        b"/a/b c",
        b"/a/b\r\nX: y",
        b"/a/\xc3\xa9",
    ],
)
def test_paths_that_are_refused(path: bytes) -> None:
    """No service, a dot segment in some spelling, or bytes that have no place in a request line."""
    with pytest.raises(BadPath):
        split(path)


def test_news_and_old_news() -> None:
    """A larger seq or incarnation is news; the rest changes no route."""
    table = hear(Table(), [status_of("x", address=ADDRESS, incarnation=2, seq=5)], 0.0)
    down = LifecyclePhase.DRAINING
    for incarnation, seq, is_news in ((2, 5, False), (2, 4, False), (1, 9, False), (2, 6, True), (3, 1, True)):
        heard = hear(table, [status_of("x", address=ADDRESS, incarnation=incarnation, seq=seq, phase=down)], 0.1)
        assert bool(heard.routes["x"]) is not is_news


def test_silence_of_one_is_not_silence_of_all() -> None:
    """While another speaks, a silent instance loses its traffic; while the feed is dead, nobody does."""
    table = hear(Table(), [status_of("a", address=ADDRESS), status_of("b", address=ADDRESS)], 0.0)
    table = hear(table, [status_of("a", address=ADDRESS, seq=2)], 10_000.0)
    assert table.routes["b"], "the feed was dead, not b"
    now_s = 10_000.0
    for seq in range(3, 3 + int(SILENT_S) + 1):
        now_s += 1.0
        table = hear(table, [status_of("a", address=ADDRESS, seq=seq)], now_s)
    assert table.routes["a"]
    assert table.routes["b"] == ()
    table = hear(table, [status_of("b", address=ADDRESS, seq=2)], now_s)
    assert table.routes["b"]


def test_replayed_last_value_does_not_keep_the_dead_alive() -> None:
    """The feed repeats last values to new subscribers: the same seq again says only that the feed lives."""
    table = hear(Table(), [status_of("x", address=ADDRESS)], 0.0)
    for second in range(1, int(SILENT_S) + 3):
        table = hear(table, [status_of("x", address=ADDRESS)], float(second))
    assert table.routes["x"] == ()


def test_incarnations_that_begin_again() -> None:
    """After its run directory is made anew an instance counts from 1: taken once the old one has fallen silent."""
    table = hear(Table(), [status_of("x", address=ADDRESS, incarnation=7)], 0.0)
    fresh = "http://127.0.0.1:2"
    for second in range(1, int(SILENT_S) + 3):
        table = hear(table, [status_of("x", address=fresh, seq=second)], float(second))
    assert [target.port for target in table.routes["x"]] == [2]


def test_forgotten_in_the_end() -> None:
    """A service is unknown again once all its instances were silent for FORGET_S of the feed's time."""
    table = hear(Table(), [status_of("old", address=ADDRESS)], 0.0)
    for second in range(1, int(FORGET_S) + 3):
        table = hear(table, [status_of("a", address=ADDRESS, seq=second)], float(second))
    assert list(table.routes) == ["a"]


def test_restored_table_routes_until_the_feed_says_otherwise() -> None:
    """What was saved is used as it was; when the feed speaks again, whoever is not on it is dropped."""
    left = hear(Table(), [status_of("a", address=ADDRESS), status_of("b", address=ADDRESS)], 50.0)
    table = restore(frozenset({"b"}), left.known)
    assert list(table.routes) == ["a"]
    for second in range(int(SILENT_S) + 2):
        table = hear(table, [status_of("c", address=ADDRESS, seq=second + 1)], float(second))
    assert (table.routes["a"], len(table.routes["c"])) == ((), 1)


def test_hidden_services_have_no_route() -> None:
    """Not even an empty one: they are unknown."""
    table = hear(Table(hidden=frozenset({"atlas"})), [status_of("atlas", address=ADDRESS)], 0.0)
    assert table.routes == {}


statuses = st.builds(
    status_of,
    st.sampled_from(["a", "b", "hidden"]),
    instance=st.sampled_from(["a-1", "a-2", "b-1"]),
    address=st.sampled_from([ADDRESS, "http://127.0.0.1:2", "nonsense", None]),
    incarnation=st.integers(0, 3),
    seq=st.integers(1, 6),
    phase=st.sampled_from(LifecyclePhase),
    health=st.sampled_from(HealthStatus),
)
histories = st.lists(st.tuples(st.lists(statuses, max_size=4), st.floats(-1.0, 30.0)), max_size=40)


@given(histories)
def test_any_history(history: list[tuple[list[DaemonStatus], float]]) -> None:
    """Whatever comes, late, doubled or out of order: each route leads to somebody fit for it, once."""
    table, now_s = Table(hidden=frozenset({"hidden"})), 0.0
    for batch, wait_s in history:
        now_s += wait_s
        before = table
        table = hear(table, batch, now_s)
        assert 0.0 <= table.clock_s - before.clock_s <= STEP_S + 1e-9  # floats
        assert "hidden" not in table.routes
        targets = [target for route in table.routes.values() for target in route]
        assert len(set(targets)) == len(targets)
        for target in targets:
            assert takes_traffic(table.known[target.instance], table.clock_s)
        for name, held in before.known.items():
            after = table.known[name]
            if len(batch) == 1 and after.incarnation == held.incarnation:  # more may lead away from it and back
                assert after.seq >= held.seq


@given(st.binary(max_size=60))
def test_any_path(path: bytes) -> None:
    """A path is refused, or splits without losing a byte, into a plain name and a rest that stays below it."""
    try:
        service, rest = split(path)
    except BadPath:
        return
    assert path in (b"/" + service.encode() + rest, b"/" + service.encode())
    assert set(service) <= set(string.ascii_letters + string.digits + "_.:@-")
    assert b".." not in rest.split(b"/")


def test_targets_are_values() -> None:
    """Equal by content, so a set of those tried works across tables."""
    assert Target("s", "i", "h", 1) == Target("s", "i", "h", 1)
    assert len({Target("s", "i", "h", 1), Target("s", "i", "h", 1)}) == 1
