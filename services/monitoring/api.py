"""What goes in and out by HTTP. ``/api/v1`` has the shapes of Prometheus' HTTP API, so that its clients can ask."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

from msgspec import Meta, Struct

from cdn_daemon.api import Reason
from services.monitoring.rules import LabelName, LabelText, Rule


class Good(Struct, frozen=True, kw_only=True):
    """An answer."""

    status: str = "success"
    data: Any
    warnings: list[str] = []


class Bad(Struct, frozen=True, kw_only=True):
    """A refusal: Prometheus' ``errorType`` and ``error``, and the same in this project's words."""

    status: str = "error"
    errorType: str
    error: str
    reason: Reason


class StaticTarget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of ``PUT /targets``."""

    url: Annotated[str, Meta(max_length=500)]
    labels: dict[LabelName, LabelText] = {}


class TargetsRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PUT /targets``: these, and no others, beside those that ATLAS knows."""

    targets: list[StaticTarget]


class TargetsAnswer(Struct, frozen=True, kw_only=True):
    """``GET /targets``."""

    targets: list[StaticTarget]


class RuleAnswer(Struct, frozen=True, kw_only=True):
    """``GET /rules/NAME``."""

    name: str
    rule: Rule
    alerts: list[dict[str, Any]] = []


class RulesAnswer(Struct, frozen=True, kw_only=True):
    """``GET /rules``."""

    rules: list[RuleAnswer]


class ImportAnswer(Struct, frozen=True, kw_only=True):
    """All of them are on disk."""

    taken: int
    known: int
    """Of those, how many were there already, with the same value."""


class Told(Struct, frozen=True, kw_only=True, tag="alert"):
    """``/ws/stream``: an alert has changed."""

    name: str
    state: str
    labels: dict[str, str]
    annotations: dict[str, str]
    value: float | None
    event: str


def shown(value: float) -> str:
    """A value as Prometheus writes it: in full, without an exponent."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(value)
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")
