"""What these tests need: a desk with a clock that stands still, the service as a process, and a client for it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.threat_reaction.desk import Desk, Received, Told
from services.threat_reaction.judgement import Sighted
from services.threat_reaction.networks import read_address
from tests.support import ROOT, environment, free_port, kill_tree, until

NOW_S = 1_800_000_000.0


class HeldDesk:
    """A desk whose time passes only when the test says so, and all that it tells."""

    def __init__(self, path: Path) -> None:
        self.now_s = NOW_S
        self.told: list[Told] = []
        self.path = path / "reactions.db"
        self.desk = self._made()

    def _made(self) -> Desk:
        desk = Desk(self.path, clock=lambda: self.now_s, tell=self.told.append)
        desk.open()
        return desk

    def restart(self) -> None:
        """Another process over the same database."""
        self.desk.close()
        self.told.clear()
        self.desk = self._made()

    def pass_s(self, seconds: float) -> None:
        """Time goes by, and what is due is done."""
        self.now_s += seconds
        self.desk.tick().result(30)

    def see(self, address: str, kind: str = "ssh_root_failed", times: int = 1, **more: Any) -> Received:
        """So many sightings."""
        one = Sighted(address=read_address(address), kind=kind, at_s=self.now_s, **more)
        return self.desk.sight([(one, None)] * times).result(30)

    def banned(self) -> set[str]:
        """Networks with a ban in force."""
        return {str(network) for network in self.desk.bans}

    def states(self) -> list[str]:
        """What was told, in order."""
        return [told.reaction.state for told in self.told]


@contextmanager
def a_desk(path: Path) -> Iterator[HeldDesk]:
    """Closed afterwards, its audit log intact."""
    held = HeldDesk(path)
    try:
        yield held
    finally:
        held.desk.close()


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The reason of a refusal, which must have the right form."""
        reason: dict[str, Any] = self.json["error"]
        assert set(reason) == {"status", "what", "value", "limit", "next"}
        assert reason["status"] == self.status
        assert reason["what"].startswith("cannot ")
        return reason


class Client:
    """Requests to the service, with its token unless told otherwise."""

    def __init__(self, port: int, run_dir: Path) -> None:
        self.port = port
        self.run_dir = run_dir

    def call(self, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        held = token if token is not None else self.token()
        if held:
            sent["Authorization"] = f"Bearer {held}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): v for name, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def token(self) -> str:
        """Of the service; empty before it has one."""
        path = self.run_dir / "cdn-threat-reaction.token"
        return path.read_text().strip() if path.exists() else ""

    def get(self, path: str) -> Any:
        """The answer's JSON, without a token."""
        answer = self.call("GET", path, token="")
        assert answer.status == 200, answer.body
        return answer.json

    def see(self, address: str, kind: str = "ssh_root_failed", **more: Any) -> Any:
        """A sighting; the answer."""
        answer = self.call("POST", "/sightings", {"address": address, "kind": kind, **more})
        assert answer.status == 200, answer.body
        return answer.json

    def ban(self, network: str, for_s: float | None = 600) -> None:
        """A person bans."""
        answer = self.call("POST", "/bans", {"network": network, "for_s": for_s, "by": "alice"})
        assert answer.status == 201, answer.body

    def proposed(self, address: str) -> str:
        """Have a reaction proposed; its id."""
        reactions = self.see(address, count=3)["reactions"]
        assert [reaction["state"] for reaction in reactions] == ["proposed"]
        return str(reactions[0]["id"])

    def order(self, id: str, verb: str) -> Answer:
        """Approve, deny, rollback."""
        return self.call("POST", f"/reactions/{id}/{verb}", {"by": "alice", "why": "a test"})


class Reactor:
    """The service in a process of its own."""

    def __init__(self, run_dir: Path, **env: str) -> None:
        self.port = free_port()
        self.log_path = run_dir / "threat-reaction.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.threat_reaction"],
                env=environment(run_dir, **{"CDN_PORT": str(self.port), **env}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.client = Client(self.port, run_dir)

    def ready(self) -> Client:
        """Once it is."""

        def answers() -> bool:
            assert self.process.poll() is None, self.log_path.read_text()
            try:
                return self.client.call("GET", "/readyz").status == 200
            except OSError:
                return False

        until(answers, what="threat-reaction is ready")
        return self.client

    def kill(self) -> None:
        """SIGKILL."""
        kill_tree(self.process.pid)
        self.process.wait(30)


@contextmanager
def reacting(run_dir: Path, **env: str) -> Iterator[tuple[Client, Reactor]]:
    """The service, ready; killed afterwards."""
    reactor = Reactor(run_dir, **env)
    try:
        yield reactor.ready(), reactor
    finally:
        reactor.kill()
