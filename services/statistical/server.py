"""The HTTP interface: an application over one store and its two threads. Nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from cdn_daemon.api import EXCEPTION_HANDLERS, INLINE_BYTES, RefusedError, answer, decode, read_body, whole_number
from cdn_daemon.service import ConfigurationError
from services.sqlite import DiskError
from services.statistical import aggregates, compare, statsd
from services.statistical.api import (
    Changed,
    ChangesAnswer,
    CompareAnswer,
    CompareRequest,
    Flush,
    Listed,
    Listening,
    MergeAnswer,
    MergeRequest,
    Sample,
    SamplesAnswer,
    SamplesRequest,
    Sent,
    SeriesAnswer,
    Side,
    SideAnswer,
    Value,
)
from services.statistical.intake import Intake
from services.statistical.keeper import FLUSH_S, Batch, Beat, Keeper, Merge
from services.statistical.limits import Limits
from services.statistical.questions import QUANTILES, TOP, Questions, Window
from services.statistical.sets import TOP_MAX
from services.statistical.sketch import LARGEST
from services.statistical.statsd import MEMBER_BYTES, GarbageError, Kind, Line
from services.statistical.store import Store
from services.statistical.windows import REACH
from services.stream import Stream

HOUR_S = 3600.0
COMPARISONS_KEPT = 100_000
STREAM_BACKLOG = 30
STREAM_VALUES = 500


class Statistical:
    """The store, its threads, and the answers to requests."""

    def __init__(self, directory: Path, limits: Limits, host: str, port: int, flush_s: float) -> None:
        self.limits = limits
        self.store = Store(limits)
        self.keeper = Keeper(self.store, directory, self._beat, flush_s=flush_s)
        self.intake = Intake(self.store, host, port)
        self.questions = Questions(self.store, self.keeper)
        self.stream = Stream(limits.clients, STREAM_BACKLOG, instead="GET /series/NAME")
        self.hear: Callable[[Beat], None] = lambda _: None
        """Called with each second, on the keeper's thread."""
        self._host, self._port = host, port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._compared: deque[float] = deque(maxlen=COMPARISONS_KEPT)
        self._closing = False
        self._asked = asyncio.Semaphore(limits.questions)

    async def open(self) -> None:
        """Read what is on disk, then listen; raises ConfigurationError."""
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self.keeper.open)
        except DiskError as error:
            raise ConfigurationError(str(error)) from error
        self.questions.open(self.keeper.path)
        try:
            await asyncio.to_thread(self.intake.open)
        except OSError as error:
            await asyncio.to_thread(self.keeper.close)
            raise ConfigurationError(
                f"cannot listen for StatsD on {self._host} port {self._port}: {error}; "
                f"set CDN_STATSD_PORT to another one, or 0 for a free one"
            ) from error

    async def close(self) -> None:
        """Take in what has arrived, and write everything."""
        self._closing = True
        await asyncio.to_thread(self.intake.close)
        self._loop = None
        await asyncio.to_thread(self.keeper.close)
        self.questions.close()

    async def background(self) -> None:
        """Until one of the threads ends; what it raised."""
        threads = [asyncio.wrap_future(one.ended) for one in (self.intake, self.keeper)]
        ended, _ = await asyncio.wait([asyncio.shield(one) for one in threads], return_when=asyncio.FIRST_COMPLETED)
        for one in ended:
            one.result()
        if not self._closing:
            raise RuntimeError("a thread has ended")

    def _beat(self, beat: Beat) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._tell, beat)
            except RuntimeError:  # the loop was closed meanwhile
                self._loop = None
        self.hear(beat)

    def _tell(self, beat: Beat) -> None:
        if not len(self.stream):
            return
        values = [Value(series.name, series.kind, value) for series, value in beat.values if value]
        more = max(0, len(values) - STREAM_VALUES)
        self.stream.tell(Flush(at_s=beat.now_s, values=values[:STREAM_VALUES], more=more))
        for noted in beat.changes:
            self.stream.tell(Changed(point=noted))

    # -- in ---------------------------------------------------------------------------------------------

    async def samples(self, request: Request) -> Response:
        """``POST /samples``: JSON, or lines of StatsD as text/plain; answered when they are on disk."""
        body = await read_body(request, self.limits.body_bytes)
        read = self._lines if _is_text(request) else self._from_json
        lines, id = await asyncio.to_thread(read, body) if len(body) > INLINE_BYTES else read(body)
        if not lines:
            raise RefusedError(400, "cannot take no samples", next="give one at least")
        if len(lines) > self.limits.samples:
            limit = f"{self.limits.samples} samples"
            raise RefusedError(413, "cannot take so many samples at once", value=len(lines), limit=limit)
        if id is None:
            id = request.headers.get("idempotency-key", "")[:100] or None
        return await self._written(Batch(lines=lines), SamplesAnswer(taken=len(lines)), id)

    async def merge(self, request: Request) -> Response:
        """``POST /merge``: series of another instance, into the slot that is open."""
        body = await read_body(request, self.limits.merge_bytes)
        asked = await asyncio.to_thread(decode, body, MergeRequest)
        if not 0 < len(asked.series) <= self.limits.merges:
            limit = f"1 to {self.limits.merges}"
            raise RefusedError(413, "cannot merge so many series at once", value=len(asked.series), limit=limit)
        merges = await asyncio.to_thread(_checked_merges, asked)
        return await self._written(Batch(merges=merges), MergeAnswer(merged=len(merges)), asked.id)

    async def _written(self, batch: Batch, then: Any, id: str | None) -> Response:
        future = self.keeper.submit(batch, msgspec.json.encode(then), id)
        return Response(await asyncio.wrap_future(future), media_type="application/json")

    def _lines(self, body: bytes) -> tuple[list[Line], str | None]:
        lines = []
        for at, line in enumerate(body.split(b"\n"), 1):
            if line.strip():
                try:
                    lines.append(_checked(statsd.parse(line.rstrip(b"\r"))))
                except GarbageError as error:
                    shown = line[:100].decode(errors="replace")
                    raise RefusedError(
                        422, f"cannot take line {at}: {error}", value=shown, next="none was taken"
                    ) from error
        return lines, None

    def _from_json(self, body: bytes) -> tuple[list[Line], str | None]:
        asked = decode(body, SamplesRequest)
        lines = []
        for at, sample in enumerate(asked.samples):
            try:
                lines.append(_checked(_line(sample)))
            except GarbageError as error:
                raise RefusedError(
                    422, f"cannot take sample {at}: {error}", value=sample.value, next="none was taken"
                ) from error
        return lines, asked.id

    # -- out --------------------------------------------------------------------------------------------

    async def listening(self, request: Request) -> Response:
        """``GET /``."""
        at = f"{self._host}:{self.intake.port}"
        return answer(
            Listening(
                service="cdn-statistical",
                statsd_udp=at,
                statsd_tcp=at,
                series=len(self.store.series),
                slot_s=self.limits.slot_s,
                longest_window_s=REACH[-1] * self.limits.slot_s,
                sampled=self.intake.throttle.probability,
            )
        )

    async def listed(self, request: Request) -> Response:
        """``GET /series``: by name, a page."""
        limit = whole_number(request, "limit", default=100, low=1, high=self.limits.page)
        prefix, after = request.query_params.get("prefix", ""), request.query_params.get("after", "")
        kind = _kind(request)
        return answer(await asyncio.to_thread(self._page, prefix, after, kind, limit))

    def _page(self, prefix: str, after: str, kind: Kind | None, limit: int) -> SeriesAnswer:
        with self.store.lock:
            every = list(self.store.series.values())
        wanted = sorted(
            (one for one in every if one.name.startswith(prefix) and (kind is None or one.kind is kind)),
            key=_place,
        )
        wanted = [one for one in wanted if _place(one) > after]
        page = wanted[:limit]
        return SeriesAnswer(
            series=[Listed(name=one.name, kind=one.kind, seen_s=one.seen_s or None, bytes=one.bytes) for one in page],
            next=_place(page[-1]) if len(wanted) > limit else None,
        )

    async def one(self, request: Request) -> Response:
        """``GET /series/NAME``."""
        quantiles = self._quantiles(request)
        top = whole_number(request, "top", default=TOP, low=1, high=TOP_MAX)
        window = await self._window(request)
        return answer(await asyncio.to_thread(self.questions.now, window, quantiles, top))

    async def sketch(self, request: Request) -> Response:
        """``GET /series/NAME/sketch``: what POST /merge of another instance takes."""
        window = await self._window(request)
        aggregate = window.aggregate if window.aggregate is not None else window.series.fresh()
        return answer(
            Sent(
                name=window.series.name,
                kind=window.series.kind,
                state=aggregate.state(),
                from_s=window.from_s,
                until_s=window.until_s,
            )
        )

    async def _window(self, request: Request) -> Window:
        reach_s = REACH[-1] * self.limits.slot_s
        window_s = whole_number(request, "window", default=60, low=1, high=reach_s)
        ago_s = whole_number(request, "ago", default=0, low=0, high=reach_s)
        series = self.questions.find(request.path_params["name"], _kind(request))
        return await self._looked(series, window_s, ago_s)

    async def _looked(self, series: Any, window_s: float, ago_s: float) -> Window:
        async with self._asked:
            return await asyncio.to_thread(self.questions.window, series, window_s, ago_s)

    def _quantiles(self, request: Request) -> tuple[float, ...]:
        text = request.query_params.get("q")
        if text is None:
            return QUANTILES
        try:
            wanted = tuple(float(one) for one in text[:1000].split(","))
        except ValueError:
            wanted = (math.nan,)
        if not all(0 <= q <= 1 for q in wanted) or len(wanted) > self.limits.quantiles:
            limit = f"numbers from 0 to 1, {self.limits.quantiles} at most"
            raise RefusedError(400, "cannot use these quantiles", value=text, limit=limit, next="such as q=0.5,0.99")
        return wanted

    async def compare(self, request: Request) -> Response:
        """``POST /compare``: whether two samples come from one distribution."""
        asked = decode(await read_body(request, 16 * 1024), CompareRequest)
        test = compare.TESTS.get(asked.test)
        if test is None:
            raise RefusedError(400, "cannot use this test", value=asked.test, limit=", ".join(compare.TESTS))
        for side in (asked.first, asked.second):
            self.questions.find(side.series, Kind.DISTRIBUTION)
        sides = [await self._side(side) for side in (asked.first, asked.second)]
        first, second = (sketch for _, sketch in sides)
        verdict = await asyncio.to_thread(test, first, second)
        now_s = asyncio.get_running_loop().time()
        self._compared.append(now_s)
        while self._compared[0] < now_s - HOUR_S:
            self._compared.popleft()
        comparisons = len(self._compared)
        warning = None
        if comparisons > 1:
            warning = (
                f"of {comparisons} comparisons within the hour, {comparisons * 0.05:.3g} are below 0.05 "
                f"by chance alone: go by p_value_adjusted"
            )
        (one, _), (other, _) = sides
        return answer(
            CompareAnswer(
                verdict=verdict,
                first=one,
                second=other,
                relative_error=max(first.error, second.error),
                comparisons=comparisons,
                p_value_adjusted=min(1.0, verdict.p_value * comparisons),
                warning=warning,
            )
        )

    async def _side(self, side: Side) -> tuple[SideAnswer, Any]:
        series = self.questions.find(side.series, Kind.DISTRIBUTION)
        window = await self._looked(series, side.window_s, side.ago_s)
        of = window.aggregate.sketch if isinstance(window.aggregate, aggregates.Distribution) else None
        if of is None or of.effective < compare.EFFECTIVE_MIN:
            raise RefusedError(
                422,
                "cannot compare: too few values",
                value=f"{side.series}: {0 if of is None else of.effective:.3g}",
                limit=f"at least {compare.EFFECTIVE_MIN}",
                next="take a longer window_s",
            )
        return (
            SideAnswer(
                series=series.name,
                from_s=window.from_s,
                until_s=window.until_s,
                count=of.count,
                effective=of.effective,
                median=of.quantiles([0.5])[0],
            ),
            of,
        )

    async def changes(self, request: Request) -> Response:
        """``GET /changes``: change points, the oldest first."""
        after = whole_number(request, "after", default=0, low=0, high=2**63 - 1)
        limit = whole_number(request, "limit", default=100, low=1, high=self.limits.page)
        async with self._asked:
            found = await asyncio.to_thread(self.questions.changes, after, limit)
        return answer(
            ChangesAnswer(changes=found, next=f"/changes?after={found[-1].id}" if len(found) == limit else None)
        )

    def metrics(self) -> dict[str, float]:
        """What the service measures, for its status and for Prometheus."""
        store, intake, keeper = self.store, self.intake, self.keeper
        numbers: dict[str, float] = {
            "samples_total": store.samples,
            "samples_stood_for_total": store.folded,
            "statsd_port": intake.port,
            "statsd_datagrams_total": intake.datagrams,
            "statsd_datagrams_dropped_total": intake.dropped,
            "statsd_sampled_ratio": intake.throttle.probability,
            "statsd_queue_bytes": intake.queue_bytes,
            "statsd_connections": intake.connections(),
            "statsd_connections_refused_total": intake.connections_refused,
            "series": len(store.series),
            "series_bytes": store.bytes_seen,
            "series_overflowed_total": store.overflowed,
            "slots_lost_total": store.lost_slots,
            "batches_total": keeper.batches,
            "batches_waiting": keeper.waiting(),
            "flushes_total": keeper.flushes,
            "flushes_failed_total": keeper.flushes_failed,
            "flush_seconds": keeper.flush_s,
            "change_points_total": keeper.changes,
            "stream_clients": len(self.stream),
            "stream_missed_total": self.stream.missed,
        }
        for cause, count in store.garbage.items():
            numbers[f'statsd_garbage_total{{cause="{cause}"}}'] = count
        return numbers

    def well(self) -> None:
        """Raises if a thread has ended."""
        for one in (self.intake, self.keeper):
            if not one.is_alive():
                raise RuntimeError(f"the thread of the {type(one).__name__.lower()} has ended")

    def can_write(self) -> None:
        """Raises while the disk takes nothing."""
        if self.keeper.broken:
            raise RuntimeError(self.keeper.broken)


def _place(series: Any) -> str:
    return f"{series.name}|{series.kind}"


def _is_text(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/plain"


def _kind(request: Request) -> Kind | None:
    text = request.query_params.get("kind")
    if text is None:
        return None
    try:
        return Kind(text)
    except ValueError:
        raise RefusedError(400, "cannot use this kind", value=text, limit=", ".join(Kind)) from None


def _line(sample: Sample) -> Line:
    """A sample as if it had come by StatsD."""
    if not statsd.RATE_MIN <= sample.rate <= 1:
        raise GarbageError("rate", f"its rate is not {statsd.RATE_MIN:g} to 1")
    if (sample.kind is Kind.SET) != isinstance(sample.value, str):
        raise GarbageError("value", "a set takes a text, every other kind a number")
    if isinstance(sample.value, str):
        text = sample.value.encode()
    elif not -LARGEST <= sample.value <= LARGEST:
        raise GarbageError("value", f"it is no number within {LARGEST:g}")
    else:
        text = repr(sample.value).encode()
        if sample.kind is Kind.GAUGE:  # a sign would move it
            text = b"%+.17g" % sample.value if sample.delta else b" " + text
    tags = ",".join(f"{tag}:{value}" for tag, value in sample.tags.items())
    key = sample.name.encode() + (b"|#" + tags.encode() if tags else b"")
    return sample.kind, key, text, 1 / sample.rate


def _checked(line: Line) -> Line:
    """The line, if it will be taken; raises GarbageError."""
    kind, key, text, _ = line
    statsd.name_of(key)
    if kind is Kind.SET:
        if len(text) > MEMBER_BYTES:
            raise GarbageError("long", f"the member has more than {MEMBER_BYTES} bytes")
        try:
            text.decode()
        except UnicodeDecodeError:
            raise GarbageError("utf8", "the member is not UTF-8") from None
    else:
        for one in text.split(b":"):
            statsd.number(one)
    return line


def _checked_merges(asked: MergeRequest) -> list[Merge]:
    merges = []
    for at, sent in enumerate(asked.series):
        try:
            statsd.name_of(sent.name.encode())
            aggregate = aggregates.sent(sent.state)
            if aggregate.kind is not sent.kind:
                raise ValueError(f"its state is that of a {aggregate.kind}")
        except ValueError as error:
            raise RefusedError(
                422, f"cannot merge series {at}: {error}", value=sent.name, next="none was merged"
            ) from error
        merges.append(Merge(sent.kind, sent.name, sent.state))
    return merges


def make_app(
    directory: Path,
    *,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
    statsd_port: int = 0,
    flush_s: float = FLUSH_S,
) -> Starlette:
    """The application over the database in directory, which is opened when the application starts.

    ``app.state.statistical`` is the Statistical.
    """
    statistical = Statistical(directory, limits or Limits(), host, statsd_port, flush_s)

    @asynccontextmanager
    async def opened(_: Starlette) -> AsyncIterator[None]:
        await statistical.open()
        try:
            yield
        finally:
            await statistical.close()

    app = Starlette(
        lifespan=opened,
        routes=[
            Route("/", statistical.listening, methods=["GET"]),
            Route("/series", statistical.listed, methods=["GET"]),
            Route("/series/{name}", statistical.one, methods=["GET"]),
            Route("/series/{name}/sketch", statistical.sketch, methods=["GET"]),
            Route("/samples", statistical.samples, methods=["POST"]),
            Route("/merge", statistical.merge, methods=["POST"]),
            Route("/compare", statistical.compare, methods=["POST"]),
            Route("/changes", statistical.changes, methods=["GET"]),
            WebSocketRoute("/ws/stream", statistical.stream.serve),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.statistical = statistical
    return app
