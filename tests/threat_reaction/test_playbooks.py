"""Playbooks: what cannot be followed is refused, and what can is followed to its end."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.threat_reaction.judgement import Sighted, judge, simulate
from services.threat_reaction.memory import Memory
from services.threat_reaction.networks import read_address, read_network
from services.threat_reaction.playbooks import (
    DEFAULTS,
    Action,
    BadPlaybookError,
    Condition,
    End,
    Playbook,
    Start,
    check,
    read,
    walk,
)

START = {"type": "start", "on": ["ssh_failed"], "next": "end"}
TELL = {"type": "action", "action": "detect", "next": "end"}
END = {"type": "end"}
ENOUGH = {"type": "condition", "points": {"ssh_failed": 1}, "at_least": 3, "within_s": 60, "then": "tell"}


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ({"tell": TELL, "end": END}, "0 steps of type start"),
        ({"a": START, "b": START, "end": END}, "2 steps of type start"),
        ({"start": {**START, "next": "nowhere"}, "end": END}, "'nowhere', which there is not"),
        ({"start": START, "end": END}, "no step of type action"),
        ({"start": START, "tell": TELL, "end": END}, "no way leads to step 'tell'"),
        (
            {"start": {**START, "next": "tell"}, "tell": {**TELL, "next": "again"}, "again": {**TELL, "next": "tell"}},
            "in a circle: tell → again → tell",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(steps: dict[str, Any], reason: str) -> None:
    """With the step that is to blame."""
    with pytest.raises(BadPlaybookError, match=reason):
        read(msgspec.json.encode({"steps": steps}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "loop"},
        {"type": "action", "action": "destroy", "next": "end"},
        {"type": "action", "action": "detect", "next": "end", "command": "rm -rf /"},
        {**ENOUGH, "otherwise": "end", "within_s": 10_000_000},
        {**ENOUGH, "otherwise": "end", "points": {}},
        {**ENOUGH, "otherwise": "end", "at_least": 100_000},
        {**START, "on": ["Not A Kind"]},
    ],
)
def test_what_is_no_step_is_refused(wrong: dict[str, Any]) -> None:
    """There is no shell, no end of time, no negative threshold."""
    with pytest.raises(msgspec.ValidationError):
        read(msgspec.json.encode({"steps": {"start": wrong, "end": END}}))


def test_the_defaults_can_be_followed_and_ask() -> None:
    """Each of them."""
    for playbook in DEFAULTS.values():
        check(playbook)
        assert playbook.verbs() & {"disable", "dominate", "disrupt"}


def test_a_condition_points_the_way() -> None:
    """Both of its ways, and every action on them."""
    playbook = Playbook(
        steps={
            "start": Start(on=["x"], next="much"),
            "much": Condition(points={"x": 1}, at_least=9, within_s=60, then="ban", otherwise="some"),
            "some": Condition(points={"x": 1}, at_least=3, within_s=60, then="look", otherwise="end"),
            "look": Action(action="hunt", next="tell"),
            "tell": Action(action="detect", next="end"),
            "ban": Action(action="disable", for_s=5, next="end"),
            "end": End(),
        }
    )
    check(playbook)
    for points, expected in ((1, []), (3, ["hunt", "detect"]), (9, ["disable"])):
        assert [a.action for a in walk(playbook, lambda c, points=points: points >= c.at_least)] == expected  # type: ignore[misc]


def sighted(address: str, at_s: float, kind: str = "ssh_failed", count: int = 1) -> Sighted:
    """One sighting."""
    return Sighted(address=read_address(address), kind=kind, at_s=at_s, count=count)


def test_a_simulation_bans_and_lets_go_again() -> None:
    """Six failures are let through, what comes during the ban is held off, the next offence is held against it."""
    attempts = [sighted("203.0.113.9", float(at_s)) for at_s in range(1000, 1600, 10)]
    played = simulate("ssh", DEFAULTS["ssh-brute-force"], attempts, {}, decisions_max=100)
    assert [(step.at_s, step.network, step.for_s) for step in played.decisions] == [
        (1050.0, "203.0.113.9/32", 240.0),
        (1320.0, "203.0.113.9/32", 960.0),
    ], "three after the first ban: 6 / (1 + 1) points, at 1300, 1310 and 1320 s"
    assert (played.let_through, played.held_off) == (10, 50)
    assert played.addresses_banned == 1


def test_a_simulation_spares_who_is_never_blocked() -> None:
    """And says so."""
    attempts = [sighted("10.1.2.3", float(at_s)) for at_s in range(30)]
    played = simulate("ssh", DEFAULTS["ssh-brute-force"], attempts, {read_network("10.0.0.0/8"): ""}, decisions_max=9)
    assert (played.let_through, played.bans) == (30, 0)
    assert "never blocked" in played.decisions[0].note


def test_who_does_well_is_not_hit_with_the_others() -> None:
    """A prefix with somebody who logs in: the address alone."""
    memory, playbook = Memory(), {"p": DEFAULTS["repeated-prefix"]}
    one = sighted("203.0.113.9", 100.0, "prefix_offends")
    memory.see(one.address, one.seen())
    assert [str(w.network) for w in judge(memory, playbook, one, 100.0)] == ["203.0.113.0/24"]
    good = sighted("203.0.113.77", 90.0, "ssh_accepted")
    memory.see(good.address, good.seen())
    (wanted,) = judge(memory, playbook, one, 100.0)
    assert (str(wanted.network), wanted.verbs) == ("203.0.113.9/32", ("disable",))
    assert "1 of 203.0.113.0/24 do well" in wanted.note
