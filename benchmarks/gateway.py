"""What the gateway costs: requests per second and latency through it, against the instance itself.

    python -m benchmarks.gateway [--seconds 3] [--connections 1 32]

Everything on this machine: load, gateway and instance share its cores, so the
figures compare the two ways and promise nothing for another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import uvloop

from tests.gateway.support import Process, a_fleet
from tests.support import short_dir, until

REQUEST = b"GET %b HTTP/1.1\r\nHost: bench\r\n\r\n"
ROUNDS = 3


class Caller(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it is answered."""

    def __init__(self, path: bytes, latencies_s: list[float]) -> None:
        self._request = REQUEST % path
        self._latencies_s = latencies_s
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: begin."""
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self._asked_s = time.perf_counter()
        self.transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """asyncio: the answers have a length, and are short."""
        self._pending += data
        head, end, body = self._pending.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        assert head.startswith(b"HTTP/1.1 200"), self._pending
        self._latencies_s.append(time.perf_counter() - self._asked_s)
        self._pending = b""
        self._ask()


async def _load(port: int, path: bytes, connections: int, seconds: float) -> list[float]:
    loop, latencies_s = asyncio.get_running_loop(), list[float]()
    callers = [
        await loop.create_connection(lambda: Caller(path, latencies_s), "127.0.0.1", port) for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    for transport, _ in callers:
        transport.abort()
    return sorted(latencies_s)


def _measure(name: str, port: int, path: bytes, connections: int, seconds: float) -> float:
    """Print one line; return the median of the rounds' medians, in seconds."""
    rounds = [uvloop.run(_load(port, path, connections, seconds)) for _ in range(ROUNDS)]
    rate = statistics.median(len(latencies) / seconds for latencies in rounds)
    p50_s = statistics.median(latencies[len(latencies) // 2] for latencies in rounds)
    p99_s = statistics.median(latencies[len(latencies) * 99 // 100] for latencies in rounds)
    times = f"p50 {p50_s * 1e3:6.2f} ms  p99 {p99_s * 1e3:6.2f} ms"
    print(f"{name:8} {connections:4} connections {rate:8.0f} requests/s  {times}")
    return p50_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    options = parser.parse_args()
    with short_dir() as path, a_fleet(path) as fleet, Process(path, "tests.gateway.echo") as echo:
        fleet.routed("echo")
        until(lambda: "echo" in fleet.bus.heard)
        for connections in options.connections:
            direct_s = _measure("direct", echo.port(), b"/", connections, options.seconds)
            through_s = _measure("gateway", fleet.port, b"/echo/", connections, options.seconds)
            print(f"added    {connections:4} connections {(through_s - direct_s) * 1e3:.2f} ms at the median")


if __name__ == "__main__":
    main()
