"""Which event is because of which, as people see it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from bus.endpoints import RunDir
from bus.messages import Event
from cli.causes import Branches, depth_first
from cli.exits import Exit
from tests.cli.fake_atlas import FakeAtlas
from tests.cli.support import cdnctl, view


def happened(id_: str, cause: str | None = None, *, told: bool = True) -> Event:
    """An event, with facts if it is one of a service's."""
    return Event(
        id=id_,
        source="s",
        incarnation=1,
        seq=1,
        time_s=1.0,
        host="h",
        instance="s",
        kind="k",
        text=id_.upper(),
        cause=cause,
        facts={"a": 1} if told else {},
    )


def shown(events: Sequence[Event]) -> list[str]:
    """Their texts."""
    branches = Branches()
    return [branches.text(event) for event in events]


CHAIN = [
    happened("sighting-1"),
    happened("reaction-1", "sighting-1"),
    happened("other", told=False),
    happened("blocked-1", "reaction-1"),
    happened("fence-1", "sighting-1"),
    happened("ordered", "a-command", told=False),
]


def test_as_it_comes() -> None:
    """Below what it is because of as long as nothing is between; then that is named."""
    assert shown(CHAIN) == [
        "SIGHTING-1 [sighting]",
        "└ REACTION-1 [reaction]",
        "OTHER",
        "  └ BLOCKED-1 [blocked-] (because of reaction)",
        "└ FENCE-1 [fence-1] (because of sighting)",
        "ORDERED",
    ]


def test_a_chain() -> None:
    """Depth first, so that nothing is between."""
    assert shown(depth_first(CHAIN)) == [
        "SIGHTING-1 [sighting]",
        "└ REACTION-1 [reaction]",
        "  └ BLOCKED-1 [blocked-]",
        "└ FENCE-1 [fence-1]",
        "OTHER",
        "ORDERED",
    ]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12, unique_by=lambda pair: pair[0]))
def test_any_causes(pairs: list[tuple[int, int]]) -> None:
    """None is lost or doubled, in a circle or not; nor is any text."""
    events = [happened(f"e{number}", f"e{cause}") for number, cause in pairs]
    ordered = depth_first(events)
    assert sorted(event.id for event in ordered) == sorted(event.id for event in events)
    assert all(event.text in line for event, line in zip(ordered, shown(ordered), strict=True))


def test_the_command(run_dir: RunDir) -> None:
    """--chain asks for it and shows it; JSON has the facts and whole ids; it is not to be had together with names."""
    with FakeAtlas(run_dir, [view("atlas", uptime_s=100.0)], events=CHAIN[:2]) as atlas:
        table = cdnctl(run_dir.path, "events", "--chain", "sighting")
        asked = atlas.requests[-1]
        wide = cdnctl(run_dir.path, "events", "-o", "wide")
        document = cdnctl(run_dir.path, "events", "--chain", "sighting", "--json")
        wrong = cdnctl(run_dir.path, "events", "--chain", "sighting", "-f")
    assert getattr(asked, "chain", None) == "sighting"
    assert table.stdout.splitlines()[2].endswith("└ REACTION-1 [reaction]")
    assert wide.stdout.splitlines()[2].split()[-6:] == ["k", "reaction", "sighting", "└", "REACTION-1", "[reaction]"]
    event = json.loads(document.stdout)["events"][1]
    assert (event["id"], event["cause"], event["version"], event["facts"]) == ("reaction-1", "sighting-1", 1, {"a": 1})
    assert wrong.returncode == Exit.USAGE
