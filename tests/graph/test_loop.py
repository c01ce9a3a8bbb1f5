"""The loop: when it builds, slows, pins; that it mostly does nothing; what it takes back. In virtual time, and real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import msgspec
import pytest

from bus.messages import OodaMode
from cdn_daemon.api import RefusedError
from services.graph import tuning
from services.graph.engine import Engine
from services.graph.limits import Limits
from services.graph.ooda import GraphTuner
from services.graph.store import Store
from services.graph.tuning import Asked, Decision, Observation, Precompute, Rebuild, Refresh, decide, orient
from services.graph.workload import Answered, Question
from tests.graph.support import Client, attack_bundle, serving
from tests.support import until

QUIET = Observation(
    elapsed_s=1.0, reads_per_s=0.0, writes_per_s=0.0, sql_reads=0, sql_ms=0.0, snapshot_reads=0, snapshot_ms=0.0,
    pinned_reads=0, refreshes=0, upkeep_ms=0.0, pins_ms=0.0, p95_ms=None, depth=None, visited_per_returned=None,
    age_s=0.0, uses_snapshot=False, snapshot_bytes=5_000_000, entries=15_000, refresh_s=0.2, staleness_s=2.0,
    idle_s=0.0, sql_ms_before=None, pinned_most=64,
)  # fmt: skip
DEEP = msgspec.structs.replace(QUIET, reads_per_s=50.0, sql_reads=50, sql_ms=400.0)
HELD = msgspec.structs.replace(
    QUIET, uses_snapshot=True, snapshot_reads=50, snapshot_ms=30.0, sql_ms_before=8.0, reads_per_s=50.0
)
ONE = Question("khop", "one")


def asked(**more: object) -> Asked:
    """A question that costs much."""
    return msgspec.structs.replace(Asked(question=ONE, per_s=20.0, ms=3.0, pinned=False), **more)


def so(seen: Observation, **more: object) -> Observation:
    """The same, but for this."""
    return msgspec.structs.replace(seen, **more)


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (QUIET, None),
        (DEEP, Rebuild(True)),
        (so(DEEP, sql_reads=2, sql_ms=16.0), None),  # too rare
        (so(DEEP, sql_reads=2000, sql_ms=400.0), None),  # too cheap, each
        (so(DEEP, writes_per_s=8000.0), None),  # the upkeep would cost as much
        (so(DEEP, snapshot_bytes=2 << 30), None),
        (so(QUIET, writes_per_s=5000.0), None),  # writes alone
        (HELD, None),
        (so(HELD, snapshot_reads=0, snapshot_ms=0.0, idle_s=1000.0), Rebuild(False)),
        (so(HELD, upkeep_ms=200.0, writes_per_s=100.0), Refresh(0.5, 0.2)),
        (so(HELD, upkeep_ms=900.0, refresh_s=1.0), Rebuild(False)),  # no slower within the bound, and not worth it
        (so(HELD, upkeep_ms=100.0, refresh_s=1.0), None),
        (so(HELD, upkeep_ms=1.0, refresh_s=1.0, age_s=0.4), Refresh(0.5, 1.0)),
        (so(HELD, upkeep_ms=1.0, refresh_s=1.0, age_s=0.0), None),
        (so(HELD, questions=(asked(),)), Precompute(ONE, True)),
        (so(HELD, questions=(asked(),), refreshes=19), None),  # it would be asked as often again
        (so(HELD, questions=(asked(per_s=1.0, ms=50.0),)), None),  # too rare
        (so(HELD, questions=(asked(),), pinned_most=0), None),
        (so(HELD, questions=(asked(pinned=True, ms=None, per_s=0.0, unasked_s=99.0),)), Precompute(ONE, False)),
        (so(HELD, questions=(asked(pinned=True, ms=None),)), None),
        (so(DEEP, questions=(asked(),), sql_ms=5.0), None),  # without a snapshot nothing is pinned
    ],
)
def test_what_is_decided(seen: Observation, wanted: Decision | None) -> None:
    """A table of pictures; and what is held back is not tried again."""
    assert decide(orient(seen), frozenset()) == wanted
    if wanted is not None:
        assert decide(orient(seen), {wanted}) != wanted


def test_costs_fall_where_a_change_is_good() -> None:
    """Each decision's cost, before and after."""
    after = so(DEEP, uses_snapshot=True, sql_reads=0, sql_ms=0.0, snapshot_reads=50, snapshot_ms=30.0, upkeep_ms=20.0)
    for decision, one, other in (
        (Rebuild(True), DEEP, after),
        (Rebuild(False), so(HELD, snapshot_reads=0, idle_s=950.0), so(QUIET, idle_s=960.0)),
        (Refresh(0.5, 0.2), so(HELD, upkeep_ms=200.0, writes_per_s=9.0), so(HELD, upkeep_ms=90.0, writes_per_s=9.0)),
        (Refresh(0.5, 1.0), so(HELD, age_s=0.5), so(HELD, age_s=0.3)),
        (
            Precompute(ONE, True),
            so(HELD, questions=(asked(),)),
            so(HELD, questions=(asked(pinned=True, ms=None),), pins_ms=5.0),
        ),
        (
            Precompute(ONE, False),
            so(HELD, questions=(asked(pinned=True, ms=None),)),
            HELD,
        ),
    ):
        before, now = (tuning.cost(orient(seen), decision) for seen in (one, other))
        assert before is not None
        assert now is not None
        assert now < before * 0.9, decision
    assert tuning.cost(orient(QUIET), Rebuild(True)) is None


class World:
    """A store, its engine, and its loop in steps, while a workload goes on."""

    def __init__(self, path: Path, mode: OodaMode = OodaMode.ON) -> None:
        self.store = Store(path, Limits())
        self.store.open()
        self.engine = Engine(self.store)
        self.loop = GraphTuner(self.engine)
        self.loop.settle_s = 3.0
        self.loop.mode = mode
        self.now_s = 0.0

    def live(self, seconds: int, work: Callable[[], None]) -> None:
        """So many turns, each for a second."""
        for _ in range(seconds):
            work()
            self.loop._at_s = time.monotonic() - 1.0  # what was measured, was in a second
            self.now_s += 1
            for _ in range(4):
                step = self.loop.step(self.now_s)
                if step is not None:
                    step.run()
                    self.loop.finished(self.now_s, None)
                    break
                if self.loop.current_phase().name == "OBSERVE":
                    break

    def read(self, engine: str, ms: float, times: int = 50, kind: str = "khop") -> None:
        """As if so many different questions had been answered."""
        for at in range(times):
            found = Answered(b"", self.store.commits.newest, engine, ms, 100, 10, 3)

            async def again(found: Answered = found) -> Answered:
                return found

            self.engine.workload.read(Question(kind, str(at)), found, ms, 0.0, pinned=False, again=again)


def test_a_snapshot_for_deep_questions_is_kept(tmp_path: Path) -> None:
    """Once, and no more is done then."""
    world = World(tmp_path)
    world.live(20, lambda: world.read(*(("snapshot", 0.4) if world.engine.uses_snapshot else ("sql", 8.0))))
    assert world.engine.snapshot is not None
    assert (world.loop.kept, world.loop.undone, len(world.loop.actions)) == (1, 0, 1)


def test_what_did_not_help_is_taken_back(tmp_path: Path) -> None:
    """Questions that a snapshot does not make cheaper go back to SQLite, and it is not tried at once again."""
    world = World(tmp_path)
    world.live(20, lambda: world.read("sql", 8.0))
    assert world.engine.snapshot is None
    assert (world.loop.kept, world.loop.undone, len(world.loop.actions)) == (0, 1, 1)


def test_off_changes_nothing(tmp_path: Path) -> None:
    """The control arm."""
    world = World(tmp_path, OodaMode.OFF)
    world.live(10, lambda: world.read("sql", 8.0))
    assert world.engine.snapshot is None
    assert not world.loop.actions


def test_where_nothing_pays_nothing_is_done(tmp_path: Path) -> None:
    """Real writes, and real questions that are cheap: by key, one hop."""
    world = World(tmp_path)
    store = world.store

    def work() -> None:
        from services.graph.api import NodeRequest

        store.put_nodes([NodeRequest(id=f"n{world.now_s}-{n}") for n in range(50)], merge=False).result()
        world.read("sql", 0.08, times=100)

    world.live(40, work)
    assert not world.loop.actions
    assert len(world.loop.cycles) >= 30
    assert world.engine.snapshot is None


def test_a_repeated_question_is_kept_ready(tmp_path: Path) -> None:
    """And given up when nobody asks it any more."""
    world = World(tmp_path)
    world.engine.use_snapshot(yes=True)

    def work() -> None:
        found = Answered(b"", 0, "snapshot", 3.0, 100, 10, 3)

        async def again() -> Answered:
            return found

        for _ in range(50):
            pinned = ONE in world.engine.pinned
            world.engine.workload.read(ONE, found, 3.0, 0.0, pinned=pinned, again=again)

    world.live(12, work)
    assert [*world.engine.pinned] == [ONE]
    assert world.loop.kept == 1
    world.loop._asked_s[ONE] = time.monotonic() - 100
    world.live(8, lambda: world.read("snapshot", 0.01, times=1))
    assert not world.engine.pinned


def khops(client: Client, ids: list[str], until_s: float) -> None:
    """Ask about the neighbourhoods of these, for a while."""
    while time.monotonic() < until_s:
        for id in ids:
            client.khop(id, 3, limit=1)


def test_for_real(tmp_path: Path) -> None:
    """Deep questions by HTTP: a snapshot answers them after a while, and what it answers is the same."""
    bundle = attack_bundle(0.5)
    with serving(tmp_path) as (client, graph):
        client.call("POST", "/import", bundle)
        ids = [one["id"] for one in bundle["objects"] if one["type"] == "intrusion-set"][:10]
        before = [client.khop(id, 3)["by_distance"] for id in ids]
        loop = GraphTuner(graph.engine)

        def turn() -> bool:
            khops(client, ids, time.monotonic() + 0.3)
            loop._at_s = time.monotonic() - 0.3
            for _ in range(3):
                step = loop.step(time.monotonic())
                if step is not None:
                    step.run()
                    loop.finished(time.monotonic(), None)
            return graph.engine.snapshot is not None

        until(turn, within_s=60)
        after = [client.khop(id, 3) for id in ids]
        assert [one["by_distance"] for one in after] == before
        assert {one["snapshot"]["engine"] for one in after} == {"snapshot"}


@pytest.mark.parametrize("error", [RefusedError(404, "cannot find this node"), apsw.IOError("disk I/O error")])
def test_a_pinned_question_that_fails_is_given_up(tmp_path: Path, error: Exception) -> None:
    """Its node is gone, or the disk fails; the others are kept ready all the same."""
    world = World(tmp_path)
    world.engine.use_snapshot(yes=True)

    async def gone() -> Answered:
        raise error

    async def there() -> Answered:
        return Answered(b"{", 7, "snapshot", 1.0, 1, 1, 1)

    world.engine.pin(ONE, gone)
    world.engine.pin(Question("khop", "two"), there)
    asyncio.run(world.engine._ready())
    assert [(question.text, pin.found is not None) for question, pin in world.engine.pinned.items()] == [("two", True)]
