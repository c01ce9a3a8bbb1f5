"""What the gateway answers by itself when it cannot pass an answer on. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

RETRY_AFTER_S = 1
"""A crashed instance is back within a second; see the warden's first restart."""


class ErrorDetail(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Why the gateway refused, in the form of every service's refusals, with whom it was about."""

    status: int
    what: str
    value: Any = None
    limit: Any = None
    next: str | None = None
    service: str | None = None
    instance: str | None = None


class Refusal(Exception):
    """The request ends here, with this status and reason."""

    def __init__(
        self,
        status: int,
        what: str,
        *,
        value: Any = None,
        limit: Any = None,
        next: str | None = None,
        service: str | None = None,
        instance: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(what)
        self._retry_after_s = RETRY_AFTER_S if status == 503 else retry_after_s
        self.detail = ErrorDetail(
            status=status, what=what, value=value, limit=limit, next=next, service=service, instance=instance
        )

    def body(self) -> bytes:
        """``{"error": {"status", "what", …}}``"""
        return msgspec.json.encode({"error": self.detail})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of the answer that carries the body."""
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body())),
            (b"cache-control", b"no-store"),
        ]
        if self._retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % self._retry_after_s))
        if self.detail.status in (400, 403, 408, 431):
            headers.append((b"connection", b"close"))  # what is left of such a request is not looked at
        return headers


class ClientGone(Exception):
    """The client left, or took nothing more, before its answer was complete."""


CONNECT_KINDS = frozenset({"connect_failed", "connect_timeout"})
"""UpstreamError.kind where no connection was made, so nothing of the request has left."""


class UpstreamError(Exception):
    """The instance did not answer as it should.

    ``kind`` is one word, counted per instance; ``status`` is 502 or 504.
    """

    def __init__(self, kind: str, text: str, *, status: int = 502, unanswered: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.status = status
        self.unanswered = unanswered
        """The connection ended without one byte of an answer."""

    def refusal(self, service: str, instance: str) -> Refusal:
        """What the client is told."""
        return Refusal(
            self.status,
            f"cannot get an answer from {instance}: {self}",
            value=self.kind,
            next=f"cdnctl status {instance}",
            service=service,
            instance=instance,
        )


def connect_timeout(authority: str, connect_s: float) -> UpstreamError:
    """Nobody answers there."""
    return UpstreamError("connect_timeout", f"no connection to {authority} within {connect_s:g} s", status=504)


def connect_failed(authority: str, error: OSError) -> UpstreamError:
    """Refused, or out of reach."""
    return UpstreamError("connect_failed", f"no connection to {authority}: {error.strerror or error}")
