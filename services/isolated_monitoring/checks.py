"""Dead man's switches, by the rules of healthchecks.io: what has to be heard in time. Pure: time is Unix time.

That time comes from a clock that is not stepped while the monitor runs; where
the system's is, ``shifted`` moves everything along, so that nobody is late by it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from services.isolated_monitoring import cron

PERIOD_LEAST_S, PERIOD_MOST_S = 1, 31_536_000
BODY_BYTES = 10_000
"""Of a ping's body so much is kept."""
PINGS_KEPT = 100
_SLUG = re.compile(r"[a-z0-9_-]{0,100}")


class CheckError(ValueError):
    """A check cannot be so; the text says what and why."""


class Action(Enum):
    """What a ping says."""

    SUCCESS = "success"
    START = "start"
    FAIL = "fail"
    LOG = "log"
    IGNORED = "ign"
    """It was heard and counted; the check did not want to know."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One switch."""

    uuid: str
    name: str = ""
    slug: str = ""
    tags: str = ""
    desc: str = ""
    timeout_s: int = 86400
    """From one ping to the next; not used with a schedule."""
    grace_s: int = 3600
    """How late a ping may be, and how long a run that was started may take."""
    schedule: str = ""
    """A cron expression, or empty."""
    tz: str = "UTC"
    methods: str = ""
    """``POST``: other pings are ignored."""
    manual_resume: bool = False
    status: str = "new"
    """new, up, down or paused."""
    n_pings: int = 0
    last_ping_s: float | None = None
    last_start_s: float | None = None
    last_start_rid: str = ""
    last_duration_s: float | None = None
    not_before_s: float = 0.0
    """It is not judged before: the monitor itself was away, and heard nobody."""
    failed: str = ""
    """What the last ping that was no success said of itself."""

    @property
    def label(self) -> str:
        """For people."""
        return self.name or self.slug or self.uuid

    def plain(self) -> dict[str, Any]:
        """For the store."""
        return asdict(self)


@lru_cache(maxsize=1000)
def _cron(text: str) -> cron.Cron:
    return cron.parse(text)


@lru_cache(maxsize=1000)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def expected_s(check: Check) -> float | None:
    """When the next ping is due; None if none is."""
    if check.status != "up" or check.last_ping_s is None:
        return None
    if check.schedule:
        return _cron(check.schedule).next_s(check.last_ping_s, _zone(check.tz))
    return check.last_ping_s + check.timeout_s


def down_after_s(check: Check) -> float | None:
    """When it is down if nothing more is heard; None if never, or if it is already."""
    if check.status in ("down", "paused"):
        return None
    ends = [] if check.last_start_s is None else [check.last_start_s + check.grace_s]
    due_s = expected_s(check)
    if due_s is not None:
        ends.append(due_s + check.grace_s)
    return max(check.not_before_s, min(ends)) if ends else None


def status(check: Check, now_s: float) -> str:
    """new, up, grace, down or paused."""
    ends_s = down_after_s(check)
    if ends_s is not None and now_s >= ends_s:
        return "down"
    due_s = expected_s(check)
    return "grace" if due_s is not None and now_s >= due_s else check.status


def why_down(check: Check, now_s: float) -> str:
    """In words; empty if it is not."""
    if status(check, now_s) != "down":
        return ""
    if check.status == "down":
        return check.failed or "it reported a failure"
    if check.last_start_s is not None and now_s >= check.last_start_s + check.grace_s:
        return f"started and not done within {check.grace_s} s"
    return f"no ping in time: one every {check.schedule or f'{check.timeout_s} s'}, {check.grace_s} s late at most"


def ping(check: Check, action: Action, now_s: float, *, rid: str = "", method: str = "GET", said: str = "") -> Check:
    """The check after a ping."""
    check = replace(check, n_pings=check.n_pings + 1)
    if is_ignored(check, method):
        return check
    match action:
        case Action.START:
            return replace(check, last_start_s=now_s, last_start_rid=rid)
        case Action.SUCCESS | Action.FAIL:
            started_s: float | None = check.last_start_s
            duration_s: float | None = None
            if started_s is not None and check.last_start_rid == rid:
                duration_s, started_s = now_s - started_s, None
            elif action is Action.FAIL or not rid:
                started_s = None
            return replace(
                check,
                last_ping_s=now_s,
                last_start_s=started_s,
                last_duration_s=duration_s,
                status="down" if action is Action.FAIL else "up",
                failed=said if action is Action.FAIL else "",
            )
        case _:
            return check


def is_ignored(check: Check, method: str) -> bool:
    """Whether a ping by that method changes nothing."""
    return (check.status == "paused" and check.manual_resume) or (check.methods == "POST" and method != "POST")


def settled(check: Check, now_s: float) -> Check:
    """The same, with a deadline that has passed made its status, so that it is down for good until it is heard."""
    if check.status != "down" and status(check, now_s) == "down":
        return replace(check, failed=why_down(check, now_s), status="down", last_start_s=None)
    return check


def paused(check: Check) -> Check:
    """Not judged until it is resumed, or heard."""
    return replace(check, status="paused", last_start_s=None)


def resumed(check: Check) -> Check:
    """As if it were new; raises CheckError if it is not paused."""
    if check.status != "paused":
        raise CheckError("it is not paused")
    return replace(check, status="new", last_ping_s=None, last_start_s=None)


def shifted(check: Check, by_s: float) -> Check:
    """The system's clock was stepped by so much: everything that was, was so much earlier or later."""
    return replace(
        check,
        last_ping_s=None if check.last_ping_s is None else check.last_ping_s + by_s,
        last_start_s=None if check.last_start_s is None else check.last_start_s + by_s,
        not_before_s=check.not_before_s + by_s if check.not_before_s else 0.0,
    )


_TEXTS = {"name": 100, "tags": 500, "desc": 10_000, "methods": 4}


def changed(check: Check, wish: dict[str, Any]) -> Check:
    """The check as a request of the Management API wants it; raises CheckError, naming the field.

    Fields that this monitor has no use for (of e-mail, and ``channels``) are accepted and dropped.
    """
    texts: dict[str, Any] = {}
    for field, most in _TEXTS.items():
        value = wish.get(field)
        if value is None:
            continue
        if field == "tags" and isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = " ".join(value)
        if not isinstance(value, str) or len(value) > most:
            raise CheckError(f"{field} must be a text of at most {most} characters")
        texts[field] = value
    if texts.get("methods", "") not in ("", "POST"):
        raise CheckError("methods must be empty or POST")
    check = replace(check, **texts)
    slug = wish.get("slug")
    if slug is not None and not (isinstance(slug, str) and _SLUG.fullmatch(slug)):
        raise CheckError("slug must be of a-z, 0-9, '_' and '-', at most 100")
    if slug is not None or ("name" in wish and not check.slug):
        check = replace(check, slug=slug if slug is not None else slug_of(check.name))
    if (manual := wish.get("manual_resume")) is not None:
        if not isinstance(manual, bool):
            raise CheckError("manual_resume must be true or false")
        check = replace(check, manual_resume=manual)
    numbers: dict[str, Any] = {}
    for field, key in (("timeout", "timeout_s"), ("grace", "grace_s")):
        value = wish.get(field)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not PERIOD_LEAST_S <= value <= PERIOD_MOST_S:
            raise CheckError(f"{field} must be a whole number of seconds from {PERIOD_LEAST_S} to {PERIOD_MOST_S}")
        numbers[key] = value
    check = replace(check, **numbers, schedule="" if "timeout_s" in numbers else check.schedule)
    return _scheduled(check, wish)


def _scheduled(check: Check, wish: dict[str, Any]) -> Check:
    zone, schedule = wish.get("tz"), wish.get("schedule")
    if zone is not None:
        try:
            if not isinstance(zone, str) or len(zone) > 64:
                raise ValueError
            _zone(zone)
        except (ValueError, ZoneInfoNotFoundError, OSError) as error:
            raise CheckError(f"tz must be a time zone such as Europe/Riga, not {zone!r:.70}") from error
        check = replace(check, tz=zone)
    if schedule is not None:
        try:
            if not isinstance(schedule, str) or len(schedule) > 100:
                raise cron.CronError("it must be a text of at most 100 characters")
            cron.parse(schedule)
        except cron.CronError as error:
            raise CheckError(f"schedule is no cron expression: {error}") from error
        check = replace(check, schedule=schedule)
    return check


def slug_of(name: str) -> str:
    """As healthchecks.io makes one."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^a-z0-9_\s-]", "", name.lower())).strip("-_")[:100]


def shown(check: Check, now_s: float, base_url: str, version: int = 3) -> dict[str, Any]:
    """As the Management API shows it."""
    due_s = expected_s(check)
    state = status(check, now_s)
    started = check.last_start_s is not None
    view: dict[str, Any] = {
        "name": check.name,
        "slug": check.slug,
        "tags": check.tags,
        "desc": check.desc,
        "grace": check.grace_s,
        "n_pings": check.n_pings,
        "status": "started" if version == 1 and started and state in ("new", "up", "grace") else state,
        "started": started,
        "last_ping": _iso(check.last_ping_s),
        "next_ping": _iso(due_s),
        "manual_resume": check.manual_resume,
        "methods": check.methods,
        "subject": "",
        "subject_fail": "",
        "start_kw": "",
        "success_kw": "",
        "failure_kw": "",
        "filter_subject": False,
        "filter_body": False,
        "ping_url": f"{base_url}/ping/{check.uuid}",
        "update_url": f"{base_url}/api/v{version}/checks/{check.uuid}",
        "pause_url": f"{base_url}/api/v{version}/checks/{check.uuid}/pause",
        "resume_url": f"{base_url}/api/v{version}/checks/{check.uuid}/resume",
        "channels": "",
    }
    if version >= 3:
        view["uuid"] = check.uuid
    if check.last_duration_s is not None:
        view["last_duration"] = round(check.last_duration_s)
    view |= {"schedule": check.schedule, "tz": check.tz} if check.schedule else {"timeout": check.timeout_s}
    return view


def _iso(unix_s: float | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(int(unix_s), UTC).isoformat()
