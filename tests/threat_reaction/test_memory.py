"""What is known of addresses: escalation and decay, tolerance and trust, bounds, and networks cut by a list."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.threat_reaction import memory as memories
from services.threat_reaction.memory import HALF_LIFE_S, LONGEST_BAN_S, Ban, Memory, Seen
from services.threat_reaction.networks import (
    BadNetworkError,
    alone,
    covers,
    narrowed,
    prefix_of,
    read_address,
    read_network,
)
from services.threat_reaction.playbooks import Condition

ADDRESS = read_address("203.0.113.9")
ENOUGH = Condition(points={"fail": 1.0}, at_least=6, within_s=3600, then="x", otherwise="y")


def ban(network: str, until_s: float = 100.0, kind: str = "ban") -> Ban:
    """A ban that began at 0."""
    return Ban(
        id=1,
        network=read_network(network),
        kind=kind,
        starts_s=0.0,
        until_s=until_s,
        level=0.0,
        reaction="",
        scenario="s",
        by="b",
        revision=1,
    )


def fail(memory: Memory, times: int, at_s: float) -> None:
    """The address fails."""
    for _ in range(times):
        memory.see(ADDRESS, Seen(at_s, "fail", 1, 100))


def test_bans_escalate_to_a_week_and_good_behaviour_wears_them_off() -> None:
    """4 min, 16 min, 64 min … 7 days; two quiet days halve what is held against it."""
    memory, network = Memory(), alone(ADDRESS)
    lengths = []
    for at_s in range(9):
        lengths.append(memory.ban_s(network, float(at_s)))
        memory.past(network, float(at_s))
    assert lengths[:4] == [240, 960, 3840, 15360]
    assert lengths[-1] == LONGEST_BAN_S
    assert all(a <= b for a, b in pairwise(lengths))
    held = memory.recidivism(network, 9.0)
    assert memory.recidivism(network, 9.0 + HALF_LIFE_S) == pytest.approx(held / 2)
    assert memory.ban_s(network, 9.0 + 10 * HALF_LIFE_S) == 240


def test_less_is_needed_of_who_was_banned_and_more_of_who_has_done_well() -> None:
    """Six failures of a stranger, three after a ban, twelve of who has logged in."""
    for banned, trusted, needed in ((0, 0, 6), (1, 0, 3), (2, 0, 2), (0, 1, 12), (1, 1, 6)):
        memory = Memory()
        for _ in range(banned):
            memory.past(alone(ADDRESS), 1000.0)
        if trusted:
            memory.see(ADDRESS, Seen(1000.0, "ssh_accepted", 1, 100))
        fail(memory, needed - 1, 1001.0)
        assert not memory.holds(ENOUGH, ADDRESS, 0, 1001.0), (banned, trusted)
        fail(memory, 1, 1001.0)
        assert memory.holds(ENOUGH, ADDRESS, 0, 1001.0), (banned, trusted)


def test_what_counts_ends_with_its_window_with_a_pardon_and_with_a_ban() -> None:
    """And what is not sure enough never begins to."""
    memory = Memory()
    fail(memory, 6, 1000.0)
    assert memory.holds(ENOUGH, ADDRESS, 100, 1000.0)
    assert not memory.holds(ENOUGH, ADDRESS, 0, 1000.0 + 3600)
    memory.see(ADDRESS, Seen(1000.0, "fail", 50, 40))
    assert memory.points(ENOUGH, ADDRESS, 50, 1000.0)[0] == 6
    assert memory.forgive(prefix_of(ADDRESS), 1000.0) == [ADDRESS]
    assert memory.points(ENOUGH, ADDRESS, 0, 1000.0)[0] == 0
    fail(memory, 2, 1001.0)
    assert memory.points(ENOUGH, ADDRESS, 0, 1001.0)[0] == 2
    memory.past(alone(ADDRESS), 1002.0)
    assert memory.points(ENOUGH, ADDRESS, 0, 1003.0)[0] == 0


def test_a_pause_and_a_mistake_are_held_against_nobody() -> None:
    """Only a ban that ran out is."""
    memory = Memory()
    for kind, overturned in (("throttle", False), ("ban", True)):
        memory.begin(ban("203.0.113.9", kind=kind))
        memory.end(alone(ADDRESS), 50.0, overturned=overturned)
        assert memory.recidivism(alone(ADDRESS), 50.0) == 0
    memory.begin(ban("203.0.113.9"))
    memory.end(alone(ADDRESS), 50.0, overturned=False)
    assert memory.recidivism(alone(ADDRESS), 50.0) == 1


def test_a_ban_is_found_by_every_address_in_it() -> None:
    """Of IPv4 and IPv6, also wrapped ones, and by none outside."""
    memory = Memory()
    memory.begin(ban("203.0.113.0/24"))
    memory.begin(ban("2001:db8::/64"))
    for text, is_banned in (
        ("203.0.113.255", True),
        ("203.0.114.0", False),
        ("::ffff:203.0.113.1", True),
        ("2001:db8::1", True),
        ("2001:db8:0:1::1", False),
    ):
        assert (memory.ban_of(read_address(text)) is not None) is is_banned, text
    memory.end(read_network("203.0.113.0/24"), 1.0, overturned=False)
    assert memory.ban_of(ADDRESS) is None


def test_a_flood_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was not seen for longest is forgotten, with its prefix."""
    monkeypatch.setattr(memories, "ADDRESSES_MAX", 100)
    memory = Memory()
    for number in range(1000):
        memory.see(read_address(f"198.51.{number // 250}.{number % 250}"), Seen(float(number), "fail", 1, 100))
    assert len(memory) == 100
    assert memory.points(ENOUGH, read_address("198.51.0.1"), 0, 1000.0)[0] == 0
    assert memory.points(ENOUGH, read_address("198.51.3.249"), 0, 1000.0)[0] == 1
    assert {one.prefix for one in memory.neighbourhoods(1000.0, addresses_at_least=1)} == {"198.51.3.0/24"}


def test_a_neighbourhood_is_judged_by_its_addresses() -> None:
    """Who offends, who does well, and how much comes from there now."""
    memory = Memory()
    for last, kind in ((1, "ssh_root_failed"), (2, "ssh_invalid_user"), (3, "ssh_failed"), (4, "ssh_accepted")):
        memory.see(read_address(f"203.0.113.{last}"), Seen(995.0, kind, 1, 100))
    (one,) = memory.neighbourhoods(1000.0, addresses_at_least=2)
    assert (one.prefix, one.offenders, one.points, one.good) == ("203.0.113.0/24", 2, 5.0, 1)
    assert one.rate_per_s == pytest.approx(0.3)
    assert memory.neighbourhoods(995.0 + 3600, addresses_at_least=2) == []


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "1.2.3.4.5", "fe80::1%eth0", "01.2.3.4", "1.2.3.4/33", "1.2.3.4/8"])
def test_what_is_no_network_is_refused(text: str) -> None:
    """With a reason."""
    with pytest.raises(BadNetworkError):
        read_network(text)


def test_what_is_wrapped_is_unwrapped() -> None:
    """Nobody has two names."""
    assert read_network("::ffff:192.0.2.1") == read_network("192.0.2.1") == ip_network("192.0.2.1/32")
    assert read_network("::ffff:192.0.2.0/120") == ip_network("192.0.2.0/24")


networks = st.builds(
    lambda value, bits: IPv4Network((value >> (32 - bits) << (32 - bits), bits)),
    st.integers(0xCB007100, 0xCB0071FF),
    st.integers(24, 32),
)


@given(networks, st.lists(networks, max_size=6))
def test_narrowing_takes_out_what_is_spared_and_nothing_else(network: IPv4Network, never: list[IPv4Network]) -> None:
    """Address by address."""
    left = narrowed(network, never)
    for address in network:
        is_spared = any(address in one for one in never)
        assert any(address in part for part in left) is not is_spared
    assert all(covers(network, part) for part in left)
    assert sum(part.num_addresses for part in left) == sum(
        not any(address in one for one in never) for address in network
    )
