"""What the gateway's tests need: a bus, statuses on it, a gateway, and instances that behave as told."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bus.broker import Broker
from bus.codec import Decoder, encode
from bus.endpoints import RunDir, prepare
from bus.messages import DaemonStatus, Event, HealthStatus, LifecyclePhase, Telemetry
from bus.topics import topic_of
from tests.gateway.sockets import Answer, Client, Instance, Script
from tests.support import ROOT, environment, kill_tree, until


def status_of(
    service: str,
    *,
    instance: str | None = None,
    address: str | None = None,
    incarnation: int = 1,
    seq: int = 1,
    phase: LifecyclePhase = LifecyclePhase.SERVING,
    health: HealthStatus = HealthStatus.HEALTHY,
) -> DaemonStatus:
    """A status as a service's daemon would publish it."""
    return DaemonStatus(
        service=service,
        instance=instance or service,
        host="here",
        incarnation=incarnation,
        seq=seq,
        pid=1,
        time_s=0.0,
        monotonic_s=0.0,
        uptime_s=0.0,
        phase=phase,
        health=health,
        address=address,
    )


class Bus:
    """ATLAS's sockets without ATLAS: forwards what services publish, and what the test has instances say."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._speakers: dict[str, DaemonStatus] = {}
        self.heard: dict[str, DaemonStatus] = {}
        """The last status of each real service."""
        self.events: list[Event] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def say(self, status: DaemonStatus) -> None:
        """From now on the instance says this several times a second."""
        self._speakers[status.instance] = status

    def silence(self, instance: str) -> None:
        """It says nothing any more."""
        del self._speakers[instance]

    def _run(self) -> None:
        broker = Broker(self._run_dir)
        decoder: Decoder[Telemetry] = Decoder(Telemetry)
        seq, next_s = int(time.monotonic() * 1000), 0.0
        try:
            while not self._stop.is_set():
                for topic, frame in broker.turn(0.02).telemetry:
                    broker.publish(topic, frame, keep=True)
                    message = decoder.decode(frame)
                    if isinstance(message, DaemonStatus):
                        self.heard[message.instance] = message
                    elif isinstance(message, Event):
                        self.events.append(message)
                broker.replay()
                if time.monotonic() >= next_s:
                    next_s = time.monotonic() + 0.2
                    seq += 1
                    for status in list(self._speakers.values()):
                        message = _with_seq(status, seq)
                        broker.publish(topic_of(message).encode(), encode(message), keep=True)
        finally:
            broker.close()

    def __enter__(self) -> Bus:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _with_seq(status: DaemonStatus, seq: int) -> DaemonStatus:
    fields = {name: getattr(status, name) for name in status.__struct_fields__}
    return DaemonStatus(**{**fields, "seq": seq})


class Process:
    """A service of the project in a process of its own."""

    def __init__(self, run_dir: Path, module: str, **env: str) -> None:
        self._log = run_dir / f"{module}.{time.monotonic_ns()}.log"
        with open(self._log, "wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module],
                env=environment(run_dir, **{"CDN_PORT": "0", "CDN_HOSTS": "gateway.test", **env}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._popen.pid

    def port(self) -> int:
        """Where it listens, as it logs it; waits until it does."""
        line = until(self._listening, what="the service listens")
        return int(line.split()[-1])

    def _listening(self) -> str:
        if self._popen.poll() is not None:
            raise AssertionError(f"it ended with {self._popen.returncode}:\n{self.log()}")
        return next((line for line in self.log().splitlines() if " listens on " in line), "")

    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def terminate(self) -> int:
        """SIGTERM; its exit code."""
        self._popen.terminate()
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._popen.wait(30)

    def kill(self) -> None:
        """SIGKILL."""
        kill_tree(self._popen.pid)
        self._popen.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@dataclass
class Fleet:
    """A bus and a gateway that reads it."""

    run_dir: RunDir
    bus: Bus
    gateway: Process
    port: int

    def connect(self) -> Client:
        """A new connection to the gateway."""
        return Client(self.port)

    def ask(self, method: str, path: str, *headers: str, body: bytes = b"") -> Answer:
        """One request on a connection of its own."""
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway.test", *headers]
        with self.connect() as client:
            client.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
            return client.answer(bodiless=method == "HEAD")

    def metrics(self) -> dict[str, float]:
        """The gateway's numbers, from its last status; the first it sends have none."""
        return until(lambda: self.bus.heard["gateway-primary"].metrics.values, what="the gateway tells its numbers")

    def routed(self, service: str, status: int = 200) -> None:
        """Wait until the gateway answers for the service with this status."""
        until(lambda: self.ask("GET", f"/{service}/").status == status, what=f"{service} answers {status}")

    def known(self, service: str) -> None:
        """Wait until the gateway knows the service, without sending it a request."""
        until(lambda: service in self.ask("GET", "/nobody").error["next"], what=f"{service} is known")

    @contextmanager
    def instance(self, service: str, script: Script, *, instance: str | None = None) -> Iterator[Instance]:
        """A scripted instance, known to the gateway."""
        with Instance(script) as scripted:
            self.bus.say(status_of(service, instance=instance, address=scripted.address))
            self.known(service)
            yield scripted


@contextmanager
def a_fleet(path: Path, **env: str) -> Iterator[Fleet]:
    """A bus and a gateway in a run directory of their own."""
    run_dir = prepare(RunDir(path))
    with Bus(run_dir) as bus, Process(path, "services.gateway", **env) as gateway:
        port = gateway.port()
        until(lambda: "gateway-primary" in bus.heard, what="the gateway is on the bus")
        yield Fleet(run_dir, bus, gateway, port)
