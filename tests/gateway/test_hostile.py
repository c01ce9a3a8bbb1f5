"""Hostile clients: nothing they send reaches an instance as something else, or costs others their service."""

from __future__ import annotations

import threading

import pytest

from tests.gateway.sockets import Client, Peer, echoing_heads, ok
from tests.gateway.support import Fleet
from tests.support import until

SMUGGLED = b"GET /victim/stolen HTTP/1.1\r\nHost: x\r\n\r\n"


AMBIGUOUS = [
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\nab\n0\n\n",
    b"POST /victim/ HTTP/1.1\nHost: x\nContent-Length: 0\n\n",
    b"GET /victim/ HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
    b"GET /victim/ HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    b"GET /victim/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET /victim/ HTTP/1.1\r\n\r\n",
    b"GET /victim/a b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /victim/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /victim/ HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 41\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


def test_requests_that_mean_two_things_are_refused(fleet: Fleet) -> None:
    """400 with the reason, and what follows on the connection is never read as a request."""
    stolen: list[bytes] = []

    def script(peer: Peer) -> None:
        while head := peer.head():
            if b"stolen" in head:
                stolen.append(head)
            peer.send(ok(b"reached"))

    with fleet.instance("victim", script):
        for request in AMBIGUOUS:
            with fleet.connect() as client:
                client.send(request + SMUGGLED)
                answer = client.answer()
                assert answer.error["status"] == 400, (request, answer)
                assert answer.one("content-type") == "application/json"
                assert client.rest() == b"", request
        assert fleet.ask("GET", "/victim/").body == b"reached"
        assert stolen == []


PATHS = [
    ("/tricks/../atlas/", 400),
    ("/tricks/%2e%2e/atlas/", 400),
    ("/tricks/..%2fatlas/", 400),
    ("//atlas/", 400),
    ("/%61tlas/", 400),
    ("/", 400),
    ("*", 400),
    ("/" + "a" * 5000, 400),
    ("http://atlas/tricks/x", 200),
    ("/tricks/x#/../atlas", 200),
]


def test_paths_lead_nowhere_else(fleet: Fleet) -> None:
    """A path is for the service that it plainly names, or for none."""
    with fleet.instance("tricks", echoing_heads):
        for target, status in PATHS:
            answer = fleet.ask("OPTIONS" if target == "*" else "GET", target)
            assert answer.status == status, (target, answer)
            if status == 200:
                assert answer.body.split()[1] == b"/x"


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_methods_that_are_not_forwarded(fleet: Fleet, method: str) -> None:
    """CONNECT would make it an open proxy, TRACE shows what it adds."""
    with fleet.connect() as client:
        client.send(f"{method} /x/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.answer().status in (400, 405)


def test_loops_end(fleet: Fleet) -> None:
    """A request that has been here before goes no further."""
    with fleet.instance("looping", echoing_heads):
        assert fleet.ask("GET", "/looping/", "Via: 1.1 gateway-primary").status == 508
        assert fleet.ask("GET", "/looping/", "Via: 1.1 another").status == 200


def test_floods_of_headers_are_refused(fleet: Fleet) -> None:
    """Too many, or too large: 431 with the limit."""
    with fleet.instance("floods", echoing_heads):
        many = fleet.ask("GET", "/floods/", *(f"X-{n}: y" for n in range(300)))
        assert (many.status, many.error["limit"]) == (431, 200)
        large = fleet.ask("GET", "/floods/", "X: " + "y" * (80 << 10))
        assert (large.status, large.error["limit"]) == (431, 64 << 10)
        assert fleet.ask("GET", "/floods/", "X: " + "y" * (60 << 10)).status == 200


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_bodies_over_the_limit(fleet: Fleet, framing: str) -> None:
    """413 at once where the length says it, else when it is passed; the instance is not left with half a body."""
    closed = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        assert b"content-length" not in peer.head()
        peer.closed()
        closed.release()

    with fleet.instance(f"limit-{framing}", script), fleet.connect() as client:
        head = f"POST /limit-{framing}/ HTTP/1.1\r\nHost: x\r\n"
        if framing == "length":
            client.send(f"{head}Content-Length: {(4 << 20) + 1}\r\n\r\n".encode())
        else:
            client.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            client.send(chunk * 65)
        answer = client.answer()
        assert (answer.status, answer.error["limit"]) == (413, 4 << 20)
        if framing == "chunked":
            assert closed.acquire(timeout=30)


def test_slow_clients_cost_the_others_nothing(fleet: Fleet) -> None:
    """Two hundred clients in the middle of a head, a body or an answer, and the next one is served."""
    with fleet.instance("patient", echoing_heads) as instance:
        waiting = [Client(fleet.port) for _ in range(200)]
        try:
            for number, client in enumerate(waiting):
                full = b"POST /patient/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1"
                client.send(full if number % 2 else full[:30])
            until(lambda: instance.connections >= 100)
            assert fleet.ask("GET", "/patient/").status == 200
        finally:
            for client in waiting:
                client.close()


def test_pipelined_requests_are_answered_in_order(fleet: Fleet) -> None:
    """Each with its own answer."""
    with fleet.instance("piped", echoing_heads), fleet.connect() as client:
        client.send(b"".join(b"GET /piped/%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(5)))
        for number in range(5):
            assert client.answer().body.split()[1] == b"/%d" % number
