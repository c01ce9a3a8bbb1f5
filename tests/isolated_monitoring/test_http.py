"""The monitor over HTTP: pings, checks by a foreign client, hostile input, and what every service answers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from healthchecks_io import CheckCreate, CheckUpdate
from healthchecks_io import Client as TheirClient

from services.isolated_monitoring.checks import BODY_BYTES
from services.isolated_monitoring.web import BODY_BYTES as REQUEST_BYTES
from services.isolated_monitoring.web import BODY_SKIPPED_BYTES, CONNECTIONS_MAX, HEAD_BYTES
from tests.isolated_monitoring.support import NAME, Client, monitoring
from tests.support import short_dir, until

NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A monitor that has nothing to watch."""
    with short_dir() as run_path, monitoring(run_path) as (client, _):
        yield client


def raw(client: Client, content: bytes, timeout_s: float = 30.0) -> bytes:
    """All that is answered to these bytes."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=timeout_s) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_what_every_service_has(client: Client) -> None:
    """/livez, /readyz, /metrics, /ooda and its mode."""
    assert client.get("/livez").json == {"alive": True, "phase": "serving"}
    assert client.get("/readyz").json["ready"] is True
    loop = client.get("/ooda").json
    keys = {
        "service",
        "instance",
        "mode",
        "phase",
        "period_s",
        "settle_s",
        "kept",
        "undone",
        "failed",
        "actions",
        "cycles",
    }
    assert set(loop) == keys
    for mode in ("shadow", "off", "on"):
        assert client.call("POST", "/ooda/mode", {"mode": mode}).json == {"mode": mode}
        assert client.get("/ooda").json["mode"] == mode
    assert client.call("POST", "/ooda/mode", {"mode": "odd"}).error["status"] == 400
    assert client.call("POST", "/ooda/mode", {"mode": "off"}, Origin="http://evil").error["status"] == 403
    assert client.call("GET", "/ooda/mode").error["status"] == 405
    assert client.get("/nothing").error["status"] == 404
    head = client.call("HEAD", "/api/status")
    assert (head.status, head.body) == (200, b"")


def test_metrics_for_prometheus(client: Client) -> None:
    """In its text format, and to promtool's liking where that is installed."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert f'cdn_service_ready{{service="{NAME}",instance_id="{NAME}"}} 1\n'.encode() in answer.body
    promtool = shutil.which("promtool")
    if promtool:
        subprocess.run([promtool, "check", "metrics"], input=answer.body, check=True, timeout=30)


def test_the_page(client: Client) -> None:
    """One file, which loads nothing from elsewhere."""
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b"http://" not in page.body
    assert b"https://" not in page.body


def test_curl_pings(client: Client) -> None:
    """As healthchecks.io tells people to."""
    check = client.make_check(name="nightly", timeout=60, grace=60)
    base = f"http://127.0.0.1:{client.port}/ping/{check['uuid']}"

    def curl(*arguments: str) -> str:
        command = ["curl", "-fsS", "-m", "10", "--retry", "5", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def state() -> tuple[str, int]:
        shown = client.order("GET", f"/api/v3/checks/{check['uuid']}").json
        return shown["status"], shown["n_pings"]

    assert state() == ("new", 0)
    assert curl(base) == "OK"
    assert state() == ("up", 1)
    assert curl("--data-raw", "it went wrong", f"{base}/fail") == "OK"
    assert state() == ("down", 2)
    assert client.get("/api/status").json["targets"][0]["reason"] == "it reported a failure"
    assert curl(f"{base}/0") == "OK"
    assert state() == ("up", 3)
    assert curl(f"{base}/17") == "OK"
    assert state() == ("down", 4)
    assert curl(f"{base}/log", "-d", "words") == "OK"
    assert state() == ("down", 5)
    rid = str(uuid.uuid4())
    assert curl(f"{base}/start?rid={rid}") == "OK"
    assert curl(f"{base}?rid={rid}", "-X", "POST") == "OK"
    pings = client.order("GET", f"/api/v3/checks/{check['uuid']}/pings/").json["pings"]
    kinds = [ping["type"] for ping in pings]
    assert kinds == ["success", "start", "log", "fail", "success", "fail", "success"]
    assert pings[0]["duration"] >= 0
    assert pings[3]["exit_status"] == 17
    body = client.call("GET", pings[5]["body_url"].partition(str(client.port))[2], X_Api_Key=client.token)
    assert body.body == b"it went wrong"
    flips = client.order("GET", f"/api/v3/checks/{check['uuid']}/flips/").json["flips"]
    assert [flip["up"] for flip in flips] == [1, 0, 1, 0, 1]


def test_refused_pings(client: Client) -> None:
    """Unknown, ambiguous or malformed ones say so, and change nothing."""
    check = client.make_check(name="twice", slug="twice")
    client.make_check(name="twice", slug="twice")
    key = (client.run_path / f"{NAME}.ping-key").read_text().strip()
    expected = {
        f"/ping/{NOBODY}": 404,
        "/ping/": 404,
        "/ping/word": 404,
        f"/ping/{check['uuid']}/256": 400,
        f"/ping/{check['uuid']}/end": 400,
        f"/ping/{check['uuid']}/fail/more": 400,
        f"/ping/{check['uuid']}?rid=word": 400,
        f"/ping/{key}/twice": 409,
        f"/ping/{key}/never": 404,
        "/ping/wrong-key/twice": 404,
    }
    assert {path: client.get(path).status for path in expected} == expected
    assert client.call("DELETE", f"/ping/{check['uuid']}").status == 405
    assert client.order("GET", f"/api/v3/checks/{check['uuid']}").json["n_pings"] == 0
    assert client.get(f"/ping/{key}/fresh?create=1").status == 201
    assert client.get(f"/ping/{key}/fresh/fail").status == 200


def test_bodies_are_bounded(client: Client) -> None:
    """Of a ping 10 kB are kept and a megabyte is read; more is refused, chunked or not. Orders have 64 KiB."""
    check = client.make_check(name="wordy")
    path = f"/ping/{check['uuid']}"
    answer = client.call("POST", path, b"x" * 900_000)
    assert (answer.status, answer.headers["ping-body-limit"]) == (200, str(BODY_BYTES))
    kept = client.order("GET", f"/api/v3/checks/{check['uuid']}/pings/1/body")
    assert kept.body == b"x" * BODY_BYTES
    assert client.call("POST", path, b"x" * (BODY_SKIPPED_BYTES + 1)).error["limit"] == BODY_SKIPPED_BYTES
    assert client.order("POST", "/api/v3/checks/", b"x" * (REQUEST_BYTES + 1)).error["status"] == 413
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    assert raw(client, head + b"5\r\nhello\r\n0\r\n\r\n").endswith(b"OK")
    assert b" 413 " in raw(client, head + b"fffffff\r\n")
    assert b" 400 " in raw(client, head + b"zz\r\n")


def test_nothing_is_changed_without_the_token(client: Client) -> None:
    """401 for who has none, or a wrong one; the files are private."""
    for path in ("/api/v3/checks/", "/api/maintenance"):
        assert client.call("POST", path, {"name": "x"}).error["status"] == 401
        assert client.call("POST", path, {"name": "x"}, X_Api_Key="wrong").error["status"] == 401
    assert client.call("POST", "/api/v1/checks/", {"name": "by body", "api_key": client.token}).status == 201
    for name in (f"{NAME}.token", f"{NAME}.ping-key"):
        assert (client.run_path / name).stat().st_mode & 0o777 == 0o600


def test_a_page_of_another_site_reads_and_changes_nothing(client: Client) -> None:
    """Neither under a name that was made to point here, nor by a form, nor by an image: GET pings too."""
    check = client.make_check(name="pinged")
    ping = f"/ping/{check['uuid']}"
    for path in ("/", "/api/status", "/metrics", "/ooda", ping):
        assert client.call("GET", path, Host="evil.example").error["status"] == 421
    assert client.call("GET", "/livez", Host="evil.example").status == 200
    evil = {"Origin": "https://evil.example"}
    for method in ("GET", "POST"):
        assert client.call(method, ping, **evil).error["status"] == 403
    assert client.call("GET", ping, Sec_Fetch_Site="cross-site").error["status"] == 403
    assert client.call("POST", "/api/maintenance", {}, X_Api_Key=client.token, **evil).error["status"] == 403
    assert client.order("GET", f"/api/v3/checks/{check['uuid']}").json["n_pings"] == 0
    assert "access-control-allow-origin" not in client.call("GET", "/api/status", **evil).headers
    own = {"Origin": f"http://127.0.0.1:{client.port}", "Sec_Fetch_Site": "same-origin"}
    assert client.call("POST", ping, **own).status == 200
    assert client.call("GET", ping, Sec_Fetch_Site="none").status == 200  # typed into the address bar
    twice = b"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n"
    assert b" 400 " in raw(client, twice)


@pytest.mark.parametrize("what", ['"\\ud800"', "NaN", "1e999", "-Infinity"])
def test_what_could_not_be_answered_is_not_taken(client: Client, what: str) -> None:
    """Else the state would be a 500 for everybody, for as long as it is kept."""
    body = f'{{"target": "*", "for_s": 1, "reason": {what}}}'.encode()
    assert client.order("POST", "/api/maintenance", body).error["status"] == 400
    assert client.call("POST", "/api/v1/checks/", f'{{"api_key": {what}}}'.encode()).error["status"] == 400
    assert client.get("/api/status").status == 200


def test_a_proxys_name_is_told(run_path: Path) -> None:
    """CDN_HOSTS, as of every service."""
    with monitoring(run_path, CDN_HOSTS="watch.example") as (client, _):
        assert client.call("GET", "/api/status", Host="watch.example").status == 200
        assert client.call("GET", "/api/status", Host="evil.example").error["status"] == 421


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: x\r\n\r\n",
        b"POST /ooda/mode HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /ooda/mode HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /ooda/mode HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /ooda/mode HTTP/1.1\r\nContent-Length: 4\r\n\r\n\xff\xfe{}",
        b"POST /ooda/mode HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]",
        b"POST /ooda/mode HTTP/1.1\r\nContent-Length: 20000\r\n\r\n" + b"[" * 20000,
        b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET http://[x/ HTTP/1.1\r\n\r\n",
        b"POST /ooda/mode HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a" * (2 * HEAD_BYTES) + b"\r\n",
    ],
)
def test_garbage(client: Client, content: bytes) -> None:
    """Refused with a reason, and the monitor lives."""
    answer = raw(client, content)
    status = int(answer.split()[1])
    assert 400 <= status < 500, answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["what"].startswith("cannot ")
    assert client.get("/livez").status == 200


def test_many_who_say_nothing(client: Client) -> None:
    """Idle connections make room for who has something to say."""
    silent = [socket.create_connection(("127.0.0.1", client.port), timeout=30) for _ in range(CONNECTIONS_MAX + 20)]
    try:
        assert client.get("/livez").status == 200
    finally:
        for each in silent:
            each.close()


def test_keep_alive_and_pipelining(client: Client) -> None:
    """Several requests on one connection, each answered in its turn."""
    one = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    assert raw(client, one * 3).count(b"HTTP/1.1 200 OK") == 3


def test_any_header_may_come(client: Client) -> None:
    """Also one named Version, which says nothing of HTTP's."""
    answer = raw(client, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nVersion: 2\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: keep-alive" in answer


def test_a_client_of_healthchecks_io(client: Client) -> None:
    """PyPI's healthchecks-io, which only knows the address: make, find, change, ping, pause, delete."""
    base = f"http://127.0.0.1:{client.port}"
    key = (client.run_path / f"{NAME}.ping-key").read_text().strip()
    for version in (1, 2, 3):
        theirs = TheirClient(
            api_key=client.token, ping_key=key, api_url=f"{base}/api/", ping_url=f"{base}/ping/", api_version=version
        )
        name = f"backup {version}"
        wish = {"name": name, "tags": "prod db", "desc": "d", "schedule": "5 4 * * *", "tz": "Europe/Riga", "grace": 60}
        order = CheckCreate.model_validate(wish | {"unique": ["name"]})
        made = theirs.create_check(order)
        assert made.uuid
        assert (made.name, made.slug, made.status) == (name, f"backup-{version}", "new")
        assert theirs.create_check(order).uuid == made.uuid
        assert [each.uuid for each in theirs.get_checks(tags=["db"]) if each.name == name] == [made.uuid]
        assert theirs.success_ping(uuid=made.uuid) == (True, "OK")
        assert theirs.start_ping(slug=f"backup-{version}") == (True, "OK")
        assert theirs.fail_ping(uuid=made.uuid, data="broke") == (True, "OK")
        assert theirs.exit_code_ping(0, uuid=made.uuid) == (True, "OK")
        assert theirs.get_check(made.uuid).status == "up"
        assert [ping.type for ping in theirs.get_check_pings(made.uuid)] == ["success", "fail", "start", "success"]
        if version == 1:
            assert [flip.up for flip in theirs.get_check_flips(made.uuid)] == [1, 0, 1]
        changed = theirs.update_check(made.uuid, CheckUpdate.model_validate({"timeout": 120, "grace": 120}))
        assert (changed.timeout, changed.grace) == (120, 120)
        assert theirs.pause_check(made.uuid).status == "paused"
        assert theirs.delete_check(made.uuid).uuid == made.uuid
        assert name not in [each.name for each in theirs.get_checks()]


def test_a_deadline_passes(client: Client) -> None:
    """Down when it was not heard in time; one incident, over when it is heard again."""
    check = client.make_check(name="beat", timeout=1, grace=1)
    client.get(f"/ping/{check['uuid']}")

    def incidents() -> list[str]:
        return [each["root"] for each in client.get("/api/status").json["incidents"] if each["told"]]

    until(lambda: "check beat" in incidents(), what="the incident")
    assert client.order("GET", f"/api/v3/checks/{check['uuid']}").json["status"] == "down"
    client.order("POST", f"/api/v3/checks/{check['uuid']}", {"timeout": 3600})
    client.get(f"/ping/{check['uuid']}")
    until(lambda: "check beat" not in incidents(), what="it is over")


@pytest.mark.parametrize("limit", ["0", "201", "%C2%B2", "9" * 5000, "-1", "x"])
def test_a_limit_that_is_none(client: Client, limit: str) -> None:
    """Is refused as such: also a digit that is no number, and a number that Python takes for too long."""
    assert client.call("GET", f"/api/incidents?limit={limit}").error["status"] == 400
    assert client.get("/api/incidents?limit=200").status == 200


def test_maintenance_by_http(client: Client) -> None:
    """A window is made, shown, kept to its bounds, and ended."""
    wrong: list[dict[str, object]] = [{}, {"target": "x"}, {"target": "x", "for_s": 0}, {"target": 1, "for_s": 9}]
    for wish in wrong:
        assert client.order("POST", "/api/maintenance", wish).error["status"] == 400
    made = client.order("POST", "/api/maintenance", {"target": "cdn-*", "for_s": 600, "reason": "moving"}).json
    assert made in client.get("/api/maintenance").json["maintenance"]
    assert client.order("DELETE", f"/api/maintenance/{made['id']}").status == 200
    assert client.order("DELETE", f"/api/maintenance/{made['id']}").error["status"] == 404


def test_many_at_once(client: Client, tmp_path: Path) -> None:
    """Two hundred pings side by side are all counted."""
    check = client.make_check(name="busy")
    urls = "".join(
        f'url = "http://127.0.0.1:{client.port}/ping/{check["uuid"]}"\noutput = "/dev/null"\n' for _ in range(200)
    )
    config = tmp_path / "curl.conf"
    config.write_text(urls)
    subprocess.run(["curl", "-fsS", "-Z", "--parallel-max", "20", "-K", str(config)], check=True, timeout=60)
    assert client.order("GET", f"/api/v3/checks/{check['uuid']}").json["n_pings"] == 200
