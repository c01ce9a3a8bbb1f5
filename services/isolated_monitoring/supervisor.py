"""supervisord, asked by itself: the process table over its Unix socket, and why a process ended, from its files."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

ANSWER_BYTES = 16 << 20
POSTMORTEM_BYTES = 1 << 20
LOG_BYTES = 4000


class Unanswered(Exception):
    """supervisord did not tell; ``refused`` if nobody listens, else it took too long or talked nonsense."""

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One process of its table."""

    name: str
    state: str
    """supervisor's word: RUNNING, STARTING, BACKOFF, STOPPING, EXITED, FATAL, STOPPED, UNKNOWN."""
    pid: int | None = None
    reason: str = ""
    exit_text: str = ""
    """How its last process ended, in words; empty if none has."""
    exit_code: int | None = None
    """128 + its number for a signal."""
    enabled: bool = True
    maintenance: bool = False
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """What it said."""

    pid: int | None
    rows: tuple[Facts, ...]
    warden: bool


@dataclass(frozen=True, kw_only=True)
class End:
    """How a process ended."""

    on_purpose: bool
    text: str


async def ask(path: Path, timeout_s: float) -> Table:
    """The process table; raises Unanswered."""
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _call(path, "cdn.getNodeStatus")
            if b"<fault>" not in answer[:200]:
                return read_node_status(answer)
            return read_process_info(await _call(path, "supervisor.getAllProcessInfo"))
    except TimeoutError as error:
        raise Unanswered(f"supervisord does not answer within {timeout_s:g} s") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise Unanswered(f"nobody listens at {path}: {error.strerror}", refused=True) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unanswered(f"supervisord does not tell its processes: {error}") from error


async def logged_end(path: Path, name: str, timeout_s: float) -> End | None:
    """How a stock supervisord's log says that the process ended last; None if it does not.

    Its table forgets that as soon as the process is started again.
    """
    offset = f"<param><value><int>-{LOG_BYTES}</int></value></param><param><value><int>0</int></value></param>"
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _call(path, "supervisor.readLog", offset)
    except (OSError, ValueError):  # TimeoutError is an OSError
        return None
    return read_log(unescape(answer.decode(errors="replace")), name)


def read_log(text: str, name: str) -> End | None:
    """The last end of a process in supervisord's log. Pure."""
    found = re.findall(rf"(exited|stopped|killed): {re.escape(name)} \((.*)\)", text)
    if not found:
        return None
    word, how = found[-1]
    how = how.replace("terminated by", "killed by")
    return End(on_purpose=word != "exited" or how.endswith("; expected"), text=how.partition(";")[0])


async def _call(path: Path, method: str, params: str = "") -> bytes:
    call = f"<methodName>{method}</methodName><params>{params}</params>"
    body = f"<?xml version='1.0'?><methodCall>{call}</methodCall>".encode()
    head = f"POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n"
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as connection:
        await loop.sock_connect(connection, str(path))
        await loop.sock_sendall(connection, head.encode() + b"Connection: close\r\n\r\n" + body)
        content = bytearray()
        while chunk := await loop.sock_recv(connection, 65536):
            content += chunk
            if len(content) > ANSWER_BYTES:
                raise ValueError(f"the answer is larger than {ANSWER_BYTES} bytes")
    status, _, _ = bytes(content).partition(b"\r\n")
    if b" 200 " not in status + b" ":
        raise ValueError(status[:100].decode(errors="replace") or "the connection was closed")
    return bytes(content).partition(b"\r\n\r\n")[2]


def read_node_status(answer: bytes) -> Table:
    """The warden's table: JSON within XML. Raises ValueError or KeyError."""
    found = re.search(rb"<string>(.*)</string>", answer, re.DOTALL)
    if found is None:
        raise ValueError("its table is no text")
    status = json.loads(unescape(found[1].decode()))
    rows = []
    for row in status["processes"]:
        code, text = read_wait_status(row.get("wait_status"))
        rows.append(
            Facts(
                name=row["name"],
                state=str(row["state"]).upper(),
                pid=row.get("pid"),
                reason=row.get("reason") or "",
                exit_text=text,
                exit_code=code,
                enabled=row.get("enabled", True),
                maintenance=row.get("maintenance", False),
                depends_on=tuple(row.get("depends_on") or ()),
            )
        )
    return Table(pid=status.get("pid"), rows=tuple(rows), warden=True)


def read_process_info(answer: bytes) -> Table:
    """Stock supervisord's table. Raises ValueError or KeyError."""
    import xmlrpc.client  # here, as beside a warden nobody needs it: 40 ms of every start

    try:
        (found,), _ = xmlrpc.client.loads(answer)
    except Exception as error:  # a Fault, or expat's, which have no base in common
        raise ValueError(f"its table cannot be read: {error}") from error
    rows: Any = found
    facts = []
    for row in rows:
        group, name = str(row["group"]), str(row["name"])
        code = int(row["exitstatus"]) if row["stop"] else None
        facts.append(
            Facts(
                name=name if group == name else f"{group}:{name}",
                state=str(row["statename"]),
                pid=int(row["pid"]) or None,
                reason=str(row["spawnerr"]),
                exit_code=code,
                exit_text="" if code is None else "killed by a signal" if code < 0 else f"exit code {code}",
            )
        )
    return Table(pid=None, rows=tuple(facts), warden=False)


def read_wait_status(status: int | None) -> tuple[int | None, str]:
    """Exit code (128 + its number for a signal), and the same in words."""
    if status is None:
        return None, ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return 128 + number, f"killed by {signal.Signals(number).name}"
        except ValueError:
            return 128 + number, f"killed by signal {number}"
    code = os.WEXITSTATUS(status)
    return code, f"exit code {code}"


def postmortem(run_dir: Path, name: str, pid: int) -> End | None:
    """What the warden wrote of the end of that process; None as long as it has not."""
    directory = run_dir / "postmortems" / (re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "_")
    try:
        files = [entry for entry in os.scandir(directory) if entry.name.endswith(f"-{pid}.json")]
    except OSError:
        return None
    for entry in sorted(files, key=lambda each: each.name, reverse=True)[:1]:
        try:
            with open(entry.path, "rb") as file:
                report = json.loads(file.read(POSTMORTEM_BYTES))
        except (OSError, ValueError):
            return None
        if isinstance(report, dict) and isinstance(report.get("wait_status"), int):
            return read_postmortem(report)
    return None


def read_postmortem(report: Mapping[str, Any]) -> End:
    """Whether somebody wanted that end: by an order, or itself by exit code 0 or 75. Pure."""
    code, text = read_wait_status(report["wait_status"])
    by, verdict = str(report.get("ordered_by") or ""), str(report.get("verdict") or "")
    text = str(report.get("end") or text)
    if by:
        return End(on_purpose=True, text=f"{text}, ordered by {by}")
    if verdict:
        return End(on_purpose=False, text=f"{text} by the warden: {verdict}")
    return End(on_purpose=code in (0, 75), text=text)


def end_by_table(facts: Facts) -> End | None:
    """The same where there is no post-mortem, from its row; None if that tells nothing. Pure."""
    if facts.state in ("STOPPING", "STOPPED"):
        return End(on_purpose=True, text="stopped")
    if facts.exit_code is None or facts.state not in ("EXITED", "BACKOFF", "FATAL"):
        return None
    return End(on_purpose=facts.exit_code in (0, 75), text=facts.exit_text)


def read_conf(path: Path) -> dict[str, bool]:
    """Programs of a supervisord.conf, and whether they start by themselves; nothing if it cannot be read.

    Only to know what there should be while supervisord itself cannot be asked.
    """
    import configparser  # here, as it is read only then

    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";",))
    try:
        parser.read_string(path.read_text())
    except (OSError, ValueError, configparser.Error):
        return {}
    return {
        section.partition(":")[2]: parser.get(section, "autostart", fallback="true").lower()
        in ("true", "yes", "1", "on")
        for section in parser.sections()
        if section.startswith("program:")
    }


def conf_of(pid: int | None, run_dir: Path) -> Path | None:
    """The configuration file of a supervisord: from its command line, else beside the run directory."""
    if pid is not None:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            cwd = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            words, cwd = [], ""
        for flag, value in pairwise(words):
            if flag in (b"-c", b"--configuration"):
                return Path(cwd) / os.fsdecode(value)
    for candidate in (run_dir / "supervisord.conf", run_dir.parent / "supervisord.conf"):
        if candidate.is_file():
            return candidate
    return None
