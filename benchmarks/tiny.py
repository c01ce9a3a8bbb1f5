"""The services that every supervisor is measured with, and asking them.

Each answers ``GET /`` with its pid, so whoever asks knows whether it has been replaced, and at
``GET /take`` takes 160 MiB.
"""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TAKES_MIB = 160

TINY = f"""
import os, socket, sys, threading, time
def beat(to, text, period_s):
    while True:
        to.send(text())
        time.sleep(period_s)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if "NOTIFY_SOCKET" in os.environ:
    warden = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    warden.connect(os.environ["NOTIFY_SOCKET"])
    warden.send(b"READY=1")
    if "WATCHDOG_USEC" in os.environ:  # twice in its time, as sd_watchdog_enabled(3) has it
        half_s = int(os.environ["WATCHDOG_USEC"]) / 2e6
        threading.Thread(target=beat, args=(warden, lambda: b"WATCHDOG=1", half_s), daemon=True).start()
if "TINY_BEATS" in os.environ:
    circus = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    circus.connect(("127.0.0.1", int(os.environ["TINY_BEATS"])))
    said = lambda: f"{{os.getpid()}};{{time.time()}}".encode()
    threading.Thread(target=beat, args=(circus, said, float(os.environ["TINY_BEATS_S"])), daemon=True).start()
taken = []
while True:
    connection, _ = server.accept()
    if connection.recv(4096).startswith(b"GET /take "):
        taken.append(bytearray(b"x") * ({TAKES_MIB} << 20))
    pid = str(os.getpid()).encode()
    head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(pid)
    connection.sendall(head + pid)
    connection.close()
"""
"""Of the standard library alone. It beats only for those who listen, so that nobody else pays for it."""

WEB = f"""
import os, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
taken = []
async def take(request):
    taken.append(bytearray(b"x") * ({TAKES_MIB} << 20))
    return PlainTextResponse("taken")
async def home(request):
    return PlainTextResponse(str(os.getpid()))
app = Starlette(routes=[Route("/", home), Route("/take", take)])
port = int(sys.argv[1])
if sys.argv[2:] == ["alone"]:
    import uvicorn
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
else:
    from cdn_daemon import Service, run
    run(Service(f"s{{port}}", app=app, port=port))
"""
"""The same as an application, on uvicorn: with the embedded daemon, or alone."""


@dataclass(frozen=True)
class Tiny:
    """A service of the benchmark: its port, and the script that it is."""

    port: int
    script: Path
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """In whatever configuration."""
        return f"s{self.port}"

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return [sys.executable, *self.options, str(self.script), str(self.port), *self.arguments]


def ask(port: int, path: str = "/", within_s: float = 1.0) -> str:
    """The answer's body, or nothing without a 200 in that time."""
    said = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=within_s) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            while part := connection.recv(4096):
                said += part
    except OSError:
        return ""
    head, _, body = said.partition(b"\r\n\r\n")
    return body.decode() if head.startswith(b"HTTP/1.1 200") else ""


def time_until_answering(port: int, since_s: float, within_s: float = 60.0) -> float:
    """Seconds from since_s, by time.perf_counter, until the port answers; raises TimeoutError."""
    while not ask(port):
        if time.perf_counter() - since_s > within_s:
            raise TimeoutError(f"port {port} does not answer within {within_s} s")
        time.sleep(0.0005)
    return time.perf_counter() - since_s
