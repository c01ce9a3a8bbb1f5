"""How cdnctl ends: its exit codes, and the error that carries one. Only click is imported."""

from __future__ import annotations

from enum import IntEnum

import click


class Exit(IntEnum):
    """The same for every command and every output format."""

    OK = 0
    """All that was selected is running and healthy, or the action is done."""
    FAILED = 1
    """The action failed, even partly."""
    USAGE = 2
    """The command line is wrong; click's own code."""
    NOT_WELL = 3
    """Something selected is not running or not healthy; starting and backing off included."""
    UNKNOWN = 4
    """No such service, or its state cannot be obtained."""
    TIMED_OUT = 124
    """As timeout(1)."""
    INTERRUPTED = 130
    """128 + SIGINT."""
    READER_GONE = 141
    """128 + SIGPIPE: whoever read what it prints has gone, as after `head -1`."""


class Problem(click.ClickException):
    """What cdnctl cannot do, and why; ends it with ``exit_code``."""

    def __init__(self, message: str, exit_code: Exit) -> None:
        super().__init__(message)
        self.exit_code: int = int(exit_code)  # type: ignore[misc]  # click declares it on the class, and means this

    def show(self, file: object = None) -> None:
        """Write it to stderr."""
        click.echo(f"cdnctl: {self.message}", err=True)
