"""OpenC2 language 1.0, as far as a packet filter's ``deny``, ``allow``, ``delete`` and ``query`` go. Pure.

https://docs.oasis-open.org/openc2/oc2ls/v1.0/oc2ls-v1.0.html, and the profile for stateless packet filtering (slpf).
Times on the wire are milliseconds since the epoch.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import msgspec

from services.gateway.blocklist import RULES_MAX, BadNetwork, Blocklist, Network, Rule, parse_network

BODY_MAX_BYTES = 64 << 10
QUERIED_MAX = 1000
"""Rules in one answer."""
NETS = {"ipv4_net": 4, "ipv6_net": 6}
PAIRS = {
    "allow": [*NETS],
    "deny": [*NETS],
    "delete": [*NETS],
    "query": ["features", *NETS],
}
FEATURES = ("versions", "profiles", "pairs", "rate_limit")
PROFILE = "x-cdn-gateway"
ACTIONS = re.compile(
    "scan|locate|query|deny|contain|allow|start|stop|restart|cancel|set|update|redirect|create|delete|detonate|restore"
    "|copy|investigate|remediate"
)
"""Of the language; which of them are implemented, PAIRS says."""
_ID = re.compile(r"[!-~]{1,36}")
_TIME_MAX_MS = 1 << 53

Status = Literal[102, 200, 400, 401, 404, 500, 501]
TEXTS: dict[int, str] = {102: "processing", 200: "OK", 401: "unauthorized"}


class Answer(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An OpenC2 response."""

    status: int
    status_text: str = ""
    results: dict[str, Any] = {}


class Failed(Exception):
    """The command is answered with this status."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.answer = Answer(status=status, status_text=text)


class OwnArgs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What this actuator takes beside what the language has."""

    cause: Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,256}\Z")] | None = None
    """Id of the event on the bus that the command is because of."""
    rate_per_s: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    """Of a deny: only what goes beyond so many requests a second, of all of the network together, is refused."""


class Args(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may be said of a command."""

    start_time: int | None = None
    stop_time: int | None = None
    duration: int | None = None
    response_requested: Literal["none", "ack", "status", "complete"] = "complete"
    own: OwnArgs = msgspec.field(name=PROFILE, default_factory=OwnArgs)


class _Command(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    action: str
    target: dict[str, Any]
    args: dict[str, Any] = {}
    actuator: dict[str, Any] = {}
    command_id: str | None = None


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A command that can be carried out."""

    id: str | None
    action: str
    network: Network | None
    """None: it is the features that are queried."""
    features: tuple[str, ...] = ()
    args: Args

    def __str__(self) -> str:
        """For the log."""
        return f"{self.action} {self.network or 'features'}"


def read(body: bytes, request_id: str | None) -> Command:
    """The command in a request's body; ``request_id`` stands in for an id of its own. Raises Failed."""
    try:
        raw = msgspec.json.decode(body, type=_Command)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Failed(400, f"cannot read the command: {error}") from error
    id = raw.command_id if raw.command_id is not None else request_id
    if id is not None and not _ID.fullmatch(id):
        raise Failed(400, "cannot take this command_id: it must be 1 to 36 visible ASCII characters")
    if not ACTIONS.fullmatch(raw.action):
        raise Failed(400, f"cannot tell what action {raw.action[:40]!r} is")
    if len(raw.target) != 1:
        raise Failed(400, f"cannot take {len(raw.target)} targets: one is needed")
    ((target, value),) = raw.target.items()
    if target not in PAIRS.get(raw.action, ()):
        raise Failed(501, f"cannot {raw.action} {target[:40]!r}: not implemented; query features tells what is")
    if raw.actuator.keys() - {"slpf"} or any(raw.actuator.values()):
        raise Failed(501, f"cannot act as the actuator {str(raw.actuator)[:100]!r}: only slpf, without specifiers")
    if unknown := raw.args.keys() - set(Args.__struct_encode_fields__):
        raise Failed(501, f"cannot take the arguments {str(sorted(unknown))[:100]}: not implemented")
    try:
        args = msgspec.convert(raw.args, Args)
    except msgspec.ValidationError as error:
        raise Failed(400, f"cannot take the arguments: {error}") from error
    if args.own.rate_per_s is not None and raw.action != "deny":
        raise Failed(400, f"cannot {raw.action} at a rate: only deny takes rate_per_s")
    if target == "features":
        if not isinstance(value, list) or not set(map(str, value)) <= set(FEATURES):
            raise Failed(400, f"cannot tell features {str(value)[:100]}: they are {', '.join(FEATURES)}")
        return Command(id=id, action=raw.action, network=None, features=tuple(value), args=args)
    try:
        network = parse_network(value if isinstance(value, str) else repr(value), NETS[target])
    except BadNetwork as error:
        raise Failed(400, f"cannot take this {target}: {error}") from error
    return Command(id=id, action=raw.action, network=network, args=args)


def period_ms(args: Args, now_ms: float) -> tuple[float, float]:
    """From when to when, the end perhaps infinite; raises Failed."""
    given = (args.start_time, args.stop_time, args.duration)
    if any(time is not None and not 0 <= time <= _TIME_MAX_MS for time in given) or args.duration == 0:
        raise Failed(400, "cannot take a time or duration that is negative, none, or over 2^53 ms")
    if None not in given:
        raise Failed(400, "cannot take start_time, stop_time and duration: two of them say all")
    start: float = args.start_time if args.start_time is not None else now_ms
    stop: float = math.inf
    if args.stop_time is not None:
        stop = args.stop_time
        if args.duration is not None:
            start = stop - args.duration
    elif args.duration is not None:
        stop = start + args.duration
    if stop <= max(start, now_ms):
        raise Failed(400, "cannot carry out what is over before it begins")
    return start, stop


def carry_out(
    command: Command, rules: Blocklist, *, now_s: float, now_ms: float
) -> tuple[Answer, Rule | Network | None]:
    """The answer, and what becomes of the rules: a new one, a network whose rule is gone, or nothing; raises Failed.

    ``now_s`` and ``now_ms`` are the same moment, on the rules' clock and on the wire's.
    """
    network = command.network
    if network is None:
        known = {"versions": ["1.0"], "profiles": ["slpf", PROFILE], "pairs": PAIRS}
        results = {name: known[name] for name in command.features if name in known}
        return Answer(status=200, status_text=TEXTS[200], results=results), None
    if command.action == "query":
        found = rules.about(network, now_s, QUERIED_MAX)
        if not found:
            raise Failed(404, f"cannot find a rule about {network}")
        shown = [_shown(rule, now_s, now_ms) for rule in sorted(found, key=lambda rule: rule.network.prefixlen)]
        return Answer(status=200, status_text=TEXTS[200], results={PROFILE: {"rules": shown}}), None
    if command.action == "delete":
        if rules.get(network) is None:
            raise Failed(404, f"cannot find a rule of {network} itself")
        return Answer(status=200, status_text=TEXTS[200]), network
    if command.action == "deny" and not rules.may_deny(network):
        raise Failed(400, f"cannot deny {network}: loopback is never blocked without CDN_GATEWAY_BLOCK_LOOPBACK=yes")
    if len(rules) >= RULES_MAX and rules.get(network) is None:
        raise Failed(500, f"cannot hold another rule: there are {RULES_MAX}; delete some")
    start, stop = period_ms(command.args, now_ms)
    rule = Rule(
        network=network,
        allow=command.action == "allow",
        starts_s=now_s + (start - now_ms) / 1000,
        ends_s=now_s + (stop - now_ms) / 1000,
        command=command.id or "",
        rate_per_s=command.args.own.rate_per_s,
    )
    return Answer(status=200, status_text=TEXTS[200]), rule


def _shown(rule: Rule, now_s: float, now_ms: float) -> dict[str, Any]:
    def ms(at_s: float) -> int | None:
        return None if math.isinf(at_s) else round(now_ms + (at_s - now_s) * 1000)

    rate = {} if rule.rate_per_s is None else {"rate_per_s": rule.rate_per_s}
    return {
        "network": str(rule.network),
        "action": "allow" if rule.allow else "deny",
        "start_time": ms(rule.starts_s),
        "stop_time": ms(rule.ends_s),
        "command_id": rule.command,
        **rate,
    }
