"""Small programs for supervisord to run, and an ATLAS of two sockets to hear and order its warden."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xmlrpc.client import ServerProxy

import zmq
from supervisor.xmlrpc import SupervisorTransport

from bus.codec import Decoder, encode
from bus.endpoints import RunDir, host_name
from bus.ids import new_id
from bus.messages import (
    AgentMessage,
    Command,
    DaemonCommand,
    Hello,
    NodeCommand,
    NodeStatus,
    Outcome,
    ProcessRow,
    Telemetry,
)
from tests.support import Supervisord, until

NOTIFY = """
import os, socket, sys, time
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
"""

BEATS = """
import faulthandler, signal, threading
faulthandler.enable()
def beats():
    while True:
        try: tell("WATCHDOG=1")
        except OSError: pass
        time.sleep(0.1)
threading.Thread(target=beats, daemon=True).start()
tell("READY=1\\nSTATUS=serving")
"""
"""Ready at once, then beats ten times a second, as the embedded daemon does."""


def python(directory: Path, name: str, body: str, *, notifies: bool = False) -> str:
    """Command line of a Python program with that body; with ``tell(text)``, if it is to notify."""
    path = directory / f"{name}.py"
    path.write_text((NOTIFY if notifies else "import os, sys, time\n") + body)
    return f"{sys.executable} {path}"


def beating(
    directory: Path, name: str, body: str = "while True: time.sleep(1)", *, before: str = "", **more: str
) -> dict[str, str]:
    """A program that is watched as this project's own are; ``before`` is done before it is ready."""
    command = python(directory, name, before + BEATS + body, notifies=True)
    return {"command": command, "type": "notify", "watchdog_s": "0.6", **more}


def rpc(fleet: Supervisord, method: str, *arguments: object) -> object:
    """Call the warden over supervisord's XML-RPC."""
    transport = SupervisorTransport(None, None, f"unix://{fleet.run_dir}/supervisor.sock")
    with ServerProxy("http://127.0.0.1", transport=transport) as proxy:
        return getattr(proxy.cdn, method)(*arguments)


class FakeAtlas:
    """ATLAS's two ends of the bus, for one warden."""

    def __init__(self, run_dir: Path) -> None:
        endpoints = RunDir(run_dir)
        self._context = zmq.Context()
        self._telemetry = self._context.socket(zmq.XSUB)
        self._telemetry.bind(endpoints.telemetry)
        self._telemetry.send(b"\x01")
        self._agents = self._context.socket(zmq.ROUTER)
        self._agents.bind(endpoints.agents)
        self._decode_agent: Decoder[AgentMessage] = Decoder(AgentMessage)
        self._decode_telemetry: Decoder[Telemetry] = Decoder(Telemetry)
        self._peers: dict[str, bytes] = {}
        self.said: list[AgentMessage] = []
        self.statuses: list[NodeStatus] = []

    def listen(self) -> None:
        """Take all that has come."""
        while self._telemetry.poll(0):
            _, frame = self._telemetry.recv_multipart()
            message = self._decode_telemetry.decode(frame)
            if isinstance(message, NodeStatus):
                self.statuses.append(message)
        while self._agents.poll(0):
            peer, frame = self._agents.recv_multipart()
            message_ = self._decode_agent.decode(frame)
            if isinstance(message_, Hello):
                self._peers[message_.target] = peer
            self.said.append(message_)

    def rows(self) -> dict[str, ProcessRow]:
        """The newest process table."""
        self.listen()
        return {row.name: row for row in self.statuses[-1].processes} if self.statuses else {}

    def row(self, name: str, *states: str) -> ProcessRow:
        """Wait until the table has that program, in one of these states."""

        def found() -> ProcessRow | None:
            row = self.rows().get(name)
            return row if row is not None and (not states or row.state in states) else None

        row = until(found, what=f"{name} is {' or '.join(states) or 'there'}", every_s=0.005)
        assert row is not None
        return row

    def counts(self) -> dict[str, int]:
        """The warden's newest counters."""
        self.listen()
        return self.statuses[-1].counts if self.statuses else {}

    def hello(self, target: str = "") -> Hello:
        """Wait until the warden, or that daemon, has said who it is."""
        wanted = target or host_name()

        def first() -> Hello | None:
            self.listen()
            return next((each for each in self.said if isinstance(each, Hello) and each.target == wanted), None)

        hello = until(first, what="hello")
        assert hello is not None
        return hello

    def send(
        self,
        body: NodeCommand | DaemonCommand,
        *,
        target: str = "",
        timeout_s: float = 30.0,
        id_: str = "",
        incarnation: int | None = None,
    ) -> str:
        """Order the warden, or that daemon; the id."""
        self.hello(target)
        command = Command(
            id=id_ or new_id(),
            target=target or host_name(),
            incarnation=incarnation,
            timeout_s=timeout_s,
            asked_by="tester",
            body=body,
        )
        self._agents.send_multipart([self._peers[command.target], encode(command)])
        return command.id

    def outcome(self, id_: str, *, count: int = 1) -> Outcome:
        """Wait for the outcome of that command; with count, for its count-th copy."""

        def found() -> Outcome | None:
            self.listen()
            all_ = [each for each in self.said if isinstance(each, Outcome) and each.id == id_]
            return all_[count - 1] if len(all_) >= count else None

        outcome = until(found, what=f"outcome of {id_}")
        assert outcome is not None
        return outcome

    def close(self) -> None:
        """Leave."""
        self._telemetry.close(linger=0)
        self._agents.close(linger=0)
        self._context.term()


@contextmanager
def fake_atlas(run_dir: Path) -> Iterator[FakeAtlas]:
    """A FakeAtlas for the length of a with."""
    atlas = FakeAtlas(run_dir)
    try:
        yield atlas
    finally:
        atlas.close()
