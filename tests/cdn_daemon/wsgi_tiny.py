"""A WSGI application that does whatever a test needs to see survived."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

from cdn_daemon import Service, run

Start = Callable[..., Callable[[bytes], None]]


def endless(environ: dict[str, Any]) -> Iterator[bytes]:
    """Never ends by itself; says when it was closed."""
    try:
        while True:
            yield b"more\n"
            time.sleep(0.01)
    finally:
        print(f"closed {environ['PATH_INFO']}", flush=True)


def later_wrong() -> Iterator[bytes]:
    """Fails when half of it is sent."""
    yield b"half"
    raise RuntimeError("the other half is missing")


def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    """PEP 3333."""
    seconds = float(parse_qs(environ["QUERY_STRING"]).get("s", ["0"])[0])
    plain = [("Content-Type", "text/plain")]
    match environ["PATH_INFO"]:
        case "/environ":
            start_response(
                "200 OK", [("Content-Type", "application/json"), ("X-Thread", threading.current_thread().name)]
            )
            return [json.dumps({key: value for key, value in environ.items() if isinstance(value, str)}).encode()]
        case "/echo":
            body = environ["wsgi.input"].read()
            start_response("201 Created", plain)
            return [body]
        case "/lines":
            lines = environ["wsgi.input"].readlines()
            start_response("200 OK", plain)
            return [f"{len(lines)} {lines[0]!r}".encode()]
        case "/write":
            write = start_response("200 OK", plain)
            write(b"written, ")
            return [b"", b"returned"]
        case "/sleep":
            time.sleep(seconds)
            start_response("200 OK", plain)
            return [b"slept"]
        case "/endless":
            start_response("200 OK", plain)
            return endless(environ)
        case "/changed":
            start_response("200 OK", plain)
            try:
                raise ValueError("changed its mind")
            except ValueError:
                start_response("409 Conflict", plain, sys.exc_info())
            return [b"conflict"]
        case "/raise":
            raise RuntimeError("the application is broken")
        case "/silent":
            return [b"without a status"]
        case "/half":
            start_response("200 OK", plain)
            return later_wrong()
        case "/errors":
            print("an error of the application", file=environ["wsgi.errors"], flush=True)
            start_response("204 No Content", [])
            return []
        case path:
            start_response("404 Not Found", plain)
            return [path.encode("latin-1")]


if __name__ == "__main__":
    run(Service("tiny", wsgi=app, port=0, threads=2))
