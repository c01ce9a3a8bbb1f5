"""What ATLAS remembers: packed, rolled up, bounded, found again, and never in ATLAS's way."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event as ThreadEvent
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bus import postmortems
from bus.codec import encode
from bus.endpoints import RunDir, prepare
from bus.messages import CommandView, DaemonStatus, Event, HealthStatus, LifecyclePhase, OutcomeKind, PostMortem, Verb
from bus.operators import OperatorLink
from cdn_daemon.settings import SettingError
from services.atlas import history as history_module
from services.atlas import samples, store
from services.atlas.aging import Aging
from services.atlas.ends import Ends
from services.atlas.fleet import Said
from services.atlas.happened import TEXT_CHARS, Happened
from services.atlas.history import Busy, History, Memory, limit_bytes_of
from services.atlas.queries import QUARTER_S, Life
from services.atlas.samples import Row, merge, pack, point_of, roll_up, row_of, sample_of, unpack
from services.atlas.store import Batch, Store, Unusable
from tests.atlas.test_atlas import ATLAS, TINY, events, is_well
from tests.bus.samples import EVENT, STATUS
from tests.support import ServiceProcess, until

NOW_S = 1_795_441_500  # a quarter of an hour begins
MiB = 1 << 20
LIMIT_BYTES = 64 * MiB

values = st.none() | st.integers(0, 1 << 53)
small = st.integers(0, 1000)


@st.composite
def second_rows(draw: st.DrawFn, *, known: bool = False) -> list[Row]:
    """SECOND rows in order of time; with known, no spread quantity is missing."""
    times = sorted(draw(st.lists(st.integers(0, 1000), max_size=40)))
    quantity = small if known else st.none() | small
    rest = st.tuples(*[quantity] * 4, small, quantity, quantity, st.integers(0, 3), st.integers(0, 3), small, small)
    return [(time_s, *draw(rest)) for time_s in times]


# -- samples: pure -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 12).flatmap(lambda width: st.lists(st.tuples(*[values] * width), min_size=1, max_size=70)))
def test_what_is_packed_is_unpacked(rows: list[Row]) -> None:
    """Any whole numbers, and what is unknown."""
    assert unpack(pack(rows), len(rows[0])) == rows


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_chunk_is_one_error(noise: bytes) -> None:
    """ValueError, whatever the bytes."""
    with pytest.raises(ValueError):
        unpack(noise, 12)


def test_a_chunk_cannot_unfold_without_bound() -> None:
    """A MiB of zeros compresses well; it is not believed."""
    import zlib

    with pytest.raises(ValueError):
        unpack(zlib.compress(b"\0" * (64 * MiB)), 12)


@settings(deadline=None)
@given(second_rows(), st.sampled_from([1, 7, 60]))
def test_rolled_up_is_what_one_would_compute(rows: list[Row], step_s: int) -> None:
    """Least, mean and most of every step that has samples, by hand."""
    rolled = roll_up(rows, step_s)
    assert [row[0] for row in rolled] == sorted({row[0] // step_s * step_s for row in rows if row[0] is not None})
    for row in rolled:
        told = dict(zip(samples.ROLLUP, row, strict=True))
        group: list[dict[str, Any]] = [
            dict(zip(samples.SECOND, each, strict=True)) for each in rows if (each[0] or 0) // step_s * step_s == row[0]
        ]
        assert told["samples"] == len(group)
        for name in samples.SPREAD:
            known = [each[name] for each in group if each[name] is not None]
            assert told[f"{name}_min"] == min(known, default=None)
            assert told[f"{name}_max"] == max(known, default=None)
            mean = told[f"{name}_avg"]
            assert (mean is None) == (not known)
            assert mean is None or abs(mean - sum(known) / len(known)) <= 0.5
        assert told["health"] == max(each["health"] for each in group)
        assert told["requests"] == group[-1]["requests"]
        assert told["phase"] == group[-1]["phase"]


@settings(deadline=None)
@given(second_rows(known=True), st.integers(2, 5))
def test_rolling_up_twice_is_as_once(rows: list[Row], times: int) -> None:
    """Minutes into longer steps; a mean may be off by the rounding of the first."""
    once, twice = roll_up(rows, 60 * times), merge(roll_up(rows, 60), 60 * times)
    assert len(once) == len(twice)
    for direct, merged in zip(once, twice, strict=True):
        for name, a, b in zip(samples.ROLLUP, direct, merged, strict=True):
            assert a == b or (name.endswith("_avg") and abs((a or 0) - (b or 0)) <= 1)


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), float("-inf"), 1e300, -5.0, None])
def test_nonsense_in_a_status_harms_nothing(nonsense: float | None) -> None:
    """It becomes unknown or is clipped, and can be packed and shown."""
    vitals = replace(STATUS.metrics.vitals, cpu_cores=nonsense, loop_lag_s=nonsense)
    status = replace(STATUS, metrics=replace(STATUS.metrics, vitals=vitals, requests=1 << 70), restarts=-3)
    (row,) = unpack(pack([row_of(status, NOW_S)]), len(samples.SECOND))
    msgspec.json.encode([sample_of(row), *map(point_of, roll_up([row], 60))])
    assert sample_of(row).restarts == 0


def test_a_sample_is_the_status_again() -> None:
    """To the units in which it is kept."""
    sample = sample_of(row_of(STATUS, NOW_S + 0.9))
    vitals = STATUS.metrics.vitals
    assert (sample.time_s, sample.health, sample.phase) == (NOW_S, STATUS.health, STATUS.phase)
    assert (sample.cpu_cores, sample.loop_lag_s, sample.fds) == (vitals.cpu_cores, vitals.loop_lag_s, vitals.fds)
    assert 0 <= (vitals.rss_bytes or 0) - (sample.rss_bytes or 0) < 1024 or sample.rss_bytes == vitals.rss_bytes
    assert (sample.requests, sample.incarnation) == (STATUS.metrics.requests, STATUS.incarnation)


# -- the file ----------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a history is kept."""
    return tmp_path / "atlas" / "history.db"


def opened(path: Path | None, limit_bytes: int = LIMIT_BYTES) -> Store:
    return Store(path, limit_bytes)


def row(at_s: float, requests: int = 0) -> Row:
    return row_of(replace(STATUS, metrics=replace(STATUS.metrics, requests=requests)), at_s)


def filled(held: Store, names: list[str], begin_s: int, end_s: int) -> None:
    """A sample for each second."""
    for first_s in range(begin_s, end_s, 10):
        rows = [row(at_s, at_s - begin_s) for at_s in range(first_s, min(first_s + 10, end_s))]
        held.write(Batch(chunks=[(name, rows) for name in names]))


def event(number: int, **fields: Any) -> Event:
    return replace(EVENT, id=f"e{number}", time_s=NOW_S + number / 10, **fields)


def filed(number: int, instance: str = "web", *, text: str = "") -> postmortems.Filed:
    report = PostMortem(
        name=instance, host="host-1", start=number, pid=number, incarnation=number, ended_at="", lived_s=1.0,
        ready_after_s=None, wait_status=9, end="killed by SIGKILL", log_tail=text,
    )  # fmt: skip
    ended_s = float(NOW_S + number)
    return postmortems.Filed(Path(postmortems.name_at(int(ended_s * 1e9), number)), ended_s, report)


def test_what_is_written_is_there_for_the_next(path: Path) -> None:
    """Also what the one before did not close: SQLite's log is read again."""
    first = opened(path)
    command = CommandView(
        id="c1", order="o1", verb=Verb.STOP, name="web", asked_by="me", asked_at_s=NOW_S, stage="ended",
        kind=OutcomeKind.DONE,
    )  # fmt: skip
    life = Life("web", 4, "host-1", 9, NOW_S - 5.0, NOW_S)
    first.write(
        Batch(chunks=[("web", [row(NOW_S), row(NOW_S + 1)])], events=[event(1)], commands=[command], ends=[filed(1)],
              lives=[life])
    )  # fmt: skip
    queries = opened(path).queries
    assert [each[0] for each in queries.seconds("web", NOW_S, NOW_S + 10)] == [NOW_S, NOW_S + 1]
    assert queries.newest_events(10) == [event(1)]
    assert queries.commands(None, 0, NOW_S + 1, 10) == [command]
    assert queries.ends("web", before_s=None, limit=9)[0].report == filed(1).report
    assert queries.lives("web", before_s=None, limit=9) == [life]
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_read_is_left_out(path: Path) -> None:
    """A command with a verb of a later version, a report that is damaged: the others are told, and these counted."""
    held = opened(path)
    commands = [
        CommandView(id=id, order="o1", verb=Verb.STOP, name="web", asked_by="me", asked_at_s=NOW_S, stage="ended")
        for id in ("c1", "c2")
    ]
    held.write(Batch(events=[event(1), event(2)], commands=commands, ends=[filed(1), filed(2)]))
    execute = held._connection.execute
    execute("UPDATE commands SET command = replace(CAST(command AS TEXT), 'stop', 'hibernate') WHERE id = 'c1'")
    execute("UPDATE events SET event = '{}' WHERE id = 'e1'")
    execute("UPDATE postmortems SET report = x'00' WHERE pid = 1")
    queries = held.queries
    assert queries.newest_events(10) == [event(2)]
    assert [told for _, told in queries.events()] == [event(2)]
    assert queries.event("e1") is None
    assert queries.commands(None, 0, NOW_S + 1, 10) == [commands[1]]
    assert [each.report for each in queries.ends("web", before_s=None, limit=9)] == [filed(2).report]
    assert queries.end("web", incarnation=1) is None
    assert queries.unreadable == 6


def test_an_error_leaves_nothing_half_written(path: Path) -> None:
    """Nor a number for an instance that nobody has."""
    held = opened(path)
    with pytest.raises(OverflowError):
        held.write(Batch(chunks=[("web", [row(NOW_S)])], lives=[Life("web", 1 << 70, "h", 1, 0.0, 0.0)]))
    assert held.queries.number_of("web") is None
    held.write(Batch(chunks=[("web", [row(NOW_S)])]))
    assert len(held.queries.seconds("web", 0, NOW_S + 1)) == 1


def test_minutes_are_rolled_up_from_what_is_on_disk(path: Path) -> None:
    """Each quarter once it is over, a few instances at a time, also by the next ATLAS, and none twice."""
    names = [f"web-{number}" for number in range(5)]
    held = opened(path)
    filled(held, names, NOW_S + 30, NOW_S + 2 * QUARTER_S - 300)
    end_s = NOW_S + 2 * QUARTER_S
    assert not held.roll_up(NOW_S + QUARTER_S + 30, 60, 3), "the quarter is over, but what spills into it is to come"
    assert held.roll_up(end_s, 60, 3)
    held = opened(path)
    steps = 0
    while held.roll_up(end_s, 60, 3):
        steps += 1
    assert steps == 1
    for name in names:
        minutes = held.queries.minutes(name, 0, end_s)
        assert [each[0] for each in minutes] == [NOW_S + 60 * number for number in range(15)]
        assert [each[1] for each in minutes] == [30, *[60] * 14]
        assert held.queries.rolled_until_s(name) == NOW_S + QUARTER_S


def test_pruning_by_age(path: Path) -> None:
    """Seconds live for an hour, minutes for a week, events for a month; each goes a little at a time."""
    held = opened(path)
    filled(held, ["web"], NOW_S, NOW_S + 300)
    held.write(Batch(events=[event(number) for number in range(1200)], ends=[filed(1)]))
    held.roll_up(NOW_S + 2 * QUARTER_S, 60, 10)

    def left() -> tuple[int, int, int, int]:
        queries, end_s = held.queries, NOW_S + QUARTER_S
        return (
            len(queries.seconds("web", 0, end_s)),
            len(queries.minutes("web", 0, end_s)),
            len(queries.newest_events(9999)),
            len(queries.ends("web", before_s=None, limit=9)),
        )

    for age_s, expected in (
        (3000, (300, 5, 1200, 1)),
        (3600 + 600, (0, 5, 1200, 1)),
        (7 * 86400 + 2 * QUARTER_S + 60, (0, 0, 1200, 1)),
        (30 * 86400 + 300, (0, 0, 0, 0)),
    ):
        for _ in range(10):
            held.prune(NOW_S + age_s)
        assert left() == expected


@pytest.mark.parametrize("jump_s", [3600.0, 86400.0, 366 * 86400.0])
def test_a_clock_that_jumps_prunes_nothing_early(path: Path, jump_s: float) -> None:
    """What was written before lives as long as it should, by the time that has truly passed; then it goes."""
    held = opened(path)
    filled(held, ["web"], NOW_S, NOW_S + 300)
    held.write(Batch(events=[event(number) for number in range(100)], ends=[filed(1)]))
    aging = Aging(NOW_S + 300.0, NOW_S + 300.0, 1000.0)

    def after(passed_s: float) -> tuple[bool, bool, bool]:
        """What of seconds, minutes and events is there, so long after the last was written; the clock has jumped."""
        wall_s = NOW_S + 300 + jump_s + passed_s
        aging.look(wall_s, 1000.0 + passed_s)
        for _ in range(10):
            held.roll_up(wall_s, 60, 10)
            held.prune(wall_s, aging.lag_s)
            held.prune_rarely(wall_s, aging.lag_s)
        queries = held.queries
        seconds, minutes = queries.seconds("web", 0, NOW_S + 300), queries.minutes("web", 0, NOW_S + 300)
        return (
            bool(seconds),
            bool(minutes),
            bool(queries.newest_events(1) and queries.ends("web", before_s=None, limit=1)),
        )

    assert after(1.0) == (True, True, True)
    assert after(3000.0) == (True, True, True)
    assert after(3600 + 600.0) == (False, True, True)
    assert after(6 * 86400.0) == (False, True, True)
    assert after(7 * 86400 + 2 * QUARTER_S + 60.0) == (False, False, True)
    assert after(29 * 86400.0) == (False, False, True)
    assert after(30 * 86400 + 600.0) == (False, False, False)


def test_minutes_are_made_though_the_clock_is_set_back(path: Path) -> None:
    """And of what was written when it was ahead, too, once that time has come."""
    held = opened(path)
    held.roll_up(NOW_S + 365 * 86400, 60, 10)
    filled(held, ["web"], NOW_S, NOW_S + 300)
    held.roll_up(NOW_S + 2 * QUARTER_S, 60, 10)
    assert len(held.queries.minutes("web", 0, NOW_S + 300)) == 5


def test_how_far_a_clock_has_jumped() -> None:
    """Ahead and back again is nothing; slewing is nothing; a time away counts until it is over."""
    aging = Aging(None, 1e9, 0.0)
    for second in range(1, 100):
        aging.look(1e9 + 1.0005 * second, second)
    assert aging.lag_s(60) == 0
    aging.look(1e9 + 3600 + 100, 100)
    assert aging.lag_s(60) == pytest.approx(3600, abs=1)
    aging.look(1e9 + 3600 + 161, 161)
    assert aging.lag_s(60) == 0
    assert aging.lag_s(600) == pytest.approx(3600, abs=1)
    aging.look(1e9 + 200, 200)
    assert aging.lag_s(600) == pytest.approx(0, abs=1)
    aging.look(0.0, 201)
    assert aging.lag_s(600) == 0
    aging.look(1e9 + 202, 202)
    assert aging.lag_s(600) == pytest.approx(0, abs=1)
    away = Aging(1e9, 1e9 + 86400, 0.0)
    assert away.lag_s(60) == 86400
    away.look(1e9 + 86400 + 61, 61)
    assert away.lag_s(60) == 0


def test_pruning_by_size(path: Path) -> None:
    """Whatever comes, the file stays below its limit, keeps the newest, and is written to without an error."""
    limit_bytes = MiB
    held = opened(path, limit_bytes)
    names = [f"web-{number}" for number in range(60)]
    for number in range(100):
        begin_s = NOW_S + 10 * number
        held.write(
            Batch(
                chunks=[(name, [row(at_s, at_s) for at_s in range(begin_s, begin_s + 10)]) for name in names],
                events=[event(10 * number + n, text=os.urandom(400).hex()) for n in range(10)],
                ends=[filed(number, text=os.urandom(4000).hex())],
            )
        )
        held.roll_up(begin_s, 60, 20)
        held.prune(begin_s)
        held.prune_rarely(begin_s)
        assert held.size_bytes() <= limit_bytes
    held.close()
    assert path.stat().st_size <= limit_bytes
    queries = opened(path, limit_bytes).queries
    assert queries.newest_events(1)[0].id == "e999"
    assert queries.ends("web", before_s=None, limit=1)[0].report.start == 99
    assert queries.seconds("web-7", NOW_S, NOW_S + 1000)[-1][0] == NOW_S + 999


def test_a_crash_loop_does_not_push_out_the_ends_of_others(path: Path) -> None:
    """So many of each instance, and no more."""
    held = opened(path)
    held.write(Batch(ends=[filed(0, "calm"), *(filed(number, "loop") for number in range(1, 500))]))
    held.prune_rarely(NOW_S + 500)
    assert len(held.queries.ends("calm", before_s=None, limit=999)) == 1
    kept = held.queries.ends("loop", before_s=None, limit=999)
    assert [each.report.start for each in kept] == list(range(499, 499 - store.OF_INSTANCE, -1))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.sampled_from(["state", "health"])), max_size=40),
    st.integers(1, 7),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from([None, "state"]),
)
def test_pages_of_events_hold_each_once(
    told: list[tuple[int, str, str]], size: int, instance: str | None, kind: str | None
) -> None:
    """Newest first, also where many are of one time, whatever is asked for."""
    held = opened(None)
    all_events = [
        replace(EVENT, id=f"e{n}", time_s=float(at_s), instance=name, kind=kind_)
        for n, (at_s, name, kind_) in enumerate(told)
    ]
    held.write(Batch(events=all_events))
    found: list[Event] = []
    before = None
    while page := held.queries.events(instance=instance, kind=kind, before=before, limit=size):
        found += [each for _, each in page]
        before = page[-1][0]
    wanted = [each for each in all_events if instance in (None, each.instance) and kind in (None, each.kind)]
    assert found == sorted(wanted, key=lambda each: (each.time_s, int(each.id[1:])), reverse=True)
    assert held.queries.events(since_s=1.0, until_s=3.0, limit=99) == [
        each for each in held.queries.events(limit=99) if 1.0 <= each[1].time_s < 3.0
    ]


def test_a_file_of_a_later_version_is_set_aside(path: Path) -> None:
    """Nothing of it is changed, and history begins anew."""
    opened(path).close()
    with sqlite3.connect(path) as later:
        later.execute("PRAGMA user_version = 7")
        later.execute("CREATE TABLE wonders (x)")
    later.close()
    held = opened(path)
    held.write(Batch(events=[event(1)]))
    assert held.set_aside == 1
    (aside,) = path.parent.glob("history.db.version-7.*")
    with sqlite3.connect(aside) as later:
        assert later.execute("SELECT count(*) FROM wonders").fetchone() == (0,)
    later.close()
    assert opened(path).set_aside == 0


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_file_that_is_none_is_set_aside(path: Path, content: bytes) -> None:
    """Damaged beyond reading: kept for whoever wants to look, and history begins anew."""
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    held = opened(path)
    held.write(Batch(events=[event(1)]))
    assert held.set_aside == 1
    assert path.with_name("history.db.damaged").read_bytes() == content


def test_a_directory_that_cannot_be_is_said(tmp_path: Path) -> None:
    """With the path and the reason."""
    (tmp_path / "atlas").write_text("a file where the directory should be")
    with pytest.raises(Unusable, match=r"cannot keep history in .*history\.db: .*exists"):
        opened(tmp_path / "atlas" / "history.db")


# -- post-mortems ------------------------------------------------------------------------------------------


def left_by_warden(directory: Path, number: int, program: str = "web") -> Path:
    one = filed(number, program)
    path = directory / program / one.path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(one.report))
    return path


def test_each_post_mortem_is_taken_once(tmp_path: Path) -> None:
    """As it comes; what is none is passed over; what is not taken comes again."""
    ends = Ends(tmp_path / "postmortems")
    assert ends.look(NOW_S) == []
    left_by_warden(tmp_path / "postmortems", 1)
    left_by_warden(tmp_path / "postmortems", 2, "other")
    (tmp_path / "postmortems" / "web" / "20261123T162013.000000001-5.json").write_text('{"name": "half')
    (tmp_path / "postmortems" / "web" / "x.part").write_text("{}")
    found = ends.look(NOW_S)
    assert sorted(each.report.start for each in found) == [1, 2]
    assert len(ends.look(NOW_S)) == 2
    ends.taken(found)
    assert ends.look(NOW_S) == []
    left_by_warden(tmp_path / "postmortems", 3)
    (third,) = ends.look(NOW_S)
    assert (third.instance, third.ended_s, third.report.start) == ("web", NOW_S + 3, 3)
    known = Ends(tmp_path / "postmortems", {each.key for each in (*found, third)})
    assert known.look(NOW_S) == []


def test_numbers_that_no_table_takes(tmp_path: Path) -> None:
    """A post-mortem with nonsense is none."""
    path = left_by_warden(tmp_path, 1)
    path.write_bytes(path.read_bytes().replace(b'"pid":1', b'"pid":100000000000000000000'))
    assert Ends(tmp_path).look(NOW_S) == []


# -- the thread --------------------------------------------------------------------------------------------


class Fleet:
    """A source that a test can change."""

    def __init__(self) -> None:
        self.restored: list[Event] | None = None
        self.told: list[DaemonStatus] = []
        self.given: tuple[CommandView, ...] = ()
        self._seqs = itertools.count(1)

    def said(self) -> list[Said]:
        return [
            Said(status.instance, status.incarnation, next(self._seqs), status.phase, encode(status))
            for status in self.told
        ]

    def commands(self, limit: int) -> tuple[CommandView, ...]:
        return self.given[-limit:]

    def restore(self, events: list[Event]) -> None:
        self.restored = events


@pytest.fixture
def begin(request: pytest.FixtureRequest) -> Callable[..., History]:
    """Starts a history, and ends it afterwards."""

    def start(run_dir: RunDir, fleet: Fleet | None = None, limit_bytes: int = LIMIT_BYTES) -> History:
        one = History(run_dir, limit_bytes)
        one.start(fleet or Fleet())
        request.addfinalizer(one.stop)
        return one

    return start


def asked(one: History, question: Callable[[Memory], Any]) -> Any:
    return one.ask(question).result(timeout=60)


def ids(one: History) -> list[str]:
    found: list[Event] = asked(one, lambda memory: memory.queries.newest_events(99_999))
    return [each.id for each in found]


def test_the_next_one_remembers(run_dir: RunDir, begin: Callable[..., History]) -> None:
    """Events, in order, told back to the fleet; an event is there to be asked for at once."""
    first = begin(run_dir)
    for number in range(3):
        first.tell(event(number))
    assert ids(first) == ["e0", "e1", "e2"]
    first.stop()
    fleet = Fleet()
    begin(run_dir, fleet)
    until(lambda: fleet.restored is not None)
    assert [each.id for each in fleet.restored or []] == ["e0", "e1", "e2"]


def test_the_wall_clock_jumps_while_history_runs(run_dir: RunDir) -> None:
    """By two months, between two looks: what happened before is still there when it has looked again."""
    began_s, ahead_s = time.monotonic(), 0.0
    one = History(run_dir, wall=lambda: NOW_S + ahead_s + time.monotonic() - began_s)
    fleet = Fleet()
    one.start(fleet)
    one.tell(event(0))
    assert ids(one) == ["e0"]

    def samples_since(at_s: float) -> bool:
        fleet.told = [replace(STATUS, instance="web")]
        return bool(asked(one, lambda memory: memory.seconds("web", at_s, 1e10)))

    until(lambda: samples_since(0))
    ahead_s = 60 * 86400.0
    until(lambda: samples_since(NOW_S + ahead_s))
    until(lambda: samples_since(NOW_S + ahead_s + 2))
    assert ids(one) == ["e0"]
    one.stop()


def test_statuses_commands_and_ends_are_taken(run_dir: RunDir, begin: Callable[..., History]) -> None:
    """Once a second from the fleet, and from the wardens' files; each life is known by its number."""
    fleet = Fleet()
    fleet.told = [replace(STATUS, instance="web", uptime_s=5.0)]
    open_, done = (
        CommandView(
            id=id_, order="o", verb=Verb.STOP, name="web", asked_by="me", asked_at_s=NOW_S, stage="asked", kind=kind
        )
        for id_, kind in (("c1", None), ("c2", OutcomeKind.DONE))
    )
    fleet.given = (open_, done)
    left = left_by_warden(run_dir.path / "postmortems", 1)
    one = begin(run_dir, fleet)
    until(lambda: len(asked(one, lambda memory: memory.seconds("web", 0, 1e10))) >= 2)
    (life,) = asked(one, lambda memory: memory.queries.lives("web", before_s=None, limit=9))
    assert (life.incarnation, life.pid, round(life.heard_s - life.started_s)) == (42, 1234, 5)
    assert asked(one, lambda memory: memory.queries.commands("web", 0, 1e10, 9)) == [done]
    assert asked(one, lambda memory: memory.queries.count_ends("web", 0, 1e10)) == 1
    left.unlink()
    fleet.told = [replace(fleet.told[0], incarnation=43, pid=5)]
    until(lambda: len(asked(one, lambda memory: memory.queries.lives("web", before_s=None, limit=9))) == 2)
    assert asked(one, lambda memory: memory.queries.count_ends("web", 0, 1e10)) == 1, "the warden keeps it no longer"


def test_what_was_asked_for_by_somebody_who_left(run_dir: RunDir, begin: Callable[..., History]) -> None:
    """A question that fails is its asker's; one that takes too long is broken off; too many are refused."""
    one = begin(run_dir)
    with pytest.raises(ZeroDivisionError):
        asked(one, lambda memory: 1 // 0)
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        asked(one, lambda memory: memory.queries._connection.execute(endless).fetchone())
    gate = ThreadEvent()
    one.ask(lambda memory: gate.wait(60))
    waiting = []
    with pytest.raises(Busy, match="64 questions wait already"):
        for _ in range(100):
            waiting.append(one.ask(lambda memory: True))
    gate.set()
    assert all(each.result(timeout=60) for each in waiting)
    assert ids(one) == []


def test_nonsense_in_events_is_bounded(run_dir: RunDir, begin: Callable[..., History]) -> None:
    """Texts are cut, times that cannot be are ATLAS's own, what is otherwise too large is counted."""
    one = begin(run_dir)
    happened = Happened(one)
    happened.append(event(1, text="x" * MiB))
    for number, nonsense_s in ((2, float("nan")), (3, 1e300), (4, -1.0)):
        happened.append(replace(event(number), time_s=nonsense_s))
    happened.append(replace(event(5), cause="y" * MiB))
    happened.append(replace(event(6), id="z" * MiB))
    found: list[Event] = asked(one, lambda memory: memory.queries.newest_events(99))
    assert tuple(found) == happened.newest(99)
    assert [each.id for each in found] == ["e1", "e2", "e3", "e4"]
    assert len(found[0].text) == TEXT_CHARS
    assert all(NOW_S < each.time_s < 1e11 for each in found[1:])
    assert happened.dropped == 2


def test_the_queue_is_bounded(run_dir: RunDir) -> None:
    """Whoever tells never waits, and never fills the memory."""
    one = History(run_dir)
    for number in range(history_module.EVENTS_WAITING + 5):
        one.tell(event(number))
    assert one.counts["events_dropped"] == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[RunDir]:
    """A run directory on a file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs; test_a_file_that_may_not_grow covers the rest")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield prepare(RunDir(path))
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_stops_history_until_there_is_room(small_disk: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, still answers, keeps what comes meanwhile within bounds, and writes it once it can."""
    monkeypatch.setattr(history_module, "RETRY_S", 0.2)
    monkeypatch.setattr(history_module, "TICK_S", 0.2)
    one = History(small_disk, LIMIT_BYTES)
    one.start(Fleet())
    try:
        one.tell(event(0))
        assert ids(one) == ["e0"]
        filler = small_disk.path / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):  # no room for any of it
            while file.write(b"x" * 65536) == 65536:
                continue
        numbers = itertools.count(1)

        def stopped() -> bool:
            one.tell(event(next(numbers), text="y" * 1000))
            return bool(one.problem)

        until(stopped)
        assert "no space left on device" in one.problem or "disk" in one.problem
        told = next(numbers)
        one.tell(event(told))
        assert ids(one)[0] == "e0", "what was there can be read"
        filler.unlink()
        until(lambda: not one.problem)
        assert ids(one) == [f"e{number}" for number in range(told + 1)]
        assert asked(one, lambda memory: memory.queries._connection.execute("PRAGMA integrity_check").fetchall()) == [
            ("ok",)
        ]
    finally:
        one.stop()


def test_without_a_place_it_is_in_memory(
    run_dir: RunDir, begin: Callable[..., History], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until there is one, and then what was remembered goes there."""
    monkeypatch.setattr(history_module, "RETRY_S", 0.2)
    monkeypatch.setattr(history_module, "TICK_S", 0.2)
    blocked = run_dir.state("atlas")
    blocked.write_text("a file where the directory should be")
    one = begin(run_dir)
    one.tell(event(1))
    assert ids(one) == ["e1"]
    assert one.problem.startswith("history is in memory only: cannot keep history in ")
    blocked.unlink()
    until(lambda: not one.problem)
    one.tell(event(2))
    assert ids(one) == ["e1", "e2"]
    assert (blocked / "history.db").exists()


def test_a_file_that_is_damaged_in_use(
    run_dir: RunDir, begin: Callable[..., History], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short, as by a file system that lost its end: found out, set aside, begun anew."""
    monkeypatch.setattr(history_module, "TICK_S", 0.2)
    path = run_dir.state("atlas") / "history.db"
    whole = opened(path)
    whole.write(Batch(events=[event(number, text=f"{number}" * 100) for number in range(2000)]))
    whole.close()
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    one = begin(run_dir)
    numbers = itertools.count(5000)

    def set_aside() -> bool:
        one.tell(event(next(numbers)))
        return path.with_name("history.db.damaged").exists()

    until(set_aside)
    until(lambda: not one.problem)
    told = f"e{next(numbers)}"
    one.tell(event(int(told[1:])))
    assert told in ids(one)


@pytest.mark.parametrize("suffixes", [("",), ("", "-wal", "-shm")])
def test_a_file_that_is_deleted_in_use(
    run_dir: RunDir, begin: Callable[..., History], monkeypatch: pytest.MonkeyPatch, suffixes: tuple[str, ...]
) -> None:
    """It is begun anew with the events there were: SQLite would go on in a file that the next ATLAS cannot find."""
    monkeypatch.setattr(history_module, "TICK_S", 0.2)
    path = run_dir.state("atlas") / "history.db"
    one = begin(run_dir)
    one.tell(event(1))
    assert ids(one) == ["e1"]
    for suffix in suffixes:
        path.with_name(path.name + suffix).unlink()
    until(path.exists)
    one.tell(event(2))
    until(lambda: ids(one) == ["e1", "e2"])
    one.stop()
    assert [each.id for each in opened(path).queries.newest_events(9)] == ["e1", "e2"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("", 256 * MiB), ("1m", MiB), ("2g", 2048 * MiB), ("4096k", 4 * MiB), (str(5 * MiB), 5 * MiB)],
)
def test_the_limit_is_read(text: str, value: int) -> None:
    """Bytes, with k, m or g."""
    assert limit_bytes_of({"CDN_ATLAS_HISTORY_BYTES": text}) == value


@pytest.mark.parametrize("text", ["0", "1k", "-5m", "m", "1e9", "nan", "9" * 40, "٣m", "2t"])
def test_a_limit_that_cannot_be_is_refused(text: str) -> None:
    """With the variable, its value and what it may be."""
    with pytest.raises(SettingError, match=r"cannot use CDN_ATLAS_HISTORY_BYTES=.* such as 256m"):
        limit_bytes_of({"CDN_ATLAS_HISTORY_BYTES": text})


# -- ATLAS for real ----------------------------------------------------------------------------------------


def test_history_outlives_atlas(run_path: Path, run_dir: RunDir) -> None:
    """SIGKILL: the next ATLAS tells operators what happened before it, and begins with one history, whole."""
    with ServiceProcess(run_path, *ATLAS) as atlas, ServiceProcess(run_path, *TINY):
        operator = OperatorLink(run_dir.operators)
        until(lambda: is_well(operator, "atlas", "tiny"))
        before = {each.id for each in events(operator) if each.instance == "tiny"}
        assert before
        kept = msgspec.json.decode(atlas.get("/api/v1/events?limit=1000")[1])["events"]
        assert before <= {each["id"] for each in kept}
        operator.close()
        os.kill(atlas.pid, signal.SIGKILL)
        atlas.wait()
        with ServiceProcess(run_path, *ATLAS):
            operator = OperatorLink(run_dir.operators)
            until(lambda: is_well(operator, "atlas", "tiny"))
            after = events(operator)
            operator.close()
            assert before <= {each.id for each in after}
            assert [each.time_s for each in after] == sorted(each.time_s for each in after)
        assert not list(run_dir.state("atlas").glob("history.db.damaged"))


def test_atlas_goes_on_without_history(run_path: Path, run_dir: RunDir) -> None:
    """Degraded, with the reason, and never unhealthy; all else is as before."""
    run_dir.state("atlas").mkdir()
    (run_dir.state("atlas") / "history.db").mkdir()
    with ServiceProcess(run_path, *ATLAS) as atlas:
        until(lambda: b"degraded" in atlas.get("/readyz")[1])
        told = msgspec.json.decode(atlas.get("/readyz")[1])
        assert told["ready"] is True
        assert told["health"] == HealthStatus.DEGRADED
        assert told["phase"] == LifecyclePhase.SERVING
        assert any("history is in memory only: cannot keep history in " in reason for reason in told["reasons"])
        assert atlas.get("/api/v1/events")[0] == 200
        (run_dir.state("atlas") / "history.db").rmdir()
        until(lambda: msgspec.json.decode(atlas.get("/readyz")[1])["health"] == "healthy")


def test_a_file_that_may_not_grow(run_path: Path) -> None:
    """RLIMIT_FSIZE, set and lifted under a running ATLAS: history stops, says so, and goes on."""
    with ServiceProcess(run_path, *ATLAS) as atlas:
        until(lambda: msgspec.json.decode(atlas.get("/readyz")[1])["health"] == "healthy")
        limited = psutil.Process(atlas.pid)
        _, hard = limited.rlimit(psutil.RLIMIT_FSIZE)
        limited.rlimit(psutil.RLIMIT_FSIZE, (4096, hard))
        with ServiceProcess(run_path, *TINY):  # whose events are to be written
            until(lambda: b"history stopped: cannot write " in atlas.get("/readyz")[1], within_s=60)
        assert atlas.get("/readyz")[0] == 200
        assert atlas.get("/api/v1/events")[0] == 200
        limited.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        until(lambda: msgspec.json.decode(atlas.get("/readyz")[1])["health"] == "healthy", within_s=60)


def test_an_impossible_limit_keeps_atlas_down(run_path: Path) -> None:
    """78, with what to set."""
    with ServiceProcess(run_path, *ATLAS, CDN_ATLAS_HISTORY_BYTES="12 parsecs") as atlas:
        assert atlas.wait() == 78
        assert "cannot use CDN_ATLAS_HISTORY_BYTES=12 parsecs: it must be" in atlas.log()
