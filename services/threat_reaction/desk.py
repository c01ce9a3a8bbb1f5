"""The one thread that decides and writes: sightings in, reactions and bans out, each acknowledged when it is on disk.

What waits is done together and committed together, by one fsync. What a commit would not take is taken back
in memory too, by reading all of it anew. Events and enforcement come after the commit, never before.
"""

from __future__ import annotations

import logging
import math
import queue
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bus.ids import new_id
from cdn_daemon.api import RefusedError
from cdn_daemon.ending import end_of_thread
from services.threat_reaction import store
from services.threat_reaction.judgement import Sighted, Wanted, judge, want
from services.threat_reaction.memory import Ban, Memory, Neighbourhood, is_good
from services.threat_reaction.networks import (
    BROADEST_BITS,
    Address,
    BadNetworkError,
    Network,
    alone,
    covers,
    narrowed,
    prefix_of,
    read_address,
    read_network,
)
from services.threat_reaction.playbooks import PREFIX_PLAYBOOK, Action, Playbook
from services.threat_reaction.records import IN_FORCE, NEXT, Lifted, Reaction, Standing, State

log = logging.getLogger(__name__)

T = TypeVar("T")
GROUP = 64
WAITING_MAX = 512
BANS_MAX = 100_000
PROPOSALS_MAX = 1_000
PLAYBOOKS_MAX = 100
NEVER_MAX = 1_000
QUIET_S = 300.0
"""A playbook that only tells does so of one address no more often."""
PRUNE_S = 3600.0
TICK_S = 1.0
BROKEN_TICK_S = 5.0
"""While nothing can be written: each try that fails costs reading everything anew."""
OVERTURNED_MAX = 3
OVERTURNED_SHARE = 0.2
"""So many, and such a part, of a day's reactions taken back, and a standing approval stands no longer."""
CONTAINED_KEPT = 256
NEIGHBOURS_MIN = 2
SELF = "cdn-threat-reaction"


class Clock:
    """Seconds since the epoch that go on evenly: a clock that is set meanwhile frees and bans nobody."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Now."""
        return time.monotonic() + self._ahead_s


TOLD_AGAIN_S = 600.0
"""For as long the bus tells again what was not heard."""


class Told(Struct, frozen=True, kw_only=True):
    """A reaction has come so far: for the bus, and for whoever watches."""

    reaction: Reaction
    id: str
    """Of the event."""
    cause: str | None


class Picture(Struct, frozen=True, kw_only=True):
    """What the loop and the metrics see: of one moment, and not changed any more."""

    at_s: float
    neighbourhoods: tuple[Neighbourhood, ...]
    sightings: int
    """Since the process began."""
    reoffences: int
    overturned: int
    proposals: int
    contain_s: float | None
    """From the first sighting that counted to the first gateway's word, median of the last ones."""
    bans: int


class Received(Struct, kw_only=True):
    """What became of sightings."""

    accepted: int = 0
    duplicates: int = 0
    reactions: list[Reaction] = []


class _Task(Struct):
    run: Callable[[], Any]
    done: Future[Any]


class Desk:
    """Owns the database and the memory. Its public methods may be called from any thread; those that change return
    a Future, which ends when the change is on disk."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] | None = None,
        tell: Callable[[Told], None] = lambda _: None,
        changed: Callable[[], None] = lambda: None,
        own_addresses: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._path = path
        self.clock = clock or Clock()
        self.tell = tell
        self.changed = changed
        self.own_addresses = own_addresses
        self._queue: queue.Queue[_Task | None] = queue.Queue()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None
        self._db: sqlite3.Connection
        self._memory = Memory()
        self._busy: dict[Address, dict[str, float]] = {}
        self._playbooks: dict[str, tuple[Playbook, Standing | None]] = {}
        self._after: list[Callable[[], None]] = []
        self._pruned_s = 0.0
        self._contained: deque[float] = deque(maxlen=CONTAINED_KEPT)
        self.bans: Mapping[Network, Ban] = {}
        """In force; a snapshot of the last commit."""
        self.lifted: tuple[Lifted, ...] = ()
        self.neighbourhoods_handled = frozenset[str]()
        """Prefixes that are banned as one, or that a person is being asked about."""
        self.broken = ""
        self.commits = 0
        self._changes = 0
        self.counts: Counter[str] = Counter()
        self.picture: Picture | None = None

    # -- its life -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read what there is; raises StoreError if that cannot be. Blocks."""
        self._db = store.opened(self._path, self.clock())
        self._reader = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=5.0)
        self._reader.execute("PRAGMA query_only=1")
        self._remember()
        self._thread = threading.Thread(target=self._run, name="reaction-desk", daemon=True)
        self._thread.start()
        since_s = self.clock() - TOLD_AGAIN_S
        for told in self.read(lambda db: store.told_since(db, since_s)):
            # The process before may have ended before it was heard; what comes twice is dropped by its id.
            self.tell(msgspec.json.decode(told, type=Told))

    def close(self) -> None:
        """Do what waits, then end."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._queue.put(None)
        thread.join()
        self._db.close()
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """What look finds in the database, as of the last commit. Blocks."""
        with self._reading:
            if self._reader is None:
                raise RefusedError(503, "cannot read: the store is not open", next="try again")
            return look(self._reader)

    def submit(self, run: Callable[[], T], *, urgent: bool = False) -> Future[T]:
        """Have run called on the desk's thread, all or nothing; RefusedError if too much waits, unless it is urgent."""
        done: Future[T] = Future()
        with self._lock:
            if self._thread is None:
                raise RefusedError(503, "cannot write: the store is not open", next="try again")
            if not urgent and self._queue.qsize() >= WAITING_MAX:
                raise RefusedError(503, "cannot write now: too much waits", limit=f"{WAITING_MAX}", next="try again")
            self._queue.put(_Task(run, done))
        return done

    def answers(self) -> None:
        """Raises RefusedError or sqlite3.Error if it cannot do its work."""
        self.read(lambda db: db.execute("SELECT number FROM audit LIMIT 1").fetchone())

    def _remember(self) -> None:
        db, now_s = self._db, self.clock()
        self._memory = store.remembered(db, now_s)
        self._playbooks = store.playbooks(db)
        self._busy = {}
        for _, reaction in store.reactions(db, ("proposed",), PROPOSALS_MAX, 1 << 62):
            self._busy.setdefault(read_address(reaction.address), {})[reaction.playbook] = math.inf
        self._snapshot()

    def _snapshot(self) -> None:
        self.bans = dict(self._memory.bans)
        self.lifted = store.lifted(self._db, self.clock())
        asked = (address for address, busy in self._busy.items() if busy.get(PREFIX_PLAYBOOK))
        banned = (ban.network.network_address for ban in self.bans.values() if ban.scenario == PREFIX_PLAYBOOK)
        self.neighbourhoods_handled = frozenset(str(prefix_of(address)) for address in (*asked, *banned))

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:  # noqa: BLE001 - who waits would wait for ever
            end_of_thread("the thread that decides")

    def _work(self) -> None:
        next_s = time.monotonic()
        while True:
            group: list[_Task] = []
            with suppress(queue.Empty):
                while len(group) < GROUP:
                    wait_s = 0.0 if group else max(0.0, next_s - time.monotonic())
                    task = self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
                    if task is None:
                        self._commit(group)
                        return
                    group.append(task)
            if group:
                self._commit(group)
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + (BROKEN_TICK_S if self.broken else TICK_S)
                self._commit([_Task(self._tick, Future())])

    def _commit(self, group: list[_Task]) -> None:
        db = self._db
        group = [task for task in group if task.done.set_running_or_notify_cancel()]
        answers: list[tuple[Future[Any], Any]] = []
        refused: list[tuple[Future[Any], Exception]] = []
        self._after = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for task in group:
                kept = len(self._after)
                db.execute("SAVEPOINT one")
                try:
                    answers.append((task.done, task.run()))
                except RefusedError as error:  # raised before anything was changed in memory
                    refused.append((task.done, error))
                    del self._after[kept:]
                    db.execute("ROLLBACK TO one")
                db.execute("RELEASE one")
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - nothing of the group was done, and each asker is told
            self._give_up(group, error)
            return
        if db.total_changes != self._changes:
            self._changes = db.total_changes
            self.commits += 1
            self.broken = ""
        if self._after:
            self._snapshot()
        for then in self._after:
            try:
                then()
            except Exception:  # what others are told must not end what decides
                log.exception("what was decided could not be told")
        for done, value in answers:
            done.set_result(value)
        for done, reason in refused:
            done.set_exception(reason)

    def _give_up(self, group: list[_Task], error: Exception) -> None:
        """Nothing of the group was done: say so to each, and forget in memory what is not on disk."""
        if isinstance(error, sqlite3.Error):
            was, self.broken = self.broken, f"cannot write {self._path}: {error}"
            if self.broken != was:
                log.error("%s", self.broken)
            full = "full" in str(error)
            told: Exception = RefusedError(
                507 if full else 503, self.broken, next="make room there, then try again" if full else "see the log"
            )
        else:
            told = error
            log.error("a decision was not made", exc_info=error)
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._remember()
        except sqlite3.Error as worse:
            self.broken = f"cannot read {self._path}: {worse}"
            log.error("%s", self.broken)
        for task in group:
            task.done.set_exception(told)

    # -- sightings ------------------------------------------------------------------------------------------

    def sight(self, sightings: list[tuple[Sighted, str | None]]) -> Future[Received]:
        """Take sightings, each with the key that makes it the same as another, and decide about them."""

        def run() -> Received:
            received, now_s = Received(), self.clock()
            for sighted, key in sightings:
                if not store.put_sighting(self._db, sighted, key):
                    received.duplicates += 1
                    continue
                received.accepted += 1
                received.reactions += self._see(sighted, now_s)
            self.counts["sightings"] += received.accepted
            return received

        return self.submit(run)

    def _see(self, sighted: Sighted, now_s: float) -> list[Reaction]:
        memory, address = self._memory, sighted.address
        if not is_good(sighted.kind):
            if memory.ban_of(address) is not None:
                self.counts["leaks"] += sighted.count
            self.counts["reoffences"] += memory.is_back(address, sighted.at_s)
        memory.see(address, sighted.seen())
        busy = {name for name, until_s in self._busy.get(address, {}).items() if until_s > now_s}
        followed = {name: playbook for name, (playbook, _) in self._playbooks.items() if name != PREFIX_PLAYBOOK}
        return [
            reaction
            for wanted in judge(memory, followed, sighted, now_s, busy=busy)
            if (reaction := self._react(wanted, now_s, sighted.cause)) is not None
        ]

    def _react(self, wanted: Wanted, now_s: float, cause: str | None, seen_s: float | None = None) -> Reaction | None:
        playbook, standing = self._playbooks[wanted.playbook]
        contains = wanted.network is not None
        networks: list[Network] = []
        if wanted.network is not None:
            with suppress(BadNetworkError):  # cut into too many parts
                networks = self._allowed(wanted.network)
            if not networks or len(self._memory.bans) + len(networks) > BANS_MAX:
                self.counts["reactions_dropped"] += 1
                return None
        stands = standing is not None and (standing.until_s is None or standing.until_s > now_s)
        if contains and not stands and self.proposals() >= PROPOSALS_MAX:
            self.counts["reactions_dropped"] += 1
            return None
        state: State = "executed" if not contains else "approved" if stands else "proposed"
        reaction = Reaction(
            id=new_id()[:16],
            playbook=wanted.playbook,
            state=state,
            address=str(wanted.address),
            verbs=list(wanted.verbs),
            networks=[str(network) for network in networks],
            kind=wanted.kind,
            for_s=wanted.for_s,
            note=wanted.note,
            created_s=now_s,
            changed_s=now_s,
            expires_s=now_s + playbook.approve_within_s if state == "proposed" else None,
            by=f"{standing.by} (standing approval)" if standing is not None and state == "approved" else "",
            seen_s=seen_s if seen_s is not None else self._memory.first_seen(wanted.address, now_s),
        )
        busy = self._busy.setdefault(wanted.address, {})
        busy[wanted.playbook] = math.inf if state == "proposed" else now_s + QUIET_S if not contains else 0.0
        self._advance(reaction, state, now_s, cause=cause)
        if state == "approved":
            self._contain(reaction, networks, now_s)
        return reaction

    def proposals(self) -> int:
        """How many wait for a person."""
        return sum(until_s == math.inf for busy in self._busy.values() for until_s in busy.values())

    def _allowed(self, network: Network) -> list[Network]:
        """What of it may be blocked, the gateway's own addresses never."""
        never = dict.fromkeys(self._memory.never)
        for text in self.own_addresses():
            with suppress(BadNetworkError):
                never[alone(read_address(text))] = None
        return narrowed(network, never)

    # -- reactions ------------------------------------------------------------------------------------------

    def _advance(
        self, reaction: Reaction, state: State, now_s: float, *, by: str = "", why: str = "", cause: str | None = None
    ) -> None:
        """Write the reaction's next state, and have it told once that is on disk."""
        reaction.cause = cause if cause is not None else reaction.event or reaction.cause
        reaction.state, reaction.changed_s, reaction.event = state, now_s, new_id()
        reaction.by, reaction.why = by or reaction.by, why or reaction.why
        store.put_reaction(self._db, reaction)
        store.audit(
            self._db,
            now_s,
            reaction.by or SELF,
            state,
            f"reaction {reaction.id}",
            {
                "playbook": reaction.playbook,
                "address": reaction.address,
                "networks": reaction.networks,
                "for_s": reaction.for_s,
                "why": reaction.why,
                "note": reaction.note,
            },
        )
        self.counts[f"reactions_{state}"] += 1
        told = Told(reaction=replace(reaction), id=reaction.event, cause=reaction.cause)
        store.keep_told(self._db, now_s, msgspec.json.encode(told))
        self._after.append(lambda: self.tell(told))

    def _contain(self, reaction: Reaction, networks: list[Network], now_s: float) -> None:
        """Put the reaction's bans in force."""
        reaction.networks = [str(network) for network in networks]
        reaction.until_s = now_s + reaction.for_s
        for network in networks:
            self._put_ban(network, reaction.kind, now_s, reaction.for_s, reaction, reaction.playbook, reaction.by)
        store.put_reaction(self._db, reaction)

    def _check_room(self, more: int) -> None:
        if len(self._memory.bans) + more > BANS_MAX:
            raise RefusedError(
                409, "cannot hold another ban", limit=f"{BANS_MAX} bans", next="lift some, or ban prefixes"
            )

    def _put_ban(
        self, network: Network, kind: str, now_s: float, for_s: float, reaction: Reaction | None, scenario: str, by: str
    ) -> Ban:
        memory = self._memory
        held = memory.bans.get(network)
        ban = Ban(
            id=0,
            network=network,
            kind="ban" if held is not None and held.kind == "ban" else kind,
            starts_s=now_s if held is None else held.starts_s,
            until_s=now_s + for_s if held is None else max(held.until_s, now_s + for_s),
            level=memory.recidivism(network, now_s),
            reaction=held.reaction
            if reaction is None and held is not None
            else ""
            if reaction is None
            else reaction.id,
            scenario=scenario,
            by=by or SELF,
            revision=0,
            cause=None if reaction is None else reaction.event,
        )
        ban = store.put_ban(self._db, ban)
        memory.begin(ban)
        self._after.append(self.changed)
        return ban

    def _end_ban(self, ban: Ban, now_s: float, by: str = "") -> None:
        store.end_ban(self._db, ban.id, now_s, by)
        self._memory.end(ban.network, now_s, overturned=bool(by))
        self._after.append(self.changed)

    def _forgive(self, network: Network, now_s: float) -> None:
        for address in self._memory.forgive(network, now_s):
            self._db.execute("INSERT OR REPLACE INTO forgiven VALUES (?, ?)", (str(address), now_s))

    def _found(self, id: str, state: State, verb: str) -> Reaction:
        reaction = store.reaction(self._db, id)
        if reaction is None:
            raise RefusedError(404, "cannot find this reaction", value=id, next="GET /reactions")
        if state not in NEXT[reaction.state] or (state == "rolled_back" and not reaction.networks):
            raise RefusedError(409, f"cannot {verb} this reaction: it is {reaction.state}", value=id)
        return reaction

    def approve(self, id: str, by: str, why: str) -> Future[Reaction]:
        """A person says yes."""

        def run() -> Reaction:
            reaction, now_s = self._found(id, "approved", "approve"), self.clock()
            if reaction.expires_s is not None and reaction.expires_s <= now_s:
                raise RefusedError(409, "cannot approve this reaction: it has expired", value=id)
            try:
                networks = [part for text in reaction.networks for part in self._allowed(read_network(text))]
            except BadNetworkError as error:
                raise RefusedError(409, f"cannot approve this reaction: {error}", value=id) from error
            if not networks:
                raise RefusedError(409, "cannot approve this reaction: what it is about is never blocked now", value=id)
            self._check_room(len(networks))
            self._free(reaction)
            self._advance(reaction, "approved", now_s, by=by, why=why)
            self._contain(reaction, networks, now_s)
            return reaction

        return self.submit(run)

    def deny(self, id: str, by: str, why: str) -> Future[Reaction]:
        """A person says no: what was seen until now does not count any more."""

        def run() -> Reaction:
            reaction, now_s = self._found(id, "denied", "deny"), self.clock()
            self._free(reaction)
            for text in reaction.networks:
                self._forgive(read_network(text), now_s)
            self._advance(reaction, "denied", now_s, by=by, why=why)
            return reaction

        return self.submit(run)

    def roll_back(self, id: str, by: str, why: str) -> Future[Reaction]:
        """A person takes it back: its bans are lifted, and not held against anybody."""

        def run() -> Reaction:
            reaction, now_s = self._found(id, "rolled_back", "roll back"), self.clock()
            for ban in [ban for ban in self._memory.bans.values() if ban.reaction == id]:
                self._end_ban(ban, now_s, by)
            for text in reaction.networks:
                self._forgive(read_network(text), now_s)
            self._advance(reaction, "rolled_back", now_s, by=by, why=why)
            self._overturned(reaction.playbook, now_s)
            return reaction

        return self.submit(run)

    def _free(self, reaction: Reaction) -> None:
        address = read_address(reaction.address)
        busy = self._busy.get(address, {})
        busy.pop(reaction.playbook, None)
        if not busy:
            self._busy.pop(address, None)

    def _overturned(self, name: str, now_s: float) -> None:
        """A standing approval does not stand where people keep taking back what it did."""
        self.counts["overturned"] += 1
        playbook, standing = self._playbooks.get(name, (None, None))
        if playbook is None or standing is None:
            return
        rows = self._db.execute(
            "SELECT state = 'rolled_back', count(*) FROM reactions WHERE playbook = ? AND changed_s > ? "
            "AND state IN ('approved', 'executed', 'failed', 'ended', 'rolled_back') GROUP BY 1",
            (name, now_s - 86_400),
        )
        by_verdict = {bool(overturned): count for overturned, count in rows}
        overturned = by_verdict.get(True, 0)
        if overturned >= OVERTURNED_MAX and overturned >= OVERTURNED_SHARE * sum(by_verdict.values()):
            self._put_playbook(name, playbook, None)
            store.audit(
                self._db, now_s, SELF, "revoked", f"playbook {name}", {"overturned": overturned, "was": standing.by}
            )

    def confirm(self, ban: Ban, gateway: str, error: str = "") -> Future[None]:
        """A gateway refuses what the ban names, or says why it will not."""

        def run() -> None:
            reaction = store.reaction(self._db, ban.reaction) if ban.reaction else None
            if reaction is None:
                return
            now_s = self.clock()
            if not error and reaction.state in ("approved", "failed"):
                reaction.contained_s = now_s
                self._contained.append(max(0.0, now_s - reaction.seen_s))
                reaction.why = ""
                self._advance(reaction, "executed", now_s, by=reaction.by)
            elif error and reaction.state == "approved":
                self._advance(reaction, "failed", now_s, by=reaction.by, why=f"{gateway}: {error}")

        return self.submit(run, urgent=True)

    def keep_gateway(self, instance: str, address: str) -> Future[None]:
        """Where a gateway is, for the next process; without an address it is forgotten."""

        def run() -> None:
            if address:
                self._db.execute("INSERT OR REPLACE INTO gateways VALUES (?, ?)", (instance, address))
            else:
                self._db.execute("DELETE FROM gateways WHERE instance = ?", (instance,))

        return self.submit(run, urgent=True)

    # -- bans -----------------------------------------------------------------------------------------------

    def ban(self, text: str, for_s: float | None, by: str, why: str) -> Future[list[Ban]]:
        """A person bans; without a duration, as long as escalation says."""

        def run() -> list[Ban]:
            network, now_s = _network(text), self.clock()
            if network.prefixlen < BROADEST_BITS[network.version]:
                raise RefusedError(
                    400, "cannot ban so broad a network", value=text, limit=f"/{BROADEST_BITS[network.version]}"
                )
            networks = self._narrowed(network)
            self._check_room(len(networks))
            lasts_s = for_s if for_s is not None else self._memory.ban_s(network, now_s)
            bans = [self._put_ban(one, "ban", now_s, lasts_s, None, "manual", by) for one in networks]
            self._note(by, "banned", str(network), networks=networks, for_s=lasts_s, why=why)
            return bans

        return self.submit(run)

    def _note(self, by: str, what: str, subject: str, **detail: Any) -> None:
        shown = {
            key: [str(one) for one in value] if isinstance(value, list) else value for key, value in detail.items()
        }
        store.audit(self._db, self.clock(), by, what, subject, shown)

    def _narrowed(self, network: Network) -> list[Network]:
        try:
            networks = self._allowed(network)
        except BadNetworkError as error:
            raise RefusedError(409, f"cannot ban this: {error}", value=network) from error
        if not networks:
            raise RefusedError(
                409,
                "cannot ban this: it is never blocked",
                value=network,
                limit=self._memory.spared(network) or "a gateway's own address",
                next="GET /never-block",
            )
        return networks

    def lift(self, text: str, by: str, why: str) -> Future[Ban]:
        """A person ends a ban; it is not held against the network."""

        def run() -> Ban:
            network, now_s = _network(text), self.clock()
            ban = self._memory.bans.get(network)
            if ban is None:
                raise RefusedError(404, "cannot find a ban of this network", value=text, next="GET /bans")
            self._end_ban(ban, now_s, by)
            self._forgive(network, now_s)
            self._note(by, "lifted", str(network), why=why)
            reaction = store.reaction(self._db, ban.reaction) if ban.reaction else None
            if reaction is None:
                self.counts["overturned"] += 1
            elif reaction.state in IN_FORCE and not any(
                one.reaction == ban.reaction for one in self._memory.bans.values()
            ):
                self._advance(reaction, "rolled_back", now_s, by=by, why=why)
                self._overturned(reaction.playbook, now_s)
            return ban

        return self.submit(run)

    # -- what is never blocked ------------------------------------------------------------------------------

    def spare(self, text: str, by: str, why: str) -> Future[list[Ban]]:
        """The network is never blocked from now on: what bans there are of it are lifted or narrowed; returns them."""

        def run() -> list[Ban]:
            network, now_s, memory = _network(text), self.clock(), self._memory
            if network not in memory.never and len(memory.never) >= NEVER_MAX:
                raise RefusedError(409, "cannot spare another network", limit=f"{NEVER_MAX} networks")
            hit = [ban for ban in memory.bans.values() if ban.network.overlaps(network)]
            try:
                rests = [narrowed(ban.network, [network]) for ban in hit]
            except BadNetworkError as error:
                raise RefusedError(409, f"cannot spare this: {error}", value=text) from error
            memory.never[network] = why
            self._db.execute("INSERT OR REPLACE INTO never VALUES (?, ?)", (str(network), why))
            self._note(by, "never-block", str(network), why=why, lifted=[ban.network for ban in hit])
            for ban, rest in zip(hit, rests, strict=True):
                self._end_ban(ban, now_s, by)
                reaction = store.reaction(self._db, ban.reaction) if ban.reaction else None
                for part in rest:
                    self._put_ban(part, ban.kind, now_s, ban.until_s - now_s, reaction, ban.scenario, ban.by)
                if reaction is not None and not rest and reaction.state in IN_FORCE:
                    self._advance(reaction, "rolled_back", now_s, by=by, why=f"{network} is never blocked")
            self._forgive(network, now_s)
            return hit

        return self.submit(run)

    def unspare(self, text: str, by: str, why: str) -> Future[None]:
        """The network may be blocked again."""

        def run() -> None:
            network = _network(text)
            if self._memory.never.pop(network, None) is None:
                raise RefusedError(404, "cannot find this network", value=text, next="GET /never-block")
            self._db.execute("DELETE FROM never WHERE network = ?", (str(network),))
            self._note(by, "may-block", str(network), why=why)

        return self.submit(run)

    # -- playbooks ------------------------------------------------------------------------------------------

    def _put_playbook(self, name: str, playbook: Playbook, standing: Standing | None) -> None:
        self._playbooks[name] = (playbook, standing)
        self._db.execute(
            "INSERT OR REPLACE INTO playbooks VALUES (?, ?, ?)",
            (name, msgspec.json.encode(playbook), None if standing is None else msgspec.json.encode(standing)),
        )

    def put_playbook(self, name: str, playbook: Playbook, by: str) -> Future[bool]:
        """Whether it is new. A standing approval was of what the playbook said before, and ends."""

        def run() -> bool:
            is_new = name not in self._playbooks
            if is_new and len(self._playbooks) >= PLAYBOOKS_MAX:
                raise RefusedError(409, "cannot hold another playbook", limit=f"{PLAYBOOKS_MAX} playbooks")
            if name == PREFIX_PLAYBOOK and "dominate" not in playbook.verbs():
                raise RefusedError(409, "cannot take this: the loop needs an action that dominates in it", value=name)
            self._put_playbook(name, playbook, None)
            self._note(by, "playbook", f"playbook {name}", playbook=msgspec.to_builtins(playbook))
            return is_new

        return self.submit(run)

    def drop_playbook(self, name: str, by: str) -> Future[None]:
        """It is not followed any more; what it did stands, what it proposed may still be approved."""

        def run() -> None:
            if name == PREFIX_PLAYBOOK:
                raise RefusedError(409, "cannot drop this playbook: the loop acts by it", value=name, next="disable it")
            if self._playbooks.pop(name, None) is None:
                raise RefusedError(404, "cannot find this playbook", value=name, next="GET /playbooks")
            self._db.execute("DELETE FROM playbooks WHERE name = ?", (name,))
            self._note(by, "playbook dropped", f"playbook {name}")

        return self.submit(run)

    def stand(self, name: str, by: str, for_s: float | None, *, stands: bool) -> Future[None]:
        """A person approves beforehand what the playbook will do, or takes that back."""

        def run() -> None:
            if name not in self._playbooks:
                raise RefusedError(404, "cannot find this playbook", value=name, next="GET /playbooks")
            now_s, playbook = self.clock(), self._playbooks[name][0]
            until_s = None if for_s is None else now_s + for_s
            self._put_playbook(name, playbook, Standing(by=by, since_s=now_s, until_s=until_s) if stands else None)
            self._note(by, "standing approval" if stands else "revoked", f"playbook {name}", until_s=until_s)

        return self.submit(run)

    # -- bouncers -------------------------------------------------------------------------------------------

    def add_bouncer(self, name: str, key_hash: str, by: str, most: int) -> Future[None]:
        """A bouncer with that key may ask from now on."""

        def run() -> None:
            names = [held for (held,) in self._db.execute("SELECT name FROM bouncers")]
            if name in names:
                raise RefusedError(409, "cannot add this bouncer: there is one of that name", value=name)
            if len(names) >= most:
                raise RefusedError(409, "cannot add another bouncer", limit=f"{most} bouncers")
            self._db.execute(
                "INSERT INTO bouncers (name, key_hash, made_s) VALUES (?, ?, ?)", (name, key_hash, self.clock())
            )
            self._note(by, "bouncer", name)

        return self.submit(run)

    def drop_bouncer(self, name: str, by: str) -> Future[None]:
        """Its key opens nothing any more."""

        def run() -> None:
            if not self._db.execute("DELETE FROM bouncers WHERE name = ?", (name,)).rowcount:
                raise RefusedError(404, "cannot find this bouncer", value=name, next="GET /bouncers")
            self._note(by, "bouncer dropped", name)

        return self.submit(run)

    def pulled(self, name: str, revision: int, agent: str) -> Future[None]:
        """The bouncer has been told of all up to that revision."""

        def run() -> None:
            self._db.execute(
                "UPDATE bouncers SET revision = ?, pulled_s = ?, agent = ? WHERE name = ?",
                (revision, self.clock(), agent, name),
            )

        return self.submit(run)

    # -- the loop's ------------------------------------------------------------------------------------------

    def contain_prefix(self, text: str) -> Future[Reaction | None]:
        """The loop bans a neighbourhood, or asks a person to, by the playbook for it."""

        def run() -> Reaction | None:
            network, now_s = _network(text), self.clock()
            playbook, _ = self._playbooks[PREFIX_PLAYBOOK]
            address = read_address(str(network.network_address))
            if not playbook.enabled or PREFIX_PLAYBOOK in self._busy.get(address, {}):
                return None
            actions = [step for step in playbook.steps.values() if isinstance(step, Action)]
            wanted = want(self._memory, PREFIX_PLAYBOOK, actions, address, now_s)
            if wanted.network != network:  # somebody has done well since, or it is spared
                return None
            reaction = self._react(wanted, now_s, None, seen_s=now_s)
            if reaction is not None and reaction.state != "proposed":
                self._free(reaction)
            return reaction

        return self.submit(run, urgent=True)

    def release_prefix(self, text: str) -> Future[None]:
        """The loop takes its ban, or its question, back."""

        def run() -> None:
            now_s = self.clock()
            for _, reaction in store.reactions(self._db, ("proposed", *sorted(IN_FORCE)), 1000, 1 << 62):
                if reaction.playbook != PREFIX_PLAYBOOK:
                    continue
                if not any(covers(_network(text), read_network(one)) for one in reaction.networks):
                    continue
                if reaction.state == "proposed":
                    self._free(reaction)
                    self._advance(reaction, "expired", now_s, by="the loop", why="no longer needed")
                    continue
                for ban in [ban for ban in self._memory.bans.values() if ban.reaction == reaction.id]:
                    self._end_ban(ban, now_s, "the loop")
                self._advance(reaction, "rolled_back", now_s, by="the loop", why="it did not help")

        return self.submit(run, urgent=True)

    def may_contain_prefixes(self) -> str:
        """``ban``, ``ask`` or ``no``: what the playbook for neighbourhoods says now."""
        playbook, standing = self._playbooks.get(PREFIX_PLAYBOOK, (None, None))
        if playbook is None or not playbook.enabled:
            return "no"
        stands = standing is not None and (standing.until_s is None or standing.until_s > self.clock())
        return "ban" if stands else "ask"

    # -- time passes ----------------------------------------------------------------------------------------

    def tick(self) -> Future[None]:
        """What is due by now is done; it is every second anyway."""
        return self.submit(self._tick, urgent=True)

    def _tick(self) -> None:
        now_s, memory = self.clock(), self._memory
        if self.broken:  # see whether it can be written again, even if nothing else is to be
            self._db.execute("INSERT OR REPLACE INTO forgiven VALUES ('', 0)")
            self._db.execute("DELETE FROM forgiven WHERE address = ''")
        over = [ban for ban in memory.bans.values() if ban.until_s <= now_s]
        for ban in over:
            self._end_ban(ban, ban.until_s)
        still = {ban.reaction for ban in memory.bans.values()} if over else set()
        for id in {ban.reaction for ban in over if ban.reaction} - still:
            reaction = store.reaction(self._db, id)
            if reaction is not None and "ended" in NEXT[reaction.state]:
                self._advance(reaction, "ended", now_s)
        if any(until_s == math.inf for busy in self._busy.values() for until_s in busy.values()):
            for _, reaction in store.reactions(self._db, ("proposed",), PROPOSALS_MAX, 1 << 62):
                if reaction.expires_s is not None and reaction.expires_s <= now_s:
                    self._free(reaction)
                    self._advance(reaction, "expired", now_s, why="nobody approved it in time")
        for address in [one for one, busy in self._busy.items() if all(until_s <= now_s for until_s in busy.values())]:
            del self._busy[address]
        if now_s - self._pruned_s > PRUNE_S:
            self._pruned_s = now_s
            store.prune(self._db, now_s)
        contained = sorted(self._contained)
        self.picture = Picture(
            at_s=now_s,
            neighbourhoods=tuple(memory.neighbourhoods(now_s, addresses_at_least=NEIGHBOURS_MIN)),
            sightings=self.counts["sightings"],
            reoffences=self.counts["reoffences"],
            overturned=self.counts["overturned"],
            proposals=self.proposals(),
            contain_s=contained[(len(contained) - 1) // 2] if contained else None,
            bans=len(memory.bans),
        )

    def known(self, text: str) -> Future[dict[str, object]]:
        """All about one address."""

        def run() -> dict[str, object]:
            try:
                return self._memory.known(text, self.clock())
            except BadNetworkError as error:
                raise RefusedError(400, f"cannot tell about this: {error}", value=text) from error

        return self.submit(run)

    def listing(self) -> tuple[dict[str, tuple[Playbook, Standing | None]], dict[Network, str]]:
        """The playbooks and what is never blocked, now."""
        return dict(self._playbooks), dict(self._memory.never)


def _network(text: str) -> Network:
    try:
        return read_network(text)
    except BadNetworkError as error:
        raise RefusedError(400, f"cannot take this network: {error}", value=text) from error
