"""Those who use the fleet while the story is played: threads that ask, each at its pace, and remember how it went."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from cli.demo.stage import ANSWER_S

REMEMBERED = 5_000


class Asked(NamedTuple):
    """One request, as whoever asked has seen it."""

    at_s: float
    """Monotonic, when it was answered."""
    took_s: float
    status: int
    """0: there was no answer."""


class Line:
    """A connection that is kept, and made anew when it is lost or leads elsewhere. Of one thread."""

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address
        self._connection: http.client.HTTPConnection | None = None
        self._to = ""

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body; status 0 if there is no answer."""
        address = self._address()
        if address != self._to:
            self.close()
            self._to = address
        try:
            if self._connection is None:
                parts = urlsplit(address)
                self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
            self._connection.request(method, path, body, headers or {})
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return 0, b""

    def close(self) -> None:
        """It is made anew by the next question."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Worker(threading.Thread):
    """Does one thing again and again, ``per_s`` times a second, which may be changed; 0 is a pause."""

    def __init__(self, name: str, do: Callable[[Line], int], address: Callable[[], str], per_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self.per_s = per_s
        self.asked: deque[Asked] = deque(maxlen=REMEMBERED)
        self.error: Exception | None = None
        """What ended it before it was told to end."""
        self._do = do
        self._line = Line(address)
        self._enough = threading.Event()

    def run(self) -> None:
        """threading: until it is told to end."""
        try:
            while not self._enough.is_set():
                began_s = time.monotonic()
                if self.per_s:
                    status = self._do(self._line)
                    now_s = time.monotonic()
                    self.asked.append(Asked(now_s, now_s - began_s, status))
                period_s = 1 / self.per_s if self.per_s else 0.1
                self._enough.wait(max(0.0, began_s + period_s - time.monotonic()))
        except Exception as error:  # noqa: BLE001 - whoever waits for what it does is told
            self.error = error
        finally:
            self._line.close()

    def end(self) -> None:
        """Ask nothing more."""
        self._enough.set()

    def since(self, at_s: float) -> list[Asked]:
        """What was answered since then."""
        return [one for one in list(self.asked) if one.at_s >= at_s]


class Crowd:
    """All of them; a context manager that sends them home."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.join(ANSWER_S)

    def add(self, name: str, do: Callable[[Line], int], address: Callable[[], str], per_s: float) -> Worker:
        """One more; begins at once."""
        worker = Worker(name, do, address, per_s)
        self._workers.append(worker)
        worker.start()
        return worker

    def check(self) -> None:
        """Raise what has ended one of them."""
        for worker in self._workers:
            if worker.error is not None:
                raise worker.error


class Tally:
    """Counts by name, from several threads, taken away by one."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        """One more."""
        with self._lock:
            self._counts[name] += 1

    def take(self) -> Counter[str]:
        """What there is, which is then forgotten."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken


def percentile(asked: Sequence[Asked], part: float) -> float:
    """Seconds within which that part of them was answered."""
    took_s = sorted(one.took_s for one in asked)
    return took_s[min(len(took_s) - 1, int(part * len(took_s)))] if took_s else 0.0


def failures(asked: Sequence[Asked]) -> float:
    """The part of them that was an error of the server's, or nothing."""
    return sum(one.status == 0 or one.status >= 500 for one in asked) / len(asked) if asked else 0.0
