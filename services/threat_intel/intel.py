"""The service as one thing: the store, correlation, sightings and whom they are told to."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bus.ids import new_id
from bus.messages import Facts
from bus.messages import Sighting as Told
from cdn_daemon.api import RefusedError, Token
from cdn_daemon.service import ConfigurationError
from services.stream import Watchers
from services.threat_intel.api import SightingAnswer, SightingRequest, ValueAnswer
from services.threat_intel.correlate import Correlator
from services.threat_intel.limits import Limits
from services.threat_intel.scoring import Feed, FeedKind, Verdict
from services.threat_intel.store import Judged, Loaded, Rejected, Sighting, Store
from services.threat_intel.uploads import read_bundle, read_list, read_objects
from services.threat_intel.values import NoValue, Value, read

log = logging.getLogger(__name__)

NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
TOLD_EVERY_S = 10.0
"""A value that is looked up again and again is told of so often, with how often it was seen."""
TOLD_PER_S = 50.0
TOLD_AT_ONCE = 200
RECENTLY = 10_000
TOLD_AGAIN_S = 600.0
"""What was sighted so short before a restart is told again, under the same id: it may not have got out."""
SWEEP_S = 60.0
CATCH_UP_S = 2.0
_NAMESPACE = uuid.UUID("0ed56c3f-3c5a-5a0e-9c51-6b8bb5a3a1f4")


class _Recently:
    """When a value was told of, and how often it was seen since."""

    __slots__ = ("at_s", "count")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.count = 0


class Intel:
    """What the server and the loop share."""

    def __init__(self, directory: Path, token: Path, limits: Limits | None = None) -> None:
        self.limits = limits if limits is not None else Limits()
        self.store = Store(directory, self.limits)
        self.correlator = Correlator(self.store)
        self.token = Token(token)
        self.watchers: Watchers[bytes] = Watchers(self.limits.watchers, self.limits.watcher_waiting)
        self.emit: Callable[..., str] | None = None
        """Tells the other services; set by whoever runs this as a service."""
        self.opened = asyncio.Event()
        self.unusable: Exception | None = None
        """Why there is no store, or no token."""
        self._recently: dict[str, _Recently] = {}
        self._room, self._room_s = float(TOLD_AT_ONCE), time.monotonic()
        self.told = 0
        self.untold = 0
        """Malicious look-ups that nobody was told of, as there were too many at once."""

    def open(self) -> None:
        """Open the store, see that there is a token, and tell again what may not have got out."""
        self.store.open()
        self.token.arm()
        since_s = time.time() - TOLD_AGAIN_S
        for one in self.store.newest(100):
            if one.at_s >= since_s and self.store.index.allowing(read(one.key)) is None:
                self._tell(one, ())

    async def background(self) -> None:
        """Forget what has expired, and see what another process over the same database does, until cancelled.

        Raises ConfigurationError if there is no store to do that with.
        """
        await self.opened.wait()  # this begins before the application has
        if self.unusable is not None:
            raise ConfigurationError(str(self.unusable))
        swept_s = time.monotonic()
        while True:
            await asyncio.sleep(CATCH_UP_S)
            await asyncio.to_thread(self.store.catch_up)
            if time.monotonic() - swept_s >= SWEEP_S:
                swept_s = time.monotonic()
                if ended := await asyncio.to_thread(self.store.expire, time.time()):
                    log.info("%d listings have expired", ended)

    # -- feeds --------------------------------------------------------------------------------------------

    def load(self, name: str, kind: FeedKind, body: bytes, settings: dict[str, float], *, is_whole: bool) -> Loaded:
        """Have a feed hold what was sent: only that, or that too. Blocks; raises RefusedError."""
        feed = self._feed(name, kind, settings)
        if kind is FeedKind.LIST:
            values, refused = read_list(body, self.limits)
            self.store.check_room(name, len(values), is_whole=is_whole)
            loaded = self.store.put_list(feed, values, is_whole=is_whole)
            loaded.rejected, loaded.examples = refused.count, refused.examples
            return loaded
        raws = read_bundle(body)
        if self.store.objects + len(raws) > self.limits.objects:
            raise RefusedError(413, "cannot keep so many objects", value=len(raws), limit=self.limits.objects)
        rows, failures = read_objects(raws, self.limits)
        if failures and not rows:
            who, _, why = failures[0]
            raise RefusedError(422, f"cannot take any object of this bundle: {why}", value=who)
        self.store.check_room(name, sum(len(row.values) for row in rows), is_whole=is_whole)
        loaded = self.store.put_objects(feed, rows, is_whole=is_whole)
        loaded.rejected = len(failures)
        loaded.examples = [Rejected(who, why) for who, _, why in failures[:10]]
        return loaded

    def _feed(self, name: str, kind: FeedKind, settings: dict[str, float]) -> Feed:
        if not NAMES.fullmatch(name):
            raise RefusedError(
                400, "cannot use this name for a feed", value=name, limit="1 to 64 letters, digits, '_', '.' and '-'"
            )
        now_s = time.time()
        known = self.store.index.feeds.get(name)
        if known is None:
            known = Feed(name=name, kind=kind, created_s=now_s, updated_s=now_s)
        if known.kind is not kind:
            raise RefusedError(
                409, f"cannot put a {kind} into this feed: it is a {known.kind}", value=name, next="DELETE it first"
            )
        return msgspec.structs.replace(known, updated_s=now_s, **settings)

    # -- sightings ----------------------------------------------------------------------------------------

    async def sight(self, asked: Sequence[SightingRequest]) -> tuple[list[SightingAnswer], int]:
        """Keep what was seen, then tell; (those that are new, how many were known). Raises RefusedError."""
        kept = await asyncio.to_thread(self._sight, asked)
        for one in kept:
            self.watchers.tell(msgspec.json.encode(one))
        return kept, len(asked) - len(kept)

    def _sight(self, asked: Sequence[SightingRequest]) -> list[SightingAnswer]:
        index, now_s = self.store.index, time.time()
        sightings: list[Sighting] = []
        answers: dict[str, ValueAnswer] = {}
        for one in asked:
            value = valued(one.value)
            answer = self.correlator.look_up(index, one.value, value, now_s)
            sighting = Sighting(
                id=one.id or new_id(),
                value=one.value,
                key=value.key,
                kind=value.kind,
                seen_by=one.seen_by,
                count=one.count,
                at_s=now_s if one.at_s is None else min(one.at_s, now_s),  # from the future it would never grow old
                score=answer.score,
                feeds=answer.feeds,
                cause=one.cause,
            )
            sightings.append(sighting)
            answers[sighting.id] = answer
        kept = []
        for sighting in self.store.sight(sightings):
            answer = answers[sighting.id]
            is_allowed = answer.verdict == Verdict.ALLOWED
            event = None if is_allowed else self._tell(sighting, tuple(one.id for one in answer.techniques))
            kept.append(answered(sighting, answer.verdict, event))
        return kept

    def notice(self, answers: Sequence[ValueAnswer], seen_by: str, cause: str | None) -> None:
        """Tell of malicious values that were looked up; of each again only after a while. On the loop alone.

        Of many at once some are told and the rest counted: the bus is for what a person or a playbook can act on.
        """
        now_s = time.monotonic()
        self._room = min(float(TOLD_AT_ONCE), self._room + (now_s - self._room_s) * TOLD_PER_S)
        self._room_s = now_s
        recently = self._recently
        for answer in answers:
            if answer.verdict != Verdict.MALICIOUS or answer.key is None:
                continue
            recent = recently.get(answer.key)
            if recent is not None and now_s - recent.at_s < TOLD_EVERY_S:
                recent.count += 1
                continue
            if self._room < 1.0:
                self.untold += 1
                continue
            self._room -= 1.0
            if len(recently) >= RECENTLY and recent is None:
                del recently[next(iter(recently))]  # the one that was told of first
            count = 1 + (recent.count if recent is not None else 0)
            recently.pop(answer.key, None)
            recently[answer.key] = _Recently(now_s)
            seen = Sighting(
                id=new_id(),
                value=answer.value,
                key=answer.key,
                kind=answer.type or "",
                seen_by=seen_by,
                count=count,
                at_s=time.time(),
                score=answer.score,
                feeds=answer.feeds,
                cause=cause,
            )
            answer.event = self._tell(seen, tuple(one.id for one in answer.techniques))
            self.watchers.tell(msgspec.json.encode(answered(seen, answer.verdict, answer.event)))

    def _tell(self, seen: Sighting, techniques: tuple[str, ...]) -> str | None:
        if self.emit is None:
            return None
        facts: Facts = Told(
            value=seen.key,
            value_type=seen.kind,
            confidence=round(seen.score),
            feeds=seen.feeds[:20],
            techniques=techniques[:20],
            count=seen.count,
            seen_by=seen.seen_by,
            seen_s=seen.at_s,
        )
        listed = f", listed by {', '.join(seen.feeds[:3])}" if seen.feeds else ", listed by nobody"
        by = f" by {seen.seen_by}" if seen.seen_by else ""
        try:
            event = self.emit(facts, f"{seen.key} seen{by}{listed}", cause=seen.cause, id=seen.id)
        except ValueError as error:
            log.warning("cannot tell of %s: %s", seen.key, error)
            return None
        self.told += 1
        return event

    # -- verdicts -----------------------------------------------------------------------------------------

    def judge(self, text: str, *, is_true: bool, feed: str | None, judged_by: str) -> tuple[str, ...]:
        """Keep a person's word on a value, for the feed or for all that list it; which. Blocks."""
        value = valued(text)
        if feed is not None:
            self.store.feed(feed)
        answer = self.correlator.look_up(self.store.index, text, value, time.time())
        feeds = tuple(name for name in answer.feeds if feed is None or name == feed)
        if feeds:
            at_s = time.time()
            self.store.judge([Judged(name, value.key, is_true, at_s) for name in feeds], judged_by)
        return feeds


def valued(text: str) -> Value:
    """The value that was sent; raises RefusedError."""
    try:
        return read(text)
    except NoValue as error:
        raise RefusedError(422, f"cannot use this value: {error}", value=text) from error


def answered(seen: Sighting, verdict: str, event: str | None = None) -> SightingAnswer:
    """The sighting as it is shown."""
    return SightingAnswer(
        number=seen.number,
        id=seen.id,
        value=seen.value,
        key=seen.key,
        type=seen.kind,
        seen_by=seen.seen_by,
        count=seen.count,
        at_s=seen.at_s,
        score=seen.score,
        verdict=verdict,
        feeds=seen.feeds,
        cause=seen.cause,
        event=event,
    )


def collection_id(feed: str) -> str:
    """A feed's id as a TAXII collection, which must be a UUID; always the same for a name."""
    return str(uuid.uuid5(_NAMESPACE, feed))
