"""From a change point to a refused client, through every service in between, each its own process; and what kills it.

Failed log-ins are counted by statistical, which tells that they have risen; threat-intel, which lists whom they come
from, that it was seen; threat-reaction proposes to ban it, and once a person has approved, tells the gateway, which
refuses it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.statistical.changes import HISTORY_MIN
from tests.support import BIN, ROOT, Supervisord, free_port, is_running, short_dir, until

LISTED, OTHER = "127.0.0.66", "127.0.0.67"
"""Clients of the gateway; on Linux the whole of 127.0.0.0/8 is this host."""
STATISTICAL, INTEL, REACTION = "cdn-statistical", "cdn-threat-intel", "cdn-threat-reaction"
GATEWAY = "gateway-primary"

Json = dict[str, Any]


class Fleet:
    """A fleet of its own, by its supervisord; ATLAS stays down once it is killed, until it is started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gateway_port = free_port()
        notifies = {"type": "notify"}
        self.supervisord = Supervisord(
            path,
            {
                "atlas": {"command": "python -m services.atlas", "autorestart": "false", **notifies},
                GATEWAY: {
                    "command": "python -m services.gateway",
                    "environment": f'CDN_PORT="{self.gateway_port}",CDN_GATEWAY_BLOCK_LOOPBACK="yes"',
                    **notifies,
                },
                INTEL: {"command": "python -m services.threat_intel", **notifies},
                REACTION: {"command": "python -m services.threat_reaction", **notifies},
                STATISTICAL: {"command": "python -m tests.chain.quick", **notifies},
                "tiny": {"command": "python -m tests.cdn_daemon.tiny", **notifies},
            },
            env={"CDN_PORT": "0"},
        )

    def has_served(self, times: int, *names: str) -> bool:
        """Whether these have been ready so often, by their logs: asking supervisorctl takes longer."""
        return all(self.supervisord.log(name).count(" cdn_daemon.daemon: serving\n") >= times for name in names)

    def port(self, name: str) -> int:
        """Where it listens, as it has logged last."""
        return int(re.findall(r"listens on 127\.0\.0\.1 port (\d+)", self.supervisord.log(name))[-1])

    def ask(self, name: str, method: str, path: str, body: bytes | Json = b"", client: str = "127.0.0.1") -> Any:
        """What a service answers, with its token; raises unless it does what was asked."""
        status, answer = self.request(self.port(name), name, method, path, body, client)
        assert 200 <= status < 300, (status, answer)
        return json.loads(answer or b"null") if answer[:1] in (b"{", b"[") else answer.decode()

    def request(
        self, port: int, name: str, method: str, path: str, body: bytes | Json = b"", client: str = "127.0.0.1"
    ) -> tuple[int, bytes]:
        """Status and body."""
        token = self.path / f"{name}.token"
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
        headers["Content-Type"] = "application/json" if isinstance(body, dict) else "text/plain"
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(client, 0))
        try:
            connection.request(method, path, content or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status_for(self, client: str) -> int:
        """What the gateway answers a client; 0: it is not there."""
        try:
            return self.request(self.gateway_port, "tiny", "GET", "/tiny/", client=client)[0]
        except (OSError, http.client.HTTPException):
            return 0

    def beats(self) -> int:
        """How often statistical has looked whether anything has changed, as it says itself."""
        metrics = self.ask(STATISTICAL, "GET", "/metrics")
        found = re.search(r"^flushes_total\{.*\} ([\d.]+)$", metrics, re.MULTILINE)
        return int(float(found[1])) if found else 0

    @contextmanager
    def guessing(self, source: str) -> Iterator[None]:
        """Ever more log-ins of that client's fail, as whoever notices would tell statistical."""
        end = threading.Event()
        port = int(self.ask(STATISTICAL, "GET", "/")["statsd_udp"].rpartition(":")[2])

        def guess() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
                times = 10.0
                while not end.wait(0.01):
                    times *= 1.01
                    lines = f"logins.failed:{int(times)}|c\nlogins.failed.from:{source}|s\n"
                    statsd.sendto(lines.encode(), ("127.0.0.1", port))

        thread = threading.Thread(target=guess)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def kill(self, name: str) -> None:
        """As nobody can prepare for; returns once it is gone."""
        pid = self.supervisord.pid(name)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_running(pid), what=f"{name} is gone")

    def cdnctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The real command."""
        return subprocess.run(
            [str(BIN / "cdnctl"), *arguments],
            env=self.supervisord.env,
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def chain(self, id_: str) -> list[Json]:
        """As cdnctl tells it."""
        done = self.cdnctl("events", "--chain", id_, "--json")
        events: list[Json] = json.loads(done.stdout)["events"] if done.returncode == 0 else []
        return events


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """One in which everything runs, the listed client is listed, and loopback may be blocked."""
    with short_dir() as path:
        fleet = Fleet(path)
        with fleet.supervisord:
            everyone = ("atlas", STATISTICAL, INTEL, REACTION, GATEWAY, "tiny")
            until(lambda: fleet.has_served(1, *everyone), within_s=60, what="all are ready")
            fleet.ask(STATISTICAL, "POST", "/samples", b"logins.failed:1|c\n")
            before = fleet.beats()
            fleet.ask(INTEL, "PUT", "/feeds/guessers?confidence=95", f"{LISTED}\n".encode())
            fleet.ask(REACTION, "DELETE", "/never-block/127.0.0.0/8?by=test")
            until(lambda: fleet.status_for(LISTED) == 200, what="the gateway knows the service")
            routes = path / "state" / GATEWAY / "routes.json"
            until(lambda: routes.exists() and "tiny" in routes.read_text(), what="and the next gateway will")
            until(lambda: fleet.beats() > before + 2 * HISTORY_MIN, what="statistical knows what is usual")
            yield fleet


@pytest.fixture
def followed(fleet: Fleet) -> Iterator[Path]:
    """What an operator sees who looks on: the output of cdnctl events -f."""
    path = fleet.path / "followed"
    with path.open("wb") as file:
        command = [str(BIN / "cdnctl"), "events", "-f", "-n", "1"]
        follower = subprocess.Popen(command, env=fleet.supervisord.env, cwd=fleet.path, stdout=file)
    try:
        until(lambda: path.read_text(), what="it follows")
        yield path
    finally:
        follower.kill()
        follower.wait()


def proposed(fleet: Fleet) -> list[Json]:
    """The reactions that wait for a person."""
    found: list[Json] = fleet.ask(REACTION, "GET", "/reactions?state=proposed")["reactions"]
    return found


def steps(chain: list[Json]) -> list[tuple[str, str]]:
    """Who said what, in order."""
    told = {"reaction": "state", "blocked": "action"}
    return [(event["instance"], str(event["facts"].get(told.get(event["kind"], ""), event["kind"]))) for event in chain]


WHOLE = {
    (STATISTICAL, "change_point"),
    (INTEL, "sighting"),
    (REACTION, "proposed"),
    (REACTION, "approved"),
    (REACTION, "executed"),
    (GATEWAY, "deny"),
}


def test_from_a_change_point_to_a_refused_client(fleet: Fleet, followed: Path) -> None:
    """Nobody is refused before a person has approved; ATLAS, gateway and threat-reaction are killed in the middle."""
    with fleet.guessing(LISTED):
        (reaction,) = until(lambda: proposed(fleet), within_s=60, what="a ban is proposed")
    id_ = reaction["cause"]
    assert fleet.status_for(LISTED) == 200

    fleet.kill("atlas")
    fleet.ask(REACTION, "POST", f"/reactions/{reaction['id']}/approve", {"by": "somebody"})
    until(lambda: fleet.status_for(LISTED) == 403, what="it is refused")
    assert fleet.status_for(OTHER) == 200

    fleet.kill(GATEWAY)
    until(lambda: fleet.status_for(OTHER) == 200, what="the next gateway serves")
    assert fleet.status_for(LISTED) == 403
    fleet.kill(REACTION)
    until(lambda: fleet.has_served(2, REACTION))
    assert fleet.status_for(LISTED) == 403
    assert fleet.cdnctl("events", "--chain", id_).returncode == 4, "there is no ATLAS to ask"

    assert fleet.supervisord.ctl("start", "atlas").returncode == 0
    until(lambda: set(steps(fleet.chain(id_))) == WHOLE, what="the chain is whole")
    chain = fleet.chain(id_)
    assert len(chain) == len(WHOLE), "each once"
    events = {event["id"]: event for event in chain}
    (blocked,) = (event for event in chain if event["kind"] == "blocked")
    assert blocked["facts"]["network"] == f"{LISTED}/32"
    way, cause = [], blocked
    while cause:
        way.append(cause["kind"])
        cause = events.get(cause["cause"], {})
    assert way[0] == "blocked"
    assert way[-2:] == ["sighting", "change_point"]
    shown = fleet.cdnctl("events", "--chain", blocked["id"]).stdout
    assert re.search(rf"{STATISTICAL} +change_point +logins.failed .* went up: .*, mostly {LISTED}", shown), shown
    assert re.search(rf"{GATEWAY} +blocked +└ {LISTED}/32 is refused until", shown), shown
    assert fleet.status_for(LISTED) == 403
    lines = ["change_point +logins", "sighting +└ ", f"blocked +└? *{LISTED}/32 is refused until"]
    lines += [f"reaction +└? *.*: {state}" for state in ("proposed", "approved", "executed")]

    def unseen() -> list[str]:
        text = followed.read_text()
        return [line for line in lines if not re.search(line, text)]

    until(lambda: not unseen(), what="cdnctl events -f shows it all")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the commands are curl's")
def test_the_story_for_operators(fleet: Fleet) -> None:
    """docs/containment.md: its commands, in order, lead from a list to a refusal and back."""
    text = (ROOT / "docs" / "containment.md").read_text(encoding="utf-8")
    script = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for name, port in ((INTEL, 18110), (REACTION, 18201), (GATEWAY, 18600)):
        assert f"127.0.0.1:{port}" in script
        script = script.replace(f"127.0.0.1:{port}", f"127.0.0.1:{fleet.port(name)}")
    script = script.replace("run/$1", f"{fleet.path}/$1")
    env = {**fleet.supervisord.env, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", script], cwd=fleet.path, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"network":"203.0.113.7/32","action":"deny"' in done.stdout
    assert "203.0.113.7/32 is refused until" in done.stdout
    assert '"state":"rolled_back"' in done.stdout
    assert fleet.ask(REACTION, "GET", "/bans")["bans"] == []
