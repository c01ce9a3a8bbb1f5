"""What has changed in the fleet since it was last told, for those who watch. Pure: views and now_s in, values out.

Ages are told as the Unix time at which they began: they then change when something
happens, not with every second that passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct, structs

from bus.messages import CommandView, Event, ServiceView

SILENT_S = 2.5
"""Statuses come once a second; when one that still speaks was last heard is no news."""
SAME_S = 1.5
"""Two reckonings of one beginning differ by what messages take on their way."""

Row = dict[str, Any]
"""A ServiceView with ``began_s`` and ``silent_since_s`` (Unix time, or None) for ``uptime_s`` and ``seen_s``."""


class Snapshot(Struct, kw_only=True, tag_field="type", tag="snapshot"):
    """The fleet as it is; what a client hears first, and again when it could not keep up."""

    seq: int
    time_s: float
    host: str
    services: list[Row]
    notes: tuple[str, ...]
    events: list[Event]
    """The newest, oldest first."""
    commands: list[CommandView]


class Delta(Struct, kw_only=True, omit_defaults=True, tag_field="type", tag="delta"):
    """What has changed since the message before, whose ``seq`` is one less."""

    seq: int
    time_s: float
    services: list[Row] = []
    """``instance``, and of the others what has changed; all of them if it is new."""
    gone: list[str] = []
    notes: tuple[str, ...] | None = None
    events: list[Event] = []
    commands: list[CommandView] = []


class Told:
    """What was told last; ``update`` says what is new against that."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.notes: tuple[str, ...] = ()
        self._event_id = ""
        self._commands: dict[str, CommandView] = {}

    def services(self, views: Iterable[ServiceView], now_s: float) -> tuple[list[Row], list[str]]:
        """Rows with what has changed, and the instances that are gone. now_s is Unix time."""
        before, self.rows = self.rows, {}
        changed: list[Row] = []
        for view in views:
            row = _row(view, now_s)
            old = before.get(view.instance)
            self.rows[view.instance] = row
            if old is None:
                changed.append(row)
                continue
            for key in ("began_s", "silent_since_s"):
                if old[key] is not None and row[key] is not None and abs(old[key] - row[key]) < SAME_S:
                    row[key] = old[key]
            if row != old:
                news = {key: value for key, value in row.items() if value != old[key]}
                changed.append({"instance": view.instance, **news})
        return changed, [instance for instance in before if instance not in self.rows]

    def changed_notes(self, notes: tuple[str, ...]) -> tuple[str, ...] | None:
        """The notes, if they are others than before."""
        if notes == self.notes:
            return None
        self.notes = notes
        return notes

    def events(self, events: Iterable[Event]) -> list[Event]:
        """Those after the one that was told last; all, if that is no longer among them."""
        new: list[Event] = []
        for event in events:
            new.append(event)
            if event.id == self._event_id:
                new = []
        if new:
            self._event_id = new[-1].id
        return new

    def commands(self, commands: Iterable[CommandView]) -> list[CommandView]:
        """Those that are new or stand differently."""
        before, self._commands = self._commands, {command.id: command for command in commands}
        return [command for command in self._commands.values() if before.get(command.id) != command]


def _row(view: ServiceView, now_s: float) -> Row:
    row = structs.asdict(view)
    uptime_s, seen_s = row.pop("uptime_s"), row.pop("seen_s")
    row["began_s"] = None if uptime_s is None else round(now_s - uptime_s, 1)
    row["silent_since_s"] = None if seen_s is None or seen_s < SILENT_S else round(now_s - seen_s, 1)
    if view.cpu_cores is not None:
        row["cpu_cores"] = round(view.cpu_cores, 4)
    if view.loop_lag_s is not None:
        row["loop_lag_s"] = round(view.loop_lag_s, 5)
    return row
