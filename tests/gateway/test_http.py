"""HTTP through a real gateway to scripted instances: what each side sees, byte for byte."""

from __future__ import annotations

import gzip
import threading

import pytest

from bus.messages import HealthStatus, LifecyclePhase
from tests.gateway.sockets import Peer, Script, dead_address, echoing_heads, ok
from tests.gateway.support import Fleet, status_of
from tests.support import until


def test_path_and_query_arrive_unchanged(fleet: Fleet) -> None:
    """The instance sees what followed the prefix, with every escape and double slash as it was sent."""
    with fleet.instance("paths", echoing_heads):
        for rest in ("/", "/a//b%2Fc;x=1?y=%20&z=a/b?c", "//x", "/a%2525", "/%C3%A9?", "/a:b@c!$&'()*+,="):
            answer = fleet.ask("GET", f"/paths{rest}")
            assert answer.body.split()[1].decode() == rest.removesuffix("?")
        assert fleet.ask("GET", "/paths").body.split()[1] == b"/"
        assert fleet.ask("GET", "/paths?q").body.split()[1] == b"/?q"


def test_forwarding_headers_cannot_be_spoofed(fleet: Fleet) -> None:
    """The instance is told the client's real address and nothing that the client says of forwarding."""
    with fleet.instance("spoof", echoing_heads):
        lies = ("X-Forwarded-For: 6.6.6.6", "X_Forwarded_For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6")
        more = ("X-Forwarded-Host: evil", "X-Forwarded-Proto: https", "X-Forwarded-Prefix: /evil")
        head = fleet.ask("GET", "/spoof/x", *lies, *more, "X-Mine: kept").body.decode().lower()
        assert "6.6.6.6" not in head
        assert "evil" not in head
        for line in ("x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-forwarded-host: gateway.test"):
            assert f"\r\n{line}\r\n" in head
        for line in ("x-forwarded-prefix: /spoof", "via: 1.1 gateway-primary", "x-mine: kept"):
            assert f"\r\n{line}\r\n" in head


def test_hop_by_hop_headers_end_at_the_gateway_both_ways(fleet: Fleet) -> None:
    """Neither side sees the other's Connection, what it nominates, or the rest of RFC 9110 §7.6.1."""

    def script(peer: Peer) -> None:
        while head := peer.head():
            extra = ("Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=9", "Proxy-Authenticate: x")
            peer.send(ok(head, *extra, "X-End: 2"))

    with fleet.instance("hops", script):
        sent = ("Connection: X-Mine, keep-alive", "X-Mine: 1", "TE: trailers", "Proxy-Authorization: x", "X-End: 2")
        answer = fleet.ask("GET", "/hops/", *sent)
        head = answer.body.decode().lower()
        assert "x-end: 2" in head
        for gone in ("x-mine", "te:", "proxy-authorization", "connection"):
            assert f"\r\n{gone}" not in head
        assert answer.one("x-end") == "2"
        for gone in ("x-hop", "keep-alive", "proxy-authenticate"):
            assert answer.all(gone) == []


def test_answers_pass_as_they_are(fleet: Fleet) -> None:
    """Several Set-Cookie, compressed bodies, odd status codes and redirects are the client's to interpret."""
    packed = gzip.compress(b"hello" * 100)

    def script(peer: Peer) -> None:
        while head := peer.head():
            path = head.split()[1]
            if path == b"/cookies":
                peer.send(ok(b"", "Set-Cookie: a=1", "Set-Cookie: b=2"))
            elif path == b"/gzip":
                peer.send(
                    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
                )
            elif path == b"/away":
                peer.send(b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere/x\r\nContent-Length: 0\r\n\r\n")
            elif path == b"/self":
                port = peer.socket.getsockname()[1]
                peer.send(b"HTTP/1.1 307 T\r\nLocation: http://127.0.0.1:%d/y?z\r\nContent-Length: 0\r\n\r\n" % port)
            elif path == b"/304":
                peer.send(b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 10\r\n\r\n')
            elif path == b"/204":
                peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            elif path == b"/hints":
                peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + ok(b"late"))
            elif path == b"/trailers":
                peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-T: 1\r\n\r\n")
            else:
                peer.send(b"HTTP/1.1 418 Teapot\r\nContent-Length: 2\r\n\r\nno")

    with fleet.instance("answers", script) as instance:
        assert fleet.ask("GET", "/answers/cookies").all("set-cookie") == ["a=1", "b=2"]
        zipped = fleet.ask("GET", "/answers/gzip")
        assert zipped.body == packed
        assert zipped.one("content-encoding") == "gzip"
        assert fleet.ask("GET", "/answers/away").one("location") == "https://elsewhere/x"
        assert fleet.ask("GET", "/answers/self").one("location") == "/answers/y?z"
        not_modified = fleet.ask("GET", "/answers/304")
        assert (not_modified.status, not_modified.one("etag")) == (304, '"x"')
        assert fleet.ask("GET", "/answers/204").status == 204
        assert fleet.ask("GET", "/answers/hints").body == b"late"
        trailed = fleet.ask("GET", "/answers/trailers")
        assert (trailed.body, trailed.all("x-t")) == (b"ab", [])
        teapot = fleet.ask("GET", "/answers/tea")
        assert (teapot.status, teapot.body) == (418, b"no")
        assert instance.connections == 1, "the gateway keeps its connection"


def test_head_has_the_headers_and_no_body(fleet: Fleet) -> None:
    """HEAD keeps Content-Length, and the connection behind serves the next request."""

    def script(peer: Peer) -> None:
        while head := peer.head():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + (b"" if head.startswith(b"HEAD") else b"hello"))

    with fleet.instance("heads", script) as instance:
        answer = fleet.ask("HEAD", "/heads/")
        assert (answer.status, answer.one("content-length")) == (200, "5")
        assert fleet.ask("GET", "/heads/").body == b"hello"
        assert instance.connections == 1
        assert fleet.ask("HEAD", "/nobody/").status == 404


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_bodies_arrive_whole_in_their_framing(fleet: Fleet, framing: str) -> None:
    """A body with a length stays one with a length; a chunked one stays chunked."""
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        while head := peer.head().lower():
            if b"content-length: 6" in head:
                seen.append(peer.body(6))
            else:
                assert b"transfer-encoding: chunked" in head
                content = b""
                while not content.endswith(b"0\r\n\r\n"):
                    content += peer.body(1)
                seen.append(content)
            peer.send(ok())

    service = f"bodies-{framing}"
    with fleet.instance(service, script):
        if framing == "length":
            assert fleet.ask("POST", f"/{service}/", "Content-Length: 6", body=b"abcdef").status == 200
            assert seen == [b"abcdef"]
        else:
            chunks = b"3\r\nabc\r\n3;ext=1\r\ndef\r\n0\r\nX-T: 1\r\n\r\n"
            assert fleet.ask("POST", f"/{service}/", "Transfer-Encoding: chunked", body=chunks).status == 200
            assert seen[0].replace(b"6\r\nabcdef", b"3\r\nabc\r\n3\r\ndef") == b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"


def test_events_are_passed_on_at_once(fleet: Fleet) -> None:
    """The client has each event before the instance sends the next."""
    proceed = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            peer.send(b"9\r\ndata: %d\n\n\r\n" % number)
            assert proceed.acquire(timeout=30)
        peer.send(b"0\r\n\r\n")

    with fleet.instance("events", script), fleet.connect() as client:
        client.send(b"GET /events/ HTTP/1.1\r\nHost: x\r\n\r\n")
        for number in range(3):
            while b"data: %d\n\n" % number not in client.pending:
                assert client.more()
            proceed.release()
        assert client.answer().body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_body_without_framing_ends_with_the_connection(fleet: Fleet) -> None:
    """An answer that the instance ends by closing is whole."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

    with fleet.instance("closing", script):
        assert fleet.ask("GET", "/closing/").body == b"until the end"


@pytest.mark.parametrize(
    ("service", "start"),
    [
        ("cut-length", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"),
        ("cut-chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n"),
        ("cut-wrong", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\nnonsense\r\n"),
    ],
)
def test_truncated_answer_does_not_look_whole(fleet: Fleet, service: str, start: bytes) -> None:
    """An instance that dies in the middle of a body ends the client's connection, without the end of the body."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(start)

    with fleet.instance(service, script), fleet.connect() as client:
        client.send(f"GET /{service}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        content = client.rest()
        assert content.startswith(b"HTTP/1.1 200")
        assert not content.endswith(b"0\r\n\r\n")
        assert b"content-length: 100" in content or b"chunked" in content


def test_client_that_leaves_ends_the_request_behind(fleet: Fleet) -> None:
    """The instance sees its connection closed: before its answer, within it, and within the request."""
    arrived, left = threading.Semaphore(0), threading.Semaphore(0)

    def script(peer: Peer) -> None:
        if b"/begun" in peer.head():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        arrived.release()
        peer.closed()
        left.release()

    with fleet.instance("leaving", script):
        for request, wait in (
            (b"GET /leaving/waiting HTTP/1.1\r\nHost: x\r\n\r\n", b""),
            (b"GET /leaving/begun HTTP/1.1\r\nHost: x\r\n\r\n", b"12345"),
            (b"POST /leaving/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", b""),
        ):
            with fleet.connect() as client:
                client.send(request)
                assert arrived.acquire(timeout=30)
                while wait not in client.pending:
                    client.more()
            assert left.acquire(timeout=30)


def test_continue_is_the_instance_s_to_say(fleet: Fleet) -> None:
    """A body is only asked for once the instance asks for it; a refusal comes without it."""

    def script(peer: Peer) -> None:
        while head := peer.head().lower():
            assert b"expect: 100-continue" in head
            if b"/no" in head:
                peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
                peer.closed()
                return
            if b"/silent" not in head:
                peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            peer.send(ok(peer.body(4)))

    request = "POST /expects/{} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    with fleet.instance("expects", script):
        for path in ("yes", "silent"):
            with fleet.connect() as client:
                client.send(request.format(path).encode())
                assert client.answer(bodiless=True).status == 100
                client.send(b"body")
                assert client.answer().body == b"body"
        with fleet.connect() as client:
            client.send(request.format("no").encode())
            answer = client.answer()
            assert (answer.status, answer.one("connection")) == (413, "close")
            assert client.rest() == b""


def test_early_answer_reaches_a_client_that_is_still_sending(fleet: Fleet) -> None:
    """An instance may refuse in the middle of a body."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.body(10)
        peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        peer.closed()

    with fleet.instance("early", script):
        answer = fleet.ask("POST", "/early/", "Content-Length: 100", body=b"x" * 10)
        assert (answer.status, answer.body) == (403, b"no")


def test_stale_connection_is_not_the_client_s_problem(fleet: Fleet) -> None:
    """A connection that the instance closed while idle is replaced, for a request that may be sent twice."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ok(b"first"))
        peer.head()  # takes the second request, and closes without an answer

    with fleet.instance("stale", script) as instance:
        assert fleet.ask("GET", "/stale/").body == b"first"
        assert fleet.ask("GET", "/stale/").body == b"first"
        assert instance.connections == 2
        refused = fleet.ask("POST", "/stale/", "Content-Length: 1", body=b"x")
        assert (refused.status, refused.error["value"]) == (502, "closed")


def test_round_robin_and_the_next_instance_when_one_is_gone(fleet: Fleet) -> None:
    """Instances take turns; a dead one costs no request an answer, not even a POST, as nothing was sent."""

    def named(name: bytes) -> Script:
        def script(peer: Peer) -> None:
            while head := peer.head():
                if head.startswith(b"POST"):
                    peer.body(1)
                peer.send(ok(name))

        return script

    with (
        fleet.instance("turns", named(b"a"), instance="turns-a"),
        fleet.instance("turns", named(b"b"), instance="turns-b"),
    ):
        until(lambda: {fleet.ask("GET", "/turns/").body for _ in range(2)} == {b"a", b"b"})
        assert [fleet.ask("GET", "/turns/").body for _ in range(4)] in ([b"a", b"b"] * 2, [b"b", b"a"] * 2)
        fleet.bus.say(status_of("turns", instance="turns-c", address=dead_address()))
        failed = 'gateway_upstream_failures_total{upstream="turns-c",kind="connect_failed"}'
        until(lambda: fleet.ask("GET", "/turns/").status == 200 and failed in fleet.metrics())
        for _ in range(6):
            assert fleet.ask("GET", "/turns/").status == 200
            assert fleet.ask("POST", "/turns/", "Content-Length: 1", body=b"x").status == 200


def test_two_dead_of_three_cost_no_request_an_answer(fleet: Fleet) -> None:
    """As when a service is scaled down: the third is found, also by what may be sent once only."""

    def script(peer: Peer) -> None:
        while head := peer.head():
            if head.startswith(b"POST"):
                peer.body(1)
            peer.send(ok(b"alive"))

    with fleet.instance("three", script, instance="three-a"):
        for name in ("three-b", "three-c"):
            fleet.bus.say(status_of("three", instance=name, address=dead_address()))
            until(lambda: fleet.ask("GET", "/three/").body == b"alive", what=f"{name} is survived")
            failed = f'gateway_upstream_failures_total{{upstream="{name}",kind="connect_failed"}}'
            until(lambda: fleet.ask("GET", "/three/").status == 200 and failed in fleet.metrics(), what=failed)  # noqa: B023
        for _ in range(6):
            assert fleet.ask("POST", "/three/", "Content-Length: 1", body=b"x").body == b"alive"


def test_what_may_be_sent_twice_goes_to_another_when_an_instance_dies_of_it(fleet: Fleet) -> None:
    """Once; what may not be, and what nobody survives, ends with 502."""

    def dies(peer: Peer) -> None:
        peer.head()

    def lives(peer: Peer) -> None:
        while head := peer.head():
            if b"deadly" in head:
                return
            if head.startswith(b"POST"):
                peer.body(1)
            peer.send(ok(b"alive"))

    with fleet.instance("mortal", lives, instance="mortal-a"):
        fleet.routed("mortal")
        with fleet.instance("mortal", dies, instance="mortal-b") as mortal:
            until(lambda: fleet.ask("GET", "/mortal/").status == 200 and mortal.connections > 2, what="both are asked")
            for _ in range(6):
                assert fleet.ask("GET", "/mortal/").body == b"alive"
            posted = [fleet.ask("POST", "/mortal/", "Content-Length: 1", body=b"x").status for _ in range(4)]
            assert sorted(posted) == [200, 200, 502, 502]
            refused = fleet.ask("GET", "/mortal/deadly")
            assert (refused.status, refused.error["value"]) == (502, "closed")


def test_draining_unhealthy_and_unaddressed_instances_get_nothing(fleet: Fleet) -> None:
    """503 with Retry-After when nobody serves; traffic again when somebody does."""
    with fleet.instance("resting", echoing_heads) as instance:
        fleet.routed("resting")
        for phase, health in (
            (LifecyclePhase.DRAINING, HealthStatus.HEALTHY),
            (LifecyclePhase.STARTING, HealthStatus.UNKNOWN),
            (LifecyclePhase.SERVING, HealthStatus.UNHEALTHY),
        ):
            fleet.bus.say(status_of("resting", address=instance.address, phase=phase, health=health))
            fleet.routed("resting", 503)
            fleet.bus.say(status_of("resting", address=instance.address, health=HealthStatus.DEGRADED))
            fleet.routed("resting")
        fleet.bus.say(status_of("resting", address="gopher://127.0.0.1:1/"))
        fleet.routed("resting", 503)
        answer = fleet.ask("GET", "/resting/")
        assert answer.one("retry-after") == "1"
        assert answer.error["service"] == "resting"


def test_errors_say_why(fleet: Fleet) -> None:
    """404, 502 and their reasons; ATLAS and the gateway itself are not services to route to."""
    fleet.bus.say(status_of("gone", address=dead_address()))
    fleet.known("gone")
    refused = fleet.ask("GET", "/gone/")
    assert refused.status == 502
    assert refused.one("content-type") == "application/json"
    assert (refused.error["value"], refused.error["instance"]) == ("connect_failed", "gone")

    unknown = fleet.ask("GET", "/nobody/x")
    assert (unknown.status, unknown.error["value"]) == (404, "nobody")
    assert "gone" in unknown.error["next"]

    fleet.bus.say(status_of("atlas", address=dead_address()))
    fleet.bus.say(status_of("gone2", address=dead_address()))
    fleet.known("gone2")
    assert fleet.ask("GET", "/atlas/").status == 404
    assert fleet.ask("GET", "/gateway-primary/").status == 404


@pytest.mark.parametrize(
    ("service", "answer"),
    [
        ("bad-ssh", b"SSH-2.0-OpenSSH\r\n"),
        ("bad-both", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("bad-two-lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("bad-coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"),
        ("bad-switch", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        ("bad-status", b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"),
        ("bad-control", b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n"),
        ("bad-fold", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
        ("bad-huge", b"HTTP/1.1 200 OK\r\nX: " + b"x" * (300 << 10)),
    ],
)
def test_bad_answers_are_502(fleet: Fleet, service: str, answer: bytes) -> None:
    """What is not one answer in HTTP/1.1 is not passed on in part."""

    def script(peer: Peer) -> None:
        peer.head()
        try:
            peer.send(answer)
        except ConnectionError:
            return
        peer.closed()

    with fleet.instance(service, script):
        refused = fleet.ask("GET", f"/{service}/")
        assert (refused.status, refused.error["value"]) == (502, "bad_answer")


def test_second_answer_to_one_request_goes_to_nobody(fleet: Fleet) -> None:
    """What an instance sends beyond its answer is not the next request's answer."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(ok(b"mine") + ok(b"stray"))
        peer.closed()

    with fleet.instance("stray", script):
        assert [fleet.ask("GET", "/stray/").body for _ in range(3)] == [b"mine"] * 3
