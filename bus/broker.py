"""ATLAS's end of every plane: XSUB → XPUB with the last value at subscription, and two ROUTERs.

The broker moves frames; what they mean is decided by its owner, who looks at
each before it is forwarded. It belongs to the thread that made it. It holds a
lock on the run directory, as binding an occupied ipc path would succeed and
steal the other's traffic.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import zmq

from bus.audience import Audience
from bus.codec import MAX_FRAME_BYTES, TAKEN_IN_BYTES
from bus.context import terminate
from bus.endpoints import RunDir
from bus.room import full_at

Frames = tuple[bytes, bytes]
_MAP = b"\x80"
"""Topics are ASCII and below it; a msgpack map begins with it or with more (its fixmap, or map 16 and map 32)."""

_PER_TURN = 2000  # frames taken from one socket before the others get their turn
_REPLAYED_AT_ONCE = 2000
_NOW = int(zmq.DONTWAIT)
_NOW_AND_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_GATHER_S = 0.005
"""What comes so soon after the last is left to gather, as waking costs more than a status; people never wait for it."""
_OPERATORS_LEFT = 0.75
"""Of the descriptors that are kept: when only so many are left, operators may not connect either."""
_KNOCK_S = 0.001
"""How long who has knocked at an endpoint is given to come in before that is looked at again."""
_TELEMETRY_QUEUE = 1000  # for each publisher: as many as it keeps itself
_BACKLOG = 4096  # a whole fleet may connect at once; the kernel's own limit is net.core.somaxconn
_BACKLOG_PART = 4
"""Of the descriptors that are kept, as many may wait at each endpoint: they come in though it is shut."""
_TOPICS_KEPT = 50_000
_SUBSCRIPTION_BYTES = 300  # the longest topic has 264
_SUBSCRIPTIONS_AT_ONCE = 10


@dataclass
class Arrivals:
    """What came in during one turn."""

    telemetry: list[Frames] = field(default_factory=list)
    """(topic, frame)"""
    agents: list[Frames] = field(default_factory=list)
    """(routing id, frame)"""
    operators: list[Frames] = field(default_factory=list)
    """(routing id, frame)"""


class Kept(Protocol):
    """What holds the last value of a topic."""

    frame: bytes


@dataclass(slots=True)
class _LastValue:
    frame: bytes


@dataclass(frozen=True)
class _Door:
    """Where others connect to one of the sockets."""

    zmq_socket: zmq.Socket[bytes]
    listener: socket.socket
    """Open here, too, so that a connection that comes in wakes this thread."""
    path: str
    inode: int


class BusTaken(Exception):
    """Another broker serves this run directory."""


class Broker:
    """Four bound sockets in the run directory, and a last value for each topic. Raises BusTaken."""

    def __init__(self, run_dir: RunDir) -> None:
        self._lock_fd = os.open(run_dir.lock("bus"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise BusTaken(
                f"cannot serve the bus in {run_dir.path}: another ATLAS does; "
                f"stop that one first, or set CDN_RUN_DIR to another directory"
            ) from None
        self._context = zmq.Context()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._full_at = full_at(limit)
        left = limit - self._full_at
        self._bursting_at = limit - int(left * _OPERATORS_LEFT)
        self._backlog = min(_BACKLOG, left // _BACKLOG_PART)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller, self._urgent = zmq.Poller(), zmq.Poller()
        self._bound: dict[str, _Door] = {}
        self._shut: set[str] = set()
        """Endpoints that nobody finds now."""
        self._listeners: set[int] = set()
        self._knocked = False
        """Somebody is about to come in."""
        self._xsub = self._bind(zmq.XSUB, run_dir.telemetry, max_bytes=TAKEN_IN_BYTES)
        self._xpub = self._bind(zmq.XPUB, run_dir.feed, max_bytes=_SUBSCRIPTION_BYTES)
        self._agents = self._bind(zmq.ROUTER, run_dir.agents, max_bytes=TAKEN_IN_BYTES)
        self._operators = self._bind(zmq.ROUTER, run_dir.operators, max_bytes=TAKEN_IN_BYTES)
        self._xsub.send(b"\x01")  # everything
        for waited_for in (self._xsub, self._xpub, self._agents, self._operators, self._wake_fd):
            self._poller.register(waited_for, zmq.POLLIN)
        for waited_for in (self._operators, self._wake_fd):
            self._urgent.register(waited_for, zmq.POLLIN)
        self._taken_s = 0.0
        self._last: dict[bytes, Kept] = {}
        self._wanted: set[bytes] = set()
        self._owed: dict[bytes, None] = {}
        """Topics whose last values are still to be sent to those who have subscribed lately."""
        self._audience = Audience()
        self.counts: Counter[str] = Counter()
        self._send_part = super(zmq.Socket, self._xpub).send
        """As ``send``, whose questions about its arguments cost as much as the sending."""

    def _bind(self, kind: int, endpoint: str, *, max_bytes: int) -> zmq.Socket[bytes]:
        zmq_socket: zmq.Socket[bytes] = self._context.socket(kind)
        zmq_socket.setsockopt(zmq.LINGER, 0)
        zmq_socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        if kind == zmq.XPUB:
            zmq_socket.setsockopt(zmq.XPUB_VERBOSER, 1)  # every subscription is shown, not only the first of its topic
            zmq_socket.setsockopt(zmq.SNDHWM, 10_000)
            # libzmq takes in subscriptions for as long as there are any, before anybody here may count them.
            zmq_socket.setsockopt(zmq.RCVHWM, _SUBSCRIPTIONS_AT_ONCE)
        else:
            zmq_socket.setsockopt(zmq.RCVHWM, _TELEMETRY_QUEUE if kind == zmq.XSUB else 10_000)
        self._open(zmq_socket, endpoint)
        return zmq_socket

    def _open(self, zmq_socket: zmq.Socket[bytes], endpoint: str) -> None:
        path = endpoint.removeprefix("ipc://")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of an ATLAS that was killed, or not ours: the lock says that this is its place
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(self._backlog)
        zmq_socket.setsockopt(zmq.USE_FD, os.dup(listener.fileno()))  # which libzmq closes
        zmq_socket.bind(endpoint)
        self._bound[endpoint] = _Door(zmq_socket, listener, path, os.stat(path).st_ino)
        self._listeners.add(listener.fileno())
        self._poller.register(listener.fileno(), zmq.POLLIN)
        self._urgent.register(listener.fileno(), zmq.POLLIN)

    def _unbind(self, endpoint: str) -> None:
        """Which ends the connections that were made there, too."""
        door = self._bound.pop(endpoint)
        self._listeners.discard(door.listener.fileno())
        self._poller.unregister(door.listener.fileno())
        self._urgent.unregister(door.listener.fileno())
        door.listener.close()
        door.zmq_socket.unbind(endpoint)

    def turn(self, timeout_s: float) -> Arrivals:
        """Wait up to timeout_s for anything, then take what is there."""
        arrivals = Arrivals()
        if self._knocked:
            time.sleep(_KNOCK_S)
        self._mind_the_limit()
        gather_s = min(self._taken_s + _GATHER_S - time.monotonic(), timeout_s)
        if gather_s > 0 and not self._urgent.poll(int(gather_s * 1000)):
            timeout_s -= gather_s
        ready = dict(self._poller.poll(int(timeout_s * 1000)))
        self._knocked = not self._listeners.isdisjoint(ready)
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        if self._xpub in ready:
            self._take_subscriptions()
        if self._xsub in ready:
            self._drain_telemetry(arrivals.telemetry)
        if self._agents in ready:
            self._drain(self._agents, arrivals.agents)
        if arrivals.telemetry or arrivals.agents:
            self._taken_s = time.monotonic()
        if self._operators in ready:
            self._drain(self._operators, arrivals.operators)
        return arrivals

    def _mind_the_limit(self) -> None:
        """Let nobody else connect while descriptors are short: without one libzmq's ipc listener aborts the process.

        The lowest that is free tells how near that is. It is looked at whenever somebody connects, and operators
        are let in for longer than others. It is no guarantee: more than are kept may come between two looks, so
        ATLAS raises its limit as far as it may.
        """
        try:
            lowest_free = os.dup(self._wake_fd)
            os.close(lowest_free)
        except OSError:  # there is none
            lowest_free = self._bursting_at
        if lowest_free >= self._full_at:
            for endpoint in self._bound.keys() - self._shut:
                door = self._bound[endpoint]
                if _is_there(door) and (door.zmq_socket is not self._operators or lowest_free >= self._bursting_at):
                    os.rename(door.path, _hidden(door))  # libzmq's unbind would cut off who has connected
                    self._shut.add(endpoint)
                    self.counts["endpoints_shut"] += 1
        elif self._shut and lowest_free < self._full_at * 0.9:
            for endpoint in self._shut:
                with contextlib.suppress(FileNotFoundError):  # then it is among the missing
                    os.rename(_hidden(self._bound[endpoint]), self._bound[endpoint].path)
            self._shut.clear()

    def wake(self) -> None:
        """Have ``turn`` return at once; any thread."""
        os.eventfd_write(self._wake_fd, 1)

    def _drain_telemetry(self, into: list[Frames]) -> None:
        """recv_multipart would take most of the time that a status costs, so parts are taken in pairs.

        Asking of each part whether more belong to it would double the time, so that is asked only
        where a pair is none by its looks. A message of another number of parts becomes pairs
        of its sender's own, and what is left over; what others send is never torn apart.
        """
        receive = self._xsub.recv
        try:
            for _ in range(_PER_TURN):
                topic = receive(_NOW)
                try:
                    frame = receive(_NOW)
                    while not topic < _MAP <= frame and self._xsub.getsockopt(zmq.RCVMORE):
                        self.counts["wrong_parts"] += 1  # topic was left over, and a message begins with frame
                        topic, frame = frame, receive(_NOW)
                except zmq.Again:
                    self.counts["wrong_parts"] += 1
                    return
                into.append((topic, frame))
                if len(frame) > MAX_FRAME_BYTES or len(topic) > MAX_FRAME_BYTES:
                    return  # as in _drain
        except zmq.Again:
            return

    def _drain(self, zmq_socket: zmq.Socket[bytes], into: list[Frames]) -> None:
        """Take what is there. What is too large is the last of a turn, so that no turn has to hold many such."""
        try:
            for _ in range(_PER_TURN):
                parts = zmq_socket.recv_multipart(zmq.DONTWAIT)
                if len(parts) == 2:
                    into.append((parts[0], parts[1]))
                else:
                    self.counts["wrong_parts"] += 1
                if len(parts[-1]) > MAX_FRAME_BYTES:
                    return
        except zmq.Again:
            return

    def _take_subscriptions(self) -> None:
        now_s = time.monotonic()
        try:
            for _ in range(_PER_TURN):
                frame = self._xpub.recv(_NOW, False)
                try:
                    fd = int(frame.get(zmq.SRCFD))
                except zmq.ZMQError:  # libzmq's own word for a connection that has ended
                    continue
                word, prefix = frame.bytes[:1], frame.bytes[1:]
                if word == b"\x00":
                    self._audience.unsubscribed(fd, prefix)
                elif word == b"\x01" and self._audience.subscribed(fd, prefix, now_s):
                    self._wanted.add(prefix)
        except zmq.Again:
            return

    def replay(self) -> None:
        """Send the last values to those who subscribed since the last call.

        XPUB cannot address one subscriber, so others see a value again, with the
        seq that they have already seen. Call it a few times a second, so that a
        storm of subscriptions costs one pass; and a pass sends only so many, so
        that one who subscribes again and again does not take the others' time.
        """
        if self._wanted:
            topics = sorted(self._last)
            for prefix in self._wanted:
                for place in range(bisect_left(topics, prefix), len(topics)):
                    if not topics[place].startswith(prefix):
                        break
                    self._owed[topics[place]] = None
            self._wanted.clear()
        for topic in list(islice(self._owed, _REPLAYED_AT_ONCE)):
            del self._owed[topic]
            if topic in self._last:
                self._send(topic, self._last[topic].frame)

    def look_at_subscribers(self, now_s: float) -> None:
        """Cut those that take nothing; call it every second or so."""
        self._audience.look(now_s)

    def restart_windows(self, late_s: float) -> None:
        """This process itself was away for late_s: nobody could have taken anything."""
        self._audience.restart_windows(late_s)

    @property
    def is_watched(self) -> bool:
        """Whether anybody wants anything of what is published."""
        return self._audience.is_there

    @property
    def subscribers(self) -> int:
        """Connections to the feed."""
        return self._audience.size

    def all_counts(self) -> dict[str, int]:
        """What was dropped or cut, by cause."""
        return {**self.counts, **self._audience.counts}

    def last_frames(self) -> list[bytes]:
        """The last value of every topic that has one."""
        return [kept.frame for kept in self._last.values()]

    def keep(self, topic: bytes, kept: Kept) -> None:
        """What this holds is the topic's last value from now on, and whatever it will hold."""
        if topic in self._last or len(self._last) < _TOPICS_KEPT:
            self._last[topic] = kept
        else:
            self.counts["topics_not_kept"] += 1

    def forget(self, topic: bytes) -> None:
        """The topic has no last value any more."""
        self._last.pop(topic, None)

    def publish(self, topic: bytes, frame: bytes, *, keep: bool) -> None:
        """Send to the subscribers of the topic; keep it as the topic's last value if asked to."""
        if keep:
            self.keep(topic, _LastValue(frame))
        if self._audience.wants(topic):
            self._send(topic, frame)

    def _send(self, topic: bytes, frame: bytes) -> None:
        self._send_part(topic, _NOW_AND_MORE)  # an XPUB drops what a subscriber has no room for, and never says Again
        self._send_part(frame, _NOW)

    def to_agent(self, routing_id: bytes, frame: bytes) -> None:
        """Send to one agent; a ROUTER drops what is for nobody."""
        self._route(self._agents, routing_id, frame)

    def to_operator(self, routing_id: bytes, frame: bytes) -> None:
        """Send to one operator; a ROUTER drops what is for nobody."""
        self._route(self._operators, routing_id, frame)

    def _route(self, zmq_socket: zmq.Socket[bytes], routing_id: bytes, frame: bytes) -> None:
        try:
            zmq_socket.send_multipart([routing_id, frame], zmq.DONTWAIT)
        except zmq.Again:
            self.counts["router_full"] += 1

    def rebind_missing(self) -> list[str]:
        """Bind again what somebody unlinked or replaced; return those endpoints."""
        again = []
        for endpoint, door in list(self._bound.items()):
            if endpoint not in self._shut and not _is_there(door):
                self._unbind(endpoint)
                self._open(door.zmq_socket, endpoint)
                again.append(endpoint)
        return again

    def close(self) -> None:
        """Close the sockets and remove their paths, unless somebody has put others there."""
        for zmq_socket in (self._xsub, self._xpub, self._agents, self._operators):
            zmq_socket.close(linger=0)
        terminate(self._context)
        for door in self._bound.values():
            if _is_there(door):
                os.unlink(door.path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_hidden(door))
            door.listener.close()
        os.close(self._lock_fd)
        os.close(self._wake_fd)


def _is_there(door: _Door) -> bool:
    """Whether who looks for the path finds this listener."""
    try:
        return os.stat(door.path).st_ino == door.inode
    except FileNotFoundError:
        return False


def _hidden(door: _Door) -> str:
    """Where the listener of an endpoint that is shut waits."""
    return f"{door.path}.shut"
