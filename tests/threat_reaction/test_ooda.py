"""The loop: a network that offends is banned as one and that is checked, a person is asked, and calm is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.messages import OodaMode
from services.threat_reaction.memory import Neighbourhood
from services.threat_reaction.ooda import AskForPrefix, Observation, PrefixBanner, orient
from tests.threat_reaction.support import HeldDesk, a_desk

NETWORK = "203.0.113.0/24"


class Looped:
    """A desk and its loop, in the desk's time."""

    def __init__(self, held: HeldDesk) -> None:
        self.held = held
        desk = held.desk

        class Hand:
            """As the service's."""

            def contain(self, prefix: str) -> None:
                desk.contain_prefix(prefix).result(30)

            def release(self, prefix: str) -> None:
                desk.release_prefix(prefix).result(30)

        self.loop = PrefixBanner(
            lambda: desk.picture,
            desk.may_contain_prefixes,
            lambda prefix: prefix in desk.neighbourhoods_handled,
            Hand(),
        )

    def run(self, seconds: int, each: Callable[[], object] = lambda: None) -> None:
        """So many seconds, in each of which something happens."""
        for _ in range(seconds):
            each()
            self.held.pass_s(1)
            for _ in range(3):
                if (work := self.loop.step(self.held.now_s)) is not None:
                    work.run()
                    self.loop.finished(self.held.now_s, None)

    def verdicts(self) -> list[tuple[str, str]]:
        """What it did, and what came of it."""
        return [
            (type(cycle.decision).__name__, cycle.effect.verdict)
            for cycle in self.loop.actions
            if cycle.effect is not None
        ]


@pytest.fixture
def looped(tmp_path: Path) -> Iterator[Looped]:
    """With a standing approval for networks."""
    with a_desk(tmp_path) as held:
        held.desk.stand("repeated-prefix", "alice", None, stands=True).result(30)
        yield Looped(held)


def botnet(looped: Looped, network: str = "203.0.113", *, is_enforced: bool = True) -> Callable[[], None]:
    """Each second another address guesses once, under a name that there is not; refused if it is banned."""
    count = 0

    def guess() -> None:
        nonlocal count
        count += 1
        held = looped.held
        address = f"{network}.{count % 250}"
        if is_enforced and any(str(ban).startswith(network) for ban in held.banned()):
            return
        held.see(address, "ssh_invalid_user")

    return guess


def test_a_network_that_offends_is_banned_and_that_helps(looped: Looped) -> None:
    """After a few of its addresses, and for as long as any ban; what came from it stops, so it is kept."""
    looped.run(60, botnet(looped))
    assert NETWORK in looped.held.banned()
    assert len(looped.held.desk.read(lambda db: db.execute("SELECT DISTINCT address FROM sightings").fetchall())) < 10
    assert looped.verdicts() == [("BanPrefix", "kept")]


def test_a_ban_that_does_not_help_is_taken_back(looped: Looped) -> None:
    """Nobody carries it out, so as many come as before: lifted after half a minute, and not tried again at once."""
    looped.run(120, botnet(looped, is_enforced=False))
    assert NETWORK not in looped.held.banned()
    assert looped.verdicts() == [("BanPrefix", "undone")]
    assert "rolled_back" in looped.held.states()


def test_without_a_standing_approval_a_person_is_asked_once(looped: Looped) -> None:
    """And until he answers nothing is banned. What he denies is not asked again before something new happens."""
    looped.held.desk.stand("repeated-prefix", "alice", None, stands=False).result(30)
    looped.run(90, botnet(looped))
    assert NETWORK not in looped.held.banned()
    proposals = [told.reaction for told in looped.held.told if told.reaction.playbook == "repeated-prefix"]
    assert [reaction.state for reaction in proposals] == ["proposed"]
    looped.held.desk.deny(proposals[0].id, "bob", "students").result(30)
    looped.run(90)
    assert [told.reaction.state for told in looped.held.told if told.reaction.networks == [NETWORK]] == [
        "proposed",
        "denied",
    ]


def test_off_does_nothing(looped: Looped) -> None:
    """The benchmark's other arm."""
    looped.loop.mode = OodaMode.OFF
    looped.run(60, botnet(looped))
    assert NETWORK not in looped.held.banned()
    assert looped.verdicts() == []


def test_people_who_mistype_are_left_alone(looped: Looped) -> None:
    """An office whose people fail and then get in, and strangers far apart who fail once each: ten minutes of calm."""
    count = 0

    def work() -> None:
        nonlocal count
        count += 1
        if count % 5 == 0:
            looped.held.see(f"192.0.2.{count % 40}", "ssh_failed")
            looped.held.see(f"192.0.2.{count % 40}", "ssh_accepted")
        if count % 7 == 0:
            looped.held.see(f"198.51.{count % 250}.1", "ssh_invalid_user")

    looped.run(600, work)
    assert looped.held.banned() == set()
    assert looped.verdicts() == []
    assert [cycle for cycle in looped.loop.cycles if cycle.decision is not None] == []


def neighbourhood(prefix: str, offenders: int, good: int = 0, points: float = 9.0) -> Neighbourhood:
    """As the desk sees it."""
    return Neighbourhood(prefix=prefix, offenders=offenders, points=points, good=good, rate_per_s=0.5)


def test_orientation() -> None:
    """The worst first; not who is few, weak, handled already, or lives with people who do well."""
    observation = Observation(
        at_s=0.0,
        sightings_per_s=1.0,
        reoffences=0,
        overturned=0,
        proposals=0,
        contain_s=None,
        bans=0,
        neighbourhoods=(
            neighbourhood("198.51.1.0/24", 3),
            neighbourhood("198.51.2.0/24", 5),
            neighbourhood("198.51.3.0/24", 2),
            neighbourhood("198.51.4.0/24", 9, good=1),
            neighbourhood("198.51.5.0/24", 9, points=5.0),
            neighbourhood("198.51.6.0/24", 9),
        ),
        may="ask",
    )
    picture = orient(observation, lambda prefix: prefix == "198.51.6.0/24")
    assert [one.prefix for one in picture.offending] == ["198.51.2.0/24", "198.51.1.0/24"]
    assert [one.prefix for one in picture.spared] == ["198.51.4.0/24"]

    class Nobody:
        """Has nothing to do."""

        def contain(self, prefix: str) -> None:
            raise AssertionError(prefix)

        release = contain

    loop = PrefixBanner(lambda: None, lambda: "ask", lambda _: False, Nobody())
    assert loop.decide(picture) == AskForPrefix(prefix="198.51.2.0/24")
    loop.held = frozenset({AskForPrefix(prefix="198.51.2.0/24")})
    assert loop.decide(picture) == AskForPrefix(prefix="198.51.1.0/24")
