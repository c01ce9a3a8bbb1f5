"""The desk: what becomes of a reaction, who may say so, what a restart remembers, what a full disk changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdn_daemon.api import RefusedError
from services.threat_reaction import desk as desks
from services.threat_reaction import store
from services.threat_reaction.judgement import Sighted
from services.threat_reaction.networks import read_address
from services.threat_reaction.playbooks import DEFAULTS
from services.threat_reaction.records import NEXT
from tests.threat_reaction.support import NOW_S, HeldDesk, a_desk

ATTACKER = "203.0.113.9"


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldDesk]:
    """A desk; afterwards its audit log must be intact."""
    with a_desk(tmp_path) as one:
        yield one
        count, broken = one.desk.read(store.first_broken)
        assert count > 0
        assert broken is None


def proposed(held: HeldDesk, address: str = ATTACKER) -> str:
    """The id of a proposal against the address."""
    (reaction,) = held.see(address, times=3).reactions
    assert reaction.state == "proposed"
    return reaction.id


def stand(held: HeldDesk, name: str = "ssh-brute-force", for_s: float | None = None) -> None:
    """A person approves beforehand."""
    held.desk.stand(name, "alice", for_s, stands=True).result(30)


def test_nothing_is_banned_before_a_person_says_so(held: HeldDesk) -> None:
    """Asked once, however much more is seen; then banned until its time is up."""
    id = proposed(held)
    assert held.see(ATTACKER, times=10).reactions == []
    assert held.banned() == set()
    assert held.desk.approve(id, "alice", "sure").result(30).state == "approved"
    assert held.banned() == {f"{ATTACKER}/32"}
    held.pass_s(239)
    assert held.banned() == {f"{ATTACKER}/32"}
    held.pass_s(2)
    assert held.banned() == set()
    assert held.states() == ["proposed", "approved", "ended"]
    causes = [(told.id, told.cause) for told in held.told]
    assert [cause for _, cause in causes[1:]] == [id for id, _ in causes[:-1]], "each because of the one before"


def test_the_chain_begins_with_the_sightings_event(held: HeldDesk) -> None:
    """Whoever asks why finds it."""
    held.see(ATTACKER, "indicator", confidence=90, cause="event-7")
    assert [(told.reaction.playbook, told.cause) for told in held.told] == [("listed", "event-7")]
    assert held.see("203.0.113.10", "indicator", confidence=74).reactions == []


def test_every_order_that_a_state_does_not_allow_is_refused(held: HeldDesk) -> None:
    """By the table; nothing is told of it."""
    orders = {"approved": held.desk.approve, "denied": held.desk.deny, "rolled_back": held.desk.roll_back}
    made = {"proposed": proposed(held, "203.0.113.1")}
    for number, (state, order) in enumerate(orders.items(), 2):
        made[state] = proposed(held, f"198.51.{number}.1")
        if state == "rolled_back":
            held.desk.approve(made[state], "alice", "").result(30)
        order(made[state], "alice", "").result(30)
    told = len(held.told)
    for state, id in made.items():
        for target, order in orders.items():
            if target in NEXT[state]:  # type: ignore[index]
                continue
            with pytest.raises(RefusedError) as refused:
                order(id, "bob", "").result(30)
            assert refused.value.reason.status == 409
    assert len(held.told) == told
    with pytest.raises(RefusedError, match="cannot find"):
        held.desk.approve("nobody", "bob", "").result(30)


def test_a_proposal_that_nobody_answers_expires(held: HeldDesk) -> None:
    """Within its hour; then it cannot be approved, and the next offence asks anew."""
    id = proposed(held)
    held.pass_s(3599)
    assert held.states() == ["proposed"]
    held.pass_s(2)
    assert held.states() == ["proposed", "expired"]
    with pytest.raises(RefusedError):
        held.desk.approve(id, "alice", "").result(30)
    assert proposed(held) != id


def test_what_is_denied_or_rolled_back_is_not_held_against_anybody(held: HeldDesk) -> None:
    """What was seen until then counts no more, and the next ban is no longer."""
    held.desk.deny(proposed(held), "alice", "our own scanner").result(30)
    held.now_s += 1
    assert held.see(ATTACKER, times=2).reactions == [], "only what is new counts"
    held.now_s += 1
    id = held.see(ATTACKER, times=1).reactions[0].id
    held.desk.approve(id, "alice", "").result(30)
    held.desk.roll_back(id, "bob", "a customer").result(30)
    assert held.banned() == set()
    assert [str(one.network) for one in held.desk.lifted] == [f"{ATTACKER}/32"]
    held.now_s += 1
    assert held.see(ATTACKER, times=2).reactions == []
    held.now_s += 1
    assert held.see(ATTACKER, times=1).reactions[0].for_s == 240


def test_a_standing_approval_bans_at_once_longer_each_time(held: HeldDesk) -> None:
    """And whose approval it was is in every reaction."""
    stand(held)
    lengths = []
    for _ in range(3):
        reactions = held.see(ATTACKER, times=3).reactions
        while not reactions:
            reactions = held.see(ATTACKER).reactions
        assert (reactions[0].state, reactions[0].by) == ("approved", "alice (standing approval)")
        lengths.append(reactions[0].for_s)
        held.pass_s(reactions[0].for_s + 1)
    assert lengths == [240, 960, 3840]
    assert held.desk.counts["reoffences"] == 2


def test_a_standing_approval_ends(held: HeldDesk) -> None:
    """With its time, with another playbook under its name, and when it is revoked."""
    stand(held, for_s=60)
    held.pass_s(61)
    proposed(held, "198.51.1.1")
    stand(held)
    held.desk.put_playbook("ssh-brute-force", DEFAULTS["ssh-brute-force"], "mallory").result(30)
    proposed(held, "198.51.2.1")
    stand(held)
    held.desk.stand("ssh-brute-force", "alice", None, stands=False).result(30)
    proposed(held, "198.51.3.1")


def test_a_standing_approval_stands_no_longer_than_its_bans_are_right(held: HeldDesk) -> None:
    """Three of a day taken back: from then on it asks."""
    stand(held)
    for number in range(3):
        (reaction,) = held.see(f"198.51.{number}.1", times=3).reactions
        assert reaction.state == "approved"
        held.desk.roll_back(reaction.id, "bob", "a customer").result(30)
    proposed(held, "198.51.99.1")
    entries = held.desk.read(lambda db: store.audit_entries(db, 0, 100))
    assert [entry.what for entry in entries].count("revoked") == 1


def test_who_is_never_blocked(held: HeldDesk) -> None:
    """Refused, narrowed, and lifted where it is blocked already; a gateway's own address too."""
    with pytest.raises(RefusedError, match="never blocked"):
        held.desk.ban("10.1.2.3", None, "alice", "").result(30)
    assert held.see("10.1.2.3", times=9).reactions[0].state == "executed", "it only tells"
    held.desk.ban("203.0.113.0/30", 600, "alice", "").result(30)
    assert held.banned() == {"203.0.113.0/30"}
    held.desk.spare("203.0.113.1", "alice", "a partner").result(30)
    assert held.banned() == {"203.0.113.0/32", "203.0.113.2/31"}
    held.desk.own_addresses = lambda: ["198.51.100.7"]
    held.desk.ban("198.51.100.6/31", 600, "alice", "").result(30)
    assert held.banned() == {"203.0.113.0/32", "203.0.113.2/31", "198.51.100.6/32"}
    held.desk.unspare("10.0.0.0/8", "alice", "").result(30)
    held.desk.ban("10.1.2.3", None, "alice", "").result(30)
    assert "10.1.2.3/32" in held.banned()
    for broad in ("0.0.0.0/0", "::/0", "32.0.0.0/4"):
        with pytest.raises(RefusedError, match="so broad"):
            held.desk.ban(broad, 600, "alice", "").result(30)


def test_sparing_takes_a_reaction_back(held: HeldDesk) -> None:
    """It is rolled back, with who decided that it may not be."""
    held.desk.approve(proposed(held), "alice", "").result(30)
    held.desk.spare(ATTACKER, "bob", "the auditors").result(30)
    assert held.states() == ["proposed", "approved", "rolled_back"]
    assert held.told[-1].reaction.by == "bob"


def test_a_restart_remembers(held: HeldDesk) -> None:
    """Bans, proposals, what was seen, what is held against whom, what is forgiven; and tells again what it told."""
    held.desk.approve(proposed(held), "alice", "").result(30)
    asked = proposed(held, "198.51.1.1")
    held.see("198.51.2.1", times=2)
    held.desk.ban("192.0.2.0/24", 600, "alice", "").result(30)
    held.desk.lift("192.0.2.0/24", "bob", "").result(30)
    stand(held, "listed")
    told = [(one.reaction.id, one.reaction.state, one.id) for one in held.told]
    held.restart()
    assert held.banned() == {f"{ATTACKER}/32"}
    assert [str(one.network) for one in held.desk.lifted] == ["192.0.2.0/24"]
    assert [(one.reaction.id, one.reaction.state, one.id) for one in held.told] == told
    assert held.see("198.51.1.1", times=5).reactions == [], "it is asked about already"
    assert held.see("198.51.2.1", times=1).reactions, "two before, and one"
    assert held.see("198.51.4.1", "indicator").reactions[0].state == "approved"
    held.desk.approve(asked, "alice", "").result(30)
    held.pass_s(241)
    assert held.see(ATTACKER, times=2).reactions[0].for_s == 960
    held.restart()
    assert held.desk.known(ATTACKER).result(30)["recidivism"] == pytest.approx(1, abs=0.01)


def test_the_same_sighting_twice_is_one(held: HeldDesk) -> None:
    """Also after a restart."""
    one = Sighted(address=read_address(ATTACKER), kind="ssh_root_failed", at_s=NOW_S)
    assert held.desk.sight([(one, "a"), (one, "b"), (one, "a")]).result(30).duplicates == 1
    held.restart()
    again = held.desk.sight([(one, "b")]).result(30)
    assert (again.accepted, again.duplicates, again.reactions) == (0, 1, [])


def test_the_audit_log_only_grows(held: HeldDesk) -> None:
    """SQLite refuses to change it; who does so behind its back is found out."""
    proposed(held)
    held.desk.close()
    with sqlite3.connect(held.path) as db:
        for statement in ("DELETE FROM audit", "UPDATE audit SET who = 'nobody'"):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                db.execute(statement)
        assert store.first_broken(db) == (2, None)
        db.execute("DROP TRIGGER audit_is_not_changed")
        db.execute("UPDATE audit SET who = 'nobody' WHERE number = 1")
        assert store.first_broken(db)[1] == 1
        db.execute("UPDATE audit SET who = 'cdn-threat-reaction' WHERE number = 1")
    held.restart()


def test_what_could_not_be_written_did_not_happen(held: HeldDesk) -> None:
    """Neither on disk nor in memory; and once it can be, all goes on."""
    db = held.desk._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(RefusedError) as refused:
        held.see(ATTACKER, times=2000)
    assert refused.value.reason.status == 507
    assert "full" in held.desk.broken
    assert held.desk.known(ATTACKER).result(30)["seen"] == []
    assert held.states() == []
    db.execute("PRAGMA max_page_count=1000000")
    assert proposed(held)
    assert held.desk.broken == ""


def test_proposals_are_bounded(held: HeldDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of attackers does not fill the desk; what is dropped is counted."""
    monkeypatch.setattr(desks, "PROPOSALS_MAX", 3)
    for number in range(5):
        held.see(f"198.51.{number}.1", times=3)
    assert held.desk.proposals() == 3
    assert held.desk.counts["reactions_dropped"] == 2


def test_a_neighbourhood(held: HeldDesk) -> None:
    """Banned as one or asked about, by its playbook; the loop takes either back; a denial forgives all of it."""
    assert held.desk.may_contain_prefixes() == "ask"
    asked = held.desk.contain_prefix("203.0.113.0/24").result(30)
    assert asked is not None
    assert (asked.state, asked.networks) == ("proposed", ["203.0.113.0/24"])
    assert held.desk.neighbourhoods_handled == {"203.0.113.0/24"}
    assert held.desk.contain_prefix("203.0.113.0/24").result(30) is None
    held.desk.release_prefix("203.0.113.0/24").result(30)
    assert held.states() == ["proposed", "expired"]
    stand(held, "repeated-prefix")
    assert held.desk.may_contain_prefixes() == "ban"
    held.desk.spare("203.0.113.128/25", "alice", "").result(30)
    held.desk.contain_prefix("203.0.113.0/24").result(30)
    assert held.banned() == {"203.0.113.0/25"}
    assert held.desk.neighbourhoods_handled == {"203.0.113.0/24"}
    held.desk.release_prefix("203.0.113.0/24").result(30)
    assert held.banned() == set()
    assert held.states()[-1] == "rolled_back"
