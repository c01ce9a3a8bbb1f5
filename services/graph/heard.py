"""What events of the bus become: who was seen doing what, what was done about it, who is refused. Each event once.

observable ─sighted→ technique (ATT&CK's own, if it was imported) ←mitigates─ course of action
observable ─sighted→ sensor      reaction ─targets→ observable      gateway ─blocks→ observable
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bus.messages import Blocked, Event, Reaction, Sighting
from services.graph.api import NodeRequest, RelationshipRequest
from services.graph.store import Transaction, heard_technique

TECHNIQUES = 20
"""Of one sighting."""
HOST = ("/32", "/128")


def observable(value: str) -> str:
    """Id of the node of an address, name or hash: the same whoever speaks of it, and a network of one is that one."""
    for suffix in HOST:
        if value.endswith(suffix) and (suffix == "/128") is (":" in value):
            value = value.removesuffix(suffix)
    return _id("observable", value.lower())


def _id(kind: str, name: str) -> str:
    return f"{kind}:{''.join(one if one.isprintable() else '?' for one in name)[:480]}"


def work_of(event: Event, facts: Sighting | Reaction | Blocked) -> Callable[[Transaction], list[str]]:
    """What the event does to the graph; returns the ids of relationships that may go when they are old."""
    match facts:
        case Sighting():
            return lambda to: _sighted(to, event, facts)
        case Reaction():
            return lambda to: _reacted(to, event, facts)
        case Blocked():
            return lambda to: _blocked(to, event, facts)


def _node(to: Transaction, id: str, *labels: str, **properties: Any) -> str:
    to.put_node(NodeRequest(id=id, labels=list(labels), properties=properties), merge=True)
    return id


def _sighted(to: Transaction, event: Event, facts: Sighting) -> list[str]:
    who = _node(to, observable(facts.value), "observable", facts.value_type[:128] or "unknown", value=facts.value[:480])
    others = [_technique(to, one) for one in dict.fromkeys(facts.techniques[:TECHNIQUES])]
    if facts.seen_by:
        others.append(_node(to, _id("sensor", facts.seen_by), "sensor", name=facts.seen_by))
    if not others:  # else the sighting would be nowhere
        others.append(_node(to, _id("sensor", event.source), "sensor", name=event.source))
    properties = {
        "at_s": facts.seen_s if facts.seen_s is not None else event.time_s,
        "confidence": facts.confidence,
        "count": facts.count,
        "event": event.id,
        "cause": event.cause,
    }
    made = []
    for at, other in enumerate(others):
        id = f"sighted {event.id} {at}"
        to.put_relationship(RelationshipRequest(id=id, source=who, target=other, type="sighted", properties=properties))
        made.append(id)
    for feed in facts.feeds[:TECHNIQUES]:
        to.put_relationship(
            RelationshipRequest(source=who, target=_node(to, _id("feed", feed), "feed", name=feed), type="listed-by")
        )
    return made


def _technique(to: Transaction, attack_id: str) -> str:
    known = to.db.execute(
        "SELECT n.id FROM nodes n JOIN labels l ON l.node = n.key AND l.label = 'attack-pattern' "
        "WHERE json_extract(properties, '$.attack_id') = ? ORDER BY n.key LIMIT 1",
        (attack_id,),
    ).get
    if known is not None:
        return str(known)
    id = heard_technique(attack_id[:128])
    return _node(to, id if id.isprintable() else _id("attack", attack_id), "attack-pattern", attack_id=attack_id[:128])


def _reacted(to: Transaction, event: Event, facts: Reaction) -> list[str]:
    properties = {
        "state": facts.state.value,
        "action": facts.action,
        "playbook": facts.playbook,
        "until_s": facts.until_s,
        "by": facts.by,
        "at_s": event.time_s,
        "event": event.id,
        "cause": event.cause,
    }
    what = _node(to, _id("reaction", facts.reaction), "reaction", **properties)
    whom = _node(to, observable(facts.target), "observable", value=facts.target[:480])
    to.put_relationship(RelationshipRequest(source=what, target=whom, type="targets"))
    return []


def _blocked(to: Transaction, event: Event, facts: Blocked) -> list[str]:
    whom = observable(facts.network)
    gateway = _id("gateway", event.source)
    id = f"{gateway} refuses {whom}"
    if facts.action == "delete":
        to.delete_relationship(id)
        return []
    _node(to, gateway, "gateway", name=event.source)
    _node(to, whom, "observable", value=facts.network[:480])
    to.put_relationship(
        RelationshipRequest(
            id=id,
            source=gateway,
            target=whom,
            type="blocks" if facts.action == "deny" else "allows",
            properties={
                "until_s": facts.until_s,
                "by": facts.by,
                "rule": facts.rule,
                "at_s": event.time_s,
                "event": event.id,
                "cause": event.cause,
            },
        )
    )
    return []
