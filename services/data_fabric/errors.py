"""What the service refuses, said so that the sender can do something about it."""

from __future__ import annotations

from msgspec import Struct


class Reason(Struct, frozen=True, kw_only=True):
    """The body of every error answer, under the key ``error``."""

    status: int
    what: str
    value: str | None = None
    limit: str | None = None
    next: str | None = None


class ErrorAnswer(Struct, frozen=True, kw_only=True):
    """``{"error": {"status", "what", "value", "limit", "next"}}``."""

    error: Reason


class RefusedError(Exception):
    """A request cannot be done; nothing of it was done. Becomes an ErrorAnswer."""

    def __init__(
        self, status: int, what: str, *, value: object = None, limit: object = None, next: str | None = None
    ) -> None:
        self.reason = Reason(
            status=status,
            what=what,
            value=None if value is None else _short(str(value)),
            limit=None if limit is None else str(limit),
            next=next,
        )
        super().__init__(what)


def _short(text: str, chars: int = 200) -> str:
    return text if len(text) <= chars else f"{text[:chars]}… ({len(text)} characters)"
