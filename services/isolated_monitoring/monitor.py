"""The monitor: looks, judges, groups, tells. All of it on one event loop; decisions are in the pure modules.

A tick every TICK_S judges everything anew and beats the watchdog, so a monitor that
hangs is replaced by the warden. Probes are tasks beside it, each with a timeout. That a
process ends is not polled for: the kernel says so at once through its pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from services.isolated_monitoring import checks, store
from services.isolated_monitoring.alerts import Lane, iso
from services.isolated_monitoring.incidents import Change, Incident, Incidents
from services.isolated_monitoring.ooda import Observation, PaceLoop
from services.isolated_monitoring.probes import probe, readiness
from services.isolated_monitoring.proc import Self, listening, pressure_s, state_of, waited_s
from services.isolated_monitoring.settings import Settings
from services.isolated_monitoring.supervisor import (
    End,
    Facts,
    Table,
    Unanswered,
    ask,
    conf_of,
    end_by_table,
    logged_end,
    postmortem,
    read_conf,
)
from services.isolated_monitoring.suspicion import CONFIRM_S, Answer, FairClock, Instant, Outcome
from services.isolated_monitoring.target import ATLAS, SUPERVISORD, Condition, Kind, Target, View
from services.isolated_monitoring.watched import Watched, follow, judge_plain, judge_service

log = logging.getLogger(__name__)

TICK_S = 0.2
"""The warden's default patience is 0.5 s."""
ASK_TIMEOUT_S = 1.0
PROBE_TIMEOUT_S = 1.0
STATE_S = 0.4
"""From one look at the processes' states to the next."""
LEARN_S, LEARN_EVERY_S = 0.45, 0.05
"""How long the reason of an end is waited for; a crash has to be told within the second."""
ADDRESS_S = 5.0
STOCK_LEARN_S = 2.5
"""Without a warden supervisord reaps a process up to two seconds late."""
BUS = ("telemetry", "feed", "agents", "operators")
BUS_PATIENCE_S = 1.0
"""ATLAS mends a socket that was removed within two seconds; most of that is worth telling."""
PORTS = {
    "atlas": 18500, "gateway-primary": 18600, "glaf-graph-server": 18050, "cdn-data-fabric": 18100,
    "cdn-statistical": 18108, "cdn-monitoring": 18109, "cdn-threat-intel": 18110, "cdn-geospatial": 18111,
    "cdn-threat-reaction": 18201,
}  # fmt: skip
"""Where a service answers by default: the first to be tried of one that listens on several ports."""
STEP_S = 2.0
"""A system clock that differs by more than this from its own has been stepped."""


class Clock:
    """Unix time that is not stepped while this runs, until ``follow`` allows it."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def unix_s(self) -> float:
        """Now."""
        return time.monotonic() + self._ahead_s

    def follow(self) -> float:
        """Follow the system's clock; return by how much it was stepped, 0.0 if it was not."""
        step_s = time.time() - self.unix_s()
        if abs(step_s) > STEP_S:
            self._ahead_s += step_s
            return step_s
        self._ahead_s += step_s  # what NTP slews is followed all the time
        return 0.0


class Monitor:
    """Everything that is watched."""

    def __init__(self, settings: Settings, database: store.Store, host: str) -> None:
        self.settings = settings
        self.store = database
        self.host = host
        self.clock = Clock()
        self.fair = FairClock()
        self.own = Self()
        self.started_s = time.monotonic()
        self.watched: dict[str, Watched] = {}
        self.checks: dict[str, checks.Check] = {}
        self.maintenance: dict[str, dict[str, Any]] = {}
        self.incidents = Incidents(lambda: uuid.uuid4().hex[:12], settings.realert_s, settings.settle_s)
        self.loop = PaceLoop(self._observe, self._pace, settings.mode)
        self.every_s = settings.every_s
        self.lanes = [Lane(channel, self._arrived) for channel in settings.channels]
        self.probes = self.alerts = self.asked = self.unanswered = 0
        self.ticked_s = self.started_s
        self.cpu_cores: float | None = None
        self._late_s: deque[float] = deque(maxlen=300)
        self._gaps: list[float] = []
        self._trips: list[float] = []
        self._pressures: list[float] = []
        self._seen: tuple[float, int, float] = (self.started_s, 0, 0.0)
        self._cpu = Self()
        self._pressure_s = pressure_s()
        self._looked_s = self._checked_s = 0.0
        self._table_s: float | None = None
        self._ask_now = asyncio.Event()
        self._is_primed = False
        self._has_warden = True
        self.supervisord_pid: int | None = None
        self._supervisord_fd = -1
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept: dict[str, str] = {}
        for target in settings.targets:
            self.watched[target.name] = Watched(target)

    # -- life -----------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Take over what an earlier process has left; nothing of it is told twice."""
        now_s, unix_s = time.monotonic(), self.clock.unix_s()
        for plain in self.store.read_now(store.all_of("check")):
            check = checks.Check(**plain)
            # What was pinged while nobody listened is not known: a deadline is not judged before its grace is over.
            not_before_s = unix_s + min(check.grace_s, 300)
            self.checks[check.uuid] = replace(check, not_before_s=not_before_s)
        incidents = []
        for plain in self.store.read_now(store.all_of("incident")):
            boot = plain.pop("boot", "")
            incident = Incident.of(plain)
            self._kept[incident.id] = json.dumps(incident.plain())
            if boot != _boot_id():  # its monotonic times were another boot's
                ago_s = max(0.0, unix_s - incident.unix_s)
                lasted_s = incident.duration_s
                incident.opened_s = now_s - ago_s
                incident.resolved_s = None if lasted_s is None else incident.opened_s + lasted_s
                incident.well_s = incident.well_s and now_s
                incident.told_s = now_s
            incidents.append(incident)
        self.incidents.restore(incidents, now_s)
        for window in self.store.read_now(store.all_of("maintenance")):
            self.maintenance[window["id"]] = window
        for delivery in sorted(
            self.store.read_now(store.all_of("delivery")), key=lambda each: each["alert"]["at_unix_s"]
        ):
            for lane in self.lanes:
                if lane.channel.name == delivery["channel"]:
                    lane.put(delivery["alert"])

    async def run(self, beat: Any) -> None:
        """Watch until cancelled; beat() is called after every tick that did its work."""
        async with asyncio.TaskGroup() as group:
            for lane in self.lanes:
                group.create_task(lane.run())
            group.create_task(self._ask_supervisord())
            next_s = time.monotonic()
            while True:
                self._tick(time.monotonic(), max(0.0, time.monotonic() - next_s))
                beat()
                next_s = max(next_s + TICK_S, time.monotonic())
                await asyncio.sleep(next_s - time.monotonic())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a probe failed with a bug of its own", exc_info=error)

    # -- one tick -------------------------------------------------------------------------------------

    def _tick(self, now_s: float, late_s: float) -> None:
        passed_s = now_s - self.ticked_s
        self.ticked_s = now_s
        self._late_s.append(late_s)
        total_s = pressure_s()
        pressure = 0.0
        if total_s is not None and self._pressure_s is not None and passed_s > 0:
            pressure = min(1.0, (total_s - self._pressure_s) / passed_s)
        self._pressure_s = total_s
        self._pressures.append(pressure)
        self.fair.tick(passed_s, pressure)
        if now_s - self._looked_s >= STATE_S:
            self._looked_s = now_s
            self._look_at_states()
        for watched in list(self.watched.values()):
            if not watched.is_probing and now_s >= watched.next_s:
                self._begin_probe(watched, now_s)
        if now_s - self._checked_s >= 1.0:
            self._checked_s = now_s
            self._judge_checks()
        if self._is_primed:
            self._judge(now_s, passed_s)
        self.loop.step(now_s)

    def _look_at_states(self) -> None:
        for watched in self.watched.values():
            pid = self.supervisord_pid if watched.target.kind is Kind.SUPERVISORD else watched.pid
            if pid is None or watched.ended or watched.target.kind not in (Kind.SERVICE, Kind.SUPERVISORD):
                continue
            if state_of(pid) == "T":
                if watched.frozen_since_s is None:
                    watched.frozen_since_s = self.fair.now.seen_s
            else:
                watched.frozen_since_s = None

    def _judge(self, now_s: float, passed_s: float) -> None:
        supervisord = self.watched.get(SUPERVISORD)
        supervised = supervisord is None or supervisord.condition in (Condition.UP, Condition.UNKNOWN)
        for watched in sorted(self.watched.values(), key=lambda each: bool(each.target.within)):
            waited = waited_s(watched.pid) if watched.suspicion.failures and watched.pid else None
            match watched.target.kind:
                case Kind.SUPERVISORD:
                    condition, reason = self._judge_supervisord(watched)
                case Kind.SERVICE:
                    condition, reason = judge_service(watched, self.fair.now, waited, supervised=supervised)
                case _:
                    own = judge_plain(watched, self.fair.now, waited)
                    condition, reason = follow(own, self.watched.get(watched.target.within))
                    if condition in (Condition.STOPPED, Condition.STARTING):
                        watched.suspicion.forget()  # what was refused meanwhile is no evidence
            if condition is not watched.condition:
                watched.since_s = now_s
                log.log(
                    logging.WARNING if condition is Condition.DOWN else logging.DEBUG,
                    "%s is %s%s", watched.name, condition.value, f": {reason}" if reason else "",
                )  # fmt: skip
            watched.condition, watched.reason = condition, reason
            watched.judged_s += passed_s
            watched.up_s += passed_s if condition is Condition.UP else 0.0
        unix_s = self.clock.unix_s()
        for change, incident in self.incidents.step(now_s, unix_s, self.views(now_s), self.quiet(unix_s)):
            self._tell(change, incident, now_s, unix_s)
        self._keep_incidents()

    def _judge_supervisord(self, watched: Watched) -> tuple[Condition, str]:
        if watched.ended:
            clean = not (self.settings.run_dir / "supervisord.pid").exists()
            return (Condition.STOPPED, "it has ended as told") if clean else (Condition.DOWN, "its process has ended")
        if watched.frozen_since_s is not None and self.fair.now.seen_s - watched.frozen_since_s >= 2 * STATE_S:
            return Condition.DOWN, "its process is stopped by a signal (state T)"
        if self._table_s is None and not self._is_mine():
            return Condition.UNKNOWN, "there is none, as far as anybody can tell"
        waited = waited_s(self.supervisord_pid) if self.supervisord_pid and watched.suspicion.failures else None
        if not watched.probes:
            return Condition.UNKNOWN, "not asked yet"
        # A long exec, or a disk that hangs, holds supervisord up: it has a second more than the others.
        return watched.suspicion.judge(self.fair.now, 1.0, waited), watched.suspicion.text

    def _is_mine(self) -> bool:
        return "SUPERVISOR_ENABLED" in os.environ

    def views(self, now_s: float) -> dict[str, View]:
        """Everything as it is judged now, switches with it."""
        views = {
            watched.name: View(
                name=watched.name,
                condition=watched.condition,
                reason=watched.reason,
                since_s=watched.since_s,
                depends_on=watched.target.depends_on,
                within=watched.target.within,
            )
            for watched in self.watched.values()
        }
        unix_s = self.clock.unix_s()
        names = self.check_names()
        for check in self.checks.values():
            state = checks.status(check, unix_s)
            down = state == "down"
            condition = {"down": Condition.DOWN, "paused": Condition.STOPPED, "new": Condition.UNKNOWN}.get(
                state, Condition.UP
            )
            name = names[check.uuid]
            reason = checks.why_down(check, unix_s) if down else ""
            views[name] = View(name=name, condition=condition, reason=reason, since_s=now_s, is_probed=False)
        return views

    def quiet(self, unix_s: float) -> set[str]:
        """Names of all that is in maintenance: by a window of ours, or by the warden's word."""
        for window in [each for each in self.maintenance.values() if each["until_unix_s"] <= unix_s]:
            del self.maintenance[window["id"]]
            self.store.later(store.drop("maintenance", [window["id"]]))
        patterns = [window["target"] for window in self.maintenance.values()]
        names = [*self.watched, *self.check_names().values()]
        found = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        found |= {each.name for each in self.watched.values() if each.facts is not None and each.facts.maintenance}
        return found | {each.name for each in self.watched.values() if each.target.within in found}

    # -- telling --------------------------------------------------------------------------------------

    def _tell(self, change: Change, incident: Incident, now_s: float, unix_s: float) -> None:
        duration_s = incident.duration_s
        if change is Change.RESOLVED:
            title = f"{incident.root} is well again after {duration_s or 0.0:.1f} s; it was: {incident.reason}"
        elif change is Change.MERGED:
            title = f"{incident.root} is part of incident {incident.part_of} now"
        else:
            title = incident.title
        alert: dict[str, Any] = {
            "id": f"{incident.id}-{change.value}" + (f"-{int(unix_s)}" if change is Change.REMINDED else ""),
            "event": change.value,
            "incident": incident.id,
            "part_of": incident.part_of or None,
            "title": title,
            "root": incident.root,
            "reason": incident.reason,
            "consequences": incident.consequences,
            "opened_at": iso(incident.unix_s),
            "at": iso(unix_s),
            "at_unix_s": unix_s,
            "lasted_s": round(duration_s if duration_s is not None else now_s - incident.opened_s, 3),
            "source": self.settings.instance,
            "host": self.host,
        }
        self.alerts += 1
        log.warning("incident %s %s: %s", incident.id, change.value, title)
        jobs = [
            store.put("delivery", lane.key(alert["id"]), {"channel": lane.channel.name, "alert": alert})
            for lane in self.lanes
        ]
        jobs.append(self._keeping(incident))

        def both(database: Any) -> None:
            for job in jobs:
                job(database)

        self.store.later(both)
        for lane in self.lanes:
            lane.put(alert)

    def _arrived(self, key: str) -> None:
        self.store.later(store.drop("delivery", [key]))

    def _keeping(self, incident: Incident) -> store.Job:
        plain = incident.plain()
        self._kept[incident.id] = json.dumps(plain)
        return store.put("incident", incident.id, {**plain, "boot": _boot_id()})

    def _keep_incidents(self) -> None:
        known = {**self.incidents.open, **{each.id: each for each in self.incidents.resolved[-50:]}}
        for incident in known.values():
            if self._kept.get(incident.id) != json.dumps(incident.plain()):
                self.store.later(self._keeping(incident))
        kept = set(known) | {each.id for each in self.incidents.resolved}
        if gone := [each for each in self._kept if each not in kept]:
            for each in gone:
                del self._kept[each]
            self.store.later(store.drop("incident", gone))

    # -- looking --------------------------------------------------------------------------------------

    def _begin_probe(self, watched: Watched, now_s: float) -> None:
        watched.next_s = now_s + (watched.target.every_s or self.every_s)
        match watched.target.kind:
            case Kind.SUPERVISORD:
                return  # asked by a task of its own
            case Kind.SERVICE:
                if watched.ended or watched.facts is None or watched.facts.state != "RUNNING":
                    return
                if watched.address is None:
                    self._find_address(watched, now_s)
                if watched.address is None:
                    return
        if watched.last_probe_s is not None and not watched.suspicion.failures:
            self._gaps.append(now_s - watched.last_probe_s)
        watched.last_probe_s = now_s
        watched.is_probing, watched.sent = True, self.fair.now
        self._spawn(self._probe(watched, self.fair.now, watched.pid))

    def _find_address(self, watched: Watched, now_s: float) -> None:
        if watched.pid is None or now_s - watched.looked_for_address_s < (ADDRESS_S if watched.probes else 1.0):
            return
        watched.looked_for_address_s = now_s
        found = listening(watched.pid)
        if not found:
            return
        watched.speaks_http = self._is_ours(watched)
        known = PORTS.get(watched.name)
        # The server's own is opened before those that a service may have besides, but where an operator has said so.
        watched.candidates = sorted(found, key=lambda each: each[1] != known)
        watched.address = watched.candidates[0]

    def _is_ours(self, watched: Watched) -> bool:
        """Whether it has the daemon: then its first port speaks HTTP. Others are connected to and told nothing."""
        try:
            record = json.loads((self.settings.run_dir / "locks" / f"{watched.name}.lock").read_bytes().strip())
            return watched.pid in (record["pid"], record["parent"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    async def _probe(self, watched: Watched, sent: Instant, pid: int | None) -> None:
        status, body = 0, b""
        try:
            if watched.target.kind is not Kind.SERVICE:
                answer = await probe(watched.target)
            elif watched.speaks_http:
                assert watched.address is not None
                answer, status, body = await readiness(*watched.address, PROBE_TIMEOUT_S)
            else:
                assert watched.address is not None
                host, port = watched.address
                shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                answer = await probe(Target(name=watched.name, kind=Kind.TCP, address=shown, timeout_s=PROBE_TIMEOUT_S))
        finally:
            watched.is_probing = False
        if watched.pid != pid:
            return  # another process by now
        if watched.candidates and answer.outcome is not Outcome.ANSWERED:
            del watched.candidates[0]  # it listens on others, too
            if watched.candidates:
                watched.address = watched.candidates[0]
                return
        watched.candidates = []
        now_s = time.monotonic()
        self.probes += 1
        watched.probes += 1
        waited = waited_s(pid) if answer.outcome is not Outcome.ANSWERED and pid else None
        watched.suspicion.hear(answer, sent, self.fair.now, waited)
        if answer.outcome is Outcome.ANSWERED:
            watched.last_answer_s, watched.took_s = now_s, answer.took_s
            self._trips.append(answer.took_s)
            self._hear_readiness(watched, status, body)
        elif answer.outcome is Outcome.REFUSED:
            watched.looked_for_address_s = -1e9
            self._find_address(watched, now_s)  # it may listen elsewhere by now
        if watched.suspicion.failures and self.loop.mode == "on":
            asyncio.get_running_loop().call_later(CONFIRM_S, self._look_again, watched)

    def _look_again(self, watched: Watched) -> None:
        if watched.suspicion.failures and not watched.is_probing and self.watched.get(watched.name) is watched:
            self._begin_probe(watched, time.monotonic())

    def _hear_readiness(self, watched: Watched, status: int, body: bytes) -> None:
        if status != 503:
            watched.not_ready_since_s = None
            return
        try:
            told = json.loads(body)
            reasons = told.get("reasons") or [told.get("phase") or "it does not say why"]
            # Halves of surrogate pairs are JSON, but no text that could be passed on.
            watched.not_ready = ", ".join(map(str, reasons))[:300].encode(errors="replace").decode()
        except (ValueError, AttributeError, TypeError, RecursionError):
            watched.not_ready = "it does not say why"
        if watched.not_ready_since_s is None:
            watched.not_ready_since_s = self.fair.now.seen_s

    # -- supervisord ----------------------------------------------------------------------------------

    async def _ask_supervisord(self) -> None:
        path = self.settings.run_dir / "supervisor.sock"
        while True:
            sent, began_s = self.fair.now, time.monotonic()
            failed = False
            try:
                table = await ask(path, ASK_TIMEOUT_S)
            except Unanswered as error:
                failed = True
                self.unanswered += 1
                outcome = Outcome.REFUSED if error.refused else Outcome.SILENT
                self._hear_supervisord(
                    Answer(outcome=outcome, took_s=time.monotonic() - began_s, text=str(error)), sent
                )
                if self._table_s is None:
                    self._learn_from_conf()
            else:
                self._take_in(table, time.monotonic())
                self._hear_supervisord(Answer(outcome=Outcome.ANSWERED, took_s=time.monotonic() - began_s), sent)
            self.asked += 1
            self._is_primed = True
            self._ask_now.clear()
            pause_s = CONFIRM_S if failed and self.loop.mode == "on" else min(1.0, self.every_s)
            with contextlib.suppress(TimeoutError):  # nobody was in a hurry
                async with asyncio.timeout(pause_s):
                    await self._ask_now.wait()
                await asyncio.sleep(0.02)

    def _hear_supervisord(self, answer: Answer, sent: Instant) -> None:
        watched = self.watched.get(SUPERVISORD)
        if watched is None:
            if answer.outcome is not Outcome.ANSWERED and not self._is_mine():
                return
            watched = self.watched[SUPERVISORD] = Watched(Target(name=SUPERVISORD, kind=Kind.SUPERVISORD))
        watched.probes += 1
        watched.last_probe_s = time.monotonic()
        pid = self.supervisord_pid
        watched.suspicion.hear(answer, sent, self.fair.now, waited_s(pid) if pid else None)
        if answer.outcome is Outcome.ANSWERED:
            watched.last_answer_s, watched.took_s = time.monotonic(), answer.took_s

    def _take_in(self, table: Table, now_s: float) -> None:
        self._table_s = now_s
        self._has_warden = table.warden
        self._follow_supervisord(table.pid or _read_pid(self.settings.run_dir / "supervisord.pid"))
        seen = {SUPERVISORD}
        for facts in table.rows:
            if facts.pid == os.getpid() or facts.name == self.settings.instance:
                continue
            seen.add(facts.name)
            watched = self.watched.get(facts.name)
            wanted = tuple(dict.fromkeys((SUPERVISORD, *facts.depends_on)))
            if watched is None:
                target = Target(name=facts.name, kind=Kind.SERVICE, depends_on=wanted)
                watched = self.watched[facts.name] = Watched(target)
                watched.next_s = now_s
                if facts.name == ATLAS:
                    self._watch_the_bus()
            elif watched.target.kind is not Kind.SERVICE:
                continue  # the operator's own target has that name
            elif watched.target.depends_on != wanted:
                watched.target = replace(watched.target, depends_on=wanted)
            watched.facts = facts
            if facts.pid != watched.pid or (watched.pidfd < 0 and facts.pid and not watched.ended):
                self._follow(watched, facts.pid)
        for name in [
            each for each, one in self.watched.items() if one.target.kind is Kind.SERVICE and each not in seen
        ]:
            self._drop(name)

    def _watch_the_bus(self) -> None:
        for each in BUS:
            target = Target(
                name=f"bus {each}",
                kind=Kind.UNIX,
                address=str(self.settings.run_dir / f"{each}.sock"),
                within=ATLAS,
                patience_s=BUS_PATIENCE_S,
            )
            self.watched[target.name] = Watched(target)

    def _drop(self, name: str) -> None:
        watched = self.watched.pop(name)
        self._unfollow(watched)
        for each in [each.name for each in self.watched.values() if each.target.within == name]:
            del self.watched[each]

    def _follow(self, watched: Watched, pid: int | None) -> None:
        """Be told by the kernel when that process ends."""
        self._unfollow(watched)
        if pid is None:
            watched.pid = None
            return
        watched.begin_anew(pid)
        watched.next_s = time.monotonic()
        try:
            watched.pidfd = os.pidfd_open(pid)
        except OSError:
            return  # it has ended already: the next table says how
        asyncio.get_running_loop().add_reader(watched.pidfd, self._process_ended, watched, pid)

    def _unfollow(self, watched: Watched) -> None:
        if watched.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(watched.pidfd)
            os.close(watched.pidfd)
            watched.pidfd = -1

    def _process_ended(self, watched: Watched, pid: int) -> None:
        self._unfollow(watched)
        watched.ended = True
        self._ask_now.set()
        self._spawn(self._learn_why(watched, pid))

    async def _learn_why(self, watched: Watched, pid: int) -> None:
        """Whether somebody wanted that end: by its post-mortem, or by supervisord's table."""
        end: End | None = None
        deadline_s = time.monotonic() + (LEARN_S if self._has_warden else STOCK_LEARN_S)
        while end is None and time.monotonic() < deadline_s:
            await asyncio.sleep(LEARN_EVERY_S)
            facts: Facts | None = watched.facts
            if self._has_warden:
                end = postmortem(self.settings.run_dir, watched.name, pid)
            elif facts is not None and facts.pid != pid:
                path = self.settings.run_dir / "supervisor.sock"
                end = end_by_table(facts) or await logged_end(path, watched.name, ASK_TIMEOUT_S)
            else:
                self._ask_now.set()  # it has not reaped it yet
        facts = watched.facts
        if end is None and facts is not None and facts.pid != pid:
            end = end_by_table(facts)
        if end is None:
            supervisord = self.watched.get(SUPERVISORD)
            gone = supervisord is None or supervisord.ended or supervisord.suspicion.failures > 0
            end = End(on_purpose=False, text="its process has ended" + (", and nobody tells how" if gone else ""))
        if not end.on_purpose:
            watched.crash, watched.crash_was_seen = end.text, False
        if watched.pid == pid:
            watched.pid = None
            watched.ended = watched.facts is not None and watched.facts.pid == pid
        self._ask_now.set()

    def _follow_supervisord(self, pid: int | None) -> None:
        if pid is None or pid == self.supervisord_pid:
            return
        loop = asyncio.get_running_loop()
        if self._supervisord_fd >= 0:
            loop.remove_reader(self._supervisord_fd)
            os.close(self._supervisord_fd)
            self._supervisord_fd = -1
        self.supervisord_pid = pid
        if (watched := self.watched.get(SUPERVISORD)) is not None:
            watched.ended = False
            watched.suspicion.forget()
        try:
            self._supervisord_fd = os.pidfd_open(pid)
        except OSError:
            return
        loop.add_reader(self._supervisord_fd, self._supervisord_ended)

    def _supervisord_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._supervisord_fd)
        os.close(self._supervisord_fd)
        self._supervisord_fd = -1
        self.supervisord_pid = None
        if (watched := self.watched.get(SUPERVISORD)) is not None:
            watched.ended = True

    def _learn_from_conf(self) -> None:
        """While supervisord cannot be asked, know at least what there should be, and find it by its lock."""
        if not self._is_mine() and not (self.settings.run_dir / "supervisor.sock").exists():
            return
        path = conf_of(None, self.settings.run_dir)
        for name, autostart in read_conf(path).items() if path else ():
            if name == self.settings.instance or name in self.watched or not autostart:
                continue
            target = Target(name=name, kind=Kind.SERVICE, depends_on=(SUPERVISORD,))
            self.watched[name] = Watched(target)

    # -- dead man's switches --------------------------------------------------------------------------

    def _judge_checks(self) -> None:
        if step_s := self.clock.follow():
            log.warning("the system's clock was stepped by %.1f s", step_s)
            self.checks = {key: checks.shifted(check, step_s) for key, check in self.checks.items()}
        unix_s = self.clock.unix_s()
        for check in list(self.checks.values()):
            settled = checks.settled(check, unix_s)
            if settled is not check:
                self.checks[check.uuid] = settled
                self.store.later(store.put_flip(settled.plain(), unix_s, up=False))

    def check_names(self) -> dict[str, str]:
        """Every switch as a target: ``check NAME``, with the first of its UUID where a name is not its own."""
        labels = Counter(check.label for check in self.checks.values())
        return {
            check.uuid: f"check {check.label}" + (f" {check.uuid[:8]}" if labels[check.label] > 1 else "")
            for check in self.checks.values()
        }

    # -- what the loop sees and does ------------------------------------------------------------------

    def _observe(self) -> Observation | None:
        now_s = time.monotonic()
        since_s, probes, late_s = self._seen
        self._seen = (now_s, self.probes, self.fair.late_s)
        cpu_cores = self._cpu.cpu_cores(now_s)
        self.cpu_cores = cpu_cores if cpu_cores is not None else self.cpu_cores
        gaps, self._gaps = self._gaps, []
        trips, self._trips = self._trips, []
        pressures, self._pressures = self._pressures, []
        if cpu_cores is None or not self._is_primed:
            return None
        return Observation(
            interval_s=self.every_s,
            gap_s=sum(gaps) / len(gaps) if gaps else None,
            cpu_cores=cpu_cores,
            probes_per_s=(self.probes - probes) / max(1e-3, now_s - since_s),
            round_trip_s=sum(trips) / len(trips) if trips else None,
            late_s=self.fair.late_s - late_s,
            pressure=sum(pressures) / len(pressures) if pressures else 0.0,
            suspects=sum(each.condition in (Condition.SUSPECT, Condition.DOWN) for each in self.watched.values()),
        )

    def _pace(self, interval_s: float) -> None:
        self.every_s = interval_s
        now_s = time.monotonic()
        for watched in self.watched.values():
            watched.next_s = min(watched.next_s, now_s + interval_s)

    def set_mode(self, mode: str) -> None:
        """off: the interval is the one that was set, whatever the loop had found."""
        self.loop.mode = mode
        if mode == "off":
            self.every_s = self.settings.every_s

    def late_p99_s(self) -> float:
        """How late its ticks begin."""
        late = sorted(self._late_s)
        return late[int(len(late) * 0.99)] if late else 0.0


def _read_pid(path: Path) -> int | None:
    try:
        text = path.read_text()[:20].strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _boot_id() -> str:
    global _BOOT
    if not _BOOT:
        try:
            _BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            _BOOT = "unknown"
    return _BOOT


_BOOT = ""
