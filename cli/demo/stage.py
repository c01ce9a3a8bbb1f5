"""The fleet that the demonstration plays in: a private directory, free ports, and nothing left of it afterwards."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from bus.endpoints import LONGEST_SOCKET_NAME, MAX_SOCKET_PATH_BYTES, RunDir
from bus.messages import ServiceView
from cli import conf
from cli.atlas import AtlasSilent, Refused, ask_fleet
from cli.commands.down import end_fleet
from cli.exits import Exit, Problem
from cli.fallback import NoSupervisord, SupervisordRefused, SupervisordSilent
from cli.launching import end_of_log, launch, made_ready, plan
from cli.progress import Progress
from cli.readiness import Standing
from cli.rising import Rise

SHOP = "shop"
SHIPPED = Path(__file__).parents[2] / "supervisord.conf"
"""The project's own."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UP_WITHIN_S = 120.0
DOWN_WITHIN_S = 60.0
ANSWER_S = 60.0
"""Under load nothing is quick, and what is not there at all refuses at once."""
SETTINGS = {
    # each service chooses a free port
    "CDN_PORT": "0",
    # the gateway believes the proxy in front, which is the demonstration itself, who the client is
    "FORWARDED_ALLOW_IPS": "127.0.0.1",
    # two seconds in the place of ten, and a budget that is worth sharing out with as few series as there are here
    "CDN_STATISTICAL_SLOT_S": "2",
    "CDN_STATISTICAL_QUANTILE_BYTES": "24576",
    # so that there is something to see of intervals in a minute
    "CDN_MONITORING_INTERVAL_S": "4",
}
SHOP_PROGRAM = f"""
[program:{SHOP}]
command=cdn-run --name {SHOP} --http 'http://127.0.0.1:$PORT/health' -- python -m cli.demo.shop $PORT
priority=50
autorestart=unexpected
exitcodes=0,78
startsecs=0
stopwaitsecs=15
killasgroup=true
redirect_stderr=true
stdout_logfile={{run}}/%(program_name)s.log
directory={{here}}
"""
_OTHERS = ("CDN_", "SUPERVISOR_", "NOTIFY_", "WATCHDOG_")
_NOWHERE = "http://127.0.0.1:9"
"""The discard port: while nobody knows where it is."""
T = TypeVar("T")


class Stage:
    """The fleet; a context manager that takes it down, unless it is told to keep it."""

    def __init__(self, config: Path = SHIPPED) -> None:
        self._config = config
        self.home = _private_directory()
        self.run_dir = RunDir(self.home / "run")
        self.is_kept = False
        self._addresses: dict[str, str] = {}

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_kept:
            return
        before = {
            number: signal.signal(number, signal.SIG_IGN) for number in ENDING
        }  # half a fleet is no use to anybody
        try:
            self.clear()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def up(self, show: Progress) -> list[str]:
        """Start it and wait until all of it is ready; the names of its programs. Raises Problem."""
        _forget_other_fleets()
        os.environ.update(SETTINGS, CDN_RUN_DIR=str(self.run_dir.path), TMPDIR=str(self.home))
        path = self.home / "supervisord.conf"
        try:
            text = self._config.read_text(encoding="utf-8")
            path.write_text(staged(text, self._config, self.run_dir.path), encoding="utf-8")
        except (OSError, UnicodeDecodeError, conf.ConfError) as error:
            raise Problem(
                f"cannot use {self._config}: {error}; name the supervisord.conf of the ten services with -c",
                Exit.FAILED,
            ) from error
        planned = plan(str(path), None)
        wanted = _programs(planned.text)
        try:
            with made_ready(self.run_dir, time.monotonic() + UP_WITHIN_S):
                launch(planned)
            rise = Rise(self.run_dir, wanted)
            rise.wait(UP_WITHIN_S, show)
        except NoSupervisord as error:
            raise Problem(
                f"cannot start the fleet: supervisord has ended:{end_of_log(planned)}", Exit.FAILED
            ) from error
        except (SupervisordSilent, SupervisordRefused) as error:
            raise Problem(f"cannot start the fleet: {error}", Exit.FAILED) from error
        late = {name: found.text for name, found in rise.verdicts.items() if found.standing is not Standing.READY}
        if late:
            told = "; ".join(f"{name}: {why}" for name, why in late.items())
            raise Problem(f"cannot start the fleet: {told}", Exit.FAILED)
        return wanted

    def clear(self) -> None:
        """End all of it, and leave no file behind. Raises Problem."""
        if self.run_dir.path.exists():
            try:
                end_fleet(self.run_dir, DOWN_WITHIN_S)
            except Problem as error:
                raise Problem(f"{error.message}; then remove {self.home}", Exit.FAILED) from error
        shutil.rmtree(self.home)

    def views(self) -> dict[str, ServiceView]:
        """Instance → what ATLAS knows of it; nothing while there is no ATLAS."""
        try:
            views = {view.instance: view for view in ask_fleet(self.run_dir).services}
        except (AtlasSilent, Refused):
            return {}
        self._addresses.update({name: view.address for name, view in views.items() if view.address})
        return views

    def address(self, name: str) -> str:
        """Where it listens, or did when ATLAS was last asked."""
        if name not in self._addresses:
            self.views()
        if name not in self._addresses:  # it reports to nobody
            try:
                found = re.findall(r"listens on 127\.0\.0\.1 port (\d+)", self.run_dir.log(name).read_text())
                self._addresses[name] = f"http://127.0.0.1:{found[-1]}"
            except (OSError, IndexError):
                raise Problem(
                    f"cannot ask {name}: it has told no address; see {self.run_dir.log(name)}", Exit.FAILED
                ) from None
        return self._addresses[name]

    def address_of(self, name: str) -> Callable[[], str]:
        """Where it listens now, for whoever asks again and again; nobody is asked for it."""
        self.address(name)
        return lambda: self._addresses.get(name, _NOWHERE)

    def forget(self, name: str) -> None:
        """Where it listens, as another process will have another port."""
        self._addresses.pop(name, None)

    def token(self, name: str) -> str:
        """What changes to it need; empty if it has none."""
        try:
            return (self.run_dir.path / f"{name}.token").read_text().strip()
        except FileNotFoundError:
            return ""

    def call(self, name: str, method: str, path: str, body: object = None, *, kind: str = "") -> Any:
        """What a service answers, with its token. Raises Problem unless it does what was asked."""
        content, kind = _content(body, kind)
        headers = {"Content-Type": kind} if kind else {}
        if token := self.token(name):
            headers["Authorization"] = f"Bearer {token}"
        try:
            status, answer = request(self.address(name), method, path, content, headers)
        except (OSError, http.client.HTTPException) as error:
            raise Problem(f"cannot {method} {path} of {name}: {error!r}", Exit.FAILED) from error
        if not 200 <= status < 300:
            told = answer[:500].decode(errors="replace")
            raise Problem(f"cannot {method} {path} of {name}: {status}, {told}", Exit.FAILED)
        return msgspec.json.decode(answer) if answer[:1] in (b"{", b"[") else answer.decode()


def until(look: Callable[[], T], show: Progress, *, within_s: float, what: str, every_s: float = 0.05) -> T:
    """The first answer that is something. Raises Problem, with what was waited for, if there is none."""
    deadline_s = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > deadline_s:
            raise Problem(f"cannot go on with the story: {what}: not within {within_s:g} s", Exit.FAILED)
        show.tick()
        time.sleep(every_s)
    return found


def request(
    address: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of one request. Raises OSError and HTTPException."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def staged(text: str, path: Path, run_dir: Path) -> str:
    """That configuration for this run directory, with the shop, and an ATLAS that stays down once it is killed. Pure.

    Raises ConfError.
    """
    head, *sections = re.split(r"(?m)^(?=\[)", conf.derive(text, path, run_dir))
    alone = "[program:atlas]"
    if not any(section.startswith(alone) for section in sections):
        raise conf.ConfError(f"it has no {alone}")
    changed = [
        re.sub(r"(?m)^autorestart=.*$", "autorestart=false", section) if section.startswith(alone) else section
        for section in sections
    ]
    return "".join([head, *changed, SHOP_PROGRAM.format(run=run_dir, here=path.parent)])


def _programs(text: str) -> list[str]:
    return re.findall(r"(?m)^\[program:([^\]]+)\]", text)


def _private_directory() -> Path:
    """A new one, with room for the names of sockets."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        home = Path(tempfile.mkdtemp(prefix="cdn-demo-", dir=parent)).resolve()
        if len(os.fsencode(home / "run" / LONGEST_SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES:
            return home
        home.rmdir()
    raise Problem(
        f"cannot make a directory whose sockets have paths of at most {MAX_SOCKET_PATH_BYTES} bytes; "
        "set TMPDIR to a shorter one",
        Exit.FAILED,
    )


def _forget_other_fleets() -> None:
    """What was set for the operator's own is not for this one."""
    for name in [name for name in os.environ if name.startswith(_OTHERS)]:
        del os.environ[name]


def _content(body: object, kind: str) -> tuple[bytes | None, str]:
    if body is None or isinstance(body, bytes):
        return body, kind
    if isinstance(body, str):
        return body.encode(), kind or "text/plain"
    return msgspec.json.encode(body), kind or "application/json"
