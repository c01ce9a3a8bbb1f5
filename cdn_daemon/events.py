"""Events between services: what one emits, others hear, through ATLAS. docs/events.md has the guarantees.

Outbox keeps what was emitted until it may be forgotten, as ATLAS may be away, or replaced by one that has not
heard it. Ear hears the feed on a thread of its own, and what it may have missed it asks ATLAS for; what has come
twice is heard once. Not here: what is to outlive the process that emits it. That process writes it down itself, and
emits it again under the same id.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from threading import Event as ThreadEvent
from threading import Lock
from typing import TYPE_CHECKING, Any

import msgspec

from bus.continuity import WITNESS, Continuity
from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import DaemonStatus, Event, EventsReply, EventsRequest, Facts
from bus.operators import AtlasSilent, OperatorLink
from bus.topics import EVENT

if TYPE_CHECKING:
    from cdn_daemon.service import Identity

log = logging.getLogger(__name__)

KEPT = 1000
KEPT_S = 600.0
"""How many events, and for how long, are said again to an ATLAS that is a new one."""
AT_ONCE = 100
"""In one tick, so that what is said again neither delays the daemon nor overflows ZeroMQ's queue."""
TEXT_CHARS = 2000
FACTS_BYTES = 4096
_ID = re.compile(r"[!-~]{1,256}")
"""ATLAS keeps no larger ones."""

WAIT_S = 0.1
"""The longest that stopping waits for the thread to look."""
ASK_S = 1.0
ASKED_FOR = 2000
"""As many as ATLAS has at hand."""
WAITING = 1000
REMEMBERED = 20_000
"""Ids: more than a whole fleet says again when ATLAS is a new one."""

Hearer = Callable[[Event, Any], Awaitable[None]]


class EventError(ValueError):
    """What cannot be an event; the text says why."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """An event but for who says it."""

    number: int
    """1, 2, 3 … within one process."""
    id: str
    time_s: float
    kept_s: float
    """Monotonic, as time_s need not be."""
    kind: str
    version: int
    text: str
    facts: dict[str, Any]
    cause: str | None


class Outbox:
    """What this process has emitted, in order. ``put`` is for any thread, all else for the daemon's."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: deque[Emitted] = deque()
        self._next = 1
        """Number of the first that is still to be sent, to the ATLAS that is there now."""
        self._sent = 0
        """Number of the last that was sent to any."""
        self.emitted = 0
        self.dropped = 0
        """Forgotten before anybody had heard them."""
        self.waits = False
        """Whether something is to be sent."""
        self.wake: Callable[[], None] | None = None
        """Has the daemon look; set once there is one."""

    def put(self, facts: Facts, text: str, *, cause: str | None = None, id: str | None = None) -> str:
        """Keep an event, to be sent at once; its id. Raises EventError."""
        kind, content = _plain(facts)
        for what, given in (("id", id), ("cause", cause)):
            if given is not None and not _ID.fullmatch(given):
                raise EventError(
                    f"cannot emit {kind} with {what} {given!r:.50}: it must be 1 to 256 visible ASCII letters"
                )
        id = id or new_id()
        text = text[:TEXT_CHARS].encode(errors="replace").decode()
        now_s = time.monotonic()
        with self._lock:
            self.emitted += 1
            self._kept.append(Emitted(self.emitted, id, time.time(), now_s, kind, facts.VERSION, text, content, cause))
            self._forget(now_s)
            sleeps, self.waits = not self.waits, True
        if sleeps and self.wake is not None:
            self.wake()
        return id

    def _forget(self, now_s: float) -> None:
        kept = self._kept
        while kept and (len(kept) > KEPT or now_s - kept[0].kept_s > KEPT_S):
            if kept.popleft().number > self._sent:
                self.dropped += 1

    def again(self) -> None:
        """ATLAS may be one that has heard none of it: send all that is kept."""
        with self._lock:
            self._forget(time.monotonic())
            self._next = 1
            self.waits = bool(self._kept)

    def take(self, most: int = AT_ONCE) -> list[Emitted]:
        """The next to be sent; ``waits`` tells whether there are more."""
        with self._lock:
            if not self._kept:
                self.waits = False
                return []
            oldest = self._kept[0].number
            place = max(self._next - oldest, 0)
            taken = list(islice(self._kept, place, place + most))
            self._next = max(self._next, oldest) + len(taken)
            self._sent = max(self._sent, self._next - 1)
            self.waits = self._next <= self.emitted
            return taken


def _plain(facts: Facts) -> tuple[str, dict[str, Any]]:
    """The kind, and its facts as they are on the wire."""
    kind = kind_of(type(facts))
    try:
        encoded = msgspec.json.encode(facts)
        msgspec.msgpack.encode(facts)  # which knows no integers over 64 bits
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EventError(f"cannot emit {kind}: {error}") from error
    if len(encoded) > FACTS_BYTES:
        raise EventError(f"cannot emit {kind}: its facts have {len(encoded)} bytes, the limit is {FACTS_BYTES}")
    plain: dict[str, Any] = msgspec.json.decode(encoded)
    del plain["kind"]
    return kind, plain


def kind_of(facts: type[Facts]) -> str:
    """The kind of event that has such facts; raises EventError if they are none."""
    is_one = isinstance(facts, type) and issubclass(facts, Facts) and facts is not Facts
    if not is_one or not isinstance(facts.__struct_config__.tag, str):
        raise EventError(f"cannot take {facts!r} for facts of an event: it must be a bus.messages.Facts with a tag")
    return facts.__struct_config__.tag


@dataclass(frozen=True)
class Hearing:
    """What a service hears, and who is told."""

    facts: type[Facts]
    hearer: Hearer
    back_s: float

    @property
    def kind(self) -> str:
        """Of the events."""
        return kind_of(self.facts)


def hearing(facts: type[Facts], hearer: Hearer, back_s: float) -> Hearing:
    """Checked; raises EventError."""
    kind = kind_of(facts)
    if not inspect.iscoroutinefunction(hearer):
        raise EventError(f"cannot hear {kind} by {hearer!r}: it must be an async function")
    if not 0 <= back_s <= KEPT_S:
        raise EventError(f"cannot hear {kind} from {back_s} s back: it must be 0 to {KEPT_S:g}")
    return Hearing(facts, hearer, back_s)


class Ear:
    """Hears for one service while ``run`` runs; who is told runs on the service's loop, one at a time."""

    def __init__(self, hearings: list[Hearing], run_dir: RunDir, mine: Identity) -> None:
        self._hearings = {each.kind: each for each in hearings}
        self._run_dir = run_dir
        self._mine = mine
        self._began_s = time.monotonic()
        self._known: dict[str, None] = {}
        """Ids, the oldest first."""
        self._continuity = Continuity()
        self._waiting: deque[tuple[Hearing, Event, Facts]] = deque()
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = ThreadEvent()
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Hear until ``stop``, and then tell what has been heard; raises if hearing itself fails."""
        self._loop = asyncio.get_running_loop()
        listening = asyncio.ensure_future(asyncio.to_thread(self._listen))
        listening.add_done_callback(lambda _: self._news.set())
        while self._waiting or not listening.done():
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                await self._tell(*self._waiting.popleft())
        listening.result()

    def stop(self) -> None:
        """Hear nothing more; any thread."""
        self._stop.set()

    async def _tell(self, told: Hearing, event: Event, facts: Facts) -> None:
        try:
            await told.hearer(event, facts)
        except Exception:
            self.counts["failed"] += 1
            log.exception("%s failed to hear %s %s", told.hearer.__name__, event.kind, event.id)

    # -- on its own thread --------------------------------------------------------------------------

    def _listen(self) -> None:
        from bus.subscriber import Subscriber  # ZeroMQ, which who hears nothing need not load

        feed = Subscriber(self._run_dir.feed, (EVENT, WITNESS))
        try:
            while not self._stop.is_set():
                message = feed.receive(WAIT_S)
                if isinstance(message, Event):
                    self._hear(message)
                elif isinstance(message, DaemonStatus) and self._continuity.is_broken(message) and self._catch_up():
                    self._continuity.mend(message)
                self.counts["malformed"] = sum(feed.dropped.values())
        finally:
            feed.close()

    def _catch_up(self) -> bool:
        """Ask ATLAS for what may have been missed; False if it does not answer."""
        request = EventsRequest(id=new_id(), limit=ASKED_FOR, kinds=tuple(self._hearings))
        link = OperatorLink(self._run_dir.operators)
        try:
            link.request(request, timeout_s=ASK_S)
            reply = next(link.replies(request.id, timeout_s=ASK_S))
        except (AtlasSilent, ValueError) as error:  # FrameError among them
            log.debug("cannot ask for events: %s", error)
            return False
        finally:
            link.close()
        for event in reply.events if isinstance(reply, EventsReply) else ():
            self._hear(event)
        return True

    def _hear(self, event: Event) -> None:
        told = self._hearings.get(event.kind)
        if told is None or event.instance == self._mine.instance or event.id in self._known:
            return
        # When it began by the clock as it is set now.
        if event.time_s < time.time() - (time.monotonic() - self._began_s) - told.back_s:
            return
        self._known[event.id] = None
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        try:
            if event.version > told.facts.VERSION:
                raise EventError(f"its version is {event.version}, this knows {told.facts.VERSION}")
            facts = msgspec.convert(event.facts, type=told.facts)
        except (msgspec.ValidationError, EventError) as error:
            self.counts["not_understood"] += 1
            log.warning("cannot understand %s %s of %s: %s", event.kind, event.id, event.instance, error)
            return
        if len(self._waiting) >= WAITING:
            self.counts["dropped"] += 1
            return
        self.counts["heard"] += 1
        self._waiting.append((told, event, facts))
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._news.set)


def numbers(outbox: Outbox, ear: Ear | None) -> dict[str, float]:
    """For the status; of who neither emits nor hears there are none."""
    counts: dict[str, int] = {}
    if outbox.emitted:
        counts |= {"emitted": outbox.emitted, "emitted_dropped": outbox.dropped}
    if ear is not None:
        counts |= {what: ear.counts[word] for word, what in _COUNTED.items()}
        counts["not_understood"] = ear.counts["not_understood"] + ear.counts["malformed"]
    return {f"events_{what}_total": float(count) for what, count in counts.items()}


_COUNTED = {
    "heard": "heard",
    "failed": "heard_failed",
    "dropped": "heard_dropped",
}
