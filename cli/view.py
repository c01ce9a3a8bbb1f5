"""The fleet as it can be seen: ATLAS's view, or supervisord's if ATLAS is silent."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bus.endpoints import RunDir, host_name
from bus.messages import FleetReply, HealthStatus, ProcessState, ServiceView
from cli.atlas import SILENCE, AtlasSilent, Refused, ask_fleet
from cli.context import say
from cli.exits import Exit, Problem
from cli.selection import ATLAS

WHOLE_S = 2.0
"""A new ATLAS has heard the whole fleet after this: statuses come once a second, and at once on connecting."""
_LOOK_S = 0.1
_NODE_FRESH_S = 2.0
"""A warden speaks once a second, and at once of every change: one silent for longer may not be there."""


class Fleet(NamedTuple):
    """What runs, and who says so."""

    services: tuple[ServiceView, ...]
    by_atlas: frozenset[str] = frozenset()
    """The instances that ATLAS knows; none if it is silent."""
    unsupervised: str = ""
    """Why it cannot be said that the services of this host are supervised, and what to do; empty if they are."""
    notes: tuple[str, ...] = ()
    """What ATLAS says is wrong with the hosts themselves."""
    is_abandoned: bool = False
    """Whether there is no supervisord on this host, so that nobody could do what is ordered."""

    def doubted(self, services: Sequence[ServiceView]) -> str:
        """``unsupervised``, if it is about one of these services."""
        return self.unsupervised if not services or any(view.host == host_name() for view in services) else ""


def see(run_dir: RunDir, doing: str, *, gone: Exit) -> Fleet:
    """Ask ATLAS, and supervisord only where ATLAS does not hear its warden; if ATLAS is silent say so.

    ``doing`` completes "cannot …", if neither answers; ``gone`` is the exit code if there is no fleet.
    Raises Problem.
    """
    refuse_absent(run_dir, gone)
    try:
        reply = ask_fleet(run_dir)
        if _is_young(reply.services):
            return _checked(run_dir, _when_whole(run_dir, reply.services))._replace(notes=reply.notes)
        if _is_whole(run_dir, reply):
            return Fleet(reply.services, frozenset(view.instance for view in reply.services), notes=reply.notes)
        return _checked(run_dir, reply.services)._replace(notes=reply.notes)
    except AtlasSilent:
        say(f"{SILENCE}; asking supervisord")
    except Refused as error:
        say(f"{error}; asking supervisord")
    return Fleet(by_supervisord(run_dir, doing, gone=gone))


class Watch:
    """The fleet looked at again and again: by ATLAS, or while it is silent by supervisord; each change is said once."""

    def __init__(self, run_dir: RunDir, doing: str) -> None:
        self._run_dir = run_dir
        self._doing = doing
        self._said = ""

    def look(self) -> tuple[ServiceView, ...]:
        """Every service as it is now. Raises Problem if nobody can tell."""
        try:
            services = ask_fleet(self._run_dir).services
        except (AtlasSilent, Refused) as error:
            why = SILENCE if isinstance(error, AtlasSilent) else str(error)
        else:
            if self._said:
                say("ATLAS answers again")
                self._said = ""
            return services
        if why != self._said:
            refuse_absent(self._run_dir, Exit.UNKNOWN)
            say(f"{why}; asking supervisord")
            self._said = why
        return by_supervisord(self._run_dir, self._doing, gone=Exit.UNKNOWN)


def _is_whole(run_dir: RunDir, reply: FleetReply) -> bool:
    """Whether ATLAS has the warden's word for every process of this host, and that supervisord still listens.

    A connection that is closed at once is enough to know the latter; one that is stopped still has it, and falls
    silent for ATLAS.
    """
    here = host_name()
    if not any(node.host == here and node.heard_s <= _NODE_FRESH_S for node in reply.nodes):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(run_dir.supervisor)) == 0


def _checked(run_dir: RunDir, services: tuple[ServiceView, ...]) -> Fleet:
    """ATLAS's view, completed by supervisord where one is to be expected: it knows best what processes there are.

    ATLAS goes on showing services of which only the daemons speak, and knows nothing of a program
    that has none while it does not hear the warden, or cannot read it.
    """
    from cli.fallback import NoSupervisord, Supervisord, SupervisordRefused, SupervisordSilent, merged

    known = frozenset(view.instance for view in services)
    here = host_name()
    if services and not any(view.host == here for view in services) and not _is_there(run_dir.supervisor):
        return Fleet(services, known)
    try:
        return Fleet(merged(services, Supervisord(run_dir).processes(), here), known)
    except NoSupervisord:
        from cli.belonging import supervisords

        if living := supervisords(run_dir):
            why = f"supervisord {living[0]} runs, but does not listen on {run_dir.supervisor}; cdnctl down would end it"
            return Fleet(services, known, why)
        why = f"no supervisord runs in {run_dir.path}, so that what ends is not started again; start it: cdnctl up"
        return Fleet(services, known, why, is_abandoned=True)
    except (SupervisordSilent, SupervisordRefused) as error:
        return Fleet(services, known, str(error))


def _is_young(services: Sequence[ServiceView]) -> bool:
    """Whether ATLAS has begun so lately that some may not have been heard yet."""
    return next((view.uptime_s or 0.0 for view in services if view.instance == ATLAS), 0.0) < WHOLE_S


def _when_whole(run_dir: RunDir, services: tuple[ServiceView, ...]) -> tuple[ServiceView, ...]:
    """What ATLAS sees once it has heard everything that supervisord runs, or has had the time to."""
    from cli.fallback import NoSupervisord, Supervisord, SupervisordRefused, SupervisordSilent, instance_of

    deadline_s = time.monotonic() + WHOLE_S
    while _is_young(services) and time.monotonic() < deadline_s:
        try:
            processes = Supervisord(run_dir).processes()
        except (NoSupervisord, SupervisordSilent, SupervisordRefused):
            return services  # ATLAS by itself: it alone can say what there is
        heard = {view.instance: view for view in services}
        missing = [instance_of(process) for process in processes if instance_of(process) not in heard]
        running = (heard.get(instance_of(process)) for process in processes if process.state is ProcessState.RUNNING)
        if not missing and all(view is not None and view.seen_s is not None for view in running):
            return services
        time.sleep(_LOOK_S)
        services = ask_fleet(run_dir).services
    return services


def refuse_absent(run_dir: RunDir, gone: Exit) -> None:
    """Raise Problem at once where neither ATLAS nor supervisord has ever made its socket, or nobody may look."""
    try:
        made = [path for path in (run_dir.supervisor, run_dir.path / "operators.sock") if _is_there(path)]
    except OSError as error:
        raise Problem(
            f"cannot look into {run_dir.path}: {error.strerror}; set CDN_RUN_DIR to a run directory of yours",
            gone,
        ) from error
    if not made:
        raise Problem(f"no fleet runs in {run_dir.path}; start it: cdnctl up", gone)


def _is_there(path: Path) -> bool:
    """As Path.exists, which from Python 3.14 on takes no rights for nothing there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def by_supervisord(run_dir: RunDir, doing: str, *, gone: Exit) -> tuple[ServiceView, ...]:
    """supervisord's table as views. Raises Problem."""
    from cli.fallback import NoSupervisord, Supervisord, SupervisordRefused, SupervisordSilent, as_view

    try:
        processes = Supervisord(run_dir).processes()
    except NoSupervisord as error:
        raise Problem(str(error), gone) from error
    except (SupervisordSilent, SupervisordRefused) as error:
        raise Problem(f"cannot {doing}: {error}", gone) from error
    return tuple(_told(as_view(process, host_name())) for process in processes)


def _told(view: ServiceView) -> ServiceView:
    """ATLAS is the one whose health is known here: it does not answer."""
    if view.instance != ATLAS or view.state is not ProcessState.RUNNING:
        return view
    from msgspec.structs import replace

    return replace(view, health=HealthStatus.UNHEALTHY, reason=SILENCE)
