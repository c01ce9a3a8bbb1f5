"""What is to be done about a sighting, by the playbooks. Pure: what is known and the time in, what is wanted out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from services.threat_reaction.memory import PAUSE_S, Ban, Memory, Seen, is_good
from services.threat_reaction.networks import Address, Network, alone, prefix_of
from services.threat_reaction.playbooks import CONTAINING, Action, Playbook, walk

COLLATERAL_MAX = 0
"""Addresses that do well in a prefix that may be banned with the others."""


class Sighted(Struct, frozen=True, kw_only=True):
    """A sighting that can be judged."""

    address: Address
    kind: str
    at_s: float
    count: int = 1
    confidence: int = 100
    source: str = ""
    cause: str | None = None
    """Id of the event that told of it."""

    def seen(self) -> Seen:
        """As memory keeps it."""
        return Seen(self.at_s, self.kind, self.count, self.confidence)


class Wanted(Struct, frozen=True, kw_only=True):
    """What a playbook wants done."""

    playbook: str
    address: Address
    verbs: tuple[str, ...]
    network: Network | None = None
    """What is to be contained; None: nothing, it only tells."""
    kind: str = ""
    """``ban`` or ``throttle``."""
    for_s: float = 0.0
    note: str = ""


def judge(
    memory: Memory,
    playbooks: Mapping[str, Playbook],
    sighted: Sighted,
    now_s: float,
    *,
    busy: Collection[str] = (),
) -> list[Wanted]:
    """What each playbook wants because of it; memory has seen it already.

    ``busy`` are playbooks that are at it with this address: asked about it, or done a moment ago.
    """
    if is_good(sighted.kind) or memory.ban_of(sighted.address) is not None:
        return []
    wanted = []
    for name, playbook in playbooks.items():
        start = playbook.start()
        if not playbook.enabled or name in busy:
            continue
        if sighted.kind not in start.on or sighted.confidence < start.confidence_at_least:
            continue
        actions = walk(
            playbook,
            lambda condition, least=start.confidence_at_least: memory.holds(  # type: ignore[misc]
                condition, sighted.address, least, now_s
            ),
        )
        if actions:
            wanted.append(want(memory, name, actions, sighted.address, now_s))
    return wanted


def want(memory: Memory, name: str, actions: Iterable[Action], address: Address, now_s: float) -> Wanted:
    """The actions as one: of those that contain, the last; narrowed to what may be hit."""
    verbs: list[str] = []
    containing: Action | None = None
    note = ""
    for action in actions:
        if action.action in CONTAINING:
            containing = action
        else:
            verbs.append(action.action)
    if containing is None:
        return Wanted(playbook=name, address=address, verbs=tuple(verbs))
    verb, network = containing.action, alone(address)
    if verb == "dominate":
        prefix = prefix_of(address)
        good = memory.good_in(prefix, now_s)
        if good > COLLATERAL_MAX:
            verb = "disable"
            note = f"the address alone: {good} of {prefix} do well"
        else:
            network = prefix
    if (spared := memory.spared(network)) is not None:
        note = f"nothing is contained: {spared} is never blocked"
        return Wanted(playbook=name, address=address, verbs=tuple(verbs or ["detect"]), note=note)
    for_s = containing.for_s
    if for_s is None:
        for_s = PAUSE_S if verb == "disrupt" else memory.ban_s(network, now_s)
    return Wanted(
        playbook=name,
        address=address,
        verbs=(*verbs, verb),
        network=network,
        kind=CONTAINING[verb],
        for_s=for_s,
        note=note,
    )


class Step(Struct, frozen=True, kw_only=True):
    """What a simulation would have done at one sighting."""

    at_s: float
    address: str
    action: str
    """``let through``, ``held off`` (it was banned then), or what was decided."""
    network: str | None = None
    for_s: float | None = None
    note: str = ""


class Simulation(Struct, frozen=True, kw_only=True):
    """What a playbook would have done, each of its proposals approved at once."""

    sightings: int
    let_through: int
    held_off: int
    bans: int
    addresses_banned: int
    decisions: list[Step]


def simulate(
    name: str, playbook: Playbook, sightings: Iterable[Sighted], never: Mapping[Network, str], *, decisions_max: int
) -> Simulation:
    """Play the sightings, in order of time, to a memory of their own."""
    memory = Memory()
    memory.never.update(never)
    let_through = held_off = bans = 0
    banned: set[Address] = set()
    decisions: list[Step] = []
    told: dict[Address, float] = {}
    for sighted in sorted(sightings, key=lambda one: one.at_s):
        now_s = sighted.at_s
        for ban in [ban for ban in memory.bans.values() if ban.until_s <= now_s]:
            memory.end(ban.network, ban.until_s, overturned=False)
        if memory.ban_of(sighted.address) is not None:
            held_off += sighted.count
            continue
        let_through += sighted.count
        memory.see(sighted.address, sighted.seen())
        for wanted in judge(memory, {name: playbook}, sighted, now_s):
            if wanted.network is None and told.get(sighted.address, 0.0) > now_s:
                continue
            told[sighted.address] = now_s + 300.0
            if len(decisions) < decisions_max:
                decisions.append(
                    Step(
                        at_s=now_s,
                        address=str(sighted.address),
                        action=", ".join(wanted.verbs),
                        network=None if wanted.network is None else str(wanted.network),
                        for_s=wanted.for_s or None,
                        note=wanted.note,
                    )
                )
            if wanted.network is not None:
                bans += 1
                banned.add(sighted.address)
                memory.begin(
                    Ban(
                        id=bans,
                        network=wanted.network,
                        kind=wanted.kind,
                        starts_s=now_s,
                        until_s=now_s + wanted.for_s,
                        level=0.0,
                        reaction="",
                        scenario=name,
                        by="simulation",
                        revision=bans,
                    )
                )
    return Simulation(
        sightings=let_through + held_off,
        let_through=let_through,
        held_off=held_off,
        bans=bans,
        addresses_banned=len(banned),
        decisions=decisions,
    )
