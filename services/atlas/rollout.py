"""Whose turn it is among the commands of one order. Pure.

Without ``batch`` all are under way at once, but that starts wait for what they
depend on, and stops for what depends on them. With it so many are under way at a
time, what others depend on first, and none after the first that is not done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from bus.messages import OutcomeKind, Verb
from services.atlas.journal import Entry, Stage

_ENDED_BADLY = {
    OutcomeKind.FAILED: "failed",
    OutcomeKind.REJECTED: "was rejected",
    OutcomeKind.UNKNOWN: "is not known to be done",
}


def has_order(verb: Verb, batch: int | None) -> bool:
    """Whether any may have to wait for another."""
    return verb in (Verb.START, Verb.STOP) or batch is not None


def waits(
    verb: Verb, batch: int | None, names: Collection[str], needs: Mapping[str, Collection[str]]
) -> dict[str, tuple[str, ...]]:
    """Name → the names of the order that must have ended before it. needs: name → what it depends on, near and far."""
    after: dict[str, list[str]] = {name: [] for name in names}
    if has_order(verb, batch):
        for name in names:
            for need in sorted(after.keys() & needs.get(name, ())):
                first, then = (name, need) if verb is Verb.STOP else (need, name)
                after[then].append(first)
    return {name: tuple(before) for name, before in after.items()}


def next_turns(entries: Sequence[Entry]) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    """Those of an order whose turn has come, and those whose turn will not come, each with why not."""
    waiting = [entry for entry in entries if entry.stage is Stage.WAITING]
    if not waiting:
        return [], []
    batch = waiting[0].request.batch
    by_name = {entry.name: entry for entry in entries}
    stopper = next((entry for entry in entries if _ends_the_rollout(entry, batch)), None)
    if stopper is not None:
        return [], [(entry, _not_tried(stopper)) for entry in waiting]
    under_way = sum(entry.stage in (Stage.ASKED, Stage.ACCEPTED) for entry in entries)
    room = len(waiting) if batch is None else batch - under_way
    begin: list[Entry] = []
    refused: list[tuple[Entry, str]] = []
    for entry in waiting:
        before = [by_name[name] for name in entry.after if name in by_name]
        lacking = next((each for each in before if each.kind not in (None, OutcomeKind.DONE)), None)
        if lacking is not None and entry.request.verb is Verb.START:
            refused.append((entry, f"{_not_tried(lacking)}; it depends on that"))
        elif len(begin) < room and all(each.stage is Stage.ENDED for each in before):
            begin.append(entry)
    if not (begin or refused or under_way):
        begin.append(waiting[0])  # they wait for each other in a circle; wardens refuse such, but not across hosts
    return begin, refused


def _ends_the_rollout(entry: Entry, batch: int | None) -> bool:
    if entry.stage is not Stage.ENDED:
        return False
    return bool(entry.lapsed) or (batch is not None and entry.kind is not OutcomeKind.DONE)


def _not_tried(entry: Entry) -> str:
    if entry.kind is None or entry.kind is OutcomeKind.DONE:
        return f"not tried: {entry.lapsed}"
    why = f": {entry.reason}" if entry.reason else ""
    return f"not tried: {entry.name} {_ENDED_BADLY[entry.kind]}{why}"
