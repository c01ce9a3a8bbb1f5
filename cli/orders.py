"""Start, stop and restart: by ATLAS, else by supervisord, each name followed to its outcome."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from bus.endpoints import RunDir
from bus.messages import OrderOutcome, OrderProgress, OutcomeKind, ProcessState, ServiceView, Verb
from cli import atlas
from cli.atlas import NO_DETAILS, SILENCE, AtlasSilent, Details, Order, Refused
from cli.context import say
from cli.exits import Exit, Problem
from cli.fallback import NoSupervisord, Process, Supervisord, SupervisordRefused, SupervisordSilent, instance_of
from cli.progress import Mark, Progress
from cli.selection import ATLAS
from cli.supervised import perform, tell

_LOOK_S = 0.1
_GRACE_S = 1.0
"""ATLAS says itself when a command's time is over; it gets this much longer to do so."""
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
    asked = [view for view in services if view.instance in by_atlas and view.instance != ATLAS]
    if asked:
        yield from _by_atlas(run_dir, verb, asked, timeout_s, show, details)
    if rest := [view.instance for view in services if view not in asked]:
        yield from _by_supervisord(run_dir, verb, rest, timeout_s, show)


def hand_over(
    run_dir: RunDir, verb: Verb, services: Sequence[ServiceView], timeout_s: float, *, by_atlas: frozenset[str]
) -> dict[str, str]:
    """Give the order and do not wait: name → id of its command, empty from supervisord. Raises Problem.

    supervisord has no restart that could be left to it; NotLeft is raised for that.
    """
    asked = [view.instance for view in services if view.instance in by_atlas]
    rest = [view.instance for view in services if view.instance not in by_atlas]
    if rest and verb is Verb.RESTART:
        raise NotLeft
    commands = {}
    if asked:
        try:
            order = _ordered(run_dir, verb, asked, timeout_s)
            order.close()
            commands = order.commands
        except AtlasSilent:
            say(f"{SILENCE} to {verb} {', '.join(asked)}; asking supervisord")
            if verb is Verb.RESTART:
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
    began_s = time.monotonic()
    turns = -(-len(services) // details.batch) if details.batch else 1
    patience_s = timeout_s * turns  # each has its time from when it is its turn
    open_names = {view.instance: view for view in services}
    try:
        order = _ordered(run_dir, verb, list(open_names), timeout_s, details)
    except AtlasSilent:
        say(f"{SILENCE} to {verb} {', '.join(open_names)}; asking supervisord")
        yield from _by_supervisord(run_dir, verb, list(open_names), timeout_s, show)
        return
    heard_s = began_s
    seen_done: set[str] = set()
    try:
        while open_names:
            try:
                reply = order.next(_LOOK_S)
            except Refused as error:
                raise Problem(f"cannot {verb} {', '.join(open_names)}: {error}", Exit.FAILED) from error
            show.tick()
            now_s = time.monotonic()
            if isinstance(reply, OrderProgress):
                heard_s = now_s
                show.show(reply.name, reply.text)
            elif isinstance(reply, OrderOutcome):
                heard_s = now_s
                if open_names.pop(reply.name, None) is not None:
                    mark(show, reply)
                    yield reply
            elif now_s - heard_s > atlas.PATIENCE_S:
                views = _seen(run_dir)
                if views is None:
                    break
                # An ATLAS that began anew has forgotten the order: what it shows twice as done is done.
                for name, before in list(open_names.items()):
                    kind = fulfilled(verb, before, views.get(name))
                    if kind is not None and name in seen_done:
                        del open_names[name]
                        reason = views[name].reason if kind is OutcomeKind.FAILED else ""
                        outcome = OrderOutcome(id="", name=name, kind=kind, reason=reason, took_s=now_s - began_s)
                        mark(show, outcome)
                        yield outcome
                    elif kind is not None:
                        seen_done.add(name)
                heard_s = now_s
            if now_s - began_s > patience_s + _GRACE_S:
                yield from _unknown(open_names, f"no outcome from ATLAS within {patience_s:g} s", now_s - began_s)
                return
    finally:
        order.close()
    if open_names:
        say(f"{SILENCE}, which has the order to {verb} {', '.join(open_names)}; asking supervisord what becomes of it")
        yield from _watched(run_dir, verb, open_names, began_s, patience_s, show)


def _seen(run_dir: RunDir) -> dict[str, ServiceView] | None:
    """The fleet by instance; None if ATLAS does not answer."""
    try:
        return {view.instance: view for view in atlas.ask_fleet(run_dir).services}
    except (AtlasSilent, Refused):
        return None


def _watched(
    run_dir: RunDir, verb: Verb, before: dict[str, ServiceView], began_s: float, timeout_s: float, show: Progress
) -> Iterator[OrderOutcome]:
    """What becomes of an order that ATLAS took before it fell silent; nothing is ordered again."""
    supervisord = Supervisord(run_dir)
    left = dict(before)
    while left and time.monotonic() - began_s <= timeout_s:
        try:
            table = {instance_of(process): process for process in supervisord.processes()}
        except _SUPERVISOR_FAILURES as error:
            yield from _unknown(left, str(error), time.monotonic() - began_s)
            return
        for name, view in list(left.items()):
            kind = fulfilled(verb, view, table.get(name))
            if kind is None:
                continue
            del left[name]
            reason = "" if kind is OutcomeKind.DONE else table[name].reason
            outcome = OrderOutcome(id="", name=name, kind=kind, reason=reason, took_s=time.monotonic() - began_s)
            mark(show, outcome)
            yield outcome
        show.tick()
        time.sleep(_LOOK_S)
    yield from _unknown(left, f"ATLAS fell silent, and nothing was seen of it within {timeout_s:g} s", timeout_s)


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
    run_dir: RunDir, verb: Verb, names: Sequence[str], timeout_s: float, show: Progress
) -> Iterator[OrderOutcome]:
    supervisord = Supervisord(run_dir)
    left = list(names)
    try:
        known = {instance_of(process): process.name for process in supervisord.processes()}
        absent = [name for name in names if name not in known]
        for name in absent:
            left.remove(name)
            yield OrderOutcome(id="", name=name, kind=OutcomeKind.FAILED, reason="supervisord does not have it")
        back = {known[name]: name for name in left}
        outcomes = perform(
            supervisord,
            verb,
            list(back),
            timeout_s,
            watch=lambda name, text: show.show(back[name], text),
            tick=show.tick,
        )
        for outcome in outcomes:
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


def _unknown(names: dict[str, ServiceView], reason: str, took_s: float) -> Iterator[OrderOutcome]:
    for name in names:
        yield OrderOutcome(id="", name=name, kind=OutcomeKind.UNKNOWN, reason=reason, took_s=took_s)


def mark(show: Progress, outcome: OrderOutcome) -> None:
    """Show an outcome where progress is shown."""
    done = outcome.kind is OutcomeKind.DONE
    show.show(outcome.name, "done" if done else outcome.reason or outcome.kind, Mark.DONE if done else Mark.FAILED)
