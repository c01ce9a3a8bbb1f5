"""Real sockets: the last value at subscription, commands both ways, strangers, thieves and noise."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event as ThreadEvent
from threading import Thread

from bus.broker import Arrivals, Broker
from bus.endpoints import RunDir


class Atlas:
    """A broker on a thread that forwards everything, and hands what else comes to ``seen``."""

    def __init__(self, run_dir: RunDir) -> None:
        self.seen = Arrivals()
        self.sends: list[Callable[[Broker], None]] = []
        self.rebound: list[str] = []
        self._stop = ThreadEvent()
        self._ready = ThreadEvent()
        self._thread = Thread(target=self._run, args=(run_dir,))
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self, run_dir: RunDir) -> None:
        broker = Broker(run_dir)
        self._ready.set()
        while not self._stop.is_set():
            arrivals = broker.turn(0.02)
            for topic, frame in arrivals.telemetry:
                broker.publish(topic, frame, keep=True)
            self.seen.telemetry += arrivals.telemetry
            self.seen.agents += arrivals.agents
            self.seen.operators += arrivals.operators
            while self.sends:
                self.sends.pop(0)(broker)
            broker.replay()
            self.rebound += broker.rebind_missing()
        broker.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
