"""StatsD from the network, on a thread of its own: datagrams and connections in, lines into the store.

The queue is the socket's own buffer, which the kernel bounds. When there is more than the thread may take,
a filter on the socket (classic BPF, socket(7) SO_ATTACH_FILTER) drops datagrams at random before they cost
anything. The kernel counts all that it drops, by the filter or because the buffer is full (SO_MEMINFO), so each
batch is weighted by how many datagrams arrived for each that was read: totals stay what was sent. Connections are
not sampled: what is not read yet, their senders keep.
"""

from __future__ import annotations

import contextlib
import logging
import random
import selectors
import socket
import struct
import threading
import time
from concurrent.futures import Future

from services.statistical.sampling import Seen, Throttle
from services.statistical.statsd import LINE_BYTES
from services.statistical.store import Store

log = logging.getLogger(__name__)

PERIOD_S = 0.1
GATHER_S = 0.002
"""Waited between looks at a quiet socket: a wake-up costs more than a datagram."""
BATCH = 256
"""Datagrams read at once."""
LAST = 64
"""Of these so many are remembered, to stand for what was dropped after them."""
BREATH_S = 0.0002
FOLD_BYTES = 16 * 1024
"""Folded at once, in some milliseconds; then whoever waits for the store or the interpreter has a chance."""
DATAGRAM_BYTES = 65535
SO_MEMINFO = 55
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
SO_RCVBUFFORCE = 33
_RANDOM = 0xFFFFF000 + 56
"""SKF_AD_OFF + SKF_AD_RANDOM of linux/filter.h: a load from there is a random number."""
_HTTP = (b" HTTP/1.1", b" HTTP/1.0")
"""The end of a first line by which a web page would have its browser post samples here; nobody is to fold them."""


class Intake:
    """Listens from ``open`` until ``close``."""

    def __init__(self, store: Store, host: str, port: int) -> None:
        self._store = store
        self._host = host
        self._asked_port = port
        self.port = 0
        self._stop, self._stopped = socket.socketpair()
        self._selector: selectors.BaseSelector | None = None
        self._thread: threading.Thread | None = None
        self.ended: Future[None] = Future()
        """Ends when the thread does; with what it raised."""
        self.throttle = Throttle(store.limits.share_cores)
        self._filtered = True
        """Whether the kernel can be had to sample; else it is done here."""
        self._drops_before = 0
        self._owed = 0
        """Datagrams that were dropped since the last one that was read."""
        self._last: list[bytes] = []
        """The last ones that were read."""
        self.datagrams = self.dropped = self.connections_refused = 0
        self.weight = 1.0
        self.queue_bytes = 0
        self.buffer_bytes = 1
        self._buffers: dict[socket.socket, bytearray] = {}
        self._unheard: set[socket.socket] = set()
        """Connections of which no line has been read yet."""

    # -- from other threads -----------------------------------------------------------------------------

    def open(self) -> None:
        """Listen and start the thread; raises OSError."""
        self._tcp, self._udp = self._bound()
        self.port = self._udp.getsockname()[1]
        wanted = self._store.limits.buffer_bytes
        try:
            self._udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, wanted)
        except OSError:  # only who may administrate the network gets more than net.core.rmem_max
            self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
        self.buffer_bytes = self._udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self._selector = selectors.DefaultSelector()
        for one in (self._tcp, self._udp, self._stopped):
            one.setblocking(False)
            self._selector.register(one, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="statistical-intake", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take what is in the queue, then end."""
        if self._thread is not None:
            self._stop.send(b".")
            self._thread.join()
        self._stop.close()
        self._stopped.close()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def connections(self) -> int:
        """Of StatsD by TCP."""
        return len(self._buffers)

    # -- the thread -------------------------------------------------------------------------------------

    def _bound(self) -> tuple[socket.socket, socket.socket]:
        """A TCP and a UDP socket at the same port."""
        for tries_left in reversed(range(10)):
            tcp = socket.create_server((self._host, self._asked_port), backlog=128)
            udp = socket.socket(tcp.family, socket.SOCK_DGRAM)
            try:
                udp.bind((self._host, tcp.getsockname()[1]))
                return tcp, udp
            except OSError:
                tcp.close()
                udp.close()
                if self._asked_port or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    def _run(self) -> None:
        try:
            self._serve()
            self.ended.set_result(None)
        except BaseException as error:
            log.exception("the intake has ended")
            self.ended.set_exception(error)
        finally:
            assert self._selector is not None
            for one in (self._tcp, self._udp, *self._buffers):
                one.close()
            self._selector.close()

    def _serve(self) -> None:
        assert self._selector is not None
        period = _Period(time.monotonic(), time.thread_time())
        self._drops_before = self._meminfo()[1]
        while True:
            is_sampling = self.throttle.probability < 1 or self._owed > 0  # then some may be dropped and none arrive
            ready = [key.fileobj for key, _ in self._selector.select(PERIOD_S if is_sampling else None)]
            is_last = self._stopped in ready
            was_full = self._datagrams(period) if self._udp in ready or is_sampling or is_last else False
            while is_last and was_full:
                was_full = self._datagrams(period)
            for one in ready:
                if one is self._tcp:
                    self._accept()
                elif isinstance(one, socket.socket) and one in self._buffers:
                    was_full = self._read(one) or was_full
            if is_last:
                return
            if time.monotonic() - period.began_s >= PERIOD_S:
                period = self._control(period)
            time.sleep(BREATH_S if was_full else GATHER_S)

    def _datagrams(self, period: _Period) -> bool:
        """Read and fold what is there, up to a batch; whether there may be more."""
        batch: list[bytes] = []
        receive = self._udp.recv
        try:
            for _ in range(BATCH):
                batch.append(receive(DATAGRAM_BYTES))
        except BlockingIOError:
            pass
        self.queue_bytes, drops = self._meminfo()
        dropped = (drops - self._drops_before) & 0xFFFFFFFF
        self._drops_before = drops
        was_full = len(batch) == BATCH
        arrived = len(batch) + dropped
        if not self._filtered and self.throttle.probability < 1:
            batch = [one for one in batch if random.random() < self.throttle.probability]
        self.datagrams += arrived
        self.dropped += arrived - len(batch)
        period.arrived += arrived
        period.folded += len(batch)
        self._owed += arrived
        if batch:
            self.weight = self._owed / len(batch)
            self._owed = 0
            self._last = batch[-LAST:]
            self._fold(batch, self.weight)
        return was_full

    def _fold(self, packets: list[bytes], weight: float) -> None:
        store, at = self._store, 0
        while at < len(packets):
            size = 0
            with store.lock:
                slot, now_s = store.clock.slot(), store.clock.now_s()
                while at < len(packets) and size < FOLD_BYTES:
                    store.fold(packets[at], weight, slot, now_s)
                    size += len(packets[at])
                    at += 1
            if at < len(packets):
                time.sleep(BREATH_S)

    def _meminfo(self) -> tuple[int, int]:
        """Bytes in the queue, and datagrams dropped so far (sock_diag(7), SK_MEMINFO_RMEM_ALLOC and _DROPS)."""
        numbers = struct.unpack("=9I", self._udp.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
        return numbers[0], numbers[8]

    def _control(self, period: _Period) -> _Period:
        """The period is over: look whether more or less is to be sampled."""
        if self._owed and self._last and not period.folded:  # nobody else comes to stand for them
            self._fold(self._last, self._owed / len(self._last))
            self._owed = 0
        now_s, cpu_s = time.monotonic(), time.thread_time()
        changed = self.throttle.tell(
            Seen(
                period_s=now_s - period.began_s,
                arrived=period.arrived,
                folded=period.folded,
                busy_s=cpu_s - period.began_cpu_s,
                filled=self.queue_bytes / self.buffer_bytes,
            )
        )
        fresh = _Period(now_s, cpu_s)
        if changed:
            self._filter(self.throttle.probability)
            self._datagrams(fresh)  # some may have been dropped between the last look and this change
        return fresh

    def _filter(self, probability: float) -> None:
        if not self._filtered:
            return
        try:
            if probability >= 1:
                self._udp.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            else:
                self._udp.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _program(probability))
        except OSError as error:
            log.warning("the kernel does not sample for us: %s", error)
            self._filtered = False

    # -- connections ------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._selector is not None
        with contextlib.suppress(OSError):  # whoever it was has left already, or no descriptor is free
            connection, _ = self._tcp.accept()
            if len(self._buffers) >= self._store.limits.connections:
                self.connections_refused += 1
                connection.close()
                return
            connection.setblocking(False)
            self._buffers[connection] = bytearray()
            self._unheard.add(connection)
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> bool:
        """What a connection has sent, up to its last whole line; whether there may be more."""
        try:
            chunk = connection.recv(FOLD_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        buffer = self._buffers[connection]
        buffer += chunk
        lines, _, rest = buffer.rpartition(b"\n")
        if not chunk:
            lines, rest = buffer, bytearray()
        if lines and connection in self._unheard:
            self._unheard.discard(connection)
            if lines.partition(b"\n")[0].rstrip().endswith(_HTTP):
                with self._store.lock:
                    self._store.garbage["line"] += 1
                self._forget(connection)
                return False
        if lines:
            self._fold([bytes(lines)], 1.0)
        if len(rest) > LINE_BYTES:
            with self._store.lock:
                self._store.garbage["long"] += 1
        if not chunk or len(rest) > LINE_BYTES:
            self._forget(connection)
        else:
            self._buffers[connection] = bytearray(rest)
        return len(chunk) == FOLD_BYTES

    def _forget(self, connection: socket.socket) -> None:
        assert self._selector is not None
        self._selector.unregister(connection)
        del self._buffers[connection]
        self._unheard.discard(connection)
        connection.close()


class _Period:
    """What happened since the last look."""

    def __init__(self, began_s: float, began_cpu_s: float) -> None:
        self.began_s = began_s
        self.began_cpu_s = began_cpu_s
        self.arrived = 0
        self.folded = 0


def _program(probability: float) -> bytes:
    """struct sock_fprog of: load a random number; is it beyond the limit?; drop; else take it whole."""
    import ctypes

    limit = min(0xFFFFFFFF, max(0, int(probability * 2**32) - 1))
    code = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in ((0x20, 0, 0, _RANDOM), (0x25, 0, 1, limit), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
    )
    global _kept
    _kept = ctypes.create_string_buffer(code, len(code))  # until setsockopt has read it
    return struct.pack("HP", 4, ctypes.addressof(_kept))


_kept: object = None
