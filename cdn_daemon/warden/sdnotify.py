"""The words of sd_notify(3), from a datagram to a value. Pure; the sockets are in inbox.py.

Not understood here, and passed over as systemd does with what it does not know:
FDSTORE and its kin (nothing is stored for a service), BUSERROR, INVOCATION_ID.
"""

from __future__ import annotations

from msgspec import Struct

MAX_DATAGRAM_BYTES = 4096
"""systemd's own limit (NOTIFY_BUFFER_MAX); a longer one is refused whole."""

MAX_STATUS_CHARS = 500

_MAX_DIGITS = 18
"""Microseconds of 30,000 years; more is nonsense and would overflow a float's exactness anyway."""


class NotifyError(ValueError):
    """A datagram that is not sd_notify's."""


class Notice(Struct, frozen=True):
    """What one datagram says; None and False are what it does not say."""

    ready: bool = False
    stopping: bool = False
    reloading: bool = False
    beat: bool = False
    """WATCHDOG=1: I am alive."""
    trigger: bool = False
    """WATCHDOG=trigger: treat me as if I had fallen silent."""
    status: str | None = None
    errno: int | None = None
    main_pid: int | None = None
    watchdog_s: float | None = None
    """The silence after which it wants to be judged; 0.0 switches that off."""
    extend_s: float | None = None
    """It needs this much longer for what it is doing: starting, stopping or serving."""
    malformed: int = 0
    """Lines that were passed over, as their value makes no sense."""


def parse(datagram: bytes) -> Notice:
    """What the datagram says. Unknown keys are ignored; NotifyError if it is no list of KEY=value lines at all."""
    if len(datagram) > MAX_DATAGRAM_BYTES:
        raise NotifyError(f"datagram of {len(datagram)} bytes: the limit is {MAX_DATAGRAM_BYTES}")
    if datagram == b"WATCHDOG=1":  # nine of ten datagrams are this one
        return _BEAT
    try:
        text = datagram.decode()
    except UnicodeDecodeError as error:
        raise NotifyError(f"not UTF-8: {error.reason}") from error
    if "\0" in text:
        raise NotifyError("contains NUL")
    ready = stopping = reloading = beat = trigger = False
    status: str | None = None
    numbers: dict[str, int] = {}
    malformed = known = 0
    for line in text.split("\n"):  # other ends of lines that Unicode has are part of a value
        key, separator, value = line.partition("=")
        if not separator:
            malformed += bool(line)
            continue
        known += 1
        match key, value:
            case "READY", "1":
                ready = True
            case "STOPPING", "1":
                stopping = True
            case "RELOADING", "1":
                reloading = True
            case "WATCHDOG", "1":
                beat = True
            case "WATCHDOG", "trigger":
                trigger = True
            case "STATUS", _:
                status = _printable(value)
            case (("ERRNO" | "MAINPID" | "WATCHDOG_USEC" | "EXTEND_TIMEOUT_USEC"), _):
                if value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
                    numbers[key] = int(value)
                else:
                    malformed += 1
            case (("READY" | "STOPPING" | "RELOADING" | "WATCHDOG"), _):
                malformed += 1
            case _:
                continue
    if not known:
        raise NotifyError("no KEY=value line")
    return Notice(
        ready=ready,
        stopping=stopping,
        reloading=reloading,
        beat=beat,
        trigger=trigger,
        status=status,
        errno=numbers.get("ERRNO"),
        main_pid=numbers.get("MAINPID") or None,
        watchdog_s=_seconds(numbers.get("WATCHDOG_USEC")),
        extend_s=_seconds(numbers.get("EXTEND_TIMEOUT_USEC")),
        malformed=malformed,
    )


_BEAT = Notice(beat=True)


def _seconds(usec: int | None) -> float | None:
    return None if usec is None else usec / 1e6


def _printable(text: str) -> str:
    """One line without control characters: it goes to logs and terminals."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_STATUS_CHARS])
