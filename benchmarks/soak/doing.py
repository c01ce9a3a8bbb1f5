"""Does what the plan says: faults to services, the host and the framework, and an operator's commands."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from threading import Event, Lock

from msgspec.structs import replace

from benchmarks.soak.fleet import Fleet
from benchmarks.soak.history import Asked, Ceased, Exited, Injected, Skipped, Told
from benchmarks.soak.observer import Observer, Recorder
from benchmarks.soak.plan import FAULTS, STALL_S, STOPPED_S, Step
from bus.endpoints import host_name
from bus.messages import DaemonStatus, OodaMode, OrderAccepted, OrderOutcome, OrderRequest, OutcomeKind, Refusal, Verb
from bus.operators import AtlasSilent, OperatorLink
from bus.publisher import Publisher
from tests.faults import injections
from tests.faults.injections import Victim

ORDER_S = 20.0
"""The time that a command is given."""
OUTCOME_S = 60.0
"""How long its outcome is waited for of an ATLAS that answers; while there is none, nobody can tell it."""
GIVEN_UP_S = 900.0
"""How long in all."""
_AGAIN_S = 1.0
_LOOK_S = 0.1
_SOCKETS = ("telemetry.sock", "agents.sock", "operators.sock", "feed.sock")
_SUBSCRIBER = """
import sys
from bus.subscriber import Subscriber
feed = Subscriber(sys.argv[1])
while True:
    feed.receive(1.0)
"""

SIMPLE: dict[str, injections.Injection] = {
    "crash": injections.crash,
    "frozen": injections.freeze,
    "held_burning": injections.hold_by_regex,
    "held_sleeping": injections.hold_by_sleep,
    "blocked_loop": injections.block_loop,
    "deadlock": injections.deadlock,
    "daemon_dies": injections.end_daemon,
    "leak": injections.leak,
    "burst": lambda victim: injections.burst(victim, mb=400),
    "leak_files": injections.leak_files,
    "leak_threads": injections.leak_threads,
    "declared_call": lambda victim: injections.declared_call(victim, for_s=STALL_S + 1.0),
    "atlas_killed": injections.crash,
    "atlas_stopped": injections.freeze,
}
"""Those that are one act."""


class Doer:
    """Does steps, each on a thread of its own, so that none waits for another."""

    def __init__(self, fleet: Fleet, observer: Observer, recorder: Recorder, seed: int) -> None:
        self._fleet = fleet
        self._observer = observer
        self._recorder = recorder
        self._run_path = fleet.run_dir.path
        self._chance = random.Random(f"garbage {seed}")
        self._numbers = count(1)
        self._lock = Lock()
        self._over = Event()
        self._pool = ThreadPoolExecutor(64)
        self._under_way: list[Future[None]] = []

    def do(self, step: Step) -> None:
        """Begin with it."""
        self._under_way.append(self._pool.submit(self._do_fault if step.is_fault else self._do_command, step))

    def finish(self, *, now: bool = False) -> None:
        """Wait until all has come to its end, or give up what has not; raises what has gone wrong."""
        if now:
            self._over.set()
        self._pool.shutdown(wait=True, cancel_futures=now)
        for each in self._under_way:
            if not each.cancelled():
                each.result()

    def _last(self, seconds: float) -> None:
        self._over.wait(seconds)

    def _now_s(self) -> float:
        return time.monotonic()

    # -- faults ----------------------------------------------------------------------------------------------------

    def _do_fault(self, step: Step) -> None:
        framework = FAULTS[step.what].everybodys
        name = "atlas" if step.what in ("atlas_killed", "atlas_stopped") else step.name
        victim = self._observer.victim(name) if name else None
        if name and victim is None:
            self._recorder.record(
                Skipped(at_s=self._now_s(), number=step.number, fault=step.what, name=name, why="nobody listens")
            )
            return
        act: Callable[..., None] | None = getattr(self, f"_{step.what}", None)
        if framework and victim is None:
            assert act is not None
            act(step)
        elif victim is not None:
            (act or self._simple)(step, victim)

    def _told(self, step: Step, victim: Victim | None = None, *, fault: str = "") -> None:
        kind = FAULTS[step.what]
        self._recorder.record(
            Injected(
                at_s=self._now_s(),
                number=step.number,
                fault=fault or step.what,
                name=victim.name if victim is not None else "",
                pid=victim.pid if victim is not None else 0,
                deadly=kind.deadly,
                kills=kind.kills,
                notice_s=kind.notice_s,
                lasts_s=kind.lasts_s,
            )
        )

    def _ceased(self, step: Step) -> None:
        self._recorder.record(Ceased(at_s=self._now_s(), number=step.number))

    def _simple(self, step: Step, victim: Victim) -> None:
        self._told(step, victim)
        SIMPLE[step.what](victim)

    def _fork_storm(self, step: Step, victim: Victim) -> None:
        self._told(step, victim)
        injections.fork_storm(victim, many=30)
        self._last(0.5)
        injections.crash(victim)

    def _leave_heir(self, step: Step, victim: Victim) -> None:
        self._told(step, victim)
        injections.leave_heir(victim)
        self._last(0.3)
        injections.crash(victim)

    def _crash_loop(self, step: Step, victim: Victim, after_s: float = 0.05) -> None:
        self._told(step, victim, fault="crash_loop")
        injections.crash_loop(victim, after_s=after_s)
        until_s = self._now_s() + FAULTS[step.what].lasts_s
        while self._now_s() < until_s and not self._over.is_set():
            row = self._observer.rows.get(victim.name)
            if row is not None and row.state == "FATAL":
                break
            self._last(_LOOK_S)
        injections.end_crash_loop(victim)
        self._ceased(step)
        self._order(Verb.START, victim.name)

    def _slow_crash_loop(self, step: Step, victim: Victim) -> None:
        self._crash_loop(step, victim, after_s=1.2)

    def _stubborn(self, step: Step, victim: Victim) -> None:
        self._told(step, victim)
        injections.ignore_sigterm(victim)
        self._last(0.5)
        self._order(Verb.STOP, victim.name)
        self._order(Verb.START, victim.name)

    def _crash_under_order(self, step: Step, victim: Victim) -> None:
        ordered = self._pool.submit(self._order, Verb.RESTART, victim.name)
        self._last(step.luck)
        self._told(step, victim)
        injections.crash(victim)
        ordered.result()

    def _debugged(self, step: Step, victim: Victim) -> None:
        self._told(step, victim)
        with suppress(OSError), injections.debugged(victim.pid):
            self._last(FAULTS[step.what].lasts_s)
        self._ceased(step)

    def _overload(self, step: Step) -> None:
        self._told(step)
        with injections.overload():
            self._last(FAULTS[step.what].lasts_s)
        self._ceased(step)

    def _supervisord_killed(self, step: Step) -> None:
        with self._lock:
            self._told(step)
            self._fleet.kill_supervisord()
            self._last(3.0 * step.luck)
            if not self._over.is_set():
                self._observer.supervised_by(self._fleet.launch())

    def _supervisord_stopped(self, step: Step) -> None:
        with self._lock:
            process = self._fleet.process
            assert process is not None
            self._told(step)
            process.send_signal(signal.SIGSTOP)
            self._last(FAULTS[step.what].lasts_s * (0.3 + 0.7 * step.luck))
            process.send_signal(signal.SIGCONT)
            self._ceased(step)

    def _second_atlas(self, step: Step) -> None:
        with self._lock:  # supervisord is not killed meanwhile: of an ATLAS that is an orphan a second would take over
            process, first = self._fleet.process, self._observer.main("atlas")
            if process is None or first is None or first.supervisor != process.pid or not first.port:
                why = "there is none of this supervisord's"
                self._recorder.record(
                    Skipped(at_s=self._now_s(), number=step.number, fault=step.what, name="atlas", why=why)
                )
                return
            self._told(step)
            command = [sys.executable, "-m", "services.atlas"]
            quiet = subprocess.DEVNULL
            with subprocess.Popen(command, env=self._fleet.environment, stdout=quiet, stderr=quiet) as second:
                try:
                    code = second.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    second.kill()
                    code = -1
            if self._observer.main("atlas") is first:  # else it had ended by then, and the second was the first
                self._recorder.record(Exited(at_s=self._now_s(), what=step.what, code=code))

    def _socket_unlinked(self, step: Step) -> None:
        self._told(step)
        (self._run_path / _SOCKETS[int(step.luck * len(_SOCKETS))]).unlink(missing_ok=True)

    def _garbage(self, step: Step) -> None:
        self._told(step)
        for name in (*_SOCKETS, "supervisor.sock"):
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
                stranger.settimeout(0.2)
                stranger.connect(str(self._run_path / name))
                stranger.sendall(self._chance.randbytes(1 << 20))
        for path in (self._run_path / "notify").glob("*"):
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
                stranger.setblocking(False)
                stranger.sendto(self._chance.randbytes(512), str(path))
                stranger.sendto(b"WATCHDOG=trigger\nSTATUS=a stranger's word", str(path))

    def _stopped_subscriber(self, step: Step) -> None:
        self._told(step)
        command = [sys.executable, "-c", _SUBSCRIBER, self._fleet.run_dir.feed]
        with subprocess.Popen(command, env=self._fleet.environment) as subscriber:
            self._last(1.0)
            subscriber.send_signal(signal.SIGSTOP)
            self._last(FAULTS[step.what].lasts_s)
            subscriber.kill()

    def _spoofed_status(self, step: Step) -> None:
        self._told(step)
        name = self._fleet.names[int(step.luck * len(self._fleet.names))]
        publisher = Publisher(self._fleet.run_dir.telemetry)
        for seq in range(1, 11):
            publisher.publish(
                DaemonStatus(
                    service=name,
                    instance=name,
                    host=host_name(),
                    incarnation=1_000_000,
                    seq=seq,
                    pid=os.getpid(),
                    time_s=time.time(),
                    monotonic_s=time.monotonic(),
                    uptime_s=1.0,
                )
            )
            self._last(0.1)
        publisher.close()

    # -- commands -----------------------------------------------------------------------------------------------------

    def _do_command(self, step: Step) -> None:
        verb = Verb(step.what)
        mode = OodaMode.SHADOW if step.luck < 0.5 else OodaMode.ON
        self._order(verb, step.name, mode=mode if verb is Verb.LOOP_MODE else None, again=step.luck > 0.6)
        if verb is Verb.STOP:
            self._last(STOPPED_S * step.luck)
            self._order(Verb.START, step.name)

    def _order(self, verb: Verb, name: str, *, mode: OodaMode | None = None, again: bool = False) -> None:
        """Give a command and record its outcome; with ``again``, give it once more with the same id."""
        id_ = f"soak-{os.getpid()}-{next(self._numbers)}-{verb}"
        request = OrderRequest(id=id_, verb=verb, names=(name,), timeout_s=ORDER_S, asked_by=id_, mode=mode)
        self._recorder.record(Asked(at_s=self._now_s(), id=id_, verb=verb, name=name, timeout_s=ORDER_S))
        outcome = self._follow(request)
        if outcome is None:
            return
        self._recorder.record(Told(at_s=self._now_s(), id=id_, kind=outcome.kind, reason=outcome.reason))
        if again:
            self._recorder.record(
                Asked(at_s=self._now_s(), id=id_, verb=verb, name=name, timeout_s=ORDER_S, again=True)
            )
            second = self._follow(request)
            if second is not None:
                self._recorder.record(
                    Told(at_s=self._now_s(), id=id_, kind=second.kind, reason=second.reason, again=True)
                )

    def _follow(self, request: OrderRequest) -> OrderOutcome | None:
        """Its outcome; None if nobody tells it. It is given again, with its id, to whichever ATLAS there is."""
        given_up_s, waited_s = self._now_s() + GIVEN_UP_S, 0.0
        link = OperatorLink(self._fleet.run_dir.operators)
        try:
            while waited_s < OUTCOME_S and self._now_s() < given_up_s and not self._over.is_set():
                asked_s, is_heard = self._now_s(), False
                try:
                    link.request(request, timeout_s=_AGAIN_S)
                    for reply in link.replies(request.id, timeout_s=2.0 * _AGAIN_S):
                        is_heard = True
                        match reply:
                            case OrderOutcome():
                                return reply
                            case OrderAccepted():
                                request = replace(request, attach=True)
                            case Refusal() if not reply.again:
                                return OrderOutcome(
                                    id=request.id, name=request.names[0], kind=OutcomeKind.REJECTED, reason=reply.reason
                                )
                except AtlasSilent:
                    waited_s += self._now_s() - asked_s if is_heard else 0.0
        finally:
            link.close()
        return None
