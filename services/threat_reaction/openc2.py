"""What a gateway is to be told, as OpenC2 commands, and what is still to be told. Pure.

https://docs.oasis-open.org/openc2/oc2ls/v1.0/oc2ls-v1.0.html and the profile for packet filters. A ban is told with its
duration: it ends at the gateway by itself, even if nobody is there any more to lift it, and whatever either clock says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import msgspec
from msgspec import Struct

from services.threat_reaction.memory import Ban
from services.threat_reaction.networks import Network

PROFILE = "x-cdn-gateway"
OURS = "tr-"
"""How the ids of our commands begin: a gateway's rules that are nobody's any more are told from an operator's."""
QUERIED_MAX = 1000
"""Rules in one answer of the gateway's; with as many there may be more."""
SLACK_S = 2.0
SLOWED_PER_S = 0.2
"""Requests a second that are let in of what is throttled."""
EVERYBODY = {4: "0.0.0.0/0", 6: "::/0"}


class Rule(Struct, frozen=True, kw_only=True):
    """What a gateway does about a network."""

    until_s: float
    ours: bool
    allow: bool = False
    rate_per_s: float | None = None
    """What it lets in; None: nothing."""


class Deny(Struct, frozen=True, kw_only=True):
    """The gateway is to refuse the network, or all of it beyond a rate."""

    ban: Ban


class Delete(Struct, frozen=True, kw_only=True):
    """The gateway is to refuse it no more."""

    network: Network


Order = Deny | Delete


class BadAnswerError(ValueError):
    """What the gateway said is no answer."""


def orders(wanted: Mapping[Network, Ban], rules: Mapping[Network, Rule], now_s: float) -> list[Order]:
    """What makes the rules what is wanted. What an operator has ruled for the same network is left as it is."""
    due: list[Order] = []
    for network, ban in wanted.items():
        if ban.until_s <= now_s:
            continue
        if _is_due(ban, rules.get(network), now_s):
            due.append(Deny(ban=ban))
    due += [
        Delete(network=network)
        for network, rule in rules.items()
        if rule.ours and rule.until_s > now_s and network not in wanted
    ]
    return due


def _is_due(ban: Ban, rule: Rule | None, now_s: float) -> bool:
    if rule is None or rule.until_s <= now_s:
        return True
    if rule.ours:
        return abs(rule.until_s - ban.until_s) > SLACK_S or rule.rate_per_s != rate_of(ban)
    weaker = rate_of(ban) is not None and rule.rate_per_s is None
    return not rule.allow and rule.until_s < ban.until_s - SLACK_S and not weaker


def rate_of(ban: Ban) -> float | None:
    """Requests a second that are let in all the same; None: none."""
    return SLOWED_PER_S if ban.kind == "throttle" else None


def _target(network: Network) -> dict[str, str]:
    return {f"ipv{network.version}_net": str(network)}


def command(order: Order, nonce: str, now_s: float) -> bytes:
    """The command's body; ``nonce`` tells it from every other of the same ban."""
    if isinstance(order, Delete):
        return msgspec.json.encode(
            {"action": "delete", "target": _target(order.network), "command_id": f"{OURS}0-{nonce}"[:36]}
        )
    ban = order.ban
    args: dict[str, Any] = {"duration": max(1, math.ceil((ban.until_s - now_s) * 1000))}
    own = {"cause": ban.cause, "rate_per_s": rate_of(ban)}
    if any(value is not None for value in own.values()):
        args[PROFILE] = {name: value for name, value in own.items() if value is not None}
    return msgspec.json.encode(
        {
            "action": "deny",
            "target": _target(ban.network),
            "args": args,
            "command_id": f"{OURS}{ban.id}-{nonce}"[:36],
        }
    )


def query(network: str, version: int) -> bytes:
    """Asks for the rules that cover the network, or lie in it."""
    return msgspec.json.encode({"action": "query", "target": {f"ipv{version}_net": network}})


class _Shown(Struct, frozen=True):
    network: str
    action: str
    stop_time: int | None = None
    command_id: str = ""
    rate_per_s: float | None = None


class _Results(Struct, frozen=True):
    profile: dict[str, list[_Shown]] = msgspec.field(name=PROFILE, default={})


class _Answer(Struct, frozen=True):
    status: int
    status_text: str = ""
    results: _Results = _Results()


def read_answer(body: bytes) -> tuple[int, str]:
    """Status and text; raises BadAnswerError."""
    answer = _decoded(body)
    return answer.status, answer.status_text


def read_rules(body: bytes, *, ahead_s: float) -> dict[Network, Rule]:
    """The rules in an answer; ``ahead_s`` is how far our clock is ahead of the wall's. Raises BadAnswerError."""
    rules = {}
    for shown in _decoded(body).results.profile.get("rules", []):
        try:
            network = ip_network(shown.network)
        except ValueError as error:
            raise BadAnswerError(f"cannot read a rule of the gateway: {error}") from error
        until_s = math.inf if shown.stop_time is None else shown.stop_time / 1000 + ahead_s
        rules[network] = Rule(
            until_s=until_s,
            ours=shown.command_id.startswith(OURS),
            allow=shown.action == "allow",
            rate_per_s=shown.rate_per_s,
        )
    return rules


def _decoded(body: bytes) -> _Answer:
    try:
        return msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswerError(f"cannot read the gateway's answer: {error}") from error
