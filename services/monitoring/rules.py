"""Alert rules: what they say, and how an alert goes from pending to firing to resolved. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from bus.messages import AlertState
from services.monitoring.evaluate import Vector
from services.monitoring.exposition import NAME, Labels

RuleName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.:-]{0,99}\Z")]
LabelName = Annotated[str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,99}\Z")]
LabelText = Annotated[str, Meta(max_length=1_000)]


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PUT /rules/NAME``: fires where the expression has had a value for ``for_s``."""

    expr: Annotated[str, Meta(min_length=1, max_length=4_000)]
    for_s: Annotated[float, Meta(ge=0, le=86_400 * 30)] = 0.0
    labels: dict[LabelName, LabelText] = {}
    annotations: dict[LabelName, LabelText] = {}


class Alert(Struct, frozen=True, kw_only=True):
    """One series of a rule's expression that has a value."""

    state: AlertState
    since_s: float
    """When the expression first had a value; Unix time, as it has to outlive the process."""
    value: float
    event: str = ""
    """Id of the event that told of the state."""


class Change(Struct, frozen=True, kw_only=True):
    """What others are told."""

    rule: str
    labels: Labels
    state: AlertState
    value: float | None
    cause: str = ""


Alerts = Mapping[Labels, Alert]


def labels_of(name: str, rule: Rule, series: Labels) -> Labels:
    """An alert's labels: the series' own, the rule's above them, and its name."""
    merged = {label: text for label, text in series if label != NAME} | rule.labels
    merged["alertname"] = name
    return tuple(sorted((label, text) for label, text in merged.items() if text))


def step(
    name: str, rule: Rule, alerts: Alerts, found: Vector, now_s: float
) -> tuple[dict[Labels, Alert], list[Change]]:
    """The alerts after one evaluation, and what has changed.

    What was pending and is over is not told: nobody was alarmed.
    """
    present: dict[Labels, float] = {}
    for series, column in found.items():
        if column[0] is not None:
            present[labels_of(name, rule, series)] = column[0]
    after: dict[Labels, Alert] = {}
    changes: list[Change] = []
    for labels, value in present.items():
        known = alerts.get(labels)
        # A wall clock that was set back must not make an alert wait for years.
        since_s = min(known.since_s, now_s) if known is not None else now_s
        is_due = now_s - since_s >= rule.for_s
        state = AlertState.FIRING if is_due or (known and known.state is AlertState.FIRING) else AlertState.PENDING
        if known is None or known.state is not state:
            changes.append(
                Change(rule=name, labels=labels, state=state, value=value, cause=known.event if known else "")
            )
        after[labels] = Alert(state=state, since_s=since_s, value=value, event=known.event if known else "")
    for labels, alert in alerts.items():
        if labels not in present and alert.state is AlertState.FIRING:
            changes.append(Change(rule=name, labels=labels, state=AlertState.RESOLVED, value=None, cause=alert.event))
    return after, changes
