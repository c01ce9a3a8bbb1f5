"""TAXII 2.1, read and written by the clients of the field as they are: taxii2-client, and stix2 over it."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import stix2
from taxii2client.common import TokenAuth
from taxii2client.v21 import ApiRoot, Collection, Server

from services.threat_intel.limits import Limits
from tests.threat_intel.support import INBOX, Client, bundle, indicator, serving, stix_id, when

MEDIA_TYPE = "application/taxii+json;version=2.1"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A server of pages of ten."""
    with serving(tmp_path / "state", Limits(page=10, feed_bytes=1 << 20)) as (client, _):
        yield client


def server(client: Client, **more: Any) -> Server:
    """taxii2-client's, with the token as the password unless told otherwise."""
    return Server(f"{client.url}/taxii2/", **(more or {"user": "anyone", "password": client.token}))


def inbox(client: Client, **more: Any) -> Collection:
    """The collection that is there from the beginning."""
    (root,) = server(client, **more).api_roots
    return next(one for one in root.collections if one.title == INBOX)


def indicators(count: int) -> list[dict[str, Any]]:
    """So many, of different addresses."""
    return [indicator(f"[ipv4-addr:value = '198.51.100.{number}']", confidence=90) for number in range(1, count + 1)]


def test_discovery(client: Client) -> None:
    """Server, API root and collections are as the client wants them; who has no token may not write."""
    taxii = server(client)
    assert taxii.title == "cdn-threat-intel"
    root = taxii.default
    assert isinstance(root, ApiRoot)
    assert root.versions == [MEDIA_TYPE]
    assert root.max_content_length == 1 << 20
    client.call("PUT", "/feeds/partner", bundle(*indicators(1)))
    client.put("a-list", "203.0.113.7")
    collections = {one.title: one for one in root.collections}
    assert set(collections) == {INBOX, "partner"}
    assert (collections[INBOX].can_read, collections[INBOX].can_write) == (True, True)
    anonymous = Server(f"{client.url}/taxii2")
    assert [one.can_write for one in anonymous.api_roots[0].collections] == [False, False]
    assert [one["id"] for one in anonymous.api_roots[0].collections[1].get_objects()["objects"]]


@pytest.mark.parametrize("way", ["basic", "token", "bearer"])
def test_what_a_client_adds_is_correlated_and_read_back(client: Client, way: str) -> None:
    """By every way in which taxii2-client can send a token; the status says what became of each object."""

    class Bearer(requests.auth.AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {client.token}"
            return request

    ways: dict[str, dict[str, Any]] = {
        "basic": {"user": "x", "password": client.token},
        "token": {"auth": TokenAuth(client.token)},
        "bearer": {"auth": Bearer()},
    }
    collection = inbox(client, **ways[way])
    good, odd = indicators(1)[0], indicator("[file:name = 'x']")
    status = collection.add_objects({"objects": [good, odd, {"type": "indicator", "id": "indicator--1"}]})
    assert status.status == "complete"
    assert (status.total_count, status.success_count, status.failure_count, status.pending_count) == (3, 2, 1, 0)
    assert status.successes[1]["message"].startswith("stored; its pattern stands for no plain value")
    assert status.failures[0]["id"] == "indicator--1"
    assert "indicator--UUID" in status.failures[0]["message"]
    status.refresh()
    assert status.success_count == 2
    assert client.verdict("198.51.100.1") == "malicious"
    assert collection.get_object(good["id"])["objects"] == [good]
    assert [one["id"] for one in collection.get_objects()["objects"]] == [good["id"], odd["id"]]


def test_pages(client: Client) -> None:
    """By limit and next, and by polling from the last X-TAXII-Date-Added-Last: everything once, in the order added."""
    collection, sent = inbox(client), indicators(25)
    for start in range(0, 25, 5):
        collection.add_objects({"objects": sent[start : start + 5]})
    found: list[str] = []
    page = collection.get_objects(limit=4)
    while True:
        found += [one["id"] for one in page["objects"]]
        if not page.get("more"):
            break
        page = collection.get_objects(limit=4, next=page["next"])
    assert found == [one["id"] for one in sent]
    assert len(collection.get_objects(limit=1000)["objects"]) == 10  # the server's limit
    polled: list[str] = []
    query = {"limit": "7"}
    while True:
        answer = requests.get(
            collection.objects_url,
            params=query,
            headers={"Accept": MEDIA_TYPE},
            timeout=30,
        )
        objects = answer.json().get("objects", [])
        if not objects:
            assert answer.json() == {}
            assert "X-TAXII-Date-Added-Last" not in answer.headers
            break
        polled += [one["id"] for one in objects]
        assert answer.headers["X-TAXII-Date-Added-First"] <= answer.headers["X-TAXII-Date-Added-Last"]
        query["added_after"] = answer.headers["X-TAXII-Date-Added-Last"]
    assert polled == found


def test_versions_and_filters(client: Client) -> None:
    """By id, type, version and spec_version; the manifest says the same without the objects."""
    collection = inbox(client)
    old, other = indicators(2)
    new = old | {"modified": when(-5), "name": "newer"}
    tool = {
        "type": "tool", "spec_version": "2.1", "id": stix_id("tool"), "name": "x",
        "created": when(-100), "modified": when(-100),
    }  # fmt: skip
    unversioned = {"type": "ipv4-addr", "spec_version": "2.1", "id": stix_id("ipv4-addr"), "value": "192.0.2.1"}
    collection.add_objects({"objects": [old, other, tool, unversioned]})
    collection.add_objects({"objects": [new, other, unversioned]})  # other and unversioned are known

    def found(**filters: Any) -> list[tuple[str, str | None]]:
        return [(one["id"], one.get("modified")) for one in collection.get_objects(**filters).get("objects", [])]

    latest = [other, tool, unversioned, new]
    assert found() == [(one["id"], one.get("modified")) for one in latest]
    assert found(type="tool") == [(tool["id"], tool["modified"])]
    assert found(type=["tool", "indicator"], version="first") == [
        (one["id"], one["modified"]) for one in (old, other, tool)
    ]
    assert found(id=old["id"], version="all") == [(old["id"], old["modified"]), (new["id"], new["modified"])]
    assert found(id=[old["id"], tool["id"]], version=old["modified"]) == [(old["id"], old["modified"])]
    assert found(spec_version="2.0") == []
    assert len(found(spec_version="2.1")) == 4
    assert collection.object_versions(old["id"])["versions"] == [old["modified"], new["modified"]]
    manifest = collection.get_manifest(version="all")["objects"]
    assert [one["id"] for one in manifest] == [one["id"] for one in (old, other, tool, unversioned, new)]
    assert {one["media_type"] for one in manifest} == {"application/stix+json;version=2.1"}
    assert manifest[0]["version"] == old["modified"]
    assert manifest[0]["date_added"] < manifest[-1]["date_added"]


def test_deleting(client: Client) -> None:
    """A version, and the one before counts again; the rest, and nothing is left of it."""
    collection = inbox(client)
    (old,) = indicators(1)
    new = old | {"modified": when(-5), "pattern": "[ipv4-addr:value = '198.51.100.99']"}
    collection.add_objects({"objects": [old]})
    collection.add_objects({"objects": [new]})
    assert [client.verdict(f"198.51.100.{last}") for last in (1, 99)] == ["unknown", "malicious"]
    collection.delete_object(new["id"], version=new["modified"])
    assert [client.verdict(f"198.51.100.{last}") for last in (1, 99)] == ["malicious", "unknown"]
    assert collection.get_object(old["id"])["objects"] == [old]
    collection.delete_object(old["id"])
    assert client.verdict("198.51.100.1") == "unknown"
    with pytest.raises(requests.HTTPError, match="404"):
        collection.get_object(old["id"])


def test_stix2_reads_it(client: Client) -> None:
    """The library's own TAXII source; and what is given out parses as what went in."""
    collection = inbox(client)
    made = stix2.Indicator(pattern="[ipv4-addr:value = '203.0.113.7']", pattern_type="stix", confidence=95)
    sink = stix2.TAXIICollectionStore(collection)
    sink.add(made)
    assert client.verdict("203.0.113.7") == "malicious"
    assert sink.get(made.id) == made
    assert sink.query([stix2.Filter("type", "=", "indicator")]) == [made]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/taxii2/", {"Accept": "application/json"}, 406),
        ("GET", "/taxii2/", {"Accept": "application/taxii+json;version=2.0"}, 406),
        ("GET", "/taxii2/intel/collections/none/", {}, 404),
        ("GET", "/taxii2/intel/status/none/", {}, 404),
        ("GET", f"/taxii2/intel/collections/{INBOX}/objects/none/", {}, 404),
        ("GET", f"/taxii2/intel/collections/{INBOX}/objects/?limit=0", {}, 400),
        ("GET", f"/taxii2/intel/collections/{INBOX}/objects/?next=x", {}, 400),
        ("GET", f"/taxii2/intel/collections/{INBOX}/objects/?added_after=yesterday", {}, 400),
        ("GET", f"/taxii2/intel/collections/{INBOX}/objects/?match[version]=newest", {}, 400),
        ("GET", f"/taxii2/intel/collections/{INBOX}/objects/?match[name]=x", {}, 400),
        ("POST", f"/taxii2/intel/collections/{INBOX}/objects/", {"Content-Type": MEDIA_TYPE}, 401),
        ("DELETE", f"/taxii2/intel/collections/{INBOX}/objects/x/", {}, 401),
    ],
)
def test_refusals(client: Client, method: str, path: str, headers: dict[str, str], status: int) -> None:
    """In the form of TAXII's error message."""
    answer = requests.request(
        method, client.url + path, headers=headers, data=b"{}" if method == "POST" else None, timeout=30
    )
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == MEDIA_TYPE
    message = answer.json()
    assert message["title"].startswith("cannot ")
    assert message["http_status"] == str(status)
    if status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b'{"objects": []}', 415),
        ("application/taxii+json;version=2.0", b"{}", 415),
        (MEDIA_TYPE, b"{", 400),
        (MEDIA_TYPE, b"{}", 422),
        (MEDIA_TYPE, b'{"objects": 1}', 400),
        (MEDIA_TYPE, b"x" * ((1 << 20) + 1), 413),
    ],
)
def test_what_cannot_be_added(client: Client, content_type: str, body: bytes, status: int) -> None:
    """Nothing of it was stored."""
    login = "Basic " + base64.b64encode(f"x:{client.token}".encode()).decode()
    url = f"{client.url}/taxii2/intel/collections/{INBOX}/objects/"
    answer = requests.post(url, data=body, headers={"Content-Type": content_type, "Authorization": login}, timeout=30)
    assert (answer.status_code, answer.json()["http_status"]) == (status, str(status))
    assert inbox(client).get_objects() == {}


def test_behind_a_proxy(client: Client) -> None:
    """The API root that is told is the one that the client can reach."""
    headers = {
        "X-Forwarded-Prefix": "/intel",
        "X-Forwarded-Host": "gateway.example:18600",
        "X-Forwarded-Proto": "https",
    }
    found = client.call("GET", "/taxii2/", **headers).json
    assert found["default"] == "https://gateway.example:18600/intel/taxii2/intel/"


def test_objects_that_cannot_be_are_refused_one_by_one(client: Client) -> None:
    """Each with its reason; the good one among them is stored."""
    good = indicators(1)[0]
    bad: list[tuple[dict[str, Any], str]] = [
        (good | {"id": stix_id("indicator"), "pattern": "["}, "no STIX pattern"),
        (good | {"id": stix_id("tool")}, "its id is not of the form"),
        (good | {"id": stix_id("indicator"), "created": "yesterday"}, "no timestamp"),
        (good | {"id": stix_id("indicator"), "modified": when(-10 * 86_400)}, "modified before it was created"),
        (good | {"id": stix_id("indicator"), "confidence": 101}, "confidence"),
        (good | {"id": stix_id("indicator"), "spec_version": "3.0"}, "spec_version"),
        (
            {"type": "relationship", "id": stix_id("relationship"), "created": when(0), "modified": when(0)},
            "has no relation",
        ),
        (bundle(good), "a bundle is no object"),
        ({"type": "X", "id": "X--1"}, "no STIX type"),
        ({"id": stix_id("tool")}, "missing required field `type`"),
    ]
    missing = {name: value for name, value in good.items() if name != "valid_from"}
    bad.append((missing | {"id": stix_id("indicator")}, "it has no valid_from"))
    begun_s = time.monotonic()
    status = inbox(client).add_objects({"objects": [one for one, _ in bad] + [good]})
    assert (status.success_count, status.failure_count) == (1, len(bad))
    for failure, (_, why) in zip(status.failures, bad, strict=True):
        assert why in failure["message"]
    assert time.monotonic() - begun_s < 60
