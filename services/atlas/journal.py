"""The journal: every command, written before it is sent and at each change, so that ATLAS's death loses none.

A line is a whole command as it then stood, so of each id the last line is the
truth, and a line that is lost costs no more than itself. What the lines say
together is ``replay``'s, which is pure; the file is Journal's.

It is written without fsync: it is to survive ATLAS, not the machine, at whose
death every process that a command could be about dies too.
"""

from __future__ import annotations

import errno
import logging
import os
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from bus.messages import CommandView, OrderRequest, OutcomeKind

log = logging.getLogger(__name__)

VERSION = 1
ENDED_KEPT = 1000
"""Commands that are over, and still listed."""
MAX_BYTES = 4 << 20
"""Above it the file is written anew, with what is still listed."""
BEHIND_S = 1.0
"""After a failure, how long until the whole is written anew."""


class Stage(StrEnum):
    """How far a command is."""

    WAITING = "waiting"
    ASKED = "asked"
    ACCEPTED = "accepted"
    ENDED = "ended"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One command as it stands. Times are CLOCK_MONOTONIC's, which all processes of one boot share."""

    id: str
    request: OrderRequest
    """The order that it belongs to, with this name alone."""
    turn: int
    """Its place in the order."""
    after: tuple[str, ...] = ()
    """Names of the order that must have ended before its turn comes."""
    asked_at_s: float
    """Unix time."""
    boot_id: str
    stage: Stage = Stage.WAITING
    began_s: float
    """When its turn came; until then, when it was asked."""
    deadline_s: float | None = None
    """None while it waits for its turn."""
    asks_daemon: bool = False
    target: str = ""
    """Whom it is for: an instance's daemon, or the warden of a host."""
    incarnation: int | None = None
    pid: int | None = None
    """Of the process that it is about, if there is one."""
    attempts: tuple[str, ...] = ()
    lapsed: str = ""
    """Why it is no longer sent but only looked at: ATLAS was away when its time was over."""
    kind: OutcomeKind | None = None
    reason: str = ""
    took_s: float | None = None

    @property
    def name(self) -> str:
        """The service that it is for."""
        return self.request.names[0]

    @property
    def wire_id(self) -> str:
        """The daemon's and the warden's command are two, so that each remembers its own."""
        return self.id if self.asks_daemon else f"{self.id}w"

    def view(self) -> CommandView:
        """As people see it."""
        return CommandView(
            id=self.id,
            order=self.request.id,
            verb=self.request.verb,
            name=self.name,
            asked_by=self.request.asked_by,
            asked_at_s=self.asked_at_s,
            stage=self.stage,
            attempts=self.attempts,
            kind=self.kind,
            reason=self.reason,
            incarnation=self.incarnation,
            took_s=self.took_s,
        )


class Book:
    """All commands that are open, and the last ENDED_KEPT that are over. Pure."""

    def __init__(self) -> None:
        self.open: dict[str, Entry] = {}
        self.ended: OrderedDict[str, Entry] = OrderedDict()
        """In the order of their ends."""
        self._orders: dict[str, list[str]] = {}
        self._open_in: Counter[str] = Counter()

    def put(self, entry: Entry) -> None:
        """Take a command as it stands now."""
        if entry.id not in self.open and entry.id not in self.ended:
            self._orders.setdefault(entry.request.id, []).append(entry.id)
            self._open_in[entry.request.id] += 1
        if entry.stage is not Stage.ENDED:
            self.open[entry.id] = entry
            return
        self.open.pop(entry.id, None)
        if entry.id not in self.ended:
            self._open_in[entry.request.id] -= 1
        self.ended[entry.id] = entry
        if len(self.ended) > ENDED_KEPT:
            _, forgotten = self.ended.popitem(last=False)
            left = self._orders[forgotten.request.id]
            left.remove(forgotten.id)
            if not left:
                del self._orders[forgotten.request.id], self._open_in[forgotten.request.id]

    def get(self, id_: str) -> Entry | None:
        """One command; None if it is not known, or no longer."""
        return self.open.get(id_) or self.ended.get(id_)

    def order(self, id_: str) -> list[Entry]:
        """The commands of an order, by their turns; empty if it is not known."""
        found = [self.open.get(each) or self.ended[each] for each in self._orders.get(id_, ())]
        return sorted(found, key=lambda entry: entry.turn)

    def is_open(self, order_id: str) -> bool:
        """Whether an order has commands that are not over."""
        return self._open_in[order_id] > 0

    def entries(self) -> Iterator[Entry]:
        """Those that are over, then those that are open."""
        yield from self.ended.values()
        yield from self.open.values()

    def latest(self, limit: int, name: str | None = None) -> list[Entry]:
        """The newest, of this name only if it is given, oldest first; what is open is never left out."""
        is_open = [entry for entry in self.open.values() if name in (None, entry.name)]
        over = [entry for entry in self.ended.values() if name in (None, entry.name)]
        room = max(0, limit - len(is_open))
        return sorted(over[len(over) - min(room, len(over)) :] + is_open, key=lambda entry: entry.asked_at_s)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same, in the same order."""
        return isinstance(other, Book) and (self.open, list(self.ended.values())) == (
            other.open,
            list(other.ended.values()),
        )

    __hash__ = None  # type: ignore[assignment]  # it changes


# -- lines ----------------------------------------------------------------------------------------------


class _Line(msgspec.Struct, frozen=True):
    v: int
    crc32: int
    entry: msgspec.Raw


class _Version(msgspec.Struct, frozen=True):
    v: int


class NewerVersion(Exception):
    """The journal was written by a later release; ``version`` says which."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version}")
        self.version = version


def line(entry: Entry) -> bytes:
    """The line of the journal that says so."""
    said = msgspec.json.encode(entry)
    return b'{"v":%d,"crc32":%d,"entry":%b}\n' % (VERSION, zlib.crc32(said), said)


def replay(lines: Iterable[bytes]) -> tuple[Book, int]:
    """What the lines say together, and how many of them say nothing. Raises NewerVersion."""
    book, corrupt = Book(), 0
    for each in lines:
        if not each.strip():
            continue
        try:
            if (version := msgspec.json.decode(each, type=_Version).v) > VERSION:
                raise NewerVersion(version)
            found = msgspec.json.decode(each, type=_Line)
            if zlib.crc32(found.entry) != found.crc32:
                raise msgspec.DecodeError("checksum")
            entry = msgspec.json.decode(found.entry, type=Entry)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            corrupt += 1
            continue
        book.put(entry)
    return book, corrupt


# -- the file -------------------------------------------------------------------------------------------


def boot_id() -> str:
    """Which boot of the machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Journal:
    """The file. It never raises: what cannot be written is counted, and ``problem`` says why.

    An operator with a full disk needs restarts most, so nothing waits for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        """Why commands are not written down now; empty if they are."""
        self.corrupt = 0
        """Lines that said nothing, when it was opened."""
        self.lost = 0
        """Changes that were not written when they happened."""
        self._fd: int | None = None
        self._bytes = 0
        self._max_bytes = MAX_BYTES
        self._torn = False
        """The last line has no end."""
        self._tried_s = 0.0

    def open(self, now_s: float) -> Book:
        """What was written before; from now on it is written to."""
        book = Book()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            book, self._torn = self._read()
        except OSError as error:
            self._failed("read", error)
            self._set_aside("unreadable")
        self.rewrite(book, now_s)
        return book

    def _read(self) -> tuple[Book, bool]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return Book(), False
        # What follows the last end of a line was being written when ATLAS died: it was not sent yet.
        whole, _end, torn = content.rpartition(b"\n")
        try:
            book, self.corrupt = replay(whole.split(b"\n"))
        except NewerVersion as newer:
            log.error("cannot read %s: it is of version %d, this ATLAS knows %d", self.path, newer.version, VERSION)
            self._set_aside(f"version-{newer.version}")
            return Book(), False
        if self.corrupt:
            log.error("%d lines of %s are damaged: passed over", self.corrupt, self.path)
        return book, bool(torn)

    def _set_aside(self, why: str) -> None:
        """Keep under another name what must not be overwritten."""
        number, aside = 0, self.path.with_name(f"{self.path.name}.{why}")
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.{why}-{number}")
        try:
            self.path.rename(aside)
            log.error("the commands of before are kept in %s; going on without them", aside)
        except OSError as error:
            self._failed("set aside", error)

    def append(self, entry: Entry) -> None:
        """Write down how a command stands now."""
        if self._fd is None:
            self.lost += 1
            return
        said = (b"\n" if self._torn else b"") + line(entry)
        try:
            written = os.write(self._fd, said)
        except OSError as error:
            self.lost += 1
            self._failed("write", error)
            return
        self._bytes += written
        self._torn = written != len(said)
        if self._torn:
            self.lost += 1
            self._failed("write", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def tick(self, book: Book, now_s: float) -> None:
        """Write the whole anew, if the file has become too large, lacks something, or is no longer in its place."""
        may_try = now_s - self._tried_s >= BEHIND_S
        if may_try and not self.problem and not self._is_in_place():
            self._failed("find", OSError(errno.ENOENT, "it was deleted or moved"))
        if (self.problem and may_try) or self._bytes > self._max_bytes:
            self.rewrite(book, now_s)

    def _is_in_place(self) -> bool:
        try:
            return self._fd is not None and os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except OSError:
            return False

    def rewrite(self, book: Book, now_s: float) -> None:
        """Write the whole anew beside the file, and put it in its place."""
        self._tried_s = now_s
        unfinished = self.path.with_name(f"{self.path.name}.new")
        content = b"".join(line(entry) for entry in book.entries())
        try:
            fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                if os.write(fd, content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                unfinished.rename(self.path)
            except OSError:
                os.close(fd)
                unfinished.unlink()
                raise
        except OSError as error:
            self._failed("write", error)
            if self._fd is None:
                self._append_to_what_is_there()
            return
        if self._fd is not None:
            os.close(self._fd)
        if self.problem:
            log.info("commands are written to %s again", self.path)
        self._fd, self._bytes, self._torn, self.problem = fd, len(content), False, ""
        self._max_bytes = max(MAX_BYTES, 2 * len(content))

    def _append_to_what_is_there(self) -> None:
        """An ending of an open command fits where the whole does not."""
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._failed("open", error)

    def _failed(self, what: str, error: OSError) -> None:
        text = (error.strerror or str(error)).lower()
        if text != self.problem:
            log.error("cannot %s %s: %s; commands go on, and are not written down", what, self.path, text)
        self.problem = text

    def close(self) -> None:
        """Write no more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
