"""What led to an event or command, and what came of it: cause and effect, as history has them."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable

from bus.messages import Event, EventsReply, EventsRequest, OperatorReply, Refusal
from services.atlas.history import Busy, History, Memory
from services.atlas.queries import Queries

EVENTS_MOST = 500
LINKS_MOST = 100
"""From an event up to what led to it: causes are what services say they are, and may go round in a circle."""
PREFIX_CHARS = 4
"""The least of an id that stands for it; new_id's have 32."""


class NoChain(Exception):
    """There is none; the text says why."""


def chain_of(queries: Queries, id_: str) -> list[Event]:
    """All that led to the event or command with that id, and all that came of the first of those, oldest first.

    Raises NoChain.
    """
    first = _only(queries, id_)
    root = first.id if first is not None else id_
    seen: set[str] = set()
    while first is not None and first.cause is not None and first.cause not in seen and len(seen) < LINKS_MOST:
        seen.add(first.id)
        root = first.cause
        first = queries.event(root)  # None: the cause is a command, or history has it no more
    own = queries.event(root)
    found: dict[str, Event] = {} if own is None else {own.id: own}
    waiting = deque([root])
    while waiting and len(found) < EVENTS_MOST:
        for event in queries.events_caused_by(waiting.popleft(), EVENTS_MOST - len(found)):
            if event.id not in found:
                found[event.id] = event
                waiting.append(event.id)
    if not found:
        raise NoChain(f"cannot find an event with the id {id_[:64]}, nor one that it led to")
    return sorted(found.values(), key=lambda event: event.time_s)


def _only(queries: Queries, id_: str) -> Event | None:
    """The event with that id, or whose id begins so; raises NoChain if there are several."""
    event = queries.event(id_)
    if event is not None or len(id_) < PREFIX_CHARS:
        return event
    match queries.events_beginning(id_, 2):
        case [only]:
            return only
        case [_, *_]:
            raise NoChain(f"cannot tell which event is meant by {id_[:64]}: several ids begin so; give more of it")
    return None


def answer_chain(
    request: EventsRequest, history: History, reply: Callable[[OperatorReply], None]
) -> OperatorReply | None:
    """Have history answer by ``reply``, called on its thread; or the answer, if it can be given at once."""

    def question(memory: Memory) -> None:
        try:
            reply(EventsReply(id=request.id, events=tuple(chain_of(memory.queries, request.chain or ""))))
        except NoChain as error:
            reply(Refusal(id=request.id, reason=str(error)))
        except (sqlite3.Error, ValueError) as error:
            reply(Refusal(id=request.id, reason=f"cannot read the history: {error}"))

    try:
        history.ask(question)
    except Busy as error:
        return Refusal(id=request.id, reason=f"cannot show the chain: {error}; try again")
    return None
