"""A daemon's end of the command plane: guarded by incarnation, one effect per id, an outcome for each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from bus.broker import Broker
from bus.codec import Decoder, encode
from bus.endpoints import RunDir
from bus.messages import (
    Accepted,
    AgentMessage,
    Command,
    DaemonCommand,
    HealthCheck,
    HealthStatus,
    Hello,
    NodeCommand,
    OodaMode,
    Outcome,
    OutcomeKind,
    ReportStatus,
    Restart,
    Resume,
    SetLoopMode,
    Shed,
    Shutdown,
    StartProcess,
)
from tests.support import NotInTime, ServiceProcess


class Commander:
    """Stands where ATLAS does, and commands one tiny service."""

    def __init__(self, run_dir: RunDir) -> None:
        self.broker = Broker(run_dir)
        self._decoder: Decoder[AgentMessage] = Decoder(AgentMessage)
        self.heard: list[AgentMessage] = []
        self.routing_id = b""

    def __enter__(self) -> Commander:
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.close()

    def hear(self, wanted: type[Any], **fields: object) -> Any:
        """The next message of that type with those fields."""
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            while self.heard:
                message = self.heard.pop(0)
                if isinstance(message, wanted) and all(getattr(message, k) == v for k, v in fields.items()):
                    return message
            for routing_id, frame in self.broker.turn(0.05).agents:
                message = self._decoder.decode(frame)
                self.heard.append(message)
                if isinstance(message, Hello):
                    self.routing_id = routing_id
        raise NotInTime(f"no {wanted.__name__} {fields}")

    def send(self, body: DaemonCommand | NodeCommand, id_: str = "c1", incarnation: int | None = 1) -> None:
        """Command it."""
        command = Command(id=id_, target="tiny", incarnation=incarnation, timeout_s=30, asked_by="test", body=body)
        self.broker.to_agent(self.routing_id, encode(command))


@pytest.fixture
def tiny(run_path: Path) -> Iterator[ServiceProcess]:
    """A tiny service that believes itself supervised."""
    with ServiceProcess(run_path, "-m", "tests.cdn_daemon.tiny", SUPERVISOR_ENABLED="1") as process:
        process.url()
        yield process


@pytest.fixture
def commander(run_dir: RunDir, tiny: ServiceProcess) -> Iterator[Commander]:
    """Who commands it, once it has said hello."""
    with Commander(run_dir) as commander:
        hello = commander.hear(Hello)
        assert (hello.target, hello.role, hello.incarnation, hello.pid) == ("tiny", "daemon", 1, tiny.pid)
        yield commander


def test_restart(tiny: ServiceProcess, commander: Commander) -> None:
    """Accepted, drained, ended with 75."""
    commander.send(Restart())
    assert commander.hear(Accepted) == Accepted(id="c1", incarnation=1)
    assert tiny.wait() == 75


def test_shutdown(tiny: ServiceProcess, commander: Commander) -> None:
    """Accepted, drained, ended with 0."""
    commander.send(Shutdown(), incarnation=None)
    commander.hear(Accepted, id="c1")
    assert tiny.wait() == 0


@pytest.mark.parametrize("body", [Restart(), Shutdown(), HealthCheck(), ReportStatus()])
def test_another_incarnation_does_nothing(tiny: ServiceProcess, commander: Commander, body: DaemonCommand) -> None:
    """A command for #42 has no effect on #1, and says so."""
    commander.send(body, incarnation=42)
    outcome = commander.hear(Outcome, id="c1")
    assert (outcome.kind, outcome.reason) == (OutcomeKind.REJECTED, "tiny is #1, the command is for #42")
    assert tiny.get("/")[0] == 200


def test_the_same_command_twice(tiny: ServiceProcess, commander: Commander) -> None:
    """The second is answered from memory, and has no effect of its own."""
    commander.send(ReportStatus())
    first = commander.hear(Outcome, id="c1")
    commander.send(ReportStatus())
    assert commander.hear(Outcome, id="c1") == first
    commander.send(ReportStatus(), "c2")
    assert commander.hear(Outcome, id="c2").status.seq > first.status.seq


def test_health_check(tiny: ServiceProcess, commander: Commander, run_path: Path) -> None:
    """Every check is run now, and done carries what they say."""
    commander.send(HealthCheck())
    outcome = commander.hear(Outcome, id="c1")
    assert (outcome.kind, outcome.status.health) == (OutcomeKind.DONE, HealthStatus.HEALTHY)
    (run_path / "ill").touch()
    commander.send(HealthCheck(), "c2")
    outcome = commander.hear(Outcome, id="c2")
    assert outcome.status.health in (HealthStatus.DEGRADED, HealthStatus.UNHEALTHY)
    assert "there is a file called ill" in outcome.status.reasons[0]


def test_shed_and_resume(tiny: ServiceProcess, commander: Commander, run_path: Path) -> None:
    """Its functions are called, in order; done carries the status after them, degraded while it sheds."""
    commander.send(Shed())
    commander.send(Resume(), "c2")
    commander.hear(Accepted, id="c1")
    outcome = commander.hear(Outcome, id="c1")
    assert (outcome.kind, outcome.status.shedding) == (OutcomeKind.DONE, True)
    assert outcome.status.health is HealthStatus.DEGRADED
    assert "shedding load, told by test" in outcome.status.reasons
    outcome = commander.hear(Outcome, id="c2")
    assert (outcome.kind, outcome.reason, outcome.status.shedding) == (OutcomeKind.DONE, "", False)
    assert "shedding load, told by test" not in outcome.status.reasons
    assert (run_path / "shed").read_text().split() == ["load", "resumed"]
    commander.send(Resume(), "c3")
    assert commander.hear(Outcome, id="c3").reason == "it was not shedding"


def test_a_directive_that_fails_says_so(tiny: ServiceProcess, commander: Commander, run_path: Path) -> None:
    """It is not shedding then; and as it was, if it cannot resume."""
    (run_path / "cannot").touch()
    commander.send(Shed())
    outcome = commander.hear(Outcome, id="c1")
    assert (outcome.kind, outcome.reason) == (
        OutcomeKind.FAILED,
        "its function raised RuntimeError: nothing to shed",
    )
    (run_path / "cannot").unlink()
    commander.send(Shed(), "c2")
    assert commander.hear(Outcome, id="c2").status.shedding
    (run_path / "cannot").touch()
    commander.send(Resume(), "c3")
    assert commander.hear(Outcome, id="c3").kind is OutcomeKind.FAILED
    commander.send(ReportStatus(), "c4")
    assert commander.hear(Outcome, id="c4").status.shedding


def test_who_cannot_shed_refuses(run_dir: RunDir) -> None:
    """A service without a function for it."""
    with (
        ServiceProcess(run_dir.path, "-m", "tests.cdn_daemon.plain_tiny") as process,
        Commander(run_dir) as commander,
    ):
        process.url()
        commander.hear(Hello)
        commander.send(Shed())
        outcome = commander.hear(Outcome, id="c1")
        assert outcome.kind is OutcomeKind.REJECTED
        assert outcome.reason == "tiny cannot shed load: it has no function for it (@service.shed)"


def test_loop_mode(tiny: ServiceProcess, commander: Commander) -> None:
    """Set at once, and told in the status."""
    for mode in (OodaMode.SHADOW, OodaMode.OFF, OodaMode.ON):
        commander.send(SetLoopMode(mode=mode), f"to {mode}")
        outcome = commander.hear(Outcome, id=f"to {mode}")
        assert (outcome.kind, outcome.status.ooda_mode) == (OutcomeKind.DONE, mode)


def test_what_is_not_for_a_service(tiny: ServiceProcess, commander: Commander) -> None:
    """A warden's command, and one for another, are rejected; noise and fields from the future are dropped."""
    commander.send(StartProcess(name="tiny"))
    assert commander.hear(Outcome, id="c1").kind is OutcomeKind.REJECTED
    command = Command(id="c2", target="other", timeout_s=1, asked_by="test", body=Restart())
    commander.broker.to_agent(commander.routing_id, encode(command))
    assert commander.hear(Outcome, id="c2").reason == "this is tiny, not other"
    newer = msgpack.unpackb(encode(command)) | {"id": "c3", "target": "tiny", "even_if": "busy"}
    for frame in (b"", b"\xc1noise", msgpack.packb(newer)):
        commander.broker.to_agent(commander.routing_id, frame)
    commander.send(ReportStatus(), "c4")
    assert commander.hear(Outcome).id == "c4"
    assert tiny.process.poll() is None
