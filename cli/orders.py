"""Start, stop and restart: by ATLAS, else by supervisord, each name followed to its outcome."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from types import MappingProxyType

from bus.endpoints import RunDir
from bus.messages import OrderAccepted, OrderOutcome, OrderProgress, OutcomeKind, ProcessState, ServiceView, Verb
from cli import atlas
from cli.atlas import NO_DETAILS, SILENCE, AtlasSilent, Details, Order, Refused
from cli.context import say
from cli.direct import DIRECT, NotDone, carry_out_at_once
from cli.exits import Exit, Problem
from cli.fallback import NoSupervisord, Process, Supervisord, SupervisordRefused, SupervisordSilent, instance_of
from cli.progress import Mark, Progress
from cli.selection import ATLAS
from cli.supervised import perform, tell

_LOOK_S = 0.1
_GRACE_S = 1.0
"""ATLAS says itself when a command's time is over; it gets this much longer to do so."""
_ENDING = frozenset({Verb.START, Verb.STOP, Verb.RESTART, Verb.SIGNAL, Verb.DISABLE})
"""What may end the process; ATLAS cannot follow its own end."""
_SUPERVISOR_FAILURES = (NoSupervisord, SupervisordSilent, SupervisordRefused)


def carry_out(
    run_dir: RunDir,
    verb: Verb,
    services: Sequence[ServiceView],
    timeout_s: float,
    *,
    by_atlas: frozenset[str],
    show: Progress,
    details: Details = NO_DETAILS,
) -> Iterator[OrderOutcome]:
    """Yield the outcome of each service as it is there. Raises Problem if nobody takes the order.

    What ATLAS does not know goes through supervisord; so does ATLAS itself, last: it cannot follow its own end.
    """
    asked = [view for view in services if view.instance in by_atlas and (view.instance != ATLAS or verb not in _ENDING)]
    if asked:
        yield from _by_atlas(run_dir, verb, asked, timeout_s, show, details)
    if rest := [view.instance for view in services if view not in asked]:
        yield from _by_supervisord(run_dir, verb, rest, timeout_s, show, details)


def hand_over(
    run_dir: RunDir,
    verb: Verb,
    services: Sequence[ServiceView],
    timeout_s: float,
    *,
    by_atlas: frozenset[str],
    details: Details = NO_DETAILS,
) -> dict[str, str]:
    """Give the order and do not wait: name → id of its command, empty from supervisord. Raises Problem.

    supervisord has a start and a stop that can be left to it; NotLeft is raised for others.
    """
    asked = [view.instance for view in services if view.instance in by_atlas]
    rest = [view.instance for view in services if view.instance not in by_atlas]
    leaves = verb in (Verb.START, Verb.STOP)
    if rest and not leaves:
        raise NotLeft
    commands = {}
    if asked:
        try:
            order = _ordered(run_dir, verb, asked, timeout_s, details)
            order.close()
            commands = order.commands
        except AtlasSilent:
            say(f"{SILENCE} to {verb} {', '.join(asked)}; asking supervisord")
            if not leaves:
                raise NotLeft from None
            rest += asked
    if not rest:
        return commands
    supervisord = Supervisord(run_dir)
    try:
        known = {instance_of(process): process.name for process in supervisord.processes()}
        for name in rest:
            if refusal := tell(supervisord, verb, known.get(name, name)):
                raise Problem(f"cannot {verb} {name}: {refusal}", Exit.FAILED)
    except _SUPERVISOR_FAILURES as error:
        raise Problem(f"cannot {verb} {', '.join(rest)}: {error}", Exit.FAILED) from error
    return {**commands, **dict.fromkeys(rest, "")}


class NotLeft(Exception):
    """The order has to be followed by whoever gives it."""


def _ordered(
    run_dir: RunDir, verb: Verb, names: Sequence[str], timeout_s: float, details: Details = NO_DETAILS
) -> Order:
    try:
        return atlas.order(run_dir, verb, names, timeout_s, details)
    except Refused as error:
        raise Problem(f"cannot {verb} {', '.join(names)}: {error}", Exit.FAILED) from error


def _by_atlas(
    run_dir: RunDir, verb: Verb, services: Sequence[ServiceView], timeout_s: float, show: Progress, details: Details
) -> Iterator[OrderOutcome]:
    """Give ATLAS the order and follow it, through ATLAS's own restarts; nothing is ordered a second time."""
    began_s = time.monotonic()
    open_names = {view.instance: view for view in services}
    try:
        order = _ordered(run_dir, verb, list(open_names), timeout_s, details)
    except AtlasSilent:
        say(f"{SILENCE} to {verb} {', '.join(open_names)}; asking supervisord")
        yield from _by_supervisord(run_dir, verb, list(open_names), timeout_s, show, details, before=open_names)
        return
    try:
        for outcome in _followed(order, run_dir, verb, open_names, began_s, timeout_s, show):
            mark(show, outcome)
            yield outcome
    except Refused as error:
        raise Problem(f"cannot {verb} {', '.join(open_names)}: {error}", Exit.FAILED) from error
    except KeyboardInterrupt:
        if open_names:
            names = " ".join(open_names)
            say(f"ATLAS goes on with the order to {verb} {names}; what becomes of it: cdnctl history {names}")
        raise
    finally:
        order.close()


def _followed(
    order: Order,
    run_dir: RunDir,
    verb: Verb,
    open_names: dict[str, ServiceView],
    began_s: float,
    timeout_s: float,
    show: Progress,
) -> Iterator[OrderOutcome]:
    """Outcomes as ATLAS tells them; takes from open_names what is over. Raises Refused.

    An ATLAS that says nothing is asked again where the order stands: it may be a new one, which has taken it up.
    While there is none, or it has lost its journal, what became of the order is looked up; and ATLAS has
    each name's time, from when its turn comes, to say so itself.
    """
    heard_s = told_s = asked_s = time.monotonic()
    most_s = timeout_s * len(open_names) + _GRACE_S
    lookup: _Lookup | None = None
    while open_names:
        now_s = time.monotonic()
        try:
            reply = order.next(_LOOK_S)
        except atlas.Forgotten:
            lookup = lookup or _InFleet(run_dir)
            reply = None
        show.tick()
        if reply is not None:
            heard_s = now_s
        if isinstance(reply, OrderProgress):
            told_s = now_s
            show.show(reply.name, reply.text)
        elif isinstance(reply, OrderOutcome):
            told_s = now_s
            if open_names.pop(reply.name, None) is not None:
                yield reply
        elif isinstance(reply, OrderAccepted):
            if isinstance(lookup, _InTable):
                lookup = None
        elif now_s - max(heard_s, asked_s) > atlas.PATIENCE_S:
            if lookup is None and heard_s < asked_s:
                say(f"{SILENCE}, which has the order to {verb} {', '.join(open_names)}; asking supervisord meanwhile")
                lookup = _InTable(run_dir)
            asked_s = now_s
            with suppress(AtlasSilent):
                order.ask_again(_LOOK_S)
        if lookup is not None:
            yield from lookup.ended(verb, open_names, time.monotonic() - began_s)
        if now_s - told_s > timeout_s + _GRACE_S or now_s - began_s > most_s:
            yield from _unknown(open_names, f"no outcome from ATLAS within {timeout_s:g} s", now_s - began_s)
            return


class _Lookup:
    """Where to see what has become of an order that ATLAS took, other than from its outcome."""

    every_s = _LOOK_S

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._looked_s = 0.0
        self._seen: set[str] = set()

    def ended(self, verb: Verb, open_names: dict[str, ServiceView], took_s: float) -> Iterator[OrderOutcome]:
        """What is seen twice is so: take it from open_names."""
        now_s = time.monotonic()
        if now_s - self._looked_s < self.every_s:
            return
        self._looked_s = now_s
        try:
            shown = self._look()
        except _SUPERVISOR_FAILURES as error:
            yield from _unknown(dict(open_names), str(error), took_s)
            open_names.clear()
            return
        for name, before in list(open_names.items()):
            now = shown.get(name)
            kind = fulfilled(verb, before, now)
            if kind is not None and now is not None and name in self._seen:
                del open_names[name]
                reason = now.reason if kind is OutcomeKind.FAILED else ""
                yield OrderOutcome(id="", name=name, kind=kind, reason=reason, took_s=took_s)
            elif kind is not None:
                self._seen.add(name)

    def _look(self) -> Mapping[str, Process | ServiceView]:
        raise NotImplementedError


class _InTable(_Lookup):
    """supervisord's, while ATLAS is silent."""

    def _look(self) -> Mapping[str, Process | ServiceView]:
        return {instance_of(process): process for process in Supervisord(self._run_dir).processes()}


class _InFleet(_Lookup):
    """ATLAS's fleet, when it does not know the order."""

    every_s = atlas.PATIENCE_S

    def _look(self) -> Mapping[str, Process | ServiceView]:
        try:
            return {view.instance: view for view in atlas.ask_fleet(self._run_dir).services}
        except AtlasSilent:
            return {}


def fulfilled(verb: Verb, before: ServiceView, now: Process | ServiceView | None) -> OutcomeKind | None:
    """How an order ended, if supervisord's table or ATLAS's shows it. Pure."""
    if now is None or verb not in (Verb.START, Verb.STOP, Verb.RESTART):  # of the others it shows nothing for certain
        return None
    if verb is Verb.STOP:
        return OutcomeKind.DONE if now.pid is None and now.state is not ProcessState.BACKOFF else None
    if now.state is ProcessState.FATAL:
        return OutcomeKind.FAILED
    another = verb is Verb.START or now.pid != before.pid
    return OutcomeKind.DONE if now.state is ProcessState.RUNNING and another else None


def _by_supervisord(
    run_dir: RunDir,
    verb: Verb,
    names: Sequence[str],
    timeout_s: float,
    show: Progress,
    details: Details,
    before: Mapping[str, ServiceView] = MappingProxyType({}),
) -> Iterator[OrderOutcome]:
    """Give supervisord the order. What has another process than before, ATLAS has restarted after all."""
    if verb in DIRECT:
        yield from _at_once(run_dir, verb, names, show, details)
        return
    if verb not in (Verb.START, Verb.STOP, Verb.RESTART):
        raise Problem(
            f"cannot {verb} {', '.join(names)}: only ATLAS can, and it does not answer; start it: cdnctl start atlas",
            Exit.FAILED,
        )
    if details.batch and details.batch < len(names):
        yield from _in_batches(run_dir, verb, names, timeout_s, show, details.batch, before)
        return
    supervisord = Supervisord(run_dir)
    left = list(names)
    try:
        table = {instance_of(process): process for process in supervisord.processes()}
        known = {instance: process.name for instance, process in table.items()}
        absent = [name for name in names if name not in known]
        for name in absent:
            left.remove(name)
            yield OrderOutcome(id="", name=name, kind=OutcomeKind.FAILED, reason="supervisord does not have it")
        back = {known[name]: name for name in left}
        replaced = [
            known[name] for name in left if verb is Verb.RESTART and _is_replaced(before.get(name), table[name].pid)
        ]
        groups = ((verb, [name for name in back if name not in replaced]), (Verb.START, replaced))
        outcomes = (
            perform(
                supervisord,
                act,
                group,
                timeout_s,
                watch=lambda name, text: show.show(back[name], text),
                tick=show.tick,
            )
            for act, group in groups
            if group
        )
        for outcome in chain.from_iterable(outcomes):
            named = OrderOutcome(
                id="", name=back[outcome.name], kind=outcome.kind, reason=outcome.reason, took_s=outcome.took_s
            )
            left.remove(named.name)
            mark(show, named)
            yield named
    except NoSupervisord as error:
        raise Problem(str(error), Exit.FAILED) from error
    except (SupervisordSilent, SupervisordRefused) as error:
        raise Problem(f"cannot {verb} {', '.join(left)}: {error}", Exit.FAILED) from error
    except KeyboardInterrupt:
        if verb is Verb.RESTART and left:
            say(f"interrupted: {', '.join(left)} may stay down; start it: cdnctl start {' '.join(left)}")
        raise


def _in_batches(
    run_dir: RunDir,
    verb: Verb,
    names: Sequence[str],
    timeout_s: float,
    show: Progress,
    batch: int,
    before: Mapping[str, ServiceView],
) -> Iterator[OrderOutcome]:
    """So many at a time, and none after the first failure."""
    for begin in range(0, len(names), batch):
        failed = None
        for outcome in _by_supervisord(
            run_dir, verb, names[begin : begin + batch], timeout_s, show, NO_DETAILS, before=before
        ):
            yield outcome
            if outcome.kind is not OutcomeKind.DONE:
                failed = outcome
        if failed is not None:
            for name in names[begin + batch :]:
                reason = f"not tried: {failed.name} {failed.kind}: {failed.reason}"
                untried = OrderOutcome(id="", name=name, kind=OutcomeKind.REJECTED, reason=reason)
                mark(show, untried)
                yield untried
            return


def _at_once(
    run_dir: RunDir, verb: Verb, names: Sequence[str], show: Progress, details: Details
) -> Iterator[OrderOutcome]:
    """What needs no following."""
    supervisord = Supervisord(run_dir)
    left = list(names)
    try:
        known = {instance_of(process): process.name for process in supervisord.processes()}
        for name in names:
            began_s = time.monotonic()
            kind = OutcomeKind.DONE
            try:
                reason = carry_out_at_once(supervisord, verb, known.get(name, name), details)
            except NotDone as error:
                kind, reason = OutcomeKind.FAILED, str(error)
            outcome = OrderOutcome(id="", name=name, kind=kind, reason=reason, took_s=time.monotonic() - began_s)
            left.remove(name)
            mark(show, outcome)
            yield outcome
    except NoSupervisord as error:
        raise Problem(str(error), Exit.FAILED) from error
    except (SupervisordSilent, SupervisordRefused) as error:
        raise Problem(f"cannot {verb} {', '.join(left)}: {error}", Exit.FAILED) from error


def _is_replaced(before: ServiceView | None, pid: int | None) -> bool:
    return before is not None and None not in (before.pid, pid) and before.pid != pid


def _unknown(names: dict[str, ServiceView], reason: str, took_s: float) -> Iterator[OrderOutcome]:
    for name in names:
        yield OrderOutcome(id="", name=name, kind=OutcomeKind.UNKNOWN, reason=reason, took_s=took_s)


def mark(show: Progress, outcome: OrderOutcome) -> None:
    """Show an outcome where progress is shown."""
    done = outcome.kind is OutcomeKind.DONE
    show.show(outcome.name, "done" if done else outcome.reason or outcome.kind, Mark.DONE if done else Mark.FAILED)
