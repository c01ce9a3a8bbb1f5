"""An instance for the tests, on the project's own framework: WebSockets, and bodies of any size."""

from __future__ import annotations

import os
from typing import Any

from cdn_daemon import Service, run
from cdn_daemon.web import Receive, Scope, Send

BLOCK = bytes(range(256)) * 256


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI."""
    if scope["type"] == "http":
        await _http(scope, receive, send)
    elif scope["type"] == "websocket":
        await _websocket(scope, receive, send)
    else:
        raise NotImplementedError


async def _http(scope: Scope, receive: Receive, send: Send) -> None:
    """``/down/BYTES`` sends so many; ``/up`` answers how many it got; the rest says which process this is."""
    path = scope["path"]
    if path.startswith("/down/"):
        left = int(path.removeprefix("/down/"))
        headers = [(b"content-length", b"%d" % left)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while left:
            block = BLOCK[:left]
            left -= len(block)
            await send({"type": "http.response.body", "body": block, "more_body": left > 0})
        return
    got = 0
    while True:
        message = await receive()
        got += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = b"%d" % (got if path == "/up" else os.getpid())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def _websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Echoes; says the head of its request to ``head``, and closes as told by ``close CODE REASON``."""
    await receive()
    if scope["path"] == "/refused":
        headers = [(b"content-type", b"text/plain"), (b"x-why", b"because")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"who are you?"})
        return
    chosen = scope["subprotocols"][-1] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": chosen, "headers": [(b"set-cookie", b"a=1")]})
    while True:
        message: dict[str, Any] = dict(await receive())
        if message["type"] == "websocket.disconnect":
            closed.append(f"{message.get('code')} {message.get('reason') or ''}".strip())
            return
        text = message.get("text")
        if text == "head":
            head = [f"{n.decode()}: {v.decode()}" for n, v in scope["headers"]]
            target = scope["raw_path"].decode() + "?" + scope["query_string"].decode()
            await send({"type": "websocket.send", "text": "\n".join([target, *head])})
        elif text == "closed":
            await send({"type": "websocket.send", "text": "\n".join(closed)})
        elif text == "die":
            os.kill(os.getpid(), 9)
        elif text is not None and text.startswith("close "):
            _, code, reason = text.split(" ", 2)
            await send({"type": "websocket.send", "text": "last words"})
            await send({"type": "websocket.close", "code": int(code), "reason": reason})
            return
        elif text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


closed: list[str] = []
"""How each WebSocket before was closed by its client."""

if __name__ == "__main__":
    run(Service("echo", app=app, port=0))
