"""``POST /openc2``: whoever has the token says who is refused. The HTTP around openc2.py, and its trail."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from bus.ids import new_id
from bus.messages import Blocked
from cdn_daemon.tokens import is_bearer, token_in
from cdn_daemon.web import Receive, Scope, Send
from services.gateway import openc2
from services.gateway.blocklist import Network, Rule
from services.gateway.blockstore import BlockStore, StoreError
from services.gateway.errors import Refusal

log = logging.getLogger(__name__)

PATHS = frozenset({b"/openc2", b"/.well-known/openc2"})
"""The second is that of OpenC2's specification for HTTPS."""
BODY_S = 10.0
_CONTENT_TYPE = b"application/openc2-rsp+json;version=1.0"


class Consumer:
    """Carries out OpenC2 commands on a block-list."""

    def __init__(self, store: BlockStore, token: Path, changed: Callable[[], None]) -> None:
        self._store = store
        self._token_path = token
        self._token = b""
        self._changed = changed
        self.commands: Counter[tuple[str, int]] = Counter()
        """By action and status."""
        self.announce: Callable[[Told], object] = _nobody
        """Tells other services what has become of the list."""

    def arm(self) -> None:
        """See that there is a token; raises TokenError."""
        self._token = token_in(self._token_path)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises Refusal for what is no command at all."""
        if scope["type"] != "http" or scope["method"] != "POST":
            raise Refusal(405, "cannot take a command by this method", value=scope.get("method"), limit="POST")
        headers = dict(scope["headers"])
        client = scope["client"][0] if scope.get("client") else "?"
        if not is_bearer(headers.get(b"authorization", b""), self._token):
            text = "cannot obey without the token of this gateway: Authorization: Bearer …"
            self._note(client, "", openc2.Answer(status=401, status_text=text))
            await _respond(send, 401, text_of(401, text), [(b"www-authenticate", b"Bearer")])
            return
        body = await _body(receive)
        answer, requested = await asyncio.to_thread(self.obey, body, headers.get(b"x-request-id"), client)
        self._changed()
        if requested == "none" and answer.status == 200:
            await _respond(send, 204, b"")
            return
        if requested == "ack" and answer.status == 200:
            answer = openc2.Answer(status=102, status_text=openc2.TEXTS[102])
        # HTTP's own 102 is not an answer but an announcement of one.
        await _respond(send, 200 if answer.status == 102 else answer.status, msgspec.json.encode(answer))

    def obey(self, body: bytes, request_id: bytes | None, client: str) -> tuple[openc2.Answer, str]:
        """Carry out the command in the body; return the answer, and which one was asked for. Blocks."""
        what, requested = "", "complete"
        try:
            command = openc2.read(body, request_id.decode("latin-1") if request_id else None)
            what, requested = str(command), command.args.response_requested
            answer = self._carry_out(command, body, client)
        except openc2.Failed as failed:
            answer = failed.answer
        except StoreError as error:
            answer = openc2.Answer(status=500, status_text=str(error))
        self._note(client, what, answer)
        return answer, requested

    def _carry_out(self, command: openc2.Command, body: bytes, client: str) -> openc2.Answer:
        def do() -> tuple[openc2.Answer, Rule | Network | None]:
            now_s, now_ms = time.monotonic(), time.time() * 1000
            return openc2.carry_out(command, self._store.rules, now_s=now_s, now_ms=now_ms)

        if command.action == "query":
            return do()[0]
        id = command.id or f"own-{secrets.token_hex(12)}"
        made: list[Told] = []

        def do_encoded() -> tuple[bytes, Rule | Network | None]:
            answer, change = do()
            return msgspec.json.encode(answer), change

        def tell(change: Rule | Network) -> bytes:
            blocked = blocked_of(change, id, client, ahead_s=time.time() - time.monotonic())
            made.append(Told(id=new_id(), cause=command.args.own.cause, text=in_words(blocked), blocked=blocked))
            return msgspec.json.encode(made[0])

        try:
            encoded = self._store.once(id, body, do_encoded, tell)
        except ValueError as error:
            raise openc2.Failed(400, f"cannot take the command: {error}") from error
        for told in made:
            self.announce(told)
        return msgspec.json.decode(encoded, type=openc2.Answer)

    def announce_again(self) -> None:
        """Tell what the process before has told lately: nobody may have heard it. Blocks."""
        try:
            for told in self._store.told_lately():
                self.announce(msgspec.json.decode(told, type=Told))
        except (StoreError, msgspec.MsgspecError) as error:
            log.warning("cannot tell again what has become of the block-list: %s", error)

    def _note(self, client: str, what: str, answer: openc2.Answer) -> None:
        self.commands[what.partition(" ")[0] or "unknown", answer.status] += 1
        log.info("openc2: %s from %s: %d %s", what or "no command", client, answer.status, answer.status_text)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """An event of ours, as it is kept."""

    id: str
    cause: str | None
    text: str
    blocked: Blocked


def _nobody(told: Told) -> None:
    """Before there is a service that could tell."""


def blocked_of(change: Rule | Network, command: str, by: str, *, ahead_s: float) -> Blocked:
    """What has become of the list, as other services are told; ahead_s is the wall's clock less the rules'."""
    if not isinstance(change, Rule):
        return Blocked(network=str(change), action="delete", rule=command, by=by)
    return Blocked(
        network=str(change.network),
        action="allow" if change.allow else "deny",
        start_s=change.starts_s + ahead_s,
        until_s=None if math.isinf(change.ends_s) else change.ends_s + ahead_s,
        rule=command,
        by=by,
        rate_per_s=change.rate_per_s,
    )


def in_words(blocked: Blocked) -> str:
    """For people: ``203.0.113.0/24 is refused until 2026-11-23 16:20:13 UTC``."""
    if blocked.action == "delete":
        return f"{blocked.network} has no rule any more"
    if blocked.rate_per_s is not None:
        text = f"{blocked.network} is refused beyond {blocked.rate_per_s:g} requests a second"
    else:
        text = f"{blocked.network} is {'refused' if blocked.action == 'deny' else 'never refused'}"
    if blocked.until_s is None:
        return text
    return f"{text} until {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(blocked.until_s))} UTC"


def text_of(status: int, text: str) -> bytes:
    """An OpenC2 response with no results."""
    return msgspec.json.encode(openc2.Answer(status=status, status_text=text))


async def _body(receive: Receive) -> bytes:
    body: bytes = b""
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > openc2.BODY_MAX_BYTES:
                    raise Refusal(413, "cannot take a command of this size", limit=f"{openc2.BODY_MAX_BYTES} bytes")
                if not message.get("more_body"):
                    return body
    except TimeoutError as error:
        raise Refusal(408, "cannot wait longer for the rest of the command", limit=f"{BODY_S:g} s") from error


async def _respond(send: Send, status: int, body: bytes, extra: list[tuple[bytes, bytes]] | None = None) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store"), *(extra or [])]
    if body:
        headers.append((b"content-type", _CONTENT_TYPE))
    if status == 204:
        headers = headers[1:]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
