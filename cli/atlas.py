"""Asking ATLAS: the fleet, its events, and orders followed to their outcomes."""

from __future__ import annotations

import os
import pwd
import socket
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from bus.codec import FrameError
from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import (
    CommandsReply,
    CommandsRequest,
    EventsReply,
    EventsRequest,
    FleetReply,
    FleetRequest,
    Limits,
    OodaMode,
    OperatorReply,
    OperatorRequest,
    OrderAccepted,
    OrderOutcome,
    OrderProgress,
    OrderRequest,
    Refusal,
    Verb,
    WhyReply,
    WhyRequest,
)
from bus.operators import AtlasSilent, OperatorLink

PATIENCE_S = 1.0
"""How long ATLAS may take to answer before supervisord is asked."""

_TRIES = 5
"""How often an order is given to an ATLAS that answers, and each time too late."""

SILENCE = f"no answer from ATLAS within {PATIENCE_S:.1f} s"

__all__ = ["PATIENCE_S", "SILENCE", "AtlasSilent", "Forgotten", "Order", "Refused", "ask_events", "ask_fleet", "order"]


class Refused(Exception):
    """ATLAS answered, and will not do it; the text is its reason."""


def ask_fleet(run_dir: RunDir, *, timeout_s: float = PATIENCE_S) -> FleetReply:
    """Every service ATLAS knows. Raises AtlasSilent, Refused."""
    reply = _ask(run_dir, FleetRequest(id=new_id()), timeout_s)
    if isinstance(reply, FleetReply):
        return reply
    raise _unexpected(reply)


def ask_events(run_dir: RunDir, limit: int, *, chain: str | None = None, timeout_s: float = PATIENCE_S) -> EventsReply:
    """The newest events, or all of a chain, oldest first. Raises AtlasSilent, Refused."""
    reply = _ask(run_dir, EventsRequest(id=new_id(), limit=limit, chain=chain), timeout_s)
    if isinstance(reply, EventsReply):
        return reply
    raise _unexpected(reply)


def ask_commands(
    run_dir: RunDir, limit: int, name: str | None = None, *, timeout_s: float = PATIENCE_S
) -> CommandsReply:
    """The newest commands, of one instance if it is named, oldest first. Raises AtlasSilent, Refused."""
    reply = _ask(run_dir, CommandsRequest(id=new_id(), limit=limit, name=name), timeout_s)
    if isinstance(reply, CommandsReply):
        return reply
    raise _unexpected(reply)


def ask_why(run_dir: RunDir, name: str, limit: int, *, timeout_s: float = PATIENCE_S) -> WhyReply:
    """The newest lives of one instance, newest first. Raises AtlasSilent, Refused."""
    reply = _ask(run_dir, WhyRequest(id=new_id(), name=name, limit=limit), timeout_s)
    if isinstance(reply, WhyReply):
        return reply
    raise _unexpected(reply)


class Details(NamedTuple):
    """What an order says beside verb, names and time; as OrderRequest has it."""

    batch: int | None = None
    signal: int | None = None
    instances: int | None = None
    on: bool | None = None
    for_s: float | None = None
    mode: OodaMode | None = None
    limits: Limits | None = None


NO_DETAILS = Details()


class Forgotten(Exception):
    """ATLAS does not know the order: it is another one, and the journal of the one before is lost."""


class Order:
    """An order that ATLAS has accepted, and its replies as they come."""

    def __init__(self, link: OperatorLink, request: OrderRequest, accepted: OrderAccepted) -> None:
        self._link = link
        self._request = request
        self.commands = accepted.commands
        """Name → id of its command."""

    def next(self, within_s: float) -> OrderProgress | OrderOutcome | OrderAccepted | None:
        """The next reply; None if there is none in that time. Raises Refused, and Forgotten after ``ask_again``."""
        try:
            reply = _next(self._link, self._request, within_s)
        except AtlasSilent:
            return None
        if isinstance(reply, OrderAccepted):
            self.commands = reply.commands
        elif isinstance(reply, Refusal) and self._request.attach:
            raise Forgotten(reply.reason)
        elif not isinstance(reply, OrderProgress | OrderOutcome):
            raise _unexpected(reply)
        return reply

    def ask_again(self, within_s: float) -> None:
        """Have ATLAS, or a new one, tell again where the order stands. Raises AtlasSilent if there is none."""
        self._request = replace(self._request, attach=True)
        self._link.request(self._request, timeout_s=within_s)

    def close(self) -> None:
        """Hear no more of it; the order goes on."""
        self._link.close()


def order(run_dir: RunDir, verb: Verb, names: Sequence[str], timeout_s: float, details: Details = NO_DETAILS) -> Order:
    """Give ATLAS an order. Raises AtlasSilent if it does not accept in time, Refused if it will not.

    Once AtlasSilent is raised ATLAS does not begin it any more: it refuses what was asked longer ago than it
    takes for that. Only what it has begun in the last moment may go on unknown to whoever asked.
    """
    request = OrderRequest(
        id=new_id(), verb=verb, names=tuple(names), timeout_s=timeout_s, asked_by=whoami(), **details._asdict()
    )
    link = OperatorLink(run_dir.operators)
    try:
        for _ in range(_TRIES):
            request = replace(request, asked_s=time.monotonic())
            link.request(request, timeout_s=PATIENCE_S)
            reply = _next(link, request, PATIENCE_S)
            if not (isinstance(reply, Refusal) and reply.again):
                break
        else:
            raise AtlasSilent(SILENCE)
        if not isinstance(reply, OrderAccepted):
            raise _unexpected(reply)
    except BaseException:
        link.close()
        raise
    return Order(link, request, reply)


def whoami() -> str:
    """Who gives the order, for ATLAS's record: ``USER@HOST``."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container that runs under a uid without a name
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _ask(run_dir: RunDir, request: OperatorRequest, timeout_s: float) -> OperatorReply:
    link = OperatorLink(run_dir.operators)
    try:
        link.request(request, timeout_s=timeout_s)
        return _next(link, request, timeout_s)
    finally:
        link.close()


def _next(link: OperatorLink, request: OperatorRequest, timeout_s: float) -> OperatorReply:
    replies: Iterator[OperatorReply] = link.replies(request.id, timeout_s=timeout_s)
    try:
        return next(replies)
    except FrameError as error:
        raise Refused(f"ATLAS's answer is not understood ({error}); is it of another version?") from error


def _unexpected(reply: OperatorReply) -> Refused:
    if isinstance(reply, Refusal):
        return Refused(f"ATLAS refuses: {reply.reason}")
    return Refused(f"ATLAS answered with {type(reply).__name__}, which was not asked for")
