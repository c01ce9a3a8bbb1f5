"""What the service answers, by HTTP and WebSocket; what it refuses, and how."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets

from services.threat_intel.intel import TOLD_AT_ONCE, Intel
from services.threat_intel.limits import Limits
from tests.support import until
from tests.threat_intel.support import Client, bundle, indicator, serving, stix_id, when

SMALL = Limits(
    feed_bytes=200_000, body_bytes=50_000, values=100, inline_values=10, feeds=5, listings=2_000, inside=5, matches=3,
    objects=100, allowed=20, watchers=2, watcher_waiting=2,
)  # fmt: skip


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Client, Intel]]:
    """A server with small limits."""
    with serving(tmp_path / "state", SMALL) as (client, intel):
        yield client, intel


@pytest.fixture
def client(served: tuple[Client, Intel]) -> Client:
    """Its client."""
    return served[0]


# -- correlation --------------------------------------------------------------------------------------------


def test_all_that_a_value_can_match(client: Client) -> None:
    """Exactly, by network both ways, by suffix, by a URL's host; however either was written."""
    loaded = client.put(
        "mixed",
        "# a comment",
        "203.0.113.7 # and one behind",
        "198.51.100.0/24",
        "2001:db8::/32,with,columns",
        "Evil[.]example",
        "hxxp://bad.example:80/x",
        "D41D8CD98F00B204E9800998ECF8427E",
        "",
        "what is this?",
    )
    assert (loaded["accepted"], loaded["rejected"]) == (6, 1)
    assert loaded["examples"] == [
        {"what": "line 9: what is this?", "why": "it is no address, network, domain, URL or hash"}
    ]
    expected = {
        "203.0.113.7": "exact",
        "203[.]0.113.7": "exact",
        "198.51.100.200": "network",
        "198.51.100.128/25": "network",
        "198.51.0.0/16": "inside",
        "203.0.113.0/30": None,
        "203.0.113.0/24": "inside",
        "2001:db8:1::5": "network",
        "WWW.evil.example": "suffix",
        "notevil.example": None,
        "https://a.evil.example/login": "host",
        "http://198.51.100.3/": "host",
        "http://bad.example/x": "exact",
        "http://bad.example/y": None,
        "bad.example": None,
        "d41d8cd98f00b204e9800998ecf8427e": "exact",
        "192.0.2.1": None,
    }
    for found, (value, how) in zip(client.look(*expected), expected.items(), strict=True):
        assert found["value"] == value
        assert [match["how"] for match in found.get("matches", [])] == ([how] if how else []), value
        assert found["verdict"] == ("malicious" if how else "unknown"), value
    (bad,) = client.look("nonsense")
    assert bad["verdict"] == "unknown"
    assert bad["error"].startswith("cannot look it up: ")


def test_feeds_add_up_and_the_allow_list_has_the_last_word(client: Client) -> None:
    """Two doubtful feeds make a certain one; what is allowed is allowed, with what lies below it, and told why."""
    client.put("one", "203.0.113.7", "evil.example", query="?confidence=50")
    assert client.verdict("203.0.113.7") == "suspicious"
    client.put("two", "203.0.113.7", query="?confidence=50")
    (found,) = client.look("203.0.113.7")
    assert found["verdict"] == "malicious"
    assert (found["score"], sorted(found["feeds"])) == (75.0, ["one", "two"])
    assert client.call("PUT", "/allow/203.0.113.0/24?note=ours").status == 201
    assert client.call("POST", "/allow", {"values": ["EVIL.example"], "note": "no"}).status == 201
    (found,) = client.look("203.0.113.7")
    assert (found["verdict"], found["allowed_by"], len(found["feeds"])) == ("allowed", "203.0.113.0/24", 2)
    assert client.verdict("http://www.evil.example/") == "allowed"
    listed = client.call("GET", "/allow").json["allowed"]
    assert [(one["value"], one["note"]) for one in listed] == [("203.0.113.0/24", "ours"), ("evil.example", "no")]
    assert client.call("DELETE", "/allow/203.0.113.0/24").status == 204
    assert client.call("DELETE", "/allow/203.0.113.0/24").error["status"] == 404
    assert client.verdict("203.0.113.7") == "malicious"


def test_a_feed_is_replaced_or_added_to(client: Client) -> None:
    """PUT is all of it, POST is more; who stays keeps the time since when it is listed."""
    client.put("list", "203.0.113.1", "203.0.113.2")
    first_s = client.look("203.0.113.1")[0]["first_s"]
    assert client.put("list", "203.0.113.3", method="POST")["removed"] == 0
    replaced = client.put("list", "203.0.113.1", "203.0.113.4")
    assert replaced["removed"] == 2
    verdicts = [one["verdict"] for one in client.look("203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4")]
    assert verdicts == ["malicious", "unknown", "unknown", "malicious"]
    (kept,) = client.look("203.0.113.1")
    assert kept["first_s"] == first_s < kept["last_s"]
    page = client.call("GET", "/feeds/list/values?limit=1", token=False)
    assert page.body == b"203.0.113.1\n"
    assert page.headers["link"] == '<?limit=1&after=203.0.113.1>; rel="next"'
    assert client.call("GET", "/feeds/list/values?limit=1&after=203.0.113.1").body == b"203.0.113.4\n"
    described = client.call("GET", "/feeds/list").json
    assert (described["values"], described["kind"], described["hits"]) == (2, "list", 4)
    assert client.call("DELETE", "/feeds/list").status == 204
    assert client.verdict("203.0.113.1") == "unknown"
    assert [feed["name"] for feed in client.call("GET", "/feeds").json["feeds"]] == ["inbox"]


def test_a_bundle_is_indexed_by_its_patterns(client: Client) -> None:
    """By its newest version; revoked, expired and intricate ones are kept, and match nothing."""
    technique = {
        "type": "attack-pattern", "spec_version": "2.1", "id": stix_id("attack-pattern"), "name": "Brute Force",
        "created": "2026-01-01T00:00:00Z", "modified": "2026-01-01T00:00:00Z",
        "external_references": [{"source_name": "mitre-attack", "external_id": "T1110", "url": "https://x.example/T1110"}],
        "kill_chain_phases": [{"kill_chain_name": "mitre-attack", "phase_name": "credential-access"}],
    }  # fmt: skip
    malware = {
        "type": "malware", "spec_version": "2.1", "id": stix_id("malware"), "name": "Worm", "is_family": True,
        "created": "2026-01-01T00:00:00Z", "modified": "2026-01-01T00:00:00Z",
    }  # fmt: skip

    def relation(kind: str, source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "relationship", "spec_version": "2.1", "id": stix_id("relationship"), "relationship_type": kind,
            "source_ref": source["id"], "target_ref": target["id"],
            "created": "2026-01-01T00:00:00Z", "modified": "2026-01-01T00:00:00Z",
        }  # fmt: skip

    one = indicator("[ipv4-addr:value = '203.0.113.7' OR domain-name:value = 'evil.example']", confidence=90)
    two = indicator("[url:value = 'http://bad.example/x']", modified=when(-22 * 86_400), created=when(-30 * 86_400))
    old = indicator("[ipv4-addr:value = '203.0.113.8']", valid_until=when(-30))
    intricate = indicator("[file:name = 'x' AND file:size > 10]")
    sent: list[dict[str, Any]] = [technique, malware, one, two, old, intricate]
    sent += [relation("indicates", one, technique), relation("indicates", two, malware)]
    sent.append(relation("uses", malware, technique))
    answer = client.call("PUT", "/feeds/stix", bundle(*sent))
    assert answer.status == 201, answer.body
    assert (answer.json["accepted"], answer.json["indexed"], answer.json["not_indexed"]) == (9, 4, 1)
    found = client.look("203.0.113.7", "www.evil.example", "http://bad.example/x", "203.0.113.8")
    assert [value["verdict"] for value in found] == ["malicious"] * 2 + ["suspicious", "unknown"]
    assert found[0]["matches"][0]["indicator"] == one["id"]
    assert [value.get("techniques") for value in found[:3]] == [[{"id": "T1110", "name": "Brute Force"}]] * 3
    described = client.call("GET", "/techniques/t1110").json
    assert (described["tactics"], described["indicators"]) == (["credential-access"], 1)
    assert described["related"] == [{"relationship": "uses", "type": "malware", "name": "Worm"}]
    assert client.call("GET", "/techniques/T9999").error["status"] == 404
    # A newer version moves the indicator, and a revoked one takes it away.
    moved = one | {"modified": when(-20), "pattern": "[ipv4-addr:value = '203.0.113.9']"}
    assert client.call("POST", "/feeds/stix", bundle(moved)).status == 201
    assert [value["verdict"] for value in client.look("203.0.113.7", "203.0.113.9")] == ["unknown", "malicious"]
    assert client.call("POST", "/feeds/stix", bundle(one)).status == 201  # late, and older
    assert client.verdict("203.0.113.7") == "unknown"
    gone = moved | {"modified": when(-10), "revoked": True}
    assert client.call("POST", "/feeds/stix", bundle(gone)).status == 201
    assert client.verdict("203.0.113.9") == "unknown"


def test_what_was_loaded_is_there_after_a_restart(tmp_path: Path) -> None:
    """Feeds, allow-list, sightings and verdicts."""
    with serving(tmp_path / "state") as (client, _):
        client.put("list", "203.0.113.1", "198.51.100.0/24", "evil.example", query="?half_life_s=3600")
        client.call("PUT", "/allow/192.0.2.0/24")
        client.call("POST", "/sightings", {"value": "203.0.113.1", "seen_by": "sshd", "id": "mine"})
        client.judge("evil.example", is_true=False)
        before = client.look("203.0.113.1", "198.51.100.1", "a.evil.example", "192.0.2.9")
        feeds = client.call("GET", "/feeds").json["feeds"]
    with serving(tmp_path / "state") as (client, _):
        after = client.look("203.0.113.1", "198.51.100.1", "a.evil.example", "192.0.2.9")
        assert [{**one, "event": 0} for one in after] == [{**one, "event": 0} for one in before]
        assert client.call("POST", "/sightings", {"value": "203.0.113.1", "id": "mine"}).json["known"] == 1
        again = client.call("GET", "/feeds").json["feeds"]
        assert [one | {"hits": 0, "malicious": 0} for one in again] == [
            one | {"hits": 0, "malicious": 0} for one in feeds
        ]


# -- sightings and verdicts -----------------------------------------------------------------------------------


def test_sightings_are_kept_once_and_told(served: tuple[Client, Intel]) -> None:
    """With the score that they had, with their cause; sent again under the same id, they are the same."""
    client, intel = served
    told: list[tuple[str, str, str | None]] = []

    def emit(facts: Any, text: str, *, cause: str | None = None, id: str | None = None) -> str:
        told.append((facts.value, text, cause))
        return id or "x"

    intel.emit = emit
    client.put("list", "203.0.113.7")
    sent = {"value": "203.0.113.7", "seen_by": "sshd", "count": 4, "at_s": 1e9, "cause": "c1", "id": "s1"}
    several = {"sightings": [sent, {"value": "192.0.2.1"}]}
    kept = client.call("POST", "/sightings", sent)
    assert kept.status == 201
    (one,) = kept.json["sightings"]
    assert (one["number"], one["count"], one["verdict"], one["cause"], one["event"]) == (1, 4, "malicious", "c1", "s1")
    assert client.call("POST", "/sightings", several).json["known"] == 1
    assert told == [
        ("203.0.113.7", "203.0.113.7 seen by sshd, listed by list", "c1"),
        ("192.0.2.1", "192.0.2.1 seen, listed by nobody", None),
    ]
    page = client.call("GET", "/sightings?limit=1", token=False).json
    assert page["next"] == "?limit=1&after=1"
    assert [one["value"] for one in client.call("GET", "/sightings?limit=1&after=1").json["sightings"]] == ["192.0.2.1"]
    assert len(client.call("GET", "/sightings?value=203.0.113[.]7").json["sightings"]) == 1
    client.call("PUT", "/allow/192.0.2.1")
    assert client.call("POST", "/sightings", {"value": "192.0.2.1"}).json["sightings"][0]["event"] is None
    assert len(told) == 2


def test_malicious_look_ups_are_told_now_and_then(served: tuple[Client, Intel]) -> None:
    """With the cause that the client gives; the same value not again at once; to a web page's client not at all."""
    client, intel = served
    told: list[tuple[str, int, str | None]] = []

    def emit(facts: Any, text: str, *, cause: str | None = None, id: str | None = None) -> str:
        told.append((facts.value, facts.count, cause))
        return id or "x"

    intel.emit = emit
    client.put("list", "203.0.113.7", "203.0.113.8")
    page = {"Origin": "http://evil.example"}
    assert client.call("POST", "/correlate", {"values": ["203.0.113.8"]}, **page).status == 200
    assert told == []
    (first,) = client.look("203.0.113.7", cause="c1", seen_by="proxy")
    (second,) = client.look("203.0.113.7")
    assert first["event"]
    assert "event" not in second
    assert told == [("203.0.113.7", 1, "c1")]


def test_many_malicious_look_ups_at_once_flood_nobody(served: tuple[Client, Intel]) -> None:
    """All are answered, some are told, the rest is counted."""
    client, intel = served
    told: list[str] = []

    def emit(facts: Any, text: str, *, cause: str | None = None, id: str | None = None) -> str:
        told.append(facts.value)
        return id or "x"

    intel.emit = emit
    values = [f"10.0.{n // 250}.{n % 250}" for n in range(1_500)]
    client.put("list", *values)
    answers = intel.correlator.correlate(values)
    assert {one.verdict for one in answers} == {"malicious"}
    intel.notice(answers, "", None)
    assert (len(told), intel.untold) == (TOLD_AT_ONCE, len(values) - TOLD_AT_ONCE)


def test_verdicts_count_for_those_who_list_the_value(client: Client) -> None:
    """For all of them, or for one; the last word on a value counts, once."""
    client.put("one", "203.0.113.7", "203.0.113.8")
    client.put("two", "203.0.113.0/24")
    client.judge("203.0.113.7", is_true=False, judged_by="me")
    client.judge("203.0.113.7", is_true=False)
    client.judge("203.0.113.8", is_true=True, feed="one")
    feeds = {feed["name"]: feed for feed in client.call("GET", "/feeds").json["feeds"]}
    assert [(feeds[name]["true_positives"], feeds[name]["false_positives"]) for name in ("one", "two")] == [
        (1, 1),
        (0, 1),
    ]
    assert feeds["two"]["precision"] == pytest.approx(4 / 6, abs=1e-3)
    client.judge("203.0.113.7", is_true=True)
    assert client.call("GET", "/feeds/one").json["false_positives"] == 0
    unlisted = client.call("POST", "/verdicts", {"value": "192.0.2.1", "verdict": "true_positive"})
    assert unlisted.json == {"value": "192.0.2.1", "feeds": []}
    assert client.call("POST", "/verdicts", {"value": "192.0.2.1", "verdict": "maybe"}).error["status"] == 400


def test_the_stream(served: tuple[Client, Intel]) -> None:
    """Whoever watches gets every sighting; too many watchers are turned away, one that goes away is forgotten."""
    client, intel = served
    client.put("list", "203.0.113.7")
    url = f"ws://127.0.0.1:{client.port}/ws/stream"

    async def watch() -> list[dict[str, Any]]:
        async with websockets.connect(url) as first, websockets.connect(url) as second:
            with pytest.raises(websockets.exceptions.WebSocketException):
                async with websockets.connect(url) as third:
                    await third.recv()
            await asyncio.to_thread(client.look, "203.0.113.7")
            await asyncio.to_thread(client.call, "POST", "/sightings", {"value": "192.0.2.1"})
            both = [json.loads(await one.recv()) for one in (first, second) for _ in range(2)]
            assert both[:2] == both[2:]
            return both[:2]

    told = asyncio.run(asyncio.wait_for(watch(), 60))
    assert [(one["value"], one["verdict"]) for one in told] == [("203.0.113.7", "malicious"), ("192.0.2.1", "unknown")]
    until(lambda: len(intel.watchers) == 0, what="those who left are forgotten")


def test_a_watcher_that_does_not_read_is_let_go(served: tuple[Client, Intel]) -> None:
    """It costs what the limit says, and the others nothing."""
    _, intel = served
    waiting = intel.watchers.join()
    assert waiting is not None
    for _ in range(SMALL.watcher_waiting + 5):
        intel.watchers.tell(b"{}")
    assert (len(intel.watchers), intel.watchers.let_go) == (0, 1)
    assert waiting.qsize() == SMALL.watcher_waiting + 1


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/feeds/x", b"192.0.2.1"),
        ("POST", "/feeds/x", b"192.0.2.1"),
        ("DELETE", "/feeds/inbox", None),
        ("PUT", "/allow/192.0.2.1", None),
        ("POST", "/allow", {"values": ["192.0.2.1"]}),
        ("DELETE", "/allow/192.0.2.1", None),
        ("POST", "/sightings", {"value": "192.0.2.1"}),
        ("POST", "/verdicts", {"value": "192.0.2.1", "verdict": "true_positive"}),
    ],
)
def test_writing_needs_the_token(client: Client, method: str, path: str, body: Any) -> None:
    """Without it, or with another, nothing is changed."""
    assert client.call(method, path, body, token=False).error["status"] == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert client.call(method, path, body, token=False, **wrong).error["status"] == 401
    assert [feed["name"] for feed in client.call("GET", "/feeds").json["feeds"]] == ["inbox"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "what"),
    [
        ("POST", "/correlate", b"", 400, "JSON"),
        ("POST", "/correlate", b"\xff\xfe", 400, "JSON"),
        ("POST", "/correlate", b"[" * 40_000, 400, "JSON"),
        ("POST", "/correlate", {"values": [1]}, 400, "JSON"),
        ("POST", "/correlate", {"values": [], "extra": 1}, 400, "JSON"),
        ("POST", "/correlate", {"values": ["192.0.2.1"] * 101}, 413, "so many values"),
        ("POST", "/correlate", b" " * 50_001, 413, "so large a body"),
        ("PUT", "/feeds/a b", b"192.0.2.1", 400, "name"),
        ("PUT", "/feeds/x?confidence=101", b"192.0.2.1", 400, "confidence"),
        ("PUT", "/feeds/x?half_life_s=nan", b"192.0.2.1", 400, "half_life_s"),
        ("PUT", "/feeds/x", b"what\nis\nthis", 422, "find a value"),
        ("PUT", "/feeds/x", b"\xff" * 100, 422, "read the list"),
        ("PUT", "/feeds/x", b"x" * 200_001, 413, "so large a body"),
        ("PUT", "/feeds/x", b"{", 400, "JSON"),
        ("PUT", "/feeds/x", b'{"objects": [{"type": "x"}]}', 422, "any object"),
        ("PUT", "/feeds/inbox", b"192.0.2.1", 409, "put a list into this feed"),
        (
            "PUT",
            "/feeds/x",
            "\n".join(f"10.0.{n // 256}.{n % 256}" for n in range(2_001)).encode(),
            413,
            "so many values",
        ),
        ("GET", "/feeds/none", None, 404, "find this feed"),
        ("DELETE", "/feeds/none", None, 404, "find this feed"),
        ("GET", "/feeds/inbox/values?limit=x", None, 400, "limit"),
        ("PUT", "/allow/what", None, 422, "value"),
        ("POST", "/allow", {"values": [f"10.0.0.{n}" for n in range(21)]}, 409, "allow so many"),
        ("POST", "/sightings", {"value": "what"}, 422, "value"),
        ("POST", "/sightings", {"value": "192.0.2.1", "count": 0}, 400, "JSON"),
        ("POST", "/sightings", {"sightings": []}, 400, "JSON"),
        ("GET", "/nothing", None, 404, "path"),
        ("PATCH", "/feeds", None, 405, "path"),
    ],
)
def test_refusals(client: Client, method: str, path: str, body: Any, status: int, what: str) -> None:
    """Each says what cannot be, with the value and the limit; the service goes on as before."""
    reason = client.call(method, path.replace(" ", "%20"), body).error
    assert (reason["status"], what in reason["what"]) == (status, True), reason
    assert client.look("192.0.2.1")[0]["verdict"] == "unknown"


def test_feeds_are_bounded(client: Client) -> None:
    """In number; and a broken bundle changes nothing of the feed that it was for."""
    for number in range(SMALL.feeds - 1):
        client.put(f"feed-{number}", f"203.0.113.{number}")
    assert client.call("PUT", "/feeds/more", b"192.0.2.1").error["status"] == 409
    good = indicator("[ipv4-addr:value = '203.0.113.77']", confidence=90)
    assert client.call("DELETE", "/feeds/feed-0").status == 204
    assert client.call("PUT", "/feeds/stix", bundle(good)).status == 201
    many = bundle(*[indicator("[ipv4-addr:value = '192.0.2.1']") for _ in range(SMALL.objects)])
    assert client.call("PUT", "/feeds/stix", many).error["status"] == 413
    assert client.call("PUT", "/feeds/stix", {"objects": [{"id": "x"}]}).error["status"] == 422
    assert client.verdict("203.0.113.77") == "malicious"


def test_much_about_one_value(client: Client) -> None:
    """More matches and more inside a network than are shown are counted, and no more."""
    client.put("list", *[f"203.0.113.{n}" for n in range(20)])
    (found,) = client.look("203.0.113.0/24")
    assert (len(found["matches"]), found["matches_total"]) == (SMALL.matches, SMALL.inside + 1)
    assert (found["score"], found["verdict"]) == (80.0, "malicious")
