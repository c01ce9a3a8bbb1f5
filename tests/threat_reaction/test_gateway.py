"""Bans at a real gateway: told at once, told later, taken back, and kept whoever dies."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec.structs import replace

from bus.endpoints import RunDir, prepare
from services.threat_reaction.gateways import Gateways
from tests.bus.samples import STATUS
from tests.gateway.sockets import Client as Socket
from tests.gateway.support import Bus, Process, a_fleet
from tests.support import free_port, until
from tests.threat_reaction.support import reacting

PROXIED = {"FORWARDED_ALLOW_IPS": "127.0.0.1"}
"""So a test can come from any address: the gateway believes what 127.0.0.1 says of its client."""
ATTACKER = "203.0.113.9"


def asked(port: int, client: str) -> int:
    """What a gateway answers a client with this address: 403 if it is refused, 404 if not, as there is no service."""
    with Socket(port) as socket:
        socket.send(f"GET /nobody/ HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\n\r\n".encode())
        return socket.answer().status


def refused(port: int, client: str) -> None:
    """Wait until it is."""
    until(lambda: asked(port, client) == 403, what=f"{client} is refused")


def served(port: int, client: str) -> None:
    """Wait until it is again."""
    until(lambda: asked(port, client) != 403, what=f"{client} is served")


def test_an_address_that_is_none(run_path: Path) -> None:
    """Whoever can publish may say that a gateway is anywhere: what cannot be asked is neither kept nor asked."""
    kept: list[tuple[str, str]] = []
    gateways = Gateways(
        run_path,
        RunDir(run_path).feed,
        clock=time.time,
        wanted=dict,
        lifted=tuple,
        confirm=lambda *_: None,
        keep=lambda instance, address: kept.append((instance, address)),
    )
    gateways.start({"gateway-2": "http://127.0.0.1:99999", "gateway-primary": "http://127.0.0.1:1"})
    try:
        for address in ("http://[::1", "http://127.0.0.1:99999", "ftp://127.0.0.1", "nonsense", None):
            gateways._heard(replace(STATUS, service="gateway-primary", instance="gateway-3", address=address))
        gateways._heard(
            replace(STATUS, service="gateway-primary", instance="gateway-4", address="http://127.0.0.2:18600")
        )
        until(lambda: "token" in str(gateways.shown()["gateway-4"]["error"]), what="it is asked")
        assert gateways.is_alive()
        assert gateways.addresses() == ["127.0.0.1", "127.0.0.2"]
        assert kept == [("gateway-4", "http://127.0.0.2:18600")]
    finally:
        gateways.stop()


def test_from_a_sighting_to_a_403(run_path: Path) -> None:
    """Nobody is refused before a person approves; then at once; a rollback serves again. Each step is told."""
    with a_fleet(run_path, **PROXIED) as fleet, reacting(run_path) as (client, _):
        id = client.proposed(ATTACKER)
        assert asked(fleet.port, ATTACKER) == 404
        assert client.order(id, "approve").status == 200
        refused(fleet.port, ATTACKER)
        assert asked(fleet.port, "203.0.113.10") == 404
        until(lambda: client.get(f"/reactions/{id}")["state"] == "executed", what="the gateway's word")
        reaction = client.get(f"/reactions/{id}")
        assert reaction["contained_s"] >= reaction["seen_s"]
        (ban,) = client.get("/bans")["bans"]
        assert ban["gateways"] == {"gateway-primary": "denied"}
        assert client.order(id, "rollback").status == 200
        served(fleet.port, ATTACKER)
        assert [entry["what"] for entry in client.get("/audit")["entries"]] == [
            "began",
            "proposed",
            "approved",
            "executed",
            "rolled_back",
        ]


def test_disrupt_slows(run_path: Path) -> None:
    """By a rate at the gateway, once it is approved; and a ban in its place refuses."""
    playbook = {
        "steps": {
            "start": {"type": "start", "on": ["port_scan"], "next": "slow"},
            "slow": {"type": "action", "action": "disrupt", "for_s": 600, "next": "end"},
            "end": {"type": "end"},
        }
    }
    with a_fleet(run_path, **PROXIED) as fleet, reacting(run_path) as (client, _):
        assert client.call("PUT", "/playbooks/scans?by=alice", playbook).status == 201
        (reaction,) = client.see(ATTACKER, "port_scan")["reactions"]
        assert asked(fleet.port, ATTACKER) == 404
        assert client.order(reaction["id"], "approve").status == 200
        until(lambda: client.get(f"/reactions/{reaction['id']}")["state"] == "executed", what="the gateway's word")
        statuses = {asked(fleet.port, ATTACKER) for _ in range(20)}
        assert statuses <= {404, 429}
        until(lambda: asked(fleet.port, ATTACKER) == 429, what="it asks too much")
        (ban,) = client.get("/bans")["bans"]
        assert (ban["kind"], ban["gateways"]) == ("throttle", {"gateway-primary": "slowed"})
        client.ban(ATTACKER)
        refused(fleet.port, ATTACKER)


def test_a_ban_ends_by_itself_even_if_nobody_is_left_to_lift_it(run_path: Path) -> None:
    """Killed after it has told the gateway; the ban lasts as long as it was to, and no longer."""
    with a_fleet(run_path, **PROXIED) as fleet:
        with reacting(run_path) as (client, _):
            client.ban(ATTACKER, 600)
            client.ban("203.0.113.10", 3)
            refused(fleet.port, ATTACKER)
        served(fleet.port, "203.0.113.10")
        assert asked(fleet.port, ATTACKER) == 403


def test_bans_survive_the_loss_of_everybody(run_path: Path) -> None:
    """threat-reaction, then the bus, then the gateway itself are killed: it starts again and refuses."""
    port = free_port()
    run_dir = prepare(RunDir(run_path))
    with Bus(run_dir) as bus, Process(run_path, "services.gateway", CDN_PORT=str(port), **PROXIED) as gateway:
        gateway.port()
        until(lambda: "gateway-primary" in bus.heard, what="the gateway is on the bus")
        with reacting(run_path) as (client, _):
            client.ban(ATTACKER)
            refused(port, ATTACKER)
    assert not bus._thread.is_alive()
    with Process(run_path, "services.gateway", CDN_PORT=str(port), **PROXIED) as gateway:
        gateway.port()
        assert asked(port, ATTACKER) == 403


def test_what_a_gateway_missed_it_is_told_when_it_comes_back(run_path: Path) -> None:
    """Without the bus: where it was is on disk. A ban made, and one lifted, while it was away."""
    port = free_port()
    run_dir = prepare(RunDir(run_path))
    with Bus(run_dir), Process(run_path, "services.gateway", CDN_PORT=str(port), **PROXIED) as gateway:
        gateway.port()
        with reacting(run_path) as (client, _):
            client.ban("203.0.113.1")
            refused(port, "203.0.113.1")
    with reacting(run_path) as (client, _):
        client.ban("203.0.113.2")
        assert client.call("DELETE", "/bans/203.0.113.1?by=alice").status == 200
        until(lambda: "cannot reach" in client.get("/gateways")["gateways"]["gateway-primary"]["error"])
        with Process(run_path, "services.gateway", CDN_PORT=str(port), **PROXIED) as gateway:
            gateway.port()
            refused(port, "203.0.113.2")
            served(port, "203.0.113.1")


def test_what_a_gateway_forgot_it_is_told_again(run_path: Path) -> None:
    """Its list is gone, as after a move to another disk; it is a new process, so it is asked at once."""
    with a_fleet(run_path, **PROXIED) as fleet, reacting(run_path) as (client, _):
        client.ban(ATTACKER)
        refused(fleet.port, ATTACKER)
        fleet.gateway.kill()
        for path in (run_path / "state" / "gateway-primary").glob("blocks.db*"):
            path.unlink()
        with Process(run_path, "services.gateway", **PROXIED) as gateway:
            refused(gateway.port(), ATTACKER)


def test_every_instance_of_a_gateway_is_told(run_path: Path) -> None:
    """Each by its own token."""
    with a_fleet(run_path, **PROXIED) as fleet, reacting(run_path) as (client, _):
        client.ban(ATTACKER)
        refused(fleet.port, ATTACKER)
        with Process(run_path, "services.gateway", CDN_INSTANCE="gateway-primary-2", **PROXIED) as second:
            refused(second.port(), ATTACKER)
            until(lambda: set(client.get("/bans")["bans"][0]["gateways"].values()) == {"denied"})


def test_what_a_gateway_will_not_do_is_said(run_path: Path) -> None:
    """Loopback, where nobody has allowed that: the reaction has failed, and nobody asks again and again."""
    with a_fleet(run_path, **PROXIED) as fleet, reacting(run_path) as (client, _):
        assert client.call("DELETE", "/never-block/127.0.0.0/8?by=alice").status == 204
        id = client.proposed("127.0.0.77")
        assert client.order(id, "approve").status == 200
        until(lambda: client.get(f"/reactions/{id}")["state"] == "failed", what="the gateway's refusal")
        assert "loopback is never blocked" in client.get(f"/reactions/{id}")["why"]
        (ban,) = client.get("/bans")["bans"]
        assert "loopback" in ban["gateways"]["gateway-primary"]
        client.ban(ATTACKER)
        refused(fleet.port, ATTACKER)
        denied = [entry for entry in fleet.gateway.log().splitlines() if "deny 127.0.0.77" in entry]
        assert len(denied) <= 2, "once with its cause, once without, if the gateway knows no causes"


def test_an_operators_rules_are_his(run_path: Path) -> None:
    """What he allows is not denied, and what he denies is not freed by a lift."""
    with a_fleet(run_path, **PROXIED) as fleet, reacting(run_path) as (client, _):
        token = (run_path / "gateway-primary.openc2.token").read_text().strip()
        for action, address in (("allow", "203.0.113.1"), ("deny", "203.0.113.2")):
            body = f'{{"action": "{action}", "target": {{"ipv4_net": "{address}"}}}}'.encode()
            head = f"Authorization: Bearer {token}", f"Content-Length: {len(body)}"
            assert fleet.ask("POST", "/openc2", *head, body=body).status == 200
        until(lambda: client.get("/gateways")["gateways"]["gateway-primary"]["error"] == "", what="it is known")
        for last in (1, 2, 3):
            client.ban(f"203.0.113.{last}")
        refused(fleet.port, "203.0.113.3")
        assert client.call("DELETE", "/bans/203.0.113.2?by=alice").status == 200
        assert client.call("DELETE", "/bans/203.0.113.3?by=alice").status == 200
        served(fleet.port, "203.0.113.3")
        assert asked(fleet.port, "203.0.113.1") == 404
        assert asked(fleet.port, "203.0.113.2") == 403
