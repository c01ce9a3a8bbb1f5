"""An ATLAS of a few lines, on the real sockets: it answers operators as a test has it answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from bus.broker import Broker
from bus.codec import Decoder, encode
from bus.endpoints import RunDir
from bus.messages import (
    CommandsReply,
    CommandsRequest,
    CommandView,
    Event,
    EventsReply,
    EventsRequest,
    FleetReply,
    FleetRequest,
    IncarnationView,
    OperatorReply,
    OperatorRequest,
    OrderAccepted,
    OrderOutcome,
    OrderProgress,
    OrderRequest,
    OutcomeKind,
    Refusal,
    ServiceView,
    SnapshotRequest,
    WhyReply,
    WhyRequest,
)
from bus.topics import topic_of

Replies = list[OperatorReply | bytes]


class FakeAtlas:
    """Runs on a thread of its own, which owns the broker, while the context is open."""

    def __init__(
        self,
        run_dir: RunDir,
        services: Sequence[ServiceView] = (),
        events: Sequence[Event] = (),
        order: Callable[[OrderRequest], Replies] | None = None,
    ) -> None:
        self._run_dir = run_dir
        self.services = tuple(services)
        """What it shows; a test may change it."""
        self.notes: tuple[str, ...] = ()
        """What it says of the hosts; a test may change it."""
        self.forgets = False
        """Whether it is one whose orders the next ATLAS does not know."""
        self._orders: set[str] = set()
        self.commands: tuple[CommandView, ...] = ()
        self.lives: tuple[IncarnationView, ...] = ()
        """Of whatever it is asked for; a test may change it."""
        self._events = tuple(events)
        self._order = order or self._obey
        self._publish: list[Event] = []
        self._end = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.requests: list[OperatorRequest] = []

    def __enter__(self) -> FakeAtlas:
        self._thread.start()
        assert self._bound.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def publish(self, event: Event) -> None:
        """Put it on the feed, again and again, as a subscriber may come later."""
        self._publish.append(event)

    def _run(self) -> None:
        broker = Broker(self._run_dir)
        decoder: Decoder[OperatorRequest] = Decoder(OperatorRequest)
        self._bound.set()
        try:
            while not self._end.is_set():
                for routing_id, frame in broker.turn(0.02).operators:
                    request = decoder.decode(frame)
                    self.requests.append(request)
                    for reply in self._answer(request):
                        broker.to_operator(routing_id, reply if isinstance(reply, bytes) else encode(reply))
                for event in list(self._publish):
                    broker.publish(topic_of(event).encode(), encode(event), keep=False)
        finally:
            broker.close()

    def _answer(self, request: OperatorRequest) -> Replies:
        match request:
            case FleetRequest():
                return [FleetReply(id=request.id, services=self.services, notes=self.notes)]
            case EventsRequest():
                return [EventsReply(id=request.id, events=self._events[-request.limit :] if request.limit else ())]
            case OrderRequest() if request.attach and request.id not in self._orders:
                return [Refusal(id=request.id, reason="there is no such order")]
            case OrderRequest():
                replies = self._order(request)
                if not self.forgets:
                    self._orders.add(request.id)
                return replies
            case CommandsRequest():
                return [CommandsReply(id=request.id, commands=self.commands)]
            case WhyRequest():
                return [WhyReply(id=request.id, name=request.name, incarnations=self.lives)]
            case SnapshotRequest():
                return [Refusal(id=request.id, reason="nobody has asked for that so far")]

    @staticmethod
    def _obey(request: OrderRequest) -> Replies:
        replies: Replies = [OrderAccepted(id=request.id, commands={name: f"c-{name}" for name in request.names})]
        for name in request.names:
            replies.append(OrderProgress(id=request.id, name=name, text="draining"))
            replies.append(OrderOutcome(id=request.id, name=name, kind=OutcomeKind.DONE, incarnation=4, took_s=0.2))
        return replies
