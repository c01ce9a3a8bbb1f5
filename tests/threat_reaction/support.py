"""What these tests need: a desk with a clock that stands still, the service as a process, and a client for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.threat_reaction.desk import Desk, Received, Told
from services.threat_reaction.judgement import Sighted
from services.threat_reaction.networks import read_address
from tests.support import Answer, HttpClient, ServiceProcess, ready

MODULE = "services.threat_reaction"
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


class Client(HttpClient[Answer]):
    """Requests to the service, with its token unless told otherwise."""

    def __init__(self, port: int, run_dir: Path) -> None:
        super().__init__(port, Answer, run_dir / "cdn-threat-reaction.token")
        self.run_dir = run_dir

    def get(self, path: str) -> Any:
        """The answer's JSON, without a token."""
        answer = self.call("GET", path, token=False)
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


@contextmanager
def reacting(run_dir: Path, **env: str) -> Iterator[tuple[Client, ServiceProcess]]:
    """The service, ready; killed afterwards."""
    with ready(run_dir, MODULE, lambda port: Client(port, run_dir), name="threat-reaction", **env) as both:
        yield both
