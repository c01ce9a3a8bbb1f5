"""One bundle for each life of an instance, from what history has of it; bus/why.py puts it together."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from dataclasses import replace
from difflib import get_close_matches

import msgspec

from bus import why
from bus.messages import (
    CommandView,
    IncarnationView,
    LifecyclePhase,
    OperatorReply,
    ProcessState,
    Refusal,
    ServiceView,
    WhyReply,
    WhyRequest,
)
from bus.postmortems import Filed
from services.atlas.history import Busy, History, Memory
from services.atlas.queries import Life
from services.atlas.samples import sample_of

STATUSES = 10
STATUS_SPAN_S = 120.0
"""The last statuses are looked for so far back from the end."""
BEFORE_S, AFTER_S = 120.0, 30.0
"""Around an end, for events and commands."""
EVENTS = 50
COMMANDS = 20
LIVES_MOST = 50
REPLY_BYTES = 900 * 1024
"""A frame may have a MiB."""
NEAR = 3
_NAME_CHARS = 256
_NAMES_COMPARED = 2000


def near(name: str, names: Collection[str]) -> list[str]:
    """Names that may have been meant, the nearest first."""
    wanted = name[:_NAME_CHARS]
    holding = sorted(each for each in names if wanted and (wanted in each or each in wanted))
    return (holding or get_close_matches(wanted, sorted(names)[:_NAMES_COMPARED], n=NEAR, cutoff=0.5))[:NEAR]


class Lives:
    """The lives of one instance, as of one moment; on history's thread."""

    def __init__(self, memory: Memory, name: str, view: ServiceView | None, commands: tuple[CommandView, ...]) -> None:
        """view and commands: what is known of the present."""
        self._memory = memory
        self._queries = memory.queries
        self._name = name
        self._current = _runs(view)
        self._commands = commands

    def listed(self, limit: int, before_s: float | None = None) -> list[IncarnationView]:
        """Lives without their circumstances, newest first, by when they ended or were heard last."""
        ends = self._queries.ends(self._name, before_s=before_s, limit=limit)
        lives = self._queries.lives(self._name, before_s=before_s, limit=limit)
        told = {filed.report.incarnation for filed in ends}
        views = [(filed.ended_s, self._view(filed, self._life_of(filed))) for filed in ends]
        for life in lives:
            # Its post-mortem may be on another page, where it ended is not quite when it was heard last.
            if life.incarnation in told or self._queries.end(self._name, incarnation=life.incarnation) is not None:
                continue
            heard_s = float("inf") if life.incarnation == self._current else life.heard_s
            if before_s is None or heard_s < before_s:
                views.append((heard_s, self._view(None, life)))
        return [view for _, view in sorted(views, key=lambda one: -one[0])[:limit]]

    def bundle(self, key: str) -> IncarnationView | None:
        """One life with all that is known of it; None if there was none of that key."""
        incarnation = int(key) if key.isdecimal() and len(key) < 19 else None
        if incarnation is not None:
            filed = self._queries.end(self._name, incarnation=incarnation)
            life = self._queries.life(self._name, incarnation=incarnation)
        else:
            filed = self._queries.end(self._name, key=key)
            life = None if filed is None else self._life_of(filed)
        return None if filed is None and life is None else self._with_circumstances(filed, life)

    def last(self, limit: int) -> list[IncarnationView]:
        """The last ends with all that is known of them, newest first; before them a life that goes on."""
        found: list[IncarnationView] = []
        for view in self.listed(limit + 1):
            if len([each for each in found if each.ended_s is not None]) < limit:
                found.append(self.bundle(view.key) or view)
        return found

    def _life_of(self, filed: Filed) -> Life | None:
        """What the daemon said of that life: by its number, or by pid where the warden could not tell that."""
        report = filed.report
        if report.incarnation is not None:
            return self._queries.life(self._name, incarnation=report.incarnation)
        life = self._queries.life(self._name, pid=report.pid)
        began_s = filed.ended_s - report.lived_s
        if life is None or not began_s - 5 <= life.heard_s <= filed.ended_s + 5:
            return None  # an earlier process with the same pid
        return life

    def _view(self, filed: Filed | None, life: Life | None) -> IncarnationView:
        return why.view(self._name, filed, self._known(filed, life))

    def _known(self, filed: Filed | None, life: Life | None) -> why.Circumstances:
        if life is None:
            return why.Circumstances()
        return why.Circumstances(
            incarnation=life.incarnation,
            host=life.host,
            pid=life.pid,
            started_s=life.started_s,
            ended_s=None if filed is not None or life.incarnation == self._current else life.heard_s,
        )

    def _with_circumstances(self, filed: Filed | None, life: Life | None) -> IncarnationView:
        known = self._known(filed, life)
        ended_s = filed.ended_s if filed is not None else known.ended_s
        until_s = ended_s if ended_s is not None else 1e11
        around_s = ended_s if ended_s is not None else life.heard_s if life is not None else 0.0
        rows = self._memory.seconds(self._name, around_s - STATUS_SPAN_S, until_s + 1)
        samples = [sample_of(row) for row in rows]
        if known.incarnation is not None:
            samples = [sample for sample in samples if sample.incarnation == known.incarnation]
        events = self._queries.events(
            instance=self._name, since_s=around_s - BEFORE_S, until_s=until_s + AFTER_S, limit=EVENTS
        )
        return why.view(
            self._name,
            filed,
            replace(
                known,
                statuses=tuple(samples[-STATUSES:]),
                events=tuple(event for _, event in reversed(events)),
                commands=self._commands_around(around_s - BEFORE_S, until_s + AFTER_S),
                ends_last_hour=self._queries.count_ends(self._name, around_s - why.HOUR_S, around_s),
                ends_last_day=self._queries.count_ends(self._name, around_s - why.DAY_S, around_s),
            ),
        )

    def _commands_around(self, since_s: float, until_s: float) -> tuple[CommandView, ...]:
        held = {command.id: command for command in self._queries.commands(self._name, since_s, until_s, COMMANDS)}
        held |= {command.id: command for command in self._commands if since_s <= command.asked_at_s < until_s}
        return tuple(sorted(held.values(), key=lambda command: command.asked_at_s)[-COMMANDS:])


def _runs(view: ServiceView | None) -> int | None:
    """The incarnation that has not ended, as far as is known."""
    if view is None or view.phase is LifecyclePhase.STOPPED:
        return None
    # Without a warden, one that is silent may be anything; nobody saw it end.
    return view.incarnation if view.phase is not None or view.state is ProcessState.UNKNOWN else None


def answer_why(
    request: WhyRequest,
    history: History,
    view: ServiceView | None,
    commands: tuple[CommandView, ...],
    names: Collection[str],
    reply: Callable[[OperatorReply], None],
) -> OperatorReply | None:
    """Have history answer by ``reply``, called on its thread; or the answer, if it can be given at once."""

    def question(memory: Memory) -> None:
        try:
            reply(_answer(request, memory, view, commands, names))
        except (sqlite3.Error, ValueError) as error:
            reply(Refusal(id=request.id, reason=f"cannot read the history: {error}"))

    try:
        history.ask(question)
    except Busy as error:
        return Refusal(id=request.id, reason=f"cannot say why: {error}; try again")
    return None


def _answer(
    request: WhyRequest,
    memory: Memory,
    view: ServiceView | None,
    commands: tuple[CommandView, ...],
    names: Collection[str],
) -> OperatorReply:
    lives = Lives(memory, request.name, view, commands).last(max(1, min(request.limit, LIVES_MOST)))
    if not lives and view is None:
        meant = near(request.name, {*names, *memory.queries.names()})
        did_you = f"; did you mean {' or '.join(meant)}?" if meant else ""
        return Refusal(id=request.id, reason=f"unknown service {request.name[:_NAME_CHARS]}{did_you}")
    fitting: list[IncarnationView] = []
    left_bytes = REPLY_BYTES
    for life in lives:
        left_bytes -= len(msgspec.msgpack.encode(life))
        if left_bytes >= 0:
            fitting.append(life)
    return WhyReply(id=request.id, name=request.name, incarnations=tuple(fitting))
