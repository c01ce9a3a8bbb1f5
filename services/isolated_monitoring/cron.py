"""Cron expressions, crontab(5): five fields, lists, ranges, steps, names, ``@daily`` and the like. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_SHORT = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_DAYS_AHEAD = 366 * 9
"""29 February comes after eight years at the latest."""


class CronError(ValueError):
    """No cron expression; the text says which part."""


@dataclass(frozen=True)
class Cron:
    """When something is due."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool
    """Both days are restricted: it is due on days that fit one of them, crontab(5)."""

    def next_s(self, after_s: float, zone: tzinfo) -> float:
        """The first time it is due after that Unix time; raises CronError if it never is."""
        local = datetime.fromtimestamp(after_s, UTC).astimezone(zone).replace(tzinfo=None)
        day = local.replace(hour=0, minute=0, second=0, microsecond=0)
        for _ in range(_DAYS_AHEAD):
            if self._is_due_on(day):
                for hour in self.hours:
                    for minute in self.minutes:
                        due_s = day.replace(hour=hour, minute=minute, tzinfo=zone).timestamp()
                        if due_s > after_s:
                            return due_s
            day += timedelta(days=1)
        raise CronError("there is no such day")

    def _is_due_on(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either else of_month and of_week


def parse(text: str) -> Cron:
    """Read an expression; raises CronError, also for days that there never are."""
    parts = _SHORT.get(text.strip().lower(), text).split()
    if len(parts) != 5:
        raise CronError(f"it must have five fields, not {len(parts)}")
    minutes, hours, days, months, weekdays = (_field(part, *rule) for part, rule in zip(parts, _FIELDS, strict=True))
    cron = Cron(
        tuple(sorted(minutes)),
        tuple(sorted(hours)),
        frozenset(days),
        frozenset(months),
        frozenset(day % 7 for day in weekdays),
        either=not parts[2].startswith("*") and not parts[4].startswith("*"),
    )
    cron.next_s(0.0, UTC)
    return cron


def _field(text: str, name: str, low: int, high: int, names: dict[str, int]) -> set[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        match = re.fullmatch(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d{1,4}))?", part)
        if match is None:
            raise CronError(f"{name} cannot be {part!r:.40}")
        star, first, last, step = match.groups()
        begin = low if star else _number(first, name, low, high, names)
        end = high if star or (step and not last) else begin if not last else _number(last, name, low, high, names)
        if begin > end or (step is not None and int(step) == 0):
            raise CronError(f"{name} cannot be {part!r:.40}")
        found.update(range(begin, end + 1, int(step or 1)))
    return found


def _number(text: str, name: str, low: int, high: int, names: dict[str, int]) -> int:
    value = names.get(text[:3], -1) if text[:1].isalpha() else int(text) if text.isascii() and text.isdigit() else -1
    if not low <= value <= high:
        raise CronError(f"{name} must be from {low} to {high}, not {text!r:.20}")
    return value
