"""CrowdSec's bouncers, unchanged: the one in Python from PyPI, its own in Go from Debian; what they are answered."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pycrowdsec.client import QueryClient, StreamClient, StreamDecisionClient

from services.threat_reaction.lapi import go_duration
from tests.support import ROOT, Answer, free_port, kill_tree, short_dir, until
from tests.threat_reaction.support import Client, reacting

UNPACKED = ROOT / ".ci" / "crowdsec" / "usr" / "bin" / "crowdsec-custom-bouncer"
BOUNCER = shutil.which("crowdsec-custom-bouncer") or (str(UNPACKED) if UNPACKED.exists() else None)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """The service, for all of them; each test bans in a network of its own."""
    with short_dir() as path, reacting(path) as (client, _):
        yield client


def key(client: Client, name: str) -> str:
    """For a new bouncer."""
    answer = client.call("POST", "/bouncers", {"name": name, "by": "alice"})
    assert answer.status == 201
    return str(answer.json["key"])


def lift(client: Client, network: str) -> None:
    """A person ends a ban."""
    assert client.call("DELETE", f"/bans/{network}?by=alice").status == 200


def pull(client: Client, held: str, query: str = "") -> Any:
    """What a bouncer is told."""
    answer = client.call("GET", f"/v1/decisions/stream{query}", token="", x_api_key=held)
    assert answer.status == 200
    return answer.json


def values(decisions: list[dict[str, Any]]) -> set[str]:
    """Whom they are about."""
    return {decision["value"] for decision in decisions}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (60, "1m0s"),
        (14397, "3h59m57s"),
        (604800, "168h0m0s"),
        (-2, "-2s"),
        (-3601, "-1h0m1s"),
    ],
)
def test_a_duration_is_as_go_writes_it(seconds: float, text: str) -> None:
    """In whole seconds, as CrowdSec rounds them."""
    assert go_duration(seconds) == text


def test_pycrowdsec(client: Client) -> None:
    """Asks for one address, streams all of them, and is told what is over."""
    held, url = key(client, "pycrowdsec"), f"http://127.0.0.1:{client.port}/"
    client.ban("203.0.113.1")
    client.ban("198.51.100.0/28")
    query = QueryClient(api_key=held, lapi_url=url)
    assert query.get_action_for("203.0.113.1") == "ban"
    assert query.get_action_for("198.51.100.9") == "ban"
    assert query.get_decisions_for("203.0.113.2") is None
    stream = StreamClient(api_key=held, lapi_url=url)
    stream.cycle("true")  # as its run() does, without its thread, which never ends
    assert stream.get_action_for("203.0.113.1") == "ban"
    assert stream.get_action_for("198.51.100.9") == "ban"
    assert stream.get_action_for("203.0.113.2") is None
    client.ban("203.0.113.2")
    lift(client, "203.0.113.1")
    stream.cycle("false")
    assert stream.get_action_for("203.0.113.2") == "ban"
    assert stream.get_action_for("203.0.113.1") is None
    (bouncer,) = (one for one in client.get("/bouncers")["bouncers"] if one["name"] == "pycrowdsec")
    assert bouncer["agent"].startswith("python-bouncer/")
    wrong = StreamDecisionClient(api_key="wrong", lapi_url=url)
    with pytest.raises(Exception, match="403"):
        wrong.cycle("true")


@pytest.mark.skipif(BOUNCER is None, reason="crowdsec-custom-bouncer is not installed")
def test_crowdsecs_own_bouncer(client: Client, tmp_path: Path) -> None:
    """Debian's crowdsec-custom-bouncer runs its program for each ban, and for each that is over."""
    assert BOUNCER is not None
    program, log = tmp_path / "act", tmp_path / "acts"
    program.write_text(f'#!/bin/sh\necho "$1 $2 $3" >> {log}\n')
    program.chmod(0o755)
    log.touch()
    config = tmp_path / "bouncer.yaml"
    config.write_text(
        f"bin_path: {program}\nfeed_via_stdin: false\npiddir: {tmp_path}/\nupdate_frequency: 1s\n"
        f"cache_retention_duration: 1s\ndaemonize: false\nlog_mode: stdout\nlog_level: info\n"
        f"api_url: http://127.0.0.1:{client.port}/\napi_key: {key(client, 'custom')}\n"
        f"prometheus:\n  enabled: false\n  listen_addr: 127.0.0.1\n  listen_port: {free_port()}\n"
    )
    client.ban("192.0.2.1", 600)
    with (tmp_path / "bouncer.log").open("wb") as output:
        bouncer = subprocess.Popen([BOUNCER, "-c", str(config)], stdout=output, stderr=output, cwd=tmp_path)
    try:

        def acts() -> list[str]:
            assert bouncer.poll() is None, (tmp_path / "bouncer.log").read_text()
            return log.read_text().splitlines()

        def add(line: str) -> bool:
            verb, value, seconds = line.split()
            return verb == "add" and value == "192.0.2.1" and 500 < int(seconds) <= 600

        until(lambda: any(map(add, acts())), what="the ban of before")
        client.ban("192.0.2.128/25")
        until(lambda: any(line.startswith("add 192.0.2.128/25 ") for line in acts()), what="the new one")
        lift(client, "192.0.2.1")
        until(lambda: any(line.startswith("del 192.0.2.1 ") for line in acts()), what="the lifted one")
    finally:
        kill_tree(bouncer.pid)
        bouncer.wait(30)


def test_each_bouncer_is_told_once_and_all_at_its_start(client: Client) -> None:
    """Also what was banned, lifted and banned again; and a bouncer's cursor outlives the service."""
    with short_dir() as path:
        with reacting(path) as (first, _):
            one, other = key(first, "one"), key(first, "other")
            first.ban("203.0.113.1")
            assert values(pull(first, one, "?startup=true")["new"]) == {"203.0.113.1"}
            assert pull(first, one) == {"new": [], "deleted": []}
            first.ban("203.0.113.2")
            lift(first, "203.0.113.1")
            told = pull(first, one)
            assert (values(told["new"]), values(told["deleted"])) == ({"203.0.113.2"}, {"203.0.113.1"})
            lift(first, "203.0.113.2")
            first.ban("203.0.113.2")
            told = pull(first, one)
            assert (values(told["new"]), told["deleted"]) == ({"203.0.113.2"}, []), "what is banned again is not over"
            assert values(pull(first, other)["new"]) == {"203.0.113.2"}
        with reacting(path) as (second, _):
            assert pull(second, one) == {"new": [], "deleted": []}
            assert values(pull(second, one, "?startup=true")["new"]) == {"203.0.113.2"}
            second.ban("203.0.113.3", 1)
            assert values(pull(second, one)["new"]) == {"203.0.113.3"}
            until(lambda: values(pull(second, one)["deleted"]) == {"203.0.113.3"}, what="its time is up")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"198.18.0.1", "198.18.1.0/24"}),
        ("scopes=ip", {"198.18.0.1"}),
        ("scopes=Range", {"198.18.1.0/24"}),
        ("scopes=country", set()),
        ("origins=cdn-threat-reaction,cscli", {"198.18.0.1", "198.18.1.0/24"}),
        ("origins=cscli", set()),
        ("scenarios_containing=manual", {"198.18.0.1", "198.18.1.0/24"}),
        ("scenarios_containing=ssh", set()),
        ("scenarios_not_containing=Manual", set()),
    ],
)
def test_a_bouncer_may_ask_for_some(client: Client, query: str, expected: set[str]) -> None:
    """By scope, origin and scenario."""
    held = key(client, f"some-{quote(query, safe='').replace('%', '-')}"[:60])
    client.ban("198.18.0.1")
    client.ban("198.18.1.0/24")
    told = values(pull(client, held, f"?startup=true&{query}")["new"])
    assert {value for value in told if value.startswith("198.18.")} == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("ip=198.19.1.77", ["198.19.1.0/24"]),
        ("range=198.19.1.0/25", ["198.19.1.0/24"]),
        ("scope=Ip&value=198.19.0.1", ["198.19.0.1"]),
        ("range=198.19.0.0/16&contains=false", ["198.19.0.1", "198.19.1.0/24"]),
        ("ip=198.19.1.77&type=captcha", None),
        ("ip=198.19.2.1", None),
    ],
)
def test_a_bouncer_may_ask_about_one(client: Client, query: str, expected: list[str] | None) -> None:
    """null if there is nothing, as CrowdSec answers."""
    held = key(client, f"about-{quote(query, safe='').replace('%', '-')}"[:60])
    client.ban("198.19.0.1")
    client.ban("198.19.1.0/24")
    answer = client.call("GET", f"/v1/decisions?{query}", token="", x_api_key=held)
    assert answer.status == 200
    assert (answer.json if answer.json is None else [one["value"] for one in answer.json]) == expected


def test_who_has_no_key_is_told_nothing(client: Client) -> None:
    """403 in CrowdSec's words, also after a key was taken back; a HEAD changes nothing."""
    held = key(client, "short-lived")

    def head(**headers: str) -> Answer:
        return client.call("HEAD", "/v1/decisions/stream", token="", **headers)

    client.ban("203.0.113.200")
    assert head(x_api_key=held).status == 200
    assert "203.0.113.200" in values(pull(client, held)["new"]), "a HEAD moved no cursor"
    for path in ("/v1/decisions", "/v1/decisions/stream"):
        for wrong in ("", "wrong", held[:-1]):
            answer = client.call("GET", path, token="", x_api_key=wrong)
            assert (answer.status, answer.json["message"]) == (403, "access forbidden")
    assert client.call("POST", "/bouncers", {"name": "x", "by": "b"}, token="wrong").status == 401
    assert client.call("POST", "/bouncers", {"name": "short-lived", "by": "b"}).error["status"] == 409
    assert client.call("DELETE", "/bouncers/short-lived?by=alice").status == 204
    assert head(x_api_key=held).status == 403
    assert client.call("GET", "/v1/decisions?ip=nonsense", token="", x_api_key=key(client, "k")).json["message"]
