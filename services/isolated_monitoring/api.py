"""The monitor over HTTP: pings and checks as healthchecks.io has them, its state, what every service has."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.isolated_monitoring import checks, origins, store
from services.isolated_monitoring.alerts import iso
from services.isolated_monitoring.checks import Action, Check, CheckError
from services.isolated_monitoring.exposition import CONTENT_TYPE, family
from services.isolated_monitoring.incidents import Incident
from services.isolated_monitoring.monitor import Monitor
from services.isolated_monitoring.page import PAGE
from services.isolated_monitoring.settings import MODES, NAME
from services.isolated_monitoring.store import StoreError
from services.isolated_monitoring.target import SUPERVISORD, Condition
from services.isolated_monitoring.watched import kind_of
from services.isolated_monitoring.web import RefusedError, Request, Response, answer, text

CHECKS_MAX = 1000
WINDOWS_MAX = 100
WINDOW_MOST_S = 30 * 86400
STUCK_S = 2.0
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ACTIONS = {"start": Action.START, "fail": Action.FAIL, "log": Action.LOG}
_PING_HEADERS = {"Ping-Body-Limit": str(checks.BODY_BYTES)}


def is_ping(path: str) -> bool:
    """Whether that is where pings go."""
    return path.startswith("/ping/")


def make_token(path: Path) -> str:
    """What is in the file, which is made, private, if there is none; raises OSError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        known = path.read_text().strip()
        if known:
            return known
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    token = secrets.token_urlsafe(24)
    with os.fdopen(fd, "w") as file:
        file.write(token + "\n")
    return token


class Api:
    """Answers every request."""

    def __init__(self, monitor: Monitor, *, token: str, ping_key: str, incarnation: int, started_s: float) -> None:
        self._monitor = monitor
        self._token = token
        self._ping_key = ping_key
        self._incarnation = incarnation
        self._started_s = started_s
        self.phase = "starting"
        self.counts: dict[str, int] = {}
        self.server: Any = None
        """Whose requests are counted; set once it is there."""

    async def __call__(self, request: Request) -> Response:
        """Answer, or raise RefusedError."""
        path, method = request.path, request.method
        hosts = self._monitor.settings.hosts
        origins.check(
            request.headers,
            method=method,
            path=path,
            connected=request.connected,
            hosts=hosts,
            is_ping=is_ping(path),
        )
        if is_ping(path):
            return await self._ping(request)
        if method == "HEAD":
            method = "GET"
        parts = [part for part in path.split("/") if part]
        match method, parts:
            case "GET", []:
                policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
                headers = {"Content-Security-Policy": policy + "; img-src data:", "X-Content-Type-Options": "nosniff"}
                return Response(200, PAGE, "text/html; charset=utf-8", headers)
            case "GET", ["livez"]:
                return answer({"alive": True, "phase": self.phase})
            case "GET", ["readyz"]:
                return self._readyz()
            case "GET", ["metrics"]:
                return Response(200, self._metrics().encode(), CONTENT_TYPE)
            case "GET", ["ooda"]:
                return answer(self._monitor.loop.view(self._monitor.settings.instance))
            case "POST", ["ooda", "mode"]:
                return self._mode(request)
            case "GET", ["api", "status"]:
                return answer(self.status())
            case "GET", ["api", "incidents"]:
                return self._incidents(request)
            case "GET", ["api", "maintenance"]:
                return answer({"maintenance": list(self._monitor.maintenance.values())})
            case "POST", ["api", "maintenance"]:
                return await self._begin_maintenance(request)
            case "DELETE", ["api", "maintenance", key]:
                return await self._end_maintenance(request, key)
            case _, ["api", ("v1" | "v2" | "v3") as version, "checks", *rest]:
                return await self._checks(request, method, int(version[1]), rest)
            case "GET", ["api", ("v1" | "v2" | "v3"), "channels"]:
                self._authorize(request)
                lanes = [{"id": str(n), "name": lane.channel.name, "kind": lane.channel.name.split()[0]}
                         for n, lane in enumerate(self._monitor.lanes)]  # fmt: skip
                return answer({"channels": lanes})
            case "GET", ["api", ("v1" | "v2" | "v3"), "status"]:
                return text("OK")
        known = {
            ("livez",), ("readyz",), ("metrics",), ("ooda",), ("ooda", "mode"), ("api", "status"),
            ("api", "incidents"), ("api", "maintenance"), (),
        }  # fmt: skip
        if tuple(parts) in known:
            raise RefusedError(405, f"cannot {request.method} this path", value=path[:200])
        raise RefusedError(
            404, "cannot find this path", value=path[:200], next="/, /api/status, /api/incidents, /ping/UUID, /livez"
        )

    # -- every service's ------------------------------------------------------------------------------

    def _readyz(self) -> Response:
        idle_s = time.monotonic() - self._monitor.ticked_s
        reasons = [f"has not looked for {idle_s:.1f} s"] if idle_s > STUCK_S else []
        health = "unhealthy" if reasons else "degraded" if self.problems() else "healthy"
        is_ready = self.phase == "serving" and not reasons
        body = {"ready": is_ready, "phase": self.phase, "health": health, "reasons": reasons or self.problems()}
        return answer(body, 200 if is_ready else 503)

    def problems(self) -> list[str]:
        """What of its own keeps it from doing all that it should."""
        found = [self._monitor.store.problem, *(lane.problem for lane in self._monitor.lanes)]
        return [each for each in found if each]

    def _mode(self, request: Request) -> Response:
        if "origin" in request.headers:
            raise RefusedError(403, "cannot set the mode from a web page", next="send no Origin header")
        mode = request.json().get("mode")
        if mode not in MODES:
            raise RefusedError(400, "cannot set the mode", value=mode, limit='{"mode": "off"|"shadow"|"on"}')
        self._monitor.set_mode(mode)
        return answer({"mode": mode})

    def _metrics(self) -> str:
        monitor = self._monitor
        who = {"service": NAME, "instance_id": monitor.settings.instance}
        lines: list[str] = []

        def put(name: str, kind: str, help_: str, value: float | None) -> None:
            lines.extend(family(name, kind, help_, [({}, value)], who))

        put("cdn_service_ready", "gauge", "1 if the service takes traffic.", self._readyz().status == 200)
        put("cdn_service_healthy", "gauge", "1 if every health check passes.", not self.problems())
        put("cdn_service_incarnation", "gauge", "Counts the starts of this instance.", self._incarnation)
        put("cdn_service_uptime_seconds", "gauge", "Time since the process began.", time.monotonic() - self._started_s)
        put("cdn_service_requests_total", "counter", "Requests answered.", self.server and self.server.requests)
        put(
            "cdn_service_requests_in_flight",
            "gauge",
            "Requests not yet answered.",
            self.server and self.server.in_flight,
        )
        put("cdn_service_cpu_cores", "gauge", "Processor use over the last seconds, in cores.", monitor.cpu_cores)
        put("cdn_service_resident_memory_bytes", "gauge", "Resident memory.", monitor.own.rss_bytes())
        put("cdn_service_open_fds", "gauge", "Open file descriptors.", monitor.own.fds())
        put("cdn_service_threads", "gauge", "Threads.", monitor.own.threads())
        put("isolated_interval_seconds", "gauge", "From one probe of a target to the next.", monitor.every_s)
        put("isolated_late_seconds", "gauge", "How late its ticks begin, 99th percentile.", monitor.late_p99_s())
        put("isolated_uncharged_seconds_total", "counter", "Time held against nobody, as the monitor itself was late.",
            monitor.fair.late_s)  # fmt: skip
        put("isolated_probes_total", "counter", "Probes that ended.", monitor.probes)
        put("isolated_incidents_open", "gauge", "Incidents that last.", len(monitor.incidents.open))
        put("isolated_alerts_total", "counter", "Alerts raised.", monitor.alerts)
        put("isolated_supervisord_unanswered_total", "counter", "Questions to supervisord without an answer.",
            monitor.unanswered)  # fmt: skip
        put("isolated_pings_total", "counter", "Pings of dead man's switches heard.", self.counts.get("pings", 0))
        put("isolated_checks", "gauge", "Dead man's switches.", len(monitor.checks))
        lanes = [({"channel": lane.channel.name}, lane) for lane in monitor.lanes]
        for name, kind, help_, value in (
            ("isolated_alerts_delivered_total", "counter", "Alerts that arrived.", lambda lane: lane.delivered),
            ("isolated_alerts_failed_total", "counter", "Deliveries that failed.", lambda lane: lane.failed),
            ("isolated_alerts_waiting", "gauge", "Alerts on their way.", len),
        ):  # fmt: skip
            lines.extend(family(name, kind, help_, [(own, value(lane)) for own, lane in lanes], who))
        targets = [({"target": each.name}, each) for each in monitor.watched.values()]
        ups = [(own, float(each.condition is Condition.UP)) for own, each in targets]
        lines.extend(family("isolated_target_up", "gauge", "1 if nothing speaks against the target.", ups, who))
        trips = [(own, each.took_s) for own, each in targets]
        lines.extend(family("isolated_target_round_trip_seconds", "gauge", "Of the last answer.", trips, who))
        return "\n".join(lines) + "\n"

    # -- its state ------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Everything, for the page and for programs; no ping addresses, as who has one can ping."""
        monitor = self._monitor
        now_s, unix_s = time.monotonic(), monitor.clock.unix_s()
        views, quiet = monitor.views(now_s), monitor.quiet(unix_s)
        targets = []
        for name, view in views.items():
            watched = monitor.watched.get(name)
            incident = monitor.incidents.of(name)
            row: dict[str, Any] = {
                "name": name,
                "kind": kind_of(watched) if watched else "check",
                "condition": view.condition.value,
                "reason": view.reason,
                "depends_on": list(view.depends_on),
                "within": view.within,
                "maintenance": name in quiet,
                "incident": incident.id if incident else None,
            }
            if watched is not None:
                address = watched.target.address or (watched.address and f"{watched.address[0]}:{watched.address[1]}")
                pid = monitor.supervisord_pid if name == SUPERVISORD else watched.pid
                row |= {
                    "since_s": round(now_s - watched.since_s, 1) if watched.since_s else None,
                    "pid": pid,
                    "address": address or None,
                    "round_trip_ms": None if watched.took_s is None else round(watched.took_s * 1000, 2),
                    "answered_s": None if watched.last_answer_s is None else round(now_s - watched.last_answer_s, 2),
                    "phi": round(watched.suspicion.phi(monitor.fair.now), 2),
                    "up_part": round(watched.up_s / watched.judged_s, 6) if watched.judged_s else None,
                }
            targets.append(row)
        for check in monitor.checks.values():
            shown = checks.shown(check, unix_s, "")
            row = next(each for each in targets if each["name"] == monitor.check_names()[check.uuid])
            row["check"] = {
                key: shown[key] for key in ("status", "started", "last_ping", "next_ping", "n_pings", "grace")
            }
            row["check"] |= {"last_duration": shown.get("last_duration"), "tags": check.tags}
        return {
            "source": monitor.settings.instance,
            "host": monitor.host,
            "at": iso(unix_s),
            "verdict": self._verdict(),
            "problems": self.problems(),
            "mode": monitor.loop.mode,
            "interval_s": monitor.every_s,
            "cpu_cores": monitor.cpu_cores,
            "late_p99_s": round(monitor.late_p99_s(), 4),
            "targets": targets,
            "incidents": [shown_incident(each, now_s) for each in monitor.incidents.open.values()],
            "resolved": [shown_incident(each, now_s) for each in reversed(monitor.incidents.resolved[-20:])],
            "maintenance": list(monitor.maintenance.values()),
            "channels": [
                {"name": lane.channel.name, "waiting": len(lane), "delivered": lane.delivered, "problem": lane.problem}
                for lane in monitor.lanes
            ],
        }

    def _verdict(self) -> str:
        told = [each for each in self._monitor.incidents.open.values() if each.told]
        if not told:
            return "all is well"
        return told[0].title if len(told) == 1 else f"{len(told)} incidents"

    def summary(self) -> str:
        """A short line for STATUS=."""
        watched = self._monitor.watched.values()
        up = sum(each.condition is Condition.UP for each in watched)
        told = len([each for each in self._monitor.incidents.open.values() if each.told])
        return f"{up} of {len(watched)} targets up, {told} incident{'s' * (told != 1)}"

    def _incidents(self, request: Request) -> Response:
        limit = request.one("limit") or "100"
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 3) or not 1 <= int(limit) <= 200:
            raise RefusedError(400, "cannot use limit", value=limit[:20], limit="1 to 200")
        now_s, known = time.monotonic(), self._monitor.incidents
        found = [*known.open.values(), *reversed(known.resolved)][: int(limit)]
        return answer({"incidents": [shown_incident(each, now_s) for each in found]})

    # -- maintenance ----------------------------------------------------------------------------------

    async def _begin_maintenance(self, request: Request) -> Response:
        self._authorize(request)
        wish = request.json()
        target, for_s, reason = wish.get("target"), wish.get("for_s"), wish.get("reason", "")
        if not isinstance(target, str) or not 0 < len(target) <= 100:
            raise RefusedError(
                400, "cannot use target", value=str(target)[:100], limit="a name or glob, such as 'cdn-*'"
            )
        if isinstance(for_s, bool) or not isinstance(for_s, int | float) or not 1 <= for_s <= WINDOW_MOST_S:
            raise RefusedError(400, "cannot use for_s", value=str(for_s)[:40], limit=f"1 to {WINDOW_MOST_S} seconds")
        if not isinstance(reason, str) or len(reason) > 500:
            raise RefusedError(400, "cannot use reason", limit="a text of at most 500 characters")
        if len(self._monitor.maintenance) >= WINDOWS_MAX:
            raise RefusedError(409, "cannot have more windows", limit=WINDOWS_MAX, next="DELETE /api/maintenance/ID")
        unix_s = self._monitor.clock.unix_s()
        window: dict[str, Any] = {
            "id": uuid.uuid4().hex[:12],
            "target": target,
            "reason": reason,
            "until": iso(unix_s + for_s),
            "until_unix_s": unix_s + for_s,
        }
        await self._durably(store.put("maintenance", window["id"], window))
        self._monitor.maintenance[window["id"]] = window
        return answer(window, 201)

    async def _end_maintenance(self, request: Request, key: str) -> Response:
        self._authorize(request)
        window = self._monitor.maintenance.get(key)
        if window is None:
            raise RefusedError(404, "cannot find this window", value=key[:40], next="GET /api/maintenance")
        await self._durably(store.drop("maintenance", [key]))
        self._monitor.maintenance.pop(key, None)
        return answer(window)

    # -- pings ----------------------------------------------------------------------------------------

    async def _ping(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD", "POST"):
            return text("method not allowed", 405)
        parts = request.path.split("/")[2:]
        check: Check | None = None
        key, *rest = parts
        status = 200
        if _UUID.fullmatch(key.lower()):
            check = self._monitor.checks.get(key.lower())
        elif rest and key and hmac.compare_digest(key.encode(), self._ping_key.encode()):
            slug, *rest = rest
            found = [each for each in self._monitor.checks.values() if each.slug == slug and slug]
            if len(found) > 1:
                return text("ambiguous slug", 409)
            check = found[0] if found else None
            if check is None and request.one("create") == "1":
                check = await self._make({"name": slug, "slug": slug})
                status = 201
        elif not rest or key:
            return text("not found", 404)
        action, code = self._read_action(rest)
        if action is None:
            return text("invalid url format", 400)
        rid = (request.one("rid") or "").lower()
        if rid and not _UUID.fullmatch(rid):
            return text("invalid uuid format", 400)
        if check is None:
            return text("not found", 404)
        await self._heard(check.uuid, action, request, rid, code)
        return Response(
            status, b"Created" if status == 201 else b"OK", "text/plain; charset=utf-8", dict(_PING_HEADERS)
        )

    @staticmethod
    def _read_action(rest: list[str]) -> tuple[Action | None, int | None]:
        match rest:
            case [] | [""]:
                return Action.SUCCESS, None
            case [word] if word in _ACTIONS:
                return _ACTIONS[word], None
            case [word] if word.isascii() and word.isdigit() and len(word) <= 3 and int(word) <= 255:
                return (Action.FAIL if int(word) else Action.SUCCESS), int(word)
        return None, None

    async def _heard(self, key: str, action: Action, request: Request, rid: str, code: int | None) -> None:
        """Take the ping in at once, and return when it is durable."""
        monitor = self._monitor
        check, now_s = monitor.checks[key], monitor.clock.unix_s()
        was = checks.status(check, now_s)
        said = f"exit status {code}" if code else "it reported a failure"
        heard = checks.ping(checks.settled(check, now_s), action, now_s, rid=rid, method=request.method, said=said)
        monitor.checks[key] = heard
        self.counts["pings"] = self.counts.get("pings", 0) + 1
        now = checks.status(heard, now_s)
        flip = None if (was == "down") == (now == "down") and was != "new" else now != "down"
        kind = Action.IGNORED if checks.is_ignored(check, request.method) else action
        ping = {
            "type": kind.value,
            "date": iso(now_s),
            "unix_s": now_s,
            "method": request.method,
            "remote_addr": request.headers.get("x-forwarded-for", request.peer)[:100],
            "ua": request.headers.get("user-agent", "")[:200],
            "scheme": "http",
            "rid": rid or None,
            "exit_status": code,
        }
        if heard.last_duration_s is not None and kind in (Action.SUCCESS, Action.FAIL):
            ping["duration"] = round(heard.last_duration_s, 3)
        await self._durably(store.put_ping(heard.plain(), ping, request.body, flip))

    async def _durably(self, job: store.Job) -> Any:
        try:
            return await self._monitor.store.do(job)
        except StoreError as error:
            raise RefusedError(507, str(error), next="make room on the disk, and try again") from error

    # -- checks, as the Management API of healthchecks.io has them ------------------------------------

    def _authorize(self, request: Request) -> None:
        told = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if not told and request.method == "POST" and request.body[:1] == b"{":
            told = str(request.json().get("api_key", ""))
        if not hmac.compare_digest(told.encode(), self._token.encode()):
            raise RefusedError(
                401, "cannot do this without the right X-Api-Key", next=f"it is in {self._monitor.settings.token}"
            )

    async def _checks(self, request: Request, method: str, version: int, rest: list[str]) -> Response:
        self._authorize(request)
        base_url = f"http://{request.headers.get('host', 'localhost')}"

        def shown(check: Check, status: int = 200) -> Response:
            return answer(checks.shown(check, self._monitor.clock.unix_s(), base_url, version), status)

        match method, rest:
            case "GET", []:
                tags, slug = set(request.query.get("tag", ())), request.one("slug")
                found = [
                    checks.shown(each, self._monitor.clock.unix_s(), base_url, version)
                    for each in self._monitor.checks.values()
                    if tags <= set(each.tags.split()) and slug in (None, each.slug)
                ]
                return answer({"checks": found})
            case "POST", []:
                return await self._create(request, shown)
            case "GET", [key]:
                return shown(self._find(key))
            case "POST", [key]:
                return shown(await self._change(self._find(key), request.json()))
            case "DELETE", [key]:
                return shown(await self._forget(self._find(key)))
            case "POST", [key, "pause"]:
                return shown(await self._keep(checks.paused(self._find(key))))
            case "POST", [key, "resume"]:
                try:
                    return shown(await self._keep(checks.resumed(self._find(key))))
                except CheckError as error:
                    raise RefusedError(409, f"cannot resume the check: {error}", value=key) from error
            case "GET", [key, "pings"]:
                return await self._pings(self._find(key), base_url, version)
            case "GET", [key, "pings", number, "body"] if number.isascii() and number.isdigit() and len(number) < 16:
                body = await self._durably(store.body_of(self._find(key).uuid, int(number)))
                if body is None:
                    raise RefusedError(404, "cannot find a body of this ping", value=number)
                return Response(200, body, "text/plain; charset=utf-8")
            case "GET", [key, "flips"]:
                rows = await self._durably(store.flips_of(self._find(key).uuid))
                flips = [{"timestamp": iso(row["unix_s"]), "up": row["up"]} for row in rows]
                return answer(flips if version == 1 else {"flips": flips})
        raise RefusedError(404, "cannot find this path", value=request.path[:200])

    def _find(self, key: str) -> Check:
        check = self._monitor.checks.get(key.lower())
        if check is None:
            raise RefusedError(404, "cannot find this check", value=key[:60])
        return check

    async def _create(self, request: Request, shown: Any) -> Response:
        wish = request.json()
        unique = wish.get("unique", [])
        if not isinstance(unique, list) or not set(map(str, unique)) <= {"name", "slug", "tags", "timeout", "grace"}:
            raise RefusedError(
                400, "cannot use unique", value=str(unique)[:100], limit="name, slug, tags, timeout, grace"
            )
        if unique:
            wanted = checks.shown(self._wished(Check(uuid=""), wish), 0.0, "")
            for check in self._monitor.checks.values():
                has = checks.shown(check, 0.0, "")
                if all(has.get(each) == wanted.get(each) for each in unique):
                    return shown(await self._change(check, wish))  # type: ignore[no-any-return]
        return shown(await self._make(wish), 201)  # type: ignore[no-any-return]

    async def _make(self, wish: dict[str, Any]) -> Check:
        if len(self._monitor.checks) >= CHECKS_MAX:
            raise RefusedError(403, "cannot have more checks", limit=CHECKS_MAX, next="delete some")
        return await self._keep(self._wished(Check(uuid=str(uuid.uuid4())), wish))

    async def _change(self, check: Check, wish: dict[str, Any]) -> Check:
        return await self._keep(replace(self._wished(check, wish), not_before_s=0.0))

    @staticmethod
    def _wished(check: Check, wish: dict[str, Any]) -> Check:
        try:
            return checks.changed(check, wish)
        except CheckError as error:
            raise RefusedError(400, f"cannot use the check: {error}") from error

    async def _keep(self, check: Check) -> Check:
        """Take the check in at once, as the next ping is of what it is now, and return when it is durable."""
        known = self._monitor.checks
        before = known.get(check.uuid)
        known[check.uuid] = check
        try:
            await self._durably(store.put("check", check.uuid, check.plain()))
        except RefusedError:
            if known.get(check.uuid) is check:
                if before is None:
                    del known[check.uuid]
                else:
                    known[check.uuid] = before
            raise
        return check

    async def _forget(self, check: Check) -> Check:
        """At once, as whatever is kept of it after this would bring it back, and return when that is durable."""
        known = self._monitor.checks
        del known[check.uuid]
        try:
            await self._durably(store.drop_check(check.uuid))
        except RefusedError:
            known.setdefault(check.uuid, check)
            raise
        return check

    async def _pings(self, check: Check, base_url: str, version: int) -> Response:
        rows = await self._durably(store.pings_of(check.uuid))
        for row in rows:
            del row["unix_s"]
            has_body = row.pop("has_body")
            path = f"/api/v{version}/checks/{check.uuid}/pings/{row['n']}/body"
            row["body_url"] = f"{base_url}{path}" if has_body else None
        return answer({"pings": rows})


def shown_incident(incident: Incident, now_s: float) -> dict[str, Any]:
    """An incident for people and programs."""
    return {
        "id": incident.id,
        "root": incident.root,
        "title": incident.title,
        "reason": incident.reason,
        "consequences": incident.consequences,
        "opened_at": iso(incident.unix_s),
        "lasted_s": round(incident.duration_s if incident.duration_s is not None else now_s - incident.opened_s, 3),
        "is_open": incident.resolved_s is None,
        "told": incident.told,
        "relapses": incident.relapses,
    }
