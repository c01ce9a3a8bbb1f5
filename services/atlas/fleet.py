"""What ATLAS knows of the fleet. Pure: messages and now_s in, happenings out.

Two sources, each an authority on its own: a service's daemon says how the
service does; the warden inside supervisord says what process there is. What is
silent is unreachable, never dead: only the warden can say that a process ended.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bus.codec import Decoder, encode
from bus.messages import (
    DaemonStatus,
    HealthStatus,
    LifecyclePhase,
    NodeStatus,
    NodeView,
    ProcessRow,
    ProcessState,
    ServiceView,
    is_name,
)

NODE_FRESH_S = 2.0
"""A warden speaks once a second: one silent for longer may not be there to start what is told to end."""

UNREACHABLE_S = 3.0
"""Statuses come at least once a second; three in a row are missing."""

FORGOTTEN_S = 60.0
"""One that has ended well, and that no supervisord has, is shown for so long: time enough to be seen."""

MAX_MEMBERS = 50_000
"""Bounds what one that invents names can cost."""

MAX_NODES = 1000
"""As that, of hosts; of a table may be as much as a MiB."""

_STATE_OF_PHASE = {
    LifecyclePhase.STARTING: ProcessState.STARTING,
    LifecyclePhase.SERVING: ProcessState.RUNNING,
    LifecyclePhase.DRAINING: ProcessState.STOPPING,
    LifecyclePhase.STOPPED: ProcessState.EXITED,
}


@dataclass(frozen=True)
class Happening:
    """Something changed; the switchboard makes an Event of it."""

    instance: str
    kind: str
    text: str
    host: str
    incarnation: int | None = None
    cause: str | None = None
    """Id of the command that led to it."""


class Member:
    """One instance, by its daemon's word: what decisions need of its last status, and the rest as it came.

    At 100,000 statuses a second, one that is held decoded costs twice its decoding: some 20
    objects in places that the processor has long forgotten, to be made and to be freed. So this is
    changed in place, and nothing in it is replaced that has stayed the same.
    """

    __slots__ = (
        "_status",
        "frame",
        "health",
        "heard_s",
        "host",
        "incarnation",
        "instance",
        "ooda_mode",
        "phase",
        "pid",
        "reachable",
        "seq",
        "service",
        "shedding",
    )

    def __init__(self, status: DaemonStatus, frame: bytes, heard_s: float) -> None:
        self.instance = status.instance
        self.take(status, frame, heard_s)

    def take(self, status: DaemonStatus, frame: bytes, now_s: float) -> None:
        """Its last status; without the frame that it came in, one is made."""
        self.service = self.instance if status.service == self.instance else sys.intern(status.service)
        self.host = sys.intern(status.host)
        self.incarnation, self.seq, self.pid = status.incarnation, status.seq, status.pid
        self.phase, self.health = status.phase, status.health
        self.ooda_mode, self.shedding = status.ooda_mode, status.shedding
        self.frame = frame or encode(status)
        self._status: DaemonStatus | None = None
        self.heard_s, self.reachable = now_s, True

    def again(self, seq: int, frame: bytes, now_s: float) -> None:
        """Its last status, in which nothing is new that decisions need."""
        self.seq, self.frame, self._status, self.heard_s = seq, frame, None, now_s

    def copy(self) -> Member:
        """It as it is now."""
        other = Member.__new__(Member)
        for name in Member.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    @property
    def status(self) -> DaemonStatus:
        """All of its last status, decoded where somebody looks."""
        if self._status is None:
            self._status = _decode(self.frame)
        return self._status


@dataclass(frozen=True)
class Node:
    """One host's process table, by its warden's word."""

    status: NodeStatus
    heard_s: float
    reachable: bool = True


class Said(NamedTuple):
    """What an instance said last, for another thread to look at."""

    instance: str
    incarnation: int
    seq: int
    phase: LifecyclePhase
    frame: bytes

    @property
    def status(self) -> DaemonStatus:
        """All of it, decoded each time."""
        return _decode(self.frame)


_decode = Decoder[DaemonStatus](DaemonStatus).decode


class Refused(Exception):
    """The message is not taken; ``cause`` is what is counted."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def is_newer(held: tuple[int, int, float], new: tuple[int, int], now_s: float) -> bool:
    """Whether (incarnation, seq) supersedes the held (incarnation, seq, heard_s).

    Of one incarnation, the larger seq does. A later incarnation does. An earlier
    one does not while the held one still speaks (it is a late message of the
    process before), and does once that is silent (the run directory was lost).
    """
    incarnation, seq, heard_s = held
    if new[0] == incarnation:
        return new[1] > seq
    return new[0] > incarnation or now_s - heard_s > UNREACHABLE_S


def instance_of(row: ProcessRow) -> str:
    """The instance that a process of supervisord is: its name without the group."""
    return row.name.rpartition(":")[2]


class Fleet:
    """All members and nodes; each method returns what happened."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.nodes: dict[str, Node] = {}
        self._rows: dict[str, tuple[Node, ProcessRow]] | None = None
        """Made from the nodes when it is asked for, and kept until they change."""

    # -- messages in --------------------------------------------------------------------------------

    def hear(self, status: DaemonStatus, now_s: float, frame: bytes = b"") -> Sequence[Happening]:
        """Fold in one daemon's status, and keep the frame that it came in.

        Raises Refused for what is old, claims another's name, or has none.
        """
        held = self.members.get(status.instance)
        if held is not None:
            return self.hear_again(held, status, now_s, frame)
        _check_names(status)
        if status.phase is LifecyclePhase.STOPPED:
            return []  # a farewell; its process may be out of its warden's table already
        if len(self.members) >= MAX_MEMBERS:
            raise Refused("too_many", f"{status.instance} is one more than the {MAX_MEMBERS} that ATLAS follows")
        self.members[status.instance] = Member(status, frame, now_s)
        return [_happening(status, "appeared", f"appeared as #{status.incarnation}, {status.phase}")]

    def hear_again(self, held: Member, status: DaemonStatus, now_s: float, frame: bytes = b"") -> Sequence[Happening]:
        """``hear``, where the member is known already."""
        if (
            status.seq > held.seq
            and status.incarnation == held.incarnation
            and status.pid == held.pid
            and status.phase is held.phase
            and status.health is held.health
            and status.ooda_mode is held.ooda_mode
            and status.shedding is held.shedding
            and status.host == held.host
            and status.service == held.service
            and held.reachable
        ):  # nearly always, so this comes first
            held.again(status.seq, frame or encode(status), now_s)
            return ()
        if status.host != held.host or status.service != held.service:
            _check_names(status)
        if (
            status.host != held.host
            and now_s - held.heard_s <= UNREACHABLE_S
            and held.phase is not LifecyclePhase.STOPPED
        ):
            raise Refused("name_clash", f"{status.instance} on {status.host} is already {held.instance} on {held.host}")
        if not is_newer((held.incarnation, held.seq, held.heard_s), (status.incarnation, status.seq), now_s):
            raise Refused("old", f"{status.instance} #{status.incarnation} seq {status.seq} is not news")
        if status.incarnation == held.incarnation and (status.pid, status.service) != (held.pid, held.service):
            text = f"{status.instance} #{status.incarnation} is {held.service} with pid {held.pid}"
            raise Refused("name_clash", f"{text}, not {status.service} with pid {status.pid}")
        happenings = _changes(held, status)
        held.take(status, frame, now_s)
        return happenings

    def hear_node(self, status: NodeStatus, now_s: float) -> list[Happening]:
        """Fold in one warden's table; raises Refused for what is old."""
        held = self.nodes.get(status.host)
        if held is not None:
            old = held.status
            if not is_newer((old.incarnation, old.seq, held.heard_s), (status.incarnation, status.seq), now_s):
                raise Refused("old", f"{status.host} #{status.incarnation} seq {status.seq} is not news")
        elif len(self.nodes) >= MAX_NODES:
            raise Refused("too_many", f"{status.host} is one host more than the {MAX_NODES} that ATLAS follows")
        self.nodes[status.host] = Node(status, now_s)
        self._rows = None
        before = {row.name: row for row in held.status.processes} if held is not None else {}
        happenings = [
            Happening(instance_of(row), "state", _state_text(row), status.host)
            for row in status.processes
            if (known := before.pop(row.name, None)) is not None and known.state != row.state
        ]
        return happenings + [self._removed(row, status.host) for row in before.values()]

    def _removed(self, row: ProcessRow, host: str) -> Happening:
        """supervisord has it no more, as when a program was scaled down: whatever its daemon said is past."""
        instance = instance_of(row)
        member = self.members.get(instance)
        if member is not None and member.host == host:
            del self.members[instance]
        return Happening(instance, "removed", "removed from supervisord", host)

    def tick(self, now_s: float) -> list[Happening]:
        """Notice silence; forget who has said goodbye and is not supervised, as one that was run by hand."""
        happenings = []
        since_s = now_s - UNREACHABLE_S
        for member in [member for member in self.members.values() if member.heard_s < since_s and member.reachable]:
            if member.phase is LifecyclePhase.STOPPED:
                if now_s - member.heard_s > FORGOTTEN_S and member.instance not in self.rows():
                    del self.members[member.instance]
                    text = "forgotten: it has ended, and no supervisord has it"
                    happenings.append(_happening(member.status, "removed", text))
            else:
                member.reachable = False
                text = f"unreachable: silent for {now_s - member.heard_s:.1f} s"
                happenings.append(_happening(member.status, "unreachable", text))
        for host, node in self.nodes.items():
            silent_s = now_s - node.heard_s
            if node.reachable and silent_s > UNREACHABLE_S:
                self.nodes[host] = replace(node, reachable=False)
                self._rows = None
                text = f"supervisord on {host} is silent for {silent_s:.1f} s"
                happenings.append(Happening(f"warden@{host}", "unreachable", text, host))
        return happenings

    def restart_windows(self, late_s: float) -> None:
        """ATLAS itself was away for late_s: silence meanwhile proves nothing."""
        for member in self.members.values():
            member.heard_s += late_s
        self.nodes = {k: replace(n, heard_s=n.heard_s + late_s) for k, n in self.nodes.items()}
        self._rows = None

    def copy_members(self) -> dict[str, Member]:
        """The members as they are now, for another thread to look at while these change."""
        return {name: held.copy() for name, held in self.members.items()}

    def said(self) -> list[Said]:
        """What each member said last."""
        return [Said(m.instance, m.incarnation, m.seq, m.phase, m.frame) for m in self.members.values()]

    # -- questions ----------------------------------------------------------------------------------

    def rows(self) -> dict[str, tuple[Node, ProcessRow]]:
        """Instance → the node and row of its process."""
        if self._rows is None:
            self._rows = {
                instance_of(row): (node, row) for node in self.nodes.values() for row in node.status.processes
            }
        return self._rows

    def silent_node(self, name: str, now_s: float) -> str | None:
        """Why nobody may be there to start an instance again, in words; None if somebody is, or nobody ever was."""
        place = self.rows().get(name)
        if place is None or now_s - place[0].heard_s <= NODE_FRESH_S:
            return None
        return f"supervisord on {place[0].status.host} is silent for {now_s - place[0].heard_s:.1f} s"

    def views(self, now_s: float) -> tuple[ServiceView, ...]:
        """Every instance known, in order of name."""
        return views(self.members, self.rows(), now_s)

    def node_views(self, now_s: float) -> tuple[NodeView, ...]:
        """Every host that a warden has told of, in order of name."""
        return tuple(
            NodeView(host=host, pid=node.status.pid, heard_s=now_s - node.heard_s)
            for host, node in sorted(self.nodes.items())
        )

    def notes(self, now_s: float) -> tuple[str, ...]:
        """What is wrong with the hosts themselves, in words."""
        notes = []
        for host, node in sorted(self.nodes.items()):
            errors = node.status.counts.get("errors", 0)
            if not node.reachable:
                notes.append(f"supervisord on {host} is silent for {now_s - node.heard_s:.1f} s")
            if errors:
                many = "1 error" if errors == 1 else f"{errors} errors"
                last = f"the last in {node.status.last_error}; see supervisord.log"
                notes.append(f"the warden on {host} has survived {many}, {last}")
        return tuple(notes)

    def view(self, name: str, now_s: float) -> ServiceView | None:
        """One instance; None if it is unknown."""
        member, place = self.members.get(name), self.rows().get(name)
        return None if member is None and place is None else view(name, member, place, now_s)


def _happening(status: DaemonStatus, kind: str, text: str) -> Happening:
    return Happening(status.instance, kind, text, status.host, status.incarnation)


def _state_text(row: ProcessRow) -> str:
    return f"{row.state}: {row.reason}" if row.reason else str(row.state)


def _check_names(status: DaemonStatus) -> None:
    for name in (status.service, status.instance, status.host):
        if not is_name(name):
            raise Refused("malformed", f"{name!r:.200} is no name: one word of letters, digits and _.:@-, at most 128")


def _changes(old: Member, status: DaemonStatus) -> Sequence[Happening]:
    if status.incarnation != old.incarnation:
        text = f"started anew: #{old.incarnation} → #{status.incarnation}, pid {old.pid} → {status.pid}"
        return [_happening(status, "restart", text)]
    changes = []
    if not old.reachable:
        changes.append(_happening(status, "reachable", "heard again"))
    if status.phase is not old.phase:
        changes.append(_happening(status, "phase", f"{old.phase} → {status.phase}"))
    if status.health is not old.health:
        why = f": {'; '.join(status.reasons)}" if status.reasons else ""
        changes.append(_happening(status, "health", f"{old.health} → {status.health}{why}"))
    if status.ooda_mode is not old.ooda_mode:
        changes.append(_happening(status, "ooda", f"mode {old.ooda_mode} → {status.ooda_mode}"))
    if status.shedding is not old.shedding:
        changes.append(_happening(status, "shed", "sheds load" if status.shedding else "sheds no more"))
    return changes


def views(
    members: Mapping[str, Member], rows: Mapping[str, tuple[Node, ProcessRow]], now_s: float
) -> tuple[ServiceView, ...]:
    """Every instance of these, in order of name."""
    return tuple(view(name, members.get(name), rows.get(name), now_s) for name in sorted(rows.keys() | members.keys()))


def view(name: str, member: Member | None, place: tuple[Node, ProcessRow] | None, now_s: float) -> ServiceView:
    """One line of the fleet out of what its daemon and its warden say."""
    status = member.status if member is not None else None
    row = place[1] if place is not None and place[0].reachable else None
    state, reasons = _state(member, place, row, now_s)
    # A daemon's word counts for the process that runs now, not for the one before it.
    current = member is not None and member.reachable and _is_current(member, place)
    alive = current and status is not None and status.phase is not LifecyclePhase.STOPPED
    if status is not None and alive:
        told = "; ".join(reasons)  # the warden has it from the daemon while it is not ready
        reasons += tuple(each for each in status.reasons if each not in told)
    uptime_s = row.uptime_s if row is not None else status.uptime_s if status is not None and alive else None
    if place is not None and row is not None and uptime_s is not None:
        uptime_s = max(0.0, uptime_s + now_s - place[0].heard_s)  # supervisord reckons by the wall's clock
    return ServiceView(
        service=status.service if status is not None else name,
        instance=name,
        host=place[0].status.host if place is not None else status.host if status is not None else None,
        state=state,
        health=status.health if status is not None and alive else HealthStatus.UNKNOWN,
        phase=status.phase if status is not None and current else None,
        ooda_phase=status.ooda_phase if status is not None and alive else None,
        pid=row.pid if row is not None else status.pid if status is not None and alive else None,
        incarnation=status.incarnation if status is not None else None,
        uptime_s=uptime_s,
        restarts=row.restarts if row is not None else status.restarts if status is not None else 0,
        cpu_cores=status.metrics.vitals.cpu_cores if status is not None and alive else None,
        rss_bytes=status.metrics.vitals.rss_bytes if status is not None and alive else None,
        seen_s=now_s - member.heard_s if member is not None else None,
        reason="; ".join(reasons),
        address=status.address if status is not None and alive else None,
        ooda_mode=status.ooda_mode if status is not None and alive else None,
        shedding=status.shedding if status is not None and alive else False,
        enabled=row.enabled if row is not None else True,
        maintenance=row.maintenance if row is not None else False,
        loop_lag_s=status.metrics.vitals.loop_lag_s if status is not None and alive else None,
        in_flight=status.metrics.in_flight if status is not None and alive else None,
        requests=status.metrics.requests if status is not None and alive else None,
    )


def _is_current(member: Member, place: tuple[Node, ProcessRow] | None) -> bool:
    """Whether the daemon that spoke is in the process that supervisord has now, or in a child of it."""
    if place is None or not place[0].reachable:
        return True
    node, row = place
    if row.pid is None or row.uptime_s is None:
        return False
    began_s, spawned_s = member.heard_s - member.status.uptime_s, node.heard_s - row.uptime_s
    return row.pid == member.status.pid or began_s > spawned_s


def _state(
    member: Member | None, place: tuple[Node, ProcessRow] | None, row: ProcessRow | None, now_s: float
) -> tuple[ProcessState, tuple[str, ...]]:
    """The state in supervisor's words, and what there is to say about it."""
    reasons: tuple[str, ...] = ()
    if place is not None and row is None:
        reasons += (f"supervisord on {place[0].status.host} is silent for {now_s - place[0].heard_s:.1f} s",)
    if row is not None:
        if row.reason:
            reasons += (row.reason,)
        if row.state is ProcessState.RUNNING and member is not None and not member.reachable:
            reasons += (f"unreachable: silent for {now_s - member.heard_s:.1f} s",)
        return row.state, reasons
    if member is None:
        return ProcessState.UNKNOWN, reasons
    if not member.reachable:
        return ProcessState.UNKNOWN, (*reasons, f"unreachable: silent for {now_s - member.heard_s:.1f} s")
    return _STATE_OF_PHASE[member.phase], reasons
